//! The two clocks: monotonic for everything that waits, real for what is told.

use rustix::time::{ClockId, clock_gettime};

const NS_PER_S: u64 = 1_000_000_000;

fn ns(clock: ClockId) -> u64 {
    let t = clock_gettime(clock);
    t.tv_sec as u64 * NS_PER_S + t.tv_nsec as u64
}

/// Nanoseconds of a clock that never goes back.
pub fn monotonic_ns() -> u64 {
    ns(ClockId::Monotonic)
}

/// Nanoseconds since the Unix epoch.
pub fn realtime_ns() -> u64 {
    ns(ClockId::Realtime)
}
