//! What the guest is told. It lies in the flows, as bits and as queues of buffers, until
//! the guest has room for it.

use paste_abi::{Event, Flow, Slot};
use paste_stack::Memory;

use super::flows::Links;
use super::lists::NIL;
use super::{RegionMemory, SocketsEngine, event};

impl SocketsEngine {
    /// Moves what `channel` is to be told into `out`, in order for each flow.
    pub(super) fn tell(&mut self, mem: &mut RegionMemory, channel: u16, out: &mut [Slot]) -> usize {
        let channel = usize::from(channel);
        if channel >= self.channels.len() {
            return 0;
        }
        let mut count = 0;
        while count < out.len() {
            let ready = &mut self.channels[channel].ready;
            let Some(index) = self.flows.lists.pop_front(ready, Links::Ready) else { break };
            let name = self.flows.name(index);
            let mut ended = false;
            while count < out.len() && !ended {
                let Some(slot) = self.next_slot(mem, index, name) else { break };
                ended = matches!(slot.as_event(), Some(Event::Reset | Event::Closed));
                out[count] = slot;
                count += 1;
            }
            if ended {
                self.detach(mem, index);
                self.end(mem, index);
            } else if count == out.len() {
                // It may have more, and others go first.
                self.mark_ready(index);
            }
        }
        count
    }

    /// What the guest is to be told next about a flow.
    fn next_slot(&mut self, mem: &mut RegionMemory, index: u32, name: Flow) -> Option<Slot> {
        let flow = &mut self.flows[index];
        if flow.events & event::ACCEPTED != 0 {
            flow.events &= !event::ACCEPTED;
            let slot = Slot::accepted(name, Flow(flow.listener), flow.peer, flow.local_port);
            self.leave_backlog(index);
            return Some(slot);
        }
        if flow.events & event::CONNECTED != 0 {
            flow.events &= !event::CONNECTED;
            let cookie = u64::from(flow.opener);
            return Some(Slot { cookie, ..Slot::event(Event::Connected, name) });
        }
        if let Some(buf) = self.bufs.pop(&mut flow.rx) {
            return Some(self.bufs.deliver(buf, name));
        }
        if flow.events & event::FIN != 0 {
            flow.events &= !event::FIN;
            return Some(Slot::event(Event::Fin, name));
        }
        if let Some(buf) = self.bufs.pop(&mut flow.done) {
            let (slot, over) = self.bufs.acked(buf, name);
            over.into_iter().for_each(|buf| mem.give(buf));
            return Some(slot);
        }
        if flow.events & event::WRITABLE != 0 {
            flow.events &= !event::WRITABLE;
            return Some(Slot::event(Event::Writable, name));
        }
        if flow.events & event::RESET != 0 {
            return Some(Slot { len: flow.reason as u16, ..Slot::event(Event::Reset, name) });
        }
        (flow.events & event::CLOSED != 0).then(|| Slot::event(Event::Closed, name))
    }

    /// The flow was told to its guest, or is gone before.
    pub(super) fn leave_backlog(&mut self, index: u32) {
        let listener = std::mem::replace(&mut self.flows[index].listener, NIL);
        if listener != NIL {
            self.listeners.leave(Flow(listener));
        }
    }
}
