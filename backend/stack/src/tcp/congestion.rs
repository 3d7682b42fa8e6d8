//! How much may be in flight. The algorithm sits behind [`Congestion`], which
//! is told what happened and knows nothing of sequence numbers or timers, so
//! that another one (CUBIC) is another implementation and nothing else.

/// A congestion control algorithm. Bytes throughout.
pub(crate) trait Congestion {
    /// A new connection's.
    fn new(mss: u32) -> Self;
    /// Bytes that may be in flight.
    fn window(&self) -> u32;
    /// New data was acknowledged outside recovery; `limited` says whether the
    /// window was what held the sender back.
    fn on_ack(&mut self, acked: u32, mss: u32, limited: bool);
    /// Three duplicate acknowledgements, with `flight` bytes in flight.
    fn on_recovery(&mut self, flight: u32, mss: u32);
    /// Another duplicate acknowledgement during recovery.
    fn on_duplicate(&mut self, mss: u32);
    /// Part of what was outstanding when recovery began was acknowledged.
    fn on_partial_ack(&mut self, acked: u32, mss: u32);
    /// All of it was, and `flight` bytes are in flight.
    fn on_recovered(&mut self, flight: u32, mss: u32);
    /// The retransmission timer rang; `first` for the first time for this data.
    fn on_timeout(&mut self, flight: u32, mss: u32, first: bool);
    /// Nothing was sent for longer than a retransmission timeout.
    fn on_idle(&mut self, mss: u32);
}

/// RFC 5681 with the NewReno recovery of RFC 6582.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewReno {
    cwnd: u32,
    ssthresh: u32,
}

/// RFC 6928 section 2.
fn initial_window(mss: u32) -> u32 {
    (10 * mss).min((2 * mss).max(14600))
}

/// RFC 5681 equation (4).
fn half(flight: u32, mss: u32) -> u32 {
    (flight / 2).max(2 * mss)
}

/// No window is larger than what RFC 7323 can express.
const WINDOW_MAX: u32 = 1 << 30;

impl Congestion for NewReno {
    fn new(mss: u32) -> NewReno {
        NewReno { cwnd: initial_window(mss), ssthresh: WINDOW_MAX }
    }

    fn window(&self) -> u32 {
        self.cwnd
    }

    fn on_ack(&mut self, acked: u32, mss: u32, limited: bool) {
        // RFC 7661 section 4.1: an unused window says nothing about the path.
        if !limited {
            return;
        }
        let grow = if self.cwnd < self.ssthresh {
            acked.min(mss) // RFC 5681 equation (2)
        } else {
            (mss * mss / self.cwnd).max(1) // RFC 5681 equation (3)
        };
        self.cwnd = (self.cwnd + grow).min(WINDOW_MAX);
    }

    fn on_recovery(&mut self, flight: u32, mss: u32) {
        self.ssthresh = half(flight, mss);
        self.cwnd = self.ssthresh + 3 * mss; // RFC 5681 section 3.2, step 3
    }

    fn on_duplicate(&mut self, mss: u32) {
        self.cwnd = (self.cwnd + mss).min(WINDOW_MAX); // step 4
    }

    fn on_partial_ack(&mut self, acked: u32, mss: u32) {
        // RFC 6582 section 3.2, step 3: deflate, then inflate by one segment.
        self.cwnd = self.cwnd.saturating_sub(acked).max(mss);
        if acked >= mss {
            self.cwnd += mss;
        }
    }

    fn on_recovered(&mut self, flight: u32, mss: u32) {
        // RFC 6582 section 3.2, step 3, option (1), which avoids a burst.
        self.cwnd = self.ssthresh.min(flight.max(mss) + mss);
    }

    fn on_timeout(&mut self, flight: u32, mss: u32, first: bool) {
        if first {
            self.ssthresh = half(flight, mss);
        }
        self.cwnd = mss; // RFC 5681 section 3.1: the loss window
    }

    fn on_idle(&mut self, mss: u32) {
        // RFC 5681 section 4.1: the restart window.
        self.cwnd = self.cwnd.min(initial_window(mss));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_start_doubles_and_avoidance_adds_one_segment_per_window() {
        let mss = 1000;
        let mut cc = NewReno::new(mss);
        assert_eq!(cc.window(), 10_000);
        for _ in 0..10 {
            cc.on_ack(1000, mss, true);
        }
        assert_eq!(cc.window(), 20_000);
        cc.on_recovery(20_000, mss);
        assert_eq!(cc.window(), 13_000);
        cc.on_recovered(20_000, mss);
        assert_eq!(cc.window(), 10_000);
        for _ in 0..10 {
            cc.on_ack(1000, mss, true);
        }
        assert!((10_900..=11_000).contains(&cc.window()), "{}", cc.window());
    }

    #[test]
    fn an_idle_window_does_not_grow_and_a_timeout_leaves_one_segment() {
        let mut cc = NewReno::new(1000);
        cc.on_ack(1000, 1000, false);
        assert_eq!(cc.window(), 10_000);
        cc.on_timeout(8000, 1000, true);
        assert_eq!(cc.window(), 1000);
        cc.on_timeout(1000, 1000, false);
        assert_eq!(cc.ssthresh, 4000);
    }
}
