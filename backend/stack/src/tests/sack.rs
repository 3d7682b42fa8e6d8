//! What acknowledgements tell of payload that came early or twice (RFC 2018,
//! RFC 2883).

use proptest::prelude::*;

use super::harness::*;
use crate::config::{Config, MS};
use crate::wire::tcp::{self, Options, SackBlock, Timestamps};

fn offer() -> Options {
    Options { mss: Some(1460), sack_permitted: true, ..Options::default() }
}

/// A flow whose peer offered SACK, and timestamps if told so.
fn sacking(config: Config, timestamps: bool) -> Pair {
    let mut pair = Pair::listening(Config { timestamps, ..config });
    pair.timestamps = timestamps.then_some(Timestamps { value: 1, echo: 0 });
    pair.offers = offer();
    pair.open();
    pair
}

/// The blocks of the host's one acknowledgement, relative to the peer's place.
fn blocks(pair: &mut Pair) -> Vec<(u32, u32)> {
    let seg = pair.recv_one();
    assert_eq!((seg.flags, seg.data.len()), (ACK, 0), "{seg:?}");
    relative(pair, &seg)
}

fn relative(pair: &Pair, seg: &Seg) -> Vec<(u32, u32)> {
    let place = |block: &SackBlock| {
        (block.start.0.wrapping_sub(pair.seq), block.end.0.wrapping_sub(pair.seq))
    };
    seg.options.sack.iter().map(place).collect()
}

#[test]
fn rfc2018_2_sack_is_permitted_on_syn_alone_and_only_if_both_want_it() {
    for (ours, theirs) in [(true, true), (true, false), (false, true)] {
        let mut pair = Pair::listening(Config { sack: ours, ..config() });
        pair.send_with(SYN, Options { sack_permitted: theirs, ..offer() }, &[]);
        let syn_ack = pair.recv_one();
        assert_eq!(syn_ack.options.sack_permitted, ours && theirs);
        pair.seq += 1;
        pair.ack = syn_ack.seq.wrapping_add(1);
        pair.send(ACK, &[]);
        pair.send_ahead(5, ACK, b"early");
        let ack = pair.recv_one();
        assert!(!ack.options.sack_permitted);
        assert_eq!(!ack.options.sack.is_empty(), ours && theirs);
    }
}

#[test]
fn rfc2018_4_the_block_that_changed_last_comes_first() {
    let mut pair = sacking(config(), false);
    let mut arrives = |at: i32, len: usize| {
        pair.send_ahead(at, ACK, &[1; 100][..len]);
        blocks(&mut pair)
    };
    assert_eq!(arrives(100, 10), [(100, 110)]);
    assert_eq!(arrives(300, 10), [(300, 310), (100, 110)]);
    assert_eq!(arrives(200, 10), [(200, 210), (300, 310), (100, 110)]);
    // An old block grows, at either end.
    assert_eq!(arrives(110, 10), [(100, 120), (200, 210), (300, 310)]);
    assert_eq!(arrives(290, 10), [(290, 310), (100, 120), (200, 210)]);
    // Two become one.
    assert_eq!(arrives(120, 80), [(100, 210), (290, 310)]);
    // More than there is room for: the oldest news is left out.
    assert_eq!(arrives(400, 1), [(400, 401), (100, 210), (290, 310)]);
    assert_eq!(arrives(500, 1), [(500, 501), (400, 401), (100, 210), (290, 310)]);
    assert_eq!(arrives(600, 1), [(600, 601), (500, 501), (400, 401), (100, 210)]);
    // The first hole closes.
    assert_eq!(arrives(0, 100), [(600, 601), (500, 501), (400, 401), (290, 310)]);
}

/// RFC 2018 section 5, case 2: of eight segments of 500 bytes the first is lost.
#[test]
fn rfc2018_5_case_2() {
    let mut pair = sacking(config(), false);
    for i in 1..8 {
        pair.send_ahead(i * 500, ACK, &[0; 500]);
        assert_eq!(blocks(&mut pair), [(500, (i as u32 + 1) * 500)]);
    }
}

