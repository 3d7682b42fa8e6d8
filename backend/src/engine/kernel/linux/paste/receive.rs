//! What peers send: out of the ring and into buffers of the region, as far as there are
//! any.
//!
//! The kernel acknowledges what arrives and hands it over at once, so that no flow's
//! window ever closes: how much is read is a matter of the ring and not of a flow. A flow
//! that has its share of the buffers is slowed down, to a kilobyte or two in a round trip,
//! by the least window that the kernel grants. When no buffer is left for anybody, the
//! ring stays as it is, and with it all flows of this guest, whose peers send again what
//! is lost meanwhile; but flows that have many buffers are reset when more arrives for
//! them, so that one which is not read does not stop all others.

use std::os::fd::AsFd;

use paste_abi::{Flow, Reason};
use paste_stack::Memory;

use super::bufs::{Place, Queue};
use super::flows::{Links, State};
use super::lists::NIL;
use super::{PasteEngine, RegionMemory, kernel};
use crate::port::PortError;
use crate::port::netmap::pst::Arrived;

/// The most that a flow may have received and its guest not given up before it is slowed
/// down, in bytes of buffers: the largest window of our own TCP.
const WINDOW_MAX: u32 = 1 << 20;
/// Buffers, as a part of those, from which on a flow is reset when no buffer is left.
const HOG_PART: u32 = 2;
/// Buffers that a flow may have before small payload is gathered.
const GATHER_BEYOND: u32 = 4;
/// The least window (the kernel makes more of it), and one that limits nothing.
const WINDOW_LEAST: u32 = 1;
const WINDOW_ANY: u32 = 1 << 30;

impl PasteEngine {
    /// Has the kernel do its protocol work, and takes what it shows. Returns how many
    /// slots there were, and whether that is all that it has.
    pub(super) fn take_slots(
        &mut self,
        mem: &mut RegionMemory,
    ) -> Result<(usize, bool), PortError> {
        let waiting = self.port.sync_rx()?;
        self.counters.syncs += 1;
        self.synced_at = self.now.monotonic_ns;
        let mut taken = 0;
        while let Some(arrived) = self.port.peek() {
            if !self.take(mem, arrived) {
                self.counters.pool_empty += 1;
                return Ok((taken, false));
            }
            self.port.consume();
            taken += 1;
        }
        Ok((taken, waiting < self.port.rx_capacity()))
    }

    /// Takes one slot. False: there is no buffer for it.
    fn take(&mut self, mem: &mut RegionMemory, arrived: Arrived) -> bool {
        let (fd, payload) = match arrived {
            Arrived::Bad => {
                self.counters.slots_bad += 1;
                return true;
            }
            Arrived::Fin { fd } => (fd, None),
            Arrived::Payload { fd, at, len } => (fd, Some((at, len))),
        };
        let Some(index) = self.flows.of_fd(fd) else {
            self.counters.slots_stale += 1;
            return true;
        };
        match payload {
            None => self.on_fin(index),
            Some((at, len)) => return self.on_payload(mem, index, at, len.into()),
        }
        true
    }

    /// In-order payload. False: there is no buffer for it.
    fn on_payload(&mut self, mem: &mut RegionMemory, index: u32, at: usize, len: usize) -> bool {
        let size = mem.buffer_size();
        let each = size - usize::from(self.headroom);
        let gathered = self.gather_room(mem, index, len);
        let wanted = if gathered.is_some() { 0 } else { len.div_ceil(each) as u32 };
        if mem.free() < self.reserve + wanted {
            if self.flows[index].rx_bufs < self.share_max / HOG_PART {
                return false;
            }
            self.counters.flow_hog += 1;
            self.terminate(mem, index, Reason::NoRoom);
            return true;
        }
        self.counters.bytes_in += len as u64;
        self.counters.bytes_copied += len as u64;
        let flow = &mut self.flows[index];
        if flow.fin_out {
            flow.silent_since = self.now.monotonic_ns;
            self.flows.lists.remove(&mut self.closing, Links::Closing, index);
            self.flows.lists.push_back(&mut self.closing, Links::Closing, index);
        }
        if let Some((buf, end)) = gathered {
            self.copy_out(mem, at, (buf, end), len);
            self.bufs.get_mut(buf).len += len as u16;
            return true;
        }
        let name = self.flows.name(index);
        let mut done = 0;
        while done < len {
            let Some(buf) = mem.take() else { break };
            let part = each.min(len - done);
            self.copy_out(mem, at + done, (buf, self.headroom.into()), part);
            let record = self.bufs.get_mut(buf);
            record.place = Place::Readable;
            record.flow = name.0;
            record.word = self.now.real_ns;
            record.offset = self.headroom;
            record.len = part as u16;
            let flow = &mut self.flows[index];
            self.bufs.push(&mut flow.rx, buf);
            flow.rx_bufs += 1;
            done += part;
        }
        debug_assert_eq!(done, len, "there were buffers");
        self.mark_ready(index);
        self.slow_down(mem, index);
        true
    }

