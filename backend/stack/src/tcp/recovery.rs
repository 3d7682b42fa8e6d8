//! What is made of news from the peer about what was delivered: whether
//! something was lost, what is sent again, and whether that was a mistake
//! (RFC 6675, 6582, 8985, 3522, 3708, 3168).
//!
//! ```text
//!            loss                           SND.UNA passes `recover`
//!   Open ------------> Recovery ---------------------------------> Open
//!     \ timeout           | timeout           |                      ^
//!      `---------------> Loss <---------------' ---------------------'
//!                          `- - - - spurious: undone - - - - - - - - '
//! ```

use crate::bufs::{Bufs, NIL};
use crate::clock::Moment;
use crate::config::MS;
use crate::flow::FlowState;
use crate::stack::Stack;
use crate::tcp::repair::Repair;
use crate::tcp::rtt::{SLOWEST_PATH, Stamp};
use crate::tcp::scoreboard::{self, Delivery, Look};
use crate::tcp::seq::Seq;

/// RFC 5681 section 3.2: duplicate acknowledgements that mean a loss.
const DUPACKS: u8 = 3;

/// What the sender is doing about loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Nothing was lost.
    Open,
    /// What was lost is sent again, by the acknowledgements of the rest.
    Recovery,
    /// After a retransmission timeout: everything unacknowledged counts as
    /// lost, and is sent again in slow start.
    Loss,
}

/// A tail loss probe (RFC 8985 section 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tail {
    /// None is out.
    None,
    /// It was new payload.
    New,
    /// It was payload sent before.
    Again,
}

/// What is needed to tell that a reduction of the window was a mistake.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Undo {
    /// It can still be undone.
    armed: bool,
    /// Segments sent again and not yet told of as arrived twice.
    pending: u8,
    /// Our timestamp on the first of them, if that was the oldest segment in
    /// flight, whose acknowledgement tells which copy arrived (RFC 3522 section
    /// 3.2); otherwise zero.
    timestamp: u32,
    /// Whether one was sent at all.
    sent: bool,
    /// The reduction was for a timeout.
    timeout: bool,
}

impl Undo {
    pub(crate) const NONE: Undo =
        Undo { armed: false, pending: 0, timestamp: 0, sent: false, timeout: false };

    fn arm(timeout: bool) -> Undo {
        Undo { armed: true, timeout, ..Undo::NONE }
    }

    /// A segment was sent again, with this timestamp of ours; `telling` if it is
    /// the oldest in flight.
    pub(crate) fn on_resent(&mut self, timestamp: u32, telling: bool) {
        if !self.sent {
            self.sent = true;
            self.timestamp = if telling { timestamp } else { 0 };
        }
        self.pending = self.pending.saturating_add(1);
    }

    /// The peer got a segment that was sent again twice. Returns whether that
    /// is so for all of them (RFC 3708 section 3).
    fn on_duplicate(&mut self) -> bool {
        // Too many to count are not all told of.
        if !self.armed || self.pending == 0 || self.pending == u8::MAX {
            return false;
        }
        self.pending -= 1;
        self.pending == 0
    }
}

/// What one acknowledgement said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct News {
    pub ack: Seq,
    /// Bytes by which SND.UNA moved, if it did.
    pub advanced: Option<u32>,
    /// Before it: FlightSize, what was thought to be on its way, and what was lost.
    pub flight: u32,
    pub pipe: u32,
    pub lost: u32,
    /// RFC 5681 section 2, with nothing said of SACK.
    pub duplicate: bool,
    /// It told of something that arrived twice.
    pub dsack: bool,
    /// It had ECE (RFC 3168 section 6.1).
    pub congestion: bool,
    /// The timestamp that it echoed.
    pub echo: Option<u32>,
    pub delivery: Delivery,
}

impl FlowState {
    /// Whether something is to be sent again.
    #[inline]
    pub(crate) fn resends(&self) -> bool {
        self.lost_bytes > 0 || self.fin_lost()
    }

