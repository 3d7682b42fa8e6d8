//! A third station on the link that does its worst. It knows addresses and
//! ports, but sees nothing of what others say: it is blind (RFC 5961).

use std::net::{IpAddr, Ipv4Addr};

use paste_stack::config::{MS, SEC};

use super::headers::{self, Mac, Segment, flag};
use super::scenario::{CHANNELS, Draw, PORT, PORT_FIRST, START, Scenario};

/// Its Ethernet address.
pub const MAC: Mac = [2, 0, 0, 0, 0, 0x66];
/// Its IP address, when it does not hide it.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 66);
/// Frames of one run.
const FRAMES: u64 = 400;
/// Flows that it opens under its own name.
const FLOWS: u16 = 8;

/// What it is busy with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    /// RSTs, SYNs and payload with numbers out of the air, into flows of others.
    Injection,
    /// SYNs from everywhere.
    SynFlood,
    /// Flows of its own, which send a byte at a time, in order or with holes.
    TinySegments,
    /// Segments that make no sense.
    Nonsense,
}

/// The adversary.
#[derive(Debug)]
pub struct Adversary {
    draw: Draw,
    deed: Deed,
    next: u64,
    left: u64,
    pause: u64,
    /// Of each host its addresses.
    hosts: [(Mac, [IpAddr; 2]); 2],
    vlan: Option<u16>,
    /// Frames that it has ready: to which host.
    out: Vec<(usize, Vec<u8>)>,
    /// Its own flows: host, port, next number, what it acknowledges.
    flows: Vec<(usize, u16, u32, u32)>,
}

impl Adversary {
    /// The scenario's, if it has one.
    pub fn of(scenario: &Scenario) -> Option<Adversary> {
        let mut draw = Draw::new(scenario.seed ^ 0x6576_696c);
        let deeds = [Deed::Injection, Deed::SynFlood, Deed::TinySegments, Deed::Nonsense];
        scenario.adversary.then(|| Adversary {
            deed: draw.one(&deeds),
            next: START + draw.spread(MS, SEC),
            left: FRAMES,
            pause: draw.spread(10_000, 50 * MS),
            hosts: scenario.setups.each_ref().map(|s| (s.config.mac, s.addresses())),
            vlan: scenario.setups[0].config.vlan,
            out: Vec::new(),
            flows: Vec::new(),
            draw,
        })
    }

    /// Whether it speaks in the names of others, who may believe it.
    pub fn impersonates(&self) -> bool {
        matches!(self.deed, Deed::Injection | Deed::Nonsense)
    }

    /// When it does something next.
    pub fn next_deadline(&self) -> Option<u64> {
        (self.left > 0).then_some(self.next)
    }

    /// What it sends now, and to which host.
    pub fn step(&mut self, now: u64) -> Vec<(usize, Vec<u8>)> {
        while self.left > 0 && self.next <= now {
            self.next += 1 + self.draw.range(0, 2 * self.pause);
            self.left -= 1;
            let to = self.draw.range(0, 1) as usize;
            let frame = match self.deed {
                Deed::Injection => self.injection(to),
                Deed::SynFlood => self.syn(to),
                Deed::TinySegments => self.tiny(to),
                Deed::Nonsense => self.nonsense(to),
            };
            self.out.push((to, frame));
        }
        std::mem::take(&mut self.out)
    }

    /// A host sends it a frame: it takes part in a handshake and nothing else.
    pub fn input(&mut self, from: usize, frame: &[u8]) {
        let Some(segment) = headers::parse(frame) else { return };
        if self.deed != Deed::TinySegments || !segment.has(flag::SYN) {
            return;
        }
        let known =
            |flow: &&mut (usize, u16, u32, u32)| (flow.0, flow.1) == (from, segment.dst_port);
        if let Some(flow) = self.flows.iter_mut().find(known) {
            flow.2 = segment.ack;
            flow.3 = segment.seq.wrapping_add(1);
        }
    }

    fn frame(&mut self, to: usize, segment: &Segment, payload: &[u8]) -> Vec<u8> {
        let mut frame = headers::tcp_frame(MAC, self.hosts[to].0, segment, payload);
        if let Some(vlan) = self.vlan {
            headers::tag(&mut frame, vlan);
        }
        frame
    }

