//! All clients of a server, and the loop that serves them.
//!
//! A turn takes a batch of events, does what the clients ask, ends the batch in
//! the store, and only then sends the answers: each waits, at the host, for what
//! was sealed before it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use paste_abi::{Flow, Reason};

use super::client::{Client, End, Pause, Shared};
use super::live::{AttachError, Attached, Live, RETRY_INTERVAL};
use super::sender::{Open, STORED, Sender, Sent};
use super::store::{RecoverError, Recovered, Store};
use crate::buffer::Buffer;
use crate::channel::Channel;
use crate::error::PollError;
use crate::event::Event;
use crate::sys;
use crate::transport::Timeout;

/// How long [`Server::run`] sleeps at most before it looks at its stop flag.
const STOP_INTERVAL: Duration = Duration::from_millis(500);
/// How often keys that have ended are looked for, and how many are looked at.
const SWEEP_INTERVAL: Duration = Duration::from_millis(100);
const SWEEP_COUNT: u32 = 64;
/// How soon a client goes on that lacked a buffer.
const STARVED_INTERVAL: Duration = Duration::from_millis(1);
/// The largest request. A region that is small allows less.
const REQUEST_MAX: usize = 8 << 20;
/// What is served.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The TCP port to listen on.
    pub port: u16,
    /// Flows that may be on their way to being established.
    pub backlog: u16,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions { port: 6379, backlog: 1024 }
    }
}

