//! What an application tells a channel, and what the channel tells of itself.

use std::path::PathBuf;
use std::time::Duration;

use crate::transport::Polling;
#[cfg(doc)]
use crate::{Channel, Event};

/// Where the host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The Unix socket of a vhost-user backend: this process is the guest.
    VhostUser(PathBuf),
    /// A network device of this virtual machine: this process is an application
    /// beside the kernel's driver. Linux alone opens it
    /// ([`TransportError::LinuxAlone`](crate::TransportError::LinuxAlone)).
    Packet {
        /// Name of the network device, such as `eth0`. It is up.
        interface: String,
        /// The device of the region, such as `/dev/dax0.0`; `pci`, for the ivshmem or
        /// paste-region device that has it, or `pci:0000:00:06.0`, for the one at this
        /// address. Without any, slots are inline, as with [`Options::inline`].
        region: Option<PathBuf>,
    },
    /// A virtio-net device of this virtual machine that its kernel has given away, bound to
    /// `uio_pci_generic`: this process drives it, and alone. It takes root, and one huge
    /// page of 2 MiB. Likewise, Linux alone opens it.
    VirtioPci {
        /// Where the device is on the PCI bus, such as `0000:00:05.0`.
        address: String,
        /// As with [`Endpoint::Packet`].
        region: Option<PathBuf>,
    },
}

impl Endpoint {
    /// The vhost-user backend that listens at `path`.
    pub fn vhost_user(path: impl Into<PathBuf>) -> Endpoint {
        Endpoint::VhostUser(path.into())
    }

    /// The backend behind the network device `interface`, with the region that the
    /// kernel shows at `region`: see [`Endpoint::Packet`].
    pub fn packet(interface: impl Into<String>, region: impl Into<PathBuf>) -> Endpoint {
        Endpoint::Packet { interface: interface.into(), region: Some(region.into()) }
    }

    /// Whether there is no region to be seen from there.
    pub(super) fn is_inline(&self) -> bool {
        match self {
            Endpoint::VhostUser(_) => false,
            Endpoint::Packet { region, .. } | Endpoint::VirtioPci { region, .. } => {
                region.is_none()
            }
        }
    }

    /// The backend behind the network device `interface`, on a machine that does not show
    /// the region.
    pub fn packet_inline(interface: impl Into<String>) -> Endpoint {
        Endpoint::Packet { interface: interface.into(), region: None }
    }

    /// The backend behind the virtio-net device at this PCI address, with the region that
    /// the kernel shows at `region`: see [`Endpoint::VirtioPci`].
    pub fn virtio_pci(address: impl Into<String>, region: impl Into<PathBuf>) -> Endpoint {
        Endpoint::VirtioPci { address: address.into(), region: Some(region.into()) }
    }

    /// The backend behind the virtio-net device at this PCI address, on a machine that does
    /// not show the region.
    pub fn virtio_pci_inline(address: impl Into<String>) -> Endpoint {
        Endpoint::VirtioPci { address: address.into(), region: None }
    }
}

/// How a channel is set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The channel's number on this device, below 16.
    pub channel: u16,
    /// The application's name for the host's logs; cut to 32 bytes.
    pub name: String,
    /// Empty buffers to keep for sending, and at most a quarter of the region's, or of a queue
    /// pair's share of them. More are asked for when half are taken.
    pub reserve: u32,
    /// Slots that can wait to be sent when the host gives no credit.
    pub queue: usize,
    /// The largest PASTE frame, in bytes; the host may choose less.
    pub frame_size: u16,
    /// What to do before sleeping.
    pub polling: Polling,
    /// How long [`Channel::open`] and [`Channel::listen`] wait for an answer.
    pub answer_timeout: Duration,
    /// Whether polls open a lost channel anew.
    pub reopen: bool,
    /// Have payload travel in the frames, and map no region: slower, as every byte is
    /// copied, and possible on any machine that has the network device. Nothing can be
    /// stored then.
    pub inline: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            channel: 0,
            name: String::from("paste-guest"),
            reserve: 256,
            queue: 4096,
            frame_size: 4096,
            polling: Polling::default(),
            answer_timeout: Duration::from_secs(5),
            reopen: true,
            inline: false,
        }
    }
}

/// How a buffer is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendOptions {
    /// A word that comes back with [`Event::Acked`] and [`Event::Refused`].
    pub cookie: u64,
    /// Send [`Event::Acked`] when the peer has acknowledged the range.
    pub notify: bool,
    /// Give the buffer back with [`Event::Acked`], instead of to the pool.
    pub keep: bool,
    /// Send only when everything that was sealed before is durable
    /// ([`crate::RegionMedium`], [`Channel::flush`]); if it cannot be made so,
    /// [`Event::Refused`] says [`crate::Reason::NotDurable`]. Later sends on the
    /// same flow wait behind it. Where the host does not flush, the range goes at
    /// once.
    pub durable: bool,
}

/// What a poll has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Frames published to the host.
    pub frames_out: usize,
    /// Frames that arrived, and that [`Channel::next_event`] reads.
    pub frames_in: usize,
}

/// What a channel has counted since it was opened first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Polls that found something.
    pub batches: u64,
    /// Slots received.
    pub slots_in: u64,
    /// Slots sent.
    pub slots_out: u64,
    /// Frames received for this channel.
    pub frames_in: u64,
    /// Frames sent.
    pub frames_out: u64,
    /// Signals sent to the host.
    pub kicks: u64,
    /// Times that the thread slept.
    pub waits: u64,
    /// Payload bytes that were copied on the way through this crate.
    pub bytes_copied: u64,
    /// Buffers that the application holds now.
    pub held: u32,
    /// Buffers that the application has stored now.
    pub stored: u32,
    /// Empty buffers in reserve now.
    pub granted: u32,
    /// Times that the channel was lost.
    pub lost: u64,
}

impl Stats {
    /// Slots received per batch, on average.
    pub fn mean_batch(&self) -> f64 {
        if self.batches == 0 { 0.0 } else { self.slots_in as f64 / self.batches as f64 }
    }
}
