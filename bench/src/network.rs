//! The network of the comparison: a namespace of its own, with one bridge.
//!
//! ```text
//!   client          kernel's bridge br0 (10.71.0.2)         pasted
//!   own stack ── tapc ──┬── kernel TCP ── epoll server
//!   10.71.0.1           └── tapp ─────────────────────── 10.71.0.3 ── guest
//! ```
//!
//! Both servers are reached from one client through one TAP device and one
//! bridge. Behind the bridge the epoll server has its kernel's TCP at once; a
//! frame for the guest crosses a second TAP device.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use pasted::sys::linux::demo::{NamespaceError, Network, Tap, netns};

use crate::sys;

/// The client's device.
pub const CLIENT_DEVICE: &str = "tapc";
/// The bridge.
pub const BRIDGE: &str = "br0";
/// The client's Ethernet address, locally administered like the others.
pub const CLIENT_MAC: [u8; 6] = [0x02, 0x70, 0x62, 0, 0, 1];
/// The bridge's. Without one of its own a bridge takes that of a port, and
/// another when its ports change.
const BRIDGE_MAC: [u8; 6] = [0x02, 0x70, 0x62, 0, 0, 2];
/// The client's address.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 71, 0, 1);
/// The epoll server.
pub const EPOLL: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 71, 0, 2), 80);
/// Bits of the network part of these.
pub const PREFIX: u8 = 24;
/// Bytes of the largest packet.
pub const MTU: u16 = 1500;
/// Frames that may wait in a TAP device. Its default of 1000 would lose frames
/// of many connections that all send at once, on either way.
pub const QUEUE_LEN: i32 = 16_384;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// No TAP device.
    #[error("a TAP device cannot be made ({0}): load the kernel's tun module, allow /dev/net/tun")]
    Tap(io::Error),
    /// No bridge.
    #[error("a bridge cannot be made ({0}): run as root, with the kernel's bridge module loaded")]
    Bridge(io::Error),
    /// No veth.
    #[error(
        "a pair of veth devices cannot be made ({0}): run as root, with the kernel's veth module loaded"
    )]
    Veth(io::Error),
    /// The bridge has no address.
    #[error("the bridge cannot be given an address: {0}")]
    Address(io::Error),
}

/// Moves the process into a network of its own and makes the devices in it: the
/// client's, and these of guests. Must be called before the process has a second
/// thread.
pub fn enter(guests: &[&str]) -> Result<(), NetworkError> {
    netns::enter()?;
    sys::settle_network();
    let ports = [&[CLIENT_DEVICE], guests].concat();
    for &name in &ports {
        Tap::open(name).and_then(Tap::keep).map_err(NetworkError::Tap)?;
    }
    sys::bridge(BRIDGE, &ports, QUEUE_LEN).map_err(NetworkError::Bridge)?;
    Network::open()
        .and_then(|mut network| network.set_up(BRIDGE, Some(BRIDGE_MAC), *EPOLL.ip(), PREFIX))
        .map_err(NetworkError::Address)
}
