//! Netmap's allocators (`netmap_mem2.c`): objects of three sorts in one range of memory,
//! each sort from a page's start, handed out from the lowest number up.

use std::ptr::NonNull;
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::super::abi::{PoolsInfo, RESERVED_BUFFERS};
use super::super::area::{Area, Keep};

pub(super) const PAGE: usize = 4096;
const HUGE: usize = 2 << 20;

/// Which pages of a caller's memory follow each other physically.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// Those of one huge page.
    Huge,
    /// None.
    Scattered,
}

/// Bytes that the model and its users see alike.
#[derive(Debug)]
pub(super) struct Raw {
    start: NonNull<u8>,
    len: usize,
    /// Of the model's own, in words that are aligned as rings are.
    own: Option<Box<[[u64; 16]]>>,
}

// SAFETY: an address belongs to no thread; the model is behind a lock.
unsafe impl Send for Raw {}
// SAFETY: as above; nothing hands out references into the memory.
unsafe impl Sync for Raw {}

impl Raw {
    pub(super) fn own(len: usize) -> Raw {
        let mut own = vec![[0_u64; 16]; len.div_ceil(128)].into_boxed_slice();
        let start = NonNull::new(own.as_mut_ptr().cast::<u8>()).unwrap();
        Raw { start, len, own: Some(own) }
    }

    /// A caller's memory, which outlives the port.
    fn of(start: u64, len: usize) -> Option<Raw> {
        let start = NonNull::new(start as *mut u8)?;
        Some(Raw { start, len, own: None })
    }

    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(offset + len <= self.len, "the model reads {offset}+{len} of {}", self.len);
        // SAFETY: the result lies in the memory.
        unsafe { self.start.as_ptr().add(offset) }
    }

    pub(super) fn read<T: FromBytes>(&self, offset: usize) -> T {
        let from = self.at(offset, size_of::<T>());
        // SAFETY: valid for the value's bytes, which may be any.
        unsafe { std::ptr::read_unaligned(from.cast()) }
    }

    pub(super) fn write<T: IntoBytes + Immutable>(&self, offset: usize, value: &T) {
        self.store(offset, value.as_bytes());
    }

    pub(super) fn load(&self, offset: usize, out: &mut [u8]) {
        let from = self.at(offset, out.len());
        // SAFETY: valid for these bytes; `out` is memory of the test's.
        unsafe { std::ptr::copy(from, out.as_mut_ptr(), out.len()) };
    }

    pub(super) fn store(&self, offset: usize, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: as in `load`.
        unsafe { std::ptr::copy(bytes.as_ptr(), to, bytes.len()) };
    }
}

