//! Neighbour discovery: what is said when a host comes to its link, who is
//! believed about what, and what becomes of a neighbour with time.

use core::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::harness::*;
use crate::config::{Config, MS, SEC};
use crate::stack::Outcome;
use crate::wire::ndp::{Advertisement, Message};
use crate::wire::{arp, be16, ethernet, ipv6, mld, ndp};

const OTHER_MAC: [u8; 6] = [2, 9, 9, 9, 9, 9];

fn advertise(target: Ipv6Addr, mac: Option<[u8; 6]>, bits: [bool; 3]) -> Message {
    let [router, solicited, overrides] = bits;
    Message::Advertisement(Advertisement { target, mac, router, solicited, overrides })
}

/// Messages of ICMPv6 that the host sends now.
fn sent(host: &mut Host) -> Vec<(Packet, Vec<u8>)> {
    let frames = host.transmit();
    let messages = frames.iter().filter_map(|frame| Packet::icmpv6(frame));
    messages.map(|(packet, message)| (packet, message.to_vec())).collect()
}

fn said(message: &[u8]) -> Option<Message> {
    ndp::parse(message, message.len())
}

/// A host that has come to its link, with a flow that waits for `PEER6`.
fn asking() -> Host {
    let mut host = Host::new(dual(), 16);
    host.stack.connect(host.now, 0, SocketAddr::from((PEER6, 80)), 0, 0).unwrap();
    host.pass_time(2 * SEC);
    host.transmit();
    host
}

/// Where the host's next frame to `PEER6` goes.
fn goes_to(host: &mut Host) -> Option<[u8; 6]> {
    host.stack.connect(host.now, 0, SocketAddr::from((PEER6, 81)), 0, 0).unwrap();
    let frames = host.transmit();
    let syn = frames.iter().find(|frame| Seg::read(frame).is_some())?;
    Some(ethernet::parse(syn).unwrap().dst)
}

