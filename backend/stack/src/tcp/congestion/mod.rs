//! How much may be in flight.
//!
//! [`Control`] is a flow's congestion control: it is told what happened, with
//! the time, and knows nothing of sequence numbers or timers. Bytes throughout,
//! and integers only. It goes through three phases:
//!
//! ```text
//!   SlowStart --- cwnd reaches ssthresh, or the RTT rises (hystart) --> Avoidance
//!       ^                                                              |    ^
//!       |  timeout, idle                                    loss (prr) |    |
//!       +------------------------- Recovery <--------------------------+    |
//!                                      |                                    |
//!                                      +---------- all acknowledged --------+
//! ```
//!
//! What falls and grows how fast is an [`Algorithm`]'s: [`cubic`] or
//! [`newreno`]. Slow start, recovery and the undo of a reduction that was
//! needless are the same for both.

mod cubic;
mod hystart;
mod newreno;
mod prr;
#[cfg(test)]
mod tests;

use self::cubic::Cubic;
use self::hystart::HyStart;
use self::newreno::NewReno;
use self::prr::Prr;
use crate::config::CongestionControl;

/// No window is larger than what RFC 7323 section 2.3 can express.
const WINDOW_MAX: u32 = 1 << 30;

/// A congestion control algorithm: how the window falls on congestion, and how
/// it grows while it avoids congestion.
trait Algorithm {
    /// Congestion, with `cwnd` and `flight` as they were before it. Gives the
    /// window that remains, which may be less than a segment.
    fn reduce(&mut self, cwnd: u32, flight: u32) -> u32;

    /// The congestion was a timeout: the path may have changed altogether.
    fn forget(&mut self);

    /// Congestion avoidance is entered anew.
    fn restart(&mut self);

    /// The window was not what held the sender back, so the time that passes
    /// says nothing.
    fn pause(&mut self);

    /// Payload was acknowledged in congestion avoidance. Gives the new window,
    /// which is no smaller than `cwnd`.
    fn grow(&mut self, cwnd: u32, credit: &mut u32, ack: &Ack) -> u32;
}

/// An acknowledgement in congestion avoidance.
#[derive(Clone, Copy, Debug)]
struct Ack {
    /// ns.
    now: u64,
    /// Payload bytes newly delivered.
    acked: u32,
    /// Smoothed round-trip time, ns.
    srtt: u64,
    mss: u32,
    /// The window before the last congestion; zero before the first.
    prior: u32,
}

/// The algorithm of a flow and its state. The variant without state lies in a
/// value that the other's `w_max` never has.
#[derive(Clone, Copy, Debug)]
enum Chosen {
    Cubic(Cubic),
    NewReno(NewReno),
}

impl Chosen {
    fn new(kind: CongestionControl) -> Chosen {
        match kind {
            CongestionControl::Cubic => Chosen::Cubic(Cubic::new()),
            CongestionControl::NewReno => Chosen::NewReno(NewReno),
        }
    }
}

/// Calls the same of the algorithm that it is.
macro_rules! chosen {
    ($chosen:expr, $name:ident => $call:expr) => {
        match $chosen {
            Chosen::Cubic($name) => $call,
            Chosen::NewReno($name) => $call,
        }
    };
}

impl Algorithm for Chosen {
    fn reduce(&mut self, cwnd: u32, flight: u32) -> u32 {
        chosen!(self, a => a.reduce(cwnd, flight))
    }

    fn forget(&mut self) {
        chosen!(self, a => a.forget());
    }

    fn restart(&mut self) {
        chosen!(self, a => a.restart());
    }

    fn pause(&mut self) {
        chosen!(self, a => a.pause());
    }

    #[inline]
    fn grow(&mut self, cwnd: u32, credit: &mut u32, ack: &Ack) -> u32 {
        chosen!(self, a => a.grow(cwnd, credit, ack))
    }
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// `cwnd` is below `ssthresh`.
    SlowStart(HyStart),
    /// Holds bytes that were acknowledged and have bought no segment yet
    /// (RFC 3465 section 2.1).
    Avoidance { credit: u32 },
    /// After a loss, until what was in flight then is acknowledged.
    Recovery(Prr),
}

/// The congestion control of one flow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Control {
    cwnd: u32,
    /// [`WINDOW_MAX`] before the first congestion.
    ssthresh: u32,
    phase: Phase,
    algorithm: Chosen,
    /// `cwnd` before the last reduction; zero before the first.
    prior_cwnd: u32,
    /// `ssthresh` before the last reduction; zero when there is nothing to undo.
    undo_ssthresh: u32,
    /// The algorithm before the last reduction.
    undo_algorithm: Chosen,
}

// Every flow has one.
const _: () = assert!(size_of::<Control>() <= 56);

/// RFC 6928 section 2.
fn initial_window(mss: u32) -> u32 {
    (10 * mss).min((2 * mss).max(14600))
}

/// The smallest threshold (RFC 5681 equation (4), RFC 9438 section 4.6).
fn ssthresh_min(mss: u32) -> u32 {
    2 * mss
}

