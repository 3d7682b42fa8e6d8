//! Channels: the host's side of the conversations that a guest's applications
//! hold with the stack port, in PASTE frames.
//!
//! This is the door for everything an application says. A frame arrives here
//! as bytes in host memory; it is parsed, its place in the sequence is checked,
//! every buffer it names is looked up in the pool's books, and only then is the
//! stack port asked. The other way, slots are pulled from the stack port only
//! when the guest has room for a frame, so a guest that stops reading costs no
//! memory here.
//!
//! Nothing here knows of rings, sockets or the NIC. `PROTOCOL.md` of `paste-abi`
//! is the specification.

mod conversation;
mod counters;
#[cfg(test)]
mod durable_tests;
mod inline;
#[cfg(test)]
mod inline_tests;
mod liveness;
mod requests;
mod sealing;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use paste_abi::control::{
    Bye, FEATURE_FLUSH, FEATURE_INLINE, FEATURE_PROBE, FEATURES, Hello, Welcome,
};
use paste_abi::frame::{
    self, FRAME_SIZE_MIN, Frame, HEADER_LEN, Header, INDICES_PER_RECORD, Kind, RECORD_LEN,
};
use paste_abi::slot::SHARE;
use paste_abi::{CHANNELS_MAX, Event, NO_BUFFER, Reason, Slot, VERSION};
use paste_pmem::Owner;
use zerocopy::{FromZeros, IntoBytes};

use crate::durability::Durability;
use crate::engine::{Now, RegionMemory, StackPort};
use conversation::Conversation;
pub use counters::ChannelCounters;
use liveness::{Liveness, Verdict};

/// The largest PASTE frame that this host builds or takes, in bytes: 255 slots.
pub const FRAME_SIZE: usize = HEADER_LEN + 255 * RECORD_LEN;

/// Frames that a guest may have under way to the host on one channel.
const WINDOW: u32 = 64;
/// Buffers that a channel is granted when it opens, at most.
const GRANT_AT_OPEN: u32 = 256;

/// Lines that a guest can cause in the log in one second.
const LOG_LINES_PER_SECOND: u32 = 10;

/// Keeps a guest that opens and breaks channels at its own rate from filling
/// the log; the counters miss nothing.
#[derive(Debug, Default)]
struct LogGate {
    second: u64,
    lines: u32,
}

impl LogGate {
    fn allows(&mut self, now: Now) -> bool {
        let second = now.monotonic_ns / 1_000_000_000;
        if second != self.second {
            *self = LogGate { second, lines: 0 };
        }
        self.lines += 1;
        self.lines <= LOG_LINES_PER_SECOND
    }
}

/// What all channels of one guest are told in WELCOME.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Identity of the region.
    pub region_uuid: [u8; 16],
    /// Bytes of the region that the guest maps.
    pub region_len: u64,
    /// Where buffer 0 starts in the guest's mapping.
    pub buffers_offset: u64,
    /// The smallest offset that a guest may send from.
    pub headroom: u16,
    /// Flows that the stack port holds.
    pub flows_max: u32,
    /// The stack port's address, IPv4-mapped.
    pub address: [u8; 16],
    /// Largest IP packet of the port.
    pub mtu: u16,
    /// The device's Ethernet address.
    pub mac: [u8; 6],
}

/// One channel number: the conversation on it, if one is open, and what has to
/// be said outside of any conversation.
#[derive(Default)]
struct Place {
    open: Option<Box<Conversation>>,
    bye: Option<Bye>,
}

/// All channels of one guest.
pub struct Channels {
    terms: Terms,
    places: [Place; CHANNELS_MAX as usize],
    /// Where the next search for something to say begins, so that no channel
    /// starves another.
    turn: usize,
    /// When an application may have to be asked whether it lives, ns.
    look_at: u64,
    /// Slots on their way into a frame.
    slots: Box<[Slot]>,
    counters: ChannelCounters,
    log: LogGate,
    durability: Durability,
}

