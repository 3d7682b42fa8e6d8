//! The journal of a mirror: what is to be durable, one range after the other in a
//! file of its own, so that a commit is one write in a row and one sync, however
//! far apart its ranges are.
//!
//! The mirror itself is written behind it, with blocks in order and each one once
//! for all the commits that it was part of: a *checkpoint*. It is done as late as it
//! can be, because what is stored soon is given up soon too, and what nobody needs any
//! more is not written ([`Occupied`]). After a loss of power the journal's records are
//! written over the mirror again.
//!
//! # The file
//!
//! A header of one block, then two areas of equal length. Records fill one area;
//! while they fill the second half of the other, the first is checkpointed, and it is
//! used again when that is done. A commit is one record, or several if it is large:
//! they are synced together, but never with one of the area before. A record begins
//! with a block:
//!
//! | at | bytes | |
//! | --- | --- | --- |
//! | 0 | 8 | "PASTEREC" |
//! | 8 | 8 | the sequence of the mirror's superblock |
//! | 16 | 8 | number of the record, one more than that of the one before |
//! | 24 | 8 | bytes of the ranges |
//! | 32 | 4 | ranges |
//! | 36 | 4 | CRC-32C of all of the record, with zeros here |
//! | 40 | 24 | zero |
//! | 64 | 16 each | ranges: offset 8, length 8 |
//!
//! The bytes of the ranges follow, and zeros up to the next block: no block that
//! holds something durable is written again.
//!
//! # What is valid
//!
//! Records of the superblock's sequence, whose numbers have no gap up to the last
//! one. An area that is left over from before ends where the numbers do, and is
//! left out if there is a gap between the areas. Writing a record over the mirror
//! again never takes back what was promised: whatever is newer in the mirror was
//! stored later and promised to nobody, or has a record further on.
//!
//! Older records without the newer ones would take it back. So when the mirror has
//! everything and no record is to count any more, one without ranges is written behind a
//! gap in the numbers, at the start of the area that does not have the newest durable
//! record: it counts alone if it is whole, and only newest ones do if it is not.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::dirty::{BLOCK, Dirty};
use crate::occupied::{Occupied, Turns};
use crate::ranges::FlushRange;
use crate::storage::Storage;
use crate::sys::Mapping;

/// Bytes of a record at most.
const RECORD_MAX: u64 = 2 << 20;
const HEAD: usize = 64;
const RANGE: usize = 16;
const MAGIC: [u8; 8] = *b"PASTEREC";
const FILE_MAGIC: [u8; 8] = *b"PASTEJNL";
const AREA_MIN: u64 = 256 << 10;
const AREA_MAX: u64 = 128 << 20;
/// Ranges of one record at most.
const RANGES: usize = 8192;

/// Bytes of each area for a mirror of `len` bytes.
pub(crate) fn area_len(len: u64) -> u64 {
    (len / 2).next_multiple_of(BLOCK).clamp(AREA_MIN, AREA_MAX)
}

/// Bytes of the file with such areas.
pub(crate) const fn file_len(area: u64) -> u64 {
    BLOCK + 2 * area
}

/// The file's first block, for the region with this identity.
pub(crate) fn header(uuid: [u8; 16], area: u64) -> [u8; BLOCK as usize] {
    let mut block = [0; BLOCK as usize];
    block[..8].copy_from_slice(&FILE_MAGIC);
    block[8..24].copy_from_slice(&uuid);
    block[24..32].copy_from_slice(&area.to_le_bytes());
    let crc = crc32c::crc32c(&block[..32]);
    block[32..36].copy_from_slice(&crc.to_le_bytes());
    block
}

