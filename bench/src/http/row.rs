//! What the rounds of one server under one load add up to.

use std::collections::BTreeMap;

use pasted::demo::sample::per;

use super::contender::{Contender, Kind};
use super::server::Counted;
use crate::row::Spread;

/// The percentiles of the latency that are kept.
pub const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

/// CPU time of one process, in ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartTime {
    /// All of it.
    pub total_ns: u64,
    /// Of that, outside the kernel, by the kernel's ticks.
    pub user_ns: u64,
    /// In the kernel, likewise.
    pub system_ns: u64,
}

/// One round.
#[derive(Clone, Debug, Default)]
pub struct Round {
    /// Right responses.
    pub requests: u64,
    /// How long it took.
    pub elapsed_ns: u64,
    /// Latency in us, at [`PERCENTILES`]; those that the client does not tell are NaN.
    pub latency_us: [f64; 4],
    /// Wrong, missing and broken responses.
    pub errors: u64,
    /// Segments that the client sent again.
    pub retransmits: u64,
    /// Requests of an open loop that could not be sent.
    pub unsent: u64,
    /// Time in which the client found nothing to do, if it says.
    pub idle_ns: Option<u64>,
    /// Time for which all cores were busy, for whatever reason.
    pub busy_ns: u64,
    /// Time for which the client's core was busy, and the server's cores.
    pub client_core_ns: u64,
    /// Likewise.
    pub server_core_ns: u64,
    /// CPU time of our own client.
    pub client_ns: u64,
    /// CPU time of each of the server's processes.
    pub server: Vec<PartTime>,
    /// CPU time that the machine was not given, in percent.
    pub steal_percent: f64,
}

impl Round {
    /// Right responses per second.
    pub fn rps(&self) -> f64 {
        per(self.requests as f64 * 1e9, self.elapsed_ns)
    }
}

/// What the load is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Every connection asks again as soon as it is answered.
    Closed,
    /// Requests are due at a rate.
    Open {
        /// The rate, in requests per second.
        rps: f64,
        /// The same in percent of what the reference reached in a closed loop.
        percent: u32,
    },
}

/// Where a request's time on the server's side goes, in us.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Split {
    /// In the port: the device, with its system calls and copies.
    pub port: f64,
    /// In the stack.
    pub stack: f64,
    /// In the rest of the backend: rings, slots, and the turn itself with what it polls in
    /// vain.
    pub ring: f64,
    /// In the guest's processes: its end of the ring, and the application.
    pub application: f64,
    /// How fast that was, as part of what it is without clocks.
    pub speed: f64,
}

/// Who measured, where.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// Who served.
    pub contender: Contender,
    /// The kind of device.
    pub device: &'static str,
    /// The client.
    pub client: &'static str,
    /// Connections at once.
    pub connections: usize,
    /// The load.
    pub load: Load,
}

impl Cell {
    /// Whether the two were measured in turns.
    pub fn is_beside(&self, other: &Cell) -> bool {
        let port = |cell: &Cell| cell.contender.port;
        (port(self), self.device, self.client, self.connections, self.load)
            == (port(other), other.device, other.client, other.connections, other.load)
    }
}

/// One row of the result.
#[derive(Clone, Debug)]
pub struct Row {
    /// Who measured, where.
    pub cell: Cell,
    /// Right responses per second.
    pub rps: Spread,
    /// The same per core that the server kept busy.
    pub rps_per_core: Spread,
    /// CPU time of all cores per right response, in us.
    pub cpu_us: Spread,
    /// Of that, the client's core, and the server's.
    pub client_core_us: f64,
    /// Likewise.
    pub server_core_us: f64,
    /// CPU time of our own client per right response, in us.
    pub client_us: f64,
    /// CPU time of each of the server's processes per right response, in us.
    pub server_us: Vec<f64>,
    /// Of that, in the kernel and outside of it.
    pub system_us: f64,
    /// Likewise.
    pub user_us: f64,
    /// Latency in us, at [`PERCENTILES`]; what is not known is NaN.
    pub latency_us: [Spread; 4],
    /// Wrong, missing and broken responses.
    pub errors: u64,
    /// Segments that the client sent again.
    pub retransmits: u64,
    /// Requests of an open loop that could not be sent.
    pub unsent: u64,
    /// Time in which the client had something to do, in percent, if it says.
    pub client_busy_percent: Option<f64>,
    /// CPU time that the machine was not given, the worst round, in percent.
    pub steal_percent: f64,
    /// Requests per wake-up of the application, over the server's whole life.
    pub batch_mean: f64,
    /// The backend's counters per request, over its whole life.
    pub counters: BTreeMap<String, f64>,
    /// Where the time goes, if that was measured.
    pub split: Option<Split>,
}

