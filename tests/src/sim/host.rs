//! A stack with its memory at one end of a wire, and a guest on channel 0 that
//! gives received buffers back after a while.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use paste_abi::{Event, Flow, Reason, Slot};
use paste_stack::{Config, Memory, Outcome, RxCsum, RxFrame, Stack, Tx, TxBatch};
use pasted::port::RX_OFFSET;
use pasted::port::wire::{Side, Wire};

use super::{Owner, StrictMemory};

/// Where the guest puts its payload: the smallest offset that it may.
const HEADROOM: u16 = 128;
/// The largest frame, in bytes: an Ethernet header and the usual MTU.
pub(super) const FRAME_MAX: usize = 1514;
/// The longest that the guest sits on received payload, in ns.
const READ_NS_MAX: u64 = 3_000_000;

/// What the guest was told, payload taken out of its buffers.
#[derive(Debug)]
pub enum Told {
    /// Payload, in order.
    Data(Flow, Vec<u8>),
    /// Everything else.
    Event(Event, Slot),
}

/// One end.
#[derive(Debug)]
pub struct Host {
    /// The stack.
    pub stack: Stack,
    /// Its buffers.
    pub memory: StrictMemory,
    /// Its address.
    pub address: Ipv4Addr,
    side: Side,
    batch: TxBatch,
    /// Frames that the port has not reported as sent.
    unsent: Vec<u32>,
    /// Buffers that the guest has still to return, and when.
    reading: VecDeque<(u64, u32)>,
    reads: u64,
}

impl Host {
    /// A host with `buffers` buffers at this side of the wire.
    pub fn new(side: Side, buffers: u32) -> Host {
        let number = 1 + side as u8;
        let address = Ipv4Addr::new(10, 0, 0, number);
        let config = Config {
            flows_max: 2048,
            headroom: HEADROOM,
            ..Config::new([2, 0, 0, 0, 0, number], address, 24)
        };
        Host {
            stack: Stack::new(config, buffers, [number; 16]),
            memory: StrictMemory::new(buffers),
            address,
            side,
            batch: TxBatch::new(64),
            unsent: Vec::new(),
            reading: VecDeque::new(),
            reads: 0,
        }
    }

    /// Takes what has arrived by `now` off the wire.
    pub fn receive(&mut self, now: u64, wire: &mut Wire) {
        let mut bytes = [0; FRAME_MAX];
        while let Some(len) = wire.pop(now, self.side, &mut bytes) {
            // A full pool is a full NIC: the frame is lost.
            let Some(buf) = self.memory.take_for(Owner::Stack) else {
                continue;
            };
            self.memory.bytes_mut(buf, usize::from(RX_OFFSET), len).copy_from_slice(&bytes[..len]);
            let frame = RxFrame {
                buf,
                offset: RX_OFFSET,
                len: len as u16,
                csum: RxCsum::Unknown,
                time: now,
            };
            match self.stack.input(&mut self.memory, now, &frame) {
                Outcome::Readable | Outcome::Held => {}
                Outcome::Consumed | Outcome::Foreign => self.memory.give_from(Owner::Stack, buf),
            }
        }
    }

    /// Runs timers, and returns what the guest has finished reading.
    pub fn advance(&mut self, now: u64) {
        self.stack.advance(&mut self.memory, now);
        while let Some(&(at, buf)) = self.reading.front()
            && at <= now
        {
            self.reading.pop_front();
            self.stack.release(now, buf);
            self.memory.give_from(Owner::Guest, buf);
        }
    }

    /// What the guest is told now.
    pub fn poll(&mut self, now: u64) -> Vec<Told> {
        let mut told = Vec::new();
        let mut slots = [Slot::default(); 46];
        loop {
            let count = self.stack.poll_slots(&mut self.memory, 0, &mut slots);
            for slot in &slots[..count] {
                told.push(self.take(now, slot));
            }
            if count < slots.len() {
                return told;
            }
        }
    }

    fn take(&mut self, now: u64, slot: &Slot) -> Told {
        let event = slot.as_event().expect("an event of the protocol");
        if event != Event::Data {
            return Told::Event(event, *slot);
        }
        self.memory.pass(Owner::Stack, Owner::Guest, slot.buf_idx);
        let (offset, len) = (usize::from(slot.offset), usize::from(slot.len));
        let data = self.memory.bytes(slot.buf_idx, offset, len).to_vec();
        // In order, but now and then late: windows close and open again.
        self.reads += 1;
        let last = self.reading.back().map_or(now, |&(at, _)| at);
        let pause = if self.reads.is_multiple_of(512) { READ_NS_MAX } else { 0 };
        self.reading.push_back((last.max(now) + pause, slot.buf_idx));
        Told::Data(slot.flow, data)
    }

    /// Queues `len` bytes made by `fill`. `None`: the guest has its share of the
    /// buffers already. Half of them are left to what arrives, or two ends
    /// that only send would wait for each other's acknowledgements forever.
    pub fn send(
        &mut self,
        now: u64,
        flow: Flow,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Option<Result<(), Reason>> {
        if self.memory.free() <= self.memory.buffer_count() / 2 {
            return None;
        }
        let buf = self.memory.take_for(Owner::Guest)?;
        fill(self.memory.bytes_mut(buf, usize::from(HEADROOM), len));
        let tx = Tx { buf, offset: HEADROOM, len: len as u16, ..Tx::default() };
        self.memory.pass(Owner::Guest, Owner::Stack, buf);
        let sent = self.stack.send(&mut self.memory, now, 0, flow, &tx);
        if sent.is_err() {
            self.memory.give_from(Owner::Stack, buf);
        }
        Some(sent)
    }

    /// Puts what is due on the wire. Frames of the last call count as sent now.
    pub fn transmit(&mut self, now: u64, wire: &mut Wire) {
        for buf in std::mem::take(&mut self.unsent) {
            self.stack.frame_sent(&mut self.memory, buf);
        }
        loop {
            let count = self.stack.transmit(&mut self.memory, now, &mut self.batch);
            if count == 0 {
                return;
            }
            let mut bytes = Vec::with_capacity(FRAME_MAX);
            for frame in self.batch.frames() {
                bytes.clear();
                bytes.extend_from_slice(frame.head());
                if let Some(p) = frame.payload {
                    let (offset, len) = (usize::from(p.offset), usize::from(p.len));
                    bytes.extend_from_slice(self.memory.bytes(p.buf, offset, len));
                    self.unsent.push(p.buf);
                }
                wire.push(now, self.side, &bytes);
            }
            self.batch.consume(count);
        }
    }

    /// When this host has to be looked at next.
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        let reading = self.reading.front().map(|&(at, _)| at);
        let unsent = (!self.unsent.is_empty()).then_some(now);
        [self.stack.next_deadline(), reading, unsent].into_iter().flatten().min()
    }

    /// Nothing is left: no flow, and every buffer is in the pool.
    pub fn assert_empty(&self) {
        let side = self.side;
        assert_eq!(self.stack.flows(), 0, "flows at {side:?}");
        assert_eq!(self.memory.count_of(Owner::Guest), 0, "the guest's buffers at {side:?}");
        assert_eq!(self.memory.count_of(Owner::Stack), 0, "the stack's buffers at {side:?}");
    }
}
