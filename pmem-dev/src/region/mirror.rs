//! The mirror of a region: a file on a disk that is itself a region's file, so it
//! is created, judged and shown like one. Nobody maps it; the flusher writes to
//! it what is to be durable, and its superblock says how it was left.
//!
//! Beside it lies its [journal](crate::journal), with `.journal` added to its name.
//! A mirror that was left open is whole only together with its journal; one that
//! was closed in good order needs none.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use paste_abi::superblock::{HOST_HEAD_LEN, STATE_CLEAN, Superblock};

use super::error::{RegionError, reserve_error, system};
use super::file::{Unfinished, check, lock_file, open_file};
use super::{Expect, Region};
use crate::devdax;
use crate::flusher::Flusher;
use crate::journal::{self, Journal, Last};
use crate::layout::SIZE_MIN;
use crate::occupied::Occupied;
use crate::superblock::{self, Found};
use crate::sys::{self, Mapping};
use crate::uuid::Uuid;

/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;
/// Bytes that are compared, and written if they differ.
const BLOCK: usize = 4096;

/// Hears how many bytes of how many are copied.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// A mirror, locked by this process, and its journal with it.
#[derive(Debug)]
pub(super) struct Mirror {
    path: PathBuf,
    name: String,
    file: File,
    journal: Option<OpenJournal>,
}

#[derive(Debug)]
struct OpenJournal {
    file: File,
    area: u64,
}

/// Where the journal of the mirror at `path` lies.
pub(super) fn journal_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".journal");
    name.into()
}

/// Gives what the journal of the file at `path` has for it beyond what is in it,
/// with offsets into what a guest maps; nothing for a file that needs no journal.
/// Returns which record was the last.
pub(super) fn replay(
    path: &Path,
    block: &Superblock,
    apply: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> Result<Last, RegionError> {
    if block.journal_area.get() == 0 || block.state.get() == STATE_CLEAN {
        return Ok(Last::default());
    }
    let journal = journal_path(path);
    let name = journal.display().to_string();
    let missing =
        || RegionError::Journal { region: path.display().to_string(), journal: name.clone() };
    let file = File::open(&journal).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => missing(),
        _ => system(&name, "open", error),
    })?;
    let area = journal::recognize(&file, block.uuid).map_err(|e| system(&name, "read", e))?;
    if area != Some(block.journal_area.get()) {
        return Err(missing());
    }
    let (sequence, len) = (block.sequence.get(), block.guest_len.get());
    journal::replay(&file, block.journal_area.get(), sequence, len, apply)
        .map_err(|e| system(&name, "read", e))
}

/// Opens a journal's file a second time, past the system's cache: nobody reads what is
/// written to it, but after a crash. `None` where that cannot be.
fn open_direct(path: &Path, journal: &File) -> Option<File> {
    let file =
        File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).ok()?;
    let identity = |file: &File| file.metadata().map(|m| (m.dev(), m.ino())).ok();
    // A disk with larger blocks than records have takes none of them.
    let mut block = vec![0; 2 * BLOCK];
    let start = block.as_ptr().align_offset(BLOCK).min(BLOCK);
    file.read_exact_at(&mut block[start..start + BLOCK], 0).ok()?;
    (identity(&file)? == identity(journal)?).then_some(file)
}

/// A mirror that was there already.
#[derive(Debug)]
pub(super) struct OldMirror {
    pub(super) mirror: Mirror,
    pub(super) found: Found,
}

impl OldMirror {
    /// Whether it never was a whole copy: its creator died.
    pub(super) fn is_unfinished(&self) -> bool {
        self.found.block.sequence.get() == 0
    }

    /// Whether it was closed in good order.
    pub(super) fn is_clean(&self) -> bool {
        self.found.block.state.get() == STATE_CLEAN
    }
}

impl Mirror {
    /// Opens the mirror at `path`; `None` if there is no such file. Nothing is
    /// written.
    pub(super) fn open(path: &Path, expect: &Expect<'_>) -> Result<Option<OldMirror>, RegionError> {
        let name = path.display().to_string();
        let file = match open_file(path, &name, false) {
            Err(RegionError::NotFound { .. }) => return Ok(None),
            other => other?,
        };
        let metadata = file.metadata().map_err(|e| system(&name, "examine", e))?;
        if !metadata.file_type().is_file() {
            return Err(RegionError::NotAFile { region: name });
        }
        lock_file(&file, &name)?;
        let have = file.metadata().map_err(|e| system(&name, "examine", e))?.len();
        if have < SIZE_MIN {
            return Err(RegionError::Size { region: name, have, want: SIZE_MIN });
        }
        let found = superblock::load_file(&file)
            .map_err(|e| system(&name, "read", e))?
            .map_err(|error| RegionError::Superblock { region: name.clone(), error })?;
        check(&name, &found, have, expect)?;
        let mirror = Mirror { path: path.to_owned(), name, file, journal: None };
        Ok(Some(OldMirror { mirror, found }))
    }

