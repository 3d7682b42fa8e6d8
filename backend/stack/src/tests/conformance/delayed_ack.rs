//! RFC 1122 section 4.2.3.2 and RFC 5681 section 4.2: when to acknowledge.

use crate::config::MS;
use crate::tests::harness::*;

const FULL: [u8; 1460] = [3; 1460];

#[test]
fn an_ack_waits_less_than_half_a_second() {
    // RFC 1122: MUST be less than 0.5 s.
    let mut pair = Pair::established(config());
    pair.send(ACK, b"request");
    pair.seq += 7;
    let mut waited = 0;
    let ack = loop {
        if let Some(ack) = pair.recv().pop() {
            break ack;
        }
        assert!(waited < 500);
        pair.host.pass_time(MS);
        waited += 1;
    };
    assert_eq!((ack.ack, ack.data.len()), (pair.seq, 0));
    assert!(waited > 0, "it is delayed");
}

#[test]
fn every_second_full_segment_at_least_is_acknowledged_at_once() {
    // RFC 1122: SHOULD be for at least every second segment.
    let mut pair = Pair::established(config());
    for segment in 1..=20 {
        pair.send(ACK, &FULL);
        pair.seq += 1460;
        let acks = pair.recv();
        assert!(acks.len() <= 1);
        if segment % 2 == 0 {
            assert_eq!(acks[0].ack, pair.seq);
        }
    }
}

#[test]
fn an_ack_rides_on_data() {
    // RFC 1122: what delaying is for.
    let mut pair = Pair::established(config());
    pair.send(ACK, b"request");
    pair.seq += 7;
    pair.host.poll();
    pair.host.send(pair.flow, b"response");
    let response = pair.recv_one();
    assert_eq!((response.ack, &response.data[..]), (pair.seq, &b"response"[..]));
    pair.ack_more(8);
    pair.host.pass_time(600 * MS);
    pair.recv_nothing();
}

#[test]
fn out_of_order_data_is_acknowledged_at_once_each_time() {
    // RFC 5681 section 4.2: SHOULD send an immediate duplicate ACK.
    let mut pair = Pair::established(config());
    for ahead in [1460, 2920, 5840] {
        pair.send_ahead(ahead, ACK, &FULL);
        pair.recv_ack(pair.seq);
    }
    // And when the segment fills in all or part of a gap.
    pair.send(ACK, &FULL);
    pair.recv_ack(pair.seq + 3 * 1460);
    pair.send_ahead(3 * 1460, ACK, &FULL[..100]);
    pair.recv_ack(pair.seq + 3 * 1460 + 100);
}

#[test]
fn a_duplicate_is_acknowledged_at_once() {
    // RFC 9293 section 3.10.7.4, first: an unacceptable segment is answered.
    let mut pair = Pair::established(config());
    pair.send(ACK, b"request");
    pair.seq += 7;
    pair.host.pass_time(100 * MS);
    pair.recv_one();
    pair.send_ahead(-7, ACK, b"request");
    pair.recv_ack(pair.seq);
}

#[test]
fn a_fin_is_acknowledged_at_once() {
    let mut pair = Pair::established(config());
    pair.send(FIN | ACK, &[]);
    pair.seq += 1;
    pair.recv_ack(pair.seq);
}

#[test]
fn pure_acknowledgements_are_not_acknowledged() {
    // RFC 9293 section 3.8.6: or two hosts would never be still.
    let mut pair = Pair::established(config());
    pair.host.send(pair.flow, b"response");
    pair.recv_one();
    pair.ack_more(8);
    pair.send(ACK, &[]);
    pair.host.pass_time(600 * MS);
    pair.recv_nothing();
}

#[test]
fn a_segment_that_was_gathered_on_the_way_counts_as_what_it_was() {
    // RFC 5681 section 4.2: for every second segment of our own MSS, RMSS.
    let mut pair = Pair::established(crate::Config { mtu: 576, ..config() });
    for _ in 0..3 {
        pair.send(ACK | PSH, &[7; 1400]);
        pair.seq += 1400;
        pair.recv_ack(pair.seq);
    }
}

#[test]
fn what_was_gathered_on_the_way_is_acknowledged_once_and_what_was_not_more_often() {
    let mut pair = Pair::established(crate::Config { mtu: 300, ..config() });
    pair.send(ACK | PSH, &[7; 1400]);
    pair.seq += 1400;
    pair.recv_ack(pair.seq);
    for _ in 0..2 {
        pair.send(ACK | PSH, &[7; 1400]);
        pair.seq += 1400;
    }
    let acks = pair.recv();
    assert!(acks.len() > 1, "one for all would be missed with all");
    assert_eq!(acks.last().unwrap().ack, pair.seq);
}

#[test]
fn a_window_that_no_field_can_say_needs_no_update() {
    // RFC 9293 section 3.8.6.2.2: only a peer that may be waiting is told. This
    // one does not scale, so that its window is as large as it gets.
    let mut pair = Pair::listening(config());
    pair.host = Host::new(config(), 4096);
    pair.host.stack.listen(0, 80, 8).unwrap();
    pair.open();
    let mut acks = 0;
    for _ in 0..300 {
        pair.send(ACK | PSH, &[7; 1460]);
        pair.seq += 1460;
        pair.host.poll();
        acks += pair.recv().len();
    }
    assert_eq!(acks, 150);
}
