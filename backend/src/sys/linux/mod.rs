//! Linux: what every system has, and what rooms that are of Linux alone ask for here.

pub mod adjoined;
pub(super) mod affinity;
#[cfg(feature = "demo")]
pub mod demo;
mod event_loop;
#[cfg(test)]
mod kqueue;
pub(super) mod pages;

pub use event_loop::EventLoop;
#[cfg(test)]
pub(super) use kqueue::Kqueue;
