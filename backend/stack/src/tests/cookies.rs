//! SYN cookies, and what else keeps a flood of SYNs from others (RFC 4987).

use core::net::{Ipv4Addr, SocketAddr};

use paste_abi::Event;
use proptest::prelude::*;

use super::harness::*;
use super::lossy::Random;
use crate::checksum;
use crate::config::{Config, MS, SEC};
use crate::flow::{FlowState, State};
use crate::stack::Outcome;
use crate::tcp::seq::Seq;
use crate::wire::ethernet;
use crate::wire::tcp::flag::{CWR, ECE};
use crate::wire::tcp::{Options, Timestamps};

/// Every SYN is answered with a cookie.
fn pressed() -> Config {
    Config { syn_per_second: 0, timestamps: true, ecn: true, ..config() }
}

fn stamp(value: u32, echo: u32) -> Option<Timestamps> {
    Some(Timestamps { value, echo })
}

/// The peer sends SYN, and gets a cookie.
fn cookie(pair: &mut Pair, flags: u8, options: Options) -> Seg {
    pair.send_with(SYN | flags, options, &[]);
    let answer = pair.recv_one();
    assert_eq!(answer.flags & (SYN | ACK), SYN | ACK);
    assert_eq!(answer.ack, pair.seq.wrapping_add(1));
    pair.seq = pair.seq.wrapping_add(1);
    pair.ack = answer.seq.wrapping_add(1);
    pair.timestamps = match answer.options.timestamps {
        Some(ts) => stamp(options.timestamps.unwrap().value + 1, ts.value),
        None => None,
    };
    answer
}

fn flow(pair: &mut Pair) -> FlowState {
    let accepted = pair.host.poll().into_iter().find(|s| s.as_event() == Some(Event::Accepted));
    pair.flow = accepted.expect("accepted").flow;
    pair.host.stack.flows[pair.flow.index()].clone()
}

#[test]
fn rfc4987_3_6_a_cookie_keeps_the_mss_and_no_state() {
    let mut pair = Pair::listening(pressed());
    let offer =
        Options { mss: Some(1400), scale: Some(7), sack_permitted: true, ..Options::default() };
    let answer = cookie(&mut pair, ECE | CWR, offer);
    // What could not be remembered is not agreed to.
    assert_eq!(answer.options, Options { mss: Some(1460), ..Options::default() });
    assert_eq!(answer.flags, SYN | ACK);
    assert_eq!((pair.host.stack.flows(), pair.host.stack.promised), (0, 0));
    pair.send(ACK, &[]);
    let flow = flow(&mut pair);
    assert_eq!(flow.state, State::Established);
    assert_eq!((flow.mss, flow.snd_scale, flow.rcv_scale), (1400, 0, 0));
    assert!(!flow.sack() && !flow.timestamps() && !flow.ecn());
    assert_eq!(flow.snd_wnd, u32::from(pair.window));
    pair.host.send(pair.flow, b"hello");
    assert_eq!(pair.recv_one().data, b"hello");
}

#[test]
fn rfc4987_3_6_timestamps_carry_the_other_options() {
    for scale in [None, Some(0), Some(7), Some(14)] {
        for sack_permitted in [false, true] {
            for ecn in [0, ECE | CWR] {
                let mut pair = Pair::listening(pressed());
                let timestamps = stamp(77, 0);
                let offer = Options {
                    mss: Some(1460),
                    scale,
                    sack_permitted,
                    timestamps,
                    ..Options::default()
                };
                let answer = cookie(&mut pair, ecn, offer);
                assert_eq!(answer.options.timestamps.unwrap().echo, 77);
                assert_eq!(answer.options.scale.is_some(), scale.is_some());
                assert_eq!(answer.options.sack_permitted, sack_permitted);
                assert_eq!(answer.flags, SYN | ACK | (ecn & ECE));
                pair.send(ACK, &[]);
                let flow = flow(&mut pair);
                assert_eq!((flow.snd_scale, flow.sack()), (scale.unwrap_or(0), sack_permitted));
                assert_eq!((flow.peer_scales(), flow.ecn()), (scale.is_some(), ecn != 0));
                assert_eq!((flow.timestamps(), flow.ts_recent, flow.mss), (true, 78, 1448));
                assert_eq!(flow.snd_wnd, u32::from(pair.window) << flow.snd_scale);
            }
        }
    }
}

