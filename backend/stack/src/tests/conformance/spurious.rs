//! Reductions that were mistakes: RFC 3522 and RFC 4015 (Eifel), RFC 2883 with
//! RFC 3708 (D-SACK).

use super::{echo, in_flight, mss, numbers, sack, sacking, wait, window};
use crate::config::MS;
use crate::tests::harness::*;

const RTT: u64 = 100;

/// The peer echoes what the host's clock said `ago` ms before now.
fn echo_of(pair: &mut Pair, ago_ms: u64) {
    let ours = pair.host.stack.flows[0].timestamp(pair.host.now - ago_ms * MS);
    pair.timestamps.as_mut().unwrap().echo = ours;
}

#[test]
fn a_timeout_is_undone_when_an_echo_shows_the_original_arrived() {
    // RFC 3522 section 3.2, RFC 4015 section 3: the path was slow, not lossy.
    let mut pair = sacking(RTT, true);
    let start = in_flight(&mut pair, 8);
    let before = window(&pair);
    // A probe, and then the timeout.
    let mut waited = 0;
    while pair.host.stack.counters().timeouts == 0 {
        waited += wait(&mut pair, 5000).0;
    }
    assert!(window(&pair) < before);
    pair.host.pass_time(50 * MS);
    echo_of(&mut pair, waited + 50);
    pair.ack_more(u32::from(mss(&pair)));
    assert!(window(&pair) >= before, "{} {before}", window(&pair));
    // Nothing more is sent again.
    for _ in 0..7 {
        pair.host.pass_time(MS);
        pair.ack_more(u32::from(mss(&pair)));
    }
    let sent = pair.recv();
    assert!(numbers(&pair, start, &sent).is_empty(), "{:?}", numbers(&pair, start, &sent));
    assert_eq!(pair.unacked(), 0);
}

#[test]
fn a_timeout_stands_when_the_echo_is_the_retransmission_s() {
    let mut pair = sacking(RTT, true);
    let start = in_flight(&mut pair, 8);
    let before = window(&pair);
    let mut again = Vec::new();
    while pair.host.stack.counters().timeouts == 0 {
        again = wait(&mut pair, 5000).1;
    }
    assert_eq!(numbers(&pair, start, &again), [0]);
    pair.host.pass_time(RTT * MS);
    echo(&mut pair, &again[0]);
    pair.ack_more(u32::from(mss(&pair)));
    assert!(window(&pair) < before / 2);
    // What follows was lost too, and is sent again.
    let sent = pair.recv();
    assert_eq!(numbers(&pair, start, &sent)[0], 1);
}

#[test]
fn a_fast_retransmit_is_undone_when_an_echo_shows_the_original_arrived() {
    // RFC 3522 section 3.2: reordering by more than three segments.
    let mut pair = sacking(RTT, true);
    let start = in_flight(&mut pair, 10);
    let before = window(&pair);
    pair.host.pass_time(RTT * MS);
    echo_of(&mut pair, RTT);
    sack(&mut pair, start, &[(1, 4)]);
    let again = pair.recv();
    assert_eq!(numbers(&pair, start, &again), [0]);
    pair.host.pass_time(3 * MS);
    echo_of(&mut pair, RTT + 3);
    pair.ack_more(5 * u32::from(mss(&pair)));
    assert!(window(&pair) >= before, "{} {before}", window(&pair));
}

#[test]
fn a_fast_retransmit_is_undone_when_the_peer_had_everything_twice() {
    // RFC 2883 section 5 with RFC 3708 section 3: a D-SACK for each segment
    // that was sent again.
    let mut pair = sacking(RTT, false);
    let start = in_flight(&mut pair, 10);
    let before = window(&pair);
    pair.host.pass_time(RTT * MS);
    sack(&mut pair, start, &[(1, 4)]);
    let again = pair.recv();
    assert_eq!(numbers(&pair, start, &again), [0]);
    pair.host.pass_time(3 * MS);
    pair.ack_more(10 * u32::from(mss(&pair)));
    assert!(window(&pair) < before);
    pair.host.pass_time(RTT * MS);
    sack(&mut pair, start, &[(0, 1)]);
    assert!(window(&pair) >= before, "{} {before}", window(&pair));
}

