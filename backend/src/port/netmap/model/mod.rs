//! A model of the kernel's side of netmap, for tests: what `/dev/netmap` does with
//! requests and syncs, in the order and with the refusals of its source.
//!
//! | here | netmap's |
//! | --- | --- |
//! | `memory` | `netmap_mem2.c`: allocators, external memory |
//! | `kring` | `netmap.c`: a ring as the kernel sees it, checks, repair |
//! | `adapter` | the drivers' and the switch's copying from and to slots |
//! | `sync` | `*_txsync` and `*_rxsync` of NICs, host rings, switches and pipes |
//! | `pst` | `netmap_paste.c`, `netmap_linux.c`: PASTE's ports and sockets |
//!
//! Where the source leaves room, the model is the unkind one: a NIC reads a frame that
//! was sent only when it reports it as sent, receives into the buffers that it was told
//! of and not into those that slots name, and begins at once.

mod adapter;
mod kring;
mod memory;
mod pst;
mod sync;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use self::adapter::{Adapter, Nature, Nic};
use self::kring::Kring;
use self::memory::{Mem, PAGE};
use super::abi::{
    API, EXCLUSIVE, INTERFACE_LEN, Interface, NAME_LEN, PortInfo, REG_ALL_NIC, REG_NIC_SW,
    REG_ONE_NIC, REQ_PORT_INFO_GET, REQ_PST_ATTACH, REQ_PST_FD_REG, REQ_REGISTER, RESERVED_BUFFERS,
    RING_SLOTS, RX_RINGS_ONLY, Register, Ring, SLOT_LEN, Slot, TX_RINGS_ONLY,
};
use super::area::Area;
use super::kernel::{Body, Descriptor, Kernel, Request, Shared};
use crate::port::wire::{Faults, Lane};
use crate::sys::wake::{self, Waker, Wakeups};

pub(crate) use memory::Pages;

/// The highest API that is spoken (`NETMAP_MAX_API`).
const API_MAX: u16 = 15;
/// Slots of a switch's port (`NM_BRIDGE_RINGSIZE`).
const VALE_SLOTS: u32 = 1024;
/// Bytes of a private allocator's ring objects.
const RING_OBJECT: usize = 5 * PAGE;

/// What a test may want of the kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    /// The module is loaded.
    pub(crate) module: bool,
    /// This user may open the device.
    pub(crate) permitted: bool,
    /// Highest API spoken.
    pub(crate) api: u16,
    /// Built with external memory.
    pub(crate) extmem: bool,
    /// Of a caller's memory.
    pub(crate) pages: Pages,
    /// Ring objects of netmap's own memory.
    pub(crate) rings: u32,
    /// Built with PASTE.
    pub(crate) paste: bool,
    /// Ring objects of memory that a switch's or a path's port brings with it
    /// (`priv_ring_num`).
    pub(crate) private_rings: u32,
}

impl Default for Host {
    fn default() -> Host {
        Host {
            module: true,
            permitted: true,
            api: API_MAX,
            extmem: true,
            pages: Pages::Huge,
            rings: 64,
            paste: true,
            private_rings: 16,
        }
    }
}

/// What a NIC is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NicKind {
    pub(crate) rings: usize,
    pub(crate) slots: u32,
    pub(crate) offsets: bool,
    pub(crate) joins: bool,
    /// Syncs after which a frame has really gone.
    pub(crate) lag: u32,
    /// Bytes that one slot receives at most.
    pub(crate) slot_max: usize,
    pub(crate) faults: Faults,
    pub(crate) seed: u64,
    /// Checksums of what is sent are its business (`NETIF_F_HW_CSUM`).
    pub(crate) tx_csum: bool,
}

impl Default for NicKind {
    fn default() -> NicKind {
        NicKind {
            rings: 1,
            slots: 64,
            offsets: true,
            joins: true,
            lag: 0,
            slot_max: 2048,
            faults: Faults::default(),
            seed: 1,
            tx_csum: true,
        }
    }
}

/// The kernel.
#[derive(Clone, Debug)]
pub(crate) struct Model(Arc<Mutex<World>>);

#[derive(Debug)]
struct World {
    host: Host,
    now_ns: u64,
    mems: Vec<Mem>,
    adapters: Vec<Adapter>,
    wakers: Vec<(usize, Waker)>,
    /// Buffers that were found in rings at the end and were not netmap's to free; and
    /// blocks of the kernel's in buffers that somebody else has written to.
    complaints: u32,
    /// Ports of PASTE's that were closed before their sockets (`netmap-pst-kwait`).
    waiting: Vec<Bound>,
}

