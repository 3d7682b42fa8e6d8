//! The bytes of a flow that have arrived and are not used up: ranges of
//! buffers, one after the other, read in place.

use std::collections::VecDeque;

use super::extent::{Bytes, Extent};

/// A place in a chain. Stays good while bytes arrive behind it, and as long as
/// what it names is not dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Place {
    /// Pieces count up from the flow's first, for ever.
    piece: u64,
    /// Bytes into the piece; its length stands for the beginning of the next.
    within: u16,
}

/// The pieces of a flow.
#[derive(Debug, Default)]
pub(super) struct Chain {
    pieces: VecDeque<Extent>,
    /// The number of the first piece.
    first: u64,
    bytes: usize,
}

impl Chain {
    /// Bytes that are in the chain.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// Buffers that the chain names.
    pub(super) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// The last piece.
    pub(super) fn last(&self) -> Option<Extent> {
        self.pieces.back().copied()
    }

    /// Appends a piece.
    pub(super) fn push(&mut self, piece: Extent) {
        self.bytes += usize::from(piece.len);
        self.pieces.push_back(piece);
    }

    /// Bytes were written behind the last piece, in its buffer.
    pub(super) fn grow_last(&mut self, count: u16) {
        if let Some(last) = self.pieces.back_mut() {
            last.len += count;
            self.bytes += usize::from(count);
        }
    }

    /// The beginning.
    pub(super) fn start(&self) -> Place {
        Place { piece: self.first, within: 0 }
    }

    /// What lies from `place` to the end of its piece; `None` at the end of the
    /// chain. Moves `place` over the boundary between two pieces.
    fn rest(&self, place: &mut Place) -> Option<Extent> {
        if place.piece < self.first {
            // At the end of a piece that was dropped.
            *place = self.start();
        }
        loop {
            let number = usize::try_from(place.piece - self.first).ok()?;
            let piece = *self.pieces.get(number)?;
            if place.within < piece.len {
                return Some(piece.skip(place.within.into()));
            }
            if number + 1 == self.pieces.len() {
                return None;
            }
            *place = Place { piece: place.piece + 1, within: 0 };
        }
    }

    /// Up to `count` bytes from `place` on that lie in one piece, and moves
    /// `place` behind them; `None` at the end of the chain.
    pub(super) fn next(&self, place: &mut Place, count: usize) -> Option<Extent> {
        let extent = self.rest(place)?.first(count);
        place.within += extent.len;
        Some(extent)
    }

    /// The byte at `place`, and moves behind it.
    pub(super) fn byte(&self, memory: &impl Bytes, place: &mut Place) -> Option<u8> {
        let extent = self.next(place, 1)?;
        memory.bytes(extent).first().copied()
    }

    /// Removes the first piece if `place` lies behind all of its bytes.
    pub(super) fn drop_before(&mut self, place: Place) -> Option<Extent> {
        let piece = *self.pieces.front()?;
        let behind =
            place.piece > self.first || (place.piece == self.first && place.within >= piece.len);
        behind.then(|| self.pop()).flatten()
    }

    /// Removes the first piece.
    pub(super) fn pop(&mut self) -> Option<Extent> {
        let piece = self.pieces.pop_front()?;
        self.first += 1;
        self.bytes -= usize::from(piece.len);
        Some(piece)
    }
}
