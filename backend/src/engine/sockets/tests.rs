//! The engine over loopback, with the kernel on the other side. Time is the tests' own.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use paste_abi::slot::{KEEP, SHARE};
use paste_abi::{Event, NO_BUFFER};
use paste_pmem::Pool;

use super::*;
use crate::port::prng::Prng;
use crate::testing;

/// The channel that tests speak on.
const CHANNEL: u16 = 1;
const HEADROOM: u16 = 128;
const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
/// Longest wait for the kernel; not reached unless something is broken.
const PATIENCE: Duration = Duration::from_secs(20);

struct NoPlain;

impl PlainSink for NoPlain {
    fn frame(&mut self, _: paste_abi::net_hdr::NetHdr, _: &mut [u8]) {
        panic!("there is no NIC");
    }
}

/// An engine, and a guest without a mind of its own.
struct Rig {
    engine: SocketsEngine,
    mem: RegionMemory,
    now: Now,
    /// What the guest was told and nobody has looked at.
    told: Vec<Slot>,
    buffers: u32,
}

impl Rig {
    fn new(buffers: u32, flows_max: u32) -> Rig {
        let pool = Pool::new(testing::buffers(buffers));
        let engine = SocketsEngine::new(&Options {
            addresses: &[LOCAL],
            mtu: 1500,
            flows_max,
            shared_sends_max: 16,
            headroom: HEADROOM,
            buffers: pool.buffers(),
        });
        let mem = RegionMemory::new(pool);
        let now = Now { monotonic_ns: 1_000_000_000, real_ns: 42 };
        Rig { engine: engine.unwrap(), mem, now, told: Vec::new(), buffers }
    }

    /// One turn, after which the guest was told at most `slots` more.
    fn turn_with(&mut self, slots: usize) {
        self.engine.receive(self.now, &mut self.mem, &mut NoPlain).unwrap();
        self.engine.advance(self.now, &mut self.mem);
        let mut out = vec![Slot::default(); slots];
        let count = self.engine.poll_slots(&mut self.mem, CHANNEL, &mut out);
        for slot in &out[..count] {
            let named = match slot.as_event().unwrap() {
                Event::Data => true,
                Event::Acked => slot.modifiers & KEEP != 0,
                _ => false,
            };
            if named {
                let pool = self.mem.pool_mut();
                pool.transfer(slot.buf_idx, Owner::Stack, Owner::Guest(CHANNEL)).unwrap();
            }
            self.told.push(*slot);
        }
        self.engine.transmit(self.now, &mut self.mem).unwrap();
    }

    fn turn(&mut self) {
        self.turn_with(64);
    }

