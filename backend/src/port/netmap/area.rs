//! Memory that is shared with the kernel, and rings in it: all that is `unsafe` about
//! reading and writing them.
//!
//! Nothing gives out a reference into the memory. The indices of a ring are loaded and
//! stored as atomics; a slot is read once, as a whole, and what is judged is the copy.

use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering, compiler_fence};

use paste_pmem::{Buffers, RangeError};
use zerocopy::FromBytes;

use super::abi::{
    RING_CUR, RING_FLAGS, RING_HEAD, RING_SLOTS, RING_TAIL, RING_TIME, Ring, SLOT_LEN, Slot,
};

/// What keeps memory in place until it is dropped.
pub(super) trait Keep: Send {}

/// A range of mapped memory.
pub(super) struct Area {
    start: NonNull<u8>,
    len: usize,
    _keep: Box<dyn Keep>,
}

// SAFETY: the memory belongs to no thread, and nothing refers into it but by the raw
// pointers of this module; `Keep` is `Send`.
unsafe impl Send for Area {}

impl Area {
    /// A range that stays mapped, readable and writable, until `keep` is dropped.
    ///
    /// # Safety
    /// `start` is aligned to 128 bytes and valid for `len` bytes as long as `keep`
    /// lives.
    pub(super) unsafe fn new(start: NonNull<u8>, len: usize, keep: Box<dyn Keep>) -> Area {
        Area { start, len, _keep: keep }
    }

    /// Where the memory begins, for the kernel.
    pub(super) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes of the memory.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        // SAFETY: the result lies in the range, or one past its end.
        (end <= self.len).then(|| unsafe { self.start.as_ptr().add(offset) })
    }

    /// Copies a value out; `None` if it is not all in the memory.
    pub(super) fn read<T: FromBytes>(&self, offset: usize) -> Option<T> {
        let from = self.at(offset, size_of::<T>())?;
        // SAFETY: valid for the value's bytes, which may be any.
        let value = unsafe { ptr::read_unaligned(from.cast::<T>()) };
        // What is judged is what was copied: no second read in its place.
        compiler_fence(Ordering::SeqCst);
        Some(value)
    }

    /// Copies bytes in; `false` if they do not all fit.
    #[must_use]
    pub(super) fn write_bytes(&self, offset: usize, bytes: &[u8]) -> bool {
        let Some(to) = self.at(offset, bytes.len()) else { return false };
        // SAFETY: valid for these bytes; `bytes` is private memory, so nothing overlaps.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        true
    }

    /// Copies bytes out; `false` if they are not all in the memory.
    #[must_use]
    pub(super) fn read_bytes(&self, offset: usize, out: &mut [u8]) -> bool {
        let Some(from) = self.at(offset, out.len()) else { return false };
        // SAFETY: as in `write_bytes`.
        unsafe { ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        true
    }

    /// Copies `len` bytes at `from` into a buffer of a region.
    pub(super) fn copy_out(
        &self,
        from: usize,
        buffers: &Buffers,
        (buf, offset): (u32, usize),
        len: usize,
    ) -> Result<(), RangeError> {
        let outside = RangeError { buf, offset, len };
        let from = self.at(from, len).ok_or(outside)?;
        let to = buffers.as_mut_ptr(buf, offset, len)?;
        // SAFETY: both are valid for `len` bytes. They may overlap, or be written by
        // others meanwhile: then some mix of bytes is copied.
        unsafe { ptr::copy(from, to, len) };
        Ok(())
    }

    /// Copies `len` bytes of a buffer of a region to `to`.
    pub(super) fn copy_in(
        &self,
        to: usize,
        buffers: &Buffers,
        (buf, offset): (u32, usize),
        len: usize,
    ) -> Result<(), RangeError> {
        let outside = RangeError { buf, offset, len };
        let to = self.at(to, len).ok_or(outside)?;
        let from = buffers.as_ptr(buf, offset, len)?;
        // SAFETY: as in `copy_out`.
        unsafe { ptr::copy(from, to, len) };
        Ok(())
    }

    /// The ring at `offset`, if it is a whole and aligned one. Whoever asks keeps the
    /// area for as long as the ring is used.
    pub(super) fn ring(&self, offset: usize, slots: u32) -> Option<RingMemory> {
        let len = RING_SLOTS.checked_add(usize::try_from(slots).ok()?.checked_mul(SLOT_LEN)?)?;
        let at = NonNull::new(self.at(offset, len)?)?;
        let aligned = at.as_ptr().addr().is_multiple_of(align_of::<Ring>());
        aligned.then_some(RingMemory { at, slots })
    }
}

