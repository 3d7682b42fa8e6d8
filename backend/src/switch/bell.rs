//! Waking another thread when it sleeps, and without a system call when it does not.
//!
//! Who sleeps says so, looks once more whether there is anything to do, and then
//! waits. Who has put something there looks whether the other sleeps. Each does the
//! one before the other, in one order that both see, so one of them finds out.

use std::sync::atomic::{AtomicBool, Ordering, fence};

use crate::sys::wake::Waker;

#[derive(Debug)]
pub(super) struct Bell {
    asleep: AtomicBool,
    waker: Waker,
}

impl Bell {
    /// A bell that rings by `waker`.
    pub(super) fn new(waker: Waker) -> Bell {
        Bell { asleep: AtomicBool::new(false), waker }
    }

    /// Asks to be woken from now on. What is there already has to be looked for after
    /// this.
    pub(super) fn arm(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// It is awake.
    pub(super) fn disarm(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Wakes who sleeps. True if somebody did, which costs a system call.
    pub(super) fn ring(&self) -> bool {
        fence(Ordering::SeqCst);
        let asleep =
            self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed);
        if asleep {
            self.waker.wake();
        }
        asleep
    }
}
