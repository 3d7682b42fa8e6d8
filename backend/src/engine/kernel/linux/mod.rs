//! Linux: both engines, and what they have in common.
//!
//! | module | knows |
//! | --- | --- |
//! | [`sockets`] | io_uring |
//! | [`paste`] | PASTE's ports |
//! | `socket` | options and states of sockets |
//! | `bufs` | whose a buffer is, and what of it is sent |
//! | `event` | what a guest is still to be told of a flow |
//! | `lists` | lists of flows, without allocation |

mod bufs;
#[cfg(test)]
mod contract;
mod event;
mod lists;
pub mod paste;
mod socket;
pub mod sockets;

use super::{PasteError, PasteOptions, SocketsError, SocketsOptions};
use crate::engine::StackPort;
use crate::port::netmap::pst;

pub(super) fn open_paste(options: &PasteOptions<'_>) -> Result<Box<dyn StackPort>, PasteError> {
    Ok(Box::new(paste::PasteEngine::new(options)?))
}

pub(super) fn probe_paste() -> Result<(), PasteError> {
    Ok(pst::probe()?)
}

pub(super) fn open_sockets(
    options: &SocketsOptions<'_>,
) -> Result<Box<dyn StackPort>, SocketsError> {
    Ok(Box::new(sockets::SocketsEngine::new(options)?))
}

pub(super) fn probe_sockets() -> Result<String, SocketsError> {
    sockets::probe()
}
