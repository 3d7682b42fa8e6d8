//! The four rings of an AF_XDP socket, mapped from the kernel (`net/xdp/xsk_queue.h`).
//!
//! A ring has one producer and one consumer; one of them is the kernel. Each side
//! stores its own index and reads the other's, once a batch: a load-acquire of the
//! peer's index before the entries are touched, a store-release of the own index after.
//!
//! ```text
//!           ours to produce               ours to consume
//!   fill, TX: [free room]   RX, completion: [entries]
//!             producer --> consumer         consumer --> producer
//! ```
//!
//! The kernel's index is believed only as far as the ring is long: one that says more
//! is [`Insane`], and nothing is read or written by it. Entries are read once, into
//! private memory; what they say is judged by the caller.

use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::net::xdp::{XdpDesc, XdpRingFlags, XdpRingOffset};

/// The kernel's index of a ring says what cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a ring of {len} entries has {claimed} by the kernel's index")]
pub(in super::super) struct Insane {
    /// Entries of the ring.
    pub len: u32,
    /// Entries that would be in it.
    pub claimed: u32,
}

/// Memory that the kernel shares with us: a mapping, unmapped when dropped.
#[derive(Debug)]
struct Shared {
    base: NonNull<u8>,
    len: usize,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped, and nobody can use it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// What both kinds of ring have: where its indices, flags and entries lie.
#[derive(Debug)]
struct Ring<T> {
    ours: NonNull<AtomicU32>,
    peers: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    /// Entries; a power of two.
    len: u32,
    /// Our index, of which the kernel's copy is only ever written.
    index: u32,
    _memory: Shared,
    _entries: PhantomData<T>,
}

// SAFETY: the mapping belongs to no thread; who has the ring is the only one of this
// process that touches it.
unsafe impl<T: Send> Send for Ring<T> {}

/// A ring into which we put entries for the kernel: fill and TX.
#[derive(Debug)]
pub(in super::super) struct Producer<T>(Ring<T>);

/// A ring from which we take entries of the kernel's: RX and completion.
#[derive(Debug)]
pub(in super::super) struct Consumer<T>(Ring<T>);

/// What a ring may hold: plain numbers, any bits of which are a value.
pub(in super::super) trait Entry: Copy + Send {}
impl Entry for u64 {}
impl Entry for XdpDesc {}

impl<T: Entry> Ring<T> {
    /// Maps the ring of `len` entries that lies at `place` of the socket.
    fn map(
        socket: BorrowedFd<'_>,
        place: u64,
        offsets: &XdpRingOffset,
        len: u32,
        we_produce: bool,
    ) -> Result<Ring<T>, Errno> {
        let flags = offsets.flags.ok_or(Errno::NOSYS)?;
        let (ours, peers) = match we_produce {
            true => (offsets.producer, offsets.consumer),
            false => (offsets.consumer, offsets.producer),
        };
        let entries = u64::from(len) * size_of::<T>() as u64;
        let total = offsets.desc.checked_add(entries).ok_or(Errno::OVERFLOW)?;
        // The kernel's own numbers, but a mistake in them would be a write anywhere.
        let inside = [ours, peers, flags].iter().all(|at| at % 4 == 0 && at + 4 <= total);
        let aligned = offsets.desc.is_multiple_of(align_of::<T>() as u64);
        if !len.is_power_of_two() || !inside || !aligned {
            return Err(Errno::PROTO);
        }
        let total = usize::try_from(total).map_err(|_| Errno::OVERFLOW)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let map = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: the kernel chooses the place, so nothing that exists is replaced.
        let base = unsafe { rustix::mm::mmap(ptr::null_mut(), total, prot, map, socket, place)? };
        let base = NonNull::new(base.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let memory = Shared { base, len: total };
        // SAFETY: each offset was found to lie in the mapping, with what is there.
        unsafe { Ok(Ring::at(memory, base, [ours, peers, flags, offsets.desc], len)) }
    }

    /// # Safety
    /// At each of `offsets` from `base` lie an index, another, the flags, and `len`
    /// entries, aligned, for as long as `memory` lives.
    unsafe fn at(memory: Shared, base: NonNull<u8>, offsets: [u64; 4], len: u32) -> Ring<T> {
        let [ours, peers, flags, entries] = offsets.map(|offset| {
            // SAFETY: the caller's promise.
            unsafe { base.add(offset as usize) }
        });
        let mut ring = Ring {
            ours: ours.cast(),
            peers: peers.cast(),
            flags: flags.cast(),
            entries: entries.cast(),
            len,
            index: 0,
            _memory: memory,
            _entries: PhantomData,
        };
        ring.index = ring.ours().load(Ordering::Relaxed);
        ring
    }

    fn ours(&self) -> &AtomicU32 {
        // SAFETY: lies in the mapping, which lives as long as this; the kernel writes
        // it as an aligned word of 32 bits too.
        unsafe { self.ours.as_ref() }
    }

    fn peers(&self) -> &AtomicU32 {
        // SAFETY: as above.
        unsafe { self.peers.as_ref() }
    }

    fn needs_wakeup(&self) -> bool {
        // SAFETY: as above.
        let flags = unsafe { self.flags.as_ref() }.load(Ordering::Relaxed);
        flags & XdpRingFlags::XDP_RING_NEED_WAKEUP.bits() != 0
    }

    fn entry(&self, index: u32) -> *mut T {
        // SAFETY: `len` entries lie there, and `len` is a power of two.
        unsafe { self.entries.as_ptr().add((index & (self.len - 1)) as usize) }
    }

    fn insane(&self, claimed: u32) -> Insane {
        Insane { len: self.len, claimed }
    }
}

impl<T: Entry> Producer<T> {
    /// Maps the ring of `len` entries at `place` of the socket.
    pub(in super::super) fn map(
        socket: BorrowedFd<'_>,
        place: u64,
        offsets: &XdpRingOffset,
        len: u32,
    ) -> Result<Producer<T>, Errno> {
        Ring::map(socket, place, offsets, len, true).map(Producer)
    }

