//! RFC 9293 section 3.10.7, SEGMENT ARRIVES: every state meets every kind of
//! segment.

use core::net::SocketAddr;

use crate::flow::State;
use crate::tests::harness::*;
use crate::wire::arp;

use State::*;

/// The states that have seen a SYN from the peer.
const SYNCHRONIZED: [State; 7] =
    [Established, FinWait1, FinWait2, CloseWait, Closing, LastAck, TimeWait];

/// A passive open that got as far as `state`. The peer has acknowledged
/// everything but, in FIN-WAIT-1, CLOSING and LAST-ACK, the FIN.
fn passive(state: State) -> Pair {
    if state == SynReceived {
        let mut pair = Pair::listening(config());
        pair.send(SYN, &[]);
        pair.seq += 1;
        pair.ack = pair.recv_one().seq.wrapping_add(1);
        assert_eq!(pair.state(), SynReceived);
        return pair;
    }
    let mut pair = Pair::established(config());
    let fin = |pair: &mut Pair| {
        pair.host.close(pair.flow);
        assert_eq!(pair.recv_one().flags, FIN | ACK);
    };
    let peer_fin = |pair: &mut Pair| {
        pair.send(FIN | ACK, &[]);
        pair.seq += 1;
        pair.recv_ack(pair.seq);
    };
    match state {
        Established => {}
        FinWait1 => fin(&mut pair),
        FinWait2 => {
            fin(&mut pair);
            pair.ack_more(1);
        }
        CloseWait => peer_fin(&mut pair),
        Closing => {
            fin(&mut pair);
            peer_fin(&mut pair);
        }
        LastAck => {
            peer_fin(&mut pair);
            fin(&mut pair);
        }
        TimeWait => {
            fin(&mut pair);
            pair.ack_more(1);
            peer_fin(&mut pair);
        }
        _ => unreachable!("no passive open is in {state:?}"),
    }
    assert_eq!(pair.state(), state);
    pair.recv_nothing();
    pair
}

/// An active open in SYN-SENT.
fn syn_sent() -> Pair {
    let mut pair = Pair::listening(config());
    let remote = SocketAddr::from((PEER, 8080));
    pair.flow = pair.host.stack.connect(pair.host.now, 0, remote, 0, 77).unwrap();
    pair.host.transmit();
    pair.host.input(&arp_frame(arp::REPLY, PEER, PEER_MAC, HOST));
    let syn = pair.recv_one();
    (pair.port, pair.peer_port) = (syn.src_port, 8080);
    pair.ack = syn.seq.wrapping_add(1);
    assert_eq!(pair.state(), SynSent);
    pair
}

/// What the host will send next, as the peer knows it.
fn next(pair: &Pair, state: State) -> u32 {
    let fin = matches!(state, FinWait1 | Closing | LastAck);
    pair.ack.wrapping_add(u32::from(fin))
}

/// Expects an acknowledgement that says where the host is and nothing else:
/// `<SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>`.
fn expect_ack(pair: &mut Pair, state: State) {
    let seq = next(pair, state);
    let ack = pair.recv_one();
    assert_eq!((ack.flags, ack.seq, ack.ack), (ACK, seq, pair.seq), "{state:?}");
    assert!(ack.data.is_empty());
}

// CLOSED (3.10.7.1).

#[test]
fn closed_answers_all_but_rst_with_rst() {
    let mut pair = Pair::listening(config());
    pair.port = 81;
    pair.ack = 5000;
    for flags in [RST, RST | ACK] {
        pair.send(flags, b"data");
        pair.recv_nothing();
    }
    // <SEQ=SEG.ACK><CTL=RST>
    for flags in [ACK, SYN | ACK, FIN | ACK, PSH | ACK] {
        pair.send(flags, b"data");
        let rst = pair.recv_one();
        assert_eq!((rst.flags, rst.seq), (RST, 5000));
    }
    // <SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>
    for (flags, len) in [(0, 4), (SYN, 5), (FIN, 5), (SYN | FIN, 6)] {
        pair.send(flags, b"data");
        let rst = pair.recv_one();
        assert_eq!((rst.flags, rst.seq, rst.ack), (RST | ACK, 0, 1000 + len));
    }
}

