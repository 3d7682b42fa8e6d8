//! The congestion avoidance of RFC 5681.

use super::{Ack, Algorithm};

/// It remembers nothing: all its state is the window.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewReno;

impl Algorithm for NewReno {
    fn reduce(&mut self, _cwnd: u32, flight: u32) -> u32 {
        flight / 2 // RFC 5681 equation (4)
    }

    fn forget(&mut self) {}

    fn restart(&mut self) {}

    fn pause(&mut self) {}

    fn grow(&mut self, cwnd: u32, credit: &mut u32, ack: &Ack) -> u32 {
        // RFC 3465 section 2.1, which RFC 5681 section 3.1 recommends: a segment
        // for each window acknowledged.
        *credit += ack.acked;
        if *credit < cwnd {
            return cwnd;
        }
        *credit -= cwnd;
        cwnd + ack.mss
    }
}
