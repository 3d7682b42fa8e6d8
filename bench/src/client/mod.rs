//! The load generator, on our own stack over a TAP device or by AF_XDP.
//!
//! A connection sends a request, or several at once, waits for the whole response and
//! judges every byte of it. In a closed loop every connection then sends the same again.
//! In an open loop requests are due at a constant rate, whatever the server does, and go
//! on the connection that has been free for the longest time; one for which there is none
//! goes late, and its latency is counted from when it was due, so that a server that
//! stops does not stop the clock as well (coordinated omission).
//!
//! One thread does it all; it spins for the polling time and then sleeps, as the servers
//! do. It knows a server's address and what to expect of it, and not who serves.
//!
//! Requests lie ready in buffers of their connection's, which are sent again and
//! again (they are kept); nothing is allocated or formatted per request.

mod answer;

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use paste_abi::net_hdr::NetHdr;
use paste_abi::slot::KEEP;
use paste_abi::{Event, Flow, Reason, Slot};
use paste_pmem::{Pool, Region, SIZE_STEP};
use paste_stack::{Memory, Stack, Tx};
use pasted::demo::sample::Sample;
use pasted::engine::{Now, PlainSink, RegionMemory, StackPort, UserEngine};
use pasted::port::PortError;
use pasted::sys::clock::monotonic_ns;

use self::answer::{RESPONSE_LEN_MAX, Verdict, progress, verdict};
use crate::device::{self, Device, DeviceError};
use crate::network::{CLIENT_MAC, MTU, PREFIX};
use crate::sys;

/// The one channel of this stack.
const CHANNEL: u16 = 0;
/// Where a request starts in its buffer: behind the room for headers.
const HEADROOM: usize = paste_stack::HEAD_MAX;
/// Bytes of a request in one buffer: one segment, with IP and TCP headers and
/// timestamps (RFC 7323).
pub const SEGMENT_LEN: usize = MTU as usize - 52;
/// Buffers with requests of one connection.
const SEGMENTS_MAX: usize = 16;
/// Bytes of the longest script.
pub const REQUEST_LEN_MAX: usize = SEGMENTS_MAX * SEGMENT_LEN;
/// Bytes of the client's region, as long as that is enough; and of what each connection
/// needs of it, so that all their answers at once find buffers beside the requests.
const REGION_SIZE_MIN: u64 = 64 << 20;
const CONNECTION_SIZE: u64 = 32 << 10;
/// Flows at once, at least: two servers with the most connections of a quick comparison,
/// and what is ending.
const FLOWS_MIN: u32 = 16 * 1024;
/// Slots taken at once.
const SLOTS: usize = 1024;
/// Connections that are being opened at once: less than any server's backlog.
const OPENING_MAX: usize = 32;
/// How long a server that refused is left alone.
const REFUSED_PAUSE: Duration = Duration::from_millis(2);
/// How long opening, draining and ending may take.
const PATIENCE_NS: u64 = 30_000_000_000;
/// How long a stretch is followed by nothing: longer than an acknowledgement is
/// delayed, or the server would be held still while it waits for one.
const LINGER_NS: u64 = 100_000_000;
/// The longest sleep: the end of a stretch is looked for that often.
const SLEEP_MAX_NS: u64 = 10_000_000;
/// A flow's index that is no connection's.
const NOBODY: u32 = u32::MAX;

/// Why there is no load.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The port and its region.
    #[error(transparent)]
    Open(#[from] DeviceError),
    /// The device.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The wait.
    #[error("the client cannot wait: {0}")]
    Wait(#[from] io::Error),
    /// The stack refused.
    #[error("the client's stack refused a connection or request: {0}")]
    Stack(Reason),
    /// More connections than buffers.
    #[error("the client has no buffer left for another connection")]
    NoBuffer,
    /// The server did not take all connections.
    #[error("{server} took {connected} of {wanted} connections")]
    Connect {
        /// The server.
        server: SocketAddrV4,
        /// Connections that were made.
        connected: usize,
        /// Connections asked for.
        wanted: usize,
    },
}

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Opening,
    Open,
    /// Reset, or ended by the server.
    Gone,
}

