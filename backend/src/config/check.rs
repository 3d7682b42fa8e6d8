//! The rules between the values of one guest, and between guests.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::path::Path;

use super::error::Findings;
use super::fields::At;
use super::read::Draft;
use super::value::{PrefixError, is_hosts_own, is_link_local};
use super::{MTU_MIN_IPV6, Prefix, RegionSpec, Workers, link_of};
use crate::port::mtu_max;

/// The rules within one guest.
pub(super) fn within(guest: &Draft, findings: &mut Findings) {
    let who = &guest.who;
    if guest.shares_addresses {
        judge_shared(guest, findings);
    } else if let Some(addresses) = &guest.addresses {
        families(who, "address", &addresses.value, |prefix| prefix.address(), findings);
        // Without a port, that is reported, and this when there is one.
        let own = guest.port.as_ref().is_some_and(|port| !port.value.has_hosts_addresses());
        let hosts = |prefix: &&At<Prefix>| is_hosts_own(prefix.value.address());
        for prefix in addresses.value.iter().filter(hosts).filter(|_| own) {
            let error = PrefixError::NotUnicast(prefix.value.address());
            findings.add(prefix.at.clone(), format!("{who}: address {error}"));
        }
        if let Some(gateways) = &guest.gateways {
            families(who, "gateway", gateways, |&gateway| gateway, findings);
            for gateway in gateways {
                judge_gateway(who, gateway, &addresses.value, findings);
            }
        }
        let has_v6 = addresses.value.iter().any(|prefix| prefix.value.address().is_ipv6());
        if let Some(accept_ra) = &guest.accept_ra
            && accept_ra.value
            && !has_v6
        {
            let message =
                format!("{who}: accept_ra is of IPv6: give an IPv6 address too, or leave it out");
            findings.add(accept_ra.at.clone(), message);
        }
        if let Some(mtu) = &guest.mtu
            && mtu.value < MTU_MIN_IPV6
            && has_v6
        {
            let message = format!(
                "{who}: mtu {} is too small for IPv6: use an mtu of at least {MTU_MIN_IPV6}, or \
                 give no IPv6 address",
                mtu.value
            );
            findings.add(mtu.at.clone(), message);
        }
    }
    judge_sources(guest, findings);
    let cuts = guest.port.as_ref().is_some_and(|port| port.value.kind().cuts_packets);
    if let (Some(mtu), Some(region)) = (&guest.mtu, &guest.region)
        && !cuts
    {
        let max = mtu_max(region.value.buffer_size);
        if u32::from(mtu.value) > max {
            let message = format!(
                "{who}: mtu {} does not fit a buffer of {} bytes: use an mtu of at most {max}, \
                 or buffer_size = {}",
                mtu.value,
                region.value.buffer_size,
                buffer_size_for(mtu.value),
            );
            findings.add(mtu.at.clone(), message);
        }
    }
}

/// What a guest needs whose addresses are those of its kernel: `sources` that it can have
/// them from, and for a gateway the network that it is on.
fn judge_shared(guest: &Draft, findings: &mut Findings) {
    let who = &guest.who;
    let Some(sources) = &guest.sources else { return };
    let (at, sources) = (&sources.at, &sources.value);
    if sources.is_empty() && guest.spoof_check == Some(true) {
        let at = guest.addresses.as_ref().map_or(at, |addresses| &addresses.at);
        let message = format!(
            "{who}: addresses = \"guest\" needs sources, which say what its kernel's addresses may \
             be: give sources = [\"10.7.0.0/24\"], or \"any\""
        );
        findings.add(at.clone(), message);
    }
    for gateway in guest.gateways.iter().flatten() {
        if link_of(sources, gateway.value).is_none() {
            let message = format!(
                "{who}: gateway {} is in no network of sources: with addresses = \"guest\" they \
                 say which one the guest's link is, as in sources = [\"10.7.0.0/24\"]",
                gateway.value
            );
            findings.add(gateway.at.clone(), message);
        }
    }
    let Some(port) = &guest.port else { return };
    let kind = port.value.kind();
    if port.value.has_hosts_addresses() {
        let message = format!(
            "{who}: addresses = \"guest\" needs a port with frames of the guest's kernel, and \
             {} has none: give addresses, or another port",
            kind.form
        );
        findings.add(port.at.clone(), message);
    } else if kind.needs_addresses && sources.iter().all(|network| network.single().is_none()) {
        let message = format!(
            "{who}: {} finds the guest by its addresses: with addresses = \"guest\", give them one \
             by one in sources, as in sources = [\"10.7.0.2\"]",
            kind.form
        );
        findings.add(port.at.clone(), message);
    }
}

/// Sources are for guests whose frames are checked.
fn judge_sources(guest: &Draft, findings: &mut Findings) {
    if let Some(sources) = &guest.sources
        && !sources.value.is_empty()
        && guest.spoof_check == Some(false)
    {
        let message = format!(
            "{}: sources are of no use without spoof_check: leave one of them out",
            guest.who
        );
        findings.add(sources.at.clone(), message);
    }
}

