//! Values that have a text of their own: addresses, sizes and durations.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use super::{POLL_MAX, Poll};
use crate::worker::Network;

/// An Ethernet address of one station.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// The six bytes, in the order of the wire.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Why a text is no station's Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MacError {
    /// Not six pairs of hexadecimal digits.
    #[error(
        "\"{0}\" is no Ethernet address: write six pairs of hexadecimal digits, as in \
         52:54:00:00:00:01"
    )]
    Form(String),
    /// The group bit is set (IEEE 802 section 8.2).
    #[error("{0} is a multicast address: use one whose first byte is even")]
    Multicast(String),
    /// All zeros.
    #[error("00:00:00:00:00:00 is nobody's address: use one such as 52:54:00:00:00:01")]
    Zero,
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Mac, MacError> {
        let form = || MacError::Form(text.to_owned());
        let mut bytes = [0; 6];
        let mut pairs = text.split(':');
        for byte in &mut bytes {
            let pair = pairs.next().ok_or_else(form)?;
            // from_str_radix would take "+1".
            if pair.len() != 2 || !pair.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(form());
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| form())?;
        }
        if pairs.next().is_some() {
            return Err(form());
        }
        if bytes[0] & 1 != 0 {
            return Err(MacError::Multicast(text.to_owned()));
        }
        if bytes == [0; 6] {
            return Err(MacError::Zero);
        }
        Ok(Mac(bytes))
    }
}

/// A host's address and the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// The host's address.
    pub fn address(self) -> IpAddr {
        self.address
    }

    /// Bits of the network's prefix, at least one.
    pub fn prefix_len(self) -> u8 {
        self.len
    }

    /// Whether `address` belongs to the network.
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && (bits(address) ^ bits(self.address)) & !self.host_mask() == 0
    }

    /// Whether `address` is one that a host of the network can have: neither
    /// the network's own, which is all its routers' with IPv6 (RFC 4291 section
    /// 2.6.1), nor the broadcast address that IPv4 has (RFC 1122 section
    /// 3.2.1.3). Networks of one or two addresses have neither (RFC 3021, RFC
    /// 6164).
    pub fn is_host(self, address: IpAddr) -> bool {
        let (mask, host) = (self.host_mask(), bits(address) & self.host_mask());
        let broadcast = address.is_ipv4() && host == mask;
        self.contains(address) && (mask <= 1 || (host != 0 && !broadcast))
    }

    /// The bits behind the prefix.
    fn host_mask(self) -> u128 {
        let width = if self.address.is_ipv4() { 32 } else { 128 };
        (1u128 << (width - u32::from(self.len))) - 1
    }
}

/// The address as a number.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

/// Why a text is no host's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Not an address with a prefix length.
    #[error(
        "\"{0}\" is no address: write it with its prefix length, as in 10.7.0.2/24 or fd00:7::2/64"
    )]
    Form(String),
    /// No prefix length.
    #[error("{0} has no prefix length: write it as in {0}/{usual}", usual = usual_len(*.0))]
    NoLength(IpAddr),
    /// Multicast, loopback, unspecified or broadcast.
    #[error("{0} cannot be a host's address on a network: use a unicast address")]
    NotUnicast(IpAddr),
    /// An IPv6 address that comes by itself.
    #[error("{0} is a link-local address, which the guest has anyway: use a global or local one")]
    LinkLocal(IpAddr),
    /// The network's address or its broadcast address.
    #[error("{0} names the network or its broadcast address: use a host's address within it")]
    NotHost(Prefix),
}

/// The prefix length that most networks have.
fn usual_len(address: IpAddr) -> u8 {
    if address.is_ipv4() { 24 } else { 64 }
}

/// Whether a host can have the address on a network, whatever the network.
pub(super) fn is_unicast(address: IpAddr) -> bool {
    match address {
        // 224/4 is multicast, 240/4 reserved, 0/8 "this network" (RFC 6890).
        IpAddr::V4(address) => {
            let first = address.octets()[0];
            first != 0 && first < 224 && !address.is_loopback()
        }
        IpAddr::V6(address) => {
            let special = address.is_unspecified() || address.is_loopback();
            !special && !address.is_multicast() && address.to_ipv4_mapped().is_none()
        }
    }
}

/// Whether only the host itself can have the address: loopback, or all of its addresses.
/// Whether a guest may have it depends on its port.
pub(super) fn is_hosts_own(address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified()
}

/// Whether the address is of use on one link only (RFC 4291 section 2.5.6).
pub(super) fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Prefix, PrefixError> {
        let form = || PrefixError::Form(text.to_owned());
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| form())?;
        let len = len.ok_or(PrefixError::NoLength(address))?;
        if !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(form());
        }
        let len_max = if address.is_ipv4() { 32 } else { 128 };
        let len = len.parse().ok().filter(|len| (1..=len_max).contains(len)).ok_or_else(form)?;
        if !is_unicast(address) && !is_hosts_own(address) {
            return Err(PrefixError::NotUnicast(address));
        }
        if is_link_local(address) {
            return Err(PrefixError::LinkLocal(address));
        }
        let prefix = Prefix { address, len };
        if !prefix.is_host(address) {
            return Err(PrefixError::NotHost(prefix));
        }
        Ok(prefix)
    }
}

/// An address, "10.7.0.9", or a network, "10.7.0.0/24". `None` if it is neither.
pub(super) fn network(text: &str) -> Option<Network> {
    match text.split_once('/') {
        None => text.parse().ok().map(Network::one),
        Some((address, len)) if len.bytes().all(|b| b.is_ascii_digit()) => {
            Network::new(address.parse().ok()?, len.parse().ok()?)
        }
        Some(_) => None,
    }
}

/// Splits a text into its leading digits and the unit behind them.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// A size in bytes: "64MiB", "1 GiB", "4194304". `None` if it is none.
pub(crate) fn size(text: &str) -> Option<u64> {
    let (number, unit) = number_and_unit(text)?;
    let shift = match unit {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        _ => return None,
    };
    number.checked_mul(1 << shift)
}

/// A size as it would be written, in the largest unit that is exact.
pub(crate) fn show_size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let exact = units.iter().find(|(shift, _)| bytes != 0 && bytes.is_multiple_of(1 << shift));
    exact.map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// A polling time: "always", "0", "50us", "1ms". `None` if it is none, or too
/// long.
pub(super) fn poll(text: &str) -> Option<Poll> {
    if text == "always" {
        return Some(Poll::Always);
    }
    let (number, unit) = number_and_unit(text)?;
    let unit_ns = match unit {
        "" if number == 0 => 0,
        "ns" => 1,
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        _ => return None,
    };
    let duration = Duration::from_nanos(number.checked_mul(unit_ns)?);
    (duration <= POLL_MAX).then_some(Poll::For(duration))
}
