//! The kernel's side, for real: `/dev/netmap`, its ioctls, and memory to be laid out in.
//! All that is `unsafe` about them, and all that differs between systems, is here: the seam.

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "freebsd")]
use freebsd as system;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as system;

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use self::system::{NIOCRXSYNC, NIOCTXSYNC, Pages};
use super::abi::NIOCCTRL;
use super::area::{Area, Keep};
use super::kernel::{Body, Descriptor, Kernel, Request, Shared};

#[cfg(test)]
pub(super) use self::system::{bind, is_bound};
pub(super) use self::system::{link, parameter};

/// The device of netmap's module.
const PATH: &str = "/dev/netmap";

/// The system that this process runs on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Os;

/// A descriptor of `/dev/netmap`.
#[derive(Debug)]
pub(super) struct Netmap(OwnedFd);

impl Kernel for Os {
    type Descriptor = Netmap;

    fn open(&self) -> Result<Netmap, Errno> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        rustix::fs::open(PATH, flags, Mode::empty()).map(Netmap)
    }

    fn reserve(&self, private: usize, shared: &Shared<'_>) -> Result<Area, String> {
        reserve(private, shared)
    }
}

impl AsFd for Netmap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Descriptor for Netmap {
    fn control(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let Request { header, body, extmem, offsets } = request;
        header.body = match body {
            Body::Register(register) => ptr::from_mut::<_>(*register) as u64,
            Body::PortInfo(info) => ptr::from_mut::<_>(*info) as u64,
            Body::Attach(attach) => ptr::from_mut::<_>(*attach) as u64,
            Body::FdReg(socket) => ptr::from_mut::<_>(*socket) as u64,
        };
        // A list, each naming the next.
        let offsets = offsets.as_mut().map_or(0, |offsets| ptr::from_mut::<_>(*offsets) as u64);
        header.options = match extmem {
            Some(extmem) => {
                extmem.option.next = offsets;
                ptr::from_mut::<_>(*extmem) as u64
            }
            None => offsets,
        };
        // SAFETY: the argument is a header of API 14, whose pointers name live exclusive
        // borrows of what the header's type says belongs to it; the kernel keeps none.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), NIOCCTRL as _, ptr::from_mut(header)) })
    }

    fn map(&self, len: usize) -> Result<Area, Errno> {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the place, so nothing that exists is replaced.
        let start =
            unsafe { rustix::mm::mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, &self.0, 0) }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(Errno::NOMEM)?;
        // SAFETY: just mapped, at a page's start, and unmapped when dropped.
        Ok(unsafe { Area::new(start, len, Box::new(Mapped { start, len })) })
    }

    fn txsync(&self) -> Result<(), Errno> {
        self.sync(NIOCTXSYNC)
    }

    fn rxsync(&self) -> Result<(), Errno> {
        self.sync(NIOCRXSYNC)
    }
}

impl Netmap {
    fn sync(&self, code: u64) -> Result<(), Errno> {
        // SAFETY: neither ioctl has an argument. What the kernel writes to lies in
        // memory that was mapped for it, or is read by raw pointers alone.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), code as _, ptr::null_mut::<c_void>()) })
    }
}

fn check(result: libc::c_int) -> Result<(), Errno> {
    if result < 0 {
        let error = std::io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(())
}

/// What was mapped, until it is dropped.
struct Mapped {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an address belongs to no thread.
unsafe impl Send for Mapped {}

impl Keep for Mapped {}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: exactly what was mapped, and nobody can use it any more. An error
        // would mean that it was not mapped, which cannot be.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Memory for a port, with the buffers of a region behind its own, where netmap takes each
/// page of a range for itself.
pub(super) fn reserve(private: usize, shared: &Shared<'_>) -> Result<Area, String> {
    let pages = Pages::of(shared.fd)?;
    if shared.buffer_size > pages.size() {
        return Err(format!(
            "buffers of {} bytes need physically contiguous memory: keep the region on hugetlbfs \
             or device DAX, or set `buffer_size = {}` or less",
            shared.buffer_size,
            pages.size()
        ));
    }
    if !shared.offset.is_multiple_of(pages.size() as u64) {
        return Err(
            "a region on huge pages needs 66 MiB or more for its buffers to begin at one".into()
        );
    }
    pages.map_behind(private, shared)
}

/// What the host's network knows of an interface.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// Bytes of the largest packet.
    pub(super) mtu: u32,
    /// Somebody brought it up.
    pub(super) up: bool,
    /// It takes frames for other addresses than its own.
    pub(super) promiscuous: bool,
    /// Its address.
    pub(super) mac: [u8; 6],
    /// The kernel's number of it, which none after it has.
    pub(super) index: u32,
}
