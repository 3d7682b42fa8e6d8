//! What netmap's kernel module and its users agree on, byte for byte: requests,
//! options, interfaces, rings and slots of its API 14 (`sys/net/netmap.h`), and the
//! numbers of its ioctls; and what PASTE adds to it (`sys/net/netmap_paste.h`).
//!
//! Our own, because no crate has them: `netmap_sys` stops at API 11, which every kernel
//! since February 2019 refuses, and its ring arithmetic overflows. Every size and
//! offset is asserted when this is compiled.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// The API that is spoken (`NETMAP_API`).
pub(super) const API: u16 = 14;

/// Bytes of a port's name, with its terminator (`NETMAP_REQ_IFNAMSIZ`).
pub(super) const NAME_LEN: usize = 64;

/// `NETMAP_REQ_REGISTER`: binds the descriptor to a port.
pub(super) const REQ_REGISTER: u16 = 1;
/// `NETMAP_REQ_PORT_INFO_GET`: what a port has; without a name, only whether netmap
/// answers.
pub(super) const REQ_PORT_INFO_GET: u16 = 2;
/// `NETMAP_REQ_PST_ATTACH`: a NIC joins a path of PASTE's.
pub(super) const REQ_PST_ATTACH: u16 = 16;
/// `NETMAP_REQ_PST_FD_REG`: a socket's payload is a path's business from now on.
pub(super) const REQ_PST_FD_REG: u16 = 18;

/// `NETMAP_REQ_OPT_EXTMEM`: memory of the caller's.
pub(super) const OPT_EXTMEM: u32 = 1;
/// `NETMAP_REQ_OPT_OFFSETS`: frames begin elsewhere than where their buffers do.
pub(super) const OPT_OFFSETS: u32 = 5;

/// `NR_REG_ALL_NIC`: every ring of the NIC.
pub(super) const REG_ALL_NIC: u32 = 1;
/// `NR_REG_NIC_SW`: every ring of the NIC, and those to the host's own stack.
pub(super) const REG_NIC_SW: u32 = 3;
/// `NR_REG_ONE_NIC`: the pair of rings that `nr_ringid` names.
pub(super) const REG_ONE_NIC: u32 = 4;

/// `NR_EXCLUSIVE`: nobody else may bind these rings.
pub(super) const EXCLUSIVE: u64 = 0x800;
/// `NR_RX_RINGS_ONLY`.
pub(super) const RX_RINGS_ONLY: u64 = 0x2000;
/// `NR_TX_RINGS_ONLY`.
pub(super) const TX_RINGS_ONLY: u64 = 0x4000;

/// `NS_BUF_CHANGED`: the slot names another buffer than before.
pub(super) const BUF_CHANGED: u16 = 0x01;
/// `NS_REPORT`: say as soon as this slot has been sent.
pub(super) const REPORT: u16 = 0x02;
/// `NS_MOREFRAG`: the frame goes on in the next slot.
pub(super) const MOREFRAG: u16 = 0x20;

/// `NR_TIMESTAMP`, a flag of a ring: the kernel stores the time of each sync.
pub(super) const RING_TIMESTAMP: u32 = 0x02;

/// Buffers that no slot may name: netmap's own for reading and writing where a slot's
/// index is bad.
pub(super) const RESERVED_BUFFERS: u32 = 2;

/// `struct nmreq_header`.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Header {
    pub(super) version: u16,
    pub(super) reqtype: u16,
    pub(super) reserved: u32,
    pub(super) name: [u8; NAME_LEN],
    /// Where the first option lies.
    pub(super) options: u64,
    /// Where what belongs to `reqtype` lies.
    pub(super) body: u64,
}

/// `struct nmreq_option`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct OptionHeader {
    pub(super) next: u64,
    pub(super) reqtype: u32,
    /// An error number; zero if the option was taken.
    pub(super) status: u32,
    pub(super) size: u64,
}

/// `struct nmreq_register`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Register {
    /// Where the [`Interface`] lies in the memory.
    pub(super) offset: u64,
    pub(super) memsize: u64,
    pub(super) tx_slots: u32,
    pub(super) rx_slots: u32,
    pub(super) tx_rings: u16,
    pub(super) rx_rings: u16,
    pub(super) host_tx_rings: u16,
    pub(super) host_rx_rings: u16,
    pub(super) mem_id: u16,
    pub(super) ringid: u16,
    pub(super) mode: u32,
    pub(super) extra_bufs: u32,
    pub(super) pad: u32,
    pub(super) flags: u64,
}

/// `struct nmreq_port_info_get`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct PortInfo {
    pub(super) memsize: u64,
    pub(super) tx_slots: u32,
    pub(super) rx_slots: u32,
    pub(super) tx_rings: u16,
    pub(super) rx_rings: u16,
    pub(super) host_tx_rings: u16,
    pub(super) host_rx_rings: u16,
    pub(super) mem_id: u16,
    pub(super) pad: [u16; 3],
}

