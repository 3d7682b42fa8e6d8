//! A region: its file or memory, its identity, and the life of its superblock.
//!
//! A file that serves as a region is locked by the process that serves it. The
//! lock is on a descriptor of its own, because the other one is handed to the
//! guest: a lock belongs to all who share a descriptor, and a guest that lives
//! on, or that unlocks, must not decide who may open the region.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use paste_abi::superblock::{HOST_HEAD_LEN, STATE_CLEAN, STATE_OPEN, Superblock};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::buffers::Buffers;
use crate::layout::{Geometry, SIZE_MIN};
use crate::pool::Pool;
use crate::superblock::{self, Found, NameError, SuperblockError};
use crate::sys::{self, HugePages, MapError, Mapping};
use crate::uuid::Uuid;

/// Where a new region's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Memory without a name, gone with the last process that maps it. It can
    /// neither shrink nor grow.
    Memory(HugePages),
    /// A new file, which outlives the processes: on /dev/shm, hugetlbfs, or
    /// any file system.
    File(PathBuf),
}

/// Who a new region belongs to.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// The guest's name, 1 to 64 bytes.
    pub guest: &'a str,
    /// The region's identity, usually [`Uuid::random`].
    pub uuid: Uuid,
    /// Now, ns since the Unix epoch.
    pub created_ns: u64,
}

/// What the opener believes of a region; anything else is an error.
#[derive(Clone, Copy, Debug)]
pub struct Expect<'a> {
    /// The guest that it belongs to.
    pub guest: &'a str,
    /// Its identity, if known.
    pub uuid: Option<Uuid>,
    /// Its size in bytes, the host's head included, if known.
    pub size: Option<u64>,
    /// Bytes of one buffer, if known.
    pub buffer_size: Option<u32>,
}

/// How an opened region was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// It had been closed in good order.
    pub clean: bool,
    /// The copy of the superblock, 0 or 1, that was damaged and is repaired.
    pub repaired: Option<usize>,
}

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
    #[error("{region}: not a regular file; name a file on /dev/shm, hugetlbfs or a disk")]
    NotAFile {
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

/// The shared memory of one guest, open in this process.
///
/// Dropping it without [`Region::close`] leaves it marked as open, as a crash
/// would.
#[derive(Debug)]
pub struct Region {
    name: String,
    file: OwnedFd,
    /// Holds the lock of a region that has a file.
    _lock: Option<OwnedFd>,
    head: Mapping,
    guest: Arc<Mapping>,
    block: Superblock,
    geometry: Geometry,
}

impl Region {
    /// Creates a region. An existing file is never touched.
    ///
    /// # Errors
    /// See [`RegionError`]. A file that was created but could not be finished is
    /// removed again.
    pub fn create(
        backing: &Backing,
        geometry: Geometry,
        identity: &Identity<'_>,
    ) -> Result<Region, RegionError> {
        let name = match backing {
            Backing::Memory(_) => format!("memory of {}", identity.guest),
            Backing::File(path) => path.display().to_string(),
        };
        let mut block =
            superblock::build(&geometry, identity.uuid, identity.guest, identity.created_ns)
                .map_err(|error| RegionError::Name {
                    region: name.clone(),
                    name: identity.guest.to_owned(),
                    error,
                })?;
        let size = geometry.file_len();
        let mut unfinished = None;
        let (file, lock) = match backing {
            Backing::Memory(pages) => {
                let file = sys::memory_file("paste-region", size, *pages)
                    .map_err(|errno| reserve_error(&name, size, errno))?;
                (file, None)
            }
            Backing::File(path) => {
                let lock = open_file(path, &name, true)?;
                unfinished = Some(Unfinished { path });
                lock_file(&lock, &name)?;
                lock.set_len(size).map_err(|e| system(&name, "resize", e))?;
                sys::reserve(lock.as_fd(), size).map_err(|e| reserve_error(&name, size, e))?;
                let file = open_same(path, &name, &lock)?;
                (file.into(), Some(lock.into()))
            }
        };
        let head = map_head(&name, file.as_fd())?;
        let guest = map_guest(&name, file.as_fd(), &geometry)?;
        superblock::store(&mut block, &head, &guest).map_err(|e| system(&name, "write to", e))?;
        if let Some(unfinished) = unfinished {
            std::mem::forget(unfinished);
        }
        Ok(Region { name, file, _lock: lock, head, guest: Arc::new(guest), block, geometry })
    }

    /// Opens the region in the file at `path`, marks it as open and repairs a
    /// damaged copy of its superblock.
    ///
    /// # Errors
    /// See [`RegionError`]; nothing is written then.
    pub fn open(path: &Path, expect: &Expect<'_>) -> Result<(Region, Opened), RegionError> {
        let name = path.display().to_string();
        let lock = open_file(path, &name, false)?;
        let metadata = lock.metadata().map_err(|e| system(&name, "examine", e))?;
        if !metadata.file_type().is_file() {
            return Err(RegionError::NotAFile { region: name });
        }
        lock_file(&lock, &name)?;
        // Asked again: before the lock was ours, its creator may have been at work.
        let have = lock.metadata().map_err(|e| system(&name, "examine", e))?.len();
        if have < SIZE_MIN {
            return Err(RegionError::Size { region: name, have, want: SIZE_MIN });
        }
        let file: OwnedFd = open_same(path, &name, &lock)?.into();
        let head = map_head(&name, file.as_fd())?;
        let found = superblock::load(&head)
            .map_err(|error| RegionError::Superblock { region: name.clone(), error })?;
        check(&name, &found, have, expect)?;
        let Found { mut block, geometry, damaged } = found;

        let guest = map_guest(&name, file.as_fd(), &geometry)?;
        let clean = block.state.get() == STATE_CLEAN;
        block.state = STATE_OPEN.into();
        block.sequence = block.sequence.get().wrapping_add(1).into();
        superblock::store(&mut block, &head, &guest).map_err(|e| system(&name, "write to", e))?;
        let region = Region {
            name,
            file,
            _lock: Some(lock.into()),
            head,
            guest: Arc::new(guest),
            block,
            geometry,
        };
        Ok((region, Opened { clean, repaired: damaged }))
    }

    /// Marks the region as closed in good order, and lets go of it.
    ///
    /// # Errors
    /// [`RegionError::System`] if that could not be written.
    pub fn close(mut self) -> Result<(), RegionError> {
        let failed = |e| system(&self.name, "write to", e);
        // What the mark promises reaches storage before the mark does.
        self.guest.sync().map_err(failed)?;
        self.block.state = STATE_CLEAN.into();
        self.block.sequence = self.block.sequence.get().wrapping_add(1).into();
        superblock::store(&mut self.block, &self.head, &self.guest).map_err(failed)
    }

    /// The region's name in messages: its path, or whose memory it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file, to be handed to the guest with [`Region::guest_offset`] and
    /// [`Region::guest_len`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Where in the file the guest's mapping begins.
    pub const fn guest_offset(&self) -> u64 {
        HOST_HEAD_LEN
    }

    /// Bytes of the guest's mapping.
    pub const fn guest_len(&self) -> u64 {
        self.geometry.guest_len()
    }

    /// The region's identity.
    pub const fn uuid(&self) -> Uuid {
        Uuid(self.block.uuid)
    }

    /// The guest that the region belongs to.
    pub fn guest(&self) -> &str {
        superblock::guest(&self.block).unwrap_or_default()
    }

    /// When the region was created, ns since the Unix epoch.
    pub const fn created_ns(&self) -> u64 {
        self.block.created_ns.get()
    }

    /// Where the parts lie.
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What the guest maps, as this process maps it.
    pub const fn mapping(&self) -> &Arc<Mapping> {
        &self.guest
    }

    /// The buffers. They keep the mapping alive, not the lock.
    pub fn buffers(&self) -> Buffers {
        let part = self.geometry.buffers();
        Buffers::new(
            Arc::clone(&self.guest),
            part.offset as usize,
            self.geometry.buffer_size() as usize,
            self.geometry.buffer_count(),
        )
        .expect("a geometry holds only buffers that lie in the mapping")
    }

    /// The owners of the buffers, as the claim table has them now: what is
    /// claimed is handed out to nobody, and everything else is free.
    pub fn pool(&self) -> Pool {
        Pool::with_claims(self.buffers(), &self.guest, self.geometry.claims())
            .expect("a geometry holds only a claim table that lies in the mapping")
    }
}

/// A file that is being made into a region; dropping this removes it.
struct Unfinished<'a> {
    path: &'a Path,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // The error that led here is the one to report.
        let _ = std::fs::remove_file(self.path);
    }
}