/// RFC 2018 section 5, case 3: the second, fourth, sixth and eighth are lost.
#[test]
fn rfc2018_5_case_3() {
    let mut pair = sacking(config(), false);
    let mut arrives = |i: i32| {
        pair.send_ahead(i * 500, ACK, &[0; 500]);
        pair.recv().last().map(|seg| relative(&pair, seg))
    };
    assert_eq!(arrives(0), None);
    assert_eq!(arrives(2), Some(vec![(1000, 1500)]));
    assert_eq!(arrives(4), Some(vec![(2000, 2500), (1000, 1500)]));
    assert_eq!(arrives(6), Some(vec![(3000, 3500), (2000, 2500), (1000, 1500)]));
    assert_eq!(arrives(3), Some(vec![(1000, 2500), (3000, 3500)]));
    assert_eq!(arrives(1), Some(vec![(3000, 3500)]));
}

#[test]
fn rfc2018_3_three_blocks_fit_next_to_timestamps() {
    let mut pair = sacking(config(), true);
    for i in 1..6 {
        pair.send_ahead(i * 10, ACK, b"x");
    }
    assert_eq!(blocks(&mut pair), [(50, 51), (40, 41), (30, 31)]);
}

/// A peer that repairs has few segments on their way, so what it sends next is
/// acknowledged one by one: a delayed acknowledgement would look like a loss.
#[test]
fn after_a_loss_single_segments_are_acknowledged_at_once() {
    /// One more segment, which the guest reads; how many answers there are.
    fn next(pair: &mut Pair) -> usize {
        pair.send(ACK, &[0; 1000]);
        pair.seq = pair.seq.wrapping_add(1000);
        pair.host.poll();
        pair.recv().len()
    }
    let mut pair = sacking(config(), false);
    let early: fn(&mut Pair) = |pair| {
        pair.send_ahead(1000, ACK, &[0; 1000]);
        pair.send_ahead(0, ACK, &[0; 1000]);
        pair.seq = pair.seq.wrapping_add(2000);
        pair.host.poll();
    };
    let repeated: fn(&mut Pair) = |pair| {
        pair.send_ahead(-1000, ACK, &[0; 1000]);
    };
    for disturb in [early, repeated] {
        // A flow that is no longer young has every second one acknowledged.
        for _ in 0..32 {
            next(&mut pair);
        }
        let answers: usize = (0..8).map(|_| next(&mut pair)).sum();
        assert_eq!(answers, 4);
        disturb(&mut pair);
        pair.recv();
        let answers: usize = (0..8).map(|_| next(&mut pair)).sum();
        assert_eq!(answers, 8);
    }
}

/// A single acknowledgement of all that came in a turn would take the whole
/// window with it, were it lost.
#[test]
fn a_turn_of_many_segments_is_acknowledged_in_halves() {
    let mut pair = Pair::listening(Config { recv_window_max: 1 << 20, ..config() });
    pair.offers = Options { scale: Some(7), ..offer() };
    pair.open();
    // The least that 1 MiB needs.
    let scale = 5;
    let mut edge = pair.seq;
    for (segments, expected) in
        [(1, &[1][..]), (3, &[3]), (4, &[2, 4]), (8, &[4, 6, 8]), (11, &[5, 8, 11])]
    {
        let before = pair.seq;
        for _ in 0..segments {
            pair.send(ACK, &[0; 1000]);
            pair.seq = pair.seq.wrapping_add(1000);
        }
        let answers = pair.recv();
        let acks: Vec<u32> = answers.iter().map(|seg| (seg.ack - before) / 1000).collect();
        assert_eq!(acks, expected, "of {segments}");
        for seg in answers {
            // The right edge never moves left.
            let new = seg.ack + (u32::from(seg.window) << scale);
            assert!(new >= edge, "{new} {edge}");
            edge = new;
        }
        pair.host.poll();
        pair.host.audit();
    }
}

#[test]
fn rfc2883_4_1_1_a_repeated_segment_is_told_of_once() {
    let mut pair = sacking(config(), false);
    pair.send(ACK, &[0; 500]);
    pair.send(ACK, &[0; 500]);
    assert_eq!(blocks(&mut pair), [(0, 500)]);
    pair.host.send(pair.flow, b"answer");
    assert!(pair.recv_one().options.sack.is_empty());
}

#[test]
fn rfc2883_4_1_2_a_duplicate_comes_before_the_block_of_a_gap() {
    let mut pair = sacking(config(), false);
    pair.send(ACK, &[0; 500]);
    pair.send_ahead(1500, ACK, &[0; 500]);
    pair.recv();
    pair.send(ACK, &[0; 500]);
    assert_eq!(blocks(&mut pair), [(0, 500), (1500, 2000)]);
}

