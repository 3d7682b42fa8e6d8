//! Ports that several guests share: each is opened once, with a region of the host's
//! own, and its switch runs on a thread of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

use paste_pmem::{Backing, Geometry, HugePages, Identity, Region, SIZE_MIN, SIZE_STEP, Uuid};

use super::{Error, OpenRegionError, attach, poll_ns};
use crate::attachment::Attachment;
use crate::config::Guest;
use crate::metrics::PortSnapshot;
use crate::port::Wires;
use crate::switch::{Station, Switch, buffers_needed};
use crate::sys::clock::realtime_ns;
use crate::sys::wake;
use crate::worker::Stop;

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
    stop: Stop,
    region: Region,
}

/// A shared port that is being served.
pub(super) struct Running {
    name: String,
    stop: Stop,
    thread: JoinHandle<Option<Vec<(String, u64)>>>,
    /// Where its frames lie.
    _region: Region,
}

impl Shared {
    /// Opens every port that more than one guest names.
    pub(super) fn open(guests: &[Guest], wires: &mut Wires) -> Result<Shared, Error> {
        let mut shared = Shared::default();
        let mut seen: Vec<(&str, &str)> = Vec::new();
        for guest in guests.iter().filter(|guest| guest.port.kind().shared) {
            let device = device(guest);
            if seen.contains(&device) {
                continue;
            }
            seen.push(device);
            let sharing: Vec<&Guest> =
                guests.iter().filter(|g| self::device(g) == device).collect();
            if sharing.len() > 1 {
                shared.add(&sharing, wires)?;
            }
        }
        Ok(shared)
    }

    fn add(&mut self, guests: &[&Guest], wires: &mut Wires) -> Result<(), Error> {
        let system = |what| move |source| Error::System { what, source };
        let first = guests[0];
        let name = first.port.to_string();
        let mtu = guests.iter().map(|guest| guest.mtu).max().unwrap_or(first.mtu);
        let region =
            region(guests).map_err(|source| Error::Region { guest: first.name.clone(), source })?;
        let Attachment::Port(port) = attach(first, mtu, &region, wires)? else {
            unreachable!("a kind that brings its own TCP is not shared");
        };
        let (waker, wakeups) = wake::pair().map_err(system("a pipe cannot be made"))?;
        let flag = Arc::new(AtomicBool::new(false));
        let stop = Stop::new(Arc::clone(&flag), waker.clone());
        let poll = guests.iter().map(|guest| poll_ns(guest)).max().unwrap_or(0);
        let pool = region.pool();
        let mut switch = Switch::new(name.clone(), port, pool, poll, (waker, wakeups), flag);
        for guest in guests {
            let pair = wake::pair().map_err(system("a pipe cannot be made"))?;
            let addresses = guest.addresses.iter().map(|prefix| prefix.address()).collect();
            let station = Station { mac: guest.mac.octets(), vlan: guest.vlan, addresses };
            let end = switch.join(&guest.name, &station, guest.mtu, pair);
            self.ends.insert(guest.name.clone(), Attachment::Port(Box::new(end)));
        }
        tracing::info!(port = %name, guests = guests.len(), "port shared");
        self.nics.push(Nic { name, switch, stop, region });
        Ok(())
    }

    /// A guest's end of the port that it shares; `None` if it has one of its own.
    pub(super) fn take(&mut self, guest: &str) -> Option<Attachment> {
        self.ends.remove(guest)
    }

    /// Starts the threads.
    pub(super) fn start(self) -> std::io::Result<Vec<Running>> {
        let start = |Nic { name, switch, stop, region }: Nic| {
            let thread = std::thread::Builder::new().name("switch".to_owned()).spawn({
                let name = name.clone();
                move || serve(switch, &name)
            })?;
            Ok(Running { name, stop, thread, _region: region })
        };
        self.nics.into_iter().map(start).collect()
    }
}

impl Running {
    /// Stops the thread in good order. Without counters, it had ended by itself: the
    /// port's name.
    pub(super) fn stop(self) -> Result<PortSnapshot, String> {
        self.stop.stop();
        match self.thread.join() {
            Ok(Some(counted)) => {
                Ok(PortSnapshot { port: self.name, counters: counted.into_iter().collect() })
            }
            _ => Err(self.name),
        }
    }
}

/// The life of a switch's thread.
fn serve(switch: Switch, name: &str) -> Option<Vec<(String, u64)>> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| switch.run())) {
        Ok(Ok(counted)) => Some(counted),
        Ok(Err(error)) => {
            tracing::error!(port = name, %error, "the switch of a shared port ended");
            None
        }
        Err(_) => {
            tracing::error!(
                port = name,
                "the switch of a shared port panicked; its guests are cut off"
            );
            None
        }
    }
}

fn device(guest: &Guest) -> (&str, &str) {
    (guest.port.kind().prefix, guest.port.device())
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