/// RFC 7323 section 5: what a peer gets must not go back.
#[test]
fn a_cookies_timestamp_is_not_ahead_of_those_that_follow() {
    let mut pair = Pair::listening(pressed());
    let offer = Options { scale: Some(3), timestamps: stamp(1, 0), ..Options::default() };
    for _ in 0..60 {
        pair.seq = 1000;
        pair.peer_port += 1;
        let first = cookie(&mut pair, 0, offer).options.timestamps.unwrap().value;
        pair.send(ACK, b"x");
        pair.host.pass_time(45 * MS);
        let second = pair.recv_one().options.timestamps.unwrap().value;
        assert!(second.wrapping_sub(first) < 64 + 46, "{first} {second}");
        pair.host.poll();
    }
}

#[test]
fn a_peers_mss_is_rounded_down_to_one_that_a_cookie_can_say() {
    for (mss, agreed) in [
        (88, 88),
        (535, 88),
        (536, 536),
        (1000, 536),
        (1220, 1220),
        (1299, 1220),
        (1400, 1400),
        (1452, 1440),
        (1460, 1460),
        (9000, 1460),
        (u16::MAX, 1460),
    ] {
        let mut pair = Pair::listening(pressed());
        cookie(&mut pair, 0, Options { mss: Some(mss), ..Options::default() });
        pair.send(ACK, &[]);
        assert_eq!(flow(&mut pair).mss, agreed, "{mss}");
    }
    let mut pair = Pair::listening(pressed());
    cookie(&mut pair, 0, Options::default());
    pair.send(ACK, &[]);
    assert_eq!(flow(&mut pair).mss, 536);
    // Too small for any.
    let mut pair = Pair::listening(pressed());
    pair.send_with(SYN, Options { mss: Some(60), ..Options::default() }, &[]);
    pair.recv_nothing();
}

#[test]
fn the_first_segment_may_bring_payload_with_the_cookie() {
    let mut pair = Pair::listening(pressed());
    cookie(&mut pair, 0, Options { timestamps: stamp(5, 0), scale: Some(9), ..Options::default() });
    assert_eq!(pair.send(PSH | ACK, b"GET /"), Outcome::Readable);
    flow(&mut pair);
    assert_eq!(pair.host.data[&pair.flow], b"GET /");
    pair.host.send(pair.flow, b"200");
    assert_eq!(pair.recv_one().data, b"200");
    pair.seq += 5;
    pair.ack_more(3);
    assert_eq!(pair.unacked(), 0);
}

#[test]
fn the_window_of_a_cookie_is_not_taken_back() {
    let mut pair = Pair::listening(Config { recv_window_max: 4 << 20, ..pressed() });
    let offer = Options { timestamps: stamp(5, 0), scale: Some(9), ..Options::default() };
    let answer = cookie(&mut pair, 0, offer);
    let edge = answer.ack.wrapping_add(u32::from(answer.window));
    pair.send(ACK, b"x");
    pair.host.pass_time(50 * MS);
    let ack = pair.recv_one();
    let flow = flow(&mut pair);
    let right = ack.ack.wrapping_add(u32::from(ack.window) << flow.rcv_scale);
    assert!(right.wrapping_sub(edge) as i32 >= 0);
}

