//! IPv4 (RFC 791). Options are skipped; fragments are recognised.

use core::net::Ipv4Addr;

use super::ip::ecn;
use super::{be16, be32};
use crate::checksum;

/// Bytes of a header without options, the only kind that we write.
pub(crate) const LEN: usize = 20;
/// Protocol number of ICMP.
pub(crate) const ICMP: u8 = 1;
/// Protocol number of TCP.
pub(crate) const TCP: u8 = 6;

/// A parsed header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ipv4 {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub protocol: u8,
    /// Bytes of the header, options included.
    pub header_len: usize,
    /// Bytes of the datagram, header included; never less than `header_len`.
    pub total_len: usize,
    /// The ECN field ([`ecn`]).
    pub ecn: u8,
    /// Part of a larger datagram.
    pub fragment: bool,
}

/// Why a header is no good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bad {
    /// Version or a length.
    Header,
    /// The checksum.
    Checksum,
}

/// Reads the header from `bytes`, the start of a datagram of which `len` bytes
/// arrived; link padding after the datagram is allowed.
pub(crate) fn parse(bytes: &[u8], len: usize) -> Result<Ipv4, Bad> {
    let first = *bytes.first().ok_or(Bad::Header)?;
    let header_len = usize::from(first & 0x0f) * 4;
    let total_len = usize::from(be16(bytes, 2));
    if first >> 4 != 4 || header_len < LEN || total_len < header_len || total_len > len {
        return Err(Bad::Header);
    }
    let header = bytes.get(..header_len).ok_or(Bad::Header)?;
    if checksum::sum(header) != 0xffff {
        return Err(Bad::Checksum);
    }
    Ok(Ipv4 {
        src: Ipv4Addr::from_bits(be32(header, 12)),
        dst: Ipv4Addr::from_bits(be32(header, 16)),
        protocol: header[9],
        ecn: header[1] & ecn::MASK,
        header_len,
        total_len,
        // More-fragments flag, or an offset.
        fragment: be16(header, 6) & 0x3fff != 0,
    })
}

/// The destination, before anything else is judged: another host's datagram is
/// bridged however odd it is.
pub(crate) fn destination(bytes: &[u8]) -> Option<Ipv4Addr> {
    (bytes.len() >= LEN).then(|| Ipv4Addr::from_bits(be32(bytes, 16)))
}

/// Writes a header without options for `payload_len` bytes at the start of
/// `out`, which has room for it. Don't-fragment is set and the identification
/// is zero, as RFC 6864 section 4 allows for such datagrams.
pub(crate) fn write(
    out: &mut [u8],
    src: Ipv4Addr,
    dst: Ipv4Addr,
    protocol: u8,
    ecn: u8,
    payload_len: usize,
) {
    let total = (LEN + payload_len) as u16;
    out[0] = 0x45;
    out[1] = ecn;
    out[2..4].copy_from_slice(&total.to_be_bytes());
    out[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
    out[8] = 64;
    out[9] = protocol;
    // The words 0x4500 with the ECN field, 0x4000 and TTL 64, and the pseudo-header's
    // words, which are just the others of this header.
    let sum = checksum::add(
        checksum::fold(0x4500 + u32::from(ecn) + 0x4000 + 0x4000),
        checksum::pseudo(src, dst, protocol, total),
    );
    out[10..12].copy_from_slice(&(!sum).to_be_bytes());
    out[12..16].copy_from_slice(&src.octets());
    out[16..20].copy_from_slice(&dst.octets());
}

/// Whether a host may have this address as a source or be connected to.
pub(crate) fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_loopback()
        || address.octets()[0] == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_parses() {
        let mut bytes = [0; LEN];
        let (a, b) = (Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(192, 168, 77, 255));
        write(&mut bytes, a, b, TCP, ecn::ECT_0, 1480);
        let ip = parse(&bytes, 1500).unwrap();
        assert_eq!((ip.src, ip.dst, ip.protocol, ip.total_len), (a, b, TCP, 1500));
        assert!(!ip.fragment);
        assert_eq!(ip.ecn, ecn::ECT_0);
    }

    #[test]
    fn refuses_lengths_that_lie() {
        let mut bytes = [0; LEN];
        write(&mut bytes, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, TCP, ecn::NOT_ECT, 10);
        assert_eq!(parse(&bytes, 29).unwrap_err(), Bad::Header);
        assert_eq!(parse(&bytes[..19], 30).unwrap_err(), Bad::Header);
        bytes[8] ^= 1;
        assert_eq!(parse(&bytes, 30).unwrap_err(), Bad::Checksum);
        bytes[0] = 0x44;
        assert_eq!(parse(&bytes, 30).unwrap_err(), Bad::Header);
    }
}
