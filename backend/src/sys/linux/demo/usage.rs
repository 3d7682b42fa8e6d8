//! CPU time: of every core together, and of single processes.

use std::fs;
use std::io;

const NS_PER_S: u64 = 1_000_000_000;

/// Nanoseconds for which the machine's cores were busy since it started, for
/// whatever reason: programs, the kernel, interrupts. In steps of the kernel's
/// accounting tick, usually 10 ms; of all processes, not only the caller's.
pub fn busy_ns() -> io::Result<u64> {
    let tick_ns = NS_PER_S / rustix::param::clock_ticks_per_second().max(1);
    let text = fs::read_to_string("/proc/stat")?;
    busy_ticks(&text)
        .map(|ticks| ticks * tick_ns)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/stat: no cpu line"))
}

/// user + nice + system + irq + softirq of the first line (proc_stat(5)); idle,
/// iowait and what another machine took (steal) are not ours.
fn busy_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    let mut next = || fields.next()?.parse::<u64>().ok();
    let (user, nice, system) = (next()?, next()?, next()?);
    let (_idle, _iowait) = (next()?, next()?);
    Some(user + nice + system + next()? + next()?)
}

/// Nanoseconds of CPU time that all threads of a process have used.
pub fn process_ns(pid: u32) -> io::Result<u64> {
    let mut clock = 0;
    // SAFETY: the call writes one clockid_t through the pointer, which is valid.
    let error = unsafe { libc::clock_getcpuclockid(pid as libc::pid_t, &raw mut clock) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes one timespec through the pointer, which is valid.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(time.tv_sec as u64 * NS_PER_S + time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_is_what_ran() {
        let stat = "cpu  10 20 30 4000 500 6 7 80 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(busy_ticks(stat), Some(10 + 20 + 30 + 6 + 7));
        assert_eq!(busy_ticks("cpu 1 2 3"), None);
        assert_eq!(busy_ticks(""), None);
        assert!(busy_ns().unwrap() > 0);
    }

    /// Above the kernel's PID_MAX_LIMIT, 2^22.
    const PID_BEYOND_MAX: u32 = 5_000_000;

    #[test]
    fn a_process_uses_time_and_a_missing_one_does_not() {
        let before = process_ns(std::process::id()).unwrap();
        let mut x = 1u64;
        while process_ns(std::process::id()).unwrap() < before + 1_000_000 {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(process_ns(PID_BEYOND_MAX).is_err());
    }
}
