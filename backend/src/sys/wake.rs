//! Waking a worker from another thread: a pipe, because every system has one
//! and every event loop can watch it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::pipe::{PipeFlags, pipe_with};

/// The end that wakes. Clones wake the same worker.
#[derive(Clone, Debug)]
pub struct Waker(Arc<OwnedFd>);

/// The end that is watched, readable from a wake-up until [`Wakeups::drain`].
#[derive(Debug)]
pub struct Wakeups(OwnedFd);

/// Makes a connected pair.
pub fn pair() -> io::Result<(Waker, Wakeups)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    Ok((Waker(Arc::new(write)), Wakeups(read)))
}

impl Waker {
    /// Makes the other end readable. A pipe that is full is readable already.
    pub fn wake(&self) {
        let _ = rustix::io::write(&*self.0, &[1]);
    }
}

impl Wakeups {
    /// Takes all wake-ups so far; true if there was one.
    pub fn drain(&self) -> bool {
        let mut buf = [0; 64];
        let mut woken = false;
        while matches!(rustix::io::read(&self.0, &mut buf), Ok(n) if n > 0) {
            woken = true;
        }
        woken
    }
}

impl AsFd for Wakeups {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wakeup_is_seen_once() {
        let (waker, wakeups) = pair().unwrap();
        assert!(!wakeups.drain());
        waker.wake();
        waker.clone().wake();
        assert!(wakeups.drain());
        assert!(!wakeups.drain());
    }

    #[test]
    fn a_full_pipe_does_not_block_the_waker() {
        let (waker, wakeups) = pair().unwrap();
        for _ in 0..100_000 {
            waker.wake();
        }
        assert!(wakeups.drain());
    }
}