    /// Copies payload out of the port's memory, which the ring was judged to hold, into a
    /// buffer that is the stack's.
    fn copy_out(&self, mem: &RegionMemory, from: usize, to: (u32, usize), len: usize) {
        let copied = self.port.copy_out(from, mem.pool().buffers(), to, len);
        debug_assert!(copied.is_ok(), "{copied:?}");
    }

    /// Where small payload may go behind what the guest was not told of yet: the buffer
    /// and the offset. A flow with a request or two never comes to that.
    fn gather_room(&self, mem: &RegionMemory, index: u32, len: usize) -> Option<(u32, usize)> {
        let flow = &self.flows[index];
        let to = flow.rx.tail;
        if flow.rx_bufs < GATHER_BEYOND || to == NIL {
            return None;
        }
        let record = self.bufs.get(to);
        let end = usize::from(record.offset) + usize::from(record.len);
        (end + len <= mem.buffer_size()).then_some((to, end))
    }

    /// Buffers that one flow may be charged for: as many as are left for all beyond the
    /// reserve (the dynamic threshold of Choudhury and Hahne, 1998), one at least.
    fn share(&self, mem: &RegionMemory) -> u32 {
        mem.free().saturating_sub(self.reserve).clamp(1, self.share_max)
    }

    /// Slows a flow down that has its share.
    fn slow_down(&mut self, mem: &RegionMemory, index: u32) {
        let share = self.share(mem);
        let flow = &mut self.flows[index];
        if flow.slowed_at != 0 || flow.rx_bufs < share {
            return;
        }
        flow.slowed_at = flow.rx_bufs;
        self.counters.flow_share += 1;
        if let Some(socket) = &flow.socket {
            // Where it fails, the flow goes on as it was.
            let _ = kernel::clamp_window(socket.as_fd(), WINDOW_LEAST);
        }
    }

    /// A flow is charged for one buffer less, if it lives.
    pub(super) fn discharge(&mut self, name: Option<Flow>) {
        let Some(index) = name.and_then(|name| self.flows.find(name)) else { return };
        let flow = &mut self.flows[index];
        flow.rx_bufs -= 1;
        if flow.slowed_at == 0 || flow.rx_bufs > flow.slowed_at / 2 {
            return;
        }
        flow.slowed_at = 0;
        if let Some(socket) = flow.socket.as_ref().filter(|_| flow.state == State::Open) {
            let _ = kernel::clamp_window(socket.as_fd(), WINDOW_ANY);
        }
    }

    /// Buffers that a flow may have before it is slowed down, whatever is free.
    pub(super) fn share_max(buffer_size: usize) -> u32 {
        (WINDOW_MAX / buffer_size as u32).max(1)
    }

    /// Returns what was received and not told of to the pool.
    pub(super) fn drop_readable(&mut self, mem: &mut RegionMemory, index: u32) {
        let mut queue = std::mem::replace(&mut self.flows[index].rx, Queue::EMPTY);
        while let Some(buf) = self.bufs.pop(&mut queue) {
            self.bufs.get_mut(buf).place = Place::Elsewhere;
            self.flows[index].rx_bufs -= 1;
            mem.give(buf);
        }
    }
}
