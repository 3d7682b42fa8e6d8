//! A virtual wire with faults on demand: loss, duplication, reordering,
//! corruption, delay, jitter and a limited rate.
//!
//! It is pure: time is an argument and every fault comes from a seed, so that
//! whatever a test finds can be found again. It knows nothing of buffers,
//! ports or threads; [`super::PipePort`] puts it between two guests, and a
//! simulation can use it as it is. All memory is allocated when it is made, and
//! a full wire drops, as a full queue of a switch does.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::num::NonZeroU64;

use super::prng::Prng;

/// Frames that can be on their way in one direction, where nobody asks for
/// another number.
pub const FRAMES_MAX: usize = 1024;

/// The longest time by which a reordered frame is held back, in ns. Frames
/// sent within that time may overtake it.
pub const REORDER_NS_MAX: u64 = 1_000_000;

const NS_PER_S: u64 = 1_000_000_000;

/// What goes wrong on a wire. Chances are per frame, from 0 (never) to 1
/// (always), and independent of each other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Faults {
    /// Chance that a frame is lost.
    pub loss: f64,
    /// Chance that a frame arrives twice.
    pub duplicate: f64,
    /// Chance that a frame is held back by up to [`REORDER_NS_MAX`].
    pub reorder: f64,
    /// Chance that one bit of a frame is flipped.
    pub corrupt: f64,
    /// Time that every frame takes, in ns.
    pub delay_ns: u64,
    /// Time that a frame takes beyond that, at most, in ns. Does not reorder.
    pub jitter_ns: u64,
    /// Bits per second that the wire carries; `None` for no limit.
    pub rate_bps: Option<NonZeroU64>,
}

/// What happened in one direction of a wire, in frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneCounters {
    /// Put on the wire.
    pub pushed: u64,
    /// Taken off the wire.
    pub delivered: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Doubled by chance.
    pub duplicated: u64,
    /// Held back by chance.
    pub reordered: u64,
    /// Corrupted by chance.
    pub corrupted: u64,
    /// Dropped because as many as the wire carries were on their way.
    pub overflowed: u64,
    /// Dropped because they were longer than the wire carries.
    pub oversize: u64,
}

/// One end of a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one end.
    A,
    /// The other end.
    B,
}

impl Side {
    /// The end across the wire.
    pub fn other(self) -> Side {
        match self {
            Side::A => Side::B,
            Side::B => Side::A,
        }
    }

    /// The side as an index, 0 or 1.
    pub(super) fn index(self) -> usize {
        self as usize
    }
}

/// A frame on its way. Frames arrive in the order of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InFlight {
    due_ns: u64,
    order: u64,
    slot: u32,
    len: u32,
}

/// One direction of a wire.
#[derive(Debug)]
pub struct Lane {
    faults: Faults,
    prng: Prng,
    frame_max: usize,
    bytes: Box<[u8]>,
    free: Vec<u32>,
    in_flight: BinaryHeap<Reverse<InFlight>>,
    order: u64,
    line_free_ns: u64,
    due_ns_last: u64,
    counters: LaneCounters,
}

impl Lane {
    /// A direction that carries [`FRAMES_MAX`] frames of up to `frame_max` bytes.
    pub fn new(faults: Faults, seed: u64, frame_max: usize) -> Lane {
        Lane::with_frames(faults, seed, frame_max, FRAMES_MAX as u32)
    }

    /// A direction that carries `frames_max` frames at once, each of up to
    /// `frame_max` bytes: a long and fast wire needs its bandwidth-delay product.
    pub fn with_frames(faults: Faults, seed: u64, frame_max: usize, frames_max: u32) -> Lane {
        Lane {
            faults,
            prng: Prng::new(seed),
            frame_max,
            bytes: vec![0; frames_max as usize * frame_max].into_boxed_slice(),
            free: (0..frames_max).rev().collect(),
            in_flight: BinaryHeap::with_capacity(frames_max as usize),
            order: 0,
            line_free_ns: 0,
            due_ns_last: 0,
            counters: LaneCounters::default(),
        }
    }

