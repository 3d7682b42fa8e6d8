//! Frames and what becomes of them, by the kernel's own verifier and interpreter
//! (BPF_PROG_TEST_RUN).

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

use super::super::sys::bpf::{self, LoadError};
use super::*;

const GUEST: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const HOST: [u8; 6] = [0x02, 0, 0, 0, 0, 9];
const ALL: [u8; 6] = [0xff; 6];
const V4: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
const HOST_V4: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 1);
const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 2);
const HOST_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 1);
/// Of the same solicited-node group as the guest's (RFC 4291 section 2.7.1).
const LIKE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 8, 0, 0, 0, 0, 0, 2);
const SOLICITED: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 2);

fn guest() -> Addressee {
    let (v4, v6) = (Some(V4), Some(V6));
    Addressee { mac: GUEST, shares_mac: false, vlan: None, v4, v6, queue: None }
}

fn ethernet(to: [u8; 6], tag: Option<u16>, ethertype: [u8; 2], packet: &[u8]) -> Vec<u8> {
    let mut frame = [to, HOST].concat();
    if let Some(tag) = tag {
        frame.extend(VLAN);
        frame.extend(tag.to_be_bytes());
    }
    frame.extend(ethertype);
    frame.extend(packet);
    frame
}

fn arp(target: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
    packet.extend(HOST);
    packet.extend(HOST_V4.octets());
    packet.extend([0; 6]);
    packet.extend(target.octets());
    packet
}

fn ipv4(to: Ipv4Addr) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0];
    packet.extend(HOST_V4.octets());
    packet.extend(to.octets());
    packet
}

fn ipv6(next: u8, to: Ipv6Addr, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, rest.len() as u8, next, 255];
    packet.extend(HOST_V6.octets());
    packet.extend(to.octets());
    packet.extend(rest);
    packet
}

/// An ICMPv6 message of neighbour discovery.
fn discovery(kind: u8, to: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    ipv6(58, to, &[&[kind, 0, 0, 0, 0, 0, 0, 0], &target.octets()[..]].concat())
}

/// Has the kernel judge the frames. Those to groups are taken for what they carry, so
/// that none of them may be once it is cut.
fn judge(guest: &Addressee, frames: &[(&str, Vec<u8>, bool)]) {
    judge_all(std::slice::from_ref(guest), frames);
}

/// Likewise, for several guests.
fn judge_all(guests: &[Addressee], frames: &[(&str, Vec<u8>, bool)]) {
    let map = match bpf::create_socket_map(1) {
        Err(Errno::PERM | Errno::ACCESS) => {
            assert!(std::env::var_os("PASTED_REQUIRE_ALL").is_none(), "bpf(2) is not permitted");
            eprintln!("skipped: bpf(2) is not permitted");
            return;
        }
        map => map.unwrap(),
    };
    let program = program(guests, map.as_raw_fd(), Verdict::Bounce, None);
    let loaded = bpf::load(&program, bpf::Traits::default()).unwrap_or_else(
        |LoadError::Refused { errno, log }| {
            panic!("{errno}: {log}");
        },
    );
    for (what, frame, taken) in frames {
        // The kernel takes no shorter frame than a header.
        let shortest = if frame[0] & 1 == 0 { frame.len() } else { 14 };
        for len in shortest..=frame.len() {
            let verdict = bpf::run(loaded.as_fd(), &frame[..len]).unwrap();
            let is_taken = *taken && len == frame.len();
            let expected = if is_taken { Verdict::Bounce } else { Verdict::Pass };
            assert_eq!(verdict, expected as u32, "{what}, {len} bytes, {guests:?}");
        }
    }
}

