//! The paste engine: TCP by the host's own kernel, through PASTE's `pst:` port on a NIC
//! (Linux, with the module of PASTE's last version).
//!
//! The engine makes and accepts the sockets, and registers them with the port; the guest's
//! address is the host's on that NIC. What flows receive appears in the port's ring, in
//! order; what they send is put into its other ring. A turn is one sync each way, whatever
//! it moves; a flow costs some system calls when it begins and ends, and a few for every
//! send buffer full that it sends.
//!
//! **One copy each way, at the region's edge.** The port's buffers begin with the kernel's
//! own pointers, which it trusts, so a guest can have none of them, not even to read
//! ([`crate::port::netmap::pst`]). Payload is copied into a buffer of the region behind
//! the headroom that a guest needs to send from the same buffer, and out of the region
//! into whole segments, gathered from whatever the guest has queued. What a guest changes
//! in its buffers meanwhile is its own affair.
//!
//! What differs from the engine of our own TCP:
//!
//! - ACKED means that the kernel has taken the payload over: the slot it was copied to is
//!   in the socket's send buffer, and is sent again as long as the connection lives.
//!   CLOSED means that the peer has acknowledged everything, FIN included, and has closed
//!   too.
//! - There is no checksum with received payload: the kernel does not give it away.
//! - A peer's RST and the kernel's giving up are in no ring. They are noticed by epoll,
//!   and told after everything that was received before them. RESET with TIMED_OUT comes
//!   after minutes (`net.ipv4.tcp_retries2`), unless the guest sets USER_TIMEOUT.
//! - A flow's window never closes: see [`receive`].
//! - IPv4 alone. Of IPv6, PASTE computes checksums as if it were IPv4, and ends in a panic
//!   of the kernel.
//! - Frames of the guest's own kernel go nowhere, and none comes: the NIC is the host's.
//!
//! **All work is done in syncs.** The host's own traffic on that NIC goes through the port
//! too; when nothing moves, there is a sync every [`TICK`].
//!
//! **What the kernel says is judged.** A slot that names no flow, or bytes outside its
//! buffer, is counted and left. If the NIC goes, that is found out within a second and
//! reported; flows wait, and it is asked for every second until it is back.
//!
//! Everything is allocated when the engine is made. One file does what is `unsafe`
//! (`kernel`); it knows nothing of flows.
//!
//! # The module
//!
//! The kernel tells PASTE by a callback, a `struct ubuf_info` in the buffer's head, that it
//! no longer needs a buffer. From Linux 5.12 on it looks at that structure's `flags`, which
//! PASTE's last version never sets: nothing is called, a port's spare buffers (2,048) fill
//! with segments that nobody needs any more, and then nothing moves on that NIC, not even
//! ping. The cure is a line in
//! `nm_os_set_mbuf_data_destructor` (`LINUX/netmap_linux.c`), beside the one that sets the
//! callback:
//!
//! ```c
//! ui->ubuf.flags = SKBFL_ZEROCOPY_FRAG;
//! ```
//!
//! Seen on Linux 6.1, where without it three or four answers of megabytes that clients broke
//! off were enough. With it 33 were broken off, and what came after had the right bytes; and
//! a NIC whose process was killed could be had again in two seconds instead of most of a
//! minute, which is how long the module waits for such buffers.

mod counters;
mod flows;
mod kernel;
mod life;
mod listen;
mod receive;
mod send;
mod slots;
#[cfg(test)]
mod tests;

use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use paste_abi::slot::Opt;
use paste_abi::{CHANNELS_MAX, Flow, Reason, Slot};
use paste_stack::{Tx, TxCsum};
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use super::{bufs, event, lists, socket};
use crate::engine::kernel::{PasteError, PasteOptions as Options};
use crate::engine::{Now, Packet, PlainSink, RegionMemory, StackPort};
use crate::port::netmap::pst::{PstError, PstPort};
use crate::port::{Caps, PortError};

use bufs::Bufs;
use counters::Counters;
use flows::{Flows, Links};
use listen::Listeners;
use lists::List;

/// The longest time between two syncs, ns.
const TICK: u64 = 5_000_000;
/// What epoll says at once.
const EVENTS_MAX: usize = 256;
/// How often the engine sees whether the NIC is there, ns: as a rule, and when the kernel
/// takes nothing.
const NIC_INTERVAL: u64 = 1_000_000_000;
const NIC_INTERVAL_STUCK: u64 = 1_000_000;
/// The longest silence of a peer after the guest has closed (FIN-WAIT-2), ns.
const SILENCE_MAX: u64 = 60_000_000_000;

