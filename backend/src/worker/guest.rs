//! One guest: all that belongs to it, and the turn that moves its batches.
//!
//! A turn takes frames from the NIC, feeds the stack port, takes requests from
//! the guest's ring, runs timers, lets go what waited for stores to be durable,
//! publishes slots with at most one signal, and transmits. Control messages are
//! handled between turns, on the same thread: there is nothing to lock.
//!
//! This module knows the parts by their traits and hands; who they are is
//! decided in the wiring. When its turn comes, and who else has one, is the
//! [`Worker`](super::Worker)'s business.

use std::os::fd::{AsFd, BorrowedFd};

use paste_abi::frame;
use paste_abi::net_hdr::{NET_HDR_LEN, NetHdr};
use paste_pmem::Owner;
use zerocopy::FromBytes;

use super::counters::GuestCounters;
use super::lane::{First, Others, Told};
use super::plain::{self, RingSink, Terms};
use super::pmem::PmemPort;
use super::region::RegionPort;
use super::source::Sources;
use super::task::{Rest, Task};
use crate::channel::{Channels, FRAME_SIZE};
use crate::engine::{Now, RegionMemory, StackPort};
use crate::link::wire::{STATUS_BUSY, STATUS_REFUSED};
use crate::link::{Link, LinkError, Mailbox, Offer};
use crate::port::PortError;
use crate::port::segments::PACKET_MAX;
use crate::sys::Token;
use crate::sys::wake::Wakeups;
use crate::vhost::{self, Device, Endpoint, RingError, SessionError};

/// Chains taken from the guest's TX ring in one turn: what waits for the port then is in
/// the CPU's nearest cache.
const TX_BUDGET: usize = 128;
/// PASTE frames built for the guest in one turn.
const PUBLISH_BUDGET: usize = 64;
/// The largest chain that is taken from a guest: a PASTE frame, or a packet of several
/// segments, and its header.
const SCRATCH_LEN: usize = NET_HDR_LEN + PACKET_MAX;
/// A link that had no room is tried again after this long, ns.
const LINK_RETRY: u64 = 200_000;
/// A port that failed is tried again after this long, ns.
const PORT_RETRY: u64 = 1_000_000_000;

/// Tokens of the descriptors that are watched for a guest. Those of the device follow
/// [`TOKEN_DEVICE`].
const TOKEN_WAKE: Token = 0;
const TOKEN_ENDPOINT: Token = 1;
const TOKEN_PORT: Token = 2;
const TOKEN_REGION: Token = 3;
const TOKEN_DEVICE: Token = 16;
/// Those of the virtio-pmem device follow this one.
const TOKEN_PMEM: Token = 64;

/// Which of a guest's lanes this is.
#[derive(Debug)]
pub enum Role {
    /// The first, or only one, with the place where front ends attach and the other lanes.
    First(Endpoint, Others),
    /// Another one.
    Further(First),
}

impl Role {
    fn endpoint(&self) -> Option<&Endpoint> {
        match self {
            Role::First(endpoint, _) => Some(endpoint),
            Role::Further(_) => None,
        }
    }

    fn others(&mut self) -> Option<&mut Others> {
        match self {
            Role::First(_, others) if !others.is_empty() => Some(others),
            Role::First(..) | Role::Further(_) => None,
        }
    }
}

/// The parts of one guest, or of one of its lanes, put together by the wiring.
pub struct Parts {
    /// The guest's name, and of a further lane its number.
    pub name: String,
    /// Whose the session is.
    pub role: Role,
    /// Where links are offered, to the first lane.
    pub offers: Option<Mailbox>,
    /// The virtio-net device, or what a further lane has of it.
    pub device: Device,
    /// The stack port on its NIC.
    pub engine: Box<dyn StackPort>,
    /// The region's buffers and their owners.
    pub memory: RegionMemory,
    /// The applications' conversations.
    pub channels: Channels,
    /// The virtio-pmem device, if the guest has one.
    pub pmem: Option<PmemPort>,
    /// The device that shows the region, if that lies in memory of a VMM's.
    pub region: Option<RegionPort>,
    /// Who the guest's own kernel may say that it is; anybody, without.
    pub sources: Option<Sources>,
    /// How long to poll before sleeping, ns.
    pub poll_ns: u64,
}

