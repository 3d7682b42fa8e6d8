//! A disk that fails when it is told to, as a file system of the test's own
//! (FUSE), and that forgets what was not synced when it loses power.
//!
//! It behaves as Linux does: what is written is seen by every reader at once, a
//! sync makes it outlive the power, and a sync that fails marks as clean what it
//! could not write. The next one knows nothing of it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem,
    FopenFlags, Generation, INodeNo, LockOwner, MountOption, OpenAccMode, OpenFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use tempfile::TempDir;

/// Nothing that is known of a file stays known: its size may change with the power.
const AT_ONCE: Duration = Duration::ZERO;
/// What is written whole or not at all when the power is lost.
const SECTOR: usize = 512;
/// Files have the numbers from here on.
const FIRST: u64 = 2;

/// How a disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// No write finds room, as on a file system that writes nothing in place.
    Full,
    /// It became read-only.
    ReadOnly,
    /// What is written cannot be synced.
    Sync,
}

#[derive(Debug)]
struct File {
    name: OsString,
    /// What a reader sees.
    seen: Vec<u8>,
    /// What outlives the power.
    kept: Vec<u8>,
    /// Sectors that are written and not synced.
    dirty: BTreeSet<usize>,
}

#[derive(Debug, Default)]
struct State {
    /// By number; removed files leave their place empty.
    files: Vec<Option<File>>,
    failure: Option<Failure>,
    failed: u64,
}

/// A disk, mounted on a directory of its own. Dropping it unmounts it: whoever has
/// files open on it is to be ended before.
#[derive(Debug)]
pub struct Disk {
    state: Arc<Mutex<State>>,
    session: Option<BackgroundSession>,
    dir: TempDir,
}

impl Disk {
    /// An empty disk.
    pub fn new() -> Disk {
        let state = Arc::new(Mutex::new(State::default()));
        let dir = tempfile::tempdir().expect("a directory can be made");
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("paste-tests".to_owned())];
        let served = Served(Arc::clone(&state));
        let session = fuser::spawn_mount(served, dir.path(), &config).expect("it can be mounted");
        Disk { state, session: Some(session), dir }
    }

    /// Where a file of it is found.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// From now on it fails like this, or works.
    pub fn fail(&self, failure: Option<Failure>) {
        lock(&self.state).failure = failure;
    }

    /// How many requests have failed.
    pub fn failed(&self) -> u64 {
        lock(&self.state).failed
    }

    /// Loses the power: of the sectors that were not synced, those survive that
    /// `survives` says. Whoever has files open is to be ended before.
    pub fn lose_power(&self, mut survives: impl FnMut() -> bool) {
        for file in lock(&self.state).files.iter_mut().flatten() {
            let File { seen, kept, dirty, .. } = file;
            kept.resize(seen.len(), 0);
            for at in std::mem::take(dirty) {
                if survives() {
                    let end = (at + SECTOR).min(seen.len());
                    kept[at..end].copy_from_slice(&seen[at..end]);
                }
            }
            seen.clone_from(kept);
        }
    }
}

impl Default for Disk {
    fn default() -> Disk {
        Disk::new()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = self.session.take().map(BackgroundSession::umount_and_join);
        if !matches!(unmounted, Some(Ok(()))) {
            unmount(self.dir.path());
        }
    }
}

