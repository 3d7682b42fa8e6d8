//! The keyspace after a crash, from what the log names.
//!
//! What happened to an epoch that was never known to be durable is anybody's
//! guess, word by word. So the log is believed up to the first record of such an
//! epoch whose run or payload is not as its checksum says, unless something later
//! supersedes it; from there on, nothing happened (nothing of it was
//! acknowledged), and an entry says so for all time. A run or a payload that was
//! known to be durable and is not as it should be is *damaged*: it is reported,
//! and not served.

use std::collections::{HashMap, HashSet};

use super::clean::entries;
use super::write::fixed;
use super::{Logged, Refused, Store};
use crate::kv::entry::{HEAD, Head, Kind, RUN_HEAD};
use crate::kv::extent::Extent;
use crate::kv::index::{Item, Spot};
use crate::kv::region::{Recovering, Region};

/// What recovery found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Keys that are there.
    pub keys: usize,
    /// Records of the log.
    pub records: usize,
    /// Records that never happened: the end of the log, torn by the crash. Nothing
    /// of them was acknowledged.
    pub torn: usize,
    /// Records whose entries are damaged. Keys may be missing, or be as they were
    /// before.
    pub damaged_records: usize,
    /// Keys whose values are damaged. They are deleted.
    pub damaged_keys: Vec<Vec<u8>>,
    /// Claims that nothing named, which were cleared.
    pub leaked: u32,
    /// Damaged places of the log. Keys may be missing, or be as they were before.
    pub log_damages: u64,
}

impl Recovered {
    /// Whether everything that was acknowledged is there.
    pub fn is_sound(&self) -> bool {
        self.log_damages == 0 && self.damaged_records == 0 && self.damaged_keys.is_empty()
    }
}

/// Why a store could not be recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// No buffer to note in what was torn or damaged.
    #[error("no empty buffer to write to: give the channel a larger reserve")]
    NoBuffer,
    /// No record left to note it with.
    #[error("the region is full: it has no room to note what was torn by the crash")]
    Full,
}

impl From<Refused> for RecoverError {
    fn from(refused: Refused) -> RecoverError {
        match refused {
            Refused::Full => RecoverError::Full,
            Refused::Starved => RecoverError::NoBuffer,
        }
    }
}

/// A record as recovery sees it.
#[derive(Debug)]
struct Record {
    number: u64,
    extent: Extent,
    /// Its entries, if the run is as its checksum says.
    entries: Option<Vec<Entry>>,
}

#[derive(Debug)]
struct Entry {
    spot: Spot,
    head: Head,
    key: Vec<u8>,
}

