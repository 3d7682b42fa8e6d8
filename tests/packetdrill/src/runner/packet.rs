//! IPv4 packets as bytes: built for the stack, and read with every checksum
//! judged. Written against the RFCs, and apart from the stack's own code, which
//! is under test.

use core::net::Ipv4Addr;

use super::script::{Ecn, Opt, Segment};

const IP_LEN: usize = 20;
const TCP_LEN: usize = 20;
const ICMP_LEN: usize = 8;
const TCP: u8 = 6;
const ICMP: u8 = 1;

/// The two ends; ours is the peer's, theirs the stack's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub peer: (Ipv4Addr, u16),
    pub stack: (Ipv4Addr, u16),
}

/// RFC 1071.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// RFC 9293 section 3.1.
fn pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, len: usize) -> [u8; 12] {
    let mut header = [0; 12];
    header[..4].copy_from_slice(&source.octets());
    header[4..8].copy_from_slice(&destination.octets());
    header[9] = TCP;
    header[10..].copy_from_slice(&(len as u16).to_be_bytes());
    header
}

/// RFC 791 section 3.1.
fn ip(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, tos: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; IP_LEN];
    packet[0] = 0x45;
    packet[1] = tos;
    packet[2..4].copy_from_slice(&((IP_LEN + body.len()) as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    let sum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(body);
    packet
}

/// A segment from the peer, its numbers those of the wire.
pub(super) fn build(ends: &Ends, segment: &Segment, payload: &[u8]) -> Vec<u8> {
    let mut options = Vec::new();
    for option in segment.options.iter().flatten() {
        write_option(&mut options, option);
    }
    options.resize(options.len().next_multiple_of(4), 0);
    let mut tcp = vec![0; TCP_LEN];
    tcp[..2].copy_from_slice(&ends.peer.1.to_be_bytes());
    tcp[2..4].copy_from_slice(&ends.stack.1.to_be_bytes());
    tcp[4..8].copy_from_slice(&segment.seq.to_be_bytes());
    tcp[8..12].copy_from_slice(&segment.ack.to_be_bytes());
    tcp[12] = (((TCP_LEN + options.len()) / 4) << 4) as u8;
    tcp[13] = segment.flags;
    tcp[14..16].copy_from_slice(&segment.window.unwrap_or(0).to_be_bytes());
    tcp.extend_from_slice(&options);
    tcp.extend_from_slice(payload);
    let pseudo = pseudo_header(ends.peer.0, ends.stack.0, tcp.len());
    let sum = checksum(&[&pseudo, &tcp]);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    let tos = segment.ecn.unwrap_or(Ecn::NotCapable) as u8;
    ip(ends.peer.0, ends.stack.0, TCP, tos, &tcp)
}

fn write_option(out: &mut Vec<u8>, option: &Opt) {
    match option {
        Opt::Nop => out.push(1),
        Opt::Mss(mss) => {
            out.extend([2, 4]);
            out.extend(mss.to_be_bytes());
        }
        Opt::Scale(shift) => out.extend([3, 3, *shift]),
        Opt::SackPermitted => out.extend([4, 2]),
        Opt::Sack(blocks) => {
            out.extend([5, 2 + 8 * blocks.len() as u8]);
            for (start, end) in blocks {
                out.extend(start.to_be_bytes());
                out.extend(end.to_be_bytes());
            }
        }
        Opt::Timestamps { value, echo } => {
            out.extend([8, 10]);
            out.extend(value.to_be_bytes());
            out.extend(echo.to_be_bytes());
        }
    }
}

/// ICMP "fragmentation needed" (RFC 1191 section 4) from a router, about a
/// segment of the stack's that starts at `seq`.
pub(super) fn build_too_big(ends: &Ends, mtu: u16, seq: u32) -> Vec<u8> {
    let mut about = vec![0; ICMP_LEN];
    about[..2].copy_from_slice(&ends.stack.1.to_be_bytes());
    about[2..4].copy_from_slice(&ends.peer.1.to_be_bytes());
    about[4..8].copy_from_slice(&seq.to_be_bytes());
    let about = ip(ends.stack.0, ends.peer.0, TCP, 0, &about);
    let mut icmp = vec![0; ICMP_LEN];
    icmp[..2].copy_from_slice(&[3, 4]);
    icmp[6..8].copy_from_slice(&mtu.to_be_bytes());
    icmp.extend_from_slice(&about);
    let sum = checksum(&[&icmp]);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(ends.peer.0, ends.stack.0, ICMP, 0, &icmp)
}

/// A segment of the stack's.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub ends: Ends,
    pub segment: Segment,
    pub payload: Vec<u8>,
}

