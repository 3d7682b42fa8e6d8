//! IPv6 (RFC 8200). Extension headers are skipped by their rules, as far as
//! they lie in the private copy of the headers; RFC 8504 section 5.3 lets a host
//! limit them. Fragments are recognised.

use core::net::Ipv6Addr;

use super::ip::{Fragment, Header, Octets, ecn};
use super::{be16, be32};

/// Bytes of the header without extensions, the only kind that flows write.
pub(crate) const LEN: usize = 40;
/// Every link carries this much, bytes (RFC 8200 section 5).
pub(crate) const MTU_MIN: u16 = 1280;
/// Where the fixed header names the first of those behind it.
const NEXT_AT: usize = 6;
/// Bytes of a fragment header.
pub(crate) const FRAGMENT_LEN: usize = 8;

/// Values of the next header field (RFC 8200 section 4, and IANA's registry).
pub(crate) mod next {
    pub(crate) const HOP_BY_HOP: u8 = 0;
    pub(crate) const TCP: u8 = 6;
    pub(crate) const ROUTING: u8 = 43;
    pub(crate) const FRAGMENT: u8 = 44;
    pub(crate) const ICMPV6: u8 = 58;
    pub(crate) const NONE: u8 = 59;
    pub(crate) const DESTINATION: u8 = 60;
}

/// The router alert option (RFC 2711), which marks MLD.
const ROUTER_ALERT: u8 = 5;

/// A parsed header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ipv6 {
    pub src: Ipv6Addr,
    pub dst: Ipv6Addr,
    pub hop_limit: u8,
    /// The ECN field ([`ecn`]).
    pub ecn: u8,
    /// Bytes of the datagram, header included.
    pub total_len: usize,
    pub upper: Upper,
}

/// What lies behind the extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Upper {
    pub protocol: u8,
    /// Where the field lies that names the protocol.
    pub next_at: usize,
    /// Where it starts, from the datagram's start.
    pub offset: usize,
    /// What lies there is part of a larger datagram.
    pub fragment: Option<Fragment>,
    pub router_alert: bool,
}

/// Why a header is no good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// Version or a length.
    Header,
    /// Extension headers that are malformed, longer than the private copy, or
    /// want the datagram dropped.
    Extensions,
    /// The sender is to be told: a code and pointer of ICMPv6's parameter
    /// problem (RFC 4443 section 3.4).
    Problem { code: u8, pointer: u32 },
}

/// Codes of a parameter problem.
pub(crate) mod problem {
    pub(crate) const FIELD: u8 = 0;
    pub(crate) const NEXT_HEADER: u8 = 1;
    pub(crate) const OPTION: u8 = 2;
}

fn address(bytes: &[u8; LEN], at: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&bytes[at..at + 16]);
    Ipv6Addr::from_octets(octets)
}

/// Reads the header and its extensions from `bytes`, the start of a datagram of
/// which `len` bytes arrived; link padding after the datagram is allowed. A
/// payload length of zero is just that: jumbograms (RFC 2675) fit no buffer.
pub(crate) fn parse(bytes: &[u8], len: usize) -> Result<Ipv6, Bad> {
    let fixed: &[u8; LEN] = bytes.first_chunk().ok_or(Bad::Header)?;
    let total_len = total_len(fixed);
    if fixed[0] >> 4 != 6 || total_len > len {
        return Err(Bad::Header);
    }
    let datagram = &bytes[..total_len.min(bytes.len())];
    Ok(Ipv6 {
        src: address(fixed, 8),
        dst: address(fixed, 24),
        hop_limit: fixed[7],
        ecn: fixed[1] >> 4 & ecn::MASK,
        total_len,
        upper: extensions(datagram, fixed[NEXT_AT], NEXT_AT, LEN)?,
    })
}

/// The destination, before anything else is judged.
pub(crate) fn destination(bytes: &[u8]) -> Option<Ipv6Addr> {
    bytes.first_chunk::<LEN>().map(|fixed| address(fixed, 24))
}