#[test]
fn a_cookie_is_good_for_a_minute_and_not_for_more_than_two() {
    for (age, good) in [(0, true), (59, true), (121, false), (10_000, false)] {
        let mut pair = Pair::listening(pressed());
        cookie(&mut pair, 0, Options::default());
        pair.host.pass_time(age * SEC);
        pair.send(ACK, &[]);
        assert_eq!(pair.host.stack.flows(), u32::from(good), "{age}");
        if !good {
            assert_eq!(pair.recv_one().flags, RST);
        }
    }
}

#[test]
fn a_cookie_that_was_changed_is_refused() {
    let offer = Options { timestamps: stamp(5, 0), scale: Some(9), ..Options::default() };
    let cases: [fn(&mut Pair); 9] = [
        |pair| pair.ack = pair.ack.wrapping_add(1),
        |pair| pair.ack ^= 1 << 28,
        |pair| pair.ack ^= 1 << 31,
        |pair| pair.seq = pair.seq.wrapping_add(1),
        |pair| pair.peer_port += 1,
        |pair| pair.timestamps = None,
        |pair| pair.timestamps.as_mut().unwrap().echo ^= 1,
        |pair| pair.timestamps.as_mut().unwrap().echo ^= 0x10,
        |pair| pair.timestamps.as_mut().unwrap().echo ^= 0x20,
    ];
    for change in cases {
        let mut pair = Pair::listening(pressed());
        cookie(&mut pair, 0, offer);
        change(&mut pair);
        pair.send(ACK, b"payload");
        assert_eq!(pair.recv_one().flags, RST);
        assert_eq!(pair.host.stack.flows(), 0);
        assert_eq!(pair.host.stack.counters().cookies_bad, 1);
    }
}

#[test]
fn a_listener_that_sent_no_cookie_takes_none() {
    let mut pair = Pair::listening(pressed());
    cookie(&mut pair, 0, Options::default());
    // The same cookie, but another listener has the port now.
    let listener = pair.host.stack.listeners.of_port(80).unwrap().name;
    pair.host.stack.unlisten(0, listener).unwrap();
    pair.host.stack.listen(0, 80, 8).unwrap();
    pair.send(ACK, &[]);
    assert_eq!(pair.recv_one().flags, RST);
    assert_eq!(pair.host.stack.counters().cookies_bad, 0);
}

#[test]
fn an_accept_queue_that_is_full_lets_the_peer_try_again() {
    let mut pair = Pair::listening(pressed());
    let mut acks = Vec::new();
    for i in 0..9 {
        pair.seq = 1000;
        pair.peer_port = 1000 + i;
        cookie(&mut pair, 0, Options::default());
        acks.push(pair.ack);
    }
    for (i, ack) in (0..8).zip(&acks) {
        pair.peer_port = 1000 + i;
        pair.ack = *ack;
        pair.send(ACK, &[]);
    }
    pair.peer_port = 1008;
    pair.ack = acks[8];
    assert_eq!(pair.host.stack.flows(), 8);
    pair.send(ACK, b"x");
    pair.recv_nothing();
    assert_eq!(pair.host.stack.counters().drop_backlog, 1);
    // Not even a SYN is answered: it could not be accepted.
    pair.peer_port += 1;
    pair.send(SYN, &[]);
    pair.recv_nothing();
    assert_eq!(pair.host.stack.counters().drop_backlog, 2);
    pair.peer_port -= 1;
    pair.host.poll();
    assert_eq!(pair.send(ACK, b"x"), Outcome::Readable);
}

#[test]
fn cookies_are_off_limited_and_only_for_stations() {
    let mut pair = Pair::listening(Config { syn_cookies: false, ..pressed() });
    pair.send(SYN, &[]);
    pair.recv_nothing();
    let mut pair = Pair::listening(Config { cookie_per_second: 3, ..pressed() });
    for _ in 0..20 {
        pair.send(SYN, &[]);
    }
    assert_eq!(pair.recv().len(), 4);
    pair.host.pass_time(10 * SEC);
    let mut frame = pair.seg(SYN, Options::default(), &[]).frame();
    frame[6] |= 1;
    pair.host.input(&frame);
    pair.recv_nothing();
}

