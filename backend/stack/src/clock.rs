//! Times as flows remember them: 32 bits, so that a flow stays small. They wrap
//! and hold for half their range; what is older or later is cut to that.

use crate::flow::NEVER;

/// One tick is 2^20 ns, about a millisecond: the timer wheel's.
pub(crate) const TICK_BITS: u32 = 20;
/// The farthest deadline, ns: 24 days, within half of what 32 bits of ticks
/// count. Later ones ring early, and are then found not to be due.
const AHEAD_MAX: u64 = (1 << 31) - 1 - (1 << 28);

/// A time in units of 2^30 ns, about a second, that wrap after 146 years.
#[inline]
pub(crate) const fn age(now: u64) -> u32 {
    (now >> 30) as u32
}

/// A moment in the past, to a tick; holds for 26 days.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Moment(u32);

impl Moment {
    /// The moment of a time in ns.
    #[inline]
    pub(crate) const fn at(now: u64) -> Moment {
        Moment((now >> TICK_BITS) as u32)
    }

    /// How long ago it was, ns; zero for what is still to come.
    #[inline]
    pub(crate) const fn elapsed(self, now: u64) -> u64 {
        let ticks = ((now >> TICK_BITS) as u32).wrapping_sub(self.0);
        if (ticks as i32) < 0 { 0 } else { (ticks as u64) << TICK_BITS }
    }
}

/// When something is due, if ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline(u32);

impl Deadline {
    /// It is never due.
    pub(crate) const NEVER: Deadline = Deadline(0);

    /// `delay` ns after `now`, at the earliest; [`NEVER`] is never.
    #[inline]
    pub(crate) const fn after(now: u64, delay: u64) -> Deadline {
        if delay == NEVER {
            return Deadline::NEVER;
        }
        let ticks = if delay >> TICK_BITS > AHEAD_MAX { AHEAD_MAX } else { delay >> TICK_BITS };
        // What is cut off of both adds up to less than two ticks.
        let cut = (now & ((1 << TICK_BITS) - 1)) + (delay & ((1 << TICK_BITS) - 1));
        let up = cut.div_ceil(1 << TICK_BITS);
        let tick = ((now >> TICK_BITS) + ticks + up) as u32;
        // Zero is taken.
        Deadline(if tick == 0 { 1 } else { tick })
    }

    /// Whether it is set.
    #[inline]
    pub(crate) const fn is_set(self) -> bool {
        self.0 != 0
    }

    /// Whether it is set and has come.
    #[inline]
    pub(crate) const fn is_due(self, now: u64) -> bool {
        self.is_set() && ((now >> TICK_BITS) as u32).wrapping_sub(self.0) as i32 >= 0
    }

    /// The last ns before the tick at whose start it is due; [`NEVER`] if it is
    /// not set.
    #[inline]
    pub(crate) const fn ns(self, now: u64) -> u64 {
        if !self.is_set() {
            return NEVER;
        }
        let tick = now >> TICK_BITS;
        let ahead = self.0.wrapping_sub(tick as u32) as i32;
        (tick.saturating_add_signed(ahead as i64) << TICK_BITS).saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TICK: u64 = 1 << TICK_BITS;

    proptest! {
        #[test]
        fn a_deadline_is_due_not_early_and_at_most_a_tick_late(
            now in 0u64..1 << 60,
            delay in 0u64..1 << 50,
        ) {
            let deadline = Deadline::after(now, delay);
            prop_assert!(deadline.is_set());
            // Zero is a tick late, once in 52 days.
            prop_assert!(deadline.is_due(now + delay + 2 * TICK));
            if delay > 0 {
                prop_assert!(!deadline.is_due(now + delay - 1) || (delay & (TICK - 1)) == 0);
            }
            let ns = deadline.ns(now);
            prop_assert!(ns + 1 >= now + delay && ns < now + delay + 2 * TICK);
        }

        #[test]
        fn a_moment_tells_how_long_ago_it_was(then in 0u64..1 << 60, passed in 0u64..1 << 50) {
            let elapsed = Moment::at(then).elapsed(then + passed);
            prop_assert!(elapsed.abs_diff(passed) <= TICK);
            prop_assert_eq!(Moment::at(then + passed + TICK).elapsed(then), 0);
        }
    }

    #[test]
    fn the_farthest_deadline_is_not_the_past() {
        let deadline = Deadline::after(5 * TICK, NEVER - 1);
        assert!(deadline.is_set() && !deadline.is_due(5 * TICK));
        assert_eq!(Deadline::after(0, NEVER), Deadline::NEVER);
        assert_eq!(Deadline::NEVER.ns(7), NEVER);
    }
}
