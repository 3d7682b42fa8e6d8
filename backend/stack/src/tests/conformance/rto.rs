//! RFC 6298: the retransmission timer.

use super::{echo, in_flight, numbers, sack, sacking, wait};
use crate::config::MS;
use crate::tcp::seq::Seq;
use crate::tests::harness::*;
use crate::wire::tcp::{Options, SackBlock};

/// Sends `count` small messages, each acknowledged `rtt` ms later.
fn exchange(pair: &mut Pair, count: u32, rtt: u64) {
    for _ in 0..count {
        pair.host.send(pair.flow, b"x");
        pair.recv_one();
        pair.host.pass_time(rtt * MS);
        pair.ack_more(1);
    }
}

#[test]
fn the_timeout_is_a_second_before_there_is_a_measurement() {
    // Section 2.1.
    let mut pair = Pair::listening(config());
    pair.send(SYN, &[]);
    pair.recv_one();
    let (waited, _) = wait(&mut pair, 3000);
    assert!((1000..=1004).contains(&waited), "{waited}");
}

#[test]
fn the_first_measurement_gives_three_times_itself() {
    // Section 2.2: SRTT + max(G, 4 * R / 2).
    let mut pair = Pair::listening(config());
    pair.send(SYN, &[]);
    pair.seq += 1;
    pair.ack = pair.recv_one().seq.wrapping_add(1);
    pair.host.pass_time(300 * MS);
    pair.send(ACK, &[]);
    pair.flow = pair.host.poll()[0].flow;
    pair.host.send(pair.flow, b"x");
    pair.recv_one();
    let (waited, _) = wait(&mut pair, 3000);
    assert!((895..=910).contains(&waited), "{waited}");
}

#[test]
fn a_steady_round_trip_narrows_the_timeout() {
    // Section 2.3: RTTVAR falls by a quarter with each.
    let mut pair = Pair::established(config());
    exchange(&mut pair, 60, 400);
    pair.host.send(pair.flow, b"x");
    pair.recv_one();
    let (waited, _) = wait(&mut pair, 3000);
    assert!((395..=440).contains(&waited), "{waited}");
}

#[test]
fn a_varying_round_trip_widens_it() {
    let mut pair = Pair::established(config());
    for _ in 0..30 {
        exchange(&mut pair, 1, 100);
        exchange(&mut pair, 1, 500);
    }
    pair.host.send(pair.flow, b"x");
    pair.recv_one();
    let (waited, _) = wait(&mut pair, 5000);
    assert!(waited > 700, "{waited}");
}

#[test]
fn a_retransmitted_segment_is_not_measured() {
    // Section 3, Karn's algorithm: the answer to the second copy after 1 ms
    // must not make the round trip 1 ms.
    let mut pair = Pair::established(config());
    exchange(&mut pair, 60, 400);
    for _ in 0..3 {
        pair.host.send(pair.flow, b"x");
        pair.recv_one();
        wait(&mut pair, 5000);
        pair.host.pass_time(MS);
        pair.ack_more(1);
    }
    pair.host.send(pair.flow, b"x");
    pair.recv_one();
    let (waited, _) = wait(&mut pair, 60_000);
    assert!(waited >= 390, "{waited}");
}

#[test]
fn a_path_that_is_slower_than_the_timeout_is_measured_in_the_end() {
    // Section 5, last paragraph: the backed-off timeout stays until there is a
    // measurement, which takes a segment that was sent only once.
    for timestamps in [false, true] {
        let mut pair = sacking(1, timestamps);
        let mut timeouts = Vec::new();
        for _ in 0..8 {
            pair.host.send(pair.flow, b"x");
            let first = pair.recv_one();
            let mut again = 0;
            for _ in 0..70 {
                again += pair.recv().len();
                pair.host.pass_time(10 * MS);
                pair.host.input(&arp_frame(crate::wire::arp::REPLY, PEER, PEER_MAC, HOST));
            }
            // RFC 7323 section 4.3: of the copy that arrived first.
            echo(&mut pair, &first);
            let start = pair.ack;
            pair.ack_more(1);
            for _ in 0..again {
                // RFC 2883 section 4: each of the others is a duplicate.
                let mut options = Options { timestamps: pair.timestamps, ..Options::default() };
                options.sack.push(SackBlock { start: Seq(start), end: Seq(pair.ack) });
                pair.send_with(ACK, options, &[]);
            }
            timeouts.push(pair.host.stack.counters().timeouts);
        }
        assert!(timeouts[0] > 0 && timeouts[4] == timeouts[7], "{timeouts:?}");
    }
}

#[test]
fn what_is_sent_again_is_given_a_round_trip() {
    // RFC 6582 section 3.2, step 3, and RFC 8985 section 7.3: the timer starts
    // again with a retransmission. The round trip is 150 ms and the timeout 200.
    let mut pair = sacking(150, false);
    for _ in 0..40 {
        pair.host.send(pair.flow, b"x");
        pair.recv_one();
        pair.host.pass_time(150 * MS);
        pair.ack_more(1);
    }
    let start = in_flight(&mut pair, 10);
    pair.host.pass_time(150 * MS);
    sack(&mut pair, start, &[(1, 4)]);
    let again = pair.recv();
    assert_eq!(numbers(&pair, start, &again), [0]);
    pair.host.pass_time(149 * MS);
    pair.recv_nothing();
    assert_eq!(pair.host.stack.counters().timeouts, 0);
}

