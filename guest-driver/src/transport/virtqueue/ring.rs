//! The driver's side of a split virtqueue (VIRTIO 1.2 section 2.7), for both
//! directions, over frame buffers of a fixed size.
//!
//! ```text
//!  mapping: | descriptors (16 B each) | available | used | buffer 0 | buffer 1 | ...
//! ```
//!
//! Descriptor `i` always names buffer `i`, so a chain is one descriptor and
//! cannot be malformed by us. The device is believed in nothing: a used entry
//! must name a descriptor that is in flight, and a length that fits.
//!
//! # Memory ordering
//!
//! Four words are shared while both sides run.
//!
//! - `avail.idx` is written by us. Descriptors, ring entries and frame bytes
//!   are written before it, and the store is a *release*: a device that sees
//!   the new index sees what it stands for.
//! - `used.idx` is written by the device. The load is an *acquire*, for the
//!   same reason in the other direction.
//! - `avail_event` is the device's wish to be kicked. We store `avail.idx` and
//!   then load `avail_event`; the device stores `avail_event` and then loads
//!   `avail.idx`. Each side needs its store to be visible before its load, or
//!   both could miss the other and sleep. Release and acquire do not order a
//!   store before a later load; the sequentially consistent fence in
//!   [`Ring::publish`] does, with the device's own.
//! - `used_event` is our wish to be called, and the same argument with the
//!   sides swapped is the fence in [`Ring::arm`], after which the caller must
//!   look once more before it sleeps.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU16, Ordering, fence};

use crate::sys::Mapping;

/// The device may write to the buffer (VIRTIO 1.2 section 2.7.5).
const DESC_F_WRITE: u16 = 2;
const DESC_LEN: usize = 16;
const USED_ELEM_LEN: usize = 8;
/// Flags and index, before the entries of either ring.
const RING_HEAD_LEN: usize = 4;
/// Parts start at cache lines, so that the two sides do not share any.
const ALIGN: usize = 64;
/// A mapping starts and ends at a page.
const PAGE: usize = 4096;

/// What the device has written into the used ring cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RingError {
    /// More entries than descriptors are in flight.
    #[error("the used index runs ahead of the descriptors in flight")]
    Index,
    /// A descriptor that does not exist or is not in flight.
    #[error("a used entry names a descriptor that is not in flight")]
    Descriptor,
    /// More bytes than the buffer has.
    #[error("a used entry has more bytes than its buffer")]
    Length,
}

/// Who writes to the buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// The device: a receive queue.
    Receive,
    /// The driver: a transmit queue.
    Transmit,
}

/// Where the parts of a ring are, in bytes from the start of its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Entries; a power of two.
    pub(crate) size: u16,
    /// Bytes of one frame buffer.
    pub(crate) buffer_len: usize,
    /// The available ring.
    pub(crate) avail: usize,
    /// The used ring.
    pub(crate) used: usize,
    /// Buffer 0.
    pub(crate) buffers: usize,
    /// Bytes of the whole, a multiple of the page size.
    pub(crate) len: usize,
}

impl Layout {
    pub(crate) const fn new(size: u16, buffer_len: usize) -> Layout {
        assert!(size.is_power_of_two() && size <= 32_768);
        let buffer_len = buffer_len.next_multiple_of(ALIGN);
        let entries = size as usize;
        let avail = entries * DESC_LEN;
        // After the entries of either ring comes the other side's event word.
        let used = (avail + RING_HEAD_LEN + entries * 2 + 2).next_multiple_of(ALIGN);
        let used_end = used + RING_HEAD_LEN + entries * USED_ELEM_LEN + 2;
        let buffers = used_end.next_multiple_of(ALIGN);
        let len = (buffers + entries * buffer_len).next_multiple_of(PAGE);
        Layout { size, buffer_len, avail, used, buffers, len }
    }
}

