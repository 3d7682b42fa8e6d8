//! AF_XDP on Linux. What each room knows is said in [`super`].

mod announce;
mod btf;
mod chain;
mod cut;
mod filter;
mod ledger;
mod level;
mod live;
mod port;
mod program;
mod shared;
mod sys;
mod time;
mod unfilled;

use super::{DeviceClock, Mode, Pair, Stamps, Timing, XdpError, XdpOptions};

pub use port::XdpPort;
pub use shared::XdpDevices;
