//! Threads and time.
//!
//! packetdrill runs the events of a script on its main thread, and a system
//! call that the script expects to block on a second one. It lets the main
//! thread go on as soon as the second one sleeps. Virtual time passes in the
//! main thread's calls alone, and never while a call that could now return has
//! not: after each step of time or packet the main thread hands over, and waits
//! until every waiting call has looked again. So a call ends at the very time
//! at which its reason came about, whatever the machine is busy with:
//!
//! ```text
//!   main:    usleep ── step, settle ── hand over ┄┄┄┄┄┄┄┄┄┄┄┄ step ── ...
//!   second:  accept ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄ look again ── wait, or return
//! ```
//!
//! A call that returned has its time kept, so that the second thread's next
//! look at the clock shows when the call returned and not how far the main
//! thread has come since.

use core::net::SocketAddr;
use std::collections::HashMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use paste_stack::config::{MS, SEC};

use crate::errno::{Errno, Result};
use crate::flags::{FlagError, Settings};
use crate::socket::Attempt;
use crate::world::World;

/// Longest virtual time for which a call on the main thread, or the search for
/// the next packet, lets timers ring: longer than any chain of a stack's timers
/// but keepalive, which never ends.
const PATIENCE: u64 = 24 * 3600 * SEC;
/// Least step of time, so that a timer that rings early cannot stop it.
const STEP_MIN: u64 = 1000;
/// What one look at the clock takes. packetdrill spins on the clock for the
/// last microseconds before an event.
const CLOCK_READ: u64 = 1000;
/// 2001-09-09T01:46:40Z, where the wall clock starts.
const EPOCH: u64 = 1_000_000_000 * SEC;

/// The state, shared by threads.
#[derive(Debug)]
pub(crate) struct Harness {
    state: Mutex<State>,
    turn: Condvar,
    /// The thread in whose calls time passes.
    main: ThreadId,
}

#[derive(Debug)]
struct State {
    world: World,
    /// How often the main thread has handed over.
    round: u64,
    /// Waiting calls, by thread.
    waiters: HashMap<ThreadId, Waiter>,
    /// When the last call of a thread that waited returned.
    returned: HashMap<ThreadId, u64>,
}

#[derive(Clone, Copy, Debug)]
struct Waiter {
    /// The round in which it last looked.
    looked: u64,
    /// When it waits no longer.
    deadline: Option<u64>,
}

type Guard<'a> = MutexGuard<'a, State>;

impl State {
    fn settle_at(&mut self, now: u64) {
        self.world.now = now;
        self.world.settle();
    }

    /// When something happens next without anybody's doing.
    fn next_deadline(&self) -> Option<u64> {
        let waits = self.waiters.values().filter_map(|w| w.deadline).min();
        self.world.next_deadline().into_iter().chain(waits).min()
    }

    /// The next step of time, if there is one before `limit`.
    fn next_step(&self, limit: u64) -> Option<u64> {
        let next = self.next_deadline()?.max(self.world.now + STEP_MIN);
        (next < limit).then_some(next)
    }
}

impl Harness {
    /// A harness whose time passes in the calls of this thread.
    pub(crate) fn new(flags: &str) -> core::result::Result<Harness, FlagError> {
        let state = State {
            world: World::new(Settings::parse(flags)?),
            round: 0,
            waiters: HashMap::new(),
            returned: HashMap::new(),
        };
        Ok(Harness { state: Mutex::new(state), turn: Condvar::new(), main: thread::current().id() })
    }

    fn lock(&self) -> Guard<'_> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sleep<'a>(&self, guard: Guard<'a>) -> Guard<'a> {
        self.turn.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has happened: waiting calls look again.
    fn hand_over<'a>(&self, mut guard: Guard<'a>) -> Guard<'a> {
        let me = thread::current().id();
        if guard.waiters.is_empty() || guard.waiters.contains_key(&me) {
            return guard;
        }
        guard.round += 1;
        self.turn.notify_all();
        while guard.waiters.values().any(|w| w.looked < guard.round) {
            guard = self.sleep(guard);
        }
        guard
    }

