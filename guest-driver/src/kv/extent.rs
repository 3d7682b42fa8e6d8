//! Names of bytes in buffers.

/// A range of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Extent {
    /// Index of the buffer in the region.
    pub(super) buffer: u32,
    /// Where the range starts in the buffer, in bytes.
    pub(super) offset: u16,
    /// Bytes of the range.
    pub(super) len: u16,
}

impl Extent {
    /// Bytes of an extent as it is stored.
    pub(super) const STORED: usize = 8;

    /// The extent without its first `count` bytes.
    pub(super) fn skip(self, count: usize) -> Extent {
        let count = count.min(self.len.into()) as u16;
        Extent { buffer: self.buffer, offset: self.offset + count, len: self.len - count }
    }

    /// At most the first `count` bytes of the extent.
    pub(super) fn first(self, count: usize) -> Extent {
        Extent { len: count.min(self.len.into()) as u16, ..self }
    }

    /// As it is stored: little endian, index, offset, length.
    pub(super) fn to_bytes(self) -> [u8; Extent::STORED] {
        let mut out = [0; Extent::STORED];
        out[..4].copy_from_slice(&self.buffer.to_le_bytes());
        out[4..6].copy_from_slice(&self.offset.to_le_bytes());
        out[6..].copy_from_slice(&self.len.to_le_bytes());
        out
    }

    /// Reads what [`Extent::to_bytes`] wrote.
    pub(super) fn from_bytes(bytes: [u8; Extent::STORED]) -> Extent {
        let [a, b, c, d, e, f, g, h] = bytes;
        Extent {
            buffer: u32::from_le_bytes([a, b, c, d]),
            offset: u16::from_le_bytes([e, f]),
            len: u16::from_le_bytes([g, h]),
        }
    }

    /// Whether the range lies in a buffer of a region like this.
    pub(super) fn fits(self, buffer_count: u32, buffer_size: u32) -> bool {
        self.buffer < buffer_count && u32::from(self.offset) + u32::from(self.len) <= buffer_size
    }
}

/// Shows bytes in place. What is not there shows as nothing.
pub(super) trait Bytes {
    /// The bytes of the range.
    fn bytes(&self, extent: Extent) -> &[u8];
}
