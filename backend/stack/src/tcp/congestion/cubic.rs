//! CUBIC (RFC 9438).
//!
//! ```text
//!   W_cubic(t) = C * (t - K)^3 + W_max          t = now - t_epoch
//!
//!       cwnd                          ,'  convex: probes for more
//!   W_max |- - - - - - -,------------'- -
//!         |          ,-'
//!         |        ,'   concave: back to where it was
//!         |_______/_____|________________ now
//!             t_epoch   inflection = t_epoch + K
//! ```
//!
//! The curve is kept by its point of inflection alone: t - K is the time since
//! then. It is found again from the window (K from W_max - cwnd) whenever time
//! passed that the sender did not use, which shifts the curve by that time.

use core::num::NonZeroU32;

use super::{Ack, Algorithm, WINDOW_MAX};

/// Time is kept in ticks of 2^20 ns, about a millisecond, as 32 bits that wrap;
/// an epoch that lasts for more than 24 days has long had the largest window.
const TICK_SHIFT: u32 = 20;

/// Ticks from the inflection beyond which any curve is beyond all windows.
const TICKS_MAX: u32 = 1 << 20;

/// C = 0.4 segments per second cubed (RFC 9438 section 4.1.2) in segments per
/// tick cubed, times 2^64: 4/10 * (2^20 / 10^9)^3 * 2^64.
const C: u128 = (1 << 126) / 10u128.pow(28);

/// 1 / C in ticks cubed per segment.
const PER_C: u64 = (10u128.pow(28) / (1 << 62)) as u64;

/// W_max before there was congestion: less than any window.
const W_MAX_NONE: NonZeroU32 = NonZeroU32::MIN;

/// An inflection that the next acknowledgement is to find.
const UNKNOWN: u32 = 0;

#[derive(Clone, Copy, Debug)]
pub(super) struct Cubic {
    /// W_max, bytes.
    w_max: NonZeroU32,
    /// W_est, bytes: the window that Reno would have. Zero when no epoch has
    /// begun.
    w_est: u32,
    /// The tick at which W_cubic is W_max, or [`UNKNOWN`].
    inflection: u32,
}

fn tick(ns: u64) -> u32 {
    (ns >> TICK_SHIFT) as u32
}

/// The largest integer whose cube is not above `x`.
fn cube_root(x: u64) -> u64 {
    // Bit by bit from the highest that a root can have: `root` is the root of
    // the bits of `x` above `shift`, and `rest` what its cube leaves of `x`.
    let (mut rest, mut root) = (x, 0u64);
    for shift in (0..=63).rev().step_by(3) {
        root <<= 1;
        let step = 3 * root * (root + 1) + 1;
        if rest >> shift >= step {
            rest -= step << shift;
            root += 1;
        }
    }
    root
}

impl Cubic {
    pub(super) fn new() -> Cubic {
        Cubic { w_max: W_MAX_NONE, w_est: 0, inflection: UNKNOWN }
    }

    /// W_cubic at a time, ns (RFC 9438 figure 1).
    fn w_cubic(&self, at: u64, mss: u32) -> u32 {
        let since = tick(at).wrapping_sub(self.inflection) as i32;
        let ticks = u128::from(since.unsigned_abs().min(TICKS_MAX));
        let bytes = (ticks * ticks * ticks * u128::from(mss) * C) >> 64;
        let bytes = bytes.min(u128::from(WINDOW_MAX)) as u32;
        let w_max = self.w_max.get();
        if since < 0 { w_max.saturating_sub(bytes) } else { w_max + bytes }
    }

    /// Lays the curve so that it is at `cwnd` now (figure 2).
    fn find_inflection(&mut self, now: u64, cwnd: u32, mss: u32) {
        let w_max = self.w_max.get();
        let distance = u64::from(w_max.abs_diff(cwnd));
        let k = cube_root(distance * PER_C / u64::from(mss.max(1))) as u32;
        let now = tick(now);
        self.inflection = if cwnd <= w_max { now.wrapping_add(k) } else { now.wrapping_sub(k) };
    }

    /// Section 4.3, figure 4. With alpha = 3 * (1 - beta) / (1 + beta) = 9/17 a
    /// segment is bought by 17/9 windows, and when the window is what it was
    /// before the congestion, by one as in Reno.
    fn estimate(&mut self, cwnd: u32, credit: &mut u32, ack: &Ack) {
        *credit = credit.saturating_add(ack.acked);
        let cwnd = cwnd.max(1);
        let price = if self.w_est < ack.prior { cwnd + cwnd / 9 * 8 } else { cwnd };
        let segments = u64::from(*credit / price);
        *credit %= price;
        let grown = u64::from(self.w_est) + segments * u64::from(ack.mss);
        self.w_est = grown.min(u64::from(WINDOW_MAX)) as u32;
    }
}

