//! Input that no honest peer sends: nothing may panic, leak or grow.

use paste_abi::Flow;

use super::harness::*;
use super::lossy::Random;
use crate::config::{Config, MS};
use crate::frame::{RxCsum, RxFrame};
use crate::stack::{Outcome, Tx};
use crate::tcp::seq::Seq;
use crate::wire::tcp::{Options, SackBlock, SackBlocks, Timestamps};
use crate::wire::{arp, ethernet, ipv4};

/// A frame that is nearly right: built well, then changed here and there, with
/// the checksums mended so that the change gets through.
fn nearly_right(pair: &Pair, random: &mut Random) -> Vec<u8> {
    let near = |random: &mut Random, value: u32| match random.below(6) {
        0 => random.next() as u32,
        1 => value.wrapping_add(random.below(70_000) as u32),
        2 => value.wrapping_sub(random.below(70_000) as u32),
        3 => value.wrapping_add(random.below(4) as u32),
        _ => value,
    };
    let data = vec![random.next() as u8; random.below(1400) as usize * random.below(2) as usize];
    let mut options = Options {
        mss: (random.below(4) == 0).then(|| random.next() as u16),
        scale: (random.below(4) == 0).then(|| random.below(15) as u8),
        timestamps: (random.below(4) == 0)
            .then(|| Timestamps { value: near(random, 100), echo: random.next() as u32 }),
        sack_permitted: random.below(4) == 0,
        sack: SackBlocks::default(),
    };
    for _ in 0..random.below(4) {
        let (start, end) = (Seq(near(random, pair.ack)), Seq(near(random, pair.ack)));
        options.sack.push(SackBlock { start, end });
    }
    options.sack.truncate(if options.timestamps.is_some() { 1 } else { 3 });
    let mut seg = pair.seg(random.next() as u8, options, &data);
    if random.below(3) > 0 {
        seg.flags = ACK | (seg.flags & PSH);
    }
    seg.seq = near(random, pair.seq);
    seg.ack = near(random, pair.ack);
    seg.window = random.next() as u16;
    if random.below(4) == 0 {
        seg.src_port = 40000 + random.below(80) as u16;
    }
    let mut frame = seg.frame();
    for _ in 0..random.below(3) {
        let at = 34 + random.below(frame.len() as u64 - 34) as usize;
        frame[at] = random.next() as u8;
    }
    if random.below(8) > 0 {
        finish_tcp(&mut frame);
    }
    frame
}

#[test]
fn segments_that_are_nearly_right_do_no_harm() {
    for seed in 1..40 {
        let mut random = Random(seed * 0x1234_5677);
        let timestamps = seed % 2 == 0;
        let mut pair =
            Pair::listening(Config { timestamps, flows_max: 16, time_wait_max: 4, ..config() });
        pair.host.reads = seed % 3 != 0;
        let mut flows: Vec<Flow> = Vec::new();
        for _ in 0..500 {
            let frame = nearly_right(&pair, &mut random);
            pair.host.input(&frame);
            if random.below(3) == 0 {
                for slot in pair.host.poll() {
                    if !flows.contains(&slot.flow) {
                        flows.push(slot.flow);
                    }
                }
            }
            for frame in pair.host.transmit() {
                if let Some(seg) = Seg::read(&frame) {
                    // The peer follows, so that some of it gets through.
                    if seg.dst_port == pair.peer_port && seg.flags & RST == 0 {
                        pair.ack = seg.seq.wrapping_add(seg.data.len() as u32 + 1);
                        pair.seq = seg.ack;
                    }
                }
            }
            let flow = flows.get(random.below(flows.len() as u64 + 1) as usize).copied();
            let flow = flow.unwrap_or(Flow(random.next() as u32));
            let host = &mut pair.host;
            match random.below(20) {
                0 => drop(host.stack.close(&mut host.mem, host.now, 0, flow)),
                1 => drop(host.stack.abort(&mut host.mem, host.now, 0, flow)),
                2..6 => {
                    let keep = random.below(2) == 0;
                    let _ = host.try_send(flow, &[1; 900], Tx { keep, ..Tx::default() });
                }
                6 => host.pass_time(random.below(5000) * MS),
                7 => host.pass_time(20 * MS),
                _ => {}
            }
            for buf in 0..256u32 {
                if random.below(50) == 0 && pair.host.mem.owners[buf as usize] == Owner::Guest {
                    pair.host.give_up(buf);
                }
            }
        }
        let host = &mut pair.host;
        host.stack.close_channel(&mut host.mem, host.now, 0);
        host.pass_time(0);
        host.transmit();
        // A RST may wait for its neighbour, and TIME-WAIT for its time.
        for _ in 0..10 {
            host.pass_time(10_000 * MS);
            host.transmit();
        }
        host.check_empty();
    }
}

#[test]
fn random_bytes_are_dropped() {
    let mut random = Random(99);
    let mut pair = Pair::established(config());
    for round in 0..20_000 {
        let len = random.below(200) as usize;
        let mut frame: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        if len >= 34 && round % 4 > 0 {
            ethernet::write(&mut frame, &HOST_MAC, &PEER_MAC, None, ethernet::IPV4);
            if round % 4 > 1 {
                let protocol = [ipv4::TCP, ipv4::ICMP][round % 2];
                ipv4::write(&mut frame[14..], PEER, HOST, protocol, 0, len - 34);
            }
        }
        let outcome = pair.host.input(&frame);
        assert!(matches!(outcome, Outcome::Consumed | Outcome::Foreign), "{outcome:?}");
    }
    assert_eq!(pair.host.mem.owners.iter().filter(|o| **o == Owner::Stack).count(), 0);
}

