//! The file that keeps what was made durable, as the flusher sees it: the seam at
//! which tests let a disk fail.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use crate::sys;

/// A file with storage behind it. An error of [`Storage::sync`] means that
/// anything written since the last success may be lost, though reading it back
/// may show it.
pub trait Storage: Send {
    /// Writes all of `data` at `at`.
    ///
    /// # Errors
    /// Those of pwrite(2); some of it may have been written.
    fn write_at(&mut self, data: &[u8], at: u64) -> io::Result<()>;

    /// Reads bytes at `at`, as they were written last, synced or not. Need not be able
    /// to.
    ///
    /// # Errors
    /// Those of pread(2), and of a file that ends before.
    fn read_at(&mut self, _out: &mut [u8], _at: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Waits until all that was written is in storage.
    ///
    /// # Errors
    /// Those of fdatasync(2).
    fn sync(&mut self) -> io::Result<()>;

    /// Says that these bytes, just written, will be synced, so that the sync has less
    /// to wait for. Promises nothing.
    fn begin_sync(&mut self, _at: u64, _len: u64) {}
}

impl Storage for File {
    fn write_at(&mut self, data: &[u8], at: u64) -> io::Result<()> {
        Storage::write_at(&mut &*self, data, at)
    }

    fn read_at(&mut self, out: &mut [u8], at: u64) -> io::Result<()> {
        Storage::read_at(&mut &*self, out, at)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn begin_sync(&mut self, at: u64, len: u64) {
        sys::begin_sync(self.as_fd(), at, len);
    }
}

impl Storage for &File {
    fn write_at(&mut self, data: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(data, at)
    }

    fn read_at(&mut self, out: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(out, at)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}
