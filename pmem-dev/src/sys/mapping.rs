//! A shared mapping of a range of a file.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering, compiler_fence};

use rustix::io::Errno;
use rustix::mm::{MsyncFlags, ProtFlags};

use super::cache::{self, Instruction};
use super::guard::{Guard, GuardError, MAPPINGS_MAX};
use super::os;
use super::shape::{Os, Shape, ShapeError, System};

/// Bytes that are stored whole.
const WORD: usize = size_of::<u64>();

/// Why a range of a file could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// cannot map 0 bytes
    #[error("cannot map 0 bytes")]
    Empty,
    /// The offset is not a multiple of the system's page size.
    #[error("file offset {offset:#x} is not a multiple of the page size {page}")]
    Unaligned {
        /// Offset asked for.
        offset: u64,
        /// Bytes of a page.
        page: usize,
    },
    /// The file ends before the range does.
    #[error("file has {have} bytes, but {len} bytes at {offset:#x} are to be mapped")]
    TooShort {
        /// Bytes of the file.
        have: u64,
        /// Offset asked for.
        offset: u64,
        /// Bytes asked for.
        len: usize,
    },
    /// It is not known how the file is mapped.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The process guards as many mappings as it can.
    #[error("{MAPPINGS_MAX} mappings are in use already")]
    TooMany,
    /// A system call failed.
    #[error("{call}: {source}")]
    System {
        /// The call.
        call: &'static str,
        /// Its error.
        source: std::io::Error,
    },
}

fn system(call: &'static str) -> impl Fn(Errno) -> MapError {
    move |errno| MapError::System { call, source: errno.into() }
}

/// A shared mapping of a range of a file that others may write, and cut, at
/// any moment.
///
/// It gives out raw pointers and copies, never references: what another process
/// can change is not memory that Rust may make promises about. If the file is
/// cut under the mapping, the process survives: the missing pages read as
/// zeros and [`Mapping::is_poisoned`] says so. Dropping unmaps.
#[derive(Debug)]
pub struct Mapping {
    /// Where the range starts.
    start: NonNull<u8>,
    /// Bytes of the range.
    len: usize,
    /// What was really mapped: the range, widened to whole pages of the file.
    base: NonNull<u8>,
    base_len: usize,
    /// A device DAX, which has no msync.
    is_device: bool,
    /// `Some` until dropped.
    guard: Option<Guard>,
}

