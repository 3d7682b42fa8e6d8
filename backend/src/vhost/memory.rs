//! Guest memory: the ranges that the front end shares, mapped, and found by
//! guest address.
//!
//! The mappings are the region crate's, which survive a file that is cut under
//! them. What lies in one range, which nearly everything does, is found once and copied
//! at once; `vm-memory` sees to what lies across several. This module knows nothing of
//! messages or rings.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use paste_abi::vhost_user::MemRegion;
use paste_pmem::{MapError, Mapping};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion,
    GuestMemoryRegionBytes, GuestUsize, MemoryRegionAddress, VolatileSlice,
};

/// Ranges of memory that one guest can have: what GET_MAX_MEM_SLOTS answers.
pub const MEM_SLOTS_MAX: usize = 64;

/// What addresses and file offsets must be multiples of, in bytes: the smallest
/// page of any guest. It keeps the alignment of ring parts in the guest true in
/// our mapping.
const ALIGN: u64 = 4096;

/// From one line of the CPU's cache to the next, bytes.
const LINE: usize = 64;

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
    /// Which bytes it is: of this device's file with this number, from here on.
    backing: (u64, u64, u64),
    /// How often the front end has said it, and not taken it back.
    times: u32,
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
        let map = |source| MemoryError::Map { guest, source };
        let mapping = Mapping::from_fd(fd.as_fd(), offset, map_len, true).map_err(map)?;
        let stat = rustix::fs::fstat(fd)
            .map_err(|errno| map(MapError::System { call: "fstat", source: errno.into() }))?;
        let backing = (stat.st_dev, stat.st_ino, offset);
        Ok(RamRegion { mapping: Arc::new(mapping), guest, user, backing, times: 1 })
    }

    fn is_same(&self, other: &RamRegion) -> bool {
        let of = |r: &RamRegion| (r.guest, r.user, r.len(), r.backing);
        of(self) == of(other)
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
    /// The one that was used last, as the next access is mostly to it again.
    last: Cell<usize>,
}

/// Bytes that the guest does not have, or not all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outside;

/// A part of a ring: bytes in one range of guest memory that were found once. Others
/// write to them, and they stay mapped while this lives.
#[derive(Debug)]
pub struct Window {
    mapping: Arc<Mapping>,
    start: usize,
    len: usize,
}

