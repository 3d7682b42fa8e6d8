//! The superblock's two copies: sealing, choosing, storing.
//!
//! They are written one after the other, each reaching storage before the next
//! is begun, and first the one that does not count, so that a crash tears at most one
//! of them and never the last that is sound. On opening, the sound copy with the
//! higher sequence counts; a damaged one is written anew.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use paste_abi::superblock::{
    COPY_OFFSETS, LAYOUT_VERSION, MAGIC, STATE_CLEAN, STATE_OPEN, Superblock,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::layout::{Geometry, LayoutError};
use crate::medium::Medium;
use crate::storage::Storage;
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

/// The copy that counts, if one is sound, and whether the other is as well.
fn newest(copies: &[Superblock; 2]) -> Option<(usize, bool)> {
    let [first, second] = copies;
    Some(match (is_sound(first), is_sound(second)) {
        (true, true) if second.sequence.get() > first.sequence.get() => (1, true),
        (true, other) => (0, other),
        (false, true) => (1, false),
        (false, false) => return None,
    })
}

/// Chooses between the two copies and judges the chosen one.
pub(crate) fn choose(copies: &[Superblock; 2]) -> Result<Found, SuperblockError> {
    let Some((counts, both)) = newest(copies) else {
        let absent = copies.iter().all(|copy| copy.magic != MAGIC);
        return Err(if absent { SuperblockError::Absent } else { SuperblockError::Damaged });
    };
    let (block, damaged) = (&copies[counts], (!both).then_some(1 - counts));
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

/// The identity and the layout of a region, as its guest finds them at the start
/// of what it maps.
///
/// # Errors
/// [`SuperblockError`], as for a region's file.
pub fn guest_layout<M: Medium + ?Sized>(medium: &M) -> Result<(Uuid, Geometry), SuperblockError> {
    let mut block = Superblock::new_zeroed();
    medium.load(0, block.as_mut_bytes());
    let Found { block, geometry, .. } = choose(&[block; 2])?;
    Ok((Uuid(block.uuid), geometry))
}

fn copies(head: &Mapping) -> Option<[Superblock; 2]> {
    let mut copies = [Superblock::new_zeroed(); 2];
    let mut places = copies.iter_mut().zip(COPY_OFFSETS);
    places.all(|(copy, at)| head.read_at(at as usize, copy.as_mut_bytes())).then_some(copies)
}

fn copies_of_file(file: &File) -> io::Result<[Superblock; 2]> {
    let mut copies = [Superblock::new_zeroed(); 2];
    for (copy, offset) in copies.iter_mut().zip(COPY_OFFSETS) {
        file.read_exact_at(copy.as_mut_bytes(), offset)?;
    }
    Ok(copies)
}

/// Reads both copies from the host's head.
pub(crate) fn load(head: &Mapping) -> Result<Found, SuperblockError> {
    choose(&copies(head).ok_or(SuperblockError::Absent)?)
}

/// Reads the guest's copy from the start of what a guest maps.
pub(crate) fn load_given(start: &Mapping) -> Result<Found, SuperblockError> {
    let mut block = Superblock::new_zeroed();
    if !start.read_at(0, block.as_mut_bytes()) {
        return Err(SuperblockError::Absent);
    }
    choose(&[block; 2])
}

/// Reads both copies from a file that is not mapped.
pub(crate) fn load_file(file: &File) -> io::Result<Result<Found, SuperblockError>> {
    Ok(choose(&copies_of_file(file)?))
}

/// Writes a superblock, sealed already, over both copies, which are now like this.
fn replace(
    copies: &[Superblock; 2],
    block: &Superblock,
    storage: &mut impl Storage,
) -> io::Result<()> {
    let first = newest(copies).map_or(0, |(counts, _)| 1 - counts);
    for copy in [first, 1 - first] {
        storage.write_at(block.as_bytes(), COPY_OFFSETS[copy])?;
        storage.sync()?;
    }
    Ok(())
}

/// Writes a superblock, sealed already, to both places in a file that is not
/// mapped.
pub(crate) fn store_file(block: &Superblock, mut file: &File) -> io::Result<()> {
    replace(&copies_of_file(file)?, block, &mut file)
}

/// Sets the checksum.
pub(crate) fn seal(block: &mut Superblock) {
    block.crc = crc(block).into();
}

/// Seals the superblock and writes it to both places in the head and to the
/// start of the guest's mapping.
pub(crate) fn store(block: &mut Superblock, head: &Mapping, guest: &Mapping) -> io::Result<()> {
    seal(block);
    let now = copies(head).ok_or(io::ErrorKind::InvalidInput)?;
    replace(&now, block, &mut Head(head))?;
    write(guest, 0, block.as_bytes())
}

/// The host's head as storage.
struct Head<'a>(&'a Mapping);

