//! What differs between operating systems, behind one seam.
//!
//! Everything outside this module (and a port's own device file) is written
//! against what is exported here; a further operating system is a further folder
//! beside `linux`. Nothing here knows of guests, rings or frames.

pub mod clock;
#[cfg(all(feature = "demo", target_os = "linux"))]
pub mod demo;
pub mod fds;
pub mod wake;

#[cfg(target_os = "freebsd")]
mod freebsd;
#[cfg(any(target_os = "freebsd", test))]
mod kqueue;
#[cfg(target_os = "freebsd")]
pub use freebsd::{
    EventLoop,
    affinity::{CPUS_MAX, pin},
    pages::prefer_huge_pages,
};

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::adjoined;
#[cfg(target_os = "linux")]
pub use linux::affinity::{CPUS_MAX, pin};
#[cfg(target_os = "linux")]
pub use linux::event_loop::EventLoop;
#[cfg(target_os = "linux")]
pub use linux::pages::prefer_huge_pages;

/// What an [`EventLoop`] says of a descriptor that it watches: the number that
/// it was registered with.
pub type Token = u32;
