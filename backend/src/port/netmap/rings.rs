//! One ring each way, with what this side knows of it for itself: how far both sides
//! have come, which buffer each slot names, and which buffers are lent.
//!
//! A ring has `n` slots in a circle. Those from `head` to before `tail` are ours; the
//! others are the kernel's, and one of them stays empty. Sending, ours are free; when
//! the kernel moves `tail` on, it has done with the slots that it passes, the new tail
//! included. Receiving, ours hold what has arrived.
//!
//! What the kernel stores is read once and judged against what is known here. In memory
//! that only this process and the kernel see, the two never differ; netmap's own memory
//! may be shared with other processes, and a pipe's far end puts buffers of its own into
//! the slots, so there every buffer of that memory is taken.

use paste_stack::Origin;

use super::abi::{BUF_CHANGED, MOREFRAG, REPORT, RESERVED_BUFFERS, Slot};
use super::area::RingMemory;

/// Slots of the smallest ring: one is always empty.
const SLOTS_MIN: u32 = 2;

/// What a ring said that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RingFault {
    /// An index that the kernel cannot have come to.
    #[error("an index went from {from} to {to} of {slots}: something else writes to the ring")]
    Tail {
        /// Where it was.
        from: u32,
        /// What was found.
        to: u32,
        /// Slots of the ring.
        slots: u32,
    },
    /// A buffer that cannot be in the slot.
    #[error("slot {slot} names buffer {found}: something else writes to the ring")]
    Buffer {
        /// The slot.
        slot: u32,
        /// What was found in it.
        found: u32,
    },
}

/// Who may put buffers into slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exchange {
    /// Only we.
    Never,
    /// Whoever else has this memory, of which there are so many buffers.
    Below(u32),
}

impl Exchange {
    fn judge(self, slot: u32, known: u32, found: u32) -> Result<u32, RingFault> {
        let good = match self {
            Exchange::Never => found == known,
            Exchange::Below(count) => (RESERVED_BUFFERS..count).contains(&found),
        };
        if good { Ok(found) } else { Err(RingFault::Buffer { slot, found }) }
    }
}

/// The position after `index` by `count` of a ring of `slots`.
pub(super) fn after(index: u32, count: u32, slots: u32) -> u32 {
    ((u64::from(index) + u64::from(count)) % u64::from(slots)) as u32
}

/// Slots from `from` up to `to`, round the ring.
fn distance(from: u32, to: u32, slots: u32) -> u32 {
    if to >= from { to - from } else { slots - from + to }
}

/// The parts of a ring that both directions have.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) memory: RingMemory,
    exchange: Exchange,
    pub(super) head: u32,
    pub(super) tail: u32,
    /// The buffer that each slot names.
    bufs: Box<[u32]>,
}

impl Common {
    /// Takes a ring over as it is found at registration.
    fn new(memory: RingMemory, exchange: Exchange) -> Result<Common, RingFault> {
        let (slots, head, tail) = (memory.slots(), memory.head(), memory.tail());
        if slots < SLOTS_MIN || head >= slots || tail >= slots {
            return Err(RingFault::Tail { from: head, to: tail, slots });
        }
        let bufs = (0..slots).map(|index| memory.slot(index).buf_idx).collect();
        Ok(Common { memory, exchange, head, tail, bufs })
    }

    /// Slots from `head` to before `tail`.
    pub(super) fn ours(&self) -> u32 {
        distance(self.head, self.tail, self.memory.slots())
    }

    /// Reads how far the kernel has come. Returns how many slots it passed.
    pub(super) fn refresh(&mut self) -> Result<u32, RingFault> {
        let (slots, to) = (self.memory.slots(), self.memory.tail());
        let passed = if to < slots { distance(self.tail, to, slots) } else { slots };
        if passed > slots - 1 - self.ours() {
            return Err(RingFault::Tail { from: self.tail, to, slots });
        }
        self.tail = to;
        Ok(passed)
    }

    /// The buffer that the slot names, as the kernel may have exchanged it.
    pub(super) fn buffer(&self, index: u32) -> Result<u32, RingFault> {
        let found = self.memory.slot(index).buf_idx;
        self.exchange.judge(index, self.bufs[index as usize], found)
    }

    /// Has each slot name the buffer that it came with: netmap frees what it finds there.
    fn restore(&self, came_with: &[u32]) {
        for (index, &buf_idx) in (0..).zip(came_with) {
            let slot = self.memory.slot(index);
            self.memory.set_slot(index, Slot { buf_idx, ..slot });
        }
    }

