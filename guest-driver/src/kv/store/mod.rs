//! The keyspace: a log of entries in the region's buffers, and a volatile table
//! that says where the newest entry of each key lies.
//!
//! # Where values lie
//!
//! A value of half a buffer or more stays in the buffers that it arrived in, as
//! the whole bulk string that the client sent, so an answer is sent from there.
//! Pieces of less than half a buffer, and whole values of less, are copied and
//! packed: values into *pages*, beside their keys, and pieces of long values into
//! *scrap* buffers. So nothing pins more than about twice its size.
//!
//! # What is durable when
//!
//! Each change appends an entry to the page; a batch ends with one record of the
//! log for each page that it wrote to, in one epoch with entries, payload and
//! claims ([`Store::commit`]). What a change takes the last name from is given
//! back only when its epoch is durable, so a crash finds either the old value
//! whole or the new one.
//!
//! # Cleaning
//!
//! Pages and records are given back in the order in which they were written: what
//! is still good in the oldest run is written again at the end, and when that is
//! durable the record is dropped. So whatever an entry supersedes left the log
//! before it, and a deletion need not be kept longer than its run. Payload is
//! never copied for it.

mod clean;
mod holds;
mod pages;
mod recover;

use std::collections::VecDeque;
use std::hash::Hasher;

use paste_pmem::Ticket;
use siphasher::sip::SipHasher13;

use super::entry::{ALIGN, HEAD, Head, Kind};
use super::extent::Extent;
use super::index::{Index, Item, Spot};
use super::region::Region;
use super::request::BULK_MAX;
use holds::Holds;
pub(in crate::kv) use pages::KEY_MAX;
use pages::Pages;
pub use recover::{Recovered, RecoverError};

/// Values from here on are not packed, however large the buffers.
const PACKED_MAX: usize = 16 * 1024;
/// Records that only deleting and cleaning may use.
const RECORDS_RESERVED: u64 = 16;
/// Buffers that only deleting and cleaning may use.
const BUFFERS_RESERVED: u32 = 16;

/// Why a change was not made. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The store has no room for it.
    Full,
    /// No empty buffer is at hand now.
    Starved,
}

/// A part of a new value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part<'a> {
    /// Bytes that are nowhere in the region.
    Bytes(&'a [u8]),
    /// Bytes that lie in a buffer with a name.
    Range(Extent),
}

/// A key that was found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    number: u32,
    spot: Spot,
    head: Head,
}

impl Found {
    /// Bytes of the value.
    pub(super) fn len(&self) -> usize {
        self.head.value_len as usize
    }

    /// When the key ends; 0 for never.
    pub(super) fn expires_ms(&self) -> u64 {
        self.head.expires_ms
    }

    /// Where the value lies, if it is packed.
    pub(super) fn packed(&self) -> Option<Extent> {
        let offset = self.spot.offset + self.head.body_at() as u16;
        let extent = Extent { buffer: self.spot.buffer, offset, len: self.head.body_len };
        (self.head.kind == Kind::Packed).then_some(extent)
    }
}

/// A run whose record is in the log.
#[derive(Clone, Copy, Debug)]
struct Logged {
    number: u64,
    extent: Extent,
}

/// The store. It is told the region and the time with each call.
#[derive(Debug)]
pub struct Store {
    secret: [u64; 2],
    index: Index,
    holds: Holds,
    pages: Pages,
    /// Bytes of entries that are good.
    live: usize,
    /// The runs in the log, oldest first.
    log: VecDeque<Logged>,
    /// How many of them hold nothing good any more.
    cleaned: usize,
    /// Epochs on their way: the number after their last record, and how many of
    /// the oldest runs hold nothing good once they are durable.
    epochs: VecDeque<Epoch>,
    /// Runs whose records are being given up.
    dropped: VecDeque<Logged>,
    /// Something was written, claimed or dropped in this epoch.
    dirty: bool,
    /// Bytes of entries that this batch has appended.
    appended: usize,
    /// Buffers that stored data may take.
    limit: u32,
    sweep: u32,
    scratch: Vec<u8>,
    extents: Vec<Extent>,
    stats: Stats,
}

