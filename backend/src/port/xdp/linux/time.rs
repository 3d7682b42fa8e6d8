//! Arrival by a device's own clock, told by ours. The device's runs as it likes: it may
//! count from anywhere, be a little too fast, and be set; so the two are read at the same
//! moment now and then, and what lies between is a straight line. One that stood still or
//! was set since the last time is not believed until they have gone on together.
//!
//! A time lies in memory that the guest can write: one that cannot be is not believed, and
//! one that can be is the guest's own loss.

use super::{DeviceClock, Pair};
use crate::port::Now;

/// The clocks are compared this often, ns.
const COMPARE_INTERVAL: u64 = 1_000_000_000;
/// A comparison is good for this long, ns.
const GOOD_FOR: u64 = 10 * COMPARE_INTERVAL;
/// Frames wait no longer for the worker than this, ns.
const AGE_MAX: u64 = 10_000_000_000;
/// As much may be wrong with a comparison, ns: a time that is so much in the future is now.
const SLACK: u64 = 100_000;
/// Clocks differ by no more than one part in so many.
const SKEW_PART: i64 = 1_000;
/// How much a clock is faster is counted in parts of this.
const UNIT_SHIFT: u32 = 32;

/// What a device's clock is by ours.
#[derive(Debug)]
pub(super) struct Times {
    clock: Box<dyn DeviceClock>,
    /// The last time that they were compared.
    base: Option<Pair>,
    /// How much slower the device's clock is than ours, in 2^-32, if it is steady.
    slower: Option<i64>,
    /// When they are compared next, and until when what is known is good; monotonic, ns.
    next: u64,
    good_until: u64,
}

impl Times {
    /// By this clock, which is not read yet.
    pub(super) fn new(clock: Box<dyn DeviceClock>) -> Times {
        Times { clock, base: None, slower: None, next: 0, good_until: 0 }
    }

    /// Compares the clocks, if that is due. True if it was.
    pub(super) fn look(&mut self, now: Now) -> bool {
        if now.monotonic_ns < self.next {
            return false;
        }
        self.next = now.monotonic_ns + COMPARE_INTERVAL;
        let Some(pair) = self.clock.compare() else { return true };
        self.slower = self.base.and_then(|base| slower(base, pair));
        self.base = Some(pair);
        self.good_until = now.monotonic_ns + GOOD_FOR;
        true
    }

    /// Since the Unix epoch, in ns, what the device's clock has called `device_ns`; `None`
    /// if that is zero, not known, in the future, or too long ago.
    #[inline]
    pub(super) fn real(&self, device_ns: u64, now: Now) -> Option<u64> {
        let (base, slower) = (self.base?, self.slower?);
        // Around, if need be: what is too far away is found below.
        let since = device_ns.wrapping_sub(base.device_ns) as i64;
        let is_near = since.unsigned_abs() <= AGE_MAX + GOOD_FOR;
        if device_ns == 0 || !is_near || now.monotonic_ns >= self.good_until {
            return None;
        }
        let since = since + ((since * slower) >> UNIT_SHIFT);
        let real = base.real_ns.checked_add_signed(since)?;
        let is_plausible = (now.real_ns.saturating_sub(AGE_MAX)
            ..=now.real_ns.saturating_add(SLACK))
            .contains(&real);
        is_plausible.then(|| real.min(now.real_ns))
    }
}

