//! What the stack knows of each buffer, in host-private memory: who it waits
//! for, and what of it is payload. One record for each buffer of the region,
//! allocated once, linked into the queues of flows.
//!
//! A buffer that stays the guest's while it is sent has further records, one for
//! each such send under way: *aliases*, whose indices follow those of the buffers.
//! Queues and scoreboards know no difference. An alias is a pin of its buffer, so
//! that one which the guest gives up goes to the pool when its last send has ended.
//!
//! ```text
//!            input                 poll_slots               send
//!   caller ---------> readable -----------------> guest -----------> sending
//!              \         ^                          | release            | acknowledged
//!               \-----> held (out of order)         v                    v
//!                                                 nobody's   done (ACKED waits) / pool
//! ```

use core::ops::Range;

use paste_abi::Reason;

use crate::tcp::input::Segment;
use crate::tcp::rtt::Stamp;
use crate::tcp::seq::Seq;

/// No buffer, flow or other index.
pub(crate) const NIL: u32 = u32::MAX;

/// Where a buffer is in the drawing above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Not the stack's, and charged to no flow.
    Elsewhere,
    /// In a flow's readable queue.
    Readable,
    /// In a flow's held queue.
    Held,
    /// The guest's; charged to the flow that received it.
    Delivered,
    /// Fragments are put together in it.
    Reassembling,
    /// In a flow's send queue.
    Sending,
    /// Acknowledged or given up, and the guest is to be told.
    Done,
    /// Nobody waits for it but the port, which has not sent its frame yet.
    Pinned,
}

/// What a guest is told of a buffer that the peer has acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// Nothing: the buffer returns to the pool.
    Nothing,
    /// That it was.
    Acked,
    /// The same, and the buffer is the guest's again.
    Kept,
    /// The same, and the buffer was the guest's all the time.
    Shared,
}

/// The record of one buffer: one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct BufMeta {
    /// Received: arrival. To send: the application's cookie.
    pub word: u64,
    /// The next in its queue.
    pub next: u32,
    /// Name of the flow to which the buffer is charged or belongs.
    pub flow: u32,
    /// Sequence number of the first payload byte.
    pub seq: u32,
    pub offset: u16,
    pub len: u16,
    /// Checksum of the payload, when `csum_valid`.
    pub csum: u16,
    /// Frames carrying the buffer that the port has not sent yet, and its aliases.
    pub pins: u16,
    pub place: Place,
    pub csum_valid: bool,
    /// Sending: what its guest is told when the peer has acknowledged it.
    pub told: Told,
    /// Sending: whether its segments were sent at different times.
    apart: u8,
    /// Done: why, [`Reason::Ok`] when the peer has acknowledged it.
    pub reason: Reason,
    /// Sending: bytes of a unit of [`crate::tcp::scoreboard`]; zero before it
    /// is sent.
    pub unit: u16,
    /// Sending: when the last of its segments was sent for the first time.
    pub sent_at: Stamp,
    /// Sending: a bit for each unit that the peer has out of order.
    pub sacked: u32,
    /// Sending: a bit for each unit that is lost and was not sent again yet.
    pub lost: u32,
    /// Sending: a bit for each unit that was sent more than once.
    pub resent: u32,
    /// Sending: when one of its segments was sent again last.
    pub resent_at: Stamp,
    /// Sending: neighbours in the list of what was sent again. Held, at an end of
    /// its block: `back` is the buffer at the other end.
    pub back: u32,
    pub later: u32,
}

const _: () = assert!(size_of::<BufMeta>() == 64);

/// A bit of [`BufMeta::apart`].
const SENT_APART: u8 = 1;
/// Another.
const RESENT_APART: u8 = 2;

impl BufMeta {
    /// Some of its segments were sent for the first time at another time than
    /// `sent_at`.
    #[inline]
    pub(crate) fn sent_apart(&self) -> bool {
        self.apart & SENT_APART != 0
    }

    #[inline]
    pub(crate) fn set_sent_apart(&mut self, on: bool) {
        self.apart = self.apart & !SENT_APART | if on { SENT_APART } else { 0 };
    }

    /// The same of those sent again, and `resent_at`.
    #[inline]
    pub(crate) fn resent_apart(&self) -> bool {
        self.apart & RESENT_APART != 0
    }

    #[inline]
    pub(crate) fn set_resent_apart(&mut self, on: bool) {
        self.apart = self.apart & !RESENT_APART | if on { RESENT_APART } else { 0 };
    }
}

/// A queue of buffers, linked through their records.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    pub head: u32,
    pub tail: u32,
}

impl Queue {
    pub(crate) const EMPTY: Queue = Queue { head: NIL, tail: NIL };

    #[inline]
    pub(crate) const fn is_empty(&self) -> bool {
        self.head == NIL
    }
}

/// The records of all buffers and aliases.
#[derive(Debug)]
pub(crate) struct Bufs {
    metas: Box<[BufMeta]>,
    count: u32,
    /// The buffer of each alias.
    reals: Box<[u32]>,
    /// The first alias that is free; the others follow by `next`.
    free: u32,
}

