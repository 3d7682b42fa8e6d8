//! What the RFCs require, a room for each, written from their text: each test
//! is named after the requirement and cites its section.

mod blind;
mod congestion;
mod delayed_ack;
mod ecn;
mod isn;
mod keepalive;
mod mss;
mod persist;
mod pmtu;
mod rack;
mod rto;
mod sack;
mod silly;
mod spurious;
mod states;
mod time_wait;
mod timestamps;
mod user_timeout;
mod window_scale;

use crate::Config;
use crate::config::MS;
use crate::tcp::seq::Seq;
use crate::tests::harness::*;
use crate::wire::arp;
use crate::wire::tcp::{Options, SackBlock, SackBlocks, Timestamps};

/// Passes time, deadline by deadline, until the host sends something to the
/// peer; gives how long it took in ms, and what it sent. After two timeouts the
/// host asks who the neighbour is: it is answered.
fn wait(pair: &mut Pair, most_ms: u64) -> (u64, Vec<Seg>) {
    let start = pair.host.now;
    loop {
        let mut segs = pair.recv();
        if segs.is_empty() {
            pair.host.input(&arp_frame(arp::REPLY, PEER, PEER_MAC, HOST));
            segs = pair.recv();
        }
        let waited = (pair.host.now - start) / MS;
        if !segs.is_empty() {
            return (waited, segs);
        }
        assert!(waited <= most_ms, "nothing for {waited} ms");
        let deadline = pair.host.stack.next_deadline().unwrap_or(u64::MAX);
        let step = deadline.saturating_sub(pair.host.now).clamp(MS, 1000 * MS);
        pair.host.pass_time(step);
    }
}

/// A flow with SACK whose first round trip took `rtt_ms`, and timestamps if
/// told so.
fn sacking(rtt_ms: u64, timestamps: bool) -> Pair {
    let mut pair = Pair::listening(Config { timestamps, ..config() });
    pair.timestamps = timestamps.then_some(Timestamps { value: 1, echo: 0 });
    let offer = Options {
        mss: Some(1460),
        sack_permitted: true,
        timestamps: pair.timestamps,
        ..Options::default()
    };
    pair.send_with(SYN, offer, &[]);
    pair.seq += 1;
    let syn_ack = pair.recv_one();
    assert!(syn_ack.options.sack_permitted);
    pair.ack = syn_ack.seq.wrapping_add(1);
    pair.host.pass_time(rtt_ms * MS);
    echo(&mut pair, &syn_ack);
    pair.send(ACK, &[]);
    pair.flow = pair.host.poll()[0].flow;
    pair
}

/// From now on the peer echoes the timestamp of this segment.
fn echo(pair: &mut Pair, seg: &Seg) {
    if let (Some(ours), Some(theirs)) = (&mut pair.timestamps, seg.options.timestamps) {
        ours.echo = theirs.value;
    }
}

/// The host sends `count` full segments; gives where they begin.
fn in_flight(pair: &mut Pair, count: u32) -> u32 {
    let start = pair.ack;
    for _ in 0..count {
        let full = vec![9; usize::from(mss(pair))];
        pair.host.send(pair.flow, &full);
    }
    let sent: u32 = pair.recv().iter().map(|s| s.data.len() as u32).sum();
    assert_eq!(sent, count * u32::from(mss(pair)));
    start
}

/// Payload bytes of a full segment to this peer.
fn mss(pair: &Pair) -> u16 {
    pair.host.stack.flows[0].mss
}

/// The peer acknowledges what it had already, and tells of segments from
/// `start` on that it has besides, each given as (first, after the last).
fn sack(pair: &mut Pair, start: u32, segments: &[(u32, u32)]) {
    let mss = u32::from(mss(pair));
    let mut blocks = SackBlocks::default();
    for (first, end) in segments {
        let place = |segment: u32| Seq(start.wrapping_add(segment.wrapping_mul(mss)));
        blocks.push(SackBlock { start: place(*first), end: place(*end) });
    }
    let options = Options { sack: blocks, timestamps: pair.timestamps, ..Options::default() };
    pair.send_with(ACK, options, &[]);
}

/// Which segments from `start` on these are.
fn numbers(pair: &Pair, start: u32, segs: &[Seg]) -> Vec<u32> {
    let mss = u32::from(mss(pair));
    segs.iter().filter(|s| !s.data.is_empty()).map(|s| s.seq.wrapping_sub(start) / mss).collect()
}

/// The flow's congestion window.
fn window(pair: &Pair) -> u32 {
    pair.host.stack.flows[0].congestion.window()
}
