//! One channel's conversation with the host, as bytes in and bytes out.
//!
//! HELLO and WELCOME, sequence numbers, credit in both directions, the queue
//! of slots to send, and the frames that carry them. Nothing here knows of a
//! transport, a mapping or a clock; the caller passes frames in and room for
//! frames out. The host is part of what a guest must trust, but it may be
//! another version or restart at any moment: whatever it sends ends in an
//! event or in a [`Broken`] conversation, never in a panic.

mod slots;

use paste_abi::control::{
    Bye, FEATURE_FLUSH, FEATURE_INLINE, FEATURE_PROBE, FEATURE_STORE, FlushDomain, Hello, Welcome,
};
use paste_abi::frame::{
    HEADER_LEN, INDICES_PER_RECORD, RECORD_LEN, credit, indices, records_in, write_indices,
};
use paste_abi::inline::{Piece, Progress, Put, Reader, Writer};
use paste_abi::slot::{CSUM_VALID, KEEP, SHARE};
use paste_abi::{Event as SlotEvent, Flow, Frame, Header, Kind, Reason, Slot, VERSION};
use paste_pmem::Ticket;
use zerocopy::IntoBytes;

use crate::buffer::Buffer;
use crate::event::Event;
use crate::ledger::Ledger;
pub(crate) use slots::SlotQueue;

/// Where PASTE frames are addressed to. The host takes them by their
/// ethertype; a locally administered unicast address keeps a switch that sees
/// one by mistake from flooding it as multicast.
pub(crate) const HOST_MAC: [u8; 6] = [0x02, b'P', b'A', b'S', b'T', b'E'];

/// Limits on what a WELCOME may say; beyond them it is not believed.
const BUFFER_COUNT_MAX: u32 = 1 << 26;

/// The geometry of the region and the limits of the channel, as the host told
/// them in WELCOME.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Identity of the region, as in its superblock.
    pub region_uuid: [u8; 16],
    /// Bytes of the region that the guest maps.
    pub region_size: u64,
    /// Where buffer 0 starts, in bytes from the start of the mapping.
    pub buffers_offset: u64,
    /// Bytes of one buffer.
    pub buffer_size: u32,
    /// Buffers in the region.
    pub buffer_count: u32,
    /// The smallest offset from which a buffer may be sent, in bytes.
    pub headroom: u16,
    /// The largest PASTE frame of the channel, in bytes.
    pub frame_size: u16,
    /// Flows that the host holds at once.
    pub flows_max: u32,
    /// The stack port's address.
    pub address: std::net::IpAddr,
    /// Largest IP packet of the port, in bytes.
    pub mtu: u16,
    /// How what is stored in the region becomes durable.
    pub flush_domain: FlushDomain,
    /// Whether the host lets buffers be stored.
    pub stores: bool,
    /// Whether payload travels in the frames: the region is not this process's to see, and
    /// buffers are copies.
    pub inline: bool,
}

/// How a conversation is set up; fixed for its life.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// The channel's number.
    pub(crate) channel: u16,
    /// The device's address, the source of our frames.
    pub(crate) mac: [u8; 6],
    /// The largest frame that the transport carries, in bytes.
    pub(crate) frame_size: u16,
    /// Frames that the transport can hold for us: what the host may send
    /// before we have taken any.
    pub(crate) window: u32,
    /// Buffers to hold for sending.
    pub(crate) buffers_wanted: u32,
    /// Slots that wait for a frame.
    pub(crate) slots_max: usize,
    /// Payload travels in the frames.
    pub(crate) inline: bool,
    /// The host is to ask for signs of life: it does not see that we have ended.
    pub(crate) probed: bool,
    /// The application's name, for the host's logs.
    pub(crate) name: [u8; 32],
}

/// The conversation cannot go on: the host must be told this reason in a BYE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    /// What the host did.
    pub(crate) reason: Reason,
    /// The sequence number that was expected.
    pub(crate) expected: u32,
    /// The sequence number that came.
    pub(crate) got: u32,
}

