//! What time does to a flow: retransmission (RFC 6298), tail loss probes, zero-window probes,
//! delayed acknowledgements, keepalive, and the ends of TIME-WAIT and
//! FIN-WAIT-2. One entry in the wheel stands for all of a flow's timers.

use paste_abi::Reason;

use crate::clock::Deadline;
use crate::config::{MS, SEC};
use crate::flow::State;
use crate::memory::Memory;
use crate::stack::Stack;
use crate::tcp::recovery::{Phase, Tail};
use crate::tcp::rtt::Stamp;
use crate::tcp::scoreboard;

/// What [`crate::flow::FlowState::rexmit_at`] is the time of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The retransmission timeout (RFC 6298).
    Retransmit,
    /// A zero-window probe (RFC 9293 section 3.8.6.1).
    Persist,
    /// What may only have been reordered is lost (RFC 8985 section 6.3).
    Reorder,
    /// A tail loss probe (RFC 8985 section 7.2).
    TailProbe,
}

/// RFC 8985 section 7.2: the longest that a peer may delay the acknowledgement
/// of a single segment, ns.
const ACK_DELAY_MAX: u64 = 200 * MS;

impl Stack {
    /// Runs the timers that are due.
    pub fn advance<M: Memory>(&mut self, mem: &mut M, now: u64) {
        let now = self.clock(now);
        while let Some(id) = self.wheel.pop(now) {
            self.warm_timer(id);
            match id.checked_sub(self.config.flows_max) {
                Some(host) if host == self.neighbours.count() => self.host_timer(mem, now),
                Some(neighbour) => self.neighbour_timer(mem, now, neighbour),
                None => self.flow_timer(mem, now, id),
            }
        }
    }

    fn flow_timer<M: Memory>(&mut self, mem: &mut M, now: u64, index: u32) {
        let flow = &mut self.flows[index];
        if flow.delayed_ack_at.is_due(now) {
            flow.delayed_ack_at = Deadline::NEVER;
            self.ack_now(index);
        }
        if self.flows[index].rexmit_at.is_due(now) && !self.sending_timer(mem, now, index) {
            return;
        }
        if self.flows[index].idle_at.is_due(now) && !self.idle_timer(mem, now, index) {
            return;
        }
        self.arm(index);
    }

    /// One of the timers of sending rang. `false` when the flow ended.
    fn sending_timer<M: Memory>(&mut self, mem: &mut M, now: u64, index: u32) -> bool {
        let patience = self.patience(index);
        let timers = &self.config.timers;
        let flow = &mut self.flows[index];
        flow.rexmit_at = Deadline::NEVER;
        let spent = flow.state == State::SynReceived
            && flow.listener().is_some()
            && flow.rtt.backoff() >= timers.syn_ack_tries;
        if spent || flow.progress_at.elapsed(now) >= patience {
            self.terminate(mem, index, Some(Reason::TimedOut));
            return false;
        }
        match flow.timer {
            Timer::Reorder => self.reordering_timer(now, index),
            Timer::TailProbe => {
                flow.set_tail_due(true);
                flow.timer = Timer::Retransmit;
                self.rearm(now, index, None);
            }
            Timer::Persist => {
                flow.set_probe_due(true);
                flow.rtt.back_off();
                let wait = flow.rtt.timeout(timers.rto_min, timers.rto_max);
                let left = patience.saturating_sub(flow.progress_at.elapsed(now));
                flow.rexmit_at = Deadline::after(now, wait.min(left));
            }
            Timer::Retransmit => self.retransmission_timer(now, index),
        }
        self.kick(index);
        true
    }

    /// RFC 6298 section 5, steps 5.4 to 5.7.
    fn retransmission_timer(&mut self, now: u64, index: u32) {
        let flow = &mut self.flows[index];
        if !flow.state.is_synchronized() {
            flow.set_syn_due(true);
        } else if flow.outstanding() {
            self.counters.timeouts += 1;
            self.suspect_path(now, index);
            self.enter_loss(now, index);
        } else {
            return;
        }
        let flow = &mut self.flows[index];
        flow.rtt.back_off();
        // The neighbour may have moved.
        if flow.state.is_synchronized() && flow.rtt.backoff() >= 2 {
            let key = flow.key;
            if self.routable(now, &key) {
                self.flows[index].mac = None;
            }
        }
        let (rto, patience) = (self.rto(&self.flows[index]), self.patience(index));
        let flow = &mut self.flows[index];
        let left = patience.saturating_sub(flow.progress_at.elapsed(now));
        flow.timer = Timer::Retransmit;
        flow.rexmit_at = Deadline::after(now, rto.min(left));
    }

