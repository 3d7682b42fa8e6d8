//! Batches: what is in them, and that there is one at a time.

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

struct Bench {
    durability: Durability,
    asked: Receiver<Vec<FlushRange>>,
    outcomes: Sender<Result<(), FlushError>>,
    wakeups: Wakeups,
}

fn bench() -> Bench {
    let (asked, asks) = channel();
    let (outcomes, outcome) = channel();
    let (waker, wakeups) = wake::pair().unwrap();
    let puppet = Box::new(Puppet { asked, outcomes: outcome, commits: 0 });
    let durability = Durability::by_host("test", puppet, waker).unwrap();
    Bench { durability, asked: asks, outcomes, wakeups }
}

const fn span(offset: u64) -> FlushRange {
    FlushRange { offset, len: 8 }
}

impl Bench {
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
    let mut bench = bench();
    assert_eq!(bench.durability.seal(&mut vec![span(0)]), Some(1));
    assert_eq!(bench.durability.seal(&mut vec![span(8), span(16)]), Some(1));
    bench.durability.begin();
    assert_eq!(bench.asked.recv().unwrap(), [span(0), span(8), span(16)]);
    for at in 3..6 {
        assert_eq!(bench.durability.seal(&mut vec![span(at * 8)]), Some(2));
        bench.durability.begin();
    }
    assert_eq!(bench.durability.completed(), None);
    assert!(bench.asked.try_recv().is_err(), "one at a time");
    bench.outcomes.send(Ok(())).unwrap();
    assert_eq!(bench.completed(), (1, true));
    assert!(bench.wakeups.drain(), "a worker that sleeps is woken");
    bench.durability.begin();
    assert_eq!(bench.asked.recv().unwrap(), [span(24), span(32), span(40)]);
    bench.outcomes.send(Ok(())).unwrap();
    assert_eq!(bench.completed(), (2, true));
    bench.durability.begin();
    assert_eq!(bench.durability.completed(), None);
    let mut counted = Vec::new();
    bench.durability.each_counter(|name, value| counted.push((name, value)));
    assert_eq!(counted[..2], [("epochs", 5), ("commits", 2)]);
}

#[test]
fn a_batch_that_fails_says_so_and_the_next_one_is_tried() {
    let mut bench = bench();
    for outcome in [false, true] {
        bench.durability.seal(&mut vec![span(0)]);
        bench.durability.begin();
        let source = io::Error::from_raw_os_error(5);
        let answer = if outcome { Ok(()) } else { Err(FlushError::Sync { source }) };
        bench.outcomes.send(answer).unwrap();
        assert_eq!(bench.completed().1, outcome);
    }
}

#[test]
fn a_flusher_that_panics_has_made_nothing_durable() {
    let mut bench = bench();
    bench.durability.seal(&mut vec![span(0)]);
    bench.durability.begin();
    bench.outcomes = channel().0;
    assert_eq!(bench.completed(), (1, false));
}

#[test]
fn the_thread_ends_with_what_it_was_doing() {
    let mut bench = bench();
    bench.durability.seal(&mut vec![span(0)]);
    bench.durability.begin();
    bench.outcomes.send(Ok(())).unwrap();
    drop(bench.durability);
    assert_eq!(bench.asked.recv().unwrap(), [span(0)]);
    assert!(bench.asked.recv().is_err(), "the flusher is gone");
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
