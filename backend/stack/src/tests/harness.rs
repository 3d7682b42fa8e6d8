//! A memory that knows every buffer's owner, a host around a stack, and a peer
//! that speaks one segment at a time.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::collections::HashMap;

use paste_abi::slot::{CSUM_VALID, KEEP};
use paste_abi::{Event, Flow, Reason, Slot};

use crate::checksum;
use crate::config::{Config, MS, Network};
use crate::flow::State;
use crate::frame::{Origin, RxCsum, RxFrame, TxBatch};
use crate::memory::Memory;
use crate::stack::{Outcome, Stack, Tx};
use crate::tcp::seq::Seq;
use crate::wire::arp::{self, Arp};
use crate::wire::tcp::{self, Header, Options, Timestamps};
use crate::wire::{ethernet, ip, ipv4, ipv6, ndp};

pub(super) const BUFFER_SIZE: usize = 2048;
pub(super) const RX_OFFSET: u16 = 64;
pub(super) const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(super) const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(super) const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub(super) const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 1);
pub(super) const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    Pool,
    Stack,
    Guest,
}

/// A region in a `Vec`. A buffer has exactly one owner, and giving back what is
/// not the stack's panics.
pub(super) struct Region {
    bytes: Vec<u8>,
    pub(super) owners: Vec<Owner>,
    free: Vec<u32>,
    pub(super) writes: u64,
}

impl Region {
    fn new(count: u32) -> Region {
        Region {
            bytes: vec![0; count as usize * BUFFER_SIZE],
            owners: vec![Owner::Pool; count as usize],
            free: (0..count).rev().collect(),
            writes: 0,
        }
    }

    fn range(buf: u32, offset: usize, len: usize) -> core::ops::Range<usize> {
        assert!(offset + len <= BUFFER_SIZE, "beyond the buffer: {offset} + {len}");
        let start = buf as usize * BUFFER_SIZE + offset;
        start..start + len
    }

    pub(super) fn bytes(&self, buf: u32, offset: usize, len: usize) -> &[u8] {
        &self.bytes[Region::range(buf, offset, len)]
    }

    pub(super) fn take_for(&mut self, owner: Owner) -> Option<u32> {
        let buf = self.free.pop()?;
        self.owners[buf as usize] = owner;
        Some(buf)
    }

    pub(super) fn give_from(&mut self, owner: Owner, buf: u32) {
        assert_eq!(self.owners[buf as usize], owner, "buffer {buf}");
        self.owners[buf as usize] = Owner::Pool;
        self.free.push(buf);
    }

    pub(super) fn pass(&mut self, from: Owner, to: Owner, buf: u32) {
        assert_eq!(self.owners[buf as usize], from, "buffer {buf}");
        self.owners[buf as usize] = to;
    }
}

impl Memory for Region {
    fn buffer_size(&self) -> usize {
        BUFFER_SIZE
    }

    fn buffer_count(&self) -> u32 {
        self.owners.len() as u32
    }

    fn free(&self) -> u32 {
        self.free.len() as u32
    }

    fn take(&mut self) -> Option<u32> {
        self.take_for(Owner::Stack)
    }

    fn give(&mut self, buf: u32) {
        self.give_from(Owner::Stack, buf);
    }

    fn read(&self, buf: u32, offset: usize, out: &mut [u8]) {
        out.copy_from_slice(&self.bytes[Region::range(buf, offset, out.len())]);
    }

    fn write(&mut self, buf: u32, offset: usize, data: &[u8]) {
        self.writes += 1;
        self.bytes[Region::range(buf, offset, data.len())].copy_from_slice(data);
    }

    fn copy(&mut self, from: u32, from_offset: usize, to: u32, to_offset: usize, len: usize) {
        for buf in [from, to] {
            assert_eq!(self.owners[buf as usize], Owner::Stack, "copy with buffer {buf}");
        }
        let from = Region::range(from, from_offset, len);
        self.bytes.copy_within(from, Region::range(to, to_offset, len).start);
    }

    fn sum(&self, buf: u32, offset: usize, len: usize) -> u16 {
        checksum::sum(&self.bytes[Region::range(buf, offset, len)])
    }
}

