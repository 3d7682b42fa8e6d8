//! What each message does. Which handler belongs to which message, and what was
//! checked before it runs, is in [`super::message::TABLE`].

pub mod config;
pub mod features;
pub mod memory;
pub mod rings;
