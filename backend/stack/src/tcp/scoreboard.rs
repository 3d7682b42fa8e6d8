//! What has become of the bytes in flight: delivered out of order, lost, sent
//! again (RFC 6675 section 4, RFC 8985 section 5). Knows nothing of congestion
//! or timers; it keeps the books that these are decided from.
//!
//! A buffer of the send queue is cut into *units* when it is first sent, one
//! for each segment, and has a bit for each unit and fate. A buffer with more
//! segments than there are bits has units of several segments. So the books
//! cost no memory beyond the buffer's own record, and no search:
//!
//! ```text
//!   SND.UNA                                rexmit_buf  rack_cursor        SND.NXT
//!     |                                         |           |               |
//!   [ acked | resent | SACKed | resent ] -> [ lost | SACKed ] -> [ sent | sent | - ] -> [ - ]
//!                \_______________/                                             tx_cursor
//!            also in `resent`, by time
//! ```
//!
//! Units are sent in order, so what was sent once is in the order of its time,
//! and loss is looked for from `rack_cursor` on, which only moves forward. What
//! was sent again is in a list of its own, in the order of that time.

use crate::bufs::{BufMeta, Bufs, NIL, Queue};
use crate::flow::FlowState;
use crate::tcp::repair::Repair;
use crate::tcp::rtt::Stamp;
use crate::tcp::seq::Seq;
use crate::wire::tcp::SackBlock;

/// Units of one buffer: the bits of a word.
const UNITS_MAX: u32 = u32::BITS;

/// What one acknowledgement delivered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delivery {
    /// Bytes that the peer was not known to have.
    pub bytes: u32,
    /// When the latest of the delivered segments that were sent only once was sent.
    pub sent_once: Option<Stamp>,
    /// Some of it was sent again.
    pub resent: bool,
}

impl BufMeta {
    /// Cuts the payload into units, none of which has been sent.
    pub(crate) fn cut_into_units(&mut self, mss: u16) {
        self.unit = mss;
        if u32::from(self.len) > UNITS_MAX * u32::from(mss) {
            let segments = u32::from(self.len).div_ceil(u32::from(mss));
            let unit = u32::from(mss) * segments.div_ceil(UNITS_MAX);
            self.unit = unit.min(u32::from(u16::MAX)) as u16;
        }
        self.sacked = 0;
        self.lost = 0;
        self.resent = 0;
    }

    /// After the payload's last byte.
    #[inline]
    pub(crate) fn end(&self) -> Seq {
        Seq(self.seq) + u32::from(self.len)
    }

    /// After the last byte of the unit that `seq` lies in.
    #[inline]
    pub(crate) fn unit_end(&self, seq: Seq) -> Seq {
        let unit = u32::from(self.unit);
        let end = (seq.since(Seq(self.seq)) / unit + 1) * unit;
        Seq(self.seq) + end.min(u32::from(self.len))
    }

    /// The bit of the unit that `seq` lies in.
    #[inline]
    fn bit(&self, seq: Seq) -> u32 {
        1 << (seq.since(Seq(self.seq)) / u32::from(self.unit)).min(UNITS_MAX - 1)
    }

    /// A bit for each unit of which something has been sent.
    fn sent(&self, snd_nxt: Seq) -> u32 {
        if !snd_nxt.after(Seq(self.seq)) {
            return 0;
        }
        let bytes = snd_nxt.since(Seq(self.seq)).min(u32::from(self.len));
        let units = bytes.div_ceil(u32::from(self.unit)).min(UNITS_MAX);
        u32::MAX >> (UNITS_MAX - units)
    }

    /// The part of unit `i` that is in flight.
    fn span(&self, i: u32, snd_una: Seq, snd_nxt: Seq) -> (Seq, Seq) {
        let unit = u32::from(self.unit);
        let start = Seq(self.seq) + i * unit;
        let end = Seq(self.seq) + ((i + 1) * unit).min(u32::from(self.len));
        (start.max(snd_una), if end.after(snd_nxt) { snd_nxt } else { end })
    }
}

/// The positions of the bits that are set, the lowest first.
fn ones(mut bits: u32) -> impl Iterator<Item = u32> {
    core::iter::from_fn(move || {
        let lowest = bits.trailing_zeros();
        bits &= bits.wrapping_sub(1);
        (lowest < u32::BITS).then_some(lowest)
    })
}