/// The source, of a datagram whose headers are no good.
pub(crate) fn source(bytes: &[u8]) -> Option<Ipv6Addr> {
    bytes.first_chunk::<LEN>().map(|fixed| address(fixed, 8))
}

/// Bytes of a datagram whose extension headers are no good.
pub(crate) fn total_len(bytes: &[u8]) -> usize {
    LEN + usize::from(be16(bytes, 4))
}

/// Skips extension headers from `at`, where one of kind `next` starts that was
/// named at `next_at`. Each is at least eight bytes of `datagram`, so there
/// cannot be many.
pub(crate) fn extensions(
    datagram: &[u8],
    mut next: u8,
    mut next_at: usize,
    mut at: usize,
) -> Result<Upper, Bad> {
    let mut router_alert = false;
    loop {
        match next {
            // Section 4.1: nowhere but right behind the fixed header.
            next::HOP_BY_HOP if next_at == NEXT_AT => {}
            next::HOP_BY_HOP => {
                let pointer = next_at as u32;
                return Err(Bad::Problem { code: problem::NEXT_HEADER, pointer });
            }
            next::DESTINATION | next::ROUTING | next::FRAGMENT => {}
            protocol => {
                return Ok(Upper { protocol, next_at, offset: at, fragment: None, router_alert });
            }
        }
        let head: &[u8; 8] =
            datagram.get(at..).and_then(<[u8]>::first_chunk).ok_or(Bad::Extensions)?;
        let len = 8 * (1 + usize::from(head[1]));
        match next {
            next::FRAGMENT => {
                let word = be16(head, 2);
                let (offset, more) = (usize::from(word & !7), word & 1 != 0);
                // RFC 6946: the only part of a datagram is all of it.
                if offset != 0 || more {
                    return Ok(Upper {
                        protocol: head[0],
                        next_at: at,
                        offset: at + FRAGMENT_LEN,
                        fragment: Some(Fragment { id: be32(head, 4), offset, more }),
                        router_alert,
                    });
                }
                (next, next_at, at) = (head[0], at, at + FRAGMENT_LEN);
                continue;
            }
            // Section 4.4: a route that is at its end is of no interest. Else
            // we would be a router on it; none are known here, and type 0 must
            // not be (RFC 5095 section 3).
            next::ROUTING => {
                if head[3] != 0 {
                    let pointer = (at + 2) as u32;
                    return Err(Bad::Problem { code: problem::FIELD, pointer });
                }
                if at + len > datagram.len() {
                    return Err(Bad::Extensions);
                }
            }
            _ => {
                let options = datagram.get(at..at + len).ok_or(Bad::Extensions)?;
                router_alert |= skip_options(options, at)?;
            }
        }
        (next, next_at, at) = (head[0], at, at + len);
    }
}

/// Skips the options of a header that lies at `at` (RFC 8200 section 4.2).
/// Returns whether the router alert is among them.
fn skip_options(header: &[u8], at: usize) -> Result<bool, Bad> {
    let mut router_alert = false;
    let mut place = 2;
    while let Some(&kind) = header.get(place) {
        if kind == 0 {
            place += 1;
            continue;
        }
        let len = usize::from(*header.get(place + 1).ok_or(Bad::Extensions)?);
        if place + 2 + len > header.len() {
            return Err(Bad::Extensions);
        }
        match kind >> 6 {
            0 => router_alert |= kind == ROUTER_ALERT && len == 2,
            1 => return Err(Bad::Extensions),
            // 3 is silent towards groups, for which this is not called.
            _ => {
                let pointer = (at + place) as u32;
                return Err(Bad::Problem { code: problem::OPTION, pointer });
            }
        }
        place += 2 + len;
    }
    Ok(router_alert)
}

