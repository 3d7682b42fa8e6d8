//! Listeners, each with a *door* for every address: a socket that listens.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use paste_abi::{CHANNELS_MAX, Flow, Reason};
use rustix::net::{Shutdown, getpeername, shutdown};

use super::flows::{Busy, Links};
use super::ring::{Completion, Op};
use super::{SocketsEngine, event, socket};

/// Listeners at once, over all channels.
const LISTENERS_MAX: usize = 256;
/// Doors at once: a listener has one for each family, and those that were closed go with
/// their last completion.
const DOORS_MAX: usize = 4 * LISTENERS_MAX;
/// A door that failed, as for want of descriptors, is tried again after this, ns.
const RETRY: u64 = 100_000_000;

#[derive(Clone, Copy, Debug, Default)]
struct Listener {
    /// 0: in nobody's use.
    port: u16,
    channel: u16,
    backlog: u16,
    /// Flows that the guest was not told of.
    waiting: u16,
    generation: u32,
}

/// A socket that listens, or has.
#[derive(Debug)]
struct Door {
    socket: OwnedFd,
    listener: Flow,
    accepting: Busy,
    /// Its listener is gone.
    closed: bool,
}

/// All listeners.
#[derive(Debug)]
pub(super) struct Listeners {
    entries: Box<[Listener]>,
    doors: Box<[Option<Door>]>,
    /// A door has something for the ring.
    due: bool,
    /// A door does not accept because there is no flow, or because its backlog is full.
    paused: bool,
    retry_at: Option<u64>,
    /// What the log was told of, once.
    told_privilege: bool,
    told_failure: bool,
}

impl Listeners {
    pub(super) fn new() -> Listeners {
        Listeners {
            entries: vec![Listener::default(); LISTENERS_MAX].into(),
            doors: (0..DOORS_MAX).map(|_| None).collect(),
            due: false,
            paused: false,
            retry_at: None,
            told_privilege: false,
            told_failure: false,
        }
    }

    fn find(&mut self, name: Flow) -> Option<&mut Listener> {
        let entry = self.entries.get_mut(name.index() as usize)?;
        (entry.port != 0 && entry.generation == name.generation()).then_some(entry)
    }

    /// Stops accepting. Flows that were accepted live on, delivered or not.
    pub(super) fn close(&mut self, channel: u16, name: Flow) -> Result<(), Reason> {
        let entry = self.find(name).filter(|entry| entry.channel == channel);
        let entry = entry.ok_or(Reason::StaleFlow)?;
        entry.port = 0;
        entry.generation = (entry.generation + 1) % Flow::GENERATIONS;
        for door in self.doors.iter_mut().flatten().filter(|door| door.listener == name) {
            // At once: whoever listens next on the port must find it free.
            let _ = shutdown(&door.socket, Shutdown::Both);
            door.closed = true;
        }
        self.due = true;
        Ok(())
    }

    pub(super) fn close_channel(&mut self, channel: u16) {
        for index in 0..self.entries.len() {
            let Listener { port, channel: owner, generation, .. } = self.entries[index];
            if port != 0 && owner == channel {
                let closed = self.close(channel, Flow::new(index as u32, generation));
                debug_assert!(closed.is_ok(), "it was found");
            }
        }
    }

    /// A flow of the listener was told to the guest, or is gone.
    pub(super) fn leave(&mut self, name: Flow) {
        self.due |= self.paused;
        if let Some(entry) = self.find(name) {
            entry.waiting = entry.waiting.saturating_sub(1);
        }
    }

    /// There is a flow again.
    pub(super) fn flow_freed(&mut self) {
        self.due |= self.paused;
    }

    /// When a door is to be tried again.
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
            tracing::warn!(
                port,
                "the application wants a port that needs privilege: let it listen on one from \
                 1024 on, or allow it with `sysctl net.ipv4.ip_unprivileged_port_start={port}` or \
                 CAP_NET_BIND_SERVICE"
            );
        }
    }
}

