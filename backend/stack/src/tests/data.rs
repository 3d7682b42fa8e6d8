//! Payload both ways: order, trimming, windows, checksums and headers.

use paste_abi::slot::{CSUM_VALID, KEEP};
use paste_abi::{Event, Reason};

use super::harness::*;
use crate::config::{MS, SEC};
use crate::frame::RxCsum;
use crate::memory::Memory;
use crate::stack::{Outcome, Tx};
use crate::wire::tcp::{Options, Timestamps};

#[test]
fn the_acknowledgement_of_a_request_rides_on_the_response() {
    let mut pair = Pair::established(config());
    assert_eq!(pair.send(PSH | ACK, b"GET /"), Outcome::Readable);
    pair.seq += 5;
    let slots = pair.host.poll();
    assert_eq!(slots[0].as_event(), Some(Event::Data));
    assert_eq!(slots[0].time, pair.host.now);
    pair.host.send(pair.flow, b"200 OK");
    let response = pair.recv_one();
    assert_eq!((response.flags, response.ack), (PSH | ACK, pair.seq));
    assert_eq!(response.data, b"200 OK");
    pair.ack_more(6);
    pair.host.pass_time(SEC);
    pair.recv_nothing();
    assert_eq!(pair.host.data[&pair.flow], b"GET /");
    assert_eq!(pair.host.stack.counters().bytes_copied, 0);
    assert_eq!(pair.host.mem.free(), 256);
}

#[test]
fn a_lone_request_is_acknowledged_after_the_delay() {
    let mut pair = Pair::established(config());
    pair.send(ACK, b"x");
    pair.recv_nothing();
    pair.host.pass_time(39 * MS);
    pair.recv_nothing();
    pair.host.pass_time(4 * MS);
    pair.recv_ack(pair.seq + 1);
}

#[test]
fn every_second_full_segment_is_acknowledged_at_once() {
    let mut pair = Pair::established(config());
    let full = [7; 1460];
    // But a young flow's at once, so that the peer's slow start is not held up;
    // if it has more to send.
    pair.send(PSH | ACK, &full);
    pair.recv_nothing();
    pair.seq += 1460;
    pair.host.poll();
    for _ in 0..16 {
        pair.send(ACK, &full);
        pair.seq += 1460;
        pair.recv_ack(pair.seq);
        pair.host.poll();
    }
    pair.send(ACK, &full);
    pair.recv_nothing();
    pair.seq += 1460;
    pair.send(ACK, &full);
    pair.recv_ack(pair.seq + 1460);
}

#[test]
fn early_payload_is_held_and_delivered_in_order() {
    let mut pair = Pair::established(config());
    assert_eq!(pair.send_ahead(3, ACK, b"def"), Outcome::Held);
    pair.recv_ack(pair.seq);
    assert_eq!(pair.send_ahead(9, ACK, b"jkl"), Outcome::Held);
    pair.recv_ack(pair.seq);
    assert_eq!(pair.send_ahead(3, ACK, b"def"), Outcome::Consumed);
    pair.recv_ack(pair.seq);
    assert!(!pair.host.stack.has_slots(0));
    assert_eq!(pair.send(ACK, b"abc"), Outcome::Readable);
    pair.recv_ack(pair.seq + 6);
    assert_eq!(pair.send_ahead(6, ACK, b"ghi"), Outcome::Readable);
    pair.recv_ack(pair.seq + 12);
    pair.host.poll();
    assert_eq!(pair.host.data[&pair.flow], b"abcdefghijkl");
    assert_eq!(pair.host.stack.counters().held, 2);
}

