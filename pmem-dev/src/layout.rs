//! Where the parts of a region lie: computed for a new one, and judged for one
//! that was read from a file.
//!
//! Everything after the host's head is mapped by the guest, in this order: a
//! page with the guest's copy of the superblock, the claim table, the log, the
//! index, room for rings, the buffers. [`Geometry`] cannot hold a layout that
//! is not sound: the one door for a superblock is [`Geometry::judge`].

use paste_abi::superblock::{Extent, HOST_HEAD_LEN, Superblock};

/// Bytes of a page: parts begin at multiples of it.
pub(crate) const PAGE: u64 = 4096;
/// Region sizes are multiples of this: what device DAX maps at a time.
pub const SIZE_STEP: u64 = 2 << 20;
/// The smallest region, with the host's head.
pub const SIZE_MIN: u64 = 4 << 20;
/// The largest region. Its buffers' owners take 200 MiB to 400 MiB of the host.
pub const SIZE_MAX: u64 = 64 << 30;
/// The smallest buffer: a full Ethernet frame with room for headers.
pub const BUFFER_SIZE_MIN: u32 = 2048;
/// The largest buffer: what a slot's 16-bit offset can address.
pub const BUFFER_SIZE_MAX: u32 = 65536;

/// Buffers start at a multiple of [`SIZE_STEP`] in regions from here on: less
/// than 1/32 of the region is lost to it.
const ALIGNED_FROM: u64 = 64 << 20;
/// The log's and the index's share of what the guest maps.
const LOG_SHARE: u64 = 32;
const INDEX_SHARE: u64 = 64;
/// The ring area's share, and its bounds.
const RINGS_SHARE: u64 = 64;
const RINGS_MIN: u64 = 64 << 10;
const RINGS_MAX: u64 = 2 << 20;

/// A part of what the guest maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Part {
    /// From the start of the guest's mapping, in bytes.
    pub offset: u64,
    /// Length in bytes; 0 where the part is absent.
    pub len: u64,
}

impl Part {
    /// The first byte after the part.
    pub const fn end(self) -> u64 {
        self.offset + self.len
    }

    fn extent(self) -> Extent {
        Extent { offset: self.offset.into(), len: self.len.into() }
    }
}

/// Why a region cannot be laid out as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GeometryError {
    /// The size is out of bounds or no multiple of [`SIZE_STEP`].
    #[error(
        "region size {size} is not a multiple of {SIZE_STEP} from {SIZE_MIN} to {SIZE_MAX} bytes"
    )]
    Size {
        /// Size asked for.
        size: u64,
    },
    /// The buffer size is out of bounds or no power of two.
    #[error(
        "buffer size {buffer_size} is not a power of two from {BUFFER_SIZE_MIN} to \
         {BUFFER_SIZE_MAX}"
    )]
    BufferSize {
        /// Buffer size asked for.
        buffer_size: u32,
    },
}

/// Why the layout in a superblock is not sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A size that no region has.
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    /// The lengths of file and guest's mapping do not fit each other.
    #[error("{guest_len} bytes for the guest in a file of {file_len}")]
    GuestLen {
        /// Bytes of the guest's mapping.
        guest_len: u64,
        /// Bytes of the file.
        file_len: u64,
    },
    /// A part is not aligned, or not inside the guest's mapping after its
    /// superblock, or absent though needed.
    #[error("{part}: {len} bytes at {offset:#x} cannot be")]
    Part {
        /// Name of the part.
        part: &'static str,
        /// Its offset.
        offset: u64,
        /// Its length.
        len: u64,
    },
    /// Two parts share bytes.
    #[error("{first} and {second} overlap")]
    Overlap {
        /// The part that begins first.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// The number of buffers does not fit the parts' lengths.
    #[error("{count} buffers do not fit the lengths of the buffer area or the claim table")]
    Count {
        /// Number of buffers.
        count: u32,
    },
}

/// A sound layout of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    file_len: u64,
    buffer_size: u32,
    buffer_count: u32,
    claims: Part,
    log: Part,
    index: Part,
    rings: Part,
    buffers: Part,
}

