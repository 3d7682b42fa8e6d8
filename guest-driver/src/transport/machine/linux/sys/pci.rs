//! Linux: a PCI device that the kernel gives away by `uio_pci_generic`
//! (`Documentation/driver-api/uio-howto.rst`, `Documentation/PCI/sysfs-pci.rst`), and
//! memory for it.
//!
//! # How it ends
//!
//! A device that a process drives writes into memory of that process. Whoever ends in good
//! order resets it first. For whoever does not, the kernel closes the files: closing the
//! last of `/dev/uioN` turns the device's bus mastering off (`uio_pci_generic`, `release`).
//! Until then the memory must not be another's. So it is that of a file, which goes with the
//! file and not with the mapping, and files are closed in this order: the last one of a task
//! first (`task_work_run`, since Linux 4.3; the files are of 4.14). Hence the numbers of
//! the descriptors rise in the order memory, configuration space, `/dev/uioN`; and what says
//! that the device is in use is a lock on the second. All of it rests on a VMM that heeds bus
//! mastering, as QEMU does: it stops the queues.

#![expect(unsafe_code, reason = "registers of devices, by accesses of their width")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use paste_pmem::MapError;
use rustix::fs::{FlockOperation, MemfdFlags};
use rustix::io::Errno;

use crate::sys::{self, Mapping};

/// Bytes of the configuration space that every device has.
pub(crate) const CONFIG_LEN: usize = 256;
/// The command register (PCI 3.0 section 6.2.2), and its bits.
const COMMAND: u64 = 4;
const MEMORY: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
const INTERRUPT_DISABLE: u16 = 1 << 10;

/// The same file, with a number that is above that of `below`.
fn raise(file: File, below: BorrowedFd<'_>) -> io::Result<File> {
    if file.as_raw_fd() > below.as_raw_fd() {
        return Ok(file);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(&file, below.as_raw_fd() + 1)?.into())
}

/// A device's configuration space, which this process alone writes to.
#[derive(Debug)]
pub(crate) struct Config(File);

impl Config {
    /// Opens it; `None` if another process has it.
    pub(crate) fn open(path: &Path) -> io::Result<Option<Config>> {
        let file = File::options().read(true).write(true).open(path)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Config(file))),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Has it closed before this memory.
    pub(crate) fn above(self, memory: &HugePage) -> io::Result<Config> {
        raise(self.0, memory.as_fd()).map(Config)
    }

    /// All of it, or what this process may see of it.
    pub(crate) fn read(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; CONFIG_LEN];
        let len = self.0.read_at(&mut bytes, 0)?;
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Lets the device be accessed, access memory, and interrupt: also after an interrupt,
    /// with which the kernel takes the last from it.
    pub(crate) fn enable(&self) -> io::Result<()> {
        let mut command = [0; 2];
        self.0.read_exact_at(&mut command, COMMAND)?;
        let command = (u16::from_le_bytes(command) | MEMORY | BUS_MASTER) & !INTERRUPT_DISABLE;
        self.0.write_all_at(&command.to_le_bytes(), COMMAND)
    }
}

/// A device's interrupts.
#[derive(Debug)]
pub(crate) struct Interrupts(File);

impl Interrupts {
    /// Those of `/dev/uioN`, which is closed before `config`.
    pub(crate) fn open(path: &Path, config: &Config) -> io::Result<Interrupts> {
        raise(File::open(path)?, config.0.as_fd()).map(Interrupts)
    }

    /// Waits for one, for at most `timeout` (`None`: for ever); whether there was one. A
    /// signal ends the wait. No more come before [`Config::enable`].
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let [ready] = sys::wait_readable([self.0.as_fd()], timeout)?;
        if ready {
            // How many there were.
            self.0.read_exact(&mut [0; 4])?;
        }
        Ok(ready)
    }
}

/// A BAR of a device's.
#[derive(Debug)]
pub(crate) struct Bar(Mapping);

impl Bar {
    /// The first `len` bytes of the one behind `path`, a `resourceN` of sysfs.
    pub(crate) fn map(path: &Path, len: usize) -> Result<Bar, MapError> {
        let open = || File::options().read(true).write(true).open(path);
        let file = open().map_err(|source| MapError::System { call: "open", source })?;
        Mapping::from_fd(file.as_fd(), 0, len, true).map(Bar)
    }

