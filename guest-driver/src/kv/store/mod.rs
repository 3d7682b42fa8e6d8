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
mod write;

use std::collections::VecDeque;
use std::hash::Hasher;

use paste_pmem::Ticket;
use siphasher::sip::SipHasher13;

use super::entry::{HEAD, Head, Kind};
use super::extent::Extent;
use super::index::{Index, Spot};
use super::region::Region;
use holds::Holds;
pub(in crate::kv) use pages::KEY_MAX;
use pages::Pages;
pub use recover::{RecoverError, Recovered};
pub(in crate::kv) use write::Part;

/// Why a change was not made. Nothing has changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// The store has no room for it.
    Full,
    /// No empty buffer is at hand now.
    Starved,
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
pub(super) struct Store {
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
    /// Epochs on their way.
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
    /// The number after its last record.
    next_record: u64,
    /// Runs of records before this one hold nothing good once it is durable.
    cleaned_before: u64,
}

/// What the store has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stats {
    /// Bytes that were copied into pages and scrap buffers.
    pub(super) copied: u64,
    /// Bytes of entries that were written again to give their pages back.
    pub(super) moved: u64,
    /// Records appended to the log.
    pub(super) records: u64,
    /// Epochs ended.
    pub(super) epochs: u64,
    /// Keys that ended by themselves.
    pub(super) expired: u64,
}

impl Store {
    /// An empty store in a region whose log is empty, which takes at most `limit`
    /// buffers. `secret` keys the table's hash.
    pub(super) fn new(region: &impl Region, limit: u32, secret: [u64; 2]) -> Store {
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
    pub(super) fn len(&self) -> usize {
        self.index.len()
    }

    /// Keys that end some time.
    pub(super) fn mortal(&self) -> usize {
        self.index.mortal()
    }

    /// Buffers that stored data has, and that it may have.
    pub(super) fn buffers(&self) -> (u32, u32) {
        (self.holds.claims().saturating_sub(self.holds.nameless() as u32), self.limit)
    }

    /// What the store has counted.
    pub(super) fn stats(&self) -> Stats {
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

    // --- batches -------------------------------------------------------------

    /// Ends a batch: cleans a little, logs what was written and ends the epoch,
    /// if it has anything. What was answered so far may be told when the ticket
    /// is reached.
    pub(super) fn commit(&mut self, region: &mut impl Region) -> Option<Ticket> {
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

    /// The next commit ends an epoch even if nothing was written.
    pub(super) fn retry(&mut self) {
        self.dirty = true;
    }

    /// Whether something waits for a ticket, so that [`Store::commit`] has to be
    /// called again without a new request.
    pub(super) fn is_unfinished(&self) -> bool {
        self.dirty
            || !self.epochs.is_empty()
            || !self.dropped.is_empty()
            || self.holds.is_unfinished()
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
