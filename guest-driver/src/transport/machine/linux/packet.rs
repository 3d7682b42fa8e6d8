//! An application in a virtual machine, beside the kernel's own driver: frames go
//! through a packet socket on the network device, and the region is the device
//! DAX that the kernel shows it as, or memory of a PCI device ([`region`]).
//!
//! It needs nothing but the kernel: CAP_NET_RAW for the socket, and the right to
//! open the region's device. The socket's rings are memory that is shared with the
//! kernel: a batch of frames of up to 46 slots each (at an MTU of 1500) costs one system
//! call to send and none to receive, and a copy of its slots; payload stays in the
//! region. Of several applications, the kernel gives each the frames of its own channel.
//!
//! The host does not see that a process has ended whose device stays, so it asks for signs
//! of life: an application that does not poll for half a minute is taken for dead.
//!
//! What overflows a ring is lost, so the host is given credit for no more frames
//! than the ring has places. A device's queue that is full leaves frames in the ring,
//! which are then sent before any other.

use std::path::{Path, PathBuf};
use std::time::Duration;

use paste_abi::ETHERTYPE;
use paste_abi::frame::{FRAME_SIZE_MAX, FRAME_SIZE_MIN, is_paste};

use super::region;
use super::sys::packet::{Device, Packets, Wanted};
use crate::sys::{self, Mapping};
use crate::transport::{Polling, Timeout, Transport, TransportError, TransportStats};

/// Bytes of an Ethernet header, which an MTU does not count.
const ETHERNET: u32 = 14;
/// Where a frame has its channel, in bytes.
const CHANNEL_AT: u32 = 16;
/// Frames that may wait for us, at most, and bytes of them.
const WINDOW: usize = 256;
const WINDOW_BYTES: usize = 4 << 20;
/// Frames that may wait to be sent, at least: as many as a host gives credit for.
const UNSENT: usize = 72;
/// What waits besides the frames that the host has credit for: WELCOME, BYE and
/// bare credit.
const RESERVED: usize = 8;
/// How long to wait before frames that found the device's queue full are tried again.
const FULL: Duration = Duration::from_millis(1);

/// A packet socket, and the region's device.
#[derive(Debug)]
pub(crate) struct PacketSocket {
    interface: String,
    region: Option<PathBuf>,
    channel: u16,
    frame_size_max: u16,
    link: Link,
    stats: TransportStats,
}

/// One socket; made anew by a reconnect.
#[derive(Debug)]
struct Link {
    packets: Packets,
    mac: [u8; 6],
    frame_size: u16,
    window: usize,
    /// Frames that are known to wait in the socket.
    waiting: usize,
}

impl Link {
    fn open(interface: &str, channel: u16, frame_size_max: u16) -> Result<Link, TransportError> {
        let device = Device::named(interface)
            .map_err(TransportError::system("looking for the network device in sysfs"))?;
        let mtu_frame = u16::try_from(device.mtu + ETHERNET).unwrap_or(u16::MAX);
        let frame_size = frame_size_max.min(mtu_frame);
        let window = (WINDOW_BYTES / usize::from(frame_size)).clamp(1, WINDOW);
        let wanted = Wanted {
            ethertype: ETHERTYPE,
            // Little endian in the frame.
            word: (CHANNEL_AT, channel.to_le().swap_bytes()),
            frame_size: frame_size.into(),
            backlog: window + RESERVED,
            unsent: UNSENT,
        };
        let packets = Packets::on(&device, wanted)
            .map_err(TransportError::system("opening a packet socket (it takes CAP_NET_RAW)"))?;
        Ok(Link { packets, mac: device.mac, frame_size, window, waiting: 0 })
    }

    /// Has the kernel send what waits; whether none of that is left.
    fn flush(&mut self, stats: &mut TransportStats) -> Result<bool, TransportError> {
        if !self.packets.has_unsent() {
            return Ok(true);
        }
        stats.kicks += 1;
        self.packets.flush().map_err(TransportError::system("sending"))
    }
}

