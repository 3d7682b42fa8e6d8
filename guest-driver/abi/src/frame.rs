//! PASTE frames: a 32-byte header and `count` records of 32 bytes.
//!
//! | offset | size | field |
//! | --- | --- | --- |
//! | 0 | 6 | destination address |
//! | 6 | 6 | source address |
//! | 12 | 2 | ethertype, 0x88B5, big endian as on any Ethernet |
//! | 14 | 1 | version |
//! | 15 | 1 | kind |
//! | 16 | 2 | channel |
//! | 18 | 2 | count of records that follow |
//! | 20 | 4 | sequence number |
//! | 24 | 4 | limit: the first sequence number that the receiver may not use yet |
//! | 28 | 4 | reserved, zero |
//!
//! Bytes after the last record are padding and are ignored. In an INLINE frame, each
//! record has the payload that it brings behind it ([`crate::inline`]).

use crate::{ETHERTYPE, VERSION};

/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 32;
/// Length of every record, in bytes. A slot is one record.
pub const RECORD_LEN: usize = 32;
/// Buffer indices in one record of a [`Kind::Return`] or [`Kind::Grant`] frame.
pub const INDICES_PER_RECORD: usize = RECORD_LEN / 4;
/// The largest frame that either side may offer, in bytes.
pub const FRAME_SIZE_MAX: usize = 65_535;
/// The smallest frame size that either side may offer: HELLO and WELCOME fit.
pub const FRAME_SIZE_MIN: usize = HEADER_LEN + 4 * RECORD_LEN;

/// Records that fit into a frame of `frame_size` bytes.
pub const fn records_in(frame_size: usize) -> usize {
    frame_size.saturating_sub(HEADER_LEN) / RECORD_LEN
}

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Guest to host: opens or reopens a channel. Body: [`crate::control::Hello`].
    Hello = 1,
    /// Host to guest: the answer to HELLO. Body: [`crate::control::Welcome`].
    Welcome = 2,
    /// Either way: the channel is closed. Body: [`crate::control::Bye`].
    Bye = 3,
    /// Either way: slots, in order.
    Slots = 4,
    /// Guest to host: buffers that go back to the pool, eight indices a record.
    Return = 5,
    /// Host to guest: buffers for the guest to fill, eight indices a record.
    Grant = 6,
    /// Either way: nothing but the limit. Carries the next sequence number
    /// without using it.
    Credit = 7,
    /// Guest to host: claimed buffers that the guest still holds from before,
    /// eight indices a record.
    Resume = 8,
    /// Host to guest: the records of RESUME in order, without the buffers that
    /// the guest does not get.
    Resumed = 9,
    /// Either way, in place of SLOTS where the guest maps no region: slots, each with its
    /// payload behind it.
    Inline = 10,
    /// Host to guest: asks for a sign of life, which any frame of the channel is; a CREDIT,
    /// if there is no other. Carries the next sequence number without using it.
    Probe = 11,
}

impl Kind {
    /// Whether a frame of this kind uses up a sequence number (and so a credit).
    pub const fn is_sequenced(self) -> bool {
        !matches!(self, Kind::Hello | Kind::Welcome | Kind::Bye | Kind::Credit | Kind::Probe)
    }

    const fn from_u8(value: u8) -> Option<Kind> {
        Some(match value {
            1 => Kind::Hello,
            2 => Kind::Welcome,
            3 => Kind::Bye,
            4 => Kind::Slots,
            5 => Kind::Return,
            6 => Kind::Grant,
            7 => Kind::Credit,
            8 => Kind::Resume,
            9 => Kind::Resumed,
            10 => Kind::Inline,
            11 => Kind::Probe,
            _ => return None,
        })
    }
}

/// The header of a PASTE frame, without the ethertype and version that make it one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Destination MAC address.
    pub dst: [u8; 6],
    /// Source MAC address.
    pub src: [u8; 6],
    /// What the frame is for.
    pub kind: Kind,
    /// The conversation that the frame belongs to.
    pub channel: u16,
    /// Records of [`RECORD_LEN`] bytes that follow.
    pub count: u16,
    /// Position in the sender's sequence of frames, modulo 2^32.
    pub seq: u32,
    /// The first sequence number that the receiver of this frame may not use yet.
    pub limit: u32,
}

/// Why bytes are not a PASTE frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// Fewer bytes than a header.
    Short,
    /// Another ethertype: an ordinary frame.
    NotPaste,
    /// A version that this side does not speak.
    Version(u8),
    /// A kind that version 1 does not know.
    Kind(u8),
    /// A channel number of `CHANNELS_MAX` or more.
    Channel(u16),
    /// The reserved field is not zero.
    Reserved,
    /// More records announced than the frame has bytes for.
    Count {
        /// Records announced.
        announced: u16,
        /// Records that the frame has bytes for.
        present: usize,
    },
}

