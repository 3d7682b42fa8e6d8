//! TAP devices on Linux: the ioctls of `linux/if_tun.h` and `linux/sockios.h`,
//! and a frame's read and write straight from and to a buffer. All that is
//! `unsafe` about a TAP device is here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_char, c_int, c_short, c_void, ifreq, iovec};
use paste_abi::net_hdr::{NET_HDR_LEN, NetHdr};
use paste_pmem::{Buffers, RangeError};
use paste_stack::TxFrame;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use zerocopy::IntoBytes;

use super::{Link, TapError};
use crate::port::segments::JOINED_MAX;

/// The device that makes TAP devices.
const TUN_PATH: &str = "/dev/net/tun";

/// The queue of a TAP device.
#[derive(Debug)]
pub(super) struct Tap(OwnedFd);

impl Tap {
    /// Attaches to the device. A device that does not exist is created, with
    /// the guest's MTU.
    pub(super) fn open(name: &str, mtu: u16) -> Result<(Tap, Link), TapError> {
        let failed = |call| {
            move |errno: Errno| TapError::Failed {
                name: name.to_owned(),
                call,
                source: errno.into(),
            }
        };
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(TUN_PATH, flags, Mode::empty()).map_err(|errno| {
            let name = name.to_owned();
            match errno {
                Errno::NOENT | Errno::NODEV | Errno::NXIO => TapError::NoDriver { name },
                Errno::ACCESS | Errno::PERM => TapError::Permission { name },
                errno => TapError::Failed { name, call: "open /dev/net/tun", source: errno.into() },
            }
        })?;
        let control = rustix::net::socket_with(
            AddressFamily::INET,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed("socket"))?;

        // Asking for the flags fails for a device that does not exist.
        let mut request = request(name);
        let existed = interface(&control, libc::SIOCGIFFLAGS as _, &mut request).is_ok();

        request.ifr_ifru.ifru_flags =
            (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as c_short;
        interface(&fd, libc::TUNSETIFF, &mut request).map_err(|errno| {
            let name = name.to_owned();
            match errno {
                Errno::PERM | Errno::ACCESS => TapError::Permission { name },
                Errno::BUSY => TapError::Busy { name },
                Errno::INVAL => TapError::NotTap { name },
                errno => TapError::Failed { name, call: "TUNSETIFF", source: errno.into() },
            }
        })?;
        set_number(&fd, libc::TUNSETVNETHDRSZ, NET_HDR_LEN as c_int)
            .map_err(failed("TUNSETVNETHDRSZ"))?;
        set_number(&fd, libc::TUNSETVNETLE, 1).map_err(failed("TUNSETVNETLE"))?;
        // Checksums may stay open in both directions, and segments of TCP in one piece.
        let segments = libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN;
        set_offload(&fd, libc::TUN_F_CSUM | segments).map_err(failed("TUNSETOFFLOAD"))?;

        if !existed {
            request.ifr_ifru.ifru_mtu = c_int::from(mtu);
            interface(&control, libc::SIOCSIFMTU as _, &mut request)
                .map_err(failed("SIOCSIFMTU"))?;
        }
        let link = link(&control, &mut request).map_err(failed("SIOCGIFMTU"))?;
        Ok((Tap(fd), link))
    }

    /// Reads one packet, of which up to `len` bytes go into a buffer and what is beyond
    /// them into `rest`, its header into `header`. Returns the bytes of all. Never
    /// blocks.
    pub(super) fn read(
        &self,
        header: &mut NetHdr,
        buffers: &Buffers,
        buf: u32,
        offset: usize,
        len: usize,
        rest: &mut [u8],
    ) -> io::Result<usize> {
        let header = header.as_mut_bytes();
        let data = buffers.as_mut_ptr(buf, offset, len).map_err(outside)?;
        let parts = [
            iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() },
            iovec { iov_base: data.cast(), iov_len: len },
            iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() },
        ];
        // SAFETY: the first part and the last are live exclusive borrows. The second
        // lies in one buffer of a mapped region: `as_mut_ptr` checked it and `buffers`
        // keeps the mapping alive. No reference into the region exists; that a
        // guest may write there meanwhile is the guest's own loss.
        let n = unsafe { libc::readv(self.0.as_raw_fd(), parts.as_ptr(), parts.len() as c_int) };
        usize::try_from(n).map_err(|_| failure())
    }

    /// Writes one packet: header, head, and the payloads of at most [`JOINED_MAX`]
    /// frames, each a range of a buffer. Never blocks.
    pub(super) fn write(
        &self,
        header: &NetHdr,
        head: &[u8],
        buffers: &Buffers,
        frames: &[TxFrame],
    ) -> io::Result<()> {
        let header = header.as_bytes();
        let mut parts = [iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2 + JOINED_MAX];
        parts[0] = iovec { iov_base: header.as_ptr() as *mut c_void, iov_len: header.len() };
        parts[1] = iovec { iov_base: head.as_ptr() as *mut c_void, iov_len: head.len() };
        let mut count = 2;
        let payloads = frames.iter().filter_map(|frame| frame.payload);
        for (part, payload) in parts[2..].iter_mut().zip(payloads) {
            let len = usize::from(payload.len);
            let data = buffers.as_ptr(payload.buf, usize::from(payload.offset), len);
            *part = iovec { iov_base: data.map_err(outside)? as *mut c_void, iov_len: len };
            count += 1;
        }
        // SAFETY: the first `count` parts are set. The first two are live borrows, which
        // writev only reads. The others lie each in one buffer of a mapped region, as
        // in `read`; they are read once, by the kernel.
        let n = unsafe { libc::writev(self.0.as_raw_fd(), parts.as_ptr(), count) };
        if n < 0 { Err(failure()) } else { Ok(()) }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A range that lies in no buffer.
fn outside(error: RangeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}

/// The last system call's error. A queue whose device has gone says that it is in a bad
/// state (`drivers/net/tun.c`).
fn failure() -> io::Error {
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::EBADFD) { Errno::NODEV.into() } else { error }
}