    /// Whether nothing is lost, doubted, probed or sent again: what is acknowledged
    /// now has arrived in order, and says nothing else.
    #[inline]
    pub(crate) fn is_calm(&self) -> bool {
        self.phase == Phase::Open
            && self.repair == NIL
            && self.tail == Tail::None
            && self.lost_bytes | self.sacked_bytes == 0
            && self.dupacks == 0
            && self.rtt.backoff() == 0
            && !self.undo.armed
            && !self.path.is_probing()
    }

    /// `delivered` bytes of the `pipe` that was in flight have arrived, and nothing
    /// is lost.
    #[inline]
    fn grow_window(&mut self, now: u64, delivered: u32, pipe: u32) {
        if delivered > 0 {
            let slow = self.congestion.in_slow_start();
            let limited = self.window_full()
                || (slow && 2 * u64::from(pipe) >= self.congestion.window().into());
            let (smoothed, mss) = (self.rtt.smoothed(), u32::from(self.mss));
            self.congestion.on_ack(now, delivered, smoothed, mss, limited);
        }
    }

    /// The reordering window now, ns.
    fn reordering_window(&self) -> u64 {
        let sure = self.phase != Phase::Open
            || self.sacked_bytes >= u32::from(DUPACKS) * u32::from(self.mss);
        self.rack.window(sure, self.rtt.smallest(), self.rtt.smoothed())
    }

    /// The round-trip time by the timestamp that came back, ns: coarse, but of
    /// one copy of what was sent again (RFC 7323 section 4.1).
    fn echoed_rtt(&self, now: u64, news: &News) -> Option<u64> {
        let echo = news.echo.filter(|echo| self.timestamps() && *echo != 0)?;
        news.advanced?;
        let ticks = Seq(self.timestamp(now)).since(Seq(echo));
        // When it was our acknowledgement that got lost, the echo is of the
        // first copy, and has waited as long as we have.
        let rtt = (u64::from(ticks) * MS).max(MS);
        (rtt <= SLOWEST_PATH).then_some(rtt)
    }
}

impl Stack {
    /// The buffers, a flow and the record of its repair, which it borrows if it
    /// has none. `None` for a flow with nothing in its send queue, which has
    /// nothing to repair.
    pub(crate) fn repairing(
        &mut self,
        index: u32,
    ) -> Option<(&mut Bufs, &mut FlowState, &mut Repair)> {
        let flow = &mut self.flows[index];
        if flow.repair == NIL {
            if flow.tx.is_empty() {
                return None;
            }
            flow.repair = self.repairs.take(flow.snd_una)?;
        }
        let repair = &mut self.repairs[flow.repair];
        Some((&mut self.bufs, flow, repair))
    }

    /// Gives back the record of a repair, if there is one.
    #[inline]
    pub(crate) fn end_repair(&mut self, index: u32) {
        let flow = &mut self.flows[index];
        if flow.repair != NIL {
            scoreboard::clear(&mut self.bufs, &mut self.repairs[flow.repair]);
            self.repairs.give(flow.repair);
            flow.repair = NIL;
        }
    }

