//! One guest over several workers.
//!
//! A guest whose configuration names several workers has a *lane* on each: a queue pair of
//! its device, a stack, a share of its region's buffers, and the channels that were opened
//! on that pair. Lanes share nothing that is ever locked:
//!
//! ```text
//!                        ┌─ ring ─> lane 0: stack, buffers, channels ── queue pair 0
//!  NIC ── port ── switch ┤                                                 guest
//!                        └─ ring ─> lane 1: stack, buffers, channels ── queue pair 1
//!                by hash
//! ```
//!
//! | what | how it is divided |
//! | --- | --- |
//! | frames | the switch of the port gives each segment to the lane of its flow ([`Choice`]), by a ring of one producer and one consumer, as it does for guests that share a NIC; each lane makes the one copy into its own buffers |
//! | flows | by a keyed hash of the peer's address and both ports, among the lanes that listen on the port; flows that the guest opens have a local port that says whose they are ([`Ports`]) |
//! | buffers | each lane's pool has a run of its own (`paste_pmem::Pool::split`); one that is named on another lane is refused as any that is not the guest's |
//! | stores | any lane's are made durable before its answers go, by one thread and one mirror for all (`crate::durability`) |
//! | queue pairs | lent by the lane that has the session, by value, and called home before a message of the front end's is handled (`crate::vhost`, `pair`) |
//! | its rate limit | by whoever comes: token buckets that all take from, a batch at a time, and where each books the tokens of the frame that it waits with (`crate::port`, `limit`) |
//! | the guest's own kernel | all of it is the first lane's: what the stack does not know, and everything that is no segment |
//!
//! What neighbours and routers say, and errors by ICMP, go to every lane, because every
//! stack has to know them; who asks is answered by the first lane alone.
//!
//! # What an application has to do
//!
//! Open a channel on each pair (`paste_guest::Channel::open_pairs`), and listen on a port on
//! all of them or on one. A flow belongs to the pair that it arrived at. When a pair begins
//! to listen on a port, or its channel ends, flows of that port change lanes and those that
//! were open may be reset.
//!
//! # Limits
//!
//! TCP in IP fragments is the first lane's, which knows of no such flow if it is not its
//! own. What goes to every lane is counted by a rate limit for each. Claimed buffers are of
//! the lane in whose run they lie: a guest that has more or fewer workers than when they were
//! claimed has some on another pair, which a log that names them has to be opened on.

mod choice;
mod engine;

use std::sync::atomic::{AtomicU8, Ordering};

pub use choice::{Choice, Lanes, SECRET_LEN};
pub use engine::LaneEngine;

/// Lanes of a guest, at most: as many as pairs.
pub const LANES_MAX: usize = crate::vhost::PAIRS_MAX;
const _: () = assert!(LANES_MAX <= u8::BITS as usize);

/// Local ports of a guest's TCP, and which lanes' they are: written by each lane for
/// itself when it listens, read by the switch for each segment.
#[derive(Debug)]
pub struct Ports {
    /// By port: a bit for each lane that listens on it.
    listening: Box<[AtomicU8]>,
    lanes: u8,
}

impl Ports {
    /// Nobody listens. With 1 to [`LANES_MAX`] lanes.
    pub fn new(lanes: u8) -> Ports {
        debug_assert!((1..=LANES_MAX).contains(&usize::from(lanes)));
        let listening = (0..=u16::MAX).map(|_| AtomicU8::new(0)).collect();
        Ports { listening, lanes }
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> u8 {
        self.lanes
    }

    /// A lane listens on a port.
    pub fn listen(&self, lane: u8, port: u16) {
        self.listening[usize::from(port)].fetch_or(1 << lane, Ordering::Relaxed);
    }

    /// A lane no longer has anything to do with a port.
    pub fn leave(&self, lane: u8, port: u16) {
        self.listening[usize::from(port)].fetch_and(!(1 << lane), Ordering::Relaxed);
    }

    /// Whether any lane listens on a port.
    pub fn is_listened_on(&self, port: u16) -> bool {
        self.listening[usize::from(port)].load(Ordering::Relaxed) != 0
    }

    /// The lane of a segment to this local port, given a hash of its flow.
    pub fn lane(&self, port: u16, hash: u32) -> u8 {
        let mut lanes = self.listening[usize::from(port)].load(Ordering::Relaxed);
        if lanes == 0 {
            return self.of_flows_from(port);
        }
        let nth = (u64::from(hash) * u64::from(lanes.count_ones())) >> 32;
        for _ in 0..nth {
            lanes &= lanes - 1;
        }
        lanes.trailing_zeros() as u8
    }

    /// The lane whose flows leave from this local port, where nobody listens.
    pub fn of_flows_from(&self, port: u16) -> u8 {
        (port % u16::from(self.lanes)) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_of_those_who_listen_and_else_of_its_number() {
        let ports = Ports::new(3);
        assert_eq!([6, 7, 8].map(|port| ports.lane(port, u32::MAX)), [0, 1, 2]);
        ports.listen(2, 80);
        assert_eq!([0, u32::MAX].map(|hash| ports.lane(80, hash)), [2, 2]);
        ports.listen(0, 80);
        assert_eq!([0, u32::MAX / 2, u32::MAX].map(|hash| ports.lane(80, hash)), [0, 0, 2]);
        assert_eq!(ports.lane(81, 0), 0, "the port beside it is nobody's");
        ports.listen(1, 80);
        let share =
            |lane| (0..300).filter(|n| ports.lane(80, n * (u32::MAX / 300)) == lane).count();
        assert!([share(0), share(1), share(2)].iter().all(|share| (99..=101).contains(share)));
        ports.leave(0, 80);
        assert_eq!([0, u32::MAX].map(|hash| ports.lane(80, hash)), [1, 2]);
        ports.leave(1, 80);
        ports.leave(2, 80);
        assert_eq!(ports.lane(80, 7), 80 % 3);
    }
}
