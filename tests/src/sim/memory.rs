//! A region in a `Vec` whose books are kept strictly: a buffer has one owner,
//! and whoever gives away what is not its own panics.

use std::ops::Range;

use paste_stack::Memory;

/// Bytes of one buffer.
pub const BUFFER_SIZE: usize = 2048;

/// Whose a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody's: it may be taken.
    Pool,
    /// The stack's.
    Stack,
    /// The guest's.
    Guest,
}

/// Buffers, their owners, and the free ones.
#[derive(Debug)]
pub struct StrictMemory {
    bytes: Vec<u8>,
    owners: Vec<Owner>,
    free: Vec<u32>,
}

impl StrictMemory {
    /// `count` buffers, all free.
    pub fn new(count: u32) -> StrictMemory {
        StrictMemory {
            bytes: vec![0; count as usize * BUFFER_SIZE],
            owners: vec![Owner::Pool; count as usize],
            free: (0..count).rev().collect(),
        }
    }

    /// Takes a free buffer for `owner`.
    pub fn take_for(&mut self, owner: Owner) -> Option<u32> {
        let buf = self.free.pop()?;
        self.owners[buf as usize] = owner;
        Some(buf)
    }

    /// Gives a buffer of `owner`'s back.
    pub fn give_from(&mut self, owner: Owner, buf: u32) {
        self.pass(owner, Owner::Pool, buf);
        self.free.push(buf);
    }

    /// Passes a buffer from one owner to another.
    pub fn pass(&mut self, from: Owner, to: Owner, buf: u32) {
        assert_eq!(self.owners[buf as usize], from, "buffer {buf} on its way to {to:?}");
        self.owners[buf as usize] = to;
    }

    /// Bytes of a buffer.
    pub fn bytes(&self, buf: u32, offset: usize, len: usize) -> &[u8] {
        &self.bytes[range(buf, offset, len)]
    }

    /// Bytes of a buffer, to be written.
    pub fn bytes_mut(&mut self, buf: u32, offset: usize, len: usize) -> &mut [u8] {
        &mut self.bytes[range(buf, offset, len)]
    }

    /// Buffers of one owner.
    pub fn count_of(&self, owner: Owner) -> usize {
        self.owners.iter().filter(|&&o| o == owner).count()
    }
}

fn range(buf: u32, offset: usize, len: usize) -> Range<usize> {
    assert!(offset + len <= BUFFER_SIZE, "{offset}+{len} is beyond a buffer");
    let start = buf as usize * BUFFER_SIZE + offset;
    start..start + len
}

impl Memory for StrictMemory {
    fn buffer_size(&self) -> usize {
        BUFFER_SIZE
    }

    fn buffer_count(&self) -> u32 {
        self.owners.len() as u32
    }

    fn free(&self) -> u32 {
        self.free.len() as u32
    }

    fn take(&mut self) -> Option<u32> {
        self.take_for(Owner::Stack)
    }

    fn give(&mut self, buf: u32) {
        self.give_from(Owner::Stack, buf);
    }

    fn read(&self, buf: u32, offset: usize, out: &mut [u8]) {
        out.copy_from_slice(self.bytes(buf, offset, out.len()));
    }

    fn write(&mut self, buf: u32, offset: usize, data: &[u8]) {
        self.bytes_mut(buf, offset, data.len()).copy_from_slice(data);
    }

    fn copy(&mut self, from: u32, from_offset: usize, to: u32, to_offset: usize, len: usize) {
        for buf in [from, to] {
            assert_eq!(self.owners[buf as usize], Owner::Stack, "a copy with buffer {buf}");
        }
        let from = range(from, from_offset, len);
        self.bytes.copy_within(from, range(to, to_offset, len).start);
    }

    fn sum(&self, buf: u32, offset: usize, len: usize) -> u16 {
        let mut sum: u32 = 0;
        for pair in self.bytes(buf, offset, len).chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
        while sum > 0xffff {
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum as u16
    }
}