impl Storage for Head<'_> {
    fn write_at(&mut self, data: &[u8], at: u64) -> io::Result<()> {
        write(self.0, at as usize, data)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync()
    }
}

fn write(to: &Mapping, offset: usize, data: &[u8]) -> io::Result<()> {
    if to.write_at(offset, data) { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromBytes;

    use super::*;
    use crate::crash::{Explorer, Recorder};
    use crate::medium::Medium;

    fn sealed(sequence: u64) -> Superblock {
        let geometry = Geometry::new(8 << 20, 2048).unwrap();
        let mut block = build(&geometry, Uuid([7; 16]), "web1", 5).unwrap();
        block.sequence = sequence.into();
        block.crc = crc(&block).into();
        block
    }

    /// A recorder that has the two copies and nothing else.
    struct Copies(Recorder);

    impl Copies {
        fn place(at: u64) -> u64 {
            if at == COPY_OFFSETS[0] { 0 } else { 512 }
        }

        fn read(medium: &Recorder) -> [Superblock; 2] {
            [0, 512].map(|at| {
                Superblock::read_from_bytes(&medium.image()[at..at + 512]).expect("512 bytes")
            })
        }
    }

    impl Storage for Copies {
        fn write_at(&mut self, data: &[u8], at: u64) -> io::Result<()> {
            self.0.store(Copies::place(at), data);
            self.0.flush(Copies::place(at), data.len() as u64);
            Ok(())
        }

        fn sync(&mut self) -> io::Result<()> {
            self.0.seal();
            self.0.reach_all();
            Ok(())
        }
    }

    /// The superblock counts up, and each crash of that is followed by another
    /// that repairs it, cut as well.
    #[test]
    fn it_survives_every_crash_and_no_bug_in_the_order() {
        let mut storage =
            Copies(Recorder::waiting([sealed(1).as_bytes(), sealed(1).as_bytes()].concat()));
        for sequence in 2..6 {
            let now = Copies::read(&storage.0);
            replace(&now, &sealed(sequence), &mut storage).unwrap();
            storage.0.mark(sequence);
        }
        let judge = |medium: &mut Recorder, marks: &[u64]| {
            let promised = marks.last().copied().unwrap_or(1);
            let now = Copies::read(medium);
            let found = choose(&now).map_err(|error| error.to_string())?;
            let sequence = found.block.sequence.get();
            // Recovery counts up too, and may have been cut.
            if sequence < promised || found.block != sealed(sequence) {
                return Err(format!("{sequence} with {promised} promised"));
            }
            let mut storage = Copies(medium.clone());
            replace(&now, &sealed(sequence + 1), &mut storage).map_err(|e| e.to_string())?;
            *medium = storage.0;
            Ok(())
        };
        let explorer = Explorer { seed: 5, exhaustive: 64, samples: 60, recovery_samples: 20 };
        let trace = storage.0.into_trace();
        let cases = explorer.explore(&trace, judge).unwrap();
        assert!(cases.recoveries > 1000, "{cases:?}");
        let once = Explorer { recovery_samples: 0, ..explorer };
        let mut mutants = trace.mutants();
        // The last copy that is written may be written at any time.
        mutants.retain(|mutant| mutant.step() + 4 < trace.ops.len());
        for mutant in mutants {
            let failure = once.explore(&trace.mutate(mutant), judge);
            assert!(failure.is_err(), "{mutant:?} was not found");
        }
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
