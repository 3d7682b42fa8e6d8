//! The worker: one thread, and those that it gives turns to.
//!
//! Who is served is a [`Task`]: a guest with all that belongs to it ([`GuestTask`]),
//! or the switch of a NIC that several guests share. A task belongs to one worker for
//! its whole life, so nothing of it is ever locked, and workers share nothing but what
//! rings between tasks carry.
//!
//! ```text
//!   worker 0 (CPU 2)            worker 1 (CPU 3)
//!   ┌ web1 ┐ ┌ web3 ┐           ┌ web2 ┐ ┌ tap:tap0 ┐
//!   └ turn ┘ └ turn ┘ ...       └ turn ┘ └ turn ────┘ ...
//! ```
//!
//! | module | knows |
//! | --- | --- |
//! | `task` | what a worker has to know of whom it serves |
//! | `guest` | the turn of a guest, with `plain`, `pmem`, `region` and `source` |
//! | `lane` | how the lanes of a guest hand its queue pairs to each other |
//! | `credit` | who may have a turn now |
//! | `slot` | one task on its worker: whether it is polled or asleep |
//!
//! # Turns
//!
//! Tasks that are awake have turns one after the other. A turn has a bound, and what it
//! took is charged to the task: one whose turns take longer than the others' has fewer
//! of them ([`credit`]), so that a guest that makes work takes the time of the worker
//! only from itself when others have anything to do.
//!
//! # Sleep
//!
//! A task that nothing moved for in its polling time asks to be woken and has no more
//! turns until it is. While others are awake the worker looks every [`LOOK_INTERVAL`] for
//! who is to be woken, with one system call for all of them; when all are asleep it
//! sleeps. What wakes a task costs it a turn, which is charged to it as any other, control
//! messages with it: a guest that kicks without having anything to say harms nobody.
//!
//! # When one fails
//!
//! A task that panics is taken out and dropped; the others go on. When descriptors cannot
//! be watched, because the process has no more of them, nobody sleeps until they can.

mod counters;
mod credit;
mod guest;
mod lane;
mod plain;
mod pmem;
mod region;
mod slot;
mod source;
mod task;
#[cfg(test)]
mod tests;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use crate::port::Now;
use crate::sys::clock::{monotonic_ns, realtime_ns};
use crate::sys::wake::{self, Waker, Wakeups};
use crate::sys::{EventLoop, Token};

pub use counters::{GuestCounters, WorkerCounters};
pub use guest::{GuestTask, Parts, Role};
pub use lane::{First, Others, join};
pub use pmem::PmemPort;
pub use region::RegionPort;
use slot::Slot;
pub use source::{Network, Sources, Spoof};
pub use task::{Rest, TASK_TOKENS, Task};

/// While tasks are awake and others asleep, the worker looks this often who is to be
/// woken, ns.
const LOOK_INTERVAL: u64 = 25_000;
/// While a task is awake, its descriptors are looked at this often, ns.
const CONTROL_INTERVAL: u64 = 1_000_000;
/// When descriptors could not be watched, that is tried again after this long, ns.
const WATCH_RETRY: u64 = 100_000_000;

/// Tasks on one worker, at most: what is left of a token beside those of a task.
pub const TASKS_MAX: usize = 1 << 15;
/// The worker's own wake-ups.
const TOKEN_WAKE: Token = Token::MAX;

/// Who is to go on, beside nobody and everybody.
const RUN: u8 = 0;
const END_FIRST: u8 = 1;
const END_ALL: u8 = 2;

/// Asks workers to end, from another thread.
#[derive(Debug, Default)]
pub struct Stop {
    phase: Arc<AtomicU8>,
    wakers: Vec<Waker>,
}

impl Stop {
    /// Has all tasks end in good order but those that carry what others send last. Each
    /// is reported by its [`Ended`].
    pub fn end_first(&self) {
        self.say(END_FIRST);
    }

    /// Has everything end.
    pub fn end_all(&self) {
        self.say(END_ALL);
    }

    fn say(&self, phase: u8) {
        self.phase.store(phase, Ordering::Release);
        self.wakers.iter().for_each(Waker::wake);
    }
}

