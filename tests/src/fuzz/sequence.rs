//! Sequences of segments that are nearly right, with time, polls and requests of
//! guests between them.

use std::net::{IpAddr, Ipv6Addr};

use paste_abi::slot::Opt;
use paste_stack::Tx;

use super::bed::{Bed, CHANNELS, HOST, HOST_MAC, HOST6, MS, PEER_MAC, PEERS};
use super::bytes::Bytes;
use super::frames::{self, Around, ICMP, ICMP6, TCP, flag};
use super::sharing::{self, SHARING};

/// Steps of one run: more say nothing new and only cost time.
const STEPS_MAX: usize = 256;

/// Control bits, those that are usual more than once.
const FLAGS: [u8; 16] = [
    flag::ACK,
    flag::ACK | flag::PSH,
    flag::ACK,
    flag::ACK | flag::FIN,
    flag::SYN,
    flag::SYN | flag::ACK,
    flag::RST,
    flag::RST | flag::ACK,
    flag::ACK | 0x20,
    flag::ACK | 0x40,
    flag::ACK | 0x80,
    flag::SYN | 0xc0,
    flag::SYN | flag::FIN,
    0,
    0xff,
    flag::FIN,
];

/// Payload lengths at which something may happen.
const LENGTHS: [usize; 8] = [0, 1, 2, 100, 536, 1000, 1448, 1460];

/// The time that passes: ticks, and the stack's own times.
const TIMES: [u64; 10] = [0, 1, 5, 40, 200, 500, 1_000, 10_000, 60_000, 200_000];

/// Three bytes choose the settings, then steps follow.
pub fn sequence(data: &[u8]) {
    let mut bytes = Bytes(data);
    let mut bed = Bed::new(&mut bytes);
    let mut last = Vec::new();
    for _ in 0..STEPS_MAX {
        if bytes.is_empty() {
            break;
        }
        step(&mut bed, &mut bytes, &mut last);
    }
    bed.wind_down();
}

fn step(bed: &mut Bed, bytes: &mut Bytes<'_>, last: &mut Vec<u8>) {
    let choice = bytes.u8();
    if choice >= SHARING {
        return sharing::step(bed, bytes, choice);
    }
    match choice % 22 {
        0 => open(bed, bytes),
        1..=5 => {
            *last = segment(bed, bytes);
            bed.input(last);
        }
        6 => {
            let channel = bytes.u16() % CHANNELS;
            bed.poll(channel, bytes.below(9));
        }
        7 => {
            let name = bed.name(bytes.u8().into());
            let bits = bytes.u8();
            let tx = Tx {
                offset: if bits & 1 == 0 { 128 } else { 300 },
                len: bytes.one_of(&LENGTHS).clamp(1, 1460) as u16,
                cookie: 9,
                notify: bits & 2 != 0,
                keep: bits & 4 != 0,
                ..Tx::default()
            };
            let _ = bed.guest_send(name, tx, bits & 8 == 0);
        }
        8 => {
            let (channel, flow) = bed.name(bytes.u8().into());
            let _ = if bytes.u8().is_multiple_of(4) {
                bed.stack.abort(&mut bed.mem, bed.now, channel, flow)
            } else {
                bed.stack.close(&mut bed.mem, bed.now, channel, flow)
            };
            bed.check();
        }
        9 | 10 => bed.pass(bytes.one_of(&TIMES) * MS),
        11 if bytes.u8() == 0xff => bed.mem.starved ^= true,
        11 => bed.pass_to_deadline(),
        12 => bed.transmit(bytes.below(9)),
        13 => bed.frames_sent(bytes.below(5), bytes.u8().into()),
        14 => bed.give_back(bytes.u8().into()),
        15 => {
            unreachable(bed, bytes);
        }
        16 => arp(bed, bytes),
        20 => neighbour_discovery(bed, bytes),
        21 => fragmented(bed, bytes),
        17 => {
            let (channel, peer) = (bytes.u16() % CHANNELS, bytes.below(PEERS));
            let _ = bed.connect(channel, peer, if bytes.flag() { 0 } else { 2000 });
            bed.turn();
        }
        18 => {
            // The last frame again, a little changed, its checksum as it may be.
            if !last.is_empty() {
                let at = usize::from(bytes.u16()) % last.len();
                last[at] ^= bytes.u8();
            }
            if bytes.flag() {
                frames::finish(last);
            }
            bed.input(last);
        }
        _ => {
            let (channel, flow) = bed.name(bytes.u8().into());
            let (option, value) = match bytes.below(4) {
                0 => (Opt::KeepAlive, 1),
                1 => (Opt::KeepAlive, 0),
                2 => (Opt::UserTimeout, 500),
                _ => (Opt::UserTimeout, 0),
            };
            let _ = bed.stack.set_option(bed.now, channel, flow, option, value);
            bed.turn();
        }
    }
}

