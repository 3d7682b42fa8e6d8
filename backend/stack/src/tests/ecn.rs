//! ECN: the agreement on it, and the receiver's echo (RFC 3168).

use core::net::SocketAddr;

use super::harness::{ACK, HOST, PEER, PEER_MAC, PSH, Pair, RST, SYN, arp_frame};
use crate::checksum;
use crate::config::{Config, MS, SEC};
use crate::stack::Outcome;
use crate::wire::ip::ecn;
use crate::wire::tcp::flag::{CWR, ECE};
use crate::wire::tcp::{Options, Timestamps};
use crate::wire::{arp, ethernet};

fn config() -> Config {
    Config { ecn: true, ..super::harness::config() }
}

/// Sets the ECN field of an IPv4 frame.
fn mark(mut frame: Vec<u8>, ecn: u8) -> Vec<u8> {
    let ip = &mut frame[ethernet::LEN..ethernet::LEN + 20];
    ip[1] |= ecn;
    ip[10..12].fill(0);
    let sum = !checksum::sum(ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// A flow for which the peer asked for ECN.
fn capable() -> Pair {
    let mut pair = Pair::listening(config());
    pair.send(SYN | ECE | CWR, &[]);
    pair.seq += 1;
    let syn_ack = pair.recv_one();
    assert_eq!(syn_ack.flags, SYN | ACK | ECE);
    pair.ack = syn_ack.seq.wrapping_add(1);
    pair.send(ACK, &[]);
    pair.flow = pair.host.poll()[0].flow;
    pair
}

/// The peer sends payload, marked, and moves on.
fn payload(pair: &mut Pair, flags: u8, ecn: u8) {
    let frame = pair.seg(flags, Options::default(), &[7; 100]).frame();
    assert_eq!(pair.host.input(&mark(frame, ecn)), Outcome::Readable);
    pair.seq += 100;
    pair.host.poll();
}

/// The flags of the next acknowledgement.
fn answer(pair: &mut Pair) -> u8 {
    pair.host.pass_time(50 * MS);
    pair.recv_one().flags
}

#[test]
fn rfc3168_6_1_1_ecn_is_agreed_on_only_if_both_want_it() {
    for (ours, flags, agreed) in [
        (true, ECE | CWR, true),
        (false, ECE | CWR, false),
        (true, ECE, false),
        (true, CWR, false),
        (true, 0, false),
    ] {
        let mut pair = Pair::listening(Config { ecn: ours, ..config() });
        pair.send(SYN | flags, &[]);
        let expected = if agreed { ECE } else { 0 };
        assert_eq!(pair.recv_one().flags, SYN | ACK | expected);
    }
}

/// A host that has sent its SYN, and the peer that got it.
fn connecting(config: Config) -> (Pair, u8) {
    let mut pair = Pair::listening(config);
    let remote = SocketAddr::from((PEER, 8080));
    pair.flow = pair.host.stack.connect(pair.host.now, 0, remote, 0, 77).unwrap();
    pair.host.transmit();
    pair.host.input(&arp_frame(arp::REPLY, PEER, PEER_MAC, HOST));
    let syn = pair.recv_one();
    (pair.port, pair.peer_port) = (syn.src_port, 8080);
    pair.ack = syn.seq.wrapping_add(1);
    (pair, syn.flags)
}

#[test]
fn rfc3168_6_1_1_an_active_open_asks_and_believes_only_a_proper_answer() {
    assert_eq!(connecting(Config { ecn: false, ..config() }).1, SYN);
    for (flags, agreed) in [(ECE, true), (ECE | CWR, false), (0, false)] {
        let (mut pair, syn) = connecting(config());
        assert_eq!(syn, SYN | ECE | CWR);
        pair.send(SYN | ACK | flags, &[]);
        pair.seq += 1;
        assert_eq!(pair.recv_one().flags, ACK);
        payload(&mut pair, ACK, ecn::CE);
        assert_eq!(answer(&mut pair), if agreed { ACK | ECE } else { ACK });
    }
}

#[test]
fn rfc3168_6_1_1_1_a_syn_that_is_sent_again_asks_no_more() {
    let (mut pair, _) = connecting(config());
    pair.host.pass_time(SEC + 10 * MS);
    assert_eq!(pair.recv_one().flags, SYN);
    pair.send(SYN | ACK | ECE, &[]);
    pair.seq += 1;
    pair.recv_one();
    payload(&mut pair, ACK, ecn::CE);
    assert_eq!(answer(&mut pair), ACK);
}

#[test]
fn rfc3168_6_1_1_1_nor_is_a_peer_answered_so_that_asks_no_more() {
    let mut pair = Pair::listening(config());
    pair.send(SYN | ECE | CWR, &[]);
    assert_eq!(pair.recv_one().flags, SYN | ACK | ECE);
    pair.send(SYN, &[]);
    assert_eq!(pair.recv_one().flags, SYN | ACK);
}

#[test]
fn rfc3168_6_1_3_congestion_is_echoed_until_the_peer_has_reduced() {
    let mut pair = capable();
    payload(&mut pair, ACK, ecn::ECT_0);
    assert_eq!(answer(&mut pair), ACK);
    payload(&mut pair, ACK, ecn::CE);
    // At once, and again and again.
    assert_eq!(pair.recv_one().flags, ACK | ECE);
    for _ in 0..3 {
        payload(&mut pair, ACK, ecn::ECT_0);
        assert_eq!(answer(&mut pair), ACK | ECE);
    }
    pair.host.send(pair.flow, b"with payload too");
    assert_eq!(pair.recv_one().flags, ACK | ECE | PSH);
    payload(&mut pair, ACK | CWR, ecn::ECT_0);
    assert_eq!(answer(&mut pair), ACK);
    // Congestion again, in the segment that says so.
    payload(&mut pair, ACK, ecn::CE);
    pair.recv();
    payload(&mut pair, ACK | CWR, ecn::CE);
    assert_eq!(answer(&mut pair), ACK | ECE);
}

#[test]
fn rfc3168_6_1_5_marks_on_what_is_not_accepted_are_not_believed() {
    let mut pair = capable();
    payload(&mut pair, ACK, ecn::ECT_0);
    pair.seq -= 100;
    for ahead in [0, 1 << 20] {
        let mut seg = pair.seg(ACK, Options::default(), &[7; 100]);
        seg.seq = seg.seq.wrapping_add(ahead);
        pair.host.input(&mark(seg.frame(), ecn::CE));
        assert_eq!(answer(&mut pair), ACK);
        pair.host.pass_time(SEC);
    }
    // Neither are those on acknowledgements, which nobody reduces for.
    pair.seq += 100;
    let frame = pair.seg(ACK, Options::default(), &[]).frame();
    pair.host.input(&mark(frame, ecn::CE));
    payload(&mut pair, ACK, ecn::ECT_0);
    assert_eq!(answer(&mut pair), ACK);
}

#[test]
fn a_flow_without_the_agreement_echoes_nothing() {
    let mut pair = Pair::established(config());
    payload(&mut pair, ACK, ecn::CE);
    assert_eq!(answer(&mut pair), ACK);
}

#[test]
fn a_reset_carries_no_echo() {
    let mut pair = capable();
    payload(&mut pair, ACK, ecn::CE);
    pair.recv();
    let host = &mut pair.host;
    host.stack.abort(&mut host.mem, host.now, 0, pair.flow).unwrap();
    assert_eq!(pair.recv_one().flags, RST | ACK);
}

#[test]
fn ecn_goes_with_timestamps_and_sack() {
    let mut pair = Pair::listening(Config { timestamps: true, ..config() });
    let timestamps = Some(Timestamps { value: 5, echo: 0 });
    let options = Options {
        mss: Some(1400),
        scale: Some(2),
        sack_permitted: true,
        timestamps,
        ..Options::default()
    };
    pair.send_with(SYN | ECE | CWR, options, &[]);
    let syn_ack = pair.recv_one();
    assert_eq!(syn_ack.flags, SYN | ACK | ECE);
    assert!(syn_ack.options.sack_permitted && syn_ack.options.timestamps.is_some());
}
