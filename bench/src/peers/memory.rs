//! A port whose other end are clients in the same memory: no device, no system call. Each
//! client sends a request, takes the response, judges every byte of it, and sends the same
//! again. They are the far ends that the measurement of the stack alone has, as cheap as
//! can be, and they work on the backend's core.
//!
//! A request is written into its buffer, which a NIC would do without the core. Checksums
//! are left to the device on both ways.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use paste_pmem::{Owner, Pool};
use paste_stack::{Origin, RxCsum, RxFrame, TxBatch, TxFrame};
use pasted::demo::http::{BODY, Judgement, judge, request};
use pasted::demo::sample::Sample;
use pasted::engine::StackPort;
use pasted::port::{Caps, Now, Port, PortCounters, PortError, RX_OFFSET, Received, RxBatch};
use pasted::sys::clock::monotonic_ns;
use pasted::wiring::Fittings;
use serde::{Deserialize, Serialize};

use super::timed::Clocks;
use crate::network::MTU;
use crate::stack::peer::{self, HEADER_LEN, Order, Peers, SYN_LEN, flag};

/// The server's Ethernet address, its network and its TCP port.
pub const SERVER_MAC_TEXT: &str = "02:00:00:00:00:01";
/// Likewise.
pub const NETWORK: &str = "10.0.0.1/8";
/// Likewise.
pub const PORT: u16 = peer::PORT;
/// Connections that are being opened at once.
const OPENING_MAX: usize = 32;
/// How long a server that refuses is left alone.
const REFUSED_NS: u64 = 10_000_000;
/// RST, where the peers know only what they expect.
const RST: u8 = 0x04;
/// Bytes of a response at most, and of a segment's headers.
const RESPONSE_MAX: usize = 2048;
const HEAD_MAX: usize = 54 + 40;

/// What the clients have seen since somebody asked.
#[derive(Debug)]
pub struct Measured {
    sample: Sample,
    since: Instant,
    connected: usize,
    repeated: u64,
}

/// What is said of [`Measured`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// Connections that are open.
    pub connected: usize,
    /// Right responses.
    pub requests: u64,
    /// Wrong ones, and segments that were not expected.
    pub errors: u64,
    /// Segments that the server sent again.
    pub repeated: u64,
    /// Since the last time, ns.
    pub elapsed_ns: u64,
    /// Percentiles of the latency, in us: 50, 90, 99, 99.9.
    pub latency_us: [f64; 4],
}

/// The percentiles in [`Said`].
pub const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

/// Puts clients at the other end of every guest's wire.
#[derive(Debug)]
pub struct Wires {
    connections: u32,
    clocks: Option<Clocks>,
    measured: Arc<Mutex<Measured>>,
}

impl Wires {
    /// So many connections to each guest.
    pub fn new(connections: u32, clocks: Option<Clocks>) -> Wires {
        let measured = Measured {
            sample: Sample::default(),
            since: Instant::now(),
            connected: 0,
            repeated: 0,
        };
        Wires { connections, clocks, measured: Arc::new(Mutex::new(measured)) }
    }

    /// What the clients have seen, whenever it is called.
    pub fn teller(&self) -> impl Fn() -> Said + Send + use<> {
        let measured = self.measured.clone();
        move || {
            let mut measured = measured.lock().unwrap_or_else(PoisonError::into_inner);
            let sample = std::mem::take(&mut measured.sample);
            let since = std::mem::replace(&mut measured.since, Instant::now());
            Said {
                connected: measured.connected,
                requests: sample.requests,
                errors: sample.errors.total(),
                repeated: std::mem::take(&mut measured.repeated),
                elapsed_ns: since.elapsed().as_nanos() as u64,
                latency_us: PERCENTILES.map(|percent| sample.latency_us(percent)),
            }
        }
    }
}

impl Fittings for Wires {
    fn port(&self, _pipe: Box<dyn Port>) -> Box<dyn Port> {
        let port = Box::new(MemoryPort::new(self.connections, self.measured.clone()));
        match &self.clocks {
            Some(clocks) => clocks.port(port),
            None => port,
        }
    }

