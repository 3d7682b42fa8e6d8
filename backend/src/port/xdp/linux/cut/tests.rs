//! Whole packets, laid out in pieces as the kernel does, cut, and put together again by
//! somebody who knows nothing of how.

use paste_pmem::{Owner, Pool};
use proptest::prelude::*;

use super::*;
use crate::port::testing::{BUFFER_SIZE, pool};

/// Bytes of a frame in one buffer, and in front of it.
const PIECE: usize = 1792;
const IN_FRONT: usize = 256;
/// Of a guest with an MTU of 9000 in buffers of 2048 bytes.
const FRAME_MAX: usize = 1965 + 18;
const LINK_MAX: usize = 9000 + 18;

const ACK_PSH: u8 = 0x18;
const FIN: u8 = 0x01;
const CWR: u8 = 0x80;
const HERE: Arrival = Arrival { is_local: true, time: 77 };
const AWAY: Arrival = Arrival { is_local: false, time: 77 };

/// What is different between packets.
#[derive(Clone, Copy, Debug)]
struct Kind {
    v6: bool,
    tagged: bool,
    protocol: u8,
}

const KINDS: [Kind; 4] = [
    Kind { v6: false, tagged: false, protocol: TCP },
    Kind { v6: true, tagged: false, protocol: TCP },
    Kind { v6: false, tagged: true, protocol: TCP },
    Kind { v6: true, tagged: true, protocol: TCP },
];

fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// The sum of addresses, protocol and length.
fn pseudo_of(frame: &[u8], kind: Kind, ip: usize, len: usize) -> u16 {
    let addresses = if kind.v6 { &frame[ip + 8..ip + 40] } else { &frame[ip + 12..ip + 20] };
    add(add(checksum::sum(addresses), kind.protocol.into()), len as u16)
}

