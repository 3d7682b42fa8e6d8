//! Slots that wait for a frame: a ring of fixed capacity.

use paste_abi::Slot;
use paste_abi::frame::RECORD_LEN;

/// The queue, as the records that the frames will carry.
#[derive(Debug)]
pub(crate) struct SlotQueue {
    records: Box<[[u8; RECORD_LEN]]>,
    start: usize,
    len: usize,
}

impl SlotQueue {
    pub(crate) fn new(capacity: usize) -> SlotQueue {
        SlotQueue { records: vec![[0; RECORD_LEN]; capacity].into(), start: 0, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn clear(&mut self) {
        self.start = 0;
        self.len = 0;
    }

    /// Appends a slot; `false` if there is no room.
    pub(crate) fn push(&mut self, slot: &Slot) -> bool {
        if self.len == self.records.len() {
            return false;
        }
        let mut at = self.start + self.len;
        if at >= self.records.len() {
            at -= self.records.len();
        }
        slot.write(&mut self.records[at]);
        self.len += 1;
        true
    }

    /// The oldest slot.
    pub(crate) fn front(&self) -> Option<Slot> {
        (self.len > 0).then(|| Slot::read(&self.records[self.start]))
    }

    /// Forgets the oldest slot, if there is one.
    pub(crate) fn pop(&mut self) {
        self.pop_into(&mut [[0; RECORD_LEN]; 1]);
    }

    /// Moves the oldest slots into `out`, as many as there are or fit.
    pub(crate) fn pop_into(&mut self, out: &mut [[u8; RECORD_LEN]]) -> usize {
        let count = self.len.min(out.len());
        let first = count.min(self.records.len() - self.start);
        out[..first].copy_from_slice(&self.records[self.start..self.start + first]);
        out[first..count].copy_from_slice(&self.records[..count - first]);
        self.start += count;
        if self.start >= self.records.len() {
            self.start -= self.records.len();
        }
        self.len -= count;
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use paste_abi::Flow;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    proptest! {
        /// Against a `VecDeque`: same slots, same order, same refusals.
        #[test]
        fn is_a_bounded_queue(steps in prop::collection::vec((any::<bool>(), 0usize..7), 1..200)) {
            let mut queue = SlotQueue::new(5);
            let mut model = VecDeque::new();
            let mut next = 0;
            for (push, count) in steps {
                if push {
                    let took = queue.push(&Slot { flow: Flow(next), ..Slot::default() });
                    prop_assert_eq!(took, model.len() < 5);
                    if took {
                        model.push_back(next);
                    }
                    next += 1;
                } else {
                    let mut out = vec![[0; RECORD_LEN]; count];
                    let moved = queue.pop_into(&mut out);
                    prop_assert_eq!(moved, count.min(model.len()));
                    for record in &out[..moved] {
                        prop_assert_eq!(Some(Slot::read(record).flow.0), model.pop_front());
                    }
                }
                prop_assert_eq!(queue.len(), model.len());
            }
        }
    }
}
