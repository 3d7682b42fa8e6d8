//! RFC 8985: loss by time, and probes of the tail.

use super::{in_flight, mss, numbers, sack, sacking, wait, window};
use crate::config::MS;
use crate::tests::harness::*;
use crate::wire::tcp::Options;

const RTT: u64 = 100;

// RACK (section 6).

#[test]
fn what_was_sent_before_the_delivered_is_lost_after_the_reordering_window() {
    // Section 6.2, steps 4 and 5: a quarter of the smallest round trip.
    let mut pair = sacking(RTT, false);
    let start = in_flight(&mut pair, 2);
    pair.host.pass_time(RTT * MS);
    sack(&mut pair, start, &[(1, 2)]);
    pair.recv_nothing();
    let (waited, again) = wait(&mut pair, 1000);
    assert_eq!(numbers(&pair, start, &again), [0]);
    assert!((20..=32).contains(&waited), "{waited}");
    assert_eq!(pair.host.stack.counters().timeouts, 0);
}

#[test]
fn a_hole_in_a_buffer_that_is_not_all_sent_is_found() {
    // Section 6.2, step 4, and RFC 6675 section 4: three segments after it.
    let mut pair = Pair::listening(config());
    pair.window = 1600;
    let offer = Options { mss: Some(400), sack_permitted: true, ..Options::default() };
    pair.send_with(SYN, offer, &[]);
    pair.seq += 1;
    pair.ack = pair.recv_one().seq.wrapping_add(1);
    pair.host.pass_time(RTT * MS);
    pair.send(ACK, &[]);
    pair.flow = pair.host.poll()[0].flow;
    let start = pair.ack;
    pair.host.send(pair.flow, &[9; 1900]);
    assert_eq!(
        {
            let segs = pair.recv();
            numbers(&pair, start, &segs)
        },
        [0, 1, 2, 3]
    );
    pair.host.pass_time(20 * MS);
    pair.window = 60000;
    pair.send(ACK, &[]);
    assert_eq!(
        {
            let segs = pair.recv();
            numbers(&pair, start, &segs)
        },
        [4]
    );
    for end in 2..4 {
        sack(&mut pair, start, &[(1, end)]);
        pair.recv_nothing();
    }
    sack(&mut pair, start, &[(1, 4)]);
    assert_eq!(
        {
            let segs = pair.recv();
            numbers(&pair, start, &segs)
        },
        [0]
    );
}

#[test]
fn what_arrives_within_the_reordering_window_was_not_lost() {
    let mut pair = sacking(RTT, false);
    let start = in_flight(&mut pair, 2);
    let before = window(&pair);
    pair.host.pass_time(RTT * MS);
    sack(&mut pair, start, &[(1, 2)]);
    pair.host.pass_time(20 * MS);
    pair.recv_nothing();
    pair.ack_more(2 * u32::from(mss(&pair)));
    pair.host.pass_time(1000 * MS);
    pair.recv_nothing();
    assert!(window(&pair) >= before);
    assert_eq!(pair.host.stack.counters().retransmits, 0);
}

#[test]
fn the_lost_are_told_by_time_not_by_number() {
    // Section 3.1: also when fewer than three follow, and for each of several.
    let mut pair = sacking(RTT, false);
    let start = in_flight(&mut pair, 5);
    pair.host.pass_time(RTT * MS);
    sack(&mut pair, start, &[(3, 5)]);
    pair.recv_nothing();
    let (waited, mut again) = wait(&mut pair, 1000);
    assert!(waited <= 32, "{waited}");
    // Each retransmission that arrives lets more go.
    for got in 1..=2 {
        pair.host.pass_time(MS);
        pair.ack = start.wrapping_add(got * u32::from(mss(&pair)));
        sack(&mut pair, start, &[(3, 5)]);
        again.extend(pair.recv());
    }
    assert_eq!(numbers(&pair, start, &again), [0, 1, 2]);
    assert_eq!(pair.host.stack.counters().timeouts, 0);
}