/// An epoch on its way.
#[derive(Clone, Copy, Debug)]
struct Epoch {
    ticket: Ticket,
    next_record: u64,
    cleaned_before: u64,
}

/// What the store has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes that were copied into pages and scrap buffers.
    pub copied: u64,
    /// Bytes of entries that were written again to give their pages back.
    pub moved: u64,
    /// Records appended to the log.
    pub records: u64,
    /// Epochs ended.
    pub epochs: u64,
    /// Keys that ended by themselves.
    pub expired: u64,
}

impl Store {
    /// An empty store in a region whose log is empty, which takes at most `limit`
    /// buffers. `secret` keys the table's hash.
    pub fn new(region: &impl Region, limit: u32, secret: [u64; 2]) -> Store {
        let count = region.buffer_count();
        Store {
            secret,
            index: Index::new(),
            holds: Holds::new(count),
            pages: Pages::new(region),
            live: 0,
            log: VecDeque::new(),
            cleaned: 0,
            epochs: VecDeque::new(),
            dropped: VecDeque::new(),
            dirty: false,
            appended: 0,
            limit: limit.min(count),
            sweep: 0,
            scratch: Vec::new(),
            extents: Vec::new(),
            stats: Stats::default(),
        }
    }

    // --- reading -----------------------------------------------------------

