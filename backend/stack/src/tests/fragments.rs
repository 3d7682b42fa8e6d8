//! Fragments: put together within limits, and nothing else.

use core::net::Ipv6Addr;

use proptest::prelude::*;

use super::harness::*;
use super::lossy::Random;
use crate::bufs::Place;
use crate::config::{Config, SEC};
use crate::stack::Outcome;
use crate::wire::ip::ecn;
use crate::wire::ipv6::next;
use crate::wire::tcp::Options;
use crate::wire::tcp::flag::{CWR, ECE};
use crate::wire::{ethernet, icmpv6, ipv4};

/// Parts of the packet in `frame` that start at these places of its payload,
/// each with the flag that says that there are more.
fn cut(frame: &[u8], id: u16, starts: &[usize]) -> Vec<Vec<u8>> {
    let packet = Packet::read(frame).unwrap();
    let payload = &frame[packet.at..];
    let ends = starts[1..].iter().copied().chain([payload.len()]);
    starts
        .iter()
        .zip(ends)
        .map(|(&start, end)| part(frame, id, start, end < payload.len(), &payload[start..end]))
        .collect()
}

/// One part of a packet like that in `frame`.
fn part(frame: &[u8], id: u16, start: usize, more: bool, payload: &[u8]) -> Vec<u8> {
    let packet = Packet::read(frame).unwrap();
    let link = ethernet::parse(frame).unwrap().len;
    let mut bytes = frame[..packet.at].to_vec();
    if packet.src.is_ipv4() {
        let ip = &mut bytes[link..];
        let total = (20 + payload.len()) as u16;
        ip[2..4].copy_from_slice(&total.to_be_bytes());
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        let word = (start / 8) as u16 | if more { 0x2000 } else { 0 };
        ip[6..8].copy_from_slice(&word.to_be_bytes());
        ip[10..12].fill(0);
        let sum = !crate::checksum::sum(&ip[..20]);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        let len = (8 + payload.len()) as u16;
        bytes[link + 4..link + 6].copy_from_slice(&len.to_be_bytes());
        bytes[link + 6] = next::FRAGMENT;
        let [a, b] = (start as u16 | u16::from(more)).to_be_bytes();
        let [c, d] = id.to_be_bytes();
        bytes.extend([packet.protocol, 0, a, b, 0, 0, c, d]);
    }
    bytes.extend(payload);
    bytes
}

fn pair(v6: bool) -> Pair {
    let mut pair = Pair::listening(dual());
    pair.v6 = v6;
    pair.open();
    pair.host.transmit();
    pair
}

/// Buffers in which parts are put together.
fn waiting(host: &Host) -> usize {
    let bufs = 0..host.stack.bufs.count();
    bufs.filter(|&buf| host.stack.bufs.get(buf).place == Place::Reassembling).count()
}

#[test]
fn parts_in_any_order_make_the_whole() {
    for v6 in [false, true] {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut pair = pair(v6);
            let data: Vec<u8> = (0..1400).map(|i| i as u8).collect();
            let frame = pair.seg(ACK, Options::default(), &data).frame();
            let parts = cut(&frame, 7, &[0, 800, 1208]);
            for place in order {
                assert_eq!(pair.host.input(&parts[place]), Outcome::Consumed);
            }
            pair.host.poll();
            assert_eq!(pair.host.data[&pair.flow], data);
            let counters = pair.host.stack.counters();
            assert_eq!((counters.fragments_in, counters.reassembled), (3, 1));
            assert_eq!(counters.bytes_copied, 1420);
            assert_eq!(waiting(&pair.host), 0);
        }
    }
}

#[test]
fn a_part_that_comes_twice_does_no_harm_and_one_that_overlaps_does() {
    for v6 in [false, true] {
        let mut pair = pair(v6);
        let data = [5; 1000];
        let frame = pair.seg(ACK, Options::default(), &data).frame();
        let parts = cut(&frame, 7, &[0, 512]);
        pair.host.input(&parts[0]);
        pair.host.input(&parts[0]);
        pair.host.input(&parts[1]);
        assert_eq!(pair.host.poll().len(), 1);
        pair.seq += 1000;

        let frame = pair.seg(ACK, Options::default(), &data).frame();
        let payload = &frame[Packet::read(&frame).unwrap().at..];
        let whole = payload.len();
        // Behind the first 512 bytes: one that begins in them, one that says
        // that it is the end and is not, one beyond the end.
        let last = part(&frame, 8, 512, false, &payload[512..]);
        for (first, wrong) in [
            (
                part(&frame, 8, 0, true, &payload[..512]),
                part(&frame, 8, 504, true, &payload[504..520]),
            ),
            (
                part(&frame, 8, 512, true, &payload[512..520]),
                part(&frame, 8, 8, false, &payload[8..512]),
            ),
            (last.clone(), part(&frame, 8, whole.next_multiple_of(8), true, &[0; 8])),
            (last.clone(), part(&frame, 8, 8, false, &payload[8..512])),
        ] {
            let dropped = pair.host.stack.counters().drop_fragment;
            pair.host.input(&first);
            assert_eq!(waiting(&pair.host), 1);
            pair.host.input(&wrong);
            assert_eq!(waiting(&pair.host), 0);
            assert_eq!(pair.host.stack.counters().drop_fragment, dropped + 1);
        }
        assert!(pair.host.poll().is_empty());
    }
}

