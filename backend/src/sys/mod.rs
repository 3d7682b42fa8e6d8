//! What differs between operating systems, behind one seam.
//!
//! Everything outside this module is written against what is exported here, but for what
//! stands behind a seam of its own: the devices of [`crate::port`], the kernel's TCP in
//! [`crate::engine`], and the demo. A further operating system is a further folder beside
//! `linux`. Nothing here knows of guests, rings or frames.

pub mod clock;
pub mod fds;
#[cfg(any(target_os = "freebsd", test))]
mod kqueue;
pub mod wake;

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(target_os = "freebsd")]
use freebsd as system;
#[cfg(target_os = "linux")]
pub mod linux;
#[cfg(target_os = "linux")]
use linux as system;

pub use system::EventLoop;
pub use system::affinity::{CPUS_MAX, pin};
pub use system::pages::prefer_huge_pages;

/// What an [`EventLoop`] says of a descriptor that it watches: the number that
/// it was registered with.
pub type Token = u32;
