//! The two rings of a port of PASTE's, slot by slot: what is received, judged, and what is
//! to be sent, judged before the kernel sees it.
//!
//! The kernel stops at a slot that it cannot take, looks at it again at every sync, and
//! at none behind it: a bad slot, or a good one of a socket that is full or dead, holds
//! up all flows. So nothing bad is ever published, and what is stuck is made void: a slot
//! without a length is passed over.

use super::super::abi::{BUF_CHANGED, PST_DATA_MAX, PstPtr, Slot};
use super::super::attach::Memory;
use super::super::rings::{Common, RingFault, RxRing, after};

/// The least and the greatest descriptor of a socket that PASTE takes
/// (`netmap_pst_register_fd`). It takes 65535 as well, and then copies its table into one
/// that it sizes by another rule.
pub const FD_MIN: i32 = 3;
/// See [`FD_MIN`].
pub const FD_MAX: i32 = 65_534;

/// In place of a word: the slot is void.
const VOID: u64 = u64::MAX;

/// What the kernel put into a slot for receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// In-order payload of a socket.
    Payload {
        /// The socket's descriptor.
        fd: i32,
        /// Where it lies in the port's memory.
        at: usize,
        /// Bytes, one at least.
        len: u16,
    },
    /// The socket's peer sends no more.
    Fin {
        /// The socket's descriptor.
        fd: i32,
    },
    /// Something that cannot be.
    Bad,
}

/// The ring for receiving.
#[derive(Debug)]
pub(super) struct PstRx {
    pub(super) ring: RxRing,
    pub(super) headroom: u16,
}

impl PstRx {
    /// The next slot, if there is one.
    pub(super) fn peek(&mut self, memory: &Memory) -> Option<Arrived> {
        if self.ring.waiting() == 0 {
            return None;
        }
        // A buffer that cannot be is the slot's fault and not the ring's: the next may be
        // right.
        let Ok(slot) = self.ring.peek(0) else { return Some(Arrived::Bad) };
        let PstPtr { offset, fd, data } = PstPtr::unpack(slot.ptr);
        let end = usize::from(offset) + usize::from(slot.len);
        // The length leaves out what is in front of the frame, and not its headers.
        let bad = offset < self.headroom
            || data > slot.len
            || end > memory.buffer_size
            || !(FD_MIN..=FD_MAX).contains(&fd);
        if bad {
            return Some(Arrived::Bad);
        }
        if data == slot.len {
            return Some(Arrived::Fin { fd });
        }
        let at = memory.buffer(slot.buf_idx) + usize::from(offset) + usize::from(data);
        Some(Arrived::Payload { fd, at, len: slot.len - data })
    }
}

/// What one slot is to send.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// The socket's descriptor.
    pub fd: i32,
    /// Bytes of headers that the kernel will put in front.
    pub headers: u16,
    /// Bytes of payload.
    pub len: u16,
}

/// What becomes of a slot that the kernel has not done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It stays.
    Keep,
    /// It stays, and its word is never told: the kernel has given it to its socket.
    Forget,
    /// It is passed over: the kernel has not looked at it, or has refused it.
    Void,
}

/// The ring for sending.
#[derive(Debug)]
pub(super) struct PstTx {
    ring: Common,
    headroom: u16,
    /// What the caller said of each slot that the kernel has not done with.
    words: Box<[u64]>,
    /// Filled, and not shown to the kernel yet.
    hidden: bool,
}

impl PstTx {
    pub(super) fn new(ring: Common, headroom: u16) -> PstTx {
        let words = vec![VOID; ring.memory.slots() as usize].into();
        PstTx { ring, headroom, words, hidden: false }
    }

    /// Slots that can be filled.
    pub(super) fn room(&self) -> u32 {
        self.ring.ours()
    }

    /// Slots that were filled and that the kernel has not done with.
    pub(super) fn pending(&self) -> u32 {
        self.ring.memory.slots() - 1 - self.room()
    }

    /// The slot that the kernel is to look at next.
    fn first(&self) -> u32 {
        after(self.ring.tail, 1, self.ring.memory.slots())
    }

    /// Where the payload of the next slot is to lie in the port's memory.
    pub(super) fn place(&self, memory: &Memory, headers: u16) -> Result<usize, RingFault> {
        let buffer = self.ring.buffer(self.ring.head)?;
        Ok(memory.buffer(buffer) + usize::from(self.headroom) + usize::from(headers))
    }

    /// Fills the next slot, whose payload is in its place. False: the kernel would stop
    /// at it, or there is no slot; nothing was changed.
    pub(super) fn put(&mut self, memory: &Memory, segment: Segment, word: u64) -> bool {
        let Segment { fd, headers, len } = segment;
        let end = usize::from(self.headroom) + usize::from(headers) + usize::from(len);
        let good = self.room() > 0
            && len > 0
            && headers <= PST_DATA_MAX
            && end <= memory.buffer_size
            && (FD_MIN..=FD_MAX).contains(&fd)
            && word != VOID;
        let head = self.ring.head;
        let Ok(buf_idx) = self.ring.buffer(head) else { return false };
        if !good {
            return false;
        }
        let ptr = PstPtr { offset: self.headroom, fd, data: headers }.pack();
        let slot = Slot { buf_idx, len: headers + len, flags: BUF_CHANGED, ptr };
        self.ring.memory.set_slot(head, slot);
        self.words[head as usize] = word;
        self.ring.advance(1);
        self.hidden = true;
        true
    }

    /// Shows the kernel what was filled. True if a sync has something to do.
    pub(super) fn publish(&mut self) -> bool {
        if std::mem::take(&mut self.hidden) {
            self.ring.memory.publish(self.ring.head);
        }
        self.pending() > 0
    }

    /// After a sync: tells the words of slots that the kernel has taken. Returns how many
    /// slots it has passed.
    pub(super) fn settle(&mut self, taken: &mut dyn FnMut(u64)) -> Result<u32, RingFault> {
        let first = self.first();
        let passed = self.ring.refresh()?;
        for ahead in 0..passed {
            let index = after(first, ahead, self.ring.memory.slots()) as usize;
            let word = std::mem::replace(&mut self.words[index], VOID);
            if word != VOID {
                taken(word);
            }
        }
        Ok(passed)
    }

    /// The word of the slot that the kernel is to look at next, unless it is void or there
    /// is none.
    pub(super) fn stuck(&self) -> Option<u64> {
        let word = self.words[self.first() as usize];
        (self.pending() > 0 && word != VOID).then_some(word)
    }

    /// Decides about each slot that the kernel has not done with, from the first on.
    /// Between syncs nobody but us looks at those that it has not taken.
    pub(super) fn withdraw(&mut self, mut judge: impl FnMut(u64) -> Verdict) {
        let first = self.first();
        for ahead in 0..self.pending() {
            let index = after(first, ahead, self.ring.memory.slots());
            let word = &mut self.words[index as usize];
            if *word == VOID {
                continue;
            }
            match judge(*word) {
                Verdict::Keep => {}
                Verdict::Forget => *word = VOID,
                Verdict::Void => {
                    *word = VOID;
                    let slot = self.ring.memory.slot(index);
                    self.ring.memory.set_slot(index, Slot { len: 0, ..slot });
                }
            }
        }
    }
}
