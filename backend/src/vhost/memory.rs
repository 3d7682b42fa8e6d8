//! Guest memory: the ranges that the front end shares, mapped, and found by
//! guest address.
//!
//! The mappings are the region crate's, which survive a file that is cut under
//! them; this module gives them the faces that `virtio-queue` reads and writes
//! through. It knows nothing of messages or rings.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use paste_abi::vhost_user::MemRegion;
use paste_pmem::{MapError, Mapping};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestUsize, MemoryRegionAddress, VolatileSlice,
};

/// Ranges of memory that one guest can have: what GET_MAX_MEM_SLOTS answers.
pub const MEM_SLOTS_MAX: usize = 64;

/// What addresses and file offsets must be multiples of, in bytes: the smallest
/// page of any guest. It keeps the alignment of ring parts in the guest true in
/// our mapping.
const ALIGN: u64 = 4096;

/// Why a range of guest memory is refused.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The range has no bytes.
    #[error("memory at {guest:#x} has no bytes")]
    Empty {
        /// Guest address.
        guest: u64,
    },
    /// An address plus the size overflows, or the size is beyond this process.
    #[error(
        "memory at {guest:#x} (front end {user:#x}) with {len:#x} bytes passes the last address"
    )]
    Overflow {
        /// Guest address.
        guest: u64,
        /// Address in the front end.
        user: u64,
        /// Bytes.
        len: u64,
    },
    /// The guest address or the file offset is not on a page.
    #[error("memory at {guest:#x}, file offset {offset:#x}: both must be multiples of {ALIGN}")]
    Unaligned {
        /// Guest address.
        guest: u64,
        /// Offset in the file.
        offset: u64,
    },
    /// It overlaps a range that is there, by guest or front-end address.
    #[error("memory at {guest:#x} (front end {user:#x}) overlaps memory at {other:#x}")]
    Overlap {
        /// Guest address.
        guest: u64,
        /// Address in the front end.
        user: u64,
        /// Guest address of the other range.
        other: u64,
    },
    /// More ranges than [`MEM_SLOTS_MAX`].
    #[error("more than {MEM_SLOTS_MAX} ranges of memory")]
    TooMany,
    /// No such range is there to be removed.
    #[error("no memory at {guest:#x} (front end {user:#x}) with {len:#x} bytes")]
    Unknown {
        /// Guest address.
        guest: u64,
        /// Address in the front end.
        user: u64,
        /// Bytes.
        len: u64,
    },
    /// The file could not be mapped: too short, or not mappable at all.
    #[error("memory at {guest:#x}: {source}")]
    Map {
        /// Guest address.
        guest: u64,
        /// What the mapping said.
        source: MapError,
    },
}

/// A range of guest memory, mapped.
#[derive(Clone, Debug)]
pub struct RamRegion {
    mapping: Arc<Mapping>,
    guest: u64,
    user: u64,
}

impl RamRegion {
    fn new(region: &MemRegion, fd: &OwnedFd) -> Result<RamRegion, MemoryError> {
        let (guest, user) = (region.guest_addr.get(), region.user_addr.get());
        let (len, offset) = (region.size.get(), region.mmap_offset.get());
        if len == 0 {
            return Err(MemoryError::Empty { guest });
        }
        let ends = guest.checked_add(len).and(user.checked_add(len)).and(offset.checked_add(len));
        let (Some(_), Ok(map_len)) = (ends, usize::try_from(len)) else {
            return Err(MemoryError::Overflow { guest, user, len });
        };
        if !guest.is_multiple_of(ALIGN) || !offset.is_multiple_of(ALIGN) {
            return Err(MemoryError::Unaligned { guest, offset });
        }
        let mapping = Mapping::from_fd(fd.as_fd(), offset, map_len, true)
            .map_err(|source| MemoryError::Map { guest, source })?;
        Ok(RamRegion { mapping: Arc::new(mapping), guest, user })
    }

    fn overlaps(&self, other: &RamRegion) -> bool {
        let meet = |a: u64, b: u64| a < b + other.len() && b < a + self.len();
        meet(self.guest, other.guest) || meet(self.user, other.user)
    }
}

