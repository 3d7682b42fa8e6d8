//! The virtio-net header of a frame from the guest, judged from a private copy.
//!
//! Knows nothing of rings: whoever copied the chain out calls it.

use paste_abi::net_hdr::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, NEEDS_CSUM, NetHdr};
use paste_stack::TxCsum;

/// Why a frame's header is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Segmentation of a kind that was not negotiated.
    #[error("the frame asks for segmentation type {0:#x}, which was not negotiated")]
    Segmentation(u8),
    /// Segmentation without a size, or with a checksum that nobody would complete.
    #[error("the frame asks for segmentation without a size or without checksums")]
    SegmentsWithout,
    /// A checksum to complete, without VIRTIO_NET_F_CSUM.
    #[error("the frame asks for its checksum to be completed, which was not negotiated")]
    CsumNotNegotiated,
    /// The checksum's field does not lie within the frame.
    #[error("the checksum at {start}+{offset} is outside a frame of {len} bytes")]
    CsumOutside {
        /// Where summing starts.
        start: u16,
        /// Where the checksum is stored, from `start`.
        offset: u16,
        /// Bytes of the frame.
        len: usize,
    },
}

/// What a driver may leave to the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Completing a checksum (VIRTIO_NET_F_CSUM).
    pub csum: bool,
    /// Cutting TCP over IPv4 into segments (VIRTIO_NET_F_HOST_TSO4).
    pub tso4: bool,
    /// The same over IPv6 (VIRTIO_NET_F_HOST_TSO6).
    pub tso6: bool,
    /// The first of the segments has CWR (VIRTIO_NET_F_HOST_ECN).
    pub ecn: bool,
}

/// What a driver has left to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// A checksum.
    Csum(TxCsum),
    /// Cutting it into segments, and the checksum of each.
    Segments,
}

/// Judges the header that a driver put before a frame of `frame_len` bytes
/// (virtio 1.2 section 5.1.6.2), and says what is to be done.
///
/// `header` must be a copy that the guest cannot write to. `allowed` says what whoever
/// takes the frame can do.
pub fn judge_tx_header(
    header: &NetHdr,
    frame_len: usize,
    allowed: Offloads,
) -> Result<Left, HeaderError> {
    let segments = match header.gso_type & !GSO_ECN {
        GSO_NONE if header.gso_type == GSO_NONE => false,
        GSO_TCPV4 if allowed.tso4 => true,
        GSO_TCPV6 if allowed.tso6 => true,
        _ => return Err(HeaderError::Segmentation(header.gso_type)),
    };
    if header.gso_type & GSO_ECN != 0 && !allowed.ecn {
        return Err(HeaderError::Segmentation(header.gso_type));
    }
    let csum = header.flags & NEEDS_CSUM != 0;
    if segments && (!csum || header.gso_size.get() == 0) {
        return Err(HeaderError::SegmentsWithout);
    }
    if !csum {
        return Ok(Left::Nothing);
    }
    if !allowed.csum {
        return Err(HeaderError::CsumNotNegotiated);
    }
    let (start, offset) = (header.csum_start.get(), header.csum_offset.get());
    if usize::from(start) + usize::from(offset) + 2 > frame_len {
        return Err(HeaderError::CsumOutside { start, offset, len: frame_len });
    }
    Ok(if segments { Left::Segments } else { Left::Csum(TxCsum { start, offset }) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CSUM: Offloads = Offloads { csum: true, tso4: false, tso6: false, ecn: false };

    fn needs_csum(start: u16, offset: u16) -> NetHdr {
        NetHdr {
            flags: NEEDS_CSUM,
            csum_start: start.into(),
            csum_offset: offset.into(),
            ..NetHdr::default()
        }
    }

    #[test]
    fn a_plain_header_asks_for_nothing() {
        let nothing = judge_tx_header(&NetHdr::default(), 14, Offloads::default());
        assert_eq!(nothing, Ok(Left::Nothing));
    }

    #[test]
    fn the_checksum_must_lie_within_the_frame() {
        let fits = TxCsum { start: 34, offset: 16 };
        assert_eq!(judge_tx_header(&needs_csum(34, 16), 52, CSUM), Ok(Left::Csum(fits)));
        assert!(judge_tx_header(&needs_csum(34, 16), 51, CSUM).is_err());
        // The sum does not wrap around.
        assert!(judge_tx_header(&needs_csum(u16::MAX, u16::MAX), 60, CSUM).is_err());
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        assert_eq!(
            judge_tx_header(&needs_csum(0, 0), 60, Offloads::default()),
            Err(HeaderError::CsumNotNegotiated)
        );
        for gso_type in [1, 3, 4, 5, 0x80, 0x81] {
            let header = NetHdr { gso_type, gso_size: 9.into(), ..needs_csum(34, 16) };
            assert_eq!(
                judge_tx_header(&header, 60, CSUM),
                Err(HeaderError::Segmentation(gso_type))
            );
        }
    }

    #[test]
    fn segments_need_a_size_and_checksums() {
        let all = Offloads { csum: true, tso4: true, tso6: true, ecn: true };
        let whole = NetHdr { gso_type: GSO_TCPV4, gso_size: 9.into(), ..needs_csum(34, 16) };
        assert_eq!(judge_tx_header(&whole, 60, all), Ok(Left::Segments));
        let v6 = NetHdr { gso_type: GSO_TCPV6 | GSO_ECN, ..whole };
        assert_eq!(judge_tx_header(&v6, 60, all), Ok(Left::Segments));
        for broken in [
            NetHdr { gso_size: 0.into(), ..whole },
            NetHdr { flags: 0, ..whole },
            NetHdr { gso_type: 3, ..whole },
            NetHdr { gso_type: GSO_ECN, ..whole },
            NetHdr { csum_start: 59.into(), ..whole },
        ] {
            assert!(judge_tx_header(&broken, 60, all).is_err(), "{broken:?}");
        }
        // The kinds are apart.
        let only = Offloads { tso6: false, ..all };
        assert!(judge_tx_header(&v6, 60, only).is_err());
        let only = Offloads { ecn: false, ..all };
        assert!(judge_tx_header(&v6, 60, only).is_err());
        let only = Offloads { csum: false, ..all };
        assert!(judge_tx_header(&whole, 60, only).is_err());
    }
}
