//! The network of the comparison, and where everybody is in it.
//!
//! ```text
//!   redis-benchmark              kernel's bridge br0
//!   kernel TCP 10.72.0.1 ──────┬── kvm ── backend 10.72.0.2 ── kv, with a mirror
//!   own client                 ├── kvv ── backend 10.72.0.3 ── kv, in memory
//!   own stack 10.72.0.9 ── own ┴── veth ── kernel TCP 10.72.0.4.. ── Redis, each in
//!                                          a network of its own
//! ```
//!
//! What is ours has veth by AF_XDP, as Redis has veth, or TAP devices.

use std::net::{Ipv4Addr, SocketAddrV4};

use pasted::sys::linux::demo::{Network, Tap, netns};

use crate::device::Device;
use crate::http::contender::PortKind;
use crate::network::{CLIENT_MAC, NetworkError, QUEUE_LEN};
use crate::sys;

/// The bridge, whose own address is the client's.
const BRIDGE: &str = "br0";
const BRIDGE_MAC: [u8; 6] = [0x02, 0x70, 0x64, 0, 0, 1];
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 72, 0, 1);
/// Our own client's.
pub const OWN_CLIENT: Ipv4Addr = Ipv4Addr::new(10, 72, 0, 9);
/// Bits of the network part of every address here.
pub const PREFIX: u8 = 24;
/// Where every server listens.
const PORT: u16 = 6379;

/// The device of our own client.
const CLIENT_DEVICE: &str = "own";

/// What is between the bridge and what is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Devices {
    /// Veth, by AF_XDP.
    Xdp,
    /// TAP devices.
    Tap,
}

impl Devices {
    /// The same, as `paste-bench http` calls it.
    pub fn kind(self) -> PortKind {
        match self {
            Devices::Xdp => PortKind::Xdp,
            Devices::Tap => PortKind::Tap,
        }
    }

    /// The device of this name.
    pub fn device(self, name: &str) -> Device {
        match self {
            Devices::Xdp => Device::Xdp(name.to_owned()),
            Devices::Tap => Device::Tap(name.to_owned()),
        }
    }

    /// Our own client's.
    pub fn client(self) -> Device {
        self.device(CLIENT_DEVICE)
    }

    /// The bridge's end of a veth.
    fn far(name: &str) -> String {
        format!("br-{name}")
    }
}

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Our server; a write is answered when the mirror file is synced.
    KvMirror,
    /// Our server in memory that nothing outlives.
    KvMemory,
    /// Redis; a write is answered when its log is synced.
    RedisAlways,
    /// Redis; the log is synced every second.
    RedisEverysec,
    /// Redis; the kernel syncs when it likes.
    RedisNo,
}

impl Kind {
    /// In the order of their turns.
    pub const ALL: [Kind; 5] =
        [Kind::KvMirror, Kind::RedisAlways, Kind::RedisEverysec, Kind::KvMemory, Kind::RedisNo];

    /// As it is called in tables and rows.
    pub fn name(self) -> &'static str {
        match self {
            Kind::KvMirror => "kv:mirror",
            Kind::KvMemory => "kv:memory",
            Kind::RedisAlways => "redis:always",
            Kind::RedisEverysec => "redis:everysec",
            Kind::RedisNo => "redis:no",
        }
    }

    /// What its files are called.
    pub fn file(self) -> &'static str {
        self.device()
    }

    /// Redis's setting; `None` if it is not Redis.
    pub fn appendfsync(self) -> Option<&'static str> {
        self.name().strip_prefix("redis:")
    }

    /// The Redis that promises no more than this server of ours.
    pub fn peer(self) -> Option<Kind> {
        match self {
            Kind::KvMirror => Some(Kind::RedisAlways),
            Kind::KvMemory => Some(Kind::RedisNo),
            _ => None,
        }
    }

    /// Where it serves.
    pub fn address(self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(10, 72, 0, 2 + self as u8), PORT)
    }

    /// Its Ethernet address, if it is ours.
    pub fn mac(self) -> String {
        format!("02:70:64:00:00:{:02x}", 2 + self as u8)
    }

    /// Its device, and of Redis the bridge's end of it.
    pub fn device(self) -> &'static str {
        ["kvm", "kvv", "vetha", "vethe", "vethn"][self as usize]
    }
}

/// Moves the process into a network of its own and makes the devices in it.
/// Must be called before the process has a second thread.
pub fn enter(devices: Devices) -> Result<(), NetworkError> {
    netns::enter()?;
    sys::settle_network();
    let names = [CLIENT_DEVICE, Kind::KvMirror.device(), Kind::KvMemory.device()];
    let mut network = Network::open().map_err(NetworkError::Veth)?;
    let mut ports = Vec::new();
    for (number, name) in names.into_iter().enumerate() {
        match devices {
            Devices::Tap => {
                Tap::open(name).and_then(Tap::keep).map_err(NetworkError::Tap)?;
                ports.push(name.to_owned());
            }
            Devices::Xdp => {
                let far = Devices::far(name);
                let mac = if name == CLIENT_DEVICE { CLIENT_MAC } else { near_mac(number) };
                network
                    .add_pair(name, &far)
                    .and_then(|()| network.bring_up(name, mac))
                    .map_err(NetworkError::Veth)?;
                ports.push(far);
            }
        }
    }
    let ports: Vec<&str> = ports.iter().map(String::as_str).collect();
    sys::bridge(BRIDGE, &ports, QUEUE_LEN).map_err(NetworkError::Bridge)?;
    network.set_up(BRIDGE, Some(BRIDGE_MAC), CLIENT, PREFIX).map_err(NetworkError::Address)
}

/// The kernel's own address on the device of a guest, which nobody asks for.
fn near_mac(number: usize) -> [u8; 6] {
    [0x02, 0x70, 0x64, 0, 1, number as u8]
}

/// Connects a device that a server has made.
pub fn join(kind: Kind) -> Result<(), NetworkError> {
    sys::join(BRIDGE, kind.device(), QUEUE_LEN).map_err(NetworkError::Bridge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_place_of_his_own() {
        for (i, a) in Kind::ALL.iter().enumerate() {
            assert!(![CLIENT, OWN_CLIENT].contains(a.address().ip()));
            assert_ne!(a.device(), CLIENT_DEVICE);
            for b in &Kind::ALL[..i] {
                assert!(a.address() != b.address() && a.device() != b.device());
                assert!(a.mac() != b.mac() && a.name() != b.name());
            }
        }
    }

    #[test]
    fn ours_are_compared_with_redis() {
        let pairs: Vec<_> = Kind::ALL.iter().filter_map(|kind| kind.peer()).collect();
        assert_eq!(pairs, [Kind::RedisAlways, Kind::RedisNo]);
        assert_eq!(Kind::RedisEverysec.appendfsync(), Some("everysec"));
        assert_eq!(Kind::KvMirror.appendfsync(), None);
    }
}
