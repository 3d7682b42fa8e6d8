//! A write-ahead log whose records name buffers where they lie, with the account of
//! those buffers.
//!
//! Joins what `paste-pmem` has for it, claims and records, with what a channel has,
//! stored buffers, and keeps the rules that they need of each other: a buffer is
//! claimed in the epoch of its first record; it is unclaimed when the records that
//! name it are given up for good, and given back when that is durable. Nothing here
//! waits but [`Log::open`]; the rest goes on by commits.
//!
//! ```text
//!             append           commit             give up, durable      durable
//!   buffer ----------> named ---------> claimed -----------------> unclaimed ----> pool
//! ```
//!
//! It knows nothing of requests: what a record means is the application's.

#[cfg(feature = "http")]
mod draft;
mod open;

use std::collections::VecDeque;
use std::ops::Range;

use paste_pmem::wal::{AppendError, Entry, Piece, Place, Position, Wal};
use paste_pmem::{Claims, Medium, Ticket};

use crate::buffer::Buffer;
use crate::channel::Channel;
use crate::error::Busy;
use crate::medium::RegionMedium;

pub use open::{LogError, Opened};

/// Why nothing was recorded. The log and the buffers are as they were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// See [`AppendError`].
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The channel was lost, and the log with it.
    #[error("the log was lost with the channel: open it again")]
    Lost,
    /// A piece lies in a buffer that is neither stored nor given with the record.
    #[error("buffer {0} is neither stored nor given with the record")]
    Foreign(u32),
}

/// The log was lost with its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log was lost with the channel: open it again")]
pub struct Lost;

/// Who has a buffer that the log has to do with.
#[derive(Debug, Default)]
enum Holder {
    /// Somebody else.
    #[default]
    Other,
    /// We, and the host counts it against the window that it came through.
    Us(Buffer),
    /// We, as durable data.
    Stored,
}

#[derive(Debug, Default)]
struct Holding {
    holder: Holder,
    /// Pieces that name it, and one more while it is being filled.
    users: u32,
    claimed: bool,
    /// It is in the list of those that nothing names.
    unnamed: bool,
}

/// How much a log has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Records that are not given up for good.
    pub records: u64,
    /// Buffers that are the log's: named, or not given back yet.
    pub buffers: u32,
    /// Bytes of the log's ring.
    pub bytes: u64,
    /// Those of them that are free.
    pub bytes_free: u64,
}

/// The log of a channel's region, as of one opening of the channel. After
/// [`crate::Event::Lost`] it is good for nothing but to be dropped: what it records is in
/// the region, for the next [`Log::open`].
#[derive(Debug)]
pub struct Log {
    /// Which opening of which channel it is of.
    opening: u32,
    place: Place,
    claims: Claims,
    wal: Wal,
    holdings: Box<[Holding]>,
    /// Buffers that are held.
    held: u32,
    /// Claimed buffers.
    claimed: usize,
    /// The buffer that is being written to, and is not stored before it is filled.
    filling: Option<u32>,
    /// Records that are not given up, and how many pieces each has.
    records: VecDeque<(Position, usize)>,
    /// The buffers of these pieces.
    named: VecDeque<u32>,
    /// Pieces of the present epoch's records.
    fresh: Vec<Piece>,
    fresh_records: usize,
    /// Claimed buffers that the host is still to be told of.
    unsaid: Vec<u32>,
    /// What the log's head became, with the epochs that made it so.
    heads: VecDeque<(Ticket, u64)>,
    /// Buffers that nothing names: to be unclaimed, and to be given back when that
    /// is durable.
    unnamed: Vec<u32>,
    leaving: VecDeque<(Ticket, u32)>,
    last: Ticket,
    /// Room for the buffers that are given with a record.
    marks: Vec<u32>,
}

impl Log {
    /// Where the log lies, and its buffers.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The write-ahead log, to look at.
    pub fn wal(&self) -> &Wal {
        &self.wal
    }

    /// How much there is.
    pub fn usage(&self) -> Usage {
        Usage {
            records: self.records.len() as u64,
            buffers: self.held,
            bytes: self.wal.capacity(),
            bytes_free: self.wal.free(),
        }
    }

    /// Whether it is the log of the channel's present opening.
    pub fn is_of(&self, channel: &Channel) -> bool {
        channel.opening() == Some(self.opening)
    }

