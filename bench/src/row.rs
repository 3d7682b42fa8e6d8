//! What the rounds of one server at one number of connections add up to.

use std::collections::BTreeMap;

use pasted::demo::sample::{Sample, median, per, range};

use crate::client::Stretch;
use crate::server::{Counted, Kind};

/// One round.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// What the client saw.
    pub stretch: Stretch,
    /// Time for which all cores were busy, for whatever reason, in ns.
    pub busy_ns: u64,
    /// CPU time of the client, in ns.
    pub client_ns: u64,
    /// CPU time of each of the server's processes, in ns.
    pub server_ns: Vec<u64>,
    /// CPU time that the machine was not given, in percent.
    pub steal_percent: f64,
}

/// A figure of several rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Spread {
    /// Of these values.
    pub fn of(values: &[f64]) -> Spread {
        let (min, max) = range(values);
        Spread { median: median(values), min, max }
    }
}

/// One row of the result.
#[derive(Clone, Debug)]
pub struct Row {
    /// Who served.
    pub kind: Kind,
    /// Connections at once.
    pub connections: usize,
    /// Right responses per second.
    pub rps: Spread,
    /// CPU time of all cores per right response, in us.
    pub cpu_us: Spread,
    /// CPU time of the client per right response, in us.
    pub client_us: f64,
    /// CPU time of each of the server's processes per right response, in us.
    pub server_us: Vec<f64>,
    /// Latency that half of the responses did not exceed, in us.
    pub p50_us: f64,
    /// Latency that 99 of 100 responses did not exceed, in us.
    pub p99_us: f64,
    /// Wrong, missing and broken responses.
    pub errors: u64,
    /// Segments that the client sent again.
    pub retransmits: u64,
    /// Time in which the client had something to do, in percent.
    pub client_busy_percent: f64,
    /// CPU time that the machine was not given, the worst round, in percent.
    pub steal_percent: f64,
    /// Requests per wake-up of the application.
    pub batch_mean: f64,
    /// The backend's counters per request that it served.
    pub counters: BTreeMap<String, f64>,
}

impl Row {
    /// Adds up the rounds of one server.
    pub fn new(kind: Kind, connections: usize, rounds: &[Round], counted: &Counted) -> Row {
        let mut all = Sample::default();
        for round in rounds {
            all.merge(&round.stretch.sample);
        }
        let each = |figure: &dyn Fn(&Round) -> f64| {
            Spread::of(&rounds.iter().map(figure).collect::<Vec<_>>())
        };
        let us = |ns: u64, round: &Round| per(ns as f64 / 1e3, round.stretch.sample.requests);
        let idle_ns: u64 = rounds.iter().map(|r| r.stretch.idle_ns).sum();
        let of_part =
            |part: usize| each(&|r| us(r.server_ns.get(part).copied().unwrap_or(0), r)).median;
        let per_request =
            |(name, &count): (&String, &u64)| (name.clone(), per(count as f64, counted.requests));
        Row {
            kind,
            connections,
            rps: each(&|r| r.stretch.sample.rps()),
            cpu_us: each(&|r| us(r.busy_ns, r)),
            client_us: each(&|r| us(r.client_ns, r)).median,
            server_us: (0..kind.parts().len()).map(of_part).collect(),
            p50_us: all.latency_us(50.0),
            p99_us: all.latency_us(99.0),
            errors: all.errors.total(),
            retransmits: rounds.iter().map(|r| r.stretch.retransmits).sum(),
            client_busy_percent: 100.0 - per(100.0 * idle_ns as f64, all.elapsed_ns),
            steal_percent: each(&|r| r.steal_percent).max,
            batch_mean: counted.batch_mean,
            counters: counted.counters.iter().map(per_request).collect(),
        }
    }

    /// CPU time per request that is neither the client's nor the server's: the
    /// kernel's own threads, and whatever else runs on the machine, in us.
    pub fn other_us(&self) -> f64 {
        (self.cpu_us.median - self.client_us - self.server_us.iter().sum::<f64>()).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn round(requests: u64, elapsed_ms: u64, busy_us: u64) -> Round {
        let mut stretch = Stretch::default();
        for _ in 0..requests {
            stretch.sample.record(100_000);
        }
        stretch.sample.elapsed_ns = elapsed_ms * 1_000_000;
        stretch.idle_ns = elapsed_ms * 250_000;
        stretch.retransmits = 1;
        Round {
            stretch,
            busy_ns: busy_us * 1000,
            client_ns: busy_us * 500,
            server_ns: vec![busy_us * 300, busy_us * 100],
            steal_percent: 0.5,
        }
    }

    #[test]
    fn rounds_add_up_to_medians_and_ranges() {
        let mut rounds = vec![round(100, 100, 1000), round(100, 50, 9000), round(100, 100, 2000)];
        rounds[1].stretch.sample.errors.wrong = 2;
        rounds[2].steal_percent = 3.0;
        let counted = Counted {
            requests: 50,
            batch_mean: 4.0,
            counters: [("worker.turns".to_owned(), 25)].into(),
        };
        let row = Row::new(Kind::Pasted, 16, &rounds, &counted);
        assert_eq!(row.rps, Spread { median: 1000.0, min: 1000.0, max: 2000.0 });
        assert_eq!(row.cpu_us, Spread { median: 20.0, min: 10.0, max: 90.0 });
        assert_eq!((row.client_us, row.server_us.as_slice()), (10.0, &[6.0, 2.0][..]));
        assert!((row.other_us() - 2.0).abs() < 1e-9);
        assert_eq!((row.errors, row.retransmits, row.steal_percent), (2, 3, 3.0));
        assert!((row.client_busy_percent - 75.0).abs() < 1e-9);
        assert_eq!(row.counters["worker.turns"], 0.5);
        assert!((row.p50_us - 100.0).abs() < 0.1);
    }

    #[test]
    fn a_row_without_requests_divides_by_nothing() {
        let row = Row::new(Kind::Epoll, 1, &[], &Counted::default());
        assert_eq!((row.rps, row.errors), (Spread::default(), 0));
        assert_eq!((row.server_us.as_slice(), row.other_us()), (&[0.0][..], 0.0));
    }
}
