//! The network of the comparison, and where everybody is in it.
//!
//! ```text
//!   redis-benchmark              kernel's bridge br0
//!   kernel TCP 10.72.0.1 ──────┬── tapm ── backend 10.72.0.2 ── kv, with a mirror
//!   own client                 ├── tapv ── backend 10.72.0.3 ── kv, in memory
//!   own stack 10.72.0.9 ─ tapc ┴── veth ── kernel TCP 10.72.0.4.. ── Redis, each in
//!                                          a network of its own
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};

use pasted::sys::demo::{Network, Tap, netns};

use crate::network::{CLIENT_DEVICE, NetworkError, QUEUE_LEN};
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

    /// Its port of the bridge.
    pub fn device(self) -> &'static str {
        ["tapm", "tapv", "vetha", "vethe", "vethn"][self as usize]
    }
}

/// Moves the process into a network of its own and makes the devices in it.
/// Must be called before the process has a second thread.
pub fn enter() -> Result<(), NetworkError> {
    netns::enter()?;
    sys::settle_network();
    let ports = [CLIENT_DEVICE, Kind::KvMirror.device(), Kind::KvMemory.device()];
    for name in ports {
        Tap::open(name).and_then(Tap::keep).map_err(NetworkError::Tap)?;
    }
    sys::bridge(BRIDGE, &ports, QUEUE_LEN).map_err(NetworkError::Bridge)?;
    Network::open()
        .and_then(|mut network| network.set_up(BRIDGE, Some(BRIDGE_MAC), CLIENT, PREFIX))
        .map_err(NetworkError::Address)
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
