//! Linux: memory files with seals and huge pages.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;

/// Which pages back a region that has no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HugePages {
    /// Pages of the usual size.
    #[default]
    No,
    /// Pages of 2 MiB from the kernel's reserve (`vm.nr_hugepages`).
    TwoMiB,
}

/// `f_type` of hugetlbfs (`linux/magic.h`).
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// Makes an anonymous file of `len` bytes that can neither shrink nor grow
/// again, so that whoever receives its descriptor cannot cut it.
pub(crate) fn memory_file(name: &str, len: u64, pages: HugePages) -> Result<OwnedFd, Errno> {
    let huge = match pages {
        HugePages::No => MemfdFlags::empty(),
        HugePages::TwoMiB => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
    };
    let fd =
        rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING | huge)?;
    rustix::fs::ftruncate(&fd, len)?;
    reserve(fd.as_fd(), len)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// Reserves the storage of a file's first `len` bytes, so that a full file
/// system shows now and not as a fault later. A file system that cannot
/// reserve is not an error.
pub(crate) fn reserve(fd: BorrowedFd<'_>, len: u64) -> Result<(), Errno> {
    match rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, len) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        other => other,
    }
}

/// Bytes of the pages that a mapping of `fd` is made of, where they are larger
/// than the system's.
pub(super) fn page_size(fd: BorrowedFd<'_>) -> Result<usize, Errno> {
    let fs = rustix::fs::fstatfs(fd)?;
    if fs.f_type as u64 == HUGETLBFS_MAGIC {
        return usize::try_from(fs.f_bsize).map_err(|_| Errno::OVERFLOW);
    }
    Ok(rustix::param::page_size())
}

/// Where the calling thread's `errno` is, for a signal handler to put back.
pub(super) fn errno() -> *mut libc::c_int {
    // SAFETY: always valid to call; the address is the thread's own.
    unsafe { libc::__errno_location() }
}