#[test]
fn frames_cut_short_at_any_byte_are_dropped() {
    let mut pair = Pair::established(config());
    let ts = Some(Timestamps { value: 1, echo: 2 });
    let frame = pair.seg(ACK, Options { timestamps: ts, ..Options::default() }, b"abc").frame();
    for len in 0..frame.len() {
        assert_ne!(pair.host.input(&frame[..len]), Outcome::Readable, "{len}");
    }
    assert_eq!(pair.host.input(&frame), Outcome::Readable);
    let whole = arp_frame(arp::REQUEST, PEER, PEER_MAC, HOST);
    for len in 0..whole.len() {
        assert_ne!(pair.host.input(&whole[..len]), Outcome::Held, "{len}");
    }
}

#[test]
fn link_padding_is_not_payload_and_options_are_skipped() {
    let mut pair = Pair::established(config());
    let mut frame = pair.seg(ACK, Options::default(), b"abc").frame();
    frame.resize(60, 0xee);
    assert_eq!(pair.host.input(&frame), Outcome::Readable);
    pair.host.poll();
    assert_eq!(pair.host.data[&pair.flow], b"abc");
    pair.seq += 3;

    // The longest headers that there are: 60 bytes of IP, 60 of TCP.
    let plain = pair.seg(ACK, Options::default(), b"def").frame();
    let mut long = plain[..34].to_vec();
    long[14] = 0x4f;
    long.extend([1; 40]);
    let mut tcp = plain[34..54].to_vec();
    tcp[12] = 0xf0;
    tcp.extend([1; 40]);
    tcp.extend(b"def");
    tcp[16..18].fill(0);
    let addresses = crate::checksum::add(
        crate::checksum::sum(&PEER.octets()),
        crate::checksum::sum(&HOST.octets()),
    );
    let pseudo = crate::checksum::pseudo(addresses, ipv4::TCP, tcp.len());
    let sum = !crate::checksum::add(pseudo, crate::checksum::sum(&tcp));
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let total = (60 + tcp.len()) as u16;
    long[16..18].copy_from_slice(&total.to_be_bytes());
    long[24..26].fill(0);
    let sum = !crate::checksum::sum(&long[14..74]);
    long[24..26].copy_from_slice(&sum.to_be_bytes());
    long.extend(tcp);
    assert_eq!(pair.host.input(&long), Outcome::Readable);
    pair.host.poll();
    assert_eq!(pair.host.data[&pair.flow], b"abcdef");
}

#[test]
fn fragments_strange_sources_and_other_protocols_are_counted() {
    let mut pair = Pair::established(config());
    let mend = |mut frame: Vec<u8>, change: &dyn Fn(&mut [u8])| {
        change(&mut frame[14..34]);
        frame[24..26].fill(0);
        let sum = !crate::checksum::sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    let good = pair.seg(ACK, Options::default(), b"x").frame();
    pair.host.input(&mend(good.clone(), &|ip| ip[6] = 0x20));
    pair.host.input(&mend(good.clone(), &|ip| ip[7] = 1));
    for source in [[10, 0, 0, 255], [255; 4], [0; 4], [127, 0, 0, 1], [224, 1, 1, 1], [10, 0, 0, 1]]
    {
        pair.host.input(&mend(good.clone(), &|ip| ip[12..16].copy_from_slice(&source)));
    }
    pair.host.input(&mend(good.clone(), &|ip| ip[9] = 17));
    let mut foreign = good.clone();
    foreign[5] ^= 1;
    assert_eq!(pair.host.input(&foreign), Outcome::Foreign, "another station");
    let other = mend(good.clone(), &|ip| ip[19] = 77);
    assert_eq!(pair.host.input(&other), Outcome::Foreign, "another address");
    let counters = *pair.host.stack.counters();
    assert_eq!((counters.fragments_in, counters.drop_bad_source), (2, 6));
    assert_eq!((counters.drop_protocol, counters.foreign), (1, 2));
    assert_eq!(pair.host.input(&good), Outcome::Readable);
}

#[test]
fn frames_outside_their_buffer_are_dropped() {
    let mut host = Host::new(config(), 4);
    for (buf, offset, len) in
        [(4, 0, 60), (u32::MAX, 0, 60), (0, 2000, 60), (0, u16::MAX, u16::MAX)]
    {
        let frame = RxFrame { buf, offset, len, csum: RxCsum::Valid, time: 0 };
        let outcome = host.stack.input(&mut host.mem, host.now, &frame);
        assert_eq!(outcome, Outcome::Consumed);
    }
    assert_eq!(host.stack.counters().drop_short, 4);
}

#[test]
fn a_flood_of_syns_ends_at_the_backlog_and_passes() {
    let mut pair = Pair::listening(config());
    for i in 0..5000u32 {
        pair.peer_port = 1 + i as u16;
        pair.send(SYN, &[]);
        if i % 100 == 0 {
            pair.recv();
        }
    }
    assert_eq!(pair.host.stack.flows(), 8);
    for _ in 0..100 {
        pair.host.pass_time(1000 * MS);
        pair.recv();
    }
    pair.host.check_empty();
    pair.open();
}
