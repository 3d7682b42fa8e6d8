//! Linux: memory files with seals and huge pages, and what a file is kept on.

mod dax;

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr;

use rustix::fs::{FallocateFlags, FileType, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::shape::{HugePages, SegmentError, Shape, ShapeError};
use crate::uuid::Uuid;

/// `f_type` of hugetlbfs (`linux/magic.h`).
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
/// Of tmpfs, which memory files are on too, and of ramfs.
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

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

/// Whether a file has no storage: it is gone when the machine is.
pub(crate) fn is_volatile(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let kind = rustix::fs::fstatfs(fd)?.f_type as u64;
    Ok(matches!(kind, HUGETLBFS_MAGIC | TMPFS_MAGIC | RAMFS_MAGIC))
}

/// Whether stores to a shared mapping of this file are durable once they have
/// left the CPU's cache: asked of the kernel by mapping a page, of `page` bytes,
/// with `MAP_SYNC`.
pub(super) fn is_dax(fd: BorrowedFd<'_>, page: usize) -> bool {
    // Nothing is stored, and a file that is only looked at is open for no more.
    let prot = ProtFlags::READ;
    let flags = MapFlags::SHARED_VALIDATE | MapFlags::SYNC;
    // SAFETY: the kernel chooses the place, so nothing that exists is replaced;
    // nobody knows the mapping but the lines below, which remove it.
    unsafe {
        match rustix::mm::mmap(ptr::null_mut(), page, prot, flags, fd, 0) {
            Ok(at) => {
                let _ = rustix::mm::munmap(at, page);
                true
            }
            Err(_) => false,
        }
    }
}

/// Maps `len` bytes of a file, shared, where the kernel chooses.
pub(super) fn map_shared(
    len: usize,
    prot: ProtFlags,
    fd: BorrowedFd<'_>,
    offset: u64,
) -> Result<*mut c_void, Errno> {
    let map = |flags| {
        // SAFETY: the kernel chooses the place, so nothing that exists is replaced.
        unsafe { rustix::mm::mmap(ptr::null_mut(), len, prot, flags, fd, offset) }
    };
    // On a DAX file, a page is then there for stores only when its place in the file is
    // durable. Others refuse it.
    map(MapFlags::SHARED_VALIDATE | MapFlags::SYNC).or_else(|_| map(MapFlags::SHARED))
}

/// Has the kernel begin to write out these bytes of a file.
pub(crate) fn begin_sync(fd: BorrowedFd<'_>, at: u64, len: u64) {
    let (Ok(at), Ok(len)) = (i64::try_from(at), i64::try_from(len)) else { return };
    // A hint: what fails here will fail again in the sync.
    // SAFETY: takes no pointer.
    unsafe { libc::sync_file_range(fd.as_raw_fd(), at, len, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Names this start of the system: another one means that memory was lost in
/// between. `None` if the system does not tell.
pub(crate) fn boot_id() -> Option<[u8; 16]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    text.trim().parse().ok().map(|Uuid(bytes)| bytes)
}

/// How a file is mapped.
pub(super) fn shape(fd: BorrowedFd<'_>) -> Result<Shape, ShapeError> {
    let failed = |call| move |errno: Errno| ShapeError::System { call, source: errno.into() };
    let stat = rustix::fs::fstat(fd).map_err(failed("fstat"))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice {
        let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        return dax::shape(Path::new("/sys"), number);
    }
    let fs = rustix::fs::fstatfs(fd).map_err(failed("fstatfs"))?;
    let mut page = rustix::param::page_size();
    if fs.f_type as u64 == HUGETLBFS_MAGIC {
        page = page.max(usize::try_from(fs.f_bsize).unwrap_or(0));
    }
    Ok(Shape { len: u64::try_from(stat.st_size).unwrap_or(0), page, is_device: false })
}

/// How a segment of `len` bytes is mapped, which somebody else has made: here, a memory
/// file that can no longer shrink.
pub(crate) fn segment_shape(fd: BorrowedFd<'_>, len: u64) -> Result<Shape, SegmentError> {
    // Whatever is no memory file has no seals.
    let seals = rustix::fs::fcntl_get_seals(fd).map_err(|_| SegmentError::NotMemory)?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(SegmentError::Unsealed);
    }
    match shape(fd) {
        Ok(shape) if shape.len == len => Ok(shape),
        Ok(shape) => Err(SegmentError::Size { have: shape.len, want: len }),
        Err(ShapeError::System { call, source }) => Err(SegmentError::System { call, source }),
        Err(_) => Err(SegmentError::NotMemory),
    }
}

/// Whether a signal with this `si_code` is a fault, and no one's message.
pub(super) fn is_fault(code: libc::c_int) -> bool {
    code > 0
}

/// Where the calling thread's `errno` is, for a signal handler to put back.
pub(super) fn errno() -> *mut libc::c_int {
    // SAFETY: always valid to call; the address is the thread's own.
    unsafe { libc::__errno_location() }
}
