//! A pair of virtqueues with the buffers of their frames, as their driver has them: what
//! transports that own their rings have in common. It does not know how the device was
//! told of the rings, nor how either side is signalled.

mod ring;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use paste_abi::net_hdr::NET_HDR_LEN;

use super::{Polling, Timeout, TransportError};
use crate::sys::{self, Mapping};
use ring::{Direction, Ring, RingError};

pub(super) use ring::Layout;

/// Queue numbers of the first pair, and of each in it (VIRTIO 1.2 section 5.1.2).
pub(super) const RX: u16 = 0;
pub(super) const TX: u16 = 1;

/// The device has a MAC address in its configuration space (VIRTIO 1.2 section 5.1.3).
pub(super) const F_MAC: u64 = 1 << 5;
/// Notifications are suppressed by index (section 2.7.7).
pub(super) const F_EVENT_IDX: u64 = 1 << 29;
/// Not a legacy device (section 6).
pub(super) const F_VERSION_1: u64 = 1 << 32;

/// One of so many places of a receive ring is not for the frames that the host has credit
/// for, but for WELCOME, BYE, bare credit, and ordinary frames that the device receives.
const RESERVED_PART: u16 = 8;

impl From<RingError> for TransportError {
    fn from(error: RingError) -> TransportError {
        TransportError::Protocol(match error {
            RingError::Index => "the used index runs ahead of the descriptors in flight",
            RingError::Descriptor => "a used entry names a descriptor that is not in flight",
            RingError::Length => "a used entry has more bytes than its buffer",
        })
    }
}

/// Which queues the device wants to be kicked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the device may sleep until it is kicked"]
pub(super) struct Kicks {
    pub(super) rx: bool,
    pub(super) tx: bool,
}

/// A receive queue and a transmit queue.
#[derive(Debug)]
pub(super) struct Pair {
    rx: Ring,
    tx: Ring,
    frame_size: usize,
    size: u16,
}

impl Pair {
    /// Rings of this layout for frames of at most `frame_size` bytes, one behind the other
    /// from `offset` in `memory` on, a multiple of a page, which the device finds at
    /// `address`: that for receiving, full of empty buffers, and that for sending. Both are
    /// yet to be kicked.
    pub(super) fn new(
        memory: BorrowedFd<'_>,
        offset: usize,
        layout: Layout,
        address: u64,
        frame_size: u16,
    ) -> Result<Pair, TransportError> {
        let frame_size = usize::from(frame_size);
        debug_assert!(layout.buffer_len >= NET_HDR_LEN + frame_size);
        let map = |at: usize| {
            Mapping::from_fd(memory, (offset + at) as u64, layout.len, true)
                .map_err(|error| TransportError::Map { what: "mapping the rings", error })
        };
        let tx_address = address + layout.len as u64;
        let mut rx = Ring::new(map(0)?, layout, address, Direction::Receive);
        let tx = Ring::new(map(layout.len)?, layout, tx_address, Direction::Transmit);
        rx.refill();
        // A ring starts at its first kick, whatever it says of kicks.
        let _ = rx.publish();
        Ok(Pair { rx, tx, frame_size, size: layout.size })
    }

    /// Frames that the host may have credit for.
    pub(super) fn capacity(&self) -> u32 {
        u32::from(self.size - self.size / RESERVED_PART)
    }

    /// Takes back the descriptors of frames that the device has sent.
    fn reclaim(&mut self) -> Result<(), TransportError> {
        self.tx.refresh()?;
        while self.tx.pop()?.is_some() {}
        Ok(())
    }

    /// Frames that were sent, and that the device has not been seen to have done with.
    pub(super) fn unsent(&self) -> usize {
        self.tx.in_flight()
    }

