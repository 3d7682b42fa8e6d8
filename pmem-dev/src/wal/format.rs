//! What the log looks like in memory, little endian.
//!
//! Two pages with a copy of the header each, then a ring of records. A place in
//! the ring is named by its *position*, which only grows; it lies at the
//! position modulo the ring's length. Records are multiples of 8 bytes, follow
//! one another without a gap, and may go round the end.
//!
//! | offset | size | header |
//! | --- | --- | --- |
//! | 0 | 8 | [`MAGIC`] |
//! | 8 | 4 | [`VERSION`] |
//! | 12 | 4 | generation: how often the log was created or recovered |
//! | 16 | 8 | counts writes of the header; the copy with the higher one is newer |
//! | 24 | 8 | salt of the records' checksums |
//! | 32 | 8 | position of the oldest record |
//! | 40 | 8 | its sequence number |
//! | 48 | 8 | position where the generation began |
//! | 56 | 8 | sequence number up to which everything was known to be durable |
//! | 64 | 4 | CRC-32C of all before |
//!
//! | offset | size | record |
//! | --- | --- | --- |
//! | 0 | 4 | CRC-32C of the header's salt and of all after |
//! | 4 | 4 | length of the record |
//! | 8 | 8 | its position |
//! | 16 | 8 | its sequence number |
//! | 24 | 4 | generation |
//! | 28 | 4 | how far the last record known to be durable was behind this one |
//! | 32 | 8 | time |
//! | 40 | 2 | kind |
//! | 42 | 2 | number of pieces |
//! | 44 | 2 | length of the tag |
//! | 46 | 2 | number of ends |
//! | 48 | 12 each | pieces: buffer 4, offset 2, length 2, checksum 2, zero 2 |
//! | then | 12 each | ends: sequence number 8, first piece 2, number of pieces 2 |
//! | then | | the tag, and zeros up to a multiple of 8 |

use crate::layout::Part;
use crate::medium::Medium;
use crate::wal::{ENDS_MAX, End, Entry, PIECES_MAX, Piece, Position, TAG_MAX};

/// The first eight bytes of a header.
pub(super) const MAGIC: [u8; 8] = *b"PASTEWAL";
/// The layout above.
pub(super) const VERSION: u32 = 1;
/// Bytes of the place of one copy of the header.
pub(super) const HEADER_PAGE: u64 = 4096;
/// Bytes of a header.
pub(super) const HEADER_LEN: usize = 68;
/// Bytes of a record before its pieces.
pub(super) const HEAD_LEN: usize = 48;
/// Bytes of a piece, and of an end.
const TABLE_LEN: usize = 12;
/// Bytes of the longest record.
pub(super) const RECORD_MAX: usize = record_len(PIECES_MAX, ENDS_MAX, TAG_MAX);
/// Bytes of the shortest ring.
const RING_MIN: u64 = 1024;
/// Positions stay far from where they would overflow.
const POSITION_MAX: u64 = 1 << 62;

/// The log's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) count: u64,
    pub(super) generation: u32,
    pub(super) salt: u64,
    pub(super) head: Position,
    pub(super) generation_at: u64,
    pub(super) durable: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.generation.to_le_bytes());
        let words = [
            self.count,
            self.salt,
            self.head.at,
            self.head.sequence,
            self.generation_at,
            self.durable,
        ];
        for (to, word) in bytes[16..64].chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[..64]);
        bytes[64..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header in these bytes, or the version that they have instead.
    pub(super) fn decode(bytes: &[u8; HEADER_LEN]) -> Option<Result<Header, u32>> {
        if bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..64]) != u32_at(bytes, 64) {
            return None;
        }
        if u32_at(bytes, 8) != VERSION {
            return Some(Err(u32_at(bytes, 8)));
        }
        let header = Header {
            generation: u32_at(bytes, 12),
            count: u64_at(bytes, 16),
            salt: u64_at(bytes, 24),
            head: Position { at: u64_at(bytes, 32), sequence: u64_at(bytes, 40) },
            generation_at: u64_at(bytes, 48),
            durable: u64_at(bytes, 56),
        };
        let sound = header.head.at.is_multiple_of(8)
            && header.head.at < POSITION_MAX
            && header.head.sequence < POSITION_MAX
            && header.durable < POSITION_MAX
            && header.generation < u32::MAX;
        sound.then_some(Ok(header))
    }
}

/// What a record says of itself, apart from pieces and tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) len: usize,
    pub(super) position: Position,
    pub(super) generation: u32,
    pub(super) lag: u32,
    pub(super) time: u64,
    pub(super) kind: u16,
    pub(super) pieces: usize,
    pub(super) ends: usize,
    pub(super) tag: usize,
}

impl Head {
    /// The last sequence number that was known to be durable when the record
    /// was written; 0 for none.
    pub(super) fn durable(&self) -> u64 {
        match self.lag {
            u32::MAX => 0,
            lag => self.position.sequence.saturating_sub(lag.into()),
        }
    }
}

/// Bytes of a record.
pub(super) const fn record_len(pieces: usize, ends: usize, tag: usize) -> usize {
    (HEAD_LEN + (pieces + ends) * TABLE_LEN + tag).next_multiple_of(8)
}

fn record_crc(salt: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), &bytes[4..])
}

