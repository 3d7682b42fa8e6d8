//! Ports that several guests share: each is opened once, with a region of the host's
//! own, and its switch is a task beside the guests. One that a template names has room for
//! the guests that come of it.

use std::collections::HashMap;
use std::sync::Arc;

use paste_pmem::{Backing, Geometry, HugePages, Identity, Region, SIZE_MIN, SIZE_STEP, Uuid};

use super::threads::Placed;
use super::{
    Error, HEADROOM, OpenRegionError, fill_random, lane_name, no_random, poll_ns, station,
};
use crate::attachment::{Attachment, Common, OpenContext};
use crate::config::{GUESTS_MAX, Guest, Template};
use crate::lanes::{Choice, Ports, SECRET_LEN};
use crate::port::{Station, mtu_max};
use crate::switch::{Joiner, Switch, buffers_needed};
use crate::sys::clock::realtime_ns;
use crate::sys::wake;

/// The shared ports of a process, open and not yet running.
#[derive(Default)]
pub(super) struct Shared {
    nics: Vec<Nic>,
    /// Of those that guests may come to.
    doors: Vec<Door>,
    /// The ends that are not taken yet, by the guest's name.
    ends: HashMap<String, Ends>,
}

/// A guest's ends of a switch.
pub(super) struct Ends {
    /// One for each of its lanes.
    pub(super) attachments: Vec<Attachment>,
    /// What tells several lanes apart.
    pub(super) ports: Option<Arc<Ports>>,
}

struct Nic {
    name: String,
    switch: Switch,
    /// Where its frames lie.
    region: Region,
}

/// What guests come to a shared port by.
pub(super) struct Door {
    /// The kind of device, its name, and the part of it.
    device: (&'static str, String, Option<u32>),
    pub(super) joiner: Joiner,
}

impl Shared {
    /// Opens every port that more than one guest names, or one with several lanes, or one
    /// and a template.
    pub(super) fn open(
        guests: &[Guest],
        templates: &[Template],
        common: &mut Common,
    ) -> Result<Shared, Error> {
        let mut shared = Shared::default();
        let mut seen = Vec::new();
        // Who waits for a VMM's memory has a port of its own, opened with it.
        let now = guests.iter().filter(|guest| !guest.region.segment);
        for guest in now.filter(|guest| guest.port.kind().shared) {
            let device = device(guest);
            if seen.contains(&device) {
                continue;
            }
            seen.push(device);
            let sharing: Vec<&Guest> =
                guests.iter().filter(|g| self::device(g) == device).collect();
            let room = room(templates, guest);
            if sharing.iter().map(|guest| lanes(guest)).sum::<usize>() + room > 1 {
                shared.add(&sharing, room, common)?;
            }
        }
        Ok(shared)
    }

    /// Opens the port of a guest that is the first one there, if a template has others come
    /// to it. Returns whether it did.
    pub(super) fn open_first(
        &mut self,
        guest: &Guest,
        templates: &[Template],
        common: &mut Common,
    ) -> Result<bool, Error> {
        let room = room(templates, guest);
        if room > 1 {
            self.add(&[guest], room - 1, common)?;
        }
        Ok(room > 1)
    }

