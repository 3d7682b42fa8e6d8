//! What IPv4 and IPv6 have in common. An address is 16 bytes in both; one of
//! IPv4 is mapped (RFC 4291 section 2.5.5.2).

use super::{ipv4, ipv6};

/// An address of either family.
pub(crate) type Octets = [u8; 16];

/// The ECN field of an IP header: the low two bits of the former TOS or
/// traffic class octet (RFC 3168 section 5).
pub(crate) mod ecn {
    /// The sender's transport does not know ECN.
    pub(crate) const NOT_ECT: u8 = 0;
    /// ECN-capable transport, ECT(0): what senders use.
    pub(crate) const ECT_0: u8 = 2;
    /// Congestion experienced: set by a router on the way.
    pub(crate) const CE: u8 = 3;
    /// The bits of the field within its octet.
    pub(crate) const MASK: u8 = 3;
}

/// A part of a larger datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment {
    /// What the parts of one datagram have in common.
    pub id: u32,
    /// Where it starts in the datagram's payload, bytes.
    pub offset: usize,
    /// It is not the last.
    pub more: bool,
}

/// A header that is to be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header<'a> {
    pub src: &'a Octets,
    pub dst: &'a Octets,
    /// The sum of both.
    pub sum: u16,
    pub v6: bool,
    pub protocol: u8,
    pub ecn: u8,
    pub hop_limit: u8,
    /// IPv6: the flow label (RFC 6437), 20 bits.
    pub label: u32,
}

impl Header<'_> {
    /// Bytes of the header.
    #[inline]
    pub(crate) const fn len(&self) -> usize {
        if self.v6 { ipv6::LEN } else { ipv4::LEN }
    }

    /// Writes it in front of `payload_len` bytes at the start of `out`, which
    /// has room for it.
    #[inline]
    pub(crate) fn write(&self, out: &mut [u8], payload_len: usize) {
        if self.v6 {
            ipv6::write(out, self, payload_len);
        } else {
            ipv4::write_header(out, self, payload_len);
        }
    }
}

/// What an ICMP error means for the flow that it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The datagram was larger than this next hop carries; zero when an old
    /// router does not say.
    TooBig(u32),
    /// RFC 1122 section 4.2.3.9: trying again will not help.
    Hard,
    /// It may pass.
    Soft,
}

/// An ICMP error about a TCP segment that we may have sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    pub meaning: Meaning,
    /// Source of the segment.
    pub src: Octets,
    /// Destination of the segment.
    pub dst: Octets,
    pub src_port: u16,
    pub dst_port: u16,
    pub seq: u32,
}
