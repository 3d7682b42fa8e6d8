//! The port on netmap: `netmap:ix0`, `netmap:ix0{7`, `vale0:web1`.
//!
//! Netmap gives a process the rings of a NIC, of a VALE switch's port or of a pipe; one
//! system call each way and turn moves whatever is in them. Where the kernel allows it,
//! the buffers in the rings are the region's own: a frame is received into the buffer
//! that the guest then reads, and sent from the one that it wrote. [`attach`] tells how
//! they come to be the same memory, and when frames are copied instead.
//!
//! # What a guest can do
//!
//! No ring, index, length or offset lies where a guest could reach it, so it cannot make
//! the kernel read or write elsewhere, nor move anything that is not its own. What lies
//! in its buffers it can change at any moment: the payload of a frame on its way out,
//! which is its own affair, and bytes of a frame that was received, which the stack reads
//! once into private memory before it judges them. A buffer that it writes to while the
//! NIC receives into it holds some mix of both, for itself alone.
//!
//! With `spoof_check` headers never lie in a buffer of the region. They go out from
//! private memory, as a slot of their own in front of the payload where the port is known
//! to carry frames in several slots (pipes, and `netmap:` with `fragments=on`), and
//! else together with a copy of the payload. Not every driver joins slots, and nothing
//! tells which does: one that does not would send two frames.
//!
//! An emulated adapter (a NIC without a driver of netmap's) never joins slots: with
//! `fragments=on` it sends headers and payloads as frames of their own, and nothing gets
//! through. A VALE switch passes slots on as they are, and its ports to the host's stack
//! do not join them: there a frame is always one slot. The peer of a veth leaves
//! checksums unfinished, which netmap does not tell: `ethtool -K PEER tx off`.
//!
//! # The host's own network
//!
//! A NIC in netmap mode is gone from the host's stack. With `netmap:ix0*` it is not:
//! frames that are not for the guest go on to the host, and the host's to the NIC or the
//! guest, by exchanging buffers between rings. Those buffers are netmap's then, because a
//! guest must not see the host's frames.

mod abi;
mod area;
mod attach;
mod error;
mod kernel;
#[cfg(test)]
pub(crate) mod model;
mod name;
mod os;
pub mod pst;
mod receive;
mod rings;
mod send;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::fmt::Debug;
use std::os::fd::BorrowedFd;

use paste_pmem::{Pool, Region};
use paste_stack::{Origin, TxBatch};
use rustix::io::Errno;

use self::attach::{Ask, Attached, Sharing};
use self::kernel::{Descriptor, Kernel, Shared};
use self::os::{Link, Os};
use self::rings::{RingFault, RxRing, TxRing};
use super::{
    Caps, FRAME_OVERHEAD, Now, Port, PortCounters, PortError, RxBatch, Station, give_back,
};

pub use error::NetmapError;
pub use name::{NameFault, Nature, PortName, Rings};

/// Time after which the port is asked again whether what it sends has gone, in ns.
const RECLAIM_NS: u64 = 1_000_000;

/// How a port is to be opened.
#[derive(Debug)]
pub struct NetmapOptions<'a> {
    /// The port, as configured, for messages.
    pub port: &'a str,
    /// The port.
    pub name: &'a PortName,
    /// Frames may go out in several slots.
    pub fragments: bool,
    /// Bytes of the largest packet that the guest is to see.
    pub mtu: u16,
    /// The guest, or those that share the port.
    pub stations: &'a [Station],
    /// Headers are to be kept where the guest cannot rewrite them.
    pub spoof_check: bool,
}

/// Opens a port for the guest with this region.
///
/// # Errors
/// [`NetmapError`].
pub fn open(options: &NetmapOptions<'_>, region: &Region) -> Result<Box<dyn Port>, NetmapError> {
    let (geometry, buffers) = (region.geometry(), region.geometry().buffers());
    let shared = Shared {
        fd: region.fd(),
        offset: region.guest_offset() + buffers.offset,
        len: buffers.len as usize,
        buffer_size: geometry.buffer_size() as usize,
    };
    let link = match options.name.nature {
        Nature::Nic => os::link(&options.name.kernel),
        Nature::Vale | Nature::Pipe => None,
    };
    NetmapPort::open(&Os, options, Some(shared), link).map(|port| Box::new(port) as Box<dyn Port>)
}

/// Whether netmap is there for this user and speaks our API.
///
/// # Errors
/// [`NetmapError`].
pub fn probe() -> Result<(), NetmapError> {
    attach::open(&Os, "netmap").map(drop)
}

/// A port that is open.
#[derive(Debug)]
struct NetmapPort<D> {
    port: String,
    mtu: u16,
    /// The guests' Ethernet addresses.
    macs: HashSet<[u8; 6]>,
    host_mac: Option<[u8; 6]>,
    /// A head and a payload may go out in slots of their own.
    fragments: bool,
    gather: bool,
    /// `None` when the buffers were given back.
    attached: Option<Attached<D>>,
    /// A buffer taken and not yet used.
    reserve: Option<u32>,
    /// Buffers of the region that are in rings for receiving, and how many may be.
    lent: u32,
    lent_max: u32,
    /// The ring to be looked at first.
    turn: usize,
    /// When to ask again for what is being sent, on the monotonic clock, in ns.
    reclaim_at: Option<u64>,
    counters: PortCounters,
}