/// What a connection sends again and again, and what is to come back.
#[derive(Clone, Debug)]
pub struct Script {
    /// All that is sent at once: at most [`REQUEST_LEN_MAX`] bytes.
    pub request: Vec<u8>,
    /// Requests that it is made of.
    pub requests: u32,
    /// The answer to all of them.
    pub answer: Answer,
}

impl Script {
    /// One HTTP request.
    pub fn http(request: Vec<u8>) -> Script {
        Script { request, requests: 1, answer: Answer::Http }
    }
}

/// What is a right answer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// One HTTP response with the body of the demonstration, whatever its date.
    Http,
    /// Exactly these bytes.
    Bytes(Arc<[u8]>),
}

#[derive(Debug)]
struct Connection {
    flow: Flow,
    state: State,
    /// The buffers with the requests, and how long each is filled.
    bufs: Vec<(u32, u16)>,
    /// How many of them are ours, and not on their way.
    held: usize,
    requests: u32,
    answer: Answer,
    /// A response is expected.
    waits: bool,
    /// Among those that are free for the next request of an open loop.
    queued: bool,
    /// When the request was sent, or was to be sent.
    due_ns: u64,
    /// The beginning of a response that came in pieces.
    partial: Vec<u8>,
    /// How much has come of an answer whose bytes are known.
    matched: usize,
}

impl Connection {
    fn holds_all(&self) -> bool {
        self.held == self.bufs.len()
    }
}

/// Connections to one server, by their numbers.
#[derive(Debug, Default)]
pub struct Group {
    members: Vec<u32>,
}

impl Group {
    /// Takes in the connections of another group of the same client.
    pub fn merge(&mut self, other: Group) {
        self.members.extend(other.members);
    }
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As soon as the last one of the connection is answered.
    Closed,
    /// At this rate, requests per second, evenly spread over time.
    Open(f64),
}

/// What one stretch of load gave.
#[derive(Clone, Debug, Default)]
pub struct Stretch {
    /// Counts, latencies, and how long it took.
    pub sample: Sample,
    /// Time in which the client found nothing to do, in ns. With next to none
    /// the client is the limit.
    pub idle_ns: u64,
    /// Segments that the client's stack sent again.
    pub retransmits: u64,
    /// Requests of an open loop that were due and not sent at the end. Their latency is
    /// counted as what it was by then.
    pub unsent: u64,
}

/// What the stack tells, as it concerns a stretch.
#[derive(Debug, Default)]
struct Load {
    sample: Sample,
    /// Answered connections are asked again.
    goes_on: bool,
    /// Requests on their way.
    waiting: usize,
    /// The requests to come of an open loop.
    schedule: Option<Schedule>,
    /// Connections that are free for them, the one that has been for the longest first.
    free: VecDeque<u32>,
}

/// When the requests of an open loop are due.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    start_ns: u64,
    interval_ns: f64,
    /// Requests that were taken from it.
    taken: u64,
    /// None is due from here on.
    end_ns: u64,
}

impl Schedule {
    /// When the next request is due; `None` if there is none any more.
    fn next(&self) -> Option<u64> {
        let due = self.start_ns + (self.taken as f64 * self.interval_ns) as u64;
        (due < self.end_ns).then_some(due)
    }
}

/// Frames for a kernel behind the stack: there is none.
struct NoKernel;

impl PlainSink for NoKernel {
    fn takes_segments(&self, _: bool) -> bool {
        false
    }

    fn frame(&mut self, _header: NetHdr, _bytes: &mut [u8]) {}
}

/// The generator.
pub struct Client {
    engine: UserEngine,
    memory: RegionMemory,
    /// Keeps the region's file.
    _region: Region,
    slots: Box<[Slot]>,
    connections: Vec<Connection>,
    /// Numbers that no connection has.
    free: Vec<u32>,
    /// By the index of the flow.
    numbers: Box<[u32]>,
    /// Bytes that were judged right last: the same bytes are right again.
    right: Vec<u8>,
    scratch: Box<[u8]>,
    load: Load,
    poll_ns: u64,
    /// The last turn, and whether anything moved in it.
    last: (u64, bool),
    active_ns: u64,
    idle_ns: u64,
}

