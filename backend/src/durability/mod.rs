//! Making durable what a guest asks for, beside the data plane.
//!
//! A sync of a file takes as long as its storage takes, and a turn of a worker
//! must not. So each guest whose stores the host makes durable has one more
//! thread. The worker collects the ranges of all epochs that were sealed since
//! the last sync began, by whatever channel, into one *batch*; hands it over when
//! the thread is idle; and is woken when it is done. While one batch is being
//! synced the next collects, so there is one sync for as many epochs as fit
//! into the time of a sync, and never a second one waiting.
//!
//! Whose epochs they are, and who waits for them, is the channels' business. How
//! bytes become durable is a [`MakeDurable`]'s.

#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use paste_abi::control::FlushDomain;
use paste_pmem::{FlushCounters, FlushError, FlushRange, Flusher};

use crate::sys::clock::monotonic_ns;
use crate::sys::wake::Waker;

/// Makes ranges durable. Called on a thread of its own, and may take its time.
pub trait MakeDurable: Send {
    /// Makes all of these ranges durable, which have been judged to lie in the
    /// guest's mapping, or says why that cannot be vouched for.
    fn make_durable(&mut self, ranges: &[FlushRange]) -> Result<(), FlushError>;

    /// What was written for it.
    fn counters(&self) -> FlushCounters;

    /// Does a little of what has to be done some time, after each batch and beside
    /// those who wait for one.
    fn tidy(&mut self) {}
}

impl MakeDurable for Flusher {
    fn make_durable(&mut self, ranges: &[FlushRange]) -> Result<(), FlushError> {
        for &range in ranges {
            let added = self.add(range);
            debug_assert!(added.is_ok(), "judged at the door");
        }
        self.commit(monotonic_ns())
    }

    fn counters(&self) -> FlushCounters {
        Flusher::counters(self)
    }

    fn tidy(&mut self) {
        Flusher::tidy(self);
    }
}

/// What the thread has done.
#[derive(Debug)]
struct Done {
    /// The batch, whose memory comes back.
    ranges: Vec<FlushRange>,
    outcome: Result<(), Failure>,
    counters: FlushCounters,
}

/// Why a batch is not durable.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Flush(#[from] FlushError),
    #[error("the flusher panicked")]
    Panicked,
}

/// What the worker and the thread hand each other.
#[derive(Debug)]
enum Work {
    /// Nobody has anything to do.
    Idle,
    /// For the thread.
    Batch(Vec<FlushRange>),
    /// For the worker.
    Done(Done),
    /// For the thread: end.
    Stop,
}

#[derive(Debug)]
struct Shared {
    work: Mutex<Work>,
    changed: Condvar,
    /// Whether [`Work::Done`] waits: looked at in every turn, without the lock.
    done: AtomicBool,
}

impl Shared {
    fn work(&self) -> MutexGuard<'_, Work> {
        // Nothing panics while it holds the lock.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread, as the worker sees it.
#[derive(Debug)]
struct Helper {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The batch that the thread works on.
    flying: bool,
    /// Memory for the batch after the next.
    spare: Vec<FlushRange>,
}

/// How the stores of one guest become durable.
#[derive(Debug)]
pub struct Durability {
    domain: FlushDomain,
    helper: Option<Helper>,
    collecting: Vec<FlushRange>,
    /// Whether an epoch was sealed into the batch that is being collected.
    wanted: bool,
    /// The number of the batch that is being collected.
    batch: u64,
    /// Epochs that were sealed: over the commits it is the mean batch.
    epochs: u64,
    /// The batch that was done last, and whether it is durable.
    last: Option<(u64, bool)>,
    counters: FlushCounters,
    failing: bool,
}

impl Durability {
    /// Without any work for the host: nothing becomes durable, or the guest sees
    /// to it by itself.
    pub fn without_host(domain: FlushDomain) -> Durability {
        Durability {
            domain,
            helper: None,
            collecting: Vec::new(),
            wanted: false,
            batch: 1,
            epochs: 0,
            last: None,
            counters: FlushCounters::default(),
            failing: false,
        }
    }

    /// By a flusher, on a thread of this name; `waker` is told when a batch is
    /// done.
    pub fn by_host(
        name: &str,
        flusher: Box<dyn MakeDurable>,
        waker: Waker,
    ) -> io::Result<Durability> {
        let shared = Arc::new(Shared {
            work: Mutex::new(Work::Idle),
            changed: Condvar::new(),
            done: AtomicBool::new(false),
        });
        let thread = std::thread::Builder::new().name(format!("{name}-flush")).spawn({
            let shared = Arc::clone(&shared);
            move || serve(&shared, flusher, &waker)
        })?;
        let helper = Helper { shared, thread: Some(thread), flying: false, spare: Vec::new() };
        let mut durability = Durability::without_host(FlushDomain::Host);
        durability.helper = Some(helper);
        Ok(durability)
    }

