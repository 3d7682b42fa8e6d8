//! What the benchmarks need of the operating system beyond what `pasted`
//! offers: a bridge, what describes the machine, and a wait for one descriptor.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::{
    Machine, Stolen, bridge, congestion_control, settle_network, stolen, wait_readable,
};
