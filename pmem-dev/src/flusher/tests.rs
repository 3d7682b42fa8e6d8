//! What a flusher promises is recovered, whatever fails and whenever the power is lost.

use std::os::fd::AsFd;
use std::sync::Mutex;

use proptest::prelude::*;

use super::*;
use crate::journal::Last;
use crate::layout::Part;
use crate::occupied::Occupied;
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

impl Disk {
    /// What is kept if the system has written some sectors by itself.
    fn leaked(&self, seed: &mut u64) -> Vec<u8> {
        let mut kept = self.kept.clone();
        for &at in &self.dirty {
            for sector in (at..at + 4096).step_by(512) {
                *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if *seed >> 63 == 1 {
                    let sector = sector..sector + 512;
                    kept[sector.clone()].copy_from_slice(&self.seen[sector]);
                }
            }
        }
        kept
    }
}

/// The disks of the mirror and of its journal.
#[derive(Debug, Default)]
struct Disks {
    disks: [Disk; 2],
    /// What either kept if the power was lost before a write or a sync; as long as
    /// somebody asks.
    losses: Option<Vec<[Vec<u8>; 2]>>,
    seed: u64,
}

const MIRROR: usize = 0;
const JOURNAL: usize = 1;

impl Disks {
    fn lose(&mut self) {
        let Disks { disks, losses, seed } = self;
        if let Some(losses) = losses {
            losses.push([disks[0].leaked(seed), disks[1].leaked(seed)]);
        }
    }
}

/// A disk as Linux shows it: a failed sync marks what it could not write as
/// clean, and the next one knows nothing of it.
#[derive(Clone)]
struct Faulty(Arc<Mutex<Disks>>, usize);

impl Storage for Faulty {
    fn write_at(&mut self, data: &[u8], at: u64) -> io::Result<()> {
        let mut disks = self.0.lock().unwrap();
        disks.lose();
        let disk = &mut disks.disks[self.1];
        if let Some(kind) = disk.fail_write {
            return Err(kind.into());
        }
        let at = at as usize;
        disk.seen[at..at + data.len()].copy_from_slice(data);
        disk.dirty.extend((at / 4096 * 4096..at + data.len()).step_by(4096));
        Ok(())
    }

