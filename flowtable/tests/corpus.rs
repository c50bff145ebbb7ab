//! Replays the corpus of the fuzz target `parse`: the seeds, and whatever a fuzzer found.
//!
//! A file is one byte that chooses the origin (even: a container, odd: an uplink), then the frame.
//! The seeds are made by `frames/seeds.rs`; after a change there, this writes them anew:
//! `FLOWTABLE_WRITE_CORPUS=1 cargo test -p flowtable --test corpus holds_every_seed`.

mod frames;

use std::fs;
use std::path::PathBuf;

use flowtable::key::parse;
use frames::seeds::{Seed, seeds};
use frames::{container, uplink};

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/parse")
}

fn file_of(seed: &Seed) -> Vec<u8> {
    [vec![u8::from(seed.wire)], seed.frame.clone()].concat()
}

#[test]
fn the_corpus_holds_every_seed() {
    let seeds = seeds();
    assert!(seeds.len() >= 60);
    for seed in seeds {
        let path = directory().join(&seed.name);
        if std::env::var_os("FLOWTABLE_WRITE_CORPUS").is_some() {
            fs::create_dir_all(directory()).unwrap();
            fs::write(&path, file_of(&seed)).unwrap();
        }
        let stored = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(stored, file_of(&seed), "{}", seed.name);
    }
}

#[test]
fn every_file_is_parsed_to_its_outcome_with_offsets_inside() {
    let seeds = seeds();
    let mut count = 0;
    for entry in fs::read_dir(directory()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        let Some((choice, frame)) = bytes.split_first() else { continue };
        let origin = if choice % 2 == 0 { container() } else { uplink() };
        let outcome = parse(frame, origin);
        if let Ok(parsed) = outcome {
            let last = parsed.l3.max(parsed.l4).max(parsed.inner);
            assert!(usize::from(last) <= frame.len(), "{}", path.display());
        }
        let name = path.file_name().unwrap().to_string_lossy();
        if let Some(seed) = seeds.iter().find(|seed| seed.name == name) {
            assert_eq!(outcome.err(), seed.refused, "{name}");
        }
        count += 1;
    }
    assert!(count >= seeds.len(), "{count} files");
}
