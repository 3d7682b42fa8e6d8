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
    use crate::crash::{Explorer, Mutant, Op, Recorder, Trace};
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

    /// A record for each of a few buffers: one word that says which value is there,
    /// 0 for none.
    const RECORDS: u64 = 64;
    const BUFFERS: u32 = 3;

    fn record(medium: &Recorder, buf: u32) -> u64 {
        word(medium, RECORDS + u64::from(buf) * 8)
    }

    fn end_epoch(medium: &mut Recorder) {
        let ticket = medium.seal();
        medium.reach(ticket);
    }

    /// Stores and gives up values as the order of the module's head has it, and
    /// marks what is promised: `buf << 8 | value`.
    fn store_and_release() -> Trace {
        let claims = Claims { table: Part { offset: 0, len: 64 }, count: BUFFERS };
        let mut medium = Recorder::waiting(vec![0; 128]);
        let record = |medium: &mut Recorder, buf: u32, value: u64| {
            medium.store(RECORDS + u64::from(buf) * 8, &value.to_le_bytes());
            medium.flush(RECORDS + u64::from(buf) * 8, 8);
        };
        for (buf, value) in [(0, 1u64), (1, 2), (0, 3), (2, 4)] {
            medium.mark(u64::from(buf) << 8 | 0xff);
            claims.set(&mut medium, buf).unwrap();
            // A claim may also be made in the epoch of the record: recovery then
            // takes no record without its claim for whole.
            end_epoch(&mut medium);
            record(&mut medium, buf, value);
            end_epoch(&mut medium);
            medium.mark(u64::from(buf) << 8 | value);
            if value == 1 || value == 3 {
                medium.mark(u64::from(buf) << 8 | 0xff);
                record(&mut medium, buf, 0);
                end_epoch(&mut medium);
                medium.mark(u64::from(buf) << 8);
                claims.clear(&mut medium, buf).unwrap();
                end_epoch(&mut medium);
            }
        }
        medium.into_trace()
    }

    /// Every record has its claim, and what was promised is there. 0xff marks that
    /// something else was begun.
    fn judge(medium: &mut Recorder, marks: &[u64]) -> Result<(), String> {
        let claims = Claims { table: Part { offset: 0, len: 64 }, count: BUFFERS };
        for buf in 0..BUFFERS {
            let (value, claimed) = (record(medium, buf), claims.contains(medium, buf));
            if value != 0 && !claimed {
                return Err(format!("buffer {buf} holds {value} and is not claimed"));
            }
            let promised = marks.iter().rev().find(|&&mark| mark >> 8 == u64::from(buf));
            match promised.map(|mark| mark & 0xff) {
                Some(promise) if promise != 0xff && promise != value => {
                    return Err(format!("buffer {buf} holds {value}, promised {promise}"));
                }
                _ => {}
            }
        }
        // Recovery: what no record names is released.
        let leaks: Vec<u32> = claims.iter(medium).filter(|&buf| record(medium, buf) == 0).collect();
        for buf in leaks {
            claims.clear(medium, buf).unwrap();
        }
        end_epoch(medium);
        Ok(())
    }

    #[test]
    fn no_crash_leaves_a_record_without_its_claim() {
        let trace = store_and_release();
        let explorer = Explorer { seed: 1, exhaustive: 1 << 12, samples: 0, recovery_samples: 8 };
        let cases = explorer.explore(&trace, judge).unwrap();
        assert_eq!(cases.prefixes, cases.exhausted);
        assert!(cases.images > 50 && cases.recoveries > 50, "{cases:?}");
    }

    #[test]
    fn a_forgotten_flush_or_barrier_is_found() {
        let trace = store_and_release();
        let explorer = Explorer { seed: 1, exhaustive: 1 << 12, samples: 0, recovery_samples: 0 };
        let bits = |data: &[u8]| data.iter().map(|byte| byte.count_ones()).sum::<u32>();
        // A claim that is given up, as opposed to one that is made.
        let clears = |step: usize| match &trace.ops[step] {
            Op::Store { at: 0, data } => trace.ops[..step].iter().rev().any(|op| match op {
                Op::Store { at: 0, data: before } => bits(before) > bits(data),
                _ => false,
            }),
            _ => false,
        };
        let records = |step: usize| match &trace.ops[step] {
            Op::Store { at, data } => *at >= RECORDS && bits(data) > 0,
            _ => false,
        };
        let mut needed = 0;
        for mutant in trace.mutants() {
            let needs = match mutant {
                // The next value has nothing to wait for, the record of a claim and
                // the end of one have.
                Mutant::NoWait { store, .. } => records(store) || clears(store),
                // A claim that is given up late is a leak, which recovery mends.
                Mutant::NoFlush(step) | Mutant::NoSeal(step) => {
                    let last =
                        (0..step).rev().find(|&at| matches!(trace.ops[at], Op::Store { .. }));
                    last.is_some_and(|at| !clears(at))
                }
            };
            let found = explorer.explore(&trace.mutate(mutant), judge).is_err();
            assert!(found || !needs, "{mutant:?}");
            needed += u32::from(needs);
        }
        assert!(needed >= 20, "{needed}");
    }
}
