//! Our own addresses, and what is behind them: which addresses are on the link,
//! and which router is for the others.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::hash::Hasher;

use siphasher::sip::SipHasher13;

use crate::checksum;
use crate::config::{Config, Network};
use crate::flow::{Key, Local};
use crate::wire::ip::Octets;
use crate::wire::{ipv4, ipv6};

/// One of our addresses.
#[derive(Clone, Copy, Debug)]
struct Own {
    octets: Octets,
    sum: u16,
}

/// A router that offered itself.
#[derive(Clone, Copy, Debug)]
struct Router {
    address: Ipv6Addr,
    until: u64,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Addresses {
    /// By [`Local`]; of what is not configured, nobody asks.
    own: [Own; Local::COUNT],
    v4: Option<Network<Ipv4Addr>>,
    mask_v4: u32,
    v6: Option<Network<Ipv6Addr>>,
    mask_v6: u128,
    link_local: Ipv6Addr,
    router: Option<Router>,
}

impl Addresses {
    pub(crate) fn new(config: &Config) -> Addresses {
        let v4 = config.ipv4.map_or(Ipv4Addr::UNSPECIFIED, |network| network.address);
        let v6 = config.ipv6.map_or(Ipv6Addr::UNSPECIFIED, |network| network.address);
        let link_local = link_local(config.mac, v6);
        let own = [v4.to_ipv6_mapped(), v6, link_local].map(|address| {
            let octets = address.octets();
            Own { octets, sum: checksum::address(&octets) }
        });
        let bits_v4 = config.ipv4.map_or(0, |network| u32::from(network.prefix_len));
        let bits_v6 = config.ipv6.map_or(0, |network| u32::from(network.prefix_len));
        Addresses {
            own,
            v4: config.ipv4,
            mask_v4: u32::MAX.checked_shl(32 - bits_v4.min(32)).unwrap_or(0),
            v6: config.ipv6,
            mask_v6: u128::MAX.checked_shl(128 - bits_v6.min(128)).unwrap_or(0),
            link_local,
            router: None,
        }
    }

    /// The address.
    #[inline]
    pub(crate) fn octets(&self, local: Local) -> &Octets {
        &self.own[local as usize].octets
    }

    /// Its sum, for pseudo-headers.
    #[inline]
    pub(crate) fn sum(&self, local: Local) -> u16 {
        self.own[local as usize].sum
    }

    /// The IPv4 address.
    #[inline]
    pub(crate) fn v4(&self) -> Option<Ipv4Addr> {
        self.v4.map(|network| network.address)
    }

    /// The IPv6 addresses: the configured one, and that of the link.
    pub(crate) fn v6(&self) -> Option<[Ipv6Addr; 2]> {
        self.v6.map(|network| [network.address, self.link_local])
    }

    /// Which of our IPv6 addresses this is.
    #[inline]
    pub(crate) fn local_v6(&self, address: Ipv6Addr) -> Option<Local> {
        let network = self.v6?;
        if address == network.address {
            Some(Local::V6)
        } else if address == self.link_local {
            Some(Local::V6Link)
        } else {
            None
        }
    }

    /// Whether this is the group at which one of our addresses is asked for.
    pub(crate) fn is_solicited(&self, group: Ipv6Addr) -> bool {
        self.v6().is_some_and(|own| own.map(ipv6::solicited_node).contains(&group))
    }

    /// Whether this is the broadcast address of our IPv4 network (RFC 1122
    /// section 3.2.1.3); the smallest networks have none (RFC 3021).
    #[inline]
    pub(crate) fn is_broadcast(&self, address: Ipv4Addr) -> bool {
        self.v4.is_some_and(|network| network.prefix_len < 31)
            && self.on_link(IpAddr::V4(address))
            && address.to_bits() | self.mask_v4 == u32::MAX
    }

    /// Whether an address is on our link: by its prefix, which is the
    /// operator's word for it (RFC 5942 section 4).
    pub(crate) fn on_link(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.v4.is_some_and(|network| {
                (address.to_bits() ^ network.address.to_bits()) & self.mask_v4 == 0
            }),
            IpAddr::V6(address) => self.v6.is_some_and(|network| {
                address.is_unicast_link_local()
                    || (address.to_bits() ^ network.address.to_bits()) & self.mask_v6 == 0
            }),
        }
    }

    /// The address on our link through which `remote` is reached.
    pub(crate) fn next_hop(&self, now: u64, remote: IpAddr) -> Option<IpAddr> {
        if self.on_link(remote) {
            return Some(remote);
        }
        match remote {
            IpAddr::V4(_) => self.v4?.gateway.map(IpAddr::V4),
            IpAddr::V6(_) => {
                let offered = self.router.filter(|router| now < router.until);
                self.v6?.gateway.or(offered.map(|router| router.address)).map(IpAddr::V6)
            }
        }
    }

    /// A router offers itself for so long; zero takes the offer back. The one
    /// that is known stays while it does (RFC 4861 section 6.3.6).
    pub(crate) fn offer(&mut self, now: u64, address: Ipv6Addr, time: u64) {
        let known = self.router.filter(|router| now < router.until);
        if known.is_none_or(|router| router.address == address) {
            let until = now.saturating_add(time);
            self.router = (time > 0).then_some(Router { address, until });
        }
    }