/// One queue.
#[derive(Debug)]
pub(crate) struct Ring {
    mapping: Mapping,
    layout: Layout,
    direction: Direction,
    /// Descriptors that are not in flight.
    free: Vec<u16>,
    in_flight: Box<[bool]>,
    /// Index of the next available entry to write.
    next_avail: u16,
    /// What the device was last shown of it.
    published: u16,
    /// Index of the next used entry to take.
    next_used: u16,
    /// The device's index when last looked at.
    seen_used: u16,
}

impl Ring {
    /// Sets up the ring in `mapping`, which has [`Layout::len`] bytes and which
    /// the device finds at `address`. Nobody else writes to it yet.
    pub(crate) fn new(
        mapping: Mapping,
        layout: Layout,
        address: u64,
        direction: Direction,
    ) -> Ring {
        assert!(mapping.len() >= layout.len, "the ring's memory is too small");
        let mut ring = Ring {
            mapping,
            layout,
            direction,
            free: (0..layout.size).rev().collect(),
            in_flight: vec![false; usize::from(layout.size)].into(),
            next_avail: 0,
            published: 0,
            next_used: 0,
            seen_used: 0,
        };
        let flags = if direction == Direction::Receive { DESC_F_WRITE } else { 0 };
        for id in 0..layout.size {
            let buffer = layout.buffers + usize::from(id) * layout.buffer_len;
            let at = usize::from(id) * DESC_LEN;
            ring.write(at, address + buffer as u64);
            ring.write(at + 8, layout.buffer_len as u32);
            ring.write(at + 12, flags);
            ring.write(at + 14, 0u16);
        }
        ring.disarm();
        ring
    }

    fn write<T: Copy>(&mut self, at: usize, value: T) {
        debug_assert!(at + size_of::<T>() <= self.layout.len && at.is_multiple_of(align_of::<T>()));
        // SAFETY: all offsets come from the layout, which lies in the mapping
        // (checked in `new`) and aligns its parts to cache lines. The device
        // does not read the word before an index or event word shows it.
        unsafe { self.mapping.as_ptr().add(at).cast::<T>().write_volatile(value) }
    }

    fn read_u32(&self, at: usize) -> u32 {
        debug_assert!(at + 4 <= self.layout.len && at.is_multiple_of(4));
        // SAFETY: as in `write`. Volatile, because the device could write at
        // any moment: the word is read once and then judged.
        unsafe { self.mapping.as_ptr().add(at).cast::<u32>().read_volatile() }
    }

    fn shared(&self, at: usize) -> &AtomicU16 {
        debug_assert!(at + 2 <= self.layout.len && at.is_multiple_of(2));
        // SAFETY: as in `write`; the word is only ever accessed atomically by
        // us, and lives as long as the mapping, which `self` owns.
        unsafe { AtomicU16::from_ptr(self.mapping.as_ptr().add(at).cast()) }
    }

    fn avail_idx(&self) -> &AtomicU16 {
        self.shared(self.layout.avail + 2)
    }

    fn used_idx(&self) -> &AtomicU16 {
        self.shared(self.layout.used + 2)
    }

    fn used_event(&self) -> &AtomicU16 {
        self.shared(self.layout.avail + RING_HEAD_LEN + usize::from(self.layout.size) * 2)
    }

