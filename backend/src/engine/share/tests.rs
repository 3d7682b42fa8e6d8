use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;
use crate::engine::RegionMemory;
use crate::port::testing::pool;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const OWN: [u8; 4] = [10, 7, 0, 2];
const PEER: [u8; 4] = [10, 9, 0, 1];
const OWN6: &str = "fd00:7::2";
const PEER6: &str = "fd00:9::1";
const TCP: u8 = 6;
const SYN: u8 = 2;
const ACK: u8 = 0x10;
const SEC: u64 = 1_000_000_000;

fn shared(addresses: &[&str], links: Vec<Link>) -> (Share, Stack) {
    let mut config = Config::unaddressed(MAC);
    config.flows_max = 64;
    Share::new(ShareOptions {
        config,
        links,
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        make: Box::new(|config| Stack::new(config, 64, [7; 16])),
    })
}

/// At both addresses.
fn known() -> (Share, Stack) {
    shared(&["10.7.0.2", OWN6], Vec::new())
}

fn frame(ethertype: u16, packet: &[u8]) -> Vec<u8> {
    let mut frame = MAC.to_vec();
    frame.extend([2, 0, 0, 0, 0, 9]);
    frame.extend(ethertype.to_be_bytes());
    frame.extend(packet);
    frame
}

fn ip4(protocol: u8, from: [u8; 4], to: [u8; 4], place: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 77];
    packet.extend(place.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(from);
    packet.extend(to);
    packet.extend(payload);
    packet
}

fn v4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    frame(0x0800, &ip4(protocol, PEER, OWN, 0x4000, payload))
}

fn ip6(next: u8, from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 64];
    packet.extend(from.parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(to.parse::<Ipv6Addr>().unwrap().octets());
    packet.extend(payload);
    packet
}

fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    frame(0x86dd, &ip6(next, PEER6, OWN6, payload))
}

fn tcp(from: u16, to: u16, flags: u8) -> Vec<u8> {
    let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
    segment.extend([0; 8]);
    segment.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
    segment
}

fn arp(op: u8, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, op];
    packet.extend(MAC);
    packet.extend(sender);
    packet.extend([0; 6]);
    packet.extend(target);
    frame(0x0806, &packet)
}

fn advertisement(target: &str) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.parse::<Ipv6Addr>().unwrap().octets());
    frame(0x86dd, &ip6(58, "fe80::1", PEER6, &message))
}

#[test]
fn an_applications_port_is_the_stacks_and_all_else_the_kernels() {
    let (mut share, mut stack) = known();
    let name = stack.listen(3, 80, 8).unwrap();
    share.listens(3, 80, 8, name);
    let fragment_of_6 = |place: u16| {
        let mut payload = vec![TCP, 0];
        payload.extend(place.to_be_bytes());
        payload.extend([0, 0, 0, 9]);
        payload.extend(tcp(9, 80, ACK));
        v6(44, &payload)
    };
    let mut options = vec![TCP, 0, 1, 4, 0, 0, 0, 0];
    options.extend(tcp(9, 80, SYN));
    let elsewhere = frame(0x0800, &ip4(TCP, PEER, [10, 7, 0, 3], 0, &tcp(9, 80, SYN)));
    let link_local = frame(0x86dd, &ip6(TCP, PEER6, "fe80::2", &tcp(9, 80, SYN)));
    let mut tagged = v4(TCP, &tcp(9, 80, SYN));
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    for (what, frame, whose) in [
        ("a SYN", v4(TCP, &tcp(9, 80, SYN)), Whose::Stack),
        ("a segment", v4(TCP, &tcp(9, 80, ACK)), Whose::Stack),
        ("a segment by IPv6", v6(TCP, &tcp(9, 80, ACK)), Whose::Stack),
        ("behind options", v6(60, &options), Whose::Stack),
        ("another port", v4(TCP, &tcp(80, 22, SYN)), Whose::Kernel),
        ("another port by IPv6", v6(TCP, &tcp(80, 22, SYN)), Whose::Kernel),
        ("another address", elsewhere, Whose::Kernel),
        ("a link-local address", link_local, Whose::Kernel),
        ("another VLAN", tagged, Whose::Kernel),
        ("UDP", v4(17, &tcp(9, 80, 0)), Whose::Kernel),
        ("an echo", v4(1, &[8, 0, 0, 0, 0, 1, 0, 1]), Whose::Kernel),
        ("a request of ARP", arp(1, PEER, OWN), Whose::Kernel),
        ("a reply", arp(2, PEER, OWN), Whose::Both),
        ("an announcement", arp(1, PEER, PEER), Whose::Both),
        ("a solicitation", v6(58, &[135; 32]), Whose::Kernel),
        ("an advertisement", advertisement(PEER6), Whose::Both),
        ("a router's", v6(58, &[134; 32]), Whose::Both),
        ("a redirect", v6(58, &[137; 40]), Whose::Kernel),
        ("not a first fragment", fragment_of_6(8 << 3), Whose::Kernel),
        ("an atomic fragment", fragment_of_6(0), Whose::Stack),
        ("nothing known", frame(0x88cc, &[0; 60]), Whose::Kernel),
    ] {
        assert_eq!(share.sort(&stack, 0, &frame), whose, "{what}");
    }
    for whole in [v4(TCP, &tcp(9, 80, SYN)), v6(TCP, &tcp(9, 80, SYN))] {
        for len in 0..whole.len() - 16 {
            assert_eq!(share.sort(&stack, 0, &whole[..len]), Whose::Kernel, "{len}");
        }
    }
}

