//! RFC 3168 section 6.1.2 and 6.1.4 to 6.1.6: what a sender marks, and what it
//! does about an echo. The agreement and the receiver are tested in
//! `tests::ecn`.

use super::{mss, sack, wait, window};
use crate::Config;
use crate::config::MS;
use crate::tests::harness::*;
use crate::wire::tcp::Options;
use crate::wire::tcp::flag::{CWR, ECE};

const NOT_ECT: u8 = 0;
const ECT_0: u8 = 2;

/// A flow whose peer agreed to ECN and SACK.
fn capable() -> Pair {
    let mut pair = Pair::listening(Config { ecn: true, ..config() });
    let offer = Options { mss: Some(1460), sack_permitted: true, ..Options::default() };
    pair.send_with(SYN | ECE | CWR, offer, &[]);
    pair.seq += 1;
    let (syn_ack, ecn) = sent(&mut pair).remove(0);
    assert_eq!(ecn, NOT_ECT, "section 6.1.1: a SYN,ACK is not ECT");
    pair.ack = syn_ack.seq.wrapping_add(1);
    pair.host.pass_time(100 * MS);
    pair.send(ACK, &[]);
    pair.flow = pair.host.poll()[0].flow;
    pair
}

/// What the host sends now, each with the ECN field of its IPv4 header.
fn sent(pair: &mut Pair) -> Vec<(Seg, u8)> {
    let frames = pair.host.transmit();
    frames.iter().filter_map(|f| Some((Seg::read(f)?, f[15] & 3))).collect()
}

/// The host sends `count` full segments of new payload.
fn payload(pair: &mut Pair, count: u32) -> Vec<(Seg, u8)> {
    for _ in 0..count {
        pair.host.send(pair.flow, &vec![9; usize::from(mss(pair))]);
    }
    sent(pair)
}

#[test]
fn new_payload_is_ect_and_nothing_else_is() {
    let mut pair = capable();
    for (_, ecn) in payload(&mut pair, 4) {
        assert_eq!(ecn, ECT_0);
    }
    // Section 6.1.4: pure acknowledgements.
    pair.send_ahead(5, ACK, b"early");
    assert_eq!(sent(&mut pair)[0].1, NOT_ECT);
    // Section 6.1.5: what is sent again.
    let start = pair.ack;
    sack(&mut pair, start, &[(1, 4)]);
    let again = sent(&mut pair);
    assert!(!again.is_empty());
    for (seg, ecn) in again {
        assert!(seg.data.is_empty() || ecn == NOT_ECT);
    }
    pair.ack_more(4 * 1460);
    // Section 6.1.6: window probes.
    pair.window = 0;
    pair.send(ACK, &[]);
    pair.host.send(pair.flow, b"waits");
    sent(&mut pair);
    let mut probes = Vec::new();
    while probes.is_empty() {
        pair.host.pass_time(100 * MS);
        probes = sent(&mut pair);
    }
    assert_eq!(probes[0].1, NOT_ECT);
}

#[test]
fn without_the_agreement_nothing_is_ect() {
    let mut pair = Pair::established(Config { ecn: true, ..config() });
    for (seg, ecn) in payload(&mut pair, 4) {
        assert_eq!((ecn, seg.flags & (ECE | CWR)), (NOT_ECT, 0));
    }
    // An echo means nothing then.
    let before = window(&pair);
    pair.ack = pair.ack.wrapping_add(1460);
    pair.send(ACK | ECE, &[]);
    assert!(window(&pair) >= before);
}

#[test]
fn an_echo_is_answered_as_a_loss_is_and_confirmed_once() {
    // Section 6.1.2: the window is reduced, and CWR is on the first new segment
    // after that.
    let mut pair = capable();
    payload(&mut pair, 10);
    let before = window(&pair);
    pair.ack = pair.ack.wrapping_add(1460);
    pair.send(ACK | ECE, &[]);
    assert!(window(&pair) <= before * 7 / 10, "{} {before}", window(&pair));
    assert!(sent(&mut pair).is_empty(), "nothing is sent again");
    pair.ack_more(9 * 1460);
    let more = payload(&mut pair, 3);
    let cwr: Vec<bool> = more.iter().map(|(seg, _)| seg.flags & CWR != 0).collect();
    assert_eq!(cwr, [true, false, false]);
}

#[test]
fn a_window_is_reduced_once_however_many_echoes_there_are() {
    // Section 6.1.2: at most once per window of data.
    let mut pair = capable();
    payload(&mut pair, 10);
    pair.ack = pair.ack.wrapping_add(1460);
    pair.send(ACK | ECE, &[]);
    let reduced = window(&pair);
    for _ in 0..9 {
        pair.host.pass_time(MS);
        pair.ack = pair.ack.wrapping_add(1460);
        pair.send(ACK | ECE, &[]);
        // "the TCP sender should not increase the congestion window" either.
        assert_eq!(window(&pair), reduced);
    }
    // What acknowledges the segment with CWR is of another window.
    payload(&mut pair, 5);
    pair.ack = pair.ack.wrapping_add(1460);
    pair.send(ACK | ECE, &[]);
    assert!(window(&pair) < reduced);
}

#[test]
fn a_loss_in_the_same_window_reduces_no_further() {
    // Section 6.1.2: "the TCP sender should not reduce again".
    let mut pair = capable();
    payload(&mut pair, 10);
    let before = window(&pair);
    let start = pair.ack;
    sack(&mut pair, start, &[(1, 4)]);
    sent(&mut pair);
    for _ in 0..3 {
        pair.send(ACK | ECE, &[]);
    }
    pair.ack = start.wrapping_add(10 * 1460);
    pair.send(ACK | ECE, &[]);
    let after = window(&pair);
    assert!(after >= before * 6 / 10, "{after} {before}");
}

#[test]
fn a_timeout_is_confirmed_too() {
    // Section 6.1.2: CWR after a reduction for any reason.
    let mut pair = capable();
    payload(&mut pair, 4);
    while pair.host.stack.counters().timeouts == 0 {
        wait(&mut pair, 5000);
    }
    pair.ack_more(4 * 1460);
    let more = payload(&mut pair, 1);
    assert_ne!(more[0].0.flags & CWR, 0);
}
