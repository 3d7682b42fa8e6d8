//! What `pasted demo` and the benchmarks need of the operating system beyond
//! what the backend itself needs: readiness in both directions, a network of
//! their own, children that die with them, and the CPU time of others. On Linux alone.

mod linux;
pub use linux::{
    children::{self, pin},
    netdev::{Network, Tap},
    netns::{self, Isolation, NamespaceError},
    poller::Poller,
    usage,
};

/// What a [`Poller`] says of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// The number that it was registered with.
    pub token: u64,
    /// It can be read, or its end or an error waits to be read.
    pub readable: bool,
    /// It can be written, or an attempt to connect has come to an end.
    pub writable: bool,
}
