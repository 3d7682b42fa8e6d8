//! Small payload: it is gathered so that a buffer with a byte in it is no
//! weapon, and whatever some flows do, others go on.

use paste_abi::slot::CSUM_VALID;
use proptest::prelude::*;

use super::harness::*;
use crate::config::{Config, MS};
use crate::frame::RxCsum;
use crate::memory::Memory;
use crate::stack::Outcome;

/// Sends `text` in pieces of `len` bytes without the guest polling.
fn trickle(pair: &mut Pair, text: &[u8], len: usize) {
    for piece in text.chunks(len) {
        pair.send(ACK, piece);
        pair.seq += piece.len() as u32;
        pair.recv();
    }
}

fn used(pair: &Pair) -> u32 {
    256 - pair.host.mem.free()
}

#[test]
fn a_byte_a_segment_fills_few_buffers() {
    let mut pair = Pair::established(config());
    let text: Vec<u8> = (0..3000u32).map(|at| (at * 7) as u8).collect();
    pair.host.audits = false;
    trickle(&mut pair, &text, 1);
    pair.host.audit();
    assert_eq!(used(&pair), 3 + 2, "three of a byte each, and what two hold");
    let slots = pair.host.poll();
    assert_eq!(slots.iter().map(|s| s.modifiers).collect::<Vec<_>>(), [CSUM_VALID; 5]);
    assert_eq!(pair.host.data[&pair.flow], text);
    assert_eq!(pair.host.stack.counters().bytes_copied, 3000 - 5);
}

#[test]
fn the_first_small_segments_and_all_full_ones_stay_where_they_are() {
    let mut pair = Pair::established(config());
    trickle(&mut pair, &[1; 400], 100);
    assert_eq!(pair.host.poll().len(), 4);
    trickle(&mut pair, &[1; 30 * 1460], 1460);
    assert_eq!(pair.host.poll().len(), 30);
    assert_eq!(pair.host.stack.counters().bytes_copied, 0);
}

#[test]
fn early_payload_is_gathered_in_any_order() {
    let text: Vec<u8> = (0..1200u32).map(|at| (at * 11) as u8).collect();
    for backwards in [false, true] {
        let mut pair = Pair::established(config());
        let mut places: Vec<usize> = (10..1200).collect();
        if backwards {
            places.reverse();
        }
        for at in places {
            pair.send_ahead(at as i32, ACK, &text[at..at + 1]);
            pair.recv();
        }
        assert!(used(&pair) <= 10, "{}", used(&pair));
        pair.send(ACK, &text[..10]);
        pair.host.poll();
        assert_eq!(pair.host.data[&pair.flow], text);
        assert_eq!(used(&pair), 0);
    }
}

#[test]
fn pipelined_requests_in_one_buffer_arrive_as_they_were_sent() {
    let mut pair = Pair::established(config());
    let requests: Vec<u8> =
        (0..40).flat_map(|i| format!("GET /{i}\r\n\r\n").into_bytes()).collect();
    pair.send(ACK, &requests);
    pair.seq += requests.len() as u32;
    for i in 0..40 {
        let request = format!("GET /{i}\r\n\r\n");
        trickle(&mut pair, request.as_bytes(), 3);
    }
    pair.host.poll();
    assert_eq!(pair.host.data[&pair.flow], [requests.clone(), requests].concat());
}

#[test]
fn a_checksum_that_is_not_known_makes_the_whole_unknown() {
    let mut pair = Pair::established(config());
    trickle(&mut pair, b"abcd", 1);
    pair.host.rx_csum = RxCsum::Partial;
    trickle(&mut pair, b"e", 1);
    pair.host.rx_csum = RxCsum::Unknown;
    trickle(&mut pair, b"f", 1);
    let slots = pair.host.poll();
    let last = slots.last().unwrap();
    assert_eq!((last.len, last.modifiers, last.csum), (3, 0, 0));
    assert_eq!(pair.host.data[&pair.flow], b"abcdef");
}

/// A host with flows that want all of its buffers, and a good one.
struct Crowd {
    pair: Pair,
    /// Each flow's port and next number; the first is the good one's.
    flows: Vec<(u16, u32, u32)>,
    random: super::lossy::Random,
}

impl Crowd {
    fn new(config: Config, buffers: u32, flows: u16) -> Crowd {
        let mut pair = Pair::listening(config);
        pair.host = Host::new(pair.host.stack.config.clone(), buffers);
        pair.host.stack.listen(0, 80, 1000).unwrap();
        let mut crowd = Crowd { pair, flows: Vec::new(), random: super::lossy::Random(0x5eed) };
        for i in 0..flows {
            crowd.pair.peer_port = 1000 + i;
            crowd.pair.seq = 77;
            crowd.pair.open();
            crowd.flows.push((crowd.pair.peer_port, crowd.pair.seq, crowd.pair.ack));
        }
        crowd.pair.host.audits = false;
        crowd
    }