    /// A segment from somewhere, with numbers out of the air.
    fn any(&mut self, to: usize, src: IpAddr, flags: u8) -> Segment {
        Segment {
            src,
            dst: self.hosts[to].1[usize::from(src.is_ipv6())],
            src_port: self.draw.range(1_024, 65_535) as u16,
            dst_port: PORT + self.draw.range(0, u64::from(CHANNELS) - 1) as u16,
            seq: self.draw.word() as u32,
            ack: self.draw.word() as u32,
            flags,
            window: self.draw.word() as u16,
            payload_len: 0,
            options_len: 0,
            mss: None,
            scale: None,
            timestamps: None,
        }
    }

    fn injection(&mut self, to: usize) -> Vec<u8> {
        let flags = self.draw.one(&[
            flag::RST,
            flag::RST | flag::ACK,
            flag::SYN,
            flag::SYN | flag::ACK,
            flag::ACK,
            flag::ACK | flag::FIN,
            flag::ACK | flag::PSH,
        ]);
        let family = self.draw.range(0, 1) as usize;
        let peer = self.hosts[1 - to].1[family];
        let mut segment = self.any(to, peer, flags);
        let active = PORT_FIRST + 1 + self.draw.range(0, 16) as u16;
        if self.draw.chance(0.5) {
            segment.src_port = active;
        } else {
            (segment.src_port, segment.dst_port) = (segment.dst_port, active);
        }
        let payload = if flags & flag::PSH != 0 { &b"evil"[..] } else { &[] };
        self.frame(to, &segment, payload)
    }

    fn syn(&mut self, to: usize) -> Vec<u8> {
        // Some of the addresses are on the link, and nobody answers there.
        let word = self.draw.word() as u32;
        let near = Ipv4Addr::new(10, 0, 0, 100 + (word % 100) as u8);
        let far = Ipv4Addr::new(172, 16, (word >> 8) as u8, (word >> 16) as u8 | 1);
        let src = if self.draw.chance(0.5) { near } else { far };
        let segment = self.any(to, src.into(), flag::SYN);
        self.frame(to, &segment, &[])
    }

    fn tiny(&mut self, to: usize) -> Vec<u8> {
        let mine = self.draw.range(0, u64::from(FLOWS) - 1) as u16;
        let port = 20_000 + mine;
        let ours = self.flows.iter().position(|flow| (flow.0, flow.1) == (to, port));
        let Some(index) = ours else {
            let mut segment = self.any(to, ADDRESS.into(), flag::SYN);
            segment.src_port = port;
            self.flows.push((to, port, segment.seq.wrapping_add(1), 0));
            return self.frame(to, &segment, &[]);
        };
        let (_, _, seq, ack) = self.flows[index];
        let mut segment = self.any(to, ADDRESS.into(), flag::ACK);
        let hole = if mine.is_multiple_of(2) { 0 } else { 2 * self.draw.range(1, 200) as u32 };
        (segment.src_port, segment.seq, segment.ack) = (port, seq.wrapping_add(hole), ack);
        if hole == 0 {
            self.flows[index].2 = seq.wrapping_add(1);
        }
        self.frame(to, &segment, b"x")
    }

    fn nonsense(&mut self, to: usize) -> Vec<u8> {
        let flags = self.draw.word() as u8;
        let src =
            self.draw.one(&[IpAddr::from(ADDRESS), self.hosts[1 - to].1[0], self.hosts[to].1[1]]);
        let segment = self.any(to, src, flags);
        let payload = vec![0; self.draw.range(0, 64) as usize];
        let mut frame = self.frame(to, &segment, &payload);
        let (count, long) = (self.draw.range(1, 8), frame.len() as u64 - 1);
        for _ in 0..count {
            let at = self.draw.range(0, long) as usize;
            frame[at] = self.draw.word() as u8;
        }
        if self.draw.chance(0.5) {
            headers::finish_tcp(&mut frame);
        }
        let len = self.draw.range(1, frame.len() as u64) as usize;
        frame.truncate(if self.draw.chance(0.2) { len } else { frame.len() });
        frame
    }
}
