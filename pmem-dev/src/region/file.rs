//! The file of a region: opened, locked, mapped, and judged against what its
//! opener expects. A device DAX is one whose length is given, which cannot be
//! read, and which is neither made nor removed.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use paste_abi::superblock::HOST_HEAD_LEN;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::Expect;
use super::error::{RegionError, system};
use crate::devdax;
use crate::layout::{Geometry, SIZE_MIN};
use crate::superblock::{self, Found};
use crate::sys::{Mapping, Shape, System};
use crate::uuid::Uuid;

/// Bytes that are read or written at a time.
pub(super) const CHUNK: usize = 1 << 20;

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
        .map_err(|e| open_error(path, name, if create { "create" } else { "open" }, e))
}

/// Opens the file to look at it.
pub(super) fn open_read_only(path: &Path, name: &str) -> Result<File, RegionError> {
    OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(|e| open_error(path, name, "open", e))
}

fn open_error(path: &Path, name: &str, doing: &'static str, error: std::io::Error) -> RegionError {
    // A socket in the file's place says the same.
    let no_device = error.raw_os_error() == Some(Errno::NXIO.raw_os_error())
        && path.metadata().is_ok_and(|metadata| metadata.file_type().is_char_device());
    if no_device {
        return RegionError::NoDriver { region: name.to_owned() };
    }
    system(name, doing, error)
}

/// What the opened file is: a regular file, or a device DAX that a guest can map.
pub(super) fn examine(of: &dyn System, name: &str, file: &File) -> Result<Shape, RegionError> {
    let region = || name.to_owned();
    let kind = file.metadata().map_err(|e| system(name, "examine", e))?.file_type();
    if !kind.is_file() && !kind.is_char_device() {
        return Err(RegionError::NotAFile { region: region() });
    }
    let shape = of
        .shape(file.as_fd())
        .map_err(|source| RegionError::Device { region: region(), source })?;
    if shape.is_device && shape.page as u64 > HOST_HEAD_LEN {
        return Err(RegionError::Align { region: region(), have: shape.page, want: HOST_HEAD_LEN });
    }
    if shape.is_device && shape.len < SIZE_MIN {
        return Err(RegionError::DeviceSize { region: region(), have: shape.len, want: SIZE_MIN });
    }
    Ok(shape)
}

/// Whether a device holds nothing yet. One whose first region was never finished
/// does not either: its superblock would have been written last.
pub(super) fn is_empty(name: &str, file: &File, shape: &Shape) -> Result<bool, RegionError> {
    let start = map(name, file.as_fd(), shape, 0, SIZE_MIN, false)?;
    let mut bytes = vec![0; SIZE_MIN as usize];
    if !start.read_at(0, &mut bytes) || start.is_poisoned() {
        return Ok(false);
    }
    let at = devdax::BLOCK_OFFSET as usize;
    let (head, rest) = bytes.split_at(at);
    let (block, rest) = rest.split_at(devdax::BLOCK_LEN);
    let is_zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    let block_is_ours = block.try_into().is_ok_and(devdax::is_sound);
    Ok(is_zero(head) && (block_is_ours || is_zero(block)) && is_zero(rest))
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

/// The lock on a region's file, which ends with this. Closing the descriptor would not
/// do: a child that another thread has just forked has it too, until it executes.
#[derive(Debug)]
pub(super) struct Lock(pub(super) File);

impl Drop for Lock {
    fn drop(&mut self) {
        // What cannot be unlocked is so when its last descriptor is closed.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

pub(super) fn lock_file(file: &File, name: &str) -> Result<(), RegionError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(RegionError::InUse { region: name.to_owned() }),
        Err(errno) => Err(system(name, "lock", errno.into())),
    }
}

fn map(
    name: &str,
    file: BorrowedFd<'_>,
    shape: &Shape,
    offset: u64,
    len: u64,
    writable: bool,
) -> Result<Mapping, RegionError> {
    Mapping::of(file, shape, offset, len as usize, writable)
        .map_err(|source| RegionError::Map { region: name.to_owned(), source })
}

/// Maps what belongs to the host.
pub(super) fn map_head(
    name: &str,
    file: BorrowedFd<'_>,
    shape: &Shape,
    writable: bool,
) -> Result<Mapping, RegionError> {
    map(name, file, shape, 0, HOST_HEAD_LEN, writable)
}

/// Maps what the guest maps.
pub(super) fn map_guest(
    name: &str,
    file: BorrowedFd<'_>,
    shape: &Shape,
    geometry: &Geometry,
    writable: bool,
) -> Result<Mapping, RegionError> {
    map(name, file, shape, HOST_HEAD_LEN, geometry.guest_len(), writable)
}

/// Maps what this machine was given of a region on its host, to look at it.
pub(super) fn map_given(
    name: &str,
    file: BorrowedFd<'_>,
    shape: &Shape,
    geometry: &Geometry,
) -> Result<Mapping, RegionError> {
    let (have, want) = (shape.len, geometry.guest_len());
    if have < want {
        return Err(RegionError::DeviceSize { region: name.to_owned(), have, want });
    }
    map(name, file, shape, 0, want, false)
}

/// Judges the length of the file against the region in it. A device may be longer
/// than what is used of it.
pub(super) fn check_len(name: &str, found: &Found, shape: &Shape) -> Result<(), RegionError> {
    let (region, have, want) = (name.to_owned(), shape.len, found.geometry.file_len());
    match shape.is_device {
        true if have < want => Err(RegionError::DeviceSize { region, have, want }),
        false if have != want => Err(RegionError::Size { region, have, want }),
        _ => Ok(()),
    }
}

/// Judges the region in a file of `have` bytes, or in that many of a device,
/// against what is expected of it.
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
