//! The log of a server: requests that are recorded before they are answered.
//!
//! A request stays where it has arrived. Its buffers become the log's, and a record
//! of the region's write-ahead log names the pieces that it lies in. A log that
//! copies puts the bytes into buffers of its own instead, one request behind the
//! other, so that there are fewer of them. All that one batch has brought is one
//! epoch; its answers go when that is durable.
//!
//! ```text
//!   arrives      is whole             commit            truncate, durable
//!   ------> draft ------> fresh piece ------> record ------------------> given back
//! ```
//!
//! The newest requests are kept, as many as half of the region's buffers and three
//! quarters of its log hold. The oldest are given up for them, so a server can run
//! for ever.

use std::collections::VecDeque;
use std::time::Duration;

use paste_pmem::wal::{AppendError, Entry, PIECES_MAX, Piece, Place, Position, Wal, WalError};
use paste_pmem::{Claims, Medium, Ticket, checksum};

use super::respond::Status;
use crate::buffer::Buffer;
use crate::channel::Channel;
use crate::error::{PollError, ResumeError};
use crate::event::Event;
use crate::sys;
use crate::transport::Timeout;

/// The kind of a record that names a request.
const REQUEST: u16 = 1;
/// Records that are given up at once, at least; and more than this times as many as
/// one epoch brings.
const GIVEN_UP_MIN: usize = 256;
const GIVEN_UP_TIMES: usize = 8;
/// How long the host may take to give back what is still on its way out, and to
/// make the log's header durable.
const OPEN_TIME: Duration = Duration::from_secs(10);
const OPEN_STEP: Duration = Duration::from_millis(10);

/// How requests are logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Copy requests into buffers of the log's, rather than to keep those that they
    /// have arrived in.
    pub copy: bool,
}

