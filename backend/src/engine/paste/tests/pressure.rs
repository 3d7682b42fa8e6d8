//! Too little of something: buffers, flows, room in a socket or in the ring, or a client's
//! zeal.

use std::io::{Read, Write};
use std::time::Instant;

use paste_abi::Event;

use super::super::*;
use super::{CHANNEL, PATIENCE, Rig, client, pattern};

#[test]
fn a_client_that_never_reads_holds_up_its_own_flow_only() {
    let mut rig = Rig::new(8192, 16);
    let (_, port) = rig.listen(16);
    let (mut slow, flow) = rig.accept(port);
    let (mut fast, second) = rig.accept(port);
    let part = pattern(1900);
    let (mut sent, mut full) = (0, false);
    let end = Instant::now() + PATIENCE;
    while !full {
        match rig.send(flow, &part, 0, 0) {
            Ok(_) => sent += 1,
            Err(reason) => {
                assert_eq!(reason, Reason::FlowFull);
                rig.give_all_back();
                // Full is full when the kernel takes no more.
                let before = rig.engine.counters.bytes_out;
                (0..100).for_each(|_| rig.turn());
                full = rig.engine.counters.bytes_out == before;
                assert!(Instant::now() < end);
            }
        }
    }
    let counters = rig.engine.counters;
    assert!(counters.credit_out > 0, "it waits for room");
    assert_eq!((counters.stuck, counters.lost), (0, 0), "the kernel was never stopped");
    assert_eq!(rig.engine.flows[flow.index()].in_ring, 0, "nothing of it blocks the ring");
    // Another is served meanwhile, turn by turn.
    for _ in 0..50 {
        fast.write_all(b"hello").unwrap();
        let slot = rig.hear(Event::Data);
        rig.send_from(second, slot.buf_idx, slot.offset, slot.len, 0, 0).unwrap();
        rig.turn();
        let mut got = [0; 5];
        fast.read_exact(&mut got).unwrap();
    }
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
    assert_eq!(rig.end().lost, 0);
}

#[test]
fn single_bytes_do_not_take_a_buffer_each() {
    let mut rig = Rig::new(512, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
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
        for slot in std::mem::take(&mut rig.told) {
            if slot.as_event() == Some(Event::Data) {
                got.extend(rig.bytes(&slot));
                rig.give_back(slot.buf_idx);
            }
        }
        (got.len() == sent.len()).then_some(())
    });
    assert!(got == sent, "what arrived differs");
    rig.end();
}

#[test]
fn guests_that_keep_everything_stop_the_ring_and_nothing_is_lost() {
    const CLIENTS: usize = 8;
    const LEN: usize = 400_000;
    // Fewer buffers than a flow is reset for.
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
    rig.until("the ring stops", |rig| (rig.engine.counters.pool_empty > 10).then_some(()));
    assert!(rig.mem.pool().free() >= rig.engine.reserve, "the reserve was touched");
    assert!(rig.engine.counters.flow_share > 0, "flows were slowed down before");
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
    let slowed = flows.iter().filter(|flow| rig.engine.flows[flow.index()].slowed_at != 0);
    assert_eq!(slowed.count(), 0, "they run at full speed again");
    writers.into_iter().for_each(|writer| drop(writer.join().unwrap()));
    assert_eq!(rig.end().flow_hog, 0);
}

#[test]
fn a_flow_that_is_not_read_is_reset_before_it_stops_the_others() {
    let mut rig = Rig::new(1024, 16);
    let (_, port) = rig.listen(16);
    let (mut hog, flow) = rig.accept(port);
    let (mut other, second) = rig.accept(port);
    let writer = std::thread::spawn(move || {
        let bytes = pattern(1 << 20);
        while hog.write_all(&bytes).is_ok() {}
    });
    // The guest keeps all that comes for it, and serves the other.
    let slot = rig.hear(Event::Reset);
    assert_eq!((slot.flow, slot.len), (flow, Reason::NoRoom as u16));
    writer.join().unwrap();
    assert_eq!(rig.engine.counters.flow_hog, 1);
    rig.told.clear();
    rig.give_all_back();
    other.write_all(b"still there").unwrap();
    let slot = rig.hear(Event::Data);
    assert_eq!((slot.flow, rig.bytes(&slot)), (second, b"still there".to_vec()));
    rig.end();
}

#[test]
fn connections_beyond_the_flows_wait() {
    let mut rig = Rig::new(256, 2);
    let (_, port) = rig.listen(16);
    let (first, flow) = rig.accept(port);
    let (_second, _) = rig.accept(port);
    let third = client(port);
    (0..10).for_each(|_| rig.turn());
    assert_eq!(rig.engine.flows.used(), 2);
    assert!(!rig.told.iter().any(|slot| slot.as_event() == Some(Event::Accepted)));
    // One ends, and the one that waits has its turn.
    drop(first);
    rig.hear(Event::Fin);
    rig.close(flow).unwrap();
    rig.hear(Event::Closed);
    let slot = rig.hear(Event::Accepted);
    assert_eq!(slot.peer(), third.local_addr().unwrap());
    assert_ne!(slot.flow, flow, "another generation, or another place");
    rig.end();
}

#[test]
fn a_full_backlog_is_left_to_the_kernel() {
    let mut rig = Rig::new(256, 64);
    let (_, port) = rig.listen(2);
    let clients: Vec<_> = (0..2).map(|_| client(port)).collect();
    let end = Instant::now() + PATIENCE;
    while rig.engine.counters.accepted < 2 {
        rig.turn_with(0);
        assert!(Instant::now() < end);
    }
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
fn what_waits_when_a_channel_ends_is_given_back() {
    let mut rig = Rig::new(4096, 16);
    let (_, port) = rig.listen(16);
    let (mut slow, flow) = rig.accept(port);
    let part = pattern(1900);
    // More than its socket takes, with some in the ring.
    for _ in 0..1024 {
        rig.send(flow, &part, 0, 0).unwrap();
    }
    rig.turn();
    rig.engine.close_channel(rig.now, &mut rig.mem, CHANNEL);
    assert_eq!(rig.mem.pool().free(), rig.buffers);
    let copied = std::io::copy(&mut slow, &mut std::io::sink());
    assert_eq!(copied.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let _ = slow.read(&mut [0]);
    rig.end();
}