/// Where an area starts.
const fn start(area: u64, index: usize) -> u64 {
    BLOCK + index as u64 * area
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// Bytes of a record with so many ranges of so many bytes, padding included.
const fn record_len(ranges: u64, bytes: u64) -> u64 {
    (HEAD as u64 + ranges * RANGE as u64 + BLOCK - 1).saturating_add(bytes) / BLOCK * BLOCK
}

fn crc(record: &[u8]) -> u32 {
    let sum = crc32c::crc32c(&record[..36]);
    let sum = crc32c::crc32c_append(sum, &[0; 4]);
    crc32c::crc32c_append(sum, &record[40..])
}

/// Completes a record, whose head was zero.
fn seal(record: &mut [u8], sequence: u64, number: u64, bytes: u64, ranges: usize) {
    record[..8].copy_from_slice(&MAGIC);
    record[8..16].copy_from_slice(&sequence.to_le_bytes());
    record[16..24].copy_from_slice(&number.to_le_bytes());
    record[24..32].copy_from_slice(&bytes.to_le_bytes());
    record[32..36].copy_from_slice(&(ranges as u32).to_le_bytes());
    let crc = crc(record);
    record[36..40].copy_from_slice(&crc.to_le_bytes());
}

/// What was not written.
#[derive(Debug)]
pub(crate) struct WriteFailed {
    pub(crate) at: u64,
    pub(crate) len: usize,
    pub(crate) source: io::Error,
}

/// Memory that a file can be written from directly.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
}

impl Aligned {
    fn new(len: usize) -> Aligned {
        let bytes = vec![0; len + BLOCK as usize];
        let start = bytes.as_ptr().align_offset(BLOCK as usize).min(BLOCK as usize);
        Aligned { bytes, start }
    }

    fn first(&mut self, len: usize) -> &mut [u8] {
        &mut self.bytes[self.start..][..len]
    }
}

/// How far the ranges of a commit are in records.
pub(crate) struct Cut<'a> {
    ranges: &'a [FlushRange],
    /// Bytes of the first one that are.
    done: u64,
}

impl<'a> Cut<'a> {
    pub(crate) fn new(ranges: &'a [FlushRange]) -> Cut<'a> {
        Cut { ranges, done: 0 }
    }
}

/// What a checkpoint has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Nothing yet, or there is none under way.
    Nothing,
    /// To write these blocks to the mirror, and to say so by
    /// [`Journal::checkpoint_wrote`].
    Write(FlushRange),
    /// To sync the mirror, and to say so by [`Journal::checkpointed`].
    Sync,
}

/// Numbers that are left out before a record that ends all others: that of a record
/// whose write has failed may be there.
const GAP: u64 = 2;

/// The last record of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Last {
    /// Its number; 0: there is none.
    pub(crate) number: u64,
    /// The area that it is in.
    area: usize,
}

/// The records that are written, and what of the mirror waits for them.
pub(crate) struct Journal {
    storage: Box<dyn Storage>,
    sequence: u64,
    area: u64,
    /// Bytes of what the mirror is of.
    len: u64,
    /// What the records of each area are newer than in the mirror, and the turns of the
    /// buffers when they were written.
    dirty: [Dirty; 2],
    turns: [Turns; 2],
    occupied: Arc<Occupied>,
    current: usize,
    /// The area that is being filled has the newest durable record; else the other one.
    is_newest: bool,
    /// Where the next record goes, from the start of its area.
    at: u64,
    number: u64,
    /// A recovery may find records.
    found: bool,
    /// Something was written and not synced.
    unsynced: bool,
    /// The checkpoint under way: of the other area, and how far it is.
    checkpoint: Option<u64>,
    /// The ranges of the next record.
    parts: Vec<FlushRange>,
    record: Aligned,
}

impl Journal {
    /// An empty journal for a mirror of `len` bytes, whose superblock has this sequence, and
    /// which has everything of the file's records with this sequence. `occupied` says what
    /// of a record need not get to the mirror.
    pub(crate) fn new(
        storage: Box<dyn Storage>,
        sequence: u64,
        area: u64,
        last: Last,
        len: u64,
        occupied: Arc<Occupied>,
    ) -> Journal {
        let found = last.number > 0;
        Journal {
            storage,
            sequence,
            area,
            len,
            dirty: [Dirty::new(len), Dirty::new(len)],
            turns: [occupied.turns(), occupied.turns()],
            occupied,
            current: last.area,
            is_newest: found,
            // Nothing goes behind records that are there.
            at: if found { area } else { 0 },
            number: last.number,
            found,
            unsynced: false,
            checkpoint: None,
            parts: Vec::with_capacity(RANGES),
            record: Aligned::new(RECORD_MAX.min(area) as usize),
        }
    }

