//! The data plane of `xdp:`: frames from and to the rings of a device that is being
//! served, and what happens when it no longer is.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

mod receive;

use paste_pmem::Pool;
use paste_stack::frame::HEAD_MAX;
use paste_stack::{Origin, TxBatch, TxFrame};
use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::xdp::{XdpDesc, XdpDescOptions};

use super::announce::Announced;
use super::cut::Cutter;
use super::ledger::{Ledger, Slots};
use super::level::Level;
use super::live::{self, Live, Wanted};
use super::sys::netlink::{self, News};
use super::sys::rings::Insane;
use super::sys::socket::{CHUNK_MIN, RX_LEN};
use super::sys::umem::{self, Extent, Umem};
use super::{Mode, XdpError, XdpOptions};
use crate::port::{
    Caps, FRAME_OVERHEAD, Now, Port, PortCounters, PortError, RxBatch, Station, give_back,
    is_malformed, mtu_max,
};
use receive::Receiving;

/// Bytes of private memory: pieces of a buffer's size, or as many smaller ones.
const PRIVATE_LEN: usize = 2 << 20;
/// Bytes of a piece that holds no more than a frame's head.
const HEAD_SIZE: usize = HEAD_MAX;
/// Of the buffers, the port keeps one in this many at any time, so that a small region is
/// not all in its rings.
const SHARE: u32 = 8;
/// And one in this many at most, while frames come in bursts.
const SHARE_MOST: u32 = 2;
/// News of the device are looked for this often, in ns; the worker comes by when they
/// wake it.
const LOOK_INTERVAL: u64 = 10_000_000;
/// What left the rings without the kernel saying so is looked for after this long, ns.
const REAP_INTERVAL: u64 = 1_000_000;

/// So many frames without a time are told an operator.
const TIMELESS: u64 = 1000;

/// What only this kind of port counts.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    /// Frames with a checksum that their sender left to a device, taken as they are.
    rx_unfilled_taken: u64,
    /// The same, from elsewhere than this machine: the stack drops them.
    rx_unfilled_refused: u64,
    /// Frames that came in several buffers and were made into several.
    rx_cut: u64,
    /// Of those in several buffers, frames with a wrong checksum, dropped.
    rx_bad_csum: u64,
    /// Frames whose arrival the device has told, of those that it was to; and the others.
    rx_time_device: u64,
    rx_time_host: u64,
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
    device_time: bool,
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
    /// Bytes of the longest packet that goes on, or out, in one buffer.
    mtu: u16,
    frame_max: usize,
    /// Makes frames of one buffer out of those of several.
    cutter: Cutter,
    /// What peers are told of the longest segments, where those lie in several buffers.
    announced: Option<Announced>,
    /// Buffers of the region.
    buffers: u32,
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
    /// It was said that the device tells no times.
    told_timeless: bool,
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
        let own_mtu = own_mtu(&wanted);
        let frame_max = usize::from(own_mtu) + usize::from(FRAME_OVERHEAD);
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
            mtu: own_mtu,
            frame_max,
            cutter: Cutter::new(frame_max, usize::from(mtu) + usize::from(FRAME_OVERHEAD)),
            announced: wanted
                .is_long()
                .then(|| Announced::new(mtu, own_mtu, wanted.piece_size() as u16, FRAME_OVERHEAD)),
            buffers: geometry.buffer_count(),
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
            told_timeless: false,
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
        let each = self.buffers / live.queues.len().max(1) as u32;
        let level = Level::new(each / SHARE, (each / SHARE_MOST).min(RX_LEN));
        self.receiving.resize_with(live.queues.len(), || Receiving::new(level));
        self.spare.reserve((self.buffers / SHARE_MOST) as usize);
        (self.first, self.suspect, self.unkicked) = (0, false, false);
        tracing::info!(
            device = name,
            mode = live.mode().name(),
            zero_copy = live.service.zero_copy,
            gather = live.service.gather,
            device_time = live.times.is_some(),
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
            device_time: live.times.is_some(),
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
        for mut queue in self.receiving.drain(..) {
            queue.abandon(&mut self.spare);
        }
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
        let Counters { rx_time_device, rx_time_host, .. } = self.more;
        if rx_time_device == 0 && rx_time_host > TIMELESS && !self.told_timeless {
            self.told_timeless = true;
            tracing::info!(
                device,
                "the device has told no frame's time yet: `hwstamp_ctl -i {device} -r 1` has it \
                 do so, and until then arrival is when a frame is taken"
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
        let Self { live, ledger, slots, umem, counters, more, frame_max, announced, .. } = self;
        let Some(live) = live else { return Ok(0) };
        let service = live.service;
        let Some(tx) = live.queues.first_mut().and_then(|queue| queue.tx.as_mut()) else {
            return Ok(0);
        };
        let room = tx.room()?;
        let shift = pool.buffers().size().trailing_zeros();
        let (mut used, mut taken) = (0, 0);
        let mut raised = [0; HEAD_MAX];
        for frame in batch.frames() {
            let mut head = frame.head();
            if let Some(announced) = announced {
                let copy = &mut raised[..head.len()];
                copy.copy_from_slice(head);
                announced.raise(copy);
                head = copy;
            }
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

/// Judges whether the kernel takes buffers like the region's.
fn judge_size(wanted: &Wanted) -> Result<(), XdpError> {
    let (name, buffer_size) = (|| wanted.name.clone(), wanted.chunk_size);
    let page = rustix::param::page_size() as u32;
    if !(CHUNK_MIN..=page).contains(&buffer_size) {
        let (min, max) = (CHUNK_MIN, page);
        return Err(XdpError::BufferSize { name: name(), buffer_size, min, max });
    }
    Ok(())
}

/// Bytes of the longest packet that lies in one buffer, and so of the longest that the
/// guest, or its stack, sends and is given. Longer ones that arrive are cut.
fn own_mtu(wanted: &Wanted) -> u16 {
    let max = if wanted.is_long() { mtu_max(wanted.chunk_size) } else { wanted.mtu.into() };
    wanted.mtu.min(u16::try_from(max).unwrap_or(u16::MAX))
}

impl Port for XdpPort {
    fn caps(&self) -> Caps {
        Caps { mtu: self.mtu, tx_csum: false, rx_partial: false, gather: true }
    }

    fn rx_mtu(&self) -> u16 {
        self.wanted.mtu
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
            if let Some(times) = self.live.as_mut().and_then(|live| live.times.as_mut()) {
                self.counters.syscalls += u64::from(times.look(now));
            }
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
            rx_cut,
            rx_bad_csum,
            rx_time_device,
            rx_time_host,
            tx_joined,
            ring_errors,
            lost,
            rx_missed,
            served: Served { queues, driver_mode, zero_copy, gather, device_time },
        } = self.more;
        for (name, value) in [
            ("xdp.rx_unfilled_taken", rx_unfilled_taken),
            ("xdp.rx_unfilled_refused", rx_unfilled_refused),
            ("xdp.rx_cut", rx_cut),
            ("xdp.rx_bad_csum", rx_bad_csum),
            ("xdp.rx_time_device", rx_time_device),
            ("xdp.rx_time_host", rx_time_host),
            ("xdp.rx_missed", rx_missed + self.live.as_ref().map_or(0, Live::missed)),
            ("xdp.tx_joined", tx_joined),
            ("xdp.ring_errors", ring_errors),
            ("xdp.lost", lost),
            ("xdp.queues", queues),
            ("xdp.driver_mode", driver_mode.into()),
            ("xdp.zero_copy", zero_copy.into()),
            ("xdp.gather", gather.into()),
            ("xdp.device_time", device_time.into()),
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
