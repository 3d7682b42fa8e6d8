//! A sans-IO TCP/IP engine that works in place in the buffers of a region.
//!
//! Frames go in as names of buffers and come out as slots for the guest; the
//! guest's slots go in and come out as frames. No payload is copied: what the
//! NIC put into a buffer is what the guest reads there, and what the guest
//! wrote is what the NIC sends. The stack has no thread, no clock and no
//! allocation after [`Stack::new`]; time is an argument, in ns on a monotonic
//! clock.

#![forbid(unsafe_code)]

mod arp;
mod bufs;
mod checksum;
pub mod config;
mod control;
pub mod counters;
mod flow;
pub mod frame;
mod input;
mod listen;
pub mod memory;
mod slots;
mod stack;
mod table;
mod tcp;
#[cfg(test)]
mod tests;
mod wheel;
mod wire;

pub use config::{Config, Timers};
pub use counters::Counters;
pub use frame::{HEAD_MAX, Origin, Payload, RxCsum, RxFrame, TxBatch, TxCsum, TxFrame};
pub use memory::Memory;
pub use stack::{Outcome, Stack, Tx};
