//! A region's file, or a mirror's, as it lies there: read, and never written.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use paste_abi::superblock::{HOST_HEAD_LEN, STATE_CLEAN};
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::error::{RegionError, reserve_error, system};
use super::file::{CHUNK, check_len, examine, map_given, map_guest, map_head, open_read_only};
use super::mirror::{Progress, replay};
use crate::claims::{self, Claims};
use crate::devdax;
use crate::domain::Domain;
use crate::layout::{Geometry, SIZE_MIN};
use crate::medium::{Medium, Ticket};
use crate::superblock::{self, Found, SuperblockError};
use crate::sys::{self, HugePages, Mapping, Os, System};
use crate::uuid::Uuid;

/// Something that is wrong with a region's file, and what can be done.
#[derive(Debug, thiserror::Error)]
pub enum Finding {
    /// One copy of the superblock is damaged.
    #[error("copy {0} of the superblock is damaged; recovery repairs it")]
    Superblock(usize),
    /// The block that a Linux guest looks for is damaged.
    #[error("the block that shows it to guests as a DAX device is damaged; recovery repairs it")]
    DaxBlock,
    /// The storage does not give its bytes.
    #[error("{len} bytes at {at:#x} cannot be read: {source}; restore the file from a backup")]
    Unreadable {
        /// Where in the file.
        at: u64,
        /// Bytes.
        len: usize,
        /// What the system said.
        source: std::io::Error,
    },
    /// Claims on buffers that do not exist.
    #[error("{0} claims are on buffers that do not exist; recovery clears them")]
    StrayClaims(u32),
}

/// A region's file, open for reading; or what this machine, as a guest, was given of
/// a region by its host.
#[derive(Debug)]
pub struct Image {
    name: String,
    file: File,
    in_use: bool,
    found: Found,
    head: Head,
    guest: Mapping,
    domain: Domain,
}

/// How the host's head is read, and what follows it.
#[derive(Debug)]
enum Head {
    /// From the file, so that an error of its storage is one and not a fault.
    File,
    /// As it is mapped.
    Device(Mapping),
    /// This machine is the guest, and has not got it.
    OnHost,
}

impl Image {
    /// Opens the file at `path`. Another process may be serving it: see
    /// [`Image::in_use`].
    ///
    /// # Errors
    /// [`RegionError`], also if the file is cut or no region at all.
    pub fn open(path: &Path) -> Result<Image, RegionError> {
        Image::open_on(&Os, path)
    }

