//! What the guest sends: out of the region and into the ring, whole segments of what a
//! flow has queued.
//!
//! The kernel gives a slot to its socket and looks no further. If the send buffer has no
//! room, it stops at that slot, and all flows behind it wait; if there is room for a part,
//! it takes the part, and says nothing of the rest. So no flow puts more into the ring
//! than its send buffer has room for, in the kernel's own counting; that *credit* is
//! looked up when it is used up. And what a flow has sent stays in one of the buffers that
//! PASTE has put aside for all sockets until it is acknowledged; when there is none left,
//! the NIC stops for all. So the fewer are left, the less is granted to a flow that is
//! found to have some. Twice the kernel is asked whether it really has what it
//! took: when credit is looked up, and before FIN. A flow of which it has lost something
//! is reset: its peer must not take what it has for the whole.
//!
//! If the kernel stops at a flow all the same, for want of memory or because the
//! connection is dead, the flow's slots are made void, and what they held is sent later
//! from where it still lies in the region.

use std::os::fd::AsFd;

use paste_abi::{Flow, Reason};
use paste_stack::{Memory, Tx};

use super::bufs::{Place, Queue, Told};
use super::flows::{Links, State};
use super::lists::NIL;
use super::{PasteEngine, RegionMemory, event, kernel};
use crate::port::PortError;
use crate::port::netmap::pst::{Segment, Verdict};

/// Buffers that may wait in one flow's send queue.
const QUEUE_MAX: u16 = 1024;
/// Slots that a flow fills before it is another's turn.
const FLOW_BUDGET: u32 = 32;
/// What a segment counts in a send buffer beside its payload: an `skb` with room for
/// headers, which is 1280 on Linux 6.1, and some to spare.
const SEGMENT_COST: u32 = 2048;
/// How often a full send buffer is looked at, ns: nothing says when it has room.
const LOOK_INTERVAL: u64 = 500_000;
/// Flows whose slots are taken back in one turn.
const STUCK_BUDGET: u32 = 16;

/// Flows that the kernel is asked about at once when it has not much room.
const KEPT_LOOKS: u32 = 8;
/// Segments that a flow sends before the kernel is asked how it fares: the initial window
/// of RFC 6928, and some.
const FIRST_SEGMENTS: u32 = 16;

/// What may be put into a send buffer: an eighth of it stays free.
fn credit(room: kernel::Room) -> u32 {
    (room.size - room.size / 8).saturating_sub(room.used)
}

/// What a flow may put into its send buffer at first.
pub(super) fn first_credit(room: kernel::Room, segment: u16) -> u32 {
    credit(room).min(FIRST_SEGMENTS * (u32::from(segment) + SEGMENT_COST))
}

/// What is remembered of a slot in the ring: the flow, and bytes of payload.
fn word(name: Flow, len: u16) -> u64 {
    u64::from(name.0) | u64::from(len) << 32
}

fn flow_of(word: u64) -> Flow {
    Flow(word as u32)
}

fn len_of(word: u64) -> u16 {
    (word >> 32) as u16
}

impl PasteEngine {
    /// Queues payload. On `Ok` the buffer is the engine's, unless it is shared.
    pub(super) fn queue(&mut self, mem: &RegionMemory, index: u32, tx: &Tx) -> Result<(), Reason> {
        let flow = &mut self.flows[index];
        if !matches!(flow.state, State::Open | State::Connecting) || flow.fin_queued {
            return Err(Reason::Closed);
        }
        if flow.tx_len >= QUEUE_MAX {
            flow.want_writable = true;
            return Err(Reason::FlowFull);
        }
        let (buf, charged) = self.bufs.begin_send(tx, self.headroom, mem.buffer_size())?;
        self.discharge(charged);
        let flow = &mut self.flows[index];
        self.bufs.push(&mut flow.tx, buf);
        flow.tx_len += 1;
        if flow.cursor == NIL {
            (flow.cursor, flow.cursor_at) = (buf, tx.offset);
        }
        self.kick(index);
        Ok(())
    }

    /// Fills the ring from flows, in turn, and has the kernel take it. Returns how many
    /// flows were looked at.
    pub(super) fn send_queued(&mut self, mem: &mut RegionMemory) -> Result<usize, PortError> {
        self.look_again();
        let served = self.fill_all(mem);
        self.sync_tx(mem)?;
        // FIN goes when everything is taken.
        Ok(served + self.fill_all(mem))
    }