// LISTEN (3.10.7.2).

#[test]
fn listen_ignores_rst_resets_ack_answers_syn_and_drops_the_rest() {
    let mut pair = Pair::listening(config());
    pair.ack = 5000;
    pair.send(RST, &[]);
    pair.send(RST | ACK, &[]);
    pair.send(SYN | RST, &[]);
    pair.recv_nothing();
    for flags in [ACK, SYN | ACK, FIN | ACK] {
        pair.send(flags, &[]);
        let rst = pair.recv_one();
        assert_eq!((rst.flags, rst.seq), (RST, 5000));
    }
    for flags in [0, FIN, PSH] {
        pair.send(flags, b"data");
        pair.recv_nothing();
    }
    assert_eq!(pair.host.stack.flows(), 0);
    pair.send(SYN, &[]);
    let syn_ack = pair.recv_one();
    assert_eq!((syn_ack.flags, syn_ack.ack), (SYN | ACK, 1001));
}

// SYN-SENT (3.10.7.3).

#[test]
fn syn_sent_resets_an_ack_of_what_it_did_not_send() {
    // First: SEG.ACK =< ISS or SEG.ACK > SND.NXT.
    for off in [-1, 1, 100] {
        let mut pair = syn_sent();
        pair.ack = pair.ack.wrapping_add_signed(off);
        for flags in [ACK, SYN | ACK] {
            pair.send(flags, &[]);
            let rst = pair.recv_one();
            assert_eq!((rst.flags, rst.seq), (RST, pair.ack));
        }
        pair.send(RST | ACK, &[]);
        pair.recv_nothing();
        assert_eq!(pair.state(), SynSent);
    }
}

#[test]
fn syn_sent_believes_a_rst_only_with_its_acknowledgement() {
    // Second: the RST bit.
    let mut pair = syn_sent();
    pair.send(RST, &[]);
    assert_eq!(pair.state(), SynSent);
    pair.send(RST | ACK, &[]);
    assert_eq!(pair.state(), Closed);
    pair.recv_nothing();
}

#[test]
fn syn_sent_drops_what_has_neither_syn_nor_rst() {
    // Fifth.
    let mut pair = syn_sent();
    for flags in [0, ACK, FIN, FIN | ACK] {
        pair.send(flags, b"data");
        pair.recv_nothing();
        assert_eq!(pair.state(), SynSent);
    }
}

#[test]
fn syn_sent_is_established_by_syn_ack_and_acknowledges() {
    // Fourth: <SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>.
    let mut pair = syn_sent();
    pair.send(SYN | ACK, &[]);
    pair.seq += 1;
    assert_eq!(pair.state(), Established);
    expect_ack(&mut pair, Established);
}

#[test]
fn syn_sent_meets_syn_with_syn_ack() {
    // Fourth, otherwise: <SEQ=ISS><ACK=RCV.NXT><CTL=SYN,ACK> (figure 7).
    let mut pair = syn_sent();
    pair.send(SYN, &[]);
    pair.seq += 1;
    assert_eq!(pair.state(), SynReceived);
    let syn_ack = pair.recv_one();
    assert_eq!(syn_ack.flags, SYN | ACK);
    assert_eq!((syn_ack.seq, syn_ack.ack), (pair.ack.wrapping_sub(1), pair.seq));
    // The peer, which is in SYN-RECEIVED too, sends its SYN,ACK.
    let ours = pair.seq - 1;
    let mut seg = pair.seg(SYN | ACK, Default::default(), &[]);
    seg.seq = ours;
    pair.host.input(&seg.frame());
    assert_eq!(pair.state(), Established);
}

// SYN-RECEIVED (3.10.7.4).

#[test]
fn syn_received_resets_an_ack_of_what_it_did_not_send() {
    // Fifth, SYN-RECEIVED: <SEQ=SEG.ACK><CTL=RST>.
    for off in [-1, 1, 1000] {
        let mut pair = passive(SynReceived);
        pair.ack = pair.ack.wrapping_add_signed(off);
        pair.send(ACK, &[]);
        let rst = pair.recv_one();
        assert_eq!((rst.flags, rst.seq), (RST, pair.ack));
        assert_eq!(pair.state(), SynReceived);
    }
}