impl Control {
    /// A new connection's, with the initial window of RFC 6928.
    pub(crate) fn new(kind: CongestionControl, mss: u32) -> Control {
        let algorithm = Chosen::new(kind);
        let cwnd = initial_window(mss);
        Control {
            cwnd,
            ssthresh: WINDOW_MAX,
            phase: Phase::SlowStart(HyStart::new(cwnd)),
            algorithm,
            prior_cwnd: 0,
            undo_ssthresh: 0,
            undo_algorithm: algorithm,
        }
    }

    /// The handshake was so lossy that the initial window is one segment.
    pub(crate) fn on_lossy_handshake(&mut self, mss: u32) {
        self.cwnd = mss;
        self.phase = Phase::SlowStart(HyStart::new(mss));
    }

    /// Bytes that may be in flight. During recovery "in flight" leaves out what
    /// is lost or was selectively acknowledged (`pipe` in RFC 6675).
    #[inline]
    pub(crate) fn window(&self) -> u32 {
        self.cwnd
    }

    /// Where slow start ends (ssthresh in RFC 5681 section 2).
    pub(crate) fn threshold(&self) -> u32 {
        self.ssthresh
    }

    /// Whether the window grows by what is acknowledged.
    #[inline]
    pub(crate) fn in_slow_start(&self) -> bool {
        matches!(self.phase, Phase::SlowStart(_))
    }

    /// Outside recovery: `acked` bytes were newly delivered. `limited` says
    /// whether the window was what held the sender back.
    #[inline]
    pub(crate) fn on_ack(&mut self, now: u64, acked: u32, srtt_ns: u64, mss: u32, limited: bool) {
        let acked = acked.min(WINDOW_MAX);
        match &mut self.phase {
            Phase::Recovery(_) => {}
            Phase::SlowStart(hystart) => {
                // RFC 9406 section 4.2 in the first slow start, and in later
                // ones, whose end is known, RFC 5681 equation (2).
                let grow = if self.ssthresh == WINDOW_MAX {
                    hystart.on_ack(acked, self.cwnd, mss)
                } else {
                    Some(acked.min(mss))
                };
                let Some(grow) = grow else {
                    self.ssthresh = self.cwnd;
                    self.enter_phase();
                    return;
                };
                // RFC 7661 section 4.1: an unused window says nothing about the
                // path.
                if limited {
                    self.cwnd = (self.cwnd + grow).min(self.ssthresh);
                    if self.cwnd == self.ssthresh {
                        self.enter_phase();
                    }
                }
            }
            Phase::Avoidance { credit } => {
                if limited {
                    // A window buys a segment, and no acknowledgement is for more.
                    let acked = acked.min(self.cwnd);
                    let ack = Ack { now, acked, srtt: srtt_ns, mss, prior: self.prior_cwnd };
                    self.cwnd = self.algorithm.grow(self.cwnd, credit, &ack).min(WINDOW_MAX);
                } else {
                    self.algorithm.pause();
                }
            }
        }
    }

    /// A round-trip time was measured, for the end of the first slow start
    /// (RFC 9406). Too few per round trip leave it to loss.
    #[inline]
    pub(crate) fn on_rtt(&mut self, rtt_ns: u64) {
        if let Phase::SlowStart(hystart) = &mut self.phase {
            hystart.on_rtt(rtt_ns);
        }
    }

    /// Loss, with `flight` bytes in flight (FlightSize): recovery begins. Call
    /// [`Control::on_recovery_ack`] next, for the same acknowledgement. During
    /// recovery, the loss of a retransmission: another indication of congestion
    /// (RFC 5681 section 4.3), of which undo takes back the last alone.
    pub(crate) fn on_loss(&mut self, _now: u64, flight: u32, mss: u32) {
        let remains = self.reduce(flight);
        self.ssthresh = remains.max(ssthresh_min(mss)).min(WINDOW_MAX);
        self.cwnd = self.ssthresh;
        self.phase = Phase::Recovery(Prr::new(flight));
    }

    /// The peer tells of a congestion mark, with `flight` bytes in flight
    /// (RFC 3168 section 6.1.2); the caller sees to it that this is once per
    /// round trip. The factor is that of a loss (RFC 9438 section 4.6).
    pub(crate) fn on_ecn(&mut self, _now: u64, flight: u32, mss: u32) {
        if !matches!(self.phase, Phase::Recovery(_)) {
            let remains = self.reduce(flight);
            // Unlike a loss it has left the flow its segments, so one is enough.
            self.cwnd = remains.max(mss);
            self.ssthresh = remains.max(ssthresh_min(mss)).min(WINDOW_MAX);
            self.enter_phase();
        }
        // A mark is never spurious, whatever the losses beside it were.
        self.undo_ssthresh = 0;
    }

