//! One split ring: where it is, what the driver made available, what is used,
//! and who is to be told.
//!
//! `virtio-queue` keeps the positions, checks the driver's index and the
//! alignment, and speaks the kick suppression. Used entries are published here,
//! because its `add_used` shows each one at once: a frame in several mergeable
//! buffers must appear whole (virtio 1.2 section 5.1.6.4), and a turn's entries
//! cost one store. Knows nothing of frames or messages.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use paste_abi::vhost_user::VringAddr;
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use super::chain::{DESCRIPTOR_LEN, Walk};
use super::memory::GuestRam;

/// A driver broke its ring. The device stops until the driver resets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ring {ring}: {fault}")]
pub struct RingError {
    /// Index of the ring.
    pub ring: usize,
    /// What was wrong.
    pub fault: Fault,
}

/// What a driver did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// More chains made available than the ring has room for.
    #[error("the available index is further ahead than the ring's {size} entries")]
    AvailableIndex {
        /// Descriptors of the ring.
        size: u16,
    },
    /// A chain's head or next descriptor is not in its table.
    #[error("descriptor {index} is not in a table of {size}")]
    DescriptorIndex {
        /// The index.
        index: u16,
        /// Descriptors of the table.
        size: u32,
    },
    /// More descriptors in a chain than in its table: a circle.
    #[error("the descriptor chain does not end")]
    ChainTooLong,
    /// A descriptor with nothing in it.
    #[error("a descriptor has length zero")]
    ZeroLength,
    /// Memory that the guest does not have, or not all of it.
    #[error("{len} bytes at {addr:#x} are not in the guest's memory")]
    Outside {
        /// Guest address.
        addr: u64,
        /// Bytes.
        len: u64,
    },
    /// An indirect table, without VIRTIO_F_INDIRECT_DESC.
    #[error("an indirect descriptor, which was not negotiated")]
    IndirectNotNegotiated,
    /// An indirect table in an indirect table.
    #[error("an indirect descriptor in an indirect table")]
    IndirectNested,
    /// An indirect table that is not the chain's last descriptor.
    #[error("an indirect descriptor that is followed by another")]
    IndirectWithNext,
    /// An indirect table that is empty, or ends within a descriptor.
    #[error("an indirect table of {len} bytes is not a number of descriptors")]
    IndirectLength {
        /// Bytes of the table.
        len: u32,
    },
    /// A buffer for the device to write, in the ring that it reads from.
    #[error("a buffer to be written in the transmit ring")]
    WritableInTx,
    /// A buffer for the device to read, in the ring that it writes to.
    #[error("a buffer to be read in the receive ring")]
    ReadableInRx,
    /// A receive chain without room for the virtio-net header.
    #[error("a receive buffer of {len} bytes has no room for the header")]
    HeaderRoom {
        /// Bytes of the chain.
        len: u32,
    },
    /// A buffer for the device to read, behind one that it writes to (virtio 1.2
    /// section 2.7.4.2).
    #[error("a buffer to be read behind one to be written")]
    ReadableBehindWritable,
}

impl Fault {
    /// Names of the kinds of faults, for counters.
    pub const KINDS: [&'static str; 13] = [
        "fault.available_index",
        "fault.descriptor_index",
        "fault.chain_too_long",
        "fault.zero_length",
        "fault.outside",
        "fault.indirect_not_negotiated",
        "fault.indirect_nested",
        "fault.indirect_with_next",
        "fault.indirect_length",
        "fault.writable_in_tx",
        "fault.readable_in_rx",
        "fault.header_room",
        "fault.readable_behind_writable",
    ];

