//! What the tests of several modules need.

use paste_pmem::{Backing, Buffers, Geometry, HugePages, Identity, Region, Uuid};

/// A region of `size` bytes in memory, with buffers of 2048 bytes.
pub fn region(size: u64) -> Region {
    let identity = Identity { guest: "test", uuid: Uuid([1; 16]), created_ns: 0 };
    let geometry = Geometry::new(size, 2048).expect("a size in steps of 2 MiB");
    Region::create(&Backing::Memory(HugePages::No), geometry, &identity).expect("memory for a test")
}

/// `count` buffers of 2048 bytes in memory of their own.
pub fn buffers(count: u32) -> Buffers {
    let size = (u64::from(count) * 2048 + (8 << 20)).next_multiple_of(2 << 20);
    let region = region(size);
    let all = region.buffers();
    let start = region.geometry().buffers().offset as usize;
    Buffers::new(region.mapping().clone(), start, all.size(), count).expect("fewer than all")
}
