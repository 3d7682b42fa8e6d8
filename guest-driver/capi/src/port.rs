//! A channel behind a ring: events become slots, and what the application has passed or
//! named is given back or sent.

mod durable;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use paste_abi::{Flow, Reason};
use paste_guest::{
    Buffer, Channel, Endpoint, Event, Geometry, LostCause, Options, Polling, SendOptions, Timeout,
};
use paste_pmem::Mapping;

use crate::error::{Failure, PASTE_EBUSY, PASTE_EINVAL, PASTE_ESTALE};
use crate::ring::Ring;
use crate::types::{self, paste_buf, paste_ring, paste_slot};
pub(crate) use durable::Appended;
use durable::Durable;

/// Slots of a ring, unless told otherwise.
const RING_DEFAULT: u32 = 1024;
/// Slots that a ring can have.
const RING_MAX: u32 = 1 << 16;

/// What was asked for when a port was opened; 0 stands for the usual.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) name: Option<String>,
    pub(crate) ring_slots: u32,
    pub(crate) reserve: u32,
    pub(crate) poll_us: u32,
    pub(crate) channel: u16,
    pub(crate) inline: bool,
}

/// A buffer that the application has.
#[derive(Debug)]
struct Held {
    buffer: Buffer,
    /// The slot that it lies in; `None`: it was taken out of it.
    slot: Option<u32>,
}

/// A stack port.
#[derive(Debug)]
pub(crate) struct Port {
    channel: Channel,
    ring: Ring,
    /// By index in the region.
    held: Vec<Option<Held>>,
    /// By slot, the buffer that was put there.
    in_slot: Box<[Option<u32>]>,
    /// Counts the openings.
    epoch: u32,
    /// The channel's number for the one that the application knows of.
    opening: Option<u32>,
    /// The region that pointers of this opening are into.
    mapping: Option<Arc<Mapping>>,
    /// Those of earlier ones, each until its slot is passed.
    lost: VecDeque<(u32, Arc<Mapping>)>,
    durable: Durable,
    /// A panic has left it in no state to be used.
    broken: bool,
}

impl Port {
    pub(crate) fn open(endpoint: &Endpoint, wanted: Wanted) -> Result<Port, Failure> {
        let slots = match wanted.ring_slots {
            0 => RING_DEFAULT,
            slots @ 2..=RING_MAX => slots,
            slots => {
                let message = format!("ring_slots is {slots}: it is from 2 to {RING_MAX}");
                return Err(Failure::new(PASTE_EINVAL, message));
            }
        };
        let defaults = Options::default();
        let options = Options {
            channel: wanted.channel,
            name: wanted.name.unwrap_or(defaults.name),
            reserve: if wanted.reserve == 0 { defaults.reserve } else { wanted.reserve },
            polling: Polling {
                poll_time: Duration::from_micros(wanted.poll_us.into()),
                yield_now: true,
            },
            inline: wanted.inline,
            ..Options::default()
        };
        let mut port = Port {
            channel: Channel::open(endpoint, options)?,
            ring: Ring::new(slots),
            held: Vec::new(),
            in_slot: vec![None; slots as usize].into(),
            epoch: 0,
            opening: None,
            mapping: None,
            lost: VecDeque::new(),
            durable: Durable::default(),
            broken: false,
        };
        port.opened();
        Ok(port)
    }

    /// Runs `work`, unless an earlier one has panicked, or does now.
    pub(crate) fn run<T>(
        &mut self,
        work: impl FnOnce(&mut Port) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if self.broken {
            return Err(Failure::new(
                crate::error::PASTE_EFAULT,
                "a fault of the library's own has left this port in no good state: close it",
            ));
        }
        self.broken = true;
        let result = work(self);
        self.broken = false;
        result
    }

    pub(crate) fn ring(&self) -> *mut paste_ring {
        self.ring.shared()
    }

    /// Gives back what was passed, moves a batch both ways, and fills the ring. How many
    /// slots are the application's then.
    pub(crate) fn poll(&mut self, timeout: Timeout) -> Result<i32, Failure> {
        let head = self.ring.head()?;
        while let Some(slot) = self.ring.settle(head) {
            self.passed(slot);
        }
        self.tend_log();
        // What it has not seen yet needs no waiting for.
        let timeout = if self.ring.len() > 0 { Timeout::Now } else { timeout };
        self.channel.poll(timeout)?;
        while self.ring.has_room()
            && let Some(event) = self.channel.next_event()
        {
            if let Some(slot) = self.slot(event) {
                self.ring.push(slot);
            }
        }
        Ok(self.ring.len() as i32)
    }

    fn passed(&mut self, slot: u32) {
        if let Some(index) = self.in_slot[slot as usize].take()
            && let Some(held) = self.held.get_mut(index as usize)
            && held.as_ref().is_some_and(|held| held.slot == Some(slot))
            && let Some(Held { buffer, .. }) = held.take()
        {
            self.channel.give_back(buffer);
        }
        if self.lost.front().is_some_and(|&(at, _)| at == slot) {
            self.lost.pop_front();
        }
    }

