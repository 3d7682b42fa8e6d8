//! What an application asks of a channel: listening, connecting, sending, and
//! buffers.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use paste_abi::slot::{KEEP, NOTIFY, Opt, Request, WANTED_MAX};
use paste_abi::{Flow, Slot};

use super::{Channel, KEPT_MAX, SendOptions, Stats};
use crate::buffer::Buffer;
use crate::error::{Busy, ListenError, SendCause, SendError};
use crate::event::Event;
use crate::sys::{self, Mapping};
use crate::transport::Timeout;

impl Channel {
    /// Queues a slot, after moving older ones into frames if that makes room.
    pub(super) fn queue(&mut self, slot: &Slot) -> Result<(), Busy> {
        if self.conversation.push(slot) {
            return Ok(());
        }
        // A transport that fails here fails again in the next poll, which says so.
        let moved =
            self.conversation.is_open() && self.push_frames().is_ok_and(|frames| frames > 0);
        if moved && self.conversation.push(slot) { Ok(()) } else { Err(Busy) }
    }

    fn cookie(&mut self) -> u32 {
        self.next_cookie = self.next_cookie.wrapping_add(1);
        self.next_cookie
    }

    /// Listens on a TCP port and waits for the host's answer. Events that
    /// arrive meanwhile are kept for [`Channel::next_event`].
    ///
    /// `backlog` is the number of flows that may be on their way to being
    /// established.
    pub fn listen(&mut self, port: u16, backlog: u16) -> Result<Flow, ListenError> {
        let cookie = self.request_listen(port, backlog)?;
        let deadline = sys::monotonic() + self.options.answer_timeout;
        loop {
            let left = deadline.saturating_sub(sys::monotonic());
            if left.is_zero() || self.kept.len() >= KEPT_MAX {
                return Err(ListenError::TimedOut);
            }
            if let Err(error) = self.turn(Timeout::After(left)) {
                self.fail(error);
            }
            while self.kept.len() < KEPT_MAX {
                match self.read_event() {
                    None => break,
                    Some(Event::Reply { cookie: answered, result }) if answered == cookie => {
                        return result.map_err(ListenError::Refused);
                    }
                    Some(Event::Lost { cause }) => {
                        self.kept.push_back(Event::Lost { cause });
                        return Err(ListenError::Lost(cause));
                    }
                    Some(event) => self.kept.push_back(event),
                }
            }
        }
    }

    /// Asks to listen, without waiting: [`Event::Reply`] with the returned
    /// cookie tells the outcome.
    pub fn request_listen(&mut self, port: u16, backlog: u16) -> Result<u64, Busy> {
        let cookie = u64::from(self.cookie());
        self.queue(&Slot::listen(port, backlog, cookie))?;
        Ok(cookie)
    }

    /// Asks to stop accepting: [`Event::Reply`] with the returned cookie tells
    /// when that is done. Flows already accepted go on.
    pub fn unlisten(&mut self, listener: Flow) -> Result<u64, Busy> {
        let cookie = u64::from(self.cookie());
        self.queue(&Slot { cookie, ..Slot::request(Request::Unlisten, listener) })?;
        Ok(cookie)
    }

    /// Asks for a connection to `remote`, from `local_port` or any (0).
    /// [`Event::Reply`] with the returned cookie names the flow or tells why
    /// there is none; [`Event::Connected`] with the same cookie follows when
    /// the peer has answered.
    pub fn connect(&mut self, remote: SocketAddr, local_port: u16) -> Result<u64, Busy> {
        let cookie = self.cookie();
        self.queue(&Slot::connect(remote, local_port, cookie))?;
        Ok(u64::from(cookie))
    }

    /// Sends the buffer's range on `flow`. The buffer becomes the host's.
    pub fn send(
        &mut self,
        flow: Flow,
        buffer: Buffer,
        options: SendOptions,
    ) -> Result<(), SendError> {
        if !self.conversation.ledger().knows(&buffer) {
            return Err(SendError { cause: SendCause::Stale, buffer });
        }
        if buffer.is_empty() || buffer.offset < self.conversation.headroom() {
            return Err(SendError { cause: SendCause::Range, buffer });
        }
        let Ok(durable) = self.durable(options) else {
            return Err(SendError { cause: Busy.into(), buffer });
        };
        let notify = if options.notify { NOTIFY } else { 0 };
        let keep = if options.keep { KEEP | NOTIFY } else { 0 };
        let slot = Slot {
            buf_idx: buffer.index,
            len: buffer.len,
            offset: buffer.offset,
            modifiers: notify | keep | durable,
            cookie: options.cookie,
            ..Slot::request(Request::Data, flow)
        };
        if let Err(busy) = self.queue(&slot) {
            return Err(SendError { cause: busy.into(), buffer });
        }
        self.conversation.ledger().sent(&buffer);
        Ok(())
    }