impl Channels {
    /// No channel is open yet.
    pub fn new(terms: Terms, durability: Durability) -> Channels {
        Channels {
            terms,
            places: Default::default(),
            turn: 0,
            look_at: u64::MAX,
            slots: vec![Slot::default(); frame::records_in(FRAME_SIZE)].into_boxed_slice(),
            counters: ChannelCounters::default(),
            log: LogGate::default(),
            durability,
        }
    }

    /// How stores become durable, and what of that was counted.
    pub fn durability(&self) -> &Durability {
        &self.durability
    }

    /// How stores become durable, for whoever asks for it beside the channels, and
    /// the bytes of the guest's mapping.
    pub fn durability_mut(&mut self) -> (&mut Durability, u64) {
        (&mut self.durability, self.terms.region_len)
    }

    /// What has happened so far.
    pub fn counters(&self) -> &ChannelCounters {
        &self.counters
    }

    /// The largest packet, and the device's address, as channels are told.
    pub fn mtu_and_mac(&self) -> (u16, [u8; 6]) {
        (self.terms.mtu, self.terms.mac)
    }

    /// Channels that are open now.
    pub fn open_count(&self) -> usize {
        self.places.iter().filter(|p| p.open.is_some()).count()
    }

    /// Takes in a PASTE frame of the guest's: the bytes after the virtio-net
    /// header, in memory that the guest cannot write.
    pub fn take(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        engine: &mut dyn StackPort,
        bytes: &[u8],
    ) {
        self.counters.frames_in += 1;
        let frame = match Frame::parse(bytes) {
            Ok(frame) => frame,
            Err(error) => {
                self.counters.malformed += 1;
                tracing::debug!(%error, "a PASTE frame does not parse");
                if let Some(number) = frame::channel_of(bytes)
                    && self.open_mut(number).is_some()
                {
                    self.refuse(now, mem, engine, number, Reason::BadFrame, 0, 0);
                }
                return;
            }
        };
        let number = frame.header.channel;
        match frame.header.kind {
            Kind::Hello => self.hello(now, mem, engine, &frame),
            Kind::Bye => self.close(now, mem, engine, number, "the guest said BYE"),
            Kind::Credit => {
                if let Some(open) = self.open_mut(number) {
                    open.heard(now.monotonic_ns);
                    open.take_limit(frame.header.limit);
                }
            }
            Kind::Slots | Kind::Inline | Kind::Return | Kind::Resume => {
                self.sequenced(now, mem, engine, &frame);
            }
            Kind::Welcome | Kind::Grant | Kind::Resumed | Kind::Probe => {
                self.counters.malformed += 1;
                self.refuse(now, mem, engine, number, Reason::BadFrame, 0, 0);
            }
        }
    }

    fn open_mut(&mut self, number: u16) -> Option<&mut Conversation> {
        self.places[usize::from(number)].open.as_deref_mut()
    }

    fn hello(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        engine: &mut dyn StackPort,
        frame: &Frame<'_>,
    ) {
        let number = frame.header.channel;
        self.close(now, mem, engine, number, "opened anew");
        let Some(hello) = Hello::read(frame.body) else {
            self.counters.malformed += 1;
            return self.refuse(now, mem, engine, number, Reason::BadFrame, 0, 0);
        };
        let frame_size = usize::from(hello.frame_size_max.get()).min(FRAME_SIZE);
        if !(hello.version_min..=hello.version_max).contains(&VERSION) {
            return self.refuse(now, mem, engine, number, Reason::Version, 0, 0);
        }
        if frame_size < FRAME_SIZE_MIN {
            return self.refuse(now, mem, engine, number, Reason::BadFrame, 0, 0);
        }
        let quarter = mem.pool().buffers().count() / 4;
        let granted = hello.buffers_wanted.get().min(GRANT_AT_OPEN).min(quarter);
        if self.log.allows(now) {
            let name = name_of(&hello.name);
            tracing::info!(channel = number, application = %name, "channel opened");
        }
        let mut welcome = self.welcome(mem, &hello, frame_size, granted);
        if let Some(address) = engine.address() {
            welcome.address = address_octets(address);
        }
        let limit = frame.header.limit;
        let mut open = Conversation::new(frame_size, WINDOW, limit, granted, welcome);
        if let Some(liveness) = &mut open.liveness {
            *liveness = Liveness::heard(now.monotonic_ns);
            self.look_at = self.look_at.min(liveness.due_at());
        }
        self.places[usize::from(number)] = Place { open: Some(Box::new(open)), bye: None };
        self.counters.opened += 1;
    }