/// Takes a mount away, in use or not.
pub fn unmount(dir: &Path) {
    let _ = Command::new("umount").arg("--lazy").arg(dir).output();
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn find(&self, name: &OsStr) -> Option<u64> {
        let is = |file: &Option<File>| file.as_ref().is_some_and(|file| file.name == name);
        Some(self.files.iter().position(is)? as u64 + FIRST)
    }

    fn file(&mut self, number: INodeNo) -> Result<&mut File, Errno> {
        let at = number.0.checked_sub(FIRST).ok_or(Errno::EISDIR)?;
        self.files.get_mut(at as usize).and_then(Option::as_mut).ok_or(Errno::ENOENT)
    }

    /// Whether something can be changed now.
    fn change(&mut self) -> Result<(), Errno> {
        let error = match self.failure {
            Some(Failure::Full) => Errno::ENOSPC,
            Some(Failure::ReadOnly) => Errno::EROFS,
            Some(Failure::Sync) | None => return Ok(()),
        };
        self.failed += 1;
        Err(error)
    }

    fn attributes(&mut self, number: INodeNo) -> Result<FileAttr, Errno> {
        let (kind, size, perm) = match number {
            INodeNo::ROOT => (FileType::Directory, 0, 0o755),
            _ => (FileType::RegularFile, self.file(number)?.seen.len() as u64, 0o600),
        };
        Ok(FileAttr {
            ino: number,
            size,
            blocks: size.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }

    fn create(&mut self, name: &OsStr) -> Result<INodeNo, Errno> {
        self.change()?;
        let file = File {
            name: name.to_owned(),
            seen: Vec::new(),
            kept: Vec::new(),
            dirty: BTreeSet::new(),
        };
        self.files.push(Some(file));
        Ok(INodeNo(self.files.len() as u64 - 1 + FIRST))
    }

    fn remove(&mut self, name: &OsStr) -> Result<(), Errno> {
        self.change()?;
        let number = self.find(name).ok_or(Errno::ENOENT)?;
        self.files[(number - FIRST) as usize] = None;
        Ok(())
    }

    fn resize(&mut self, number: INodeNo, size: u64) -> Result<(), Errno> {
        self.change()?;
        self.file(number)?.seen.resize(size as usize, 0);
        Ok(())
    }

    fn write(&mut self, number: INodeNo, at: u64, data: &[u8]) -> Result<(), Errno> {
        self.change()?;
        let file = self.file(number)?;
        let (at, end) = (at as usize, at as usize + data.len());
        if file.seen.len() < end {
            file.seen.resize(end, 0);
        }
        file.seen[at..end].copy_from_slice(data);
        file.dirty.extend((at / SECTOR * SECTOR..end).step_by(SECTOR));
        Ok(())
    }

    fn sync(&mut self, number: INodeNo) -> Result<(), Errno> {
        let failure = self.failure;
        let File { seen, kept, dirty, .. } = self.file(number)?;
        kept.resize(seen.len(), 0);
        let dirty = std::mem::take(dirty);
        if failure == Some(Failure::Sync) && !dirty.is_empty() {
            self.failed += 1;
            return Err(Errno::EIO);
        }
        for at in dirty {
            let end = (at + SECTOR).min(seen.len());
            kept[at..end].copy_from_slice(&seen[at..end]);
        }
        Ok(())
    }
}

/// The disk, as the system asks it.
struct Served(Arc<Mutex<State>>);

fn say(done: Result<(), Errno>, reply: ReplyEmpty) {
    match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let mut state = lock(&self.0);
        let number = state.find(name).ok_or(Errno::ENOENT).map(INodeNo);
        match number.and_then(|number| state.attributes(number)) {
            Ok(attributes) => reply.entry(&AT_ONCE, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match lock(&self.0).attributes(number) {
            Ok(attributes) => reply.attr(&AT_ONCE, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        number: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = lock(&self.0);
        let done = size.map_or(Ok(()), |size| state.resize(number, size));
        match done.and_then(|()| state.attributes(number)) {
            Ok(attributes) => reply.attr(&AT_ONCE, &attributes),
            Err(error) => reply.error(error),
        }
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let mut state = lock(&self.0);
        let made = state.create(name);
        match made.and_then(|number| state.attributes(number)) {
            Ok(attributes) => reply.created(
                &AT_ONCE,
                &attributes,
                Generation(0),
                FileHandle(0),
                FopenFlags::empty(),
            ),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let mut state = lock(&self.0);
        let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
        if writes && state.failure == Some(Failure::ReadOnly) {
            state.failed += 1;
            return reply.error(Errno::EROFS);
        }
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn unlink(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        say(lock(&self.0).remove(name), reply);
    }

    fn read(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        at: u64,
        len: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match lock(&self.0).file(number) {
            Ok(file) => {
                let at = (at as usize).min(file.seen.len());
                reply.data(&file.seen[at..(at + len as usize).min(file.seen.len())]);
            }
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        at: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match lock(&self.0).write(number, at, data) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, number: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        say(lock(&self.0).sync(number), reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        number: INodeNo,
        _: FileHandle,
        offset: u64,
        len: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        let mut state = lock(&self.0);
        let done = match state.file(number).map(|file| file.seen.len() as u64) {
            Ok(have) => state.resize(number, have.max(offset + len)),
            Err(error) => Err(error),
        };
        say(done, reply);
    }
}