impl Bufs {
    pub(crate) fn new(count: u32, aliases: u32) -> Bufs {
        let meta = BufMeta {
            next: NIL,
            flow: 0,
            back: NIL,
            seq: 0,
            offset: 0,
            len: 0,
            csum: 0,
            pins: 0,
            word: 0,
            place: Place::Elsewhere,
            csum_valid: false,
            told: Told::Nothing,
            apart: 0,
            reason: Reason::Ok,
            sent_at: Stamp::at(0),
            resent_at: Stamp::at(0),
            unit: 0,
            sacked: 0,
            lost: 0,
            resent: 0,
            later: NIL,
        };
        let total = count.saturating_add(aliases);
        let mut metas = vec![meta; total as usize].into_boxed_slice();
        for alias in count..total.saturating_sub(1) {
            metas[alias as usize].next = alias + 1;
        }
        Bufs {
            metas,
            count,
            reals: vec![NIL; (total - count) as usize].into_boxed_slice(),
            free: if total > count { count } else { NIL },
        }
    }

    /// Where it lies.
    pub(crate) fn memory(&self) -> Range<*const u8> {
        let Range { start, end } = self.metas.as_ptr_range();
        start.cast()..end.cast()
    }

    /// Buffers; indices from here on are aliases.
    #[inline]
    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Buffers and aliases.
    #[inline]
    pub(crate) fn total(&self) -> u32 {
        self.metas.len() as u32
    }

    /// The buffer whose bytes are meant.
    #[inline]
    pub(crate) fn real(&self, buf: u32) -> u32 {
        if buf < self.count { buf } else { self.reals[(buf - self.count) as usize] }
    }

    /// One more record for a send of `buf`, which is pinned by it. `None` if no
    /// more can be under way.
    pub(crate) fn alias(&mut self, buf: u32) -> Option<u32> {
        let alias = self.free;
        if alias == NIL || self.get(buf).pins == u16::MAX {
            return None;
        }
        self.free = self.get(alias).next;
        self.reals[(alias - self.count) as usize] = buf;
        self.get_mut(buf).pins += 1;
        Some(alias)
    }

    /// The alias is needed no more. Gives its buffer, whose pin is now the
    /// caller's to take off.
    pub(crate) fn end_alias(&mut self, alias: u32) -> u32 {
        let buf = self.real(alias);
        let next = self.free;
        let meta = self.get_mut(alias);
        meta.place = Place::Elsewhere;
        meta.next = next;
        self.free = alias;
        buf
    }

    /// Aliases in the list of free ones, which is sound if there are not more than
    /// aliases.
    #[cfg(any(test, feature = "audit"))]
    pub(crate) fn free_aliases(&self) -> u64 {
        let free = self.walk(Queue { head: self.free, tail: NIL });
        free.take(self.reals.len() + 1).count() as u64
    }

    #[inline]
    pub(crate) fn get(&self, buf: u32) -> &BufMeta {
        &self.metas[buf as usize]
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, buf: u32) -> &mut BufMeta {
        &mut self.metas[buf as usize]
    }

    /// Reads from a record, so that it is in the cache when it is needed.
    #[inline]
    pub(crate) fn touch(&self, buf: u32) -> u32 {
        self.metas.get(buf as usize).map_or(0, |meta| meta.next)
    }

    /// Appends `buf` to `queue`.
    #[inline]
    pub(crate) fn push(&mut self, queue: &mut Queue, buf: u32) {
        self.get_mut(buf).next = NIL;
        if queue.tail == NIL {
            queue.head = buf;
        } else {
            let tail = queue.tail;
            self.get_mut(tail).next = buf;
        }
        queue.tail = buf;
    }

    /// Inserts `buf` after `prev`, or at the front when `prev` is [`NIL`].
    pub(crate) fn insert_after(&mut self, queue: &mut Queue, prev: u32, buf: u32) {
        let next = if prev == NIL { queue.head } else { self.get(prev).next };
        self.get_mut(buf).next = next;
        if prev == NIL {
            queue.head = buf;
        } else {
            self.get_mut(prev).next = buf;
        }
        if next == NIL {
            queue.tail = buf;
        }
    }

    /// Takes the first buffer out of `queue`.
    #[inline]
    pub(crate) fn pop(&mut self, queue: &mut Queue) -> Option<u32> {
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

    /// The buffers of a queue that is sound, in order.
    #[cfg(any(test, feature = "audit"))]
    pub(crate) fn walk(&self, queue: Queue) -> impl Iterator<Item = u32> {
        let known = |buf: u32| (buf != NIL).then_some(buf);
        core::iter::successors(known(queue.head), move |&buf| known(self.get(buf).next))
    }

    /// Takes the buffer after `prev` out of `queue`, or the first when `prev`
    /// is [`NIL`].
    pub(crate) fn remove_after(&mut self, queue: &mut Queue, prev: u32) -> Option<u32> {
        if prev == NIL {
            return self.pop(queue);
        }
        let buf = self.get(prev).next;
        if buf == NIL {
            return None;
        }
        let next = self.get(buf).next;
        self.get_mut(prev).next = next;
        if next == NIL {
            queue.tail = prev;
        }
        Some(buf)
    }
}

impl BufMeta {
    /// The checksum is that of the payload no more.
    pub(crate) fn forget_csum(&mut self) {
        self.csum = 0;
        self.csum_valid = false;
    }

    /// Notes the payload of a received segment.
    pub(crate) fn fill_received(&mut self, flow: u32, seq: Seq, segment: &Segment) {
        self.flow = flow;
        self.seq = seq.0;
        self.offset = segment.offset;
        self.len = segment.len;
        self.csum = segment.csum.unwrap_or(0);
        self.csum_valid = segment.csum.is_some();
        self.word = segment.time;
        self.pins = 0;
    }
}