impl Row {
    /// Adds up the rounds of one server.
    pub fn new(cell: Cell, rounds: &[Round], counted: &Counted) -> Row {
        let each = |figure: &dyn Fn(&Round) -> f64| {
            Spread::of(&rounds.iter().map(figure).collect::<Vec<_>>())
        };
        let us = |ns: u64, round: &Round| per(ns as f64 / 1e3, round.requests);
        let part = |round: &Round, at: usize| round.server.get(at).copied().unwrap_or_default();
        let idle_ns: Option<u64> = rounds.iter().map(|round| round.idle_ns).sum();
        let elapsed_ns: u64 = rounds.iter().map(|round| round.elapsed_ns).sum();
        let parts = cell.contender.parts().len();
        let per_request =
            |(name, &count): (&String, &u64)| (name.clone(), per(count as f64, counted.requests));
        let sum = |round: &Round, of: &dyn Fn(&PartTime) -> u64| round.server.iter().map(of).sum();
        Row {
            rps: each(&Round::rps),
            rps_per_core: each(&|r| per(r.requests as f64 * 1e9, r.server_core_ns)),
            cpu_us: each(&|r| us(r.busy_ns, r)),
            client_core_us: each(&|r| us(r.client_core_ns, r)).median,
            server_core_us: each(&|r| us(r.server_core_ns, r)).median,
            client_us: each(&|r| us(r.client_ns, r)).median,
            server_us: (0..parts).map(|at| each(&|r| us(part(r, at).total_ns, r)).median).collect(),
            system_us: each(&|r| us(sum(r, &|part| part.system_ns), r)).median,
            user_us: each(&|r| us(sum(r, &|part| part.user_ns), r)).median,
            latency_us: std::array::from_fn(|at| each(&|r| r.latency_us[at])),
            errors: rounds.iter().map(|r| r.errors).sum(),
            retransmits: rounds.iter().map(|r| r.retransmits).sum(),
            unsent: rounds.iter().map(|r| r.unsent).sum(),
            client_busy_percent: idle_ns
                .filter(|_| elapsed_ns > 0)
                .map(|idle| 100.0 - per(100.0 * idle as f64, elapsed_ns)),
            steal_percent: each(&|r| r.steal_percent).max,
            batch_mean: counted.batch_mean,
            counters: counted.counters.iter().map(per_request).collect(),
            split: None,
            cell,
        }
    }

    /// Whether it is of the epoll server.
    pub fn is_epoll(&self) -> bool {
        self.cell.contender.kind == Kind::Epoll
    }

    /// CPU time per request that is neither the client's nor the server's: the kernel's
    /// own threads, and whatever else runs on the machine, in us. `None` if the client's is
    /// not known.
    pub fn other_us(&self) -> Option<f64> {
        let known = self.client_us > 0.0;
        let rest = self.cpu_us.median - self.client_us - self.server_us.iter().sum::<f64>();
        known.then_some(rest.max(0.0))
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::contender::{PortKind, Shape, Waiting};
    use super::*;

    pub fn cell(kind: Kind, connections: usize, load: Load) -> Cell {
        let shape = Shape::default();
        let contender = Contender { kind, port: PortKind::Tap, shape, waiting: Waiting::Poll };
        Cell { contender, device: "tap", client: "own", connections, load }
    }

    pub fn round(requests: u64, elapsed_ms: u64, busy_us: u64) -> Round {
        Round {
            requests,
            elapsed_ns: elapsed_ms * 1_000_000,
            latency_us: [100.0, 200.0, 300.0, 400.0],
            retransmits: 1,
            idle_ns: Some(elapsed_ms * 250_000),
            busy_ns: busy_us * 1000,
            client_core_ns: busy_us * 500,
            server_core_ns: elapsed_ms * 1_000_000,
            client_ns: busy_us * 500,
            server: vec![
                PartTime { total_ns: busy_us * 300, user_ns: 100, system_ns: 200 },
                PartTime { total_ns: busy_us * 100, user_ns: 100, system_ns: 0 },
            ],
            steal_percent: 0.5,
            ..Round::default()
        }
    }

    #[test]
    fn rounds_add_up_to_medians_and_ranges() {
        let mut rounds = vec![round(100, 100, 1000), round(100, 50, 9000), round(100, 100, 2000)];
        rounds[1].errors = 2;
        rounds[2].steal_percent = 3.0;
        let counted = Counted {
            requests: 50,
            batch_mean: 4.0,
            counters: [("worker.turns".to_owned(), 25)].into(),
        };
        let row = Row::new(cell(Kind::Pasted, 16, Load::Closed), &rounds, &counted);
        assert_eq!(row.rps, Spread { median: 1000.0, min: 1000.0, max: 2000.0 });
        assert_eq!(row.rps_per_core, row.rps, "one core is always busy");
        assert_eq!(row.cpu_us, Spread { median: 20.0, min: 10.0, max: 90.0 });
        assert_eq!((row.client_core_us, row.client_us), (10.0, 10.0));
        assert_eq!(row.server_us, [6.0, 2.0]);
        assert!((row.other_us().unwrap() - 2.0).abs() < 1e-9);
        assert_eq!((row.errors, row.retransmits, row.steal_percent), (2, 3, 3.0));
        assert!((row.client_busy_percent.unwrap() - 75.0).abs() < 1e-9);
        assert_eq!((row.counters["worker.turns"], row.latency_us[2].median), (0.5, 300.0));
    }

    #[test]
    fn a_row_without_requests_divides_by_nothing() {
        let row = Row::new(cell(Kind::Epoll, 1, Load::Closed), &[], &Counted::default());
        assert_eq!((row.rps, row.errors, row.client_busy_percent), (Spread::default(), 0, None));
        assert_eq!((row.server_us.as_slice(), row.other_us()), (&[0.0][..], None));
    }

    #[test]
    fn only_what_was_measured_in_turns_is_compared() {
        let closed = cell(Kind::Pasted, 16, Load::Closed);
        assert!(closed.is_beside(&cell(Kind::Epoll, 16, Load::Closed)));
        assert!(!closed.is_beside(&cell(Kind::Epoll, 64, Load::Closed)));
        let open = Load::Open { rps: 1e5, percent: 70 };
        assert!(!closed.is_beside(&cell(Kind::Epoll, 16, open)));
    }
}