    fn welcome(
        &self,
        mem: &RegionMemory,
        hello: &Hello,
        frame_size: usize,
        granted: u32,
    ) -> Welcome {
        let t = &self.terms;
        let buffers = mem.pool().buffers();
        let mut w = Welcome::new_zeroed();
        w.status.set(Reason::Ok as u16);
        w.version.set(u16::from(VERSION));
        w.region_uuid = t.region_uuid;
        w.region_size.set(t.region_len);
        w.buffers_offset.set(t.buffers_offset);
        w.buffer_size.set(buffers.size() as u32);
        w.buffer_count.set(buffers.count());
        w.headroom.set(t.headroom);
        w.frame_size_max.set(frame_size as u16);
        w.granted.set(granted);
        w.flows_max.set(t.flows_max);
        let features = match hello.features.get() & FEATURES {
            // What the others are about is out of the guest's sight.
            asked if asked & FEATURE_INLINE != 0 => asked & (FEATURE_INLINE | FEATURE_PROBE),
            asked => asked,
        };
        w.features.set(features);
        if features & FEATURE_FLUSH != 0 {
            w.flush_domain.set(self.durability.domain() as u32);
        }
        w.address = t.address;
        w.mtu.set(t.mtu);
        w.mac = t.mac;
        w.nonce = hello.nonce;
        w
    }

    /// Closes a channel if it is open: its flows are reset and its buffers
    /// return to the pool, but for those that it has claimed.
    fn close(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        engine: &mut dyn StackPort,
        number: u16,
        why: &str,
    ) {
        let Some(mut open) = self.places[usize::from(number)].open.take() else {
            return;
        };
        requests::take_back_held(mem, &mut open, number);
        engine.close_channel(now, mem, number);
        let claimed = mem.pool().count_of(Owner::Claimed);
        let held = mem.pool().count_of(Owner::Guest(number));
        // The stack must forget a buffer's flow before another frame fills it.
        while let Some(buf) = mem.pool().held(number).next() {
            requests::give_up(now, mem, engine, buf, number);
        }
        let kept = mem.pool().count_of(Owner::Claimed) - claimed;
        let freed = held - kept;
        self.counters.closed += 1;
        if self.log.allows(now) {
            tracing::info!(channel = number, freed, kept, why, "channel closed");
        }
    }

    /// Closes all channels: the guest is gone.
    pub fn close_all(&mut self, now: Now, mem: &mut RegionMemory, engine: &mut dyn StackPort) {
        for number in 0..CHANNELS_MAX {
            self.close(now, mem, engine, number, "the guest is gone");
            self.places[usize::from(number)].bye = None;
        }
    }

    /// Tells the guest of every channel that is not open that it is not: whoever in it
    /// has one open has it with a host that was here before this one.
    pub fn disown(&mut self) {
        let mut bye = Bye::new_zeroed();
        bye.reason.set(Reason::Closed as u16);
        for place in self.places.iter_mut().filter(|place| place.open.is_none()) {
            place.bye.get_or_insert(bye);
        }
    }

    /// Tells every open channel that this host goes down, and closes it.
    pub fn shut_down(&mut self, now: Now, mem: &mut RegionMemory, engine: &mut dyn StackPort) {
        for number in 0..CHANNELS_MAX {
            if self.places[usize::from(number)].open.is_some() {
                self.refuse(now, mem, engine, number, Reason::Shutdown, 0, 0);
            }
        }
    }