    /// Draws the conclusions from an acknowledgement.
    #[inline]
    pub(crate) fn take_news(&mut self, now: u64, index: u32, news: &News) {
        let flow = &mut self.flows[index];
        // RFC 6298 section 3. What lay behind a hole waited for it to close,
        // however long ago it arrived.
        let measured = match news.delivery.sent_once {
            Some(sent) if !news.delivery.resent => Some(Stamp::at(now).since(sent).max(1)),
            _ if flow.rtt.backoff() > 0 => flow.echoed_rtt(now, news),
            _ => None,
        };
        if let Some(rtt) = measured {
            flow.rtt.sample(now, rtt);
            flow.rtt.end_backoff();
            flow.congestion.on_rtt(rtt);
        }
        if news.advanced.is_some() {
            // RFC 6298 section 5: only a measurement ends it, or else a path
            // that is slower than the timeout would never be measured. A peer
            // with SACK tells of what it got twice: see `dsack_input`.
            if flow.sack() {
                flow.rtt.end_backoff();
            } else {
                flow.rtt.ease_backoff(self.config.timers.rto_min);
            }
            flow.progress_at = Moment::at(now);
            flow.path.on_progress();
        }
        if news.duplicate {
            self.counters.duplicate_acks_in += 1;
        }
        if !flow.sack() {
            self.count_duplicates(index, news);
        }
        if news.dsack {
            self.dsack_input(now, index);
        }
        self.tail_probe_input(now, index, news);
        self.undo_by_timestamp(now, index, news);
        let wait = self.look_for_losses(now, index, news);
        self.move_phase(now, index, news);
        self.echo_input(now, index, news);
        self.path_probe_input(now, index);
        if news.advanced.is_some() || news.delivery.bytes > 0 || wait.is_some() {
            self.rearm(now, index, wait);
        }
        let flow = &self.flows[index];
        if flow.repair != NIL && flow.phase == Phase::Open && flow.sacked_bytes == 0 {
            let repair = &self.repairs[flow.repair];
            if flow.lost_bytes == 0 && repair.resent.is_empty() {
                self.end_repair(index);
            }
        }
    }

    /// What [`Stack::take_news`] comes to where the flow is calm: most
    /// acknowledgements. `pipe` is what was in flight before.
    #[inline]
    pub(crate) fn take_calm_news(&mut self, now: u64, index: u32, pipe: u32, delivery: &Delivery) {
        let flow = &mut self.flows[index];
        if let Some(sent) = delivery.sent_once {
            let rtt = Stamp::at(now).since(sent).max(1);
            flow.rtt.sample(now, rtt);
            flow.congestion.on_rtt(rtt);
        }
        flow.progress_at = Moment::at(now);
        flow.path.on_progress();
        flow.grow_window(now, delivery.bytes, pipe);
        self.rearm(now, index, None);
    }

    /// Without SACK, duplicates tell how much was delivered (RFC 6582, and
    /// RFC 5681 section 3.2).
    fn count_duplicates(&mut self, index: u32, news: &News) {
        let flow = &mut self.flows[index];
        let mss = u32::from(flow.mss);
        if let Some(advanced) = news.advanced {
            // One segment filled the hole; the others had come before.
            let before = advanced.saturating_sub(mss);
            flow.sacked_bytes = match flow.phase {
                Phase::Open => 0,
                _ => flow.sacked_bytes.saturating_sub(before),
            };
            flow.dupacks = if flow.phase == Phase::Open { 0 } else { flow.dupacks };
        } else if news.duplicate {
            flow.dupacks = flow.dupacks.saturating_add(1);
            flow.sacked_bytes += mss;
        }
        let limit = flow.flight().saturating_sub(flow.lost_bytes).saturating_sub(mss);
        flow.sacked_bytes = flow.sacked_bytes.min(limit);
    }

    /// Marks what is lost by now. Returns how long to wait for what may only be
    /// reordered, ns.
    #[inline]
    fn look_for_losses(&mut self, now: u64, index: u32, news: &News) -> Option<u64> {
        if self.flows[index].repair == NIL && !news.duplicate {
            // Everything is delivered in order.
            return None;
        }
        let (bufs, flow, repair) = self.repairing(index)?;
        if flow.sack() {
            let window = flow.reordering_window();
            return match scoreboard::detect_losses(bufs, flow, repair, Stamp::at(now), window) {
                Look::Done => None,
                Look::Again(wait) => Some(wait),
            };
        }
        match flow.phase {
            // RFC 6582 section 3.2, step 2: not again for what a timeout has
            // sent again already.
            Phase::Open if flow.dupacks >= DUPACKS && !flow.snd_una.before(flow.recover) => {
                scoreboard::mark_head_lost(bufs, flow, repair);
            }
            // Step 3: a partial acknowledgement names the next hole.
            Phase::Recovery if news.advanced.is_some() && flow.snd_una.before(flow.recover) => {
                scoreboard::mark_head_lost(bufs, flow, repair);
            }
            _ => {}
        }
        None
    }

