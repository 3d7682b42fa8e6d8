//! Flows over IPv6, and what is particular to its packets.

use core::net::{Ipv6Addr, SocketAddr};

use paste_abi::Event;

use super::harness::*;
use super::lossy::Random;
use crate::config::{Config, MS, Network, SEC};
use crate::stack::Outcome;
use crate::wire::ip::ecn;
use crate::wire::ipv6::next;
use crate::wire::ndp::{Advertisement, Message};
use crate::wire::tcp::{Options, Timestamps};
use crate::wire::{be16, be32, ethernet, icmpv6, ipv4, ipv6};

/// Puts extension headers, the first of kind `first`, in front of what a frame
/// carries.
fn extend(frame: &[u8], first: u8, extensions: &[u8]) -> Vec<u8> {
    let mut bytes = frame[..54].to_vec();
    bytes[20] = first;
    let len = be16(frame, 18) + extensions.len() as u16;
    bytes[18..20].copy_from_slice(&len.to_be_bytes());
    bytes.extend(extensions);
    bytes.extend(&frame[54..]);
    bytes
}

fn answer(target: Ipv6Addr, mac: [u8; 6]) -> Vec<u8> {
    let (router, solicited, overrides) = (false, true, true);
    let message = Advertisement { target, mac: Some(mac), router, solicited, overrides };
    ndp_frame(target, HOST6, &Message::Advertisement(message))
}

#[test]
fn a_listener_accepts_both_families() {
    let mut pair = Pair::over_v6(dual());
    assert_eq!(pair.host.events[0].peer(), SocketAddr::from((PEER6, 40000)));
    pair.send(ACK, b"over six");
    pair.host.poll();
    assert_eq!(pair.host.data[&pair.flow], b"over six");
    let over_v6 = pair.flow;
    pair.host.pass_time(40 * MS);
    pair.recv();

    pair.v6 = false;
    (pair.seq, pair.ack) = (5000, 0);
    pair.open();
    assert_eq!(pair.host.events[1].peer(), SocketAddr::from((PEER, 40000)));
    pair.send(ACK, b"over four");
    pair.host.poll();
    assert_eq!(pair.host.data[&pair.flow], b"over four");
    assert_ne!(pair.flow, over_v6);
}

#[test]
fn segments_are_shorter_by_the_longer_header() {
    let mut pair = Pair::listening(dual());
    for (v6, mss) in [(false, 1460), (true, 1440)] {
        pair.v6 = v6;
        pair.send_with(SYN, Options { mss: Some(9000), ..Options::default() }, &[]);
        pair.seq += 1;
        let syn = pair.recv_one();
        assert_eq!(syn.options.mss, Some(mss));
        pair.ack = syn.seq.wrapping_add(1);
        pair.send(ACK, &[]);
        let flow = pair.host.poll()[0].flow;
        pair.host.send(flow, &[7; 1800]);
        let sizes: Vec<usize> = pair.recv().iter().map(|seg| seg.data.len()).collect();
        assert_eq!(sizes, [usize::from(mss), 1800 - usize::from(mss)]);
    }
}

#[test]
fn one_flow_has_one_label_and_two_have_two() {
    let mut pair = Pair::over_v6(dual());
    let label = |frame: &[u8]| be32(frame, 14) & 0xfffff;
    pair.host.send(pair.flow, &[1; 1900]);
    let labels: Vec<u32> = pair.host.transmit().iter().map(|frame| label(frame)).collect();
    assert_eq!(labels.len(), 2);
    assert!(labels[0] == labels[1] && labels[0] != 0, "{labels:?}");
    pair.peer_port += 1;
    pair.send(SYN, &[]);
    assert_ne!(label(&pair.host.transmit()[0]), labels[0]);
}

#[test]
fn strangers_are_reset_over_ipv6() {
    let mut pair = Pair::listening(dual());
    (pair.v6, pair.port) = (true, 81);
    pair.send(SYN, &[]);
    let rst = pair.recv_one();
    assert_eq!((rst.flags, rst.ack, rst.v6), (RST | ACK, pair.seq + 1, true));
}

#[test]
fn the_congestion_mark_is_in_the_traffic_class() {
    let mut frame = Pair::over_v6(dual()).seg(ACK, Options::default(), b"x").frame();
    frame[15] |= ecn::CE << 4;
    assert_eq!(ipv6::parse(&frame[14..], frame.len() - 14).unwrap().ecn, ecn::CE);
}