/// A guest that is served.
pub struct GuestTask {
    parts: Parts,
    span: tracing::Span,
    wakeups: Wakeups,
    scratch: Box<[u8]>,
    /// A PASTE frame that was built and did not fit into the guest's ring yet.
    staged: Box<[u8]>,
    staged_len: usize,
    /// A front end has attached whose driver may have begun with another host.
    is_driver_unknown: bool,
    port_retry_at: Option<u64>,
    /// How often the port went out of service or came back.
    port_changes: u64,
    /// The port failed, and has not worked since.
    port_is_out: bool,
    counters: GuestCounters,
}

impl GuestTask {
    /// A guest that is woken by `wakeups`, as its parts may have been told.
    pub fn new(parts: Parts, wakeups: Wakeups) -> GuestTask {
        GuestTask {
            span: tracing::info_span!("guest", name = %parts.name),
            parts,
            wakeups,
            scratch: vec![0; SCRATCH_LEN].into_boxed_slice(),
            staged: vec![0; FRAME_SIZE].into_boxed_slice(),
            staged_len: 0,
            is_driver_unknown: false,
            port_retry_at: None,
            port_changes: 0,
            port_is_out: false,
            counters: GuestCounters::default(),
        }
    }

    fn receive(&mut self, now: Now) -> usize {
        if let Some(at) = self.port_retry_at {
            if now.monotonic_ns < at {
                return 0;
            }
            self.set_port_retry(None);
        }
        let Parts { engine, memory, device, .. } = &mut self.parts;
        let mut sink = RingSink { device, counters: &mut self.counters, error: None };
        let received = engine.receive(now, memory, &mut sink);
        if let Some(error) = sink.error {
            self.ring_failed(now, &error);
        }
        match received {
            Ok(received) => {
                if std::mem::take(&mut self.port_is_out) {
                    tracing::info!("the port works again");
                }
                received
            }
            Err(error) => {
                self.port_failed(now, &error);
                0
            }
        }
    }

    /// Takes chains from the guest's TX ring: PASTE frames for the channels,
    /// all others for the port.
    fn take_from_guest(&mut self, now: Now) -> Result<usize, RingError> {
        let Parts { engine, memory, device, channels, sources, .. } = &mut self.parts;
        let caps = engine.caps();
        let mut terms = Terms { allowed: device.offloads(), frame_max: plain::frame_max(&caps) };
        terms.allowed.csum &= caps.tx_csum;
        let mut taken = 0;
        let (mut spoof, mut refused) = (None, None);
        // What is thrown away takes time as well.
        let thrown_away = device.counters().tx_thrown_away();
        let budget = |taken, device: &Device| {
            taken as u64 + device.counters().tx_thrown_away() - thrown_away < TX_BUDGET as u64
        };
        while budget(taken, device) {
            let Some(len) = device.next_tx(&mut self.scratch)? else { break };
            taken += 1;
            let (header, bytes) = self.scratch[..len].split_at(NET_HDR_LEN);
            if frame::is_paste(bytes) {
                channels.take(now, memory, engine.as_mut(), bytes);
                continue;
            }
            let Ok(header) = NetHdr::read_from_bytes(header) else { continue };
            if let Some(sources) = sources
                && let Err(what) = sources.judge(bytes)
            {
                if self.counters.plain_out_spoofed == 0 {
                    spoof = Some(what);
                }
                self.counters.plain_out_spoofed += 1;
                continue;
            }
            let (engine, counters) = (engine.as_mut(), &mut self.counters);
            match plain::send_out(now, engine, memory, counters, terms, &header, bytes) {
                Ok(more) => taken += more,
                Err(why) if counters.plain_out_refused == 1 => refused = Some(why),
                Err(_) => {}
            }
        }
        // Once in the life of a worker: what the guest sends is not to fill the log.
        if let Some(spoof) = spoof {
            tracing::warn!(%spoof, "a frame of the guest's kernel was refused; others are counted");
        }
        if let Some(why) = refused {
            tracing::warn!(%why, "a frame of the guest's kernel was refused; others are counted");
        }
        Ok(taken)
    }