    /// Whether these ranges are for the journal: more than half an area is better
    /// written where it belongs.
    pub(crate) fn takes(&self, ranges: &[FlushRange]) -> bool {
        let bytes = ranges
            .iter()
            .fold(0u64, |sum, range| sum.saturating_add(range.len).saturating_add(RANGE as u64));
        bytes <= self.area / 2
    }

    /// Takes what is next of a commit's ranges for a record, and gives the record's
    /// length. `None` after the last.
    pub(crate) fn next_record(&mut self, cut: &mut Cut<'_>) -> Option<u64> {
        self.parts.clear();
        let (max, mut bytes) = (RECORD_MAX.min(self.area), 0);
        while let Some(&range) = cut.ranges.first() {
            let head = (HEAD + (self.parts.len() + 1) * RANGE) as u64;
            let room = max.saturating_sub(head + bytes);
            if room == 0 || self.parts.len() == RANGES {
                break;
            }
            let left = range.len - cut.done;
            let len = left.min(room);
            self.parts.push(FlushRange { offset: range.offset + cut.done, len });
            bytes += len;
            if len < left {
                cut.done += len;
                break;
            }
            (cut.ranges, cut.done) = (&cut.ranges[1..], 0);
        }
        (!self.parts.is_empty()).then(|| record_len(self.parts.len() as u64, bytes))
    }

    /// Whether a record of so many bytes has room in the area that is being filled.
    /// Otherwise it has to be synced, the checkpoint under way ended, and
    /// [`Journal::turn`] called.
    pub(crate) fn has_room(&self, len: u64) -> bool {
        self.at + len <= self.area
    }

    /// Begins to fill the other area, and to checkpoint this one.
    pub(crate) fn turn(&mut self) {
        debug_assert!(self.checkpoint.is_none() && !self.unsynced);
        self.checkpoint = Some(0);
        self.current = 1 - self.current;
        (self.at, self.is_newest) = (0, false);
    }

    /// Writes a record of what the ranges of [`Journal::next_record`] hold now. It is
    /// durable after [`Journal::sync`].
    pub(crate) fn append(&mut self, mapping: &Mapping) -> Result<u64, WriteFailed> {
        let bytes: u64 = self.parts.iter().map(|range| range.len).sum();
        let len = record_len(self.parts.len() as u64, bytes) as usize;
        let record = self.record.first(len);
        record[..HEAD].fill(0);
        let (mut entry, mut from) = (HEAD, HEAD + self.parts.len() * RANGE);
        for range in &self.parts {
            record[entry..entry + 8].copy_from_slice(&range.offset.to_le_bytes());
            record[entry + 8..entry + RANGE].copy_from_slice(&range.len.to_le_bytes());
            entry += RANGE;
            let end = from + range.len as usize;
            let read = mapping.read_words_at(range.offset as usize, &mut record[from..end]);
            debug_assert!(read, "judged when it was added");
            from = end;
        }
        record[from..].fill(0);
        seal(record, self.sequence, self.number + 1, bytes, self.parts.len());
        let at = start(self.area, self.current) + self.at;
        (self.found, self.unsynced) = (true, true);
        self.storage.write_at(record, at).map_err(|source| WriteFailed { at, len, source })?;
        // Also if its commit fails: it is there, and the next one goes behind it.
        self.at += len as u64;
        self.number += 1;
        for &range in &self.parts {
            self.dirty[self.current].mark(range);
            self.occupied.note(range, &mut self.turns[self.current]);
        }
        Ok(len as u64)
    }