    /// Turns until there is something to be had.
    #[track_caller]
    fn until<T>(&mut self, what: &str, mut found: impl FnMut(&mut Rig) -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            self.turn();
            if let Some(found) = found(self) {
                return found;
            }
            assert!(Instant::now() < end, "{what}: not in time; told {:?}", self.told);
            std::thread::yield_now();
        }
    }

    /// The next thing of this kind that the guest is told, whatever else it is.
    #[track_caller]
    fn hear(&mut self, event: Event) -> Slot {
        self.until(&format!("{event:?}"), |rig| {
            let at = rig.told.iter().position(|slot| slot.as_event() == Some(event))?;
            Some(rig.told.remove(at))
        })
    }

    /// Listens on a port that is free, and returns it.
    fn listen(&mut self, backlog: u16) -> (Flow, u16) {
        loop {
            let port = TcpListener::bind((LOCAL, 0)).unwrap().local_addr().unwrap().port();
            match self.engine.listen(CHANNEL, port, backlog) {
                Ok(listener) => return (listener, port),
                Err(reason) => assert_eq!(reason, Reason::PortInUse),
            }
        }
    }

    /// A client, and the flow that it is for the guest.
    fn accept(&mut self, port: u16) -> (TcpStream, Flow) {
        self.turn();
        let client = client(port);
        let slot = self.hear(Event::Accepted);
        assert_eq!(slot.peer(), client.local_addr().unwrap());
        assert_eq!(slot.offset, port);
        (client, slot.flow)
    }

    fn bytes(&self, slot: &Slot) -> Vec<u8> {
        let mut bytes = vec![0; usize::from(slot.len)];
        self.mem.pool().buffers().read(slot.buf_idx, slot.offset.into(), &mut bytes).unwrap();
        bytes
    }

    /// The guest gives a buffer back.
    fn give_back(&mut self, buf: u32) {
        if self.engine.release(self.now, buf) {
            self.engine.retire(buf);
            let pool = self.mem.pool_mut();
            pool.transfer(buf, Owner::Guest(CHANNEL), Owner::Stack).unwrap();
        } else {
            self.mem.pool_mut().give(buf, Owner::Guest(CHANNEL)).unwrap();
        }
    }

    /// The guest sends bytes from a buffer of its own.
    fn send(&mut self, flow: Flow, bytes: &[u8], cookie: u64, how: u8) -> Result<u32, Reason> {
        let buf = self.mem.pool_mut().take(Owner::Guest(CHANNEL)).expect("a buffer");
        self.mem.pool().buffers().write(buf, HEADROOM.into(), bytes).unwrap();
        self.send_from(flow, buf, HEADROOM, bytes.len() as u16, cookie, how).map(|()| buf)
    }

    fn send_from(
        &mut self,
        flow: Flow,
        buf: u32,
        offset: u16,
        len: u16,
        cookie: u64,
        how: u8,
    ) -> Result<(), Reason> {
        let share = how & SHARE != 0;
        let tx = Tx { buf, offset, len, cookie, notify: how != 0, keep: how & KEEP != 0, share };
        if !share {
            let pool = self.mem.pool_mut();
            pool.transfer(buf, Owner::Guest(CHANNEL), Owner::Stack).unwrap();
        }
        let sent = self.engine.send(self.now, &mut self.mem, CHANNEL, flow, &tx);
        if sent.is_err() && !share {
            let pool = self.mem.pool_mut();
            pool.transfer(buf, Owner::Stack, Owner::Guest(CHANNEL)).unwrap();
        }
        sent
    }

    /// The channel ends; every buffer must be back then.
    fn end(mut self) -> SocketsEngine {
        self.engine.close_channel(self.now, &mut self.mem, CHANNEL);
        let held: Vec<_> = self.mem.pool().held(CHANNEL).collect();
        held.into_iter().for_each(|buf| self.give_back(buf));
        self.engine.release_reserve(&mut self.mem);
        assert_eq!(self.engine.flows.used(), 0, "flows are left");
        let pool = self.mem.pool();
        assert_eq!(pool.free(), self.buffers, "buffers are missing: {pool:?}");
        assert_eq!(self.engine.counters.strange, 0);
        self.engine
    }
}

