//! How flows end (RFC 9293 sections 3.6 and 3.10.7.4, RFC 5961, RFC 1337).

use paste_abi::slot::{KEEP, Opt};
use paste_abi::{Event, Reason};

use super::harness::*;
use crate::config::{MS, SEC};
use crate::flow::State;
use crate::stack::{Outcome, Tx};
use crate::wire::tcp::Options;

#[test]
fn the_peer_closes_first() {
    let mut pair = Pair::established(config());
    pair.send(FIN | ACK, b"last");
    pair.seq += 5;
    pair.recv_ack(pair.seq);
    assert_eq!(pair.state(), State::CloseWait);
    pair.host.poll();
    assert_eq!(pair.host.data[&pair.flow], b"last");
    assert_eq!(pair.host.kinds(), [Event::Accepted, Event::Fin]);
    pair.host.send(pair.flow, b"still open this way");
    pair.recv_one();
    pair.ack_more(19);
    pair.host.close(pair.flow);
    let fin = pair.recv_one();
    assert_eq!(fin.flags, FIN | ACK);
    assert_eq!(pair.state(), State::LastAck);
    pair.ack_more(1);
    pair.host.poll();
    assert_eq!(pair.host.kinds().last(), Some(&Event::Closed));
    pair.host.check_empty();
}

/// The host has closed first, and the peer has acknowledged it.
fn fin_wait_2() -> Pair {
    let mut pair = Pair::established(config());
    pair.host.close(pair.flow);
    assert_eq!(pair.state(), State::FinWait1);
    assert_eq!(pair.recv_one().flags, FIN | ACK);
    pair.ack_more(1);
    assert_eq!(pair.state(), State::FinWait2);
    pair
}

fn time_wait() -> Pair {
    let mut pair = fin_wait_2();
    pair.send(FIN | ACK, &[]);
    pair.seq += 1;
    pair.recv_ack(pair.seq);
    assert_eq!(pair.state(), State::TimeWait);
    pair
}

#[test]
fn the_guest_closes_first() {
    let mut pair = time_wait();
    pair.host.poll();
    assert_eq!(pair.host.kinds(), [Event::Accepted, Event::Fin, Event::Closed]);
    let stale = pair.host.stack.close(&mut pair.host.mem, pair.host.now, 0, pair.flow);
    assert_eq!(stale, Err(Reason::StaleFlow));
    assert_eq!(pair.host.stack.flows(), 1);
    pair.host.pass_time(59 * SEC);
    assert_eq!(pair.host.stack.time_waits(), 1);
    pair.host.pass_time(2 * SEC);
    pair.host.check_empty();
}

#[test]
fn fin_rides_on_the_last_segment() {
    let mut pair = Pair::established(config());
    pair.host.send(pair.flow, b"a");
    pair.host.send(pair.flow, b"b");
    pair.host.close(pair.flow);
    let segs = pair.recv();
    let flags: Vec<u8> = segs.iter().map(|s| s.flags).collect();
    assert_eq!(flags, [PSH | ACK, FIN | PSH | ACK]);
}

#[test]
fn payload_still_arrives_after_the_guest_has_closed() {
    let mut pair = fin_wait_2();
    assert_eq!(pair.send(ACK, b"more"), Outcome::Readable);
    pair.host.poll();
    assert_eq!(pair.host.data[&pair.flow], b"more");
}

#[test]
fn both_sides_close_at_once() {
    let mut pair = Pair::established(config());
    pair.host.close(pair.flow);
    assert_eq!(pair.recv_one().flags, FIN | ACK);
    pair.send(FIN | ACK, &[]);
    pair.seq += 1;
    assert_eq!(pair.state(), State::Closing);
    pair.recv_ack(pair.seq);
    pair.ack_more(1);
    assert_eq!(pair.state(), State::TimeWait);
    pair.host.poll();
    assert_eq!(pair.host.kinds().last(), Some(&Event::Closed));
}

