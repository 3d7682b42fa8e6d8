//! Ports: attachments to a NIC that move frames as buffers, in batches.
//!
//! A port knows the pool and the frames; it knows nothing of guests, flows or
//! configuration. It never blocks, and on the data path it never allocates,
//! formats or logs: what happened is in its [`PortCounters`].
//! What text names a port, and which kinds there are, is the business of
//! [`crate::attachment`].

mod counters;
mod limit;
pub mod netmap;
mod pipe;
pub mod prng;
pub(crate) mod segments;
mod tap;
#[cfg(test)]
pub(crate) mod testing;
pub mod wire;
mod xdp;

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use paste_pmem::{Buffers, Owner, Pool};
use paste_stack::{Origin, RxFrame, TxBatch, TxCsum, TxFrame};

use crate::ethernet::LEN as ETHERNET_LEN;

pub use counters::{Drops, PortCounters};
pub use limit::{LimitedPort, Limits, Rate, Tokens};
pub use pipe::{PipeError, PipePort, Wires};
pub use tap::{TapError, TapPort};
pub use xdp::{
    DeviceClock, Mode as XdpMode, Pair as ClockPair, Stamps, Timing, XdpDevices, XdpError,
    XdpOptions, XdpPort,
};

/// Where a received frame starts in its buffer, in bytes. The payload of an
/// IPv4/TCP segment with timestamps then starts at 130, above the headroom of
/// 128 that a guest leaves in front of what it sends.
pub const RX_OFFSET: u16 = 64;

/// Bytes that a frame has beside its MTU: an Ethernet header with a VLAN tag.
pub const FRAME_OVERHEAD: u16 = 18;

/// The largest MTU whose frames fit a buffer of `buffer_size` bytes behind
/// [`RX_OFFSET`], with one byte to spare by which a longer frame is recognised.
pub const fn mtu_max(buffer_size: u32) -> u32 {
    buffer_size - (RX_OFFSET + FRAME_OVERHEAD + 1) as u32
}

/// Time as a port is told it: two clocks read at the same moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// A clock that never goes back, in ns: what delays are measured by.
    pub monotonic_ns: u64,
    /// Since the Unix epoch, in ns: what arrivals are stamped with.
    pub real_ns: u64,
}

/// A guest, as its neighbours on the link know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Station {
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// The VLAN that its stack is on, beside none.
    pub vlan: Option<u16>,
    /// The addresses of its stack: one of each family at most.
    pub addresses: Vec<IpAddr>,
}

/// What a port can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Bytes of the largest packet, without the Ethernet header.
    pub mtu: u16,
    /// The device completes checksums: frames may carry a [`TxCsum`].
    pub tx_csum: bool,
    /// Frames may arrive whose checksum was never filled in.
    pub rx_partial: bool,
    /// A frame may consist of a head in private memory and a payload elsewhere.
    pub gather: bool,
}

/// A frame that a port received.
#[derive(Clone, Copy, Debug, Default)]
pub struct Received {
    /// The frame.
    pub frame: RxFrame,
    /// For [`paste_stack::RxCsum::Partial`]: what would have to be completed,
    /// if the frame goes on to a guest as it is.
    pub partial: Option<TxCsum>,
}

/// Frames that came from a port, allocated once.
#[derive(Debug)]
pub struct RxBatch {
    frames: Vec<Received>,
    capacity: usize,
}

impl RxBatch {
    /// A batch of at most `capacity` frames.
    pub fn new(capacity: usize) -> RxBatch {
        RxBatch { frames: Vec::with_capacity(capacity), capacity }
    }

    /// The frames, in order of arrival.
    #[inline]
    pub fn frames(&self) -> &[Received] {
        &self.frames
    }

    /// Whether there is no frame.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Frames that can still be appended.
    #[inline]
    pub fn room(&self) -> usize {
        self.capacity - self.frames.len()
    }

    /// Appends a frame; `false`, and nothing happens, when there is no room.
    #[inline]
    pub fn push(&mut self, received: Received) -> bool {
        if self.room() == 0 {
            return false;
        }
        self.frames.push(received);
        true
    }

    /// Forgets those of the frames from `start` on that `keep` is false of; their
    /// buffers are its business. Returns how many.
    pub fn retain_from(&mut self, start: usize, mut keep: impl FnMut(&Received) -> bool) -> usize {
        let (count, mut kept) = (self.frames.len(), start);
        for index in start..count {
            if keep(&self.frames[index]) {
                self.frames.swap(kept, index);
                kept += 1;
            }
        }
        self.frames.truncate(kept.min(count));
        count - self.frames.len()
    }

