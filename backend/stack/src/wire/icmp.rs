//! ICMP for IPv4 (RFC 792): what a TCP host must understand of it. The header is
//! the same in [`super::icmpv6`].

use super::ip::{Meaning, Report};
use super::{be16, be32, ipv4};

/// Bytes of the header.
pub(crate) const LEN: usize = 8;
/// Type: echo request.
pub(crate) const ECHO: u8 = 8;
/// Type: echo reply.
pub(crate) const ECHO_REPLY: u8 = 0;
/// Type: destination unreachable.
pub(crate) const UNREACHABLE: u8 = 3;
/// Code of [`UNREACHABLE`]: nobody has this protocol.
pub(crate) const PROTOCOL_UNREACHABLE: u8 = 2;
/// Code of [`UNREACHABLE`]: fragmentation needed (RFC 1191 section 4).
pub(crate) const FRAGMENTATION_NEEDED: u8 = 4;
/// Type: time exceeded.
pub(crate) const TIME_EXCEEDED: u8 = 11;
/// Code of [`TIME_EXCEEDED`]: in reassembly.
pub(crate) const IN_REASSEMBLY: u8 = 1;

/// Bytes of a datagram that an error quotes, its header included: the whole
/// message fits 576 bytes (RFC 1812 section 4.3.2.3).
pub(crate) const QUOTE_MAX: usize = 576 - ipv4::LEN - LEN;

/// Reads an error and the start of the datagram quoted in it; `None` when it is
/// not about a TCP segment. The quoted header's checksum and length are not
/// judged: the quote may be cut, and routers have changed it.
pub(crate) fn parse_error(bytes: &[u8]) -> Option<Report> {
    let quoted = bytes.get(LEN..)?;
    let first = *quoted.first()?;
    let header_len = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header_len < ipv4::LEN {
        return None;
    }
    let tcp = quoted.get(header_len..header_len + 8)?;
    if quoted[9] != ipv4::TCP || be16(quoted, 6) & 0x1fff != 0 {
        return None;
    }
    let meaning = match (bytes[0], bytes[1]) {
        (UNREACHABLE, FRAGMENTATION_NEEDED) => Meaning::TooBig(u32::from(be16(bytes, 6))),
        // Protocol and port unreachable, and what administrators forbid (RFC
        // 1812 section 5.2.7.1).
        (UNREACHABLE, PROTOCOL_UNREACHABLE | 3 | 9 | 10 | 13) => Meaning::Hard,
        (UNREACHABLE | TIME_EXCEEDED, _) => Meaning::Soft,
        _ => return None,
    };
    Some(Report {
        meaning,
        src: mapped(quoted, 12),
        dst: mapped(quoted, 16),
        src_port: be16(tcp, 0),
        dst_port: be16(tcp, 2),
        seq: be32(tcp, 4),
    })
}

fn mapped(bytes: &[u8], at: usize) -> [u8; 16] {
    core::net::Ipv4Addr::from_bits(be32(bytes, at)).to_ipv6_mapped().octets()
}
