//! Payload and FIN of acceptable segments: trimming and order (RFC 9293 section
//! 3.10.7.4, seventh and eighth). What comes too early waits in
//! [`crate::tcp::held`].

use crate::bufs::{NIL, Place};
use crate::clock::Deadline;
use crate::flow::{State, event};
use crate::memory::Memory;
use crate::stack::{Outcome, Stack};
use crate::tcp::input::Segment;
use crate::tcp::seq::Seq;
use crate::wire::tcp::flag;

/// Segments that are acknowledged at once when a flow is young, and after one
/// that came early or twice: a peer in slow start grows with each acknowledgement
/// (RFC 5681 section 3.1), and a delayed one would hold it up. A peer that has
/// lost one has a small window, too, and would take the delay for another loss.
pub(crate) const QUICK_ACKS: u8 = 16;

impl Segment {
    /// Cuts `bytes` off the front of the payload.
    pub(crate) fn trim_front(&mut self, bytes: u32) {
        self.header.seq += bytes;
        self.offset += bytes as u16;
        self.len -= bytes as u16;
        self.csum = None;
    }

    /// Cuts the payload to `len` bytes, and with it the FIN behind it.
    pub(crate) fn trim_to(&mut self, len: u32) {
        self.len = len as u16;
        self.header.flags &= !flag::FIN;
        self.csum = None;
    }

    /// After the last payload byte.
    pub(crate) fn end(&self) -> Seq {
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
        segment: &mut Segment,
    ) -> Outcome {
        let flow = &mut self.flows[index];
        if !flow.state.may_receive() {
            // After the peer's FIN there is nothing that it could still send.
            self.counters.drop_after_close += 1;
            self.ack_now(index);
            return Outcome::Consumed;
        }
        // RFC 5681 section 2, RMSS: no more than we said that we take, though a
        // wire that gathers segments may carry more.
        flow.rcv_mss = flow.rcv_mss.max(segment.len.min(self.mss));
        // Most are: what was expected, within the window, and nothing odd about it.
        let plain = segment.header.seq == flow.rcv_nxt
            && !segment.end().after(flow.rcv_adv)
            && !segment.header.has(flag::FIN)
            && !flow.fin_known()
            && flow.held.is_empty();
        if !plain && !self.trim_to_window(index, segment) {
            return Outcome::Consumed;
        }

        let mut outcome = Outcome::Consumed;
        if segment.len > 0 {
            if self.flows[index].note_ecn(segment) {
                self.ack_now(index);
            }
            outcome = if segment.header.seq == self.flows[index].rcv_nxt {
                self.receive_in_order(mem, now, index, segment)
            } else {
                self.hold(mem, index, segment)
            };
        }
        if plain {
            return outcome;
        }
        let flow = &mut self.flows[index];
        if segment.header.has(flag::FIN) && flow.fin_at().is_none() {
            flow.set_fin_at(segment.end());
            if segment.end() != flow.rcv_nxt {
                self.ack_now(index);
            }
        }
        if self.flows[index].fin_at() == Some(self.flows[index].rcv_nxt) {
            self.receive_fin(mem, now, index);
        }
        outcome
    }

    /// Cuts off what was received already and what the window does not cover.
    /// `false` if nothing is left, which is acknowledged.
    fn trim_to_window(&mut self, index: u32, segment: &mut Segment) -> bool {
        let flow = &mut self.flows[index];
        let old = flow.rcv_nxt.since(segment.header.seq);
        if segment.header.seq.before(flow.rcv_nxt) {
            let repeated = old.min(u32::from(segment.len));
            flow.note_duplicate(segment.header.seq, segment.header.seq + repeated);
            if old >= u32::from(segment.len) && !segment.header.has(flag::FIN) {
                self.counters.drop_duplicate += 1;
                self.ack_now(index);
                return false;
            }
            segment.trim_front(repeated);
            if segment.header.seq.before(flow.rcv_nxt) {
                // A FIN of long ago.
                self.counters.drop_duplicate += 1;
                self.ack_now(index);
                return false;
            }
        }
        // What the window, or a FIN that came before, does not cover.
        let limit = flow.fin_at().unwrap_or(flow.rcv_adv);
        if segment.end().after(limit) {
            if !segment.header.seq.before(limit) {
                self.counters.drop_out_of_window += 1;
                self.ack_now(index);
                return false;
            }
            let len = limit.since(segment.header.seq);
            segment.trim_to(len);
        }

        let last = self.flows[index].held.tail;
        if segment.header.has(flag::FIN) && last != NIL && self.bufs.end(last).after(segment.end())
        {
            // The peer has sent more already: it contradicts itself, and what
            // came first counts.
            segment.header.flags &= !flag::FIN;
            self.counters.drop_bad_fin += 1;
            self.ack_now(index);
        }
        true
    }

