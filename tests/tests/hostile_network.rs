//! A hostile neighbour on the link: whatever it sends is counted and dropped,
//! and service goes on.

#![cfg(target_os = "linux")]

use std::time::Duration;

use paste_tests::backend::{FIXED_BODY, Server};
use paste_tests::client;
use paste_tests::packet::Packets;
use paste_tests::require;
use paste_tests::require::Need;
use paste_tests::wait;
use pasted::port::wire::{Faults, Lane};

const NEEDS: [Need; 3] = [Need::Namespaces, Need::Built("pasted"), Need::Built("examples/http")];
const MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x00, 0x07, 0x0b];
const SOURCE: [u8; 4] = [10, 7, 0, 200];
const TARGET: [u8; 4] = [10, 7, 0, 11];
const TCP: u8 = 6;
const SYN: u8 = 2;
/// Connections that are begun and left; fewer than the guest's backlog.
const HALF_OPEN: u16 = 900;
const ACK: u8 = 16;
/// How long the stack waits for the rest of a datagram.
const REASSEMBLY: Duration = Duration::from_secs(2);

/// Ones' complement sum (RFC 1071), folded.
fn sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

/// An IPv4 frame for the guest with right checksums.
fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [&MAC[..], &[2, 0, 0, 0, 0, 200], &[8, 0], &[0x45, 0]].concat();
    bytes.extend((20 + payload.len() as u16).to_be_bytes());
    bytes.extend([0, 7, 0x40, 0, 64, protocol, 0, 0]);
    bytes.extend([SOURCE, TARGET].concat());
    bytes.extend(payload);
    finish(&mut bytes);
    bytes
}

/// Puts the right checksums into an IPv4 frame without IP options.
fn finish(bytes: &mut [u8]) {
    bytes[24..26].fill(0);
    let csum = !sum(&bytes[14..34], 0);
    bytes[24..26].copy_from_slice(&csum.to_be_bytes());
    if bytes[23] != TCP {
        return;
    }
    let len = (bytes.len() - 34) as u32;
    bytes[50..52].fill(0);
    let pseudo = u32::from(sum(&bytes[26..34], u32::from(TCP) + len));
    let csum = !sum(&bytes[34..], pseudo);
    bytes[50..52].copy_from_slice(&csum.to_be_bytes());
}

/// A TCP frame for port 80 of the guest.
fn tcp(flags: u8, options: &[u8], data: &[u8]) -> Vec<u8> {
    assert!(options.len().is_multiple_of(4), "options fill whole words");
    let mut segment = [&40_000u16.to_be_bytes()[..], &80u16.to_be_bytes()].concat();
    segment.extend(1_000u32.to_be_bytes());
    segment.extend(2_000u32.to_be_bytes());
    segment.extend([((20 + options.len()) as u8 / 4) << 4, flags, 0x40, 0, 0, 0, 0, 0]);
    segment.extend(options);
    segment.extend(data);
    ipv4(TCP, &segment)
}

/// The frame with other bytes at a place, and the checksums as they were.
fn with(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// Likewise, with checksums that are right for it.
fn sound(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = with(frame, at, bytes);
    finish(&mut frame);
    frame
}

/// The guest is served as if nothing were.
fn check(server: &mut Server) {
    assert!(server.backend.process.is_alive(), "pasted ended");
    let response = server.net.run(|| client::get_once(server.guest.ip(), "/"));
    let response = response.expect("the guest answers");
    assert_eq!((response.status, &*response.body), (200, FIXED_BODY));
}

/// Frames that wait in a TAP device's queue at once, well below what it holds.
const BURST: usize = 250;

/// Sends frames from the clients' end of the guest's device, no faster than they are
/// taken: what finds its queue full is lost on nobody.
fn inject(server: &Server, frames: impl IntoIterator<Item = Vec<u8>> + Send) -> u64 {
    server.net.run(|| {
        let packets = Packets::on(&server.guest.tap).expect("a packet socket");
        let mut sent = 0;
        for (number, frame) in frames.into_iter().enumerate() {
            // The kernel refuses what is shorter than an Ethernet header.
            sent += u64::from(packets.send(&frame).is_ok());
            if number % BURST == BURST - 1 {
                // It came behind them.
                client::get_once(server.guest.ip(), "/").expect("the guest answers");
            }
        }
        sent
    })
}

#[test]
fn a_neighbour_cannot_speak_to_an_application_as_its_host() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let mut server = Server::start(&[]);
    let mut stream = server.net.run(|| client::connect(server.guest.ip(), 80)).expect("a flow");
    // In the ethertype of the conversation between host and guest, to the guest alone and
    // to all: a header that is none, and every kind of message without a record.
    let forged = (0..=255u8).flat_map(|kind| {
        [MAC, [0xff; 6]].map(|to| {
            let mut bytes = [&to[..], &[2, 0, 0, 0, 0, 200], &[0x88, 0xb5, 1, kind]].concat();
            bytes.resize(60, if kind == 0 { 0xff } else { 0 });
            bytes
        })
    });
    let sent = inject(&server, forged);
    assert_eq!(sent, 512);
    let response = client::get(&mut stream, "/").expect("the flow lives");
    assert_eq!((response.status, &*response.body), (200, FIXED_BODY));
    drop(stream);
    check(&mut server);
    let guest = server.guest.clone();
    let stats = server.stop();
    assert_eq!(stats.get(&guest, "worker.plain_in_forged"), sent);
    stats.assert_no_buffer_missing(&guest);
}

