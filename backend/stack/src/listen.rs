//! How flows begin: listeners, active opens, and initial sequence numbers.

use core::net::SocketAddr;

use paste_abi::{CHANNELS_MAX, Flow, Reason};

use crate::clock::Deadline;
use crate::control::Limit;
use crate::flow::{Key, Links, State};
use crate::stack::{Secret, Stack};
use crate::tcp::seq::Seq;

/// First port chosen for active opens (RFC 6335 section 6, dynamic ports).
const PORT_FIRST: u16 = 49152;
/// Ports tried for one active open.
const PORT_TRIES: u16 = 512;

#[derive(Clone, Copy, Debug)]
struct Listener {
    /// Zero when free.
    port: u16,
    channel: u16,
    backlog: u16,
    /// Flows that came by it and are not established yet.
    half_open: u16,
    /// Flows that came by it, are established, and were not delivered to the
    /// guest yet.
    waiting: u16,
    next_free: u16,
    generation: u32,
    /// SYNs for which flows are made.
    syns: Limit,
    /// Until when an answer to one of its cookies may come, ns.
    cookies_until: u64,
}

/// A listener, as a segment finds it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Door {
    pub name: Flow,
    pub channel: u16,
    /// The backlog has room for a half-open flow. Established flows count too,
    /// but half-open ones never keep those out.
    pub has_room: bool,
    /// The backlog has room for an established flow.
    pub accepts: bool,
    pub cookies_until: u64,
}

const NONE: u16 = u16::MAX;

/// All listeners, and which port is whose.
#[derive(Debug)]
pub(crate) struct Listeners {
    entries: Box<[Listener]>,
    /// Listener of each port, or [`NONE`].
    ports: Box<[u16]>,
    free: u16,
    syn_per_second: u32,
}

impl Listeners {
    /// Room for `count` of them, each of which makes flows for so many SYNs.
    pub(crate) fn new(count: u16, syn_per_second: u32) -> Listeners {
        let count = count.min(NONE - 1);
        let entries = (0..count).map(|i| Listener {
            port: 0,
            channel: 0,
            backlog: 0,
            half_open: 0,
            waiting: 0,
            generation: 0,
            syns: Limit::per_second(syn_per_second),
            cookies_until: 0,
            next_free: if i + 1 == count { NONE } else { i + 1 },
        });
        Listeners {
            entries: entries.collect(),
            ports: vec![NONE; 1 << 16].into_boxed_slice(),
            free: if count == 0 { NONE } else { 0 },
            syn_per_second,
        }
    }

    fn find(&self, name: Flow) -> Option<&Listener> {
        let entry = self.entries.get(name.index() as usize)?;
        (entry.port != 0 && entry.generation == name.generation()).then_some(entry)
    }

    fn remove(&mut self, index: u16) {
        let entry = &mut self.entries[usize::from(index)];
        self.ports[usize::from(entry.port)] = NONE;
        entry.port = 0;
        entry.generation = (entry.generation + 1) % Flow::GENERATIONS;
        entry.next_free = self.free;
        self.free = index;
    }

    /// Removes all listeners of a channel.
    pub(crate) fn remove_channel(&mut self, channel: u16) {
        for index in 0..self.entries.len() {
            let entry = &self.entries[index];
            if entry.port != 0 && entry.channel == channel {
                self.remove(index as u16);
            }
        }
    }

    /// The listener of `port`.
    pub(crate) fn of_port(&self, port: u16) -> Option<Door> {
        let index = self.ports[usize::from(port)];
        let entry = self.entries.get(usize::from(index))?;
        let pending = u32::from(entry.half_open) + u32::from(entry.waiting);
        Some(Door {
            name: Flow::new(u32::from(index), entry.generation),
            channel: entry.channel,
            has_room: pending < u32::from(entry.backlog),
            accepts: entry.waiting < entry.backlog,
            cookies_until: entry.cookies_until,
        })
    }

