//! What an engine that leaves TCP to the host's kernel knows of each buffer, in memory of
//! the host's: where it is, and what of it is payload. One record for each buffer of the region, allocated once, linked
//! into the queues of flows.
//!
//! A buffer that stays the guest's while it is sent has further records, one for each
//! such send under way: *aliases*, whose indices follow those of the buffers. An alias
//! is a pin of its buffer, so that one which the guest gives up goes to the pool when
//! its last send has ended.

use paste_abi::slot::{KEEP, SHARE};
use paste_abi::{Event, Flow, Reason, Slot};
use paste_stack::Tx;

use super::lists::NIL;

/// Where a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Not the engine's, and charged to no flow.
    Elsewhere,
    /// In a flow's readable queue.
    Readable,
    /// The guest's; charged to the flow that received it.
    Delivered,
    /// To be sent, or being sent.
    Sending,
    /// Sent or given up, and the guest is to be told.
    Done,
    /// Given up by the guest, while sends of it are under way.
    Retired,
}

/// What a guest is told of a buffer that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing: the buffer returns to the pool.
    Nothing,
    /// That it was.
    Acked,
    /// The same, and the buffer is the guest's again.
    Kept,
    /// The same, and the buffer was the guest's all the time.
    Shared,
}

/// The record of one buffer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// Received: arrival, ns. To send: the application's cookie.
    pub word: u64,
    /// The next in its queue.
    pub next: u32,
    /// Received: name of the flow that is charged for it. Sent: the notice that is waited
    /// for, or [`NIL`].
    pub flow: u32,
    pub offset: u16,
    pub len: u16,
    /// Aliases of it.
    pub pins: u16,
    pub place: Place,
    pub told: Told,
    /// Done: why.
    pub reason: Reason,
}

const EMPTY: Record = Record {
    word: 0,
    next: NIL,
    flow: 0,
    offset: 0,
    len: 0,
    pins: 0,
    place: Place::Elsewhere,
    told: Told::Nothing,
    reason: Reason::Ok,
};

/// A queue of buffers, linked through their records.
#[derive(Clone, Copy, Debug)]
pub(super) struct Queue {
    pub head: u32,
    pub tail: u32,
}

impl Queue {
    pub(super) const EMPTY: Queue = Queue { head: NIL, tail: NIL };

    pub(super) const fn is_empty(&self) -> bool {
        self.head == NIL
    }
}

/// The records of all buffers and aliases.
#[derive(Debug)]
pub(super) struct Bufs {
    records: Box<[Record]>,
    /// Buffers; indices from here on are aliases.
    count: u32,
    /// The buffer of each alias.
    reals: Box<[u32]>,
    /// The first alias that is free; the others follow by `next`.
    free: u32,
}

impl Bufs {
    /// Records for `count` buffers and `aliases` sends of shared ones.
    pub(super) fn new(count: u32, aliases: u32) -> Bufs {
        let total = count + aliases;
        let mut records = vec![EMPTY; total as usize].into_boxed_slice();
        for alias in count..total {
            records[alias as usize].next = if alias + 1 == total { NIL } else { alias + 1 };
        }
        let free = if aliases > 0 { count } else { NIL };
        Bufs { records, count, reals: vec![NIL; aliases as usize].into(), free }
    }

    pub(super) fn get(&self, buf: u32) -> &Record {
        &self.records[buf as usize]
    }

    pub(super) fn get_mut(&mut self, buf: u32) -> &mut Record {
        &mut self.records[buf as usize]
    }

    /// The buffer whose bytes are meant.
    pub(super) fn real(&self, buf: u32) -> u32 {
        if buf < self.count { buf } else { self.reals[(buf - self.count) as usize] }
    }

    /// One more record for a send of `buf`, which is pinned by it. `None` if no more can
    /// be under way.
    pub(super) fn alias(&mut self, buf: u32) -> Option<u32> {
        let alias = self.free;
        if alias == NIL || self.get(buf).pins == u16::MAX {
            return None;
        }
        self.free = self.get(alias).next;
        self.reals[(alias - self.count) as usize] = buf;
        self.get_mut(buf).pins += 1;
        Some(alias)
    }

    /// The alias is needed no more: its buffer has one pin less. Gives the buffer, and
    /// whether it is to go to the pool now.
    pub(super) fn end_alias(&mut self, alias: u32) -> (u32, bool) {
        let buf = self.real(alias);
        *self.get_mut(alias) = Record { next: self.free, ..EMPTY };
        self.free = alias;
        let record = self.get_mut(buf);
        record.pins -= 1;
        let over = record.pins == 0 && record.place == Place::Retired;
        if over {
            record.place = Place::Elsewhere;
        }
        (buf, over)
    }