/// A task that is no longer served.
#[derive(Debug)]
pub struct Ended {
    /// The task's name.
    pub name: String,
    /// It ended last, as it has to.
    pub last: bool,
    /// What was counted; `None` if the task was lost.
    pub counted: Option<Vec<(String, u64)>>,
}

/// A thread's work, ready to [`run`](Worker::run).
pub struct Worker {
    slots: Vec<Slot>,
    /// Those that have turns, by index.
    awake: Vec<usize>,
    phase: Arc<AtomicU8>,
    wakeups: Wakeups,
    ended: Sender<Ended>,
    /// Descriptors are watched; `None` if they could not be.
    events: Option<EventLoop>,
    /// Those that are watched are no longer those that are to be.
    stale: bool,
    watch_at: u64,
    looked_at: u64,
    /// When the first of those asleep is to be woken.
    wake_at: u64,
    /// Slots whose descriptors said something.
    called: Vec<usize>,
    counters: WorkerCounters,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("tasks", &self.slots.len()).finish_non_exhaustive()
    }
}

impl Worker {
    /// A worker with nothing to do, which `stop` ends, and which tells `ended` of each
    /// task that does.
    ///
    /// # Errors
    /// Those of making a pipe.
    pub fn new(stop: &mut Stop, ended: Sender<Ended>) -> std::io::Result<Worker> {
        let (waker, wakeups) = wake::pair()?;
        stop.wakers.push(waker);
        Ok(Worker {
            slots: Vec::new(),
            awake: Vec::new(),
            phase: Arc::clone(&stop.phase),
            wakeups,
            ended,
            events: None,
            stale: true,
            watch_at: 0,
            looked_at: 0,
            wake_at: u64::MAX,
            called: Vec::new(),
            counters: WorkerCounters::default(),
        })
    }

    /// Adds a task.
    ///
    /// # Panics
    /// With more than [`TASKS_MAX`] of them.
    pub fn add(&mut self, task: Box<dyn Task>) {
        assert!(self.slots.len() < TASKS_MAX, "a worker has room for {TASKS_MAX} tasks");
        self.awake.push(self.slots.len());
        self.slots.push(Slot::new(task));
        self.called.reserve(self.slots.len());
    }

    /// Tasks that it has.
    pub fn tasks(&self) -> usize {
        self.slots.len()
    }

    /// Gives turns until it is told to end, and returns what was counted.
    pub fn run(mut self) -> WorkerCounters {
        let mut phase = RUN;
        let mut now = time();
        // Where there is but one, that is said once for all.
        let only = self.slots.first().filter(|_| self.slots.len() == 1);
        let span = only.map(|slot| slot.span().clone());
        let _entered = span.as_ref().map(tracing::Span::enter);
        self.slots.iter_mut().for_each(|slot| slot.began(now, span.is_some()));
        self.watch(now);
        self.looked_at = now.monotonic_ns;
        loop {
            let asked = self.phase.load(Ordering::Acquire);
            if asked != phase {
                phase = asked;
                self.end(now, phase == END_ALL);
            }
            if phase == END_ALL {
                return self.counters;
            }
            let moved = self.round(&mut now);
            let look =
                if self.awake.len() < self.slots.len() { LOOK_INTERVAL } else { CONTROL_INTERVAL };
            if self.stale && now.monotonic_ns >= self.watch_at {
                self.watch(now);
            }
            if self.awake.is_empty() && self.events.is_some() {
                self.counters.sleeps += 1;
                let at = Some(self.wake_at).filter(|&at| at != u64::MAX);
                let timeout =
                    at.map(|at| Duration::from_nanos(at.saturating_sub(now.monotonic_ns)));
                self.wait(timeout);
                now = time();
                self.see_to(now);
            } else if now.monotonic_ns.saturating_sub(self.looked_at) >= look {
                self.wait(Some(Duration::ZERO));
                self.see_to(now);
            } else if !moved && self.events.is_some() {
                // A guest that polls on the same core needs it.
                std::thread::yield_now();
            } else if !moved {
                std::thread::sleep(Duration::from_nanos(CONTROL_INTERVAL));
                now = time();
            }
        }
    }

