//! Replays the fuzz corpora, and inputs of the project's own making, through the bodies of the fuzz targets.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

use capsule_core::fuzzing::TARGETS;
use proptest::prelude::*;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
}

/// Every seed of every target, with its path.
fn seeds() -> Vec<(PathBuf, Vec<u8>)> {
    let mut seeds = Vec::new();
    for (target, _) in TARGETS {
        let directory = corpora().join(target);
        for entry in fs::read_dir(&directory).expect("a corpus for each target") {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            seeds.push((path, bytes));
        }
    }
    seeds
}

#[test]
fn every_corpus_passes_its_target() {
    for (target, body) in TARGETS {
        let mut replayed = 0;
        for entry in fs::read_dir(corpora().join(target)).expect("a corpus for each target") {
            body(&fs::read(entry.unwrap().path()).unwrap());
            replayed += 1;
        }
        assert!(
            replayed >= 10,
            "the corpus of {target} has {replayed} seeds"
        );
    }
}

#[test]
fn every_seed_passes_every_target() {
    for (_, bytes) in seeds() {
        for (_, body) in TARGETS {
            body(&bytes);
        }
    }
}

#[test]
fn seeds_with_one_byte_changed_or_the_end_cut() {
    for (_, bytes) in seeds() {
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] = changed[at].wrapping_mul(31).wrapping_add(17);
            for (_, body) in TARGETS {
                body(&changed);
                body(&bytes[..at]);
            }
        }
    }
}

proptest! {
    #[test]
    fn any_bytes_pass(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for (_, body) in TARGETS {
            body(&bytes);
        }
    }

    #[test]
    fn text_like_templates_passes(text in "(/|[a-z]|\\{[?&+]?(target_host|target_port|x)(,(target_host|target_port|x))?\\}|[?&=,:%-]){0,12}") {
        for (_, body) in TARGETS {
            body(text.as_bytes());
        }
    }
}