    /// Waits until what was written is in storage. Whether there was anything.
    pub(crate) fn sync(&mut self) -> io::Result<bool> {
        if !self.unsynced {
            return Ok(false);
        }
        self.storage.sync()?;
        self.unsynced = false;
        self.is_newest |= self.at > 0;
        Ok(true)
    }

    /// What the checkpoint under way has to do next: if `whole`, up to its end;
    /// otherwise so that it ends well before the area is full, and begins as late as that
    /// allows.
    pub(crate) fn checkpoint_next(&mut self, whole: bool, max: u64) -> Next {
        let Some(cursor) = self.checkpoint else { return Next::Nothing };
        let goal = if whole { self.len } else { self.goal() };
        if cursor >= goal {
            return if goal == self.len { Next::Sync } else { Next::Nothing };
        }
        let other = 1 - self.current;
        let is_void = |at| self.occupied.is_void(at, &self.turns[other]);
        match self.dirty[other].next_run(cursor, goal, max, is_void) {
            Some(run) => Next::Write(run),
            None => {
                self.checkpoint = Some(goal);
                if goal == self.len { Next::Sync } else { Next::Nothing }
            }
        }
    }

    /// How far a checkpoint should be: from half of the area on, it keeps step with what
    /// fills it.
    fn goal(&self) -> u64 {
        let (begin, end) = (self.area / 2, self.area / 8 * 7);
        let done = self.at.clamp(begin, end) - begin;
        let goal = u128::from(self.len) * u128::from(done) / u128::from(end - begin);
        let goal = goal as u64;
        if goal == self.len { goal } else { goal - goal % BLOCK }
    }

    /// They are written.
    pub(crate) fn checkpoint_wrote(&mut self, run: FlushRange) {
        if let Some(cursor) = &mut self.checkpoint {
            *cursor = run.end().min(self.len);
        }
    }

    /// The checkpoint is done: its area may be used again.
    pub(crate) fn checkpointed(&mut self) {
        self.dirty[1 - self.current].clear();
        self.checkpoint = None;
    }

    /// Adds what any record is newer than in the mirror. When all of it is written and
    /// synced, [`Journal::forget`] may be called.
    pub(crate) fn add_dirty(&self, to: &mut Dirty) {
        for (dirty, turns) in self.dirty.iter().zip(&self.turns) {
            to.merge(dirty, |at| self.occupied.is_void(at, turns));
        }
    }

    /// Whether there is no record that a recovery would find.
    pub(crate) fn is_empty(&self) -> bool {
        !self.found
    }

    /// Makes recovery find nothing in any record: the mirror has everything.
    ///
    /// # Errors
    /// Of the storage; records may be found then, or not.
    pub(crate) fn forget(&mut self) -> io::Result<()> {
        let index = if self.is_newest { 1 - self.current } else { self.current };
        let number = self.number + 1 + GAP;
        let record = self.record.first(BLOCK as usize);
        record.fill(0);
        seal(record, self.sequence, number, 0, 0);
        self.storage.write_at(record, start(self.area, index))?;
        self.storage.sync()?;
        self.dirty.iter_mut().for_each(Dirty::clear);
        (self.current, self.at, self.checkpoint) = (index, BLOCK, None);
        (self.number, self.is_newest) = (number, true);
        (self.found, self.unsynced) = (false, false);
        Ok(())
    }
}

/// A record that was found.
#[derive(Clone, Copy, Debug)]
struct Found {
    number: u64,
    at: u64,
    len: u64,
}

