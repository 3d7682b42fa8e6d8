//! What tells flows apart: the peer's address and both ports, and which of our
//! own addresses it is.

use core::hash::Hasher;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::ip::Octets;

/// Which of the stack's own addresses a flow has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Local {
    /// The IPv4 address.
    V4,
    /// The configured IPv6 address.
    V6,
    /// The IPv6 address of the link (RFC 4291 section 2.5.6).
    V6Link,
}

impl Local {
    /// How many there are.
    pub(crate) const COUNT: usize = 3;

    /// Whether it is an IPv6 address.
    #[inline]
    pub(crate) const fn is_v6(self) -> bool {
        !matches!(self, Local::V4)
    }
}

/// What tells flows apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    remote: Octets,
    pub remote_port: u16,
    pub local_port: u16,
    pub local: Local,
}

const _: () = assert!(size_of::<Key>() <= 22);

impl Key {
    /// The key of a flow that there is not yet.
    pub(crate) const NONE: Key = Key::v4(Ipv4Addr::UNSPECIFIED, 0, 0);
    /// The key of a flow to an address of the family that `local` has.
    #[inline]
    pub(crate) const fn new(
        local: Local,
        remote: Octets,
        remote_port: u16,
        local_port: u16,
    ) -> Key {
        Key { remote, remote_port, local_port, local }
    }

    /// The key of a flow over IPv4.
    pub(crate) const fn v4(remote: Ipv4Addr, remote_port: u16, local_port: u16) -> Key {
        Key::new(Local::V4, remote.to_ipv6_mapped().octets(), remote_port, local_port)
    }

    /// The peer's address.
    pub(crate) fn remote(&self) -> IpAddr {
        Ipv6Addr::from_octets(self.remote).to_canonical()
    }

    /// The peer's address.
    #[inline]
    pub(crate) const fn remote_octets(&self) -> &Octets {
        &self.remote
    }

    /// All of the key, for hashing; different keys are never the same words. Those
    /// of IPv4 are one word.
    #[inline]
    pub(crate) fn hash<H: Hasher>(&self, hasher: &mut H) {
        let remote = u128::from_be_bytes(self.remote);
        let (high, low) = ((remote >> 64) as u64, remote as u64);
        let ports = u64::from(self.remote_port) << 16 | u64::from(self.local_port);
        if let Local::V4 = self.local {
            hasher.write_u64(low << 32 | ports);
        } else {
            hasher.write_u64(high);
            hasher.write_u64(low);
            hasher.write_u64((self.local as u64) << 32 | ports);
        }
    }
}
