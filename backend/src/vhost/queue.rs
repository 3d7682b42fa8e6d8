//! One split ring: where it is, what the driver made available, what is used,
//! and who is to be told.
//!
//! Its parts are found in guest memory once, when it starts, and are then read and written
//! where they are. Chains are read ahead in batches: the driver's index once for all of
//! them, each head and first descriptor once, into private memory, where they are judged.
//! Used entries are shown in batches too, and a frame in several mergeable buffers whole
//! (virtio 1.2 section 5.1.6.4); whether the driver wants a signal is asked once a turn.
//! `virtio-queue` does all of it one chain at a time, with a search through the guest's
//! memory for each access, which is too slow for a guest's own frames. Knows nothing of
//! frames or messages.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};

use paste_abi::vhost_user::VringAddr;
use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use super::chain::{DESCRIPTOR_LEN, Descriptor, Piece, Walk};
use super::memory::{GuestRam, Window};

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

/// What is done with the buffers of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// They are read.
    Read,
    /// They are written to.
    Write,
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

/// Chains that are read ahead of being taken, so that waiting for one's descriptor and
/// buffer is waiting for those of the others too.
const AHEAD: usize = 32;

/// Used entries after which they are shown while a turn goes on: the driver gives new
/// buffers while the next ones are worked on.
const SHOW_AFTER: u16 = 32;

// Where in its part each field of a ring is (virtio 1.2 sections 2.7.6 and 2.7.8).
const FLAGS: usize = 0;
const INDEX: usize = 2;
const ENTRIES: usize = 4;
const AVAIL_ENTRY_LEN: usize = 2;
const USED_ENTRY_LEN: usize = 8;

/// A chain that the driver made available, and its first descriptor, both read once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chain {
    head: u16,
    first: Descriptor,
}

impl Chain {
    /// What it is called in the used ring.
    #[inline]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Its only piece, if it has one alone.
    #[inline]
    pub fn alone(&self) -> Option<Piece> {
        self.first.alone()
    }
}

/// Where the parts of a ring that runs are.
#[derive(Debug)]
struct Parts {
    /// The guest address of the table.
    table_addr: u64,
    table: Window,
    avail: Window,
    used: Window,
}

