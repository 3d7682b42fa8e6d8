//! FreeBSD: shared memory objects with seals, what a file is kept on, and segments of
//! bhyve's. There is no device DAX and no DAX file here: what is durable is so by a file's
//! sync.

use std::ffi::c_void;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr;

use rustix::fs::{FallocateFlags, FileType, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::shape::{HugePages, SegmentError, Shape, ShapeError};

/// The smallest `si_code` of a signal that somebody sent (`SI_USER`, `sys/signal.h`).
const SI_USER: libc::c_int = 0x10001;

/// Makes an anonymous file of `len` bytes that can neither shrink nor grow
/// again, so that whoever receives its descriptor cannot cut it. The kernel finds
/// large pages by itself; a reserve of them to take from is not known here.
pub(crate) fn memory_file(name: &str, len: u64, pages: HugePages) -> Result<OwnedFd, Errno> {
    if pages != HugePages::No {
        return Err(Errno::OPNOTSUPP);
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = rustix::fs::memfd_create(name, flags)?;
    rustix::fs::ftruncate(&fd, len)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// Reserves the storage of a file's first `len` bytes, so that a full file
/// system shows now and not as a fault later. A file system that cannot
/// reserve, as ZFS, is not an error.
pub(crate) fn reserve(fd: BorrowedFd<'_>, len: u64) -> Result<(), Errno> {
    match rustix::fs::fallocate(fd, FallocateFlags::empty(), 0, len) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::NODEV) => Ok(()),
        other => other,
    }
}

/// Whether a file has no storage: it is gone when the machine is.
pub(crate) fn is_volatile(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    match rustix::fs::fstatfs(fd) {
        Ok(fs) => Ok(is_memory(&fs.f_fstypename)),
        // A shared memory object is on no file system.
        Err(Errno::INVAL) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// Whether the file system of this name keeps its files in memory.
fn is_memory(name: &[libc::c_char]) -> bool {
    let name = name.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8);
    name.eq(*b"tmpfs")
}

/// Never: nothing here is durable once it has left the CPU's cache.
pub(super) fn is_dax(_fd: BorrowedFd<'_>, _page: usize) -> bool {
    false
}

/// Maps `len` bytes of a file, shared, where the kernel chooses.
pub(super) fn map_shared(
    len: usize,
    prot: ProtFlags,
    fd: BorrowedFd<'_>,
    offset: u64,
) -> Result<*mut c_void, Errno> {
    // SAFETY: the kernel chooses the place, so nothing that exists is replaced.
    unsafe { rustix::mm::mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, fd, offset) }
}

/// Has the kernel begin to write out these bytes of a file: it cannot be asked for
/// that here, and the sync does it all.
pub(crate) fn begin_sync(_fd: BorrowedFd<'_>, _at: u64, _len: u64) {}

/// Names this start of the system: another one means that memory was lost in
/// between. `None` if the system does not tell: FreeBSD 14 does, once it has random
/// numbers (`sysctl_bootid` in sys/kern/kern_mib.c).
pub(crate) fn boot_id() -> Option<[u8; 16]> {
    let mut id = [0u8; 16];
    let mut len = id.len();
    // SAFETY: the name ends with a zero; `id` has room for the `len` bytes that the
    // kernel may write; nothing is set.
    let result = unsafe {
        libc::sysctlbyname(
            c"kern.boot_id".as_ptr(),
            id.as_mut_ptr().cast(),
            &raw mut len,
            ptr::null(),
            0,
        )
    };
    (result == 0 && len == id.len()).then_some(id)
}

/// How a file is mapped.
pub(super) fn shape(fd: BorrowedFd<'_>) -> Result<Shape, ShapeError> {
    let stat = rustix::fs::fstat(fd)
        .map_err(|errno| ShapeError::System { call: "fstat", source: errno.into() })?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice {
        return Err(ShapeError::NotDax);
    }
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    Ok(Shape { len, page: rustix::param::page_size(), is_device: false })
}

/// How a segment of `len` bytes is mapped, which somebody else has made: a device in
/// /dev/vmm.io, where vmm(4) shows what `vm_create_devmem` made. Its length cannot be
/// asked for; the kernel refuses to map what is beyond it (`devmem_mmap_single`).
pub(crate) fn segment_shape(fd: BorrowedFd<'_>, len: u64) -> Result<Shape, SegmentError> {
    let stat = rustix::fs::fstat(fd)
        .map_err(|errno| SegmentError::System { call: "fstat", source: errno.into() })?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
        return Err(SegmentError::NotMemory);
    }
    let mut name = [0 as libc::c_char; 256];
    // SAFETY: `name` has room for as many bytes as are said, and the result points to it.
    unsafe {
        libc::devname_r(stat.st_rdev, libc::S_IFCHR, name.as_mut_ptr(), name.len() as libc::c_int)
    };
    let mut name = name.iter().map(|&byte| byte as u8);
    if !b"vmm.io/".iter().all(|&byte| name.next() == Some(byte)) {
        return Err(SegmentError::NotMemory);
    }
    Ok(Shape { len, page: rustix::param::page_size(), is_device: true })
}

/// Whether a signal with this `si_code` is a fault, and no one's message.
pub(super) fn is_fault(code: libc::c_int) -> bool {
    (1..SI_USER).contains(&code)
}

/// Where the calling thread's `errno` is, for a signal handler to put back.
pub(super) fn errno() -> *mut libc::c_int {
    // SAFETY: always valid to call; the address is the thread's own.
    unsafe { libc::__error() }
}
