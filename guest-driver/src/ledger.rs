//! Which buffers are the application's.
//!
//! The host's table of owners is the one that counts; this is the guest's own
//! account of it, so that no buffer is ever named by two [`Buffer`]s at once,
//! whatever the host says. That is what makes `&mut` access to the bytes sound.
//! Everything is allocated when the channel opens and costs O(1) per buffer.

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
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    holder: Holder,
    offset: u16,
    len: u16,
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
    /// Buffers to name in RETURN frames. Never longer than `entries` either.
    returning: Vec<u32>,
    held: u32,
}

impl Ledger {
    /// An account in which the host has all `count` buffers of `buffer_size`
    /// bytes. `epoch` must differ from that of every other account.
    pub(crate) fn new(epoch: u32, count: u32, buffer_size: u32) -> Ledger {
        Ledger {
            epoch,
            buffer_size,
            entries: vec![Entry { holder: Holder::Host, offset: 0, len: 0 }; count as usize].into(),
            granted: Vec::with_capacity(count as usize),
            returning: Vec::with_capacity(count as usize),
            held: 0,
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
        if !matches!(entry.holder, Holder::Host | Holder::Sent) {
            return Err(Violation);
        }
        entry.holder = Holder::Application;
        self.held += 1;
        Ok(self.name(index, offset, len))
    }

    /// The host hands over an empty buffer.
    pub(crate) fn grant(&mut self, index: u32) -> Result<(), Violation> {
        let entry = self.entries.get_mut(index as usize).ok_or(Violation)?;
        if !matches!(entry.holder, Holder::Host | Holder::Sent) {
            return Err(Violation);
        }
        entry.holder = Holder::Granted;
        self.granted.push(index);
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
        *entry = Entry { holder: Holder::Sent, offset: buffer.offset, len: buffer.len };
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
    fn a_name_of_another_opening_changes_nothing() {
        let mut old = Ledger::new(1, 4, 2048);
        let stale = old.receive(1, 0, 1).unwrap();
        let mut new = Ledger::new(2, 4, 2048);
        assert!(!new.knows(&stale));
        new.give_back(stale);
        assert!(new.returning().is_empty());
    }
}
