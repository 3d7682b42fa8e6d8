//! The wire between two hosts, and all that goes wrong on it.
//!
//! Unlike the wire of `pipe:`, which it does not replace, it changes while it
//! is in use: it goes down and comes back, and its MTU moves.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use pasted::port::prng::Prng;

use super::headers;

/// How frames are lost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// Each by this chance, independent of the others.
    Random(f64),
    /// In bursts (Gilbert and Elliott's model): chances per frame of a bad time
    /// beginning and ending, and of loss during it.
    Burst {
        /// A good time ends.
        enter: f64,
        /// A bad time ends.
        leave: f64,
        /// Loss in a bad time.
        loss: f64,
    },
}

/// What goes wrong all the time. Chances are per frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Faults {
    /// Loss.
    pub loss: Loss,
    /// Chance that a frame arrives twice.
    pub duplicate: f64,
    /// Chance that a frame is held back by up to `reorder_ns`.
    pub reorder: f64,
    /// The longest that a frame is held back.
    pub reorder_ns: u64,
    /// Chance that a bit of the datagram is flipped behind the back of
    /// Ethernet's own check.
    pub corrupt: f64,
    /// Time that every frame takes.
    pub delay_ns: u64,
    /// Time beyond that, at most. Does not reorder.
    pub jitter_ns: u64,
    /// Bytes per second, or zero for no limit.
    pub rate: u64,
    /// Time that a frame may wait for those before it; one that would wait
    /// longer is dropped, as by the tail of a queue.
    pub queue_ns: u64,
}

impl Faults {
    /// Nothing goes wrong, and a frame takes this long.
    pub const fn none(delay_ns: u64) -> Faults {
        Faults {
            loss: Loss::Random(0.0),
            duplicate: 0.0,
            reorder: 0.0,
            reorder_ns: 0,
            corrupt: 0.0,
            delay_ns,
            jitter_ns: 0,
            rate: 0,
            queue_ns: u64::MAX,
        }
    }
}

/// What became of a frame that was put on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It arrives as it is.
    Carried,
    /// It is lost by chance.
    Lost,
    /// It is lost because the link is down.
    Down,
    /// It is lost because too much waits before it.
    QueueFull,
    /// It is lost because it is too large, and a router says so if one does.
    TooLarge,
    /// It arrives damaged.
    Corrupted,
    /// It arrives twice.
    Doubled,
    /// It arrives late, behind those that were sent after it.
    HeldBack,
}

impl Fate {
    /// A word for a capture's comments; nothing for the usual fate.
    pub fn comment(self) -> &'static str {
        match self {
            Fate::Carried => "",
            Fate::Lost => "lost",
            Fate::Down => "lost: link down",
            Fate::QueueFull => "lost: queue full",
            Fate::TooLarge => "lost: too large",
            Fate::Corrupted => "corrupted",
            Fate::Doubled => "doubled",
            Fate::HeldBack => "held back",
        }
    }
}

/// A frame on its way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct InFlight {
    due: u64,
    order: u64,
    damaged: bool,
    bytes: Vec<u8>,
}

/// One direction.
#[derive(Debug)]
struct Lane {
    prng: Prng,
    bad_time: bool,
    in_flight: BinaryHeap<Reverse<InFlight>>,
    line_free: u64,
    due_last: u64,
}

/// The wire. Its ends are 0 and 1.
#[derive(Debug)]
pub struct Link {
    faults: Faults,
    /// Largest datagram that it carries.
    pub mtu: u16,
    /// It carries nothing.
    pub down: bool,
    /// A router answers frames that are too large.
    pub answers: bool,
    lanes: [Lane; 2],
    order: u64,
    spare: Vec<Vec<u8>>,
}

/// The router's address.
const ROUTER: headers::Mac = [2, 0, 0, 0, 0, 0xfe];

impl Link {
    /// A wire whose faults depend on `seed` alone.
    pub fn new(faults: Faults, mtu: u16, seed: u64) -> Link {
        let lane = |seed| Lane {
            prng: Prng::new(seed),
            bad_time: false,
            in_flight: BinaryHeap::new(),
            line_free: 0,
            due_last: 0,
        };
        Link {
            faults,
            mtu,
            down: false,
            answers: true,
            lanes: [lane(seed), lane(!seed)],
            order: 0,
            spare: Vec::new(),
        }
    }

