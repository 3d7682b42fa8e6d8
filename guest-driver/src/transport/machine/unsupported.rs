//! Neither packet sockets nor a driver that gives devices away: nothing can be opened.

use std::path::Path;

use crate::transport::{Transport, TransportError};

pub(crate) fn packet(
    interface: &str,
    _region: Option<&Path>,
    _channel: u16,
    _frame_size: u16,
) -> Result<Box<dyn Transport>, TransportError> {
    Err(TransportError::LinuxAlone(interface.to_owned()))
}

pub(crate) fn virtio_pci(
    address: &str,
    _region: Option<&Path>,
    _frame_size: u16,
) -> Result<Box<dyn Transport>, TransportError> {
    Err(TransportError::LinuxAlone(address.to_owned()))
}
