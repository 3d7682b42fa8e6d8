//! A split ring (VIRTIO 1.2 section 2.7) in memory that is read and written as
//! a file: every entry is the test's to spoil.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

use super::shared_memory;

/// Flags of a descriptor.
pub mod flag {
    /// Another descriptor follows.
    pub const NEXT: u16 = 1;
    /// The device writes.
    pub const WRITE: u16 = 2;
    /// A table of descriptors.
    pub const INDIRECT: u16 = 4;
}

/// Memory of a guest, as one file.
#[derive(Debug)]
pub struct Memory(File);

impl Memory {
    /// `len` bytes of zeros.
    pub fn new(len: u64) -> Memory {
        Memory(shared_memory(len))
    }

    /// Another hand on the same memory.
    pub fn again(&self) -> Memory {
        Memory(self.0.try_clone().expect("a descriptor can be duplicated"))
    }

    /// Reads bytes.
    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut out = [0; N];
        self.0.read_exact_at(&mut out, at).expect("inside the memory");
        out
    }

    /// Reads into `out`.
    pub fn read_into(&self, at: u64, out: &mut [u8]) {
        self.0.read_exact_at(out, at).expect("inside the memory");
    }

    /// Writes bytes.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.0.write_all_at(bytes, at).expect("inside the memory");
    }

    /// Cuts the memory off under whoever has mapped it.
    pub fn truncate(&self) {
        self.0.set_len(0).expect("a file can be cut");
    }
}

impl AsFd for Memory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A descriptor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Descriptor {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// See [`flag`].
    pub flags: u16,
    /// The next one's index.
    pub next: u16,
}

/// A ring with a buffer for each of its descriptors.
#[derive(Debug)]
pub struct Ring {
    memory: Memory,
    /// Where it begins in the memory, and what the guest address of that is.
    base: u64,
    address: u64,
    avail: u16,
    used: u16,
}

impl Ring {
    /// Descriptors.
    pub const SIZE: u16 = 256;
    /// Bytes of each buffer.
    pub const BUFFER: u32 = 2048;
    /// Where the available ring begins, from the ring's base.
    pub const AVAIL: u64 = 0x1000;
    /// Where the used ring begins.
    pub const USED: u64 = 0x2000;
    const BUFFERS: u64 = 0x4000;
    /// Bytes of the ring and its buffers.
    pub const LEN: u64 = Ring::BUFFERS + Ring::SIZE as u64 * Ring::BUFFER as u64;

    /// A ring at `base`, where the guest address is `address`.
    pub fn new(memory: Memory, base: u64, address: u64) -> Ring {
        Ring { memory, base, address, avail: 0, used: 0 }
    }

    /// Guest address of the ring's base.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Guest address of a buffer.
    pub fn buffer(&self, index: u16) -> u64 {
        self.address + Ring::BUFFERS + u64::from(index) * u64::from(Ring::BUFFER)
    }

    /// Writes a descriptor.
    pub fn set(&self, index: u16, descriptor: Descriptor) {
        let Descriptor { addr, len, flags, next } = descriptor;
        let at = self.base + u64::from(index) * 16;
        let words = u128::from(addr)
            | u128::from(len) << 64
            | u128::from(flags) << 96
            | u128::from(next) << 112;
        self.memory.write(at, &words.to_le_bytes());
    }

    /// Fills a buffer.
    pub fn fill(&self, index: u16, bytes: &[u8]) {
        self.memory.write(self.base + (self.buffer(index) - self.address), bytes);
    }

    /// Reads a buffer.
    pub fn contents(&self, index: u16, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.memory.read_into(self.base + (self.buffer(index) - self.address), &mut out);
        out
    }

    /// Makes the chain that begins with this descriptor available.
    pub fn offer(&mut self, head: u16) {
        let at = Ring::AVAIL + 4 + u64::from(self.avail % Ring::SIZE) * 2;
        self.memory.write(self.base + at, &head.to_le_bytes());
        self.jump(1);
    }

    /// Moves the available index without offering anything.
    pub fn jump(&mut self, by: u16) {
        self.avail = self.avail.wrapping_add(by);
        self.memory.write(self.base + Ring::AVAIL + 2, &self.avail.to_le_bytes());
    }

    /// Chains that were offered and are not taken back.
    pub fn in_flight(&self) -> u16 {
        self.avail.wrapping_sub(self.used)
    }

    /// Takes a used chain back: its head, and the bytes that were written.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        let index = u16::from_le_bytes(self.memory.read(self.base + Ring::USED + 2));
        if index == self.used {
            return None;
        }
        let at = Ring::USED + 4 + u64::from(self.used % Ring::SIZE) * 8;
        let entry = u64::from_le_bytes(self.memory.read(self.base + at));
        self.used = self.used.wrapping_add(1);
        Some((entry as u16, (entry >> 32) as u32))
    }
}