#[test]
fn what_does_not_fit_is_not_waited_for() {
    for v6 in [false, true] {
        let mut pair = pair(v6);
        let frame = pair.seg(ACK, Options::default(), &[1; 1400]).frame();
        // Longer than a buffer, not a multiple of eight, and empty.
        for (start, more, len) in
            [(2000, true, 8), (1800, false, 1000), (0, true, 12), (8, true, 0)]
        {
            pair.host.input(&part(&frame, 9, start, more, &vec![0; len]));
        }
        assert_eq!(pair.host.stack.counters().drop_fragment, 4);
        assert_eq!(waiting(&pair.host), 0);
        // More parts than a datagram may have.
        let starts: Vec<usize> = (0..9).map(|i| i * 8).collect();
        for part in cut(&frame, 10, &starts) {
            pair.host.input(&part);
        }
        assert_eq!(pair.host.stack.counters().reassembled, 0);
    }
}

#[test]
fn a_flood_displaces_its_own_and_the_oldest() {
    let mut pair = pair(true);
    let frame = pair.seg(ACK, Options::default(), &[1; 800]).frame();
    let from = |number: u16| {
        let mut frame = frame.clone();
        let source = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 9, number);
        frame[22..38].copy_from_slice(&source.octets());
        frame
    };
    for id in 0..100 {
        pair.host.input(&cut(&from(1), id, &[0, 400])[0]);
    }
    assert_eq!(waiting(&pair.host), 4);
    // The honest peer's first half is there, and stays while one sender floods.
    let parts = cut(&frame, 7, &[0, 400]);
    pair.host.input(&parts[0]);
    for id in 0..100 {
        pair.host.input(&cut(&from(1), id, &[0, 400])[0]);
    }
    pair.host.input(&parts[1]);
    assert_eq!(pair.host.poll().len(), 1);
    // From many, it is displaced, but the room does not grow.
    for number in 0..100 {
        pair.host.input(&cut(&from(number), 1, &[0, 400])[0]);
    }
    assert_eq!(waiting(&pair.host), 16);
    pair.host.pass_time(3 * SEC);
    pair.host.transmit();
    assert_eq!(waiting(&pair.host), 0);
}

#[test]
fn a_pool_that_runs_low_has_none_for_fragments() {
    let mut pair = pair(false);
    let frame = pair.seg(ACK, Options::default(), &[1; 800]).frame();
    let parts = cut(&frame, 7, &[0, 400]);
    let mut taken = Vec::new();
    while crate::Memory::free(&pair.host.mem) > 64 {
        taken.extend(pair.host.mem.take_for(Owner::Guest));
    }
    pair.host.input(&parts[0]);
    assert_eq!((waiting(&pair.host), pair.host.stack.counters().drop_fragment), (0, 1));
    for buf in taken {
        pair.host.mem.give_from(Owner::Guest, buf);
    }
    pair.host.input(&parts[0]);
    assert_eq!(waiting(&pair.host), 1);
}

#[test]
fn what_waited_too_long_is_reported_if_its_first_part_is_there() {
    for v6 in [false, true] {
        let mut pair = pair(v6);
        let frame = pair.seg(ACK, Options::default(), &[1; 800]).frame();
        let parts = cut(&frame, 7, &[0, 400]);
        pair.host.input(&parts[1]);
        pair.host.pass_time(3 * SEC);
        assert!(pair.recv().is_empty());
        assert!(pair.host.transmit().is_empty());
        pair.host.input(&parts[0]);
        pair.host.pass_time(3 * SEC);
        let frames = pair.host.transmit();
        let error = frames.last().unwrap();
        let packet = Packet::read(error).unwrap();
        let kind = if v6 { [icmpv6::TIME_EXCEEDED, 1] } else { [11, 1] };
        assert_eq!(error[packet.at..packet.at + 2], kind);
        assert_eq!(error[packet.at + 8..], parts[0][14..]);
        if v6 {
            Packet::icmpv6(error).unwrap();
        } else {
            assert_eq!(crate::checksum::sum(&error[packet.at..]), 0xffff);
        }
        // The late half opens nothing.
        pair.host.input(&parts[1]);
        assert!(pair.host.poll().is_empty());
    }
}

#[test]
fn congestion_that_one_part_met_the_whole_has_met() {
    for marked in [None, Some(0), Some(1)] {
        let mut pair = Pair::listening(Config { ecn: true, ..dual() });
        pair.v6 = true;
        pair.send(SYN | ECE | CWR, &[]);
        pair.seq += 1;
        pair.ack = pair.recv_one().seq.wrapping_add(1);
        pair.send(ACK, &[]);
        pair.host.poll();
        let frame = pair.seg(ACK, Options::default(), &[1; 800]).frame();
        let mut parts = cut(&frame, 7, &[0, 400]);
        for (place, part) in parts.iter_mut().enumerate() {
            let congested = marked == Some(place);
            part[15] |= if congested { ecn::CE } else { ecn::ECT_0 } << 4;
            pair.host.input(part);
        }
        assert_eq!(pair.host.poll().len(), 1);
        pair.host.pass_time(SEC);
        let echoed = pair.recv()[0].flags & ECE != 0;
        assert_eq!(echoed, marked.is_some(), "{marked:?}");
    }
}

