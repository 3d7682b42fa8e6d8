//! A limit on what a guest sends and receives, in packets and bytes per second: a
//! token bucket for each (as RFC 2697 has them, with one colour).
//!
//! What is to be sent waits until there are tokens for it. What was received without
//! one is dropped: nobody can ask the network to wait. The time is the caller's.

use std::os::fd::BorrowedFd;

use paste_pmem::Pool;
use paste_stack::{Origin, TxBatch};

use super::{Caps, Now, Port, PortCounters, PortError, RxBatch, give_back};

/// A burst is what this many ns bring, and at least one frame of any length.
const BURST_NS: u64 = 50_000_000;
const BURST_PACKETS_MIN: u64 = 64;
const BURST_BYTES_MIN: u64 = 128 << 10;
/// Frames passed on in one piece.
const AT_ONCE: usize = 64;

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

/// Tokens, in billionths, so that a ns brings `rate` of them.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: u64,
    burst: u128,
    tokens: u128,
    filled_at: u64,
}

const UNIT: u128 = 1_000_000_000;

impl Bucket {
    fn new(rate: u64, burst_min: u64) -> Bucket {
        let burst = (u128::from(rate) * u128::from(BURST_NS)).max(u128::from(burst_min) * UNIT);
        Bucket { rate, burst, tokens: burst, filled_at: 0 }
    }

    fn fill(&mut self, now_ns: u64) {
        let elapsed = now_ns.saturating_sub(self.filled_at);
        self.filled_at = self.filled_at.max(now_ns);
        let brought = u128::from(elapsed) * u128::from(self.rate);
        self.tokens = self.tokens.saturating_add(brought).min(self.burst);
    }

    fn has(&self, count: u64) -> bool {
        self.tokens >= u128::from(count) * UNIT
    }

    fn take(&mut self, count: u64) {
        self.tokens = self.tokens.saturating_sub(u128::from(count) * UNIT);
    }

    fn refund(&mut self, count: u64) {
        self.tokens = (self.tokens + u128::from(count) * UNIT).min(self.burst);
    }

    /// When there will be so many.
    fn due(&self, count: u64) -> u64 {
        let missing = (u128::from(count) * UNIT).saturating_sub(self.tokens);
        let wait = missing.div_ceil(u128::from(self.rate.max(1)));
        self.filled_at.saturating_add(u64::try_from(wait).unwrap_or(u64::MAX))
    }
}

/// The buckets of one direction.
#[derive(Clone, Copy, Debug)]
struct Meter {
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

    fn fill(&mut self, now_ns: u64) {
        self.packets.iter_mut().chain(&mut self.bytes).for_each(|bucket| bucket.fill(now_ns));
    }

    /// Takes the tokens of a frame of `len` bytes, if there are all.
    fn admit(&mut self, len: u64) -> bool {
        let Meter { packets, bytes } = self;
        let admits = packets.is_none_or(|bucket| bucket.has(1))
            && bytes.is_none_or(|bucket| bucket.has(len));
        if admits {
            packets.iter_mut().for_each(|bucket| bucket.take(1));
            bytes.iter_mut().for_each(|bucket| bucket.take(len));
        }
        admits
    }

    /// Gives back the tokens of a frame that did not go.
    fn refund(&mut self, len: u64) {
        self.packets.iter_mut().for_each(|bucket| bucket.refund(1));
        self.bytes.iter_mut().for_each(|bucket| bucket.refund(len));
    }

    /// When there will be tokens for such a frame.
    fn due(&self, len: u64) -> u64 {
        let packets = self.packets.map_or(0, |bucket| bucket.due(1));
        packets.max(self.bytes.map_or(0, |bucket| bucket.due(len)))
    }
}

/// A port with limits.
pub struct LimitedPort {
    port: Box<dyn Port>,
    rx: Meter,
    tx: Meter,
    /// Frames that have their tokens, while they are passed on.
    admitted: TxBatch,
    /// When there are tokens for what waits.
    due_ns: Option<u64>,
    counters: PortCounters,
}