/// A descriptor of the model's.
#[derive(Debug)]
pub(crate) struct ModelDescriptor {
    world: Arc<Mutex<World>>,
    bound: Mutex<Option<Bound>>,
    waker: Waker,
    wakeups: Wakeups,
}

/// What a descriptor is bound to.
#[derive(Clone, Debug)]
struct Bound {
    adapter: usize,
    mem: u16,
    tx: std::ops::Range<usize>,
    rx: std::ops::Range<usize>,
    interface_object: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Model {
    pub(crate) fn new(host: Host) -> Model {
        let sorts = [(16, 1024), (host.rings, 9 * PAGE), (8192, 2048)];
        let mems = vec![Mem::own(1, sorts)];
        let (adapters, wakers) = (Vec::new(), Vec::new());
        Model(Arc::new(Mutex::new(World {
            host,
            now_ns: 0,
            mems,
            adapters,
            wakers,
            complaints: 0,
            waiting: Vec::new(),
        })))
    }

    /// Adds an interface, on no wire.
    pub(crate) fn add_nic(&self, name: &str, kind: NicKind) {
        let NicKind { rings, slots, offsets, joins, lag, slot_max, faults, seed, tx_csum } = kind;
        let ring = |tx| move |_| Kring::new(slots, tx);
        let nic = Nic {
            out: Lane::new(faults, seed, 2048),
            peer: None,
            lag,
            joins,
            slot_max,
            to_host: Vec::new(),
            from_host: std::collections::VecDeque::new(),
            stopped: false,
            tx_csum,
        };
        lock(&self.0).adapters.push(Adapter {
            name: name.to_owned(),
            nature: Nature::Nic(Box::new(nic)),
            tx: (0..=rings).map(ring(true)).collect(),
            rx: (0..=rings).map(ring(false)).collect(),
            tx_nic: rings,
            rx_nic: rings,
            host_rings: true,
            offsets,
            mem: 1,
            mem_before: 1,
            active: 0,
            turn: 0,
        });
    }

    /// Joins two interfaces by a wire.
    pub(super) fn join(&self, a: &str, b: &str) {
        let mut world = lock(&self.0);
        let (a, b) = (world.find(a).unwrap(), world.find(b).unwrap());
        for (from, to) in [(a, b), (b, a)] {
            if let Nature::Nic(nic) = &mut world.adapters[from].nature {
                nic.peer = Some(to);
            }
        }
    }

    /// Sets the clock, in ns.
    pub(super) fn set_now(&self, now_ns: u64) {
        lock(&self.0).now_ns = now_ns;
    }

    /// Works on a NIC.
    pub(super) fn nic<T>(&self, name: &str, work: impl FnOnce(&mut NicView<'_>) -> T) -> T {
        let mut world = lock(&self.0);
        let index = world.find(name).unwrap();
        work(&mut NicView { world: &mut world, index })
    }

    /// Changes a byte of a ring, as whoever else has the memory could: `tx` or not, its
    /// number, and where in it.
    pub(super) fn scribble(&self, name: &str, tx: bool, ring: usize, at: usize, value: u32) {
        let world = lock(&self.0);
        let adapter = &world.adapters[world.find(name).unwrap()];
        let ring = if tx { &adapter.tx[ring] } else { &adapter.rx[ring] };
        world.mem(adapter.mem).raw.write(ring.at.unwrap() + at, &value);
    }

    /// Times that rings of a port had to be repaired.
    pub(super) fn reinits(&self, name: &str) -> u32 {
        let world = lock(&self.0);
        let adapter = &world.adapters[world.find(name).unwrap()];
        adapter.tx.iter().chain(&adapter.rx).map(|ring| ring.reinits).sum()
    }

    /// Times that netmap has complained of a buffer freed twice.
    pub(crate) fn complaints(&self) -> u32 {
        lock(&self.0).complaints
    }

    /// Descriptors that are bound to a port.
    pub(crate) fn users(&self, name: &str) -> u32 {
        let world = lock(&self.0);
        world.find(name).map_or(0, |index| world.adapters[index].active)
    }
}

/// A NIC and its host, as a test sees them.
pub(super) struct NicView<'a> {
    world: &'a mut World,
    index: usize,
}

impl NicView<'_> {
    fn nic(&mut self) -> &mut Nic {
        match &mut self.world.adapters[self.index].nature {
            Nature::Nic(nic) => nic,
            _ => panic!("no NIC"),
        }
    }

