//! The crash harness: takes power away between any two stores of a structure
//! and looks at what its recovery makes of what is left.
//!
//! A test runs a structure on a [`Recorder`], a [`Medium`](crate::Medium) that
//! keeps a [`Trace`] of every store, flush, end of an epoch and ticket reached,
//! with marks between them for what the test has asked for and been promised.
//! [`Explorer`] then goes through every prefix of the trace. For each it makes
//! the images that the contract of `Medium` allows to be found after a crash
//! there: every aligned 8-byte word holds the newest value that a reached ticket
//! made durable, or any value stored in it since, whatever its neighbours hold.
//! That is more than any machine does (a cache line keeps the order of its
//! stores), so it covers caches, mirror files and tears alike. All images are
//! tried where they are few, a seeded choice of them where they are many.
//!
//! The test's own judge runs recovery on each image and compares with its
//! oracle: everything promised is there, nothing is half there, nothing was
//! invented. What recovery itself stores is a trace too, and is cut in the same
//! way.
//!
//! A judge that accepts everything would pass. So [`Trace::mutants`] makes the
//! traces of programs with a bug: one flush forgotten, one end of an epoch
//! forgotten, one wait for a ticket forgotten. Structures are tested to fail
//! with every one of them.
//!
//! Nothing here knows what a log or an index is. It is built for tests only,
//! behind the feature `crash`.

mod explorer;
mod recorder;
mod trace;

pub use explorer::{Cases, Explorer, Failure};
pub use recorder::Recorder;
pub use trace::{Mutant, Op, Trace};

/// Numbers from a seed (SplitMix64): the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

/// Names a test's range of seeds: `PASTE_CRASH_SEEDS=from..to` or one number,
/// and otherwise `default`.
///
/// # Panics
/// If the variable holds something else.
pub fn seeds(default: std::ops::Range<u64>) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("PASTE_CRASH_SEEDS") else { return default };
    let number = |text: &str| {
        text.parse::<u64>().unwrap_or_else(|_| panic!("PASTE_CRASH_SEEDS: {text:?} is no number"))
    };
    match text.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => number(&text)..number(&text) + 1,
    }
}
