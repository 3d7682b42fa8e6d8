//! What of a frame tells whether it is an application's or the kernel's: read from a
//! private copy of its start, and judged no further. What is cut short or unknown is the
//! kernel's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::ethernet::{self, Link};

/// Bytes of a frame that are looked at: Ethernet with a tag (18), IPv6 (40), an ICMPv6
/// error (8), the IPv6 header (40) and the ports that it quotes, and extension headers.
pub(in crate::engine) const LOOK_LEN: usize = 192;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION: u8 = 60;
/// Extension headers of one packet, at most.
const EXTENSIONS_MAX: usize = 8;

/// Of ICMP, what tells of a datagram of ours and quotes it (RFC 1122 section 3.2.2):
/// unreachable, source quench, time exceeded, parameter problem.
const ICMP_ERRORS: [u8; 4] = [3, 4, 11, 12];
/// Of ICMPv6, errors are below this (RFC 4443 section 2.1).
const ICMPV6_ERRORS_BELOW: u8 = 128;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
/// Bytes of an ICMP header, before what it quotes.
const ICMP_LEN: usize = 8;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Where a datagram that came in fragments says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FragmentOf {
    /// Its sender.
    pub from: IpAddr,
    /// Its identification.
    pub id: u32,
}

/// A frame on its way to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// A TCP segment, or the first fragment of one.
    Segment {
        /// The address of the guest's that it is for.
        to: IpAddr,
        to_port: u16,
        from: SocketAddr,
        /// It asks for a new flow.
        opens: bool,
        fragment: Option<FragmentOf>,
    },
    /// A further fragment of a TCP segment.
    Fragment { to: IpAddr, of: FragmentOf },
    /// An ICMP error about a segment that the guest has sent.
    Report { from: IpAddr, from_port: u16, to: SocketAddr },
    /// What neighbours and routers tell of themselves.
    Neighbour,
    /// Anything else.
    Other,
}

/// Looks at a frame to the guest, whose addresses are on `vlan`.
pub(super) fn look(frame: &[u8], vlan: Option<u16>) -> Sight {
    let seen = match link(frame, vlan) {
        Some((ethernet::IPV4, packet)) => ipv4(packet),
        Some((ethernet::IPV6, packet)) => ipv6(packet),
        Some((ethernet::ARP, packet)) => arp(packet),
        _ => None,
    };
    seen.unwrap_or(Sight::Other)
}

/// An address that the guest's kernel shows to be its own: the sender's of an ARP packet
/// (RFC 826) that is no probe (RFC 5227), and in neighbour discovery (RFC 4861) the source
/// of a solicitation and the target of an advertisement. Addresses of one link alone are
/// none: everybody has them.
pub(super) fn shown(frame: &[u8], vlan: Option<u16>) -> Option<IpAddr> {
    match link(frame, vlan)? {
        (ethernet::ARP, packet) => {
            let packet = packet.first_chunk::<28>()?;
            let sender = Ipv4Addr::new(packet[14], packet[15], packet[16], packet[17]);
            let is_host = !sender.is_unspecified()
                && !sender.is_loopback()
                && !sender.is_link_local()
                && !sender.is_multicast()
                && sender.octets()[0] < 240;
            (packet[..6] == [0, 1, 8, 0, 6, 4] && is_host).then_some(sender.into())
        }
        (ethernet::IPV6, packet) => {
            let header = packet.first_chunk::<40>()?;
            let message = packet.get(40..)?;
            // Never behind other headers: RFC 6980, and nobody does.
            if header[0] >> 4 != 6 || header[6] != ICMPV6 {
                return None;
            }
            let address = match *message.first()? {
                NEIGHBOR_SOLICITATION => v6(header, 8)?,
                NEIGHBOR_ADVERTISEMENT => v6(message, 8)?,
                _ => return None,
            };
            let is_host = !address.is_unspecified()
                && !address.is_loopback()
                && !address.is_unicast_link_local()
                && !address.is_multicast()
                && address.to_ipv4_mapped().is_none();
            is_host.then_some(address.into())
        }
        _ => None,
    }
}

/// What is behind the Ethernet header, of a frame on this VLAN.
fn link(frame: &[u8], vlan: Option<u16>) -> Option<(u16, &[u8])> {
    let link = Link::read(frame)?;
    (link.vlan() == vlan).then_some((link.ethertype, link.packet))
}

fn v4(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    bytes.get(at..)?.first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets))
}

fn v6(bytes: &[u8], at: usize) -> Option<Ipv6Addr> {
    bytes.get(at..)?.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets))
}

