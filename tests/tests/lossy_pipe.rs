//! Two stacks on a wire that loses, doubles, reorders and damages frames:
//! every byte of 1,000 flows arrives, in order, in both directions.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU64;

use paste_abi::{Event, Flow, Reason, Slot};
use paste_stack::{Config, Memory, Tx};
use paste_tests::sim::{Host, Owner, Setup, fill, pattern};
use pasted::port::wire::{Faults, LaneCounters, Side, Wire};

/// Flows in one run.
const FLOWS: u32 = 1_000;
/// Flows at once: more than the wire and the buffers have room for.
const MANY: usize = 200;
/// Flows at once whose segments all fit on the wire.
const FEW: usize = 8;
/// The server's port.
const PORT: u16 = 80;
/// The first port of the client's; flow `n` has port `FIRST + n`.
const FIRST: u16 = 10_000;
/// Buffers of each host.
const BUFFERS: u32 = 8_192;
/// Bytes of one slot that is sent, at most.
const SLOT_MAX: u64 = 1_800;
const MS: u64 = 1_000_000;
const SEC: u64 = 1_000 * MS;
/// The virtual time by which a run must be over.
const END: u64 = 600 * SEC;
/// Longer than TIME-WAIT and every other timer of a closed flow.
const AFTERWARDS: u64 = 200 * SEC;

/// Where a guest puts its payload: the smallest offset that it may.
const HEADROOM: u16 = 128;
/// The largest frame, in bytes: an Ethernet header and the usual MTU.
const FRAME_MAX: usize = 1514;
/// The longest that a guest sits on received payload, in ns.
const READ_NS_MAX: u64 = 3 * MS;

/// What a guest was told, payload taken out of its buffers.
#[derive(Debug)]
enum Told {
    /// Payload, in order.
    Data(Flow, Vec<u8>),
    /// Everything else.
    Event(Event, Slot),
}

/// A host at one end of the wire, whose guest gives received buffers back after
/// a while.
struct End {
    host: Host,
    address: Ipv4Addr,
    side: Side,
    /// Buffers that the guest has still to return, and when.
    reading: VecDeque<(u64, u32)>,
    reads: u64,
}

impl End {
    fn new(side: Side) -> End {
        let number = 1 + side as u8;
        let address = Ipv4Addr::new(10, 0, 0, number);
        let config = Config {
            flows_max: 2048,
            headroom: HEADROOM,
            ..Config::new([2, 0, 0, 0, 0, number], address, 24)
        };
        let host = Host::new(Setup {
            config,
            buffers: BUFFERS,
            buffer_size: 2048,
            rx_csum_offload: false,
            port_delay_ns: 0,
            port_len: 64,
            secret: number.into(),
        });
        End { host, address, side, reading: VecDeque::new(), reads: 0 }
    }

    /// Takes what has arrived by `now` off the wire.
    fn receive(&mut self, now: u64, wire: &mut Wire) {
        let mut bytes = [0; FRAME_MAX];
        while let Some(len) = wire.pop(now, self.side, &mut bytes) {
            self.host.input(now, &bytes[..len], true);
        }
    }

    /// Runs timers, and returns what the guest has finished reading.
    fn advance(&mut self, now: u64) {
        self.host.advance(now);
        while let Some(&(at, buf)) = self.reading.front()
            && at <= now
        {
            self.reading.pop_front();
            self.host.release(now, buf);
        }
    }

    /// What the guest is told now.
    fn poll(&mut self, now: u64) -> Vec<Told> {
        let mut told = Vec::new();
        let mut slots = [Slot::default(); 46];
        loop {
            let count = self.host.poll(0, &mut slots);
            for slot in &slots[..count] {
                told.push(self.take(now, slot));
            }
            if count < slots.len() {
                return told;
            }
        }
    }

    fn take(&mut self, now: u64, slot: &Slot) -> Told {
        let event = slot.as_event().expect("an event of the protocol");
        if event != Event::Data {
            return Told::Event(event, *slot);
        }
        let memory = &mut self.host.memory;
        memory.pass(Owner::Stack, Owner::Guest, slot.buf_idx);
        let (offset, len) = (usize::from(slot.offset), usize::from(slot.len));
        let data = memory.bytes(slot.buf_idx, offset, len).to_vec();
        // In order, but now and then late: windows close and open again.
        self.reads += 1;
        let last = self.reading.back().map_or(now, |&(at, _)| at);
        let pause = if self.reads.is_multiple_of(512) { READ_NS_MAX } else { 0 };
        self.reading.push_back((last.max(now) + pause, slot.buf_idx));
        Told::Data(slot.flow, data)
    }

