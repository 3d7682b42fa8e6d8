//! How flows begin (RFC 9293 sections 3.5 and 3.10.7.1 to 3.10.7.3).

use core::net::{Ipv4Addr, SocketAddr};

use paste_abi::{Event, Flow, Reason};

use super::harness::*;
use crate::config::{MS, SEC};
use crate::flow::State;
use crate::stack::{Outcome, Tx};
use crate::wire::tcp::{Options, Timestamps};
use crate::wire::{arp, ethernet};

/// A host that has sent its SYN, and the peer that got it.
fn connecting() -> Pair {
    connecting_with(config())
}

fn connecting_with(config: crate::Config) -> Pair {
    let mut pair = Pair::listening(config);
    let remote = SocketAddr::from((PEER, 8080));
    pair.flow = pair.host.stack.connect(pair.host.now, 0, remote, 0, 77).unwrap();
    let frames = pair.host.transmit();
    assert_eq!(frames.len(), 1, "a SYN before the neighbour is known");
    assert_eq!(ethernet::parse(&frames[0]).unwrap().dst, ethernet::BROADCAST);
    assert_eq!(pair.host.input(&arp_frame(arp::REPLY, PEER, PEER_MAC, HOST)), Outcome::Consumed);
    let syn = pair.recv_one();
    assert_eq!((syn.flags, syn.dst_port), (SYN, 8080));
    (pair.port, pair.peer_port) = (syn.src_port, 8080);
    pair.ack = syn.seq.wrapping_add(1);
    pair
}

#[test]
fn a_passive_open_answers_with_no_arp_exchange() {
    let mut pair = Pair::established(config());
    assert_eq!(pair.state(), State::Established);
    assert_eq!(pair.host.stack.counters().accepted, 1);
    assert_eq!(pair.host.stack.counters().arp_requests_out, 0);
    let slot = pair.host.events[0];
    assert_eq!(slot.peer(), SocketAddr::from((PEER, 40000)));
    assert_eq!(slot.offset, 80);
    pair.recv_nothing();
}

#[test]
fn options_are_offered_only_where_the_peer_offers_them() {
    let mut pair = Pair::listening(config());
    pair.host.stack.config.timestamps = true;
    pair.send_with(SYN, Options::default(), &[]);
    let plain = pair.recv_one().options;
    assert_eq!(plain, Options { mss: Some(1460), ..Options::default() });
    pair.peer_port += 1;
    let ts = Some(Timestamps { value: 9, echo: 0 });
    pair.send_with(
        SYN,
        Options { mss: Some(1000), scale: Some(3), timestamps: ts, ..Options::default() },
        &[],
    );
    let full = pair.recv_one().options;
    assert!(full.scale.is_some());
    assert_eq!(full.timestamps.unwrap().echo, 9);
}

#[test]
fn an_active_open_resolves_connects_and_tells() {
    let mut pair = connecting();
    pair.send_with(SYN | ACK, Options { mss: Some(1460), ..Options::default() }, &[]);
    pair.seq += 1;
    pair.recv_ack(1001);
    assert_eq!(pair.state(), State::Established);
    pair.host.poll();
    assert_eq!(pair.host.kinds(), [Event::Connected]);
    assert_eq!(pair.host.events[0].cookie, 77);
    pair.host.send(pair.flow, b"hello");
    assert_eq!(pair.recv_one().data, b"hello");
}

#[test]
fn payload_queued_before_the_handshake_goes_after_it() {
    let mut pair = connecting();
    pair.host.send(pair.flow, b"early");
    pair.host.close(pair.flow);
    pair.host.poll();
    assert_eq!(pair.host.kinds(), [Event::Closed], "a flow that was never opened just ends");

    let mut pair = connecting();
    pair.host.send(pair.flow, b"early");
    pair.recv_nothing();
    pair.send(SYN | ACK, &[]);
    assert_eq!(pair.recv_one().data, b"early");
}

