//! An application in a virtual machine, beside the kernel's own driver: frames go
//! through a packet socket on the network device, and the region is the device
//! DAX that the kernel shows it as.
//!
//! It needs nothing but the kernel: CAP_NET_RAW for the socket, and the right to
//! open the region's device. A frame of up to 46 slots (at an MTU of 1500) costs a
//! system call and a copy of its slots by the kernel; payload stays in the region.
//!
//! What overflows a socket is lost, so the host is given credit for no more frames
//! than the kernel keeps. A device's queue that is full gives a frame back, which
//! is then sent before any other.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use paste_abi::ETHERTYPE;
use paste_abi::frame::{FRAME_SIZE_MAX, FRAME_SIZE_MIN, is_paste};
use paste_pmem::RegionMedium;

use super::{Polling, Timeout, Transport, TransportError, TransportStats};
use crate::sys::packet::{Device, Packets};
use crate::sys::{self, Mapping};

/// Bytes of an Ethernet header, which an MTU does not count.
const ETHERNET: u32 = 14;
/// Frames that may wait for us, at most.
const WINDOW: usize = 256;
/// What a waiting frame costs the kernel at most besides its bytes: a page that is
/// used up in part, and book-keeping.
const OVERHEAD: usize = 5 * 1024;
/// What waits besides the frames that the host has credit for: WELCOME, BYE and
/// bare credit.
const RESERVED: usize = 8;

/// A packet socket and a device DAX.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    interface: String,
    region: Option<PathBuf>,
    frame_size_max: u16,
    link: Link,
    stats: TransportStats,
}

/// One socket and what was taken from it; made anew by a reconnect.
#[derive(Debug)]
struct Link {
    packets: Packets,
    mac: [u8; 6],
    frame_size: u16,
    window: usize,
    /// Frames that were taken from the socket and not received yet, in order from
    /// `first`: room for [`Link::window`] of them, in a ring.
    frames: Box<[u8]>,
    lens: Box<[usize]>,
    first: usize,
    count: usize,
    /// A frame that found no room; empty if there is none.
    unsent: Vec<u8>,
    /// Where a frame is built.
    out: Vec<u8>,
}

impl Link {
    fn open(interface: &str, frame_size_max: u16) -> Result<Link, TransportError> {
        let device = Device::named(interface)
            .map_err(TransportError::system("looking for the network device in sysfs"))?;
        let mtu_frame = u16::try_from(device.mtu + ETHERNET).unwrap_or(u16::MAX);
        let frame_size = frame_size_max.min(mtu_frame);
        let cost = usize::from(frame_size) + OVERHEAD;
        let packets = Packets::on(&device, ETHERTYPE, (WINDOW + RESERVED) * cost)
            .map_err(TransportError::system("opening a packet socket (it takes CAP_NET_RAW)"))?;
        let backlog =
            packets.backlog().map_err(TransportError::system("asking for the socket's room"))?;
        let window = (backlog / cost).saturating_sub(RESERVED).clamp(1, WINDOW);
        let kept = window + RESERVED;
        Ok(Link {
            packets,
            mac: device.mac,
            frame_size,
            window,
            frames: vec![0; kept * usize::from(frame_size)].into(),
            lens: vec![0; kept].into(),
            first: 0,
            count: 0,
            unsent: Vec::with_capacity(usize::from(frame_size)),
            out: vec![0; usize::from(frame_size)],
        })
    }

    /// Sends what found no room before; whether none of that is left.
    fn flush(&mut self) -> Result<bool, TransportError> {
        if self.unsent.is_empty() {
            return Ok(true);
        }
        let sent = self.packets.send(&self.unsent).map_err(TransportError::system("sending"))?;
        if sent {
            self.unsent.clear();
        }
        Ok(sent)
    }

    /// Takes what has arrived, as far as there is room.
    fn take(&mut self) -> Result<(), TransportError> {
        let size = usize::from(self.frame_size);
        while self.count < self.lens.len() {
            let place = (self.first + self.count) % self.lens.len();
            let out = &mut self.frames[place * size..][..size];
            match self.packets.receive(out).map_err(TransportError::system("receiving"))? {
                // The kernel has judged the ethertype, unless a tag was in front of it.
                Some(len) if is_paste(&out[..len]) => {
                    self.lens[place] = len;
                    self.count += 1;
                }
                Some(_) => {}
                None => break,
            }
        }
        Ok(())
    }
}

impl PacketSocket {
    /// For PASTE frames of at most `frame_size_max` bytes on this device, and the
    /// region at this path, if there is one to be mapped.
    pub(crate) fn open(
        interface: &str,
        region: Option<&Path>,
        frame_size_max: u16,
    ) -> Result<PacketSocket, TransportError> {
        let frame_size_max = frame_size_max.clamp(FRAME_SIZE_MIN as u16, FRAME_SIZE_MAX as u16);
        Ok(PacketSocket {
            interface: interface.to_owned(),
            region: region.map(Path::to_owned),
            frame_size_max,
            link: Link::open(interface, frame_size_max)?,
            stats: TransportStats::default(),
        })
    }

