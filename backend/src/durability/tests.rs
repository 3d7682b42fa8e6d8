//! Batches: what is in them, and that there is one sync at a time for all lanes.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use super::*;
use crate::sys::wake::{self, Wakeups};

/// Shows what it is asked, and does what the test says.
struct Puppet {
    asked: Sender<Vec<FlushRange>>,
    outcomes: Receiver<Result<(), FlushError>>,
    commits: u64,
}

impl MakeDurable for Puppet {
    fn make_durable(&mut self, ranges: &[FlushRange]) -> Result<(), FlushError> {
        self.asked.send(ranges.to_vec()).unwrap();
        self.commits += 1;
        self.outcomes.recv().expect("the puppet is cut loose")
    }

    fn counters(&self) -> FlushCounters {
        FlushCounters { commits: self.commits, ..FlushCounters::default() }
    }
}

struct Lane {
    durability: Durability,
    wakeups: Wakeups,
}

struct Bench {
    lanes: Vec<Lane>,
    asked: Receiver<Vec<FlushRange>>,
    outcomes: Sender<Result<(), FlushError>>,
}

/// With so many lanes.
fn bench(lanes: usize) -> Bench {
    let (asked, asks) = channel();
    let (outcomes, outcome) = channel();
    let (wakers, wakeups): (Vec<_>, Vec<_>) = (0..lanes).map(|_| wake::pair().unwrap()).unzip();
    let puppet = Box::new(Puppet { asked, outcomes: outcome, commits: 0 });
    let durability = Durability::by_host("test", puppet, wakers).unwrap();
    let lane = |(durability, wakeups)| Lane { durability, wakeups };
    Bench { lanes: durability.into_iter().zip(wakeups).map(lane).collect(), asked: asks, outcomes }
}

const fn span(offset: u64) -> FlushRange {
    FlushRange { offset, len: 8 }
}

impl Lane {
    /// A turn in which an epoch is sealed.
    fn seal(&mut self, at: u64) -> u64 {
        let batch = self.durability.seal(&mut vec![span(at)]);
        self.durability.begin();
        batch.unwrap()
    }