#[test]
fn overlaps_are_trimmed_at_either_end() {
    let text = b"0123456789abcdefghijklmnopqrstuvwxyz";
    // Pieces as (start, end), the last of which closes the gap.
    let cases: &[&[(usize, usize)]] = &[
        &[(0, 5), (3, 9)],
        &[(4, 8), (6, 12), (0, 5)],
        &[(6, 12), (4, 8), (0, 6)],
        &[(6, 8), (4, 12), (0, 5)],
        &[(4, 12), (6, 8), (0, 12)],
        &[(4, 6), (8, 10), (12, 14), (3, 13), (0, 4)],
        &[(4, 6), (8, 10), (5, 9), (0, 20)],
        &[(10, 20), (0, 36)],
        &[(10, 20), (15, 36), (0, 30)],
    ];
    for pieces in cases {
        let mut pair = Pair::established(config());
        for &(start, end) in *pieces {
            pair.send_ahead(start as i32, ACK, &text[start..end]);
        }
        let end = pieces.iter().map(|p| p.1).max().unwrap();
        pair.host.poll();
        assert_eq!(pair.host.data[&pair.flow], &text[..end], "{pieces:?}");
        pair.host.pass_time(50 * MS);
        pair.recv_ack(pair.seq + end as u32);
        assert_eq!(pair.host.mem.free(), 256);
    }
}

#[test]
fn a_trimmed_slot_has_no_checksum() {
    let mut pair = Pair::established(config());
    pair.send(ACK, b"abcd");
    pair.send_ahead(2, ACK, b"cdefg");
    let slots = pair.host.poll();
    assert_eq!(slots[0].modifiers, CSUM_VALID);
    assert_eq!((slots[1].modifiers, slots[1].csum, slots[1].len), (0, 0, 3));
}

/// The urgent pointer is not used (RFC 6093 section 6): its payload stays where
/// it is in the stream, whatever the pointer says.
#[test]
fn rfc6093_6_urgent_payload_is_payload() {
    const URG: u8 = 0x20;
    let mut pair = Pair::established(config());
    for pointer in [0u16, 1, 5, u16::MAX] {
        let mut frame = pair.seg(URG | PSH | ACK, Options::default(), b"urgent").frame();
        frame[52..54].copy_from_slice(&pointer.to_be_bytes());
        finish_tcp(&mut frame);
        assert_eq!(pair.host.input(&frame), Outcome::Readable);
        pair.seq += 6;
        pair.host.poll();
    }
    assert_eq!(pair.host.data[&pair.flow], b"urgent".repeat(4));
}

#[test]
fn held_payload_is_limited() {
    let mut pair = Pair::established(crate::Config { held_blocks_max: 3, ..config() });
    for i in 1..=5 {
        let fin = if i > 3 { FIN } else { 0 };
        pair.send_ahead(i * 10, fin | ACK, b"x");
    }
    assert_eq!(pair.host.stack.counters().drop_held_full, 2);
    pair.host.stack.close_channel(&mut pair.host.mem, pair.host.now, 0);
    pair.recv();
    pair.host.check_empty();
}

/// The checksum in a slot is the payload's, whoever verified the segment. The
/// harness compares every one that is marked valid.
#[test]
fn the_checksum_of_the_payload_is_derived() {
    let payloads: &[&[u8]] =
        &[b"x", b"odd", b"even", &[0; 9], &[0xff; 8], &[0xff, 0xff, 0, 0], &[0, 1, 0xff, 0xfe]];
    for csum in [RxCsum::Unknown, RxCsum::Valid, RxCsum::Partial] {
        for payload in payloads {
            let mut pair = Pair::established(config());
            pair.host.rx_csum = csum;
            pair.send(ACK, payload);
            let slots = pair.host.poll();
            assert_eq!(slots[0].modifiers == CSUM_VALID, csum != RxCsum::Partial);
        }
    }
}

#[test]
fn a_wrong_checksum_is_dropped_unless_the_device_vouches() {
    let mut pair = Pair::established(config());
    let mut frame = pair.seg(ACK, Options::default(), b"data").frame();
    *frame.last_mut().unwrap() ^= 1;
    assert_eq!(pair.host.input(&frame), Outcome::Consumed);
    assert_eq!(pair.host.stack.counters().drop_bad_tcp_csum, 1);
    pair.host.rx_csum = RxCsum::Partial;
    assert_eq!(pair.host.input(&frame), Outcome::Readable);
}

