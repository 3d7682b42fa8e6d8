//! The file that keeps what was made durable, as the flusher sees it: the seam at
//! which tests let a disk fail.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A file with storage behind it. An error of [`Storage::sync`] means that
/// anything written since the last success may be lost, though reading it back
/// may show it.
pub trait Storage: Send {
    /// Writes all of `data` at `at`.
    ///
    /// # Errors
    /// Those of pwrite(2); some of it may have been written.
    fn write_at(&mut self, data: &[u8], at: u64) -> io::Result<()>;

    /// Waits until all that was written is in storage.
    ///
    /// # Errors
    /// Those of fdatasync(2).
    fn sync(&mut self) -> io::Result<()>;
}

impl Storage for File {
    fn write_at(&mut self, data: &[u8], at: u64) -> io::Result<()> {
        Storage::write_at(&mut &*self, data, at)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

impl Storage for &File {
    fn write_at(&mut self, data: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(data, at)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}
