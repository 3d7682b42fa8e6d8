//! Multicast listener discovery, version 2 (RFC 3810): enough for a switch that
//! snoops to forward what is sent to our solicited-node groups.

use core::net::Ipv6Addr;

use super::be16;

/// Type: a router asks.
pub(crate) const QUERY: u8 = 130;
/// Type: what we listen to.
const REPORT: u8 = 143;
/// The hop limit of every message (section 5).
pub(crate) const HOP_LIMIT: u8 = 1;

/// The hop-by-hop header in front of every message (section 5): a router alert
/// (RFC 2711), padded, then ICMPv6.
pub(crate) const HOP_BY_HOP: [u8; 8] = [super::ipv6::next::ICMPV6, 0, 5, 2, 0, 0, 1, 0];

/// Record type: from now on, everything that is sent to the group (section
/// 5.2.12).
const CHANGE_TO_EXCLUDE: u8 = 4;
/// Record type: the same, in answer to a query.
const IS_EXCLUDE: u8 = 2;
/// Bytes of a record without sources.
const RECORD_LEN: usize = 20;
/// Groups in a report.
pub(crate) const GROUPS: usize = 2;
/// Bytes of a report, from the ICMPv6 header on.
pub(crate) const REPORT_LEN: usize = 8 + GROUPS * RECORD_LEN;

/// A query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Query {
    /// Time within which to answer, ms.
    pub delay_max: u32,
    /// The group that is asked about; unspecified for all.
    pub group: Ipv6Addr,
}

/// Reads a query of either version; `None` when it is cut short.
pub(crate) fn parse_query(bytes: &[u8]) -> Option<Query> {
    let fixed: &[u8; 24] = bytes.first_chunk()?;
    let code = u32::from(be16(fixed, 4));
    let mut group = [0; 16];
    group.copy_from_slice(&fixed[8..24]);
    // Section 5.1.3: above 32768 it is a small floating-point number.
    let delay_max =
        if code < 32768 { code } else { (code & 0xfff | 0x1000) << ((code >> 12 & 7) + 3) };
    Some(Query { delay_max, group: Ipv6Addr::from_octets(group) })
}

/// Writes a report at the start of `out`, which has room for it, with a checksum
/// of zero. `change` if we have just begun to listen.
pub(crate) fn write_report(out: &mut [u8], groups: &[Ipv6Addr; GROUPS], change: bool) {
    out[..REPORT_LEN].fill(0);
    out[0] = REPORT;
    out[6..8].copy_from_slice(&(GROUPS as u16).to_be_bytes());
    for (record, group) in out[8..REPORT_LEN].chunks_exact_mut(RECORD_LEN).zip(groups) {
        record[0] = if change { CHANGE_TO_EXCLUDE } else { IS_EXCLUDE };
        record[4..20].copy_from_slice(&group.octets());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_tells_its_delay_and_group() {
        let mut bytes = [0; 28];
        bytes[0] = QUERY;
        for (code, delay_max) in [(10_000u16, 10_000), (32_768, 32_768), (u16::MAX, 8_387_584)] {
            bytes[4..6].copy_from_slice(&code.to_be_bytes());
            let query = parse_query(&bytes).unwrap();
            assert_eq!((query.delay_max, query.group), (delay_max, Ipv6Addr::UNSPECIFIED));
        }
        assert!(parse_query(&bytes[..23]).is_none());
    }
}
