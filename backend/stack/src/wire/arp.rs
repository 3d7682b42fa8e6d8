//! ARP for IPv4 on Ethernet (RFC 826).

use core::net::Ipv4Addr;

use super::ethernet::Mac;
use super::{be16, be32};

/// Bytes of the message.
pub(crate) const LEN: usize = 28;
/// `ar$op`: who has this address?
pub(crate) const REQUEST: u16 = 1;
/// `ar$op`: I have it.
pub(crate) const REPLY: u16 = 2;

/// A parsed message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arp {
    pub op: u16,
    pub sender_mac: Mac,
    pub sender: Ipv4Addr,
    pub target_mac: Mac,
    pub target: Ipv4Addr,
}

/// Reads a message; `None` when it is not ARP for IPv4 on Ethernet.
pub(crate) fn parse(bytes: &[u8]) -> Option<Arp> {
    let b: &[u8; LEN] = bytes.first_chunk()?;
    // Hardware type Ethernet, protocol IPv4, address lengths 6 and 4.
    if b[..6] != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    Some(Arp {
        op: be16(b, 6),
        sender_mac: [b[8], b[9], b[10], b[11], b[12], b[13]],
        sender: Ipv4Addr::from_bits(be32(b, 14)),
        target_mac: [b[18], b[19], b[20], b[21], b[22], b[23]],
        target: Ipv4Addr::from_bits(be32(b, 24)),
    })
}

/// Writes a message at the start of `out`, which has room for it.
pub(crate) fn write(out: &mut [u8], arp: &Arp) {
    out[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
    out[6..8].copy_from_slice(&arp.op.to_be_bytes());
    out[8..14].copy_from_slice(&arp.sender_mac);
    out[14..18].copy_from_slice(&arp.sender.octets());
    out[18..24].copy_from_slice(&arp.target_mac);
    out[24..28].copy_from_slice(&arp.target.octets());
}
