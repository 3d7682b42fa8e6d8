//! Neighbours of IPv6 (RFC 4861): whoever is asked for is here.

/// RFC 8200 section 3.
const IPV6_LEN: usize = 40;
const ICMPV6: u8 = 58;
/// Types of RFC 4861 section 4, from router solicitation to redirect.
const NDP_TYPES: core::ops::RangeInclusive<u8> = 133..=137;
/// Multicast listener reports (RFC 3810 section 5.2).
const LISTENER_REPORT: u8 = 143;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// RFC 4861 section 4.4: solicited, and to override.
const FLAGS: u8 = 0x60;
/// Header, target, and the option with the link-layer address.
const ADVERTISEMENT_LEN: usize = 24 + 8;
const TARGET_ADDRESS: [u8; 2] = [2, 1];

/// The ICMPv6 message of a packet that has one and no extension headers.
fn message(packet: &[u8]) -> Option<&[u8]> {
    let message = packet.get(IPV6_LEN..)?;
    (packet[6] == ICMPV6).then_some(message)
}

/// Whether a packet is of the link's own business, and nobody's to sniff.
pub(crate) fn is_ndp(packet: &[u8]) -> bool {
    // A report to routers has a hop-by-hop option before it.
    let report = packet.get(IPV6_LEN + 8) == Some(&LISTENER_REPORT) && packet[6] == 0;
    report
        || message(packet)
            .and_then(|m| m.first())
            .is_some_and(|kind| NDP_TYPES.contains(kind) || *kind == LISTENER_REPORT)
}

/// The answer to a solicitation, from the neighbour at `mac`.
pub(crate) fn answer(packet: &[u8], mac: &[u8; 6]) -> Option<Vec<u8>> {
    let target = message(packet).filter(|m| m.first() == Some(&SOLICITATION))?.get(8..24)?;
    let asker = &packet[8..24];
    if asker == [0; 16] {
        // It asks whether its own address is free (RFC 4862 section 5.4): it is.
        return None;
    }
    let mut answer = vec![0; IPV6_LEN + ADVERTISEMENT_LEN];
    answer[0] = 0x60;
    answer[4..6].copy_from_slice(&(ADVERTISEMENT_LEN as u16).to_be_bytes());
    answer[6] = ICMPV6;
    answer[7] = 255;
    answer[8..24].copy_from_slice(target);
    answer[24..40].copy_from_slice(asker);
    let body = &mut answer[IPV6_LEN..];
    body[0] = ADVERTISEMENT;
    body[4] = FLAGS;
    body[8..24].copy_from_slice(target);
    body[24..26].copy_from_slice(&TARGET_ADDRESS);
    body[26..].copy_from_slice(mac);
    let sum = checksum(&answer);
    answer[IPV6_LEN + 2..IPV6_LEN + 4].copy_from_slice(&sum.to_be_bytes());
    Some(answer)
}

/// RFC 4443 section 2.3: over the pseudo-header of RFC 8200 section 8.1.
fn checksum(packet: &[u8]) -> u16 {
    let pairs = packet[8..].chunks(2).map(|p| [p[0], p.get(1).copied().unwrap_or(0)]);
    let mut sum: u32 = pairs.map(|p| u32::from(u16::from_be_bytes(p))).sum();
    sum += (packet.len() - IPV6_LEN) as u32 + u32::from(ICMPV6);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