#[test]
fn options_for_the_destination_may_be_in_the_part_that_was_cut() {
    let mut pair = pair(true);
    let frame = pair.seg(ACK, Options::default(), b"behind options").frame();
    let mut long = frame[..54].to_vec();
    long[20] = next::DESTINATION;
    long[19] += 8;
    long.extend([next::TCP, 0, 1, 4, 0, 0, 0, 0]);
    long.extend(&frame[54..]);
    let mut parts: Vec<Vec<u8>> = Vec::new();
    let payload = &long[54..];
    for (start, end) in [(0, 16), (16, payload.len())] {
        let mut part = part(&frame, 3, start, end < payload.len(), &payload[start..end]);
        part[54] = next::DESTINATION;
        parts.push(part);
    }
    for part in parts {
        pair.host.input(&part);
    }
    pair.host.poll();
    assert_eq!(pair.host.data[&pair.flow], b"behind options");
}

#[test]
fn neighbours_are_not_believed_in_parts() {
    let mut host = Host::new(dual(), 128);
    host.pass_time(2 * SEC);
    host.transmit();
    let message = crate::wire::ndp::Message::Solicitation { target: HOST6, mac: Some(PEER_MAC) };
    for part in cut(&ndp_frame(PEER6, HOST6, &message), 5, &[0, 16]) {
        host.input(&part);
    }
    assert_eq!(host.stack.counters().reassembled, 1);
    assert!(host.transmit().is_empty());
}

#[test]
fn a_ping_in_parts_is_answered_if_the_answer_needs_none() {
    for (len, answered) in [(1000, true), (1600, false)] {
        let mut host = Host::new(dual(), 128);
        let mut message = vec![8, 0, 0, 0, 1, 2, 3, 4];
        message.extend(vec![7; len]);
        let sum = !crate::checksum::sum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        for part in cut(&frame_v4(None, ipv4::ICMP, &message), 5, &[0, 800]) {
            host.input(&part);
        }
        let replies = host.transmit();
        let reply =
            replies.iter().find(|f| Packet::read(f).is_some_and(|p| p.protocol == ipv4::ICMP));
        assert_eq!(reply.map(|reply| reply.len()), answered.then_some(14 + 20 + 8 + len));
        assert_eq!(host.stack.counters().reassembled, 1);
    }
}

proptest! {
    /// However a segment is cut, shuffled and repeated, it arrives once and whole.
    #[test]
    fn any_cut_arrives(v6: bool, seed: u64, len in 1usize..1400, cuts in proptest::collection::btree_set(1usize..170, 0..7)) {
        let mut pair = pair(v6);
        let data: Vec<u8> = (0..len).map(|i| (i * 7) as u8).collect();
        let frame = pair.seg(ACK, Options::default(), &data).frame();
        let mut starts = vec![0];
        starts.extend(cuts.iter().map(|at| at * 8).filter(|&at| at < len + 20));
        let mut parts = cut(&frame, 77, &starts);
        let mut random = Random(seed | 1);
        for i in (1..parts.len()).rev() {
            parts.swap(i, random.below(i as u64 + 1) as usize);
        }
        for part in &parts {
            pair.host.input(part);
        }
        pair.host.poll();
        if parts.len() > 1 {
            prop_assert_eq!(pair.host.stack.counters().reassembled, 1);
        }
        prop_assert_eq!(&pair.host.data[&pair.flow], &data);
    }
}

#[test]
fn fragments_at_random_leak_nothing() {
    let mut random = Random(0x5eed_f00d);
    let mut pair = pair(true);
    for round in 0..5000u32 {
        let v6 = random.below(2) == 0;
        let seg = pair.seg(ACK, Options::default(), &vec![3; 200 + random.below(1200) as usize]);
        let frame = Seg { v6, ..seg }.frame();
        let first = 8 * (1 + random.below(10) as usize);
        let second = first + 8 * (1 + random.below(10) as usize);
        for mut part in cut(&frame, random.below(3) as u16, &[0, first, second]) {
            if random.below(8) == 0 {
                let at = 14 + random.below(part.len() as u64 - 14) as usize;
                part[at] = random.next() as u8;
            }
            if random.below(6) > 0 {
                pair.host.input(&part);
            }
        }
        pair.host.poll();
        if round % 16 == 0 {
            pair.host.pass_time(random.below(SEC));
            pair.host.transmit();
        }
    }
    assert!(pair.host.stack.counters().reassembled > 10);
    pair.host.pass_time(10 * SEC);
    pair.host.transmit();
    assert_eq!(waiting(&pair.host), 0);
}
