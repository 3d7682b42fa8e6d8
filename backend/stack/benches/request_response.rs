//! What one request and its response cost in the stack: a peer's request goes
//! in, the guest polls it, answers from the same buffer, and the response comes
//! out; the next request acknowledges it. Prints ns for each exchange, for
//! several numbers of flows.

use std::net::Ipv4Addr;
use std::time::Instant;

use paste_abi::{Event, Flow, Slot};
use paste_stack::{Config, Memory, Outcome, RxCsum, RxFrame, Stack, Tx, TxBatch};

const BUFFER_SIZE: usize = 2048;
const BUFFERS: u32 = 16 * 1024;
const RX_OFFSET: u16 = 64;
const REQUEST: usize = 64;
const RESPONSE: u16 = 128;
const BATCH: usize = 64;

/// A region without bookkeeping: ownership is the tests' affair.
struct Region {
    bytes: Vec<u8>,
    free: Vec<u32>,
}

impl Memory for Region {
    fn buffer_size(&self) -> usize {
        BUFFER_SIZE
    }

    fn buffer_count(&self) -> u32 {
        BUFFERS
    }

    fn free(&self) -> u32 {
        self.free.len() as u32
    }

    fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    fn give(&mut self, buf: u32) {
        self.free.push(buf);
    }

    fn read(&self, buf: u32, offset: usize, out: &mut [u8]) {
        let at = buf as usize * BUFFER_SIZE + offset;
        out.copy_from_slice(&self.bytes[at..at + out.len()]);
    }

    fn write(&mut self, buf: u32, offset: usize, data: &[u8]) {
        let at = buf as usize * BUFFER_SIZE + offset;
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }

    fn copy(&mut self, from: u32, from_offset: usize, to: u32, to_offset: usize, len: usize) {
        let from = from as usize * BUFFER_SIZE + from_offset;
        self.bytes.copy_within(from..from + len, to as usize * BUFFER_SIZE + to_offset);
    }

    fn sum(&self, buf: u32, offset: usize, len: usize) -> u16 {
        let at = buf as usize * BUFFER_SIZE + offset;
        let mut total: u64 = 0;
        for pair in self.bytes[at..at + len].chunks(2) {
            total += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }
}

/// A peer's side of one flow.
#[derive(Clone, Copy, Default)]
struct Peer {
    port: u16,
    seq: u32,
    ack: u32,
}

/// Writes a frame of the peer's into a buffer and gives its length. Checksums
/// are left to the device, but for the IP header's.
fn write_frame(mem: &mut Region, buf: u32, peer: &Peer, flags: u8, payload: usize) -> u16 {
    let mut frame = [0u8; 54 + REQUEST];
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&[8, 0]);
    let total = (40 + payload) as u16;
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[22..24].copy_from_slice(&[64, 6]);
    frame[26..34].copy_from_slice(&[10, 0, 0, 2, 10, 0, 0, 1]);
    let sum: u32 = frame[14..34].chunks(2).map(|p| u32::from(p[0]) << 8 | u32::from(p[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    frame[34..36].copy_from_slice(&peer.port.to_be_bytes());
    frame[36..38].copy_from_slice(&80u16.to_be_bytes());
    frame[38..42].copy_from_slice(&peer.seq.to_be_bytes());
    frame[42..46].copy_from_slice(&peer.ack.to_be_bytes());
    frame[46..50].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
    mem.write(buf, usize::from(RX_OFFSET), &frame[..54 + payload]);
    54 + payload as u16
}

struct World {
    stack: Stack,
    mem: Region,
    out: TxBatch,
    now: u64,
}

impl World {
    fn input(&mut self, peer: &Peer, flags: u8, payload: usize) -> Outcome {
        let buf = self.mem.take().expect("a free buffer");
        let len = write_frame(&mut self.mem, buf, peer, flags, payload);
        let frame = RxFrame { buf, offset: RX_OFFSET, len, csum: RxCsum::Valid, time: self.now };
        let outcome = self.stack.input(&mut self.mem, self.now, &frame);
        if outcome == Outcome::Consumed {
            self.mem.give(buf);
        }
        outcome
    }

    /// Lets the port take everything; gives the last frame's sequence number.
    fn transmit(&mut self) -> u32 {
        let mut seq = 0;
        loop {
            let count = self.stack.transmit(&mut self.mem, self.now, &mut self.out);
            if count == 0 {
                return seq;
            }
            for frame in self.out.frames() {
                let head = frame.head();
                seq = u32::from_be_bytes([head[38], head[39], head[40], head[41]]);
                if let Some(payload) = frame.payload {
                    self.stack.frame_sent(&mut self.mem, payload.buf);
                }
            }
            self.out.consume(count);
        }
    }
}

fn run(flows: u32, offload: bool) {
    let config = Config {
        flows_max: flows + 16,
        tx_csum_offload: offload,
        ..Config::new([2, 0, 0, 0, 0, 1], Ipv4Addr::new(10, 0, 0, 1), 24)
    };
    let mut world = World {
        stack: Stack::new(config, BUFFERS, [3; 16]),
        mem: Region {
            bytes: vec![0; BUFFERS as usize * BUFFER_SIZE],
            free: (0..BUFFERS).collect(),
        },
        out: TxBatch::new(BATCH),
        now: 1_000_000_000,
    };
    world.stack.listen(0, 80, u16::MAX).expect("the port is free");
    let mut slots = [Slot::default(); BATCH];
    let mut peers: Vec<Peer> = Vec::new();
    for i in 0..flows {
        let mut peer = Peer { port: 1024 + i as u16, seq: i, ack: 0 };
        world.input(&peer, 0x02, 0);
        peer.ack = world.transmit().wrapping_add(1);
        peer.seq += 1;
        world.input(&peer, 0x10, 0);
        let count = world.stack.poll_slots(&mut world.mem, 0, &mut slots);
        assert_eq!((count, slots[0].as_event()), (1, Some(Event::Accepted)));
        peers.push(peer);
    }
    let rounds = 2_000_000 / flows;
    let start = Instant::now();
    let mut exchanges = 0u64;
    for _ in 0..rounds {
        for batch in peers.chunks_mut(BATCH) {
            world.now += 20_000;
            for peer in batch.iter_mut() {
                let outcome = world.input(peer, 0x18, REQUEST);
                assert_eq!(outcome, Outcome::Readable);
                peer.seq = peer.seq.wrapping_add(REQUEST as u32);
                peer.ack = peer.ack.wrapping_add(u32::from(RESPONSE));
            }
            let count = world.stack.poll_slots(&mut world.mem, 0, &mut slots);
            for slot in &slots[..count] {
                let tx = Tx { buf: slot.buf_idx, offset: 128, len: RESPONSE, ..Tx::default() };
                let flow: Flow = slot.flow;
                world.stack.send(&mut world.mem, world.now, 0, flow, &tx).expect("room");
                exchanges += 1;
            }
            world.stack.advance(&mut world.mem, world.now);
            world.transmit();
        }
    }
    let ns = start.elapsed().as_nanos() as f64 / exchanges as f64;
    let checksums = if offload { "device" } else { "stack" };
    println!(
        "{flows:6} flows, TX checksums by {checksums}: {ns:6.0} ns for a request and response"
    );
}

fn main() {
    for offload in [true, false] {
        for flows in [1, 100, 10_000] {
            run(flows, offload);
        }
    }
}