    /// The listener, if it is still the one that had this name.
    fn find_mut(&mut self, name: Flow) -> Option<&mut Listener> {
        let entry = self.entries.get_mut(name.index() as usize)?;
        (entry.port != 0 && entry.generation == name.generation()).then_some(entry)
    }

    /// Counts one more flow that is half open.
    pub(crate) fn enter(&mut self, name: Flow) {
        if let Some(entry) = self.find_mut(name) {
            entry.half_open += 1;
        }
    }

    /// A half-open flow is established, and waits to be delivered.
    fn establish(&mut self, name: Flow) {
        if let Some(entry) = self.find_mut(name) {
            entry.half_open = entry.half_open.saturating_sub(1);
            entry.waiting += 1;
        }
    }

    /// A flow does not wait any more.
    fn leave(&mut self, name: Flow) {
        if let Some(entry) = self.find_mut(name) {
            entry.waiting = entry.waiting.saturating_sub(1);
        }
    }

    /// A cookie went out for the listener; until then its answer may come.
    pub(crate) fn cookie_sent(&mut self, name: Flow, until: u64) {
        if let Some(entry) = self.find_mut(name) {
            entry.cookies_until = until;
        }
    }

    /// Whether the listener still listens.
    pub(crate) fn lives(&self, name: Flow) -> bool {
        self.find(name).is_some()
    }

    /// Each listener with its flows that are half open, and that wait.
    #[cfg(any(test, feature = "audit"))]
    pub(crate) fn pending(&self) -> impl Iterator<Item = (Flow, u16, u16)> {
        let living = (0..).zip(&self.entries).filter(|(_, entry)| entry.port != 0);
        living.map(|(index, entry)| {
            (Flow::new(index, entry.generation), entry.half_open, entry.waiting)
        })
    }
}

impl Stack {
    /// Accepts flows on `port` for `channel`, at most `backlog` of them (but
    /// one at least) not yet delivered to the guest. Beyond that a SYN is
    /// answered with a cookie, or dropped if cookies are off, and peers try
    /// again.
    pub fn listen(&mut self, channel: u16, port: u16, backlog: u16) -> Result<Flow, Reason> {
        if port == 0 {
            return Err(Reason::BadAddress);
        }
        if channel >= CHANNELS_MAX {
            return Err(Reason::BadRequest);
        }
        let listeners = &mut self.listeners;
        if listeners.ports[usize::from(port)] != NONE {
            return Err(Reason::PortInUse);
        }
        let index = listeners.free;
        let entry = listeners.entries.get_mut(usize::from(index)).ok_or(Reason::NoRoom)?;
        listeners.free = entry.next_free;
        entry.port = port;
        entry.channel = channel;
        entry.backlog = backlog.max(1);
        entry.half_open = 0;
        entry.waiting = 0;
        entry.syns = Limit::per_second(listeners.syn_per_second);
        entry.cookies_until = 0;
        listeners.ports[usize::from(port)] = index;
        Ok(Flow::new(u32::from(index), entry.generation))
    }

    /// Stops accepting. Flows that are established live on, delivered or not.
    pub fn unlisten(&mut self, channel: u16, listener: Flow) -> Result<(), Reason> {
        let entry = self.listeners.find(listener).ok_or(Reason::StaleFlow)?;
        if entry.channel != channel {
            return Err(Reason::StaleFlow);
        }
        self.listeners.remove(listener.index() as u16);
        Ok(())
    }

    /// Whether a flow is to be made for a SYN now, by the limits of the guest
    /// and of the listener.
    pub(crate) fn allows_syn(&mut self, now: u64, listener: Flow) -> bool {
        let own = self.listeners.find_mut(listener).is_some_and(|entry| entry.syns.allows(now));
        own && self.syn_limit.allows(now)
    }

