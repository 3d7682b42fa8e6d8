//! Ranges of a region that are to be made durable, collected without allocation.
//!
//! To flush more than was asked for is always right, so a full collection is
//! never an error: its nearest ranges are joined, with what lies between them.

/// A range of what the guest maps, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FlushRange {
    /// From the start of the guest's mapping.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

impl FlushRange {
    /// The first byte after it.
    pub const fn end(self) -> u64 {
        self.offset + self.len
    }
}

/// A bounded collection of ranges.
#[derive(Clone, Debug)]
pub(crate) struct Ranges {
    ranges: Box<[FlushRange]>,
    len: usize,
}

impl Ranges {
    /// Room for `capacity` ranges, at least 2.
    pub(crate) fn new(capacity: usize) -> Ranges {
        Ranges { ranges: vec![FlushRange::default(); capacity.max(2)].into_boxed_slice(), len: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn as_slice(&self) -> &[FlushRange] {
        &self.ranges[..self.len]
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Adds a range; its end must not overflow.
    pub(crate) fn push(&mut self, range: FlushRange) {
        if range.len == 0 {
            return;
        }
        // Records are appended: most ranges go on where the last one ended.
        if let Some(last) = self.ranges[..self.len].last_mut()
            && last.offset <= range.offset
            && range.offset <= last.end()
        {
            last.len = last.len.max(range.end() - last.offset);
            return;
        }
        if self.len == self.ranges.len() {
            self.make_room();
        }
        self.ranges[self.len] = range;
        self.len += 1;
    }

    /// Sorts, and joins ranges that are at most `gap` bytes apart.
    fn join(&mut self, gap: u64) {
        let ranges = &mut self.ranges[..self.len];
        ranges.sort_unstable_by_key(|range| range.offset);
        let mut kept = 0;
        for at in 1..ranges.len() {
            let next = ranges[at];
            let last = &mut ranges[kept];
            if next.offset <= last.end().saturating_add(gap) {
                last.len = last.len.max(next.end() - last.offset);
            } else {
                kept += 1;
                ranges[kept] = next;
            }
        }
        self.len = self.len.min(kept + 1);
    }

    /// Joins until half of the room is free, so that this is rarely needed.
    fn make_room(&mut self) {
        let mut gap = 0u64;
        self.join(gap);
        while self.len > self.ranges.len() / 2 {
            gap = gap.saturating_mul(2).saturating_add(64);
            self.join(gap);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn covered(ranges: &[FlushRange], byte: u64) -> bool {
        ranges.iter().any(|range| (range.offset..range.end()).contains(&byte))
    }

    proptest! {
        #[test]
        fn nothing_that_was_added_is_lost(
            capacity in 2usize..20,
            added in prop::collection::vec((0u64..100_000, 0u64..5000), 0..100),
        ) {
            let mut ranges = Ranges::new(capacity);
            for &(offset, len) in &added {
                ranges.push(FlushRange { offset, len });
                prop_assert!(ranges.as_slice().len() <= capacity);
            }
            for &(offset, len) in added.iter().filter(|(_, len)| *len > 0) {
                for byte in [offset, offset + len / 2, offset + len - 1] {
                    prop_assert!(covered(ranges.as_slice(), byte));
                }
            }
            // With room for all, nothing else is covered.
            if added.len() <= capacity {
                for range in ranges.as_slice() {
                    for byte in [range.offset, range.end() - 1] {
                        let holds = |&(offset, len): &(u64, u64)| (offset..offset + len).contains(&byte);
                        prop_assert!(added.iter().any(holds));
                    }
                }
            }
            ranges.clear();
            prop_assert!(ranges.is_empty());
        }
    }

    #[test]
    fn the_ends_of_the_address_space_are_no_trouble() {
        let mut ranges = Ranges::new(2);
        for offset in [u64::MAX - 10, 0, 1 << 60, 1 << 40, u64::MAX - 1] {
            ranges.push(FlushRange { offset, len: 1 });
        }
        assert!(covered(ranges.as_slice(), u64::MAX - 10));
        assert!(covered(ranges.as_slice(), 1 << 40));
    }
}
