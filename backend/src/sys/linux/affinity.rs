//! Which CPU a thread runs on.

use std::io;

use rustix::thread::{CpuSet, sched_setaffinity};

/// The highest number of a CPU that [`pin`] takes, and one.
pub const CPUS_MAX: usize = CpuSet::MAX_CPU;

/// Has the calling thread run on this CPU and no other.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if there is no such CPU, or none that the process may
/// use.
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= CPUS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use rustix::thread::sched_getaffinity;

    use super::*;

    #[test]
    fn a_thread_is_bound_to_one_that_there_is() {
        let thread = std::thread::spawn(|| {
            let allowed = sched_getaffinity(None).unwrap();
            let cpu = (0..CPUS_MAX).rfind(|&cpu| allowed.is_set(cpu)).unwrap();
            pin(cpu).unwrap();
            let bound = sched_getaffinity(None).unwrap();
            assert_eq!((bound.count(), bound.is_set(cpu)), (1, true));
            assert_eq!(pin(CPUS_MAX - 1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(pin(CPUS_MAX).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        });
        thread.join().unwrap();
    }
}