fn client(port: u16) -> TcpStream {
    let client = TcpStream::connect((LOCAL, port)).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.set_write_timeout(Some(PATIENCE)).unwrap();
    client.set_nodelay(true).unwrap();
    client
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// What is left of `bytes` to be told, in order.
fn take_data(rig: &mut Rig, flow: Flow, got: &mut Vec<u8>) {
    for slot in std::mem::take(&mut rig.told) {
        if slot.as_event() != Some(Event::Data) {
            rig.told.push(slot);
            continue;
        }
        assert_eq!((slot.flow, slot.offset, slot.time), (flow, HEADROOM, 42));
        assert_eq!((slot.modifiers, slot.csum), (0, 0), "there is no checksum");
        got.extend(rig.bytes(&slot));
        rig.give_back(slot.buf_idx);
    }
}

#[test]
fn payload_is_echoed_from_the_buffers_that_it_came_in_and_both_sides_close() {
    let mut rig = Rig::new(1024, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
    let sent = pattern(300_000);
    let echo = std::thread::spawn({
        let (mut stream, expected) = (stream.try_clone().unwrap(), sent.clone());
        move || {
            let mut got = vec![0; expected.len()];
            stream.read_exact(&mut got).unwrap();
            assert!(got == expected, "the echo differs");
            assert_eq!(stream.read(&mut [0]).unwrap(), 0, "and then FIN");
        }
    });
    let write = std::thread::spawn({
        let sent = sent.clone();
        move || {
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            stream
        }
    });
    let mut echoed = 0;
    rig.until("FIN", |rig| {
        let mut fin = false;
        for slot in std::mem::take(&mut rig.told) {
            match slot.as_event().unwrap() {
                Event::Data => {
                    rig.send_from(flow, slot.buf_idx, slot.offset, slot.len, 0, 0).unwrap();
                    echoed += usize::from(slot.len);
                }
                Event::Fin => fin = true,
                other => panic!("{other:?}"),
            }
        }
        fin.then_some(())
    });
    assert_eq!(echoed, sent.len());
    rig.engine.close(rig.now, &mut rig.mem, CHANNEL, flow).unwrap();
    let again = rig.engine.close(rig.now, &mut rig.mem, CHANNEL, flow);
    assert_eq!(again, Err(Reason::Closed));
    rig.hear(Event::Closed);
    let stale = rig.engine.close(rig.now, &mut rig.mem, CHANNEL, flow);
    assert_eq!(stale, Err(Reason::StaleFlow), "the name is dead");
    echo.join().unwrap();
    drop(write.join().unwrap());
    let engine = rig.end();
    assert_eq!((engine.counters.closed, engine.counters.reset), (1, 0));
    assert_eq!(engine.counters.bytes_out, 300_000);
}

#[test]
fn a_reset_comes_after_what_was_received() {
    let mut rig = Rig::new(256, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
    stream.write_all(b"last words").unwrap();
    rig.until("payload", |rig| (rig.engine.counters.bytes_in == 10).then_some(()));
    socket::reset_on_close(&stream);
    drop(stream);
    let slot = rig.hear(Event::Reset);
    assert_eq!((slot.flow, slot.len), (flow, Reason::PeerReset as u16));
    let data = rig.told.remove(0);
    assert_eq!(rig.bytes(&data), b"last words");
    assert_eq!(rig.send(flow, b"x", 0, 0), Err(Reason::StaleFlow));
    rig.end();
}

#[test]
fn an_abort_is_a_reset_for_the_peer() {
    let mut rig = Rig::new(256, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
    let kept = rig.send(flow, b"kept", 7, KEEP).unwrap();
    rig.engine.abort(rig.now, &mut rig.mem, CHANNEL, flow).unwrap();
    let slot = rig.hear(Event::Reset);
    assert_eq!(slot.len, Reason::Aborted as u16);
    // It was never submitted, so it comes back for the reason of the end.
    let acked = rig.told.remove(0);
    assert_eq!((acked.as_event(), acked.buf_idx), (Some(Event::Acked), kept));
    assert_eq!((acked.cookie, acked.len), (7, Reason::Aborted as u16));
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    rig.end();
}

#[test]
fn flows_are_opened_and_refused() {
    let mut rig = Rig::new(256, 16);
    let server = TcpListener::bind((LOCAL, 0)).unwrap();
    let address = server.local_addr().unwrap();
    let flow = rig.engine.connect(rig.now, CHANNEL, address, 0, 77).unwrap();
    rig.send(flow, b"early", 0, 0).unwrap();
    let slot = rig.hear(Event::Connected);
    assert_eq!((slot.flow, slot.cookie), (flow, 77));
    let (mut stream, _) = server.accept().unwrap();
    let mut got = [0; 5];
    rig.turn();
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"early");
    stream.write_all(b"answer").unwrap();
    let slot = rig.hear(Event::Data);
    assert_eq!(rig.bytes(&slot), b"answer");

    drop(server);
    let refused = rig.engine.connect(rig.now, CHANNEL, address, 0, 78).unwrap();
    let slot = rig.hear(Event::Reset);
    assert_eq!((slot.flow, slot.len), (refused, Reason::Refused as u16));

    // One that is closed before it is open is forgotten.
    let flow = rig.engine.connect(rig.now, CHANNEL, "192.0.2.1:9".parse().unwrap(), 0, 0);
    let flow = flow.unwrap();
    rig.turn();
    if rig.engine.close(rig.now, &mut rig.mem, CHANNEL, flow).is_ok() {
        rig.until("an end", |rig| {
            let end = |slot: &Slot| matches!(slot.as_event(), Some(Event::Closed | Event::Reset));
            rig.told.iter().any(|slot| slot.flow == flow && end(slot)).then_some(())
        });
    }
    let v6 = rig.engine.connect(rig.now, CHANNEL, "[::1]:9".parse().unwrap(), 0, 0);
    assert_eq!(v6, Err(Reason::BadAddress), "there is no such address here");
    rig.end();
}

#[test]
fn what_is_sent_is_told_of_as_it_was_asked() {
    let mut rig = Rig::new(256, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
    let notify = 2;
    rig.send(flow, b"silent ", 1, 0).unwrap();
    rig.send(flow, b"told ", 2, notify).unwrap();
    let kept = rig.send(flow, b"kept ", 3, KEEP).unwrap();
    let shared = rig.mem.pool_mut().take(Owner::Guest(CHANNEL)).unwrap();
    rig.mem.pool().buffers().write(shared, HEADROOM.into(), b"shared ").unwrap();
    for cookie in [4, 5] {
        rig.send_from(flow, shared, HEADROOM, 7, cookie, SHARE).unwrap();
    }
    // Given up meanwhile, it is nobody's before the sends have ended.
    rig.give_back(shared);
    assert_eq!(rig.mem.pool().owner(shared), Some(Owner::Stack));
    for (cookie, buf, modifiers) in
        [(2, NO_BUFFER, 0), (3, kept, KEEP), (4, shared, SHARE), (5, shared, SHARE)]
    {
        let slot = rig.hear(Event::Acked);
        let told = (slot.cookie, slot.buf_idx, slot.modifiers, slot.len);
        assert_eq!(told, (cookie, buf, modifiers, Reason::Ok as u16));
    }
    assert_eq!(rig.mem.pool().owner(shared), Some(Owner::Pool));
    let mut got = [0; 31];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"silent told kept shared shared ");
    let engine = rig.end();
    assert_eq!(engine.counters.sends, 1, "what was queued together went together");
}

#[test]
fn much_payload_goes_without_a_copy_and_comes_back_in_order() {
    let mut rig = Rig::new(2048, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
    let sent = pattern(1900 * 500);
    let reader = std::thread::spawn({
        let expected = sent.clone();
        move || {
            let mut got = vec![0; expected.len()];
            stream.read_exact(&mut got).unwrap();
            assert!(got == expected, "what arrived differs");
            stream
        }
    });
    for (cookie, part) in sent.chunks(1900).enumerate() {
        rig.send(flow, part, cookie as u64, KEEP).unwrap();
    }
    for cookie in 0..500 {
        let slot = rig.hear(Event::Acked);
        assert_eq!((slot.cookie, slot.len), (cookie, Reason::Ok as u16));
    }
    drop(reader.join().unwrap());
    let engine = rig.end();
    assert!(engine.counters.zero_copy > 0);
    assert!(engine.counters.sends < 50, "{:?}", engine.counters);
}

#[test]
fn a_client_that_never_reads_holds_up_its_own_flow_only() {
    let mut rig = Rig::new(4096, 16);
    let (_, port) = rig.listen(16);
    let (mut slow, flow) = rig.accept(port);
    let part = pattern(1900);
    let (mut sent, mut full) = (0, false);
    let end = Instant::now() + PATIENCE;
    while !full {
        match rig.send(flow, &part, 0, 0) {
            Ok(_) => sent += 1,
            Err(reason) => {
                assert_eq!(reason, Reason::FlowFull);
                let held: Vec<_> = rig.mem.pool().held(CHANNEL).collect();
                held.into_iter().for_each(|buf| rig.give_back(buf));
                // Full is full when the kernel takes no more.
                let before = rig.engine.counters.bytes_out;
                (0..100).for_each(|_| rig.turn());
                full = rig.engine.counters.bytes_out == before;
                assert!(Instant::now() < end);
            }
        }
    }
    assert!(rig.engine.flows[flow.index()].tx_len >= 1000);
    // Another is served meanwhile.
    let (mut other, second) = rig.accept(port);
    rig.send(second, b"hello", 0, 0).unwrap();
    rig.turn();
    let mut got = [0; 5];
    other.read_exact(&mut got).unwrap();
    // And the slow one goes on where it was when it reads.
    rig.told.clear();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; 1900 * sent];
        slow.read_exact(&mut got).unwrap();
        assert!(got.chunks(1900).all(|chunk| chunk == part), "what arrived differs");
        slow
    });
    let slot = rig.hear(Event::Writable);
    assert_eq!(slot.flow, flow);
    rig.until("all is read", |_| reader.is_finished().then_some(()));
    drop(reader.join().unwrap());
    rig.end();
}

#[test]
fn single_bytes_do_not_take_a_buffer_each() {
    let mut rig = Rig::new(512, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
    rig.turn();
    let sent = pattern(3000);
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || {
            sent.iter().for_each(|byte| stream.write_all(&[*byte]).unwrap());
            stream
        }
    });
    // The guest takes nothing.
    let end = Instant::now() + PATIENCE;
    while rig.engine.counters.bytes_in < 3000 {
        rig.turn_with(0);
        assert!(Instant::now() < end);
    }
    drop(writer.join().unwrap());
    let charged = rig.engine.flows[flow.index()].rx_bufs;
    assert!(charged <= 8, "{charged} buffers for 3000 bytes");
    let mut got = Vec::new();
    rig.until("all of it", |rig| {
        take_data(rig, flow, &mut got);
        (got.len() == sent.len()).then_some(())
    });
    assert!(got == sent, "what arrived differs");
    rig.end();
}

