//! Whether a frame of the guest's own kernel comes from whom it says: source address
//! validation (BCP 38; RFC 7039), with what a switch port calls ARP inspection and
//! RA guard (RFC 6105).
//!
//! The stack's own frames need none of it: the host writes their headers. A frame of
//! the guest's kernel is judged on the copy in the host's memory that its head is
//! sent from, so nothing can change between the two. This module knows frames; it
//! knows nothing of rings, ports or configuration.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ethernet::{self, Link};

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ICMPV6: u8 = 58;
const DESTINATION: u8 = 60;

const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;

/// Extension headers of one packet, at most.
const EXTENSIONS_MAX: usize = 8;

/// Addresses that begin alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    len: u8,
}

impl Network {
    /// Every address of either family.
    pub const ANY: [Network; 2] = [
        Network { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), len: 0 },
        Network { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), len: 0 },
    ];

    /// The addresses whose first `len` bits are those of `address`; `None` if it has
    /// not so many, or any that is set behind them.
    pub fn new(address: IpAddr, len: u8) -> Option<Network> {
        let network = Network { address, len };
        let known = u32::from(len) <= width(address);
        (known && bits(address) & network.host_mask() == 0).then_some(network)
    }

    /// This address alone.
    pub fn one(address: IpAddr) -> Network {
        Network { address, len: width(address) as u8 }
    }

    /// The link-local address that a kernel makes of an Ethernet address (RFC 4291
    /// appendix A).
    pub fn link_local(mac: [u8; 6]) -> Network {
        let [a, b, c, d, e, f] = mac;
        let id = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        let address = Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(id));
        Network::one(address.into())
    }

    /// Bits that all of them begin with.
    pub fn prefix_len(&self) -> u8 {
        self.len
    }

    /// The address, if it is one alone.
    pub fn single(&self) -> Option<IpAddr> {
        (u32::from(self.len) == width(self.address)).then_some(self.address)
    }

    /// Whether the address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && (bits(address) ^ bits(self.address)) & !self.host_mask() == 0
    }

    /// The bits behind the prefix.
    fn host_mask(&self) -> u128 {
        1u128.checked_shl(width(self.address) - u32::from(self.len)).map_or(u128::MAX, |n| n - 1)
    }
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Who a guest may say that it is.
#[derive(Clone, Debug)]
pub struct Sources {
    mac: [u8; 6],
    vlan: Option<u16>,
    networks: Box<[Network]>,
}

/// What was wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Spoof {
    /// Another Ethernet address than the guest's.
    #[error("its Ethernet source is not the guest's mac: set mac to that of the VM")]
    Mac,
    /// A VLAN that the guest is not on.
    #[error("it has the tag of a VLAN that is not the guest's: set vlan, or leave it to the stack")]
    Vlan,
    /// An address that is not one of the guest's.
    #[error("its source {0} is not the guest's: if its kernel is to have it, add it to sources")]
    Address(IpAddr),
    /// ARP or neighbour discovery that gives another Ethernet address away, or with
    /// fields of other lengths.
    #[error("it tells neighbours of another Ethernet address than the guest's mac")]
    Neighbour,
    /// What routers send: advertisements and redirects.
    #[error("it is a router's advertisement or redirect")]
    Router,
    /// A protocol whose sources cannot be judged, or a header that is cut short.
    #[error("it is neither IPv4, IPv6 nor ARP, or it is cut short")]
    Unknown,
}

impl Sources {
    /// A guest with this Ethernet address, in this VLAN as well as in none, whose
    /// kernel may have any address of `networks`.
    pub fn new(mac: [u8; 6], vlan: Option<u16>, networks: Vec<Network>) -> Sources {
        Sources { mac, vlan, networks: networks.into() }
    }

    /// Judges a frame, from its Ethernet header on.
    ///
    /// # Errors
    /// What the guest is not.
    pub fn judge(&self, frame: &[u8]) -> Result<(), Spoof> {
        let header = frame.first_chunk::<{ ethernet::LEN }>().ok_or(Spoof::Unknown)?;
        if header[6..12] != self.mac {
            return Err(Spoof::Mac);
        }
        let link = Link::read(frame).ok_or(Spoof::Unknown)?;
        let vlan = link.vlan();
        if vlan.is_some() && vlan != self.vlan {
            return Err(Spoof::Vlan);
        }
        match link.ethertype {
            ethernet::ARP => self.arp(link.packet),
            ethernet::IPV4 => self.ipv4(link.packet),
            ethernet::IPV6 => self.ipv6(link.packet),
            ethernet::VLAN => Err(Spoof::Vlan),
            _ => Err(Spoof::Unknown),
        }
    }