#[test]
fn fin_with_the_acknowledgement_of_ours_goes_to_time_wait_at_once() {
    let mut pair = Pair::established(config());
    pair.host.close(pair.flow);
    pair.recv_one();
    pair.ack = pair.ack.wrapping_add(1);
    pair.send(FIN | ACK, &[]);
    assert_eq!(pair.state(), State::TimeWait);
}

#[test]
fn an_early_fin_waits_for_what_is_missing() {
    let mut pair = Pair::established(config());
    assert_eq!(pair.send_ahead(3, FIN | ACK, b"def"), Outcome::Held);
    pair.recv_ack(pair.seq);
    assert_eq!(pair.state(), State::Established);
    pair.send(ACK, b"abc");
    pair.recv_ack(pair.seq + 7);
    assert_eq!(pair.state(), State::CloseWait);
    pair.host.poll();
    assert_eq!(pair.host.data[&pair.flow], b"abcdef");
}

#[test]
fn a_lost_fin_is_sent_again() {
    let mut pair = Pair::established(config());
    pair.host.close(pair.flow);
    let fin = pair.recv_one();
    pair.host.pass_time(2 * SEC);
    let again = pair.recv_one();
    assert_eq!((again.flags, again.seq), (FIN | ACK, fin.seq));
}

#[test]
fn time_wait_answers_fin_and_ignores_rst() {
    let mut pair = time_wait();
    pair.host.poll();
    pair.host.pass_time(50 * SEC);
    pair.seq -= 1;
    pair.send(FIN | ACK, &[]);
    pair.seq += 1;
    pair.recv_ack(pair.seq);
    pair.host.pass_time(50 * SEC);
    assert_eq!(pair.host.stack.time_waits(), 1, "its time began anew");
    pair.send(RST, &[]);
    assert_eq!(pair.host.stack.time_waits(), 1);
}

#[test]
fn a_new_connection_may_follow_in_time_wait() {
    let mut pair = time_wait();
    pair.host.poll();
    pair.send(SYN, &[]);
    assert_eq!(pair.recv_one().flags, ACK, "not after the old one's numbers");
    pair.seq += 1000;
    pair.open();
    assert_eq!(pair.host.stack.time_waits(), 0);
    assert_eq!(pair.state(), State::Established);
}

#[test]
fn time_waits_are_limited_and_give_way() {
    let mut pair = Pair::listening(crate::Config { time_wait_max: 2, flows_max: 4, ..config() });
    for i in 0..6 {
        pair.peer_port = 2000 + i;
        pair.open();
        pair.host.close(pair.flow);
        pair.recv_one();
        pair.ack = pair.ack.wrapping_add(1);
        pair.send(FIN | ACK, &[]);
        pair.seq += 1;
        pair.recv();
        pair.host.poll();
        assert!(pair.host.stack.time_waits() <= 2);
    }
    assert_eq!(pair.host.stack.counters().time_wait_recycled, 4);
}

#[test]
fn fin_wait_2_does_not_last_for_ever() {
    let mut pair = fin_wait_2();
    pair.host.pass_time(40 * SEC);
    pair.send(ACK, b"alive");
    pair.host.pass_time(40 * SEC);
    assert_eq!(pair.state(), State::FinWait2);
    pair.host.pass_time(30 * SEC);
    pair.host.poll();
    assert_eq!(pair.host.events.last().unwrap().len, Reason::TimedOut as u16);
    pair.host.check_empty();
}

#[test]
fn only_the_exact_rst_resets() {
    let mut pair = Pair::established(config());
    pair.send(ACK, b"before");
    pair.seq += 6;
    pair.send_ahead(1, RST, &[]);
    pair.recv_ack(pair.seq);
    assert_eq!(pair.host.stack.counters().challenge_acks_out, 1);
    pair.send_ahead(2, RST, &[]);
    pair.recv_nothing();
    pair.send_ahead(-1, RST, &[]);
    pair.send_ahead(65536, RST, &[]);
    pair.recv_nothing();
    assert_eq!(pair.state(), State::Established);
    pair.host.pass_time(SEC);
    pair.send(SYN, &[]);
    pair.recv_ack(pair.seq);
    assert_eq!(pair.state(), State::Established);
    pair.send(RST, &[]);
    pair.host.poll();
    assert_eq!(pair.host.data[&pair.flow], b"before", "what came before is delivered");
    assert_eq!(pair.host.events.last().unwrap().len, Reason::PeerReset as u16);
    pair.host.check_empty();
}