    /// Builds frames for the guest as long as it has room, and signals once.
    fn publish(&mut self) -> Result<usize, RingError> {
        let Parts { engine, memory, device, channels, .. } = &mut self.parts;
        let mut published = 0;
        while published < PUBLISH_BUDGET {
            if self.staged_len == 0 {
                if !device.can_push() {
                    break;
                }
                match channels.build(memory, engine.as_mut(), &mut self.staged) {
                    Some(len) => self.staged_len = len,
                    None => break,
                }
            }
            let frame = &self.staged[..self.staged_len];
            if !device.push_rx(&[frame], &NetHdr::default())? {
                break;
            }
            self.staged_len = 0;
            published += 1;
        }
        device.flush();
        Ok(published)
    }

    /// Messages of the front end that is attached.
    fn session(&mut self, now: Now) {
        let resets = self.parts.device.resets();
        match self.parts.device.handle_messages() {
            Ok(()) => {
                if resets != self.parts.device.resets() {
                    self.is_driver_unknown = false;
                    self.forget_guest(now);
                } else if self.is_driver_unknown && self.parts.device.is_running() {
                    // Through a network device nobody notices that its host has gone.
                    self.is_driver_unknown = false;
                    self.parts.channels.disown();
                    if let Some(others) = self.parts.role.others() {
                        others.disown();
                    }
                    tracing::info!("the driver was here before; channels begin anew");
                }
            }
            Err(SessionError::Closed) => self.lose_guest(now, "the front end has gone"),
            Err(error) => {
                tracing::warn!(%error, "session ended");
                self.lose_guest(now, "the front end broke the protocol");
            }
        }
    }

    /// A VMM asks for this guest, and gets it if nobody has it.
    fn take_offer(&mut self, offer: Offer) {
        let device = &mut self.parts.device;
        let offered = device.link_features();
        let used = (offer.hello.has_driver != 0).then(|| offer.hello.features.get());
        if device.is_attached() {
            tracing::warn!("a second VMM was turned away: one is attached");
            return offer.refuse(STATUS_BUSY, "the guest is in use: another VMM is attached to it");
        }
        if used.is_some_and(|used| used & !offered != 0) {
            tracing::warn!("a VMM was turned away: its driver uses what is not offered any more");
            return offer.refuse(
                STATUS_BUSY,
                "the guest's driver uses offloads that are not offered any more: reset the guest",
            );
        }
        let (mtu, mac) = self.parts.channels.mtu_and_mac();
        if let Some(why) = misfit(&offer, mtu, mac) {
            tracing::warn!(%why, "a VMM was turned away");
            return offer.refuse(STATUS_REFUSED, &why);
        }
        match device.attach_link(Link::new(offer.accept(offered, mtu, mac)), used) {
            Ok(()) => tracing::info!("front end attached by a link"),
            Err(error) => tracing::warn!(%error, "a link could not be attached"),
        }
        if used.is_some() {
            // The guest does not notice that its host is another one.
            self.parts.channels.disown();
        }
    }

    /// What the first lane says.
    fn heed_first(&mut self, now: Now) {
        while let Role::Further(first) = &mut self.parts.role
            && let Some(told) = first.next(&mut self.parts.device)
        {
            match told {
                Told::Forget => self.forget_guest(now),
                Told::LentBefore => self.parts.channels.disown(),
                Told::Lent | Told::CalledHome => {}
            }
        }
    }

    /// The rings cannot be trusted: the device stops until the driver resets it.
    fn ring_failed(&mut self, now: Now, error: &RingError) {
        self.counters.ring_errors += 1;
        tracing::warn!(%error, "the driver broke its ring; the device needs a reset");
        self.device_failed(now);
    }

