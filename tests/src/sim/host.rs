//! A stack with its memory and its port, on a clock of its own.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use paste_abi::Slot;
use paste_stack::{Config, Memory, Outcome, RxCsum, RxFrame, Stack, TxBatch, TxFrame};
use pasted::port::RX_OFFSET;

use super::headers;
use super::memory::{Owner, StrictMemory};

/// What a host is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The stack's settings.
    pub config: Config,
    /// Buffers of the region.
    pub buffers: u32,
    /// Bytes of one of them.
    pub buffer_size: usize,
    /// The device verifies the checksums of what arrives.
    pub rx_csum_offload: bool,
    /// Time between taking a frame and reporting it as sent.
    pub port_delay_ns: u64,
    /// Frames that the port takes at once.
    pub port_len: usize,
    /// Keys the stack's tables.
    pub secret: u64,
}

impl Setup {
    /// Its addresses, by IPv4 and by IPv6; unspecified where it has none.
    pub fn addresses(&self) -> [IpAddr; 2] {
        let v4 = self.config.ipv4.map_or(Ipv4Addr::UNSPECIFIED, |network| network.address);
        let v6 = self.config.ipv6.map_or(Ipv6Addr::UNSPECIFIED, |network| network.address);
        [v4.into(), v6.into()]
    }
}

/// A host.
#[derive(Debug)]
pub struct Host {
    /// The stack.
    pub stack: Stack,
    /// Its buffers.
    pub memory: StrictMemory,
    /// Its MTU.
    pub mtu: u16,
    /// How far its clock is ahead of the simulation's.
    pub skew_ns: i64,
    rx_csum_offload: bool,
    port_delay_ns: u64,
    port_len: usize,
    batch: TxBatch,
    /// Frames that the port has taken, and when it will have sent them.
    port: VecDeque<(u64, TxFrame)>,
    frame: Vec<u8>,
}

impl Host {
    /// A host, every buffer free.
    pub fn new(setup: Setup) -> Host {
        let mut secret = [0; 16];
        secret[..8].copy_from_slice(&setup.secret.to_le_bytes());
        Host {
            mtu: setup.config.mtu,
            stack: Stack::new(setup.config, setup.buffers, secret),
            memory: StrictMemory::new(setup.buffers, setup.buffer_size),
            skew_ns: 0,
            rx_csum_offload: setup.rx_csum_offload,
            port_delay_ns: setup.port_delay_ns,
            port_len: setup.port_len,
            batch: TxBatch::new(setup.port_len),
            port: VecDeque::new(),
            frame: Vec::new(),
        }
    }

    /// What this host's clock shows.
    pub fn clock(&self, now: u64) -> u64 {
        now.saturating_add_signed(self.skew_ns)
    }

    /// A frame arrives; `damaged` on the way or not. Returns what the stack made
    /// of it, or `None` if the port had to drop it.
    pub fn input(&mut self, now: u64, bytes: &[u8], damaged: bool) -> Option<Outcome> {
        let now = self.clock(now);
        // A full pool is a full NIC, and a long frame is no frame of this link.
        if bytes.len() > self.memory.buffer_size() - usize::from(RX_OFFSET) {
            return None;
        }
        let buf = self.memory.take_for(Owner::Stack)?;
        self.memory.bytes_mut(buf, usize::from(RX_OFFSET), bytes.len()).copy_from_slice(bytes);
        let frame = RxFrame {
            buf,
            offset: RX_OFFSET,
            len: bytes.len() as u16,
            csum: if self.rx_csum_offload && !damaged { RxCsum::Valid } else { RxCsum::Unknown },
            time: now,
        };
        let outcome = self.stack.input(&mut self.memory, now, &frame);
        if matches!(outcome, Outcome::Consumed | Outcome::Foreign) {
            self.memory.give_from(Owner::Stack, buf);
        }
        Some(outcome)
    }

    /// Runs the stack's timers.
    pub fn advance(&mut self, now: u64) {
        let now = self.clock(now);
        self.stack.advance(&mut self.memory, now);
    }

