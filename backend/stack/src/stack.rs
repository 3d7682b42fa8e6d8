//! The stack: what it is made of, and its life cycle of flows. Input, output,
//! timers and slots are in their own modules, as further methods of [`Stack`].

use std::collections::VecDeque;
use std::hash::Hasher;
use std::ops::Range;

use paste_abi::{CHANNELS_MAX, Flow, Reason};
use siphasher::sip::SipHasher13;

use crate::addresses::Addresses;
use crate::bufs::{Bufs, NIL, Place, Queue, Told};
use crate::clock::Deadline;
use crate::config::Config;
use crate::control::{CONTROL_MAX, Control, Limit};
use crate::counters::Counters;
use crate::flow::{Flows, Key, Links, List, Local, NEVER, State, event};
use crate::frame::TxBatch;
use crate::listen::Listeners;
use crate::memory::Memory;
use crate::neighbour::Neighbours;
use crate::neighbour::ndp::Ndp;
use crate::reassembly::Reassembly;
use crate::table::Table;
use crate::tcp::pmtu::Path;
use crate::tcp::repair::Repairs;
use crate::wheel::Wheel;
use crate::wire::{ipv4, ipv6, tcp};

/// What became of a frame that was given to [`Stack::input`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// In-order payload: the buffer is the stack's until
    /// [`Stack::poll_slots`] names it.
    Readable,
    /// Nothing of it is needed any more; the buffer is still the caller's.
    Consumed,
    /// The stack keeps the buffer: out-of-order payload, or a reply made of it.
    Held,
    /// Not for this stack's addresses. The buffer is still the caller's, who
    /// may bridge it to the guest's plain network path.
    Foreign,
}

/// Payload to send: a range of a buffer that the guest gives away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tx {
    /// The buffer.
    pub buf: u32,
    /// Where the payload starts in the buffer.
    pub offset: u16,
    /// Bytes, at least one.
    pub len: u16,
    /// The application's word, returned by ACKED.
    pub cookie: u64,
    /// Report ACKED when the peer has acknowledged it.
    pub notify: bool,
    /// Give the buffer back to the guest then (implies `notify`). The stack
    /// writes nothing into a kept buffer.
    pub keep: bool,
    /// The buffer stays the guest's, and can be sent many times at once. ACKED
    /// tells of every such send, also if its flow ends first. The stack writes
    /// nothing into a shared buffer.
    pub share: bool,
}

/// Flows of one channel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Channel {
    /// All of them.
    pub flows: List,
    /// Those that have something for the guest.
    pub ready: List,
}

/// Segments that one flow sends before the next one has its turn.
const BURST: u32 = 16;

/// What a keyed hash is for; what one tells says nothing of another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Secret {
    Sequence,
    Timestamp,
    Port,
    Cookie,
    FlowLabel,
}

/// A TCP/IP endpoint with an address of each family, and all its flows.
#[derive(Debug)]
pub struct Stack {
    pub(crate) config: Config,
    pub(crate) counters: Counters,
    pub(crate) flows: Flows,
    pub(crate) bufs: Bufs,
    /// Lent to flows that have something to repair.
    pub(crate) repairs: Repairs,
    pub(crate) table: Table,
    /// Timers: of flows by their index, then of neighbours, then the host's own.
    pub(crate) wheel: Wheel,
    pub(crate) neighbours: Neighbours,
    pub(crate) listeners: Listeners,
    pub(crate) control: VecDeque<Control>,
    pub(crate) channels: [Channel; CHANNELS_MAX as usize],
    /// Flows that have something to transmit, served in turn.
    pub(crate) sending: List,
    /// Flows in TIME-WAIT, the oldest first.
    pub(crate) time_wait: List,
    pub(crate) time_wait_len: u32,
    /// Flows that listeners opened and that are not established, the oldest
    /// first.
    pub(crate) half_open: List,
    /// Flows that share the buffers: not in TIME-WAIT, not gone.
    pub(crate) open: u32,
    /// Bytes that peers were promised and have not sent yet, over all flows.
    pub(crate) promised: u64,
    /// Buffers for which flows are or were charged, see [`crate::tcp::charge`].
    pub(crate) charged: u32,
    /// Buffers that were in the pool when it was last seen.
    pub(crate) pool_free: u32,
    /// Flows that hold early payload, the oldest hole first.
    pub(crate) holders: List,
    pub(crate) rst_limit: Limit,
    pub(crate) echo_limit: Limit,
    pub(crate) syn_limit: Limit,
    pub(crate) cookie_limit: Limit,
    pub(crate) error_limit: Limit,
    pub(crate) addresses: Addresses,
    pub(crate) ndp: Ndp,
    pub(crate) reassembly: Reassembly,
    /// Payload bytes of a segment over IPv4 without options.
    pub(crate) mss: u16,
    pub(crate) rcv_scale: u8,
    pub(crate) next_port: u16,
    hasher: SipHasher13,
    pub(crate) now: u64,
}

