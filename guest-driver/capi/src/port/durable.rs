//! Durable data of a port: epochs, stored buffers, and the log.
//!
//! The log is of one opening of the channel. When that is lost, the log is closed, and the
//! application opens it again: what it found is then what is there.

use std::collections::VecDeque;

use paste_abi::Flow;
use paste_guest::Buffer;
use paste_guest::log::{Log, Lost, Opened};
use paste_pmem::wal::{Damage, Entry, Piece, Record, Recovery};
use paste_pmem::{Medium, Ticket};

use super::{Held, Port, options, outside, place, stale};
use crate::error::{Failure, PASTE_EBUSY, PASTE_EINVAL, PASTE_ELOST, PASTE_ENOTSTORED};
use crate::types::{self, paste_buf, paste_found, paste_log_usage};

/// What a port has of durable data.
#[derive(Debug, Default)]
pub(super) struct Durable {
    log: State,
    /// Tickets that the application was given and that are not answered yet.
    asked: VecDeque<u64>,
    /// Room for a record that is being appended: its pieces, and the buffers that come
    /// with it, each with the slot that it lies in.
    pieces: Vec<Piece>,
    given: Vec<Buffer>,
    slots: Vec<Option<u32>>,
}

#[derive(Debug, Default)]
enum State {
    /// It was not opened.
    #[default]
    None,
    Open(Box<Log>),
    /// It was open, and the channel was lost.
    Lost,
}

/// A record that is to be appended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Appended<'a> {
    pub(crate) kind: u16,
    pub(crate) time_ns: u64,
    pub(crate) tag: &'a [u8],
    pub(crate) pieces: &'a [paste_buf],
}

/// A record that was found.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) id: u64,
    pub(crate) time_ns: u64,
    pub(crate) kind: u16,
    pub(crate) tag: Vec<u8>,
    pub(crate) pieces: Vec<paste_buf>,
    pub(crate) damaged: u32,
}

impl Durable {
    /// The channel was lost.
    pub(super) fn lose(&mut self) {
        if let State::Open(_) = self.log {
            self.log = State::Lost;
        }
        self.asked.clear();
    }

    /// The host has answered an epoch: the last of the application's tickets that it
    /// answers, if there is one.
    pub(super) fn answered(&mut self, ticket: Ticket) -> Option<u64> {
        let mut last = None;
        while let Some(asked) = self.asked.pop_front_if(|asked| *asked <= ticket.0) {
            last = Some(asked);
        }
        last
    }

    fn log(&self) -> Option<&Log> {
        match &self.log {
            State::Open(log) => Some(log),
            State::None | State::Lost => None,
        }
    }

    fn open_log(&mut self) -> Result<&mut Log, Failure> {
        match &mut self.log {
            State::Open(log) => Ok(log),
            State::Lost => Err(Lost.into()),
            State::None => Err(Failure::new(PASTE_EINVAL, "no log is open: see paste_log_open")),
        }
    }

    fn holds(&self, index: u32) -> bool {
        self.log().is_some_and(|log| log.holds(index))
    }
}

fn not_open() -> Failure {
    Failure::new(PASTE_ELOST, "the channel is not open: wait for PASTE_OPENED")
}

fn not_stored(index: u32) -> Failure {
    Failure::new(PASTE_ENOTSTORED, format!("buffer {index} is not stored"))
}

impl Port {
    /// Whether the channel is still as the application knows it.
    fn is_current(&self) -> bool {
        self.opening.is_some() && self.channel.opening() == self.opening
    }

    fn is_stored(&mut self, index: u32) -> bool {
        self.is_current() && (self.durable.holds(index) || self.channel.is_stored(index))
    }

    /// The range of a buffer that is the application's or stored. Its checksum is still to
    /// be found.
    fn piece(&mut self, buf: &paste_buf) -> Result<Piece, Failure> {
        let held = match self.find(buf) {
            Ok(held) => held.is_some(),
            Err(_) => false,
        };
        let named = !buf.p.is_null() && buf.epoch == self.epoch && self.is_current();
        if !named || !(held || self.is_stored(buf.index)) {
            return Err(stale(buf));
        }
        if buf.len == 0 {
            return Err(Failure::new(PASTE_EINVAL, format!("a range of {} is empty", buf.index)));
        }
        let size = self.channel.geometry().map_or(0, |geometry| geometry.buffer_size);
        let inside = buf.off.checked_add(buf.len).is_some_and(|end| end <= size);
        match (u16::try_from(buf.off), u16::try_from(buf.len)) {
            (Ok(offset), Ok(len)) if inside => Ok(Piece { buf: buf.index, offset, len, csum: 0 }),
            _ => Err(outside(buf, size as usize)),
        }
    }

    // --- epochs -------------------------------------------------------------