    /// How long a flow waits for progress before it ends, ns (RFC 9293 section
    /// 3.8.3, R2; section 3.9.1, the user timeout).
    fn patience(&self, index: u32) -> u64 {
        let flow = &self.flows[index];
        match flow.state {
            State::SynSent => self.config.timers.connect,
            State::SynReceived => self.config.timers.accept,
            _ => u64::from(flow.user_timeout) * MS,
        }
    }

    /// Sets the timer for what is in flight: to look for losses after `wait`
    /// ns, to probe the tail (RFC 8985 section 7.2), or to retransmit.
    #[inline]
    pub(crate) fn rearm(&mut self, now: u64, index: u32, wait: Option<u64>) {
        let timers = &self.config.timers;
        let flow = &mut self.flows[index];
        if !flow.outstanding() {
            // One that was due is for nothing now.
            flow.set_tail_due(false);
            if flow.timer != Timer::Persist {
                flow.timer = Timer::Retransmit;
                flow.rexmit_at = Deadline::NEVER;
            }
            return;
        }
        let progress = flow.progress_at.elapsed(now) == 0;
        let running = flow.timer == Timer::Retransmit && flow.rexmit_at.is_set() && !progress;
        if flow.rtt.backoff() > 0 && running {
            // A timeout that was backed off runs on until something new is
            // acknowledged.
            return;
        }
        if let Some(wait) = wait {
            flow.timer = Timer::Reorder;
            flow.rexmit_at = Deadline::after(now, wait);
            return;
        }
        // RFC 6298 section 5.3: since the last progress; but what was sent again
        // since is given its time too (RFC 6582 section 3.2, step 3).
        let mut elapsed = flow.progress_at.elapsed(now);
        if let Some(resent) = scoreboard::head_resent(&self.bufs, flow) {
            elapsed = elapsed.min(Stamp::at(now).since(resent));
        }
        let rto = flow.rtt.timeout(timers.rto_min, timers.rto_max);
        let mut left = rto.saturating_sub(elapsed).max(1);
        if running {
            left = left.max(flow.rexmit_at.ns(now).saturating_sub(now));
        }
        let probes = flow.sack()
            && flow.phase == Phase::Open
            && flow.tail == Tail::None
            && !flow.tail_due()
            && flow.rtt.is_measured()
            && flow.rtt.backoff() == 0;
        flow.timer = Timer::Retransmit;
        if probes {
            let mut wait = 2 * flow.rtt.smoothed();
            if flow.flight() <= u32::from(flow.mss) {
                wait += ACK_DELAY_MAX;
            }
            // Section 7.2 too: in place of the timeout, if that comes first.
            flow.timer = Timer::TailProbe;
            left = left.min(wait);
        }
        flow.rexmit_at = Deadline::after(now, left);
    }

    /// TIME-WAIT, FIN-WAIT-2 or keepalive. `false` when the flow ended.
    fn idle_timer<M: Memory>(&mut self, mem: &mut M, now: u64, index: u32) -> bool {
        let timers = &self.config.timers;
        let flow = &mut self.flows[index];
        flow.idle_at = Deadline::NEVER;
        match flow.state {
            State::TimeWait => {
                self.end_time_wait(index);
                return false;
            }
            State::FinWait2 => {
                let quiet = flow.heard_at.elapsed(now);
                if quiet >= timers.fin_wait_2 {
                    self.terminate(mem, index, Some(Reason::TimedOut));
                    return false;
                }
                flow.idle_at = Deadline::after(now, timers.fin_wait_2 - quiet);
            }
            _ if flow.keepalive != 0 && flow.state.is_synchronized() => {
                // RFC 9293 section 3.8.4. What is outstanding has its own timer.
                let quiet = flow.heard_at.elapsed(now);
                let patience = u64::from(flow.keepalive) * SEC;
                if quiet < patience {
                    flow.idle_at = Deadline::after(now, patience - quiet);
                } else if flow.outstanding() {
                    flow.idle_at = Deadline::after(now, timers.keepalive_interval);
                } else if flow.keepalive_sent >= timers.keepalive_probes {
                    self.terminate(mem, index, Some(Reason::TimedOut));
                    return false;
                } else {
                    flow.keepalive_sent += 1;
                    flow.idle_at = Deadline::after(now, timers.keepalive_interval);
                    flow.set_probe_due(true);
                    self.kick(index);
                }
            }
            _ => {}
        }
        true
    }
}
