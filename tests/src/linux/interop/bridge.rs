//! A bridge between two TAP devices that are far apart: every frame crosses a
//! [`Wire`] and its faults. Before it, frames may meet a router that marks
//! congestion where a transport said that it listens (RFC 3168 section 5).
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
    /// Frames that were marked "congestion experienced", likewise.
    pub marked: [u64; 2],
}

/// The bridge. Dropping it ends it.
#[derive(Debug)]
pub struct LossyBridge {
    stop: Arc<AtomicBool>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<io::Result<BridgeCounters>>>,
}

impl LossyBridge {
    /// Joins two devices whose packets have up to `mtu` bytes. `mark` is the
    /// chance that a frame which may be marked is.
    pub fn start(
        taps: [Tap; 2],
        mtu: u16,
        faults: Faults,
        mark: f64,
        seed: u64,
    ) -> io::Result<LossyBridge> {
        let stop = Arc::new(AtomicBool::new(false));
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let frame_max = usize::from(mtu) + FRAME_OVERHEAD;
        let mut carrier = Carrier {
            taps,
            wire: Wire::with_frames(faults, seed, frame_max, FRAMES_MAX),
            // One byte more: a longer frame must not look like a whole one.
            frame: vec![0; frame_max + 1],
            refused: [0; 2],
            marked: [0; 2],
            mark,
            drawn: seed,
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
    marked: [u64; 2],
    mark: f64,
    /// State of the chance of marks.
    drawn: u64,
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
            marked: self.marked,
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
                Some(len) => {
                    if self.draws_mark() && mark_congestion(&mut self.frame[..len]) {
                        self.marked[index(side)] += 1;
                    }
                    self.wire.push(now_ns, side, &self.frame[..len]);
                }
                None => return Ok(count > 0),
            }
        }
        Ok(true)
    }

    /// Whether the next frame is to be marked, if it may be.
    fn draws_mark(&mut self) -> bool {
        // xorshift64: any state but zero.
        self.drawn = self.drawn.max(1);
        self.drawn ^= self.drawn << 13;
        self.drawn ^= self.drawn >> 7;
        self.drawn ^= self.drawn << 17;
        (self.drawn >> 11) as f64 / (1u64 << 53) as f64 <= self.mark
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

/// Sets "congestion experienced" in a packet that is ECN-capable, as a router
/// does (RFC 3168 section 5). Whether it was.
fn mark_congestion(frame: &mut [u8]) -> bool {
    let Some(ethertype) = frame.get(12..14).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    else {
        return false;
    };
    // The second byte of the packet has the code point, at this place.
    let shift = match ethertype {
        0x0800 if frame.len() >= 34 => 0,
        0x86dd if frame.len() >= 54 => 4,
        _ => return false,
    };
    let before = frame[15];
    if !matches!(before >> shift & 3, 1 | 2) {
        return false;
    }
    frame[15] |= 3 << shift;
    if ethertype == 0x0800 {
        // RFC 1624 section 3, equation 3: HC' = ~(~HC + ~m + m').
        let sum = !u16::from_be_bytes([frame[24], frame[25]]);
        let (old, new) = (u16::from(before), u16::from(frame[15]));
        let total = u32::from(sum) + u32::from(!old) + u32::from(new);
        let total = (total & 0xffff) + (total >> 16);
        let total = (total & 0xffff) + (total >> 16);
        frame[24..26].copy_from_slice(&(!(total as u16)).to_be_bytes());
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(header: &[u8]) -> u16 {
        let pairs = header.chunks_exact(2);
        let total: u32 = pairs.map(|p| u32::from(u16::from_be_bytes([p[0], p[1]]))).sum();
        ((total & 0xffff) + (total >> 16)) as u16
    }

    #[test]
    fn only_what_listens_is_marked_and_the_checksum_stays_right() {
        for (code, marked) in [(0, false), (1, true), (2, true), (3, false)] {
            let mut v4 = [0; 60];
            v4[12..16].copy_from_slice(&[0x08, 0x00, 0x45, 0xa0 | code]);
            v4[16..24].copy_from_slice(&[0, 46, 0x12, 0x34, 0x40, 0, 64, 6]);
            v4[26..34].copy_from_slice(&[10, 9, 0, 1, 10, 9, 0, 2]);
            let right = !sum(&v4[14..34]);
            v4[24..26].copy_from_slice(&right.to_be_bytes());
            assert_eq!(mark_congestion(&mut v4), marked);
            assert_eq!(v4[15], if marked { 0xa3 } else { 0xa0 | code });
            assert_eq!(sum(&v4[14..34]), 0xffff);

            let mut v6 = [0; 60];
            v6[12..16].copy_from_slice(&[0x86, 0xdd, 0x60, code << 4 | 5]);
            assert_eq!(mark_congestion(&mut v6), marked);
            assert_eq!(v6[15], if marked { 0x35 } else { code << 4 | 5 });
        }
        let mut arp = [0; 60];
        arp[12..16].copy_from_slice(&[0x08, 0x06, 0, 1]);
        assert!(!mark_congestion(&mut arp));
        assert!(!mark_congestion(&mut [0; 5]));
    }
}