/// Flows of one channel.
#[derive(Clone, Copy, Debug)]
struct Channel {
    all: List,
    /// Those that have something for the guest.
    ready: List,
}

/// Flows that have ended and whose descriptors' numbers are kept: since the kernel last
/// showed all that it had, and before.
#[derive(Debug)]
struct Numbers {
    fresh: List,
    waited: List,
}

/// What epoll tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Listener(u32),
    Flow(Flow),
}

impl Token {
    const LISTENER: u64 = 1 << 32;

    fn pack(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Token::Listener(index) => Token::LISTENER | u64::from(index),
            Token::Flow(name) => name.0.into(),
        })
    }

    fn unpack(data: epoll::EventData) -> Token {
        match data.u64() {
            word if word & Token::LISTENER != 0 => Token::Listener(word as u32),
            word => Token::Flow(Flow(word as u32)),
        }
    }
}

/// TCP by the host's kernel, through PASTE, for one guest.
#[derive(Debug)]
pub struct PasteEngine {
    // Sockets are closed before the port, which would wait for them.
    flows: Flows,
    listeners: Listeners,
    port: PstPort,
    bufs: Bufs,
    channels: [Channel; CHANNELS_MAX as usize],
    work: List,
    wait: List,
    closing: List,
    hung: List,
    numbers: Numbers,
    /// Listeners and flows.
    events: OwnedFd,
    /// The port and those.
    doorbell: OwnedFd,
    /// What holds the numbers of descriptors that are to be nobody's.
    nobody: OwnedFd,
    /// What the kernel has taken in one sync.
    words: Vec<u64>,
    nic: String,
    address: IpAddr,
    mtu: u16,
    headroom: u16,
    /// Free buffers that are never received into.
    reserve: u32,
    /// Buffers that one flow may be charged for, whatever is free.
    share_max: u32,
    /// Segments that the kernel keeps for flows, as far as it was asked, and how many it
    /// may: the others are for flows that it was not asked about.
    kept: u32,
    kept_max: u32,
    keepers: List,
    /// The port failed, or its NIC has gone.
    out: bool,
    /// The engine is going away: nothing is begun any more.
    leaving: bool,
    synced_at: u64,
    checked_at: u64,
    now: Now,
    counters: Counters,
}

/// IPv6 on the NIC is worth a warning, and a NIC that is down.
fn judge_nic(options: &Options<'_>, port: &PstPort) {
    let Options { port: text, nic, .. } = options;
    if port.nic().is_some_and(|nic| !nic.up) {
        tracing::warn!(port = text, "the interface is down: `ip link set dev {nic} up`");
    }
    let setting = std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{nic}/disable_ipv6"));
    if setting.is_ok_and(|setting| setting.trim() == "0") {
        tracing::warn!(
            port = text,
            "PASTE ends in a panic of the kernel when the host sends TCP or UDP by IPv6 on this \
             interface: `sysctl net.ipv6.conf.{nic}.disable_ipv6=1`"
        );
    }
}

impl PasteEngine {
    /// An engine for one guest. The NIC joins PASTE's port; nothing is bound before the
    /// guest listens.
    ///
    /// # Errors
    /// [`PasteError`].
    pub fn new(options: &Options<'_>) -> Result<PasteEngine, PasteError> {
        PasteEngine::with(options, PstPort::open)
    }