/// What a received frame was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Nothing for the application: credit, another's frame, or one of an
    /// earlier opening.
    Nothing,
    /// The channel is open.
    Opened(Geometry),
    /// The host does not open the channel.
    Refused(Reason),
    /// This many slots, to be read one by one with [`Conversation::event`].
    Slots(usize),
    /// This many slots with payload, to be read one by one with [`Conversation::inline`].
    Inline(u16),
    /// Buffers were granted.
    Granted,
    /// The host has said which buffers are still the application's.
    Resumed,
    /// The host closed the channel.
    Closed(Reason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not spoken to, or over.
    Closed,
    /// HELLO sent, with this nonce.
    Opening(u64),
    /// WELCOME received.
    Open,
}

/// The conversation.
#[derive(Debug)]
pub(crate) struct Conversation {
    setup: Setup,
    state: State,
    frame_size: usize,
    headroom: u16,
    /// Next sequence number that we send.
    next_seq: u32,
    /// First sequence number that the host does not let us use.
    peer_limit: u32,
    /// Next sequence number that we expect.
    expected: u32,
    /// First sequence number that we have not let the host use.
    told_limit: u32,
    queue: SlotQueue,
    ledger: Ledger,
    /// How much of the payload of the first queued slot is with the host.
    brought: u16,
    /// What the host has brought of a payload that it split.
    taken: Progress,
    /// The host has asked for a sign of life, and got none yet.
    probed: bool,
}

impl Conversation {
    pub(crate) fn new(setup: Setup) -> Conversation {
        Conversation {
            setup,
            state: State::Closed,
            frame_size: usize::from(setup.frame_size),
            headroom: 0,
            next_seq: 0,
            peer_limit: 0,
            expected: 0,
            told_limit: 0,
            queue: SlotQueue::new(setup.slots_max),
            ledger: Ledger::new(0, 0, 0),
            brought: 0,
            taken: Progress::default(),
            probed: false,
        }
    }

    /// Whether slots can be sent.
    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// The account of buffers.
    pub(crate) fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// Whether the application has stored the buffer.
    pub(crate) fn is_stored(&self, index: u32) -> bool {
        self.ledger.is_stored(index)
    }

    /// The smallest offset from which a buffer may be sent.
    pub(crate) fn headroom(&self) -> u16 {
        self.headroom
    }

    /// The transport is a new one, after a reconnect.
    pub(crate) fn rewire(&mut self, mac: [u8; 6], frame_size: u16, window: u32) {
        self.setup.mac = mac;
        self.setup.frame_size = frame_size;
        self.setup.window = window;
        self.forget();
    }

    /// Forgets everything of the last opening: buffers, slots, sequence.
    pub(crate) fn forget(&mut self) {
        self.state = State::Closed;
        self.queue.clear();
        self.ledger = Ledger::new(0, 0, 0);
    }

    fn header(&self, kind: Kind, count: usize, seq: u32, limit: u32) -> Header {
        let channel = self.setup.channel;
        let src = self.setup.mac;
        Header { dst: HOST_MAC, src, kind, channel, count: count as u16, seq, limit }
    }

    /// Writes a HELLO and waits for the WELCOME with the same `nonce`. Returns
    /// the frame's length; 0 if `out` is too small for any conversation.
    pub(crate) fn hello(&mut self, nonce: u64, out: &mut [u8]) -> usize {
        self.forget();
        let features = match self.setup.inline {
            true => FEATURE_INLINE,
            false => FEATURE_FLUSH | FEATURE_STORE,
        } | if self.setup.probed { FEATURE_PROBE } else { 0 };
        let hello = Hello {
            version_min: VERSION,
            version_max: VERSION,
            frame_size_max: self.setup.frame_size.into(),
            features: features.into(),
            nonce: nonce.into(),
            buffers_wanted: self.setup.buffers_wanted.into(),
            reserved: [0; 12],
            name: self.setup.name,
        };
        let header = self.header(Kind::Hello, 2, 0, self.setup.window);
        let len = put(&header, hello.as_bytes(), out);
        if len > 0 {
            self.state = State::Opening(nonce);
        }
        len
    }