impl LimitedPort {
    /// Limits what goes through `port`.
    pub fn new(port: Box<dyn Port>, limits: Limits) -> LimitedPort {
        LimitedPort {
            port,
            rx: Meter::new(limits.rx),
            tx: Meter::new(limits.tx),
            admitted: TxBatch::new(AT_ONCE),
            due_ns: None,
            counters: PortCounters::default(),
        }
    }

    fn count(&mut self) {
        let (rx_limited, tx_limited) = (self.counters.drops.rx_limited, self.counters.tx_limited);
        self.counters = *self.port.counters();
        self.counters.drops.rx_limited = rx_limited;
        self.counters.tx_limited = tx_limited;
    }
}

impl Port for LimitedPort {
    fn caps(&self) -> Caps {
        self.port.caps()
    }

    fn receive(
        &mut self,
        now: Now,
        pool: &mut Pool,
        out: &mut RxBatch,
    ) -> Result<usize, PortError> {
        let before = out.frames().len();
        let received = self.port.receive(now, pool, out);
        self.rx.fill(now.monotonic_ns);
        let rx = &mut self.rx;
        let dropped = out.retain_from(before, |received| {
            let admitted = rx.admit(u64::from(received.frame.len));
            if !admitted {
                give_back(pool, received.frame.buf);
            }
            admitted
        });
        self.counters.drops.rx_limited += dropped as u64;
        self.count();
        Ok(received? - dropped)
    }

    fn send(
        &mut self,
        now: Now,
        pool: &Pool,
        batch: &mut TxBatch,
        done: &mut dyn FnMut(Origin, u32),
    ) -> Result<usize, PortError> {
        self.tx.fill(now.monotonic_ns);
        self.due_ns = None;
        let mut taken = 0;
        let outcome = loop {
            let mut count = 0;
            while count < AT_ONCE
                && let Some(frame) = batch.frames().get(count)
            {
                if !self.tx.admit(frame.len() as u64) {
                    self.counters.tx_limited += 1;
                    self.due_ns = Some(self.tx.due(frame.len() as u64));
                    break;
                }
                if let Some(place) = self.admitted.push(frame.origin) {
                    *place = *frame;
                }
                count += 1;
            }
            if count == 0 {
                break Ok(());
            }
            let sent = self.port.send(now, pool, &mut self.admitted, done);
            // What the device had no room for stays where it was, and costs nothing.
            let left = self.admitted.frames().len();
            self.admitted.frames().iter().for_each(|frame| self.tx.refund(frame.len() as u64));
            self.admitted.consume(left);
            batch.consume(count - left);
            taken += count - left;
            if sent.is_err() || left > 0 || self.due_ns.is_some() {
                break sent.map(drop);
            }
        };
        self.count();
        outcome.map(|()| taken)
    }

    fn release(&mut self, pool: &mut Pool) {
        self.port.release(pool);
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.fd()
    }

    fn arm(&mut self) -> bool {
        self.port.arm()
    }