#[test]
fn slow_guests_exhaust_the_pool_and_nothing_is_lost() {
    const CLIENTS: usize = 8;
    const LEN: usize = 400_000;
    let mut rig = Rig::new(256, 16);
    let (_, port) = rig.listen(16);
    let mut flows = Vec::new();
    let mut writers = Vec::new();
    for client in 0..CLIENTS {
        let (mut stream, flow) = rig.accept(port);
        flows.push(flow);
        writers.push(std::thread::spawn(move || {
            let mut bytes = pattern(LEN);
            bytes.iter_mut().for_each(|byte| *byte ^= client as u8);
            stream.write_all(&bytes).unwrap();
            stream
        }));
    }
    // The guest keeps everything: flows stop, and one holds not all.
    rig.until("the flows stop", |rig| {
        let flows = &rig.engine.flows;
        let busy = |index: &u32| flows[*index].receiving != Busy::No;
        let stopped = (0..CLIENTS as u32).filter(|index| !busy(index)).count();
        (stopped == CLIENTS && rig.engine.counters.bytes_in > 0).then_some(())
    });
    let most = (0..CLIENTS as u32).map(|index| rig.engine.flows[index].rx_bufs).max().unwrap();
    assert!(most < 200, "one flow has {most} of 256 buffers");
    assert!(rig.mem.pool().free() >= rig.engine.reserve, "the reserve was touched");
    // Then it gives back, and everything comes.
    let mut got = vec![Vec::new(); CLIENTS];
    rig.until("everything", |rig| {
        for slot in std::mem::take(&mut rig.told) {
            let client = flows.iter().position(|flow| *flow == slot.flow).unwrap();
            assert_eq!(slot.as_event(), Some(Event::Data), "{slot:?}");
            got[client].extend(rig.bytes(&slot));
            rig.give_back(slot.buf_idx);
        }
        got.iter().all(|bytes| bytes.len() == LEN).then_some(())
    });
    for (client, bytes) in got.iter().enumerate() {
        let right = bytes.iter().zip(pattern(LEN)).all(|(got, byte)| *got == byte ^ client as u8);
        assert!(right, "client {client} sent something else");
    }
    writers.into_iter().for_each(|writer| drop(writer.join().unwrap()));
    let engine = rig.end();
    assert!(engine.counters.flow_share + engine.counters.pool_empty > 0);
}