#[test]
fn a_refused_open_is_reset() {
    let mut pair = connecting();
    pair.ack = pair.ack.wrapping_add(1);
    pair.send(RST | ACK, &[]);
    assert_eq!(pair.state(), State::SynSent, "it acknowledges what was never sent");
    pair.ack = pair.ack.wrapping_sub(1);
    pair.send(RST, &[]);
    assert_eq!(pair.state(), State::SynSent);
    pair.send(RST | ACK, &[]);
    pair.host.poll();
    assert_eq!(pair.host.kinds(), [Event::Reset]);
    assert_eq!(pair.host.events[0].len, Reason::Refused as u16);
    pair.host.check_empty();
}

#[test]
fn a_silent_neighbour_makes_the_peer_unreachable() {
    let mut host = Host::new(config(), 16);
    host.stack.connect(host.now, 0, SocketAddr::from((PEER, 80)), 0, 1).unwrap();
    for _ in 0..5 {
        host.transmit();
        host.pass_time(SEC + 10 * MS);
    }
    host.poll();
    assert_eq!(host.stack.counters().arp_requests_out, 3);
    assert_eq!(host.events[0].len, Reason::Unreachable as u16);
    host.check_empty();
}

#[test]
fn a_silent_neighbour_ends_a_simultaneous_open_too() {
    let mut pair = Pair::listening(config());
    let remote = SocketAddr::from((PEER, 8080));
    pair.host.stack.connect(pair.host.now, 0, remote, 4000, 1).unwrap();
    pair.host.transmit();
    (pair.port, pair.peer_port) = (4000, 8080);
    pair.send(SYN, &[]);
    for _ in 0..5 {
        pair.host.transmit();
        pair.host.pass_time(SEC + 10 * MS);
    }
    pair.host.poll();
    assert_eq!(pair.host.events[0].len, Reason::Unreachable as u16);
    pair.host.check_empty();
}

#[test]
fn a_flow_outlives_the_silence_of_its_neighbour() {
    let mut pair = Pair::established(config());
    let (flow, asked) = (pair.flow, |pair: &Pair| pair.host.stack.counters().arp_requests_out);
    pair.host.send(flow, b"a");
    while asked(&pair) == 0 {
        pair.host.transmit();
        pair.host.pass_time(100 * MS);
    }
    // The acknowledgement was only late, but nobody answers the question.
    pair.ack_more(1);
    pair.host.send(flow, b"b");
    while asked(&pair) <= 3 {
        pair.host.transmit();
        pair.host.pass_time(100 * MS);
    }
    pair.host.input(&arp_frame(arp::REPLY, PEER, PEER_MAC, HOST));
    assert_eq!(pair.recv_one().data, b"b");
}

#[test]
fn a_flow_does_not_wait_for_its_neighbour_for_ever() {
    let mut pair = Pair::established(config());
    pair.host.send(pair.flow, b"a");
    while pair.host.stack.counters().arp_requests_out == 0 {
        pair.host.transmit();
        pair.host.pass_time(100 * MS);
    }
    pair.ack_more(1);
    pair.host.send(pair.flow, b"b");
    let began = pair.host.now;
    while pair.host.events.len() < 2 {
        pair.host.transmit();
        pair.host.pass_time(100 * MS);
        pair.host.poll();
    }
    assert_eq!(pair.host.events[1].len, Reason::TimedOut as u16);
    let waited = pair.host.now - began;
    assert!((120 * SEC..200 * SEC).contains(&waited), "{waited}");
}

#[test]
fn a_silent_peer_times_out() {
    let mut pair = connecting();
    let mut syns = 0;
    while pair.host.events.is_empty() {
        let next = pair.host.stack.next_deadline().unwrap();
        pair.host.pass_time(next.saturating_sub(pair.host.now).max(MS));
        let segs = pair.recv();
        assert!(segs.iter().all(|s| s.flags == SYN));
        syns += segs.len();
        pair.host.poll();
    }
    assert!((6..12).contains(&syns), "{syns}");
    assert_eq!(pair.host.events[0].len, Reason::TimedOut as u16);
    pair.host.check_empty();
}

