//! The network of a comparison: a namespace of its own, and in it a place for every
//! server, all of them reached from the client in the same way.
//!
//! ```text
//! TAP    client's stack ── tapc ──┬── kernel TCP ── epoll, io_uring, nginx, sockets:
//!        (or wrk ── veth ─────────┤ bridge)
//!                                 ├── tapp1 ── the first server without the kernel
//!                                 └── tapp2 ── the second
//!
//! veth   client's stack by AF_XDP ── vc0 ── vs0 ── kernel TCP ── epoll, io_uring, nginx
//!        the same                 ── vc1 ── vs1 ── the first server by AF_XDP
//! ```
//!
//! On TAP devices, what is not the kernel's crosses one device more. On veth every place
//! has a pair of its own, all alike, so that no program of one server looks at the frames
//! of another.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;

use pasted::sys::linux::demo::{Network, netns};

use super::contender::PortKind;
use crate::device::Device;
use crate::network::{
    self, BRIDGE, CLIENT, CLIENT_DEVICE, CLIENT_MAC, EPOLL, NetworkError, PREFIX, QUEUE_LEN,
};
use crate::sys;

/// Places that a bed can have, the kernel's among them.
pub const PLACES_MAX: usize = 16;
/// Guests in one place.
pub const GUESTS_MAX: usize = 16;
/// The first TCP port of servers on the kernel's TCP.
const KERNEL_PORT: u16 = 80;
/// The TCP port of all others.
const PORT: u16 = 80;
/// The last byte of the first guest's address on a bridge, and on a veth.
const GUEST_FIRST: usize = 10;

/// Where a server without the kernel's TCP is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Station {
    /// Its device.
    pub device: Device,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its address and TCP port.
    pub address: SocketAddrV4,
}

