//! FreeBSD.

pub(super) mod affinity;
mod kqueue;
pub(super) mod pages;

pub(super) use kqueue::Kqueue;

/// The event loop on a real kqueue.
pub type EventLoop = super::kqueue::EventLoop<Kqueue>;