    /// Lets time pass until `target`.
    fn pass<'a>(&self, mut guard: Guard<'a>, target: u64) -> Guard<'a> {
        while let Some(next) = guard.next_step(target) {
            guard.settle_at(next);
            guard = self.hand_over(guard);
        }
        let now = guard.world.now;
        guard.settle_at(target.max(now));
        self.hand_over(guard)
    }

    /// A call that does not wait.
    pub(crate) fn call<T>(&self, call: impl FnOnce(&mut World) -> Result<T>) -> Result<T> {
        let mut guard = self.lock();
        let result = call(&mut guard.world);
        guard.world.settle();
        drop(self.hand_over(guard));
        result
    }

    /// A call that waits until `attempt` has a result, at most until `timeout`
    /// ns are over, for ever without one. `None` when they are.
    pub(crate) fn wait<T>(
        &self,
        timeout: Option<u64>,
        mut attempt: impl FnMut(&mut World) -> Attempt<T>,
    ) -> Option<Result<T>> {
        let me = thread::current().id();
        let mut guard = self.lock();
        let deadline = timeout.map(|t| guard.world.now.saturating_add(t));
        let patience = guard.world.now + PATIENCE;
        loop {
            let result = attempt(&mut guard.world);
            guard.world.settle();
            let now = guard.world.now;
            if result.is_some() || deadline.is_some_and(|d| d <= now) {
                if guard.waiters.remove(&me).is_some() {
                    guard.returned.insert(me, now);
                    self.turn.notify_all();
                }
                return result;
            }
            let limit = deadline.map_or(patience, |d| d.saturating_add(1));
            if me != self.main {
                let looked = guard.round;
                guard.waiters.insert(me, Waiter { looked, deadline });
                self.turn.notify_all();
                while guard.round == looked {
                    guard = self.sleep(guard);
                }
            } else if let Some(next) = guard.next_step(limit) {
                // Nobody else lets time pass.
                guard.settle_at(next);
            } else if let Some(deadline) = deadline {
                guard.settle_at(deadline);
            } else {
                return Some(Err(Errno(libc::EDEADLK)));
            }
        }
    }

    /// A call on a socket that waits unless the socket or `flags` say not to.
    fn wait_on<T>(
        &self,
        fd: i32,
        flags: i32,
        mut attempt: impl FnMut(&mut World) -> Attempt<T>,
    ) -> Result<T> {
        let nonblocking = flags & libc::MSG_DONTWAIT != 0
            || self.lock().world.socket(fd).is_ok_and(|socket| socket.nonblocking);
        let timeout = nonblocking.then_some(0);
        self.wait(timeout, &mut attempt).unwrap_or(Err(Errno(libc::EAGAIN)))
    }

    pub(crate) fn accept(&self, fd: i32) -> Result<(i32, SocketAddr)> {
        self.wait_on(fd, 0, |world| world.accept(fd))
    }

    pub(crate) fn connect(&self, fd: i32, peer: SocketAddr) -> Result<()> {
        self.call(|world| world.connect(fd, peer))?;
        let outcome = self.wait_on(fd, 0, |world| world.connected(fd));
        outcome.map_err(|e| if e.0 == libc::EAGAIN { Errno(libc::EINPROGRESS) } else { e })
    }

    pub(crate) fn recv(&self, fd: i32, out: &mut [&mut [u8]], flags: i32) -> Result<usize> {
        self.wait_on(fd, flags, |world| world.recv(fd, out, flags))
    }

    pub(crate) fn send(&self, fd: i32, bytes: &[&[u8]], flags: i32) -> Result<usize> {
        let mut done = 0;
        let sent = self.wait_on(fd, flags, |world| world.send(fd, bytes, &mut done, flags));
        // What was taken before it would have had to wait counts.
        if done > 0 && sent.is_err() { Ok(done) } else { sent }
    }

    /// `timeout` in ms; negative is for ever.
    pub(crate) fn poll(&self, fds: &mut [libc::pollfd], timeout: i32) -> Result<i32> {
        self.wait(milliseconds(timeout), |world| world.poll(fds)).unwrap_or(Ok(0))
    }

    pub(crate) fn epoll_wait(
        &self,
        epfd: i32,
        most: usize,
        timeout: i32,
    ) -> Result<Vec<(u32, u64)>> {
        let found = self.wait(milliseconds(timeout), |world| world.epoll_wait(epfd, most));
        found.unwrap_or(Ok(Vec::new()))
    }

    /// An IP packet arrives.
    pub(crate) fn receive(&self, packet: &[u8]) -> Result<()> {
        self.call(|world| {
            let now = world.now;
            let family = match packet.first().map(|b| b >> 4) {
                Some(6) => libc::AF_INET6,
                _ => libc::AF_INET,
            };
            let taken = world.net(None, family, false)?.receive(now, packet);
            if taken { Ok(()) } else { Err(Errno(libc::EINVAL)) }
        })
    }

    /// The next packet that the stack sends, and when, in microseconds. Time
    /// passes until there is one; `None` when there will be none.
    pub(crate) fn sniff(&self) -> Option<(Vec<u8>, i64)> {
        let mut guard = self.lock();
        let patience = guard.world.now + PATIENCE;
        loop {
            if let Some(packet) = guard.world.net.as_mut().and_then(|n| n.packets.pop_front()) {
                return Some((packet.bytes, ((EPOCH + packet.time) / 1000) as i64));
            }
            let next = guard.next_step(patience)?;
            guard.settle_at(next);
            guard = self.hand_over(guard);
        }
    }

    pub(crate) fn usleep(&self, microseconds: u64) {
        let guard = self.lock();
        let target = guard.world.now + microseconds * 1000;
        drop(self.pass(guard, target));
    }

    /// The wall clock: seconds and microseconds.
    pub(crate) fn time(&self) -> (i64, i64) {
        let mut guard = self.lock();
        let returned = guard.returned.remove(&thread::current().id());
        let now = match returned {
            Some(then) => then,
            None => {
                let target = guard.world.now + CLOCK_READ;
                guard = self.pass(guard, target);
                guard.world.now
            }
        };
        let us = (EPOCH + now) / 1000;
        ((us / 1_000_000) as i64, (us % 1_000_000) as i64)
    }

    /// packetdrill has closed the descriptors' numbers by now.
    pub(crate) fn forget_numbers(&self) {
        use std::os::fd::IntoRawFd;
        for (_, descriptor) in core::mem::take(&mut self.lock().world.files) {
            let _ = descriptor.number.into_raw_fd();
        }
    }
}

fn milliseconds(timeout: i32) -> Option<u64> {
    u64::try_from(timeout).ok().map(|ms| ms * MS)
}