impl Geometry {
    /// Lays out a region of `size` bytes, the host's head included, with
    /// buffers of `buffer_size` bytes.
    ///
    /// # Errors
    /// [`GeometryError`] names the bound that is broken.
    pub fn new(size: u64, buffer_size: u32) -> Result<Geometry, GeometryError> {
        check_sizes(size, buffer_size)?;
        let guest_len = size - HOST_HEAD_LEN;
        let mut end = PAGE;
        let mut part = |len: u64| {
            let part = Part { offset: end, len: len.next_multiple_of(PAGE) };
            end = part.end();
            part
        };
        // One bit for each buffer that could fit if there were nothing else.
        let claims = part((guest_len / u64::from(buffer_size)).div_ceil(8));
        let mut log = part(guest_len / LOG_SHARE);
        let mut index = part(guest_len / INDEX_SHARE);
        let mut rings = part((guest_len / RINGS_SHARE).clamp(RINGS_MIN, RINGS_MAX));
        let align = if guest_len >= ALIGNED_FROM { SIZE_STEP } else { PAGE };
        // What alignment would lose goes to the log.
        let slack = end.next_multiple_of(align) - end;
        log.len += slack;
        index.offset += slack;
        rings.offset += slack;
        let offset = end + slack;
        let buffer_count = (guest_len - offset) / u64::from(buffer_size);
        let buffers = Part { offset, len: buffer_count * u64::from(buffer_size) };
        Ok(Geometry {
            file_len: size,
            buffer_size,
            // SIZE_MAX / BUFFER_SIZE_MIN fits by far.
            buffer_count: buffer_count as u32,
            claims,
            log,
            index,
            rings,
            buffers,
        })
    }

    /// Judges the layout that a superblock tells.
    ///
    /// # Errors
    /// [`LayoutError`] names the first thing that is wrong.
    pub fn judge(block: &Superblock) -> Result<Geometry, LayoutError> {
        let file_len = block.file_len.get();
        let guest_len = block.guest_len.get();
        let buffer_size = block.buffer_size.get();
        let buffer_count = block.buffer_count.get();
        check_sizes(file_len, buffer_size)?;
        if guest_len != file_len - HOST_HEAD_LEN {
            return Err(LayoutError::GuestLen { guest_len, file_len });
        }
        let part = |name: &'static str, extent: &Extent, needed: bool| {
            let (offset, len) = (extent.offset.get(), extent.len.get());
            let absent = len == 0 && !needed;
            let inside = offset >= PAGE
                && offset.is_multiple_of(PAGE)
                && offset.checked_add(len).is_some_and(|end| end <= guest_len);
            if (len == 0 && needed) || !(inside || absent) {
                return Err(LayoutError::Part { part: name, offset, len });
            }
            Ok(if absent { Part::default() } else { Part { offset, len } })
        };
        let claims = part("claim table", &block.claims, true)?;
        let log = part("log", &block.log, false)?;
        let index = part("index", &block.index, false)?;
        let rings = part("ring area", &block.rings, false)?;
        let buffers = part("buffer area", &block.buffers, true)?;

        let mut parts = [
            ("claim table", claims),
            ("log", log),
            ("index", index),
            ("ring area", rings),
            ("buffer area", buffers),
        ];
        parts.sort_by_key(|(_, part)| (part.offset, part.len));
        for pair in parts.windows(2) {
            let [(first, a), (second, b)] = [pair[0], pair[1]];
            if a.end() > b.offset {
                return Err(LayoutError::Overlap { first, second });
            }
        }
        if u64::from(buffer_count) * u64::from(buffer_size) != buffers.len
            || u64::from(buffer_count).div_ceil(8) > claims.len
        {
            return Err(LayoutError::Count { count: buffer_count });
        }
        Ok(Geometry { file_len, buffer_size, buffer_count, claims, log, index, rings, buffers })
    }

    /// Writes the layout into a superblock.
    pub(crate) fn fill(&self, block: &mut Superblock) {
        block.file_len = self.file_len.into();
        block.guest_len = self.guest_len().into();
        block.buffer_size = self.buffer_size.into();
        block.buffer_count = self.buffer_count.into();
        block.claims = self.claims.extent();
        block.log = self.log.extent();
        block.index = self.index.extent();
        block.rings = self.rings.extent();
        block.buffers = self.buffers.extent();
    }

    /// Bytes of the whole file, the host's head included.
    pub const fn file_len(&self) -> u64 {
        self.file_len
    }

    /// Bytes that the guest maps.
    pub const fn guest_len(&self) -> u64 {
        self.file_len - HOST_HEAD_LEN
    }

    /// Bytes of one buffer.
    pub const fn buffer_size(&self) -> u32 {
        self.buffer_size
    }

    /// Number of buffers.
    pub const fn buffer_count(&self) -> u32 {
        self.buffer_count
    }

    /// The claim table: one bit per buffer.
    pub const fn claims(&self) -> Part {
        self.claims
    }

    /// The write-ahead log.
    pub const fn log(&self) -> Part {
        self.log
    }

    /// The index.
    pub const fn index(&self) -> Part {
        self.index
    }

    /// Room for rings that a guest driver shares with the host.
    pub const fn rings(&self) -> Part {
        self.rings
    }

    /// The buffers.
    pub const fn buffers(&self) -> Part {
        self.buffers
    }
}