    fn next_deadline(&self) -> Option<u64> {
        [self.port.next_deadline(), self.due_ns].into_iter().flatten().min()
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Wires;
    use crate::port::testing::{pool, push, receive_all, send_all};
    use crate::port::wire::Faults;

    const SECOND: u64 = 1_000_000_000;

    fn at(ns: u64) -> Now {
        Now { monotonic_ns: ns, real_ns: ns }
    }

    #[test]
    fn a_bucket_brings_its_rate_and_holds_its_burst() {
        let mut bucket = Bucket::new(1000, 64);
        assert!(bucket.has(64) && !bucket.has(65));
        bucket.take(64);
        assert_eq!(bucket.due(1), 1_000_000, "a ms for one of 1000 a second");
        bucket.fill(999_999);
        assert!(!bucket.has(1));
        bucket.fill(1_000_000);
        assert!(bucket.has(1) && !bucket.has(2));
        bucket.fill(3600 * SECOND);
        assert!(bucket.has(64) && !bucket.has(65), "what is not used is not kept");
        // A clock that goes back brings nothing.
        bucket.take(64);
        bucket.fill(0);
        assert!(!bucket.has(1));
    }

    #[test]
    fn no_rate_is_too_small_or_too_large() {
        for rate in [1, u64::MAX] {
            let mut bucket = Bucket::new(rate, 1);
            bucket.fill(u64::MAX);
            bucket.take(u64::MAX);
            let _ = bucket.due(u64::MAX);
            bucket.refund(u64::MAX);
        }
    }

    /// Two ends of a wire, the first of them limited.
    fn wire(limits: Limits) -> (LimitedPort, Box<dyn Port>) {
        let mut wires = Wires::default();
        let mut end = || wires.attach("w", Faults::default(), 1, 1500).unwrap();
        let near = Box::new(end());
        (LimitedPort::new(near, limits), Box::new(end()))
    }

    #[test]
    fn what_is_sent_waits_for_its_tokens() {
        let rate = Rate { packets: Some(1000), bytes: None };
        let (mut near, mut far) = wire(Limits { tx: rate, ..Limits::default() });
        let (mut own, mut other) = (pool(512), pool(512));
        let mut batch = TxBatch::new(256);
        for _ in 0..200 {
            push(&mut batch, &mut own, &[7; 100], 54, None);
        }
        let mut sent = 0;
        let mut now = 0;
        let mut arrived = 0;
        while !batch.is_empty() {
            let done = &mut |_, _| sent += 1;
            near.send(at(now), &own, &mut batch, done).unwrap();
            arrived += receive_all(far.as_mut(), at(now), &mut other).len();
            match near.next_deadline() {
                Some(due) => now = due,
                None => assert!(batch.is_empty()),
            }
        }
        assert_eq!((sent, arrived), (200, 200), "late, and all of them");
        // The burst goes at once, and then one each ms.
        assert_eq!(now, (200 - BURST_PACKETS_MIN) * 1_000_000);
        assert!(near.counters().tx_limited > 0);
    }

    #[test]
    fn bytes_count_as_packets_do() {
        let rate = Rate { packets: None, bytes: Some(1 << 20) };
        let (mut near, _far) = wire(Limits { tx: rate, ..Limits::default() });
        let mut own = pool(512);
        let mut batch = TxBatch::new(256);
        for _ in 0..256 {
            push(&mut batch, &mut own, &[7; 1024], 54, None);
        }
        assert_eq!(near.send(at(0), &own, &mut batch, &mut |_, _| {}).unwrap(), 128);
        assert_eq!(near.next_deadline(), Some(SECOND.div_ceil(1024)));
        assert_eq!(near.send(at(SECOND / 8), &own, &mut batch, &mut |_, _| {}).unwrap(), 128);
    }

    #[test]
    fn what_is_received_beyond_the_limit_is_dropped() {
        let rate = Rate { packets: Some(1000), bytes: None };
        let (mut near, mut far) = wire(Limits { rx: rate, ..Limits::default() });
        let (mut own, mut other) = (pool(512), pool(512));
        let mut batch = TxBatch::new(256);
        let mut arrived = 0;
        for _ in 0..100 {
            push(&mut batch, &mut other, &[7; 100], 54, None);
            send_all(far.as_mut(), at(0), &mut other, &mut batch);
            arrived += receive_all(&mut near, at(0), &mut own).len() as u64;
        }
        assert_eq!(arrived, BURST_PACKETS_MIN);
        assert_eq!(near.counters().drops.rx_limited, 100 - BURST_PACKETS_MIN);
        near.release(&mut own);
        assert_eq!(own.free(), 512, "no buffer is missing");
    }
}
