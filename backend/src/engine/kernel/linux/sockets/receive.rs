//! What peers send: which flow may have another buffer for it, and how small payload is
//! gathered so that it needs none.

use std::os::fd::AsFd;

use paste_abi::Flow;
use paste_pmem::Owner;
use paste_stack::Memory;

use super::bufs::{Place, Queue};
use super::flows::{Busy, Links, State};
use super::lists::NIL;
use super::ring::Completion;
use super::{RegionMemory, SocketsEngine, socket};

/// The most that a flow may have received and its guest not given up, in bytes of
/// buffers: the largest window of our own TCP.
pub(super) const WINDOW_MAX: u32 = 1 << 20;
/// Buffers that a flow may have before small payload is gathered.
const GATHER_BEYOND: u32 = 4;
/// Small is less than this part of a buffer.
const GATHER_PART: usize = 4;
/// Flows that are looked at in one turn, of those that are to receive and do not.
const ARM_BUDGET: usize = 256;

impl SocketsEngine {
    /// Gives the kernel buffers to receive into, as many as it may have.
    pub(super) fn refill(&mut self, mem: &mut RegionMemory) {
        while !self.leaving && self.ring.provided().room() > 0 && mem.free() > self.reserve {
            let Some(buf) = mem.pool_mut().take(Owner::Port) else { break };
            self.provide(mem, buf);
        }
        self.ring.publish_provided();
    }

    /// Gives the kernel a buffer that is the port's.
    fn provide(&mut self, mem: &mut RegionMemory, buf: u32) {
        if !self.ring.provide(buf, self.headroom) {
            let given = mem.pool_mut().give(buf, Owner::Port);
            debug_assert!(given.is_ok(), "buffer {buf} was the port's");
        }
    }

    /// Buffers that one flow may be charged for: as many as are left for all beyond the
    /// reserve (the dynamic threshold of Choudhury and Hahne, 1998), one at least.
    fn share(&self, mem: &RegionMemory) -> u32 {
        let left = mem.free() + u32::from(self.ring.provided().len());
        left.saturating_sub(self.reserve).clamp(1, self.share_max)
    }

    /// Whether the flow has as many buffers as it may.
    pub(super) fn is_over_share(&self, mem: &RegionMemory, index: u32) -> bool {
        self.flows[index].rx_bufs >= self.share(mem)
    }

    /// The flow is to receive, as soon as there are buffers.
    pub(super) fn want_payload(&mut self, index: u32) {
        self.flows.lists.push_back(&mut self.arm, Links::Arm, index);
    }

    /// Has flows receive that do not and may, in turn.
    pub(super) fn arm_flows(&mut self, mem: &RegionMemory) -> std::io::Result<()> {
        if self.leaving {
            return Ok(());
        }
        // One that stopped does not go on for a buffer or two.
        let share = self.share(mem);
        let most = share - share / 8;
        let mut first_again = NIL;
        for _ in 0..ARM_BUDGET {
            if self.ring.provided().len() == 0 || self.arm.head() == Some(first_again) {
                break;
            }
            if !self.make_room()? {
                break;
            }
            let Some(index) = self.flows.lists.pop_front(&mut self.arm, Links::Arm) else {
                break;
            };
            let flow = &mut self.flows[index];
            if flow.state != State::Open || flow.receiving != Busy::No || flow.fin_in {
                continue;
            }
            let Some(socket) = &flow.socket else { continue };
            if flow.rx_bufs >= most {
                self.want_payload(index);
                first_again = if first_again == NIL { index } else { first_again };
                continue;
            }
            flow.receiving = Busy::Yes;
            self.ring.receive(socket.as_fd(), index);
        }
        Ok(())
    }

    /// Something came for a flow, or an end of it, or it receives no more.
    pub(super) fn on_receive(&mut self, mem: &mut RegionMemory, completion: &Completion) {
        let buf = completion.buffer().and_then(|id| self.ring.take_provided(id));
        let (index, result) = (completion.index, completion.result);
        let len_max = mem.buffer_size() - usize::from(self.headroom);
        let Some(flow) = self.flows.get_mut(index) else {
            self.counters.strange += 1;
            return buf.into_iter().for_each(|buf| self.provide(mem, buf));
        };
        let over = !completion.more();
        if over {
            flow.receiving = Busy::No;
        }
        match (usize::try_from(result), buf) {
            (Ok(len @ 1..), Some(buf)) if len <= len_max => {
                self.on_payload(mem, index, buf, len as u16);
            }
            (outcome, buf) => {
                buf.into_iter().for_each(|buf| self.provide(mem, buf));
                match outcome {
                    Ok(0) => return self.on_fin(mem, index),
                    Ok(_) => self.counters.strange += 1,
                    Err(_) => match -result {
                        libc::ENOBUFS => self.counters.pool_empty += 1,
                        libc::ECANCELED | libc::EINTR | libc::EAGAIN => {}
                        errno => self.terminate(mem, index, socket::reason(errno)),
                    },
                }
            }
        }
        if !over {
            return;
        }
        match self.flows[index].state {
            State::Open => self.want_payload(index),
            // Waits for this.
            _ => self.kick(index),
        }
    }

    /// In-order payload.
    fn on_payload(&mut self, mem: &mut RegionMemory, index: u32, buf: u32, len: u16) {
        let flow = &mut self.flows[index];
        if flow.state != State::Open || flow.detached {
            return self.provide(mem, buf);
        }
        self.counters.bytes_in += u64::from(len);
        if flow.fin_out {
            flow.silent_since = self.now.monotonic_ns;
            self.flows.lists.remove(&mut self.closing, Links::Closing, index);
            self.flows.lists.push_back(&mut self.closing, Links::Closing, index);
        }
        if self.gather(mem, index, buf, len) {
            return self.provide(mem, buf);
        }
        let moved = mem.pool_mut().transfer(buf, Owner::Port, Owner::Stack);
        debug_assert!(moved.is_ok(), "buffer {buf} was the kernel's");
        let name = self.flows.name(index);
        let record = self.bufs.get_mut(buf);
        record.place = Place::Readable;
        record.flow = name.0;
        record.word = self.now.real_ns;
        record.offset = self.headroom;
        record.len = len;
        let flow = &mut self.flows[index];
        self.bufs.push(&mut flow.rx, buf);
        flow.rx_bufs += 1;
        self.mark_ready(index);
        if self.flows[index].receiving == Busy::Yes && self.is_over_share(mem, index) {
            self.kick(index);
        }
    }

    /// Copies small payload behind what the guest was not told of yet. A flow with a
    /// request or two never comes to that.
    fn gather(&mut self, mem: &mut RegionMemory, index: u32, buf: u32, len: u16) -> bool {
        let flow = &self.flows[index];
        let (to, size, len) = (flow.rx.tail, mem.buffer_size(), usize::from(len));
        if flow.rx_bufs < GATHER_BEYOND || to == NIL || len >= size / GATHER_PART {
            return false;
        }
        let record = self.bufs.get_mut(to);
        let end = usize::from(record.offset) + usize::from(record.len);
        if end + len > size {
            return false;
        }
        mem.copy(buf, self.headroom.into(), to, end, len);
        record.len += len as u16;
        self.counters.bytes_copied += len as u64;
        true
    }

    /// A flow is charged for one buffer less, if it lives.
    pub(super) fn discharge(&mut self, name: Option<Flow>) {
        if let Some(index) = name.and_then(|name| self.flows.find(name)) {
            self.flows[index].rx_bufs -= 1;
        }
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