/// A stack, its region, and a guest on channel 0.
pub(super) struct Host {
    pub(super) stack: Stack,
    pub(super) mem: Region,
    pub(super) now: u64,
    batch: TxBatch,
    /// Frames that the port took before time passed, and nobody has looked at yet.
    sent: Vec<Vec<u8>>,
    /// Everything is audited after every call; off for tests of many flows.
    pub(super) audits: bool,
    /// The guest gives received buffers back at once.
    pub(super) reads: bool,
    /// The port reports frames as sent at once.
    pub(super) port_sends: bool,
    pub(super) unsent: Vec<u32>,
    /// What the device says of received checksums.
    pub(super) rx_csum: RxCsum,
    /// Slots but DATA.
    pub(super) events: Vec<Slot>,
    pub(super) data: HashMap<Flow, Vec<u8>>,
    pub(super) data_slots: Vec<Slot>,
}

pub(super) fn config() -> Config {
    Config { flows_max: 64, timestamps: false, ecn: false, ..Config::new(HOST_MAC, HOST, 24) }
}

/// The same, and IPv6.
pub(super) fn dual() -> Config {
    let ipv6 = Network { address: HOST6, prefix_len: 64, gateway: None };
    Config { ipv6: Some(ipv6), dad_probes: 0, ..config() }
}

/// The same for another host on the link.
pub(super) fn peer_config(mac: [u8; 6], address: Ipv4Addr) -> Config {
    Config { mac, ipv4: Some(Network { address, prefix_len: 24, gateway: None }), ..config() }
}

impl Host {
    pub(super) fn new(config: Config, buffers: u32) -> Host {
        Host {
            stack: Stack::new(config, buffers, [7; 16]),
            mem: Region::new(buffers),
            now: 1_000_000 * MS,
            batch: TxBatch::new(64),
            audits: true,
            reads: true,
            port_sends: true,
            sent: Vec::new(),
            unsent: Vec::new(),
            rx_csum: RxCsum::Unknown,
            events: Vec::new(),
            data: HashMap::new(),
            data_slots: Vec::new(),
        }
    }

    /// A frame arrives.
    pub(super) fn input(&mut self, frame: &[u8]) -> Outcome {
        let Some(buf) = self.mem.take_for(Owner::Stack) else {
            return Outcome::Consumed;
        };
        let at = Region::range(buf, usize::from(RX_OFFSET), frame.len());
        self.mem.bytes[at].copy_from_slice(frame);
        let frame = RxFrame {
            buf,
            offset: RX_OFFSET,
            len: frame.len() as u16,
            csum: self.rx_csum,
            time: self.now,
        };
        let outcome = self.stack.input(&mut self.mem, self.now, &frame);
        if matches!(outcome, Outcome::Consumed | Outcome::Foreign) {
            self.mem.give_from(Owner::Stack, buf);
        }
        self.check();
        outcome
    }

    /// The guest polls.
    pub(super) fn poll(&mut self) -> Vec<Slot> {
        let mut all = Vec::new();
        let mut slots = [Slot::default(); 3];
        loop {
            let count = self.stack.poll_slots(&mut self.mem, 0, &mut slots);
            for slot in &slots[..count] {
                self.told(slot);
                all.push(*slot);
            }
            if count < slots.len() {
                break;
            }
        }
        self.check();
        all
    }

    fn told(&mut self, slot: &Slot) {
        match slot.as_event().unwrap() {
            Event::Data => {
                let (buf, len) = (slot.buf_idx, usize::from(slot.len));
                self.mem.pass(Owner::Stack, Owner::Guest, buf);
                let bytes = self.mem.bytes(buf, usize::from(slot.offset), len);
                if slot.modifiers & CSUM_VALID != 0 {
                    assert_eq!(slot.csum, !checksum::sum(bytes), "payload checksum");
                }
                self.data.entry(slot.flow).or_default().extend_from_slice(bytes);
                self.data_slots.push(*slot);
                if self.reads {
                    self.give_up(buf);
                }
            }
            Event::Acked => {
                if slot.modifiers & KEEP != 0 {
                    self.mem.pass(Owner::Stack, Owner::Guest, slot.buf_idx);
                }
                self.events.push(*slot);
            }
            _ => self.events.push(*slot),
        }
    }

