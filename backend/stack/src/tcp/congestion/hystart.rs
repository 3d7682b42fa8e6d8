//! HyStart++ (RFC 9406): the first slow start ends when the round-trip time
//! rises, before the window is twice what the path holds.
//!
//! A round lasts until as much is acknowledged as the window was at its start,
//! which is what the RFC's windowEnd marks for a sender that fills its window.

/// RFC 9406 section 4.3, MIN_RTT_THRESH and MAX_RTT_THRESH, in units.
const THRESHOLD_MIN: u16 = (4_000_000 >> UNIT_SHIFT) as u16;
const THRESHOLD_MAX: u16 = (16_000_000 >> UNIT_SHIFT) as u16;
/// MIN_RTT_DIVISOR.
const RTT_DIVISOR: u16 = 8;
/// N_RTT_SAMPLE.
const SAMPLES_MIN: u8 = 8;
/// CSS_GROWTH_DIVISOR.
const CSS_DIVISOR: u32 = 4;
/// CSS_ROUNDS.
const CSS_ROUNDS: u8 = 5;
/// L for a sender that does not pace.
const SEGMENTS_MAX: u32 = 8;

/// Round-trip times are in units of 2^16 ns, so that two bytes hold up to 4 s
/// and the smallest threshold is still 61 units.
const UNIT_SHIFT: u32 = 16;

/// A round-trip time that is not known.
const INFINITE: u16 = u16::MAX;

#[derive(Clone, Copy, Debug)]
pub(super) struct HyStart {
    /// Bytes until the round ends.
    left: u32,
    last_min: u16,
    current_min: u16,
    /// cssBaselineMinRtt.
    baseline: u16,
    samples: u8,
    /// Rounds of conservative slow start begun; zero while in slow start.
    css_rounds: u8,
}

impl HyStart {
    pub(super) fn new(cwnd: u32) -> HyStart {
        HyStart {
            left: cwnd,
            last_min: INFINITE,
            current_min: INFINITE,
            baseline: INFINITE,
            samples: 0,
            css_rounds: 0,
        }
    }

    /// Whether nothing of its first window, `cwnd`, was acknowledged.
    pub(super) fn is_fresh(&self, cwnd: u32) -> bool {
        self.left == cwnd && self.last_min == INFINITE
    }

    #[inline]
    pub(super) fn on_rtt(&mut self, rtt_ns: u64) {
        let rtt = (rtt_ns >> UNIT_SHIFT).min(u64::from(INFINITE - 1)) as u16;
        self.current_min = self.current_min.min(rtt);
        self.samples = self.samples.saturating_add(1);
        if self.samples < SAMPLES_MIN {
            return;
        }
        if self.css_rounds > 0 {
            if self.current_min < self.baseline {
                // The rise was jitter.
                self.baseline = INFINITE;
                self.css_rounds = 0;
            }
        } else if self.last_min != INFINITE {
            let threshold = (self.last_min / RTT_DIVISOR).clamp(THRESHOLD_MIN, THRESHOLD_MAX);
            if self.current_min >= self.last_min.saturating_add(threshold) {
                self.baseline = self.current_min;
                self.css_rounds = 1;
            }
        }
    }

    /// `acked` bytes of a window of `cwnd` were acknowledged. Gives by how much
    /// the window may grow, or `None` when slow start is over.
    #[inline]
    pub(super) fn on_ack(&mut self, acked: u32, cwnd: u32, mss: u32) -> Option<u32> {
        self.left = self.left.saturating_sub(acked);
        if self.left == 0 {
            self.left = cwnd;
            self.last_min = self.current_min;
            self.current_min = INFINITE;
            self.samples = 0;
            if self.css_rounds == CSS_ROUNDS {
                return None;
            }
            if self.css_rounds > 0 {
                self.css_rounds += 1;
            }
        }
        let grow = acked.min(SEGMENTS_MAX * mss);
        Some(if self.css_rounds > 0 { grow / CSS_DIVISOR } else { grow })
    }
}
