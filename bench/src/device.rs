//! Devices that our own programs open: a port with a region of its own, for clients
//! and for servers without a guest.

use std::net::{IpAddr, Ipv4Addr};

use paste_pmem::{
    BUFFER_SIZE_MIN, Backing, Geometry, GeometryError, HugePages, Identity, Region, RegionError,
    Uuid,
};
use pasted::port::{Port, Station, TapError, TapPort, XdpDevices, XdpError, XdpOptions, XdpPort};
use pasted::sys::clock::realtime_ns;

use crate::network::MTU;

/// Which device, and how frames are moved to and from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Device {
    /// A TAP device of this name.
    Tap(String),
    /// A network device of this name, by AF_XDP.
    Xdp(String),
}

impl Device {
    /// As it is written in a configuration.
    pub fn spec(&self) -> String {
        match self {
            Device::Tap(name) => format!("tap:{name}"),
            Device::Xdp(name) => format!("xdp:{name}"),
        }
    }

    /// What [`Device::spec`] wrote.
    pub fn parse(spec: &str) -> Result<Device, &'static str> {
        match spec.split_once(':') {
            Some(("tap", name)) => Ok(Device::Tap(name.to_owned())),
            Some(("xdp", name)) => Ok(Device::Xdp(name.to_owned())),
            _ => Err("write tap:NAME or xdp:NAME"),
        }
    }
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A TAP device.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// A device by AF_XDP.
    #[error(transparent)]
    Xdp(#[from] XdpError),
    /// The region's shape.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The region.
    #[error(transparent)]
    Region(#[from] RegionError),
}

/// A region of small buffers, `size` bytes large.
pub fn region(name: &str, size: u64) -> Result<Region, DeviceError> {
    let geometry = Geometry::new(size, BUFFER_SIZE_MIN)?;
    let identity = Identity { guest: name, uuid: Uuid([0x63; 16]), created_ns: realtime_ns() };
    Ok(Region::create(&Backing::Memory(HugePages::No), geometry, &identity)?)
}

/// Opens a device for the frames of one station. They lie in the region.
pub fn open(
    device: &Device,
    mac: [u8; 6],
    address: Ipv4Addr,
    region: &Region,
) -> Result<Box<dyn Port>, DeviceError> {
    Ok(match device {
        Device::Tap(name) => Box::new(TapPort::open(name, MTU)?),
        Device::Xdp(name) => Box::new(XdpPort::open(&XdpOptions {
            name,
            queue: None,
            mode: None,
            mtu: MTU,
            stations: &[Station { mac, vlan: None, addresses: vec![IpAddr::V4(address)] }],
            devices: &XdpDevices::default(),
            region,
        })?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_understood() {
        for device in [Device::Tap("tap0".to_owned()), Device::Xdp("veth1".to_owned())] {
            assert_eq!(Device::parse(&device.spec()), Ok(device));
        }
        assert!(Device::parse("netmap:ix0").is_err());
    }
}
