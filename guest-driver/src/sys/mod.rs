//! What the operating system must provide: shared memory,
//! notifiers, waiting, and a monotonic clock. The only place that names a
//! system's own calls.

pub(crate) use paste_pmem::Mapping;

#[cfg(target_os = "linux")]
pub(crate) mod packet;
#[cfg(target_os = "linux")]
pub(crate) mod pci;

#[cfg(any(target_os = "linux", target_os = "freebsd"))]
mod unix;
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
pub(crate) use unix::*;