impl Station {
    /// The Ethernet address as a configuration has it.
    pub fn mac_text(&self) -> String {
        self.mac.map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// The network, of this process and of the servers that it starts.
#[derive(Debug)]
pub struct Bed {
    is_veth: bool,
    /// Where a client on the kernel's TCP is, if there is one.
    far: Option<File>,
}

impl Bed {
    /// Moves the process into a network of its own with `places` places, the first of which
    /// is the kernel's; with `far`, the client is on a kernel's TCP in another one. Must be
    /// called before the process has a second thread.
    pub fn enter(port: PortKind, places: usize, far: bool) -> Result<Bed, NetworkError> {
        debug_assert!(places <= PLACES_MAX);
        let mut beyond = far.then(Beyond::enter).transpose()?;
        let is_veth = port == PortKind::Xdp;
        if is_veth {
            veths(places, beyond.as_mut())?;
        } else {
            let taps: Vec<String> = (1..places).map(tap_of).collect();
            network::enter(&taps.iter().map(String::as_str).collect::<Vec<_>>())?;
            if let Some(beyond) = &mut beyond {
                let near = "near0";
                beyond.link("far0", near, CLIENT)?;
                sys::join(BRIDGE, near, QUEUE_LEN).map_err(NetworkError::Bridge)?;
            }
        }
        Ok(Bed { is_veth, far: beyond.map(|beyond| beyond.network) })
    }

    /// The kind of device that the client and the servers have.
    pub fn device(&self) -> &'static str {
        if self.is_veth { "veth" } else { "tap" }
    }

    /// Which of the client's devices leads to a place: a number, the device and the
    /// client's address there.
    pub fn client_of(&self, place: usize) -> (usize, Device, Ipv4Addr) {
        if self.is_veth {
            (place, Device::Xdp(format!("vc{place}")), client_at(place))
        } else {
            (0, Device::Tap(CLIENT_DEVICE.to_owned()), CLIENT)
        }
    }

    /// The address of a server on the kernel's TCP.
    pub fn kernel(&self, number: usize) -> SocketAddrV4 {
        SocketAddrV4::new(*EPOLL.ip(), KERNEL_PORT + number as u16)
    }

    /// The station of a guest in a place that is not the kernel's.
    pub fn station(&self, place: usize, guest: usize) -> Station {
        let (device, ip) = if self.is_veth {
            let [a, b, c, _] = client_at(place).octets();
            let ip = Ipv4Addr::new(a, b, c, (GUEST_FIRST + guest) as u8);
            (Device::Xdp(format!("vs{place}")), ip)
        } else {
            let [a, b, c, _] = CLIENT.octets();
            let last = GUEST_FIRST + GUESTS_MAX * (place - 1) + guest;
            (Device::Tap(tap_of(place)), Ipv4Addr::new(a, b, c, last as u8))
        };
        let mac = [0x02, 0x70, 0x62, 1, place as u8, guest as u8];
        Station { device, mac, address: SocketAddrV4::new(ip, PORT) }
    }

    /// The file of the network that a client on the kernel's TCP is in, for as long as this
    /// process lives.
    pub fn far(&self) -> Option<String> {
        let file = self.far.as_ref()?;
        Some(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
    }
}

fn tap_of(place: usize) -> String {
    format!("tapp{place}")
}

/// The client's address on the veth that leads to a place.
fn client_at(place: usize) -> Ipv4Addr {
    let [a, b, _, d] = CLIENT.octets();
    Ipv4Addr::new(a, b, place as u8, d)
}

/// Makes a pair for each place.
fn veths(places: usize, mut beyond: Option<&mut Beyond>) -> Result<(), NetworkError> {
    netns::enter()?;
    sys::settle_network();
    let mut network = Network::open().map_err(NetworkError::Veth)?;
    for place in 0..places {
        let (far, near) = (format!("vc{place}"), format!("vs{place}"));
        match &mut beyond {
            Some(beyond) => beyond.link(&far, &near, client_at(place))?,
            None => network
                .add_pair(&far, &near)
                .and_then(|()| network.bring_up(&far, CLIENT_MAC))
                .map_err(NetworkError::Veth)?,
        }
        let mac = [0x02, 0x70, 0x62, 2, place as u8, 0];
        if place == 0 {
            network.set_up(&near, Some(mac), *EPOLL.ip(), PREFIX)
        } else {
            network.bring_up(&near, mac)
        }
        .map_err(NetworkError::Veth)?;
    }
    Ok(())
}

/// The network of a client on a kernel's TCP.
struct Beyond {
    devices: Network,
    network: File,
}

impl Beyond {
    /// Moves the process there; it is to move on.
    fn enter() -> Result<Beyond, NetworkError> {
        netns::enter()?;
        sys::settle_network();
        let open = || -> io::Result<Beyond> {
            Ok(Beyond { devices: Network::open()?, network: File::open("/proc/self/ns/net")? })
        };
        open().map_err(NetworkError::Veth)
    }

    /// Makes a pair of devices: one there with this address, the other where the process
    /// is now.
    fn link(&mut self, far: &str, near: &str, address: Ipv4Addr) -> Result<(), NetworkError> {
        self.devices
            .add_pair(far, near)
            .and_then(|()| self.devices.set_up(far, Some(CLIENT_MAC), address, PREFIX))
            .map_err(NetworkError::Veth)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn everybody_has_an_address_of_his_own() {
        for is_veth in [false, true] {
            let bed = Bed { is_veth, far: None };
            let mut seen = HashSet::new();
            for place in 1..PLACES_MAX {
                for guest in 0..GUESTS_MAX {
                    let station = bed.station(place, guest);
                    assert!(seen.insert(*station.address.ip()), "{station:?}");
                    assert!(![CLIENT, *EPOLL.ip()].contains(station.address.ip()));
                    let near = bed.client_of(place).2.octets();
                    assert_eq!(station.address.ip().octets()[..3], near[..3]);
                    assert_eq!(station.mac_text().len(), 17);
                }
            }
        }
    }
}