#[test]
fn acknowledgements_of_the_unsent_or_long_past_are_challenged() {
    let mut pair = Pair::established(config());
    pair.ack = pair.ack.wrapping_add(1);
    assert_eq!(pair.send(ACK, b"x"), Outcome::Consumed);
    pair.recv_ack(pair.seq);
    pair.host.pass_time(SEC);
    pair.ack = pair.ack.wrapping_sub(1 + 60001);
    assert_eq!(pair.send(ACK, b"x"), Outcome::Consumed);
    pair.recv_ack(pair.seq);
    assert_eq!(pair.host.stack.counters().drop_bad_ack, 2);
}

#[test]
fn abort_resets_and_returns_kept_buffers() {
    let mut pair = Pair::established(config());
    let keep = Tx { keep: true, cookie: 8, ..Tx::default() };
    let kept = pair.host.try_send(pair.flow, b"kept", keep).unwrap();
    pair.host.send(pair.flow, b"plain");
    pair.recv();
    pair.send(ACK, b"unread");
    let host = &mut pair.host;
    host.stack.abort(&mut host.mem, host.now, 0, pair.flow).unwrap();
    let rst = pair.recv_one();
    assert_eq!(rst.flags, RST | ACK);
    assert_eq!(rst.seq, pair.ack.wrapping_add(9));
    let slots = pair.host.poll();
    let kinds: Vec<_> = slots.iter().map(|s| s.as_event().unwrap()).collect();
    assert_eq!(kinds, [Event::Acked, Event::Reset]);
    assert_eq!((slots[0].buf_idx, slots[0].modifiers), (kept, KEEP));
    assert_eq!(slots[0].len, Reason::Aborted as u16, "not acknowledged");
    pair.host.check_empty();
}

#[test]
fn abort_before_the_neighbour_is_known_leaves_nothing() {
    let mut host = Host::new(config(), 16);
    let remote = core::net::SocketAddr::from((PEER, 80));
    let flow = host.stack.connect(host.now, 0, remote, 0, 1).unwrap();
    host.transmit();
    host.send(flow, b"never goes");
    host.stack.abort(&mut host.mem, host.now, 0, flow).unwrap();
    host.poll();
    assert_eq!(host.kinds(), [Event::Reset]);
    host.check_empty();
    host.input(&arp_frame(crate::wire::arp::REPLY, PEER, PEER_MAC, HOST));
    assert!(host.transmit().is_empty());
}

#[test]
fn closing_a_channel_ends_everything_of_it() {
    let mut pair = Pair::established(config());
    pair.host.reads = false;
    pair.send(ACK, b"delivered");
    pair.seq += 9;
    let buf = pair.host.poll()[0].buf_idx;
    pair.send(ACK, b"readable");
    pair.seq += 8;
    pair.send_ahead(5, ACK, b"held");
    pair.host.send(pair.flow, b"queued");
    let keep = Tx { keep: true, ..Tx::default() };
    pair.host.try_send(pair.flow, b"kept", keep).unwrap();
    let other = pair.host.stack.listen(1, 81, 1).unwrap();
    pair.peer_port += 1;
    pair.send_with(SYN, Options::default(), &[]);
    pair.recv();
    pair.host.stack.close_channel(&mut pair.host.mem, pair.host.now, 0);
    pair.host.audit();
    let rsts = pair.recv();
    assert_eq!(rsts.len(), 2);
    assert!(rsts.iter().all(|s| s.flags & RST != 0));
    assert!(!pair.host.stack.has_slots(0));
    pair.host.give_up(buf);
    pair.host.check_empty();
    pair.host.stack.listen(0, 80, 1).unwrap();
    pair.host.stack.unlisten(1, other).unwrap();
}

