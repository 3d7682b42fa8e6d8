//! How flows begin, go on and end.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use paste_abi::Event;
use paste_pmem::Pool;

use super::super::*;
use super::{Rig, options};
use crate::engine::kernel::linux::contract::flows::{send_every_way, send_much};
use crate::engine::kernel::linux::contract::{CHANNEL, LOCAL, PATIENCE};
use crate::testing;

#[test]
fn a_flow_that_is_closed_before_it_is_open_is_forgotten() {
    let mut rig = Rig::new(256, 16);
    let nobody = "192.0.2.1:9".parse().unwrap();
    let flow = rig.engine.connect(rig.now, CHANNEL, nobody, 0, 0).unwrap();
    rig.turn();
    if rig.close(flow).is_ok() {
        rig.until("an end", |rig| {
            let end = |slot: &Slot| matches!(slot.as_event(), Some(Event::Closed | Event::Reset));
            rig.told.iter().any(|slot| slot.flow == flow && end(slot)).then_some(())
        });
    }
    rig.end();
}

#[test]
fn what_was_queued_together_goes_together() {
    let rig = send_every_way::<SocketsEngine>();
    assert_eq!(rig.engine.counters.sends, 1);
    rig.end();
}

#[test]
fn much_payload_goes_without_a_copy() {
    let (rig, _, stream) = send_much::<SocketsEngine>();
    assert!(rig.engine.counters.zero_copy > 0);
    assert!(rig.engine.counters.sends < 50, "{:?}", rig.engine.counters);
    drop(stream);
    rig.end();
}

#[test]
fn a_peer_that_does_not_close_is_not_waited_for_for_ever() {
    let mut rig = Rig::new(256, 16);
    let (_, port) = rig.listen(16);
    let (mut stream, flow) = rig.accept(port);
    rig.close(flow).unwrap();
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
fn both_families_are_served() {
    let pool = Pool::new(testing::buffers(256));
    let v6 = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
    if socket::try_address(v6).is_err() {
        assert!(std::env::var_os("PASTED_REQUIRE_ALL").is_none(), "this host has no ::1");
        return eprintln!("skipped: this host has no ::1");
    }
    let engine = SocketsEngine::new(&options(pool.buffers(), &[LOCAL, v6]));
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