#[test]
fn a_duplicate_told_for_one_of_two_undoes_nothing() {
    let mut pair = sacking(RTT, false);
    let start = in_flight(&mut pair, 10);
    let before = window(&pair);
    pair.host.pass_time(RTT * MS);
    sack(&mut pair, start, &[(2, 6)]);
    let mut again = pair.recv();
    while again.len() < 2 {
        pair.host.pass_time(MS);
        let end = 6 + again.len() as u32;
        sack(&mut pair, start, &[(2, end)]);
        again.extend(pair.recv());
    }
    assert_eq!(numbers(&pair, start, &again)[..2], [0, 1]);
    pair.ack_more(10 * u32::from(mss(&pair)));
    sack(&mut pair, start, &[(0, 1)]);
    assert!(window(&pair) < before);
    sack(&mut pair, start, &[(1, 2)]);
    assert!(window(&pair) >= before);
}

#[test]
fn without_evidence_nothing_is_undone() {
    let mut pair = Pair::established(config());
    in_flight(&mut pair, 8);
    let before = window(&pair);
    wait(&mut pair, 5000);
    pair.ack_more(8 * 1460);
    assert!(window(&pair) < before);
}

#[test]
fn a_timeout_is_undone_when_one_acknowledgement_is_for_all() {
    // As the timeout of a short response is.
    let mut pair = sacking(RTT, true);
    in_flight(&mut pair, 1);
    let before = window(&pair);
    let mut waited = 0;
    while pair.host.stack.counters().timeouts == 0 {
        waited += wait(&mut pair, 5000).0;
    }
    assert!(window(&pair) < before);
    pair.host.pass_time(50 * MS);
    echo_of(&mut pair, waited + 50);
    pair.ack_more(u32::from(mss(&pair)));
    assert!(window(&pair) >= before, "{} {before}", window(&pair));
}

#[test]
fn a_timeout_is_undone_when_the_duplicate_is_told_later() {
    let mut pair = sacking(RTT, false);
    let start = in_flight(&mut pair, 1);
    let before = window(&pair);
    let mut copies = 0;
    while pair.host.stack.counters().timeouts == 0 {
        copies += wait(&mut pair, 5000).1.len();
    }
    pair.host.pass_time(50 * MS);
    pair.ack_more(u32::from(mss(&pair)));
    assert!(window(&pair) < before);
    for _ in 0..copies {
        pair.host.pass_time(MS);
        sack(&mut pair, start, &[(0, 1)]);
    }
    assert!(window(&pair) >= before, "{} {before}", window(&pair));
}

#[test]
fn what_was_really_lost_is_found_after_an_undo() {
    // The first segment was only late; the sixth is lost.
    let mut pair = sacking(RTT, true);
    let start = in_flight(&mut pair, 10);
    pair.host.pass_time(RTT * MS);
    echo_of(&mut pair, RTT);
    sack(&mut pair, start, &[(6, 9), (1, 5)]);
    let mut sent = pair.recv();
    assert_eq!(numbers(&pair, start, &sent)[0], 0);
    pair.host.pass_time(2 * MS);
    echo_of(&mut pair, RTT + 2);
    pair.ack = start.wrapping_add(5 * u32::from(mss(&pair)));
    sack(&mut pair, start, &[(6, 9)]);
    assert_eq!(pair.host.stack.counters().undone, 1);
    sent.extend(pair.recv());
    sack(&mut pair, start, &[(6, 10)]);
    sent.extend(pair.recv());
    if !numbers(&pair, start, &sent).contains(&5) {
        sent = wait(&mut pair, 1000).1;
    }
    assert!(numbers(&pair, start, &sent).contains(&5));
    assert_eq!(pair.host.stack.counters().timeouts, 0);
}