    fn device_failed(&mut self, now: Now) {
        self.parts.device.fail();
        self.forget_guest(now);
        if let Role::Further(first) = &mut self.parts.role {
            first.give_back(&mut self.parts.device);
        }
    }

    fn port_failed(&mut self, now: Now, error: &PortError) {
        if !std::mem::replace(&mut self.port_is_out, true) {
            tracing::error!(%error, "port failed; it is tried again every second");
        } else {
            tracing::debug!(%error, "port still fails");
        }
        self.counters.port_errors += 1;
        self.set_port_retry(Some(now.monotonic_ns + PORT_RETRY));
    }

    fn set_port_retry(&mut self, at: Option<u64>) {
        self.port_changes += 1;
        self.port_retry_at = at;
    }

    /// The front end is gone: everything of its goes, and the next may attach.
    fn lose_guest(&mut self, now: Now, why: &str) {
        if let Role::Further(_) = self.parts.role {
            // The first lane finds out by itself.
            self.device_failed(now);
            return;
        }
        tracing::info!(why, "front end detached");
        self.parts.device.detach();
        self.forget_guest(now);
    }

    /// Whatever the guest had under way is void.
    fn forget_guest(&mut self, now: Now) {
        self.staged_len = 0;
        let Parts { engine, memory, channels, .. } = &mut self.parts;
        channels.close_all(now, memory, engine.as_mut());
        if let Some(others) = self.parts.role.others() {
            others.forget();
        }
    }

    fn endpoint_due(&self) -> Option<u64> {
        self.parts.role.endpoint().and_then(Endpoint::next_attempt_ns)
    }
}

/// Why a VMM's device is not the guest's, if it is another.
fn misfit(offer: &Offer, mtu: u16, mac: [u8; 6]) -> Option<String> {
    let asked = offer.hello.mtu.get();
    if asked > mtu {
        return Some(format!("mtu {asked} is more than the guest's {mtu}: give mtu={mtu}"));
    }
    let theirs = offer.hello.mac;
    if theirs != [0; 6] && theirs != mac {
        let [mac, theirs] =
            [mac, theirs].map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
        return Some(format!("{theirs} is not the guest's address: give mac={mac}"));
    }
    None
}

impl Task for GuestTask {
    fn name(&self) -> &str {
        &self.parts.name
    }

    fn span(&self) -> &tracing::Span {
        &self.span
    }

    fn poll_ns(&self) -> u64 {
        self.parts.poll_ns
    }

    fn turn(&mut self, now: Now) -> bool {
        self.counters.turns += 1;
        let pmem_due = self.parts.pmem.as_ref().and_then(|pmem| pmem.next_attempt_ns());
        let due = [self.endpoint_due(), pmem_due];
        if due.into_iter().flatten().any(|at| at <= now.monotonic_ns) {
            self.control(now);
        }
        if matches!(&self.parts.role, Role::Further(first) if first.is_gone()) {
            // Nobody asks for the pair any more.
            drop(self.parts.device.return_pair());
            self.forget_guest(now);
        }
        let resets = self.parts.device.resets();
        if self.parts.device.is_poisoned() {
            self.lose_guest(now, "its memory was truncated under us");
        }
        let received = self.receive(now);
        let taken = match self.take_from_guest(now) {
            Ok(taken) => taken,
            Err(error) => {
                self.ring_failed(now, &error);
                0
            }
        };
        if let Some(error) = self.parts.device.link_error() {
            match error {
                LinkError::Closed => tracing::info!(%error, "a link has ended"),
                _ => tracing::warn!(%error, "a link has ended"),
            }
            self.lose_guest(now, "its link has ended");
        }
        if self.parts.device.resets() != resets {
            // A driver began on a link.
            self.forget_guest(now);
        }
        self.parts.engine.advance(now, &mut self.parts.memory);
        let Parts { engine, memory, channels, pmem, region, device, .. } = &mut self.parts;
        let (durability, region_len) = channels.durability_mut();
        if let Some(pmem) = pmem {
            pmem.ask(durability, region_len);
        }
        if let Some(region) = region {
            region.ask(durability, region_len);
        }
        if channels.next_look().is_some_and(|at| at <= now.monotonic_ns) {
            let was_taken = device.is_rx_taken();
            channels.watch(now, memory, engine.as_mut(), was_taken);
        }
        let mut settled = channels.settle(now, memory, engine.as_mut());
        if let Some(pmem) = pmem {
            settled += pmem.answer(channels.durability().last_completed());
        }
        if let Some(region) = region {
            settled += region.answer(channels.durability().last_completed());
        }
        let published = match self.publish() {
            Ok(published) => published,
            Err(error) => {
                self.ring_failed(now, &error);
                0
            }
        };
        let sent = match self.parts.engine.transmit(now, &mut self.parts.memory) {
            Ok(sent) => sent,
            Err(error) => {
                self.port_failed(now, &error);
                0
            }
        };
        let moved = received + taken + settled + published + sent > 0;
        self.counters.busy_turns += u64::from(moved);
        moved
    }

