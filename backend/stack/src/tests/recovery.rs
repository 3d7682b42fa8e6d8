//! Loss: retransmission, fast retransmit, probes (RFC 6298, 5681, 6582).

use paste_abi::slot::Opt;
use paste_abi::{Event, Reason};

use super::harness::*;
use crate::config::{MS, SEC};
use crate::stack::Tx;
use crate::tcp::seq::Seq;
use crate::wire::tcp::{Options, SackBlock};

const FULL: [u8; 1460] = [9; 1460];

/// The host has `count` full segments in flight.
fn in_flight(count: usize) -> (Pair, Vec<Seg>) {
    let mut pair = Pair::established(config());
    for _ in 0..count {
        pair.host.send(pair.flow, &FULL);
    }
    let segs = pair.recv();
    (pair, segs)
}

#[test]
fn the_initial_window_is_ten_segments_and_acknowledgements_clock_more() {
    let (mut pair, segs) = in_flight(20);
    assert_eq!(segs.len(), 10);
    pair.ack_more(2 * 1460);
    // Slow start: two acknowledged, two more (RFC 9406 section 4.2).
    assert_eq!(pair.recv().len(), 4);
}

#[test]
fn a_timeout_sends_one_segment_again_and_backs_off() {
    let (mut pair, segs) = in_flight(3);
    let mut waits = Vec::new();
    for _ in 0..4 {
        let start = pair.host.now;
        let again = loop {
            pair.host.pass_time(10 * MS);
            let segs = pair.recv();
            // From the second on, the neighbour is asked for as well.
            pair.host.input(&arp_frame(crate::wire::arp::REPLY, PEER, PEER_MAC, HOST));
            if !segs.is_empty() {
                break segs;
            }
        };
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].seq, segs[0].seq);
        waits.push((pair.host.now - start) / MS);
    }
    for pair in waits.windows(2) {
        let ratio = pair[1] as f64 / pair[0] as f64;
        assert!((1.8..2.2).contains(&ratio), "{waits:?}");
    }
    assert_eq!(pair.host.stack.counters().timeouts, 4);
    // The peer had the rest: one acknowledgement ends it.
    pair.ack_more(3 * 1460);
    pair.recv_nothing();
    assert_eq!(pair.unacked(), 0);
}

#[test]
fn three_duplicates_send_the_lost_segment_again() {
    let (mut pair, segs) = in_flight(10);
    pair.ack_more(1460);
    pair.recv_nothing();
    pair.send(ACK, &[]);
    pair.send(ACK, &[]);
    pair.recv_nothing();
    pair.send(ACK, &[]);
    let again = pair.recv_one();
    assert_eq!(again.seq, segs[1].seq);
    assert_eq!(pair.host.stack.counters().fast_retransmits, 1);
    // A partial acknowledgement names the next hole (RFC 6582).
    pair.ack_more(3 * 1460);
    assert_eq!(pair.recv_one().seq, segs[4].seq);
    pair.ack_more(6 * 1460);
    assert_eq!(pair.unacked(), 0);
    assert_eq!(pair.host.stack.counters().timeouts, 0);
}

#[test]
fn limited_transmit_sends_new_payload_on_the_first_duplicates() {
    let (mut pair, segs) = in_flight(20);
    assert_eq!(segs.len(), 10);
    pair.send(ACK, &[]);
    assert_eq!(pair.recv_one().seq, segs[9].seq.wrapping_add(1460));
    pair.send(ACK, &[]);
    assert_eq!(pair.recv_one().seq, segs[9].seq.wrapping_add(2 * 1460));
}

#[test]
fn segments_that_carry_payload_or_move_the_window_are_no_duplicates() {
    let (mut pair, _) = in_flight(10);
    for i in 0..4 {
        pair.window += 1;
        pair.send(ACK, &[]);
        pair.window += 1;
        pair.send_ahead(i, ACK, b"x");
        pair.seq += 0;
    }
    assert_eq!(pair.host.stack.counters().duplicate_acks_in, 0);
    assert_eq!(pair.host.stack.counters().fast_retransmits, 0);
}

#[test]
fn a_zero_window_is_probed_with_backoff_and_survives_the_user_timeout() {
    let mut pair = Pair::established(config());
    pair.window = 0;
    pair.send(ACK, &[]);
    pair.host.send(pair.flow, b"waits");
    pair.recv_nothing();
    let mut probes = 0;
    for _ in 0..400 {
        pair.host.pass_time(SEC);
        for probe in pair.recv() {
            assert_eq!((probe.seq, probe.data.len()), (pair.ack.wrapping_sub(1), 0));
            probes += 1;
            pair.send(ACK, &[]);
        }
    }
    assert!((6..20).contains(&probes), "{probes}");
    assert!(pair.host.poll().is_empty());
    pair.window = 1000;
    pair.send(ACK, &[]);
    assert_eq!(pair.recv_one().data, b"waits");
    pair.ack_more(5);
    assert_eq!(pair.unacked(), 0);
}