    /// Whether a router is known, by configuration or by its own word.
    pub(crate) fn has_router(&self, now: u64) -> bool {
        self.v6.is_some_and(|network| network.gateway.is_some())
            || self.router.is_some_and(|router| now < router.until)
    }

    /// The key of a flow to be opened to this address, from the address of ours
    /// that has its scope (RFC 6724 section 5, rule 2). `None` when nobody can
    /// be reached there, or it is our own.
    pub(crate) fn key_to(&self, remote: IpAddr, remote_port: u16, local_port: u16) -> Option<Key> {
        match remote.to_canonical() {
            IpAddr::V4(address) => {
                let possible = ipv4::is_host(address) && self.v4().is_some_and(|v4| v4 != address);
                possible.then(|| Key::v4(address, remote_port, local_port))
            }
            IpAddr::V6(address) => {
                let own = self.v6()?;
                if !ipv6::is_host(address) || own.contains(&address) {
                    return None;
                }
                let local = if address.is_unicast_link_local() { Local::V6Link } else { Local::V6 };
                Some(Key::new(local, address.octets(), remote_port, local_port))
            }
        }
    }
}

/// The link-local address that goes with a configured one. Not made of the
/// Ethernet address alone (RFC 4291 appendix A): that belongs to the guest's own
/// kernel too, which makes its link-local address so. Instead the interface
/// identifier is a hash (RFC 7217 section 5), the same after every restart. Its
/// key need not be secret, as the configured address is not.
fn link_local(mac: [u8; 6], address: Ipv6Addr) -> Ipv6Addr {
    let mut hasher = SipHasher13::new();
    hasher.write(&mac);
    hasher.write(&address.octets());
    Ipv6Addr::from_bits(0xfe80 << 112 | u128::from(hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SEC;

    fn addresses(gateway: Option<&str>) -> Addresses {
        let mut config = Config::new([2; 6], Ipv4Addr::new(10, 7, 0, 2), 24);
        config.ipv6 = Some(Network {
            address: "fd00:7::2".parse().unwrap(),
            prefix_len: 64,
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        });
        Addresses::new(&config)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_prefix_says_what_is_on_the_link() {
        let with = addresses(Some("fd00:7::1"));
        for (address, hop) in [
            ("10.7.0.9", Some("10.7.0.9")),
            ("10.7.1.9", None),
            ("fd00:7::ffff", Some("fd00:7::ffff")),
            ("fe80::9", Some("fe80::9")),
            ("fd00:7:0:1::2", Some("fd00:7::1")),
            ("2001:db8::1", Some("fd00:7::1")),
        ] {
            assert_eq!(with.next_hop(0, ip(address)), hop.map(ip), "{address}");
        }
        assert!(with.is_broadcast(Ipv4Addr::new(10, 7, 0, 255)));
        assert!(!with.is_broadcast(Ipv4Addr::new(10, 7, 1, 255)));
    }

    #[test]
    fn a_router_is_used_for_as_long_as_it_offered() {
        let mut addresses = addresses(None);
        let far = ip("2001:db8::1");
        let (first, second) = ("fe80::1".parse().unwrap(), "fe80::2".parse().unwrap());
        assert_eq!(addresses.next_hop(0, far), None);
        addresses.offer(SEC, first, 10 * SEC);
        addresses.offer(SEC, second, 100 * SEC);
        assert_eq!(addresses.next_hop(10 * SEC, far), Some(IpAddr::V6(first)));
        assert_eq!(addresses.next_hop(11 * SEC, far), None);
        addresses.offer(12 * SEC, second, 100 * SEC);
        addresses.offer(13 * SEC, first, 0);
        assert_eq!(addresses.next_hop(14 * SEC, far), Some(IpAddr::V6(second)));
        addresses.offer(15 * SEC, second, 0);
        assert!(!addresses.has_router(16 * SEC));
    }

    #[test]
    fn a_flow_is_opened_from_the_address_of_its_scope() {
        let addresses = addresses(None);
        let local = |text| addresses.key_to(ip(text), 80, 1).map(|key| key.local);
        assert_eq!(local("10.7.0.9"), Some(Local::V4));
        assert_eq!(local("::ffff:10.7.0.9"), Some(Local::V4));
        assert_eq!(local("2001:db8::1"), Some(Local::V6));
        assert_eq!(local("fe80::9"), Some(Local::V6Link));
        for nobody in ["10.7.0.2", "224.0.0.1", "fd00:7::2", "::", "::1", "ff02::1"] {
            assert_eq!(local(nobody), None, "{nobody}");
        }
        let own = addresses.v6().unwrap()[1];
        assert_eq!(addresses.key_to(IpAddr::V6(own), 80, 1), None);
    }

    #[test]
    fn the_link_local_address_stays_and_is_not_that_of_the_guests_kernel() {
        let own = addresses(None).v6().unwrap()[1];
        assert_eq!(own, addresses(Some("fd00:7::1")).v6().unwrap()[1]);
        assert!(own.is_unicast_link_local());
        assert_ne!(own, "fe80::2:2ff:fe02:202".parse::<Ipv6Addr>().unwrap());
        assert_ne!(own, link_local([4; 6], "fd00:7::2".parse().unwrap()));
    }
}
