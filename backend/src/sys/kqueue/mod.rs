//! The event loop on a kqueue (FreeBSD's kqueue(2)): what is registered, and what an
//! answer means. The system calls are behind [`Queue`], so that all but these is tested
//! wherever the tests run.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use crate::sys::Token;

/// Readable, or hung up (`sys/event.h`).
pub(super) const EVFILT_READ: i16 = -1;
/// Watches, from now on.
pub(super) const EV_ADD: u16 = 0x0001;
/// Answers a change with what became of it, and with nothing else.
pub(super) const EV_RECEIPT: u16 = 0x0040;
/// The event is about a change; its `data` is the error, 0 for none.
pub(super) const EV_ERROR: u16 = 0x4000;

/// Events that one wait takes. What is left over is still so in the next: a descriptor
/// is named as long as it is readable.
pub(super) const EVENTS_MAX: usize = 32;

/// Seconds that a wait is cut to, which the kernel takes in any case.
const TIMEOUT_MAX_S: u64 = i32::MAX as u64;

/// `struct kevent`, as far as it is used here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kevent {
    /// The descriptor.
    pub(super) ident: usize,
    pub(super) filter: i16,
    pub(super) flags: u16,
    pub(super) data: i64,
    /// Comes back as it was given: the token.
    pub(super) udata: usize,
}

/// How long kevent(2) waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout {
    pub(super) s: i64,
    pub(super) ns: u32,
}

/// A kqueue.
pub trait Queue: Sized {
    /// Makes an empty one.
    fn open() -> io::Result<Self>;

    /// kevent(2): makes a change, then waits for events and writes up to
    /// [`EVENTS_MAX`] of them to `events`; returns how many. `None`: waits for ever.
    fn kevent(
        &self,
        change: Option<&Kevent>,
        events: &mut [Kevent],
        timeout: Option<Timeout>,
    ) -> io::Result<usize>;
}

/// Waits for descriptors to become readable (or to hang up).
///
/// The set of descriptors is given whole and replaced whole: it changes only
/// with control messages, and a set that is built anew cannot keep a
/// descriptor that was closed in the meantime.
pub struct EventLoop<Q> {
    queue: Q,
    ready: Vec<Token>,
}

impl<Q: Queue> EventLoop<Q> {
    /// An event loop that watches these descriptors. They must stay open until
    /// the loop is dropped or replaced.
    pub fn new<'a>(
        watched: impl IntoIterator<Item = (BorrowedFd<'a>, Token)>,
    ) -> io::Result<EventLoop<Q>> {
        let queue = Q::open()?;
        for (fd, token) in watched {
            let fd = fd.as_raw_fd();
            if let Err(error) = watch(&queue, fd, token) {
                tracing::error!(fd, ?error, "a descriptor cannot be watched");
            }
        }
        Ok(EventLoop { queue, ready: Vec::with_capacity(EVENTS_MAX) })
    }

    /// Waits until a descriptor is readable or `timeout` has passed (`None`: for
    /// ever), and names readable ones: with more than [`EVENTS_MAX`] of them, the rest
    /// in the next wait. Zero does not wait.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<&[Token]> {
        self.ready.clear();
        let mut events = [Kevent::default(); EVENTS_MAX];
        match self.queue.kevent(None, &mut events, timeout.map(cut)) {
            Ok(n) => self.ready.extend(events[..n].iter().filter_map(ready)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        Ok(&self.ready)
    }
}

/// Registers one descriptor.
fn watch(queue: &impl Queue, fd: RawFd, token: Token) -> io::Result<()> {
    let change = registration(fd, token);
    let mut answer = [Kevent::default()];
    match queue.kevent(Some(&change), &mut answer, Some(cut(Duration::ZERO)))? {
        0 => Err(io::Error::other("kevent gave no receipt")),
        _ => receipt(&answer[0]),
    }
}

/// The change that watches a descriptor.
fn registration(fd: RawFd, token: Token) -> Kevent {
    Kevent {
        ident: fd as usize,
        filter: EVFILT_READ,
        flags: EV_ADD | EV_RECEIPT,
        data: 0,
        udata: token as usize,
    }
}

/// What the answer to a change says of it.
fn receipt(event: &Kevent) -> io::Result<()> {
    match (event.flags & EV_ERROR, i32::try_from(event.data)) {
        (0, _) => Err(io::Error::other("kevent answered a change with an event")),
        (_, Ok(0)) => Ok(()),
        (_, Ok(errno)) => Err(io::Error::from_raw_os_error(errno)),
        (_, Err(_)) => Err(io::Error::other("kevent answered with no error's number")),
    }
}

/// Which token an event names: none if it is no event of a descriptor's.
fn ready(event: &Kevent) -> Option<Token> {
    let is_read = event.filter == EVFILT_READ && event.flags & EV_ERROR == 0;
    Token::try_from(event.udata).ok().filter(|_| is_read)
}

/// A timeout as kevent(2) takes it.
fn cut(timeout: Duration) -> Timeout {
    match timeout.as_secs() {
        s if s < TIMEOUT_MAX_S => Timeout { s: s as i64, ns: timeout.subsec_nanos() },
        _ => Timeout { s: TIMEOUT_MAX_S as i64, ns: 0 },
    }
}

#[cfg(test)]
mod tests;
