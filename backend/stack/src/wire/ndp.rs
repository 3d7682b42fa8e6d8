//! Neighbour discovery (RFC 4861), in messages of ICMPv6. The caller judges the
//! hop limit and the checksum.

use core::net::Ipv6Addr;

use super::be16;
use super::ethernet::Mac;

/// Type: router solicitation.
pub(crate) const ROUTER_SOLICITATION: u8 = 133;
/// Type: router advertisement.
pub(crate) const ROUTER_ADVERTISEMENT: u8 = 134;
/// Type: neighbour solicitation.
pub(crate) const SOLICITATION: u8 = 135;
/// Type: neighbour advertisement.
pub(crate) const ADVERTISEMENT: u8 = 136;
/// Type: redirect, which is not believed.
pub(crate) const REDIRECT: u8 = 137;
/// The hop limit of every message: it was not forwarded (section 11.2).
pub(crate) const HOP_LIMIT: u8 = 255;

/// Bytes of a solicitation or advertisement without options.
const FIXED_LEN: usize = 24;
/// Bytes of a router advertisement without options.
const ROUTER_FIXED_LEN: usize = 16;
/// Bytes of a link-layer address option on Ethernet (RFC 2464 section 6).
const ADDRESS_OPTION_LEN: usize = 8;
/// Option: source link-layer address.
const SOURCE: u8 = 1;
/// Option: target link-layer address.
const TARGET: u8 = 2;

/// Bytes of the longest message that we write.
pub(crate) const LEN_MAX: usize = FIXED_LEN + ADDRESS_OPTION_LEN;

/// Flags of an advertisement (section 4.4).
const ROUTER: u8 = 0x80;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Who has this address?
    Solicitation { target: Ipv6Addr, mac: Option<Mac> },
    /// I have it.
    Advertisement(Advertisement),
    /// A router offers itself.
    RouterAdvertisement {
        /// Seconds as a default router; zero: not as one.
        lifetime: u16,
        mac: Option<Mac>,
    },
    /// Who is a router?
    RouterSolicitation { mac: Option<Mac> },
}

/// A neighbour advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Advertisement {
    pub target: Ipv6Addr,
    pub mac: Option<Mac>,
    /// The sender is a router.
    pub router: bool,
    /// It answers a solicitation.
    pub solicited: bool,
    /// It is worth more than what is cached.
    pub overrides: bool,
}

/// Reads a message of `len` bytes, of which `bytes` is the start; `None` when it
/// is malformed or of no interest. Options that the private copy does not reach
/// are not looked at.
pub(crate) fn parse(bytes: &[u8], len: usize) -> Option<Message> {
    // Section 6.1 and 7.1: codes are zero.
    let (kind, code) = (*bytes.first()?, *bytes.get(1)?);
    if code != 0 {
        return None;
    }
    match kind {
        SOLICITATION | ADVERTISEMENT => {
            let fixed: &[u8; FIXED_LEN] = bytes.first_chunk()?;
            let mut target = [0; 16];
            target.copy_from_slice(&fixed[8..24]);
            let target = Ipv6Addr::from_octets(target);
            if target.is_multicast() {
                return None;
            }
            let wanted = if kind == SOLICITATION { SOURCE } else { TARGET };
            let mac = find_address(bytes, len, FIXED_LEN, wanted)?;
            Some(if kind == SOLICITATION {
                Message::Solicitation { target, mac }
            } else {
                Message::Advertisement(Advertisement {
                    target,
                    mac,
                    router: fixed[4] & ROUTER != 0,
                    solicited: fixed[4] & SOLICITED != 0,
                    overrides: fixed[4] & OVERRIDE != 0,
                })
            })
        }
        ROUTER_ADVERTISEMENT => {
            let lifetime = be16(bytes.first_chunk::<ROUTER_FIXED_LEN>()?, 6);
            let mac = find_address(bytes, len, ROUTER_FIXED_LEN, SOURCE)?;
            Some(Message::RouterAdvertisement { lifetime, mac })
        }
        _ => None,
    }
}

/// The link-layer address among the options from `at`; the outer `None` when
/// they are malformed (section 4.6: a length of zero).
fn find_address(bytes: &[u8], len: usize, mut at: usize, wanted: u8) -> Option<Option<Mac>> {
    let mut found = None;
    while at < len {
        let Some(&[kind, units]) = bytes.get(at..).and_then(<[u8]>::first_chunk) else {
            // Cut off: by the copy, or by the message's end.
            return (bytes.len() < len).then_some(found);
        };
        let option_len = 8 * usize::from(units);
        if units == 0 || at + option_len > len {
            return None;
        }
        if kind == wanted
            && option_len == ADDRESS_OPTION_LEN
            && let Some(option) = bytes.get(at + 2..at + ADDRESS_OPTION_LEN)
        {
            let mut mac = [0; 6];
            mac.copy_from_slice(option);
            found = Some(mac);
        }
        at += option_len;
    }
    Some(found)
}

