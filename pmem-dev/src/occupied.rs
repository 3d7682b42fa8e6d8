//! Which buffers may hold what a guest has stored.
//!
//! What lies in a buffer that a guest has given back, and does not claim, is nobody's:
//! the next frame is written over it. So it need not be kept in a mirror either, and
//! most of what a log or a store writes has come to that before its checkpoint. The
//! pool, which sees every buffer change its owner, writes this table; the flusher reads
//! it, on another thread.
//!
//! Each buffer has a count of *turns*: odd while a guest has it or claims it, even while
//! nobody does. A record is marked with the turn at which it was written, and what it has
//! of a buffer is void as soon as that is not the turn any more, whoever has the buffer by
//! then. It is right that the count is read later than the flush was asked for. A buffer
//! is occupied before its guest can name it in a flush, and the batch with that flush
//! comes to the flusher through a lock, so no turn is read that was over before; and a
//! guest that gives a buffer back knows already, by the rules of the claim table, that
//! nothing durable names it any more.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::layout::Part;
use crate::ranges::FlushRange;

/// The table. A buffer is occupied until a pool says that it is not.
#[derive(Debug)]
pub(crate) struct Occupied {
    buffers: Part,
    /// The binary logarithm of a buffer's size.
    shift: u32,
    turns: Box<[AtomicU32]>,
}

/// The turns of buffers at which records were written.
#[derive(Debug)]
pub(crate) struct Turns(Box<[u32]>);

impl Occupied {
    /// For buffers of `size` bytes, a power of two.
    pub(crate) fn new(buffers: Part, size: u32) -> Occupied {
        let shift = size.trailing_zeros();
        let turns = (0..buffers.len >> shift).map(|_| AtomicU32::new(1)).collect();
        Occupied { buffers, shift, turns }
    }

    /// Says whether a buffer is occupied. Of each buffer one thread at a time says so.
    #[inline]
    pub(crate) fn set(&self, buf: u32, occupied: bool) {
        if let Some(entry) = self.turns.get(buf as usize) {
            let turn = entry.load(Ordering::Relaxed);
            if (turn & 1 == 1) != occupied {
                entry.store(turn.wrapping_add(1), Ordering::Relaxed);
            }
        }
    }

    /// Room for the turns of all buffers.
    pub(crate) fn turns(&self) -> Turns {
        Turns(vec![0; self.turns.len()].into_boxed_slice())
    }

    /// Notes the turns of the buffers that a range touches: it is being written.
    pub(crate) fn note(&self, range: FlushRange, turns: &mut Turns) {
        let from = range.offset.max(self.buffers.offset) - self.buffers.offset;
        let Some(to) = range.end().checked_sub(self.buffers.offset + 1) else { return };
        let (first, last) = ((from >> self.shift) as usize, (to >> self.shift) as usize);
        for (noted, turn) in turns.0.iter_mut().zip(&self.turns).take(last + 1).skip(first) {
            *noted = turn.load(Ordering::Relaxed);
        }
    }

    /// Whether this byte of the mapping lies in a buffer that nobody has, or somebody for
    /// another time than when it was noted.
    pub(crate) fn is_void(&self, offset: u64, turns: &Turns) -> bool {
        let Some(at) = offset.checked_sub(self.buffers.offset) else { return false };
        let buf = (at >> self.shift) as usize;
        let Some(turn) = self.turns.get(buf).map(|turn| turn.load(Ordering::Relaxed)) else {
            return false;
        };
        turn & 1 == 0 || turns.0.get(buf) != Some(&turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bytes_of_buffers_that_changed_hands_are_void() {
        let occupied = Occupied::new(Part { offset: 8192, len: 3 * 4096 + 100 }, 4096);
        let mut turns = occupied.turns();
        let void = |turns: &Turns| -> Vec<u64> {
            (0..10).map(|page| page * 4096).filter(|&at| occupied.is_void(at, turns)).collect()
        };
        occupied.note(FlushRange { offset: 0, len: 9 * 4096 }, &mut turns);
        assert!(void(&turns).is_empty(), "until a pool says so");
        (0..9).for_each(|buf| occupied.set(buf, false));
        assert_eq!(void(&turns), [8192, 12_288, 16_384], "and there are no others");
        assert!(!occupied.is_void(8191, &turns) && occupied.is_void(12_287, &turns));
        // Somebody else has it now; what he flushes is his own.
        occupied.set(1, true);
        occupied.set(1, true);
        assert_eq!(void(&turns), [8192, 12_288, 16_384]);
        occupied.note(FlushRange { offset: 12_288 + 4095, len: 1 }, &mut turns);
        assert_eq!(void(&turns), [8192, 16_384]);
        occupied.note(FlushRange { offset: 0, len: 8192 }, &mut turns);
        occupied.note(FlushRange { offset: 8192, len: 4096 }, &mut turns);
        assert_eq!(void(&turns), [8192, 16_384], "nobody has it");
        assert!(!occupied.is_void(u64::MAX, &turns));
    }
}
