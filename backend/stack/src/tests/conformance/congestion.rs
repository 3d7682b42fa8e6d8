//! RFC 5681, RFC 3042, RFC 6928, RFC 7661: what the window does on the wire.
//! The algorithms themselves are tested beside `tcp::congestion`.

use super::{in_flight, mss, numbers, sack, sacking, wait, window};
use crate::config::{CongestionControl, MS, SEC};
use crate::tests::harness::*;
use crate::{Config, Stack};

/// The peer acknowledges the host's segments two by two, as they come, until
/// all that is queued has been sent. Gives the bytes of each round trip.
fn drain(pair: &mut Pair, rtt_ms: u64) -> Vec<u32> {
    let mut rounds = Vec::new();
    loop {
        let segs = pair.recv();
        if segs.is_empty() {
            return rounds;
        }
        rounds.push(segs.iter().map(|s| s.data.len() as u32).sum());
        pair.host.pass_time(rtt_ms * MS);
        for two in segs.chunks(2) {
            pair.ack_more(two.iter().map(|s| s.data.len() as u32).sum());
        }
    }
}

fn queue(pair: &mut Pair, count: u32) {
    for _ in 0..count {
        pair.host.send(pair.flow, &vec![9; usize::from(mss(pair))]);
    }
}

#[test]
fn the_first_flight_is_the_initial_window() {
    // RFC 6928 section 2: ten segments of 1460 bytes.
    let mut pair = sacking(100, false);
    queue(&mut pair, 30);
    assert_eq!(pair.recv().len(), 10);
    pair.host.pass_time(50 * MS);
    pair.recv_nothing();
}

#[test]
fn slow_start_doubles_each_round_trip() {
    // RFC 5681 section 3.1. The peer's window is no bound here.
    let mut pair = sacking(100, false);
    pair.host.stack.flows[0].snd_scale = 7;
    pair.send(ACK, &[]);
    queue(&mut pair, 130);
    let rounds = drain(&mut pair, 100);
    assert_eq!(rounds[..3], [14_600, 29_200, 58_400]);
}

#[test]
fn no_more_is_in_flight_than_the_peer_offers() {
    // RFC 5681 section 3.1: the minimum of both windows.
    let mut pair = sacking(100, false);
    pair.window = 5 * 1460;
    pair.send(ACK, &[]);
    queue(&mut pair, 30);
    for flight in drain(&mut pair, 100) {
        assert!(flight <= 5 * 1460);
    }
}

#[test]
fn limited_transmit_sends_two_new_segments() {
    // RFC 3042 section 2: one for each of the first two duplicates.
    for with_sack in [false, true] {
        let mut pair = if with_sack { sacking(100, false) } else { Pair::established(config()) };
        let start = in_flight(&mut pair, 10);
        queue(&mut pair, 10);
        pair.recv_nothing();
        pair.host.pass_time(100 * MS);
        let mut sent = Vec::new();
        for end in 2..4 {
            if with_sack {
                sack(&mut pair, start, &[(1, end)]);
            } else {
                pair.send(ACK, &[]);
            }
            sent.extend(pair.recv());
        }
        assert_eq!(numbers(&pair, start, &sent), [10, 11], "SACK: {with_sack}");
    }
}

#[test]
fn an_idle_flow_starts_from_the_restart_window() {
    // RFC 5681 section 4.1: min(IW, cwnd) after a timeout without sending.
    let mut pair = sacking(100, false);
    queue(&mut pair, 100);
    drain(&mut pair, 100);
    assert!(window(&pair) > 20 * 1460);
    pair.host.pass_time(10 * SEC);
    queue(&mut pair, 30);
    assert_eq!(pair.recv().len(), 10);
}

#[test]
fn a_flow_that_is_not_limited_by_its_window_does_not_open_it() {
    // RFC 7661 section 4.1.
    let mut pair = sacking(100, false);
    for _ in 0..200 {
        pair.host.send(pair.flow, b"a small response");
        pair.recv_one();
        pair.host.pass_time(100 * MS);
        pair.ack_more(16);
        pair.host.poll();
    }
    assert_eq!(window(&pair), 14_600);
}

#[test]
fn a_timeout_leaves_one_segment_and_the_threshold() {
    // RFC 5681 section 3.1: the loss window; slow start up to half of the
    // flight (NewReno) or 0.7 of it (RFC 9438 section 4.6).
    for (congestion, threshold) in [(CongestionControl::NewReno, 5), (CongestionControl::Cubic, 7)]
    {
        let mut pair = Pair::established(Config { congestion, ..config() });
        queue(&mut pair, 10);
        assert_eq!(pair.recv().len(), 10);
        let (_, again) = wait(&mut pair, 5000);
        assert_eq!(again.len(), 1);
        assert_eq!(window(&pair), 1460);
        pair.host.pass_time(100 * MS);
        let mut acked = 0;
        while acked < 10 && window(&pair) < threshold * 1460 {
            pair.ack_more(1460);
            acked += 1;
            pair.recv();
            assert!(window(&pair) <= (1 + acked) * 1460);
        }
        assert_eq!(window(&pair), threshold * 1460);
        assert!(!pair.host.stack.flows[0].congestion.in_slow_start());
    }
}

#[test]
fn a_peer_that_splits_acknowledgements_gains_nothing() {
    // RFC 3465 section 2: bytes count, not acknowledgements.
    let mut pair = sacking(100, false);
    in_flight(&mut pair, 10);
    pair.host.pass_time(100 * MS);
    for _ in 0..1460 {
        pair.ack_more(1);
    }
    assert!(window(&pair) <= 11 * 1460, "{}", window(&pair));
}

#[test]
fn the_algorithm_is_the_operator_s_choice() {
    assert_eq!(config().congestion, CongestionControl::Cubic);
    let both = [CongestionControl::Cubic, CongestionControl::NewReno].map(|congestion| {
        let mut pair = Pair::established(config());
        pair.host.stack = Stack::new(Config { congestion, ..config() }, 256, [7; 16]);
        pair.host.stack.listen(0, 80, 8).unwrap();
        pair.seq = 5000;
        pair.open();
        let start = in_flight(&mut pair, 10);
        for _ in 0..3 {
            pair.send(ACK, &[]);
        }
        pair.recv();
        pair.ack = start.wrapping_add(10 * 1460);
        pair.send(ACK, &[]);
        window(&pair)
    });
    assert_eq!(both, [7 * 1460, 5 * 1460]);
}
