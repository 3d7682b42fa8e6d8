//! What time does to a flow: retransmission (RFC 6298), zero-window probes,
//! delayed acknowledgements, keepalive, and the ends of TIME-WAIT and
//! FIN-WAIT-2. One entry in the wheel stands for all of a flow's timers.

use paste_abi::Reason;

use crate::flow::{NEVER, State};
use crate::memory::Memory;
use crate::stack::Stack;

impl Stack {
    /// Runs the timers that are due.
    pub fn advance<M: Memory>(&mut self, mem: &mut M, now: u64) {
        let now = self.clock(now);
        while let Some(id) = self.wheel.pop(now) {
            match id.checked_sub(self.config.flows_max) {
                Some(neighbour) => self.neighbour_timer(mem, now, neighbour),
                None => self.flow_timer(mem, now, id),
            }
        }
    }

    fn flow_timer<M: Memory>(&mut self, mem: &mut M, now: u64, index: u32) {
        let flow = &mut self.flows[index];
        if flow.delayed_ack_at <= now {
            flow.delayed_ack_at = NEVER;
            self.ack_now(index);
        }
        if self.flows[index].rexmit_at <= now && !self.retransmission_timer(mem, now, index) {
            return;
        }
        if self.flows[index].idle_at <= now && !self.idle_timer(mem, now, index) {
            return;
        }
        self.arm(index);
    }

    /// The retransmission or persist timer rang. `false` when the flow ended.
    fn retransmission_timer<M: Memory>(&mut self, mem: &mut M, now: u64, index: u32) -> bool {
        let timers = &self.config.timers;
        let flow = &mut self.flows[index];
        flow.rexmit_at = NEVER;
        let patience = match flow.state {
            State::SynSent => timers.connect,
            State::SynReceived => timers.accept,
            _ => flow.user_timeout,
        };
        if now.saturating_sub(flow.progress_at) >= patience {
            self.terminate(mem, index, Some(Reason::TimedOut));
            return false;
        }
        let synchronized = flow.state.is_synchronized();
        if synchronized && flow.persist {
            flow.probe_due = true;
        } else if !synchronized {
            flow.syn_due = true;
        } else if flow.outstanding() {
            self.counters.timeouts += 1;
            let (flight, mss) = (flow.flight(), u32::from(flow.mss));
            flow.congestion.on_timeout(now, flight, mss, flow.rtt.backoff() == 0);
            flow.in_recovery = false;
            flow.dupacks = 0;
            flow.recover = flow.snd_max;
        } else {
            return true;
        }
        flow.rtt.back_off();
        flow.rexmit_at = now.saturating_add(flow.rtt.timeout(timers.rto_min, timers.rto_max));
        if synchronized && !flow.persist {
            let silent = flow.rtt.backoff() >= 2;
            self.resend_all(index);
            // The neighbour may have moved.
            if silent && self.routable(&self.flows[index].key) {
                self.flows[index].mac = None;
            }
        }
        self.kick(index);
        true
    }

    /// TIME-WAIT, FIN-WAIT-2 or keepalive. `false` when the flow ended.
    fn idle_timer<M: Memory>(&mut self, mem: &mut M, now: u64, index: u32) -> bool {
        let timers = &self.config.timers;
        let flow = &mut self.flows[index];
        flow.idle_at = NEVER;
        match flow.state {
            State::TimeWait => {
                self.end_time_wait(index);
                return false;
            }
            State::FinWait2 => {
                let end = flow.heard_at.saturating_add(timers.fin_wait_2);
                if end <= now {
                    self.terminate(mem, index, Some(Reason::TimedOut));
                    return false;
                }
                flow.idle_at = end;
            }
            _ if flow.keepalive != NEVER && flow.state.is_synchronized() => {
                // RFC 9293 section 3.8.4. What is outstanding has its own timer.
                let quiet = flow.heard_at.saturating_add(flow.keepalive);
                if now < quiet {
                    flow.idle_at = quiet;
                } else if flow.outstanding() {
                    flow.idle_at = now.saturating_add(timers.keepalive_interval);
                } else if flow.keepalive_sent >= timers.keepalive_probes {
                    self.terminate(mem, index, Some(Reason::TimedOut));
                    return false;
                } else {
                    flow.keepalive_sent += 1;
                    flow.idle_at = now.saturating_add(timers.keepalive_interval);
                    flow.probe_due = true;
                    self.kick(index);
                }
            }
            _ => {}
        }
        true
    }
}
