//! Readiness of many descriptors in both directions: epoll.
//!
//! The worker's event loop asks only which descriptors are readable; a client
//! of sockets has to know as well when it is connected and when it may write.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::Ready;
use crate::sys::clock;

/// A set of descriptors, each registered under a number. A descriptor that is
/// closed leaves the set.
pub struct Poller {
    epoll: OwnedFd,
    events: Vec<Event>,
    ready: Vec<Ready>,
}

impl Poller {
    /// An empty set, of which one wait names at most `batch_max`.
    pub fn new(batch_max: usize) -> io::Result<Poller> {
        Ok(Poller {
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            events: Vec::with_capacity(batch_max.max(1)),
            ready: Vec::with_capacity(batch_max.max(1)),
        })
    }

    /// Registers a socket in both directions. It is named once for each change
    /// (edge-triggered): whoever is told must read or write until it would
    /// block, or until less was moved than was asked.
    pub fn add_socket(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        self.add(fd, token, EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET)
    }

    /// Registers a descriptor that is named for as long as it can be read.
    pub fn add_readable(&self, fd: impl AsFd, token: u64) -> io::Result<()> {
        self.add(fd, token, EventFlags::IN)
    }

    fn add(&self, fd: impl AsFd, token: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token), flags)?)
    }

    /// Waits until something is ready, for at most `timeout`, and names it. For
    /// the first `spin` of the wait the caller's core is kept busy asking; only
    /// then does it sleep. A signal ends the wait with nothing ready.
    pub fn wait(&mut self, spin: Duration, timeout: Duration) -> io::Result<&[Ready]> {
        let spin = spin.min(timeout);
        if spin.is_zero() {
            self.ask(timeout)?;
            return Ok(&self.ready);
        }
        let end = clock::monotonic_ns() + spin.as_nanos() as u64;
        self.ask(Duration::ZERO)?;
        while self.ready.is_empty() && clock::monotonic_ns() < end {
            std::hint::spin_loop();
            self.ask(Duration::ZERO)?;
        }
        if self.ready.is_empty() && timeout > spin {
            self.ask(timeout - spin)?;
        }
        Ok(&self.ready)
    }

    fn ask(&mut self, timeout: Duration) -> io::Result<()> {
        self.ready.clear();
        self.events.clear();
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(timeout.subsec_nanos()),
        };
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), Some(&timeout)) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        let ended = EventFlags::HUP | EventFlags::RDHUP | EventFlags::ERR;
        self.ready.extend(self.events.iter().map(|event| {
            // The struct is packed: copied out before it is used.
            let (flags, data) = (event.flags, event.data);
            Ready {
                token: data.u64(),
                readable: flags.intersects(EventFlags::IN | ended),
                writable: flags.intersects(EventFlags::OUT | ended),
            }
        }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_is_named_once_per_change() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut poller = Poller::new(8).unwrap();
        poller.add_socket(&b, 5).unwrap();
        let first = poller.wait(Duration::ZERO, Duration::ZERO).unwrap();
        assert_eq!(first, [Ready { token: 5, readable: false, writable: true }]);
        assert!(poller.wait(Duration::ZERO, Duration::ZERO).unwrap().is_empty());
        a.write_all(b"x").unwrap();
        let second = poller.wait(Duration::from_micros(1), Duration::from_secs(9)).unwrap();
        assert_eq!(second, [Ready { token: 5, readable: true, writable: true }]);
        drop(a);
        let third = poller.wait(Duration::from_secs(9), Duration::from_secs(9)).unwrap();
        assert!(third[0].readable && third[0].writable);
    }

    #[test]
    fn a_readable_descriptor_is_named_until_it_is_read() {
        let (mut a, b) = UnixStream::pair().unwrap();
        let mut poller = Poller::new(8).unwrap();
        poller.add_readable(&b, 1).unwrap();
        a.write_all(b"x").unwrap();
        for _ in 0..2 {
            let ready = poller.wait(Duration::ZERO, Duration::from_secs(9)).unwrap();
            assert_eq!(ready, [Ready { token: 1, readable: true, writable: false }]);
        }
    }
}
