//! A port of PASTE's (`pst:`): the rings by which payload of the host kernel's own TCP
//! sockets goes to and from a NIC that netmap has.
//!
//! A path of PASTE's has one port for the application and one NIC. The application makes
//! and accepts sockets as ever, and registers their descriptors; from then on what they
//! receive appears in the port's ring, in order, and what is put into the other ring is
//! sent by them. All protocol work of that NIC happens in the syncs of the port: without
//! them no handshake, acknowledgment or retransmission happens on it.
//!
//! This is the generation of 2021 (PASTE's branch `paste`, on API 14), which was the last.
//! Its ways are those of `netmap_paste.c` and `netmap_linux.c` there.
//!
//! # Whose memory it is
//!
//! In front of each frame, in the buffer itself, the kernel keeps a block of its own
//! (`struct nmcb`): pointers to its rings, and links that it follows without a second
//! look. Who can write there can have the kernel write anywhere; who can read there
//! learns where the kernel lies. So the memory of a port is never a guest's, not even to
//! be read: payload is copied between it and the region, once each way, and of a buffer
//! here only the bytes behind that block are touched.

mod error;
mod slots;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use paste_pmem::{Buffers, RangeError};
use rustix::io::Errno;
use zerocopy::FromZeros;

use self::slots::{PstRx, PstTx};
use super::abi::{
    Attach, EXCLUSIVE, FdReg, Header, PST_OFFSET_MASK, PstPtr, REG_ALL_NIC, REG_NIC_SW,
    REQ_PST_ATTACH, REQ_PST_FD_REG, REQ_REGISTER, Register,
};
use super::attach::{self, Memory, Seen, Sharing};
use super::kernel::{Body, Descriptor, Kernel, Request};
use super::os::{self, Os};
use super::rings::{Exchange, RingFault};
use super::{broken, failed};
use crate::port::PortError;

pub use error::PstError;
pub use slots::{Arrived, FD_MAX, Segment, Verdict};

/// Bytes of the longest name of a path, with `pst` before it (`NM_BDG_IFNAMSIZ`).
const PATH_MAX: usize = 15;
const PREFIX: &str = "pst";
/// Segments that the kernel can keep (`paste_extra`), as the module is loaded by itself.
const KEPT_MAX: u32 = 2048;
/// Syncs for sending in one turn, at most. The kernel stops behind a slot when it has no
/// more memory to keep what is sent until it is acknowledged (`paste_extra`).
const TX_SYNCS_MAX: u32 = 4;
/// What PASTE says for `ENOTSUP` on Linux: a number of the kernel's own
/// (`linux/errno.h`).
const ENOTSUPP: Errno = Errno::from_raw_os_error(524);

/// What the host's network says of the NIC.
#[derive(Clone, Copy, Debug)]
pub struct Nic {
    /// Bytes of the largest packet.
    pub mtu: u32,
    /// Somebody brought it up.
    pub up: bool,
}

/// Whether netmap is there for this user, speaks our API and was built with PASTE.
///
/// # Errors
/// [`PstError`].
pub fn probe() -> Result<(), PstError> {
    find(&Os, "paste").map(drop)
}

/// A descriptor of netmap's, if it knows PASTE. Nothing is made by asking.
fn find<K: Kernel>(kernel: &K, port: &str) -> Result<K::Descriptor, PstError> {
    let descriptor = attach::open(kernel, port)?;
    // A path that there is not: without PASTE, the very request is unknown.
    match register_fd(&descriptor, "pst_:_", 0) {
        Ok(()) | Err(Errno::NXIO) => Ok(descriptor),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Err(PstError::NoPaste { port: port.to_owned() }),
        Err(errno) => Err(refused(port, "NIOCCTRL (PST_FD_REG)", errno)),
    }
}

fn refused(port: &str, call: &'static str, errno: Errno) -> PstError {
    PstError::Failed { port: port.to_owned(), call, source: errno.into() }
}

fn register_fd<D: Descriptor + ?Sized>(descriptor: &D, name: &str, fd: u32) -> Result<(), Errno> {
    descriptor.control(&mut Request {
        header: Header::new(REQ_PST_FD_REG, name),
        body: Body::FdReg(&mut FdReg { fd, pad: 0 }),
        extmem: None,
        offsets: None,
    })
}

/// The path of a NIC: each has its own, so that no table of descriptors is anybody
/// else's. What a path's name must not have is made an underscore.
fn path(nic: &str) -> String {
    let tame = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let tail = nic.len().saturating_sub(PATH_MAX - PREFIX.len());
    let name: String = nic.chars().skip(tail).map(tame).collect();
    format!("{PREFIX}{name}")
}

/// A port that is open, with its NIC.
#[derive(Debug)]
pub struct PstPort {
    /// As configured, for messages.
    text: String,
    nic: String,
    /// The port's name, and the NIC's on its path.
    name: String,
    nic_name: String,
    /// The NIC's number, where the host's network gives one.
    index: Option<u32>,
    // Dropped before the memory.
    descriptor: Box<dyn Descriptor>,
    mem_id: u16,
    rx: PstRx,
    tx: PstTx,
    memory: Memory,
    /// What the kernel says of the NIC.
    link: Option<Nic>,
    /// See [`PstPort::kept_max`].
    kept_max: u32,
}