    fn avail_event(&self) -> &AtomicU16 {
        let entries = usize::from(self.layout.size) * USED_ELEM_LEN;
        self.shared(self.layout.used + RING_HEAD_LEN + entries)
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.layout.size - 1))
    }

    fn buffer_at(&self, id: u16) -> usize {
        self.layout.buffers + usize::from(id) * self.layout.buffer_len
    }

    /// Descriptors that are not in flight.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// Descriptors that the device has.
    pub(crate) fn in_flight(&self) -> usize {
        usize::from(self.layout.size) - self.free.len()
    }

    /// Lends the buffer of a free descriptor to `fill` and queues the bytes
    /// that it wrote; none queues nothing. `false` if no descriptor is free.
    /// Takes effect with [`Ring::publish`].
    pub(crate) fn push(&mut self, fill: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let Some(id) = self.free.pop() else {
            return false;
        };
        let at = self.buffer_at(id);
        // SAFETY: the buffer lies in the mapping (`new`), and its descriptor is
        // free, so the device neither reads nor writes it.
        let bytes = unsafe {
            let start = self.mapping.as_ptr().add(at);
            std::slice::from_raw_parts_mut(start, self.layout.buffer_len)
        };
        let len = fill(bytes).min(self.layout.buffer_len);
        if len == 0 {
            self.free.push(id);
            return true;
        }
        self.write(usize::from(id) * DESC_LEN + 8, len as u32);
        self.queue(id);
        true
    }

    /// Queues all free descriptors for the device to write to. Takes effect
    /// with [`Ring::publish`].
    pub(crate) fn refill(&mut self) {
        debug_assert_eq!(self.direction, Direction::Receive);
        while let Some(id) = self.free.pop() {
            self.queue(id);
        }
    }

    fn queue(&mut self, id: u16) {
        self.in_flight[usize::from(id)] = true;
        let entry = self.layout.avail + RING_HEAD_LEN + self.slot(self.next_avail) * 2;
        self.write(entry, id);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Shows the device all that was queued. Returns whether it wants a kick.
    #[must_use = "the device may sleep until it is kicked"]
    pub(crate) fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return false;
        }
        self.avail_idx().store(new, Ordering::Release);
        self.published = new;
        // Store `avail.idx` before loading `avail_event`: see the module.
        fence(Ordering::SeqCst);
        passed(self.avail_event().load(Ordering::Relaxed), old, new)
    }

    /// Looks at the device's index. Returns the used entries that
    /// [`Ring::pop`] can take.
    pub(crate) fn refresh(&mut self) -> Result<usize, RingError> {
        let used = self.used_idx().load(Ordering::Acquire);
        let count = usize::from(used.wrapping_sub(self.next_used));
        if count > self.in_flight() {
            return Err(RingError::Index);
        }
        self.seen_used = used;
        Ok(count)
    }

    /// Takes the next used entry that [`Ring::refresh`] saw, and frees its
    /// descriptor. Shows what the device wrote: nothing on a transmit queue.
    pub(crate) fn pop(&mut self) -> Result<Option<&[u8]>, RingError> {
        if self.next_used == self.seen_used {
            return Ok(None);
        }
        let at = self.layout.used + RING_HEAD_LEN + self.slot(self.next_used) * USED_ELEM_LEN;
        let (id, len) = (self.read_u32(at), self.read_u32(at + 4));
        let in_flight = usize::try_from(id).ok().and_then(|id| self.in_flight.get_mut(id));
        match in_flight {
            Some(in_flight) if *in_flight => *in_flight = false,
            _ => return Err(RingError::Descriptor),
        }
        let id = id as u16;
        self.next_used = self.next_used.wrapping_add(1);
        self.free.push(id);
        let len = match self.direction {
            Direction::Receive if len as usize > self.layout.buffer_len => {
                return Err(RingError::Length);
            }
            Direction::Receive => len as usize,
            Direction::Transmit => 0,
        };
        let at = self.buffer_at(id);
        // SAFETY: the buffer lies in the mapping and `len` in the buffer. The
        // device has given it back, and gets it again only through `&mut self`,
        // which this borrow excludes.
        let bytes =
            unsafe { std::slice::from_raw_parts(self.mapping.as_ptr().add(at).cast_const(), len) };
        Ok(Some(bytes))
    }

    /// Asks to be called at the next used entry. Look with [`Ring::refresh`]
    /// before sleeping: one may have come just before.
    pub(crate) fn arm(&mut self) {
        self.used_event().store(self.next_used, Ordering::Relaxed);
        // Store `used_event` before loading `used.idx`: see the module.
        fence(Ordering::SeqCst);
    }

    /// Asks not to be called, by naming the entry that is the farthest away.
    pub(crate) fn disarm(&mut self) {
        self.used_event().store(self.next_used.wrapping_sub(1), Ordering::Relaxed);
    }
}

/// Whether an index that moved from `old` to `new` has passed `event`
/// (VIRTIO 1.2 section 2.7.7.2, `vring_need_event`).
fn passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
