//! The data plane of `xdp:`: frames from and to the rings of a device that is being
//! served, and what happens when it no longer is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use paste_pmem::{Owner, Pool};
use paste_stack::{Origin, RxCsum, RxFrame, TxBatch, TxFrame};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::xdp::{XdpDesc, XdpDescOptions};

use super::super::{
    Caps, ETHERNET_LEN, FRAME_OVERHEAD, Now, Port, PortCounters, PortError, Received, RxBatch,
    Station, give_back, is_malformed,
};
use super::ledger::{Ledger, Slots};
use super::level::Level;
use super::live::{self, Live, Wanted};
use super::sys::netlink::{self, News};
use super::sys::rings::Insane;
use super::sys::socket::{CHUNK_MIN, FRAME_OFFSET, RX_LEN};
use super::sys::umem::{self, Extent, Umem};
use super::{Mode, XdpError, XdpOptions, unfilled};

/// Bytes of private memory: pieces of a buffer's size, or as many smaller ones.
const PRIVATE_LEN: usize = 2 << 20;
/// Bytes of a piece that holds no more than a frame's head.
const HEAD_SIZE: usize = paste_stack::frame::HEAD_MAX;
/// Of the buffers, the port keeps one in this many at most, so that a small region is
/// not all in its rings.
const SHARE: u32 = 8;
/// News of the device are looked for this often, in ns; the worker comes by when they
/// wake it.
const LOOK_INTERVAL: u64 = 10_000_000;
/// What left the rings without the kernel saying so is looked for after this long, ns.
const REAP_INTERVAL: u64 = 1_000_000;

/// What only this kind of port counts.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    /// Frames with a checksum that their sender left to a device, taken as they are.
    rx_unfilled_taken: u64,
    /// The same, from elsewhere than this machine: the stack drops them.
    rx_unfilled_refused: u64,
    /// Frames whose head and payload were copied together.
    tx_joined: u64,
    /// What the kernel said of its rings that could not be.
    ring_errors: u64,
    /// Times that the device was lost.
    lost: u64,
    /// Frames that the kernel had no buffer or no room for, of devices that are lost.
    rx_missed: u64,
    /// How the device is served, or was last.
    served: Served,
}

/// How a device is served.
#[derive(Clone, Copy, Debug, Default)]
struct Served {
    queues: u64,
    driver_mode: bool,
    zero_copy: bool,
    gather: bool,
}

/// One queue's share of the port.
#[derive(Clone, Copy, Debug)]
struct Receiving {
    /// Buffers that the kernel has, to fill or filled.
    filling: u32,
    /// How many it is to have.
    level: Level,
    /// The rest of a frame that is too long is still to come.
    skipping: bool,
}

/// A network device by AF_XDP. The order of the fields is that of taking down: nothing
/// is served when the memory goes.
#[derive(Debug)]
pub struct XdpPort {
    live: Option<Live>,
    /// By queue.
    receiving: Vec<Receiving>,
    /// The queue that is looked at first.
    first: usize,
    wanted: Wanted,
    frame_max: usize,
    /// Buffers that the port keeps in its rings at most.
    fill_max: u32,
    ledger: Ledger,
    slots: Slots,
    umem: Umem,
    /// Buffers taken and not used, to be filled again.
    spare: Vec<u32>,
    /// Readable when a socket or the news is.
    events: OwnedFd,
    news: News,
    looked_at: u64,
    /// Something is wrong with the device: it is to be looked at.
    suspect: bool,
    /// Something is wrong with its rings: they are to be made anew.
    insane: Option<Insane>,
    /// Frames were under way when the device was lost: they are to be ended.
    orphans: bool,
    /// Frames wait in the ring that the kernel did not take at once.
    unkicked: bool,
    /// When the port was last told the time, on the monotonic clock, in ns.
    now: u64,
    /// It was said that checksums come unfilled, and that frames come too long.
    told_unfilled: bool,
    told_oversize: bool,
    counters: PortCounters,
    more: Counters,
}