#[test]
fn what_cannot_be_connected_to_is_refused() {
    let mut host = Host::new(config(), 16);
    let mut connect = |ip: [u8; 4], port, local| {
        host.stack.connect(5, 0, SocketAddr::from((ip, port)), local, 0).unwrap_err()
    };
    assert_eq!(connect([0, 0, 0, 0], 80, 0), Reason::BadAddress);
    assert_eq!(connect([224, 0, 0, 1], 80, 0), Reason::BadAddress);
    assert_eq!(connect([10, 0, 0, 1], 80, 0), Reason::BadAddress);
    assert_eq!(connect([10, 0, 0, 2], 0, 0), Reason::BadAddress);
    assert_eq!(connect([10, 0, 9, 2], 80, 0), Reason::Unreachable);
    host.stack.connect(5, 0, SocketAddr::from((PEER, 80)), 999, 0).unwrap();
    let again = host.stack.connect(5, 0, SocketAddr::from((PEER, 80)), 999, 0);
    assert_eq!(again.unwrap_err(), Reason::PortInUse);
}

#[test]
fn a_peer_off_the_link_is_reached_through_the_gateway() {
    let gateway = Ipv4Addr::new(10, 0, 0, 254);
    let mut config = config();
    config.ipv4.as_mut().unwrap().gateway = Some(gateway);
    let mut host = Host::new(config, 16);
    host.stack.connect(host.now, 0, SocketAddr::from(([1, 2, 3, 4], 80)), 0, 0).unwrap();
    let request = host.transmit();
    assert_eq!(arp::parse(&request[0][14..]).unwrap().target, gateway);
    host.input(&arp_frame(arp::REPLY, gateway, [2, 9, 9, 9, 9, 9], HOST));
    let syn = host.transmit();
    assert_eq!(ethernet::parse(&syn[0]).unwrap().dst, [2, 9, 9, 9, 9, 9]);
}

#[test]
fn both_sides_may_open_at_once() {
    let mut pair = connecting();
    pair.send_with(SYN, Options { mss: Some(1460), ..Options::default() }, &[]);
    let syn_ack = pair.recv_one();
    assert_eq!((syn_ack.flags, syn_ack.ack), (SYN | ACK, 1001));
    pair.send(SYN | ACK, &[]);
    assert_eq!(pair.state(), State::Established);
    pair.host.poll();
    assert_eq!(pair.host.kinds(), [Event::Connected]);
}

/// RFC 9293 section 3.5, figure 8, with all that SYNs may say. The window of a
/// SYN is not scaled, and that of a SYN,ACK no more (RFC 7323 section 2.2).
#[test]
fn rfc9293_3_5_options_are_agreed_on_in_a_simultaneous_open() {
    let mut pair = connecting_with(crate::Config { timestamps: true, ..config() });
    let timestamps = Some(Timestamps { value: 9, echo: 0 });
    let offer = Options {
        mss: Some(1000),
        scale: Some(4),
        sack_permitted: true,
        timestamps,
        ..Options::default()
    };
    pair.window = 5000;
    pair.send_with(SYN, offer, &[]);
    let answer = pair.recv_one();
    assert!(answer.options.scale.is_some() && answer.options.sack_permitted);
    assert_eq!(answer.options.timestamps.unwrap().echo, 9);
    pair.send_with(SYN | ACK, offer, &[]);
    pair.seq += 1;
    assert_eq!(pair.state(), State::Established);
    let flow = &pair.host.stack.flows[pair.flow.index()];
    assert!(flow.snd_wnd <= 5000, "{}", flow.snd_wnd);
    assert_eq!((flow.mss, flow.snd_scale, flow.sack()), (1000 - 12, 4, true));
    pair.timestamps = Some(Timestamps { value: 10, echo: 0 });
    pair.send(ACK, b"x");
    let flow = &pair.host.stack.flows[pair.flow.index()];
    assert_eq!(flow.snd_wnd, 5000 << 4);
}

/// RFC 9293 section 3.7.1 and RFC 6691 section 2.
#[test]
fn rfc6691_2_the_mss_is_what_the_peer_takes_less_what_options_take() {
    for (offered, timestamps, payload) in [
        (None, false, 536),
        (Some(1460), false, 1460),
        (Some(9000), false, 1460),
        (Some(1), false, 88),
        (Some(0), false, 88),
        (Some(1000), true, 988),
        (None, true, 524),
    ] {
        let mut pair = Pair::listening(crate::Config { timestamps, ..config() });
        pair.timestamps = timestamps.then_some(Timestamps { value: 1, echo: 0 });
        pair.offers = Options { mss: offered, ..Options::default() };
        pair.open();
        pair.host.send(pair.flow, &[1; 1600]);
        assert_eq!(pair.recv()[0].data.len(), payload, "{offered:?}");
    }
}

