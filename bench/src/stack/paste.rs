//! Our stack, with a port that is a ring of buffers and a guest that answers.

use std::ops::Range;

use paste_abi::{Event, Slot};
use paste_stack::{Config, Memory, Outcome, RxCsum, RxFrame, Stack, Tx, TxBatch};

use super::peer::{
    self, HEADER_LEN, PREFIX_LEN, Peers, REQUEST_BYTE, REQUEST_LEN, RESPONSE_LEN, SERVER,
    SERVER_MAC, SYN_LEN, flag,
};
use super::region::Region;
use super::server::{BATCH, Server};

/// Where a frame starts in its buffer.
const RX_OFFSET: u16 = 64;
/// Where the guest's payload starts in its buffer.
const TX_OFFSET: u16 = 128;
/// The byte that responses are made of.
const RESPONSE_BYTE: u8 = 0x72;
const MS: u64 = 1_000_000;

/// The stack and what is around it.
pub struct Paste {
    stack: Stack,
    mem: Region,
    /// Buffers that the port puts frames into. A device puts them into the
    /// cache; a few buffers that are used again and again are there as well.
    ring: Vec<u32>,
    out: TxBatch,
    slots: [Slot; BATCH],
    now: u64,
    step_ns: u64,
    csum: RxCsum,
}

/// A stack for `flows` flows, and buffers.
pub fn stack(flows: u32, buffers: u32, offload: bool) -> Stack {
    let config = Config {
        flows_max: flows,
        tx_csum_offload: offload,
        // All flows are opened at once.
        syn_per_second: u32::MAX,
        listener_syn_per_second: u32::MAX,
        ..Config::new(SERVER_MAC, SERVER, PREFIX_LEN)
    };
    Stack::new(config, buffers, *b"benchmark secret")
}

impl Paste {
    /// A stack for `flows` flows, whose clock goes on by `step_ns` each turn.
    /// With `offload` the device has verified checksums and completes them.
    pub fn new(flows: u32, step_ns: u64, offload: bool) -> Paste {
        // A response of each flow waits to be acknowledged; the rest is enough for
        // windows to stay open.
        let buffers = flows + 1024;
        let mut mem = Region::new(buffers);
        let ring: Vec<u32> =
            (0..BATCH).map(|_| mem.take().expect("a buffer for the ring")).collect();
        for &buf in &ring {
            let at = usize::from(RX_OFFSET) + HEADER_LEN;
            mem.bytes_mut(buf, at, REQUEST_LEN).fill(REQUEST_BYTE);
        }
        let mut stack = stack(flows, buffers, offload);
        stack.listen(0, peer::PORT, u16::MAX).expect("the port is free");
        Paste {
            stack,
            mem,
            ring,
            out: TxBatch::new(BATCH),
            slots: [Slot::default(); BATCH],
            now: 1_000 * MS,
            step_ns,
            csum: if offload { RxCsum::Valid } else { RxCsum::Unknown },
        }
    }

    /// Where the stack's tables and the buffers lie.
    pub fn memory(&self) -> impl Iterator<Item = Range<*const u8>> {
        self.stack.tables().into_iter().chain([self.mem.memory()])
    }

    fn tick(&mut self, peers: &mut Peers) {
        self.now += self.step_ns;
        peers.set_time(self.now / MS);
    }

    /// The frame of `len` bytes in a buffer.
    #[inline]
    fn frame(&self, buf: u32, len: usize) -> RxFrame {
        let (csum, time) = (self.csum, self.now);
        RxFrame { buf, offset: RX_OFFSET, len: len as u16, csum, time }
    }

    /// The port hands over a frame.
    #[inline]
    fn input(&mut self, frame: RxFrame) -> Outcome {
        let outcome = self.stack.input(&mut self.mem, self.now, &frame);
        if outcome == Outcome::Consumed {
            self.ring.push(frame.buf);
        }
        outcome
    }

    /// A segment of the peer's without payload, or a request.
    #[inline]
    fn segment(&mut self, peers: &mut Peers, place: usize, flags: u8, len: usize) -> RxFrame {
        let buf = self.ring.pop().expect("a buffer in the ring");
        let head = self.mem.bytes_mut(buf, usize::from(RX_OFFSET), HEADER_LEN);
        peers.segment(place, flags, len, head);
        self.frame(buf, HEADER_LEN + len)
    }

    fn syn(&mut self, peers: &mut Peers, place: usize) {
        let buf = self.ring.pop().expect("a buffer in the ring");
        let at = usize::from(RX_OFFSET);
        // Not where the payload lies.
        peers.syn(place, self.mem.bytes_mut(buf, at, SYN_LEN));
        assert_eq!(self.input(self.frame(buf, SYN_LEN)), Outcome::Consumed);
        let spoiled = SYN_LEN - HEADER_LEN;
        self.mem.bytes_mut(buf, at + HEADER_LEN, spoiled).fill(REQUEST_BYTE);
    }

