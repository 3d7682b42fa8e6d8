//! The bodies of HELLO, WELCOME and BYE: how a channel opens and closes.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::frame::RECORD_LEN;

/// Feature: FLUSH, SEAL and FLUSHED, and DATA that waits for them. With it,
/// [`Welcome::flush_domain`] counts.
pub const FEATURE_FLUSH: u32 = 1 << 0;
/// Feature: STORE, RESUME, RESUMED, and DATA that leaves its buffer with the
/// guest.
pub const FEATURE_STORE: u32 = 1 << 1;
/// Feature: the guest maps no region; INLINE frames take the place of SLOTS frames, and
/// bring payload along. It excludes FLUSH and STORE, which are about the region.
pub const FEATURE_INLINE: u32 = 1 << 2;
/// Feature: the guest answers PROBE frames. Who ends without a word is found out by it.
pub const FEATURE_PROBE: u32 = 1 << 3;
/// All features that this crate describes.
pub const FEATURES: u32 = FEATURE_FLUSH | FEATURE_STORE | FEATURE_INLINE | FEATURE_PROBE;

/// How stores to the region become durable, in [`Welcome::flush_domain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FlushDomain {
    /// They do not.
    None = 0,
    /// Once written back from the CPU's caches, which the guest does itself.
    CpuCache = 1,
    /// Once the host has made them durable, which FLUSH asks for.
    Host = 2,
}

impl FlushDomain {
    /// The domain with this number.
    pub const fn from_u32(value: u32) -> Option<FlushDomain> {
        Some(match value {
            0 => FlushDomain::None,
            1 => FlushDomain::CpuCache,
            2 => FlushDomain::Host,
            _ => return None,
        })
    }
}

/// Guest to host: opens the channel, or opens it anew after either side's
/// restart. Two records.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Hello {
    /// The oldest version that the guest speaks.
    pub version_min: u8,
    /// The newest version that the guest speaks.
    pub version_max: u8,
    /// The largest PASTE frame that the guest takes, in bytes.
    pub frame_size_max: U16,
    /// Features that the guest asks for: [`FEATURES`].
    pub features: U32,
    /// A number that differs at every start of the application; WELCOME repeats it.
    pub nonce: U64,
    /// Buffers that the guest would like to hold for sending, from the start.
    pub buffers_wanted: U32,
    /// Zero.
    pub reserved: [u8; 12],
    /// The application's name for logs, UTF-8, filled up with zeros.
    pub name: [u8; 32],
}

/// Host to guest: the answer to HELLO. Four records.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Welcome {
    /// A [`crate::Reason`]; everything below counts only if it is `Ok`.
    pub status: U16,
    /// The version that the host chose.
    pub version: U16,
    /// Features granted.
    pub features: U32,
    /// Identity of the region, as in its superblock.
    pub region_uuid: [u8; 16],
    /// Bytes of the region that the guest maps.
    pub region_size: U64,
    /// Where buffer 0 starts, from the start of the guest's mapping.
    pub buffers_offset: U64,
    /// Bytes of one buffer.
    pub buffer_size: U32,
    /// Buffers in the region.
    pub buffer_count: U32,
    /// The smallest `offset` of a slot that the guest sends.
    pub headroom: U16,
    /// The largest PASTE frame on this channel, in bytes.
    pub frame_size_max: U16,
    /// Buffers granted for sending; GRANT frames name them.
    pub granted: U32,
    /// Flows that the host holds at once.
    pub flows_max: U32,
    /// A [`FlushDomain`]; 0 unless [`FEATURE_FLUSH`] is granted.
    pub flush_domain: U32,
    /// The stack port's address; IPv4 as an IPv4-mapped IPv6 address. Zeros while it is
    /// not known.
    pub address: [u8; 16],
    /// Largest IP packet of the port, in bytes.
    pub mtu: U16,
    /// The device's MAC address.
    pub mac: [u8; 6],
    /// The nonce of the HELLO that this answers.
    pub nonce: U64,
    /// Zero.
    pub reserved: [u8; 32],
}

/// Either way: the channel is closed, and why. One record.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Bye {
    /// A [`crate::Reason`].
    pub reason: U16,
    /// Zero.
    pub reserved: [u8; 2],
    /// The sequence number that was expected, for a sequence gap.
    pub expected: U32,
    /// The sequence number that came.
    pub got: U32,
    /// Zero.
    pub padding: [u8; 20],
}

const _: () = assert!(size_of::<Hello>() == 2 * RECORD_LEN);
const _: () = assert!(size_of::<Welcome>() == 4 * RECORD_LEN);
const _: () = assert!(size_of::<Bye>() == RECORD_LEN);

impl Hello {
    /// Reads the body of a HELLO frame; `None` unless it is exactly two records.
    pub fn read(body: &[u8]) -> Option<Hello> {
        Hello::read_from_bytes(body).ok()
    }
}

impl Welcome {
    /// Reads the body of a WELCOME frame; `None` unless it is exactly four records.
    pub fn read(body: &[u8]) -> Option<Welcome> {
        Welcome::read_from_bytes(body).ok()
    }
}

impl Bye {
    /// Reads the body of a BYE frame; `None` unless it is exactly one record.
    pub fn read(body: &[u8]) -> Option<Bye> {
        Bye::read_from_bytes(body).ok()
    }
}