    /// Creates a mirror for `region`, which holds nothing yet and says so: its
    /// superblock has the sequence 0, which no region has.
    pub(super) fn create(path: &Path, region: &Region) -> Result<Mirror, RegionError> {
        let name = path.display().to_string();
        let size = region.geometry.file_len();
        let file = open_file(path, &name, true)?;
        let unfinished = Unfinished { path };
        lock_file(&file, &name)?;
        file.set_len(size).map_err(|e| system(&name, "resize", e))?;
        sys::reserve(std::os::fd::AsFd::as_fd(&file), size)
            .map_err(|e| reserve_error(&name, size, e))?;
        let dax = devdax::block(Uuid(region.block.uuid), size, HOST_HEAD_LEN);
        file.write_all_at(&dax, devdax::BLOCK_OFFSET).map_err(|e| system(&name, "write to", e))?;
        let mirror = Mirror { path: path.to_owned(), name, file, journal: None };
        let mut block = region.block;
        block.sequence = 0.into();
        mirror.store(&block)?;
        std::mem::forget(unfinished);
        Ok(mirror)
    }

    /// Where its file lies.
    pub(super) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The file's name in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Writes what the journal has to the mirror, whose superblock this is, so that
    /// it is whole by itself. Returns which record was the last.
    pub(super) fn settle(&self, block: &Superblock) -> Result<Last, RegionError> {
        let last = replay(&self.path, block, |offset, bytes| {
            self.file.write_all_at(bytes, HOST_HEAD_LEN + offset)
        })?;
        if last.number > 0 {
            self.sync()?;
        }
        Ok(last)
    }

    /// Opens the journal, or makes it, for a mirror that is whole by itself. Gives
    /// the journal's path if it was made.
    pub(super) fn prepare(&mut self, block: &Superblock) -> Result<Option<PathBuf>, RegionError> {
        let path = journal_path(&self.path);
        let name = path.display().to_string();
        let written = |e| system(&name, "write to", e);
        let area = journal::area_len(block.guest_len.get());
        let old = match open_file(&path, &name, false) {
            Err(RegionError::NotFound { .. }) => None,
            other => Some(other?),
        };
        let known = match &old {
            Some(file) => {
                journal::recognize(file, block.uuid).map_err(|e| system(&name, "read", e))?
            }
            None => None,
        };
        if known != Some(area) {
            self.disown_journal()?;
        }
        let made = old.is_none();
        let file = old.map_or_else(|| open_file(&path, &name, true), Ok)?;
        let unfinished = made.then(|| Unfinished { path: &path });
        if known != Some(area) {
            let len = journal::file_len(area);
            file.set_len(len).map_err(|e| system(&name, "resize", e))?;
            sys::reserve(std::os::fd::AsFd::as_fd(&file), len)
                .map_err(|e| reserve_error(&name, len, e))?;
            // Where there were holes, a sync would have to put blocks on record.
            let zeros = vec![0; CHUNK];
            for at in (0..len).step_by(CHUNK) {
                let zeros = &zeros[..CHUNK.min((len - at) as usize)];
                file.write_all_at(zeros, at).map_err(written)?;
            }
            file.write_all_at(&journal::header(block.uuid, area), 0).map_err(written)?;
            file.sync_all().map_err(|e| system(&name, "sync", e))?;
        }
        self.journal = Some(OpenJournal { file, area });
        std::mem::forget(unfinished);
        Ok(made.then_some(path))
    }

    /// Has the superblock of a mirror that is whole by itself say so: whatever ends the
    /// making of a journal, nobody asks for the one before.
    fn disown_journal(&self) -> Result<(), RegionError> {
        let mut block = superblock::load_file(&self.file)
            .map_err(|e| system(&self.name, "read", e))?
            .map_err(|error| RegionError::Superblock { region: self.name.clone(), error })?
            .block;
        if block.journal_area.get() == 0 {
            return Ok(());
        }
        block.journal_area = 0.into();
        superblock::seal(&mut block);
        superblock::store_file(&block, &self.file).map_err(|e| system(&self.name, "write to", e))
    }

