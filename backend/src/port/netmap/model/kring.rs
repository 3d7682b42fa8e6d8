//! The kernel's side of one ring (`netmap_kring`): what it believes, the checks before a
//! sync, and the repair of a ring whose indices are bad.

use std::collections::VecDeque;

use super::super::abi::{
    RESERVED_BUFFERS, RING_CUR, RING_HEAD, RING_SLOTS, RING_TAIL, SLOT_LEN, Slot,
};
use super::memory::Mem;

/// One ring.
#[derive(Debug, Default)]
pub(super) struct Kring {
    /// Where the ring lies; `None` until somebody binds it.
    pub(super) at: Option<usize>,
    pub(super) ring_object: u32,
    pub(super) slots: u32,
    pub(super) tx: bool,
    pub(super) rhead: u32,
    pub(super) rcur: u32,
    pub(super) rtail: u32,
    pub(super) hwcur: u32,
    pub(super) hwtail: u32,
    pub(super) users: u32,
    pub(super) exclusive: bool,
    pub(super) offset_mask: u64,
    pub(super) offset_max: u64,
    /// What the NIC was told of each slot: the buffer, and where frames begin.
    pub(super) programmed: Vec<(u32, u64)>,
    /// Frames that the NIC has not read yet: their first slot and their number of slots.
    pub(super) in_flight: VecDeque<(u32, u32)>,
    /// The far end's word on this ring, for pipes.
    pub(super) pipe_tail: u32,
    /// Times that the ring had to be repaired.
    pub(super) reinits: u32,
}

impl Kring {
    pub(super) fn new(slots: u32, tx: bool) -> Kring {
        let tail = if tx { slots - 1 } else { 0 };
        Kring { slots, tx, rtail: tail, hwtail: tail, pipe_tail: tail, ..Kring::default() }
    }

    pub(super) fn next(&self, index: u32) -> u32 {
        if index + 1 == self.slots { 0 } else { index + 1 }
    }

    pub(super) fn prev(&self, index: u32) -> u32 {
        if index == 0 { self.slots - 1 } else { index - 1 }
    }

    fn slot_at(&self, index: u32) -> usize {
        self.at.expect("bound") + RING_SLOTS + index as usize * SLOT_LEN
    }

    pub(super) fn slot(&self, mem: &Mem, index: u32) -> Slot {
        mem.raw.read(self.slot_at(index))
    }

    pub(super) fn set_slot(&self, mem: &Mem, index: u32, slot: Slot) {
        mem.raw.write(self.slot_at(index), &slot);
    }

    fn field(&self, mem: &Mem, field: usize) -> u32 {
        mem.raw.read(self.at.expect("bound") + field)
    }

    fn set_field(&self, mem: &Mem, field: usize, value: u32) {
        mem.raw.write(self.at.expect("bound") + field, &value);
    }

    /// `nm_get_offset`.
    pub(super) fn offset(&self, slot: &Slot) -> u64 {
        (slot.ptr & self.offset_mask).min(self.offset_max)
    }

    /// Whether `index` lies from `from` to `to`, both included, round the ring.
    fn within(from: u32, index: u32, to: u32) -> bool {
        if from <= to { from <= index && index <= to } else { index >= from || index <= to }
    }

    /// `nm_txsync_prologue` and `nm_rxsync_prologue`: what the user says, if it can be;
    /// otherwise the ring is repaired.
    pub(super) fn prologue(&mut self, mem: &Mem) -> bool {
        let (head, cur) = (self.field(mem, RING_HEAD), self.field(mem, RING_CUR));
        let (first, last) = if self.tx {
            (self.rhead, self.rtail)
        } else {
            (self.rcur, self.rhead) = (cur, head);
            (self.hwcur, self.hwtail)
        };
        let good = head < self.slots
            && cur < self.slots
            && Kring::within(first, head, last)
            && Kring::within(head, cur, last);
        if !good {
            self.reinit(mem);
            return false;
        }
        (self.rhead, self.rcur) = (head, cur);
        if self.field(mem, RING_TAIL) != self.rtail {
            self.set_field(mem, RING_TAIL, self.rtail);
        }
        true
    }

    /// `netmap_ring_reinit`.
    fn reinit(&mut self, mem: &Mem) {
        self.reinits += 1;
        for index in 0..self.slots {
            let slot = self.slot(mem, index);
            if !(RESERVED_BUFFERS..mem.buffers.total()).contains(&slot.buf_idx) {
                self.set_slot(mem, index, Slot { buf_idx: 0, len: 0, ..slot });
            } else if usize::from(slot.len) > mem.buffers.size {
                self.set_slot(mem, index, Slot { len: 0, ..slot });
            }
        }
        let indices = [RING_HEAD, RING_CUR, RING_TAIL].map(|field| self.field(mem, field));
        (self.rhead, self.rcur, self.rtail) = (indices[0], indices[1], indices[2]);
        if indices.iter().any(|&index| index >= self.slots) {
            (self.rhead, self.rcur, self.rtail) = (self.hwcur, self.hwcur, self.hwtail);
            self.set_field(mem, RING_HEAD, self.hwcur);
            self.set_field(mem, RING_CUR, self.hwcur);
            self.set_field(mem, RING_TAIL, self.hwtail);
        }
    }

    /// `nm_sync_finalize`.
    pub(super) fn finalize(&mut self, mem: &Mem) {
        self.rtail = self.hwtail;
        self.set_field(mem, RING_TAIL, self.hwtail);
    }

    /// Slots that the user filled and the kernel has not taken.
    pub(super) fn pending(&self) -> u32 {
        (self.rhead + self.slots - self.hwcur) % self.slots
    }

    /// Slots that a frame can be received into.
    pub(super) fn space(&self) -> u32 {
        let used = (self.hwtail + self.slots - self.hwcur) % self.slots;
        self.slots - 1 - used
    }
}