    fn turn_to(&mut self, flow: usize) {
        (self.pair.peer_port, self.pair.seq, self.pair.ack) = self.flows[flow];
    }

    /// A byte of a bad flow's, at its place or ahead of it.
    fn byte(&mut self, flow: usize, ahead: i32) {
        self.turn_to(flow);
        self.pair.send_ahead(ahead, ACK, b"b");
        if let Some(seg) = self.pair.recv().last() {
            self.flows[flow].1 = seg.ack;
        }
    }

    /// The good flow's request, its response, and how often the request had to
    /// be sent.
    fn request(&mut self) -> usize {
        self.turn_to(0);
        let name = self.pair.host.events.iter().find(|e| e.peer().port() == 1000).unwrap().flow;
        let mut tries = 1;
        while self.pair.send(PSH | ACK, &[9; 1000]) != Outcome::Readable {
            tries += 1;
            assert!(tries < 10, "the good flow starves");
            self.pair.host.pass_time(200 * MS);
        }
        self.pair.seq += 1000;
        self.pair.host.reads = true;
        self.pair.host.poll();
        self.pair.host.reads = false;
        self.pair.host.send(name, &[8; 500]);
        let response = self.pair.recv();
        let sent: usize =
            response.iter().filter(|s| s.dst_port == 1000).map(|s| s.data.len()).sum();
        assert_eq!(sent, 500);
        self.pair.ack_more(500);
        self.flows[0] = (1000, self.pair.seq, self.pair.ack);
        self.pair.host.audit();
        tries
    }
}

/// The guest does not poll but for the good flow, or polls and keeps all.
#[test]
fn flows_that_send_a_byte_a_segment_cannot_exhaust_the_pool() {
    for polls in [false, true] {
        let mut crowd = Crowd::new(Config { flows_max: 256, ..config() }, 512, 200);
        crowd.pair.host.reads = false;
        let mut least = u32::MAX;
        for round in 0..60 {
            for flow in 1..200 {
                crowd.byte(flow, 0);
                if polls {
                    crowd.pair.host.poll();
                }
            }
            least = least.min(crowd.pair.host.mem.free());
            if round % 5 == 0 {
                assert_eq!(crowd.request(), 1);
            }
        }
        assert!(least > 16, "{least} buffers were left");
    }
}

#[test]
fn early_bytes_with_holes_cannot_exhaust_the_pool() {
    let mut crowd = Crowd::new(Config { flows_max: 256, ..config() }, 512, 200);
    let mut least = u32::MAX;
    for round in 1..60 {
        for flow in 1..200 {
            let ahead = 1 + crowd.random.below(2900) as i32;
            crowd.byte(flow, ahead);
        }
        least = least.min(crowd.pair.host.mem.free());
        if round % 5 == 0 {
            assert_eq!(crowd.request(), 1);
        }
    }
    assert!(least > 16, "{least} buffers were left");
}

/// RFC 2018 section 8: what was told of may be thrown away.
#[test]
fn early_payload_gives_way_to_payload_in_order() {
    let mut crowd = Crowd::new(config(), 64, 3);
    crowd.pair.host.reads = false;
    for ahead in 0..10 {
        crowd.byte(1, 100 + 2 * ahead);
    }
    let mut hoard = Vec::new();
    while crowd.pair.host.mem.free() > 3 {
        hoard.push(crowd.pair.host.mem.take_for(Owner::Guest).unwrap());
    }
    assert_eq!(crowd.request(), 1);
    assert_eq!(crowd.pair.host.stack.counters().held_dropped, 1);
    // It is sent again, and then it counts.
    for buf in hoard {
        crowd.pair.host.mem.give_from(Owner::Guest, buf);
    }
    crowd.turn_to(1);
    crowd.pair.send_ahead(100, ACK, b"again");
    crowd.pair.send(ACK, &[0; 100]);
    assert_eq!(crowd.pair.recv().last().unwrap().ack, crowd.pair.seq + 105);
}