    #[inline]
    fn move_phase(&mut self, now: u64, index: u32, news: &News) {
        let flow = &mut self.flows[index];
        let mss = u32::from(flow.mss);
        let delivered = match news.advanced {
            // A duplicate acknowledgement without SACK is a segment delivered.
            None if !flow.sack() && news.duplicate => mss,
            _ => news.delivery.bytes,
        };
        if flow.phase != Phase::Open && !flow.snd_una.before(flow.recover) {
            if flow.phase == Phase::Recovery {
                let pipe = flow.pipe();
                flow.congestion.on_recovered(now, pipe, mss);
                flow.rack.on_recovered();
            }
            flow.phase = Phase::Open;
            flow.dupacks = 0;
            flow.set_rexmit_due(false);
            if !flow.sack() {
                flow.sacked_bytes = 0;
            }
            flow.undo.armed &= flow.undo.pending > 0;
        }
        match flow.phase {
            Phase::Open if flow.lost_bytes > 0 => self.enter_recovery(now, index, news, delivered),
            Phase::Open => {
                if news.advanced.is_some() {
                    flow.grow_window(now, delivered, news.pipe);
                }
            }
            Phase::Recovery => {
                let safe = news.advanced.is_some() && flow.lost_bytes <= news.lost;
                let pipe = flow.pipe();
                flow.congestion.on_recovery_ack(delivered, pipe, safe, mss);
            }
            Phase::Loss => {
                if news.advanced.is_some() {
                    let smoothed = flow.rtt.smoothed();
                    flow.congestion.on_ack(now, delivered, smoothed, mss, true);
                }
            }
        }
    }

    fn enter_recovery(&mut self, now: u64, index: u32, news: &News, delivered: u32) {
        let flow = &mut self.flows[index];
        let mss = u32::from(flow.mss);
        if self.path_probe_lost(now, index) {
            return;
        }
        let flow = &mut self.flows[index];
        flow.congestion.on_loss(now, news.flight, mss);
        let pipe = flow.pipe();
        flow.congestion.on_recovery_ack(delivered, pipe, false, mss);
        flow.phase = Phase::Recovery;
        flow.recover = flow.snd_nxt;
        flow.tail = Tail::None;
        // RFC 6675 section 5, step 4.3: one goes at once.
        flow.set_rexmit_due(true);
        flow.set_cwr_due(flow.ecn());
        flow.ecn_recover = flow.snd_nxt;
        flow.undo = Undo::arm(false);
        self.counters.fast_retransmits += 1;
    }

    /// Everything in flight is lost: the retransmission timer rang (RFC 6298
    /// section 5, RFC 5681 section 3.1).
    pub(crate) fn enter_loss(&mut self, now: u64, index: u32) {
        if let Some((bufs, flow, repair)) = self.repairing(index) {
            // RFC 2018 section 8: a peer that had the first byte and lost it
            // again has reneged; nothing that it told of can be relied on.
            let head = bufs.get(flow.tx.head);
            let renege = head.sacked & 1 != 0 && flow.snd_una == Seq(head.seq);
            scoreboard::mark_all_lost(bufs, flow, repair, renege);
        }
        let flow = &mut self.flows[index];
        let (flight, mss) = (flow.flight(), u32::from(flow.mss));
        // Not the same data again.
        let first = flow.phase != Phase::Loss;
        flow.congestion.on_timeout(now, flight, mss, first);
        if first || !flow.undo.armed {
            flow.undo = Undo::arm(true);
        }
        flow.set_fin_lost(flow.snd_nxt.after(flow.snd_end));
        flow.phase = Phase::Loss;
        flow.recover = flow.snd_nxt;
        flow.dupacks = 0;
        flow.tail = Tail::None;
        flow.set_tail_due(false);
        flow.set_rexmit_due(true);
        flow.set_cwr_due(flow.ecn());
        flow.ecn_recover = flow.snd_nxt;
    }

