//! RACK: what was sent before something that has been delivered, and long
//! enough before it, is lost (RFC 8985 section 6).

use crate::tcp::rtt::Stamp;
use crate::tcp::seq::Seq;

/// RFC 8985 section 6.2, step 4: recoveries after which the window that
/// D-SACKs have widened narrows again.
const PERSIST: u8 = 16;
/// No reordering window is wider than so many quarters of a round trip.
const MULTIPLE_MAX: u8 = 64;

/// The state of one flow, named as in RFC 8985 section 5.2.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rack {
    /// When the segment was sent that was delivered and sent last.
    xmit: Stamp,
    /// After that segment's last byte.
    end: Seq,
    /// Its round-trip time, units of 1.024 us.
    rtt: u32,
    /// The highest number that was delivered.
    pub fack: Seq,
    /// SND.NXT when the window was last widened.
    dsack_round: Seq,
    multiple: u8,
    persist: u8,
    /// Segments of this flow have been seen to overtake each other.
    pub reordered: bool,
}

impl Rack {
    pub(crate) fn new(now: u64, iss: Seq) -> Rack {
        Rack {
            xmit: Stamp::at(now),
            end: iss,
            rtt: 0,
            fack: iss,
            dsack_round: iss,
            multiple: 1,
            persist: 0,
            reordered: false,
        }
    }

    /// Nothing is in flight: what is sent from now on is later than all before.
    pub(crate) fn restart(&mut self, now: Stamp, snd_nxt: Seq) {
        self.xmit = now;
        self.end = snd_nxt;
    }

    /// How long ago it was made or restarted, ns, while nothing was delivered;
    /// `None` for just now.
    pub(crate) fn age(&self, now: Stamp) -> Option<u64> {
        Some(now.since(self.xmit)).filter(|&age| age > 0)
    }

    /// Section 6.2, step 2. `smallest` is the smallest round-trip time, ns.
    pub(crate) fn on_delivered(
        &mut self,
        now: Stamp,
        sent: Stamp,
        end: Seq,
        resent: bool,
        smallest: u64,
    ) {
        let rtt = now.since(sent);
        // It is the first copy that arrived, and not the one sent so shortly ago.
        if resent && rtt < smallest {
            return;
        }
        if self.xmit.before(sent) || (self.xmit == sent && end.after(self.end)) {
            self.xmit = sent;
            self.end = end;
            self.rtt = (rtt >> 10).min(u64::from(u32::MAX)) as u32;
        }
    }

    /// Whether something was delivered that was sent after a segment that was
    /// sent at `sent` and ends at `end`.
    #[inline]
    pub(crate) fn is_after(&self, sent: Stamp, end: Seq) -> bool {
        sent.before(self.xmit) || (sent == self.xmit && end.before(self.end))
    }

    /// For how many ns a segment that was sent at `sent` may still be thought
    /// of as reordered.
    pub(crate) fn patience(&self, now: Stamp, sent: Stamp, window: u64) -> u64 {
        ((u64::from(self.rtt) << 10) + window).saturating_sub(now.since(sent))
    }

    /// The reordering window, ns (section 6.2, step 4). `sure` says that three
    /// segments were delivered after the hole, or that recovery is under way.
    pub(crate) fn window(&self, sure: bool, smallest: u64, smoothed: u64) -> u64 {
        if !self.reordered && sure {
            return 0;
        }
        (u64::from(self.multiple) * smallest / 4).min(smoothed)
    }

    /// The peer got something twice: we were too hasty.
    pub(crate) fn on_dsack(&mut self, snd_una: Seq, snd_nxt: Seq) {
        if !snd_una.before(self.dsack_round) {
            self.dsack_round = snd_nxt;
            self.multiple = (self.multiple + 1).min(MULTIPLE_MAX);
            self.persist = PERSIST;
        }
    }

    /// A recovery is over.
    pub(crate) fn on_recovered(&mut self) {
        self.persist = self.persist.saturating_sub(1);
        if self.persist == 0 {
            self.multiple = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1 << 20;

    fn at(ms: u64) -> Stamp {
        Stamp::at(ms * MS)
    }

    #[test]
    fn what_was_sent_earlier_is_lost_after_a_round_trip_and_the_window() {
        let mut rack = Rack::new(0, Seq(0));
        rack.on_delivered(at(110), at(10), Seq(2000), false, 100 * MS);
        assert!(rack.is_after(at(10), Seq(1000)));
        assert!(!rack.is_after(at(10), Seq(3000)), "the same time, but later in the sequence");
        assert!(rack.is_after(at(9), Seq(3000)), "sent again before");
        assert_eq!(rack.patience(at(110), at(10), 25 * MS), 25 * MS);
        assert_eq!(rack.patience(at(135), at(10), 25 * MS), 0);
    }

    #[test]
    fn an_answer_that_comes_too_soon_is_to_the_first_copy() {
        let mut rack = Rack::new(0, Seq(0));
        rack.on_delivered(at(101), at(100), Seq(1000), true, 100 * MS);
        assert!(!rack.is_after(at(50), Seq(0)));
    }

    #[test]
    fn dsacks_widen_the_window_once_per_round_until_recoveries_pass() {
        let mut rack = Rack::new(0, Seq(0));
        rack.reordered = true;
        assert_eq!(rack.window(true, 100 * MS, 500 * MS), 25 * MS);
        rack.on_dsack(Seq(0), Seq(1000));
        rack.on_dsack(Seq(500), Seq(1500));
        assert_eq!(rack.window(true, 100 * MS, 500 * MS), 50 * MS);
        for _ in 0..PERSIST {
            rack.on_recovered();
        }
        assert_eq!(rack.window(true, 100 * MS, 500 * MS), 25 * MS);
        for _ in 0..1000 {
            rack.on_dsack(Seq(500), Seq(400));
            assert!(rack.window(true, 100 * MS, 500 * MS) <= 500 * MS);
        }
    }

    #[test]
    fn without_reordering_three_later_deliveries_are_sure() {
        let rack = Rack::new(0, Seq(0));
        assert_eq!(rack.window(true, 100 * MS, 500 * MS), 0);
        assert_eq!(rack.window(false, 100 * MS, 500 * MS), 25 * MS);
    }
}
