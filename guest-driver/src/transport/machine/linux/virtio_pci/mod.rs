//! An application in a virtual machine that drives a virtio-net device itself: the kernel
//! has given the PCI device away (`uio_pci_generic`), and the queues are this process's.
//!
//! Frames pass through memory alone while both sides look at it: sending costs a store to a
//! register if the device asked for a kick, and receiving nothing. Payload stays in the
//! region, which is found as by [`mod@super::packet`]. The whole device is this application's:
//! the kernel has no network by it, and there is one application to a device.
//!
//! | room | knows |
//! | --- | --- |
//! | `sysfs` | which device it is, and that it was given away |
//! | `capability` | where the device says that its structures are |
//! | `registers` | how a driver begins with a device, and sees that it goes on |
//! | [`super::sys::pci`] | registers, memory with a known address, interrupts, and how it ends |
//!
//! # Sleeping
//!
//! The device interrupts by its line (INTx), which `uio_pci_generic` masks at each interrupt
//! and tells of by `/dev/uioN`; this process then has the device take the line back, by
//! reading the ISR status, and unmasks it. It asks for interrupts only before it sleeps.
//! Message-signalled interrupts that driver does not know: where a device has no line, as in
//! VMMs that emulate none, a wait ends after [`NAP`], whether something has come or not.
//!
//! A VMM may ask whether the line is masked when its backend begins, and never tell a backend
//! to interrupt that began while it was (QEMU, `virtio_pci_query_guest_notifiers`). So it is
//! unmasked before the device runs, and soon after each interrupt, also by a thread that
//! never sleeps. Should it be masked at the wrong moment all the same, then frames come and
//! interrupts do not: waits are as short as without a line, until there is one.
//!
//! That the device was reset by somebody else, nothing says: its status is read
//! every now and then, and no sleep is longer than [`SLEEP_MAX`].
//!
//! # The end
//!
//! The device is reset before its memory is given back, also when a thread panics; for a
//! process that is killed see [`super::sys::pci`]. Either stops the queues, by which the
//! host sees that whoever drove the device has ended.

mod capability;
mod registers;
mod sysfs;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use paste_abi::frame::{FRAME_SIZE_MAX, FRAME_SIZE_MIN};
use paste_abi::net_hdr::NET_HDR_LEN;

use self::capability::Area;
use self::registers::Registers;
use super::region;
use super::sys::pci::{Bar, Config, HugePage, HugePageError, Interrupts};
use crate::sys::{self, Mapping};
use crate::transport::virtqueue::{self, Kicks, Layout, Pair, RX, TX, Waiting};
use crate::transport::{PciError, Polling, Timeout, Transport, TransportError, TransportStats};

/// Entries of each ring, at most.
const RING_SIZE: u16 = 256;
/// Bytes of a buffer to receive, at least (VIRTIO 1.2 section 5.1.6.3.1).
const BUFFER_MIN: usize = 1526;
/// A thread that never sleeps looks at the clock once in so many looks at the ring, and
/// then at the device's status once in such a time: reading it leaves the machine.
const LOOKS_PER_SERVICE: u32 = 1024;
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// How long a sleep is, at most.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// How long a sleep is, at most, without interrupts.
const NAP: Duration = Duration::from_millis(1);
/// Frames that came into a sleep without an interrupt, one after the other, until none are
/// believed in: one may come as the sleep ends.
const UNTOLD_MAX: u32 = 3;

/// A structure of the device's.
#[derive(Debug)]
struct Window {
    bar: Arc<Bar>,
    at: usize,
}

impl Registers for Window {
    fn load8(&self, at: usize) -> u8 {
        self.bar.load(self.at + at)
    }

    fn load16(&self, at: usize) -> u16 {
        self.bar.load(self.at + at)
    }

    fn load32(&self, at: usize) -> u32 {
        self.bar.load(self.at + at)
    }

    fn store8(&self, at: usize, value: u8) {
        self.bar.store(self.at + at, value);
    }

    fn store16(&self, at: usize, value: u16) {
        self.bar.store(self.at + at, value);
    }

    fn store32(&self, at: usize, value: u32) {
        self.bar.store(self.at + at, value);
    }
}

/// The structures that are in use while the device works.
#[derive(Debug)]
struct Structures {
    common: Window,
    isr: Window,
    notify: Window,
    /// Where each queue is notified, in the structure.
    places: [usize; 2],
}

