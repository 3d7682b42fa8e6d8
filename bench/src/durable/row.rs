//! What the rounds of one server in one cell add up to.

use super::bed::Kind;
use super::load::{Cell, Driver, Figures, Op};
use crate::row::Spread;

/// One round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Round {
    /// What the client saw.
    pub figures: Figures,
    /// Requests of the round.
    pub requests: u64,
    /// Bytes that were written to the disk, if that is known.
    pub written_bytes: Option<u64>,
    /// How much of the time the client's core was busy, in percent.
    pub client_busy_percent: f64,
    /// CPU time that the machine was not given, in percent.
    pub steal_percent: f64,
}

/// One row of the result.
#[derive(Clone, Debug)]
pub struct Row {
    /// Who served.
    pub kind: Kind,
    /// Who asked.
    pub driver: Driver,
    /// What clients did.
    pub op: Op,
    /// Sizes and numbers.
    pub cell: Cell,
    /// Requests per second.
    pub rps: Spread,
    /// The median of the rounds' medians, in us.
    pub p50_us: f64,
    /// The median of the rounds' 99th percentiles, in us.
    pub p99_us: f64,
    /// Bytes written per byte of value; only of writes.
    pub amplification: Option<f64>,
    /// Writes per sync of the mirror, over the whole life of the server.
    pub writes_per_sync: Option<f64>,
    /// Keys that had a wrong value in the end.
    pub errors: u64,
    /// The client's core, in the median.
    pub client_busy_percent: f64,
    /// The worst round.
    pub steal_percent: f64,
}

impl Row {
    /// Adds up rounds. What is known only at the server's end is left open.
    pub fn new(kind: Kind, driver: Driver, op: Op, cell: Cell, rounds: &[Round]) -> Row {
        let each = |figure: &dyn Fn(&Round) -> f64| {
            Spread::of(&rounds.iter().map(figure).collect::<Vec<_>>())
        };
        let stored = |round: &Round| (round.requests * cell.value_bytes as u64) as f64;
        let value_bytes: f64 = rounds.iter().map(stored).sum();
        let written: Option<u64> = rounds.iter().map(|round| round.written_bytes).sum();
        Row {
            kind,
            driver,
            op,
            cell,
            rps: each(&|r| r.figures.rps),
            p50_us: each(&|r| r.figures.p50_us).median,
            p99_us: each(&|r| r.figures.p99_us).median,
            amplification: written
                .filter(|_| op == Op::Set && value_bytes > 0.0)
                .map(|bytes| bytes as f64 / value_bytes),
            writes_per_sync: None,
            errors: 0,
            client_busy_percent: each(&|r| r.client_busy_percent).median,
            steal_percent: each(&|r| r.steal_percent).max,
        }
    }

    /// Whether `other` is of another server and the same in all else.
    pub fn is_beside(&self, other: &Row) -> bool {
        (self.driver, self.op, self.cell) == (other.driver, other.op, other.cell)
            && self.kind != other.kind
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn row(kind: Kind, op: Op, rps: f64) -> Row {
        let cell = Cell { value_bytes: 64, connections: 64, pipeline: 1 };
        let figures = Figures { rps, p50_us: 1.0, p99_us: 2.0 };
        let round = Round { figures, requests: 10, written_bytes: Some(1280), ..Round::default() };
        Row::new(kind, Driver::RedisBenchmark, op, cell, &[round])
    }

    #[test]
    fn rounds_add_up() {
        let cell = Cell { value_bytes: 100, connections: 1, pipeline: 1 };
        let round = |rps, p99_us, written_bytes| Round {
            figures: Figures { rps, p50_us: 5.0, p99_us },
            requests: 10,
            written_bytes: Some(written_bytes),
            client_busy_percent: 50.0,
            steal_percent: rps / 100.0,
        };
        let rounds = [round(100.0, 9.0, 1000), round(300.0, 7.0, 3000), round(200.0, 8.0, 2000)];
        let row = |op, rounds| Row::new(Kind::KvMirror, Driver::Own, op, cell, rounds);
        let (get, none) = (row(Op::Get, &rounds), row(Op::Set, &[]));
        assert_eq!((get.amplification, none.amplification), (None, None));
        let row = row(Op::Set, &rounds);
        assert_eq!(row.rps, Spread { median: 200.0, min: 100.0, max: 300.0 });
        assert_eq!((row.p50_us, row.p99_us, row.steal_percent), (5.0, 8.0, 3.0));
        assert_eq!(row.amplification, Some(2.0));
    }

    #[test]
    fn rows_are_beside_others_of_the_same_cell() {
        let ours = row(Kind::KvMirror, Op::Set, 1.0);
        assert!(ours.is_beside(&row(Kind::RedisAlways, Op::Set, 1.0)));
        assert!(!ours.is_beside(&row(Kind::RedisAlways, Op::Get, 1.0)));
        assert!(!ours.is_beside(&ours));
        let driven = Row { driver: Driver::Own, ..row(Kind::RedisAlways, Op::Set, 1.0) };
        assert!(!ours.is_beside(&driven));
    }
}