    /// Queues `len` bytes of a stream from `at` on. `None`: the guest has its
    /// share of the buffers already. Half of them are left to what arrives, or
    /// two ends that only send would wait for each other's acknowledgements
    /// forever.
    fn send(
        &mut self,
        now: u64,
        flow: Flow,
        len: usize,
        key: u64,
        at: u64,
    ) -> Option<Result<(), Reason>> {
        let Host { stack, memory, .. } = &mut self.host;
        if memory.free() <= memory.buffer_count() / 2 {
            return None;
        }
        let buf = memory.take_for(Owner::Guest)?;
        fill(key, at, memory.bytes_mut(buf, usize::from(HEADROOM), len));
        let tx = Tx { buf, offset: HEADROOM, len: len as u16, ..Tx::default() };
        memory.pass(Owner::Guest, Owner::Stack, buf);
        let sent = stack.send(memory, now, 0, flow, &tx);
        if sent.is_err() {
            memory.give_from(Owner::Stack, buf);
        }
        Some(sent)
    }

    /// Puts what is due on the wire.
    fn transmit(&mut self, now: u64, wire: &mut Wire) {
        let side = self.side;
        self.host.transmit(now, |frame| {
            wire.push(now, side, frame);
            true
        });
    }

    /// When this host has to be looked at next.
    fn next_deadline(&self, now: u64) -> Option<u64> {
        let reading = self.reading.front().map(|&(at, _)| at);
        [self.host.next_deadline(now), reading].into_iter().flatten().min()
    }
}

/// The bytes that the client (`true`) or the server sends on flow `n`.
fn length(seed: u64, n: u32, client: bool) -> u64 {
    let word = (0..8).fold(0, |word, at| {
        word << 8 | u64::from(pattern(seed ^ 0x6c65_6e67_7468, u64::from(n) * 16 + at * 2))
    });
    let word = if client { word } else { word.rotate_left(32) };
    // Most flows are short, some are long; none is empty.
    1 + match word % 8 {
        0 => (word >> 8) % 100_000,
        _ => (word >> 8) % 10_000,
    }
}

/// One flow, as one of its ends sees it.
#[derive(Debug)]
struct Conn {
    n: u32,
    /// Key of what this end sends, and of what it receives.
    keys: [u64; 2],
    to_send: u64,
    sent: u64,
    to_receive: u64,
    received: u64,
    fin: bool,
    closing: bool,
}

impl Conn {
    fn new(seed: u64, n: u32, client: bool) -> Conn {
        let key = |client: bool| seed ^ u64::from(n) << 1 ^ u64::from(client);
        Conn {
            n,
            keys: [key(client), key(!client)],
            to_send: length(seed, n, client),
            sent: 0,
            to_receive: length(seed, n, !client),
            received: 0,
            fin: false,
            closing: false,
        }
    }

    fn take(&mut self, data: &[u8]) {
        for &byte in data {
            assert!(self.received < self.to_receive, "flow {}: too many bytes", self.n);
            let expected = pattern(self.keys[1], self.received);
            assert_eq!(byte, expected, "flow {}, byte {}", self.n, self.received);
            self.received += 1;
        }
    }

    /// Sends what there is room for, and closes when all is said.
    fn pump(&mut self, now: u64, end: &mut End, flow: Flow) {
        while self.sent < self.to_send {
            let len = (self.to_send - self.sent).min(SLOT_MAX);
            match end.send(now, flow, len as usize, self.keys[0], self.sent) {
                Some(Ok(())) => self.sent += len,
                None | Some(Err(Reason::FlowFull)) => return,
                Some(Err(reason)) => panic!("flow {}: {reason}", self.n),
            }
        }
        if !self.closing {
            let Host { stack, memory, .. } = &mut end.host;
            stack.close(memory, now, 0, flow).expect("an open flow");
            self.closing = true;
        }
    }
}

/// An application at one end: its open flows by their names.
struct App {
    seed: u64,
    client: bool,
    conns: HashMap<Flow, Conn>,
    /// Flows that may go on sending, in the order in which they came.
    pending: Vec<Flow>,
    closed: u32,
}

impl App {
    fn new(seed: u64, client: bool) -> App {
        App { seed, client, conns: HashMap::new(), pending: Vec::new(), closed: 0 }
    }

    fn step(&mut self, now: u64, end: &mut End) {
        for told in end.poll(now) {
            match told {
                Told::Data(flow, data) => {
                    self.conns.get_mut(&flow).expect("a flow that was told of").take(&data);
                }
                Told::Event(Event::Accepted, slot) => {
                    let SocketAddr::V4(peer) = slot.peer() else { panic!("{slot:?}") };
                    let conn = Conn::new(self.seed, u32::from(peer.port() - FIRST), self.client);
                    assert!(self.conns.insert(slot.flow, conn).is_none());
                    self.pending.push(slot.flow);
                }
                Told::Event(Event::Connected, slot) => self.pending.push(slot.flow),
                Told::Event(Event::Fin, slot) => {
                    let conn = self.conns.get_mut(&slot.flow).expect("a living flow");
                    assert_eq!(conn.received, conn.to_receive, "flow {}: FIN too early", conn.n);
                    conn.fin = true;
                }
                Told::Event(Event::Closed, slot) => {
                    let conn = self.conns.remove(&slot.flow).expect("a living flow");
                    assert!(conn.fin && conn.closing, "flow {}: closed too early", conn.n);
                    self.closed += 1;
                }
                Told::Event(Event::Writable, _) => {}
                Told::Event(event, slot) => {
                    let end = if self.client { "client" } else { "server" };
                    panic!("{end} at {now}: {event:?} {slot:?} {:?}", self.conns.get(&slot.flow))
                }
            }
        }
        // Those that found no room are tried again at every step.
        self.pending.retain(|flow| {
            let Some(conn) = self.conns.get_mut(flow) else {
                return false;
            };
            conn.pump(now, end, *flow);
            !conn.closing
        });
    }
}

