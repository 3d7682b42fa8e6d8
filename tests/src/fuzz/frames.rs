//! Frames as a fuzzer makes them: right where nothing else is asked for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Bytes of an Ethernet header.
pub const ETHERNET: usize = 14;
/// IP's number of TCP.
pub const TCP: u8 = 6;
/// IP's number of ICMP.
pub const ICMP: u8 = 1;
/// IP's number of ICMPv6.
pub const ICMP6: u8 = 58;

/// Control bits of TCP's header.
pub mod flag {
    #![expect(missing_docs, reason = "RFC 9293's names")]
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
}

/// The ones' complement sum (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    bytes.chunks(2).map(|p| u64::from(p[0]) << 8 | u64::from(*p.get(1).unwrap_or(&0))).sum()
}

fn checksum(mut sum: u64) -> [u8; 2] {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    (!(sum as u16)).to_be_bytes()
}

/// A TCP segment to be made.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "RFC 9293's names")]
pub struct Segment<'a> {
    pub src_port: u16,
    pub dst_port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    /// Padded to whole words; what is beyond 40 bytes is left out.
    pub options: &'a [u8],
    pub payload: &'a [u8],
}

impl Segment<'_> {
    /// Its bytes, without a checksum.
    pub fn bytes(&self) -> Vec<u8> {
        let options = &self.options[..self.options.len().min(40)];
        let header = 20 + options.len().next_multiple_of(4);
        let mut out = Vec::with_capacity(header + self.payload.len());
        out.extend(self.src_port.to_be_bytes());
        out.extend(self.dst_port.to_be_bytes());
        out.extend(self.seq.to_be_bytes());
        out.extend(self.ack.to_be_bytes());
        out.extend([(header as u8 / 4) << 4, self.flags]);
        out.extend(self.window.to_be_bytes());
        out.extend([0; 4]);
        out.extend(options);
        out.resize(header, 0);
        out.extend(self.payload);
        out
    }
}

/// What lies around an IP payload.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the header's names")]
pub struct Around<'a> {
    pub from: Mac,
    pub to: Mac,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub protocol: u8,
    /// IPv4: options, padded to whole words. IPv6: extension headers, the first
    /// one's kind in front.
    pub extra: &'a [u8],
    /// A VLAN tag's control information.
    pub vlan: Option<u16>,
}

/// An Ethernet frame around an IP payload, all checksums right.
pub fn frame(around: &Around<'_>, inner: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(128 + inner.len());
    out.extend(around.to);
    out.extend(around.from);
    if let Some(tag) = around.vlan {
        out.extend([0x81, 0]);
        out.extend(tag.to_be_bytes());
    }
    match (around.src, around.dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => ipv6(&mut out, around, src, dst, inner),
        (IpAddr::V4(src), IpAddr::V4(dst)) => ipv4(&mut out, around, src, dst, inner),
        _ => unreachable!("one family on both ends"),
    }
    finish(&mut out);
    out
}

fn ipv4(out: &mut Vec<u8>, around: &Around<'_>, src: Ipv4Addr, dst: Ipv4Addr, inner: &[u8]) {
    let extra = &around.extra[..around.extra.len().min(40)];
    let header = 20 + extra.len().next_multiple_of(4);
    out.extend([8, 0]);
    let start = out.len();
    out.extend([0x40 | (header / 4) as u8, 0]);
    out.extend(((header + inner.len()) as u16).to_be_bytes());
    out.extend([0, 0, 0x40, 0, 64, around.protocol, 0, 0]);
    out.extend(src.octets());
    out.extend(dst.octets());
    out.extend(extra);
    out.resize(start + header, 0);
    out.extend(inner);
}

fn ipv6(out: &mut Vec<u8>, around: &Around<'_>, src: Ipv6Addr, dst: Ipv6Addr, inner: &[u8]) {
    let (next, headers) = match around.extra.split_first() {
        Some((&first, headers)) => (first, headers),
        None => (around.protocol, &[][..]),
    };
    out.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    out.extend(((headers.len() + inner.len()) as u16).to_be_bytes());
    out.extend([next, 64]);
    out.extend(src.octets());
    out.extend(dst.octets());
    out.extend(headers);
    out.extend(inner);
}

/// The frame's datagram in fragments that carry `len` bytes each, a multiple of
/// eight, in order.
pub fn fragments(frame: &[u8], len: usize, identification: u16) -> Vec<Vec<u8>> {
    let tagged = frame[12..14] == [0x81, 0];
    let ip = if tagged { ETHERNET + 4 } else { ETHERNET };
    let v4 = frame[ip - 2..ip] == [8, 0];
    let start = if v4 { ip + usize::from(frame[ip] & 15) * 4 } else { ip + 40 };
    let inner = &frame[start..];
    let mut out = Vec::new();
    for at in (0..inner.len()).step_by(len) {
        let end = (at + len).min(inner.len());
        let more = u16::from(end < inner.len());
        let mut piece = frame[..start].to_vec();
        if v4 {
            let total = (start - ip + end - at) as u16;
            piece[ip + 2..ip + 4].copy_from_slice(&total.to_be_bytes());
            piece[ip + 4..ip + 6].copy_from_slice(&identification.to_be_bytes());
            let word = more << 13 | (at / 8) as u16;
            piece[ip + 6..ip + 8].copy_from_slice(&word.to_be_bytes());
            piece[ip + 10..ip + 12].fill(0);
            let header = checksum(sum(&piece[ip..start]));
            piece[ip + 10..ip + 12].copy_from_slice(&header);
        } else {
            piece[ip + 4..ip + 6].copy_from_slice(&((end - at + 8) as u16).to_be_bytes());
            let next = std::mem::replace(&mut piece[ip + 6], 44);
            piece.extend([next, 0]);
            piece.extend((at as u16 | more).to_be_bytes());
            piece.extend([0, 0]);
            piece.extend(identification.to_be_bytes());
        }
        piece.extend(&inner[at..end]);
        out.push(piece);
    }
    out
}

