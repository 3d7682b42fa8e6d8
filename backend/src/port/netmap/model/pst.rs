//! PASTE's ports: which sockets they take, what appears of them in the rings, and what
//! becomes of what is put there. The rules are those of `netmap_paste.c` and
//! `netmap_linux.c` of PASTE's last version, and are named after its functions.
//!
//! The sockets are real ones of this process, on loopback, which stands in for the NIC:
//! what PASTE takes out of a socket's queue in the kernel, the model receives from the
//! socket, and what PASTE gives to `sendpage`, it sends. So TCP itself, its errors, the
//! room in a send buffer and what epoll says are the kernel's. What is not modelled is
//! that a handshake or an acknowledgment waits for a sync: loopback does not wait.
//!
//! A descriptor's number is looked at as PASTE does it: the entry of its table outlives
//! the descriptor, until the socket is destroyed; then it is cleared, whosever it is by
//! then (`pst_unregister_socket`).

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::super::abi::{
    BUF_CHANGED, PST_OFFSET_MASK, PstPtr, REG_NIC_SW, RESERVED_BUFFERS, Register, Ring, Slot,
};
use super::super::os;
use super::adapter::Nature;
use super::{Bound, Model, World, lock};

/// Bytes of `struct nmcb` on Linux 6.1.
const NMCB_LEN: usize = 64;
/// The greatest descriptor (`NM_PST_FD_MAX`).
const FD_MAX: i32 = 65_535;
/// Slots in one batch (`NM_PST_BATCH_MAX`).
const BATCH_MAX: usize = 2048;
/// Bytes of Ethernet, IPv4 and TCP headers with timestamps.
const HEADERS: u16 = 66;
/// Bytes of payload in a segment that is received.
const MSS: usize = 1448;
/// `ENOTSUPP`, which PASTE says for `ENOTSUP` on Linux.
const ENOTSUPP: Errno = Errno::from_raw_os_error(524);
/// Buffers that it puts aside at first (`paste_extra`, smaller).
const EXTRA: usize = 256;

/// A registered socket (`pst_so_adapter`).
#[derive(Debug)]
struct Socket {
    inode: u64,
    /// Received from this interface alone.
    bound: bool,
    /// Nothing comes any more: FIN was seen, or an error.
    over: bool,
}

/// What waits to appear in the ring for receiving (`pst_fdt`).
#[derive(Debug)]
enum Waiting {
    Payload(i32, Vec<u8>),
    Raw(Slot),
}

/// What belongs to a port of PASTE's.
#[derive(Debug, Default)]
pub(super) struct Pst {
    /// By descriptor (`so_adapters`).
    sockets: BTreeMap<i32, Socket>,
    /// Sockets that the application has closed, and syncs for receiving until they are
    /// destroyed.
    dying: Vec<(i32, u32)>,
    manner: Manner,
    waiting: VecDeque<Waiting>,
    /// Buffers out of the rings (`pst_extra_pool`).
    extra: VecDeque<u32>,
    /// How far sockets were given what is in the ring, beyond what is reported
    /// (`nkr_hwlease`).
    lease: Option<u32>,
    /// The NIC's place among the adapters, and its name on the path.
    nic: Option<(usize, String)>,
    /// Where the kernel's own rings and buffers for the NIC lie.
    nic_rings: Vec<u32>,
    counts: Counts,
}

/// What the kernel's state is beyond the rings, as a test has it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Manner {
    /// Syncs for receiving that a closed socket lives on, as one does whose FIN is not
    /// acknowledged.
    pub(crate) linger: u32,
    /// Slots sent after which there is no place to keep the next.
    pub(crate) keep_max: Option<u32>,
    /// The NIC's ring is full: what sockets are given is not reported.
    pub(crate) nic_full: bool,
}

/// What has happened at a port.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Slots that were sent by no socket, and taken all the same.
    pub(crate) nobodys: u32,
    /// Bytes that a socket did not take of a slot that was taken.
    pub(crate) lost: usize,
    /// Syncs that ended at a slot which is bad.
    pub(crate) stops_bad: u32,
    /// Syncs that ended at a slot whose socket is full or dead.
    pub(crate) stops_full: u32,
    /// Slots taken, void ones left out.
    pub(crate) sent: u32,
}

/// A port of PASTE's, as a test sees it.
pub(crate) struct PstView<'a>(&'a mut World, usize);

