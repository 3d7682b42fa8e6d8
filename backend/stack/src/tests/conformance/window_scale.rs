//! RFC 7323 section 2: the window scale.

use crate::Config;
use crate::tests::harness::*;
use crate::wire::tcp::Options;

fn open(pair: &mut Pair, scale: Option<u8>) -> Seg {
    pair.send_with(SYN, Options { mss: Some(1460), scale, ..Options::default() }, &[]);
    pair.seq += 1;
    let syn_ack = pair.recv_one();
    pair.ack = syn_ack.seq.wrapping_add(1);
    syn_ack
}

/// The peer completes the handshake.
fn complete(pair: &mut Pair) {
    pair.send(ACK, &[]);
    pair.flow = pair.host.poll()[0].flow;
}

#[test]
fn it_is_answered_only_if_it_was_offered() {
    // Section 2.2: a SYN,ACK has it only if the SYN had.
    let mut pair = Pair::listening(config());
    assert_eq!(open(&mut pair, None).options.scale, None);
    let mut pair = Pair::listening(config());
    assert!(open(&mut pair, Some(0)).options.scale.is_some());
}

#[test]
fn the_window_of_a_syn_is_not_scaled() {
    // Section 2.2, in either direction.
    let mut pair = Pair::listening(config());
    pair.window = 60_000;
    let syn_ack = open(&mut pair, Some(7));
    let own = &pair.host.stack.flows[0];
    assert_eq!(own.snd_wnd, 60_000);
    assert_eq!(u32::from(syn_ack.window), own.rcv_wnd());
    complete(&mut pair);
    assert_eq!(pair.host.stack.flows[0].snd_wnd, 60_000 << 7);
}

#[test]
fn without_it_windows_are_as_they_stand() {
    let mut pair = Pair::listening(config());
    open(&mut pair, None);
    complete(&mut pair);
    assert_eq!(pair.host.stack.flows[0].snd_wnd, 60_000);
    pair.send(ACK, b"x");
    pair.host.pass_time(1_000_000_000);
    assert!(u32::from(pair.recv_one().window) <= 65_535);
    assert!(pair.host.stack.flows[0].rcv_wnd() <= 65_535);
}

#[test]
fn a_shift_of_more_than_14_is_14() {
    // Section 2.3.
    for shift in [14, 15, 255] {
        let mut pair = Pair::listening(config());
        pair.window = 40_000;
        open(&mut pair, Some(shift));
        complete(&mut pair);
        assert_eq!(pair.host.stack.flows[0].snd_wnd, 40_000 << 14, "{shift}");
    }
}

#[test]
fn our_shift_lets_our_largest_window_be_told_and_is_no_more_than_14() {
    // Section 2.3.
    for most in [30_000u32, 1 << 20, 1 << 30, u32::MAX] {
        let mut pair = Pair::listening(Config { recv_window_max: most, ..config() });
        let scale = open(&mut pair, Some(2)).options.scale.unwrap();
        assert!(scale <= 14);
        assert!(scale == 14 || 65_535 << scale >= most, "{most} {scale}");
    }
}

#[test]
fn the_option_means_nothing_but_in_a_syn() {
    // Section 2.2: only in a segment with SYN.
    let mut pair = Pair::established(config());
    pair.send_with(ACK, Options { scale: Some(9), ..Options::default() }, &[]);
    assert_eq!(pair.host.stack.flows[0].snd_wnd, 60_000);
}

#[test]
fn rounding_does_not_take_back_what_was_promised() {
    // Section 2.4: the window must not shrink.
    let mut pair = Pair::listening(config());
    let scale = u32::from(open(&mut pair, Some(7)).options.scale.unwrap());
    complete(&mut pair);
    pair.host.reads = false;
    let mut edge = 0u32;
    for i in 0..60u32 {
        pair.send(ACK, &vec![1; 1 + (i as usize * 37) % 200]);
        pair.seq += 1 + (i * 37) % 200;
        pair.host.poll();
        pair.host.pass_time(50_000_000);
        for ack in pair.recv() {
            let new = ack.ack.wrapping_add(u32::from(ack.window) << scale);
            assert!(edge == 0 || new.wrapping_sub(edge) as i32 >= 0, "{new} {edge}");
            edge = new;
        }
    }
    assert_ne!(edge, 0);
}