impl Window {
    /// Copies `N` bytes out; they are not read again. Zeros outside the window, where
    /// nobody is to ask.
    #[inline]
    pub fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        debug_assert!(offset + N <= self.len, "{offset}+{N} of {}", self.len);
        let mut out = [0; N];
        let done = self.mapping.read_at(self.start + offset, &mut out);
        debug_assert!(done, "a window lies in its mapping");
        out
    }

    /// Copies bytes in.
    #[inline]
    pub fn write<const N: usize>(&self, offset: usize, data: [u8; N]) {
        debug_assert!(offset + N <= self.len, "{offset}+{N} of {}", self.len);
        let done = self.mapping.write_at(self.start + offset, &data);
        debug_assert!(done, "a window lies in its mapping");
    }

    /// Reads a little-endian word that the driver stores whole.
    #[inline]
    pub fn load(&self, offset: usize, order: Ordering) -> u16 {
        debug_assert!(offset + 2 <= self.len, "{offset}+2 of {}", self.len);
        let word = self.mapping.load_u16_at(self.start + offset, order);
        debug_assert!(word.is_some(), "a window lies in its mapping");
        u16::from_le(word.unwrap_or(0))
    }

    /// Stores a little-endian word that the driver reads whole.
    #[inline]
    pub fn store(&self, offset: usize, value: u16, order: Ordering) {
        debug_assert!(offset + 2 <= self.len, "{offset}+2 of {}", self.len);
        let done = self.mapping.store_u16_at(self.start + offset, value.to_le(), order);
        debug_assert!(done, "a window lies in its mapping");
    }
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

    /// Adds a range. One that is there already is counted: QEMU 7.2 says each once for
    /// every queue pair of a device, and takes it back as often.
    pub fn add(&mut self, region: &MemRegion, fd: &OwnedFd) -> Result<(), MemoryError> {
        let region = RamRegion::new(region, fd)?;
        if let Some(other) = self.regions.iter_mut().find(|other| region.overlaps(other)) {
            if region.is_same(other) {
                other.times = other.times.saturating_add(1);
                return Ok(());
            }
            let RamRegion { guest, user, .. } = region;
            return Err(MemoryError::Overlap { guest, user, other: other.guest });
        }
        if self.regions.len() == MEM_SLOTS_MAX {
            return Err(MemoryError::TooMany);
        }
        let at = self.regions.partition_point(|other| other.guest < region.guest);
        self.regions.insert(at, region);
        Ok(())
    }

    /// Takes back the range with these addresses and this size.
    pub fn remove(&mut self, region: &MemRegion) -> Result<(), MemoryError> {
        let (guest, user, len) =
            (region.guest_addr.get(), region.user_addr.get(), region.size.get());
        let found = self
            .regions
            .iter()
            .position(|r| r.guest == guest && r.user == user && r.len() == len)
            .ok_or(MemoryError::Unknown { guest, user, len })?;
        let region = &mut self.regions[found];
        region.times -= 1;
        if region.times == 0 {
            self.regions.remove(found);
        }
        Ok(())
    }

    /// Whether there is no memory at all.
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// The guest address of `len` bytes at an address of the front end, and the bytes. They
    /// must lie in one range: neighbours there need not be neighbours here.
    pub fn window(&self, user: u64, len: u64) -> Option<(u64, Window)> {
        self.regions.iter().find_map(|region| {
            let offset = user.checked_sub(region.user)?;
            let end = offset.checked_add(len)?;
            let (start, len) = (offset as usize, len as usize);
            let mapping = &region.mapping;
            (end <= region.len()).then(|| {
                (region.guest + offset, Window { mapping: Arc::clone(mapping), start, len })
            })
        })
    }

    /// The range that an address is in, and where there.
    #[inline]
    fn place(&self, addr: u64) -> Option<(&Mapping, usize)> {
        let inside = |region: &RamRegion| addr.wrapping_sub(region.guest) < region.len();
        let region = match self.regions.get(self.last.get()) {
            Some(region) if inside(region) => region,
            _ => {
                let after = self.regions.partition_point(|region| region.guest <= addr);
                let at = after.checked_sub(1)?;
                let region = self.regions.get(at).filter(|region| inside(region))?;
                self.last.set(at);
                region
            }
        };
        Some((&region.mapping, (addr - region.guest) as usize))
    }

    /// Copies bytes out, to be judged: they are not read again.
    #[inline]
    pub fn copy_out(&self, addr: GuestAddress, to: &mut [u8]) -> Result<(), Outside> {
        match self.place(addr.0) {
            Some((mapping, offset)) if mapping.read_at(offset, to) => Ok(()),
            _ => {
                self.read_slice(to, addr).map_err(|_| Outside)?;
                compiler_fence(Ordering::SeqCst);
                Ok(())
            }
        }
    }

    /// Copies bytes in.
    #[inline]
    pub fn copy_in(&self, addr: GuestAddress, data: &[u8]) -> Result<(), Outside> {
        match self.place(addr.0) {
            Some((mapping, offset)) if mapping.write_at(offset, data) => Ok(()),
            _ => self.write_slice(data, addr).map_err(|_| Outside),
        }
    }

    /// Says that these bytes are about to be read, or with `write` written. Nothing
    /// depends on whether they are there.
    #[inline]
    pub fn prefetch(&self, addr: GuestAddress, write: bool) {
        if let Some((mapping, offset)) = self.place(addr.0) {
            mapping.prefetch(offset, write);
            mapping.prefetch(offset + LINE, write);
        }
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
        let guest_address = |user, len| ram.window(user, len).map(|(guest, _)| guest);
        assert_eq!(guest_address(USER + 8, 16), Some(0x3008));
        assert_eq!(guest_address(USER + 0x10_1fff, 1), Some(0x2fff));
        assert_eq!(guest_address(USER + 0x10_1fff, 2), None);
        assert_eq!(guest_address(USER - 1, 1), None);
        assert_eq!(guest_address(USER, u64::MAX), None);
        // A write across both ranges arrives whole.
        ram.copy_in(GuestAddress(0x2ffd), b"across").unwrap();
        let mut first = [0; 3];
        rustix::io::pread(&fd, &mut first, 0x1ffd).unwrap();
        assert_eq!(&first, b"acr");
        rustix::io::pread(&fd, &mut first, 0x3000).unwrap();
        assert_eq!(&first, b"oss");
        // What is partly or wholly outside is refused.
        for (addr, len) in [(0x5fff, 2), (0x6000, 1), (0xfff, 2), (0, 1), (u64::MAX, 2)] {
            let (mut bytes, addr) = (vec![0; len], GuestAddress(addr));
            assert_eq!(ram.copy_in(addr, &bytes), Err(Outside));
            assert_eq!(ram.copy_out(addr, &mut bytes), Err(Outside));
            ram.prefetch(addr, true);
        }
        // Whichever range was used last.
        let mut bytes = [0; 6];
        for addr in [0x1000, 0x5fff, 0x2ffd] {
            ram.copy_in(GuestAddress(addr), b"x").unwrap();
            ram.copy_out(GuestAddress(0x2ffd), &mut bytes).unwrap();
        }
        assert_eq!(&bytes, b"xcross");
        // A window is of one range, and of the same bytes.
        let (_, window) = ram.window(USER + 0x10_1ffc, 4).unwrap();
        assert_eq!(window.read(1), *b"xcr");
        window.store(2, 0x6261, Ordering::Release);
        assert_eq!(window.load(2, Ordering::Acquire), 0x6261);
        ram.copy_out(GuestAddress(0x2ffd), &mut bytes).unwrap();
        assert_eq!(&bytes, b"xaboss");
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

    /// QEMU 7.2 says and takes back each range once for every queue pair.
    #[test]
    fn a_range_that_is_said_again_is_one_until_it_is_taken_back_as_often() {
        let fd = file(0x4000);
        let again = rustix::io::dup(&fd).unwrap();
        let mut ram = GuestRam::default();
        let range = region(0x2000, USER, 0x2000, 0x1000);
        ram.add(&range, &fd).unwrap();
        ram.add(&range, &again).unwrap();
        assert_eq!(ram.num_regions(), 1);
        // The same addresses, and not the same memory.
        for (other, fd) in [
            (range, &file(0x4000)),
            (region(0x2000, USER, 0x2000, 0), &fd),
            (region(0x2000, USER, 0x1000, 0x1000), &fd),
            (region(0x2000, USER + 0x10_0000, 0x2000, 0x1000), &fd),
        ] {
            assert!(matches!(ram.add(&other, fd), Err(MemoryError::Overlap { .. })));
        }
        ram.remove(&range).unwrap();
        ram.read_slice(&mut [0; 1], GuestAddress(0x2000)).unwrap();
        ram.remove(&range).unwrap();
        assert!(ram.is_empty());
        assert!(matches!(ram.remove(&range), Err(MemoryError::Unknown { .. })));
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