    fn read_at(&mut self, out: &mut [u8], at: u64) -> io::Result<()> {
        let disks = self.0.lock().unwrap();
        out.copy_from_slice(&disks.disks[self.1].seen[at as usize..][..out.len()]);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut disks = self.0.lock().unwrap();
        disks.lose();
        let disk = &mut disks.disks[self.1];
        disk.syncs += 1;
        let dirty = std::mem::take(&mut disk.dirty);
        if disk.fail_sync {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
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

/// The second half of the region is buffers.
const BUFFERS: Part = Part { offset: LEN as u64 / 2, len: LEN as u64 / 2 };
const BUFFER: usize = 2048;
const BUFFER_COUNT: usize = LEN / 2 / BUFFER;

struct Bench {
    mapping: Arc<Mapping>,
    disks: Arc<Mutex<Disks>>,
    occupied: Arc<Occupied>,
    flusher: Flusher,
}

fn bench() -> Bench {
    let file = sys::memory_file("flusher", LEN as u64, Default::default()).unwrap();
    let mapping = Arc::new(Mapping::from_fd(file.as_fd(), 0, LEN, true).unwrap());
    let lens = [LEN + START as usize, crate::journal::file_len(AREA) as usize];
    let disks = lens.map(|len| {
        let empty = vec![0; len];
        Disk { seen: empty.clone(), kept: empty, ..Disk::default() }
    });
    let disks = Arc::new(Mutex::new(Disks { disks, ..Disks::default() }));
    let [mirror, journal] = [MIRROR, JOURNAL].map(|disk| Box::new(Faulty(disks.clone(), disk)));
    let occupied = Arc::new(Occupied::new(BUFFERS, BUFFER as u32));
    let records =
        Journal::new(journal, SEQUENCE, AREA, Last::default(), LEN as u64, Arc::clone(&occupied));
    let flusher = Flusher::mirror(Arc::clone(&mapping), mirror, START, records, Arc::default());
    Bench { mapping, disks, occupied, flusher }
}

/// All of the region as it is recovered from what mirror and journal have kept.
fn recovered([mirror, journal]: &[Vec<u8>; 2]) -> Vec<u8> {
    let mut region = mirror[START as usize..].to_vec();
    let journal = Left(journal.clone());
    crate::journal::replay(&journal, AREA, SEQUENCE, LEN as u64, |at, bytes| {
        region[at as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    })
    .unwrap();
    region
}

impl Bench {
    fn store(&self, offset: usize, data: &[u8]) {
        assert!(self.mapping.write_at(offset, data));
    }

    fn add(&mut self, offset: u64, len: u64) {
        self.flusher.add(FlushRange { offset, len }).unwrap();
    }

    /// What both disks keep if the power is lost now.
    fn left(&self) -> [Vec<u8>; 2] {
        let disks = self.disks.lock().unwrap();
        [MIRROR, JOURNAL].map(|disk| disks.disks[disk].kept.clone())
    }

    fn kept(&self, offset: usize, len: usize) -> Vec<u8> {
        recovered(&self.left())[offset..][..len].to_vec()
    }

    /// What the mirror has without its journal.
    fn mirrored(&self, offset: usize, len: usize) -> Vec<u8> {
        self.left()[MIRROR][START as usize + offset..][..len].to_vec()
    }

    /// Of both files.
    fn disk(&self, change: impl FnMut(&mut Disk)) {
        self.disks.lock().unwrap().disks.iter_mut().for_each(change);
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
            journal_bytes: 4096,
            writes: 1,
            syncs: 1,
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
    assert_eq!(bench.mirrored(0, 5), b"large");
    // The record's, the mirror's, and that of the record that ends it.
    assert_eq!(bench.syncs(), 3);
    assert_eq!(bench.flusher.counters().syncs, 3);
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
    assert_eq!(bench.mirrored(0, 5), b"large");
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
    FlushAll,
    /// A buffer is given back, or taken.
    Occupy(usize, bool),
    Commit,
    Tidy,
    Fail(bool, bool),
    Wait,
    /// The system writes some sectors by itself.
    Leak(u64),
}

/// Few enough that each is stored to again and again, in buffers and before them.
fn place() -> impl Strategy<Value = usize> {
    (0..16usize).prop_map(|number| number * (LEN / 16 + 520) % LEN)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (place(), any::<u8>()).prop_map(|(at, value)| Step::Store(at, value)),
        8 => (place(), 8usize..3_000).prop_map(|(at, len)| Step::Flush(at, len)),
        1 => (0..LEN, 1usize..30_000).prop_map(|(at, len)| Step::Flush(at, len)),
        1 => Just(Step::FlushAll),
        2 => (0..BUFFER_COUNT, any::<bool>()).prop_map(|(buf, taken)| Step::Occupy(buf, taken)),
        10 => Just(Step::Commit),
        3 => Just(Step::Tidy),
        1 => (any::<bool>(), any::<bool>()).prop_map(|(write, sync)| Step::Fail(write, sync)),
        2 => Just(Step::Wait),
        2 => any::<u64>().prop_map(Step::Leak),
    ]
}

/// What a byte may be after a loss of power: what was promised of it, or anything
/// that was stored since. Of a buffer that was given back nothing is promised.
struct Byte {
    values: Vec<u8>,
    is_free: bool,
}

#[derive(Default)]
struct Allowed(std::collections::BTreeMap<usize, Byte>);

impl Allowed {
    fn stored(&mut self, at: usize, value: u8) {
        for byte in at..at + 8 {
            let byte = self.0.entry(byte).or_insert(Byte { values: vec![0], is_free: false });
            byte.values.push(value);
        }
    }

    fn promised(&mut self, at: usize) {
        if let Some(byte) = self.0.get_mut(&at) {
            byte.values.drain(..byte.values.len() - 1);
            byte.is_free = false;
        }
    }

    fn freed(&mut self, bytes: std::ops::Range<usize>) {
        self.0.range_mut(bytes).for_each(|(_, byte)| byte.is_free = true);
    }

    fn judge(&self, left: &[Vec<u8>; 2]) -> Result<(), TestCaseError> {
        let recovered = recovered(left);
        for (&at, Byte { values, is_free }) in &self.0 {
            prop_assert!(
                *is_free || values.contains(&recovered[at]),
                "{} at {at}, which may be {values:?}",
                recovered[at]
            );
        }
        Ok(())
    }
}

/// The buffer that a byte lies in.
fn buffer_of(at: usize) -> Option<usize> {
    at.checked_sub(BUFFERS.offset as usize).map(|at| at / BUFFER)
}

proptest! {
    /// Whatever fails, and whenever the power is lost, within a commit too: what a
    /// commit promised is there, or what was stored later in its place.
    #[test]
    fn what_was_promised_is_recovered(
        steps in prop::collection::vec(step(), 1..250),
        seed: u64,
    ) {
        let mut bench = bench();
        {
            let mut disks = bench.disks.lock().unwrap();
            (disks.losses, disks.seed) = (Some(Vec::new()), seed);
        }
        let mut now = 0;
        let mut asked: Vec<(usize, usize, usize)> = Vec::new();
        let mut allowed = Allowed::default();
        // When each was given back last; one that is, always.
        let mut freed = [0; BUFFER_COUNT];
        for (number, step) in steps.into_iter().enumerate() {
            let mut kept_promise = false;
            match step {
                Step::Store(at, value) => {
                    bench.store(at, &[value; 8]);
                    allowed.stored(at, value);
                    continue;
                }
                Step::Flush(at, len) => {
                    let len = len.min(LEN - at);
                    bench.add(at as u64, len as u64);
                    asked.push((at, len, number));
                    continue;
                }
                Step::FlushAll => {
                    bench.add(0, LEN as u64);
                    asked.push((0, LEN, number));
                    continue;
                }
                Step::Occupy(buf, taken) => {
                    bench.occupied.set(buf as u32, taken);
                    freed[buf] = if taken { freed[buf].min(number) } else { usize::MAX };
                    if !taken {
                        let start = BUFFERS.offset as usize + buf * BUFFER;
                        allowed.freed(start..start + BUFFER);
                    }
                }
                Step::Fail(write, sync) => bench.disk(|disk| {
                    disk.fail_write = write.then_some(io::ErrorKind::StorageFull);
                    disk.fail_sync = sync;
                }),
                Step::Wait => now += 100 * MS,
                Step::Tidy => bench.flusher.tidy(),
                Step::Leak(mut seed) => bench.disk(|disk| disk.kept = disk.leaked(&mut seed)),
                Step::Commit => {
                    kept_promise = bench.flusher.commit(now).is_ok();
                    prop_assert!(
                        kept_promise || bench.flusher.is_pending() || bench.flusher.is_suspect()
                    );
                }
            }
            let losses = bench.disks.lock().unwrap().losses.replace(Vec::new());
            for left in losses.unwrap_or_default() {
                allowed.judge(&left)?;
            }
            if kept_promise {
                for (at, len, when) in asked.drain(..) {
                    let is_kept = |&at: &usize| buffer_of(at).is_none_or(|b| freed[b] < when);
                    (at..at + len).filter(is_kept).for_each(|at| allowed.promised(at));
                }
            }
            allowed.judge(&bench.left())?;
        }
    }
}

/// What a commit past the journal forgets is found no more, whenever the power is lost:
/// the records of the older area alone would undo what those of the newer one did.
#[test]
fn older_records_never_undo_newer_ones() {
    for seed in 0..64 {
        let mut bench = bench();
        // Four fill the first area.
        for value in 1..=6 {
            bench.store(0, &[value; 8]);
            bench.add(0, 8);
            bench.flusher.commit(0).unwrap();
        }
        {
            let mut disks = bench.disks.lock().unwrap();
            (disks.losses, disks.seed) = (Some(Vec::new()), seed);
        }
        bench.store(0, &[7; 8]);
        bench.add(0, LEN as u64);
        bench.flusher.commit(0).unwrap();
        let losses = bench.disks.lock().unwrap().losses.take().unwrap_or_default();
        assert_eq!(losses.len(), 4, "before each write and sync");
        for left in losses {
            let value = recovered(&left)[0];
            assert!([6, 7].contains(&value), "{value}");
        }
        assert_eq!(bench.kept(0, 8), [7; 8]);
    }
}

#[test]
fn what_was_given_back_is_not_checkpointed() {
    let mut bench = bench();
    let at = |buf: usize| BUFFERS.offset as usize + buf * BUFFER;
    // Four records fill an area.
    for (buf, value) in [(0, 1), (1, 2), (2, 3), (9, 4), (10, 5), (10, 6), (10, 7)] {
        bench.store(at(buf), &[value; 8]);
        bench.add(at(buf) as u64, 8);
        bench.flusher.commit(0).unwrap();
        if buf == 9 {
            // The first shares a block with one that is kept, and two are given back.
            [0, 2, 9].into_iter().for_each(|buf| bench.occupied.set(buf, false));
        }
    }
    let before = bench.flusher.counters();
    while bench.mirrored(at(1), 8) != [2; 8] {
        bench.store(at(10), &[8; 8]);
        bench.add(at(10) as u64, 8);
        bench.flusher.commit(0).unwrap();
        bench.flusher.tidy();
    }
    for (buf, value) in [(0, 1), (1, 2), (2, 0), (9, 0), (10, 0)] {
        assert_eq!(bench.mirrored(at(buf), 8), [value; 8], "buffer {buf}");
    }
    let after = bench.flusher.counters();
    let to_mirror = after.written_bytes - after.journal_bytes;
    assert_eq!(to_mirror - (before.written_bytes - before.journal_bytes), 4096);
}

#[test]
fn of_everything_only_the_blocks_that_differ_are_written() {
    let mut bench = bench();
    bench.add(0, LEN as u64);
    bench.flusher.commit(0).unwrap();
    assert_eq!(bench.flusher.counters().written_bytes, 0, "both are zeros");
    // One has a record, and then what it had before.
    bench.store(20_000, b"recorded");
    bench.add(20_000, 8);
    bench.flusher.commit(0).unwrap();
    bench.store(20_000, &[0; 8]);
    for at in [4096, 8000, 40_000] {
        bench.store(at, b"differs");
    }
    bench.add(0, LEN as u64);
    let before = bench.flusher.counters();
    bench.flusher.commit(0).unwrap();
    let after = bench.flusher.counters();
    assert_eq!(after.written_bytes - before.written_bytes, 3 * 4096);
    assert_eq!(after.same_bytes - before.same_bytes, LEN as u64 - 2 * 4096);
    assert_eq!(bench.kept(20_000, 8), [0; 8]);
    assert_eq!(bench.kept(40_000, 7), b"differs");
    assert_eq!(bench.mirrored(8000, 7), b"differs");
}

#[test]
fn a_region_that_is_its_own_storage_is_synced_and_touched_after_a_failure() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(LEN as u64).unwrap();
    let mapping = Arc::new(Mapping::from_fd(file.as_fd(), 0, LEN, true).unwrap());
    let disks: Arc<Mutex<Disks>> = Arc::default();
    let disk = Faulty(Arc::clone(&disks), MIRROR);
    let mut flusher = Flusher::own_file(Arc::clone(&mapping), Box::new(disk), Arc::default());
    assert!(mapping.write_at(10, b"stays"));
    flusher.add(FlushRange { offset: 10, len: 5 }).unwrap();
    disks.lock().unwrap().disks[MIRROR].fail_sync = true;
    assert!(matches!(flusher.commit(0), Err(FlushError::Sync { .. })));
    disks.lock().unwrap().disks[MIRROR].fail_sync = false;
    flusher.commit(100 * MS).unwrap();
    assert_eq!(flusher.counters().rewrites, 1);
    let mut bytes = [0; 5];
    assert!(mapping.read_at(10, &mut bytes));
    assert_eq!(&bytes, b"stays");
}

/// An area may still have older records than the other one: where what was to take their
/// place was written and did not get to the disk. They undo nothing when all is forgotten.
#[test]
fn older_records_that_nothing_has_replaced_undo_nothing() {
    for seed in 0..64 {
        let mut bench = bench();
        let commit = |bench: &mut Bench, value: u8, now: u64| {
            bench.store(0, &[value; 8]);
            bench.add(0, 8);
            bench.flusher.commit(now)
        };
        // Four fill an area: 5 to 8 are in the second one, 9 to 12 in the first.
        (1..=12).for_each(|value| commit(&mut bench, value, 0).unwrap());
        // This one would be in the place of 5, which the mirror needs no more.
        bench.flusher.tidy();
        bench.disk(|disk| disk.fail_sync = true);
        commit(&mut bench, 13, 0).unwrap_err();
        bench.disk(|disk| disk.fail_sync = false);
        {
            let mut disks = bench.disks.lock().unwrap();
            (disks.losses, disks.seed) = (Some(Vec::new()), seed);
        }
        bench.flusher.commit(RETRY_NS).unwrap();
        let losses = bench.disks.lock().unwrap().losses.take().unwrap_or_default();
        assert!(losses.len() >= 4, "before each write and sync");
        for left in losses {
            let value = recovered(&left)[0];
            assert!((12..=13).contains(&value), "{value} with seed {seed}");
        }
        assert_eq!(bench.kept(0, 8), [13; 8]);
        // And what is written from then on counts.
        (14..=30).for_each(|value| commit(&mut bench, value, RETRY_NS).unwrap());
        assert_eq!(bench.kept(0, 8), [30; 8]);
    }
}