impl Client {
    /// A generator on this device for so many connections at once, or some thousands,
    /// which polls for `poll` before it sleeps; `None`: it never sleeps.
    pub fn on(
        device: &Device,
        address: Ipv4Addr,
        connections: u32,
        poll: Option<Duration>,
    ) -> Result<Client, ClientError> {
        // Half as many again, as what is ending keeps its flow for a while.
        let flows = (connections + connections / 2).max(FLOWS_MIN).next_power_of_two();
        let size = REGION_SIZE_MIN.max(u64::from(connections) * CONNECTION_SIZE);
        let region = device::region("client", size.next_multiple_of(SIZE_STEP))?;
        let port = device::open(device, CLIENT_MAC, address, &region)?;
        let pool = Pool::new(region.buffers());
        let (buffer_size, buffers) = (pool.buffers().size(), pool.buffers().count());
        let mut config = paste_stack::Config::new(CLIENT_MAC, address, PREFIX);
        config.mtu = MTU;
        config.flows_max = flows;
        config.tx_csum_offload = port.caps().tx_csum;
        // The network is ours alone: nobody guesses, so a known secret will do,
        // and runs are alike.
        let stack = Stack::new(config, buffers, [0x70; 16]);
        Ok(Client {
            engine: UserEngine::new(stack, port, CLIENT_MAC, buffer_size),
            memory: RegionMemory::new(pool),
            _region: region,
            slots: vec![Slot::default(); SLOTS].into(),
            connections: Vec::new(),
            free: Vec::new(),
            numbers: vec![NOBODY; flows as usize].into(),
            right: Vec::with_capacity(RESPONSE_LEN_MAX),
            scratch: vec![0; buffer_size].into(),
            load: Load::default(),
            poll_ns: poll_ns(poll),
            last: (monotonic_ns(), false),
            active_ns: 0,
            idle_ns: 0,
        })
    }

    /// Polls for so long before it sleeps from now on; `None`: it never sleeps.
    pub fn poll_for(&mut self, poll: Option<Duration>) {
        self.poll_ns = poll_ns(poll);
    }

    /// Opens connections, a few at a time, each with a script of its own. A server
    /// that refuses is asked again: it may have just been started.
    pub fn connect(
        &mut self,
        server: SocketAddrV4,
        scripts: &[Script],
    ) -> Result<Group, ClientError> {
        let count = scripts.len();
        let mut group = Group { members: Vec::with_capacity(count) };
        let end = monotonic_ns() + PATIENCE_NS;
        loop {
            let refused: Vec<u32> =
                group.members.extract_if(.., |number| self.state(*number) == State::Gone).collect();
            if !refused.is_empty() {
                std::thread::sleep(REFUSED_PAUSE);
            }
            self.discard(refused);
            let is_open = |number: &&u32| self.state(**number) == State::Open;
            let connected = group.members.iter().filter(is_open).count();
            if connected == count {
                return Ok(group);
            }
            if monotonic_ns() > end {
                self.disconnect(group)?;
                return Err(ClientError::Connect { server, connected, wanted: count });
            }
            let wanted = count.min(connected + OPENING_MAX);
            for script in scripts.iter().take(wanted).skip(group.members.len()) {
                group.members.push(self.open_one(server, script)?);
            }
            self.turn_and_wait(end)?;
        }
    }

    fn state(&self, number: u32) -> State {
        self.connections[number as usize].state
    }

    /// Takes back what connections that are gone had.
    fn discard(&mut self, members: Vec<u32>) {
        for number in members {
            for (buf, _) in self.connections[number as usize].bufs.drain(..) {
                self.memory.give(buf);
            }
            self.free.push(number);
        }
    }