impl Model {
    /// Works on the port of the path of `nic`.
    pub(crate) fn pst<T>(&self, nic: &str, work: impl FnOnce(&mut PstView<'_>) -> T) -> T {
        let mut world = lock(&self.0);
        let index = world.find(&format!("pst{nic}:0")).expect("opened once");
        work(&mut PstView(&mut world, index))
    }
}

impl PstView<'_> {
    fn pst(&mut self) -> &mut Pst {
        self.0.adapters[self.1].pst()
    }

    /// What has happened.
    pub(crate) fn counts(&mut self) -> Counts {
        self.pst().counts
    }

    /// How the kernel is to be.
    pub(crate) fn manner(&mut self) -> &mut Manner {
        &mut self.pst().manner
    }

    /// Puts a slot into the ring for receiving, whatever it says.
    pub(crate) fn deliver(&mut self, buf_idx: u32, len: u16, ptr: u64) {
        self.pst().waiting.push_back(Waiting::Raw(Slot { buf_idx, len, flags: BUF_CHANGED, ptr }));
    }

    /// Forgets a socket, as PASTE does for the wrong one.
    pub(crate) fn forget(&mut self, fd: i32) {
        assert!(self.pst().sockets.remove(&fd).is_some(), "no socket {fd}");
    }

    /// Takes the NIC off the path, as its driver does when it goes; or lets it stay away.
    pub(crate) fn detach(&mut self) {
        self.0.pst_detach(self.1);
    }

    /// Changes the slot that was filled last, as no user of the ring should.
    pub(in super::super) fn spoil(&mut self, work: impl FnOnce(Slot) -> Slot) {
        let World { adapters, mems, .. } = &mut *self.0;
        let adapter = &mut adapters[self.1];
        let mem = mems.iter().find(|mem| mem.id == adapter.mem).unwrap();
        let ring = &adapter.tx[0];
        let slot = ring.slot(mem, ring.rhead);
        ring.set_slot(mem, ring.rhead, work(slot));
    }
}

impl super::adapter::Adapter {
    fn pst(&mut self) -> &mut Pst {
        match &mut self.nature {
            Nature::Pst(pst) => pst,
            _ => panic!("no port of PASTE's"),
        }
    }
}