    /// Index into [`Fault::KINDS`].
    pub const fn kind(&self) -> usize {
        match self {
            Fault::AvailableIndex { .. } => 0,
            Fault::DescriptorIndex { .. } => 1,
            Fault::ChainTooLong => 2,
            Fault::ZeroLength => 3,
            Fault::Outside { .. } => 4,
            Fault::IndirectNotNegotiated => 5,
            Fault::IndirectNested => 6,
            Fault::IndirectWithNext => 7,
            Fault::IndirectLength { .. } => 8,
            Fault::WritableInTx => 9,
            Fault::ReadableInRx => 10,
            Fault::HeaderRoom { .. } => 11,
            Fault::ReadableBehindWritable => 12,
        }
    }
}

/// Why a ring cannot be used as the front end set it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// Not a power of two, zero, or more than the device takes.
    #[error("size {size} is not a power of two of at most {max}")]
    Size {
        /// The size.
        size: u32,
        /// The largest size.
        max: u16,
    },
    /// The position does not fit into the ring's 16 bits.
    #[error("index {0} is not a 16-bit number")]
    Base(u32),
    /// A part of the ring is not in one range of shared memory.
    #[error("the {part} of {len} bytes at front-end address {user:#x} is not in shared memory")]
    Unmapped {
        /// Which part.
        part: &'static str,
        /// Its address in the front end.
        user: u64,
        /// Its length.
        len: u64,
    },
    /// A part of the ring is not aligned (virtio 1.2 section 2.7).
    #[error("the {part} at guest address {addr:#x} is not aligned")]
    Unaligned {
        /// Which part.
        part: &'static str,
        /// Its guest address.
        addr: u64,
    },
    /// Parts of the ring overlap.
    #[error("the {0} overlaps the {1}")]
    Overlap(&'static str, &'static str),
    /// The parameter cannot change while the ring runs.
    #[error("the ring is running; stop it with GET_VRING_BASE first")]
    Running,
}

/// The largest ring (virtio 1.2 section 2.7).
const SIZE_MAX: u16 = 1 << 15;

const TABLE: &str = "descriptor table";
const AVAILABLE: &str = "available ring";
const USED: &str = "used ring";

/// Descriptors that come with a ring.
#[derive(Debug, Default)]
pub struct Signals {
    /// From the driver: something is available.
    pub kick: Option<OwnedFd>,
    /// To the driver: something is used.
    pub call: Option<OwnedFd>,
    /// To the front end: the ring is broken.
    pub err: Option<OwnedFd>,
}

/// What of the negotiated features concerns a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingFeatures {
    /// VIRTIO_F_EVENT_IDX.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC.
    pub indirect: bool,
}

/// One ring.
#[derive(Debug)]
pub struct Ring {
    /// Its positions and guest addresses; `ready` while it can be used.
    queue: Queue,
    addresses: Option<VringAddr>,
    /// The descriptors to signal through.
    pub signals: Signals,
    /// The front end lets frames through it.
    pub enabled: bool,
    /// Between SET_VRING_KICK and GET_VRING_BASE.
    started: bool,
    /// It was kicked since it started.
    kicked: bool,
    /// The used position was taken over from the ring since it started.
    resumed: bool,
    features: RingFeatures,
    /// Used entries written and not yet published.
    pending: u16,
    /// The driver was told to kick.
    armed: bool,
    /// The driver's index when it had made too little available.
    starved_at: Option<u16>,
}

impl Ring {
    /// A ring of at most `size_max` descriptors, which is cut to a power of two
    /// from 1 to 32768.
    pub fn new(size_max: u16) -> Ring {
        let size = 1 << size_max.clamp(1, SIZE_MAX).ilog2();
        let queue = Queue::new(size).expect("a power of two in range");
        Ring {
            queue,
            addresses: None,
            signals: Signals::default(),
            enabled: false,
            started: false,
            kicked: false,
            resumed: false,
            features: RingFeatures::default(),
            pending: 0,
            armed: true,
            starved_at: None,
        }
    }

    /// Back to the state before any message, except that the descriptors to
    /// signal through stay: they belong to the front end, not to the driver.
    pub fn reset(&mut self) {
        let Signals { call, err, .. } = std::mem::take(&mut self.signals);
        let fresh = Ring::new(self.queue.max_size());
        *self = Ring { signals: Signals { kick: None, call, err }, ..fresh };
    }

