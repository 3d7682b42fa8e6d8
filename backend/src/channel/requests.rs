//! The door: every request of a guest is judged here before the stack port is
//! asked, and every refusal is counted and told.

use paste_abi::frame::{self, RECORD_LEN};
use paste_abi::slot::{KEEP, NOTIFY, Opt};
use paste_abi::{Event, Reason, Request, Slot};
use paste_pmem::Owner;
use paste_stack::Tx;

use super::conversation::Conversation;
use super::{ChannelCounters, Terms};
use crate::engine::{Now, RegionMemory, StackPort};

/// Buffers that one WANT may leave waiting.
const WANTED_MAX: u32 = 4096;

/// One channel, ready to take requests.
pub struct Door<'a> {
    pub now: Now,
    pub number: u16,
    pub terms: &'a Terms,
    pub open: &'a mut Conversation,
    pub counters: &'a mut ChannelCounters,
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
            if mem.pool_mut().give(buf, Owner::Guest(self.number)).is_ok() {
                self.counters.returned += 1;
                engine.release(self.now, buf);
            } else {
                foreign = foreign.or(Some(buf));
            }
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
        let outcome = match slot.as_request() {
            Some(Request::Data) => self.data(mem, engine, slot),
            Some(Request::Close) => engine.close(self.now, mem, self.number, slot.flow),
            Some(Request::Abort) => engine.abort(self.now, mem, self.number, slot.flow),
            Some(Request::SetOpt) => match Opt::from_u16(slot.len) {
                Some(option) => {
                    engine.set_option(self.now, self.number, slot.flow, option, slot.cookie)
                }
                None => Err(Reason::BadRequest),
            },
            Some(Request::Want) => {
                self.open.wanted = (self.open.wanted + u32::from(slot.len)).min(WANTED_MAX);
                Ok(())
            }
            Some(Request::Listen) => {
                let listener = if slot.offset == 0 {
                    Err(Reason::BadAddress)
                } else {
                    engine.listen(self.number, slot.offset, slot.len)
                };
                return self.reply(listener, slot.cookie);
            }
            Some(Request::Unlisten) => {
                let listener = engine.unlisten(self.number, slot.flow).map(|()| slot.flow);
                return self.reply(listener, slot.cookie);
            }
            Some(Request::Connect) => {
                let remote = slot.peer();
                let cookie = slot.buf_idx;
                let flow = if remote.port() == 0 {
                    Err(Reason::BadAddress)
                } else {
                    engine.connect(self.now, self.number, remote, slot.offset, cookie)
                };
                return self.reply(flow, u64::from(cookie));
            }
            None => Err(Reason::BadRequest),
        };
        if let Err(reason) = outcome {
            self.refuse(*slot, reason);
        }
    }

    /// Payload to send: the range must fit and the buffer must be the guest's.
    fn data(
        &mut self,
        mem: &mut RegionMemory,
        engine: &mut dyn StackPort,
        slot: &Slot,
    ) -> Result<(), Reason> {
        let end = usize::from(slot.offset) + usize::from(slot.len);
        let fits = slot.offset >= self.terms.headroom
            && slot.len > 0
            && end <= mem.pool().buffers().size();
        if !fits {
            return Err(Reason::BadRange);
        }
        let guest = Owner::Guest(self.number);
        mem.pool_mut()
            .transfer(slot.buf_idx, guest, Owner::Stack)
            .map_err(|_| Reason::ForeignBuffer)?;
        let tx = Tx {
            buf: slot.buf_idx,
            offset: slot.offset,
            len: slot.len,
            cookie: slot.cookie,
            notify: slot.modifiers & (NOTIFY | KEEP) != 0,
            keep: slot.modifiers & KEEP != 0,
        };
        if let Err(reason) = engine.send(self.now, mem, self.number, slot.flow, &tx) {
            let back = mem.pool_mut().transfer(slot.buf_idx, Owner::Stack, guest);
            debug_assert!(back.is_ok(), "a refused buffer is no longer the stack's");
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
            _ => self.counters.refused += 1,
        }
        self.open.reply(Slot { kind: Event::Refused as u8, len: reason as u16, ..slot });
    }
}