    pub(super) fn open_on(on: &dyn System, path: &Path) -> Result<Image, RegionError> {
        let name = path.display().to_string();
        let file = open_read_only(path, &name)?;
        let shape = examine(on, &name, &file)?;
        // Kept as long as the file is open: nobody begins to serve it meanwhile.
        let in_use = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => false,
            Err(Errno::WOULDBLOCK) => true,
            Err(errno) => return Err(system(&name, "lock", errno.into())),
        };
        if shape.len < SIZE_MIN {
            return Err(RegionError::Size { region: name, have: shape.len, want: SIZE_MIN });
        }
        let wrong = |error| RegionError::Superblock { region: name.clone(), error };
        let (head, found) = if shape.is_device {
            let head = map_head(&name, file.as_fd(), &shape, false)?;
            match superblock::load(&head) {
                Err(SuperblockError::Absent) => (Head::OnHost, superblock::load_given(&head)),
                found => (Head::Device(head), found),
            }
        } else {
            (Head::File, superblock::load_file(&file).map_err(|e| system(&name, "read", e))?)
        };
        let found = found.map_err(wrong)?;
        let guest = if matches!(head, Head::OnHost) {
            map_given(&name, file.as_fd(), &shape, &found.geometry)?
        } else {
            check_len(&name, &found, &shape)?;
            let guest = map_guest(&name, file.as_fd(), &shape, &found.geometry, false)?;
            with_journal(path, &name, &found, &guest)?.unwrap_or(guest)
        };
        let domain =
            Domain::of(on, file.as_fd(), &shape).map_err(|e| system(&name, "examine", e))?;
        Ok(Image { name, file, in_use, found, head, guest, domain })
    }

    /// The file's name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether another process has it open as a region.
    pub fn in_use(&self) -> bool {
        self.in_use
    }

    /// Whether it was closed in good order.
    pub fn is_clean(&self) -> bool {
        self.found.block.state.get() == STATE_CLEAN
    }

    /// The guest that it belongs to.
    pub fn guest(&self) -> &str {
        superblock::guest(&self.found.block).unwrap_or_default()
    }

    /// Its identity.
    pub fn uuid(&self) -> Uuid {
        Uuid(self.found.block.uuid)
    }

    /// When it was created, ns since the Unix epoch.
    pub fn created_ns(&self) -> u64 {
        self.found.block.created_ns.get()
    }

    /// How often its superblock was written; 0 for a mirror that never was whole.
    pub fn sequence(&self) -> u64 {
        self.found.block.sequence.get()
    }

    /// Where the parts lie.
    pub fn geometry(&self) -> &Geometry {
        &self.found.geometry
    }

    /// What would make its bytes durable if it were served without a mirror.
    pub fn domain(&self) -> Domain {
        self.domain
    }

    /// Buffers that are claimed.
    pub fn claimed(&self) -> u32 {
        Claims::new(self.geometry()).iter(self).count() as u32
    }

    /// Looks at everything but what is in the log, and reads every byte.
    /// `progress` hears of the bytes that are read.
    pub fn check(&self, progress: Progress<'_>) -> Vec<Finding> {
        let mut findings = Vec::new();
        if let Some(copy) = self.found.damaged {
            findings.push(Finding::Superblock(copy));
        }
        if !matches!(self.head, Head::OnHost) {
            let mut dax = [0; devdax::BLOCK_LEN];
            if self.read(devdax::BLOCK_OFFSET, &mut dax).is_err() || !devdax::is_sound(&dax) {
                findings.push(Finding::DaxBlock);
            }
        }
        let stray = claims::stray(&self.guest, self.geometry());
        if stray > 0 {
            findings.push(Finding::StrayClaims(stray));
        }
        let total = match self.head {
            Head::OnHost => self.geometry().guest_len(),
            Head::File | Head::Device(_) => self.geometry().file_len(),
        };
        let mut chunk = vec![0; CHUNK];
        for at in (0..total).step_by(CHUNK) {
            let len = CHUNK.min((total - at) as usize);
            if let Err(source) = self.read(at, &mut chunk[..len]) {
                findings.push(Finding::Unreadable { at, len, source });
                if !matches!(self.head, Head::File) {
                    // A mapping does not tell one bad place from the next.
                    break;
                }
            }
            progress(at + len as u64, total);
        }
        findings
    }

    /// Reads bytes of the file, or fails as its storage does.
    fn read(&self, at: u64, out: &mut [u8]) -> std::io::Result<()> {
        let (from, at) = match &self.head {
            Head::File => return self.file.read_exact_at(out, at),
            Head::Device(head) if at < HOST_HEAD_LEN => (head, at),
            Head::Device(_) => (&self.guest, at - HOST_HEAD_LEN),
            Head::OnHost => (&self.guest, at),
        };
        if !from.read_at(at as usize, out) {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if from.is_poisoned() { Err(Errno::IO.into()) } else { Ok(()) }
    }

    /// Reads bytes of a buffer; `false` if they are not in the region.
    #[must_use]
    pub fn read_buffer(&self, buf: u32, offset: u16, out: &mut [u8]) -> bool {
        let geometry = self.geometry();
        let end = usize::from(offset) + out.len();
        let inside = buf < geometry.buffer_count() && end <= geometry.buffer_size() as usize;
        let start = geometry.buffers().offset + u64::from(buf) * u64::from(geometry.buffer_size());
        inside && self.guest.read_at(start as usize + usize::from(offset), out)
    }
}

/// What the guest would map of a mirror together with its journal, if that has
/// something: a copy in memory, as nothing is written.
fn with_journal(
    path: &Path,
    name: &str,
    found: &Found,
    guest: &Mapping,
) -> Result<Option<Mapping>, RegionError> {
    let mut records = Vec::new();
    replay(path, &found.block, |offset, bytes| {
        records.push((offset as usize, bytes.to_vec()));
        Ok(())
    })?;
    if records.is_empty() {
        return Ok(None);
    }
    let len = guest.len();
    let memory = sys::memory_file("paste-image", len as u64, HugePages::No)
        .map_err(|errno| reserve_error(name, len as u64, errno))?;
    let whole = Mapping::from_fd(memory.as_fd(), 0, len, true)
        .map_err(|source| RegionError::Map { region: name.to_owned(), source })?;
    let mut chunk = vec![0; CHUNK];
    for at in (0..len).step_by(CHUNK) {
        let chunk = &mut chunk[..CHUNK.min(len - at)];
        let copied = guest.read_at(at, chunk) && whole.write_at(at, chunk);
        debug_assert!(copied, "both are of this length");
    }
    for (at, bytes) in records {
        let written = whole.write_at(at, &bytes);
        debug_assert!(written, "the journal judges what it gives");
    }
    Ok(Some(whole))
}

/// What persistent structures are read through. It takes no stores: what
/// verifies a structure makes none.
impl Medium for Image {
    fn len(&self) -> u64 {
        self.guest.len() as u64
    }

    fn load(&self, at: u64, out: &mut [u8]) {
        let read = usize::try_from(at).is_ok_and(|at| self.guest.read_at(at, out));
        if !read {
            out.fill(0);
        }
    }

    fn store(&mut self, _: u64, _: &[u8]) {}

    fn flush(&mut self, _: u64, _: u64) {}

    fn seal(&mut self) -> Ticket {
        Ticket(0)
    }

    fn reached(&self, _: Ticket) -> bool {
        false
    }
}