#[test]
fn a_slot_larger_than_the_mss_is_cut_and_small_slots_stay_apart() {
    for header_in_buffer in [false, true] {
        let mut pair = Pair::listening(crate::Config { header_in_buffer, ..config() });
        pair.send_with(SYN, Options { mss: Some(500), ..Options::default() }, &[]);
        pair.seq += 1;
        pair.ack = pair.recv_one().seq.wrapping_add(1);
        pair.send(ACK, &[]);
        let flow = pair.host.poll()[0].flow;
        let data: Vec<u8> = (0..1200).map(|i| i as u8).collect();
        pair.host.send(flow, &data);
        pair.host.send(flow, b"a");
        pair.host.send(flow, b"b");
        let segs = pair.recv();
        let lens: Vec<usize> = segs.iter().map(|s| s.data.len()).collect();
        assert_eq!(lens, [500, 500, 200, 1, 1]);
        let flags: Vec<u8> = segs.iter().map(|s| s.flags).collect();
        assert_eq!(flags, [ACK, ACK, PSH | ACK, PSH | ACK, PSH | ACK]);
        let sent: Vec<u8> = segs.iter().flat_map(|s| s.data.clone()).collect();
        assert_eq!(sent, [&data[..], b"ab"].concat());
        assert_eq!(pair.host.mem.writes, if header_in_buffer { 3 } else { 0 });
        // All of it once more, in either placement.
        pair.host.pass_time(3 * SEC);
        assert_eq!(pair.recv_one().data, &data[..500]);
        pair.ack_more(700);
        let again: Vec<u8> = pair.recv().iter().flat_map(|s| s.data.clone()).collect();
        assert!(again.starts_with(&data[700..]), "from the middle of a buffer");
    }
}

#[test]
fn the_last_segment_of_a_burst_is_pushed() {
    let mut pair = Pair::listening(config());
    pair.offers = Options { mss: Some(100), ..Options::default() };
    pair.open();
    pair.host.send(pair.flow, &[7; 1900]);
    let pushed = |segs: &[Seg]| segs.iter().map(|s| s.flags & PSH != 0).collect::<Vec<_>>();
    // The initial window (RFC 6928) ends in the midst of the slot.
    let burst = pair.recv();
    assert_eq!(pushed(&burst), [vec![false; 9], vec![true]].concat());
    pair.host.pass_time(MS);
    pair.ack_more(100);
    assert_eq!(pushed(&pair.recv()), [false, true]);
    // One alone is no burst.
    pair.host.pass_time(MS);
    pair.window = 1000;
    pair.ack_more(200);
    assert_eq!(pushed(&pair.recv()), [false]);
}

#[test]
fn nothing_is_written_into_a_kept_buffer_or_one_that_the_port_reads() {
    let mut pair = Pair::established(crate::Config { header_in_buffer: true, ..config() });
    let keep = Tx { keep: true, cookie: 5, ..Tx::default() };
    pair.host.try_send(pair.flow, b"kept", keep).unwrap();
    pair.recv_one();
    assert_eq!(pair.host.mem.writes, 0);
    pair.host.port_sends = false;
    pair.host.send(pair.flow, b"plain");
    pair.recv_one();
    assert_eq!(pair.host.mem.writes, 1);
    pair.host.pass_time(SEC);
    pair.recv();
    pair.ack_more(4);
    pair.recv();
    assert_eq!(pair.host.mem.writes, 1, "sent again while the first frame is with the port");
}

#[test]
fn the_device_may_complete_the_checksum() {
    let mut pair = Pair::established(crate::Config { tx_csum_offload: true, ..config() });
    pair.host.send(pair.flow, b"offloaded");
    // The harness is the device, and the reader judges what it made.
    assert_eq!(pair.recv_one().data, b"offloaded");
}