    /// Closes a channel and says why.
    #[expect(clippy::too_many_arguments, reason = "three are the turn's context")]
    fn refuse(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        engine: &mut dyn StackPort,
        number: u16,
        reason: Reason,
        expected: u32,
        got: u32,
    ) {
        self.counters.refused_channels += 1;
        if self.log.allows(now) {
            tracing::warn!(channel = number, %reason, expected, got, "channel refused");
        }
        self.close(now, mem, engine, number, "refused");
        let mut bye = Bye::new_zeroed();
        bye.reason.set(reason as u16);
        bye.expected.set(expected);
        bye.got.set(got);
        // The first reason is the one that counts; what was under way behind it
        // only finds the channel closed.
        self.places[usize::from(number)].bye.get_or_insert(bye);
    }

    /// A frame that has its place in the sequence: slots or returned buffers.
    fn sequenced(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        engine: &mut dyn StackPort,
        frame: &Frame<'_>,
    ) {
        let Header { channel: number, kind, seq, limit, .. } = frame.header;
        let Some(open) = self.places[usize::from(number)].open.as_deref_mut() else {
            self.counters.not_open += 1;
            // One BYE is enough for all that was under way.
            return self.refuse(now, mem, engine, number, Reason::Closed, 0, seq);
        };
        if let Err((reason, expected)) = open.take_sequence(seq) {
            return self.refuse(now, mem, engine, number, reason, expected, seq);
        }
        let belongs = match kind {
            Kind::Resume => open.stores,
            Kind::Slots => open.inline.is_none(),
            Kind::Inline => open.inline.as_ref().is_some_and(|inline| inline.judge(frame).is_ok()),
            _ => true,
        };
        if !belongs {
            self.counters.malformed += 1;
            return self.refuse(now, mem, engine, number, Reason::BadFrame, 0, 0);
        }
        open.heard(now.monotonic_ns);
        open.take_limit(limit);
        let mut door = requests::Door {
            now,
            number,
            terms: &self.terms,
            open,
            counters: &mut self.counters,
            durability: &mut self.durability,
        };
        match kind {
            Kind::Resume => {
                for record in frame.records() {
                    door.take_resume(mem, record);
                }
            }
            Kind::Return => {
                for record in frame.records() {
                    door.take_return(mem, engine, record);
                }
            }
            Kind::Inline => inline::take(&mut door, mem, engine, frame),
            _ => {
                for record in frame.records() {
                    door.take_request(mem, engine, &Slot::read(record));
                }
            }
        }
    }

    /// Answers the epochs that have become durable, or could not be made so, and
    /// lets go what waited for them; then has the next ones made durable. Called
    /// once a turn, after all requests. Returns how many epochs were answered.
    pub fn settle(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        engine: &mut dyn StackPort,
    ) -> usize {
        let done = self.durability.completed();
        let mut answered = 0;
        for (number, place) in (0..).zip(&mut self.places) {
            let Some(open) = place.open.as_deref_mut() else { continue };
            while let Some(flushed) = open.sealing.as_mut().and_then(|s| s.answer(done)) {
                answered += 1;
                open.reply(flushed);
                let durable = open.sealing.as_ref().is_some_and(|s| s.is_durable());
                while let Some(slot) = open.sealing.as_mut().and_then(|s| s.release()) {
                    let mut door = requests::Door {
                        now,
                        number,
                        terms: &self.terms,
                        open,
                        counters: &mut self.counters,
                        durability: &mut self.durability,
                    };
                    door.take_held(mem, engine, &slot, durable);
                }
            }
        }
        self.counters.flushed += answered as u64;
        self.durability.begin();
        answered
    }

    /// When [`Channels::watch`] has something to do, on the monotonic clock, ns.
    pub fn next_look(&self) -> Option<u64> {
        Some(self.look_at).filter(|&at| at != u64::MAX)
    }