    /// A new opening: buffers of the one before are dead.
    fn opened(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        self.opening = self.channel.opening();
        self.mapping = self.channel.mapping();
        let count = self.channel.geometry().map_or(0, |geometry| geometry.buffer_count);
        self.held.clear();
        self.held.resize_with(count as usize, || None);
    }

    /// What an event is to C; `None` if it is of what C cannot ask for.
    fn slot(&mut self, event: Event) -> Option<paste_slot> {
        let of = |kind, Flow(flow)| paste_slot { kind, flow, ..paste_slot::EMPTY };
        Some(match event {
            Event::Opened => {
                self.opened();
                of(types::PASTE_OPENED, Flow::default())
            }
            Event::Lost { cause } => {
                self.held.fill_with(|| None);
                self.durable.lose();
                self.opening = None;
                self.epoch = self.epoch.wrapping_add(1);
                if let Some(mapping) = self.mapping.take() {
                    self.lost.push_back((self.ring.tail(), mapping));
                }
                let reason = match cause {
                    LostCause::Host(reason) | LostCause::Protocol(reason) => reason as u16,
                    LostCause::Transport => 0,
                };
                paste_slot { reason, ..of(types::PASTE_LOST, Flow::default()) }
            }
            Event::Accepted { flow, listener, peer, local_port } => {
                let mut address = [0; 16];
                let family = match peer.ip() {
                    IpAddr::V4(ip) => {
                        address[..4].copy_from_slice(&ip.octets());
                        4
                    }
                    IpAddr::V6(ip) => {
                        address = ip.octets();
                        6
                    }
                };
                paste_slot {
                    listener: listener.0,
                    local_port,
                    peer_port: peer.port(),
                    peer_family: family,
                    peer: address,
                    ..of(types::PASTE_ACCEPTED, flow)
                }
            }
            Event::Connected { flow, cookie } => {
                paste_slot { cookie, ..of(types::PASTE_CONNECTED, flow) }
            }
            Event::Data { flow, data } => {
                let time_ns = data.time_ns();
                let buf = self.hold(data, true);
                paste_slot { time_ns, buf, ..of(types::PASTE_DATA, flow) }
            }
            Event::Fin { flow } => of(types::PASTE_FIN, flow),
            Event::Reset { flow, reason } => {
                paste_slot { reason: reason as u16, ..of(types::PASTE_RESET, flow) }
            }
            Event::Closed { flow } => of(types::PASTE_CLOSED, flow),
            Event::Acked { flow, cookie, buffer } => {
                let buf = buffer.map_or(paste_buf::NONE, |buffer| self.hold(buffer, true));
                paste_slot { cookie, buf, ..of(types::PASTE_ACKED, flow) }
            }
            Event::Writable { flow } => of(types::PASTE_WRITABLE, flow),
            Event::Reply { cookie, result } => {
                let (flow, reason) = match result {
                    Ok(flow) => (flow, Reason::Ok),
                    Err(reason) => (Flow::default(), reason),
                };
                paste_slot { cookie, reason: reason as u16, ..of(types::PASTE_REPLY, flow) }
            }
            Event::Refused { flow, reason, cookie, buffer } => {
                let buf = buffer.map_or(paste_buf::NONE, |buffer| self.hold(buffer, true));
                let reason = reason as u16;
                paste_slot { cookie, reason, buf, ..of(types::PASTE_REFUSED, flow) }
            }
            Event::Flushed { ticket, result } => {
                let cookie = self.durable.answered(ticket)?;
                let reason = result.err().unwrap_or(Reason::Ok) as u16;
                paste_slot { cookie, reason, ..of(types::PASTE_FLUSHED, Flow::default()) }
            }
            Event::Resumed { .. } => return None,
        })
    }

    /// Records a buffer as the application's, in the next slot or in none.
    fn hold(&mut self, buffer: Buffer, in_slot: bool) -> paste_buf {
        let index = buffer.index();
        let (mapping, geometry) = (self.mapping.as_ref(), self.channel.geometry());
        let (Some(mapping), Some(geometry), Some(entry)) =
            (mapping, geometry, self.held.get_mut(index as usize))
        else {
            // Of an opening that was lost meanwhile.
            self.channel.give_back(buffer);
            return paste_buf::NONE;
        };
        let buf = paste_buf {
            p: mapping.as_ptr().wrapping_add(place(geometry, index) as usize),
            off: buffer.offset() as u32,
            len: buffer.len() as u32,
            size: buffer.capacity() as u32,
            index,
            epoch: self.epoch,
        };
        let slot = in_slot.then(|| self.ring.tail());
        if let Some(slot) = slot {
            self.in_slot[slot as usize] = Some(index);
        }
        *entry = Some(Held { buffer, slot });
        buf
    }