    fn allows(&self, address: impl Into<IpAddr>) -> Result<(), Spoof> {
        let address = address.into();
        let known = self.networks.iter().any(|network| network.contains(address));
        if known { Ok(()) } else { Err(Spoof::Address(address)) }
    }

    /// RFC 826; a probe has no sender's address yet (RFC 5227 section 2.1.1).
    fn arp(&self, packet: &[u8]) -> Result<(), Spoof> {
        let packet = packet.first_chunk::<28>().ok_or(Spoof::Unknown)?;
        // Ethernet, IPv4, and the lengths of their addresses.
        if packet[..6] != [0, 1, 8, 0, 6, 4] || packet[8..14] != self.mac {
            return Err(Spoof::Neighbour);
        }
        let sender = Ipv4Addr::new(packet[14], packet[15], packet[16], packet[17]);
        if sender.is_unspecified() { Ok(()) } else { self.allows(sender) }
    }

    /// RFC 791; who asks for an address has none (RFC 2131 section 4.1).
    fn ipv4(&self, packet: &[u8]) -> Result<(), Spoof> {
        let header = packet.first_chunk::<20>().ok_or(Spoof::Unknown)?;
        if header[0] >> 4 != 4 {
            return Err(Spoof::Unknown);
        }
        let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
        if source.is_unspecified() && header[16..20] == [255; 4] {
            return Ok(());
        }
        self.allows(source)
    }

    /// RFC 8200; who makes sure of an address, or joins a group before it has one,
    /// has none (RFC 4862 section 5.4, RFC 3590).
    fn ipv6(&self, packet: &[u8]) -> Result<(), Spoof> {
        let header = packet.first_chunk::<40>().ok_or(Spoof::Unknown)?;
        if header[0] >> 4 != 6 {
            return Err(Spoof::Unknown);
        }
        let source = address(header, 8);
        if !source.is_unspecified() {
            self.allows(source)?;
        }
        match upper(header[6], &packet[40..])? {
            (ICMPV6, message) => self.icmpv6(message),
            _ if source.is_unspecified() => Err(Spoof::Address(source.into())),
            _ => Ok(()),
        }
    }

    /// RFC 4861: whom neighbours are told of.
    fn icmpv6(&self, message: &[u8]) -> Result<(), Spoof> {
        let options = match message.first().ok_or(Spoof::Unknown)? {
            &ROUTER_ADVERTISEMENT | &REDIRECT => return Err(Spoof::Router),
            &NEIGHBOR_ADVERTISEMENT => {
                let message = message.first_chunk::<24>().ok_or(Spoof::Unknown)?;
                self.allows(address(message, 8))?;
                24
            }
            &NEIGHBOR_SOLICITATION => 24,
            // Router solicitation.
            &133 => 8,
            _ => return Ok(()),
        };
        let mut options = message.get(options..).ok_or(Spoof::Unknown)?;
        while let [kind, len, ..] = *options {
            // In units of eight bytes, of which there is at least one (section 4.6).
            let len = usize::from(len) * 8;
            let option = options.get(..len).filter(|o| !o.is_empty()).ok_or(Spoof::Unknown)?;
            // Source and target link-layer address.
            if matches!(kind, 1 | 2) && option[2..8] != self.mac {
                return Err(Spoof::Neighbour);
            }
            options = &options[len..];
        }
        Ok(())
    }
}

fn address(bytes: &[u8], at: usize) -> Ipv6Addr {
    Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|i| bytes[at + i]))
}