    /// See [`super::Transport::send`].
    pub(super) fn send(
        &mut self,
        fill: &mut dyn FnMut(&mut [u8]) -> usize,
    ) -> Result<bool, TransportError> {
        if self.tx.free() == 0 {
            self.reclaim()?;
        }
        let frame_size = self.frame_size;
        Ok(self.tx.push(|out| {
            out[..NET_HDR_LEN].fill(0);
            match fill(&mut out[NET_HDR_LEN..NET_HDR_LEN + frame_size]) {
                0 => 0,
                len => NET_HDR_LEN + len,
            }
        }))
    }

    /// Shows the device what was sent, and buffers for more.
    pub(super) fn publish(&mut self) -> Kicks {
        let tx = self.tx.publish();
        self.rx.refill();
        // Wanted only by a device that had run out of buffers.
        let rx = self.rx.publish();
        Kicks { rx, tx }
    }

    /// See [`super::Transport::refresh`].
    pub(super) fn refresh(&mut self) -> Result<usize, TransportError> {
        Ok(self.rx.refresh()?)
    }

    /// See [`super::Transport::receive`].
    pub(super) fn receive(&mut self, out: &mut [u8]) -> Result<Option<usize>, TransportError> {
        let Some(bytes) = self.rx.pop()? else {
            return Ok(None);
        };
        // An ordinary frame of the bridge may be anything; what does not fit
        // is none of ours.
        let frame = bytes.get(NET_HDR_LEN..).unwrap_or_default();
        let len = frame.len().min(out.len());
        out[..len].copy_from_slice(&frame[..len]);
        Ok(Some(len))
    }

    /// Whether a frame has arrived, or room has come back that was missing.
    pub(super) fn look(&mut self, tx_was_full: bool) -> Result<bool, TransportError> {
        if self.rx.refresh()? > 0 {
            return Ok(true);
        }
        if tx_was_full {
            self.reclaim()?;
            return Ok(self.tx.free() > 0);
        }
        Ok(false)
    }
}

/// A transport on such a pair.
pub(super) trait Waiting {
    /// Its rings.
    fn pair(&mut self) -> Result<&mut Pair, TransportError>;

    /// Looks at what is not in the rings, now and then: this is called at each look.
    fn service(&mut self) -> Result<(), TransportError>;

    /// Sleeps until the device calls or has something to say that is not in the rings, for
    /// at most `timeout` (`None`: for ever). Those that must see what `tx_was_full` says
    /// are armed.
    fn sleep(&mut self, timeout: Option<Duration>, tx_was_full: bool)
    -> Result<(), TransportError>;
}

/// See [`super::Transport::wait`].
pub(super) fn wait(
    transport: &mut impl Waiting,
    timeout: Timeout,
    polling: Polling,
) -> Result<(), TransportError> {
    transport.service()?;
    let pair = transport.pair()?;
    let tx_was_full = pair.tx.free() == 0;
    if timeout == Timeout::Now || pair.look(tx_was_full)? {
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
            if transport.pair()?.look(tx_was_full)? {
                return Ok(());
            }
            transport.service()?;
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
    let pair = transport.pair()?;
    pair.rx.arm();
    if tx_was_full {
        pair.tx.arm();
    }
    let left = limit.saturating_sub(sys::monotonic().saturating_sub(start));
    let left = (timeout != Timeout::Never).then_some(left);
    let slept = match pair.look(tx_was_full) {
        Ok(false) => transport.sleep(left, tx_was_full),
        other => other.map(|_| ()),
    };
    let pair = transport.pair()?;
    pair.rx.disarm();
    pair.tx.disarm();
    slept
}

/// See [`super::Transport::drain`].
pub(super) fn drain(transport: &mut impl Waiting, limit: Duration) -> Result<(), TransportError> {
    let start = sys::monotonic();
    loop {
        let pair = transport.pair()?;
        pair.tx.arm();
        pair.reclaim()?;
        let left = limit.saturating_sub(sys::monotonic().saturating_sub(start));
        if pair.unsent() == 0 || left.is_zero() {
            return Ok(());
        }
        transport.sleep(Some(left), true)?;
    }
}
