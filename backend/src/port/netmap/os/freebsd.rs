//! FreeBSD.

use std::convert::Infallible;
#[cfg(test)]
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;

use super::Link;
use crate::port::netmap::area::Area;
use crate::port::netmap::kernel::Shared;

/// `_IO('i', 148)`.
pub(super) const NIOCTXSYNC: u64 = 0x2000_6994;
/// `_IO('i', 149)`.
pub(super) const NIOCRXSYNC: u64 = 0x2000_6995;

/// Pages that cannot be had: here, netmap takes the whole object that is mapped at an
/// address, and lays itself out from that object's beginning.
pub(super) struct Pages(Infallible);

impl Pages {
    /// Says that a region would be written over.
    pub(super) fn of(_file: BorrowedFd<'_>) -> Result<Pages, String> {
        Err("on this system netmap would lay its rings out over the region's head".into())
    }

    /// Never called.
    pub(super) fn size(&self) -> usize {
        match self.0 {}
    }

    /// Never called.
    pub(super) fn map_behind(&self, _: usize, _: &Shared<'_>) -> Result<Area, String> {
        match self.0 {}
    }
}

/// A number that the module was loaded with: there is no telling.
pub(in crate::port::netmap) fn parameter(_name: &str) -> Option<u32> {
    None
}

/// Looks an interface up; `None` where there is none, or no telling.
pub(in crate::port::netmap) fn link(name: &str) -> Option<Link> {
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

/// Has a socket receive from one interface alone: none can be made to.
#[cfg(test)]
pub(in crate::port::netmap) fn bind(_socket: BorrowedFd<'_>, _interface: &str) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Whether the socket receives from one interface alone: none does.
#[cfg(test)]
pub(in crate::port::netmap) fn is_bound(_socket: BorrowedFd<'_>) -> bool {
    false
}