    /// A turn for everybody who is awake and may have one. Returns whether anything
    /// moved, or somebody is yet to have a turn; `now` goes on.
    fn round(&mut self, now: &mut Now) -> bool {
        self.counters.rounds += 1;
        let alone = self.awake.len() == 1;
        let (mut moved, mut at) = (false, 0);
        while let Some(&index) = self.awake.get(at) {
            let slot = &mut self.slots[index];
            if !slot.may_have_turn(alone) {
                (moved, at) = (true, at + 1);
                continue;
            }
            moved |= slot.turn(*now);
            let after = time();
            slot.charge(after.monotonic_ns - now.monotonic_ns);
            *now = after;
            self.stale |= slot.changed();
            if slot.rest(*now, &mut self.wake_at) {
                at += 1;
                continue;
            }
            self.awake.swap_remove(at);
            if slot.is_lost() {
                self.lose(index);
            }
        }
        self.counters.busy_rounds += u64::from(moved);
        moved
    }

    /// Waits for descriptors, and notes whose said something. Without any to wait for it
    /// only lets the time pass.
    fn wait(&mut self, timeout: Option<Duration>) {
        self.called.clear();
        let Self { events: Some(events), slots, called, wakeups, counters, .. } = self else {
            return;
        };
        counters.looks += 1;
        let tokens = match events.wait(timeout) {
            Ok(tokens) => tokens,
            Err(error) => {
                tracing::error!(%error, "descriptors cannot be waited for; they are polled");
                self.events = None;
                self.stale = true;
                return;
            }
        };
        for &token in tokens {
            if token == TOKEN_WAKE {
                wakeups.drain();
                continue;
            }
            let (index, token) = ((token / TASK_TOKENS) as usize, token % TASK_TOKENS);
            if slots[index].call(token) {
                called.push(index);
            }
        }
    }

    /// Wakes those who were called or whose time has come.
    fn see_to(&mut self, now: Now) {
        self.looked_at = now.monotonic_ns;
        if self.events.is_none() {
            self.called.clear();
            self.called.extend(0..self.slots.len());
            self.slots.iter_mut().for_each(Slot::call_blindly);
        } else if now.monotonic_ns >= self.wake_at {
            self.wake_at = u64::MAX;
            for (index, slot) in self.slots.iter_mut().enumerate() {
                if slot.is_due(now, &mut self.wake_at) {
                    self.called.push(index);
                }
            }
        }
        for &index in &self.called {
            if self.slots[index].wake() {
                self.awake.push(index);
            }
        }
    }

    /// Watches every descriptor of every task, from now on.
    fn watch(&mut self, now: Now) {
        self.stale = false;
        // Before the new one: the process may have no descriptor left for it.
        self.events = None;
        self.counters.watches += 1;
        let mut watched = vec![(self.wakeups.as_fd(), TOKEN_WAKE)];
        for (index, slot) in self.slots.iter().enumerate() {
            let base = index as Token * TASK_TOKENS;
            slot.watch(&mut |fd, token| watched.push((fd, base + token)));
        }
        match EventLoop::new(watched) {
            Ok(events) => self.events = Some(events),
            Err(error) => {
                tracing::error!(%error, "descriptors cannot be watched; they are polled");
                self.stale = true;
                self.watch_at = now.monotonic_ns + WATCH_RETRY;
                self.see_to(now);
            }
        }
    }

    /// A task has panicked.
    fn lose(&mut self, index: usize) {
        self.counters.lost += 1;
        self.stale = true;
        let ended = self.slots[index].end(None);
        // Whoever wanted to know may have gone.
        ended.into_iter().for_each(|ended| drop(self.ended.send(ended)));
    }

    /// Ends tasks in good order: all, or those that need not be the last.
    fn end(&mut self, now: Now, all: bool) {
        for slot in &mut self.slots {
            if all || !slot.ends_last() {
                let ended = slot.end(Some(now));
                ended.into_iter().for_each(|ended| drop(self.ended.send(ended)));
            }
        }
        let slots = &self.slots;
        self.awake.retain(|&index| !slots[index].is_empty());
        self.stale = true;
    }
}

fn time() -> Now {
    Now { monotonic_ns: monotonic_ns(), real_ns: realtime_ns() }
}