#[test]
fn a_listener_has_a_rate_of_its_own() {
    let config = Config { listener_syn_per_second: 2, ..config() };
    let mut pair = Pair::listening(config);
    pair.host.stack.listen(0, 81, 8).unwrap();
    for port in [80, 80, 80, 80, 80, 81, 81] {
        pair.port = port;
        pair.peer_port += 1;
        pair.send(SYN, &[]);
    }
    let counters = *pair.host.stack.counters();
    assert_eq!((pair.host.stack.flows(), counters.cookies_out), (3 + 2, 2));
    assert_eq!(pair.recv().len(), 7);
}

#[test]
fn half_open_flows_do_not_keep_established_ones_out() {
    let mut pair = Pair::listening(config());
    // Eight that never answer.
    for i in 0..8 {
        pair.peer_port = 1000 + i;
        pair.send(SYN, &[]);
    }
    pair.recv();
    // And eight that do, by cookies.
    for i in 0..8 {
        pair.peer_port = 2000 + i;
        pair.seq = 500;
        cookie(&mut pair, 0, Options::default());
        pair.send(ACK, &[]);
    }
    assert_eq!(pair.host.poll().len(), 8);
    assert_eq!(pair.host.stack.flows(), 16);
}

#[test]
fn the_oldest_half_open_flow_gives_way_when_all_are_in_use() {
    let config = Config { flows_max: 3, syn_cookies: false, ..config() };
    let mut pair = Pair::listening(config);
    pair.open();
    for i in 0..5 {
        pair.peer_port = 1000 + i;
        pair.send(SYN, &[]);
        pair.recv_one();
    }
    assert_eq!(pair.host.stack.counters().half_open_dropped, 3);
    assert_eq!(pair.state(), State::Established);
    // For an active open too, while there is one.
    let mut connect = |port| {
        let remote = SocketAddr::from((PEER, port));
        pair.host.stack.connect(pair.host.now, 0, remote, 0, 0)
    };
    connect(7000).unwrap();
    connect(7001).unwrap();
    assert_eq!(connect(7002), Err(paste_abi::Reason::NoRoom));
    assert_eq!(pair.host.stack.counters().half_open_dropped, 5);
    pair.host.audit();
}

#[test]
fn with_cookies_no_flow_is_taken_from_others_until_one_is_established() {
    let mut pair = Pair::listening(Config { flows_max: 2, ..config() });
    for i in 0..2 {
        pair.peer_port = 1000 + i;
        pair.send(SYN, &[]);
    }
    pair.recv();
    for i in 0..100 {
        pair.peer_port = 2000 + i;
        pair.send(SYN, &[]);
    }
    assert_eq!(pair.recv().len(), 100);
    assert_eq!(pair.host.stack.counters().half_open_dropped, 0);
    pair.peer_port = 3000;
    cookie(&mut pair, 0, Options::default());
    pair.send(ACK, &[]);
    assert_eq!(pair.host.stack.counters().half_open_dropped, 1);
    flow(&mut pair);
}

#[test]
fn the_answer_to_a_syn_is_sent_again_so_many_times() {
    let mut pair = Pair::listening(config());
    pair.send(SYN, &[]);
    let mut answers = 0;
    for _ in 0..100 {
        answers += pair.recv().len();
        pair.host.pass_time(SEC);
    }
    assert_eq!(answers, 1 + 5);
    pair.host.check_empty();
}

