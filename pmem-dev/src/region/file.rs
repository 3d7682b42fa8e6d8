//! The file of a region: opened, locked, mapped, and judged against what its
//! opener expects.

use std::fs::{File, OpenOptions};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use paste_abi::superblock::HOST_HEAD_LEN;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::Expect;
use super::error::{RegionError, system};
use crate::layout::Geometry;
use crate::superblock::{self, Found};
use crate::sys::Mapping;
use crate::uuid::Uuid;

/// A file that is being made into a region; dropping this removes it.
pub(super) struct Unfinished<'a> {
    pub(super) path: &'a Path,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // The error that led here is the one to report.
        let _ = std::fs::remove_file(self.path);
    }
}

pub(super) fn open_file(path: &Path, name: &str, create: bool) -> Result<File, RegionError> {
    // std sets O_CLOEXEC. Non-blocking, so that a FIFO or a device in the
    // file's place is an error instead of a wait.
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(create)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(|e| system(name, if create { "create" } else { "open" }, e))
}

/// Opens the file a second time, for the descriptor that the guest is given.
pub(super) fn open_same(path: &Path, name: &str, lock: &File) -> Result<File, RegionError> {
    let file = open_file(path, name, false)?;
    let identity = |file: &File| {
        file.metadata().map(|m| (m.dev(), m.ino())).map_err(|e| system(name, "examine", e))
    };
    if identity(&file)? != identity(lock)? {
        return Err(RegionError::InUse { region: name.to_owned() });
    }
    Ok(file)
}

pub(super) fn lock_file(file: &File, name: &str) -> Result<(), RegionError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(RegionError::InUse { region: name.to_owned() }),
        Err(errno) => Err(system(name, "lock", errno.into())),
    }
}

pub(super) fn map_head(name: &str, file: BorrowedFd<'_>) -> Result<Mapping, RegionError> {
    Mapping::from_fd(file, 0, HOST_HEAD_LEN as usize, true)
        .map_err(|source| RegionError::Map { region: name.to_owned(), source })
}

pub(super) fn map_guest(
    name: &str,
    file: BorrowedFd<'_>,
    geometry: &Geometry,
) -> Result<Mapping, RegionError> {
    Mapping::from_fd(file, HOST_HEAD_LEN, geometry.guest_len() as usize, true)
        .map_err(|source| RegionError::Map { region: name.to_owned(), source })
}

pub(super) fn map_guest_read_only(
    name: &str,
    file: BorrowedFd<'_>,
    geometry: &Geometry,
) -> Result<Mapping, RegionError> {
    Mapping::from_fd(file, HOST_HEAD_LEN, geometry.guest_len() as usize, false)
        .map_err(|source| RegionError::Map { region: name.to_owned(), source })
}

pub(super) fn check(
    name: &str,
    found: &Found,
    have: u64,
    expect: &Expect<'_>,
) -> Result<(), RegionError> {
    let region = || name.to_owned();
    let guest = superblock::guest(&found.block).unwrap_or_default();
    if guest != expect.guest {
        return Err(RegionError::Guest {
            region: region(),
            have: guest.to_owned(),
            want: expect.guest.to_owned(),
        });
    }
    let uuid = Uuid(found.block.uuid);
    if let Some(want) = expect.uuid.filter(|&want| want != uuid) {
        return Err(RegionError::Identity { region: region(), have: uuid, want });
    }
    let want = found.geometry.file_len();
    if have != want {
        return Err(RegionError::Size { region: region(), have, want });
    }
    if let Some(want) = expect.size.filter(|&want| want != have) {
        return Err(RegionError::Size { region: region(), have, want });
    }
    let have = found.geometry.buffer_size();
    if let Some(want) = expect.buffer_size.filter(|&want| want != have) {
        return Err(RegionError::BufferSize { region: region(), have, want });
    }
    Ok(())
}