impl<D: Descriptor> NetmapPort<D> {
    /// Opens a port by way of `kernel`. Warns of what the operator may not have meant.
    fn open<K: Kernel<Descriptor = D>>(
        kernel: &K,
        options: &NetmapOptions<'_>,
        shared: Option<Shared<'_>>,
        link: Option<Link>,
    ) -> Result<NetmapPort<D>, NetmapError> {
        let NetmapOptions { port, name, mtu, stations, spoof_check, .. } = *options;
        if let Some(link) = &link {
            judge_link(options, link)?;
        }
        let buffers = shared.map_or(0, |shared| shared.len / shared.buffer_size);
        let attached = attach::attach(kernel, &Ask { port, name, shared })?;
        let fragments = options.fragments || name.nature == Nature::Pipe;
        let frame = u32::from(mtu) + u32::from(FRAME_OVERHEAD);
        let buffer = attached.memory.buffer_size as u32;
        if attached.memory.sharing == Sharing::Netmap && frame > buffer && !fragments {
            let mtu_max = buffer.saturating_sub(FRAME_OVERHEAD.into());
            return Err(NetmapError::BufferSize { port: port.into(), buffer, frame, mtu_max });
        }
        if let Some(why) = &attached.why_copied {
            tracing::warn!(port, why, "frames are copied once each way");
        } else {
            tracing::info!(
                port,
                shared = attached.memory.sharing != Sharing::Netmap,
                "netmap bound"
            );
        }
        Ok(NetmapPort {
            port: port.to_owned(),
            mtu,
            macs: stations.iter().map(|station| station.mac).collect(),
            host_mac: link.map(|link| link.mac).filter(|_| name.rings == Rings::WithHost),
            fragments,
            gather: fragments || spoof_check || attached.memory.sharing == Sharing::Netmap,
            attached: Some(attached),
            reserve: None,
            lent: 0,
            // What waits in rings serves nobody else.
            lent_max: (buffers / 4) as u32,
            turn: 0,
            reclaim_at: None,
            counters: PortCounters::default(),
        })
    }

    /// Bytes of the longest frame.
    fn frame_max(&self) -> usize {
        usize::from(self.mtu) + usize::from(FRAME_OVERHEAD)
    }
}

/// What a system call's refusal means (`netmap_ioctl`): a ring is stopped while its
/// interface is reset or taken away.
fn failed(port: &str, call: &'static str, errno: Errno) -> PortError {
    let (port, source) = (port.to_owned(), errno.into());
    match errno {
        Errno::NXIO | Errno::NODEV => PortError::Gone { port, source },
        _ => PortError::Failed { port, call, source },
    }
}

fn broken(port: &str, fault: RingFault) -> PortError {
    let source = std::io::Error::other(fault);
    PortError::Failed { port: port.to_owned(), call: "looking at a ring", source }
}

/// Compares an interface with what the guest expects of it.
fn judge_link(options: &NetmapOptions<'_>, link: &Link) -> Result<(), NetmapError> {
    let (port, name, wanted) = (options.port, &options.name.kernel, options.mtu);
    if link.mtu < u32::from(wanted) {
        let (port, name) = (port.to_owned(), name.clone());
        return Err(NetmapError::Mtu { port, name, mtu: link.mtu, wanted });
    }
    if link.mtu > u32::from(wanted) {
        tracing::warn!(
            port,
            interface_mtu = link.mtu,
            guest_mtu = wanted,
            "the interface carries longer frames than the guest takes; they will be dropped"
        );
    }
    if !link.up {
        tracing::warn!(port, "the interface is down: `ip link set dev {name} up`");
    }
    if !link.promiscuous && options.stations.iter().any(|station| station.mac != link.mac) {
        tracing::warn!(
            port,
            "the interface may not take frames for the guest's address: `ip link set dev {name} \
             promisc on`, or give the guest the interface's address"
        );
    }
    Ok(())
}

impl<D: Descriptor> Port for NetmapPort<D> {
    fn caps(&self) -> Caps {
        Caps { mtu: self.mtu, tx_csum: false, rx_partial: false, gather: self.gather }
    }

    fn receive(
        &mut self,
        now: Now,
        pool: &mut Pool,
        out: &mut RxBatch,
    ) -> Result<usize, PortError> {
        self.receive_batch(now, pool, out)
    }

    fn send(
        &mut self,
        now: Now,
        pool: &Pool,
        batch: &mut TxBatch,
        done: &mut dyn FnMut(Origin, u32),
    ) -> Result<usize, PortError> {
        self.send_batch(now, pool, batch, done)
    }

    fn is_sending(&self) -> bool {
        self.attached.as_ref().is_some_and(|attached| {
            let host = attached.host.iter().map(|host| &host.tx);
            attached.tx_rings.iter().chain(host).any(|ring| ring.is_busy())
        })
    }

    fn release(&mut self, pool: &mut Pool) {
        if let Some(attached) = self.attached.take() {
            let Attached { rx, tx, rx_rings, tx_rings, memory, .. } = attached;
            if let Sharing::Region(first) = memory.sharing {
                // Netmap frees the buffers that it finds in the slots: those of its own.
                rx_rings.iter().for_each(RxRing::restore);
                tx_rings.iter().for_each(TxRing::restore);
                // The NIC may be receiving into what the rings held: only when netmap has
                // let go of them are they ours again.
                drop((rx, tx));
                let held = rx_rings.iter().flat_map(|ring| ring.buffers());
                for &index in held.filter(|&&index| index >= first) {
                    give_back(pool, index - first);
                }
            }
        }
        self.lent = 0;
        if let Some(buf) = self.reserve.take() {
            give_back(pool, buf);
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.attached.as_ref().map(|attached| attached.rx.as_fd())
    }

    fn next_deadline(&self) -> Option<u64> {
        self.reclaim_at
    }

    fn counters(&self) -> &PortCounters {
        &self.counters
    }
}
