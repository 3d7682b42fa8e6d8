//! ICMP (RFC 792): what a TCP host must understand of it.

use core::net::Ipv4Addr;

use super::{be16, be32, ipv4};

/// Bytes of the header.
pub(crate) const LEN: usize = 8;
/// Type: echo request.
pub(crate) const ECHO: u8 = 8;
/// Type: echo reply.
pub(crate) const ECHO_REPLY: u8 = 0;
/// Type: destination unreachable.
pub(crate) const UNREACHABLE: u8 = 3;
/// Code of [`UNREACHABLE`]: fragmentation needed (RFC 1191 section 4).
pub(crate) const FRAGMENTATION_NEEDED: u8 = 4;

/// A "destination unreachable" about a TCP segment that we may have sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unreachable {
    pub code: u8,
    /// The next hop's MTU, for [`FRAGMENTATION_NEEDED`]; zero from old routers.
    pub mtu: u16,
    /// Source of the segment.
    pub src: Ipv4Addr,
    /// Destination of the segment.
    pub dst: Ipv4Addr,
    pub src_port: u16,
    pub dst_port: u16,
    pub seq: u32,
}

/// Reads the message and the start of the datagram quoted in it; `None` when it
/// is not about a TCP segment. The quoted header's checksum and length are not
/// judged: the quote may be cut, and routers have changed it.
pub(crate) fn parse_unreachable(bytes: &[u8]) -> Option<Unreachable> {
    let quoted = bytes.get(LEN..)?;
    let first = *quoted.first()?;
    let header_len = usize::from(first & 0x0f) * 4;
    if bytes[0] != UNREACHABLE || first >> 4 != 4 || header_len < ipv4::LEN {
        return None;
    }
    let tcp = quoted.get(header_len..header_len + 8)?;
    if quoted[9] != ipv4::TCP || be16(quoted, 6) & 0x1fff != 0 {
        return None;
    }
    Some(Unreachable {
        code: bytes[1],
        mtu: be16(bytes, 6),
        src: Ipv4Addr::from_bits(be32(quoted, 12)),
        dst: Ipv4Addr::from_bits(be32(quoted, 16)),
        src_port: be16(tcp, 0),
        dst_port: be16(tcp, 2),
        seq: be32(tcp, 4),
    })
}
