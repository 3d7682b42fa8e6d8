//! What the fuzzers of `tests/fuzz` run, and every `cargo test` runs a little of:
//! functions of any bytes, which panic if the stack breaks a promise.
//!
//! | module | the bytes are |
//! | --- | --- |
//! | [`packet`] | one frame, for a stack that has flows in every state |
//! | [`sequence`] | segments that are nearly right, time, polls, requests |
//! | [`options`] | options of TCP and IP, which a plain reading judges too |
//! | [`api`] | the stack's methods in any order |
//!
//! Steps of `sequence` and `api` are also those of `sharing`: buffers that are
//! sent and stay their guest's.
//!
//! After each step the stack's records are audited, the memory's books say whose
//! each buffer is, and every frame that goes out is read and judged. In the end
//! all flows are abandoned, and nothing may be left of them.

pub mod api;
pub mod bed;
pub mod bytes;
pub mod frames;
pub mod options;
pub mod packet;
pub mod sequence;
mod sharing;

/// What a fuzzer calls.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: [(&str, Target); 4] = [
    ("packet", packet::packet),
    ("sequence", sequence::sequence),
    ("options", options::options),
    ("api", api::api),
];
