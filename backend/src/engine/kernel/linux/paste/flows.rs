//! The flows: all of them allocated once, named by index and generation; and which flow a
//! descriptor belongs to.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::{Index, IndexMut};
use std::os::fd::OwnedFd;

use paste_abi::{Flow as Name, Reason};

use super::bufs::Queue;
use super::lists::{self, NIL};
use crate::port::netmap::pst::FD_MAX;

/// Where a flow is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// In nobody's use.
    Free,
    /// The kernel shakes hands.
    Connecting,
    /// Registered, and open in at least one direction.
    Open,
    /// Over. Its socket is closed.
    Ended,
}

/// One flow.
#[derive(Debug)]
pub(super) struct Flow {
    /// Its socket; and when it has ended, what keeps the descriptor's number from being
    /// another's.
    pub socket: Option<OwnedFd>,
    /// The descriptor's number, for slots.
    pub fd: i32,
    pub state: State,
    pub channel: u8,
    /// Of [`super::event`]: what the guest is still to be told.
    pub events: u8,
    /// What RESET says; with [`Reason::Ok`], CLOSED is said.
    pub reason: Reason,
    /// What is to end it, unless that is in good order: the kernel has said so, and what
    /// it received before may still come.
    pub failed: Reason,
    /// The peer sends no more.
    pub fin_in: bool,
    /// The guest sends no more.
    pub fin_queued: bool,
    /// The kernel was told so.
    pub fin_out: bool,
    /// A request was refused with FLOW_FULL since WRITABLE was said.
    pub want_writable: bool,
    /// The guest's name for it is dead.
    pub detached: bool,
    /// Buffers that it had when it was slowed down; 0 if it is not.
    pub slowed_at: u32,
    /// The listener that it came by, until the guest is told: a [`Name`], or [`NIL`].
    pub listener: u32,
    /// The cookie of its CONNECT.
    pub opener: u32,
    pub peer: SocketAddr,
    pub local_port: u16,
    /// Bytes of headers that the kernel puts in front of a segment.
    pub headers: u16,
    /// Bytes of payload in a segment.
    pub segment: u16,
    /// What the kernel said it was given when the flow was registered, and what it has
    /// taken from the ring since.
    pub base: u64,
    pub taken: u64,
    /// What may still be put into the ring, in the counting of its send buffer.
    pub credit: u32,
    /// Segments that the kernel kept for it when it was last asked, and those granted.
    pub kept: u32,
    /// When its send buffer is to be looked at again, ns.
    pub look_at: u64,
    /// Slots of its in the ring.
    pub in_ring: u16,
    /// Buffers of which the kernel has not taken everything.
    pub tx_len: u16,
    /// The buffer that the next slot is filled from, or [`NIL`]; and where in it.
    pub cursor: u32,
    pub cursor_at: u16,
    /// Buffers that it is charged for.
    pub rx_bufs: u32,
    /// Received, and not told of.
    pub rx: Queue,
    /// To be sent.
    pub tx: Queue,
    /// Sent, and not told of.
    pub done: Queue,
    /// Something last came from the peer after the guest had closed, or it closed, ns.
    pub silent_since: u64,
    generation: u16,
    next_free: u32,
}

impl Flow {
    const FREE: Flow = Flow {
        socket: None,
        fd: -1,
        state: State::Free,
        channel: 0,
        events: 0,
        reason: Reason::Ok,
        failed: Reason::Ok,
        fin_in: false,
        fin_queued: false,
        fin_out: false,
        want_writable: false,
        detached: false,
        slowed_at: 0,
        listener: NIL,
        opener: 0,
        peer: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        local_port: 0,
        headers: 0,
        segment: 0,
        base: 0,
        taken: 0,
        credit: 0,
        kept: 0,
        look_at: 0,
        in_ring: 0,
        tx_len: 0,
        cursor: NIL,
        cursor_at: 0,
        rx_bufs: 0,
        rx: Queue::EMPTY,
        tx: Queue::EMPTY,
        done: Queue::EMPTY,
        silent_since: 0,
        generation: 0,
        next_free: NIL,
    };

    /// Whether the guest was told of it, and may name it.
    pub(super) fn is_known(&self) -> bool {
        !self.detached && self.listener == NIL
    }

    /// Whether the guest is to be told this, which is done now.
    pub(super) fn take_event(&mut self, bit: u8) -> bool {
        let found = self.events & bit != 0;
        self.events &= !bit;
        found
    }
}

/// The kinds of list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    /// The flows of one channel.
    Channel,
    /// Those of one channel that have something for the guest.
    Ready,
    /// Those that have something for the ring.
    Work,
    /// Those whose send buffer has no room, the one to be looked at first in front.
    Wait,
    /// Those that the kernel keeps segments for, as far as it was asked: the one that it was
    /// asked about longest ago in front.
    Kept,
    /// Those that the guest has closed and the peer has not, the longest silent first.
    Closing,
    /// Those that the kernel has ended, and of which the ring may still hold something.
    Hung,
    /// Those that have ended, and whose descriptor's number is not free yet.
    Number,
}