    /// Writes a BYE and forgets the conversation. Returns the frame's length.
    pub(crate) fn bye(&mut self, why: Broken, out: &mut [u8]) -> usize {
        let bye = Bye {
            reason: (why.reason as u16).into(),
            reserved: [0; 2],
            expected: why.expected.into(),
            got: why.got.into(),
            padding: [0; 20],
        };
        let header = self.header(Kind::Bye, 1, self.next_seq, self.limit());
        self.forget();
        put(&header, bye.as_bytes(), out)
    }

    /// The limit to tell: room for a window of frames beyond those taken.
    fn limit(&self) -> u32 {
        self.expected.wrapping_add(self.setup.window)
    }

    /// Queues a slot. `false` if the queue is full or the channel not open.
    pub(crate) fn push(&mut self, slot: &Slot) -> bool {
        self.is_open() && self.queue.push(slot)
    }

    /// Slots queued and not yet in a frame.
    pub(crate) fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Whether a sequenced frame may be sent now.
    pub(crate) fn has_credit(&self) -> bool {
        credit(self.next_seq, self.peer_limit) > 0
    }

    /// Whether [`Conversation::build`] would write a frame.
    pub(crate) fn has_output(&self) -> bool {
        self.is_open()
            && ((self.has_credit()
                && (self.queue.len() > 0
                    || !self.ledger.returning().is_empty()
                    || self.ledger.has_to_ask()))
                || self.owes_credit())
    }

    /// Whether the host has used half of the window since it was last told, or waits for a
    /// sign of life.
    fn owes_credit(&self) -> bool {
        let granted = credit(self.expected, self.told_limit);
        granted <= self.setup.window / 2 || self.probed
    }

    /// Writes the next frame that is due: buffers to resume, slots, buffers to
    /// return, then bare credit. Returns its length; 0 if none is due, or the host has given
    /// no credit. Payload that travels in the frame is copied by `payload`.
    pub(crate) fn build(
        &mut self,
        out: &mut [u8],
        payload: &mut dyn FnMut(Piece, &mut [u8]),
    ) -> usize {
        if !self.is_open() {
            return 0;
        }
        let size = self.frame_size.min(out.len());
        let room = records_in(size);
        if room == 0 {
            return 0;
        }
        let (head, body) = out[..size].split_at_mut(HEADER_LEN);
        if self.setup.inline && self.has_credit() && self.queue.len() > 0 {
            let (count, len) = self.fill_inline(body, payload);
            return self.finish(head, Kind::Inline, count.into(), len);
        }
        let records = body.as_chunks_mut::<RECORD_LEN>().0;
        let (kind, count) = if self.has_credit() && self.ledger.has_to_ask() {
            let mut used = 0;
            for record in records {
                let (indices, count) = self.ledger.asking();
                if count == 0 {
                    break;
                }
                write_indices(&indices[..count], record);
                used += 1;
            }
            (Kind::Resume, used)
        } else if self.has_credit() && self.queue.len() > 0 {
            (Kind::Slots, self.queue.pop_into(records))
        } else if self.has_credit() && !self.ledger.returning().is_empty() {
            let returning = self.ledger.returning();
            let count = returning.len().min(room * INDICES_PER_RECORD);
            let chunks = returning[returning.len() - count..].chunks(INDICES_PER_RECORD);
            let used = chunks.len();
            for (record, chunk) in records.iter_mut().zip(chunks) {
                write_indices(chunk, record);
            }
            self.ledger.returned(count);
            (Kind::Return, used)
        } else if self.owes_credit() {
            (Kind::Credit, 0)
        } else {
            return 0;
        };
        self.finish(head, kind, count, count * RECORD_LEN)
    }

    /// Writes the header of a frame whose body of `len` bytes is there.
    fn finish(&mut self, head: &mut [u8], kind: Kind, count: usize, len: usize) -> usize {
        let limit = self.limit();
        let header = self.header(kind, count, self.next_seq, limit);
        if let Some(head) = head.first_chunk_mut::<HEADER_LEN>() {
            header.write(head);
        }
        if kind.is_sequenced() {
            self.next_seq = self.next_seq.wrapping_add(1);
        }
        self.told_limit = limit;
        self.probed = false;
        HEADER_LEN + len
    }

