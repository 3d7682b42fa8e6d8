//! Reassembly of fragments (RFC 791 section 3.2, RFC 8200 section 4.5), within
//! limits.
//!
//! An honest peer's TCP sends no fragments: its segments fit our MSS, and most
//! stacks discover the path's MTU. But a tunnel may cut datagrams in two, and
//! a peer behind one should be served. So there is a little room for it: a few
//! datagrams at a time, each no longer than fits one buffer and in a few parts,
//! for a short time, each sender having a share only. A flood of fragments
//! displaces other fragments and nothing else.
//!
//! Parts are copied to their places in a buffer from the pool, so that the
//! whole then goes the way of any datagram. Parts that overlap spoil it
//! (RFC 5722 section 4); a part that comes twice does not.

use crate::bufs::{NIL, Place};
use crate::checksum;
use crate::flow::Local;
use crate::frame::{RxCsum, RxFrame};
use crate::input::Datagram;
use crate::memory::Memory;
use crate::stack::{Outcome, Stack};
use crate::wire::ip::{Fragment, Octets, ecn};
use crate::wire::{HEADER_COPY, icmp, icmpv6, ipv6};

/// Datagrams of which parts wait.
const DATAGRAMS_MAX: usize = 16;
/// Of those, datagrams of one sender.
const PER_SENDER_MAX: usize = 4;
/// Parts of one datagram.
const PARTS_MAX: usize = 8;
/// Where a datagram's payload starts in its buffer: behind room for any header
/// that the private copy holds.
const PAYLOAD_AT: usize = HEADER_COPY;
/// Buffers that must be left in the pool when one is taken for a datagram.
const POOL_RESERVE: u32 = 64;

/// A datagram of which parts wait.
#[derive(Clone, Copy, Debug)]
struct Partial {
    /// Where its parts are put together; [`NIL`] when there is none.
    buf: u32,
    remote: Octets,
    local: Local,
    id: u32,
    /// IPv4 tells datagrams apart by this as well; with IPv6 it is that of the
    /// first part.
    protocol: u8,
    /// When its first part came.
    since: u64,
    /// Where the parts that are there start and end.
    parts: [(u16, u16); PARTS_MAX],
    count: usize,
    /// Bytes of the payload that are there, and of all of it, once known.
    have: usize,
    total: Option<usize>,
    /// Bytes of the first part's header, once it is there.
    header_len: usize,
    /// Bytes of the first part's payload.
    first_len: usize,
    ecn: u8,
    from: [u8; 6],
}

const EMPTY: Partial = Partial {
    buf: NIL,
    remote: [0; 16],
    local: Local::V4,
    id: 0,
    protocol: 0,
    since: 0,
    parts: [(0, 0); PARTS_MAX],
    count: 0,
    have: 0,
    total: None,
    header_len: 0,
    first_len: 0,
    ecn: 0,
    from: [0; 6],
};

/// What became of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    /// It has a place of its own.
    New,
    /// It is there already.
    Again,
    /// It overlaps others or contradicts them, or is one too many.
    Wrong,
}

impl Partial {
    /// Finds out whether a part from `start` to `end` fits the others, and if
    /// so notes it.
    fn fit(&mut self, start: usize, end: usize, more: bool) -> Fit {
        let parts = &self.parts[..self.count];
        let same = parts.iter().any(|&(s, e)| (usize::from(s), usize::from(e)) == (start, end));
        if same {
            return Fit::Again;
        }
        let overlaps = parts.iter().any(|&(s, e)| start < usize::from(e) && usize::from(s) < end);
        let last = parts.iter().map(|&(_, e)| usize::from(e)).max().unwrap_or(0);
        let beyond = self.total.is_some_and(|total| end > total || !more);
        let cut = !more && last > end;
        if overlaps || beyond || cut || self.count == PARTS_MAX {
            return Fit::Wrong;
        }
        self.parts[self.count] = (start as u16, end as u16);
        self.count += 1;
        self.have += end - start;
        if !more {
            self.total = Some(end);
        }
        Fit::New
    }

