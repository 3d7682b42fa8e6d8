//! What the benchmarks need of the operating system beyond what `pasted`
//! offers: a bridge, what describes the machine, a wait for one descriptor, and a
//! count of what is allocated.

mod allocator;
#[cfg(target_os = "linux")]
mod linux;

pub use allocator::allocated;
#[cfg(target_os = "linux")]
pub use linux::{
    Machine, Stolen, bridge, congestion_control, settle_network, stolen, wait_readable,
};
