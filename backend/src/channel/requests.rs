//! The door: every request of a guest is judged here before the stack port is
//! asked, and every refusal is counted and told.

use paste_abi::frame::{self, RECORD_LEN};
use paste_abi::slot::{DURABLE, KEEP, NOTIFY, Opt, SHARE, WANTED_MAX};
use paste_abi::{Event, NO_BUFFER, Reason, Request, Slot};
use paste_pmem::Owner;
use paste_stack::Tx;

use super::conversation::Conversation;
use super::{ChannelCounters, Terms};
use crate::durability::Durability;
use crate::engine::{Now, RegionMemory, StackPort};

/// One channel, ready to take requests.
pub struct Door<'a> {
    pub now: Now,
    pub number: u16,
    pub terms: &'a Terms,
    pub open: &'a mut Conversation,
    pub counters: &'a mut ChannelCounters,
    pub durability: &'a mut Durability,
}

impl Door<'_> {
    /// Buffers that the guest gives back, one record of them. Whatever is not
    /// the guest's is passed over, and the first such index refused by name.
    pub fn take_return(
        &mut self,
        mem: &mut RegionMemory,
        engine: &mut dyn StackPort,
        record: &[u8; RECORD_LEN],
    ) {
        let mut foreign = None;
        for buf in frame::indices(record) {
            if mem.pool().owner(buf) != Some(Owner::Guest(self.number)) {
                foreign = foreign.or(Some(buf));
                continue;
            }
            self.counters.returned += 1;
            give_up(self.now, mem, engine, buf, self.number);
        }
        if let Some(buf_idx) = foreign {
            self.refuse(Slot { buf_idx, ..Slot::default() }, Reason::ForeignBuffer);
        }
    }

    /// A request in a slot.
    pub fn take_request(
        &mut self,
        mem: &mut RegionMemory,
        engine: &mut dyn StackPort,
        slot: &Slot,
    ) {
        self.counters.slots_in += 1;
        if let Err(reason) = self.act_or_hold(mem, engine, slot) {
            self.refuse(*slot, reason);
        }
    }

    /// Requests of a flow go through in order: behind one that waits, they wait.
    fn act_or_hold(
        &mut self,
        mem: &mut RegionMemory,
        engine: &mut dyn StackPort,
        slot: &Slot,
    ) -> Result<(), Reason> {
        let Some(request) = slot.as_request() else {
            return Err(Reason::BadRequest);
        };
        let of_flow =
            matches!(request, Request::Data | Request::Close | Request::Abort | Request::SetOpt);
        if let Some(sealing) = self.open.sealing.as_deref().filter(|_| of_flow) {
            let durable = request == Request::Data && slot.modifiers & DURABLE != 0;
            if (durable && sealing.must_wait()?) || sealing.is_waiting(slot.flow) {
                return self.hold(mem, slot, request == Request::Data);
            }
        }
        if request == Request::Data {
            let share = self.judge_data(mem, slot)?;
            if !share {
                self.take_buffer(mem, slot)?;
            }
            return self.send(mem, engine, slot);
        }
        self.act(mem, engine, slot, request)
    }

    /// Keeps a request until the last SEAL is answered. A buffer that it gives
    /// away is the host's from now on.
    fn hold(&mut self, mem: &mut RegionMemory, slot: &Slot, is_data: bool) -> Result<(), Reason> {
        if is_data && !self.judge_data(mem, slot)? {
            self.take_buffer(mem, slot)?;
        }
        let held = self.open.sealing.as_deref_mut().is_some_and(|sealing| sealing.hold(slot));
        if held {
            self.counters.held += 1;
            return Ok(());
        }
        if is_data && !self.is_shared(slot) {
            self.give_buffer_back(mem, slot.buf_idx);
        }
        Err(Reason::StaleFlow)
    }

    /// A request that has waited long enough.
    pub fn take_held(
        &mut self,
        mem: &mut RegionMemory,
        engine: &mut dyn StackPort,
        slot: &Slot,
        durable: bool,
    ) {
        let outcome = match slot.as_request() {
            Some(Request::Data) if slot.modifiers & DURABLE != 0 && !durable => {
                if !self.is_shared(slot) {
                    self.give_buffer_back(mem, slot.buf_idx);
                }
                Err(Reason::NotDurable)
            }
            // A shared buffer may have been given up meanwhile.
            Some(Request::Data) if self.is_shared(slot) => {
                self.judge_data(mem, slot).and_then(|_| self.send(mem, engine, slot))
            }
            Some(Request::Data) => self.send(mem, engine, slot),
            Some(request) => self.act(mem, engine, slot, request),
            None => Err(Reason::BadRequest),
        };
        if let Err(reason) = outcome {
            self.refuse(*slot, reason);
        }
    }

    /// What a request without payload asks for.
    fn act(
        &mut self,
        mem: &mut RegionMemory,
        engine: &mut dyn StackPort,
        slot: &Slot,
        request: Request,
    ) -> Result<(), Reason> {
        match request {
            Request::Data | Request::Piece => Err(Reason::BadRequest),
            Request::Close => engine.close(self.now, mem, self.number, slot.flow),
            Request::Abort => engine.abort(self.now, mem, self.number, slot.flow),
            Request::SetOpt => match Opt::from_u16(slot.len) {
                Some(option) => {
                    engine.set_option(self.now, self.number, slot.flow, option, slot.cookie)
                }
                None => Err(Reason::BadRequest),
            },
            Request::Want => {
                self.open.wanted = (self.open.wanted + u32::from(slot.len)).min(WANTED_MAX);
                Ok(())
            }
            Request::Listen => {
                let listener = if slot.offset == 0 {
                    Err(Reason::BadAddress)
                } else {
                    engine.listen(self.number, slot.offset, slot.len)
                };
                self.reply(listener, slot.cookie);
                Ok(())
            }
            Request::Unlisten => {
                let listener = engine.unlisten(self.number, slot.flow).map(|()| slot.flow);
                self.reply(listener, slot.cookie);
                Ok(())
            }
            Request::Connect => {
                let remote = slot.peer();
                let cookie = slot.buf_idx;
                let flow = if remote.port() == 0 {
                    Err(Reason::BadAddress)
                } else {
                    engine.connect(self.now, self.number, remote, slot.offset, cookie)
                };
                self.reply(flow, u64::from(cookie));
                Ok(())
            }
            Request::Flush => {
                let sealing = self.open.sealing.as_deref_mut().ok_or(Reason::BadRequest)?;
                sealing.flush(slot.range(), self.terms.region_len);
                Ok(())
            }
            Request::Seal => {
                let sealing = self.open.sealing.as_deref_mut().ok_or(Reason::BadRequest)?;
                sealing.seal(slot, self.durability);
                Ok(())
            }
            Request::Store if !self.open.stores => Err(Reason::BadRequest),
            Request::Store => {
                if mem.pool().owner(slot.buf_idx) != Some(Owner::Guest(self.number)) {
                    return Err(Reason::ForeignBuffer);
                }
                engine.release(self.now, slot.buf_idx);
                self.counters.stored += 1;
                Ok(())
            }
        }
    }

    /// Buffers that the guest holds from before, one record of them. Those that
    /// nobody else has are the guest's; the others are left out of the answer.
    pub fn take_resume(&mut self, mem: &mut RegionMemory, record: &[u8; RECORD_LEN]) {
        let guest = Owner::Guest(self.number);
        let mut answer = [0; RECORD_LEN];
        let mut kept = [NO_BUFFER; frame::INDICES_PER_RECORD];
        for (kept, buf) in kept.iter_mut().zip(frame::indices(record)) {
            let is_guests = match mem.pool().owner(buf) {
                Some(Owner::Claimed) => mem.pool_mut().transfer(buf, Owner::Claimed, guest).is_ok(),
                owner => owner == Some(guest),
            };
            if is_guests {
                *kept = buf;
                self.counters.resumed += 1;
            } else {
                self.counters.resume_refused += 1;
            }
        }
        frame::write_indices(&kept, &mut answer);
        self.open.resume(answer);
    }

    fn is_shared(&self, slot: &Slot) -> bool {
        self.open.stores && slot.modifiers & SHARE != 0
    }

    /// Payload to send: the range must fit, and a buffer that stays the guest's
    /// must be. Says whether it does.
    fn judge_data(&self, mem: &RegionMemory, slot: &Slot) -> Result<bool, Reason> {
        let end = usize::from(slot.offset) + usize::from(slot.len);
        let fits = slot.offset >= self.terms.headroom
            && slot.len > 0
            && end <= mem.pool().buffers().size();
        if !fits {
            return Err(Reason::BadRange);
        }
        let share = self.is_shared(slot);
        if share && mem.pool().owner(slot.buf_idx) != Some(Owner::Guest(self.number)) {
            return Err(Reason::ForeignBuffer);
        }
        Ok(share)
    }

    /// The buffer of a DATA request becomes the stack's, if it is the guest's.
    fn take_buffer(&mut self, mem: &mut RegionMemory, slot: &Slot) -> Result<(), Reason> {
        mem.pool_mut()
            .transfer(slot.buf_idx, Owner::Guest(self.number), Owner::Stack)
            .map_err(|_| Reason::ForeignBuffer)
    }

    /// The buffer of a DATA request that was refused is the guest's as before.
    fn give_buffer_back(&mut self, mem: &mut RegionMemory, buf: u32) {
        let guest = Owner::Guest(self.number);
        let back = mem.pool_mut().transfer(buf, Owner::Stack, guest);
        debug_assert!(back.is_ok(), "a refused buffer is no longer the stack's");
    }

    /// Payload that was judged.
    fn send(
        &mut self,
        mem: &mut RegionMemory,
        engine: &mut dyn StackPort,
        slot: &Slot,
    ) -> Result<(), Reason> {
        let share = self.is_shared(slot);
        let tx = Tx {
            buf: slot.buf_idx,
            offset: slot.offset,
            len: slot.len,
            cookie: slot.cookie,
            notify: slot.modifiers & (NOTIFY | KEEP) != 0,
            keep: slot.modifiers & KEEP != 0,
            share,
        };
        if let Err(reason) = engine.send(self.now, mem, self.number, slot.flow, &tx) {
            if !share {
                self.give_buffer_back(mem, slot.buf_idx);
            }
            return Err(reason);
        }
        self.counters.data_in += 1;
        Ok(())
    }

    fn reply(&mut self, outcome: Result<paste_abi::Flow, Reason>, cookie: u64) {
        let (flow, reason) = match outcome {
            Ok(flow) => (flow, Reason::Ok),
            Err(reason) => (paste_abi::Flow::default(), reason),
        };
        self.open.reply(Slot { len: reason as u16, cookie, ..Slot::event(Event::Reply, flow) });
    }

    fn refuse(&mut self, slot: Slot, reason: Reason) {
        match reason {
            Reason::ForeignBuffer => self.counters.foreign_buffer += 1,
            Reason::BadRange => self.counters.bad_range += 1,
            Reason::StaleFlow => self.counters.stale_flow += 1,
            Reason::FlowFull => self.counters.flow_full += 1,
            Reason::NotDurable => self.counters.not_durable += 1,
            _ => self.counters.refused += 1,
        }
        self.open.reply(Slot { kind: Event::Refused as u8, len: reason as u16, ..slot });
    }
}