/// A SYN of somebody who will not answer.
fn spoofed(pair: &Pair, random: &mut Random) -> Vec<u8> {
    let mut seg = pair.seg(SYN, Options { mss: Some(1460), ..Options::default() }, &[]);
    seg.seq = random.next() as u32;
    seg.src_port = 1 + random.below(65_535) as u16;
    let mut frame = seg.frame();
    let source = Ipv4Addr::from_bits(0x0a00_0000 | (3 + random.below(250) as u32));
    let ip = &mut frame[ethernet::LEN..ethernet::LEN + 20];
    ip[12..16].copy_from_slice(&source.octets());
    ip[10..12].fill(0);
    let sum = !checksum::sum(ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    finish_tcp(&mut frame);
    frame
}

/// What the good client does: a request, and its response.
fn exchange(pair: &mut Pair) {
    assert_eq!(pair.send(PSH | ACK, &[1; 300]), Outcome::Readable);
    pair.seq = pair.seq.wrapping_add(300);
    pair.host.poll();
    pair.host.send(pair.flow, &[2; 700]);
    let port = pair.peer_port;
    let to_us = |seg: &&Seg| seg.dst_port == port && seg.flags & SYN == 0;
    let sent: usize = pair.recv().iter().filter(to_us).map(|seg| seg.data.len()).sum();
    assert_eq!(sent, 700);
    pair.ack_more(700);
    assert_eq!(pair.unacked(), 0);
}

#[test]
fn a_hundred_thousand_spoofed_syns_touch_nobody() {
    for syn_cookies in [true, false] {
        let config = Config { flows_max: 128, syn_cookies, ..config() };
        let mut pair = Pair::listening(config);
        pair.open();
        pair.host.audits = false;
        let mut random = Random(0xf100d);
        for round in 0..1000 {
            for _ in 0..100 {
                let frame = spoofed(&pair, &mut random);
                pair.host.input(&frame);
            }
            exchange(&mut pair);
            pair.host.pass_time(MS);
            if syn_cookies && round % 100 == 99 {
                // Another client finds its way in.
                let known = (pair.peer_port, pair.seq, pair.ack, pair.flow);
                pair.peer_port = 40_001 + round;
                let syn = pair.seg(SYN, Options { mss: Some(1460), ..Options::default() }, &[]);
                pair.host.input(&syn.frame());
                let segs = pair.recv();
                let answer = segs.iter().find(|seg| seg.dst_port == pair.peer_port).unwrap();
                pair.seq = pair.seq.wrapping_add(1);
                pair.ack = answer.seq.wrapping_add(1);
                pair.send(ACK, &[]);
                flow(&mut pair);
                exchange(&mut pair);
                pair.host.audit();
                (pair.peer_port, pair.seq, pair.ack, pair.flow) = known;
            }
        }
        let counters = pair.host.stack.counters();
        assert!(counters.cookies_out + counters.drop_backlog >= 99_000);
        assert_eq!(counters.cookies_out > 0, syn_cookies);
        assert_eq!(counters.retransmits, 0);
        assert!(pair.host.stack.flows() <= 1 + 10 + 8, "{}", pair.host.stack.flows());
        assert_eq!(pair.host.mem.owners.iter().filter(|o| **o == Owner::Stack).count(), 0);
    }
}

proptest! {
    /// Acknowledgements made without the secret open nothing.
    #[test]
    fn nobody_guesses_a_cookie(acks in prop::collection::vec(any::<(u32, u32, u32)>(), 200)) {
        let mut pair = Pair::listening(pressed());
        let offer = Options { timestamps: stamp(5, 0), ..Options::default() };
        cookie(&mut pair, 0, offer);
        let (seq, ack, ts) = (pair.seq, pair.ack, pair.timestamps);
        for (a, b, c) in acks {
            pair.seq = a;
            pair.ack = b;
            pair.timestamps = stamp(9, c);
            pair.send(ACK, &[]);
            prop_assert_eq!(pair.host.stack.flows(), 0);
            pair.recv();
        }
        (pair.seq, pair.ack, pair.timestamps) = (seq, ack, ts);
        pair.send(ACK, &[]);
        prop_assert_eq!(pair.host.stack.flows(), 1);
        prop_assert_eq!(Seq(seq), pair.host.stack.flows[0].rcv_nxt);
    }
}