    /// Moves queued slots and what they bring into a frame; the last one may be split.
    fn fill_inline(
        &mut self,
        body: &mut [u8],
        payload: &mut dyn FnMut(Piece, &mut [u8]),
    ) -> (u16, usize) {
        let mut writer = Writer::new(body);
        while let Some(slot) = self.queue.front() {
            match writer.put(&slot, &mut self.brought, payload) {
                Put::Whole => self.queue.pop(),
                Put::Split | Put::No => break,
            }
        }
        (writer.count(), writer.len())
    }

    /// Takes a frame in. `epoch` names the opening that begins if the frame is
    /// the WELCOME that we wait for. After [`Arrival::Slots`] the records of
    /// `frame` are to be passed to [`Conversation::event`] in order.
    pub(crate) fn receive(&mut self, frame: &[u8], epoch: u32) -> Result<Arrival, Broken> {
        if !paste_abi::frame::is_paste(frame) {
            return Ok(Arrival::Nothing);
        }
        let Ok(frame) = Frame::parse(frame) else {
            return match self.state {
                State::Open => Err(self.broken(Reason::BadFrame, self.expected)),
                State::Closed | State::Opening(_) => Ok(Arrival::Nothing),
            };
        };
        let header = frame.header;
        if header.channel != self.setup.channel {
            return Ok(Arrival::Nothing);
        }
        match self.state {
            State::Closed => Ok(Arrival::Nothing),
            State::Opening(nonce) => self.receive_opening(nonce, &frame, epoch),
            State::Open => self.receive_open(&frame),
        }
    }

    fn receive_opening(
        &mut self,
        nonce: u64,
        frame: &Frame<'_>,
        epoch: u32,
    ) -> Result<Arrival, Broken> {
        // Frames of an earlier opening may still be under way; only the answer
        // to this HELLO counts. A host may refuse with a BYE as well, for
        // reasons that no earlier conversation would have ended with.
        if frame.header.kind == Kind::Bye {
            let reason = Bye::read(frame.body).and_then(|bye| Reason::from_u16(bye.reason.get()));
            return Ok(match reason {
                Some(reason @ (Reason::Version | Reason::NoRoom | Reason::BadFrame)) => {
                    self.forget();
                    Arrival::Refused(reason)
                }
                _ => Arrival::Nothing,
            });
        }
        if frame.header.kind != Kind::Welcome {
            return Ok(Arrival::Nothing);
        }
        let Some(welcome) = Welcome::read(frame.body) else {
            return Err(self.broken(Reason::BadFrame, 0));
        };
        if welcome.nonce.get() != nonce {
            return Ok(Arrival::Nothing);
        }
        match Reason::from_u16(welcome.status.get()) {
            Some(Reason::Ok) => {}
            status => {
                self.forget();
                return Ok(Arrival::Refused(status.unwrap_or(Reason::BadFrame)));
            }
        }
        if welcome.version.get() != u16::from(VERSION) {
            return Err(self.broken(Reason::Version, 0));
        }
        let geometry = self.judge(&welcome).ok_or(self.broken(Reason::BadFrame, 0))?;
        if geometry.inline != self.setup.inline {
            // A host that knows no inline slots.
            return Err(self.broken(Reason::Version, 0));
        }
        self.state = State::Open;
        self.frame_size = usize::from(geometry.frame_size);
        self.headroom = geometry.headroom;
        self.next_seq = 0;
        self.expected = 0;
        self.peer_limit = frame.header.limit;
        self.told_limit = self.setup.window;
        self.brought = 0;
        self.taken = Progress::default();
        self.probed = false;
        self.ledger = Ledger::new(epoch, geometry.buffer_count, geometry.buffer_size);
        // HELLO asked for buffers: so many are on their way.
        self.ledger.want(welcome.granted.get());
        Ok(Arrival::Opened(geometry))
    }