#[test]
fn a_lost_retransmission_is_found_without_a_timeout() {
    // Section 3.2: what was sent after it is delivered.
    let mut pair = sacking(RTT, false);
    let start = in_flight(&mut pair, 10);
    for _ in 0..10 {
        pair.host.send(pair.flow, &[9; 1460]);
    }
    pair.recv_nothing();
    pair.host.pass_time(RTT * MS);
    let mut sent = Vec::new();
    for end in 4..=10 {
        pair.host.pass_time(MS);
        sack(&mut pair, start, &[(1, end)]);
        sent.extend(pair.recv());
    }
    let first = numbers(&pair, start, &sent);
    assert_eq!(first[0], 0);
    let newest = *first.last().unwrap();
    assert!(newest >= 10, "{first:?}");
    // The retransmission is lost, and what followed it is not.
    pair.host.pass_time(RTT * MS);
    sack(&mut pair, start, &[(1, newest + 1)]);
    let mut again = pair.recv();
    if numbers(&pair, start, &again).first() != Some(&0) {
        let (waited, more) = wait(&mut pair, 1000);
        assert!(waited <= 60, "{waited}");
        again = more;
    }
    assert_eq!(numbers(&pair, start, &again)[0], 0);
    assert_eq!(pair.host.stack.counters().timeouts, 0);
}

#[test]
fn the_reordering_window_grows_when_a_duplicate_shows_it_too_small() {
    // Section 6.2, step 4: by a quarter of the smallest round trip for each
    // round trip with a D-SACK.
    let mut pair = sacking(RTT, false);
    let start = in_flight(&mut pair, 2);
    pair.host.pass_time(RTT * MS);
    sack(&mut pair, start, &[(1, 2)]);
    wait(&mut pair, 1000);
    // The original arrived after all, and then the copy.
    pair.ack_more(2 * u32::from(mss(&pair)));
    pair.host.pass_time(5 * MS);
    sack(&mut pair, start, &[(0, 1)]);
    pair.recv_nothing();
    let start = in_flight(&mut pair, 2);
    pair.host.pass_time(RTT * MS);
    sack(&mut pair, start, &[(1, 2)]);
    let (waited, again) = wait(&mut pair, 1000);
    assert_eq!(numbers(&pair, start, &again), [0]);
    assert!((45..=62).contains(&waited), "{waited}");
}

#[test]
fn blocks_are_no_sign_of_reordering_whatever_their_order() {
    // Section 6.2, step 3: RFC 2018 section 4 has the latest block first.
    let mut pair = sacking(RTT, false);
    let start = in_flight(&mut pair, 10);
    pair.host.pass_time(RTT * MS);
    sack(&mut pair, start, &[(6, 9), (1, 5)]);
    let again = pair.recv();
    assert_eq!(numbers(&pair, start, &again)[0], 0, "at once, without a reordering window");
}

// Tail loss probes (section 7).

#[test]
fn the_tail_is_probed_after_two_round_trips_with_the_last_segment() {
    // Sections 7.2 and 7.3.
    let mut pair = sacking(RTT, false);
    let start = in_flight(&mut pair, 5);
    let (waited, probe) = wait(&mut pair, 1000);
    assert_eq!(numbers(&pair, start, &probe), [4]);
    assert!((195..=210).contains(&waited), "{waited}");
    assert_eq!(pair.host.stack.counters().timeouts, 0);
    // It is not a timeout, and the window is what it was.
    assert!(window(&pair) >= 10 * u32::from(mss(&pair)));
}

#[test]
fn a_probe_sends_new_payload_if_there_is_any() {
    // Section 7.3: even beyond the congestion window.
    let mut pair = sacking(RTT, false);
    let start = in_flight(&mut pair, 10);
    pair.host.send(pair.flow, &[9; 1460]);
    pair.recv_nothing();
    let (waited, probe) = wait(&mut pair, 1000);
    assert_eq!(numbers(&pair, start, &probe), [10]);
    assert!((195..=210).contains(&waited), "{waited}");
}

#[test]
fn a_probe_starts_recovery_of_the_tail() {
    // Section 7.1: the last two were lost; the probe's SACK tells of the first.
    let mut pair = sacking(RTT, false);
    let start = in_flight(&mut pair, 5);
    pair.host.pass_time(RTT * MS);
    pair.ack_more(3 * u32::from(mss(&pair)));
    let (_, probe) = wait(&mut pair, 1000);
    assert_eq!(numbers(&pair, start, &probe), [4]);
    pair.host.pass_time(RTT * MS);
    sack(&mut pair, start, &[(4, 5)]);
    let mut again = pair.recv();
    if again.is_empty() {
        again = wait(&mut pair, 100).1;
    }
    assert_eq!(numbers(&pair, start, &again), [3]);
    assert_eq!(pair.host.stack.counters().timeouts, 0);
}

