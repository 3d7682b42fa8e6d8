//! The Ethernet header of a frame, with at most one VLAN tag (IEEE 802.1Q): all that is
//! read of it before somebody is found whose frame it is. Knows no guest.

/// Bytes of a header without a tag.
pub const LEN: usize = 14;
/// Bytes of a tag.
pub const TAG_LEN: usize = 4;

/// EtherType of IPv4 (RFC 894).
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP (RFC 826).
pub const ARP: u16 = 0x0806;
/// EtherType of a VLAN tag (IEEE 802.1Q).
pub const VLAN: u16 = 0x8100;
/// EtherType of IPv6 (RFC 2464).
pub const IPV6: u16 = 0x86dd;

/// A frame behind its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link<'a> {
    /// The VLAN that it is on, or zero.
    identifier: u16,
    /// What the packet is. A second tag is none of ours, and stays [`VLAN`].
    pub ethertype: u16,
    /// What is behind the header.
    pub packet: &'a [u8],
}

impl<'a> Link<'a> {
    /// Reads a frame, or the start of one; `None` if its header is cut short.
    #[inline]
    pub fn read(frame: &'a [u8]) -> Option<Link<'a>> {
        let (header, packet) = frame.split_first_chunk::<LEN>()?;
        let ethertype = u16::from_be_bytes([header[12], header[13]]);
        if ethertype != VLAN {
            return Some(Link { identifier: 0, ethertype, packet });
        }
        let (tag, packet) = packet.split_first_chunk::<TAG_LEN>()?;
        let identifier = u16::from_be_bytes([tag[0], tag[1]]) & 0xfff;
        let ethertype = u16::from_be_bytes([tag[2], tag[3]]);
        Some(Link { identifier, ethertype, packet })
    }

    /// The VLAN that it is on. A tag whose identifier is zero is a priority without a
    /// VLAN (IEEE 802.1Q section 9.6).
    #[inline]
    pub fn vlan(&self) -> Option<u16> {
        (self.identifier != 0).then_some(self.identifier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tags: &[u16], ethertype: u16) -> Vec<u8> {
        let mut frame = vec![2; 12];
        for tag in tags {
            frame.extend(VLAN.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(ethertype.to_be_bytes());
        frame.extend(b"payload");
        frame
    }

    #[test]
    fn one_tag_is_read_and_a_priority_is_no_vlan() {
        for (tags, vlan) in [
            (&[][..], None),
            (&[7], Some(7)),
            (&[0xe007], Some(7)),
            (&[0xfff], Some(0xfff)),
            (&[0], None),
            (&[0xe000], None),
        ] {
            let frame = frame(tags, IPV6);
            let link = Link::read(&frame).unwrap();
            let read = (link.vlan(), link.ethertype, link.packet);
            assert_eq!(read, (vlan, IPV6, &b"payload"[..]), "{tags:x?}");
        }
        let twice = frame(&[7, 8], IPV4);
        assert_eq!(
            Link::read(&twice).map(|link| (link.vlan(), link.ethertype)),
            Some((Some(7), VLAN))
        );
    }

    #[test]
    fn what_is_cut_short_is_not_read() {
        for (tags, len) in [(&[][..], LEN), (&[7], LEN + TAG_LEN)] {
            let frame = frame(tags, IPV4);
            for short in 0..len {
                assert_eq!(Link::read(&frame[..short]), None, "{short}");
            }
            assert!(Link::read(&frame[..len]).is_some_and(|link| link.packet.is_empty()));
        }
    }
}
