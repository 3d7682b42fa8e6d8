//! The superblock of a region: what it is, and where its parts lie.
//!
//! A region file begins with [`HOST_HEAD_LEN`] bytes that belong to the host
//! and are never mapped into a guest. Two copies of the superblock lie in
//! them, at [`COPY_OFFSETS`]; the bytes from 4096 to 8192 are left to the block
//! that makes a Linux guest show the rest as a DAX device. What the guest maps
//! begins after the head, and its first page holds a copy of the superblock
//! for the guest to read: the host never reads that one back.
//!
//! This module knows the layout; computing and checking the CRC, choosing
//! between the copies, and judging the values is the business of `paste-pmem`.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes at the start of a region file that belong to the host.
pub const HOST_HEAD_LEN: u64 = 2 << 20;
/// Where the two copies lie in the file: far apart, neither in the DAX block.
pub const COPY_OFFSETS: [u64; 2] = [64 << 10, 1 << 20];
/// The first eight bytes of a superblock.
pub const MAGIC: [u8; 8] = *b"PASTERGN";
/// The layout version that this crate describes.
pub const LAYOUT_VERSION: u32 = 1;

/// The region was closed in good order.
pub const STATE_CLEAN: u32 = 0;
/// The region is open, or its process died.
pub const STATE_OPEN: u32 = 1;

/// A part of the region: a range of the bytes that the guest maps.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Extent {
    /// From the start of the guest's mapping, in bytes.
    pub offset: U64,
    /// Length in bytes; 0 where the part is absent.
    pub len: U64,
}

/// The superblock, 512 bytes.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Superblock {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`LAYOUT_VERSION`].
    pub version: U32,
    /// [`STATE_CLEAN`] or [`STATE_OPEN`].
    pub state: U32,
    /// Identity of the region, fixed at creation.
    pub uuid: [u8; 16],
    /// Counts writes of the superblock; the copy with the higher one is newer.
    pub sequence: U64,
    /// When the region was created, ns since the Unix epoch.
    pub created_ns: U64,
    /// Length of the whole file, in bytes.
    pub file_len: U64,
    /// Length of what the guest maps, in bytes.
    pub guest_len: U64,
    /// Bytes of one buffer: a power of two from 2048 to 65536.
    pub buffer_size: U32,
    /// Number of buffers.
    pub buffer_count: U32,
    /// One bit per buffer: the claim table.
    pub claims: Extent,
    /// The write-ahead log.
    pub log: Extent,
    /// The index.
    pub index: Extent,
    /// Room for rings that a guest driver shares with the host.
    pub rings: Extent,
    /// The buffers, `buffer_size * buffer_count` bytes.
    pub buffers: Extent,
    /// The guest's name, UTF-8, filled up with zeros.
    pub guest: [u8; 64],
    /// Names the start of the host's system that last wrote the superblock: with
    /// another one, the memory of that time is lost. Zeros where it is not known.
    pub boot: [u8; 16],
    /// In a mirror: bytes of each area of its journal, which lies in a file beside it.
    /// While the mirror is open, it is whole only together with that one. 0
    /// elsewhere.
    pub journal_area: U64,
    /// Zero.
    pub reserved: [u8; 268],
    /// CRC-32C of all bytes before it.
    pub crc: U32,
}

const _: () = assert!(size_of::<Superblock>() == 512);
const _: () = assert!(core::mem::offset_of!(Superblock, crc) == 508);