    /// Asks for ranges to be made durable, with what was appended, and ends the epoch.
    pub(crate) fn flush(&mut self, ranges: &[paste_buf]) -> Result<u64, Failure> {
        for range in ranges {
            self.piece(range)?;
        }
        if !self.is_current() {
            return Err(not_open());
        }
        let geometry = *self.channel.geometry().ok_or_else(not_open)?;
        let medium = self.channel.medium().ok_or_else(not_open)?;
        for range in ranges {
            medium.flush(place(&geometry, range.index) + u64::from(range.off), range.len.into());
        }
        let ticket = match &mut self.durable.log {
            State::Open(log) if log.is_fresh() => log.commit(&mut self.channel)?,
            _ => medium.seal(),
        };
        Ok(self.asked(ticket))
    }

    /// Notes a ticket that the application is given.
    fn asked(&mut self, ticket: Ticket) -> u64 {
        if !self.channel.is_durable(ticket) {
            self.durable.asked.push_back(ticket.0);
        }
        ticket.0
    }

    pub(crate) fn is_durable(&self, ticket: u64) -> bool {
        self.channel.is_durable(Ticket(ticket))
    }

    // --- stored buffers -----------------------------------------------------

    /// Stores a buffer, and returns its index.
    pub(crate) fn store(&mut self, buf: &paste_buf) -> Result<u32, Failure> {
        let Some(Held { buffer, slot }) = self.find(buf)?.take() else { return Err(stale(buf)) };
        self.channel.store(buffer).map_err(|refused| {
            self.held[buf.index as usize] = Some(Held { buffer: refused.buffer, slot });
            Failure::from(refused.cause)
        })
    }

    /// A stored buffer, to look at.
    pub(crate) fn stored(&mut self, index: u32) -> Result<paste_buf, Failure> {
        if !self.is_stored(index) {
            return Err(not_stored(index));
        }
        let size = self.channel.geometry().map_or(0, |geometry| geometry.buffer_size);
        Ok(paste_buf { off: 0, len: size, ..self.shown(index) })
    }

    /// A buffer by its index, with no range.
    fn shown(&self, index: u32) -> paste_buf {
        let (Some(mapping), Some(geometry)) = (&self.mapping, self.channel.geometry()) else {
            return paste_buf::NONE;
        };
        paste_buf {
            p: mapping.as_ptr().wrapping_add(place(geometry, index) as usize),
            off: 0,
            len: 0,
            size: geometry.buffer_size,
            index,
            epoch: self.epoch,
        }
    }

    /// Sends a range of a stored buffer.
    pub(crate) fn send_stored(
        &mut self,
        flow: Flow,
        index: u32,
        (off, len): (u32, u32),
        cookie: u64,
        flags: u32,
    ) -> Result<(), Failure> {
        let known = types::PASTE_SEND_NOTIFY | types::PASTE_SEND_DURABLE;
        let options = options(cookie, flags, known)?;
        if !self.is_stored(index) {
            return Err(not_stored(index));
        }
        let size = self.channel.geometry().map_or(0, |geometry| geometry.buffer_size);
        if off.checked_add(len).is_none_or(|end| end > size) {
            return Err(outside(&paste_buf { off, len, ..paste_buf::NONE }, size as usize));
        }
        if options.durable {
            self.commit_appended()?;
        }
        if let State::Open(log) = &mut self.durable.log {
            log.say(&mut self.channel, index)?;
        }
        let range = off as usize..off as usize + len as usize;
        Ok(self.channel.send_stored(flow, index, range, options)?)
    }

    /// Gives a stored buffer back.
    pub(crate) fn unstore(&mut self, index: u32) -> Result<(), Failure> {
        if self.is_current() && self.durable.holds(index) {
            let message = format!("buffer {index} is the log's until its records are given up");
            return Err(Failure::new(PASTE_EBUSY, message));
        }
        if self.is_stored(index) && self.channel.release(index) {
            Ok(())
        } else {
            Err(not_stored(index))
        }
    }

    // --- the log ------------------------------------------------------------

    /// Takes up the log, or makes one: what was found.
    pub(crate) fn open_log(&mut self) -> Result<(paste_found, Vec<Found>), Failure> {
        if self.durable.log().is_some() {
            return Err(Failure::new(PASTE_EINVAL, "the log is open already"));
        }
        if !self.is_current() {
            return Err(not_open());
        }
        let mut records = Vec::new();
        let Opened { log, recovery } =
            Log::open(&mut self.channel, |record| records.push(found(record)))?;
        for piece in records.iter_mut().flat_map(|record: &mut Found| &mut record.pieces) {
            // What is damaged has no bytes to show.
            let shown = if piece.size == 0 { paste_buf::NONE } else { self.shown(piece.index) };
            *piece = paste_buf { off: piece.off, len: piece.len, index: piece.index, ..shown };
        }
        self.durable.log = State::Open(Box::new(log));
        Ok((report(records.len(), recovery), records))
    }

