//! Payload that came too early: one queue for each flow, sorted and without
//! overlap, and what acknowledgements tell the peer of it (RFC 2018, RFC 2883).
//!
//! Held buffers that touch form a *block*. A block's first buffer knows its
//! last and the other way round, so that the queue is walked block by block:
//!
//! ```text
//!            .---far--->.            .-far->.
//!   head -> [ 1 ] [ 2 ] [ 3 ] ----> [ 7 ] [ 8 ] ----> [ 11 ] <- tail
//!            '<--far----'            '<-far-'         far is itself
//! ```
//!
//! The blocks of a flow are limited, and so is the work that a segment makes,
//! however many segments are held: thousands may be, behind one hole of a large
//! window. What is held may be thrown away before it is in order (RFC 2018
//! section 8), which only costs the peer another transmission.

use crate::bufs::{Bufs, NIL, Place};
use crate::flow::{FlowState, Links};
use crate::memory::Memory;
use crate::stack::{Outcome, Stack};
use crate::tcp::charge::Piece;
use crate::tcp::input::Segment;
use crate::tcp::receive::QUICK_ACKS;
use crate::tcp::seq::Seq;
use crate::wire::tcp::{SACK_BLOCKS_MAX, SackBlock, SackBlocks, flag};

/// Blocks of which a flow remembers in what order they changed: as many as fit
/// into an option.
pub(crate) const RECENT: usize = SACK_BLOCKS_MAX;

/// Duplicate acknowledgements that may be due at once: what arrives in one turn
/// is answered in one turn.
const DUP_ACKS_MAX: u8 = 64;

impl Bufs {
    /// After the last byte of a received buffer's payload.
    #[inline]
    pub(crate) fn end(&self, buf: u32) -> Seq {
        let meta = self.get(buf);
        Seq(meta.seq) + u32::from(meta.len)
    }

    /// The payload of a received buffer.
    fn piece(&self, buf: u32) -> Piece {
        let meta = self.get(buf);
        let csum = meta.csum_valid.then_some(meta.csum);
        Piece { buf, offset: meta.offset, len: meta.len, csum }
    }

    /// The bytes of the block whose first buffer is `first`.
    #[inline]
    fn block(&self, first: u32) -> SackBlock {
        let meta = self.get(first);
        SackBlock { start: Seq(meta.seq), end: self.end(meta.back) }
    }

    /// The first buffer of the block after the one that starts with `first`.
    #[inline]
    fn next_block(&self, first: u32) -> u32 {
        self.get(self.get(first).back).next
    }

    /// Makes `first` and `last` the ends of a block.
    #[inline]
    fn make_block(&mut self, first: u32, last: u32) {
        self.get_mut(first).back = last;
        self.get_mut(last).back = first;
    }
}

impl SackBlock {
    #[inline]
    fn contains(&self, seq: Seq) -> bool {
        seq.since(self.start) < self.end.since(self.start)
    }
}

impl FlowState {
    /// Notes that `block` is the one that changed last.
    fn note_changed(&mut self, block: &SackBlock) {
        let older = self.held_recent;
        self.held_recent = [block.start; RECENT];
        let older = older.iter().filter(|&&seq| !block.contains(seq));
        for (place, seq) in self.held_recent[1..].iter_mut().zip(older) {
            *place = *seq;
        }
    }

    /// Notes that bytes arrived once more; the next acknowledgement tells of
    /// the first such since the one before it (RFC 2883 section 4).
    pub(crate) fn note_duplicate(&mut self, start: Seq, end: Seq) {
        self.quick_acks = QUICK_ACKS;
        if self.sack() && self.dsack_len == 0 {
            self.dsack = start;
            self.dsack_len = end.since(start).min(u32::from(u16::MAX)) as u16;
        }
    }

    /// Whether there is anything that SACK blocks could tell of.
    #[inline]
    pub(crate) fn tells_blocks(&self) -> bool {
        self.held_blocks > 0 || self.dsack_len > 0
    }

    /// SACK blocks that a segment sent now carries.
    #[inline]
    fn sack_count(&self) -> usize {
        if !self.tells_blocks() || !self.sack() {
            return 0;
        }
        // RFC 2018 section 3: 40 bytes of options hold four, or three next to
        // timestamps.
        let room = SACK_BLOCKS_MAX - usize::from(self.timestamps());
        (usize::from(self.held_blocks) + usize::from(self.dsack_len > 0)).min(room)
    }

    /// Bytes that SACK takes from the payload of a segment sent now.
    #[inline]
    pub(crate) fn sack_len(&self) -> u16 {
        match self.sack_count() {
            0 => 0,
            count => 4 + 8 * count as u16,
        }
    }
}

