//! RFC 7323 sections 3 to 5: timestamps and PAWS.

use crate::Config;
use crate::config::{MS, SEC};
use crate::flow::State;
use crate::tests::harness::*;
use crate::wire::tcp::{Options, Timestamps};

fn stamp(value: u32) -> Option<Timestamps> {
    Some(Timestamps { value, echo: 0 })
}

/// Whether the host takes `data` from the peer at its place now.
fn takes(pair: &mut Pair, data: &[u8]) -> bool {
    let before = pair.host.stack.flows[0].rcv_nxt;
    pair.send(ACK, data);
    pair.host.stack.flows[0].rcv_nxt != before
}

fn stamping() -> Config {
    Config { timestamps: true, ..config() }
}

/// A flow with timestamps; the peer's clock stands at `value`.
fn established(value: u32) -> Pair {
    let mut pair = Pair::listening(stamping());
    pair.timestamps = stamp(value);
    pair.open();
    pair
}

#[test]
fn it_is_used_only_if_both_syns_had_it() {
    // Section 3.2.
    let mut pair = Pair::listening(stamping());
    pair.open();
    pair.host.send(pair.flow, b"x");
    assert_eq!(pair.recv_one().options.timestamps, None);
    // A stray one is ignored then.
    pair.send_with(ACK, Options { timestamps: stamp(1), ..Options::default() }, b"x");
    pair.send_with(ACK, Options { timestamps: stamp(0), ..Options::default() }, b"x");
    assert_eq!(pair.host.stack.counters().drop_paws, 0);
}

#[test]
fn once_agreed_every_segment_but_rst_has_it() {
    // Section 3.2: MUST be sent in every non-RST segment.
    let mut pair = established(1);
    let mut seen = Vec::new();
    pair.host.send(pair.flow, b"data");
    seen.extend(pair.recv());
    pair.host.pass_time(2 * SEC);
    seen.extend(pair.recv());
    pair.ack_more(4);
    pair.send_ahead(10, ACK, b"early");
    seen.extend(pair.recv());
    pair.host.pass_time(SEC);
    pair.send_ahead(10, RST, &[]);
    seen.extend(pair.recv());
    pair.host.close(pair.flow);
    seen.extend(pair.recv());
    assert!(seen.len() >= 5);
    for seg in seen {
        assert!(seg.options.timestamps.is_some(), "{seg:?}");
    }
}

#[test]
fn a_segment_without_it_is_dropped_silently_unless_rst() {
    // Section 3.2: SHOULD silently drop; MUST NOT abort.
    let mut pair = established(1);
    pair.timestamps = None;
    pair.send(ACK, b"none");
    pair.recv_nothing();
    pair.host.poll();
    assert!(pair.host.data.is_empty());
    assert_eq!(pair.state(), State::Established);
    pair.send(RST, &[]);
    assert_eq!(pair.state(), State::Closed);
}

#[test]
fn the_echo_is_that_of_the_segment_that_caused_the_ack() {
    // Section 4.3: TS.Recent from the segment that begins at Last.ACK.sent.
    let mut pair = established(10);
    pair.timestamps = stamp(20);
    pair.send(ACK, &[0; 1460]);
    pair.seq += 1460;
    pair.timestamps = stamp(30);
    pair.send(ACK, &[0; 1460]);
    pair.seq += 1460;
    // A delayed ACK echoes the earliest of what it acknowledges.
    assert_eq!(pair.recv_one().options.timestamps.unwrap().echo, 20);
    // A hole: the last segment that advanced the window, not the newest.
    pair.timestamps = stamp(40);
    pair.send_ahead(1460, ACK, &[0; 1460]);
    assert_eq!(pair.recv_one().options.timestamps.unwrap().echo, 20);
    // The hole filled: the segment that filled it.
    pair.timestamps = stamp(50);
    pair.send(ACK, &[0; 1460]);
    assert_eq!(pair.recv_one().options.timestamps.unwrap().echo, 50);
}

#[test]
fn the_echo_field_is_zero_without_ack() {
    // Section 3.2: TSecr is valid only if the ACK bit is set; MUST be zero
    // otherwise.
    let mut pair = Pair::listening(stamping());
    let remote = core::net::SocketAddr::from((PEER, 8080));
    pair.host.stack.connect(pair.host.now, 0, remote, 0, 77).unwrap();
    pair.host.transmit();
    pair.host.input(&arp_frame(crate::wire::arp::REPLY, PEER, PEER_MAC, HOST));
    let syn = pair.recv_one();
    assert_eq!(syn.options.timestamps.unwrap().echo, 0);
}

#[test]
fn our_clock_ticks_between_a_millisecond_and_a_second_and_is_monotonic() {
    // Section 5.4.
    let mut pair = established(1);
    pair.host.send(pair.flow, b"x");
    let first = pair.recv_one().options.timestamps.unwrap().value;
    pair.ack_more(1);
    for ms in [1000, 5000, 60_000] {
        pair.host.pass_time(ms * MS);
        pair.host.send(pair.flow, b"x");
        let value = pair.recv_one().options.timestamps.unwrap().value;
        pair.ack_more(1);
        let ticks = u64::from(value.wrapping_sub(first));
        assert!((1..=70_000).contains(&ticks), "{ticks}");
    }
}

