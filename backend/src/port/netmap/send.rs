//! Sending: from the batch into the slots of the first ring, and to the host's own stack
//! what is for it.

use paste_pmem::{Buffers, Pool};
use paste_stack::{Origin, TxBatch, TxFrame};

use super::attach::{Attached, Memory, Sharing};
use super::kernel::Descriptor;
use super::rings::{Piece, RingFault, TxRing};
use super::{NetmapPort, RECLAIM_NS, broken, failed};
use crate::port::{Now, PortCounters, PortError, is_malformed};

/// What became of a frame.
enum Sent {
    /// It is in the ring, and its buffer is no longer read.
    Copied,
    /// It is in the ring, and its buffer is read until the ring says otherwise.
    Lent,
    /// The ring is full.
    Full,
    /// It is nothing that the port can send.
    Malformed,
}

/// Everything that sending changes, but for the rings.
struct Sender<'a> {
    memory: &'a Memory,
    buffers: &'a Buffers,
    counters: &'a mut PortCounters,
    frame_max: usize,
    fragments: bool,
    host_mac: Option<[u8; 6]>,
}

impl<D: Descriptor> NetmapPort<D> {
    /// See [`crate::port::Port::send`]. One system call.
    pub(super) fn send_batch(
        &mut self,
        now: Now,
        pool: &Pool,
        batch: &mut TxBatch,
        done: &mut dyn FnMut(Origin, u32),
    ) -> Result<usize, PortError> {
        let frame_max = self.frame_max();
        let Some(attached) = &mut self.attached else { return Ok(0) };
        let Attached { rx, tx, tx_rings, host, memory, .. } = attached;
        let mut sender = Sender {
            memory,
            buffers: pool.buffers(),
            counters: &mut self.counters,
            frame_max,
            fragments: self.fragments,
            host_mac: self.host_mac,
        };
        let (mut taken, mut full) = (0, false);
        let mut result = Ok(());
        if let Some(nic) = tx_rings.first_mut() {
            let mut host = host.as_mut().map(|host| &mut host.tx);
            for frame in batch.frames() {
                match sender.send(nic, host.as_deref_mut(), frame) {
                    Ok(Sent::Full) => {
                        sender.counters.tx_full += 1;
                        full = true;
                        break;
                    }
                    Ok(Sent::Lent) => {}
                    Ok(sent @ (Sent::Copied | Sent::Malformed)) => {
                        if let Some(range) = frame.payload {
                            done(frame.origin, range.buf);
                        }
                        let malformed = matches!(sent, Sent::Malformed);
                        sender.counters.drops.tx_malformed += u64::from(malformed);
                    }
                    Err(fault) => {
                        result = Err(broken(&self.port, fault));
                        break;
                    }
                }
                taken += 1;
            }
        }
        batch.consume(taken);
        result?;

        // The kernel looks at all rings at once, and what it has done with comes back. A ring
        // that is full has room again only after that.
        let mut due = full;
        for ring in tx_rings.iter_mut().chain(host.iter_mut().map(|host| &mut host.tx)) {
            due |= ring.publish();
        }
        self.reclaim_at = None;
        if !due {
            return Ok(taken);
        }
        self.counters.syscalls += 1;
        let synced = tx.as_ref().unwrap_or(rx).txsync();
        synced.map_err(|errno| failed(&self.port, "NIOCTXSYNC", errno))?;
        let mut busy = false;
        for ring in tx_rings.iter_mut().chain(host.iter_mut().map(|host| &mut host.tx)) {
            ring.reclaim(done).map_err(|fault| broken(&self.port, fault))?;
            busy |= ring.is_busy();
        }
        self.reclaim_at = busy.then_some(now.monotonic_ns + RECLAIM_NS);
        Ok(taken)
    }
}