/// Marks what `ack` acknowledges in the buffer at the head of the send queue,
/// whose payload starts before it. Returns whether all of it is acknowledged.
#[inline]
pub(crate) fn acknowledge_head(
    bufs: &mut Bufs,
    flow: &mut FlowState,
    now: Stamp,
    ack: Seq,
    delivery: &mut Delivery,
) -> bool {
    let buf = flow.tx.head;
    let meta = bufs.get(buf);
    let (una, nxt) = (flow.snd_una, flow.snd_nxt);
    let whole = !meta.end().after(ack);
    if meta.sacked | meta.lost | meta.resent == 0 {
        let end = if whole { meta.end() } else { ack };
        delivery.bytes += end.since(Seq(meta.seq).max(una));
        flow.delivered(now, meta, 0, end, delivery);
    } else {
        let meta = *meta;
        let mut passed = 0;
        for i in ones(meta.sent(nxt)) {
            let (start, end) = meta.span(i, una, nxt);
            if !ack.after(start) {
                break;
            }
            if !start.before(end) {
                continue;
            }
            let (bit, until) = (1 << i, if end.after(ack) { ack } else { end });
            let bytes = until.since(start);
            if meta.sacked & bit != 0 {
                flow.sacked_bytes -= bytes;
            } else {
                delivery.bytes += bytes;
                flow.delivered(now, &meta, bit, until, delivery);
            }
            if meta.lost & bit != 0 {
                flow.lost_bytes -= bytes;
            }
            if until == end {
                passed |= bit;
            }
        }
        if !whole {
            let kept = bufs.get_mut(buf);
            kept.sacked &= !passed;
            kept.lost &= !passed;
            kept.resent &= !passed;
        }
    }
    whole
}

/// Forgets all that was sent again.
pub(crate) fn clear(bufs: &mut Bufs, repair: &mut Repair) {
    while repair.resent.head != NIL {
        unlink_resent(bufs, repair, repair.resent.head);
    }
}

/// Takes a buffer that leaves the send queue out of a repair; `next` is the one
/// after it.
pub(crate) fn forget(bufs: &mut Bufs, repair: &mut Repair, buf: u32, next: u32) {
    for cursor in [&mut repair.rexmit_buf, &mut repair.rack_cursor] {
        if *cursor == buf {
            *cursor = next;
        }
    }
    if repair.sack_hint == buf {
        repair.sack_hint = NIL;
    }
    unlink_resent(bufs, repair, buf);
}

/// Marks the units that lie in a SACK block within what is in flight.
pub(crate) fn sack(
    bufs: &mut Bufs,
    flow: &mut FlowState,
    repair: &mut Repair,
    now: Stamp,
    block: SackBlock,
    delivery: &mut Delivery,
) {
    let mut start = block.start;
    // Blocks are told again and again, and mostly grow at their end (RFC 2018
    // section 4): what was seen before need not be looked at.
    for seen in &repair.sack_seen {
        if !start.before(seen.start) && start.before(seen.end) {
            start = seen.end;
        }
    }
    if !start.before(block.end) {
        return;
    }
    let hinted = [repair.sack_hint, repair.rexmit_buf]
        .into_iter()
        .filter(|&hint| hint != NIL && !start.before(Seq(bufs.get(hint).seq)))
        .max_by_key(|&hint| Seq(bufs.get(hint).seq).since(flow.snd_una));
    let mut at = hinted.unwrap_or(flow.tx.head);
    let (una, nxt) = (flow.snd_una, flow.snd_nxt);
    while at != NIL {
        let meta = *bufs.get(at);
        if !Seq(meta.seq).before(block.end) {
            break;
        }
        let open = meta.sent(nxt) & !meta.sacked;
        if meta.end().after(start) && open != 0 {
            repair.sack_hint = at;
            for i in ones(open) {
                let (from, until) = meta.span(i, una, nxt);
                let whole = until == meta.unit_end(from);
                if from.before(start) || until.after(block.end) || !whole || !from.before(until) {
                    continue;
                }
                let (bit, bytes) = (1 << i, until.since(from));
                flow.sacked_bytes += bytes;
                delivery.bytes += bytes;
                if meta.lost & bit != 0 {
                    flow.lost_bytes -= bytes;
                }
                flow.delivered(now, &meta, bit, until, delivery);
                let marked = bufs.get_mut(at);
                marked.sacked |= bit;
                marked.lost &= !bit;
            }
        }
        at = meta.next;
    }
    let oldest = repair.sack_seen.iter().position(|s| s.start == block.start);
    let place = oldest.unwrap_or(repair.sack_seen.len() - 1);
    repair.sack_seen[..=place].rotate_right(1);
    repair.sack_seen[0] = block;
}

