//! Payload and FIN of acceptable segments: trimming, order, and the queue of
//! what came too early (RFC 9293 section 3.10.7.4, seventh and eighth).

use crate::bufs::{NIL, Place};
use crate::flow::{NEVER, State, event};
use crate::memory::Memory;
use crate::stack::{Outcome, Stack};
use crate::tcp::input::Segment;
use crate::tcp::seq::Seq;
use crate::wire::tcp::flag;

/// Buffers that a flow may always hold, so that small segments make progress
/// however small the flow's share is.
const FLOW_BUFS_MIN: u32 = 8;

impl Segment {
    /// Cuts `bytes` off the front of the payload.
    fn trim_front(&mut self, bytes: u32) {
        self.header.seq += bytes;
        self.offset += bytes as u16;
        self.len -= bytes as u16;
        self.csum = None;
    }

    /// Cuts the payload to `len` bytes, and with it the FIN behind it.
    fn trim_to(&mut self, len: u32) {
        self.len = len as u16;
        self.header.flags &= !flag::FIN;
        self.csum = None;
    }

    /// After the last payload byte.
    fn end(&self) -> Seq {
        self.header.seq + u32::from(self.len)
    }
}

impl Stack {
    /// Takes the payload and the FIN of an acceptable segment without SYN.
    pub(crate) fn receive<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        index: u32,
        mut segment: Segment,
    ) -> Outcome {
        let flow = &mut self.flows[index];
        if !flow.state.may_receive() {
            // After the peer's FIN there is nothing that it could still send.
            self.counters.drop_after_close += 1;
            self.ack_now(index);
            return Outcome::Consumed;
        }
        flow.rcv_mss = flow.rcv_mss.max(segment.len);
        let old = flow.rcv_nxt.since(segment.header.seq);
        if segment.header.seq.before(flow.rcv_nxt) {
            if old >= u32::from(segment.len) && !segment.header.has(flag::FIN) {
                self.counters.drop_duplicate += 1;
                self.ack_now(index);
                return Outcome::Consumed;
            }
            segment.trim_front(old.min(u32::from(segment.len)));
            if segment.header.seq.before(flow.rcv_nxt) {
                // A FIN of long ago.
                self.counters.drop_duplicate += 1;
                self.ack_now(index);
                return Outcome::Consumed;
            }
        }
        // What the window, or a FIN that came before, does not cover.
        let limit = flow.fin_at.unwrap_or(flow.rcv_adv);
        if segment.end().after(limit) {
            if !segment.header.seq.before(limit) {
                self.counters.drop_out_of_window += 1;
                self.ack_now(index);
                return Outcome::Consumed;
            }
            let len = limit.since(segment.header.seq);
            segment.trim_to(len);
        }

        let mut outcome = Outcome::Consumed;
        if segment.len > 0 {
            // Without a free buffer the port could receive nothing more, not
            // even the acknowledgements that free buffers.
            if mem.free() == 0 {
                self.counters.drop_pool_empty += 1;
                return Outcome::Consumed;
            }
            if self.flows[index].rx_bufs >= (2 * self.share()).max(FLOW_BUFS_MIN) {
                self.counters.drop_flow_share += 1;
                self.ack_now(index);
                return Outcome::Consumed;
            }
            outcome = if segment.header.seq == self.flows[index].rcv_nxt {
                self.receive_in_order(mem, now, index, &segment);
                Outcome::Readable
            } else {
                self.hold(mem, index, &mut segment)
            };
        }
        let flow = &mut self.flows[index];
        if segment.header.has(flag::FIN) && flow.fin_at.is_none() {
            flow.fin_at = Some(segment.end());
            if segment.end() != flow.rcv_nxt {
                self.ack_now(index);
            }
        }
        if self.flows[index].fin_at == Some(self.flows[index].rcv_nxt) {
            self.receive_fin(mem, now, index);
        }
        outcome
    }

    fn receive_in_order<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        index: u32,
        segment: &Segment,
    ) {
        let name = self.flows.name(index).0;
        let meta = self.bufs.get_mut(segment.buf);
        meta.fill_received(name, segment.header.seq, segment);
        let flow = &mut self.flows[index];
        flow.rx_bufs += 1;
        self.append_readable(index, segment.buf);
        let gap = self.flows[index].held_len > 0;
        if gap {
            self.release_held(mem, index);
        }
        self.mark_ready(index);
        let flow = &mut self.flows[index];
        // RFC 1122 section 4.2.3.2: at least every second full segment; RFC
        // 5681 section 4.2: at once when a gap closes.
        let unacknowledged = flow.rcv_nxt.since(flow.last_ack_sent);
        if gap || unacknowledged >= 2 * u32::from(flow.rcv_mss) {
            self.ack_now(index);
        } else if !flow.ack_due && flow.delayed_ack_at == NEVER {
            flow.delayed_ack_at = now.saturating_add(self.config.timers.delayed_ack);
        }
    }

    /// Appends a buffer whose payload starts at `rcv_nxt`.
    fn append_readable(&mut self, index: u32, buf: u32) {
        let meta = self.bufs.get_mut(buf);
        meta.place = Place::Readable;
        let len = u32::from(meta.len);
        let flow = &mut self.flows[index];
        debug_assert_eq!(flow.rcv_nxt, Seq(meta.seq));
        self.bufs.push(&mut flow.rx, buf);
        flow.rcv_nxt += len;
        self.promised -= u64::from(len);
        self.counters.bytes_in += u64::from(len);
    }

    /// Moves what is in order now from held to readable.
    fn release_held<M: Memory>(&mut self, mem: &mut M, index: u32) {
        loop {
            let flow = &mut self.flows[index];
            let buf = flow.held.head;
            if buf == NIL || Seq(self.bufs.get(buf).seq).after(flow.rcv_nxt) {
                return;
            }
            self.bufs.pop(&mut flow.held);
            flow.held_len -= 1;
            let meta = self.bufs.get_mut(buf);
            let old = flow.rcv_nxt.since(Seq(meta.seq));
            if old >= u32::from(meta.len) {
                self.drop_received(mem, index, buf);
                continue;
            }
            if old > 0 {
                meta.seq = flow.rcv_nxt.0;
                meta.offset += old as u16;
                meta.len -= old as u16;
                meta.csum_valid = false;
            }
            self.append_readable(index, buf);
        }
    }

    /// Puts an early segment into the held queue, sorted and without overlap:
    /// what is held already stays, unless the new segment covers all of it.
    fn hold<M: Memory>(&mut self, mem: &mut M, index: u32, segment: &mut Segment) -> Outcome {
        // RFC 5681 section 4.2: a duplicate acknowledgement at once.
        self.ack_now(index);
        let flow = &self.flows[index];
        let mut queue = flow.held;
        let mut prev = NIL;
        // Segments mostly arrive after all that is held; otherwise the walk is
        // as long as the queue, which is limited.
        if queue.tail != NIL && !Seq(self.bufs.get(queue.tail).seq).after(segment.header.seq) {
            prev = queue.tail;
        } else {
            let mut at = queue.head;
            while at != NIL && !Seq(self.bufs.get(at).seq).after(segment.header.seq) {
                prev = at;
                at = self.bufs.get(at).next;
            }
        }
        if prev != NIL {
            let meta = self.bufs.get(prev);
            let prev_end = Seq(meta.seq) + u32::from(meta.len);
            if !segment.end().after(prev_end) {
                self.counters.drop_duplicate += 1;
                return Outcome::Consumed;
            }
            if prev_end.after(segment.header.seq) {
                segment.trim_front(prev_end.since(segment.header.seq));
            }
        }
        let mut held_len = flow.held_len;
        loop {
            let next = if prev == NIL { queue.head } else { self.bufs.get(prev).next };
            if next == NIL {
                break;
            }
            let meta = self.bufs.get(next);
            let (next_seq, next_end) = (Seq(meta.seq), Seq(meta.seq) + u32::from(meta.len));
            if !segment.end().after(next_seq) {
                break;
            }
            if next_end.after(segment.end()) {
                segment.trim_to(next_seq.since(segment.header.seq));
                break;
            }
            self.bufs.remove_after(&mut queue, prev);
            held_len -= 1;
            self.drop_received(mem, index, next);
        }
        let outcome = if segment.len == 0 {
            self.counters.drop_duplicate += 1;
            Outcome::Consumed
        } else if held_len >= self.config.held_max {
            self.counters.drop_held_full += 1;
            // Its FIN would be taken for one whose payload is here.
            segment.header.flags &= !flag::FIN;
            Outcome::Consumed
        } else {
            let name = self.flows.name(index).0;
            let meta = self.bufs.get_mut(segment.buf);
            meta.fill_received(name, segment.header.seq, segment);
            meta.place = Place::Held;
            self.bufs.insert_after(&mut queue, prev, segment.buf);
            held_len += 1;
            self.flows[index].rx_bufs += 1;
            self.counters.held += 1;
            Outcome::Held
        };
        let flow = &mut self.flows[index];
        flow.held = queue;
        flow.held_len = held_len;
        outcome
    }

    /// Returns a buffer that a flow had held to the pool.
    fn drop_received<M: Memory>(&mut self, mem: &mut M, index: u32, buf: u32) {
        self.flows[index].rx_bufs -= 1;
        self.bufs.get_mut(buf).place = Place::Elsewhere;
        self.counters.drop_duplicate += 1;
        mem.give(buf);
    }

    /// The peer sends no more, and all that it sent is here.
    fn receive_fin<M: Memory>(&mut self, mem: &mut M, now: u64, index: u32) {
        self.drop_held(mem, index);
        // The window means nothing any more; what it promised is free.
        self.withdraw_promise(index);
        let flow = &mut self.flows[index];
        flow.rcv_nxt += 1;
        flow.rcv_adv = flow.rcv_adv.max(flow.rcv_nxt);
        flow.events |= event::FIN;
        match flow.state {
            State::Established => flow.enter(State::CloseWait),
            // Our FIN is not acknowledged yet, or this segment did it and the
            // state is FIN-WAIT-2 already.
            State::FinWait1 => flow.enter(State::Closing),
            State::FinWait2 => self.enter_time_wait(mem, now, index),
            _ => {}
        }
        self.ack_now(index);
        self.mark_ready(index);
    }
}