    /// Puts a frame of `len` bytes on the wire; `fill` is lent those bytes to
    /// write the frame into. A frame that gets lost is not filled in.
    pub fn push_with(&mut self, now_ns: u64, len: usize, fill: impl FnOnce(&mut [u8])) {
        self.counters.pushed += 1;
        // Every frame draws the same numbers whatever becomes of it, so that a
        // change of one fault leaves the pattern of the others alone.
        let lost = self.prng.chance(self.faults.loss);
        let duplicated = self.prng.chance(self.faults.duplicate);
        let reordered = self.prng.chance(self.faults.reorder);
        let corrupted = self.prng.chance(self.faults.corrupt);
        let flip = self.prng.below(len as u64 * 8) as usize;
        let jitter_ns = self.prng.below(self.faults.jitter_ns.saturating_add(1));
        let hold_ns = 1 + self.prng.below(REORDER_NS_MAX);

        if len > self.frame_max {
            self.counters.oversize += 1;
            return;
        }
        let sent_ns = self.serialize(now_ns, len);
        if lost {
            self.counters.lost += 1;
            return;
        }
        let Some(slot) = self.free.pop() else {
            self.counters.overflowed += 1;
            return;
        };
        let frame = &mut self.bytes[slot as usize * self.frame_max..][..len];
        fill(frame);
        if corrupted && len > 0 {
            frame[flip / 8] ^= 1 << (flip % 8);
            self.counters.corrupted += 1;
        }

        let arrival_ns = sent_ns.saturating_add(self.faults.delay_ns).saturating_add(jitter_ns);
        let due_ns = if reordered {
            self.counters.reordered += 1;
            arrival_ns.saturating_add(hold_ns)
        } else {
            self.due_ns_last = self.due_ns_last.max(arrival_ns);
            self.due_ns_last
        };
        self.enqueue(due_ns, slot, len);
        if duplicated {
            self.duplicate(due_ns, slot, len);
        }
    }

    /// Puts a frame on the wire.
    pub fn push(&mut self, now_ns: u64, frame: &[u8]) {
        self.push_with(now_ns, frame.len(), |bytes| bytes.copy_from_slice(frame));
    }

    /// Takes a frame that has arrived by `now_ns` off the wire; `read` is lent
    /// its bytes.
    pub fn pop_with<R>(&mut self, now_ns: u64, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
        if self.next_deadline()? > now_ns {
            return None;
        }
        let Reverse(frame) = self.in_flight.pop()?;
        let bytes = &self.bytes[frame.slot as usize * self.frame_max..][..frame.len as usize];
        let result = read(bytes);
        self.free.push(frame.slot);
        self.counters.delivered += 1;
        Some(result)
    }

    /// Takes a frame that has arrived by `now_ns` off the wire. Returns its
    /// length; what `out` has no room for is cut off.
    pub fn pop(&mut self, now_ns: u64, out: &mut [u8]) -> Option<usize> {
        self.pop_with(now_ns, |bytes| {
            let len = bytes.len().min(out.len());
            out[..len].copy_from_slice(&bytes[..len]);
            len
        })
    }

    /// When the next frame arrives, in ns.
    pub fn next_deadline(&self) -> Option<u64> {
        self.in_flight.peek().map(|Reverse(frame)| frame.due_ns)
    }

    /// What has happened so far.
    pub fn counters(&self) -> &LaneCounters {
        &self.counters
    }

    /// When the last bit of the frame has left the sender.
    fn serialize(&mut self, now_ns: u64, len: usize) -> u64 {
        let Some(rate_bps) = self.faults.rate_bps else {
            return now_ns;
        };
        let bits = len as u128 * 8;
        let time_ns = (bits * u128::from(NS_PER_S)).div_ceil(u128::from(rate_bps.get()));
        self.line_free_ns = self
            .line_free_ns
            .max(now_ns)
            .saturating_add(u64::try_from(time_ns).unwrap_or(u64::MAX));
        self.line_free_ns
    }