/// What was found in the log when it was taken up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Requests that are there.
    pub requests: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Places where something is missing that was promised.
    pub damages: u64,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The host lets nobody store buffers.
    #[error("the host does not let buffers be stored, so nothing can be logged")]
    Unsupported,
    /// The channel is not open any more.
    #[error("the channel was lost while its log was looked at")]
    Lost,
    /// The channel is gone for good.
    #[error(transparent)]
    Poll(#[from] PollError),
    /// There is a log, and it cannot be read.
    #[error("the region's log cannot be used: {0}")]
    Log(#[from] WalError),
    /// The host does not say which buffers are still ours.
    #[error("the host does not give logged buffers back: {0}")]
    Resume(#[from] ResumeError),
    /// The host keeps buffers that are claimed.
    #[error("the host keeps back {0} claimed buffers: has another channel this region?")]
    KeptBack(usize),
    /// The host does not make the log's header durable.
    #[error("the host did not make the log's header durable in time")]
    NotDurable,
}

/// There is no room until older requests are given up, which takes a commit or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// A request that is arriving.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pieces: Vec<Piece>,
    /// The last piece can go on; the length and checksum of the payload that it
    /// began with, if that came with one.
    open: bool,
    sum: Option<(usize, u16)>,
}

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

/// The log.
#[derive(Debug)]
pub(super) struct Log {
    place: Place,
    claims: Claims,
    wal: Wal,
    copies: bool,
    holdings: Box<[Holding]>,
    /// Claimed buffers; more than the limits are not to be, and never are.
    kept: usize,
    kept_limit: usize,
    kept_max: usize,
    /// Pieces of drafts.
    drafted: usize,
    /// The buffer that requests are copied into, and its end.
    filling: Option<(u32, usize)>,
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
}

impl Log {
    /// Takes up the log of a channel's region, or makes one. Waits for the host.
    pub(super) fn open(
        channel: &mut Channel,
        options: LogOptions,
    ) -> Result<(Log, Found), LogError> {
        if !channel.geometry().is_some_and(|geometry| geometry.stores) {
            return Err(LogError::Unsupported);
        }
        let geometry = *channel.layout().ok_or(LogError::Unsupported)?;
        let claims = Claims::new(&geometry);
        let medium = channel.medium().ok_or(LogError::Lost)?;
        let claimed: Vec<u32> = claims.iter(medium).collect();
        let refused = channel.resume_within(&claimed, OPEN_TIME)?;
        if !refused.is_empty() {
            return Err(LogError::KeptBack(refused.len()));
        }
        let count = geometry.buffer_count() as usize;
        let mut holdings: Box<[Holding]> = (0..count).map(|_| Holding::default()).collect();
        for &buf in &claimed {
            let held = &mut holdings[buf as usize];
            (held.holder, held.claimed) = (Holder::Stored, true);
        }
        let place = Place::from(&geometry);
        let (mut records, mut named) = (VecDeque::new(), VecDeque::new());
        let mut found = Found::default();
        let medium = channel.medium().ok_or(LogError::Lost)?;
        let is_claimed = |buf: u32| holdings.get(buf as usize).is_some_and(|held| held.claimed);
        let recovered = Wal::recover(medium, place, is_claimed, |record| {
            if record.kind() == REQUEST && record.pieces().all(|piece| is_claimed(piece.buf)) {
                found.requests += 1;
                found.bytes += record.pieces().map(|piece| u64::from(piece.len)).sum::<u64>();
                records.push_back((record.position(), record.pieces().len()));
                named.extend(record.pieces().map(|piece| piece.buf));
            }
        });
        let wal = match recovered {
            Ok((wal, recovery)) => {
                found.damages = recovery.loss.count;
                wal
            }
            Err(WalError::Absent) => Wal::create(medium, place, sys::random_u64())?,
            Err(error) => return Err(error.into()),
        };
        for &buf in &named {
            holdings[buf as usize].users += 1;
            // The program that died may have claimed it, and not durably.
            let _ = claims.set(medium, buf);
        }
        let is_unnamed = |buf: &u32| holdings[*buf as usize].users == 0;
        let unnamed: Vec<u32> = claimed.iter().copied().filter(is_unnamed).collect();
        records.reserve(count * 5 / 8);
        named.reserve(count * 5 / 8);
        let mut log = Log {
            place,
            claims,
            wal,
            copies: options.copy,
            holdings,
            kept: claimed.len(),
            kept_limit: count / 2,
            kept_max: count * 5 / 8,
            drafted: 0,
            filling: None,
            records,
            named,
            fresh: Vec::new(),
            fresh_records: 0,
            unsaid: Vec::new(),
            heads: VecDeque::new(),
            unnamed: Vec::new(),
            leaving: VecDeque::new(),
            last: Ticket::default(),
        };
        log.wait_ready(channel)?;
        // Not before: the record that ended them need not have been durable.
        unnamed.iter().for_each(|&buf| log.holdings[buf as usize].unnamed = true);
        log.unnamed = unnamed;
        Ok((log, found))
    }

    /// Waits until the log takes records, its header being durable. No flow is there
    /// yet, so no event matters but one.
    fn wait_ready(&mut self, channel: &mut Channel) -> Result<(), LogError> {
        let deadline = sys::monotonic() + OPEN_TIME;
        let mut last = None;
        loop {
            let medium = channel.medium().ok_or(LogError::Lost)?;
            // It gets there by commits, each after the one before is durable.
            while !self.wal.is_ready(medium) && last.is_none_or(|ticket| medium.reached(ticket)) {
                last = Some(self.wal.commit(medium));
            }
            if self.wal.is_ready(medium) {
                return Ok(());
            }
            if sys::monotonic() > deadline {
                return Err(LogError::NotDurable);
            }
            channel.poll(Timeout::After(OPEN_STEP))?;
            while let Some(event) = channel.next_event() {
                match event {
                    Event::Lost { .. } => return Err(LogError::Lost),
                    Event::Data { data, .. } => channel.give_back(data),
                    _ => {}
                }
            }
        }
    }

    // --- drafts -------------------------------------------------------------

    /// Makes sure that the payload of a buffer can be drafted.
    pub(super) fn prepare(&mut self, channel: &mut Channel, len: usize) -> bool {
        if !self.copies {
            return true;
        }
        let size = self.place.buffer_size as usize;
        if let Some((buf, end)) = self.filling {
            if end + len <= size {
                return true;
            }
            self.filling = None;
            if self.holdings[buf as usize].claimed {
                self.unsaid.push(buf);
            }
            self.unuse(channel, buf);
        }
        let Some(buffer) = channel.take_buffer() else {
            return false;
        };
        let buf = buffer.index();
        let held = &mut self.holdings[buf as usize];
        (held.holder, held.users) = (Holder::Us(buffer), held.users + 1);
        self.filling = Some((buf, 0));
        true
    }

    /// The first `used` bytes of a buffer's payload belong to the draft.
    pub(super) fn draft(
        &mut self,
        channel: &mut Channel,
        draft: &mut Draft,
        buffer: &Buffer,
        used: usize,
    ) -> Result<(), Status> {
        if used == 0 {
            return Ok(());
        }
        let (buf, offset) = match self.filling {
            None => (buffer.index(), buffer.offset()),
            Some((buf, end)) => {
                if let Holder::Us(filling) = &mut self.holdings[buf as usize].holder {
                    channel.copy(buffer, used, filling, end);
                }
                self.filling = Some((buf, end + used));
                (buf, end)
            }
        };
        if draft.open
            && let Some(last) = draft.pieces.last_mut()
            && last.buf == buf
            && usize::from(last.offset) + usize::from(last.len) == offset
        {
            last.len += used as u16;
            return Ok(());
        }
        self.close(channel, draft, buffer);
        if draft.pieces.len() >= PIECES_MAX.min(self.kept_max / 4) {
            return Err(Status::ContentTooLarge);
        }
        if self.drafted >= self.holdings.len() / 8 {
            return Err(Status::Unavailable);
        }
        draft.pieces.push(Piece { buf, offset: offset as u16, len: used as u16, csum: 0 });
        draft.open = true;
        draft.sum = buffer.csum().map(|csum| (buffer.len(), csum));
        self.drafted += 1;
        self.holdings[buf as usize].users += 1;
        Ok(())
    }

    /// Ends the last piece of a draft. If it lies in a buffer that is not the log's
    /// yet, that is `buffer`.
    pub(super) fn close(&self, channel: &Channel, draft: &mut Draft, buffer: &Buffer) {
        let Some(last) = draft.pieces.last_mut().filter(|_| draft.open) else {
            return;
        };
        draft.open = false;
        let (start, len) = (usize::from(last.offset), usize::from(last.len));
        last.csum = match draft.sum.take() {
            Some((whole, csum)) if whole == len => csum,
            _ => checksum::of(match &self.holdings[last.buf as usize].holder {
                Holder::Us(held) => channel.range_bytes(held, start..start + len),
                Holder::Stored => channel.stored_bytes(last.buf, start..start + len),
                Holder::Other => channel.range_bytes(buffer, start..start + len),
            }),
        };
    }

    /// Whether a piece names the buffer, which is then to be kept.
    pub(super) fn uses(&self, buffer: &Buffer) -> bool {
        self.holdings.get(buffer.index() as usize).is_some_and(|held| held.users > 0)
    }

    /// Takes a buffer that a piece names.
    pub(super) fn keep(&mut self, buffer: Buffer) {
        let buf = buffer.index();
        let held = &mut self.holdings[buf as usize];
        held.holder = Holder::Us(buffer);
        if held.claimed {
            self.unsaid.push(buf);
        }
    }

    /// Gives up a draft: what was drafted is not to be recorded.
    pub(super) fn forget(&mut self, channel: &mut Channel, draft: &mut Draft) {
        self.drafted -= draft.pieces.len();
        draft.open = false;
        for piece in draft.pieces.drain(..) {
            self.unuse(channel, piece.buf);
        }
    }

    /// Records a draft as a request that came at `time`. It is durable with the next
    /// commit.
    pub(super) fn record(
        &mut self,
        channel: &mut Channel,
        draft: &mut Draft,
        time: u64,
    ) -> Result<(), Full> {
        let medium = channel.medium().ok_or(Full)?;
        if self.kept + self.fresh.len() + draft.pieces.len() > self.kept_max {
            return Err(Full);
        }
        let entry = Entry { kind: REQUEST, time, pieces: &draft.pieces, ends: &[], tag: &[] };
        // Its payload is flushed by the commit: records are then flushed as one.
        match self.wal.rewrite(medium, &entry) {
            Ok(position) => {
                self.records.push_back((position, draft.pieces.len()));
                self.named.extend(draft.pieces.iter().map(|piece| piece.buf));
                self.fresh_records += 1;
                self.drafted -= draft.pieces.len();
                self.fresh.append(&mut draft.pieces);
                Ok(())
            }
            Err(AppendError::Full { .. } | AppendError::NotReady) => Err(Full),
            // More pieces than the whole log holds: nothing that a draft lets through.
            Err(AppendError::TooLong { .. } | AppendError::Kind | AppendError::Piece(_)) => {
                debug_assert!(false, "a draft that no record can hold");
                Err(Full)
            }
        }
    }

    // --- epochs -------------------------------------------------------------

    /// Whether something was recorded that no commit covers yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.fresh_records > 0
    }

    /// Whether a commit would bring nearer that room is made.
    pub(super) fn is_unfinished(&self, channel: &Channel) -> bool {
        let under_way = !channel.is_durable(self.last);
        let waits = self.wal.is_truncating()
            || self.is_crowded()
            || !(self.unnamed.is_empty() && self.leaving.is_empty() && self.heads.is_empty());
        waits && !under_way
    }

    fn is_crowded(&self) -> bool {
        self.records.len() > 1
            && (self.kept > self.kept_limit || self.wal.free() < self.wal.capacity() / 4)
    }

    /// Ends the epoch: what was recorded is durable before what is sent durably from
    /// now on.
    pub(super) fn commit(&mut self, channel: &mut Channel) {
        self.settle(channel);
        let Some(medium) = channel.medium() else { return };
        for piece in self.fresh.drain(..) {
            let held = &mut self.holdings[piece.buf as usize];
            if !held.claimed {
                held.claimed = true;
                self.kept += 1;
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
            // Used again meanwhile, if another request lies in it.
            if held.users == 0 {
                held.claimed = false;
                let _ = self.claims.clear(medium, buf);
            }
            held.users == 0
        });
        self.kept -= self.unnamed.len();
        if self.is_crowded() && !self.wal.is_truncating() {
            let wanted = GIVEN_UP_MIN.max(GIVEN_UP_TIMES * self.fresh_records);
            if let Some((position, _)) = self.records.get(wanted.min(self.records.len() / 2)) {
                self.wal.truncate(*position);
            }
        }
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
    }

    /// Takes note of what is durable by now: gives back what nothing names.
    fn settle(&mut self, channel: &mut Channel) {
        let mut first = 0;
        while let Some((_, head)) = self.heads.pop_front_if(|(t, _)| channel.is_durable(*t)) {
            first = head;
        }
        while let Some((_, pieces)) =
            self.records.pop_front_if(|(position, _)| position.sequence < first)
        {
            for _ in 0..pieces {
                if let Some(buf) = self.named.pop_front() {
                    self.unuse(channel, buf);
                }
            }
        }
        while let Some((_, buf)) = self.leaving.pop_front_if(|(t, _)| channel.is_durable(*t)) {
            let held = &self.holdings[buf as usize];
            if held.users == 0 && !held.claimed {
                self.give_back(channel, buf);
            }
        }
    }

    /// One piece less names the buffer.
    fn unuse(&mut self, channel: &mut Channel, buf: u32) {
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
            // A flow has not read it to its end, and gives it back then.
            Holder::Other => {}
        }
    }

    /// Tells the host of buffers that are kept for long, as far as there is room.
    fn say_stored(&mut self, channel: &mut Channel) {
        while let Some(buf) = self.unsaid.pop() {
            let held = &mut self.holdings[buf as usize];
            if !held.claimed || self.filling.is_some_and(|(filling, _)| filling == buf) {
                continue;
            }
            match std::mem::take(&mut held.holder) {
                Holder::Us(buffer) => match channel.store(buffer) {
                    Ok(_) => held.holder = Holder::Stored,
                    Err(refused) => {
                        held.holder = Holder::Us(refused.buffer);
                        self.unsaid.push(buf);
                        return;
                    }
                },
                other => held.holder = other,
            }
        }
    }
}
