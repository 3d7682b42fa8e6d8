//! The host's side of a flush: makes ranges of a region durable, many at once.
//!
//! With a mirror the ranges are copied out of the region into a record of the
//! mirror's [journal](crate::journal), or several, which are written and synced at
//! once. What is too much for it is written to the mirror itself: widened to blocks,
//! in order, and synced. A large range, as a FLUSH of all of a device is one, is first
//! compared with the mirror, and only the blocks that differ are written. Without a
//! mirror the region's own file is synced: the system knows which of its pages were
//! stored to.
//!
//! # When the disk fails
//!
//! A write that fails is tried again with the next commit: nothing was promised
//! of it. A sync that fails is worse. The system may have marked the pages as
//! clean, so the next sync would succeed without writing them ("fsync-gate").
//! From then on the mirror is *suspect*: no commit succeeds before every byte of
//! the region has been written and synced anew. What the guest asked for is not
//! forgotten meanwhile; it is answered late, or never.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::dirty::{BLOCK, Dirty};
use crate::journal::{Cut, Journal, Next, WriteFailed};
use crate::ranges::{FlushRange, Ranges};
use crate::storage::Storage;
use crate::sys::Mapping;

/// Ranges that are kept apart in one commit.
const RANGES: usize = 4096;
/// Bytes that one write carries at most.
const CHUNK: usize = 256 << 10;
/// Ranges from here on are compared with the mirror before they are written to it.
const COMPARED_MIN: u64 = 64 << 10;
/// Between a failure and the next attempt.
const RETRY_NS: u64 = 100_000_000;

/// Why nothing was made durable. What was asked for is kept, and part of the next
/// attempt.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// The file took no data.
    #[error("{len} bytes at {at:#x} cannot be written: {source}; {}", advice(source))]
    Write {
        /// Where in the file.
        at: u64,
        /// Bytes.
        len: usize,
        /// What the system said.
        source: io::Error,
    },
    /// The file's storage failed.
    #[error(
        "cannot be synced: {source}; all of it will be written anew before anything is \
         acknowledged: see to its disk"
    )]
    Sync {
        /// What the system said.
        source: io::Error,
    },
    /// It is too early for another attempt.
    #[error("has failed, and the next attempt is not due yet")]
    NotDue,
}

/// What to do about a file that takes no data.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room on its file system",
        io::ErrorKind::ReadOnlyFilesystem => {
            "see why its file system is read-only, and mount it writable"
        }
        io::ErrorKind::FileTooLarge => "raise the limit of the size of files",
        _ => "see to its disk",
    }
}

/// A range that is not in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bytes {offset}+{len} are not in the region")]
pub struct RangeOutside {
    /// From the start of the guest's mapping.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// What a flusher has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FlushCounters {
    /// Commits that succeeded.
    pub commits: u64,
    /// Ranges that were asked for.
    pub ranges: u64,
    /// Bytes that were asked for.
    pub asked_bytes: u64,
    /// Bytes that were written to the mirror, beyond what was asked for too.
    pub written_bytes: u64,
    /// Of those, bytes that went to the mirror's journal.
    pub journal_bytes: u64,
    /// Bytes that were compared with the mirror, and not written as they were the same.
    pub same_bytes: u64,
    /// Writes to the mirror.
    pub writes: u64,
    /// Syncs of the mirror, of its journal, or of the region's own file.
    pub syncs: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Times that everything was written anew after a failed sync.
    pub rewrites: u64,
}

