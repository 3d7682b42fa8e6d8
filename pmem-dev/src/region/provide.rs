//! Finding a guest's region wherever its bytes have survived: in its file, or its VM's
//! segment, in its mirror, in both, or in neither.
//!
//! | file | mirror | what is done |
//! | --- | --- | --- |
//! | - | - | both are created |
//! | there | - | the mirror is created from the file |
//! | - | there | the region is restored from the mirror: the power was lost |
//! | there | there | the newer one is copied to the other |
//!
//! The superblocks' sequences say which one is newer. If they are equal and the
//! region was left open, the memory of that time decides: in the same start of
//! the system the file has all that its mirror has, and later stores too; after
//! another start only the mirror is sure to have what was promised.
//!
//! Both superblocks are written last, so whatever ends the process on the way,
//! the next one comes to the same decision.

use std::path::PathBuf;

use paste_abi::superblock::{STATE_CLEAN, STATE_OPEN, Superblock};

use super::error::RegionError;
use super::mirror::{Mirror, OldMirror, Progress};
use super::{Backing, Expect, Identity, Opened, Region};
use crate::domain::Domain;
use crate::layout::Geometry;
use crate::sys::{self, Os, System};
use crate::uuid::Uuid;

/// A region as it is to be.
#[derive(Clone, Debug)]
pub struct Spec<'a> {
    /// Where its bytes are while it is served.
    pub backing: Backing,
    /// Its mirror's file, if it has one.
    pub mirror: Option<PathBuf>,
    /// Its layout when it is new. One that exists must have the same size and size
    /// of buffers, and keeps its own layout.
    pub geometry: Geometry,
    /// Who it belongs to; identity and time are those of a new one.
    pub identity: Identity<'a>,
}

/// Where the bytes of a region came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is new.
    New,
    /// They were in its file. If there is a mirror, it has them too now.
    File(Opened),
    /// They were in its mirror alone, or newer there.
    Mirror(Opened),
}

/// A region that is open, and how it was found.
#[derive(Debug)]
pub struct Provided {
    /// The region.
    pub region: Region,
    /// Where its bytes came from.
    pub origin: Origin,
    /// The files that were made for it: to be removed again by who finds no use
    /// for the region after all.
    pub made: Vec<PathBuf>,
}

/// The files that were made so far. Dropping removes them: what they hold is
/// elsewhere, or nothing.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            // The error that led here is the one to report.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Opens, restores or creates a region and its mirror, and marks both as open.
/// `progress` hears of the bytes that are copied.
///
/// # Errors
/// [`RegionError`]; files that were made are removed again.
pub fn provide(spec: &Spec<'_>, progress: Progress<'_>) -> Result<Provided, RegionError> {
    provide_on(&Os, spec, progress)
}

pub(super) fn provide_on(
    on: &dyn System,
    spec: &Spec<'_>,
    progress: Progress<'_>,
) -> Result<Provided, RegionError> {
    let expect = Expect {
        guest: spec.identity.guest,
        uuid: None,
        size: Some(spec.geometry.file_len()),
        buffer_size: Some(spec.geometry.buffer_size()),
    };
    let loaded = match &spec.backing {
        Backing::Memory(_) => None,
        Backing::File(path) => Some(Region::load(on, path, &expect)),
        Backing::Segment(segment) => Some(Region::load_segment(on, segment, &expect)),
    };
    let file = match loaded {
        None | Some(Err(RegionError::NotFound { .. })) => None,
        Some(other) => Some(other?),
    };
    let mut made = Made::default();
    let (mut region, origin) = match &spec.mirror {
        None => match file {
            Some((region, opened)) => (region, Origin::File(opened)),
            None => {
                let region = create(on, spec, &spec.identity, spec.geometry, &mut made, progress)?;
                if region.domain() != Domain::None && !region.is_device() {
                    region.settle(progress)?;
                }
                (region, Origin::New)
            }
        },
        Some(path) => {
            // With the file's identity, if there is one.
            let uuid = file.as_ref().map(|(region, _)| region.uuid());
            let old = Mirror::open(path, &Expect { uuid, ..expect })?;
            match (file, old) {
                (file, None) => {
                    let (mut region, origin) = match file {
                        Some((region, opened)) => (region, Origin::File(opened)),
                        None => (
                            create(on, spec, &spec.identity, spec.geometry, &mut made, progress)?,
                            Origin::New,
                        ),
                    };
                    let mirror = Mirror::create(path, &region)?;
                    made.0.push(path.clone());
                    mirror.rewrite(&region.guest, progress)?;
                    region.mirror = Some(mirror);
                    (region, origin)
                }
                (None, Some(old)) => restore_lost(on, spec, old, &mut made, progress)?,
                (Some(file), Some(old)) => reconcile(file, old, progress)?,
            }
        }
    };
    if let Some(mirror) = &mut region.mirror {
        made.0.extend(mirror.prepare(&region.block)?.filter(|_| made.0.contains(mirror.path())));
    }
    // A new region has been marked when it was created, but not its mirror.
    if origin != Origin::New || region.mirror.is_some() {
        region.mark(STATE_OPEN)?;
    }
    Ok(Provided { region, origin, made: std::mem::take(&mut made.0) })
}