    /// Judges what a guest wants to be sent from a buffer of `size` bytes, the first
    /// `headroom` of which are not payload, and has the record of it say so. Gives the
    /// record, and the flow that is charged for the buffer no more.
    pub(super) fn begin_send(
        &mut self,
        tx: &Tx,
        headroom: u16,
        size: usize,
    ) -> Result<(u32, Option<Flow>), Reason> {
        if tx.buf >= self.count {
            return Err(Reason::ForeignBuffer);
        }
        let end = usize::from(tx.offset) + usize::from(tx.len);
        if tx.len == 0 || tx.offset < headroom || end > size {
            return Err(Reason::BadRange);
        }
        let record = self.get(tx.buf);
        if !matches!(record.place, Place::Delivered | Place::Elsewhere) {
            return Err(Reason::ForeignBuffer);
        }
        let (buf, charged) = if tx.share {
            (self.alias(tx.buf).ok_or(Reason::NoRoom)?, None)
        } else if record.pins > 0 {
            // Shared sends of it are under way.
            return Err(Reason::BadRequest);
        } else {
            (tx.buf, self.uncharge(tx.buf))
        };
        let record = self.get_mut(buf);
        record.place = Place::Sending;
        record.offset = tx.offset;
        record.len = tx.len;
        record.word = tx.cookie;
        record.told = match (tx.share, tx.keep, tx.notify) {
            (true, ..) => Told::Shared,
            (false, true, _) => Told::Kept,
            (false, false, true) => Told::Acked,
            (false, false, false) => Told::Nothing,
        };
        Ok((buf, charged))
    }

    /// The guest gave up a buffer, or sends it on: gives the flow that was charged for
    /// it, and is no more.
    pub(super) fn uncharge(&mut self, buf: u32) -> Option<Flow> {
        let record = self.get_mut(buf);
        if record.place != Place::Delivered {
            return None;
        }
        record.place = Place::Elsewhere;
        Some(Flow(record.flow))
    }

    /// A buffer was sent, or is not to be: gives the one that is to go to the pool now.
    pub(super) fn end_send(&mut self, buf: u32) -> Option<u32> {
        if buf < self.count {
            self.get_mut(buf).place = Place::Elsewhere;
            return Some(buf);
        }
        let (buf, over) = self.end_alias(buf);
        over.then_some(buf)
    }

    /// The DATA of a buffer that becomes the guest's.
    pub(super) fn deliver(&mut self, buf: u32, name: Flow) -> Slot {
        let record = self.get_mut(buf);
        record.place = Place::Delivered;
        Slot {
            buf_idx: buf,
            len: record.len,
            offset: record.offset,
            time: record.word,
            ..Slot::event(Event::Data, name)
        }
    }

    /// The ACKED of a buffer that was sent, or given up; and the buffer that is to go to
    /// the pool now.
    pub(super) fn acked(&mut self, buf: u32, name: Flow) -> (Slot, Option<u32>) {
        let record = self.get_mut(buf);
        let mut slot = Slot {
            cookie: record.word,
            len: record.reason as u16,
            ..Slot::event(Event::Acked, name)
        };
        match record.told {
            Told::Kept => {
                record.place = Place::Elsewhere;
                slot.buf_idx = buf;
                slot.modifiers = KEEP;
                (slot, None)
            }
            Told::Shared => {
                slot.buf_idx = self.real(buf);
                slot.modifiers = SHARE;
                (slot, self.end_send(buf))
            }
            Told::Acked | Told::Nothing => (slot, self.end_send(buf)),
        }
    }

    /// Appends `buf` to `queue`.
    pub(super) fn push(&mut self, queue: &mut Queue, buf: u32) {
        self.get_mut(buf).next = NIL;
        match queue.tail {
            NIL => queue.head = buf,
            tail => self.get_mut(tail).next = buf,
        }
        queue.tail = buf;
    }

    /// Takes the first buffer out of `queue`.
    pub(super) fn pop(&mut self, queue: &mut Queue) -> Option<u32> {
        let buf = queue.head;
        if buf == NIL {
            return None;
        }
        queue.head = self.get(buf).next;
        if queue.head == NIL {
            queue.tail = NIL;
        }
        Some(buf)
    }

    /// The buffers of `queue`, in order.
    pub(super) fn walk(&self, queue: Queue) -> impl Iterator<Item = (u32, &Record)> {
        let known = |buf: u32| (buf != NIL).then(|| (buf, self.get(buf)));
        std::iter::successors(known(queue.head), move |(_, record)| known(record.next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_buffer_that_was_given_up_is_free_after_its_last_send() {
        let mut bufs = Bufs::new(4, 2);
        let (first, second) = (bufs.alias(3).unwrap(), bufs.alias(3).unwrap());
        assert_eq!((first, second), (4, 5));
        assert_eq!(bufs.alias(3), None, "no more than two at once");
        assert_eq!((bufs.real(first), bufs.real(2)), (3, 2));
        bufs.get_mut(3).place = Place::Retired;
        assert_eq!(bufs.end_alias(first), (3, false));
        assert_eq!(bufs.end_alias(second), (3, true));
        assert_eq!(bufs.get(3).place, Place::Elsewhere);
        assert_eq!(bufs.alias(0), Some(second), "the last that was freed");
    }

    #[test]
    fn queues_keep_their_order() {
        let mut bufs = Bufs::new(4, 0);
        let mut queue = Queue::EMPTY;
        for buf in [2, 0, 3] {
            bufs.push(&mut queue, buf);
        }
        assert_eq!(bufs.walk(queue).map(|(buf, _)| buf).collect::<Vec<_>>(), [2, 0, 3]);
        for buf in [2, 0, 3] {
            assert_eq!(bufs.pop(&mut queue), Some(buf));
        }
        assert!(queue.is_empty() && bufs.pop(&mut queue).is_none());
    }
}