/// The source's and the destination's port, with which every segment begins.
fn ports(segment: &[u8]) -> Option<(u16, u16)> {
    let &[a, b, c, d] = segment.first_chunk::<4>()?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

fn segment(from: IpAddr, to: IpAddr, tcp: &[u8], fragment: Option<u32>) -> Option<Sight> {
    let (from_port, to_port) = ports(tcp)?;
    let opens = tcp.get(13).is_some_and(|flags| flags & (SYN | ACK) == SYN);
    let fragment = fragment.map(|id| FragmentOf { from, id });
    Some(Sight::Segment { to, to_port, from: SocketAddr::new(from, from_port), opens, fragment })
}

fn ipv4(packet: &[u8]) -> Option<Sight> {
    let header = packet.first_chunk::<20>()?;
    let (from, to) = (v4(header, 12)?, v4(header, 16)?);
    let payload = packet.get(usize::from(header[0] & 0xf) * 4..)?;
    if header[0] >> 4 != 4 || header[0] & 0xf < 5 {
        return None;
    }
    // More fragments, and where this one begins.
    let place = u16::from_be_bytes([header[6], header[7]]) & 0x3fff;
    let id = u32::from(u16::from_be_bytes([header[4], header[5]]));
    match (header[9], place) {
        (TCP, 0) => segment(from.into(), to.into(), payload, None),
        (TCP, 0x2000) => segment(from.into(), to.into(), payload, Some(id)),
        (TCP, _) => {
            Some(Sight::Fragment { to: to.into(), of: FragmentOf { from: from.into(), id } })
        }
        (ICMP, 0) if ICMP_ERRORS.contains(payload.first()?) => {
            let quoted = payload.get(ICMP_LEN..)?;
            let header = quoted.first_chunk::<20>()?;
            let segment = quoted.get(usize::from(header[0] & 0xf) * 4..)?;
            let is_first = [header[6] & 0x1f, header[7]] == [0, 0];
            let is_tcp = header[0] >> 4 == 4 && header[9] == TCP && is_first;
            let (from, to) = (v4(header, 12)?, v4(header, 16)?);
            let (from_port, to_port) = ports(segment).filter(|_| is_tcp)?;
            let to = SocketAddr::new(to.into(), to_port);
            Some(Sight::Report { from: from.into(), from_port, to })
        }
        _ => None,
    }
}

fn ipv6(packet: &[u8]) -> Option<Sight> {
    let header = packet.first_chunk::<40>()?;
    let (from, to) = (v6(header, 8)?, v6(header, 24)?);
    if header[0] >> 4 != 6 {
        return None;
    }
    match upper(header[6], &packet[40..])? {
        Upper { protocol: TCP, rest, fragment: None } => {
            segment(from.into(), to.into(), rest, None)
        }
        Upper { protocol: TCP, rest, fragment: Some((id, true)) } => {
            segment(from.into(), to.into(), rest, Some(id))
        }
        Upper { protocol: TCP, fragment: Some((id, false)), .. } => {
            Some(Sight::Fragment { to: to.into(), of: FragmentOf { from: from.into(), id } })
        }
        Upper { protocol: ICMPV6, rest: message, fragment: None } => match *message.first()? {
            ..ICMPV6_ERRORS_BELOW => {
                let quoted = message.get(ICMP_LEN..)?;
                let header = quoted.first_chunk::<40>()?;
                let Upper { protocol: TCP, rest, fragment: None | Some((_, true)) } =
                    upper(header[6], &quoted[40..]).filter(|_| header[0] >> 4 == 6)?
                else {
                    return None;
                };
                let (from, to) = (v6(header, 8)?, v6(header, 24)?);
                let (from_port, to_port) = ports(rest)?;
                let to = SocketAddr::new(to.into(), to_port);
                Some(Sight::Report { from: from.into(), from_port, to })
            }
            ROUTER_ADVERTISEMENT | NEIGHBOR_ADVERTISEMENT => Some(Sight::Neighbour),
            _ => None,
        },
        _ => None,
    }
}

/// What an IPv6 packet carries behind its extension headers.
struct Upper<'a> {
    protocol: u8,
    rest: &'a [u8],
    /// The identification, and whether this is the first one.
    fragment: Option<(u32, bool)>,
}

fn upper(mut next: u8, mut rest: &[u8]) -> Option<Upper<'_>> {
    let mut fragment = None;
    for _ in 0..EXTENSIONS_MAX {
        match next {
            HOP_BY_HOP | ROUTING | DESTINATION => {
                let [kind, len, ..] = *rest else { return None };
                next = kind;
                rest = rest.get((usize::from(len) + 1) * 8..)?;
            }
            FRAGMENT => {
                let header = rest.first_chunk::<8>()?;
                let place = u16::from_be_bytes([header[2], header[3]]);
                let id = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                next = header[0];
                rest = &rest[8..];
                // One that is all of its datagram is none (RFC 6946).
                if place & 0xfff9 != 0 {
                    fragment = Some((id, place & 0xfff8 == 0));
                }
                if place & 0xfff8 != 0 {
                    return Some(Upper { protocol: next, rest, fragment });
                }
            }
            protocol => return Some(Upper { protocol, rest, fragment }),
        }
    }
    None
}

/// Of ARP (RFC 826), replies and announcements (RFC 5227 section 2.3); what is asked is the
/// kernel's to answer.
fn arp(packet: &[u8]) -> Option<Sight> {
    let packet = packet.first_chunk::<28>()?;
    let is_reply = packet[6..8] == [0, 2];
    let announces = packet[14..18] == packet[24..28];
    (is_reply || announces).then_some(Sight::Neighbour)
}
