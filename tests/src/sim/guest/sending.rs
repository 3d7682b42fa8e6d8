//! What guests send, and what they are told of it later.

use std::cmp::Reverse;

use paste_abi::slot::KEEP;
use paste_abi::{Reason, Slot};
use paste_stack::{Memory, Tx};

use super::{Endpoint, Guests, MARK, World};
use crate::sim::host::Host;
use crate::sim::memory::Owner;
use crate::sim::pattern::{self, Stored};
use crate::sim::scenario::OFFSETS;

/// Chance that a buffer is given up after a shared send.
const GIVEN_UP: f64 = 0.02;

/// What comes back with an ACKED.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owed {
    Nothing,
    /// The buffer, which was the stack's.
    Kept(Kept),
    /// A share of this buffer.
    Share(u32),
}

/// A kept buffer and what is in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    buf: u32,
    offset: u16,
    len: u16,
    at: u64,
}

impl Endpoint {
    /// So much was queued; ACKED is to come if something is owed.
    fn queued(&mut self, len: u16, owed: Option<(u64, Owed)>) {
        self.awaited.extend(owed);
        self.sent += u64::from(len);
        self.sent_in_step += u64::from(len);
    }
}

impl Guests {
    /// Sends what there is room for; returns whether the step is done.
    pub(super) fn send(
        &mut self,
        now: u64,
        index: usize,
        total: u64,
        host: &mut Host,
        world: &World,
    ) -> bool {
        let (attempt, side) = self.endpoints[index].role.expect("strangers are told nothing");
        let stream = world.stream(attempt, side);
        while self.endpoints[index].sent_in_step < total {
            if self.endpoints[index].blocked {
                return false;
            }
            let most = total - self.endpoints[index].sent_in_step;
            let sent = match stream.stored {
                Some(stored) => self.send_shared(now, index, most, &stored, stream.key, host),
                None => self.send_fresh(now, index, most, stream.key, host),
            };
            if !sent {
                return false;
            }
        }
        true
    }

    /// A buffer to be written to.
    fn take_buffer(&mut self, index: usize, host: &mut Host) -> Option<u32> {
        let endpoint = &self.endpoints[index];
        // Half the buffers are left to what arrives, or two ends that only
        // send would wait for each other's acknowledgements forever. The
        // buffer of a request, which is the guest's already, may be used.
        match self.reading.peek() {
            Some(&Reverse((_, buf, owner)))
                if endpoint.manner.reuse && owner == endpoint.channel =>
            {
                self.reading.pop();
                Some(buf)
            }
            _ if host.memory.free() <= host.memory.buffer_count() / 2 => None,
            _ => host.memory.take_for(Owner::Guest),
        }
    }

    /// Where payload begins in a buffer.
    fn any_offset(&mut self, host: &Host) -> usize {
        let headroom = usize::from(self.headroom);
        let room = (host.memory.buffer_size() - headroom) as u64 / 2;
        headroom + self.draw.range(0, room.min(OFFSETS as u64)) as usize
    }

    /// Sends one slot of at most `total` bytes, written for it; returns whether.
    fn send_fresh(
        &mut self,
        now: u64,
        index: usize,
        total: u64,
        key: u64,
        host: &mut Host,
    ) -> bool {
        let (clock, size) = (host.clock(now), host.memory.buffer_size());
        let Some(buf) = self.take_buffer(index, host) else { return false };
        let offset = self.any_offset(host);
        let endpoint = &mut self.endpoints[index];
        let most = endpoint.manner.slot_max.min((size - offset) as u64);
        let len = self.draw.range(1, most).min(total) as usize;
        pattern::fill(key, endpoint.sent, host.memory.bytes_mut(buf, offset, len));
        let keep = self.draw.chance(endpoint.manner.keep);
        let notify = keep || self.draw.chance(endpoint.manner.notify);
        if keep {
            host.memory.bytes_mut(buf, 0, offset).fill(MARK);
        }
        self.cookie += 1;
        let (offset, len) = (offset as u16, len as u16);
        let tx = Tx { buf, offset, len, cookie: self.cookie, notify, keep, share: false };
        host.memory.pass(Owner::Guest, Owner::Stack, buf);
        match host.stack.send(&mut host.memory, clock, endpoint.channel, endpoint.flow, &tx) {
            Ok(()) => {
                let kept = Kept { buf, offset, len, at: endpoint.sent };
                let owed = if keep { Owed::Kept(kept) } else { Owed::Nothing };
                endpoint.queued(len, notify.then_some((self.cookie, owed)));
                true
            }
            Err(refusal) => {
                host.memory.pass(Owner::Stack, Owner::Guest, buf);
                self.reading.push(Reverse((now, buf, endpoint.channel)));
                match refusal {
                    // Until WRITABLE, or until its end reaches the guest.
                    Reason::FlowFull | Reason::Closed => endpoint.blocked = true,
                    reason => panic!("send: {reason}"),
                }
                false
            }
        }
    }