    fn enqueue(&mut self, due_ns: u64, slot: u32, len: usize) {
        let frame = InFlight { due_ns, order: self.order, slot, len: len as u32 };
        self.order += 1;
        self.in_flight.push(Reverse(frame));
    }

    fn duplicate(&mut self, due_ns: u64, slot: u32, len: usize) {
        let Some(copy) = self.free.pop() else {
            self.counters.overflowed += 1;
            return;
        };
        let from = slot as usize * self.frame_max;
        self.bytes.copy_within(from..from + len, copy as usize * self.frame_max);
        self.enqueue(due_ns, copy, len);
        self.counters.duplicated += 1;
    }
}

/// A wire with two ends.
#[derive(Debug)]
pub struct Wire {
    lanes: [Lane; 2],
}

impl Wire {
    /// A wire with the same faults in both directions, that carries
    /// [`FRAMES_MAX`] frames of up to `frame_max` bytes in each.
    pub fn new(faults: Faults, seed: u64, frame_max: usize) -> Wire {
        Wire::with_frames(faults, seed, frame_max, FRAMES_MAX as u32)
    }

    /// Likewise, with `frames_max` frames in each direction.
    pub fn with_frames(faults: Faults, seed: u64, frame_max: usize, frames_max: u32) -> Wire {
        let lane = |side| Lane::with_frames(faults, lane_seed(seed, side), frame_max, frames_max);
        Wire { lanes: [Side::A, Side::B].map(lane) }
    }

    /// Puts a frame on the wire at `side`.
    pub fn push(&mut self, now_ns: u64, side: Side, frame: &[u8]) {
        self.lanes[side.index()].push(now_ns, frame);
    }

    /// Takes a frame that has arrived at `side` off the wire. Returns its
    /// length; what `out` has no room for is cut off.
    pub fn pop(&mut self, now_ns: u64, side: Side, out: &mut [u8]) -> Option<usize> {
        self.lanes[side.other().index()].pop(now_ns, out)
    }

    /// Takes a frame that has arrived at `side` off the wire; `read` is lent its
    /// bytes.
    pub fn pop_with<R>(
        &mut self,
        now_ns: u64,
        side: Side,
        read: impl FnOnce(&[u8]) -> R,
    ) -> Option<R> {
        self.lanes[side.other().index()].pop_with(now_ns, read)
    }

    /// When the next frame arrives at either side, in ns.
    pub fn next_deadline(&self) -> Option<u64> {
        self.lanes.iter().filter_map(Lane::next_deadline).min()
    }

    /// What happened to the frames put on the wire at `side`.
    pub fn counters(&self, side: Side) -> &LaneCounters {
        self.lanes[side.index()].counters()
    }
}