#[test]
fn rfc2883_4_1_3_a_duplicate_within_a_block_is_followed_by_the_block() {
    let mut pair = sacking(config(), false);
    pair.send_ahead(500, ACK, &[0; 500]);
    pair.send_ahead(1000, ACK, &[0; 500]);
    pair.send_ahead(3000, ACK, &[0; 500]);
    pair.recv();
    pair.send_ahead(1000, ACK, &[0; 500]);
    assert_eq!(blocks(&mut pair), [(1000, 1500), (500, 1500), (3000, 3500)]);
}

#[test]
fn rfc2883_4_2_only_the_repeated_part_of_a_segment_is_a_duplicate() {
    let mut pair = sacking(config(), false);
    // Below what is acknowledged, and new.
    pair.send(ACK, &[0; 500]);
    pair.send(ACK, &[0; 700]);
    pair.seq += 700;
    let segs = pair.recv();
    pair.seq -= 700;
    assert_eq!(relative(&pair, segs.last().unwrap()), [(0, 500)]);
    // Over the end of a block, and over the start of one.
    pair.send_ahead(1000, ACK, &[0; 500]);
    pair.recv();
    pair.send_ahead(1300, ACK, &[0; 500]);
    assert_eq!(blocks(&mut pair), [(1300, 1500), (1000, 1800)]);
    pair.send_ahead(900, ACK, &[0; 500]);
    assert_eq!(blocks(&mut pair), [(1000, 1400), (900, 1800)]);
    // In order, and into a block.
    pair.send_ahead(700, ACK, &[0; 500]);
    assert_eq!(blocks(&mut pair), [(900, 1200)]);
    assert_eq!(pair.host.poll().iter().map(|s| u32::from(s.len)).sum::<u32>(), 1800);
}

#[test]
fn an_acknowledgement_lost_long_ago_is_repeated_with_the_duplicate() {
    let mut pair = sacking(config(), false);
    pair.send(ACK, &[0; 500]);
    pair.seq += 500;
    pair.host.pass_time(50 * MS);
    pair.recv();
    // Wholly outside the window (RFC 9293 section 3.10.7.4, first).
    pair.send_ahead(-500, ACK, &[0; 500]);
    let seg = pair.recv_one();
    pair.seq -= 500;
    assert_eq!(relative(&pair, &seg), [(0, 500)]);
}

#[test]
fn payload_leaves_room_for_the_blocks() {
    for timestamps in [false, true] {
        let mut pair = sacking(config(), timestamps);
        for i in 1..6 {
            pair.send_ahead(i * 10, ACK, b"x");
        }
        pair.host.send(pair.flow, &[7; 1800]);
        let segs = pair.recv();
        let (count, options) = if timestamps { (3, 12 + 28) } else { (4, 36) };
        assert_eq!(segs[0].options.sack.len(), count);
        assert_eq!(segs[0].data.len(), 1460 - options);
        let total: usize = segs.iter().map(|s| s.data.len()).sum();
        assert_eq!(total, 1800);
    }
}

/// RFC 5681 section 4.2. A peer that counts must not be given a count of one
/// for what came in one turn; a peer that is told needs no more than one.
#[test]
fn blocks_give_way_to_payload_that_was_cut_before_there_were_any() {
    let mut pair = sacking(config(), false);
    pair.host.send(pair.flow, b"measured");
    pair.recv();
    pair.ack_more(8);
    for _ in 0..2 {
        pair.host.send(pair.flow, &[1; 1460]);
        assert_eq!(pair.recv_one().data.len(), 1460);
    }
    pair.send_ahead(10, ACK, b"early");
    assert_eq!(pair.recv_one().options.sack.len(), 1);
    // A tail loss probe.
    let next = pair.host.stack.next_deadline().unwrap();
    pair.host.pass_time(next - pair.host.now + MS);
    let probe = pair.recv_one();
    assert_eq!(pair.host.stack.counters().tail_probes_out, 1);
    assert_eq!((probe.data.len(), tcp::header_len(&probe.options)), (1460, 20));
}

