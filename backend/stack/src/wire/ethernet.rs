//! Ethernet II (RFC 894), and the VLAN tag of IEEE 802.1Q.

use super::be16;

/// Bytes of the header without a tag.
pub(crate) const LEN: usize = 14;
/// Bytes of a tag.
pub(crate) const TAG_LEN: usize = 4;
/// Ethertype of IPv4.
pub(crate) const IPV4: u16 = 0x0800;
/// Ethertype of ARP.
pub(crate) const ARP: u16 = 0x0806;
/// Ethertype of IPv6 (RFC 2464 section 3).
pub(crate) const IPV6: u16 = 0x86dd;
/// The tag protocol identifier of IEEE 802.1Q section 9.6.
pub(crate) const VLAN: u16 = 0x8100;
/// The VLAN identifier in a tag's control information; the rest is priority.
pub(crate) const VID_MASK: u16 = 0x0fff;
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
    /// The VLAN identifier; `None` without a tag, or with one that carries a
    /// priority only (IEEE 802.1Q table 9-2).
    pub vlan: Option<u16>,
    /// Bytes of the header, its tag included.
    pub len: usize,
}

/// Whether a station can have this address: not a group address, and not zero.
#[inline]
pub(crate) fn is_station(mac: &Mac) -> bool {
    !is_group(mac) && *mac != [0; 6]
}

/// Whether it is the address of several stations.
pub(crate) fn is_group(mac: &Mac) -> bool {
    mac[0] & 1 != 0
}

/// Reads the header; `None` when it is cut short. Of several tags the first is
/// read, and the ethertype is then that of the second.
#[inline]
pub(crate) fn parse(bytes: &[u8]) -> Option<Ethernet> {
    let b: &[u8; LEN] = bytes.first_chunk()?;
    let mut link = Ethernet {
        dst: [b[0], b[1], b[2], b[3], b[4], b[5]],
        src: [b[6], b[7], b[8], b[9], b[10], b[11]],
        ethertype: be16(b, 12),
        vlan: None,
        len: LEN,
    };
    if link.ethertype == VLAN {
        let tag: &[u8; TAG_LEN] = bytes[LEN..].first_chunk()?;
        let vid = be16(tag, 0) & VID_MASK;
        link.vlan = (vid != 0).then_some(vid);
        link.ethertype = be16(tag, 2);
        link.len = LEN + TAG_LEN;
    }
    Some(link)
}

/// Bytes of a header that is written for this VLAN.
#[inline]
pub(crate) const fn header_len(vlan: Option<u16>) -> usize {
    if vlan.is_some() { LEN + TAG_LEN } else { LEN }
}

/// Writes the header at the start of `out`, which has room for it, and returns
/// its length.
#[inline]
pub(crate) fn write(
    out: &mut [u8],
    dst: &Mac,
    src: &Mac,
    vlan: Option<u16>,
    ethertype: u16,
) -> usize {
    out[0..6].copy_from_slice(dst);
    out[6..12].copy_from_slice(src);
    let mut at = 12;
    if let Some(vid) = vlan {
        out[12..14].copy_from_slice(&VLAN.to_be_bytes());
        out[14..16].copy_from_slice(&(vid & VID_MASK).to_be_bytes());
        at = 16;
    }
    out[at..at + 2].copy_from_slice(&ethertype.to_be_bytes());
    at + 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_parses_with_and_without_a_tag() {
        for vlan in [None, Some(1), Some(4094)] {
            let mut bytes = [0; LEN + TAG_LEN];
            let len = write(&mut bytes, &[2; 6], &[4; 6], vlan, IPV6);
            assert_eq!(len, header_len(vlan));
            let link = parse(&bytes[..len]).unwrap();
            assert_eq!((link.dst, link.src, link.ethertype), ([2; 6], [4; 6], IPV6));
            assert_eq!((link.vlan, link.len), (vlan, len));
            assert!(parse(&bytes[..len - 1]).is_none());
        }
    }

    #[test]
    fn a_priority_is_no_vlan_and_the_second_tag_is_no_header() {
        let mut bytes = [0; LEN + TAG_LEN];
        write(&mut bytes, &[2; 6], &[4; 6], Some(0), IPV4);
        bytes[14] = 0xe0;
        let link = parse(&bytes).unwrap();
        assert_eq!((link.vlan, link.ethertype, link.len), (None, IPV4, 18));
        bytes[15] = 7;
        bytes[16..18].copy_from_slice(&VLAN.to_be_bytes());
        let link = parse(&bytes).unwrap();
        assert_eq!((link.vlan, link.ethertype), (Some(7), VLAN));
    }
}