impl PstPort {
    /// Opens a port for the NIC, and has the NIC join it: from then on the host's own
    /// network on that NIC goes through this port.
    ///
    /// # Errors
    /// [`PstError`]; nothing is left open then.
    pub fn open(text: &str, nic: &str) -> Result<PstPort, PstError> {
        PstPort::open_on(&Os, text, nic)
    }

    pub(super) fn open_on<K: Kernel>(
        kernel: &K,
        text: &str,
        nic: &str,
    ) -> Result<PstPort, PstError> {
        let descriptor = find(kernel, text)?;
        let link = os::link(nic);
        let path = path(nic);
        let (name, nic_name) = (format!("{path}:0"), format!("{path}:{nic}"));
        let layout = |what| PstError::Layout { port: text.to_owned(), what };
        let mut bound = Register { mode: REG_ALL_NIC, flags: EXCLUSIVE, ..Register::new_zeroed() };
        descriptor
            .control(&mut Request {
                header: Header::new(REQ_REGISTER, &name),
                body: Body::Register(&mut bound),
                extmem: None,
                offsets: None,
            })
            .map_err(|errno| match errno {
                Errno::BUSY => PstError::Busy { port: text.to_owned(), nic: nic.to_owned() },
                Errno::NOMEM => PstError::NoMemory { port: text.to_owned() },
                errno => refused(text, "NIOCCTRL (REGISTER)", errno),
            })?;
        let len = usize::try_from(bound.memsize).map_err(|_| layout("the memory's size"))?;
        let area = descriptor.map(len).map_err(|errno| refused(text, "mmap", errno))?;
        let (seen, mut rx, mut tx) =
            Seen::read(&area, &bound, Exchange::Below(u32::MAX)).map_err(layout)?;
        let (Some(rx), Some(tx)) = (rx.pop(), tx.pop()) else {
            return Err(layout("the rings"));
        };
        let tx = tx.into_common();
        // The kernel says by it how large its block is.
        let headroom = PstPtr::unpack(tx.memory.slot(0).ptr).offset;
        if headroom == 0 || seen.offset_mask() != PST_OFFSET_MASK {
            return Err(layout("the offsets"));
        }
        let port = PstPort {
            text: text.to_owned(),
            nic: nic.to_owned(),
            name,
            nic_name,
            index: link.map(|link| link.index),
            descriptor: Box::new(descriptor),
            mem_id: bound.mem_id,
            rx: PstRx { ring: rx, headroom },
            tx: PstTx::new(tx, headroom),
            memory: seen.memory(area, Sharing::Netmap),
            link: link.map(|link| Nic { mtu: link.mtu, up: link.up }),
            kept_max: os::parameter("paste_extra").unwrap_or(KEPT_MAX),
        };
        port.attach()?;
        Ok(port)
    }

    /// The same in a model of the kernel.
    #[cfg(test)]
    pub(crate) fn open_in(
        model: &super::model::Model,
        text: &str,
        nic: &str,
    ) -> Result<PstPort, PstError> {
        PstPort::open_on(model, text, nic)
    }

    /// Has the NIC join the port.
    fn attach(&self) -> Result<(), PstError> {
        let (port, nic) = (|| self.text.clone(), || self.nic.clone());
        let register = Register { mem_id: self.mem_id, mode: REG_NIC_SW, ..Register::new_zeroed() };
        let mut body = Attach { register, port_index: 0, pad: 0 };
        self.descriptor
            .control(&mut Request {
                header: Header::new(REQ_PST_ATTACH, &self.nic_name),
                body: Body::Attach(&mut body),
                extmem: None,
                offsets: None,
            })
            .map_err(|errno| match errno {
                // That there is none is the same to it as that it may not join.
                Errno::INVAL if os::link(&self.nic).is_none() => {
                    PstError::NotFound { port: port(), nic: nic() }
                }
                Errno::BUSY => PstError::Busy { port: port(), nic: nic() },
                Errno::NOMEM => PstError::NoMemory { port: port() },
                Errno::OPNOTSUPP | ENOTSUPP => PstError::Offloads { port: port(), nic: nic() },
                errno => refused(&self.text, "NIOCCTRL (PST_ATTACH)", errno),
            })
    }

    /// Whether the NIC is still this port's.
    ///
    /// # Errors
    /// [`PortError::Gone`] if it is not, because the device or its driver has gone.
    pub fn check(&self) -> Result<(), PortError> {
        let gone = |errno: Errno| PortError::Gone { port: self.text.clone(), source: errno.into() };
        if self.index.is_some() && os::link(&self.nic).map(|link| link.index) != self.index {
            return Err(gone(Errno::NODEV));
        }
        attach::info(&*self.descriptor, &self.nic_name).map(drop).map_err(gone)
    }

