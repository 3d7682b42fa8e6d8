//! What one stretch of load gave, and what several together say.

use hdrhistogram::Histogram;

/// The longest latency that is told apart, in ns.
const LATENCY_MAX_NS: u64 = 60_000_000_000;
/// Digits to which latencies are kept.
const LATENCY_DIGITS: u8 = 3;

/// Wrong and missing responses, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Errors {
    /// Responses with a wrong status, head, length or byte.
    pub wrong: u64,
    /// Responses that did not come in time.
    pub missing: u64,
    /// Connections that ended while none was expected to.
    pub broken: u64,
    /// Connections that could not be made.
    pub refused: u64,
}

impl Errors {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.wrong + self.missing + self.broken + self.refused
    }

    fn add(&mut self, other: &Errors) {
        self.wrong += other.wrong;
        self.missing += other.missing;
        self.broken += other.broken;
        self.refused += other.refused;
    }
}

/// One stretch of load.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Right responses.
    pub requests: u64,
    /// What was not right.
    pub errors: Errors,
    /// Connections that ended while that was expected.
    pub killed: u64,
    /// How long it took, in ns.
    pub elapsed_ns: u64,
    /// From the first byte handed to the kernel to the last byte taken from
    /// it, for each right response, in ns.
    pub latency_ns: Histogram<u64>,
}

impl Default for Sample {
    fn default() -> Sample {
        let latency_ns = Histogram::new_with_max(LATENCY_MAX_NS, LATENCY_DIGITS)
            .expect("the bounds are constants within the histogram's limits");
        Sample { requests: 0, errors: Errors::default(), killed: 0, elapsed_ns: 0, latency_ns }
    }
}

impl Sample {
    /// Counts a right response. Does not allocate.
    pub fn record(&mut self, latency_ns: u64) {
        self.record_many(latency_ns, 1);
    }

    /// Counts right responses that were all there after this time.
    pub fn record_many(&mut self, latency_ns: u64, count: u32) {
        self.requests += u64::from(count);
        self.latency_ns.saturating_record_n(latency_ns, count.into());
    }

    /// Adds another stretch to this one.
    pub fn merge(&mut self, other: &Sample) {
        self.requests += other.requests;
        self.errors.add(&other.errors);
        self.killed += other.killed;
        self.elapsed_ns += other.elapsed_ns;
        self.latency_ns.add(&other.latency_ns).expect("all histograms have the same bounds");
    }

    /// Right responses per second.
    pub fn rps(&self) -> f64 {
        per(self.requests as f64 * 1e9, self.elapsed_ns)
    }

    /// The latency that `percent` of the responses did not exceed, in us.
    pub fn latency_us(&self, percent: f64) -> f64 {
        self.latency_ns.value_at_percentile(percent) as f64 / 1e3
    }
}

/// `amount / count`, and 0 for nothing.
pub fn per(amount: f64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { amount / count as f64 }
}

/// The middle of `values`, or the mean of the two in the middle; 0 for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len() / 2, sorted.len() % 2) {
        (0, 0) => 0.0,
        (half, 0) => (sorted[half - 1] + sorted[half]) / 2.0,
        (half, _) => sorted[half],
    }
}

/// The least and the greatest of `values`; zeros for none.
pub fn range(values: &[f64]) -> (f64, f64) {
    let least = values.iter().copied().min_by(f64::total_cmp).unwrap_or(0.0);
    let most = values.iter().copied().max_by(f64::total_cmp).unwrap_or(0.0);
    (least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ranges() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[9.0, 1.0, 5.0]), 5.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), 3.0);
        assert_eq!(range(&[4.0, 1.0, 9.0]), (1.0, 9.0));
        assert_eq!(range(&[]), (0.0, 0.0));
    }

    #[test]
    fn stretches_add_up() {
        let mut a = Sample::default();
        let mut b = Sample::default();
        for i in 1..=900 {
            a.record(i * 1_000);
        }
        for _ in 0..100 {
            b.record(5_000_000);
        }
        a.elapsed_ns = 1_000_000_000;
        b.elapsed_ns = 1_000_000_000;
        a.errors.wrong = 1;
        b.errors = Errors { wrong: 2, missing: 3, broken: 4, refused: 5 };
        b.killed = 64;
        a.merge(&b);
        assert_eq!((a.requests, a.killed, a.errors.total()), (1000, 64, 15));
        assert_eq!(a.rps(), 500.0);
        assert!((a.latency_us(50.0) - 500.0).abs() < 1.0);
        assert!((a.latency_us(99.0) - 5_000.0).abs() < 5.0);
    }

    #[test]
    fn nothing_is_no_division_by_zero() {
        let empty = Sample::default();
        assert_eq!((empty.rps(), empty.latency_us(99.0), per(1.0, 0)), (0.0, 0.0, 0.0));
    }

    #[test]
    fn a_latency_beyond_the_bounds_is_kept_at_the_bound() {
        let mut sample = Sample::default();
        sample.record(u64::MAX);
        assert!(sample.latency_us(100.0) >= LATENCY_MAX_NS as f64 / 1e3);
    }
}