    pub(super) fn advance(&mut self, count: u32) {
        self.head = after(self.head, count, self.memory.slots());
    }
}

/// What a slot of a frame to be sent refers to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// The buffer, as netmap numbers them.
    pub(super) buf_idx: u32,
    /// Where the bytes begin in it.
    pub(super) offset: u16,
    /// Bytes.
    pub(super) len: u16,
    /// The frame goes on in the next slot.
    pub(super) more: bool,
    /// Who is told when the buffer is no longer read.
    pub(super) lent: Option<(Origin, u32)>,
}

/// A ring for sending.
#[derive(Debug)]
pub(super) struct TxRing {
    ring: Common,
    /// Our own buffer of each slot, which is out of its slot while another is lent.
    home: Box<[u32]>,
    lent: Box<[Option<(Origin, u32)>]>,
    /// Filled, and not shown to the kernel yet.
    hidden: bool,
}

impl TxRing {
    /// Takes a ring over that was just registered.
    pub(super) fn new(memory: RingMemory, exchange: Exchange) -> Result<TxRing, RingFault> {
        let ring = Common::new(memory, exchange)?;
        let (home, lent) = (ring.bufs.clone(), vec![None; ring.bufs.len()].into_boxed_slice());
        Ok(TxRing { ring, home, lent, hidden: false })
    }

    /// The ring, for who sends otherwise than by frames.
    pub(super) fn into_common(self) -> Common {
        self.ring
    }

    /// The buffers that the slots name.
    pub(super) fn buffers(&self) -> &[u32] {
        &self.ring.bufs
    }

    /// Leaves the ring as it was found, as to its buffers; to be closed next.
    pub(super) fn restore(&self) {
        self.ring.restore(&self.home);
    }

    /// Slots that can be filled.
    pub(super) fn room(&self) -> u32 {
        self.ring.ours()
    }

    /// Our own buffer of the slot `ahead` of the next one; it holds nothing of anybody's.
    pub(super) fn home(&mut self, ahead: u32) -> Result<u32, RingFault> {
        let index = after(self.ring.head, ahead, self.ring.memory.slots());
        if self.ring.exchange != Exchange::Never {
            let found = self.ring.memory.slot(index).buf_idx;
            let found = self.ring.exchange.judge(index, self.home[index as usize], found)?;
            (self.home[index as usize], self.ring.bufs[index as usize]) = (found, found);
        }
        Ok(self.home[index as usize])
    }

    /// Fills the next slot, which must be there.
    pub(super) fn put(&mut self, piece: Piece) {
        debug_assert!(self.room() > 0, "whoever puts has looked");
        let index = self.ring.head as usize;
        let changed = self.ring.bufs[index] != piece.buf_idx;
        let mut flags = if changed { BUF_CHANGED } else { 0 };
        if piece.more {
            flags |= MOREFRAG;
        }
        let Piece { buf_idx, len, offset, .. } = piece;
        self.ring.memory.set_slot(self.ring.head, Slot { buf_idx, len, flags, ptr: offset.into() });
        self.ring.bufs[index] = buf_idx;
        self.lent[index] = piece.lent;
        self.ring.advance(1);
        self.hidden = true;
    }

    /// Fills the next slot with a buffer that stays in the ring, and returns the one that
    /// leaves it.
    pub(super) fn swap(&mut self, buf_idx: u32, len: u16, more: bool) -> Result<u32, RingFault> {
        let index = self.ring.head as usize;
        let leaves = self.home(0)?;
        self.home[index] = buf_idx;
        self.put(Piece { buf_idx, offset: 0, len, more, lent: None });
        Ok(leaves)
    }

    /// Shows the kernel what was filled in, and asks for word when it has been sent. True
    /// if the kernel is to be asked to look.
    pub(super) fn publish(&mut self) -> bool {
        if self.hidden {
            let slots = self.ring.memory.slots();
            let last = after(self.ring.head, slots - 1, slots);
            let slot = self.ring.memory.slot(last);
            let report = Slot { flags: slot.flags | REPORT, ..slot };
            self.ring.memory.set_slot(last, report);
            self.ring.memory.publish(self.ring.head);
            self.hidden = false;
        }
        self.is_busy()
    }