fn system(region: &str, doing: &'static str, source: std::io::Error) -> RegionError {
    let region = region.to_owned();
    match source.kind() {
        ErrorKind::AlreadyExists => RegionError::Exists { region },
        ErrorKind::NotFound => RegionError::NotFound { region },
        ErrorKind::PermissionDenied => RegionError::Permission { region },
        ErrorKind::IsADirectory => RegionError::NotAFile { region },
        _ => RegionError::System { region, doing, source },
    }
}

fn reserve_error(region: &str, size: u64, errno: Errno) -> RegionError {
    match errno {
        Errno::NOSPC | Errno::NOMEM | Errno::DQUOT | Errno::FBIG => {
            RegionError::NoRoom { region: region.to_owned(), size }
        }
        other => system(region, "reserve", other.into()),
    }
}

fn open_file(path: &Path, name: &str, create: bool) -> Result<File, RegionError> {
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
fn open_same(path: &Path, name: &str, lock: &File) -> Result<File, RegionError> {
    let file = open_file(path, name, false)?;
    let identity = |file: &File| {
        file.metadata().map(|m| (m.dev(), m.ino())).map_err(|e| system(name, "examine", e))
    };
    if identity(&file)? != identity(lock)? {
        return Err(RegionError::InUse { region: name.to_owned() });
    }
    Ok(file)
}

fn lock_file(file: &File, name: &str) -> Result<(), RegionError> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(RegionError::InUse { region: name.to_owned() }),
        Err(errno) => Err(system(name, "lock", errno.into())),
    }
}

fn map_head(name: &str, file: BorrowedFd<'_>) -> Result<Mapping, RegionError> {
    Mapping::from_fd(file, 0, HOST_HEAD_LEN as usize, true)
        .map_err(|source| RegionError::Map { region: name.to_owned(), source })
}

fn map_guest(
    name: &str,
    file: BorrowedFd<'_>,
    geometry: &Geometry,
) -> Result<Mapping, RegionError> {
    Mapping::from_fd(file, HOST_HEAD_LEN, geometry.guest_len() as usize, true)
        .map_err(|source| RegionError::Map { region: name.to_owned(), source })
}

fn check(name: &str, found: &Found, have: u64, expect: &Expect<'_>) -> Result<(), RegionError> {
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