/// The family of an address, as messages have it.
fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Reports each value whose family an earlier one has.
fn families<T>(
    who: &str,
    what: &str,
    values: &[At<T>],
    address: impl Fn(&T) -> IpAddr,
    findings: &mut Findings,
) {
    for (index, value) in values.iter().enumerate() {
        let family_of = |value: &At<T>| family(address(&value.value));
        let own = family_of(value);
        if values[..index].iter().any(|earlier| family_of(earlier) == own) {
            let message = format!(
                "{who}: {what} {} is a second one of {own}: give one of each family at most",
                address(&value.value)
            );
            findings.add(value.at.clone(), message);
        }
    }
}

/// A gateway has to be a host of the network of its family that is not the
/// guest itself. With IPv6 it may be known by its link-local address.
fn judge_gateway(who: &str, gateway: &At<IpAddr>, addresses: &[At<Prefix>], f: &mut Findings) {
    let (at, gateway) = (gateway.at.clone(), gateway.value);
    let family = family(gateway);
    let prefix = addresses.iter().map(|prefix| prefix.value);
    let Some(prefix) = prefix.into_iter().find(|p| p.address().is_ipv4() == gateway.is_ipv4())
    else {
        let message =
            format!("{who}: gateway {gateway} is of {family}: give an {family} address too");
        f.add(at, message);
        return;
    };
    if is_link_local(gateway) {
        return;
    }
    let problem = if !prefix.contains(gateway) {
        format!("is not in {prefix}: use an address of that network")
    } else if gateway == prefix.address() {
        "is the guest's own address: use the router's".to_owned()
    } else if !prefix.is_host(gateway) {
        format!("names the network {prefix} or its broadcast address: use the router's")
    } else {
        return;
    };
    f.add(at, format!("{who}: gateway {gateway} {problem}"));
}

/// The smallest buffer that takes frames of this MTU, in bytes.
fn buffer_size_for(mtu: u16) -> u32 {
    let mut size = paste_pmem::BUFFER_SIZE_MIN;
    while mtu_max(size) < u32::from(mtu) {
        size *= 2;
    }
    size
}

/// The rules between guests.
pub(super) fn between(guests: &[Draft], findings: &mut Findings) {
    unique(guests, findings, |guest| {
        let name = guest.name.as_ref()?;
        Some((name, name.value.clone(), "name", "give every guest a name of its own"))
    });
    unique(guests, findings, |guest| {
        let socket = guest.socket.as_ref()?.as_ref()?;
        let path = socket.value.path.clone();
        Some((socket, path, "socket", "give every guest a socket of its own"))
    });
    pmem_sockets(guests, findings);
    unique(guests, findings, |guest| {
        let mac = guest.mac.as_ref()?;
        Some((mac, mac.value, "mac", "give every guest an address of its own"))
    });
    region_files(guests, findings);
    // Guests on different devices may be on networks that do not know of each
    // other; those on one device are on the same.
    for v4 in [true, false] {
        unique(guests, findings, |guest| {
            let addresses = &guest.addresses.as_ref()?.value;
            let address = addresses.iter().find(|a| a.value.address().is_ipv4() == v4)?;
            let port = &guest.port.as_ref()?.value;
            if port.has_hosts_addresses() {
                return None;
            }
            let link = (port.kind().prefix, port.device().to_owned(), guest.vlan);
            let key = (link, address.value.address());
            Some((address, key, "address", "guests on one port need addresses of their own"))
        });
    }
    shared_devices(guests, findings);
    segments(guests, findings);
}

/// Reports guests in a segment of a VMM's that have what would be open before the VMM is
/// there, or stay open when it is exchanged.
fn segments(guests: &[Draft], findings: &mut Findings) {
    for (index, guest) in guests.iter().enumerate() {
        let Some(region) = guest.region.as_ref().filter(|region| region.value.segment) else {
            continue;
        };
        let device = |guest: &Draft| {
            let port = &guest.port.as_ref()?.value;
            Some((port.kind().prefix, port.device().to_owned(), port.part()))
        };
        let own = device(guest);
        let mut others = guests.iter().enumerate().filter(|(at, _)| *at != index);
        let shares = own.is_some() && others.any(|(_, other)| device(other) == own);
        let worker = guest.workers.as_ref().is_some_and(|workers| !workers.value.is_empty());
        let has_socket = guest.socket.as_ref().is_some_and(Option::is_some);
        let reasons = [
            (has_socket, "a socket: its VMM asks on the control socket"),
            (worker, "a worker: it has one of its own"),
            (shares, "a port that another guest names: give it one of its own"),
        ];
        for (_, why) in reasons.iter().filter(|(holds, _)| *holds) {
            let message = format!("{}: segment = true is not possible with {why}", guest.who);
            findings.add(region.at.clone(), message);
        }
    }
}

