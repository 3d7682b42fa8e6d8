//! What of a region its mirror does not have: a bit for every unit of the mapping.
//!
//! A unit is the smallest buffer, so none lies in two buffers; what is written is
//! whole blocks, in which two units lie.

use crate::layout::BUFFER_SIZE_MIN;
use crate::ranges::FlushRange;

/// What files are written in: the pages of the system's cache.
pub(crate) const BLOCK: u64 = 4096;
const UNIT: u64 = BUFFER_SIZE_MIN as u64;
/// Units of a block, and of a word of bits.
const PER_BLOCK: u64 = BLOCK / UNIT;
const PER_WORD: u64 = 64;

/// A set of units.
#[derive(Clone, Debug)]
pub(crate) struct Dirty {
    words: Box<[u64]>,
}

impl Dirty {
    /// An empty set, of a mapping of `len` bytes.
    pub(crate) fn new(len: u64) -> Dirty {
        let words = len.div_ceil(UNIT).div_ceil(PER_WORD) as usize;
        Dirty { words: vec![0; words].into_boxed_slice() }
    }

    /// Adds every unit that a range touches, which lies in the mapping.
    pub(crate) fn mark(&mut self, range: FlushRange) {
        if range.len == 0 {
            return;
        }
        let (mut unit, end) = (range.offset / UNIT, range.end().div_ceil(UNIT));
        while unit < end {
            let bit = unit % PER_WORD;
            let count = (PER_WORD - bit).min(end - unit);
            self.words[(unit / PER_WORD) as usize] |= u64::MAX >> (PER_WORD - count) << bit;
            unit += count;
        }
    }

    /// Adds what is in `other`, except for units of which `is_void` says so.
    pub(crate) fn merge(&mut self, other: &Dirty, is_void: impl Fn(u64) -> bool) {
        for (index, (word, &more)) in self.words.iter_mut().zip(&other.words).enumerate() {
            *word |= without(more, index, &is_void);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.words.fill(0);
    }

    fn block(&self, block: u64, is_void: &impl Fn(u64) -> bool) -> bool {
        (block * PER_BLOCK..(block + 1) * PER_BLOCK).any(|unit| {
            let word = self.words.get((unit / PER_WORD) as usize).copied().unwrap_or(0);
            word >> (unit % PER_WORD) & 1 == 1 && !is_void(unit * UNIT)
        })
    }

    /// The first blocks from `from` on, a multiple of [`BLOCK`], that have units in the
    /// set, up to `max` bytes in a row. Units of which `is_void` says so, by their
    /// offsets, do not count. `None` if there are none before `end`.
    pub(crate) fn next_run(
        &self,
        from: u64,
        end: u64,
        max: u64,
        is_void: impl Fn(u64) -> bool,
    ) -> Option<FlushRange> {
        let mut index = (from / UNIT / PER_WORD) as usize;
        let below = (1u64 << (from / UNIT % PER_WORD)) - 1;
        let mut word = without(self.words.get(index)? & !below, index, &is_void);
        while word == 0 {
            index += 1;
            if index as u64 * PER_WORD * UNIT >= end {
                return None;
            }
            word = without(*self.words.get(index)?, index, &is_void);
        }
        let unit = index as u64 * PER_WORD + u64::from(word.trailing_zeros());
        let first = unit / PER_BLOCK;
        if first * BLOCK >= end {
            return None;
        }
        let mut blocks = 1;
        while (blocks + 1) * BLOCK <= max && self.block(first + blocks, &is_void) {
            blocks += 1;
        }
        Some(FlushRange { offset: first * BLOCK, len: blocks * BLOCK })
    }
}

/// The bits of a word that count.
fn without(mut word: u64, index: usize, is_void: &impl Fn(u64) -> bool) -> u64 {
    let mut rest = word;
    while rest != 0 {
        let bit = rest.trailing_zeros();
        rest &= rest - 1;
        if is_void((index as u64 * PER_WORD + u64::from(bit)) * UNIT) {
            word &= !(1 << bit);
        }
    }
    word
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEN: u64 = 600 << 10;

    fn runs(dirty: &Dirty, max: u64, is_void: impl Fn(u64) -> bool) -> Vec<FlushRange> {
        let mut runs = Vec::new();
        let mut from = 0;
        while let Some(run) = dirty.next_run(from, LEN, max, &is_void) {
            assert!(run.offset >= from && run.len > 0 && run.len <= max.max(BLOCK));
            assert!(run.offset % BLOCK == 0 && run.len % BLOCK == 0);
            from = run.end();
            runs.push(run);
        }
        runs
    }

    proptest! {
        /// Every block that is touched is in one run, but for those that do not count,
        /// and no other.
        #[test]
        fn runs_are_the_blocks_of_what_was_marked(
            marked in prop::collection::vec((0..LEN, 0u64..20_000), 0..12),
            void in prop::collection::btree_set(0..LEN / UNIT, 0..40),
            max in prop_oneof![Just(BLOCK), Just(5 * BLOCK), Just(LEN)],
        ) {
            let mut dirty = [Dirty::new(LEN), Dirty::new(LEN)];
            for (number, &(offset, len)) in marked.iter().enumerate() {
                let len = len.min(LEN - offset);
                dirty[number % 2].mark(FlushRange { offset, len });
            }
            let is_void = |at: u64| void.contains(&(at / UNIT));
            let mut all = Dirty::new(LEN);
            all.merge(&dirty[0], |_| false);
            all.merge(&dirty[1], |_| false);
            let touched = |unit: u64| marked.iter().any(|&(offset, len)| {
                let len = len.min(LEN - offset);
                len > 0 && offset < (unit + 1) * UNIT && unit * UNIT < offset + len
            });
            let units = |block: u64| (block * PER_BLOCK..(block + 1) * PER_BLOCK)
                .filter(|&unit| touched(unit));
            let found = runs(&all, max, is_void);
            let mut live = Dirty::new(LEN);
            live.merge(&all, is_void);
            prop_assert_eq!(&runs(&live, max, |_| false), &found);
            for block in 0..LEN / BLOCK {
                let wanted = units(block).any(|unit| !void.contains(&unit));
                let covering = found.iter()
                    .filter(|run| (run.offset..run.end()).contains(&(block * BLOCK)));
                prop_assert_eq!(covering.count(), usize::from(wanted), "block {}", block);
            }
            all.clear();
            prop_assert!(runs(&all, max, |_| false).is_empty());
        }
    }

    #[test]
    fn nothing_is_found_from_the_end_on() {
        let mut dirty = Dirty::new(LEN);
        dirty.mark(FlushRange { offset: 8 * BLOCK, len: 1 });
        assert_eq!(dirty.next_run(0, 8 * BLOCK, LEN, |_| false), None);
        let run = FlushRange { offset: 8 * BLOCK, len: BLOCK };
        assert_eq!(dirty.next_run(0, 9 * BLOCK, LEN, |_| false), Some(run));
        assert_eq!(dirty.next_run(9 * BLOCK, LEN, LEN, |_| false), None);
        assert_eq!(dirty.next_run(u64::MAX / 2 / BLOCK * BLOCK, u64::MAX, LEN, |_| false), None);
    }
}
