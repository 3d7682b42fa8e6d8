//! A channel: one application's conversation with the host, as it uses it.
//!
//! Joins the conversation (protocol), the transport (frames), the memory
//! (bytes) and the clock, and owns the policy between them: when frames are
//! built, when to wait, when to ask for buffers, and how a lost channel is
//! opened anew.

mod durable;
mod options;
mod requests;

use std::collections::VecDeque;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use paste_abi::Reason;
use paste_abi::frame::{FRAME_SIZE_MIN, HEADER_LEN, RECORD_LEN};
use paste_abi::inline::Piece;

use crate::conversation::{Arrival, Broken, Conversation, Geometry, Setup};
use crate::error::{OpenError, PollError};
use crate::event::{Event, LostCause};
use crate::medium::RegionMedium;
use crate::memory::Memory;
use crate::sys;
use crate::transport::vhost_user::VhostUser;
use crate::transport::{Timeout, Transport, TransportError, machine};

pub use options::{Batch, Endpoint, Options, SendOptions, Stats};

/// A HELLO without an answer is repeated after this time, and then after twice
/// as long each time, up to the last.
const HELLO_WAIT_FIRST: Duration = Duration::from_secs(1);
const HELLO_WAIT_LAST: Duration = Duration::from_secs(16);
/// Waits between attempts to reconnect double from the first to the last.
const BACKOFF_FIRST: Duration = Duration::from_millis(10);
const BACKOFF_LAST: Duration = Duration::from_secs(1);
/// Events that are kept while a call waits for its own answer.
const KEPT_MAX: usize = 4096;
/// How long an orderly end waits for the host to take what was sent.
const DRAIN_TIME: Duration = Duration::from_secs(1);
/// Tells openings apart, in all channels of the process: see [`crate::Buffer`].
static EPOCH: AtomicU32 = AtomicU32::new(1);

/// What is between the channel and the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// Open, or to be opened by a HELLO at this time.
    Up {
        hello_due: Duration,
        /// How long that HELLO may take to be answered.
        wait: Duration,
    },
    /// The transport has failed; the next attempt is due then.
    Down { retry_at: Duration, backoff: Duration },
    /// Lost, and not to be opened anew.
    Closed(LostCause),
}

/// The channel. See the crate for how it is used. It may be handed to another thread.
#[derive(Debug)]
pub struct Channel {
    transport: Box<dyn Transport>,
    conversation: Conversation,
    memory: Option<Memory>,
    medium: RegionMedium,
    layout: Option<paste_pmem::Geometry>,
    geometry: Option<Geometry>,
    options: Options,
    link: Link,
    /// The frame whose slots are being read, and the range that is left.
    frame: Box<[u8]>,
    unread: Range<usize>,
    /// Slots with payload that are left in it.
    inline_left: u16,
    /// Frames of this batch that are still in the transport.
    frames_left: usize,
    /// An event of the channel itself.
    pending: Option<Event>,
    /// Events that arrived while a call waited for its own answer.
    kept: VecDeque<Event>,
    epoch: u32,
    ever_open: bool,
    last_error: Option<TransportError>,
    next_cookie: u32,
    stats: Stats,
}

const _: () = {
    const fn is_send<T: Send>() {}
    is_send::<Channel>();
};

impl Channel {
    /// Connects to the host and opens a channel, and waits until it is open.
    ///
    /// The region is mapped, and the buffers for sending are on their way.
    pub fn open(endpoint: &Endpoint, options: Options) -> Result<Channel, OpenError> {
        let channel = Channel::open_pairs(endpoint, options, 1)?.pop();
        channel.ok_or(OpenError::NoPairs)
    }

    /// Likewise, with a channel on each of this many queue pairs of the device, in their
    /// order: 1, or with [`Endpoint::VhostUser`] as many as the device has. The host serves
    /// each by a worker of its own.
    ///
    /// Each channel is for a loop of its own, which may be another thread's: they share
    /// nothing that a frame touches. A flow belongs to the channel that it arrived at, and
    /// so do buffers. Whoever is to be found on a port listens on it on every channel; the
    /// host then spreads the flows. When the device is lost, it is lost to all of them, and
    /// each is opened anew by its own polls; it is given up when all have ended.
    pub fn open_pairs(
        endpoint: &Endpoint,
        mut options: Options,
        pairs: u16,
    ) -> Result<Vec<Channel>, OpenError> {
        if pairs == 0 {
            return Err(OpenError::NoPairs);
        }
        options.inline |= endpoint.is_inline();
        let frame_size = options.frame_size;
        let transports: Vec<Box<dyn Transport>> = match endpoint {
            Endpoint::VhostUser(path) => {
                let boxed = |pair| -> Box<dyn Transport> { Box::new(pair) };
                VhostUser::connect(path, frame_size, pairs)?.into_iter().map(boxed).collect()
            }
            Endpoint::Packet { .. } | Endpoint::VirtioPci { .. } if pairs > 1 => {
                return Err(OpenError::OnePair(pairs));
            }
            Endpoint::Packet { interface, region } => {
                vec![machine::packet(interface, region.as_deref(), options.channel, frame_size)?]
            }
            Endpoint::VirtioPci { address, region } => {
                vec![machine::virtio_pci(address, region.as_deref(), frame_size)?]
            }
        };
        let open = |transport| Channel::open_on(transport, options.clone());
        transports.into_iter().map(open).collect()
    }

