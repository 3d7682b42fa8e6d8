//! How flows begin, go on and end.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use paste_abi::slot::{KEEP, SHARE};
use paste_abi::{Event, NO_BUFFER};
use paste_pmem::Owner;

use super::super::*;
use super::{CHANNEL, HEADROOM, LOCAL, NIC, Rig, pattern};

#[test]
fn payload_is_echoed_and_both_sides_close() {
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
                    assert_eq!((slot.time, slot.csum), (42, 0));
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
    rig.close(flow).unwrap();
    assert_eq!(rig.close(flow), Err(Reason::Closed));
    rig.hear(Event::Closed);
    assert_eq!(rig.close(flow), Err(Reason::StaleFlow), "the name is dead");
    echo.join().unwrap();
    drop(write.join().unwrap());
    let counters = rig.end();
    assert_eq!((counters.closed, counters.reset, counters.lost), (1, 0, 0));
    assert_eq!((counters.bytes_in, counters.bytes_out), (300_000, 300_000));
    assert_eq!(counters.bytes_copied, 600_000, "one copy each way");
}

/// Requests in one batch are answered in one: a sync each way, however many there are.
#[test]
fn many_flows_are_served_by_the_batch() {
    const FLOWS: usize = 200;
    let mut rig = Rig::new(2048, 256);
    let (_, port) = rig.listen(256);
    let clients: Vec<_> = (0..FLOWS).map(|_| rig.accept(port)).collect();
    for round in 0..5_u8 {
        for (number, (client, _)) in clients.iter().enumerate() {
            (&*client).write_all(&[b'q', round, number as u8]).unwrap();
        }
        let before = rig.model.pst(NIC, |pst| pst.counts().sent);
        let mut answered = 0;
        rig.until("all are answered", |rig| {
            for slot in std::mem::take(&mut rig.told) {
                assert_eq!(slot.as_event(), Some(Event::Data));
                let mut answer = rig.bytes(&slot);
                rig.give_back(slot.buf_idx);
                answer[0] = b'a';
                rig.send(slot.flow, &answer, 0, 0).unwrap();
                answered += 1;
            }
            (answered == FLOWS).then_some(())
        });
        rig.turn();
        for (number, (client, _)) in clients.iter().enumerate() {
            let mut answer = [0; 3];
            (&*client).read_exact(&mut answer).unwrap();
            assert_eq!(answer, [b'a', round, number as u8], "its own answer");
        }
        let sent = rig.model.pst(NIC, |pst| pst.counts().sent) - before;
        assert_eq!(sent as usize, FLOWS, "one segment each");
    }
    for (_, flow) in &clients {
        rig.close(*flow).unwrap();
    }
    drop(clients);
    for _ in 0..FLOWS {
        rig.hear(Event::Closed);
    }
    assert_eq!(rig.end().lost, 0);
}

#[test]
fn big_answers_go_in_whole_segments_over_several_buffers() {
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
        rig.give_back(slot.buf_idx);
    }
    let stream = reader.join().unwrap();
    let segment = u64::from(rig.engine.flows[flow.index()].segment);
    let counters = rig.engine.counters;
    let least = (sent.len() as u64).div_ceil(segment);
    assert!(
        (least..least + least / 10).contains(&counters.slots_out),
        "{} slots of {segment} bytes for {} bytes",
        counters.slots_out,
        sent.len()
    );
    drop(stream);
    assert_eq!(rig.end().lost, 0);
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
    assert_eq!(rig.end().slots_out, 1, "what was queued together is one segment");
}

#[test]
fn a_reset_is_told_after_what_was_received() {
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
    // The kernel never saw it, so it comes back for the reason of the end.
    let acked = rig.told.remove(0);
    assert_eq!((acked.as_event(), acked.buf_idx), (Some(Event::Acked), kept));
    assert_eq!((acked.cookie, acked.len), (7, Reason::Aborted as u16));
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    rig.end();
}

