//! Sockets of AF_XDP (`linux/if_xdp.h`): made, given their rings, bound to a queue of a
//! device, and kicked.

use std::ffi::c_int;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags as Flags, SocketAddrXdpWithSharedUmem, XDP_PGOFF_RX_RING,
    XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpDesc,
    XdpMmapOffsets, XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::option;
use super::rings::{Consumer, Producer};
use super::umem::Umem;

/// Bytes in front of a received frame in its chunk: `XDP_PACKET_HEADROOM` of
/// `linux/bpf.h`.
pub(in super::super) const FRAME_OFFSET: u32 = 256;
/// The smallest chunk, in bytes: `XDP_UMEM_MIN_CHUNK_SIZE` of `net/xdp_sock.h`. The
/// largest is a page.
pub(in super::super) const CHUNK_MIN: u32 = 2048;

/// Entries of the rings for frames that arrive: what can come while the thread that reads
/// them waits for its core.
pub(in super::super) const RX_LEN: u32 = 16384;
/// Entries of the rings for frames that leave. A frame is one or two.
pub(in super::super) const TX_LEN: u32 = 2048;

/// `XDP_MAX_TX_SKB_BUDGET`: how many frames one call sends where the kernel copies.
const MAX_TX_BUDGET: c_int = 9;
/// How many it sends where that cannot be set, before Linux 6.17 (`TX_BATCH_SIZE`).
const TX_BUDGET: u32 = 32;

/// How the kernel and the device serve a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Service {
    /// The device reads and fills the memory itself; otherwise the kernel copies.
    pub zero_copy: bool,
    /// A frame may consist of several descriptors.
    pub gather: bool,
}

/// One queue of a device.
#[derive(Debug)]
pub(in super::super) struct Queue {
    socket: OwnedFd,
    /// Frames that arrived.
    pub rx: Consumer<XdpDesc>,
    /// Memory for frames to come.
    pub fill: Producer<u64>,
    /// Memory of frames that have left.
    pub completion: Consumer<u64>,
    /// Frames to leave; the first queue alone has it.
    pub tx: Option<Producer<XdpDesc>>,
}

/// Whether this system has such sockets at all, for this user.
pub(in super::super) fn probe() -> Result<(), Errno> {
    socket().map(drop)
}

fn socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(AddressFamily::XDP, SocketType::RAW, flags, None)
}

/// A socket that is not bound yet, with its rings.
#[derive(Debug)]
pub(in super::super) struct Unbound {
    socket: OwnedFd,
    offsets: XdpMmapOffsets,
    sends: bool,
}

impl Unbound {
    /// A socket; the first one of a port registers the memory and sends, the others
    /// share.
    pub(in super::super) fn new(
        memory: Option<(&Umem, u32)>,
    ) -> Result<Unbound, (&'static str, Errno)> {
        let failed = |call| move |errno| (call, errno);
        let socket = socket().map_err(failed("a socket of AF_XDP"))?;
        if let Some((umem, chunk_size)) = memory {
            let registration = XdpUmemReg {
                addr: umem.address(),
                len: umem.len(),
                chunk_size,
                headroom: 0,
                flags: XdpUmemRegFlags::empty(),
                tx_metadata_len: 0,
            };
            sockopt::set_xdp_umem_reg(&socket, registration).map_err(failed("XDP_UMEM_REG"))?;
        }
        sockopt::set_xdp_umem_fill_ring_size(&socket, RX_LEN)
            .map_err(failed("XDP_UMEM_FILL_RING"))?;
        sockopt::set_xdp_umem_completion_ring_size(&socket, TX_LEN)
            .map_err(failed("XDP_UMEM_COMPLETION_RING"))?;
        sockopt::set_xdp_rx_ring_size(&socket, RX_LEN).map_err(failed("XDP_RX_RING"))?;
        if memory.is_some() {
            sockopt::set_xdp_tx_ring_size(&socket, TX_LEN).map_err(failed("XDP_TX_RING"))?;
            // An older kernel is to be called several times instead.
            let _ = option::set(&socket, libc::SOL_XDP, MAX_TX_BUDGET, &TX_LEN.to_ne_bytes());
        }
        let offsets = sockopt::xdp_mmap_offsets(&socket).map_err(failed("XDP_MMAP_OFFSETS"))?;
        Ok(Unbound { socket, offsets, sends: memory.is_some() })
    }

    /// Binds the socket that has registered the memory.
    pub(in super::super) fn bind(
        &self,
        device: u32,
        queue: u32,
        service: Service,
    ) -> Result<(), Errno> {
        let mut flags = Flags::XDP_USE_NEED_WAKEUP;
        flags |= if service.zero_copy { Flags::XDP_ZEROCOPY } else { Flags::XDP_COPY };
        flags.set(Flags::XDP_USE_SG, service.gather);
        rustix::net::bind(&self.socket, &SocketAddrXdp::new(flags, device, queue))
    }

    /// Binds a further socket, to share the memory of `first` and how it is served.
    pub(in super::super) fn bind_shared(
        &self,
        device: u32,
        queue: u32,
        first: &Queue,
    ) -> Result<(), Errno> {
        let addr = SocketAddrXdp::new(Flags::XDP_SHARED_UMEM, device, queue);
        let shared_umem_fd = first.socket.as_fd();
        rustix::net::bind(&self.socket, &SocketAddrXdpWithSharedUmem { addr, shared_umem_fd })
    }

    /// Maps the rings of the socket.
    pub(in super::super) fn map(self) -> Result<Queue, Errno> {
        let Unbound { socket, offsets, sends } = self;
        let fd = socket.as_fd();
        let rx = Consumer::map(fd, XDP_PGOFF_RX_RING, &offsets.rx, RX_LEN)?;
        let fill = Producer::map(fd, XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, RX_LEN)?;
        let completion = Consumer::map(fd, XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, TX_LEN)?;
        let tx = match sends {
            true => Some(Producer::map(fd, XDP_PGOFF_TX_RING, &offsets.tx, TX_LEN)?),
            false => None,
        };
        Ok(Queue { socket, rx, fill, completion, tx })
    }
}

impl Queue {
    /// Has the kernel send the `waiting` frames in the TX ring, and says how often it
    /// was called: once, or once for every 32 where it takes no more at a time. AGAIN
    /// says that it has no room for all of them now.
    pub(in super::super) fn kick_tx(&self, waiting: u32) -> (u64, Result<(), Errno>) {
        let mut calls = 0;
        loop {
            let sent = rustix::net::send(&self.socket, &[], SendFlags::DONTWAIT).map(drop);
            calls += 1;
            let left = self.tx.as_ref().and_then(|tx| tx.waiting().ok()).unwrap_or(0);
            let as_many_as_ever = left <= waiting.saturating_sub(calls * TX_BUDGET);
            if sent != Err(Errno::AGAIN) || left == 0 || !as_many_as_ever {
                return (calls.into(), sent);
            }
        }
    }

    /// Has the driver look at the fill ring again.
    pub(in super::super) fn kick_rx(&self) -> Result<(), Errno> {
        rustix::net::recv(&self.socket, &mut [0; 0][..], RecvFlags::DONTWAIT).map(drop)
    }

    /// Frames that the kernel threw away because no chunk or no room was there. What an
    /// empty fill ring has cost is among the first where the kernel copies
    /// (`__xsk_rcv`); a device that fills the memory itself has counters of its own.
    pub(in super::super) fn dropped(&self) -> u64 {
        sockopt::xdp_statistics(&self.socket)
            .map_or(0, |statistics| statistics.rx_dropped + statistics.rx_ring_full.unwrap_or(0))
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
