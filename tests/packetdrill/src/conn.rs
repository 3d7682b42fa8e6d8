//! One end of a connection as a socket sees it: bytes received and not read,
//! bytes written and not yet given to the stack, and how it ended.
//!
//! The stack sends a slot as soon as the windows allow. What a kernel's socket
//! does before that is here: the send buffer, Nagle's algorithm, TCP_CORK.

use core::net::SocketAddr;
use std::collections::VecDeque;

use paste_abi::{Flow, Reason};
use paste_stack::FlowInfo;
use paste_stack::config::MS;

use crate::errno::Errno;
use crate::net::Net;
use crate::options::Options;

/// Longest that TCP_CORK holds a part of a segment back (tcp(7)).
const CORK_MAX: u64 = 200 * MS;
/// Cookies: whether the slot filled its last segment.
const WHOLE: u64 = 0;
const SMALL: u64 = 1;

/// Received bytes in a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chunk {
    pub buf: u32,
    pub offset: u16,
    pub len: u16,
}

/// A connection, or what is left of one.
#[derive(Debug, Default)]
pub(crate) struct Conn {
    /// The stack's name for it, until the stack has said that it is over.
    pub flow: Option<Flow>,
    pub peer: Option<SocketAddr>,
    /// The handshake is complete.
    pub connected: bool,
    /// No descriptor refers to it any more.
    pub orphan: bool,
    /// What the next call reports.
    pub error: Option<Errno>,
    /// Grows with whatever can make a wait end, for edge-triggered epoll.
    pub activity: u64,

    pub rx: VecDeque<Chunk>,
    /// The peer's FIN came.
    pub peer_closed: bool,
    pub shut_read: bool,

    /// Written, and not the stack's yet.
    pub tx: VecDeque<u8>,
    /// Bytes of `tx` up to each end of a record (MSG_EOR): what follows goes in
    /// other segments.
    records: VecDeque<usize>,
    /// What is in `tx` now goes without waiting: TCP_NODELAY was just set.
    pub push: bool,
    /// When payload was received last, or the handshake completed, ns.
    pub received_at: u64,
    /// Slots in flight that did not fill their last segment.
    small: u32,
    pub shut_write: bool,
    fin_given: bool,
    pub nodelay: bool,
    pub cork: bool,
    /// The last write said MSG_MORE.
    pub more: bool,
    /// Until when a part of a segment is held back by `cork` or `more`.
    corked_until: Option<u64>,
}

impl Conn {
    pub(crate) fn new(peer: SocketAddr, connected: bool, options: &Options) -> Conn {
        let (nodelay, cork) = (options.nodelay, options.cork);
        Conn { peer: Some(peer), connected, nodelay, cork, ..Conn::default() }
    }

    /// Bytes that can be read.
    pub(crate) fn readable(&self) -> usize {
        self.rx.iter().map(|c| usize::from(c.len)).sum()
    }

    /// The flow as the stack sees it.
    pub(crate) fn info(&self, net: Option<&Net>) -> Option<FlowInfo> {
        net?.stack.flow_info(0, self.flow?).ok()
    }

    /// Bytes written and not sent, and bytes written and not acknowledged.
    pub(crate) fn queued(&self, net: Option<&Net>) -> (usize, usize) {
        let info = self.info(net);
        let unsent = self.tx.len() + info.map_or(0, |i| i.unsent as usize);
        (unsent, unsent + info.map_or(0, |i| i.unacknowledged as usize))
    }

    /// Whether nothing more can be read than what is here.
    pub(crate) fn read_ended(&self) -> bool {
        self.peer_closed || self.shut_read || self.is_over()
    }

    /// Whether nothing more can be written.
    pub(crate) fn write_ended(&self) -> bool {
        self.shut_write || self.is_over()
    }

    /// Whether the stack has forgotten it.
    pub(crate) fn is_over(&self) -> bool {
        self.flow.is_none()
    }

    /// Whether it can be forgotten here too.
    pub(crate) fn is_done(&self) -> bool {
        self.orphan && self.is_over()
    }

    /// When [`Conn::pump`] has something to do though nothing happened.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.corked_until
    }

    /// The stack has ended the flow.
    pub(crate) fn end(&mut self, reason: Reason) {
        self.error = self.error.or(Errno::of_end(reason, self.peer_closed));
        self.flow = None;
        self.tx.clear();
        self.activity += 1;
    }

    /// The peer has acknowledged a slot.
    pub(crate) fn acknowledged(&mut self, cookie: u64) {
        self.small -= u32::from(cookie == SMALL);
        self.activity += 1;
    }

    /// Gives the stack what is due, and returns whether it was anything.
    pub(crate) fn pump(&mut self, net: &mut Net, now: u64) -> bool {
        let Some(flow) = self.flow.filter(|_| self.connected) else {
            return false;
        };
        let mut any = false;
        if let Ok(info) = net.stack.flow_info(0, flow) {
            any = self.pump_bytes(net, now, flow, usize::from(info.mss.max(1)));
        }
        if self.tx.is_empty() {
            self.corked_until = None;
            self.push = false;
            if self.shut_write && !self.fin_given {
                self.fin_given = true;
                any |= net.close(now, flow).is_ok();
            }
        }
        any
    }

    fn pump_bytes(&mut self, net: &mut Net, now: u64, flow: Flow, mss: usize) -> bool {
        let mut any = false;
        while !self.tx.is_empty() {
            let record = self.records.front().copied();
            let due = record.unwrap_or(self.tx.len());
            // Nobody waits for more of a record that has ended.
            let whole =
                if record.is_some_and(|end| end < self.tx.len()) { due } else { due - due % mss };
            let len = if self.may_send_part(now) { due } else { whole };
            if len == 0 {
                break;
            }
            let len = len.min(Net::SLOT_MAX - Net::SLOT_MAX % mss);
            let bytes: Vec<u8> = self.tx.iter().copied().take(len).collect();
            let small = !len.is_multiple_of(mss);
            let cookie = if small { SMALL } else { WHOLE };
            if net.send(now, flow, &bytes, cookie).is_err() {
                break;
            }
            self.tx.drain(..len);
            for end in &mut self.records {
                *end -= len;
            }
            self.records.retain(|&end| end > 0);
            self.small += u32::from(small);
            self.corked_until = None;
            any = true;
        }
        any
    }

    /// Whether a segment that is not full may go: RFC 9293 section 3.7.4, as
    /// amended by Minshall and as Linux has it, where only a small segment in
    /// flight holds the next one back.
    fn may_send_part(&mut self, now: u64) -> bool {
        if self.shut_write || self.push {
            return true;
        }
        if self.cork || self.more {
            return *self.corked_until.get_or_insert(now + CORK_MAX) <= now;
        }
        self.nodelay || self.small == 0
    }

    /// What was written so far is a record.
    pub(crate) fn end_record(&mut self) {
        if !self.tx.is_empty() {
            self.records.push_back(self.tx.len());
        }
    }

    /// Drops what was received and not read.
    pub(crate) fn discard(&mut self, net: &mut Net, now: u64) {
        for chunk in self.rx.drain(..) {
            net.release(now, chunk.buf);
        }
    }
}
