//! A region in ordinary memory, and the pool of its free buffers.

use paste_stack::Memory;

/// Bytes of a buffer: as large as a slot can name, so that one write of the
/// script is one slot, and segments are cut by the stack alone.
pub(crate) const BUFFER_SIZE: usize = 1 << 16;

/// Where received frames start, and the least offset of payload to send.
pub(crate) const HEADROOM: u16 = 128;

/// The buffers.
#[derive(Debug)]
pub(crate) struct Region {
    bytes: Vec<u8>,
    free: Vec<u32>,
    count: u32,
}

impl Region {
    pub(crate) fn new(count: u32) -> Region {
        Region {
            bytes: vec![0; count as usize * BUFFER_SIZE],
            free: (0..count).rev().collect(),
            count,
        }
    }

    /// A range of a buffer.
    pub(crate) fn range(&self, buf: u32, offset: usize, len: usize) -> &[u8] {
        let start = Region::place(buf, offset, len);
        &self.bytes[start..start + len]
    }

    fn place(buf: u32, offset: usize, len: usize) -> usize {
        assert!(offset + len <= BUFFER_SIZE, "range beyond the buffer");
        buf as usize * BUFFER_SIZE + offset
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

    fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }

    fn give(&mut self, buf: u32) {
        debug_assert!(!self.free.contains(&buf), "buffer {buf} given twice");
        self.free.push(buf);
    }

    fn read(&self, buf: u32, offset: usize, out: &mut [u8]) {
        out.copy_from_slice(self.range(buf, offset, out.len()));
    }

    fn write(&mut self, buf: u32, offset: usize, data: &[u8]) {
        let start = Region::place(buf, offset, data.len());
        self.bytes[start..start + data.len()].copy_from_slice(data);
    }

    fn copy(&mut self, from: u32, from_at: usize, to: u32, to_at: usize, len: usize) {
        let source = Region::place(from, from_at, len);
        let target = Region::place(to, to_at, len);
        self.bytes.copy_within(source..source + len, target);
    }

    /// RFC 1071: pairs of bytes in network order, an odd last one padded.
    fn sum(&self, buf: u32, offset: usize, len: usize) -> u16 {
        let mut total: u32 = 0;
        for pair in self.range(buf, offset, len).chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            total += u32::from(u16::from_be_bytes([pair[0], low]));
        }
        while total > 0xffff {
            total = (total & 0xffff) + (total >> 16);
        }
        total as u16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_the_example_of_rfc_1071_section_3() {
        let mut region = Region::new(2);
        region.write(1, 3, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7, 0xff]);
        assert_eq!(region.sum(1, 3, 8), 0xddf2);
        assert_eq!(region.sum(1, 11, 1), 0xff00);
    }

    #[test]
    fn gives_out_each_buffer_once() {
        let mut region = Region::new(2);
        let (a, b) = (region.take().unwrap(), region.take().unwrap());
        assert_ne!(a, b);
        assert_eq!(region.take(), None);
        region.give(a);
        assert_eq!(region.take(), Some(a));
    }
}
