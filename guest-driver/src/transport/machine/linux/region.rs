//! How an application in a virtual machine gets at the region: by the device that its
//! kernel shows it as, or by the BAR of a PCI device that shows it.
//!
//! | what is named | what is mapped |
//! | --- | --- |
//! | a path | that: `/dev/dax0.0` of a virtio-pmem device, or any file that has the region |
//! | `pci` | BAR 2 of the ivshmem device that has it, whichever that is |
//! | `pci:0000:00:06.0` | BAR 2 of the device at this address |
//!
//! An ivshmem device is QEMU's (`docs/specs/ivshmem-spec.rst`), and that of the project's
//! bhyve device. It needs no driver: sysfs lets root map a BAR
//! (`Documentation/PCI/sysfs-pci.rst`). Some VMMs show all of the region's file, with the
//! host's head before what is the guest's; both are tried, and the superblock says which
//! one it is, and whether the region is the one that the host serves.
//!
//! A BAR is mapped as the kernel maps devices, uncached as far as the processor heeds that:
//! Intel's do not where the hypervisor says that it is memory. The mapping that combines
//! writes (`resource2_wc`) is not used: it lets stores pass each other.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use paste_abi::superblock::HOST_HEAD_LEN;
use paste_pmem::{MapError, RegionMedium};

use crate::sys::Mapping;
use crate::transport::TransportError;

/// Vendor and device of an ivshmem device, as sysfs writes them.
const IVSHMEM: (&str, &str) = ("0x1af4", "0x1110");
/// Where PCI devices are in sysfs.
const DEVICES: &str = "bus/pci/devices";
/// The BAR that is the memory.
const MEMORY: &str = "resource2";

/// Maps the first `len` bytes of the region with this identity, which is at what was named
/// so.
pub(super) fn map(named: &Path, uuid: [u8; 16], len: u64) -> Result<Mapping, TransportError> {
    map_under(Path::new("/sys"), named, uuid, len)
}

fn map_under(
    sysfs: &Path,
    named: &Path,
    uuid: [u8; 16],
    len: u64,
) -> Result<Mapping, TransportError> {
    let len = usize::try_from(len)
        .map_err(|_| TransportError::Protocol("the region is larger than memory can be"))?;
    let missing = || TransportError::OtherRegion(named.to_owned());
    let name = named.to_str().unwrap_or_default();
    if name == "pci" {
        for device in ivshmem_devices(sysfs)? {
            if let Some(mapping) = map_bar(&device, uuid, len)? {
                return Ok(mapping);
            }
        }
        return Err(TransportError::NoRegionDevice);
    }
    if let Some(address) = name.strip_prefix("pci:") {
        let device = pci_device(sysfs, address)?;
        return map_bar(&device, uuid, len)?.ok_or_else(missing);
    }
    map_file(named, uuid, len)?.ok_or_else(missing)
}

/// Where the PCI device with this address is in sysfs, if it is there at all.
pub(super) fn pci_device(sysfs: &Path, address: &str) -> Result<PathBuf, TransportError> {
    // An address and not a way to somewhere else.
    let is_address = address.bytes().all(|b| b.is_ascii_hexdigit() || b":.".contains(&b));
    if !is_address || address.starts_with('.') || address.is_empty() {
        return Err(TransportError::PciAddress(address.to_owned()));
    }
    Ok(sysfs.join(DEVICES).join(address))
}

/// The devices that may show a region, in the order of their addresses.
fn ivshmem_devices(sysfs: &Path) -> Result<Vec<PathBuf>, TransportError> {
    let devices = fs::read_dir(sysfs.join(DEVICES))
        .map_err(TransportError::system("looking for PCI devices in sysfs"))?;
    let is = |device: &Path, file: &str, value: &str| {
        fs::read_to_string(device.join(file)).is_ok_and(|found| found.trim() == value)
    };
    let mut found: Vec<PathBuf> = devices
        .flatten()
        .map(|entry| entry.path())
        .filter(|device| is(device, "vendor", IVSHMEM.0) && is(device, "device", IVSHMEM.1))
        .collect();
    found.sort();
    Ok(found)
}

/// Maps the region in a device's memory; `None` if it is not there.
fn map_bar(device: &Path, uuid: [u8; 16], len: usize) -> Result<Option<Mapping>, TransportError> {
    // Without a driver the device may be off, and its memory nowhere.
    let enable = device.join("enable");
    if fs::read_to_string(&enable).is_ok_and(|text| text.trim() == "0") {
        fs::write(&enable, "1").map_err(TransportError::system("turning the PCI device on"))?;
    }
    map_file(&device.join(MEMORY), uuid, len)
}

