//! What the tests that cross crates share: namespaces with TAP devices, the
//! program and its guests as processes, whole virtual machines, a client, a front end that says
//! anything, and stacks under virtual time.
//!
//! Tests run at the same time as others, on machines that may be slow: every
//! name is unique, nothing is waited for by sleeping a fixed time, and
//! everything is taken down again even when a test fails. What a failed run
//! could not take down, the next one removes.
//!
//! Namespaces, virtual machines and the programs that run in them are Linux's; the
//! simulator, the fuzzers and the front end are for every system. A test of the former
//! begins with `#![cfg(target_os = "linux")]`, as `tests/freebsd` builds all others.

#![deny(unsafe_code)]

#[cfg(target_os = "linux")]
pub mod backend;
#[cfg(target_os = "linux")]
pub mod bhyve;
#[cfg(target_os = "linux")]
pub mod c;
#[cfg(target_os = "linux")]
pub mod client;
#[cfg(target_os = "linux")]
pub mod disk;
pub mod frontend;
pub mod fuzz;
#[cfg(target_os = "linux")]
pub mod interop;
#[cfg(target_os = "linux")]
pub mod loop_disk;
#[cfg(target_os = "linux")]
pub mod mirrored;
#[cfg(target_os = "linux")]
pub mod netns;
#[cfg(target_os = "linux")]
pub mod packet;
pub mod pcapng;
#[cfg(target_os = "linux")]
pub mod process;
#[cfg(target_os = "linux")]
pub mod require;
#[cfg(target_os = "linux")]
pub mod resp;
pub mod sim;
#[cfg(target_os = "linux")]
pub mod store;
#[cfg(target_os = "linux")]
pub mod vm;
pub mod wait;