    /// Has the host's stack send a frame.
    pub(super) fn host_sends(&mut self, frame: &[u8]) {
        self.nic().from_host.push_back(frame.to_vec());
    }

    /// What the host's stack has received.
    pub(super) fn host_received(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.nic().to_host)
    }

    /// Stops its rings, or lets them run again.
    pub(super) fn stop(&mut self, stopped: bool) {
        self.nic().stopped = stopped;
    }

    /// Puts a frame on the wire towards it, whoever is at the other end.
    pub(super) fn arrives(&mut self, frame: &[u8]) {
        let peer = self.nic().peer.expect("on a wire");
        let now = self.world.now_ns;
        if let Nature::Nic(nic) = &mut self.world.adapters[peer].nature {
            nic.out.push_with(now, frame.len(), |bytes| bytes.copy_from_slice(frame));
        }
    }
}

impl Kernel for Model {
    type Descriptor = ModelDescriptor;

    fn open(&self) -> Result<ModelDescriptor, Errno> {
        let host = lock(&self.0).host;
        match (host.module, host.permitted) {
            (false, _) => return Err(Errno::NOENT),
            (_, false) => return Err(Errno::ACCESS),
            _ => {}
        }
        let (waker, wakeups) = wake::pair().map_err(|_| Errno::MFILE)?;
        let (world, bound) = (Arc::clone(&self.0), Mutex::new(None));
        Ok(ModelDescriptor { world, bound, waker, wakeups })
    }

    fn reserve(&self, private: usize, shared: &Shared<'_>) -> Result<Area, String> {
        super::os::reserve(private, shared)
    }
}

impl AsFd for ModelDescriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wakeups.as_fd()
    }
}

impl Descriptor for ModelDescriptor {
    fn control(&self, request: &mut Request<'_>) -> Result<(), Errno> {
        let mut world = lock(&self.world);
        let header = &request.header;
        if header.version < API || header.version > world.host.api {
            return Err(Errno::INVAL);
        }
        let end = header.name.iter().position(|&b| b == 0).unwrap_or(NAME_LEN - 1);
        let name = String::from_utf8_lossy(&header.name[..end]).into_owned();
        match (header.reqtype, &mut request.body) {
            (REQ_PORT_INFO_GET, Body::PortInfo(info)) => world.info(&name, info),
            (REQ_PST_ATTACH, Body::Attach(asked)) if world.host.paste => {
                world.pst_attach(&name, &asked.register)
            }
            (REQ_PST_FD_REG, Body::FdReg(asked)) if world.host.paste => {
                world.pst_register_fd(&name, asked.fd as i32)
            }
            (REQ_REGISTER, Body::Register(_)) => {
                world.pst_kwait();
                let mut bound = lock(&self.bound);
                if bound.is_some() {
                    return Err(Errno::BUSY);
                }
                let made = world.register(&name, request)?;
                world.wakers.push((made.adapter, self.waker.clone()));
                *bound = Some(made);
                Ok(())
            }
            _ => Err(Errno::INVAL),
        }
    }

    fn map(&self, len: usize) -> Result<Area, Errno> {
        let world = lock(&self.world);
        let bound = lock(&self.bound);
        let mem = world.mem(bound.as_ref().ok_or(Errno::INVAL)?.mem);
        if len > mem.len() { Err(Errno::INVAL) } else { Ok(mem.map()) }
    }

    fn txsync(&self) -> Result<(), Errno> {
        let bound = lock(&self.bound).clone().ok_or(Errno::NXIO)?;
        lock(&self.world).txsync(bound.adapter, bound.tx)
    }

    fn rxsync(&self) -> Result<(), Errno> {
        self.wakeups.drain();
        let bound = lock(&self.bound).clone().ok_or(Errno::NXIO)?;
        lock(&self.world).rxsync(bound.adapter, bound.rx)
    }
}

impl Drop for ModelDescriptor {
    fn drop(&mut self) {
        if let Some(bound) = lock(&self.bound).take() {
            let mut world = lock(&self.world);
            world.waiting.push(bound);
            world.pst_kwait();
        }
    }
}

impl World {
    fn find(&self, name: &str) -> Option<usize> {
        self.adapters.iter().position(|adapter| adapter.name == name)
    }

    fn mem(&self, id: u16) -> &Mem {
        self.mems.iter().find(|mem| mem.id == id).expect("an allocator in use")
    }