#[test]
fn a_buffer_is_pinned_until_sent_and_acknowledged() {
    let mut pair = Pair::established(config());
    pair.host.port_sends = false;
    let notify = Tx { notify: true, cookie: 1, ..Tx::default() };
    let keep = Tx { keep: true, cookie: 2, ..Tx::default() };
    pair.host.try_send(pair.flow, b"plain", Tx::default()).unwrap();
    pair.host.try_send(pair.flow, b"notify", notify).unwrap();
    let kept = pair.host.try_send(pair.flow, b"keep", keep).unwrap();
    assert_eq!(pair.recv().len(), 3);
    pair.ack_more(15);
    assert!(pair.host.poll().is_empty(), "acknowledged, but the port has them");
    assert_eq!(pair.host.mem.free(), 253);
    pair.host.frames_sent();
    assert_eq!(pair.host.mem.free(), 254);
    let slots = pair.host.poll();
    let told: Vec<_> = slots.iter().map(|s| (s.as_event(), s.cookie, s.modifiers)).collect();
    assert_eq!(told, [(Some(Event::Acked), 1, 0), (Some(Event::Acked), 2, KEEP)]);
    assert_eq!((slots[1].buf_idx, slots[1].len), (kept, Reason::Ok as u16));
    assert_eq!(pair.host.mem.free(), 255);
    assert_eq!(pair.host.mem.owners[kept as usize], Owner::Guest);
}

#[test]
fn a_received_buffer_may_be_sent_from() {
    let mut pair = Pair::established(config());
    pair.host.reads = false;
    pair.send(ACK, b"echo me");
    let slot = pair.host.poll()[0];
    let tx = Tx { buf: slot.buf_idx, offset: 128, len: 7, ..Tx::default() };
    let host = &mut pair.host;
    host.stack.send(&mut host.mem, host.now, 0, pair.flow, &tx).unwrap();
    host.mem.pass(Owner::Guest, Owner::Stack, slot.buf_idx);
    assert_eq!(host.stack.flows[pair.flow.index()].rx_bufs, 0, "the window was given back");
    let again = host.stack.send(&mut host.mem, host.now, 0, pair.flow, &tx);
    assert_eq!(again, Err(Reason::ForeignBuffer));
    assert_eq!(pair.recv_one().data.len(), 7);
}

#[test]
fn what_cannot_be_sent_is_refused() {
    let mut pair = Pair::established(crate::Config { send_queue_max: 2, ..config() });
    let (now, flow) = (pair.host.now, pair.flow);
    let good = Tx { buf: 9, offset: 128, len: 10, ..Tx::default() };
    let mut send = |channel, flow, tx: Tx| {
        pair.host.stack.send(&mut pair.host.mem, now, channel, flow, &tx).unwrap_err()
    };
    assert_eq!(send(1, flow, good), Reason::StaleFlow);
    assert_eq!(send(0, paste_abi::Flow::new(flow.index(), 9), good), Reason::StaleFlow);
    assert_eq!(send(0, paste_abi::Flow::new(1 << 19, 0), good), Reason::StaleFlow);
    assert_eq!(send(0, flow, Tx { buf: 256, ..good }), Reason::ForeignBuffer);
    assert_eq!(send(0, flow, Tx { offset: 127, ..good }), Reason::BadRange);
    assert_eq!(send(0, flow, Tx { len: 0, ..good }), Reason::BadRange);
    assert_eq!(send(0, flow, Tx { len: 1921, ..good }), Reason::BadRange);
    pair.host.send(flow, b"1");
    pair.host.send(flow, b"2");
    assert_eq!(pair.host.try_send(flow, b"3", Tx::default()), Err(Reason::FlowFull));
    pair.recv();
    pair.ack_more(2);
    pair.host.poll();
    assert_eq!(pair.host.kinds().last(), Some(&Event::Writable));
    pair.host.send(flow, b"3");
    pair.host.close(flow);
    assert_eq!(pair.host.try_send(flow, b"4", Tx::default()), Err(Reason::Closed));
}