    /// Tells the guest to kick.
    fn arm(&mut self, now: Now) -> Rest {
        if self.parts.device.arm() {
            return Rest::Not;
        }
        let engine = self.port_retry_at.is_none() && self.parts.engine.arm();
        if engine || self.parts.pmem.as_mut().is_some_and(|pmem| pmem.arm()) {
            return Rest::Not;
        }
        self.counters.sleeps += 1;
        let deadlines = [
            self.parts.engine.next_deadline(),
            self.parts.channels.next_look(),
            self.port_retry_at,
            self.endpoint_due(),
            self.parts.pmem.as_ref().and_then(|pmem| pmem.next_attempt_ns()),
            self.parts.device.is_blocked().then_some(now.monotonic_ns + LINK_RETRY),
            // A full NIC says nothing when it has room again.
            self.parts.engine.is_backlogged().then_some(now.monotonic_ns + 1_000_000),
        ];
        deadlines.into_iter().flatten().min().map_or(Rest::Silent, Rest::Until)
    }

    fn disarm(&mut self) {
        self.parts.device.disarm();
    }

    fn watch<'a>(&'a self, show: &mut dyn FnMut(BorrowedFd<'a>, Token)) {
        let Parts { role, engine, device, pmem, region, .. } = &self.parts;
        show(self.wakeups.as_fd(), TOKEN_WAKE);
        if let Some(fd) = region.as_ref().and_then(RegionPort::fd) {
            show(fd, TOKEN_REGION);
        }
        if let Some(fd) = role.endpoint().and_then(Endpoint::fd) {
            show(fd, TOKEN_ENDPOINT);
        }
        if let Some(fd) = engine.fd().filter(|_| self.port_retry_at.is_none()) {
            show(fd, TOKEN_PORT);
        }
        device.watch().for_each(|(watch, fd)| show(fd, TOKEN_DEVICE + watch.to_index()));
        let pmem = pmem.iter().flat_map(|pmem| pmem.watch());
        pmem.for_each(|(fd, token)| show(fd, TOKEN_PMEM + token));
    }

    /// None of the numbers ever gets smaller.
    fn generation(&self) -> u64 {
        let Parts { device, role, pmem, region, .. } = &self.parts;
        let pmem = pmem.as_ref().map_or((0, 0), |pmem| pmem.generation());
        let region = region.as_ref().map_or(0, RegionPort::generation);
        device.watch_generation()
            + role.endpoint().map_or(0, Endpoint::watch_generation)
            + self.port_changes
            + pmem.0
            + pmem.1
            + region
    }