impl FlowState {
    /// Notes that the peer has a segment that it was not known to have.
    fn delivered(
        &mut self,
        now: Stamp,
        meta: &BufMeta,
        bit: u32,
        end: Seq,
        delivery: &mut Delivery,
    ) {
        let resent = meta.resent & bit != 0;
        let sent_at = if resent { meta.resent_at } else { meta.sent_at };
        delivery.resent |= resent;
        // The buffer knows when its last segment was sent, and of the others
        // only whether that was at the same time.
        let last = !end.before(meta.end().min(self.snd_nxt));
        let known = if resent { !meta.resent_apart() } else { last || !meta.sent_apart() };
        if !resent {
            if known && delivery.sent_once.is_none_or(|latest| latest.before(sent_at)) {
                delivery.sent_once = Some(sent_at);
            }
            // RFC 8985 section 6.2, step 3.
            if end.before(self.rack.fack) {
                self.rack.reordered = true;
            }
        }
        self.rack.fack = self.rack.fack.max(end);
        if known {
            self.rack.on_delivered(now, sent_at, end, resent, self.rtt.smallest());
        }
    }

    /// Bytes that are thought to be on their way (RFC 6675 section 2, "pipe").
    #[inline]
    pub(crate) fn pipe(&self) -> u32 {
        let outstanding = self.snd_nxt.since(self.snd_una);
        outstanding.saturating_sub(self.sacked_bytes).saturating_sub(self.lost_bytes)
    }
}

/// Marks units of a buffer as lost that are neither lost nor delivered.
pub(crate) fn mark_lost(
    bufs: &mut Bufs,
    flow: &mut FlowState,
    repair: &mut Repair,
    buf: u32,
    units: u32,
) {
    let meta = bufs.get_mut(buf);
    let units = units & !(meta.lost | meta.sacked);
    meta.lost |= units;
    let meta = *meta;
    for i in ones(units) {
        let (start, end) = meta.span(i, flow.snd_una, flow.snd_nxt);
        flow.lost_bytes += if start.before(end) { end.since(start) } else { 0 };
    }
    if units != 0
        && (repair.rexmit_buf == NIL || Seq(meta.seq).before(Seq(bufs.get(repair.rexmit_buf).seq)))
    {
        repair.rexmit_buf = buf;
    }
}

/// Marks everything in flight that was not delivered as lost. With `renege`,
/// what was SACKed counts as not delivered either.
pub(crate) fn mark_all_lost(
    bufs: &mut Bufs,
    flow: &mut FlowState,
    repair: &mut Repair,
    renege: bool,
) {
    repair.rexmit_nxt = flow.snd_una;
    if !flow.sack() || renege {
        flow.sacked_bytes = 0;
        repair.sack_seen = [SackBlock { start: flow.snd_una, end: flow.snd_una }; 3];
    }
    let mut at = flow.tx.head;
    while at != NIL && Seq(bufs.get(at).seq).before(flow.snd_nxt) {
        if renege {
            bufs.get_mut(at).sacked = 0;
        }
        unlink_resent(bufs, repair, at);
        let sent = bufs.get(at).sent(flow.snd_nxt);
        mark_lost(bufs, flow, repair, at, sent);
        at = bufs.get(at).next;
    }
}

/// Takes back all marks of loss: what was sent again was not lost, and what else
/// was is to be found anew.
pub(crate) fn unmark_lost(bufs: &mut Bufs, flow: &mut FlowState, repair: &mut Repair) {
    let mut at = repair.rexmit_buf;
    while at != NIL && flow.lost_bytes > 0 && Seq(bufs.get(at).seq).before(flow.snd_nxt) {
        let meta = bufs.get_mut(at);
        let lost = meta.lost;
        meta.lost = 0;
        let meta = *meta;
        for i in ones(lost) {
            let (start, end) = meta.span(i, flow.snd_una, flow.snd_nxt);
            flow.lost_bytes -= if start.before(end) { end.since(start) } else { 0 };
        }
        if meta.resent & lost != 0 {
            // It was taken off the list when it was marked.
            unlink_resent(bufs, repair, at);
            link_resent(bufs, repair, at);
        }
        at = meta.next;
    }
    debug_assert_eq!(flow.lost_bytes, 0);
    repair.rexmit_buf = NIL;
    repair.rack_cursor = NIL;
}

/// Marks the first unit in flight as lost; what peers without SACK leave us to
/// know (RFC 6582 section 3.2).
pub(crate) fn mark_head_lost(bufs: &mut Bufs, flow: &mut FlowState, repair: &mut Repair) {
    let head = flow.tx.head;
    if head != NIL && Seq(bufs.get(head).seq).before(flow.snd_nxt) {
        let bit = bufs.get(head).bit(flow.snd_una);
        unlink_resent(bufs, repair, head);
        mark_lost(bufs, flow, repair, head, bit);
    }
}