impl Store {
    /// Rebuilds a store. The region's log goes on where it ended.
    ///
    /// # Errors
    /// [`RecoverError`], if something has to be noted and cannot be. Nothing has
    /// been changed then.
    pub(in crate::kv) fn recover<R: Recovering>(
        region: &mut R,
        limit: u32,
        secret: [u64; 2],
    ) -> Result<(Store, Recovered), RecoverError> {
        let mut store = Store::new(region, limit, secret);
        let mut report = Recovered { log_damages: region.log_damages(), ..Recovered::default() };
        let mut durable = 0;
        let mut voids = Vec::new();
        let mut records = Vec::new();
        for (number, run) in region.records() {
            let extent = run.extent;
            let good = extent.fits(region.buffer_count(), region.buffer_size())
                && usize::from(extent.len) > RUN_HEAD
                && region.is_claimed(extent.buffer)
                && region.checksum(extent, 0) == run.checksum;
            let entries = good.then(|| read(region, extent)).flatten();
            for void in entries.iter().flatten().filter(|entry| entry.head.kind == Kind::Void) {
                let from = void.head.expires_ms;
                voids.push((number, from..from.saturating_add(void.head.value_len.into())));
            }
            if entries.is_some() {
                let mut bytes = [0; RUN_HEAD];
                region.read(extent.buffer, extent.offset, &mut bytes);
                durable = u64::from_le_bytes(bytes).max(durable);
            }
            records.push(Record { number, extent, entries });
        }
        report.records = records.len();
        for record in &mut records {
            if voids.iter().any(|(_, void)| void.contains(&record.number)) {
                record.entries = Some(Vec::new());
                record.extent.len = 0;
            }
        }

        let cut = torn_from(region, &records, durable);
        let happened = records.partition_point(|record| record.number < cut);
        report.torn = records.len() - happened;
        for record in &mut records[happened..] {
            record.entries = Some(Vec::new());
            record.extent.len = 0;
        }
        report.damaged_records = records.iter().filter(|record| record.entries.is_none()).count();

        for buffer in 0..region.buffer_count() {
            if region.is_claimed(buffer) {
                store.holds.found_claimed(buffer);
            }
        }
        store.pages.durable = durable;
        let mut pages = HashSet::new();
        for record in &mut records {
            if record.entries.is_none() {
                record.extent.len = 0;
            }
            let Record { number, extent, .. } = *record;
            if extent.len > 0 {
                store.holds.hold(extent.buffer);
                pages.insert(extent.buffer);
                if number >= durable {
                    store.holds.claim(region, extent.buffer);
                    region.flush(extent);
                }
            }
            store.log.push_back(Logged { number, extent });
            for entry in record.entries.take().into_iter().flatten() {
                store.apply(region, &entry);
            }
        }
        store.pages.count = pages.len();

        let damaged = store.take_up(region, &mut report, durable);
        // Before anything is noted: what leaks takes no room.
        report.leaked = store.holds.free_nameless();
        // What the last epochs left is made durable with the first of the new ones.
        store.dirty = true;
        if report.torn > 0 {
            // A record that goes may have said itself that others before it had gone.
            let said =
                voids.iter().filter(|(number, _)| *number >= cut).map(|(_, void)| void.start);
            let first = said.min().unwrap_or(cut).min(records[happened].number);
            let head = Head {
                expires_ms: first,
                value_len: (records[records.len() - 1].number - first + 1) as u32,
                ..fixed(Kind::Void, 0)
            };
            store.admit_bytes(region, head.entry_len(), 0, 0, true)?;
            store.append(region, &head, &[], &[])?;
        }
        for key in damaged {
            let head = fixed(Kind::Deleted, key.len());
            store.admit_bytes(region, head.entry_len(), 0, 0, true)?;
            store.append(region, &head, &key, &[])?;
            report.damaged_keys.push(key);
        }
        report.keys = store.index.len();
        Ok((store, report))
    }

    /// Makes an entry of the log the newest of its key.
    fn apply(&mut self, region: &impl Region, entry: &Entry) {
        let hash = self.hash(&entry.key);
        match entry.head.kind {
            Kind::Packed | Kind::Extents | Kind::Lists => {
                let expires_ms = entry.head.expires_ms;
                match self.lookup(region, hash, &entry.key) {
                    Some(old) => self.index.update(old.number, entry.spot, expires_ms),
                    None => self.index.insert(Item { hash, expires_ms, spot: entry.spot }),
                }
            }
            Kind::Deleted => {
                if let Some(old) = self.lookup(region, hash, &entry.key) {
                    self.index.remove(old.number);
                }
            }
            Kind::Cleared => self.index.clear(),
            Kind::Void => {}
        }
    }

    /// Verifies the value of every key and names its buffers. Returns the keys
    /// whose values are damaged.
    fn take_up(
        &mut self,
        region: &mut impl Recovering,
        report: &mut Recovered,
        durable: u64,
    ) -> Vec<Vec<u8>> {
        // Entries of epochs that may not be durable yet.
        let new: HashSet<(u32, u16)> = self
            .log
            .iter()
            .filter(|run| run.number >= durable && run.extent.len > 0)
            .flat_map(|run| {
                let mut spots = Vec::new();
                entries(region, run.extent, |spot, _| spots.push((spot.buffer, spot.offset)));
                spots
            })
            .collect();
        let mut damaged = Vec::new();
        for number in 0..self.index.numbers() {
            let Some(&Item { spot, .. }) = self.index.item(number) else { continue };
            let Some(head) = self.head(region, spot) else { continue };
            match payload(region, spot, &head) {
                Some(extents) => {
                    for extent in extents {
                        self.holds.hold(extent.buffer);
                        if new.contains(&(spot.buffer, spot.offset)) {
                            region.claim(extent.buffer);
                            region.flush(extent);
                        }
                    }
                    self.live += head.entry_len();
                }
                None => {
                    damaged.push(key(region, spot, &head));
                    self.index.remove(number);
                }
            }
        }
        damaged.sort_unstable();
        report.damaged_keys.reserve(damaged.len());
        damaged
    }
}