    fn engine(&self, engine: Box<dyn StackPort>) -> Box<dyn StackPort> {
        match &self.clocks {
            Some(clocks) => clocks.engine(engine),
            None => engine,
        }
    }
}

/// What a client does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Open(usize),
    Ask(usize),
}

/// The port, and the clients at its other end.
struct MemoryPort {
    peers: Peers,
    next: VecDeque<Next>,
    /// Clients that have not been opened, from this one on.
    unopened: usize,
    opening: usize,
    /// Those that were refused, and when they try again.
    refused: Vec<usize>,
    retry_ns: u64,
    /// When each asked.
    asked_ns: Box<[u64]>,
    /// A frame with a request.
    frame: Box<[u8]>,
    /// The response that was judged right last.
    right: Vec<u8>,
    scratch: Box<[u8; RESPONSE_MAX]>,
    measured: Arc<Mutex<Measured>>,
    counters: PortCounters,
}

impl MemoryPort {
    fn new(connections: u32, measured: Arc<Mutex<Measured>>) -> MemoryPort {
        let address = std::net::SocketAddrV4::new(peer::SERVER, PORT);
        let request = request(peer::REQUEST_LEN, address);
        let mut peers = Peers::new(connections, Order::Sequential);
        peers.set_request(&request);
        let mut frame = vec![0; HEADER_LEN];
        frame.extend_from_slice(&request);
        MemoryPort {
            peers,
            next: VecDeque::with_capacity(connections as usize),
            unopened: 0,
            opening: 0,
            refused: Vec::with_capacity(OPENING_MAX),
            retry_ns: 0,
            asked_ns: vec![0; connections as usize].into(),
            frame: frame.into(),
            right: Vec::with_capacity(RESPONSE_MAX),
            scratch: Box::new([0; RESPONSE_MAX]),
            measured,
            counters: PortCounters::default(),
        }
    }

    /// Lets clients connect, a few at a time.
    fn open_some(&mut self, now_ns: u64) {
        if now_ns >= self.retry_ns {
            for place in self.refused.drain(..) {
                self.next.push_back(Next::Open(place));
            }
        }
        while self.opening < OPENING_MAX && self.unopened < self.peers.count() {
            self.next.push_back(Next::Open(self.unopened));
            self.unopened += 1;
            self.opening += 1;
        }
    }

    /// Takes one frame from the server.
    fn take(&mut self, frame: &TxFrame, pool: &Pool, at_ns: u64, measured: &mut Measured) {
        let mut head = [0; HEAD_MAX];
        let own = frame.head();
        let total = frame.len();
        let len = own.len().min(HEAD_MAX);
        head[..len].copy_from_slice(&own[..len]);
        if let (true, Some(range)) = (len < 54, frame.payload) {
            // The header is in the buffer too.
            let more = (HEAD_MAX - len).min(range.len.into());
            let buffers = pool.buffers();
            if buffers.read(range.buf, range.offset.into(), &mut head[len..len + more]).is_err() {
                measured.sample.errors.wrong += 1;
                return;
            }
        }
        if total < 54 || head[12..14] != [8, 0] || head[23] != 6 {
            // An ARP request, or what else a host says: these peers are known anyway.
            return;
        }
        let head_len = 34 + usize::from(head[46] >> 4) * 4;
        let payload = total.saturating_sub(head_len);
        if head[47] & RST != 0 {
            self.refuse(&head, at_ns, measured);
            return;
        }
        let Some((place, flags)) = self.peers.accept(&head, payload) else {
            if self.peers.is_repeated(&head) {
                measured.repeated += 1;
                return;
            }
            measured.sample.errors.wrong += 1;
            return;
        };
        if flags & flag::SYN != 0 {
            self.opening -= 1;
            measured.connected += 1;
            self.next.push_back(Next::Ask(place));
        } else if payload > 0 {
            if self.is_right(frame, pool, payload) {
                measured.sample.record(at_ns.saturating_sub(self.asked_ns[place]));
            } else {
                measured.sample.errors.wrong += 1;
            }
            self.next.push_back(Next::Ask(place));
        }
    }

