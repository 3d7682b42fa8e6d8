//! The state that messages change: features, memory, rings, status.
//!
//! The handlers of [`super::message::TABLE`] work on [`Control`]; the data paths
//! of the devices use its memory and rings. What sets one type of device apart
//! from another is its [`Model`]. Nothing here knows of sockets.

use std::os::fd::OwnedFd;

use paste_abi::vhost_user::{CONFIG_MAX, F_PROTOCOL_FEATURES, protocol};
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::backend::{BackendChannel, BackendError};
use super::counters::DeviceCounters;
use super::memory::{GuestRam, MemoryError};
use super::queue::{Ring, RingError, RingFeatures, SetupError};
use super::signal;

/// Index of the ring that the guest receives from, in its pair.
pub const RX: usize = 0;
/// Index of the ring that the guest transmits to, in its pair.
pub const TX: usize = 1;
/// Pairs of rings of a virtio-net device, at most.
pub const PAIRS_MAX: usize = 8;
/// Rings of any device, at most.
pub const RINGS_MAX: usize = 2 * PAIRS_MAX;

/// Where in virtio-net's configuration space the MTU is (virtio 1.2 section
/// 5.1.4).
pub const CONFIG_MTU: std::ops::Range<usize> = 10..12;

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

/// What a front end sees of a device before anybody speaks to it.
#[derive(Debug)]
pub struct Model {
    /// The guest's name, for logs.
    pub name: String,
    /// Rings, at most [`RINGS_MAX`].
    pub rings: usize,
    /// Virtio features of its type.
    pub features: u64,
    /// Protocol features of its type.
    pub protocol: u64,
    /// The configuration space.
    pub config: [u8; CONFIG_MAX],
    /// The largest MTU, of a device that has one.
    pub mtu_max: u16,
    /// The region that front ends may map.
    pub region: Option<RegionFd>,
    /// Descriptors of a ring at most; cut to a power of two from 1 to 32768.
    pub queue_size_max: u16,
}

impl Model {
    fn fresh_rings(&self) -> Box<[Ring]> {
        (0..self.rings).map(|_| Ring::new(self.queue_size_max)).collect()
    }
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
    #[error("ring {0} does not exist")]
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
    /// What the device is.
    pub model: Model,
    /// Virtio features acknowledged; `None` until they are.
    pub features: Option<u64>,
    /// Protocol features acknowledged.
    pub protocol: u64,
    /// The virtio device status.
    pub status: u8,
    /// What broke, until the driver resets the device.
    pub fault: Option<RingError>,
    /// The configuration space as the guest is told.
    pub config: [u8; CONFIG_MAX],
    /// Guest memory.
    pub mem: GuestRam,
    /// The rings.
    pub rings: Box<[Ring]>,
    /// The back end's own channel to the front end.
    pub backend: Option<BackendChannel>,
    /// This front end's memory was complained of.
    pub warned_of_memory: bool,
    /// Totals.
    pub counters: DeviceCounters,
    /// Changes with the set of descriptors to be watched.
    pub generation: u64,
    /// Changes when everything that a front end gave is forgotten.
    pub epoch: u64,
}

impl Control {
    /// A device that nobody has spoken to.
    pub fn new(model: Model) -> Control {
        Control {
            features: None,
            protocol: 0,
            status: 0,
            fault: None,
            config: model.config,
            mem: GuestRam::default(),
            rings: model.fresh_rings(),
            backend: None,
            warned_of_memory: false,
            counters: DeviceCounters::default(),
            generation: 0,
            epoch: 0,
            model,
        }
    }

    /// Forgets the front end: memory, rings, descriptors. Counters stay.
    pub fn clear(&mut self) {
        self.rings = self.model.fresh_rings();
        self.mem = GuestRam::default();
        self.backend = None;
        self.features = None;
        self.protocol = 0;
        self.status = 0;
        self.fault = None;
        self.warned_of_memory = false;
        self.config = self.model.config;
        self.generation += 1;
        self.epoch += 1;
    }

    /// Virtio features of this device.
    pub fn offered(&self) -> u64 {
        feature(VIRTIO_F_VERSION_1)
            | feature(VIRTIO_RING_F_EVENT_IDX)
            | feature(VIRTIO_RING_F_INDIRECT_DESC)
            | F_PROTOCOL_FEATURES
            | self.model.features
    }

    /// Protocol features of this back end. The back end's own channel is there
    /// for the region, and so are the features that it needs.
    pub fn offered_protocol(&self) -> u64 {
        let region = protocol::BACKEND_REQ | protocol::BACKEND_SEND_FD | protocol::SHMEM;
        protocol::MQ
            | protocol::REPLY_ACK
            | protocol::CONFIG
            | protocol::RESET_DEVICE
            | protocol::CONFIGURE_MEM_SLOTS
            | protocol::STATUS
            | self.model.protocol
            | if self.model.region.is_some() { region } else { 0 }
    }

    /// Whether a virtio feature was acknowledged.
    pub fn has(&self, bit: u32) -> bool {
        self.features.is_some_and(|features| features & feature(bit) != 0)
    }

    /// The index of a ring that the front end named.
    pub fn ring_index(&self, index: u64) -> Result<usize, Refusal> {
        usize::try_from(index)
            .ok()
            .filter(|&i| i < self.rings.len())
            .ok_or(Refusal::UnknownRing(index))
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
        for ring in 0..self.rings.len() {
            if let Err(error) = self.connect(ring) {
                let guest = &self.model.name;
                tracing::warn!(guest, %error, "a running ring lost its memory");
            }
        }
    }

    /// Asks the front end to map the region, once everything for it was
    /// negotiated. A channel that cannot be asked on is given up.
    pub fn offer_region(&mut self) {
        let needed = protocol::BACKEND_REQ | protocol::BACKEND_SEND_FD | protocol::SHMEM;
        let (Some(region), Some(backend)) = (&self.model.region, &mut self.backend) else {
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
        let guest = &self.model.name;
        match backend.poll() {
            Ok(false) => {}
            Ok(true) => tracing::info!(guest, "the front end mapped the region"),
            Err(error) => self.drop_backend(&error),
        }
    }

    fn drop_backend(&mut self, error: &BackendError) {
        let guest = &self.model.name;
        tracing::warn!(guest, %error, "the back end's own channel is given up");
        self.backend = None;
        self.generation += 1;
    }

    /// Publishes what was used, so that rings can move or stop.
    pub fn settle(&mut self) {
        (0..self.rings.len()).for_each(|ring| self.flush_ring(ring));
    }

    /// Publishes what was used on one ring, and signals the driver if it asked.
    pub fn flush_ring(&mut self, ring: usize) {
        let Control { rings, counters, .. } = self;
        if !rings[ring].is_ready() || !rings[ring].has_pending() {
            return;
        }
        if !rings[ring].publish() {
            counters.signals_spared += 1;
            return;
        }
        if let Some(call) = &rings[ring].signals.call {
            match signal::raise(call) {
                Ok(()) => counters.signals += 1,
                Err(_) => counters.signals_lost += 1,
            }
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

    /// Whether the driver has to reset the device first.
    pub fn needs_reset(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_NEEDS_RESET as u8 != 0
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
        for ring in 0..self.rings.len() {
            self.stop(ring);
        }
    }

    /// The driver has been reset: what broke is forgotten.
    pub fn recover(&mut self) {
        self.fault = None;
        self.status &= !(VIRTIO_CONFIG_S_NEEDS_RESET as u8);
    }
}
