//! A small stack in a strict memory, with a guest on every channel and peers
//! that know where their flows are, so that a fuzzer's bytes come near enough to
//! matter. Everything that the stack promises is judged after every step.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use paste_abi::slot::{KEEP, SHARE};
use paste_abi::{CHANNELS_MAX, Event, Flow, Reason, Slot};
use paste_stack::config::Network;
use paste_stack::{Config, Memory, Outcome, Payload, RxCsum, RxFrame, Stack, Tx, TxBatch};

use super::bytes::Bytes;
use super::frames::{self, Around, ETHERNET, Mac, Said, Segment, TCP, flag};
use super::sharing::{SHARES_MAX, Share, is_marked};
use crate::sim::{Owner, StrictMemory};

/// Our address.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Our IPv6 address.
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
/// The VLAN that we are on, if on any.
pub const VLAN: u16 = 5;
/// Our Ethernet address.
pub const HOST_MAC: Mac = [2, 0, 0, 0, 0, 1];
/// The Ethernet address of all peers.
pub const PEER_MAC: Mac = [2, 0, 0, 0, 0, 2];
/// The port that a listener is on.
pub const PORT: u16 = 80;
/// Peers, each with one flow at most.
pub const PEERS: usize = 8;
/// Channels that have a guest.
pub const CHANNELS: u16 = 2;
/// Nanoseconds in a millisecond.
pub const MS: u64 = 1_000_000;

/// Buffers of the stack.
pub const BUFFERS: u32 = 96;
/// Bytes of each.
pub const BUFFER_SIZE: usize = 2048;
const RX_OFFSET: u16 = 64;
/// What the stack wants before payload.
pub const HEADROOM: u16 = 128;
/// Frames that a stack this small can have to send while time stands still.
const FRAMES_MAX: usize = 4096;
/// Flows whose names the guest remembers, living or dead.
const NAMES_MAX: usize = 32;

/// One peer's end of a flow, as far as frames have told.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Our port.
    pub local_port: u16,
    /// Its next sequence number.
    pub seq: u32,
    /// What it has of ours: the end of the furthest segment.
    pub ack: u32,
    /// What we have acknowledged.
    pub acked: u32,
    /// Our last timestamp, once there was one.
    pub echo: Option<u32>,
    /// What its timestamps have more than the time in ms.
    pub clock: u32,
}

/// The stack and everything around it.
#[derive(Debug)]
pub struct Bed {
    /// The stack.
    pub stack: Stack,
    /// Its buffers.
    pub mem: StrictMemory,
    /// The time.
    pub now: u64,
    /// The peers.
    pub peers: [Peer; PEERS],
    /// Names of flows that guests were told, with their channels.
    pub names: VecDeque<(u16, Flow)>,
    /// Buffers that guests have.
    pub guest: Vec<u32>,
    /// Buffers in frames that the port has not sent.
    pub unsent: Vec<u32>,
    /// Shared sends that are under way, in the order of their requests.
    pub shares: Vec<Share>,
    /// What the stack said last.
    pub said: Vec<Said>,
    out: TxBatch,
    csum: RxCsum,
    /// The stack leaves checksums to the device.
    offload: bool,
    vlan: Option<u16>,
}

