//! Congestion control where it matters: flows that share a link with a queue.
//! Checked are the RFCs' aims: the link is used, what is lost is mended without
//! a timeout, and flows share.

use core::net::SocketAddr;
use std::collections::VecDeque;

use paste_abi::{Event, Flow};

use super::harness::*;
use crate::checksum;
use crate::config::{Config, CongestionControl, MS, SEC};
use crate::stack::Tx;
use crate::wire::ethernet;

/// A link with a drop-tail queue in front of it.
struct Link {
    /// Bytes per second; zero for a link that is never busy.
    rate: u64,
    queue_max: u64,
    /// Bytes in the queue beyond which a frame that may be marked is.
    mark_at: u64,
    delay: u64,
    busy_until: u64,
    frames: VecDeque<(u64, Vec<u8>)>,
    drops: u64,
    marks: u64,
}

impl Link {
    fn new(rate: u64, queue_max: u64, delay: u64) -> Link {
        let frames = VecDeque::new();
        let mark_at = u64::MAX;
        Link { rate, queue_max, mark_at, delay, busy_until: 0, frames, drops: 0, marks: 0 }
    }

    fn carry(&mut self, now: u64, mut frame: Vec<u8>) {
        if self.rate > 0 {
            let start = self.busy_until.max(now);
            let queued = (start - now) * self.rate / SEC;
            if queued + frame.len() as u64 > self.queue_max {
                self.drops += 1;
                return;
            }
            if queued > self.mark_at && mark(&mut frame) {
                self.marks += 1;
            }
            self.busy_until = start + frame.len() as u64 * SEC / self.rate;
        }
        self.frames.push_back((self.busy_until.max(now) + self.delay, frame));
    }
}