    fn with(
        options: &Options<'_>,
        open: impl FnOnce(&str, &str) -> Result<PstPort, PstError>,
    ) -> Result<PasteEngine, PasteError> {
        let (port, nic) = (options.port, options.nic);
        let names = || (port.to_owned(), nic.to_owned());
        if options.vlan.is_some() {
            let (port, nic) = names();
            return Err(PasteError::Vlan { port, nic });
        }
        if let Some(&address) = options.addresses.iter().find(|address| address.is_ipv6()) {
            let (port, nic) = names();
            return Err(PasteError::Ipv6 { port, nic, address });
        }
        let address = options.addresses.first().copied();
        let address = address.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED));
        let opened = open(port, nic)?;
        // From here on an error takes the NIC off the port again.
        listen::open(nic, SocketAddr::new(address, 0)).map_err(|source| {
            let (port, nic) = names();
            PasteError::Address { port, nic, address, source }
        })?;
        judge_nic(options, &opened);
        let failed = |call| {
            move |errno: rustix::io::Errno| PasteError::Failed {
                port: port.to_owned(),
                call,
                source: errno.into(),
            }
        };
        let create = || epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("epoll_create"));
        let (events, doorbell) = (create()?, create()?);
        let watch = |fd: BorrowedFd<'_>| {
            let data = epoll::EventData::new_u64(0);
            let added = epoll::add(&doorbell, fd, data, epoll::EventFlags::IN);
            added.map_err(failed("epoll_ctl"))
        };
        watch(events.as_fd())?;
        watch(opened.fd())?;
        socket::allow_descriptors(options.flows_max);
        let (count, size) = (options.buffers.count(), options.buffers.size());
        Ok(PasteEngine {
            flows: Flows::new(options.flows_max),
            listeners: Listeners::new(),
            words: Vec::with_capacity(opened.room() as usize + 1),
            kept: 0,
            keepers: List::EMPTY,
            kept_max: opened.kept_max() / 2,
            port: opened,
            bufs: Bufs::new(count, options.shared_sends_max),
            channels: [Channel { all: List::EMPTY, ready: List::EMPTY }; CHANNELS_MAX as usize],
            work: List::EMPTY,
            wait: List::EMPTY,
            closing: List::EMPTY,
            hung: List::EMPTY,
            numbers: Numbers { fresh: List::EMPTY, waited: List::EMPTY },
            events,
            doorbell,
            nobody: eventfd(0, EventfdFlags::CLOEXEC).map_err(failed("eventfd"))?,
            nic: nic.to_owned(),
            address,
            mtu: options.mtu,
            headroom: options.headroom,
            reserve: (count / 32).clamp(1, 256),
            share_max: PasteEngine::share_max(size),
            out: false,
            leaving: false,
            synced_at: 0,
            checked_at: 0,
            now: Now::default(),
            counters: Counters::default(),
        })
    }

    /// Has the flow looked at by the next [`StackPort::transmit`].
    fn kick(&mut self, index: u32) {
        self.flows.lists.push_back(&mut self.work, Links::Work, index);
    }

    /// Has the flow looked at by the next [`StackPort::poll_slots`].
    fn mark_ready(&mut self, index: u32) {
        let flow = &self.flows[index];
        if !flow.detached {
            let channel = &mut self.channels[usize::from(flow.channel)];
            self.flows.lists.push_back(&mut channel.ready, Links::Ready, index);
        }
    }

    /// The flow in use with this name on `channel`, of which the guest was told.
    fn owned(&self, channel: u16, name: Flow) -> Result<u32, Reason> {
        let index = self.flows.find(name).ok_or(Reason::StaleFlow)?;
        let flow = &self.flows[index];
        let owned = flow.is_known() && u16::from(flow.channel) == channel;
        owned.then_some(index).ok_or(Reason::StaleFlow)
    }

    /// Finds out whether the NIC is there, unless it was found out just now.
    fn look_at_nic(&mut self, interval: u64) -> Result<(), PortError> {
        let now = self.now.monotonic_ns;
        if now.saturating_sub(self.checked_at) < interval {
            return Ok(());
        }
        self.checked_at = now;
        self.port.check()
    }

    /// Takes what epoll says. Returns how much that was.
    fn take_events(&mut self, mem: &mut RegionMemory) -> Result<usize, PortError> {
        let mut list = [MaybeUninit::<epoll::Event>::uninit(); EVENTS_MAX];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let list = match epoll::wait(&self.events, &mut list[..], Some(&at_once)) {
            Ok((list, _)) => list,
            Err(rustix::io::Errno::INTR) => return Ok(0),
            Err(errno) => {
                let (port, call) = (format!("paste:{}", self.nic), "epoll_wait");
                return Err(PortError::Failed { port, call, source: errno.into() });
            }
        };
        for event in &*list {
            match Token::unpack(event.data) {
                Token::Listener(index) => self.listeners.ready(index),
                Token::Flow(name) => {
                    if let Some(index) = self.flows.find(name) {
                        self.on_event(mem, index, event.flags);
                    }
                }
            }
        }
        Ok(list.len())
    }

    fn receive_all(&mut self, mem: &mut RegionMemory) -> Result<usize, PortError> {
        if self.out && self.port.check().is_err() {
            self.port.rejoin()?;
        }
        self.out = false;
        self.look_at_nic(NIC_INTERVAL)?;
        let (slots, drained) = self.take_slots(mem)?;
        // Those of flows that end from here on wait for a sync that shows everything, and
        // for one more.
        if drained {
            self.free_numbers(mem);
        }
        self.end_hung(mem, drained);
        let events = self.take_events(mem)?;
        Ok(slots + events + self.accept(mem))
    }
}

impl StackPort for PasteEngine {
    fn receive(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        _plain: &mut dyn PlainSink,
    ) -> Result<usize, PortError> {
        self.now = now;
        let received = self.receive_all(mem);
        self.out = received.is_err();
        received
    }