    /// The geometry, if it makes sense.
    fn judge(&self, welcome: &Welcome) -> Option<Geometry> {
        let address = std::net::Ipv6Addr::from(welcome.address).to_canonical();
        let features = welcome.features.get();
        // Without the feature, the field says nothing.
        let flush_domain = match features & FEATURE_FLUSH {
            0 => FlushDomain::None,
            _ => FlushDomain::from_u32(welcome.flush_domain.get())?,
        };
        let geometry = Geometry {
            region_uuid: welcome.region_uuid,
            region_size: welcome.region_size.get(),
            buffers_offset: welcome.buffers_offset.get(),
            buffer_size: welcome.buffer_size.get(),
            buffer_count: welcome.buffer_count.get(),
            headroom: welcome.headroom.get(),
            frame_size: welcome.frame_size_max.get(),
            flows_max: welcome.flows_max.get(),
            address,
            mtu: welcome.mtu.get(),
            flush_domain,
            stores: features & FEATURE_STORE != 0,
            inline: features & FEATURE_INLINE != 0,
        };
        let buffers = u64::from(geometry.buffer_size) * u64::from(geometry.buffer_count);
        let end = geometry.buffers_offset.checked_add(buffers)?;
        let sensible = end <= geometry.region_size
            && geometry.buffer_size.is_power_of_two()
            && (2048..=65_536).contains(&geometry.buffer_size)
            && geometry.buffer_count <= BUFFER_COUNT_MAX
            && u32::from(geometry.headroom) < geometry.buffer_size
            && usize::from(geometry.frame_size) >= paste_abi::frame::FRAME_SIZE_MIN
            && geometry.frame_size <= self.setup.frame_size
            && geometry.flows_max <= Flow::INDEX_MAX;
        sensible.then_some(geometry)
    }

    fn receive_open(&mut self, frame: &Frame<'_>) -> Result<Arrival, Broken> {
        let header = frame.header;
        if header.kind.is_sequenced() {
            if header.seq != self.expected {
                return Err(self.broken(Reason::SequenceGap, header.seq));
            }
            if credit(self.expected, self.told_limit) == 0 {
                return Err(self.broken(Reason::OverCredit, header.seq));
            }
            self.expected = self.expected.wrapping_add(1);
        }
        // A limit never goes back; one that seems to is out of date.
        if credit(self.peer_limit, header.limit) > 0 {
            self.peer_limit = header.limit;
        }
        match header.kind {
            Kind::Slots if !self.setup.inline => Ok(Arrival::Slots(usize::from(header.count))),
            Kind::Inline if self.setup.inline => Ok(Arrival::Inline(header.count)),
            Kind::Grant => {
                for index in frame.records().flat_map(indices) {
                    if self.ledger.grant(index).is_err() {
                        return Err(self.broken(Reason::ForeignBuffer, header.seq));
                    }
                }
                Ok(Arrival::Granted)
            }
            Kind::Resumed => {
                for record in frame.records() {
                    if self.ledger.resumed(indices(record)).is_err() {
                        return Err(self.broken(Reason::ForeignBuffer, header.seq));
                    }
                }
                Ok(Arrival::Resumed)
            }
            Kind::Bye => {
                self.forget();
                let bye = Bye::read(frame.body);
                let reason = bye.and_then(|bye| Reason::from_u16(bye.reason.get()));
                Ok(Arrival::Closed(reason.unwrap_or(Reason::BadFrame)))
            }
            // A second answer to a HELLO that was repeated.
            Kind::Credit | Kind::Welcome => Ok(Arrival::Nothing),
            Kind::Probe => {
                self.probed = true;
                Ok(Arrival::Nothing)
            }
            Kind::Slots | Kind::Inline | Kind::Hello | Kind::Return | Kind::Resume => {
                Err(self.broken(Reason::BadFrame, header.seq))
            }
        }
    }

    fn broken(&self, reason: Reason, got: u32) -> Broken {
        Broken { reason, expected: self.expected, got }
    }

