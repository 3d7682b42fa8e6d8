//! The port on a TAP device of the host: `tap:tap0`.
//!
//! The kernel copies each frame between its own memory and a buffer of the
//! region, one system call per frame; that is what a TAP device is. Segments of one
//! flow that follow each other go, and come, in one piece: see [`super::segments`]. The
//! device is the operator's: a device that exists is taken as it is, one that does
//! not is created for as long as the port lives, and nothing is brought up here.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux::Tap;

#[cfg(not(target_os = "linux"))]
mod unsupported;
#[cfg(not(target_os = "linux"))]
use unsupported::Tap;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use paste_abi::net_hdr::{DATA_VALID, NEEDS_CSUM, NET_HDR_LEN, NetHdr};
use paste_pmem::{Owner, Pool};
use paste_stack::frame::HEAD_MAX;
use paste_stack::{Origin, RxCsum, RxFrame, TxBatch, TxCsum, TxFrame};
use rustix::io::Errno;

use super::segments::{self, PACKET_MAX, Packet};
use super::{
    Caps, ETHERNET_LEN, FRAME_OVERHEAD, Now, Port, PortCounters, PortError, RX_OFFSET, Received,
    RxBatch, give_back, is_malformed,
};

/// A name that the kernel completes with the first number that is free.
const PROBE_NAME: &str = "pasted%d";
/// Any MTU will do for a device that nothing is sent through.
const PROBE_MTU: u16 = 1500;

/// More than a buffer takes of a packet.
const READ_MAX: usize = 64 << 10;

