//! What the guest sends: queued buffers of a flow go to the kernel several at once, one
//! send at a time, so that they keep their order.

use std::os::fd::AsFd;

use paste_abi::Reason;
use paste_stack::{Memory, Tx};

use super::bufs::{Place, Queue, Told};
use super::flows::{Busy, State};
use super::lists::NIL;
use super::ring::{Completion, Copying, PARTS_MAX, Part};
use super::{RegionMemory, SocketsEngine, event, socket};

/// Buffers that may wait in one flow's send queue, or be the kernel's.
const QUEUE_MAX: u16 = 1024;
/// The least that is sent without a copy, in bytes. A send without a copy pins pages and
/// is completed twice; the kernel's documentation finds that it pays from about 10 KB on
/// (Documentation/networking/msg_zerocopy.rst), for whole pages. Here a buffer is half of
/// one, so that as many bytes pin up to twice as many.
pub const ZERO_COPY_MIN: usize = 16 << 10;
/// Sends without a copy under way at once, of all flows; beyond it they are copied.
const NOTICES_MAX: u32 = 1024;

/// A send without a copy, until the kernel has released its buffers.
#[derive(Clone, Copy, Debug)]
struct Notice {
    /// The flow, or [`NIL`]: the record is free.
    flow: u32,
    /// Buffers in the flow's `sent` that wait for it.
    bufs: u32,
    /// It has.
    released: bool,
    next_free: u32,
}

const FREE: Notice = Notice { flow: NIL, bufs: 0, released: false, next_free: NIL };

/// All of them.
#[derive(Debug)]
pub(super) struct Notices {
    records: Box<[Notice]>,
    free: u32,
    /// The kernel says whether it has copied.
    tells: bool,
    /// The kernel sends without a copy at all.
    works: bool,
}

impl Notices {
    pub(super) fn new() -> Notices {
        let next = |index| if index + 1 == NOTICES_MAX { NIL } else { index + 1 };
        let records = (0..NOTICES_MAX).map(|index| Notice { next_free: next(index), ..FREE });
        Notices { records: records.collect(), free: 0, tells: true, works: true }
    }

    fn alloc(&mut self, flow: u32) -> Option<u32> {
        let index = self.free;
        let record = self.records.get_mut(index as usize).filter(|_| self.works)?;
        self.free = record.next_free;
        *record = Notice { flow, ..FREE };
        Some(index)
    }

    fn free(&mut self, index: u32) {
        self.records[index as usize] = Notice { next_free: self.free, ..FREE };
        self.free = index;
    }

    fn get_mut(&mut self, index: u32) -> &mut Notice {
        &mut self.records[index as usize]
    }

    /// The flow of a record in use.
    fn flow(&self, index: u32) -> Option<u32> {
        let flow = self.records.get(index as usize)?.flow;
        (flow != NIL).then_some(flow)
    }
}