    /// The guest returns a buffer.
    pub(super) fn give_up(&mut self, buf: u32) {
        self.stack.release(self.now, buf);
        self.mem.give_from(Owner::Guest, buf);
    }

    /// The port takes frames; they come back as bytes.
    pub(super) fn transmit(&mut self) -> Vec<Vec<u8>> {
        let mut all = core::mem::take(&mut self.sent);
        loop {
            let count = self.stack.transmit(&mut self.mem, self.now, &mut self.batch);
            if count == 0 {
                break;
            }
            for frame in self.batch.frames() {
                assert_eq!(frame.origin, Origin::Stack);
                let mut bytes = frame.head().to_vec();
                if let Some(p) = frame.payload {
                    let (offset, len) = (usize::from(p.offset), usize::from(p.len));
                    bytes.extend_from_slice(self.mem.bytes(p.buf, offset, len));
                    self.unsent.push(p.buf);
                }
                if let Some(csum) = frame.csum {
                    let start = usize::from(csum.start);
                    let at = start + usize::from(csum.offset);
                    let sum = checksum::sum(&bytes[start..]);
                    bytes[at..at + 2].copy_from_slice(&(!sum).to_be_bytes());
                }
                all.push(bytes);
            }
            self.batch.consume(count);
        }
        if self.port_sends {
            self.frames_sent();
        }
        self.check();
        all
    }

    /// The port reports all frames as sent.
    pub(super) fn frames_sent(&mut self) {
        for buf in core::mem::take(&mut self.unsent) {
            self.stack.frame_sent(&mut self.mem, buf);
        }
        self.check();
    }

    /// The guest fills a buffer and sends it.
    pub(super) fn try_send(&mut self, flow: Flow, data: &[u8], tx: Tx) -> Result<u32, Reason> {
        let Some(buf) = self.mem.take_for(Owner::Guest) else {
            return Err(Reason::NoRoom);
        };
        let at = Region::range(buf, 128, data.len());
        self.mem.bytes[at].copy_from_slice(data);
        let tx = Tx { buf, offset: 128, len: data.len() as u16, ..tx };
        let result = self.stack.send(&mut self.mem, self.now, 0, flow, &tx);
        match result {
            Ok(()) => self.mem.pass(Owner::Guest, Owner::Stack, buf),
            Err(_) => self.mem.give_from(Owner::Guest, buf),
        }
        self.check();
        result.map(|()| buf)
    }

    pub(super) fn send(&mut self, flow: Flow, data: &[u8]) {
        self.try_send(flow, data, Tx::default()).unwrap();
    }

    /// Time passes, and with it the turn in which it had not.
    pub(super) fn pass_time(&mut self, time: u64) {
        self.sent = self.transmit();
        self.now += time;
        self.stack.advance(&mut self.mem, self.now);
        self.check();
    }

    pub(super) fn close(&mut self, flow: Flow) {
        self.stack.close(&mut self.mem, self.now, 0, flow).unwrap();
    }

    pub(super) fn state(&self, flow: Flow) -> State {
        self.stack.flows[flow.index()].state
    }

    pub(super) fn kinds(&self) -> Vec<Event> {
        self.events.iter().map(|s| s.as_event().unwrap()).collect()
    }

    fn check(&self) {
        if self.audits {
            self.audit();
        }
    }

    /// Nothing that the stack knows contradicts anything else.
    pub(super) fn audit(&self) {
        let owned = |buf: u32| self.mem.owners[buf as usize] == Owner::Stack;
        self.stack.audit(owned).unwrap_or_else(|violation| panic!("{violation}"));
    }

    /// All that is left when every flow is gone: nothing.
    pub(super) fn check_empty(&self) {
        assert_eq!(self.stack.flows(), 0);
        assert_eq!(self.stack.promised, 0);
        assert_eq!(self.stack.open, 0);
        let owned = self.mem.owners.iter().filter(|o| **o == Owner::Stack).count();
        assert_eq!(owned, 0, "leaked buffers");
    }
}

/// A segment, as the peer sends or sees it.
#[derive(Clone, Debug)]
pub(super) struct Seg {
    pub(super) v6: bool,
    pub(super) vlan: Option<u16>,
    pub(super) src_port: u16,
    pub(super) dst_port: u16,
    pub(super) flags: u8,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) window: u16,
    pub(super) options: Options,
    pub(super) data: Vec<u8>,
}

