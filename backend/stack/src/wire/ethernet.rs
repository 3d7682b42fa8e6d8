//! Ethernet II (RFC 894).

use super::be16;

/// Bytes of the header.
pub(crate) const LEN: usize = 14;
/// Ethertype of IPv4.
pub(crate) const IPV4: u16 = 0x0800;
/// Ethertype of ARP.
pub(crate) const ARP: u16 = 0x0806;
/// Everybody on the link.
pub(crate) const BROADCAST: Mac = [0xff; 6];

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// A parsed header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ethernet {
    pub dst: Mac,
    pub src: Mac,
    pub ethertype: u16,
}

/// Whether a station can have this address: not a group address, and not zero.
pub(crate) fn is_station(mac: &Mac) -> bool {
    mac[0] & 1 == 0 && *mac != [0; 6]
}

/// Reads the header; `None` when it is cut short.
pub(crate) fn parse(bytes: &[u8]) -> Option<Ethernet> {
    let b: &[u8; LEN] = bytes.first_chunk()?;
    Some(Ethernet {
        dst: [b[0], b[1], b[2], b[3], b[4], b[5]],
        src: [b[6], b[7], b[8], b[9], b[10], b[11]],
        ethertype: be16(b, 12),
    })
}

/// Writes the header at the start of `out`, which has room for it.
pub(crate) fn write(out: &mut [u8], dst: &Mac, src: &Mac, ethertype: u16) {
    out[0..6].copy_from_slice(dst);
    out[6..12].copy_from_slice(src);
    out[12..14].copy_from_slice(&ethertype.to_be_bytes());
}