impl From<Links> for usize {
    fn from(kind: Links) -> usize {
        kind as usize
    }
}

type Lists = lists::Lists<Links, 8>;

/// All flows, and the lists that they are in.
#[derive(Debug)]
pub(super) struct Flows {
    flows: Box<[Flow]>,
    pub lists: Lists,
    /// The registered flow of each descriptor, or [`NIL`].
    by_fd: Box<[u32]>,
    free: u32,
    used: u32,
}

impl Flows {
    /// `count` flows, of which none is in use; at most [`Name::INDEX_MAX`].
    pub(super) fn new(count: u32) -> Flows {
        let count = count.clamp(1, Name::INDEX_MAX);
        let next = |index| if index + 1 == count { NIL } else { index + 1 };
        let flows = (0..count).map(|index| Flow { next_free: next(index), ..Flow::FREE });
        Flows {
            flows: flows.collect(),
            lists: Lists::new(count),
            by_fd: vec![NIL; FD_MAX as usize + 1].into(),
            free: 0,
            used: 0,
        }
    }

    /// Flows in use.
    pub(super) fn used(&self) -> u32 {
        self.used
    }

    /// Whether another can be had.
    pub(super) fn has_free(&self) -> bool {
        self.free != NIL
    }

    /// Takes one. `None` if all are in use.
    pub(super) fn alloc(&mut self) -> Option<u32> {
        let index = self.free;
        let flow = self.flows.get_mut(index as usize)?;
        self.free = flow.next_free;
        *flow = Flow { generation: flow.generation, state: State::Connecting, ..Flow::FREE };
        self.used += 1;
        Some(index)
    }

    /// Gives one back, which is in no list. Its name is never used for another until all
    /// generations have been.
    pub(super) fn free(&mut self, index: u32) {
        let flow = &mut self.flows[index as usize];
        debug_assert!(flow.socket.is_none() && flow.in_ring == 0);
        let queues = [flow.rx, flow.tx, flow.done];
        debug_assert!(queues.iter().all(Queue::is_empty));
        let generation = (u32::from(flow.generation) + 1) % Name::GENERATIONS;
        *flow = Flow { generation: generation as u16, next_free: self.free, ..Flow::FREE };
        self.free = index;
        self.used -= 1;
    }

    /// The name of a flow in use.
    pub(super) fn name(&self, index: u32) -> Name {
        Name::new(index, u32::from(self.flows[index as usize].generation))
    }

    /// The flow in use that has this name.
    pub(super) fn find(&self, name: Name) -> Option<u32> {
        let flow = self.flows.get(name.index() as usize)?;
        let lives = flow.state != State::Free && u32::from(flow.generation) == name.generation();
        lives.then(|| name.index())
    }

    /// The descriptor is the flow's from now on, or [`NIL`]: nobody's.
    pub(super) fn set_fd(&mut self, fd: i32, index: u32) {
        if let Some(place) = usize::try_from(fd).ok().and_then(|fd| self.by_fd.get_mut(fd)) {
            *place = index;
        }
    }

    /// The registered flow of a descriptor.
    pub(super) fn of_fd(&self, fd: i32) -> Option<u32> {
        let index = *self.by_fd.get(usize::try_from(fd).ok()?)?;
        (index != NIL).then_some(index)
    }
}

impl Index<u32> for Flows {
    type Output = Flow;

    fn index(&self, index: u32) -> &Flow {
        &self.flows[index as usize]
    }
}

impl IndexMut<u32> for Flows {
    fn index_mut(&mut self, index: u32) -> &mut Flow {
        &mut self.flows[index as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_die_with_their_flows_and_descriptors_are_found() {
        let mut flows = Flows::new(2);
        let first = flows.alloc().unwrap();
        let name = flows.name(first);
        assert_eq!(flows.find(name), Some(first));
        flows.set_fd(7, first);
        assert_eq!(flows.of_fd(7), Some(first));
        for strange in [-1, 8, FD_MAX, FD_MAX + 1, i32::MIN, i32::MAX] {
            assert_eq!(flows.of_fd(strange), None, "{strange}");
            flows.set_fd(strange, NIL);
        }
        flows.set_fd(7, NIL);
        assert_eq!(flows.of_fd(7), None);
        flows.free(first);
        assert_eq!((flows.find(name), flows.used()), (None, 0));
        assert_eq!(flows.alloc(), Some(first));
        assert_eq!(flows.find(name), None, "an earlier generation");
    }
}
