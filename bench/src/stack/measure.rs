//! The order of measurements. Of each row's rounds one is taken in turn, ours
//! and smoltcp's one after the other, so that what disturbs the machine disturbs
//! both. Time is the thread's CPU time: other programs that have the core for a
//! while are not in it, though what they leave of the caches is.

use std::hint::black_box;
use std::time::Duration;

use pasted::sys::prefer_huge_pages;
use rustix::time::{ClockId, clock_gettime};

use super::Args;
use super::paste::{self, Paste};
use super::peer::{Order, Peers};
use super::report::Report;
use super::server::{BATCH, Server, step_ns};
use super::smol::{self, Smol};
use crate::row::Spread;
use crate::sys::{Machine, allocated};

/// The most flows that smoltcp is measured with, which looks at every socket for
/// every segment.
const SMOL_FLOWS_MAX: u32 = 10_000;
/// One line of the result.
#[derive(Clone, Debug)]
pub struct Row {
    /// `paste` or `smoltcp`.
    pub stack: &'static str,
    /// Flows at once.
    pub flows: u32,
    /// The order of their requests.
    pub order: Order,
    /// Whether checksums are left to the device.
    pub offload: bool,
    /// CPU time of a request with its response in the stack and what is around it,
    /// in ns: without the peers'.
    pub ns: Spread,
    /// The peers' time for them, in ns.
    pub peer_ns: Spread,
    /// Memory that a flow without anything in flight takes.
    pub bytes_per_flow: f64,
}

/// CPU time of this thread.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// One stack with all its flows open.
struct Side {
    name: &'static str,
    server: Box<dyn Server>,
    peers: Peers,
    /// What a request took in each round, in ns, without the peers.
    rounds: Vec<f64>,
    /// And what the peers took.
    peer_rounds: Vec<f64>,
}

impl Side {
    fn new(name: &'static str, mut server: Box<dyn Server>, flows: u32, order: Order) -> Side {
        let mut peers = Peers::new(flows, order);
        server.open_all(&mut peers);
        let mut side = Side { name, server, peers, rounds: Vec::new(), peer_rounds: Vec::new() };
        // Windows are open, estimates made, and caches as they will be.
        side.server.cycle(&mut side.peers);
        side
    }

    fn round(&mut self, at_least: Duration) {
        self.peers.take_spent();
        let (start, mut cycles) = (cpu_ns(), 0);
        let ns = loop {
            self.server.cycle(&mut self.peers);
            cycles += 1;
            let ns = cpu_ns() - start;
            if ns >= at_least.as_nanos() as u64 {
                break ns;
            }
        };
        let requests = (cycles * self.peers.count() as u64) as f64;
        let spent = self.peers.take_spent().as_nanos() as u64;
        self.peer_rounds.push(spent as f64 / requests);
        self.rounds.push(ns.saturating_sub(spent) as f64 / requests);
    }
}

/// Bytes that `make` allocates and keeps.
fn bytes_of<T>(make: impl FnOnce() -> T) -> usize {
    let before = allocated();
    let made = black_box(make());
    let bytes = allocated() - before;
    drop(made);
    bytes
}

/// What each of `flows` flows adds to our stack.
fn paste_bytes(flows: u32) -> f64 {
    let with = |flows| bytes_of(|| paste::stack(flows, BATCH as u32, false));
    (with(flows) - with(1)) as f64 / f64::from(flows.max(2) - 1)
}

/// What each of `flows` flows adds to smoltcp: its socket and that one's buffers.
fn smol_bytes(flows: u32) -> f64 {
    bytes_of(|| smol::sockets(flows as usize)) as f64 / f64::from(flows)
}

/// What so many armed timers cost.
#[derive(Clone, Copy, Debug)]
pub struct Timers {
    /// How many.
    pub armed: u32,
    /// CPU time of a turn in which none is due, in ns.
    pub idle_ns: f64,
    /// CPU time of each when all ring at once, in ns.
    pub ring_ns: f64,
}

