//! Where the host can be: the seam to what only some systems have.

use paste_guest::Endpoint;

use crate::error::Failure;

/// The network device of a virtual machine, with the device of the region if it has one.
#[cfg(target_os = "linux")]
pub(crate) fn device(interface: &str, region: Option<&str>) -> Result<Endpoint, Failure> {
    Ok(match region {
        Some(region) => Endpoint::packet(interface, region),
        None => Endpoint::packet_inline(interface),
    })
}

/// The PCI device of one, which this process is to drive, likewise.
#[cfg(target_os = "linux")]
pub(crate) fn pci(address: &str, region: Option<&str>) -> Result<Endpoint, Failure> {
    Ok(match region {
        Some(region) => Endpoint::virtio_pci(address, region),
        None => Endpoint::virtio_pci_inline(address),
    })
}

/// There are no packet sockets here.
#[cfg(not(target_os = "linux"))]
pub(crate) fn device(interface: &str, _region: Option<&str>) -> Result<Endpoint, Failure> {
    Err(linux_alone(interface))
}

/// There is no driver here that gives devices away.
#[cfg(not(target_os = "linux"))]
pub(crate) fn pci(address: &str, _region: Option<&str>) -> Result<Endpoint, Failure> {
    Err(linux_alone(address))
}

#[cfg(not(target_os = "linux"))]
fn linux_alone(device: &str) -> Failure {
    let message = format!("{device}: a network device serves applications on Linux alone");
    Failure::new(crate::error::PASTE_ENOTSUP, message)
}
