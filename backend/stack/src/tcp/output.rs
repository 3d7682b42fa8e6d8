//! What a flow sends: one segment at a time, chosen by [`Stack::plan`] and
//! written by [`crate::tcp::segment`].

use crate::arp::Route;
use crate::bufs::NIL;
use crate::flow::{FlowState, Links, NEVER, State};
use crate::frame::{Payload, TxBatch};
use crate::memory::Memory;
use crate::stack::Stack;
use crate::tcp::seq::Seq;
use crate::wire::ip::ecn;
use crate::wire::tcp::flag;

/// Why a segment is sent, which decides how the flow's state moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Reset,
    Syn,
    /// The segment at `snd_una`, again.
    Again,
    /// What comes next at `snd_nxt`.
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

    /// After the last sequence number that it occupies.
    fn end(&self) -> Seq {
        let control = self.flags & (flag::SYN | flag::FIN) != 0;
        self.seq + self.payload.map_or(0, |p| u32::from(p.len)) + u32::from(control)
    }
}

impl Stack {
    /// Sends at most one segment of a flow; `out` has room for it. Returns
    /// whether the flow may have more.
    pub(crate) fn emit<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        index: u32,
        out: &mut TxBatch,
    ) -> bool {
        let Some(plan) = self.plan(now, index) else {
            self.wait_for_window(now, index);
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
                    return false;
                }
                Route::None => {
                    self.cannot_route(now, index);
                    return false;
                }
            },
        };
        self.write_segment(mem, now, index, &mac, &plan, out);
        self.sent(now, index, &plan);
        if plan.why == Why::Reset {
            self.rst_done(index);
            return false;
        }
        if plan.why == Why::Ack {
            // There was nothing else to send: it may be for the peer's window.
            self.wait_for_window(now, index);
        }
        self.arm(index);
        plan.why != Why::Ack
    }

    /// The retransmission timeout of a flow now.
    pub(crate) fn rto(&self, flow: &FlowState) -> u64 {
        flow.rtt.timeout(self.config.timers.rto_min, self.config.timers.rto_max)
    }

    /// Chooses the next segment.
    fn plan(&self, now: u64, index: u32) -> Option<Plan> {
        let flow = &self.flows[index];
        match flow.state {
            State::Closed => {
                let plan = Plan::bare(Why::Reset, flow.snd_max, flag::RST | flag::ACK);
                return flow.rst_due.then_some(plan);
            }
            State::SynSent => {
                return flow.syn_due.then_some(Plan::bare(Why::Syn, flow.iss, flag::SYN));
            }
            State::SynReceived if flow.syn_due => {
                return Some(Plan::bare(Why::Syn, flow.iss, flag::SYN | flag::ACK));
            }
            State::SynReceived => {}
            _ => {
                if flow.rexmit_due && flow.outstanding() {
                    if flow.tx.head != NIL {
                        return self.cut(index, Why::Again, flow.tx.head, flow.snd_una, u32::MAX);
                    }
                    let plan = Plan::bare(Why::Again, flow.snd_una, flag::FIN | flag::ACK);
                    return Some(plan);
                }
                if flow.tx_cursor != NIL {
                    let planned = self.plan_payload(now, index);
                    if planned.is_some() {
                        return planned;
                    }
                } else if flow.fin_due() {
                    return Some(Plan::bare(Why::Next, flow.snd_nxt, flag::FIN | flag::ACK));
                }
            }
        }
        if flow.probe_due {
            let seq = Seq(flow.snd_una.0.wrapping_sub(1));
            return Some(Plan::bare(Why::Probe, seq, flag::ACK));
        }
        // Not `snd_nxt`: after a timeout that lies before what the peer has,
        // and the peer would not accept the acknowledgement.
        flow.ack_due.then(|| Plan::bare(Why::Ack, flow.snd_max, flag::ACK))
    }

    fn plan_payload(&self, now: u64, index: u32) -> Option<Plan> {
        let flow = &self.flows[index];
        let mss = u32::from(flow.mss);
        let mut congestion = flow.congestion.window();
        if !flow.outstanding() {
            let rto = self.rto(flow);
            if now.saturating_sub(flow.progress_at) > rto {
                let mut restarted = flow.congestion;
                restarted.on_idle(now, mss);
                congestion = restarted.window();
            }
        }
        // Outside recovery `pipe` makes room for a segment for each of the first
        // two duplicates: limited transmit (RFC 3042).
        let pipe = if flow.in_recovery || flow.dupacks <= 2 {
            flow.pipe()
        } else {
            flow.flight().saturating_sub(2 * mss)
        };
        let offered = flow.snd_wnd.saturating_sub(flow.flight());
        let usable = offered.min(congestion.saturating_sub(pipe));
        let meta = self.bufs.get(flow.tx_cursor);
        let left = u32::from(meta.len) - flow.snd_nxt.since(Seq(meta.seq));
        let whole = left.min(mss);
        // Silly window avoidance (RFC 9293 section 3.8.6.2.1): a full segment,
        // or all that the slot has left, or half the largest window, or anything
        // once the override timeout is over. Nagle's
        // algorithm is off: a slot is a whole message.
        if usable >= whole {
            return self.cut(index, Why::Next, flow.tx_cursor, flow.snd_nxt, whole);
        }
        if usable > 0 && (usable >= flow.snd_wnd_max / 2 || flow.probe_due) {
            return self.cut(index, Why::Next, flow.tx_cursor, flow.snd_nxt, usable);
        }
        None
    }

    /// A segment from `seq` in `buf`, at most `len` bytes and one MSS.
    fn cut(&self, index: u32, why: Why, buf: u32, seq: Seq, len: u32) -> Option<Plan> {
        let flow = &self.flows[index];
        let meta = self.bufs.get(buf);
        if meta.pins == u16::MAX {
            // Far more frames than any port holds; wait for them to go.
            return None;
        }
        let skip = seq.since(Seq(meta.seq));
        let left = u32::from(meta.len) - skip;
        let len = len.min(left).min(u32::from(flow.mss - flow.sack_len()));
        let mut flags = flag::ACK;
        if len == left {
            flags |= flag::PSH;
            if flow.fin_queued && seq + len == flow.snd_end {
                flags |= flag::FIN;
            }
        }
        let payload = Payload { buf, offset: meta.offset + skip as u16, len: len as u16 };
        Some(Plan { why, seq, flags, payload: Some(payload), ecn: ecn::NOT_ECT })
    }

    /// Moves the flow's state over a segment that was written.
    fn sent(&mut self, now: u64, index: u32, plan: &Plan) {
        self.counters.segments_out += 1;
        self.counters.frames_out += 1;
        let rto = self.rto(&self.flows[index]);
        let flow = &mut self.flows[index];
        let end = plan.end();
        let len = plan.payload.map_or(0, |p| u64::from(p.len));
        match plan.why {
            Why::Reset => {
                self.counters.resets_out += 1;
                return;
            }
            Why::Ack => return,
            Why::Syn => {
                flow.syn_due = false;
                if flow.snd_max == flow.iss {
                    flow.rtt.start(end, now);
                } else {
                    flow.rtt.stop();
                    self.counters.retransmits += 1;
                }
                flow.snd_nxt = end;
                flow.snd_max = end;
            }
            Why::Again => {
                flow.rexmit_due = false;
                flow.rtt.stop();
                self.counters.retransmits += 1;
                // After a timeout this may also be what comes next.
                if flow.snd_nxt == plan.seq {
                    flow.snd_nxt = end;
                    flow.snd_max = flow.snd_max.max(end);
                    self.move_cursor(index, plan);
                }
            }
            Why::Probe => {
                flow.probe_due = false;
                self.counters.probes_out += 1;
                return;
            }
            Why::Next => {
                if !flow.outstanding() {
                    let idle = now.saturating_sub(flow.progress_at);
                    if idle > rto {
                        flow.congestion.on_idle(now, u32::from(flow.mss));
                    }
                    flow.progress_at = now;
                }
                if plan.seq == flow.snd_max {
                    flow.rtt.start(end, now);
                    self.counters.bytes_out += len;
                } else {
                    flow.rtt.stop();
                    self.counters.retransmits += 1;
                }
                flow.probe_due = false;
                flow.snd_nxt = end;
                flow.snd_max = flow.snd_max.max(end);
                self.move_cursor(index, plan);
            }
        }
        let flow = &mut self.flows[index];
        if flow.in_recovery {
            flow.congestion.on_sent_in_recovery(len as u32);
        }
        // RFC 6298 section 5.1.
        if flow.rexmit_at == NEVER || flow.persist {
            flow.persist = false;
            flow.rexmit_at = now.saturating_add(rto);
        }
    }

    fn move_cursor(&mut self, index: u32, plan: &Plan) {
        let Some(payload) = plan.payload else { return };
        let meta = self.bufs.get(payload.buf);
        if plan.seq + u32::from(payload.len) == Seq(meta.seq) + u32::from(meta.len) {
            self.flows[index].tx_cursor = meta.next;
        }
    }

    /// Nothing can be sent. If that is for the peer's window, and nothing in
    /// flight will make it speak, the persist timer must (RFC 9293 section
    /// 3.8.6.1).
    fn wait_for_window(&mut self, now: u64, index: u32) {
        let rto = self.rto(&self.flows[index]);
        let flow = &mut self.flows[index];
        let blocked = flow.tx_cursor != NIL && flow.flight() == 0 && flow.state.is_synchronized();
        if blocked && !flow.persist {
            flow.persist = true;
            flow.rexmit_at = now.saturating_add(rto);
            self.arm(index);
        }
    }

    /// No router, or the neighbour cache is full of waiting flows: as if the
    /// segment were lost.
    fn cannot_route(&mut self, now: u64, index: u32) {
        let rto = self.rto(&self.flows[index]);
        let flow = &mut self.flows[index];
        if flow.state == State::Closed {
            self.rst_done(index);
            return;
        }
        flow.ack_due = false;
        if flow.rexmit_at == NEVER {
            flow.rexmit_at = now.saturating_add(rto);
            self.arm(index);
        }
    }

    /// Everything that is not acknowledged is sent again, from the start.
    pub(crate) fn resend_all(&mut self, index: u32) {
        let flow = &mut self.flows[index];
        if !flow.state.is_synchronized() {
            return;
        }
        flow.snd_nxt = flow.snd_una;
        flow.tx_cursor = flow.tx.head;
        flow.rexmit_due = false;
        flow.rtt.stop();
    }
}
