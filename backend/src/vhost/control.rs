//! The state that messages change: features, memory, rings, status.
//!
//! The handlers of [`super::message::TABLE`] work on [`Control`]; the data path
//! of [`super::device`] uses its memory and rings. It knows nothing of sockets.

use std::os::fd::OwnedFd;

use paste_abi::vhost_user::{F_PROTOCOL_FEATURES, protocol};
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::backend::{BackendChannel, BackendError};
use super::counters::DeviceCounters;
use super::memory::{GuestRam, MemoryError};
use super::queue::{Ring, RingError, RingFeatures, SetupError};
use super::signal;

/// Index of the ring that the guest receives from.
pub const RX: usize = 0;
/// Index of the ring that the guest transmits to.
pub const TX: usize = 1;
/// Rings of the device: one pair.
pub const RINGS: usize = 2;

/// The smallest MTU of virtio-net (virtio 1.2 section 5.1.4.1, after RFC 791).
pub const MTU_MIN: u16 = 68;

/// A virtio feature bit as a mask.
pub const fn feature(bit: u32) -> u64 {
    1 << bit
}

/// The region that a front end may map through its own shared-memory window.
#[derive(Debug)]
pub struct RegionFd {
    /// The region's file.
    pub fd: OwnedFd,
    /// Where in the file the guest's part starts, in bytes.
    pub offset: u64,
    /// Bytes of the guest's part.
    pub len: u64,
}

/// What a device is made with.
#[derive(Debug)]
pub struct DeviceOptions {
    /// The guest's name, for logs.
    pub name: String,
    /// The device's MAC address.
    pub mac: [u8; 6],
    /// The largest IP packet, in bytes.
    pub mtu: u16,
    /// Frames may carry checksums that are to be completed, both ways.
    pub csum: bool,
    /// The region, where front ends without a virtio-pmem device map it.
    pub region: Option<RegionFd>,
    /// Descriptors of a ring at most; cut to a power of two from 1 to 32768.
    pub queue_size_max: u16,
}

/// Why a message was refused. The session goes on where the front end can be told.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The payload is too short for what it must hold.
    #[error("{have} bytes of payload where {want} are needed")]
    Short {
        /// Bytes that came.
        have: usize,
        /// Bytes needed.
        want: usize,
    },
    /// A protocol feature was not negotiated that the message belongs to.
    #[error("needs protocol feature {0:#x}, which was not negotiated")]
    NotNegotiated(u64),
    /// Feature bits that were not offered.
    #[error("feature bits {0:#x} were not offered")]
    NotOffered(u64),
    /// Features cannot change under a running ring.
    #[error("features cannot change while a ring runs")]
    FeaturesInUse,
    /// No ring has this index.
    #[error("ring {0} does not exist; there are {RINGS}")]
    UnknownRing(u64),
    /// The ring cannot be used like this.
    #[error("ring {ring}: {source}")]
    Ring {
        /// Index of the ring.
        ring: usize,
        /// Why.
        source: SetupError,
    },
    /// Logging of dirty memory was not offered.
    #[error("logging of used-ring writes was not offered")]
    Logging,
    /// A value that is not 0 or 1.
    #[error("{0} is neither 0 nor 1")]
    NotBoolean(u32),
    /// A descriptor to signal through is neither an eventfd, a pipe nor a socket.
    #[error("the descriptor is neither an eventfd, a pipe nor a socket")]
    NotSignal,
    /// The descriptor could not be examined.
    #[error("the descriptor cannot be used: {0}")]
    Descriptor(std::io::Error),
    /// Memory that cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Configuration space that does not exist.
    #[error("{size} bytes at {offset} are outside the configuration space")]
    ConfigRange {
        /// Where.
        offset: u32,
        /// Bytes.
        size: u32,
    },
    /// The configuration space has no field that may be written.
    #[error("the configuration space is read-only")]
    ConfigReadOnly,
    /// An MTU outside what the port carries.
    #[error("mtu {mtu} is not between {MTU_MIN} and the port's {max}")]
    Mtu {
        /// The MTU.
        mtu: u64,
        /// The port's.
        max: u16,
    },
    /// A device status of more than eight bits.
    #[error("device status {0:#x} has more than 8 bits")]
    Status(u64),
}

