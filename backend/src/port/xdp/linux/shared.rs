//! The devices that ports of this process are on: each has one program, for all of them.
//!
//! A device takes one program. Ports on queues of their own, each with a guest, or
//! guests, of its own, so share it: who comes has it written anew with its guests, and
//! the new one takes the place of the old one between two frames. The sockets are in one
//! map, by queue, and each port has made its own.
//!
//! This is control plane: it is locked when a port takes a device into service, and never
//! for a frame.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::filter::Addressee;
use super::live::Wanted;
use super::program::Function;
use super::sys::bpf;
use super::sys::netlink::Link;
use super::sys::ptp::PtpClock;
use super::{Mode, Stamps, Timing, XdpError};

/// The devices that ports of this process are on. Clones are the same.
#[derive(Clone, Debug)]
pub struct XdpDevices {
    known: Arc<Mutex<HashMap<u32, Weak<Device>>>>,
    timing: fn(&str) -> Option<Timing>,
}

/// A device with a program. With the last port, it goes.
#[derive(Debug)]
struct Device {
    attached: OwnedFd,
    map: OwnedFd,
    mode: Mode,
    /// What puts a frame's time in front of it.
    time: Option<Time>,
    /// Ports by their queue, or by all.
    ports: Mutex<BTreeMap<Option<u32>, Guests>>,
}

/// The guests of one port.
#[derive(Clone, Debug)]
struct Guests {
    all: Vec<Addressee>,
    /// Their longest frames lie in several buffers.
    is_long: bool,
}

/// One port's share of a device.
#[derive(Debug)]
pub(super) struct Seat {
    device: Arc<Device>,
    queue: Option<u32>,
}

/// A function that says when a frame has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Time {
    /// What it tells.
    pub stamps: Stamps,
    /// The function.
    pub function: Function,
    /// The device whose driver it is of.
    pub device: Option<u32>,
}

impl Default for XdpDevices {
    /// Arrival is told by the devices' own clocks, where they have any.
    fn default() -> XdpDevices {
        XdpDevices::timed_by(|device| {
            let clock = PtpClock::of(device).unwrap_or_else(|errno| {
                let error = io::Error::from(errno);
                tracing::info!(
                    device,
                    %error,
                    "the device's clock cannot be opened, as root can; arrival is when a frame \
                     is taken"
                );
                None
            })?;
            Some(Timing { stamps: Stamps::Device, clock: Box::new(clock) })
        })
    }
}

impl XdpDevices {
    /// Likewise, by what this gives for the name of a device.
    pub fn timed_by(timing: fn(&str) -> Option<Timing>) -> XdpDevices {
        XdpDevices { known: Arc::default(), timing }
    }

    /// How arrivals are told on a device, if it is in service so.
    pub(super) fn timing(&self, device: &str) -> Option<Timing> {
        (self.timing)(device)
    }

    /// Adds a port's guests to the program of a device, or attaches the first one.
    ///
    /// # Errors
    /// [`XdpError`]; the device is as it was.
    pub(super) fn join(
        &self,
        wanted: &Wanted,
        link: &Link,
        own: Vec<Addressee>,
        stamps: Option<Stamps>,
    ) -> Result<Seat, XdpError> {
        let queue = wanted.queue;
        let mut devices = lock(&self.known);
        devices.retain(|_, device| device.strong_count() > 0);
        if let Some(device) = devices.get(&link.index).and_then(Weak::upgrade) {
            if let Some(mode) = wanted.mode.filter(|&mode| mode != device.mode) {
                let name = wanted.name.clone();
                let (wanted, is) = (mode.name(), device.mode.name());
                return Err(XdpError::OtherMode { name, wanted, is });
            }
            device.renew(queue, wanted, own)?;
            return Ok(Seat { device, queue });
        }
        let map = wanted.map(link.queues)?;
        let is_long = wanted.is_long();
        let timed = stamps.and_then(|stamps| wanted.attach_timed(map.as_fd(), link, &own, stamps));
        let (time, attached, mode) = match timed {
            Some((time, attached)) => (Some(time), attached, Mode::Driver),
            None => {
                let program = wanted.load(map.as_fd(), &own, is_long, None)?;
                let (attached, mode) = wanted.attach(&program, link)?;
                (None, attached, mode)
            }
        };
        let ports = Mutex::new(BTreeMap::from([(queue, Guests { all: own, is_long })]));
        let device = Arc::new(Device { attached, map, mode, time, ports });
        devices.insert(link.index, Arc::downgrade(&device));
        Ok(Seat { device, queue })
    }
}

impl Device {
    /// Writes the program anew with these guests of one port and all those of others.
    fn renew(
        &self,
        queue: Option<u32>,
        wanted: &Wanted,
        own: Vec<Addressee>,
    ) -> Result<(), XdpError> {
        let mut ports = lock(&self.ports);
        let mut with = ports.clone();
        with.insert(queue, Guests { all: own, is_long: wanted.is_long() });
        let all: Vec<_> = with.values().flat_map(|guests| &guests.all).cloned().collect();
        let is_long = with.values().any(|guests| guests.is_long);
        let program = wanted.load(self.map.as_fd(), &all, is_long, self.time)?;
        bpf::replace(self.attached.as_fd(), program.as_fd())
            .map_err(wanted.failed("BPF_LINK_UPDATE"))?;
        *ports = with;
        Ok(())
    }
}

impl Seat {
    /// Has the program know these guests of the port.
    ///
    /// # Errors
    /// [`XdpError`]; the device is as it was.
    pub(super) fn renew(&self, wanted: &Wanted, own: Vec<Addressee>) -> Result<(), XdpError> {
        self.device.renew(self.queue, wanted, own)
    }

    /// The map of sockets, by queue.
    pub(super) fn map(&self) -> BorrowedFd<'_> {
        self.device.map.as_fd()
    }

    /// What the times are that frames have in front of them, if they have.
    pub(super) fn stamps(&self) -> Option<Stamps> {
        self.device.time.map(|time| time.stamps)
    }

    /// How the program is attached.
    pub(super) fn mode(&self) -> Mode {
        self.device.mode
    }
}

impl Drop for Seat {
    /// The next program is without its guests. The one that is attached finds no socket for
    /// their frames and lets them pass.
    fn drop(&mut self) {
        lock(&self.device.ports).remove(&self.queue);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is inside is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