    /// The flusher for what `guest` maps, while `block` is the superblock. The lock
    /// stays here.
    pub(super) fn flusher(
        &self,
        guest: Arc<Mapping>,
        block: &Superblock,
        suspect: Arc<AtomicBool>,
        occupied: Arc<Occupied>,
    ) -> Result<Option<Flusher>, RegionError> {
        let Some(OpenJournal { file, area }) = &self.journal else { return Ok(None) };
        let duplicate =
            |file: &File| file.try_clone().map_err(|e| system(&self.name, "duplicate", e));
        // One before this one may have left records.
        let last = self.settle(&self.marked(block))?;
        let (sequence, len) = (block.sequence.get(), block.guest_len.get());
        let storage =
            open_direct(&journal_path(&self.path), file).map_or_else(|| duplicate(file), Ok)?;
        let mut journal = Journal::new(Box::new(storage), sequence, *area, last, len, occupied);
        if last.number > 0 {
            journal.forget().map_err(|e| system(&self.name, "write the journal of", e))?;
        }
        let storage = Box::new(duplicate(&self.file)?);
        Ok(Some(Flusher::mirror(guest, storage, HOST_HEAD_LEN, journal, suspect)))
    }

    /// The region's superblock as the mirror has it.
    fn marked(&self, block: &Superblock) -> Superblock {
        let mut block = *block;
        block.journal_area = self.journal.as_ref().map_or(0, |journal| journal.area).into();
        superblock::seal(&mut block);
        block
    }

    /// Writes the region's superblock.
    pub(super) fn store(&self, block: &Superblock) -> Result<(), RegionError> {
        superblock::store_file(&self.marked(block), &self.file)
            .map_err(|e| system(&self.name, "write to", e))
    }

    /// Writes all that the guest maps to the mirror, whatever that holds. Also
    /// where there were holes: a sync of blocks that exist is faster.
    pub(super) fn rewrite(
        &self,
        guest: &Mapping,
        progress: Progress<'_>,
    ) -> Result<(), RegionError> {
        let mut chunk = vec![0; CHUNK];
        let total = guest.len();
        for offset in (0..total).step_by(CHUNK) {
            let chunk = &mut chunk[..CHUNK.min(total - offset)];
            read(guest, offset, chunk);
            self.write(offset, chunk)?;
            progress((offset + chunk.len()) as u64, total as u64);
        }
        self.sync()
    }

    /// Writes to the mirror what differs from what the guest maps; everything if
    /// its storage is suspected to hold something else than it shows.
    pub(super) fn update(&self, guest: &Mapping, suspect: bool) -> Result<(), RegionError> {
        if suspect {
            return self.rewrite(guest, &mut |_, _| {});
        }
        let (mut new, mut old) = (vec![0; CHUNK], vec![0; CHUNK]);
        let total = guest.len();
        for offset in (0..total).step_by(CHUNK) {
            let len = CHUNK.min(total - offset);
            read(guest, offset, &mut new[..len]);
            self.file
                .read_exact_at(&mut old[..len], HOST_HEAD_LEN + offset as u64)
                .map_err(|e| system(&self.name, "read", e))?;
            if new[..len] == old[..len] {
                continue;
            }
            for at in (0..len).step_by(BLOCK) {
                let block = at..(at + BLOCK).min(len);
                if new[block.clone()] != old[block.clone()] {
                    self.write(offset + at, &new[block])?;
                }
            }
        }
        self.sync()
    }

    /// Writes the mirror's bytes over all that the guest maps.
    pub(super) fn restore(
        &self,
        guest: &Mapping,
        progress: Progress<'_>,
    ) -> Result<(), RegionError> {
        let mut chunk = vec![0; CHUNK];
        let total = guest.len();
        for offset in (0..total).step_by(CHUNK) {
            let chunk = &mut chunk[..CHUNK.min(total - offset)];
            self.file
                .read_exact_at(chunk, HOST_HEAD_LEN + offset as u64)
                .map_err(|e| system(&self.name, "read", e))?;
            let written = guest.write_at(offset, chunk);
            debug_assert!(written, "the range lies in the mapping");
            progress((offset + chunk.len()) as u64, total as u64);
        }
        Ok(())
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<(), RegionError> {
        self.file
            .write_all_at(data, HOST_HEAD_LEN + offset as u64)
            .map_err(|e| system(&self.name, "write to", e))
    }

    fn sync(&self) -> Result<(), RegionError> {
        self.file.sync_data().map_err(|e| system(&self.name, "sync", e))
    }
}

fn read(guest: &Mapping, offset: usize, out: &mut [u8]) {
    let read = guest.read_words_at(offset, out);
    debug_assert!(read, "the range lies in the mapping");
}