impl Sender<'_> {
    /// Puts a frame into the ring of the NIC, that of the host, or both.
    fn send(
        &mut self,
        nic: &mut TxRing,
        host: Option<&mut TxRing>,
        frame: &TxFrame,
    ) -> Result<Sent, RingFault> {
        // Nobody here completes checksums.
        if frame.csum.is_some() || is_malformed(frame, self.frame_max, self.buffers) {
            return Ok(Sent::Malformed);
        }
        let (to_nic, to_host) = match host {
            Some(_) => self.destinations(frame),
            None => (true, false),
        };
        let mut sent = Sent::Copied;
        if to_nic {
            sent = self.fill(nic, frame)?;
            if matches!(sent, Sent::Full | Sent::Malformed) {
                return Ok(sent);
            }
            self.counters.tx_frames += 1;
            self.counters.tx_bytes += frame.len() as u64;
        }
        if let Some(host) = host.filter(|_| to_host) {
            // What the host does not take in time it does not get.
            match self.fill(host, frame)? {
                Sent::Full => self.counters.drops.to_host_full += 1,
                _ => self.counters.to_host_frames += 1,
            }
        }
        Ok(sent)
    }

    /// Whether a frame goes out, and whether it goes to the host's own stack.
    fn destinations(&self, frame: &TxFrame) -> (bool, bool) {
        let mut to = [0; 6];
        match (frame.head().first_chunk::<6>(), frame.payload) {
            (Some(head), _) => to = *head,
            (None, Some(range)) => {
                let read = self.buffers.read(range.buf, range.offset.into(), &mut to);
                debug_assert!(read.is_ok(), "judged: longer than an Ethernet header");
            }
            (None, None) => {}
        }
        let (group, host) = (to[0] & 1 != 0, self.host_mac == Some(to));
        (group || !host, group || host)
    }

    /// Puts a frame into a ring.
    fn fill(&mut self, ring: &mut TxRing, frame: &TxFrame) -> Result<Sent, RingFault> {
        let head = frame.head();
        let (Sharing::Region(first), Some(range)) = (self.memory.sharing, frame.payload) else {
            return self.copy(ring, frame);
        };
        let (in_one, in_two) = (head.is_empty(), self.fragments && range.len > 0);
        if !in_one && !in_two {
            return self.copy(ring, frame);
        }
        if ring.room() < 1 + u32::from(!in_one) {
            return Ok(Sent::Full);
        }
        if !in_one {
            let own = ring.home(0)?;
            let written = self.memory.area.write_bytes(self.memory.buffer(own), head);
            debug_assert!(written, "rings name buffers of the area");
            let len = head.len() as u16;
            ring.put(Piece { buf_idx: own, offset: 0, len, more: true, lent: None });
        }
        ring.put(Piece {
            buf_idx: first + range.buf,
            offset: range.offset,
            len: range.len,
            more: false,
            lent: Some((frame.origin, range.buf)),
        });
        Ok(Sent::Lent)
    }

    /// Copies a frame into the ring's own buffers, as many as it needs.
    fn copy(&mut self, ring: &mut TxRing, frame: &TxFrame) -> Result<Sent, RingFault> {
        let (len, size) = (frame.len(), self.memory.buffer_size);
        let slots = len.div_ceil(size);
        if slots > 1 && !self.fragments {
            return Ok(Sent::Malformed);
        }
        if (ring.room() as usize) < slots {
            return Ok(Sent::Full);
        }
        let head = frame.head();
        for slot in 0..slots {
            let own = ring.home(0)?;
            let at = self.memory.buffer(own);
            // This slot's bytes of the frame. The head lies in the first, which it never
            // fills.
            let (mut from, to) = (slot * size, ((slot + 1) * size).min(len));
            if slot == 0 {
                let written = self.memory.area.write_bytes(at, head);
                debug_assert!(written, "rings name buffers of the area");
                from = head.len();
            }
            if let Some(range) = frame.payload {
                let source = (range.buf, usize::from(range.offset) + from - head.len());
                let at = at + (from - slot * size);
                let copied = self.memory.area.copy_in(at, self.buffers, source, to - from);
                debug_assert!(copied.is_ok(), "judged before");
            }
            let len = (to - slot * size) as u16;
            ring.put(Piece { buf_idx: own, offset: 0, len, more: slot + 1 < slots, lent: None });
        }
        self.counters.tx_bytes_copied += len as u64;
        Ok(Sent::Copied)
    }
}
