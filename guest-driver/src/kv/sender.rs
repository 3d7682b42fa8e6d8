//! Answers on their way: bytes are copied into buffers of the channel, and stored
//! values are sent from where they are, as long as not too many are under way.

use paste_pmem::Ticket;

use super::client::{Client, End};
use super::extent::Extent;
use super::live::{Attached, Live};
use super::region::Region;
use super::reply::Next;
use super::store::Store;
use crate::buffer::Buffer;
use crate::channel::{Channel, SendOptions};
use crate::error::SendCause;

/// Slots of one flow that are sent and not acknowledged. Below any host's limit.
const UNACKED_MAX: u16 = 256;
/// One acknowledgement is asked for per so many slots of copied bytes.
const SLOTS_PER_ACK: u16 = 16;
/// Ranges of stored buffers under way, of all flows; more are copied.
const SHARED_MAX: u32 = 4096;
/// Says of a cookie that it names a stored buffer.
pub(super) const STORED: u64 = 1 << 63;

/// The region and what is stored in it, while the channel is open.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) attached: Attached,
    pub(super) store: Store,
    /// Bytes that one packet carries.
    pub(super) segment: usize,
    /// The last epoch that was ended.
    pub(super) last: Option<Ticket>,
}

/// How far sending came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// Everything is on its way.
    All,
    /// The peer must acknowledge some first.
    Unacked,
    /// No empty buffer, or no room in the channel's queue.
    Starved,
    /// The flow's bytes cannot be sent any more.
    Failed,
}

/// What sending needs.
pub(super) struct Sender<'a> {
    pub(super) channel: &'a mut Channel,
    pub(super) open: &'a mut Open,
    pub(super) sharing: &'a mut u32,
    pub(super) durable: bool,
}

impl Sender<'_> {
    /// Sends on.
    pub(super) fn send(&mut self, client: &mut Client) -> Sent {
        match self.go(client) {
            Ok(()) => Sent::All,
            Err(stopped) => stopped,
        }
    }

    fn go(&mut self, client: &mut Client) -> Result<(), Sent> {
        if matches!(client.end, End::Aborting | End::Done) {
            return Ok(());
        }
        while let Some(next) = client.output.next() {
            match next {
                Next::Bytes(bytes) => {
                    let len = bytes.len();
                    let taken = self.fill(&mut client.filling, client.unacked, bytes)?;
                    client.output.took_bytes(taken);
                    if taken < len {
                        self.flush(client)?;
                    }
                }
                Next::Range(extent) => {
                    if *self.sharing >= SHARED_MAX {
                        self.copy_range(client, extent)?;
                        continue;
                    }
                    self.flush(client)?;
                    if client.unacked >= UNACKED_MAX {
                        return Err(Sent::Unacked);
                    }
                    if !self.open.attached.is_stored(extent.buffer) {
                        return Err(Sent::Starved);
                    }
                    let options = SendOptions {
                        cookie: STORED | u64::from(extent.buffer),
                        durable: self.durable,
                        ..SendOptions::default()
                    };
                    let start = usize::from(extent.offset);
                    let range = start..start + usize::from(extent.len);
                    match self.channel.send_stored(client.flow, extent.buffer, range, options) {
                        Ok(()) => {}
                        Err(SendCause::Busy(_)) => return Err(Sent::Starved),
                        Err(_) => return Err(Sent::Failed),
                    }
                    *self.sharing += 1;
                    client.unacked += 1;
                    client.output.took_range();
                }
            }
        }
        self.flush(client)
    }

    /// Copies as much of a range as there is room for: too many are under way to
    /// send it from where it is.
    fn copy_range(&mut self, client: &mut Client, extent: Extent) -> Result<(), Sent> {
        let attached = &mut self.open.attached;
        let live = Live { channel: self.channel, attached };
        let mut bytes = vec![0; extent.len.into()];
        live.read(extent.buffer, extent.offset, &mut bytes);
        let taken = self.fill(&mut client.filling, client.unacked, &bytes)?;
        if client.output.took_part(taken) {
            let Open { attached, store, .. } = &mut *self.open;
            store.unhold(&mut Live { channel: self.channel, attached }, extent.buffer);
            return Ok(());
        }
        self.flush(client)
    }

    /// Appends as many of the bytes to the buffer that is being filled as there is
    /// room for, and returns how many these are.
    fn fill(
        &mut self,
        filling: &mut Option<Buffer>,
        unacked: u16,
        bytes: &[u8],
    ) -> Result<usize, Sent> {
        if filling.is_none() {
            if unacked >= UNACKED_MAX {
                return Err(Sent::Unacked);
            }
            *filling = Some(self.channel.take_buffer().ok_or(Sent::Starved)?);
        }
        let Some(buffer) = filling else { return Ok(0) };
        let (start, at) = (buffer.offset(), buffer.offset() + buffer.len());
        let end = (start + self.open.segment).min(buffer.capacity()).min(usize::from(u16::MAX));
        let taken = bytes.len().min(end - at);
        self.channel.bytes_mut(buffer, at..at + taken).copy_from_slice(&bytes[..taken]);
        buffer.set_range(start..at + taken);
        Ok(taken)
    }

    /// Sends the buffer that is being filled, if there is one.
    fn flush(&mut self, client: &mut Client) -> Result<(), Sent> {
        let Some(buffer) = client.filling.take() else { return Ok(()) };
        let notify = client.since_ack + 1 >= SLOTS_PER_ACK;
        let cookie = u64::from(client.since_ack + 1);
        let options = SendOptions { cookie, notify, durable: self.durable, ..Default::default() };
        match self.channel.send(client.flow, buffer, options) {
            Ok(()) => {
                client.since_ack = if notify { 0 } else { client.since_ack + 1 };
                client.unacked += 1;
                Ok(())
            }
            Err(error) if matches!(error.cause, SendCause::Busy(_)) => {
                client.filling = Some(error.buffer);
                Err(Sent::Starved)
            }
            Err(error) => {
                self.channel.give_back(error.buffer);
                Err(Sent::Failed)
            }
        }
    }

    /// Ends the client's flow in good order. Answers whether it could.
    pub(super) fn close(&mut self, client: &mut Client) -> bool {
        let closed = self.channel.close(client.flow).is_ok();
        if closed {
            client.end = End::Done;
        }
        closed
    }

    /// Resets the client's flow. Answers whether it could.
    pub(super) fn abort(&mut self, client: &mut Client) -> bool {
        let aborted = self.channel.abort(client.flow).is_ok();
        if aborted {
            client.end = End::Done;
            if let Some(filling) = client.filling.take() {
                self.channel.give_back(filling);
            }
        }
        aborted
    }
}
