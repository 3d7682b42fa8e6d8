//! IPv4 (RFC 791). Options are skipped, and fragments recognised.

use core::net::Ipv4Addr;

use super::ip::{Fragment, Header, ecn};
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
    pub protocol: u8,
    /// Bytes of the header, options included.
    pub header_len: usize,
    /// Bytes of the datagram, header included; never less than `header_len`.
    pub total_len: usize,
    /// The ECN field ([`ecn`]).
    pub ecn: u8,
    /// It is part of a larger datagram.
    pub fragment: Option<Fragment>,
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
#[inline]
pub(crate) fn parse(bytes: &[u8], len: usize) -> Result<Ipv4, Bad> {
    let first = *bytes.first().ok_or(Bad::Header)?;
    let header_len = usize::from(first & 0x0f) * 4;
    let total_len = usize::from(be16(bytes, 2));
    if first >> 4 != 4 || header_len < LEN || total_len < header_len || total_len > len {
        return Err(Bad::Header);
    }
    let header = bytes.get(..header_len).ok_or(Bad::Header)?;
    // Of a length that is known, the sum is a few additions.
    let sum = match header.first_chunk::<LEN>().filter(|_| header_len == LEN) {
        Some(plain) => checksum::sum(plain),
        None => checksum::sum(header),
    };
    if sum != 0xffff {
        return Err(Bad::Checksum);
    }
    let word = be16(header, 6);
    let fragment = Fragment {
        id: u32::from(be16(header, 4)),
        offset: usize::from(word & 0x1fff) * 8,
        more: word & 0x2000 != 0,
    };
    Ok(Ipv4 {
        src: Ipv4Addr::from_bits(be32(header, 12)),
        protocol: header[9],
        ecn: header[1] & ecn::MASK,
        header_len,
        total_len,
        fragment: (fragment.more || fragment.offset != 0).then_some(fragment),
    })
}

/// The destination, before anything else is judged: another host's datagram is
/// bridged however odd it is.
#[inline]
pub(crate) fn destination(bytes: &[u8]) -> Option<Ipv4Addr> {
    (bytes.len() >= LEN).then(|| Ipv4Addr::from_bits(be32(bytes, 16)))
}

/// Writes a header without options for `payload_len` bytes at the start of
/// `out`, which has room for it. Don't-fragment is set and the identification
/// is zero, as RFC 6864 section 4 allows for such datagrams.
#[inline]
pub(crate) fn write_header(out: &mut [u8], header: &Header<'_>, payload_len: usize) {
    let [.., s0, s1, s2, s3] = *header.src;
    let [.., d0, d1, d2, d3] = *header.dst;
    let [len0, len1] = ((LEN + payload_len) as u16).to_be_bytes();
    let out = &mut out[..LEN];
    out[0..4].copy_from_slice(&[0x45, header.ecn, len0, len1]);
    out[4..8].copy_from_slice(&[0, 0, 0x40, 0]);
    out[8..12].copy_from_slice(&[header.hop_limit, header.protocol, 0, 0]);
    out[12..20].copy_from_slice(&[s0, s1, s2, s3, d0, d1, d2, d3]);
    // Of the fields and not of the bytes just stored: to read those back in other
    // widths would wait for the stores.
    let words = [0x4500 | u32::from(header.ecn), (LEN + payload_len) as u32 & 0xffff, 0x4000];
    let hops = u32::from(header.hop_limit) << 8 | u32::from(header.protocol);
    let fixed = checksum::fold(words.iter().sum::<u32>() + hops);
    let sum = checksum::add(fixed, header.sum);
    out[10..12].copy_from_slice(&(!sum).to_be_bytes());
}

/// Whether a host may have this address as a source or be connected to.
#[inline]
pub(crate) fn is_host(address: Ipv4Addr) -> bool {
    !(address.is_unspecified()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_loopback()
        || address.octets()[0] == 0)
}

#[cfg(test)]
pub(crate) use tests::write;

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a header as most tests want it.
    #[inline]
    pub(crate) fn write(
        out: &mut [u8],
        src: Ipv4Addr,
        dst: Ipv4Addr,
        protocol: u8,
        ecn: u8,
        payload_len: usize,
    ) {
        let (src, dst) = (&src.to_ipv6_mapped().octets(), &dst.to_ipv6_mapped().octets());
        let sum = checksum::add(checksum::address(src), checksum::address(dst));
        let header = Header { src, dst, sum, v6: false, protocol, ecn, hop_limit: 64, label: 0 };
        write_header(out, &header, payload_len);
    }

    #[test]
    fn what_is_written_parses() {
        let mut bytes = [0; LEN];
        let (a, b) = (Ipv4Addr::new(10, 1, 2, 3), Ipv4Addr::new(192, 168, 77, 255));
        write(&mut bytes, a, b, TCP, ecn::ECT_0, 1480);
        let ip = parse(&bytes, 1500).unwrap();
        assert_eq!((ip.src, ip.protocol, ip.total_len), (a, TCP, 1500));
        assert_eq!(destination(&bytes), Some(b));
        assert_eq!(ip.fragment, None);
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
