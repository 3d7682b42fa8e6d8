//! The worker: one thread that owns everything of one guest and moves its
//! batches.
//!
//! A turn takes frames from the NIC, feeds the stack port, takes requests from
//! the guest's ring, runs timers, lets go what waited for stores to be durable,
//! publishes slots with at most one signal, and transmits. When nothing has happened for the polling time it sleeps until a
//! kick, the NIC, a timer, a control message or a wake-up. Control messages are
//! handled between turns, on the same thread: there is nothing to lock.
//!
//! The worker knows the parts by their traits and hands; who they are is
//! decided in the wiring.

mod counters;
mod plain;
mod pmem;
mod source;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use paste_abi::frame;
use paste_abi::net_hdr::{NET_HDR_LEN, NetHdr};
use paste_pmem::Owner;
use zerocopy::FromBytes;

use crate::channel::{Channels, FRAME_SIZE};
use crate::engine::{Now, RegionMemory, StackPort};
use crate::metrics::GuestSnapshot;
use crate::port::PortError;
use crate::sys::clock::{monotonic_ns, realtime_ns};
use crate::sys::wake::{Waker, Wakeups};
use crate::sys::{EventLoop, Token};
use crate::vhost::{self, Device, Endpoint, RingError, SessionError, judge_tx_header};
pub use counters::WorkerCounters;
use plain::RingSink;
pub use pmem::PmemPort;
pub use source::{Network, Sources, Spoof};

/// Chains taken from the guest's TX ring in one turn.
const TX_BUDGET: usize = 256;
/// PASTE frames built for the guest in one turn.
const PUBLISH_BUDGET: usize = 64;
/// The largest chain that is taken from a guest: a PASTE frame, or an Ethernet
/// frame of the largest MTU, and its header.
const SCRATCH_LEN: usize = NET_HDR_LEN + 65_536;
/// While it polls, the worker looks at its descriptors this often, ns.
const CONTROL_INTERVAL: u64 = 1_000_000;
/// A port that failed is tried again after this long, ns.
const PORT_RETRY: u64 = 1_000_000_000;

/// Tokens of the descriptors that a worker watches. Those of the device follow
/// [`TOKEN_DEVICE`].
const TOKEN_WAKE: Token = 0;
const TOKEN_ENDPOINT: Token = 1;
const TOKEN_PORT: Token = 2;
const TOKEN_DEVICE: Token = 16;
/// Those of the virtio-pmem device follow this one.
const TOKEN_PMEM: Token = 32;

/// Asks a thread that serves to stop, from another one.
#[derive(Clone)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    waker: Waker,
}

impl Stop {
    /// Stops who looks at `flag` whenever the other end of `waker` is woken.
    pub fn new(flag: Arc<AtomicBool>, waker: Waker) -> Stop {
        Stop { flag, waker }
    }

    /// Asks it to stop in good order.
    pub fn stop(&self) {
        self.flag.store(true, Ordering::Release);
        self.waker.wake();
    }
}

/// The parts of one guest, put together by the wiring.
pub struct Parts {
    /// The guest's name.
    pub name: String,
    /// Where front ends attach.
    pub endpoint: Endpoint,
    /// The virtio-net device.
    pub device: Device,
    /// The stack port on its NIC.
    pub engine: Box<dyn StackPort>,
    /// The region's buffers and their owners.
    pub memory: RegionMemory,
    /// The applications' conversations.
    pub channels: Channels,
    /// The virtio-pmem device, if the guest has one.
    pub pmem: Option<PmemPort>,
    /// Who the guest's own kernel may say that it is; anybody, without.
    pub sources: Option<Sources>,
    /// How long to poll before sleeping, ns.
    pub poll_ns: u64,
}

/// A worker, ready to [`run`](Worker::run).
pub struct Worker {
    parts: Parts,
    stop: Arc<AtomicBool>,
    wakeups: Wakeups,
    scratch: Box<[u8]>,
    /// A PASTE frame that was built and did not fit into the guest's ring yet.
    staged: Box<[u8]>,
    staged_len: usize,
    port_retry_at: Option<u64>,
    /// The port failed, and has not worked since.
    port_is_out: bool,
    counters: WorkerCounters,
}