#[test]
fn connections_beyond_the_flows_wait_or_are_reset() {
    let mut rig = Rig::new(256, 2);
    let (_, port) = rig.listen(16);
    let (first, flow) = rig.accept(port);
    let (_second, _) = rig.accept(port);
    (0..10).for_each(|_| rig.turn());
    let third = client(port);
    (0..10).for_each(|_| rig.turn());
    assert_eq!(rig.engine.flows.used(), 2);
    assert!(!rig.told.iter().any(|slot| slot.as_event() == Some(Event::Accepted)));
    // One ends, and the one that waits has its turn.
    drop(first);
    rig.hear(Event::Fin);
    rig.engine.close(rig.now, &mut rig.mem, CHANNEL, flow).unwrap();
    rig.hear(Event::Closed);
    let slot = rig.hear(Event::Accepted);
    assert_eq!(slot.peer(), third.local_addr().unwrap());
    assert_ne!(slot.flow, flow, "the index has another generation");
    rig.end();
}

#[test]
fn a_full_backlog_is_left_to_the_kernel() {
    let mut rig = Rig::new(256, 64);
    let (_, port) = rig.listen(2);
    rig.turn();
    let clients: Vec<_> = (0..2).map(|_| client(port)).collect();
    let end = Instant::now() + PATIENCE;
    while rig.engine.counters.accepted < 2 {
        rig.turn_with(0);
        assert!(Instant::now() < end);
    }
    (0..10).for_each(|_| rig.turn_with(0));
    let late = client(port);
    (0..10).for_each(|_| rig.turn_with(0));
    assert_eq!(rig.engine.counters.accepted, 2, "the guest was not told of the first two");
    for _ in 0..3 {
        rig.hear(Event::Accepted);
    }
    drop((clients, late));
    rig.end();
}

