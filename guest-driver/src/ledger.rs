//! Which buffers are the application's.
//!
//! The host's table of owners is the one that counts; this is the guest's own
//! account of it, so that no buffer is ever named by two [`Buffer`]s at once,
//! whatever the host says. That is what makes `&mut` access to the bytes sound.
//! Everything is allocated when the channel opens and costs O(1) per buffer.

use std::collections::VecDeque;

use paste_abi::frame::INDICES_PER_RECORD;

use crate::buffer::Buffer;

/// Who has a buffer, as far as the guest knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holder {
    /// The host: pool, port or stack.
    Host,
    /// The application, as a [`Buffer`].
    Application,
    /// The channel: granted and not yet taken.
    Granted,
    /// The channel: given back, and waiting for a RETURN frame.
    Returning,
    /// The host, to send it. The entry remembers the range, which neither ACKED
    /// nor REFUSED repeats whole.
    Sent,
    /// The application, as durable data that nobody writes to. The entry counts
    /// its sends under way.
    Stored,
    /// The same, and it is given back when the last of its sends has ended.
    Leaving,
    /// Nobody knows: the host was asked whether it is the application's.
    Asked,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    holder: Holder,
    offset: u16,
    len: u16,
    /// Shared sends under way.
    sends: u32,
}

/// The host named a buffer that it cannot have: one out of range, or one that
/// is already the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Violation;

/// The account of one opening of a channel.
#[derive(Debug)]
pub(crate) struct Ledger {
    epoch: u32,
    buffer_size: u32,
    entries: Box<[Entry]>,
    /// Buffers to fill. Never longer than `entries`, so it never grows.
    granted: Vec<u32>,
    /// Buffers that the host was asked for and has not granted yet.
    wanted: u32,
    /// Buffers to name in RETURN frames. Never longer than `entries` either.
    returning: Vec<u32>,
    held: u32,
    stored: u32,
    /// Buffers that the host was asked about, record by record, and then those
    /// that it is to be asked about.
    resuming: VecDeque<u32>,
    asked: VecDeque<usize>,
    to_ask: usize,
    /// Those of them that are not the application's.
    refused: Vec<u32>,
}

impl Ledger {
    /// An account in which the host has all `count` buffers of `buffer_size`
    /// bytes. `epoch` must differ from that of every other account.
    pub(crate) fn new(epoch: u32, count: u32, buffer_size: u32) -> Ledger {
        Ledger {
            epoch,
            buffer_size,
            entries: vec![
                Entry { holder: Holder::Host, offset: 0, len: 0, sends: 0 };
                count as usize
            ]
            .into(),
            granted: Vec::with_capacity(count as usize),
            wanted: 0,
            returning: Vec::with_capacity(count as usize),
            held: 0,
            stored: 0,
            resuming: VecDeque::new(),
            asked: VecDeque::new(),
            to_ask: 0,
            refused: Vec::new(),
        }
    }

    /// Whether the buffer's name is of this opening.
    pub(crate) fn knows(&self, buffer: &Buffer) -> bool {
        buffer.epoch == self.epoch
    }

    /// Buffers that the application has, not counting granted ones.
    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// Buffers granted and not yet taken.
    pub(crate) fn granted(&self) -> usize {
        self.granted.len()
    }

    /// Buffers that the host was asked for and has not granted yet.
    pub(crate) fn wanted(&self) -> u32 {
        self.wanted
    }

    /// The host was asked for `count` buffers more.
    pub(crate) fn want(&mut self, count: u32) {
        self.wanted = self.wanted.saturating_add(count);
    }

    /// Buffers that wait for a RETURN frame.
    pub(crate) fn returning(&self) -> &[u32] {
        &self.returning
    }

    fn name(&self, index: u32, offset: u16, len: u16) -> Buffer {
        let (epoch, size) = (self.epoch, self.buffer_size);
        Buffer { index, epoch, offset, len, size, csum: 0, csum_valid: false, time: 0 }
    }

