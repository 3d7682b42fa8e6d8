//! Which lane a frame for a guest is for.
//!
//! The hash is simple tabulation (Zobrist 1970; Patrascu and Thorup 2012): a random number
//! for each value of each byte, all of them combined. It needs no symmetry, because only
//! frames to the guest are looked at, and nobody outside knows the numbers: who wants all
//! of its flows on one lane has to find out by trying.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use super::Ports;
use crate::ethernet::{self, Link};

/// Bytes that are hashed: the longer kind of address, and two ports.
const KEY_LEN: usize = 20;
/// Random bytes that a [`Choice`] is made of.
pub const SECRET_LEN: usize = KEY_LEN * 256 * 4;

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Of ICMP: destination unreachable (RFC 792), which is how a path's MTU is told.
const UNREACHABLE: u8 = 3;
/// Of ICMPv6, errors are below this (RFC 4443 section 2.1).
const ERRORS_BELOW: u8 = 128;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;

/// Whose a frame is, of a guest's lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lanes {
    /// One of them.
    One(u8),
    /// All of them have to know.
    All,
}

/// What the lane of a frame is chosen by.
pub struct Choice {
    ports: Arc<Ports>,
    vlan: Option<u16>,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    table: Box<[[u32; 256]]>,
}

impl std::fmt::Debug for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Choice").field("lanes", &self.ports.lanes()).finish_non_exhaustive()
    }
}

impl Choice {
    /// For a stack with these addresses, on this VLAN or on none. The secret is
    /// [`SECRET_LEN`] random bytes; what is missing counts as zero.
    pub fn new(
        ports: Arc<Ports>,
        vlan: Option<u16>,
        addresses: &[IpAddr],
        secret: &[u8],
    ) -> Choice {
        let mut words = secret.as_chunks().0.iter().map(|&bytes| u32::from_ne_bytes(bytes));
        let row = |_| std::array::from_fn(|_| words.next().unwrap_or(0));
        let table = (0..KEY_LEN).map(row).collect();
        let v4 = addresses.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        let v6 = addresses.iter().find_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(*address),
        });
        Choice { ports, vlan, v4, v6, table }
    }

    /// How many lanes there are.
    pub fn lanes(&self) -> u8 {
        self.ports.lanes()
    }

    /// Judges the start of a frame that is for the guest. What is cut short, and what is
    /// no segment to the stack, is the first lane's.
    pub fn of(&self, frame: &[u8]) -> Lanes {
        self.judge(frame).unwrap_or(Lanes::One(0))
    }

    fn judge(&self, frame: &[u8]) -> Option<Lanes> {
        let link = Link::read(frame)?;
        if link.vlan() != self.vlan {
            return None;
        }
        match link.ethertype {
            ethernet::ARP => arp(link.packet),
            ethernet::IPV4 => self.ipv4(link.packet),
            ethernet::IPV6 => self.ipv6(link.packet),
            _ => None,
        }
    }

    fn ipv4(&self, packet: &[u8]) -> Option<Lanes> {
        let header = packet.first_chunk::<20>()?;
        let to = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
        // Don't Fragment apart, a fragment has something here.
        let is_whole = [header[6] & 0x3f, header[7]] == [0, 0];
        let payload = packet.get(usize::from(header[0] & 0xf) * 4..)?;
        if header[0] >> 4 != 4 || Some(to) != self.v4 || !is_whole {
            return None;
        }
        match header[9] {
            TCP => self.segment(&header[12..16], payload),
            ICMP if *payload.first()? == UNREACHABLE => Some(Lanes::All),
            _ => None,
        }
    }

    fn ipv6(&self, packet: &[u8]) -> Option<Lanes> {
        let header = packet.first_chunk::<40>()?;
        let payload = &packet[40..];
        if header[0] >> 4 != 6 {
            return None;
        }
        if header[6] == ICMPV6 {
            let told = matches!(
                *payload.first()?,
                ROUTER_ADVERTISEMENT | NEIGHBOR_ADVERTISEMENT | ..ERRORS_BELOW
            );
            return told.then_some(Lanes::All);
        }
        let to = Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|i| header[24 + i]));
        if header[6] != TCP || Some(to) != self.v6 {
            return None;
        }
        self.segment(&header[8..24], payload)
    }

    fn segment(&self, from: &[u8], segment: &[u8]) -> Option<Lanes> {
        let ports = segment.first_chunk::<4>()?;
        let bytes = from.iter().chain(ports);
        let rows = self.table.iter();
        let hash = bytes.zip(rows).fold(0, |hash, (&byte, row)| hash ^ row[usize::from(byte)]);
        let local = u16::from_be_bytes([ports[2], ports[3]]);
        Some(Lanes::One(self.ports.lane(local, hash)))
    }
}

