//! A host process as a guest: the front end of a vhost-user device.
//!
//! The process connects to the backend's Unix socket as a VMM would, shares
//! two rings and their frame buffers in sealed memory, and receives the region
//! through the device's shared-memory messages. From then on frames travel
//! through the rings, and the socket is looked at only for its end.

mod message;
mod session;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use paste_abi::frame::{FRAME_SIZE_MAX, FRAME_SIZE_MIN};
use paste_abi::net_hdr::NET_HDR_LEN;

use super::virtqueue::{self, Kicks, Layout, Pair, RX, TX, Waiting};
use super::{Polling, Timeout, Transport, TransportError, TransportStats};
use crate::sys::{self, Mapping, Notifier};
use session::{RingSetup, Session};

/// Entries of each ring.
const RING_SIZE: u16 = 256;
/// Where the device finds our memory. The number means nothing to us; it is
/// not 0, so that a null address in a descriptor is an error to the device.
const ADDRESS: u64 = 1 << 32;
/// A thread that never sleeps looks at the socket once in so many looks at the
/// ring, or it would not notice the backend's end.
const LOOKS_PER_SERVICE: u32 = 1024;

/// The front end.
#[derive(Debug)]
pub(crate) struct VhostUser {
    path: PathBuf,
    frame_size: u16,
    device: Device,
    looks: u32,
    stats: TransportStats,
}

/// One session and its rings; made anew by a reconnect.
#[derive(Debug)]
struct Device {
    session: Session,
    pair: Pair,
    rx_kick: Notifier,
    tx_kick: Notifier,
    call: Notifier,
}

impl Device {
    fn connect(path: &Path, frame_size: u16) -> Result<Device, TransportError> {
        let failed = TransportError::system;
        let session = Session::connect(path)?;
        let layout = Layout::new(RING_SIZE, NET_HDR_LEN + usize::from(frame_size));
        let memory =
            sys::shared_memory(2 * layout.len).map_err(failed("making memory for the rings"))?;
        let notifier = || Notifier::new().map_err(failed("making a notifier"));
        let mut device = Device {
            pair: Pair::new(memory.as_fd(), layout, ADDRESS, frame_size)?,
            rx_kick: notifier()?,
            tx_kick: notifier()?,
            call: notifier()?,
            session,
        };
        let call = device.call.as_fd();
        let rings = [
            RingSetup { index: RX, layout, address: ADDRESS, kick: device.rx_kick.as_fd(), call },
            RingSetup {
                index: TX,
                layout,
                address: ADDRESS + layout.len as u64,
                kick: device.tx_kick.as_fd(),
                call,
            },
        ];
        let len = 2 * layout.len as u64;
        device.session.start(memory.as_fd(), ADDRESS, len, &rings)?;
        device.rx_kick.signal();
        device.tx_kick.signal();
        Ok(device)
    }
}

impl VhostUser {
    /// Connects to the backend's socket at `path`, for PASTE frames of at most
    /// `frame_size` bytes.
    pub(crate) fn connect(path: &Path, frame_size: u16) -> Result<VhostUser, TransportError> {
        let frame_size =
            frame_size.clamp(FRAME_SIZE_MIN as u16, (FRAME_SIZE_MAX - NET_HDR_LEN) as u16);
        let device = Device::connect(path, frame_size)?;
        let stats = TransportStats::default();
        Ok(VhostUser { path: path.to_owned(), frame_size, device, looks: 0, stats })
    }
}

impl Waiting for VhostUser {
    fn pair(&mut self) -> Result<&mut Pair, TransportError> {
        Ok(&mut self.device.pair)
    }

    fn service(&mut self) -> Result<(), TransportError> {
        self.looks += 1;
        if self.looks >= LOOKS_PER_SERVICE {
            self.looks = 0;
            self.device.session.serve()?;
        }
        Ok(())
    }

    fn sleep(
        &mut self,
        timeout: Option<Duration>,
        tx_was_full: bool,
    ) -> Result<(), TransportError> {
        let device = &mut self.device;
        let [control, backend] = device.session.sockets();
        self.stats.waits += 1;
        let ready = sys::wait_readable([device.call.as_fd(), control, backend], timeout)
            .map_err(TransportError::system("waiting for the device"))?;
        if ready[0] {
            device.call.clear();
        }
        // Frames that came before the end are still to be read.
        if (ready[1] || ready[2]) && !self.device.pair.look(tx_was_full)? {
            self.device.session.serve()?;
        }
        Ok(())
    }
}

impl Transport for VhostUser {
    fn mac(&self) -> [u8; 6] {
        self.device.session.mac()
    }

    fn frame_size(&self) -> u16 {
        self.frame_size
    }

    fn capacity(&self) -> u32 {
        self.device.pair.capacity()
    }

    fn send(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<bool, TransportError> {
        self.device.pair.send(fill)
    }

    fn publish(&mut self) -> Result<(), TransportError> {
        let Kicks { rx, tx } = self.device.pair.publish();
        if tx {
            self.device.tx_kick.signal();
            self.stats.kicks += 1;
        }
        if rx {
            self.device.rx_kick.signal();
            self.stats.kicks += 1;
        }
        Ok(())
    }

    fn refresh(&mut self) -> Result<usize, TransportError> {
        self.device.pair.refresh()
    }

    fn receive(&mut self, out: &mut [u8]) -> Result<Option<usize>, TransportError> {
        self.device.pair.receive(out)
    }

    fn wait(&mut self, timeout: Timeout, polling: Polling) -> Result<(), TransportError> {
        virtqueue::wait(self, timeout, polling)
    }

    fn drain(&mut self, limit: Duration) -> Result<(), TransportError> {
        virtqueue::drain(self, limit)
    }

    fn map_region(&mut self, _: [u8; 16], len: u64) -> Result<Mapping, TransportError> {
        let offer = self.device.session.wait_offer()?;
        let whole = usize::try_from(len).ok().filter(|_| len <= offer.len);
        let Some(len) = whole else {
            return Err(TransportError::Protocol("the region is smaller than WELCOME says"));
        };
        Mapping::from_fd(offer.fd.as_fd(), offer.offset, len, true)
            .map_err(|error| TransportError::Map { what: "mapping the region", error })
    }

    fn reconnect(&mut self) -> Result<(), TransportError> {
        self.device = Device::connect(&self.path, self.frame_size)?;
        Ok(())
    }

    fn stats(&self) -> TransportStats {
        self.stats
    }
}

#[cfg(test)]
mod tests;