/// The first lost bytes that are to be sent again, as buffer, start and length,
/// none of them beyond one unit.
pub(crate) fn next_lost(bufs: &Bufs, flow: &FlowState, repair: &Repair) -> Option<(u32, Seq, u32)> {
    if flow.lost_bytes == 0 {
        return None;
    }
    let mut at = repair.rexmit_buf;
    while at != NIL {
        let meta = bufs.get(at);
        if !Seq(meta.seq).before(flow.snd_nxt) {
            return None;
        }
        for i in ones(meta.lost) {
            let (mut start, end) = meta.span(i, flow.snd_una, flow.snd_nxt);
            if repair.rexmit_nxt.after(start) && repair.rexmit_nxt.before(end) {
                start = repair.rexmit_nxt;
            }
            if start.before(end) {
                return Some((at, start, end.since(start)));
            }
        }
        at = meta.next;
    }
    None
}

/// Notes that bytes of one unit were sent again.
pub(crate) fn resent(
    bufs: &mut Bufs,
    flow: &mut FlowState,
    repair: &mut Repair,
    now: Stamp,
    buf: u32,
    seq: Seq,
    len: u32,
) {
    let (una, nxt) = (flow.snd_una, flow.snd_nxt);
    let meta = bufs.get_mut(buf);
    let bit = meta.bit(seq);
    let (start, end) = meta.span(bit.trailing_zeros(), una, nxt);
    if (seq + len).before(end) {
        repair.rexmit_nxt = seq + len;
        return;
    }
    if meta.lost & bit != 0 {
        meta.lost &= !bit;
        flow.lost_bytes -= end.since(start);
        repair.rexmit_buf = buf;
    }
    meta.set_resent_apart(meta.resent != 0 && (meta.resent_apart() || meta.resent_at != now));
    meta.resent |= bit;
    meta.resent_at = now;
    unlink_resent(bufs, repair, buf);
    link_resent(bufs, repair, buf);
}

/// When the segment at SND.UNA was sent again, if it was.
#[inline]
pub(crate) fn head_resent(bufs: &Bufs, flow: &FlowState) -> Option<Stamp> {
    let meta = (flow.tx.head != NIL).then(|| bufs.get(flow.tx.head))?;
    if meta.resent == 0 || !flow.snd_nxt.after(Seq(meta.seq)) {
        return None;
    }
    (meta.resent & meta.bit(flow.snd_una) != 0).then_some(meta.resent_at)
}

/// Fixes all books when segments of more than `mss` bytes turned out too large
/// for the path: they are lost, and will be sent in smaller pieces.
pub(crate) fn cut_again(bufs: &mut Bufs, flow: &mut FlowState, repair: &mut Repair, mss: u16) {
    repair.rexmit_nxt = flow.snd_una;
    let mut at = flow.tx.head;
    while at != NIL && Seq(bufs.get(at).seq).before(flow.snd_nxt) {
        let meta = *bufs.get(at);
        if meta.unit > mss && meta.len > mss {
            // A unit that grows yet is never delivered.
            let delivered =
                meta.sacked == meta.sent(flow.snd_nxt) && !meta.end().after(flow.snd_nxt);
            for i in ones(meta.sacked | meta.lost) {
                let (start, end) = meta.span(i, flow.snd_una, flow.snd_nxt);
                let bytes = if start.before(end) { end.since(start) } else { 0 };
                if meta.lost & (1 << i) != 0 {
                    flow.lost_bytes -= bytes;
                } else if !delivered {
                    flow.sacked_bytes -= bytes;
                }
            }
            unlink_resent(bufs, repair, at);
            let again = bufs.get_mut(at);
            again.cut_into_units(mss);
            let sent = again.sent(flow.snd_nxt);
            if delivered {
                again.sacked = sent;
            } else {
                mark_lost(bufs, flow, repair, at, sent);
                repair.sack_seen = [SackBlock { start: flow.snd_una, end: flow.snd_una }; 3];
            }
        }
        at = meta.next;
    }
}

/// The outcome of a look for losses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// What was sent before the latest delivery is delivered or lost.
    Done,
    /// Something may still be reordered; look again after so many ns.
    Again(u64),
}

