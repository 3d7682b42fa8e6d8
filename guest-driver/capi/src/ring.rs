//! The slots that C walks, and whose they are.
//!
//! C has a pointer to all of this and may write to it while a port works. So nothing here
//! is lent as a reference, `head` is read once and judged, and what the slots say is never
//! read back: which buffer lies in which slot is the port's own record.

#![allow(unsafe_code)]

use std::ptr;

use crate::error::{Failure, PASTE_EINVAL};
use crate::types::{paste_ring, paste_slot};

/// A ring in memory of its own.
#[derive(Debug)]
pub(crate) struct Ring {
    shared: *mut paste_ring,
    slots: *mut [paste_slot],
    num: u32,
    /// What was behind `head` at the last look has been settled.
    head: u32,
    tail: u32,
}

// SAFETY: the memory belongs to the ring and not to a thread; C's promise is to use a port
// on one thread at a time.
unsafe impl Send for Ring {}

impl Ring {
    /// An empty ring of `num` slots, at least two.
    pub(crate) fn new(num: u32) -> Ring {
        let slots: Box<[paste_slot]> = vec![paste_slot::EMPTY; num as usize].into();
        let slots = Box::into_raw(slots);
        let shared = Box::new(paste_ring { slot: slots.cast(), num_slots: num, head: 0, tail: 0 });
        Ring { shared: Box::into_raw(shared), slots, num, head: 0, tail: 0 }
    }

    /// What C walks. Good as long as the ring.
    pub(crate) fn shared(&self) -> *mut paste_ring {
        self.shared
    }

    /// Takes `head` as C has moved it.
    pub(crate) fn head(&self) -> Result<u32, Failure> {
        // SAFETY: the ring's own memory, of plain integers; read once.
        let head = unsafe { ptr::read_volatile(&raw const (*self.shared).head) };
        if head < self.num && self.distance(self.head, head) <= self.len() {
            return Ok(head);
        }
        Err(Failure::new(
            PASTE_EINVAL,
            format!("head is {head}: move it from {} up to tail, {}", self.head, self.tail),
        ))
    }

    /// The next slot that C has passed, up to its `head`.
    pub(crate) fn settle(&mut self, head: u32) -> Option<u32> {
        let slot = self.head;
        (slot != head).then(|| {
            self.head = self.next(slot);
            slot
        })
    }

    /// Slots that are C's.
    pub(crate) fn len(&self) -> u32 {
        self.distance(self.head, self.tail)
    }

    /// Whether one more fits. One stays empty, so that a full ring is not an empty one.
    pub(crate) fn has_room(&self) -> bool {
        self.next(self.tail) != self.head
    }

    /// Where the next slot goes.
    pub(crate) fn tail(&self) -> u32 {
        self.tail
    }

    /// Writes a slot. There must be room.
    pub(crate) fn push(&mut self, slot: paste_slot) {
        assert!(self.has_room(), "a slot was lost");
        let next = self.next(self.tail);
        // SAFETY: `tail` is below the number of slots, all in the ring's own memory.
        unsafe {
            self.slots.cast::<paste_slot>().add(self.tail as usize).write(slot);
            ptr::write_volatile(&raw mut (*self.shared).tail, next);
        }
        self.tail = next;
    }

    fn next(&self, slot: u32) -> u32 {
        if slot + 1 == self.num { 0 } else { slot + 1 }
    }

    fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from { to - from } else { to + self.num - from }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: both came from boxes in `new`, and are freed here alone.
        unsafe {
            drop(Box::from_raw(self.shared));
            drop(Box::from_raw(self.slots));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_head(ring: &Ring, head: u32) {
        // SAFETY: as C does it.
        unsafe { (*ring.shared()).head = head };
    }

    fn settled(ring: &mut Ring) -> Vec<u32> {
        let head = ring.head().unwrap();
        std::iter::from_fn(|| ring.settle(head)).collect()
    }

    #[test]
    fn slots_go_round_and_one_stays_empty() {
        let mut ring = Ring::new(4);
        for round in 0..10 {
            assert_eq!(ring.len(), 0);
            let start = ring.tail();
            for n in 1..=3 {
                assert!(ring.has_room());
                ring.push(paste_slot { kind: n, ..paste_slot::EMPTY });
                assert_eq!(ring.len(), n);
            }
            assert!(!ring.has_room());
            set_head(&ring, (start + 1) % 4);
            assert_eq!(settled(&mut ring), [start]);
            assert_eq!(settled(&mut ring), []);
            // SAFETY: within the ring, and nobody writes.
            let kind = unsafe { (*(*ring.shared()).slot.add(((start + 1) % 4) as usize)).kind };
            assert_eq!(kind, 2, "round {round}");
            set_head(&ring, ring.tail());
            assert_eq!(settled(&mut ring).len(), 2);
        }
    }

    #[test]
    fn head_is_believed_within_its_slots_only() {
        let mut ring = Ring::new(4);
        for head in [1, 3, 4, u32::MAX] {
            set_head(&ring, head);
            assert_eq!(ring.head().unwrap_err().code, PASTE_EINVAL, "{head}");
        }
        set_head(&ring, 0);
        ring.push(paste_slot::EMPTY);
        ring.push(paste_slot::EMPTY);
        set_head(&ring, 1);
        assert_eq!(settled(&mut ring), [0]);
        // Neither back nor beyond.
        for head in [0, 3] {
            set_head(&ring, head);
            assert!(ring.head().is_err(), "{head}");
        }
        set_head(&ring, 2);
        assert_eq!(settled(&mut ring), [1]);
    }
}
