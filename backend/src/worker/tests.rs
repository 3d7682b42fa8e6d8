//! Workers with tasks that do nothing but be watched.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::*;

/// What a test sees of a task, and tells it.
#[derive(Debug)]
struct Seen {
    waker: Waker,
    /// Things to be done; a turn does one.
    work: AtomicU64,
    turns: AtomicU64,
    done: AtomicU64,
    controls: AtomicU64,
    asleep: AtomicBool,
    panics: AtomicBool,
    /// The order in which tasks finished.
    finished: Arc<Mutex<Vec<String>>>,
}

impl Seen {
    fn give(&self, work: u64) {
        self.work.fetch_add(work, Ordering::SeqCst);
        self.waker.wake();
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    fn turns(&self) -> u64 {
        self.turns.load(Ordering::SeqCst)
    }

    fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::SeqCst)
    }
}

/// How a task behaves.
#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    poll_ns: u64,
    /// How long a turn takes in which something is done.
    busy: Duration,
    /// When it wants to be woken, from when it goes to sleep.
    alarm: Option<Duration>,
    last: bool,
    panics_when_dropped: bool,
}

struct Fake {
    name: String,
    span: tracing::Span,
    kind: Kind,
    wakeups: Wakeups,
    generation: u64,
    seen: Arc<Seen>,
}

impl Task for Fake {
    fn name(&self) -> &str {
        &self.name
    }

    fn span(&self) -> &tracing::Span {
        &self.span
    }

    fn poll_ns(&self) -> u64 {
        self.kind.poll_ns
    }

    fn turn(&mut self, _now: Now) -> bool {
        self.seen.turns.fetch_add(1, Ordering::SeqCst);
        assert!(!self.seen.panics.load(Ordering::SeqCst), "as the test wants it");
        self.seen.asleep.store(false, Ordering::SeqCst);
        if self.seen.work.load(Ordering::SeqCst) == 0 {
            return false;
        }
        self.seen.work.fetch_sub(1, Ordering::SeqCst);
        let end = Instant::now() + self.kind.busy;
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        self.seen.done.fetch_add(1, Ordering::SeqCst);
        true
    }

    fn arm(&mut self, now: Now) -> Rest {
        if self.seen.work.load(Ordering::SeqCst) > 0 {
            return Rest::Not;
        }
        self.seen.asleep.store(true, Ordering::SeqCst);
        let alarm = self.kind.alarm.map(|alarm| now.monotonic_ns + alarm.as_nanos() as u64);
        alarm.map_or(Rest::Silent, Rest::Until)
    }

    fn disarm(&mut self) {}

    fn watch<'a>(&'a self, show: &mut dyn FnMut(BorrowedFd<'a>, Token)) {
        show(self.wakeups.as_fd(), 3);
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn ready(&mut self, token: Token) -> bool {
        assert_eq!(token, 3);
        self.wakeups.drain()
    }

    fn control(&mut self, _now: Now) {
        self.generation += 1;
        self.seen.controls.fetch_add(1, Ordering::SeqCst);
    }

    fn ends_last(&self) -> bool {
        self.kind.last
    }

    fn finish(&mut self, _now: Now) {
        self.seen.finished.lock().unwrap().push(self.name.clone());
    }

    fn each_counter(&self, visit: &mut dyn FnMut(&str, u64)) {
        visit("done", self.seen.done());
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        assert!(!self.kind.panics_when_dropped || std::thread::panicking(), "as the test wants it");
    }
}

/// Workers, running.
struct Rig {
    stop: Stop,
    ended: Receiver<Ended>,
    threads: Vec<JoinHandle<WorkerCounters>>,
    seen: Vec<Arc<Seen>>,
    finished: Arc<Mutex<Vec<String>>>,
}

impl Rig {
    /// Tasks of these kinds, dealt out to so many workers.
    fn new(workers: usize, kinds: &[Kind]) -> Rig {
        let mut stop = Stop::default();
        let (told, ended) = mpsc::channel();
        let mut made: Vec<_> =
            (0..workers).map(|_| Worker::new(&mut stop, told.clone()).unwrap()).collect();
        let finished = Arc::default();
        let mut all = Vec::new();
        for (index, &kind) in kinds.iter().enumerate() {
            let (waker, wakeups) = wake::pair().unwrap();
            let seen = Arc::new(Seen {
                waker,
                work: AtomicU64::new(0),
                turns: AtomicU64::new(0),
                done: AtomicU64::new(0),
                controls: AtomicU64::new(0),
                asleep: AtomicBool::new(false),
                panics: AtomicBool::new(false),
                finished: Arc::clone(&finished),
            });
            let name = format!("task{index}");
            let span = tracing::Span::none();
            let seen_by = Arc::clone(&seen);
            let fake = Fake { name, span, kind, wakeups, generation: 0, seen: seen_by };
            made[index % workers].add(Box::new(fake));
            all.push(seen);
        }
        let run = |worker: Worker| std::thread::spawn(move || worker.run());
        Rig { stop, ended, threads: made.into_iter().map(run).collect(), seen: all, finished }
    }

