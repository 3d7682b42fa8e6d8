//! The log itself: its tail grows, its head follows, and both wait for what is
//! durable.

use std::collections::VecDeque;

use super::format::{self, HEADER_PAGE, Head, Header, RECORD_MAX, Ring};
use super::scan::{self, Walk};
use super::{
    AppendError, ENDS_MAX, Entry, PIECES_MAX, Place, Position, Record, Recovery, TAG_MAX, VOID,
    WalError,
};
use crate::medium::{Medium, Ticket};

/// Commits that are told apart while none of them is reached.
const COMMITS_MAX: usize = 1024;

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
