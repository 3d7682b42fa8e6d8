//! Too little of something: buffers, flows, places in a backlog, or a client's zeal.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use paste_abi::Event;

use super::super::*;
use super::{CHANNEL, HEADROOM, LOCAL, PATIENCE, Rig, client, pattern};

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