    /// Puts a frame on the wire at end `from`.
    pub fn push(&mut self, now: u64, from: usize, frame: &[u8]) -> Fate {
        let faults = self.faults;
        let lane = &mut self.lanes[from];
        // Every frame draws the same numbers, whatever becomes of it.
        let lost = lane.loses(faults.loss);
        let doubled = lane.prng.chance(faults.duplicate);
        let held_back = lane.prng.chance(faults.reorder);
        let corrupted = lane.prng.chance(faults.corrupt);
        let bit = lane.prng.below(frame.len() as u64 * 8) as usize;
        let jitter = lane.prng.below(faults.jitter_ns + 1);
        let hold = 1 + lane.prng.below(faults.reorder_ns);

        if self.down {
            return Fate::Down;
        }
        let Some(sent) = lane.serialize(now, frame.len(), &faults) else {
            return Fate::QueueFull;
        };
        let len = headers::datagram_len(frame);
        if len.is_some_and(|len| len > usize::from(self.mtu)) {
            if self.answers
                && let Some(answer) = headers::too_big(frame, ROUTER, self.mtu)
            {
                self.inject(now + 2 * faults.delay_ns, from, &answer);
            }
            return Fate::TooLarge;
        }
        // Ethernet's own check finds what is damaged on the way; only what a
        // router's memory does to a datagram arrives.
        let behind_check = len.is_some_and(|len| bit / 8 >= frame.len() - len);
        if lost || (corrupted && !behind_check) {
            return Fate::Lost;
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.clear();
        bytes.extend_from_slice(frame);
        if corrupted {
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let arrival = sent + faults.delay_ns + jitter;
        let due = if held_back {
            arrival + hold
        } else {
            lane.due_last = lane.due_last.max(arrival);
            lane.due_last
        };
        if doubled {
            self.enqueue(from, due, corrupted, bytes.clone());
        }
        self.enqueue(from, due, corrupted, bytes);
        match (corrupted, held_back, doubled) {
            (true, ..) => Fate::Corrupted,
            (_, true, _) => Fate::HeldBack,
            (_, _, true) => Fate::Doubled,
            _ => Fate::Carried,
        }
    }

    /// Has a frame arrive at end `to`, past all faults.
    pub fn inject(&mut self, due: u64, to: usize, frame: &[u8]) {
        self.enqueue(1 - to, due, false, frame.to_vec());
    }

    fn enqueue(&mut self, from: usize, due: u64, damaged: bool, bytes: Vec<u8>) {
        let frame = InFlight { due, order: self.order, damaged, bytes };
        self.order += 1;
        self.lanes[from].in_flight.push(Reverse(frame));
    }

    /// Takes a frame that has arrived at end `to`, and whether it is damaged.
    pub fn pop(&mut self, now: u64, to: usize) -> Option<(Vec<u8>, bool)> {
        let lane = &mut self.lanes[1 - to];
        if lane.in_flight.peek()?.0.due > now {
            return None;
        }
        let Reverse(frame) = lane.in_flight.pop()?;
        Some((frame.bytes, frame.damaged))
    }

    /// Takes back the memory of a frame.
    pub fn recycle(&mut self, bytes: Vec<u8>) {
        self.spare.push(bytes);
    }

    /// When the next frame arrives at either end.
    pub fn next_deadline(&self) -> Option<u64> {
        self.lanes.iter().filter_map(|lane| lane.in_flight.peek()).map(|f| f.0.due).min()
    }
}

impl Lane {
    fn loses(&mut self, loss: Loss) -> bool {
        match loss {
            Loss::Random(chance) => self.prng.chance(chance),
            Loss::Burst { enter, leave, loss } => {
                let turn = if self.bad_time { leave } else { enter };
                self.bad_time ^= self.prng.chance(turn);
                // Drawn in good times as well, so that draws stay in step.
                self.prng.chance(loss) && self.bad_time
            }
        }
    }

    /// When the last bit has left, or `None` if too much waits.
    fn serialize(&mut self, now: u64, len: usize, faults: &Faults) -> Option<u64> {
        let Some(time) = (len as u64 * 1_000_000_000).checked_div(faults.rate) else {
            return Some(now);
        };
        let start = self.line_free.max(now);
        if start - now > faults.queue_ns {
            return None;
        }
        self.line_free = start + time;
        Some(self.line_free)
    }
}