impl fmt::Debug for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Area").field("len", &self.len).finish_non_exhaustive()
    }
}

/// A ring in an [`Area`], which its user keeps alive beside it.
#[derive(Debug)]
pub(super) struct RingMemory {
    at: NonNull<u8>,
    slots: u32,
}

// SAFETY: as for `Area`.
unsafe impl Send for RingMemory {}

impl RingMemory {
    fn index(&self, field: usize) -> &AtomicU32 {
        // SAFETY: the field lies in the ring, which was found whole and aligned, and
        // stays mapped while its user lives. Both sides treat it as an atomic.
        unsafe { AtomicU32::from_ptr(self.at.as_ptr().add(field).cast()) }
    }

    /// Slots of the ring.
    pub(super) fn slots(&self) -> u32 {
        self.slots
    }

    /// Where our side of the ring begins, as it is found at registration.
    pub(super) fn head(&self) -> u32 {
        self.index(RING_HEAD).load(Ordering::Relaxed)
    }

    /// How far the kernel has come. What it wrote before is visible after this.
    pub(super) fn tail(&self) -> u32 {
        self.index(RING_TAIL).load(Ordering::Acquire)
    }

    /// Shows the kernel how far we have come, and everything written before.
    pub(super) fn publish(&self, head: u32) {
        self.index(RING_CUR).store(head, Ordering::Relaxed);
        self.index(RING_HEAD).store(head, Ordering::Release);
    }

    /// Sets flags of the ring.
    pub(super) fn set_flags(&self, flags: u32) {
        self.index(RING_FLAGS).store(flags, Ordering::Relaxed);
    }

    /// When the kernel looked at the ring last, in ns since the Unix epoch; `None` if
    /// that is no time.
    pub(super) fn time(&self) -> Option<u64> {
        let mut words = [0_i64; 2];
        // SAFETY: the field lies in the ring, as in `index`.
        unsafe {
            let from = self.at.as_ptr().add(RING_TIME).cast::<i64>();
            words[0] = ptr::read_volatile(from);
            words[1] = ptr::read_volatile(from.add(1));
        }
        let (seconds, micros) = (u64::try_from(words[0]).ok()?, u64::try_from(words[1]).ok()?);
        let ns = seconds.checked_mul(1_000_000_000)?.checked_add(micros.checked_mul(1_000)?)?;
        (seconds > 0 && micros < 1_000_000).then_some(ns)
    }

    fn slot_at(&self, index: u32) -> Option<*mut Slot> {
        // SAFETY: a slot below their number lies in the ring.
        (index < self.slots).then(|| unsafe {
            self.at.as_ptr().add(RING_SLOTS + index as usize * SLOT_LEN).cast::<Slot>()
        })
    }

    /// Reads a slot, once; an empty one if there is no such slot.
    pub(super) fn slot(&self, index: u32) -> Slot {
        // SAFETY: the slot lies in the ring and is aligned as the ring is.
        self.slot_at(index).map_or(Slot::default(), |at| unsafe { ptr::read_volatile(at) })
    }

    /// Writes a slot.
    pub(super) fn set_slot(&self, index: u32, slot: Slot) {
        if let Some(at) = self.slot_at(index) {
            // SAFETY: as in `slot`; the slots ahead of the kernel are ours to write.
            unsafe { ptr::write_volatile(at, slot) };
        }
    }
}