    /// Closes the channels of applications that have ended without a word, and asks those
    /// that are silent. `was_taken`: the guest's driver has taken everything it was sent.
    pub fn watch(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        engine: &mut dyn StackPort,
        was_taken: bool,
    ) {
        self.look_at = u64::MAX;
        for number in 0..CHANNELS_MAX {
            let open = self.open_mut(number);
            let Some(liveness) = open.and_then(|open| open.liveness.as_mut()) else { continue };
            let verdict = liveness.look(now.monotonic_ns, was_taken);
            let due_at = liveness.due_at();
            match verdict {
                Verdict::Lives => self.look_at = self.look_at.min(due_at),
                Verdict::Gone => {
                    self.counters.gone += 1;
                    self.close(now, mem, engine, number, "the application no longer answers");
                    // If it lives after all, it is to know.
                    let mut bye = Bye::new_zeroed();
                    bye.reason.set(Reason::TimedOut as u16);
                    self.places[usize::from(number)].bye = Some(bye);
                }
            }
        }
    }

    /// Builds the next frame for the guest into `out`, of at least
    /// [`FRAME_SIZE`] bytes. `None` when there is nothing that may be said now.
    pub fn build(
        &mut self,
        mem: &mut RegionMemory,
        engine: &mut dyn StackPort,
        out: &mut [u8],
    ) -> Option<usize> {
        for step in 0..self.places.len() {
            let number = (self.turn + step) % self.places.len();
            if let Some(len) = self.build_for(number, mem, engine, out) {
                self.turn = number + 1;
                self.counters.frames_out += 1;
                return Some(len);
            }
        }
        None
    }

    fn build_for(
        &mut self,
        number: usize,
        mem: &mut RegionMemory,
        engine: &mut dyn StackPort,
        out: &mut [u8],
    ) -> Option<usize> {
        let place = &mut self.places[number];
        let mac = self.terms.mac;
        let channel = number as u16;
        let header = |kind, count: usize, seq, limit| Header {
            dst: mac,
            src: mac,
            kind,
            channel,
            count: count as u16,
            seq,
            limit,
        };
        if let Some(bye) = place.bye.take() {
            return Some(write(out, &header(Kind::Bye, 1, 0, 0), bye.as_bytes()));
        }
        let open = place.open.as_deref_mut()?;
        if let Some(welcome) = open.welcome.take() {
            let header = header(Kind::Welcome, 4, 0, open.tell_limit());
            return Some(write(out, &header, welcome.as_bytes()));
        }
        if open.may_send() {
            let body = &mut out[HEADER_LEN..open.frame_size];
            if open.inline.is_some() {
                let (count, len) =
                    inline::fill(&mut self.slots, open, mem, engine, channel, body, {
                        &mut self.counters
                    });
                if count > 0 {
                    let header =
                        header(Kind::Inline, count.into(), open.next_seq(), open.tell_limit());
                    write_header(out, &header);
                    return Some(HEADER_LEN + len);
                }
            }
            let body = &mut out[HEADER_LEN..open.frame_size];
            let count = fill_slots(&mut self.slots, open, mem, engine, channel, body, {
                &mut self.counters
            });
            if count > 0 {
                let header = header(Kind::Slots, count, open.next_seq(), open.tell_limit());
                write_header(out, &header);
                return Some(HEADER_LEN + count * RECORD_LEN);
            }
            let count = open.take_resumed(body.as_chunks_mut::<RECORD_LEN>().0);
            if count > 0 {
                let header = header(Kind::Resumed, count, open.next_seq(), open.tell_limit());
                write_header(out, &header);
                return Some(HEADER_LEN + count * RECORD_LEN);
            }
            let count = fill_grant(open, mem, channel, body, &mut self.counters);
            if count > 0 {
                let header = header(Kind::Grant, count, open.next_seq(), open.tell_limit());
                write_header(out, &header);
                return Some(HEADER_LEN + count * RECORD_LEN);
            }
        }
        if open.liveness.as_mut().is_some_and(Liveness::take_question) {
            self.counters.probes_out += 1;
            let header = header(Kind::Probe, 0, open.peek_seq(), open.tell_limit());
            return Some(write(out, &header, &[]));
        }
        if open.owes_limit() {
            let header = header(Kind::Credit, 0, open.peek_seq(), open.tell_limit());
            return Some(write(out, &header, &[]));
        }
        None
    }
}