#[test]
fn rfc9293_3_8_6_windows_close_smoothly_as_the_pool_runs_low() {
    let mut pair = Pair::established(config());
    pair.host.reads = false;
    let full = [3; 1460];
    let (mut windows, mut edge) = (Vec::new(), 0u32);
    let mut hoard = Vec::new();
    for _ in 0..600 {
        let Some(&window) = windows.last().or(Some(&u32::MAX)) else { unreachable!() };
        if window < 1460 {
            break;
        }
        // Others take what the flow does not.
        hoard.extend(pair.host.mem.take_for(Owner::Guest));
        let outcome = pair.send(ACK, &full);
        assert_eq!(outcome, Outcome::Readable, "promised and refused");
        pair.seq += 1460;
        pair.host.poll();
        pair.host.pass_time(50 * MS);
        for seg in pair.recv() {
            let right = seg.ack.wrapping_add(u32::from(seg.window));
            assert!(edge == 0 || right.wrapping_sub(edge) as i32 >= 0, "the window shrank");
            edge = right;
            windows.push(u32::from(seg.window));
        }
    }
    assert_eq!(windows.last(), Some(&0));
    let steepest = windows.windows(2).map(|w| w[0].saturating_sub(w[1])).max();
    assert!(steepest <= Some(1460), "{windows:?}");
    assert!(pair.host.mem.free() > 8);
}

#[test]
fn an_idle_flow_keeps_little_from_others() {
    let mut crowd = Crowd::new(Config { flows_max: 64, ..config() }, 1024, 41);
    let promised = crowd.pair.host.stack.promised / 1460;
    assert!(promised <= 40 * 16 + 16, "{promised}");
    // One that works is soon given as much as it can use.
    crowd.turn_to(0);
    for _ in 0..100 {
        crowd.pair.send(ACK, &[0; 1460]);
        crowd.pair.seq += 1460;
        crowd.pair.host.poll();
    }
    let window = crowd.pair.recv().last().unwrap().window;
    assert!(window > 40_000, "{window}");
}

/// A request of many buffers, of which the guest gives up none before it has
/// the whole.
fn whole_request(pair: &mut Pair, segments: usize, len: usize) {
    pair.host.reads = false;
    for i in 0..segments {
        let outcome = pair.send(ACK, &[5; 1460][..len]);
        assert_eq!(outcome, Outcome::Readable, "segment {i} of {segments} of {len}");
        pair.seq += len as u32;
        pair.host.poll();
        pair.host.pass_time(50 * MS);
        let window = pair.recv().last().unwrap().window;
        assert!(usize::from(window) >= len, "{window} after segment {i} of {len}");
    }
}

#[test]
fn a_request_of_many_buffers_arrives_whatever_its_segments_are() {
    for (segments, len) in [(400, 1), (400, 100), (400, 700), (400, 1460)] {
        let mut crowd = Crowd::new(config(), 2048, 1);
        whole_request(&mut crowd.pair, segments, len);
    }
}

#[test]
fn a_request_of_many_buffers_arrives_among_idle_flows() {
    // More of them than their least windows leave room for.
    let mut crowd = Crowd::new(Config { flows_max: 256, ..config() }, 256, 200);
    assert!(crowd.pair.host.stack.promised > 128 * 1460);
    crowd.turn_to(0);
    whole_request(&mut crowd.pair, 50, 1460);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever is gathered, cut and thrown away: the bytes are those sent.
    #[test]
    fn bytes_survive_gathering(
        seed in 1u64..,
        size in 1u64..700,
        polls in 1u64..40,
    ) {
        let mut random = super::lossy::Random(seed);
        let mut pair = Pair::established(config());
        pair.host.reads = random.below(2) == 0;
        let mut hoard = Vec::new();
        let text: Vec<u8> = (0..5000u32).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect();
        let mut next = 0;
        for _ in 0..20_000 {
            let start = (next + random.below(2 * size) as usize).saturating_sub(random.below(size) as usize);
            let start = start.min(text.len() - 1);
            let end = (start + 1 + random.below(size) as usize).min(text.len());
            pair.host.rx_csum = if random.below(20) == 0 { RxCsum::Partial } else { RxCsum::Unknown };
            pair.send_ahead(start as i32, ACK, &text[start..end]);
            if random.below(polls) == 0 {
                pair.host.poll();
            }
            if let Some(seg) = pair.recv().last() {
                next = seg.ack.wrapping_sub(pair.seq) as usize;
            }
            if next == text.len() {
                break;
            }
            if random.below(8) == 0 {
                pair.host.pass_time(50 * MS);
            }
            // Others take the pool, and give it back.
            match random.below(40) {
                0 => while pair.host.mem.free() > random.below(20) as u32 {
                    hoard.push(pair.host.mem.take_for(Owner::Guest).unwrap());
                },
                1 | 2 => for buf in hoard.drain(..) {
                    pair.host.mem.give_from(Owner::Guest, buf);
                },
                _ => {}
            }
            let kept: Vec<u32> = (0..256)
                .filter(|&b| pair.host.mem.owners[b as usize] == Owner::Guest)
                .collect();
            for buf in kept {
                if random.below(3) == 0 && !hoard.contains(&buf) {
                    pair.host.give_up(buf);
                }
            }
        }
        pair.host.poll();
        prop_assert_eq!(next, text.len());
        prop_assert_eq!(&pair.host.data[&pair.flow], &text);
    }
}
