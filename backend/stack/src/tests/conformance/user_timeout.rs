//! RFC 9293 section 3.8.3: connection failures.

use paste_abi::Reason;
use paste_abi::slot::Opt;

use crate::config::SEC;
use crate::flow::State;
use crate::tests::harness::*;

/// Seconds until the flow is gone, if it goes within `most`.
fn life(pair: &mut Pair, most: u64) -> Option<u64> {
    for second in 1..=most {
        pair.host.pass_time(SEC);
        pair.recv();
        // The link works: it is the peer that is silent.
        pair.host.input(&arp_frame(crate::wire::arp::REPLY, PEER, PEER_MAC, HOST));
        pair.recv();
        if pair.state() == State::Closed {
            return Some(second);
        }
    }
    None
}

#[test]
fn unacknowledged_data_ends_the_flow_after_at_least_100_seconds() {
    // MUST-20, R2.
    let mut pair = Pair::established(config());
    pair.host.send(pair.flow, b"lost");
    pair.recv_one();
    let life = life(&mut pair, 600).expect("given up");
    assert!((100..300).contains(&life), "{life}");
    pair.host.poll();
    assert_eq!(pair.host.events.last().unwrap().len, Reason::TimedOut as u16);
    pair.host.check_empty();
}

#[test]
fn the_application_sets_it() {
    // MUST-21.
    for seconds in [10, 500] {
        let mut pair = Pair::established(config());
        let option = Opt::UserTimeout;
        pair.host.stack.set_option(pair.host.now, 0, pair.flow, option, seconds * 1000).unwrap();
        pair.host.send(pair.flow, b"lost");
        pair.recv_one();
        let life = life(&mut pair, 1000).expect("given up");
        // And not with the next timeout, which backs off to a minute.
        assert!((seconds..=seconds + 1).contains(&life), "{life}");
    }
}

#[test]
fn progress_begins_it_anew() {
    let mut pair = Pair::established(config());
    for _ in 0..5 {
        pair.host.send(pair.flow, b"x");
    }
    pair.recv();
    for _ in 0..4 {
        assert_eq!(life(&mut pair, 80), None);
        pair.ack_more(1);
    }
    assert!(life(&mut pair, 600).is_some());
}

#[test]
fn an_idle_connection_has_none() {
    let mut pair = Pair::established(config());
    pair.host.pass_time(30 * 24 * 3600 * SEC);
    assert_eq!(pair.state(), State::Established);
}

#[test]
fn a_syn_is_tried_for_at_least_three_minutes() {
    // MUST-23.
    let mut pair = Pair::listening(config());
    let remote = core::net::SocketAddr::from((PEER, 8080));
    pair.flow = pair.host.stack.connect(pair.host.now, 0, remote, 0, 77).unwrap();
    pair.host.transmit();
    pair.host.input(&arp_frame(crate::wire::arp::REPLY, PEER, PEER_MAC, HOST));
    pair.recv_one();
    let life = life(&mut pair, 600).expect("given up");
    assert!(life >= 180, "{life}");
}

#[test]
fn acknowledgements_of_nothing_new_are_no_progress() {
    // A peer that sends payload and never acknowledges ours.
    let mut pair = Pair::established(config());
    pair.host.send(pair.flow, b"lost");
    pair.recv_one();
    let mut alive = 0;
    while pair.state() != State::Closed {
        alive += 1;
        assert!(alive < 600);
        pair.host.pass_time(SEC);
        pair.send(ACK, b"x");
        pair.seq += 1;
        pair.host.poll();
        pair.recv();
    }
    assert!(alive >= 100, "{alive}");
}

/// A flow that has been idle for long, and whose neighbour has moved away.
fn neighbour_gone() -> Pair {
    let mut pair = Pair::established(config());
    pair.host.pass_time(3600 * SEC);
    pair.host.stack.flows[0].mac = None;
    pair.host.send(pair.flow, b"late");
    pair.recv_nothing();
    pair
}

#[test]
fn payload_for_a_neighbour_that_is_gone_is_given_up_in_the_end() {
    let mut pair = neighbour_gone();
    let mut life = 0;
    while pair.state() != State::Closed {
        life += 1;
        assert!(life < 600);
        pair.host.pass_time(SEC);
        pair.recv_nothing();
    }
    assert!(life >= 100, "{life}");
}

#[test]
fn payload_goes_when_the_neighbour_is_back() {
    let mut pair = neighbour_gone();
    for _ in 0..30 {
        pair.host.pass_time(SEC);
        pair.recv_nothing();
    }
    let mut sent = Vec::new();
    for _ in 0..40 {
        pair.host.input(&arp_frame(crate::wire::arp::REPLY, PEER, PEER_MAC, HOST));
        sent.extend(pair.recv());
        pair.host.pass_time(SEC);
    }
    assert_eq!(sent[0].data, b"late");
    pair.ack_more(4);
    assert_eq!(pair.unacked(), 0);
}
