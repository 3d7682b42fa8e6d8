//! The port on a network device of the host's, by AF_XDP: `xdp:eth1`.
//!
//! ```text
//!                     filter (eBPF)            sockets, one a queue         region
//!   NIC ── driver ──┬─ the guest's ──> fill and RX rings ──────────> buffer, in place
//!                   └─ all others ──> the host's kernel
//!   NIC <─ driver ──── TX and completion rings <── head (private) | payload (buffer)
//! ```
//!
//! The buffers of the guest's region are the memory that the sockets are registered
//! with. The device, or the kernel for it, puts a frame into a buffer that the port took
//! from the pool, and the stack finds it there; what is sent is read from where it lies.
//! One system call tells the kernel of all frames of a turn, and none where the driver
//! looks by itself.
//!
//! What belongs to whom, in the folder `linux`:
//!
//! - `filter` decides which frames are the guest's, and `program` writes that down for
//!   the kernel;
//! - `shared` is what ports on one device have in common: the program, and its map of
//!   sockets;
//! - `live` is a device in service, for one port: its sockets, and its share of the program. With it, or
//!   with the process, everything goes: nothing stays attached, not even after SIGKILL;
//! - `port` moves frames; `ledger` knows what the kernel has, because the kernel's rings
//!   are memory that is shared, and what they say is judged; `level` knows how many buffers
//!   it is given to fill;
//! - `chain` knows what is there of a frame that comes in several buffers, `cut` makes
//!   several of it, and `announce` has peers send such;
//! - `unfilled` finds checksums that were left to a device which has none;
//! - `time` tells by our clock what a device's has said, and `btf` finds the kernel's
//!   function that asks it;
//! - `sys` makes the system calls.
//!
//! # Headers
//!
//! With `spoof_check`, a guest must not be able to change a header between our check and
//! the NIC's read. So the registered memory begins with private pages, in which heads
//! lie, and the region follows: a frame is two descriptors (`XDP_USE_SG`, Linux 6.6) of
//! one range. Where that is not to be had, head and payload are copied together into
//! private memory, and counted (`xdp.tx_joined`). Stored buffers are sent from where
//! they are stored.
//!
//! # Queues
//!
//! All receive queues of the device are served, or frames on the others would go to the
//! host's kernel, which refuses them. With `@QUEUE` that one only is: it is for devices
//! whose operator steers the guest's flows there (`ethtool -N`), and whatever comes for
//! the guest on another queue is lost to it, which may be another guest's. That goes for
//! what asks for its addresses as well, which NICs mostly put on queue 0: a guest on another
//! has to speak first, or to be known to its neighbours (`ip neigh add`). Everything is sent
//! on one queue.
//!
//! # Guests
//!
//! Several guests on all queues, or on the same one, share a port whose region is the
//! host's, behind a [`crate::switch`]. Those with queues of their own have ports of their
//! own, whose frames lie in their own regions: they share the program alone (`shared`),
//! which hands a frame to a guest's queue or to the host, never to another guest's.
//!
//! # Frames
//!
//! The kernel keeps 256 bytes of each buffer for itself, so that a frame with an MTU of up
//! to 1774 lies in one of 2048 bytes, up to 3822 in one of 4096. A longer one, up to the
//! link's 9000, comes in several (`XDP_USE_SG`; Linux 6.6), and nothing behind this port
//! knows of that: the guest is told an MTU of what one buffer takes behind its headers (1965
//! or 4013), which is what it sends at most, and a longer frame is made into several where
//! it lies. TCP becomes segments, with the payload of each buffer, headers written in front
//! of it, and a checksum that follows from the verified one; others become IP fragments.
//! Neither copies payload. So that peers send such segments, SYNs that go out say the size
//! of what several buffers take. The stack answers no datagram that is longer than a buffer.
//!
//! Joined segments of TCP, such as come from a veth's peer in generic mode with TSO, are cut
//! as well if what a buffer takes of them is no longer than the guest's MTU allows (from
//! about 1900 on, with buffers of 2048 bytes). What is still too long is dropped whole and
//! counted (`drops.rx_oversize`): with an MTU below that, and joined datagrams, of which
//! nobody says where they begin.
//!
//! # Checksums
//!
//! AF_XDP tells nothing of a frame's checksum; the stack verifies them all, and fills in
//! all that it sends. A peer on the other end of a veth, or behind a TAP, leaves them to
//! its device, which does nothing: the field holds the pseudo-header's sum. On these
//! kinds of device such a frame is taken unverified. A remote sender whose frames this
//! machine forwards there gains nothing: who can write that sum could write the right
//! one, and a corrupted frame passes with either of two sums in 65536 instead of one. On
//! any other device a frame like that has crossed a wire, and is dropped by the stack as
//! RFC 9293 section 3.1 has it; it is counted apart, and the operator is told once.
//!
//! # Time
//!
//! Arrival is when the worker took the frame, unless the device has told it. Where a device
//! has a clock (`ethtool -T DEV`), the program is bound to it and asks its driver for the
//! time of each frame that it hands over (`bpf_xdp_metadata_rx_timestamp`, Linux 6.3), which
//! it puts in front of the frame. The device's clock counts as it likes, so it is compared
//! with ours once a second, and what stands there is told by ours, once the two have gone on
//! together for a second. A frame without a time, or with one that cannot be, has that of
//! the worker, and is counted (`xdp.rx_time_host`); most devices stamp no frame until they
//! are told to (`hwstamp_ctl -i DEV -r 1`). The time lies in memory that the guest can
//! write: it deceives nobody but itself.
//!
//! In generic mode, or where the driver, the kernel or its type information (BTF) do not
//! have it, the program does without. Which it is, is told with the mode when the device is
//! taken into service (`xdp.device_time`). The kernel takes a program that calls its own
//! functions only if that may be had under its licence too, so it says so of itself.
//!
//! # VLANs
//!
//! With `vlan`, tags have to be in the frame: a device that takes them off before the
//! program sees it (`ethtool -k DEV`, rx-vlan-offload) is to leave them on (`ethtool -K
//! DEV rxvlan off`), and a veth's peer as well (`txvlan off`).
//!
//! # What stays with the host
//!
//! What is sent to all stations: the guest gets of it what asks for its stack's
//! configured addresses. Router advertisements are the host's, so `accept_ra` is of no use
//! here; and the guest's own kernel, and its stack by a link-local address, are found by
//! neighbours that they have spoken to first.