    /// Reads the next slot of an INLINE frame, of which `rest` is left: the slot, where
    /// the bytes that it brings belong, and these. They are to be put there before the slot
    /// is passed to [`Conversation::event`]; a PIECE is not passed on.
    pub(crate) fn inline<'a>(&mut self, rest: &'a [u8]) -> Result<(Slot, Piece, &'a [u8]), Broken> {
        let seq = self.expected.wrapping_sub(1);
        let next = Reader::new(rest, 1).next(&mut self.taken);
        let Some(Ok((slot, piece, bytes))) = next else {
            return Err(self.broken(Reason::BadFrame, seq));
        };
        if piece.len > 0 && !self.ledger.may_fill(piece.buf_idx, piece.end()) {
            return Err(self.broken(Reason::ForeignBuffer, seq));
        }
        Ok((slot, piece, bytes))
    }

    /// Reads one slot of a SLOTS frame.
    pub(crate) fn event(&mut self, record: &[u8; RECORD_LEN]) -> Result<Event, Broken> {
        let slot = Slot::read(record);
        let seq = self.expected.wrapping_sub(1);
        let kind = slot.as_event().ok_or(self.broken(Reason::BadRequest, seq))?;
        let foreign = self.broken(Reason::ForeignBuffer, seq);
        let reason = || Reason::from_u16(slot.len);
        let flow = slot.flow;
        Ok(match kind {
            SlotEvent::Data => {
                let received = self.ledger.receive(slot.buf_idx, slot.offset, slot.len);
                let mut data = received.map_err(|_| foreign)?;
                data.csum = slot.csum;
                data.csum_valid = slot.modifiers & CSUM_VALID != 0;
                data.time = slot.time;
                Event::Data { flow, data }
            }
            SlotEvent::Accepted => Event::Accepted {
                flow,
                listener: slot.listener(),
                peer: slot.peer(),
                local_port: slot.offset,
            },
            SlotEvent::Connected => Event::Connected { flow, cookie: slot.cookie },
            SlotEvent::Fin => Event::Fin { flow },
            SlotEvent::Reset => {
                Event::Reset { flow, reason: reason().unwrap_or(Reason::PeerReset) }
            }
            SlotEvent::Closed => Event::Closed { flow },
            SlotEvent::Acked => {
                let buffer = if slot.modifiers & SHARE != 0 {
                    self.ledger.share_ended(slot.buf_idx).map_err(|_| foreign)?;
                    None
                } else if slot.modifiers & KEEP != 0 {
                    let back = self.ledger.came_back(slot.buf_idx);
                    Some(back.map_err(|_| foreign)?)
                } else {
                    None
                };
                Event::Acked { flow, cookie: slot.cookie, buffer }
            }
            SlotEvent::Flushed => {
                let result = match reason() {
                    Some(Reason::Ok) => Ok(()),
                    other => Err(other.unwrap_or(Reason::NotDurable)),
                };
                Event::Flushed { ticket: Ticket(slot.cookie), result }
            }
            SlotEvent::Piece => return Err(self.broken(Reason::BadRequest, seq)),
            SlotEvent::Writable => Event::Writable { flow },
            SlotEvent::Reply => {
                let result = match reason() {
                    Some(Reason::Ok) => Ok(flow),
                    other => Err(other.unwrap_or(Reason::BadRequest)),
                };
                Event::Reply { cookie: slot.cookie, result }
            }
            SlotEvent::Refused => {
                let reason = reason().unwrap_or(Reason::BadRequest);
                Event::Refused { flow, reason, cookie: slot.cookie, buffer: self.refused(&slot) }
            }
        })
    }

    /// The buffer of a refused request, if there was one and the host lets us
    /// have it back. Requests without a buffer use the field for other things,
    /// so a name that we did not send is not the host's error.
    fn refused(&mut self, slot: &Slot) -> Option<Buffer> {
        if slot.modifiers & SHARE != 0 {
            let _ = self.ledger.share_ended(slot.buf_idx);
            return None;
        }
        if slot.len == Reason::ForeignBuffer as u16 {
            return None;
        }
        self.ledger.came_back(slot.buf_idx).ok()
    }
}

/// Writes a frame; 0 if it does not fit.
fn put(header: &Header, body: &[u8], out: &mut [u8]) -> usize {
    let len = HEADER_LEN + body.len();
    let Some(out) = out.get_mut(..len) else {
        return 0;
    };
    if let Some((head, rest)) = out.split_first_chunk_mut::<HEADER_LEN>() {
        header.write(head);
        rest.copy_from_slice(body);
    }
    len
}

#[cfg(test)]
mod tests;