#[test]
fn names_of_ended_flows_are_stale() {
    let mut pair = Pair::established(crate::Config { flows_max: 1, ..config() });
    let first = pair.flow;
    pair.send(RST, &[]);
    assert_eq!(pair.host.try_send(first, b"x", Tx::default()), Err(Reason::Closed));
    pair.host.poll();
    assert_eq!(pair.host.try_send(first, b"x", Tx::default()), Err(Reason::StaleFlow));
    pair.open();
    assert_eq!(pair.flow.index(), first.index());
    assert_ne!(pair.flow, first);
    assert_eq!(pair.host.try_send(first, b"x", Tx::default()), Err(Reason::StaleFlow));
}

#[test]
fn a_flow_reset_before_it_was_delivered_is_never_heard_of() {
    let mut pair = Pair::listening(config());
    pair.send(SYN, &[]);
    pair.seq += 1;
    pair.ack = pair.recv_one().seq.wrapping_add(1);
    pair.send(ACK, b"data");
    pair.seq += 4;
    pair.send(RST, &[]);
    assert!(pair.host.poll().is_empty());
    pair.host.check_empty();
}

#[test]
fn keepalive_probes_a_silent_peer_and_gives_up() {
    let mut pair = Pair::established(config());
    pair.host.stack.set_option(pair.host.now, 0, pair.flow, Opt::KeepAlive, 10).unwrap();
    pair.host.pass_time(9 * SEC);
    pair.recv_nothing();
    pair.host.pass_time(SEC + 5 * MS);
    let probe = pair.recv_one();
    assert_eq!((probe.flags, probe.seq), (ACK, pair.ack.wrapping_sub(1)));
    pair.send(ACK, &[]);
    let mut probes = 0;
    for _ in 0..900 {
        pair.host.pass_time(SEC);
        probes += pair.recv().len();
    }
    assert_eq!(probes, 9);
    pair.host.poll();
    assert_eq!(pair.host.events.last().unwrap().len, Reason::TimedOut as u16);
}

#[test]
fn a_fin_before_payload_that_was_sent_already_is_ignored() {
    let mut pair = Pair::established(config());
    pair.send_ahead(10, ACK, b"0123456789");
    pair.recv_ack(pair.seq);
    // In order, and then alone.
    pair.send(FIN | ACK, b"abcde");
    pair.seq += 5;
    pair.recv_ack(pair.seq);
    pair.send(FIN | ACK, &[]);
    pair.recv_ack(pair.seq);
    assert_eq!(pair.host.stack.counters().drop_bad_fin, 2);
    pair.send(ACK, b"fghij");
    pair.seq += 15;
    assert_eq!(pair.state(), State::Established);
    pair.send(FIN | ACK, &[]);
    assert_eq!(pair.state(), State::CloseWait);
    pair.host.poll();
    assert_eq!(pair.host.data[&pair.flow], b"abcdefghij0123456789");
}

#[test]
fn a_time_wait_whose_neighbour_is_silent_sends_nothing_again() {
    let mut pair = Pair::established(config());
    pair.host.close(pair.flow);
    pair.recv();
    pair.ack = pair.ack.wrapping_add(1);
    pair.send(FIN | ACK, &[]);
    pair.recv();
    assert_eq!(pair.state(), State::TimeWait);
    // The peer did not hear, and its neighbour does not answer either.
    let (now, index) = (pair.host.now, pair.flow.index());
    pair.send(FIN | ACK, &[]);
    pair.host.stack.cannot_route(now, index);
    assert!(!pair.host.stack.flows[index].rexmit_at.is_set());
    // Its end by a new connection leaves no timer behind.
    pair.seq = pair.seq.wrapping_add(1000);
    pair.send(SYN, &[]);
    pair.host.poll();
}