/// Finds what lies behind the extension headers of a datagram, or the start of
/// one, without judging any: its protocol and where it starts. `None` when it is
/// cut off, or is not the first part.
pub(crate) fn find_upper(datagram: &[u8]) -> Option<(u8, usize)> {
    let (mut next, mut at) = (*datagram.get(NEXT_AT)?, LEN);
    loop {
        let len = match next {
            next::HOP_BY_HOP | next::DESTINATION | next::ROUTING => {
                8 * (1 + usize::from(*datagram.get(at + 1)?))
            }
            next::FRAGMENT if be16(datagram.get(at..at + FRAGMENT_LEN)?, 2) & !7 == 0 => {
                FRAGMENT_LEN
            }
            next::FRAGMENT => return None,
            protocol => return Some((protocol, at)),
        };
        next = *datagram.get(at)?;
        at += len;
    }
}

/// Writes a header without extensions for `payload_len` bytes at the start of
/// `out`, which has room for it.
#[inline]
pub(crate) fn write(out: &mut [u8], header: &Header<'_>, payload_len: usize) {
    let word = 6 << 28 | u32::from(header.ecn) << 20 | header.label & 0x000f_ffff;
    out[0..4].copy_from_slice(&word.to_be_bytes());
    out[4..6].copy_from_slice(&(payload_len as u16).to_be_bytes());
    out[6] = header.protocol;
    out[7] = header.hop_limit;
    out[8..24].copy_from_slice(header.src);
    out[24..40].copy_from_slice(header.dst);
}

/// Whether a host may have this address as a source or be connected to. A
/// mapped IPv4 address is never on the wire (RFC 4291 section 2.5.5.2).
pub(crate) fn is_host(address: Ipv6Addr) -> bool {
    !(address.is_unspecified()
        || address.is_multicast()
        || address.is_loopback()
        || address.to_ipv4_mapped().is_some())
}

/// The group at which a host with this address is asked for (RFC 4291 section
/// 2.7.1).
pub(crate) const fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | a as u16, (b as u16) << 8 | c as u16)
}

/// All nodes on the link (RFC 4291 section 2.7.1).
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// All routers on the link.
pub(crate) const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// All routers on the link that know MLDv2 (RFC 3810 section 5.2.14).
pub(crate) const ALL_MLD_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