    /// The host hands over a buffer with payload in it.
    pub(crate) fn receive(
        &mut self,
        index: u32,
        offset: u16,
        len: u16,
    ) -> Result<Buffer, Violation> {
        if u32::from(offset) + u32::from(len) > self.buffer_size {
            return Err(Violation);
        }
        let entry = self.entries.get_mut(index as usize).ok_or(Violation)?;
        // Sent and not kept: acknowledged since, recycled, and ours again.
        if !matches!(entry.holder, Holder::Host | Holder::Sent | Holder::Asked) {
            return Err(Violation);
        }
        entry.holder = Holder::Application;
        self.held += 1;
        Ok(self.name(index, offset, len))
    }

    /// Whether the host may fill a buffer up to `end`, before it hands it over.
    pub(crate) fn may_fill(&self, index: u32, end: usize) -> bool {
        let holder = self.entries.get(index as usize).map(|entry| entry.holder);
        matches!(holder, Some(Holder::Host | Holder::Sent)) && end <= self.buffer_size as usize
    }

    /// The host hands over an empty buffer.
    pub(crate) fn grant(&mut self, index: u32) -> Result<(), Violation> {
        let entry = self.entries.get_mut(index as usize).ok_or(Violation)?;
        if !matches!(entry.holder, Holder::Host | Holder::Sent | Holder::Asked) {
            return Err(Violation);
        }
        entry.holder = Holder::Granted;
        self.granted.push(index);
        self.wanted = self.wanted.saturating_sub(1);
        Ok(())
    }

    /// The application takes an empty buffer, its range at `offset` and empty.
    pub(crate) fn take(&mut self, offset: u16) -> Option<Buffer> {
        let index = self.granted.pop()?;
        self.entries[index as usize].holder = Holder::Application;
        self.held += 1;
        Some(self.name(index, offset, 0))
    }

    /// The application has sent a buffer. Its name must be of this opening.
    pub(crate) fn sent(&mut self, buffer: &Buffer) {
        let entry = &mut self.entries[buffer.index as usize];
        debug_assert_eq!(entry.holder, Holder::Application);
        *entry = Entry { holder: Holder::Sent, offset: buffer.offset, len: buffer.len, sends: 0 };
        self.held -= 1;
    }

    /// A sent buffer comes back, acknowledged or refused, with the range that
    /// was sent. A buffer that was never sent is the host's error.
    pub(crate) fn came_back(&mut self, index: u32) -> Result<Buffer, Violation> {
        let entry = self.entries.get_mut(index as usize).ok_or(Violation)?;
        if entry.holder != Holder::Sent {
            return Err(Violation);
        }
        entry.holder = Holder::Application;
        let Entry { offset, len, .. } = *entry;
        self.held += 1;
        Ok(self.name(index, offset, len))
    }

    /// The application is done with a buffer. Names of other openings are void.
    pub(crate) fn give_back(&mut self, buffer: Buffer) {
        if !self.knows(&buffer) {
            return;
        }
        let entry = &mut self.entries[buffer.index as usize];
        debug_assert_eq!(entry.holder, Holder::Application);
        entry.holder = Holder::Returning;
        self.held -= 1;
        self.returning.push(buffer.index);
    }

    /// Buffers that the application has stored.
    pub(crate) fn stored(&self) -> u32 {
        self.stored
    }

    fn entry(&mut self, index: u32) -> Option<&mut Entry> {
        self.entries.get_mut(index as usize)
    }

    /// Whether the application has stored the buffer.
    pub(crate) fn is_stored(&self, index: u32) -> bool {
        self.entries.get(index as usize).is_some_and(|entry| entry.holder == Holder::Stored)
    }

    /// The application stores a buffer. Its name must be of this opening.
    pub(crate) fn store(&mut self, buffer: &Buffer) {
        let entry = &mut self.entries[buffer.index as usize];
        debug_assert_eq!(entry.holder, Holder::Application);
        *entry = Entry { holder: Holder::Stored, offset: 0, len: 0, sends: 0 };
        self.held -= 1;
        self.stored += 1;
    }

    /// A stored buffer is on its way once more.
    pub(crate) fn shared(&mut self, index: u32) {
        if let Some(entry) = self.entry(index) {
            debug_assert_eq!(entry.holder, Holder::Stored);
            entry.sends += 1;
        }
    }

    /// A send of a stored buffer has ended. One that was never begun is the
    /// host's error.
    pub(crate) fn share_ended(&mut self, index: u32) -> Result<(), Violation> {
        let entry = self.entry(index).filter(|entry| entry.sends > 0).ok_or(Violation)?;
        entry.sends -= 1;
        if entry.sends == 0 && entry.holder == Holder::Leaving {
            entry.holder = Holder::Returning;
            self.returning.push(index);
        }
        Ok(())
    }