#[test]
fn the_timer_runs_while_anything_is_outstanding_and_only_then() {
    // Section 5.1 and 5.2.
    let mut pair = Pair::established(config());
    exchange(&mut pair, 10, 20);
    pair.host.pass_time(100_000 * MS);
    pair.recv_nothing();
    assert_eq!(pair.host.stack.counters().timeouts, 0);
}

#[test]
fn an_acknowledgement_of_new_data_restarts_it() {
    // Section 5.3.
    let mut pair = Pair::established(config());
    exchange(&mut pair, 60, 400);
    for _ in 0..10 {
        pair.host.send(pair.flow, b"x");
    }
    pair.recv();
    for _ in 0..9 {
        pair.host.pass_time(300 * MS);
        pair.ack_more(1);
        pair.recv_nothing();
    }
    assert_eq!(pair.host.stack.counters().timeouts, 0);
}

#[test]
fn a_timeout_resends_the_earliest_segment_doubles_and_starts_again() {
    // Sections 5.4 to 5.6.
    let mut pair = Pair::established(config());
    exchange(&mut pair, 60, 400);
    let first = pair.ack;
    for _ in 0..3 {
        pair.host.send(pair.flow, &[1; 1460]);
    }
    pair.recv();
    let mut waits = Vec::new();
    for _ in 0..5 {
        let (waited, segs) = wait(&mut pair, 60_000);
        assert_eq!((segs.len(), segs[0].seq), (1, first));
        waits.push(waited as f64);
    }
    for pair in waits.windows(2) {
        assert!((1.9..2.1).contains(&(pair[1] / pair[0])), "{waits:?}");
    }
}

#[test]
fn the_timeout_grows_to_its_maximum_and_not_beyond() {
    // Section 2.5: a maximum of at least 60 s.
    let mut config = config();
    config.timers.user_timeout = 3_600_000 * MS;
    let mut pair = Pair::established(config);
    pair.host.send(pair.flow, b"x");
    pair.recv_one();
    let waits: Vec<u64> = (0..14).map(|_| wait(&mut pair, 100_000).0).collect();
    assert!(waits[13] >= 59_900 && waits.iter().all(|w| *w <= 60_100), "{waits:?}");
}

#[test]
fn after_a_lossy_handshake_the_timeout_is_three_seconds() {
    // Section 5.7.
    let mut pair = Pair::listening(config());
    pair.send(SYN, &[]);
    pair.seq += 1;
    pair.ack = pair.recv_one().seq.wrapping_add(1);
    wait(&mut pair, 3000);
    pair.send(ACK, &[]);
    pair.flow = pair.host.poll()[0].flow;
    pair.host.send(pair.flow, b"x");
    pair.recv_one();
    let (waited, _) = wait(&mut pair, 10_000);
    assert!((2990..=3010).contains(&waited), "{waited}");
}

#[test]
fn the_loss_window_is_one_segment_and_slow_start_follows() {
    // RFC 5681 section 3.1.
    let mut pair = Pair::established(config());
    for _ in 0..10 {
        pair.host.send(pair.flow, &[1; 1460]);
    }
    assert_eq!(pair.recv().len(), 10);
    let (_, again) = wait(&mut pair, 5000);
    assert_eq!(again.len(), 1);
    pair.ack_more(1460);
    let then = pair.recv();
    assert_eq!(then.len(), 2, "one left the network, and one for the acknowledgement");
}

#[test]
fn a_lossy_handshake_leaves_an_initial_window_of_one_segment() {
    // RFC 5681 section 3.1, as RFC 6928 section 2 relaxes it: when the SYN,ACK
    // was lost more than once.
    let mut pair = Pair::listening(config());
    let mss = Options { mss: Some(1460), ..Default::default() };
    pair.send_with(SYN, mss, &[]);
    pair.seq += 1;
    pair.ack = pair.recv_one().seq.wrapping_add(1);
    wait(&mut pair, 10_000);
    wait(&mut pair, 10_000);
    wait(&mut pair, 10_000);
    pair.send(ACK, &[]);
    pair.flow = pair.host.poll()[0].flow;
    for _ in 0..10 {
        pair.host.send(pair.flow, &[1; 1460]);
    }
    assert_eq!(pair.recv().len(), 1);
}

#[test]
fn segments_of_one_buffer_that_went_apart_are_measured_each_by_its_own_time() {
    // RFC 6298 section 3: a sample is of the segment that is acknowledged.
    let mut pair = sacking(100, false);
    pair.window = 1460;
    pair.send(ACK, &[]);
    pair.host.send(pair.flow, &[9; 1900]);
    assert_eq!(pair.recv_one().data.len(), 1460);
    pair.host.pass_time(80 * MS);
    pair.window = 60000;
    pair.send(ACK, &[]);
    assert_eq!(pair.recv_one().data.len(), 440);
    pair.host.pass_time(20 * MS);
    // The first was on its way for 100 ms, the second for 20 ms so far.
    pair.ack_more(1460);
    let measured = |pair: &Pair| pair.host.stack.flows[0].rtt.smallest() / MS;
    assert!(measured(&pair) >= 98, "{}", measured(&pair));
    pair.host.pass_time(50 * MS);
    pair.ack_more(440);
    assert!((68..=71).contains(&measured(&pair)), "{}", measured(&pair));
}
