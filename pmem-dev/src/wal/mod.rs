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
mod scan;

use std::collections::VecDeque;

pub use scan::{Report, inspect, verify};

use crate::layout::{Geometry, Part};
use crate::medium::{Medium, Ticket};
use crate::wal::format::{HEADER_PAGE, Head, Header, RECORD_MAX, Ring};
use crate::wal::scan::Walk;

/// Pieces of one record: 512 KiB and more, as TCP delivers it.
pub const PIECES_MAX: usize = 1024;
/// Ends of one record.
pub const ENDS_MAX: usize = 1024;
/// Bytes of one record's tag.
pub const TAG_MAX: usize = 16 << 10;
/// The kind of the log's own records; applications use those below.
pub const VOID: u16 = u16::MAX;
/// Commits that are told apart while none of them is reached.
const COMMITS_MAX: usize = 1024;

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

/// A header that was written and need not be durable yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    head: Position,
    /// Known from the commit on.
    ticket: Option<Ticket>,
}

/// The log of one region, open for writing.
#[derive(Debug)]
pub struct Wal {
    place: Place,
    ring: Ring,
    /// The newest header written; its head may be ahead of `floor`.
    header: Header,
    /// When everything is durable that the log was when it was taken up; known
    /// from a commit on.
    settled: Option<Ticket>,
    /// When the header is durable, once it is written.
    ready: Option<Ticket>,
    /// Everything before is free.
    floor: Position,
    pending: Option<Pending>,
    /// Everything before is to be given up, once the ticket of the commit that
    /// came after the wish is reached.
    wish: Option<Pending>,
    /// A wish that came while there was one.
    next_wish: Option<Position>,
    tail: Position,
    /// The last number that is durable.
    durable: u64,
    /// Tickets of commits, and the last number before each.
    commits: VecDeque<(Ticket, u64)>,
    /// Records dropped by recovery, which the log does not say yet.
    void: Vec<u64>,
    scratch: Vec<u8>,
}

impl Wal {
    /// Makes a new, empty log, whatever was there before. `salt` is random, so
    /// that nobody who sends a request can make its bytes look like a record. An old
    /// log is there until [`Wal::is_ready`].
    ///
    /// # Errors
    /// [`WalError::Small`].
    pub fn create(
        medium: &mut (impl Medium + ?Sized),
        place: Place,
        salt: u64,
    ) -> Result<Wal, WalError> {
        let ring = place.ring()?;
        let old = scan::headers(medium, &place);
        let old = old.into_iter().flatten().flatten().max_by_key(|header| header.count);
        let header = Header {
            count: old.map_or(0, |old| old.count) + 1,
            generation: old.map_or(0, |old| old.generation) + 1,
            salt,
            head: Position { at: 0, sequence: 1 },
            generation_at: 0,
            durable: 0,
        };
        let mut wal = Wal::start(medium, place, ring, header, header.head, Vec::new());
        for _ in 0..2 {
            wal.commit(medium);
        }
        Ok(wal)
    }