    /// An acknowledgement during recovery: `delivered` bytes newly delivered,
    /// cumulatively or selectively, and `pipe` bytes in flight now. `safe` says
    /// whether SND.UNA advanced and nothing more was found lost (RFC 9937
    /// section 6, SafeACK).
    pub(crate) fn on_recovery_ack(&mut self, delivered: u32, pipe: u32, safe: bool, mss: u32) {
        if let Phase::Recovery(prr) = &mut self.phase {
            let allowed = prr.on_ack(delivered, pipe, safe, self.ssthresh, mss);
            self.cwnd = pipe.saturating_add(allowed).min(WINDOW_MAX);
        }
    }

    /// `bytes` were sent or sent again while in recovery.
    #[inline]
    pub(crate) fn on_sent_in_recovery(&mut self, bytes: u32) {
        if let Phase::Recovery(prr) = &mut self.phase {
            prr.on_sent(bytes);
        }
    }

    /// Recovery ends, with `pipe` bytes in flight. The window is the threshold
    /// (RFC 9937 section 6), but not so far above what is in flight that the
    /// difference would be a larger burst than a new connection's; RFC 6582
    /// section 3.2, step 3, asks for such a bound.
    pub(crate) fn on_recovered(&mut self, _now: u64, pipe: u32, mss: u32) {
        if let Phase::Recovery(_) = self.phase {
            self.cwnd = self.ssthresh.min(pipe.saturating_add(initial_window(mss)));
            self.enter_phase();
        }
    }

    /// The retransmission timer rang, with `flight` bytes in flight; `first`
    /// for the first time for this data.
    pub(crate) fn on_timeout(&mut self, _now: u64, flight: u32, mss: u32, first: bool) {
        // RFC 5681 section 3.1: `ssthresh` is kept while the same data times
        // out again.
        if first {
            let remains = self.reduce(flight);
            self.ssthresh = remains.max(ssthresh_min(mss)).min(WINDOW_MAX);
            self.algorithm.forget();
        }
        self.cwnd = mss; // RFC 5681 section 3.1: the loss window
        self.enter_phase();
    }

    /// The last reduction was for a loss that was none (RFC 9438 section 4.9).
    /// The window is what it was: with little in flight now, the caller must
    /// see to it that no burst follows (RFC 4015 section 3.2).
    pub(crate) fn undo(&mut self, _now: u64) {
        if self.undo_ssthresh == 0 {
            return;
        }
        self.cwnd = self.cwnd.max(self.prior_cwnd);
        self.ssthresh = self.undo_ssthresh;
        self.undo_ssthresh = 0;
        self.algorithm = self.undo_algorithm;
        self.phase = if self.cwnd < self.ssthresh {
            Phase::SlowStart(HyStart::new(self.cwnd))
        } else {
            // The algorithm goes on where it was.
            Phase::Avoidance { credit: 0 }
        };
    }

    /// Nothing was sent for longer than a retransmission timeout.
    pub(crate) fn on_idle(&mut self, _now: u64, mss: u32) {
        if matches!(self.phase, Phase::Recovery(_)) {
            return;
        }
        self.algorithm.pause();
        // RFC 5681 section 4.1: the restart window.
        let restart = initial_window(mss);
        if self.cwnd > restart {
            // The way back is slow start's, to where the path was known to
            // carry: RFC 7661 section 4.4.
            self.ssthresh = self.ssthresh.max(self.cwnd - self.cwnd / 4);
            self.cwnd = restart;
            self.enter_phase();
        }
    }

    /// The path's maximum segment size is `mss` now.
    pub(crate) fn on_mss(&mut self, mss: u32) {
        // RFC 5681 section 3.1: an initial window must not become a burst of
        // many smaller segments.
        if let Phase::SlowStart(hystart) = &self.phase
            && self.ssthresh == WINDOW_MAX
            && hystart.is_fresh(self.cwnd)
        {
            self.cwnd = initial_window(mss);
            self.phase = Phase::SlowStart(HyStart::new(self.cwnd));
        }
        if self.cwnd < mss && !matches!(self.phase, Phase::Recovery(_)) {
            self.cwnd = mss;
            self.enter_phase();
        }
    }

    /// Remembers what undo needs and asks the algorithm how much of `flight`
    /// remains.
    fn reduce(&mut self, flight: u32) -> u32 {
        let (cwnd, flight) = match self.phase {
            // `cwnd` is the proportional rate reduction's now, and `flight` may
            // still have what the last reduction was for.
            Phase::Recovery(_) => (self.ssthresh, flight.min(self.ssthresh)),
            _ => (self.cwnd, flight.min(WINDOW_MAX)),
        };
        self.prior_cwnd = cwnd;
        self.undo_ssthresh = self.ssthresh;
        self.undo_algorithm = self.algorithm;
        self.algorithm.reduce(cwnd, flight)
    }

    /// Enters the phase outside recovery that the window belongs to.
    fn enter_phase(&mut self) {
        self.phase = if self.cwnd < self.ssthresh {
            Phase::SlowStart(HyStart::new(self.cwnd))
        } else {
            self.algorithm.restart();
            Phase::Avoidance { credit: 0 }
        };
    }
}