    /// The flow, which is new, came by a listener.
    pub(crate) fn begin_half_open(&mut self, index: u32, listener: Flow) {
        self.flows[index].set_listener(listener);
        self.listeners.enter(listener);
        self.flows.push_back(&mut self.half_open, Links::Age, index);
    }

    /// The flow is half open no more, if it was: it waits to be delivered, or
    /// it is gone.
    pub(crate) fn end_half_open(&mut self, index: u32) {
        let flow = &self.flows[index];
        if let (State::SynReceived, Some(listener)) = (flow.state, flow.listener()) {
            self.flows.remove(&mut self.half_open, Links::Age, index);
            self.listeners.establish(listener);
        }
    }

    /// The flow was delivered to the guest, or is gone before.
    pub(crate) fn leave_backlog(&mut self, index: u32) {
        self.end_half_open(index);
        if let Some(listener) = self.flows[index].take_listener() {
            self.listeners.leave(listener);
        }
    }

    /// Opens a flow to `remote`; CONNECTED with `cookie`, or RESET, tells the
    /// outcome later. `local_port` 0 lets the stack choose. Payload may be
    /// queued at once; it goes when the flow is established.
    pub fn connect(
        &mut self,
        now: u64,
        channel: u16,
        remote: SocketAddr,
        local_port: u16,
        cookie: u32,
    ) -> Result<Flow, Reason> {
        let now = self.clock(now);
        if channel >= CHANNELS_MAX {
            return Err(Reason::BadRequest);
        }
        let key = self.addresses.key_to(remote.ip(), remote.port(), local_port);
        let mut key = key.filter(|key| key.remote_port != 0).ok_or(Reason::BadAddress)?;
        if !self.routable(now, &key) {
            return Err(Reason::Unreachable);
        }
        let hash = if local_port == 0 {
            self.choose_port(&mut key).ok_or(Reason::NoRoom)?
        } else {
            self.unused(&key).ok_or(Reason::PortInUse)?
        };
        let index = self.open_flow(now, key, hash, channel as u8).ok_or(Reason::NoRoom)?;
        let flow = &mut self.flows[index];
        flow.enter(State::SynSent);
        flow.set_syn_due(true);
        flow.opener = cookie;
        flow.set_timestamps(self.config.timestamps);
        flow.set_sack(self.config.sack);
        flow.rcv_scale = self.rcv_scale;
        flow.rexmit_at = Deadline::NEVER;
        self.kick(index);
        Ok(self.flows.name(index))
    }

    /// RFC 6056 section 3.3.3: ports in order from a place that depends on the
    /// peer, skipping those that are in use.
    fn choose_port(&mut self, key: &mut Key) -> Option<u32> {
        let count = u32::from(u16::MAX - PORT_FIRST) + 1;
        let offset = self.secret(Secret::Port, key, &[]);
        for _ in 0..PORT_TRIES {
            let place = offset.wrapping_add(u32::from(self.next_port)) % count;
            self.next_port = self.next_port.wrapping_add(1);
            key.local_port = PORT_FIRST + place as u16;
            if self.listeners.of_port(key.local_port).is_none()
                && let Some(hash) = self.unused(key)
            {
                return Some(hash);
            }
        }
        None
    }

    /// The key's hash, if no flow has the key.
    fn unused(&self, key: &Key) -> Option<u32> {
        let hash = self.key_hash(key);
        self.find_flow(key, hash).is_none().then_some(hash)
    }

    /// The flow with this key.
    #[inline]
    pub(crate) fn find_flow(&self, key: &Key, hash: u32) -> Option<u32> {
        self.table.find(hash, |index| self.flows[index].key == *key)
    }

    /// RFC 6528 section 3: a clock of 4 microseconds, and a secret function of
    /// the connection's addresses and ports.
    pub(crate) fn initial_sequence(&self, now: u64, key: &Key) -> Seq {
        Seq(self.secret(Secret::Sequence, key, &[])) + (now / 4000) as u32
    }
}