#[test]
fn the_guests_frames_are_taken_and_no_others() {
    let to = |mac, ethertype, packet: &[u8]| ethernet(mac, None, ethertype, packet);
    judge(
        &guest(),
        &[
            ("TCP to the guest", to(GUEST, IPV4, &ipv4(V4)), true),
            ("to the guest's own kernel", to(GUEST, IPV4, &ipv4(HOST_V4)), true),
            ("an unknown kind to the guest", to(GUEST, [0x88, 0xb6], b"x"), true),
            ("tagged to the guest", ethernet(GUEST, Some(7), IPV4, &ipv4(V4)), true),
            ("ARP for the guest", to(ALL, ARP, &arp(V4)), true),
            ("ARP for the host", to(ALL, ARP, &arp(HOST_V4)), false),
            ("ARP for the guest on a VLAN", ethernet(ALL, Some(7), ARP, &arp(V4)), false),
            (
                "solicitation",
                to([0x33, 0x33, 0xff, 0, 0, 2], IPV6, &discovery(135, SOLICITED, V6)),
                true,
            ),
            (
                "another's",
                to([0x33, 0x33, 0xff, 0, 0, 2], IPV6, &discovery(135, SOLICITED, LIKE_V6)),
                false,
            ),
            (
                "advertisement to all",
                to([0x33, 0x33, 0, 0, 0, 1], IPV6, &discovery(136, SOLICITED, V6)),
                false,
            ),
            ("advertisement to the guest", to(GUEST, IPV6, &discovery(136, V6, HOST_V6)), true),
            (
                "UDP to a group",
                to([0x33, 0x33, 0, 0, 0, 1], IPV6, &ipv6(17, SOLICITED, &[135; 32])),
                false,
            ),
            ("IPv4 broadcast", to(ALL, IPV4, &ipv4(Ipv4Addr::BROADCAST)), false),
            ("to the host", to(HOST, IPV4, &ipv4(HOST_V4)), false),
            ("to the guest's address at the host's station", to(HOST, IPV4, &ipv4(V4)), false),
            (
                "to a station that begins like the guest's",
                to([0x52, 0x54, 0, 0, 0, 2], IPV4, &ipv4(V4)),
                false,
            ),
            ("to one that ends like it", to([0x50, 0x54, 0, 0, 0, 1], IPV4, &ipv4(V4)), false),
        ],
    );
}

#[test]
fn one_family_alone() {
    let arp = ethernet(ALL, None, ARP, &arp(V4));
    let group = [0x33, 0x33, 0xff, 0, 0, 2];
    let solicitation = ethernet(group, None, IPV6, &discovery(135, SOLICITED, V6));
    judge(
        &Addressee { v6: None, ..guest() },
        &[("ARP", arp.clone(), true), ("solicitation", solicitation.clone(), false)],
    );
    judge(
        &Addressee { v4: None, ..guest() },
        &[("ARP", arp, false), ("solicitation", solicitation, true)],
    );
}

#[test]
fn a_stack_on_a_vlan_is_asked_for_there() {
    let guest = Addressee { vlan: Some(7), ..guest() };
    let group = [0x33, 0x33, 0xff, 0, 0, 2];
    let solicitation = discovery(135, SOLICITED, V6);
    judge(
        &guest,
        &[
            ("ARP on it", ethernet(ALL, Some(7), ARP, &arp(V4)), true),
            ("with a priority", ethernet(ALL, Some(0xe007), ARP, &arp(V4)), true),
            ("on another", ethernet(ALL, Some(8), ARP, &arp(V4)), false),
            ("on none", ethernet(ALL, None, ARP, &arp(V4)), false),
            ("solicitation on it", ethernet(group, Some(7), IPV6, &solicitation), true),
            ("on another", ethernet(group, Some(6), IPV6, &solicitation), false),
            ("to the guest on none", ethernet(GUEST, None, IPV4, &ipv4(V4)), true),
        ],
    );
}

#[test]
fn with_the_devices_own_address_packets_are_told_apart() {
    let guest = Addressee { shares_mac: true, ..guest() };
    let to = |ethertype, packet: &[u8]| ethernet(GUEST, None, ethertype, packet);
    let group = [0x33, 0x33, 0xff, 0, 0, 2];
    judge(
        &guest,
        &[
            ("IPv4 to the guest", to(IPV4, &ipv4(V4)), true),
            ("IPv4 to the host", to(IPV4, &ipv4(HOST_V4)), false),
            ("IPv6 to the guest", to(IPV6, &ipv6(6, V6, &[])), true),
            ("IPv6 to the host", to(IPV6, &ipv6(6, HOST_V6, &[0; 24])), false),
            ("ARP reply to the guest", to(ARP, &arp(V4)), true),
            ("ARP reply to the host", to(ARP, &arp(HOST_V4)), false),
            ("advertisement to the guest", to(IPV6, &discovery(136, V6, HOST_V6)), true),
            ("an unknown kind", to([0x88, 0xb6], b"x"), false),
            ("ARP request", ethernet(ALL, None, ARP, &arp(V4)), true),
            ("solicitation", ethernet(group, None, IPV6, &discovery(135, SOLICITED, V6)), true),
        ],
    );
}

