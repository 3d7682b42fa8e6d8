//! kv
mod chain;
mod client;
mod commands;
mod entry;
mod extent;
#[cfg(test)]
mod fake;
mod index;
mod region;
mod reply;
mod request;
mod store;

pub use extent::Extent;
pub use region::{Recovering, Region, Run};
pub use store::{RecoverError, Recovered, Stats, Store};