/// The length of the areas, if the file is the journal of the region with this
/// identity.
pub(crate) fn recognize(file: &File, uuid: [u8; 16]) -> io::Result<Option<u64>> {
    let mut block = [0; BLOCK as usize];
    match file.read_exact_at(&mut block, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let area = word(&block, 24);
    let known = (AREA_MIN..=AREA_MAX).contains(&area) && area.is_multiple_of(BLOCK);
    let whole = known && block == header(uuid, area) && file.metadata()?.len() == file_len(area);
    Ok(whole.then_some(area))
}

/// Gives every range of every valid record, the oldest first, with its bytes, for a
/// mirror of `len` bytes whose superblock has this sequence. Returns which was the last.
///
/// # Errors
/// Of reading the file, and those of `apply`.
pub(crate) fn replay(
    file: &impl FileExt,
    area: u64,
    sequence: u64,
    len: u64,
    mut apply: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<Last> {
    let mut record = Vec::new();
    let mut chains = [Vec::new(), Vec::new()];
    for (index, chain) in chains.iter_mut().enumerate() {
        let mut at = 0;
        while let Some(found) = read_record(file, area, index, at, sequence, len, &mut record)? {
            if chain.last().is_some_and(|last: &Found| found.number != last.number + 1) {
                break;
            }
            at += found.len;
            chain.push(found);
        }
    }
    let first = |chain: &[Found]| chain.first().map_or(u64::MAX, |found| found.number);
    let [mut older, newer] = chains;
    let mut indices = [0, 1];
    let mut newer = newer;
    if first(&older) > first(&newer) {
        std::mem::swap(&mut older, &mut newer);
        indices = [1, 0];
    }
    let joined = match (older.last(), newer.first()) {
        (Some(last), Some(next)) => last.number + 1 == next.number,
        _ => true,
    };
    if !joined {
        older.clear();
    }
    let mut last = Last::default();
    for (index, chain) in indices.into_iter().zip([older, newer]) {
        for found in chain {
            let at = found.at;
            if read_record(file, area, index, at, sequence, len, &mut record)?.is_none() {
                return Err(io::Error::other("a record changed while it was read"));
            }
            let ranges = half(&record, 32) as usize;
            let mut from = HEAD + ranges * RANGE;
            for range in 0..ranges {
                let entry = HEAD + range * RANGE;
                let (offset, bytes) = (word(&record, entry), word(&record, entry + 8) as usize);
                apply(offset, &record[from..from + bytes])?;
                from += bytes;
            }
            last = Last { number: found.number, area: index };
        }
    }
    Ok(last)
}

/// Reads the record at `at` of an area into `record`, and judges all of it.
fn read_record(
    file: &impl FileExt,
    area: u64,
    index: usize,
    at: u64,
    sequence: u64,
    mirror_len: u64,
    record: &mut Vec<u8>,
) -> io::Result<Option<Found>> {
    if at + BLOCK > area {
        return Ok(None);
    }
    record.resize(BLOCK as usize, 0);
    file.read_exact_at(record, start(area, index) + at)?;
    let (bytes, ranges) = (word(record, 24), u64::from(half(record, 32)));
    let len = record_len(ranges, bytes);
    if record[..8] != MAGIC
        || word(record, 8) != sequence
        || len > RECORD_MAX.min(area)
        || at + len > area
    {
        return Ok(None);
    }
    record.resize(len as usize, 0);
    file.read_exact_at(record, start(area, index) + at)?;
    if crc(record) != half(record, 36) {
        return Ok(None);
    }
    let mut sum = 0u64;
    for range in 0..ranges as usize {
        let entry = HEAD + range * RANGE;
        let (offset, len) = (word(record, entry), word(record, entry + 8));
        if offset.checked_add(len).is_none_or(|end| end > mirror_len) {
            return Ok(None);
        }
        sum = sum.saturating_add(len);
    }
    let found = Found { number: word(record, 16), at, len };
    Ok((sum == bytes).then_some(found))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::layout::Part;
    use crate::sys;

    const AREA: u64 = 16 << 10;
    const LEN: u64 = 64 << 10;

    /// A file in memory that several have.
    #[derive(Clone)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Shared {
        fn new() -> Shared {
            Shared(Arc::new(Mutex::new(vec![0; file_len(AREA) as usize])))
        }
    }

    impl Storage for Shared {
        fn write_at(&mut self, data: &[u8], at: u64) -> io::Result<()> {
            self.0.lock().unwrap()[at as usize..][..data.len()].copy_from_slice(data);
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl FileExt for Shared {
        fn read_at(&self, out: &mut [u8], at: u64) -> io::Result<usize> {
            let bytes = self.0.lock().unwrap();
            let from = bytes.get(at as usize..).unwrap_or_default();
            let len = out.len().min(from.len());
            out[..len].copy_from_slice(&from[..len]);
            Ok(len)
        }

        fn write_at(&self, _: &[u8], _: u64) -> io::Result<usize> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    /// Offsets of what is replayed, and the number of the last record.
    fn replayed(file: &Shared, sequence: u64) -> (Vec<u64>, u64) {
        let mut offsets = Vec::new();
        let last = replay(file, AREA, sequence, LEN, |at, bytes| {
            assert_eq!(bytes.len(), 8);
            offsets.push(at);
            Ok(())
        });
        (offsets, last.unwrap().number)
    }

    struct Bench {
        mapping: Mapping,
        file: Shared,
        occupied: Arc<Occupied>,
        journal: Journal,
    }

    fn bench() -> Bench {
        let memory = sys::memory_file("journal", LEN, Default::default()).unwrap();
        let mapping = Mapping::from_fd(memory.as_fd(), 0, LEN as usize, true).unwrap();
        let file = Shared::new();
        // One buffer, at the end.
        let buffers = Part { offset: LEN - BLOCK, len: BLOCK };
        let occupied = Arc::new(Occupied::new(buffers, BLOCK as u32));
        let journal = Journal::new(
            Box::new(file.clone()),
            1,
            AREA,
            Last::default(),
            LEN,
            Arc::clone(&occupied),
        );
        Bench { mapping, file, occupied, journal }
    }

    impl Bench {
        fn append(&mut self, offset: u64) {
            let range = [FlushRange { offset, len: 8 }];
            let len = self.journal.next_record(&mut Cut::new(&range)).unwrap();
            if !self.journal.has_room(len) {
                self.journal.checkpointed();
                self.journal.turn();
            }
            assert_eq!(self.journal.append(&self.mapping).unwrap(), len);
            assert!(self.journal.sync().unwrap());
        }
    }

    #[test]
    fn records_are_replayed_in_order_and_by_their_superblock_alone() {
        let mut bench = bench();
        for at in 0..6 {
            bench.append(at * 8);
        }
        assert_eq!(replayed(&bench.file, 1), ((0..6).map(|at| at * 8).collect(), 6));
        assert_eq!(replayed(&bench.file, 2), (vec![], 0));
        // The first area is used again; what it still has of old is left out.
        for at in 6..9 {
            bench.append(at * 8);
        }
        assert_eq!(replayed(&bench.file, 1), ((4..9).map(|at| at * 8).collect(), 9));
        // A torn record ends its area, and what lies before a gap is old.
        let torn = start(AREA, 1) as usize + 70;
        bench.file.0.lock().unwrap()[torn] ^= 1;
        assert_eq!(replayed(&bench.file, 1), (vec![64], 9));
        bench.journal.forget().unwrap();
        assert_eq!(replayed(&bench.file, 1), (vec![], 12));
        assert!(bench.journal.is_empty());
        bench.append(800);
        assert_eq!(replayed(&bench.file, 1), (vec![800], 13));
    }

    #[test]
    fn what_is_too_large_is_not_taken() {
        let bench = bench();
        let range = |len| [FlushRange { offset: 0, len }];
        assert!(bench.journal.takes(&range(AREA / 2 - 16)));
        assert!(!bench.journal.takes(&range(AREA / 2 - 15)));
        assert!(!bench.journal.takes(&range(u64::MAX)));
        assert!(!bench.journal.takes(&[range(u64::MAX)[0], range(u64::MAX)[0]]));
    }

    proptest! {
        /// A commit of any ranges is cut into records that fit, and nothing is left out.
        #[test]
        fn records_have_all_of_a_commit(
            lens in prop::collection::vec(1u64..40_000, 1..30),
        ) {
            let mut bench = bench();
            let ranges: Vec<FlushRange> =
                lens.iter().map(|&len| FlushRange { offset: len % 1000, len }).collect();
            let mut cut = Cut::new(&ranges);
            let mut parts = Vec::new();
            while let Some(len) = bench.journal.next_record(&mut cut) {
                prop_assert!(len <= AREA && len % BLOCK == 0);
                parts.extend_from_slice(&bench.journal.parts);
            }
            let mut parts = parts.into_iter();
            for range in ranges {
                let mut at = range.offset;
                while at < range.end() {
                    let part = parts.next().expect("all of it");
                    prop_assert!(part.offset == at && part.end() <= range.end());
                    at = part.end();
                }
            }
            prop_assert_eq!(parts.next(), None);
        }
    }

    /// A checkpoint begins when half of the next area is full, keeps step with it, and
    /// is done before that one is.
    #[test]
    fn a_checkpoint_is_as_late_as_can_be() {
        let mut bench = bench();
        (0..4).for_each(|at| bench.append(at * 8192));
        let next = |bench: &mut Bench| bench.journal.checkpoint_next(false, BLOCK);
        assert_eq!(next(&mut bench), Next::Nothing, "there is none");
        bench.append(60_000);
        bench.append(60_000);
        assert_eq!(next(&mut bench), Next::Nothing, "half is full");
        bench.append(60_000);
        // Two thirds of the way to seven eighths.
        for at in [0, 8192, 16_384, 24_576] {
            let run = FlushRange { offset: at, len: BLOCK };
            assert_eq!(next(&mut bench), Next::Write(run));
            bench.journal.checkpoint_wrote(run);
        }
        assert_eq!(next(&mut bench), Next::Nothing);
        bench.append(60_000);
        assert_eq!(next(&mut bench), Next::Sync);
        bench.journal.checkpointed();
        assert_eq!(next(&mut bench), Next::Nothing);
        // What is void is not written, even if all is to be done at once.
        (0..5).for_each(|_| bench.append(LEN - 8));
        let at_once = bench.journal.checkpoint_next(true, BLOCK);
        assert_eq!(at_once, Next::Write(FlushRange { offset: LEN - BLOCK, len: BLOCK }));
        bench.occupied.set(0, false);
        bench.occupied.set(0, true);
        assert_eq!(bench.journal.checkpoint_next(true, BLOCK), Next::Sync);
    }

    #[test]
    fn another_file_is_not_recognized() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        std::fs::write(&path, header([7; 16], AREA_MIN)).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        assert_eq!(recognize(&file, [7; 16]).unwrap(), None, "cut");
        file.set_len(file_len(AREA_MIN)).unwrap();
        assert_eq!(recognize(&file, [7; 16]).unwrap(), Some(AREA_MIN));
        assert_eq!(recognize(&file, [8; 16]).unwrap(), None, "of another region");
        file.write_all_at(&[1], 25).unwrap();
        assert_eq!(recognize(&file, [7; 16]).unwrap(), None, "damaged");
        file.set_len(100).unwrap();
        assert_eq!(recognize(&file, [7; 16]).unwrap(), None);
    }

    proptest! {
        /// Damage is found, or what it hits is not needed; nothing outside is given.
        #[test]
        fn no_damage_is_replayed(
            records in 1u64..12,
            damage in prop::collection::vec((0..file_len(AREA) as usize, any::<u8>()), 0..12),
        ) {
            let mut bench = bench();
            for at in 0..records {
                bench.append(at * 8);
            }
            let whole = replayed(&bench.file, 1).0;
            for (at, value) in damage {
                bench.file.0.lock().unwrap()[at] = value;
            }
            let (left, _) = replayed(&bench.file, 1);
            prop_assert!(whole.windows(left.len().max(1)).any(|some| some == left) || left.is_empty());
        }
    }
}
