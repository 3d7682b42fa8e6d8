//! How flows begin, go on and end.

use std::io::{Read, Write};

use paste_abi::Event;

use super::super::*;
use super::{NIC, Rig};
use crate::engine::kernel::linux::contract::flows::{echo, send_every_way, send_much};

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
        let before = rig.host.pst(NIC, |pst| pst.counts().sent);
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
        let sent = rig.host.pst(NIC, |pst| pst.counts().sent) - before;
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
fn payload_is_copied_once_each_way() {
    let rig = echo::<PasteEngine>();
    let counters = rig.end();
    assert_eq!((counters.bytes_copied, counters.lost), (600_000, 0));
}

#[test]
fn big_answers_go_in_whole_segments_over_several_buffers() {
    let (rig, flow, stream) = send_much::<PasteEngine>();
    let segment = u64::from(rig.engine.flows[flow.index()].segment);
    let counters = rig.engine.counters;
    let least = (1900_u64 * 500).div_ceil(segment);
    assert!(
        (least..least + least / 10).contains(&counters.slots_out),
        "{} slots of {segment} bytes for 500 of 1900",
        counters.slots_out,
    );
    drop(stream);
    assert_eq!(rig.end().lost, 0);
}

#[test]
fn what_was_queued_together_is_one_segment() {
    let rig = send_every_way::<PasteEngine>();
    assert_eq!(rig.end().slots_out, 1);
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
