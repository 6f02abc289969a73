//! The reverse of expansion: finds the raw values in a path and query.
//!
//! A value of an expansion holds only unreserved characters and percent-encoded triplets, so any other character that
//! follows a variable ends it; templates where none does are refused. Matching takes time linear in the path.

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use super::{Captures, HOST, PORT, TemplateError, fault};
use crate::uri_template::{Operator, Part, UriTemplate, is_unreserved};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Host,
    Port,
    /// A variable of somebody else's; undefined in our expansions.
    Other,
}

impl Slot {
    fn of(name: &str) -> Self {
        match name {
            HOST => Self::Host,
            PORT => Self::Port,
            _ => Self::Other,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Literal(String),
    Variable(Slot),
}

/// One `&`-separated item of the query.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Item {
    /// `name=value` by `{?name}` or `{&name}`; any order, and absent when undefined.
    Named(String, Slot),
    /// Text and simple expressions.
    Pieces(Vec<Piece>),
}

impl Item {
    /// What precedes the `=`.
    fn name(&self) -> Option<&str> {
        match self {
            Self::Named(name, _) => Some(name),
            Self::Pieces(pieces) => match pieces.first() {
                Some(Piece::Literal(text)) => text.split('=').next(),
                _ => None,
            },
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Matcher {
    path: Vec<Piece>,
    query: Option<Vec<Item>>,
}

#[derive(Default)]
struct Values<'p> {
    host: Option<&'p str>,
    port: Option<&'p str>,
}

impl Matcher {
    /// `path_start` = length of scheme and authority.
    pub(super) fn compile(uri: &UriTemplate, path_start: usize) -> Result<Self, TemplateError> {
        let mut matcher = Self {
            path: Vec::new(),
            query: None,
        };
        let mut named_before = false;
        let mut query_may_vanish = false;
        for part in uri.parts() {
            if query_may_vanish {
                let (Part::Literal { position, .. } | Part::Expression { position, .. }) = part;
                return fault(
                    *position,
                    "nothing may follow a {?…} without target_host and target_port",
                );
            }
            match part {
                Part::Literal { position, text } => {
                    let skip = path_start.saturating_sub(*position).min(text.len());
                    let text = &text[skip..];
                    if named_before && !text.starts_with('&') {
                        return fault(*position, "an & must follow {?…} and {&…}");
                    }
                    named_before = false;
                    matcher.literal(text, position + skip)?;
                }
                Part::Expression {
                    position,
                    operator: Operator::Simple,
                    names,
                } => {
                    if named_before {
                        return fault(*position, "an & must follow {?…} and {&…}");
                    }
                    matcher.simple(names, *position)?;
                }
                Part::Expression {
                    operator, names, ..
                } => {
                    named_before = true;
                    // With all its variables undefined a {?…} expands to nothing, not even the ?.
                    query_may_vanish = *operator == Operator::Query
                        && names.iter().all(|name| Slot::of(name) == Slot::Other);
                    matcher
                        .query
                        .get_or_insert_default()
                        .extend(names.iter().map(|n| Item::Named(n.clone(), Slot::of(n))));
                }
            }
        }
        matcher.check_query_names(uri)?;
        Ok(matcher)
    }

    /// Items of the query may come in any order, so their names must differ.
    fn check_query_names(&self, uri: &UriTemplate) -> Result<(), TemplateError> {
        let items = self.query.as_deref().unwrap_or_default();
        for (index, item) in items.iter().enumerate() {
            let Some(name) = item.name() else { continue };
            if items[..index]
                .iter()
                .any(|other| other.name() == Some(name))
            {
                let position = uri.parts().last().map_or(0, |part| match part {
                    Part::Literal { position, .. } | Part::Expression { position, .. } => *position,
                });
                return fault(position, "a name stands in the query a second time");
            }
        }
        Ok(())
    }

    /// The pieces that the next literal or simple expression goes to.
    fn pieces(&mut self) -> &mut Vec<Piece> {
        match &mut self.query {
            None => &mut self.path,
            Some(items) => {
                if !matches!(items.last(), Some(Item::Pieces(_))) {
                    items.push(Item::Pieces(Vec::new()));
                }
                match items.last_mut() {
                    Some(Item::Pieces(pieces)) => pieces,
                    _ => &mut self.path,
                }
            }
        }
    }

    fn literal(&mut self, mut text: &str, mut position: usize) -> Result<(), TemplateError> {
        if self.query.is_none() {
            let (path, query) = match text.split_once('?') {
                Some((path, query)) => (path, Some(query)),
                None => (text, None),
            };
            push_literal(&mut self.path, path, position)?;
            let Some(query) = query else { return Ok(()) };
            self.query = Some(vec![Item::Pieces(Vec::new())]);
            position += path.len() + 1;
            text = query;
        }
        for (index, item) in text.split('&').enumerate() {
            if index > 0
                && let Some(items) = &mut self.query
            {
                items.push(Item::Pieces(Vec::new()));
            }
            if !item.is_empty() {
                push_literal(self.pieces(), item, position)?;
            }
            position += item.len() + 1;
        }
        Ok(())
    }

    fn simple(&mut self, names: &[String], position: usize) -> Result<(), TemplateError> {
        let pieces = self.pieces();
        if matches!(pieces.last(), Some(Piece::Variable(_))) {
            return fault(
                position,
                "two variables stand side by side: put a / between them",
            );
        }
        for (index, name) in names.iter().enumerate() {
            let slot = Slot::of(name);
            if slot == Slot::Other && names.len() > 1 {
                return fault(
                    position,
                    "a further variable needs an expression of its own",
                );
            }
            if index > 0 {
                pieces.push(Piece::Literal(",".to_owned()));
            }
            pieces.push(Piece::Variable(slot));
        }
        Ok(())
    }

    pub(super) fn matches(&self, path_and_query: &str) -> Option<Captures> {
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_and_query, None),
        };
        let mut values = Values::default();
        match_pieces(&self.path, path, true, &mut values)?;
        match (&self.query, query) {
            (None, None) => {}
            (None, Some(_)) => return None,
            (Some(items), query) => match_query(items, query, &mut values)?,
        }
        Some(Captures {
            host: values.host.unwrap_or_default().to_owned(),
            port: values.port.unwrap_or_default().to_owned(),
        })
    }
}

fn push_literal(pieces: &mut Vec<Piece>, text: &str, position: usize) -> Result<(), TemplateError> {
    let Some(&first) = text.as_bytes().first() else {
        return Ok(());
    };
    match pieces.last_mut() {
        Some(Piece::Variable(_)) if is_unreserved(first) || first == b'%' => fault(
            position,
            "what follows a variable could be part of its value: put a / there",
        ),
        Some(Piece::Literal(before)) => {
            before.push_str(text);
            Ok(())
        }
        _ => {
            pieces.push(Piece::Literal(text.to_owned()));
            Ok(())
        }
    }
}

fn match_pieces<'p>(
    pieces: &[Piece],
    mut text: &'p str,
    in_path: bool,
    values: &mut Values<'p>,
) -> Option<()> {
    for (index, piece) in pieces.iter().enumerate() {
        match piece {
            Piece::Literal(literal) => text = text.strip_prefix(literal.as_str())?,
            Piece::Variable(slot) => {
                let stop = match pieces.get(index + 1) {
                    Some(Piece::Literal(literal)) => literal.as_bytes().first().copied(),
                    _ => None,
                };
                let end = text
                    .bytes()
                    .position(|byte| Some(byte) == stop || (in_path && byte == b'/'))
                    .unwrap_or(text.len());
                let (value, rest) = text.split_at(end);
                match slot {
                    Slot::Host => values.host = Some(value),
                    Slot::Port => values.port = Some(value),
                    Slot::Other => {}
                }
                text = rest;
            }
        }
    }
    text.is_empty().then_some(())
}