impl core::fmt::Display for FrameError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            FrameError::Short => write!(f, "frame is shorter than the {HEADER_LEN}-byte header"),
            FrameError::NotPaste => write!(f, "ethertype is not {ETHERTYPE:#06x}"),
            FrameError::Version(v) => write!(f, "version {v} is not {VERSION}"),
            FrameError::Kind(k) => write!(f, "kind {k} is unknown"),
            FrameError::Channel(c) => {
                write!(f, "channel {c} is not below {}", crate::CHANNELS_MAX)
            }
            FrameError::Reserved => write!(f, "reserved header field is not zero"),
            FrameError::Count { announced, present } => {
                write!(f, "{announced} records announced, {present} present")
            }
        }
    }
}

impl core::error::Error for FrameError {}

/// A parsed frame: its header and exactly `count` records; in an INLINE frame, all that
/// follows the header.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The header.
    pub header: Header,
    /// The records, `count * RECORD_LEN` bytes; of an INLINE frame, at least as many,
    /// for [`crate::inline::Reader`].
    pub body: &'a [u8],
}

/// Whether these bytes begin like a PASTE frame. Says nothing of the rest.
pub fn is_paste(bytes: &[u8]) -> bool {
    matches!(bytes.get(12..14), Some(t) if t == ETHERTYPE.to_be_bytes())
}

/// The channel of a PASTE frame that may be malformed otherwise, so that the
/// conversation that it belongs to can be told. `None` if not even that is there.
pub fn channel_of(bytes: &[u8]) -> Option<u16> {
    let head = bytes.first_chunk::<HEADER_LEN>()?;
    let channel = u16::from_le_bytes([head[16], head[17]]);
    (is_paste(head) && channel < crate::CHANNELS_MAX).then_some(channel)
}

impl Header {
    /// Writes the header into the first [`HEADER_LEN`] bytes.
    pub fn write(&self, out: &mut [u8; HEADER_LEN]) {
        out[0..6].copy_from_slice(&self.dst);
        out[6..12].copy_from_slice(&self.src);
        out[12..14].copy_from_slice(&ETHERTYPE.to_be_bytes());
        out[14] = VERSION;
        out[15] = self.kind as u8;
        out[16..18].copy_from_slice(&self.channel.to_le_bytes());
        out[18..20].copy_from_slice(&self.count.to_le_bytes());
        out[20..24].copy_from_slice(&self.seq.to_le_bytes());
        out[24..28].copy_from_slice(&self.limit.to_le_bytes());
        out[28..32].fill(0);
    }
}

impl<'a> Frame<'a> {
    /// Parses a frame from the bytes after the virtio-net header.
    pub fn parse(bytes: &'a [u8]) -> Result<Frame<'a>, FrameError> {
        let (head, rest) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(FrameError::Short)?;
        if !is_paste(head) {
            return Err(FrameError::NotPaste);
        }
        if head[14] != VERSION {
            return Err(FrameError::Version(head[14]));
        }
        let kind = Kind::from_u8(head[15]).ok_or(FrameError::Kind(head[15]))?;
        let channel = u16::from_le_bytes([head[16], head[17]]);
        if channel >= crate::CHANNELS_MAX {
            return Err(FrameError::Channel(channel));
        }
        if head[28..32] != [0; 4] {
            return Err(FrameError::Reserved);
        }
        let count = u16::from_le_bytes([head[18], head[19]]);
        let present = rest.len() / RECORD_LEN;
        let Some(body) = rest.get(..usize::from(count) * RECORD_LEN) else {
            return Err(FrameError::Count { announced: count, present });
        };
        let body = if kind == Kind::Inline { rest } else { body };
        let header = Header {
            dst: [head[0], head[1], head[2], head[3], head[4], head[5]],
            src: [head[6], head[7], head[8], head[9], head[10], head[11]],
            kind,
            channel,
            count,
            seq: u32::from_le_bytes([head[20], head[21], head[22], head[23]]),
            limit: u32::from_le_bytes([head[24], head[25], head[26], head[27]]),
        };
        Ok(Frame { header, body })
    }

    /// The records of the body.
    pub fn records(&self) -> impl ExactSizeIterator<Item = &'a [u8; RECORD_LEN]> + use<'a> {
        self.body.as_chunks::<RECORD_LEN>().0.iter()
    }
}

/// How many frames may still be sent, given the next sequence number and the
/// peer's limit. A limit behind the next number (a stale or hostile peer)
/// grants nothing.
pub const fn credit(next_seq: u32, limit: u32) -> u32 {
    let room = limit.wrapping_sub(next_seq);
    if room > i32::MAX as u32 { 0 } else { room }
}

/// The buffer indices in one record of a RETURN, GRANT, RESUME or RESUMED frame,
/// without the [`crate::NO_BUFFER`] fillers.
pub fn indices(record: &[u8; RECORD_LEN]) -> impl Iterator<Item = u32> + '_ {
    let (words, _) = record.as_chunks::<4>();
    words.iter().map(|w| u32::from_le_bytes(*w)).filter(|&index| index != crate::NO_BUFFER)
}

/// Writes up to eight buffer indices as one record, filled up with
/// [`crate::NO_BUFFER`]. Further indices are not taken.
pub fn write_indices(indices: &[u32], record: &mut [u8; RECORD_LEN]) {
    let (words, _) = record.as_chunks_mut::<4>();
    for (i, word) in words.iter_mut().enumerate() {
        *word = indices.get(i).copied().unwrap_or(crate::NO_BUFFER).to_le_bytes();
    }
}