    pub(crate) fn open_on(
        transport: Box<dyn Transport>,
        options: Options,
    ) -> Result<Channel, OpenError> {
        if options.channel >= paste_abi::CHANNELS_MAX {
            return Err(OpenError::Channel(options.channel));
        }
        if usize::from(transport.frame_size().min(options.frame_size)) < FRAME_SIZE_MIN {
            return Err(OpenError::FrameSize(options.frame_size));
        }
        let mut name = [0; 32];
        for (out, byte) in name.iter_mut().zip(options.name.bytes()) {
            *out = byte;
        }
        let conversation = Conversation::new(Setup {
            channel: options.channel,
            mac: transport.mac(),
            frame_size: transport.frame_size(),
            window: transport.capacity(),
            buffers_wanted: options.reserve,
            slots_max: options.queue,
            inline: options.inline,
            probed: transport.ends_unseen(),
            name,
        });
        let frame = vec![0; usize::from(transport.frame_size())].into();
        let mut channel = Channel {
            transport,
            conversation,
            memory: None,
            medium: RegionMedium::new(),
            layout: None,
            geometry: None,
            options,
            link: Link::Up { hello_due: Duration::ZERO, wait: HELLO_WAIT_FIRST },
            frame,
            unread: 0..0,
            inline_left: 0,
            frames_left: 0,
            pending: None,
            kept: VecDeque::new(),
            epoch: 0,
            ever_open: false,
            last_error: None,
            next_cookie: 0,
            stats: Stats::default(),
        };
        channel.hello(HELLO_WAIT_FIRST)?;
        channel.wait_open()?;
        Ok(channel)
    }

    fn wait_open(&mut self) -> Result<(), OpenError> {
        let deadline = sys::monotonic() + self.options.answer_timeout;
        loop {
            let left = deadline.saturating_sub(sys::monotonic());
            if left.is_zero() {
                return Err(OpenError::TimedOut);
            }
            self.turn(Timeout::After(left))?;
            loop {
                match self.take_frame() {
                    Ok(Some(Arrival::Opened(_))) => {
                        self.ever_open = true;
                        return Ok(());
                    }
                    Ok(Some(Arrival::Refused(reason))) => return Err(OpenError::Refused(reason)),
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(Failure::Transport(error)) => return Err(error.into()),
                    Err(Failure::Broken(broken)) => {
                        self.say_bye(broken)?;
                        return Err(OpenError::Lost(LostCause::Protocol(broken.reason)));
                    }
                }
            }
        }
    }

    /// The region's geometry and the channel's limits, as of the last opening.
    pub fn geometry(&self) -> Option<&Geometry> {
        self.geometry.as_ref()
    }

    /// Which of the device's queue pairs it is on, from 0.
    pub fn pair(&self) -> u16 {
        self.transport.pair()
    }

    /// Whether the channel is open now.
    pub fn is_open(&self) -> bool {
        self.conversation.is_open()
    }

    /// The number of the opening that is, which no other has in this process; `None`
    /// while the channel is not open. Names of buffers are of one.
    pub fn opening(&self) -> Option<u32> {
        self.conversation.is_open().then_some(self.epoch)
    }

    // --- moving batches ---------------------------------------------------

    /// Moves one batch both ways: publishes what was queued, signals the host
    /// at most once per ring and only if it asked for that, and takes what has
    /// arrived. If nothing has, waits for at most `timeout`.
    ///
    /// Events of the last batch that were not read are kept, and nothing is
    /// waited for.
    ///
    /// An application in a machine shows by this that it lives: one that does not poll for
    /// half a minute loses its flows.
    pub fn poll(&mut self, timeout: Timeout) -> Result<Batch, PollError> {
        if let (Link::Closed(cause), None) = (self.link, &self.pending) {
            return Err(PollError(cause));
        }
        let waiting = !self.kept.is_empty() || self.pending.is_some();
        match self.turn(if waiting { Timeout::Now } else { timeout }) {
            Ok(batch) => Ok(batch),
            Err(error) => {
                self.fail(error);
                Ok(Batch::default())
            }
        }
    }

