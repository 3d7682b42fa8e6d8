//! A device as its worker sees it: a session to serve, and rings to move data
//! through. What every device does is here, and what virtio-net does with its two
//! rings; the other devices have rooms of their own.
//!
//! One worker thread owns a device; there are no locks. The data path
//! ([`Device::next_tx`], [`Device::push_rx`], [`Device::flush`]) allocates
//! nothing and makes no system call but one signal for each ring and flush.
//! What the guest wrote is copied once and judged afterwards, by the worker.
//!
//! A driver that breaks its ring stops the device: the call that noticed
//! returns the [`RingError`], every later one finds nothing to do, and the
//! driver is told to reset the device.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use paste_abi::net_hdr::{NET_HDR_LEN, NetHdr};
use paste_abi::vhost_user::{CONFIG_MAX, protocol};
use rustix::event::{PollFd, PollFlags, Timespec};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use vm_memory::{Address, GuestAddress};
use zerocopy::IntoBytes;

use super::chain::Piece;
use super::control::{CONFIG_MTU, Control, Model, PAIRS_MAX, RINGS_MAX, RX, RegionFd, TX, feature};
use super::counters::DeviceCounters;
use super::memory::GuestRam;
use super::net::Offloads;
use super::queue::{Access, Chain, Fault, Ring, RingError};
use super::session::{Session, SessionError};
use super::signal;
use crate::ethernet;
use crate::link::{Link, LinkError, Taken as LinkTaken};

/// Features of virtio-net that are about what is in its headers (virtio 1.2 section
/// 5.1.3): checksums, and segmentation of TCP with ECN, both ways.
const LINK_FEATURES: u64 = feature(VIRTIO_NET_F_CSUM)
    | feature(VIRTIO_NET_F_GUEST_CSUM)
    | feature(VIRTIO_NET_F_GUEST_TSO4)
    | feature(VIRTIO_NET_F_GUEST_TSO6)
    | feature(VIRTIO_NET_F_GUEST_ECN)
    | feature(VIRTIO_NET_F_HOST_TSO4)
    | feature(VIRTIO_NET_F_HOST_TSO6)
    | feature(VIRTIO_NET_F_HOST_ECN);

/// Chains are used in the order in which they are made available, of either ring
/// (VIRTIO_F_IN_ORDER, virtio 1.2 section 2.7.9): drivers keep no list of free descriptors.
const F_IN_ORDER: u32 = 35;

/// Frames of a link that are thrown away in one call, at most.
const LINK_BUDGET: usize = 256;

/// Bytes of the virtio-net header of a legacy driver without mergeable buffers,
/// which lacks `num_buffers` (virtio 1.2 section 5.1.6.1).
const LEGACY_HDR_LEN: usize = 10;

/// A descriptor that the event loop watches for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// The front end's socket: [`Device::handle_messages`].
    Session,
    /// The back end's own channel: [`Device::handle_messages`].
    Backend,
    /// Kicks of a ring: [`Device::take_kick`].
    Kick(usize),
    /// Frames of a link: the next turn takes them.
    Link,
}

impl Watch {
    /// A small number for this watch.
    pub fn to_index(self) -> u32 {
        match self {
            Watch::Session => 0,
            Watch::Backend => 1,
            Watch::Kick(ring) => 2 + ring as u32,
            Watch::Link => 2 + RINGS_MAX as u32,
        }
    }

    /// The watch with this number.
    pub fn from_index(index: u32) -> Option<Watch> {
        match index {
            0 => Some(Watch::Session),
            1 => Some(Watch::Backend),
            index => {
                let ring = (index - 2) as usize;
                match ring {
                    RINGS_MAX => Some(Watch::Link),
                    _ => (ring < RINGS_MAX).then_some(Watch::Kick(ring)),
                }
            }
        }
    }
}