    /// After a sync: tells whose buffers are no longer read.
    pub(super) fn reclaim(&mut self, done: &mut dyn FnMut(Origin, u32)) -> Result<(), RingFault> {
        let before = self.ring.tail;
        let passed = self.ring.refresh()?;
        for ahead in 1..=passed {
            let index = after(before, ahead, self.ring.memory.slots()) as usize;
            if let Some((origin, buf)) = self.lent[index].take() {
                done(origin, buf);
            }
        }
        Ok(())
    }

    /// Whether a sync has something to do: the kernel has not done with everything. It may
    /// have left frames in the ring that its driver had no room for.
    pub(super) fn is_busy(&self) -> bool {
        self.hidden || self.room() + 1 < self.ring.memory.slots()
    }
}

/// A slot of what was received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    /// The buffer, as netmap numbers them.
    pub(super) buf_idx: u32,
    /// Where the bytes begin, as far as the kernel says.
    pub(super) ptr: u64,
    /// Bytes, as far as the kernel says.
    pub(super) len: u16,
    /// The frame goes on in the next slot.
    pub(super) more: bool,
}

/// A ring for receiving.
#[derive(Debug)]
pub(super) struct RxRing {
    ring: Common,
    /// The buffers that the slots named at registration.
    came_with: Box<[u32]>,
    moved: bool,
}

impl RxRing {
    /// Takes a ring over that was just registered.
    pub(super) fn new(memory: RingMemory, exchange: Exchange) -> Result<RxRing, RingFault> {
        let ring = Common::new(memory, exchange)?;
        let came_with = ring.bufs.clone();
        Ok(RxRing { ring, came_with, moved: false })
    }

    /// The buffers that the slots name.
    pub(super) fn buffers(&self) -> &[u32] {
        &self.ring.bufs
    }

    /// Leaves the ring as it was found, as to its buffers; to be closed next.
    pub(super) fn restore(&self) {
        self.ring.restore(&self.came_with);
    }

    /// Slots of the ring.
    pub(super) fn slots(&self) -> u32 {
        self.ring.memory.slots()
    }

    /// After a sync: looks at what has arrived.
    pub(super) fn refresh(&mut self) -> Result<(), RingFault> {
        self.ring.refresh().map(drop)
    }

    /// Slots that hold what has arrived.
    pub(super) fn waiting(&self) -> u32 {
        self.ring.ours()
    }

    /// When the kernel looked at the ring last, in ns since the Unix epoch.
    pub(super) fn time(&self) -> Option<u64> {
        self.ring.memory.time()
    }

    /// The slot `ahead` of the next one, read once.
    pub(super) fn peek(&mut self, ahead: u32) -> Result<Arrived, RingFault> {
        let index = after(self.ring.head, ahead, self.ring.memory.slots());
        let slot = self.ring.memory.slot(index);
        let known = &mut self.ring.bufs[index as usize];
        let buf_idx = self.ring.exchange.judge(index, *known, slot.buf_idx)?;
        *known = buf_idx;
        let more = slot.flags & MOREFRAG != 0;
        Ok(Arrived { buf_idx, ptr: slot.ptr, len: slot.len, more })
    }

    /// Puts another buffer into the slot `ahead` of the next one, with frames to begin at
    /// `offset`.
    pub(super) fn replace(&mut self, ahead: u32, buf_idx: u32, offset: u16) {
        let index = after(self.ring.head, ahead, self.ring.memory.slots());
        self.ring.bufs[index as usize] = buf_idx;
        let slot = Slot { buf_idx, len: 0, flags: BUF_CHANGED, ptr: offset.into() };
        self.ring.memory.set_slot(index, slot);
    }

    /// Has the next frames of the slot `ahead` begin at `offset` again, in whichever
    /// buffer it names by now.
    pub(super) fn rearm(&mut self, ahead: u32, offset: u16) {
        let index = after(self.ring.head, ahead, self.ring.memory.slots());
        let slot = self.ring.memory.slot(index);
        self.ring.memory.set_slot(index, Slot { ptr: offset.into(), ..slot });
    }

    /// Gives the next `count` slots back to the kernel.
    pub(super) fn consume(&mut self, count: u32) {
        self.ring.advance(count);
        self.moved = true;
    }

    /// Shows the kernel which slots it has again.
    pub(super) fn publish(&mut self) {
        if self.moved {
            self.ring.memory.publish(self.ring.head);
            self.moved = false;
        }
    }
}