    /// Keys, those included that have ended and were not swept up yet.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.index.len() == 0
    }

    /// Keys that end some time.
    pub fn mortal(&self) -> usize {
        self.index.mortal()
    }

    /// Buffers that stored data has, and that it may have.
    pub fn buffers(&self) -> (u32, u32) {
        (self.holds.claims().saturating_sub(self.holds.nameless() as u32), self.limit)
    }

    /// What the store has counted.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.secret[0], self.secret[1]);
        hasher.write(key);
        hasher.finish()
    }

    fn head(&self, region: &impl Region, spot: Spot) -> Option<Head> {
        let mut bytes = [0; HEAD];
        region.read(spot.buffer, spot.offset, &mut bytes);
        Head::from_bytes(&bytes)
    }

    /// The key's entry, whether it has ended or not.
    fn lookup(&self, region: &impl Region, hash: u64, key: &[u8]) -> Option<Found> {
        let mut head = None;
        let number = self.index.find(hash, |spot| {
            head = self.head(region, spot);
            head.is_some_and(|head| {
                usize::from(head.key_len) == key.len() && has_key(region, spot, key)
            })
        })?;
        Some(Found { number, spot: self.index.item(number)?.spot, head: head? })
    }

    /// The key, if it is there and has not ended.
    pub(super) fn find(&self, region: &impl Region, now_ms: u64, key: &[u8]) -> Option<Found> {
        let found = self.lookup(region, self.hash(key), key)?;
        let ended = found.head.expires_ms != 0 && found.head.expires_ms <= now_ms;
        (!ended).then_some(found)
    }

    /// Adds where the value lies that is not packed: as a bulk string, with its
    /// line and line end.
    pub(super) fn bulk(&self, region: &impl Region, found: &Found, out: &mut Vec<Extent>) {
        self.named(region, found.spot, &found.head, |extent, is_list| {
            if !is_list {
                out.push(extent);
            }
        });
    }

    /// Every range that an entry names, lists before what they list.
    fn named(
        &self,
        region: &impl Region,
        spot: Spot,
        head: &Head,
        mut visit: impl FnMut(Extent, bool),
    ) {
        let is_list = head.kind == Kind::Lists;
        let mut bytes = [0; Extent::STORED];
        for number in 0..head.extents() {
            let at = usize::from(spot.offset) + head.body_at() + number * Extent::STORED;
            region.read(spot.buffer, at as u16, &mut bytes);
            let extent = Extent::from_bytes(bytes);
            visit(extent, is_list);
            if is_list {
                for at in (0..extent.len).step_by(Extent::STORED) {
                    region.read(extent.buffer, extent.offset + at, &mut bytes);
                    visit(Extent::from_bytes(bytes), false);
                }
            }
        }
    }

    /// Visits keys from `cursor` on, a chain of the table; returns the next cursor,
    /// 0 after the last.
    pub(super) fn scan(
        &mut self,
        region: &impl Region,
        now_ms: u64,
        cursor: u64,
        mut visit: impl FnMut(&[u8]),
    ) -> u64 {
        let mut key = std::mem::take(&mut self.scratch);
        let next = self.index.scan(cursor, |spot, expires_ms| {
            if expires_ms != 0 && expires_ms <= now_ms {
                return;
            }
            if let Some(head) = self.head(region, spot) {
                key.resize(head.key_len.into(), 0);
                region.read(spot.buffer, spot.offset + HEAD as u16, &mut key);
                visit(&key);
            }
        });
        self.scratch = key;
        next
    }

    // --- names of buffers ----------------------------------------------------

    /// Somebody else names a buffer: a request or an answer.
    pub(super) fn hold(&mut self, buffer: u32) {
        self.holds.hold(buffer);
    }

    /// And no longer.
    pub(super) fn unhold(&mut self, region: &mut impl Region, buffer: u32) {
        self.holds.drop(region, buffer);
    }

    // --- writing -------------------------------------------------------------

    /// Whether a value of so many bytes is packed.
    pub(super) fn packs(&self, len: usize) -> bool {
        len < self.small()
    }

    /// What is less than this is copied.
    fn small(&self) -> usize {
        (self.pages.page_len() / 2).min(PACKED_MAX)
    }

    /// Bytes of an entry with this key and a packed value of this length, or with
    /// extents.
    fn entry_len(&self, key: usize, value: usize) -> usize {
        let body = if self.packs(value) { value } else { self.small() };
        (HEAD + key + body).next_multiple_of(ALIGN)
    }

    /// Makes sure that values of these lengths (of key and value) can all be set
    /// in this batch: a request is done whole or not at all.
    pub(super) fn admit(
        &mut self,
        region: &mut impl Region,
        values: impl Iterator<Item = (usize, usize)>,
    ) -> Result<(), Refused> {
        let (mut entries, mut scraps, mut pinned) = (0, 0, 0);
        for (key, value) in values {
            entries += self.entry_len(key, value);
            if !self.packs(value) {
                // At worst all of it is copied, and a list of pieces of `small`.
                let list = (value.div_ceil(self.small()) + 2) * Extent::STORED;
                scraps += value + list + 32;
                pinned += 2 * value.div_ceil(self.pages.page_len()) + 1;
            }
        }
        self.admit_bytes(region, entries, scraps, pinned, false)
    }

    fn admit_bytes(
        &mut self,
        region: &mut impl Region,
        entries: usize,
        scraps: usize,
        pinned: usize,
        reserved: bool,
    ) -> Result<(), Refused> {
        let page = self.pages.page_len();
        let pages = 2 * entries.div_ceil(page) + 1;
        let (used, limit) = self.buffers();
        let (limit, records) = match reserved {
            true => (limit + BUFFERS_RESERVED, RECORDS_RESERVED / 2),
            false => (limit, RECORDS_RESERVED),
        };
        let room = region.log_room().saturating_sub(records);
        let more = (pages + pinned) as u32;
        // What a reserve is for may always use the page that is there.
        if (used + more > limit && !reserved)
            || used > limit
            || room < (self.pages.pending_runs() + pages) as u64
        {
            return Err(Refused::Full);
        }
        if self.pages.prepare(region, entries, scraps) { Ok(()) } else { Err(Refused::Starved) }
    }

    /// Gives a key a value that packs. It must have been admitted.
    pub(super) fn set_packed(
        &mut self,
        region: &mut impl Region,
        key: &[u8],
        value: &[u8],
        expires_ms: u64,
        more: bool,
    ) -> Result<(), Refused> {
        let head = Head {
            kind: Kind::Packed,
            more,
            key_len: key.len() as u16,
            value_len: value.len() as u32,
            expires_ms,
            checksum: 0,
            body_len: value.len() as u16,
        };
        self.put(region, &head, key, value)
    }

    /// Gives a key a value of `len` bytes that does not pack. The parts are the
    /// whole bulk string. It must have been admitted.
    pub(super) fn set_bulk(
        &mut self,
        region: &mut impl Region,
        key: &[u8],
        len: usize,
        parts: &[Part<'_>],
        expires_ms: u64,
        more: bool,
    ) -> Result<(), Refused> {
        debug_assert!(len <= BULK_MAX);
        let mut extents = std::mem::take(&mut self.extents);
        extents.clear();
        let done = self.place(region, parts, &mut extents);
        let (kind, checksum) = match done {
            Ok(sum) => sum,
            Err(refused) => {
                for extent in extents.drain(..) {
                    self.holds.drop(region, extent.buffer);
                }
                self.extents = extents;
                return Err(refused);
            }
        };
        let mut body = std::mem::take(&mut self.scratch);
        body.clear();
        body.extend(extents.iter().flat_map(|extent| extent.to_bytes()));
        self.extents = extents;
        let head = Head {
            kind,
            more,
            key_len: key.len() as u16,
            value_len: len as u32,
            expires_ms,
            checksum,
            body_len: body.len() as u16,
        };
        let done = self.put(region, &head, key, &body);
        self.scratch = body;
        done
    }

    /// Finds places for the parts of a value: where they are, or in a scrap
    /// buffer. The extents are held, and flushed.
    fn place(
        &mut self,
        region: &mut impl Region,
        parts: &[Part<'_>],
        extents: &mut Vec<Extent>,
    ) -> Result<(Kind, u32), Refused> {
        let small = self.small();
        let mut copy = std::mem::take(&mut self.scratch);
        let mut placed = Ok(());
        for part in parts {
            let bytes = match *part {
                Part::Bytes(bytes) => bytes,
                Part::Range(extent) if usize::from(extent.len) >= small => {
                    self.holds.hold(extent.buffer);
                    self.holds.claim(region, extent.buffer);
                    region.flush(extent);
                    extents.push(extent);
                    continue;
                }
                Part::Range(extent) => {
                    copy.resize(extent.len.into(), 0);
                    region.read(extent.buffer, extent.offset, &mut copy);
                    &copy
                }
            };
            self.stats.copied += bytes.len() as u64;
            if self.pages.scrap(region, &mut self.holds, bytes, extents).is_none() {
                placed = Err(Refused::Starved);
                break;
            }
        }
        self.scratch = copy;
        placed?;
        let payload = extents.iter().fold(0, |sum, extent| region.checksum(*extent, sum));
        if extents.len() * Extent::STORED <= small / 2 {
            return Ok((Kind::Extents, payload));
        }
        // The lists come first in the entry; they name the rest.
        let list: Vec<u8> = extents.iter().flat_map(|extent| extent.to_bytes()).collect();
        let mut lists = Vec::new();
        if self.pages.scrap_list(region, &mut self.holds, &list, &mut lists).is_none() {
            for extent in lists {
                self.holds.drop(region, extent.buffer);
            }
            return Err(Refused::Starved);
        }
        *extents = lists;
        Ok((Kind::Lists, payload))
    }

    /// Appends the entry and makes it the key's.
    fn put(
        &mut self,
        region: &mut impl Region,
        head: &Head,
        key: &[u8],
        body: &[u8],
    ) -> Result<(), Refused> {
        let hash = self.hash(key);
        let old = self.lookup(region, hash, key);
        let spot = self.append(region, head, key, body)?;
        self.live += head.entry_len();
        self.stats.copied += body.len() as u64;
        match old {
            Some(old) => {
                self.index.update(old.number, spot, head.expires_ms);
                self.supersede(region, &old);
            }
            None => self.index.insert(Item { hash, expires_ms: head.expires_ms, spot }),
        }
        Ok(())
    }

    fn append(
        &mut self,
        region: &mut impl Region,
        head: &Head,
        key: &[u8],
        body: &[u8],
    ) -> Result<Spot, Refused> {
        let spot = self.pages.append(region, &mut self.holds, head, key, body);
        let spot = spot.ok_or(Refused::Starved)?;
        self.dirty = true;
        self.appended += head.entry_len();
        Ok(spot)
    }

    /// An entry is not good any more: what it names loses a name.
    fn supersede(&mut self, region: &mut impl Region, old: &Found) {
        self.live -= old.head.entry_len();
        if old.head.kind == Kind::Packed {
            return;
        }
        let mut extents = std::mem::take(&mut self.extents);
        extents.clear();
        self.named(region, old.spot, &old.head, |extent, _| extents.push(extent));
        for extent in extents.drain(..) {
            self.holds.drop(region, extent.buffer);
        }
        self.extents = extents;
    }

    /// Deletes a key. A key that has ended is deleted and not found.
    pub(super) fn delete(
        &mut self,
        region: &mut impl Region,
        now_ms: u64,
        key: &[u8],
        more: bool,
    ) -> Result<bool, Refused> {
        let Some(found) = self.lookup(region, self.hash(key), key) else {
            return Ok(false);
        };
        let ended = found.head.expires_ms != 0 && found.head.expires_ms <= now_ms;
        self.remove(region, &found, key, more)?;
        Ok(!ended)
    }

    /// Makes sure that keys of these lengths can all be deleted in this batch.
    pub(super) fn admit_deletions(
        &mut self,
        region: &mut impl Region,
        keys: impl Iterator<Item = usize>,
    ) -> Result<(), Refused> {
        let entries = keys.map(|key| (HEAD + key).next_multiple_of(ALIGN)).sum::<usize>() + HEAD;
        self.admit_bytes(region, entries, 0, 0, true)
    }

    /// Ends a request whose entries all said that there is more.
    pub(super) fn end_request(&mut self, region: &mut impl Region) -> Result<(), Refused> {
        // Of no record does it say that it never happened.
        self.append(region, &fixed(Kind::Void, 0), &[], &[]).map(drop)
    }

    fn remove(
        &mut self,
        region: &mut impl Region,
        found: &Found,
        key: &[u8],
        more: bool,
    ) -> Result<(), Refused> {
        let head = Head { more, ..fixed(Kind::Deleted, key.len()) };
        self.admit_bytes(region, head.entry_len(), 0, 0, true)?;
        self.append(region, &head, key, &[])?;
        self.index.remove(found.number);
        self.supersede(region, found);
        Ok(())
    }

    /// Sets when a key ends; 0 for never.
    pub(super) fn set_expiry(
        &mut self,
        region: &mut impl Region,
        found: &Found,
        expires_ms: u64,
    ) -> Result<(), Refused> {
        self.admit_bytes(region, found.head.entry_len(), 0, 0, false)?;
        self.rewrite(region, found, expires_ms)
    }

    /// Writes an entry again, at the end.
    fn rewrite(
        &mut self,
        region: &mut impl Region,
        found: &Found,
        expires_ms: u64,
    ) -> Result<(), Refused> {
        let head = Head { expires_ms, more: false, ..found.head };
        let mut bytes = std::mem::take(&mut self.scratch);
        bytes.resize(usize::from(head.key_len) + usize::from(head.body_len), 0);
        region.read(found.spot.buffer, found.spot.offset + HEAD as u16, &mut bytes);
        let (key, body) = bytes.split_at(head.key_len.into());
        let done = self.append(region, &head, key, body);
        self.scratch = bytes;
        self.index.update(found.number, done?, expires_ms);
        Ok(())
    }

    /// Deletes all keys.
    pub(super) fn clear(&mut self, region: &mut impl Region) -> Result<(), Refused> {
        let head = fixed(Kind::Cleared, 0);
        self.admit_bytes(region, head.entry_len(), 0, 0, true)?;
        self.append(region, &head, &[], &[])?;
        for number in 0..self.index.numbers() {
            if let Some(&Item { spot, .. }) = self.index.item(number)
                && let Some(head) = self.head(region, spot)
            {
                self.supersede(region, &Found { number, spot, head });
            }
        }
        self.index.clear();
        self.sweep = 0;
        Ok(())
    }

    /// Deletes a few of the keys that have ended: looks at `count` keys.
    pub(super) fn sweep(&mut self, region: &mut impl Region, now_ms: u64, count: u32) {
        let numbers = self.index.numbers();
        if self.index.mortal() == 0 {
            return;
        }
        for _ in 0..count.min(numbers) {
            self.sweep = if self.sweep + 1 < numbers { self.sweep + 1 } else { 0 };
            let Some(&Item { expires_ms, spot, .. }) = self.index.item(self.sweep) else {
                continue;
            };
            if expires_ms == 0 || expires_ms > now_ms {
                continue;
            }
            let Some(head) = self.head(region, spot) else { continue };
            let mut key = vec![0; head.key_len.into()];
            region.read(spot.buffer, spot.offset + HEAD as u16, &mut key);
            if self.remove(region, &Found { number: self.sweep, spot, head }, &key, false).is_err() {
                return;
            }
            self.stats.expired += 1;
        }
    }

    // --- batches -------------------------------------------------------------

    /// Ends a batch: cleans a little, logs what was written and ends the epoch,
    /// if it has anything. What was answered so far may be told when the ticket
    /// is reached.
    pub fn commit(&mut self, region: &mut impl Region) -> Option<Ticket> {
        self.release(region);
        self.clean(region);
        let (log, stats) = (&mut self.log, &mut self.stats);
        let mut next_record = None;
        self.pages.log(region, &mut self.holds, |number, extent| {
            log.push_back(Logged { number, extent });
            stats.records += 1;
            next_record = Some(number + 1);
        });
        self.appended = 0;
        self.dirty |= self.holds.has_freed() || !self.dropped.is_empty();
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        let ticket = region.seal();
        self.stats.epochs += 1;
        self.holds.sealed(ticket);
        let last = self.epochs.back().map_or(self.pages.durable, |epoch| epoch.next_record);
        let cleaned_before = match self.cleaned.checked_sub(1) {
            Some(last) => self.log[last].number + 1,
            None => 0,
        };
        let next_record = next_record.unwrap_or(last);
        self.epochs.push_back(Epoch { ticket, next_record, cleaned_before });
        Some(ticket)
    }

    /// Whether something waits for a ticket, so that [`Store::commit`] has to be
    /// called again without a new request.
    pub fn is_unfinished(&self) -> bool {
        self.dirty
            || !self.epochs.is_empty()
            || !self.dropped.is_empty()
            || self.holds.is_unfinished()
    }
}

/// An entry of a key without a value.
fn fixed(kind: Kind, key_len: usize) -> Head {
    Head {
        kind,
        more: false,
        key_len: key_len as u16,
        value_len: 0,
        expires_ms: 0,
        checksum: 0,
        body_len: 0,
    }
}

/// Whether the entry's key is this one, whose length it has.
fn has_key(region: &impl Region, spot: Spot, key: &[u8]) -> bool {
    let mut bytes = [0; 64];
    let mut at = spot.offset + HEAD as u16;
    key.chunks(bytes.len()).all(|part| {
        let bytes = &mut bytes[..part.len()];
        region.read(spot.buffer, at, bytes);
        at += part.len() as u16;
        bytes == part
    })
}

#[cfg(test)]
mod tests;