/// What a virtio-net device is made with.
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
    /// Packets of several TCP segments may pass, both ways; they need `csum`.
    pub segments: bool,
    /// The region, where front ends without a virtio-pmem device map it.
    pub region: Option<RegionFd>,
    /// Descriptors of a ring at most; cut to a power of two from 1 to 32768.
    pub queue_size_max: u16,
    /// Pairs of rings, from 1 to [`PAIRS_MAX`]. The driver uses one until it says otherwise.
    pub pairs: usize,
}

impl DeviceOptions {
    fn model(self) -> Model {
        let csum = feature(VIRTIO_NET_F_CSUM) | feature(VIRTIO_NET_F_GUEST_CSUM);
        // To the guest no packet comes whose first segment has CWR.
        let segments = [
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
        ];
        let segments = segments.into_iter().fold(0, |all, bit| all | feature(bit));
        // `struct virtio_net_config` (virtio 1.2 section 5.1.4): MAC address,
        // status, queue pairs, MTU; zeros for what comes with features that are
        // not offered.
        let mut config = [0; CONFIG_MAX];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        let pairs = self.pairs.clamp(1, PAIRS_MAX);
        config[8..10].copy_from_slice(&(pairs as u16).to_le_bytes());
        // The queue that the driver says it on is the front end's, which then enables rings.
        let several = feature(VIRTIO_NET_F_MQ) | feature(VIRTIO_NET_F_CTRL_VQ);
        config[CONFIG_MTU].copy_from_slice(&self.mtu.to_le_bytes());
        Model {
            name: self.name,
            rings: 2 * pairs,
            features: feature(VIRTIO_NET_F_MAC)
                | feature(VIRTIO_NET_F_STATUS)
                | feature(VIRTIO_NET_F_MTU)
                | feature(VIRTIO_NET_F_MRG_RXBUF)
                | feature(F_IN_ORDER)
                | if self.csum { csum } else { 0 }
                | if self.csum && self.segments { segments } else { 0 }
                | if pairs > 1 { several } else { 0 },
            protocol: protocol::MTU,
            config,
            mtu_max: self.mtu,
            region: self.region,
            queue_size_max: self.queue_size_max,
        }
    }
}

/// A virtio-net device's own part of a [`Device`].
#[derive(Debug)]
pub struct Net;

/// A virtio device behind a vhost-user session; `T` says of which type.
#[derive(Debug)]
pub struct Device<T = Net> {
    pub(super) control: Control,
    session: Option<Session>,
    /// In place of a session and its rings: frames pass through this.
    link: Option<Link>,
    _type: PhantomData<T>,
}

impl Device {
    /// A virtio-net device without a front end.
    pub fn new(options: DeviceOptions) -> Device {
        Device::of(options.model())
    }
}

/// What every device does.
impl<T> Device<T> {
    /// A device without a front end.
    pub(super) fn of(model: Model) -> Device<T> {
        let control = Control::new(model);
        Device { control, session: None, link: None, _type: PhantomData }
    }

    /// Starts a session. [`io::ErrorKind::AlreadyExists`] if there is one.
    pub fn attach(&mut self, stream: UnixStream) -> io::Result<()> {
        if self.is_attached() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        stream.set_nonblocking(true)?;
        self.session = Some(Session::new(stream));
        self.control.counters.sessions += 1;
        self.control.generation += 1;
        Ok(())
    }

    /// Ends the session: its memory is unmapped, its descriptors are closed.
    /// The counters stay.
    pub fn detach(&mut self) {
        self.session = None;
        self.link = None;
        self.control.clear();
    }

    /// Whether there is a session, or a link.
    pub fn is_attached(&self) -> bool {
        self.session.is_some() || self.link.is_some()
    }

    /// Whether data can pass through the first pair of rings, or the only ring.
    pub fn is_running(&self) -> bool {
        if self.link.is_some() {
            return self.control.features.is_some();
        }
        self.control.rings.iter().take(2).all(|ring| ring.is_ready() && ring.enabled)
    }

