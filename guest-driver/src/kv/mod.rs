//! kv
mod chain;
mod entry;
mod extent;
#[cfg(test)]
mod fake;
mod index;
mod region;
mod request;
mod store;

pub use extent::Extent;
pub use region::{Recovering, Region, Run};
pub use store::{RecoverError, Recovered, Stats, Store};