impl Worker {
    /// A worker and the handle that stops it. It is woken by `wakeups`, the other
    /// end of `waker`, as its parts may have been told.
    pub fn new(parts: Parts, waker: Waker, wakeups: Wakeups) -> (Worker, Stop) {
        let stop = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            parts,
            stop: stop.clone(),
            wakeups,
            scratch: vec![0; SCRATCH_LEN].into_boxed_slice(),
            staged: vec![0; FRAME_SIZE].into_boxed_slice(),
            staged_len: 0,
            port_retry_at: None,
            port_is_out: false,
            counters: WorkerCounters::default(),
        };
        (worker, Stop::new(stop, waker))
    }

    /// Serves the guest until it is asked to stop, and returns what was counted.
    pub fn run(mut self) -> std::io::Result<GuestSnapshot> {
        let span = tracing::info_span!("guest", name = %self.parts.name);
        let _entered = span.enter();
        let mut events = self.watch()?;
        let mut generation = self.generation();
        let mut active_at = monotonic_ns();
        let mut looked_at = active_at;
        while !self.stop.load(Ordering::Acquire) {
            let now = Now { monotonic_ns: monotonic_ns(), real_ns: realtime_ns() };
            let moved = self.turn(now);
            if moved {
                active_at = now.monotonic_ns;
                self.counters.busy_turns += 1;
            }
            let idle = now.monotonic_ns.saturating_sub(active_at);
            let timeout = if !moved && idle >= self.parts.poll_ns {
                self.sleep_time(now)
            } else if now.monotonic_ns.saturating_sub(looked_at) >= CONTROL_INTERVAL {
                Some(Duration::ZERO)
            } else {
                if !moved {
                    // A guest that polls on the same core needs it.
                    std::thread::yield_now();
                }
                continue;
            };
            // Here and not after the wait, which is to see what the turn has changed: a
            // port that works again, for one.
            if generation != self.generation() {
                events = self.watch()?;
                generation = self.generation();
            }
            looked_at = now.monotonic_ns;
            if timeout != Some(Duration::ZERO) {
                self.counters.sleeps += 1;
            }
            let control = events
                .wait(timeout)?
                .iter()
                .fold(false, |control, &token| control | self.dispatch_light(token));
            if control {
                self.control(now);
            }
            self.parts.device.disarm();
        }
        self.finish();
        Ok(self.snapshot())
    }

    /// How long the worker may sleep, having told the guest to kick.
    fn sleep_time(&mut self, now: Now) -> Option<Duration> {
        match self.parts.device.arm() {
            Ok(false) => {}
            Ok(true) => return Some(Duration::ZERO),
            Err(error) => {
                self.ring_failed(now, &error);
                return Some(Duration::ZERO);
            }
        }
        let engine = self.port_retry_at.is_none() && self.parts.engine.arm();
        if engine || self.parts.pmem.as_mut().is_some_and(|pmem| pmem.arm()) {
            return Some(Duration::ZERO);
        }
        let deadlines = [
            self.parts.engine.next_deadline(),
            self.port_retry_at,
            self.parts.endpoint.next_attempt_ns(),
            self.parts.pmem.as_ref().and_then(|pmem| pmem.next_attempt_ns()),
            // A full NIC says nothing when it has room again.
            self.parts.engine.is_backlogged().then_some(now.monotonic_ns + 1_000_000),
        ];
        deadlines
            .into_iter()
            .flatten()
            .min()
            .map(|at| Duration::from_nanos(at.saturating_sub(monotonic_ns())))
    }

    /// Everything that the event loop has to watch.
    fn watch(&self) -> std::io::Result<EventLoop> {
        let Parts { endpoint, engine, device, pmem, .. } = &self.parts;
        let own = [
            Some((self.wakeups.as_fd(), TOKEN_WAKE)),
            endpoint.fd().map(|fd| (fd, TOKEN_ENDPOINT)),
            engine.fd().filter(|_| self.port_retry_at.is_none()).map(|fd| (fd, TOKEN_PORT)),
        ];
        let device = device.watch().map(|(watch, fd)| (fd, TOKEN_DEVICE + watch.to_index()));
        let pmem = pmem.iter().flat_map(|pmem| pmem.watch());
        let pmem = pmem.map(|(fd, token)| (fd, TOKEN_PMEM + token));
        EventLoop::new(own.into_iter().flatten().chain(device).chain(pmem))
    }

    /// Changes whenever [`Worker::watch`] would give another set.
    fn generation(&self) -> (u64, u64, bool, Option<(u64, u64)>) {
        let Parts { device, endpoint, pmem, .. } = &self.parts;
        (
            device.watch_generation(),
            endpoint.watch_generation(),
            self.port_retry_at.is_some(),
            pmem.as_ref().map(|pmem| pmem.generation()),
        )
    }

    /// Clears what a readable descriptor says; true if it wants
    /// [`Worker::control`]. The rest is found by the next turn.
    fn dispatch_light(&mut self, token: Token) -> bool {
        match token {
            TOKEN_WAKE => {
                self.wakeups.drain();
                false
            }
            TOKEN_PORT => false,
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
                _ => true,
            },
        }
    }

    /// One turn. Returns whether anything moved.
    fn turn(&mut self, now: Now) -> bool {
        self.counters.turns += 1;
        let pmem_due = self.parts.pmem.as_ref().and_then(|pmem| pmem.next_attempt_ns());
        let due = [self.parts.endpoint.next_attempt_ns(), pmem_due];
        if due.into_iter().flatten().any(|at| at <= now.monotonic_ns) {
            self.control(now);
        }
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
        self.parts.engine.advance(now, &mut self.parts.memory);
        let Parts { engine, memory, channels, pmem, .. } = &mut self.parts;
        if let Some(pmem) = pmem {
            let (durability, region_len) = channels.durability_mut();
            pmem.ask(durability, region_len);
        }
        let mut settled = channels.settle(now, memory, engine.as_mut());
        if let Some(pmem) = pmem {
            settled += pmem.answer(channels.durability().last_completed());
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
        received + taken + settled + published + sent > 0
    }

    fn receive(&mut self, now: Now) -> usize {
        if let Some(at) = self.port_retry_at {
            if now.monotonic_ns < at {
                return 0;
            }
            self.port_retry_at = None;
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
        let csum_allowed = engine.caps().tx_csum && device.sends_partial_csum();
        let mut taken = 0;
        let mut spoof = None;
        while taken < TX_BUDGET {
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
            match judge_tx_header(&header, bytes.len(), csum_allowed) {
                Ok(csum) if bytes.len() <= plain::frame_max(&engine.caps()) => {
                    if engine.send_plain(memory, bytes, csum) {
                        self.counters.plain_out += 1;
                        self.counters.bytes_copied += bytes.len() as u64;
                    } else {
                        self.counters.plain_out_dropped += 1;
                    }
                }
                _ => self.counters.plain_out_refused += 1,
            }
        }
        // Once in the life of a worker: what the guest sends is not to fill the log.
        if let Some(spoof) = spoof {
            tracing::warn!(%spoof, "a frame of the guest's kernel was refused; others are counted");
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
        device.flush()?;
        Ok(published)
    }

    /// Control messages: the session, then attachments. In this order, because a
    /// front end that has gone makes room for the one that waits.
    fn control(&mut self, now: Now) {
        if self.parts.device.is_attached() {
            self.session(now);
        }
        let attached = self.parts.device.is_attached();
        match self.parts.endpoint.poll(now.monotonic_ns, attached) {
            Ok(Some(stream)) => match self.parts.device.attach(stream) {
                Ok(()) => tracing::info!("front end attached"),
                Err(error) => tracing::warn!(%error, "front end could not be attached"),
            },
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "endpoint failed"),
        }
        if let Some(pmem) = &mut self.parts.pmem {
            pmem.control(now);
        }
    }

    /// Messages of the front end that is attached.
    fn session(&mut self, now: Now) {
        let resets = self.parts.device.resets();
        match self.parts.device.handle_messages() {
            Ok(()) => {
                if resets != self.parts.device.resets() {
                    self.forget_guest(now);
                }
            }
            Err(SessionError::Closed) => self.lose_guest(now, "the front end has gone"),
            Err(error) => {
                tracing::warn!(%error, "session ended");
                self.lose_guest(now, "the front end broke the protocol");
            }
        }
    }

    /// The rings cannot be trusted: the device stops until the driver resets it.
    fn ring_failed(&mut self, now: Now, error: &RingError) {
        self.counters.ring_errors += 1;
        tracing::warn!(%error, "the driver broke its ring; the device needs a reset");
        self.parts.device.fail();
        self.forget_guest(now);
    }

    fn port_failed(&mut self, now: Now, error: &PortError) {
        if !std::mem::replace(&mut self.port_is_out, true) {
            tracing::error!(%error, "port failed; it is tried again every second");
        } else {
            tracing::debug!(%error, "port still fails");
        }
        self.counters.port_errors += 1;
        self.port_retry_at = Some(now.monotonic_ns + PORT_RETRY);
    }

    /// The front end is gone: everything of its goes, and the next may attach.
    fn lose_guest(&mut self, now: Now, why: &str) {
        tracing::info!(why, "front end detached");
        self.parts.device.detach();
        self.forget_guest(now);
    }

    /// Whatever the guest had under way is void.
    fn forget_guest(&mut self, now: Now) {
        self.staged_len = 0;
        let Parts { engine, memory, channels, .. } = &mut self.parts;
        channels.close_all(now, memory, engine.as_mut());
    }

    /// Says good-bye: channels hear of it, flows are reset.
    fn finish(&mut self) {
        let now = Now { monotonic_ns: monotonic_ns(), real_ns: realtime_ns() };
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

    /// What was counted so far.
    fn snapshot(&self) -> GuestSnapshot {
        let Parts { name, engine, channels, device, memory, pmem, .. } = &self.parts;
        let mut snapshot = GuestSnapshot::new(name);
        engine.each_counter(&mut |name, value| snapshot.put(name, value));
        channels.counters().each(|name, value| snapshot.put(&format!("channel.{name}"), value));
        channels
            .durability()
            .each_counter(|name, value| snapshot.put(&format!("flush.{name}"), value));
        device.counters().each(|name, value| snapshot.put(&format!("device.{name}"), value));
        if let Some(pmem) = pmem {
            pmem.each_counter(|name, value| snapshot.put(&format!("pmem.{name}"), value));
        }
        self.counters.each(|name, value| snapshot.put(&format!("worker.{name}"), value));
        let pool = memory.pool();
        snapshot.put("pool.buffers", u64::from(pool.buffers().count()));
        snapshot.put("pool.free", u64::from(pool.free()));
        snapshot.put("pool.port", u64::from(pool.count_of(Owner::Port)));
        snapshot.put("pool.stack", u64::from(pool.count_of(Owner::Stack)));
        snapshot.put("pool.claimed", u64::from(pool.count_of(Owner::Claimed)));
        snapshot
    }
}
