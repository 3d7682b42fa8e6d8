//! What the operating system must provide: shared memory, notifiers, waiting, and a
//! monotonic clock, which Linux and FreeBSD have by the same calls. What one system alone
//! has for a transport stands with that, in `transport::machine`; no other place names a
//! system's own calls.

pub(crate) use paste_pmem::Mapping;

mod unix;
pub(crate) use unix::*;
