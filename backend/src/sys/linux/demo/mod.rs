//! What `pasted demo` and the benchmarks need of the operating system beyond
//! what the backend itself needs: readiness in both directions, a network of
//! their own, children that die with them, and the CPU time of others.

pub mod children;
mod netdev;
mod netlink;
pub mod netns;
mod poller;
pub mod usage;

pub use children::pin;
pub use netdev::{Network, Tap};
pub use netns::{Isolation, NamespaceError};
pub use poller::Poller;

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