mod error;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::{XdpDevices, XdpPort};

#[cfg(not(target_os = "linux"))]
mod unsupported;
#[cfg(not(target_os = "linux"))]
pub use unsupported::{XdpDevices, XdpPort};

use std::fmt::Debug;

use paste_pmem::Region;

use super::Station;

pub use error::XdpError;

/// Where the program that looks at frames runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, before the kernel has made anything of a frame.
    Driver,
    /// In the kernel's own path, for drivers that cannot.
    Generic,
}

impl Mode {
    /// Its name in configurations and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Driver => "driver",
            Mode::Generic => "generic",
        }
    }
}

/// Two clocks, read at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The device's, in ns from anywhere.
    pub device_ns: u64,
    /// The time since the Unix epoch, in ns.
    pub real_ns: u64,
}

/// A clock that the times of frames are told by.
pub trait DeviceClock: Debug + Send {
    /// Reads it beside ours; `None` if it cannot be read now.
    fn compare(&mut self) -> Option<Pair>;
}

/// What says when a frame has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamps {
    /// The device, by its driver (`bpf_xdp_metadata_rx_timestamp`; Linux 6.3).
    Device,
    /// The kernel's monotonic clock, when the filter looks at the frame: for trying what
    /// is made of times where no device gives any.
    Monotonic,
}

/// How arrivals are told on one device.
#[derive(Debug)]
pub struct Timing {
    /// By what.
    pub stamps: Stamps,
    /// Its clock.
    pub clock: Box<dyn DeviceClock>,
}

/// What an operator and a guest want of a device.
#[derive(Clone, Copy, Debug)]
pub struct XdpOptions<'a> {
    /// The device.
    pub name: &'a str,
    /// The one queue, or all.
    pub queue: Option<u32>,
    /// The mode, or the best that the device has.
    pub mode: Option<Mode>,
    /// Bytes of the largest packet.
    pub mtu: u16,
    /// The guest, or guests, that the port is for.
    pub stations: &'a [Station],
    /// The devices that ports of this process are on.
    pub devices: &'a XdpDevices,
    /// The region that frames lie in.
    pub region: &'a Region,
}