    /// How stores become durable, as the guest is told.
    pub fn domain(&self) -> FlushDomain {
        self.domain
    }

    /// Every counter with its name.
    pub fn each_counter(&self, mut visit: impl FnMut(&'static str, u64)) {
        visit("epochs", self.epochs);
        self.counters.each(visit);
    }

    /// Takes the ranges of an epoch into the batch that is being collected, and
    /// says its number. `None` if the host makes nothing durable.
    pub fn seal(&mut self, ranges: &mut Vec<FlushRange>) -> Option<u64> {
        self.epochs += 1;
        self.helper.as_ref()?;
        self.collecting.append(ranges);
        self.wanted = true;
        Some(self.batch)
    }

    /// Likewise, for an epoch of everything in a mapping of `len` bytes.
    pub fn seal_everything(&mut self, len: u64) -> Option<u64> {
        self.epochs += 1;
        self.helper.as_ref()?;
        self.collecting.push(FlushRange { offset: 0, len });
        self.wanted = true;
        Some(self.batch)
    }

    /// Hands what was collected to the thread, if that is idle. Called once a
    /// turn, after everything that may seal.
    pub fn begin(&mut self) {
        let Some(helper) = self.helper.as_mut().filter(|helper| self.wanted && !helper.flying)
        else {
            return;
        };
        let ranges = std::mem::replace(&mut self.collecting, std::mem::take(&mut helper.spare));
        *helper.shared.work() = Work::Batch(ranges);
        helper.shared.changed.notify_one();
        helper.flying = true;
        self.wanted = false;
        self.batch += 1;
    }

    /// The batch that the thread has done since it was asked last: its number,
    /// and whether it is durable.
    pub fn completed(&mut self) -> Option<(u64, bool)> {
        let helper = self.helper.as_mut()?;
        if !helper.shared.done.swap(false, Ordering::Acquire) {
            return None;
        }
        let Work::Done(done) = std::mem::replace(&mut *helper.shared.work(), Work::Idle) else {
            return None;
        };
        let Done { mut ranges, outcome, counters } = done;
        ranges.clear();
        helper.spare = ranges;
        helper.flying = false;
        self.counters = counters;
        if let Err(error) = &outcome {
            if !self.failing {
                tracing::error!(%error, "stores could not be made durable; the guest is told");
            }
        } else if self.failing {
            tracing::info!("stores are made durable again");
        }
        self.failing = outcome.is_err();
        // One batch flies at a time, and it is the one before what is collected.
        self.last = Some((self.batch - 1, outcome.is_ok()));
        self.last
    }

    /// What [`Durability::completed`] said last.
    pub fn last_completed(&self) -> Option<(u64, bool)> {
        self.last
    }
}

impl Drop for Durability {
    fn drop(&mut self) {
        let Some(helper) = &mut self.helper else { return };
        // What it works on is finished first.
        let mut work = helper.shared.work();
        while matches!(*work, Work::Batch(_)) || (helper.flying && matches!(*work, Work::Idle)) {
            work = helper.shared.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
        *work = Work::Stop;
        drop(work);
        helper.shared.changed.notify_all();
        if let Some(thread) = helper.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that makes stores durable panicked");
        }
    }
}

/// The life of the thread.
fn serve(shared: &Shared, mut flusher: Box<dyn MakeDurable>, waker: &Waker) {
    loop {
        let mut work = shared.work();
        let ranges = loop {
            match std::mem::replace(&mut *work, Work::Idle) {
                Work::Batch(ranges) => break ranges,
                Work::Stop => return,
                other => *work = other,
            }
            work = shared.changed.wait(work).unwrap_or_else(PoisonError::into_inner);
        };
        drop(work);
        // One that panics has made nothing durable, and may do so again.
        let attempt = std::panic::AssertUnwindSafe(|| flusher.make_durable(&ranges));
        let outcome = match std::panic::catch_unwind(attempt) {
            Ok(outcome) => outcome.map_err(Failure::from),
            Err(_) => Err(Failure::Panicked),
        };
        let counters = flusher.counters();
        *shared.work() = Work::Done(Done { ranges, outcome, counters });
        shared.done.store(true, Ordering::Release);
        shared.changed.notify_all();
        waker.wake();
        // What panics here has harmed nothing that was promised; the next batch tells.
        let tidying = std::panic::AssertUnwindSafe(|| flusher.tidy());
        let _ = std::panic::catch_unwind(tidying);
    }
}
