//! A region: its file or memory, its identity, and the life of its superblock.
//!
//! A file that serves as a region is locked by the process that serves it. The
//! lock is on a descriptor of its own, because the other one is handed to the
//! guest: a lock belongs to all who share a descriptor, and a guest that lives
//! on, or that unlocks, must not decide who may open the region.

mod error;
mod file;
mod image;
mod mirror;
mod provide;
mod segment;

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use paste_abi::superblock::{HOST_HEAD_LEN, STATE_CLEAN, STATE_OPEN, Superblock};

use crate::buffers::Buffers;
use crate::claims;
use crate::devdax;
use crate::domain::Domain;
use crate::flusher::Flusher;
use crate::layout::{Geometry, PAGE, SIZE_MIN};
use crate::occupied::Occupied;
use crate::pool::Pool;
use crate::superblock::{self, Found, SuperblockError};
use crate::sys::{self, HugePages, Mapping, Os, Shape, System};
use crate::uuid::Uuid;
pub use error::RegionError;
use error::{reserve_error, system};
use file::{
    CHUNK, Lock, Unfinished, check, check_len, examine, is_empty, lock_file, map_guest, map_head,
    open_file, open_same,
};
pub use image::{Finding, Image};
use mirror::Mirror;
pub use mirror::Progress;
pub use provide::{Origin, Provided, Spec, provide};
pub use segment::Segment;

/// Where a new region's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Memory without a name, gone with the last process that maps it. It can
    /// neither shrink nor grow.
    Memory(HugePages),
    /// A new file, which outlives the processes: on /dev/shm, hugetlbfs, or
    /// any file system; or all of a device DAX (`/dev/daxN.M`) that is there and
    /// holds zeros.
    File(PathBuf),
    /// Memory that a VMM has made and shows its guest, behind the host's head. It lives as
    /// long as the machine, or longer than a process of its VMM's.
    Segment(Segment),
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

/// The shared memory of one guest, open in this process.
///
/// Dropping it without [`Region::close`] leaves it marked as open, as a crash
/// would.
#[derive(Debug)]
pub struct Region {
    name: String,
    file: OwnedFd,
    /// Holds the lock of a region that has a file.
    _lock: Option<Lock>,
    shape: Shape,
    head: Mapping,
    guest: Arc<Mapping>,
    block: Superblock,
    geometry: Geometry,
    /// What makes its own bytes durable, were there no mirror.
    domain: Domain,
    mirror: Option<Mirror>,
    /// Its storage has failed a sync: see [`Flusher`].
    suspect: Arc<AtomicBool>,
    occupied: Arc<Occupied>,
}

impl Region {
    /// Creates a region. An existing file is never touched, and of a device only one
    /// that holds nothing.
    ///
    /// # Errors
    /// See [`RegionError`]. A file that was created but could not be finished is
    /// removed again.
    pub fn create(
        backing: &Backing,
        geometry: Geometry,
        identity: &Identity<'_>,
    ) -> Result<Region, RegionError> {
        Region::create_on(&Os, backing, geometry, identity, &mut |_, _| {})
    }