    /// Sets the number of descriptors.
    pub fn set_size(&mut self, size: u32) -> Result<(), SetupError> {
        if self.started {
            return Err(SetupError::Running);
        }
        let max = self.queue.max_size();
        u16::try_from(size)
            .ok()
            .filter(|&size| self.queue.try_set_size(size).is_ok())
            .map(drop)
            .ok_or(SetupError::Size { size, max })
    }

    /// Sets the next available index.
    pub fn set_base(&mut self, base: u32) -> Result<(), SetupError> {
        if self.started {
            return Err(SetupError::Running);
        }
        let base = u16::try_from(base).map_err(|_| SetupError::Base(base))?;
        self.queue.set_next_avail(base);
        Ok(())
    }

    /// Sets the front-end addresses of the ring's parts. A running ring does
    /// not move.
    pub fn set_addresses(&mut self, addresses: VringAddr) -> Result<(), SetupError> {
        let parts = |a: &VringAddr| [a.descriptor, a.available, a.used].map(|part| part.get());
        if self.started && self.addresses.as_ref().is_some_and(|a| parts(a) != parts(&addresses)) {
            return Err(SetupError::Running);
        }
        self.addresses = Some(addresses);
        Ok(())
    }

    /// Starts the ring; it runs as soon as [`Ring::connect`] succeeds. A ring
    /// that runs already only changes its kick descriptor. Returns whether it
    /// started from index 0, as a new driver does.
    pub fn start(&mut self, kick: Option<OwnedFd>) -> bool {
        self.signals.kick = kick;
        let anew = !self.started && self.queue.next_avail() == 0;
        if !self.started {
            self.started = true;
            self.kicked = false;
            self.resumed = false;
            self.armed = true;
            self.starved_at = None;
        }
        anew
    }

    /// Stops the ring and says its next available index.
    pub fn stop(&mut self) -> u16 {
        self.disconnect();
        self.started = false;
        self.signals.kick = None;
        self.queue.next_avail()
    }

    /// Whether the ring is between SET_VRING_KICK and GET_VRING_BASE.
    pub fn is_started(&self) -> bool {
        self.started
    }

    /// Whether the ring can be used.
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// Descriptors of the ring.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Forgets where the ring is. What is not published never will be.
    pub fn disconnect(&mut self) {
        self.queue.set_ready(false);
        self.pending = 0;
    }

    /// Finds a started ring's parts in guest memory. Does nothing while the
    /// front end has not said where they are.
    pub fn connect(&mut self, mem: &GuestRam, features: RingFeatures) -> Result<(), SetupError> {
        self.disconnect();
        let Some(addresses) = self.addresses.filter(|_| self.started) else {
            return Ok(());
        };
        let size = u64::from(self.queue.size());
        // Virtio 1.2 section 2.7: sizes and alignments of the parts. With
        // EVENT_IDX the driver and the device have one more word each; it is
        // there without it, too.
        let table = locate(mem, TABLE, addresses.descriptor.get(), DESCRIPTOR_LEN * size)?;
        let avail = locate(mem, AVAILABLE, addresses.available.get(), 6 + 2 * size)?;
        let used = locate(mem, USED, addresses.used.get(), 6 + 8 * size)?;
        for (a, b) in [(&table, &avail), (&table, &used), (&avail, &used)] {
            if a.start < b.start + b.len && b.start < a.start + a.len {
                return Err(SetupError::Overlap(a.name, b.name));
            }
        }
        let unaligned = |part: &Part| SetupError::Unaligned { part: part.name, addr: part.start };
        let queue = &mut self.queue;
        queue
            .try_set_desc_table_address(GuestAddress(table.start))
            .map_err(|_| unaligned(&table))?;
        queue
            .try_set_avail_ring_address(GuestAddress(avail.start))
            .map_err(|_| unaligned(&avail))?;
        queue.try_set_used_ring_address(GuestAddress(used.start)).map_err(|_| unaligned(&used))?;
        queue.set_event_idx(features.event_idx);
        self.features = features;
        if !self.resumed {
            let index = queue.used_idx(mem, Ordering::Relaxed).map_err(|_| {
                SetupError::Unmapped { part: USED, user: addresses.used.get(), len: used.len }
            })?;
            queue.set_next_used(index.0);
            self.resumed = true;
        }
        self.queue.set_ready(true);
        Ok(())
    }

