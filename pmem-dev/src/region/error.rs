//! Why a region could not be created, opened, mirrored or closed.

use std::io::ErrorKind;

use rustix::io::Errno;

use crate::superblock::{NameError, SuperblockError};
use crate::sys::{MapError, ShapeError};
use crate::uuid::Uuid;

/// Why a region could not be created, opened or closed. Each message says
/// which region, what is wrong, and what can be done.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// There is a file in the place of the new region.
    #[error("{region}: exists already; open it, or remove it if its data is not needed")]
    Exists {
        /// Name of the region.
        region: String,
    },
    /// There is no such file.
    #[error("{region}: no such file; create the region, or correct the path")]
    NotFound {
        /// Name of the region.
        region: String,
    },
    /// The system does not allow it.
    #[error("{region}: no permission; the user of this process needs to read and write it")]
    Permission {
        /// Name of the region.
        region: String,
    },
    /// Another process serves the region.
    #[error("{region}: in use by another process; stop that one first")]
    InUse {
        /// Name of the region.
        region: String,
    },
    /// The file system or the memory is full.
    #[error("{region}: no room for {size} bytes; free some, or configure a smaller region")]
    NoRoom {
        /// Name of the region.
        region: String,
        /// Bytes that were to be reserved.
        size: u64,
    },
    /// It is no file that could be a region.
    #[error(
        "{region}: not a regular file; name a file on /dev/shm, hugetlbfs or a disk, or a device \
         DAX (/dev/daxN.M)"
    )]
    NotAFile {
        /// Name of the region.
        region: String,
    },
    /// It is a character device that cannot be used.
    #[error("{region}: {source}; name a device DAX (/dev/daxN.M), or a file")]
    Device {
        /// Name of the region.
        region: String,
        /// Why not.
        source: ShapeError,
    },
    /// It is a device that no driver serves now.
    #[error(
        "{region}: no driver serves this device; load the module device_dax, or give the device \
         back to it with `daxctl reconfigure-device --mode=devdax`"
    )]
    NoDriver {
        /// Name of the region.
        region: String,
    },
    /// The device is mapped in units that are too large.
    #[error(
        "{region}: this device is mapped in units of {have} bytes, and a guest maps a region from \
         {want} bytes on; make it anew with `ndctl create-namespace --mode=devdax --align={want}`"
    )]
    Align {
        /// Name of the region.
        region: String,
        /// Bytes of the device's unit.
        have: usize,
        /// The largest unit that will do.
        want: u64,
    },
    /// The device is too small.
    #[error(
        "{region}: this device has {have} bytes, {want} expected; configure a smaller region, or \
         name another device"
    )]
    DeviceSize {
        /// Name of the region.
        region: String,
        /// Bytes of the device.
        have: u64,
        /// Bytes of the region.
        want: u64,
    },
    /// There is data on the device in the place of the new region.
    #[error(
        "{region}: there is data on this device; open it if it is a region, or write zeros over \
         it if nobody needs it: `daxio --zero --output={region}`"
    )]
    Occupied {
        /// Name of the region.
        region: String,
    },
    /// There is data in the segment, and it is not a region.
    #[error(
        "{region}: holds what is not a region; give the VM's device a segment of its own, which \
         holds zeros"
    )]
    ForeignSegment {
        /// Name of the region.
        region: String,
    },
    /// It is what a guest maps of a region.
    #[error(
        "{region}: is what this machine, as a guest, was given of a region; see to that region on \
         its host"
    )]
    OfGuest {
        /// Name of the region.
        region: String,
    },
    /// The file's length is not the region's.
    #[error(
        "{region}: has {have} bytes, {want} expected; it was cut, grown or is not finished: \
         restore it, or remove it and create it anew"
    )]
    Size {
        /// Name of the region.
        region: String,
        /// Bytes of the file.
        have: u64,
        /// Bytes expected.
        want: u64,
    },
    /// The buffers have another size than configured.
    #[error(
        "{region}: has buffers of {have} bytes, {want} expected; correct the configuration, \
         or create another region"
    )]
    BufferSize {
        /// Name of the region.
        region: String,
        /// Bytes of a buffer.
        have: u32,
        /// Bytes expected.
        want: u32,
    },
    /// The superblock is not one that can be served.
    #[error("{region}: {error}; restore the file from a backup, or remove it and create it anew")]
    Superblock {
        /// Name of the region.
        region: String,
        /// What is wrong with it.
        error: SuperblockError,
    },
    /// It belongs to another guest.
    #[error("{region}: belongs to guest \"{have}\", not to \"{want}\"; correct the path")]
    Guest {
        /// Name of the region.
        region: String,
        /// The guest in the superblock.
        have: String,
        /// The guest expected.
        want: String,
    },
    /// It has another identity.
    #[error("{region}: is region {have}, not {want}; correct the path or the identity")]
    Identity {
        /// Name of the region.
        region: String,
        /// The identity in the superblock.
        have: Uuid,
        /// The identity expected.
        want: Uuid,
    },
    /// The guest's name cannot be stored.
    #[error("{region}: {error}; shorten or correct the name \"{name}\"")]
    Name {
        /// Name of the region.
        region: String,
        /// The name.
        name: String,
        /// The rule that it breaks.
        error: NameError,
    },
    /// The memory could not be mapped.
    #[error("{region}: cannot be mapped: {source}; see that memory and its limits suffice")]
    Map {
        /// Name of the region.
        region: String,
        /// Why.
        source: MapError,
    },
    /// A mirror whose first copy was never finished, and no region.
    #[error(
        "{region}: is a mirror whose first copy was never finished, and its region is gone; \
         remove it"
    )]
    Unfinished {
        /// Name of the mirror.
        region: String,
    },
    /// A mirror that was left open, without its journal.
    #[error(
        "{region}: was left open, and what it lacks is in its journal {journal}, which is missing \
         or not its own; put the journal back, or restore both from a backup"
    )]
    Journal {
        /// Name of the mirror.
        region: String,
        /// Name of the journal.
        journal: String,
    },
    /// The mirror has another layout than the region.
    #[error("{region}: is laid out otherwise than the region that it mirrors; correct the path")]
    MirrorLayout {
        /// Name of the mirror.
        region: String,
    },
    /// The system refused for another reason.
    #[error("{region}: cannot {doing} it: {source}")]
    System {
        /// Name of the region.
        region: String,
        /// What was being done.
        doing: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
}

pub(crate) fn system(region: &str, doing: &'static str, source: std::io::Error) -> RegionError {
    let region = region.to_owned();
    match source.kind() {
        ErrorKind::AlreadyExists => RegionError::Exists { region },
        ErrorKind::NotFound => RegionError::NotFound { region },
        ErrorKind::PermissionDenied => RegionError::Permission { region },
        ErrorKind::IsADirectory => RegionError::NotAFile { region },
        _ => RegionError::System { region, doing, source },
    }
}

pub(super) fn reserve_error(region: &str, size: u64, errno: Errno) -> RegionError {
    match errno {
        Errno::NOSPC | Errno::NOMEM | Errno::DQUOT | Errno::FBIG => {
            RegionError::NoRoom { region: region.to_owned(), size }
        }
        other => system(region, "reserve", other.into()),
    }
}
