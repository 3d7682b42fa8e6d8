//! The host's side of a flush: makes ranges of a region durable, many at once.
//!
//! With a mirror the ranges are copied out of the region into one record of the
//! mirror's [journal](crate::journal), which is written and synced at once. What a
//! record does not take is written to the mirror itself: widened to blocks, in
//! order, and synced. Without a mirror the region's own file is synced: the system
//! knows which of its pages were stored to.
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

use crate::journal::{Journal, WriteFailed};
use crate::ranges::{FlushRange, Ranges};
use crate::storage::Storage;
use crate::sys::Mapping;

/// Ranges that are kept apart in one commit.
const RANGES: usize = 4096;
/// What a file is written in: the pages of the system's cache.
const BLOCK: u64 = 4096;
/// Bytes that one write carries at most.
const CHUNK: usize = 256 << 10;
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
    /// Writes to the mirror.
    pub writes: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Times that everything was written anew after a failed sync.
    pub rewrites: u64,
}

impl FlushCounters {
    /// Every counter with its name.
    pub fn each(&self, mut visit: impl FnMut(&'static str, u64)) {
        let FlushCounters { commits, ranges, asked_bytes, written_bytes, writes, .. } = *self;
        for (name, value) in [
            ("commits", commits),
            ("ranges", ranges),
            ("asked_bytes", asked_bytes),
            ("written_bytes", written_bytes),
            ("writes", writes),
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
    /// What is written is first copied here: one and the same bytes are then
    /// written and synced, whatever the guest does meanwhile.
    chunk: Box<[u8]>,
}

/// Makes ranges of one region durable.
pub struct Flusher {
    mapping: Arc<Mapping>,
    target: Target,
    ranges: Ranges,
    /// The journal has given up what it knew of the mirror to `ranges`: they are to
    /// be written to the mirror itself.
    past_journal: bool,
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
        let chunk = vec![0; CHUNK].into_boxed_slice();
        let target = Target::Mirror(Box::new(Mirrored { storage, start, journal, chunk }));
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
            past_journal: false,
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

    /// Does the work of a checkpoint of about one write, if one is under way. Called
    /// when nobody waits for a commit.
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
        let everything = [FlushRange { offset: 0, len: self.mapping.len() as u64 }];
        match &mut self.target {
            Target::Mirror(mirrored) => {
                let counters = &mut self.counters;
                if !anew && !self.past_journal && mirrored.journal.takes(self.ranges.as_slice()) {
                    return mirrored.append(&self.mapping, self.ranges.as_slice(), counters);
                }
                self.past_journal = true;
                mirrored.journal.take_dirty(&mut self.ranges);
                self.ranges.align(BLOCK);
                let ranges = if anew { &everything } else { self.ranges.as_slice() };
                mirrored.write(&self.mapping, ranges, counters)?;
                sync(&mut *mirrored.storage)?;
                if !mirrored.journal.is_empty() {
                    mirrored.journal.forget().map_err(|source| FlushError::Sync { source })?;
                }
                self.past_journal = false;
            }
            Target::Own(storage) => {
                if anew {
                    self.mapping.touch();
                }
                sync(&mut **storage)?;
            }
        }
        if anew {
            self.suspect.store(false, Ordering::Relaxed);
            self.counters.rewrites += 1;
        }
        Ok(())
    }
}

fn sync(storage: &mut dyn Storage) -> Result<(), FlushError> {
    storage.sync().map_err(|source| FlushError::Sync { source })
}

impl Mirrored {
    /// Makes ranges durable by a record in the journal.
    fn append(
        &mut self,
        mapping: &Mapping,
        ranges: &[FlushRange],
        counters: &mut FlushCounters,
    ) -> Result<(), FlushError> {
        if self.journal.must_checkpoint(ranges) {
            self.checkpoint(mapping, counters, true)?;
        }
        let len = self.journal.append(mapping, ranges)?;
        counters.writes += 1;
        counters.written_bytes += len;
        self.journal.sync().map_err(|source| FlushError::Sync { source })?;
        self.journal.appended(ranges, len);
        Ok(())
    }

    /// Goes on with the checkpoint that is under way, if any: by one write and no
    /// more, or to its end.
    fn checkpoint(
        &mut self,
        mapping: &Mapping,
        counters: &mut FlushCounters,
        whole: bool,
    ) -> Result<(), FlushError> {
        loop {
            let Some(ranges) = self.journal.to_checkpoint(CHUNK as u64) else {
                return Ok(());
            };
            if ranges.is_empty() {
                sync(&mut *self.storage)?;
                self.journal.checkpointed();
                return Ok(());
            }
            let count = ranges.len();
            write(&mut *self.storage, self.start, mapping, &mut self.chunk, ranges, counters)?;
            self.journal.checkpoint_wrote(count);
            if !whole {
                return Ok(());
            }
        }
    }

    /// Writes ranges, which are blocks, to the mirror.
    fn write(
        &mut self,
        mapping: &Mapping,
        ranges: &[FlushRange],
        counters: &mut FlushCounters,
    ) -> Result<(), FlushError> {
        write(&mut *self.storage, self.start, mapping, &mut self.chunk, ranges, counters)
    }
}

/// Writes ranges of a mapping, which are blocks, to a file in which it starts at
/// `start`.
fn write(
    storage: &mut dyn Storage,
    start: u64,
    mapping: &Mapping,
    chunk: &mut [u8],
    ranges: &[FlushRange],
    counters: &mut FlushCounters,
) -> Result<(), FlushError> {
    for range in ranges {
        let mut offset = range.offset;
        // Blocks may reach over the region's end, which is one of pages.
        let end = range.end().min(mapping.len() as u64);
        while offset < end {
            let len = CHUNK.min((end - offset) as usize);
            let chunk = &mut chunk[..len];
            let read = mapping.read_words_at(offset as usize, chunk);
            debug_assert!(read, "judged when it was added");
            let at = start + offset;
            let failed = |source| FlushError::Write { at, len, source };
            storage.write_at(chunk, at).map_err(failed)?;
            storage.begin_sync(at, len as u64);
            counters.writes += 1;
            counters.written_bytes += len as u64;
            offset += len as u64;
        }
    }
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
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::sys;

    const LEN: usize = 64 << 10;
    const START: u64 = 8192;
    const MS: u64 = 1_000_000;

    /// What the next calls are to do, and what was done.
    #[derive(Debug, Default)]
    struct Disk {
        /// What a reader of the file sees.
        seen: Vec<u8>,
        /// What outlives the power.
        kept: Vec<u8>,
        /// Blocks that are written and not kept.
        dirty: Vec<usize>,
        fail_write: Option<io::ErrorKind>,
        fail_sync: bool,
        syncs: u32,
    }

    /// A disk as Linux shows it: a failed sync marks what it could not write as
    /// clean, and the next one knows nothing of it.
    #[derive(Clone, Default)]
    struct Faulty(Arc<Mutex<Disk>>);

    impl Storage for Faulty {
        fn write_at(&mut self, data: &[u8], at: u64) -> io::Result<()> {
            let mut disk = self.0.lock().unwrap();
            if let Some(kind) = disk.fail_write {
                return Err(kind.into());
            }
            let at = at as usize;
            disk.seen[at..at + data.len()].copy_from_slice(data);
            disk.dirty.extend((at / 4096 * 4096..at + data.len()).step_by(4096));
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            let mut disk = self.0.lock().unwrap();
            disk.syncs += 1;
            let dirty = std::mem::take(&mut disk.dirty);
            if disk.fail_sync {
                return Err(io::Error::from_raw_os_error(libc::EIO));
            }
            let disk = &mut *disk;
            for at in dirty {
                disk.kept[at..at + 4096].copy_from_slice(&disk.seen[at..at + 4096]);
            }
            Ok(())
        }
    }

    /// What a reader finds after the power was lost.
    struct Left(Vec<u8>);

    impl std::os::unix::fs::FileExt for Left {
        fn read_at(&self, out: &mut [u8], at: u64) -> io::Result<usize> {
            let from = self.0.get(at as usize..).unwrap_or_default();
            let len = out.len().min(from.len());
            out[..len].copy_from_slice(&from[..len]);
            Ok(len)
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    const AREA: u64 = 16 << 10;
    const SEQUENCE: u64 = 9;

    struct Bench {
        mapping: Arc<Mapping>,
        mirror: Faulty,
        journal: Faulty,
        flusher: Flusher,
    }

    fn bench() -> Bench {
        let file = sys::memory_file("flusher", LEN as u64, Default::default()).unwrap();
        let mapping = Arc::new(Mapping::from_fd(file.as_fd(), 0, LEN, true).unwrap());
        let disk = |len| {
            let disk = Faulty::default();
            let empty = vec![0; len];
            *disk.0.lock().unwrap() = Disk { seen: empty.clone(), kept: empty, ..Disk::default() };
            disk
        };
        let mirror = disk(LEN + START as usize);
        let journal = disk(crate::journal::file_len(AREA) as usize);
        let records = Journal::new(Box::new(journal.clone()), SEQUENCE, AREA, 0);
        let storage = Box::new(mirror.clone());
        let flusher =
            Flusher::mirror(Arc::clone(&mapping), storage, START, records, Arc::default());
        Bench { mapping, mirror, journal, flusher }
    }

    impl Bench {
        fn store(&self, offset: usize, data: &[u8]) {
            assert!(self.mapping.write_at(offset, data));
        }

        fn add(&mut self, offset: u64, len: u64) {
            self.flusher.add(FlushRange { offset, len }).unwrap();
        }

        /// All of the region as it is recovered if the power is lost now.
        fn recovered(&self) -> Vec<u8> {
            let mut region = self.mirror.0.lock().unwrap().kept[START as usize..].to_vec();
            let journal = Left(self.journal.0.lock().unwrap().kept.clone());
            crate::journal::replay(&journal, AREA, SEQUENCE, LEN as u64, |at, bytes| {
                region[at as usize..][..bytes.len()].copy_from_slice(bytes);
                Ok(())
            })
            .unwrap();
            region
        }

        fn kept(&self, offset: usize, len: usize) -> Vec<u8> {
            self.recovered()[offset..][..len].to_vec()
        }

        /// Of both files.
        fn disk(&self, mut change: impl FnMut(&mut Disk)) {
            for disk in [&self.mirror, &self.journal] {
                change(&mut disk.0.lock().unwrap());
            }
        }

        fn syncs(&self) -> u32 {
            let mut syncs = 0;
            self.disk(|disk| syncs += disk.syncs);
            syncs
        }
    }

    #[test]
    fn many_ranges_are_one_sync() {
        let mut bench = bench();
        for at in [0, 5000, 40_000, 40_100, LEN - 8] {
            bench.store(at, b"durable!");
            bench.add(at as u64, 8);
        }
        assert!(bench.flusher.is_pending());
        bench.flusher.commit(0).unwrap();
        assert!(!bench.flusher.is_pending());
        for at in [0, 5000, 40_000, 40_100, LEN - 8] {
            assert_eq!(bench.kept(at, 8), b"durable!");
        }
        assert_eq!(bench.syncs(), 1);
        let counters = bench.flusher.counters();
        assert_eq!(
            counters,
            FlushCounters {
                commits: 1,
                ranges: 5,
                asked_bytes: 40,
                // A record of one block.
                written_bytes: 4096,
                writes: 1,
                ..FlushCounters::default()
            }
        );
        // Nothing to do is no reason to trouble the disk.
        bench.flusher.commit(0).unwrap();
        assert_eq!(bench.syncs(), 1);
    }

    #[test]
    fn what_no_record_takes_goes_to_the_mirror_itself() {
        let mut bench = bench();
        bench.store(0, b"small");
        bench.add(0, 5);
        bench.flusher.commit(0).unwrap();
        bench.store(0, b"large");
        bench.add(0, LEN as u64);
        bench.flusher.commit(0).unwrap();
        // The record is of no use any more, and is not found.
        assert_eq!(bench.kept(0, 5), b"large");
        assert_eq!(&bench.mirror.0.lock().unwrap().kept[START as usize..][..5], b"large");
        assert_eq!(bench.syncs(), 3);
    }

    #[test]
    fn what_failed_on_its_way_to_the_mirror_does_not_turn_to_the_journal() {
        let mut bench = bench();
        bench.store(0, b"small");
        bench.add(0, 5);
        bench.flusher.commit(0).unwrap();
        bench.store(0, b"large");
        // Too much for a record as it was asked for, but not as blocks.
        for (at, len) in [(0, 8150), (12_000, 10), (0, 8150)] {
            bench.add(at, len);
        }
        bench.disk(|disk| disk.fail_write = Some(io::ErrorKind::StorageFull));
        assert!(matches!(bench.flusher.commit(0), Err(FlushError::Write { .. })));
        bench.disk(|disk| disk.fail_write = None);
        bench.flusher.commit(100 * MS).unwrap();
        // The journal has given up what it knew: its records are not to count.
        assert_eq!(&bench.mirror.0.lock().unwrap().kept[START as usize..][..5], b"large");
        assert_eq!(bench.kept(0, 5), b"large");
    }

    #[test]
    fn a_record_is_dropped_when_the_mirror_has_what_it_had() {
        let mut bench = bench();
        // Four records fill an area; the ninth needs the first one again.
        for round in 0..40usize {
            bench.store(round * 1000, &[round as u8 + 1; 8]);
            bench.add(round as u64 * 1000, 8);
            bench.flusher.commit(0).unwrap();
            if round % 3 == 0 {
                bench.flusher.tidy();
            }
            for earlier in 0..=round {
                assert_eq!(bench.kept(earlier * 1000, 8), [earlier as u8 + 1; 8]);
            }
        }
        assert!(bench.syncs() < 60, "{}", bench.syncs());
    }

    #[test]
    fn ranges_outside_are_refused() {
        let mut bench = bench();
        let len = LEN as u64;
        for (offset, len) in [(len, 1), (len - 1, 2), (0, len + 1), (u64::MAX, 1), (1, u64::MAX)] {
            let range = FlushRange { offset, len };
            assert_eq!(bench.flusher.add(range), Err(RangeOutside { offset, len }));
        }
        assert!(!bench.flusher.is_pending());
        bench.add(len, 0);
        bench.add(0, len);
        bench.flusher.commit(0).unwrap();
    }

    #[test]
    fn a_full_disk_acknowledges_nothing_and_forgets_nothing() {
        let mut bench = bench();
        bench.store(100, b"first");
        bench.add(100, 5);
        bench.disk(|disk| disk.fail_write = Some(io::ErrorKind::StorageFull));
        let error = bench.flusher.commit(0).unwrap_err();
        assert!(matches!(error, FlushError::Write { at: 4096, len: 4096, .. }), "{error}");
        assert!(bench.flusher.is_pending());
        assert!(!bench.flusher.is_suspect());

        bench.disk(|disk| disk.fail_write = None);
        bench.store(9000, b"second");
        bench.add(9000, 6);
        assert!(matches!(bench.flusher.commit(99 * MS), Err(FlushError::NotDue)));
        bench.flusher.commit(100 * MS).unwrap();
        assert_eq!(bench.kept(100, 5), b"first");
        assert_eq!(bench.kept(9000, 6), b"second");
        assert_eq!(bench.flusher.counters().rewrites, 0);
    }

    #[test]
    fn after_a_failed_sync_everything_is_written_anew_before_anything_is_acknowledged() {
        let mut bench = bench();
        bench.store(0, b"old");
        bench.add(0, 3);
        bench.flusher.commit(0).unwrap();

        bench.store(0, b"new");
        bench.add(0, 3);
        // Never flushed, and of no concern to anybody: it is rewritten as well.
        bench.store(50_000, b"stray");
        bench.disk(|disk| disk.fail_sync = true);
        assert!(matches!(bench.flusher.commit(0), Err(FlushError::Sync { .. })));
        assert!(bench.flusher.is_suspect());
        // This disk would lie now: what it could not write is marked as clean.
        bench.disk(|disk| {
            disk.fail_sync = false;
            assert!(disk.dirty.is_empty());
        });
        assert!(matches!(bench.flusher.commit(MS), Err(FlushError::NotDue)));
        assert_eq!(bench.kept(0, 3), b"old");

        // The rewrite itself may fail, in either step.
        bench.disk(|disk| disk.fail_write = Some(io::ErrorKind::ReadOnlyFilesystem));
        assert!(matches!(bench.flusher.commit(100 * MS), Err(FlushError::Write { .. })));
        bench.disk(|disk| (disk.fail_write, disk.fail_sync) = (None, true));
        assert!(matches!(bench.flusher.commit(200 * MS), Err(FlushError::Sync { .. })));
        assert!(bench.flusher.is_suspect());

        bench.disk(|disk| disk.fail_sync = false);
        bench.flusher.commit(300 * MS).unwrap();
        assert!(!bench.flusher.is_suspect());
        assert_eq!(bench.kept(0, 3), b"new");
        assert_eq!(bench.kept(50_000, 5), b"stray");
        let counters = bench.flusher.counters();
        assert_eq!((counters.failures, counters.rewrites, counters.commits), (3, 1, 2));
    }

    #[test]
    fn a_suspect_file_is_rewritten_even_if_nothing_new_is_asked() {
        let mut bench = bench();
        bench.add(0, 8);
        bench.disk(|disk| disk.fail_sync = true);
        bench.flusher.commit(0).unwrap_err();
        bench.disk(|disk| disk.fail_sync = false);
        bench.flusher.commit(100 * MS).unwrap();
        assert_eq!(bench.flusher.counters().rewrites, 1);
        bench.flusher.commit(200 * MS).unwrap();
        assert_eq!(bench.flusher.counters().rewrites, 1);
    }

    /// What a guest and its disk do.
    #[derive(Clone, Debug)]
    enum Step {
        Store(usize, u8),
        Flush(usize, usize),
        Commit,
        Tidy,
        Fail(bool, bool),
        Wait,
        /// The system writes some sectors by itself.
        Leak(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0..LEN / 8, any::<u8>()).prop_map(|(word, value)| Step::Store(word * 8, value)),
            3 => (0..LEN, 1usize..3_000).prop_map(|(at, len)| Step::Flush(at, len)),
            1 => (0..LEN, 1usize..30_000).prop_map(|(at, len)| Step::Flush(at, len)),
            6 => Just(Step::Commit),
            2 => Just(Step::Tidy),
            1 => (any::<bool>(), any::<bool>()).prop_map(|(write, sync)| Step::Fail(write, sync)),
            2 => Just(Step::Wait),
            2 => any::<u64>().prop_map(Step::Leak),
        ]
    }

    /// What each byte may be after a loss of power: what was promised of it, or
    /// anything that was stored since.
    #[derive(Default)]
    struct Allowed(std::collections::BTreeMap<usize, Vec<u8>>);

    impl Allowed {
        fn stored(&mut self, at: usize, value: u8) {
            for byte in at..at + 8 {
                self.0.entry(byte).or_insert_with(|| vec![0]).push(value);
            }
        }

        fn promised(&mut self, at: usize, len: usize) {
            for (_, values) in self.0.range_mut(at..at + len) {
                values.drain(..values.len() - 1);
            }
        }
    }

    proptest! {
        /// Whatever fails, and whenever the power is lost: what a commit promised is
        /// there, or what was stored later in its place.
        #[test]
        fn what_was_promised_is_recovered(steps in prop::collection::vec(step(), 1..160)) {
            let mut bench = bench();
            let mut now = 0;
            let mut asked: Vec<(usize, usize)> = Vec::new();
            let mut allowed = Allowed::default();
            for step in steps {
                match step {
                    Step::Store(at, value) => {
                        bench.store(at, &[value; 8]);
                        allowed.stored(at, value);
                        continue;
                    }
                    Step::Flush(at, len) => {
                        let len = len.min(LEN - at);
                        bench.add(at as u64, len as u64);
                        asked.push((at, len));
                        continue;
                    }
                    Step::Fail(write, sync) => bench.disk(|disk| {
                        disk.fail_write = write.then_some(io::ErrorKind::StorageFull);
                        disk.fail_sync = sync;
                    }),
                    Step::Wait => now += 100 * MS,
                    Step::Tidy => bench.flusher.tidy(),
                    Step::Leak(mut seed) => bench.disk(|disk| {
                        for at in disk.dirty.clone() {
                            for sector in (at..at + 4096).step_by(512) {
                                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                                if seed >> 63 == 1 {
                                    let sector = sector..sector + 512;
                                    disk.kept[sector.clone()].copy_from_slice(&disk.seen[sector]);
                                }
                            }
                        }
                    }),
                    Step::Commit => {
                        if bench.flusher.commit(now).is_ok() {
                            for (at, len) in asked.drain(..) {
                                allowed.promised(at, len);
                            }
                        } else {
                            prop_assert!(bench.flusher.is_pending() || bench.flusher.is_suspect());
                        }
                    }
                }
                let recovered = bench.recovered();
                for (&at, values) in &allowed.0 {
                    prop_assert!(
                        values.contains(&recovered[at]),
                        "{} at {at}, which may be {values:?}", recovered[at]
                    );
                }
            }
        }
    }

    #[test]
    fn a_region_that_is_its_own_storage_is_synced_and_touched_after_a_failure() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN as u64).unwrap();
        let mapping = Arc::new(Mapping::from_fd(file.as_fd(), 0, LEN, true).unwrap());
        let disk = Faulty::default();
        let mut flusher =
            Flusher::own_file(Arc::clone(&mapping), Box::new(disk.clone()), Arc::default());
        assert!(mapping.write_at(10, b"stays"));
        flusher.add(FlushRange { offset: 10, len: 5 }).unwrap();
        disk.0.lock().unwrap().fail_sync = true;
        assert!(matches!(flusher.commit(0), Err(FlushError::Sync { .. })));
        disk.0.lock().unwrap().fail_sync = false;
        flusher.commit(100 * MS).unwrap();
        assert_eq!(flusher.counters().rewrites, 1);
        let mut bytes = [0; 5];
        assert!(mapping.read_at(10, &mut bytes));
        assert_eq!(&bytes, b"stays");
    }
}
