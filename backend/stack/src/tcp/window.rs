//! The receive window: how much a peer may send, out of the buffers that there
//! are (RFC 9293 sections 3.8.6 and 3.8.6.2.2).
//!
//! A buffer carries one segment, however small, so a flow is charged by the
//! buffer: each that it holds, or that its guest has not given up, takes one
//! full segment off its window. All windows together promise no more than half
//! the region's buffers, but for a floor of two segments for each flow without
//! which it could not move at all.

use paste_abi::Flow;

use crate::bufs::Place;
use crate::flow::NEVER;
use crate::stack::Stack;

impl Stack {
    /// Buffers that are one flow's fair share.
    pub(crate) fn share(&self) -> u32 {
        (self.bufs.count() / 2 / self.open.max(1)).max(2)
    }

    /// The largest window that a flow can have now, bytes.
    fn largest_window(&self) -> u32 {
        self.share().saturating_mul(u32::from(self.mss)).min(self.config.recv_window_max)
    }

    /// The window that the flow could have now, bytes; never less than it has.
    fn desired_window(&self, index: u32) -> u32 {
        let flow = &self.flows[index];
        let mss = u32::from(self.mss);
        let current = flow.rcv_wnd();
        let used = flow.rx_bufs.saturating_mul(mss);
        let wanted = self.largest_window().saturating_sub(used);
        if wanted <= current {
            return current;
        }
        let limit = u64::from(self.bufs.count() / 2) * u64::from(mss);
        let room = limit.saturating_sub(self.promised).min(u64::from(wanted - current)) as u32;
        let floor = (2 * mss).saturating_sub(used).min(wanted);
        (current + room).max(floor)
    }

    /// The window field of a segment about to be sent; `scaled` on all but SYN.
    /// What it promises is promised from here on: the right edge never moves
    /// left.
    pub(crate) fn advertise(&mut self, index: u32, scaled: bool) -> u16 {
        let desired = self.desired_window(index);
        let least = u32::from(self.mss).min(self.largest_window() / 2);
        let flow = &mut self.flows[index];
        let current = flow.rcv_wnd();
        let scale = if scaled { u32::from(flow.rcv_scale) } else { 0 };
        // Silly window avoidance: not by less than a segment, or half of what
        // the flow could have. And nothing after the peer's FIN.
        let grows = desired - current >= least && flow.promises;
        let window = if grows { desired } else { current };
        let mut field = (window >> scale).min(0xffff);
        if field << scale < current {
            // Rounding must not take back what was promised.
            field = current.div_ceil(1 << scale).min(0xffff);
        }
        let window = field << scale;
        if window > current && flow.promises {
            flow.rcv_adv = flow.rcv_nxt + window;
            self.promised += u64::from(window - current);
        }
        field as u16
    }

    /// The flow's window no longer counts: it receives no more.
    pub(crate) fn withdraw_promise(&mut self, index: u32) {
        let flow = &mut self.flows[index];
        if flow.promises {
            flow.promises = false;
            self.promised -= u64::from(flow.rcv_wnd());
        }
    }

    /// The guest gave up a buffer that carried received payload: its flow's
    /// window opens again. Harmless for any other buffer.
    pub fn release(&mut self, now: u64, buf: u32) {
        self.clock(now);
        if buf >= self.bufs.count() {
            return;
        }
        let meta = self.bufs.get_mut(buf);
        if meta.place != Place::Delivered {
            return;
        }
        meta.place = Place::Elsewhere;
        let name = Flow(meta.flow);
        let Some(index) = self.flows.find(name) else {
            return;
        };
        self.flows[index].rx_bufs -= 1;
        if !self.flows[index].state.may_receive() {
            return;
        }
        // RFC 9293 section 3.8.6.2.2: tell the peer when it may be waiting, and
        // otherwise let the next segment carry the news.
        let mss = u32::from(self.mss);
        let current = self.flows[index].rcv_wnd();
        let growth = self.desired_window(index) - current;
        if growth >= self.largest_window() / 2 || (current < mss && growth >= mss) {
            self.ack_now(index);
        }
    }

    /// An acknowledgement has just been written into a segment, which is `pure`
    /// if it carries nothing else.
    pub(crate) fn acknowledged(&mut self, index: u32, pure: bool) {
        let flow = &mut self.flows[index];
        flow.delayed_ack_at = NEVER;
        flow.last_ack_sent = flow.rcv_nxt;
        flow.dsack_len = 0;
        flow.ack_due = flow.dup_acks > 0;
        if flow.ack_due {
            // RFC 5681 section 2: one with payload is no duplicate.
            flow.dup_acks -= u8::from(pure);
            self.kick(index);
        }
    }
}