#[test]
fn different_peers_see_different_clocks() {
    // Section 5.4 and 7.1: an offset per connection hides the uptime.
    let mut pair = established(1);
    pair.host.send(pair.flow, b"x");
    let one = pair.recv_one().options.timestamps.unwrap().value;
    pair.peer_port += 1;
    pair.seq = 500;
    pair.host.events.clear();
    pair.open();
    pair.host.send(pair.flow, b"x");
    let two = pair.recv_one().options.timestamps.unwrap().value;
    assert!(one.abs_diff(two) > 1000);
}

// PAWS (section 5).

#[test]
fn an_old_segment_is_acknowledged_and_dropped() {
    // Section 5.3, R1: SEG.TSval < TS.Recent.
    let mut pair = established(1000);
    pair.timestamps = stamp(999);
    assert!(!takes(&mut pair, b"old"));
    let ack = pair.recv_one();
    assert_eq!((ack.ack, ack.flags), (pair.seq, ACK));
    // Before the sequence number is looked at: outside the window too.
    pair.host.pass_time(SEC);
    pair.send_ahead(1 << 30, ACK, b"old");
    pair.recv_ack(pair.seq);
    assert_eq!(pair.host.stack.counters().drop_paws, 2);
    pair.timestamps = stamp(1000);
    assert!(takes(&mut pair, b"same"));
}

#[test]
fn a_rst_is_not_subject_to_it() {
    // Section 5.2: RST is exempt.
    let mut pair = established(1000);
    pair.timestamps = stamp(1);
    pair.send(RST, &[]);
    assert_eq!(pair.state(), State::Closed);
}

#[test]
fn the_clock_wraps() {
    // Section 5.2: modulo 2^32, and half of the space apart is the limit.
    let mut pair = established(u32::MAX - 1);
    for (i, value) in [u32::MAX, 0, 1, 1 << 30, 1 << 31, u32::MAX - 5, 3].into_iter().enumerate() {
        pair.timestamps = stamp(value);
        assert!(takes(&mut pair, b"x"), "{i}");
        pair.seq += 1;
        pair.recv();
        pair.host.pass_time(50 * MS);
        pair.recv();
    }
    pair.timestamps = stamp(u32::MAX);
    assert!(!takes(&mut pair, b"x"));
}

#[test]
fn after_24_days_of_silence_the_stored_value_is_void() {
    // Section 5.5.
    let mut pair = established(1000);
    pair.host.pass_time(23 * 24 * 3600 * SEC);
    pair.timestamps = stamp(1);
    assert!(!takes(&mut pair, b"x"));
    pair.host.pass_time(2 * 24 * 3600 * SEC);
    assert!(takes(&mut pair, b"x"));
}

#[test]
fn an_unacceptable_segment_does_not_change_what_is_stored() {
    // Section 4.3 and 5.3, R3: only a segment that is acceptable, or was just before.
    let mut pair = established(1000);
    pair.timestamps = stamp(500_000);
    pair.send_ahead(1 << 30, ACK, b"beyond");
    pair.send_ahead(-1_000_000, ACK, b"before");
    pair.recv();
    pair.host.pass_time(SEC);
    pair.timestamps = stamp(1001);
    assert!(takes(&mut pair, b"x"));
}

#[test]
fn what_came_before_and_comes_again_is_echoed() {
    // Its acknowledgement was lost. With the echo of the first one the peer would
    // take its timeout for a round-trip time, and wait longer each time.
    let mut pair = established(1000);
    pair.timestamps = stamp(1010);
    pair.send(ACK, &[7; 1460]);
    pair.seq += 1460;
    pair.host.pass_time(SEC);
    assert_eq!(pair.recv_one().options.timestamps.unwrap().echo, 1010);
    let again = |pair: &mut Pair, value: u32, ahead: i32, len: usize| {
        pair.timestamps = stamp(value);
        pair.send_ahead(ahead, ACK, &vec![7; len]);
        pair.recv_one().options.timestamps.unwrap().echo
    };
    assert_eq!(again(&mut pair, 1210, -1460, 1460), 1210);
    // Part of it too: without SACK a peer begins anew with what is long here.
    assert_eq!(again(&mut pair, 1300, -1460, 1000), 1300);
    // Who guesses the numbers is not believed.
    pair.ack = pair.ack.wrapping_add(1_000_000);
    assert_eq!(again(&mut pair, 500_000, -1460, 1460), 1300);
    pair.ack = pair.ack.wrapping_sub(1_000_000);
    assert_eq!(again(&mut pair, 500_000, -1_000_000_000, 1460), 1300);
    assert_eq!(again(&mut pair, 1400, -1460, 1460), 1400);
}

#[test]
fn an_attacker_s_ack_does_not_change_what_is_stored() {
    // RFC 5961 section 5.2 comes first: a segment with an impossible ACK.
    let mut pair = established(1000);
    pair.ack = pair.ack.wrapping_add(1_000_000);
    pair.timestamps = stamp(500_000);
    pair.send(ACK, b"x");
    pair.recv();
    pair.ack = pair.ack.wrapping_sub(1_000_000);
    pair.timestamps = stamp(1001);
    assert!(takes(&mut pair, b"x"));
}