impl GuestMemoryRegion for RamRegion {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.mapping.len() as u64
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.guest)
    }

    fn bitmap(&self) {}

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, ()>, GuestMemoryError> {
        let inside = usize::try_from(offset.0)
            .ok()
            .filter(|start| start.checked_add(count).is_some_and(|end| end <= self.mapping.len()));
        let Some(start) = inside else {
            return Err(GuestMemoryError::InvalidBackendAddress);
        };
        #[expect(unsafe_code, reason = "a volatile slice is made from a pointer")]
        // SAFETY: `start + count` lies within the mapping, which lives as long
        // as the borrow of `self` that the slice carries and is writable. No
        // Rust reference into it exists; a volatile slice expects that others
        // write to the memory.
        Ok(unsafe { VolatileSlice::new(self.mapping.as_ptr().add(start), count) })
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

/// All memory of a guest that the front end shared. A clone is the same memory, for as
/// long as either lives.
#[derive(Clone, Debug, Default)]
pub struct GuestRam {
    /// In the order of guest addresses.
    regions: Vec<RamRegion>,
}

impl GuestRam {
    /// Replaces all memory. On an error nothing has changed.
    pub fn replace(&mut self, regions: &[(MemRegion, OwnedFd)]) -> Result<(), MemoryError> {
        let mut fresh = GuestRam::default();
        for (region, fd) in regions {
            fresh.add(region, fd)?;
        }
        *self = fresh;
        Ok(())
    }

    /// Adds a range.
    pub fn add(&mut self, region: &MemRegion, fd: &OwnedFd) -> Result<(), MemoryError> {
        if self.regions.len() == MEM_SLOTS_MAX {
            return Err(MemoryError::TooMany);
        }
        let region = RamRegion::new(region, fd)?;
        if let Some(other) = self.regions.iter().find(|other| region.overlaps(other)) {
            let RamRegion { guest, user, .. } = region;
            return Err(MemoryError::Overlap { guest, user, other: other.guest });
        }
        let at = self.regions.partition_point(|other| other.guest < region.guest);
        self.regions.insert(at, region);
        Ok(())
    }

    /// Removes the range with these addresses and this size.
    pub fn remove(&mut self, region: &MemRegion) -> Result<(), MemoryError> {
        let (guest, user, len) =
            (region.guest_addr.get(), region.user_addr.get(), region.size.get());
        let found = self
            .regions
            .iter()
            .position(|r| r.guest == guest && r.user == user && r.len() == len)
            .ok_or(MemoryError::Unknown { guest, user, len })?;
        self.regions.remove(found);
        Ok(())
    }

    /// Whether there is no memory at all.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// The guest address of `len` bytes at an address of the front end. They
    /// must lie in one range: neighbours there need not be neighbours here.
    pub fn guest_address(&self, user: u64, len: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.user)?;
            let end = offset.checked_add(len)?;
            (end <= region.len()).then(|| GuestAddress(region.guest + offset))
        })
    }

    /// Whether a file was cut under a mapping: the guest reads zeros there, and
    /// nothing that it says can be believed any more.
    pub fn is_poisoned(&self) -> bool {
        self.regions.iter().any(|region| region.mapping.is_poisoned())
    }
}

impl GuestMemoryBackend for GuestRam {
    type R = RamRegion;

    fn num_regions(&self) -> usize {
        self.regions.len()
    }

    fn find_region(&self, addr: GuestAddress) -> Option<&RamRegion> {
        let after = self.regions.partition_point(|region| region.guest <= addr.0);
        let region = &self.regions[after.checked_sub(1)?];
        (addr.0 - region.guest < region.len()).then_some(region)
    }

