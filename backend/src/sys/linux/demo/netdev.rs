//! Network devices of a namespace: TAPs and veth pairs with their addresses.
//! All unsafe code here is the TUN driver's ioctls (`linux/if_tun.h`).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::ioctl::{IntegerSetter, Setter, ioctl, opcode};
use rustix::thread::gettid;

use super::netlink::Netlink;

/// The file of the TUN driver.
const TUN_FILE: &str = "/dev/net/tun";
const IFNAMSIZ: usize = 16;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
/// Frames may be handed over whose checksum is not filled in.
const TUN_F_CSUM: usize = 1;
/// Length of the header before each frame, as in `paste_abi::net_hdr`.
const VNET_HDR_LEN: i32 = paste_abi::net_hdr::NET_HDR_LEN as i32;

const TUNSETIFF: u32 = opcode::write::<i32>(b'T', 202);
const TUNSETPERSIST: u32 = opcode::write::<i32>(b'T', 203);
const TUNSETOFFLOAD: u32 = opcode::write::<u32>(b'T', 208);
const TUNSETVNETHDRSZ: u32 = opcode::write::<i32>(b'T', 216);

/// `struct ifreq`, of which the TUN driver reads name and flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);

/// The devices of the network namespace in which this was opened, wherever its
/// process goes afterwards.
#[derive(Debug)]
pub struct Network(Netlink);

impl Network {
    /// The namespace of the calling thread.
    pub fn open() -> io::Result<Network> {
        Netlink::open().map(Network)
    }

    /// Sets a device up, with a MAC address if one is named, and gives it an
    /// address in a network of `prefix` bits.
    pub fn set_up(
        &mut self,
        name: &str,
        mac: Option<[u8; 6]>,
        address: Ipv4Addr,
        prefix: u8,
    ) -> io::Result<()> {
        let index = self.0.index(name)?;
        self.0.set_up(index, mac)?;
        self.0.add_address(index, address, prefix)
    }

    /// Sets a device up that has no address, with this MAC address.
    pub fn bring_up(&mut self, name: &str, mac: [u8; 6]) -> io::Result<()> {
        let index = self.0.index(name)?;
        self.0.set_up(index, Some(mac))
    }

    /// Makes a pair of connected devices: `name` in this namespace, and `peer`
    /// in that of the calling thread.
    pub fn add_pair(&mut self, name: &str, peer: &str) -> io::Result<()> {
        self.0.add_veth(name, peer, gettid().as_raw_nonzero().get() as u32)
    }
}

/// A TAP device: frames that the kernel sends through it are read here, frames
/// written here arrive at the kernel. Before each frame stands a virtio-net
/// header; checksums may be left to the other side. Never blocks.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    /// Makes the device, or attaches to it, in the namespace of the calling
    /// thread. It goes with this value, unless it is kept with [`Tap::keep`].
    pub fn open(name: &str) -> io::Result<Tap> {
        if name.len() >= IFNAMSIZ {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "device name too long"));
        }
        let mut request = InterfaceRequest {
            name: [0; IFNAMSIZ],
            flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
            rest: [0; 22],
        };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        let file =
            open(TUN_FILE, OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        // SAFETY: TUNSETIFF takes a `struct ifreq`, of which this has the size
        // and layout; TUNSETVNETHDRSZ a pointer to an int; TUNSETOFFLOAD an
        // integer in place of a pointer.
        unsafe {
            ioctl(&file, Setter::<{ TUNSETIFF as _ }, InterfaceRequest>::new(request))?;
            ioctl(&file, Setter::<{ TUNSETVNETHDRSZ as _ }, i32>::new(VNET_HDR_LEN))?;
            let offload = IntegerSetter::<{ TUNSETOFFLOAD as _ }>::new_usize(TUN_F_CSUM);
            ioctl(&file, offload)?;
        }
        Ok(Tap(file))
    }

    /// Lets the device live for as long as its namespace, so that another
    /// process may attach to it by its name. Closes this attachment.
    pub fn keep(self) -> io::Result<()> {
        // SAFETY: TUNSETPERSIST takes an integer in place of a pointer.
        unsafe { ioctl(&self.0, IntegerSetter::<{ TUNSETPERSIST as _ }>::new_usize(1))? };
        Ok(())
    }

    /// Takes one frame with its header; `None` when none waits. A frame longer
    /// than `frame` is cut.
    pub fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        would_block(rustix::io::read(&self.0, frame))
    }

    /// Hands one frame with its header to the kernel; `None` when it takes none.
    pub fn send(&self, frame: &[u8]) -> io::Result<Option<usize>> {
        would_block(rustix::io::write(&self.0, frame))
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn would_block(result: rustix::io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}
