//! The event loop on Linux: the `event-manager` crate, asked one question only:
//! which of these descriptors are readable?

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};

use crate::sys::Token;

/// Waits for descriptors to become readable (or to hang up).
///
/// The set of descriptors is given whole and replaced whole: it changes only
/// with control messages, and a set that is built anew cannot keep a
/// descriptor that was closed in the meantime.
pub struct EventLoop {
    manager: EventManager<Ready>,
    id: SubscriberId,
}

/// Collects what is ready in one wait.
struct Ready {
    watched: Vec<(RawFd, Token)>,
    ready: Vec<Token>,
}

impl MutEventSubscriber for Ready {
    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        self.ready.push(events.data());
    }

    fn init(&mut self, ops: &mut EventOps) {
        for &(fd, token) in &self.watched {
            if let Err(error) = ops.add(Events::with_data_raw(fd, token, EventSet::IN)) {
                tracing::error!(fd, ?error, "a descriptor cannot be watched");
            }
        }
    }
}

fn to_io(error: event_manager::Error) -> io::Error {
    match error {
        event_manager::Error::Epoll(errno) => io::Error::from_raw_os_error(errno.errno()),
        other => io::Error::other(format!("{other:?}")),
    }
}

impl EventLoop {
    /// An event loop that watches these descriptors. They must stay open until
    /// the loop is dropped or replaced.
    pub fn new<'a>(
        watched: impl IntoIterator<Item = (BorrowedFd<'a>, Token)>,
    ) -> io::Result<EventLoop> {
        let watched: Vec<_> =
            watched.into_iter().map(|(fd, token)| (fd.as_raw_fd(), token)).collect();
        let ready = Vec::with_capacity(watched.len());
        let mut manager = EventManager::new().map_err(to_io)?;
        let id = manager.add_subscriber(Ready { watched, ready });
        Ok(EventLoop { manager, id })
    }

    /// Waits until a descriptor is readable or `timeout` has passed (`None`: for
    /// ever), and names the readable ones. A timeout is rounded up to whole
    /// milliseconds, except zero, which does not wait.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<&[Token]> {
        let ms = match timeout {
            None => -1,
            Some(t) => i32::try_from(t.as_nanos().div_ceil(1_000_000)).unwrap_or(i32::MAX),
        };
        if let Ok(subscriber) = self.manager.subscriber_mut(self.id) {
            subscriber.ready.clear();
        }
        match self.manager.run_with_timeout(ms).map_err(to_io) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        Ok(self.manager.subscriber_mut(self.id).map_or(&[], |s| s.ready.as_slice()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::wake;

    #[test]
    fn names_what_is_readable() {
        let (waker_a, a) = wake::pair().unwrap();
        let (_waker_b, b) = wake::pair().unwrap();
        let mut events = EventLoop::new([(a.as_fd(), 7), (b.as_fd(), 8)]).unwrap();
        assert!(events.wait(Some(Duration::ZERO)).unwrap().is_empty());
        waker_a.wake();
        assert_eq!(events.wait(None).unwrap(), [7]);
        a.drain();
        assert!(events.wait(Some(Duration::from_micros(1))).unwrap().is_empty());
    }

    #[test]
    fn a_hang_up_is_readable() {
        let (waker, wakeups) = wake::pair().unwrap();
        let mut events = EventLoop::new([(wakeups.as_fd(), 1)]).unwrap();
        drop(waker);
        assert_eq!(events.wait(None).unwrap(), [1]);
    }
}