    fn completed(&mut self) -> (u64, bool) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(completed) = self.durability.completed() {
                return completed;
            }
            assert!(Instant::now() < end, "the batch is never done");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

#[test]
fn epochs_that_are_sealed_during_a_sync_share_the_next_one() {
    let mut bench = bench(1);
    let lane = &mut bench.lanes[0];
    assert_eq!(lane.durability.seal(&mut vec![span(0)]), Some(1));
    assert_eq!(lane.durability.seal(&mut vec![span(8), span(16)]), Some(1));
    lane.durability.begin();
    assert_eq!(bench.asked.recv().unwrap(), [span(0), span(8), span(16)]);
    assert_eq!([3, 4, 5].map(|at| lane.seal(at * 8)), [2, 3, 4]);
    assert_eq!(lane.durability.completed(), None);
    assert!(bench.asked.try_recv().is_err(), "one at a time");
    bench.outcomes.send(Ok(())).unwrap();
    assert_eq!(lane.completed(), (1, true));
    assert!(lane.wakeups.drain(), "a worker that sleeps is woken");
    assert_eq!(bench.asked.recv().unwrap(), [span(24), span(32), span(40)]);
    bench.outcomes.send(Ok(())).unwrap();
    assert_eq!(lane.completed(), (4, true), "and those before");
    lane.durability.begin();
    assert_eq!(lane.durability.completed(), None);
    let mut counted = Vec::new();
    lane.durability.each_counter(|name, value| counted.push((name, value)));
    assert_eq!(counted[..2], [("epochs", 5), ("commits", 2)]);
}

#[test]
fn lanes_share_a_sync_and_each_hears_of_its_own() {
    let Bench { mut lanes, asked, outcomes } = bench(3);
    let [first, second, third] = &mut lanes[..] else { panic!("three lanes") };
    assert_eq!(second.seal(0), 1);
    assert_eq!(asked.recv().unwrap(), [span(0)]);
    // While that lasts, the others seal, and the second one again.
    assert_eq!([first.seal(8), first.seal(16), second.seal(24)], [1, 2, 2]);
    outcomes.send(Ok(())).unwrap();
    assert_eq!(second.completed(), (1, true));
    let mut ranges = asked.recv().unwrap();
    ranges.sort_unstable_by_key(|range| range.offset);
    assert_eq!(ranges, [span(8), span(16), span(24)]);
    assert_eq!(first.durability.completed(), None, "a sync that was not for it");
    assert!(!first.wakeups.drain());
    // What fails has failed for all whom it was for.
    outcomes.send(Err(FlushError::Sync { source: io::Error::from_raw_os_error(5) })).unwrap();
    assert_eq!([first.completed(), second.completed()], [(2, false), (2, false)]);
    assert!(first.wakeups.drain() && !third.wakeups.drain());
    assert_eq!(third.durability.completed(), None);
    // And for nobody else.
    assert_eq!(third.seal(32), 1);
    assert_eq!(asked.recv().unwrap(), [span(32)]);
    outcomes.send(Ok(())).unwrap();
    assert_eq!(third.completed(), (1, true));
    // What the thread has written is told once.
    let commits = |lane: &Lane| {
        let mut commits = 0;
        lane.durability.each_counter(|name, value| {
            commits += if name == "commits" { value } else { 0 };
        });
        commits
    };
    assert_eq!([commits(first), commits(second), commits(third)], [3, 0, 0]);
}

#[test]
fn a_lane_that_was_busy_hears_of_one_sync_after_the_other() {
    let Bench { mut lanes, asked, outcomes } = bench(1);
    let lane = &mut lanes[0];
    for (batch, outcome) in [(1, true), (2, false)] {
        assert_eq!(lane.seal(0), batch);
        asked.recv().unwrap();
        let source = io::Error::from_raw_os_error(5);
        outcomes.send(if outcome { Ok(()) } else { Err(FlushError::Sync { source }) }).unwrap();
    }
    // Both are done before it looks: the thread takes the third.
    assert_eq!(lane.seal(0), 3);
    asked.recv().unwrap();
    assert_eq!([lane.completed(), lane.completed()], [(1, true), (2, false)]);
    assert_eq!(lane.durability.last_completed(), Some((2, false)));
    outcomes.send(Ok(())).unwrap();
    assert_eq!(lane.completed(), (3, true));
}

#[test]
fn a_batch_that_fails_says_so_and_the_next_one_is_tried() {
    let mut bench = bench(1);
    for outcome in [false, true] {
        bench.lanes[0].seal(0);
        let source = io::Error::from_raw_os_error(5);
        let answer = if outcome { Ok(()) } else { Err(FlushError::Sync { source }) };
        bench.outcomes.send(answer).unwrap();
        assert_eq!(bench.lanes[0].completed().1, outcome);
    }
}

#[test]
fn a_flusher_that_panics_has_made_nothing_durable() {
    let mut bench = bench(1);
    bench.lanes[0].seal(0);
    bench.outcomes = channel().0;
    assert_eq!(bench.lanes[0].completed(), (1, false));
}

#[test]
fn the_thread_ends_with_what_it_was_doing() {
    let Bench { mut lanes, asked, outcomes } = bench(2);
    lanes[0].seal(0);
    outcomes.send(Ok(())).unwrap();
    drop(lanes.remove(0));
    assert_eq!(asked.recv().unwrap(), [span(0)]);
    // It serves the other one, whoever has gone.
    assert_eq!(lanes[0].seal(8), 1);
    assert_eq!(asked.recv().unwrap(), [span(8)]);
    outcomes.send(Ok(())).unwrap();
    assert_eq!(lanes[0].completed(), (1, true));
    drop(lanes);
    assert!(asked.recv().is_err(), "the flusher is gone");
}

#[test]
fn without_a_host_that_flushes_there_is_no_batch() {
    for domain in [FlushDomain::None, FlushDomain::CpuCache] {
        let mut durability = Durability::without_host(domain);
        assert_eq!(durability.domain(), domain);
        assert_eq!(durability.seal(&mut vec![span(0)]), None);
        durability.begin();
        assert_eq!(durability.completed(), None);
    }
}
