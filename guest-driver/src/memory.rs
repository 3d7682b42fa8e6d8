//! The region as the application sees it: the only place that turns the name
//! of a buffer into its bytes.

#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use paste_abi::inline::Piece;

use crate::buffer::Buffer;
use crate::conversation::Geometry;
use crate::sys::Mapping;

/// The mapped region, and where its buffers lie in it.
///
/// # Why references into it are sound
///
/// The region is shared with the host and, through it, with a NIC. A reference
/// needs more than a valid address: nobody may write while it lives.
///
/// - A [`Buffer`] exists only for a buffer that the host has handed over, and
///   the host, its stack and its port do not write to a buffer that is the
///   guest's. The host is trusted in this: it runs the guest.
/// - There is never a second [`Buffer`] of the same index
///   (`crate::ledger`), whatever the host says, and it cannot be copied, so
///   `&Buffer` and `&mut Buffer` stand for shared and exclusive access.
/// - A name of another opening is refused here by its epoch, so a buffer that
///   went back to the host with a lost channel shows no bytes.
/// - A stored buffer has no [`Buffer`], and its bytes are lent to be read only.
///   What the application stores through [`crate::RegionMedium`], anywhere in the
///   region, it stores through an exclusive borrow of the channel, so no
///   reference lives then.
/// - A reference borrows the memory as well, which is inside the channel; it
///   ends before anything is received, sent or unmapped.
#[derive(Debug)]
pub(crate) struct Memory {
    mapping: Arc<Mapping>,
    epoch: u32,
    buffers_offset: usize,
    buffer_size: usize,
    buffer_count: u32,
}

impl Memory {
    /// Shows the buffers of one opening; `None` if they do not all lie in what
    /// is mapped.
    pub(crate) fn new(mapping: Arc<Mapping>, geometry: &Geometry, epoch: u32) -> Option<Memory> {
        let buffers_offset = usize::try_from(geometry.buffers_offset).ok()?;
        let buffer_size = geometry.buffer_size as usize;
        let len = buffer_size.checked_mul(geometry.buffer_count as usize)?;
        let end = buffers_offset.checked_add(len)?;
        let buffer_count = geometry.buffer_count;
        (end <= mapping.len()).then_some(Memory {
            mapping,
            epoch,
            buffers_offset,
            buffer_size,
            buffer_count,
        })
    }

    /// All that is mapped.
    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Where a range of a buffer is in the mapping, if the name is good and the
    /// range lies in the buffer.
    fn locate(&self, buffer: &Buffer, range: &Range<usize>) -> Option<usize> {
        (buffer.epoch == self.epoch).then(|| self.place(buffer.index, range))?
    }

    /// Where a range of the buffer with this index is in the mapping.
    fn place(&self, index: u32, range: &Range<usize>) -> Option<usize> {
        let good =
            index < self.buffer_count && range.start <= range.end && range.end <= self.buffer_size;
        // Cannot overflow: `new` has checked the end of the last buffer.
        good.then(|| self.buffers_offset + index as usize * self.buffer_size + range.start)
    }

    /// Bytes of a buffer that the application has stored; none if they are not in
    /// a buffer.
    pub(crate) fn stored(&self, index: u32, range: Range<usize>) -> &[u8] {
        let len = range.len();
        let Some(at) = self.place(index, &range) else {
            return &[];
        };
        // SAFETY: `place` has put `at..at + len` inside a buffer, and `new` all
        // buffers inside the mapping. Nobody writes: see the type.
        unsafe { std::slice::from_raw_parts(self.mapping.as_ptr().add(at), len) }
    }

