//! The seam to the operating system and the CPU: mapping memory, surviving a
//! file that shrinks under a mapping, making memory that has no name, and writing
//! the CPU's caches back.
//!
//! `unsafe` of this crate lives here, and where the bytes of buffers are summed
//! (`checksum.rs`).

#![allow(unsafe_code)]

mod cache;
mod guard;
mod mapping;
mod shape;

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "freebsd")]
use freebsd as os;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as os;

pub use cache::Instruction;
pub(crate) use cache::fence;
pub use guard::MAPPINGS_MAX;
pub use mapping::{MapError, Mapping};
pub(crate) use os::{begin_sync, boot_id, is_volatile, memory_file, reserve, segment_shape};
pub use shape::{HugePages, SegmentError, ShapeError};
pub(crate) use shape::{Os, Shape, System};