    /// A port of these guests, with room for so many more.
    fn add(&mut self, guests: &[&Guest], room: usize, common: &mut Common) -> Result<(), Error> {
        let system = |what| move |source| Error::System { what, source };
        let first = guests[0];
        let name = first.port.to_string();
        let mtu = guests.iter().map(|guest| guest.mtu).max().unwrap_or(first.mtu);
        let region = region(guests, room)
            .map_err(|source| Error::Region { guest: first.name.clone(), source })?;
        let stations: Vec<_> = guests.iter().map(|guest| station(guest)).collect();
        let mut context = OpenContext {
            mtu,
            stations: &stations,
            flows_max: first.flows_max,
            // No guest can write to what lies in this region.
            spoof_check: false,
            headroom: HEADROOM,
            shared_sends_max: 0,
            region: &region,
            common,
        };
        let opened = first.port.open(&mut context);
        let opened = opened.map_err(|source| Error::Port { guest: first.name.clone(), source })?;
        let Attachment::Port(port) = opened else {
            unreachable!("a kind that brings its own TCP is not shared");
        };
        let (waker, wakeups) = wake::pair().map_err(system("a pipe cannot be made"))?;
        let poll = guests.iter().map(|guest| poll_ns(guest)).max().unwrap_or(0);
        let pool = region.pool();
        let mut switch = Switch::new(name.clone(), port, pool, poll, (waker, wakeups));
        for (guest, station) in guests.iter().zip(&stations) {
            let mut pairs = Vec::with_capacity(lanes(guest));
            for index in 0..lanes(guest) {
                let pair = wake::pair().map_err(system("a pipe cannot be made"))?;
                pairs.push((lane_name(&guest.name, index), pair));
            }
            let (ends, ports) = if pairs.len() > 1 {
                let ports = Arc::new(Ports::new(pairs.len() as u8));
                let mut secret = vec![0; SECRET_LEN];
                fill_random(&mut secret).map_err(no_random)?;
                let Station { vlan, addresses, .. } = station;
                let choice = Choice::new(Arc::clone(&ports), *vlan, addresses, &secret);
                (switch.join_lanes(pairs, station, guest.mtu, choice), Some(ports))
            } else {
                let one = |(name, pair): (String, _)| switch.join(&name, station, guest.mtu, pair);
                (pairs.into_iter().map(one).collect(), None)
            };
            let attachment = |end| Attachment::Port(Box::new(end));
            let attachments = ends.into_iter().map(attachment).collect();
            self.ends.insert(guest.name.clone(), Ends { attachments, ports });
        }
        if room > 0 {
            let (kind, device, part) = device(first);
            let device = (kind, device.to_owned(), part);
            self.doors.push(Door { device, joiner: switch.joiner(room) });
        }
        tracing::info!(port = %name, guests = guests.len(), room, "port shared");
        self.nics.push(Nic { name, switch, region });
        Ok(())
    }

    /// A guest's ends of the port that it shares; `None` if it has one of its own.
    pub(super) fn take(&mut self, guest: &str) -> Option<Ends> {
        self.ends.remove(guest)
    }

    /// The switches, the regions that have to outlive them, and what guests come to them by.
    pub(super) fn into_parts(self) -> (Vec<Placed>, Vec<Region>, Vec<Door>) {
        let part = |Nic { name, switch, region }| {
            (Placed { name, task: Box::new(switch), worker: None }, region)
        };
        let (placed, regions) = self.nics.into_iter().map(part).unzip();
        (placed, regions, self.doors)
    }
}

impl Door {
    /// Whether it is that of the port which the guest names.
    pub(super) fn is_of(&self, guest: &Guest) -> bool {
        let (kind, name, part) = &self.device;
        (*kind, name.as_str(), *part) == device(guest)
    }
}

/// Guests that come of templates to the port that a guest names, at most.
fn room(templates: &[Template], guest: &Guest) -> usize {
    let names = |template: &&Template| {
        let port = template.port().filter(|port| port.kind().shared);
        port.is_some_and(|port| (port.kind().prefix, port.device(), port.part()) == device(guest))
    };
    let room = templates.iter().filter(names).map(|template| template.guests_max as usize);
    room.sum::<usize>().min(GUESTS_MAX)
}

/// Workers that serve a guest, each a lane of it.
fn lanes(guest: &Guest) -> usize {
    guest.workers.len().max(1)
}

/// What guests share who name the same.
fn device(guest: &Guest) -> (&'static str, &str, Option<u32>) {
    (guest.port.kind().prefix, guest.port.device(), guest.port.part())
}

/// Memory for the frames of a NIC with these guests and so many more.
fn region(guests: &[&Guest], room: usize) -> Result<Region, OpenRegionError> {
    let sizes = guests.iter().map(|guest| guest.region.buffer_size);
    // What longer packets are made into has to fit the buffers of whomever it is for.
    let is_cut = |guest: &&Guest| u32::from(guest.mtu) > mtu_max(guest.region.buffer_size);
    let cuts = guests.iter().any(is_cut);
    let buffer_size = if cuts { sizes.min() } else { sizes.max() };
    let buffer_size = buffer_size.unwrap_or(paste_pmem::BUFFER_SIZE_MIN);
    let needed = buffers_needed(guests.iter().map(|guest| lanes(guest)).sum::<usize>() + room);
    let buffers = needed as u64 * u64::from(buffer_size);
    // Beside the buffers it has a head and tables, which are less than that.
    let size = (2 * buffers).max(SIZE_MIN).next_multiple_of(SIZE_STEP);
    let identity = Identity {
        guest: &guests[0].name,
        uuid: Uuid::random().map_err(OpenRegionError::Random)?,
        created_ns: realtime_ns(),
    };
    let geometry = Geometry::new(size, buffer_size)?;
    debug_assert!(geometry.buffer_count() as usize >= needed);
    Ok(Region::create(&Backing::Memory(HugePages::No), geometry, &identity)?)
}