/// The Ethernet address of a group (RFC 2464 section 7).
pub(crate) const fn group_mac(group: &Octets) -> [u8; 6] {
    let [.., a, b, c, d] = *group;
    [0x33, 0x33, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
    const B: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0x12, 0x3456);

    fn header<'a>(src: &'a Octets, dst: &'a Octets, protocol: u8) -> Header<'a> {
        let (ecn, label) = (ecn::CE, 0xabcde);
        Header { src, dst, sum: 0, v6: true, protocol, ecn, hop_limit: 64, label }
    }

    /// A datagram with these extension headers and then TCP.
    fn datagram(first: u8, extensions: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; LEN];
        write(&mut bytes, &header(&A.octets(), &B.octets(), first), extensions.len() + 20);
        bytes.extend(extensions);
        bytes.extend([0; 20]);
        bytes
    }

    fn upper(first: u8, extensions: &[u8]) -> Result<Upper, Bad> {
        let bytes = datagram(first, extensions);
        parse(&bytes, bytes.len()).map(|ip| ip.upper)
    }

    fn problem(code: u8, pointer: u32) -> Result<Upper, Bad> {
        Err(Bad::Problem { code, pointer })
    }

    proptest! {
        #[test]
        fn what_is_written_parses(
            src: [u8; 16], dst: [u8; 16], ecn in 0u8..4, label: u32, hop_limit: u8, len in 0usize..9000
        ) {
            let mut bytes = [0; LEN];
            let h = Header { ecn, label, hop_limit, ..header(&src, &dst, next::TCP) };
            write(&mut bytes, &h, len);
            let ip = parse(&bytes, LEN + len).unwrap();
            prop_assert_eq!((ip.src.octets(), ip.dst.octets()), (src, dst));
            prop_assert_eq!((ip.ecn, ip.hop_limit, ip.total_len), (ecn, hop_limit, LEN + len));
            prop_assert_eq!(ip.upper.protocol, next::TCP);
            prop_assert_eq!(be32(&bytes, 0) & 0xfffff, label & 0xfffff);
            prop_assert!(parse(&bytes, LEN + len - usize::from(len > 0)).is_ok() == (len == 0));
        }

        /// Whatever the bytes, there is a verdict, and it lies within them.
        #[test]
        fn any_extension_headers_are_judged(first: u8, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut datagram = datagram(first, &bytes);
            let cut = datagram.len() - 20;
            datagram.truncate(cut);
            if let Ok(ip) = parse(&datagram, datagram.len() + 20) {
                prop_assert!(ip.upper.next_at < ip.upper.offset);
                prop_assert!(ip.upper.offset <= datagram.len());
                if let Some((protocol, at)) = find_upper(&datagram) {
                    prop_assert!(ip.upper.fragment.is_some() || (protocol, at) == (ip.upper.protocol, ip.upper.offset));
                }
            }
        }
    }

    #[test]
    fn extension_headers_are_skipped_by_their_rules() {
        // The next header, and what it is: padding, a route at its end, the only
        // fragment of a datagram, a router alert.
        let pad = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
        let route = |next: u8, left: u8| [next, 0, 0, left, 0, 0, 0, 0];
        let atomic = |next: u8| [next, 0, 0, 0, 1, 2, 3, 4];
        let all = [pad(60), pad(43), route(44, 0), atomic(60), pad(6)].concat();
        let found = upper(next::HOP_BY_HOP, &all).unwrap();
        assert_eq!((found.protocol, found.offset, found.next_at), (6, 80, 72));
        assert_eq!((found.fragment, found.router_alert), (None, false));
        let alert = upper(next::HOP_BY_HOP, &[58, 0, 5, 2, 0, 0, 1, 0]).unwrap();
        assert!(alert.router_alert);

        // A route that goes on through us, of type 0 and of any other.
        assert_eq!(upper(next::ROUTING, &route(6, 1)), problem(problem::FIELD, 42));
        // Hop-by-hop options that are not the first.
        let late = [pad(0), pad(6)].concat();
        assert_eq!(upper(next::DESTINATION, &late), problem(problem::NEXT_HEADER, 40));
        // Unknown options, by what their first two bits ask for.
        assert!(upper(next::DESTINATION, &[6, 0, 0x1e, 4, 0, 0, 0, 0]).is_ok());
        assert_eq!(upper(next::DESTINATION, &[6, 0, 0x5e, 4, 0, 0, 0, 0]), Err(Bad::Extensions));
        for kind in [0x9e, 0xde] {
            let header = [6, 0, 0, kind, 3, 0, 0, 0];
            assert_eq!(upper(next::DESTINATION, &header), problem(problem::OPTION, 43));
        }
        // Options and headers that are longer than what they lie in.
        assert_eq!(upper(next::DESTINATION, &[6, 0, 1, 5, 0, 0, 0, 0]), Err(Bad::Extensions));
        assert_eq!(upper(next::DESTINATION, &[6, 0, 1, 3, 0, 0, 0, 1]), Err(Bad::Extensions));
        assert_eq!(upper(next::DESTINATION, &[6, 4, 1, 4, 0, 0, 0, 0]), Err(Bad::Extensions));
    }

    #[test]
    fn fragments_are_recognised() {
        let part = |word: u16| {
            let [a, b] = word.to_be_bytes();
            upper(next::FRAGMENT, &[6, 0, a, b, 1, 2, 3, 4]).unwrap()
        };
        let first = part(1);
        assert_eq!((first.protocol, first.offset), (6, 48));
        let id = 0x0102_0304;
        assert_eq!(first.fragment, Some(Fragment { id, offset: 0, more: true }));
        assert_eq!(part(1400 | 1).fragment, Some(Fragment { id, offset: 1400, more: true }));
        assert_eq!(part(1408).fragment, Some(Fragment { id, offset: 1408, more: false }));
        assert_eq!(part(0).fragment, None);
    }

    #[test]
    fn groups_are_those_of_the_rfcs() {
        assert_eq!(solicited_node(B), "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
        assert_eq!(group_mac(&solicited_node(B).octets()), [0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
    }
}
