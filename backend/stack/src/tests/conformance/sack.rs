//! RFC 2018 and RFC 6675: what a sender makes of SACK. What a receiver tells
//! is tested in `tests::sack`.

use core::net::SocketAddr;

use super::{in_flight, mss, numbers, sack, sacking, wait, window};
use crate::config::{MS, SEC};
use crate::tests::harness::*;
use crate::wire::arp;

#[test]
fn a_syn_offers_it() {
    // RFC 2018 section 2.
    let mut pair = Pair::listening(config());
    let remote = SocketAddr::from((PEER, 8080));
    pair.host.stack.connect(pair.host.now, 0, remote, 0, 77).unwrap();
    pair.host.transmit();
    pair.host.input(&arp_frame(arp::REPLY, PEER, PEER_MAC, HOST));
    assert!(pair.recv_one().options.sack_permitted);
}

#[test]
fn three_segments_beyond_a_hole_mean_that_it_is_lost() {
    // RFC 6675 section 4, IsLost: DupThresh segments.
    let mut pair = sacking(100, false);
    let start = in_flight(&mut pair, 10);
    sack(&mut pair, start, &[(1, 2)]);
    sack(&mut pair, start, &[(1, 3)]);
    pair.recv_nothing();
    sack(&mut pair, start, &[(1, 4)]);
    let again = pair.recv();
    assert_eq!(numbers(&pair, start, &again), [0]);
}

#[test]
fn one_acknowledgement_may_tell_of_all_three() {
    // RFC 6675 section 4, IsLost: more than (DupThresh - 1) * SMSS bytes; the
    // acknowledgements of the first two were lost.
    let mut pair = sacking(100, false);
    let start = in_flight(&mut pair, 10);
    sack(&mut pair, start, &[(1, 4)]);
    let again = pair.recv();
    assert_eq!(numbers(&pair, start, &again), [0]);
}

#[test]
fn three_segments_apart_from_each_other_count_as_well() {
    // RFC 6675 section 4, IsLost: discontiguous SACKed sequences.
    let mut pair = sacking(100, false);
    let start = in_flight(&mut pair, 10);
    sack(&mut pair, start, &[(2, 3)]);
    sack(&mut pair, start, &[(4, 5), (2, 3)]);
    sack(&mut pair, start, &[(6, 7), (4, 5), (2, 3)]);
    let again = pair.recv();
    assert_eq!(numbers(&pair, start, &again)[0], 0);
}

#[test]
fn only_holes_are_sent_again_and_in_order() {
    // RFC 6675 section 4, NextSeg (1): the smallest unsacked number first.
    let mut pair = sacking(100, false);
    let start = in_flight(&mut pair, 10);
    let mut again = Vec::new();
    let news: [&[(u32, u32)]; 4] =
        [&[(1, 3)], &[(4, 6), (1, 3)], &[(7, 9), (4, 6), (1, 3)], &[(7, 10), (4, 6), (1, 3)]];
    for blocks in news {
        pair.host.pass_time(5 * MS);
        sack(&mut pair, start, blocks);
        again.extend(pair.recv());
    }
    // What the window did not allow yet goes with the holes that are filled.
    for filled in [3, 6] {
        pair.host.pass_time(5 * MS);
        pair.ack = start.wrapping_add(filled * u32::from(mss(&pair)));
        sack(&mut pair, start, &[(7, 10), (4, 6)]);
        again.extend(pair.recv());
    }
    assert_eq!(numbers(&pair, start, &again), [0, 3, 6]);
    assert_eq!(pair.host.stack.counters().timeouts, 0);
}

#[test]
fn recovery_lasts_until_all_that_was_in_flight_is_acknowledged() {
    // RFC 6675 section 5: RecoveryPoint; one reduction for a window.
    let mut pair = sacking(100, false);
    let start = in_flight(&mut pair, 10);
    let before = window(&pair);
    sack(&mut pair, start, &[(1, 4)]);
    pair.recv();
    for filled in [4, 6, 8] {
        pair.ack = start.wrapping_add(filled * u32::from(mss(&pair)));
        sack(&mut pair, start, &[(9, 10)]);
        pair.recv();
    }
    pair.ack = start.wrapping_add(10 * u32::from(mss(&pair)));
    pair.send(ACK, &[]);
    // RFC 9438 section 4.6: once 0.7, not 0.7 * 0.7.
    let after = window(&pair);
    assert!(after <= before * 7 / 10 + u32::from(mss(&pair)), "{before} {after}");
    assert!(after >= before * 6 / 10, "{before} {after}");
    assert_eq!(pair.host.stack.counters().fast_retransmits, 1);
}

#[test]
fn new_payload_goes_when_no_hole_is_left_to_fill() {
    // RFC 6675 section 4, NextSeg (2).
    let mut pair = sacking(100, false);
    let start = in_flight(&mut pair, 10);
    for _ in 0..10 {
        pair.host.send(pair.flow, &[9; 1460]);
    }
    pair.recv_nothing();
    let mut sent = Vec::new();
    pair.host.pass_time(100 * MS);
    for end in 4..10 {
        pair.host.pass_time(MS);
        sack(&mut pair, start, &[(1, end)]);
        sent.extend(pair.recv());
    }
    let numbers = numbers(&pair, start, &sent);
    assert_eq!(numbers[0], 0);
    assert!(numbers.len() > 1 && numbers[1..].iter().all(|n| *n >= 10), "{numbers:?}");
}

