//! The stack with its region and its wire: IP packets in and out, Ethernet and
//! neighbours the harness's own affair.

use core::net::IpAddr;
use std::collections::VecDeque;

use paste_abi::{Flow, Reason, Slot};
use paste_stack::{Memory, Outcome, RxCsum, RxFrame, Stack, Tx, TxBatch};

use crate::flags::Settings;
use crate::ndp;
use crate::region::{BUFFER_SIZE, HEADROOM, Region};

/// The address of every neighbour.
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ETHERNET_LEN: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ARP: [u8; 2] = [0x08, 0x06];
/// RFC 826.
const ARP_LEN: usize = 28;
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];

/// Buffers of the region: so many that a first window is as large as it gets.
const BUFFERS: u32 = 1024;
/// Frames of one batch.
const BATCH: usize = 64;
/// Packets that wait to be sniffed; a script that never looks loses the oldest.
const PACKETS_MAX: usize = 4096;

/// A packet that left the stack.
#[derive(Debug)]
pub(crate) struct Packet {
    /// When, ns.
    pub time: u64,
    pub bytes: Vec<u8>,
}

/// The stack and what it works with.
#[derive(Debug)]
pub(crate) struct Net {
    pub stack: Stack,
    region: Region,
    batch: TxBatch,
    mac: [u8; 6],
    pub packets: VecDeque<Packet>,
}

impl Net {
    pub(crate) fn new(settings: &Settings, address: IpAddr, connects: bool) -> Net {
        let config = settings.config(address, connects);
        Net {
            mac: config.mac,
            stack: Stack::new(config, BUFFERS, settings.secret()),
            region: Region::new(BUFFERS),
            batch: TxBatch::new(BATCH),
            packets: VecDeque::new(),
        }
    }

    /// An IP packet arrives. Returns whether it had the form of one.
    pub(crate) fn receive(&mut self, now: u64, packet: &[u8]) -> bool {
        let ethertype = match packet.first().map(|b| b >> 4) {
            Some(4) => IPV4,
            Some(6) => IPV6,
            _ => return false,
        };
        if packet.len() > BUFFER_SIZE - usize::from(HEADROOM) - ETHERNET_LEN {
            return false;
        }
        self.input(now, ethertype, packet);
        true
    }

    fn input(&mut self, now: u64, ethertype: [u8; 2], body: &[u8]) {
        let Some(buf) = self.region.take() else {
            return;
        };
        let at = usize::from(HEADROOM);
        let mut header = [0; ETHERNET_LEN];
        header[..6].copy_from_slice(&self.mac);
        header[6..12].copy_from_slice(&PEER_MAC);
        header[12..].copy_from_slice(&ethertype);
        self.region.write(buf, at, &header);
        self.region.write(buf, at + ETHERNET_LEN, body);
        let frame = RxFrame {
            buf,
            offset: HEADROOM,
            len: (ETHERNET_LEN + body.len()) as u16,
            csum: RxCsum::Unknown,
            time: now,
        };
        let outcome = self.stack.input(&mut self.region, now, &frame);
        if matches!(outcome, Outcome::Consumed | Outcome::Foreign) {
            self.region.give(buf);
        }
    }

    /// Lets timers that are due ring.
    pub(crate) fn advance(&mut self, now: u64) {
        self.stack.advance(&mut self.region, now);
    }

    /// What the stack has to tell.
    pub(crate) fn poll(&mut self) -> Vec<Slot> {
        let mut all = Vec::new();
        let mut slots = [Slot::default(); 32];
        loop {
            let count = self.stack.poll_slots(&mut self.region, 0, &mut slots);
            all.extend_from_slice(&slots[..count]);
            if count < slots.len() {
                return all;
            }
        }
    }

