//! What can be wrong with `paste:`, for the operator.

use std::io;
use std::net::IpAddr;

use crate::port::netmap::pst::PstError;

/// Why the host's TCP cannot be had through PASTE.
#[derive(Debug, thiserror::Error)]
pub enum PasteError {
    /// The system is none that PASTE's last version is for.
    #[error("port {port}: PASTE serves guests on Linux alone: use port netmap:{nic}")]
    Unsupported {
        /// The port, as configured.
        port: String,
        /// The interface.
        nic: String,
    },
    /// The port.
    #[error(transparent)]
    Port(#[from] PstError),
    /// An address of a family that PASTE does not know.
    #[error(
        "port {port}: {address} is an IPv6 address, and PASTE knows IPv4 alone: give the guest an \
         IPv4 address of {nic}, or use port netmap:{nic}"
    )]
    Ipv6 {
        /// The port, as configured.
        port: String,
        /// The interface.
        nic: String,
        /// The guest's address.
        address: IpAddr,
    },
    /// The address is not the host's.
    #[error(
        "port {port}: {address} cannot be bound on {nic} ({source}): give the guest an address \
         that {nic} has, as in `ip addr add {address}/24 dev {nic}`"
    )]
    Address {
        /// The port, as configured.
        port: String,
        /// The interface.
        nic: String,
        /// The guest's address.
        address: IpAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A VLAN is the business of the host's network, and PASTE passes it by.
    #[error("port {port}: PASTE knows no VLANs: remove `vlan`, or use port netmap:{nic}")]
    Vlan {
        /// The port, as configured.
        port: String,
        /// The interface.
        nic: String,
    },
    /// A system call failed.
    #[error("port {port}: {call} failed: {source}")]
    Failed {
        /// The port, as configured.
        port: String,
        /// The system call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