    fn fill_all(&mut self, mem: &mut RegionMemory) -> usize {
        // About once each: those with more go to the end of the list.
        let most = self.flows.used() as usize;
        let mut served = 0;
        while served < most
            && let Some(index) = self.flows.lists.pop_front(&mut self.work, Links::Work)
        {
            if !self.fill(mem, index) {
                // The ring is full.
                self.kick(index);
                break;
            }
            served += 1;
        }
        served
    }

    fn sync_tx(&mut self, mem: &mut RegionMemory) -> Result<(), PortError> {
        for _ in 0..STUCK_BUDGET {
            let mut words = std::mem::take(&mut self.words);
            let stuck = self.port.sync_tx(&mut |word| words.push(word));
            for &word in &words {
                self.on_taken(mem, word);
            }
            words.clear();
            self.words = words;
            let Some(word) = stuck? else { break };
            if !self.on_stuck(word)? {
                break;
            }
        }
        Ok(())
    }

    /// Flows whose send buffers are due to be looked at.
    fn look_again(&mut self) {
        while let Some(index) = self.wait.head() {
            if self.flows[index].look_at > self.now.monotonic_ns {
                break;
            }
            self.flows.lists.remove(&mut self.wait, Links::Wait, index);
            self.kick(index);
        }
    }

    /// Puts a flow's payload into the ring, and sends its FIN behind all of it. False: the
    /// ring is full.
    fn fill(&mut self, mem: &mut RegionMemory, index: u32) -> bool {
        let flow = &self.flows[index];
        if flow.state != State::Open || flow.failed != Reason::Ok {
            return true;
        }
        for _ in 0..FLOW_BUDGET {
            let flow = &self.flows[index];
            if flow.cursor == NIL {
                if flow.tx.is_empty() && flow.fin_queued && !flow.fin_out {
                    self.end_sending(mem, index);
                }
                return true;
            }
            // It waits for its time.
            if self.flows.lists.linked(Links::Wait, index) {
                return true;
            }
            if self.port.room() == 0 {
                return false;
            }
            let cost = u32::from(flow.segment) + SEGMENT_COST;
            if flow.credit < cost && !self.renew(mem, index, cost) {
                return true;
            }
            if !self.put(mem, index) {
                return false;
            }
        }
        self.kick(index);
        true
    }

    /// Fills one slot. False: it cannot be filled.
    fn put(&mut self, mem: &RegionMemory, index: u32) -> bool {
        let name = self.flows.name(index);
        let flow = &mut self.flows[index];
        let Some(to) = self.port.place(flow.headers) else {
            self.counters.slots_bad += 1;
            return false;
        };
        let (mut cursor, mut at) = (flow.cursor, flow.cursor_at);
        let (mut len, longest) = (0, flow.segment);
        while len < longest && cursor != NIL {
            let record = self.bufs.get(cursor);
            let part = (record.offset + record.len - at).min(longest - len);
            let from = (self.bufs.real(cursor), usize::from(at));
            let to = to + usize::from(len);
            let copied = self.port.copy_in(to, mem.pool().buffers(), from, part.into());
            debug_assert!(copied.is_ok(), "{copied:?}");
            (len, at) = (len + part, at + part);
            if at == record.offset + record.len {
                cursor = record.next;
                at = if cursor == NIL { 0 } else { self.bufs.get(cursor).offset };
            }
        }
        let segment = Segment { fd: flow.fd, headers: flow.headers, len };
        if !self.port.put(segment, word(name, len)) {
            self.counters.slots_bad += 1;
            return false;
        }
        (flow.cursor, flow.cursor_at) = (cursor, at);
        flow.in_ring += 1;
        flow.credit = flow.credit.saturating_sub(u32::from(len) + SEGMENT_COST);
        self.counters.slots_out += 1;
        self.counters.bytes_copied += u64::from(len);
        true
    }

