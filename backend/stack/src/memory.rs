//! The buffers that the stack works in, as their owner shows them to it.
//!
//! The stack never holds a reference into a buffer: a guest may write to it at
//! any moment, so bytes are copied out once and then judged. Whoever owns the
//! mapping implements [`Memory`]; the stack itself needs no `unsafe`.

/// Access to the buffers of one region, and to the pool of free ones.
///
/// Buffers are named by index. Offsets and lengths that the stack passes always
/// lie within a buffer; an implementation panics if they do not, because that
/// is an error of the stack's and never of the input's.
pub trait Memory {
    /// Bytes of one buffer.
    fn buffer_size(&self) -> usize;

    /// Buffers in the region.
    fn buffer_count(&self) -> u32;

    /// Buffers in the pool now.
    fn free(&self) -> u32;

    /// Takes a buffer from the pool for the stack.
    fn take(&mut self) -> Option<u32>;

    /// Gives one of the stack's buffers back to the pool.
    fn give(&mut self, buf: u32);

    /// Copies bytes out of a buffer.
    fn read(&self, buf: u32, offset: usize, out: &mut [u8]);

    /// Copies bytes into a buffer.
    fn write(&mut self, buf: u32, offset: usize, data: &[u8]);

    /// Copies `len` bytes at `from_offset` of buffer `from` to `to_offset` of
    /// buffer `to`, as if by way of private memory.
    fn copy(&mut self, from: u32, from_offset: usize, to: u32, to_offset: usize, len: usize);

    /// The ones' complement sum (RFC 1071) of a range, folded to 16 bits and
    /// not complemented: bytes paired from the range's start, in network order.
    fn sum(&self, buf: u32, offset: usize, len: usize) -> u16;
}