#[test]
fn a_host_says_what_it_listens_to_and_looks_for_its_double() {
    let mut host = Host::new(Config { dad_probes: 1, ..dual() }, 16);
    let own = [HOST6, host.stack.addresses.v6().unwrap()[1]];
    host.pass_time(0);
    host.pass_time(2 * MS);
    let first = sent(&mut host);
    let (packet, report) = &first[0];
    assert_eq!((packet.src, packet.dst), ("::".parse().unwrap(), "ff02::16".parse().unwrap()));
    assert_eq!((packet.hop_limit, report[0], be16(report, 6)), (1, 143, 2));
    for (i, address) in own.iter().enumerate() {
        assert_eq!(report[8 + 20 * i], 4);
        let group = ipv6::solicited_node(*address).octets();
        assert_eq!(report[12 + 20 * i..28 + 20 * i], group);
        let (packet, probe) = &first[1 + i];
        assert_eq!(packet.src, IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        assert_eq!((packet.dst, packet.hop_limit), (ipv6::solicited_node(*address).into(), 255));
        assert_eq!(said(probe), Some(Message::Solicitation { target: *address, mac: None }));
    }
    assert_eq!(first.len(), 3);
    // A second later the addresses are ours, and the report has a source.
    host.pass_time(SEC + 2 * MS);
    let second = sent(&mut host);
    assert_eq!(second.len(), 1);
    assert_eq!((second[0].0.src, second[0].1[0]), (own[1].into(), 143));
    host.pass_time(100 * SEC);
    assert!(sent(&mut host).is_empty());
}

#[test]
fn an_address_that_may_be_anothers_answers_without_overriding_and_does_not_ask() {
    let mut host = Host::new(Config { dad_probes: 2, ..dual() }, 16);
    host.pass_time(0);
    let ask = Message::Solicitation { target: HOST6, mac: Some(PEER_MAC) };
    let group = ipv6::solicited_node(HOST6);
    host.input(&ndp_frame(PEER6, group, &ask));
    let answers = sent(&mut host);
    assert!(answers.iter().any(|(_, message)| {
        said(message) == Some(advertise(HOST6, Some(HOST_MAC), [false, true, false]))
    }));
    host.stack.connect(host.now, 0, SocketAddr::from((PEER6, 80)), 0, 0).unwrap();
    let asks = |host: &mut Host| {
        let asks = |m: &Vec<u8>| matches!(said(m), Some(Message::Solicitation { target, .. }) if target == PEER6);
        sent(host).iter().filter(|(_, message)| asks(message)).count()
    };
    assert_eq!(asks(&mut host), 0);
    host.pass_time(SEC);
    assert_eq!(asks(&mut host), 0);
    host.pass_time(SEC + 2 * MS);
    assert_eq!(asks(&mut host), 1);
    host.input(&ndp_frame(PEER6, group, &ask));
    let answers = sent(&mut host);
    assert_eq!(said(&answers[0].1), Some(advertise(HOST6, Some(HOST_MAC), [false, true, true])));
}

#[test]
fn a_double_is_counted_and_answered() {
    let mut host = Host::new(Config { dad_probes: 1, ..dual() }, 16);
    host.pass_time(0);
    host.transmit();
    let (nobody, group) = (Ipv6Addr::UNSPECIFIED, ipv6::solicited_node(HOST6));
    let probe = ndp_frame(nobody, group, &Message::Solicitation { target: HOST6, mac: None });
    assert_eq!(host.input(&probe), Outcome::Consumed);
    assert_eq!(host.stack.counters().address_conflicts, 1);
    let answers = sent(&mut host);
    let (packet, message) = answers.last().unwrap();
    assert_eq!(packet.dst, IpAddr::V6(ipv6::ALL_NODES));
    assert_eq!(said(message), Some(advertise(HOST6, Some(HOST_MAC), [false, false, false])));
    host.input(&ndp_frame(PEER6, ipv6::ALL_NODES, &advertise(HOST6, Some(PEER_MAC), [false; 3])));
    assert_eq!(host.stack.counters().address_conflicts, 2);
    // Our own probe, back from a switch, is none; nor is a probe later on.
    let mut own = probe.clone();
    own[6..12].copy_from_slice(&HOST_MAC);
    assert_eq!(host.input(&own), Outcome::Consumed);
    host.pass_time(2 * SEC);
    host.input(&probe);
    assert_eq!(host.stack.counters().address_conflicts, 2);
    let answers = sent(&mut host);
    let last = said(&answers.last().unwrap().1);
    assert_eq!(last, Some(advertise(HOST6, Some(HOST_MAC), [false, false, true])));
    // The same of an IPv4 address.
    host.input(&arp_frame(arp::REPLY, HOST, PEER_MAC, PEER));
    assert_eq!(host.stack.counters().address_conflicts, 3);
}

#[test]
fn solicitations_are_judged_and_those_for_others_are_not_ours() {
    let mut host = Host::new(dual(), 16);
    host.pass_time(2 * SEC);
    host.transmit();
    let group = ipv6::solicited_node(HOST6);
    let ask = |mac| Message::Solicitation { target: HOST6, mac };
    // For another with the same last three bytes: the guest's kernel may be it.
    let twin: Ipv6Addr = "fd00:9::1".parse().unwrap();
    assert_eq!(ipv6::solicited_node(twin), group);
    let for_twin = Message::Solicitation { target: twin, mac: Some(PEER_MAC) };
    assert_eq!(host.input(&ndp_frame(PEER6, group, &for_twin)), Outcome::Foreign);
    // Forwarded by a router, without a source but with an address, without a
    // source and to one host, from a group's station.
    let nobody = Ipv6Addr::UNSPECIFIED;
    let mut far = ndp_frame(PEER6, group, &ask(Some(PEER_MAC)));
    far[21] = 254;
    for wrong in [
        far,
        ndp_frame(nobody, group, &ask(Some(PEER_MAC))),
        ndp_frame(nobody, HOST6, &ask(None)),
        ndp_frame(PEER6, group, &ask(Some([0xff; 6]))),
    ] {
        let dropped = host.stack.counters().drop_ndp;
        host.input(&wrong);
        assert_eq!(host.stack.counters().drop_ndp, dropped + 1);
    }
    assert!(host.transmit().is_empty());
    // To one host, without an address: the answer goes where it came from.
    host.input(&ndp_frame(PEER6, HOST6, &ask(None)));
    let frames = host.transmit();
    assert_eq!(ethernet::parse(&frames[0]).unwrap().dst, PEER_MAC);
    assert_eq!(host.stack.counters().ndp_advertisements_out, 1);
}

#[test]
fn advertisements_are_believed_by_their_rules() {
    let reply = |bits, mac| ndp_frame(PEER6, HOST6, &advertise(PEER6, mac, bits));
    // What is known before, the flags of what comes, and where frames go then.
    let answered = [false, true, true];
    for (before, router_solicited_override, mac, then) in [
        (None, answered, PEER_MAC, Some(PEER_MAC)),
        // Nobody asked, but it is better than nothing.
        (None, [false, false, false], OTHER_MAC, Some(OTHER_MAC)),
        (Some(PEER_MAC), answered, OTHER_MAC, Some(OTHER_MAC)),
        (Some(PEER_MAC), [false, false, true], OTHER_MAC, Some(OTHER_MAC)),
        // A second one that does not override.
        (Some(PEER_MAC), [false, true, false], OTHER_MAC, Some(PEER_MAC)),
        (Some(PEER_MAC), [false, false, false], OTHER_MAC, Some(PEER_MAC)),
        // A group has no say.
        (None, answered, [0xff; 6], None),
    ] {
        let mut host = asking();
        if let Some(mac) = before {
            host.input(&reply(answered, Some(mac)));
            host.transmit();
        }
        host.input(&reply(router_solicited_override, Some(mac)));
        let what = format!("{before:?} {router_solicited_override:?} {mac:?}");
        assert_eq!(goes_to(&mut host), then, "{what}");
    }
    // Without an address it says nothing of a neighbour that is not known.
    let mut host = asking();
    host.input(&reply(answered, None));
    assert_eq!(goes_to(&mut host), None);
    assert_eq!(host.stack.counters().drop_ndp, 1);
    // In answer to us, and to all.
    let message = advertise(PEER6, Some(PEER_MAC), answered);
    host.input(&ndp_frame(PEER6, ipv6::ALL_NODES, &message));
    assert_eq!(host.stack.counters().drop_ndp, 2);
    // Of one that nobody asked for.
    let stranger = "fd00:7::77".parse().unwrap();
    host.input(&ndp_frame(stranger, HOST6, &advertise(stranger, Some(PEER_MAC), answered)));
    assert_eq!(host.stack.counters().drop_ndp, 3);
}

#[test]
fn a_neighbour_that_is_only_hinted_at_is_used_and_asked_for() {
    let mut host = asking();
    let ask = Message::Solicitation { target: HOST6, mac: Some(PEER_MAC) };
    host.input(&ndp_frame(PEER6, ipv6::solicited_node(HOST6), &ask));
    assert_eq!(goes_to(&mut host), Some(PEER_MAC));
    // Nobody confirms it: it is forgotten.
    for _ in 0..5 {
        host.pass_time(2 * SEC);
        host.transmit();
    }
    assert_eq!(goes_to(&mut host), None);
}

#[test]
fn an_old_neighbour_is_asked_for_directly_and_forgotten_without_an_answer() {
    let mut host = asking();
    let answer = ndp_frame(PEER6, HOST6, &advertise(PEER6, Some(PEER_MAC), [false, true, true]));
    host.input(&answer);
    assert_eq!(goes_to(&mut host), Some(PEER_MAC));
    host.pass_time(301 * SEC);
    host.transmit();
    let remote = SocketAddr::from((PEER6, 82));
    host.stack.connect(host.now, 0, remote, 0, 0).unwrap();
    let frames = host.transmit();
    let ask = frames.iter().find(|frame| Packet::icmpv6(frame).is_some()).unwrap();
    let (packet, message) = Packet::icmpv6(ask).unwrap();
    assert_eq!((packet.dst, &ask[..6]), (PEER6.into(), &PEER_MAC[..]));
    let asked = Message::Solicitation { target: PEER6, mac: Some(HOST_MAC) };
    assert_eq!(said(message), Some(asked));
    for _ in 0..5 {
        host.pass_time(2 * SEC);
        host.transmit();
    }
    assert_eq!(goes_to(&mut host), None);
}

#[test]
fn routers_are_listened_to_only_if_that_is_wanted() {
    let router: Ipv6Addr = "fe80::99".parse().unwrap();
    let far = SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 80));
    let offer = |lifetime| {
        let message = Message::RouterAdvertisement { lifetime, mac: Some(OTHER_MAC) };
        ndp_frame(router, ipv6::ALL_NODES, &message)
    };
    let mut host = Host::new(dual(), 16);
    assert_eq!(host.input(&offer(1800)), Outcome::Foreign);
    assert!(host.stack.connect(host.now, 0, far, 0, 0).is_err());

    let mut host = Host::new(Config { accept_ra: true, ..dual() }, 16);
    host.pass_time(0);
    host.pass_time(2 * MS);
    let asks = |host: &mut Host| sent(host).iter().filter(|(_, m)| m[0] == 133).count();
    assert_eq!(asks(&mut host), 1);
    host.pass_time(4 * SEC + 2 * MS);
    assert_eq!(asks(&mut host), 1);
    // The guest's own kernel wants to hear it too.
    assert_eq!(host.input(&offer(10)), Outcome::Foreign);
    host.pass_time(4 * SEC);
    assert_eq!(asks(&mut host), 0);
    assert!(host.stack.connect(host.now, 0, far, 0, 0).is_ok());
    host.pass_time(6 * SEC);
    assert!(host.stack.connect(host.now, 0, far, 0, 0).is_err());
    // From a router that hides its link, and from one that is none any more.
    let message = Message::RouterAdvertisement { lifetime: 10, mac: None };
    host.input(&ndp_frame(PEER6, ipv6::ALL_NODES, &message));
    assert!(host.stack.connect(host.now, 0, far, 0, 0).is_err());
    host.input(&offer(10));
    assert!(host.stack.connect(host.now, 0, far, 0, 0).is_ok());
    host.transmit();
    let resigned = advertise(router, Some(OTHER_MAC), [false, false, true]);
    host.input(&ndp_frame(router, ipv6::ALL_NODES, &resigned));
    assert!(host.stack.connect(host.now, 0, far, 0, 0).is_err());
}