#[test]
fn listeners_are_named_and_their_ports_are_free_at_once() {
    let mut rig = Rig::new(256, 16);
    let (listener, port) = rig.listen(16);
    (0..3).for_each(|_| rig.turn());
    assert_eq!(rig.engine.listen(CHANNEL, port, 16), Err(Reason::PortInUse));
    assert_eq!(rig.engine.listen(CHANNEL, 0, 16), Err(Reason::BadAddress));
    assert_eq!(rig.engine.unlisten(CHANNEL + 1, listener), Err(Reason::StaleFlow));
    let (mut stream, flow) = rig.accept(port);
    rig.engine.unlisten(CHANNEL, listener).unwrap();
    assert_eq!(rig.engine.unlisten(CHANNEL, listener), Err(Reason::StaleFlow));
    assert!(TcpStream::connect((LOCAL, port)).is_err(), "nobody listens");
    let again = rig.engine.listen(CHANNEL, port, 16).expect("the port is free");
    assert_ne!(again, listener);
    rig.accept(port);
    // What the first accepted lives on.
    rig.send(flow, b"still", 0, 0).unwrap();
    rig.turn();
    let mut got = [0; 5];
    stream.read_exact(&mut got).unwrap();
    rig.engine.close_channel(rig.now, &mut rig.mem, CHANNEL);
    rig.engine.listen(CHANNEL, port, 16).expect("a channel that was opened anew may listen");
    assert_eq!(rig.send(flow, b"x", 0, 0), Err(Reason::StaleFlow));
    (0..3).for_each(|_| rig.turn());
    let error = stream.read(&mut got).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    rig.end();
}

