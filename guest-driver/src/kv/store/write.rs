//! Changing what is stored: room first, then all of it or nothing.

use super::{Found, Refused, Store};
use crate::kv::entry::{ALIGN, HEAD, Head, Kind};
use crate::kv::extent::Extent;
use crate::kv::index::{Item, Spot};
use crate::kv::region::Region;
use crate::kv::request::BULK_MAX;

/// Values from here on are not packed, however large the buffers.
const PACKED_MAX: usize = 16 * 1024;
/// Records that only deleting and cleaning may use.
const RECORDS_RESERVED: u64 = 16;
/// Buffers that only deleting and cleaning may use.
const BUFFERS_RESERVED: u32 = 16;

/// A part of a new value.
#[derive(Clone, Copy, Debug)]
pub(in crate::kv) enum Part<'a> {
    /// Bytes that are nowhere in the region.
    Bytes(&'a [u8]),
    /// Bytes that lie in a buffer with a name.
    Range(Extent),
}

impl Store {
    /// Whether a value of so many bytes is packed.
    pub(in crate::kv) fn packs(&self, len: usize) -> bool {
        len < self.small()
    }

    /// What is less than this is copied.
    pub(in crate::kv) fn small(&self) -> usize {
        (self.pages.page_len() / 2).min(PACKED_MAX)
    }

    /// Bytes of an entry with this key and a packed value of this length, or with
    /// extents.
    pub(in crate::kv) fn entry_len(&self, key: usize, value: usize) -> usize {
        let body = if self.packs(value) { value } else { self.small() };
        (HEAD + key + body).next_multiple_of(ALIGN)
    }

    /// Makes sure that values of these lengths (of key and value) can all be set
    /// in this batch: a request is done whole or not at all.
    pub(in crate::kv) fn admit(
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

    pub(in crate::kv) fn admit_bytes(
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
    pub(in crate::kv) fn set_packed(
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
    pub(in crate::kv) fn set_bulk(
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
    pub(in crate::kv) fn place(
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
    pub(in crate::kv) fn put(
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

    pub(in crate::kv) fn append(
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
    pub(in crate::kv) fn supersede(&mut self, region: &mut impl Region, old: &Found) {
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
    pub(in crate::kv) fn delete(
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
    pub(in crate::kv) fn admit_deletions(
        &mut self,
        region: &mut impl Region,
        keys: impl Iterator<Item = usize>,
    ) -> Result<(), Refused> {
        let entries = keys.map(|key| (HEAD + key).next_multiple_of(ALIGN)).sum::<usize>() + HEAD;
        self.admit_bytes(region, entries, 0, 0, true)
    }

    /// Ends a request whose entries all said that there is more.
    pub(in crate::kv) fn end_request(&mut self, region: &mut impl Region) -> Result<(), Refused> {
        // Of no record does it say that it never happened.
        self.append(region, &fixed(Kind::Void, 0), &[], &[]).map(drop)
    }

    pub(in crate::kv) fn remove(
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
    pub(in crate::kv) fn set_expiry(
        &mut self,
        region: &mut impl Region,
        found: &Found,
        expires_ms: u64,
    ) -> Result<(), Refused> {
        self.admit_bytes(region, found.head.entry_len(), 0, 0, false)?;
        self.rewrite(region, found, expires_ms)
    }

    /// Writes an entry again, at the end.
    pub(in crate::kv) fn rewrite(
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
    pub(in crate::kv) fn clear(&mut self, region: &mut impl Region) -> Result<(), Refused> {
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
    pub(in crate::kv) fn sweep(&mut self, region: &mut impl Region, now_ms: u64, count: u32) {
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
            if self.remove(region, &Found { number: self.sweep, spot, head }, &key, false).is_err()
            {
                return;
            }
            self.stats.expired += 1;
        }
    }
}

/// An entry of a key without a value.
pub(super) fn fixed(kind: Kind, key_len: usize) -> Head {
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
