//! One frame of any bytes, into a stack that has a listener and flows in every
//! state.

use paste_stack::Tx;

use super::bed::{Bed, MS, PORT};
use super::bytes::Bytes;
use super::frames::{self, flag};

/// The states in which there is a flow, and the peers that have them.
const SYN_RECEIVED: usize = 0;
const ESTABLISHED: usize = 1;
const FIN_WAIT: usize = 2;
const CLOSE_WAIT: usize = 3;
const CLOSING: usize = 4;
const LAST_ACK: usize = 5;
const TIME_WAIT: usize = 6;
const SYN_SENT: usize = 7;

/// MSS, SACK permitted, timestamps, and a window scale.
const SYN_OPTIONS: [u8; 20] = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 15, 66, 64, 0, 0, 0, 0, 1, 3, 3, 2];

/// The first byte says whether checksums are made right, three more choose
/// the settings; the rest is the frame.
pub fn packet(data: &[u8]) {
    let mut bytes = Bytes(data);
    let finish = bytes.flag();
    let mut bed = Bed::new(&mut bytes);
    every_state(&mut bed);
    let mut frame = bytes.0.to_vec();
    if finish {
        frames::finish(&mut frame);
    }
    bed.input(&frame);
    bed.turn();
    bed.pass(50 * MS);
    bed.turn();
    // Once more: what was new is old now.
    bed.input(&frame);
    bed.turn();
    bed.wind_down();
}

fn established(bed: &mut Bed, peer: usize) -> (u16, paste_abi::Flow) {
    bed.open(peer, &SYN_OPTIONS);
    bed.send(peer, flag::ACK, &[]);
    bed.turn();
    *bed.names.back().expect("a flow that was accepted")
}

/// Opens flows and takes each to another state.
fn every_state(bed: &mut Bed) {
    let tx = Tx { offset: 200, len: 300, notify: true, ..Tx::default() };
    bed.open(SYN_RECEIVED, &SYN_OPTIONS);

    // With payload of ours in flight, and payload of the peer's held.
    let name = established(bed, ESTABLISHED);
    for _ in 0..2 {
        let _ = bed.guest_send(name, tx, true);
    }
    bed.transmit(usize::MAX);
    bed.peers[ESTABLISHED].seq = bed.peers[ESTABLISHED].seq.wrapping_add(100);
    bed.send(ESTABLISHED, flag::ACK, &[1; 100]);
    bed.peers[ESTABLISHED].seq = bed.peers[ESTABLISHED].seq.wrapping_sub(200);

    for peer in [FIN_WAIT, CLOSING, TIME_WAIT] {
        let (channel, flow) = established(bed, peer);
        let _ = bed.stack.close(&mut bed.mem, bed.now, channel, flow);
        let before = bed.peers[peer].ack;
        bed.transmit(usize::MAX);
        let after = bed.peers[peer].ack;
        match peer {
            CLOSING => {
                // The peer's FIN crosses ours.
                bed.peers[peer].ack = before;
                bed.send(peer, flag::ACK | flag::FIN, &[]);
                bed.peers[peer].ack = after;
            }
            TIME_WAIT => {
                bed.send(peer, flag::ACK | flag::FIN, &[]);
            }
            _ => {
                bed.send(peer, flag::ACK, &[]);
            }
        }
    }
    for peer in [CLOSE_WAIT, LAST_ACK] {
        let (channel, flow) = established(bed, peer);
        bed.send(peer, flag::ACK | flag::FIN, &[]);
        if peer == LAST_ACK {
            let _ = bed.stack.close(&mut bed.mem, bed.now, channel, flow);
        }
    }
    let _ = bed.connect(1, SYN_SENT, PORT + 1);
    bed.turn();
}
