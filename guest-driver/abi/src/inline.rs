//! Inline slots: payload that travels in the frame, for guests that map no region.
//!
//! An INLINE frame takes the place of a SLOTS frame in both directions. Its records are
//! the same slots; what a DATA slot says of a buffer is true once the bytes that stand
//! right behind its record have been put there, at `offset`. All other slots have nothing
//! behind them.
//!
//! A payload that does not fit is brought in pieces. A PIECE slot names buffer, offset
//! and length of the bytes behind it. The next slot of the channel, in this frame or a
//! later one, is a PIECE of the same buffer that goes on where this one ended, or the DATA
//! slot that names the whole payload and has only the rest behind it.
//!
//! Nothing here knows who owns a buffer, or where it is.

use crate::frame::RECORD_LEN;
use crate::slot::{Event, Slot};

/// The number of DATA, as an event and as a request.
const DATA: u8 = Event::Data as u8;
/// The number of PIECE, as an event and as a request.
const PIECE: u8 = Event::Piece as u8;

/// The fewest bytes of a payload for which it is split.
const SPLIT_MIN: usize = 64;

/// Bytes of a buffer that a frame brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The buffer.
    pub buf_idx: u32,
    /// Where they go in the buffer.
    pub offset: u16,
    /// How many they are; none for slots without payload.
    pub len: u16,
}

impl Piece {
    /// Where they end in the buffer.
    pub const fn end(&self) -> usize {
        self.offset as usize + self.len as usize
    }
}

/// Why an INLINE frame is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InlineError {
    /// The frame ends before the records that it announces, or the bytes behind one.
    Short,
    /// A PIECE without bytes, or one that ends beyond any buffer.
    Piece,
    /// Not the slot that the PIECE before it needs.
    Order,
}

impl core::fmt::Display for InlineError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            InlineError::Short => "the frame ends within a slot's payload",
            InlineError::Piece => "a piece without bytes, or beyond any buffer",
            InlineError::Order => "a piece is not followed by the rest of its payload",
        })
    }
}

impl core::error::Error for InlineError {}

/// What of a payload has been brought so far: one for each channel and direction, kept
/// from frame to frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress(Option<Piece>);

impl Progress {
    /// Judges the next slot, behind which there are `left` bytes in the frame, and says
    /// which of them are its own.
    fn next(&mut self, slot: &Slot, left: usize) -> Result<Piece, InlineError> {
        let Slot { buf_idx, offset, len, kind, .. } = *slot;
        let brought = self.0.take();
        let goes_on = |at: usize| brought.is_none_or(|b| b.buf_idx == buf_idx && b.end() == at);
        let piece = match kind {
            PIECE => {
                let piece = Piece { buf_idx, offset, len };
                let Ok(_) = u16::try_from(piece.end()) else { return Err(InlineError::Piece) };
                if len == 0 {
                    return Err(InlineError::Piece);
                }
                if !goes_on(usize::from(offset)) {
                    return Err(InlineError::Order);
                }
                let start = brought.map_or(offset, |b| b.offset);
                self.0 = Some(Piece { buf_idx, offset: start, len: piece.end() as u16 - start });
                piece
            }
            DATA => match brought {
                None => Piece { buf_idx, offset, len },
                Some(b) if b.buf_idx == buf_idx && b.offset == offset && b.len < len => {
                    // The sum is the end of the last piece, which fits.
                    Piece { buf_idx, offset: offset + b.len, len: len - b.len }
                }
                Some(_) => return Err(InlineError::Order),
            },
            _ if brought.is_some() => return Err(InlineError::Order),
            _ => Piece { buf_idx, offset: 0, len: 0 },
        };
        if usize::from(piece.len) > left { Err(InlineError::Short) } else { Ok(piece) }
    }
}

/// Walks over the slots of an INLINE frame.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    body: &'a [u8],
    left: u16,
}

impl<'a> Reader<'a> {
    /// The slots of a frame with this body, of which `count` are announced.
    pub fn new(body: &'a [u8], count: u16) -> Reader<'a> {
        Reader { body, left: count }
    }

    /// The next slot and the bytes that it brings; `None` behind the last.
    #[expect(clippy::type_complexity, reason = "a name would not say more")]
    pub fn next(
        &mut self,
        progress: &mut Progress,
    ) -> Option<Result<(Slot, Piece, &'a [u8]), InlineError>> {
        self.left = self.left.checked_sub(1)?;
        Some(self.read(progress))
    }

    fn read(&mut self, progress: &mut Progress) -> Result<(Slot, Piece, &'a [u8]), InlineError> {
        let (record, rest) =
            self.body.split_first_chunk::<RECORD_LEN>().ok_or(InlineError::Short)?;
        let slot = Slot::read(record);
        let piece = progress.next(&slot, rest.len())?;
        let (bytes, rest) = rest.split_at(piece.len.into());
        self.body = rest;
        Ok((slot, piece, bytes))
    }

    /// Bytes that have not been walked over.
    pub fn remaining(&self) -> usize {
        self.body.len()
    }
}

/// Fills the body of an INLINE frame.
#[derive(Debug)]
pub struct Writer<'a> {
    body: &'a mut [u8],
    used: usize,
    count: u16,
}

/// What became of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is in the frame, with everything that it brings.
    Whole,
    /// The frame is full with a piece of it; the rest of this slot comes first in the next.
    Split,
    /// There was no room, and the frame is as before.
    No,
}

impl<'a> Writer<'a> {
    /// A frame with room for this body.
    pub fn new(body: &'a mut [u8]) -> Writer<'a> {
        Writer { body, used: 0, count: 0 }
    }

    /// Slots in the frame.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Bytes of the body that are used.
    pub fn len(&self) -> usize {
        self.used
    }

    /// Whether nothing is in the frame.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Puts a slot into the frame, of whose payload `brought` bytes are in earlier ones, and
    /// has `fill` copy the bytes that it is called with. `brought` is counted on, and starts
    /// from 0 when the slot is whole.
    pub fn put(
        &mut self,
        slot: &Slot,
        brought: &mut u16,
        fill: &mut dyn FnMut(Piece, &mut [u8]),
    ) -> Put {
        let left = self.body.len() - self.used;
        let Some(room) = left.checked_sub(RECORD_LEN) else { return Put::No };
        if self.count == u16::MAX {
            return Put::No;
        }
        let rest = if slot.kind == DATA { slot.len.saturating_sub(*brought) } else { 0 };
        let offset = slot.offset.saturating_add(*brought);
        if usize::from(rest) <= room {
            self.write(slot, Piece { buf_idx: slot.buf_idx, offset, len: rest }, fill);
            *brought = 0;
            return Put::Whole;
        }
        if room < SPLIT_MIN {
            return Put::No;
        }
        // Less than `rest`, which is a u16.
        let piece = Piece { buf_idx: slot.buf_idx, offset, len: room as u16 };
        let head = Slot {
            buf_idx: piece.buf_idx,
            offset,
            len: piece.len,
            kind: PIECE,
            flow: slot.flow,
            ..Slot::default()
        };
        self.write(&head, piece, fill);
        *brought += piece.len;
        Put::Split
    }

    fn write(&mut self, slot: &Slot, piece: Piece, fill: &mut dyn FnMut(Piece, &mut [u8])) {
        let end = self.used + RECORD_LEN + usize::from(piece.len);
        let Some((record, bytes)) = self.body[self.used..end].split_first_chunk_mut::<RECORD_LEN>()
        else {
            return;
        };
        slot.write(record);
        if piece.len > 0 {
            fill(piece, bytes);
        }
        self.used = end;
        self.count += 1;
    }
}