#[test]
fn fragments_follow_the_first_of_their_datagram_for_as_long_as_they_are_waited_for() {
    let (mut share, mut stack) = known();
    let name = stack.listen(0, 80, 8).unwrap();
    share.listens(0, 80, 8, name);
    let part = |from, place, port| frame(0x0800, &ip4(TCP, from, OWN, place, &tcp(9, port, ACK)));
    let other = [10, 9, 0, 2];
    let mut sort = |now, frame: Vec<u8>| share.sort(&stack, now, &frame);
    assert_eq!(sort(0, part(PEER, 8, 80)), Whose::Kernel, "before the first one");
    assert_eq!(sort(0, part(PEER, 0x2000, 80)), Whose::Stack);
    assert_eq!(sort(1, part(PEER, 0x2008, 22)), Whose::Stack, "no ports are read there");
    assert_eq!(sort(1, part(PEER, 8, 22)), Whose::Stack, "the last one");
    assert_eq!(sort(1, part(other, 8, 80)), Whose::Kernel, "another sender's");
    assert_eq!(sort(2, part(other, 0x2000, 22)), Whose::Kernel);
    assert_eq!(sort(2, part(other, 8, 22)), Whose::Kernel);
    assert_eq!(sort(2 * SEC, part(PEER, 8, 80)), Whose::Kernel, "too late");
}

#[test]
fn errors_go_to_whom_they_are_about() {
    let (mut share, mut stack) = known();
    let name = stack.listen(0, 80, 8).unwrap();
    share.listens(0, 80, 8, name);
    let too_big = |source, port| {
        let mut message = vec![3, 4, 0, 0, 0, 0, 5, 0];
        message.extend(ip4(TCP, source, PEER, 0x4000, &tcp(port, 9, ACK)[..8]));
        v4(1, &message)
    };
    let too_big6 = |next, port| {
        let mut message = vec![2, 0, 0, 0, 0, 0, 5, 0];
        message.extend(ip6(next, OWN6, PEER6, &tcp(port, 9, ACK)));
        v6(58, &message)
    };
    for (what, frame, whose) in [
        ("too big", too_big(OWN, 80), Whose::Stack),
        ("of the kernel's port", too_big(OWN, 22), Whose::Kernel),
        ("of nobody's address", too_big([10, 7, 0, 3], 80), Whose::Kernel),
        ("by IPv6", too_big6(TCP, 80), Whose::Stack),
        ("of the kernel's port by IPv6", too_big6(TCP, 22), Whose::Kernel),
        ("of UDP", too_big6(17, 80), Whose::Kernel),
    ] {
        assert_eq!(share.sort(&stack, 0, &frame), whose, "{what}");
        for len in 0..frame.len() - 24 {
            share.sort(&stack, 0, &frame[..len]);
        }
    }
}

