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

use paste_pmem::checksum;
use paste_pmem::wal::{AppendError, Entry, PIECES_MAX, Piece};

use super::respond::Status;
use crate::buffer::Buffer;
use crate::channel::Channel;
use crate::log::{self as records, LogError, RecordError};

/// The kind of a record that names a request.
const REQUEST: u16 = 1;
/// Records that are given up at once, at least; and more than this times as many as
/// one epoch brings.
const GIVEN_UP_MIN: usize = 256;
const GIVEN_UP_TIMES: usize = 8;

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

/// The log.
#[derive(Debug)]
pub(super) struct Log {
    /// The records, and the buffers that they name.
    records: records::Log,
    copies: bool,
    /// Claimed buffers; more than the limits are not to be, and never are.
    kept_limit: usize,
    kept_max: usize,
    /// Pieces of drafts.
    drafted: usize,
    /// The buffer that requests are copied into, and its end.
    filling: Option<(u32, usize)>,
}

impl Log {
    /// Takes up the log of a channel's region, or makes one. Waits for the host.
    pub(super) fn open(
        channel: &mut Channel,
        options: LogOptions,
    ) -> Result<(Log, Found), LogError> {
        let mut found = Found::default();
        let opened = records::Log::open(channel, |record| {
            if record.kind() == REQUEST && record.damaged().is_empty() {
                found.requests += 1;
                found.bytes += record.pieces().map(|piece| u64::from(piece.len)).sum::<u64>();
            }
        })?;
        found.damages = opened.recovery.map_or(0, |recovery| recovery.loss.count);
        let count = opened.log.buffer_count();
        let log = Log {
            records: opened.log,
            copies: options.copy,
            kept_limit: count / 2,
            kept_max: count * 5 / 8,
            drafted: 0,
            filling: None,
        };
        Ok((log, found))
    }

    // --- drafts -------------------------------------------------------------

    /// Makes sure that the payload of a buffer can be drafted.
    pub(super) fn prepare(&mut self, channel: &mut Channel, len: usize) -> bool {
        if !self.copies {
            return true;
        }
        let size = self.records.place().buffer_size as usize;
        if let Some((_, end)) = self.filling {
            if end + len <= size {
                return true;
            }
            self.filling = None;
            self.records.filled(channel);
        }
        let Some(buffer) = channel.take_buffer() else {
            return false;
        };
        self.filling = Some((buffer.index(), 0));
        self.records.fill(buffer);
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
                if let Some(filling) = self.records.filling() {
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
        if self.drafted >= self.records.buffer_count() / 8 {
            return Err(Status::Unavailable);
        }
        draft.pieces.push(Piece { buf, offset: offset as u16, len: used as u16, csum: 0 });
        draft.open = true;
        draft.sum = buffer.csum().map(|csum| (buffer.len(), csum));
        self.drafted += 1;
        self.records.draft(buf);
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
            _ => {
                let range = start..start + len;
                let ours = self.records.bytes(channel, last.buf, range.clone());
                checksum::of(ours.unwrap_or_else(|| channel.range_bytes(buffer, range)))
            }
        };
    }

    /// Whether a piece names the buffer, which is then to be kept.
    pub(super) fn uses(&self, buffer: &Buffer) -> bool {
        self.records.is_named(buffer.index())
    }

    /// Takes a buffer that a piece names.
    pub(super) fn keep(&mut self, buffer: Buffer) {
        self.records.keep(buffer);
    }

    /// Gives up a draft: what was drafted is not to be recorded.
    pub(super) fn forget(&mut self, channel: &mut Channel, draft: &mut Draft) {
        self.drafted -= draft.pieces.len();
        draft.open = false;
        for piece in draft.pieces.drain(..) {
            self.records.undraft(channel, piece.buf);
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
        let kept = self.records.claimed() + self.records.fresh_pieces();
        if kept + draft.pieces.len() > self.kept_max {
            return Err(Full);
        }
        let entry = Entry { kind: REQUEST, time, pieces: &draft.pieces, ends: &[], tag: &[] };
        match self.records.record(channel, &entry) {
            Ok(_) => {
                self.drafted -= draft.pieces.len();
                draft.pieces.clear();
                Ok(())
            }
            Err(RecordError::Append(AppendError::Full { .. } | AppendError::NotReady))
            | Err(RecordError::Lost) => Err(Full),
            // More pieces than the whole log holds: nothing that a draft lets through.
            Err(RecordError::Append(_) | RecordError::Foreign(_)) => {
                debug_assert!(false, "a draft that no record can hold");
                Err(Full)
            }
        }
    }

    // --- epochs -------------------------------------------------------------

    /// Whether something was recorded that no commit covers yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.records.is_fresh()
    }

    /// Whether a commit would bring nearer that room is made.
    pub(super) fn is_unfinished(&self, channel: &Channel) -> bool {
        let crowded = is_crowded(&self.records, self.kept_limit);
        self.records.is_unfinished(channel) || (crowded && self.records.is_settled(channel))
    }

    /// Ends the epoch: what was recorded is durable before what is sent durably from
    /// now on.
    pub(super) fn commit(&mut self, channel: &mut Channel) {
        let wanted = GIVEN_UP_MIN.max(GIVEN_UP_TIMES * self.records.fresh_records());
        let limit = self.kept_limit;
        // A channel that was lost takes the log with it.
        let _ = self.records.commit_within(channel, |records| is_crowded(records, limit), wanted);
    }
}

/// Whether the oldest records are to be given up.
fn is_crowded(records: &records::Log, kept_limit: usize) -> bool {
    let wal = records.wal();
    records.records() > 1 && (records.claimed() > kept_limit || wal.free() < wal.capacity() / 4)
}