    fn send_plain(&mut self, _: &mut RegionMemory, _: &[u8], _: Option<TxCsum>) -> bool {
        self.counters.plain_dropped += 1;
        false
    }

    fn send_segments(&mut self, _: &mut RegionMemory, _: &mut Packet, _: &[u8]) -> usize {
        0
    }

    fn listen(&mut self, channel: u16, port: u16, backlog: u16) -> Result<Flow, Reason> {
        self.open_listener(channel, port, backlog)
    }

    fn unlisten(&mut self, channel: u16, listener: Flow) -> Result<(), Reason> {
        self.listeners.close(channel, listener)
    }

    fn connect(
        &mut self,
        now: Now,
        channel: u16,
        remote: SocketAddr,
        local_port: u16,
        cookie: u32,
    ) -> Result<Flow, Reason> {
        self.now = now;
        self.open_flow(channel, remote, local_port, cookie)
    }

    fn send(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
        tx: &Tx,
    ) -> Result<(), Reason> {
        self.now = now;
        let index = self.owned(channel, flow)?;
        self.queue(mem, index, tx)
    }

    fn close(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
    ) -> Result<(), Reason> {
        self.now = now;
        let index = self.owned(channel, flow)?;
        self.close_flow(mem, index)
    }

    fn abort(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
    ) -> Result<(), Reason> {
        self.now = now;
        let index = self.owned(channel, flow)?;
        self.abort_flow(mem, index);
        Ok(())
    }

    fn set_option(
        &mut self,
        _now: Now,
        channel: u16,
        flow: Flow,
        option: Opt,
        value: u64,
    ) -> Result<(), Reason> {
        let index = self.owned(channel, flow)?;
        let flow = &self.flows[index];
        let Some(socket) = flow.socket.as_ref().filter(|_| flow.state != flows::State::Ended)
        else {
            return Ok(());
        };
        socket::set_option(socket.as_fd(), option, value).map_err(|_| Reason::BadRequest)
    }

    fn release(&mut self, _now: Now, buf: u32) -> bool {
        let charged = self.bufs.uncharge(buf);
        self.discharge(charged);
        self.bufs.get(buf).pins > 0
    }

    fn retire(&mut self, buf: u32) {
        self.bufs.get_mut(buf).place = bufs::Place::Retired;
    }

    fn close_channel(&mut self, now: Now, mem: &mut RegionMemory, channel: u16) {
        self.now = now;
        self.listeners.close_channel(channel);
        while let Some(index) = self.channels[usize::from(channel)].all.head() {
            self.forget(mem, index);
        }
    }

    fn has_slots(&self, channel: u16) -> bool {
        self.channels.get(usize::from(channel)).is_some_and(|c| !c.ready.is_empty())
    }

    fn poll_slots(&mut self, mem: &mut RegionMemory, channel: u16, out: &mut [Slot]) -> usize {
        self.tell(mem, channel, out)
    }

    fn advance(&mut self, now: Now, mem: &mut RegionMemory) {
        self.now = now;
        while let Some(index) = self.closing.head() {
            let silent_ns = now.monotonic_ns.saturating_sub(self.flows[index].silent_since);
            if silent_ns < SILENCE_MAX {
                break;
            }
            self.end_silent(mem, index);
        }
        self.listeners.retry(now.monotonic_ns);
    }

    fn transmit(&mut self, now: Now, mem: &mut RegionMemory) -> Result<usize, PortError> {
        self.now = now;
        if self.out {
            return Ok(0);
        }
        let sent = self.send_queued(mem);
        self.out = sent.is_err();
        sent
    }

    fn next_deadline(&self) -> Option<u64> {
        let silence = self.closing.head().map(|i| self.flows[i].silent_since + SILENCE_MAX);
        let wait = self.wait.head().map(|i| self.flows[i].look_at);
        let sync = Some(self.synced_at + TICK);
        [silence, wait, sync, self.listeners.retry_at()].into_iter().flatten().min()
    }

    fn is_backlogged(&self) -> bool {
        !self.work.is_empty()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.doorbell.as_fd())
    }

    fn caps(&self) -> Caps {
        Caps { mtu: self.mtu, tx_csum: false, rx_partial: false, gather: true }
    }

    fn release_reserve(&mut self, mem: &mut RegionMemory) {
        self.leaving = true;
        // What sockets said at their end goes out by a sync.
        for _ in 0..2 {
            if self.take_slots(mem).is_err() {
                tracing::debug!("the last frames could not be sent");
            }
            self.free_numbers(mem);
        }
    }

    fn each_counter(&self, visit: &mut dyn FnMut(&str, u64)) {
        self.counters.each(&mut *visit);
        visit("stack.flows", u64::from(self.flows.used()));
    }
}