#[test]
fn syn_received_returns_to_listen_on_rst_without_a_word() {
    // Second: "if ... it came from the LISTEN state, then return this
    // connection to LISTEN state"; the user need not be informed.
    let mut pair = passive(SynReceived);
    pair.send(RST, &[]);
    pair.recv_nothing();
    assert!(pair.host.poll().is_empty());
    assert_eq!(pair.host.stack.flows(), 0);
    pair.seq += 500;
    pair.send(SYN, &[]);
    assert_eq!(pair.recv_one().ack, pair.seq + 1);
}

#[test]
fn syn_received_of_an_active_open_is_refused_by_rst() {
    let mut pair = syn_sent();
    pair.send(SYN, &[]);
    pair.seq += 1;
    pair.recv_one();
    pair.send(RST, &[]);
    assert_eq!(pair.state(), Closed);
    pair.host.poll();
    assert_eq!(pair.host.events.last().unwrap().len, paste_abi::Reason::Refused as u16);
}

#[test]
fn syn_received_takes_data_and_fin_that_come_with_the_last_ack() {
    // Fifth, then seventh and eighth in ESTABLISHED.
    let mut pair = passive(SynReceived);
    pair.send(FIN | ACK, b"request");
    pair.seq += 8;
    assert_eq!(pair.state(), CloseWait);
    assert_eq!(pair.recv_one().ack, pair.seq);
    pair.host.poll();
    assert_eq!(pair.host.data.values().next().unwrap(), b"request");
}

#[test]
fn syn_received_survives_a_peer_that_forgot_and_begins_anew() {
    // Fourth: a SYN in the window. RFC 5961 section 4.2 has it challenged, and
    // the peer's RST to that clears the way (RFC 9293 figure 9).
    let mut pair = passive(SynReceived);
    let known = pair.seq;
    pair.seq += 100;
    pair.send(SYN, &[]);
    let answer = pair.recv_one();
    assert_eq!((answer.flags, answer.ack), (ACK, known));
    pair.seq = answer.ack;
    pair.send(RST, &[]);
    pair.seq += 100;
    pair.host.pass_time(1_000_000_000);
    pair.send(SYN, &[]);
    let syn_ack = pair.recv_one();
    assert_eq!((syn_ack.flags, syn_ack.ack), (SYN | ACK, pair.seq + 1));
}

// The synchronized states (3.10.7.4), in the order of the RFC's steps.

#[test]
fn what_lies_outside_the_window_is_answered_with_ack_and_dropped() {
    // First, check sequence number.
    for state in SYNCHRONIZED {
        for flags in [ACK, PSH | ACK, SYN | ACK, FIN | ACK] {
            let mut pair = passive(state);
            pair.send_ahead(1 << 30, flags, b"data");
            expect_ack(&mut pair, state);
            assert_eq!(pair.state(), state);
            assert!(pair.host.data.is_empty());
        }
        let mut pair = passive(state);
        pair.send_ahead(1 << 30, RST, b"data");
        pair.recv_nothing();
        assert_eq!(pair.state(), state);
    }
}

#[test]
fn the_exact_rst_ends_every_state_but_time_wait() {
    // Second, check the RST bit; RFC 1337 section 3 for TIME-WAIT.
    for state in SYNCHRONIZED {
        let mut pair = passive(state);
        pair.send(RST, &[]);
        pair.recv_nothing();
        assert_eq!(pair.state(), if state == TimeWait { TimeWait } else { Closed });
        // All segment queues are flushed.
        pair.host.poll();
        if state != TimeWait {
            pair.host.check_empty();
        }
    }
}

#[test]
fn another_rst_in_the_window_is_challenged() {
    // Second, and RFC 5961 section 3.2: <SEQ=SND.NXT><ACK=RCV.NXT><CTL=ACK>.
    for state in [Established, FinWait1, FinWait2] {
        let mut pair = passive(state);
        pair.send_ahead(1, RST, &[]);
        expect_ack(&mut pair, state);
        assert_eq!(pair.state(), state);
    }
}

