//! The guest's side: slots out, requests in.
//!
//! Slots are pulled. What a guest is to be told lies in its flows, as bits and
//! as queues of buffers, until it polls; a guest that stops polling costs no
//! memory but the buffers that are its own share anyway.

use core::net::SocketAddr;

use paste_abi::slot::{CSUM_VALID, KEEP, Opt, SHARE};
use paste_abi::{CHANNELS_MAX, Event, Flow, NO_BUFFER, Reason, Slot};

use crate::bufs::{NIL, Place, Told};
use crate::clock::Deadline;
use crate::config::{MS, SEC};
use crate::flow::{Links, List, State, event};
use crate::memory::Memory;
use crate::stack::{Stack, Tx};

impl Stack {
    /// Whether [`Stack::poll_slots`] may have something for `channel`.
    pub fn has_slots(&self, channel: u16) -> bool {
        self.channels.get(usize::from(channel)).is_some_and(|c| !c.ready.is_empty())
    }

    /// Moves what `channel` is to be told into `out`, in order for each flow,
    /// and returns how many slots. Buffers named by DATA, and by ACKED with
    /// KEEP, are the guest's from here on.
    ///
    /// A kept buffer of a flow that ended is returned by ACKED too, before
    /// RESET or CLOSED; its `len` is the [`Reason`], which is [`Reason::Ok`] for
    /// what the peer has acknowledged.
    pub fn poll_slots<M: Memory>(&mut self, mem: &mut M, channel: u16, out: &mut [Slot]) -> usize {
        let channel = usize::from(channel);
        if channel >= self.channels.len() {
            return 0;
        }
        let mut count = 0;
        while count < out.len() {
            let mut ready = self.channels[channel].ready;
            let popped = self.flows.pop_front(&mut ready, Links::Ready);
            self.channels[channel].ready = ready;
            let Some(index) = popped else { break };
            while count < out.len() {
                let Some(slot) = self.next_slot(mem, index) else {
                    break;
                };
                out[count] = slot;
                count += 1;
            }
            // When `out` is full the flow may have more, and others go first.
            if count == out.len() && !self.flows[index].detached() {
                self.mark_ready(index);
            }
        }
        count
    }

    /// What the guest is to be told next about a flow.
    fn next_slot<M: Memory>(&mut self, mem: &mut M, index: u32) -> Option<Slot> {
        let name = self.flows.name(index);
        let flow = &mut self.flows[index];
        if flow.events & event::ACCEPTED != 0 {
            flow.events &= !event::ACCEPTED;
            let peer = SocketAddr::new(flow.key.remote(), flow.key.remote_port);
            let listener = flow.listener().unwrap_or_default();
            let slot = Slot::accepted(name, listener, peer, flow.key.local_port);
            self.leave_backlog(index);
            return Some(slot);
        }
        if flow.events & event::CONNECTED != 0 {
            flow.events &= !event::CONNECTED;
            let mut slot = Slot::event(Event::Connected, name);
            slot.cookie = u64::from(flow.opener);
            return Some(slot);
        }
        if let Some(buf) = self.bufs.pop(&mut flow.rx) {
            let meta = self.bufs.get_mut(buf);
            meta.place = Place::Delivered;
            return Some(Slot {
                buf_idx: buf,
                len: meta.len,
                offset: meta.offset,
                modifiers: if meta.csum_valid { CSUM_VALID } else { 0 },
                csum: meta.csum,
                time: meta.word,
                ..Slot::event(Event::Data, name)
            });
        }
        if flow.events & event::FIN != 0 {
            flow.events &= !event::FIN;
            return Some(Slot::event(Event::Fin, name));
        }
        if !flow.done.is_empty() {
            return self.acked_slot(mem, index, name);
        }
        if flow.events & event::WRITABLE != 0 {
            flow.events &= !event::WRITABLE;
            return Some(Slot::event(Event::Writable, name));
        }
        let mut slot = if flow.events & event::RESET != 0 {
            let mut slot = Slot::event(Event::Reset, name);
            slot.len = flow.reason as u16;
            slot
        } else if flow.events & event::CLOSED != 0 {
            Slot::event(Event::Closed, name)
        } else {
            return None;
        };
        slot.buf_idx = NO_BUFFER;
        self.detach(index);
        Some(slot)
    }

    /// The ACKED of the oldest acknowledged buffer, once the port is done with it.
    fn acked_slot<M: Memory>(&mut self, mem: &mut M, index: u32, name: Flow) -> Option<Slot> {
        let buf = self.flows[index].done.head;
        if self.bufs.get(buf).pins > 0 {
            return None;
        }
        self.bufs.pop(&mut self.flows[index].done);
        let meta = self.bufs.get_mut(buf);
        meta.place = Place::Elsewhere;
        let mut slot = Slot::event(Event::Acked, name);
        slot.cookie = meta.word;
        slot.len = meta.reason as u16;
        match meta.told {
            Told::Kept => {
                slot.buf_idx = buf;
                slot.modifiers = KEEP;
            }
            Told::Shared => {
                slot.buf_idx = self.bufs.end_alias(buf);
                slot.modifiers = SHARE;
                self.unpin(mem, slot.buf_idx);
            }
            Told::Acked | Told::Nothing => mem.give(buf),
        }
        Some(slot)
    }

