//! Linux: a packet socket on one network device, and what sysfs tells of the
//! device (packet(7), `Documentation/ABI/testing/sysfs-class-net`).

#![expect(unsafe_code, reason = "the address of a packet socket is not one of rustix's")]

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

/// `struct sockaddr_ll` (`linux/if_packet.h`).
#[repr(C)]
struct LinkAddress {
    family: u16,
    /// In network byte order.
    protocol: u16,
    index: i32,
    hardware_type: u16,
    packet_type: u8,
    address_len: u8,
    address: [u8; 8],
}

const _: () = assert!(size_of::<LinkAddress>() == 20);

// SAFETY: a reference to this structure is a pointer to that many bytes of a valid
// address, for as long as `f` runs.
unsafe impl SocketAddrArg for LinkAddress {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        f((&raw const *self).cast(), size_of::<LinkAddress>() as SocketAddrLen)
    }
}

/// A network device, as sysfs has it.
#[derive(Debug)]
pub(crate) struct Device {
    index: i32,
    /// Its Ethernet address.
    pub(crate) mac: [u8; 6],
    /// The largest packet, in bytes; its frames have an Ethernet header more.
    pub(crate) mtu: u32,
}

impl Device {
    pub(crate) fn named(name: &str) -> io::Result<Device> {
        // A name is one component of a path.
        let dir = match name {
            "" | "." | ".." => return Err(io::ErrorKind::InvalidInput.into()),
            name if name.contains('/') => return Err(io::ErrorKind::InvalidInput.into()),
            name => PathBuf::from("/sys/class/net").join(name),
        };
        let wrong = || io::Error::from(io::ErrorKind::InvalidData);
        let read = |file: &str| fs::read_to_string(dir.join(file));
        let mut mac = [0; 6];
        let address = read("address")?;
        let mut digits = address.trim().split(':');
        for byte in &mut mac {
            let pair = digits.next().ok_or_else(wrong)?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Device {
            index: read("ifindex")?.trim().parse().map_err(|_| wrong())?,
            mac,
            mtu: read("mtu")?.trim().parse().map_err(|_| wrong())?,
        })
    }
}

/// A packet socket that takes and gives the frames of one ethertype, and never
/// waits.
#[derive(Debug)]
pub(crate) struct Packets(OwnedFd);

impl Packets {
    /// A socket on `device` that the kernel keeps `backlog` bytes for, as far as it
    /// allows.
    pub(crate) fn on(device: &Device, ethertype: u16, backlog: usize) -> io::Result<Packets> {
        let protocol = ethertype.to_be();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (family, kind) = (AddressFamily::PACKET, SocketType::RAW);
        // Of no protocol until it is bound: before that it would hear every device.
        let fd = rustix::net::socket_with(family, kind, flags, None)?;
        if sockopt::set_socket_recv_buffer_size_force(&fd, backlog).is_err() {
            sockopt::set_socket_recv_buffer_size(&fd, backlog)?;
        }
        let address = LinkAddress {
            family: AddressFamily::PACKET.as_raw(),
            protocol,
            index: device.index,
            hardware_type: 0,
            packet_type: 0,
            address_len: 0,
            address: [0; 8],
        };
        rustix::net::bind(&fd, &address)?;
        Ok(Packets(fd))
    }

    /// Bytes that the kernel keeps for frames which nobody has taken yet, with its
    /// own book-keeping.
    pub(crate) fn backlog(&self) -> io::Result<usize> {
        Ok(sockopt::socket_recv_buffer_size(&self.0)?)
    }

    /// Sends a frame; `false` if there is no room for it now.
    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<bool> {
        match rustix::net::send(&self.0, frame, SendFlags::empty()) {
            Ok(_) => Ok(true),
            // The socket's own room, or that of the device's queue.
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes a frame; `None` if there is none. One that is longer than `out` is cut.
    pub(crate) fn receive(&self, out: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::net::recv(&self.0, out, RecvFlags::empty()) {
            Ok((_, len)) => Ok(Some(len)),
            Err(Errno::AGAIN | Errno::INTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until a frame is there, or there is room for one if `room` is wanted;
    /// for at most `timeout` (`None`: for ever). A signal ends the wait.
    pub(crate) fn wait(&self, room: bool, timeout: Option<Duration>) -> io::Result<()> {
        let mut flags = PollFlags::IN;
        flags.set(PollFlags::OUT, room);
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().min(i32::MAX as u64) as i64,
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match rustix::event::poll(&mut [PollFd::new(&self.0, flags)], timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}