#[test]
fn recovery_sends_no_more_than_is_delivered() {
    // RFC 9937 section 6, packet conservation. Half of the window was lost.
    let mut pair = sacking(100, false);
    let start = in_flight(&mut pair, 10);
    for _ in 0..20 {
        pair.host.send(pair.flow, &[9; 1460]);
    }
    pair.recv();
    let mut sent = 0;
    for delivered in 1..=5 {
        sack(&mut pair, start, &[(5, 5 + delivered)]);
        sent += pair.recv().len();
        assert!(sent <= delivered as usize + 1, "{sent} {delivered}");
    }
}

#[test]
fn blocks_that_cannot_be_are_ignored() {
    // RFC 2018 section 8, RFC 5961 section 5: what was not sent, what is
    // backwards, what is empty.
    let mut pair = sacking(100, false);
    let start = in_flight(&mut pair, 10);
    for blocks in [
        &[(10, 11)][..],
        &[(1, 11)],
        &[(9, 1)],
        &[(2, 2)],
        &[(100_000, 100_004)],
        &[(u32::MAX - 9, u32::MAX)],
    ] {
        for _ in 0..4 {
            sack(&mut pair, start, blocks);
            pair.recv_nothing();
        }
    }
    assert_eq!(pair.host.stack.counters().fast_retransmits, 0);
    // All is as before for those that can be.
    sack(&mut pair, start, &[(1, 4)]);
    let again = pair.recv();
    assert_eq!(numbers(&pair, start, &again), [0]);
}

#[test]
fn a_block_below_the_acknowledgement_is_no_news() {
    // RFC 2883 section 5: a duplicate; it must not be taken for a hole's end.
    let mut pair = sacking(100, false);
    let start = in_flight(&mut pair, 10);
    pair.ack_more(5 * u32::from(mss(&pair)));
    for _ in 0..5 {
        sack(&mut pair, start, &[(1, 2)]);
        pair.recv_nothing();
    }
}

#[test]
fn a_peer_that_reneges_gets_everything_in_the_end() {
    // RFC 2018 section 8: nothing is freed before it is acknowledged, and a
    // timeout sends what was told of too.
    let mut pair = sacking(100, false);
    let start = in_flight(&mut pair, 5);
    sack(&mut pair, start, &[(1, 5)]);
    pair.recv();
    assert_eq!(pair.unacked(), 5 * u32::from(mss(&pair)));
    let mut got = 0u32;
    let mut waited = 0;
    while got < 5 {
        let (_, segs) = wait(&mut pair, 120_000);
        // The peer forgot all but what it acknowledged.
        for number in numbers(&pair, start, &segs) {
            if number == got {
                got += 1;
            }
        }
        pair.ack = start.wrapping_add(got * u32::from(mss(&pair)));
        pair.send(ACK, &[]);
        waited += 1;
        assert!(waited < 12, "{got}");
    }
    assert_eq!(pair.unacked(), 0);
}

#[test]
fn a_lost_fin_is_recovered() {
    let mut pair = sacking(100, false);
    let start = in_flight(&mut pair, 4);
    pair.host.close(pair.flow);
    assert_eq!(pair.recv_one().flags & FIN, FIN);
    // The FIN arrived, the first segment did not.
    let mss = u32::from(mss(&pair));
    let mut blocks = crate::wire::tcp::SackBlocks::default();
    blocks.push(crate::wire::tcp::SackBlock {
        start: crate::tcp::seq::Seq(start.wrapping_add(mss)),
        end: crate::tcp::seq::Seq(start.wrapping_add(4 * mss + 1)),
    });
    let options = crate::wire::tcp::Options { sack: blocks, ..Default::default() };
    pair.send_with(ACK, options, &[]);
    let again = pair.recv();
    assert_eq!(numbers(&pair, start, &again), [0]);
    pair.ack = start.wrapping_add(4 * mss + 1);
    pair.send(ACK, &[]);
    assert_eq!(pair.state(), crate::flow::State::FinWait2);
    pair.host.pass_time(5 * SEC);
    pair.recv_nothing();
}

#[test]
fn without_it_three_duplicates_do() {
    // RFC 5681 section 3.2.
    let mut pair = Pair::established(config());
    let start = in_flight(&mut pair, 10);
    for _ in 0..2 {
        pair.send(ACK, &[]);
        pair.recv_nothing();
    }
    pair.send(ACK, &[]);
    let again = pair.recv();
    assert_eq!(numbers(&pair, start, &again), [0]);
    // RFC 6582 section 3.2, step 3: a partial acknowledgement names the next.
    pair.ack_more(4 * 1460);
    let again = pair.recv();
    assert_eq!(numbers(&pair, start, &again), [4]);
}