/// A query of a router, with or without its router alert.
fn query(src: Ipv6Addr, group: Ipv6Addr, delay_ms: u16, alert: bool) -> Vec<u8> {
    let mut message = vec![0; 28];
    message[0] = mld::QUERY;
    message[4..6].copy_from_slice(&delay_ms.to_be_bytes());
    message[8..24].copy_from_slice(&group.octets());
    let dst = if group.is_unspecified() { ipv6::ALL_NODES } else { group };
    let plain = icmpv6_frame(src, dst, 1, &message);
    let mut frame = plain[..54].to_vec();
    frame[19] += 8;
    frame[20] = ipv6::next::HOP_BY_HOP;
    frame.extend(if alert { mld::HOP_BY_HOP } else { [58, 0, 1, 4, 0, 0, 0, 0] });
    frame.extend(&plain[54..]);
    frame
}

#[test]
fn queries_are_answered_within_their_time() {
    let router: Ipv6Addr = "fe80::99".parse().unwrap();
    let mut host = Host::new(dual(), 16);
    for _ in 0..4 {
        host.pass_time(2 * SEC);
        host.transmit();
    }
    let everything = Ipv6Addr::UNSPECIFIED;
    let own = ipv6::solicited_node(HOST6);
    for (frame, answered) in [
        (query(router, everything, 500, true), true),
        (query(router, own, 500, true), true),
        (query(router, "ff02::1:ff77:7777".parse().unwrap(), 500, true), false),
        (query(router, everything, 500, false), false),
        (query(PEER6, everything, 500, true), false),
    ] {
        host.input(&frame);
        host.pass_time(502 * MS);
        let reports = sent(&mut host);
        assert_eq!(!reports.is_empty(), answered);
        if let Some((packet, report)) = reports.first() {
            assert_eq!((packet.hop_limit, report[0], report[8]), (1, 143, 2));
            assert!(packet.dst == "ff02::16".parse::<IpAddr>().unwrap());
        }
    }
}

#[test]
fn one_room_holds_neighbours_of_both_families() {
    let mut host = Host::new(Config { neighbours_max: 2, ..dual() }, 16);
    let mut connect = |remote: IpAddr| {
        let remote = SocketAddr::new(remote, 80);
        host.stack.connect(host.now, 0, remote, 0, 0).unwrap();
        host.transmit();
    };
    connect(PEER.into());
    connect(PEER6.into());
    // Flows wait for both, so there is no room for a third.
    connect("fd00:7::3".parse().unwrap());
    assert_eq!(host.stack.counters().ndp_solicitations_out, 1);
    host.input(&arp_frame(arp::REPLY, PEER, PEER_MAC, HOST));
    host.transmit();
    host.stack
        .connect(
            host.now,
            0,
            SocketAddr::from(("fd00:7::4".parse::<Ipv6Addr>().unwrap(), 80)),
            0,
            0,
        )
        .unwrap();
    host.transmit();
    assert_eq!(host.stack.counters().ndp_solicitations_out, 2);
}
