//! A bridge between two TAP devices that are far apart: every frame crosses a
//! [`Wire`] and its faults.
//!
//! One thread carries both directions, many frames per turn. It allocates
//! nothing once it runs, and sleeps until a frame comes or one is due.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pasted::port::wire::{Faults, LaneCounters, Side, Wire};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::tap::Tap;

/// Bytes of an Ethernet header and a VLAN tag.
const FRAME_OVERHEAD: usize = 18;
/// Frames taken from one device before the other has its turn.
const BATCH: usize = 64;
/// Frames on their way in each direction: 8 ms of small frames at a million a
/// second, or 100 Mbyte of jumbo frames.
const FRAMES_MAX: u32 = 8 * 1024;

/// What a bridge did, by the side that the frames came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BridgeCounters {
    /// What happened on the wire, away from [`Side::A`] and [`Side::B`].
    pub lanes: [LaneCounters; 2],
    /// Frames that the kernel did not take at the other end, likewise.
    pub refused: [u64; 2],
}

/// The bridge. Dropping it ends it.
#[derive(Debug)]
pub struct LossyBridge {
    stop: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<io::Result<BridgeCounters>>>,
}

impl LossyBridge {
    /// Joins two devices whose packets have up to `mtu` bytes.
    pub fn start(taps: [Tap; 2], mtu: u16, faults: Faults, seed: u64) -> io::Result<LossyBridge> {
        let stop = Arc::new(AtomicBool::new(false));
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let frame_max = usize::from(mtu) + FRAME_OVERHEAD;
        let mut carrier = Carrier {
            taps,
            wire: Wire::with_frames(faults, seed, frame_max, FRAMES_MAX),
            // One byte more: a longer frame must not look like a whole one.
            frame: vec![0; frame_max + 1],
            refused: [0; 2],
            epoch: Instant::now(),
            stop: Arc::clone(&stop),
            wake: Arc::clone(&wake),
        };
        let thread = std::thread::Builder::new()
            .name("lossy-bridge".to_owned())
            .spawn(move || carrier.run())?;
        Ok(LossyBridge { stop, wake, thread: Some(thread) })
    }

    /// Ends it; what was on the wire is lost.
    ///
    /// # Panics
    /// If a device failed.
    pub fn stop(mut self) -> BridgeCounters {
        self.end().expect("it runs").expect("the devices are there")
    }

    fn end(&mut self) -> Option<io::Result<BridgeCounters>> {
        let thread = self.thread.take()?;
        self.stop.store(true, Ordering::Relaxed);
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        Some(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    }
}

impl Drop for LossyBridge {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// What the thread works with.
struct Carrier {
    taps: [Tap; 2],
    wire: Wire,
    frame: Vec<u8>,
    refused: [u64; 2],
    epoch: Instant,
    stop: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
}

impl Carrier {
    fn run(&mut self) -> io::Result<BridgeCounters> {
        // Without it every sleep is up to 50 us longer than asked for.
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        while !self.stop.load(Ordering::Relaxed) {
            let mut moved = false;
            for side in [Side::A, Side::B] {
                moved |= self.take(side)?;
            }
            for side in [Side::A, Side::B] {
                moved |= self.give(side);
            }
            if !moved {
                self.sleep()?;
            }
        }
        Ok(BridgeCounters {
            lanes: [Side::A, Side::B].map(|side| *self.wire.counters(side)),
            refused: self.refused,
        })
    }

    fn now_ns(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// Puts frames from a side's device on the wire.
    fn take(&mut self, side: Side) -> io::Result<bool> {
        let now_ns = self.now_ns();
        for count in 0..BATCH {
            match self.taps[index(side)].receive(&mut self.frame)? {
                Some(len) => self.wire.push(now_ns, side, &self.frame[..len]),
                None => return Ok(count > 0),
            }
        }
        Ok(true)
    }

    /// Hands frames that have arrived at a side to its device.
    fn give(&mut self, side: Side) -> bool {
        let now_ns = self.now_ns();
        let tap = &self.taps[index(side)];
        let mut moved = false;
        while let Some(taken) = self.wire.pop_with(now_ns, side, |frame| tap.send(frame)) {
            self.refused[index(side.other())] += u64::from(!taken);
            moved = true;
        }
        moved
    }

    /// Sleeps until there may be something to do.
    fn sleep(&self) -> io::Result<()> {
        let timeout = self.wire.next_deadline().map(|due_ns| {
            let wait = Duration::from_nanos(due_ns.saturating_sub(self.now_ns()));
            Timespec {
                tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(wait.subsec_nanos()),
            }
        });
        let mut fds = [self.taps[0].as_fd(), self.taps[1].as_fd(), self.wake.as_fd()]
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn index(side: Side) -> usize {
    side as usize
}