impl XdpPort {
    /// Serves the device.
    ///
    /// # Errors
    /// [`XdpError`]; nothing is left attached.
    pub fn open(options: &XdpOptions<'_>) -> Result<XdpPort, XdpError> {
        let XdpOptions { name, queue, mode, mtu, stations, devices, region } = *options;
        let geometry = region.geometry();
        let (buffers, chunk_size) = (geometry.buffers(), geometry.buffer_size());
        let wanted = Wanted {
            name: name.to_owned(),
            queue,
            mode,
            mtu,
            stations: stations.to_vec(),
            devices: devices.clone(),
            region: region.name().to_owned(),
            chunk_size,
        };
        judge_size(&wanted)?;
        let failed = |call| {
            move |errno: Errno| XdpError::Failed {
                name: name.to_owned(),
                call,
                source: errno.into(),
            }
        };
        let file = region.fd();
        let extent = Extent {
            file,
            offset: region.guest_offset() + buffers.offset,
            len: chunk_size as usize * geometry.buffer_count() as usize,
            page: umem::page_size(file).map_err(failed("fstatfs"))?,
        };
        let umem = Umem::map(PRIVATE_LEN, &extent).map_err(failed("mmap"))?;
        let news = News::listen().map_err(failed("a netlink socket"))?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("epoll_create"))?;
        epoll::add(&events, &news, epoll::EventData::new_u64(0), epoll::EventFlags::IN)
            .map_err(failed("epoll_ctl"))?;
        let mut port = XdpPort {
            live: None,
            receiving: Vec::new(),
            first: 0,
            frame_max: usize::from(mtu) + usize::from(FRAME_OVERHEAD),
            fill_max: (geometry.buffer_count() / SHARE).max(1),
            ledger: Ledger::new(geometry.buffer_count()),
            slots: Slots::new(0, HEAD_SIZE),
            umem,
            spare: Vec::new(),
            events,
            news,
            looked_at: 0,
            suspect: false,
            insane: None,
            orphans: false,
            unkicked: false,
            now: 0,
            told_unfilled: false,
            told_oversize: false,
            counters: PortCounters::default(),
            more: Counters::default(),
            wanted,
        };
        port.serve()?;
        Ok(port)
    }

    /// Whether this system can do it for this user: makes a socket, and a program that
    /// is attached to nothing.
    ///
    /// # Errors
    /// [`XdpError`], which names no device.
    pub fn probe() -> Result<(), XdpError> {
        live::probe()
    }

    /// Takes the device into service, and says how it is.
    fn serve(&mut self) -> Result<(), XdpError> {
        let live = self.wanted.serve(&self.umem)?;
        let (name, size) = (&self.wanted.name, self.wanted.chunk_size as usize);
        for queue in &live.queues {
            epoll::add(&self.events, queue, epoll::EventData::new_u64(1), epoll::EventFlags::IN)
                .map_err(|errno| XdpError::Failed {
                    name: name.clone(),
                    call: "epoll_ctl",
                    source: errno.into(),
                })?;
        }
        let piece = if live.service.gather { HEAD_SIZE } else { size };
        self.slots = Slots::new((PRIVATE_LEN / size) as u32, piece);
        let share = (self.fill_max / live.queues.len().max(1) as u32).min(RX_LEN);
        let idle = Receiving { filling: 0, level: Level::new(share), skipping: false };
        self.receiving = vec![idle; live.queues.len()];
        self.spare.reserve(self.fill_max as usize);
        (self.first, self.suspect, self.unkicked) = (0, false, false);
        tracing::info!(
            device = name,
            mode = live.mode().name(),
            zero_copy = live.service.zero_copy,
            gather = live.service.gather,
            queues = live.queues.len(),
            "the device is served by AF_XDP"
        );
        if live.link.mtu > u32::from(self.wanted.mtu) {
            tracing::warn!(
                device = name,
                device_mtu = live.link.mtu,
                guest_mtu = self.wanted.mtu,
                "the device carries longer frames than the guest takes; they will be dropped"
            );
        }
        self.more.served = Served {
            queues: live.queues.len() as u64,
            driver_mode: live.mode() == Mode::Driver,
            zero_copy: live.service.zero_copy,
            gather: live.service.gather,
        };
        self.live = Some(live);
        Ok(())
    }

    /// Lets go of the device. Buffers that it was to fill are free again; frames that
    /// were under way are ended when the port next sends.
    fn lose(&mut self, pool: &mut Pool) {
        if let Some(live) = self.live.take() {
            self.more.rx_missed += live.missed();
            self.orphans = true;
        }
        self.receiving.clear();
        self.ledger.take_all(|buf| give_back(pool, buf));
        for buf in self.spare.drain(..) {
            give_back(pool, buf);
        }
    }

    fn failed(&self, call: &'static str, source: io::Error) -> PortError {
        PortError::Failed { port: format!("xdp:{}", self.wanted.name), call, source }
    }

    /// Sees how the device is: once at a time when there was news of devices, or when
    /// something failed.
    fn look(&mut self, pool: &mut Pool) -> Result<(), PortError> {
        self.suspect = true;
        let Some(live) = &self.live else { return Ok(()) };
        let is_same = match netlink::link(&self.wanted.name) {
            Ok(link) if link.index == live.link.index => Ok(link.up),
            Ok(_) | Err(Errno::NODEV) => Err(Errno::NODEV),
            Err(errno) => return Err(self.failed("RTM_GETLINK", errno.into())),
        };
        match is_same {
            Ok(true) => {
                // Frames may still be in the ring from before it was down.
                (self.suspect, self.unkicked) = (false, true);
                Ok(())
            }
            Ok(false) => {
                Err(PortError::Out(XdpError::Down { name: self.wanted.name.clone() }.into()))
            }
            Err(_) => {
                self.lose(pool);
                self.more.lost += 1;
                Err(PortError::Out(XdpError::NoDevice { name: self.wanted.name.clone() }.into()))
            }
        }
    }

    /// The rings cannot be believed: everything is made anew.
    fn distrust(&mut self, pool: &mut Pool, insane: Insane) -> PortError {
        self.more.ring_errors += 1;
        self.lose(pool);
        self.failed("reading a ring", io::Error::other(insane))
    }

    /// What is to be told an operator once, and was found on the data path.
    fn tell(&mut self) {
        let Some(live) = &self.live else { return };
        let device = &self.wanted.name;
        if self.counters.drops.rx_oversize > 0 && !self.told_oversize {
            self.told_oversize = true;
            tracing::warn!(
                device,
                "frames come that are longer than the guest's MTU, and are dropped; if they are \
                 segments that a sender on this machine has joined, `ethtool -K PEER tso off gso \
                 off` for {device}'s peer"
            );
        }
        if self.told_unfilled || self.more.rx_unfilled_taken + self.more.rx_unfilled_refused == 0 {
            return;
        }
        self.told_unfilled = true;
        if live.is_local() {
            tracing::warn!(
                device,
                "frames come with checksums that their sender has left to its device, which did \
                 not fill them in; they are taken unverified, because the sender is on this \
                 machine: to have them verified, `ethtool -K PEER tx off` for {device}'s peer"
            );
        } else {
            tracing::warn!(
                device,
                "frames come with checksums that their sender has left to its device, which did \
                 not fill them in; they are dropped: `ethtool -K PEER tx off` for the sender \
                 behind {device}"
            );
        }
    }

    /// Takes what arrived on one queue.
    fn take(
        &mut self,
        index: usize,
        now: Now,
        pool: &Pool,
        out: &mut RxBatch,
    ) -> Result<usize, Insane> {
        let Self { live, receiving, ledger, umem, spare, counters, more, frame_max, .. } = self;
        let Some(live) = live else { return Ok(0) };
        let is_local = live.is_local();
        let (queue, state) = (&mut live.queues[index], &mut receiving[index]);
        let waiting = queue.rx.available()?;
        state.level.saw(waiting);
        let available = waiting.min(out.room() as u32);
        if available == 0 {
            return Ok(0);
        }
        let (shift, size) = (pool.buffers().size().trailing_zeros(), pool.buffers().size() as u64);
        let mut received = 0;
        for ahead in 0..available {
            let XdpDesc { addr, len, options } = queue.rx.read(ahead);
            let (at, len) = (addr.wrapping_sub(umem.buffers_at()), u64::from(len));
            let offset = at & (size - 1);
            let Some(buf) = ledger.take(at >> shift) else {
                more.ring_errors += 1;
                continue;
            };
            state.filling -= 1;
            let continues = options.contains(XdpDescOptions::XDP_PKT_CONTD);
            let whole = !continues && !state.skipping;
            if !whole {
                counters.drops.rx_oversize += u64::from(!state.skipping);
                state.skipping = continues;
            } else if len > *frame_max as u64 {
                counters.drops.rx_oversize += 1;
            } else if len < ETHERNET_LEN as u64 {
                counters.drops.rx_runt += 1;
            } else if len > size - offset {
                more.ring_errors += 1;
            } else {
                let mut frame = RxFrame {
                    buf,
                    offset: offset as u16,
                    len: len as u16,
                    csum: RxCsum::Unknown,
                    time: now.real_ns,
                };
                let partial = judge_csum(&frame, pool, is_local, more);
                if partial.is_some() {
                    frame.csum = RxCsum::Partial;
                }
                counters.rx_frames += 1;
                counters.rx_bytes += len;
                if !live.service.zero_copy {
                    counters.rx_bytes_copied += len;
                }
                out.push(Received { frame, partial });
                received += 1;
                continue;
            }
            spare.push(buf);
        }
        queue.rx.release(available);
        Ok(received)
    }

    /// Gives the kernel buffers to fill, as many as the queue lacks.
    fn fill(&mut self, index: usize, pool: &mut Pool) -> Result<(), Insane> {
        let Self { live, receiving, ledger, umem, spare, counters, .. } = self;
        let Some(live) = live else { return Ok(()) };
        let (queue, state) = (&mut live.queues[index], &mut receiving[index]);
        let level = state.level.get();
        let lacking = level.saturating_sub(state.filling);
        // A few at a time are not worth a store that the kernel has to fetch.
        if lacking > level / 4 {
            let lacking = lacking.min(queue.fill.room()?);
            let shift = pool.buffers().size().trailing_zeros();
            let mut given = 0;
            while given < lacking {
                let Some(buf) = spare.pop().or_else(|| pool.take(Owner::Port)) else {
                    counters.rx_no_buffer += 1;
                    break;
                };
                ledger.give(buf);
                queue.fill.write(given, umem.buffers_at() + (u64::from(buf) << shift));
                given += 1;
            }
            if given > 0 {
                state.filling += given;
                queue.fill.publish(given);
            }
        }
        if live.service.zero_copy && queue.fill.needs_wakeup() {
            counters.syscalls += 1;
            // What fails here is found when the device is looked at.
            let _ = queue.kick_rx();
        }
        Ok(())
    }

    /// Takes and fills on all queues, beginning with another one each time.
    fn receive_all(
        &mut self,
        now: Now,
        pool: &mut Pool,
        out: &mut RxBatch,
    ) -> Result<usize, Insane> {
        let count = self.receiving.len();
        let mut received = 0;
        for step in 0..count {
            let index = (self.first + step) % count;
            received += self.take(index, now, pool, out)?;
            self.fill(index, pool)?;
        }
        self.first = (self.first + 1) % count.max(1);
        Ok(received)
    }

    /// Has the kernel send, if it waits to be told.
    fn kick(&mut self) {
        let Some(queue) = self.live.as_ref().and_then(|live| live.queues.first()) else { return };
        let Some(tx) = &queue.tx else { return };
        self.unkicked = false;
        let Ok(waiting @ 1..) = tx.waiting() else { return };
        if !tx.needs_wakeup() {
            return;
        }
        let (calls, sent) = queue.kick_tx(waiting);
        self.counters.syscalls += calls;
        match sent {
            Ok(()) => {
                self.unkicked = tx.needs_wakeup() && tx.waiting().is_ok_and(|left| left > 0);
            }
            Err(Errno::NXIO | Errno::NETDOWN | Errno::NODEV) => self.suspect = true,
            // More than it takes at once, or than it has memory for.
            Err(_) => self.unkicked = true,
        }
    }

    /// Puts the frames from the front of `batch` into the ring until one or the other is
    /// at its end, and returns how many frames are no longer the batch's.
    fn put(
        &mut self,
        pool: &Pool,
        batch: &TxBatch,
        done: &mut dyn FnMut(Origin, u32),
    ) -> Result<usize, Insane> {
        let Self { live, ledger, slots, umem, counters, more, frame_max, .. } = self;
        let Some(live) = live else { return Ok(0) };
        let service = live.service;
        let Some(tx) = live.queues.first_mut().and_then(|queue| queue.tx.as_mut()) else {
            return Ok(0);
        };
        let room = tx.room()?;
        let shift = pool.buffers().size().trailing_zeros();
        let (mut used, mut taken) = (0, 0);
        for frame in batch.frames() {
            let head = frame.head();
            let payload = frame.payload.filter(|payload| payload.len > 0);
            let mut leaves_later = false;
            if is_malformed(frame, *frame_max, pool.buffers()) || frame.csum.is_some() {
                counters.drops.tx_malformed += 1;
            } else {
                if room - used < 2 {
                    counters.tx_full += 1;
                    break;
                }
                let slot = if head.is_empty() {
                    None
                } else if let Some(slot) = slots.take() {
                    Some(slot)
                } else {
                    counters.tx_full += 1;
                    break;
                };
                let mut descriptor = |addr: u64, len: usize, continues: bool| {
                    let mut options = XdpDescOptions::empty();
                    options.set(XdpDescOptions::XDP_PKT_CONTD, continues);
                    tx.write(used, XdpDesc { addr, len: len as u32, options });
                    used += 1;
                };
                match (slot, payload) {
                    (Some(slot), Some(payload)) if !service.gather => {
                        let to = umem.private_mut(slot, frame.len());
                        let (to_head, to_payload) = to.split_at_mut(head.len());
                        to_head.copy_from_slice(head);
                        let offset = usize::from(payload.offset);
                        let copied = pool.buffers().read(payload.buf, offset, to_payload);
                        debug_assert!(copied.is_ok(), "judged above");
                        counters.tx_bytes_copied += to_payload.len() as u64;
                        more.tx_joined += 1;
                        descriptor(slot as u64, frame.len(), false);
                    }
                    (slot, payload) => {
                        if let Some(slot) = slot {
                            umem.write(slot, head);
                            descriptor(slot as u64, head.len(), payload.is_some());
                        }
                        if let Some(payload) = payload {
                            let at = (u64::from(payload.buf) << shift) + u64::from(payload.offset);
                            leaves_later = ledger.send(payload.buf, frame.origin);
                            debug_assert!(leaves_later, "the ring is shorter than the count");
                            descriptor(umem.buffers_at() + at, payload.len.into(), false);
                        }
                    }
                }
                counters.tx_frames += 1;
                counters.tx_bytes += frame.len() as u64;
                if !service.zero_copy {
                    counters.tx_bytes_copied += frame.len() as u64;
                }
            }
            taken += 1;
            if let Some(range) = frame.payload.filter(|_| !leaves_later) {
                done(frame.origin, range.buf);
            }
        }
        if used > 0 {
            tx.publish(used);
        }
        Ok(taken)
    }

    /// Ends the frames that have left, and those that never will.
    fn reap(&mut self, done: &mut dyn FnMut(Origin, u32)) {
        if self.orphans {
            self.orphans = false;
            self.ledger.end_all(&mut *done);
        }
        if let Err(insane) = self.take_completed(done) {
            // Dealt with when frames are next received.
            self.insane = Some(insane);
        }
    }

    /// Tells `done` of frames that have left.
    fn take_completed(&mut self, done: &mut dyn FnMut(Origin, u32)) -> Result<(), Insane> {
        let Self { live, ledger, slots, umem, more, wanted, .. } = self;
        let Some(queue) = live.as_mut().and_then(|live| live.queues.first_mut()) else {
            return Ok(());
        };
        let available = queue.completion.available()?;
        let shift = wanted.chunk_size.trailing_zeros();
        for ahead in 0..available {
            let addr = queue.completion.read(ahead);
            let known = match addr.checked_sub(umem.buffers_at()) {
                None => slots.give(addr),
                Some(at) => match ledger.sent(at >> shift) {
                    Some((origin, buf)) => {
                        done(origin, buf);
                        true
                    }
                    None => false,
                },
            };
            more.ring_errors += u64::from(!known);
        }
        if available > 0 {
            queue.completion.release(available);
        }
        Ok(())
    }
}