/// Why a TAP device could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The system has no TAP devices of the kind that this port knows.
    #[error("port tap:{name}: there is no TAP port on this system: use another kind of port")]
    Unsupported {
        /// The device.
        name: String,
    },
    /// The kernel offers no TAP devices.
    #[error("port tap:{name}: /dev/net/tun does not exist: load the kernel's tun module")]
    NoDriver {
        /// The device.
        name: String,
    },
    /// Opening or attaching is not permitted.
    #[error(
        "port tap:{name}: permission denied: create it for this user with \
         `ip tuntap add dev {name} mode tap user USER`, or run with CAP_NET_ADMIN"
    )]
    Permission {
        /// The device.
        name: String,
    },
    /// Another process has the device.
    #[error("port tap:{name}: another process has it: end that process or name another device")]
    Busy {
        /// The device.
        name: String,
    },
    /// The interface is something else.
    #[error(
        "port tap:{name}: it is no TAP device with a single queue: name another device, or \
         create it anew with `ip tuntap add dev {name} mode tap`"
    )]
    NotTap {
        /// The device.
        name: String,
    },
    /// The guest would send frames that the device's link does not carry.
    #[error(
        "port tap:{name}: its MTU is {mtu}, the guest's {wanted}: set `mtu = {mtu}` for the \
         guest, or `ip link set dev {name} mtu {wanted}`"
    )]
    Mtu {
        /// The device.
        name: String,
        /// The device's MTU, in bytes.
        mtu: u32,
        /// The guest's MTU, in bytes.
        wanted: u16,
    },
    /// A system call failed.
    #[error("port tap:{name}: {call} failed: {source}")]
    Failed {
        /// The device.
        name: String,
        /// The system call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// What the host's network knows of a TAP device.
#[derive(Clone, Copy, Debug)]
struct Link {
    /// Bytes of the largest packet.
    mtu: u32,
    /// Somebody brought it up.
    up: bool,
}

/// What became of reading or writing one frame.
#[derive(Debug)]
enum IoFailure {
    /// No frame waits, or the device is full.
    Later,
    /// The device is down.
    Down,
    /// The device no longer exists.
    Gone(io::Error),
    /// Anything else; a range that lies in no buffer too.
    Other(io::Error),
}

impl From<io::Error> for IoFailure {
    /// What an error of reading or writing means (`drivers/net/tun.c`).
    fn from(error: io::Error) -> IoFailure {
        match Errno::from_io_error(&error) {
            Some(Errno::AGAIN | Errno::INTR) => IoFailure::Later,
            Some(Errno::IO) => IoFailure::Down,
            Some(Errno::NODEV) => IoFailure::Gone(error),
            _ => IoFailure::Other(error),
        }
    }
}

/// An open TAP device.
#[derive(Debug)]
pub struct TapPort {
    tap: Tap,
    name: String,
    mtu: u16,
    /// A buffer taken and not yet used: a read that finds nothing must not
    /// cost a turn around the pool.
    reserve: Option<u32>,
    /// What of a packet lies beyond the buffer of its first frame, with room for what
    /// lies in that and belongs to others.
    rest: Box<[u8]>,
    /// A packet of which frames are still to be made, and where in `rest` they begin.
    packet: Option<(Packet, usize)>,
    counters: PortCounters,
}

impl TapPort {
    /// Opens the device, or creates it. Warns of a link that is down or carries
    /// longer frames than the guest takes.
    pub fn open(name: &str, mtu: u16) -> Result<TapPort, TapError> {
        let (tap, link) = Tap::open(name, mtu)?;
        if link.mtu < u32::from(mtu) {
            return Err(TapError::Mtu { name: name.to_owned(), mtu: link.mtu, wanted: mtu });
        }
        if link.mtu > u32::from(mtu) {
            tracing::warn!(
                device = name,
                device_mtu = link.mtu,
                guest_mtu = mtu,
                "the TAP device carries longer frames than the guest takes; they will be dropped"
            );
        }
        if !link.up {
            tracing::warn!(
                device = name,
                "the TAP device is down: bring it up with `ip link set dev {name} up`"
            );
        }
        Ok(TapPort {
            tap,
            name: name.to_owned(),
            mtu,
            reserve: None,
            rest: vec![0; READ_MAX + PACKET_MAX].into(),
            packet: None,
            counters: PortCounters::default(),
        })
    }

    /// Whether this user can make TAP devices: makes one under a name of the kernel's
    /// choice, which is gone when this returns.
    pub fn probe() -> Result<(), TapError> {
        Tap::open(PROBE_NAME, PROBE_MTU).map(|_| ())
    }

    /// Bytes of the longest frame.
    fn frame_max(&self) -> usize {
        usize::from(self.mtu) + usize::from(FRAME_OVERHEAD)
    }

    /// Turns what was read into `buf` into a frame; `None`, and counted, if it
    /// is not one.
    fn judge(&mut self, header: &NetHdr, len: usize, buf: u32, time: u64) -> Option<Received> {
        if len > self.frame_max() {
            self.counters.drops.rx_oversize += 1;
            return None;
        }
        if len < ETHERNET_LEN {
            self.counters.drops.rx_runt += 1;
            return None;
        }
        let (csum, partial) = if header.flags & NEEDS_CSUM != 0 {
            let partial =
                TxCsum { start: header.csum_start.get(), offset: header.csum_offset.get() };
            (RxCsum::Partial, Some(partial))
        } else if header.flags & DATA_VALID != 0 {
            (RxCsum::Valid, None)
        } else {
            (RxCsum::Unknown, None)
        };
        Some(
            self.received(RxFrame { buf, offset: RX_OFFSET, len: len as u16, csum, time }, partial),
        )
    }

    fn received(&mut self, frame: RxFrame, partial: Option<TxCsum>) -> Received {
        self.counters.rx_frames += 1;
        self.counters.rx_bytes += u64::from(frame.len);
        Received { frame, partial }
    }

    /// Takes up a packet of several segments, the beginning of which was read into
    /// `buf`; `false`, and counted, if it is none that can be cut.
    fn take_packet(
        &mut self,
        header: &NetHdr,
        len: usize,
        pool: &Pool,
        buf: u32,
        time: u64,
    ) -> bool {
        let read_max = self.frame_max() + 1;
        let offset = usize::from(RX_OFFSET);
        let mut head = [0; HEAD_MAX];
        let head = &mut head[..len.min(HEAD_MAX).min(read_max)];
        let packet = pool.buffers().read(buf, offset, head).ok();
        let packet = packet.and_then(|()| Packet::new(header, head, len, time));
        let Some(packet) = packet.filter(|packet| packet.first_len() <= self.frame_max()) else {
            self.counters.drops.rx_segmented += 1;
            return false;
        };
        // What lies behind the first frame in its buffer goes before the rest.
        let behind = packet.first_len().min(len)..len.min(read_max);
        let start = READ_MAX - behind.len();
        let moved =
            pool.buffers().read(buf, offset + behind.start, &mut self.rest[start..READ_MAX]);
        debug_assert!(moved.is_ok(), "what was read lies in its buffer");
        self.counters.rx_bytes_copied += (len - packet.first_len()) as u64;
        self.packet = Some((packet, start));
        true
    }

    /// Makes the next frame of the packet at hand in a buffer.
    fn cut(&mut self, pool: &Pool, buf: u32) -> Option<Received> {
        let (packet, start) = self.packet.as_mut()?;
        let (time, csum) = (packet.time, packet.csum);
        let cut = packet.cut(pool.buffers(), buf, RX_OFFSET.into(), &self.rest[*start..]);
        if packet.is_done() || cut.is_err() {
            self.packet = None;
        }
        let len = cut.ok()? as u16;
        let frame = RxFrame { buf, offset: RX_OFFSET, len, csum: RxCsum::Partial, time };
        Some(self.received(frame, Some(csum)))
    }

    fn gone(&self, source: io::Error) -> PortError {
        PortError::Gone { port: format!("tap:{}", self.name), source }
    }

    fn failed(&self, call: &'static str, source: io::Error) -> PortError {
        PortError::Failed { port: format!("tap:{}", self.name), call, source }
    }
}

/// The header that goes before a frame.
fn header_of(csum: Option<TxCsum>) -> NetHdr {
    csum.map_or_else(NetHdr::default, |csum| NetHdr {
        flags: NEEDS_CSUM,
        csum_start: csum.start.into(),
        csum_offset: csum.offset.into(),
        ..NetHdr::default()
    })
}

impl Port for TapPort {
    fn caps(&self) -> Caps {
        Caps { mtu: self.mtu, tx_csum: true, rx_partial: true, gather: true }
    }

    fn receive(
        &mut self,
        now: Now,
        pool: &mut Pool,
        out: &mut RxBatch,
    ) -> Result<usize, PortError> {
        // One byte more than a frame may have, or a longer one that was cut
        // would look like a whole one.
        let read_max = self.frame_max() + 1;
        let mut received = 0;
        while out.room() > 0 {
            let Some(buf) = self.reserve.take().or_else(|| pool.take(Owner::Port)) else {
                self.counters.rx_no_buffer += 1;
                break;
            };
            if self.packet.is_some() {
                match self.cut(pool, buf) {
                    Some(frame) => {
                        out.push(frame);
                        received += 1;
                    }
                    None => self.reserve = Some(buf),
                }
                continue;
            }
            self.counters.syscalls += 1;
            let (mut header, offset) = (NetHdr::default(), usize::from(RX_OFFSET));
            let rest = &mut self.rest[READ_MAX..];
            let read = self.tap.read(&mut header, pool.buffers(), buf, offset, read_max, rest);
            let frame = match read {
                Ok(read) => {
                    let len = read.saturating_sub(NET_HDR_LEN);
                    self.counters.rx_bytes_copied += len as u64;
                    if !segments::is_packet(&header) {
                        self.judge(&header, len, buf, now.real_ns)
                    } else if self.take_packet(&header, len, pool, buf, now.real_ns) {
                        self.cut(pool, buf)
                    } else {
                        None
                    }
                }
                Err(error) => {
                    self.reserve = Some(buf);
                    match IoFailure::from(error) {
                        IoFailure::Later | IoFailure::Down => break,
                        IoFailure::Gone(source) => return Err(self.gone(source)),
                        IoFailure::Other(source) => return Err(self.failed("readv", source)),
                    }
                }
            };
            match frame {
                Some(frame) => {
                    out.push(frame);
                    received += 1;
                }
                None => self.reserve = Some(buf),
            }
        }
        Ok(received)
    }

    fn send(
        &mut self,
        _now: Now,
        pool: &Pool,
        batch: &mut TxBatch,
        done: &mut dyn FnMut(Origin, u32),
    ) -> Result<usize, PortError> {
        let frame_max = self.frame_max();
        let mut taken = 0;
        let mut result = Ok(());
        while let Some(frame) = batch.frames().get(taken) {
            let malformed = |frame| is_malformed(frame, frame_max, pool.buffers());
            let mut frames = std::slice::from_ref(frame);
            if malformed(frame) {
                self.counters.drops.tx_malformed += 1;
            } else {
                self.counters.syscalls += 1;
                let joined = segments::join(&batch.frames()[taken..]);
                let joined = joined.filter(|joined| {
                    frames = &batch.frames()[taken..taken + joined.count];
                    !frames.iter().any(malformed)
                });
                let written = match &joined {
                    Some(joined) => {
                        self.tap.write(&joined.header, joined.head(), pool.buffers(), frames)
                    }
                    None => {
                        frames = std::slice::from_ref(frame);
                        let header = header_of(frame.csum);
                        self.tap.write(&header, frame.head(), pool.buffers(), frames)
                    }
                };
                match written.map_err(IoFailure::from) {
                    Ok(()) => {
                        let len: usize = frames.iter().map(TxFrame::len).sum();
                        self.counters.tx_frames += frames.len() as u64;
                        self.counters.tx_bytes += len as u64;
                        self.counters.tx_bytes_copied += len as u64;
                    }
                    Err(IoFailure::Later) => {
                        self.counters.tx_full += 1;
                        break;
                    }
                    Err(IoFailure::Down) => {
                        self.counters.drops.tx_link_down += frames.len() as u64;
                    }
                    Err(IoFailure::Gone(source)) => {
                        result = Err(self.gone(source));
                        break;
                    }
                    Err(IoFailure::Other(_)) => {
                        self.counters.drops.tx_refused += frames.len() as u64;
                    }
                }
            }
            taken += frames.len();
            for frame in frames {
                if let Some(range) = frame.payload {
                    done(frame.origin, range.buf);
                }
            }
        }
        batch.consume(taken);
        result.map(|()| taken)
    }

    fn release(&mut self, pool: &mut Pool) {
        if let Some(buf) = self.reserve.take() {
            give_back(pool, buf);
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.tap.as_fd())
    }

    fn next_deadline(&self) -> Option<u64> {
        // The descriptor does not say that frames wait here.
        self.packet.is_some().then_some(0)
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }
}

#[cfg(test)]
mod tests;
