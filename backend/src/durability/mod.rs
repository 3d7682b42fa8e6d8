//! Making durable what a guest asks for, beside the data plane.
//!
//! A sync of a file takes as long as its storage takes, and a turn of a worker
//! must not. So each guest whose stores the host makes durable has one more
//! thread. A worker lays the ranges of the epochs that were sealed in a turn, by whatever
//! channel, on its *desk*: one *batch*. The thread takes everything that lies on the desks of
//! all workers that serve the guest, makes it durable by one sync, and wakes those whom it
//! was for. While it syncs, the desks fill again; so there is one sync for as many epochs, of
//! as many lanes, as fit into the time of a sync, and never a second one waiting.
//!
//! ```text
//!   lane 0: sealed in a turn ──> desk 0 ┐
//!                                       ├─ all of it ──> thread: one sync ──> both are woken
//!   lane 1: sealed in a turn ──> desk 1 ┘
//! ```
//!
//! A desk has a lock, which is held to hand things over and once for a turn that sealed
//! something, and by the thread never while it syncs.
//!
//! Whose epochs they are, and who waits for them, is the channels' business. How
//! bytes become durable is a [`MakeDurable`]'s.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
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

/// Why batches are not durable.
#[derive(Clone, Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Flush(Arc<FlushError>),
    #[error("the flusher panicked")]
    Panicked,
}

/// Batches that the thread has done.
#[derive(Debug)]
struct Done {
    /// The last of them.
    batch: u64,
    outcome: Result<(), Failure>,
}

/// What one worker and the thread hand each other.
#[derive(Debug, Default)]
struct Desk {
    /// For the thread, and the last batch that is in it; 0 without any.
    ranges: Vec<FlushRange>,
    batch: u64,
    /// The thread works on something that lay here.
    is_syncing: bool,
    /// For the worker, oldest first.
    done: VecDeque<Done>,
}

/// What the thread knows.
#[derive(Debug, Default)]
struct Office {
    desks: Box<[Desk]>,
    counters: FlushCounters,
    /// The thread is to end.
    closes: bool,
}

#[derive(Debug)]
struct Shared {
    office: Mutex<Office>,
    changed: Condvar,
    /// By desk, whether something waits for the worker: looked at in every turn, without the
    /// lock.
    done: Box<[AtomicBool]>,
}

impl Shared {
    fn office(&self) -> MutexGuard<'_, Office> {
        // Nothing panics while it holds the lock.
        self.office.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The thread, which ends with the last worker that it is for.
#[derive(Debug)]
struct Thread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.shared.office().closes = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that makes stores durable panicked");
        }
    }
}

/// A worker's hand on the thread.
#[derive(Debug)]
struct Helper {
    thread: Arc<Thread>,
    desk: usize,
}