    #[inline]
    fn receive_in_order<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        index: u32,
        segment: &mut Segment,
    ) -> Outcome {
        let flow = &mut self.flows[index];
        flow.set_several_due(flow.rcv_nxt != flow.last_ack_sent);
        let full = segment.len >= flow.rcv_mss;
        let pushed = segment.header.has(flag::PSH);
        let Some(outcome) = self.take_in_order(mem, index, segment) else {
            // What the flow has it keeps; the peer tries again.
            segment.header.flags &= !flag::FIN;
            return Outcome::Consumed;
        };
        let gap = !self.flows[index].held.is_empty();
        if gap {
            self.release_held(mem, index);
        }
        self.mark_ready(index);
        let flow = &mut self.flows[index];
        // RFC 1122 section 4.2.3.2: at least every second full segment; RFC
        // 5681 section 4.2: at once when a gap closes. And at once when there
        // is news of a duplicate, which may undo a retransmission's harm.
        let unacknowledged = flow.rcv_nxt.since(flow.last_ack_sent);
        let mut at_once = gap || flow.dsack_len > 0;
        at_once |= unacknowledged >= 2 * u32::from(flow.rcv_mss);
        // A full segment that is not the end of a message has others behind it.
        if full && !pushed && flow.quick_acks > 0 {
            flow.quick_acks -= 1;
            at_once = true;
        }
        if at_once {
            self.ack_now(index);
        } else if !flow.ack_due() && !flow.delayed_ack_at.is_set() {
            flow.delayed_ack_at = Deadline::after(now, self.config.timers.delayed_ack);
        }
        outcome
    }

    /// Makes the payload at `rcv_nxt` readable; `None` if the flow may not have
    /// another buffer.
    #[inline]
    fn take_in_order<M: Memory>(
        &mut self,
        mem: &mut M,
        index: u32,
        segment: &Segment,
    ) -> Option<Outcome> {
        let tail = self.flows[index].rx.tail;
        let gathered = self.gathers(index) && self.gather(mem, tail, &segment.piece(), false);
        if !gathered {
            if self.admits(mem, index) {
                let name = self.flows.name(index).0;
                let meta = self.bufs.get_mut(segment.buf);
                meta.fill_received(name, segment.header.seq, segment);
                self.charge(index);
                self.append_readable(index, segment.buf);
                return Some(Outcome::Readable);
            }
            if !self.gather(mem, tail, &segment.piece(), true) {
                return None;
            }
        }
        self.advance_received(index, segment.len);
        Some(Outcome::Consumed)
    }

    /// Appends a buffer whose payload starts at `rcv_nxt`.
    #[inline]
    pub(crate) fn append_readable(&mut self, index: u32, buf: u32) {
        let meta = self.bufs.get_mut(buf);
        meta.place = Place::Readable;
        let len = meta.len;
        debug_assert_eq!(self.flows[index].rcv_nxt, Seq(meta.seq));
        self.bufs.push(&mut self.flows[index].rx, buf);
        self.advance_received(index, len);
    }

    /// Moves `rcv_nxt` over payload that is readable now.
    #[inline]
    pub(crate) fn advance_received(&mut self, index: u32, len: u16) {
        let flow = &mut self.flows[index];
        flow.rcv_nxt += u32::from(len);
        // They repeated the number before.
        flow.dup_acks = 0;
        if len >= flow.rcv_mss / 2 {
            flow.rcv_space = flow.rcv_space.saturating_add(2);
        }
        self.promised -= u64::from(len);
        self.counters.bytes_in += u64::from(len);
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