fn check_sizes(size: u64, buffer_size: u32) -> Result<(), GeometryError> {
    if !(SIZE_MIN..=SIZE_MAX).contains(&size) || !size.is_multiple_of(SIZE_STEP) {
        return Err(GeometryError::Size { size });
    }
    if !(BUFFER_SIZE_MIN..=BUFFER_SIZE_MAX).contains(&buffer_size) || !buffer_size.is_power_of_two()
    {
        return Err(GeometryError::BufferSize { buffer_size });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::FromZeros;

    use super::*;

    fn block(geometry: &Geometry) -> Superblock {
        let mut block = Superblock::new_zeroed();
        geometry.fill(&mut block);
        block
    }

    proptest! {
        #[test]
        fn every_layout_is_judged_sound(steps in 2u64..=4096, shift in 11u32..=16) {
            let geometry = Geometry::new(steps * SIZE_STEP, 1 << shift).unwrap();
            prop_assert_eq!(Geometry::judge(&block(&geometry)), Ok(geometry));
            // At least four fifths of what the guest maps hold payload.
            prop_assert!(geometry.buffers().len * 5 >= geometry.guest_len() * 4);
        }

        #[test]
        fn no_superblock_panics(bytes in proptest::array::uniform32(any::<u64>())) {
            // 256 bytes hold every field that the layout reads.
            let mut block = Superblock::new_zeroed();
            let image = zerocopy::IntoBytes::as_mut_bytes(&mut block);
            for (to, word) in image.chunks_exact_mut(8).zip(bytes) {
                to.copy_from_slice(&word.to_le_bytes());
            }
            let _ = Geometry::judge(&block);
        }
    }

    #[test]
    fn the_bounds_hold() {
        assert_eq!(Geometry::new(SIZE_MIN, 2048).unwrap().file_len(), SIZE_MIN);
        assert!(Geometry::new(SIZE_MAX, BUFFER_SIZE_MAX).is_ok());
        for size in [0, SIZE_MIN - SIZE_STEP, SIZE_MIN + 4096, SIZE_MAX + SIZE_STEP, u64::MAX] {
            assert_eq!(Geometry::new(size, 2048), Err(GeometryError::Size { size }));
        }
        for buffer_size in [0, 1024, 3000, 131_072, u32::MAX] {
            assert_eq!(
                Geometry::new(SIZE_MIN, buffer_size),
                Err(GeometryError::BufferSize { buffer_size })
            );
        }
    }

    #[test]
    fn buffers_are_aligned_to_huge_pages_where_that_costs_little() {
        let large = Geometry::new(ALIGNED_FROM + HOST_HEAD_LEN, 2048).unwrap();
        assert!(large.buffers().offset.is_multiple_of(SIZE_STEP));
        let small = Geometry::new(ALIGNED_FROM, 2048).unwrap();
        assert!(!small.buffers().offset.is_multiple_of(SIZE_STEP));
    }

    #[test]
    fn each_kind_of_damage_is_named() {
        let sound = Geometry::new(64 << 20, 2048).unwrap();
        let judge = |change: &dyn Fn(&mut Superblock)| {
            let mut block = block(&sound);
            change(&mut block);
            Geometry::judge(&block).unwrap_err()
        };
        assert!(matches!(judge(&|b| b.file_len = 1.into()), LayoutError::Geometry(_)));
        assert!(matches!(judge(&|b| b.buffer_size = 1.into()), LayoutError::Geometry(_)));
        assert!(matches!(judge(&|b| b.guest_len = 4096.into()), LayoutError::GuestLen { .. }));
        for (part, offset, len) in [
            ("inside the superblock's page", 0, PAGE),
            ("unaligned", PAGE + 8, PAGE),
            ("past the end", PAGE, u64::MAX),
            ("sum overflows", u64::MAX - PAGE + 1, 2 * PAGE),
        ] {
            let log = Extent { offset: offset.into(), len: len.into() };
            assert!(
                matches!(judge(&|b| b.log = log), LayoutError::Part { part: "log", .. }),
                "{part}"
            );
        }
        assert!(matches!(judge(&|b| b.claims.len = 0.into()), LayoutError::Part { .. }));
        assert_eq!(
            judge(&|b| b.rings = b.log),
            LayoutError::Overlap { first: "log", second: "ring area" }
        );
        assert!(matches!(judge(&|b| b.buffer_count = 7.into()), LayoutError::Count { .. }));
        // Parts that later versions of the host may leave out.
        let mut without = block(&sound);
        without.log = Extent { offset: 0.into(), len: 0.into() };
        assert_eq!(Geometry::judge(&without).unwrap().log(), Part::default());
    }
}
