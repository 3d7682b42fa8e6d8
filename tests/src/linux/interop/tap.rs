//! A TAP device from its wire's side: frames as a cable would carry them, whole,
//! no longer than the MTU allows, and with their checksums filled in.

#![expect(unsafe_code, reason = "the TUN driver is set up by ioctls (linux/if_tun.h)")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Setter, ioctl, opcode};

/// The file of the TUN driver.
const TUN_FILE: &str = "/dev/net/tun";
const IFNAMSIZ: usize = 16;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;

const TUNSETIFF: u32 = opcode::write::<i32>(b'T', 202);
const TUNSETOFFLOAD: u32 = opcode::write::<u32>(b'T', 208);

/// `struct ifreq`, of which the TUN driver reads name and flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

/// A TAP device: what the kernel sends through it is read here, what is written
/// here arrives at the kernel. Never blocks. The device goes with this value.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    /// Makes the device in the namespace of the calling thread.
    pub fn open(name: &str) -> io::Result<Tap> {
        if name.len() >= IFNAMSIZ {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "device name too long"));
        }
        let mut request =
            InterfaceRequest { name: [0; IFNAMSIZ], flags: IFF_TAP | IFF_NO_PI, rest: [0; 22] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = open(TUN_FILE, flags, Mode::empty())?;
        // SAFETY: TUNSETIFF takes a `struct ifreq`, of which this has the size
        // and layout; TUNSETOFFLOAD an integer in place of a pointer.
        unsafe {
            ioctl(&file, Setter::<{ TUNSETIFF as _ }, InterfaceRequest>::new(request))?;
            // No offload: the kernel segments and sums before it sends.
            ioctl(&file, IntegerSetter::<{ TUNSETOFFLOAD as _ }>::new_usize(0))?;
        }
        Ok(Tap(file))
    }

    /// Takes one frame; `None` when none waits. A frame longer than `frame` is
    /// cut.
    pub fn receive(&self, frame: &mut [u8]) -> io::Result<Option<usize>> {
        match rustix::io::read(&self.0, frame) {
            Ok(len) => Ok(Some(len)),
            // EIO: nobody has brought the device up yet.
            Err(Errno::AGAIN | Errno::INTR | Errno::IO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Hands one frame to the kernel; `false` when the kernel does not take it.
    pub fn send(&self, frame: &[u8]) -> bool {
        rustix::io::write(&self.0, frame).is_ok()
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
