//! Whose a frame is: by destination address and VLAN, and where it asks for somebody,
//! by whom it asks for.
//!
//! A frame for one station goes to that one. Of those for a group, a request of ARP or
//! a neighbour solicitation for a stack's address goes to its guest alone, and all
//! others to everybody on their VLAN: a guest's kernel may have joined any group.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ethernet::{self, Link};
use crate::port::Station;

/// Bytes of a frame that [`Table::route`] looks at: Ethernet with a tag (18), IPv6
/// (40), and a neighbour solicitation up to its target (24).
pub(super) const HEADER_LEN: usize = 82;

const ICMPV6: u8 = 58;
const NEIGHBOR_SOLICITATION: u8 = 135;

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// To one guest.
    Guest(usize),
    /// To everybody on a VLAN, or on none.
    Group(Option<u16>),
    /// To none of the guests.
    Elsewhere,
}

/// The guests of a switch, by what they are known by.
#[derive(Debug, Default)]
pub(super) struct Table {
    macs: HashMap<[u8; 6], usize>,
    addresses: HashMap<(Option<u16>, IpAddr), usize>,
    vlans: Vec<Option<u16>>,
}

impl Table {
    /// Adds the guest with the next index.
    pub(super) fn add(&mut self, station: &Station) {
        let index = self.vlans.len();
        self.macs.insert(station.mac, index);
        for &address in &station.addresses {
            self.addresses.insert((station.vlan, address), index);
        }
        self.vlans.push(station.vlan);
    }

    /// Whether a guest gets frames of a VLAN: of its own, and those with none.
    pub(super) fn is_on(&self, guest: usize, vlan: Option<u16>) -> bool {
        vlan.is_none() || self.vlans.get(guest) == Some(&vlan)
    }

    /// Judges the first [`HEADER_LEN`] bytes of a frame, or all of a shorter one.
    pub(super) fn route(&self, frame: &[u8]) -> Route {
        let Some((link, mac)) = Link::read(frame).zip(frame.first_chunk::<6>()) else {
            return Route::Elsewhere;
        };
        let vlan = link.vlan();
        if mac[0] & 1 == 0 {
            let found = self.macs.get(mac).filter(|&&guest| self.is_on(guest, vlan));
            return found.map_or(Route::Elsewhere, |&guest| Route::Guest(guest));
        }
        let asked = match link.ethertype {
            ethernet::ARP => arp_target(link.packet),
            ethernet::IPV6 => solicited(link.packet),
            _ => None,
        };
        match asked.and_then(|address| self.addresses.get(&(vlan, address))) {
            Some(&guest) => Route::Guest(guest),
            None => Route::Group(vlan),
        }
    }
}

/// Whom an ARP request asks for (RFC 826).
fn arp_target(packet: &[u8]) -> Option<IpAddr> {
    let packet = packet.first_chunk::<28>()?;
    let request = packet[..8] == [0, 1, 8, 0, 6, 4, 0, 1];
    // One that announces itself concerns all (RFC 5227 section 2.3).
    let announces = packet[14..18] == packet[24..28];
    let target = Ipv4Addr::new(packet[24], packet[25], packet[26], packet[27]);
    (request && !announces).then_some(target.into())
}