    /// What the guest of a channel is told now, as far as it fits `slots`.
    pub fn poll(&mut self, channel: u16, slots: &mut [Slot]) -> usize {
        self.stack.poll_slots(&mut self.memory, channel, slots)
    }

    /// The guest gives up a buffer that it was given, or that it kept and shared.
    pub fn release(&mut self, now: u64, buf: u32) {
        let now = self.clock(now);
        if self.stack.release(now, buf) {
            self.memory.pass(Owner::Guest, Owner::Stack, buf);
            self.stack.retire(buf);
        } else {
            self.memory.give_from(Owner::Guest, buf);
        }
    }

    /// Has the port take what is due, and send what it has had for its time.
    /// `sent` is lent each frame that goes; it returns whether the port reports
    /// the frame as sent.
    pub fn transmit(&mut self, now: u64, mut sent: impl FnMut(&mut Vec<u8>) -> bool) {
        let clock = self.clock(now);
        loop {
            let count = self.stack.transmit(&mut self.memory, clock, &mut self.batch);
            let taken = self.batch.frames().len().min(self.port_len - self.port.len());
            let due = now + self.port_delay_ns;
            self.port.extend(self.batch.frames()[..taken].iter().map(|&frame| (due, frame)));
            self.batch.consume(taken);
            let went = self.send(now, &mut sent);
            if (count == 0 && taken == 0) || went == 0 {
                return;
            }
        }
    }

    /// The port sends the frames whose time has come.
    fn send(&mut self, now: u64, sent: &mut impl FnMut(&mut Vec<u8>) -> bool) -> usize {
        let mut count = 0;
        while let Some(&(due, frame)) = self.port.front()
            && due <= now
        {
            self.port.pop_front();
            count += 1;
            self.frame.clear();
            self.frame.extend_from_slice(frame.head());
            if let Some(p) = frame.payload {
                // What the port reads must still be the stack's, or lent to it.
                assert!(self.memory.is_readable(p.buf), "buffer {} at the port", p.buf);
                let (offset, len) = (usize::from(p.offset), usize::from(p.len));
                self.frame.extend_from_slice(self.memory.bytes(p.buf, offset, len));
            }
            if frame.csum.is_some() {
                headers::finish_tcp(&mut self.frame);
            }
            if sent(&mut self.frame)
                && let Some(p) = frame.payload
            {
                self.stack.frame_sent(&mut self.memory, p.buf);
            }
        }
        count
    }

    /// When this host has to be looked at next, by the simulation's clock.
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        let timer = self.stack.next_deadline().map(|at| at.saturating_add_signed(-self.skew_ns));
        let port = self.port.front().map(|&(due, _)| due);
        let more = (self.port.is_empty() && !self.batch.is_empty()).then_some(now);
        [timer, port, more].into_iter().flatten().min()
    }

    /// Frames that the port has and has not sent.
    pub fn port_is_empty(&self) -> bool {
        self.port.is_empty() && self.batch.is_empty()
    }

    /// Whose the buffers are, and what was dropped, for messages.
    pub fn describe(&self) -> String {
        let [pool, stack, guest] =
            [Owner::Pool, Owner::Stack, Owner::Guest].map(|owner| self.memory.count_of(owner));
        let mut text = format!("buffers: {pool} free, {stack} of the stack, {guest} of the guest");
        self.stack.counters().each(|name, count| {
            if count > 0 && name.starts_with("drop") {
                text += &format!(", {name} {count}");
            }
        });
        text
    }

    /// Nothing is left: no flow, and every buffer is in the pool.
    pub fn leftovers(&self) -> Option<String> {
        let flows = self.stack.flows();
        let guest = self.memory.count_of(Owner::Guest);
        let stack = self.memory.count_of(Owner::Stack);
        if (flows, guest, stack) == (0, 0, 0) {
            return None;
        }
        Some(format!("{flows} flows, {guest} buffers of the guest's, {stack} of the stack's"))
    }
}