#[test]
fn a_guest_that_does_not_read_closes_its_window_and_reading_opens_it() {
    let mut pair = Pair::established(config());
    pair.host.reads = false;
    let mut edge = 0;
    let mut window = u32::MAX;
    for _ in 0..400 {
        let seg = [1; 1460];
        let len = (window as usize).min(1460);
        if len == 0 {
            break;
        }
        pair.send(ACK, &seg[..len]);
        pair.seq += len as u32;
        pair.host.poll();
        pair.host.pass_time(50 * MS);
        for seg in pair.recv() {
            window = u32::from(seg.window);
            let right = seg.ack.wrapping_add(window);
            assert!(edge == 0 || right.wrapping_sub(edge) as i32 >= 0, "the window shrank");
            edge = right;
        }
    }
    assert_eq!(window, 0);
    assert!(pair.host.mem.free() >= 256 / 2 - 2, "{}", pair.host.mem.free());
    // A probe is answered, and its byte is not taken.
    assert_eq!(pair.send(ACK, b"p"), Outcome::Consumed);
    assert_eq!(pair.recv_one().window, 0);
    let held: Vec<u32> = pair.host.data_slots.iter().map(|s| s.buf_idx).collect();
    for buf in &held[..40] {
        pair.host.give_up(*buf);
    }
    let update = pair.recv_one();
    assert!(update.window >= 1460);
    assert_eq!(update.ack, pair.seq);
}

#[test]
fn small_segments_cannot_take_more_than_a_share_of_the_buffers() {
    let mut pair = Pair::listening(crate::Config { recv_window_max: 4 << 20, ..config() });
    pair.send_with(SYN, Options { mss: Some(1460), scale: Some(7), ..Options::default() }, &[]);
    pair.seq += 1;
    pair.ack = pair.recv_one().seq.wrapping_add(1);
    pair.send(ACK, &[]);
    pair.host.reads = false;
    for _ in 0..300 {
        if pair.send(ACK, b"s") == Outcome::Readable {
            pair.seq += 1;
        }
        pair.host.poll();
        pair.recv();
    }
    let counters = pair.host.stack.counters();
    assert!(counters.drop_flow_share + counters.drop_pool_empty > 0);
}

#[test]
fn an_empty_pool_drops_payload_but_not_acknowledgements() {
    let mut pair = Pair::established(config());
    pair.host.port_sends = false;
    pair.host.send(pair.flow, b"response");
    pair.recv_one();
    let mut hoard = Vec::new();
    while pair.host.mem.free() > 1 {
        hoard.push(pair.host.mem.take_for(Owner::Guest).unwrap());
    }
    pair.ack = pair.ack.wrapping_add(8);
    assert_eq!(pair.send(ACK, b"request"), Outcome::Consumed);
    assert_eq!(pair.host.stack.counters().drop_pool_empty, 1);
    assert_eq!(pair.unacked(), 0, "the acknowledgement counted");
    // A reserve is never payload's, so that acknowledgements still get in.
    for buf in hoard.drain(..8) {
        pair.host.mem.give_from(Owner::Guest, buf);
    }
    assert_eq!(pair.send(ACK, b"request"), Outcome::Consumed);
    pair.host.mem.give_from(Owner::Guest, hoard.pop().unwrap());
    assert_eq!(pair.send(ACK, b"request"), Outcome::Readable);
}

#[test]
fn all_windows_together_promise_what_the_pool_can_hold() {
    let mut pair = Pair::listening(crate::Config { flows_max: 128, ..config() });
    let mut listed = 0;
    for i in 0..20 {
        pair.peer_port = 1000 + i;
        pair.seq = 1000;
        pair.open();
        listed += 1;
    }
    assert_eq!(pair.host.stack.flows(), listed);
    assert!(pair.host.stack.promised <= 128 * 1460 + 20 * 2 * 1460);
}

#[test]
fn old_timestamps_are_dropped_and_answered() {
    let stamp = |value| Some(Timestamps { value, echo: 0 });
    let mut pair = Pair::listening(crate::Config { timestamps: true, ..config() });
    pair.timestamps = stamp(u32::MAX - 5);
    pair.open();
    pair.timestamps = stamp(3);
    assert_eq!(pair.send(ACK, b"new"), Outcome::Readable, "it wraps");
    pair.seq += 3;
    pair.timestamps = stamp(u32::MAX);
    assert_eq!(pair.send(ACK, b"old"), Outcome::Consumed);
    assert_eq!(pair.host.stack.counters().drop_paws, 1);
    let ack = pair.recv_one();
    assert_eq!((ack.ack, ack.options.timestamps.unwrap().echo), (pair.seq, 3));
    pair.timestamps = None;
    assert_eq!(pair.send(ACK, b"none"), Outcome::Consumed);
    // After 24 days of silence the stored one says nothing.
    pair.host.pass_time(25 * 24 * 3600 * SEC);
    pair.timestamps = stamp(1);
    assert_eq!(pair.send(ACK, b"late"), Outcome::Readable);
}