impl Algorithm for Cubic {
    fn reduce(&mut self, cwnd: u32, flight: u32) -> u32 {
        // Section 4.7, fast convergence: a flow whose window is smaller than at
        // the last congestion leaves room; (1 + beta) / 2 = 17/20.
        let cwnd = u64::from(cwnd);
        let less = cwnd < u64::from(self.w_max.get());
        let w_max = if less { cwnd * 17 / 20 } else { cwnd };
        self.w_max = NonZeroU32::new(w_max as u32).unwrap_or(W_MAX_NONE);
        self.restart();
        // Section 4.6: beta = 0.7.
        (u64::from(flight) * 7 / 10) as u32
    }

    fn forget(&mut self) {
        // Section 4.8: after a timeout W_max is the window at which congestion
        // avoidance begins.
        self.w_max = W_MAX_NONE;
    }

    fn restart(&mut self) {
        self.w_est = 0;
        self.inflection = UNKNOWN;
    }

    fn pause(&mut self) {
        // Section 4.2: t leaves out the time in which the flow did not use its
        // window.
        self.inflection = UNKNOWN;
    }

    fn grow(&mut self, cwnd: u32, credit: &mut u32, ack: &Ack) -> u32 {
        if self.w_est == 0 {
            // Section 4.3, and section 4.2 for a window that is above W_max or
            // knows none: K is 0.
            self.w_est = cwnd;
            self.w_max = self.w_max.max(NonZeroU32::new(cwnd).unwrap_or(W_MAX_NONE));
        }
        if self.inflection == UNKNOWN {
            self.find_inflection(ack.now, cwnd, ack.mss);
        }
        self.estimate(cwnd, credit, ack);
        if self.w_cubic(ack.now, ack.mss) < self.w_est {
            return cwnd.max(self.w_est); // Section 4.3: Reno-friendly
        }
        // Sections 4.4 and 4.5, concave and convex: to where the curve will be a
        // round trip from now, within the bounds of section 4.2.
        let next = self.w_cubic(ack.now.saturating_add(ack.srtt), ack.mss);
        let target = next.clamp(cwnd, cwnd + cwnd / 2);
        let share = u64::from(target - cwnd) * u64::from(ack.acked) / u64::from(cwnd.max(1));
        (u64::from(cwnd) + share).min(u64::from(target)) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cube_roots_of_cubes_and_their_neighbours() {
        for root in (1..2000).chain([1 << 20, 2_642_244, 2_642_245]) {
            let cube: u64 = root * root * root;
            assert_eq!(cube_root(cube), root);
            assert_eq!(cube_root(cube - 1), root - 1);
            assert_eq!(cube_root(cube + 1), root);
        }
        assert_eq!(cube_root(0), 0);
        assert_eq!(cube_root(u64::MAX), 2_642_245);
    }

    #[test]
    fn constants_are_the_rfc_s() {
        // RFC 9438 section 5: C = 0.4, per second cubed.
        let tick = f64::from(1 << TICK_SHIFT) / 1e9;
        let c = C as f64 / 2f64.powi(64) / tick.powi(3);
        assert!((c - 0.4).abs() < 1e-9, "{c}");
        let c = 1.0 / PER_C as f64 / tick.powi(3);
        assert!((c - 0.4).abs() < 1e-9, "{c}");
    }

    /// RFC 9438 figure 1 in floating point: the window at `t` s of an epoch that
    /// began with a window of `cwnd`, and its slope there in bytes per s.
    fn model(w_max: f64, cwnd: f64, mss: f64, t: f64) -> (f64, f64) {
        let k = ((w_max - cwnd) / mss / 0.4).cbrt();
        (0.4 * (t - k).powi(3) * mss + w_max, 3.0 * 0.4 * (t - k).powi(2) * mss)
    }

    proptest! {
        #[test]
        fn the_curve_is_the_model_s(
            w_max in 1..=WINDOW_MAX,
            cwnd in 1..=WINDOW_MAX,
            mss in 88u32..=65_535,
            now in 0..=1u64 << 62,
            t in 0..300_000_000_000u64,
        ) {
            let mut cubic = Cubic::new();
            cubic.w_max = NonZeroU32::new(w_max).unwrap();
            cubic.find_inflection(now, cwnd, mss);
            let ours = f64::from(cubic.w_cubic(now + t, mss));
            let arguments = (f64::from(w_max), f64::from(cwnd), f64::from(mss));
            let (exact, _) = model(arguments.0, arguments.1, arguments.2, t as f64 / 1e9);
            // Time and K are rounded to ticks.
            let tick = f64::from(1 << TICK_SHIFT) / 1e9;
            let (_, before) = model(arguments.0, arguments.1, arguments.2, t as f64 / 1e9 - 2.0 * tick);
            let (_, after) = model(arguments.0, arguments.1, arguments.2, t as f64 / 1e9 + 2.0 * tick);
            let slack = 2.0 * tick * before.max(after) + 2.0;
            let cut = f64::from(w_max) + f64::from(WINDOW_MAX);
            let exact = exact.clamp(0.0, cut);
            prop_assert!((ours - exact).abs() <= slack, "{ours} {exact} {slack}");
        }
    }
}