/// `struct nmreq_vale_attach`, which PASTE takes too.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Attach {
    pub(super) register: Register,
    /// The port's number on its path, for an answer.
    pub(super) port_index: u32,
    pub(super) pad: u32,
}

/// `struct nmreq_pst_fd_reg`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct FdReg {
    /// The caller's descriptor of the socket.
    pub(super) fd: u32,
    pub(super) pad: u32,
}

/// One kind of object in a [`PoolsInfo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct PoolInfo {
    /// Where the objects begin in the memory.
    pub(super) offset: u64,
    pub(super) count: u32,
    /// Bytes of one.
    pub(super) size: u32,
}

/// `struct nmreq_pools_info`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct PoolsInfo {
    pub(super) memsize: u64,
    pub(super) mem_id: u16,
    pub(super) pad: [u16; 3],
    pub(super) interfaces: PoolInfo,
    pub(super) rings: PoolInfo,
    pub(super) buffers: PoolInfo,
}

/// `struct nmreq_opt_extmem`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct ExtMem {
    pub(super) option: OptionHeader,
    /// Where the memory begins.
    pub(super) start: u64,
    pub(super) pools: PoolsInfo,
}

/// `struct nmreq_opt_offsets`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Offsets {
    pub(super) option: OptionHeader,
    pub(super) max: u64,
    pub(super) initial: u64,
    /// Bits of [`Slot::ptr`] that hold the offset.
    pub(super) bits: u32,
    pub(super) tx_align: u32,
    pub(super) min_gap: u64,
}

/// `struct netmap_if`, without the offsets of rings that follow it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Interface {
    pub(super) name: [u8; 16],
    pub(super) version: u32,
    pub(super) flags: u32,
    pub(super) tx_rings: u32,
    pub(super) rx_rings: u32,
    /// The first buffer of the list of extra ones; 0 if there are none.
    pub(super) bufs_head: u32,
    pub(super) host_tx_rings: u32,
    pub(super) host_rx_rings: u32,
    pub(super) spare: [u32; 3],
}

/// `struct netmap_ring`, up to its semaphore, which nothing here looks at.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Ring {
    /// Where buffer 0 lies, from the ring.
    pub(super) buf_ofs: i64,
    pub(super) num_slots: u32,
    pub(super) buf_size: u32,
    pub(super) ringid: u16,
    /// 0 for sending, 1 for receiving.
    pub(super) dir: u16,
    pub(super) head: u32,
    pub(super) cur: u32,
    pub(super) tail: u32,
    pub(super) flags: u32,
    pub(super) pad: u32,
    /// Seconds since the Unix epoch.
    pub(super) ts_sec: i64,
    pub(super) ts_usec: i64,
    pub(super) offset_mask: u64,
    pub(super) buf_align: u64,
}

/// Where the slots begin in a ring.
pub(super) const RING_SLOTS: usize = 256;
/// Where `head`, `cur`, `tail` and `flags` lie in a ring.
pub(super) const RING_HEAD: usize = 20;
pub(super) const RING_CUR: usize = 24;
pub(super) const RING_TAIL: usize = 28;
pub(super) const RING_FLAGS: usize = 32;
/// Where the time of the last sync lies in a ring.
pub(super) const RING_TIME: usize = 40;

/// `struct netmap_slot`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub(super) struct Slot {
    pub(super) buf_idx: u32,
    pub(super) len: u16,
    pub(super) flags: u16,
    /// Holds the offset, where the ring has an `offset_mask`.
    pub(super) ptr: u64,
}

/// Bytes of a slot.
pub(super) const SLOT_LEN: usize = size_of::<Slot>();
/// Bytes of an [`Interface`] before the offsets of its rings, each of 8 bytes.
pub(super) const INTERFACE_LEN: usize = size_of::<Interface>();

/// `NIOCCTRL`: `_IOWR('i', 151, struct nmreq_header)`, the same on Linux and FreeBSD.
pub(super) const NIOCCTRL: u64 = 0xc058_6997;

/// Asserts the size of a type, and where its fields lie.
macro_rules! laid_out {
    ($type:ty, $size:literal, $($field:ident @ $at:literal),*) => {
        const _: () = {
            assert!(size_of::<$type>() == $size);
            $(assert!(std::mem::offset_of!($type, $field) == $at);)*
        };
    };
}

laid_out!(Header, 88, version @ 0, reqtype @ 2, reserved @ 4, name @ 8, options @ 72, body @ 80);
laid_out!(OptionHeader, 24, next @ 0, reqtype @ 8, status @ 12, size @ 16);
laid_out!(Register, 56, offset @ 0, memsize @ 8, tx_slots @ 16, rx_slots @ 20, tx_rings @ 24,
    rx_rings @ 26, host_tx_rings @ 28, host_rx_rings @ 30, mem_id @ 32, ringid @ 34, mode @ 36,
    extra_bufs @ 40, flags @ 48);