fn create(
    on: &dyn System,
    spec: &Spec<'_>,
    identity: &Identity<'_>,
    geometry: Geometry,
    made: &mut Made,
    progress: Progress<'_>,
) -> Result<Region, RegionError> {
    let region = Region::create_on(on, &spec.backing, geometry, identity, progress)?;
    if let Backing::File(path) = &spec.backing
        && !region.is_device()
    {
        made.0.push(path.clone());
    }
    Ok(region)
}

/// Restores a region of which only the mirror is left.
fn restore_lost(
    on: &dyn System,
    spec: &Spec<'_>,
    old: OldMirror,
    made: &mut Made,
    progress: Progress<'_>,
) -> Result<(Region, Origin), RegionError> {
    if old.is_unfinished() {
        return Err(RegionError::Unfinished { region: old.mirror.name().to_owned() });
    }
    let block = &old.found.block;
    let identity = Identity {
        guest: spec.identity.guest,
        uuid: Uuid(block.uuid),
        created_ns: block.created_ns.get(),
    };
    // It begins with the sequence 1, so the mirror is newer until it is whole.
    let region = create(on, spec, &identity, old.found.geometry, made, progress)?;
    restore(region, old, progress)
}

/// Copies the newer one of file and mirror to the other, where they may differ.
fn reconcile(
    (mut region, opened): (Region, Opened),
    old: OldMirror,
    progress: Progress<'_>,
) -> Result<(Region, Origin), RegionError> {
    if old.found.geometry != region.geometry {
        return Err(RegionError::MirrorLayout { region: old.mirror.name().to_owned() });
    }
    match newer(&region.block, &old.found.block, sys::boot_id()) {
        Newer::Mirror => return restore(region, old, progress),
        Newer::File => old.mirror.rewrite(&region.guest, progress)?,
        Newer::Neither => {}
    }
    region.mirror = Some(old.mirror);
    Ok((region, Origin::File(opened)))
}

fn restore(
    mut region: Region,
    old: OldMirror,
    progress: Progress<'_>,
) -> Result<(Region, Origin), RegionError> {
    let opened = Opened { clean: old.is_clean(), repaired: old.found.damaged };
    old.mirror.settle(&old.found.block)?;
    old.mirror.restore(&region.guest, progress)?;
    region.guest.sync().map_err(|e| super::error::system(&region.name, "write to", e))?;
    // The next sequence has to be beyond that of both.
    region.block.sequence = old.found.block.sequence;
    region.mirror = Some(old.mirror);
    Ok((region, Origin::Mirror(opened)))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Newer {
    File,
    Mirror,
    Neither,
}

/// Which of the two has more. A file in memory holds what its mirror lacks only while the
/// system has not started anew; where that is not known, what is durable counts.
fn newer(file: &Superblock, mirror: &Superblock, boot: Option<[u8; 16]>) -> Newer {
    match file.sequence.get().cmp(&mirror.sequence.get()) {
        std::cmp::Ordering::Greater => Newer::File,
        std::cmp::Ordering::Less => Newer::Mirror,
        std::cmp::Ordering::Equal => {
            let clean = |block: &Superblock| block.state.get() == STATE_CLEAN;
            if clean(file) && clean(mirror) {
                Newer::Neither
            } else if boot == Some(file.boot) {
                Newer::File
            } else {
                Newer::Mirror
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;

    fn block(sequence: u64, state: u32, boot: [u8; 16]) -> Superblock {
        let mut block = Superblock::new_zeroed();
        (block.sequence, block.state, block.boot) = (sequence.into(), state.into(), boot);
        block
    }

    #[test]
    fn the_file_is_newer_only_in_the_start_of_the_system_that_wrote_it() {
        let (open, clean) = (STATE_OPEN, STATE_CLEAN);
        let (this, other, untold) = ([1; 16], [2; 16], [0; 16]);
        for (file, mirror, boot, newer_one) in [
            (block(2, open, other), block(1, open, other), Some(this), Newer::File),
            (block(1, open, this), block(2, open, this), Some(this), Newer::Mirror),
            (block(1, clean, other), block(1, clean, other), Some(this), Newer::Neither),
            (block(1, clean, untold), block(1, clean, untold), None, Newer::Neither),
            (block(1, open, this), block(1, open, this), Some(this), Newer::File),
            (block(1, open, this), block(1, open, this), Some(other), Newer::Mirror),
            // The system did not tell, then or now.
            (block(1, open, untold), block(1, open, untold), Some(this), Newer::Mirror),
            (block(1, open, this), block(1, open, this), None, Newer::Mirror),
            (block(1, open, untold), block(1, open, untold), None, Newer::Mirror),
        ] {
            assert_eq!(newer(&file, &mirror, boot), newer_one, "{file:?} {mirror:?} {boot:?}");
        }
    }
}