    /// Queues payload. On `Ok` the buffer is the stack's, unless it is shared.
    /// After [`Reason::FlowFull`], WRITABLE tells when there is room again.
    pub fn send<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        channel: u16,
        flow: Flow,
        tx: &Tx,
    ) -> Result<(), Reason> {
        let now = self.clock(now);
        let index = self.owned(channel, flow)?;
        if tx.buf >= self.bufs.count() {
            return Err(Reason::ForeignBuffer);
        }
        let end = usize::from(tx.offset) + usize::from(tx.len);
        if tx.len == 0 || tx.offset < self.config.headroom || end > mem.buffer_size() {
            return Err(Reason::BadRange);
        }
        let state = &mut self.flows[index];
        if !state.state.may_send() || state.fin_queued() {
            return Err(Reason::Closed);
        }
        if state.tx_len >= self.config.send_queue_max {
            state.set_want_writable(true);
            return Err(Reason::FlowFull);
        }
        let meta = self.bufs.get(tx.buf);
        if !matches!(meta.place, Place::Delivered | Place::Elsewhere) {
            return Err(Reason::ForeignBuffer);
        }
        let buf = if tx.share {
            self.bufs.alias(tx.buf).ok_or(Reason::NoRoom)?
        } else if meta.pins > 0 {
            // Shared sends of it are under way.
            return Err(Reason::BadRequest);
        } else {
            if meta.place == Place::Delivered {
                self.release(now, tx.buf);
            }
            tx.buf
        };
        let flow_state = &mut self.flows[index];
        let meta = self.bufs.get_mut(buf);
        meta.place = Place::Sending;
        meta.flow = flow.0;
        meta.seq = flow_state.snd_end.0;
        meta.offset = tx.offset;
        meta.len = tx.len;
        meta.word = tx.cookie;
        meta.told = match (tx.share, tx.keep, tx.notify) {
            (true, ..) => Told::Shared,
            (false, true, _) => Told::Kept,
            (false, false, true) => Told::Acked,
            (false, false, false) => Told::Nothing,
        };
        meta.pins = 0;
        meta.unit = 0;
        meta.sacked = 0;
        meta.lost = 0;
        meta.resent = 0;
        meta.back = NIL;
        self.bufs.push(&mut flow_state.tx, buf);
        flow_state.snd_end += u32::from(tx.len);
        flow_state.tx_len += 1;
        if flow_state.tx_cursor == NIL {
            flow_state.tx_cursor = buf;
        }
        self.kick(index);
        Ok(())
    }

    /// Sends FIN after everything queued. CLOSED follows when the peer has
    /// closed as well.
    pub fn close<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        channel: u16,
        flow: Flow,
    ) -> Result<(), Reason> {
        self.clock(now);
        let index = self.owned(channel, flow)?;
        let state = &mut self.flows[index];
        if !state.state.may_send() || state.fin_queued() {
            return Err(Reason::Closed);
        }
        match state.state {
            // RFC 9293 section 3.10.4: nothing was opened yet.
            State::SynSent => {
                self.terminate(mem, index, None);
                return Ok(());
            }
            State::Established => state.enter(State::FinWait1),
            State::CloseWait => state.enter(State::LastAck),
            // Moves on when the handshake is complete.
            _ => {}
        }
        self.flows[index].set_fin_queued(true);
        self.kick(index);
        Ok(())
    }

    /// Sends RST and forgets what was queued either way. RESET with
    /// [`Reason::Aborted`] follows.
    pub fn abort<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        channel: u16,
        flow: Flow,
    ) -> Result<(), Reason> {
        self.clock(now);
        let index = self.owned(channel, flow)?;
        self.drop_readable(mem, index);
        if self.flows[index].state == State::Closed {
            return Ok(());
        }
        self.flows[index].events = 0;
        self.reset_flow(mem, index);
        Ok(())
    }

    /// Ends a flow with a RST to the peer, where it knows of the flow.
    fn reset_flow<M: Memory>(&mut self, mem: &mut M, index: u32) {
        let flow = &mut self.flows[index];
        flow.set_rst_due(!matches!(flow.state, State::SynSent | State::TimeWait));
        self.kick(index);
        self.terminate(mem, index, Some(Reason::Aborted));
    }

    /// Sets an option of a flow.
    pub fn set_option(
        &mut self,
        now: u64,
        channel: u16,
        flow: Flow,
        option: Opt,
        value: u64,
    ) -> Result<(), Reason> {
        let now = self.clock(now);
        let index = self.owned(channel, flow)?;
        let default = self.config.timers.user_timeout;
        let state = &mut self.flows[index];
        match option {
            Opt::UserTimeout => {
                let value = if value == 0 { default / MS } else { value };
                state.user_timeout = value.try_into().unwrap_or(u32::MAX);
            }
            Opt::KeepAlive => {
                state.keepalive = value.try_into().unwrap_or(u16::MAX);
                let takes_timer = matches!(state.state, State::TimeWait | State::FinWait2);
                if state.state != State::Closed && !takes_timer {
                    state.idle_at = match state.keepalive {
                        0 => Deadline::NEVER,
                        seconds => Deadline::after(now, u64::from(seconds) * SEC),
                    };
                    self.arm(index);
                }
            }
        }
        Ok(())
    }

    /// Ends a channel: its listeners go, its flows are reset, its buffers that
    /// are the stack's return to the pool. Linear in that channel's flows.
    pub fn close_channel<M: Memory>(&mut self, mem: &mut M, now: u64, channel: u16) {
        self.clock(now);
        if channel >= CHANNELS_MAX {
            return;
        }
        self.listeners.remove_channel(channel);
        while let Some(index) = self.channels[usize::from(channel)].flows.head() {
            // The guest is gone, so nothing is told: as if it never heard of it.
            self.leave_backlog(index);
            if self.flows[index].state == State::TimeWait {
                self.forget(mem, index);
                continue;
            }
            if self.flows[index].state != State::Closed {
                self.reset_flow(mem, index);
            }
            self.forget(mem, index);
        }
        debug_assert!(self.channels[usize::from(channel)].ready.is_empty());
        self.channels[usize::from(channel)].ready = List::EMPTY;
    }
}
