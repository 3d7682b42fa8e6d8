//! Headers, read and written apart from the stack's own code: whoever judges
//! the stack must not share its mistakes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An Ethernet address.
pub type Mac = [u8; 6];

const ETHERNET: usize = 14;
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const VLAN: [u8; 2] = [0x81, 0x00];
const TCP: u8 = 6;

/// Flags of TCP's header.
pub mod flag {
    #![expect(missing_docs, reason = "RFC 9293's names")]
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const PSH: u8 = 8;
    pub const ACK: u8 = 16;
}

/// The ones' complement sum (RFC 1071) of some bytes, folded to 16 bits.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut chunks = bytes.chunks_exact(4);
    let mut sum: u64 = 0;
    for chunk in &mut chunks {
        sum += u64::from(u32::from_be_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]));
    }
    let mut last = [0; 4];
    let rest = chunks.remainder();
    last[..rest.len()].copy_from_slice(rest);
    sum += u64::from(u32::from_be_bytes(last));
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    sum as u16
}

fn add(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

/// A TCP segment on the wire.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "RFC 9293's names")]
pub struct Segment {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub src_port: u16,
    pub dst_port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub payload_len: u32,
    /// Bytes of options.
    pub options_len: u32,
    pub mss: Option<u16>,
    pub scale: Option<u8>,
    /// TSval and TSecr.
    pub timestamps: Option<(u32, u32)>,
}

impl Segment {
    /// Whether the flag is set.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Where the IP header begins, and its ethertype.
fn network(frame: &[u8]) -> Option<(usize, [u8; 2])> {
    let kind = [*frame.get(12)?, *frame.get(13)?];
    if kind == VLAN {
        return Some((ETHERNET + 4, [*frame.get(16)?, *frame.get(17)?]));
    }
    Some((ETHERNET, kind))
}

/// Where the TCP header begins and the segment ends, and the sum of its
/// pseudo-header.
fn transport(frame: &[u8]) -> Option<(usize, usize, u16)> {
    let (start, kind) = network(frame)?;
    let ip = frame.get(start..)?;
    let (header, total, addresses) = match kind {
        IPV4 if *ip.get(9)? == TCP => {
            let total = u16::from_be_bytes([ip[2], ip[3]]);
            (usize::from(ip[0] & 15) * 4, usize::from(total), ip.get(12..20)?)
        }
        IPV6 if *ip.get(6)? == TCP => {
            (40, 40 + usize::from(u16::from_be_bytes([ip[4], ip[5]])), ip.get(8..40)?)
        }
        _ => return None,
    };
    let len = total.checked_sub(header)?;
    let pseudo = add(add(sum(addresses), u16::from(TCP)), len as u16);
    (len >= 20 && ip.len() >= total).then_some((start + header, start + total, pseudo))
}

/// Reads a frame that is a TCP segment.
pub fn parse(frame: &[u8]) -> Option<Segment> {
    let (start, end, _) = transport(frame)?;
    let (network, kind) = network(frame)?;
    let ip = &frame[network..];
    let (src, dst) = if kind == IPV4 {
        let at = |i: usize| IpAddr::from(Ipv4Addr::new(ip[i], ip[i + 1], ip[i + 2], ip[i + 3]));
        (at(12), at(16))
    } else {
        let at = |i: usize| ip[i..i + 16].try_into().map(|b: [u8; 16]| Ipv6Addr::from(b));
        (IpAddr::from(at(8).ok()?), IpAddr::from(at(24).ok()?))
    };
    let tcp = &frame[start..end];
    let half = |i: usize| u16::from_be_bytes([tcp[i], tcp[i + 1]]);
    let word = |b: &[u8]| u32::from_be_bytes([b[0], b[1], b[2], b[3]]);
    let header = usize::from(tcp[12] >> 4) * 4;
    let mut segment = Segment {
        src,
        dst,
        src_port: half(0),
        dst_port: half(2),
        seq: word(&tcp[4..]),
        ack: word(&tcp[8..]),
        flags: tcp[13],
        window: half(14),
        payload_len: tcp.len().checked_sub(header)? as u32,
        options_len: header.checked_sub(20)? as u32,
        mss: None,
        scale: None,
        timestamps: None,
    };
    let mut options = &tcp[20..header];
    while let [kind, rest @ ..] = options {
        match kind {
            0 => break,
            1 => options = rest,
            _ => {
                let len = usize::from(*rest.first()?);
                let value = options.get(2..len)?;
                match (kind, value) {
                    (2, [a, b]) => segment.mss = Some(u16::from_be_bytes([*a, *b])),
                    (3, [shift]) => segment.scale = Some(*shift),
                    (8, value) if value.len() == 8 => {
                        segment.timestamps = Some((word(value), word(&value[4..])));
                    }
                    _ => {}
                }
                options = &options[len..];
            }
        }
    }
    Some(segment)
}

/// Puts the right checksum into a frame that is a TCP segment.
pub fn finish_tcp(frame: &mut [u8]) {
    let Some((start, end, pseudo)) = transport(frame) else { return };
    frame[start + 16..start + 18].fill(0);
    let sum = !add(pseudo, sum(&frame[start..end]));
    frame[start + 16..start + 18].copy_from_slice(&sum.to_be_bytes());
}

/// Changes the TCP header and payload of a frame that is a TCP segment, and
/// corrects the checksum.
pub fn edit_tcp(frame: &mut [u8], edit: impl FnOnce(&mut [u8])) {
    if let Some((start, end, _)) = transport(frame) {
        edit(&mut frame[start..end]);
        finish_tcp(frame);
    }
}

/// A TCP segment without options, from one Ethernet address to another.
pub fn tcp_frame(from: Mac, to: Mac, segment: &Segment, payload: &[u8]) -> Vec<u8> {
    let mut tcp = Vec::with_capacity(20 + payload.len());
    tcp.extend(segment.src_port.to_be_bytes());
    tcp.extend(segment.dst_port.to_be_bytes());
    tcp.extend(segment.seq.to_be_bytes());
    tcp.extend(segment.ack.to_be_bytes());
    tcp.extend([5 << 4, segment.flags]);
    tcp.extend(segment.window.to_be_bytes());
    tcp.extend([0; 4]);
    tcp.extend(payload);
    let mut frame = ip_frame(from, to, segment.src, segment.dst, TCP, &tcp);
    finish_tcp(&mut frame);
    frame
}

/// An IP datagram in an Ethernet frame.
fn ip_frame(from: Mac, to: Mac, src: IpAddr, dst: IpAddr, protocol: u8, inner: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ETHERNET + 40 + inner.len());
    frame.extend(to);
    frame.extend(from);
    match (src, dst) {
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            frame.extend(IPV6);
            frame.extend([0x60, 0, 0, 0]);
            frame.extend((inner.len() as u16).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend(src.octets());
            frame.extend(dst.octets());
        }
        (src, dst) => {
            let octets = |address| match address {
                IpAddr::V4(address) => address.octets(),
                IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED.octets(),
            };
            frame.extend(IPV4);
            frame.extend([0x45, 0]);
            frame.extend((20 + inner.len() as u16).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            frame.extend(octets(src));
            frame.extend(octets(dst));
            let sum = !sum(&frame[ETHERNET..]);
            frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&sum.to_be_bytes());
        }
    }
    frame.extend(inner);
    frame
}

/// Puts the tag of a VLAN into a frame that has none (IEEE 802.1Q).
pub fn tag(frame: &mut Vec<u8>, vlan: u16) {
    let [high, low] = vlan.to_be_bytes();
    frame.splice(12..12, [VLAN[0], VLAN[1], high, low]);
}

/// Bytes of the IP datagram in a frame, if it is one.
pub fn datagram_len(frame: &[u8]) -> Option<usize> {
    let (start, kind) = network(frame)?;
    (kind == IPV4 || kind == IPV6).then(|| frame.len().saturating_sub(start))
}

/// What a router answers to a frame that its next link cannot carry: fragmentation
/// needed (RFC 1191 section 4), or packet too big (RFC 4443 section 3.2).
pub fn too_big(frame: &[u8], router: Mac, mtu: u16) -> Option<Vec<u8>> {
    let (start, _) = network(frame)?;
    let mut answer = answer_too_big(frame, router, mtu)?;
    if start > ETHERNET {
        // By the VLAN that it came by.
        tag(&mut answer, u16::from_be_bytes([frame[14], frame[15]]));
    }
    Some(answer)
}

fn answer_too_big(frame: &[u8], router: Mac, mtu: u16) -> Option<Vec<u8>> {
    let (start, kind) = network(frame)?;
    let ip = frame.get(start..)?;
    let to: Mac = frame[6..12].try_into().ok()?;
    if kind == IPV4 {
        let src = Ipv4Addr::from(<[u8; 4]>::try_from(&ip[12..16]).ok()?);
        let quoted = ip.get(..usize::from(ip[0] & 15) * 4 + 8)?;
        let mut icmp = vec![3, 4, 0, 0, 0, 0];
        icmp.extend(mtu.to_be_bytes());
        icmp.extend(quoted);
        let sum = !sum(&icmp);
        icmp[2..4].copy_from_slice(&sum.to_be_bytes());
        let [a, b, c, _] = src.octets();
        let router_ip = IpAddr::from(Ipv4Addr::new(a, b, c, 254));
        return Some(ip_frame(router, to, router_ip, src.into(), 1, &icmp));
    }
    if kind != IPV6 {
        return None;
    }
    let src: [u8; 16] = ip[8..24].try_into().ok()?;
    let mut router_ip = src;
    router_ip[15] = 254;
    let mut icmp = vec![2, 0, 0, 0];
    icmp.extend(u32::from(mtu).to_be_bytes());
    // RFC 4443 section 2.4 (c): as much as fits the smallest MTU.
    icmp.extend(&ip[..ip.len().min(1280 - 48)]);
    let pseudo = [sum(&src), sum(&router_ip), icmp.len() as u16, 58].into_iter().fold(0, add);
    let sum = !add(pseudo, sum(&icmp));
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    Some(ip_frame(
        router,
        to,
        Ipv6Addr::from(router_ip).into(),
        Ipv6Addr::from(src).into(),
        58,
        &icmp,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_reads_as_it_was_written() {
        for (src, dst) in [
            (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])),
            (
                IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]),
                IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 2]),
            ),
        ] {
            let segment = Segment {
                src,
                dst,
                src_port: 1,
                dst_port: 2,
                seq: 3,
                ack: 4,
                flags: flag::ACK | flag::PSH,
                window: 5,
                payload_len: 3,
                options_len: 0,
                mss: None,
                scale: None,
                timestamps: None,
            };
            let mut frame = tcp_frame([2; 6], [4; 6], &segment, b"abc");
            assert_eq!(format!("{:?}", parse(&frame).unwrap()), format!("{segment:?}"));
            let (start, end, pseudo) = transport(&frame).unwrap();
            assert_eq!(add(pseudo, sum(&frame[start..end])), 0xffff);
            edit_tcp(&mut frame, |tcp| tcp[20] = b'x');
            assert_eq!(add(pseudo, sum(&frame[start..end])), 0xffff);
            assert!(too_big(&frame, [6; 6], 1280).is_some());
        }
    }
}
