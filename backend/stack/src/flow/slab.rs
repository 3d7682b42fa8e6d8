//! All flows: a slab allocated once, with a free list, and lists that run through
//! the flows themselves, so that no flow is ever searched for.

use core::ops::{Index, IndexMut, Range};

use paste_abi::Flow;

use super::{FlowState, State};
use crate::bufs::NIL;

/// The link of a flow that is in no list.
const UNLINKED: u32 = u32::MAX - 1;

/// Lists that a flow can be in, each at most once.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Links {
    /// Waits to transmit, or for a neighbour to be found in order to transmit.
    Sending,
    /// Has something for its guest.
    Ready,
    /// Belongs to a channel.
    Channel,
    /// Is in the one list, if any, in which flows of its kind are by age:
    /// those that are half open, those that hold early payload, those in
    /// TIME-WAIT.
    Age,
}

pub(super) const LINKS: usize = 4;

#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    next: u32,
    prev: u32,
}

impl Link {
    /// In no list.
    pub(super) const NONE: Link = Link { next: UNLINKED, prev: NIL };

    pub(super) fn is_linked(self) -> bool {
        self.next != UNLINKED
    }
}

/// A list of flows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    head: u32,
    tail: u32,
}

impl List {
    pub(crate) const EMPTY: List = List { head: NIL, tail: NIL };

    #[inline]
    pub(crate) const fn head(&self) -> Option<u32> {
        if self.head == NIL { None } else { Some(self.head) }
    }

    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.head == NIL
    }

    #[cfg(any(test, feature = "audit"))]
    pub(crate) const fn tail(&self) -> Option<u32> {
        if self.tail == NIL { None } else { Some(self.tail) }
    }
}

/// All flows.
#[derive(Debug)]
pub(crate) struct Flows {
    slab: Box<[FlowState]>,
    free: List,
    used: u32,
}

impl Flows {
    pub(crate) fn new(count: u32) -> Flows {
        let mut flows = Flows {
            slab: vec![FlowState::new(); count as usize].into_boxed_slice(),
            free: List::EMPTY,
            used: 0,
        };
        let mut free = List::EMPTY;
        for index in 0..count {
            flows.push_back(&mut free, Links::Channel, index);
        }
        flows.free = free;
        flows
    }

    /// Where it lies.
    pub(crate) fn memory(&self) -> Range<*const u8> {
        let Range { start, end } = self.slab.as_ptr_range();
        start.cast()..end.cast()
    }

    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    /// Takes a flow from the free list.
    pub(crate) fn alloc(&mut self) -> Option<u32> {
        let mut free = self.free;
        let index = self.pop_front(&mut free, Links::Channel)?;
        self.free = free;
        self.used += 1;
        Some(index)
    }

    /// Puts a flow, which is in no list, back; its names die.
    pub(crate) fn free(&mut self, index: u32) {
        let flow = &mut self.slab[index as usize];
        flow.generation = (flow.generation + 1) % Flow::GENERATIONS as u16;
        flow.set_detached(true);
        debug_assert_eq!(flow.state, State::Closed);
        let mut free = self.free;
        // At the back, so that an index rests long before it is used again.
        self.push_back(&mut free, Links::Channel, index);
        self.free = free;
        self.used -= 1;
    }

    /// The guest's name of the flow at `index`.
    #[inline]
    pub(crate) fn name(&self, index: u32) -> Flow {
        Flow::new(index, self.slab[index as usize].generation.into())
    }

    /// The index of the flow with this name, if it lives.
    #[inline]
    pub(crate) fn find(&self, name: Flow) -> Option<u32> {
        let flow = self.slab.get(name.index() as usize)?;
        (u32::from(flow.generation) == name.generation()).then_some(name.index())
    }

    #[inline]
    pub(crate) fn linked(&self, kind: Links, index: u32) -> bool {
        self.slab[index as usize].links[kind as usize].is_linked()
    }

    /// Appends a flow that is in no list of this kind.
    #[inline]
    pub(crate) fn push_back(&mut self, list: &mut List, kind: Links, index: u32) {
        let kind = kind as usize;
        self.slab[index as usize].links[kind] = Link { next: NIL, prev: list.tail };
        if list.tail == NIL {
            list.head = index;
        } else {
            self.slab[list.tail as usize].links[kind].next = index;
        }
        list.tail = index;
    }

    /// Takes a flow out of `list`, if it is in a list of this kind.
    #[inline]
    pub(crate) fn remove(&mut self, list: &mut List, kind: Links, index: u32) {
        let kind = kind as usize;
        let Link { next, prev } = self.slab[index as usize].links[kind];
        if next == UNLINKED {
            return;
        }
        if prev == NIL {
            list.head = next;
        } else {
            self.slab[prev as usize].links[kind].next = next;
        }
        if next == NIL {
            list.tail = prev;
        } else {
            self.slab[next as usize].links[kind].prev = prev;
        }
        self.slab[index as usize].links[kind].next = UNLINKED;
    }

    /// Takes the first flow out of `list`.
    #[inline]
    pub(crate) fn pop_front(&mut self, list: &mut List, kind: Links) -> Option<u32> {
        let index = list.head()?;
        self.remove(list, kind, index);
        Some(index)
    }
}

#[cfg(any(test, feature = "audit"))]
impl Flows {
    /// The flows that nobody uses.
    pub(crate) fn free_list(&self) -> List {
        self.free
    }

    /// The flows before and after this one in its list.
    pub(crate) fn around(&self, kind: Links, index: u32) -> (Option<u32>, Option<u32>) {
        let Link { next, prev } = self.slab[index as usize].links[kind as usize];
        let known = |index| (index < self.slab.len() as u32).then_some(index);
        (known(prev), known(next))
    }
}

impl Index<u32> for Flows {
    type Output = FlowState;

    #[inline]
    fn index(&self, index: u32) -> &FlowState {
        &self.slab[index as usize]
    }
}

impl IndexMut<u32> for Flows {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut FlowState {
        &mut self.slab[index as usize]
    }
}
