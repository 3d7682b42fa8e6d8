//! The guest's end of a shared NIC: a port as any other, whose frames cross between
//! the NIC's region and the guest's by one copy.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use paste_pmem::{Buffers, Owner, Pool};
use paste_stack::{Origin, RxCsum, RxFrame, TxBatch, TxFrame};
use rtrb::{Consumer, Producer};

use super::Passing;
use super::bell::Bell;
use crate::port::{
    Caps, FRAME_OVERHEAD, Now, Port, PortCounters, PortError, RX_OFFSET, Received, RxBatch,
    give_back, is_malformed,
};
use crate::sys::wake::Wakeups;

/// The ends of the rings that are the guest's worker's.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) received: Consumer<Passing>,
    pub(super) returned: Producer<u32>,
    pub(super) sending: Producer<Passing>,
    pub(super) credit: Consumer<u32>,
    /// Rings for the switch.
    pub(super) switch: Arc<Bell>,
    /// Rings for us.
    pub(super) own: Arc<Bell>,
}

/// A port on a NIC that other guests use too.
#[derive(Debug)]
pub struct SwitchPort {
    caps: Caps,
    /// The NIC's region.
    nic: Buffers,
    ends: Ends,
    wakeups: Wakeups,
    armed: bool,
    /// A buffer taken and not yet used.
    reserve: Option<u32>,
    counters: PortCounters,
}

impl SwitchPort {
    pub(super) fn new(caps: Caps, nic: Buffers, ends: Ends, wakeups: Wakeups) -> SwitchPort {
        SwitchPort {
            caps,
            nic,
            ends,
            wakeups,
            armed: false,
            reserve: None,
            counters: PortCounters::default(),
        }
    }

    fn frame_max(&self) -> usize {
        usize::from(self.caps.mtu) + usize::from(FRAME_OVERHEAD)
    }

    /// Copies a frame out of the guest's region into a buffer of the NIC's.
    fn carry(&self, frame: &TxFrame, guest: &Buffers, to: u32) -> bool {
        let start = usize::from(RX_OFFSET);
        let head = frame.head();
        let written = self.nic.write(to, start, head);
        let copied = frame.payload.map_or(Ok(()), |range| {
            let from = (range.buf, usize::from(range.offset));
            self.nic.copy_from((to, start + head.len()), guest, from, usize::from(range.len))
        });
        written.and(copied).is_ok()
    }

    fn ring(&mut self) {
        self.counters.syscalls += u64::from(self.ends.switch.ring());
    }
}

impl Port for SwitchPort {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn receive(
        &mut self,
        _now: Now,
        pool: &mut Pool,
        out: &mut RxBatch,
    ) -> Result<usize, PortError> {
        if std::mem::take(&mut self.armed) {
            self.ends.own.disarm();
            self.wakeups.drain();
            self.counters.syscalls += 1;
        }
        let mut received = 0;
        let mut taken = 0;
        while out.room() > 0 && !self.ends.received.is_empty() {
            let Some(buf) = self.reserve.take().or_else(|| pool.take(Owner::Port)) else {
                self.counters.rx_no_buffer += 1;
                break;
            };
            let Ok(passing) = self.ends.received.pop() else { break };
            taken += 1;
            let len = usize::from(passing.len);
            let from = (passing.buf, usize::from(passing.offset));
            let to = (buf, usize::from(RX_OFFSET));
            let copied = len <= self.frame_max()
                && pool.buffers().copy_from(to, &self.nic, from, len).is_ok();
            let returned = self.ends.returned.push(passing.buf);
            debug_assert!(returned.is_ok(), "the ring back has room for all that are away");
            if !copied {
                self.counters.drops.rx_oversize += 1;
                self.reserve = Some(buf);
                continue;
            }
            self.counters.rx_frames += 1;
            self.counters.rx_bytes += len as u64;
            self.counters.rx_bytes_copied += len as u64;
            let Passing { csum, time, .. } = passing;
            let frame = RxFrame { buf, offset: RX_OFFSET, len: passing.len, csum, time };
            out.push(Received { frame, partial: passing.partial });
            received += 1;
        }
        if taken > 0 {
            self.ring();
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
        let mut sent = 0;
        for frame in batch.frames() {
            if is_malformed(frame, frame_max, pool.buffers()) {
                self.counters.drops.tx_malformed += 1;
            } else {
                let Ok(to) = self.ends.credit.pop() else {
                    self.counters.tx_full += 1;
                    break;
                };
                let carried = self.carry(frame, pool.buffers(), to);
                debug_assert!(carried, "judged above");
                let len = frame.len();
                let csum = if frame.csum.is_some() { RxCsum::Partial } else { RxCsum::Unknown };
                let passing = Passing {
                    buf: to,
                    offset: RX_OFFSET,
                    len: len as u16,
                    csum,
                    partial: frame.csum,
                    mss: frame.mss,
                    time: 0,
                };
                let pushed = self.ends.sending.push(passing);
                debug_assert!(pushed.is_ok(), "there are as many places as buffers");
                self.counters.tx_frames += 1;
                self.counters.tx_bytes += len as u64;
                self.counters.tx_bytes_copied += len as u64;
            }
            if let Some(range) = frame.payload {
                done(frame.origin, range.buf);
            }
            sent += 1;
        }
        batch.consume(sent);
        if sent > 0 {
            self.ring();
        }
        Ok(sent)
    }

    fn release(&mut self, pool: &mut Pool) {
        if let Some(buf) = self.reserve.take() {
            give_back(pool, buf);
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wakeups.as_fd())
    }

    fn arm(&mut self) -> bool {
        self.armed = true;
        self.ends.own.arm();
        !self.ends.received.is_empty()
    }

    fn next_deadline(&self) -> Option<u64> {
        None
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }
}
