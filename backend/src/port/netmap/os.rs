//! The kernel's side, for real: `/dev/netmap`, its ioctls, and memory to be laid out in.
//! All that is `unsafe` about them, and all that differs between systems, is here.

use std::ffi::c_void;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::abi::{NIOCCTRL, NIOCRXSYNC, NIOCTXSYNC};
use super::area::{Area, Keep};
use super::kernel::{Body, Descriptor, Kernel, Request, Shared};
#[cfg(target_os = "linux")]
use crate::sys::adjoined::{self, Adjoined, Extent, Pages};

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

#[cfg(target_os = "linux")]
impl Keep for Adjoined {}

/// On Linux, netmap takes each page of a range for itself, whatever is mapped there.
#[cfg(target_os = "linux")]
pub(super) fn reserve(private: usize, shared: &Shared<'_>) -> Result<Area, String> {
    /// `f_type` of hugetlbfs (`linux/magic.h`).
    const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
    let small = rustix::param::page_size();
    let stat = rustix::fs::fstat(shared.fd).map_err(|e| format!("fstat failed: {e}"))?;
    let is_device =
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice;
    let statfs = rustix::fs::fstatfs(shared.fd).map_err(|e| format!("fstatfs failed: {e}"))?;
    let on_huge = statfs.f_type as u64 == HUGETLBFS_MAGIC;
    let page = match (is_device, on_huge) {
        (true, _) => adjoined::ALIGN,
        (false, true) => usize::try_from(statfs.f_bsize).unwrap_or(adjoined::ALIGN).max(small),
        (false, false) => small,
    };
    if shared.buffer_size > page {
        return Err(format!(
            "buffers of {} bytes need physically contiguous memory: keep the region on hugetlbfs \
             or device DAX, or set `buffer_size = {page}` or less",
            shared.buffer_size
        ));
    }
    if !shared.offset.is_multiple_of(page as u64) {
        return Err(
            "a region on huge pages needs 66 MiB or more for its buffers to begin at one".into()
        );
    }

    // The private part ends where a huge page does. Rings need pages that follow each
    // other physically.
    let lead = private.next_multiple_of(adjoined::ALIGN);
    let extent =
        Extent { file: shared.fd, offset: shared.offset, len: shared.len.next_multiple_of(page) };
    let memory = Adjoined::map(lead, Pages::Huge, &extent)
        .map_err(|e| format!("the region cannot be mapped once more: {e}"))?;
    let start = memory.start();
    // SAFETY: just mapped for writing, and private. Every page is there before netmap
    // asks for it.
    unsafe { start.write_bytes(0, lead) };
    // SAFETY: the private part's last bytes and the region's buffers behind them, which
    // stay mapped as long as the area lives; at a page's start, as `private` is whole
    // pages.
    Ok(unsafe { Area::new(start.add(lead - private), private + shared.len, Box::new(memory)) })
}

/// On FreeBSD, netmap takes the whole object that is mapped at an address, and lays
/// itself out from that object's beginning: a region would be written over.
#[cfg(not(target_os = "linux"))]
pub(super) fn reserve(_private: usize, _shared: &Shared<'_>) -> Result<Area, String> {
    Err("on this system netmap would lay its rings out over the region's head".into())
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

/// A number that the module was loaded with; `None` where there is no telling.
pub(super) fn parameter(name: &str) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/sys/module/netmap/parameters/{name}")).ok()?;
    text.trim().parse().ok()
}

/// Looks an interface up; `None` where there is none, or no telling.
#[cfg(target_os = "linux")]
pub(super) fn link(name: &str) -> Option<Link> {
    let read = |file: &str| std::fs::read_to_string(format!("/sys/class/net/{name}/{file}")).ok();
    let flags = read("flags")?;
    let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).ok()?;
    let address = read("address")?;
    let mut mac = [0; 6];
    for (byte, text) in mac.iter_mut().zip(address.trim().split(':')) {
        *byte = u8::from_str_radix(text, 16).ok()?;
    }
    Some(Link {
        mtu: read("mtu")?.trim().parse().ok()?,
        index: read("ifindex")?.trim().parse().ok()?,
        up: flags & libc::IFF_UP as u32 != 0,
        promiscuous: flags & libc::IFF_PROMISC as u32 != 0,
        mac,
    })
}

/// Looks an interface up; `None` where there is none, or no telling.
#[cfg(target_os = "freebsd")]
pub(super) fn link(name: &str) -> Option<Link> {
    let mut list = ptr::null_mut();
    // SAFETY: writes where the list begins, and nothing on a failure.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return None;
    }
    let mut next = list;
    let mut found = None;
    // SAFETY: an entry of the list, which lives until it is freed below, or null.
    while let Some(entry) = unsafe { next.as_ref() } {
        next = entry.ifa_next;
        // SAFETY: the name of an entry ends with a zero.
        let named = unsafe { std::ffi::CStr::from_ptr(entry.ifa_name) }.to_bytes();
        if named == name.as_bytes() && found.is_none() {
            found = link_address(entry);
        }
    }
    // SAFETY: made above, and used no more.
    unsafe { libc::freeifaddrs(list) };
    found
}

/// What an entry says that holds an interface's Ethernet address (getifaddrs(3)).
#[cfg(target_os = "freebsd")]
fn link_address(entry: &libc::ifaddrs) -> Option<Link> {
    if entry.ifa_addr.is_null() || entry.ifa_data.is_null() {
        return None;
    }
    // SAFETY: not null, and so an address, whose family all have at one place.
    if i32::from(unsafe { (*entry.ifa_addr).sa_family }) != libc::AF_LINK {
        return None;
    }
    // SAFETY: the family says that these are what they are.
    let (address, data) = unsafe {
        let address = entry.ifa_addr.cast::<libc::sockaddr_dl>().read_unaligned();
        (address, entry.ifa_data.cast::<libc::if_data>().read_unaligned())
    };
    let start = usize::from(address.sdl_nlen);
    let bytes = address.sdl_data.get(start..start + usize::from(address.sdl_alen))?;
    let mut mac = [0; 6];
    if bytes.len() != mac.len() {
        return None;
    }
    for (to, from) in mac.iter_mut().zip(bytes) {
        *to = *from as u8;
    }
    Some(Link {
        mtu: data.ifi_mtu,
        up: entry.ifa_flags & libc::IFF_UP as u32 != 0,
        promiscuous: entry.ifa_flags & libc::IFF_PROMISC as u32 != 0,
        mac,
        index: address.sdl_index.into(),
    })
}