    fn open_one(&mut self, server: SocketAddrV4, script: &Script) -> Result<u32, ClientError> {
        debug_assert!(script.request.len() <= REQUEST_LEN_MAX);
        let mut bufs = Vec::new();
        for part in script.request.chunks(SEGMENT_LEN) {
            let buf = self.memory.take().ok_or(ClientError::NoBuffer)?;
            self.memory.write(buf, HEADROOM, part);
            bufs.push((buf, part.len() as u16));
        }
        let number = self.free.pop().unwrap_or(self.connections.len() as u32);
        let now = now();
        let flow = self
            .engine
            .connect(now, CHANNEL, SocketAddr::V4(server), 0, number)
            .map_err(ClientError::Stack)?;
        self.numbers[flow.index() as usize] = number;
        let connection = Connection {
            flow,
            state: State::Opening,
            held: bufs.len(),
            bufs,
            requests: script.requests,
            answer: script.answer.clone(),
            waits: false,
            queued: false,
            due_ns: 0,
            partial: Vec::new(),
            matched: 0,
        };
        match self.connections.get_mut(number as usize) {
            Some(place) => *place = connection,
            None => self.connections.push(connection),
        }
        Ok(number)
    }

    /// Keeps every connection of `group` busy for `duration`. What is on its
    /// way then is left to [`Client::drain`].
    pub fn drive(&mut self, group: &Group, duration: Duration) -> Result<Stretch, ClientError> {
        self.drive_at(group, Pace::Closed, duration)
    }

    /// As [`Client::drive`], at this pace.
    pub fn drive_at(
        &mut self,
        group: &Group,
        pace: Pace,
        duration: Duration,
    ) -> Result<Stretch, ClientError> {
        let retransmits = self.retransmits();
        let start = monotonic_ns();
        let end = start + duration.as_nanos() as u64;
        self.load = Load { goes_on: true, ..Load::default() };
        self.last = (start, true);
        self.idle_ns = 0;
        if let Pace::Open(rate) = pace {
            let interval_ns = 1e9 / rate.max(f64::MIN_POSITIVE);
            let schedule = Schedule { start_ns: start, interval_ns, taken: 0, end_ns: end };
            self.load.schedule = Some(schedule);
            self.load.free.reserve(group.members.len());
        }
        for &number in &group.members {
            self.connections[number as usize].queued = false;
            self.ask_again(number, start)?;
        }
        while monotonic_ns() < end && (self.load.waiting > 0 || self.load.schedule.is_some()) {
            self.turn_and_wait(end)?;
        }
        let now = monotonic_ns();
        let mut sample = std::mem::take(&mut self.load.sample);
        sample.elapsed_ns = now - start;
        self.load.goes_on = false;
        let mut unsent = 0;
        if let Some(mut schedule) = self.load.schedule.take() {
            while let Some(due) = schedule.next() {
                sample.latency_ns.saturating_record(now.saturating_sub(due));
                schedule.taken += 1;
                unsent += 1;
            }
        }
        let retransmits = self.retransmits() - retransmits;
        Ok(Stretch { sample, idle_ns: self.idle_ns, retransmits, unsent })
    }

    /// Waits for what is on its way, and for the last acknowledgements. What comes is
    /// judged too; it is counted in `stretch` if it is wrong, and its latency is. What
    /// does not come is missing.
    pub fn drain(&mut self, group: &Group, stretch: &mut Stretch) -> Result<(), ClientError> {
        let end = monotonic_ns() + PATIENCE_NS;
        let is_busy = |client: &Client, &number: &u32| {
            let connection = &client.connections[number as usize];
            connection.state == State::Open && (connection.waits || !connection.holds_all())
        };
        while group.members.iter().any(|number| is_busy(self, number)) && monotonic_ns() < end {
            self.turn_and_wait(end)?;
        }
        let end = monotonic_ns() + LINGER_NS;
        while monotonic_ns() < end {
            self.turn_and_wait(end)?;
        }
        let late = &self.load.sample.latency_ns;
        // Else the slowest would be those that are left out.
        stretch.sample.latency_ns.add(late).expect("all histograms have the same bounds");
        let errors = self.load.sample.errors;
        stretch.sample.errors.wrong += errors.wrong;
        stretch.sample.errors.broken += errors.broken;
        stretch.sample.errors.missing += self.load.waiting as u64;
        self.load = Load::default();
        Ok(())
    }

