//! The journal of a mirror: what is to be durable, one range after the other in a
//! file of its own, so that a commit is one write in a row and one sync, however
//! far apart its ranges are.
//!
//! The mirror itself is written behind it, with blocks in order and each one once
//! for all the commits that it was part of: a *checkpoint*. After a loss of power
//! the journal's records are written over the mirror again.
//!
//! # The file
//!
//! A header of one block, then two areas of equal length. Records fill one area;
//! while they fill the other, the first is checkpointed, and it is used again when
//! that is done. A record begins with a block:
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

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::ranges::{FlushRange, Ranges};
use crate::storage::Storage;
use crate::sys::Mapping;

/// What records are rounded up to.
const BLOCK: u64 = 4096;
/// Bytes of a record at most: more is better written where it belongs.
const RECORD_MAX: u64 = 2 << 20;
const HEAD: usize = 64;
const RANGE: usize = 16;
const MAGIC: [u8; 8] = *b"PASTEREC";
const FILE_MAGIC: [u8; 8] = *b"PASTEJNL";
const AREA_MIN: u64 = 256 << 10;
const AREA_MAX: u64 = 16 << 20;
/// Ranges of an area that are kept apart.
const RANGES: usize = 32 << 10;

/// Bytes of each area for a mirror of `len` bytes.
pub(crate) fn area_len(len: u64) -> u64 {
    (len / 16).next_multiple_of(BLOCK).clamp(AREA_MIN, AREA_MAX)
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

/// What was not written.
#[derive(Debug)]
pub(crate) struct WriteFailed {
    pub(crate) at: u64,
    pub(crate) len: usize,
    pub(crate) source: io::Error,
}

/// The records that are written, and what of the mirror waits for them.
pub(crate) struct Journal {
    storage: Box<dyn Storage>,
    sequence: u64,
    area: u64,
    /// The mirror's blocks that the records of each area are newer than.
    dirty: [Ranges; 2],
    current: usize,
    /// Where the next record goes, from the start of its area.
    at: u64,
    number: u64,
    /// A recovery may find records.
    found: bool,
    /// The checkpoint under way: of the other area, and its first range that is
    /// not written.
    checkpoint: Option<usize>,
    record: Vec<u8>,
}

impl Journal {
    /// An empty journal for a mirror whose superblock has this sequence. `number` is
    /// that of the last record with this sequence, 0 if there is none.
    pub(crate) fn new(storage: Box<dyn Storage>, sequence: u64, area: u64, number: u64) -> Journal {
        Journal {
            storage,
            sequence,
            area,
            dirty: [Ranges::new(RANGES), Ranges::new(RANGES)],
            current: 0,
            at: 0,
            number,
            found: number > 0,
            checkpoint: None,
            record: Vec::with_capacity(RECORD_MAX.min(area) as usize),
        }
    }

    /// Whether these ranges fit into a record.
    pub(crate) fn takes(&self, ranges: &[FlushRange]) -> bool {
        let bytes = ranges.iter().fold(0u64, |sum, range| sum.saturating_add(range.len));
        record_len(ranges.len() as u64, bytes) <= RECORD_MAX.min(self.area)
    }

    /// Whether there is room for them in the area that is being filled.
    fn has_room(&self, ranges: &[FlushRange]) -> bool {
        let bytes = ranges.iter().map(|range| range.len).sum();
        self.at + record_len(ranges.len() as u64, bytes) <= self.area
    }

    /// Whether [`Journal::append`] has to wait for a checkpoint first.
    pub(crate) fn must_checkpoint(&self, ranges: &[FlushRange]) -> bool {
        !self.has_room(ranges) && self.checkpoint.is_some()
    }

    /// Writes a record of what the ranges hold now, which [`Journal::takes`], and
    /// gives where it lies in the file, for [`Journal::appended`] when it is
    /// synced.
    pub(crate) fn append(
        &mut self,
        mapping: &Mapping,
        ranges: &[FlushRange],
    ) -> Result<u64, WriteFailed> {
        if !self.has_room(ranges) {
            debug_assert!(self.checkpoint.is_none() && self.dirty[1 - self.current].is_empty());
            self.dirty[self.current].align(BLOCK);
            self.checkpoint = Some(0);
            self.current = 1 - self.current;
            self.at = 0;
        }
        let record = &mut self.record;
        record.clear();
        record.resize(HEAD, 0);
        let mut bytes = 0;
        for range in ranges {
            record.extend_from_slice(&range.offset.to_le_bytes());
            record.extend_from_slice(&range.len.to_le_bytes());
            bytes += range.len;
        }
        for range in ranges {
            let from = record.len();
            record.resize(from + range.len as usize, 0);
            let read = mapping.read_words_at(range.offset as usize, &mut record[from..]);
            debug_assert!(read, "judged when it was added");
        }
        record.resize(record.len().next_multiple_of(BLOCK as usize), 0);
        record[..8].copy_from_slice(&MAGIC);
        record[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        record[16..24].copy_from_slice(&(self.number + 1).to_le_bytes());
        record[24..32].copy_from_slice(&bytes.to_le_bytes());
        record[32..36].copy_from_slice(&(ranges.len() as u32).to_le_bytes());
        let crc = crc(record);
        record[36..40].copy_from_slice(&crc.to_le_bytes());
        let (at, len) = (start(self.area, self.current) + self.at, record.len());
        self.found = true;
        self.storage.write_at(record, at).map_err(|source| WriteFailed { at, len, source })?;
        Ok(len as u64)
    }

    /// Waits until what was written is in storage.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.storage.sync()
    }

    /// The record of these ranges, `len` bytes, is durable.
    pub(crate) fn appended(&mut self, ranges: &[FlushRange], len: u64) {
        self.at += len;
        self.number += 1;
        for &range in ranges {
            self.dirty[self.current].push(range);
        }
    }

    /// The next ranges, blocks, that the checkpoint under way has to write to the
    /// mirror, of about `bytes` together, for [`Journal::checkpoint_wrote`]. Empty
    /// when they are all written: the mirror is to be synced, and then
    /// [`Journal::checkpointed`]. `None` if there is no checkpoint under way.
    pub(crate) fn to_checkpoint(&self, bytes: u64) -> Option<&[FlushRange]> {
        let ranges = &self.dirty[1 - self.current].as_slice()[self.checkpoint?..];
        let (mut sum, mut count) = (0, 0);
        while count < ranges.len() && sum < bytes {
            sum += ranges[count].len;
            count += 1;
        }
        Some(&ranges[..count])
    }

    /// So many of them are written.
    pub(crate) fn checkpoint_wrote(&mut self, count: usize) {
        if let Some(cursor) = &mut self.checkpoint {
            *cursor += count;
        }
    }

    /// The checkpoint is done: its area may be used again.
    pub(crate) fn checkpointed(&mut self) {
        self.dirty[1 - self.current].clear();
        self.checkpoint = None;
    }

    /// Everything in the mirror that any record is newer than. When it is written
    /// and synced, [`Journal::forget`] is to be called, and nothing before that.
    pub(crate) fn take_dirty(&mut self, into: &mut Ranges) {
        for dirty in &mut self.dirty {
            into.append(dirty);
        }
        self.checkpoint = None;
    }

    /// Whether there is no record that a recovery would find.
    pub(crate) fn is_empty(&self) -> bool {
        !self.found
    }

    /// Makes recovery find no record: the mirror has everything.
    ///
    /// # Errors
    /// Of the storage; records may be found then, or not.
    pub(crate) fn forget(&mut self) -> io::Result<()> {
        for index in [0, 1] {
            self.storage.write_at(&[0; BLOCK as usize], start(self.area, index))?;
        }
        self.storage.sync()?;
        self.dirty.iter_mut().for_each(Ranges::clear);
        (self.current, self.at, self.checkpoint, self.found) = (0, 0, None, false);
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
/// mirror of `len` bytes whose superblock has this sequence. Returns the number of the
/// last one, 0 if there is none.
///
/// # Errors
/// Of reading the file, and those of `apply`.
pub(crate) fn replay(
    file: &impl FileExt,
    area: u64,
    sequence: u64,
    len: u64,
    mut apply: impl FnMut(u64, &[u8]) -> io::Result<()>,
) -> io::Result<u64> {
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
    let mut last = 0;
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
            last = found.number;
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
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;
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
        (offsets, last.unwrap())
    }

    struct Bench {
        mapping: Mapping,
        file: Shared,
        journal: Journal,
    }

    fn bench() -> Bench {
        let memory = sys::memory_file("journal", LEN, Default::default()).unwrap();
        let mapping = Mapping::from_fd(memory.as_fd(), 0, LEN as usize, true).unwrap();
        let file = Shared::new();
        let journal = Journal::new(Box::new(file.clone()), 1, AREA, 0);
        Bench { mapping, file, journal }
    }

    impl Bench {
        fn append(&mut self, offset: u64) {
            let range = [FlushRange { offset, len: 8 }];
            if self.journal.must_checkpoint(&range) {
                self.journal.checkpointed();
            }
            let len = self.journal.append(&self.mapping, &range).unwrap();
            self.journal.appended(&range, len);
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
        assert_eq!(replayed(&bench.file, 1), (vec![], 0));
        assert!(bench.journal.is_empty());
        bench.append(800);
        assert_eq!(replayed(&bench.file, 1), (vec![800], 10));
    }

    #[test]
    fn what_is_too_large_is_not_taken() {
        let bench = bench();
        let range = |len| [FlushRange { offset: 0, len }];
        assert!(bench.journal.takes(&range(AREA - 80)));
        assert!(!bench.journal.takes(&range(AREA - 79)));
        assert!(!bench.journal.takes(&range(u64::MAX)));
        assert!(!bench.journal.takes(&[range(u64::MAX)[0], range(u64::MAX)[0]]));
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
