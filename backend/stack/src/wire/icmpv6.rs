//! ICMPv6 (RFC 4443): what a TCP host must understand of it.

use super::icmp::LEN;
use super::ip::{Meaning, Report};
use super::{be16, be32, ipv6};

/// Type: destination unreachable.
pub(crate) const UNREACHABLE: u8 = 1;
/// Type: packet too big.
pub(crate) const PACKET_TOO_BIG: u8 = 2;
/// Type: time exceeded.
pub(crate) const TIME_EXCEEDED: u8 = 3;
/// Code of [`TIME_EXCEEDED`]: in reassembly.
pub(crate) const IN_REASSEMBLY: u8 = 1;
/// Type: parameter problem.
pub(crate) const PARAMETER_PROBLEM: u8 = 4;
/// Types from here on are no errors (section 2.1).
pub(crate) const INFORMATION: u8 = 128;
/// Type: echo request.
pub(crate) const ECHO: u8 = 128;
/// Type: echo reply.
pub(crate) const ECHO_REPLY: u8 = 129;
/// Where the checksum lies in the header.
pub(crate) const CSUM_OFFSET: usize = 2;

/// Bytes of a datagram that an error quotes: the whole message fits the
/// smallest MTU (section 2.4 (c)).
pub(crate) const QUOTE_MAX: usize = ipv6::MTU_MIN as usize - ipv6::LEN - LEN;

/// Reads an error and the start of the datagram quoted in it; `None` when it is
/// not about a TCP segment. Extension headers, which we never send, may have
/// been put in on the way.
pub(crate) fn parse_error(bytes: &[u8]) -> Option<Report> {
    let quoted = bytes.get(LEN..)?;
    let fixed: &[u8; ipv6::LEN] = quoted.first_chunk()?;
    let (protocol, at) = ipv6::find_upper(quoted)?;
    let tcp = quoted.get(at..at + 8)?;
    if fixed[0] >> 4 != 6 || protocol != ipv6::next::TCP {
        return None;
    }
    let meaning = match (bytes[0], bytes[1]) {
        (PACKET_TOO_BIG, _) => Meaning::TooBig(be32(bytes, 4)),
        // Forbidden by administrators, port unreachable, refused by a policy or
        // a router (section 3.1).
        (UNREACHABLE, 1 | 4 | 5 | 6) => Meaning::Hard,
        (UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM, _) => Meaning::Soft,
        _ => return None,
    };
    let (mut src, mut dst) = ([0; 16], [0; 16]);
    src.copy_from_slice(&fixed[8..24]);
    dst.copy_from_slice(&fixed[24..40]);
    Some(Report {
        meaning,
        src,
        dst,
        src_port: be16(tcp, 0),
        dst_port: be16(tcp, 2),
        seq: be32(tcp, 4),
    })
}
