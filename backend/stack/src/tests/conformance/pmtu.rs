//! Path MTU discovery: RFC 1191 and RFC 8201, RFC 5927 for who is believed, RFC
//! 4821 and RFC 8899 for paths that say nothing. And the other errors: RFC 1122
//! section 4.2.3.9, RFC 5461, RFC 6633.

use core::net::Ipv4Addr;

use super::{in_flight, mss, sacking, wait, window};
use crate::checksum;
use crate::config::{MS, SEC};
use crate::flow::State;
use crate::tests::harness::*;
use crate::wire::{ethernet, icmp, ipv4};

const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);

/// An ICMP error from a router about this segment of the host's, with the 8
/// bytes of it that RFC 792 has quoted.
fn error(about: &Seg, kind: u8, code: u8, mtu: u16) -> Vec<u8> {
    let quoted = about.frame();
    let mut frame = vec![0u8; 14 + 20 + 8 + 28];
    ethernet::write(&mut frame, &HOST_MAC, &PEER_MAC, None, ethernet::IPV4);
    ipv4::write(&mut frame[14..], ROUTER, HOST, ipv4::ICMP, 0, 36);
    (frame[34], frame[35]) = (kind, code);
    frame[40..42].copy_from_slice(&mtu.to_be_bytes());
    let len = about.data.len() + 20;
    ipv4::write(&mut frame[42..], HOST, PEER, ipv4::TCP, 0, len);
    frame[62..70].copy_from_slice(&quoted[34..42]);
    let sum = !checksum::sum(&frame[34..]);
    frame[36..38].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn too_big(about: &Seg, mtu: u16) -> Vec<u8> {
    error(about, icmp::UNREACHABLE, icmp::FRAGMENTATION_NEEDED, mtu)
}

/// A flow with ten full segments in flight.
fn flying() -> (Pair, Vec<Seg>) {
    let mut pair = sacking(100, false);
    for _ in 0..10 {
        pair.host.send(pair.flow, &[7; 1460]);
    }
    let segs = pair.recv();
    assert_eq!(segs.len(), 10);
    (pair, segs)
}

#[test]
fn every_datagram_may_not_be_fragmented() {
    // RFC 1191 section 3: DF is set.
    let mut pair = sacking(100, false);
    pair.host.send(pair.flow, &[7; 1460]);
    pair.host.send(pair.flow, &[7; 10]);
    for frame in pair.host.transmit() {
        assert_ne!(frame[20] & 0x40, 0);
        assert_eq!((frame[20] & 0x3f, frame[21]), (0, 0));
    }
}

#[test]
fn segments_shrink_to_the_mtu_that_a_router_tells() {
    // RFC 1191 section 3, and section 6.5: sent again at once.
    let (mut pair, segs) = flying();
    pair.host.input(&too_big(&segs[0], 1280));
    assert_eq!(mss(&pair), 1240);
    let again = pair.recv();
    assert_eq!(again[0].seq, segs[0].seq);
    assert!(again.iter().all(|s| s.data.len() <= 1240));
    // New payload too, with what the peer now gets.
    pair.ack_more(10 * 1460);
    pair.host.send(pair.flow, &[7; 1460]);
    assert!(pair.recv().iter().all(|s| s.data.len() <= 1240));
}

#[test]
fn it_is_no_sign_of_congestion() {
    // RFC 1191 section 6.5, RFC 8201 section 5.2: neither the timer nor the
    // window in segments is changed.
    let (mut pair, segs) = flying();
    let before = window(&pair) / u32::from(mss(&pair));
    pair.host.input(&too_big(&segs[0], 1280));
    pair.recv();
    pair.ack_more(10 * 1460);
    assert!(window(&pair) / u32::from(mss(&pair)) >= before);
    assert_eq!(pair.host.stack.counters().timeouts, 0);
}

#[test]
fn an_error_must_quote_what_is_in_flight() {
    // RFC 5927 section 4.1: SND.UNA =< SEG.SEQ < SND.NXT.
    let (mut pair, segs) = flying();
    pair.ack_more(3 * 1460);
    let past = Seg { seq: segs[0].seq, ..segs[0].clone() };
    let future = Seg { seq: segs[9].seq.wrapping_add(1460), ..segs[0].clone() };
    let other = Seg { dst_port: 9, ..segs[5].clone() };
    for seg in [past, future, other] {
        pair.host.input(&too_big(&seg, 1280));
        assert_eq!(mss(&pair), 1460);
    }
    pair.host.input(&too_big(&segs[5], 1280));
    assert_eq!(mss(&pair), 1240);
}

#[test]
fn an_mtu_larger_than_ours_or_absurdly_small_is_not_believed() {
    // RFC 1191 section 3: a host must not raise its estimate by it; below 68 no
    // router goes.
    let (mut pair, segs) = flying();
    for mtu in [1500, 1501, 9000, u16::MAX] {
        pair.host.input(&too_big(&segs[0], mtu));
        assert_eq!(mss(&pair), 1460, "{mtu}");
    }
    for mtu in [1, 20, 40, 67, 68, 100] {
        pair.host.input(&too_big(&segs[0], mtu));
        assert!(mss(&pair) >= 512, "{mtu}: {}", mss(&pair));
    }
}

#[test]
fn a_router_that_tells_no_mtu_makes_segments_smaller_all_the_same() {
    // RFC 1191 section 5: older routers have zero there.
    let (mut pair, segs) = flying();
    pair.host.input(&too_big(&segs[0], 0));
    let after = mss(&pair);
    assert!((512..1460).contains(&after), "{after}");
}

#[test]
fn a_path_that_swallows_full_segments_is_found_out() {
    // RFC 4821 section 7.7, RFC 8899 section 4.3: black hole detection.
    let mut pair = sacking(100, false);
    in_flight(&mut pair, 4);
    let (mut passed, mut waited) = (0, 0);
    while passed < 4 * 1460 {
        let (ms, segs) = wait(&mut pair, 120_000);
        waited += ms;
        // Only what fits into 1300 bytes gets through.
        for seg in segs {
            if seg.data.len() <= 1260 && seg.seq == pair.ack {
                pair.ack = pair.ack.wrapping_add(seg.data.len() as u32);
                passed += seg.data.len();
            }
        }
        pair.host.pass_time(100 * MS);
        pair.send(ACK, &[]);
        assert!(waited < 100_000, "{passed} bytes in {waited} ms");
    }
    assert!(mss(&pair) <= 1260);
    assert_eq!(pair.state(), State::Established);
}

#[test]
fn small_segments_that_are_lost_say_nothing_of_the_mtu() {
    let mut pair = sacking(100, false);
    pair.host.send(pair.flow, b"small");
    for _ in 0..5 {
        wait(&mut pair, 120_000);
    }
    assert_eq!(mss(&pair), 1460);
}

#[test]
fn a_path_that_has_widened_is_used_again_in_time() {
    // RFC 1191 section 6.3, RFC 8201 section 5.3: not before 5 minutes are
    // over, RFC 8899 section 5.1.1: after ten.
    let (mut pair, segs) = flying();
    pair.host.input(&too_big(&segs[0], 1280));
    pair.recv();
    pair.ack_more(10 * 1460);
    for second in 0..1200 {
        pair.host.pass_time(SEC);
        pair.host.send(pair.flow, &[7; 1460]);
        let sent = pair.recv();
        let bytes: usize = sent.iter().map(|s| s.data.len()).sum();
        let largest = sent.iter().map(|s| s.data.len()).max().unwrap();
        assert!(second > 300 || largest <= 1240, "after {second} s");
        pair.host.pass_time(100 * MS);
        pair.ack_more(bytes as u32);
        pair.host.poll();
    }
    assert_eq!(mss(&pair), 1460);
}

// Other errors.

#[test]
fn no_error_ends_an_established_flow() {
    // RFC 1122 section 4.2.3.9 with RFC 5927 section 5.2: all are soft once a
    // connection is synchronized, since anybody can forge them.
    let (mut pair, segs) = flying();
    for code in 0..16 {
        if code == icmp::FRAGMENTATION_NEEDED {
            continue;
        }
        pair.host.input(&error(&segs[0], icmp::UNREACHABLE, code, 0));
        pair.host.input(&error(&segs[0], icmp::TIME_EXCEEDED, code, 0));
        pair.host.input(&error(&segs[0], 12, code, 0));
    }
    assert_eq!(pair.state(), State::Established);
    assert_eq!(mss(&pair), 1460);
    pair.recv_nothing();
    pair.ack_more(10 * 1460);
    assert_eq!(pair.unacked(), 0);
}

#[test]
fn source_quench_is_ignored() {
    // RFC 6633 section 3.
    let (mut pair, segs) = flying();
    let before = window(&pair);
    pair.host.input(&error(&segs[0], 4, 0, 0));
    assert_eq!(window(&pair), before);
}

#[test]
fn a_hard_error_ends_an_open_and_a_soft_one_does_not() {
    // RFC 1122 section 4.2.3.9: codes 2 to 4 are hard, 0, 1 and 5 soft.
    for (code, ends) in [(0, false), (1, false), (5, false), (2, true), (3, true)] {
        let mut pair = Pair::listening(config());
        let remote = core::net::SocketAddr::from((PEER, 8080));
        pair.flow = pair.host.stack.connect(pair.host.now, 0, remote, 0, 77).unwrap();
        pair.host.transmit();
        pair.host.input(&arp_frame(crate::wire::arp::REPLY, PEER, PEER_MAC, HOST));
        let syn = pair.recv_one();
        pair.host.input(&error(&syn, icmp::UNREACHABLE, code, 0));
        let state = pair.state();
        assert_eq!(state, if ends { State::Closed } else { State::SynSent }, "code {code}");
    }
}
