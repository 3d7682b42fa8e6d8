//! The seam to the operating system: mapping memory, surviving a file that
//! shrinks under a mapping, and making memory that has no name.
//!
//! `unsafe` of this crate lives here, and in the one accessor of `buffers.rs`.

#![allow(unsafe_code)]

mod guard;
mod mapping;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux as os;

pub use guard::MAPPINGS_MAX;
pub use mapping::{MapError, Mapping};
pub use os::HugePages;
pub(crate) use os::{memory_file, reserve};