    /// Whether the driver has made anything available.
    pub fn has_available(&self, mem: &GuestRam) -> bool {
        self.queue.ready()
            && self
                .queue
                .avail_idx(mem, Ordering::Acquire)
                .is_ok_and(|index| index.0 != self.queue.next_avail())
    }

    /// Takes note of a kick. Whether it was in vain: the ring could be used, and its
    /// driver has never made anything available. The first kick says no such thing: it
    /// starts the ring, and may be the front end's own (vhost-user, "Starting and
    /// stopping rings").
    pub fn kicked_in_vain(&mut self, mem: &GuestRam) -> bool {
        std::mem::replace(&mut self.kicked, true)
            && self.queue.ready()
            && self.queue.next_avail() == 0
            && self.queue.avail_idx(mem, Ordering::Acquire).is_ok_and(|index| index.0 == 0)
    }

    /// How many chains wait to be taken. [`Ring::arm`] then asks for kicks when
    /// there are more than these, until [`Ring::feed`].
    pub fn survey(&mut self, mem: &GuestRam) -> Result<u16, Fault> {
        let index = self
            .queue
            .avail_idx(mem, Ordering::Acquire)
            .map_err(|_| Fault::Outside { addr: self.queue.avail_ring(), len: 2 })?;
        let waiting = index.0.wrapping_sub(self.queue.next_avail());
        if waiting > self.queue.size() {
            return Err(Fault::AvailableIndex { size: self.queue.size() });
        }
        self.starved_at = Some(index.0);
        Ok(waiting)
    }

