//! Carries frames between two TAP devices: the kernel's TCP as peer needs a
//! namespace of its own, and a TAP device ends in the namespace it is in, so
//! somebody must stand between. A frame costs one read and one write; nothing
//! in it is looked at, and its virtio-net header goes along, so that checksums
//! stay unfilled all the way.

use std::io;

use crate::sys::linux::demo::Tap;

/// Frames that one turn carries in one direction, at most.
const BUDGET: usize = 64;
/// Bytes of the longest frame with its header. Segmentation is not offered, so
/// no frame is longer than an Ethernet frame.
const FRAME_LEN_MAX: usize = 2048;

/// What the relay has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Carried {
    /// Frames, both ways.
    pub frames: u64,
    /// Bytes of these frames, each copied twice by the kernel: out and in.
    pub bytes: u64,
    /// Frames that the other side did not take.
    pub dropped: u64,
}

/// Two TAP devices and what went between them.
pub struct Relay {
    ends: [Tap; 2],
    frame: Box<[u8]>,
    carried: Carried,
}

impl Relay {
    /// A relay between two devices.
    pub fn new(ends: [Tap; 2]) -> Relay {
        Relay { ends, frame: vec![0; FRAME_LEN_MAX].into(), carried: Carried::default() }
    }

    /// The two devices, to be watched.
    pub fn ends(&self) -> &[Tap; 2] {
        &self.ends
    }

    /// Carries what waits at end `from` (0 or 1) to the other.
    pub fn carry(&mut self, from: usize) -> io::Result<()> {
        for _ in 0..BUDGET {
            let Some(len) = self.ends[from].receive(&mut self.frame)? else {
                break;
            };
            match self.ends[1 - from].send(&self.frame[..len])? {
                Some(_) => {
                    self.carried.frames += 1;
                    self.carried.bytes += len as u64;
                }
                None => self.carried.dropped += 1,
            }
        }
        Ok(())
    }

    /// What went between the two.
    pub fn carried(&self) -> Carried {
        self.carried
    }
}
