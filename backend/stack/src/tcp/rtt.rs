//! Round-trip time and retransmission timeout (RFC 6298).
//!
//! Every segment that was sent once tells the time when it is acknowledged, by
//! the [`Stamp`] in its buffer's record. Echoed timestamps are not used for
//! this: they tick in milliseconds, too coarse for a data centre.

/// When a segment was sent: units of 1.024 us, which wrap after 73 minutes.
/// Comparisons hold for stamps less than half of that apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Stamp(u32);

impl Stamp {
    const BITS: u32 = 10;

    /// The stamp of a time in ns.
    #[inline]
    pub(crate) const fn at(now: u64) -> Stamp {
        Stamp((now >> Stamp::BITS) as u32)
    }

    /// How long after `earlier` it is, ns; zero when it is not.
    #[inline]
    pub(crate) const fn since(self, earlier: Stamp) -> u64 {
        let units = self.0.wrapping_sub(earlier.0);
        if (units as i32) < 0 { 0 } else { (units as u64) << Stamp::BITS }
    }

    /// Whether it is earlier than `other`.
    #[inline]
    pub(crate) const fn before(self, other: Stamp) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }
}

/// The estimate of one flow. It saturates after four minutes, far above the
/// largest timeout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rtt {
    /// Smoothed; zero before the first measurement. These are in units of 64 ns.
    srtt: u32,
    /// Its variation; before the first measurement, the initial timeout.
    var: u32,
    /// The smallest of late (RFC 8985 section 6.2, step 1).
    min: u32,
    /// When `min` was last measured.
    min_at: Stamp,
    backoff: u8,
}

const UNIT_BITS: u32 = 6;
/// Twice the initial timeout of old (RFC 6298 appendix A), ns: paths whose round
/// trip takes longer do not carry TCP.
pub(crate) const SLOWEST_PATH: u64 = 6_000_000_000;
/// RFC 6298 section 2: the clock's granularity; the timer wheel's tick.
const GRANULARITY: u32 = 1 << (20 - UNIT_BITS);
/// Age at which the smallest measurement is forgotten: a route may change.
const MIN_AGE_NS: u64 = 300_000_000_000;

const fn to_units(ns: u64) -> u32 {
    let units = ns >> UNIT_BITS;
    if units > 1 << 29 { 1 << 29 } else { units as u32 }
}

const fn to_ns(units: u32) -> u64 {
    (units as u64) << UNIT_BITS
}

impl Rtt {
    pub(crate) fn new(initial: u64) -> Rtt {
        Rtt { srtt: 0, var: to_units(initial), min: 0, min_at: Stamp(0), backoff: 0 }
    }

    /// The timeout now, backed off and within its limits, ns.
    #[inline]
    pub(crate) fn timeout(&self, min: u64, max: u64) -> u64 {
        let rto = match self.srtt {
            0 => self.var,
            srtt => srtt + (4 * self.var).max(GRANULARITY),
        };
        (to_ns(rto).max(min) << self.backoff.min(16)).min(max)
    }

    /// RFC 6298 section 5.5.
    pub(crate) fn back_off(&mut self) {
        self.backoff = (self.backoff + 1).min(16);
    }

    /// Something was acknowledged that measures nothing: the timeout, which is
    /// never less than `min`, stays doubled, but need not be longer than any path
    /// is slow.
    #[inline]
    pub(crate) fn ease_backoff(&mut self, min: u64) {
        while self.backoff > 1 && self.timeout(min, u64::MAX) > SLOWEST_PATH {
            self.backoff -= 1;
        }
    }

    pub(crate) fn backoff(&self) -> u8 {
        self.backoff
    }

    /// Something new was acknowledged, or the window opened.
    #[inline]
    pub(crate) fn end_backoff(&mut self) {
        self.backoff = 0;
    }

    /// Whether anything was measured yet.
    #[inline]
    pub(crate) fn is_measured(&self) -> bool {
        self.srtt != 0
    }

    /// The smoothed round-trip time, ns; zero before the first measurement.
    #[inline]
    pub(crate) fn smoothed(&self) -> u64 {
        to_ns(self.srtt)
    }

    /// The smallest round-trip time of the last minutes, ns; zero before the
    /// first measurement.
    #[inline]
    pub(crate) fn smallest(&self) -> u64 {
        to_ns(self.min)
    }

    /// Takes a measurement of a segment that was sent once, ns.
    #[inline]
    pub(crate) fn sample(&mut self, now: u64, rtt: u64) {
        let rtt = to_units(rtt).max(1);
        if self.srtt == 0 {
            // Section 2.2.
            self.srtt = rtt;
            self.var = rtt / 2;
        } else {
            // Section 2.3, with alpha = 1/8 and beta = 1/4.
            self.var = self.var - self.var / 4 + self.srtt.abs_diff(rtt) / 4;
            self.srtt = self.srtt - self.srtt / 8 + rtt / 8;
        }
        let stamp = Stamp::at(now);
        if rtt <= self.min || self.min == 0 || stamp.since(self.min_at) > MIN_AGE_NS {
            self.min = rtt;
            self.min_at = stamp;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_rfc_6298() {
        let ms = 1_000_000;
        let mut rtt = Rtt::new(1024 * ms);
        assert_eq!(rtt.timeout(0, u64::MAX), 1024 * ms);
        rtt.sample(0, 100 * ms);
        assert!(rtt.timeout(0, u64::MAX).abs_diff(300 * ms) < 1000);
        for _ in 0..100 {
            rtt.sample(0, 100 * ms);
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
    fn backoff_is_eased_to_the_slowest_path_and_ended_by_a_measurement() {
        let ms = 1_000_000;
        let mut rtt = Rtt::new(1000 * ms);
        rtt.sample(0, 100 * ms);
        for _ in 0..10 {
            rtt.back_off();
        }
        rtt.ease_backoff(200 * ms);
        let timeout = rtt.timeout(200 * ms, 60_000 * ms);
        assert!((3000 * ms..=6000 * ms).contains(&timeout), "{timeout}");
        rtt.end_backoff();
        assert!(rtt.timeout(200 * ms, 60_000 * ms) <= 301 * ms);
    }

    #[test]
    fn the_smallest_is_forgotten_when_it_is_old() {
        let mut rtt = Rtt::new(1);
        rtt.sample(0, 64_000);
        rtt.sample(1000, 128_000);
        assert_eq!(rtt.smallest(), 64_000);
        rtt.sample(MIN_AGE_NS + 2000, 128_000);
        assert_eq!(rtt.smallest(), 128_000);
    }

    #[test]
    fn saturates_instead_of_overflowing() {
        let mut rtt = Rtt::new(u64::MAX);
        for sample in [u64::MAX, 1, u64::MAX, u64::MAX, 0, u64::MAX] {
            rtt.sample(0, sample);
        }
        assert!(rtt.timeout(0, 60) <= 60);
    }

    #[test]
    fn stamps_wrap() {
        let early = Stamp::at(u64::from(u32::MAX) << 10);
        let late = Stamp::at((u64::from(u32::MAX) + 5) << 10);
        assert!(early.before(late) && !late.before(early) && !early.before(early));
        assert_eq!(late.since(early), 5 << 10);
        assert_eq!(early.since(late), 0);
    }
}
