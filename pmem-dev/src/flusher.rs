//! The host's side of a flush: makes ranges of a region durable, many at once.
//!
//! With a mirror the ranges are widened to blocks, put in order, copied out of
//! the region and written to the mirror, then synced once. Without one the
//! region's own file is synced: the system knows which of its pages were stored
//! to.
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
    #[error("{len} bytes at {at:#x} cannot be written: {source}; make room on its file system")]
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
    /// To the mirror, in which the guest's mapping starts at this offset.
    Mirror { storage: Box<dyn Storage>, start: u64 },
    /// They are in the region's own file.
    Own(Box<dyn Storage>),
}

/// Makes ranges of one region durable.
pub struct Flusher {
    mapping: Arc<Mapping>,
    target: Target,
    ranges: Ranges,
    /// What is written is first copied here: one and the same bytes are then
    /// summed, written and synced, whatever the guest does meanwhile.
    chunk: Box<[u8]>,
    suspect: Arc<AtomicBool>,
    retry_at_ns: u64,
    counters: FlushCounters,
}

impl Flusher {
    /// Writes to a mirror, in which what `mapping` shows starts at `start`.
    /// `suspect` is what [`Flusher::is_suspect`] says.
    pub fn mirror(
        mapping: Arc<Mapping>,
        storage: Box<dyn Storage>,
        start: u64,
        suspect: Arc<AtomicBool>,
    ) -> Flusher {
        Flusher::new(mapping, Target::Mirror { storage, start }, suspect, CHUNK)
    }

    /// Syncs the file that `mapping` is a mapping of.
    pub fn own_file(
        mapping: Arc<Mapping>,
        storage: Box<dyn Storage>,
        suspect: Arc<AtomicBool>,
    ) -> Flusher {
        Flusher::new(mapping, Target::Own(storage), suspect, 0)
    }

