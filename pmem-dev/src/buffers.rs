//! Access to the buffers of a region.
//!
//! The guest may write to a buffer while the host reads it, whoever owns it by
//! the rules. So bytes are copied, or summed into a number, through raw
//! pointers; there is never a reference into a buffer, and what was read twice
//! may differ.

use std::sync::Arc;

use crate::checksum;
use crate::sys::Mapping;

/// A range that is not inside a buffer, or a buffer that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bytes {offset}+{len} of buffer {buf} are not in the region")]
pub struct RangeError {
    /// The buffer.
    pub buf: u32,
    /// Where the range starts in the buffer.
    pub offset: usize,
    /// Bytes of the range.
    pub len: usize,
}

/// The buffers of one region, by index. Cloning shares the mapping.
#[derive(Clone, Debug)]
pub struct Buffers {
    mapping: Arc<Mapping>,
    start: usize,
    size_shift: u32,
    count: u32,
}

impl Buffers {
    /// The `count` buffers of `size` bytes that start at `start` in `mapping`;
    /// `None` unless `size` is a power of two and all of them lie in it.
    pub fn new(mapping: Arc<Mapping>, start: usize, size: usize, count: u32) -> Option<Buffers> {
        let len = size.checked_mul(usize::try_from(count).ok()?)?;
        mapping.at(start, len)?;
        size.is_power_of_two().then(|| Buffers {
            mapping,
            start,
            size_shift: size.trailing_zeros(),
            count,
        })
    }

    /// Bytes of one buffer.
    #[inline]
    pub fn size(&self) -> usize {
        1 << self.size_shift
    }

    /// Number of buffers.
    #[inline]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The mapping that the buffers lie in.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// Where the range starts in the mapping.
    #[inline]
    fn locate(&self, buf: u32, offset: usize, len: usize) -> Result<usize, RangeError> {
        let inside = buf < self.count && offset <= self.size() && len <= self.size() - offset;
        if !inside {
            return Err(RangeError { buf, offset, len });
        }
        Ok(self.start + ((buf as usize) << self.size_shift) + offset)
    }

    /// Says that the bytes at `offset` of a buffer are about to be read. Nothing happens for
    /// what is in no buffer.
    #[inline]
    pub fn prefetch(&self, buf: u32, offset: usize) {
        if let Ok(at) = self.locate(buf, offset, 1) {
            self.mapping.prefetch(at, false);
        }
    }

    /// Copies bytes out of a buffer.
    ///
    /// # Errors
    /// [`RangeError`], and nothing is copied.
    #[inline]
    pub fn read(&self, buf: u32, offset: usize, out: &mut [u8]) -> Result<(), RangeError> {
        let at = self.locate(buf, offset, out.len())?;
        let done = self.mapping.read_at(at, out);
        debug_assert!(done, "checked when the buffers were laid out");
        Ok(())
    }

    /// Copies bytes into a buffer.
    ///
    /// # Errors
    /// [`RangeError`], and nothing is copied.
    #[inline]
    pub fn write(&self, buf: u32, offset: usize, data: &[u8]) -> Result<(), RangeError> {
        let at = self.locate(buf, offset, data.len())?;
        let done = self.mapping.write_at(at, data);
        debug_assert!(done, "checked when the buffers were laid out");
        Ok(())
    }

    /// Copies `len` bytes at `from_offset` of buffer `from` to `to_offset` of
    /// buffer `to`.
    ///
    /// # Errors
    /// [`RangeError`] for the range that is not inside, and nothing is copied.
    #[inline]
    pub fn copy(
        &self,
        from: u32,
        from_offset: usize,
        to: u32,
        to_offset: usize,
        len: usize,
    ) -> Result<(), RangeError> {
        let from = self.locate(from, from_offset, len)?;
        let to = self.locate(to, to_offset, len)?;
        let done = self.mapping.copy_within(from, to, len);
        debug_assert!(done, "checked when the buffers were laid out");
        Ok(())
    }

    /// Copies `len` bytes at `from_offset` of buffer `from` of another region to
    /// `to_offset` of buffer `to`.
    ///
    /// # Errors
    /// [`RangeError`] for the range that is not inside, and nothing is copied.
    #[inline]
    pub fn copy_from(
        &self,
        (to, to_offset): (u32, usize),
        other: &Buffers,
        (from, from_offset): (u32, usize),
        len: usize,
    ) -> Result<(), RangeError> {
        let at = other.locate(from, from_offset, len)?;
        let to = self.locate(to, to_offset, len)?;
        let done = self.mapping.copy_from(to, &other.mapping, at, len);
        debug_assert!(done, "checked when the buffers were laid out");
        Ok(())
    }

    /// The ones' complement sum (RFC 1071) of a range, folded to 16 bits and
    /// not complemented: bytes paired from the range's start, in network order.
    ///
    /// # Errors
    /// [`RangeError`].
    #[inline]
    pub fn sum(&self, buf: u32, offset: usize, len: usize) -> Result<u16, RangeError> {
        let from = self.as_ptr(buf, offset, len)?;
        #[allow(unsafe_code)]
        // SAFETY: the range was found to lie in the mapping.
        Ok(unsafe { checksum::sum_at(from, len) })
    }

    /// Where a range lies, for a port's system calls. Valid for `len` bytes
    /// while the mapping lives.
    ///
    /// # Errors
    /// [`RangeError`].
    #[inline]
    pub fn as_ptr(&self, buf: u32, offset: usize, len: usize) -> Result<*const u8, RangeError> {
        self.as_mut_ptr(buf, offset, len).map(<*mut u8>::cast_const)
    }

    /// As [`Buffers::as_ptr`], for calls that write. The mapping must be
    /// writable.
    ///
    /// # Errors
    /// [`RangeError`].
    #[inline]
    pub fn as_mut_ptr(&self, buf: u32, offset: usize, len: usize) -> Result<*mut u8, RangeError> {
        let at = self.locate(buf, offset, len)?;
        self.mapping.at(at, len).ok_or(RangeError { buf, offset, len })
    }
}
