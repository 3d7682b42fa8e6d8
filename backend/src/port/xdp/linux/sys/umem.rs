//! The memory of an AF_XDP socket (UMEM): private pages of this process in front, the
//! buffers of the guest's region behind, in one range of addresses.
//!
//! ```text
//!   | private: heads of frames | the region's file, shared with the guest: buffers |
//!   0                          buffers_at                                          len
//! ```
//!
//! The NIC reads heads from memory that the guest does not have, and payload where it
//! lies, by descriptors of one socket.

use std::os::fd::BorrowedFd;
use std::ptr;

use rustix::io::Errno;

use crate::sys::linux::adjoined::{self, ALIGN, Adjoined, Pages};

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
    memory: Adjoined,
    private_len: usize,
    buffers_at: u64,
    len: u64,
}

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
        let mapped = mapped.ok_or(Errno::OVERFLOW)?;
        let pages = adjoined::Extent {
            file: extent.file,
            offset: extent.offset - lead as u64,
            len: mapped,
        };
        let memory = Adjoined::map(private_len, Pages::Small, &pages)?;
        Ok(Umem {
            memory,
            private_len,
            buffers_at: (private_len + lead) as u64,
            len: (private_len + lead + extent.len) as u64,
        })
    }

    fn base(&self) -> *mut u8 {
        self.memory.start().as_ptr()
    }

    /// Its address, for registering it.
    pub(in super::super) fn address(&self) -> u64 {
        self.base().addr() as u64
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
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base().add(offset), bytes.len()) };
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
        unsafe { std::slice::from_raw_parts_mut(self.base().add(offset), len) }
    }
}