#[test]
fn malformed_packets_are_counted_by_cause() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let mut server = Server::start(&[]);
    let syn = tcp(SYN, &[], &[]);
    let echo = ipv4(1, &[8, 0, 0xf7, 0xff, 0, 0, 0, 0]);
    let arp = {
        let mut bytes = [&[0xff; 6][..], &[2, 0, 0, 0, 0, 200], &[8, 6]].concat();
        bytes.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 200]);
        bytes.extend([SOURCE.as_slice(), &[0; 6], &TARGET].concat());
        bytes
    };
    let causes: [(&str, Vec<Vec<u8>>); 10] = [
        (
            "stack.drop_bad_ip",
            vec![
                with(&syn, 14, &[0x44]),
                with(&syn, 14, &[0x4f]),
                with(&syn, 14, &[0x35]),
                with(&syn, 16, &[0, 19]),
                with(&syn, 16, &[0xff, 0xff]),
            ],
        ),
        // Too short to say whose they are: the guest's plain network judges.
        ("stack.foreign", vec![syn[..15].to_vec(), syn[..33].to_vec(), arp[..41].to_vec()]),
        ("stack.drop_bad_ip_csum", vec![with(&syn, 22, &[63]), with(&syn, 24, &[0, 0])]),
        // Neither the last nor a multiple of eight bytes, and beyond any buffer.
        ("stack.drop_fragment", vec![sound(&syn, 20, &[0x20, 0]), sound(&syn, 20, &[0x1f, 0xff])]),
        ("stack.drop_protocol", vec![ipv4(17, &[0; 8]), ipv4(132, &[0; 12])]),
        (
            "stack.drop_bad_source",
            vec![
                sound(&syn, 26, &[127, 0, 0, 1]),
                sound(&syn, 26, &[224, 0, 0, 1]),
                sound(&syn, 26, &[255; 4]),
                sound(&syn, 26, &TARGET),
            ],
        ),
        (
            "stack.drop_bad_tcp",
            vec![ipv4(TCP, &syn[34..53]), sound(&syn, 46, &[0x40]), sound(&syn, 46, &[0xf0])],
        ),
        (
            "stack.drop_bad_tcp_csum",
            vec![
                with(&syn, 38, &[1]),
                with(&syn, 50, &[0, 0]),
                with(&tcp(ACK, &[], b"data"), 55, b"x"),
            ],
        ),
        (
            "stack.drop_icmp",
            vec![
                ipv4(1, &[8, 0]),
                with(&echo, 36, &[0, 0]),
                ipv4(1, &[3, 1, 0xfc, 0xfe, 0, 0, 0, 0]),
            ],
        ),
        (
            "stack.drop_arp",
            vec![
                // From our own address, from beyond the link, from a group, and
                // an answer that was not asked for.
                with(&arp, 28, &TARGET),
                with(&arp, 28, &[192, 168, 9, 9]),
                with(&arp, 22, &[0xff; 6]),
                with(&with(&arp, 20, &[0, 2]), 28, &[10, 7, 0, 201]),
            ],
        ),
    ];
    for (_, frames) in &causes {
        inject(&server, frames.iter().cloned());
        check(&mut server);
    }
    let guest = server.guest.clone();
    let stats = server.stop();
    for (counter, frames) in causes {
        let counted = stats.get(&guest, counter);
        assert!(counted >= frames.len() as u64, "{counter}: {counted} of {}", frames.len());
    }
    stats.assert_no_buffer_missing(&guest);
}