impl Seg {
    /// The frame of this segment from `PEER` to `HOST`.
    pub(super) fn frame(&self) -> Vec<u8> {
        let header = Header {
            src_port: self.src_port,
            dst_port: self.dst_port,
            seq: Seq(self.seq),
            ack: Seq(self.ack),
            flags: self.flags,
            window: self.window,
            options: self.options,
        };
        let header_len = tcp::header_len(&self.options);
        let mut segment = vec![0; header_len];
        tcp::write(&mut segment, &header);
        segment.extend(&self.data);
        let mut bytes = if self.v6 {
            frame_v6(self.vlan, PEER6, HOST6, ipv4::TCP, 64, &segment)
        } else {
            frame_v4(self.vlan, ipv4::TCP, &segment)
        };
        finish_tcp(&mut bytes);
        bytes
    }

    /// Reads a frame that the host sent, judging its checksums.
    pub(super) fn read(frame: &[u8]) -> Option<Seg> {
        let packet = Packet::read(frame).filter(|packet| packet.protocol == ipv4::TCP)?;
        let segment = &frame[packet.at..];
        let pseudo = checksum::pseudo(packet.sum, ipv4::TCP, segment.len());
        assert_eq!(checksum::add(pseudo, checksum::sum(segment)), 0xffff, "TCP checksum");
        let mut h = Header::EMPTY;
        let len = tcp::parse(segment, &mut h).unwrap();
        Some(Seg {
            v6: packet.src.is_ipv6(),
            vlan: ethernet::parse(frame).unwrap().vlan,
            src_port: h.src_port,
            dst_port: h.dst_port,
            flags: h.flags,
            seq: h.seq.0,
            ack: h.ack.0,
            window: h.window,
            options: h.options,
            data: segment[len..].to_vec(),
        })
    }
}

/// An IP packet in a frame, with nothing behind it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    pub(super) protocol: u8,
    pub(super) hop_limit: u8,
    /// Where what it carries starts in the frame.
    pub(super) at: usize,
    /// Sum of both addresses.
    pub(super) sum: u16,
}

impl Packet {
    pub(super) fn read(frame: &[u8]) -> Option<Packet> {
        let link = ethernet::parse(frame).unwrap();
        let bytes = &frame[link.len..];
        let (src, dst, protocol, hop_limit, offset, total) = match link.ethertype {
            ethernet::IPV4 => {
                let ip = ipv4::parse(bytes, bytes.len()).unwrap();
                let dst = IpAddr::V4(ipv4::destination(bytes).unwrap());
                (IpAddr::V4(ip.src), dst, ip.protocol, bytes[8], ip.header_len, ip.total_len)
            }
            ethernet::IPV6 => {
                let ip = ipv6::parse(bytes, bytes.len()).unwrap();
                let ipv6::Upper { protocol, offset, .. } = ip.upper;
                (ip.src.into(), ip.dst.into(), protocol, ip.hop_limit, offset, ip.total_len)
            }
            _ => return None,
        };
        assert_eq!(total, bytes.len());
        let sum = |address| match address {
            IpAddr::V4(address) => checksum::sum(&address.octets()),
            IpAddr::V6(address) => checksum::sum(&address.octets()),
        };
        let sum = checksum::add(sum(src), sum(dst));
        Some(Packet { src, dst, protocol, hop_limit, at: link.len + offset, sum })
    }

    /// Reads an ICMPv6 message, judging its checksum.
    pub(super) fn icmpv6(frame: &[u8]) -> Option<(Packet, &[u8])> {
        let packet = Packet::read(frame).filter(|packet| packet.protocol == ipv6::next::ICMPV6)?;
        let message = &frame[packet.at..];
        let pseudo = checksum::pseudo(packet.sum, ipv6::next::ICMPV6, message.len());
        assert_eq!(checksum::add(pseudo, checksum::sum(message)), 0xffff, "ICMPv6 checksum");
        Some((packet, message))
    }
}

