//! How flows begin, go on and end.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use paste_abi::slot::{KEEP, Opt, SHARE};
use paste_abi::{Event, Flow, NO_BUFFER, Reason};
use paste_pmem::Owner;

use super::{CHANNEL, HEADROOM, LOCAL, Rig, Subject, pattern};
use crate::engine::kernel::linux::socket;

pub fn payload_is_echoed_from_the_buffers_that_it_came_in_and_both_sides_close<E: Subject>() {
    echo::<E>().end();
}

/// 300,000 bytes come and go back, and both sides close.
pub fn echo<E: Subject>() -> Rig<E> {
    let mut rig = Rig::<E>::new(1024, 16);
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
                    assert_eq!((slot.modifiers, slot.csum), (0, 0), "there is no checksum");
                    assert_eq!(slot.time, 42);
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
    assert_eq!((rig.count("stack.closed"), rig.count("stack.reset")), (1, 0));
    assert_eq!((rig.count("stack.bytes_in"), rig.count("stack.bytes_out")), (300_000, 300_000));
    rig
}

pub fn a_reset_comes_after_what_was_received<E: Subject>() {
    let mut rig = Rig::<E>::new(256, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
    stream.write_all(b"last words").unwrap();
    rig.until("payload", |rig| (rig.count("stack.bytes_in") == 10).then_some(()));
    socket::reset_on_close(&stream);
    drop(stream);
    let slot = rig.hear(Event::Reset);
    assert_eq!((slot.flow, slot.len), (flow, Reason::PeerReset as u16));
    let data = rig.told.remove(0);
    assert_eq!(rig.bytes(&data), b"last words");
    assert_eq!(rig.send(flow, b"x", 0, 0), Err(Reason::StaleFlow));
    rig.end();
}

pub fn an_abort_is_a_reset_for_the_peer<E: Subject>() {
    let mut rig = Rig::<E>::new(256, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
    let kept = rig.send(flow, b"kept", 7, KEEP).unwrap();
    rig.abort(flow).unwrap();
    let slot = rig.hear(Event::Reset);
    assert_eq!(slot.len, Reason::Aborted as u16);
    // The kernel never saw it, so it comes back for the reason of the end.
    let acked = rig.told.remove(0);
    assert_eq!((acked.as_event(), acked.buf_idx), (Some(Event::Acked), kept));
    assert_eq!((acked.cookie, acked.len), (7, Reason::Aborted as u16));
    let error = stream.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    rig.end();
}

pub fn the_guest_may_close_first<E: Subject>() {
    let mut rig = Rig::<E>::new(256, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
    rig.send(flow, b"bye", 0, 0).unwrap();
    rig.close(flow).unwrap();
    assert_eq!(rig.send(flow, b"x", 0, 0), Err(Reason::Closed));
    let read = std::thread::spawn(move || {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert_eq!(got, b"bye", "and FIN behind it");
        stream
    });
    rig.until("FIN is read", |_| read.is_finished().then_some(()));
    // It may still be told something.
    let mut stream = read.join().unwrap();
    stream.write_all(b"thanks").unwrap();
    drop(stream);
    let slot = rig.hear(Event::Data);
    assert_eq!(rig.bytes(&slot), b"thanks");
    rig.hear(Event::Fin);
    rig.hear(Event::Closed);
    assert_eq!(rig.count("stack.reset"), 0);
    rig.end();
}

pub fn flows_are_opened_and_refused<E: Subject>() {
    let mut rig = Rig::<E>::new(256, 16);
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

pub fn what_is_sent_is_told_of_as_it_was_asked<E: Subject>() {
    send_every_way::<E>().end();
}

/// Five sends at once, each with another wish.
pub fn send_every_way<E: Subject>() -> Rig<E> {
    let mut rig = Rig::<E>::new(256, 16);
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
    rig
}

pub fn much_payload_comes_back_in_order<E: Subject>() {
    send_much::<E>().0.end();
}

/// 500 buffers of 1900 bytes at once, on a flow that stays open.
pub fn send_much<E: Subject>() -> (Rig<E>, Flow, TcpStream) {
    let mut rig = Rig::<E>::new(2048, 16);
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
    (rig, flow, reader.join().unwrap())
}

pub fn what_a_guest_asks_for_is_judged<E: Subject>() {
    let mut rig = Rig::<E>::new(256, 16);
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
        assert_eq!(rig.close(stale), Err(Reason::StaleFlow));
        assert_eq!(rig.abort(stale), Err(Reason::StaleFlow));
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
    assert_eq!(rig.count("port.plain_dropped"), 1);
    rig.end();
}

pub fn a_guest_that_dies_leaves_nothing<E: Subject>() {
    let mut rig = Rig::<E>::new(256, 16);
    let (_, port) = rig.listen(16);
    let mut clients: Vec<_> = (0..8).map(|_| rig.accept(port)).collect();
    for (client, flow) in &mut clients {
        client.write_all(&pattern(5000)).unwrap();
        rig.send(*flow, b"answer", 0, KEEP).unwrap();
    }
    rig.turn_with(3);
    rig.engine.close_channel(rig.now, &mut rig.mem, CHANNEL);
    rig.give_all_back();
    (0..3).for_each(|_| rig.turn());
    for (client, _) in &mut clients {
        let error = io::copy(client, &mut io::sink()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    // The next guest finds everything as it was.
    let again = rig.engine.listen(CHANNEL, port, 16).unwrap();
    assert_eq!(rig.close(clients[0].1), Err(Reason::StaleFlow));
    let (mut client, flow) = rig.accept(port);
    rig.send(flow, b"hello", 0, 0).unwrap();
    rig.turn();
    let mut got = [0; 5];
    client.read_exact(&mut got).unwrap();
    rig.engine.unlisten(CHANNEL, again).unwrap();
    rig.end();
}
