//! Linux.

pub(super) mod event_loop;
pub(super) mod pages;
