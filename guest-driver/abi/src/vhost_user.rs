//! Messages of the vhost-user protocol, as both of our ends speak it.
//!
//! Layouts and numbers from QEMU's `docs/interop/vhost-user.rst`. The protocol
//! is in host byte order; both ends are on one machine, and that machine is
//! little endian.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `Header::flags`: the protocol's version, 1, in the low two bits.
pub const FLAG_VERSION: u32 = 1;
/// `Header::flags`: mask of the version bits.
pub const FLAG_VERSION_MASK: u32 = 3;
/// `Header::flags`: this is a reply.
pub const FLAG_REPLY: u32 = 4;
/// `Header::flags`: the sender waits for a reply (with `REPLY_ACK` negotiated).
pub const FLAG_NEED_REPLY: u32 = 8;

/// File descriptors that one message may carry.
pub const FDS_MAX: usize = 8;
/// Memory regions in one SET_MEM_TABLE.
pub const MEM_TABLE_MAX: usize = 8;
/// Bytes of configuration space in one GET_CONFIG or SET_CONFIG.
pub const CONFIG_MAX: usize = 256;

/// Virtio feature bit 30: the protocol features below can be negotiated.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;

/// Protocol feature bits.
pub mod protocol {
    /// Several queue pairs; GET_QUEUE_NUM.
    pub const MQ: u64 = 1 << 0;
    /// Every message may ask for a reply.
    pub const REPLY_ACK: u64 = 1 << 3;
    /// NET_SET_MTU.
    pub const MTU: u64 = 1 << 4;
    /// The back end's own channel: SET_BACKEND_REQ_FD.
    pub const BACKEND_REQ: u64 = 1 << 5;
    /// GET_CONFIG and SET_CONFIG.
    pub const CONFIG: u64 = 1 << 9;
    /// The back end's channel can carry file descriptors.
    pub const BACKEND_SEND_FD: u64 = 1 << 10;
    /// RESET_DEVICE.
    pub const RESET_DEVICE: u64 = 1 << 13;
    /// GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG.
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    /// SET_STATUS and GET_STATUS.
    pub const STATUS: u64 = 1 << 16;
    /// GET_SHMEM_CONFIG, SHMEM_MAP and SHMEM_UNMAP.
    pub const SHMEM: u64 = 1 << 22;
}

/// Requests of the front end.
pub mod request {
    /// Device features, u64.
    pub const GET_FEATURES: u32 = 1;
    /// Acknowledged device features, u64.
    pub const SET_FEATURES: u32 = 2;
    /// Start of a session.
    pub const SET_OWNER: u32 = 3;
    /// Deprecated; disables all rings.
    pub const RESET_OWNER: u32 = 4;
    /// [`super::MemTableHeader`] and regions, with a descriptor per region.
    pub const SET_MEM_TABLE: u32 = 5;
    /// [`super::VringState`]: number of descriptors.
    pub const SET_VRING_NUM: u32 = 8;
    /// [`super::VringAddr`].
    pub const SET_VRING_ADDR: u32 = 9;
    /// [`super::VringState`]: next available index.
    pub const SET_VRING_BASE: u32 = 10;
    /// [`super::VringState`]: stops the ring and asks for its index.
    pub const GET_VRING_BASE: u32 = 11;
    /// u64 of index and [`super::VRING_NO_FD`], with the kick descriptor.
    pub const SET_VRING_KICK: u32 = 12;
    /// Likewise for the call descriptor.
    pub const SET_VRING_CALL: u32 = 13;
    /// Likewise for the error descriptor.
    pub const SET_VRING_ERR: u32 = 14;
    /// Protocol features, u64.
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    /// Acknowledged protocol features, u64.
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    /// Queue pairs, u64.
    pub const GET_QUEUE_NUM: u32 = 17;
    /// [`super::VringState`]: enabled or not.
    pub const SET_VRING_ENABLE: u32 = 18;
    /// MTU, u64.
    pub const NET_SET_MTU: u32 = 20;
    /// Descriptor of the back end's own channel.
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    /// [`super::ConfigHeader`] and bytes.
    pub const GET_CONFIG: u32 = 24;
    /// [`super::ConfigHeader`] and bytes.
    pub const SET_CONFIG: u32 = 25;
    /// Resets the device; the session goes on.
    pub const RESET_DEVICE: u32 = 34;
    /// Memory slots, u64.
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    /// [`super::SingleMemRegion`] with its descriptor.
    pub const ADD_MEM_REG: u32 = 37;
    /// [`super::SingleMemRegion`].
    pub const REM_MEM_REG: u32 = 38;
    /// Virtio device status, u64.
    pub const SET_STATUS: u32 = 39;
    /// Virtio device status, u64.
    pub const GET_STATUS: u32 = 40;
    /// [`super::ShMemConfig`].
    pub const GET_SHMEM_CONFIG: u32 = 44;
}

