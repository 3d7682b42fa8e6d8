use paste_stack::checksum;

use super::peer::{
    HEADER_LEN, Order, Peers, REQUEST_BYTE, REQUEST_LEN, RESPONSE_LEN, SYN_LEN, flag,
};

/// Where the TCP header starts.
const TCP: usize = 34;

/// Judges a segment's checksums.
fn is_right(segment: &[u8]) {
    assert_eq!(checksum::sum(&segment[14..TCP]), 0xffff, "the IP header");
    let mut covered = segment[26..].to_vec();
    covered.extend_from_slice(&[0, 6]);
    covered.extend_from_slice(&((segment.len() - TCP) as u16).to_be_bytes());
    assert_eq!(checksum::sum(&covered), 0xffff, "the segment");
}

fn number(segment: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(segment[at..at + 4].try_into().unwrap())
}

/// The header of what a server would answer to a segment, having received all
/// before `ack`.
fn answer(segment: &[u8], ack: u32) -> [u8; HEADER_LEN] {
    let mut out = [0; HEADER_LEN];
    out[30..34].copy_from_slice(&segment[26..30]);
    out[36..38].copy_from_slice(&segment[34..36]);
    out[38..42].copy_from_slice(&segment[42..46]);
    out[42..46].copy_from_slice(&ack.to_be_bytes());
    out[47] = flag::ACK;
    out[54..58].copy_from_slice(&[1, 1, 8, 10]);
    out
}

#[test]
fn checksums_are_right_and_numbers_go_on() {
    let mut peers = Peers::new(3, Order::Sequential);
    let mut syn = [0; SYN_LEN];
    peers.syn(2, &mut syn);
    is_right(&syn);
    peers.set_time(0xfffe_fffe);
    let (mut seq, mut ack) = (number(&syn, 38).wrapping_add(1), 0);
    for len in [REQUEST_LEN, 0, REQUEST_LEN] {
        let mut frame = [REQUEST_BYTE; HEADER_LEN + REQUEST_LEN];
        peers.segment(2, flag::ACK, len, &mut frame[..HEADER_LEN]);
        is_right(&frame[..HEADER_LEN + len]);
        assert_eq!((number(&frame, 38), number(&frame, 42)), (seq, ack));
        assert_eq!(
            peers.take(&answer(&frame, seq.wrapping_add(len as u32)), RESPONSE_LEN),
            (2, flag::ACK)
        );
        seq = seq.wrapping_add(len as u32);
        ack += RESPONSE_LEN as u32;
    }
}

#[test]
fn a_random_order_has_everybody_once() {
    let peers = Peers::new(1000, Order::Random);
    let mut places: Vec<usize> = (0..1000).map(|number| peers.place(number)).collect();
    assert_ne!(places[..4], [0, 1, 2, 3]);
    places.sort_unstable();
    assert!(places.into_iter().eq(0..1000));
}
