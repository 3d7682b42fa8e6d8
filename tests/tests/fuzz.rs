//! A slice of the fuzzers: their corpora, and some thousands of mutations of
//! them. `tests/fuzz` has the fuzzers themselves, which are guided by coverage.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use paste_tests::fuzz::{TARGETS, Target};

/// Mutations of each target's corpus, or as many as this time allows.
const MUTATIONS: usize = 3000;
const TIME_MAX: Duration = Duration::from_secs(3);
/// The longest input.
const LEN_MAX: usize = 2048;
const SEED: u64 = 0x5eed_f022;

/// Xorshift: the same numbers in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, count: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % count.max(1) as u64) as usize
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).expect("a corpus of each target");
    let mut paths: Vec<_> = entries.map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", folder.display());
    paths.iter().map(|path| fs::read(path).expect("an input")).collect()
}

/// An input somewhere near two others.
fn mutate(random: &mut Random, input: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(6) {
            0 => bytes.insert(at, random.below(256) as u8),
            1 if at < bytes.len() => {
                bytes.remove(at);
            }
            2 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            3 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            4 => {
                bytes.truncate(at);
                bytes.extend(&other[random.below(other.len() + 1)..]);
            }
            _ => {
                let start = random.below(other.len() + 1);
                let end = start + random.below(other.len() - start + 1);
                bytes.splice(at..at, other[start..end].iter().copied());
            }
        }
    }
    bytes.truncate(LEN_MAX);
    bytes
}

/// Runs an input; one that fails is shown, so that it can be kept.
fn run(name: &str, target: Target, input: &[u8]) {
    if let Err(cause) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        let hex: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        eprintln!("{name} fails with {hex}");
        std::panic::resume_unwind(cause);
    }
}

fn slice(name: &str) {
    let (_, target) = *TARGETS.iter().find(|(other, _)| *other == name).expect("a target");
    let corpus = corpus(name);
    corpus.iter().for_each(|input| run(name, target, input));
    let mut random = Random(SEED);
    let start = Instant::now();
    for _ in 0..MUTATIONS {
        if start.elapsed() > TIME_MAX {
            break;
        }
        let input = &corpus[random.below(corpus.len())];
        let other = &corpus[random.below(corpus.len())];
        run(name, target, &mutate(&mut random, input, other));
    }
}

#[test]
fn packets_of_any_bytes_break_nothing() {
    slice("packet");
}

#[test]
fn segments_that_are_nearly_right_break_nothing() {
    slice("sequence");
}

#[test]
fn options_mean_what_a_plain_reading_says() {
    slice("options");
}

#[test]
fn methods_in_any_order_break_nothing() {
    slice("api");
}