    /// The region, unless it need not be the log's any more.
    fn medium<'c>(&self, channel: &'c mut Channel) -> Option<&'c mut RegionMedium> {
        if self.is_of(channel) { channel.medium() } else { None }
    }

    // --- buffers ------------------------------------------------------------

    /// Whether the buffer is the log's.
    pub fn holds(&self, buf: u32) -> bool {
        self.holding(buf).is_some_and(|held| !matches!(held.holder, Holder::Other))
    }

    fn holding(&self, buf: u32) -> Option<&Holding> {
        self.holdings.get(buf as usize)
    }

    /// Bytes of a buffer of the log's, in bytes from its start. `None` if it is not
    /// the log's.
    pub fn bytes<'c>(
        &'c self,
        channel: &'c Channel,
        buf: u32,
        range: Range<usize>,
    ) -> Option<&'c [u8]> {
        match &self.holding(buf)?.holder {
            Holder::Us(held) => Some(channel.range_bytes(held, range)),
            Holder::Stored => Some(channel.stored_bytes(buf, range)),
            Holder::Other => None,
        }
    }

    /// Tells the host that a buffer of the log's is stored, where it does not know yet:
    /// only then can it be sent with [`Channel::send_stored`].
    pub fn say(&mut self, channel: &mut Channel, buf: u32) -> Result<(), Busy> {
        let Some(held) = self.holdings.get_mut(buf as usize) else { return Ok(()) };
        match std::mem::take(&mut held.holder) {
            Holder::Us(buffer) => match channel.store(buffer) {
                Ok(_) => held.holder = Holder::Stored,
                Err(refused) => {
                    held.holder = Holder::Us(refused.buffer);
                    return Err(Busy);
                }
            },
            other => held.holder = other,
        }
        Ok(())
    }

    /// Takes a buffer.
    fn take(&mut self, buffer: Buffer) {
        let Some(held) = self.holdings.get_mut(buffer.index() as usize) else { return };
        held.holder = Holder::Us(buffer);
        self.held += 1;
    }

    /// One piece more names the buffer.
    fn name(&mut self, buf: u32) {
        self.holdings[buf as usize].users += 1;
    }

    /// One piece less names it.
    fn unname(&mut self, channel: &mut Channel, buf: u32) {
        let held = &mut self.holdings[buf as usize];
        held.users -= 1;
        if held.users > 0 {
            return;
        }
        match (held.claimed, held.unnamed) {
            (false, _) => self.give_back(channel, buf),
            (true, false) => {
                held.unnamed = true;
                self.unnamed.push(buf);
            }
            (true, true) => {}
        }
    }

    fn give_back(&mut self, channel: &mut Channel, buf: u32) {
        match std::mem::take(&mut self.holdings[buf as usize].holder) {
            Holder::Us(buffer) => channel.give_back(buffer),
            Holder::Stored => drop(channel.release(buf)),
            // Who reads it gives it back.
            Holder::Other => return,
        }
        self.held -= 1;
    }

    // --- records ------------------------------------------------------------

    /// Records `entry`, whose pieces lie in buffers that are the log's, that the
    /// application has stored, or that are given with it. All of them are the log's
    /// then, until the record is given up. It is durable when the ticket of the next
    /// [`Log::commit`] is reached. On a failure `given` is as it was.
    pub fn append(
        &mut self,
        channel: &mut Channel,
        entry: &Entry<'_>,
        given: &mut Vec<Buffer>,
    ) -> Result<Position, RecordError> {
        if !self.is_of(channel) {
            return Err(RecordError::Lost);
        }
        for buffer in given.iter() {
            // Names of this opening are of buffers that there are.
            if channel.opening() != Some(buffer.epoch) {
                return Err(RecordError::Foreign(buffer.index()));
            }
        }
        let mut marks = std::mem::take(&mut self.marks);
        marks.clear();
        marks.extend(given.iter().map(Buffer::index));
        given.drain(..).for_each(|buffer| self.take(buffer));
        let known = |buf: u32, channel: &mut Channel| self.holds(buf) || channel.is_stored(buf);
        let foreign = entry.pieces.iter().find(|piece| !known(piece.buf, channel));
        let recorded = match foreign {
            Some(piece) => Err(RecordError::Foreign(piece.buf)),
            None => self.write(channel, entry),
        };
        let position = match recorded {
            Ok(position) => position,
            Err(error) => {
                given.extend(marks.iter().filter_map(|&buf| self.untake(buf)));
                self.marks = marks;
                return Err(error);
            }
        };
        for piece in entry.pieces {
            self.name(piece.buf);
            let held = &mut self.holdings[piece.buf as usize];
            if matches!(held.holder, Holder::Other) {
                held.holder = Holder::Stored;
                self.held += 1;
            }
        }
        for &buf in &marks {
            if self.holdings[buf as usize].users == 0 {
                self.give_back(channel, buf);
            }
        }
        self.marks = marks;
        Ok(position)
    }

    fn untake(&mut self, buf: u32) -> Option<Buffer> {
        let held = self.holdings.get_mut(buf as usize)?;
        match std::mem::take(&mut held.holder) {
            Holder::Us(buffer) => {
                self.held -= 1;
                Some(buffer)
            }
            other => {
                held.holder = other;
                None
            }
        }
    }

    /// Writes a record. Its pieces are named already, or are when it is written.
    fn write(&mut self, channel: &mut Channel, entry: &Entry<'_>) -> Result<Position, RecordError> {
        let medium = self.medium(channel).ok_or(RecordError::Lost)?;
        // Its payload is flushed by the commit: records are then flushed as one.
        let position = self.wal.rewrite(medium, entry)?;
        self.records.push_back((position, entry.pieces.len()));
        self.named.extend(entry.pieces.iter().map(|piece| piece.buf));
        self.fresh_records += 1;
        self.fresh.extend_from_slice(entry.pieces);
        Ok(position)
    }

    /// Gives up the record with this number and all before it. What replaces them was
    /// recorded before. It takes a few commits.
    pub fn give_up(&mut self, until: u64) {
        let at = self.records.partition_point(|(position, _)| position.sequence <= until);
        let to = self.records.get(at).map_or(self.wal.tail(), |(position, _)| *position);
        self.wal.truncate(to);
    }

    // --- epochs -------------------------------------------------------------

    /// Whether something was recorded that no commit covers yet.
    pub fn is_fresh(&self) -> bool {
        self.fresh_records > 0
    }

    /// Whether a commit would bring nearer that what was given up is free.
    pub fn is_unfinished(&self, channel: &Channel) -> bool {
        let waits = self.wal.is_truncating()
            || !(self.unnamed.is_empty() && self.leaving.is_empty() && self.heads.is_empty());
        waits && self.is_settled(channel)
    }

    /// Whether the last commit is durable.
    pub fn is_settled(&self, channel: &Channel) -> bool {
        channel.is_durable(self.last)
    }

    /// Ends the epoch: what was recorded is durable when the ticket is reached, and
    /// before what is sent durably from now on.
    pub fn commit(&mut self, channel: &mut Channel) -> Result<Ticket, Lost> {
        self.stage(channel)?;
        self.seal(channel)
    }

    /// The first half of a commit: what belongs to its epoch, but the log's own part.
    fn stage(&mut self, channel: &mut Channel) -> Result<(), Lost> {
        self.settle(channel)?;
        let medium = self.medium(channel).ok_or(Lost)?;
        for piece in self.fresh.drain(..) {
            let held = &mut self.holdings[piece.buf as usize];
            if !held.claimed {
                held.claimed = true;
                self.claimed += 1;
                let _ = self.claims.set(medium, piece.buf);
                if matches!(held.holder, Holder::Us(_)) {
                    self.unsaid.push(piece.buf);
                }
            }
            if let Some(at) = self.place.locate(&piece) {
                medium.flush(at, piece.len.into());
            }
        }
        self.unnamed.retain(|&buf| {
            let held = &mut self.holdings[buf as usize];
            held.unnamed = false;
            // Used again meanwhile, if another record names it.
            if held.users == 0 {
                held.claimed = false;
                let _ = self.claims.clear(medium, buf);
            }
            held.users == 0
        });
        self.claimed -= self.unnamed.len();
        Ok(())
    }

    /// The second half.
    fn seal(&mut self, channel: &mut Channel) -> Result<Ticket, Lost> {
        let medium = self.medium(channel).ok_or(Lost)?;
        self.fresh_records = 0;
        let before = self.wal.head();
        let ticket = self.wal.commit(medium);
        let after = self.wal.head();
        if after != before {
            self.heads.push_back((ticket, after.sequence));
        }
        self.leaving.extend(self.unnamed.drain(..).map(|buf| (ticket, buf)));
        self.last = ticket;
        self.say_stored(channel);
        Ok(ticket)
    }

    /// Takes note of what is durable by now: gives back what nothing names.
    fn settle(&mut self, channel: &mut Channel) -> Result<(), Lost> {
        if !self.is_of(channel) {
            return Err(Lost);
        }
        let mut first = 0;
        while let Some((_, head)) = self.heads.pop_front_if(|(t, _)| channel.is_durable(*t)) {
            first = head;
        }
        while let Some((_, pieces)) =
            self.records.pop_front_if(|(position, _)| position.sequence < first)
        {
            for _ in 0..pieces {
                if let Some(buf) = self.named.pop_front() {
                    self.unname(channel, buf);
                }
            }
        }
        while let Some((_, buf)) = self.leaving.pop_front_if(|(t, _)| channel.is_durable(*t)) {
            let held = &self.holdings[buf as usize];
            if held.users == 0 && !held.claimed {
                self.give_back(channel, buf);
            }
        }
        Ok(())
    }

    /// Tells the host of buffers that are kept for long, as far as there is room.
    fn say_stored(&mut self, channel: &mut Channel) {
        while let Some(buf) = self.unsaid.pop() {
            if !self.holdings[buf as usize].claimed || self.filling == Some(buf) {
                continue;
            }
            if self.say(channel, buf).is_err() {
                self.unsaid.push(buf);
                return;
            }
        }
    }
}