    /// Whether the front end, or the back end's own channel, has said anything that
    /// [`Device::handle_messages`] has not seen. One system call.
    pub fn has_messages(&self) -> bool {
        let session = self.session.iter().map(|session| session.as_fd());
        let backend = self.control.backend.iter().map(|backend| backend.as_fd());
        let fds: Vec<_> = session.chain(backend).collect();
        let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        !polled.is_empty() && rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|n| n > 0)
    }

    /// Handles what has come from the front end. After an error the session
    /// cannot go on: the caller detaches. [`SessionError::Closed`] is the good end.
    pub fn handle_messages(&mut self) -> Result<(), SessionError> {
        let Some(session) = &mut self.session else {
            return Ok(());
        };
        session.serve(&mut self.control)?;
        self.control.poll_backend();
        Ok(())
    }

    /// The descriptors to be watched, for becoming readable.
    pub fn watch(&self) -> impl Iterator<Item = (Watch, BorrowedFd<'_>)> {
        let session = self.session.as_ref().map(|session| (Watch::Session, session.as_fd()));
        let backend = self.control.backend.as_ref().map(|fd| (Watch::Backend, fd.as_fd()));
        let kicks = self.control.rings.iter().enumerate();
        let kicks = kicks.filter_map(|(i, ring)| Some((Watch::Kick(i), ring.kick()?)));
        let link = self.link.as_ref().map(|link| (Watch::Link, link.fd()));
        session.into_iter().chain(backend).chain(kicks).chain(link)
    }

    /// Changes whenever [`Device::watch`] may give another set.
    pub fn watch_generation(&self) -> u64 {
        self.control.generation
    }

    /// Takes the kicks that have come for a ring. A descriptor whose other end
    /// is gone would be readable for ever; it is closed.
    pub fn take_kick(&mut self, ring: usize) {
        let Some(ring) = self.control.rings.get_mut(ring) else {
            return;
        };
        let in_vain = ring.kicked_in_vain();
        let Some(kick) = &ring.signals.kick else {
            return;
        };
        self.control.counters.kicks += 1;
        self.control.counters.kicks_in_vain += u64::from(in_vain);
        // In a VMM that shares a copy of the guest's memory, what a driver makes available
        // never shows.
        if in_vain && !self.control.warned_of_memory {
            self.control.warned_of_memory = true;
            let guest = &self.control.model.name;
            tracing::warn!(
                guest,
                "a ring was kicked and nothing was ever put into it: the memory that the VMM \
                 shares is not the guest's; give its memory backend share=on"
            );
        }
        if let Err(error) = signal::clear(kick) {
            tracing::debug!(%error, "a kick descriptor is given up");
            ring.signals.kick = None;
            self.control.counters.kicks_lost += 1;
            self.control.generation += 1;
        }
    }

    /// Shows the driver what was used since the last time, and signals each
    /// ring at most once, if the driver asked for it.
    pub fn flush(&mut self) {
        match &mut self.link {
            Some(link) => link.flush(),
            None => self.control.settle(),
        }
    }

    /// Stops the device until the driver resets it, for a reason of the
    /// worker's. Rings that broke have done so by themselves.
    pub fn fail(&mut self) {
        self.control.halt();
    }

    /// What broke, until the driver resets the device.
    pub fn fault(&self) -> Option<&RingError> {
        self.control.fault.as_ref()
    }

    /// Whether guest memory was cut under its mapping. What the guest says is
    /// worth nothing then; the caller detaches.
    pub fn is_poisoned(&self) -> bool {
        self.control.mem.is_poisoned()
    }

    /// How often a driver began anew. What was under way for the driver before
    /// is void.
    pub fn resets(&self) -> u64 {
        self.control.counters.resets
    }

    /// Whether the front end has mapped the region into its shared memory.
    pub fn is_region_mapped(&self) -> bool {
        self.control.backend.as_ref().is_some_and(|backend| backend.is_mapped())
    }

    /// Totals.
    pub fn counters(&self) -> &DeviceCounters {
        &self.control.counters
    }
}