impl SocketsEngine {
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
        let size = mem.buffer_size();
        let (buf, charged) = self.bufs.begin_send(tx, self.headroom, size)?;
        self.discharge(charged);
        let flow = &mut self.flows[index];
        self.bufs.push(&mut flow.tx, buf);
        flow.tx_len += 1;
        self.kick(index);
        Ok(())
    }

    /// Gives the kernel what is queued, as much as goes at once.
    pub(super) fn send_queued(&mut self, index: u32) {
        let flow = &mut self.flows[index];
        let Some(socket) = flow.socket.as_ref().filter(|_| !flow.halved) else { return };
        let queued = || self.bufs.walk(flow.tx).take(PARTS_MAX);
        let bytes: usize = queued().map(|(_, record)| usize::from(record.len)).sum();
        let count = queued().count();
        let worth = bytes >= ZERO_COPY_MIN && !flow.copies;
        flow.notice = worth.then(|| self.notices.alloc(index)).flatten().unwrap_or(NIL);
        let (copying, token) = match flow.notice {
            NIL => (Copying::Yes, index),
            notice if self.notices.tells => (Copying::NoAndTell, notice),
            notice => (Copying::No, notice),
        };
        let parts = self.bufs.walk(flow.tx).map(|(buf, record)| Part {
            buf: self.bufs.real(buf),
            offset: record.offset,
            len: record.len,
        });
        self.ring.send(socket.as_fd(), parts, copying, token);
        flow.sending = Busy::Yes;
        self.counters.sends += 1;
        self.counters.gathered += u64::from(count > 1);
        self.counters.zero_copy += u64::from(copying != Copying::Yes);
    }

    /// The kernel has taken what was sent, or not, and is done with the buffers.
    pub(super) fn on_send(&mut self, mem: &mut RegionMemory, index: u32, result: i32) {
        match usize::try_from(result) {
            Ok(sent) => {
                self.counters.bytes_out += sent as u64;
                self.take_sent(mem, index, sent, NIL);
            }
            Err(_) => self.send_failed(mem, index, -result),
        }
        self.after_send(mem, index);
    }

    /// The same of a send without a copy, of which the kernel may still have the buffers;
    /// or it has released them.
    pub(super) fn on_send_zc(&mut self, mem: &mut RegionMemory, completion: &Completion) {
        let notice = completion.index;
        let Some(index) = self.notices.flow(notice) else {
            self.counters.strange += 1;
            return;
        };
        let flow = &mut self.flows[index];
        if let Some(notification) = completion.notification() {
            if notification.copied {
                // A device that cannot gather, or a loop: it will not change.
                flow.copies = true;
                self.counters.zero_copy_copied += 1;
            }
            flow.notices -= 1;
            if flow.notices == 0 && std::mem::take(&mut flow.halved) {
                self.kick(index);
            }
            let record = self.notices.get_mut(notice);
            record.released = true;
            if record.bufs == 0 {
                self.notices.free(notice);
            }
            self.settle_sent(mem, index);
            return self.end(mem, index);
        }
        flow.sending = Busy::No;
        flow.notice = NIL;
        let pinned = completion.more();
        flow.notices += u16::from(pinned);
        match usize::try_from(completion.result) {
            Ok(sent) => {
                self.counters.bytes_out += sent as u64;
                self.take_sent(mem, index, sent, if pinned { notice } else { NIL });
            }
            Err(_) => match -completion.result {
                // Before Linux 6.2 it does not tell; and a protocol may know nothing of it.
                libc::EINVAL if self.notices.tells => self.notices.tells = false,
                libc::EINVAL | libc::EOPNOTSUPP => self.notices.works = false,
                // More pages pinned than this user may.
                libc::ENOBUFS | libc::ENOMEM => flow.copies = true,
                errno => self.send_failed(mem, index, errno),
            },
        }
        if !pinned {
            self.notices.free(notice);
        }
        self.after_send(mem, index);
    }

    fn send_failed(&mut self, mem: &mut RegionMemory, index: u32, errno: i32) {
        if matches!(errno, libc::EINTR | libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) {
            return;
        }
        self.terminate(mem, index, socket::reason(errno));
    }

    /// Sends what is next, or lets a flow end that waits for it.
    fn after_send(&mut self, mem: &mut RegionMemory, index: u32) {
        if self.flows[index].state == State::Ending {
            self.drop_sending(mem, index);
        }
        self.kick(index);
    }

    /// Takes `sent` bytes from the front of the queue; the kernel is done with their
    /// buffers, or will give `notice`.
    fn take_sent(&mut self, mem: &mut RegionMemory, index: u32, sent: usize, notice: u32) {
        let mut left = sent;
        while left > 0 {
            let flow = &mut self.flows[index];
            if flow.tx.is_empty() {
                self.counters.strange += 1;
                break;
            }
            let record = self.bufs.get_mut(flow.tx.head);
            if left < usize::from(record.len) {
                record.offset += left as u16;
                record.len -= left as u16;
                flow.halved = notice != NIL;
                break;
            }
            left -= usize::from(record.len);
            record.flow = notice;
            if notice != NIL {
                self.notices.get_mut(notice).bufs += 1;
            }
            let Some(buf) = self.bufs.pop(&mut flow.tx) else { break };
            self.bufs.push(&mut flow.sent, buf);
        }
        self.settle_sent(mem, index);
    }

    /// Finishes what the kernel is done with, in the order in which it was sent, as the
    /// peer acknowledges it: what went with a copy waits for what went without before it.
    fn settle_sent(&mut self, mem: &mut RegionMemory, index: u32) {
        let reason = self.reason_of_sent(index);
        while !self.flows[index].sent.is_empty() {
            let notice = self.bufs.get(self.flows[index].sent.head).flow;
            if notice != NIL {
                let record = self.notices.get_mut(notice);
                if !record.released {
                    return;
                }
                record.bufs -= 1;
                if record.bufs == 0 {
                    self.notices.free(notice);
                }
            }
            if let Some(buf) = self.bufs.pop(&mut self.flows[index].sent) {
                self.finish(mem, index, buf, reason);
            }
        }
    }

    /// What the guest is told of payload that the kernel has taken: when the flow was
    /// reset meanwhile, the peer may never see it.
    fn reason_of_sent(&self, index: u32) -> Reason {
        let flow = &self.flows[index];
        let ended = matches!(flow.state, State::Ending | State::Closed);
        if ended { flow.reason } else { Reason::Ok }
    }

    /// The kernel is done with a buffer: it is the pool's, or the guest is to be told.
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
    pub(super) fn give_sent(&mut self, mem: &mut RegionMemory, buf: u32) {
        self.bufs.end_send(buf).into_iter().for_each(|buf| mem.give(buf));
    }

    /// Gives up what was not sent; the kernel has none of it.
    pub(super) fn drop_sending(&mut self, mem: &mut RegionMemory, index: u32) {
        let reason = match self.flows[index].reason {
            // An orderly end leaves nothing, but for a flow that was never opened.
            Reason::Ok => Reason::Aborted,
            reason => reason,
        };
        let mut queue = std::mem::replace(&mut self.flows[index].tx, Queue::EMPTY);
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
