//! The claim table, as the guest writes it: one bit per buffer that says whether
//! the buffer belongs to the application's durable data.
//!
//! A set bit is all that keeps a buffer from being handed out again after a
//! crash, so it must be durable before a record that names the buffer is, or in
//! the same epoch; and the record that gives the buffer up must be durable before
//! the bit is cleared. A crash between the two leaves a claim without a record,
//! which recovery clears: a leak, never a loss.
//!
//! Bit `b % 64` of the table's little-endian word `b / 64` is buffer `b`. A word is
//! stored whole, so a crash tears no neighbour's bit. Bits after the last buffer
//! are neither written nor believed.

use crate::layout::{Geometry, Part};
use crate::medium::Medium;
use crate::sys::Mapping;

/// Bytes of a word of the table.
const WORD: u64 = 8;
/// Bytes that are read at a time.
const BATCH: usize = 512;

/// A claim on a buffer that the region does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("buffer {buf} cannot be claimed: the region has {count}")]
pub struct ClaimError {
    /// The buffer.
    pub buf: u32,
    /// Buffers of the region.
    pub count: u32,
}

/// The claim table of one region: where it lies. Its bits are in the
/// [`Medium`] and nowhere else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    table: Part,
    count: u32,
}

impl Claims {
    /// The table of a region laid out like this.
    pub const fn new(geometry: &Geometry) -> Claims {
        Claims { table: geometry.claims(), count: geometry.buffer_count() }
    }

    /// Claims `buf`, as part of the present epoch. It may be claimed already.
    ///
    /// # Errors
    /// [`ClaimError`], and nothing is written.
    pub fn set<M: Medium + ?Sized>(&self, medium: &mut M, buf: u32) -> Result<(), ClaimError> {
        self.write(medium, buf, true)
    }

    /// Gives `buf` up, as part of the present epoch. It need not be claimed.
    ///
    /// # Errors
    /// [`ClaimError`], and nothing is written.
    pub fn clear<M: Medium + ?Sized>(&self, medium: &mut M, buf: u32) -> Result<(), ClaimError> {
        self.write(medium, buf, false)
    }

    /// Whether `buf` is claimed; `false` for a buffer that does not exist.
    pub fn contains<M: Medium + ?Sized>(&self, medium: &M, buf: u32) -> bool {
        buf < self.count && word(medium, self.word_at(buf)) >> (buf % 64) & 1 == 1
    }

    /// The claimed buffers in their order. Linear in the words of the table.
    pub fn iter<'m, M: Medium + ?Sized>(&self, medium: &'m M) -> Iter<'m, M> {
        Iter { medium, claims: *self, next: 0, batch: [0; BATCH], bits: 0 }
    }

    fn word_at(&self, buf: u32) -> u64 {
        self.table.offset + u64::from(buf / 64) * WORD
    }

    fn write<M: Medium + ?Sized>(
        &self,
        medium: &mut M,
        buf: u32,
        claimed: bool,
    ) -> Result<(), ClaimError> {
        if buf >= self.count {
            return Err(ClaimError { buf, count: self.count });
        }
        let at = self.word_at(buf);
        let old = word(medium, at);
        let bit = 1 << (buf % 64);
        let new = if claimed { old | bit } else { old & !bit };
        if new != old {
            medium.store(at, &new.to_le_bytes());
        }
        // Also when nothing changed: the bit may have been stored by a process
        // that died before its epoch ended.
        medium.flush(at, WORD);
        Ok(())
    }
}

fn word<M: Medium + ?Sized>(medium: &M, at: u64) -> u64 {
    let mut bytes = [0; WORD as usize];
    medium.load(at, &mut bytes);
    u64::from_le_bytes(bytes)
}

/// The claimed buffers; see [`Claims::iter`].
#[derive(Debug)]
pub struct Iter<'m, M: ?Sized> {
    medium: &'m M,
    claims: Claims,
    /// The word that is looked at next.
    next: u32,
    /// The bytes around it.
    batch: [u8; BATCH],
    /// Bits of the word before `next` that are to come.
    bits: u64,
}

impl<M: Medium + ?Sized> Iterator for Iter<'_, M> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let bytes = u64::from(self.claims.count.div_ceil(64)) * WORD;
        while self.bits == 0 {
            let from = u64::from(self.next) * WORD;
            if from == bytes {
                return None;
            }
            let in_batch = from as usize % BATCH;
            if in_batch == 0 {
                let len = BATCH.min((bytes - from) as usize);
                self.medium.load(self.claims.table.offset + from, &mut self.batch[..len]);
            }
            let (words, _) = self.batch.as_chunks::<{ WORD as usize }>();
            self.bits = u64::from_le_bytes(words[in_batch / WORD as usize]);
            self.next += 1;
        }
        let buf = (self.next - 1) * 64 + self.bits.trailing_zeros();
        self.bits &= self.bits - 1;
        // Only the last word has bits without a buffer, and they are its last.
        (buf < self.claims.count).then_some(buf)
    }
}

/// The table as words in memory of the host's; `None` if it is not in the mapping.
pub(crate) fn snapshot(mapping: &Mapping, table: Part, count: u32) -> Option<Box<[u64]>> {
    // Parts begin at pages, so the rest of the last word is nobody else's.
    let mut bytes = vec![0; count.div_ceil(64) as usize * WORD as usize];
    let read = mapping.read_at(usize::try_from(table.offset).ok()?, &mut bytes);
    let (words, _) = bytes.as_chunks::<{ WORD as usize }>();
    read.then(|| words.iter().map(|&word| u64::from_le_bytes(word)).collect())
}