    /// Takes what the stack sends, and returns whether it was anything.
    pub(crate) fn transmit(&mut self, now: u64) -> bool {
        let mut any = false;
        loop {
            let count = self.stack.transmit(&mut self.region, now, &mut self.batch);
            if count == 0 {
                return any;
            }
            any = true;
            let mut frames = Vec::with_capacity(count);
            let mut carried = Vec::new();
            for frame in self.batch.frames() {
                let mut bytes = frame.head().to_vec();
                if let Some(p) = frame.payload {
                    let (offset, len) = (usize::from(p.offset), usize::from(p.len));
                    bytes.extend_from_slice(self.region.range(p.buf, offset, len));
                    carried.push(p.buf);
                }
                frames.push(bytes);
            }
            self.batch.consume(count);
            for buf in carried {
                self.stack.frame_sent(&mut self.region, buf);
            }
            for frame in frames {
                self.sent(now, &frame);
            }
        }
    }

    fn sent(&mut self, now: u64, frame: &[u8]) {
        let Some((header, body)) = frame.split_at_checked(ETHERNET_LEN) else {
            return;
        };
        match [header[12], header[13]] {
            IPV6 if ndp::is_ndp(body) => {
                if let Some(answer) = ndp::answer(body, &PEER_MAC) {
                    self.input(now, IPV6, &answer);
                }
            }
            IPV4 | IPV6 => {
                if self.packets.len() == PACKETS_MAX {
                    self.packets.pop_front();
                }
                self.packets.push_back(Packet { time: now, bytes: body.to_vec() });
            }
            ARP => self.answer_arp(now, body),
            _ => {}
        }
    }

    /// RFC 826: the neighbour with that address is here, whichever it is.
    fn answer_arp(&mut self, now: u64, request: &[u8]) {
        let Some(request) = request.get(..ARP_LEN).filter(|r| r[6..8] == ARP_REQUEST) else {
            return;
        };
        // The stack asks before it takes an address: nobody else has it.
        if request[14..18] == [0; 4] || request[14..18] == request[24..28] {
            return;
        }
        let mut reply = [0; ARP_LEN];
        reply.copy_from_slice(request);
        reply[6..8].copy_from_slice(&ARP_REPLY);
        reply[8..14].copy_from_slice(&PEER_MAC);
        reply[14..18].copy_from_slice(&request[24..28]);
        reply[18..28].copy_from_slice(&request[8..18]);
        self.input(now, ARP, &reply);
    }

    /// Bytes received.
    pub(crate) fn payload(&self, buf: u32, offset: u16, len: u16) -> &[u8] {
        self.region.range(buf, usize::from(offset), usize::from(len))
    }

    /// Gives up a buffer that carried received bytes.
    pub(crate) fn release(&mut self, now: u64, buf: u32) {
        self.stack.release(now, buf);
        self.region.give(buf);
    }

    /// Bytes that one slot can carry.
    pub(crate) const SLOT_MAX: usize = u16::MAX as usize - HEADROOM as usize;

    /// Gives the stack bytes to send; `cookie` comes back when they are
    /// acknowledged.
    pub(crate) fn send(
        &mut self,
        now: u64,
        flow: Flow,
        bytes: &[u8],
        cookie: u64,
    ) -> Result<(), Reason> {
        let buf = self.region.take().ok_or(Reason::NoRoom)?;
        self.region.write(buf, usize::from(HEADROOM), bytes);
        let tx = Tx {
            buf,
            offset: HEADROOM,
            len: bytes.len() as u16,
            cookie,
            notify: true,
            keep: false,
            share: false,
        };
        let sent = self.stack.send(&mut self.region, now, 0, flow, &tx);
        if sent.is_err() {
            self.region.give(buf);
        }
        sent
    }

    pub(crate) fn close(&mut self, now: u64, flow: Flow) -> Result<(), Reason> {
        self.stack.close(&mut self.region, now, 0, flow)
    }

    pub(crate) fn abort(&mut self, now: u64, flow: Flow) -> Result<(), Reason> {
        self.stack.abort(&mut self.region, now, 0, flow)
    }
}