/// The seed of the direction away from `side`: two directions with the same
/// faults must not suffer them in step.
pub(super) fn lane_seed(seed: u64, side: Side) -> u64 {
    match side {
        Side::A => seed,
        Side::B => !seed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAMES: u64 = 20_000;

    /// Sends numbered frames 1 us apart, each taken off as it arrives; returns
    /// the numbers in order of arrival, and the lane's counters.
    fn run(faults: Faults, seed: u64) -> (Vec<u64>, LaneCounters) {
        let mut lane = Lane::new(faults, seed, 64);
        let mut got = Vec::new();
        let mut out = [0; 64];
        let mut collect = |lane: &mut Lane, now_ns| {
            while let Some(len) = lane.pop(now_ns, &mut out) {
                assert_eq!(len, 8);
                got.push(u64::from_le_bytes(out[..8].try_into().unwrap()));
            }
        };
        for n in 0..FRAMES {
            lane.push(n * 1_000, &n.to_le_bytes());
            collect(&mut lane, n * 1_000);
        }
        collect(&mut lane, u64::MAX);
        assert_eq!(lane.next_deadline(), None);
        assert_eq!(lane.free.len(), FRAMES_MAX);
        (got, *lane.counters())
    }

    /// Whether `count` of [`FRAMES`] is within five standard deviations of
    /// `chance`: a wrong rate fails, the seed's luck does not.
    fn near(count: u64, chance: f64) -> bool {
        let n = FRAMES as f64;
        (count as f64 - n * chance).abs() < 5.0 * (n * chance * (1.0 - chance)).sqrt()
    }

    #[test]
    fn a_wire_without_faults_delivers_everything_in_order_at_once() {
        let (got, counters) = run(Faults::default(), 1);
        assert!(got.iter().copied().eq(0..FRAMES));
        let expected =
            LaneCounters { pushed: FRAMES, delivered: FRAMES, ..LaneCounters::default() };
        assert_eq!(counters, expected);
    }

    #[test]
    fn faults_happen_as_often_as_asked() {
        let chance = 0.05;
        let (got, counters) = run(Faults { loss: chance, ..Faults::default() }, 2);
        assert!(near(counters.lost, chance), "{counters:?}");
        assert_eq!(got.len() as u64, FRAMES - counters.lost);
        assert!(got.is_sorted());

        let (got, counters) = run(Faults { duplicate: chance, ..Faults::default() }, 3);
        assert!(near(counters.duplicated, chance), "{counters:?}");
        assert_eq!(got.len() as u64, FRAMES + counters.duplicated);
        assert!(got.is_sorted());

        let (got, counters) = run(Faults { reorder: chance, ..Faults::default() }, 4);
        // More frames than this are held back within REORDER_NS_MAX would
        // overflow the lane; at 1 us apart they do not.
        assert!(near(counters.reordered, chance), "{counters:?}");
        assert_eq!(got.len() as u64, FRAMES);
        assert!(!got.is_sorted());

        let (got, counters) = run(Faults { corrupt: chance, ..Faults::default() }, 5);
        assert!(near(counters.corrupted, chance), "{counters:?}");
        let wrong = got.iter().zip(0..FRAMES).filter(|&(&frame, n)| frame != n);
        let mut count = 0;
        for (frame, n) in wrong {
            assert_eq!((frame ^ n).count_ones(), 1, "more than one bit");
            count += 1;
        }
        assert_eq!(count, counters.corrupted);
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        let faults = Faults {
            loss: 0.1,
            duplicate: 0.1,
            reorder: 0.1,
            corrupt: 0.1,
            delay_ns: 5_000,
            jitter_ns: 3_000,
            rate_bps: NonZeroU64::new(1_000_000_000),
        };
        assert_eq!(run(faults, 7), run(faults, 7));
        assert_ne!(run(faults, 7).0, run(faults, 8).0);
    }

    #[test]
    fn one_fault_leaves_the_pattern_of_the_others_alone() {
        let loss = Faults { loss: 0.1, ..Faults::default() };
        let both = Faults { loss: 0.1, corrupt: 0.5, ..Faults::default() };
        assert_eq!(run(loss, 9).1.lost, run(both, 9).1.lost);
    }

    #[test]
    fn the_two_directions_do_not_fail_in_step() {
        let mut wire = Wire::new(Faults { loss: 0.5, ..Faults::default() }, 3, 64);
        let mut arrived = [Vec::new(), Vec::new()];
        for n in 0..200 {
            for side in [Side::A, Side::B] {
                wire.push(n, side, &[0; 60]);
                let got = wire.pop(n, side.other(), &mut [0; 64]).is_some();
                arrived[side.index()].push(got);
            }
        }
        assert_ne!(arrived[0], arrived[1]);
    }

    #[test]
    fn frames_arrive_at_the_other_side_when_they_are_due() {
        let faults = Faults { delay_ns: 100, ..Faults::default() };
        let mut wire = Wire::new(faults, 0, 64);
        let mut out = [0; 64];
        wire.push(1_000, Side::A, b"from a");
        assert_eq!(wire.next_deadline(), Some(1_100));
        assert_eq!(wire.pop(1_099, Side::B, &mut out), None);
        assert_eq!(wire.pop(1_100, Side::A, &mut out), None);
        assert_eq!(wire.pop(1_100, Side::B, &mut out), Some(6));
        assert_eq!(&out[..6], b"from a");
        assert_eq!(wire.next_deadline(), None);
        wire.push(2_000, Side::B, b"from b");
        assert_eq!(wire.pop(2_100, Side::A, &mut out[..4]), Some(4));
        assert_eq!(&out[..4], b"from");
        assert_eq!(wire.counters(Side::B).delivered, 1);
    }

    #[test]
    fn jitter_delays_within_its_bound_and_keeps_the_order() {
        let faults = Faults { delay_ns: 100, jitter_ns: 1_000, ..Faults::default() };
        let mut lane = Lane::new(faults, 11, 64);
        for n in 0..500u64 {
            lane.push(0, &n.to_le_bytes());
        }
        let mut due_ns = Vec::new();
        let mut order = Vec::new();
        while let Some(deadline) = lane.next_deadline() {
            due_ns.push(deadline);
            order.push(lane.pop_with(deadline, |b| u64::from_le_bytes(b.try_into().unwrap())));
        }
        assert!(due_ns.iter().all(|due| (100..=1_100).contains(due)));
        assert!(order.is_sorted());
        assert!(due_ns[0] < due_ns[499]);
    }

    #[test]
    fn a_rate_spaces_frames_by_their_length() {
        let faults = Faults { rate_bps: NonZeroU64::new(8_000_000), ..Faults::default() };
        let mut lane = Lane::new(faults, 0, 1_000);
        // 1 MB/s: a byte takes 1 us.
        lane.push(0, &[0; 1_000]);
        lane.push(0, &[0; 500]);
        assert_eq!(lane.next_deadline(), Some(1_000_000));
        assert!(lane.pop(1_000_000, &mut []).is_some());
        assert_eq!(lane.next_deadline(), Some(1_500_000));
    }

    #[test]
    fn a_full_wire_and_a_long_frame_drop() {
        let faults = Faults { delay_ns: 1, duplicate: 1.0, ..Faults::default() };
        let mut lane = Lane::new(faults, 0, 64);
        for _ in 0..FRAMES_MAX {
            lane.push(0, &[1; 64]);
        }
        lane.push(0, &[1; 65]);
        let counters = *lane.counters();
        assert_eq!(counters.duplicated, FRAMES_MAX as u64 / 2);
        assert_eq!(counters.overflowed, FRAMES_MAX as u64 / 2);
        assert_eq!(counters.oversize, 1);
        let mut delivered = 0;
        while lane.pop(1, &mut [0; 64]).is_some() {
            delivered += 1;
        }
        assert_eq!(delivered, FRAMES_MAX);
    }

    #[test]
    fn a_wire_carries_as_many_frames_as_asked() {
        let faults = Faults { delay_ns: 10, ..Faults::default() };
        let mut wire = Wire::with_frames(faults, 0, 64, 3);
        for n in 0..5 {
            wire.push(0, Side::B, &[n; 8]);
        }
        assert_eq!(wire.counters(Side::B).overflowed, 2);
        assert_eq!(wire.pop_with(9, Side::A, |_| ()), None);
        for n in 0..3 {
            assert_eq!(wire.pop_with(10, Side::A, |bytes| bytes == [n; 8]), Some(true));
        }
        assert_eq!(wire.pop_with(10, Side::A, |_| ()), None);
        wire.push(10, Side::B, &[9; 8]);
        assert_eq!(wire.counters(Side::B).overflowed, 2);
    }

    #[test]
    fn the_ends_of_time_do_not_overflow() {
        let faults = Faults {
            delay_ns: u64::MAX,
            jitter_ns: u64::MAX,
            rate_bps: NonZeroU64::new(1),
            ..Faults::default()
        };
        let mut lane = Lane::new(faults, 0, 64);
        lane.push(u64::MAX, &[0; 64]);
        lane.push(u64::MAX, &[]);
        assert_eq!(lane.next_deadline(), Some(u64::MAX));
    }
}
