//! The virtio-net header (virtio 1.2 section 5.1.6, `struct virtio_net_hdr_v1`),
//! which also precedes every frame of a TAP device opened with `IFF_VNET_HDR`.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `flags`: the checksum from `csum_start` on is to be completed and stored.
pub const NEEDS_CSUM: u8 = 1;
/// `flags`: the checksum was verified.
pub const DATA_VALID: u8 = 2;
/// `gso_type`: not a packet to be segmented.
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4, to be cut into segments.
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: TCP over IPv6, to be cut into segments.
pub const GSO_TCPV6: u8 = 4;
/// A bit of `gso_type`: of the segments, the first alone has CWR.
pub const GSO_ECN: u8 = 0x80;

/// The header, 12 bytes.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct NetHdr {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// [`GSO_NONE`] or a segmentation type.
    pub gso_type: u8,
    /// Bytes of headers before the payload.
    pub hdr_len: U16,
    /// Bytes of payload per segment.
    pub gso_size: U16,
    /// Where the checksum starts, from the start of the frame.
    pub csum_start: U16,
    /// Where the checksum is stored, from `csum_start`.
    pub csum_offset: U16,
    /// Buffers that one frame spans (mergeable receive buffers).
    pub num_buffers: U16,
}

/// Length of the header, in bytes.
pub const NET_HDR_LEN: usize = size_of::<NetHdr>();

const _: () = assert!(NET_HDR_LEN == 12);