fn match_query<'p>(items: &[Item], query: Option<&'p str>, values: &mut Values<'p>) -> Option<()> {
    let mut used = vec![false; items.len()];
    let mut given = query.map(|query| query.split('&'));
    // "?" alone is an expansion with every variable undefined.
    if query == Some("") && items.iter().all(|item| matches!(item, Item::Named(..))) {
        given = None;
    }
    for text in given.into_iter().flatten() {
        let index = (0..items.len())
            .find(|&index| !used[index] && match_item(&items[index], text, values).is_some())?;
        used[index] = true;
    }
    // Text must be there; values that are missing come out empty and are faults of the target.
    items
        .iter()
        .zip(&used)
        .all(|(item, used)| *used || matches!(item, Item::Named(..)))
        .then_some(())
}

fn match_item<'p>(item: &Item, text: &'p str, values: &mut Values<'p>) -> Option<()> {
    match item {
        Item::Named(name, slot) => {
            let value = text.strip_prefix(name.as_str())?.strip_prefix('=')?;
            match slot {
                Slot::Host => values.host = Some(value),
                Slot::Port => values.port = Some(value),
                Slot::Other => {}
            }
            Some(())
        }
        Item::Pieces(pieces) => {
            let mut found = Values { ..*values };
            match_pieces(pieces, text, false, &mut found)?;
            *values = found;
            Some(())
        }
    }
}
