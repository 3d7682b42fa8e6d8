//! A segment: memory of a VMM's that a region lies in, given by a descriptor.
//!
//! Nobody locks it, as nobody else can open it: the VMM gives it to one process, and is
//! the one to know which. It begins as zeros, and outlives the process that serves it.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::error::{RegionError, system};
use super::file::{is_empty, map_head};
use super::{Expect, Opened, Region};
use crate::layout::SIZE_MIN;
use crate::superblock::{self, SuperblockError};
use crate::sys::{self, Os, SegmentError, Shape, System};

/// A segment that was given to this process, and found to be one.
#[derive(Clone, Debug)]
pub struct Segment {
    file: Arc<File>,
    shape: Shape,
}

impl Segment {
    /// The segment of `len` bytes behind a descriptor that came from a VMM.
    ///
    /// # Errors
    /// [`SegmentError`], if it is something else.
    pub fn new(fd: OwnedFd, len: u64) -> Result<Segment, SegmentError> {
        let shape = sys::segment_shape(fd.as_fd(), len)?;
        Ok(Segment { file: Arc::new(fd.into()), shape })
    }

    /// Whether a region of this guest, of this size and with buffers of this one, in bytes, is
    /// there or can be made. Writes nothing.
    ///
    /// # Errors
    /// [`RegionError`], if not.
    pub fn judge(&self, guest: &str, size: u64, buffer_size: u32) -> Result<(), RegionError> {
        let (size, buffer_size) = (Some(size), Some(buffer_size));
        let expect = Expect { guest, uuid: None, size, buffer_size };
        match Region::load_segment(&Os, self, &expect) {
            Ok(_) | Err(RegionError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn shape(&self) -> &Shape {
        &self.shape
    }

    /// A descriptor of its own, for a region of `size` bytes.
    pub(super) fn file(&self, name: &str, size: u64) -> Result<File, RegionError> {
        let have = self.shape.len;
        if have != size {
            return Err(RegionError::Size { region: name.to_owned(), have, want: size });
        }
        self.file.try_clone().map_err(|e| system(name, "duplicate", e))
    }
}

impl PartialEq for Segment {
    /// Whether it is the same descriptor.
    fn eq(&self, other: &Segment) -> bool {
        Arc::ptr_eq(&self.file, &other.file)
    }
}

impl Eq for Segment {}

/// What the region in a guest's segment is called in messages.
pub(super) fn name(guest: &str) -> String {
    format!("segment of {guest}")
}

impl Region {
    /// Opens the region in a segment, and writes nothing. One that holds nothing has none.
    pub(super) fn load_segment(
        on: &dyn System,
        segment: &Segment,
        expect: &Expect<'_>,
    ) -> Result<(Region, Opened), RegionError> {
        let region = name(expect.guest);
        let file = segment.file(&region, expect.size.unwrap_or(segment.shape.len))?;
        let shape = segment.shape;
        if shape.len < SIZE_MIN {
            return Err(RegionError::Size { region, have: shape.len, want: SIZE_MIN });
        }
        let head = map_head(&region, file.as_fd(), &shape, true)?;
        match superblock::load(&head) {
            Ok(found) => Region::found(on, region, (file, None), shape, (head, found), expect),
            Err(SuperblockError::Absent) => Err(match is_empty(&region, &file, &shape)? {
                true => RegionError::NotFound { region },
                false => RegionError::ForeignSegment { region },
            }),
            Err(error) => Err(RegionError::Superblock { region, error }),
        }
    }
}