// SAFETY: the mapping belongs to no thread, and all access goes through raw
// pointers whose users must expect concurrent writers anyway.
unsafe impl Send for Mapping {}
// SAFETY: as above; the methods that take `&self` hold no state of their own.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes at `file_offset` of the file behind `fd`, shared.
    ///
    /// `file_offset` is a multiple of the system's page size. On a file of huge
    /// pages, and on a device DAX, the range is widened to whole ones where that is
    /// needed. The file must hold the range now.
    ///
    /// # Errors
    /// See [`MapError`]; a descriptor that is not open for writing fails with
    /// `mmap` and EACCES if `writable`.
    pub fn from_fd(
        fd: BorrowedFd<'_>,
        file_offset: u64,
        len: usize,
        writable: bool,
    ) -> Result<Mapping, MapError> {
        Mapping::of(fd, &Os.shape(fd)?, file_offset, len, writable)
    }

    /// As [`Mapping::from_fd`], of a file whose shape is known.
    pub(crate) fn of(
        fd: BorrowedFd<'_>,
        shape: &Shape,
        file_offset: u64,
        len: usize,
        writable: bool,
    ) -> Result<Mapping, MapError> {
        if len == 0 {
            return Err(MapError::Empty);
        }
        let small = rustix::param::page_size();
        if !file_offset.is_multiple_of(small as u64) {
            return Err(MapError::Unaligned { offset: file_offset, page: small });
        }
        let Shape { len: have, page, is_device } = *shape;
        let too_short = MapError::TooShort { have, offset: file_offset, len };
        if file_offset.checked_add(len as u64).is_none_or(|end| end > have) {
            return Err(too_short);
        }
        let base_offset = file_offset / page as u64 * page as u64;
        let lead = (file_offset - base_offset) as usize;
        let Some(base_len) = len.checked_add(lead).and_then(|l| l.checked_next_multiple_of(page))
        else {
            return Err(too_short);
        };
        let mut prot = ProtFlags::READ;
        prot.set(ProtFlags::WRITE, writable);
        let base = os::map_shared(base_len, prot, fd, base_offset).map_err(system("mmap"))?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(MapError::Empty)?;
        // SAFETY: `lead < base_len`, so the result lies in the mapping.
        let start = unsafe { base.add(lead) };
        let mut mapping = Mapping { start, len, base, base_len, is_device, guard: None };
        let guard = Guard::new(base.as_ptr() as usize, base_len, page).map_err(|e| match e {
            GuardError::Full => MapError::TooMany,
            GuardError::Signal(source) => MapError::System { call: "sigaction", source },
        })?;
        mapping.guard = Some(guard);
        Ok(mapping)
    }

    /// Where the range starts. Valid for [`Mapping::len`] bytes while the
    /// mapping lives; writing through it faults unless mapped writable.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Bytes of the range.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: a mapping has at least one byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the file was cut under the mapping and an access noticed. What
    /// the mapping holds then is no longer what the other side sees.
    pub fn is_poisoned(&self) -> bool {
        self.guard.as_ref().is_some_and(Guard::is_poisoned)
    }

    /// Where `offset` lies, if `len` bytes from there are in the range.
    #[inline]
    pub(crate) fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        // SAFETY: the result lies in the range, or one past its end.
        (end <= self.len).then(|| unsafe { self.start.as_ptr().add(offset) })
    }

    /// Copies bytes out; `false` and no copy if they are not all in the range.
    #[inline]
    #[must_use]
    pub fn read_at(&self, offset: usize, out: &mut [u8]) -> bool {
        let Some(from) = self.at(offset, out.len()) else {
            return false;
        };
        // SAFETY: `from` is valid for `out.len()` bytes; `out` is private
        // memory, so the two do not overlap.
        unsafe { ptr::copy_nonoverlapping(from, out.as_mut_ptr(), out.len()) };
        // The source may change right now. Without the fence the compiler could
        // read it again instead of the copy, and a check would judge other
        // bytes than those used afterwards.
        compiler_fence(Ordering::SeqCst);
        true
    }

    /// Copies bytes in; `false` and no copy if they do not all fit into the
    /// range. The mapping must be writable.
    #[inline]
    #[must_use]
    pub fn write_at(&self, offset: usize, data: &[u8]) -> bool {
        let Some(to) = self.at(offset, data.len()) else {
            return false;
        };
        // SAFETY: `to` is valid for `data.len()` bytes; `data` is private
        // memory, so the two do not overlap.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
        compiler_fence(Ordering::SeqCst);
        true
    }

    /// Copies `len` bytes at `from` to `to`, which may overlap; `false` and no
    /// copy if either range is not all in the mapping. The mapping must be
    /// writable.
    #[inline]
    #[must_use]
    pub fn copy_within(&self, from: usize, to: usize, len: usize) -> bool {
        let (Some(from), Some(to)) = (self.at(from, len), self.at(to, len)) else {
            return false;
        };
        // SAFETY: both ranges are valid for `len` bytes, and `copy` minds an
        // overlap. Others may write meanwhile: then some mix of bytes is copied.
        unsafe { ptr::copy(from, to, len) };
        compiler_fence(Ordering::SeqCst);
        true
    }

    /// Copies `len` bytes at `from` of another mapping, which is not to be of the same
    /// bytes, to `to` of this one; false, and nothing is copied, unless both ranges lie
    /// in their mappings. This one must be writable.
    #[inline]
    #[must_use]
    pub fn copy_from(&self, to: usize, other: &Mapping, from: usize, len: usize) -> bool {
        let (Some(from), Some(to)) = (other.at(from, len), self.at(to, len)) else {
            return false;
        };
        // SAFETY: both ranges are valid for `len` bytes, and `copy` minds that they may
        // overlap after all. Others may write meanwhile: then some mix is copied.
        unsafe { ptr::copy(from, to, len) };
        compiler_fence(Ordering::SeqCst);
        true
    }

    /// Reads a word that others store meanwhile, in the host's order of bytes; `None` if it
    /// is not in the range or not at a multiple of 2.
    #[inline]
    #[must_use]
    pub fn load_u16_at(&self, offset: usize, order: Ordering) -> Option<u16> {
        let at = self.at(offset, 2)?.cast::<u16>();
        // SAFETY: the word is mapped and aligned, and whoever shares it stores it whole.
        at.is_aligned().then(|| unsafe { AtomicU16::from_ptr(at) }.load(order))
    }

    /// Stores a word that others read meanwhile; `false`, and nothing is stored, if it is
    /// not in the range or not at a multiple of 2. The mapping must be writable.
    #[inline]
    #[must_use]
    pub fn store_u16_at(&self, offset: usize, value: u16, order: Ordering) -> bool {
        let Some(at) = self.at(offset, 2).map(<*mut u8>::cast::<u16>).filter(|at| at.is_aligned())
        else {
            return false;
        };
        // SAFETY: as in `load_u16_at`.
        unsafe { AtomicU16::from_ptr(at) }.store(value, order);
        true
    }

    /// Says that the line of the CPU's cache at `offset` is about to be read, or with
    /// `write` written. Changes nothing, and nothing happens outside the range.
    #[inline]
    pub fn prefetch(&self, offset: usize, write: bool) {
        if let Some(at) = self.at(offset, 1) {
            cache::prefetch(at, write);
        }
    }

    /// As [`Mapping::read_at`], each aligned 8-byte word of the file read whole:
    /// one that its writer stores meanwhile is the old or the new one.
    #[must_use]
    pub fn read_words_at(&self, offset: usize, out: &mut [u8]) -> bool {
        let Some(from) = self.at(offset, out.len()) else {
            return false;
        };
        let lead = from.align_offset(WORD).min(out.len());
        let (lead, rest) = out.split_at_mut(lead);
        let (words, tail) = rest.as_chunks_mut::<WORD>();
        // SAFETY: the range is valid for `out.len()` bytes, and after `lead`
        // bytes the address is a multiple of 8. Others may write meanwhile,
        // which atomic loads of mapped memory allow.
        unsafe {
            let mut at = from;
            for byte in lead {
                *byte = AtomicU8::from_ptr(at).load(Ordering::Relaxed);
                at = at.add(1);
            }
            for word in words {
                *word = AtomicU64::from_ptr(at.cast()).load(Ordering::Relaxed).to_ne_bytes();
                at = at.add(WORD);
            }
            for byte in tail {
                *byte = AtomicU8::from_ptr(at).load(Ordering::Relaxed);
                at = at.add(1);
            }
        }
        true
    }

    /// As [`Mapping::write_at`], each aligned 8-byte word of the file stored
    /// whole, as far as it is all in `data`.
    #[must_use]
    pub fn write_words_at(&self, offset: usize, data: &[u8]) -> bool {
        let Some(to) = self.at(offset, data.len()) else {
            return false;
        };
        let (lead, rest) = data.split_at(to.align_offset(WORD).min(data.len()));
        let (words, tail) = rest.as_chunks::<WORD>();
        // SAFETY: as in `read_words_at`; the mapping is writable.
        unsafe {
            let mut at = to;
            for &byte in lead {
                AtomicU8::from_ptr(at).store(byte, Ordering::Relaxed);
                at = at.add(1);
            }
            for &word in words {
                AtomicU64::from_ptr(at.cast()).store(u64::from_ne_bytes(word), Ordering::Relaxed);
                at = at.add(WORD);
            }
            for &byte in tail {
                AtomicU8::from_ptr(at).store(byte, Ordering::Relaxed);
                at = at.add(1);
            }
        }
        true
    }

    /// Makes every page count as written, without a change of any byte, so that
    /// the next sync of the file writes all of it. The mapping must be writable.
    pub(crate) fn touch(&self) {
        let page = rustix::param::page_size();
        for offset in (0..self.len).step_by(page) {
            // SAFETY: inside the range, whose start is a multiple of the page
            // size, so of 8. A swap of a word for itself is a store to the
            // system, and to a guest that writes meanwhile it is nothing.
            let word = unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(offset).cast()) };
            let value = word.load(Ordering::Relaxed);
            let _ = word.compare_exchange(value, value, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Writes the range's lines of the CPU's cache back to memory, once
    /// [`cache::fence`] has returned. `false` if the range is not in the mapping.
    #[must_use]
    pub(crate) fn write_back(&self, offset: usize, len: usize, by: Instruction) -> bool {
        let Some(from) = self.at(offset, len) else {
            return false;
        };
        // SAFETY: the range is mapped.
        unsafe { cache::write_back(by, from, len) };
        true
    }

    /// Waits until what was written is in the file's storage. Memory files have
    /// none and return at once. A device DAX has no call for it: the CPU's cache is
    /// written back, which takes as long as reading all of the range.
    ///
    /// # Errors
    /// Those of msync(2).
    pub fn sync(&self) -> std::io::Result<()> {
        if self.is_device {
            // Without an instruction nothing of it is durable, and its domain says so.
            if let Some(instruction) = Instruction::detect() {
                let done = self.write_back(0, self.len, instruction);
                debug_assert!(done, "it is the whole range");
                cache::fence();
            }
            return Ok(());
        }
        // SAFETY: the range is exactly what was mapped.
        unsafe {
            rustix::mm::msync(self.base.as_ptr().cast::<c_void>(), self.base_len, MsyncFlags::SYNC)
        }?;
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // The guard goes first: it must never patch an address that is free.
        self.guard = None;
        // SAFETY: exactly what was mapped, and nobody can use it any more. An
        // error would mean that it was not mapped, which cannot be.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast::<c_void>(), self.base_len) };
    }
}
