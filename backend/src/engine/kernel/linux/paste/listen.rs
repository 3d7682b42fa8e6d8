//! Listeners, and the sockets that they accept by.
//!
//! Every socket here is bound to the NIC: PASTE ends in a panic of the kernel when a
//! registered socket receives something that did not come by its own NIC
//! (`nm_os_pst_upcall`), as from a program on this host by loopback.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use paste_abi::{CHANNELS_MAX, Flow, Reason};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::sockopt::{
    set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, set_socket_reuseaddr,
    set_socket_send_buffer_size, set_socket_send_buffer_size_force, set_tcp_nodelay,
};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, acceptfrom_with, bind, ipproto, listen, socket_with,
};

use super::flows::Links;
use super::{PasteEngine, RegionMemory, Token, event, kernel, socket};

/// Listeners at once, over all channels.
const LISTENERS_MAX: usize = 256;
/// Connections accepted from one listener in one turn.
const ACCEPT_BUDGET: usize = 64;
/// A listener that failed, as for want of descriptors, is tried again after this, ns.
const RETRY: u64 = 100_000_000;
/// Half the bytes of a flow's send buffer, as the kernel takes it: some sixty segments. It
/// is set, so that the kernel neither lets it grow nor, short of memory, shrink.
const SEND_BUFFER: usize = 128 << 10;
/// Bytes of its receive buffer, and so the largest window: what is on its way to a flow
/// needs slots of the ring, and is acknowledged however little the guest has read.
const RECEIVE_BUFFER: usize = 512 << 10;

#[derive(Debug, Default)]
struct Listener {
    /// `None`: in nobody's use.
    socket: Option<OwnedFd>,
    port: u16,
    channel: u16,
    backlog: u16,
    /// Flows that the guest was not told of.
    waiting: u16,
    generation: u32,
    /// Connections may wait.
    due: bool,
}

/// All listeners.
#[derive(Debug)]
pub(super) struct Listeners {
    entries: Box<[Listener]>,
    /// One of them is due.
    due: bool,
    retry_at: Option<u64>,
    /// What the log was told of, once.
    told_privilege: bool,
    told_failure: bool,
}

impl Listeners {
    pub(super) fn new() -> Listeners {
        Listeners {
            entries: (0..LISTENERS_MAX).map(|_| Listener::default()).collect(),
            due: false,
            retry_at: None,
            told_privilege: false,
            told_failure: false,
        }
    }

    fn find(&mut self, name: Flow) -> Option<&mut Listener> {
        let entry = self.entries.get_mut(name.index() as usize)?;
        (entry.socket.is_some() && entry.generation == name.generation()).then_some(entry)
    }

    /// Stops accepting. Flows that were accepted live on, delivered or not.
    pub(super) fn close(&mut self, channel: u16, name: Flow) -> Result<(), Reason> {
        let entry = self.find(name).filter(|entry| entry.channel == channel);
        let entry = entry.ok_or(Reason::StaleFlow)?;
        let generation = (entry.generation + 1) % Flow::GENERATIONS;
        *entry = Listener { generation, ..Listener::default() };
        Ok(())
    }

    pub(super) fn close_channel(&mut self, channel: u16) {
        for index in 0..self.entries.len() {
            let Listener { socket, channel: owner, generation, .. } = &self.entries[index];
            if socket.is_some() && *owner == channel {
                let closed = self.close(channel, Flow::new(index as u32, *generation));
                debug_assert!(closed.is_ok(), "it was found");
            }
        }
    }

    /// A flow of the listener was told to the guest, or is gone.
    pub(super) fn leave(&mut self, name: Flow) {
        if let Some(entry) = self.find(name) {
            entry.waiting = entry.waiting.saturating_sub(1);
        }
        self.due = true;
    }

    /// There is a flow again.
    pub(super) fn flow_freed(&mut self) {
        self.due = true;
    }

    /// Connections wait at a listener, if it is still that one.
    pub(super) fn ready(&mut self, index: u32) {
        if let Some(entry) = self.entries.get_mut(index as usize) {
            entry.due = true;
            self.due = true;
        }
    }

    /// When accepting is to be tried again.
    pub(super) fn retry_at(&self) -> Option<u64> {
        self.retry_at
    }

    pub(super) fn retry(&mut self, now: u64) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.due = true;
        }
    }

    /// Says once why a port cannot be had.
    fn warn(&mut self, port: u16, error: &io::Error) {
        if error.raw_os_error() == Some(libc::EACCES) && !self.told_privilege {
            self.told_privilege = true;
            tracing::warn!(port, "the application wants a port that needs CAP_NET_BIND_SERVICE");
        }
    }
}

