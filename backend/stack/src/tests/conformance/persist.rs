//! RFC 9293 section 3.8.6.1: zero-window probes.

use super::wait;
use crate::config::SEC;
use crate::flow::State;
use crate::tests::harness::*;

/// A flow with payload for a peer whose window is closed.
fn blocked() -> Pair {
    let mut pair = Pair::established(config());
    pair.window = 0;
    pair.send(ACK, &[]);
    pair.host.send(pair.flow, b"waits");
    pair.recv_nothing();
    pair
}

#[test]
fn a_zero_window_is_probed_after_the_retransmission_timeout() {
    // MUST-36, SHLD-29.
    let mut pair = blocked();
    let (waited, probes) = wait(&mut pair, 5000);
    assert_eq!(probes.len(), 1);
    assert!((200..=1100).contains(&waited), "{waited}");
}

#[test]
fn the_interval_grows_exponentially_up_to_a_limit() {
    // SHLD-30. The limit is that of retransmission.
    let mut pair = blocked();
    let mut waits = Vec::new();
    for _ in 0..12 {
        let (waited, _) = wait(&mut pair, 200_000);
        waits.push(waited.max(1));
        pair.send(ACK, &[]);
    }
    for pair in waits[1..].windows(2) {
        let ratio = pair[1] as f64 / pair[0] as f64;
        assert!((1.8..2.2).contains(&ratio) || pair[1] >= 59_000, "{waits:?}");
    }
    assert!(waits.iter().all(|w| *w <= 61_000), "{waits:?}");
}

#[test]
fn a_probe_makes_the_peer_answer() {
    // Either a byte that the window has no room for, or a number it has had:
    // both are unacceptable, and so are answered (section 3.10.7.4, first).
    let mut pair = blocked();
    let (_, probes) = wait(&mut pair, 5000);
    let probe = &probes[0];
    let before = probe.seq == pair.ack.wrapping_sub(1) && probe.data.len() <= 1;
    let beyond = probe.seq == pair.ack && probe.data.len() == 1;
    assert!(before || beyond, "{probe:?}");
}

#[test]
fn the_connection_stays_open_while_the_peer_answers() {
    // MUST-37: "a TCP implementation MUST allow the connection to stay open".
    let mut pair = blocked();
    let start = pair.host.now;
    while pair.host.now < start + 3600 * SEC {
        pair.host.pass_time(SEC);
        if !pair.recv().is_empty() {
            pair.send(ACK, &[]);
        }
    }
    assert_eq!(pair.state(), State::Established);
    pair.window = 100;
    pair.send(ACK, &[]);
    assert_eq!(pair.recv_one().data, b"waits");
}

#[test]
fn a_peer_that_does_not_answer_probes_is_given_up() {
    // RFC 6429 section 2: the user timeout ends what nobody answers.
    let mut pair = blocked();
    for _ in 0..400 {
        pair.host.pass_time(SEC);
        pair.recv();
        pair.host.input(&arp_frame(crate::wire::arp::REPLY, PEER, PEER_MAC, HOST));
    }
    assert_eq!(pair.state(), State::Closed);
}

#[test]
fn a_lost_window_update_is_made_up_for() {
    // What probes are for: the peer's update never came.
    let mut pair = blocked();
    wait(&mut pair, 5000);
    pair.window = 5000;
    pair.send(ACK, &[]);
    assert_eq!(pair.recv_one().data, b"waits");
}

#[test]
fn an_open_window_ends_the_backoff() {
    let mut pair = blocked();
    for _ in 0..6 {
        wait(&mut pair, 200_000);
        pair.send(ACK, &[]);
    }
    pair.window = 5000;
    pair.send(ACK, &[]);
    pair.recv_one();
    let (waited, again) = wait(&mut pair, 5000);
    assert_eq!(again[0].data, b"waits");
    assert!(waited <= 1100, "{waited}");
}

#[test]
fn a_window_that_shrank_is_survived() {
    // MUST-34: the peer takes back what it offered.
    let mut pair = Pair::established(config());
    for _ in 0..4 {
        pair.host.send(pair.flow, &[1; 1000]);
    }
    assert_eq!(pair.recv().len(), 4);
    pair.window = 500;
    pair.ack_more(1000);
    assert_eq!(pair.state(), State::Established);
    // What lies beyond is not new payload; it comes again by timeout.
    pair.host.send(pair.flow, b"new");
    pair.recv_nothing();
    let (_, again) = wait(&mut pair, 5000);
    assert_eq!(again[0].seq, pair.ack);
    pair.window = 60_000;
    pair.ack_more(3000);
    assert_eq!(pair.recv_one().data, b"new");
}

#[test]
fn what_comes_after_the_window_shrank_is_acknowledged_within_it() {
    for window in [0, 1, 500, 2999] {
        let mut pair = Pair::established(config());
        for _ in 0..3 {
            pair.host.send(pair.flow, &[1; 1000]);
        }
        assert_eq!(pair.recv().len(), 3);
        pair.window = window;
        pair.send(ACK, &[]);
        // A peer that judges by its new window would take nothing that lies beyond.
        for _ in 0..2 {
            pair.send(PSH | ACK, &[2; 1460]);
            pair.seq += 1460;
            pair.host.poll();
        }
        let ack = pair.recv_one();
        assert_eq!((ack.flags, ack.ack, ack.data.len()), (ACK, pair.seq, 0));
        let ahead = ack.seq.wrapping_sub(pair.ack);
        assert!(ahead == 0 || ahead < u32::from(window), "{ahead} of {window}");
    }
}