/// Writes a record into `out`. The caller has kept to the limits.
pub(super) fn encode(out: &mut Vec<u8>, salt: u64, head: &Head, entry: &Entry<'_>) {
    out.clear();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(head.len as u32).to_le_bytes());
    out.extend_from_slice(&head.position.at.to_le_bytes());
    out.extend_from_slice(&head.position.sequence.to_le_bytes());
    out.extend_from_slice(&head.generation.to_le_bytes());
    out.extend_from_slice(&head.lag.to_le_bytes());
    out.extend_from_slice(&head.time.to_le_bytes());
    out.extend_from_slice(&head.kind.to_le_bytes());
    out.extend_from_slice(&(head.pieces as u16).to_le_bytes());
    out.extend_from_slice(&(head.tag as u16).to_le_bytes());
    out.extend_from_slice(&(head.ends as u16).to_le_bytes());
    for piece in entry.pieces {
        out.extend_from_slice(&piece.buf.to_le_bytes());
        out.extend_from_slice(&piece.offset.to_le_bytes());
        out.extend_from_slice(&piece.len.to_le_bytes());
        out.extend_from_slice(&piece.csum.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
    }
    for end in entry.ends {
        out.extend_from_slice(&end.sequence.to_le_bytes());
        out.extend_from_slice(&end.first.to_le_bytes());
        out.extend_from_slice(&end.count.to_le_bytes());
    }
    out.extend_from_slice(entry.tag);
    out.resize(head.len, 0);
    let crc = record_crc(salt, out);
    out[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Reads piece `index` of a record that was judged sound.
pub(super) fn piece(record: &[u8], index: usize) -> Piece {
    let bytes = &record[HEAD_LEN + index * TABLE_LEN..][..TABLE_LEN];
    Piece {
        buf: u32_at(bytes, 0),
        offset: u16_at(bytes, 4),
        len: u16_at(bytes, 6),
        csum: u16_at(bytes, 8),
    }
}

/// Reads end `index` of a record that was judged sound.
pub(super) fn end(record: &[u8], head: &Head, index: usize) -> End {
    let bytes = &record[HEAD_LEN + (head.pieces + index) * TABLE_LEN..][..TABLE_LEN];
    End { sequence: u64_at(bytes, 0), first: u16_at(bytes, 8), count: u16_at(bytes, 10) }
}

/// The tag of a record that was judged sound.
pub(super) fn tag<'a>(record: &'a [u8], head: &Head) -> &'a [u8] {
    &record[HEAD_LEN + (head.pieces + head.ends) * TABLE_LEN..][..head.tag]
}

/// The ring of records.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ring {
    start: u64,
    len: u64,
}

impl Ring {
    /// The ring in `log`, if there is room for one of use.
    pub(super) fn new(log: Part) -> Option<Ring> {
        let len = log.len.checked_sub(2 * HEADER_PAGE)? / 8 * 8;
        (len >= RING_MIN).then_some(Ring { start: log.offset + 2 * HEADER_PAGE, len })
    }

    pub(super) fn len(self) -> u64 {
        self.len
    }

    /// The two ranges of memory that `len` bytes from `at` lie in.
    fn split(self, at: u64, len: usize) -> (u64, usize, usize) {
        let inside = at % self.len;
        let first = len.min((self.len - inside) as usize);
        (self.start + inside, first, len - first)
    }

    pub(super) fn load(self, medium: &(impl Medium + ?Sized), at: u64, out: &mut [u8]) {
        let (start, first, rest) = self.split(at, out.len());
        medium.load(start, &mut out[..first]);
        if rest > 0 {
            medium.load(self.start, &mut out[first..]);
        }
    }

    pub(super) fn store(self, medium: &mut (impl Medium + ?Sized), at: u64, data: &[u8]) {
        let (start, first, rest) = self.split(at, data.len());
        medium.store(start, &data[..first]);
        if rest > 0 {
            medium.store(self.start, &data[first..]);
        }
        self.flush(medium, at, data.len() as u64);
    }

    pub(super) fn flush(self, medium: &mut (impl Medium + ?Sized), at: u64, len: u64) {
        let (start, first, rest) = self.split(at, len.min(self.len) as usize);
        medium.flush(start, first as u64);
        if rest > 0 {
            medium.flush(self.start, rest as u64);
        }
    }

    /// Reads the record at `at` into `record`, if there is a sound one that
    /// ends before `limit`.
    pub(super) fn read(
        self,
        medium: &(impl Medium + ?Sized),
        salt: u64,
        at: u64,
        limit: u64,
        record: &mut Vec<u8>,
    ) -> Option<Head> {
        let room = limit.checked_sub(at).filter(|&room| room >= HEAD_LEN as u64)?;
        record.resize(HEAD_LEN, 0);
        self.load(medium, at, record);
        let len = u32_at(record, 4) as usize;
        let sane = (HEAD_LEN..=RECORD_MAX).contains(&len)
            && len.is_multiple_of(8)
            && len as u64 <= room
            && u64_at(record, 8) == at;
        if !sane {
            return None;
        }
        record.resize(len, 0);
        self.load(medium, at, record);
        // Loaded again, so everything is judged again.
        let head = Head {
            len: u32_at(record, 4) as usize,
            position: Position { at: u64_at(record, 8), sequence: u64_at(record, 16) },
            generation: u32_at(record, 24),
            lag: u32_at(record, 28),
            time: u64_at(record, 32),
            kind: u16_at(record, 40),
            pieces: u16_at(record, 42).into(),
            tag: u16_at(record, 44).into(),
            ends: u16_at(record, 46).into(),
        };
        let sound = head.len == len
            && head.position.at == at
            && head.position.sequence < POSITION_MAX
            && head.pieces <= PIECES_MAX
            && head.ends <= ENDS_MAX
            && head.tag <= TAG_MAX
            && record_len(head.pieces, head.ends, head.tag) == len
            && record_crc(salt, record) == u32_at(record, 0);
        sound.then_some(head)
    }
}