/// The bytes of the table in which there are bits after the last buffer, with
/// these bits.
fn strays(geometry: &Geometry) -> impl Iterator<Item = (usize, u8)> {
    let (table, count) = (geometry.claims(), u64::from(geometry.buffer_count()));
    let first = count / 8;
    (first..table.len).map(move |byte| {
        let mask = if byte == first { 0xffu8 << (count % 8) } else { 0xff };
        ((table.offset + byte) as usize, mask)
    })
}

/// Claims on buffers that do not exist.
pub(crate) fn stray(mapping: &Mapping, geometry: &Geometry) -> u32 {
    let bits = |(at, mask): (usize, u8)| {
        let mut byte = [0];
        if mapping.read_at(at, &mut byte) { (byte[0] & mask).count_ones() } else { 0 }
    };
    strays(geometry).map(bits).sum()
}

/// Clears claims on buffers that do not exist; says whether there were any.
pub(crate) fn clear_stray(mapping: &Mapping, geometry: &Geometry) -> bool {
    let mut found = false;
    for (at, mask) in strays(geometry) {
        let mut byte = [0];
        if mapping.read_at(at, &mut byte) && byte[0] & mask != 0 {
            found |= mapping.write_at(at, &[byte[0] & !mask]);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::medium::Ticket;

    /// Memory that notes what is stored and flushed.
    #[derive(Debug)]
    struct Memory {
        bytes: Vec<u8>,
        stores: Vec<(u64, u64)>,
        flushes: Vec<(u64, u64)>,
    }

    impl Medium for Memory {
        fn len(&self) -> u64 {
            self.bytes.len() as u64
        }

        fn load(&self, at: u64, out: &mut [u8]) {
            out.copy_from_slice(&self.bytes[at as usize..][..out.len()]);
        }

        fn store(&mut self, at: u64, data: &[u8]) {
            self.stores.push((at, data.len() as u64));
            self.bytes[at as usize..][..data.len()].copy_from_slice(data);
        }

        fn flush(&mut self, at: u64, len: u64) {
            self.flushes.push((at, len));
        }

        fn seal(&mut self) -> Ticket {
            Ticket(0)
        }

        fn reached(&self, _: Ticket) -> bool {
            true
        }
    }

    const TABLE: Part = Part { offset: 4096, len: 4096 };

    fn table(count: u32) -> (Claims, Memory) {
        let bytes = vec![0; (TABLE.end() + 64) as usize];
        let memory = Memory { bytes, stores: Vec::new(), flushes: Vec::new() };
        (Claims { table: TABLE, count }, memory)
    }

    proptest! {
        #[test]
        fn the_table_is_a_set(
            count in 1u32..10_000,
            steps in prop::collection::vec((any::<u32>(), any::<bool>()), 0..300),
        ) {
            let (claims, mut memory) = table(count);
            let mut model = BTreeSet::new();
            for (buf, claim) in steps {
                // A few beyond the end.
                let buf = buf % (count + count / 8 + 1);
                let done = if claim {
                    claims.set(&mut memory, buf)
                } else {
                    claims.clear(&mut memory, buf)
                };
                if buf >= count {
                    prop_assert_eq!(done, Err(ClaimError { buf, count }));
                    prop_assert!(!claims.contains(&memory, buf));
                    continue;
                }
                prop_assert_eq!(done, Ok(()));
                if claim { model.insert(buf) } else { model.remove(&buf) };
                prop_assert_eq!(claims.contains(&memory, buf), claim);
                let word = TABLE.offset + u64::from(buf / 64) * 8;
                prop_assert_eq!(memory.flushes.pop(), Some((word, 8)));
                prop_assert!(memory.stores.iter().all(|&store| store == (word, 8)));
                memory.stores.clear();
            }
            let found: Vec<u32> = claims.iter(&memory).collect();
            prop_assert_eq!(found, model.into_iter().collect::<Vec<_>>());
            prop_assert!(memory.flushes.is_empty());
        }
    }

    #[test]
    fn doing_it_again_stores_nothing_and_flushes_all_the_same() {
        let (claims, mut memory) = table(100);
        for _ in 0..2 {
            claims.set(&mut memory, 65).unwrap();
        }
        assert_eq!(memory.stores, [(4104, 8)]);
        assert_eq!(memory.flushes, [(4104, 8), (4104, 8)]);
        for _ in 0..2 {
            claims.clear(&mut memory, 65).unwrap();
        }
        assert_eq!(memory.stores.len(), 2);
        assert_eq!(memory.flushes.len(), 4);
    }

    #[test]
    fn the_bits_lie_where_they_should() {
        let (claims, mut memory) = table(200);
        claims.set(&mut memory, 0).unwrap();
        claims.set(&mut memory, 77).unwrap();
        assert_eq!(memory.bytes[4096..4112], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn bits_after_the_last_buffer_are_not_believed() {
        for count in [1, 63, 64, 65, 4096, 4097] {
            let (claims, mut memory) = table(count);
            memory.bytes.fill(0xff);
            assert!(claims.iter(&memory).eq(0..count), "{count}");
        }
    }
}