/// Reports guests on workers that are not there, and guests on several that can have but
/// one.
pub(super) fn placed(guests: &[Draft], workers: Option<&Workers>, findings: &mut Findings) {
    for guest in guests {
        let Some(own) = guest.workers.as_ref().filter(|own| !own.value.is_empty()) else {
            continue;
        };
        let count = workers.map_or(0, |workers| workers.count);
        let beyond = own.value.iter().find(|&&worker| worker >= count);
        let several = own.value.len() > 1;
        let message = match (workers, beyond) {
            (None, _) => "worker is of no use where every guest has one of its own: say how many \
                          workers there are, or leave it out"
                .to_owned(),
            (Some(_), Some(worker)) => {
                format!("worker {worker} is not there: use a number from 0 to {}", count - 1)
            }
            (Some(_), None) => match one_worker_only(guest).filter(|_| several) {
                Some(why) => format!("several workers are not possible {why}: give one"),
                None => continue,
            },
        };
        findings.add(own.at.clone(), format!("{}: {message}", guest.who));
    }
}

/// Why a guest can have but one worker.
fn one_worker_only(guest: &Draft) -> Option<&'static str> {
    let port = guest.port.as_ref().is_some_and(|port| !port.value.kind().shared);
    let reasons =
        [(port, "on a port of this kind"), (guest.shares_addresses, "with addresses = \"guest\"")];
    reasons.into_iter().find(|(holds, _)| *holds).map(|(_, why)| why)
}

/// Reports each virtio-pmem socket that a guest has as its socket, or an earlier
/// one for its own virtio-pmem device.
fn pmem_sockets(guests: &[Draft], findings: &mut Findings) {
    let sockets = guests.iter().filter_map(|guest| guest.socket.as_ref()?.as_ref());
    let mut taken: HashSet<&Path> = sockets.map(|socket| socket.value.path.as_path()).collect();
    for guest in guests {
        let Some(region) = &guest.region else { continue };
        if let Some(socket) = &region.value.pmem_socket
            && !taken.insert(&socket.path)
        {
            let message = format!(
                "{}: pmem_socket is a socket of another device: give every device one of its own",
                guest.who
            );
            findings.add(region.at.clone(), message);
        }
    }
}

/// Reports each region's path and mirror that an earlier guest has as either.
fn region_files(guests: &[Draft], findings: &mut Findings) {
    let mut first: HashMap<&Path, &str> = HashMap::new();
    for guest in guests {
        let Some(region) = &guest.region else { continue };
        let RegionSpec { path, mirror, .. } = &region.value;
        for (file, what) in [(path, "path"), (mirror, "mirror")] {
            let Some(file) = file else { continue };
            if let Some(earlier) = first.get(file.as_path()) {
                let message = format!(
                    "{}: region {what} is a file of {earlier} too: a region belongs to one guest",
                    guest.who
                );
                findings.add(region.at.clone(), message);
            } else {
                first.insert(file, &guest.who);
            }
        }
    }
}

/// Reports each guest whose `key` an earlier guest has.
fn unique<'g, T: 'g, K: Eq + Hash>(
    guests: &'g [Draft],
    findings: &mut Findings,
    key: impl Fn(&'g Draft) -> Option<(&'g At<T>, K, &'static str, &'static str)>,
) {
    let mut first: HashMap<K, usize> = HashMap::new();
    for (index, guest) in guests.iter().enumerate() {
        let Some((place, key, what, advice)) = key(guest) else {
            continue;
        };
        if let Some(&earlier) = first.get(&key) {
            let earlier = match &guests[earlier].who {
                same if *same == guest.who => format!("guest {}", earlier + 1),
                other => other.clone(),
            };
            let message = format!("{}: {what} is that of {earlier} too: {advice}", guest.who);
            findings.add(place.at.clone(), message);
        } else {
            first.insert(key, index);
        }
    }
}

/// Reports guests that name a device which has no room for them, and those that name all
/// of one of which others name a part.
fn shared_devices(guests: &[Draft], findings: &mut Findings) {
    let mut users: HashMap<(&str, &str, Option<u32>), usize> = HashMap::new();
    let mut whole: HashMap<(&str, &str), (bool, &str)> = HashMap::new();
    for guest in guests {
        let Some(port) = &guest.port else { continue };
        let (kind, device) = (port.value.kind(), port.value.device());
        let part = port.value.part();
        let count = users.entry((kind.prefix, device, part)).or_default();
        *count += 1;
        if *count > kind.guests_max {
            let guests_max = match kind.guests_max {
                1 => "one guest".to_owned(),
                n => format!("{n} guests"),
            };
            let message = format!(
                "{}: port {}:{device} serves {guests_max} only: name \
                 another device",
                guest.who, kind.prefix,
            );
            findings.add(port.at.clone(), message);
        }
        let is_whole = part.is_none();
        let &mut (was_whole, who) =
            whole.entry((kind.prefix, device)).or_insert((is_whole, &guest.who));
        if was_whole != is_whole {
            let [one, other] = if is_whole { ["all", "one"] } else { ["one", "all"] };
            let message = format!(
                "{}: port {}:{device} is named with {one} of its queues, and with {other} by \
                 {who}: name a queue for each, or none",
                guest.who, kind.prefix,
            );
            findings.add(port.at.clone(), message);
        }
    }
}
