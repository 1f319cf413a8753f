//! Every target, with its seeds, with the inputs that a search found, and with what comes of changing them.

use std::fs;
use std::path::Path;

use palisade_fuzz::TARGETS;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// One change of a seed.
#[derive(Debug, Clone)]
enum Change {
    Set(prop::sample::Index, u8),
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, u8),
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        4 => (at(), 0u8..8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        1 => at().prop_map(Change::Cut),
        2 => (at(), prop::collection::vec(any::<u8>(), 1..8)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        1 => (at(), any::<u8>()).prop_map(|(at, times)| Change::Repeat(at, times)),
    ]
}

fn apply(data: &mut Vec<u8>, change: &Change) {
    if data.is_empty() {
        return;
    }
    match change {
        Change::Set(at, byte) => {
            let at = at.index(data.len());
            data[at] = *byte;
        }
        Change::Flip(at, bit) => {
            let at = at.index(data.len());
            data[at] ^= 1 << bit;
        }
        Change::Cut(at) => data.truncate(at.index(data.len())),
        Change::Insert(at, bytes) => {
            let at = at.index(data.len());
            data.splice(at..at, bytes.iter().copied());
        }
        Change::Repeat(at, times) => {
            let at = at.index(data.len());
            let byte = data[at];
            data.splice(at..at, std::iter::repeat_n(byte, usize::from(*times)));
        }
    }
}

/// The inputs in `corpus`, in the order of their names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn targets_hold_on_changed_seeds_and_on_noise() {
    for (name, target, seeds) in TARGETS {
        let seeds = seeds();
        assert!(!seeds.is_empty(), "{name}");
        seeds.iter().for_each(|seed| target(seed));
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "{name}: `fuzz/run {name} merge FOLDER` writes a corpus");
        corpus.iter().for_each(|input| target(input));
        let seeds = [seeds, corpus].concat();
        let mutated = (any::<prop::sample::Index>(), prop::collection::vec(change(), 0..6));
        let noise = prop::collection::vec(any::<u8>(), 0..512);
        let input = prop_oneof![
            4 => mutated.prop_map(move |(seed, changes)| {
                let mut data = seed.get(&seeds).clone();
                changes.iter().for_each(|change| apply(&mut data, change));
                data
            }),
            1 => noise,
        ];
        let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
        TestRunner::new(config)
            .run(&input, |data| {
                target(&data);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}