    /// Takes the next chain, and gives its head and the walk along it.
    pub fn take<'m>(&mut self, mem: &'m GuestRam) -> Result<Option<(u16, Walk<'m>)>, Fault> {
        let size = self.queue.size();
        let table = GuestAddress(self.queue.desc_table());
        let head = match self.queue.iter(mem) {
            Ok(mut available) => available.next().map(|chain| chain.head_index()),
            Err(virtio_queue::Error::InvalidAvailRingIndex) => {
                return Err(Fault::AvailableIndex { size });
            }
            Err(_) => {
                return Err(Fault::Outside { addr: self.queue.avail_ring(), len: 2 });
            }
        };
        let Some(head) = head else { return Ok(None) };
        if head >= size {
            return Err(Fault::DescriptorIndex { index: head, size: u32::from(size) });
        }
        // What is used and unpublished is still out: with it, the driver has
        // made more available than it has descriptors.
        if self.pending == size {
            return Err(Fault::AvailableIndex { size });
        }
        Ok(Some((head, Walk::new(mem, table, size, head, self.features.indirect))))
    }

    /// Marks a chain as used with `len` bytes written to it; the driver sees it
    /// after [`Ring::publish`].
    pub fn put_used(&mut self, mem: &GuestRam, head: u16, len: u32) -> Result<(), Fault> {
        let slot = self.queue.next_used().wrapping_add(self.pending) % self.queue.size();
        let mut element = [0; 8];
        element[..4].copy_from_slice(&u32::from(head).to_le_bytes());
        element[4..].copy_from_slice(&len.to_le_bytes());
        let addr = self.used_at(4 + 8 * u64::from(slot))?;
        mem.write_slice(&element, addr).map_err(|_| Fault::Outside { addr: addr.0, len: 8 })?;
        self.pending += 1;
        Ok(())
    }

    /// Gives back the last `chains` taken and, of the used entries, the last
    /// `used`: nothing of them was published.
    pub fn rewind(&mut self, chains: u16, used: u16) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(chains));
        self.pending -= used;
    }

    /// Remembers that what is available now was not enough.
    pub fn starve(&mut self, mem: &GuestRam) {
        self.starved_at = self.queue.avail_idx(mem, Ordering::Relaxed).ok().map(|index| index.0);
    }

    /// Forgets [`Ring::starve`] and [`Ring::survey`].
    pub fn feed(&mut self) {
        self.starved_at = None;
    }

    /// Whether used entries wait for [`Ring::publish`].
    pub fn has_pending(&self) -> bool {
        self.pending != 0
    }

    /// Shows the driver what was used, and says whether it wants to be told
    /// (virtio 1.2 section 2.7.7).
    pub fn publish(&mut self, mem: &GuestRam) -> Result<bool, Fault> {
        if self.pending == 0 {
            return Ok(false);
        }
        let old = self.queue.next_used();
        let new = old.wrapping_add(self.pending);
        let addr = self.used_at(2)?;
        mem.store(new.to_le(), addr, Ordering::Release)
            .map_err(|_| Fault::Outside { addr: addr.0, len: 2 })?;
        self.queue.set_next_used(new);
        self.pending = 0;
        // The driver publishes its wish and then looks at the index; the index
        // must be visible before the wish is read, or both could miss.
        fence(Ordering::SeqCst);
        if self.features.event_idx {
            let event = self.read_avail(mem, 4 + 2 * u64::from(self.queue.size()))?;
            Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
        } else {
            let flags = self.read_avail(mem, 0)?;
            Ok(flags & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
        }
    }

    /// Asks the driver to kick when it makes more available than what was seen;
    /// true if it did so in the meantime.
    pub fn arm(&mut self, mem: &GuestRam) -> Result<bool, Fault> {
        // Starved, the chains that are there were seen already.
        let next = self.queue.next_avail();
        self.queue.set_next_avail(self.starved_at.unwrap_or(next));
        let more = self.queue.enable_notification(mem);
        self.queue.set_next_avail(next);
        self.armed = true;
        more.map_err(|_| Fault::Outside { addr: self.queue.used_ring(), len: 2 })
    }

    /// Whether the last frame found too little room.
    pub fn is_starved(&self) -> bool {
        self.starved_at.is_some()
    }

    /// Tells the driver that kicks are not needed.
    pub fn disarm(&mut self, mem: &GuestRam) {
        if self.armed && self.queue.ready() {
            // If it cannot be written, the next access will say so.
            let _ = self.queue.disable_notification(mem);
            self.armed = false;
        }
    }

    fn used_at(&self, offset: u64) -> Result<GuestAddress, Fault> {
        let addr = self.queue.used_ring();
        GuestAddress(addr).checked_add(offset).ok_or(Fault::Outside { addr, len: offset })
    }

    fn read_avail(&self, mem: &GuestRam, offset: u64) -> Result<u16, Fault> {
        let outside = Fault::Outside { addr: self.queue.avail_ring(), len: offset + 2 };
        let addr = GuestAddress(self.queue.avail_ring()).checked_add(offset).ok_or(outside)?;
        mem.load(addr, Ordering::Relaxed).map(u16::from_le).map_err(|_| outside)
    }

    /// The kick descriptor, to be watched.
    pub fn kick(&self) -> Option<BorrowedFd<'_>> {
        self.signals.kick.as_ref().map(AsFd::as_fd)
    }
}

/// A part of a ring in guest memory.
struct Part {
    name: &'static str,
    start: u64,
    len: u64,
}

fn locate(mem: &GuestRam, name: &'static str, user: u64, len: u64) -> Result<Part, SetupError> {
    let start =
        mem.guest_address(user, len).ok_or(SetupError::Unmapped { part: name, user, len })?;
    Ok(Part { name, start: start.0, len })
}