/// The device as its messages left it.
#[derive(Debug)]
pub struct Control {
    /// What the device was made with.
    pub options: DeviceOptions,
    /// Virtio features acknowledged; `None` until they are.
    pub features: Option<u64>,
    /// Protocol features acknowledged.
    pub protocol: u64,
    /// The virtio device status.
    pub status: u8,
    /// What broke, until the driver resets the device.
    pub fault: Option<RingError>,
    /// The largest IP packet that the guest is told.
    pub mtu: u16,
    /// Guest memory.
    pub mem: GuestRam,
    /// The rings.
    pub rings: [Ring; RINGS],
    /// The back end's own channel to the front end.
    pub backend: Option<BackendChannel>,
    /// Totals.
    pub counters: DeviceCounters,
    /// Changes with the set of descriptors to be watched.
    pub generation: u64,
}

impl Control {
    /// A device that nobody has spoken to.
    pub fn new(options: DeviceOptions) -> Control {
        let ring = || Ring::new(options.queue_size_max);
        Control {
            features: None,
            protocol: 0,
            status: 0,
            fault: None,
            mtu: options.mtu,
            mem: GuestRam::default(),
            rings: [ring(), ring()],
            backend: None,
            counters: DeviceCounters::default(),
            generation: 0,
            options,
        }
    }

    /// Forgets the front end: memory, rings, descriptors. Counters stay.
    pub fn clear(&mut self) {
        let ring = || Ring::new(self.options.queue_size_max);
        self.rings = [ring(), ring()];
        self.mem = GuestRam::default();
        self.backend = None;
        self.features = None;
        self.protocol = 0;
        self.status = 0;
        self.fault = None;
        self.mtu = self.options.mtu;
        self.generation += 1;
    }

    /// Virtio features of this device.
    pub fn offered(&self) -> u64 {
        let csum = feature(VIRTIO_NET_F_CSUM) | feature(VIRTIO_NET_F_GUEST_CSUM);
        feature(VIRTIO_F_VERSION_1)
            | feature(VIRTIO_NET_F_MAC)
            | feature(VIRTIO_NET_F_STATUS)
            | feature(VIRTIO_NET_F_MTU)
            | feature(VIRTIO_NET_F_MRG_RXBUF)
            | feature(VIRTIO_RING_F_EVENT_IDX)
            | feature(VIRTIO_RING_F_INDIRECT_DESC)
            | F_PROTOCOL_FEATURES
            | if self.options.csum { csum } else { 0 }
    }

    /// Protocol features of this back end. The back end's own channel is there
    /// for the region, and so are the features that it needs.
    pub fn offered_protocol(&self) -> u64 {
        let region = protocol::BACKEND_REQ | protocol::BACKEND_SEND_FD | protocol::SHMEM;
        protocol::MQ
            | protocol::REPLY_ACK
            | protocol::MTU
            | protocol::CONFIG
            | protocol::RESET_DEVICE
            | protocol::CONFIGURE_MEM_SLOTS
            | protocol::STATUS
            | if self.options.region.is_some() { region } else { 0 }
    }

    /// Whether a virtio feature was acknowledged.
    pub fn has(&self, bit: u32) -> bool {
        self.features.is_some_and(|features| features & feature(bit) != 0)
    }

    /// The index of a ring that the front end named.
    pub fn ring_index(&self, index: u64) -> Result<usize, Refusal> {
        usize::try_from(index).ok().filter(|&i| i < RINGS).ok_or(Refusal::UnknownRing(index))
    }

    /// Tries to put a started ring to use. Until features and memory are there,
    /// it waits for them.
    pub fn connect(&mut self, ring: usize) -> Result<(), Refusal> {
        let (Some(_), None) = (self.features, self.fault) else {
            return Ok(());
        };
        let features = RingFeatures {
            event_idx: self.has(VIRTIO_RING_F_EVENT_IDX),
            indirect: self.has(VIRTIO_RING_F_INDIRECT_DESC),
        };
        if self.mem.is_empty() {
            self.rings[ring].disconnect();
            return Ok(());
        }
        self.rings[ring]
            .connect(&self.mem, features)
            .map_err(|source| Refusal::Ring { ring, source })
    }