/// Whom a neighbour solicitation asks for (RFC 4861 section 4.3).
fn solicited(packet: &[u8]) -> Option<IpAddr> {
    let packet = packet.first_chunk::<64>()?;
    let solicitation = packet[6] == ICMPV6 && packet[40] == NEIGHBOR_SOLICITATION;
    let target = Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|i| packet[48 + i]));
    solicitation.then_some(target.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB1: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
    const WEB2: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
    const WEB3: [u8; 6] = [0x52, 0x54, 0, 0, 0, 3];
    const ALL: [u8; 6] = [0xff; 6];

    fn table() -> Table {
        let mut table = Table::default();
        for (mac, vlan, addresses) in [
            (WEB1, None, vec!["10.7.0.1", "fd00::1"]),
            (WEB2, None, vec!["10.7.0.2"]),
            (WEB3, Some(5), vec!["10.7.0.1"]),
        ] {
            let addresses = addresses.into_iter().map(|a| a.parse().unwrap()).collect();
            table.add(&Station { mac, vlan, addresses });
        }
        table
    }

    fn frame(to: [u8; 6], tag: Option<u16>, ethertype: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = to.to_vec();
        frame.extend([2, 0, 0, 0, 0, 9]);
        if let Some(tag) = tag {
            frame.extend(ethernet::VLAN.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(ethertype.to_be_bytes());
        frame.extend(packet);
        frame
    }

    fn arp(sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 9];
        packet.extend(sender);
        packet.extend([0; 6]);
        packet.extend(target);
        packet
    }

    #[test]
    fn one_station_gets_its_own() {
        let to = |mac, tag| table().route(&frame(mac, tag, ethernet::IPV4, &[0; 20]));
        assert_eq!(to(WEB1, None), Route::Guest(0));
        assert_eq!(to(WEB2, None), Route::Guest(1));
        assert_eq!(to(WEB3, Some(5)), Route::Guest(2));
        assert_eq!(to(WEB3, Some(0xe005)), Route::Guest(2), "with a priority");
        assert_eq!(to(WEB1, Some(0xe000)), Route::Guest(0), "a priority only");
        assert_eq!(to(WEB1, Some(5)), Route::Elsewhere, "not on that VLAN");
        assert_eq!(to(WEB3, Some(6)), Route::Elsewhere);
        assert_eq!(to([2, 0, 0, 0, 0, 7], None), Route::Elsewhere);
    }

    #[test]
    fn who_is_asked_for_is_asked_alone() {
        let ask = |tag, target| {
            table().route(&frame(ALL, tag, ethernet::ARP, &arp([10, 7, 0, 9], target)))
        };
        assert_eq!(ask(None, [10, 7, 0, 1]), Route::Guest(0));
        assert_eq!(ask(None, [10, 7, 0, 2]), Route::Guest(1));
        assert_eq!(ask(Some(5), [10, 7, 0, 1]), Route::Guest(2));
        assert_eq!(ask(None, [10, 7, 0, 8]), Route::Group(None), "a kernel may have it");
        let announced = frame(ALL, None, ethernet::ARP, &arp([10, 7, 0, 1], [10, 7, 0, 1]));
        assert_eq!(table().route(&announced), Route::Group(None));

        let solicit = |target: &str| {
            let mut packet = vec![0; 64];
            (packet[6], packet[40]) = (ICMPV6, NEIGHBOR_SOLICITATION);
            packet[48..].copy_from_slice(&target.parse::<Ipv6Addr>().unwrap().octets());
            table().route(&frame([0x33, 0x33, 0xff, 0, 0, 1], None, ethernet::IPV6, &packet))
        };
        assert_eq!(solicit("fd00::1"), Route::Guest(0));
        assert_eq!(solicit("fd00::2"), Route::Group(None));
    }

    #[test]
    fn groups_are_of_a_vlan() {
        let to = |tag| table().route(&frame(ALL, tag, ethernet::IPV4, &[0; 20]));
        assert_eq!((to(None), to(Some(5))), (Route::Group(None), Route::Group(Some(5))));
        let on = |vlan| (0..3).filter(|&m| table().is_on(m, vlan)).collect::<Vec<_>>();
        assert_eq!((on(None), on(Some(5)), on(Some(6))), (vec![0, 1, 2], vec![2], vec![]));
    }

    #[test]
    fn whatever_is_cut_short_goes_nowhere_or_to_its_group() {
        let asks = frame(ALL, Some(5), ethernet::ARP, &arp([10, 7, 0, 9], [10, 7, 0, 1]));
        for len in 0..asks.len() {
            let route = table().route(&asks[..len]);
            let short = if len < 18 { Route::Elsewhere } else { Route::Group(Some(5)) };
            assert_eq!(route, short, "{len}");
        }
    }
}