    fn iter(&self) -> impl Iterator<Item = &RamRegion> {
        self.regions.iter()
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use vm_memory::Bytes;

    use super::*;

    fn file(len: u64) -> OwnedFd {
        let fd = memfd_create("ram", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, len).unwrap();
        fd
    }

    fn region(guest: u64, user: u64, size: u64, offset: u64) -> MemRegion {
        MemRegion {
            guest_addr: guest.into(),
            size: size.into(),
            user_addr: user.into(),
            mmap_offset: offset.into(),
        }
    }

    const USER: u64 = 0x7f00_0000_0000;

    #[test]
    fn finds_memory_by_guest_and_by_front_end_address() {
        let fd = file(0x6000);
        let mut ram = GuestRam::default();
        // Added out of order, neighbours in the guest but not in the front end.
        ram.add(&region(0x3000, USER, 0x3000, 0x3000), &fd).unwrap();
        ram.add(&region(0x1000, USER + 0x10_0000, 0x2000, 0), &fd).unwrap();
        assert_eq!(ram.guest_address(USER + 8, 16), Some(GuestAddress(0x3008)));
        assert_eq!(ram.guest_address(USER + 0x10_1fff, 1), Some(GuestAddress(0x2fff)));
        assert_eq!(ram.guest_address(USER + 0x10_1fff, 2), None);
        assert_eq!(ram.guest_address(USER - 1, 1), None);
        assert_eq!(ram.guest_address(USER, u64::MAX), None);
        // A write across both ranges arrives whole.
        ram.write_slice(b"across", GuestAddress(0x2ffd)).unwrap();
        let mut first = [0; 3];
        rustix::io::pread(&fd, &mut first, 0x1ffd).unwrap();
        assert_eq!(&first, b"acr");
        rustix::io::pread(&fd, &mut first, 0x3000).unwrap();
        assert_eq!(&first, b"oss");
        // What is partly or wholly outside is refused.
        assert!(ram.write_slice(&[0; 2], GuestAddress(0x5fff)).is_err());
        assert!(ram.write_slice(&[0; 1], GuestAddress(0xfff)).is_err());
        assert!(ram.read_slice(&mut [0; 2], GuestAddress(u64::MAX)).is_err());
    }

    #[test]
    fn refuses_ranges_that_cannot_be() {
        let fd = file(0x2000);
        let mut ram = GuestRam::default();
        let mut refuse = |r: MemRegion| ram.add(&r, &fd).unwrap_err();
        assert!(matches!(refuse(region(0, USER, 0, 0)), MemoryError::Empty { .. }));
        for overflowing in [
            region(u64::MAX - 0xfff, USER, 0x2000, 0),
            region(0, u64::MAX - 0xfff, 0x2000, 0),
            region(0, USER, 0x2000, u64::MAX - 0xfff),
        ] {
            assert!(matches!(refuse(overflowing), MemoryError::Overflow { .. }));
        }
        assert!(matches!(refuse(region(1, USER, 0x1000, 0)), MemoryError::Unaligned { .. }));
        assert!(matches!(refuse(region(0, USER, 0x1000, 1)), MemoryError::Unaligned { .. }));
        // The file is smaller than the range.
        assert!(matches!(refuse(region(0, USER, 0x3000, 0)), MemoryError::Map { .. }));
        assert!(matches!(refuse(region(0, USER, 0x2000, 0x1000)), MemoryError::Map { .. }));
        // Not a file that can be mapped.
        let (pipe, _writer) = rustix::pipe::pipe().unwrap();
        let error = ram.add(&region(0, USER, 0x1000, 0), &pipe).unwrap_err();
        assert!(matches!(error, MemoryError::Map { .. }));
        assert!(ram.is_empty());
    }

    #[test]
    fn refuses_overlaps_on_either_side() {
        let fd = file(0x4000);
        let mut ram = GuestRam::default();
        ram.add(&region(0x2000, USER, 0x2000, 0), &fd).unwrap();
        for overlapping in [
            region(0x2000, USER + 0x10_0000, 0x2000, 0),
            region(0x3000, USER + 0x10_0000, 0x1000, 0),
            region(0x1000, USER + 0x10_0000, 0x2000, 0),
            region(0x8000, USER + 0x1000, 0x1000, 0),
        ] {
            let error = ram.add(&overlapping, &fd).unwrap_err();
            assert!(matches!(error, MemoryError::Overlap { other: 0x2000, .. }), "{error}");
        }
        ram.add(&region(0x4000, USER + 0x2000, 0x1000, 0), &fd).unwrap();
    }

    #[test]
    fn slots_have_a_limit_and_come_back() {
        let fd = file(0x1000);
        let mut ram = GuestRam::default();
        let nth = |n: usize| region(n as u64 * 0x1000, USER + n as u64 * 0x1000, 0x1000, 0);
        for n in 0..MEM_SLOTS_MAX {
            ram.add(&nth(n), &fd).unwrap();
        }
        assert!(matches!(ram.add(&nth(MEM_SLOTS_MAX), &fd), Err(MemoryError::TooMany)));
        assert!(matches!(ram.remove(&nth(MEM_SLOTS_MAX)), Err(MemoryError::Unknown { .. })));
        ram.remove(&nth(3)).unwrap();
        assert!(ram.read_slice(&mut [0; 1], GuestAddress(0x3000)).is_err());
        ram.add(&nth(MEM_SLOTS_MAX), &fd).unwrap();
    }

    #[test]
    fn a_refused_replacement_changes_nothing() {
        let mut ram = GuestRam::default();
        ram.replace(&[(region(0, USER, 0x1000, 0), file(0x1000))]).unwrap();
        let broken =
            [(region(0x8000, USER, 0x1000, 0), file(0x1000)), (region(0, 0, 0, 0), file(0x1000))];
        assert!(ram.replace(&broken).is_err());
        ram.read_slice(&mut [0; 1], GuestAddress(0)).unwrap();
        ram.replace(&[]).unwrap();
        assert!(ram.is_empty());
    }

    #[test]
    fn a_file_cut_under_us_poisons_and_does_not_kill() {
        let fd = file(0x2000);
        let mut ram = GuestRam::default();
        ram.add(&region(0, USER, 0x2000, 0), &fd).unwrap();
        ram.write_slice(&[7], GuestAddress(0x1000)).unwrap();
        assert!(!ram.is_poisoned());
        ftruncate(&fd, 0x1000).unwrap();
        let mut byte = [9];
        ram.read_slice(&mut byte, GuestAddress(0x1000)).unwrap();
        assert_eq!(byte, [0]);
        assert!(ram.is_poisoned());
    }
}
