//! The flows: all of them allocated once, named by index and generation.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::{Index, IndexMut};
use std::os::fd::OwnedFd;

use paste_abi::{Flow as Name, Reason};

use super::bufs::Queue;
use super::lists::{self, NIL};

/// Where a flow is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// In nobody's use.
    Free,
    /// The kernel shakes hands.
    Connecting,
    /// Open in at least one direction.
    Open,
    /// Over: what the kernel still does for it is cancelled, then its socket is closed.
    Ending,
    /// Its socket is closed. Buffers may still be the kernel's.
    Closed,
}

/// A request of a flow that the kernel works on, if it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Busy {
    No,
    Yes,
    /// It was asked to stop.
    Stopping,
}

/// One flow.
#[derive(Debug)]
pub(super) struct Flow {
    /// Until it is closed.
    pub socket: Option<OwnedFd>,
    pub state: State,
    pub channel: u8,
    /// Of [`super::event`]: what the guest is still to be told.
    pub events: u8,
    /// What RESET says; with [`Reason::Ok`], CLOSED is said.
    pub reason: Reason,
    pub receiving: Busy,
    pub sending: Busy,
    pub connecting: Busy,
    pub closing: Busy,
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
    /// The kernel copies what is sent without a copy on it.
    pub copies: bool,
    /// The listener that it came by, until the guest is told: a [`Name`], or [`NIL`].
    pub listener: u32,
    /// The cookie of its CONNECT.
    pub opener: u32,
    pub peer: SocketAddr,
    pub local_port: u16,
    /// What is being sent goes without a copy: the record of it, or [`NIL`].
    pub notice: u32,
    /// A part of a buffer was sent without a copy: the rest goes when the kernel has
    /// released it.
    pub halved: bool,
    /// Buffers that wait to be sent, or that the kernel has not released.
    pub tx_len: u16,
    /// Sends without a copy of which the kernel still has buffers.
    pub notices: u16,
    /// Buffers that it is charged for.
    pub rx_bufs: u32,
    /// Received, and not told of.
    pub rx: Queue,
    /// To be sent, or being sent.
    pub tx: Queue,
    /// The kernel has it, and not all of it is released.
    pub sent: Queue,
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
        state: State::Free,
        channel: 0,
        events: 0,
        reason: Reason::Ok,
        receiving: Busy::No,
        sending: Busy::No,
        connecting: Busy::No,
        closing: Busy::No,
        fin_in: false,
        fin_queued: false,
        fin_out: false,
        want_writable: false,
        detached: false,
        copies: false,
        listener: NIL,
        opener: 0,
        peer: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        local_port: 0,
        notice: NIL,
        halved: false,
        tx_len: 0,
        notices: 0,
        rx_bufs: 0,
        rx: Queue::EMPTY,
        tx: Queue::EMPTY,
        sent: Queue::EMPTY,
        done: Queue::EMPTY,
        silent_since: 0,
        generation: 0,
        next_free: NIL,
    };

    /// Whether the guest was told of it, and may name it.
    pub(super) fn is_known(&self) -> bool {
        !self.detached && self.listener == NIL
    }

    /// Whether the kernel works on none of its requests.
    pub(super) fn is_idle(&self) -> bool {
        let requests = [self.receiving, self.sending, self.connecting, self.closing];
        requests.iter().all(|&busy| busy == Busy::No)
    }
}

/// The kinds of list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    /// The flows of one channel.
    Channel,
    /// Those of one channel that have something for the guest.
    Ready,
    /// Those for which the ring has something to do.
    Work,
    /// Those that are to receive and do not.
    Arm,
    /// Those that the guest has closed and the peer has not, the longest silent first.
    Closing,
}

impl From<Links> for usize {
    fn from(kind: Links) -> usize {
        kind as usize
    }
}

type Lists = lists::Lists<Links, 5>;

/// All flows, and the lists that they are in.
#[derive(Debug)]
pub(super) struct Flows {
    flows: Box<[Flow]>,
    pub lists: Lists,
    free: u32,
    used: u32,
}

impl Flows {
    /// `count` flows, of which none is in use; at most [`Name::INDEX_MAX`].
    pub(super) fn new(count: u32) -> Flows {
        let count = count.clamp(1, Name::INDEX_MAX);
        let next = |index| if index + 1 == count { NIL } else { index + 1 };
        let flows = (0..count).map(|index| Flow { next_free: next(index), ..Flow::FREE });
        Flows { flows: flows.collect(), lists: Lists::new(count), free: 0, used: 0 }
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
        *flow = Flow { generation: flow.generation, state: State::Open, ..Flow::FREE };
        self.used += 1;
        Some(index)
    }

    /// Gives one back, which is in no list. Its name is never used for another until all
    /// generations have been.
    pub(super) fn free(&mut self, index: u32) {
        let flow = &mut self.flows[index as usize];
        debug_assert!(flow.is_idle() && flow.notices == 0 && flow.socket.is_none());
        let queues = [flow.rx, flow.tx, flow.sent, flow.done];
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

    /// The flow of a completion: of one in use only, as its requests keep it so.
    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Flow> {
        self.flows.get_mut(index as usize).filter(|flow| flow.state != State::Free)
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
    fn names_die_with_their_flows() {
        let mut flows = Flows::new(2);
        let first = flows.alloc().unwrap();
        let name = flows.name(first);
        assert_eq!(flows.find(name), Some(first));
        assert_ne!(flows.alloc(), Some(first));
        assert!(!flows.has_free() && flows.alloc().is_none());
        flows.free(first);
        assert_eq!((flows.find(name), flows.used()), (None, 1));
        assert_eq!(flows.alloc(), Some(first));
        assert_eq!(flows.find(name), None, "an earlier generation");
    }
}