impl Stack {
    /// The blocks of a segment that is about to be written: a duplicate first,
    /// then what changed last, and then what was told before (RFC 2018 section
    /// 4, RFC 2883 section 4).
    #[inline]
    pub(crate) fn sack_blocks(&self, index: u32) -> SackBlocks {
        let flow = &self.flows[index];
        let mut blocks = SackBlocks::default();
        let count = flow.sack_count();
        if count == 0 {
            return blocks;
        }
        if flow.dsack_len > 0 {
            let end = flow.dsack + u32::from(flow.dsack_len);
            blocks.push(SackBlock { start: flow.dsack, end });
        }
        let mut recent = [None; RECENT];
        let mut others = SackBlocks::default();
        let mut at = flow.held.head;
        while at != NIL {
            let block = self.bufs.block(at);
            match flow.held_recent.iter().position(|&seq| block.contains(seq)) {
                Some(rank) => recent[rank] = Some(block),
                None => others.push(block),
            }
            at = self.bufs.next_block(at);
        }
        recent.into_iter().flatten().chain(others.iter().copied()).for_each(|b| blocks.push(b));
        blocks.truncate(count);
        blocks
    }

    /// Has an early segment acknowledged at once (RFC 5681 section 4.2). A peer
    /// without SACK counts duplicate acknowledgements, so it gets one for each
    /// segment.
    fn acknowledge_early(&mut self, index: u32) {
        let flow = &mut self.flows[index];
        flow.quick_acks = QUICK_ACKS;
        if flow.ack_due() && !flow.sack() {
            flow.dup_acks = (flow.dup_acks + 1).min(DUP_ACKS_MAX);
        }
        self.ack_now(index);
    }

    /// Puts an early segment into the held queue. What is held already stays,
    /// unless the segment covers all of a block.
    pub(crate) fn hold<M: Memory>(
        &mut self,
        mem: &mut M,
        index: u32,
        segment: &mut Segment,
    ) -> Outcome {
        self.acknowledge_early(index);
        let (before, mut after) = self.hole(index, segment.header.seq);
        if before != NIL {
            let end = self.bufs.end(before);
            if segment.header.seq.before(end) {
                self.flows[index].note_duplicate(segment.header.seq, end.min(segment.end()));
            }
            if !segment.end().after(end) {
                let block = self.bufs.block(self.bufs.get(before).back);
                self.flows[index].note_changed(&block);
                self.counters.drop_duplicate += 1;
                return Outcome::Consumed;
            }
            if end.after(segment.header.seq) {
                segment.trim_front(end.since(segment.header.seq));
            }
        }
        while after != NIL {
            let block = self.bufs.block(after);
            if !segment.end().after(block.start) {
                break;
            }
            self.flows[index].note_duplicate(block.start, block.end.min(segment.end()));
            if block.end.after(segment.end()) {
                segment.trim_to(block.start.since(segment.header.seq));
                break;
            }
            after = self.drop_block(mem, index, before);
        }
        let extends = before != NIL && self.bufs.end(before) == segment.header.seq;
        let reaches = after != NIL && Seq(self.bufs.get(after).seq) == segment.end();
        let blocks = self.flows[index].held_blocks;
        if !extends && !reaches && blocks >= self.config.held_blocks_max {
            self.counters.drop_held_full += 1;
            // Its FIN would be taken for one whose payload is here.
            segment.header.flags &= !flag::FIN;
            return Outcome::Consumed;
        }
        // Small payload goes behind what it continues, or takes small payload
        // that continues it into its own buffer.
        let mut last = if reaches { self.bufs.get(after).back } else { NIL };
        let small = self.gathers(index);
        let gathered = extends && small && self.gather(mem, before, &segment.piece(), false);
        if !gathered && !self.admits_early(mem, index) {
            segment.header.flags &= !flag::FIN;
            return Outcome::Consumed;
        }
        let mut first = if extends { self.bufs.get(before).back } else { NIL };
        if !gathered {
            let (name, buf) = (self.flows.name(index).0, segment.buf);
            let meta = self.bufs.get_mut(buf);
            meta.fill_received(name, segment.header.seq, segment);
            meta.place = Place::Held;
            self.charge(index);
            if reaches && small && self.gather(mem, buf, &self.bufs.piece(after), false) {
                self.bufs.remove_after(&mut self.flows[index].held, before);
                self.uncharge(mem, index, after);
                if last == after {
                    last = buf;
                }
            }
            self.bufs.insert_after(&mut self.flows[index].held, before, buf);
            first = if first == NIL { buf } else { first };
            last = if last == NIL { buf } else { last };
        } else if last == NIL {
            last = before;
        }
        self.bufs.make_block(first, last);
        self.list_holder(index);
        let flow = &mut self.flows[index];
        flow.held_blocks = blocks + 1 - u8::from(extends) - u8::from(reaches);
        flow.note_changed(&self.bufs.block(first));
        self.counters.held += 1;
        if gathered { Outcome::Consumed } else { Outcome::Held }
    }