    /// The application gives a stored buffer up; `false` if it has not stored it.
    pub(crate) fn release(&mut self, index: u32) -> bool {
        let Some(entry) = self.entry(index).filter(|entry| entry.holder == Holder::Stored) else {
            return false;
        };
        if entry.sends > 0 {
            entry.holder = Holder::Leaving;
        } else {
            entry.holder = Holder::Returning;
            self.returning.push(index);
        }
        self.stored -= 1;
        true
    }

    /// The host is to be asked whether a buffer is the application's. One that
    /// cannot be is refused at once.
    pub(crate) fn ask(&mut self, index: u32) {
        match self.entry(index) {
            Some(entry) if entry.holder == Holder::Host => {
                entry.holder = Holder::Asked;
                self.resuming.push_back(index);
                self.to_ask += 1;
            }
            Some(entry) if entry.holder == Holder::Stored => {}
            _ => self.refused.push(index),
        }
    }

    /// Whether buffers wait for a RESUME frame.
    pub(crate) fn has_to_ask(&self) -> bool {
        self.to_ask > 0
    }

    /// Whether the host has answered all that it was to be asked.
    pub(crate) fn is_resumed(&self) -> bool {
        self.resuming.is_empty()
    }

    /// The buffers for the next record of a RESUME frame, and how many these are.
    pub(crate) fn asking(&mut self) -> ([u32; INDICES_PER_RECORD], usize) {
        let mut indices = [0; INDICES_PER_RECORD];
        let waiting = self.resuming.iter().skip(self.resuming.len() - self.to_ask);
        let mut count = 0;
        for (out, index) in indices.iter_mut().zip(waiting) {
            *out = *index;
            count += 1;
        }
        self.to_ask -= count;
        if count > 0 {
            self.asked.push_back(count);
        }
        (indices, count)
    }

    /// The host has answered a record: these of its buffers are the
    /// application's. It may answer what it was asked, and nothing else.
    pub(crate) fn resumed(&mut self, kept: impl Iterator<Item = u32>) -> Result<(), Violation> {
        let mut kept = kept.peekable();
        for _ in 0..self.asked.pop_front().ok_or(Violation)? {
            let index = self.resuming.pop_front().ok_or(Violation)?;
            let is_kept = kept.next_if_eq(&index).is_some();
            let entry = self.entries.get_mut(index as usize).ok_or(Violation)?;
            match (entry.holder, is_kept) {
                (Holder::Asked, true) => {
                    entry.holder = Holder::Stored;
                    self.stored += 1;
                    continue;
                }
                (Holder::Asked, false) => entry.holder = Holder::Host,
                // It was never claimed, and has come by another way meanwhile.
                _ => {}
            }
            self.refused.push(index);
        }
        if kept.next().is_some() { Err(Violation) } else { Ok(()) }
    }