    fn ready(&mut self, token: Token) -> bool {
        match token {
            TOKEN_WAKE => {
                self.wakeups.drain();
                // Another lane may have said something.
                let lanes = matches!(self.parts.role, Role::Further(_))
                    || self.parts.role.others().is_some();
                self.parts.offers.as_mut().is_some_and(Mailbox::look) || lanes
            }
            TOKEN_PORT => false,
            TOKEN_REGION => {
                self.parts.region.iter_mut().for_each(RegionPort::call);
                false
            }
            TOKEN_ENDPOINT => true,
            token if token >= TOKEN_PMEM => {
                self.parts.pmem.as_mut().is_some_and(|pmem| pmem.dispatch(token - TOKEN_PMEM))
            }
            token => match vhost::Watch::from_index(token - TOKEN_DEVICE) {
                Some(vhost::Watch::Kick(ring)) => {
                    self.counters.kicks += 1;
                    self.parts.device.take_kick(ring);
                    false
                }
                Some(vhost::Watch::Link) => {
                    self.counters.kicks += 1;
                    false
                }
                _ => true,
            },
        }
    }

    /// Control messages: the session, then attachments. In this order, because a
    /// front end that has gone makes room for the one that waits.
    fn control(&mut self, now: Now) {
        if let Role::Further(_) = self.parts.role {
            self.heed_first(now);
            return;
        }
        let Parts { role, device, .. } = &mut self.parts;
        let (mut at_home, mut broken) = (true, false);
        if let Some(others) = role.others() {
            broken = others.collect(device);
            // Nothing is changed under a lane that uses it, and nobody is called for nothing.
            at_home = device.has_messages() && others.call_home();
        }
        if broken {
            self.device_failed(now);
        }
        if at_home && self.parts.device.is_attached() {
            self.session(now);
        }
        let Parts { role: Role::First(endpoint, others), device, .. } = &mut self.parts else {
            return;
        };
        others.lend(device);
        match endpoint.poll(now.monotonic_ns, device.is_attached()) {
            Ok(Some(stream)) => match device.attach(stream) {
                Ok(()) => {
                    self.is_driver_unknown = true;
                    tracing::info!("front end attached");
                }
                Err(error) => tracing::warn!(%error, "front end could not be attached"),
            },
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "endpoint failed"),
        }
        while let Some(offer) = self.parts.offers.as_mut().and_then(Mailbox::take) {
            self.take_offer(offer);
        }
        if let Some(pmem) = &mut self.parts.pmem {
            pmem.control(now);
        }
        // Where descriptors cannot be watched, nothing else says so.
        self.parts.region.iter_mut().for_each(RegionPort::call);
    }

    /// Says good-bye: channels hear of it, flows are reset.
    fn finish(&mut self, now: Now) {
        let Parts { engine, memory, channels, .. } = &mut self.parts;
        channels.shut_down(now, memory, engine.as_mut());
        if let Err(error) = self.publish() {
            tracing::debug!(%error, "the guest could not be told");
        }
        let Parts { engine, memory, device, .. } = &mut self.parts;
        if let Err(error) = engine.transmit(now, memory) {
            tracing::debug!(%error, "the last frames could not be sent");
        }
        device.detach();
        engine.release_reserve(memory);
        tracing::info!("stopped");
    }

    fn each_counter(&self, visit: &mut dyn FnMut(&str, u64)) {
        let Parts { engine, channels, device, memory, pmem, region, .. } = &self.parts;
        engine.each_counter(visit);
        channels.counters().each(|name, value| visit(&format!("channel.{name}"), value));
        channels.durability().each_counter(|name, value| visit(&format!("flush.{name}"), value));
        device.counters().each(|name, value| visit(&format!("device.{name}"), value));
        if let Some(pmem) = pmem {
            pmem.each_counter(|name, value| visit(&format!("pmem.{name}"), value));
        }
        if let Some(region) = region {
            region.each_counter(|name, value| visit(&format!("region.{name}"), value));
        }
        self.counters.each(|name, value| visit(&format!("worker.{name}"), value));
        let pool = memory.pool();
        visit("pool.buffers", u64::from(pool.count()));
        visit("pool.free", u64::from(pool.free()));
        visit("pool.port", u64::from(pool.count_of(Owner::Port)));
        visit("pool.stack", u64::from(pool.count_of(Owner::Stack)));
        visit("pool.claimed", u64::from(pool.count_of(Owner::Claimed)));
    }
}
