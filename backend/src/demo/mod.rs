//! `pasted demo`: the main job, end to end, on a machine that has nothing but
//! the Rust toolchain. On Linux alone, whose namespaces and event loops it uses: the seam.
//!
//! In a network of its own it starts the backend and the `http` guest, drives
//! requests through them over real TCP, judges every byte of the responses,
//! kills the guest in the middle and starts it again; and beside that it gives
//! the same load to an epoll server. Everything is this one binary. Where it is given no
//! network of its own, all of it takes place on the loopback device, with the guest on the
//! host's own TCP.
//!
//! | module | knows |
//! | --- | --- |
//! | [`http`] | requests and responses, as bytes |
//! | [`client`] | a server's address and what to expect of it |
//! | [`sample`] | counts and latencies |
//! | [`epoll_server`] | kernel sockets |
//! | [`relay`] | two TAP devices |
//! | `peer`, `guest` | what the started processes are |
//! | `scene` | namespace, directory, addresses, processes |
//! | `measure` | one side of the comparison |
//! | `report` | table and JSON |
//! | `play` | the order of events |
//!
//! The benchmarks use [`client`], [`epoll_server`] and what they need.

mod args;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::*;
#[cfg(not(target_os = "linux"))]
mod unsupported;
#[cfg(not(target_os = "linux"))]
pub use unsupported::*;

pub use args::Args;