    /// Takes up the log after a crash, or after an orderly end, which is the same.
    /// `claimed` is asked of buffers; `visit` gets the records that hold, oldest
    /// first.
    ///
    /// # Errors
    /// [`WalError`] where there is no log to read.
    pub fn recover(
        medium: &mut (impl Medium + ?Sized),
        place: Place,
        claimed: impl Fn(u32) -> bool,
        mut visit: impl FnMut(Record<'_>),
    ) -> Result<(Wal, Recovery), WalError> {
        let mut survey = scan::survey(medium, &place)?;
        let verdict = survey.judge(medium, &place, &claimed);
        let mut records = 0;
        let mut flush = Vec::new();
        let durable = survey.durable;
        survey.visit(medium, &place, &verdict, claimed, |record, _| {
            records += 1;
            if record.sequence() > durable {
                flush.extend(record.pieces());
            }
            visit(record);
        });
        // Only this program may have crashed: what was found need not be durable.
        if verdict.unknown < survey.end.at {
            survey.ring.flush(medium, verdict.unknown, survey.end.at - verdict.unknown);
        }
        for piece in flush {
            if let Some(at) = place.locate(&piece) {
                medium.flush(at, piece.len.into());
            }
        }
        let header = Header {
            count: survey.header.count + 1,
            generation: survey.header.generation + 1,
            generation_at: survey.end.at,
            durable: survey.durable,
            ..survey.header
        };
        let dropped = verdict.dropped.len() as u64;
        let wal = Wal::start(medium, place, survey.ring, header, survey.end, verdict.dropped);
        let recovery = Recovery { records, dropped, torn: survey.torn, loss: survey.loss };
        Ok((wal, recovery))
    }

    fn start(
        medium: &mut (impl Medium + ?Sized),
        place: Place,
        ring: Ring,
        header: Header,
        tail: Position,
        void: Vec<u64>,
    ) -> Wal {
        // One copy of the header is always durable: the newest, before the other is
        // overwritten.
        let newest = (header.count + 1) % 2 * HEADER_PAGE;
        medium.flush(place.log.offset + newest, format::HEADER_LEN as u64);
        Wal {
            place,
            ring,
            header,
            settled: None,
            ready: None,
            floor: header.head,
            pending: None,
            wish: None,
            next_wish: None,
            tail,
            durable: header.durable,
            commits: VecDeque::with_capacity(COMMITS_MAX),
            void,
            scratch: Vec::with_capacity(RECORD_MAX),
        }
    }

    /// Writes the first header of this generation, if it is time.
    fn begin(&mut self, medium: &mut (impl Medium + ?Sized)) -> bool {
        let settled = self.settled.is_some_and(|settled| medium.reached(settled));
        let due = self.ready.is_none() && settled;
        if due {
            self.store_header(medium);
        }
        due
    }

    fn store_header(&mut self, medium: &mut (impl Medium + ?Sized)) {
        let at = self.place.log.offset + self.header.count % 2 * HEADER_PAGE;
        let bytes = self.header.encode();
        medium.store(at, &bytes);
        medium.flush(at, bytes.len() as u64);
    }

    /// Whether records are taken. A log that was created or recovered gets there by
    /// commits, each made when the ticket of the last one is reached.
    pub fn is_ready(&self, medium: &(impl Medium + ?Sized)) -> bool {
        self.ready.is_some_and(|ready| medium.reached(ready))
    }

    /// Records `entry` and flushes it with its payload. It is durable when the
    /// ticket of the next [`Wal::commit`] is reached.
    ///
    /// # Errors
    /// [`AppendError`].
    pub fn append(
        &mut self,
        medium: &mut (impl Medium + ?Sized),
        entry: &Entry<'_>,
    ) -> Result<Position, AppendError> {
        let position = self.rewrite(medium, entry)?;
        for piece in entry.pieces {
            if let Some(at) = self.place.locate(piece) {
                medium.flush(at, piece.len.into());
            }
        }
        Ok(position)
    }

    /// As [`Wal::append`], for payload that is durable already: a record that
    /// still counts is written anew before it is given up.
    ///
    /// # Errors
    /// [`AppendError`].
    pub fn rewrite(
        &mut self,
        medium: &mut (impl Medium + ?Sized),
        entry: &Entry<'_>,
    ) -> Result<Position, AppendError> {
        let (pieces, ends, tag) = (entry.pieces.len(), entry.ends.len(), entry.tag.len());
        let len = format::record_len(pieces, ends, tag) as u64;
        let fits = pieces <= PIECES_MAX && ends <= ENDS_MAX && tag <= TAG_MAX;
        if !fits || len > self.ring.len() {
            return Err(AppendError::TooLong { pieces, ends, tag, ring: self.ring.len() });
        }
        if entry.kind == VOID {
            return Err(AppendError::Kind);
        }
        if let Some(piece) = entry.pieces.iter().find(|piece| self.place.locate(piece).is_none()) {
            return Err(AppendError::Piece(*piece));
        }
        if !self.is_ready(medium) {
            return Err(AppendError::NotReady);
        }
        self.poll(medium);
        let void = format::record_len(0, 0, self.void.len() * 8) as u64;
        let needed = len + if self.void.is_empty() { 0 } else { void };
        if needed > self.free() {
            return Err(AppendError::Full { needed, free: self.free() });
        }
        self.write_void(medium);
        Ok(self.write(medium, entry))
    }

    /// Says which records recovery has dropped, before anything follows that
    /// would prove that they were promised.
    fn write_void(&mut self, medium: &mut (impl Medium + ?Sized)) {
        let void = std::mem::take(&mut self.void);
        for numbers in void.chunks(TAG_MAX / 8) {
            let tag: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            self.write(medium, &Entry { kind: VOID, time: 0, pieces: &[], ends: &[], tag: &tag });
        }
    }

    fn write(&mut self, medium: &mut (impl Medium + ?Sized), entry: &Entry<'_>) -> Position {
        let position = self.tail;
        let head = Head {
            len: format::record_len(entry.pieces.len(), entry.ends.len(), entry.tag.len()),
            position,
            generation: self.header.generation,
            lag: u32::try_from(position.sequence - self.durable).unwrap_or(u32::MAX),
            time: entry.time,
            kind: entry.kind,
            pieces: entry.pieces.len(),
            ends: entry.ends.len(),
            tag: entry.tag.len(),
        };
        format::encode(&mut self.scratch, self.header.salt, &head, entry);
        self.ring.store(medium, position.at, &self.scratch);
        self.tail = Position { at: position.at + head.len as u64, sequence: position.sequence + 1 };
        position
    }

    /// Ends the epoch: what was appended is durable when the ticket is reached.
    pub fn commit(&mut self, medium: &mut (impl Medium + ?Sized)) -> Ticket {
        self.poll(medium);
        if self.pending.is_none() && self.is_ready(medium) {
            let granted =
                self.wish.filter(|wish| wish.ticket.is_some_and(|ticket| medium.reached(ticket)));
            if let Some(wish) = granted {
                self.header.count += 1;
                self.header.head = wish.head;
                self.header.durable = self.durable;
                self.store_header(medium);
                self.pending = Some(Pending { head: wish.head, ticket: None });
                self.wish = self.next_wish.take().map(|head| Pending { head, ticket: None });
            }
        }
        let begun = self.begin(medium);
        let ticket = medium.seal();
        if begun {
            self.ready = Some(ticket);
        }
        self.settled.get_or_insert(ticket);
        for waiting in [&mut self.pending, &mut self.wish].into_iter().flatten() {
            waiting.ticket.get_or_insert(ticket);
        }
        self.note_commit(ticket);
        ticket
    }

    fn note_commit(&mut self, ticket: Ticket) {
        if !self.void.is_empty() {
            // Nothing may prove that a dropped record was promised before the log
            // says, durably, that it was dropped.
            return;
        }
        let last = self.tail.sequence - 1;
        let crowded = self.commits.len() == COMMITS_MAX;
        match self.commits.back_mut() {
            Some((_, same)) if *same == last => {}
            Some(back) if crowded => *back = (ticket, last),
            _ if last > self.durable => self.commits.push_back((ticket, last)),
            _ => {}
        }
    }

    /// Takes note of what is durable by now.
    fn poll(&mut self, medium: &(impl Medium + ?Sized)) {
        while let Some(&(ticket, last)) = self.commits.front()
            && medium.reached(ticket)
        {
            self.durable = self.durable.max(last);
            self.commits.pop_front();
        }
        if let Some(Pending { head, ticket: Some(ticket) }) = self.pending
            && medium.reached(ticket)
        {
            self.floor = head;
            self.pending = None;
            self.void.retain(|&sequence| sequence >= head.sequence);
        }
    }

    /// Gives up everything before `to`, which is a record's position or
    /// [`Wal::tail`]. What replaces it has been appended, or flushed otherwise,
    /// before this call: the next commit makes that durable, one after it
    /// gives up the records, and when that is reached, their room is free. Going
    /// back is not possible, and asked for without effect.
    pub fn truncate(&mut self, to: Position) {
        let to = to.min(self.tail);
        match &mut self.wish {
            Some(Pending { head, ticket: None }) => *head = to.max(*head),
            Some(_) => self.next_wish = self.next_wish.max(Some(to)),
            None if to > self.header.head => {
                self.wish = Some(Pending { head: to, ticket: None });
            }
            None => {}
        }
    }

    /// Whether a truncation is under way, which commits bring forward.
    pub fn is_truncating(&self) -> bool {
        self.wish.is_some() || self.pending.is_some()
    }

    /// Reads the first record at or after `at` and what comes after it. `None`
    /// at the tail. Records that recovery dropped are read as well.
    pub fn read<'a>(
        &self,
        medium: &(impl Medium + ?Sized),
        at: Position,
        scratch: &'a mut Scratch,
    ) -> Option<(Record<'a>, Position)> {
        scratch.0 = Some(Walk::new(self.ring, self.header, at.max(self.header.head), self.tail.at));
        let walk = scratch.0.as_mut()?;
        loop {
            let head = walk.next(medium)?;
            if head.kind != VOID {
                let next = walk.at();
                return Some((scratch.0.as_ref()?.record(&head), next));
            }
        }
    }

    /// The oldest record that is not given up.
    pub fn head(&self) -> Position {
        self.header.head
    }

    /// Where the next record goes.
    pub fn tail(&self) -> Position {
        self.tail
    }

    /// The last sequence number that is known to be durable; 0 for none.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    /// Bytes of the ring.
    pub fn capacity(&self) -> u64 {
        self.ring.len()
    }

    /// Bytes that are free.
    pub fn free(&self) -> u64 {
        self.ring.len() - (self.tail.at - self.floor.at)
    }

    /// Bytes that a record takes.
    pub const fn record_len(pieces: usize, ends: usize, tag: usize) -> u64 {
        format::record_len(pieces, ends, tag) as u64
    }
}

/// Room for a record that is read with [`Wal::read`].
#[derive(Debug, Default)]
pub struct Scratch(Option<Walk>);