/// An IPv4 packet from `PEER` to `HOST`.
pub(super) fn frame_v4(vlan: Option<u16>, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; ethernet::header_len(vlan) + ipv4::LEN];
    let at = ethernet::write(&mut bytes, &HOST_MAC, &PEER_MAC, vlan, ethernet::IPV4);
    ipv4::write(&mut bytes[at..], PEER, HOST, protocol, 0, payload.len());
    bytes.extend(payload);
    bytes
}

/// An IPv6 packet from `PEER_MAC` to `HOST_MAC`, or to the group's address.
pub(super) fn frame_v6(
    vlan: Option<u16>,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    protocol: u8,
    hop_limit: u8,
    payload: &[u8],
) -> Vec<u8> {
    let to = if dst.is_multicast() { ipv6::group_mac(&dst.octets()) } else { HOST_MAC };
    let mut bytes = vec![0; ethernet::header_len(vlan) + ipv6::LEN];
    let at = ethernet::write(&mut bytes, &to, &PEER_MAC, vlan, ethernet::IPV6);
    let (src, dst) = (&src.octets(), &dst.octets());
    let sum = checksum::add(checksum::sum(src), checksum::sum(dst));
    let header = ip::Header { src, dst, sum, v6: true, protocol, ecn: 0, hop_limit, label: 0 };
    header.write(&mut bytes[at..], payload.len());
    bytes.extend(payload);
    bytes
}

/// An ICMPv6 message from `src`, with its checksum put in.
pub(super) fn icmpv6_frame(src: Ipv6Addr, dst: Ipv6Addr, hop_limit: u8, message: &[u8]) -> Vec<u8> {
    let mut message = message.to_vec();
    message[2..4].fill(0);
    let addresses = checksum::add(checksum::sum(&src.octets()), checksum::sum(&dst.octets()));
    let pseudo = checksum::pseudo(addresses, ipv6::next::ICMPV6, message.len());
    let sum = !checksum::add(pseudo, checksum::sum(&message));
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    frame_v6(None, src, dst, ipv6::next::ICMPV6, hop_limit, &message)
}

/// A message of neighbour discovery from `src`.
pub(super) fn ndp_frame(src: Ipv6Addr, dst: Ipv6Addr, message: &ndp::Message) -> Vec<u8> {
    let mut bytes = [0; ndp::LEN_MAX];
    let len = ndp::write(&mut bytes, message);
    icmpv6_frame(src, dst, ndp::HOP_LIMIT, &bytes[..len])
}

/// Puts the right TCP checksum into a frame.
pub(super) fn finish_tcp(frame: &mut [u8]) {
    let packet = Packet::read(frame).unwrap();
    let segment = &mut frame[packet.at..];
    segment[16..18].copy_from_slice(&[0, 0]);
    let pseudo = checksum::pseudo(packet.sum, ipv4::TCP, segment.len());
    let sum = !checksum::add(pseudo, checksum::sum(segment));
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
}

/// An ARP frame from `sender`.
pub(super) fn arp_frame(op: u16, sender: Ipv4Addr, mac: [u8; 6], target: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0; ethernet::LEN + arp::LEN];
    ethernet::write(&mut bytes, &HOST_MAC, &mac, None, ethernet::ARP);
    let message = Arp { op, sender_mac: mac, sender, target_mac: HOST_MAC, target };
    arp::write(&mut bytes[ethernet::LEN..], &message);
    bytes
}

/// A host and a peer by hand, with one flow between them.
pub(super) struct Pair {
    pub(super) host: Host,
    /// The flow's name, once the guest knows it.
    pub(super) flow: Flow,
    pub(super) peer_port: u16,
    pub(super) port: u16,
    /// The peer's next number, and the host's.
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) window: u16,
    pub(super) timestamps: Option<Timestamps>,
    /// Options of the peer's SYN, besides timestamps.
    pub(super) offers: Options,
    /// It speaks IPv6.
    pub(super) v6: bool,
}

pub(super) const FIN: u8 = tcp::flag::FIN;
pub(super) const SYN: u8 = tcp::flag::SYN;
pub(super) const RST: u8 = tcp::flag::RST;
pub(super) const PSH: u8 = tcp::flag::PSH;
pub(super) const ACK: u8 = tcp::flag::ACK;

