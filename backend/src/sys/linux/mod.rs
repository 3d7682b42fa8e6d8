//! Linux.

pub mod adjoined;
pub(super) mod affinity;
pub(super) mod event_loop;
pub(super) mod pages;
