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
//! Where else code may depend on the system is in the list that `seams` tests.

#![deny(unsafe_code)]

pub mod frontend;
pub mod fuzz;
pub mod pcapng;
#[cfg(test)]
mod seams;
pub mod sim;
pub mod wait;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::*;
#[cfg(not(target_os = "linux"))]
mod unsupported;
#[cfg(not(target_os = "linux"))]
pub use unsupported::*;
