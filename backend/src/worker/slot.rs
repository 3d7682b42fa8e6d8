//! A task on its worker: awake or asleep, what it may use, and what becomes of it when
//! it fails.

use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::Ended;
use super::credit::Credit;
use super::task::{Rest, Task};
use crate::port::Now;
use crate::sys::Token;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It has turns.
    Awake,
    /// It has none until it is called, or until this time.
    Asleep(u64),
}

/// A task, or what is left when it has ended.
pub(super) struct Slot {
    task: Option<Box<dyn Task>>,
    span: tracing::Span,
    /// What is logged is in the span already.
    entered: bool,
    state: State,
    credit: Credit,
    poll_ns: u64,
    generation: u64,
    moved: bool,
    active_at: u64,
    /// A descriptor said something.
    called: bool,
    /// Control messages wait.
    control: bool,
    /// It panicked.
    lost: bool,
    turn_ns: u64,
    deferred: u64,
}

impl Slot {
    pub(super) fn new(task: Box<dyn Task>) -> Slot {
        Slot {
            poll_ns: task.poll_ns(),
            generation: task.generation(),
            span: task.span().clone(),
            entered: false,
            task: Some(task),
            state: State::Awake,
            credit: Credit::default(),
            moved: false,
            active_at: 0,
            called: false,
            control: false,
            lost: false,
            turn_ns: 0,
            deferred: 0,
        }
    }

    /// The worker begins; `entered`: the task's span is entered for good.
    pub(super) fn began(&mut self, now: Now, entered: bool) {
        self.active_at = now.monotonic_ns;
        self.entered = entered;
    }

    /// What the task's messages are logged in.
    pub(super) fn span(&self) -> &tracing::Span {
        &self.span
    }

    /// Lets the task do something, if there is one. `None` if it panics, or has.
    fn guarded<T>(&mut self, work: impl FnOnce(&mut dyn Task) -> T) -> Option<T> {
        let task = self.task.as_deref_mut().filter(|_| !self.lost)?;
        let _entered = (!self.entered).then(|| self.span.enter());
        // Whatever it leaves behind half done, nobody looks at any more.
        let done = catch_unwind(AssertUnwindSafe(|| work(task)));
        self.lost |= done.is_err();
        done.ok()
    }

    /// Whether it may have a turn in this round.
    pub(super) fn may_have_turn(&mut self, alone: bool) -> bool {
        if alone {
            self.credit.forgive();
        }
        let may = self.credit.round();
        self.deferred += u64::from(!may);
        may
    }

    /// A turn, with what it was called for. Returns whether anything moved.
    pub(super) fn turn(&mut self, now: Now) -> bool {
        let called = std::mem::take(&mut self.called);
        let control = std::mem::take(&mut self.control);
        let moved = self.guarded(|task| {
            if control {
                task.control(now);
            }
            if called {
                task.disarm();
            }
            task.turn(now)
        });
        self.moved = moved.unwrap_or(false);
        self.moved
    }

    /// It has used this time.
    pub(super) fn charge(&mut self, ns: u64) {
        self.credit.charge(ns);
        self.turn_ns += ns;
    }

    /// Whether it shows other descriptors than when this was asked last.
    pub(super) fn changed(&mut self) -> bool {
        let generation = self.task.as_ref().map_or(0, |task| task.generation());
        std::mem::replace(&mut self.generation, generation) != generation
    }

    /// After a turn: whether it goes on having turns. If it does not, it is asleep, and
    /// `wake_at` is no later than it is to be woken; or it is lost.
    pub(super) fn rest(&mut self, now: Now, wake_at: &mut u64) -> bool {
        if self.lost {
            return false;
        }
        if self.moved {
            self.active_at = now.monotonic_ns;
            return true;
        }
        if now.monotonic_ns.saturating_sub(self.active_at) < self.poll_ns {
            return true;
        }
        let Some(rest) = self.guarded(|task| task.arm(now)) else { return false };
        let until = match rest {
            Rest::Not => return true,
            Rest::Until(at) => at,
            Rest::Silent => u64::MAX,
        };
        *wake_at = until.min(*wake_at);
        self.state = State::Asleep(until);
        false
    }

    /// What a descriptor says. True if the task was not called since its last turn.
    pub(super) fn call(&mut self, token: Token) -> bool {
        let control = self.guarded(|task| task.ready(token)).unwrap_or(false);
        self.control |= control;
        !std::mem::replace(&mut self.called, true)
    }

    /// Control messages may wait, and nothing says so.
    pub(super) fn call_blindly(&mut self) {
        (self.called, self.control) = (true, true);
    }

    /// Whether it sleeps and its time has come; `wake_at` is no later than that of one
    /// that sleeps on.
    pub(super) fn is_due(&mut self, now: Now, wake_at: &mut u64) -> bool {
        let State::Asleep(until) = self.state else { return false };
        if until > now.monotonic_ns {
            *wake_at = until.min(*wake_at);
            return false;
        }
        !std::mem::replace(&mut self.called, true)
    }

    /// Has turns from now on. True if it was asleep.
    pub(super) fn wake(&mut self) -> bool {
        let slept = self.task.is_some() && self.state != State::Awake;
        self.state = State::Awake;
        slept
    }

    pub(super) fn watch<'a>(&'a self, show: &mut dyn FnMut(BorrowedFd<'a>, Token)) {
        if let Some(task) = &self.task {
            task.watch(show);
        }
    }

    /// Whether it is lost and has not been taken out.
    pub(super) fn is_lost(&self) -> bool {
        self.lost && self.task.is_some()
    }

    /// Whether the task has ended.
    pub(super) fn is_empty(&self) -> bool {
        self.task.is_none()
    }

    /// See [`Task::ends_last`].
    pub(super) fn ends_last(&self) -> bool {
        self.task.as_ref().is_some_and(|task| task.ends_last())
    }

    /// Ends the task, in good order if it is told the time, and drops it. `None` if it
    /// had ended.
    pub(super) fn end(&mut self, now: Option<Now>) -> Option<Ended> {
        let task = self.task.as_ref()?;
        let (name, last) = (task.name().to_owned(), task.ends_last());
        let finished = now.and_then(|now| self.guarded(|task| task.finish(now)));
        let counted = finished.and_then(|()| {
            self.guarded(|task| {
                let mut counted = Vec::new();
                task.each_counter(&mut |name, value| counted.push((name.to_owned(), value)));
                counted
            })
        });
        let counted = counted.map(|mut counted| {
            counted.push(("worker.turn_ns".to_owned(), self.turn_ns));
            counted.push(("worker.deferred".to_owned(), self.deferred));
            counted
        });
        if counted.is_none() {
            tracing::error!(task = name, "panicked; it is no longer served, the others are");
        }
        let task = self.task.take();
        if catch_unwind(AssertUnwindSafe(|| drop(task))).is_err() {
            tracing::error!(task = name, "panicked once more when it was dropped");
        }
        Some(Ended { name, last, counted })
    }
}
