//! The superblock's two copies: sealing, choosing, storing.
//!
//! They are written one after the other, each reaching storage before the next
//! is begun, so that a crash tears at most one of them. On opening, the sound
//! copy with the higher sequence counts; a damaged one is written anew.

use std::fs::File;
use std::os::unix::fs::FileExt;

use paste_abi::superblock::{
    COPY_OFFSETS, LAYOUT_VERSION, MAGIC, STATE_CLEAN, STATE_OPEN, Superblock,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::layout::{Geometry, LayoutError};
use crate::sys::{self, Mapping};
use crate::uuid::Uuid;

/// Why the superblocks of a file do not make it a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SuperblockError {
    /// Neither copy begins like a superblock.
    #[error("it is not a region: no superblock is in it")]
    Absent,
    /// Copies are there, and the checksum of neither is right.
    #[error("both copies of its superblock are damaged")]
    Damaged,
    /// A layout of another version.
    #[error("its layout has version {0}, this program knows version {LAYOUT_VERSION}")]
    Version(u32),
    /// A state that version 1 does not have.
    #[error("its state {0} is unknown")]
    State(u32),
    /// The guest's name is not UTF-8 filled up with zeros.
    #[error("the guest's name in it is not UTF-8 text")]
    Name,
    /// The layout is not sound.
    #[error("its layout is not sound: {0}")]
    Layout(#[from] LayoutError),
}

/// A guest's name that a superblock cannot hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a guest's name has 1 to 64 bytes and no NUL")]
pub struct NameError;

/// A superblock found sound, and what its reading showed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub(crate) block: Superblock,
    pub(crate) geometry: Geometry,
    /// The copy, by its number, that was damaged.
    pub(crate) damaged: Option<usize>,
}

/// A superblock for a new region.
pub(crate) fn build(
    geometry: &Geometry,
    uuid: Uuid,
    guest: &str,
    created_ns: u64,
) -> Result<Superblock, NameError> {
    let mut block = Superblock::new_zeroed();
    block.magic = MAGIC;
    block.version = LAYOUT_VERSION.into();
    block.state = STATE_OPEN.into();
    block.uuid = uuid.0;
    block.sequence = 1.into();
    block.created_ns = created_ns.into();
    block.boot = sys::boot_id().unwrap_or_default();
    geometry.fill(&mut block);
    if guest.is_empty() || guest.contains('\0') {
        return Err(NameError);
    }
    block.guest.get_mut(..guest.len()).ok_or(NameError)?.copy_from_slice(guest.as_bytes());
    Ok(block)
}

/// The name in a superblock; `None` if it is not one.
pub(crate) fn guest(block: &Superblock) -> Option<&str> {
    let len = block.guest.iter().position(|&b| b == 0).unwrap_or(block.guest.len());
    let (name, rest) = block.guest.split_at(len);
    rest.iter().all(|&b| b == 0).then_some(())?;
    str::from_utf8(name).ok()
}

/// CRC-32C of everything before the field.
fn crc(block: &Superblock) -> u32 {
    let bytes = block.as_bytes();
    crc32c::crc32c(&bytes[..bytes.len() - size_of::<u32>()])
}

fn is_sound(block: &Superblock) -> bool {
    block.magic == MAGIC && block.crc.get() == crc(block)
}

/// Chooses between the two copies and judges the chosen one.
pub(crate) fn choose(copies: &[Superblock; 2]) -> Result<Found, SuperblockError> {
    let [first, second] = copies;
    let (block, damaged) = match (is_sound(first), is_sound(second)) {
        (true, true) if second.sequence.get() > first.sequence.get() => (second, None),
        (true, true) => (first, None),
        (true, false) => (first, Some(1)),
        (false, true) => (second, Some(0)),
        (false, false) if copies.iter().all(|copy| copy.magic != MAGIC) => {
            return Err(SuperblockError::Absent);
        }
        (false, false) => return Err(SuperblockError::Damaged),
    };
    if block.version.get() != LAYOUT_VERSION {
        return Err(SuperblockError::Version(block.version.get()));
    }
    if !matches!(block.state.get(), STATE_CLEAN | STATE_OPEN) {
        return Err(SuperblockError::State(block.state.get()));
    }
    guest(block).ok_or(SuperblockError::Name)?;
    let geometry = Geometry::judge(block)?;
    Ok(Found { block: *block, geometry, damaged })
}

/// Reads both copies from the host's head.
pub(crate) fn load(head: &Mapping) -> Result<Found, SuperblockError> {
    let mut copies = [Superblock::new_zeroed(); 2];
    for (copy, offset) in copies.iter_mut().zip(COPY_OFFSETS) {
        if !head.read_at(offset as usize, copy.as_mut_bytes()) {
            return Err(SuperblockError::Absent);
        }
    }
    choose(&copies)
}