    /// What the timer of a look for losses brought.
    pub(crate) fn reordering_timer(&mut self, now: u64, index: u32) {
        let flow = &self.flows[index];
        let news = News {
            ack: flow.snd_una,
            advanced: None,
            flight: flow.flight(),
            pipe: flow.pipe(),
            lost: flow.lost_bytes,
            duplicate: false,
            dsack: false,
            congestion: false,
            echo: None,
            delivery: Delivery::default(),
        };
        let wait = self.look_for_losses(now, index, &news);
        self.move_phase(now, index, &news);
        self.rearm(now, index, wait);
        self.kick(index);
    }

    /// The peer reduces its window for congestion (RFC 3168 section 6.1.2): at
    /// most once for each window.
    fn echo_input(&mut self, now: u64, index: u32, news: &News) {
        let flow = &mut self.flows[index];
        if !news.congestion || !flow.ecn() || flow.phase != Phase::Open {
            return;
        }
        if !flow.snd_una.after(flow.ecn_recover) {
            // The segment that tells the peer of the last reduction is not
            // acknowledged yet.
            return;
        }
        flow.congestion.on_ecn(now, news.flight, u32::from(flow.mss));
        flow.ecn_recover = flow.snd_nxt;
        flow.set_cwr_due(true);
        self.counters.ecn_reductions += 1;
    }

    fn dsack_input(&mut self, now: u64, index: u32) {
        let flow = &mut self.flows[index];
        flow.rack.on_dsack(flow.snd_una, flow.snd_nxt);
        let timeout = flow.undo.timeout;
        if flow.undo.on_duplicate() {
            if timeout {
                // The path is slower than the timeout.
                let rto = flow.rtt.timeout(0, SLOWEST_PATH);
                flow.rtt.sample(now, 2 * rto.max(self.config.timers.rto_min));
            }
            self.undo(now, index);
        }
    }

    /// RFC 3522 section 3.2: an echo older than what was sent again is of the
    /// first copy.
    fn undo_by_timestamp(&mut self, now: u64, index: u32, news: &News) {
        let flow = &self.flows[index];
        let undo = &flow.undo;
        if !flow.timestamps() || news.advanced.is_none() {
            return;
        }
        if let Some(echo) = news.echo
            && undo.armed
            && undo.timestamp != 0
            && echo != 0
            && Seq(echo).before(Seq(undo.timestamp))
        {
            self.undo(now, index);
        }
    }

    /// Nothing was lost (RFC 4015 section 3).
    fn undo(&mut self, now: u64, index: u32) {
        if let Some((bufs, flow, repair)) = self.repairing(index) {
            scoreboard::unmark_lost(bufs, flow, repair);
        }
        let flow = &mut self.flows[index];
        flow.undo = Undo::NONE;
        flow.congestion.undo(now);
        if !flow.sack() {
            flow.sacked_bytes = 0;
        }
        flow.set_fin_lost(false);
        flow.set_rexmit_due(false);
        flow.phase = Phase::Open;
        flow.dupacks = 0;
        self.counters.undone += 1;
    }

    /// RFC 8985 section 7.4.2.
    fn tail_probe_input(&mut self, now: u64, index: u32, news: &News) {
        let flow = &mut self.flows[index];
        if flow.tail == Tail::None || news.ack.before(flow.recover) {
            return;
        }
        let repaired = flow.tail == Tail::Again && !news.dsack && news.ack.after(flow.recover);
        let over = flow.tail == Tail::New || news.dsack || news.duplicate || repaired;
        if repaired && flow.phase == Phase::Open {
            // The probe filled a hole: that was a loss too.
            let mss = u32::from(flow.mss);
            flow.congestion.on_loss(now, news.flight, mss);
            let pipe = flow.pipe();
            flow.congestion.on_recovered(now, pipe, mss);
        }
        if over {
            flow.tail = Tail::None;
        }
    }
}
