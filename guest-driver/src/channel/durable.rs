//! Durable data: epochs that the host makes durable, and buffers that stay the
//! application's with what is in them.

use std::ops::Range;
use std::time::Duration;

use paste_abi::control::FlushDomain;
use paste_abi::slot::{DURABLE, NOTIFY, Request, SHARE};
use paste_abi::{Flow, Reason, Slot};
use paste_pmem::{Medium, Ticket};

use super::{Channel, KEPT_MAX, SendOptions};
use crate::buffer::Buffer;
use crate::conversation::Broken;
use crate::error::{Busy, ResumeError, SendCause, SendError, WaitError};
use crate::event::Event;
use crate::medium::RegionMedium;
use crate::sys;
use crate::transport::Timeout;

/// How long a buffer on its way out is waited for before it is asked for again.
const RESUME_STEP: Duration = Duration::from_millis(10);

impl Channel {
    /// The region, for a claim table, a log or an index to store in; `None` while
    /// the channel is not open. What was sealed goes to the host with the next
    /// poll.
    pub fn medium(&mut self) -> Option<&mut RegionMedium> {
        self.medium.is_open().then_some(&mut self.medium)
    }

    /// The region, to read; it shows zeros while the channel is not open.
    #[cfg(feature = "kv")]
    pub(crate) fn region(&self) -> &RegionMedium {
        &self.medium
    }

    /// Where the region's parts lie in what [`Channel::medium`] addresses: claims,
    /// log, index. As its superblock says, if there is a sound one in the region
    /// of the last opening.
    pub fn layout(&self) -> Option<&paste_pmem::Geometry> {
        self.layout.as_ref()
    }

    /// Asks for ranges of the region, in bytes from the start of its mapping, to
    /// be made durable, and ends the epoch. [`Event::Flushed`] with the ticket
    /// tells when the host has done so; where it has nothing to do, there is no
    /// event, and the ticket is reached ([`Channel::is_durable`]).
    pub fn flush(&mut self, ranges: &[Range<u64>]) -> Result<Ticket, Busy> {
        let medium = self.medium().ok_or(Busy)?;
        for range in ranges {
            medium.flush(range.start, range.end.saturating_sub(range.start));
        }
        Ok(medium.seal())
    }

    /// Whether everything that was flushed before the ticket is durable.
    pub fn is_durable(&self, ticket: Ticket) -> bool {
        self.medium.reached(ticket)
    }

    /// Waits for at most `limit` until everything that was flushed before the ticket is
    /// durable. Events that arrive meanwhile are kept for [`Channel::next_event`].
    pub fn wait_durable(&mut self, ticket: Ticket, limit: Duration) -> Result<(), WaitError> {
        let deadline = sys::monotonic() + limit;
        loop {
            if !self.conversation.is_open() {
                return Err(WaitError::Lost);
            }
            if self.is_durable(ticket) {
                return Ok(());
            }
            let left = deadline.saturating_sub(sys::monotonic());
            if left.is_zero() || self.kept.len() >= KEPT_MAX {
                return Err(WaitError::TimedOut);
            }
            if let Err(error) = self.turn(Timeout::After(left)) {
                self.fail(error);
            }
            while self.kept.len() < KEPT_MAX {
                match self.read_event() {
                    None => break,
                    Some(Event::Lost { cause }) => {
                        self.kept.push_back(Event::Lost { cause });
                        return Err(WaitError::Lost);
                    }
                    Some(event) => self.kept.push_back(event),
                }
            }
        }
    }

    /// Queues what was sealed, as far as there is room. Whether that was all.
    pub(super) fn say_flushes(&mut self) -> bool {
        let conversation = &mut self.conversation;
        self.medium.say(|slot| conversation.push(slot))
    }

    /// What the event means for the channel's own account.
    pub(super) fn settle(&mut self, event: &Event) -> Result<(), Broken> {
        if let Event::Flushed { ticket, result } = event
            && self.medium.answered(ticket.0, result.is_ok()).is_err()
        {
            return Err(Broken { reason: Reason::BadRequest, expected: 0, got: 0 });
        }
        Ok(())
    }

    /// The modifier of a send with these options, after what it waits for was
    /// queued before it.
    pub(super) fn durable(&mut self, options: SendOptions) -> Result<u8, Busy> {
        let by_host = self.geometry.is_some_and(|g| g.flush_domain == FlushDomain::Host);
        if !options.durable || !by_host {
            return Ok(0);
        }
        if self.say_flushes() {
            return Ok(DURABLE);
        }
        // A transport that fails here fails again in the next poll.
        let moved = self.conversation.is_open() && self.push_frames().is_ok_and(|n| n > 0);
        if moved && self.say_flushes() { Ok(DURABLE) } else { Err(Busy) }
    }

    /// Keeps the buffer as durable data, and returns its index: it can no longer
    /// be written to, but sent on any number of flows at once, and read. The host
    /// no longer counts it against the window of the flow that it came on.
    ///
    /// That it survives is the application's doing: its claim
    /// (`paste_pmem::Claims`) must be set. Until [`Channel::release`] it is
    /// missing from the pool.
    pub fn store(&mut self, buffer: Buffer) -> Result<u32, SendError> {
        let cause = if !self.conversation.ledger().knows(&buffer) {
            SendCause::Stale
        } else if !self.stores() {
            SendCause::Unsupported
        } else {
            let index = buffer.index;
            let slot = Slot { buf_idx: index, ..Slot::request(Request::Store, Flow::default()) };
            match self.queue(&slot) {
                Ok(()) => {
                    self.conversation.ledger().store(&buffer);
                    return Ok(index);
                }
                Err(busy) => busy.into(),
            }
        };
        Err(SendError { cause, buffer })
    }

