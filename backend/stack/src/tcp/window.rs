//! The receive window: how much a peer may send, out of the buffers that there
//! are (RFC 9293 sections 3.8.6 and 3.8.6.2.2).
//!
//! A flow is charged by the buffer, and is promised no more than it may have
//! (see [`crate::tcp::charge`]). All windows together promise no more than is
//! free, and no more than half the region, but for a floor of two segments for
//! each flow without which it could not move: with many idle flows that is all
//! that there is to promise, and a long request must get through all the same.
//! A flow is promised no more than would be left, so that windows close smoothly
//! as flows come and the pool runs low; and it begins with little, so that flows
//! that do nothing keep little from others.

use crate::bufs::Place;
use crate::clock::Deadline;
use crate::stack::Stack;
use crate::tcp::seq::Seq;

/// Segments that a window may have before anything has arrived: an initial
/// window (RFC 6928) and some.
pub(crate) const SPACE_FIRST: u16 = 16;
/// What part of all that may be promised a flow gets that has sent nothing yet.
const UNPROVEN_PART: u64 = 16;
/// Segments that a window may have whatever others have.
pub(crate) const SPACE_FLOOR: u32 = 2;

impl Stack {
    /// Bytes that may still be promised, over all flows.
    #[inline]
    fn unpromised(&self) -> u64 {
        let half = (self.bufs.count() / 2).saturating_sub(self.charged);
        let limit = half.min(self.spare(self.pool_free));
        (u64::from(limit) * u64::from(self.mss)).saturating_sub(self.promised)
    }

    /// The largest window that the flow could have, bytes.
    #[inline]
    fn largest_window(&self, index: u32) -> u32 {
        let flow = &self.flows[index];
        let space = u32::from(flow.rcv_space) * u32::from(self.mss);
        // And no larger than its field can say (RFC 7323 section 2.2).
        let limit = 0xffff << u32::from(flow.rcv_scale);
        space.min(self.config.recv_window_max).min(limit)
    }

    /// The window that the flow could have now, bytes; never less than it has.
    /// `largest` is [`Stack::largest_window`].
    #[inline]
    fn desired_window(&self, index: u32, largest: u32) -> u32 {
        let flow = &self.flows[index];
        let mss = u32::from(self.mss);
        let current = flow.rcv_wnd();
        let used = flow.rx_bufs.saturating_mul(mss);
        // With the window full, the flow is still one that gets its buffers,
        // if others do not take them much faster.
        let own = self.spare(self.pool_free).saturating_sub(flow.rx_bufs) / 4;
        let limit = self.config.recv_window_max.saturating_sub(used);
        let limit = limit.min(largest).min(own.saturating_mul(mss));
        let part = if flow.rcv_space > SPACE_FIRST { 2 } else { UNPROVEN_PART };
        let fair = (self.unpromised() + u64::from(current)) / part;
        let wanted = fair.min(u64::from(limit)) as u32;
        let floor = SPACE_FLOOR * mss;
        let floor = floor.min(if used == 0 { largest } else { limit });
        current.max(wanted).max(floor)
    }

    /// What an acknowledgement without payload acknowledges. RFC 5681 section 4.2
    /// wants one for every second full segment; one alone for all that came in a
    /// turn would be missed with the whole window if it were lost. Each covers
    /// half of what is left, but two segments at least: their number grows with
    /// the logarithm of the turn's. What a device has gathered into one segment
    /// is acknowledged as one.
    #[inline]
    pub(crate) fn ack_number(&self, index: u32) -> Seq {
        let flow = &self.flows[index];
        let mss = u32::from(flow.rcv_mss).max(1);
        let segments = flow.rcv_nxt.since(flow.last_ack_sent) / mss;
        if segments < 4
            || !flow.several_due()
            || !flow.promises()
            || !flow.held.is_empty()
            || flow.dup_acks > 0
        {
            return flow.rcv_nxt;
        }
        flow.last_ack_sent + segments / 2 * mss
    }

