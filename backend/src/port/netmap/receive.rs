//! Receiving: from the slots of rings into buffers of the pool, and past the guest to the
//! host's own stack.

use std::collections::HashSet;

use paste_pmem::{Buffers, Owner, Pool};
use paste_stack::{RxCsum, RxFrame};

use super::attach::{Attached, HostRings, Memory, Sharing};
use super::kernel::Descriptor;
use super::rings::{Arrived, RingFault, RxRing, TxRing};
use super::{NetmapPort, broken, failed};
use crate::port::{ETHERNET_LEN, Now, PortCounters, PortError, RX_OFFSET, Received, RxBatch};

/// What became of the frame at the front of a ring.
enum Taken {
    /// It is gone from the ring.
    Frame,
    /// Its last slot has not arrived.
    Incomplete,
    /// The pool is empty.
    NoBuffer,
}

/// Everything that taking frames changes, but for the rings.
struct Taker<'a> {
    memory: &'a Memory,
    pool: &'a mut Pool,
    out: &'a mut RxBatch,
    reserve: &'a mut Option<u32>,
    lent: &'a mut u32,
    lent_max: u32,
    counters: &'a mut PortCounters,
    frame_max: usize,
    macs: &'a HashSet<[u8; 6]>,
    real_ns: u64,
}

/// A frame as it lies in slots of a ring: how many, and their bytes.
#[derive(Clone, Copy)]
struct Span {
    slots: u32,
    len: usize,
    first: Arrived,
}

impl<D: Descriptor> NetmapPort<D> {
    /// See [`crate::port::Port::receive`]. One system call.
    pub(super) fn receive_batch(
        &mut self,
        now: Now,
        pool: &mut Pool,
        out: &mut RxBatch,
    ) -> Result<usize, PortError> {
        let frame_max = self.frame_max();
        let Some(attached) = &mut self.attached else { return Ok(0) };
        self.counters.syscalls += 1;
        attached.rx.rxsync().map_err(|errno| failed(&self.port, "NIOCRXSYNC", errno))?;
        let before = out.frames().len();
        let mut taker = Taker {
            memory: &attached.memory,
            pool,
            out,
            reserve: &mut self.reserve,
            lent: &mut self.lent,
            lent_max: self.lent_max,
            counters: &mut self.counters,
            frame_max,
            macs: &self.macs,
            real_ns: now.real_ns,
        };
        let Attached { rx_rings, tx_rings, host, .. } = attached;
        let mut taken = taker.take_all(rx_rings, &mut self.turn, host.as_mut());
        if let (Some(host), Some(nic), Ok(())) = (host, tx_rings.first_mut(), &taken) {
            taken = taker.pass_on(&mut host.rx, nic);
        }
        taken.map_err(|fault| broken(&self.port, fault))?;
        Ok(out.frames().len() - before)
    }
}

/// The frame at the front of a ring; `None` if its last slot has not arrived. Slots that
/// can never become a whole frame count as one.
fn span(ring: &mut RxRing) -> Result<Option<Span>, RingFault> {
    let first = ring.peek(0)?;
    let (mut slots, mut len, mut last) = (1, usize::from(first.len), first);
    while last.more {
        if slots == ring.waiting() {
            return Ok((slots + 1 == ring.slots()).then_some(Span { slots, len, first }));
        }
        last = ring.peek(slots)?;
        len += usize::from(last.len);
        slots += 1;
    }
    Ok(Some(Span { slots, len, first }))
}

/// Exchanges the buffers of a frame with those of free slots.
fn exchange(from: &mut RxRing, to: &mut TxRing, span: &Span) -> Result<(), RingFault> {
    for ahead in 0..span.slots {
        let piece = from.peek(ahead)?;
        let leaves = to.swap(piece.buf_idx, piece.len, ahead + 1 < span.slots)?;
        from.replace(ahead, leaves, 0);
    }
    Ok(())
}