/// Judges the checksum of a frame that arrived: where it is, if its sender left it
/// unfilled and is on this machine. From elsewhere, only what is wrong is counted.
fn judge_csum(
    frame: &RxFrame,
    pool: &Pool,
    is_local: bool,
    more: &mut Counters,
) -> Option<paste_stack::TxCsum> {
    let (offset, len) = (usize::from(frame.offset), usize::from(frame.len));
    let mut head = [0; unfilled::HEAD];
    let head = &mut head[..len.min(unfilled::HEAD)];
    pool.buffers().read(frame.buf, offset, head).ok()?;
    let csum = unfilled::find(head)?;
    // One in 65536 right ones looks like that too.
    let (start, field) = (usize::from(csum.start), usize::from(csum.start + csum.offset));
    let pseudo = u16::from_be_bytes([head[field], head[field + 1]]);
    let rest = pool.buffers().sum(frame.buf, offset + start, len.checked_sub(start)?).ok()?;
    if unfilled::total(pseudo, rest) == 0xffff {
        return None;
    }
    if !is_local {
        more.rx_unfilled_refused += 1;
        return None;
    }
    more.rx_unfilled_taken += 1;
    Some(csum)
}

/// Judges whether frames fit the region's buffers as the kernel uses them.
fn judge_size(wanted: &Wanted) -> Result<(), XdpError> {
    let (name, buffer_size, mtu) = (|| wanted.name.clone(), wanted.chunk_size, wanted.mtu);
    let page = rustix::param::page_size() as u32;
    if !(CHUNK_MIN..=page).contains(&buffer_size) {
        let (min, max) = (CHUNK_MIN, page);
        return Err(XdpError::BufferSize { name: name(), buffer_size, min, max });
    }
    let max = buffer_size - FRAME_OFFSET - u32::from(FRAME_OVERHEAD);
    if u32::from(mtu) > max {
        return Err(XdpError::MtuOfBuffer {
            name: name(),
            mtu,
            buffer_size,
            reserved: FRAME_OFFSET,
            max,
            larger: if buffer_size < page { ", or make the region's buffers larger" } else { "" },
        });
    }
    Ok(())
}