    fn new(
        mapping: Arc<Mapping>,
        target: Target,
        suspect: Arc<AtomicBool>,
        chunk: usize,
    ) -> Flusher {
        Flusher {
            mapping,
            target,
            ranges: Ranges::new(RANGES),
            chunk: vec![0; chunk].into_boxed_slice(),
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
                self.counters.failures += 1;
                self.retry_at_ns = now_ns.saturating_add(RETRY_NS);
                Err(error)
            }
        }
    }

    fn attempt(&mut self) -> Result<(), FlushError> {
        let anew = self.is_suspect();
        match &mut self.target {
            Target::Mirror { storage, start } => {
                let everything = [FlushRange { offset: 0, len: self.mapping.len() as u64 }];
                let ranges = if anew {
                    &everything
                } else {
                    self.ranges.align(BLOCK);
                    self.ranges.as_slice()
                };
                for range in ranges {
                    let mut offset = range.offset;
                    // Blocks may reach over the region's end, which is one of pages.
                    let end = range.end().min(self.mapping.len() as u64);
                    while offset < end {
                        let len = CHUNK.min((end - offset) as usize);
                        let chunk = &mut self.chunk[..len];
                        let read = self.mapping.read_words_at(offset as usize, chunk);
                        debug_assert!(read, "judged when it was added");
                        let at = *start + offset;
                        storage.write_at(chunk, at).map_err(|source| FlushError::Write {
                            at,
                            len,
                            source,
                        })?;
                        self.counters.writes += 1;
                        self.counters.written_bytes += len as u64;
                        offset += len as u64;
                    }
                }
                if let Err(source) = storage.sync() {
                    self.suspect.store(true, Ordering::Relaxed);
                    return Err(FlushError::Sync { source });
                }
            }
            Target::Own(storage) => {
                if anew {
                    self.mapping.touch();
                }
                if let Err(source) = storage.sync() {
                    self.suspect.store(true, Ordering::Relaxed);
                    return Err(FlushError::Sync { source });
                }
            }
        }
        if anew {
            self.suspect.store(false, Ordering::Relaxed);
            self.counters.rewrites += 1;
        }
        Ok(())
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
            disk.dirty.extend((at..at + data.len()).step_by(4096));
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

    struct Bench {
        mapping: Arc<Mapping>,
        disk: Faulty,
        flusher: Flusher,
    }

    fn bench() -> Bench {
        let file = sys::memory_file("flusher", LEN as u64, Default::default()).unwrap();
        let mapping = Arc::new(Mapping::from_fd(file.as_fd(), 0, LEN, true).unwrap());
        let disk = Faulty::default();
        let empty = vec![0; LEN + START as usize];
        *disk.0.lock().unwrap() = Disk { seen: empty.clone(), kept: empty, ..Disk::default() };
        let flusher =
            Flusher::mirror(Arc::clone(&mapping), Box::new(disk.clone()), START, Arc::default());
        Bench { mapping, disk, flusher }
    }

    impl Bench {
        fn store(&self, offset: usize, data: &[u8]) {
            assert!(self.mapping.write_at(offset, data));
        }

        fn add(&mut self, offset: u64, len: u64) {
            self.flusher.add(FlushRange { offset, len }).unwrap();
        }

        fn kept(&self, offset: usize, len: usize) -> Vec<u8> {
            self.disk.0.lock().unwrap().kept[START as usize + offset..][..len].to_vec()
        }

        fn disk(&self, change: impl FnOnce(&mut Disk)) {
            change(&mut self.disk.0.lock().unwrap());
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
        bench.disk(|disk| assert_eq!(disk.syncs, 1));
        let counters = bench.flusher.counters();
        assert_eq!(
            counters,
            FlushCounters {
                commits: 1,
                ranges: 5,
                asked_bytes: 40,
                // The first two are neighbours, as blocks.
                written_bytes: 4 * 4096,
                writes: 3,
                ..FlushCounters::default()
            }
        );
        // Nothing to do is no reason to trouble the disk.
        bench.flusher.commit(0).unwrap();
        bench.disk(|disk| assert_eq!(disk.syncs, 1));
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
        assert!(matches!(error, FlushError::Write { at: START, len: 4096, .. }), "{error}");
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
        Fail(bool, bool),
        Wait,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..LEN / 8, any::<u8>()).prop_map(|(word, value)| Step::Store(word * 8, value)),
            3 => (0..LEN, 1usize..10_000).prop_map(|(at, len)| Step::Flush(at, len)),
            3 => Just(Step::Commit),
            1 => (any::<bool>(), any::<bool>()).prop_map(|(write, sync)| Step::Fail(write, sync)),
            2 => Just(Step::Wait),
        ]
    }

    proptest! {
        /// Whatever fails: when a commit succeeds, everything that was flushed
        /// before it is kept.
        #[test]
        fn what_was_acknowledged_is_kept(steps in prop::collection::vec(step(), 1..120)) {
            let mut bench = bench();
            let mut now = 0;
            let mut asked: Vec<(usize, usize)> = Vec::new();
            for step in steps {
                match step {
                    Step::Store(at, value) => bench.store(at, &[value; 8]),
                    Step::Flush(at, len) => {
                        let len = len.min(LEN - at);
                        bench.add(at as u64, len as u64);
                        asked.push((at, len));
                    }
                    Step::Fail(write, sync) => bench.disk(|disk| {
                        disk.fail_write = write.then_some(io::ErrorKind::StorageFull);
                        disk.fail_sync = sync;
                    }),
                    Step::Wait => now += 100 * MS,
                    Step::Commit => {
                        if bench.flusher.commit(now).is_err() {
                            prop_assert!(bench.flusher.is_pending() || bench.flusher.is_suspect());
                            continue;
                        }
                        for (at, len) in asked.drain(..) {
                            let mut want = vec![0; len];
                            prop_assert!(bench.mapping.read_at(at, &mut want));
                            prop_assert!(bench.kept(at, len) == want, "{at}+{len}");
                        }
                    }
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