    /// A connection that was refused, because the guest does not listen yet, is tried
    /// again. One that was open and is reset is broken.
    fn refuse(&mut self, head: &[u8], now_ns: u64, measured: &mut Measured) {
        let port = u16::from_be_bytes([head[36], head[37]]);
        let address = u32::from_be_bytes([head[30], head[31], head[32], head[33]]);
        let number = Peers::number(address, port);
        if number >= self.peers.count() {
            return;
        }
        let place = self.peers.place(number);
        if self.asked_ns[place] > 0 {
            measured.sample.errors.broken += 1;
            return;
        }
        self.peers.restart(place);
        self.refused.push(place);
        self.retry_ns = now_ns + REFUSED_NS;
    }

    /// Whether the payload at the end of a frame is the response.
    fn is_right(&mut self, frame: &TxFrame, pool: &Pool, len: usize) -> bool {
        let Some(range) = frame.payload.filter(|range| usize::from(range.len) >= len) else {
            return false;
        };
        if len > RESPONSE_MAX {
            return false;
        }
        let bytes = &mut self.scratch[..len];
        let start = usize::from(range.offset) + usize::from(range.len) - len;
        if pool.buffers().read(range.buf, start, bytes).is_err() {
            return false;
        }
        if *bytes == self.right[..] {
            return true;
        }
        let is_right = judge(bytes, BODY) == Judgement::Right(len);
        if is_right {
            self.right.clear();
            self.right.extend_from_slice(bytes);
        }
        is_right
    }
}

impl Port for MemoryPort {
    fn caps(&self) -> Caps {
        Caps { mtu: MTU, tx_csum: true, rx_partial: false, gather: true }
    }

    fn receive(
        &mut self,
        now: Now,
        pool: &mut Pool,
        out: &mut RxBatch,
    ) -> Result<usize, PortError> {
        self.open_some(now.monotonic_ns);
        self.peers.set_time(now.monotonic_ns / 1_000_000);
        let mut received = 0;
        while out.room() > 0
            && let Some(&next) = self.next.front()
        {
            let Some(buf) = pool.take(Owner::Port) else {
                self.counters.rx_no_buffer += 1;
                break;
            };
            self.next.pop_front();
            let len = match next {
                Next::Open(place) => {
                    let mut syn = [0; SYN_LEN];
                    self.peers.syn(place, &mut syn);
                    pool.buffers().write(buf, RX_OFFSET.into(), &syn).map(|()| SYN_LEN)
                }
                Next::Ask(place) => {
                    let payload = self.frame.len() - HEADER_LEN;
                    let head = &mut self.frame[..HEADER_LEN];
                    self.peers.segment(place, flag::ACK | flag::PSH, payload, head);
                    self.asked_ns[place] = now.monotonic_ns;
                    let written = pool.buffers().write(buf, RX_OFFSET.into(), &self.frame);
                    written.map(|()| self.frame.len())
                }
            };
            let len = len.expect("a frame fits a buffer");
            self.counters.rx_frames += 1;
            self.counters.rx_bytes += len as u64;
            let (csum, time) = (RxCsum::Valid, now.real_ns);
            let frame = RxFrame { buf, offset: RX_OFFSET, len: len as u16, csum, time };
            out.push(Received { frame, partial: None });
            received += 1;
        }
        Ok(received)
    }

    fn send(
        &mut self,
        _now: Now,
        pool: &Pool,
        batch: &mut TxBatch,
        done: &mut dyn FnMut(Origin, u32),
    ) -> Result<usize, PortError> {
        let count = batch.frames().len();
        if count == 0 {
            return Ok(0);
        }
        let at_ns = monotonic_ns();
        let measured = self.measured.clone();
        let mut measured = measured.lock().unwrap_or_else(PoisonError::into_inner);
        for frame in batch.frames() {
            self.take(frame, pool, at_ns, &mut measured);
            self.counters.tx_frames += 1;
            self.counters.tx_bytes += frame.len() as u64;
            if let Some(range) = frame.payload {
                done(frame.origin, range.buf);
            }
        }
        batch.consume(count);
        Ok(count)
    }

    fn release(&mut self, _pool: &mut Pool) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn next_deadline(&self) -> Option<u64> {
        if !self.next.is_empty() {
            return Some(0);
        }
        (!self.refused.is_empty()).then_some(self.retry_ns)
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }
}