    /// The next event of the batch, or `None` when it has been read.
    pub fn next_event(&mut self) -> Option<Event> {
        if let Some(event) = self.kept.pop_front() {
            return Some(event);
        }
        self.read_event()
    }

    /// One turn: out, wait, in.
    fn turn(&mut self, timeout: Timeout) -> Result<Batch, TransportError> {
        let timeout = match self.tend()? {
            Some(due) => timeout.at_most(due),
            None => timeout,
        };
        self.say_flushes();
        let mut batch = Batch { frames_out: self.push_frames()?, frames_in: 0 };
        if !matches!(self.link, Link::Up { .. }) {
            // `tend` has bounded the time-out by the next attempt.
            if let Timeout::After(limit) = timeout {
                sys::sleep(limit).map_err(TransportError::system("waiting to reconnect"))?;
            }
            return Ok(batch);
        }
        self.transport.publish()?;
        self.frames_left = self.transport.refresh()?;
        if self.frames_left == 0 && self.unread.is_empty() {
            self.transport.wait(timeout, self.options.polling)?;
            self.frames_left = self.transport.refresh()?;
        }
        batch.frames_in = self.frames_left;
        self.stats.batches += u64::from(self.frames_left > 0);
        Ok(batch)
    }

    /// Does what time demands: repeats HELLO, reconnects, asks for buffers.
    /// Returns how long until the next of it is due.
    fn tend(&mut self) -> Result<Option<Duration>, TransportError> {
        match self.link {
            Link::Closed(_) => Ok(None),
            Link::Up { .. } if self.conversation.is_open() => {
                self.replenish();
                Ok(None)
            }
            Link::Up { hello_due, wait } => {
                let now = sys::monotonic();
                if now < hello_due {
                    return Ok(Some(hello_due - now));
                }
                self.hello(wait)?;
                Ok(Some(wait))
            }
            Link::Down { retry_at, backoff } => {
                let now = sys::monotonic();
                if now < retry_at {
                    return Ok(Some(retry_at - now));
                }
                if self.transport.reconnect().is_err() {
                    let backoff = (backoff * 2).min(BACKOFF_LAST);
                    self.link = Link::Down { retry_at: now + backoff, backoff };
                    return Ok(Some(backoff));
                }
                let transport = &self.transport;
                let frame_size = transport.frame_size();
                self.conversation.rewire(transport.mac(), frame_size, transport.capacity());
                self.hello(HELLO_WAIT_FIRST)?;
                Ok(Some(HELLO_WAIT_FIRST))
            }
        }
    }

    /// Asks for buffers when the reserve, with those that are on their way, is down
    /// to half.
    fn replenish(&mut self) {
        let ledger = self.conversation.ledger();
        let expected = (ledger.granted() as u32).saturating_add(ledger.wanted());
        let reserve = self.reserve();
        if expected <= reserve / 2 && reserve > 0 {
            // A queue that is full has room after the next poll.
            let _ = self.want(reserve - expected);
        }
    }

    fn hello(&mut self, wait: Duration) -> Result<(), TransportError> {
        let nonce = sys::random_u64();
        self.epoch = EPOCH.fetch_add(1, Ordering::Relaxed);
        self.link =
            Link::Up { hello_due: sys::monotonic() + wait, wait: (wait * 2).min(HELLO_WAIT_LAST) };
        let conversation = &mut self.conversation;
        self.transport.send(&mut |out| conversation.hello(nonce, out))?;
        self.stats.frames_out += 1;
        Ok(())
    }

    fn say_bye(&mut self, why: Broken) -> Result<(), TransportError> {
        let conversation = &mut self.conversation;
        self.transport.send(&mut |out| conversation.bye(why, out))?;
        self.stats.frames_out += 1;
        self.transport.publish()
    }

