//! The fuzz targets as ordinary tests: on their seeds, and on random damage to them that is the same in every run.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::{fs, path::Path};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

/// How many damaged seeds each target reads.
const COUNT: usize = 20_000;
/// Bits of text that may mean something somewhere.
const WORDS: &[&str] = &[
    "null",
    "true",
    "-1",
    "1e999",
    "1.5",
    "9007199254740992",
    "\"",
    "\\u0000",
    "\\ud800",
    "{",
    "}",
    "[]",
    ",",
    ":",
    "@a:b",
    "\"\":",
    "\u{0}",
    "🐈",
    "_",
    "18446744073709551616",
];

fn try_all(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/seeds")
        .join(name);
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let seeds: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(!seeds.is_empty());
    for seed in &seeds {
        target(seed);
    }
    let mut random = StdRng::seed_from_u64(1);
    for _ in 0..COUNT {
        let mut input = seeds.choose(&mut random).unwrap().clone();
        for _ in 0..random.random_range(1..4) {
            damage(&mut input, &mut random);
        }
        target(&input);
    }
}

fn damage(input: &mut Vec<u8>, random: &mut StdRng) {
    let start = random.random_range(0..=input.len());
    let end = (start + random.random_range(0..12)).min(input.len());
    match random.random_range(0..4) {
        0 => drop(input.drain(start..end)),
        1 => drop(input.splice(start..start, input[start..end].to_vec())),
        2 => input[start..end]
            .iter_mut()
            .for_each(|byte| *byte = random.random()),
        _ => drop(input.splice(start..end, WORDS.choose(random).unwrap().bytes())),
    }
}

#[test]
fn events() {
    try_all("event", targets::event);
}

#[test]
fn received_events() {
    try_all("received", targets::received);
}

#[test]
fn documents_of_keys() {
    try_all("key_document", targets::key_document);
}

#[test]
fn filters() {
    try_all("filter", targets::filter);
}

#[test]
fn pages() {
    try_all("page", targets::page);
}

#[test]
fn tokens() {
    try_all("token", targets::token);
}
