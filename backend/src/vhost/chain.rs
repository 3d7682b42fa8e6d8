//! Descriptor chains of a split ring (virtio 1.2 section 2.7.5), walked one
//! descriptor at a time.
//!
//! Each way of being wrong has a name. A descriptor is read once, into private memory,
//! and judged there.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::GuestAddress;

use super::memory::GuestRam;
use super::queue::Fault;

/// Bytes of a descriptor.
pub const DESCRIPTOR_LEN: usize = 16;

/// Descriptors that an indirect chain may have, whatever the size of its table:
/// the same as QEMU's `VIRTQUEUE_MAX_SIZE`.
pub const INDIRECT_CHAIN_MAX: u16 = 1024;

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// A descriptor, as it was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    /// From its bytes in a table.
    #[inline]
    pub fn of(bytes: [u8; DESCRIPTOR_LEN]) -> Descriptor {
        let bits = u128::from_le_bytes(bytes);
        Descriptor {
            addr: bits as u64,
            len: (bits >> 64) as u32,
            flags: (bits >> 96) as u16,
            next: (bits >> 112) as u16,
        }
    }

    /// Where it points.
    #[inline]
    pub fn addr(&self) -> GuestAddress {
        GuestAddress(self.addr)
    }

    /// All of a chain, if the chain has only this one and there is anything in it.
    #[inline]
    pub fn alone(&self) -> Option<Piece> {
        (self.flags & (NEXT | INDIRECT) == 0 && self.len != 0).then(|| self.piece())
    }

    #[inline]
    fn piece(&self) -> Piece {
        Piece { addr: self.addr(), len: self.len, writable: self.flags & WRITE != 0 }
    }
}

/// A piece of guest memory that a descriptor names. `len` is not zero; whether
/// the memory exists is found out by using it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it starts.
    pub addr: GuestAddress,
    /// Bytes.
    pub len: u32,
    /// For the device to write, not to read.
    pub writable: bool,
}

/// The walk along one chain.
pub struct Walk<'m> {
    mem: &'m GuestRam,
    table: u64,
    entries: u32,
    next: Next,
    /// Descriptors that may still follow. A chain that needs more is a circle.
    left: u16,
    indirect_allowed: bool,
    in_indirect: bool,
}

/// Where a walk goes on.
#[derive(Clone, Copy, Debug)]
enum Next {
    /// With a descriptor that was read already.
    Read(Descriptor),
    /// With one of the table.
    Index(u16),
    End,
}

impl<'m> Walk<'m> {
    /// A walk along a table of `size` descriptors at a guest address, which begins with one
    /// that was read from there.
    pub fn new(
        mem: &'m GuestRam,
        table: u64,
        size: u16,
        first: Descriptor,
        indirect_allowed: bool,
    ) -> Walk<'m> {
        Walk {
            mem,
            table,
            entries: u32::from(size),
            next: Next::Read(first),
            left: size,
            indirect_allowed,
            in_indirect: false,
        }
    }

    /// The next piece; `None` at the chain's end. The walk is not to be
    /// continued after an error.
    pub fn next(&mut self) -> Result<Option<Piece>, Fault> {
        loop {
            let desc = match self.next {
                Next::End => return Ok(None),
                Next::Read(desc) => desc,
                Next::Index(index) if u32::from(index) >= self.entries => {
                    return Err(Fault::DescriptorIndex { index, size: self.entries });
                }
                Next::Index(index) if self.left > 0 => self.read(index)?,
                Next::Index(_) => return Err(Fault::ChainTooLong),
            };
            self.left = self.left.checked_sub(1).ok_or(Fault::ChainTooLong)?;
            if desc.flags & INDIRECT != 0 {
                self.enter(&desc)?;
                continue;
            }
            if desc.len == 0 {
                return Err(Fault::ZeroLength);
            }
            self.next = if desc.flags & NEXT != 0 { Next::Index(desc.next) } else { Next::End };
            return Ok(Some(desc.piece()));
        }
    }

    fn read(&self, index: u16) -> Result<Descriptor, Fault> {
        let offset = u64::from(index) * DESCRIPTOR_LEN as u64;
        let outside = || Fault::Outside { addr: self.table, len: DESCRIPTOR_LEN as u64 };
        let addr = self.table.checked_add(offset).ok_or_else(outside)?;
        let mut bytes = [0; DESCRIPTOR_LEN];
        self.mem.copy_out(GuestAddress(addr), &mut bytes).map_err(|_| outside())?;
        Ok(Descriptor::of(bytes))
    }

    /// Goes on in the table that `desc` refers to (section 2.7.5.3).
    fn enter(&mut self, desc: &Descriptor) -> Result<(), Fault> {
        if !self.indirect_allowed {
            return Err(Fault::IndirectNotNegotiated);
        }
        if self.in_indirect {
            return Err(Fault::IndirectNested);
        }
        if desc.flags & NEXT != 0 {
            return Err(Fault::IndirectWithNext);
        }
        let len = desc.len;
        let entries = len / DESCRIPTOR_LEN as u32;
        if entries == 0 || !len.is_multiple_of(DESCRIPTOR_LEN as u32) {
            return Err(Fault::IndirectLength { len });
        }
        self.table = desc.addr;
        self.entries = entries;
        self.next = Next::Index(0);
        self.left = u16::try_from(entries).unwrap_or(u16::MAX).min(INDIRECT_CHAIN_MAX);
        self.in_indirect = true;
        Ok(())
    }
}