/// Works with what the descriptor names, if it is the socket that was meant.
fn with_socket<T>(fd: i32, inode: u64, work: impl FnOnce(BorrowedFd<'_>) -> T) -> Option<T> {
    // SAFETY: not -1. Whoever has it may have closed it: then what it names, if anything,
    // is looked at below and nothing else is done with it. It does not close it meanwhile,
    // because the call that leads here is its own.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let stat = rustix::fs::fstat(fd).ok()?;
    (stat.st_ino == inode).then(|| work(fd))
}

/// The kernel's block in front of a frame.
fn nmcb(buf: u32) -> [u8; NMCB_LEN] {
    let mut block = [0; NMCB_LEN];
    block.iter_mut().enumerate().for_each(|(at, byte)| *byte = buf as u8 ^ at as u8 ^ 0xa5);
    block
}

impl World {
    /// `netmap_pst_reg` and `pst_extra_alloc`.
    pub(super) fn pst_opened(&mut self, bound: &Bound) -> Result<(), Errno> {
        let World { adapters, mems, .. } = self;
        let adapter = &mut adapters[bound.adapter];
        let mem = mems.iter_mut().find(|mem| mem.id == bound.mem).unwrap();
        let rings = adapter.tx[bound.tx.clone()].iter_mut();
        for ring in rings.chain(&mut adapter.rx[bound.rx.clone()]) {
            (ring.offset_mask, ring.offset_max) = (PST_OFFSET_MASK, PST_OFFSET_MASK);
            let at = ring.at.unwrap();
            mem.raw.write(at, &Ring { offset_mask: PST_OFFSET_MASK, ..mem.raw.read(at) });
            for slot in 0..ring.slots {
                let found = ring.slot(mem, slot);
                ring.set_slot(mem, slot, Slot { ptr: NMCB_LEN as u64, ..found });
                mem.raw.store(mem.buffer(found.buf_idx), &nmcb(found.buf_idx));
            }
        }
        for _ in 0..EXTRA {
            let (_, buf) = mem.buffers.take(mem.buffers.size).ok_or(Errno::NOMEM)?;
            mem.raw.store(mem.buffer(buf), &nmcb(buf));
            adapter.pst().extra.push_back(buf);
        }
        Ok(())
    }

    /// `NETMAP_REQ_PST_ATTACH`: `netmap_bdg_attach`, `netmap_pst_bwrap_attach`,
    /// `netmap_pst_bwrap_reg`.
    pub(super) fn pst_attach(&mut self, name: &str, asked: &Register) -> Result<(), Errno> {
        let (path, nic_name) = name.split_once(':').ok_or(Errno::INVAL)?;
        let port = self.adapters.iter().position(|port| {
            let Some((other, _)) = port.name.split_once(':') else { return false };
            matches!(port.nature, Nature::Pst(_)) && other == path && port.active > 0
        });
        // Only a port may come into being by being named.
        let (port, nic) = port.zip(self.find(nic_name)).ok_or(Errno::INVAL)?;
        if self.adapters[port].pst().nic.as_ref().is_some_and(|(_, other)| other == name) {
            return Err(Errno::BUSY);
        }
        let Nature::Nic(kind) = &self.adapters[nic].nature else { return Err(Errno::INVAL) };
        if !kind.tx_csum {
            return Err(ENOTSUPP);
        }
        if self.adapters[nic].active > 0 {
            return Err(Errno::BUSY);
        }
        if asked.mem_id != self.adapters[port].mem || asked.mode != REG_NIC_SW {
            return Err(Errno::INVAL);
        }
        // One NIC on a path.
        if self.adapters[port].pst().nic.is_some() {
            return Err(ENOTSUPP);
        }
        let World { adapters, mems, .. } = self;
        let mem = mems.iter_mut().find(|mem| mem.id == asked.mem_id).unwrap();
        // Its own rings and those to the host, each way, in the port's memory.
        let wanted = adapters[nic].tx.len() + adapters[nic].rx.len();
        let mut rings = Vec::new();
        for _ in 0..wanted {
            match mem.rings.take(1) {
                Some((_, ring)) => rings.push(ring),
                None => {
                    rings.iter().for_each(|&ring| assert!(mem.rings.give(ring)));
                    return Err(Errno::NOMEM);
                }
            }
        }
        adapters[nic].active += 1;
        let pst = adapters[port].pst();
        (pst.nic, pst.nic_rings) = (Some((nic, name.to_owned())), rings);
        Ok(())
    }

    /// `NETMAP_REQ_PST_DETACH`, or the NIC goes.
    fn pst_detach(&mut self, port: usize) {
        let pst = self.adapters[port].pst();
        let Some((nic, _)) = pst.nic.take() else { return };
        let rings = std::mem::take(&mut pst.nic_rings);
        self.adapters[nic].active -= 1;
        let mem = self.adapters[port].mem;
        let mem = self.mems.iter_mut().find(|other| other.id == mem).unwrap();
        rings.into_iter().for_each(|ring| assert!(mem.rings.give(ring)));
    }

    /// Whether a NIC of this name is on a path, for `NETMAP_REQ_PORT_INFO_GET`.
    pub(super) fn pst_joined(&self, name: &str) -> Result<(), Errno> {
        let joined = self.adapters.iter().any(|port| match &port.nature {
            Nature::Pst(pst) => pst.nic.as_ref().is_some_and(|(_, other)| other == name),
            _ => false,
        });
        if joined { Ok(()) } else { Err(Errno::INVAL) }
    }

    /// `netmap_pst_register_fd`.
    pub(super) fn pst_register_fd(&mut self, name: &str, fd: i32) -> Result<(), Errno> {
        let port = self.find(name).filter(|&port| self.adapters[port].active > 0);
        let port = port.ok_or(Errno::NXIO)?;
        if fd > FD_MAX {
            return Err(Errno::NOMEM);
        }
        if fd < 3 {
            return Err(Errno::INVAL);
        }
        // SAFETY: 3 at least; the caller's own, which it keeps open during this call.
        let socket = unsafe { BorrowedFd::borrow_raw(fd) };
        rustix::net::getpeername(socket).map_err(|_| Errno::INVAL)?.ok_or(Errno::INVAL)?;
        let inode = rustix::fs::fstat(socket).map_err(|_| Errno::INVAL)?.st_ino;
        let pst = self.adapters[port].pst();
        if pst.sockets.values().any(|other| other.inode == inode) {
            return Err(Errno::BUSY);
        }
        let bound = os::is_bound(socket);
        // Whatever was registered under this number is forgotten.
        pst.sockets.insert(fd, Socket { inode, bound, over: false });
        Ok(())
    }

    /// `netmap_pst_rxsync`.
    pub(super) fn pst_rx(&mut self, index: usize) {
        let mem = self.mems.iter().find(|mem| mem.id == self.adapters[index].mem).unwrap();
        let ring = &mut self.adapters[index].rx[0];
        // Buffers that were read are the kernel's again, and so are its blocks in them.
        while ring.hwcur != ring.rhead {
            let slot = ring.slot(mem, ring.hwcur);
            let mut found = [0; NMCB_LEN];
            mem.raw.load(mem.buffer(slot.buf_idx), &mut found);
            let known = (RESERVED_BUFFERS..mem.buffers.total()).contains(&slot.buf_idx);
            self.complaints += u32::from(known && found != nmcb(slot.buf_idx));
            ring.hwcur = ring.next(ring.hwcur);
        }
        let pst = self.adapters[index].pst();
        if pst.nic.is_none() {
            return;
        }
        pst.notice_closed();
        // What has not found its place comes first, and nothing else is looked at.
        if pst.waiting.is_empty() {
            pst.gather();
        }
        self.pst_poststack(index);
    }

    /// `pst_poststack`: what is sorted appears in the ring, as far as it has room.
    fn pst_poststack(&mut self, index: usize) {
        let World { adapters, mems, .. } = self;
        let adapter = &mut adapters[index];
        let mem = mems.iter().find(|mem| mem.id == adapter.mem).unwrap();
        while adapter.rx[0].space() > 0
            && let Some(waiting) = adapter.pst().waiting.pop_front()
        {
            let ring = &adapter.rx[0];
            let at = ring.hwtail;
            let old = ring.slot(mem, at).buf_idx;
            let slot = match waiting {
                Waiting::Raw(slot) if slot.buf_idx == 0 => Slot { buf_idx: old, ..slot },
                Waiting::Raw(slot) => slot,
                Waiting::Payload(fd, bytes) => {
                    let pst = adapter.pst();
                    let buf_idx = pst.extra.pop_front().expect("as many as were put aside");
                    // A test may have put something else there.
                    if old < mem.buffers.total() {
                        pst.extra.push_back(old);
                    }
                    let start = mem.buffer(buf_idx) + NMCB_LEN + usize::from(HEADERS);
                    mem.raw.store(start, &bytes);
                    let ptr = PstPtr { offset: NMCB_LEN as u16, fd, data: HEADERS }.pack();
                    let len = HEADERS + bytes.len() as u16;
                    Slot { buf_idx, len, flags: BUF_CHANGED, ptr }
                }
            };
            let ring = &mut adapter.rx[0];
            ring.set_slot(mem, at, slot);
            ring.hwtail = ring.next(at);
        }
    }

    /// `netmap_pst_txsync` and `pst_prestack`.
    pub(super) fn pst_tx(&mut self, index: usize) {
        let World { adapters, mems, .. } = self;
        let adapter = &mut adapters[index];
        let mem = mems.iter().find(|mem| mem.id == adapter.mem).unwrap();
        // Without a NIC nothing moves, and nothing is said (`pst_bdg_valid`).
        if adapter.pst().nic.is_none() {
            return;
        }
        let mut kept = 0;
        let mut cursor = adapter.pst().lease.unwrap_or(adapter.tx[0].hwcur);
        while cursor != adapter.tx[0].rhead {
            let ring = &adapter.tx[0];
            let (at, slot) = (cursor, ring.slot(mem, cursor));
            let after = ring.next(at);
            if slot.len == 0 {
                cursor = after;
                continue;
            }
            let PstPtr { offset, fd, data } = PstPtr::unpack(slot.ptr);
            if slot.len < data || usize::from(offset) < NMCB_LEN {
                adapter.pst().counts.stops_bad += 1;
                break;
            }
            let len = usize::from(slot.len - data);
            let start = usize::from(offset) + usize::from(data);
            assert!(start + len <= mem.buffers.size, "the kernel reads beyond a buffer: {slot:?}");
            let mut bytes = vec![0; len];
            mem.raw.load(mem.buffer(slot.buf_idx) + start, &mut bytes);
            let pst = adapter.pst();
            match pst.sendpage(fd, &bytes) {
                // nm_os_pst_tx: no socket is no error.
                None => pst.counts.nobodys += 1,
                Some(Ok(sent)) => pst.counts.lost += len - sent,
                Some(Err(_)) => {
                    pst.counts.stops_full += 1;
                    break;
                }
            }
            pst.counts.sent += 1;
            let buf_idx = pst.extra.pop_front().expect("as many as were put aside");
            pst.extra.push_back(slot.buf_idx);
            mem.raw.store(mem.buffer(slot.buf_idx), &nmcb(slot.buf_idx));
            let keep_max = pst.manner.keep_max;
            let flags = BUF_CHANGED;
            let empty = Slot { buf_idx, len: 2048, flags, ptr: NMCB_LEN as u64 };
            adapter.tx[0].set_slot(mem, at, empty);
            cursor = after;
            kept += 1;
            // pst_extra_enq: EBUSY, and the cursor goes on.
            if keep_max.is_some_and(|most| kept >= most) {
                break;
            }
        }
        // rollup: what has not left is not reported, whoever has it.
        let full = adapter.pst().manner.nic_full;
        adapter.pst().lease = full.then_some(cursor);
        let ring = &mut adapter.tx[0];
        if !full {
            ring.hwcur = cursor;
        }
        ring.hwtail = ring.prev(ring.hwcur);
    }

    /// `pst_kwait`: ports that were closed go when their sockets have gone.
    pub(super) fn pst_kwait(&mut self) {
        for bound in std::mem::take(&mut self.waiting) {
            if let Nature::Pst(pst) = &mut self.adapters[bound.adapter].nature {
                pst.notice_closed();
                if !pst.sockets.is_empty() {
                    self.waiting.push(bound);
                    continue;
                }
                self.pst_detach(bound.adapter);
                let extra = std::mem::take(&mut self.adapters[bound.adapter].pst().extra);
                let mem = self.mems.iter_mut().find(|mem| mem.id == bound.mem).unwrap();
                extra.into_iter().for_each(|buf| assert!(mem.buffers.give(buf)));
            }
            self.unregister(&bound);
        }
    }
}

impl Pst {
    /// Sockets that the application has closed are destroyed, some at once and some
    /// later.
    fn notice_closed(&mut self) {
        let closed = |(&fd, socket): (&i32, &Socket)| {
            with_socket(fd, socket.inode, |_| ()).is_none().then_some(fd)
        };
        let gone: Vec<i32> = self.sockets.iter().filter_map(closed).collect();
        for fd in gone {
            if self.dying.iter().all(|(other, _)| *other != fd) {
                self.dying.push((fd, self.manner.linger));
            }
        }
        let sockets = &mut self.sockets;
        self.dying.retain_mut(|(fd, syncs)| {
            if *syncs == 0 {
                sockets.remove(fd);
                return false;
            }
            *syncs -= 1;
            true
        });
    }

    /// `nm_os_pst_upcall`, for every socket that has something: by socket, in order.
    fn gather(&mut self) {
        for (&fd, socket) in &mut self.sockets {
            while !socket.over && self.waiting.len() < BATCH_MAX {
                let mut bytes = vec![0; MSS];
                let got = with_socket(fd, socket.inode, |fd| {
                    rustix::net::recv(fd, &mut bytes[..], RecvFlags::DONTWAIT)
                });
                match got {
                    Some(Ok((len, _))) => {
                        assert!(
                            socket.bound || len == 0,
                            "the kernel panics: \"cb not associated with a netmap interface\""
                        );
                        bytes.truncate(len);
                        socket.over = len == 0;
                        self.waiting.push_back(Waiting::Payload(fd, bytes));
                    }
                    Some(Err(Errno::AGAIN)) | None => break,
                    // Reset: nothing appears.
                    Some(Err(_)) => socket.over = true,
                }
            }
        }
    }

    /// `nm_os_pst_tx`; `None` if no socket is registered under the number.
    fn sendpage(&mut self, fd: i32, bytes: &[u8]) -> Option<Result<usize, Errno>> {
        let socket = self.sockets.get_mut(&fd)?;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = with_socket(fd, socket.inode, |fd| rustix::net::send(fd, bytes, flags))?;
        // An error is said once, to whoever asks first; it is no FIN to who asks next.
        socket.over |= sent.is_err_and(|errno| errno != Errno::AGAIN);
        Some(sent)
    }
}