impl FlushCounters {
    /// Every counter with its name.
    pub fn each(&self, mut visit: impl FnMut(&'static str, u64)) {
        let FlushCounters { commits, ranges, asked_bytes, written_bytes, .. } = *self;
        for (name, value) in [
            ("commits", commits),
            ("ranges", ranges),
            ("asked_bytes", asked_bytes),
            ("written_bytes", written_bytes),
            ("journal_bytes", self.journal_bytes),
            ("same_bytes", self.same_bytes),
            ("writes", self.writes),
            ("syncs", self.syncs),
            ("failures", self.failures),
            ("rewrites", self.rewrites),
        ] {
            visit(name, value);
        }
    }
}

/// Where the bytes go.
enum Target {
    /// To the mirror, in which the guest's mapping starts at this offset, and to its
    /// journal before.
    Mirror(Box<Mirrored>),
    /// They are in the region's own file.
    Own(Box<dyn Storage>),
}

struct Mirrored {
    storage: Box<dyn Storage>,
    start: u64,
    journal: Journal,
    /// What a commit writes to the mirror itself.
    place: Dirty,
    /// What is written is first copied here: one and the same bytes are then
    /// written and synced, whatever the guest does meanwhile.
    chunk: Box<[u8]>,
    /// What the mirror has in the place of it.
    old: Box<[u8]>,
}

/// Makes ranges of one region durable.
pub struct Flusher {
    mapping: Arc<Mapping>,
    target: Target,
    ranges: Ranges,
    suspect: Arc<AtomicBool>,
    retry_at_ns: u64,
    counters: FlushCounters,
}

impl Flusher {
    /// Writes to a mirror, in which what `mapping` shows starts at `start`, and to
    /// its journal. `suspect` is what [`Flusher::is_suspect`] says.
    pub(crate) fn mirror(
        mapping: Arc<Mapping>,
        storage: Box<dyn Storage>,
        start: u64,
        journal: Journal,
        suspect: Arc<AtomicBool>,
    ) -> Flusher {
        let place = Dirty::new(mapping.len() as u64);
        let [chunk, old] = [(); 2].map(|()| vec![0; CHUNK].into_boxed_slice());
        let mirrored = Mirrored { storage, start, journal, place, chunk, old };
        let target = Target::Mirror(Box::new(mirrored));
        Flusher::new(mapping, target, suspect)
    }

    /// Syncs the file that `mapping` is a mapping of.
    pub(crate) fn own_file(
        mapping: Arc<Mapping>,
        storage: Box<dyn Storage>,
        suspect: Arc<AtomicBool>,
    ) -> Flusher {
        Flusher::new(mapping, Target::Own(storage), suspect)
    }

    fn new(mapping: Arc<Mapping>, target: Target, suspect: Arc<AtomicBool>) -> Flusher {
        Flusher {
            mapping,
            target,
            ranges: Ranges::new(RANGES),
            suspect,
            retry_at_ns: 0,
            counters: FlushCounters::default(),
        }
    }

    /// Adds a range to the next commit. It may be any, as from a guest.
    ///
    /// # Errors
    /// [`RangeOutside`], and nothing is added.
    #[inline]
    pub fn add(&mut self, range: FlushRange) -> Result<(), RangeOutside> {
        let FlushRange { offset, len } = range;
        if offset.checked_add(len).is_none_or(|end| end > self.mapping.len() as u64) {
            return Err(RangeOutside { offset, len });
        }
        self.counters.ranges += 1;
        self.counters.asked_bytes += len;
        self.ranges.push(range);
        Ok(())
    }

    /// Whether something was added that is not durable yet.
    #[inline]
    pub fn is_pending(&self) -> bool {
        !self.ranges.is_empty()
    }

    /// Whether the file has lost what was written to it, and is to be written
    /// anew.
    pub fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// What was done so far.
    pub fn counters(&self) -> FlushCounters {
        self.counters
    }

