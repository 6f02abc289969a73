//! Where keys stand in a TOML file.

use std::collections::HashMap;

use pyo3::prelude::*;
use toml_edit::{Array, Document, InlineTable, Item, Table, TableLike, Value};

/// Numbers out of range that are looked past in one file.
const LOOKED_PAST: usize = 16;

fn line_at(text: &str, position: usize) -> usize {
    let before = text.as_bytes().get(..position).unwrap_or_default();
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

struct Lines<'a> {
    text: &'a str,
    found: HashMap<String, usize>,
}

impl Lines<'_> {
    fn note(&mut self, path: &str, span: Option<std::ops::Range<usize>>) {
        if let Some(span) = span {
            let line = line_at(self.text, span.start);
            self.found.entry(path.to_owned()).or_insert(line);
        }
    }

    fn table(&mut self, path: &str, table: &dyn TableLike) {
        for (name, item) in table.iter() {
            let inner = if path.is_empty() {
                name.to_owned()
            } else {
                format!("{path}.{name}")
            };
            match item {
                Item::Table(table) if !table.is_dotted() => self.note(&inner, table.span()),
                Item::ArrayOfTables(tables) => {
                    self.note(&inner, tables.iter().next().and_then(Table::span));
                }
                _ => {}
            }
            self.note(&inner, table.key(name).and_then(toml_edit::Key::span));
            self.item(&inner, item);
        }
    }

    fn item(&mut self, path: &str, item: &Item) {
        match item {
            Item::None => {}
            Item::Value(value) => self.value(path, value),
            Item::Table(table) => self.table(path, table),
            Item::ArrayOfTables(tables) => {
                for (index, table) in tables.iter().enumerate() {
                    let inner = format!("{path}[{index}]");
                    self.note(&inner, table.span());
                    self.table(&inner, table);
                }
            }
        }
    }

    fn value(&mut self, path: &str, value: &Value) {
        match value {
            Value::Array(array) => self.array(path, array),
            Value::InlineTable(table) => self.inline(path, table),
            _ => {}
        }
    }

    fn array(&mut self, path: &str, array: &Array) {
        for (index, value) in array.iter().enumerate() {
            let inner = format!("{path}[{index}]");
            self.note(&inner, value.span());
            self.value(&inner, value);
        }
    }

    fn inline(&mut self, path: &str, table: &InlineTable) {
        self.table(path, table);
    }
}

/// The text with a zero in place of the number at `span`, as long as it; `None` if no number is there.
fn zeroed(text: &str, span: std::ops::Range<usize>) -> Option<String> {
    let (before, number, after) = (
        text.get(..span.start)?,
        text.get(span.clone())?,
        text.get(span.end..)?,
    );
    let sound = number.starts_with(|first: char| first.is_ascii_digit() || "+-".contains(first))
        && number
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"+-_.".contains(&byte));
    sound.then(|| format!("{before}{:<1$}{after}", "0", number.len()))
}

/// The line (from 1) of each key, table and list entry: `listeners[0].address` → 5; and the line of the first thing
/// that is not TOML to this parser, if there is one and it has a line.
///
/// Python's parser takes integers of any size: they cost their own line here, and no other key's.
#[pyfunction]
pub(crate) fn toml_lines(text: &str) -> (HashMap<String, usize>, Option<usize>) {
    let mut text = text.to_owned();
    let mut refused = None;
    for _ in 0..LOOKED_PAST {
        let span = match Document::parse(text.as_str()) {
            Ok(document) => {
                let mut lines = Lines {
                    text: &text,
                    found: HashMap::new(),
                };
                lines.table("", document.as_table());
                return (lines.found, refused);
            }
            Err(error) => error.span(),
        };
        let Some(span) = span else { break };
        refused = refused.or(Some(line_at(&text, span.start)));
        match zeroed(&text, span) {
            Some(without) => text = without,
            None => break,
        }
    }
    (HashMap::new(), refused)
}