#[test]
fn a_flow_is_the_stacks_until_it_has_ended_and_its_port_the_kernels_besides() {
    let link = Link { gateway: "10.7.0.1".parse().unwrap(), prefix_len: 24 };
    let (mut share, mut stack) = shared(&["10.7.0.2"], vec![link]);
    let mut mem = RegionMemory::new(pool(8));
    let remote = SocketAddr::new(Ipv4Addr::from(PEER).into(), 9);
    let port = share.ports_to_try().next().unwrap();
    assert!(port >= PORT_FIRST);
    let flow = stack.connect(0, 2, remote, port, 0).unwrap();
    share.uses(2);
    share.connected(flow, 2, remote, port);
    let segment = |from, flags| v4(TCP, &tcp(from, port, flags));
    assert_eq!(share.sort(&stack, 0, &segment(9, ACK)), Whose::Stack);
    assert_eq!(share.sort(&stack, 0, &segment(9, SYN)), Whose::Stack, "both open");
    assert_eq!(share.sort(&stack, 0, &segment(10, ACK)), Whose::Kernel, "another flow");

    // It ends for the guest, and is waited for.
    share.told(&stack, 2, &[Slot::event(Event::Closed, flow)]);
    stack.close_channel(&mut mem, 0, 2);
    assert_eq!(share.sort(&stack, 59 * SEC, &segment(9, ACK)), Whose::Stack);
    assert_eq!(share.sort(&stack, 59 * SEC, &segment(9, SYN)), Whose::Kernel, "a new one");
    assert_eq!(share.sort(&stack, 61 * SEC, &segment(9, ACK)), Whose::Kernel);

    // One that is reset is not.
    let flow = stack.connect(0, 2, remote, port, 0);
    let flow = flow.or_else(|_| stack.connect(0, 2, remote, port + 1, 0)).unwrap();
    share.connected(flow, 2, remote, port);
    assert_eq!(share.sort(&stack, 62 * SEC, &segment(9, ACK)), Whose::Stack);
    stack.close_channel(&mut mem, 0, 2);
    assert_eq!(share.sort(&stack, 62 * SEC, &segment(9, ACK)), Whose::Kernel);
}

#[test]
fn a_port_is_given_back_when_nobody_listens_there() {
    let (mut share, mut stack) = known();
    let mut mem = RegionMemory::new(pool(8));
    let syn = |port| v4(TCP, &tcp(9, port, SYN));
    let first = stack.listen(1, 80, 8).unwrap();
    share.listens(1, 80, 8, first);
    let second = stack.listen(2, 81, 8).unwrap();
    share.listens(2, 81, 8, second);
    stack.unlisten(1, first).unwrap();
    share.unlistened(&stack, 1, first);
    assert_eq!(share.sort(&stack, 0, &syn(80)), Whose::Kernel);
    assert_eq!(share.sort(&stack, 0, &syn(81)), Whose::Stack);
    stack.close_channel(&mut mem, 0, 2);
    share.ended(2);
    assert_eq!(share.sort(&stack, 0, &syn(81)), Whose::Kernel);
    // Of which the guest is still to be told, it stays the stack's until it was.
    share.leaving.push(Leaving { port: 80, channel: 1 });
    share.ports.set(80, true);
    share.ended(2);
    assert_eq!(share.sort(&stack, 0, &syn(80)), Whose::Stack);
    share.told(&stack, 1, &[]);
    assert_eq!(share.sort(&stack, 0, &syn(80)), Whose::Kernel);
}

