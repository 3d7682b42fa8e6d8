//! The virtio-net header of a frame from the guest, judged from a private copy.
//!
//! Knows nothing of rings: whoever copied the chain out calls it.

use paste_abi::net_hdr::{GSO_NONE, NEEDS_CSUM, NetHdr};
use paste_stack::TxCsum;

/// Why a frame's header is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Segmentation was never offered.
    #[error("the frame asks for segmentation type {0}, which was not offered")]
    Segmentation(u8),
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

/// Judges the header that a driver put before a frame of `frame_len` bytes
/// (virtio 1.2 section 5.1.6.2), and says which checksum is to be completed.
///
/// `header` must be a copy that the guest cannot write to. `csum_allowed` says
/// whether whoever takes the frame can complete a checksum.
pub fn judge_tx_header(
    header: &NetHdr,
    frame_len: usize,
    csum_allowed: bool,
) -> Result<Option<TxCsum>, HeaderError> {
    if header.gso_type != GSO_NONE {
        return Err(HeaderError::Segmentation(header.gso_type));
    }
    if header.flags & NEEDS_CSUM == 0 {
        return Ok(None);
    }
    if !csum_allowed {
        return Err(HeaderError::CsumNotNegotiated);
    }
    let (start, offset) = (header.csum_start.get(), header.csum_offset.get());
    if usize::from(start) + usize::from(offset) + 2 > frame_len {
        return Err(HeaderError::CsumOutside { start, offset, len: frame_len });
    }
    Ok(Some(TxCsum { start, offset }))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(judge_tx_header(&NetHdr::default(), 14, false), Ok(None));
    }

    #[test]
    fn the_checksum_must_lie_within_the_frame() {
        let fits = TxCsum { start: 34, offset: 16 };
        assert_eq!(judge_tx_header(&needs_csum(34, 16), 52, true), Ok(Some(fits)));
        assert!(judge_tx_header(&needs_csum(34, 16), 51, true).is_err());
        // The sum does not wrap around.
        assert!(judge_tx_header(&needs_csum(u16::MAX, u16::MAX), 60, true).is_err());
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        assert_eq!(
            judge_tx_header(&needs_csum(0, 0), 60, false),
            Err(HeaderError::CsumNotNegotiated)
        );
        for gso_type in [1, 3, 4, 5, 0x80, 0x81] {
            let header = NetHdr { gso_type, ..NetHdr::default() };
            assert_eq!(
                judge_tx_header(&header, 60, true),
                Err(HeaderError::Segmentation(gso_type))
            );
        }
    }
}