/// Keeps a mapping of the model's memory.
struct Mapped(#[allow(dead_code, reason = "held, not read")] Arc<Raw>);

impl Keep for Mapped {}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Object {
    Free,
    Used,
    /// In pages that do not follow each other.
    Invalid,
}

/// One sort of objects.
#[derive(Debug)]
pub(super) struct ObjectPool {
    pub(super) offset: usize,
    pub(super) size: usize,
    objects: Vec<Object>,
}

impl ObjectPool {
    /// `netmap_obj_malloc`; where the object lies, and its number.
    pub(super) fn take(&mut self, len: usize) -> Option<(usize, u32)> {
        let index = self.objects.iter().position(|&object| object == Object::Free)?;
        (len <= self.size).then(|| {
            self.objects[index] = Object::Used;
            (self.offset + index * self.size, index as u32)
        })
    }

    /// `netmap_obj_free`; false where it complains: there is none, or it is free.
    pub(super) fn give(&mut self, index: u32) -> bool {
        match self.objects.get_mut(index as usize) {
            Some(object @ Object::Used) => {
                *object = Object::Free;
                true
            }
            _ => false,
        }
    }

    pub(super) fn total(&self) -> u32 {
        self.objects.len() as u32
    }
}

/// One allocator.
#[derive(Debug)]
pub(super) struct Mem {
    pub(super) id: u16,
    pub(super) raw: Arc<Raw>,
    pub(super) interfaces: ObjectPool,
    pub(super) rings: ObjectPool,
    pub(super) buffers: ObjectPool,
}

impl Mem {
    /// Memory of netmap's own: numbers and sizes of the three sorts.
    pub(super) fn own(id: u16, sorts: [(u32, usize); 3]) -> Mem {
        let mut end = 0;
        let pools = sorts.map(|(count, size)| {
            let objects = vec![Object::Free; count as usize];
            let pool = ObjectPool { offset: end, size, objects };
            end = (end + count as usize * size).next_multiple_of(PAGE);
            pool
        });
        let [interfaces, rings, buffers] = pools;
        Mem::with_reserved(id, Raw::own(end), interfaces, rings, buffers)
    }

    /// `netmap_mem_ext_create`, as far as it fits the memory.
    pub(super) fn external(
        id: u16,
        start: u64,
        info: &PoolsInfo,
        pages: Pages,
    ) -> Result<Mem, Errno> {
        let len = info.memsize as usize;
        let asked = [info.interfaces, info.rings, info.buffers];
        let all: u64 = asked.iter().map(|pool| u64::from(pool.count) * u64::from(pool.size)).sum();
        if all > info.memsize {
            return Err(Errno::NOMEM);
        }
        let raw = Raw::of(start, len).ok_or(Errno::FAULT)?;
        let follows = |page: usize| match pages {
            Pages::Huge => !(start as usize + (page + 1) * PAGE).is_multiple_of(HUGE),
            Pages::Scattered => false,
        };
        let mut end = 0;
        let mut lay = |(sort, pool): (usize, super::super::abi::PoolInfo)| {
            let size = pool.size as usize;
            // What is left over goes to buffers.
            let count = match sort {
                2 => (len - end) / size,
                _ => pool.count as usize,
            };
            let objects = (0..count)
                .map(|index| {
                    let first = (end + index * size) / PAGE;
                    let last = (end + (index + 1) * size - 1) / PAGE;
                    match (first..last).all(follows) {
                        true => Object::Free,
                        false => Object::Invalid,
                    }
                })
                .collect();
            let laid = ObjectPool { offset: end, size, objects };
            end = (end + count * size).next_multiple_of(PAGE);
            laid
        };
        let [a, b, c] = asked;
        let (interfaces, rings) = (lay((0, a)), lay((1, b)));
        let buffers = lay((2, c));
        let mem = Mem::with_reserved(id, raw, interfaces, rings, buffers);
        let none = |pool: &ObjectPool| pool.objects.iter().all(|&o| o != Object::Free);
        // netmap_mem_init_bitmaps
        if none(&mem.interfaces) || none(&mem.rings) || none(&mem.buffers) {
            return Err(Errno::NOMEM);
        }
        Ok(mem)
    }

    fn with_reserved(
        id: u16,
        raw: Raw,
        interfaces: ObjectPool,
        rings: ObjectPool,
        mut buffers: ObjectPool,
    ) -> Mem {
        for object in buffers.objects.iter_mut().take(RESERVED_BUFFERS as usize) {
            *object = Object::Used;
        }
        Mem { id, raw: Arc::new(raw), interfaces, rings, buffers }
    }

    /// Bytes of it all.
    pub(super) fn len(&self) -> usize {
        self.raw.len
    }

    /// What a process that maps it sees.
    pub(super) fn map(&self) -> Area {
        assert!(self.raw.own.is_some(), "whose memory it is has it mapped");
        let keep = Box::new(Mapped(Arc::clone(&self.raw)));
        // SAFETY: aligned to 128 bytes, and valid while the clone lives.
        unsafe { Area::new(self.raw.start, self.raw.len, keep) }
    }

    /// `NMB`: where a buffer lies; a bad number means the first one.
    pub(super) fn buffer(&self, index: u32) -> usize {
        let index = if index < self.buffers.total() { index as usize } else { 0 };
        self.buffers.offset + index * self.buffers.size
    }
}