impl Port for XdpPort {
    fn caps(&self) -> Caps {
        Caps { mtu: self.wanted.mtu, tx_csum: false, rx_partial: false, gather: true }
    }

    fn admit(&mut self, station: &Station) -> Result<(), PortError> {
        self.wanted.stations.push(station.clone());
        // Without a device, it is known when there is one.
        let Some(live) = &mut self.live else { return Ok(()) };
        let renewed = live.renew(&self.wanted);
        renewed.map_err(|error| {
            self.wanted.stations.pop();
            self.failed("letting in frames for one more guest", io::Error::other(error))
        })
    }

    fn receive(
        &mut self,
        now: Now,
        pool: &mut Pool,
        out: &mut RxBatch,
    ) -> Result<usize, PortError> {
        self.now = now.monotonic_ns;
        if self.live.is_none() {
            // Frames of the device before are ended first.
            if self.orphans {
                return Ok(0);
            }
            self.serve().map_err(|error| PortError::Out(error.into()))?;
        }
        if let Some(insane) = self.insane.take() {
            return Err(self.distrust(pool, insane));
        }
        if self.suspect || now.monotonic_ns >= self.looked_at + LOOK_INTERVAL {
            self.looked_at = now.monotonic_ns;
            self.counters.syscalls += 1;
            if self.news.drain() || self.suspect {
                self.look(pool)?;
            }
            self.receiving.iter_mut().for_each(|queue| queue.level.look());
            self.tell();
        }
        if self.unkicked {
            self.kick();
        }
        self.receive_all(now, pool, out).map_err(|insane| self.distrust(pool, insane))
    }

