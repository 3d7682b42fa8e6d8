//! Linux.

#[cfg(test)]
use std::io;
#[cfg(test)]
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

use rustix::fs::FileType;

use super::Link;
use crate::port::netmap::area::{Area, Keep};
use crate::port::netmap::kernel::Shared;
use crate::sys::linux::adjoined::{self, Adjoined, Extent};

/// `_IO('i', 148)`.
pub(super) const NIOCTXSYNC: u64 = 0x6994;
/// `_IO('i', 149)`.
pub(super) const NIOCRXSYNC: u64 = 0x6995;

impl Keep for Adjoined {}

/// The pages of a region's file. Netmap takes each for itself, whatever is mapped beside
/// it.
pub(super) struct Pages(usize);

impl Pages {
    pub(super) fn of(file: BorrowedFd<'_>) -> Result<Pages, String> {
        /// `f_type` of hugetlbfs (`linux/magic.h`).
        const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
        let small = rustix::param::page_size();
        let stat = rustix::fs::fstat(file).map_err(|e| format!("fstat failed: {e}"))?;
        let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        let statfs = rustix::fs::fstatfs(file).map_err(|e| format!("fstatfs failed: {e}"))?;
        let on_huge = statfs.f_type as u64 == HUGETLBFS_MAGIC;
        Ok(Pages(match (is_device, on_huge) {
            (true, _) => adjoined::ALIGN,
            (false, true) => usize::try_from(statfs.f_bsize).unwrap_or(adjoined::ALIGN).max(small),
            (false, false) => small,
        }))
    }

    /// Bytes of one, which follow each other physically.
    pub(super) fn size(&self) -> usize {
        self.0
    }

    /// Maps the buffers of the region once more, behind `private` bytes of this process.
    pub(super) fn map_behind(&self, private: usize, shared: &Shared<'_>) -> Result<Area, String> {
        // The private part ends where a huge page does. Rings need pages that follow each
        // other physically.
        let lead = private.next_multiple_of(adjoined::ALIGN);
        let len = shared.len.next_multiple_of(self.0);
        let extent = Extent { file: shared.fd, offset: shared.offset, len };
        let memory = Adjoined::map(lead, adjoined::Pages::Huge, &extent)
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
}

/// A number that the module was loaded with; `None` where there is no telling.
pub(in crate::port::netmap) fn parameter(name: &str) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/sys/module/netmap/parameters/{name}")).ok()?;
    text.trim().parse().ok()
}

/// Looks an interface up; `None` where there is none, or no telling.
pub(in crate::port::netmap) fn link(name: &str) -> Option<Link> {
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

/// Has a socket receive from one interface alone.
#[cfg(test)]
pub(in crate::port::netmap) fn bind(socket: BorrowedFd<'_>, interface: &str) -> io::Result<()> {
    // SAFETY: an open socket, and as many bytes as are said.
    let bound = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            interface.as_ptr().cast(),
            interface.len() as libc::socklen_t,
        )
    };
    if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the socket receives from one interface alone.
#[cfg(test)]
pub(in crate::port::netmap) fn is_bound(socket: BorrowedFd<'_>) -> bool {
    let mut name = [0_u8; 16];
    let mut len = name.len() as libc::socklen_t;
    // SAFETY: an open socket, and room for as many bytes as `len` says.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            name.as_mut_ptr().cast(),
            &mut len,
        )
    };
    got == 0 && name[0] != 0
}