#[test]
fn a_single_segment_is_probed_in_place_of_its_timeout() {
    // Section 7.2: with the time that a peer may delay its acknowledgement, the
    // probe would come after the timeout, and then comes when that would.
    let mut pair = sacking(RTT, false);
    let start = in_flight(&mut pair, 1);
    let (waited, probe) = wait(&mut pair, 1000);
    assert_eq!(numbers(&pair, start, &probe), [0]);
    assert!((295..=310).contains(&waited), "{waited}");
    assert_eq!(pair.host.stack.counters().timeouts, 0);
    let (waited, again) = wait(&mut pair, 1000);
    assert_eq!(numbers(&pair, start, &again), [0]);
    assert!((295..=310).contains(&waited), "{waited}");
    assert_eq!(pair.host.stack.counters().timeouts, 1);
}

#[test]
fn a_probe_that_is_due_is_given_up_when_nothing_is_in_flight_any_more() {
    // Section 7.2: it is for what is in flight. Its time has come, and before it is
    // sent everything is acknowledged, by a peer that has no room for more.
    let mut pair = sacking(RTT, false);
    in_flight(&mut pair, 1);
    pair.host.pass_time((3 * RTT + 10) * MS);
    pair.window = 0;
    pair.ack_more(u32::from(mss(&pair)));
    pair.host.send(pair.flow, &[9; 100]);
    pair.recv_nothing();
    // It is the persist timer that goes on (RFC 9293 section 3.8.6.1).
    let (_, probe) = wait(&mut pair, 1000);
    assert_eq!(probe[0].data.len(), 0);
    assert_eq!(pair.host.stack.counters().tail_probes_out, 0);
    pair.window = 60000;
    pair.send(ACK, &[]);
    assert_eq!(pair.recv_one().data.len(), 100);
}

#[test]
fn a_fin_that_is_acknowledged_is_not_probed_with() {
    let mut pair = sacking(RTT, false);
    pair.host.close(pair.flow);
    assert_eq!(pair.recv_one().flags & FIN, FIN);
    pair.host.pass_time((3 * RTT + 10) * MS);
    pair.ack_more(1);
    pair.recv_nothing();
    assert_eq!(pair.host.stack.counters().tail_probes_out, 0);
}

#[test]
fn one_probe_and_then_the_timeout() {
    // Section 7.3: only one at a time; 7.2: then the retransmission timer.
    let mut pair = sacking(RTT, false);
    let start = in_flight(&mut pair, 5);
    let (_, probe) = wait(&mut pair, 1000);
    assert_eq!(numbers(&pair, start, &probe), [4]);
    let (_, again) = wait(&mut pair, 5000);
    assert_eq!(numbers(&pair, start, &again), [0]);
    assert_eq!(pair.host.stack.counters().timeouts, 1);
}

#[test]
fn a_probe_that_mended_a_loss_is_a_congestion_event() {
    // Section 7.4.2: acknowledged without a D-SACK, the original was lost.
    let mut pair = sacking(RTT, false);
    let start = in_flight(&mut pair, 5);
    let before = window(&pair);
    pair.host.pass_time(RTT * MS);
    pair.ack_more(4 * u32::from(mss(&pair)));
    let (_, probe) = wait(&mut pair, 1000);
    assert_eq!(numbers(&pair, start, &probe), [4]);
    pair.host.pass_time(RTT * MS);
    pair.ack_more(u32::from(mss(&pair)));
    // Until something later is acknowledged, the original may only be late.
    assert!(window(&pair) >= before);
    in_flight(&mut pair, 1);
    pair.host.pass_time(RTT * MS);
    pair.ack_more(u32::from(mss(&pair)));
    assert!(window(&pair) < before, "{} {before}", window(&pair));
    assert_eq!(pair.host.stack.counters().timeouts, 0);
}

#[test]
fn a_probe_that_was_needless_is_not() {
    // Section 7.4.2: a D-SACK for it, or two acknowledgements.
    let mut pair = sacking(RTT, false);
    let start = in_flight(&mut pair, 5);
    let before = window(&pair);
    let (_, probe) = wait(&mut pair, 1000);
    assert_eq!(numbers(&pair, start, &probe), [4]);
    pair.ack_more(5 * u32::from(mss(&pair)));
    sack(&mut pair, start, &[(4, 5)]);
    pair.host.pass_time(1000 * MS);
    pair.recv_nothing();
    assert!(window(&pair) >= before, "{} {before}", window(&pair));
}

#[test]
fn no_probe_goes_when_all_is_acknowledged() {
    let mut pair = sacking(RTT, false);
    in_flight(&mut pair, 5);
    pair.host.pass_time(RTT * MS);
    pair.ack_more(5 * u32::from(mss(&pair)));
    pair.host.pass_time(60_000 * MS);
    pair.recv_nothing();
}