    fn send(
        &mut self,
        now: Now,
        pool: &Pool,
        batch: &mut TxBatch,
        done: &mut dyn FnMut(Origin, u32),
    ) -> Result<usize, PortError> {
        self.now = now.monotonic_ns;
        self.reap(done);
        let taken = if self.live.is_none() || self.suspect {
            // A frame that waits for a device to come back is of no use to anybody.
            for frame in batch.frames() {
                drop_down(frame, &mut self.counters, done);
            }
            batch.frames().len()
        } else {
            match self.put(pool, batch, done) {
                Ok(taken) => taken,
                Err(insane) => {
                    // Dealt with when frames are next received.
                    self.insane = Some(insane);
                    0
                }
            }
        };
        batch.consume(taken);
        if taken > 0 {
            self.kick();
            // Where the kernel copies, most of them have left by now.
            self.reap(done);
        }
        Ok(taken)
    }

    fn is_sending(&self) -> bool {
        self.orphans || self.ledger.sending() > 0
    }

    fn release(&mut self, pool: &mut Pool) {
        self.lose(pool);
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.events.as_fd())
    }

    fn next_deadline(&self) -> Option<u64> {
        if self.unkicked || self.orphans {
            return Some(0);
        }
        (self.ledger.sending() > 0 && self.live.is_some()).then_some(self.now + REAP_INTERVAL)
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }

    fn each_counter(&self, visit: &mut dyn FnMut(&'static str, u64)) {
        self.counters.each(&mut *visit);
        // Taken apart by name, so that a new counter cannot be forgotten here.
        let Counters {
            rx_unfilled_taken,
            rx_unfilled_refused,
            tx_joined,
            ring_errors,
            lost,
            rx_missed,
            served: Served { queues, driver_mode, zero_copy, gather },
        } = self.more;
        for (name, value) in [
            ("xdp.rx_unfilled_taken", rx_unfilled_taken),
            ("xdp.rx_unfilled_refused", rx_unfilled_refused),
            ("xdp.rx_missed", rx_missed + self.live.as_ref().map_or(0, Live::missed)),
            ("xdp.tx_joined", tx_joined),
            ("xdp.ring_errors", ring_errors),
            ("xdp.lost", lost),
            ("xdp.queues", queues),
            ("xdp.driver_mode", driver_mode.into()),
            ("xdp.zero_copy", zero_copy.into()),
            ("xdp.gather", gather.into()),
        ] {
            visit(name, value);
        }
    }
}

/// Drops a frame that no device is there for.
fn drop_down(frame: &TxFrame, counters: &mut PortCounters, done: &mut dyn FnMut(Origin, u32)) {
    counters.drops.tx_link_down += 1;
    if let Some(range) = frame.payload {
        done(frame.origin, range.buf);
    }
}

#[cfg(test)]
mod tests;