/// How much slower the device's clock was between two comparisons; `None` if that is more
/// than a clock can be.
fn slower(from: Pair, to: Pair) -> Option<i64> {
    let device = i64::try_from(to.device_ns.checked_sub(from.device_ns)?).ok()?;
    let real = i64::try_from(to.real_ns.checked_sub(from.real_ns)?).ok()?;
    let more = real.checked_sub(device)?;
    let is_clock = device > 0 && more.checked_abs()? <= device / SKEW_PART;
    // No more than a thousandth of it, in whole parts of 2^-32.
    is_clock.then(|| ((i128::from(more) << UNIT_SHIFT) / i128::from(device)) as i64)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    /// Of our clock, when a test begins.
    const START: u64 = 1_800_000_000 * SECOND;

    /// A clock that says what it is told to.
    #[derive(Clone, Debug, Default)]
    struct Said(Arc<Mutex<Option<Pair>>>);

    impl DeviceClock for Said {
        fn compare(&mut self) -> Option<Pair> {
            *self.0.lock().unwrap()
        }
    }

    struct Scene {
        said: Said,
        times: Times,
    }

    fn scene() -> Scene {
        let said = Said::default();
        Scene { times: Times::new(Box::new(said.clone())), said }
    }

    fn at(ns: u64) -> Now {
        Now { monotonic_ns: ns, real_ns: START + ns }
    }

    impl Scene {
        /// At so many ns, the device's clock is at `device_ns`.
        fn compare(&mut self, ns: u64, device_ns: u64) {
            *self.said.0.lock().unwrap() = Some(Pair { device_ns, real_ns: START + ns });
            assert!(self.times.look(at(ns)));
        }
    }

    #[test]
    fn a_time_is_where_the_line_says() {
        let mut scene = scene();
        let real = |scene: &Scene, device, ns| scene.times.real(device, at(ns));
        assert_eq!(real(&scene, 5, 5), None, "nothing is known yet");
        scene.compare(0, 500);
        assert_eq!(real(&scene, 500, 5), None, "nor whether it goes on");
        scene.compare(SECOND, 500 + SECOND);
        assert_eq!(real(&scene, 500 + SECOND, SECOND), Some(START + SECOND));
        assert_eq!(real(&scene, 700 + SECOND, SECOND + 300), Some(START + SECOND + 200));
        // Before the comparison, and before the clock began to count.
        assert_eq!(real(&scene, 400 + SECOND, SECOND + 300), Some(START + SECOND - 100));
        assert_eq!(real(&scene, 0_u64.wrapping_sub(100), SECOND), Some(START - 600));
        // 100 parts in a million too fast: 100 us more in a second.
        scene.compare(2 * SECOND, 500 + 2 * SECOND + 100_000);
        let half = 500 + 2 * SECOND + 100_000 + SECOND / 2 + 50_000;
        let told = real(&scene, half, 3 * SECOND).unwrap();
        assert!(told.abs_diff(START + 2 * SECOND + SECOND / 2) < 20, "{told}");
    }

    #[test]
    fn what_cannot_be_is_not_believed() {
        let mut scene = scene();
        scene.compare(19 * SECOND, 999 * SECOND);
        scene.compare(20 * SECOND, 1000 * SECOND);
        let now = at(21 * SECOND);
        let real = |device| scene.times.real(device, now);
        assert_eq!(real(0), None, "none");
        assert_eq!(real(1001 * SECOND + SLACK), Some(now.real_ns), "now, with what may be wrong");
        assert_eq!(real(1001 * SECOND + SLACK + 1), None, "the future");
        assert_eq!(real(1001 * SECOND - AGE_MAX), Some(now.real_ns - AGE_MAX));
        assert_eq!(real(1001 * SECOND - AGE_MAX - 1), None, "long ago");
        for device in [1, u64::MAX, i64::MAX as u64, i64::MIN as u64, 0xdead_beef_dead_beef] {
            assert_eq!(real(device), None, "{device}");
        }
    }

    #[test]
    fn a_clock_that_is_set_or_stands_still_is_not_followed() {
        let mut scene = scene();
        scene.compare(0, SECOND);
        // It stands still, is set back, goes on, is set far ahead, and goes on.
        for (seconds, device, follows) in [
            (1, SECOND, false),
            (2, 5, false),
            (3, 5 + SECOND, true),
            (4, 999 * SECOND, false),
            (5, 1000 * SECOND, true),
        ] {
            scene.compare(seconds * SECOND, device);
            let real = scene.times.real(device + 50, at(seconds * SECOND + 60));
            assert_eq!(real, follows.then_some(START + seconds * SECOND + 50), "{seconds}");
        }
        // Ours is set, by two seconds.
        let pair = Pair { device_ns: 1001 * SECOND, real_ns: START + 8 * SECOND };
        *scene.said.0.lock().unwrap() = Some(pair);
        let now = Now { monotonic_ns: 6 * SECOND, real_ns: START + 8 * SECOND };
        assert!(scene.times.look(now));
        assert_eq!(scene.times.real(1001 * SECOND, now), None);
    }

    #[test]
    fn a_clock_that_falls_silent_is_believed_for_a_while() {
        let mut scene = scene();
        scene.compare(0, SECOND);
        scene.compare(SECOND, 2 * SECOND);
        // Not before it is due.
        assert!(!scene.times.look(at(SECOND + COMPARE_INTERVAL - 1)));
        *scene.said.0.lock().unwrap() = None;
        for seconds in 2..=11 {
            assert!(scene.times.look(at(seconds * SECOND)));
        }
        let (last, device) = (SECOND + GOOD_FOR, 2 * SECOND + GOOD_FOR);
        assert!(scene.times.real(device - 1, at(last - 1)).is_some());
        assert_eq!(scene.times.real(device, at(last)), None, "it may be anywhere by now");
    }

    proptest! {
        #[test]
        fn no_number_breaks_anything(
            pairs in proptest::collection::vec((any::<u64>(), any::<u64>()), 1..6),
            device_ns in any::<u64>(),
            real_ns in any::<u64>(),
        ) {
            let mut scene = scene();
            for (index, (device_ns, real_ns)) in (0..).zip(pairs) {
                *scene.said.0.lock().unwrap() = Some(Pair { device_ns, real_ns });
                scene.times.look(Now { monotonic_ns: index * SECOND, real_ns });
            }
            let now = Now { monotonic_ns: 5 * SECOND, real_ns };
            if let Some(real) = scene.times.real(device_ns, now) {
                prop_assert!(real <= real_ns && real_ns - real <= AGE_MAX);
            }
        }

        /// A clock of any rate and start is told to within a few ns between comparisons.
        #[test]
        fn a_steady_clock_is_told_right(
            start in 1u64..1 << 62,
            ppm in -900i64..900,
            after in 0u64..SECOND,
        ) {
            let device = |ns: u64| start + ns.checked_add_signed(ns as i64 * ppm / 1_000_000).unwrap();
            let mut scene = scene();
            scene.compare(0, device(0));
            scene.compare(SECOND, device(SECOND));
            let ns = SECOND + after;
            let real = scene.times.real(device(ns), at(ns)).unwrap();
            prop_assert!(real.abs_diff(START + ns) < 20, "{}", real as i64 - (START + ns) as i64);
        }
    }
}