#[test]
fn the_guest_may_close_first() {
    let mut rig = Rig::new(256, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
    rig.send(flow, b"bye", 0, 0).unwrap();
    rig.close(flow).unwrap();
    rig.turn();
    let mut got = Vec::new();
    stream.read_to_end(&mut got).unwrap();
    assert_eq!(got, b"bye", "and FIN behind it");
    // It may still be told something.
    stream.write_all(b"thanks").unwrap();
    drop(stream);
    let slot = rig.hear(Event::Data);
    assert_eq!(rig.bytes(&slot), b"thanks");
    rig.hear(Event::Fin);
    rig.hear(Event::Closed);
    assert_eq!(rig.end().reset, 0);
}

#[test]
fn a_peer_that_never_closes_is_left_after_a_minute() {
    let mut rig = Rig::new(256, 16);
    let (_, port) = rig.listen(16);
    let (_stream, flow) = rig.accept(port);
    rig.close(flow).unwrap();
    (0..10).for_each(|_| rig.turn());
    assert!(rig.told.is_empty(), "{:?}", rig.told);
    // The kernel may take a moment to have the FIN acknowledged.
    rig.until("the end", |rig| {
        rig.now.monotonic_ns += SILENCE_MAX;
        rig.told.iter().any(|slot| slot.as_event() == Some(Event::Closed)).then_some(())
    });
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
    rig.close(flow).unwrap();
    drop(stream);
    rig.hear(Event::Closed);

    drop(server);
    let refused = rig.engine.connect(rig.now, CHANNEL, address, 0, 78).unwrap();
    let slot = rig.hear(Event::Reset);
    assert_eq!((slot.flow, slot.len), (refused, Reason::Refused as u16));
    for strange in ["[::1]:9", "127.0.0.1:0"] {
        let refused = rig.engine.connect(rig.now, CHANNEL, strange.parse().unwrap(), 0, 0);
        assert_eq!(refused, Err(Reason::BadAddress), "{strange}");
    }
    rig.end();
}

#[test]
fn what_a_guest_asks_for_is_judged() {
    let mut rig = Rig::new(256, 16);
    let (listener, port) = rig.listen(16);
    let (_stream, flow) = rig.accept(port);
    let buf = rig.mem.pool_mut().take(Owner::Guest(CHANNEL)).unwrap();
    for (offset, len) in [(0, 1), (127, 1), (128, 0), (2047, 2), (128, u16::MAX)] {
        let refused = rig.send_from(flow, buf, offset, len, 0, 0);
        assert_eq!(refused, Err(Reason::BadRange), "{offset} {len}");
    }
    let other = Flow::new(flow.index(), flow.generation() + 1);
    for stale in [other, Flow::new(15, 0), Flow::new(Flow::INDEX_MAX - 1, 0)] {
        assert_eq!(rig.send_from(stale, buf, 128, 1, 0, 0), Err(Reason::StaleFlow));
        assert_eq!(rig.close(stale), Err(Reason::StaleFlow));
    }
    for (option, value) in [(Opt::KeepAlive, 60), (Opt::KeepAlive, 0), (Opt::UserTimeout, 5000)] {
        let set = rig.engine.set_option(rig.now, CHANNEL, flow, option, value);
        assert_eq!(set, Ok(()), "{option:?} {value}");
    }
    assert_eq!(rig.engine.listen(CHANNEL, port, 16), Err(Reason::PortInUse));
    assert_eq!(rig.engine.listen(CHANNEL, 0, 16), Err(Reason::BadAddress));
    assert_eq!(rig.engine.unlisten(CHANNEL + 1, listener), Err(Reason::StaleFlow));
    rig.engine.unlisten(CHANNEL, listener).unwrap();
    assert!(TcpStream::connect((LOCAL, port)).is_err(), "nobody listens");
    rig.engine.listen(CHANNEL, port, 16).expect("the port is free");
    assert!(!rig.engine.send_plain(&mut rig.mem, &[0; 60], None));
    assert_eq!(rig.engine.counters.plain_dropped, 1);
    rig.end();
}

#[test]
fn a_guest_that_dies_leaves_nothing() {
    let mut rig = Rig::new(256, 16);
    let (_, port) = rig.listen(16);
    let mut clients: Vec<_> = (0..8).map(|_| rig.accept(port)).collect();
    for (client, flow) in &mut clients {
        client.write_all(&pattern(5000)).unwrap();
        rig.send(*flow, b"answer", 0, KEEP).unwrap();
    }
    rig.turn_with(3);
    rig.engine.close_channel(rig.now, &mut rig.mem, CHANNEL);
    rig.give_all_back();
    for (client, _) in &mut clients {
        let error = std::io::copy(client, &mut std::io::sink()).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    // The next guest finds everything as it was.
    let again = rig.engine.listen(CHANNEL, port, 16).unwrap();
    assert_eq!(rig.engine.owned(CHANNEL, clients[0].1), Err(Reason::StaleFlow));
    let (mut client, flow) = rig.accept(port);
    rig.send(flow, b"hello", 0, 0).unwrap();
    rig.turn();
    let mut got = [0; 5];
    client.read_exact(&mut got).unwrap();
    rig.engine.unlisten(CHANNEL, again).unwrap();
    rig.end();
}
