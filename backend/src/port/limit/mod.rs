//! A limit on what a guest sends and receives, in packets and bytes per second: a
//! token bucket for each ([`tokens`]).
//!
//! What is to be sent waits until there are tokens for it. What was received without
//! one is dropped: nobody can ask the network to wait. The time is the caller's. The ports
//! of a guest's lanes have the same buckets: the limit is the guest's, and each lane gets
//! of it what the others leave.

mod tokens;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use paste_pmem::Pool;
use paste_stack::{Origin, TxBatch};

use super::{Caps, Now, Port, PortCounters, PortError, RxBatch, give_back};
use tokens::Allowance;

pub use tokens::{Limits, Rate, Tokens};

/// Frames passed on in one piece.
const AT_ONCE: usize = 64;

/// The first frame of those that wait has its tokens when they are there.
#[derive(Clone, Copy, Debug)]
struct Booked {
    len: u64,
    due_ns: u64,
}

/// A port with limits.
pub struct LimitedPort {
    port: Box<dyn Port>,
    tokens: Arc<Tokens>,
    /// Frames that have their tokens, while they are passed on.
    admitted: TxBatch,
    booked: Option<Booked>,
    counters: PortCounters,
}

impl LimitedPort {
    /// Limits what goes through `port`.
    pub fn new(port: Box<dyn Port>, tokens: Arc<Tokens>) -> LimitedPort {
        LimitedPort {
            port,
            tokens,
            admitted: TxBatch::new(AT_ONCE),
            booked: None,
            counters: PortCounters::default(),
        }
    }