/// Resets the device when it is dropped.
#[derive(Debug)]
struct Started(Structures);

impl Drop for Started {
    fn drop(&mut self) {
        // One that is not reset loses its bus mastering next.
        let _ = registers::reset(&self.0.common);
    }
}

/// One device in use; made anew by a reconnect.
#[derive(Debug)]
struct Device {
    // In the order in which they are to end: see `sys::pci`.
    structures: Started,
    interrupts: Interrupts,
    has_interrupt: bool,
    /// Sleeps since the last interrupt in which frames came.
    untold: u32,
    config: Config,
    pair: Pair,
    _memory: HugePage,
    mac: [u8; 6],
}

/// The driver.
#[derive(Debug)]
pub(crate) struct VirtioPci {
    address: String,
    region: Option<PathBuf>,
    frame_size: u16,
    /// None after a reconnect that has failed.
    device: Option<Device>,
    mac: [u8; 6],
    capacity: u32,
    looks: u32,
    /// When the status was looked at.
    checked: Duration,
    stats: TransportStats,
}

impl From<HugePageError> for PciError {
    fn from(error: HugePageError) -> PciError {
        match error {
            HugePageError::Map(error) => PciError::Memory(error.to_string()),
            HugePageError::System(what, error) => PciError::Memory(format!("{what}: {error}")),
            HugePageError::Hidden => PciError::Address,
            HugePageError::Scattered => PciError::Scattered,
        }
    }
}

/// The largest rings for such frames that a huge page has room for two of, and the device.
fn layout(frame_size: u16, device_max: u16) -> Layout {
    let buffer_len = (NET_HDR_LEN + usize::from(frame_size)).max(BUFFER_MIN);
    let mut size = 1 << device_max.clamp(1, RING_SIZE).ilog2();
    loop {
        let layout = Layout::new(size, buffer_len);
        if 2 * layout.len <= HugePage::LEN || size == 1 {
            return layout;
        }
        size /= 2;
    }
}

impl Device {
    fn open(sysfs: &Path, address: &str, frame_size: u16) -> Result<Device, TransportError> {
        let dir = region::pci_device(sysfs, address)?;
        let pci = |error| TransportError::Pci { address: address.to_owned(), error };
        let found = sysfs::judge(&dir, address).map_err(pci)?;
        let failed = TransportError::system;
        let opened = failed("opening the device's configuration space");
        let config = Config::open(&found.config()).map_err(opened)?;
        let config = config.ok_or_else(|| pci(PciError::InUse))?;
        let memory = HugePage::new().map_err(|error| pci(error.into()))?;
        let config = config
            .above(&memory)
            .map_err(failed("numbering the configuration space's descriptor"))?;
        let interrupts = Interrupts::open(&found.uio, &config)
            .map_err(failed("opening the device's file (/dev/uioN)"))?;
        let space = config.read().map_err(failed("reading the configuration space"))?;
        let areas = capability::find(&space, &found.bars).map_err(pci)?;

        let mut bars: [Option<Arc<Bar>>; 6] = [const { None }; 6];
        let mut window = |area: Area| {
            let bar = &mut bars[usize::from(area.bar)];
            let bar = match bar {
                Some(bar) => Arc::clone(bar),
                None => {
                    let len = found.bars[usize::from(area.bar)].unwrap_or(0) as usize;
                    let mapped = Bar::map(&found.bar(area.bar), len);
                    let mapped = mapped.map_err(|error| TransportError::Map {
                        what: "mapping the device's registers",
                        error,
                    })?;
                    Arc::clone(bar.insert(Arc::new(mapped)))
                }
            };
            Ok::<_, TransportError>(Window { bar, at: area.offset as usize })
        };
        let own = window(areas.device)?;
        let mut structures = Started(Structures {
            common: window(areas.common)?,
            isr: window(areas.isr)?,
            notify: window(areas.notify)?,
            places: [0; 2],
        });

        let common = &structures.0.common;
        let mac = registers::negotiate(common, &own).map_err(pci)?;
        let mut size_max = RING_SIZE;
        for index in [RX, TX] {
            size_max = size_max.min(registers::queue_size_max(common, index).map_err(pci)?);
        }
        let layout = layout(frame_size, size_max);
        let pair = Pair::new(memory.as_fd(), 0, layout, memory.address(), frame_size)?;
        let mut places = [0; 2];
        for (index, place) in [RX, TX].into_iter().zip(&mut places) {
            let at = memory.address() + u64::from(index) * layout.len as u64;
            let number = registers::enable_queue(common, index, layout, at);
            *place = notify_at(number, areas.notify_multiplier, areas.notify.len)
                .ok_or_else(|| pci(PciError::Queue(index)))?;
        }
        // Only now: before it was reset, the device could go on where the last driver was
        // killed, and an interrupt of that one's would mask the line at once.
        config.enable().map_err(failed("turning bus mastering on"))?;
        registers::run(common).map_err(pci)?;
        structures.0.places = places;
        let mut device = Device {
            structures,
            interrupts,
            has_interrupt: found.has_interrupt,
            untold: 0,
            config,
            pair,
            _memory: memory,
            mac,
        };
        // There are buffers to receive into, and nothing is sent yet.
        device.kick(RX);
        Ok(device)
    }