/// A peer opens a flow, and the handshake is done or not.
fn open(bed: &mut Bed, bytes: &mut Bytes<'_>) {
    let peer = bytes.below(PEERS);
    let bits = bytes.u8();
    let mut options = Vec::new();
    if bits & 1 == 0 {
        let mss: u16 = if bits & 2 == 0 { 1460 } else { bytes.one_of(&[0, 64, 536, 9000]) };
        options.extend([2, 4]);
        options.extend(mss.to_be_bytes());
    }
    if bits & 4 == 0 {
        options.extend([1, 3, 3, bytes.one_of(&[0, 2, 7, 14, 15])]);
    }
    if bits & 8 == 0 {
        options.extend([4, 2]);
    }
    if bits & 16 == 0 {
        options.extend([8, 10]);
        options.extend(((bed.now / MS) as u32).to_be_bytes());
        options.extend([0; 4]);
    }
    bed.open(peer, &options);
    if bits & 32 == 0 {
        bed.send(peer, flag::ACK, &[]);
        for channel in 0..CHANNELS {
            while bed.poll(channel, usize::MAX) > 0 {}
        }
    }
}

/// A place near one that matters.
fn near(bytes: &mut Bytes<'_>, places: &[u32]) -> u32 {
    let place = bytes.one_of(places);
    let away = match bytes.u8() % 16 {
        0..=7 => 0,
        8 => 1,
        9 => -1,
        10 => i32::from(bytes.u8()),
        11 => -i32::from(bytes.u8()),
        12 => i32::from(bytes.u16()),
        13 => 1448 * i32::from(bytes.u8() % 12),
        14 => -1448 * i32::from(bytes.u8() % 12),
        _ => bytes.u32() as i32,
    };
    place.wrapping_add_signed(away)
}

/// A segment of a peer's: where its flow is, or thereabouts.
fn segment(bed: &mut Bed, bytes: &mut Bytes<'_>) -> Vec<u8> {
    let number = bytes.below(PEERS);
    let peer = bed.peers[number];
    let bits = bytes.u8();
    let flags = bytes.one_of(&FLAGS);
    let payload = vec![bits; bytes.one_of(&LENGTHS)];
    let options = segment_options(bed, number, bytes);
    let mut segment = bed.segment(number, flags, &options, &payload);
    if bits & 1 != 0 {
        segment.seq = near(bytes, &[peer.seq, peer.acked, peer.acked.wrapping_add(16 << 10)]);
    }
    if bits & 2 != 0 {
        segment.ack = near(bytes, &[peer.ack, peer.ack.wrapping_sub(1448)]);
    }
    if bits & 4 != 0 {
        segment.window = bytes.one_of(&[0, 1, 100, 1448, 8000, 65535]);
    }
    let mut around = bed.around(number);
    let extra;
    if bits & 8 != 0 {
        extra = if peer.address.is_ipv4() {
            bytes.take(usize::from(bits >> 4)).to_vec()
        } else {
            extension_headers(bytes)
        };
        around.extra = &extra;
    }
    let inner = segment.bytes();
    let (seq, end) = (segment.seq, segment.seq.wrapping_add(payload.len() as u32));
    if bits & 0x80 == 0 && seq == peer.seq {
        let control = u32::from(flags & (flag::SYN | flag::FIN) != 0);
        bed.peers[number].seq = end.wrapping_add(control);
    }
    frames::frame(&around, &inner)
}

/// Extension headers of any kinds, before TCP.
fn extension_headers(bytes: &mut Bytes<'_>) -> Vec<u8> {
    const KINDS: [u8; 6] = [0, 60, 43, 44, 60, 51];
    let kinds: Vec<u8> = (0..1 + bytes.below(5)).map(|_| bytes.one_of(&KINDS)).collect();
    let mut out = vec![kinds[0]];
    for (at, &kind) in kinds.iter().enumerate() {
        out.push(kinds.get(at + 1).copied().unwrap_or(TCP));
        let len = if kind == 44 { 0 } else { bytes.u8() % 3 };
        out.push(len);
        let body = usize::from(len) * 8 + 6;
        let end = out.len() + body;
        out.extend(bytes.take(body));
        out.resize(end, 0);
    }
    out
}

/// A segment in fragments, in some order, of which some may be missing.
fn fragmented(bed: &mut Bed, bytes: &mut Bytes<'_>) {
    let whole = segment(bed, bytes);
    let len = 8 * (1 + bytes.below(100));
    let mut pieces = frames::fragments(&whole, len, bytes.u16() % 4);
    pieces.truncate(16);
    for _ in 0..pieces.len() {
        let piece = pieces.swap_remove(bytes.below(pieces.len()));
        if bytes.u8() != 0xff {
            bed.input(&piece);
        }
    }
}