    /// Makes everything durable that was added. When it succeeds, and only then,
    /// this may be told to anybody. After a failure it does nothing until the
    /// next attempt is due, a tenth of a second by `now_ns`, any clock that never
    /// goes back.
    ///
    /// # Errors
    /// [`FlushError`]; what was added is kept for the next attempt.
    pub fn commit(&mut self, now_ns: u64) -> Result<(), FlushError> {
        if self.ranges.is_empty() && !self.is_suspect() {
            return Ok(());
        }
        if now_ns < self.retry_at_ns {
            return Err(FlushError::NotDue);
        }
        match self.attempt() {
            Ok(()) => {
                self.ranges.clear();
                self.counters.commits += 1;
                Ok(())
            }
            Err(error) => {
                if matches!(error, FlushError::Sync { .. }) {
                    self.suspect.store(true, Ordering::Relaxed);
                }
                self.counters.failures += 1;
                self.retry_at_ns = now_ns.saturating_add(RETRY_NS);
                Err(error)
            }
        }
    }

    /// Does as much of a checkpoint as is due, if one is under way. Called when nobody
    /// waits for a commit.
    pub fn tidy(&mut self) {
        let Flusher { mapping, target: Target::Mirror(mirrored), counters, .. } = self else {
            return;
        };
        // What fails is tried again by a commit that has no room, which tells of it;
        // but after a failed sync the mirror is written anew.
        if let Err(FlushError::Sync { .. }) = mirrored.checkpoint(mapping, counters, false) {
            self.suspect.store(true, Ordering::Relaxed);
            self.counters.failures += 1;
        }
    }

    fn attempt(&mut self) -> Result<(), FlushError> {
        let anew = self.is_suspect();
        let Flusher { mapping, ranges, counters, .. } = self;
        match &mut self.target {
            Target::Mirror(mirrored) => {
                let ranges = ranges.as_slice();
                if !anew && mirrored.journal.takes(ranges) {
                    return mirrored.append(mapping, ranges, counters);
                }
                match anew {
                    true => mirrored.place_all(mapping),
                    false => mirrored.place(mapping, ranges, counters),
                }
                mirrored.write_placed(mapping, counters)?;
            }
            Target::Own(storage) => {
                if anew {
                    mapping.touch();
                }
                sync(&mut **storage, counters)?;
            }
        }
        if anew {
            self.suspect.store(false, Ordering::Relaxed);
            self.counters.rewrites += 1;
        }
        Ok(())
    }
}

fn sync(storage: &mut dyn Storage, counters: &mut FlushCounters) -> Result<(), FlushError> {
    counters.syncs += 1;
    storage.sync().map_err(|source| FlushError::Sync { source })
}

impl Mirrored {
    /// Makes ranges durable by records in the journal.
    fn append(
        &mut self,
        mapping: &Mapping,
        ranges: &[FlushRange],
        counters: &mut FlushCounters,
    ) -> Result<(), FlushError> {
        let mut cut = Cut::new(ranges);
        while let Some(len) = self.journal.next_record(&mut cut) {
            if !self.journal.has_room(len) {
                self.sync_journal(counters)?;
                self.checkpoint(mapping, counters, true)?;
                self.journal.turn();
            }
            let len = self.journal.append(mapping)?;
            counters.writes += 1;
            counters.written_bytes += len;
            counters.journal_bytes += len;
        }
        self.sync_journal(counters)
    }

    fn sync_journal(&mut self, counters: &mut FlushCounters) -> Result<(), FlushError> {
        let synced = self.journal.sync().map_err(|source| FlushError::Sync { source })?;
        counters.syncs += u64::from(synced);
        Ok(())
    }

    /// Goes on with the checkpoint that is under way, if any: as far as is due, or to
    /// its end.
    fn checkpoint(
        &mut self,
        mapping: &Mapping,
        counters: &mut FlushCounters,
        whole: bool,
    ) -> Result<(), FlushError> {
        let Mirrored { storage, start, journal, chunk, .. } = self;
        loop {
            match journal.checkpoint_next(whole, CHUNK as u64) {
                Next::Nothing => return Ok(()),
                Next::Write(run) => {
                    write(&mut **storage, *start, mapping, chunk, run, counters)?;
                    journal.checkpoint_wrote(run);
                }
                Next::Sync => {
                    sync(&mut **storage, counters)?;
                    journal.checkpointed();
                    return Ok(());
                }
            }
        }
    }