    /// The record of a buffer that C names.
    fn find(&mut self, buf: &paste_buf) -> Result<&mut Option<Held>, Failure> {
        if buf.p.is_null() || buf.epoch != self.epoch {
            return Err(stale(buf));
        }
        let held = self.held.get_mut(buf.index as usize);
        held.filter(|held| held.is_some()).ok_or_else(|| stale(buf))
    }

    /// Sends the range of a buffer.
    pub(crate) fn send(
        &mut self,
        flow: Flow,
        buf: &paste_buf,
        cookie: u64,
        flags: u32,
    ) -> Result<(), Failure> {
        let options = options(
            cookie,
            flags,
            types::PASTE_SEND_NOTIFY | types::PASTE_SEND_KEEP | types::PASTE_SEND_DURABLE,
        )?;
        let (start, len) = (buf.off as usize, buf.len as usize);
        let end = start.saturating_add(len);
        let capacity = self.find(buf)?.as_ref().map_or(0, |held| held.buffer.capacity());
        if end > capacity {
            return Err(outside(buf, capacity));
        }
        if options.durable {
            self.commit_appended()?;
        }
        let Some(Held { mut buffer, slot }) = self.find(buf)?.take() else {
            return Err(stale(buf));
        };
        if (buffer.offset(), buffer.len()) != (start, len) {
            buffer.set_range(start..end);
        }
        self.channel.send(flow, buffer, options).map_err(|refused| {
            self.held[buf.index as usize] = Some(Held { buffer: refused.buffer, slot });
            Failure::from(refused.cause)
        })
    }

    /// An empty buffer.
    pub(crate) fn alloc(&mut self) -> Result<paste_buf, Failure> {
        let none = || Failure::new(PASTE_EBUSY, "no buffer is left: poll, and try again");
        let buffer = self.channel.take_buffer().ok_or_else(none)?;
        match self.hold(buffer, false) {
            buf if buf.p.is_null() => Err(none()),
            buf => Ok(buf),
        }
    }

    /// Takes a buffer out of its slot, so that it stays when the slot is passed.
    pub(crate) fn keep(&mut self, buf: &paste_buf) -> Result<(), Failure> {
        if let Some(held) = self.find(buf)? {
            held.slot = None;
        }
        Ok(())
    }

    /// Gives a buffer back.
    pub(crate) fn release(&mut self, buf: &paste_buf) -> Result<(), Failure> {
        if let Some(Held { buffer, .. }) = self.find(buf)?.take() {
            self.channel.give_back(buffer);
        }
        Ok(())
    }

    pub(crate) fn listen(&mut self, port: u16, backlog: u16) -> Result<Flow, Failure> {
        Ok(self.channel.listen(port, backlog)?)
    }

    pub(crate) fn request_listen(&mut self, port: u16, backlog: u16) -> Result<u64, Failure> {
        Ok(self.channel.request_listen(port, backlog)?)
    }

    pub(crate) fn unlisten(&mut self, listener: Flow) -> Result<u64, Failure> {
        Ok(self.channel.unlisten(listener)?)
    }

    pub(crate) fn connect(&mut self, remote: SocketAddr, local: u16) -> Result<u64, Failure> {
        Ok(self.channel.connect(remote, local)?)
    }

    pub(crate) fn finish(&mut self, flow: Flow) -> Result<(), Failure> {
        Ok(self.channel.close(flow)?)
    }

    pub(crate) fn abort(&mut self, flow: Flow) -> Result<(), Failure> {
        Ok(self.channel.abort(flow)?)
    }

    /// Ends the channel in good order.
    pub(crate) fn shutdown(self) -> Result<(), Failure> {
        if self.broken {
            return Ok(());
        }
        self.channel
            .shutdown()
            .map_err(|error| Failure::new(crate::error::PASTE_ELOST, error.to_string()))
    }
}

/// Where a buffer lies in what is mapped, in bytes.
fn place(geometry: &Geometry, index: u32) -> u64 {
    geometry.buffers_offset + u64::from(index) * u64::from(geometry.buffer_size)
}

/// How to send, by flags of which these are known.
fn options(cookie: u64, flags: u32, known: u32) -> Result<SendOptions, Failure> {
    if flags & !known != 0 {
        return Err(Failure::new(PASTE_EINVAL, format!("flags {flags:#x} are not known")));
    }
    Ok(SendOptions {
        cookie,
        notify: flags & types::PASTE_SEND_NOTIFY != 0,
        keep: flags & types::PASTE_SEND_KEEP != 0,
        durable: flags & types::PASTE_SEND_DURABLE != 0,
    })
}

fn outside(buf: &paste_buf, capacity: usize) -> Failure {
    let message = format!("{} bytes at {} do not lie in {capacity}", buf.len, buf.off);
    Failure::new(PASTE_EINVAL, message)
}

fn stale(buf: &paste_buf) -> Failure {
    let message = format!("buffer {} is not, or no longer, the application's", buf.index);
    Failure::new(PASTE_ESTALE, message)
}