    /// Where an early segment that starts at `seq` belongs: behind the last
    /// buffer of a block that starts no later, and before the first of one that
    /// does; either may be [`NIL`].
    fn hole(&self, index: u32, seq: Seq) -> (u32, u32) {
        let held = self.flows[index].held;
        let starts_by = |first: u32| !Seq(self.bufs.get(first).seq).after(seq);
        // Most segments come after all that is held.
        if held.tail != NIL && starts_by(self.bufs.get(held.tail).back) {
            return (held.tail, NIL);
        }
        let (mut before, mut after) = (NIL, held.head);
        while after != NIL && starts_by(after) {
            before = self.bufs.get(after).back;
            after = self.bufs.get(before).next;
        }
        (before, after)
    }

    /// Returns the block after the buffer `before`, or the first one, to the
    /// pool, and gives the first buffer of the block after that.
    fn drop_block<M: Memory>(&mut self, mem: &mut M, index: u32, before: u32) -> u32 {
        let flow = &mut self.flows[index];
        let first = if before == NIL { flow.held.head } else { self.bufs.get(before).next };
        let last = self.bufs.get(first).back;
        flow.held_blocks -= 1;
        while let Some(buf) = self.bufs.remove_after(&mut self.flows[index].held, before) {
            self.drop_received(mem, index, buf);
            if buf == last {
                break;
            }
        }
        if self.flows[index].held.is_empty() {
            self.flows.remove(&mut self.holders, Links::Age, index);
        }
        self.bufs.get(last).next
    }

    /// Moves what is in order now from held to readable.
    pub(crate) fn release_held<M: Memory>(&mut self, mem: &mut M, index: u32) {
        loop {
            let flow = &mut self.flows[index];
            let first = flow.held.head;
            if first == NIL {
                self.flows.remove(&mut self.holders, Links::Age, index);
                return;
            }
            if Seq(self.bufs.get(first).seq).after(flow.rcv_nxt) {
                return;
            }
            let block = self.bufs.block(first);
            if block.start.before(flow.rcv_nxt) {
                flow.note_duplicate(block.start, block.end.min(flow.rcv_nxt));
            }
            flow.held_blocks -= 1;
            let last = self.bufs.get(first).back;
            while let Some(buf) = self.bufs.pop(&mut self.flows[index].held) {
                self.release_one(mem, index, buf);
                if buf == last {
                    break;
                }
            }
        }
    }

    /// Makes a buffer readable that was held and starts at `rcv_nxt` or before.
    fn release_one<M: Memory>(&mut self, mem: &mut M, index: u32, buf: u32) {
        let flow = &self.flows[index];
        let meta = self.bufs.get_mut(buf);
        let old = flow.rcv_nxt.since(Seq(meta.seq));
        if old >= u32::from(meta.len) {
            self.drop_received(mem, index, buf);
            return;
        }
        if old > 0 {
            meta.seq = flow.rcv_nxt.0;
            meta.offset += old as u16;
            meta.len -= old as u16;
            meta.forget_csum();
        }
        let (piece, tail) = (self.bufs.piece(buf), flow.rx.tail);
        if self.gathers(index) && self.gather(mem, tail, &piece, false) {
            self.uncharge(mem, index, buf);
            self.advance_received(index, piece.len);
        } else {
            self.append_readable(index, buf);
        }
    }

    /// Returns all held buffers to the pool.
    pub(crate) fn drop_held<M: Memory>(&mut self, mem: &mut M, index: u32) {
        if self.flows[index].held.is_empty() {
            return;
        }
        self.flows.remove(&mut self.holders, Links::Age, index);
        self.flows[index].held_blocks = 0;
        while let Some(buf) = self.bufs.pop(&mut self.flows[index].held) {
            self.uncharge(mem, index, buf);
        }
    }

    /// Returns a buffer whose payload came twice to the pool.
    fn drop_received<M: Memory>(&mut self, mem: &mut M, index: u32, buf: u32) {
        self.counters.drop_duplicate += 1;
        self.uncharge(mem, index, buf);
    }
}