#[test]
fn acknowledgements_keep_their_place_while_payload_goes_again() {
    let (mut pair, segs) = in_flight(3);
    let end = segs[2].seq.wrapping_add(1460);
    pair.host.pass_time(2 * SEC);
    assert_eq!(pair.recv_one().seq, segs[0].seq);
    // The peer has all three, and must be able to accept our acknowledgement.
    pair.send_ahead(5, ACK, b"early");
    assert_eq!(pair.recv_one().seq, end);
}

#[test]
fn a_small_window_is_not_filled_with_small_segments() {
    let mut pair = Pair::established(config());
    pair.window = 100;
    pair.send(ACK, &[]);
    pair.host.send(pair.flow, &FULL);
    pair.recv_nothing();
    // But it is not ignored for ever.
    pair.host.pass_time(2 * SEC);
    assert_eq!(pair.recv_one().data.len(), 100);
}

#[test]
fn a_peer_that_acknowledges_nothing_is_given_up() {
    let mut pair = Pair::established(config());
    pair.host.stack.set_option(pair.host.now, 0, pair.flow, Opt::UserTimeout, 5000).unwrap();
    pair.host.send(pair.flow, b"lost");
    pair.recv_one();
    for _ in 0..15 {
        pair.host.pass_time(SEC);
        pair.recv();
    }
    pair.host.poll();
    assert_eq!(pair.host.kinds(), [Event::Accepted, Event::Reset]);
    assert_eq!(pair.host.events[1].len, Reason::TimedOut as u16);
    pair.host.check_empty();
}

#[test]
fn after_two_timeouts_the_neighbour_is_asked_for() {
    let mut pair = Pair::established(config());
    pair.host.send(pair.flow, b"lost");
    pair.recv_one();
    pair.host.pass_time(2 * SEC);
    pair.recv_one();
    pair.host.pass_time(3 * SEC);
    pair.recv_nothing();
    assert_eq!(pair.host.stack.counters().arp_requests_out, 1);
    let moved = [2, 0, 0, 0, 0, 99];
    pair.host.input(&arp_frame(crate::wire::arp::REPLY, PEER, moved, HOST));
    let frames = pair.host.transmit();
    assert_eq!(crate::wire::ethernet::parse(&frames[0]).unwrap().dst, moved);
}

#[test]
fn an_idle_flow_restarts_from_the_initial_window() {
    let mut pair = Pair::established(config());
    for _ in 0..6 {
        for _ in 0..40 {
            let _ = pair.host.try_send(pair.flow, &FULL, Tx::default());
        }
        loop {
            let count = pair.recv().len() as u32;
            if count == 0 {
                break;
            }
            pair.ack_more(count * 1460);
        }
    }
    pair.host.pass_time(60 * SEC);
    for _ in 0..40 {
        pair.host.send(pair.flow, &FULL);
    }
    assert_eq!(pair.recv().len(), 10);
}

#[test]
fn a_clock_that_jumps_either_way_does_no_harm() {
    let (mut pair, _) = in_flight(1);
    let now = pair.host.now;
    pair.host.now = 5;
    pair.host.pass_time(0);
    pair.send(ACK, b"x");
    pair.recv();
    pair.host.now = now;
    pair.host.pass_time(20 * SEC);
    assert_eq!(pair.recv().len(), 1);
    pair.host.pass_time(365 * 24 * 3600 * SEC);
    pair.recv();
    pair.host.poll();
    assert_eq!(pair.host.kinds().last(), Some(&Event::Reset));
    pair.host.check_empty();
}

#[test]
fn a_hole_that_closes_before_it_is_repaired_holds_up_nothing() {
    let mut pair = Pair::listening(config());
    pair.offers = Options { sack_permitted: true, ..pair.offers };
    pair.open();
    for _ in 0..14 {
        pair.host.send(pair.flow, &FULL);
    }
    assert_eq!(pair.recv().len(), 10);
    // Four come before the first; then it does, before anything was sent again.
    let start = Seq(pair.ack) + 1460;
    let mut options = Options::default();
    options.sack.push(SackBlock { start, end: start + 4 * 1460 });
    pair.send_with(ACK, options, &[]);
    pair.ack_more(5 * 1460);
    let again = pair.recv();
    assert!(!again.is_empty(), "the window has room for what is new");
    assert_eq!(pair.host.stack.counters().retransmits, 0);
}

/// RFC 6298 section 3: the peer had all but the first, so its acknowledgement
/// says when that one came again, and nothing of how long the others took.
#[test]
fn rfc6298_3_what_is_acknowledged_with_a_retransmission_measures_nothing() {
    let (mut pair, _) = in_flight(3);
    pair.host.pass_time(MS);
    pair.ack_more(1460);
    let measured = pair.host.stack.flows[pair.flow.index()].rtt.smoothed();
    assert!(measured < 2 * MS);
    // Nothing comes back for long, and then all at once.
    while pair.host.stack.counters().timeouts < 4 {
        pair.host.pass_time(100 * MS);
        pair.host.input(&arp_frame(crate::wire::arp::REPLY, PEER, PEER_MAC, HOST));
        pair.recv();
    }
    pair.ack_more(2 * 1460);
    assert_eq!(pair.unacked(), 0);
    assert_eq!(pair.host.stack.flows[pair.flow.index()].rtt.smoothed(), measured);
}