    /// Sends one slot of at most `total` bytes out of what is stored; returns
    /// whether.
    fn send_shared(
        &mut self,
        now: u64,
        index: usize,
        total: u64,
        stored: &Stored,
        key: u64,
        host: &mut Host,
    ) -> bool {
        let clock = host.clock(now);
        let channel = self.endpoints[index].channel;
        let Some((buf, start)) = self.store(now, index, stored, host) else { return false };
        let endpoint = &mut self.endpoints[index];
        let (place, left) = stored.place(key, endpoint.sent);
        let most = endpoint.manner.slot_max.min(left);
        let len = self.draw.range(1, most).min(total) as u16;
        self.cookie += 1;
        let tx = Tx {
            buf,
            offset: start + place as u16,
            len,
            cookie: self.cookie,
            // It is told of anyway, and shared whatever else is asked for.
            notify: self.draw.chance(endpoint.manner.notify),
            keep: self.draw.chance(endpoint.manner.keep),
            share: true,
        };
        match host.stack.send(&mut host.memory, clock, channel, endpoint.flow, &tx) {
            Ok(()) => {
                endpoint.queued(len, Some((self.cookie, Owed::Share(buf))));
                self.stores.shared(buf, host);
                if self.draw.chance(GIVEN_UP) {
                    self.stores.give_up(now, channel, self.draw.chance(0.5), host);
                }
                return true;
            }
            Err(Reason::FlowFull | Reason::Closed) => endpoint.blocked = true,
            // Until another send has ended.
            Err(Reason::NoRoom) => self.stores.refused(),
            Err(reason) => panic!("send: {reason}"),
        }
        false
    }

    /// The buffer that the guest of a flow sends from, stored now if there is none.
    fn store(
        &mut self,
        now: u64,
        index: usize,
        stored: &Stored,
        host: &mut Host,
    ) -> Option<(u32, u16)> {
        let channel = self.endpoints[index].channel;
        if let Some(kept) = self.stores.kept(channel) {
            return Some(kept);
        }
        let buf = self.take_buffer(index, host)?;
        // One that something arrived in is kept for good.
        assert!(!host.stack.release(host.clock(now), buf), "a send of {buf} is under way");
        let start = self.any_offset(host) as u16;
        self.stores.keep(buf, channel, start, stored, host);
        Some((buf, start))
    }

    /// ACKED comes once for each slot that asked for it, in order, and a kept or
    /// shared buffer is as it was given.
    pub(super) fn acked(
        &mut self,
        now: u64,
        index: usize,
        slot: &Slot,
        host: &mut Host,
        world: &World,
    ) {
        let endpoint = &mut self.endpoints[index];
        let acknowledged = slot.len == Reason::Ok as u16;
        let owed = loop {
            let Some((cookie, owed)) = endpoint.awaited.pop_front() else {
                panic!("ACKED of {}, which nobody waits for", slot.cookie);
            };
            if cookie == slot.cookie {
                break owed;
            }
            // A flow that ended tells of kept and shared buffers only.
            let told = acknowledged || !matches!(owed, Owed::Nothing);
            assert!(!told, "ACKED of {cookie} is missing");
        };
        let (attempt, side) = endpoint.role.expect("strangers are told nothing");
        let stream = world.stream(attempt, side);
        match owed {
            Owed::Nothing => assert_eq!(slot.modifiers, 0, "ACKED of a buffer given away"),
            Owed::Kept(Kept { buf, offset, len, at }) => {
                assert_eq!((slot.modifiers, slot.buf_idx), (KEEP, buf), "ACKED of a kept buffer");
                host.memory.pass(Owner::Stack, Owner::Guest, buf);
                let bytes = host.memory.bytes(buf, usize::from(offset), usize::from(len));
                assert_eq!(stream.difference(at, bytes), None, "a kept buffer");
                let before = host.memory.bytes(buf, 0, usize::from(offset));
                let marked = before.iter().all(|&byte| byte == MARK);
                assert!(marked, "headroom of a kept buffer was written to");
                host.memory.give_from(Owner::Guest, buf);
            }
            Owed::Share(buf) => {
                let stored = stream.stored.expect("a stream that is stored");
                self.stores.acked(now, buf, slot, &stored, host);
            }
        }
    }
}