#[test]
fn bad_options_harm_nobody() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let mut server = Server::start(&[]);
    let options: [&[u8]; 12] = [
        // Lengths of 0 and 1, and beyond the header.
        &[2, 0, 0, 0],
        &[2, 1, 0, 0],
        &[2, 40, 0, 0],
        &[8, 0xff, 0, 0],
        &[1, 1, 1, 8],
        &[1, 1, 3, 3],
        // MSS of 0 and 1, a window scale beyond 14.
        &[2, 4, 0, 0],
        &[2, 4, 0, 1],
        &[3, 3, 255, 0],
        // The same option again and again, an unknown one, noise.
        &[2, 4, 5, 0xb4, 2, 4, 0, 9, 2, 4, 0xff, 0xff],
        &[254, 4, 1, 2],
        &[0xa5; 40],
    ];
    for flags in [SYN, ACK, SYN | ACK, 0, 0xff] {
        inject(&server, options.iter().map(|options| tcp(flags, options, b"payload")));
    }
    check(&mut server);
    let guest = server.guest.clone();
    server.stop().assert_no_buffer_missing(&guest);
}

#[test]
fn seeded_noise_is_survived() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let _turn = wait::turn();
    let mut server = Server::start(&[]);
    let templates = [
        tcp(SYN, &[2, 4, 5, 0xb4, 1, 3, 3, 7], &[]),
        tcp(ACK, &[1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
        tcp(ACK | 1, &[], &[]),
        tcp(ACK | 4, &[], &[]),
        ipv4(1, &[8, 0, 0, 0, 0, 1, 0, 1, 1, 2, 3, 4]),
        ipv4(1, &[&[3, 4, 0, 0, 0, 0, 2, 0][..], &tcp(SYN, &[], &[])[14..42]].concat()),
    ];
    // The wire that tests the stack is a good hand at spoiling frames as well.
    let faults = Faults { corrupt: 1.0, ..Faults::default() };
    let mut spoiler = Lane::new(faults, 42, 1514);
    let mut noise = Vec::new();
    for round in 0..20_000u64 {
        let pick = |of: u64| paste_tests::sim::pattern(9, round * 8 + of) as usize;
        let mut frame = templates[pick(0) % templates.len()].clone();
        // Headers of many kinds; then checksums right or wrong; then shorter.
        for _ in 0..1 + pick(1) % 6 {
            spoiler.push(round, &frame);
            let mut out = [0; 1514];
            let len = spoiler.pop(round, &mut out).expect("it arrives at once");
            frame = out[..len].to_vec();
        }
        frame[..6].copy_from_slice(&MAC);
        if pick(2) % 2 == 0 && frame.len() > 54 {
            finish(&mut frame);
        }
        if pick(3) % 4 == 0 {
            frame.truncate(14 + pick(4) % frame.len());
        }
        noise.push(frame);
    }
    let sent = inject(&server, noise);
    check(&mut server);
    // Fragments keep their buffers for a while.
    std::thread::sleep(REASSEMBLY + Duration::from_secs(1));
    let guest = server.guest.clone();
    let stats = server.stop();
    stats.assert_no_buffer_missing(&guest);
    assert!(sent > 15_000, "{sent} frames were sent");
    assert!(stats.sum(&guest, "stack.drop_") > 1_000);
}

#[test]
fn half_open_connections_leave_room_for_others() {
    require!(NEEDS[0], NEEDS[1], NEEDS[2]);
    let mut server = Server::start(&[]);
    let syn = tcp(SYN, &[2, 4, 5, 0xb4], &[]);
    // From ports of one neighbour that never answers.
    let openings = (0..HALF_OPEN).map(|n| sound(&syn, 34, &(10_000 + n).to_be_bytes()));
    inject(&server, openings);
    check(&mut server);
    let guest = server.guest.clone();
    let stats = server.stop();
    stats.assert_no_buffer_missing(&guest);
    assert_eq!(stats.get(&guest, "stack.drop_backlog"), 0);
}
