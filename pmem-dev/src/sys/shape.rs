//! What kind of file memory is mapped from: its length, and the units that it is
//! mapped in. Asked behind [`System`], so that tests have a device DAX where the
//! machine has none.

use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use super::os;

/// Which pages back a region that has no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HugePages {
    /// Pages of the usual size.
    #[default]
    No,
    /// Pages of 2 MiB from the kernel's reserve (`vm.nr_hugepages`); on Linux alone.
    TwoMiB,
}

/// A file, as who maps it has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Bytes that it has.
    pub(crate) len: u64,
    /// Mappings begin and end at multiples of this many bytes, a power of two.
    pub(crate) page: usize,
    /// A device DAX, or one that shows a segment: it can be mapped and nothing else. What
    /// is stored to it is synced by the CPU, and its length is not for us to change.
    pub(crate) is_device: bool,
}

/// Why it is not known how a file is mapped.
#[derive(Debug, thiserror::Error)]
pub enum ShapeError {
    /// it is a character device, but not device DAX
    #[error("it is a character device, but not device DAX")]
    NotDax,
    /// The kernel does not tell what has to be known.
    #[error("{}: {source}; is sysfs mounted?", path.display())]
    Sysfs {
        /// What was to be read.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No device is like this.
    #[error("the kernel tells of {size} bytes in units of {align}, which cannot be")]
    Unlikely {
        /// Bytes of the device.
        size: u64,
        /// Bytes of a unit.
        align: usize,
    },
    /// A system call failed.
    #[error("{call}: {source}")]
    System {
        /// The call.
        call: &'static str,
        /// Its error.
        source: std::io::Error,
    },
}

/// Why a descriptor is no segment of a VMM's.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// It is something else.
    #[error(
        "the descriptor is not a segment of memory: on FreeBSD that is a device in /dev/vmm.io, \
         elsewhere a memory file"
    )]
    NotMemory,
    /// Whoever made it could cut it.
    #[error("the segment can be cut: seal its memory file against shrinking (F_SEAL_SHRINK)")]
    Unsealed,
    /// It is of another size than was said.
    #[error("the segment has {have} bytes, {want} were announced")]
    Size {
        /// Bytes that it has.
        have: u64,
        /// Bytes that it was said to have.
        want: u64,
    },
    /// A system call failed.
    #[error("{call}: {source}")]
    System {
        /// The call.
        call: &'static str,
        /// Its error.
        source: std::io::Error,
    },
}

/// What the operating system says of files.
pub(crate) trait System {
    /// How this file is mapped.
    fn shape(&self, file: BorrowedFd<'_>) -> Result<Shape, ShapeError>;

    /// Whether stores to a shared mapping of this file are durable once they have
    /// left the CPU's cache; `page` is [`Shape::page`].
    fn is_dax(&self, file: BorrowedFd<'_>, page: usize) -> bool;
}

/// The one that this process runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Os;

impl System for Os {
    fn shape(&self, file: BorrowedFd<'_>) -> Result<Shape, ShapeError> {
        os::shape(file)
    }

    fn is_dax(&self, file: BorrowedFd<'_>, page: usize) -> bool {
        os::is_dax(file, page)
    }
}
