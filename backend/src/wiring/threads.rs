//! The worker threads: who is served by which, on which CPU, and how they end.

use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::Duration;

use super::Error;
use crate::config::Workers;
use crate::metrics::WorkerSnapshot;
use crate::sys::pin;
use crate::worker::{Ended, Stop, Task, Worker, WorkerCounters};

/// How long tasks may take to end before those that carry what they send last are told to
/// end as well.
const STOP_TIME: Duration = Duration::from_secs(10);

/// A task, and the worker that it is to have.
pub(super) struct Placed {
    pub(super) name: String,
    pub(super) task: Box<dyn Task>,
    /// By its number; without one, it is the worker with the fewest tasks.
    pub(super) worker: Option<usize>,
}

/// A thread that serves.
struct Thread {
    name: String,
    cpu: Option<usize>,
    serves: Vec<String>,
    handle: JoinHandle<WorkerCounters>,
}

/// All workers, running.
pub(super) struct Threads {
    threads: Vec<Thread>,
    stop: Stop,
    ended: Receiver<Ended>,
    /// Tasks that end before the others.
    first: usize,
}

/// A worker that has not begun.
struct Planned {
    name: String,
    cpu: Option<usize>,
    tasks: Vec<Placed>,
}

impl Threads {
    /// Gives every task its worker, and starts them. The first task of each is the
    /// thread's name where there is one for each.
    ///
    /// # Errors
    /// [`Error`]; no thread runs then.
    pub(super) fn start(tasks: Vec<Placed>, workers: Option<&Workers>) -> Result<Threads, Error> {
        let system = |what| move |source| Error::System { what, source };
        let first = tasks.iter().filter(|placed| !placed.task.ends_last()).count();
        let (told, ended) = mpsc::channel();
        let mut threads = Threads { threads: Vec::new(), stop: Stop::default(), ended, first };
        // All of them before any, so that none has to be ended again for another's sake.
        let mut made = Vec::new();
        for Planned { name, cpu, tasks } in plan(tasks, workers) {
            let worker = Worker::new(&mut threads.stop, told.clone());
            let mut worker = worker.map_err(system("a pipe cannot be made"))?;
            let mut serves = Vec::with_capacity(tasks.len());
            for placed in tasks {
                serves.push(placed.name);
                worker.add(placed.task);
            }
            made.push((name, cpu, serves, worker));
        }
        for (index, (name, cpu, serves, worker)) in made.into_iter().enumerate() {
            let (ready, is_ready) = mpsc::sync_channel(1);
            let thread = std::thread::Builder::new().name(name.clone()).spawn(move || {
                let bound = cpu.map_or(Ok(()), pin);
                let goes_on = bound.is_ok();
                // Whoever started it waits for this.
                let _ = ready.send(bound);
                if goes_on { worker.run() } else { WorkerCounters::default() }
            });
            let started = thread.map_err(system("a thread cannot be started"));
            let bound = |handle| match is_ready.recv() {
                Ok(Err(source)) => {
                    let cpu = cpu.unwrap_or_default();
                    Err(Error::Cpu { worker: index, cpu, source })
                }
                Ok(Ok(())) | Err(_) => Ok(handle),
            };
            match started.and_then(bound) {
                Ok(handle) => threads.threads.push(Thread { name, cpu, serves, handle }),
                Err(error) => {
                    threads.stop.end_all();
                    threads.threads.into_iter().for_each(|thread| drop(thread.handle.join()));
                    return Err(error);
                }
            }
        }
        Ok(threads)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.threads.len()
    }

    /// Ends all tasks in good order, those last that carry what others send last, and
    /// says what became of each and what the workers counted.
    pub(super) fn stop(self) -> (Vec<Ended>, Vec<WorkerSnapshot>) {
        let Threads { threads, stop, ended: all, first } = self;
        stop.end_first();
        let mut ended = Vec::new();
        while ended.iter().filter(|ended: &&Ended| !ended.last).count() < first {
            // Who takes longer, and is not waited for here, has until the thread is joined.
            let Ok(one) = all.recv_timeout(STOP_TIME) else { break };
            ended.push(one);
        }
        stop.end_all();
        let mut workers = Vec::with_capacity(threads.len());
        for Thread { name, cpu, serves, handle } in threads {
            match handle.join() {
                Ok(counted) => {
                    let mut counters = std::collections::BTreeMap::new();
                    counted.each(|name, value| {
                        counters.insert(name.to_owned(), value);
                    });
                    workers.push(WorkerSnapshot { worker: name, cpu, serves, counters });
                }
                Err(_) => tracing::error!(worker = name, "the worker panicked"),
            }
        }
        ended.extend(all.try_iter());
        (ended, workers)
    }
}

/// Which tasks each worker has: its own where that is configured, and the others where
/// there are fewest.
fn plan(tasks: Vec<Placed>, workers: Option<&Workers>) -> Vec<Planned> {
    let Some(Workers { count, cpus }) = workers else {
        let own =
            |placed: Placed| Planned { name: placed.name.clone(), cpu: None, tasks: vec![placed] };
        return tasks.into_iter().map(own).collect();
    };
    let mut planned: Vec<_> = (0..*count)
        .map(|number| Planned {
            name: format!("worker-{number}"),
            cpu: cpus.get(number).copied(),
            tasks: Vec::new(),
        })
        .collect();
    let (bound, free): (Vec<_>, Vec<_>) =
        tasks.into_iter().partition(|placed| placed.worker.is_some());
    for placed in bound {
        let worker = placed.worker.unwrap_or_default();
        planned[worker].tasks.push(placed);
    }
    for placed in free {
        if let Some(fewest) = planned.iter_mut().min_by_key(|worker| worker.tasks.len()) {
            fewest.tasks.push(placed);
        }
    }
    // One without anything to do would only sleep.
    planned.retain(|worker| !worker.tasks.is_empty());
    planned
}