    /// Looks a flow's credit up. False: there is none, and the flow waits.
    fn renew(&mut self, mem: &mut RegionMemory, index: u32, cost: u32) -> bool {
        // What is in the ring has its place already, and is not counted yet: it goes on
        // when that was taken.
        if self.flows[index].in_ring > 0 || !self.has_all(mem, index) {
            return false;
        }
        let flow = &mut self.flows[index];
        let Some(socket) = &flow.socket else { return false };
        let (room, standing) = (kernel::room(socket.as_fd()), kernel::standing(socket.as_fd()));
        let (Ok(room), Ok(standing)) = (room, standing) else { return false };
        // What the kernel keeps for it until it is acknowledged counts for all flows.
        let kept = standing.queued.div_ceil(u32::from(flow.segment));
        self.set_kept(index, kept);
        if self.kept + FIRST_SEGMENTS > self.kept_max {
            self.look_at_kept();
        }
        let share = self.kept_max.saturating_sub(self.kept) / 2;
        // One of which it keeps nothing goes on in any case; and a segment or two are not
        // worth a look, which is a few system calls.
        let (least, worth) = if kept == 0 { (FIRST_SEGMENTS, 1) } else { (0, FIRST_SEGMENTS / 2) };
        let segments = (credit(room) / cost).min(share.max(least));
        let flow = &mut self.flows[index];
        if segments < worth {
            flow.credit = 0;
            self.wait_for_room(index);
            return false;
        }
        flow.credit = segments * cost;
        if kept > 0 || segments > FIRST_SEGMENTS {
            self.set_kept(index, kept + segments);
        }
        true
    }

    /// The kernel keeps so many segments for a flow.
    pub(super) fn set_kept(&mut self, index: u32, kept: u32) {
        let flow = &mut self.flows[index];
        self.kept = self.kept - flow.kept + kept;
        flow.kept = kept;
        let keepers = &mut self.keepers;
        self.flows.lists.remove(keepers, Links::Kept, index);
        if kept > 0 {
            self.flows.lists.push_back(keepers, Links::Kept, index);
        }
    }

    /// Asks the kernel again about flows that it was asked about longest ago; what they
    /// were granted and have not used is taken back.
    fn look_at_kept(&mut self) {
        for _ in 0..KEPT_LOOKS {
            let Some(index) = self.keepers.head() else { return };
            let flow = &self.flows[index];
            let standing = flow.socket.as_ref().and_then(|s| kernel::standing(s.as_fd()).ok());
            let queued = standing.map_or(0, |standing| standing.queued);
            let kept = queued.div_ceil(u32::from(flow.segment.max(1)));
            self.set_kept(index, kept + u32::from(flow.in_ring));
            self.flows[index].credit = 0;
        }
    }

    /// The flow is looked at again a little later.
    fn wait_for_room(&mut self, index: u32) {
        self.counters.credit_out += 1;
        self.flows[index].look_at = self.now.monotonic_ns + LOOK_INTERVAL;
        self.flows.lists.push_back(&mut self.wait, Links::Wait, index);
    }

    /// Whether the kernel has all that it took; if not, the flow is reset.
    pub(super) fn has_all(&mut self, mem: &mut RegionMemory, index: u32) -> bool {
        let flow = &self.flows[index];
        let Some(socket) = &flow.socket else { return false };
        let Ok(standing) = kernel::standing(socket.as_fd()) else { return false };
        if standing.given.wrapping_sub(flow.base) == flow.taken {
            return true;
        }
        self.counters.lost += 1;
        if self.counters.lost == 1 {
            tracing::warn!(
                "the kernel took payload from PASTE's ring and did not send it; the flow is \
                 reset. Is it short of memory for sockets (net.ipv4.tcp_mem)?"
            );
        }
        self.terminate(mem, index, Reason::Aborted);
        false
    }

    /// The kernel has taken a slot.
    fn on_taken(&mut self, mem: &mut RegionMemory, word: u64) {
        let Some(index) = self.flows.find(flow_of(word)) else { return };
        let flow = &mut self.flows[index];
        flow.in_ring -= 1;
        let mut left = len_of(word);
        flow.taken += u64::from(left);
        self.counters.bytes_out += u64::from(left);
        while left > 0 && !self.flows[index].tx.is_empty() {
            let flow = &mut self.flows[index];
            let record = self.bufs.get_mut(flow.tx.head);
            let part = left.min(record.len);
            record.offset += part;
            record.len -= part;
            left -= part;
            if record.len == 0
                && let Some(buf) = self.bufs.pop(&mut flow.tx)
            {
                self.finish(mem, index, buf, Reason::Ok);
            }
        }
        if self.flows[index].in_ring == 0 {
            // For what waits for it, or its FIN.
            self.kick(index);
        }
    }