    /// Finds all started rings anew after memory changed. A ring whose parts
    /// are gone stands still until they are back.
    pub fn reconnect(&mut self) {
        for ring in 0..RINGS {
            if let Err(error) = self.connect(ring) {
                let guest = &self.options.name;
                tracing::warn!(guest, %error, "a running ring lost its memory");
            }
        }
    }

    /// Asks the front end to map the region, once everything for it was
    /// negotiated. A channel that cannot be asked on is given up.
    pub fn offer_region(&mut self) {
        let needed = protocol::BACKEND_REQ | protocol::BACKEND_SEND_FD | protocol::SHMEM;
        let (Some(region), Some(backend)) = (&self.options.region, &mut self.backend) else {
            return;
        };
        if self.protocol & needed != needed {
            return;
        }
        let acked = self.protocol & protocol::REPLY_ACK != 0;
        if let Err(error) = backend.offer(region, acked) {
            self.drop_backend(&error);
        }
    }

    /// Reads what came on the back end's own channel.
    pub fn poll_backend(&mut self) {
        let Some(backend) = &mut self.backend else {
            return;
        };
        let guest = &self.options.name;
        match backend.poll() {
            Ok(false) => {}
            Ok(true) => tracing::info!(guest, "the front end mapped the region"),
            Err(error) => self.drop_backend(&error),
        }
    }

    fn drop_backend(&mut self, error: &BackendError) {
        let guest = &self.options.name;
        tracing::warn!(guest, %error, "the back end's own channel is given up");
        self.backend = None;
        self.generation += 1;
    }

    /// Publishes what was used, so that rings can move or stop. A ring that is
    /// found broken stops the device, and the message goes on.
    pub fn settle(&mut self) {
        for ring in 0..RINGS {
            if let Err(error) = self.flush_ring(ring) {
                let guest = &self.options.name;
                tracing::warn!(guest, %error, "a ring was found broken while it was settled");
            }
        }
    }

    /// Publishes what was used on one ring, and signals the driver if it asked.
    pub fn flush_ring(&mut self, ring: usize) -> Result<(), RingError> {
        let Control { rings, mem, counters, .. } = self;
        if !rings[ring].is_ready() {
            return Ok(());
        }
        let had = rings[ring].has_pending();
        match rings[ring].publish(mem) {
            Ok(true) => {
                let Some(call) = &rings[ring].signals.call else {
                    return Ok(());
                };
                match signal::raise(call) {
                    Ok(()) => counters.signals += 1,
                    Err(_) => counters.signals_lost += 1,
                }
                Ok(())
            }
            Ok(false) => {
                counters.signals_spared += u64::from(had);
                Ok(())
            }
            Err(fault) => Err(self.broken(RingError { ring, fault })),
        }
    }

    /// Stops the device until the driver resets it (virtio 1.2 section 2.1.2,
    /// DEVICE_NEEDS_RESET), tells the front end, and hands the error back.
    pub fn broken(&mut self, error: RingError) -> RingError {
        if self.fault.is_none() {
            self.counters.faults[error.fault.kind()] += 1;
            self.fault = Some(error);
        }
        self.halt();
        if let Some(err) = &self.rings[error.ring].signals.err {
            // Nobody may be listening, and nothing depends on it.
            let _ = signal::raise(err);
        }
        error
    }

    /// Takes the rings out of use and says that the device needs a reset.
    pub fn halt(&mut self) {
        for ring in &mut self.rings {
            ring.disconnect();
        }
        self.status |= VIRTIO_CONFIG_S_NEEDS_RESET as u8;
    }

    /// Stops one ring and says its next available index. With the last ring
    /// stopped, the device is as good as reset.
    pub fn stop(&mut self, ring: usize) -> u16 {
        let base = self.rings[ring].stop();
        if self.rings.iter().all(|ring| !ring.is_started()) {
            self.recover();
        }
        self.generation += 1;
        base
    }

    /// Stops all rings.
    pub fn stop_all(&mut self) {
        for ring in 0..RINGS {
            self.stop(ring);
        }
    }

    /// The driver has been reset: what broke is forgotten.
    pub fn recover(&mut self) {
        self.fault = None;
        self.status &= !(VIRTIO_CONFIG_S_NEEDS_RESET as u8);
    }
}