    fn create_on(
        on: &dyn System,
        backing: &Backing,
        geometry: Geometry,
        identity: &Identity<'_>,
        progress: Progress<'_>,
    ) -> Result<Region, RegionError> {
        let name = match backing {
            Backing::Memory(_) => format!("memory of {}", identity.guest),
            Backing::File(path) => path.display().to_string(),
            Backing::Segment(_) => segment::name(identity.guest),
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
                let lock = match empty_device(on, path, &name, size)? {
                    Some(device) => device,
                    None => {
                        let lock = open_file(path, &name, true)?;
                        unfinished = Some(Unfinished { path });
                        lock_file(&lock, &name)?;
                        lock.set_len(size).map_err(|e| system(&name, "resize", e))?;
                        sys::reserve(lock.as_fd(), size)
                            .map_err(|e| reserve_error(&name, size, e))?;
                        lock
                    }
                };
                let file = open_same(path, &name, &lock)?;
                (file.into(), Some(Lock(lock)))
            }
            Backing::Segment(segment) => (segment.file(&name, size)?.into(), None),
        };
        let file: File = file.into();
        let shape = match backing {
            Backing::Segment(segment) => *segment.shape(),
            Backing::Memory(_) | Backing::File(_) => examine(on, &name, &file)?,
        };
        let head = map_head(&name, file.as_fd(), &shape, true)?;
        let guest = map_guest(&name, file.as_fd(), &shape, &geometry, true)?;
        let domain =
            Domain::of(on, file.as_fd(), &shape).map_err(|e| system(&name, "examine", e))?;
        if shape.is_device || matches!(backing, Backing::Segment(_)) {
            // Its first bytes were zeros, but behind them may be what is left of others.
            clear(&guest, progress).map_err(|e| system(&name, "write to", e))?;
        }
        let dax = devdax::block(identity.uuid, size, HOST_HEAD_LEN);
        let written = head.write_at(devdax::BLOCK_OFFSET as usize, &dax);
        debug_assert!(written, "the head is longer");
        superblock::store(&mut block, &head, &guest).map_err(|e| system(&name, "write to", e))?;
        if let Some(unfinished) = unfinished {
            std::mem::forget(unfinished);
        }
        Ok(Region {
            name,
            file: file.into(),
            _lock: lock,
            shape,
            head,
            guest: Arc::new(guest),
            block,
            geometry,
            domain,
            mirror: None,
            suspect: Arc::default(),
            occupied: occupied(&geometry),
        })
    }

    /// Opens the region in the file at `path`, marks it as open and repairs a
    /// damaged copy of its superblock.
    ///
    /// # Errors
    /// See [`RegionError`]; nothing is written then.
    pub fn open(path: &Path, expect: &Expect<'_>) -> Result<(Region, Opened), RegionError> {
        let (mut region, opened) = Region::load(&Os, path, expect)?;
        region.mark(STATE_OPEN)?;
        Ok((region, opened))
    }

    /// Opens the region in the file at `path`, and writes nothing.
    fn load(
        on: &dyn System,
        path: &Path,
        expect: &Expect<'_>,
    ) -> Result<(Region, Opened), RegionError> {
        let name = path.display().to_string();
        let lock = open_file(path, &name, false)?;
        examine(on, &name, &lock)?;
        lock_file(&lock, &name)?;
        // Asked again: before the lock was ours, its creator may have been at work.
        let shape = examine(on, &name, &lock)?;
        if shape.len < SIZE_MIN {
            return Err(RegionError::Size { region: name, have: shape.len, want: SIZE_MIN });
        }
        let file = open_same(path, &name, &lock)?;
        let head = map_head(&name, file.as_fd(), &shape, true)?;
        let found = match superblock::load(&head) {
            Ok(found) => found,
            // A new device is not a fault, and a guest's not a damage.
            Err(SuperblockError::Absent) if shape.is_device => {
                return Err(match is_empty(&name, &lock, &shape)? {
                    true => RegionError::NotFound { region: name },
                    false if superblock::load_given(&head).is_ok() => {
                        RegionError::OfGuest { region: name }
                    }
                    false => RegionError::Occupied { region: name },
                });
            }
            Err(error) => return Err(RegionError::Superblock { region: name, error }),
        };
        let (mut region, opened) =
            Region::found(on, name, (file, Some(Lock(lock))), shape, (head, found), expect)?;
        // A mirror that is to be served in its region's place.
        let guest = &region.guest;
        let replayed = mirror::replay(path, &region.block, |offset, bytes| {
            let inside = guest.write_at(offset as usize, bytes);
            debug_assert!(inside, "the journal judges what it gives");
            Ok(())
        })?;
        if replayed.number > 0 {
            guest.sync().map_err(|e| system(&region.name, "write to", e))?;
        }
        region.block.journal_area = 0.into();
        Ok((region, opened))
    }

    /// The region whose superblock was found, once it is what is expected.
    fn found(
        on: &dyn System,
        name: String,
        (file, lock): (File, Option<Lock>),
        shape: Shape,
        (head, found): (Mapping, Found),
        expect: &Expect<'_>,
    ) -> Result<(Region, Opened), RegionError> {
        check_len(&name, &found, &shape)?;
        check(&name, &found, found.geometry.file_len(), expect)?;
        let Found { block, geometry, damaged } = found;
        let guest = map_guest(&name, file.as_fd(), &shape, &geometry, true)?;
        let domain =
            Domain::of(on, file.as_fd(), &shape).map_err(|e| system(&name, "examine", e))?;
        let clean = block.state.get() == STATE_CLEAN;
        let region = Region {
            name,
            file: file.into(),
            _lock: lock,
            shape,
            head,
            guest: Arc::new(guest),
            block,
            geometry,
            domain,
            mirror: None,
            suspect: Arc::default(),
            occupied: occupied(&geometry),
        };
        Ok((region, Opened { clean, repaired: damaged }))
    }

    /// Writes the superblock anew: to the region first, then to its mirror, so that
    /// the one which is ahead holds everything that the other does.
    fn mark(&mut self, state: u32) -> Result<(), RegionError> {
        self.block.state = state.into();
        self.block.sequence = self.block.sequence.get().wrapping_add(1).into();
        self.block.boot = sys::boot_id().unwrap_or_default();
        superblock::store(&mut self.block, &self.head, &self.guest)
            .map_err(|e| system(&self.name, "write to", e))?;
        match &self.mirror {
            Some(mirror) => mirror.store(&self.block),
            None => Ok(()),
        }
    }

    /// Marks the region as closed in good order, and lets go of it.
    ///
    /// # Errors
    /// [`RegionError::System`] if that could not be written.
    pub fn close(mut self) -> Result<(), RegionError> {
        // What the mark promises reaches storage before the mark does.
        let suspect = self.suspect.load(Ordering::Relaxed);
        if let Some(mirror) = &self.mirror {
            mirror.update(&self.guest, suspect)?;
        } else if suspect {
            self.guest.touch();
        }
        self.guest.sync().map_err(|e| system(&self.name, "write to", e))?;
        self.mark(STATE_CLEAN)
    }

    /// Repairs what an opener does not look at: the block that shows the region to
    /// a guest, and claims on buffers that do not exist. Names what it repaired.
    pub fn repair(&mut self) -> Vec<&'static str> {
        let mut repaired = Vec::new();
        let (at, sound) = (devdax::BLOCK_OFFSET as usize, devdax::is_sound);
        let mut dax = [0; devdax::BLOCK_LEN];
        if !(self.head.read_at(at, &mut dax) && sound(&dax)) {
            let dax = devdax::block(self.uuid(), self.geometry.file_len(), HOST_HEAD_LEN);
            let written = self.head.write_at(at, &dax);
            debug_assert!(written, "the head is longer");
            repaired.push("DAX block");
        }
        if claims::clear_stray(&self.guest, &self.geometry) {
            repaired.push("claim table");
        }
        repaired
    }

    /// Writes zeros to all of a new region's file, before anybody maps it. What is
    /// only reserved becomes the file's with the first write, which a sync then
    /// has to put on record: that makes it many times slower.
    fn settle(&self, progress: Progress<'_>) -> Result<(), RegionError> {
        let file = self.file.try_clone().map_err(|e| system(&self.name, "duplicate", e))?;
        let file = File::from(file);
        let zeros = vec![0; CHUNK];
        let total = self.geometry.file_len();
        // The first page of what the guest maps has its superblock.
        let mut at = HOST_HEAD_LEN + PAGE;
        while at < total {
            let len = (total - at).min(zeros.len() as u64);
            file.write_all_at(&zeros[..len as usize], at)
                .map_err(|e| system(&self.name, "write to", e))?;
            at += len;
            progress(at, total);
        }
        file.sync_data().map_err(|e| system(&self.name, "sync", e))
    }

    /// Whether it is a device, which is neither made nor removed.
    fn is_device(&self) -> bool {
        self.shape.is_device
    }

    /// What makes the region's bytes durable.
    pub fn domain(&self) -> Domain {
        if self.mirror.is_some() { Domain::Mirror } else { self.domain }
    }

    /// The one that makes ranges of the region durable, where that is the host's
    /// business: with [`Domain::Mirror`]. A region needs one at a time.
    ///
    /// # Errors
    /// [`RegionError::System`] if a descriptor cannot be had.
    pub fn flusher(&self) -> Result<Option<Flusher>, RegionError> {
        let mapping = Arc::clone(&self.guest);
        let suspect = Arc::clone(&self.suspect);
        if let Some(mirror) = &self.mirror {
            let occupied = Arc::clone(&self.occupied);
            return mirror.flusher(mapping, &self.block, suspect, occupied);
        }
        if self.domain != Domain::Mirror {
            return Ok(None);
        }
        let file = self.file.try_clone().map_err(|e| system(&self.name, "duplicate", e))?;
        Ok(Some(Flusher::own_file(mapping, Box::new(File::from(file)), suspect)))
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
    /// claimed is handed out to nobody, and everything else is free. There is one at
    /// a time: what is free in it need not outlive a loss of power.
    pub fn pool(&self) -> Pool {
        let occupied = self.mirror.is_some().then(|| Arc::clone(&self.occupied));
        Pool::with_claims(self.buffers(), &self.guest, self.geometry.claims(), occupied)
            .expect("a geometry holds only a claim table that lies in the mapping")
    }
}

