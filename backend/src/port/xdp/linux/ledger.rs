//! What the kernel has of the port's: which buffers wait to be filled, how often each is
//! on its way out, and which pieces of private memory are. Kept in private memory, so
//! that what the kernel's rings name can be judged.

use paste_stack::Origin;

/// Of one buffer.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    /// Frames on their way out of it.
    sending: u16,
    /// They are the bridge's, and not the stack's.
    bridge: bool,
    /// It waits to be filled, or is filled.
    filling: bool,
}

/// Of all buffers.
#[derive(Debug)]
pub(super) struct Ledger {
    records: Box<[Record]>,
    sending: u32,
}

impl Ledger {
    /// Of `count` buffers, none of which the kernel has.
    pub(super) fn new(count: u32) -> Ledger {
        Ledger { records: vec![Record::default(); count as usize].into(), sending: 0 }
    }

    /// The buffer goes to the kernel to be filled.
    pub(super) fn give(&mut self, buf: u32) {
        self.records[buf as usize].filling = true;
    }

    /// The kernel says that it filled `buf`, any number: whether it had it.
    #[must_use]
    pub(super) fn take(&mut self, buf: u64) -> Option<u32> {
        let record = self.records.get_mut(usize::try_from(buf).ok()?)?;
        std::mem::take(&mut record.filling).then_some(buf as u32)
    }

    /// A frame goes out of the buffer; `false`, and nothing is noted, if as many are
    /// under way as can be counted.
    #[must_use]
    pub(super) fn send(&mut self, buf: u32, origin: Origin) -> bool {
        let record = &mut self.records[buf as usize];
        let Some(sending) = record.sending.checked_add(1) else { return false };
        record.sending = sending;
        record.bridge = origin == Origin::Bridge;
        self.sending += 1;
        true
    }

    /// The kernel says that a frame out of `buf`, any number, has left: whose it was, if
    /// there was one.
    #[must_use]
    pub(super) fn sent(&mut self, buf: u64) -> Option<(Origin, u32)> {
        let record = self.records.get_mut(usize::try_from(buf).ok()?)?;
        record.sending = record.sending.checked_sub(1)?;
        self.sending -= 1;
        Some((record.origin(), buf as u32))
    }

    /// Frames on their way out of buffers.
    pub(super) fn sending(&self) -> u32 {
        self.sending
    }

    /// Takes back every buffer that the kernel had to fill. Linear in all buffers.
    pub(super) fn take_all(&mut self, mut each: impl FnMut(u32)) {
        for (buf, record) in (0..).zip(&mut self.records) {
            if std::mem::take(&mut record.filling) {
                each(buf);
            }
        }
    }

    /// Ends every frame that is on its way out. Linear in all buffers.
    pub(super) fn end_all(&mut self, mut each: impl FnMut(Origin, u32)) {
        for (buf, record) in (0..).zip(&mut self.records) {
            for _ in 0..std::mem::take(&mut record.sending) {
                each(record.origin(), buf);
            }
        }
        self.sending = 0;
    }
}

impl Record {
    fn origin(&self) -> Origin {
        if self.bridge { Origin::Bridge } else { Origin::Stack }
    }
}

/// Pieces of private memory, all of one size.
#[derive(Debug)]
pub(super) struct Slots {
    size: usize,
    busy: Box<[bool]>,
    free: Vec<u32>,
}

impl Slots {
    /// `count` pieces of `size` bytes, one behind the other.
    pub(super) fn new(count: u32, size: usize) -> Slots {
        Slots { size, busy: vec![false; count as usize].into(), free: (0..count).rev().collect() }
    }

    /// Takes a free piece, and says where it begins.
    #[must_use]
    pub(super) fn take(&mut self) -> Option<usize> {
        let slot = self.free.pop()? as usize;
        self.busy[slot] = true;
        Some(slot * self.size)
    }

    /// The kernel says that it is done with the piece at `offset`, any number: whether
    /// it had it.
    #[must_use]
    pub(super) fn give(&mut self, offset: u64) -> bool {
        let Ok(slot) = usize::try_from(offset / self.size as u64) else { return false };
        match self.busy.get_mut(slot) {
            Some(busy) if *busy && offset.is_multiple_of(self.size as u64) => {
                *busy = false;
                self.free.push(slot as u32);
                true
            }
            _ => false,
        }
    }

    /// Pieces that the kernel has.
    #[cfg(test)]
    pub(super) fn busy(&self) -> usize {
        self.busy.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_never_had_is_not_taken_from_it() {
        let mut ledger = Ledger::new(4);
        assert_eq!(ledger.take(1), None);
        ledger.give(1);
        assert_eq!(ledger.take(1 << 32 | 1), None);
        assert_eq!(ledger.take(4), None);
        assert_eq!(ledger.take(1), Some(1));
        assert_eq!(ledger.take(1), None, "twice");

        assert_eq!(ledger.sent(2), None);
        assert!(ledger.send(2, Origin::Stack));
        assert!(ledger.send(2, Origin::Stack));
        assert!(ledger.send(3, Origin::Bridge));
        assert_eq!(ledger.sending(), 3);
        assert_eq!(ledger.sent(2), Some((Origin::Stack, 2)));
        assert_eq!(ledger.sent(u64::MAX), None);
        let mut ended = Vec::new();
        ledger.end_all(|origin, buf| ended.push((origin, buf)));
        assert_eq!(ended, [(Origin::Stack, 2), (Origin::Bridge, 3)]);
        assert_eq!((ledger.sending(), ledger.sent(3)), (0, None));
    }

    #[test]
    fn a_buffer_is_sent_as_often_as_can_be_counted() {
        let mut ledger = Ledger::new(1);
        for _ in 0..u16::MAX {
            assert!(ledger.send(0, Origin::Stack));
        }
        assert!(!ledger.send(0, Origin::Stack));
        assert_eq!(ledger.sending(), u32::from(u16::MAX));
    }

    #[test]
    fn pieces_go_and_come_once() {
        let mut slots = Slots::new(2, 128);
        let (a, b) = (slots.take().unwrap(), slots.take().unwrap());
        assert_eq!((a, b, slots.take()), (0, 128, None));
        for wrong in [64, 129, 256, u64::MAX] {
            assert!(!slots.give(wrong), "{wrong}");
        }
        assert!(slots.give(128));
        assert!(!slots.give(128), "twice");
        assert_eq!((slots.busy(), slots.take()), (1, Some(128)));
    }
}
