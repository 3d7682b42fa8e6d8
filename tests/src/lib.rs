//! What the tests that cross crates share: namespaces with TAP devices, the
//! program and its guests as processes, whole virtual machines, a client, a front end that says
//! anything, and stacks under virtual time.
//!
//! Tests run at the same time as others, on machines that may be slow: every
//! name is unique, nothing is waited for by sleeping a fixed time, and
//! everything is taken down again even when a test fails. What a failed run
//! could not take down, the next one removes.

#![deny(unsafe_code)]

pub mod backend;
pub mod client;
pub mod disk;
pub mod frontend;
pub mod fuzz;
pub mod interop;
pub mod loop_disk;
pub mod mirrored;
pub mod netns;
pub mod packet;
pub mod pcapng;
pub mod process;
pub mod require;
pub mod resp;
pub mod sim;
pub mod store;
pub mod vm;
pub mod wait;