    /// Ends all connections of a group, by RST, so that no side keeps them.
    pub fn disconnect(&mut self, group: Group) -> Result<(), ClientError> {
        let end = monotonic_ns() + PATIENCE_NS;
        for &number in &group.members {
            let connection = &self.connections[number as usize];
            if connection.state != State::Gone {
                self.engine
                    .abort(now(), &mut self.memory, CHANNEL, connection.flow)
                    .map_err(ClientError::Stack)?;
            }
        }
        let is_left = |client: &Client, &number: &u32| {
            let connection = &client.connections[number as usize];
            connection.state != State::Gone || !connection.holds_all()
        };
        while group.members.iter().any(|number| is_left(self, number)) && monotonic_ns() < end {
            self.turn_and_wait(end)?;
        }
        self.discard(group.members);
        self.load = Load::default();
        Ok(())
    }

    fn retransmits(&self) -> u64 {
        let mut found = 0;
        self.engine.each_counter(&mut |name, value| {
            if name == "stack.retransmits" {
                found = value;
            }
        });
        found
    }

    /// One turn, and a sleep if nothing has happened for the polling time.
    fn turn_and_wait(&mut self, end: u64) -> Result<(), ClientError> {
        let now = now();
        let at = now.monotonic_ns;
        if !self.last.1 {
            self.idle_ns += at.saturating_sub(self.last.0);
        }
        let moved = self.turn(now)?;
        self.last = (at, moved);
        if moved {
            self.active_ns = at;
            return Ok(());
        }
        if at.saturating_sub(self.active_ns) < self.poll_ns {
            std::hint::spin_loop();
            return Ok(());
        }
        if self.engine.arm() {
            return Ok(());
        }
        let due = self.load.schedule.filter(|_| !self.load.free.is_empty());
        let due = due.and_then(|schedule| schedule.next());
        let wake = [self.engine.next_deadline(), due].into_iter().flatten().fold(end, u64::min);
        let sleep = wake.saturating_sub(monotonic_ns()).min(SLEEP_MAX_NS);
        if let Some(fd) = self.engine.fd() {
            sys::wait_readable(fd, Duration::from_nanos(sleep))?;
        }
        Ok(())
    }

    /// One turn. Returns whether anything moved.
    fn turn(&mut self, now: Now) -> Result<bool, ClientError> {
        let received = self.engine.receive(now, &mut self.memory, &mut NoKernel)?;
        self.engine.advance(now, &mut self.memory);
        // Read again: what a batch took to be read is part of its latency.
        let judged_ns = if received > 0 { monotonic_ns() } else { now.monotonic_ns };
        let mut told = 0;
        loop {
            let count = self.engine.poll_slots(&mut self.memory, CHANNEL, &mut self.slots);
            for at in 0..count {
                let slot = self.slots[at];
                self.hear(&slot, judged_ns)?;
            }
            told += count;
            if count < self.slots.len() {
                break;
            }
        }
        self.ask_due(judged_ns)?;
        let sent = self.engine.transmit(now, &mut self.memory)?;
        Ok(received + told + sent > 0)
    }