    /// Sends no more on `flow`: FIN follows what was sent so far.
    pub fn close(&mut self, flow: Flow) -> Result<(), Busy> {
        self.queue(&Slot::request(Request::Close, flow))
    }

    /// Resets `flow`.
    pub fn abort(&mut self, flow: Flow) -> Result<(), Busy> {
        self.queue(&Slot::request(Request::Abort, flow))
    }

    /// Sets an option of `flow`; [`Opt`] tells what `value` means.
    pub fn set_option(&mut self, flow: Flow, option: Opt, value: u64) -> Result<(), Busy> {
        let len = option as u16;
        self.queue(&Slot { len, cookie: value, ..Slot::request(Request::SetOpt, flow) })
    }

    /// The bytes of the buffer's range; none if the buffer's name is stale.
    pub fn bytes<'a>(&'a self, buffer: &'a Buffer) -> &'a [u8] {
        self.memory.as_ref().map_or(&[], |memory| memory.bytes(buffer))
    }

    /// The mapping of the region, as of the opening that is; `None` while there is
    /// none. For an interface to another language, which lends pointers: who holds it
    /// keeps them from dangling.
    pub fn mapping(&self) -> Option<Arc<Mapping>> {
        self.memory.as_ref().map(|memory| Arc::clone(memory.mapping()))
    }

    /// The bytes of any range of the buffer, in bytes from its start; none if the
    /// buffer's name is stale or the range not in the buffer.
    pub fn range_bytes<'a>(&'a self, buffer: &'a Buffer, range: Range<usize>) -> &'a [u8] {
        self.memory.as_ref().map_or(&[], |memory| memory.range_bytes(buffer, range))
    }

    /// A range of the whole buffer, in bytes from its start, to write to. None
    /// if the buffer's name is stale or the range not in the buffer. What is to
    /// be sent is then told with [`Buffer::set_range`].
    pub fn bytes_mut<'a>(
        &'a mut self,
        buffer: &'a mut Buffer,
        range: Range<usize>,
    ) -> &'a mut [u8] {
        match &mut self.memory {
            Some(memory) => {
                buffer.csum_valid = false;
                memory.bytes_mut(buffer, range)
            }
            None => &mut [],
        }
    }

    /// Copies the first `len` bytes of a buffer's range into another buffer, in bytes
    /// from that one's start; nothing if a name is stale or a range not in its buffer.
    #[cfg(feature = "http")]
    pub(crate) fn copy(&mut self, from: &Buffer, len: usize, to: &mut Buffer, at: usize) {
        if let Some(memory) = &mut self.memory
            && memory.copy(from, len, to, at)
        {
            self.stats.bytes_copied += len as u64;
        }
    }

    /// An empty buffer to fill, its range at the headroom. `None` when the
    /// reserve is used up; the next polls bring more.
    #[must_use = "a dropped buffer is missing from the pool"]
    pub fn take_buffer(&mut self) -> Option<Buffer> {
        let headroom = self.conversation.headroom();
        self.conversation.ledger().take(headroom)
    }

    /// Gives a buffer back to the pool. A stale one is just forgotten.
    pub fn give_back(&mut self, buffer: Buffer) {
        self.conversation.ledger().give_back(buffer);
    }

    /// Asks for `count` more buffers to fill, beyond the reserve that the
    /// channel keeps by itself. The host grants them as it has them, and of at most
    /// [`WANTED_MAX`] it knows: what is beyond that is not asked for.
    pub fn want(&mut self, count: u32) -> Result<(), Busy> {
        let count = count.min(WANTED_MAX - self.conversation.ledger().wanted().min(WANTED_MAX));
        if count == 0 {
            return Ok(());
        }
        self.queue(&Slot { len: count as u16, ..Slot::request(Request::Want, Flow::default()) })?;
        self.conversation.ledger().want(count);
        Ok(())
    }

    /// What the channel has counted.
    pub fn stats(&mut self) -> Stats {
        let transport = self.transport.stats();
        let ledger = self.conversation.ledger();
        Stats {
            kicks: transport.kicks,
            waits: transport.waits,
            held: ledger.held(),
            stored: ledger.stored(),
            granted: ledger.granted() as u32,
            ..self.stats
        }
    }

    /// Empty buffers that the channel keeps for sending.
    pub(crate) fn reserve(&self) -> u32 {
        let share = 4 * u32::from(self.transport.pairs());
        let most = self.geometry.map_or(u32::MAX, |geometry| geometry.buffer_count / share);
        self.options.reserve.min(most)
    }

    /// Counts payload that a part of this crate had to copy.
    #[cfg(any(feature = "http", feature = "kv"))]
    pub(crate) fn count_copied(&mut self, bytes: usize) {
        self.stats.bytes_copied += bytes as u64;
    }
}