/// The protocol behind the extension headers, and what begins there. A fragment that
/// may be one of ICMPv6 cannot be judged, and neighbour discovery must not be in any
/// (RFC 6980; RFC 7113 for why it matters).
fn upper(mut next: u8, mut rest: &[u8]) -> Result<(u8, &[u8]), Spoof> {
    for _ in 0..EXTENSIONS_MAX {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let [kind, len, ..] = *rest else { return Err(Spoof::Unknown) };
                next = kind;
                rest = rest.get((usize::from(len) + 1) * 8..).ok_or(Spoof::Unknown)?;
            }
            FRAGMENT => {
                let header = rest.first_chunk::<8>().ok_or(Spoof::Unknown)?;
                if matches!(header[0], HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION | ICMPV6) {
                    return Err(Spoof::Unknown);
                }
                return Ok((header[0], &rest[8..]));
            }
            _ => return Ok((next, rest)),
        }
    }
    Err(Spoof::Unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
    const OWN6: &str = "fd00:7::9";
    const LINK_LOCAL: &str = "fe80::5054:ff:fe00:1";

    fn sources() -> Sources {
        let networks = vec![
            Network::one("10.7.0.2".parse().unwrap()),
            Network::new("10.8.0.0".parse().unwrap(), 16).unwrap(),
            Network::new("fd00:7::".parse().unwrap(), 64).unwrap(),
            Network::link_local(MAC),
        ];
        Sources::new(MAC, Some(7), networks)
    }

    fn frame(source: [u8; 6], ethertype: u16, packet: &[u8]) -> Vec<u8> {
        let mut frame = vec![0xff; 6];
        frame.extend(source);
        frame.extend(ethertype.to_be_bytes());
        frame.extend(packet);
        frame
    }

    fn v4(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend(source);
        packet.extend(destination);
        packet
    }

    fn v6(source: &str, next: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, payload.len() as u8, next, 255];
        packet.extend(source.parse::<Ipv6Addr>().unwrap().octets());
        packet.extend("ff02::1".parse::<Ipv6Addr>().unwrap().octets());
        packet.extend(payload);
        packet
    }

    fn arp(sender_mac: [u8; 6], sender: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 2];
        packet.extend(sender_mac);
        packet.extend(sender);
        packet.extend([0; 10]);
        packet
    }

    /// A message of neighbour discovery about `target`, with one link-layer address.
    fn nd(kind: u8, target: &str, mac: [u8; 6]) -> Vec<u8> {
        let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
        if kind != 133 {
            message.extend(target.parse::<Ipv6Addr>().unwrap().octets());
        }
        message.extend([if kind == 136 { 2 } else { 1 }, 1]);
        message.extend(mac);
        message
    }

    fn judge(ethertype: u16, packet: &[u8]) -> Result<(), Spoof> {
        sources().judge(&frame(MAC, ethertype, packet))
    }

    fn foreign(address: &str) -> Result<(), Spoof> {
        Err(Spoof::Address(address.parse().unwrap()))
    }

    #[test]
    fn ethernet_and_vlan() {
        let packet = v4([10, 7, 0, 2], [10, 7, 0, 1]);
        assert_eq!(judge(ethernet::IPV4, &packet), Ok(()));
        assert_eq!(sources().judge(&frame(OTHER, ethernet::IPV4, &packet)), Err(Spoof::Mac));
        let tagged = |vlan: u16, inner: u16| {
            let mut tag = vlan.to_be_bytes().to_vec();
            tag.extend(inner.to_be_bytes());
            tag.extend(&packet);
            judge(ethernet::VLAN, &tag)
        };
        assert_eq!(tagged(7, ethernet::IPV4), Ok(()));
        assert_eq!(tagged(0x2000, ethernet::IPV4), Ok(()), "a priority only");
        assert_eq!(tagged(8, ethernet::IPV4), Err(Spoof::Vlan));
        assert_eq!(tagged(7, ethernet::VLAN), Err(Spoof::Vlan), "two tags");
        for ethertype in [0x88cc, 0x8863, 0x88a8, 38] {
            assert_eq!(judge(ethertype, &packet), Err(Spoof::Unknown), "{ethertype:#x}");
        }
    }

    #[test]
    fn ipv4_and_arp() {
        assert_eq!(judge(ethernet::IPV4, &v4([10, 8, 9, 9], [1, 1, 1, 1])), Ok(()));
        assert_eq!(judge(ethernet::IPV4, &v4([10, 7, 0, 3], [1, 1, 1, 1])), foreign("10.7.0.3"));
        assert_eq!(judge(ethernet::IPV4, &v4([0; 4], [255; 4])), Ok(()), "DHCP");
        assert_eq!(judge(ethernet::IPV4, &v4([0; 4], [10, 7, 0, 1])), foreign("0.0.0.0"));
        assert_eq!(judge(ethernet::ARP, &arp(MAC, [10, 7, 0, 2])), Ok(()));
        assert_eq!(judge(ethernet::ARP, &arp(MAC, [0; 4])), Ok(()), "a probe");
        assert_eq!(judge(ethernet::ARP, &arp(MAC, [10, 7, 0, 1])), foreign("10.7.0.1"));
        assert_eq!(judge(ethernet::ARP, &arp(OTHER, [10, 7, 0, 2])), Err(Spoof::Neighbour));
        let mut long = arp(MAC, [10, 7, 0, 2]);
        long[4] = 7;
        assert_eq!(judge(ethernet::ARP, &long), Err(Spoof::Neighbour));
        let mut six = v4([10, 7, 0, 2], [1, 1, 1, 1]);
        six[0] = 0x65;
        assert_eq!(judge(ethernet::IPV4, &six), Err(Spoof::Unknown));
    }

    #[test]
    fn ipv6_and_neighbour_discovery() {
        let udp = 17;
        assert_eq!(judge(ethernet::IPV6, &v6(OWN6, udp, &[])), Ok(()));
        assert_eq!(judge(ethernet::IPV6, &v6(LINK_LOCAL, udp, &[])), Ok(()));
        assert_eq!(judge(ethernet::IPV6, &v6("fe80::1", udp, &[])), foreign("fe80::1"));
        assert_eq!(judge(ethernet::IPV6, &v6("::", udp, &[])), foreign("::"));
        let message =
            |kind, target, mac| judge(ethernet::IPV6, &v6(OWN6, ICMPV6, &nd(kind, target, mac)));
        assert_eq!(message(135, "fd00:7::1", MAC), Ok(()), "one may ask for anybody");
        assert_eq!(message(135, "fd00:7::1", OTHER), Err(Spoof::Neighbour));
        assert_eq!(message(136, OWN6, MAC), Ok(()));
        assert_eq!(message(136, OWN6, OTHER), Err(Spoof::Neighbour));
        assert_eq!(message(136, "fd00:8::1", MAC), foreign("fd00:8::1"));
        assert_eq!(message(133, "::", MAC), Ok(()));
        assert_eq!(message(133, "::", OTHER), Err(Spoof::Neighbour));
        assert_eq!(message(134, "::", MAC), Err(Spoof::Router));
        assert_eq!(message(137, "::", MAC), Err(Spoof::Router));
        // Duplicate address detection.
        assert_eq!(judge(ethernet::IPV6, &v6("::", ICMPV6, &nd(135, OWN6, MAC)[..24])), Ok(()));
        let mut empty_option = nd(136, OWN6, MAC);
        empty_option[25] = 0;
        assert_eq!(judge(ethernet::IPV6, &v6(OWN6, ICMPV6, &empty_option)), Err(Spoof::Unknown));
    }

    #[test]
    fn extension_headers_hide_nothing() {
        let advertisement = nd(134, "::", MAC);
        for kind in [HOP_BY_HOP, ROUTING, DESTINATION] {
            let mut payload = vec![ICMPV6, 0, 0, 0, 0, 0, 0, 0];
            payload.extend(&advertisement);
            let packet = v6(OWN6, kind, &payload);
            assert_eq!(judge(ethernet::IPV6, &packet), Err(Spoof::Router), "{kind}");
        }
        let fragment = |next| v6(OWN6, FRAGMENT, &[next, 0, 0, 1, 0, 0, 0, 0, 134]);
        assert_eq!(judge(ethernet::IPV6, &fragment(ICMPV6)), Err(Spoof::Unknown));
        assert_eq!(judge(ethernet::IPV6, &fragment(DESTINATION)), Err(Spoof::Unknown));
        assert_eq!(judge(ethernet::IPV6, &fragment(17)), Ok(()));
        let mut many = Vec::new();
        (0..EXTENSIONS_MAX).for_each(|_| many.extend([DESTINATION, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(judge(ethernet::IPV6, &v6(OWN6, DESTINATION, &many)), Err(Spoof::Unknown));
    }

    #[test]
    fn whatever_is_cut_short_is_refused() {
        let whole = [
            frame(MAC, ethernet::ARP, &arp(MAC, [10, 7, 0, 2])),
            frame(MAC, ethernet::IPV4, &v4([10, 7, 0, 2], [1, 1, 1, 1])),
            frame(MAC, ethernet::IPV6, &v6(OWN6, ICMPV6, &nd(136, OWN6, MAC)[..24])),
        ];
        for whole in whole {
            assert_eq!(sources().judge(&whole), Ok(()));
            let headers = match u16::from_be_bytes([whole[12], whole[13]]) {
                ethernet::ARP => ethernet::LEN + 28,
                _ => whole.len(),
            };
            for len in 0..headers {
                assert!(sources().judge(&whole[..len]).is_err(), "{len} of {}", whole.len());
            }
        }
    }

    #[test]
    fn networks() {
        let network = Network::new("10.8.0.0".parse().unwrap(), 16).unwrap();
        assert!(network.contains("10.8.255.255".parse().unwrap()));
        assert!(!network.contains("10.9.0.0".parse().unwrap()));
        assert!(!network.contains("::ffff:10.8.0.1".parse().unwrap()));
        assert_eq!(Network::new("10.8.0.1".parse().unwrap(), 16), None, "bits behind the prefix");
        assert_eq!(Network::new("10.8.0.0".parse().unwrap(), 33), None);
        let [v4, v6] = Network::ANY;
        assert!(
            v4.contains("255.1.2.3".parse().unwrap()) && v6.contains("ff02::1".parse().unwrap())
        );
    }
}
