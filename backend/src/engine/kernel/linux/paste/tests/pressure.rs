//! Too little of something, as PASTE has it: room in a socket or in the ring.

use std::io::{Read, Write};

use paste_abi::Event;

use super::super::*;
use super::Rig;
use crate::engine::kernel::linux::contract::pressure::{drain, fill, keep_everything};
use crate::engine::kernel::linux::contract::{CHANNEL, pattern};

#[test]
fn a_client_that_never_reads_holds_up_its_own_flow_only() {
    let mut rig = Rig::new(8192, 16);
    let (_, port) = rig.listen(16);
    let (slow, flow) = rig.accept(port);
    let (mut fast, second) = rig.accept(port);
    let sent = fill(&mut rig, flow);
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
    drain(&mut rig, slow, flow, sent);
    assert_eq!(rig.end().lost, 0);
}

#[test]
fn guests_that_keep_everything_stop_the_ring_and_nothing_is_lost() {
    // Fewer buffers than a flow is reset for.
    let (rig, flows) = keep_everything::<PasteEngine>(
        |rig| rig.engine.counters.pool_empty > 10,
        |rig| {
            assert!(rig.mem.pool().free() >= rig.engine.reserve, "the reserve was touched");
            assert!(rig.engine.counters.flow_share > 0, "flows were slowed down before");
        },
    );
    let slowed = flows.iter().filter(|flow| rig.engine.flows[flow.index()].slowed_at != 0);
    assert_eq!(slowed.count(), 0, "they run at full speed again");
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
