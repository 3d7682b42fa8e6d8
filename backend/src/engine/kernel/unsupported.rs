//! A system that has neither io_uring nor PASTE's module: asking for an engine says so.

use super::{PasteError, PasteOptions, SocketsError, SocketsOptions};
use crate::engine::StackPort;

pub(super) fn open_paste(options: &PasteOptions<'_>) -> Result<Box<dyn StackPort>, PasteError> {
    Err(unsupported(options.port, options.nic))
}

pub(super) fn probe_paste() -> Result<(), PasteError> {
    Err(unsupported("paste:", "NIC"))
}

fn unsupported(port: &str, nic: &str) -> PasteError {
    PasteError::Unsupported { port: port.to_owned(), nic: nic.to_owned() }
}

pub(super) fn open_sockets(
    _options: &SocketsOptions<'_>,
) -> Result<Box<dyn StackPort>, SocketsError> {
    Err(SocketsError::Unsupported)
}

pub(super) fn probe_sockets() -> Result<String, SocketsError> {
    Err(SocketsError::Unsupported)
}