#[test]
fn the_window_of_a_syn_ack_is_not_scaled_when_both_open_at_once() {
    let mut pair = connecting();
    pair.window = 4000;
    let options = Options { mss: Some(1460), scale: Some(4), ..Options::default() };
    pair.send_with(SYN, options, &[]);
    pair.recv_one();
    pair.send_with(SYN | ACK, options, &[]);
    assert_eq!(pair.state(), State::Established);
    assert_eq!(pair.host.stack.flows[pair.flow.index()].snd_wnd, 4000);
}

#[test]
fn a_lost_syn_ack_is_sent_again_by_timer_and_by_repeated_syn() {
    let mut pair = Pair::listening(config());
    pair.send(SYN, &[]);
    let first = pair.recv_one();
    pair.host.pass_time(SEC + 5 * MS);
    assert_eq!(pair.recv_one().seq, first.seq);
    pair.send(SYN, &[]);
    let third = pair.recv_one();
    assert_eq!((third.flags, third.seq, third.ack), (SYN | ACK, first.seq, 1001));
    assert_eq!(pair.host.stack.flows(), 1);
}

#[test]
fn a_syn_ack_goes_where_the_latest_syn_came_from() {
    let mut pair = Pair::listening(config());
    let mut damaged = pair.seg(SYN, Options::default(), &[]).frame();
    damaged[6..12].copy_from_slice(&[2, 4, 4, 4, 4, 4]);
    pair.host.input(&damaged);
    let answers = pair.host.transmit();
    assert_eq!(ethernet::parse(&answers[0]).unwrap().dst, [2, 4, 4, 4, 4, 4]);
    pair.send(SYN, &[]);
    let answers = pair.host.transmit();
    assert_eq!(ethernet::parse(&answers[0]).unwrap().dst, PEER_MAC);
}

#[test]
fn a_half_open_flow_is_given_up() {
    let mut pair = Pair::listening(config());
    pair.send(SYN, &[]);
    for _ in 0..200 {
        pair.host.pass_time(SEC);
        pair.recv();
    }
    assert!(pair.host.poll().is_empty());
    pair.host.check_empty();
}

#[test]
fn a_flow_that_was_not_delivered_has_no_name_yet() {
    let mut pair = Pair::listening(config());
    pair.send(SYN, &[]);
    // The first flow of all: its name can be guessed.
    let guessed = Flow::new(0, 0);
    assert_eq!(pair.host.state(guessed), State::SynReceived);
    assert_eq!(pair.host.try_send(guessed, b"early", Tx::default()), Err(Reason::StaleFlow));
    assert_eq!(pair.host.stack.close(&mut pair.host.mem, 0, 0, guessed), Err(Reason::StaleFlow));
}

#[test]
fn the_backlog_is_a_limit_and_delivery_makes_room() {
    let mut pair = Pair::listening(crate::Config { syn_cookies: false, ..config() });
    for i in 0..12 {
        pair.peer_port = 1000 + i;
        pair.send(SYN, &[]);
    }
    assert_eq!(pair.recv().len(), 8);
    assert_eq!(pair.host.stack.counters().drop_backlog, 4);
    // A RST of a half-open flow makes room at once.
    pair.peer_port = 1000;
    pair.seq += 1;
    pair.send(RST, &[]);
    pair.seq -= 1;
    pair.peer_port = 2000;
    pair.send(SYN, &[]);
    let syn_ack = pair.recv_one();
    // Established, but not delivered: it still counts.
    pair.seq += 1;
    pair.ack = syn_ack.seq.wrapping_add(1);
    pair.send(ACK, &[]);
    pair.seq -= 1;
    pair.peer_port = 2001;
    pair.send(SYN, &[]);
    pair.recv_nothing();
    assert_eq!(pair.host.poll().len(), 1);
    pair.send(SYN, &[]);
    assert_eq!(pair.recv().len(), 1);
}

