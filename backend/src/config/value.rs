//! Values that have a text of their own: addresses, sizes and durations.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use super::{POLL_MAX, Poll};

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

/// A host's IPv4 address and the length of its network's prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Prefix {
    address: Ipv4Addr,
    len: u8,
}

impl Prefix {
    /// The host's address.
    pub fn address(self) -> Ipv4Addr {
        self.address
    }

    /// Bits of the network's prefix, 1 to 32.
    pub fn prefix_len(self) -> u8 {
        self.len
    }

    /// Whether `address` belongs to the network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.address.to_bits()) & self.mask() == 0
    }

    /// Whether `address` is one that a host of the network can have: neither
    /// the network's own nor its broadcast address (RFC 1122 section 3.2.1.3;
    /// networks of one or two addresses have neither, RFC 3021).
    pub fn is_host(self, address: Ipv4Addr) -> bool {
        let host = address.to_bits() & !self.mask();
        self.contains(address) && (self.len > 30 || (host != 0 && host != !self.mask()))
    }

    fn mask(self) -> u32 {
        u32::MAX << (32 - u32::from(self.len))
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
    #[error("\"{0}\" is no address: write it with its prefix length, as in 10.7.0.2/24")]
    Form(String),
    /// No prefix length.
    #[error("{0} has no prefix length: write it as in {0}/24")]
    NoLength(Ipv4Addr),
    /// IPv6.
    #[error("{0} is an IPv6 address, which is not supported yet: use an IPv4 address")]
    Ipv6(Ipv6Addr),
    /// Multicast, loopback, unspecified or broadcast.
    #[error("{0} cannot be a host's address on a network: use a unicast address")]
    NotUnicast(Ipv4Addr),
    /// The network's address or its broadcast address.
    #[error("{0} names the network or its broadcast address: use a host's address within it")]
    NotHost(Prefix),
}

/// Whether a host can have the address on a network, whatever the network.
pub(super) fn is_unicast(address: Ipv4Addr) -> bool {
    // 224/4 is multicast, 240/4 reserved, 0/8 "this network" (RFC 6890).
    let first = address.octets()[0];
    first != 0 && first < 224 && !address.is_loopback()
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Prefix, PrefixError> {
        let form = || PrefixError::Form(text.to_owned());
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        if let Ok(address) = address.parse() {
            return Err(PrefixError::Ipv6(address));
        }
        let address: Ipv4Addr = address.parse().map_err(|_| form())?;
        let len = len.ok_or(PrefixError::NoLength(address))?;
        if !len.bytes().all(|b| b.is_ascii_digit()) {
            return Err(form());
        }
        let len = len.parse().ok().filter(|len| (1..=32).contains(len)).ok_or_else(form)?;
        if !is_unicast(address) {
            return Err(PrefixError::NotUnicast(address));
        }
        let prefix = Prefix { address, len };
        if !prefix.is_host(address) {
            return Err(PrefixError::NotHost(prefix));
        }
        Ok(prefix)
    }
}

/// Splits a text into its leading digits and the unit behind them.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

/// A size in bytes: "64MiB", "1 GiB", "4194304". `None` if it is none.
pub(super) fn size(text: &str) -> Option<u64> {
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
pub(super) fn show_size(bytes: u64) -> String {
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