/// A socket on the NIC, with an address of the host's.
pub(super) fn open(nic: &str, local: SocketAddr) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, Some(ipproto::TCP))?;
    kernel::bind_to_device(socket.as_fd(), nic)?;
    kernel::no_low_watermark(socket.as_fd())?;
    set_tcp_nodelay(&socket, true)?;
    // More than the system allows everybody, if this process may.
    if set_socket_send_buffer_size_force(&socket, SEND_BUFFER).is_err() {
        set_socket_send_buffer_size(&socket, SEND_BUFFER)?;
    }
    if set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
        set_socket_recv_buffer_size(&socket, RECEIVE_BUFFER)?;
    }
    // Should this process be killed, sockets are to end at once: those that end in good
    // order would keep PASTE's port, and nobody would do their work any more.
    socket::reset_on_close(&socket);
    set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &local)?;
    Ok(socket)
}

impl PasteEngine {
    /// Listens on `port`, for `channel`. What is set on its socket, what it accepts
    /// inherits.
    pub(super) fn open_listener(
        &mut self,
        channel: u16,
        port: u16,
        backlog: u16,
    ) -> Result<Flow, Reason> {
        if channel >= CHANNELS_MAX {
            return Err(Reason::BadRequest);
        }
        if port == 0 {
            return Err(Reason::BadAddress);
        }
        let listeners = &mut self.listeners;
        let free = listeners.entries.iter().position(|entry| entry.socket.is_none());
        let index = free.ok_or(Reason::NoRoom)?;
        let open = || -> io::Result<OwnedFd> {
            let socket = open(&self.nic, SocketAddr::new(self.address, port))?;
            listen(&socket, backlog.max(1).into())?;
            let token = Token::Listener(index as u32).pack();
            epoll::add(
                &self.events,
                &socket,
                token,
                epoll::EventFlags::IN | epoll::EventFlags::ET,
            )?;
            Ok(socket)
        };
        let socket = open().map_err(|error| {
            listeners.warn(port, &error);
            socket::bind_reason(error.raw_os_error().unwrap_or_default())
        })?;
        let entry = &mut listeners.entries[index];
        let (generation, backlog) = (entry.generation, backlog.max(1));
        let (socket, waiting) = (Some(socket), 0);
        *entry = Listener { socket, port, channel, backlog, waiting, generation, due: true };
        listeners.due = true;
        Ok(Flow::new(index as u32, generation))
    }

    /// Accepts what waits at listeners. Returns how many there were.
    pub(super) fn accept(&mut self, mem: &mut RegionMemory) -> usize {
        if self.leaving || !self.listeners.due || self.listeners.retry_at.is_some() {
            return 0;
        }
        self.listeners.due = false;
        let mut accepted = 0;
        for index in 0..self.listeners.entries.len() {
            for _ in 0..ACCEPT_BUDGET {
                let entry = &self.listeners.entries[index];
                let Some(socket) = entry.socket.as_ref().filter(|_| entry.due) else { break };
                // It waits for a flow, or for the guest to be told of others.
                if entry.waiting >= entry.backlog || !self.flows.has_free() {
                    break;
                }
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                match acceptfrom_with(socket, flags) {
                    Ok((socket, peer)) => {
                        accepted += 1;
                        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                        if let Some(peer) = peer {
                            self.on_accept(mem, index, socket, peer);
                        }
                    }
                    Err(Errno::AGAIN) => self.listeners.entries[index].due = false,
                    Err(Errno::INTR | Errno::CONNABORTED) => {}
                    Err(errno) => {
                        self.counters.accept_failed += 1;
                        self.listeners.retry_at = Some(self.now.monotonic_ns + RETRY);
                        if !std::mem::replace(&mut self.listeners.told_failure, true) {
                            let error = io::Error::from(errno);
                            tracing::warn!(%error, "connections wait; is the limit of open \
                                descriptors too low (`ulimit -n`)?");
                        }
                        return accepted;
                    }
                }
            }
            // More than a turn's share.
            let entry = &self.listeners.entries[index];
            self.listeners.due |=
                entry.due && entry.waiting < entry.backlog && self.flows.has_free();
        }
        accepted
    }

    fn on_accept(
        &mut self,
        mem: &mut RegionMemory,
        listener: usize,
        socket: OwnedFd,
        peer: SocketAddr,
    ) {
        let Some(index) = self.flows.alloc() else {
            self.counters.accept_no_flow += 1;
            return;
        };
        let entry = &mut self.listeners.entries[listener];
        let flow = &mut self.flows[index];
        flow.socket = Some(socket);
        flow.channel = entry.channel as u8;
        flow.peer = peer;
        flow.local_port = entry.port;
        let all = &mut self.channels[usize::from(entry.channel)].all;
        self.flows.lists.push_back(all, Links::Channel, index);
        let name = Flow::new(listener as u32, entry.generation);
        if self.register(index).is_err() {
            // The peer may be gone already; the guest has not heard of it.
            return self.forget(mem, index);
        }
        self.listeners.entries[listener].waiting += 1;
        let flow = &mut self.flows[index];
        flow.listener = name.0;
        flow.events = event::ACCEPTED;
        self.counters.accepted += 1;
        self.mark_ready(index);
    }
}
