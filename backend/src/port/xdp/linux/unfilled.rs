//! Checksums that a sender on this machine left to a device which never filled them in.
//!
//! A kernel whose device promises to complete checksums puts the pseudo-header's sum
//! alone into the field (`CHECKSUM_PARTIAL`), and says so beside the frame. AF_XDP does
//! not pass on what is said beside it, so that such a frame looks like a corrupt one.
//! By the field itself it can be told: a corrupt frame has that very sum once in 65536
//! times.

use paste_stack::{TxCsum, checksum};

/// Bytes of a frame that are looked at: up to the checksum of TCP behind IPv6, with a
/// tag, or behind the longest IPv4 header.
pub(super) const HEAD: usize = 18 + 60 + 18;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Of a frame that begins with `head`: where its TCP or UDP checksum is, if the
/// pseudo-header's sum is what stands there.
pub(super) fn find(head: &[u8]) -> Option<TxCsum> {
    let mut ip = 14;
    let mut ethertype = half(head, 12)?;
    if ethertype == 0x8100 {
        ip = 18;
        ethertype = half(head, 16)?;
    }
    let (start, protocol, len, addresses) = match ethertype {
        0x0800 => {
            let header = usize::from(head.get(ip)? & 0x0f) * 4;
            // Of a fragment, the sum covers what is not here.
            if header < 20 || half(head, ip + 6)? & 0x3fff != 0 {
                return None;
            }
            let len = usize::from(half(head, ip + 2)?).checked_sub(header)?;
            (ip + header, *head.get(ip + 9)?, len, head.get(ip + 12..ip + 20)?)
        }
        0x86dd => {
            let len = usize::from(half(head, ip + 4)?);
            (ip + 40, *head.get(ip + 6)?, len, head.get(ip + 8..ip + 40)?)
        }
        _ => return None,
    };
    let offset = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    let field = half(head, start + offset)?;
    let sum = u32::from(checksum::sum(addresses)) + u32::from(protocol) + len as u32;
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    (u32::from(field) == sum).then_some(TxCsum { start: start as u16, offset: offset as u16 })
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The ones' complement sum of the pseudo-header and of what it stands before, given
/// the latter's sum, its field included: 0xffff if the checksum is right.
pub(super) fn total(pseudo: u16, rest: u16) -> u16 {
    let (sum, carry) = pseudo.overflowing_add(rest);
    sum + u16::from(carry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(v6: bool, tagged: bool, protocol: u8) -> (Vec<u8>, usize, u16) {
        let mut frame = vec![2; 12];
        if tagged {
            frame.extend([0x81, 0, 0, 7]);
        }
        let payload = 33u16;
        let header: u16 = if protocol == TCP { 20 } else { 8 };
        let ip = frame.len() + 2;
        let pseudo = if v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((header + payload).to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend([0xfd; 32]);
            checksum::sum(&frame[ip + 8..])
        } else {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + header + payload).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
            checksum::sum(&frame[ip + 12..])
        };
        let pseudo = total(total(pseudo, protocol.into()), header + payload);
        let start = frame.len();
        frame.resize(start + usize::from(header), 0);
        frame.extend((0..payload).map(|byte| byte as u8));
        (frame, start, pseudo)
    }

    #[test]
    fn the_sum_of_the_pseudo_header_is_known_and_others_are_not() {
        for (v6, tagged, protocol) in [false, true]
            .into_iter()
            .flat_map(|v6| [(v6, false, TCP), (v6, true, TCP), (v6, false, UDP), (v6, true, UDP)])
        {
            let (mut frame, start, pseudo) = frame(v6, tagged, protocol);
            let offset = if protocol == TCP { 16 } else { 6 };
            let field = start + offset..start + offset + 2;
            let csum = TxCsum { start: start as u16, offset: offset as u16 };
            assert_eq!(find(&frame), None, "zero");
            frame[field.clone()].copy_from_slice(&pseudo.to_be_bytes());
            assert_eq!(find(&frame[..HEAD.min(frame.len())]), Some(csum));
            for cut in 0..start + offset + 2 {
                assert_eq!(find(&frame[..cut]), None, "{cut}");
            }
            // Filled in as the device should have: another number, and right.
            let whole = !checksum::sum(&frame[start..]);
            frame[field.clone()].copy_from_slice(&whole.to_be_bytes());
            assert_eq!(find(&frame), None);
            assert_eq!(total(pseudo, checksum::sum(&frame[start..])), 0xffff);
        }
    }

    #[test]
    fn what_is_no_whole_segment_is_passed_over() {
        let (mut frame, start, pseudo) = frame(false, false, TCP);
        frame[start + 16..start + 18].copy_from_slice(&pseudo.to_be_bytes());
        let mut fragment = frame.clone();
        fragment[20] = 0x20;
        assert_eq!(find(&fragment), None);
        let mut short = frame.clone();
        short[14] = 0x44;
        assert_eq!(find(&short), None);
        frame[12] = 9;
        assert_eq!(find(&frame), None);
    }
}