/// Of ARP (RFC 826), what was asked is the first lane's to answer, and what is told is for
/// all: replies, and announcements (RFC 5227 section 2.3).
fn arp(packet: &[u8]) -> Option<Lanes> {
    let packet = packet.first_chunk::<28>()?;
    let is_reply = packet[6..8] == [0, 2];
    let announces = packet[14..18] == packet[24..28];
    (is_reply || announces).then_some(Lanes::All)
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: Ipv4Addr = Ipv4Addr::new(10, 7, 0, 2);
    const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 2);

    fn choice(lanes: u8, vlan: Option<u16>) -> (Choice, Arc<Ports>) {
        let ports = Arc::new(Ports::new(lanes));
        let mut seed = 7u64;
        let secret: Vec<u8> = (0..SECRET_LEN)
            .map(|_| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (seed >> 33) as u8
            })
            .collect();
        let addresses = [V4.into(), V6.into()];
        (Choice::new(Arc::clone(&ports), vlan, &addresses, &secret), ports)
    }

    fn frame(tag: Option<u16>, ethertype: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        if let Some(tag) = tag {
            frame.extend(ethernet::VLAN.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(ethertype.to_be_bytes());
        frame.extend(packet);
        frame
    }

    fn ipv4(protocol: u8, from: u32, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
        packet.extend(from.to_be_bytes());
        packet.extend(to.octets());
        packet.extend(payload);
        frame(None, ethernet::IPV4, &packet)
    }

    fn ipv6(next: u8, from: u16, to: Ipv6Addr, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        packet.extend(Ipv6Addr::new(0xfd00, 8, 0, 0, 0, 0, 0, from).octets());
        packet.extend(to.octets());
        packet.extend(payload);
        frame(None, ethernet::IPV6, &packet)
    }

    fn segment(from: u16, to: u16) -> Vec<u8> {
        [from.to_be_bytes(), to.to_be_bytes()].concat()
    }

    #[test]
    fn flows_are_spread_evenly_and_stay_where_they_are() {
        let (choice, ports) = choice(4, None);
        (0..4).for_each(|lane| ports.listen(lane, 80));
        let mut shares = [[0; 4]; 2];
        for n in 0..4000u16 {
            let by_v4 = ipv4(TCP, 0x0a08_0000 + u32::from(n % 7), V4, &segment(1024 + n, 80));
            let by_v6 = ipv6(TCP, n % 7, V6, &segment(1024 + n, 80));
            for (frame, share) in [by_v4, by_v6].iter().zip(&mut shares) {
                let Lanes::One(lane) = choice.of(frame) else { panic!("one lane's") };
                assert_eq!(choice.of(frame), Lanes::One(lane));
                share[usize::from(lane)] += 1;
            }
        }
        for share in shares.as_flattened() {
            assert!((850..1150).contains(share), "{shares:?}");
        }
    }

    #[test]
    fn what_is_no_segment_to_the_stack_is_the_first_lanes() {
        let (choice, ports) = choice(2, None);
        ports.listen(1, 80);
        let at = segment(9, 80);
        let mut fragment = ipv4(TCP, 1, V4, &at);
        fragment[14 + 6] |= 0x20;
        let elsewhere = Ipv4Addr::new(10, 7, 0, 3);
        for (what, frame) in [
            ("a fragment", fragment),
            ("to the kernel's address", ipv4(TCP, 1, elsewhere, &at)),
            ("UDP", ipv4(17, 1, V4, &at)),
            ("an echo", ipv4(ICMP, 1, V4, &[8, 0, 0, 0])),
            ("UDP by IPv6", ipv6(17, 1, V6, &at)),
            ("to a link-local address", ipv6(TCP, 1, "fe80::1".parse().unwrap(), &at)),
            ("a solicitation", ipv6(ICMPV6, 1, V6, &[135, 0, 0, 0])),
            ("tagged", frame(Some(7), ethernet::IPV4, &ipv4(TCP, 1, V4, &at)[14..])),
            ("another kind", frame(None, 0x88b6, &[1; 60])),
        ] {
            assert_eq!(choice.of(&frame), Lanes::One(0), "{what}");
        }
        assert_eq!(choice.of(&ipv4(TCP, 1, V4, &at)), Lanes::One(1));
        assert_eq!(choice.of(&ipv6(TCP, 1, V6, &at)), Lanes::One(1));
    }

    #[test]
    fn what_all_have_to_know_goes_to_all() {
        let (choice, _) = choice(2, None);
        let arp = |op: u8, sender: u8, target: u8| {
            let mut packet = vec![0, 1, 8, 0, 6, 4, 0, op];
            packet.extend([2, 0, 0, 0, 0, 9, 10, 7, 0, sender, 0, 0, 0, 0, 0, 0, 10, 7, 0, target]);
            frame(None, ethernet::ARP, &packet)
        };
        assert_eq!(choice.of(&arp(1, 9, 2)), Lanes::One(0), "a request");
        for (what, frame) in [
            ("a reply", arp(2, 9, 2)),
            ("an announcement", arp(1, 9, 9)),
            ("unreachable", ipv4(ICMP, 1, V4, &[3, 4, 0, 0])),
            ("too big", ipv6(ICMPV6, 1, V6, &[2, 0, 0, 0])),
            ("an advertisement", ipv6(ICMPV6, 1, V6, &[136, 0, 0, 0])),
            ("a router's", ipv6(ICMPV6, 1, "ff02::1".parse().unwrap(), &[134, 0, 0, 0])),
        ] {
            assert_eq!(choice.of(&frame), Lanes::All, "{what}");
        }
    }

    #[test]
    fn a_stack_on_a_vlan_is_spread_there() {
        let (choice, ports) = choice(2, Some(7));
        ports.listen(1, 80);
        let packet = ipv4(TCP, 1, V4, &segment(9, 80))[14..].to_vec();
        let on = |tag| choice.of(&frame(tag, ethernet::IPV4, &packet));
        assert_eq!([on(Some(7)), on(Some(0xe007))], [Lanes::One(1); 2]);
        assert_eq!([on(None), on(Some(8))], [Lanes::One(0); 2]);
    }

    #[test]
    fn a_priority_is_no_vlan() {
        let (choice, ports) = choice(2, None);
        ports.listen(1, 80);
        let packet = ipv4(TCP, 1, V4, &segment(9, 80))[14..].to_vec();
        let on = |tag| choice.of(&frame(Some(tag), ethernet::IPV4, &packet));
        assert_eq!([on(0), on(0xe000)], [Lanes::One(1); 2]);
    }

    #[test]
    fn whatever_is_cut_short_is_the_first_lanes() {
        let (choice, ports) = choice(2, None);
        ports.listen(1, 80);
        let whole = [ipv4(TCP, 1, V4, &segment(9, 80)), ipv6(TCP, 1, V6, &segment(9, 80))];
        for frame in whole {
            for len in 0..frame.len() {
                assert_eq!(choice.of(&frame[..len]), Lanes::One(0), "{len}");
            }
        }
    }
}