/// A message of neighbour discovery (RFC 4861 section 4), as it should be or with
/// options of any bytes.
fn neighbour_discovery(bed: &mut Bed, bytes: &mut Bytes<'_>) {
    let kind = bytes.one_of(&[135u8, 136, 134, 133, 137, 128, 1, 2, 3]);
    let target = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, bytes.one_of(&[1, 4, 5, 9]));
    let mut inner = vec![kind, bytes.u8() % 8, 0, 0];
    inner.extend(bytes.u32().to_be_bytes());
    match kind {
        135..=137 => inner.extend(target.octets()),
        134 => inner.extend(bytes.u64().to_be_bytes()),
        _ => {}
    }
    match bytes.u8() % 4 {
        0 => {}
        1 => inner.extend([1, 1, 2, 0, 0, 0, 0, 7]),
        2 => inner.extend([2, 1, 2, 0, 0, 0, 0, 7]),
        _ => inner.extend(bytes.take(24)),
    }
    let mut around = Around { protocol: ICMP6, ..bed.around(4 + bytes.below(3)) };
    match bytes.u8() % 8 {
        // To those who have addresses that end like ours, or to everybody.
        0 => around.dst = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00, 1).into(),
        1 => around.dst = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into(),
        2 => around.src = Ipv6Addr::UNSPECIFIED.into(),
        3 => around.src = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9).into(),
        _ => {}
    }
    let mut frame = frames::frame(&around, &inner);
    // RFC 4861 section 6.1: the hop limit is 255, or it came from elsewhere.
    if bytes.u8() != 0xff {
        let ip = if around.vlan.is_some() { 18 } else { 14 };
        frame[ip + 7] = 255;
    }
    bed.input(&frame);
}

/// Options of a segment: the usual ones, SACK blocks, or any bytes.
fn segment_options(bed: &Bed, peer: usize, bytes: &mut Bytes<'_>) -> Vec<u8> {
    let mut options = bed.options(peer);
    match bytes.u8() % 8 {
        0..=3 => {}
        4 | 5 => {
            let (ack, blocks) = (bed.peers[peer].ack, 1 + bytes.below(4));
            options.extend([1, 1, 5, 2 + 8 * blocks as u8]);
            for _ in 0..blocks {
                let left = near(bytes, &[ack, ack.wrapping_sub(1448)]);
                let right = near(bytes, &[left.wrapping_add(100), left.wrapping_add(1448)]);
                options.extend(left.to_be_bytes());
                options.extend(right.to_be_bytes());
            }
        }
        6 => {
            options.clear();
            options.extend(bytes.take(40));
        }
        _ => {
            options.clear();
            options.extend([8, 10]);
            options.extend(bytes.u32().to_be_bytes());
            options.extend(bytes.u32().to_be_bytes());
        }
    }
    options
}

/// An ICMP error that quotes a segment of ours, as it was or nearly.
fn unreachable(bed: &mut Bed, bytes: &mut Bytes<'_>) {
    let number = bytes.below(PEERS);
    let peer = bed.peers[number];
    let seq = near(bytes, &[peer.ack, peer.ack.wrapping_sub(1448)]);
    let mtu = bytes.one_of(&[0u16, 68, 296, 576, 1280, 1400, 1499, 65535]);
    let mut inner = match peer.address {
        IpAddr::V4(address) => {
            let kinds = [bytes.one_of(&[3, 3, 3, 11, 12, 4]), bytes.one_of(&[4, 4, 3, 2, 1, 0])];
            let mut inner = Vec::from(kinds);
            inner.extend([0; 4]);
            inner.extend(mtu.to_be_bytes());
            inner.extend([0x45, 0, 0x05, 0xdc, 0, 0, 0x40, 0, 63, TCP, 0, 0]);
            inner.extend(HOST.octets());
            inner.extend(address.octets());
            inner
        }
        IpAddr::V6(address) => {
            let mut inner = vec![bytes.one_of(&[2, 2, 1, 3, 4]), bytes.u8() % 5, 0, 0, 0, 0];
            inner.extend(mtu.to_be_bytes());
            inner.extend([0x60, 0, 0, 0, 5, 0xb4, TCP, 63]);
            inner.extend(HOST6.octets());
            inner.extend(address.octets());
            inner
        }
    };
    inner.extend(peer.local_port.to_be_bytes());
    inner.extend(peer.port.to_be_bytes());
    inner.extend(seq.to_be_bytes());
    let more = usize::from(bytes.u8() % 16);
    inner.extend(bytes.take(more));
    let protocol = if peer.address.is_ipv4() { ICMP } else { ICMP6 };
    let around = Around { protocol, ..bed.around(number) };
    bed.input(&frames::frame(&around, &inner));
}

/// An ARP message of a peer's or a router's.
fn arp(bed: &mut Bed, bytes: &mut Bytes<'_>) {
    let mut frame = Vec::from(HOST_MAC);
    frame.extend(PEER_MAC);
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1 + bytes.u8() % 3]);
    frame.extend([2, 0, 0, 0, 0, bytes.u8() % 4]);
    frame.extend([10, 0, 0, bytes.one_of(&[2, 3, 4, 250, 1, 99])]);
    frame.extend(HOST_MAC);
    frame.extend(if bytes.u8().is_multiple_of(8) { [10, 0, 0, 9] } else { HOST.octets() });
    bed.input(&frame);
}
