//! Ports as netmap has them (`netmap_adapter`): NICs, switches' ports and pipes' ends,
//! and how frames get into their rings and out of them.

use std::collections::VecDeque;

use super::super::abi::{BUF_CHANGED, MOREFRAG, REPORT, Slot};
use super::kring::Kring;
use super::memory::Mem;
use super::pst::Pst;
use crate::port::wire::Lane;

/// What kind of port it is, with what belongs to that kind.
#[derive(Debug)]
pub(super) enum Nature {
    Nic(Box<Nic>),
    Vale,
    Pst(Box<Pst>),
    Pipe {
        /// The other end's place among the adapters.
        peer: usize,
    },
}

/// A NIC and the host's stack above it.
#[derive(Debug)]
pub(super) struct Nic {
    /// What goes out, to be received by the NIC at the other end.
    pub(super) out: Lane,
    pub(super) peer: Option<usize>,
    /// Frames whose slots are reported as sent only at a later sync; the NIC reads them
    /// then.
    pub(super) lag: u32,
    /// Slots of one frame are joined (`NAF_MOREFRAG`); else each goes out for itself.
    pub(super) joins: bool,
    /// Bytes of the largest slot that a frame is received into.
    pub(super) slot_max: usize,
    /// Frames for the host's stack, and of its.
    pub(super) to_host: Vec<Vec<u8>>,
    pub(super) from_host: VecDeque<Vec<u8>>,
    /// Its rings are stopped, as while it is reset.
    pub(super) stopped: bool,
    pub(super) tx_csum: bool,
}

/// A port.
#[derive(Debug)]
pub(super) struct Adapter {
    pub(super) name: String,
    pub(super) nature: Nature,
    /// Rings of the NIC, then those to the host.
    pub(super) tx: Vec<Kring>,
    pub(super) rx: Vec<Kring>,
    /// How many of them are the NIC's.
    pub(super) tx_nic: usize,
    pub(super) rx_nic: usize,
    pub(super) host_rings: bool,
    /// `NAF_OFFSETS`.
    pub(super) offsets: bool,
    /// Its allocator, and that which it had before.
    pub(super) mem: u16,
    pub(super) mem_before: u16,
    /// Descriptors bound to it.
    pub(super) active: u32,
    /// The ring that the next frame is received into.
    pub(super) turn: usize,
}

/// Takes the frame at the front of a ring for sending, up to `head`: its bytes and its
/// number of slots.
pub(super) fn gather(
    ring: &Kring,
    mem: &Mem,
    first: u32,
    slots: u32,
    joins: bool,
) -> (Vec<u8>, u32) {
    let (mut bytes, mut index, mut count) = (Vec::new(), first, 0);
    while count < slots {
        let slot = ring.slot(mem, index);
        let offset = ring.offset(&slot) as usize;
        let len = usize::from(slot.len).min(mem.buffers.size - offset);
        let start = bytes.len();
        bytes.resize(start + len, 0);
        mem.raw.load(mem.buffer(slot.buf_idx) + offset, &mut bytes[start..]);
        count += 1;
        index = ring.next(index);
        if !joins || slot.flags & MOREFRAG == 0 {
            break;
        }
    }
    (bytes, count)
}

/// What became of a frame that was to be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    Done,
    NoSpace,
}

/// Puts a frame into the next slots of a ring for receiving. `slot_max` is what one slot
/// takes at most, `aligned` whether it begins as the sender's bytes do (`pkt_copy`).
pub(super) fn scatter(
    ring: &mut Kring,
    mem: &Mem,
    bytes: &[u8],
    slot_max: usize,
    aligned: Option<u64>,
) -> Put {
    let room = mem.buffers.size - ring.offset_max as usize;
    let each = room.min(slot_max);
    let needed = bytes.len().div_ceil(each).max(1) as u32;
    if ring.space() < needed {
        return Put::NoSpace;
    }
    let mut parts = bytes.chunks(each).peekable();
    while let Some(part) = parts.next() {
        let index = ring.hwtail;
        let slot = ring.slot(mem, index);
        let (buffer, mut offset) = match ring.programmed.get(index as usize) {
            Some(&(buffer, offset)) => (buffer, offset),
            None => (slot.buf_idx, ring.offset(&slot)),
        };
        if let Some(lead) = aligned {
            // The switch copies whole lines, and keeps the place in a line.
            let (line, place) = (offset & !63, lead & 63);
            offset = line + place + if (offset & 63) < place { 64 } else { 0 };
            offset &= ring.offset_mask;
        }
        let fits = offset as usize + part.len() <= mem.buffers.size;
        let part = if fits { part } else { &[] };
        mem.raw.store(mem.buffer(buffer) + if fits { offset as usize } else { 0 }, part);
        let flags = if parts.peek().is_some() { MOREFRAG } else { 0 };
        let ptr = (slot.ptr & !ring.offset_mask) | (offset & ring.offset_mask);
        ring.set_slot(mem, index, Slot { len: part.len() as u16, flags, ptr, ..slot });
        ring.hwtail = ring.next(index);
    }
    Put::Done
}

/// Takes back the slots that the user has read, and tells the NIC what they name now.
pub(super) fn refill(ring: &mut Kring, mem: &Mem) {
    while ring.hwcur != ring.rhead {
        let index = ring.hwcur;
        let slot = ring.slot(mem, index);
        if let Some(&(buffer, _)) = ring.programmed.get(index as usize) {
            // Without the flag, the NIC goes on with the buffer that it knows.
            let buffer = if slot.flags & BUF_CHANGED != 0 { slot.buf_idx } else { buffer };
            ring.programmed[index as usize] = (buffer, ring.offset(&slot));
        }
        ring.set_slot(mem, index, Slot { flags: slot.flags & !BUF_CHANGED, ..slot });
        ring.hwcur = ring.next(index);
    }
}

/// Takes what is to be sent: the frames' first slots and numbers of slots. A frame of
/// which a slot is missing waits.
pub(super) fn take_pending(ring: &mut Kring, mem: &Mem, joins: bool) -> Vec<(u32, u32)> {
    let mut frames = Vec::new();
    while ring.pending() > 0 {
        let (first, mut count) = (ring.hwcur, 0);
        loop {
            let slot = ring.slot(mem, ring.hwcur);
            ring.set_slot(
                mem,
                ring.hwcur,
                Slot { flags: slot.flags & !(BUF_CHANGED | REPORT), ..slot },
            );
            ring.hwcur = ring.next(ring.hwcur);
            count += 1;
            if !joins || slot.flags & MOREFRAG == 0 || ring.pending() == 0 {
                break;
            }
        }
        frames.push((first, count));
    }
    frames
}
