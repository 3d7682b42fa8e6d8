//! RFC 9293 section 3.8.4: keepalive.

use paste_abi::Reason;
use paste_abi::slot::Opt;

use crate::config::SEC;
use crate::flow::State;
use crate::tests::harness::*;

fn with_keepalive(seconds: u64) -> Pair {
    let mut pair = Pair::established(config());
    pair.host.stack.set_option(pair.host.now, 0, pair.flow, Opt::KeepAlive, seconds).unwrap();
    pair
}

#[test]
fn it_is_off_by_default() {
    // MUST-25.
    let mut pair = Pair::established(config());
    for _ in 0..24 * 60 {
        pair.host.pass_time(60 * SEC);
        pair.recv_nothing();
    }
    assert_eq!(pair.state(), State::Established);
}

#[test]
fn probes_go_only_when_nothing_was_heard_for_the_interval() {
    // MUST-26.
    let mut pair = with_keepalive(7200);
    for _ in 0..3 {
        pair.host.pass_time(7100 * SEC);
        pair.recv_nothing();
        pair.send(ACK, &[]);
        pair.recv_nothing();
    }
    pair.host.pass_time(7201 * SEC);
    let probe = pair.recv_one();
    assert_eq!((probe.flags, probe.seq), (ACK, pair.ack.wrapping_sub(1)));
}

#[test]
fn the_peer_answers_a_probe_by_the_rules() {
    // The probe's number lies before the peer's window, so that it must answer.
    let mut pair = Pair::established(config());
    pair.send_ahead(-1, ACK, &[]);
    pair.recv_ack(pair.seq);
    // One with a byte of garbage, from older hosts.
    pair.host.pass_time(SEC);
    pair.send_ahead(-1, ACK, b"\0");
    pair.recv_ack(pair.seq);
    assert!(pair.host.data.is_empty());
}

#[test]
fn one_probe_without_an_answer_is_not_the_end() {
    // MUST-29: a probe may be lost.
    let mut pair = with_keepalive(10);
    pair.host.pass_time(11 * SEC);
    pair.recv_one();
    pair.host.pass_time(76 * SEC);
    pair.recv_one();
    assert_eq!(pair.state(), State::Established);
    pair.send(ACK, &[]);
    // Everything begins anew.
    pair.host.pass_time(9 * SEC);
    pair.recv_nothing();
    pair.host.pass_time(2 * SEC);
    pair.recv_one();
}

#[test]
fn a_peer_that_never_answers_is_given_up_after_all_probes() {
    let mut pair = with_keepalive(10);
    let mut probes = 0;
    for _ in 0..1000 {
        pair.host.pass_time(SEC);
        // What gives up may tell the peer.
        probes += pair.recv().iter().filter(|s| s.flags == ACK).count();
    }
    assert_eq!(probes, 9);
    pair.host.poll();
    assert_eq!(pair.host.events.last().unwrap().len, Reason::TimedOut as u16);
    pair.host.check_empty();
}

#[test]
fn a_peer_that_has_rebooted_is_found_out() {
    let mut pair = with_keepalive(10);
    pair.host.pass_time(11 * SEC);
    let probe = pair.recv_one();
    pair.seq = probe.ack;
    pair.send(RST, &[]);
    pair.host.poll();
    assert_eq!(pair.host.events.last().unwrap().len, Reason::PeerReset as u16);
}