/// Every flow waits for the acknowledgement of a response, with a timer.
fn timers(flows: u32) -> Timers {
    let mut peers = Peers::new(flows, Order::Random);
    let mut paste = Paste::new(flows, step_ns(flows), true);
    paste.memory().for_each(prefer_huge_pages);
    paste.open_all(&mut peers);
    paste.cycle(&mut peers);
    const TURNS: u32 = 1000;
    let start = cpu_ns();
    paste.pass_turns(TURNS, 1000);
    let idle_ns = (cpu_ns() - start) as f64 / f64::from(TURNS);
    let start = cpu_ns();
    paste.pass_turns(1, 10_000_000_000);
    let ring_ns = (cpu_ns() - start) as f64 / f64::from(flows);
    assert_eq!(paste.drain(), flows as usize, "each timer sends something again");
    Timers { armed: flows, idle_ns, ring_ns }
}

/// Connections per second, each opened, asked once and closed.
fn connections(server: &mut dyn Server, at_least: Duration) -> f64 {
    let mut peers = Peers::new(BATCH as u32, Order::Sequential);
    let (start, mut count) = (cpu_ns(), 0u64);
    loop {
        server.connect_and_close(&mut peers);
        count += BATCH as u64;
        let ns = cpu_ns() - start;
        if ns >= at_least.as_nanos() as u64 {
            return count as f64 * 1e9 / ns as f64;
        }
    }
}

/// Measures everything.
pub fn measure(args: &Args) -> Report {
    let (rounds, at_least) = if args.quick {
        (args.rounds.min(3), Duration::from_millis(100))
    } else {
        (args.rounds, Duration::from_millis(400))
    };
    let orders = args.order.map_or(vec![Order::Sequential, Order::Random], |order| vec![order]);
    let smol_flows_max = if args.alone { 0 } else { SMOL_FLOWS_MAX };
    let offloads: &[bool] = if args.alone { &[false] } else { &[false, true] };
    let mut rows = Vec::new();
    for &offload in offloads {
        for &flows in &args.flows {
            for &order in &orders {
                rows.extend(compare(flows, order, offload, smol_flows_max, rounds, at_least));
            }
        }
    }
    let connections_per_second = (!args.alone).then(|| {
        let mut each = [Vec::new(), Vec::new()];
        let mut paste = Paste::new(BATCH as u32, step_ns(BATCH as u32), false);
        let mut smol = Smol::new(BATCH, step_ns(BATCH as u32), false);
        for _ in 0..rounds {
            each[0].push(connections(&mut paste, at_least));
            each[1].push(connections(&mut smol, at_least));
        }
        each.map(|values| Spread::of(&values))
    });
    Report {
        machine: Machine::this(),
        rounds,
        round_ms: at_least.as_millis(),
        rows,
        connections_per_second,
        timers: args.flows.iter().max().filter(|_| !args.alone).map(|&flows| timers(flows)),
        stack_bytes: bytes_of(|| paste::stack(1, BATCH as u32, false)),
    }
}

/// All rows for one number of flows in one order.
fn compare(
    flows: u32,
    order: Order,
    offload: bool,
    smol_flows_max: u32,
    rounds: u32,
    at_least: Duration,
) -> Vec<Row> {
    let step_ns = step_ns(flows);
    let paste = Box::new(Paste::new(flows, step_ns, offload));
    paste.memory().for_each(prefer_huge_pages);
    let mut sides = vec![Side::new("paste", paste, flows, order)];
    if flows <= smol_flows_max {
        let smol = Box::new(Smol::new(flows as usize, step_ns, offload));
        sides.push(Side::new("smoltcp", smol, flows, order));
    }
    for _ in 0..rounds {
        for side in &mut sides {
            side.round(at_least);
        }
    }
    let row = |side: Side| Row {
        stack: side.name,
        flows,
        order,
        offload,
        ns: Spread::of(&side.rounds),
        peer_ns: Spread::of(&side.peer_rounds),
        bytes_per_flow: if side.name == "paste" { paste_bytes(flows) } else { smol_bytes(flows) },
    };
    let rows: Vec<Row> = sides.into_iter().map(row).collect();
    for row in &rows {
        eprintln!(
            "{}: {flows} flows, {}{}: {:.0} ns",
            row.stack,
            order.name(),
            if offload { ", checksums by the device" } else { "" },
            row.ns.median
        );
    }
    rows
}