/// Requests of the back end, on its own channel.
pub mod backend_request {
    /// Configuration space has changed.
    pub const CONFIG_CHANGE: u32 = 2;
    /// [`super::ShMemMap`] with a descriptor.
    pub const SHMEM_MAP: u32 = 9;
    /// [`super::ShMemMap`].
    pub const SHMEM_UNMAP: u32 = 10;
}

/// In the u64 of SET_VRING_KICK, CALL and ERR: mask of the ring's index.
pub const VRING_INDEX_MASK: u64 = 0xff;
/// In the u64 of SET_VRING_KICK, CALL and ERR: no descriptor comes with it.
pub const VRING_NO_FD: u64 = 1 << 8;

macro_rules! layout {
    ($(#[$doc:meta])* $name:ident, $size:expr, { $($(#[$fdoc:meta])* $field:ident: $ty:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name { $($(#[$fdoc])* pub $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

layout!(
    /// What precedes every message.
    Header, 12, {
        /// Number of the request.
        request: U32,
        /// Version, reply and need-reply bits.
        flags: U32,
        /// Bytes of payload that follow.
        size: U32,
    }
);

layout!(
    /// A ring's index and a number.
    VringState, 8, {
        /// Index of the ring.
        index: U32,
        /// Size, available index, or 0/1.
        num: U32,
    }
);

layout!(
    /// Where a ring's parts are, as addresses of the front end.
    VringAddr, 40, {
        /// Index of the ring.
        index: U32,
        /// Bit 0: used-ring writes are logged.
        flags: U32,
        /// Descriptor table, front-end user address.
        descriptor: U64,
        /// Used ring, front-end user address.
        used: U64,
        /// Available ring, front-end user address.
        available: U64,
        /// Guest address for logging.
        log: U64,
    }
);

layout!(
    /// One range of guest memory.
    MemRegion, 32, {
        /// Guest physical address.
        guest_addr: U64,
        /// Bytes.
        size: U64,
        /// Address in the front end.
        user_addr: U64,
        /// Where the range starts in its descriptor's file.
        mmap_offset: U64,
    }
);

layout!(
    /// What precedes the regions of SET_MEM_TABLE.
    MemTableHeader, 8, {
        /// Regions that follow, at most [`MEM_TABLE_MAX`].
        count: U32,
        /// Zero.
        padding: U32,
    }
);

layout!(
    /// ADD_MEM_REG and REM_MEM_REG.
    SingleMemRegion, 40, {
        /// Zero.
        padding: U64,
        /// The region.
        region: MemRegion,
    }
);

layout!(
    /// What precedes the bytes of GET_CONFIG and SET_CONFIG.
    ConfigHeader, 12, {
        /// Where in the configuration space.
        offset: U32,
        /// Bytes that follow, at most [`CONFIG_MAX`].
        size: U32,
        /// 0, or 1 for a write in migration.
        flags: U32,
    }
);

layout!(
    /// The shared-memory regions of the device.
    ShMemConfig, 2056, {
        /// How many of the sizes count.
        nregions: U32,
        /// Zero.
        padding: U32,
        /// Size of each region by its id; 0: none.
        memory_sizes: [U64; 256],
    }
);

layout!(
    /// SHMEM_MAP and SHMEM_UNMAP: a piece of a file in a shared-memory region.
    ShMemMap, 40, {
        /// Id of the shared-memory region.
        shmid: u8,
        /// Zero.
        padding: [u8; 7],
        /// Where in the file.
        fd_offset: U64,
        /// Where in the shared-memory region.
        shm_offset: U64,
        /// Bytes.
        len: U64,
        /// Bit 0: writable.
        flags: U64,
    }
);

/// `ShMemMap::flags`: the mapping is writable.
pub const SHMEM_WRITABLE: u64 = 1;
