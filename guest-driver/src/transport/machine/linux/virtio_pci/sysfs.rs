//! What sysfs tells of a PCI device (`Documentation/PCI/sysfs-pci.rst`), and whether it is
//! one that this process may drive.

use std::fs;
use std::path::{Path, PathBuf};

use crate::transport::PciError;

/// The driver that gives devices away.
const DRIVER: &str = "uio_pci_generic";
/// Vendor and devices of virtio-net (VIRTIO 1.2 section 4.1.2); the second is transitional,
/// and has what this driver needs unless it is a legacy device.
const VENDOR: u32 = 0x1af4;
const NET: [u32; 2] = [0x1041, 0x1000];
/// A BAR is memory, and there (`linux/ioport.h`).
const IORESOURCE_MEM: u64 = 0x200;
const IORESOURCE_UNSET: u64 = 0x2000_0000;

/// A device that may be driven, as far as sysfs knows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Where it is in sysfs.
    pub(super) dir: PathBuf,
    /// Its device file, by which it interrupts.
    pub(super) uio: PathBuf,
    /// Whether it can interrupt at all.
    pub(super) has_interrupt: bool,
    /// Bytes of its BARs that are memory which can be mapped.
    pub(super) bars: [Option<u64>; 6],
}

impl Found {
    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("config")
    }

    pub(super) fn bar(&self, number: u8) -> PathBuf {
        self.dir.join(format!("resource{number}"))
    }
}

/// Judges the device at `dir`.
pub(super) fn judge(dir: &Path, address: &str) -> Result<Found, PciError> {
    let number = |file: &str| {
        let text = fs::read_to_string(dir.join(file)).ok()?;
        u32::from_str_radix(text.trim().strip_prefix("0x")?, 16).ok()
    };
    let (Some(vendor), Some(device)) = (number("vendor"), number("device")) else {
        return Err(PciError::Absent);
    };
    if vendor != VENDOR || !NET.contains(&device) {
        return Err(PciError::NotNet { vendor, device });
    }
    let driver = fs::read_link(dir.join("driver")).ok();
    let driver = driver.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    if driver != Some(DRIVER) {
        return Err(PciError::Driver {
            driver: driver.unwrap_or("no driver").to_owned(),
            address: address.to_owned(),
            device: dir.display().to_string(),
        });
    }
    let names = fs::read_dir(dir.join("uio")).map_err(|_| PciError::NoUio)?;
    let uio = names.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        name.starts_with("uio").then(|| Path::new("/dev").join(name))
    });
    let irq = fs::read_to_string(dir.join("irq")).unwrap_or_default();
    let resources = fs::read_to_string(dir.join("resource")).unwrap_or_default();
    Ok(Found {
        dir: dir.to_owned(),
        uio: uio.ok_or(PciError::NoUio)?,
        has_interrupt: !matches!(irq.trim(), "" | "0"),
        bars: bars(&resources),
    })
}

/// The BARs in a `resource`: a line for each, of its first byte, its last, and its flags.
fn bars(text: &str) -> [Option<u64>; 6] {
    let page = rustix::param::page_size() as u64;
    let mut lines = text.lines();
    std::array::from_fn(|_| {
        let mut words = lines.next()?.split_whitespace().map(|word| {
            let digits = word.strip_prefix("0x")?;
            u64::from_str_radix(digits, 16).ok()
        });
        let (first, last, flags) = (words.next()??, words.next()??, words.next()??);
        let is_there = flags & IORESOURCE_MEM != 0 && flags & IORESOURCE_UNSET == 0 && first != 0;
        // Part of a page is not mapped from its start.
        let len = last.checked_sub(first)?.checked_add(1)?;
        (is_there && len.is_multiple_of(page)).then_some(len)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device as sysfs has it.
    fn device(ids: (&str, &str), driver: Option<&str>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        write("vendor", ids.0);
        write("device", ids.1);
        write("irq", "21\n");
        write(
            "resource",
            "0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
             0x00000000fe800000 0x00000000fe800fff 0x0000000000040200\n\
             0x00000000fe900000 0x00000000fe90007f 0x0000000000040200\n\
             0x000000000000c000 0x000000000000cfff 0x0000000000040101\n\
             0x0000000800000000 0x0000000800003fff 0x000000000014220c\n\
             0xffffffffffffffff 0x0000000000000000 0x0000000000000200\n",
        );
        if let Some(driver) = driver {
            let target = Path::new("../../../bus/pci/drivers").join(driver);
            std::os::unix::fs::symlink(target, dir.path().join("driver")).unwrap();
        }
        dir
    }

    #[test]
    fn a_network_device_that_was_given_away_is_found() {
        for id in ["0x1041\n", "0x1000\n"] {
            let dir = device(("0x1af4\n", id), Some(DRIVER));
            assert!(matches!(judge(dir.path(), "a"), Err(PciError::NoUio)));
            fs::create_dir_all(dir.path().join("uio/uio3")).unwrap();
            let found = judge(dir.path(), "a").unwrap();
            assert_eq!(found.uio, Path::new("/dev/uio3"));
            assert!(found.has_interrupt);
            assert_eq!(found.bars, [None, Some(4096), None, None, Some(0x4000), None]);
            fs::write(dir.path().join("irq"), "0\n").unwrap();
            assert!(!judge(dir.path(), "a").unwrap().has_interrupt);
        }
    }

    #[test]
    fn another_device_or_one_of_the_kernels_is_refused() {
        let absent = tempfile::tempdir().unwrap();
        assert!(matches!(judge(absent.path(), "a"), Err(PciError::Absent)));
        for ids in [("0x8086", "0x1041"), ("0x1af4", "0x1042"), ("0x1af4", "0x1110")] {
            let dir = device(ids, Some(DRIVER));
            assert!(matches!(judge(dir.path(), "a"), Err(PciError::NotNet { .. })), "{ids:?}");
        }
        for (driver, says) in [(Some("virtio-pci"), "virtio-pci"), (None, "no driver")] {
            let dir = device(("0x1af4", "0x1041"), driver);
            let said = judge(dir.path(), "0000:00:05.0").unwrap_err().to_string();
            let override_ = format!("echo uio_pci_generic > {}/driver_over", dir.path().display());
            let bind = "echo 0000:00:05.0 > /sys/bus/pci/drivers/uio_pci_generic/bind";
            for part in [&format!("bound to {says},"), &override_, bind] {
                assert!(said.contains(part), "{part}: {said}");
            }
        }
    }
}
