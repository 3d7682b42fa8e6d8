//! Paths that carry less than their ends agreed on (RFC 1191, 4821, 8899).

use super::harness::*;
use crate::config::{Config, MS, SEC};
use crate::tcp::recovery::Phase;
use crate::tcp::seq::Seq;
use crate::wire::tcp::{Options, SackBlock};

const FULL: usize = 1460;

fn sacking() -> Pair {
    let mut pair = Pair::listening(config());
    pair.offers = Options { sack_permitted: true, ..pair.offers };
    pair.open();
    pair
}

fn lens(segs: &[Seg]) -> Vec<usize> {
    segs.iter().map(|s| s.data.len()).collect()
}

impl Pair {
    fn mss(&self) -> u16 {
        self.host.stack.flows[self.flow.index()].mss
    }

    /// The peer has `start..end` of what was sent, counted from its place.
    fn sack(&mut self, start: u32, end: u32) {
        let block = SackBlock { start: Seq(self.ack) + start, end: Seq(self.ack) + end };
        let mut options = Options::default();
        options.sack.push(block);
        self.send_with(ACK, options, &[]);
    }

    /// After timeouts the neighbour is asked for again.
    fn answer_arp(&mut self) {
        let reply = arp_frame(crate::wire::arp::REPLY, PEER, PEER_MAC, HOST);
        self.host.input(&reply);
    }

    fn narrow(&mut self, mtu: u16) {
        let (now, index) = (self.host.now, self.flow.index());
        self.host.stack.path_mtu(now, index, mtu);
    }
}

#[test]
fn what_was_too_large_goes_again_in_smaller_pieces_and_the_window_stays() {
    let mut pair = sacking();
    let window = pair.host.stack.flows[pair.flow.index()].congestion.window();
    for _ in 0..3 {
        pair.host.send(pair.flow, &[1; FULL]);
    }
    assert_eq!(lens(&pair.recv()), [FULL; 3]);
    pair.narrow(1040);
    assert_eq!(lens(&pair.recv()), [1000, 460, 1000, 460, 1000, 460]);
    // As many segments as before.
    let after = pair.host.stack.flows[pair.flow.index()].congestion.window();
    assert_eq!((window / FULL as u32, after / 1000), (10, 10));
    pair.ack_more(3 * FULL as u32);
    assert_eq!(pair.unacked(), 0);
    assert_eq!(pair.host.stack.counters().fast_retransmits, 0);
}

#[test]
fn pieces_that_arrived_are_known_after_the_cut_only_if_the_buffer_did_whole() {
    let mut pair = sacking();
    pair.window = 2 * FULL as u16 + 100;
    // Two segments in a buffer; the window lets a part of the second one go.
    pair.host.send(pair.flow, &[1; FULL]);
    pair.host.send(pair.flow, &[2; 1900]);
    pair.host.send(pair.flow, &[3; 700]);
    let sent: usize = lens(&pair.recv()).iter().sum();
    pair.sack(FULL as u32, 2 * FULL as u32);
    pair.narrow(1200);
    pair.window = 60_000;
    // Everything arrives in the end, and the books agree on the way.
    for _ in 0..50 {
        for seg in pair.recv() {
            let end = seg.seq.wrapping_add(seg.data.len() as u32).wrapping_sub(pair.ack);
            assert!(seg.data.len() <= 1160);
            if end as usize <= sent + 3000 && seg.seq == pair.ack {
                pair.ack_more(end);
            } else {
                let start = seg.seq.wrapping_sub(pair.ack);
                pair.sack(start, end);
            }
        }
        pair.host.pass_time(300 * MS);
        if pair.unacked() == 0 {
            return;
        }
    }
    panic!("{} bytes are left", pair.unacked());
}

#[test]
fn rfc4821_7_7_a_path_that_swallows_full_segments_is_found_out() {
    let mut pair = sacking();
    for _ in 0..4 {
        pair.host.send(pair.flow, &[1; FULL]);
    }
    // The path carries nothing larger than 1200 bytes, and nobody says so.
    for _ in 0..2000 {
        for seg in pair.recv() {
            if seg.data.len() + 40 <= 1200 && seg.seq == pair.ack {
                pair.ack_more(seg.data.len() as u32);
            }
        }
        pair.host.pass_time(10 * MS);
        pair.answer_arp();
        if pair.unacked() == 0 {
            break;
        }
    }
    assert_eq!(pair.unacked(), 0);
    assert_eq!(pair.mss(), 1160);
    assert_eq!(pair.host.stack.counters().black_holes, 1);
}

/// What is swallowed need not be a full segment.
#[test]
fn rfc4821_7_7_a_path_that_swallows_less_than_a_full_segment_is_found_out() {
    for (len, carried, mss) in [(1300, 1200, 1160), (1000, 576, 536)] {
        let mut pair = sacking();
        pair.host.send(pair.flow, &vec![1; len]);
        for _ in 0..2000 {
            for seg in pair.recv() {
                if seg.data.len() + 40 <= carried && seg.seq == pair.ack {
                    pair.ack_more(seg.data.len() as u32);
                }
            }
            pair.host.pass_time(10 * MS);
            pair.answer_arp();
        }
        assert_eq!((pair.unacked(), pair.mss()), (0, mss));
    }
}

