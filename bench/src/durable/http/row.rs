//! What the rounds of one server that logs requests add up to.

use pasted::demo::sample::{Sample, per};

use super::REQUEST_LEN;
use super::server::{Backing, Counted, Kind};
use crate::client::Stretch;
use crate::row::Spread;

/// One round.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// What the client saw.
    pub stretch: Stretch,
    /// Time for which all cores were busy, for whatever reason, in ns.
    pub busy_ns: u64,
    /// CPU time of the client, in ns.
    pub client_ns: u64,
    /// Bytes that were written to the disk, if that is known.
    pub written_bytes: Option<u64>,
    /// CPU time that the machine was not given, in percent.
    pub steal_percent: f64,
}

/// One row of the result.
#[derive(Clone, Debug)]
pub struct Row {
    /// Who served.
    pub kind: Kind,
    /// What the log lies in.
    pub backing: Backing,
    /// Connections at once.
    pub connections: usize,
    /// Right responses per second.
    pub rps: Spread,
    /// CPU time of all cores per right response, in us.
    pub cpu_us: Spread,
    /// CPU time of the client per right response, in us.
    pub client_us: f64,
    /// Latency that half of the responses did not exceed, in us.
    pub p50_us: f64,
    /// Latency that 99 of 100 responses did not exceed, in us.
    pub p99_us: f64,
    /// Bytes written per byte of a request, where there is a file.
    pub amplification: Option<f64>,
    /// Requests per sync of the file, and syncs per batch that waited for one, over
    /// the whole life of the server.
    pub requests_per_sync: Option<f64>,
    /// Likewise.
    pub syncs_per_batch: Option<f64>,
    /// Bytes that the server itself copied per byte of a request.
    pub copied: f64,
    /// Wrong, missing and broken responses.
    pub errors: u64,
    /// Time in which the client had something to do, in percent.
    pub client_busy_percent: f64,
    /// CPU time that the machine was not given, the worst round, in percent.
    pub steal_percent: f64,
}

impl Row {
    /// Adds up the rounds of one server, which was asked for `requests` in all.
    pub fn new(
        kind: Kind,
        backing: Backing,
        connections: usize,
        rounds: &[Round],
        requests: u64,
        counted: &Counted,
    ) -> Row {
        let mut all = Sample::default();
        for round in rounds {
            all.merge(&round.stretch.sample);
        }
        let each = |figure: &dyn Fn(&Round) -> f64| {
            Spread::of(&rounds.iter().map(figure).collect::<Vec<_>>())
        };
        let us = |ns: u64, round: &Round| per(ns as f64 / 1e3, round.stretch.sample.requests);
        let written: Option<u64> = rounds.iter().map(|round| round.written_bytes).sum();
        let idle_ns: u64 = rounds.iter().map(|round| round.stretch.idle_ns).sum();
        let has_file = backing == Backing::Mirror;
        let of_file = |value: f64| has_file.then_some(value);
        Row {
            kind,
            backing,
            connections,
            rps: each(&|r| r.stretch.sample.rps()),
            cpu_us: each(&|r| us(r.busy_ns, r)),
            client_us: each(&|r| us(r.client_ns, r)).median,
            p50_us: all.latency_us(50.0),
            p99_us: all.latency_us(99.0),
            amplification: written
                .filter(|_| has_file)
                .map(|bytes| per(bytes as f64, all.requests * REQUEST_LEN as u64)),
            requests_per_sync: of_file(per(requests as f64, counted.syncs)),
            syncs_per_batch: of_file(per(counted.syncs as f64, counted.batches)),
            copied: per(counted.bytes_copied as f64, requests * REQUEST_LEN as u64),
            errors: all.errors.total(),
            client_busy_percent: 100.0 - per(100.0 * idle_ns as f64, all.elapsed_ns),
            steal_percent: each(&|r| r.steal_percent).max,
        }
    }

    /// Whether `other` is of the same memory and number of connections.
    pub fn is_beside(&self, other: &Row) -> bool {
        self.backing == other.backing && self.connections == other.connections
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn row(kind: Kind, backing: Backing, requests: u64) -> Row {
        let mut stretch = Stretch::default();
        (0..requests).for_each(|_| stretch.sample.record(100_000));
        stretch.sample.elapsed_ns = 1_000_000_000;
        stretch.idle_ns = 250_000_000;
        let round = Round {
            stretch,
            busy_ns: requests * 20_000,
            client_ns: requests * 5_000,
            written_bytes: Some(requests * 2 * REQUEST_LEN as u64),
            steal_percent: 0.5,
        };
        let counted =
            Counted { syncs: 10, batches: 20, bytes_copied: 2 * requests * REQUEST_LEN as u64 };
        Row::new(kind, backing, 64, &[round.clone(), round], 2 * requests, &counted)
    }

    #[test]
    fn rounds_add_up() {
        let mirror = row(Kind::ZeroCopy, Backing::Mirror, 100);
        assert_eq!((mirror.rps.median, mirror.cpu_us.median, mirror.client_us), (100.0, 20.0, 5.0));
        assert_eq!((mirror.amplification, mirror.copied), (Some(2.0), 1.0));
        assert_eq!((mirror.requests_per_sync, mirror.syncs_per_batch), (Some(20.0), Some(0.5)));
        assert!((mirror.client_busy_percent - 75.0).abs() < 1e-9);
        let memory = row(Kind::ZeroCopy, Backing::Memory, 100);
        assert_eq!((memory.amplification, memory.requests_per_sync), (None, None));
        assert!(!memory.is_beside(&mirror) && memory.is_beside(&memory));
    }
}