/// Writes a message at the start of `out`, which is [`LEN_MAX`] bytes long, with
/// a checksum of zero, and returns its length.
pub(crate) fn write(out: &mut [u8], message: &Message) -> usize {
    out[..8].fill(0);
    let (kind, fixed_len, option, mac) = match message {
        Message::Solicitation { target, mac } => {
            out[8..24].copy_from_slice(&target.octets());
            (SOLICITATION, FIXED_LEN, SOURCE, mac)
        }
        Message::Advertisement(advertisement) => {
            let Advertisement { target, mac, router, solicited, overrides } = advertisement;
            out[8..24].copy_from_slice(&target.octets());
            for (flag, is_set) in [(ROUTER, router), (SOLICITED, solicited), (OVERRIDE, overrides)]
            {
                out[4] |= if *is_set { flag } else { 0 };
            }
            (ADVERTISEMENT, FIXED_LEN, TARGET, mac)
        }
        Message::RouterAdvertisement { lifetime, mac } => {
            out[8..16].fill(0);
            out[6..8].copy_from_slice(&lifetime.to_be_bytes());
            (ROUTER_ADVERTISEMENT, ROUTER_FIXED_LEN, SOURCE, mac)
        }
        Message::RouterSolicitation { mac } => (ROUTER_SOLICITATION, 8, SOURCE, mac),
    };
    out[0] = kind;
    let Some(mac) = mac else { return fixed_len };
    out[fixed_len..fixed_len + 2].copy_from_slice(&[option, 1]);
    out[fixed_len + 2..fixed_len + 8].copy_from_slice(mac);
    fixed_len + ADDRESS_OPTION_LEN
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET_ADDRESS: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 1, 2, 3, 4);

    #[test]
    fn what_is_written_parses() {
        for mac in [None, Some([2, 3, 4, 5, 6, 7])] {
            let target = TARGET_ADDRESS;
            let mut all = vec![
                Message::Solicitation { target, mac },
                Message::RouterAdvertisement { lifetime: 1800, mac },
            ];
            for bits in 0..8u8 {
                let (router, solicited, overrides) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
                let advertisement = Advertisement { target, mac, router, solicited, overrides };
                all.push(Message::Advertisement(advertisement));
            }
            for message in all {
                let mut bytes = [0xff; LEN_MAX];
                let len = write(&mut bytes, &message);
                assert_eq!(parse(&bytes[..len], len), Some(message));
                for cut in 0..len {
                    let read = parse(&bytes[..cut], cut);
                    assert!(read != Some(message) || mac.is_none(), "{message:?} cut to {cut}");
                }
            }
        }
    }

    #[test]
    fn options_that_lie_spoil_the_message() {
        let mac = Some([2; 6]);
        let mut bytes = [0; LEN_MAX];
        let len = write(&mut bytes, &Message::Solicitation { target: TARGET_ADDRESS, mac });
        // Behind an option that nobody knows, and beyond the private copy.
        let mut long = bytes[..FIXED_LEN].to_vec();
        long.extend([14, 1, 0, 0, 0, 0, 0, 0]);
        long.extend(&bytes[FIXED_LEN..len]);
        let known = Some(Message::Solicitation { target: TARGET_ADDRESS, mac });
        assert_eq!(parse(&long, long.len()), known);
        let unknown = Some(Message::Solicitation { target: TARGET_ADDRESS, mac: None });
        assert_eq!(parse(&long[..FIXED_LEN + 8], long.len()), unknown);
        assert_eq!(parse(&long[..FIXED_LEN + 9], long.len()), unknown);
        // A length of zero, one beyond the end, and half an option.
        for (at, value) in [(FIXED_LEN + 1, 0), (FIXED_LEN + 1, 2)] {
            let mut wrong = bytes;
            wrong[at] = value;
            assert_eq!(parse(&wrong[..len], len), None);
        }
        assert_eq!(parse(&bytes[..FIXED_LEN + 1], FIXED_LEN + 1), None);
        // A code, and a group as target.
        for (at, value) in [(1, 1), (8, 0xff)] {
            let mut wrong = bytes;
            wrong[at] = value;
            assert_eq!(parse(&wrong[..len], len), None);
        }
    }
}
