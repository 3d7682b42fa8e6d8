//! How flows begin, go on and end.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use paste_abi::slot::{KEEP, SHARE};
use paste_abi::{Event, NO_BUFFER};
use paste_pmem::Pool;

use super::super::*;
use super::{CHANNEL, HEADROOM, LOCAL, PATIENCE, Rig, pattern};
use crate::testing;

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