    /// Builds frames from what is queued, as far as credit and room go.
    fn push_frames(&mut self) -> Result<usize, TransportError> {
        let mut frames = 0;
        while self.conversation.has_output() {
            let conversation = &mut self.conversation;
            let queued = conversation.queued();
            let (memory, copied) = (&self.memory, &mut self.stats.bytes_copied);
            let mut payload = |piece: Piece, out: &mut [u8]| {
                let range = usize::from(piece.offset)..piece.end();
                if let Some(memory) = memory {
                    let bytes = memory.stored(piece.buf_idx, range);
                    out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = *byte);
                    *copied += bytes.len() as u64;
                }
            };
            if !self.transport.send(&mut |out| conversation.build(out, &mut payload))? {
                break;
            }
            self.stats.slots_out += (queued - self.conversation.queued()) as u64;
            frames += 1;
        }
        self.stats.frames_out += frames as u64;
        Ok(frames)
    }

    // --- reading ----------------------------------------------------------

    fn read_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.pending.take() {
                return Some(event);
            }
            let next = self.unread.start + RECORD_LEN;
            if self.inline_left == 0 && next <= self.unread.end {
                let record = self.frame[self.unread.start..next].first_chunk::<RECORD_LEN>();
                self.unread.start = next;
                self.stats.slots_in += 1;
                match record.map(|record| self.conversation.event(record)) {
                    Some(Ok(event)) => match self.settle(&event) {
                        Ok(()) => return Some(event),
                        Err(broken) => self.break_off(broken),
                    },
                    Some(Err(broken)) => self.break_off(broken),
                    None => {}
                }
                continue;
            }
            if self.inline_left > 0 {
                match self.read_inline() {
                    Ok(Some(event)) => return Some(event),
                    Ok(None) => {}
                    Err(broken) => self.break_off(broken),
                }
                continue;
            }
            match self.take_frame() {
                Ok(Some(arrival)) => self.arrived(arrival),
                Ok(None) => return None,
                Err(Failure::Broken(broken)) => self.break_off(broken),
                Err(Failure::Transport(error)) => self.fail(error),
            }
        }
    }

    /// Reads the next slot of an INLINE frame and keeps what it brings; no event if that is
    /// all that it does.
    fn read_inline(&mut self) -> Result<Option<Event>, Broken> {
        let rest = &self.frame[self.unread.clone()];
        let (slot, piece, bytes) = self.conversation.inline(rest)?;
        if let Some(memory) = &mut self.memory
            && memory.fill(piece, bytes)
        {
            self.stats.bytes_copied += bytes.len() as u64;
        }
        self.unread.start += RECORD_LEN + bytes.len();
        self.inline_left -= 1;
        if self.inline_left == 0 {
            // What follows is padding.
            self.unread = 0..0;
        }
        if slot.as_event() == Some(paste_abi::Event::Piece) {
            return Ok(None);
        }
        self.stats.slots_in += 1;
        let mut record = [0; RECORD_LEN];
        slot.write(&mut record);
        let event = self.conversation.event(&record)?;
        self.settle(&event)?;
        Ok(Some(event))
    }

    /// Takes the next frame of the batch and hears what it is. Its slots, if
    /// any, become unread.
    fn take_frame(&mut self) -> Result<Option<Arrival>, Failure> {
        if self.frames_left == 0 {
            return Ok(None);
        }
        self.frames_left -= 1;
        let Some(len) = self.transport.receive(&mut self.frame)? else {
            self.frames_left = 0;
            return Ok(None);
        };
        let arrival = self.conversation.receive(&self.frame[..len], self.epoch)?;
        match arrival {
            Arrival::Slots(count) => self.unread = HEADER_LEN..HEADER_LEN + count * RECORD_LEN,
            Arrival::Inline(count) => {
                self.inline_left = count;
                self.unread = HEADER_LEN..len;
            }
            Arrival::Opened(geometry) => self.map(geometry)?,
            _ => {}
        }
        self.stats.frames_in += u64::from(arrival != Arrival::Nothing);
        Ok(Some(arrival))
    }

    fn arrived(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Opened(_) => {
                if self.ever_open {
                    self.pending = Some(Event::Opened);
                }
                self.ever_open = true;
            }
            Arrival::Resumed => {
                let ledger = self.conversation.ledger();
                if ledger.is_resumed() {
                    self.pending = Some(Event::Resumed { refused: ledger.take_refused() });
                }
            }
            Arrival::Closed(reason) => self.lost(LostCause::Host(reason)),
            // Asked again with the next HELLO: the host may have to settle
            // the last opening first.
            Arrival::Refused(_)
            | Arrival::Nothing
            | Arrival::Slots(_)
            | Arrival::Inline(_)
            | Arrival::Granted => {}
        }
    }

    /// Maps the region of an opening that has just begun.
    fn map(&mut self, geometry: Geometry) -> Result<(), TransportError> {
        self.memory = None;
        let mapping = Arc::new(if geometry.inline {
            private_memory(geometry.region_size)?
        } else {
            self.transport.map_region(geometry.region_uuid, geometry.region_size)?
        });
        self.memory = Memory::new(Arc::clone(&mapping), &geometry, self.epoch);
        self.geometry = Some(geometry);
        if self.memory.is_none() {
            return Err(TransportError::Protocol("the buffers do not lie in the region"));
        }
        self.medium.open(mapping, geometry.flush_domain)?;
        self.layout = paste_pmem::guest_layout(&self.medium)
            .ok()
            .filter(|(uuid, _)| uuid.0 == geometry.region_uuid)
            .map(|(_, layout)| layout);
        Ok(())
    }

    // --- the end, and beginning anew ---------------------------------------

    /// The host broke the protocol: says so, and opens anew.
    fn break_off(&mut self, broken: Broken) {
        match self.say_bye(broken) {
            Ok(()) => self.lost(LostCause::Protocol(broken.reason)),
            Err(error) => self.fail(error),
        }
    }

    /// The transport failed.
    fn fail(&mut self, error: TransportError) {
        self.last_error = Some(error);
        self.frames_left = 0;
        let was_down = matches!(self.link, Link::Down { .. });
        if was_down {
            return;
        }
        self.lost(LostCause::Transport);
        if self.options.reopen {
            let retry_at = sys::monotonic() + BACKOFF_FIRST;
            self.link = Link::Down { retry_at, backoff: BACKOFF_FIRST };
        }
    }

    /// Forgets the opening, tells the application, and plans the next one.
    fn lost(&mut self, cause: LostCause) {
        self.conversation.forget();
        self.memory = None;
        self.medium.lose();
        self.unread = 0..0;
        self.inline_left = 0;
        if self.ever_open {
            // An opening that never came about is no loss to the application.
            self.pending = Some(Event::Lost { cause });
            self.stats.lost += 1;
        }
        self.link = if self.options.reopen {
            Link::Up { hello_due: sys::monotonic() + BACKOFF_FIRST, wait: HELLO_WAIT_FIRST }
        } else {
            Link::Closed(cause)
        };
    }

    /// Why the transport failed last, if it did: what [`LostCause::Transport`]
    /// stands for.
    pub fn last_error(&self) -> Option<&TransportError> {
        self.last_error.as_ref()
    }

    /// Ends the channel in good order: sends what was queued as far as the
    /// host's credit goes, says goodbye, and waits a moment for the host to
    /// take it. The host resets what flows are left. A channel that is merely
    /// dropped ends as well; the host then learns it from the device.
    pub fn shutdown(mut self) -> Result<(), TransportError> {
        if self.conversation.is_open() {
            self.say_flushes();
            self.push_frames()?;
            self.say_bye(Broken { reason: Reason::Shutdown, expected: 0, got: 0 })?;
            self.transport.drain(DRAIN_TIME)?;
        }
        Ok(())
    }
}

