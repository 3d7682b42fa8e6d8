//! What an acknowledgement does to the send queue: it frees buffers and moves
//! the windows (RFC 9293 section 3.10.7.4, fifth). What it says about loss is
//! the affair of [`crate::tcp::recovery`].

use paste_abi::Reason;

use crate::bufs::{NIL, Queue, Told};
use crate::clock::{Deadline, Moment};
use crate::flow::{Links, State, event};
use crate::memory::Memory;
use crate::stack::Stack;
use crate::tcp::input::Segment;
use crate::tcp::recovery::News;
use crate::tcp::rtt::Stamp;
use crate::tcp::scoreboard::{self, Delivery};
use crate::tcp::seq::Seq;
use crate::tcp::timers::Timer;
use crate::wire::tcp::{Header, SACK_BLOCKS_MAX, SackBlock, flag};

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
        let flow = &self.flows[index];
        let window = u32::from(header.window) << flow.snd_scale;
        let advanced = header.ack.after(flow.snd_una);
        if advanced && flow.is_calm() && header.options.sack.is_empty() && !header.has(flag::ECE) {
            let pipe = flow.flight();
            let mut delivery = Delivery::default();
            self.advance_una(mem, now, index, header.ack, &mut delivery);
            self.take_calm_news(now, index, pipe, &delivery);
            self.make_writable(index);
        // What arrived twice is often told of when all is acknowledged.
        } else if advanced || flow.outstanding() || !header.options.sack.is_empty() {
            let mut news = News {
                ack: header.ack,
                advanced: advanced.then(|| header.ack.since(flow.snd_una)),
                flight: flow.flight(),
                pipe: flow.pipe(),
                lost: flow.lost_bytes,
                duplicate: !advanced
                    && header.ack == flow.snd_una
                    && segment.len == 0
                    && !header.has(flag::FIN)
                    && window == flow.snd_wnd,
                dsack: false,
                congestion: header.has(flag::ECE),
                echo: header.options.timestamps.map(|ts| ts.echo),
                delivery: Delivery::default(),
            };
            if advanced {
                self.advance_una(mem, now, index, header.ack, &mut news.delivery);
            }
            if !header.options.sack.is_empty() && self.flows[index].sack() {
                news.dsack = self.sack_input(now, index, header, &mut news.delivery);
            }
            self.take_news(now, index, &news);
            if advanced {
                self.make_writable(index);
            }
        }
        self.window_input(now, index, header, window, advanced);
        let flow = &self.flows[index];
        if flow.tx_cursor != NIL || flow.resends() || flow.fin_due() {
            self.kick(index);
        }
        self.fin_acknowledged(mem, now, index)
    }

    /// The send window (RFC 9293 section 3.10.7.4), and with it the persist timer.
    #[inline]
    fn window_input(&mut self, now: u64, index: u32, header: &Header, window: u32, advanced: bool) {
        let (ack, seq) = (header.ack, header.seq);
        let flow = &mut self.flows[index];
        // What acknowledges something new is the latest word, even in a segment
        // that was sent again and so has an old sequence number.
        if advanced || flow.snd_wl1.before(seq) || (flow.snd_wl1 == seq && ack == flow.snd_una) {
            flow.snd_wl1 = seq;
            flow.snd_wnd = window;
            flow.snd_wnd_max = flow.snd_wnd_max.max(window);
            if flow.timer == Timer::Persist && window > 0 {
                flow.timer = Timer::Retransmit;
                flow.rexmit_at = Deadline::NEVER;
                flow.rtt.end_backoff();
            }
        }
        if flow.timer == Timer::Persist {
            // RFC 1122 section 4.2.2.17: a peer that answers is alive.
            flow.progress_at = Moment::at(now);
        }
    }

    /// Moves SND.UNA, and takes what lies before it out of the send queue.
    #[inline]
    fn advance_una<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        index: u32,
        ack: Seq,
        delivery: &mut Delivery,
    ) {
        let stamp = Stamp::at(now);
        loop {
            let (bufs, flow) = (&mut self.bufs, &mut self.flows[index]);
            let buf = flow.tx.head;
            if buf == NIL || !ack.after(Seq(bufs.get(buf).seq)) {
                break;
            }
            if !scoreboard::acknowledge_head(bufs, flow, stamp, ack, delivery) {
                break;
            }
            let meta = bufs.get(buf);
            let (next, told) = (meta.next, meta.told != Told::Nothing);
            if flow.repair != NIL {
                scoreboard::forget(bufs, &mut self.repairs[flow.repair], buf, next);
            }
            if flow.tx_cursor == buf {
                flow.tx_cursor = next;
            }
            bufs.pop(&mut flow.tx);
            flow.tx_len -= 1;
            if told {
                self.finish(index, buf, Reason::Ok);
            } else {
                self.give_or_pin(mem, buf);
            }
        }
        if self.flows[index].tx.is_empty() {
            self.end_repair(index);
        }
        let flow = &mut self.flows[index];
        flow.snd_una = ack;
        if ack.after(flow.snd_end) {
            flow.set_fin_lost(false);
            // FIN counts as delivered too, so that what waits for it does not.
            delivery.bytes += 1;
        }
    }

    /// Takes in SACK blocks. Returns whether the first one told of something
    /// that arrived twice (RFC 2883 section 4).
    fn sack_input(
        &mut self,
        now: u64,
        index: u32,
        header: &Header,
        delivery: &mut Delivery,
    ) -> bool {
        let mut unknown = 0;
        let blocks = &header.options.sack;
        let first = blocks[0];
        let inside = |outer: &SackBlock| {
            !first.start.before(outer.start) && !first.end.after(outer.end) && first != *outer
        };
        let dsack = !first.end.after(header.ack) || blocks.get(1).is_some_and(inside);
        if let Some((bufs, flow, repair)) = self.repairing(index) {
            // By their numbers, and not by their age, or what arrived in order
            // would look reordered.
            let mut sorted = [SackBlock::default(); SACK_BLOCKS_MAX];
            let told = &blocks[usize::from(dsack)..];
            let sorted = &mut sorted[..told.len()];
            sorted.copy_from_slice(told);
            sorted.sort_unstable_by_key(|block| block.start.since(flow.snd_una));
            for block in sorted.iter() {
                // RFC 5961 section 5's caution for SACK: only what is in flight
                // counts.
                let known = !block.start.before(flow.snd_una)
                    && block.start.before(block.end)
                    && !block.end.after(flow.snd_nxt);
                if known {
                    scoreboard::sack(bufs, flow, repair, Stamp::at(now), *block, delivery);
                } else if block.end.after(flow.snd_una) {
                    unknown += 1;
                }
            }
        }
        self.counters.drop_bad_sack += unknown;
        self.counters.dsacks_in += u64::from(dsack);
        dsack
    }

    #[inline]
    fn make_writable(&mut self, index: u32) {
        let flow = &mut self.flows[index];
        if flow.want_writable() && flow.tx_len <= self.config.send_queue_max / 2 {
            flow.set_want_writable(false);
            flow.events |= event::WRITABLE;
            self.mark_ready(index);
        }
    }

    /// Moves on when our FIN is acknowledged. `false` when the flow ended.
    #[inline]
    fn fin_acknowledged<M: Memory>(&mut self, mem: &mut M, now: u64, index: u32) -> bool {
        let flow = &mut self.flows[index];
        if !flow.fin_queued() || !flow.snd_una.after(flow.snd_end) {
            return true;
        }
        match flow.state {
            State::FinWait1 => {
                flow.enter(State::FinWait2);
                flow.idle_at = Deadline::after(now, self.config.timers.fin_wait_2);
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
        flow.rexmit_at = Deadline::NEVER;
        flow.delayed_ack_at = Deadline::NEVER;
        flow.events |= event::CLOSED;
        self.open -= 1;
        self.counters.closed += 1;
        self.flows.push_back(&mut self.time_wait, Links::Age, index);
        self.time_wait_len += 1;
        self.restart_time_wait(now, index);
        self.mark_ready(index);
    }

    /// The time of TIME-WAIT begins anew, so its turn is last.
    pub(crate) fn restart_time_wait(&mut self, now: u64, index: u32) {
        self.flows[index].idle_at = Deadline::after(now, self.config.timers.time_wait);
        self.flows.remove(&mut self.time_wait, Links::Age, index);
        self.flows.push_back(&mut self.time_wait, Links::Age, index);
    }
}
