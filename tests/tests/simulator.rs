//! A slice of the simulator's seeds, and proof that it finds what it looks for.

use std::ops::Range;

use paste_tests::sim::headers::{self, flag};
use paste_tests::sim::{Nobody, Scenario, Summary, Tap, run};

/// Runs seeds, and returns how many there were and what they were like.
fn slice(seeds: Range<u64>, adversary: bool) -> Vec<Summary> {
    let option = if adversary { " --adversary" } else { "" };
    seeds
        .map(|seed| {
            run(&Scenario::draw(seed, adversary), &mut Nobody).unwrap_or_else(|what| {
                panic!(
                    "seed {seed}: {what}\n    cargo run --release -p paste-tests --bin sim -- \
                     --seed {seed}{option} --trace"
                )
            })
        })
        .collect()
}

#[test]
fn some_hundred_seeds_run_clean() {
    let summaries = slice(0..400, false);
    let sum = |of: fn(&Summary) -> u64| summaries.iter().map(of).sum::<u64>();
    // Something was said, and something went wrong.
    assert!(sum(|s| s.closed) > 500 && sum(|s| s.bytes) > 10_000_000);
    assert!(sum(|s| s.shared) > 10_000);
    assert!(sum(|s| s.retransmits) > 1_000 && sum(|s| s.timeouts) > 100 && sum(|s| s.broken) > 50);
}

#[test]
fn an_adversary_does_no_harm() {
    let summaries = slice(0..100, true);
    assert!(summaries.iter().map(|s| s.closed).sum::<u64>() > 100);
}

#[test]
fn a_seed_repeats_a_run() {
    for seed in 0..20 {
        let scenario = Scenario::draw(seed, false);
        assert_eq!(run(&scenario, &mut Nobody), run(&scenario, &mut Nobody), "seed {seed}");
    }
}

/// What is found in the first seed in which it is noticed what `tamper` does.
fn finding<T: Tap>(tamper: impl Fn() -> T) -> String {
    (0..50)
        .find_map(|seed| run(&Scenario::draw(seed, false), &mut tamper()).err())
        .expect("a finding in 50 seeds")
}

/// The payload of a segment, and its header.
fn split(tcp: &mut [u8]) -> (&mut [u8], &mut [u8]) {
    let header = usize::from(tcp[12] >> 4) * 4;
    tcp.split_at_mut(header)
}

/// One segment in twenty has another first byte, and the checksum is right.
struct Forger(u32);

impl Tap for Forger {
    fn change(&mut self, _host: usize, frame: &mut Vec<u8>) {
        self.0 += 1;
        if self.0.is_multiple_of(20) {
            headers::edit_tcp(frame, |tcp| {
                if let Some(byte) = split(tcp).1.first_mut() {
                    *byte ^= 1;
                }
            });
        }
    }
}

#[test]
fn a_wrong_byte_with_the_right_checksum_is_found() {
    let found = finding(|| Forger(0));
    assert!(found.contains("the first wrong byte"), "{found}");
}

/// Windows are half of what they were, now and then.
struct Miser(u32);

impl Tap for Miser {
    fn change(&mut self, _host: usize, frame: &mut Vec<u8>) {
        let syn = headers::parse(frame).is_none_or(|segment| segment.has(flag::SYN));
        self.0 += 1;
        if !syn && self.0.is_multiple_of(20) {
            headers::edit_tcp(frame, |tcp| tcp[14] /= 2);
        }
    }
}

#[test]
fn a_window_that_shrinks_is_found() {
    let found = finding(|| Miser(0));
    assert!(found.contains("the window shrinks by"), "{found}");
}

/// One frame in a hundred is never reported as sent.
struct Hoarder(u32);

impl Tap for Hoarder {
    fn reports(&mut self, _host: usize) -> bool {
        self.0 += 1;
        !self.0.is_multiple_of(100)
    }
}

#[test]
fn a_buffer_that_leaks_is_found() {
    let found = finding(|| Hoarder(0));
    assert!(found.contains("of the stack"), "{found}");
}

/// Timers ring only where something else happens.
struct Sleeper;

impl Tap for Sleeper {
    fn deadline(&mut self, _host: usize, _at: Option<u64>) -> Option<u64> {
        None
    }
}

#[test]
fn a_deadline_that_is_swallowed_is_found() {
    let found = finding(|| Sleeper);
    let late = ["nothing moves any more", "not over in time"];
    assert!(late.iter().any(|late| found.contains(late)), "{found}");
}

/// Acknowledgements go back, now and then.
struct Forgetful(u32);

impl Tap for Forgetful {
    fn change(&mut self, _host: usize, frame: &mut Vec<u8>) {
        let plain = headers::parse(frame).is_some_and(|s| s.flags & !flag::PSH == flag::ACK);
        self.0 += 1;
        if plain && self.0.is_multiple_of(20) {
            headers::edit_tcp(frame, |tcp| {
                let ack = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
                tcp[8..12].copy_from_slice(&ack.wrapping_sub(1).to_be_bytes());
            });
        }
    }
}

#[test]
fn an_acknowledgement_that_goes_back_is_found() {
    let found = finding(|| Forgetful(0));
    assert!(found.contains("acknowledges"), "{found}");
}