    /// Records what lies in buffers, which are the log's then.
    pub(crate) fn append(&mut self, record: &Appended<'_>) -> Result<u64, Failure> {
        self.durable.open_log()?;
        let mut pieces = std::mem::take(&mut self.durable.pieces);
        pieces.clear();
        let named = self.name_pieces(record.pieces, &mut pieces);
        let recorded = named.and_then(|()| self.record(record, &pieces));
        self.durable.pieces = pieces;
        recorded
    }

    fn name_pieces(&mut self, bufs: &[paste_buf], pieces: &mut Vec<Piece>) -> Result<(), Failure> {
        for buf in bufs {
            let mut piece = self.piece(buf)?;
            let place = *self.durable.open_log()?.place();
            let medium = self.channel.medium().ok_or_else(not_open)?;
            // Not the sum that it has arrived with: C may have written to it since.
            piece.csum = place.sum(medium, &piece).ok_or_else(|| stale(buf))?;
            pieces.push(piece);
        }
        Ok(())
    }

    fn record(&mut self, record: &Appended<'_>, pieces: &[Piece]) -> Result<u64, Failure> {
        let Durable { log: State::Open(log), given, slots, .. } = &mut self.durable else {
            return Err(Lost.into());
        };
        for piece in pieces {
            if let Some(Held { buffer, slot }) = self.held[piece.buf as usize].take() {
                given.push(buffer);
                slots.push(slot);
            }
        }
        let Appended { kind, time_ns, tag, .. } = *record;
        let entry = Entry { kind, time: time_ns, pieces, ends: &[], tag };
        let recorded = log.append(&mut self.channel, &entry, given);
        // On a failure they are the application's as before.
        for (buffer, slot) in given.drain(..).zip(slots.drain(..)) {
            let index = buffer.index() as usize;
            self.held[index] = Some(Held { buffer, slot });
        }
        Ok(recorded?.sequence)
    }

    /// Commits what was appended: the ticket.
    pub(crate) fn commit(&mut self) -> Result<u64, Failure> {
        let log = self.durable.open_log()?;
        let ticket = log.commit(&mut self.channel)?;
        Ok(self.asked(ticket))
    }

    /// Commits what was appended and is not committed.
    pub(super) fn commit_appended(&mut self) -> Result<(), Failure> {
        if let State::Open(log) = &mut self.durable.log
            && log.is_fresh()
        {
            log.commit(&mut self.channel)?;
        }
        Ok(())
    }

    /// Gives up a record and all before it.
    pub(crate) fn give_up(&mut self, id: u64) -> Result<(), Failure> {
        let log = self.durable.open_log()?;
        if !log.is_of(&self.channel) {
            return Err(Lost.into());
        }
        let next = log.wal().tail().sequence;
        if id >= next {
            let message = format!("there is no record {id} yet: the next one is {next}");
            return Err(Failure::new(PASTE_EINVAL, message));
        }
        log.give_up(id);
        Ok(())
    }

    pub(crate) fn log_usage(&mut self) -> Result<paste_log_usage, Failure> {
        let log = self.durable.open_log()?;
        let usage = log.usage();
        Ok(paste_log_usage {
            records: usage.records,
            bytes: usage.bytes,
            bytes_free: usage.bytes_free,
            buffers: usage.buffers,
            region_buffers: self.channel.geometry().map_or(0, |geometry| geometry.buffer_count),
        })
    }

    /// Brings forward that what was given up is free.
    pub(super) fn tend_log(&mut self) {
        if let State::Open(log) = &mut self.durable.log {
            while log.is_of(&self.channel)
                && log.is_unfinished(&self.channel)
                && log.commit(&mut self.channel).is_ok()
            {}
        }
    }
}

/// A record that was read; ranges that are damaged have no size.
fn found(record: &Record<'_>) -> Found {
    let mut pieces: Vec<paste_buf> = record
        .pieces()
        .map(|piece| paste_buf {
            off: piece.offset.into(),
            len: piece.len.into(),
            size: 1,
            index: piece.buf,
            ..paste_buf::NONE
        })
        .collect();
    for &damaged in record.damaged() {
        if let Some(piece) = pieces.get_mut(usize::from(damaged)) {
            piece.size = 0;
        }
    }
    Found {
        id: record.sequence(),
        time_ns: record.time(),
        kind: record.kind(),
        tag: record.tag().to_vec(),
        pieces,
        damaged: record.damaged().len() as u32,
    }
}

fn report(records: usize, recovery: Option<Recovery>) -> paste_found {
    let records = records as u64;
    let Some(Recovery { dropped, torn, loss, .. }) = recovery else {
        return paste_found { created: 1, ..paste_found::default() };
    };
    let (mut lost_records, mut gaps) = (0, 0);
    for damage in &loss.named {
        if let Damage::Records { first, last, .. } = damage {
            lost_records += last - first + 1;
            gaps += 1;
        }
    }
    let damaged_pieces = loss.count - gaps;
    paste_found { records, dropped, lost_records, damaged_pieces, created: 0, torn: torn.into() }
}
