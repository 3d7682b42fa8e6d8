//! How frames reach the host and come back.
//!
//! A transport moves whole PASTE frames and knows nothing of what is in them.
//! It also brings the mapping of the region, because how a guest gets at it
//! depends on where the guest runs.

#[cfg(test)]
pub(crate) mod loopback;
pub(crate) mod machine;
mod pci_error;
pub(crate) mod vhost_user;
mod virtqueue;

use std::time::Duration;

use crate::sys::Mapping;

pub use pci_error::PciError;

/// How long to wait when nothing has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timeout {
    /// Not at all.
    Now,
    /// At most this long.
    After(Duration),
    /// Until something arrives, or a signal.
    Never,
}

impl Timeout {
    /// The shorter of this and `limit`.
    pub(crate) fn at_most(self, limit: Duration) -> Timeout {
        match self {
            Timeout::Now => Timeout::Now,
            Timeout::After(duration) => Timeout::After(duration.min(limit)),
            Timeout::Never => Timeout::After(limit),
        }
    }
}

/// How a wait is spent before the thread sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Polling {
    /// How long to look for frames again and again before sleeping. Saves the
    /// wake-up's latency at the price of a core.
    pub poll_time: Duration,
    /// Whether to offer the core to others between looks. Without it, on a core
    /// that is shared with the backend, one waits for the other in vain.
    pub yield_now: bool,
}

/// Why a transport cannot go on. The channel is lost; it may be reopened after
/// [`Transport::reconnect`].
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The backend closed the connection.
    #[error("the backend closed the connection")]
    Disconnected,
    /// The backend broke the device's protocol.
    #[error("the backend broke the device's protocol: {0}")]
    Protocol(&'static str),
    /// The device lacks something that a channel cannot do without.
    #[error("the device does not offer {0}; is this a paste backend's socket?")]
    Unsupported(&'static str),
    /// The device has fewer queue pairs.
    #[error(
        "the device has {have} queue pair{}, {asked} were asked for: serve the guest by as many \
         workers (worker = [0, 1] in its configuration), or ask for fewer",
        if *.have == 1 { "" } else { "s" }
    )]
    Pairs {
        /// Those that it has.
        have: u16,
        /// Those that were asked for.
        asked: u16,
    },
    /// Memory could not be mapped.
    #[error("{what}: {error}")]
    Map {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        #[source]
        error: paste_pmem::MapError,
    },
    /// There is another region in the place of the host's, or none.
    #[error(
        "{}: is not the region that the host serves this device from; name that one's device",
        .0.display()
    )]
    OtherRegion(std::path::PathBuf),
    /// No PCI device shows the region.
    #[error(
        "no PCI device shows the region that the host serves: is there an ivshmem or paste-region \
         device, and may this user map it (root)?"
    )]
    NoRegionDevice,
    /// It is no address of a PCI device.
    #[error(
        "\"{0}\" is no address of a PCI device: write one as lspci -D does, as in 0000:00:06.0"
    )]
    PciAddress(String),
    /// A PCI device cannot be driven, or not any more.
    #[error("PCI device {address}: {error}")]
    Pci {
        /// The device's.
        address: String,
        /// Why.
        #[source]
        error: PciError,
    },
    /// This operating system has nothing by which an application could use the device that
    /// was named.
    #[error("{0}: a network device serves applications on Linux alone")]
    LinuxAlone(String),
    /// This processor cannot make stores durable as the region asks for.
    #[error(transparent)]
    Domain(#[from] paste_pmem::DomainError),
    /// A system call failed.
    #[error("{what}: {error}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// The system's answer.
        #[source]
        error: std::io::Error,
    },
}

impl TransportError {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(std::io::Error) -> TransportError {
        move |error| TransportError::System { what, error }
    }
}

/// Counts that only a transport knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransportStats {
    /// Signals sent to the host.
    pub kicks: u64,
    /// Times that the thread slept.
    pub waits: u64,
}

/// Moves frames between a channel and the host.
pub(crate) trait Transport: std::fmt::Debug + Send {
    /// The device's address.
    fn mac(&self) -> [u8; 6];

    /// The largest frame that fits, in bytes.
    fn frame_size(&self) -> u16;

    /// Frames that can arrive before any has been taken.
    fn capacity(&self) -> u32;

    /// Whether the host does not see by itself that this process has ended.
    fn ends_unseen(&self) -> bool {
        false
    }

    /// Queue pairs of the device that channels are opened on, this one among them: each has
    /// its share of the buffers, and the device goes on when one of them has ended.
    fn pairs(&self) -> u16 {
        1
    }

    /// Which of them it is, from 0.
    fn pair(&self) -> u16 {
        0
    }

    /// Lends room for one frame to `fill`, which returns the bytes that it
    /// wrote; none sends nothing. `false` if there is no room for a frame now.
    fn send(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<bool, TransportError>;

    /// Shows the host all that was sent and taken since the last time, and
    /// signals it if it asked for that.
    fn publish(&mut self) -> Result<(), TransportError>;

    /// Looks for frames that have arrived, and returns how many can be received.
    fn refresh(&mut self) -> Result<usize, TransportError>;

    /// Copies the next frame that [`Transport::refresh`] saw into `out`, which
    /// has room for [`Transport::frame_size`] bytes, and returns its length.
    fn receive(&mut self, out: &mut [u8]) -> Result<Option<usize>, TransportError>;

    /// Waits until a frame may have arrived or room for one has come back.
    fn wait(&mut self, timeout: Timeout, polling: Polling) -> Result<(), TransportError>;

    /// Waits until the host has taken every frame sent, or for `limit`.
    fn drain(&mut self, limit: Duration) -> Result<(), TransportError>;

    /// Maps the region with this identity anew, the first `len` bytes of it.
    fn map_region(&mut self, uuid: [u8; 16], len: u64) -> Result<Mapping, TransportError>;

    /// Connects anew after an error.
    fn reconnect(&mut self) -> Result<(), TransportError>;

    /// What it has counted.
    fn stats(&self) -> TransportStats;
}
