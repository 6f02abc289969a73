//! Where keys stand in a TOML file.

use std::collections::HashMap;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use toml_edit::{Array, Document, InlineTable, Item, Table, TableLike, Value};

struct Lines<'a> {
    text: &'a str,
    found: HashMap<String, usize>,
}

impl Lines<'_> {
    fn note(&mut self, path: &str, span: Option<std::ops::Range<usize>>) {
        if let Some(span) = span {
            let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
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

/// The line (from 1) of each key, table and list entry: `listeners[0].address` → 5.
#[pyfunction]
pub(crate) fn toml_lines(text: &str) -> PyResult<HashMap<String, usize>> {
    let document =
        Document::parse(text).map_err(|error| PyValueError::new_err(error.to_string()))?;
    let mut lines = Lines {
        text,
        found: HashMap::new(),
    };
    lines.table("", document.as_table());
    Ok(lines.found)
}