#[test]
fn a_syn_is_challenged_whatever_its_number() {
    // Fourth, and RFC 5961 section 4.2, step 2.
    for state in SYNCHRONIZED {
        if state == TimeWait {
            continue; // RFC 6191: see `time_wait`.
        }
        for ahead in [-1000, 0, 1000, 1 << 30] {
            let mut pair = passive(state);
            pair.send_ahead(ahead, SYN, &[]);
            expect_ack(&mut pair, state);
            assert_eq!(pair.state(), state);
        }
    }
}

#[test]
fn without_the_ack_bit_a_segment_is_dropped() {
    // Fifth, check the ACK field.
    for state in SYNCHRONIZED {
        let mut pair = passive(state);
        pair.send(0, &[]);
        pair.send(PSH, &[]);
        pair.send(FIN, &[]);
        pair.recv_nothing();
        assert_eq!(pair.state(), state);
        if state == Established {
            pair.send(0, b"data");
            pair.recv_nothing();
            assert!(pair.host.data.is_empty());
        }
    }
}

#[test]
fn an_ack_of_the_unsent_is_answered_with_ack_and_dropped() {
    // Fifth, ESTABLISHED: SEG.ACK > SND.NXT.
    for state in SYNCHRONIZED {
        let mut pair = passive(state);
        let real = pair.ack;
        pair.ack = next(&pair, state).wrapping_add(1);
        pair.send(ACK, &[]);
        pair.ack = real;
        expect_ack(&mut pair, state);
        assert_eq!(pair.state(), state);
    }
}

#[test]
fn an_ack_of_the_fin_moves_on() {
    // Fifth, FIN-WAIT-1, CLOSING and LAST-ACK.
    for (state, then) in [(FinWait1, FinWait2), (Closing, TimeWait), (LastAck, Closed)] {
        let mut pair = passive(state);
        pair.send(ACK, &[]);
        assert_eq!(pair.state(), state, "the FIN is not acknowledged");
        pair.ack_more(1);
        assert_eq!(pair.state(), then);
        pair.recv_nothing();
    }
}

#[test]
fn text_is_taken_until_the_peer_has_closed() {
    // Seventh, process the segment text.
    for state in [Established, FinWait1, FinWait2] {
        let mut pair = passive(state);
        pair.send(PSH | ACK, b"more");
        pair.send_ahead(4, PSH | ACK, b"text");
        pair.host.poll();
        assert_eq!(pair.host.data.values().next().unwrap(), b"moretext");
        pair.host.pass_time(500_000_000);
        pair.seq += 8;
        let acks = pair.recv();
        assert_eq!(acks.last().unwrap().ack, pair.seq);
    }
    // "This should not occur, since a FIN has been received": ignored.
    for state in [CloseWait, Closing, LastAck, TimeWait] {
        let mut pair = passive(state);
        pair.send(PSH | ACK, b"more");
        pair.host.poll();
        assert!(pair.host.data.is_empty());
        assert_eq!(pair.state(), state);
        for ack in pair.recv() {
            assert_eq!(ack.ack, pair.seq);
        }
    }
}

#[test]
fn a_fin_is_acknowledged_and_moves_on() {
    // Eighth, check the FIN bit.
    let moves = [(Established, CloseWait), (FinWait1, Closing), (FinWait2, TimeWait)];
    for (state, then) in moves {
        let mut pair = passive(state);
        pair.send(FIN | ACK, &[]);
        pair.seq += 1;
        assert_eq!(pair.state(), then);
        expect_ack(&mut pair, state);
    }
    // "If our FIN has been ACKed (perhaps in this segment), then enter
    // TIME-WAIT".
    let mut pair = passive(FinWait1);
    pair.ack = pair.ack.wrapping_add(1);
    pair.send(FIN | ACK, &[]);
    pair.seq += 1;
    assert_eq!(pair.state(), TimeWait);
    expect_ack(&mut pair, TimeWait);
}

#[test]
fn a_fin_again_changes_nothing_and_is_acknowledged_again() {
    // Eighth: remain in CLOSE-WAIT, CLOSING, LAST-ACK, TIME-WAIT.
    for state in [CloseWait, Closing, LastAck, TimeWait] {
        let mut pair = passive(state);
        pair.send_ahead(-1, FIN | ACK, &[]);
        expect_ack(&mut pair, state);
        assert_eq!(pair.state(), state);
    }
}