    fn new_id(&self) -> u16 {
        self.mems.iter().map(|mem| mem.id).max().unwrap_or(0) + 1
    }

    /// `netmap_get_na`: the port of that name. Switches' ports and pipes' ends come into
    /// being; interfaces do not.
    fn adapter(&mut self, name: &str, mem: Option<u16>) -> Result<usize, Errno> {
        if let Some(index) = self.find(name) {
            let adapter = &mut self.adapters[index];
            let owner = !matches!(adapter.nature, Nature::Nic(_));
            if let Some(mem) = mem.filter(|_| !owner && adapter.active == 0) {
                (adapter.mem_before, adapter.mem) = (adapter.mem, mem);
            }
            return Ok(index);
        }
        if let Some(at) = name.rfind(['{', '}']) {
            return self.pipe(name, at);
        }
        if self.host.paste && name.starts_with("pst") && name.contains(':') {
            let mem = mem.unwrap_or_else(|| self.private());
            return Ok(self.add_virtual(name, Nature::Pst(Box::default()), mem));
        }
        if name.starts_with("vale") && name.contains(':') {
            let mem = mem.unwrap_or_else(|| self.private());
            return Ok(self.add_virtual(name, Nature::Vale, mem));
        }
        Err(Errno::NXIO)
    }

    /// A private allocator (`netmap_mem_private_new`).
    fn private(&mut self) -> u16 {
        let id = self.new_id();
        self.mems.push(Mem::own(
            id,
            [(8, 1024), (self.host.private_rings, RING_OBJECT), (8 * VALE_SLOTS + 2, 2048)],
        ));
        id
    }

    fn add_virtual(&mut self, name: &str, nature: Nature, mem: u16) -> usize {
        let ring = |tx| move |_| Kring::new(VALE_SLOTS, tx);
        self.adapters.push(Adapter {
            name: name.to_owned(),
            nature,
            tx: (0..1).map(ring(true)).collect(),
            rx: (0..1).map(ring(false)).collect(),
            tx_nic: 1,
            rx_nic: 1,
            host_rings: false,
            offsets: true,
            mem,
            mem_before: mem,
            active: 0,
            turn: 0,
        });
        self.adapters.len() - 1
    }

    /// `netmap_get_pipe_na`: both ends at once.
    fn pipe(&mut self, name: &str, at: usize) -> Result<usize, Errno> {
        if at == 0 || at + 1 == name.len() {
            return Err(Errno::INVAL);
        }
        let other = if name.as_bytes()[at] == b'{' { "}" } else { "{" };
        let other = format!("{}{other}{}", &name[..at], &name[at + 1..]);
        // The parent's memory; one that is no interface becomes a switch's port.
        let mem = match self.find(&name[..at]) {
            Some(parent) => self.adapters[parent].mem,
            None => self.private(),
        };
        let here = self.adapters.len();
        self.add_virtual(name, Nature::Pipe { peer: here + 1 }, mem);
        self.add_virtual(&other, Nature::Pipe { peer: here }, mem);
        Ok(here)
    }

    /// `NETMAP_REQ_PORT_INFO_GET`.
    fn info(&mut self, name: &str, info: &mut PortInfo) -> Result<(), Errno> {
        if name.is_empty() {
            info.memsize = self.mem(1).len() as u64;
            info.mem_id = 1;
            return Ok(());
        }
        if name.starts_with("pst") && self.find(name).is_none() {
            return self.pst_joined(name);
        }
        let known = self.find(name).is_some();
        let index = self.adapter(name, None)?;
        let adapter = &self.adapters[index];
        info.mem_id = adapter.mem;
        info.memsize = self.mem(adapter.mem).len() as u64;
        (info.tx_rings, info.rx_rings) = (adapter.tx_nic as u16, adapter.rx_nic as u16);
        (info.tx_slots, info.rx_slots) = (adapter.tx[0].slots, adapter.rx[0].slots);
        let host = u16::from(adapter.host_rings);
        (info.host_tx_rings, info.host_rx_rings) = (host, host);
        if !known && matches!(adapter.nature, Nature::Vale) {
            self.adapters.pop();
        }
        Ok(())
    }