    fn is_whole(&self) -> bool {
        self.total == Some(self.have)
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Reassembly {
    partials: [Partial; DATAGRAMS_MAX],
}

impl Reassembly {
    pub(crate) const fn new() -> Reassembly {
        Reassembly { partials: [EMPTY; DATAGRAMS_MAX] }
    }

    /// When the first of them has waited for longer than `patience`, if ever.
    pub(crate) fn deadline(&self, patience: u64) -> Option<u64> {
        let waiting = self.partials.iter().filter(|partial| partial.buf != NIL);
        waiting.map(|partial| partial.since.saturating_add(patience)).min()
    }

    /// The place of the oldest for which `of` holds.
    fn oldest(&self, of: impl Fn(&Partial) -> bool) -> Option<usize> {
        let waiting = self.partials.iter().enumerate();
        let waiting = waiting.filter(|(_, partial)| partial.buf != NIL && of(partial));
        waiting.min_by_key(|(_, partial)| partial.since).map(|(place, _)| place)
    }

    #[cfg(any(test, feature = "audit"))]
    /// Whether parts are put together in this buffer.
    pub(crate) fn has(&self, buf: u32) -> bool {
        self.partials.iter().any(|partial| partial.buf == buf)
    }
}

impl Stack {
    /// Takes in a part of a datagram, and the whole when it was the last that
    /// was missing. `header` is all that precedes the part's payload.
    #[expect(clippy::too_many_arguments, reason = "a frame at its various layers")]
    pub(crate) fn reassemble<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        frame: &RxFrame,
        datagram: &Datagram,
        header: &[u8],
        protocol: u8,
        fragment: Fragment,
    ) -> Outcome {
        self.counters.fragments_in += 1;
        let len = datagram.len - header.len();
        let (start, end) = (fragment.offset, fragment.offset + len);
        let room = mem.buffer_size().saturating_sub(PAYLOAD_AT);
        if len == 0 || end > room || (fragment.more && !len.is_multiple_of(8)) {
            self.counters.drop_fragment += 1;
            return Outcome::Consumed;
        }
        let Some(place) = self.partial(mem, now, datagram, protocol, fragment.id) else {
            self.counters.drop_fragment += 1;
            return Outcome::Consumed;
        };
        let partial = &mut self.reassembly.partials[place];
        match partial.fit(start, end, fragment.more) {
            Fit::New => {}
            Fit::Again => return Outcome::Consumed,
            Fit::Wrong => {
                self.counters.drop_fragment += 1;
                self.give_up_partial(mem, place);
                return Outcome::Consumed;
            }
        }
        // RFC 3168 section 5.3: congestion that one part met, the whole has met.
        if start == 0 || datagram.ecn == ecn::CE {
            partial.ecn = if partial.ecn == ecn::CE { ecn::CE } else { datagram.ecn };
        }
        let buf = partial.buf;
        if start == 0 {
            partial.header_len = header.len();
            partial.first_len = len;
            partial.protocol = protocol;
            partial.from = datagram.from;
            mem.write(buf, PAYLOAD_AT - header.len(), header);
        }
        let whole = partial.is_whole();
        mem.copy(frame.buf, datagram.start + header.len(), buf, PAYLOAD_AT + start, len);
        self.counters.bytes_copied += len as u64;
        if whole {
            self.reassembled(mem, now, frame, place);
        } else {
            self.arm_host_timer();
        }
        Outcome::Consumed
    }

    /// The place of the datagram that a part belongs to. A new one takes the
    /// oldest's, of the same sender if that has its share already.
    fn partial<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        datagram: &Datagram,
        protocol: u8,
        id: u32,
    ) -> Option<usize> {
        let Datagram { local, remote, .. } = *datagram;
        let partials = &self.reassembly.partials;
        let same = |p: &Partial| {
            p.buf != NIL
                && p.id == id
                && p.remote == remote
                && p.local == local
                && (local.is_v6() || p.protocol == protocol)
        };
        if let Some(place) = partials.iter().position(same) {
            return Some(place);
        }
        let shares = partials.iter().filter(|p| p.buf != NIL && p.remote == remote).count();
        let place = if shares >= PER_SENDER_MAX {
            self.reassembly.oldest(|p| p.remote == remote)
        } else {
            let free = partials.iter().position(|p| p.buf == NIL);
            free.or_else(|| self.reassembly.oldest(|_| true))
        }?;
        if self.reassembly.partials[place].buf != NIL {
            self.counters.drop_fragment += 1;
            self.give_up_partial(mem, place);
        }
        if mem.free() <= POOL_RESERVE {
            return None;
        }
        let buf = mem.take()?;
        self.bufs.get_mut(buf).place = Place::Reassembling;
        self.reassembly.partials[place] =
            Partial { buf, remote, local, id, protocol, since: now, ..EMPTY };
        Some(place)
    }

