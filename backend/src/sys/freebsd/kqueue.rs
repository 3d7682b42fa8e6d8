//! kqueue(2) and kevent(2).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::sys::kqueue::{
    EV_ADD, EV_ERROR, EV_RECEIPT, EVENTS_MAX, EVFILT_READ, Kevent, Queue, Timeout,
};

const _: () = assert!(EV_ADD == libc::EV_ADD);
const _: () = assert!(EV_RECEIPT == libc::EV_RECEIPT);
const _: () = assert!(EV_ERROR == libc::EV_ERROR);
const _: () = assert!(EVFILT_READ == libc::EVFILT_READ);

/// A kqueue of this process. A child does not have it.
#[derive(Debug)]
pub struct Kqueue(OwnedFd);

impl Queue for Kqueue {
    fn open() -> io::Result<Kqueue> {
        // SAFETY: takes no pointer.
        let fd = unsafe { libc::kqueue() };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just opened, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
        Ok(Kqueue(fd))
    }

    fn kevent(
        &self,
        change: Option<&Kevent>,
        events: &mut [Kevent],
        timeout: Option<Timeout>,
    ) -> io::Result<usize> {
        let mut raw = [const { empty() }; EVENTS_MAX];
        let room = events.len().min(EVENTS_MAX) as libc::c_int;
        let change = change.map(|change| libc::kevent {
            ident: change.ident,
            filter: change.filter,
            flags: change.flags,
            udata: ptr::without_provenance_mut(change.udata),
            ..empty()
        });
        let (changes, count) = match &change {
            Some(change) => (ptr::from_ref(change), 1),
            None => (ptr::null(), 0),
        };
        let timeout =
            timeout.map(|Timeout { s, ns }| libc::timespec { tv_sec: s, tv_nsec: ns.into() });
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: the change and the timeout are live borrows or null, which the kernel
        // reads; `raw` has room for the `room` events that it writes. The watched
        // descriptors are numbers to it: one that was closed is watched no more.
        let n = unsafe {
            libc::kevent(self.0.as_raw_fd(), changes, count, raw.as_mut_ptr(), room, timeout)
        };
        let n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
        for (event, raw) in events.iter_mut().zip(&raw[..n]) {
            *event = Kevent {
                ident: raw.ident,
                filter: raw.filter,
                flags: raw.flags,
                data: raw.data as i64,
                udata: raw.udata.addr(),
            };
        }
        Ok(n)
    }
}

/// An event of nothing.
const fn empty() -> libc::kevent {
    libc::kevent {
        ident: 0,
        filter: 0,
        flags: 0,
        fflags: 0,
        data: 0,
        udata: ptr::null_mut(),
        ext: [0; 4],
    }
}
