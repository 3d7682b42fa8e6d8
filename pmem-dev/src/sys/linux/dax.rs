//! What sysfs tells of a device DAX character device (`/dev/daxN.M`), whose
//! own system calls tell nothing: its st_size is 0, and it cannot be read.
//!
//! Source: the kernel's `Documentation/ABI/testing/sysfs-bus-dax`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::sys::shape::{Shape, ShapeError};

/// The shape of the character device with this number, as the sysfs at `sysfs` has
/// it.
///
/// # Errors
/// [`ShapeError`]: it is another kind of device, or sysfs does not tell.
pub(super) fn shape(sysfs: &Path, (major, minor): (u32, u32)) -> Result<Shape, ShapeError> {
    let device = sysfs.join(format!("dev/char/{major}:{minor}"));
    let subsystem = match fs::read_link(device.join("subsystem")) {
        Ok(link) => link,
        // Some devices have no subsystem at all.
        Err(_) if device.exists() => PathBuf::new(),
        Err(source) => return Err(ShapeError::Sysfs { path: device, source }),
    };
    // Of the bus, or of the class that kernels before 5.1 had in its place.
    if subsystem.file_name().is_none_or(|name| name != "dax") {
        return Err(ShapeError::NotDax);
    }
    let len = read(device.join("size"))?;
    let page = read(device.join("align"))?;
    let page = usize::try_from(page).unwrap_or(0);
    if !page.is_power_of_two() || len == 0 || !len.is_multiple_of(page as u64) {
        return Err(ShapeError::Unlikely { size: len, align: page });
    }
    Ok(Shape { len, page, is_device: true })
}

fn read(path: PathBuf) -> Result<u64, ShapeError> {
    let failed = |source| ShapeError::Sysfs { path: path.clone(), source };
    let text = fs::read_to_string(&path).map_err(failed)?;
    text.trim().parse().map_err(|_| failed(std::io::ErrorKind::InvalidData.into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A sysfs with one character device, 252:1.
    fn sysfs(subsystem: Option<&str>, files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("devices/dax0.0");
        fs::create_dir_all(&real).unwrap();
        fs::create_dir_all(dir.path().join("dev/char")).unwrap();
        symlink("../../devices/dax0.0", dir.path().join("dev/char/252:1")).unwrap();
        if let Some(subsystem) = subsystem {
            symlink(subsystem, real.join("subsystem")).unwrap();
        }
        for (name, text) in files {
            fs::write(real.join(name), text).unwrap();
        }
        dir
    }

    const BUS: Option<&str> = Some("../../bus/dax");

    #[test]
    fn size_and_alignment_are_those_of_sysfs() {
        for subsystem in [BUS, Some("../../class/dax")] {
            let sysfs = sysfs(subsystem, &[("size", "266338304\n"), ("align", "2097152\n")]);
            let shape = shape(sysfs.path(), (252, 1)).unwrap();
            assert_eq!(shape, Shape { len: 254 << 20, page: 2 << 20, is_device: true });
        }
    }

    #[test]
    fn other_devices_are_told_from_what_cannot_be_known() {
        for subsystem in [None, Some("../../class/mem")] {
            let sysfs = sysfs(subsystem, &[]);
            assert!(matches!(shape(sysfs.path(), (252, 1)), Err(ShapeError::NotDax)));
        }
        let sysfs = sysfs(BUS, &[("size", "2097152")]);
        for number in [(252, 1), (252, 2)] {
            assert!(matches!(shape(sysfs.path(), number), Err(ShapeError::Sysfs { .. })));
        }
    }

    #[test]
    fn what_no_device_can_be_is_not_believed() {
        for (size, align) in [
            ("0", "2097152"),
            ("2097152", "0"),
            ("2097152", "3000"),
            ("4096", "2097152"),
            ("2097152", "18446744073709551615"),
        ] {
            let sysfs = sysfs(BUS, &[("size", size), ("align", align)]);
            let error = shape(sysfs.path(), (252, 1)).unwrap_err();
            assert!(matches!(error, ShapeError::Unlikely { .. }), "{size} {align}");
        }
        for size in ["", "many", "-1", "99999999999999999999999"] {
            let sysfs = sysfs(BUS, &[("size", size), ("align", "4096")]);
            let error = shape(sysfs.path(), (252, 1)).unwrap_err();
            assert!(matches!(error, ShapeError::Sysfs { .. }), "{size}");
        }
    }
}