/// Sets the congestion mark of a frame that may have it (RFC 3168 section 5).
fn mark(frame: &mut [u8]) -> bool {
    let ip = &mut frame[ethernet::LEN..ethernet::LEN + 20];
    if ip[0] != 0x45 || ip[1] & 3 == 0 {
        return false;
    }
    ip[1] |= 3;
    ip[10..12].fill(0);
    let sum = !checksum::sum(ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    true
}

/// A server that sends without end to a client, over the link.
struct Road {
    server: Host,
    client: Host,
    down: Link,
    up: Link,
    flows: Vec<Flow>,
}

const BUFFERS: u32 = 4096;
const SEGMENT: usize = 1460;

impl Road {
    fn new(down: Link, alter: impl Fn(Config) -> Config) -> Road {
        let up = Link::new(0, 0, down.delay);
        let wide = |c| alter(Config { recv_window_max: 4 << 20, ..c });
        let mut server = Host::new(wide(config()), BUFFERS);
        let mut client = Host::new(wide(peer_config(PEER_MAC, PEER)), BUFFERS);
        (server.audits, client.audits) = (false, false);
        server.stack.listen(0, 80, 8).unwrap();
        Road { server, client, down, up, flows: Vec::new() }
    }

    /// The client opens another flow.
    fn open(&mut self) {
        let remote = SocketAddr::from((HOST, 80));
        self.client.stack.connect(self.client.now, 0, remote, 0, 1).unwrap();
    }

    /// Until `end`, ns; the server always has something to send.
    fn run(&mut self, end: u64) {
        while self.server.now < end {
            self.server.poll();
            self.client.poll();
            for slot in core::mem::take(&mut self.server.events) {
                match slot.as_event().unwrap() {
                    Event::Accepted => self.flows.push(slot.flow),
                    Event::Reset => panic!("reset by {}", slot.len),
                    _ => {}
                }
            }
            for flow in self.flows.clone() {
                let index = flow.index();
                while self.server.stack.flows[index].tx_len < 500 {
                    self.server.try_send(flow, &[7; SEGMENT], Tx::default()).unwrap();
                }
            }
            let now = self.server.now;
            for frame in self.server.transmit() {
                self.down.carry(now, frame);
            }
            for frame in self.client.transmit() {
                self.up.carry(now, frame);
            }
            let mut next = now + 100 * MS;
            for link in [&self.down, &self.up] {
                next = link.frames.front().map_or(next, |f| f.0.min(next));
            }
            for host in [&self.server, &self.client] {
                next = host.stack.next_deadline().map_or(next, |d| d.min(next));
            }
            let step = next.saturating_sub(now).max(MS / 20);
            self.server.pass_time(step);
            self.client.pass_time(step);
            let now = self.server.now;
            for (link, host) in
                [(&mut self.down, &mut self.client), (&mut self.up, &mut self.server)]
            {
                while link.frames.front().is_some_and(|f| f.0 <= now) {
                    host.input(&link.frames.pop_front().unwrap().1);
                }
            }
        }
    }

    /// Payload bytes that each flow has delivered.
    fn delivered(&self) -> Vec<f64> {
        let mut flows: Vec<_> = self.client.data.iter().collect();
        flows.sort_by_key(|(flow, _)| flow.index());
        flows.iter().map(|(_, data)| data.len() as f64).collect()
    }
}

/// Jain's index of fairness: 1 when all have the same.
fn fairness(shares: &[f64]) -> f64 {
    let sum: f64 = shares.iter().sum();
    let squares: f64 = shares.iter().map(|s| s * s).sum();
    sum * sum / (shares.len() as f64 * squares)
}

/// 20 Mbit/s and 50 ms: 85 segments.
const RATE: u64 = 2_500_000;
const DELAY: u64 = 25 * MS;
const BDP: u64 = RATE * 2 * DELAY / SEC;

/// The part of the link that payload uses from 2 s to 12 s, the road after it.
fn utilization(queue: u64, mark_at: u64, alter: impl Fn(Config) -> Config) -> (f64, Road) {
    let mut link = Link::new(RATE, queue, DELAY);
    link.mark_at = mark_at;
    let mut road = Road::new(link, alter);
    let start = road.server.now;
    road.open();
    road.run(start + 2 * SEC);
    let before = road.delivered()[0];
    road.run(start + 12 * SEC);
    let payload = (road.delivered()[0] - before) / (10.0 * RATE as f64);
    (payload * 1514.0 / 1460.0, road)
}

#[test]
fn a_link_with_a_queue_of_one_round_trip_is_full() {
    // RFC 5681's halving is made up for by the queue.
    for congestion in [CongestionControl::Cubic, CongestionControl::NewReno] {
        for timestamps in [true, false] {
            let alter = |c| Config { congestion, timestamps, ..c };
            let (used, road) = utilization(BDP, u64::MAX, alter);
            assert!(used > 0.9, "{congestion:?} timestamps {timestamps}: {used}");
            assert!(road.down.drops > 0, "the queue was never full");
            assert_eq!(road.server.stack.counters().timeouts, 0, "{congestion:?} {timestamps}");
        }
    }
}

#[test]
fn a_short_queue_costs_cubic_less_than_newreno() {
    // RFC 9438 section 4.6: 0.7 rather than 0.5 of the window remains.
    let used = [CongestionControl::Cubic, CongestionControl::NewReno].map(|congestion| {
        let (used, road) = utilization(BDP / 5, u64::MAX, |c| Config { congestion, ..c });
        assert_eq!(road.server.stack.counters().timeouts, 0, "{congestion:?}");
        used
    });
    assert!(used[0] > 0.8 && used[1] > 0.65 && used[0] > used[1], "{used:?}");
}

#[test]
fn marks_keep_the_queue_short_and_nothing_is_lost() {
    // RFC 3168 section 1: what marking is for.
    let (used, road) = utilization(2 * BDP, BDP / 2, |c| Config { ecn: true, ..c });
    assert!(used > 0.85, "{used}");
    let counters = road.server.stack.counters();
    assert!(road.down.marks > 0 && counters.ecn_reductions > 2);
    // Slow start may overshoot before the first echo is back.
    assert!(counters.retransmits < 100, "{}", counters.retransmits);
    assert_eq!(counters.timeouts, 0);
}

#[test]
fn slow_start_ends_before_it_has_lost_a_window() {
    // RFC 9406: path and queue hold four times 85 segments. Plain slow start
    // sends twice that before the first loss is noticed, and loses half; in
    // conservative slow start a round trip adds a quarter.
    let mut road = Road::new(Link::new(RATE, 3 * BDP, DELAY), |c| c);
    let start = road.server.now;
    road.open();
    road.run(start + 3 * SEC);
    let held = 4 * BDP / 1514;
    assert!(road.down.drops < held / 2, "{} dropped of {held}", road.down.drops);
    assert_eq!(road.server.stack.counters().timeouts, 0);
}

#[test]
fn flows_share_a_link() {
    for congestion in [CongestionControl::Cubic, CongestionControl::NewReno] {
        let mut road = Road::new(Link::new(RATE, BDP, DELAY), |c| Config { congestion, ..c });
        let start = road.server.now;
        road.open();
        road.run(start + 3 * SEC);
        // The second finds the link full.
        road.open();
        road.run(start + 18 * SEC);
        let before = road.delivered();
        road.run(start + 43 * SEC);
        let shares: Vec<f64> =
            road.delivered().iter().zip(before).map(|(after, before)| after - before).collect();
        assert_eq!(shares.len(), 2);
        assert!(fairness(&shares) > 0.8, "{congestion:?}: {shares:?}");
        let used: f64 = shares.iter().sum::<f64>() / (25.0 * RATE as f64) * 1514.0 / 1460.0;
        assert!(used > 0.9, "{congestion:?}: {used}");
    }
}
