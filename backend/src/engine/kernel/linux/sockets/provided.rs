//! The buffers that the kernel may fill: the ring of `IORING_REGISTER_PBUF_RING`
//! (`struct io_uring_buf_ring` of `linux/io_uring.h`). All that is `unsafe` about its
//! memory is here.
//!
//! The ring lies in memory of this process's own, and the kernel only reads it. It
//! names a buffer of the region by address, and an identifier that it gives back with
//! what it received: here the place in a table, which says the buffer. An identifier
//! that is not under way is recognised.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::lists::NIL;

/// The ring, and which buffer each identifier stands for.
#[derive(Debug)]
pub(super) struct Provided {
    ring: NonNull<BufRingEntry>,
    /// Entries of the ring, a power of two.
    entries: u16,
    /// The next place.
    tail: u16,
    /// The same, as the kernel sees it.
    published: u16,
    /// By identifier.
    bufs: Box<[u32]>,
    /// Identifiers that are not under way.
    free: Vec<u16>,
}

// SAFETY: the mapping is this value's own, and nothing in it belongs to a thread.
unsafe impl Send for Provided {}

impl Provided {
    /// Entries that a ring can have.
    pub(super) const ENTRIES_MAX: u16 = 1024;

    /// An empty ring of `entries`, a power of two up to [`Provided::ENTRIES_MAX`].
    pub(super) fn new(entries: u16) -> io::Result<Provided> {
        debug_assert!(entries.is_power_of_two() && entries <= Provided::ENTRIES_MAX);
        let len = usize::from(entries) * size_of::<BufRingEntry>();
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping, at an address of the kernel's choice; it is all zeros,
        // which is a valid entry, and aligned to a page, as the kernel wants it.
        let ring = unsafe { mmap_anonymous(std::ptr::null_mut(), len, prot, flags)? };
        let ring = NonNull::new(ring.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Provided {
            ring,
            entries,
            tail: 0,
            published: 0,
            bufs: vec![NIL; usize::from(entries)].into(),
            free: (0..entries).rev().collect(),
        })
    }

    /// Where it lies, for its registration.
    pub(super) fn address(&self) -> u64 {
        self.ring.as_ptr().addr() as u64
    }

    /// Entries that it has.
    pub(super) fn entries(&self) -> u16 {
        self.entries
    }

    /// Buffers that the kernel has.
    pub(super) fn len(&self) -> u16 {
        self.entries - self.free.len() as u16
    }

    /// Places for further buffers.
    pub(super) fn room(&self) -> u16 {
        self.free.len() as u16
    }

    /// Adds a buffer, of which `len` bytes at `data` are to be filled. The kernel sees it
    /// after [`Provided::publish`]. False if there is no room.
    pub(super) fn push(&mut self, buf: u32, data: *mut u8, len: u32) -> bool {
        let Some(id) = self.free.pop() else { return false };
        self.bufs[usize::from(id)] = buf;
        let place = usize::from(self.tail & (self.entries - 1));
        // SAFETY: the place lies in the mapping. The kernel reads an entry only between
        // the tail that published it and the head that it keeps to itself, and as at most
        // `entries` identifiers are under way, this one is behind that head. The reserved
        // field, which in the first entry is the tail, is not touched by these calls.
        unsafe {
            let entry = &mut *self.ring.as_ptr().add(place);
            entry.set_addr(data.addr() as u64);
            entry.set_len(len);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
        true
    }

    /// Lets the kernel see what was pushed.
    pub(super) fn publish(&mut self) {
        if self.tail == self.published {
            return;
        }
        self.published = self.tail;
        // SAFETY: the first entry is valid, and its last field is the ring's tail, aligned
        // and only ever written here; the release orders it behind the entries.
        unsafe {
            let tail = BufRingEntry::tail(self.ring.as_ptr()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    /// The buffer that the kernel names by this identifier. `None` if it has no such.
    pub(super) fn take(&mut self, id: u16) -> Option<u32> {
        let buf = self.bufs.get_mut(usize::from(id)).filter(|buf| **buf != NIL)?;
        self.free.push(id);
        Some(std::mem::replace(buf, NIL))
    }

    /// The buffers that the kernel had, once it has been told to leave them.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = u32> {
        self.free.clear();
        self.free.extend(0..self.entries);
        self.bufs.iter_mut().filter_map(|buf| {
            let buf = std::mem::replace(buf, NIL);
            (buf != NIL).then_some(buf)
        })
    }
}

impl Drop for Provided {
    fn drop(&mut self) {
        let len = usize::from(self.entries) * size_of::<BufRingEntry>();
        // SAFETY: it was mapped with this length, and nobody uses it any more: the ring
        // that it was registered with is dropped before it. A failure leaves it mapped.
        let _ = unsafe { munmap(self.ring.as_ptr().cast(), len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_come_back_once() {
        let mut provided = Provided::new(4).unwrap();
        let mut bytes = [0u8; 8];
        for buf in 10..14 {
            assert!(provided.push(buf, bytes.as_mut_ptr(), 8));
        }
        provided.publish();
        assert!(!provided.push(14, bytes.as_mut_ptr(), 8), "it is full");
        assert_eq!((provided.len(), provided.room()), (4, 0));
        assert_eq!(provided.take(2), Some(12));
        assert_eq!(provided.take(2), None, "not under way any more");
        assert_eq!(provided.take(4), None, "never was");
        assert!(provided.push(20, bytes.as_mut_ptr(), 8));
        assert_eq!(provided.take(2), Some(20));
        assert_eq!(provided.drain().collect::<Vec<_>>(), [10, 11, 13]);
        assert_eq!((provided.len(), provided.take(0)), (0, None));
    }
}