    /// The kernel goes no further than a slot. If its socket has refused it, its flow's
    /// slots go, and the flow waits. True if it is worth to go on.
    fn on_stuck(&mut self, word: u64) -> Result<bool, PortError> {
        // Without a NIC it stops at any, and says nothing.
        self.look_at_nic(super::NIC_INTERVAL_STUCK)?;
        let Some(index) = self.flows.find(flow_of(word)) else { return Ok(false) };
        if self.unreported(index) != 0 {
            // The socket has it, and the NIC's ring is full.
            self.counters.nic_full += 1;
            return Ok(false);
        }
        self.counters.stuck += 1;
        self.withdraw(index);
        self.flows[index].credit = 0;
        self.wait_for_room(index);
        Ok(true)
    }

    /// Bytes of a flow that its socket has been given and that the ring does not report.
    fn unreported(&self, index: u32) -> u64 {
        let flow = &self.flows[index];
        let standing = flow.socket.as_ref().and_then(|s| kernel::standing(s.as_fd()).ok());
        let given = standing.map_or(flow.base, |standing| standing.given);
        given.saturating_sub(flow.base).saturating_sub(flow.taken)
    }

    /// Takes a flow's slots back out of the ring, but for those that its socket has; what
    /// they held is to be sent again.
    pub(super) fn withdraw(&mut self, index: u32) {
        if self.flows[index].in_ring > 0 {
            let (name, mut left) = (self.flows.name(index), self.unreported(index));
            self.port.withdraw(|word| {
                if flow_of(word) != name {
                    return Verdict::Keep;
                }
                let len = u64::from(len_of(word));
                let given = len <= left;
                left = if given { left - len } else { 0 };
                if given { Verdict::Forget } else { Verdict::Void }
            });
        }
        let flow = &mut self.flows[index];
        flow.in_ring = 0;
        flow.cursor = flow.tx.head;
        flow.cursor_at = if flow.cursor == NIL { 0 } else { self.bufs.get(flow.cursor).offset };
    }

    /// A buffer was sent, or is not to be: it is the pool's, or the guest is to be told.
    fn finish(&mut self, mem: &mut RegionMemory, index: u32, buf: u32, reason: Reason) {
        let flow = &mut self.flows[index];
        flow.tx_len -= 1;
        if flow.want_writable && flow.tx_len <= QUEUE_MAX / 2 && flow.state == State::Open {
            flow.want_writable = false;
            flow.events |= event::WRITABLE;
            self.mark_ready(index);
        }
        let flow = &mut self.flows[index];
        let record = self.bufs.get_mut(buf);
        let told = match record.told {
            Told::Nothing => false,
            Told::Acked => reason == Reason::Ok,
            Told::Kept | Told::Shared => true,
        };
        if flow.detached || !told {
            return self.give_sent(mem, buf);
        }
        record.place = Place::Done;
        record.reason = reason;
        self.bufs.push(&mut flow.done, buf);
        self.mark_ready(index);
    }

    /// Gives a buffer that was sent to the pool, or ends one send of a shared one.
    fn give_sent(&mut self, mem: &mut RegionMemory, buf: u32) {
        self.bufs.end_send(buf).into_iter().for_each(|buf| mem.give(buf));
    }

    /// Gives up what was not sent. None of it is in the ring.
    pub(super) fn drop_sending(&mut self, mem: &mut RegionMemory, index: u32) {
        let reason = match self.flows[index].reason {
            // An orderly end leaves nothing, but for a flow that was never opened.
            Reason::Ok => Reason::Aborted,
            reason => reason,
        };
        let flow = &mut self.flows[index];
        flow.cursor = NIL;
        let mut queue = std::mem::replace(&mut flow.tx, Queue::EMPTY);
        while let Some(buf) = self.bufs.pop(&mut queue) {
            self.finish(mem, index, buf, reason);
        }
    }

    /// Returns what the guest would have been told of to the pool.
    pub(super) fn drop_done(&mut self, mem: &mut RegionMemory, index: u32) {
        let mut queue = std::mem::replace(&mut self.flows[index].done, Queue::EMPTY);
        while let Some(buf) = self.bufs.pop(&mut queue) {
            self.give_sent(mem, buf);
        }
    }
}