laid_out!(PortInfo, 32, memsize @ 0, tx_slots @ 8, rx_slots @ 12, tx_rings @ 16, rx_rings @ 18,
    host_tx_rings @ 20, host_rx_rings @ 22, mem_id @ 24);
laid_out!(Attach, 64, register @ 0, port_index @ 56);
laid_out!(FdReg, 8, fd @ 0);
laid_out!(PoolInfo, 16, offset @ 0, count @ 8, size @ 12);
laid_out!(PoolsInfo, 64, memsize @ 0, mem_id @ 8, interfaces @ 16, rings @ 32, buffers @ 48);
laid_out!(ExtMem, 96, option @ 0, start @ 24, pools @ 32);
laid_out!(Offsets, 56, option @ 0, max @ 24, initial @ 32, bits @ 40, tx_align @ 44,
    min_gap @ 48);
laid_out!(Interface, 56, name @ 0, version @ 16, flags @ 20, tx_rings @ 24, rx_rings @ 28,
    bufs_head @ 32, host_tx_rings @ 36, host_rx_rings @ 40, spare @ 44);
laid_out!(Ring, 72, buf_ofs @ 0, num_slots @ 8, buf_size @ 12, ringid @ 16, dir @ 18, head @ 20,
    cur @ 24, tail @ 28, flags @ 32, ts_sec @ 40, ts_usec @ 48, offset_mask @ 56,
    buf_align @ 64);
laid_out!(Slot, 16, buf_idx @ 0, len @ 4, flags @ 6, ptr @ 8);

/// What PASTE writes into a slot's `ptr`: the buffer offset below
/// [`PST_OFFSET_MASK`], the descriptor, and where the payload begins behind that offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PstPtr {
    pub(super) offset: u16,
    pub(super) fd: i32,
    pub(super) data: u16,
}

/// `offset_mask` of PASTE's rings.
pub(super) const PST_OFFSET_MASK: u64 = 0xff;
/// `NS_PST_FD_SHIFT`, of 32 bits.
const PST_FD_SHIFT: u32 = 8;
/// `NS_PST_OFST_SHIFT` and the bits behind it.
const PST_DATA_SHIFT: u32 = 40;
pub(super) const PST_DATA_MAX: u16 = 0x3ff;

impl PstPtr {
    /// As it lies in a slot.
    pub(super) fn pack(self) -> u64 {
        u64::from(self.offset) & PST_OFFSET_MASK
            | u64::from(self.fd as u32) << PST_FD_SHIFT
            | u64::from(self.data & PST_DATA_MAX) << PST_DATA_SHIFT
    }

    /// What lies in a slot.
    pub(super) fn unpack(ptr: u64) -> PstPtr {
        PstPtr {
            offset: (ptr & PST_OFFSET_MASK) as u16,
            fd: (ptr >> PST_FD_SHIFT) as u32 as i32,
            data: (ptr >> PST_DATA_SHIFT) as u16 & PST_DATA_MAX,
        }
    }
}

impl Header {
    /// A request about the port `name`, which is cut to what the header holds.
    pub(super) fn new(reqtype: u16, name: &str) -> Header {
        let mut header = Header { version: API, reqtype, ..Header::new_zeroed() };
        // The last byte stays zero.
        for (to, from) in header.name[..NAME_LEN - 1].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        header
    }
}

impl OptionHeader {
    fn new(reqtype: u32) -> OptionHeader {
        OptionHeader { reqtype, ..OptionHeader::new_zeroed() }
    }
}

impl ExtMem {
    /// Memory of the caller's, laid out as `pools` asks.
    pub(super) fn new(start: u64, pools: PoolsInfo) -> ExtMem {
        ExtMem { option: OptionHeader::new(OPT_EXTMEM), start, pools }
    }
}

impl Offsets {
    /// Offsets up to `max`, at first `initial`.
    pub(super) fn new(max: u64, initial: u64) -> Offsets {
        let option = OptionHeader::new(OPT_OFFSETS);
        Offsets { option, max, initial, bits: 32, ..Offsets::new_zeroed() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_of_pastes_reads_as_it_was_seen_to() {
        // Descriptor 5, payload behind 66 bytes of headers, seen on Linux 6.1.
        let ptr = PstPtr { offset: 0x40, fd: 5, data: 66 };
        assert_eq!(ptr.pack(), 0x0000_4200_0000_0540);
        assert_eq!(PstPtr::unpack(0x0000_4200_0000_0540), ptr);
        let edge = PstPtr { offset: 0xff, fd: -1, data: PST_DATA_MAX };
        assert_eq!(edge.pack(), 0x0003_ffff_ffff_ffff);
        assert_eq!(PstPtr::unpack(u64::MAX), edge);
    }
}
