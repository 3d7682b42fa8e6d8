//! The memory of an AF_XDP socket (UMEM): private pages of this process in front, the
//! buffers of the guest's region behind, in one range of addresses.
//!
//! ```text
//!   one reservation
//!   | private: heads of frames | the region's file, shared with the guest: buffers |
//!   0                          buffers_at                                          len
//! ```
//!
//! The NIC reads heads from memory that the guest does not have, and payload where it
//! lies, by descriptors of one socket.

use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// Private memory is a multiple of this, and the reservation begins at one, so that a
/// file of huge pages can be mapped behind it.
const ALIGN: usize = 2 << 20;

/// `f_type` of hugetlbfs (`linux/magic.h`).
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Where the buffers lie in the region's file.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Extent<'a> {
    /// The file.
    pub file: BorrowedFd<'a>,
    /// Where the first buffer starts, in bytes.
    pub offset: u64,
    /// Bytes of all buffers.
    pub len: usize,
    /// Bytes of the pages that the file can be mapped in, a power of two.
    pub page: usize,
}

/// Bytes of the pages that a mapping of a file is made of.
pub(in super::super) fn page_size(file: BorrowedFd<'_>) -> Result<usize, Errno> {
    let fs = rustix::fs::fstatfs(file)?;
    if fs.f_type as u64 == HUGETLBFS_MAGIC {
        return usize::try_from(fs.f_bsize).map_err(|_| Errno::OVERFLOW);
    }
    Ok(rustix::param::page_size())
}

/// The mapping. Dropping it unmaps; what a socket has registered stays pinned until
/// the socket is closed.
#[derive(Debug)]
pub(in super::super) struct Umem {
    reserved: NonNull<u8>,
    reserved_len: usize,
    base: NonNull<u8>,
    private_len: usize,
    buffers_at: u64,
    len: u64,
}

// SAFETY: the mapping belongs to no thread. What is written through it is its private
// part alone, by its one owner.
unsafe impl Send for Umem {}

impl Umem {
    /// Maps at least `private_len` bytes of private memory, and the buffers behind.
    /// EINVAL if the file's pages are too large for that.
    pub(in super::super) fn map(private_len: usize, extent: &Extent<'_>) -> Result<Umem, Errno> {
        let page = extent.page;
        if !page.is_power_of_two() || page > ALIGN {
            return Err(Errno::INVAL);
        }
        let private_len = private_len.checked_next_multiple_of(ALIGN).ok_or(Errno::OVERFLOW)?;
        // What is mapped of the file is whole pages of it.
        let lead = (extent.offset % page as u64) as usize;
        let mapped =
            extent.len.checked_add(lead).and_then(|len| len.checked_next_multiple_of(page));
        let len = mapped.and_then(|mapped| mapped.checked_add(private_len));
        let (Some(mapped), Some(len)) = (mapped, len) else { return Err(Errno::OVERFLOW) };
        let reserved_len = len.checked_add(ALIGN).ok_or(Errno::OVERFLOW)?;
        let none = ProtFlags::empty();
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses the place, so nothing that exists is replaced.
        let reserved =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), reserved_len, none, flags)? };
        let reserved = NonNull::new(reserved.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let skip = reserved.as_ptr().align_offset(ALIGN);
        // SAFETY: `skip < ALIGN`, by which more was reserved than is used.
        let base = unsafe { reserved.add(skip) };
        let umem = Umem {
            reserved,
            reserved_len,
            base,
            private_len,
            buffers_at: (private_len + lead) as u64,
            len: (private_len + lead + extent.len) as u64,
        };
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        let at = base.as_ptr();
        // SAFETY: both ranges lie in the reservation, which is ours alone and in which
        // nothing is mapped yet; dropping `umem` unmaps it whole.
        unsafe {
            let flags = MapFlags::PRIVATE | MapFlags::FIXED;
            rustix::mm::mmap_anonymous(at.cast(), private_len, prot, flags)?;
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            let offset = extent.offset - lead as u64;
            rustix::mm::mmap(at.add(private_len).cast(), mapped, prot, flags, extent.file, offset)?;
        }
        Ok(umem)
    }

    /// Its address, for registering it.
    pub(in super::super) fn address(&self) -> u64 {
        self.base.as_ptr().addr() as u64
    }

    /// Bytes of it, to the end of the last buffer.
    pub(in super::super) fn len(&self) -> u64 {
        self.len
    }

    /// Where the first buffer starts in it.
    pub(in super::super) fn buffers_at(&self) -> u64 {
        self.buffers_at
    }

    /// Copies `parts`, one behind the other, to `offset` of the private memory.
    ///
    /// # Panics
    /// If they do not all fit: the caller has chosen the place.
    pub(in super::super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let fits = offset.checked_add(bytes.len()).is_some_and(|end| end <= self.private_len);
        assert!(fits, "{} bytes at {offset} are not private", bytes.len());
        // SAFETY: the range lies in the private part, of which there is no reference;
        // `bytes` is other memory. The NIC does not read a place that is being written,
        // or sends a frame of its own making: it is not memory that Rust speaks of.
        unsafe {
            ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(offset), bytes.len())
        };
    }

    /// The private memory at `offset`, to be filled with `len` bytes by what copies out
    /// of a region.
    ///
    /// # Panics
    /// If they are not all private.
    pub(in super::super) fn private_mut(&mut self, offset: usize, len: usize) -> &mut [u8] {
        let fits = offset.checked_add(len).is_some_and(|end| end <= self.private_len);
        assert!(fits, "{len} bytes at {offset} are not private");
        // SAFETY: the range lies in the private part, which is initialised (with zeros)
        // and lent by this exclusive borrow alone. The kernel and the NIC only read it,
        // and only what was handed to them.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(offset), len) }
    }
}

impl Drop for Umem {
    fn drop(&mut self) {
        // SAFETY: exactly what was reserved, and nobody can use it any more.
        let _ = unsafe { rustix::mm::munmap(self.reserved.as_ptr().cast(), self.reserved_len) };
    }
}