/// One ring.
#[derive(Debug)]
pub struct Ring {
    /// `Some` while it can be used.
    parts: Option<Parts>,
    size: u16,
    size_max: u16,
    /// The next chain to be taken.
    next_avail: u16,
    /// The driver's index when it was last looked at.
    seen_avail: u16,
    /// Chains read ahead, from the next one on; those from `ahead_at` to `ahead_end` are
    /// still to be taken.
    ahead: Box<[Chain; AHEAD]>,
    ahead_at: usize,
    ahead_end: usize,
    /// The used index that the driver sees.
    next_used: u16,
    /// Used entries written and not yet shown.
    pending: u16,
    /// The used index up to which the driver was told, or wanted not to be.
    told: u16,
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
        Ring {
            parts: None,
            size,
            size_max: size,
            next_avail: 0,
            seen_avail: 0,
            ahead: Box::default(),
            ahead_at: 0,
            ahead_end: 0,
            next_used: 0,
            pending: 0,
            told: 0,
            addresses: None,
            signals: Signals::default(),
            enabled: false,
            started: false,
            kicked: false,
            resumed: false,
            features: RingFeatures::default(),
            armed: true,
            starved_at: None,
        }
    }

    /// Back to the state before any message, except that the descriptors to
    /// signal through stay: they belong to the front end, not to the driver.
    pub fn reset(&mut self) {
        let Signals { call, err, .. } = std::mem::take(&mut self.signals);
        let fresh = Ring::new(self.size_max);
        *self = Ring { signals: Signals { kick: None, call, err }, ..fresh };
    }

    /// Sets the number of descriptors.
    pub fn set_size(&mut self, size: u32) -> Result<(), SetupError> {
        if self.started {
            return Err(SetupError::Running);
        }
        let max = self.size_max;
        self.size = u16::try_from(size)
            .ok()
            .filter(|&size| size.is_power_of_two() && size <= max)
            .ok_or(SetupError::Size { size, max })?;
        Ok(())
    }

    /// Sets the next available index.
    pub fn set_base(&mut self, base: u32) -> Result<(), SetupError> {
        if self.started {
            return Err(SetupError::Running);
        }
        self.next_avail = u16::try_from(base).map_err(|_| SetupError::Base(base))?;
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
        let anew = !self.started && self.next_avail == 0;
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
        self.next_avail
    }

    /// Whether the ring is between SET_VRING_KICK and GET_VRING_BASE.
    pub fn is_started(&self) -> bool {
        self.started
    }

    /// Whether the ring can be used.
    #[inline]
    pub fn is_ready(&self) -> bool {
        self.parts.is_some()
    }

    /// Descriptors of the ring.
    #[inline]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Forgets where the ring is. What is not published never will be.
    pub fn disconnect(&mut self) {
        self.parts = None;
        self.pending = 0;
    }

    /// Finds a started ring's parts in guest memory. Does nothing while the
    /// front end has not said where they are.
    pub fn connect(&mut self, mem: &GuestRam, features: RingFeatures) -> Result<(), SetupError> {
        self.disconnect();
        let Some(addresses) = self.addresses.filter(|_| self.started) else {
            return Ok(());
        };
        let size = u64::from(self.size);
        // Virtio 1.2 section 2.7: sizes and alignments of the parts. With
        // EVENT_IDX the driver and the device have one more word each; it is
        // there without it, too.
        let table_len = DESCRIPTOR_LEN as u64 * size;
        let table = locate(mem, TABLE, addresses.descriptor.get(), table_len)?;
        let avail = locate(mem, AVAILABLE, addresses.available.get(), 6 + 2 * size)?;
        let used = locate(mem, USED, addresses.used.get(), 6 + 8 * size)?;
        for (a, b) in [(&table, &avail), (&table, &used), (&avail, &used)] {
            if a.start < b.start + b.len && b.start < a.start + a.len {
                return Err(SetupError::Overlap(a.name, b.name));
            }
        }
        for (part, align) in [(&table, 16), (&avail, 2), (&used, 4)] {
            if !part.start.is_multiple_of(align) {
                return Err(SetupError::Unaligned { part: part.name, addr: part.start });
            }
        }
        self.features = features;
        if !self.resumed {
            self.next_used = used.window.load(INDEX, Ordering::Relaxed);
            self.told = self.next_used;
            self.resumed = true;
        }
        self.seen_avail = self.next_avail;
        (self.ahead_at, self.ahead_end) = (0, 0);
        let table_addr = table.start;
        let (table, avail, used) = (table.window, avail.window, used.window);
        self.parts = Some(Parts { table_addr, table, avail, used });
        Ok(())
    }

    /// Whether the driver has made anything available.
    pub fn has_available(&self) -> bool {
        self.parts.as_ref().is_some_and(|parts| {
            self.seen_avail != self.next_avail || parts.index() != self.next_avail
        })
    }

    /// Takes note of a kick. Whether it was in vain: the ring could be used, and its
    /// driver has never made anything available. The first kick says no such thing: it
    /// starts the ring, and may be the front end's own (vhost-user, "Starting and
    /// stopping rings").
    pub fn kicked_in_vain(&mut self) -> bool {
        std::mem::replace(&mut self.kicked, true)
            && self.next_avail == 0
            && self.parts.as_ref().is_some_and(|parts| parts.index() == 0)
    }

    /// How many chains wait to be taken. [`Ring::arm`] then asks for kicks when
    /// there are more than these, until [`Ring::feed`].
    pub fn survey(&mut self) -> Result<u16, Fault> {
        let Some(parts) = &self.parts else { return Ok(0) };
        let index = parts.index();
        let waiting = index.wrapping_sub(self.next_avail);
        if waiting > self.size {
            return Err(Fault::AvailableIndex { size: self.size });
        }
        self.starved_at = Some(index);
        Ok(waiting)
    }

    /// Takes the next chain.
    #[inline]
    pub fn take(&mut self, mem: &GuestRam, kind: Access) -> Result<Option<Chain>, Fault> {
        if self.ahead_at == self.ahead_end && !self.look_ahead(mem, kind)? {
            return Ok(None);
        }
        let chain = self.ahead[self.ahead_at % AHEAD];
        if chain.head >= self.size {
            return Err(Fault::DescriptorIndex { index: chain.head, size: self.size.into() });
        }
        // What is used and not shown is still out: with it, the driver has
        // made more available than it has descriptors.
        if self.pending == self.size {
            return Err(Fault::AvailableIndex { size: self.size });
        }
        self.ahead_at += 1;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Reads the next chains' heads and first descriptors, and has the CPU fetch what they
    /// point to. False if there are none.
    fn look_ahead(&mut self, mem: &GuestRam, kind: Access) -> Result<bool, Fault> {
        let Some(parts) = &self.parts else { return Ok(false) };
        if self.seen_avail == self.next_avail {
            // What is read behind the index is what the driver had written before it.
            self.seen_avail = parts.index();
        }
        let waiting = self.seen_avail.wrapping_sub(self.next_avail);
        if waiting > self.size {
            return Err(Fault::AvailableIndex { size: self.size });
        }
        let count = usize::from(waiting).min(AHEAD);
        let mask = usize::from(self.size) - 1;
        for (at, chain) in self.ahead[..count].iter_mut().enumerate() {
            let entry = (usize::from(self.next_avail) + at) & mask;
            chain.head = u16::from_le_bytes(parts.avail.read(ENTRIES + AVAIL_ENTRY_LEN * entry));
            // One that is not in the table is complained of when its turn comes.
            let index = usize::from(chain.head) & mask;
            chain.first = Descriptor::of(parts.table.read(DESCRIPTOR_LEN * index));
            mem.prefetch(chain.first.addr(), kind == Access::Write);
        }
        (self.ahead_at, self.ahead_end) = (0, count);
        Ok(count > 0)
    }

    /// The walk along a chain that was taken.
    pub fn walk<'m>(&self, mem: &'m GuestRam, chain: &Chain) -> Walk<'m> {
        let table = self.parts.as_ref().map_or(0, |parts| parts.table_addr);
        Walk::new(mem, table, self.size, chain.first, self.features.indirect)
    }

    /// Marks a chain as used with `len` bytes written to it; the driver sees it
    /// after [`Ring::show`] or [`Ring::publish`].
    #[inline]
    pub fn put_used(&mut self, head: u16, len: u32) {
        let Some(parts) = &self.parts else { return };
        let slot = usize::from(self.next_used.wrapping_add(self.pending) & (self.size - 1));
        let element = u64::from(head) | u64::from(len) << 32;
        parts.used.write(ENTRIES + USED_ENTRY_LEN * slot, element.to_le_bytes());
        self.pending += 1;
    }

    /// Gives back the last `chains` taken and, of the used entries, the last
    /// `used`: nothing of them was shown.
    pub fn rewind(&mut self, chains: u16, used: u16) {
        self.next_avail = self.next_avail.wrapping_sub(chains);
        match self.ahead_at.checked_sub(usize::from(chains)) {
            Some(at) => self.ahead_at = at,
            // They are read again.
            None => (self.ahead_at, self.ahead_end) = (0, 0),
        }
        self.pending -= used;
    }

    /// Remembers that what is available now was not enough.
    pub fn starve(&mut self) {
        self.starved_at = Some(self.seen_avail);
    }

    /// Forgets [`Ring::starve`] and [`Ring::survey`].
    #[inline]
    pub fn feed(&mut self) {
        self.starved_at = None;
    }

    /// Whether used entries wait for [`Ring::publish`].
    pub fn has_pending(&self) -> bool {
        self.told != self.next_used.wrapping_add(self.pending)
    }

    /// Shows the driver what was used, if that is some by now. Whether it is to be told is
    /// asked at [`Ring::publish`].
    #[inline]
    pub fn show(&mut self) {
        if self.pending >= SHOW_AFTER {
            self.show_all();
        }
    }

    fn show_all(&mut self) {
        if let Some(parts) = &self.parts {
            self.next_used = self.next_used.wrapping_add(self.pending);
            parts.used.store(INDEX, self.next_used, Ordering::Release);
            self.pending = 0;
        }
    }

    /// Shows the driver what was used, and says whether it wants to be told
    /// (virtio 1.2 section 2.7.7).
    pub fn publish(&mut self) -> bool {
        if self.pending != 0 {
            self.show_all();
        }
        let (Some(parts), true) = (&self.parts, self.told != self.next_used) else {
            return false;
        };
        let (old, new) = (self.told, self.next_used);
        self.told = new;
        // The driver publishes its wish and then looks at the index; the index
        // must be visible before the wish is read, or both could miss.
        fence(Ordering::SeqCst);
        if self.features.event_idx {
            let at = ENTRIES + AVAIL_ENTRY_LEN * usize::from(self.size);
            let event = parts.avail.load(at, Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            parts.avail.load(FLAGS, Ordering::Relaxed) & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0
        }
    }

    /// Whether the driver has taken all that was published, as far as it tells: where it
    /// names the next used entry that it wants to be told of (virtio 1.2 section 2.7.7.1).
    pub fn is_taken(&self) -> bool {
        let Some(parts) = &self.parts else { return false };
        let at = ENTRIES + AVAIL_ENTRY_LEN * usize::from(self.size);
        !self.features.event_idx || parts.avail.load(at, Ordering::Relaxed) == self.next_used
    }

    /// Asks the driver to kick when it makes more available than what was seen;
    /// true if it did so in the meantime.
    pub fn arm(&mut self) -> bool {
        self.armed = true;
        let Some(parts) = &self.parts else { return false };
        // Starved, the chains that are there were seen already.
        let seen = self.starved_at.unwrap_or(self.next_avail);
        if self.features.event_idx {
            let at = ENTRIES + USED_ENTRY_LEN * usize::from(self.size);
            parts.used.store(at, seen, Ordering::Relaxed);
        } else {
            parts.used.store(FLAGS, 0, Ordering::Relaxed);
        }
        // As in `publish`, the other way around.
        fence(Ordering::SeqCst);
        parts.index() != seen
    }

    /// Whether the last frame found too little room.
    pub fn is_starved(&self) -> bool {
        self.starved_at.is_some()
    }

    /// Tells the driver that kicks are not needed. With VIRTIO_F_EVENT_IDX it has not to be
    /// told: it kicks once for each [`Ring::arm`].
    pub fn disarm(&mut self) {
        if let (true, Some(parts)) = (self.armed, &self.parts) {
            if !self.features.event_idx {
                parts.used.store(FLAGS, VRING_USED_F_NO_NOTIFY as u16, Ordering::Relaxed);
            }
            self.armed = false;
        }
    }

    /// The kick descriptor, to be watched.
    pub fn kick(&self) -> Option<BorrowedFd<'_>> {
        self.signals.kick.as_ref().map(AsFd::as_fd)
    }
}

impl Parts {
    /// The driver's index.
    #[inline]
    fn index(&self) -> u16 {
        self.avail.load(INDEX, Ordering::Acquire)
    }
}

/// A part of a ring in guest memory.
struct Part {
    name: &'static str,
    start: u64,
    len: u64,
    window: Window,
}

fn locate(mem: &GuestRam, name: &'static str, user: u64, len: u64) -> Result<Part, SetupError> {
    let (start, window) =
        mem.window(user, len).ok_or(SetupError::Unmapped { part: name, user, len })?;
    Ok(Part { name, start, len, window })
}
