//! The region: the shared memory of one guest, its superblock, its buffers and
//! their owners.
//!
//! A region is a file, or memory without a name, that host and guest both map.
//! [`Geometry`] says where its parts lie, [`Region`] creates or opens it and
//! keeps its superblock, [`Buffers`] reads and writes the buffers, and
//! [`Pool`] knows who owns each of them. [`Mapping`] is the one way in which
//! any part of the project maps memory that somebody else can write or cut.
//! [`wal`] is the log of what its buffers hold, and [`index`] a sorted map of it.
//! They store through [`Medium`] and nothing else. [`device`] is what a virtio-pmem
//! device answers.
//!
//! The crate knows nothing of frames, sockets, rings or TCP. Two of its
//! neighbours' habits shape it: memory shared with a guest changes under every
//! reader, so no reference into it ever exists; and the data path ([`Pool`],
//! [`Buffers`]) neither allocates nor locks after set-up.

#![deny(unsafe_code)]

mod buffers;
pub mod checksum;
mod claims;
#[cfg(any(test, feature = "crash"))]
pub mod crash;
mod devdax;
pub mod device;
mod dirty;
mod domain;
mod flusher;
pub mod index;
mod journal;
mod layout;
mod medium;
mod occupied;
mod pool;
mod ranges;
mod region;
mod region_medium;
mod storage;
mod superblock;
mod sys;
mod uuid;
pub mod wal;

pub use buffers::{Buffers, RangeError};
pub use claims::{ClaimError, Claims};
pub use domain::{Domain, DomainError};
pub use flusher::{FlushCounters, FlushError, Flusher, RangeOutside};
pub use layout::{
    BUFFER_SIZE_MAX, BUFFER_SIZE_MIN, Geometry, GeometryError, LayoutError, Part, SIZE_MAX,
    SIZE_MIN, SIZE_STEP,
};
pub use medium::{Medium, Ticket};
pub use pool::{Held, Owner, OwnerError, Pool, Reclaimed};
pub use ranges::FlushRange;
pub use region::{
    Backing, Expect, Finding, Identity, Image, Opened, Origin, Progress, Provided, Region,
    RegionError, Segment, Spec, provide,
};
pub use region_medium::RegionMedium;
pub use storage::Storage;
pub use superblock::{NameError, SuperblockError, guest_layout};
pub use sys::{HugePages, Instruction, MAPPINGS_MAX, MapError, Mapping, SegmentError, ShapeError};
pub use uuid::{Uuid, UuidError};