    /// `NETMAP_REQ_REGISTER`.
    fn register(&mut self, name: &str, request: &mut Request<'_>) -> Result<Bound, Errno> {
        let Request { body: Body::Register(asked), extmem, offsets, .. } = request else {
            return Err(Errno::INVAL);
        };
        let unsupported = Errno::OPNOTSUPP.raw_os_error() as u32;
        let mut mem = (asked.mem_id != 0).then_some(asked.mem_id);
        if mem.is_some_and(|id| self.mems.iter().all(|mem| mem.id != id)) {
            return Err(Errno::INVAL);
        }
        // An option that this build does not know is found when all else is done.
        let mut unknown = false;
        if let Some(extmem) = extmem {
            if self.host.extmem {
                let id = self.new_id();
                let made = Mem::external(id, extmem.start, &extmem.pools, self.host.pages);
                extmem.option.status = made.as_ref().err().map_or(0, |e| e.raw_os_error() as u32);
                self.mems.push(made?);
                mem = Some(id);
            } else {
                extmem.option.status = unsupported;
                unknown = true;
            }
        }
        let index = self.adapter(name, mem)?;
        let bound = self.bind(index, asked)?;
        if matches!(self.adapters[index].nature, Nature::Pst(_)) {
            self.pst_opened(&bound)?;
        }
        if let Some(offsets) = offsets {
            let (max, initial) = (offsets.max, offsets.initial);
            let size = self.mem(bound.mem).buffers.size as u64;
            let mask = if offsets.bits >= 64 { u64::MAX } else { (1 << offsets.bits) - 1 };
            let adapter = &mut self.adapters[index];
            let bad = max > size || max & mask != max || initial > max;
            if !adapter.offsets || bad {
                offsets.option.status =
                    if bad { Errno::INVAL.raw_os_error() as u32 } else { unsupported };
                self.unregister(&bound);
                return Err(if bad { Errno::INVAL } else { Errno::OPNOTSUPP });
            }
            let mem = self.mems.iter().find(|mem| mem.id == bound.mem).unwrap();
            let rings = adapter.tx[bound.tx.clone()].iter_mut();
            for ring in rings.chain(&mut adapter.rx[bound.rx.clone()]) {
                (ring.offset_mask, ring.offset_max) = (mask, max);
                let at = ring.at.unwrap();
                let head = Ring { offset_mask: mask, ..mem.raw.read(at) };
                mem.raw.write(at, &head);
                for slot in 0..ring.slots {
                    let found = ring.slot(mem, slot);
                    ring.set_slot(mem, slot, Slot { ptr: initial, ..found });
                }
                for (_, offset) in &mut ring.programmed {
                    *offset = initial;
                }
            }
        }
        if unknown {
            self.unregister(&bound);
            return Err(Errno::OPNOTSUPP);
        }
        Ok(bound)
    }