    /// Waits for an interrupt, for at most so long, and has the next one come; whether there
    /// was one.
    fn interrupted(&mut self, timeout: Duration) -> Result<bool, TransportError> {
        let failed = TransportError::system;
        let waited = self.interrupts.wait(Some(timeout)).map_err(failed("waiting for the device"));
        if !waited? {
            return Ok(false);
        }
        // Reading it is what ends the interrupt (section 4.1.4.5).
        self.structures.0.isr.load8(0);
        self.config.enable().map_err(failed("turning interrupts on"))?;
        self.untold = 0;
        Ok(true)
    }

    /// Notifies a queue (section 4.1.5.2).
    fn kick(&mut self, index: u16) {
        let Structures { notify, places, .. } = &self.structures.0;
        notify.store16(places[usize::from(index)], index);
    }
}

/// Where a queue is notified that has this number, within the structure; `None` if that is
/// not in it.
fn notify_at(number: u16, multiplier: u32, len: u32) -> Option<usize> {
    let at = u64::from(number) * u64::from(multiplier);
    (at.is_multiple_of(2) && at + 2 <= u64::from(len)).then_some(at as usize)
}

impl VirtioPci {
    /// Takes the device with this PCI address, for PASTE frames of at most `frame_size`
    /// bytes, with the region at this path, if there is one to be mapped.
    pub(crate) fn open(
        address: &str,
        region: Option<&Path>,
        frame_size: u16,
    ) -> Result<VirtioPci, TransportError> {
        let frame_size =
            frame_size.clamp(FRAME_SIZE_MIN as u16, (FRAME_SIZE_MAX - NET_HDR_LEN) as u16);
        let device = Device::open(Path::new("/sys"), address, frame_size)?;
        Ok(VirtioPci {
            address: address.to_owned(),
            region: region.map(Path::to_owned),
            frame_size,
            mac: device.mac,
            capacity: device.pair.capacity(),
            device: Some(device),
            looks: 0,
            checked: sys::monotonic(),
            stats: TransportStats::default(),
        })
    }

    fn failed(&self, error: PciError) -> TransportError {
        TransportError::Pci { address: self.address.clone(), error }
    }

    fn device(&mut self) -> Result<&mut Device, TransportError> {
        match &mut self.device {
            Some(device) => Ok(device),
            None => {
                Err(TransportError::Pci { address: self.address.clone(), error: PciError::Down })
            }
        }
    }

    /// Looks at the device's status, if the last time is a while ago, and unmasks its line.
    fn check(&mut self) -> Result<(), TransportError> {
        let now = sys::monotonic();
        if now.saturating_sub(self.checked) < CHECK_INTERVAL {
            return Ok(());
        }
        self.checked = now;
        let device = self.device()?;
        if device.has_interrupt {
            device.interrupted(Duration::ZERO)?;
        }
        let status = registers::check(&device.structures.0.common);
        status.map_err(|error| self.failed(error))
    }
}

impl Waiting for VirtioPci {
    fn pair(&mut self) -> Result<&mut Pair, TransportError> {
        Ok(&mut self.device()?.pair)
    }

    fn service(&mut self) -> Result<(), TransportError> {
        self.looks += 1;
        if self.looks >= LOOKS_PER_SERVICE {
            self.looks = 0;
            self.check()?;
        }
        Ok(())
    }

