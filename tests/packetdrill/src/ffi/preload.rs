//! For packetdrill's code fragments (`%{ assert tcpi_snd_cwnd == 10 }%`): it asks
//! the kernel for TCP_INFO, and has no function for that in its table. With this
//! library in `LD_PRELOAD` too, what it asks of our sockets comes to us.

use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};

use libc::socklen_t;

use crate::ffi::table;

/// The userdata of the table that was filled last.
static LAST: AtomicPtr<c_void> = AtomicPtr::new(core::ptr::null_mut());

/// A table was filled, or with null its use has ended.
pub(super) fn set(userdata: *mut c_void) {
    LAST.store(userdata, Ordering::Release);
}

/// getsockopt(2).
///
/// # Safety
/// getsockopt(2)'s arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    let userdata = LAST.load(Ordering::Acquire);
    if !userdata.is_null() && table::owns(userdata, fd) {
        // SAFETY: the caller vouches for the arguments, and `free` has not been
        // called.
        return unsafe { table::getsockopt(userdata, fd, level, name, value, len) };
    }
    // SAFETY: the caller vouches for the arguments.
    unsafe { libc::syscall(libc::SYS_getsockopt, fd, level, name, value, len) as c_int }
}