impl PacketSocket {
    /// For PASTE frames of this channel, of at most `frame_size_max` bytes, on this
    /// device, and the region at this path, if there is one to be mapped.
    pub(crate) fn open(
        interface: &str,
        region: Option<&Path>,
        channel: u16,
        frame_size_max: u16,
    ) -> Result<PacketSocket, TransportError> {
        let frame_size_max = frame_size_max.clamp(FRAME_SIZE_MIN as u16, FRAME_SIZE_MAX as u16);
        Ok(PacketSocket {
            interface: interface.to_owned(),
            region: region.map(Path::to_owned),
            channel,
            frame_size_max,
            link: Link::open(interface, channel, frame_size_max)?,
            stats: TransportStats::default(),
        })
    }

    /// Whether a frame is there, or room that was missing.
    fn look(&mut self, was_full: bool) -> Result<bool, TransportError> {
        let waiting = self.refresh()?;
        Ok(waiting > 0 || (was_full && self.link.flush(&mut self.stats)?))
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

    /// The socket goes, and the device stays.
    fn ends_unseen(&self) -> bool {
        true
    }

    fn send(&mut self, fill: &mut dyn FnMut(&mut [u8]) -> usize) -> Result<bool, TransportError> {
        let frame_size = self.link.frame_size.into();
        if self.link.packets.send(frame_size, fill) {
            return Ok(true);
        }
        self.link.flush(&mut self.stats)?;
        Ok(self.link.packets.send(frame_size, fill))
    }

    fn publish(&mut self) -> Result<(), TransportError> {
        self.link.flush(&mut self.stats).map(|_| ())
    }

    fn refresh(&mut self) -> Result<usize, TransportError> {
        self.link.waiting = self.link.packets.waiting(self.link.waiting);
        Ok(self.link.waiting)
    }

    fn receive(&mut self, out: &mut [u8]) -> Result<Option<usize>, TransportError> {
        while let Some(len) = self.link.packets.receive(out) {
            self.link.waiting = self.link.waiting.saturating_sub(1);
            // The kernel has judged the ethertype, unless a tag was in front of it.
            if is_paste(&out[..len]) {
                return Ok(Some(len));
            }
        }
        Ok(None)
    }

    fn wait(&mut self, timeout: Timeout, polling: Polling) -> Result<(), TransportError> {
        let no_room = !self.link.packets.has_room();
        let was_full = no_room || self.link.packets.has_unsent();
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
        let mut left = (timeout != Timeout::Never).then(|| limit.saturating_sub(spent));
        if self.link.packets.has_unsent() {
            // That a device's queue has room again, no descriptor says.
            left = Some(left.map_or(FULL, |left| left.min(FULL)));
        }
        self.link
            .packets
            .wait(no_room, left)
            .map_err(TransportError::system("waiting for the network device"))
    }

    fn drain(&mut self, limit: Duration) -> Result<(), TransportError> {
        // What the kernel has taken it sends, whatever becomes of this process.
        let start = sys::monotonic();
        while !self.link.flush(&mut self.stats)? {
            let left = limit.saturating_sub(sys::monotonic().saturating_sub(start));
            if left.is_zero() {
                break;
            }
            sys::sleep(FULL.min(left))
                .map_err(TransportError::system("waiting for the network device"))?;
        }
        Ok(())
    }

    fn map_region(&mut self, uuid: [u8; 16], len: u64) -> Result<Mapping, TransportError> {
        let region = self.region.as_ref().ok_or(TransportError::Unsupported("a region"))?;
        region::map(region, uuid, len)
    }

    fn reconnect(&mut self) -> Result<(), TransportError> {
        self.link = Link::open(&self.interface, self.channel, self.frame_size_max)?;
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
            let error = PacketSocket::open(name, None, 0, 4096).unwrap_err();
            assert!(matches!(error, TransportError::System { .. }), "{name}: {error}");
            assert!(error.to_string().contains("network device"), "{name}: {error}");
        }
    }
}
