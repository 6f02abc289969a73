//! The command line: long options, each with one value unless it is a switch.

use std::collections::HashMap;

use relay_engine::load::{Failure, usage};

const SWITCHES: [&str; 2] = ["verify", "json"];
const VALUES: [&str; 14] = [
    "address",
    "proxy",
    "mode",
    "form",
    "direction",
    "bytes",
    "authority",
    "ca",
    "token",
    "origin",
    "pid",
    "timeout",
    "max-frame",
    "congestion-control",
];

/// Options by name, without the dashes.
#[derive(Debug)]
pub struct Options(HashMap<String, String>);

impl Options {
    /// Reads what stands behind the command.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut options = HashMap::new();
        while let Some(argument) = arguments.next() {
            let name = argument.strip_prefix("--").unwrap_or_default();
            let value = if SWITCHES.contains(&name) {
                String::new()
            } else if VALUES.contains(&name) {
                arguments
                    .next()
                    .ok_or_else(|| usage(format_args!("--{name} needs a value")))?
            } else {
                return Err(usage(format_args!(
                    "{argument}: no such option; see relay-load --help"
                )));
            };
            options.insert(name.to_owned(), value);
        }
        Ok(Self(options))
    }

    /// Whether a switch is set.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The text of an option.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The parsed value of an option.
    pub fn get<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Failure> {
        let parse = |text: &str| {
            text.parse()
                .map_err(|_| usage(format_args!("--{name}: {text} is not understood")))
        };
        self.text(name).map(parse).transpose()
    }

    /// The parsed value of an option that must be there.
    pub fn need<T: std::str::FromStr>(&self, name: &str) -> Result<T, Failure> {
        self.get(name)?
            .ok_or_else(|| usage(format_args!("--{name} is missing; see relay-load --help")))
    }
}