#[test]
fn a_peer_that_does_not_close_is_not_waited_for_for_ever() {
    let mut rig = Rig::new(256, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
    rig.engine.close(rig.now, &mut rig.mem, CHANNEL, flow).unwrap();
    assert_eq!(rig.send(flow, b"x", 0, 0), Err(Reason::Closed));
    rig.until("FIN is out", |rig| rig.engine.flows[flow.index()].fin_out.then_some(()));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(rig.engine.next_deadline(), Some(rig.now.monotonic_ns + SILENCE_MAX));
    // Whoever still sends is not silent.
    rig.now.monotonic_ns += SILENCE_MAX - 1;
    stream.write_all(b"not yet").unwrap();
    rig.hear(Event::Data);
    rig.now.monotonic_ns += SILENCE_MAX - 1;
    (0..10).for_each(|_| rig.turn());
    assert!(rig.told.is_empty());
    rig.now.monotonic_ns += 1;
    rig.hear(Event::Closed);
    rig.end();
}

#[test]
fn requests_for_what_is_not_there_are_refused() {
    let mut rig = Rig::new(256, 16);
    let (_, port) = rig.listen(16);
    let (_stream, flow) = rig.accept(port);
    let buf = rig.mem.pool_mut().take(Owner::Guest(CHANNEL)).unwrap();
    for (offset, len) in [(0, 1), (127, 1), (128, 0), (2047, 2), (128, u16::MAX)] {
        let refused = rig.send_from(flow, buf, offset, len, 0, 0);
        assert_eq!(refused, Err(Reason::BadRange), "{offset} {len}");
    }
    let other = Flow::new(flow.index(), flow.generation() + 1);
    for stale in [other, Flow::new(15, 0), Flow::new(Flow::INDEX_MAX - 1, 0)] {
        assert_eq!(rig.send_from(stale, buf, 128, 1, 0, 0), Err(Reason::StaleFlow));
        let option = rig.engine.set_option(rig.now, CHANNEL, stale, Opt::KeepAlive, 1);
        assert_eq!(option, Err(Reason::StaleFlow));
    }
    for (option, value) in [
        (Opt::KeepAlive, 0),
        (Opt::KeepAlive, 60),
        (Opt::KeepAlive, u64::MAX),
        (Opt::UserTimeout, 0),
        (Opt::UserTimeout, 5000),
    ] {
        let set = rig.engine.set_option(rig.now, CHANNEL, flow, option, value);
        assert_eq!(set, Ok(()), "{option:?} {value}");
    }
    assert!(!rig.engine.send_plain(&mut rig.mem, &[0; 60], None));
    assert_eq!(rig.engine.counters.plain_dropped, 1);
    rig.end();
}

#[test]
fn both_families_are_served() {
    let pool = Pool::new(testing::buffers(256));
    let v6 = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
    if socket::try_address(v6).is_err() {
        assert!(std::env::var_os("PASTED_REQUIRE_ALL").is_none(), "this host has no ::1");
        return eprintln!("skipped: this host has no ::1");
    }
    let engine = SocketsEngine::new(&Options {
        addresses: &[LOCAL, v6],
        mtu: 1500,
        flows_max: 16,
        shared_sends_max: 0,
        headroom: HEADROOM,
        buffers: pool.buffers(),
    });
    let mut rig = Rig { engine: engine.unwrap(), mem: RegionMemory::new(pool), ..Rig::new(256, 1) };
    let (_, port) = rig.listen(16);
    rig.accept(port);
    let client = TcpStream::connect((v6, port)).unwrap();
    let slot = rig.hear(Event::Accepted);
    assert_eq!(slot.peer(), client.local_addr().unwrap());
    let server = TcpListener::bind((v6, 0)).unwrap();
    let to = server.local_addr().unwrap();
    rig.engine.connect(rig.now, CHANNEL, to, 0, 5).unwrap();
    rig.hear(Event::Connected);
    rig.end();
}

/// Sleeping on the descriptor misses nothing.
#[test]
fn the_descriptor_says_when_there_is_something() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    let readable = |rig: &Rig, wait: Duration| {
        let fd = rig.engine.fd().unwrap();
        let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: 0 };
        poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait)).unwrap() == 1
    };
    let mut rig = Rig::new(256, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, _) = rig.accept(port);
    let quiet = |rig: &mut Rig| {
        while rig.engine.arm() {
            rig.turn();
        }
    };
    for round in 0..50 {
        quiet(&mut rig);
        assert!(!readable(&rig, Duration::ZERO), "round {round}");
        stream.write_all(b"wake up").unwrap();
        assert!(readable(&rig, PATIENCE), "round {round}");
        rig.hear(Event::Data);
    }
    rig.end();
}