fn occupied(geometry: &Geometry) -> Arc<Occupied> {
    Arc::new(Occupied::new(geometry.buffers(), geometry.buffer_size()))
}

/// Opens and locks the device at `path` for a new region of `size` bytes; `None` if
/// there is no device. That of a file that is there is told by who makes it.
fn empty_device(
    on: &dyn System,
    path: &Path,
    name: &str,
    size: u64,
) -> Result<Option<File>, RegionError> {
    let file = match open_file(path, name, false) {
        Err(error @ RegionError::NoDriver { .. }) => return Err(error),
        Err(_) => return Ok(None),
        Ok(file) => file,
    };
    let shape = match examine(on, name, &file) {
        Err(RegionError::NotAFile { .. }) => return Ok(None),
        other => other?,
    };
    if !shape.is_device {
        return Ok(None);
    }
    lock_file(&file, name)?;
    if shape.len < size {
        return Err(RegionError::DeviceSize {
            region: name.to_owned(),
            have: shape.len,
            want: size,
        });
    }
    match is_empty(name, &file, &shape)? {
        true => Ok(Some(file)),
        false => Err(RegionError::Occupied { region: name.to_owned() }),
    }
}

/// Writes zeros to all of it.
fn clear(guest: &Mapping, progress: Progress<'_>) -> std::io::Result<()> {
    let zeros = vec![0; CHUNK];
    for at in (0..guest.len()).step_by(CHUNK) {
        let len = CHUNK.min(guest.len() - at);
        let written = guest.write_at(at, &zeros[..len]);
        debug_assert!(written, "the range lies in the mapping");
        progress((at + len) as u64, guest.len() as u64);
    }
    guest.sync()
}

#[cfg(test)]
mod device_tests;
