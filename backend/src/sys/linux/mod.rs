//! Linux.

pub(super) mod event_loop;