/// Marks as lost what was sent so long before something that was delivered
/// that it cannot only be reordered (RFC 8985 section 6.2, step 5). `window` is
/// the reordering window, ns.
pub(crate) fn detect_losses(
    bufs: &mut Bufs,
    flow: &mut FlowState,
    repair: &mut Repair,
    now: Stamp,
    window: u64,
) -> Look {
    // Sent again: in the order of time.
    let mut at = repair.resent.head;
    let mut wait = None;
    while at != NIL {
        let meta = *bufs.get(at);
        let units = meta.resent & !(meta.sacked | meta.lost);
        let next = meta.later;
        let old = ones(units).filter(|&i| {
            let (_, end) = meta.span(i, flow.snd_una, flow.snd_nxt);
            flow.rack.is_after(meta.resent_at, end)
        });
        let old = old.fold(0, |bits, i| bits | 1 << i);
        if old == 0 && units != 0 {
            break;
        }
        if old != 0 {
            match flow.rack.patience(now, meta.resent_at, window) {
                0 => {
                    unlink_resent(bufs, repair, at);
                    // What was sent again in the same buffer and is newer goes
                    // with it: the list knows only one time for a buffer.
                    mark_lost(bufs, flow, repair, at, units);
                }
                left => {
                    wait = Some(left);
                    break;
                }
            }
        } else {
            unlink_resent(bufs, repair, at);
        }
        at = next;
    }
    // Sent once: in the order of sequence numbers, which is that of time too.
    let mut at = if repair.rack_cursor == NIL { flow.tx.head } else { repair.rack_cursor };
    'buffers: while at != NIL {
        let meta = *bufs.get(at);
        repair.rack_cursor = at;
        let sent = meta.sent(flow.snd_nxt);
        if sent == 0 {
            break;
        }
        for i in ones(sent & !(meta.sacked | meta.lost | meta.resent)) {
            let (start, end) = meta.span(i, flow.snd_una, flow.snd_nxt);
            if !start.before(end) {
                continue;
            }
            // Of a buffer whose segments went at different times the order is
            // known, and that is enough where nothing can only be reordered.
            let passed = meta.sent_apart() && end.before(flow.rack.fack);
            if !passed && !flow.rack.is_after(meta.sent_at, end) {
                break 'buffers;
            }
            let patience = match passed && window == 0 {
                true => 0,
                false => flow.rack.patience(now, meta.sent_at, window),
            };
            match patience {
                0 => mark_lost(bufs, flow, repair, at, 1 << i),
                left => {
                    wait = Some(wait.map_or(left, |w: u64| w.min(left)));
                    break 'buffers;
                }
            }
        }
        if meta.end().after(flow.snd_nxt) || meta.next == NIL {
            break;
        }
        at = meta.next;
    }
    wait.map_or(Look::Done, Look::Again)
}

/// Appends a buffer to the list of those sent again.
fn link_resent(bufs: &mut Bufs, repair: &mut Repair, buf: u32) {
    let Queue { head, tail } = repair.resent;
    let meta = bufs.get_mut(buf);
    meta.back = tail;
    meta.later = NIL;
    if tail == NIL {
        debug_assert_eq!(head, NIL);
        repair.resent.head = buf;
    } else {
        bufs.get_mut(tail).later = buf;
    }
    repair.resent.tail = buf;
}

/// Takes a buffer out of the list of those sent again, if it is in it.
fn unlink_resent(bufs: &mut Bufs, repair: &mut Repair, buf: u32) {
    let BufMeta { back: earlier, later, .. } = *bufs.get(buf);
    if earlier == NIL && repair.resent.head != buf {
        return;
    }
    if earlier == NIL {
        repair.resent.head = later;
    } else {
        bufs.get_mut(earlier).later = later;
    }
    if later == NIL {
        repair.resent.tail = earlier;
    } else {
        bufs.get_mut(later).back = earlier;
    }
    let meta = bufs.get_mut(buf);
    meta.back = NIL;
    meta.later = NIL;
}

/// What the units of a flow add up to, bytes.
#[cfg(any(test, feature = "audit"))]
pub(crate) struct Tally {
    pub sacked: u64,
    pub lost: u64,
}

/// Adds up the units of a flow, one by one.
#[cfg(any(test, feature = "audit"))]
pub(crate) fn tally(bufs: &Bufs, flow: &FlowState) -> Tally {
    let mut tally = Tally { sacked: 0, lost: 0 };
    for buf in bufs.walk(flow.tx) {
        let meta = bufs.get(buf);
        if !Seq(meta.seq).before(flow.snd_nxt) {
            break;
        }
        let bytes = |units| -> u64 {
            ones(units)
                .map(|i| meta.span(i, flow.snd_una, flow.snd_nxt))
                .map(|(start, end)| if start.before(end) { end.since(start).into() } else { 0 })
                .sum()
        };
        tally.sacked += bytes(meta.sacked);
        tally.lost += bytes(meta.lost);
    }
    tally
}