impl Stack {
    /// Makes a stack for a region of `buffer_count` buffers. `secret` keys the
    /// flow table and the initial sequence numbers; it must be unpredictable.
    pub fn new(mut config: Config, buffer_count: u32, secret: [u8; 16]) -> Stack {
        config.flows_max = config.flows_max.clamp(1, Flow::INDEX_MAX);
        if config.mtu < ipv6::MTU_MIN {
            config.ipv6 = None;
        }
        // RFC 791: every link carries 68 bytes; less leaves no room for payload.
        config.mtu = config.mtu.max(128);
        let neighbours = Neighbours::new(config.neighbours_max);
        // The smallest shift that lets the largest window be expressed.
        let rcv_scale = (0..14).find(|s| config.recv_window_max >> s <= 0xffff).unwrap_or(14);
        let bufs = Bufs::new(buffer_count, config.shared_sends_max);
        Stack {
            counters: Counters::default(),
            flows: Flows::new(config.flows_max),
            repairs: Repairs::new(config.flows_max.min(bufs.total())),
            bufs,
            table: Table::new(config.flows_max),
            wheel: Wheel::new(config.flows_max + neighbours.count() + 1),
            neighbours,
            listeners: Listeners::new(config.listeners_max, config.listener_syn_per_second),
            control: VecDeque::with_capacity(CONTROL_MAX),
            channels: [Channel { flows: List::EMPTY, ready: List::EMPTY }; CHANNELS_MAX as usize],
            sending: List::EMPTY,
            time_wait: List::EMPTY,
            time_wait_len: 0,
            half_open: List::EMPTY,
            open: 0,
            promised: 0,
            charged: 0,
            pool_free: buffer_count,
            holders: List::EMPTY,
            rst_limit: Limit::per_second(config.rst_per_second),
            echo_limit: Limit::per_second(config.echo_per_second),
            syn_limit: Limit::per_second(config.syn_per_second),
            cookie_limit: Limit::per_second(config.cookie_per_second),
            error_limit: Limit::per_second(config.icmp_errors_per_second),
            addresses: Addresses::new(&config),
            ndp: Ndp::default(),
            reassembly: Reassembly::new(),
            mss: config.mtu - (ipv4::LEN + tcp::LEN) as u16,
            rcv_scale,
            next_port: 0,
            hasher: SipHasher13::new_with_key(&secret),
            now: 0,
            config,
        }
    }

    /// Where the tables lie that are large with many flows or buffers and are read
    /// in no order, for whoever can have them on huge pages.
    pub fn tables(&self) -> [Range<*const u8>; 4] {
        [self.flows.memory(), self.bufs.memory(), self.table.memory(), self.wheel.memory()]
    }

    /// Totals.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Flows in use, in every state.
    pub fn flows(&self) -> u32 {
        self.flows.used()
    }

    /// Flows in TIME-WAIT.
    pub fn time_waits(&self) -> u32 {
        self.time_wait_len
    }

    /// When [`Stack::advance`] is next needed, if ever, after [`Stack::transmit`] has
    /// returned with room left. May be early, is never late.
    pub fn next_deadline(&self) -> Option<u64> {
        self.wheel.next()
    }

    /// Appends frames that are due to `out` until there are none or no room,
    /// and returns how many. Flows take turns.
    pub fn transmit<M: Memory>(&mut self, mem: &mut M, now: u64, out: &mut TxBatch) -> usize {
        let now = self.clock(now);
        self.pool_free = mem.free();
        let before = out.frames().len();
        self.transmit_control(mem, now, out);
        while out.room() > 0 {
            let Some(index) = self.flows.pop_front(&mut self.sending, Links::Sending) else {
                break;
            };
            let mut more = true;
            for _ in 0..BURST {
                more = self.emit(mem, now, index, out);
                if !more || out.room() == 0 {
                    break;
                }
            }
            if more {
                self.kick(index);
                self.arm(index);
            }
        }
        // Requests for neighbours that flows needed just now.
        self.transmit_control(mem, now, out);
        out.frames().len() - before
    }