#[test]
fn a_timestamp_is_noted_only_from_the_edge_that_was_acknowledged() {
    let mut pair = Pair::listening(crate::Config { timestamps: true, ..config() });
    pair.timestamps = Some(Timestamps { value: 10, echo: 0 });
    pair.open();
    pair.timestamps = Some(Timestamps { value: 20, echo: 0 });
    pair.send_ahead(5, ACK, b"early");
    assert_eq!(pair.recv_one().options.timestamps.unwrap().echo, 10);
    pair.send(ACK, b"on t!");
    assert_eq!(pair.recv_one().options.timestamps.unwrap().echo, 20);
}

#[test]
fn ping_is_answered_from_its_own_buffer() {
    use crate::checksum;
    use crate::wire::{ethernet, icmp, ipv4};
    let mut host = Host::new(config(), 4);
    for len in [0usize, 1, 56, 1472] {
        let mut frame = vec![0u8; 14 + 20 + 8 + len];
        ethernet::write(&mut frame, &HOST_MAC, &PEER_MAC, None, ethernet::IPV4);
        ipv4::write(&mut frame[14..], PEER, HOST, ipv4::ICMP, 0, 8 + len);
        frame[34] = icmp::ECHO;
        frame[38..42].copy_from_slice(&[1, 2, 3, 4]);
        for (i, byte) in frame[42..].iter_mut().enumerate() {
            *byte = i as u8;
        }
        let sum = !checksum::sum(&frame[34..]);
        frame[36..38].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(host.input(&frame), Outcome::Held);
        let replies = host.transmit();
        let reply = &replies[0];
        let ip = Packet::read(reply).unwrap();
        assert_eq!((ip.src, ip.dst), (HOST.into(), PEER.into()));
        assert_eq!(checksum::sum(&reply[34..]), 0xffff);
        assert_eq!(reply[34], icmp::ECHO_REPLY);
        assert_eq!(reply[38..], frame[38..]);
        assert_eq!(host.mem.free(), 4);
        frame[36] ^= 1;
        assert_eq!(host.input(&frame), Outcome::Consumed);
    }
}

#[test]
fn a_smaller_path_mtu_makes_smaller_segments() {
    use crate::checksum;
    use crate::wire::{ethernet, icmp, ipv4};
    let mut pair = Pair::established(config());
    let data = [5; 1400];
    pair.host.send(pair.flow, &data);
    let sent = pair.recv_one();
    let message = |seq: u32, mtu: u16| {
        let quoted = Seg { seq, ..sent.clone() }.frame();
        let mut frame = vec![0u8; 14 + 20 + 8 + 28];
        ethernet::write(&mut frame, &HOST_MAC, &PEER_MAC, None, ethernet::IPV4);
        ipv4::write(&mut frame[14..], PEER, HOST, ipv4::ICMP, 0, 36);
        frame[34] = icmp::UNREACHABLE;
        frame[35] = icmp::FRAGMENTATION_NEEDED;
        frame[40..42].copy_from_slice(&mtu.to_be_bytes());
        ipv4::write(&mut frame[42..], HOST, PEER, ipv4::TCP, 0, 1420);
        frame[62..70].copy_from_slice(&quoted[34..42]);
        let sum = !checksum::sum(&frame[34..]);
        frame[36..38].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    pair.host.input(&message(sent.seq.wrapping_sub(1), 1000));
    pair.recv_nothing();
    assert_eq!(pair.host.stack.counters().drop_icmp, 1, "it quotes nothing in flight");
    pair.host.input(&message(sent.seq, 1000));
    let lens: Vec<usize> = pair.recv().iter().map(|s| s.data.len()).collect();
    assert_eq!(lens, [960, 440]);
    pair.host.input(&message(sent.seq, 68));
    assert_eq!(pair.host.stack.flows[pair.flow.index()].mss, 512, "no smaller than is credible");
}