#[test]
fn each_early_segment_of_a_turn_is_a_duplicate_acknowledgement_without_sack() {
    let mut pair = Pair::established(config());
    for i in 1..=5 {
        pair.send_ahead(i * 100, ACK, &[0; 100]);
    }
    assert_eq!(pair.recv().len(), 5);
    for i in 6..=8 {
        pair.send_ahead(i * 100, ACK, &[0; 100]);
    }
    // The hole closes in the same turn: the count would be of another number.
    pair.send(ACK, &[0; 100]);
    pair.recv_ack(pair.seq + 900);

    let mut pair = sacking(config(), false);
    for i in 1..=5 {
        pair.send_ahead(i * 100, ACK, &[0; 100]);
    }
    assert_eq!(blocks(&mut pair), [(100, 600)]);
}

#[test]
fn blocks_are_limited_and_their_length_is_not() {
    let mut pair = sacking(Config { held_blocks_max: 3, ..config() }, false);
    let mut arrives = |at: i32| {
        pair.send_ahead(at, ACK, &[0; 10]);
        blocks(&mut pair)
    };
    arrives(200);
    arrives(400);
    assert_eq!(arrives(600), [(600, 610), (400, 410), (200, 210)]);
    // A fourth is dropped.
    assert_eq!(arrives(900), [(600, 610), (400, 410), (200, 210)]);
    // What joins a block needs no new one, and in the end two are one.
    for at in (210..400).step_by(10) {
        arrives(at);
    }
    assert_eq!(arrives(900), [(900, 910), (200, 410), (600, 610)]);
    assert_eq!(pair.host.stack.counters().drop_held_full, 1);
}

/// What RFC 2018 section 4 and RFC 2883 section 4 ask for, by a list of
/// received ranges that is searched from end to end.
#[derive(Default)]
struct Model {
    next: u32,
    /// Blocks, the one that changed last first.
    blocks: Vec<(u32, u32)>,
}

impl Model {
    /// Takes a segment in, and gives the duplicate that is to be told of.
    fn arrives(&mut self, start: u32, end: u32) -> Option<(u32, u32)> {
        let below = (start < self.next).then(|| (start, end.min(self.next)));
        let overlap = |&(s, e): &(u32, u32)| (start.max(s), end.min(e));
        let within = self.blocks.iter().map(overlap).filter(|(s, e)| s < e).min();
        let (mut start, mut end) = (start.max(self.next), end);
        if start < end {
            for (s, e) in
                self.blocks.extract_if(.., |&mut (s, e)| s <= end && start <= e).collect::<Vec<_>>()
            {
                (start, end) = (start.min(s), end.max(e));
            }
            if start == self.next {
                self.next = end;
            } else {
                self.blocks.insert(0, (start, end));
            }
        }
        below.or(within)
    }
}

proptest! {
    #[test]
    fn the_blocks_told_are_those_of_a_model(
        segments in prop::collection::vec((0u32..600, 1u32..60), 1..60),
        timestamps: bool,
    ) {
        let mut pair = sacking(config(), timestamps);
        pair.host.reads = true;
        let mut model = Model::default();
        let room = if timestamps { 3 } else { 4 };
        for (start, len) in segments {
            let data: Vec<u8> = (start..start + len).map(|at| at as u8).collect();
            pair.send_ahead(start as i32, ACK, &data);
            let duplicate = model.arrives(start, start + len);
            let segs = pair.recv();
            prop_assert!(segs.len() <= 1);
            let Some(seg) = segs.first() else {
                prop_assert!(duplicate.is_none() && model.blocks.is_empty());
                continue;
            };
            prop_assert_eq!(seg.ack.wrapping_sub(pair.seq), model.next);
            let told = relative(&pair, seg);
            let (first, rest) = match duplicate {
                Some(duplicate) => (Some(duplicate), &model.blocks),
                None => (None, &model.blocks),
            };
            let all: Vec<_> = first.into_iter().chain(rest.iter().copied()).collect();
            prop_assert_eq!(told.len(), all.len().min(room));
            // RFC 2018 section 4: the latest block comes first. The order of the
            // others is remembered for a few only, and for fewer when those grow
            // together; beyond that, any block will do.
            let known = told.len().min(1 + usize::from(duplicate.is_some()));
            prop_assert_eq!(&told[..known], &all[..known]);
            for block in &told {
                prop_assert!(all.contains(block), "{:?} is not among {:?}", block, all);
            }
        }
        pair.host.poll();
        let data = &pair.host.data.get(&pair.flow).cloned().unwrap_or_default();
        prop_assert_eq!(data.len(), model.next as usize);
        prop_assert!(data.iter().enumerate().all(|(at, byte)| *byte == at as u8));
    }
}
