//! Options of sockets that no library names.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

/// Sets an option (setsockopt(2)) whose value is these bytes.
pub(super) fn set(socket: impl AsFd, level: c_int, name: c_int, value: &[u8]) -> Result<(), Errno> {
    let (fd, len) = (socket.as_fd().as_raw_fd(), value.len() as libc::socklen_t);
    // SAFETY: the value is as long as is said, and only read.
    let result = unsafe { libc::setsockopt(fd, level, name, value.as_ptr().cast(), len) };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}
