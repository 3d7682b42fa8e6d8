//! A wire between two pools.

use paste_stack::Payload;

use super::super::testing::{pool, push, receive_all, send_all};
use super::*;

const MTU: u16 = 1500;

fn at(ns: u64) -> Now {
    Now { monotonic_ns: ns, real_ns: 1_000_000 + ns }
}

fn pair(faults: Faults) -> (PipePort, PipePort) {
    let mut wires = Wires::default();
    let a = wires.attach("w", faults, 1, MTU).unwrap();
    let b = wires.attach("w", faults, 1, MTU).unwrap();
    (a, b)
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7) as u8).collect()
}

/// Whether the port's descriptor says that frames wait.
fn is_readable(port: &PipePort) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let fd = port.fd().unwrap();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
}

#[test]
fn frames_cross_in_both_directions_and_wake_the_other_side() {
    let (mut a, mut b) = pair(Faults::default());
    let (mut pool_a, mut pool_b) = (pool(4), pool(4));
    let mut batch = TxBatch::new(8);
    for _ in 0..2 {
        let (from, to, pool_from, pool_to) = (&mut a, &mut b, &mut pool_a, &mut pool_b);
        let frames = [frame(14), frame(1518), frame(300)];
        for (bytes, head) in frames.iter().zip([14, 54, 0]) {
            push(&mut batch, pool_from, bytes, head, None);
        }
        assert!(!is_readable(to));
        send_all(from, at(5), pool_from, &mut batch);
        assert!(is_readable(to));
        let got = receive_all(to, at(6), pool_to);
        assert!(!is_readable(to));
        assert!(got.iter().map(|(_, bytes)| bytes).eq(&frames));
        for (received, _) in &got {
            assert_eq!(received.frame.offset, RX_OFFSET);
            assert_eq!(received.frame.csum, RxCsum::Unknown);
            assert_eq!(received.frame.time, 1_000_006);
        }
        to.release(pool_to);
        assert_eq!((pool_from.free(), pool_to.free()), (4, 4));
        assert_eq!((from.counters().tx_frames, from.counters().tx_bytes), (3, 1832));
        assert_eq!((to.counters().rx_frames, to.counters().rx_bytes), (3, 1832));
        assert_eq!(to.counters().rx_bytes_copied, 1832);
        std::mem::swap(&mut a, &mut b);
        std::mem::swap(&mut pool_a, &mut pool_b);
    }
}

#[test]
fn a_delayed_frame_is_announced_by_a_deadline() {
    let (mut a, mut b) = pair(Faults { delay_ns: 1_000, ..Faults::default() });
    let (mut pool_a, mut pool_b) = (pool(4), pool(4));
    let mut batch = TxBatch::new(8);
    push(&mut batch, &mut pool_a, &frame(60), 14, None);
    send_all(&mut a, at(100), &mut pool_a, &mut batch);
    assert!(receive_all(&mut b, at(100), &mut pool_b).is_empty());
    assert!(!is_readable(&b));
    assert_eq!(b.next_deadline(), Some(1_100));
    assert_eq!(receive_all(&mut b, at(1_100), &mut pool_b).len(), 1);
    assert_eq!(b.next_deadline(), None);
}

#[test]
fn an_empty_pool_leaves_frames_on_the_wire() {
    let (mut a, mut b) = pair(Faults::default());
    let (mut pool_a, mut pool_b) = (pool(4), pool(1));
    let mut batch = TxBatch::new(8);
    push(&mut batch, &mut pool_a, &frame(60), 14, None);
    push(&mut batch, &mut pool_a, &frame(61), 14, None);
    send_all(&mut a, at(0), &mut pool_a, &mut batch);
    assert_eq!(receive_all(&mut b, at(0), &mut pool_b).len(), 1);
    assert_eq!(b.counters().rx_no_buffer, 1);
    assert_eq!(b.next_deadline(), None);
    assert_eq!(receive_all(&mut b, at(0), &mut pool_b)[0].1, frame(61));
}

#[test]
fn no_more_is_received_than_the_batch_has_room_for() {
    let (mut a, mut b) = pair(Faults::default());
    let (mut pool_a, mut pool_b) = (pool(4), pool(4));
    let mut batch = TxBatch::new(8);
    for len in [60, 61, 62] {
        push(&mut batch, &mut pool_a, &frame(len), 14, None);
    }
    send_all(&mut a, at(0), &mut pool_a, &mut batch);
    let mut out = RxBatch::new(2);
    assert_eq!(b.receive(at(0), &mut pool_b, &mut out).unwrap(), 2);
    // What is left is due, and says so.
    assert_eq!(b.next_deadline(), Some(0));
    out.clear();
    assert_eq!(b.receive(at(0), &mut pool_b, &mut out).unwrap(), 1);
}

#[test]
fn malformed_frames_are_dropped_and_their_buffers_told() {
    let (mut a, mut b) = pair(Faults::default());
    let (mut pool_a, mut pool_b) = (pool(8), pool(4));
    let mut batch = TxBatch::new(8);
    push(&mut batch, &mut pool_a, &frame(13), 13, None);
    push(&mut batch, &mut pool_a, &frame(1519), 14, None);
    push(&mut batch, &mut pool_a, &frame(60), 14, Some(TxCsum { start: 54, offset: 5 }));
    let outside = pool_a.take(Owner::Stack).unwrap();
    batch.push(Origin::Bridge).unwrap().payload =
        Some(Payload { buf: outside, offset: 2000, len: 60 });
    let mut told = Vec::new();
    let sent = a.send(at(0), &pool_a, &mut batch, &mut |origin, buf| told.push((origin, buf)));
    assert_eq!(sent.unwrap(), 4);
    assert_eq!(told.len(), 4);
    assert_eq!(told[3], (Origin::Bridge, outside));
    assert_eq!(a.counters().drops.tx_malformed, 4);
    assert!(receive_all(&mut b, at(0), &mut pool_b).is_empty());
}