#[test]
fn the_first_address_that_the_kernel_shows_counts() {
    let (mut share, mut stack) = shared(&[], Vec::new());
    assert_eq!(share.address(), None);
    let name = stack.listen(0, 80, 8).unwrap();
    share.listens(0, 80, 8, name);
    let syn = v4(TCP, &tcp(9, 80, SYN));
    assert_eq!(share.sort(&stack, 0, &syn), Whose::Kernel);
    // Neither probes nor addresses of the link are shown ones.
    let solicits = |from: &str| frame(0x86dd, &ip6(58, from, PEER6, &[135; 24]));
    let mut routed = v4(TCP, &tcp(9, 80, SYN));
    routed[6..12].copy_from_slice(&MAC);
    let nothing = [
        arp(1, [0; 4], OWN),
        arp(1, [169, 254, 1, 1], OWN),
        arp(1, [255; 4], OWN),
        solicits("fe80::5054:ff:fe00:1"),
        solicits("::"),
        advertisement("fe80::1"),
        routed,
    ];
    nothing.iter().for_each(|frame| share.sent(frame));
    assert!(!share.is_stale(0));

    share.sent(&arp(1, OWN, [10, 7, 0, 1]));
    assert!(share.is_stale(0));
    share.renew(0, &mut stack);
    assert_eq!(share.address(), Some(Ipv4Addr::from(OWN).into()));
    assert_eq!(share.sort(&stack, 0, &syn), Whose::Stack);
    // The other family's, at once.
    share.sent(&advertisement(OWN6));
    assert!(share.is_stale(0));
    share.renew(0, &mut stack);
    assert_eq!(share.sort(&stack, 0, &v6(TCP, &tcp(9, 80, SYN))), Whose::Stack);

    // Another one is passed over as long as somebody listens.
    share.sent(&arp(2, [10, 7, 0, 3], [10, 7, 0, 1]));
    assert!(!share.is_stale(2 * SEC));
    assert_eq!(share.counters.passed_over, 1);
    stack.close_channel(&mut RegionMemory::new(pool(8)), 0, 0);
    share.ended(0);
    share.sent(&arp(2, [10, 7, 0, 3], [10, 7, 0, 1]));
    assert!(!share.is_stale(0), "not again at once");
    assert!(share.is_stale(2 * SEC));
    share.renew(2 * SEC, &mut stack);
    assert_eq!(share.address(), Some("10.7.0.3".parse().unwrap()));
    assert_eq!(share.counters.renewed, 3);
}

#[test]
fn listeners_keep_their_names_in_a_new_stack() {
    let (mut share, mut stack) = shared(&[], Vec::new());
    let mut names = Vec::new();
    for port in 1..=8 {
        let name = stack.listen(port % 3, port, 8).unwrap();
        share.listens(port % 3, port, 8, name);
        names.push((port % 3, name));
    }
    // Some of them are given back and taken again, in other generations.
    for round in 0..5 {
        for at in [1, 4, 6] {
            let (channel, name) = names[at];
            stack.unlisten(channel, name).unwrap();
            share.unlistened(&stack, channel, name);
            let port = 100 + round * 10 + at as u16;
            let name = stack.listen(1, port, 8).unwrap();
            share.listens(1, port, 8, name);
            names[at] = (1, name);
        }
    }
    for at in [7, 6, 0] {
        let (channel, name) = names.remove(at);
        stack.unlisten(channel, name).unwrap();
        share.unlistened(&stack, channel, name);
    }
    share.sent(&arp(2, OWN, [10, 7, 0, 1]));
    share.renew(0, &mut stack);
    assert_eq!(share.counters.renewed, 1);
    // A new one has a name that no other has.
    let new = stack.listen(0, 9000, 8).unwrap();
    assert!(names.iter().all(|&(_, name)| name != new));
    for (channel, name) in names {
        assert_eq!(stack.unlisten(channel, name), Ok(()), "{name:?}");
    }
}

#[test]
fn a_gateway_says_what_is_on_the_link() {
    let gateway: IpAddr = "10.7.0.1".parse().unwrap();
    let (_, mut stack) = shared(&["10.7.0.2"], vec![Link { gateway, prefix_len: 24 }]);
    let far = SocketAddr::new(Ipv4Addr::from(PEER).into(), 80);
    assert!(stack.connect(0, 0, far, 61_000, 0).is_ok());
    // Without, or for an address that is on another link, there is no way.
    for links in [vec![], vec![Link { gateway: "10.8.0.1".parse().unwrap(), prefix_len: 24 }]] {
        let (_, mut stack) = shared(&["10.7.0.2"], links);
        assert_eq!(stack.connect(0, 0, far, 61_000, 0), Err(Reason::Unreachable));
    }
}