/// Where IPv6's extension headers end, and what follows them.
fn skip_extensions(frame: &[u8], mut at: usize, mut next: u8) -> Option<(usize, u8)> {
    loop {
        let len = match next {
            0 | 43 | 60 => (usize::from(*frame.get(at + 1)?) + 1) * 8,
            44 => 8,
            _ => return Some((at, next)),
        };
        next = *frame.get(at)?;
        at += len;
    }
}

/// Puts right checksums into a frame, wherever there is a place for one.
pub fn finish(frame: &mut [u8]) {
    let _ = try_finish(frame);
}

fn try_finish(frame: &mut [u8]) -> Option<()> {
    let tagged = frame.get(12..14)? == [0x81, 0];
    let ip = if tagged { ETHERNET + 4 } else { ETHERNET };
    let (start, protocol, addresses, end) = match frame.get(ip - 2..ip)? {
        [8, 0] => {
            let start = ip + usize::from(frame.get(ip)? & 15) * 4;
            frame.get(start.max(ip + 20) - 1)?;
            frame[ip + 10..ip + 12].fill(0);
            let header = checksum(sum(&frame[ip..start.max(ip + 12)]));
            frame[ip + 10..ip + 12].copy_from_slice(&header);
            let total = usize::from(u16::from_be_bytes([frame[ip + 2], frame[ip + 3]]));
            (start, frame[ip + 9], ip + 12..ip + 20, ip + total)
        }
        [0x86, 0xdd] => {
            frame.get(ip + 39)?;
            let (start, next) = skip_extensions(frame, ip + 40, frame[ip + 6])?;
            let len = usize::from(u16::from_be_bytes([frame[ip + 4], frame[ip + 5]]));
            (start, next, ip + 8..ip + 40, ip + 40 + len)
        }
        _ => return None,
    };
    let end = end.min(frame.len());
    let at = start
        + match protocol {
            TCP => 16,
            ICMP | ICMP6 => 2,
            _ => return None,
        };
    let pseudo = match protocol {
        ICMP => 0,
        _ => sum(frame.get(addresses)?) + u64::from(protocol) + end.checked_sub(start)? as u64,
    };
    frame.get_mut(at..at + 2).filter(|_| at + 2 <= end)?.fill(0);
    let whole = checksum(pseudo + sum(&frame[start..end]));
    frame[at..at + 2].copy_from_slice(&whole);
    Some(())
}

/// What a frame of the stack's says, if it is a TCP segment.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "RFC 9293's names")]
pub struct Said {
    pub dst: IpAddr,
    pub src_port: u16,
    pub dst_port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    /// Sequence numbers that it occupies.
    pub len: u32,
    /// TSval.
    pub time: Option<u32>,
    pub scale: Option<u8>,
    pub mss: Option<u16>,
    pub sack_permitted: bool,
}

/// Reads a frame of the stack's, and judges what a receiver would.
pub fn read(frame: &[u8]) -> Option<Said> {
    let tagged = frame[12..14] == [0x81, 0];
    let ip = if tagged { ETHERNET + 4 } else { ETHERNET };
    let (dst, start, end) = match frame[ip - 2..ip] {
        [8, 0] if frame[ip + 9] == TCP => {
            let dst: [u8; 4] = frame[ip + 16..ip + 20].try_into().expect("four bytes");
            let total = usize::from(u16::from_be_bytes([frame[ip + 2], frame[ip + 3]]));
            (IpAddr::from(dst), ip + 20, ip + total)
        }
        [0x86, 0xdd] if frame[ip + 6] == TCP => {
            let dst: [u8; 16] = frame[ip + 24..ip + 40].try_into().expect("sixteen bytes");
            let len = usize::from(u16::from_be_bytes([frame[ip + 4], frame[ip + 5]]));
            (IpAddr::from(dst), ip + 40, ip + 40 + len)
        }
        _ => return None,
    };
    assert_eq!(end, frame.len(), "the datagram is as long as its frame");
    let tcp = &frame[start..];
    let half = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    let word = |at: usize| u32::from(half(at)) << 16 | u32::from(half(at + 2));
    let header = usize::from(tcp[12] >> 4) * 4;
    let flags = tcp[13];
    let control = u32::from(flags & flag::SYN != 0) + u32::from(flags & flag::FIN != 0);
    let mut said = Said {
        dst,
        src_port: half(0),
        dst_port: half(2),
        seq: word(4),
        ack: word(8),
        flags,
        len: (tcp.len() - header) as u32 + control,
        time: None,
        scale: None,
        mss: None,
        sack_permitted: false,
    };
    let mut at = 20;
    while at < header && tcp[at] != 0 {
        let kind = tcp[at];
        let len = if kind == 1 { 1 } else { usize::from(tcp[at + 1]) };
        assert!(len > 0 && at + len <= header, "an option that we wrote");
        match (kind, len) {
            (2, 4) => said.mss = Some(half(at + 2)),
            (3, 3) => said.scale = Some(tcp[at + 2]),
            (4, 2) => said.sack_permitted = true,
            (8, 10) => said.time = Some(word(at + 2)),
            _ => {}
        }
        at += len;
    }
    Some(said)
}