#[test]
fn a_checksum_is_completed_where_it_is_asked_for() {
    let (mut a, mut b) = pair(Faults::default());
    let (mut pool_a, mut pool_b) = (pool(4), pool(4));
    let mut batch = TxBatch::new(8);
    // An odd number of bytes summed: the last counts as a high byte.
    let mut bytes = frame(61);
    bytes[50..52].copy_from_slice(&[0x12, 0x34]);
    push(&mut batch, &mut pool_a, &bytes, 34, Some(TxCsum { start: 34, offset: 16 }));
    send_all(&mut a, at(0), &mut pool_a, &mut batch);
    let got = receive_all(&mut b, at(0), &mut pool_b).remove(0).1;
    assert_eq!(got[..50], bytes[..50]);
    assert_eq!(got[52..], bytes[52..]);
    // What was summed, with the checksum in place of the seed, plus the seed,
    // is all ones.
    let sum = |range: &[u8]| {
        let mut padded = range.to_vec();
        padded.push(0);
        padded.chunks_exact(2).map(|p| u32::from(u16::from_be_bytes([p[0], p[1]]))).sum::<u32>()
    };
    assert_eq!((sum(&got[34..]) + 0x1234) % 0xffff, 0);
}

#[test]
fn a_receiver_with_a_smaller_mtu_drops_what_is_too_long() {
    let mut wires = Wires::default();
    let mut a = wires.attach("w", Faults::default(), 0, 1500).unwrap();
    let mut b = wires.attach("w", Faults::default(), 0, 600).unwrap();
    let (mut pool_a, mut pool_b) = (pool(4), pool(4));
    let mut batch = TxBatch::new(8);
    push(&mut batch, &mut pool_a, &frame(619), 14, None);
    push(&mut batch, &mut pool_a, &frame(618), 14, None);
    send_all(&mut a, at(0), &mut pool_a, &mut batch);
    assert_eq!(receive_all(&mut b, at(0), &mut pool_b).len(), 1);
    assert_eq!(b.counters().drops.rx_oversize, 1);
}

#[test]
fn frames_sent_before_the_other_end_is_there_wait_for_it() {
    let mut wires = Wires::default();
    let mut a = wires.attach("w", Faults::default(), 0, MTU).unwrap();
    let (mut pool_a, mut pool_b) = (pool(4), pool(4));
    assert!(receive_all(&mut a, at(0), &mut pool_a).is_empty());
    let mut batch = TxBatch::new(8);
    push(&mut batch, &mut pool_a, &frame(60), 14, None);
    send_all(&mut a, at(0), &mut pool_a, &mut batch);
    let mut b = wires.attach("w", Faults::default(), 0, MTU).unwrap();
    assert!(is_readable(&b));
    assert_eq!(receive_all(&mut b, at(1), &mut pool_b).len(), 1);
}

#[test]
fn a_wire_has_two_ends_and_another_name_is_another_wire() {
    let mut wires = Wires::default();
    let attach = |wires: &mut Wires, name| wires.attach(name, Faults::default(), 0, MTU);
    let _a = attach(&mut wires, "w").unwrap();
    let _b = attach(&mut wires, "w").unwrap();
    let error = attach(&mut wires, "w").unwrap_err();
    assert_eq!(
        error.to_string(),
        "port pipe:w: both ends of the wire are taken: name another wire"
    );
    assert!(attach(&mut wires, "v").is_ok());
}

#[test]
fn two_workers_exchange_frames_and_sleep_in_between() {
    use rustix::event::{PollFd, PollFlags, poll};

    const ROUNDS: u32 = 1_000;
    let (a, b) = pair(Faults::default());
    // Each side answers every number with the next one.
    let player = |mut port: PipePort, serves: bool| {
        let mut pool = pool(4);
        let mut batch = TxBatch::new(4);
        let mut next = serves.then_some(0u32);
        loop {
            if let Some(number) = next.take() {
                let mut bytes = frame(60);
                bytes[56..].copy_from_slice(&number.to_be_bytes());
                push(&mut batch, &mut pool, &bytes, 14, None);
                send_all(&mut port, at(0), &mut pool, &mut batch);
                if number >= ROUNDS {
                    return number;
                }
            }
            for (_, bytes) in receive_all(&mut port, at(0), &mut pool) {
                let number = u32::from_be_bytes(bytes[56..].try_into().unwrap());
                if number >= ROUNDS {
                    return number;
                }
                next = Some(number + 1);
            }
            if next.is_none() {
                let fd = port.fd().unwrap();
                poll(&mut [PollFd::new(&fd, PollFlags::IN)], None).unwrap();
            }
        }
    };
    std::thread::scope(|scope| {
        let a = scope.spawn(move || player(a, true));
        let b = scope.spawn(move || player(b, false));
        assert_eq!((a.join().unwrap(), b.join().unwrap()), (ROUNDS, ROUNDS));
    });
}