#[test]
fn a_closed_port_answers_with_rst_at_a_limited_rate() {
    let mut pair = Pair::listening(crate::Config { rst_per_second: 3, ..config() });
    pair.port = 81;
    pair.send(SYN, b"abc");
    let rst = pair.recv_one();
    assert_eq!((rst.flags, rst.seq, rst.ack), (RST | ACK, 0, 1004));
    pair.ack = 5555;
    pair.send(ACK, &[]);
    let rst = pair.recv_one();
    assert_eq!((rst.flags, rst.seq), (RST, 5555));
    pair.send(RST, &[]);
    pair.recv_nothing();
    for _ in 0..20 {
        pair.send(ACK, &[]);
    }
    assert_eq!(pair.recv().len(), 2);
    assert_eq!(pair.host.stack.counters().rate_limited, 18);
}

#[test]
fn an_acknowledgement_for_a_listener_is_reset() {
    let mut pair = Pair::listening(config());
    pair.ack = 42;
    pair.send(ACK, b"data");
    let rst = pair.recv_one();
    assert_eq!((rst.flags, rst.seq), (RST, 42));
    assert_eq!(pair.host.stack.flows(), 0);
}

#[test]
fn unlisten_ends_half_open_flows_when_they_speak() {
    let mut pair = Pair::listening(config());
    pair.send(SYN, &[]);
    pair.seq += 1;
    pair.ack = pair.recv_one().seq.wrapping_add(1);
    let listener = Flow::new(0, 0);
    assert_eq!(pair.host.stack.unlisten(1, listener), Err(Reason::StaleFlow));
    pair.host.stack.unlisten(0, listener).unwrap();
    assert_eq!(pair.host.stack.unlisten(0, listener), Err(Reason::StaleFlow));
    pair.send(ACK, &[]);
    assert_eq!(pair.recv_one().flags, RST);
    assert!(pair.host.poll().is_empty());
    pair.host.check_empty();
    pair.host.stack.listen(1, 80, 1).unwrap();
    assert_eq!(pair.host.stack.listen(0, 80, 1), Err(Reason::PortInUse));
}

#[test]
fn arp_answers_for_us_alone_and_learns_only_what_it_asked_for() {
    let mut host = Host::new(config(), 16);
    assert_eq!(host.input(&arp_frame(arp::REQUEST, PEER, PEER_MAC, PEER)), Outcome::Foreign);
    assert_eq!(host.input(&arp_frame(arp::REQUEST, PEER, PEER_MAC, HOST)), Outcome::Consumed);
    let frames = host.transmit();
    let reply = arp::parse(&frames[0][14..]).unwrap();
    assert_eq!((reply.op, reply.sender, reply.sender_mac), (arp::REPLY, HOST, HOST_MAC));
    // The request told us nothing that we keep.
    host.stack.connect(host.now, 0, SocketAddr::from((PEER, 80)), 0, 0).unwrap();
    assert_eq!(arp::parse(&host.transmit()[0][14..]).unwrap().op, arp::REQUEST);
    // Forged with a group address: not believed.
    host.input(&arp_frame(arp::REPLY, PEER, [0xff; 6], HOST));
    assert!(host.transmit().is_empty());
    host.input(&arp_frame(arp::REPLY, PEER, PEER_MAC, HOST));
    assert_eq!(host.transmit().len(), 1);
}

#[test]
fn initial_sequences_differ_between_flows_and_move_with_time() {
    let mut pair = Pair::listening(config());
    pair.send(SYN, &[]);
    let first = pair.recv_one().seq;
    pair.peer_port += 1;
    pair.send(SYN, &[]);
    let second = pair.recv_one().seq;
    assert!(first.abs_diff(second) > 1000);
    pair.peer_port -= 1;
    pair.seq += 1;
    pair.send(RST, &[]);
    pair.seq -= 1;
    pair.host.pass_time(4 * MS);
    pair.send(SYN, &[]);
    assert_eq!(pair.recv_one().seq, first.wrapping_add(1000));
}
