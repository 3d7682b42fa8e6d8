//! A host process as a guest: the front end of a vhost-user device.
//!
//! The process connects to the backend's Unix socket as a VMM would, shares
//! two rings and their frame buffers in sealed memory, and receives the region
//! through the device's shared-memory messages. From then on frames travel
//! through the rings, and the socket is looked at only for its end.

mod message;
mod ring;
mod session;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use paste_abi::frame::{FRAME_SIZE_MAX, FRAME_SIZE_MIN};
use paste_abi::net_hdr::NET_HDR_LEN;

use super::{Polling, Timeout, Transport, TransportError, TransportStats};
use crate::sys::{self, Mapping, Notifier};
use ring::{Direction, Layout, Ring, RingError};
use session::{RingSetup, Session};

/// Entries of each ring.
const RING_SIZE: u16 = 256;
/// Where the device finds our memory. The number means nothing to us; it is
/// not 0, so that a null address in a descriptor is an error to the device.
const ADDRESS: u64 = 1 << 32;
/// Queue numbers of the first pair (VIRTIO 1.2 section 5.1.2).
const RX: u32 = 0;
const TX: u32 = 1;
/// A thread that never sleeps looks at the socket once in so many looks at the
/// ring, or it would not notice the backend's end.
const LOOKS_PER_SERVICE: u32 = 1024;
/// What a ring holds besides the frames that the host has credit for: WELCOME,
/// BYE, bare credit, and ordinary frames that the device receives.
const RESERVED: u16 = RING_SIZE / 8;

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
    rx: Ring,
    tx: Ring,
    rx_kick: Notifier,
    tx_kick: Notifier,
    call: Notifier,
}

impl From<RingError> for TransportError {
    fn from(error: RingError) -> TransportError {
        TransportError::Protocol(match error {
            RingError::Index => "the used index runs ahead of the descriptors in flight",
            RingError::Descriptor => "a used entry names a descriptor that is not in flight",
            RingError::Length => "a used entry has more bytes than its buffer",
        })
    }
}

impl Device {
    fn connect(path: &Path, frame_size: u16) -> Result<Device, TransportError> {
        let failed = TransportError::system;
        let session = Session::connect(path)?;
        let layout = Layout::new(RING_SIZE, NET_HDR_LEN + usize::from(frame_size));
        let memory =
            sys::shared_memory(2 * layout.len).map_err(failed("making memory for the rings"))?;
        let map = |offset: usize| {
            Mapping::from_fd(memory.as_fd(), offset as u64, layout.len, true)
                .map_err(|error| TransportError::Map { what: "mapping the rings", error })
        };
        let notifier = || Notifier::new().map_err(failed("making a notifier"));
        let tx_address = ADDRESS + layout.len as u64;
        let mut device = Device {
            rx: Ring::new(map(0)?, layout, ADDRESS, Direction::Receive),
            tx: Ring::new(map(layout.len)?, layout, tx_address, Direction::Transmit),
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
                address: tx_address,
                kick: device.tx_kick.as_fd(),
                call,
            },
        ];
        let len = 2 * layout.len as u64;
        device.session.start(memory.as_fd(), ADDRESS, len, &rings)?;
        device.rx.refill();
        // A ring starts at its first kick, whatever it says of kicks.
        let _ = device.rx.publish();
        device.rx_kick.signal();
        device.tx_kick.signal();
        Ok(device)
    }

    /// Takes back the descriptors of frames that the device has sent.
    fn reclaim(&mut self) -> Result<(), TransportError> {
        self.tx.refresh()?;
        while self.tx.pop()?.is_some() {}
        Ok(())
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

    /// Whether a frame has arrived, or room has come back that was missing.
    fn look(&mut self, tx_was_full: bool) -> Result<bool, TransportError> {
        if self.device.rx.refresh()? > 0 {
            return Ok(true);
        }
        if tx_was_full {
            self.device.reclaim()?;
            return Ok(self.device.tx.free() > 0);
        }
        Ok(false)
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
        if (ready[1] || ready[2]) && !self.look(tx_was_full)? {
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
        u32::from(RING_SIZE - RESERVED)
    }

    fn send(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<bool, TransportError> {
        if self.device.tx.free() == 0 {
            self.device.reclaim()?;
        }
        let frame_size = usize::from(self.frame_size);
        Ok(self.device.tx.push(|out| {
            out[..NET_HDR_LEN].fill(0);
            match fill(&mut out[NET_HDR_LEN..NET_HDR_LEN + frame_size]) {
                0 => 0,
                len => NET_HDR_LEN + len,
            }
        }))
    }

    fn publish(&mut self) -> Result<(), TransportError> {
        let device = &mut self.device;
        if device.tx.publish() {
            device.tx_kick.signal();
            self.stats.kicks += 1;
        }
        device.rx.refill();
        // Wanted only by a device that had run out of buffers.
        if device.rx.publish() {
            device.rx_kick.signal();
            self.stats.kicks += 1;
        }
        Ok(())
    }

    fn refresh(&mut self) -> Result<usize, TransportError> {
        Ok(self.device.rx.refresh()?)
    }

    fn receive(&mut self, out: &mut [u8]) -> Result<Option<usize>, TransportError> {
        let Some(bytes) = self.device.rx.pop()? else {
            return Ok(None);
        };
        // An ordinary frame of the bridge may be anything; what does not fit
        // is none of ours.
        let frame = bytes.get(NET_HDR_LEN..).unwrap_or_default();
        let len = frame.len().min(out.len());
        out[..len].copy_from_slice(&frame[..len]);
        Ok(Some(len))
    }

    fn wait(&mut self, timeout: Timeout, polling: Polling) -> Result<(), TransportError> {
        self.service()?;
        let tx_was_full = self.device.tx.free() == 0;
        if timeout == Timeout::Now || self.look(tx_was_full)? {
            return Ok(());
        }
        let start = sys::monotonic();
        let limit = match timeout {
            Timeout::After(duration) => duration,
            Timeout::Now | Timeout::Never => Duration::MAX,
        };
        if !polling.poll_time.is_zero() {
            let spin = polling.poll_time.min(limit);
            loop {
                if self.look(tx_was_full)? {
                    return Ok(());
                }
                self.service()?;
                if sys::monotonic().saturating_sub(start) >= spin {
                    break;
                }
                if polling.yield_now {
                    std::thread::yield_now();
                } else {
                    std::hint::spin_loop();
                }
            }
        }
        self.device.rx.arm();
        if tx_was_full {
            self.device.tx.arm();
        }
        let left = limit.saturating_sub(sys::monotonic().saturating_sub(start));
        let left = (timeout != Timeout::Never).then_some(left);
        let slept = match self.look(tx_was_full) {
            Ok(false) => self.sleep(left, tx_was_full),
            other => other.map(|_| ()),
        };
        self.device.rx.disarm();
        self.device.tx.disarm();
        slept
    }

    fn drain(&mut self, limit: Duration) -> Result<(), TransportError> {
        let start = sys::monotonic();
        loop {
            self.device.tx.arm();
            self.device.reclaim()?;
            let left = limit.saturating_sub(sys::monotonic().saturating_sub(start));
            if self.device.tx.in_flight() == 0 || left.is_zero() {
                return Ok(());
            }
            self.sleep(Some(left), true)?;
        }
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