impl SocketsEngine {
    /// Listens on `port` of every address, for `channel`.
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
        let free = listeners.entries.iter().position(|entry| entry.port == 0);
        let index = free.ok_or(Reason::NoRoom)?;
        let name = Flow::new(index as u32, listeners.entries[index].generation);
        // All or none of them.
        let mut sockets = Vec::with_capacity(self.addresses.len());
        for &address in &self.addresses {
            sockets.push(socket::listener(address, port, backlog).map_err(|error| {
                listeners.warn(port, &error);
                socket::bind_reason(error.raw_os_error().unwrap_or_default())
            })?);
        }
        if listeners.doors.iter().filter(|door| door.is_none()).count() < sockets.len() {
            return Err(Reason::NoRoom);
        }
        let places = listeners.doors.iter_mut().filter(|door| door.is_none());
        for (place, socket) in places.zip(sockets) {
            *place = Some(Door { socket, listener: name, accepting: Busy::No, closed: false });
        }
        listeners.entries[index] = Listener {
            port,
            channel,
            backlog: backlog.max(1),
            waiting: 0,
            generation: name.generation(),
        };
        listeners.due = true;
        Ok(name)
    }

    /// Makes the requests of doors that are due.
    pub(super) fn serve_doors(&mut self) -> io::Result<()> {
        if !std::mem::take(&mut self.listeners.due) {
            return Ok(());
        }
        let has_flow = self.flows.has_free();
        self.listeners.paused = false;
        for index in 0..self.listeners.doors.len() {
            if self.listeners.doors[index].is_none() {
                continue;
            }
            if !self.make_room()? {
                self.listeners.due = true;
                return Ok(());
            }
            let listeners = &mut self.listeners;
            let Some(door) = &mut listeners.doors[index] else { continue };
            if door.closed {
                // The last completion takes it away, if the kernel still accepts.
                if door.accepting == Busy::No {
                    listeners.doors[index] = None;
                }
                continue;
            }
            let entry = &listeners.entries[door.listener.index() as usize];
            let open = has_flow && entry.waiting < entry.backlog && !self.leaving;
            listeners.paused |= !open;
            match door.accepting {
                Busy::No if open && listeners.retry_at.is_none() => {
                    door.accepting = Busy::Yes;
                    self.ring.accept(door.socket.as_fd(), index as u32);
                }
                Busy::Yes if !open => {
                    door.accepting = Busy::Stopping;
                    self.ring.cancel(Op::Accept, index as u32);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A connection, or the end of accepting.
    pub(super) fn on_accept(&mut self, completion: Completion) {
        let listeners = &mut self.listeners;
        let Some(Some(door)) = listeners.doors.get_mut(completion.index as usize) else {
            self.counters.strange += 1;
            return drop(completion.into_socket());
        };
        if !completion.more() {
            door.accepting = Busy::No;
            listeners.due = true;
        }
        let (name, closed, errno) = (door.listener, door.closed, -completion.result);
        let Some(socket) = completion.into_socket() else {
            // Those that pass, or that were asked for.
            let passes = matches!(errno, libc::ECANCELED | libc::ECONNABORTED | libc::EAGAIN);
            if !passes && !closed {
                self.counters.accept_failed += 1;
                listeners.retry_at = Some(self.now.monotonic_ns + RETRY);
                if !std::mem::replace(&mut listeners.told_failure, true) {
                    let error = io::Error::from_raw_os_error(errno);
                    tracing::warn!(%error, "connections wait; is the limit of open descriptors \
                        too low (`ulimit -n`)?");
                }
            }
            return;
        };
        let entry = listeners.find(name).map(|entry| {
            let full = entry.waiting + 1 >= entry.backlog;
            (entry.channel, entry.port, full)
        });
        let peer = getpeername(&socket).ok().flatten();
        let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
        let (Some((channel, port, full)), Some(peer)) = (entry, peer) else {
            // Nobody listens any more, or the peer is gone already.
            return socket::reset_on_close(&socket);
        };
        let Some(index) = self.flows.alloc() else {
            self.counters.accept_no_flow += 1;
            listeners.due = true;
            return socket::reset_on_close(&socket);
        };
        if let Some(entry) = listeners.find(name) {
            entry.waiting += 1;
        }
        listeners.due |= full || !self.flows.has_free();
        let flow = &mut self.flows[index];
        flow.socket = Some(socket);
        flow.channel = channel as u8;
        flow.listener = name.0;
        flow.peer = peer;
        flow.local_port = port;
        flow.events = event::ACCEPTED;
        self.counters.accepted += 1;
        let all = &mut self.channels[usize::from(channel)].all;
        self.flows.lists.push_back(all, Links::Channel, index);
        self.mark_ready(index);
        self.want_payload(index);
    }
}
