//! What one request and its response cost in the stack, in ns of the thread's
//! time: a request of 1400 bytes goes in, the guest polls it and answers with 64
//! bytes, and the response comes out; the next request acknowledges it.
//!
//! The load is that of `paste-bench stack`, which also measures another stack
//! beside this one, takes rounds, and knows more rows.

#[path = "../../../bench/src/stack/paste.rs"]
mod paste;
#[allow(dead_code, reason = "other measurements have peers of this kind, and know more of them")]
#[path = "../../../bench/src/stack/peer.rs"]
mod peer;
#[path = "../../../bench/src/stack/region.rs"]
mod region;
#[path = "../../../bench/src/stack/server.rs"]
mod server;

use paste::Paste;
use peer::{Order, Peers};
use rustix::time::{ClockId, clock_gettime};
use server::{BATCH, Server, step_ns};

/// The thread's CPU time, in ns.
fn cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Requests that are measured, at the least.
const REQUESTS: usize = 500_000;

fn report(what: &str, start: u64, count: usize) {
    println!("{what:50} {:6.0} ns", (cpu_ns() - start) as f64 / count as f64);
}

fn exchanges(flows: u32, order: Order, offload: bool) {
    let mut paste = Paste::new(flows, step_ns(flows), offload);
    let mut peers = Peers::new(flows, order);
    paste.open_all(&mut peers);
    let mut start = cpu_ns();
    let cycles = REQUESTS.div_ceil(flows as usize);
    for cycle in 0..=cycles {
        if cycle == 1 {
            // The one before was to fill the caches.
            peers.take_spent();
            start = cpu_ns();
        }
        paste.cycle(&mut peers);
    }
    // The peers' time is not the stack's.
    start += peers.take_spent().as_nanos() as u64;
    let checksums = if offload { ", checksums by the device" } else { "" };
    report(&format!("{flows} flows, {}{checksums}", order.name()), start, cycles * flows as usize);
}

fn connections() {
    let mut paste = Paste::new(BATCH as u32, step_ns(BATCH as u32), false);
    let mut peers = Peers::new(BATCH as u32, Order::Sequential);
    let start = cpu_ns();
    for _ in 0..REQUESTS / BATCH {
        paste.connect_and_close(&mut peers);
    }
    report("a connection: accept, one request, close", start, REQUESTS / BATCH * BATCH);
}

/// Each of so many flows waits for an acknowledgement, with a timer.
fn timers(flows: u32) {
    let mut paste = Paste::new(flows, step_ns(flows), true);
    let mut peers = Peers::new(flows, Order::Random);
    paste.open_all(&mut peers);
    paste.cycle(&mut peers);
    let bytes: usize = paste.memory().map(|range| range.end.addr() - range.start.addr()).sum();
    println!("{:50} {:6} MiB", format!("tables and buffers for {flows} flows"), bytes >> 20);
    let start = cpu_ns();
    paste.pass_turns(1000, 1000);
    report(&format!("a turn without frames, {flows} timers armed"), start, 1000);
    let start = cpu_ns();
    paste.pass_turns(1, 10_000_000_000);
    report("each of these timers when all ring", start, flows as usize);
    assert_eq!(paste.drain(), flows as usize, "each sends something again");
}

fn main() {
    // Numbers among the arguments are the numbers of flows to measure with.
    let asked: Vec<u32> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    if !asked.is_empty() {
        asked.into_iter().for_each(|flows| exchanges(flows, Order::Random, false));
        return;
    }
    for offload in [false, true] {
        exchanges(64, Order::Sequential, offload);
        exchanges(10_000, Order::Random, offload);
    }
    exchanges(1_000_000, Order::Random, false);
    timers(1_000_000);
    connections();
}