    /// Has a NIC that has come back join the port again.
    ///
    /// # Errors
    /// [`PortError`]: it is not there yet.
    pub fn rejoin(&mut self) -> Result<(), PortError> {
        self.attach().map_err(|error| {
            let port = self.text.clone();
            match error {
                PstError::NotFound { .. } => PortError::Gone { port, source: Errno::NODEV.into() },
                error => PortError::Failed {
                    port,
                    call: "joining the NIC again",
                    source: io::Error::other(error),
                },
            }
        })?;
        self.index = os::link(&self.nic).map(|link| link.index);
        Ok(())
    }

    /// What the host's network said of the NIC when it was opened; `None` where there is
    /// no telling.
    pub fn nic(&self) -> Option<Nic> {
        self.link
    }

    /// Registers a connected socket.
    ///
    /// # Errors
    /// `EINVAL` if it is not connected any more, or its number is below 3; `ENOMEM` if
    /// that is above 65535; `EBUSY` if it was registered before; `ENXIO` if the port has
    /// gone.
    pub fn register(&self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        register_fd(&*self.descriptor, &self.name, socket.as_raw_fd() as u32)
    }

    /// Gives back what was read, has the kernel do its protocol work, and looks at what
    /// has arrived. Returns how many slots wait.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn sync_rx(&mut self) -> Result<u32, PortError> {
        self.rx.ring.publish();
        let text = &self.text;
        self.descriptor.rxsync().map_err(|errno| failed(text, "NIOCRXSYNC", errno))?;
        self.rx.ring.refresh().map_err(|fault| broken(text, fault))?;
        Ok(self.rx.ring.waiting())
    }

    /// Slots of the ring for receiving that may hold something at once. If all do, the
    /// kernel may have more.
    pub fn rx_capacity(&self) -> u32 {
        self.rx.ring.slots() - 1
    }

    /// What is in the next slot that was received, if there is one.
    pub fn peek(&mut self) -> Option<Arrived> {
        self.rx.peek(&self.memory)
    }

    /// The next slot that was received is done with.
    pub fn consume(&mut self) {
        self.rx.ring.consume(1);
    }

    /// Copies payload that was received into a buffer of a region.
    ///
    /// # Errors
    /// [`RangeError`] if it does not fit.
    pub fn copy_out(
        &self,
        from: usize,
        buffers: &Buffers,
        to: (u32, usize),
        len: usize,
    ) -> Result<(), RangeError> {
        self.memory.area.copy_out(from, buffers, to, len)
    }

    /// Segments that the kernel can keep for all sockets until they are acknowledged
    /// (`paste_extra`). With more, it cannot exchange what is in the NIC's ring, which
    /// stops for all.
    pub fn kept_max(&self) -> u32 {
        self.kept_max
    }

    /// Slots that can be filled for sending.
    pub fn room(&self) -> u32 {
        self.tx.room()
    }

    /// Bytes of the longest payload behind so many bytes of headers.
    pub fn payload_max(&self, headers: u16) -> usize {
        let lead = usize::from(self.rx.headroom) + usize::from(headers);
        self.memory.buffer_size.saturating_sub(lead)
    }

    /// Where the payload of the next slot to be sent is to lie; `None` if the slot names
    /// no buffer of this memory.
    pub fn place(&self, headers: u16) -> Option<usize> {
        self.tx.place(&self.memory, headers).ok()
    }

    /// Copies payload out of a buffer of a region to where it is to be sent from.
    ///
    /// # Errors
    /// [`RangeError`] if it is not in the buffer.
    pub fn copy_in(
        &self,
        to: usize,
        buffers: &Buffers,
        from: (u32, usize),
        len: usize,
    ) -> Result<(), RangeError> {
        self.memory.area.copy_in(to, buffers, from, len)
    }

    /// Fills the next slot to be sent; `word` comes back when the kernel has taken it, and
    /// is not [`u64::MAX`]. False: there is no slot, or the kernel would refuse it.
    pub fn put(&mut self, segment: Segment, word: u64) -> bool {
        self.tx.put(&self.memory, segment, word)
    }

    /// Has the kernel look at what was filled, and tells what it has taken. Returns the
    /// word of a slot that it does not take, and that holds up all others.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn sync_tx(&mut self, taken: &mut dyn FnMut(u64)) -> Result<Option<u64>, PortError> {
        let text = &self.text;
        let fault = |fault: RingFault| broken(text, fault);
        for _ in 0..TX_SYNCS_MAX {
            if !self.tx.publish() {
                return Ok(None);
            }
            self.descriptor.txsync().map_err(|errno| failed(text, "NIOCTXSYNC", errno))?;
            if self.tx.settle(taken).map_err(fault)? == 0 {
                return Ok(self.tx.stuck());
            }
        }
        Ok(None)
    }

    /// Decides about slots that the kernel has not said to have taken, from the first on.
    ///
    /// It may have, and not have said so: where the NIC's ring is full, it reports only
    /// what has left. Whoever makes such a slot void has the NIC send nothing in its place,
    /// and whoever sends what it held once more has it sent twice.
    pub fn withdraw(&mut self, judge: impl FnMut(u64) -> Verdict) {
        self.tx.withdraw(judge);
    }

    /// Readable when the kernel has something to do or to show.
    pub fn fd(&self) -> BorrowedFd<'_> {
        (*self.descriptor).as_fd()
    }
}
