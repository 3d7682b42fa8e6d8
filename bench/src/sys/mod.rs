//! What the benchmarks need of the operating system beyond what `pasted`
//! offers: a bridge, what describes the machine, a wait for one descriptor, and a
//! count of what is allocated.

mod allocator;
mod linux;

pub use allocator::allocated;
pub use linux::{
    CoreTime, Machine, Stolen, allow_descriptors, bridge, congestion_control, is_in_memory, join,
    keep_awake, load, settle_network, stolen, sync, user_and_system_ns, wait_readable,
    written_bytes,
};