/// Reads both copies from a file that is not mapped.
pub(crate) fn load_file(file: &File) -> std::io::Result<Result<Found, SuperblockError>> {
    let mut copies = [Superblock::new_zeroed(); 2];
    for (copy, offset) in copies.iter_mut().zip(COPY_OFFSETS) {
        file.read_exact_at(copy.as_mut_bytes(), offset)?;
    }
    Ok(choose(&copies))
}

/// Writes a superblock, sealed already, to both places in a file that is not
/// mapped.
pub(crate) fn store_file(block: &Superblock, file: &File) -> std::io::Result<()> {
    for offset in COPY_OFFSETS {
        file.write_all_at(block.as_bytes(), offset)?;
        file.sync_data()?;
    }
    Ok(())
}

/// Sets the checksum.
pub(crate) fn seal(block: &mut Superblock) {
    block.crc = crc(block).into();
}

/// Seals the superblock and writes it to both places in the head and to the
/// start of the guest's mapping.
pub(crate) fn store(
    block: &mut Superblock,
    head: &Mapping,
    guest: &Mapping,
) -> std::io::Result<()> {
    seal(block);
    for offset in COPY_OFFSETS {
        write(head, offset as usize, block)?;
        head.sync()?;
    }
    write(guest, 0, block)
}

fn write(to: &Mapping, offset: usize, block: &Superblock) -> std::io::Result<()> {
    if to.write_at(offset, block.as_bytes()) {
        Ok(())
    } else {
        Err(std::io::ErrorKind::InvalidInput.into())
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::*;

    fn sealed(sequence: u64) -> Superblock {
        let geometry = Geometry::new(8 << 20, 2048).unwrap();
        let mut block = build(&geometry, Uuid([7; 16]), "web1", 5).unwrap();
        block.sequence = sequence.into();
        block.crc = crc(&block).into();
        block
    }

    #[test]
    fn the_newer_sound_copy_counts() {
        for (a, b, newest) in [(3, 4, 4), (4, 3, 4), (5, 5, 5)] {
            let found = choose(&[sealed(a), sealed(b)]).unwrap();
            assert_eq!(found.block.sequence.get(), newest);
            assert_eq!(found.damaged, None);
        }
    }

    #[test]
    fn every_flipped_bit_of_one_copy_is_noticed_and_survived() {
        for copy in 0..2 {
            for bit in 0..512 * 8 {
                let mut copies = [sealed(9), sealed(9)];
                copies[copy].as_mut_bytes()[bit / 8] ^= 1 << (bit % 8);
                let found = choose(&copies).unwrap();
                assert_eq!(found.block, sealed(9));
                assert_eq!(found.damaged, Some(copy), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_flipped_byte_in_both_copies_is_an_error() {
        for byte in 0..512 {
            let mut copies = [sealed(9), sealed(9)];
            copies[0].as_mut_bytes()[byte] ^= 0xff;
            copies[1].as_mut_bytes()[511 - byte] ^= 0xff;
            let error = choose(&copies).unwrap_err();
            assert_eq!(error, SuperblockError::Damaged, "byte {byte}");
        }
    }

    #[test]
    fn files_that_are_no_regions_are_told_apart_from_damaged_ones() {
        let nothing = [Superblock::new_zeroed(); 2];
        assert_eq!(choose(&nothing).unwrap_err(), SuperblockError::Absent);
        let noise = Superblock::read_from_bytes(&[0x5a; 512]).unwrap();
        assert_eq!(choose(&[noise; 2]).unwrap_err(), SuperblockError::Absent);
    }

    #[test]
    fn a_sound_checksum_does_not_excuse_bad_values() {
        let with = |change: &dyn Fn(&mut Superblock)| {
            let mut block = sealed(1);
            change(&mut block);
            block.crc = crc(&block).into();
            choose(&[block; 2]).unwrap_err()
        };
        assert_eq!(with(&|b| b.version = 2.into()), SuperblockError::Version(2));
        assert_eq!(with(&|b| b.state = 9.into()), SuperblockError::State(9));
        assert_eq!(with(&|b| b.guest[0] = 0xff), SuperblockError::Name);
        assert_eq!(with(&|b| b.guest[40] = b'x'), SuperblockError::Name);
        assert!(matches!(
            with(&|b| b.buffers.offset = u64::MAX.into()),
            SuperblockError::Layout(_)
        ));
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        let geometry = Geometry::new(8 << 20, 2048).unwrap();
        let named = |name: &str| {
            build(&geometry, Uuid([7; 16]), name, 0).map(|b| guest(&b).map(str::to_owned))
        };
        let longest = "n".repeat(64);
        assert_eq!(named(&longest), Ok(Some(longest.clone())));
        assert_eq!(named(&"n".repeat(65)), Err(NameError));
        assert_eq!(named(""), Err(NameError));
        assert_eq!(named("a\0b"), Err(NameError));
    }
}