    fn stop(self) -> (Vec<WorkerCounters>, HashMap<String, Option<u64>>) {
        self.stop.end_first();
        std::thread::sleep(Duration::from_millis(20));
        self.stop.end_all();
        let counters = self.threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let done = |counted: Vec<(String, u64)>| {
            counted.iter().find(|(name, _)| name == "done").map(|&(_, done)| done)
        };
        let ended = self.ended.try_iter();
        let ended = ended.map(|ended| (ended.name, ended.counted.and_then(done))).collect();
        (counters, ended)
    }
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn everybody_is_served_whoever_shares_a_worker() {
    for (tasks, workers) in [(1, 1), (2, 1), (16, 1), (2, 2), (16, 2)] {
        let rig = Rig::new(workers, &vec![Kind::default(); tasks]);
        for round in 1..=20 {
            rig.seen.iter().for_each(|seen| seen.give(5));
            until("all is done", || rig.seen.iter().all(|seen| seen.done() == 5 * round));
        }
        until("all sleep", || rig.seen.iter().all(|seen| seen.is_asleep()));
        let (counters, ended) = rig.stop();
        assert!(counters.iter().all(|counted| counted.sleeps > 0 && counted.lost == 0));
        assert_eq!(ended.len(), tasks);
        assert!(ended.values().all(|&done| done == Some(100)), "{ended:?}");
    }
}

#[test]
fn who_sleeps_costs_no_turns_and_a_worker_with_nobody_awake_sleeps() {
    let rig = Rig::new(1, &[Kind::default(), Kind { poll_ns: u64::MAX, ..Kind::default() }]);
    until("one sleeps", || rig.seen[0].is_asleep());
    let turns = rig.seen[0].turns();
    let polled = rig.seen[1].turns();
    until("the other is polled", || rig.seen[1].turns() > polled + 10_000);
    assert_eq!(rig.seen[0].turns(), turns);
    // And it is woken beside the other in no time to speak of.
    let start = Instant::now();
    rig.seen[0].give(1);
    until("it is woken", || rig.seen[0].done() == 1);
    assert!(start.elapsed() < Duration::from_millis(500));
    let (counters, _) = rig.stop();
    // Somebody was always awake, until the last had ended.
    assert!(counters[0].sleeps < 5, "{counters:?}");

    let rig = Rig::new(1, &[Kind::default(); 3]);
    until("all sleep", || rig.seen.iter().all(|seen| seen.is_asleep()));
    std::thread::sleep(Duration::from_millis(50));
    let (counters, _) = rig.stop();
    assert!(counters[0].rounds < 50, "{counters:?}");
}

#[test]
fn an_alarm_wakes_its_task_alone() {
    let alarm = Some(Duration::from_millis(5));
    for other in [0, u64::MAX] {
        let rig = Rig::new(
            1,
            &[
                Kind { alarm, ..Kind::default() },
                Kind::default(),
                Kind { poll_ns: other, ..Kind::default() },
            ],
        );
        until("it was woken", || rig.seen[0].turns() > 10);
        assert!(rig.seen[1].turns() < 10, "{}", rig.seen[1].turns());
        rig.stop();
    }
}

#[test]
fn one_with_endless_long_turns_leaves_the_others_their_time() {
    let hog = Kind { busy: Duration::from_millis(5), ..Kind::default() };
    let small = Kind { busy: Duration::from_micros(20), ..Kind::default() };
    let rig = Rig::new(1, &[hog, small, small]);
    rig.seen.iter().for_each(|seen| seen.give(u64::MAX / 2));
    until("the others had many turns", || rig.seen[1].done() > 2000 && rig.seen[2].done() > 2000);
    // Their turns take 40 ms each for 2000. It may have had as much again, and the quantum
    // beyond their turns, but not a turn for each of theirs, which were 10 s.
    let hog = rig.seen[0].done() * 5;
    assert!(hog < 1000, "{hog} ms");
    assert!(hog > 0);
    rig.stop();
}

#[test]
fn one_that_is_woken_without_end_leaves_the_others_their_time() {
    let small = Kind { busy: Duration::from_micros(20), ..Kind::default() };
    let rig = Rig::new(1, &[Kind::default(), small]);
    let over = Arc::new(AtomicBool::new(false));
    let kicking = std::thread::spawn({
        let (seen, over) = (Arc::clone(&rig.seen[0]), Arc::clone(&over));
        move || {
            while !over.load(Ordering::SeqCst) {
                seen.waker.wake();
            }
        }
    });
    rig.seen[1].give(2000);
    let start = Instant::now();
    until("the other is served", || rig.seen[1].done() == 2000);
    let took = start.elapsed();
    assert!(rig.seen[0].controls.load(Ordering::SeqCst) > 0, "it was heard");
    // 40 ms of its own. The rest is what a busy machine adds.
    assert!(took < Duration::from_secs(5), "{took:?}");
    over.store(true, Ordering::SeqCst);
    kicking.join().unwrap();
    rig.stop();
}

#[test]
fn one_that_panics_is_lost_alone() {
    for panics_when_dropped in [false, true] {
        let rig = Rig::new(1, &[Kind { panics_when_dropped, ..Kind::default() }, Kind::default()]);
        rig.seen[0].panics.store(true, Ordering::SeqCst);
        rig.seen[0].give(1);
        let lost = rig.ended.recv_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!((lost.name.as_str(), lost.counted), ("task0", None));
        let turns = rig.seen[0].turns();
        rig.seen[1].give(50);
        until("the other is served", || rig.seen[1].done() == 50);
        assert_eq!(rig.seen[0].turns(), turns);
        let (counters, ended) = rig.stop();
        assert_eq!((counters[0].lost, ended.len()), (1, 1));
        assert_eq!(ended["task1"], Some(50));
    }
}

#[test]
fn those_that_carry_what_others_send_end_last() {
    let last = Kind { last: true, ..Kind::default() };
    let rig = Rig::new(2, &[last, Kind::default(), Kind::default(), last]);
    rig.stop.end_first();
    until("the others have ended", || rig.finished.lock().unwrap().len() == 2);
    // They are still served.
    rig.seen[0].give(3);
    until("it is served", || rig.seen[0].done() == 3);
    let finished = Arc::clone(&rig.finished);
    rig.stop();
    let finished = finished.lock().unwrap();
    assert_eq!(finished[..2].iter().filter(|name| *name == "task0" || *name == "task3").count(), 0);
    assert_eq!(finished.len(), 4);
}
