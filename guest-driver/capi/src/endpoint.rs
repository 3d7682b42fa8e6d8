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

/// There are no packet sockets here.
#[cfg(not(target_os = "linux"))]
pub(crate) fn device(interface: &str, _region: Option<&str>) -> Result<Endpoint, Failure> {
    let message = format!("{interface}: a network device serves applications on Linux alone");
    Err(Failure::new(crate::error::PASTE_ENOTSUP, message))
}
