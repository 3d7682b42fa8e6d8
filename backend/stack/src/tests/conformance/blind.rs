//! RFC 5961: what an attacker can do who does not see the connection.

use crate::config::{MS, SEC};
use crate::flow::State;
use crate::tests::harness::*;

/// A flow with a window and bytes before and behind, and the window.
fn attacked() -> (Pair, u32) {
    let mut pair = Pair::established(config());
    pair.send(ACK, b"before");
    pair.seq += 6;
    pair.host.poll();
    pair.host.send(pair.flow, b"response");
    pair.recv_one();
    pair.ack_more(8);
    pair.host.pass_time(SEC);
    let window = pair.host.stack.flows[0].rcv_wnd();
    (pair, window)
}

#[test]
fn a_blind_rst_must_hit_rcv_nxt_itself() {
    // Section 3.2: outside the window dropped without a word, inside but for
    // RCV.NXT challenged, at RCV.NXT believed.
    let (mut pair, window) = attacked();
    for ahead in [-1, -100_000, window as i32, window as i32 + 1, i32::MIN] {
        pair.send_ahead(ahead, RST, &[]);
        pair.send_ahead(ahead, RST | ACK, &[]);
        pair.recv_nothing();
    }
    for ahead in [1, 2, window as i32 / 2, window as i32 - 1] {
        pair.send_ahead(ahead, RST, &[]);
        pair.recv_ack(pair.seq);
        pair.host.pass_time(SEC);
    }
    assert_eq!(pair.state(), State::Established);
    pair.send(RST, &[]);
    assert_eq!(pair.state(), State::Closed);
}

#[test]
fn a_rst_with_payload_or_ack_is_judged_by_its_number_alone() {
    let (mut pair, _) = attacked();
    pair.ack = pair.ack.wrapping_add(12345);
    pair.send(RST | ACK, b"because");
    assert_eq!(pair.state(), State::Closed);
    assert!(pair.host.data[&pair.flow].ends_with(b"before"));
}

#[test]
fn a_blind_syn_does_not_reset() {
    // Section 4.2, step 2: a challenge ACK, irrespective of the number.
    let (mut pair, window) = attacked();
    for ahead in [0, 1, window as i32 - 1, window as i32, -1, -100_000, i32::MIN] {
        for flags in [SYN, SYN | ACK, SYN | FIN | ACK] {
            pair.send_ahead(ahead, flags, b"x");
            pair.recv_ack(pair.seq);
            pair.host.pass_time(SEC);
        }
    }
    assert_eq!(pair.state(), State::Established);
}

#[test]
fn injected_data_needs_an_ack_in_the_last_window() {
    // Section 5.2: SND.UNA - MAX.SND.WND =< SEG.ACK =< SND.NXT, otherwise
    // dropped with an ACK.
    let (mut pair, _) = attacked();
    let (una, max) = (pair.ack, u32::from(pair.window));
    let bad = [una.wrapping_add(1), una.wrapping_sub(max + 1), una ^ (1 << 31)];
    for ack in bad {
        pair.ack = ack;
        pair.send(ACK, b"injected");
        pair.recv_ack(pair.seq);
        pair.host.pass_time(SEC);
        pair.host.poll();
        assert!(!pair.host.data[&pair.flow].ends_with(b"injected"));
    }
    for ack in [una, una.wrapping_sub(max)] {
        pair.ack = ack;
        pair.send(ACK, b"old ack");
        pair.seq += 7;
    }
    pair.host.poll();
    assert!(pair.host.data[&pair.flow].ends_with(b"old ackold ack"));
}

#[test]
fn challenges_are_limited_per_flow_and_so_tell_nothing_of_others() {
    // Section 7, with one limit for each flow: a shared one is a side channel.
    let mut pair = Pair::established(config());
    let mut other = pair.seg(ACK, Default::default(), &[]);
    pair.peer_port += 1;
    pair.seq = 9000;
    pair.open();
    let mut challenges = 0;
    for _ in 0..1000 {
        pair.send_ahead(1, RST, &[]);
        pair.send_ahead(1, SYN, &[]);
        challenges += pair.recv().len();
        pair.host.pass_time(MS);
    }
    assert!((1..=10).contains(&challenges), "{challenges} in a second");
    // The other flow's first challenge goes out all the same.
    other.flags = RST;
    other.seq += 1;
    pair.host.input(&other.frame());
    assert_eq!(pair.recv_one().dst_port, other.src_port);
}