/// Clients and a guest that do anything, from a seed: no buffer and no flow is lost, and
/// what a flow says is in order.
#[test]
fn anything_may_happen_and_nothing_is_lost() {
    for seed in 0..12 {
        anything(seed);
    }
}

fn anything(seed: u64) {
    let mut random = Prng::new(seed);
    let mut below = move |n: u32| (random.next_u64() % u64::from(n)) as u32;
    let mut rig = Rig::new(64 << below(4), 4 + below(20));
    let (_, port) = rig.listen(1 + below(8) as u16);
    let mut clients: Vec<TcpStream> = Vec::new();
    let mut flows: Vec<(Flow, bool)> = Vec::new();
    for step in 0..600u64 {
        match below(12) {
            0 | 1 if clients.len() < 24 => {
                // The backlog may be full: then the kernel does not answer.
                let to = SocketAddr::new(LOCAL, port);
                if let Ok(stream) = TcpStream::connect_timeout(&to, Duration::from_millis(5)) {
                    stream.set_nonblocking(true).unwrap();
                    clients.push(stream);
                }
            }
            2..=5 if !clients.is_empty() => {
                let at = below(clients.len() as u32) as usize;
                let client = &mut clients[at];
                let _ = client.write(&pattern(1 + below(60_000) as usize));
            }
            6 if !clients.is_empty() => {
                let client = clients.swap_remove(below(clients.len() as u32) as usize);
                if below(2) == 0 {
                    socket::reset_on_close(&client);
                }
            }
            7 if !clients.is_empty() => {
                let at = below(clients.len() as u32) as usize;
                let client = &mut clients[at];
                let _ = client.read(&mut vec![0; 1 + below(100_000) as usize]);
            }
            8 if !clients.is_empty() => {
                let _ = clients[below(clients.len() as u32) as usize].shutdown(Shutdown::Write);
            }
            9 | 10 if !flows.is_empty() => {
                let (flow, _) = flows[below(flows.len() as u32) as usize];
                for _ in 0..below(40) {
                    if rig.mem.pool().free() < 4 {
                        break;
                    }
                    let how = [0, 2, KEEP, SHARE][below(4) as usize];
                    let len = 1 + below(1900) as usize;
                    let _ = rig.send(flow, &pattern(len), step, how);
                }
            }
            11 if !flows.is_empty() => {
                let (flow, _) = flows[below(flows.len() as u32) as usize];
                let Rig { engine, mem, now, .. } = &mut rig;
                let _ = match below(3) {
                    0 => engine.abort(*now, mem, CHANNEL, flow),
                    _ => engine.close(*now, mem, CHANNEL, flow),
                };
            }
            _ => {}
        }
        rig.turn_with(below(20) as usize);
        for slot in std::mem::take(&mut rig.told) {
            let known = flows.iter().position(|(flow, _)| *flow == slot.flow);
            let event = slot.as_event().unwrap();
            assert_eq!(known.is_none(), event == Event::Accepted, "seed {seed}: {slot:?}");
            let at = known.unwrap_or(flows.len());
            match event {
                Event::Accepted => flows.push((slot.flow, false)),
                Event::Data => assert!(!flows[at].1, "seed {seed}: payload after FIN"),
                Event::Fin => flows[at].1 = true,
                Event::Reset | Event::Closed => drop(flows.swap_remove(at)),
                _ => {}
            }
        }
        // Now and then the guest gives back what it has.
        if below(4) == 0 {
            let held: Vec<_> = rig.mem.pool().held(CHANNEL).collect();
            held.into_iter().for_each(|buf| rig.give_back(buf));
        }
    }
    drop(clients);
    rig.end();
}
