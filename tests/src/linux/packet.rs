//! Frames straight onto a device, past the kernel's own network: what a hostile
//! neighbour on the link sends.

#![expect(unsafe_code, reason = "packet sockets cannot be bound otherwise")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A packet socket that sends on one device.
#[derive(Debug)]
pub struct Packets(OwnedFd);

impl Packets {
    /// A socket on `device` in this thread's namespace.
    pub fn on(device: &str) -> io::Result<Packets> {
        let name = std::ffi::CString::new(device)?;
        // SAFETY: the name is a string with its terminator.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // Protocol 0: it receives nothing.
        // SAFETY: plain numbers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and is nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all zeros are a value of this plain structure.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index as i32;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: address and length are those of one structure that lives.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Packets(fd))
    }

    /// Sends one frame, from its Ethernet header on. A queue that is full waits.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.0, frame, rustix::net::SendFlags::empty())?;
        Ok(())
    }
}
