//! What an acknowledgement does: it frees buffers, moves the windows, and tells
//! of loss (RFC 9293 section 3.10.7.4, fifth; RFC 5681; RFC 6582).

use paste_abi::Reason;

use crate::bufs::{NIL, Queue};
use crate::flow::{Links, NEVER, State, event};
use crate::memory::Memory;
use crate::stack::Stack;
use crate::tcp::input::Segment;
use crate::tcp::seq::Seq;
use crate::wire::tcp::flag;

/// RFC 5681 section 3.2: duplicate acknowledgements that mean a loss.
const DUPACKS: u32 = 3;

impl Stack {
    /// Processes the acknowledgement of an acceptable segment. `false` when the
    /// flow ended with it.
    pub(crate) fn ack_input<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        index: u32,
        segment: &Segment,
    ) -> bool {
        let header = &segment.header;
        let (ack, seq) = (header.ack, header.seq);
        let window = u32::from(header.window) << self.flows[index].snd_scale;
        let flow = &mut self.flows[index];
        if ack.after(flow.snd_una) {
            self.new_ack(mem, now, index, segment);
        } else if ack == flow.snd_una
            && segment.len == 0
            && !header.has(flag::FIN)
            && window == flow.snd_wnd
            && flow.flight() > 0
        {
            self.duplicate_ack(now, index);
        }

        let flow = &mut self.flows[index];
        if flow.snd_wl1.before(seq) || (flow.snd_wl1 == seq && !flow.snd_wl2.after(ack)) {
            flow.snd_wl1 = seq;
            flow.snd_wl2 = ack;
            flow.snd_wnd = window;
            flow.snd_wnd_max = flow.snd_wnd_max.max(window);
            if flow.persist && window > 0 {
                flow.persist = false;
                flow.rexmit_at = NEVER;
                flow.rtt.end_backoff();
            }
        }
        if flow.persist {
            // RFC 1122 section 4.2.2.17: a peer that answers is alive.
            flow.progress_at = now;
        }
        if flow.tx_cursor != NIL || flow.rexmit_due || flow.fin_due() {
            self.kick(index);
        }
        self.fin_acknowledged(mem, now, index)
    }

    fn new_ack<M: Memory>(&mut self, mem: &mut M, now: u64, index: u32, segment: &Segment) {
        let ack = segment.header.ack;
        let flow = &mut self.flows[index];
        let mss = u32::from(flow.mss);
        let acked = ack.since(flow.snd_una);
        let flight = flow.flight();
        if let Some(rtt) = flow.rtt.on_ack(ack, now) {
            flow.congestion.on_rtt(rtt);
        }
        flow.snd_una = ack;
        self.free_acknowledged(mem, index, ack);

        let flow = &mut self.flows[index];
        if flow.snd_nxt.before(ack) {
            // After a timeout the peer turned out to have more than we thought.
            flow.snd_nxt = ack;
            flow.tx_cursor = flow.tx.head;
        }
        if flow.in_recovery {
            if ack.before(flow.recover) {
                // What was retransmitted, and segments behind it whose
                // duplicates were counted as delivered already.
                let counted = (acked / mss).saturating_sub(1).min(flow.dupacks);
                flow.dupacks -= counted;
                let delivered = acked - counted * mss;
                flow.congestion.on_recovery_ack(delivered, flow.pipe(), true, mss);
                flow.rexmit_due = true;
            } else {
                flow.in_recovery = false;
                flow.dupacks = 0;
                flow.congestion.on_recovered(now, flow.pipe(), mss);
            }
        } else {
            flow.dupacks = 0;
            let limited = 2 * u64::from(flight) >= u64::from(flow.congestion.window());
            let srtt = flow.rtt.smoothed();
            flow.congestion.on_ack(now, acked, srtt, mss, limited);
        }
        // RFC 6298 sections 5.2 and 5.3.
        flow.rtt.end_backoff();
        flow.persist = false;
        flow.progress_at = now;
        let timers = &self.config.timers;
        flow.rexmit_at = if flow.outstanding() {
            now.saturating_add(flow.rtt.timeout(timers.rto_min, timers.rto_max))
        } else {
            NEVER
        };
        if flow.want_writable && flow.tx_len <= self.config.send_queue_max / 2 {
            flow.want_writable = false;
            flow.events |= event::WRITABLE;
            self.mark_ready(index);
        }
    }

    /// Takes what lies before `ack` out of the send queue.
    fn free_acknowledged<M: Memory>(&mut self, mem: &mut M, index: u32, ack: Seq) {
        let mut queue = self.flows[index].tx;
        while queue.head != NIL {
            let buf = queue.head;
            let meta = self.bufs.get(buf);
            if (Seq(meta.seq) + u32::from(meta.len)).after(ack) {
                break;
            }
            let (next, told) = (meta.next, meta.notify || meta.keep);
            self.bufs.pop(&mut queue);
            let flow = &mut self.flows[index];
            flow.tx_len -= 1;
            if flow.tx_cursor == buf {
                flow.tx_cursor = next;
            }
            if told {
                self.finish(index, buf, Reason::Ok);
            } else {
                self.give_or_pin(mem, buf);
            }
        }
        self.flows[index].tx = queue;
    }

    fn duplicate_ack(&mut self, now: u64, index: u32) {
        self.counters.duplicate_acks_in += 1;
        let flow = &mut self.flows[index];
        let mss = u32::from(flow.mss);
        flow.dupacks = flow.dupacks.saturating_add(1);
        if flow.in_recovery {
            flow.congestion.on_recovery_ack(mss, flow.pipe(), false, mss);
        } else {
            // RFC 6582 section 3.2, step 2: not again for what a timeout has
            // sent again already.
            if flow.dupacks == DUPACKS && !flow.snd_una.before(flow.recover) {
                let flight = flow.flight();
                flow.congestion.on_loss(now, flight, mss);
                flow.congestion.on_recovery_ack(mss, flow.pipe(), false, mss);
                flow.in_recovery = true;
                flow.recover = flow.snd_max;
                flow.rexmit_due = true;
                self.counters.fast_retransmits += 1;
            }
        }
        // Also for limited transmit (RFC 3042): see `output`.
        self.kick(index);
    }

    /// Moves on when our FIN is acknowledged. `false` when the flow ended.
    fn fin_acknowledged<M: Memory>(&mut self, mem: &mut M, now: u64, index: u32) -> bool {
        let flow = &mut self.flows[index];
        if !flow.fin_queued || !flow.snd_una.after(flow.snd_end) {
            return true;
        }
        match flow.state {
            State::FinWait1 => {
                flow.enter(State::FinWait2);
                flow.idle_at = now.saturating_add(self.config.timers.fin_wait_2);
            }
            State::Closing => self.enter_time_wait(mem, now, index),
            State::LastAck => {
                self.counters.closed += 1;
                self.terminate(mem, index, None);
                return false;
            }
            _ => {}
        }
        true
    }

    /// Both sides have closed; the flow waits for stray segments to die.
    pub(crate) fn enter_time_wait<M: Memory>(&mut self, mem: &mut M, now: u64, index: u32) {
        debug_assert!(self.flows[index].tx.is_empty());
        self.drop_held(mem, index);
        self.withdraw_promise(index);
        if self.time_wait_len >= self.config.time_wait_max {
            self.recycle_time_wait();
        }
        let flow = &mut self.flows[index];
        flow.enter(State::TimeWait);
        flow.tx = Queue::EMPTY;
        flow.rexmit_at = NEVER;
        flow.delayed_ack_at = NEVER;
        flow.events |= event::CLOSED;
        self.open -= 1;
        self.counters.closed += 1;
        self.flows.push_back(&mut self.time_wait, Links::TimeWait, index);
        self.time_wait_len += 1;
        self.restart_time_wait(now, index);
        self.mark_ready(index);
    }

    /// The time of TIME-WAIT begins anew, so its turn is last.
    pub(crate) fn restart_time_wait(&mut self, now: u64, index: u32) {
        self.flows[index].idle_at = now.saturating_add(self.config.timers.time_wait);
        self.flows.remove(&mut self.time_wait, Links::TimeWait, index);
        self.flows.push_back(&mut self.time_wait, Links::TimeWait, index);
    }
}
