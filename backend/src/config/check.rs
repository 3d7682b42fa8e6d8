//! The rules between the values of one guest, and between guests.

use std::collections::HashMap;
use std::hash::Hash;

use super::error::Findings;
use super::fields::At;
use super::read::Draft;
use crate::port::mtu_max;

/// The rules within one guest.
pub(super) fn within(guest: &Draft, findings: &mut Findings) {
    let who = &guest.who;
    if let (Some(gateway), Some(address)) = (&guest.gateway, &guest.address) {
        let (at, gateway, prefix) = (gateway.at.clone(), gateway.value, address.value);
        if !prefix.contains(gateway) {
            let message = format!(
                "{who}: gateway {gateway} is not in {prefix}: use an address of that network"
            );
            findings.add(at, message);
        } else if gateway == prefix.address() {
            let message =
                format!("{who}: gateway {gateway} is the guest's own address: use the router's");
            findings.add(at, message);
        } else if !prefix.is_host(gateway) {
            let message = format!(
                "{who}: gateway {gateway} names the network {prefix} or its broadcast address: \
                 use the router's"
            );
            findings.add(at, message);
        }
    }
    if let (Some(mtu), Some(region)) = (&guest.mtu, &guest.region) {
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
        let socket = guest.socket.as_ref()?;
        let path = socket.value.path.clone();
        Some((socket, path, "socket", "give every guest a socket of its own"))
    });
    unique(guests, findings, |guest| {
        let mac = guest.mac.as_ref()?;
        Some((mac, mac.value, "mac", "give every guest an address of its own"))
    });
    unique(guests, findings, |guest| {
        let region = guest.region.as_ref()?;
        let path = region.value.path.clone()?;
        Some((region, path, "region path", "a region belongs to one guest"))
    });
    // Guests on different devices may be on networks that do not know of each
    // other; those on one device are on the same.
    unique(guests, findings, |guest| {
        let address = guest.address.as_ref()?;
        let port = &guest.port.as_ref()?.value;
        let key = (port.kind().prefix, port.device().to_owned(), address.value.address());
        Some((address, key, "address", "guests on one port need addresses of their own"))
    });
    shared_devices(guests, findings);
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

/// Reports guests that name a device which has no room for them.
fn shared_devices(guests: &[Draft], findings: &mut Findings) {
    let mut users: HashMap<(&str, &str), usize> = HashMap::new();
    for guest in guests {
        let Some(port) = &guest.port else { continue };
        let (kind, device) = (port.value.kind(), port.value.device());
        let count = users.entry((kind.prefix, device)).or_default();
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
    }
}
