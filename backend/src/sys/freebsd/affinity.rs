//! Which CPU a thread runs on.

use std::io;

/// The highest number of a CPU that [`pin`] takes, and one: the kernel's own limit
/// (`CPU_MAXSIZE`, `sys/_cpuset.h`).
pub const CPUS_MAX: usize = 1024;

/// Has the calling thread run on this CPU and no other.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if there is no such CPU, or none that the process may
/// use.
pub fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= CPUS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = [0u64; CPUS_MAX / u64::BITS as usize];
    set[cpu / u64::BITS as usize] = 1 << (cpu % u64::BITS as usize);
    // SAFETY: the kernel reads as many bytes of the set as it has; -1 is the calling thread.
    let result = unsafe {
        libc::cpuset_setaffinity(
            libc::CPU_LEVEL_WHICH,
            libc::CPU_WHICH_TID,
            -1,
            size_of_val(&set),
            set.as_ptr().cast(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        // Nothing of it is in what the process may use.
        Some(libc::EDEADLK | libc::EINVAL) => Err(io::ErrorKind::InvalidInput.into()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_bound_to_one_that_there_is() {
        std::thread::spawn(|| pin(0).unwrap()).join().unwrap();
        for cpu in [CPUS_MAX - 1, CPUS_MAX] {
            assert_eq!(pin(cpu).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        }
    }
}
