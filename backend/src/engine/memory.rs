//! The region's pool, as the stack sees it.

use paste_pmem::{Owner, Pool, RangeError};
use paste_stack::Memory;

/// A pool whose buffers the stack works in. What the stack takes is
/// [`Owner::Stack`] in the pool's books, and only that can it give back.
pub struct RegionMemory(Pool);

impl RegionMemory {
    /// Wraps the pool of one guest.
    pub fn new(pool: Pool) -> RegionMemory {
        RegionMemory(pool)
    }

    /// The pool.
    pub fn pool(&self) -> &Pool {
        &self.0
    }

    /// The pool, to change owners.
    pub fn pool_mut(&mut self) -> &mut Pool {
        &mut self.0
    }
}

impl Memory for RegionMemory {
    fn buffer_size(&self) -> usize {
        self.0.buffers().size()
    }

    fn buffer_count(&self) -> u32 {
        self.0.buffers().count()
    }

    fn free(&self) -> u32 {
        self.0.free()
    }

    fn take(&mut self) -> Option<u32> {
        self.0.take(Owner::Stack)
    }

    fn give(&mut self, buf: u32) {
        let given = self.0.give(buf, Owner::Stack);
        assert!(given.is_ok(), "the stack gave back buffer {buf}, which is not its own");
    }

    fn read(&self, buf: u32, offset: usize, out: &mut [u8]) {
        inside(self.0.buffers().read(buf, offset, out));
    }

    fn write(&mut self, buf: u32, offset: usize, data: &[u8]) {
        inside(self.0.buffers().write(buf, offset, data));
    }

    fn copy(&mut self, from: u32, from_offset: usize, to: u32, to_offset: usize, len: usize) {
        inside(self.0.buffers().copy(from, from_offset, to, to_offset, len));
    }

    fn sum(&self, buf: u32, offset: usize, len: usize) -> u16 {
        inside(self.0.buffers().sum(buf, offset, len))
    }
}

/// A range that the host made up itself: outside a buffer, it is an error of
/// the host's, never of the input's.
#[inline]
#[track_caller]
fn inside<T>(access: Result<T, RangeError>) -> T {
    match access {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}