    fn give_up_partial<M: Memory>(&mut self, mem: &mut M, place: usize) {
        let buf = core::mem::replace(&mut self.reassembly.partials[place], EMPTY).buf;
        self.bufs.get_mut(buf).place = Place::Elsewhere;
        mem.give(buf);
    }

    /// How the datagram of a partial lies in its buffer, `len` bytes of payload
    /// behind the first part's header.
    fn partial_datagram(&self, partial: &Partial, len: usize) -> Datagram {
        Datagram {
            from: partial.from,
            local: partial.local,
            remote: partial.remote,
            sum: checksum::add(
                checksum::address(&partial.remote),
                self.addresses.sum(partial.local),
            ),
            ecn: partial.ecn,
            start: PAYLOAD_AT - partial.header_len,
            len: partial.header_len + len,
        }
    }

    /// A datagram is whole.
    fn reassembled<M: Memory>(&mut self, mem: &mut M, now: u64, last: &RxFrame, place: usize) {
        let partial = core::mem::replace(&mut self.reassembly.partials[place], EMPTY);
        let buf = partial.buf;
        self.counters.reassembled += 1;
        self.bufs.get_mut(buf).place = Place::Elsewhere;
        let mut datagram = self.partial_datagram(&partial, partial.have);
        let mut copy = [0; HEADER_COPY];
        let inner = &mut copy[..partial.have.min(HEADER_COPY)];
        mem.read(buf, PAYLOAD_AT, inner);
        let mut inner = &*inner;
        let mut protocol = partial.protocol;
        if partial.local.is_v6() {
            // Options for the destination may be in the part that was cut. No
            // place in the datagram is named to the sender: it has moved.
            let Ok(upper) = ipv6::extensions(inner, protocol, 0, 0) else {
                self.counters.drop_extensions += 1;
                mem.give(buf);
                return;
            };
            if upper.fragment.is_some() {
                self.counters.drop_fragment += 1;
                mem.give(buf);
                return;
            }
            protocol = upper.protocol;
            inner = &inner[upper.offset..];
            datagram.start += upper.offset;
            datagram.len -= upper.offset;
        }
        let frame = RxFrame { buf, csum: RxCsum::Unknown, ..*last };
        let header_len = partial.header_len;
        let outcome = self.datagram_input(mem, now, &frame, &datagram, protocol, header_len, inner);
        if matches!(outcome, Outcome::Consumed | Outcome::Foreign) {
            mem.give(buf);
        }
    }

    /// Gives up what has waited for too long. If the first part of it is there
    /// to be quoted, its sender is told (RFC 792, RFC 8200 section 4.5).
    pub(crate) fn reassembly_timer<M: Memory>(&mut self, mem: &mut M, now: u64) {
        let patience = self.config.timers.reassembly;
        while let Some(place) = self.reassembly.oldest(|p| p.since.saturating_add(patience) <= now)
        {
            self.counters.drop_fragment += 1;
            let partial = core::mem::replace(&mut self.reassembly.partials[place], EMPTY);
            let buf = partial.buf;
            self.bufs.get_mut(buf).place = Place::Elsewhere;
            let kind = if partial.local.is_v6() {
                (partial.protocol != ipv6::next::ICMPV6)
                    .then_some([icmpv6::TIME_EXCEEDED, icmpv6::IN_REASSEMBLY])
            } else {
                (partial.protocol != crate::wire::ipv4::ICMP)
                    .then_some([icmp::TIME_EXCEEDED, icmp::IN_REASSEMBLY])
            };
            let outcome = match kind {
                Some(kind) if partial.header_len > 0 => {
                    let datagram = self.partial_datagram(&partial, partial.first_len);
                    self.refuse(mem, now, buf, &datagram, kind, 0)
                }
                _ => Outcome::Consumed,
            };
            if outcome != Outcome::Held {
                mem.give(buf);
            }
        }
    }
}