    /// The window field of a segment about to be sent that acknowledges up to
    /// `ack`; `scaled` on all but SYN. What it promises is promised from here on:
    /// the right edge never moves left.
    #[inline]
    pub(crate) fn advertise(&mut self, index: u32, ack: Seq, scaled: bool) -> u16 {
        let largest = self.largest_window(index);
        let desired = self.desired_window(index, largest);
        let least = u32::from(self.mss).min(largest / 2);
        let flow = &mut self.flows[index];
        let current = flow.rcv_wnd();
        let scale = if scaled { u32::from(flow.rcv_scale) } else { 0 };
        // The field counts from the acknowledged number on.
        let behind = flow.rcv_nxt.since(ack);
        // Silly window avoidance: not by less than a segment, or half of what
        // the flow could have. And nothing after the peer's FIN.
        let grows = desired - current >= least && flow.promises();
        let window = if grows { desired } else { current };
        let mut field = ((behind + window) >> scale).min(0xffff);
        if field << scale < behind + current {
            // Rounding must not take back what was promised.
            field = (behind + current).div_ceil(1 << scale).min(0xffff);
        }
        let window = (field << scale).saturating_sub(behind);
        if window > current && flow.promises() {
            flow.rcv_adv = flow.rcv_nxt + window;
            self.promised += u64::from(window - current);
        }
        field as u16
    }

    /// The flow's window no longer counts: it receives no more.
    pub(crate) fn withdraw_promise(&mut self, index: u32) {
        let flow = &mut self.flows[index];
        if flow.promises() {
            flow.set_promises(false);
            self.promised -= u64::from(flow.rcv_wnd());
        }
    }

    /// The guest gave up a buffer that carried received payload, or keeps it for
    /// good: its flow's window opens again. Harmless for any other buffer of the
    /// guest's.
    ///
    /// True if shared sends of it are under way: it must not go to the pool, but
    /// become the stack's, by [`Stack::retire`].
    #[inline]
    pub fn release(&mut self, now: u64, buf: u32) -> bool {
        self.clock(now);
        if buf >= self.bufs.count() {
            return false;
        }
        if let Some(index) = self.uncharge_delivered(buf)
            && self.flows[index].state.may_receive()
        {
            self.tell_of_window(index);
        }
        self.bufs.get(buf).pins > 0
    }

    /// The stack has become the owner of a buffer that [`Stack::release`] said so
    /// of; it gives it to the pool when the last of its sends has ended.
    pub fn retire(&mut self, buf: u32) {
        if buf < self.bufs.count() {
            let meta = self.bufs.get_mut(buf);
            debug_assert!(meta.place == Place::Elsewhere && meta.pins > 0);
            meta.place = Place::Pinned;
        }
    }

    /// Acknowledges now if a window that has opened is news.
    #[inline]
    fn tell_of_window(&mut self, index: u32) {
        // RFC 9293 section 3.8.6.2.2: tell the peer when it may be waiting, and
        // otherwise let the next segment carry the news.
        let mss = u32::from(self.mss);
        let (current, largest) = (self.flows[index].rcv_wnd(), self.largest_window(index));
        if current >= mss && current > largest - largest / 2 {
            // It is open by more than half, whatever it could be.
            return;
        }
        let growth = self.desired_window(index, largest) - current;
        if growth >= largest / 2 || (current < mss && growth >= mss) {
            self.ack_now(index);
        }
    }

    /// An acknowledgement of `ack` has just been written into a segment, which is
    /// `pure` if it carries nothing else.
    #[inline]
    pub(crate) fn acknowledged(&mut self, index: u32, ack: Seq, pure: bool) {
        let flow = &mut self.flows[index];
        flow.delayed_ack_at = Deadline::NEVER;
        flow.last_ack_sent = ack;
        flow.dsack_len = 0;
        flow.set_ack_due(flow.dup_acks > 0 || ack != flow.rcv_nxt);
        if flow.ack_due() {
            // RFC 5681 section 2: one with payload is no duplicate.
            flow.dup_acks = flow.dup_acks.saturating_sub(u8::from(pure));
            self.kick(index);
        }
    }
}
