//! The write-ahead log: says which buffers hold what was promised.
//!
//! A record names pieces of buffers, where the payload lies since the NIC put it
//! there, with the checksum that came with it, and carries up to [`TAG_MAX`]
//! bytes of the application's own (a key, an operation, a small value). Nothing
//! of the payload is copied or read.
//!
//! # Writing
//!
//! [`Wal::append`] stores a record and flushes it with its payload;
//! [`Wal::commit`] ends the epoch. Whatever else the application flushed before
//! the commit, claims above all, belongs to it. When the ticket is
//! reached, everything up to there survives any crash, and may be acknowledged.
//! No call waits: with a ticket that takes a message to the host, the application
//! goes on with other work, or sends its answer in the same batch and lets the
//! host do the waiting.
//!
//! # Making room
//!
//! The log is a ring. [`Wal::truncate`] gives up everything before a position,
//! once what replaces it is durable. An application that keeps its state in
//! the log reads its oldest records ([`Wal::read`]), writes those that still
//! count anew ([`Wal::rewrite`]), and truncates. A full log is an error of
//! `append`, and nothing is lost by it; a commit or two later the room of what was
//! given up is there.
//!
//! # Recovery
//!
//! [`Wal::recover`] hands the records to the application, oldest first, and takes
//! up the log where it ended. A record that was being written is recognised by
//! sequence and CRC and cut off. A record that nothing proves to have been promised
//! counts if its payload is whole, and is dropped otherwise. What was
//! promised and is damaged is reported as [`Damage`], and marked in its record.
//!
//! The program that died may have flushed what never became durable. So after
//! recovery the application claims again what the records name, and commits until
//! [`Wal::is_ready`]. Then it may serve what it has found, and release the claims
//! that no record needs.
//!
//! The log must know which payload still counts: the buffers of a value that was
//! superseded have been used for something else. So the record that supersedes
//! another, or a part of it, names it as an [`End`]. This it needs of the
//! application besides:
//!
//! - a buffer is claimed in the epoch of the record that names it, or before;
//! - it is given back only after the record that ended it was reached.
//!
//! # Example
//!
//! ```
//! use paste_pmem::wal::{Entry, Piece, Place, Wal, WalError};
//! use paste_pmem::{Medium, Part, checksum};
//!
//! # use paste_pmem::crash::Recorder;
//! // Where things lie; of a region, `Place::from(&geometry)`.
//! let place = Place {
//!     log: Part { offset: 4096, len: 65536 },
//!     buffers: Part { offset: 69632, len: 16 * 2048 },
//!     buffer_size: 2048,
//! };
//! # let mut medium = Recorder::prompt(vec![0; 69632 + 16 * 2048]);
//! // A new region has no log yet. The salt is random.
//! assert!(matches!(Wal::recover(&mut medium, place, |_| true, |_| ()), Err(WalError::Absent)));
//! let mut wal = Wal::create(&mut medium, place, 0x6b1f_93d2_0c57_aa01)?;
//!
//! // A request's payload is in buffer 3 since it arrived.
//! medium.store(69632 + 3 * 2048, b"SET greeting hello");
//! let value = Piece { buf: 3, offset: 13, len: 5, csum: checksum::of(b"hello") };
//! let entry = Entry { kind: 1, time: 77, pieces: &[value], ends: &[], tag: b"greeting" };
//! wal.append(&mut medium, &entry)?;
//! let ticket = wal.commit(&mut medium);
//! assert!(medium.reached(ticket), "now it may be acknowledged");
//!
//! // After any crash:
//! let mut found = Vec::new();
//! let (mut wal, recovery) = Wal::recover(&mut medium, place, |buf| buf == 3, |record| {
//!     found.push((record.tag().to_vec(), record.pieces().collect::<Vec<_>>()));
//! })?;
//! assert_eq!(found, [(b"greeting".to_vec(), vec![value])]);
//! assert_eq!(recovery.loss.count, 0);
//! while !wal.is_ready(&medium) {
//!     wal.commit(&mut medium); // and wait for the ticket
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod format;
mod log;
mod scan;

pub use log::{Scratch, Wal};
pub use scan::{Report, inspect, verify};

use crate::layout::{Geometry, Part};
use crate::wal::format::Head;

/// Pieces of one record: 512 KiB and more, as TCP delivers it.
pub const PIECES_MAX: usize = 1024;
/// Ends of one record.
pub const ENDS_MAX: usize = 1024;
/// Bytes of one record's tag.
pub const TAG_MAX: usize = 16 << 10;
/// The kind of the log's own records; applications use those below.
pub const VOID: u16 = u16::MAX;

/// Where the log lies, and what it speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The log.
    pub log: Part,
    /// The buffers.
    pub buffers: Part,
    /// Bytes of one buffer.
    pub buffer_size: u32,
}

impl From<&Geometry> for Place {
    fn from(geometry: &Geometry) -> Place {
        Place {
            log: geometry.log(),
            buffers: geometry.buffers(),
            buffer_size: geometry.buffer_size(),
        }
    }
}

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    /// Bytes written before it, ever.
    pub at: u64,
    /// Sequence number of the record there; the first is 1.
    pub sequence: u64,
}

