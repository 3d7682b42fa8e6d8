//! A hash table of indices, allocated once: open addressing with linear
//! probing, at most half full, deletion by shifting back, so that there are no
//! tombstones and a lookup stays short however long the table lives.
//!
//! The table holds hashes and indices; keys lie with what the indices name, and
//! the caller compares them. Hashes must come from a keyed function where a
//! peer can choose the keys.

use core::ops::Range;

const EMPTY: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: u32,
    index: u32,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Table {
    entries: Box<[Entry]>,
    mask: usize,
}

impl Table {
    /// A table for at most `capacity` indices.
    pub(crate) fn new(capacity: u32) -> Table {
        let size = (capacity as usize * 2).next_power_of_two().max(8);
        Table {
            entries: vec![Entry { hash: 0, index: EMPTY }; size].into_boxed_slice(),
            mask: size - 1,
        }
    }

    /// Where it lies.
    pub(crate) fn memory(&self) -> Range<*const u8> {
        let Range { start, end } = self.entries.as_ptr_range();
        start.cast()..end.cast()
    }

    /// The index with this hash for which `same` holds.
    #[inline]
    pub(crate) fn find(&self, hash: u32, same: impl Fn(u32) -> bool) -> Option<u32> {
        let mut at = hash as usize & self.mask;
        loop {
            let entry = self.entries[at];
            if entry.index == EMPTY {
                return None;
            }
            if entry.hash == hash && same(entry.index) {
                return Some(entry.index);
            }
            at = (at + 1) & self.mask;
        }
    }

    /// Reads where a hash begins, so that it is in the cache when it is needed.
    #[inline]
    pub(crate) fn touch(&self, hash: u32) -> u32 {
        self.entries[hash as usize & self.mask].index
    }

    /// Adds an index that is not in the table. The caller keeps the number of
    /// indices within the capacity.
    pub(crate) fn insert(&mut self, hash: u32, index: u32) {
        let mut at = hash as usize & self.mask;
        while self.entries[at].index != EMPTY {
            at = (at + 1) & self.mask;
        }
        self.entries[at] = Entry { hash, index };
    }

    /// Removes an index; nothing happens if it is not in the table.
    pub(crate) fn remove(&mut self, hash: u32, index: u32) {
        let mut hole = hash as usize & self.mask;
        loop {
            match self.entries[hole].index {
                EMPTY => return,
                found if found == index => break,
                _ => hole = (hole + 1) & self.mask,
            }
        }
        let mut at = hole;
        loop {
            at = (at + 1) & self.mask;
            let entry = self.entries[at];
            if entry.index == EMPTY {
                break;
            }
            // An entry may move into the hole unless its home lies after it.
            let home = entry.hash as usize & self.mask;
            if at.wrapping_sub(home) & self.mask >= at.wrapping_sub(hole) & self.mask {
                self.entries[hole] = entry;
                hole = at;
            }
        }
        self.entries[hole].index = EMPTY;
    }
}

#[cfg(any(test, feature = "audit"))]
impl Table {
    /// Indices in the table.
    pub(crate) fn len(&self) -> u64 {
        self.entries.iter().filter(|entry| entry.index != EMPTY).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_map(ops in proptest::collection::vec((any::<bool>(), 0u32..24, 0u32..40), 0..100)) {
            // Few hashes, so that runs collide and wrap around the end.
            let mut table = Table::new(64);
            let mut model: HashMap<u32, u32> = HashMap::new();
            for (add, hash, index) in ops {
                let hash = if hash % 2 == 0 { hash } else { 127 - hash };
                if add {
                    model.entry(index).or_insert_with(|| { table.insert(hash, index); hash });
                } else if let Some(hash) = model.remove(&index) {
                    table.remove(hash, index);
                }
                for index in 0..40 {
                    let expected = model.get(&index).copied();
                    for h in (0..24).map(|h| if h % 2 == 0 { h } else { 127 - h }) {
                        let found = table.find(h, |i| i == index);
                        prop_assert_eq!(found, (expected == Some(h)).then_some(index));
                    }
                }
            }
        }
    }
}