    /// Whether a frame is there, or room that was missing.
    fn look(&mut self, was_full: bool) -> Result<bool, TransportError> {
        self.link.take()?;
        Ok(self.link.count > 0 || (was_full && self.link.flush()?))
    }
}

impl Transport for PacketSocket {
    fn mac(&self) -> [u8; 6] {
        self.link.mac
    }

    fn frame_size(&self) -> u16 {
        self.link.frame_size
    }

    fn capacity(&self) -> u32 {
        self.link.window as u32
    }

    fn send(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<bool, TransportError> {
        let link = &mut self.link;
        if !link.flush()? {
            return Ok(false);
        }
        let len = fill(&mut link.out);
        let frame = &link.out[..len.min(link.out.len())];
        if frame.is_empty() {
            return Ok(true);
        }
        self.stats.kicks += 1;
        if !link.packets.send(frame).map_err(TransportError::system("sending"))? {
            link.unsent.extend_from_slice(frame);
        }
        Ok(true)
    }

    fn publish(&mut self) -> Result<(), TransportError> {
        self.link.flush().map(|_| ())
    }

    fn refresh(&mut self) -> Result<usize, TransportError> {
        self.link.take()?;
        Ok(self.link.count)
    }

    fn receive(&mut self, out: &mut [u8]) -> Result<Option<usize>, TransportError> {
        let link = &mut self.link;
        if link.count == 0 {
            return Ok(None);
        }
        let start = link.first * usize::from(link.frame_size);
        let len = link.lens[link.first].min(out.len());
        out[..len].copy_from_slice(&link.frames[start..start + len]);
        link.first = (link.first + 1) % link.lens.len();
        link.count -= 1;
        Ok(Some(len))
    }

    fn wait(&mut self, timeout: Timeout, polling: Polling) -> Result<(), TransportError> {
        let was_full = !self.link.unsent.is_empty();
        let limit = match timeout {
            Timeout::Now => return Ok(()),
            Timeout::After(limit) => limit,
            Timeout::Never => Duration::MAX,
        };
        let start = sys::monotonic();
        let spin = polling.poll_time.min(limit);
        let mut spent = Duration::ZERO;
        while spent < spin {
            if self.look(was_full)? {
                return Ok(());
            }
            if polling.yield_now {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
            spent = sys::monotonic().saturating_sub(start);
        }
        self.stats.waits += 1;
        let left = (timeout != Timeout::Never).then(|| limit.saturating_sub(spent));
        self.link
            .packets
            .wait(was_full, left)
            .map_err(TransportError::system("waiting for the network device"))
    }

    fn drain(&mut self, limit: Duration) -> Result<(), TransportError> {
        // What the kernel has taken it sends, whatever becomes of this process.
        let start = sys::monotonic();
        while !self.link.flush()? {
            let left = limit.saturating_sub(sys::monotonic().saturating_sub(start));
            if left.is_zero() {
                break;
            }
            self.link
                .packets
                .wait(true, Some(left))
                .map_err(TransportError::system("waiting for the network device"))?;
        }
        Ok(())
    }

    fn map_region(&mut self, uuid: [u8; 16], len: u64) -> Result<Mapping, TransportError> {
        let region = self.region.as_ref().ok_or(TransportError::Unsupported("a region"))?;
        let file = File::options()
            .read(true)
            .write(true)
            .open(region)
            .map_err(TransportError::system("opening the region's device"))?;
        let len = usize::try_from(len)
            .map_err(|_| TransportError::Protocol("the region is larger than memory can be"))?;
        let map = || {
            Mapping::from_fd(file.as_fd(), 0, len, true)
                .map_err(|error| TransportError::Map { what: "mapping the region", error })
        };
        // A guest with more than one such device may have named another one's.
        let medium = RegionMedium::new(Arc::new(map()?), None);
        match paste_pmem::guest_layout(&medium) {
            Ok((found, _)) if found.0 == uuid => map(),
            _ => Err(TransportError::OtherRegion(region.clone())),
        }
    }

    fn reconnect(&mut self) -> Result<(), TransportError> {
        self.link = Link::open(&self.interface, self.frame_size_max)?;
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
    fn what_is_no_network_device_is_said_to_be_none() {
        for name in ["", ".", "..", "../net/lo", "absent0"] {
            let error = PacketSocket::open(name, None, 4096).unwrap_err();
            assert!(matches!(error, TransportError::System { .. }), "{name}: {error}");
            assert!(error.to_string().contains("network device"), "{name}: {error}");
        }
    }
}