    /// The buffers that were asked about and are not the application's.
    pub(crate) fn take_refused(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.refused)
    }

    /// The last `count` buffers of [`Ledger::returning`] are in a frame now.
    pub(crate) fn returned(&mut self, count: usize) {
        let keep = self.returning.len().saturating_sub(count);
        for index in self.returning.drain(keep..) {
            self.entries[index as usize].holder = Holder::Host;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_one_name_at_a_time() {
        let mut ledger = Ledger::new(1, 4, 2048);
        let data = ledger.receive(2, 130, 10).unwrap();
        assert_eq!(ledger.receive(2, 130, 10).unwrap_err(), Violation);
        assert_eq!(ledger.grant(2), Err(Violation));
        assert_eq!(ledger.came_back(2).unwrap_err(), Violation);
        assert_eq!(ledger.held(), 1);
        ledger.give_back(data);
        assert_eq!((ledger.held(), ledger.returning()), (0, &[2][..]));
        // Still the guest's until the RETURN frame is built.
        assert_eq!(ledger.grant(2), Err(Violation));
        ledger.returned(1);
        assert_eq!(ledger.grant(2), Ok(()));
        assert_eq!(ledger.grant(2), Err(Violation));
        assert_eq!(ledger.take(128).unwrap().index, 2);
        assert!(ledger.take(128).is_none());
    }

    #[test]
    fn names_and_ranges_out_of_bounds_are_refused() {
        let mut ledger = Ledger::new(1, 4, 2048);
        assert_eq!(ledger.receive(4, 0, 1).unwrap_err(), Violation);
        assert_eq!(ledger.receive(0, 2000, 49).unwrap_err(), Violation);
        assert_eq!(ledger.grant(u32::MAX), Err(Violation));
        assert_eq!(ledger.came_back(4).unwrap_err(), Violation);
        assert!(ledger.receive(0, 2000, 48).is_ok());
    }

    #[test]
    fn a_refused_buffer_comes_back_with_its_range() {
        let mut ledger = Ledger::new(1, 4, 2048);
        let data = ledger.receive(1, 200, 77).unwrap();
        ledger.sent(&data);
        let back = ledger.came_back(1).unwrap();
        assert_eq!((back.offset(), back.len(), ledger.held()), (200, 77, 1));
    }

    #[test]
    fn a_stored_buffer_is_given_back_when_its_last_send_has_ended() {
        let mut ledger = Ledger::new(1, 4, 2048);
        let data = ledger.receive(1, 130, 10).unwrap();
        ledger.store(&data);
        assert_eq!((ledger.held(), ledger.stored(), ledger.is_stored(1)), (0, 1, true));
        assert_eq!(ledger.receive(1, 130, 10).unwrap_err(), Violation);
        assert_eq!(ledger.grant(1), Err(Violation));
        assert_eq!(ledger.share_ended(1), Err(Violation));
        ledger.shared(1);
        ledger.shared(1);
        ledger.share_ended(1).unwrap();
        assert!(ledger.release(1) && !ledger.release(1));
        assert_eq!((ledger.stored(), ledger.returning()), (0, &[][..]));
        ledger.share_ended(1).unwrap();
        assert_eq!(ledger.returning(), [1]);
        // One without sends goes at once.
        let data = ledger.receive(2, 130, 10).unwrap();
        ledger.store(&data);
        assert!(ledger.release(2));
        assert_eq!(ledger.returning(), [1, 2]);
        assert!(!ledger.release(9));
    }

    #[test]
    fn the_host_says_what_is_still_the_applications() {
        let mut ledger = Ledger::new(1, 32, 2048);
        (0..9).for_each(|index| ledger.ask(index));
        ledger.ask(40);
        ledger.ask(3);
        let (first, count) = ledger.asking();
        assert_eq!((first, count), ([0, 1, 2, 3, 4, 5, 6, 7], 8));
        assert_eq!(ledger.asking().1, 1);
        assert!(!ledger.has_to_ask() && !ledger.is_resumed());
        // A buffer that nobody had claimed may come by another way.
        let _data = ledger.receive(5, 130, 10).unwrap();
        ledger.resumed([0, 2, 5].into_iter()).unwrap();
        assert!(ledger.is_stored(0) && !ledger.is_stored(1) && ledger.is_stored(2));
        assert!(!ledger.is_stored(5));
        ledger.resumed([8].into_iter()).unwrap();
        assert!(ledger.is_resumed());
        assert_eq!(ledger.take_refused(), [40, 3, 1, 3, 4, 5, 6, 7]);
        assert_eq!(ledger.stored(), 3);
        assert_eq!(ledger.resumed([0].into_iter()), Err(Violation), "nothing was asked");
        // What is stored already needs no question.
        ledger.ask(0);
        assert!(ledger.is_resumed() && ledger.take_refused().is_empty());
    }

    #[test]
    fn an_answer_to_another_question_is_refused() {
        let mut ledger = Ledger::new(1, 32, 2048);
        ledger.ask(4);
        ledger.ask(5);
        ledger.asking();
        assert_eq!(ledger.resumed([5, 4].into_iter()), Err(Violation));
    }

    #[test]
    fn a_name_of_another_opening_changes_nothing() {
        let mut old = Ledger::new(1, 4, 2048);
        let stale = old.receive(1, 0, 1).unwrap();
        let mut new = Ledger::new(2, 4, 2048);
        assert!(!new.knows(&stale));
        new.give_back(stale);
        assert!(new.returning().is_empty());
    }
}