/// A virtio-net device on a link: the VMM emulates the device, and hands frames over.
impl Device {
    /// Features that the VMM may offer to its driver: those that concern what is in the
    /// virtio-net headers. The rest is the VMM's own.
    pub fn link_features(&self) -> u64 {
        self.control.model.features & LINK_FEATURES
    }

    /// Starts passing frames through a link. `features` are those of a driver that began
    /// with another process, if one did.
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if there is a session or a link.
    pub fn attach_link(&mut self, link: Link, features: Option<u64>) -> io::Result<()> {
        if self.is_attached() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        self.link = Some(link);
        self.control.features = features;
        self.control.counters.sessions += 1;
        self.control.generation += 1;
        Ok(())
    }

    /// Why the link has ended, once it has; the caller detaches.
    pub fn link_error(&self) -> Option<LinkError> {
        self.link.as_ref().and_then(Link::error)
    }

    /// Whether the link is to be flushed again soon, as it had no room.
    pub fn is_blocked(&self) -> bool {
        self.link.as_ref().is_some_and(Link::is_blocked)
    }

    fn next_of_link(&mut self, out: &mut [u8]) -> Option<usize> {
        let offered = self.link_features();
        let (link, Control { counters, features, .. }) = (self.link.as_mut()?, &mut self.control);
        // As many as a record has of the shortest, at most.
        for _ in 0..LINK_BUDGET {
            match link.take(out) {
                LinkTaken::Nothing => break,
                LinkTaken::Oversize => counters.tx_oversize += 1,
                LinkTaken::Features(accepted) if accepted & !offered != 0 => {
                    link.fail(LinkError::Features(accepted & !offered));
                }
                LinkTaken::Features(accepted) => {
                    *features = Some(accepted);
                    counters.resets += 1;
                    break;
                }
                // Before its driver has begun, nobody has sent it.
                LinkTaken::Frame(_) if features.is_none() => counters.tx_disabled += 1,
                LinkTaken::Frame(len) => {
                    counters.tx_frames += 1;
                    counters.tx_bytes += (len - NET_HDR_LEN) as u64;
                    return Some(len);
                }
            }
        }
        None
    }

    fn push_to_link(&mut self, parts: &[&[u8]], header: &NetHdr) -> bool {
        let Control { counters, features, .. } = &mut self.control;
        let Some(link) = self.link.as_mut().filter(|_| features.is_some()) else {
            return false;
        };
        let mut header = *header;
        header.num_buffers.set(1);
        let put = link.put(&header, parts);
        if put {
            counters.rx_frames += 1;
            counters.rx_bytes += parts.iter().map(|part| part.len() as u64).sum::<u64>();
        } else {
            counters.rx_no_room += 1;
        }
        put
    }
}

/// What virtio-net does.
impl Device {
    /// Copies the next frame of the guest into `out`, virtio-net header first,
    /// and marks its chain used; the driver sees that at [`Device::flush`], or before.
    /// Returns the length, at least the two headers'.
    ///
    /// Chains that are no frame, or no frame that fits into `out`, are counted
    /// and thrown away, at most a ring's worth in one call; so are all chains
    /// while the front end has the ring disabled.
    pub fn next_tx(&mut self, out: &mut [u8]) -> Result<Option<usize>, RingError> {
        if self.link.is_some() {
            return Ok(self.next_of_link(out));
        }
        let header_len = self.header_len();
        let Control { rings, mem, counters, .. } = &mut self.control;
        let ring = &mut rings[TX];
        if !ring.is_ready() {
            return Ok(None);
        }
        for _ in 0..ring.size() {
            match take_frame(ring, mem, header_len, out) {
                Ok(Taken::Nothing) => break,
                Ok(Taken::Oversize) => counters.tx_oversize += 1,
                Ok(Taken::Runt) => counters.tx_runt += 1,
                Ok(Taken::Frame(_)) if !ring.enabled => counters.tx_disabled += 1,
                Ok(Taken::Frame(len)) => {
                    ring.show();
                    counters.tx_frames += 1;
                    counters.tx_bytes += (len - NET_HDR_LEN) as u64;
                    return Ok(Some(len));
                }
                Err(fault) => return Err(self.control.broken(RingError { ring: TX, fault })),
            }
        }
        Ok(None)
    }