/// A channel that is dropped ends for the host as well, which sees it by itself only if the
/// device has ended with it.
impl Drop for Channel {
    fn drop(&mut self) {
        if self.transport.pairs() == 1 || !self.conversation.is_open() {
            return;
        }
        // What the host has no room for now it may have soon; one that is gone needs no word.
        let _ = self.transport.drain(DRAIN_TIME);
        let _ = self.say_bye(Broken { reason: Reason::Shutdown, expected: 0, got: 0 });
    }
}

/// Memory of this process's own in the form of a region that it cannot see. What is never
/// touched costs nothing.
fn private_memory(len: u64) -> Result<sys::Mapping, TransportError> {
    let len = usize::try_from(len)
        .map_err(|_| TransportError::Protocol("the region is larger than memory can be"))?;
    let memory =
        sys::shared_memory(len).map_err(TransportError::system("making memory for buffers"))?;
    sys::Mapping::from_fd(memory.as_fd(), 0, len, true)
        .map_err(|error| TransportError::Map { what: "mapping memory for buffers", error })
}

/// Why a frame could not be taken.
enum Failure {
    Broken(Broken),
    Transport(TransportError),
}

impl From<Broken> for Failure {
    fn from(broken: Broken) -> Failure {
        Failure::Broken(broken)
    }
}

impl From<TransportError> for Failure {
    fn from(error: TransportError) -> Failure {
        Failure::Transport(error)
    }
}

#[cfg(test)]
mod durable_tests;
#[cfg(test)]
mod inline_tests;
#[cfg(test)]
mod tests;