    /// Entries that the kernel has not taken yet.
    pub(in super::super) fn waiting(&self) -> Result<u32, Insane> {
        // Acquire: an entry is written anew only after the kernel has read it.
        let taken = self.0.peers().load(Ordering::Acquire);
        let waiting = self.0.index.wrapping_sub(taken);
        if waiting > self.0.len { Err(self.0.insane(waiting)) } else { Ok(waiting) }
    }

    /// Entries that can be written now.
    pub(in super::super) fn room(&self) -> Result<u32, Insane> {
        self.waiting().map(|waiting| self.0.len - waiting)
    }

    /// Writes the entry that is `ahead` places behind the last one published. There
    /// must be room for it.
    pub(in super::super) fn write(&mut self, ahead: u32, entry: T) {
        let at = self.0.entry(self.0.index.wrapping_add(ahead));
        // SAFETY: an aligned place in the mapping. That the kernel might read it now,
        // were it in breach of its own protocol, is why it is not a reference.
        unsafe { ptr::write_volatile(at, entry) };
    }

    /// Hands the first `count` written entries to the kernel.
    pub(in super::super) fn publish(&mut self, count: u32) {
        self.0.index = self.0.index.wrapping_add(count);
        // Release: the entries are there before the index says so.
        self.0.ours().store(self.0.index, Ordering::Release);
    }

    /// Whether the kernel waits to be told of new entries.
    pub(in super::super) fn needs_wakeup(&self) -> bool {
        self.0.needs_wakeup()
    }
}

impl<T: Entry> Consumer<T> {
    /// Maps the ring of `len` entries at `place` of the socket.
    pub(in super::super) fn map(
        socket: BorrowedFd<'_>,
        place: u64,
        offsets: &XdpRingOffset,
        len: u32,
    ) -> Result<Consumer<T>, Errno> {
        Ring::map(socket, place, offsets, len, false).map(Consumer)
    }

    /// Entries that the kernel has put there.
    pub(in super::super) fn available(&self) -> Result<u32, Insane> {
        // Acquire: the entries are read after the index that speaks of them.
        let put = self.0.peers().load(Ordering::Acquire);
        let available = put.wrapping_sub(self.0.index);
        if available > self.0.len { Err(self.0.insane(available)) } else { Ok(available) }
    }

    /// Reads the entry that is `ahead` places behind the last one released, once.
    pub(in super::super) fn read(&self, ahead: u32) -> T {
        let at = self.0.entry(self.0.index.wrapping_add(ahead));
        // SAFETY: an aligned place in the mapping, any bits of which are a value.
        // Volatile: what is judged is what was read, and it is not read again.
        unsafe { ptr::read_volatile(at) }
    }

    /// Gives the first `count` entries back to the kernel.
    pub(in super::super) fn release(&mut self, count: u32) {
        self.0.index = self.0.index.wrapping_add(count);
        // Release: the entries were read before the index says so.
        self.0.ours().store(self.0.index, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