    /// Whether the guest takes frames and has made any buffer available.
    pub fn can_push(&mut self) -> bool {
        if let Some(link) = &self.link {
            return self.control.features.is_some() && link.can_put();
        }
        let ring = &self.control.rings[RX];
        ring.enabled && ring.has_available()
    }

    /// Writes a frame, given in parts, behind `header` into the guest's
    /// buffers; the driver sees it at [`Device::flush`], or before. `num_buffers` is
    /// filled in here.
    ///
    /// False: there is no room now, and nothing has changed. A frame that the
    /// guest can never have room for is counted, thrown away, and true.
    pub fn push_rx(&mut self, parts: &[&[u8]], header: &NetHdr) -> Result<bool, RingError> {
        if self.link.is_some() {
            return Ok(self.push_to_link(parts, header));
        }
        let mergeable = self.control.has(VIRTIO_NET_F_MRG_RXBUF);
        let mut header = *header;
        header.num_buffers.set(1);
        let header = &header.as_bytes()[..self.header_len()];
        let Control { rings, mem, counters, .. } = &mut self.control;
        let ring = &mut rings[RX];
        if !ring.is_ready() || !ring.enabled {
            return Ok(false);
        }
        match put_frame(ring, mem, header, parts, mergeable) {
            Ok(Put::Done { chains }) => {
                ring.feed();
                ring.show();
                counters.rx_frames += 1;
                counters.rx_bytes += parts.iter().map(|part| part.len() as u64).sum::<u64>();
                counters.rx_chains += u64::from(chains);
                Ok(true)
            }
            Ok(Put::NoRoom) => {
                ring.starve();
                counters.rx_no_room += 1;
                Ok(false)
            }
            Ok(Put::Unfit) => {
                counters.rx_unfit += 1;
                Ok(true)
            }
            Err(fault) => Err(self.control.broken(RingError { ring: RX, fault })),
        }
    }

    /// Whether the driver has taken everything that it was sent, as far as it tells. A
    /// machine that stands still does not.
    pub fn is_rx_taken(&self) -> bool {
        if self.link.is_some() {
            return true;
        }
        let ring = self.control.rings.get(RX);
        self.is_running() && ring.is_some_and(Ring::is_taken)
    }

    /// Asks the driver for kicks before the worker sleeps: when it sends, and,
    /// if a frame found no room, when it gives buffers. True if there is work
    /// already, and the worker must not sleep.
    pub fn arm(&mut self) -> bool {
        if let Some(link) = &self.link {
            return link.has_input();
        }
        let mut work = false;
        for (index, ring) in self.control.rings.iter_mut().enumerate() {
            if index % 2 == RX && !ring.is_starved() {
                ring.disarm();
            } else {
                work |= ring.arm();
            }
        }
        work
    }

    /// Tells the driver that the worker looks by itself.
    pub fn disarm(&mut self) {
        self.control.rings.iter_mut().for_each(Ring::disarm);
    }

    /// Whether frames to the guest may have a checksum that is not completed
    /// (VIRTIO_NET_F_GUEST_CSUM).
    pub fn takes_partial_csum(&self) -> bool {
        self.control.has(VIRTIO_NET_F_GUEST_CSUM)
    }

    /// Whether frames to the guest may be of several TCP segments, over IPv6 or else
    /// over IPv4 (VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_TSO4).
    pub fn takes_segments(&self, v6: bool) -> bool {
        let kind = if v6 { VIRTIO_NET_F_GUEST_TSO6 } else { VIRTIO_NET_F_GUEST_TSO4 };
        self.takes_partial_csum() && self.control.has(kind)
    }