/// Some bytes of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Piece {
    /// The buffer.
    pub buf: u32,
    /// Where the bytes start in it.
    pub offset: u16,
    /// How many they are.
    pub len: u16,
    /// Their Internet checksum: as it came with the slot, or from
    /// [`of_middle`](crate::checksum::of_middle) or [`Place::sum`].
    pub csum: u16,
}

/// Pieces that count no more, as another record replaces or deletes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct End {
    sequence: u64,
    first: u16,
    count: u16,
}

impl End {
    const ALL: u16 = u16::MAX;

    /// All pieces of the record with this number.
    pub const fn record(sequence: u64) -> End {
        End { sequence, first: 0, count: End::ALL }
    }

    /// Some of its pieces, where a record holds several values.
    pub const fn pieces(sequence: u64, first: u16, count: u16) -> End {
        End { sequence, first, count }
    }

    /// All pieces of the record with this number, and of all before it.
    pub const fn until(sequence: u64) -> End {
        End { sequence, first: End::ALL, count: End::ALL }
    }

    /// The pieces of the record, or `None` for those of all records before as well.
    fn range(&self) -> Option<std::ops::Range<u32>> {
        let first = u32::from(self.first);
        (self.first != End::ALL).then(|| first..first + u32::from(self.count))
    }
}

/// What is to be recorded.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// A word of the application's, below [`VOID`].
    pub kind: u16,
    /// When the request arrived, ns since the Unix epoch.
    pub time: u64,
    /// Where its payload lies; up to [`PIECES_MAX`].
    pub pieces: &'a [Piece],
    /// What counts no more from here on; up to [`ENDS_MAX`].
    pub ends: &'a [End],
    /// Bytes of the application's; up to [`TAG_MAX`].
    pub tag: &'a [u8],
}

/// A record that was read.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    head: Head,
    bytes: &'a [u8],
    damaged: &'a [u16],
}

/// Something that was promised and is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Records that cannot be read.
    #[error("records {first} to {last} cannot be read, from byte {at} of the log's ring on")]
    Records {
        /// The first one's number.
        first: u64,
        /// The last one's.
        last: u64,
        /// Where they start in the ring.
        at: u64,
    },
    /// Payload that is not what was recorded.
    #[error(
        "payload of record {sequence} is damaged: bytes {}+{} of buffer {} have another checksum",
        .piece.offset, .piece.len, .piece.buf
    )]
    Payload {
        /// The record.
        sequence: u64,
        /// The piece that is damaged.
        piece: Piece,
    },
    /// Payload in a buffer that is not claimed, and so may hold anything.
    #[error("buffer {buf} of record {sequence} is not claimed")]
    Claim {
        /// The record.
        sequence: u64,
        /// The buffer.
        buf: u32,
    },
}

/// Everything that was promised and is not there.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Loss {
    /// How many damages there are.
    pub count: u64,
    /// The first thousand of them.
    pub named: Vec<Damage>,
}

/// Why there is no log to work with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WalError {
    /// No log was created here yet.
    #[error("no log was created in this region")]
    Absent,
    /// Neither copy of the header is sound.
    #[error("both copies of the log's header are damaged, so its records cannot be found")]
    Header,
    /// A log of another version.
    #[error("the log has version {0}, this program knows version {known}", known = format::VERSION)]
    Version(u32),
    /// The part is too small.
    #[error("{len} bytes are too few for a log")]
    Small {
        /// Its length.
        len: u64,
    },
}

/// Why nothing was appended. The log is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// There is no room until older records are given up.
    #[error("the log is full: {needed} bytes needed, {free} free; truncate and commit")]
    Full {
        /// Bytes of the record.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// The log's new header is not durable yet: see [`Wal::is_ready`].
    #[error("the log is not ready: its header is not durable yet; commit and wait")]
    NotReady,
    /// More than a record has room for.
    #[error(
        "{pieces} pieces, {ends} ends and a tag of {tag} bytes are more than a record holds \
         ({PIECES_MAX}, {ENDS_MAX}, {TAG_MAX}, and {ring} bytes in all)"
    )]
    TooLong {
        /// Number of pieces.
        pieces: usize,
        /// Number of ends.
        ends: usize,
        /// Bytes of the tag.
        tag: usize,
        /// Bytes of this log's ring.
        ring: u64,
    },
    /// The kind belongs to the log.
    #[error("kind {VOID} is the log's own")]
    Kind,
    /// A piece does not lie in a buffer.
    #[error("bytes {}+{} of buffer {} are not in the region", .0.offset, .0.len, .0.buf)]
    Piece(Piece),
}

/// What recovery found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// Records handed out.
    pub records: u64,
    /// Records whose payload was not whole and which nobody was promised.
    pub dropped: u64,
    /// Whether records that were being written were cut off.
    pub torn: bool,
    /// What was promised and is not there.
    pub loss: Loss,
}
