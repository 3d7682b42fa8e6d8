//! The table of functions that packetdrill calls, as `struct
//! packetdrill_interface` of its `packetdrill.h` lays it out. All types are C's.

use core::ffi::{c_char, c_int, c_long, c_longlong, c_uint, c_ulong, c_void};

use libc::{
    epoll_event, iovec, loff_t, msghdr, nfds_t, pollfd, size_t, sockaddr, socklen_t, ssize_t,
    timeval, useconds_t,
};

/// `packetdrill_interface_init`: fills the table.
pub type Init = unsafe extern "C" fn(flags: *const c_char, table: *mut Interface);

macro_rules! table {
    ($($(#[$doc:meta])* $name:ident($($arg:ty),*) -> $result:ty;)*) => {
        /// The table. Every function takes `userdata` first; those that fail
        /// return -1 and set `errno`.
        ///
        /// `fcntl` and `ioctl` are variadic in C. Stable Rust defines no such
        /// function; the calling conventions of Linux on x86-64 and AArch64 pass
        /// a variadic integer or pointer as they would a named one, so the third
        /// argument is named here, and only looked at for a command that has one.
        #[repr(C)]
        #[derive(Clone, Copy, Debug)]
        pub struct Interface {
            /// Passed as the first argument of every function.
            pub userdata: *mut c_void,
            /// Ends the use of the table.
            pub free: Option<unsafe extern "C" fn(*mut c_void)>,
            $(
                $(#[$doc])*
                pub $name: Option<unsafe extern "C" fn(*mut c_void, $($arg),*) -> $result>,
            )*
        }

        impl Interface {
            /// A table without functions, to be filled.
            pub const EMPTY: Interface = Interface {
                userdata: core::ptr::null_mut(),
                free: None,
                $($name: None,)*
            };
        }
    };
}

table! {
    /// socket(2).
    socket(c_int, c_int, c_int) -> c_int;
    /// bind(2).
    bind(c_int, *const sockaddr, socklen_t) -> c_int;
    /// listen(2).
    listen(c_int, c_int) -> c_int;
    /// accept(2).
    accept(c_int, *mut sockaddr, *mut socklen_t) -> c_int;
    /// connect(2).
    connect(c_int, *const sockaddr, socklen_t) -> c_int;
    /// read(2).
    read(c_int, *mut c_void, size_t) -> ssize_t;
    /// readv(2).
    readv(c_int, *const iovec, c_int) -> ssize_t;
    /// recv(2).
    recv(c_int, *mut c_void, size_t, c_int) -> ssize_t;
    /// recvfrom(2).
    recvfrom(c_int, *mut c_void, size_t, c_int, *mut sockaddr, *mut socklen_t) -> ssize_t;
    /// recvmsg(2).
    recvmsg(c_int, *mut msghdr, c_int) -> ssize_t;
    /// write(2).
    write(c_int, *const c_void, size_t) -> ssize_t;
    /// writev(2).
    writev(c_int, *const iovec, c_int) -> ssize_t;
    /// send(2).
    send(c_int, *const c_void, size_t, c_int) -> ssize_t;
    /// sendto(2).
    sendto(c_int, *const c_void, size_t, c_int, *const sockaddr, socklen_t) -> ssize_t;
    /// sendmsg(2).
    sendmsg(c_int, *const msghdr, c_int) -> ssize_t;
    /// fcntl(2).
    fcntl(c_int, c_int, c_long) -> c_int;
    /// ioctl(2).
    ioctl(c_int, c_ulong, *mut c_void) -> c_int;
    /// close(2).
    close(c_int) -> c_int;
    /// shutdown(2).
    shutdown(c_int, c_int) -> c_int;
    /// getsockopt(2).
    getsockopt(c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int;
    /// setsockopt(2).
    setsockopt(c_int, c_int, c_int, *const c_void, socklen_t) -> c_int;
    /// poll(2).
    poll(*mut pollfd, nfds_t, c_int) -> c_int;
    /// An IP packet for the stack.
    netdev_send(*const c_void, size_t) -> c_int;
    /// The next IP packet from the stack: bytes, length (in: room; out: bytes, 0
    /// for none), and when it was sent, microseconds.
    netdev_receive(*mut c_void, *mut size_t, *mut c_longlong) -> c_int;
    /// usleep(3) in virtual time.
    usleep(useconds_t) -> c_int;
    /// gettimeofday(2) in virtual time.
    gettimeofday(*mut timeval, *mut c_void) -> c_int;
    /// epoll_create(2).
    epoll_create(c_int) -> c_int;
    /// epoll_ctl(2).
    epoll_ctl(c_int, c_int, c_int, *mut epoll_event) -> c_int;
    /// epoll_wait(2).
    epoll_wait(c_int, *mut epoll_event, c_int, c_int) -> c_int;
    /// pipe(2).
    pipe(*mut c_int) -> c_int;
    /// splice(2).
    splice(c_int, *mut loff_t, c_int, *mut loff_t, size_t, c_uint) -> c_int;
}

const _: () = assert!(size_of::<Interface>() == 33 * size_of::<*mut c_void>());