impl Taker<'_> {
    /// Takes frames from every ring, each time another one first.
    fn take_all(
        &mut self,
        rings: &mut [RxRing],
        turn: &mut usize,
        mut host: Option<&mut HostRings>,
    ) -> Result<(), RingFault> {
        *turn = (*turn + 1) % rings.len();
        let (front, back) = rings.split_at_mut(*turn);
        for ring in back.iter_mut().chain(front) {
            ring.refresh()?;
            let time = ring.time().unwrap_or(self.real_ns);
            let mut taken = Ok(Taken::Frame);
            while matches!(taken, Ok(Taken::Frame)) && ring.waiting() > 0 && self.out.room() > 0 {
                taken = self.take(ring, host.as_deref_mut(), time);
            }
            ring.publish();
            if matches!(taken?, Taken::NoBuffer) {
                self.counters.rx_no_buffer += 1;
                break;
            }
        }
        Ok(())
    }

    /// Passes on what the host's own stack sends: to the NIC, to the guest, or to both.
    fn pass_on(&mut self, from: &mut RxRing, nic: &mut TxRing) -> Result<(), RingFault> {
        from.refresh()?;
        let time = from.time().unwrap_or(self.real_ns);
        let mut taken = Ok(Taken::Frame);
        while matches!(taken, Ok(Taken::Frame)) && from.waiting() > 0 && self.out.room() > 0 {
            taken = self.pass_one_on(from, nic, time);
        }
        from.publish();
        taken.map(drop)
    }

    fn pass_one_on(
        &mut self,
        from: &mut RxRing,
        nic: &mut TxRing,
        time: u64,
    ) -> Result<Taken, RingFault> {
        let Some(span) = span(from)? else { return Ok(Taken::Incomplete) };
        if nic.room() < span.slots {
            return Ok(Taken::Incomplete);
        }
        let (to_guest, to_nic) = self.destinations(&span);
        if to_guest
            && span.len <= self.frame_max
            && matches!(self.copy(from, &span, time)?, Taken::NoBuffer)
        {
            return Ok(Taken::NoBuffer);
        }
        if to_nic {
            self.counters.from_host_frames += 1;
            exchange(from, nic, &span)?;
        }
        from.consume(span.slots);
        Ok(Taken::Frame)
    }

    /// Takes the frame at the front of a ring.
    fn take(
        &mut self,
        ring: &mut RxRing,
        host: Option<&mut HostRings>,
        time: u64,
    ) -> Result<Taken, RingFault> {
        let Some(span) = span(ring)? else { return Ok(Taken::Incomplete) };
        if span.len < ETHERNET_LEN || span.len > self.frame_max {
            // A switch leaves slots of no length where it had claimed too many.
            if span.len > self.frame_max {
                self.counters.drops.rx_oversize += 1;
            } else if span.len > 0 {
                self.counters.drops.rx_runt += 1;
            }
            return Ok(self.pass(ring, &span));
        }
        let (to_guest, to_host) = match host {
            Some(_) => self.destinations(&span),
            None => (true, false),
        };
        if to_guest {
            let taken = match self.memory.sharing {
                Sharing::Region(first) => self.keep(first, ring, &span, time)?,
                Sharing::Netmap => self.copy(ring, &span, time)?,
            };
            if matches!(taken, Taken::NoBuffer) {
                return Ok(taken);
            }
        }
        if let Some(host) = host.filter(|_| to_host) {
            if host.tx.room() < span.slots {
                self.counters.drops.to_host_full += 1;
            } else {
                self.counters.to_host_frames += 1;
                exchange(ring, &mut host.tx, &span)?;
            }
        }
        Ok(self.pass(ring, &span))
    }

    /// Gives the frame's slots back to the kernel.
    fn pass(&mut self, ring: &mut RxRing, span: &Span) -> Taken {
        if let Sharing::Region(_) = self.memory.sharing {
            // A switch leaves an offset of its own behind.
            (0..span.slots).for_each(|ahead| ring.rearm(ahead, RX_OFFSET));
        }
        ring.consume(span.slots);
        Taken::Frame
    }

    /// Whether a frame concerns a guest, and whether it concerns others.
    fn destinations(&self, span: &Span) -> (bool, bool) {
        let mut to = [0; 6];
        // A frame in pieces of a few bytes is for nobody.
        if usize::from(span.first.len) < to.len()
            || !self.memory.area.read_bytes(self.memory.buffer(span.first.buf_idx), &mut to)
        {
            return (false, false);
        }
        let group = to[0] & 1 != 0;
        let guest = self.macs.contains(&to);
        (group || guest, group || !guest)
    }

    /// A free buffer for the port.
    fn buffer(&mut self) -> Option<u32> {
        self.reserve.take().or_else(|| self.pool.take(Owner::Port))
    }

    fn deliver(&mut self, buf: u32, offset: u16, len: usize, time: u64) {
        self.counters.rx_frames += 1;
        self.counters.rx_bytes += len as u64;
        let frame = RxFrame { buf, offset, len: len as u16, csum: RxCsum::Unknown, time };
        let room = self.out.push(Received { frame, partial: None });
        debug_assert!(room, "whoever takes has looked");
    }

    /// Copies a frame into a buffer of the pool.
    fn copy(&mut self, ring: &mut RxRing, span: &Span, time: u64) -> Result<Taken, RingFault> {
        let Some(buf) = self.buffer() else { return Ok(Taken::NoBuffer) };
        let mut at = usize::from(RX_OFFSET);
        for ahead in 0..span.slots {
            let piece = ring.peek(ahead)?;
            let copied = copy_piece(self.memory, self.pool.buffers(), &piece, (buf, at));
            if !copied {
                *self.reserve = Some(buf);
                self.counters.drops.rx_oversize += 1;
                return Ok(Taken::Frame);
            }
            at += usize::from(piece.len);
        }
        let len = at - usize::from(RX_OFFSET);
        self.counters.rx_bytes_copied += len as u64;
        self.deliver(buf, RX_OFFSET, len, time);
        Ok(Taken::Frame)
    }

    /// Takes a frame with the buffer that it was received into, if that is the region's,
    /// and puts another into its slot. `first` is the number of the region's buffer 0.
    fn keep(
        &mut self,
        first: u32,
        ring: &mut RxRing,
        span: &Span,
        time: u64,
    ) -> Result<Taken, RingFault> {
        let offset = offset_of(self.memory, &span.first);
        if span.first.buf_idx < first || offset + span.len > self.memory.buffer_size {
            let taken = self.copy(ring, span, time)?;
            // The ring came with private buffers: the region's take their place.
            if span.first.buf_idx < first
                && *self.lent < self.lent_max
                && let Some(fresh) = self.buffer()
            {
                *self.lent += 1;
                ring.replace(0, first + fresh, RX_OFFSET);
            }
            return Ok(taken);
        }
        let Some(fresh) = self.buffer() else { return Ok(Taken::NoBuffer) };
        let buf = span.first.buf_idx - first;
        let mut at = offset + usize::from(span.first.len);
        for ahead in 1..span.slots {
            let piece = ring.peek(ahead)?;
            if !copy_piece(self.memory, self.pool.buffers(), &piece, (buf, at)) {
                *self.reserve = Some(fresh);
                self.counters.drops.rx_oversize += 1;
                return Ok(Taken::Frame);
            }
            at += usize::from(piece.len);
            self.counters.rx_bytes_copied += u64::from(piece.len);
        }
        ring.replace(0, first + fresh, RX_OFFSET);
        self.deliver(buf, offset as u16, span.len, time);
        Ok(Taken::Frame)
    }
}

/// Where a slot's bytes begin in its buffer.
fn offset_of(memory: &Memory, piece: &Arrived) -> usize {
    match memory.sharing {
        Sharing::Region(_) => piece.ptr as u32 as usize,
        Sharing::Netmap => 0,
    }
}

/// Copies a slot's bytes into a buffer of the pool; `false` if either range lies in no
/// buffer.
fn copy_piece(
    memory: &Memory,
    buffers: &Buffers,
    piece: &Arrived,
    (buf, at): (u32, usize),
) -> bool {
    let (offset, len) = (offset_of(memory, piece), usize::from(piece.len));
    if offset + len > memory.buffer_size {
        return false;
    }
    let from = memory.buffer(piece.buf_idx) + offset;
    memory.area.copy_out(from, buffers, (buf, at), len).is_ok()
}
