//! Engines on the host's own TCP: `sockets`, through io_uring, and `paste`, through PASTE's
//! module. Both are of Linux alone: the seam.

mod options;
mod paste_error;
mod sockets_error;

#[cfg(target_os = "linux")]
pub mod linux;
#[cfg(target_os = "linux")]
use linux as system;
#[cfg(not(target_os = "linux"))]
mod unsupported;
#[cfg(not(target_os = "linux"))]
use unsupported as system;

use super::StackPort;

pub use options::{PasteOptions, SocketsOptions};
pub use paste_error::PasteError;
pub use sockets_error::SocketsError;

/// An engine on PASTE for one guest. The NIC joins PASTE's port; nothing is bound before the
/// guest listens.
///
/// # Errors
/// [`PasteError`].
pub fn open_paste(options: &PasteOptions<'_>) -> Result<Box<dyn StackPort>, PasteError> {
    system::open_paste(options)
}

/// Whether this host has PASTE for this user.
///
/// # Errors
/// [`PasteError`] says why not, and what to do.
pub fn probe_paste() -> Result<(), PasteError> {
    system::probe_paste()
}

/// An engine on sockets for one guest. Nothing is bound before the guest listens.
///
/// # Errors
/// [`SocketsError`].
pub fn open_sockets(options: &SocketsOptions<'_>) -> Result<Box<dyn StackPort>, SocketsError> {
    system::open_sockets(options)
}

/// Whether this host has io_uring for this user; what was found, in a few words.
///
/// # Errors
/// [`SocketsError`] says why not, and what to do.
pub fn probe_sockets() -> Result<String, SocketsError> {
    system::probe_sockets()
}