/// How the stores of one guest become durable, for one of its lanes.
#[derive(Debug)]
pub struct Durability {
    domain: FlushDomain,
    helper: Option<Helper>,
    collecting: Vec<FlushRange>,
    /// Whether an epoch was sealed into the batch that is being collected.
    wanted: bool,
    /// The number of the batch that is being collected, from 1.
    batch: u64,
    /// Epochs that were sealed: over the commits it is the mean batch.
    epochs: u64,
    /// The batches that were done last, and whether they are durable.
    last: Option<(u64, bool)>,
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
            failing: false,
        }
    }

    /// By a flusher, on a thread of this name, for as many workers as there are wakers:
    /// each is told when something of its own is done.
    pub fn by_host(
        name: &str,
        flusher: Box<dyn MakeDurable>,
        wakers: Vec<Waker>,
    ) -> io::Result<Vec<Durability>> {
        let desks = wakers.iter().map(|_| Desk::default()).collect();
        let shared = Arc::new(Shared {
            office: Mutex::new(Office { desks, ..Office::default() }),
            changed: Condvar::new(),
            done: wakers.iter().map(|_| AtomicBool::new(false)).collect(),
        });
        let desks = wakers.len();
        let thread = std::thread::Builder::new().name(format!("{name}-flush")).spawn({
            let shared = Arc::clone(&shared);
            move || serve(&shared, flusher, &wakers)
        })?;
        let thread = Arc::new(Thread { shared, thread: Some(thread) });
        let durability = |desk| {
            let mut durability = Durability::without_host(FlushDomain::Host);
            durability.helper = Some(Helper { thread: Arc::clone(&thread), desk });
            durability
        };
        Ok((0..desks).map(durability).collect())
    }

    /// How stores become durable, as the guest is told.
    pub fn domain(&self) -> FlushDomain {
        self.domain
    }

    /// Every counter with its name. What is written for all lanes is the first one's.
    pub fn each_counter(&self, mut visit: impl FnMut(&'static str, u64)) {
        visit("epochs", self.epochs);
        let first = self.helper.as_ref().filter(|helper| helper.desk == 0);
        let counters = first.map(|helper| helper.thread.shared.office().counters);
        counters.unwrap_or_default().each(visit);
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

    /// Hands what was collected to the thread. Called once a turn, after everything that may
    /// seal.
    pub fn begin(&mut self) {
        let Some(Helper { thread, desk }) = self.helper.as_ref().filter(|_| self.wanted) else {
            return;
        };
        let mut office = thread.shared.office();
        let desk = &mut office.desks[*desk];
        desk.ranges.append(&mut self.collecting);
        desk.batch = self.batch;
        drop(office);
        thread.shared.changed.notify_all();
        self.wanted = false;
        self.batch += 1;
    }

    /// What the thread has done next since it was asked last: the number of the last batch
    /// of it, and whether that and those before, of which nothing was said yet, are durable.
    pub fn completed(&mut self) -> Option<(u64, bool)> {
        let Helper { thread, desk } = self.helper.as_ref()?;
        let flag = &thread.shared.done[*desk];
        if !flag.load(Ordering::Acquire) {
            return None;
        }
        let mut office = thread.shared.office();
        let done = office.desks[*desk].done.pop_front();
        flag.store(!office.desks[*desk].done.is_empty(), Ordering::Release);
        drop(office);
        let Done { batch, outcome } = done?;
        if let Err(error) = &outcome {
            if !self.failing {
                tracing::error!(%error, "stores could not be made durable; the guest is told");
            }
        } else if self.failing {
            tracing::info!("stores are made durable again");
        }
        self.failing = outcome.is_err();
        self.last = Some((batch, outcome.is_ok()));
        self.last
    }

    /// What [`Durability::completed`] said last.
    pub fn last_completed(&self) -> Option<(u64, bool)> {
        self.last
    }
}

impl Drop for Durability {
    fn drop(&mut self) {
        let Some(Helper { thread, desk }) = &self.helper else { return };
        // What it works on is finished first.
        let mut office = thread.shared.office();
        while office.desks[*desk].batch != 0 || office.desks[*desk].is_syncing {
            let waited = thread.shared.changed.wait(office);
            office = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The life of the thread.
fn serve(shared: &Shared, mut flusher: Box<dyn MakeDurable>, wakers: &[Waker]) {
    let mut ranges = Vec::new();
    // By desk, the last batch of it in this sync.
    let mut batches = vec![0; wakers.len()].into_boxed_slice();
    loop {
        let mut office = shared.office();
        while office.desks.iter().all(|desk| desk.batch == 0) {
            if office.closes {
                return;
            }
            office = shared.changed.wait(office).unwrap_or_else(PoisonError::into_inner);
        }
        for (desk, batch) in office.desks.iter_mut().zip(&mut batches) {
            *batch = std::mem::take(&mut desk.batch);
            desk.is_syncing = *batch != 0;
            ranges.append(&mut desk.ranges);
        }
        drop(office);
        // One that panics has made nothing durable, and may do so again.
        let attempt = std::panic::AssertUnwindSafe(|| flusher.make_durable(&ranges));
        let outcome = match std::panic::catch_unwind(attempt) {
            Ok(outcome) => outcome.map_err(|error| Failure::Flush(Arc::new(error))),
            Err(_) => Err(Failure::Panicked),
        };
        ranges.clear();
        let mut office = shared.office();
        office.counters = flusher.counters();
        for (index, desk) in office.desks.iter_mut().enumerate() {
            if std::mem::take(&mut desk.is_syncing) {
                let batch = batches[index];
                desk.done.push_back(Done { batch, outcome: outcome.clone() });
                shared.done[index].store(true, Ordering::Release);
            }
        }
        drop(office);
        shared.changed.notify_all();
        let served = wakers.iter().zip(&batches).filter(|(_, batch)| **batch != 0);
        served.for_each(|(waker, _)| waker.wake());
        // What panics here has harmed nothing that was promised; the next batch tells.
        let tidying = std::panic::AssertUnwindSafe(|| flusher.tidy());
        let _ = std::panic::catch_unwind(tidying);
    }
}
