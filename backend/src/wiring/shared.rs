//! Ports that several guests share: each is opened once, with a region of the host's
//! own, and its switch is a task beside the guests.

use std::collections::HashMap;

use paste_pmem::{Backing, Geometry, HugePages, Identity, Region, SIZE_MIN, SIZE_STEP, Uuid};

use super::threads::Placed;
use super::{Error, HEADROOM, OpenRegionError, poll_ns, station};
use crate::attachment::{Attachment, Common, OpenContext};
use crate::config::Guest;
use crate::switch::{Switch, buffers_needed};
use crate::sys::clock::realtime_ns;
use crate::sys::wake;

/// The shared ports of a process, open and not yet running.
#[derive(Default)]
pub(super) struct Shared {
    nics: Vec<Nic>,
    /// The ends that are not taken yet, by the guest's name.
    ends: HashMap<String, Attachment>,
}

struct Nic {
    name: String,
    switch: Switch,
    /// Where its frames lie.
    region: Region,
}

impl Shared {
    /// Opens every port that more than one guest names.
    pub(super) fn open(guests: &[Guest], common: &mut Common) -> Result<Shared, Error> {
        let mut shared = Shared::default();
        let mut seen = Vec::new();
        for guest in guests.iter().filter(|guest| guest.port.kind().shared) {
            let device = device(guest);
            if seen.contains(&device) {
                continue;
            }
            seen.push(device);
            let sharing: Vec<&Guest> =
                guests.iter().filter(|g| self::device(g) == device).collect();
            if sharing.len() > 1 {
                shared.add(&sharing, common)?;
            }
        }
        Ok(shared)
    }

    fn add(&mut self, guests: &[&Guest], common: &mut Common) -> Result<(), Error> {
        let system = |what| move |source| Error::System { what, source };
        let first = guests[0];
        let name = first.port.to_string();
        let mtu = guests.iter().map(|guest| guest.mtu).max().unwrap_or(first.mtu);
        let region =
            region(guests).map_err(|source| Error::Region { guest: first.name.clone(), source })?;
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
            let pair = wake::pair().map_err(system("a pipe cannot be made"))?;
            let end = switch.join(&guest.name, station, guest.mtu, pair);
            self.ends.insert(guest.name.clone(), Attachment::Port(Box::new(end)));
        }
        tracing::info!(port = %name, guests = guests.len(), "port shared");
        self.nics.push(Nic { name, switch, region });
        Ok(())
    }

    /// A guest's end of the port that it shares; `None` if it has one of its own.
    pub(super) fn take(&mut self, guest: &str) -> Option<Attachment> {
        self.ends.remove(guest)
    }

    /// The switches, and the regions that have to outlive them.
    pub(super) fn into_parts(self) -> (Vec<Placed>, Vec<Region>) {
        let part = |Nic { name, switch, region }| {
            (Placed { name, task: Box::new(switch), worker: None }, region)
        };
        self.nics.into_iter().map(part).unzip()
    }
}

/// What guests share who name the same.
fn device(guest: &Guest) -> (&str, &str, Option<u32>) {
    (guest.port.kind().prefix, guest.port.device(), guest.port.part())
}

/// Memory for the frames of a NIC with these guests.
fn region(guests: &[&Guest]) -> Result<Region, OpenRegionError> {
    let sizes = guests.iter().map(|guest| guest.region.buffer_size);
    let buffer_size = sizes.max().unwrap_or(paste_pmem::BUFFER_SIZE_MIN);
    let buffers = buffers_needed(guests.len()) as u64 * u64::from(buffer_size);
    // Beside the buffers it has a head and tables, which are less than that.
    let size = (2 * buffers).max(SIZE_MIN).next_multiple_of(SIZE_STEP);
    let identity = Identity {
        guest: &guests[0].name,
        uuid: Uuid::random().map_err(OpenRegionError::Random)?,
        created_ns: realtime_ns(),
    };
    let geometry = Geometry::new(size, buffer_size)?;
    debug_assert!(geometry.buffer_count() as usize >= buffers_needed(guests.len()));
    Ok(Region::create(&Backing::Memory(HugePages::No), geometry, &identity)?)
}