    /// The guest polls, and answers what it is told.
    #[inline]
    fn guest(&mut self) -> usize {
        let mut answered = 0;
        loop {
            let count = self.stack.poll_slots(&mut self.mem, 0, &mut self.slots);
            for at in 0..count {
                let slot = self.slots[at];
                match slot.as_event() {
                    Some(Event::Data) => {
                        assert_eq!(usize::from(slot.len), REQUEST_LEN);
                        let buf = self.mem.take().expect("a buffer for the response");
                        self.mem
                            .bytes_mut(buf, usize::from(TX_OFFSET), RESPONSE_LEN)
                            .fill(RESPONSE_BYTE);
                        let tx = Tx {
                            buf,
                            offset: TX_OFFSET,
                            len: RESPONSE_LEN as u16,
                            ..Tx::default()
                        };
                        self.stack
                            .send(&mut self.mem, self.now, 0, slot.flow, &tx)
                            .expect("room for the response");
                        self.stack.release(self.now, slot.buf_idx);
                        self.ring.push(slot.buf_idx);
                        answered += 1;
                    }
                    Some(Event::Fin) => self
                        .stack
                        .close(&mut self.mem, self.now, 0, slot.flow)
                        .expect("a flow to close"),
                    Some(Event::Accepted | Event::Closed) => {}
                    event => panic!("an unexpected event: {event:?}"),
                }
            }
            if count < self.slots.len() {
                return answered;
            }
        }
    }

    /// Turns without frames pass, of `step_ns` each.
    pub fn pass_turns(&mut self, turns: u32, step_ns: u64) {
        for _ in 0..turns {
            self.now += step_ns;
            self.stack.advance(&mut self.mem, self.now);
        }
    }

    /// The port takes everything, and no peer gets it. Returns how many frames.
    pub fn drain(&mut self) -> usize {
        let mut sent = 0;
        loop {
            let count = self.stack.transmit(&mut self.mem, self.now, &mut self.out);
            for payload in self.out.frames().iter().filter_map(|frame| frame.payload) {
                self.stack.frame_sent(&mut self.mem, payload.buf);
            }
            self.out.consume(count);
            sent += count;
            if count == 0 {
                return sent;
            }
        }
    }

    /// The port takes everything and sends it at once.
    #[inline]
    fn transmit(&mut self, peers: &mut Peers) -> usize {
        self.stack.advance(&mut self.mem, self.now);
        let mut sent = 0;
        loop {
            let count = self.stack.transmit(&mut self.mem, self.now, &mut self.out);
            if count == 0 {
                return sent;
            }
            for payload in self.out.frames().iter().filter_map(|frame| frame.payload) {
                self.stack.frame_sent(&mut self.mem, payload.buf);
            }
            peers.timed(|peers| {
                for frame in self.out.frames() {
                    let payload = frame.payload.map_or(0, |p| usize::from(p.len));
                    peers.take(frame.head(), payload);
                }
            });
            self.out.consume(count);
            sent += count;
        }
    }
}

impl Server for Paste {
    fn open(&mut self, peers: &mut Peers, places: &[usize]) {
        self.tick(peers);
        for &place in places {
            self.syn(peers, place);
        }
        assert_eq!(self.transmit(peers), places.len(), "SYN,ACKs");
        for &place in places {
            let frame = self.segment(peers, place, flag::ACK, 0);
            assert_eq!(self.input(frame), Outcome::Consumed);
        }
        self.guest();
    }

    #[inline]
    fn exchange(&mut self, peers: &mut Peers, places: Range<usize>) {
        self.tick(peers);
        let count = places.len();
        let mut frames = [RxFrame::default(); BATCH];
        peers.timed(|peers| {
            for (frame, place) in frames.iter_mut().zip(places) {
                *frame = self.segment(peers, place, flag::ACK | flag::PSH, REQUEST_LEN);
            }
        });
        self.stack.warm(&self.mem, &frames[..count]);
        for &frame in &frames[..count] {
            assert_eq!(self.input(frame), Outcome::Readable);
        }
        assert_eq!(self.guest(), count, "requests");
        assert_eq!(self.transmit(peers), count, "responses");
    }

    fn close(&mut self, peers: &mut Peers, places: Range<usize>) {
        self.tick(peers);
        let count = places.len();
        for place in places.clone() {
            let frame = self.segment(peers, place, flag::ACK | flag::FIN, 0);
            self.input(frame);
        }
        self.guest();
        assert_eq!(self.transmit(peers), count, "FINs");
        for place in places.clone() {
            let frame = self.segment(peers, place, flag::ACK, 0);
            self.input(frame);
        }
        self.guest();
        for place in places {
            peers.restart(place);
        }
    }
}