/// Three timeouts in a row may as well be bad luck.
#[test]
fn rfc8899_4_3_a_suspicion_that_was_wrong_does_not_last() {
    let mut pair = sacking();
    pair.host.send(pair.flow, &[1; FULL]);
    while pair.mss() == FULL as u16 {
        pair.recv();
        pair.host.pass_time(10 * MS);
        pair.answer_arp();
    }
    let left = pair.unacked();
    pair.ack_more(left);
    pair.recv();
    pair.host.send(pair.flow, &[2; FULL]);
    assert_eq!(lens(&pair.recv()), [FULL], "a probe");
    pair.ack_more(FULL as u32);
    assert_eq!(pair.mss(), FULL as u16);
    pair.host.send(pair.flow, &[3; FULL]);
    assert_eq!(lens(&pair.recv()), [FULL]);
}

/// And if it was right, what the path carries is found by a few more trials.
#[test]
fn rfc8899_5_3_2_the_search_after_a_black_hole_comes_to_an_end() {
    const CARRIES: usize = 1300 - 40;
    let mut pair = sacking();
    let mut swallowed = 0;
    let mut last = 0;
    for round in 0..20_000 {
        if pair.unacked() < 4 * FULL as u32 && round < 10_000 {
            let _ = pair.host.try_send(pair.flow, &[1; FULL], Default::default());
        }
        for seg in pair.recv() {
            let at = seg.seq.wrapping_sub(pair.ack);
            if seg.data.len() > CARRIES {
                (swallowed, last) = (swallowed + 1, round);
            } else if at == 0 {
                pair.ack_more(seg.data.len() as u32);
            } else if (at as i32) > 0 {
                pair.sack(at, at + seg.data.len() as u32);
            }
        }
        // What was told out of order is there when the hole closes.
        pair.host.pass_time(10 * MS);
        pair.answer_arp();
    }
    let mss = usize::from(pair.mss());
    assert!((CARRIES - 64..=CARRIES).contains(&mss), "{mss}");
    assert!(swallowed < 40, "{swallowed}");
    assert!(last < 3_000, "{last}");
}

/// A flow whose path was narrow ten minutes ago.
fn long_narrow() -> Pair {
    let mut pair = sacking();
    pair.narrow(1040);
    assert_eq!(pair.mss(), 1000);
    pair.host.pass_time(700 * SEC);
    pair
}

#[test]
fn rfc8899_5_3_a_path_that_widened_is_found_by_trying() {
    let mut pair = long_narrow();
    pair.host.send(pair.flow, &[1; FULL]);
    assert_eq!(lens(&pair.recv()), [FULL], "a probe");
    pair.ack_more(FULL as u32);
    assert_eq!(pair.mss(), FULL as u16);
}

#[test]
fn rfc4821_7_5_a_lost_probe_is_no_congestion() {
    let mut pair = long_narrow();
    let window = pair.host.stack.flows[pair.flow.index()].congestion.window();
    pair.host.send(pair.flow, &[1; FULL]);
    for _ in 0..4 {
        pair.host.send(pair.flow, &[2; 900]);
    }
    assert_eq!(lens(&pair.recv()), [FULL, 900, 900, 900, 900]);
    pair.host.pass_time(20 * MS);
    pair.sack(FULL as u32, FULL as u32 + 3600);
    // Sent again in pieces that fit.
    assert_eq!(lens(&pair.recv()), [1000, 460]);
    assert_eq!(pair.mss(), 1000);
    let flow = &pair.host.stack.flows[pair.flow.index()];
    assert!(flow.congestion.window() >= window);
    assert_ne!(flow.phase, Phase::Recovery);
    pair.ack_more(FULL as u32 + 3600);
    assert_eq!(pair.unacked(), 0);
}

#[test]
fn a_mtu_that_jumps_about_under_load_loses_nothing() {
    use super::lossy::Random;
    for seed in 0..200 {
        let mut random = Random(seed * 2 + 1);
        let mut pair = Pair::listening(Config { congestion: Default::default(), ..config() });
        pair.offers = Options { sack_permitted: seed % 3 > 0, ..pair.offers };
        pair.open();
        let mut queued = 0u32;
        let start = pair.ack;
        for _ in 0..60 {
            if queued < 60_000 {
                let len = 1 + random.below(1900) as usize;
                if pair.host.try_send(pair.flow, &vec![7; len], Default::default()).is_ok() {
                    queued += len as u32;
                }
            }
            for seg in pair.recv() {
                let at = seg.seq.wrapping_sub(pair.ack);
                let end = at.wrapping_add(seg.data.len() as u32);
                match random.below(4) {
                    0 if at == 0 => pair.ack_more(end),
                    1 if (at as i32) > 0 && seed % 3 > 0 => pair.sack(at, end),
                    _ => {}
                }
            }
            if random.below(6) == 0 {
                pair.narrow(552 + random.below(1000) as u16);
            }
            pair.host.pass_time(random.below(400) * MS);
            pair.answer_arp();
        }
        // The peer had everything after all.
        pair.recv();
        pair.answer_arp();
        for _ in 0..100 {
            let flow = &pair.host.stack.flows[pair.flow.index()];
            let sent = flow.snd_nxt.since(flow.snd_una);
            pair.ack_more(sent);
            pair.recv();
        }
        assert_eq!(pair.ack.wrapping_sub(start), queued, "seed {seed}");
    }
}
