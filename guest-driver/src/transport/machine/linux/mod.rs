//! Linux: a packet socket beside the kernel's driver, or the queues of a PCI device that the
//! kernel gives away; and the region as sysfs and device files show it.

mod packet;
mod region;
mod sys;
mod virtio_pci;

use std::path::Path;

use crate::transport::{Transport, TransportError};

/// Beside the kernel's driver, on the network device of this name, for PASTE frames of this
/// channel, of at most `frame_size` bytes; with the region at this path, if there is one to
/// be mapped.
pub(crate) fn packet(
    interface: &str,
    region: Option<&Path>,
    channel: u16,
    frame_size: u16,
) -> Result<Box<dyn Transport>, TransportError> {
    Ok(Box::new(packet::PacketSocket::open(interface, region, channel, frame_size)?))
}

/// As the driver of the device at this PCI address, likewise.
pub(crate) fn virtio_pci(
    address: &str,
    region: Option<&Path>,
    frame_size: u16,
) -> Result<Box<dyn Transport>, TransportError> {
    Ok(Box::new(virtio_pci::VirtioPci::open(address, region, frame_size)?))
}
