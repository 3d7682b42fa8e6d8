//! Headers as they lie on the wire: checked parsing of a host-private copy, and
//! writing. Nothing here reads a buffer, so what was judged is what is used.

pub(crate) mod arp;
pub(crate) mod ethernet;
pub(crate) mod icmp;
pub(crate) mod icmpv6;
pub(crate) mod ip;
pub(crate) mod ipv4;
pub(crate) mod ipv6;
pub(crate) mod mld;
pub(crate) mod ndp;
pub(crate) mod tcp;

/// Bytes that are copied out of an arriving frame: Ethernet with a tag, then
/// IPv4 and TCP with all the options that they can have (18 + 60 + 60), or IPv6
/// and TCP (18 + 40 + 60) with 74 bytes of extension headers between them.
pub(crate) const HEADER_COPY: usize = 192;

/// Reads a big-endian `u16`; zero beyond the end.
#[inline]
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_be_bytes([b[0], b[1]]))
}

/// Reads a big-endian `u32`; zero beyond the end.
#[inline]
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
}