    /// All that the mirror is a mirror of is to be written to it.
    fn place_all(&mut self, mapping: &Mapping) {
        self.place.clear();
        self.place.mark(FlushRange { offset: 0, len: mapping.len() as u64 });
    }

    /// Finds what is to be written to the mirror so that it has these ranges, and needs
    /// no record.
    fn place(&mut self, mapping: &Mapping, ranges: &[FlushRange], counters: &mut FlushCounters) {
        self.place.clear();
        self.journal.add_dirty(&mut self.place);
        for &range in ranges {
            match range.len < COMPARED_MIN {
                true => self.place.mark(range),
                false => self.compare(mapping, range, counters),
            }
        }
    }

    /// Places the blocks of a range that differ from the mirror's. The others are what was
    /// written there last, which the sync to come covers.
    fn compare(&mut self, mapping: &Mapping, range: FlushRange, counters: &mut FlushCounters) {
        let Mirrored { storage, start, place, chunk, old, .. } = self;
        let mut offset = range.offset - range.offset % BLOCK;
        while offset < range.end() {
            let len = CHUNK.min((mapping.len() as u64 - offset) as usize);
            let (new, old) = (&mut chunk[..len], &mut old[..len]);
            let read = mapping.read_words_at(offset as usize, new)
                && storage.read_at(old, *start + offset).is_ok();
            let block = BLOCK as usize;
            for (number, (new, old)) in new.chunks(block).zip(old.chunks(block)).enumerate() {
                let at = offset + number as u64 * BLOCK;
                if at >= range.end() {
                    break;
                }
                if read && new == old {
                    counters.same_bytes += new.len() as u64;
                } else {
                    place.mark(FlushRange { offset: at, len: new.len() as u64 });
                }
            }
            offset += len as u64;
        }
    }

    /// Writes what was placed to the mirror, which then needs no record.
    fn write_placed(
        &mut self,
        mapping: &Mapping,
        counters: &mut FlushCounters,
    ) -> Result<(), FlushError> {
        let Mirrored { storage, start, journal, place, chunk, .. } = self;
        let (mut from, end) = (0, mapping.len() as u64);
        while let Some(run) = place.next_run(from, end, CHUNK as u64, |_| false) {
            write(&mut **storage, *start, mapping, chunk, run, counters)?;
            from = run.end();
        }
        sync(&mut **storage, counters)?;
        if !journal.is_empty() {
            counters.syncs += 1;
            journal.forget().map_err(|source| FlushError::Sync { source })?;
        }
        Ok(())
    }
}

/// Writes blocks of a mapping, at most as many as `chunk` holds, to a file in which it
/// starts at `start`.
fn write(
    storage: &mut dyn Storage,
    start: u64,
    mapping: &Mapping,
    chunk: &mut [u8],
    run: FlushRange,
    counters: &mut FlushCounters,
) -> Result<(), FlushError> {
    // The last block may reach over the region's end, which is one of pages.
    let len = (run.end().min(mapping.len() as u64) - run.offset) as usize;
    let chunk = &mut chunk[..len];
    let read = mapping.read_words_at(run.offset as usize, chunk);
    debug_assert!(read, "judged when it was added");
    let at = start + run.offset;
    storage.write_at(chunk, at).map_err(|source| FlushError::Write { at, len, source })?;
    storage.begin_sync(at, len as u64);
    counters.writes += 1;
    counters.written_bytes += len as u64;
    Ok(())
}

impl From<WriteFailed> for FlushError {
    fn from(failed: WriteFailed) -> FlushError {
        let WriteFailed { at, len, source } = failed;
        FlushError::Write { at, len, source }
    }
}

impl std::fmt::Debug for Flusher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flusher")
            .field("ranges", &self.ranges.as_slice().len())
            .field("suspect", &self.is_suspect())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
