//! The port between two guests of one process that name the same wire, for
//! tests and demonstrations: `pipe:wire0?loss=0.05&seed=7`.
//!
//! Each guest's parameters say what happens to the frames that it sends. Each
//! end lives on a worker of its own, so a direction of the wire is behind a
//! lock, and frames are copied onto the wire and off it. Neither would do on
//! the data path of a NIC; here nothing but the other end of a test waits.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use paste_pmem::{Owner, Pool};
use paste_stack::{Origin, RxCsum, RxFrame, TxBatch, TxCsum};

use super::wire::{Faults, Lane, Side, lane_seed};
use super::{
    Caps, FRAME_OVERHEAD, Now, Port, PortCounters, PortError, RX_OFFSET, Received, RxBatch,
    give_back, is_malformed,
};
use crate::sys::wake::{self, Waker, Wakeups};

/// Why an end of a wire could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PipeError {
    /// Both ends are in use.
    #[error("port pipe:{name}: both ends of the wire are taken: name another wire")]
    Taken {
        /// The wire.
        name: String,
    },
    /// The system has no descriptors left for the wake-up.
    #[error("port pipe:{name}: cannot make a wake-up: {source}: raise the descriptor limit")]
    Wake {
        /// The wire.
        name: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The wires of a process, by name. Wiring holds it while it opens ports.
#[derive(Debug, Default)]
pub struct Wires {
    /// The second end of a wire, until somebody attaches to it.
    ends: HashMap<String, Option<End>>,
}

/// What both ends see of a wire.
#[derive(Debug, Default)]
struct Shared {
    /// By the side that sends; set when that side attaches.
    lanes: [OnceLock<Mutex<Direction>>; 2],
}

/// One direction of a wire, with the wake-up of its receiver.
#[derive(Debug)]
struct Direction {
    lane: Lane,
    waker: Waker,
    /// The receiver was woken and has not looked yet. Changed under the same
    /// lock as the lane, so that no wake-up is lost and none is left over.
    woken: bool,
}

/// An end of a wire before it is a port.
#[derive(Debug)]
struct End {
    shared: Arc<Shared>,
    side: Side,
    /// Wakes the other end.
    waker: Waker,
    /// Woken by the other end.
    wakeups: Wakeups,
}

impl Wires {
    /// Attaches to a wire, which comes into being with its first end. `faults`
    /// and `seed` are for the frames sent from here.
    pub fn attach(
        &mut self,
        name: &str,
        faults: Faults,
        seed: u64,
        mtu: u16,
    ) -> Result<PipePort, PipeError> {
        let end = match self.ends.get_mut(name) {
            Some(second) => {
                second.take().ok_or_else(|| PipeError::Taken { name: name.to_owned() })?
            }
            None => {
                let failed = |source| PipeError::Wake { name: name.to_owned(), source };
                let (wakes_a, a) = wake::pair().map_err(failed)?;
                let (wakes_b, b) = wake::pair().map_err(failed)?;
                let shared = Arc::new(Shared::default());
                let second =
                    End { shared: shared.clone(), side: Side::B, waker: wakes_a, wakeups: b };
                self.ends.insert(name.to_owned(), Some(second));
                End { shared, side: Side::A, waker: wakes_b, wakeups: a }
            }
        };
        Ok(PipePort::new(end, faults, seed, mtu))
    }
}

/// An end of a wire.
#[derive(Debug)]
pub struct PipePort {
    shared: Arc<Shared>,
    side: Side,
    wakeups: Wakeups,
    mtu: u16,
    frame_max: usize,
    /// A buffer taken and not yet used.
    reserve: Option<u32>,
    deadline_ns: Option<u64>,
    counters: PortCounters,
}

impl PipePort {
    fn new(end: End, faults: Faults, seed: u64, mtu: u16) -> PipePort {
        let frame_max = usize::from(mtu) + usize::from(FRAME_OVERHEAD);
        let lane = Lane::new(faults, lane_seed(seed, end.side), frame_max);
        let direction = Direction { lane, waker: end.waker, woken: false };
        end.shared.lanes[end.side.index()].get_or_init(|| Mutex::new(direction));
        PipePort {
            shared: end.shared,
            side: end.side,
            wakeups: end.wakeups,
            mtu,
            frame_max,
            reserve: None,
            deadline_ns: None,
            counters: PortCounters::default(),
        }
    }
}

/// The direction away from `side`; `None` until that side is attached.
fn direction(shared: &Shared, side: Side) -> Option<MutexGuard<'_, Direction>> {
    // A test that panicked leaves a lane that is still whole.
    let lane = shared.lanes[side.index()].get()?;
    Some(lane.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Completes a checksum (RFC 1071) as a device would: the field holds the sum
/// of the pseudo-header, and what is summed runs to the end of the frame.
fn complete(frame: &mut [u8], csum: TxCsum) {
    let summed = &mut frame[usize::from(csum.start)..];
    let mut pairs = summed.chunks_exact(2);
    let mut sum: u64 =
        pairs.by_ref().map(|pair| u64::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    if let [last] = *pairs.remainder() {
        sum += u64::from(last) << 8;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // Zero would say "no checksum" in UDP; both forms of zero are equal.
    let value = match !(sum as u16) {
        0 => 0xffff,
        value => value,
    };
    let at = usize::from(csum.offset);
    summed[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

impl Port for PipePort {
    fn caps(&self) -> Caps {
        Caps { mtu: self.mtu, tx_csum: true, rx_partial: false, gather: true }
    }

    fn receive(
        &mut self,
        now: Now,
        pool: &mut Pool,
        out: &mut RxBatch,
    ) -> Result<usize, PortError> {
        self.deadline_ns = None;
        let Some(mut direction) = direction(&self.shared, self.side.other()) else {
            return Ok(0);
        };
        if direction.woken {
            self.wakeups.drain();
            direction.woken = false;
            self.counters.syscalls += 1;
        }
        let lane = &mut direction.lane;
        let mut received = 0;
        while out.room() > 0 && lane.next_deadline().is_some_and(|due| due <= now.monotonic_ns) {
            let Some(buf) = self.reserve.take().or_else(|| pool.take(Owner::Port)) else {
                // Without a deadline: the worker would spin on one that has
                // passed. What frees a buffer wakes it.
                self.counters.rx_no_buffer += 1;
                return Ok(received);
            };
            let frame_max = self.frame_max;
            let len = lane.pop_with(now.monotonic_ns, |bytes| {
                let fits = bytes.len() <= frame_max
                    && pool.buffers().write(buf, usize::from(RX_OFFSET), bytes).is_ok();
                fits.then_some(bytes.len())
            });
            match len {
                Some(Some(len)) => {
                    self.counters.rx_frames += 1;
                    self.counters.rx_bytes += len as u64;
                    self.counters.rx_bytes_copied += len as u64;
                    out.push(Received {
                        frame: RxFrame {
                            buf,
                            offset: RX_OFFSET,
                            len: len as u16,
                            csum: RxCsum::Unknown,
                            time: now.real_ns,
                        },
                        partial: None,
                    });
                    received += 1;
                }
                Some(None) => {
                    self.counters.drops.rx_oversize += 1;
                    self.reserve = Some(buf);
                }
                None => self.reserve = Some(buf),
            }
        }
        self.deadline_ns = lane.next_deadline();
        Ok(received)
    }

    fn send(
        &mut self,
        now: Now,
        pool: &Pool,
        batch: &mut TxBatch,
        done: &mut dyn FnMut(Origin, u32),
    ) -> Result<usize, PortError> {
        let count = batch.frames().len();
        if count == 0 {
            return Ok(0);
        }
        let Some(mut direction) = direction(&self.shared, self.side) else {
            return Ok(0);
        };
        for frame in batch.frames() {
            if is_malformed(frame, self.frame_max, pool.buffers()) {
                self.counters.drops.tx_malformed += 1;
            } else {
                let len = frame.len();
                direction.lane.push_with(now.monotonic_ns, len, |bytes| {
                    let (head, payload) = bytes.split_at_mut(frame.head().len());
                    head.copy_from_slice(frame.head());
                    if let Some(range) = frame.payload {
                        let offset = usize::from(range.offset);
                        let copied = pool.buffers().read(range.buf, offset, payload);
                        debug_assert!(copied.is_ok(), "judged above");
                    }
                    if let Some(csum) = frame.csum {
                        complete(bytes, csum);
                    }
                });
                self.counters.tx_frames += 1;
                self.counters.tx_bytes += len as u64;
                self.counters.tx_bytes_copied += len as u64;
            }
            if let Some(range) = frame.payload {
                done(frame.origin, range.buf);
            }
        }
        if !direction.woken {
            direction.woken = true;
            direction.waker.wake();
            self.counters.syscalls += 1;
        }
        batch.consume(count);
        Ok(count)
    }

    fn release(&mut self, pool: &mut Pool) {
        if let Some(buf) = self.reserve.take() {
            give_back(pool, buf);
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wakeups.as_fd())
    }

    fn next_deadline(&self) -> Option<u64> {
        self.deadline_ns
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }
}

#[cfg(test)]
mod tests;
