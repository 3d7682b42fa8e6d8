//! Descriptor chains of a split ring (virtio 1.2 section 2.7.5), walked one
//! descriptor at a time.
//!
//! `virtio-queue` has a walker too; it ends silently wherever a chain is wrong,
//! so that a hostile chain looks like a short one. Here each way of being wrong
//! has a name. A descriptor is read once, into private memory, and judged there.

use std::sync::atomic::{Ordering, compiler_fence};

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress};

use super::memory::GuestRam;
use super::queue::Fault;

/// Bytes of a descriptor.
pub const DESCRIPTOR_LEN: u64 = size_of::<Descriptor>() as u64;

/// Descriptors that an indirect chain may have, whatever the size of its table:
/// the same as QEMU's `VIRTQUEUE_MAX_SIZE`.
pub const INDIRECT_CHAIN_MAX: u16 = 1024;

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
    table: GuestAddress,
    entries: u32,
    /// The next descriptor; `None` at the chain's end.
    next: Option<u16>,
    /// Descriptors that may still follow. A chain that needs more is a circle.
    left: u16,
    indirect_allowed: bool,
    in_indirect: bool,
}

impl<'m> Walk<'m> {
    /// A walk from `head` along a table of `size` descriptors.
    pub fn new(
        mem: &'m GuestRam,
        table: GuestAddress,
        size: u16,
        head: u16,
        indirect_allowed: bool,
    ) -> Walk<'m> {
        Walk {
            mem,
            table,
            entries: u32::from(size),
            next: Some(head),
            left: size,
            indirect_allowed,
            in_indirect: false,
        }
    }

    /// The next piece; `None` at the chain's end. The walk is not to be
    /// continued after an error.
    pub fn next(&mut self) -> Result<Option<Piece>, Fault> {
        loop {
            let Some(index) = self.next else {
                return Ok(None);
            };
            if u32::from(index) >= self.entries {
                return Err(Fault::DescriptorIndex { index, size: self.entries });
            }
            self.left = self.left.checked_sub(1).ok_or(Fault::ChainTooLong)?;
            let desc = self.read(index)?;
            if desc.refers_to_indirect_table() {
                self.enter(&desc)?;
                continue;
            }
            if desc.len() == 0 {
                return Err(Fault::ZeroLength);
            }
            self.next = desc.has_next().then(|| desc.next());
            return Ok(Some(Piece {
                addr: desc.addr(),
                len: desc.len(),
                writable: desc.is_write_only(),
            }));
        }
    }

    fn read(&self, index: u16) -> Result<Descriptor, Fault> {
        let offset = u64::from(index) * DESCRIPTOR_LEN;
        let outside = || Fault::Outside { addr: self.table.0, len: DESCRIPTOR_LEN };
        let addr = self.table.checked_add(offset).ok_or_else(outside)?;
        let desc = self.mem.read_obj::<Descriptor>(addr).map_err(|_| outside())?;
        // The guest may write to it now; what was read must not be read again.
        compiler_fence(Ordering::SeqCst);
        Ok(desc)
    }

    /// Goes on in the table that `desc` refers to (section 2.7.5.3).
    fn enter(&mut self, desc: &Descriptor) -> Result<(), Fault> {
        if !self.indirect_allowed {
            return Err(Fault::IndirectNotNegotiated);
        }
        if self.in_indirect {
            return Err(Fault::IndirectNested);
        }
        if desc.has_next() {
            return Err(Fault::IndirectWithNext);
        }
        let len = desc.len();
        let entries = len / DESCRIPTOR_LEN as u32;
        if entries == 0 || !u64::from(len).is_multiple_of(DESCRIPTOR_LEN) {
            return Err(Fault::IndirectLength { len });
        }
        self.table = desc.addr();
        self.entries = entries;
        self.next = Some(0);
        self.left = u16::try_from(entries).unwrap_or(u16::MAX).min(INDIRECT_CHAIN_MAX);
        self.in_indirect = true;
        Ok(())
    }
}