    fn sleep(
        &mut self,
        timeout: Option<Duration>,
        tx_was_full: bool,
    ) -> Result<(), TransportError> {
        let timeout = timeout.unwrap_or(SLEEP_MAX).min(SLEEP_MAX);
        self.stats.waits += 1;
        let device = self.device()?;
        let interrupted = if !device.has_interrupt {
            sys::sleep(timeout.min(NAP)).map_err(TransportError::system("waiting"))?;
            false
        } else {
            let is_untold = device.untold >= UNTOLD_MAX;
            device.interrupted(if is_untold { timeout.min(NAP) } else { timeout })?
        };
        // Frames that came before the end are still to be read.
        if !device.pair.look(tx_was_full)? {
            return self.check();
        }
        device.untold += u32::from(!interrupted && device.untold < UNTOLD_MAX);
        Ok(())
    }
}

impl Transport for VirtioPci {
    fn mac(&self) -> [u8; 6] {
        self.mac
    }

    fn frame_size(&self) -> u16 {
        self.frame_size
    }

    fn capacity(&self) -> u32 {
        self.capacity
    }

    fn send(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<bool, TransportError> {
        // Without a device there is no room: `reconnect` comes first.
        self.device.as_mut().map_or(Ok(false), |device| device.pair.send(fill))
    }

    fn publish(&mut self) -> Result<(), TransportError> {
        let device = self.device()?;
        let Kicks { rx, tx } = device.pair.publish();
        for (index, is_wanted) in [(TX, tx), (RX, rx)] {
            if is_wanted {
                device.kick(index);
            }
        }
        self.stats.kicks += u64::from(tx) + u64::from(rx);
        Ok(())
    }

    fn refresh(&mut self) -> Result<usize, TransportError> {
        self.pair()?.refresh()
    }

    fn receive(&mut self, out: &mut [u8]) -> Result<Option<usize>, TransportError> {
        self.pair()?.receive(out)
    }

    fn wait(&mut self, timeout: Timeout, polling: Polling) -> Result<(), TransportError> {
        virtqueue::wait(self, timeout, polling)
    }

    fn drain(&mut self, limit: Duration) -> Result<(), TransportError> {
        virtqueue::drain(self, limit)
    }

    fn map_region(&mut self, uuid: [u8; 16], len: u64) -> Result<Mapping, TransportError> {
        let region = self.region.as_ref().ok_or(TransportError::Unsupported("a region"))?;
        region::map(region, uuid, len)
    }

    fn reconnect(&mut self) -> Result<(), TransportError> {
        // The old one has to go first: one process drives a device, and once.
        self.device = None;
        let device = Device::open(Path::new("/sys"), &self.address, self.frame_size)?;
        (self.mac, self.capacity) = (device.mac, device.pair.capacity());
        self.device = Some(device);
        self.checked = sys::monotonic();
        Ok(())
    }

    fn stats(&self) -> TransportStats {
        self.stats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_rings_fit_into_a_page_and_the_device() {
        for frame_size in [160, 1500, 4096, 9000, 65_523] {
            for device_max in [1, 2, 64, 256, 1024, 1 << 15] {
                let layout = layout(frame_size, device_max);
                assert!(2 * layout.len <= HugePage::LEN, "{frame_size} {device_max}");
                assert!(layout.size <= device_max && layout.buffer_len >= BUFFER_MIN);
                assert!(layout.buffer_len >= usize::from(frame_size) + NET_HDR_LEN);
            }
        }
        assert_eq!(layout(4096, 256).size, 128);
        assert_eq!(layout(1500, 1024).size, 256);
        assert_eq!(layout(65_523, 256).size, 8);
    }

    #[test]
    fn a_queue_is_notified_within_its_structure() {
        assert_eq!(notify_at(1, 4, 4096), Some(4));
        assert_eq!(notify_at(9, 0, 2), Some(0));
        assert_eq!(notify_at(1023, 4, 4096), Some(4092));
        for (number, multiplier, len) in [(1024, 4, 4096), (u16::MAX, u32::MAX, 4096), (1, 1, 4)] {
            assert_eq!(notify_at(number, multiplier, len), None);
        }
    }

    #[test]
    fn what_is_no_device_is_said_to_be_none() {
        for (address, says) in [
            ("0000:ff:1f.7", "PCI device 0000:ff:1f.7: there is none"),
            ("eth0", "is no address of a PCI device"),
            ("", "is no address of a PCI device"),
            ("../../net/lo", "is no address of a PCI device"),
        ] {
            let said = VirtioPci::open(address, None, 4096).unwrap_err().to_string();
            assert!(said.contains(says), "{address}: {said}");
        }
    }
}
