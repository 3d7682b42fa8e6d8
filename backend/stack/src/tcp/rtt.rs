//! Round-trip time and retransmission timeout (RFC 6298).
//!
//! One segment at a time is timed, in ns. Echoed timestamps are not used for
//! this: they tick in milliseconds, too coarse for a data centre, and after a
//! loss they may measure how long the loss lasted.

use super::seq::Seq;

/// The estimate of one flow, ns. It saturates where `u32` microseconds end,
/// far above the largest timeout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rtt {
    /// Smoothed, ns; zero before the first measurement.
    srtt: u64,
    var: u64,
    /// Before backoff.
    rto: u64,
    backoff: u8,
    /// The segment that is being timed: acknowledged when this number is.
    timing: Option<Seq>,
    timed_at: u64,
}

/// RFC 6298 section 2: the clock's granularity, ns; the timer wheel's tick.
const GRANULARITY: u64 = 1 << 20;

impl Rtt {
    pub(crate) fn new(initial: u64) -> Rtt {
        Rtt { srtt: 0, var: 0, rto: initial, backoff: 0, timing: None, timed_at: 0 }
    }

    /// Smoothed round-trip time, ns; zero before the first measurement.
    #[inline]
    pub(crate) fn smoothed(&self) -> u64 {
        self.srtt
    }

    /// The timeout now, backed off and within its limits.
    #[inline]
    pub(crate) fn timeout(&self, min: u64, max: u64) -> u64 {
        (self.rto.max(min) << self.backoff.min(16)).min(max)
    }

    /// RFC 6298 section 5.5.
    pub(crate) fn back_off(&mut self) {
        self.backoff = (self.backoff + 1).min(16);
    }

    pub(crate) fn backoff(&self) -> u8 {
        self.backoff
    }

    /// Something new was acknowledged, or the window opened.
    pub(crate) fn end_backoff(&mut self) {
        self.backoff = 0;
    }

    /// Times the segment that ends at `end`, unless another is being timed.
    #[inline]
    pub(crate) fn start(&mut self, end: Seq, now: u64) {
        if self.timing.is_none() {
            self.timing = Some(end);
            self.timed_at = now;
        }
    }

    /// Something was sent again: what is acknowledged next does not tell which
    /// copy arrived (Karn's algorithm, RFC 6298 section 3).
    pub(crate) fn stop(&mut self) {
        self.timing = None;
    }

    /// Everything before `ack` was acknowledged. Gives what this measured, ns.
    #[inline]
    pub(crate) fn on_ack(&mut self, ack: Seq, now: u64) -> Option<u64> {
        let end = self.timing?;
        if ack.before(end) {
            return None;
        }
        self.timing = None;
        let rtt = now.saturating_sub(self.timed_at);
        self.sample(rtt);
        Some(rtt)
    }

    /// Takes a measurement, ns.
    pub(crate) fn sample(&mut self, rtt: u64) {
        let rtt = rtt.max(1);
        if self.srtt == 0 {
            // Section 2.2.
            self.srtt = rtt;
            self.var = rtt / 2;
        } else {
            // Section 2.3, with alpha = 1/8 and beta = 1/4.
            self.var = self.var - self.var / 4 + self.srtt.abs_diff(rtt) / 4;
            self.srtt = self.srtt - self.srtt / 8 + rtt / 8;
        }
        self.rto = self.srtt.saturating_add((4 * self.var).max(GRANULARITY)).min(1 << 40);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_rfc_6298() {
        let ms = 1_000_000;
        let mut rtt = Rtt::new(1000 * ms);
        assert_eq!(rtt.timeout(0, u64::MAX), 1000 * ms);
        rtt.sample(100 * ms);
        assert_eq!(rtt.timeout(0, u64::MAX), 300 * ms);
        for _ in 0..100 {
            rtt.sample(100 * ms);
        }
        assert!(rtt.timeout(0, u64::MAX) < 102 * ms);
        assert_eq!(rtt.timeout(200 * ms, u64::MAX), 200 * ms);
        rtt.back_off();
        rtt.back_off();
        assert_eq!(rtt.timeout(200 * ms, 60_000 * ms), 800 * ms);
        for _ in 0..100 {
            rtt.back_off();
        }
        assert_eq!(rtt.timeout(200 * ms, 60_000 * ms), 60_000 * ms);
    }

    #[test]
    fn a_retransmission_is_not_measured() {
        let mut rtt = Rtt::new(5);
        rtt.start(Seq(10), 100);
        rtt.stop();
        rtt.on_ack(Seq(10), 5000);
        assert_eq!(rtt.srtt, 0);
        rtt.start(Seq(20), 100);
        rtt.on_ack(Seq(19), 200);
        assert_eq!(rtt.srtt, 0);
        rtt.on_ack(Seq(20), 300);
        assert_eq!(rtt.srtt, 200);
    }
}
