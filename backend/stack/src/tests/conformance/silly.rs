//! RFC 9293 section 3.8.6.2: silly windows, on both sides.

use crate::Config;
use crate::config::{MS, SEC};
use crate::tests::harness::*;

const FULL: [u8; 1460] = [1; 1460];

// The sender (3.8.6.2.1).

#[test]
fn a_full_segment_goes_at_once() {
    // (1): min(D, U) >= Eff.snd.MSS.
    let mut pair = Pair::established(config());
    pair.window = 1460;
    pair.send(ACK, &[]);
    pair.host.send(pair.flow, &[1; 1900]);
    assert_eq!(pair.recv_one().data.len(), 1460);
}

#[test]
fn all_that_is_queued_goes_if_it_fits() {
    // (2): D <= U.
    let mut pair = Pair::established(config());
    pair.window = 300;
    pair.send(ACK, &[]);
    pair.host.send(pair.flow, &[1; 300]);
    assert_eq!(pair.recv_one().data.len(), 300);
}

#[test]
fn half_of_the_largest_window_goes() {
    // (3): min(D, U) >= Fs * Max(SND.WND), with Fs = 1/2.
    let mut pair = Pair::listening(config());
    pair.window = 1000;
    pair.open();
    pair.window = 500;
    pair.send(ACK, &[]);
    pair.host.send(pair.flow, &FULL);
    assert_eq!(pair.recv_one().data.len(), 500);
}

#[test]
fn a_small_window_is_filled_only_after_the_override_timeout() {
    // (4): 0.1 to 1 s, so that neither side waits for ever.
    let mut pair = Pair::established(config());
    pair.window = 100;
    pair.send(ACK, &[]);
    pair.host.send(pair.flow, &FULL);
    pair.recv_nothing();
    pair.host.pass_time(90 * MS);
    pair.recv_nothing();
    pair.host.pass_time(SEC);
    assert_eq!(pair.recv_one().data.len(), 100);
}

#[test]
fn dribbling_windows_do_not_make_small_segments() {
    // What it is for: the peer frees 100 bytes at a time.
    let mut pair = Pair::established(config());
    for _ in 0..10 {
        pair.host.send(pair.flow, &FULL);
    }
    pair.recv();
    pair.window = 0;
    pair.ack_more(10 * 1460);
    for _ in 0..10 {
        pair.host.send(pair.flow, &FULL);
    }
    let mut sizes = Vec::new();
    for step in 1..=30 {
        pair.window = step * 100;
        pair.send(ACK, &[]);
        sizes.extend(pair.recv().iter().map(|s| s.data.len()));
    }
    assert_eq!(sizes, [1460, 1460]);
}

// The receiver (3.8.6.2.2).

/// A flow whose window the peer has filled, in segments of `size`; the guest
/// holds the buffers.
fn filled(window: u32, size: usize) -> (Pair, Vec<u32>) {
    let mut pair = Pair::established(Config { recv_window_max: window, ..config() });
    pair.host.reads = false;
    while pair.host.stack.flows[0].rcv_wnd() > 0 {
        let len = size.min(pair.host.stack.flows[0].rcv_wnd() as usize);
        pair.send(ACK, &vec![1; len]);
        pair.seq += len as u32;
        pair.host.poll();
        pair.host.pass_time(SEC);
        pair.recv();
    }
    let held = pair.host.data_slots.iter().map(|s| s.buf_idx).collect();
    (pair, held)
}

#[test]
fn the_window_opens_by_a_segment_or_half_the_buffer_at_least() {
    // RCV.BUFF - RCV.USER - RCV.WND >= min(Fr * RCV.BUFF, Eff.snd.MSS).
    let (mut pair, held) = filled(20 * 1460, 1460);
    let mut edge = pair.seq;
    for buf in held {
        pair.host.give_up(buf);
        pair.host.pass_time(SEC);
        for ack in pair.recv() {
            let new = ack.ack.wrapping_add(u32::from(ack.window));
            assert!(new == edge || new.wrapping_sub(edge) >= 1460, "{new} {edge}");
            edge = new;
        }
    }
    assert!(edge.wrapping_sub(pair.seq) >= 10 * 1460, "and it does open");
}

#[test]
fn a_closed_window_that_opens_is_told() {
    // Or the peer would wait for its probe.
    let (mut pair, held) = filled(4 * 1460, 1460);
    for buf in held {
        pair.host.give_up(buf);
    }
    let update = pair.recv_one();
    assert!(update.window >= 1460);
    assert_eq!((update.flags, update.ack), (ACK, pair.seq));
}

#[test]
fn the_right_edge_never_moves_left() {
    // SHLD-14: not to shrink the window.
    let mut pair = Pair::established(config());
    pair.host.reads = false;
    let mut edge = pair.seq;
    for i in 0..200u32 {
        pair.send(ACK, &vec![1; 1 + (i as usize * 97) % 1460]);
        pair.seq += 1 + (i * 97) % 1460;
        pair.host.poll();
        pair.host.pass_time(50 * MS);
        for ack in pair.recv() {
            let new = ack.ack.wrapping_add(u32::from(ack.window));
            assert!(new.wrapping_sub(edge) as i32 >= 0, "{new} {edge}");
            edge = new;
        }
        if edge.wrapping_sub(pair.seq) < 1460 {
            break;
        }
    }
}