/// What a run was like; equal for equal seeds.
#[derive(Debug, PartialEq)]
struct Outcome {
    ended_ns: u64,
    lanes: [LaneCounters; 2],
    stacks: [paste_stack::Counters; 2],
}

fn run(seed: u64, open_max: usize, faults: Faults) -> Outcome {
    let mut wire = Wire::new(faults, seed, FRAME_MAX);
    let mut ends = [End::new(Side::A), End::new(Side::B)];
    let mut apps = [App::new(seed, true), App::new(seed, false)];
    ends[1].host.stack.listen(0, PORT, 256).expect("a free port");
    let server = SocketAddr::from((ends[1].address, PORT));
    let (mut now, mut opened) = (SEC, 0);
    loop {
        while opened < FLOWS && apps[0].conns.len() < open_max {
            let port = FIRST + opened as u16;
            let flow = ends[0].host.stack.connect(now, 0, server, port, opened).expect("room");
            apps[0].conns.insert(flow, Conn::new(seed, opened, true));
            opened += 1;
        }
        for (end, app) in ends.iter_mut().zip(&mut apps) {
            end.receive(now, &mut wire);
            end.advance(now);
            app.step(now, end);
            end.transmit(now, &mut wire);
        }
        if apps.iter().all(|app| app.closed == FLOWS) {
            break;
        }
        let done = [apps[0].closed, apps[1].closed];
        assert!(now < END, "not over in time: {done:?} of {FLOWS} closed, {wire:?}");
        let deadlines = ends.each_ref().map(|end| end.next_deadline(now));
        let next = deadlines.into_iter().chain([wire.next_deadline()]).flatten().min();
        // Some time passes even if something is due at once: batches form.
        now = next.expect("nothing moves any more").max(now + 10_000);
    }
    let ended_ns = now;
    for end in &mut ends {
        while let Some(deadline) = end.next_deadline(now).filter(|&at| at < ended_ns + AFTERWARDS) {
            now = deadline.max(now + 1);
            end.receive(now, &mut wire);
            end.advance(now);
            end.transmit(now, &mut wire);
        }
        end.advance(ended_ns + AFTERWARDS);
        assert_eq!(end.host.leftovers(), None, "at {:?}", end.side);
    }
    Outcome {
        ended_ns,
        lanes: [Side::A, Side::B].map(|side| *wire.counters(side)),
        stacks: ends.map(|end| *end.host.stack.counters()),
    }
}

/// The faults happened, and the stacks repaired them.
fn assert_faulty(outcome: &Outcome) {
    for lane in &outcome.lanes {
        assert!(lane.lost > 0 && lane.duplicated > 0 && lane.reordered > 0, "{lane:?}");
    }
    for stack in &outcome.stacks {
        assert!(stack.retransmits > 0 && stack.drop_duplicate > 0, "{stack:?}");
        assert_eq!(stack.closed, u64::from(FLOWS));
    }
}

const BAD: Faults = Faults {
    loss: 0.05,
    duplicate: 0.05,
    reorder: 0.05,
    corrupt: 0.0,
    delay_ns: 200_000,
    jitter_ns: 0,
    rate_bps: None,
};

#[test]
fn every_byte_arrives_over_a_lossy_wire() {
    for seed in [1, 2, 3] {
        assert_faulty(&run(seed, MANY, BAD));
    }
}

#[test]
fn every_byte_arrives_over_a_slow_wire_that_damages_too() {
    let faults = Faults {
        corrupt: 0.02,
        delay_ns: 5 * MS,
        jitter_ns: MS,
        rate_bps: NonZeroU64::new(200_000_000),
        ..BAD
    };
    for seed in [11, 12, 13] {
        let outcome = run(seed, MANY, faults);
        assert_faulty(&outcome);
        let [client, server] = outcome.stacks;
        assert!(client.drop_bad_tcp_csum > 0 && server.drop_bad_tcp_csum > 0);
        assert!(outcome.lanes.iter().all(|lane| lane.corrupted > 0));
    }
}

#[test]
fn every_byte_arrives_over_a_good_wire_without_a_retransmission() {
    let outcome = run(21, FEW, Faults { delay_ns: 200_000, ..Faults::default() });
    let overflowed: u64 = outcome.lanes.iter().map(|lane| lane.overflowed).sum();
    assert_eq!(overflowed, 0, "the wire is too short for this test");
    for stack in outcome.stacks {
        assert_eq!((stack.retransmits, stack.timeouts), (0, 0));
    }
}

#[test]
fn a_seed_repeats_a_run_to_the_packet() {
    let first = run(5, MANY, BAD);
    assert_eq!(first, run(5, MANY, BAD));
    assert_ne!(first, run(6, MANY, BAD));
}