/// A frame with a packet of this upper part, whose checksum is at `field` of it.
fn frame(kind: Kind, mut upper: Vec<u8>, field: usize) -> Vec<u8> {
    let mut frame = vec![2; 12];
    if kind.tagged {
        frame.extend([0x81, 0, 0, 7]);
    }
    let ip = frame.len() + 2;
    if kind.v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend((upper.len() as u16).to_be_bytes());
        frame.extend([kind.protocol, 64]);
        frame.extend([0xfd; 32]);
    } else {
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((20 + upper.len() as u16).to_be_bytes());
        frame.extend([0x12, 0x34, 0x40, 0, 64, kind.protocol, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = !checksum::sum(&frame[ip..]);
        frame[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
    }
    let has_pseudo = kind.v6 || kind.protocol != 1;
    let pseudo = if has_pseudo { pseudo_of(&frame, kind, ip, upper.len()) } else { 0 };
    let sum = !add(pseudo, checksum::sum(&upper));
    upper[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    frame.extend(upper);
    frame
}

/// A TCP segment with `flags` and this much payload.
fn segment(kind: Kind, flags: u8, len: usize) -> Vec<u8> {
    let mut upper = vec![0, 80, 9, 9, 0xff, 0xff, 0xf0, 0, 1, 2, 3, 4, 8 << 4, flags];
    upper.extend([1, 0, 0, 0, 0, 0, 1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8]);
    upper.extend(payload(len));
    frame(kind, upper, CSUM)
}

/// A datagram of UDP, or an echo request.
fn datagram(kind: Kind, len: usize) -> Vec<u8> {
    let mut upper = vec![0x35, 0, 9, 9, ((8 + len) >> 8) as u8, (8 + len) as u8, 0, 0];
    upper.extend(payload(len));
    frame(kind, upper, if kind.protocol == 17 { 6 } else { 2 })
}

/// Lays a frame out in pieces of these lengths, and the rest in those of the kernel's.
fn lay(pool: &mut Pool, frame: &[u8], lens: &[usize]) -> Vec<Piece> {
    let mut lens = lens.iter().copied().chain(std::iter::repeat(PIECE));
    let (mut pieces, mut left) = (Vec::new(), frame);
    while !left.is_empty() {
        let len = lens.next().unwrap().clamp(1, PIECE).min(left.len());
        let buf = pool.take(Owner::Port).unwrap();
        pool.buffers().write(buf, 0, &[0xee; BUFFER_SIZE]).unwrap();
        pool.buffers().write(buf, IN_FRONT, &left[..len]).unwrap();
        pieces.push(Piece { buf, offset: IN_FRONT as u16, len: len as u16 });
        left = &left[len..];
    }
    pieces
}

/// Frames, and the bytes of each.
type Frames = Vec<(Received, Vec<u8>)>;

/// What is made of a frame, and whether its checksum was not filled in.
fn cut(frame: &[u8], lens: &[usize], arrival: Arrival) -> Result<(Frames, bool), Refused> {
    let mut pool = pool(64);
    let mut pieces = lay(&mut pool, frame, lens);
    let before = pieces.clone();
    let mut cutter = Cutter::new(FRAME_MAX, LINK_MAX);
    let mut frames = Vec::new();
    let unfilled = cutter.cut(pool.buffers(), &mut pieces, arrival, &mut |received| {
        let frame = received.frame;
        let mut bytes = vec![0; frame.len.into()];
        pool.buffers().read(frame.buf, frame.offset.into(), &mut bytes).unwrap();
        frames.push((received, bytes));
    });
    // Nothing was told of what is refused.
    let unfilled = unfilled.inspect_err(|_| assert!(frames.is_empty()))?;
    // Each buffer is a frame's or nobody's.
    let told: Vec<_> = frames.iter().map(|(received, _)| received.frame.buf).collect();
    let free: Vec<_> = pieces.iter().filter(|piece| piece.len == 0).map(|p| p.buf).collect();
    let mut all = [told, free].concat();
    all.sort();
    let mut bufs: Vec<_> = before.iter().map(|piece| piece.buf).collect();
    bufs.sort();
    assert_eq!(all, bufs);
    assert!(frames.iter().all(|(received, _)| received.frame.offset >= RX_OFFSET));
    assert!(frames.iter().all(|(received, _)| received.frame.time == arrival.time));
    Ok((frames, unfilled))
}

/// The upper part of a frame with a whole packet, whose headers are judged.
fn upper(kind: Kind, frame: &[u8]) -> Vec<u8> {
    let ip = if kind.tagged { 18 } else { 14 };
    let packet = &frame[ip..];
    if kind.v6 {
        assert_eq!(usize::from(be16(packet, 4)), packet.len() - 40);
        packet[40..].to_vec()
    } else {
        assert_eq!(usize::from(be16(packet, 2)), packet.len());
        assert_eq!(checksum::sum(&packet[..20]), 0xffff);
        packet[20..].to_vec()
    }
}

/// Judges segments, and puts their payload together.
fn join(kind: Kind, frames: &[(Received, Vec<u8>)], verified: bool) -> Vec<u8> {
    let (mut all, mut flags) = (Vec::new(), Vec::new());
    for (index, (received, bytes)) in frames.iter().enumerate() {
        assert!(bytes.len() <= FRAME_MAX, "{}", bytes.len());
        let segment = upper(kind, bytes);
        let ip = if kind.tagged { 18 } else { 14 };
        let seq = 0xffff_f000_u32.wrapping_add(all.len() as u32);
        assert_eq!(segment[4..8], seq.to_be_bytes());
        assert_eq!(segment[8..13], [1, 2, 3, 4, 8 << 4]);
        if !kind.v6 {
            assert_eq!(be16(&bytes[ip..], 4), 0x1234 + index as u16);
        }
        let pseudo = pseudo_of(bytes, kind, ip, segment.len());
        if verified {
            assert_eq!((received.frame.csum, received.partial), (RxCsum::Valid, None));
            assert_eq!(add(pseudo, checksum::sum(&segment)), 0xffff, "segment {index}");
        } else {
            let start = (bytes.len() - segment.len()) as u16;
            let partial = Some(TxCsum { start, offset: 16 });
            assert_eq!((received.frame.csum, received.partial), (RxCsum::Partial, partial));
            assert_eq!(be16(&segment, CSUM), pseudo);
        }
        flags.push(segment[FLAGS]);
        all.extend(&segment[32..]);
    }
    let (last, others) = flags.split_last().unwrap();
    assert!(others.iter().all(|flags| flags & (FIN | 8) == 0), "{flags:?}");
    assert!(flags[1..].iter().all(|flags| flags & CWR == 0), "{flags:?}");
    assert_eq!(last & !CWR, ACK_PSH | FIN);
    all
}

/// Judges fragments, and puts the packet's upper part together.
fn reassemble(kind: Kind, frames: &[(Received, Vec<u8>)]) -> Vec<u8> {
    let mut all = Vec::new();
    let mut names = Vec::new();
    for (index, (received, bytes)) in frames.iter().enumerate() {
        assert!(bytes.len() <= FRAME_MAX, "{}", bytes.len());
        assert_eq!((received.frame.csum, received.partial), (RxCsum::Unknown, None));
        let ip = if kind.tagged { 18 } else { 14 };
        let part = upper(kind, bytes);
        let (place, more, name, data) = if kind.v6 {
            assert_eq!((bytes[ip + 6], part[0]), (44, kind.protocol));
            let word = be16(&part, 2);
            (word & 0xfff8, word & 1, part[4..8].to_vec(), &part[8..])
        } else {
            let word = be16(&bytes[ip..], 6);
            assert_eq!(word & 0x4000, 0, "it was cut");
            (word << 3, word >> 13 & 1, bytes[ip + 4..ip + 6].to_vec(), &part[..])
        };
        assert_eq!(usize::from(place), all.len());
        assert_eq!(more == 0, index + 1 == frames.len());
        names.push(name);
        all.extend(data);
    }
    names.dedup();
    assert_eq!(names.len(), 1);
    all
}

#[test]
fn a_long_segment_becomes_several() {
    for kind in KINDS {
        for len in [1800, 8948, 8949, 60_001] {
            let frame = segment(kind, ACK_PSH | FIN | CWR, len);
            let (frames, unfilled) = cut(&frame, &[], AWAY).unwrap();
            assert_eq!(frames.len(), frame.len().div_ceil(PIECE));
            assert!(!unfilled);
            assert!(join(kind, &frames, true) == payload(len), "{kind:?} {len}");
        }
    }
}

#[test]
fn headers_that_fill_a_buffer_leave_it() {
    let kind = KINDS[0];
    let frame = segment(kind, ACK_PSH | FIN, 3000);
    let head = frame.len() - 3000;
    let (frames, _) = cut(&frame, &[head], AWAY).unwrap();
    assert_eq!(frames.len(), 2);
    assert!(join(kind, &frames, true) == payload(3000));
    // Of headers that do not lie in one, nothing is known.
    assert_eq!(cut(&frame, &[30], AWAY).unwrap_err(), Refused::Long);
}

#[test]
fn one_wrong_bit_anywhere_is_found() {
    for kind in [KINDS[0], KINDS[1]] {
        let frame = segment(kind, ACK_PSH, 8000);
        // IPv6 has no sum over what is neither address nor length nor protocol; and what is
        // no IPv4 of that form is no matter of sums.
        let summed = if kind.v6 { 22 } else { 15 };
        for at in (summed..frame.len()).step_by(7).chain(summed..70).chain([frame.len() - 1]) {
            let mut wrong = frame.clone();
            wrong[at] ^= 0x10;
            assert_eq!(cut(&wrong, &[], HERE).unwrap_err(), Refused::Checksum, "{kind:?} {at}");
        }
    }
}

#[test]
fn a_checksum_that_nobody_filled_in_is_left_open() {
    for kind in KINDS {
        let mut frame = segment(kind, ACK_PSH | FIN, 20_000);
        let ip = if kind.tagged { 18 } else { 14 };
        let tcp = ip + if kind.v6 { 40 } else { 20 };
        let pseudo = pseudo_of(&frame, kind, ip, frame.len() - tcp);
        frame[tcp + CSUM..tcp + CSUM + 2].copy_from_slice(&pseudo.to_be_bytes());
        let (frames, unfilled) = cut(&frame, &[], HERE).unwrap();
        assert!(unfilled);
        assert!(join(kind, &frames, false) == payload(20_000));
        assert_eq!(cut(&frame, &[], AWAY).unwrap_err(), Refused::Unfilled);
    }
}

#[test]
fn what_is_no_segment_becomes_fragments() {
    for kind in KINDS {
        for protocol in [17, if kind.v6 { 58 } else { 1 }] {
            let kind = Kind { protocol, ..kind };
            for len in [1800, 1801, 8000, 8929] {
                let frame = datagram(kind, len);
                let (frames, unfilled) = cut(&frame, &[], AWAY).unwrap();
                assert_eq!(frames.len(), frame.len().div_ceil(PIECE));
                assert!(!unfilled);
                assert!(reassemble(kind, &frames) == upper(kind, &frame), "{kind:?} {len}");
            }
        }
        // Opens a flow, and has more to say than fits.
        let frame = segment(kind, SYN, 4000);
        let (frames, _) = cut(&frame, &[], AWAY).unwrap();
        assert!(reassemble(kind, &frames) == upper(kind, &frame));
    }
}

#[test]
fn fragments_become_smaller_ones_of_the_same_packet() {
    for (more, place) in [(true, 0u16), (true, 8888), (false, 17_776)] {
        let kind = Kind { protocol: 17, ..KINDS[0] };
        let mut whole = datagram(kind, 8000);
        let word = (place / 8) | if more { 0x2000 } else { 0 };
        whole[20..22].copy_from_slice(&word.to_be_bytes());
        whole[24..26].fill(0);
        let sum = !checksum::sum(&whole[14..34]);
        whole[24..26].copy_from_slice(&sum.to_be_bytes());
        let (frames, _) = cut(&whole, &[], HERE).unwrap();
        let mut data = Vec::new();
        for (index, (_, bytes)) in frames.iter().enumerate() {
            let word = be16(bytes, 20);
            assert_eq!(usize::from(word & PLACE) * 8, usize::from(place) + data.len());
            assert_eq!(word & MORE_FRAGMENTS != 0, more || index + 1 < frames.len());
            assert_eq!(bytes[18..20], [0x12, 0x34]);
            data.extend(upper(kind, bytes));
        }
        assert!(data == whole[34..]);

        let kind = Kind { protocol: 44, ..KINDS[1] };
        let mut body = vec![17, 0];
        body.extend((place | u16::from(more)).to_be_bytes());
        body.extend([9, 8, 7, 6]);
        body.extend(payload(8000));
        let mut whole = frame(kind, vec![0; 8008], 0);
        whole.truncate(54);
        whole.extend(body);
        let (frames, _) = cut(&whole, &[], HERE).unwrap();
        let mut data = Vec::<u8>::new();
        for (index, (_, bytes)) in frames.iter().enumerate() {
            let part = upper(kind, bytes);
            assert_eq!((part[0], &part[4..8]), (17, &[9, 8, 7, 6][..]));
            let word = be16(&part, 2);
            assert_eq!(usize::from(word & V6_PLACE), usize::from(place) + data.len());
            assert_eq!(word & V6_MORE != 0, more || index + 1 < frames.len());
            data.extend(&part[8..]);
        }
        assert!(data == payload(8000));
    }
    // None goes beyond the longest packet there is.
    let kind = Kind { protocol: 17, ..KINDS[0] };
    let mut whole = datagram(kind, 8000);
    whole[20..22].copy_from_slice(&(60_000u16 / 8).to_be_bytes());
    whole[24..26].fill(0);
    let sum = !checksum::sum(&whole[14..34]);
    whole[24..26].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(cut(&whole, &[], HERE).unwrap_err(), Refused::Long);
}

#[test]
fn a_datagrams_checksum_is_filled_in_before_it_is_cut() {
    for kind in KINDS {
        let kind = Kind { protocol: 17, ..kind };
        let right = datagram(kind, 7001);
        let (mut frame, ip) = (right.clone(), if kind.tagged { 18 } else { 14 });
        let udp = ip + if kind.v6 { 40 } else { 20 };
        let pseudo = pseudo_of(&frame, kind, ip, frame.len() - udp);
        frame[udp + 6..udp + 8].copy_from_slice(&pseudo.to_be_bytes());
        let (frames, unfilled) = cut(&frame, &[], HERE).unwrap();
        assert!(unfilled);
        assert!(reassemble(kind, &frames) == upper(kind, &right));
        assert_eq!(cut(&frame, &[], AWAY).unwrap_err(), Refused::Unfilled);
    }
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let kind = KINDS[0];
    let long = |frame: &[u8]| assert_eq!(cut(frame, &[], HERE).unwrap_err(), Refused::Long);
    let good = segment(kind, ACK_PSH, 4000);
    // Another protocol than IP, another version, options, a packet that ends elsewhere.
    for (at, byte) in [(12, 9), (14, 0x65), (14, 0x46), (16, 0xff)] {
        let mut frame = good.clone();
        frame[at] = byte;
        frame[24..26].fill(0);
        let sum = !checksum::sum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        long(&frame);
    }
    // Datagrams that a sender has joined: where they begin is not known.
    let kind = Kind { protocol: 17, ..kind };
    long(&datagram(kind, 9000));
    // Headers for all on the way.
    for next in V6_FOR_ALL {
        let mut frame = datagram(Kind { v6: true, ..kind }, 4000);
        frame[20] = next;
        long(&frame);
    }
    // Segments longer than the guest takes.
    let mut pool = pool(8);
    let cut = |pool: &Pool, frame_max, pieces: &mut [Piece]| {
        let mut told = |_| panic!("nothing is to be told");
        Cutter::new(frame_max, LINK_MAX).cut(pool.buffers(), pieces, HERE, &mut told)
    };
    let mut pieces = lay(&mut pool, &good, &[]);
    assert_eq!(cut(&pool, 1518, &mut pieces).unwrap_err(), Refused::Long);
    // No room in front of the second piece.
    let mut pieces = lay(&mut pool, &good, &[]);
    pieces[1].offset = RX_OFFSET;
    assert_eq!(cut(&pool, FRAME_MAX, &mut pieces).unwrap_err(), Refused::Place);
}

proptest! {
    /// However the pieces are laid out, the packet comes through whole, or not at all.
    #[test]
    fn any_layout_is_the_same_packet(
        kind in proptest::sample::select(&KINDS[..]),
        udp in any::<bool>(),
        len in 2000usize..9000 - 60,
        lens in proptest::collection::vec(1usize..=PIECE, 0..20),
        is_local in any::<bool>(),
    ) {
        let lens = [vec![100], lens].concat();
        let arrival = Arrival { is_local, time: 1 };
        if udp {
            let kind = Kind { protocol: 17, ..kind };
            let frame = datagram(kind, len - 10);
            let (frames, _) = cut(&frame, &lens, arrival).unwrap();
            prop_assert!(reassemble(kind, &frames) == upper(kind, &frame));
        } else {
            let frame = segment(kind, ACK_PSH | FIN | CWR, len);
            let (frames, _) = cut(&frame, &lens, arrival).unwrap();
            prop_assert!(join(kind, &frames, true) == payload(len));
        }
    }

    /// Whatever lies there, nothing breaks, and what comes of it lies in its buffers.
    #[test]
    fn whatever_comes_breaks_nothing(
        kind in proptest::sample::select(&KINDS[..]),
        protocol in any::<u8>(),
        len in 0usize..9000,
        lens in proptest::collection::vec(1usize..=PIECE, 0..20),
        wrong in proptest::collection::vec((0usize..80, any::<u8>()), 0..6),
        is_local in any::<bool>(),
    ) {
        let mut frame = segment(kind, ACK_PSH, len);
        let at = if kind.tagged { 18 } else { 14 } + if kind.v6 { 6 } else { 9 };
        if protocol < 128 {
            frame[at] = protocol;
        }
        for (at, byte) in wrong {
            frame[at] = byte;
        }
        if !kind.v6 {
            // As far as IP goes, it is right.
            let ip = if kind.tagged { 18 } else { 14 };
            frame[ip + 10..ip + 12].fill(0);
            let sum = !checksum::sum(&frame[ip..ip + 20]);
            frame[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
        }
        let _ = cut(&frame, &lens, Arrival { is_local, time: 1 });
    }
}