    /// Forgets all frames. Their buffers are their new owner's business.
    pub fn clear(&mut self) {
        self.frames.clear();
    }
}

/// An attachment to a NIC, owned by one worker.
pub trait Port: Send {
    /// What the port can do. Does not change.
    fn caps(&self) -> Caps;

    /// Bytes of the largest packet that may arrive, without the Ethernet header. More than
    /// [`Caps::mtu`] where the port makes several frames of a longer one.
    fn rx_mtu(&self) -> u16 {
        self.caps().mtu
    }

    /// Reads up to `out.room()` frames, each into a buffer taken from `pool`
    /// for [`Owner::Port`], at [`RX_OFFSET`] or further in it. Returns how many
    /// frames were appended to `out`; 0 when none waits or the pool is empty.
    /// The caller sorts the buffers to their next owner. Never blocks.
    fn receive(&mut self, now: Now, pool: &mut Pool, out: &mut RxBatch)
    -> Result<usize, PortError>;

    /// Sends frames from the front of `batch` and removes them from it, until
    /// the batch is empty or the device is full. `done` is told of each frame
    /// whose buffer the port no longer reads, whether it was sent or dropped.
    /// Returns how many frames were removed. Never blocks.
    fn send(
        &mut self,
        now: Now,
        pool: &Pool,
        batch: &mut TxBatch,
        done: &mut dyn FnMut(Origin, u32),
    ) -> Result<usize, PortError>;

    /// Whether the port still reads buffers of frames that it took, or has frames of its
    /// own to send: then [`Port::send`] is to be called, be it with an empty batch.
    fn is_sending(&self) -> bool {
        false
    }

    /// Gives back the buffers that the port keeps in reserve. Called before
    /// the pool goes away; the port takes new ones when it next receives.
    fn release(&mut self, pool: &mut Pool);

    /// Readable when frames wait.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// Asks for [`Port::fd`] to become readable when frames wait from now on, where it
    /// would not by itself: the worker is about to sleep. True if some wait already.
    fn arm(&mut self) -> bool {
        false
    }

    /// When a frame will be ready without the descriptor saying so, on the
    /// monotonic clock, in ns.
    fn next_deadline(&self) -> Option<u64>;

    /// Has the device let in what is for one more guest, where it tells guests apart.
    ///
    /// # Errors
    /// Why it does not; those that were there are served as before.
    fn admit(&mut self, _station: &Station) -> Result<(), PortError> {
        Ok(())
    }

    /// What has happened so far.
    fn counters(&self) -> &PortCounters;

    /// Every counter with its name, those that only this kind of port has among them.
    fn each_counter(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        self.counters().each(visit);
    }
}

/// Whether no device would take the frame: it has less than a header, more than
/// the link carries, a checksum to complete outside itself, or a payload that
/// lies in no buffer.
pub(crate) fn is_malformed(frame: &TxFrame, frame_max: usize, buffers: &Buffers) -> bool {
    let len = frame.len();
    let csum_fits =
        frame.csum.is_none_or(|csum| usize::from(csum.start) + usize::from(csum.offset) + 2 <= len);
    let payload_fits = frame.payload.is_none_or(|range| {
        buffers.as_ptr(range.buf, usize::from(range.offset), usize::from(range.len)).is_ok()
    });
    len < ETHERNET_LEN || len > frame_max || !csum_fits || !payload_fits
}

/// Gives back a buffer that a port took and did not use.
pub(crate) fn give_back(pool: &mut Pool, buf: u32) {
    let given = pool.give(buf, Owner::Port);
    debug_assert!(given.is_ok(), "a port kept buffer {buf}, which is not its own");
}

/// Why a port cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The device was taken away under the port.
    #[error("port {port}: the device is gone ({source}): create it again and restart the guest")]
    Gone {
        /// The port, as configured.
        port: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The device is out of service; the port goes on when it is back.
    #[error("{0}; the port goes on by itself when that has changed")]
    Out(Box<XdpError>),
    /// A system call failed in a way that does not pass.
    #[error("port {port}: {call} failed: {source}")]
    Failed {
        /// The port, as configured.
        port: String,
        /// The system call.
        call: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}