#[test]
fn connect_asks_for_the_neighbour_and_goes_on() {
    for remote in [PEER6, "fe80::1234:5678".parse().unwrap()] {
        let mut host = Host::new(dual(), 16);
        host.pass_time(2 * MS);
        host.transmit();
        let flow = host.stack.connect(host.now, 0, SocketAddr::from((remote, 80)), 0, 9).unwrap();
        let frames = host.transmit();
        let (packet, message) = Packet::icmpv6(&frames[0]).unwrap();
        let own = if remote == PEER6 { HOST6 } else { host.stack.addresses.v6().unwrap()[1] };
        assert_eq!((packet.src, packet.hop_limit), (own.into(), 255));
        assert_eq!(packet.dst, ipv6::solicited_node(remote));
        assert_eq!(
            frames[0][..6],
            ipv6::group_mac(&remote.octets()).map(|b| b)[..2]
                .iter()
                .chain(&[0xff])
                .chain(&remote.octets()[13..])
                .copied()
                .collect::<Vec<u8>>()[..]
        );
        let asked = Message::Solicitation { target: remote, mac: Some(HOST_MAC) };
        assert_eq!(crate::wire::ndp::parse(message, message.len()), Some(asked));
        host.input(&answer(remote, PEER_MAC));
        let frames = host.transmit();
        let syn = Seg::read(&frames[0]).unwrap();
        assert_eq!((syn.flags, &frames[0][..6]), (SYN, &PEER_MAC[..]));
        assert_eq!(Packet::read(&frames[0]).unwrap().src, own);
        host.stack.abort(&mut host.mem, host.now, 0, flow).unwrap();
    }
}

#[test]
fn a_peer_off_the_link_is_reached_through_its_familys_gateway() {
    let gateway: Ipv6Addr = "fe80::1".parse().unwrap();
    let mut config = dual();
    config.ipv6.as_mut().unwrap().gateway = Some(gateway);
    let mut host = Host::new(config, 16);
    let far = SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 80));
    host.stack.connect(host.now, 0, far, 0, 0).unwrap();
    host.transmit();
    host.input(&answer(gateway, [2, 9, 9, 9, 9, 9]));
    let frames = host.transmit();
    assert_eq!(frames[0][..6], [2, 9, 9, 9, 9, 9]);
    assert_eq!(Packet::read(&frames[0]).unwrap().dst, far.ip());
}

#[test]
fn ipv6_needs_an_mtu_of_1280() {
    let mut host = Host::new(Config { mtu: 1279, ..dual() }, 16);
    let remote = SocketAddr::from((PEER6, 80));
    assert!(host.stack.connect(host.now, 0, remote, 0, 0).is_err());
    let mut pair = Pair::listening(Config { mtu: 1279, ..dual() });
    pair.v6 = true;
    assert_eq!(pair.send(SYN, &[]), Outcome::Foreign);
}

