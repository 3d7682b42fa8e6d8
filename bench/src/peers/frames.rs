//! A port that is no limit, for frames of a guest's own driver: it has as many frames for the
//! guest as anybody takes, takes what the guest sends, or sends back as many as came. There
//! is no device behind it, and no system call.

use std::os::fd::BorrowedFd;

use paste_pmem::{Owner, Pool};
use paste_stack::{Origin, RxCsum, RxFrame, TxBatch};
use pasted::port::{Caps, Now, Port, PortCounters, PortError, RX_OFFSET, Received, RxBatch};
use pasted::wiring::Fittings;

use crate::network::MTU;

/// The guest's Ethernet address.
pub const GUEST_MAC: [u8; 6] = [0x02, 0x70, 0x62, 4, 0, 1];
/// The other one's.
const FAR_MAC: [u8; 6] = [0x02, 0x70, 0x62, 4, 0, 2];
/// What addresses frames are from and to: those of RFC 2544, as testpmd has them.
pub const NETWORK: &str = "198.18.0.0/15";
/// Bytes of Ethernet, IPv4 and UDP headers.
const HEAD_LEN: usize = 42;
/// The discard port (RFC 863).
const UDP_PORT: u16 = 9;

/// Which way frames go, as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Direction {
    /// To the guest.
    Rx,
    /// From the guest.
    Tx,
    /// From the guest and back.
    Loop,
}

impl Direction {
    /// As it is called in rows and arguments.
    pub fn name(self) -> &'static str {
        match self {
            Direction::Rx => "rx",
            Direction::Tx => "tx",
            Direction::Loop => "loop",
        }
    }
}

/// Puts such a port into the place of every guest's.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// Which way.
    pub direction: Direction,
    /// Bytes of a frame to the guest, without the frame check sequence.
    pub len: usize,
}

impl Fittings for Frames {
    fn port(&self, _pipe: Box<dyn Port>) -> Box<dyn Port> {
        Box::new(FramesPort {
            direction: self.direction,
            frame: frame(self.len).into(),
            filled: Vec::new(),
            owed: 0,
            counters: PortCounters::default(),
        })
    }
}

/// A UDP datagram for the guest's own kernel.
fn frame(len: usize) -> Vec<u8> {
    let len = len.clamp(HEAD_LEN, usize::from(MTU) + 14);
    let mut frame = vec![0; len];
    frame[..6].copy_from_slice(&GUEST_MAC);
    frame[6..12].copy_from_slice(&FAR_MAC);
    frame[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    frame[16..18].copy_from_slice(&((len - 14) as u16).to_be_bytes());
    // Time to live, and the protocol.
    frame[22..24].copy_from_slice(&[64, 17]);
    frame[26..34].copy_from_slice(&[198, 18, 0, 2, 198, 18, 0, 1]);
    let sum = !paste_pmem::checksum::sum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    let [high, low] = UDP_PORT.to_be_bytes();
    frame[34..38].copy_from_slice(&[high, low, high, low]);
    // No checksum of UDP.
    frame[38..40].copy_from_slice(&((len - 34) as u16).to_be_bytes());
    frame
}

struct FramesPort {
    direction: Direction,
    frame: Box<[u8]>,
    /// By buffer: the frame lies in it. It still does when the buffer comes back.
    filled: Vec<bool>,
    /// Frames that came and are to be sent back.
    owed: usize,
    counters: PortCounters,
}

impl Port for FramesPort {
    fn caps(&self) -> Caps {
        Caps { mtu: MTU, tx_csum: true, rx_partial: false, gather: true }
    }

    fn receive(
        &mut self,
        now: Now,
        pool: &mut Pool,
        out: &mut RxBatch,
    ) -> Result<usize, PortError> {
        let wanted = match self.direction {
            Direction::Rx => out.room(),
            Direction::Tx => 0,
            Direction::Loop => self.owed.min(out.room()),
        };
        let mut received = 0;
        while received < wanted {
            let Some(buf) = pool.take(Owner::Port) else {
                self.counters.rx_no_buffer += 1;
                break;
            };
            let place = buf as usize;
            if self.filled.len() <= place {
                self.filled.resize(pool.buffers().count() as usize, false);
            }
            if self.direction == Direction::Loop || !self.filled[place] {
                // What the guest has sent may lie there.
                let written = pool.buffers().write(buf, RX_OFFSET.into(), &self.frame);
                debug_assert!(written.is_ok(), "a frame fits a buffer");
                self.filled[place] = true;
            }
            let (csum, time) = (RxCsum::Unknown, now.real_ns);
            let len = self.frame.len() as u16;
            let frame = RxFrame { buf, offset: RX_OFFSET, len, csum, time };
            out.push(Received { frame, partial: None });
            received += 1;
        }
        self.owed -= if self.direction == Direction::Loop { received } else { 0 };
        self.counters.rx_frames += received as u64;
        self.counters.rx_bytes += (received * self.frame.len()) as u64;
        Ok(received)
    }

    fn send(
        &mut self,
        _now: Now,
        _pool: &Pool,
        batch: &mut TxBatch,
        done: &mut dyn FnMut(Origin, u32),
    ) -> Result<usize, PortError> {
        let count = batch.frames().len();
        for frame in batch.frames() {
            self.counters.tx_bytes += frame.len() as u64;
            // What the stack says by itself is no frame of the guest's.
            self.owed += usize::from(frame.origin == Origin::Bridge);
            if let Some(range) = frame.payload {
                done(frame.origin, range.buf);
            }
        }
        self.counters.tx_frames += count as u64;
        batch.consume(count);
        Ok(count)
    }

    fn release(&mut self, _pool: &mut Pool) {}

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn next_deadline(&self) -> Option<u64> {
        let more = self.direction == Direction::Rx || self.owed > 0;
        more.then_some(0)
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device;

    fn port(direction: Direction, len: usize) -> FramesPort {
        FramesPort {
            direction,
            frame: frame(len).into(),
            filled: Vec::new(),
            owed: 0,
            counters: PortCounters::default(),
        }
    }

    #[test]
    fn frames_are_as_long_as_they_are_to_be() {
        for len in [64, 1514] {
            let frame = frame(len);
            assert_eq!(frame.len(), len);
            assert_eq!(u16::from_be_bytes([frame[16], frame[17]]) as usize, len - 14);
            assert_eq!(paste_pmem::checksum::sum(&frame[14..34]), 0xffff);
        }
    }

    #[test]
    fn as_many_go_back_as_came() {
        let region = device::region("frames", 4 << 20).unwrap();
        let mut pool = region.pool();
        let mut rx = RxBatch::new(8);
        let mut source = port(Direction::Rx, 64);
        assert_eq!(source.receive(Now::default(), &mut pool, &mut rx).unwrap(), 8);
        let buf = rx.frames()[0].frame.buf;
        let mut bytes = [0; 64];
        pool.buffers().read(buf, RX_OFFSET.into(), &mut bytes).unwrap();
        assert_eq!(bytes[..], frame(64)[..]);
        rx.clear();

        let mut back = port(Direction::Loop, 64);
        assert_eq!(back.receive(Now::default(), &mut pool, &mut rx).unwrap(), 0);
        let mut tx = TxBatch::new(8);
        for origin in [Origin::Bridge, Origin::Stack, Origin::Bridge] {
            tx.push(origin).unwrap().head_mut(64);
        }
        assert_eq!(back.send(Now::default(), &pool, &mut tx, &mut |_, _| {}).unwrap(), 3);
        assert_eq!(back.receive(Now::default(), &mut pool, &mut rx).unwrap(), 2);
        assert_eq!(back.next_deadline(), None);
    }
}