    /// Takes tokens for the frames that wait at the head of `batch`, at most [`AT_ONCE`] of
    /// them; none while the first of them waits for its own.
    fn allow(&mut self, now_ns: u64, batch: &TxBatch) -> Allowance {
        if self.booked.is_some_and(|booked| now_ns < booked.due_ns) {
            return Allowance::default();
        }
        let frames = batch.frames().iter().take(AT_ONCE);
        let (mut count, mut bytes) = (0, 0);
        for frame in frames {
            count += 1;
            bytes += frame.len() as u64;
        }
        let Some(Booked { len, .. }) = self.booked.take() else {
            return self.tokens.tx.take(now_ns, Allowance::of(count, bytes));
        };
        // The first one has its own already.
        let others = Allowance::of(count.saturating_sub(1), bytes.saturating_sub(len));
        self.tokens.tx.take(now_ns, others).and(len)
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

    fn rx_mtu(&self) -> u16 {
        self.port.rx_mtu()
    }

    fn receive(
        &mut self,
        now: Now,
        pool: &mut Pool,
        out: &mut RxBatch,
    ) -> Result<usize, PortError> {
        let before = out.frames().len();
        let received = self.port.receive(now, pool, out);
        let frames = &out.frames()[before..];
        let mut dropped = 0;
        if !frames.is_empty() {
            let bytes = frames.iter().map(|received| u64::from(received.frame.len)).sum();
            let needed = Allowance::of(frames.len(), bytes);
            let mut allowed = self.tokens.rx.take(now.monotonic_ns, needed);
            dropped = out.retain_from(before, |received| {
                let admitted = allowed.admit(u64::from(received.frame.len));
                if !admitted {
                    give_back(pool, received.frame.buf);
                }
                admitted
            });
            self.tokens.rx.give_back(allowed);
        }
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
        let now_ns = now.monotonic_ns;
        let first = batch.frames().first().map(|frame| frame.len() as u64);
        if let Some(Booked { len, .. }) = self.booked
            && first != Some(len)
        {
            // What waited has been given up.
            self.tokens.tx.give_back(Allowance::of(1, len));
            self.booked = None;
        }
        let mut taken = 0;
        let outcome = loop {
            let mut allowed = self.allow(now_ns, batch);
            let mut count = 0;
            while count < AT_ONCE
                && let Some(frame) = batch.frames().get(count)
                && allowed.admit(frame.len() as u64)
            {
                if let Some(place) = self.admitted.push(frame.origin) {
                    *place = *frame;
                }
                count += 1;
            }
            self.tokens.tx.give_back(allowed);
            let mut left = 0;
            // With nothing to send, it may say what it has done with.
            if count > 0 || (taken == 0 && self.port.is_sending()) {
                let sent = self.port.send(now, pool, &mut self.admitted, done);
                // What the device had no room for stays where it was, and costs nothing.
                left = self.admitted.frames().len();
                let bytes = self.admitted.frames().iter().map(|frame| frame.len() as u64).sum();
                self.tokens.tx.give_back(Allowance::of(left, bytes));
                self.admitted.consume(left);
                batch.consume(count - left);
                taken += count - left;
                if let Err(error) = sent {
                    break Err(error);
                }
            }
            match batch.frames().first() {
                Some(_) if self.booked.is_some() => break Ok(()),
                Some(frame) if left == 0 && count < AT_ONCE => {
                    let len = frame.len() as u64;
                    let due_ns = self.tokens.tx.book(now_ns, len);
                    self.booked = Some(Booked { len, due_ns });
                    self.counters.tx_limited += 1;
                    break Ok(());
                }
                Some(_) if left == 0 => {}
                _ => break Ok(()),
            }
        };
        self.count();
        outcome.map(|()| taken)
    }

    fn is_sending(&self) -> bool {
        self.port.is_sending()
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
        let booked = self.booked.map(|booked| booked.due_ns);
        [self.port.next_deadline(), booked].into_iter().flatten().min()
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }

    fn each_counter(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        self.port.each_counter(&mut |name, value| {
            let own = match name {
                "tx_limited" => self.counters.tx_limited,
                "drops.rx_limited" => self.counters.drops.rx_limited,
                _ => value,
            };
            visit(name, own);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::tokens::BURST_PACKETS_MIN;
    use super::*;
    use crate::port::Wires;
    use crate::port::testing::{pool, push, receive_all, send_all};
    use crate::port::wire::Faults;

    const SECOND: u64 = 1_000_000_000;

    fn at(ns: u64) -> Now {
        Now { monotonic_ns: ns, real_ns: ns }
    }

    /// Two ends of a wire, the first of them limited.
    fn wire(limits: Limits) -> (LimitedPort, Box<dyn Port>) {
        let mut wires = Wires::default();
        let mut end = || wires.attach("w", Faults::default(), 1, 1500).unwrap();
        let near = Box::new(end());
        (LimitedPort::new(near, Arc::new(Tokens::new(limits))), Box::new(end()))
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

    /// Two lanes' ends, with the tokens of one guest, and the other ends of their wires.
    fn lanes(limits: Limits) -> [(LimitedPort, Box<dyn Port>); 2] {
        let tokens = Arc::new(Tokens::new(limits));
        ["a", "b"].map(|name| {
            let mut wires = Wires::default();
            let mut end = || wires.attach(name, Faults::default(), 1, 1500).unwrap();
            let near = Box::new(end());
            (LimitedPort::new(near, Arc::clone(&tokens)), Box::new(end()) as Box<dyn Port>)
        })
    }

    #[test]
    fn lanes_have_what_their_guest_has_and_none_starves_another() {
        let rate = Rate { packets: None, bytes: Some(1 << 20) };
        let mut ends = lanes(Limits { tx: rate, ..Limits::default() });
        // One has long frames to send and the other short ones, at all times.
        let lens = [1400, 100];
        let mut pools = [pool(512), pool(512)];
        let mut others = [pool(64), pool(64)];
        let mut batches = [TxBatch::new(64), TxBatch::new(64)];
        let (mut sent, mut now) = ([0u64; 2], 0);
        while now < SECOND {
            for (lane, (port, far)) in ends.iter_mut().enumerate() {
                let (own, batch, len) = (&mut pools[lane], &mut batches[lane], lens[lane]);
                if batch.is_empty() {
                    for _ in 0..8 {
                        push(batch, own, &[7; 1400][..len], 54, None);
                    }
                }
                let mut freed = Vec::new();
                let done = &mut |_, buf| freed.push(buf);
                sent[lane] += port.send(at(now), own, batch, done).unwrap() as u64;
                freed.into_iter().for_each(|buf| own.give(buf, paste_pmem::Owner::Stack).unwrap());
                receive_all(far.as_mut(), at(now), &mut others[lane]);
            }
            now += 100_000;
        }
        let [long, short] = [sent[0] * 1400, sent[1] * 100];
        let whole = (1 << 20) + (128 << 10);
        assert!(long + short <= whole && long + short > whole - 3000, "{long} and {short}");
        // Each has a frame of its own booked, so they take turns.
        assert!(sent[0] * 2 > sent[1], "{sent:?}");
        let limited = ends.iter().map(|(port, _)| port.counters().tx_limited);
        assert!(limited.min() > Some(100));
    }

    #[test]
    fn lanes_drop_together_what_comes_beyond_the_limit() {
        let rate = Rate { packets: Some(1000), bytes: None };
        let mut ends = lanes(Limits { rx: rate, ..Limits::default() });
        let (mut own, mut other) = (pool(512), pool(512));
        let (mut arrived, mut dropped) = (0, 0);
        for (port, far) in &mut ends {
            for _ in 0..50 {
                let mut batch = TxBatch::new(256);
                push(&mut batch, &mut other, &[7; 100], 54, None);
                send_all(far.as_mut(), at(0), &mut other, &mut batch);
                arrived += receive_all(port, at(0), &mut own).len() as u64;
            }
            dropped += port.counters().drops.rx_limited;
        }
        assert_eq!((arrived, dropped), (BURST_PACKETS_MIN, 100 - BURST_PACKETS_MIN));
    }

    /// A port that has done with a frame when it is asked the next time.
    #[derive(Default)]
    struct Late {
        taken: Vec<(Origin, u32)>,
        counters: PortCounters,
    }

    impl Port for Late {
        fn caps(&self) -> Caps {
            Wires::default().attach("w", Faults::default(), 1, 1500).unwrap().caps()
        }

        fn rx_mtu(&self) -> u16 {
            9000
        }

        fn receive(&mut self, _: Now, _: &mut Pool, _: &mut RxBatch) -> Result<usize, PortError> {
            Ok(0)
        }

        fn send(
            &mut self,
            _: Now,
            _: &Pool,
            batch: &mut TxBatch,
            done: &mut dyn FnMut(Origin, u32),
        ) -> Result<usize, PortError> {
            self.taken.drain(..).for_each(|(origin, buf)| done(origin, buf));
            let bufs = batch.frames().iter();
            let named = bufs.filter_map(|frame| Some((frame.origin, frame.payload?.buf)));
            self.taken.extend(named);
            let count = batch.frames().len();
            batch.consume(count);
            Ok(count)
        }

        fn is_sending(&self) -> bool {
            !self.taken.is_empty()
        }

        fn release(&mut self, _: &mut Pool) {}

        fn fd(&self) -> Option<BorrowedFd<'_>> {
            None
        }

        fn next_deadline(&self) -> Option<u64> {
            None
        }

        fn counters(&self) -> &PortCounters {
            &self.counters
        }

        fn each_counter(&self, visit: &mut dyn FnMut(&'static str, u64)) {
            self.counters.each(&mut *visit);
            visit("late", 1);
        }
    }

    #[test]
    fn a_port_says_what_it_has_done_with_while_frames_wait() {
        let rate = Rate { packets: Some(1000), bytes: None };
        let tokens = Arc::new(Tokens::new(Limits { tx: rate, ..Limits::default() }));
        let mut port = LimitedPort::new(Box::new(Late::default()), tokens);
        let mut own = pool(512);
        let mut batch = TxBatch::new(256);
        for _ in 0..=BURST_PACKETS_MIN {
            push(&mut batch, &mut own, &[7; 100], 54, None);
        }
        let mut done = 0;
        assert_eq!(port.send(at(0), &own, &mut batch, &mut |_, _| done += 1).unwrap(), 64);
        assert!(port.is_sending() && done == 0);
        assert_eq!(port.send(at(1), &own, &mut batch, &mut |_, _| done += 1).unwrap(), 0);
        assert_eq!((done, port.is_sending(), batch.frames().len()), (64, false, 1));
        assert_eq!(port.next_deadline(), Some(1_000_000));
        // What waits may be given up; its tokens are for another.
        batch.consume(1);
        assert_eq!(port.send(at(2), &own, &mut batch, &mut |_, _| done += 1).unwrap(), 0);
        assert_eq!(port.next_deadline(), None);
        assert_eq!(port.rx_mtu(), 9000);
        let mut named = Vec::new();
        port.each_counter(&mut |name, value| named.push((name, value)));
        assert!(named.contains(&("late", 1)) && named.contains(&("tx_limited", 1)), "{named:?}");
    }
}