    /// `netmap_do_regif`: picks the rings, makes those that are missing, and tells where
    /// everything lies.
    fn bind(&mut self, index: usize, asked: &mut Register) -> Result<Bound, Errno> {
        let adapter = &mut self.adapters[index];
        let mem_id = adapter.mem;
        let mem = self.mems.iter_mut().find(|mem| mem.id == mem_id).unwrap();
        let pick = |all: usize, nic: usize, excluded: u64| -> Result<_, Errno> {
            if asked.flags & excluded != 0 {
                return Ok(0..0);
            }
            match asked.mode {
                REG_ALL_NIC => Ok(0..nic),
                REG_NIC_SW if adapter.host_rings => Ok(0..all),
                REG_ONE_NIC if usize::from(asked.ringid) < nic => {
                    Ok(usize::from(asked.ringid)..usize::from(asked.ringid) + 1)
                }
                _ => Err(Errno::INVAL),
            }
        };
        let tx = pick(adapter.tx.len(), adapter.tx_nic, RX_RINGS_ONLY)?;
        let rx = pick(adapter.rx.len(), adapter.rx_nic, TX_RINGS_ONLY)?;
        let exclusive = asked.flags & EXCLUSIVE != 0;
        let mine = || adapter.tx[tx.clone()].iter().chain(&adapter.rx[rx.clone()]);
        if mine().any(|ring| ring.exclusive || (exclusive && ring.users > 0)) {
            return Err(Errno::BUSY);
        }
        let is_nic = matches!(adapter.nature, Nature::Nic(_));
        let is_pipe = matches!(adapter.nature, Nature::Pipe { .. });
        let rings = adapter.tx[tx.clone()].iter_mut().chain(&mut adapter.rx[rx.clone()]);
        for ring in rings {
            if ring.at.is_none() {
                let len = RING_SLOTS + ring.slots as usize * SLOT_LEN;
                let (at, object) = mem.rings.take(len).ok_or(Errno::NOMEM)?;
                let buffers_at = mem.buffers.offset as i64 - at as i64;
                let head = Ring {
                    buf_ofs: buffers_at,
                    num_slots: ring.slots,
                    buf_size: mem.buffers.size as u32,
                    dir: u16::from(!ring.tx),
                    head: ring.rhead,
                    cur: ring.rcur,
                    tail: ring.rtail,
                    ..zerocopy::FromZeros::new_zeroed()
                };
                mem.raw.write(at, &head);
                (ring.at, ring.ring_object) = (Some(at), object);
                for index in 0..ring.slots {
                    let size = mem.buffers.size;
                    // A pipe's buffers come from the end that sends.
                    let buf_idx = match is_pipe && !ring.tx {
                        true => 0,
                        false => mem.buffers.take(size).ok_or(Errno::NOMEM)?.1,
                    };
                    ring.set_slot(mem, index, Slot { buf_idx, len: size as u16, flags: 0, ptr: 0 });
                    if is_nic && !ring.tx {
                        ring.programmed.push((buf_idx, 0));
                    }
                }
            }
            ring.users += 1;
            ring.exclusive = exclusive;
        }
        let host = |all: usize, nic: usize| (all - nic).max(1);
        let (host_tx, host_rx) =
            (host(adapter.tx.len(), adapter.tx_nic), host(adapter.rx.len(), adapter.rx_nic));
        let places = adapter.tx_nic + host_tx + adapter.rx_nic + host_rx;
        let (at, object) = mem.interfaces.take(INTERFACE_LEN + 8 * places).ok_or(Errno::NOMEM)?;
        let interface = Interface {
            version: API.into(),
            tx_rings: adapter.tx_nic as u32,
            rx_rings: adapter.rx_nic as u32,
            host_tx_rings: host_tx as u32,
            host_rx_rings: host_rx as u32,
            ..zerocopy::FromZeros::new_zeroed()
        };
        mem.raw.write(at, &interface);
        for place in 0..places {
            let split = adapter.tx_nic + host_tx;
            let ring = match place.checked_sub(split) {
                None => adapter.tx.get(place).filter(|_| tx.contains(&place)),
                Some(place) => adapter.rx.get(place).filter(|_| rx.contains(&place)),
            };
            let offset = ring.and_then(|ring| ring.at).map_or(0, |ring| ring as i64 - at as i64);
            mem.raw.write(at + INTERFACE_LEN + 8 * place, &offset);
        }
        adapter.active += 1;
        (asked.offset, asked.memsize, asked.mem_id) = (at as u64, mem.len() as u64, mem_id);
        (asked.tx_rings, asked.rx_rings) = (adapter.tx_nic as u16, adapter.rx_nic as u16);
        (asked.tx_slots, asked.rx_slots) = (adapter.tx[0].slots, adapter.rx[0].slots);
        Ok(Bound { adapter: index, mem: mem_id, tx, rx, interface_object: object })
    }

    /// `netmap_do_unregif`.
    fn unregister(&mut self, bound: &Bound) {
        let adapter = &mut self.adapters[bound.adapter];
        let mem = self.mems.iter_mut().find(|mem| mem.id == bound.mem).unwrap();
        let rings = adapter.tx[bound.tx.clone()].iter_mut();
        for ring in rings.chain(&mut adapter.rx[bound.rx.clone()]) {
            ring.users -= 1;
            if ring.users > 0 {
                continue;
            }
            // What is at a pipe's other end is freed there (`netmap_pipe_krings_delete_both`).
            let mut away = vec![false; ring.slots as usize];
            if matches!(adapter.nature, Nature::Pipe { .. }) {
                away[ring.pipe_tail as usize] = !ring.tx;
                let mut index = ring.next(ring.pipe_tail);
                while index != ring.hwcur {
                    away[index as usize] = true;
                    index = ring.next(index);
                }
            }
            for index in (0..ring.slots).filter(|&index| !away[index as usize]) {
                let slot = ring.slot(mem, index);
                if slot.buf_idx >= RESERVED_BUFFERS && !mem.buffers.give(slot.buf_idx) {
                    self.complaints += 1;
                }
            }
            mem.rings.give(ring.ring_object);
            *ring = Kring::new(ring.slots, ring.tx);
        }
        mem.interfaces.give(bound.interface_object);
        adapter.active -= 1;
        if adapter.active == 0 {
            adapter.mem = adapter.mem_before;
        }
        self.wakers.retain(|(index, _)| *index != bound.adapter);
    }
}
