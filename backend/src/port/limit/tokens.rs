//! Token buckets that several threads take from, with no lock (RFC 2697, with one colour).
//!
//! A bucket is one number: how many tokens were taken since the clock began, those that
//! nobody took before the bucket was full among them. It is compared with what time has
//! brought since then, so nothing has to be filled, and a thread takes what a batch needs
//! at once.

use std::sync::atomic::{AtomicU64, Ordering};

/// A burst is what this many ns bring, and at least one frame of any length.
const BURST_NS: u64 = 50_000_000;
pub(super) const BURST_PACKETS_MIN: u64 = 64;
const BURST_BYTES_MIN: u64 = 128 << 10;
/// What was taken may be ahead of what a thread takes for the time by less than this. A
/// bucket that is further ahead was left alone, and the difference has wrapped: of the
/// largest rates, after half a year.
const AHEAD_MAX: u64 = 1 << 60;
const SECOND_NS: u128 = 1_000_000_000;

/// How much per second; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Frames.
    pub packets: Option<u64>,
    /// Bytes of frames, from the Ethernet header on.
    pub bytes: Option<u64>,
}

/// The limits of a guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of what it sends.
    pub tx: Rate,
    /// Of what it receives.
    pub rx: Rate,
}

impl Limits {
    /// Whether there is none.
    pub fn is_none(&self) -> bool {
        *self == Limits::default()
    }
}

/// The tokens of one guest, which all of its lanes take from.
#[derive(Debug)]
pub struct Tokens {
    pub(super) rx: Meter,
    pub(super) tx: Meter,
}

impl Tokens {
    /// Full buckets for these limits.
    pub fn new(limits: Limits) -> Tokens {
        Tokens { rx: Meter::new(limits.rx), tx: Meter::new(limits.tx) }
    }
}

/// Of one kind of token.
#[derive(Debug)]
struct Bucket {
    rate: u64,
    burst: u64,
    /// All wrap.
    taken: AtomicU64,
}

impl Bucket {
    fn new(rate: u64, burst_min: u64) -> Bucket {
        let burst = u128::from(rate) * u128::from(BURST_NS) / SECOND_NS;
        let burst = u64::try_from(burst).unwrap_or(u64::MAX).max(burst_min);
        Bucket { rate, burst, taken: AtomicU64::new(0) }
    }

    /// Tokens that time has brought.
    fn brought(&self, now_ns: u64) -> u128 {
        u128::from(self.rate) * u128::from(now_ns) / SECOND_NS
    }

    /// How far `taken` is ahead of what time has brought.
    fn ahead(taken: u64, brought: u64) -> u64 {
        let ahead = taken.wrapping_sub(brought);
        // Of what was not taken in time no more than a burst is kept.
        if ahead < AHEAD_MAX { ahead } else { 0 }
    }

    /// Takes up to `count` tokens, and returns how many.
    fn take(&self, now_ns: u64, count: u64) -> u64 {
        let brought = self.brought(now_ns) as u64;
        let mut got = 0;
        let take = |taken| {
            let ahead = Bucket::ahead(taken, brought);
            got = count.min(self.burst.saturating_sub(ahead));
            (got > 0).then(|| brought.wrapping_add(ahead).wrapping_add(got))
        };
        let _ = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        got
    }

    /// Takes `count` tokens that are yet to come, and returns when they have. Who waits
    /// books, or others who need fewer at a time would always be before it.
    fn book(&self, now_ns: u64, count: u64) -> u64 {
        let brought = self.brought(now_ns);
        let mut after = 0;
        let take = |taken| {
            after = Bucket::ahead(taken, brought as u64).saturating_add(count).min(AHEAD_MAX - 1);
            Some((brought as u64).wrapping_add(after))
        };
        let _ = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        let missing = after.saturating_sub(self.burst);
        if missing == 0 {
            return now_ns;
        }
        let whole = (brought + u128::from(missing)).saturating_mul(SECOND_NS);
        u64::try_from(whole.div_ceil(u128::from(self.rate.max(1)))).unwrap_or(u64::MAX)
    }

    fn give_back(&self, count: u64) {
        self.taken.fetch_sub(count, Ordering::Relaxed);
    }
}

/// Tokens for frames, taken before it is known which of them they are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Allowance {
    packets: u64,
    bytes: u64,
}

impl Allowance {
    /// What so many frames with so many bytes altogether need.
    pub(super) fn of(packets: usize, bytes: u64) -> Allowance {
        Allowance { packets: packets as u64, bytes }
    }

    /// With what one frame more of `len` bytes needs.
    pub(super) fn and(self, len: u64) -> Allowance {
        let Allowance { packets, bytes } = self;
        Allowance { packets: packets + 1, bytes: bytes + len }
    }

