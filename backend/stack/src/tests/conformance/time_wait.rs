//! TIME-WAIT: RFC 9293 sections 3.4.2 and 3.6.1, RFC 1337, RFC 6191.

use crate::Config;
use crate::config::SEC;
use crate::flow::State;
use crate::tests::harness::*;
use crate::wire::tcp::{Options, Timestamps};

/// A flow in TIME-WAIT whose peer's last timestamp was `stamp`.
fn time_wait(stamp: Option<u32>) -> Pair {
    let timestamps = stamp.map(|value| Timestamps { value, echo: 0 });
    let mut pair = Pair::listening(Config { timestamps: true, ..config() });
    pair.timestamps = timestamps;
    pair.open();
    pair.host.close(pair.flow);
    pair.recv_one();
    pair.ack = pair.ack.wrapping_add(1);
    pair.send(FIN | ACK, &[]);
    pair.seq += 1;
    pair.recv_one();
    assert_eq!(pair.state(), State::TimeWait);
    pair
}

/// A SYN `ahead` of the old connection's numbers; gives what comes back.
fn syn(pair: &mut Pair, ahead: i32, stamp: Option<u32>) -> Seg {
    let timestamps = stamp.map(|value| Timestamps { value, echo: 0 });
    let mut seg = pair.seg(SYN, Options { timestamps, ..Options::default() }, &[]);
    seg.seq = seg.seq.wrapping_add_signed(ahead);
    pair.host.input(&seg.frame());
    pair.recv_one()
}

#[test]
fn it_lasts_for_twice_the_maximum_segment_lifetime() {
    // Section 3.6.1, here 60 s.
    let mut pair = time_wait(None);
    pair.host.poll();
    pair.host.pass_time(59 * SEC);
    assert_eq!(pair.host.stack.flows(), 1);
    pair.host.pass_time(2 * SEC);
    pair.host.check_empty();
}

#[test]
fn a_fin_again_is_acknowledged_and_restarts_it() {
    // Section 3.10.7.4, eighth.
    let mut pair = time_wait(None);
    pair.host.poll();
    pair.host.pass_time(50 * SEC);
    pair.send_ahead(-1, FIN | ACK, &[]);
    pair.recv_ack(pair.seq);
    pair.host.pass_time(50 * SEC);
    assert_eq!(pair.host.stack.flows(), 1);
    pair.host.pass_time(11 * SEC);
    pair.host.check_empty();
}

#[test]
fn it_is_not_assassinated() {
    // RFC 1337 section 3: old data is acknowledged, a RST is ignored.
    let mut pair = time_wait(None);
    pair.send_ahead(-1, RST, &[]);
    pair.send(RST, &[]);
    pair.send_ahead(1, RST, &[]);
    assert_eq!(pair.state(), State::TimeWait);
}

#[test]
fn a_syn_with_a_later_timestamp_opens_anew() {
    // RFC 6191 section 2, whatever the sequence number.
    for ahead in [1, -100_000, 1 << 30] {
        let mut pair = time_wait(Some(1000));
        let answer = syn(&mut pair, ahead, Some(1001));
        assert_eq!(answer.flags, SYN | ACK, "{ahead}");
        assert_eq!(answer.ack, pair.seq.wrapping_add_signed(ahead) + 1);
    }
}

#[test]
fn a_syn_with_the_same_timestamp_needs_a_later_number() {
    // RFC 6191 section 2.
    let mut pair = time_wait(Some(1000));
    let answer = syn(&mut pair, 1, Some(1000));
    assert_eq!(answer.flags, SYN | ACK);
    let mut pair = time_wait(Some(1000));
    let answer = syn(&mut pair, -10, Some(1000));
    assert_eq!(answer.flags, ACK);
    assert_eq!(pair.state(), State::TimeWait);
}

#[test]
fn a_syn_with_an_earlier_timestamp_is_old() {
    // RFC 6191 section 2: processed as in TIME-WAIT.
    for ahead in [-10, 1, 1 << 20] {
        let mut pair = time_wait(Some(1000));
        let answer = syn(&mut pair, ahead, Some(999));
        assert_eq!((answer.flags, answer.ack), (ACK, pair.seq), "{ahead}");
        assert_eq!(pair.state(), State::TimeWait);
    }
}

#[test]
fn without_timestamps_the_number_decides() {
    // RFC 6191 section 2: where either has none; RFC 9293 section 3.6.1 (a).
    for old in [None, Some(1000)] {
        let mut pair = time_wait(old);
        assert_eq!(syn(&mut pair, 1, None).flags, SYN | ACK, "{old:?}");
        // RFC 7323 section 3.2 drops what lacks the timestamp; otherwise it is
        // acknowledged.
        let mut pair = time_wait(old);
        let seg = pair.seg(SYN, Options::default(), &[]);
        pair.host.input(&Seg { seq: seg.seq.wrapping_sub(10), ..seg }.frame());
        assert!(pair.recv().iter().all(|s| s.flags == ACK), "{old:?}");
        assert_eq!(pair.state(), State::TimeWait);
    }
    // Timestamps are new: RFC 6191 section 2, "if the previous incarnation did
    // not use timestamps" the new SYN's are enough.
    let mut pair = time_wait(None);
    assert_eq!(syn(&mut pair, 1, Some(5)).flags, SYN | ACK);
}

#[test]
fn the_new_connection_s_numbers_are_beyond_the_old_one_s() {
    // RFC 9293 section 3.6.1 (MAY-2): "an initial sequence number larger than
    // the largest it used on the previous connection incarnation".
    let mut pair = time_wait(Some(1000));
    let last = pair.ack;
    let answer = syn(&mut pair, 1, Some(1001));
    assert!(answer.seq.wrapping_sub(last) as i32 > 0, "{} {last}", answer.seq);
}
