//! What a flow sends: one segment at a time, chosen by [`Stack::plan`] and
//! written by [`crate::tcp::segment`].

use crate::bufs::NIL;
use crate::clock::{Deadline, Moment};
use crate::flow::{FlowState, Links, State};
use crate::frame::{Payload, TxBatch};
use crate::memory::Memory;
use crate::neighbour::Route;
use crate::stack::Stack;
use crate::tcp::recovery::{Phase, Tail};
use crate::tcp::rtt::Stamp;
use crate::tcp::scoreboard;
use crate::tcp::seq::Seq;
use crate::tcp::timers::Timer;
use crate::wire::ip::ecn;
use crate::wire::tcp::flag;

/// Why a segment is sent, which decides how the flow's state moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Reset,
    Syn,
    /// What was lost, or is thought to be.
    Again,
    /// What comes next at SND.NXT.
    Next,
    /// A number that the peer has had already, so that it answers: a keepalive
    /// (RFC 9293 section 3.8.4) or a zero-window probe (section 3.8.6.1). The
    /// RFC would have a probe carry a byte of new payload; like most stacks we
    /// send none, because a byte beyond the window leaves both sides unsure of
    /// where the other is.
    Probe,
    Ack,
}

/// A segment that is to be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub why: Why,
    pub seq: Seq,
    pub flags: u8,
    pub payload: Option<Payload>,
    /// The ECN field of the IP header (RFC 3168 section 5).
    pub ecn: u8,
}

impl Plan {
    fn bare(why: Why, seq: Seq, flags: u8) -> Plan {
        Plan { why, seq, flags, payload: None, ecn: ecn::NOT_ECT }
    }

    fn payload_len(&self) -> u32 {
        self.payload.map_or(0, |p| u32::from(p.len))
    }

    /// After the last sequence number that it occupies.
    fn end(&self) -> Seq {
        let control = self.flags & (flag::SYN | flag::FIN) != 0;
        self.seq + self.payload_len() + u32::from(control)
    }
}

impl FlowState {
    /// Whether there is anything that [`Stack::plan`] could choose, windows aside.
    #[inline]
    fn may_send_more(&self) -> bool {
        self.tx_cursor != NIL
            || self.resends()
            || self.fin_due()
            || self.tail_due()
            || self.probe_due()
            || self.ack_due()
            || self.syn_due()
    }
}

impl FlowState {
    /// The number of a segment that occupies none: SND.NXT, unless the peer has taken
    /// back so much of its window that this lies beyond. RFC 9293 section 3.8.6 is
    /// against it, and Linux does it when its buffer shrinks; it would then not take
    /// the acknowledgement (section 3.10.7.4, first).
    #[inline]
    fn bare_number(&self) -> Seq {
        let edge = self.snd_una + self.snd_wnd;
        // A window that is scaled is told rounded down (RFC 7323 section 2.3).
        let rounding = (1 << self.snd_scale) - 1;
        if !self.snd_nxt.after(edge + rounding) {
            self.snd_nxt
        } else if self.snd_wnd == 0 {
            self.snd_una
        } else {
            // The last number that is in it.
            self.snd_una + (self.snd_wnd - 1)
        }
    }
}