#[test]
fn only_what_is_in_order_up_to_the_fin_closes() {
    // Section 3.9.1: a FIN is taken in its place.
    let mut pair = passive(Established);
    pair.send_ahead(4, FIN | ACK, b"text");
    assert_eq!(pair.recv_one().ack, pair.seq);
    assert_eq!(pair.state(), Established);
    pair.send(ACK, b"more");
    pair.seq += 9;
    assert_eq!(pair.state(), CloseWait);
    assert_eq!(pair.recv_one().ack, pair.seq);
}

#[test]
fn everything_acceptable_at_a_zero_window_is_still_processed() {
    // Section 3.10.7.4, first: "special allowance should be made to accept
    // valid ACKs, URGs, and RSTs" when RCV.WND is zero.
    let mut pair = Pair::established(crate::Config { recv_window_max: 2000, ..config() });
    pair.host.reads = false;
    while pair.host.stack.flows[0].rcv_wnd() > 0 {
        let len = pair.host.stack.flows[0].rcv_wnd().min(1000) as usize;
        pair.send(PSH | ACK, &vec![7; len]);
        pair.seq += len as u32;
        pair.host.poll();
        pair.recv();
    }
    pair.host.send(pair.flow, b"response");
    assert_eq!(pair.recv_one().window, 0);
    assert_eq!(pair.unacked(), 8);
    // An acknowledgement with text that has no room.
    pair.ack = pair.ack.wrapping_add(8);
    pair.send(ACK, b"no room");
    assert_eq!(pair.unacked(), 0);
    expect_ack(&mut pair, Established);
    pair.send(RST, &[]);
    assert_eq!(pair.state(), Closed);
}

// Two sides that act at once, and one that forgot (section 3.5).

#[test]
fn both_sides_close_at_once() {
    // Figure 13: FIN-WAIT-1, CLOSING, TIME-WAIT, CLOSED.
    let mut pair = passive(Closing);
    pair.ack_more(1);
    assert_eq!(pair.state(), TimeWait);
    pair.host.pass_time(61_000_000_000);
    pair.host.poll();
    pair.host.check_empty();
}

#[test]
fn an_old_duplicate_syn_is_recovered_from() {
    // Figure 8: the answer to a stray SYN is reset, and the real one counts.
    let mut pair = Pair::listening(config());
    let real = pair.seq;
    pair.seq = real.wrapping_sub(500_000);
    pair.send(SYN, &[]);
    let syn_ack = pair.recv_one();
    assert_eq!(syn_ack.ack, pair.seq + 1);
    // The peer is in SYN-SENT and did not send that: RST with SEQ=SEG.ACK.
    pair.seq += 1;
    pair.send(RST, &[]);
    pair.seq = real;
    pair.open();
    assert_eq!(pair.state(), Established);
}

#[test]
fn a_half_open_connection_is_discovered_by_the_peer_s_syn() {
    // Figure 9: we kept the connection, the peer lost it and opens again.
    let mut pair = passive(Established);
    let known = pair.seq;
    pair.seq = 777_000_000;
    pair.send(SYN, &[]);
    let ack = pair.recv_one();
    assert_eq!((ack.flags, ack.seq, ack.ack), (ACK, pair.ack, known));
    // The peer in SYN-SENT resets what it does not know.
    pair.seq = ack.ack;
    pair.send(RST, &[]);
    assert_eq!(pair.state(), Closed);
    pair.host.poll();
    pair.host.events.clear();
    pair.seq = 777_000_000;
    pair.open();
    assert_eq!(pair.state(), Established);
}

#[test]
fn a_half_open_connection_is_discovered_by_our_data() {
    // Figure 10: the peer that lost it answers with RST, SEQ=SEG.ACK.
    let mut pair = passive(Established);
    pair.host.send(pair.flow, b"response");
    let data = pair.recv_one();
    pair.seq = data.ack;
    pair.send(RST, &[]);
    assert_eq!(pair.state(), Closed);
    pair.host.poll();
    pair.host.check_empty();
}
