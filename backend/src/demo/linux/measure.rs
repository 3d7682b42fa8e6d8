//! One side of the comparison: a client, the processes that serve it, and what
//! the rounds gave.

use std::io;
use std::time::Duration;

use super::client::{Client, ClientConfig};
use super::http::{BODY, request};
use super::sample::{Sample, median, per};
use super::scene::{Link, SERVER_PORT};
use crate::sys::linux::demo::usage;

/// One round on one side.
#[derive(Clone, Debug)]
pub struct Round {
    /// What the client saw.
    pub sample: Sample,
    /// CPU time of all cores, in ns.
    pub busy_ns: u64,
    /// CPU time of the client's process, in ns.
    pub client_ns: u64,
    /// CPU time of each serving process, in ns, in the order given.
    pub server_ns: Vec<u64>,
}

/// One side.
pub struct Side {
    /// How it is called.
    pub name: &'static str,
    /// Its client.
    pub client: Client,
    /// The rounds that count.
    pub rounds: Vec<Round>,
    /// Everything that was ever asked, for the counts.
    pub total: Sample,
}

/// Figures of one side, over its rounds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// Right responses, in and between the rounds.
    pub requests: u64,
    /// Wrong and missing ones.
    pub errors: u64,
    /// Right responses per second in each round.
    pub rps: Vec<f64>,
    /// Latencies over all rounds, in us.
    pub p50_us: f64,
    /// Latencies over all rounds, in us.
    pub p99_us: f64,
    /// CPU time of all cores per request, median of the rounds, in us.
    pub cpu_us: f64,
    /// CPU time of the client's process per request, in us.
    pub client_us: f64,
    /// CPU time of each serving process per request, in us.
    pub server_us: Vec<f64>,
    /// How much of its core the client's process used, in percent.
    pub client_busy_percent: f64,
    /// Share of the CPU time of all cores that went to none of these processes:
    /// to others, and to interrupts; in percent, in the round that had most.
    pub other_percent: f64,
}

impl Round {
    /// Share of the CPU time of all cores that the round's own processes did not
    /// use, in percent.
    fn other_percent(&self) -> f64 {
        let own_ns = self.client_ns + self.server_ns.iter().sum::<u64>();
        per(100.0 * self.busy_ns.saturating_sub(own_ns) as f64, self.busy_ns)
    }
}

impl Side {
    /// A side that has not connected yet.
    pub fn new(
        name: &'static str,
        link: Link,
        connections: usize,
        request_len: usize,
    ) -> io::Result<Side> {
        let server = std::net::SocketAddrV4::new(link.server(), SERVER_PORT);
        let client = Client::new(ClientConfig {
            server,
            connections,
            request: request(request_len, server),
            body: BODY.to_vec(),
        })?;
        Ok(Side { name, client, rounds: Vec::new(), total: Sample::default() })
    }

    /// One round of `duration`, served by the processes `servers`.
    pub fn measure(
        &mut self,
        duration: Duration,
        servers: &[u32],
        go_on: &mut dyn FnMut(&mut Client, &Sample) -> io::Result<bool>,
    ) -> io::Result<()> {
        let times = || -> io::Result<Vec<u64>> {
            servers.iter().map(|&pid| usage::process_ns(pid)).collect()
        };
        let us = std::process::id();
        let (before, own, busy) = (times()?, usage::process_ns(us)?, usage::busy_ns()?);
        let sample = self.client.run(duration, go_on)?;
        let busy_ns = usage::busy_ns()?.saturating_sub(busy);
        let client_ns = usage::process_ns(us)?.saturating_sub(own);
        let spent = |(after, before): (u64, u64)| after.saturating_sub(before);
        let server_ns = times()?.into_iter().zip(before).map(spent).collect();
        self.total.merge(&sample);
        self.rounds.push(Round { sample, busy_ns, client_ns, server_ns });
        Ok(())
    }

    /// A stretch outside the rounds: it counts for right and wrong, and not
    /// for rates, latencies and CPU time.
    pub fn exercise(
        &mut self,
        duration: Duration,
        go_on: &mut dyn FnMut(&mut Client, &Sample) -> io::Result<bool>,
    ) -> io::Result<()> {
        let sample = self.client.run(duration, go_on)?;
        self.total.merge(&sample);
        Ok(())
    }

    /// What the rounds gave.
    pub fn figures(&self) -> Figures {
        let mut all = Sample::default();
        for round in &self.rounds {
            all.merge(&round.sample);
        }
        let each = |ns: &dyn Fn(&Round) -> u64| {
            let per_round: Vec<f64> =
                self.rounds.iter().map(|r| per(ns(r) as f64 / 1e3, r.sample.requests)).collect();
            median(&per_round)
        };
        let servers = self.rounds.first().map_or(0, |r| r.server_ns.len());
        let client_ns: u64 = self.rounds.iter().map(|r| r.client_ns).sum();
        Figures {
            requests: self.total.requests,
            errors: self.total.errors.total(),
            rps: self.rounds.iter().map(|r| r.sample.rps()).collect(),
            p50_us: all.latency_us(50.0),
            p99_us: all.latency_us(99.0),
            cpu_us: each(&|r| r.busy_ns),
            client_us: each(&|r| r.client_ns),
            server_us: (0..servers).map(|i| each(&|r| r.server_ns[i])).collect(),
            client_busy_percent: per(100.0 * client_ns as f64, all.elapsed_ns),
            other_percent: self.rounds.iter().map(Round::other_percent).fold(0.0, f64::max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(requests: u64, elapsed_ms: u64, busy_us: u64) -> Round {
        let mut sample = Sample::default();
        for _ in 0..requests {
            sample.record(100_000);
        }
        sample.elapsed_ns = elapsed_ms * 1_000_000;
        Round {
            sample,
            busy_ns: busy_us * 1_000,
            client_ns: busy_us * 500,
            server_ns: vec![busy_us * 250, busy_us * 100],
        }
    }

    #[test]
    fn figures_are_medians_over_the_rounds() {
        let mut side = Side::new("x", Link::Pasted, 1, 1400).unwrap();
        side.rounds = vec![round(100, 100, 1_000), round(100, 50, 9_000), round(100, 100, 2_000)];
        for round in &side.rounds {
            side.total.merge(&round.sample);
        }
        let figures = side.figures();
        assert_eq!(figures.requests, 300);
        assert_eq!(figures.rps, [1_000.0, 2_000.0, 1_000.0]);
        assert_eq!((figures.cpu_us, figures.client_us), (20.0, 10.0));
        assert_eq!(figures.server_us, [5.0, 2.0]);
        // Of 20 us, 10 are the client's and 7 the servers'.
        assert!((figures.other_percent - 15.0).abs() < 1e-9);
        // 6 ms of CPU time in 250 ms.
        assert!((figures.client_busy_percent - 2.4).abs() < 1e-9);
        assert!((figures.p50_us - 100.0).abs() < 0.1);
    }

    #[test]
    fn no_rounds_are_zeros() {
        let side = Side::new("x", Link::Pasted, 1, 1400).unwrap();
        assert_eq!(side.figures(), Figures::default());
    }
}
