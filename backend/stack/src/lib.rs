//! A sans-IO TCP/IP engine that works in place in the buffers of a region.
//!
//! Frames go in as names of buffers and come out as slots for the guest; the
//! guest's slots go in and come out as frames. No payload is copied: what the
//! NIC put into a buffer is what the guest reads there, and what the guest
//! wrote is what the NIC sends. (A flow that piles up small segments is the
//! exception: they are gathered, so that a byte is not worth a buffer.) The
//! stack has no thread, no clock and no allocation after [`Stack::new`]; time is
//! an argument, in ns on a monotonic clock.
//!
//! # One turn
//!
//! ```text
//!   port --- RxFrame ---> input ---> flows ---> poll_slots --- Slot ---> guest
//!   port <-- TxFrame --- transmit <- flows <------ send  <---- Tx ------ guest
//!        --- frame_sent ->               ^ advance (time)    release <---
//! ```
//!
//! The caller calls `input` for each frame, `poll_slots`, `send` for each of the
//! guest's slots, `advance`, and `transmit` last, so that acknowledgements ride
//! on responses. `next_deadline` tells how long it may sleep.
//!
//! # Layers
//!
//! Each knows only what is below it in this list.
//!
//! | modules | what they promise |
//! | --- | --- |
//! | `stack`, `slots`, `listen`, [`Stack`]'s methods | the guest's and the caller's side: every buffer has one owner, every event comes once and in order for its flow |
//! | `input`, `reassembly`, `neighbour`, `addresses`, `control` | frames judged from one host-private copy of their headers; fragments put together; neighbours; our own addresses; frames that belong to no flow |
//! | `tcp::*` | RFC 9293 and its companions, by subject |
//! | `flow`, `bufs`, `table`, `wheel` | state allocated once, and O(1) ways to find it: flows, buffer records, keyed hash table, timers |
//! | `wire`, `checksum` | headers, checked and written; knows of no state |
//! | [`Memory`], [`frame`], [`config`], [`counters`], [`FlowInfo`] | the contract with the caller |
//!
//! # Limits
//!
//! Everything has one: flows, listeners, neighbours, fragments, held segments, send
//! queues, TIME-WAITs, backlogs, replies to strangers ([`Config`]). Buffers are
//! the flow control: see `tcp::window` and `tcp::charge`.
//!
//! Fragments are put together, 16 datagrams of both families at a time, each
//! within one buffer; what did not come whole in time is reported to its sender
//! by ICMP. This is the one way besides small segments on which payload is
//! copied. Fragments are never sent.
//!
//! # What is implemented, and where
//!
//! | RFC | subject | module |
//! | --- | --- | --- |
//! | 9293, 1122 | segments, states, windows, silly windows, delayed acknowledgements, keepalive, zero-window probes, user timeout | `tcp::input`, `tcp::open`, `tcp::output`, `tcp::receive`, `tcp::window`, `tcp::timers` |
//! | 5961, 6528, 6056 | challenge ACKs, initial numbers, ports | `tcp::input`, `listen` |
//! | 6191, 1337 | TIME-WAIT and its reuse | `tcp::input`, `tcp::ack` |
//! | 4987 | SYN cookies | `tcp::cookie` |
//! | 7323 | timestamps, PAWS, window scale | `tcp::input`, `tcp::segment` |
//! | 2018, 2883 | SACK and D-SACK, as a receiver | `tcp::held` |
//! | 6675, 8985 | SACK as a sender, RACK, tail loss probes | `tcp::scoreboard`, `tcp::rack`, `tcp::recovery`, `tcp::timers` |
//! | 6298, 3522, 3708, 4015 | timeouts, and undoing what was spurious | `tcp::rtt`, `tcp::recovery` |
//! | 9438, 5681, 6582, 6937, 9406, 6928 | CUBIC, NewReno, proportional rate reduction, HyStart++ | `tcp::congestion` |
//! | 3168 | ECN | `tcp::ecn`, `tcp::recovery` |
//! | 6691, 1191, 8201, 4821, 8899 | segment size, path MTU with and without ICMP | `tcp::open`, `tcp::pmtu` |
//! | 791, 8200, 5722 | IPv4, IPv6 and its extension headers, fragments | `input`, `reassembly`, `wire` |
//! | 826, 4861, 4862, 3810 | ARP, neighbour discovery, MLD | `neighbour` |
//! | 792, 4443, 5927 | ICMP, believed with care, errors at a limited rate | `input`, `control` |
//!
//! Urgent data is payload like any other. Not implemented: TCP Fast Open,
//! multipath TCP, pacing, and segmentation offload, for which a port would have
//! to carry frames larger than its MTU.

#![forbid(unsafe_code)]

mod addresses;
#[cfg(any(test, feature = "audit"))]
pub mod audit;
mod bufs;
pub mod checksum;
mod clock;
pub mod config;
mod control;
pub mod counters;
mod flow;
pub mod frame;
mod info;
mod input;
mod listen;
pub mod memory;
mod neighbour;
mod reassembly;
mod slots;
mod stack;
mod table;
mod tcp;
#[cfg(test)]
mod tests;
mod wheel;
mod wire;

pub use config::{Config, CongestionControl, Timers};
pub use counters::Counters;
pub use frame::{HEAD_MAX, Origin, Payload, RxCsum, RxFrame, TxBatch, TxCsum, TxFrame};
pub use info::{FlowInfo, Repairing};
pub use memory::Memory;
pub use stack::{Outcome, Stack, Tx};