    /// Spends what a frame of `len` bytes needs, if there is as much.
    pub(super) fn admit(&mut self, len: u64) -> bool {
        let admits = self.packets >= 1 && self.bytes >= len;
        if admits {
            self.packets -= 1;
            self.bytes -= len;
        }
        admits
    }
}

/// The buckets of one direction.
#[derive(Debug)]
pub(super) struct Meter {
    packets: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Meter {
    fn new(rate: Rate) -> Meter {
        Meter {
            packets: rate.packets.map(|rate| Bucket::new(rate, BURST_PACKETS_MIN)),
            bytes: rate.bytes.map(|rate| Bucket::new(rate, BURST_BYTES_MIN)),
        }
    }

    /// Takes up to this much.
    pub(super) fn take(&self, now_ns: u64, most: Allowance) -> Allowance {
        let Allowance { packets, bytes } = most;
        let take = |bucket: &Option<Bucket>, count| match bucket {
            Some(bucket) => bucket.take(now_ns, count),
            None => count,
        };
        Allowance { packets: take(&self.packets, packets), bytes: take(&self.bytes, bytes) }
    }

    /// Takes what a frame of `len` bytes needs, and returns when it may go.
    pub(super) fn book(&self, now_ns: u64, len: u64) -> u64 {
        let book = |bucket: &Option<Bucket>, count| {
            bucket.as_ref().map_or(now_ns, |bucket| bucket.book(now_ns, count))
        };
        book(&self.packets, 1).max(book(&self.bytes, len))
    }

    /// Gives back what was taken and not used.
    pub(super) fn give_back(&self, left: Allowance) {
        self.packets.iter().for_each(|bucket| bucket.give_back(left.packets));
        self.bytes.iter().for_each(|bucket| bucket.give_back(left.bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_brings_its_rate_and_holds_its_burst() {
        let bucket = Bucket::new(1000, 64);
        assert_eq!(bucket.take(0, 65), 64);
        assert_eq!(bucket.take(999_999, 1), 0);
        assert_eq!(bucket.take(1_000_000, 2), 1, "a ms for one of 1000 a second");
        assert_eq!(bucket.take(3600 << 30, 65), 64, "what is not used is not kept");
        bucket.give_back(3);
        assert_eq!(bucket.take(3600 << 30, 65), 3);
        // A thread whose time is behind gets nothing that others have had.
        assert_eq!(bucket.take(0, 1), 0);
        assert_eq!(bucket.take(3600 << 30, 1), 0);
    }

    #[test]
    fn who_books_has_the_next_tokens() {
        let bucket = Bucket::new(1000, 64);
        assert_eq!(bucket.book(0, 10), 0, "they are there");
        assert_eq!(bucket.take(0, 64), 54);
        assert_eq!(bucket.book(0, 3), 3_000_000);
        assert_eq!(bucket.book(0, 1), 4_000_000);
        assert_eq!(bucket.take(3_999_999, 1), 0, "those are booked");
        assert_eq!(bucket.take(5_000_000, 2), 1);
    }

    #[test]
    fn no_rate_is_too_small_or_too_large() {
        for rate in [1, 1 << 40, u64::MAX] {
            let bucket = Bucket::new(rate, 1);
            assert_eq!(bucket.take(u64::MAX, 1), 1);
            bucket.give_back(1);
            assert!(bucket.take(u64::MAX, u64::MAX) >= 1);
            bucket.book(u64::MAX, u64::MAX);
        }
        // Numbers wrap, and what was left alone is full again.
        let bucket = Bucket::new(1 << 40, 1);
        let day = 86_400 * SECOND_NS as u64;
        for days in (0..2000).step_by(100) {
            assert_eq!(bucket.take(days * day, u64::MAX), bucket.burst);
        }
    }

    /// Threads that take at the same time get what one of them would.
    #[test]
    fn together_nobody_has_more_than_the_rate() {
        const TURNS: u64 = 20_000;
        let bucket = Bucket::new(1_000_000, 64);
        let got: Vec<u64> = std::thread::scope(|scope| {
            let taker = |seed: u64| {
                let bucket = &bucket;
                move || {
                    let wants = |turn: u64| 1 + (turn * 7 + seed) % 90;
                    let take = |turn: u64| {
                        let got = bucket.take(turn * 10_000, wants(turn));
                        let unused = got / 3;
                        bucket.give_back(unused);
                        got - unused
                    };
                    (1..=TURNS).map(take).sum()
                }
            };
            let threads: Vec<_> = (0..4).map(|seed| scope.spawn(taker(seed))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        // 10 for each turn's time, and the burst.
        let most = 10 * TURNS + bucket.burst;
        assert!(got.iter().sum::<u64>() <= most, "{got:?} of {most}");
    }
}
