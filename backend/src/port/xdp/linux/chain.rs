//! Frames that come in several buffers: what of one is there already. The kernel says of
//! each piece but the last that the frame goes on; that it ever ends, and how long it gets,
//! is not believed.

use crate::port::segments::PACKET_MAX;

/// Pieces that a frame may come in: the longest of all in the smallest buffers, and some.
pub(super) const PIECES_MAX: usize = 48;

/// A range of a buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Piece {
    /// The buffer.
    pub buf: u32,
    /// Where the range starts in it.
    pub offset: u16,
    /// Bytes; at least one.
    pub len: u16,
}

/// The frame of one queue that is not all there.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    pieces: Vec<Piece>,
    len: usize,
    /// The frame is given up, and its rest is still to come.
    skips: bool,
}

impl Chain {
    pub(super) fn new() -> Chain {
        Chain { pieces: Vec::with_capacity(PIECES_MAX), len: 0, skips: false }
    }

    /// Whether the next piece is not the first one of a frame.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.skips || !self.pieces.is_empty()
    }

    /// Pieces that are there.
    pub(super) fn count(&self) -> usize {
        self.pieces.len()
    }

    /// Adds a piece; `spare` gets the buffers of a frame that is too long. True if this
    /// one has become so.
    #[must_use]
    pub(super) fn add(&mut self, piece: Piece, spare: &mut Vec<u32>) -> bool {
        if self.skips {
            spare.push(piece.buf);
            return false;
        }
        self.len += usize::from(piece.len);
        if self.pieces.len() == PIECES_MAX || self.len > PACKET_MAX {
            spare.push(piece.buf);
            self.give_up(spare);
            return true;
        }
        self.pieces.push(piece);
        false
    }

    /// Gives the frame up. What is still to come of it goes to `spare` as well.
    pub(super) fn give_up(&mut self, spare: &mut Vec<u32>) {
        spare.extend(self.pieces.drain(..).map(|piece| piece.buf));
        (self.len, self.skips) = (0, true);
    }

    /// A piece has come that is none. With it, the frame is lost, if there is one.
    pub(super) fn lose(&mut self, continues: bool, spare: &mut Vec<u32>) {
        self.give_up(spare);
        self.skips = continues;
    }

    /// The last piece has come: all of them, or none of a frame that was given up.
    pub(super) fn end(&mut self) -> &mut [Piece] {
        (self.len, self.skips) = (0, false);
        &mut self.pieces
    }

    /// Forgets the pieces that [`Chain::end`] has lent.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(buf: u32, len: u16) -> Piece {
        Piece { buf, offset: 256, len }
    }

    #[test]
    fn pieces_are_kept_until_the_last() {
        let (mut chain, mut spare) = (Chain::new(), Vec::new());
        assert!(!chain.is_open());
        for buf in 0..3 {
            assert!(!chain.add(piece(buf, 1792), &mut spare));
            assert!(chain.is_open());
        }
        assert_eq!(chain.count(), 3);
        let pieces: Vec<_> = chain.end().iter().map(|piece| piece.buf).collect();
        assert_eq!(pieces, [0, 1, 2]);
        chain.clear();
        assert!(!chain.is_open() && spare.is_empty());
    }

    #[test]
    fn a_frame_without_end_holds_so_many_buffers_and_no_more() {
        for (len, most) in [(1, PIECES_MAX), (2048, PACKET_MAX / 2048)] {
            let (mut chain, mut spare) = (Chain::new(), Vec::new());
            let long = (0..1000).filter(|&buf| chain.add(piece(buf, len), &mut spare));
            assert_eq!(long.collect::<Vec<_>>(), [most as u32], "it is told once");
            assert_eq!(chain.count(), 0);
            let mut all = std::mem::take(&mut spare);
            all.sort();
            assert!(all.into_iter().eq(0..1000), "each buffer is free once");
            assert!(chain.is_open());
            // It ends after all, and the next one is whole.
            assert!(chain.end().is_empty() && !chain.is_open());
            assert!(!chain.add(piece(7, 2048), &mut spare));
            assert_eq!(chain.end(), [piece(7, 2048)]);
        }
    }

    #[test]
    fn a_frame_with_a_piece_that_is_none_is_lost() {
        for continues in [false, true] {
            let (mut chain, mut spare) = (Chain::new(), Vec::new());
            assert!(!chain.add(piece(1, 2048), &mut spare));
            chain.lose(continues, &mut spare);
            assert_eq!((&spare[..], chain.is_open()), (&[1][..], continues));
            assert!(!chain.add(piece(2, 2048), &mut spare));
            assert_eq!(chain.count(), usize::from(!continues));
        }
    }
}