    /// Puts bytes that came in a frame into a buffer; whether they lie in it.
    pub(crate) fn fill(&mut self, piece: Piece, bytes: &[u8]) -> bool {
        let range = usize::from(piece.offset)..piece.end();
        let Some(at) = self.place(piece.buf_idx, &range).filter(|_| range.len() == bytes.len())
        else {
            return false;
        };
        // SAFETY: `place` has put the range inside a buffer, and `new` all buffers inside
        // the mapping. Nobody has a reference into it: see the type.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.mapping.as_ptr().add(at),
                bytes.len(),
            );
        }
        true
    }

    /// The bytes of the buffer's range; none if the name is not good.
    pub(crate) fn bytes<'a>(&'a self, buffer: &'a Buffer) -> &'a [u8] {
        self.range_bytes(buffer, buffer.offset()..buffer.offset() + buffer.len())
    }

    /// The bytes of any range of the buffer; none if the name or the range is not
    /// good.
    pub(crate) fn range_bytes<'a>(&'a self, buffer: &'a Buffer, range: Range<usize>) -> &'a [u8] {
        let len = range.len();
        let Some(at) = self.locate(buffer, &range) else {
            return &[];
        };
        // SAFETY: `locate` has put `at..at + len` inside a buffer, and `new`
        // all buffers inside the mapping. Nobody writes: see the type.
        unsafe { std::slice::from_raw_parts(self.mapping.as_ptr().add(at), len) }
    }

    /// Bytes of the whole buffer to write to; none if the name is not good or
    /// the range not in the buffer.
    pub(crate) fn bytes_mut<'a>(
        &'a mut self,
        buffer: &'a mut Buffer,
        range: Range<usize>,
    ) -> &'a mut [u8] {
        let len = range.len();
        let Some(at) = self.locate(buffer, &range) else {
            return &mut [];
        };
        // SAFETY: as in `bytes`; and `&mut Buffer` is the only name of this
        // buffer, so nobody else reads or writes.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.as_ptr().add(at), len) }
    }

    /// Copies the beginning of a buffer's range into another buffer, in bytes from
    /// that one's start. Whether both names are good and both ranges in the buffers.
    #[cfg(feature = "http")]
    pub(crate) fn copy(&mut self, from: &Buffer, len: usize, to: &mut Buffer, at: usize) -> bool {
        let (start, end) = (from.offset(), from.offset().saturating_add(len));
        let source = self.locate(from, &(start..end));
        let target = self.locate(to, &(at..at.saturating_add(len)));
        let (Some(source), Some(target)) = (source, target) else {
            return false;
        };
        let base = self.mapping.as_ptr();
        // SAFETY: `locate` has put both ranges inside buffers, and `new` all buffers
        // inside the mapping. `&mut Buffer` is the only name of the second one, so it
        // is another than the first, and nobody else reads or writes there.
        unsafe { std::ptr::copy_nonoverlapping(base.add(source), base.add(target), len) };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;
    use std::os::fd::AsFd;

    fn geometry() -> Geometry {
        Geometry {
            region_uuid: [0; 16],
            region_size: 3 * 4096,
            buffers_offset: 4096,
            buffer_size: 2048,
            buffer_count: 4,
            headroom: 128,
            frame_size: 4096,
            flows_max: 16,
            address: std::net::Ipv4Addr::LOCALHOST.into(),
            mtu: 1500,
            flush_domain: paste_abi::control::FlushDomain::None,
            stores: false,
            inline: false,
        }
    }

    fn mapping(len: usize) -> Arc<Mapping> {
        let fd = sys::shared_memory(len).unwrap();
        Arc::new(Mapping::from_fd(fd.as_fd(), 0, len, true).unwrap())
    }

    fn buffer(index: u32, epoch: u32, offset: u16, len: u16) -> Buffer {
        Buffer { index, epoch, offset, len, size: 2048, csum: 0, csum_valid: false, time: 0 }
    }

    #[test]
    fn bytes_are_those_of_the_named_range() {
        let mut memory = Memory::new(mapping(3 * 4096), &geometry(), 7).unwrap();
        let mut last = buffer(3, 7, 2000, 48);
        memory.bytes_mut(&mut last, 2000..2048).fill(0xAB);
        assert_eq!(memory.bytes(&last), [0xAB; 48]);
        assert_eq!(memory.bytes(&buffer(2, 7, 0, 2048)), [0; 2048]);
    }

    #[cfg(feature = "http")]
    #[test]
    fn a_copy_stays_in_both_buffers() {
        let mut memory = Memory::new(mapping(3 * 4096), &geometry(), 7).unwrap();
        let (mut from, mut to) = (buffer(1, 7, 100, 48), buffer(3, 7, 2000, 48));
        memory.bytes_mut(&mut from, 100..148).fill(0xAB);
        assert!(memory.copy(&from, 48, &mut to, 2000));
        assert_eq!(memory.bytes(&to), [0xAB; 48]);
        assert!(!memory.copy(&from, 48, &mut to, 2001), "beyond the buffer");
        assert!(!memory.copy(&from, 1949, &mut to, 0), "beyond the other");
        assert!(!memory.copy(&buffer(1, 6, 100, 48), 48, &mut to, 0), "another opening's");
    }

    #[test]
    fn a_bad_name_or_range_shows_nothing() {
        let mut memory = Memory::new(mapping(3 * 4096), &geometry(), 7).unwrap();
        assert!(memory.bytes(&buffer(0, 6, 0, 10)).is_empty(), "another opening's");
        assert!(memory.bytes(&buffer(4, 7, 0, 10)).is_empty(), "no such buffer");
        assert!(memory.bytes(&buffer(0, 7, 2040, 9)).is_empty(), "beyond the buffer");
        assert!(memory.bytes_mut(&mut buffer(0, 7, 0, 0), 0..2049).is_empty());
    }

    #[test]
    fn buffers_must_lie_in_the_mapping() {
        assert!(Memory::new(mapping(2 * 4096), &geometry(), 7).is_none());
    }
}
