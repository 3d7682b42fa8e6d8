//! Linux.

pub mod children;
pub mod netdev;
mod netlink;
pub mod netns;
pub mod poller;
pub mod usage;