impl Pair {
    /// A listening host, and a peer that has sent nothing.
    pub(super) fn listening(config: Config) -> Pair {
        let mut host = Host::new(config, 256);
        host.stack.listen(0, 80, 8).unwrap();
        Pair {
            host,
            flow: Flow::default(),
            peer_port: 40000,
            port: 80,
            seq: 1000,
            ack: 0,
            window: 60000,
            timestamps: None,
            offers: Options { mss: Some(1460), ..Options::default() },
            v6: false,
        }
    }

    /// The same over IPv6.
    pub(super) fn over_v6(config: Config) -> Pair {
        let mut pair = Pair::listening(config);
        pair.v6 = true;
        pair.open();
        pair
    }

    /// A flow in ESTABLISHED, opened by the peer and known to the guest.
    pub(super) fn established(config: Config) -> Pair {
        let mut pair = Pair::listening(config);
        pair.open();
        pair
    }

    /// The peer opens.
    pub(super) fn open(&mut self) {
        let offers = Options { timestamps: self.timestamps, ..self.offers };
        self.send_with(SYN, offers, &[]);
        self.seq += 1;
        let syn = self.recv_one();
        assert_eq!((syn.flags, syn.ack), (SYN | ACK, self.seq));
        self.ack = syn.seq.wrapping_add(1);
        self.send(ACK, &[]);
        let slots = self.host.poll();
        assert_eq!(slots.len(), 1);
        assert_eq!(slots[0].as_event(), Some(Event::Accepted));
        self.flow = slots[0].flow;
        self.recv_nothing();
    }

    fn options(&self) -> Options {
        Options { timestamps: self.timestamps, ..Options::default() }
    }

    /// A segment at the peer's place; nothing moves.
    pub(super) fn seg(&self, flags: u8, options: Options, data: &[u8]) -> Seg {
        Seg {
            v6: self.v6,
            vlan: self.host.stack.config.vlan,
            src_port: self.peer_port,
            dst_port: self.port,
            flags,
            seq: self.seq,
            ack: if flags & ACK != 0 { self.ack } else { 0 },
            window: self.window,
            options,
            data: data.to_vec(),
        }
    }

    pub(super) fn send_with(&mut self, flags: u8, options: Options, data: &[u8]) -> Outcome {
        let seg = self.seg(flags, options, data);
        self.host.input(&seg.frame())
    }

    /// The peer sends at its place; the place does not move.
    pub(super) fn send(&mut self, flags: u8, data: &[u8]) -> Outcome {
        self.send_with(flags, self.options(), data)
    }

    /// The peer sends `ahead` bytes after its place.
    pub(super) fn send_ahead(&mut self, ahead: i32, flags: u8, data: &[u8]) -> Outcome {
        let mut seg = self.seg(flags, self.options(), data);
        seg.seq = seg.seq.wrapping_add_signed(ahead);
        self.host.input(&seg.frame())
    }

    /// The peer acknowledges `bytes` more.
    pub(super) fn ack_more(&mut self, bytes: u32) {
        self.ack = self.ack.wrapping_add(bytes);
        self.send(ACK, &[]);
    }

    /// What the host sends now.
    pub(super) fn recv(&mut self) -> Vec<Seg> {
        self.host.transmit().iter().filter_map(|f| Seg::read(f)).collect()
    }

    pub(super) fn recv_one(&mut self) -> Seg {
        let mut segs = self.recv();
        assert_eq!(segs.len(), 1, "{segs:?}");
        segs.remove(0)
    }

    pub(super) fn recv_nothing(&mut self) {
        let segs = self.recv();
        assert!(segs.is_empty(), "{segs:?}");
    }

    /// Expects one segment without payload.
    pub(super) fn recv_ack(&mut self, ack: u32) {
        let seg = self.recv_one();
        assert_eq!((seg.flags, seg.ack, seg.data.len()), (ACK, ack, 0), "{seg:?}");
    }

    pub(super) fn state(&self) -> State {
        self.host.state(self.flow)
    }

    /// Bytes that the host has queued or sent and the peer has not acknowledged.
    pub(super) fn unacked(&self) -> u32 {
        let flow = &self.host.stack.flows[self.flow.index()];
        flow.snd_end.since(flow.snd_una)
    }
}