/// Replies first, then what the stack port has for the channel. Returns records.
fn fill_slots(
    slots: &mut [Slot],
    open: &mut Conversation,
    mem: &mut RegionMemory,
    engine: &mut dyn StackPort,
    channel: u16,
    body: &mut [u8],
    counters: &mut ChannelCounters,
) -> usize {
    let (records, _) = body.as_chunks_mut::<RECORD_LEN>();
    let replies = open.take_replies(records);
    let records = &mut records[replies..];
    let room = records.len().min(slots.len());
    if room == 0 || !engine.has_slots(channel) {
        return replies;
    }
    let count = engine.poll_slots(mem, channel, &mut slots[..room]);
    for (slot, record) in slots[..count].iter().zip(records) {
        hand_over(mem, channel, slot, counters);
        slot.write(record);
    }
    counters.slots_out += count as u64;
    if count > 0 {
        counters.batches_out += 1;
    }
    replies + count
}

/// The buffer of a slot from the stack port, if it carries one, is the guest's from now on.
fn hand_over(mem: &mut RegionMemory, channel: u16, slot: &Slot, counters: &mut ChannelCounters) {
    let carries_buffer = match slot.as_event() {
        Some(Event::Data) => {
            counters.data_out += 1;
            true
        }
        Some(Event::Acked) => slot.buf_idx != NO_BUFFER && slot.modifiers & SHARE == 0,
        _ => false,
    };
    if carries_buffer {
        let moved = mem.pool_mut().transfer(slot.buf_idx, Owner::Stack, Owner::Guest(channel));
        assert!(moved.is_ok(), "the stack delivered buffer {}, not its own", slot.buf_idx);
    }
}

/// Grants what the guest asked for, as far as its share and the pool go.
/// Returns records.
fn fill_grant(
    open: &mut Conversation,
    mem: &mut RegionMemory,
    channel: u16,
    body: &mut [u8],
    counters: &mut ChannelCounters,
) -> usize {
    if open.wanted == 0 {
        return 0;
    }
    let pool = mem.pool_mut();
    // A guest may hold half of the region, unless it keeps its data there; and
    // the last eighth of the pool is for what arrives.
    let half = pool.buffers().count() / 2;
    let held = pool.count_of(Owner::Guest(channel));
    let own = if open.stores { half } else { half.saturating_sub(held) };
    let share = own.min(pool.free().saturating_sub(pool.buffers().count() / 8));
    let mut left = open.wanted.min(share);
    let (records, _) = body.as_chunks_mut::<RECORD_LEN>();
    let mut count = 0;
    for record in records {
        let mut indices = [NO_BUFFER; INDICES_PER_RECORD];
        let mut taken = 0;
        while taken < INDICES_PER_RECORD && left > 0 {
            let Some(buf) = pool.take(Owner::Guest(channel)) else {
                left = 0;
                break;
            };
            indices[taken] = buf;
            taken += 1;
            left -= 1;
            open.wanted -= 1;
        }
        if taken == 0 {
            break;
        }
        counters.granted += taken as u64;
        frame::write_indices(&indices, record);
        count += 1;
    }
    count
}

fn write_header(out: &mut [u8], header: &Header) {
    if let Some(head) = out.first_chunk_mut::<HEADER_LEN>() {
        header.write(head);
    }
}

fn write(out: &mut [u8], header: &Header, body: &[u8]) -> usize {
    write_header(out, header);
    out[HEADER_LEN..HEADER_LEN + body.len()].copy_from_slice(body);
    HEADER_LEN + body.len()
}

/// An address as WELCOME has it: IPv4-mapped, if it is of IPv4.
pub fn address_octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The application's name, as far as it is fit for a log.
fn name_of(bytes: &[u8; 32]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    bytes[..end].iter().map(|&b| if b.is_ascii_graphic() { char::from(b) } else { '?' }).collect()
}