/// Takes a buffer that a guest gives up: to the pool, unless it is claimed, or
/// still under way to a peer.
pub fn give_up(
    now: Now,
    mem: &mut RegionMemory,
    engine: &mut dyn StackPort,
    buf: u32,
    channel: u16,
) {
    let guest = Owner::Guest(channel);
    let sending = engine.release(now, buf);
    let pool = mem.pool_mut();
    let moved = if !sending {
        pool.give(buf, guest)
    } else if pool.is_claimed(buf) {
        // Nobody writes to it, so what is under way may be.
        pool.transfer(buf, guest, Owner::Claimed)
    } else {
        engine.retire(buf);
        pool.transfer(buf, guest, Owner::Stack)
    };
    debug_assert!(moved.is_ok(), "the guest had buffer {buf}");
}

/// Gives the buffers of what still waits back to the guest, whose channel ends.
pub fn take_back_held(mem: &mut RegionMemory, open: &mut Conversation, channel: u16) {
    let stores = open.stores;
    let held = open.sealing.iter_mut().flat_map(|sealing| sealing.drain());
    for slot in held.filter(|slot| slot.as_request() == Some(Request::Data)) {
        if !(stores && slot.modifiers & SHARE != 0) {
            let back = mem.pool_mut().transfer(slot.buf_idx, Owner::Stack, Owner::Guest(channel));
            debug_assert!(back.is_ok(), "what waits is no longer the stack's");
        }
    }
}