    fn stores(&self) -> bool {
        self.geometry.is_some_and(|geometry| geometry.stores)
    }

    /// Whether the buffer with this index is stored.
    pub fn is_stored(&mut self, index: u32) -> bool {
        self.conversation.ledger().is_stored(index)
    }

    /// Bytes of a stored buffer, in bytes from its start; none if it is not stored
    /// or the range not in the buffer.
    pub fn stored_bytes(&self, index: u32, range: Range<usize>) -> &[u8] {
        match &self.memory {
            Some(memory) if self.conversation.is_stored(index) => memory.stored(index, range),
            _ => &[],
        }
    }

    /// Sends a range of a stored buffer on `flow`, from where it is stored. Each
    /// such send ends with [`Event::Acked`] or [`Event::Refused`], with no buffer;
    /// with [`Reason::NoRoom`], more of them are under way than the host can hold.
    pub fn send_stored(
        &mut self,
        flow: Flow,
        index: u32,
        range: Range<usize>,
        options: SendOptions,
    ) -> Result<(), SendCause> {
        let Some(geometry) = self.geometry.filter(|geometry| geometry.stores) else {
            return Err(SendCause::Unsupported);
        };
        if !self.is_stored(index) {
            return Err(SendCause::NotStored);
        }
        let good = range.start < range.end
            && range.start >= usize::from(geometry.headroom)
            && range.end <= geometry.buffer_size as usize;
        let (true, Ok(offset), Ok(len)) = (good, range.start.try_into(), range.len().try_into())
        else {
            return Err(SendCause::Range);
        };
        let durable = self.durable(options)?;
        let slot = Slot {
            buf_idx: index,
            len,
            offset,
            modifiers: SHARE | NOTIFY | durable,
            cookie: options.cookie,
            ..Slot::request(Request::Data, flow)
        };
        self.queue(&slot)?;
        self.conversation.ledger().shared(index);
        Ok(())
    }

    /// Gives a stored buffer back to the pool, once the last of its sends has
    /// ended; `false` if it is not stored. Its claim must be cleared before, and
    /// that must be durable.
    pub fn release(&mut self, index: u32) -> bool {
        self.conversation.ledger().release(index)
    }

    /// Asks the host for stored buffers of before: after a start, those that are
    /// claimed; after [`Event::Opened`], those that were stored. Waits for the
    /// answer, and returns those that are not the application's. Events that
    /// arrive meanwhile are kept for [`Channel::next_event`].
    pub fn resume(&mut self, indices: &[u32]) -> Result<Vec<u32>, ResumeError> {
        self.ask(indices)?;
        let deadline = sys::monotonic() + self.options.answer_timeout;
        loop {
            let left = deadline.saturating_sub(sys::monotonic());
            if left.is_zero() || self.kept.len() >= KEPT_MAX {
                return Err(ResumeError::TimedOut);
            }
            // An answer without a question comes at once.
            if self.conversation.is_open() && self.conversation.ledger().is_resumed() {
                return Ok(self.conversation.ledger().take_refused());
            }
            if let Err(error) = self.turn(Timeout::After(left)) {
                self.fail(error);
            }
            while self.kept.len() < KEPT_MAX {
                match self.read_event() {
                    None => break,
                    Some(Event::Resumed { refused }) => return Ok(refused),
                    Some(Event::Lost { cause }) => {
                        self.kept.push_back(Event::Lost { cause });
                        return Err(ResumeError::Lost);
                    }
                    Some(event) => self.kept.push_back(event),
                }
            }
        }
    }

    /// As [`Channel::resume`], and asks again, for at most `limit`, for those that are
    /// not the application's: of one that died, some may still be on their way out.
    pub fn resume_within(
        &mut self,
        indices: &[u32],
        limit: Duration,
    ) -> Result<Vec<u32>, ResumeError> {
        let deadline = sys::monotonic() + limit;
        let mut refused = self.resume(indices)?;
        while !refused.is_empty() && sys::monotonic() <= deadline {
            let _ = sys::sleep(RESUME_STEP);
            refused = self.resume(&refused)?;
        }
        Ok(refused)
    }

    /// As [`Channel::resume`], without waiting: [`Event::Resumed`] tells the outcome.
    pub fn request_resume(&mut self, indices: &[u32]) -> Result<(), ResumeError> {
        self.ask(indices)?;
        let ledger = self.conversation.ledger();
        if ledger.is_resumed() {
            let refused = ledger.take_refused();
            self.kept.push_back(Event::Resumed { refused });
        }
        Ok(())
    }

    fn ask(&mut self, indices: &[u32]) -> Result<(), ResumeError> {
        if !self.conversation.is_open() {
            return Err(ResumeError::Lost);
        }
        if !self.stores() {
            return Err(ResumeError::Unsupported);
        }
        let ledger = self.conversation.ledger();
        indices.iter().for_each(|&index| ledger.ask(index));
        Ok(())
    }
}