fn key(region: &impl Region, spot: Spot, head: &Head) -> Vec<u8> {
    let mut key = vec![0; head.key_len.into()];
    region.read(spot.buffer, spot.offset + HEAD as u16, &mut key);
    key
}

/// The entries of a run; `None` if it is none.
fn read(region: &impl Region, run: Extent) -> Option<Vec<Entry>> {
    let mut found = Vec::new();
    let whole = entries(region, run, |spot, head| {
        found.push(Entry { spot, head, key: key(region, spot, &head) });
    });
    whole.then_some(found)
}

/// What an entry names, lists before what they list, if all of it is claimed and
/// as the checksum says.
fn payload(region: &impl Recovering, spot: Spot, head: &Head) -> Option<Vec<Extent>> {
    let (count, size) = (region.buffer_count(), region.buffer_size());
    let good = |extent: Extent| extent.fits(count, size) && region.is_claimed(extent.buffer);
    let (mut all, mut sum, mut bytes) = (Vec::new(), 0, [0; Extent::STORED]);
    for number in 0..head.extents() {
        let at = usize::from(spot.offset) + head.body_at() + number * Extent::STORED;
        region.read(spot.buffer, at as u16, &mut bytes);
        let extent = Extent::from_bytes(bytes);
        if !good(extent) {
            return None;
        }
        all.push(extent);
        if head.kind == Kind::Extents {
            sum = region.checksum(extent, sum);
            continue;
        }
        for at in (0..extent.len).step_by(Extent::STORED) {
            if usize::from(extent.len - at) < Extent::STORED {
                return None;
            }
            region.read(extent.buffer, extent.offset + at, &mut bytes);
            let listed = Extent::from_bytes(bytes);
            if !good(listed) {
                return None;
            }
            all.push(listed);
            sum = region.checksum(listed, sum);
        }
    }
    (sum == head.checksum).then_some(all)
}

/// The number of the first record that never happened.
fn torn_from(region: &impl Recovering, records: &[Record], durable: u64) -> u64 {
    let recent = records.partition_point(|record| record.number < durable);
    let recent = &records[recent..];
    let mut cut = recent
        .iter()
        .find(|record| record.entries.is_none())
        .map_or(u64::MAX, |record| record.number);
    loop {
        // Whom a later entry before the cut supersedes is as good as gone.
        let mut newest: HashMap<&[u8], (u64, usize)> = HashMap::new();
        let mut cleared = (0, 0);
        let mut all = Vec::new();
        for record in recent.iter().take_while(|record| record.number < cut) {
            for entry in record.entries.iter().flatten() {
                let at = (record.number, all.len());
                match entry.head.kind {
                    Kind::Cleared => cleared = at,
                    Kind::Void => {}
                    _ => drop(newest.insert(&entry.key, at)),
                }
                all.push((record.number, entry));
            }
        }
        // Where the request begins that the entry belongs to.
        let mut request = 0;
        let mut torn = None;
        for (at, &(number, entry)) in all.iter().enumerate() {
            if at == 0 || !all[at - 1].1.head.more {
                request = number;
            }
            let superseded = at < cleared.1
                || newest.get(&entry.key[..]).is_some_and(|&(_, newest)| newest != at);
            let last = at + 1 == all.len();
            let bad = !superseded && payload(region, entry.spot, &entry.head).is_none();
            if bad || (last && entry.head.more) {
                torn = Some(request);
                break;
            }
        }
        match torn {
            Some(number) => cut = number,
            None => return cut,
        }
    }
}
