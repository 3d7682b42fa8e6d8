//! Persistent structures under a medium whose power is taken away between any
//! two stores. The short runs are part of every `cargo test`; the long ones are
//! asked for:
//!
//! ```text
//! PASTE_CRASH_SEEDS=0..1000 cargo test -p paste-pmem --test crash -- --ignored --nocapture
//! ```

mod index;
mod wal;

use paste_pmem::crash::{Cases, Explorer, Recorder, Trace};

/// Explores what `run` records for each seed. A failure names the seed and how to
/// see it again.
fn explore(
    test: &str,
    seeds: std::ops::Range<u64>,
    explorer: Explorer,
    run: impl Fn(u64) -> (Trace, Box<dyn Fn(&mut Recorder, &[u64]) -> Result<(), String>>),
) -> Cases {
    let mut cases = Cases::default();
    for seed in paste_pmem::crash::seeds(seeds) {
        let (trace, judge) = run(seed);
        match (Explorer { seed, ..explorer }).explore(&trace, judge) {
            Ok(tried) => cases.add(tried),
            Err(failure) => panic!(
                "{failure}\nsee it again: PASTE_CRASH_SEEDS={seed} \
                 cargo test -p paste-pmem --test crash {test} -- --include-ignored"
            ),
        }
    }
    println!("{test}: {cases:?}");
    cases
}