    /// The port has sent a frame of [`crate::Origin::Stack`] that carried this buffer.
    pub fn frame_sent<M: Memory>(&mut self, mem: &mut M, buf: u32) {
        if buf < self.bufs.count() {
            self.unpin(mem, buf);
        }
    }

    /// Takes the time in; a clock that steps back stands still instead.
    #[inline]
    pub(crate) fn clock(&mut self, now: u64) -> u64 {
        self.now = self.now.max(now);
        if self.wheel.start(self.now) {
            self.begin();
        }
        self.now
    }

    /// The clock was seen for the first time.
    #[cold]
    fn begin(&mut self) {
        if self.config.ipv6.is_some() {
            self.join_link(self.now);
            self.arm_host_timer();
        }
    }

    /// Makes sure that what the host itself has to do next is done in time.
    pub(crate) fn arm_host_timer(&mut self) {
        let reassembly = self.reassembly.deadline(self.config.timers.reassembly);
        if let Some(deadline) = [self.ndp.deadline(), reassembly].into_iter().flatten().min() {
            self.wheel.set_earlier(self.config.flows_max + self.neighbours.count(), deadline);
        }
    }

    /// The host's own timer rang.
    pub(crate) fn host_timer<M: Memory>(&mut self, mem: &mut M, now: u64) {
        self.ndp_timer(now);
        self.reassembly_timer(mem, now);
        self.arm_host_timer();
    }

    /// Bytes of an IP header of ours without options.
    #[inline]
    pub(crate) const fn ip_len(&self, local: Local) -> usize {
        if local.is_v6() { ipv6::LEN } else { ipv4::LEN }
    }

    /// Payload bytes of a segment without options that the link carries.
    #[inline]
    pub(crate) const fn base_mss(&self, key: &Key) -> u16 {
        if key.local.is_v6() { self.mss - (ipv6::LEN - ipv4::LEN) as u16 } else { self.mss }
    }

    /// The keyed hash of a flow's key.
    #[inline]
    pub(crate) fn key_hash(&self, key: &Key) -> u32 {
        let mut hasher = self.hasher;
        key.hash(&mut hasher);
        hasher.finish() as u32
    }

    /// The keyed hash of a few bytes.
    #[inline]
    pub(crate) fn hash(&self, bytes: &[u8]) -> u32 {
        let mut hasher = self.hasher;
        hasher.write(bytes);
        hasher.finish() as u32
    }

    /// The keyed hash of a key and more, for another purpose than the table.
    pub(crate) fn secret(&self, purpose: Secret, key: &Key, more: &[u64]) -> u32 {
        let mut hasher = self.hasher;
        key.hash(&mut hasher);
        hasher.write_u8(purpose as u8);
        more.iter().for_each(|&word| hasher.write_u64(word));
        hasher.finish() as u32
    }

    /// Has `index` served by the next [`Stack::transmit`].
    #[inline]
    pub(crate) fn kick(&mut self, index: u32) {
        // A flow that waits for a neighbour is in that one's list.
        if !self.flows.linked(Links::Sending, index) {
            self.flows.push_back(&mut self.sending, Links::Sending, index);
        }
    }

    /// Has `index` served by the next [`Stack::poll_slots`].
    #[inline]
    pub(crate) fn mark_ready(&mut self, index: u32) {
        if !self.flows.linked(Links::Ready, index) && !self.flows[index].detached() {
            let channel = usize::from(self.flows[index].channel);
            self.flows.push_back(&mut self.channels[channel].ready, Links::Ready, index);
        }
    }

    /// Makes sure that the flow's earliest deadline rings.
    #[inline]
    pub(crate) fn arm(&mut self, index: u32) {
        let deadline = self.flows[index].deadline(self.now);
        if deadline != NEVER {
            self.wheel.set_earlier(index, deadline);
        }
    }

    /// The living flow with this name on `channel`, of which the guest was told.
    #[inline]
    pub(crate) fn owned(&self, channel: u16, name: Flow) -> Result<u32, Reason> {
        let index = self.flows.find(name).ok_or(Reason::StaleFlow)?;
        let flow = &self.flows[index];
        // One that has a listener was not delivered yet: its name was guessed.
        let known = !flow.detached() && flow.listener().is_none();
        if !known || u16::from(flow.channel) != channel {
            return Err(Reason::StaleFlow);
        }
        Ok(index)
    }

