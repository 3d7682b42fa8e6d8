//! The mirror of a region: a file on a disk that is itself a region's file, so it
//! is created, judged and shown like one. Nobody maps it; the flusher writes to
//! it what is to be durable, and its superblock says how it was left.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use paste_abi::superblock::{HOST_HEAD_LEN, STATE_CLEAN, Superblock};

use super::error::{RegionError, reserve_error, system};
use super::file::{Unfinished, check, lock_file, open_file};
use super::{Expect, Region};
use crate::devdax;
use crate::layout::SIZE_MIN;
use crate::superblock::{self, Found};
use crate::sys::{self, Mapping};
use crate::uuid::Uuid;

/// Bytes that are copied at a time.
const CHUNK: usize = 1 << 20;
/// Bytes that are compared, and written if they differ.
const BLOCK: usize = 4096;

/// Hears how many bytes of how many are copied.
pub type Progress<'a> = &'a mut dyn FnMut(u64, u64);

/// A mirror, locked by this process.
#[derive(Debug)]
pub(super) struct Mirror {
    name: String,
    file: File,
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
        Ok(Some(OldMirror { mirror: Mirror { name, file }, found }))
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
        let mirror = Mirror { name, file };
        let mut block = region.block;
        block.sequence = 0.into();
        superblock::seal(&mut block);
        mirror.store(&block)?;
        std::mem::forget(unfinished);
        Ok(mirror)
    }

    /// The file's name in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The file, for the flusher. The lock is shared and stays here.
    pub(super) fn file(&self) -> Result<File, RegionError> {
        self.file.try_clone().map_err(|e| system(&self.name, "duplicate", e))
    }

    /// Writes the superblock, which is sealed.
    pub(super) fn store(&self, block: &Superblock) -> Result<(), RegionError> {
        superblock::store_file(block, &self.file).map_err(|e| system(&self.name, "write to", e))
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