    fn hear(&mut self, slot: &Slot, at: u64) -> Result<(), ClientError> {
        let number = self.numbers[slot.flow.index() as usize];
        let connection = &mut self.connections[number as usize];
        match slot.as_event() {
            Some(Event::Connected) => connection.state = State::Open,
            Some(Event::Data) => {
                self.take_data(number, slot, at);
                self.ask_again(number, at)?;
            }
            Some(Event::Acked) if slot.modifiers & KEEP != 0 => {
                connection.held += 1;
                self.ask_again(number, at)?;
            }
            Some(Event::Reset | Event::Closed) => self.end(number),
            // The server ends the connection: nobody asked for that.
            Some(Event::Fin) => {
                let flow = connection.flow;
                self.engine
                    .abort(now(), &mut self.memory, CHANNEL, flow)
                    .map_err(ClientError::Stack)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes a piece of a response and gives its buffer back.
    fn take_data(&mut self, number: u32, slot: &Slot, at: u64) {
        let len = usize::from(slot.len);
        self.memory.read(slot.buf_idx, usize::from(slot.offset), &mut self.scratch[..len]);
        self.engine.release(Now { monotonic_ns: at, real_ns: 0 }, slot.buf_idx);
        self.memory.give(slot.buf_idx);
        let connection = &mut self.connections[number as usize];
        let piece = &self.scratch[..len];
        let judgement = match &connection.answer {
            Answer::Bytes(bytes) => progress(piece, bytes, &mut connection.matched),
            Answer::Http if connection.partial.is_empty() => {
                let judgement = verdict(piece, &mut self.right);
                if judgement == Verdict::Unfinished {
                    connection.partial.extend_from_slice(piece);
                }
                judgement
            }
            Answer::Http => {
                connection.partial.extend_from_slice(piece);
                verdict(&connection.partial, &mut self.right)
            }
        };
        match (judgement, connection.waits) {
            (Verdict::Unfinished, true) => return,
            (Verdict::Right, true) => {
                let latency_ns = at.saturating_sub(connection.due_ns);
                self.load.sample.record_many(latency_ns, connection.requests);
            }
            _ => self.load.sample.errors.wrong += 1,
        }
        connection.partial.clear();
        connection.matched = 0;
        self.load.waiting -= usize::from(connection.waits);
        connection.waits = false;
    }

    fn end(&mut self, number: u32) {
        let connection = &mut self.connections[number as usize];
        connection.state = State::Gone;
        if connection.waits {
            connection.waits = false;
            self.load.waiting -= 1;
            self.load.sample.errors.broken += 1;
        }
    }

    /// Sends the next request, or lets the connection wait for one that is due, once the
    /// response to the last is there and its buffer is ours again.
    fn ask_again(&mut self, number: u32, at: u64) -> Result<(), ClientError> {
        let connection = &mut self.connections[number as usize];
        let is_ready = connection.holds_all() && !connection.waits;
        if !self.load.goes_on || !is_ready || connection.state != State::Open {
            return Ok(());
        }
        if self.load.schedule.is_none() {
            return self.ask(number, at);
        }
        if !std::mem::replace(&mut connection.queued, true) {
            self.load.free.push_back(number);
        }
        Ok(())
    }

    /// Sends the requests of an open loop that are due, as far as connections are free.
    fn ask_due(&mut self, at: u64) -> Result<(), ClientError> {
        while let Some(schedule) = &mut self.load.schedule
            && let Some(due) = schedule.next().filter(|&due| due <= at)
        {
            let Some(number) = self.load.free.pop_front() else { return Ok(()) };
            let connection = &mut self.connections[number as usize];
            connection.queued = false;
            if connection.state == State::Open {
                schedule.taken += 1;
                self.ask(number, at)?;
                self.connections[number as usize].due_ns = due;
            }
        }
        Ok(())
    }

    fn ask(&mut self, number: u32, at: u64) -> Result<(), ClientError> {
        let connection = &mut self.connections[number as usize];
        let now = Now { monotonic_ns: at, real_ns: 0 };
        for &(buf, len) in &connection.bufs {
            let tx = Tx {
                buf,
                offset: HEADROOM as u16,
                len,
                cookie: u64::from(number),
                notify: true,
                keep: true,
                share: false,
            };
            self.engine
                .send(now, &mut self.memory, CHANNEL, connection.flow, &tx)
                .map_err(ClientError::Stack)?;
        }
        connection.held = 0;
        connection.waits = true;
        connection.due_ns = at;
        self.load.waiting += 1;
        Ok(())
    }
}

fn poll_ns(poll: Option<Duration>) -> u64 {
    poll.map_or(u64::MAX, |time| time.as_nanos() as u64)
}

fn now() -> Now {
    Now { monotonic_ns: monotonic_ns(), real_ns: 0 }
}

#[cfg(test)]
mod tests {
    use paste_pmem::BUFFER_SIZE_MIN;

    use super::*;

    #[test]
    fn the_longest_request_fits_its_buffer() {
        assert!(HEADROOM + SEGMENT_LEN <= BUFFER_SIZE_MIN as usize);
    }
}