/// Guest `n` of many: on VLAN 7 one of three, without one family one of five each.
fn one_of_many(n: u8) -> Addressee {
    // Ethernet addresses that begin alike by fours.
    let mac = [0x52, 0x54, 0, n / 4, 0, n];
    let v4 = Ipv4Addr::new(10, 7, n % 2, 100 + n);
    // Addresses that end alike by twos.
    let v6 = Ipv6Addr::new(0xfd00, 7, 0, n.into(), 0, 0, 0, u16::from(n / 2) + 2);
    Addressee {
        mac,
        shares_mac: false,
        vlan: n.is_multiple_of(3).then_some(7),
        v4: (n % 5 != 1).then_some(v4),
        v6: (n % 5 != 2).then_some(v6),
        queue: None,
    }
}

#[test]
fn each_of_many_guests_is_found_and_nobody_else() {
    for count in [2, 3, 4, 7, 16, 64] {
        let guests: Vec<_> = (0..count).map(one_of_many).collect();
        let mut frames = Vec::new();
        // Those beyond the count are nobody.
        for n in 0..70 {
            let Addressee { mac, vlan, v4, v6, .. } = one_of_many(n);
            let is_one = n < count;
            frames.push(("to it", ethernet(mac, None, IPV4, &ipv4(HOST_V4)), is_one));
            frames.push(("to it, tagged", ethernet(mac, Some(9), ARP, &arp(HOST_V4)), is_one));
            if let Some(v4) = v4 {
                frames.push(("ARP", ethernet(ALL, vlan, ARP, &arp(v4)), is_one));
                let elsewhere = vlan.map_or(Some(7), |_| None);
                frames.push(("ARP elsewhere", ethernet(ALL, elsewhere, ARP, &arp(v4)), false));
            }
            if let Some(v6) = v6 {
                let group = [0x33, 0x33, 0xff, 0, 0, 2];
                let asks = discovery(135, SOLICITED, v6);
                frames.push(("solicitation", ethernet(group, vlan, IPV6, &asks), is_one));
            }
        }
        frames.push(("to the host", ethernet(HOST, None, IPV4, &ipv4(HOST_V4)), false));
        frames.push(("to all", ethernet(ALL, None, IPV4, &ipv4(HOST_V4)), false));
        judge_all(&guests, &frames);
    }
}

#[test]
fn one_with_a_queue_of_its_own_is_served_there_alone() {
    // The kernel's trial comes on queue 0.
    for (queue, taken) in [(None, true), (Some(0), true), (Some(1), false)] {
        let beside = Addressee { queue: Some(2), ..one_of_many(9) };
        judge_all(
            &[Addressee { queue, ..guest() }, beside.clone()],
            &[
                ("TCP", ethernet(GUEST, None, IPV4, &ipv4(V4)), taken),
                ("ARP", ethernet(ALL, None, ARP, &arp(V4)), taken),
                ("for the other", ethernet(beside.mac, None, IPV4, &ipv4(V4)), false),
            ],
        );
    }
}

#[test]
fn one_with_the_devices_address_is_told_apart_beside_others() {
    let own = Addressee { shares_mac: true, ..guest() };
    let other = one_of_many(4);
    let asked = arp(other.v4.unwrap());
    judge_all(
        &[own, other.clone()],
        &[
            ("IPv4 to the one", ethernet(GUEST, None, IPV4, &ipv4(V4)), true),
            ("IPv4 to the host", ethernet(GUEST, None, IPV4, &ipv4(HOST_V4)), false),
            ("to the other", ethernet(other.mac, None, IPV4, &ipv4(HOST_V4)), true),
            ("the other asked for", ethernet(ALL, None, ARP, &asked), true),
            ("the other asked for at the host's", ethernet(GUEST, None, ARP, &asked), false),
        ],
    );
}
