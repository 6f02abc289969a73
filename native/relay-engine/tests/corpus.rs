//! Replays the fuzz corpora, and inputs of the project's own making, through the bodies of the fuzz targets.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use relay_engine::fuzzing::{Body, TARGETS};

/// Every seed of a target, with its path.
fn seeds(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let entries = fs::read_dir(corpora.join(target)).expect("a corpus for each target");
    entries
        .map(|entry| {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            (path, bytes)
        })
        .collect()
}

fn every_seed(each: impl Fn(Body, &[u8])) {
    for (target, body) in TARGETS {
        let seeds = seeds(target);
        assert!(
            seeds.len() >= 10,
            "the corpus of {target} has {} seeds",
            seeds.len()
        );
        for (_, bytes) in seeds {
            each(*body, &bytes);
        }
    }
}

#[test]
fn every_corpus_passes_its_target() {
    every_seed(|body, bytes| body(bytes));
}

#[test]
fn every_seed_passes_every_target() {
    every_seed(|_, bytes| TARGETS.iter().for_each(|(_, body)| body(bytes)));
}

#[test]
fn seeds_with_one_byte_changed_or_the_end_cut() {
    every_seed(|body, bytes| {
        for at in 0..bytes.len() {
            let mut changed = bytes.to_vec();
            changed[at] = changed[at].wrapping_mul(31).wrapping_add(17);
            body(&changed);
            body(&bytes[..at]);
        }
    });
}

proptest! {
    #[test]
    fn any_bytes_pass(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for (_, body) in TARGETS {
            body(&bytes);
        }
    }
}
