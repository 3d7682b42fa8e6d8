//! The vhost-user back ends of a virtio-net and a virtio-pmem device.
//!
//! A front end (a VMM, or a process that drives the rings itself) attaches at an
//! [`Endpoint`] and sets a [`Device`] up by messages; frames then pass through
//! the rings in the guest's memory. One worker thread owns a device and drives
//! it between its other work: nothing here waits, and nothing here locks.
//!
//! | room | what it does |
//! | --- | --- |
//! | `message` | the table of messages: all that is decided about each |
//! | `session` | reads, checks, dispatches and answers messages |
//! | `control`, `handlers` | the state that messages change |
//! | `backend` | the back end's own channel, for mapping the region |
//! | `memory` | guest memory, mapped and found by guest address |
//! | `queue`, `chain` | split rings and descriptor chains, in batches |
//! | `device` | what the worker calls; virtio-net |
//! | `pair` | pairs of rings that another thread moves data through |
//! | `pmem` | virtio-pmem |
//! | `net` | judging a virtio-net header |
//! | `endpoint` | where front ends attach |
//!
//! The other side is hostile: every count, size, address and index is judged
//! before use, and each way of being wrong has a name that reaches a counter or
//! a log line. Nothing here knows of PASTE frames, ports or TCP.

#![deny(unsafe_code)]

mod backend;
mod chain;
mod control;
mod counters;
mod device;
mod endpoint;
mod handlers;
mod memory;
mod message;
mod net;
mod pair;
mod pmem;
mod queue;
mod session;
mod signal;
#[cfg(test)]
pub(crate) mod tests;

pub use control::{PAIRS_MAX, RegionFd};
pub use counters::DeviceCounters;
pub use device::{Device, DeviceOptions, Net, Watch};
pub use endpoint::{Endpoint, EndpointError};
pub use memory::MEM_SLOTS_MAX;
pub use net::{HeaderError, Left, Offloads, judge_tx_header};
pub use pair::Pair;
pub use pmem::{Answered, Pmem};
pub use queue::{Fault, RingError, SetupError};
pub use session::{Name, SessionError};