/// A request about the interface, with nothing but its name.
fn request(name: &str) -> ifreq {
    // SAFETY: `ifreq` is made of integers, arrays of them, and pointers that
    // may be null.
    let mut request: ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero, whatever the name's length.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    request
}

/// MTU and state of the interface that `request` names.
fn link(control: &OwnedFd, request: &mut ifreq) -> Result<Link, Errno> {
    interface(control, libc::SIOCGIFMTU as _, request)?;
    // SAFETY: SIOCGIFMTU filled in this member.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    interface(control, libc::SIOCGIFFLAGS as _, request)?;
    // SAFETY: SIOCGIFFLAGS filled in this member.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(Link { mtu: u32::try_from(mtu).unwrap_or(0), up: c_int::from(flags) & libc::IFF_UP != 0 })
}

/// An ioctl that reads and writes an `ifreq`.
fn interface(fd: &OwnedFd, code: libc::Ioctl, request: &mut ifreq) -> Result<(), Errno> {
    // SAFETY: callers pass codes whose argument is a pointer to an `ifreq`,
    // and this one is a live exclusive borrow.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), code, std::ptr::from_mut(request)) })
}

/// An ioctl that reads an `int` by pointer.
fn set_number(fd: &OwnedFd, code: libc::Ioctl, number: c_int) -> Result<(), Errno> {
    // SAFETY: callers pass codes whose argument is a pointer to an `int`, which
    // the kernel only reads.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), code, &raw const number) })
}

/// TUNSETOFFLOAD, whose argument is the set of flags itself.
fn set_offload(fd: &OwnedFd, flags: libc::c_uint) -> Result<(), Errno> {
    // SAFETY: the argument is a number; no memory is passed.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

fn check(result: c_int) -> Result<(), Errno> {
    if result < 0 {
        let error = io::Error::last_os_error();
        return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
    }
    Ok(())
}
