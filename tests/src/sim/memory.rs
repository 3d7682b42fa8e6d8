//! A region in a `Vec` whose books are kept strictly: a buffer has one owner,
//! and whoever gives away what is not its own panics.

use std::ops::Range;

use paste_stack::Memory;

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
    buffer_size: usize,
    bytes: Vec<u8>,
    owners: Vec<Owner>,
    /// Buffers that the stack may read though they are their guest's.
    lent: Vec<bool>,
    free: Vec<u32>,
    /// The pool hands out nothing for a while, as if others had emptied it.
    pub starved: bool,
}

impl StrictMemory {
    /// `count` buffers of `buffer_size` bytes, all free.
    pub fn new(count: u32, buffer_size: usize) -> StrictMemory {
        StrictMemory {
            buffer_size,
            bytes: vec![0; count as usize * buffer_size],
            owners: vec![Owner::Pool; count as usize],
            lent: vec![false; count as usize],
            free: (0..count).rev().collect(),
            starved: false,
        }
    }

    /// Takes a free buffer for `owner`.
    pub fn take_for(&mut self, owner: Owner) -> Option<u32> {
        if self.starved {
            return None;
        }
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
        self.lent[buf as usize] = false;
    }

    /// The guest sends a buffer that stays its own: the stack may read it until
    /// it has another owner.
    pub fn lend(&mut self, buf: u32) {
        assert_eq!(self.owners[buf as usize], Owner::Guest, "buffer {buf} is lent");
        self.lent[buf as usize] = true;
    }

    /// Whether the buffer was lent.
    pub fn is_lent(&self, buf: u32) -> bool {
        self.lent[buf as usize]
    }

    /// Whether the stack, and the port for it, may read the buffer.
    pub fn is_readable(&self, buf: u32) -> bool {
        self.owners[buf as usize] == Owner::Stack || self.lent[buf as usize]
    }

    /// Whose the buffer is.
    pub fn owner(&self, buf: u32) -> Owner {
        self.owners[buf as usize]
    }

    /// Bytes of a buffer.
    pub fn bytes(&self, buf: u32, offset: usize, len: usize) -> &[u8] {
        &self.bytes[self.range(buf, offset, len)]
    }

    /// Bytes of a buffer, to be written.
    pub fn bytes_mut(&mut self, buf: u32, offset: usize, len: usize) -> &mut [u8] {
        let range = self.range(buf, offset, len);
        &mut self.bytes[range]
    }

    /// Buffers of one owner.
    pub fn count_of(&self, owner: Owner) -> usize {
        self.owners.iter().filter(|&&o| o == owner).count()
    }

    fn range(&self, buf: u32, offset: usize, len: usize) -> Range<usize> {
        assert!(offset + len <= self.buffer_size, "{offset}+{len} is beyond a buffer");
        let start = buf as usize * self.buffer_size + offset;
        start..start + len
    }
}

impl Memory for StrictMemory {
    fn buffer_size(&self) -> usize {
        self.buffer_size
    }

    fn buffer_count(&self) -> u32 {
        self.owners.len() as u32
    }

    fn free(&self) -> u32 {
        if self.starved { 0 } else { self.free.len() as u32 }
    }

    fn take(&mut self) -> Option<u32> {
        self.take_for(Owner::Stack)
    }

    fn give(&mut self, buf: u32) {
        self.give_from(Owner::Stack, buf);
    }

    fn read(&self, buf: u32, offset: usize, out: &mut [u8]) {
        assert!(self.is_readable(buf), "a read of buffer {buf}");
        out.copy_from_slice(self.bytes(buf, offset, out.len()));
    }

    fn write(&mut self, buf: u32, offset: usize, data: &[u8]) {
        assert_eq!(self.owners[buf as usize], Owner::Stack, "a write to buffer {buf}");
        self.bytes_mut(buf, offset, data.len()).copy_from_slice(data);
    }

    fn copy(&mut self, from: u32, from_offset: usize, to: u32, to_offset: usize, len: usize) {
        for buf in [from, to] {
            assert_eq!(self.owners[buf as usize], Owner::Stack, "a copy with buffer {buf}");
        }
        let from = self.range(from, from_offset, len);
        let to = self.range(to, to_offset, len).start;
        self.bytes.copy_within(from, to);
    }

    fn sum(&self, buf: u32, offset: usize, len: usize) -> u16 {
        assert!(self.is_readable(buf), "a sum of buffer {buf}");
        super::headers::sum(self.bytes(buf, offset, len))
    }
}
