//! The public test suite of RFC 6570, as far as levels 1 to 3 go.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;

use capsule_core::uri_template::UriTemplate;
use serde_json::Value;

/// (template, variables, expected: a string, several, or `false` for a fault)
fn cases(file: &str) -> Vec<(String, Value, Value)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/vectors/uritemplate")
        .join(file);
    let suite: Value = serde_json::from_slice(&fs::read(&path).expect(file)).unwrap();
    let mut cases = Vec::new();
    for group in suite.as_object().unwrap().values() {
        for case in group["testcases"].as_array().unwrap() {
            let template = case[0].as_str().unwrap().to_owned();
            cases.push((template, group["variables"].clone(), case[1].clone()));
        }
    }
    cases
}

fn names(template: &str) -> Vec<&str> {
    template
        .split('{')
        .skip(1)
        .filter_map(|rest| rest.split_once('}'))
        .flat_map(|(inside, _)| {
            inside
                .trim_start_matches(['+', '#', '.', '/', ';', '?', '&'])
                .split(',')
        })
        .collect()
}

/// Levels 1 to 3: no modifiers, and each value a string, a number or undefined.
fn within_level_3(template: &str, variables: &Value) -> bool {
    names(template).iter().all(|name| {
        !name.contains([':', '*']) && !matches!(variables[name], Value::Array(_) | Value::Object(_))
    })
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

#[test]
fn expansions() {
    let mut run = 0;
    for file in [
        "spec-examples.json",
        "spec-examples-by-section.json",
        "extended-tests.json",
    ] {
        for (template, variables, expected) in cases(file) {
            if !within_level_3(&template, &variables) || expected == Value::Bool(false) {
                continue;
            }
            let values: Vec<(&str, Option<String>)> = names(&template)
                .into_iter()
                .map(|name| (name, text(&variables[name])))
                .collect();
            let value = |name: &str| {
                let (_, value) = values.iter().find(|(known, _)| *known == name)?;
                value.as_deref()
            };
            let parsed = UriTemplate::parse(&template).expect(&template);
            let expanded = parsed.expand(&value);
            let fits = match &expected {
                Value::Array(several) => several.iter().any(|one| one == expanded.as_str()),
                one => one == expanded.as_str(),
            };
            assert!(fits, "{template}: {expanded}, expected {expected}");
            run += 1;
        }
    }
    assert!(run >= 100, "only {run} cases are within level 3");
}

#[test]
fn faults() {
    let mut run = 0;
    for (template, variables, expected) in cases("negative-tests.json") {
        assert_eq!(expected, Value::Bool(false));
        // Some are faults only for the values they are used with, which here are never lists.
        if within_level_3(&template, &variables) || template.contains([':', '*']) {
            assert!(UriTemplate::parse(&template).is_err(), "{template}");
            run += 1;
        }
    }
    assert!(
        run >= 30,
        "only {run} cases are faults of the template alone"
    );
}

#[test]
fn modifiers_of_level_4_are_refused() {
    let mut run = 0;
    for (template, _, _) in cases("spec-examples.json") {
        if names(&template)
            .iter()
            .any(|name| name.contains([':', '*']))
        {
            assert!(UriTemplate::parse(&template).is_err(), "{template}");
            run += 1;
        }
    }
    assert!(run >= 20);
}