/// Why a server stopped, or could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The host does not let us listen.
    #[error("cannot listen on port {port}: {reason}")]
    Listen {
        /// The port.
        port: u16,
        /// Why.
        reason: Reason,
    },
    /// There is no region to store in.
    #[error("cannot store in the region: {0}")]
    Attach(#[from] AttachError),
    /// What is stored cannot be taken up.
    #[error("cannot recover what is stored: {0}")]
    Recover(#[from] RecoverError),
    /// The channel is gone for good.
    #[error(transparent)]
    Poll(#[from] PollError),
}

/// The server. It takes a channel's events and answers through the channel.
#[derive(Debug)]
pub struct Server {
    options: ServerOptions,
    open: Option<Open>,
    /// By the index of the flow; its generation is checked.
    clients: Box<[Option<Client>]>,
    shared: Shared,
    /// Flows to be taken up, each at most once.
    queue: VecDeque<Flow>,
    /// A client lacked a buffer, or room in the channel's queue.
    starved: bool,
    /// Buffers that hold requests, and how many may.
    pinned: usize,
    pinned_max: usize,
    /// Ranges of stored buffers under way.
    sharing: u32,
    copied: Vec<u8>,
    started: Duration,
    swept: Duration,
    listen_due: bool,
    listen_cookie: Option<u64>,
    refused: Option<Reason>,
    recovered: Option<Recovered>,
    retry_at: Option<Duration>,
}

impl Server {
    /// A server for a channel that is open: takes up what is stored in its region.
    /// It listens with the first [`Server::turn`].
    ///
    /// # Errors
    /// [`ServeError`], if there is no region to store in or what is stored there
    /// cannot be taken up.
    pub fn new(channel: &mut Channel, options: &ServerOptions) -> Result<Server, ServeError> {
        let now = sys::monotonic();
        let mut server = Server {
            options: options.clone(),
            open: None,
            clients: Box::default(),
            shared: Shared::default(),
            queue: VecDeque::new(),
            starved: false,
            pinned: 0,
            pinned_max: 0,
            sharing: 0,
            copied: Vec::new(),
            started: now,
            swept: now,
            listen_due: false,
            listen_cookie: None,
            refused: None,
            recovered: None,
            retry_at: None,
        };
        server.shared.about.port = options.port;
        server.attach(channel)?;
        Ok(server)
    }

    /// What was found in the region when it was taken up last; once.
    pub fn take_recovered(&mut self) -> Option<Recovered> {
        self.recovered.take()
    }

    /// Takes up the region of a channel that was opened.
    fn attach(&mut self, channel: &mut Channel) -> Result<(), ServeError> {
        let mut attached = Attached::new(channel)?;
        let known = *channel.geometry().ok_or(AttachError::Lost)?;
        let count = known.buffer_count;
        // The rest is for requests, answers and what is under way, besides what the
        // channel keeps in reserve.
        let limit = (count - count / 4).saturating_sub(channel.reserve());
        let secret = [sys::random_u64(), sys::random_u64()];
        let mut live = Live { channel, attached: &mut attached };
        let (mut store, recovered) = Store::recover(&mut live, limit, secret)?;
        let last = store.commit(&mut live);
        attached.say_stored(channel);
        // IP and TCP headers with timestamps (RFC 7323).
        let headers = if known.address.is_ipv4() { 52 } else { 72 };
        let segment = usize::from(known.mtu).saturating_sub(headers).max(512);
        self.recovered = Some(recovered);
        self.open = Some(Open { attached, store, segment, last });
        self.clients = (0..known.flows_max).map(|_| None).collect();
        self.queue = VecDeque::with_capacity(self.clients.len());
        self.pinned_max = count as usize * 3 / 16;
        self.shared.request_max = REQUEST_MAX.min(self.pinned_max * known.buffer_size as usize / 4);
        self.shared.about.buffer_size = known.buffer_size.into();
        self.shared.about.flush_domain = match known.flush_domain {
            paste_abi::control::FlushDomain::None => "none",
            paste_abi::control::FlushDomain::CpuCache => "cpu-cache",
            paste_abi::control::FlushDomain::Host => "host",
        };
        self.listen_due = true;
        self.listen_cookie = None;
        Ok(())
    }

    /// The channel is lost, and with it all that was reached through it.
    fn detach(&mut self) {
        self.open = None;
        self.clients.fill_with(|| None);
        self.queue.clear();
        self.pinned = 0;
        self.sharing = 0;
        self.starved = false;
        self.shared.about.clients = 0;
        self.shared.about.failed = false;
        self.retry_at = None;
    }

    /// Serves until `stop` is set or the channel is gone for good. A channel that
    /// is opened anew is taken up again.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn run(&mut self, channel: &mut Channel, stop: &AtomicBool) -> Result<(), ServeError> {
        while !stop.load(Ordering::Relaxed) {
            self.turn(channel, Timeout::After(STOP_INTERVAL))?;
        }
        Ok(())
    }

    /// How long a turn may wait for events.
    fn patience(&self, channel: &Channel, timeout: Timeout) -> Timeout {
        let Some(open) = &self.open else {
            return timeout;
        };
        let unfinished = open.store.is_unfinished();
        let under_way = open.last.is_some_and(|ticket| !channel.is_durable(ticket));
        if (!self.queue.is_empty() && !self.starved) || (unfinished && !under_way) {
            return Timeout::Now;
        }
        let mut timeout = timeout;
        if self.starved {
            timeout = timeout.at_most(STARVED_INTERVAL);
        }
        if open.store.mortal() > 0 {
            timeout = timeout.at_most(SWEEP_INTERVAL);
        }
        if self.retry_at.is_some() {
            timeout = timeout.at_most(RETRY_INTERVAL);
        }
        timeout
    }

    /// Moves one batch, and does and answers what is in it.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn turn(&mut self, channel: &mut Channel, timeout: Timeout) -> Result<(), ServeError> {
        if self.listen_due
            && self.open.is_some()
            && let Ok(cookie) = channel.request_listen(self.options.port, self.options.backlog)
        {
            self.listen_due = false;
            self.listen_cookie = Some(cookie);
        }
        let timeout = self.patience(channel, timeout);
        channel.poll(timeout)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.shared.now_ms = now.as_millis() as u64;
        while let Some(event) = channel.next_event() {
            self.handle(channel, event)?;
        }
        self.work(channel);
        match self.refused.take() {
            Some(reason) => Err(ServeError::Listen { port: self.options.port, reason }),
            None => Ok(()),
        }
    }

    /// Does what was asked, makes it durable, and answers.
    fn work(&mut self, channel: &mut Channel) {
        let Some(open) = &mut self.open else { return };
        let Open { attached, store, .. } = open;
        let monotonic = sys::monotonic();
        self.shared.about.uptime_s = (monotonic - self.started).as_secs();
        let mut live = Live { channel, attached };
        self.starved = false;
        let ready = self.queue.len();
        for &flow in self.queue.iter().take(ready) {
            if let Some(client) = find(&mut self.clients, flow) {
                let before = client.pieces();
                client.run(&mut live, store, &mut self.shared);
                self.starved |= client.pause == Pause::Starved;
                self.pinned = self.pinned + client.pieces() - before;
            }
        }
        if monotonic >= self.swept + SWEEP_INTERVAL {
            self.swept = monotonic;
            store.sweep(&mut live, self.shared.now_ms, SWEEP_COUNT);
        }
        if self.retry_at.is_some_and(|at| monotonic >= at) {
            self.retry_at = None;
            store.retry();
        }
        if let Some(ticket) = store.commit(&mut live) {
            open.last = Some(ticket);
        }
        open.attached.say_stored(channel);
        for _ in 0..ready {
            let Some(flow) = self.queue.pop_front() else { break };
            self.answer(channel, flow);
        }
    }

    /// Sends what a client is to be sent, and queues it again if it can go on.
    fn answer(&mut self, channel: &mut Channel, flow: Flow) {
        let Some(open) = &mut self.open else { return };
        let Some(client) = find(&mut self.clients, flow) else { return };
        client.queued = false;
        let durable = !self.shared.about.failed;
        let mut sender = Sender { channel, open, sharing: &mut self.sharing, durable };
        let more = match sender.send(client) {
            Sent::All => match client.end {
                // The next request may have waited for this answer.
                End::Open if client.pause != Pause::Idle => true,
                End::Open if !client.fin => false,
                End::Open | End::Closing => !sender.close(client),
                End::Aborting => !sender.abort(client),
                End::Done => false,
            },
            Sent::Unacked => false,
            Sent::Starved => {
                self.starved = true;
                true
            }
            Sent::Failed => {
                client.end = End::Aborting;
                !sender.abort(client)
            }
        };
        if client.end == End::Done {
            self.pinned -= client.pieces();
            let Open { attached, store, .. } = open;
            client.forget(&mut Live { channel, attached }, store);
        }
        if more {
            client.queued = true;
            self.queue.push_back(flow);
        }
    }

    /// Takes one event.
    fn handle(&mut self, channel: &mut Channel, event: Event) -> Result<(), ServeError> {
        match event {
            Event::Data { flow, data } => self.take(channel, flow, data),
            Event::Accepted { flow, .. } => {
                self.shared.about.connections += 1;
                let id = self.shared.about.connections;
                self.end(channel, flow.index());
                match self.clients.get_mut(flow.index() as usize) {
                    Some(place) => {
                        *place = Some(Client::new(flow, id));
                        self.shared.about.clients += 1;
                    }
                    // More flows than the host said it has.
                    None => drop(channel.abort(flow)),
                }
            }
            Event::Acked { flow, cookie, buffer } => {
                if let Some(buffer) = buffer {
                    channel.give_back(buffer);
                }
                let slots = self.sent(channel, cookie);
                if let Some(client) = find(&mut self.clients, flow) {
                    client.unacked = client.unacked.saturating_sub(slots);
                    self.queue_up(flow);
                }
            }
            Event::Fin { flow } => {
                if let Some(client) = find(&mut self.clients, flow) {
                    client.fin = true;
                    self.queue_up(flow);
                }
            }
            Event::Reset { flow, .. } | Event::Closed { flow } => {
                if find(&mut self.clients, flow).is_some() {
                    self.end(channel, flow.index());
                }
            }
            Event::Refused { flow, cookie, buffer, .. } => {
                let was_data = buffer.is_some() || cookie & STORED != 0;
                if let Some(buffer) = buffer {
                    channel.give_back(buffer);
                }
                if cookie & STORED != 0 {
                    self.sent(channel, cookie);
                }
                // Data is missing from the flow now: only a reset is honest.
                if was_data
                    && let Some(client) = find(&mut self.clients, flow)
                    && client.end != End::Done
                {
                    client.end = End::Aborting;
                    self.queue_up(flow);
                }
            }
            Event::Flushed { result, .. } => {
                let failed_before =
                    std::mem::replace(&mut self.shared.about.failed, result.is_err());
                if result.is_err() && !failed_before {
                    self.break_promises();
                }
                if result.is_err() && self.retry_at.is_none() {
                    self.retry_at = Some(sys::monotonic() + RETRY_INTERVAL);
                }
            }
            Event::Reply { cookie, result } if self.listen_cookie == Some(cookie) => {
                self.listen_cookie = None;
                self.refused = result.err();
            }
            Event::Opened => match self.attach(channel) {
                // Lost again: there will be another opening.
                Err(ServeError::Attach(AttachError::Lost)) => self.detach(),
                other => other?,
            },
            Event::Lost { .. } => self.detach(),
            Event::Connected { .. }
            | Event::Writable { .. }
            | Event::Reply { .. }
            | Event::Resumed { .. } => {}
        }
        Ok(())
    }

    /// Resets the clients whose answers wait to be sent: they were written to be sent
    /// when what they tell of is durable, and it will not be. What the host holds
    /// already, it refuses.
    fn break_promises(&mut self) {
        for client in self.clients.iter_mut().flatten() {
            if client.is_owed() && matches!(client.end, End::Open | End::Closing) {
                client.end = End::Aborting;
                if !std::mem::replace(&mut client.queued, true) {
                    self.queue.push_back(client.flow);
                }
            }
        }
    }

    fn queue_up(&mut self, flow: Flow) {
        if let Some(client) = find(&mut self.clients, flow)
            && !client.queued
        {
            client.queued = true;
            self.queue.push_back(flow);
        }
    }

    /// A send that was to be told of has ended. Returns its slots.
    fn sent(&mut self, channel: &mut Channel, cookie: u64) -> u16 {
        if cookie & STORED == 0 {
            return cookie.min(u64::from(u16::MAX)) as u16;
        }
        if let Some(Open { attached, store, .. }) = &mut self.open {
            self.sharing = self.sharing.saturating_sub(1);
            store.unhold(&mut Live { channel, attached }, cookie as u32);
        }
        1
    }

    /// Bytes have arrived.
    fn take(&mut self, channel: &mut Channel, flow: Flow, data: Buffer) {
        let Some(Open { attached, store, .. }) = &mut self.open else {
            return channel.give_back(data);
        };
        let Some(client) = find(&mut self.clients, flow).filter(|c| c.end == End::Open) else {
            return channel.give_back(data);
        };
        // Small pieces of one request are put together: a buffer each would be dear.
        if let Some(piece) = client.open_piece()
            && let at = usize::from(piece.offset) + usize::from(piece.len)
            && data.len() < data.capacity() / 2
            && at + data.len() <= data.capacity().min(usize::from(u16::MAX))
            && let Some(last) = attached.ours(piece.buffer)
        {
            self.copied.clear();
            self.copied.extend_from_slice(channel.bytes(&data));
            channel.bytes_mut(last, at..at + self.copied.len()).copy_from_slice(&self.copied);
            channel.count_copied(self.copied.len());
            client.grew(data.len() as u16);
            channel.give_back(data);
        } else {
            let extent = attached.arrived(data);
            store.hold(extent.buffer);
            client.arrived(extent);
            self.pinned += 1;
            if self.pinned > self.pinned_max {
                client.overflow();
            }
        }
        self.queue_up(flow);
    }

    /// A flow is gone: gives up all that its client has.
    fn end(&mut self, channel: &mut Channel, index: u32) {
        let Some(mut client) = self.clients.get_mut(index as usize).and_then(Option::take) else {
            return;
        };
        self.shared.about.clients -= 1;
        if let Some(filling) = client.filling.take() {
            channel.give_back(filling);
        }
        if let Some(Open { attached, store, .. }) = &mut self.open {
            self.pinned -= client.pieces();
            client.forget(&mut Live { channel, attached }, store);
        }
    }
}

/// The flow's client, if the name is not stale.
fn find(clients: &mut [Option<Client>], flow: Flow) -> Option<&mut Client> {
    clients.get_mut(flow.index() as usize)?.as_mut().filter(|client| client.flow == flow)
}