    /// Takes a flow from the slab for `key`, which is not in the table.
    pub(crate) fn open_flow(&mut self, now: u64, key: Key, hash: u32, channel: u8) -> Option<u32> {
        if self.flows.used() == self.config.flows_max && !self.recycle_time_wait() {
            self.drop_oldest_half_open();
        }
        let index = self.flows.alloc()?;
        self.flows[index].reset(key, &self.config, now);
        let iss = self.initial_sequence(now, &key);
        let ts_offset = self.secret(Secret::Timestamp, &key, &[]);
        let mss = self.base_mss(&key);
        let flow = &mut self.flows[index];
        flow.channel = channel;
        flow.begin(iss, now);
        flow.path = Path::new(now);
        flow.ts_offset = ts_offset;
        flow.mss = mss;
        self.table.insert(hash, index);
        let list = &mut self.channels[usize::from(channel)].flows;
        self.flows.push_back(list, Links::Channel, index);
        self.open += 1;
        Some(index)
    }

    /// Ends a flow for the peer. `reason` is what RESET tells the guest; `None`
    /// is the orderly end, CLOSED. A flow that the guest never heard of goes
    /// without a word.
    pub(crate) fn terminate<M: Memory>(&mut self, mem: &mut M, index: u32, reason: Option<Reason>) {
        debug_assert!(self.flows[index].state != State::Closed);
        let unheard = self.flows[index].listener().is_some();
        self.drop_held(mem, index);
        // An orderly end leaves nothing unacknowledged, but for a flow that was
        // never opened.
        self.drop_sending(mem, index, reason.unwrap_or(Reason::Aborted));
        self.leave_peer(index);
        let flow = &mut self.flows[index];
        match reason {
            Some(reason) => {
                self.counters.reset += 1;
                if flow.events & event::CLOSED == 0 {
                    flow.reason = reason;
                    flow.events |= event::RESET;
                }
            }
            None => flow.events |= event::CLOSED,
        }
        if unheard {
            self.forget(mem, index);
        } else if self.flows[index].detached() {
            self.free_if_done(index);
        } else {
            self.mark_ready(index);
        }
    }

    /// The flow is CLOSED: no segment finds it any more, and no timer.
    fn leave_peer(&mut self, index: u32) {
        if self.flows[index].state == State::TimeWait {
            self.flows.remove(&mut self.time_wait, Links::Age, index);
            self.time_wait_len -= 1;
        } else {
            self.end_half_open(index);
            self.open -= 1;
        }
        self.withdraw_promise(index);
        let flow = &mut self.flows[index];
        flow.enter(State::Closed);
        flow.rexmit_at = Deadline::NEVER;
        flow.delayed_ack_at = Deadline::NEVER;
        flow.idle_at = Deadline::NEVER;
        let key = flow.key;
        self.wheel.cancel(index);
        self.table.remove(self.key_hash(&key), index);
    }

    /// The oldest half-open flow gives way: it has no buffers, and its guest
    /// never heard of it.
    fn drop_oldest_half_open(&mut self) {
        if let Some(oldest) = self.half_open.head() {
            self.counters.half_open_dropped += 1;
            self.leave_peer(oldest);
            self.leave_backlog(oldest);
            self.detach(oldest);
        }
    }

    /// Cuts a dead flow off from its guest, who is told nothing more.
    pub(crate) fn forget<M: Memory>(&mut self, mem: &mut M, index: u32) {
        self.leave_backlog(index);
        self.drop_readable(mem, index);
        let mut done = core::mem::replace(&mut self.flows[index].done, Queue::EMPTY);
        while let Some(buf) = self.bufs.pop(&mut done) {
            self.give_or_pin(mem, buf);
        }
        self.detach(index);
    }

    /// The guest's name for the flow dies; what is left is the peer's affair.
    pub(crate) fn detach(&mut self, index: u32) {
        let channel = &mut self.channels[usize::from(self.flows[index].channel)];
        self.flows.remove(&mut channel.ready, Links::Ready, index);
        self.flows.remove(&mut channel.flows, Links::Channel, index);
        self.flows[index].set_detached(true);
        self.flows[index].events = 0;
        self.free_if_done(index);
    }