    fn at<T>(&self, at: usize) -> *mut T {
        let is_within = at.checked_add(size_of::<T>()).is_some_and(|end| end <= self.0.len());
        assert!(is_within && at.is_multiple_of(size_of::<T>()), "a register lies in its BAR");
        // SAFETY: the range was just found to lie within the mapping, which starts at a page.
        unsafe { self.0.as_ptr().add(at).cast() }
    }

    pub(crate) fn load<T: Register>(&self, at: usize) -> T {
        let from = self.at::<T>(at);
        // SAFETY: `at` has found an aligned integer within the mapping, which lives as long
        // as `self`. Volatile: the access is what the device sees, once and of this width.
        unsafe { from.read_volatile() }
    }

    pub(crate) fn store<T: Register>(&self, at: usize, value: T) {
        let to = self.at::<T>(at);
        // SAFETY: as in `load`. The device is this process's alone (`Config::open`), and
        // the rings, which are in memory, it is told of by addresses of such (`HugePage`).
        unsafe { to.write_volatile(value) }
    }
}

/// What a device has registers of: integers, of any value.
pub(crate) trait Register: Copy {}

impl Register for u8 {}
impl Register for u16 {}
impl Register for u32 {}

/// A huge page, and where devices find it. It is in one piece, is never swapped out, and
/// stays where it is unless memory is taken out of the machine.
#[derive(Debug)]
pub(crate) struct HugePage {
    fd: OwnedFd,
    address: u64,
}

/// Why there is no such page.
#[derive(Debug)]
pub(crate) enum HugePageError {
    Map(MapError),
    System(&'static str, io::Error),
    /// Its address is hidden from this process.
    Hidden,
    /// It is not in one piece.
    Scattered,
}

impl HugePage {
    /// Its bytes.
    pub(crate) const LEN: usize = 2 << 20;

    /// A zeroed page.
    pub(crate) fn new() -> Result<HugePage, HugePageError> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let failed = |what| move |errno: Errno| HugePageError::System(what, errno.into());
        let fd = rustix::fs::memfd_create("paste-rings", flags)
            .map_err(failed("making a file of huge pages"))?;
        rustix::fs::ftruncate(&fd, HugePage::LEN as u64)
            .map_err(failed("making a file of huge pages"))?;
        let mapping =
            Mapping::from_fd(fd.as_fd(), 0, HugePage::LEN, true).map_err(HugePageError::Map)?;
        // It is there from now on, as long as the file is.
        let _ = mapping.write_at(0, &[0]);
        let address = physical(mapping.as_ptr() as u64)?;
        Ok(HugePage { fd, address })
    }

    /// Where devices find it.
    pub(crate) fn address(&self) -> u64 {
        self.address
    }
}

impl AsFd for HugePage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Where devices find the huge page that starts here
/// (`Documentation/admin-guide/mm/pagemap.rst`).
fn physical(start: u64) -> Result<u64, HugePageError> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let failed = |error| HugePageError::System("reading /proc/self/pagemap", error);
    let page = rustix::param::page_size() as u64;
    let mut entries = vec![0; HugePage::LEN / page as usize * 8];
    let map = File::open("/proc/self/pagemap").map_err(failed)?;
    map.read_exact_at(&mut entries, start / page * 8).map_err(failed)?;
    let (entries, _) = entries.as_chunks::<8>();
    let mut frames = entries.iter().map(|entry| u64::from_ne_bytes(*entry));
    let first = frames.next().unwrap_or(0);
    // Whoever may not see them sees zeros.
    if first & PRESENT == 0 || first & FRAME == 0 {
        return Err(HugePageError::Hidden);
    }
    let address = (first & FRAME) * page;
    let follow = frames
        .zip(1..)
        .all(|(entry, ahead)| entry & PRESENT != 0 && entry & FRAME == (first & FRAME) + ahead);
    match follow && address.is_multiple_of(HugePage::LEN as u64) {
        true => Ok(address),
        false => Err(HugePageError::Scattered),
    }
}