    /// What frames of the guest may leave to the device.
    pub fn offloads(&self) -> Offloads {
        let has = |bit| self.control.has(bit);
        Offloads {
            csum: has(VIRTIO_NET_F_CSUM),
            tso4: has(VIRTIO_NET_F_HOST_TSO4),
            tso6: has(VIRTIO_NET_F_HOST_TSO6),
            ecn: has(VIRTIO_NET_F_HOST_ECN),
        }
    }

    /// Bytes of the virtio-net header in the rings.
    fn header_len(&self) -> usize {
        if self.control.has(VIRTIO_F_VERSION_1) || self.control.has(VIRTIO_NET_F_MRG_RXBUF) {
            NET_HDR_LEN
        } else {
            LEGACY_HDR_LEN
        }
    }
}

enum Taken {
    Nothing,
    Frame(usize),
    Oversize,
    Runt,
}

/// Takes one chain and copies it out.
fn take_frame(
    ring: &mut Ring,
    mem: &GuestRam,
    header_len: usize,
    out: &mut [u8],
) -> Result<Taken, Fault> {
    let Some(chain) = ring.take(mem, Access::Read)? else {
        return Ok(Taken::Nothing);
    };
    if let Some(Piece { addr, len, writable: false }) = chain.alone()
        && header_len == NET_HDR_LEN
        && let Some(to) = out.get_mut(..len as usize)
    {
        read(mem, addr, to)?;
        ring.put_used(chain.head(), 0);
        return Ok(taken(to.len()));
    }
    take_pieces(ring, mem, &chain, header_len, out)
}

/// What a chain that was copied out is.
fn taken(len: usize) -> Taken {
    if len < NET_HDR_LEN + ethernet::LEN { Taken::Runt } else { Taken::Frame(len) }
}

/// As [`take_frame`], of a chain that may be anything.
fn take_pieces(
    ring: &mut Ring,
    mem: &GuestRam,
    chain: &Chain,
    header_len: usize,
    out: &mut [u8],
) -> Result<Taken, Fault> {
    let mut len = 0;
    let mut fits = true;
    let mut pieces = ring.walk(mem, chain);
    // A shorter header leaves the last field, which counts nothing here, zero.
    let gap = NET_HDR_LEN - header_len;
    while let Some(piece) = pieces.next()? {
        if piece.writable {
            return Err(Fault::WritableInTx);
        }
        let mut addr = piece.addr;
        let mut left = piece.len as usize;
        while left > 0 && fits {
            if len == header_len && gap > 0 {
                if let Some(field) = out.get_mut(header_len..NET_HDR_LEN) {
                    field.fill(0);
                }
                len = NET_HDR_LEN;
            }
            let all = len + left;
            let end = if gap > 0 && len < header_len { all.min(header_len) } else { all };
            match out.get_mut(len..end) {
                Some(to) => {
                    read(mem, addr, to)?;
                    addr = GuestAddress(addr.0.wrapping_add(to.len() as u64));
                    left -= to.len();
                    len = end;
                }
                None => fits = false,
            }
        }
        if !fits {
            break;
        }
    }
    ring.put_used(chain.head(), 0);
    Ok(if fits { taken(len) } else { Taken::Oversize })
}

fn read(mem: &GuestRam, addr: GuestAddress, to: &mut [u8]) -> Result<(), Fault> {
    mem.copy_out(addr, to).map_err(|_| Fault::Outside { addr: addr.0, len: to.len() as u64 })
}

fn write(mem: &GuestRam, addr: GuestAddress, bytes: &[u8]) -> Result<(), Fault> {
    mem.copy_in(addr, bytes).map_err(|_| Fault::Outside { addr: addr.0, len: bytes.len() as u64 })
}

enum Put {
    Done { chains: u16 },
    NoRoom,
    Unfit,
}

/// Where in the header `num_buffers` is, which is known only at the end.
const NUM_BUFFERS_AT: usize = 10;