#[test]
fn extension_headers_are_skipped_and_their_rules_kept() {
    let mut pair = Pair::over_v6(dual());
    let frame = pair.seg(ACK, Options::default(), b"abc").frame();
    let pad = [next::TCP, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(pair.host.input(&extend(&frame, next::HOP_BY_HOP, &pad)), Outcome::Readable);
    pair.host.poll();
    assert_eq!(pair.host.data[&pair.flow], b"abc");

    // Longer than the private copy: counted, whatever is behind.
    let mut long = vec![next::TCP, 23, 1, 188];
    long.resize(192, 0);
    assert_eq!(pair.host.input(&extend(&frame, next::DESTINATION, &long)), Outcome::Consumed);
    assert_eq!(pair.host.stack.counters().drop_extensions, 1);
    pair.host.transmit();

    // What the sender is told of, with the frame that it sent.
    let cases: [(u8, &[u8], u8, u32); 4] = [
        (next::ROUTING, &[next::TCP, 0, 0, 1, 0, 0, 0, 0], 0, 42),
        (next::DESTINATION, &[next::TCP, 0, 0x80, 4, 0, 0, 0, 0], 2, 42),
        (next::DESTINATION, &[next::HOP_BY_HOP, 0, 1, 4, 0, 0, 0, 0], 1, 40),
        (next::DESTINATION, &[132, 0, 1, 4, 0, 0, 0, 0], 1, 40),
    ];
    for (first, extension, code, pointer) in cases {
        let wrong = extend(&frame, first, extension);
        assert_eq!(pair.host.input(&wrong), Outcome::Held, "{extension:?}");
        let frames = pair.host.transmit();
        let (packet, message) = Packet::icmpv6(&frames[0]).unwrap();
        assert_eq!((packet.src, packet.dst), (HOST6.into(), PEER6.into()));
        assert_eq!(message[..2], [icmpv6::PARAMETER_PROBLEM, code]);
        assert_eq!(be32(message, 4), pointer);
        assert_eq!(message[8..], wrong[14..]);
    }
    assert_eq!(pair.host.stack.counters().icmp_errors_out, 4);

    // Not if it carries an error itself, comes from nowhere, or is a group's.
    let mut error = extend(&frame, next::ROUTING, &[next::ICMPV6, 0, 0, 1, 0, 0, 0, 0]);
    error[62] = icmpv6::UNREACHABLE;
    assert_eq!(pair.host.input(&error), Outcome::Consumed);
    let mut nobody = extend(&frame, next::ROUTING, &[next::TCP, 0, 0, 1, 0, 0, 0, 0]);
    nobody[22..38].fill(0);
    assert_eq!(pair.host.input(&nobody), Outcome::Consumed);
    assert!(pair.host.transmit().is_empty());
}

#[test]
fn an_error_quotes_no_more_than_fits_the_smallest_mtu() {
    let mut host = Host::new(dual(), 16);
    let frame = frame_v6(None, PEER6, HOST6, 132, 64, &[5; 1400]);
    host.input(&frame);
    let frames = host.transmit();
    let error = frames.last().unwrap();
    assert_eq!(error.len(), 14 + 1280);
    assert_eq!(Packet::icmpv6(error).unwrap().1[8..], frame[14..14 + 1232]);
}

#[test]
fn strange_sources_and_destinations_are_dropped_or_not_ours() {
    let mut pair = Pair::over_v6(dual());
    let good = pair.seg(ACK, Options::default(), b"x").frame();
    let change = |at: usize, address: Ipv6Addr| {
        let mut frame = good.clone();
        frame[at..at + 16].copy_from_slice(&address.octets());
        finish_tcp(&mut frame);
        frame
    };
    for source in ["::", "::1", "ff02::1", "::ffff:10.0.0.2", "fd00:7::1"] {
        let frame = change(22, source.parse().unwrap());
        assert_eq!(pair.host.input(&frame), Outcome::Consumed, "{source}");
    }
    assert_eq!(pair.host.stack.counters().drop_bad_source, 5);
    for dst in ["fd00:7::99", "ff02::1", "ff02::1:ff00:1", "ff02::2", "::ffff:10.0.0.1"] {
        let frame = change(38, dst.parse().unwrap());
        assert_eq!(pair.host.input(&frame), Outcome::Foreign, "{dst}");
    }
    let mut other = good.clone();
    other[5] ^= 1;
    assert_eq!(pair.host.input(&other), Outcome::Foreign);
    assert_eq!(pair.host.input(&good), Outcome::Readable);
}

#[test]
fn a_stack_of_one_family_leaves_the_other_alone() {
    let mut pair = Pair::listening(config());
    pair.v6 = true;
    assert_eq!(pair.send(SYN, &[]), Outcome::Foreign);
    let mut pair = Pair::listening(Config { ipv4: None, ..dual() });
    assert_eq!(pair.send(SYN, &[]), Outcome::Foreign);
    let arp = arp_frame(crate::wire::arp::REQUEST, PEER, PEER_MAC, HOST);
    assert_eq!(pair.host.input(&arp), Outcome::Foreign);
    let remote = SocketAddr::from((PEER, 80));
    assert!(pair.host.stack.connect(pair.host.now, 0, remote, 0, 0).is_err());
}

#[test]
fn a_ping_is_answered_over_ipv6() {
    let mut host = Host::new(dual(), 16);
    host.transmit();
    for len in [0, 1, 56, 1400] {
        let mut message = vec![icmpv6::ECHO, 0, 0, 0, 1, 2, 3, 4];
        message.extend((0..len).map(|i| i as u8));
        let outcome = host.input(&icmpv6_frame(PEER6, HOST6, 64, &message));
        assert_eq!(outcome, Outcome::Held);
        let frames = host.transmit();
        let (packet, reply) = Packet::icmpv6(frames.last().unwrap()).unwrap();
        assert_eq!((packet.src, packet.dst), (HOST6.into(), PEER6.into()));
        assert_eq!(reply[..2], [icmpv6::ECHO_REPLY, 0]);
        assert_eq!(reply[4..], message[4..]);
    }
    // A wrong checksum, and one without a header.
    let mut wrong = icmpv6_frame(PEER6, HOST6, 64, &[icmpv6::ECHO, 0, 0, 0, 1, 2, 3, 4]);
    wrong[60] ^= 1;
    assert_eq!(host.input(&wrong), Outcome::Consumed);
    let short = frame_v6(None, PEER6, HOST6, next::ICMPV6, 64, &[icmpv6::ECHO, 0, 0, 0]);
    assert_eq!(host.input(&short), Outcome::Consumed);
    assert_eq!(host.stack.counters().drop_icmp, 2);
    host.check_empty();
}

/// An error about a segment of ours, with extension headers in the quote.
fn report(sent: &[u8], [kind, code]: [u8; 2], word: u32, extensions: &[u8]) -> Vec<u8> {
    let quoted = if extensions.is_empty() {
        sent.to_vec()
    } else {
        extend(sent, next::DESTINATION, extensions)
    };
    let mut message = vec![kind, code, 0, 0];
    message.extend(word.to_be_bytes());
    message.extend(&quoted[14..quoted.len().min(14 + 200)]);
    icmpv6_frame("2001:db8::99".parse().unwrap(), HOST6, 60, &message)
}

#[test]
fn packet_too_big_makes_segments_smaller() {
    for extensions in [&[][..], &[next::TCP, 0, 1, 4, 0, 0, 0, 0]] {
        let mut pair = Pair::over_v6(dual());
        pair.host.send(pair.flow, &[1; 1400]);
        let sent = pair.host.transmit().remove(0);
        assert_eq!(sent.len(), 14 + 60 + 1400);
        let mut forged = sent.clone();
        forged[58] ^= 0x80;
        // Not in flight; less than every link carries; and the truth.
        pair.host.input(&report(&forged, [icmpv6::PACKET_TOO_BIG, 0], 1300, extensions));
        pair.host.input(&report(&sent, [icmpv6::PACKET_TOO_BIG, 0], 1279, extensions));
        assert!(pair.recv().is_empty());
        assert_eq!(pair.host.stack.counters().drop_icmp, 2);
        pair.host.input(&report(&sent, [icmpv6::PACKET_TOO_BIG, 0], 1300, extensions));
        let again = pair.recv();
        assert_eq!(again[0].data.len(), 1240, "{again:?}");
    }
}

#[test]
fn errors_end_only_flows_that_are_being_opened() {
    for (error, ends) in
        [([1, 0], false), ([1, 1], true), ([1, 3], false), ([1, 4], true), ([3, 0], false)]
    {
        let mut host = Host::new(dual(), 16);
        host.stack.connect(host.now, 0, SocketAddr::from((PEER6, 80)), 0, 0).unwrap();
        host.transmit();
        host.input(&answer(PEER6, PEER_MAC));
        let syn = host.transmit().remove(0);
        host.input(&report(&syn, error, 0, &[]));
        host.poll();
        assert_eq!(host.kinds() == [Event::Reset], ends, "{error:?}");

        let mut pair = Pair::over_v6(dual());
        pair.host.send(pair.flow, b"x");
        let sent = pair.host.transmit().remove(0);
        pair.host.input(&report(&sent, error, 0, &[]));
        pair.host.poll();
        assert_eq!(pair.host.kinds(), [Event::Accepted], "{error:?}");
        assert_eq!(pair.host.stack.counters().icmp_soft_errors_in, 1);
    }
}

#[test]
fn errors_are_limited() {
    let config = Config { icmp_errors_per_second: 10, ..dual() };
    let mut host = Host::new(config, 64);
    host.transmit();
    let mut sent = 0;
    for _ in 0..50 {
        host.input(&frame_v6(None, PEER6, HOST6, 132, 64, &[0; 8]));
        host.input(&frame_v4(None, 132, &[0; 8]));
        sent += host.transmit().len();
    }
    assert_eq!(sent, 11);
    assert_eq!(host.stack.counters().rate_limited, 89);
    host.pass_time(SEC);
    host.input(&frame_v4(None, 132, &[0; 8]));
    let frames = host.transmit();
    let error = frames.last().unwrap();
    assert_eq!(error[34..36], [3, 2]);
    assert_eq!(crate::checksum::sum(&error[34..]), 0xffff);
    // Not about ICMP: it may be an error.
    host.input(&frame_v4(None, ipv4::ICMP, &[3, 1, 0xfc, 0xfe, 0, 0, 0, 0]));
    assert!(host.transmit().is_empty());
}

#[test]
fn only_frames_of_our_vlan_are_ours() {
    let tagged = |pair: &Pair, vlan| {
        let seg = pair.seg(ACK, Options::default(), b"x");
        Seg { vlan, ..seg }.frame()
    };
    for v6 in [false, true] {
        let mut pair = Pair::listening(Config { vlan: Some(7), ..dual() });
        pair.v6 = v6;
        pair.open();
        for vlan in [None, Some(0), Some(8)] {
            let frame = tagged(&pair, vlan);
            assert_eq!(pair.host.input(&frame), Outcome::Foreign, "{vlan:?}");
        }
        assert_eq!(pair.host.input(&tagged(&pair, Some(7))), Outcome::Readable);
        pair.host.send(pair.flow, b"y");
        let frame = pair.host.transmit().remove(0);
        assert_eq!(ethernet::parse(&frame).unwrap().vlan, Some(7));

        let mut pair = Pair::listening(dual());
        pair.v6 = v6;
        pair.open();
        assert_eq!(pair.host.input(&tagged(&pair, Some(7))), Outcome::Foreign);
        // A priority and no more.
        let mut frame = tagged(&pair, Some(0));
        frame[14] = 0xa0;
        assert_eq!(pair.host.input(&frame), Outcome::Readable);
        assert!(pair.host.transmit().iter().all(|f| ethernet::parse(f).unwrap().len == 14));
    }
}

#[test]
fn frames_cut_short_at_any_byte_are_dropped_over_ipv6() {
    let mut pair = Pair::over_v6(dual());
    let ts = Some(Timestamps { value: 1, echo: 2 });
    let plain = pair.seg(ACK, Options { timestamps: ts, ..Options::default() }, b"abc").frame();
    let frame = extend(&plain, next::DESTINATION, &[next::TCP, 0, 1, 4, 0, 0, 0, 0]);
    for len in 0..frame.len() {
        let outcome = pair.host.input(&frame[..len]);
        assert!(matches!(outcome, Outcome::Consumed | Outcome::Foreign), "{len}: {outcome:?}");
    }
    assert_eq!(pair.host.input(&frame), Outcome::Readable);
    for message in
        [answer(PEER6, PEER_MAC), icmpv6_frame(PEER6, HOST6, 64, &[128, 0, 0, 0, 0, 0, 0, 0])]
    {
        for len in 0..message.len() {
            let outcome = pair.host.input(&message[..len]);
            assert!(matches!(outcome, Outcome::Consumed | Outcome::Foreign), "{len}");
        }
    }
}

#[test]
fn headers_that_are_nearly_right_do_no_harm() {
    let mut random = Random(0x1db9_55aa);
    let mut pair = Pair::over_v6(Config { icmp_errors_per_second: 1_000_000, ..dual() });
    let kinds = [0, 6, 43, 44, 58, 59, 60, 132];
    for _ in 0..40_000 {
        let mut extensions = Vec::new();
        let mut first = kinds[random.below(8) as usize];
        for _ in 0..random.below(4) {
            let next = kinds[random.below(8) as usize];
            let units = if random.below(4) == 0 { random.next() as u8 } else { 0 };
            extensions.extend([next, units]);
            extensions.extend((0..6).map(|_| random.next() as u8 & random.next() as u8));
            if random.below(2) == 0 {
                first = [0, 43, 44, 60][random.below(4) as usize];
            }
        }
        let plain = match random.below(3) {
            0 => pair.seg(ACK, Options::default(), &[1; 40]).frame(),
            1 => answer(PEER6, PEER_MAC),
            _ => icmpv6_frame(PEER6, HOST6, 64, &[random.next() as u8; 60]),
        };
        let mut frame = extend(&plain, first, &extensions);
        for _ in 0..random.below(4) {
            let at = 14 + random.below(frame.len() as u64 - 14) as usize;
            frame[at] = random.next() as u8;
        }
        if random.below(3) == 0 {
            frame[38..54].copy_from_slice(&ipv6::ALL_NODES.octets());
            frame[..6].copy_from_slice(&ipv6::group_mac(&ipv6::ALL_NODES.octets()));
        }
        pair.host.input(&frame);
        pair.host.poll();
        pair.host.transmit();
    }
    pair.host.pass_time(10 * SEC);
    pair.host.transmit();
    let stacks = pair.host.mem.owners.iter().filter(|o| **o == Owner::Stack).count();
    assert_eq!(stacks, 0);
}

#[test]
fn a_network_without_a_gateway_ends_at_its_prefix() {
    let network = Network { address: HOST6, prefix_len: 64, gateway: None };
    let mut host = Host::new(Config { ipv6: Some(network), ..dual() }, 16);
    let far = SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 80));
    let refused = host.stack.connect(host.now, 0, far, 0, 0);
    assert_eq!(refused, Err(paste_abi::Reason::Unreachable));
}
