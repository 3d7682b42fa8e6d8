//! Buffers in a `Vec`: the memory that both stacks' frames lie in. Who owns what
//! is the tests' affair; here nothing is kept but the pool.

use std::ops::Range;

use paste_pmem::checksum;
use paste_stack::Memory;

/// Bytes of one buffer.
pub const BUFFER_SIZE: usize = 2048;
const LINE: usize = 64;

/// Buffers, and those that are free, the last one returned on top.
#[derive(Debug)]
pub struct Region {
    bytes: Vec<u8>,
    /// Where the first buffer starts, so that all start with a cache line.
    start: usize,
    free: Vec<u32>,
    count: u32,
}

impl Region {
    /// `count` free buffers. Their pages are touched, so that no measurement
    /// finds them missing.
    pub fn new(count: u32) -> Region {
        let bytes = vec![1; count as usize * BUFFER_SIZE + LINE];
        Region {
            start: bytes.as_ptr().align_offset(LINE),
            bytes,
            free: (0..count).rev().collect(),
            count,
        }
    }

    /// Where the buffers lie.
    pub fn memory(&self) -> Range<*const u8> {
        self.bytes.as_ptr_range()
    }

    /// The bytes of a range.
    #[inline]
    pub fn bytes(&self, buf: u32, offset: usize, len: usize) -> &[u8] {
        let at = self.start + buf as usize * BUFFER_SIZE + offset;
        &self.bytes[at..at + len]
    }

    /// The bytes of a range, for writing.
    #[inline]
    pub fn bytes_mut(&mut self, buf: u32, offset: usize, len: usize) -> &mut [u8] {
        let at = self.start + buf as usize * BUFFER_SIZE + offset;
        &mut self.bytes[at..at + len]
    }
}

impl Memory for Region {
    fn buffer_size(&self) -> usize {
        BUFFER_SIZE
    }

    fn buffer_count(&self) -> u32 {
        self.count
    }

    fn free(&self) -> u32 {
        self.free.len() as u32
    }

    #[inline]
    fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    #[inline]
    fn give(&mut self, buf: u32) {
        self.free.push(buf);
    }

    #[inline]
    fn read(&self, buf: u32, offset: usize, out: &mut [u8]) {
        out.copy_from_slice(self.bytes(buf, offset, out.len()));
    }

    #[inline]
    fn write(&mut self, buf: u32, offset: usize, data: &[u8]) {
        self.bytes_mut(buf, offset, data.len()).copy_from_slice(data);
    }

    fn copy(&mut self, from: u32, from_offset: usize, to: u32, to_offset: usize, len: usize) {
        let at = |buf, offset| self.start + buf as usize * BUFFER_SIZE + offset;
        let (from, to) = (at(from, from_offset), at(to, to_offset));
        self.bytes.copy_within(from..from + len, to);
    }

    #[inline]
    fn sum(&self, buf: u32, offset: usize, len: usize) -> u16 {
        checksum::sum(self.bytes(buf, offset, len))
    }
}
