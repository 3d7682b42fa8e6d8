//! A stand-in for a kqueue, for tests: it answers as kqueue(2) says, by means of poll(2).

use std::cell::RefCell;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::sys::kqueue::{EV_ADD, EV_ERROR, EV_RECEIPT, EVFILT_READ, Kevent, Queue, Timeout};

/// What was added, each with a descriptor of its own: a number that was closed is
/// nobody's meanwhile, and the tests close none.
#[derive(Debug, Default)]
pub(in crate::sys) struct Kqueue(RefCell<Vec<(Kevent, OwnedFd)>>);

impl Queue for Kqueue {
    fn open() -> io::Result<Kqueue> {
        Ok(Kqueue::default())
    }

    fn kevent(
        &self,
        change: Option<&Kevent>,
        events: &mut [Kevent],
        timeout: Option<Timeout>,
    ) -> io::Result<usize> {
        if let Some(change) = change {
            assert_eq!(change.filter, EVFILT_READ);
            assert_eq!(change.flags, EV_ADD | EV_RECEIPT);
            // SAFETY: only asked for a duplicate, which fails if it is not open.
            let duplicate = unsafe { BorrowedFd::borrow_raw(change.ident as RawFd) };
            let errno = match duplicate.try_clone_to_owned() {
                Ok(fd) => {
                    self.0.borrow_mut().push((*change, fd));
                    0
                }
                Err(error) => error.raw_os_error().unwrap(),
            };
            events[0] = Kevent { flags: EV_ERROR, data: errno.into(), ..*change };
            return Ok(1);
        }
        let added = self.0.borrow();
        let mut polled: Vec<_> =
            added.iter().map(|(_, fd)| PollFd::new(fd, PollFlags::IN)).collect();
        let timeout = timeout.map(|Timeout { s, ns }| Timespec { tv_sec: s, tv_nsec: ns.into() });
        rustix::event::poll(&mut polled, timeout.as_ref())?;
        let readable = polled.iter().zip(added.iter()).filter(|(p, _)| !p.revents().is_empty());
        let raised = readable.map(|(_, (change, _))| Kevent { flags: 0, ..*change });
        Ok(events[..].iter_mut().zip(raised).map(|(event, raised)| *event = raised).count())
    }
}