/// Writes header and frame into as many chains as they need. They are written
/// as they are found: what is not published, the driver does not look at.
fn put_frame(
    ring: &mut Ring,
    mem: &GuestRam,
    header: &[u8],
    parts: &[&[u8]],
    mergeable: bool,
) -> Result<Put, Fault> {
    let total = header.len() + parts.iter().map(|part| part.len()).sum::<usize>();
    let Some(chain) = ring.take(mem, Access::Write)? else {
        return Ok(Put::NoRoom);
    };
    if let Some(Piece { addr, len, writable: true }) = chain.alone()
        && total <= len as usize
    {
        match <&[u8; NET_HDR_LEN]>::try_from(header) {
            // Of a length that the compiler knows.
            Ok(header) => write(mem, addr, header)?,
            Err(_) => write(mem, addr, header)?,
        }
        let mut at = addr.0.wrapping_add(header.len() as u64);
        for part in parts {
            write(mem, GuestAddress(at), part)?;
            at = at.wrapping_add(part.len() as u64);
        }
        ring.put_used(chain.head(), total as u32);
        return Ok(Put::Done { chains: 1 });
    }
    ring.rewind(1, 0);
    spread_frame(ring, mem, header, parts, total, mergeable)
}

/// As [`put_frame`], into chains that may be anything.
fn spread_frame(
    ring: &mut Ring,
    mem: &GuestRam,
    header: &[u8],
    parts: &[&[u8]],
    total: usize,
    mergeable: bool,
) -> Result<Put, Fault> {
    let mut source = Source { current: header, parts: parts.iter() };
    let mut done = 0;
    let mut chains = 0;
    let mut num_buffers = [GuestAddress(0); 2];
    while done < total {
        let Some(chain) = ring.take(mem, Access::Write)? else {
            ring.rewind(chains, chains);
            // All that the ring can hold is not enough.
            return Ok(if chains == ring.size() { Put::Unfit } else { Put::NoRoom });
        };
        let mut written = 0;
        let mut pieces = ring.walk(mem, &chain);
        while done < total {
            let Some(piece) = pieces.next()? else { break };
            if !piece.writable {
                return Err(Fault::ReadableInRx);
            }
            let mut addr = piece.addr;
            let mut room = (piece.len as usize).min(total - done);
            while room > 0 {
                let bytes = source.next(room);
                write(mem, addr, bytes)?;
                for (byte, at) in num_buffers.iter_mut().zip(NUM_BUFFERS_AT..) {
                    if (done..done + bytes.len()).contains(&at) {
                        *byte = addr.unchecked_add((at - done) as u64);
                    }
                }
                done += bytes.len();
                room -= bytes.len();
                written += bytes.len() as u32;
                addr = GuestAddress(addr.0.wrapping_add(bytes.len() as u64));
            }
        }
        if chains == 0 && (written as usize) < header.len() {
            return Err(Fault::HeaderRoom { len: written });
        }
        if written == 0 {
            return Err(Fault::ZeroLength);
        }
        if done < total && !mergeable {
            ring.rewind(1, 0);
            return Ok(Put::Unfit);
        }
        ring.put_used(chain.head(), written);
        chains += 1;
    }
    if chains > 1 {
        for (addr, byte) in num_buffers.into_iter().zip(chains.to_le_bytes()) {
            write(mem, addr, &[byte])?;
        }
    }
    Ok(Put::Done { chains })
}

/// Header and parts, one after the other.
struct Source<'a> {
    current: &'a [u8],
    parts: std::slice::Iter<'a, &'a [u8]>,
}

impl<'a> Source<'a> {
    /// The next bytes, at most `max` and at least one while any are left.
    fn next(&mut self, max: usize) -> &'a [u8] {
        while self.current.is_empty() {
            match self.parts.next() {
                Some(part) => self.current = part,
                None => return &[],
            }
        }
        let (bytes, rest) = self.current.split_at(max.min(self.current.len()));
        self.current = rest;
        bytes
    }
}