fn map_file(path: &Path, uuid: [u8; 16], len: usize) -> Result<Option<Mapping>, TransportError> {
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(TransportError::system("opening the region's device"))?;
    for offset in [0, HOST_HEAD_LEN] {
        let map = || Mapping::from_fd(file.as_fd(), offset, len, true);
        let mapping = match map() {
            Ok(mapping) => mapping,
            // Where there is a head, there is room for both.
            Err(MapError::TooShort { .. }) => continue,
            // A device DAX has no head that this machine sees.
            Err(_) if offset > 0 => continue,
            Err(error) => return Err(TransportError::Map { what: "mapping the region", error }),
        };
        let medium = RegionMedium::new(Arc::new(mapping), None);
        match paste_pmem::guest_layout(&medium) {
            Ok((found, _)) if found.0 == uuid => {
                let error = |error| TransportError::Map { what: "mapping the region", error };
                return map().map(Some).map_err(error);
            }
            _ => {}
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use paste_pmem::{Backing, Geometry, Identity, Region, Uuid};

    const SIZE: u64 = 4 << 20;
    const LEN: u64 = SIZE - HOST_HEAD_LEN;

    /// A region's file, and its identity.
    fn region(path: &Path) -> [u8; 16] {
        let geometry = Geometry::new(SIZE, 2048).unwrap();
        let uuid = Uuid::random().unwrap();
        let identity = Identity { guest: "web1", uuid, created_ns: 1 };
        Region::create(&Backing::File(path.to_owned()), geometry, &identity).unwrap();
        uuid.0
    }

    /// Adds a device to a tree as sysfs has it; its memory is a file.
    fn device(sysfs: &Path, address: &str, ids: (&str, &str), memory: &Path) -> PathBuf {
        let dir = sysfs.join(DEVICES).join(address);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("vendor"), format!("{}\n", ids.0)).unwrap();
        fs::write(dir.join("device"), format!("{}\n", ids.1)).unwrap();
        fs::write(dir.join("enable"), "0\n").unwrap();
        std::os::unix::fs::symlink(memory, dir.join(MEMORY)).unwrap();
        dir
    }

    #[test]
    fn the_region_is_found_with_and_without_the_hosts_head() {
        let dir = tempfile::tempdir().unwrap();
        let whole = dir.path().join("whole");
        let uuid = region(&whole);
        let part = dir.path().join("part");
        fs::write(&part, &fs::read(&whole).unwrap()[HOST_HEAD_LEN as usize..]).unwrap();
        for path in [&whole, &part] {
            let mapping = map(path, uuid, LEN).unwrap();
            assert_eq!(mapping.len() as u64, LEN);
            let mut magic = [0; 8];
            assert!(mapping.read_at(0, &mut magic));
            assert_eq!(magic, paste_abi::superblock::MAGIC);
        }
        let error = map(&whole, [0; 16], LEN).unwrap_err();
        assert!(matches!(error, TransportError::OtherRegion(_)), "{error}");
        fs::write(&part, [0; 4096]).unwrap();
        let error = map(&part, uuid, LEN).unwrap_err();
        assert!(matches!(error, TransportError::OtherRegion(_)), "{error}");
        let error = map(&dir.path().join("absent"), uuid, LEN).unwrap_err();
        assert!(error.to_string().contains("opening"), "{error}");
    }

    #[test]
    fn of_several_devices_the_one_with_the_region_is_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = dir.path().join("sys");
        let at = |name: &str| dir.path().join(name);
        let uuid = region(&at("ours"));
        region(&at("other"));
        fs::write(at("short"), [0; 4096]).unwrap();
        let error = map_under(&sysfs, Path::new("pci"), uuid, LEN).unwrap_err();
        assert!(error.to_string().contains("sysfs"), "{error}");
        device(&sysfs, "0000:00:01.0", ("0x8086", "0x1110"), &at("ours"));
        device(&sysfs, "0000:00:02.0", IVSHMEM, &at("short"));
        device(&sysfs, "0000:00:03.0", IVSHMEM, &at("other"));
        let error = map_under(&sysfs, Path::new("pci"), uuid, LEN).unwrap_err();
        assert!(matches!(error, TransportError::NoRegionDevice), "{error}");
        let ours = device(&sysfs, "0000:00:04.0", IVSHMEM, &at("ours"));
        map_under(&sysfs, Path::new("pci"), uuid, LEN).unwrap();
        assert_eq!(fs::read_to_string(ours.join("enable")).unwrap(), "1", "it was off");

        // By address, whatever the device says that it is.
        for (name, found) in
            [("0000:00:04.0", true), ("0000:00:01.0", true), ("0000:00:03.0", false)]
        {
            let mapped = map_under(&sysfs, &PathBuf::from(format!("pci:{name}")), uuid, LEN);
            assert_eq!(mapped.is_ok(), found, "{name}");
        }
        for name in ["", "0000:00:09.0", "../x", "..", "/dev/zero"] {
            let named = PathBuf::from(format!("pci:{name}"));
            let error = map_under(&sysfs, &named, uuid, LEN).unwrap_err();
            let bad =
                matches!(error, TransportError::PciAddress(_) | TransportError::System { .. });
            assert!(bad, "{name}: {error}");
        }
    }
}