/// Reads a segment of the stack's.
pub(super) fn read(packet: &[u8]) -> Result<Sent, String> {
    let short = || format!("a packet of {} bytes is cut short", packet.len());
    let header = packet.get(..IP_LEN).ok_or_else(short)?;
    if header[0] != 0x45 || header[9] != TCP {
        return Err(format!("no TCP over IPv4 without options: {header:02x?}"));
    }
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if checksum(&[header]) != 0 || total != packet.len() {
        return Err("a wrong IPv4 checksum or length".to_owned());
    }
    let address = |at: usize| {
        let mut octets = [0; 4];
        octets.copy_from_slice(&header[at..at + 4]);
        Ipv4Addr::from(octets)
    };
    let (source, destination) = (address(12), address(16));
    let tcp = &packet[IP_LEN..];
    if tcp.len() < TCP_LEN {
        return Err(short());
    }
    if checksum(&[&pseudo_header(source, destination, tcp.len()), tcp]) != 0 {
        return Err("a wrong TCP checksum".to_owned());
    }
    let u16_at = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    let u32_at = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
    let len = usize::from(tcp[12] >> 4) * 4;
    let options = tcp.get(TCP_LEN..len).ok_or_else(short)?;
    let payload = tcp[len..].to_vec();
    let segment = Segment {
        ecn: Some(match header[1] & 3 {
            0 => Ecn::NotCapable,
            1 => Ecn::Capable1,
            2 => Ecn::Capable0,
            _ => Ecn::Congested,
        }),
        flags: tcp[13],
        seq: u32_at(4),
        len: payload.len() as u16,
        ack: u32_at(8),
        window: Some(u16_at(14)),
        options: Some(read_options(options)?),
    };
    let ends = Ends { stack: (source, u16_at(0)), peer: (destination, u16_at(2)) };
    Ok(Sent { ends, segment, payload })
}

fn read_options(mut bytes: &[u8]) -> Result<Vec<Opt>, String> {
    let mut options = Vec::new();
    let u32_at = |b: &[u8], at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    while let Some((&kind, rest)) = bytes.split_first() {
        if kind == 0 {
            break;
        }
        if kind == 1 {
            options.push(Opt::Nop);
            bytes = rest;
            continue;
        }
        let len = usize::from(rest.first().copied().unwrap_or(0));
        let option = bytes.get(..len).filter(|_| len >= 2).ok_or("an option's length is wrong")?;
        options.push(match (kind, len) {
            (2, 4) => Opt::Mss(u16::from_be_bytes([option[2], option[3]])),
            (3, 3) => Opt::Scale(option[2]),
            (4, 2) => Opt::SackPermitted,
            (5, _) if len % 8 == 2 && len > 2 => {
                let blocks = option[2..].chunks(8);
                Opt::Sack(blocks.map(|b| (u32_at(b, 0), u32_at(b, 4))).collect())
            }
            (8, 10) => Opt::Timestamps { value: u32_at(option, 2), echo: u32_at(option, 6) },
            _ => return Err(format!("an option of kind {kind} and length {len}")),
        });
        bytes = &bytes[len..];
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: Ends = Ends {
        peer: (Ipv4Addr::new(192, 0, 2, 1), 40000),
        stack: (Ipv4Addr::new(192, 168, 0, 1), 8080),
    };

    #[test]
    fn reads_what_it_builds() {
        let segment = Segment {
            ecn: Some(Ecn::Capable0),
            flags: 0x18,
            seq: u32::MAX,
            len: 3,
            ack: 7,
            window: Some(9),
            options: Some(vec![
                Opt::Nop,
                Opt::Nop,
                Opt::Timestamps { value: 1, echo: 2 },
                Opt::Nop,
                Opt::Nop,
                Opt::Sack(vec![(3, 4), (5, 6)]),
            ]),
        };
        let mut packet = build(&ENDS, &segment, &[1, 2, 3]);
        let sent = read(&packet).unwrap();
        assert_eq!(sent.segment, segment);
        assert_eq!(sent.payload, [1, 2, 3]);
        // What was built came from the peer.
        assert_eq!((sent.ends.stack, sent.ends.peer), (ENDS.peer, ENDS.stack));
        let last = packet.len() - 1;
        packet[last] ^= 1;
        assert!(read(&packet).unwrap_err().contains("TCP checksum"));
        assert!(read(&packet[..30]).is_err());
    }
}