impl Bed {
    /// A stack with a listener, its settings chosen by three bytes.
    pub fn new(choice: &mut Bytes<'_>) -> Bed {
        let bits = choice.u16();
        let bit = |at: u8| bits >> at & 1 != 0;
        let config = Config {
            flows_max: PEERS as u32,
            listeners_max: 4,
            neighbours_max: 4,
            time_wait_max: 3,
            send_queue_max: 6,
            shared_sends_max: SHARES_MAX,
            recv_window_max: 16 << 10,
            headroom: HEADROOM,
            rst_per_second: 8,
            echo_per_second: 4,
            ecn: !bit(6),
            timestamps: !bit(0),
            sack: !bit(1),
            header_in_buffer: bit(2),
            tx_csum_offload: bit(3),
            mtu: if bit(4) { 576 } else { 1500 },
            ipv4: Some(Network {
                address: HOST,
                prefix_len: 24,
                gateway: (!bit(5)).then_some(Ipv4Addr::new(10, 0, 0, 250)),
            }),
            ipv6: Some(Network { address: HOST6, prefix_len: 64, gateway: None }),
            accept_ra: bit(5),
            vlan: bit(9).then_some(VLAN),
            syn_per_second: if bit(7) { 2 } else { 1000 },
            syn_cookies: !bit(8),
            dad_probes: u8::from(bit(10)),
            icmp_errors_per_second: 4,
            ..Config::new(HOST_MAC, HOST, 24)
        };
        let csum = match choice.u8() % 4 {
            0 | 1 => RxCsum::Unknown,
            2 => RxCsum::Valid,
            _ => RxCsum::Partial,
        };
        let peer = |number: usize| Peer {
            // Of each family, and one each beyond the gateway.
            address: match number {
                7 => Ipv4Addr::new(192, 0, 2, 1).into(),
                6 => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1).into(),
                4 | 5 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number as u16).into(),
                _ => Ipv4Addr::new(10, 0, 0, 2 + number as u8 % 3).into(),
            },
            port: 1000 + number as u16,
            local_port: PORT,
            seq: 0xffff_f000,
            ack: 0,
            acked: 0,
            echo: None,
            clock: 0,
        };
        let mut bed = Bed {
            stack: Stack::new(config, BUFFERS, [7; 16]),
            mem: StrictMemory::new(BUFFERS, BUFFER_SIZE),
            now: 1_000_000 * MS,
            peers: std::array::from_fn(peer),
            names: VecDeque::new(),
            guest: Vec::new(),
            unsent: Vec::new(),
            shares: Vec::new(),
            said: Vec::new(),
            out: TxBatch::new(16),
            csum,
            offload: bit(3),
            vlan: bit(9).then_some(VLAN),
        };
        bed.stack.listen(0, PORT, 4).expect("the port is free");
        bed
    }

    /// Judges the stack's records, and whose the buffers are.
    pub fn check(&self) {
        let owned = |buf| self.mem.owner(buf) == Owner::Stack;
        if let Err(violation) = self.stack.audit(owned) {
            panic!("{violation}");
        }
        self.check_shares();
        let free = self.at_port().find(|&buf| self.mem.owner(buf) == Owner::Pool);
        assert_eq!(free, None, "a free buffer that the port has");
    }

    /// Buffers in frames that were not sent, whether the port took them or not.
    pub fn at_port(&self) -> impl Iterator<Item = u32> {
        let waiting = self.out.frames().iter().filter_map(|frame| frame.payload);
        waiting.map(|payload| payload.buf).chain(self.unsent.iter().copied())
    }

    /// A frame arrives, if there is a buffer for it.
    pub fn input(&mut self, frame: &[u8]) -> Outcome {
        let room = BUFFER_SIZE - usize::from(RX_OFFSET);
        let frame = &frame[..frame.len().min(room)];
        let Some(buf) = self.mem.take_for(Owner::Stack) else {
            return Outcome::Consumed;
        };
        self.mem.bytes_mut(buf, RX_OFFSET.into(), frame.len()).copy_from_slice(frame);
        let frame = RxFrame {
            buf,
            offset: RX_OFFSET,
            len: frame.len() as u16,
            csum: self.csum,
            time: self.now,
        };
        let outcome = self.stack.input(&mut self.mem, self.now, &frame);
        if matches!(outcome, Outcome::Consumed | Outcome::Foreign) {
            self.mem.give_from(Owner::Stack, buf);
        }
        self.check();
        outcome
    }

    /// The way from a peer to us.
    pub fn around(&self, peer: usize) -> Around<'static> {
        let src = self.peers[peer].address;
        Around {
            from: PEER_MAC,
            to: HOST_MAC,
            src,
            dst: if src.is_ipv4() { HOST.into() } else { HOST6.into() },
            protocol: TCP,
            extra: &[],
            vlan: self.vlan,
        }
    }

    /// A segment of a peer's, where its flow is; nothing moves.
    pub fn segment<'a>(
        &self,
        peer: usize,
        flags: u8,
        options: &'a [u8],
        payload: &'a [u8],
    ) -> Segment<'a> {
        let Peer { port, local_port, seq, ack, .. } = self.peers[peer];
        let ack = if flags & flag::ACK != 0 { ack } else { 0 };
        Segment {
            src_port: port,
            dst_port: local_port,
            seq,
            ack,
            flags,
            window: 8000,
            options,
            payload,
        }
    }

    /// The options that a peer's ordinary segment has.
    pub fn options(&self, peer: usize) -> Vec<u8> {
        let Some(echo) = self.peers[peer].echo else { return Vec::new() };
        let mut options = vec![1, 1, 8, 10];
        let time = ((self.now / MS) as u32).wrapping_add(self.peers[peer].clock);
        options.extend(time.to_be_bytes());
        options.extend(echo.to_be_bytes());
        options
    }

    /// A peer sends a segment where its flow is, and goes on.
    pub fn send(&mut self, peer: usize, flags: u8, payload: &[u8]) -> Outcome {
        let options = self.options(peer);
        let segment = self.segment(peer, flags, &options, payload).bytes();
        let control = u32::from(flags & (flag::SYN | flag::FIN) != 0);
        let at = &mut self.peers[peer].seq;
        *at = at.wrapping_add(payload.len() as u32 + control);
        let frame = frames::frame(&self.around(peer), &segment);
        self.input(&frame)
    }

    /// A peer opens a flow to the listener, with these options in its SYN.
    pub fn open(&mut self, peer: usize, options: &[u8]) {
        let state = &mut self.peers[peer];
        state.local_port = PORT;
        state.seq = state.seq.wrapping_add(100_000);
        state.echo = None;
        let syn = self.segment(peer, flag::SYN, options, &[]).bytes();
        let frame = frames::frame(&self.around(peer), &syn);
        self.input(&frame);
        self.peers[peer].seq = self.peers[peer].seq.wrapping_add(1);
        self.transmit(usize::MAX);
    }

    /// A guest polls for at most `max` slots.
    pub fn poll(&mut self, channel: u16, max: usize) -> usize {
        let mut slots = [Slot::default(); 8];
        let max = max.min(slots.len());
        let count = self.stack.poll_slots(&mut self.mem, channel, &mut slots[..max]);
        for slot in &slots[..count] {
            self.told(channel, slot);
        }
        self.check();
        count
    }

    fn told(&mut self, channel: u16, slot: &Slot) {
        match slot.as_event().expect("an event of the protocol") {
            Event::Data => {
                assert!(slot.len > 0, "an empty slot");
                let end = usize::from(slot.offset) + usize::from(slot.len);
                assert!(end <= BUFFER_SIZE, "payload beyond its buffer");
                self.mem.pass(Owner::Stack, Owner::Guest, slot.buf_idx);
                self.guest.push(slot.buf_idx);
            }
            Event::Acked if slot.modifiers & KEEP != 0 => {
                self.mem.pass(Owner::Stack, Owner::Guest, slot.buf_idx);
                self.guest.push(slot.buf_idx);
            }
            Event::Acked if slot.modifiers & SHARE != 0 => self.share_ended(channel, slot),
            Event::Accepted => self.remember(channel, slot.flow),
            Event::Reset | Event::Closed => self.no_share_is_left(slot.flow),
            _ => {}
        }
    }

    /// A guest hears of a flow.
    pub fn remember(&mut self, channel: u16, flow: Flow) {
        if self.names.len() == NAMES_MAX {
            self.names.pop_front();
        }
        self.names.push_back((channel, flow));
    }

    /// One of the flows that guests have heard of, or one that nobody has.
    pub fn name(&self, choice: usize) -> (u16, Flow) {
        self.names.get(choice % (self.names.len() + 1)).copied().unwrap_or_default()
    }

    /// A guest connects to a peer.
    pub fn connect(&mut self, channel: u16, peer: usize, port: u16) -> Result<Flow, Reason> {
        let Peer { address, port: remote, .. } = self.peers[peer];
        let remote = SocketAddr::new(address, remote);
        let flow = self.stack.connect(self.now, channel, remote, port, 5);
        if let Ok(flow) = flow {
            self.remember(channel, flow);
        }
        self.check();
        flow
    }

    /// A guest sends out of one of its buffers, or of a new one.
    pub fn guest_send(&mut self, name: (u16, Flow), tx: Tx, fresh: bool) -> Result<(), Reason> {
        let buf = if fresh { self.mem.take_for(Owner::Guest) } else { self.guest.pop() };
        let Some(buf) = buf else { return Err(Reason::NoRoom) };
        let tx = Tx { buf, ..tx };
        let sent = self.stack.send(&mut self.mem, self.now, name.0, name.1, &tx);
        match sent {
            Ok(()) => {
                assert!(!self.is_shared(buf), "buffer {buf} is given away while it is shared");
                self.mem.pass(Owner::Guest, Owner::Stack, buf);
            }
            Err(refusal) => {
                let shared = self.is_under_way(buf);
                assert!(refusal != Reason::BadRequest || shared, "buffer {buf} is not shared");
                self.guest.push(buf);
            }
        }
        self.check();
        sent
    }

    /// A guest returns one of its buffers.
    pub fn give_back(&mut self, choice: usize) {
        if self.guest.is_empty() {
            return;
        }
        let buf = self.guest.swap_remove(choice % self.guest.len());
        let sending = self.stack.release(self.now, buf);
        assert_eq!(sending, self.is_under_way(buf), "buffer {buf} is given back");
        if sending {
            self.mem.pass(Owner::Guest, Owner::Stack, buf);
            self.stack.retire(buf);
        } else {
            self.mem.give_from(Owner::Guest, buf);
        }
        self.check();
    }

    /// The guest of a channel is gone.
    pub fn close_channel(&mut self, channel: u16) {
        self.stack.close_channel(&mut self.mem, self.now, channel);
        self.shares.retain(|share| share.channel != channel);
        self.check();
    }

    /// The port takes at most `max` frames; what they say is learned.
    pub fn transmit(&mut self, max: usize) {
        let mut taken = 0;
        self.said.clear();
        while taken < max {
            self.stack.transmit(&mut self.mem, self.now, &mut self.out);
            let count = self.out.frames().len().min(max - taken);
            if count == 0 {
                break;
            }
            for at in 0..count {
                let mut bytes = self.out.frames()[at].head().to_vec();
                if let Some(Payload { buf, offset, len }) = self.out.frames()[at].payload {
                    assert!(self.mem.is_readable(buf), "buffer {buf} is sent");
                    let payload = self.mem.bytes(buf, offset.into(), len.into());
                    assert!(!self.is_shared(buf) || is_marked(buf, payload), "bytes of {buf}");
                    bytes.extend(payload);
                    self.unsent.push(buf);
                }
                assert!(bytes.len() >= ETHERNET, "a frame without a header");
                self.heard(&bytes);
            }
            self.out.consume(count);
            taken += count;
            assert!(taken <= FRAMES_MAX, "more and more frames while time stands still");
        }
        self.check();
    }

    /// The peers learn from a frame where their flows are.
    fn heard(&mut self, bytes: &[u8]) {
        let Some(said) = frames::read(bytes) else { return };
        if !self.offload {
            let mut right = bytes.to_vec();
            frames::finish(&mut right);
            assert!(bytes == right, "a checksum is wrong");
        }
        self.said.push(said);
        let to = |p: &&mut Peer| p.address == said.dst && p.port == said.dst_port;
        let Some(peer) = self.peers.iter_mut().find(to) else { return };
        let end = said.seq.wrapping_add(said.len);
        if said.flags & flag::SYN != 0 || (end.wrapping_sub(peer.ack) as i32) > 0 {
            peer.ack = end;
        }
        if said.flags & flag::SYN != 0 {
            peer.local_port = said.src_port;
        }
        peer.acked = said.ack;
        peer.echo = said.time;
    }

    /// The port reports frames as sent, the one that was chosen and those that
    /// were given before it.
    pub fn frames_sent(&mut self, count: usize, choice: usize) {
        for _ in 0..count {
            if self.unsent.is_empty() {
                break;
            }
            let buf = self.unsent.swap_remove(choice % self.unsent.len());
            self.stack.frame_sent(&mut self.mem, buf);
        }
        self.check();
    }

    /// Time passes.
    pub fn pass(&mut self, ns: u64) {
        self.now += ns;
        self.stack.advance(&mut self.mem, self.now);
        self.check();
    }

    /// Time passes until something is due, if anything is.
    pub fn pass_to_deadline(&mut self) {
        if let Some(deadline) = self.stack.next_deadline() {
            self.pass(deadline.saturating_sub(self.now));
        }
    }

    /// A whole turn: guests are told everything, what is due goes out and is sent.
    pub fn turn(&mut self) {
        for channel in 0..CHANNELS {
            while self.poll(channel, usize::MAX) > 0 {}
        }
        self.pass(0);
        self.transmit(usize::MAX);
        self.frames_sent(usize::MAX, 0);
    }

    /// Everything ends, and nothing may be left: no flow, no buffer, no timer that
    /// keeps ringing.
    pub fn wind_down(mut self) {
        self.mem.starved = false;
        for channel in 0..CHANNELS_MAX {
            self.close_channel(channel);
        }
        while !self.guest.is_empty() {
            self.give_back(0);
        }
        let mut turns = 0;
        while self.stack.flows() > 0 || !self.unsent.is_empty() {
            self.turn();
            self.pass_to_deadline();
            turns += 1;
            assert!(turns < 1000, "{} flows that never end", self.stack.flows());
        }
        // Fragments wait for others this long at most.
        self.pass(60_000 * MS);
        self.turn();
        assert_eq!(self.mem.count_of(Owner::Stack), 0, "buffers that are lost");
        assert_eq!(self.mem.free(), BUFFERS);
    }
}