impl Stack {
    /// Sends at most one segment of a flow; `out` has room for it. Returns
    /// whether the flow may have more; if not, its timers are set.
    #[inline]
    pub(crate) fn emit<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        index: u32,
        out: &mut TxBatch,
    ) -> bool {
        // Not moved out of the option: that would read what was just stored, in
        // other widths.
        let planned = self.plan(now, index);
        let Some(plan) = &planned else {
            self.stalled(now, index);
            self.arm(index);
            return false;
        };
        let mac = match self.flows[index].mac {
            Some(mac) => mac,
            None => match self.route(now, self.flows[index].key) {
                Route::Known(mac) => {
                    self.flows[index].mac = Some(mac);
                    mac
                }
                Route::Asking(neighbour) => {
                    self.flows[index].neighbour = neighbour;
                    let list = self.neighbours.waiting(neighbour);
                    self.flows.push_back(list, Links::Sending, index);
                    self.arm(index);
                    return false;
                }
                Route::None => {
                    self.cannot_route(now, index);
                    return false;
                }
            },
        };
        self.write_segment(mem, now, index, &mac, plan, out);
        self.sent(now, index, plan);
        if plan.why == Why::Reset {
            self.rst_done(index);
            return false;
        }
        // After an acknowledgement there was nothing else to send: it may be for the
        // peer's window.
        let more = plan.why != Why::Ack && self.flows[index].may_send_more();
        if !more {
            self.stalled(now, index);
            self.arm(index);
        }
        more
    }

    /// The retransmission timeout of a flow now.
    #[inline]
    pub(crate) fn rto(&self, flow: &FlowState) -> u64 {
        flow.rtt.timeout(self.config.timers.rto_min, self.config.timers.rto_max)
    }

    /// Whether a flow without anything in flight has been so for longer than a
    /// retransmission timeout (RFC 5681 section 4.1).
    #[inline]
    fn was_idle(&self, now: u64, flow: &FlowState) -> bool {
        let elapsed = flow.progress_at.elapsed(now);
        // The first alone says no to most.
        elapsed > self.config.timers.rto_min && elapsed > self.rto(flow)
    }

    /// Chooses the next segment.
    #[inline]
    fn plan(&self, now: u64, index: u32) -> Option<Plan> {
        let flow = &self.flows[index];
        match flow.state {
            State::Closed => {
                let plan = Plan::bare(Why::Reset, flow.snd_nxt, flag::RST | flag::ACK);
                return flow.rst_due().then_some(plan);
            }
            State::SynSent => {
                return flow.syn_due().then_some(Plan::bare(Why::Syn, flow.snd_una, flag::SYN));
            }
            State::SynReceived if flow.syn_due() => {
                return Some(Plan::bare(Why::Syn, flow.snd_una, flag::SYN | flag::ACK));
            }
            State::SynReceived => {}
            _ => {
                if flow.resends() {
                    let planned = self.plan_again(index);
                    // What is lost goes before anything new (RFC 6675 section 4,
                    // NextSeg).
                    if planned.is_some() || flow.resends() {
                        return planned.or_else(|| self.plan_bare(index));
                    }
                }
                if flow.tx_cursor != NIL {
                    let planned = self.plan_next(now, index);
                    if planned.is_some() {
                        return planned;
                    }
                } else if flow.fin_due() {
                    return Some(Plan::bare(Why::Next, flow.snd_nxt, flag::FIN | flag::ACK));
                }
                if flow.tail_due() {
                    let planned = self.plan_tail(index);
                    if planned.is_some() {
                        return planned;
                    }
                }
            }
        }
        self.plan_bare(index)
    }

    /// A probe or an acknowledgement, if one is due.
    fn plan_bare(&self, index: u32) -> Option<Plan> {
        let flow = &self.flows[index];
        if flow.probe_due() {
            let seq = Seq(flow.snd_una.0.wrapping_sub(1));
            return Some(Plan::bare(Why::Probe, seq, flag::ACK));
        }
        flow.ack_due().then(|| Plan::bare(Why::Ack, flow.bare_number(), flag::ACK))
    }

    /// Something that is lost, as far as the congestion window allows.
    fn plan_again(&self, index: u32) -> Option<Plan> {
        let flow = &self.flows[index];
        let budget = flow.congestion.window().saturating_sub(flow.pipe());
        if flow.lost_bytes > 0
            && let Some((buf, seq, len)) =
                scoreboard::next_lost(&self.bufs, flow, &self.repairs[flow.repair])
        {
            let len = len.min(u32::from(self.segment_room(flow)));
            return if flow.rexmit_due() || budget >= len {
                self.cut(index, Why::Again, buf, seq, len)
            } else {
                None
            };
        }
        (flow.fin_lost() && (flow.rexmit_due() || budget > 0))
            .then(|| Plan::bare(Why::Again, flow.snd_end, flag::FIN | flag::ACK))
    }

    /// The last segment once more, to find out whether it is lost (RFC 8985
    /// section 7.3).
    fn plan_tail(&self, index: u32) -> Option<Plan> {
        let flow = &self.flows[index];
        if flow.snd_nxt.after(flow.snd_end) {
            return Some(Plan::bare(Why::Again, flow.snd_end, flag::FIN | flag::ACK));
        }
        // The buffer that ends at SND.NXT, or in which it lies.
        let mut at = flow.tx.head;
        while at != NIL && self.bufs.end(at).before(flow.snd_nxt) {
            at = self.bufs.get(at).next;
        }
        if at == NIL {
            return None;
        }
        let meta = self.bufs.get(at);
        // The unit that ends at SND.NXT.
        let unit = u32::from(meta.unit);
        let sent = flow.snd_nxt.since(Seq(meta.seq));
        let start = (Seq(meta.seq) + (sent - 1) / unit * unit).max(flow.snd_una);
        self.cut(index, Why::Again, at, start, flow.snd_nxt.since(start))
    }

    /// Something new, as far as both windows allow.
    #[inline]
    fn plan_next(&self, now: u64, index: u32) -> Option<Plan> {
        let flow = &self.flows[index];
        let mut window = flow.congestion.window();
        if !flow.outstanding() && self.was_idle(now, flow) {
            // A copy is asked what an idle flow may do; it is idle no more when
            // something was sent.
            let mut restarted = flow.congestion;
            restarted.on_idle(now, u32::from(flow.mss));
            window = restarted.window();
        }
        let meta = self.bufs.get(flow.tx_cursor);
        let fresh = flow.snd_nxt == Seq(meta.seq);
        let mut room = u32::from(self.segment_room(flow));
        let mut left = u32::from(meta.len) - flow.snd_nxt.since(Seq(meta.seq));
        if !fresh {
            left = meta.unit_end(flow.snd_nxt).since(flow.snd_nxt);
        } else if flow.sack_len() == 0
            && let Some(probe) = flow.path_probe(now, meta.len)
        {
            room = u32::from(probe);
        }
        let whole = left.min(room);
        let offered = flow.snd_wnd.saturating_sub(flow.flight());
        // A tail loss probe goes beyond the congestion window.
        let pipe = flow.pipe();
        if window.saturating_sub(pipe) < whole && pipe > 0 && !flow.tail_due() {
            return None;
        }
        // Silly window avoidance (RFC 9293 section 3.8.6.2.1): a full segment,
        // or all that the slot has left, or half the largest window, or anything
        // once the override timeout is over. Nagle's
        // algorithm is off: a slot is a whole message.
        if offered >= whole {
            let mut plan = self.cut(index, Why::Next, flow.tx_cursor, flow.snd_nxt, whole)?;
            // The windows allow no more for now: the last of several in a row is
            // pushed, so that a receiver that gathers segments passes them on.
            let next = (u32::from(meta.len) - flow.snd_nxt.since(Seq(meta.seq)) - whole).min(room);
            let full = window.saturating_sub(pipe + whole) < next || offered - whole < next;
            if full && !fresh && meta.sent_at == Stamp::at(now) {
                plan.flags |= flag::PSH;
            }
            return Some(plan);
        }
        if offered > 0 && (offered >= flow.snd_wnd_max / 2 || flow.probe_due()) {
            return self.cut(index, Why::Next, flow.tx_cursor, flow.snd_nxt, offered);
        }
        None
    }

    /// Payload bytes that a segment has room for now.
    #[inline]
    pub(crate) fn segment_room(&self, flow: &FlowState) -> u16 {
        flow.mss - flow.sack_len()
    }

    /// A segment from `seq` in `buf`, `len` bytes of it.
    #[inline]
    fn cut(&self, index: u32, why: Why, buf: u32, seq: Seq, len: u32) -> Option<Plan> {
        let flow = &self.flows[index];
        let meta = self.bufs.get(buf);
        if self.bufs.get(self.bufs.real(buf)).pins == u16::MAX {
            // Far more frames than any port holds; wait for them to go.
            return None;
        }
        let skip = seq.since(Seq(meta.seq));
        let left = u32::from(meta.len) - skip;
        let len = len.min(left);
        let mut flags = flag::ACK;
        if len == left {
            flags |= flag::PSH;
            if flow.fin_queued() && seq + len == flow.snd_end {
                flags |= flag::FIN;
            }
        }
        let new = why == Why::Next;
        if new && flow.cwr_due() {
            flags |= flag::CWR;
        }
        // RFC 3168 section 6.1.5: not what is sent again.
        let ecn = if new && flow.ecn() { ecn::ECT_0 } else { ecn::NOT_ECT };
        let payload = Payload { buf, offset: meta.offset + skip as u16, len: len as u16 };
        Some(Plan { why, seq, flags, payload: Some(payload), ecn })
    }

    /// Moves the flow's state over a segment that was written.
    #[inline]
    fn sent(&mut self, now: u64, index: u32, plan: &Plan) {
        self.counters.segments_out += 1;
        self.counters.frames_out += 1;
        match plan.why {
            Why::Reset => self.counters.resets_out += 1,
            Why::Ack => {}
            Why::Probe => {
                self.flows[index].set_probe_due(false);
                self.counters.probes_out += 1;
            }
            Why::Syn => self.sent_syn(now, index, plan),
            Why::Again => self.sent_again(now, index, plan),
            Why::Next => self.sent_next(now, index, plan),
        }
    }

    fn sent_syn(&mut self, now: u64, index: u32, plan: &Plan) {
        let rto = self.rto(&self.flows[index]);
        let flow = &mut self.flows[index];
        flow.set_syn_due(false);
        if flow.outstanding() {
            self.counters.retransmits += 1;
        } else {
            flow.progress_at = Moment::at(now);
            // Its answer is the first measurement.
            flow.rack.restart(Stamp::at(now), plan.end());
        }
        flow.snd_nxt = plan.end();
        if !flow.rexmit_at.is_set() {
            flow.timer = Timer::Retransmit;
            flow.rexmit_at = Deadline::after(now, rto);
        }
    }

    fn sent_again(&mut self, now: u64, index: u32, plan: &Plan) {
        self.counters.retransmits += 1;
        let len = plan.payload_len();
        let telling = plan.seq == self.flows[index].snd_una;
        if let Some(payload) = plan.payload
            && let Some((bufs, flow, repair)) = self.repairing(index)
        {
            scoreboard::resent(bufs, flow, repair, Stamp::at(now), payload.buf, plan.seq, len);
        }
        let flow = &mut self.flows[index];
        flow.set_rexmit_due(false);
        flow.undo.on_resent(flow.timestamp(now), telling);
        if plan.flags & flag::FIN != 0 {
            flow.set_fin_lost(false);
        }
        if flow.phase == Phase::Recovery {
            flow.congestion.on_sent_in_recovery(len);
        }
        if flow.tail_due() {
            flow.set_tail_due(false);
            flow.tail = Tail::Again;
            self.sent_tail_probe(now, index);
        } else if !flow.rexmit_at.is_set() || flow.timer == Timer::Retransmit {
            self.rearm(now, index, None);
        }
    }

    #[inline]
    fn sent_next(&mut self, now: u64, index: u32, plan: &Plan) {
        let first = !self.flows[index].outstanding();
        let was_idle = first && self.was_idle(now, &self.flows[index]);
        let (bufs, flow) = (&mut self.bufs, &mut self.flows[index]);
        let stamp = Stamp::at(now);
        if first {
            if was_idle {
                flow.congestion.on_idle(now, u32::from(flow.mss));
            }
            flow.progress_at = Moment::at(now);
            flow.rack.restart(stamp, flow.snd_nxt);
        }
        flow.set_probe_due(false);
        flow.snd_nxt = plan.end();
        if let Some(payload) = plan.payload {
            let meta = bufs.get_mut(payload.buf);
            let fresh = plan.seq == Seq(meta.seq);
            meta.set_sent_apart(!fresh && (meta.sent_apart() || meta.sent_at != stamp));
            meta.sent_at = stamp;
            if fresh {
                meta.cut_into_units(flow.mss.max(payload.len));
                if payload.len > flow.mss {
                    flow.path_probe_sent(payload.len, plan.end());
                }
            }
            if plan.seq + u32::from(payload.len) == meta.end() {
                flow.tx_cursor = meta.next;
            }
            if flow.phase == Phase::Recovery {
                flow.congestion.on_sent_in_recovery(u32::from(payload.len));
            }
            if plan.flags & flag::CWR != 0 {
                flow.set_cwr_due(false);
            }
            self.counters.bytes_out += u64::from(payload.len);
        }
        if flow.tail_due() {
            flow.set_tail_due(false);
            flow.tail = Tail::New;
            self.sent_tail_probe(now, index);
        }
        // RFC 6298 section 5.1, RFC 8985 section 7.2.
        let flow = &self.flows[index];
        if flow.timer != Timer::Reorder || !flow.rexmit_at.is_set() {
            self.rearm(now, index, None);
        }
    }

    /// RFC 8985 section 7.3: after a probe the retransmission timer starts anew.
    fn sent_tail_probe(&mut self, now: u64, index: u32) {
        let rto = self.rto(&self.flows[index]);
        let flow = &mut self.flows[index];
        flow.recover = flow.snd_nxt;
        flow.timer = Timer::Retransmit;
        flow.rexmit_at = Deadline::after(now, rto);
        self.counters.tail_probes_out += 1;
    }

    /// Nothing can be sent. If that is for the peer's window, and nothing in
    /// flight will make it speak, the persist timer must (RFC 9293 section
    /// 3.8.6.1).
    #[inline]
    fn stalled(&mut self, now: u64, index: u32) {
        let flow = &mut self.flows[index];
        let blocked = flow.tx_cursor != NIL && flow.state.is_synchronized();
        let offered = flow.snd_wnd.saturating_sub(flow.flight());
        flow.set_window_full(blocked && offered >= u32::from(flow.mss));
        flow.set_tail_due(false);
        if blocked && !flow.outstanding() && flow.timer != Timer::Persist {
            let rto = self.rto(&self.flows[index]);
            let flow = &mut self.flows[index];
            flow.timer = Timer::Persist;
            flow.rexmit_at = Deadline::after(now, rto);
        }
    }

    /// No router, no such neighbour, or the neighbour cache is full of waiting
    /// flows: as if the segment were lost.
    pub(crate) fn cannot_route(&mut self, now: u64, index: u32) {
        let rto = self.rto(&self.flows[index]);
        let flow = &mut self.flows[index];
        if flow.state == State::Closed {
            self.rst_done(index);
            return;
        }
        flow.set_ack_due(false);
        // TIME-WAIT has nothing to send again.
        if !flow.rexmit_at.is_set() && flow.state != State::TimeWait {
            // Patience begins when there is first something to be patient about.
            if !flow.outstanding() && flow.rtt.backoff() == 0 {
                flow.progress_at = Moment::at(now);
            }
            flow.rtt.back_off();
            flow.timer = Timer::Retransmit;
            flow.rexmit_at = Deadline::after(now, rto);
        }
        self.arm(index);
    }
}