    /// Frees a flow that is over for the guest and the peer both.
    pub(crate) fn free_if_done(&mut self, index: u32) {
        let flow = &self.flows[index];
        if flow.state != State::Closed || !flow.detached() || flow.rst_due() {
            return;
        }
        if flow.neighbour == NIL {
            self.flows.remove(&mut self.sending, Links::Sending, index);
        } else {
            let list = self.neighbours.waiting(flow.neighbour);
            self.flows.remove(list, Links::Sending, index);
        }
        self.flows.free(index);
    }

    /// The RST of a dead flow was sent, or cannot be.
    pub(crate) fn rst_done(&mut self, index: u32) {
        self.flows[index].set_rst_due(false);
        self.free_if_done(index);
    }

    /// Ends the oldest TIME-WAIT, if there is one.
    pub(crate) fn recycle_time_wait(&mut self) -> bool {
        let Some(oldest) = self.time_wait.head() else {
            return false;
        };
        self.counters.time_wait_recycled += 1;
        self.end_time_wait(oldest);
        true
    }

    /// Ends a TIME-WAIT, in which no buffers are left but what the guest is
    /// still to be told of.
    pub(crate) fn end_time_wait(&mut self, index: u32) {
        self.flows.remove(&mut self.time_wait, Links::Age, index);
        self.time_wait_len -= 1;
        self.wheel.cancel(index);
        let flow = &mut self.flows[index];
        flow.enter(State::Closed);
        flow.idle_at = Deadline::NEVER;
        let key = flow.key;
        self.table.remove(self.key_hash(&key), index);
        self.free_if_done(index);
    }

    /// Gives a buffer that nobody waits for to the pool, once the port is done
    /// with it.
    #[inline]
    pub(crate) fn give_or_pin<M: Memory>(&mut self, mem: &mut M, buf: u32) {
        if buf >= self.bufs.count() {
            let buf = self.bufs.end_alias(buf);
            return self.unpin(mem, buf);
        }
        let meta = self.bufs.get_mut(buf);
        if meta.pins > 0 {
            meta.place = Place::Pinned;
        } else {
            meta.place = Place::Elsewhere;
            mem.give(buf);
        }
    }

    /// One frame less carries the buffer, or one alias.
    #[inline]
    pub(crate) fn unpin<M: Memory>(&mut self, mem: &mut M, buf: u32) {
        let meta = self.bufs.get_mut(buf);
        meta.pins = meta.pins.saturating_sub(1);
        if meta.pins > 0 {
            return;
        }
        match meta.place {
            Place::Pinned => {
                meta.place = Place::Elsewhere;
                mem.give(buf);
            }
            Place::Done => {
                let name = Flow(meta.flow);
                if let Some(index) = self.flows.find(name) {
                    self.mark_ready(index);
                }
            }
            _ => {}
        }
    }

    /// Returns readable buffers to the pool.
    pub(crate) fn drop_readable<M: Memory>(&mut self, mem: &mut M, index: u32) {
        let mut queue = core::mem::replace(&mut self.flows[index].rx, Queue::EMPTY);
        while let Some(buf) = self.bufs.pop(&mut queue) {
            self.uncharge(mem, index, buf);
        }
    }

    /// Gives up what waits to be sent or acknowledged. Kept buffers return to
    /// the guest, with the reason why they were not acknowledged.
    fn drop_sending<M: Memory>(&mut self, mem: &mut M, index: u32, reason: Reason) {
        let mut queue = core::mem::replace(&mut self.flows[index].tx, Queue::EMPTY);
        self.flows[index].tx_len = 0;
        self.end_repair(index);
        let flow = &mut self.flows[index];
        flow.tx_cursor = NIL;
        flow.sacked_bytes = 0;
        flow.lost_bytes = 0;
        while let Some(buf) = self.bufs.pop(&mut queue) {
            if matches!(self.bufs.get(buf).told, Told::Kept | Told::Shared) {
                self.finish(index, buf, reason);
            } else {
                self.give_or_pin(mem, buf);
            }
        }
    }

    /// Queues ACKED for a buffer.
    pub(crate) fn finish(&mut self, index: u32, buf: u32, reason: Reason) {
        let meta = self.bufs.get_mut(buf);
        meta.place = Place::Done;
        meta.reason = reason;
        self.bufs.push(&mut self.flows[index].done, buf);
        self.mark_ready(index);
    }
}
