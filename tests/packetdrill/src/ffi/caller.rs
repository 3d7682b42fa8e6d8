//! The table from the other side: calls it as packetdrill does, for our runner
//! and tests, which know no `unsafe`.

use core::ffi::{CStr, c_int, c_void};
use core::net::SocketAddr;

use libc::{sockaddr, socklen_t};

use crate::abi::Interface;
use crate::errno::{Errno, Result};
use crate::ffi::{address, packetdrill_interface_init};

/// A filled table, freed when dropped.
#[derive(Debug)]
pub struct Table(Interface);

// SAFETY: the functions of a table may be called by several threads, as
// packetdrill does; `userdata` is theirs to guard.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Drop for Table {
    fn drop(&mut self) {
        if let Some(free) = self.0.free {
            // SAFETY: the table's own userdata, not used after.
            unsafe { free(self.0.userdata) };
        }
    }
}

fn errno() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(0))
}

fn checked(value: c_int) -> Result<c_int> {
    if value < 0 { Err(errno()) } else { Ok(value) }
}

fn counted(value: libc::ssize_t) -> Result<usize> {
    usize::try_from(value).map_err(|_| errno())
}

/// Calls a function of the table, or fails as a table without it would.
macro_rules! call {
    ($table:expr, $name:ident $(, $arg:expr)*) => {
        match $table.0.$name {
            // SAFETY: the arguments are what the function's manual page wants,
            // from references that live through the call.
            Some(function) => unsafe { function($table.0.userdata $(, $arg)*) },
            None => return Err(Errno(libc::ENOSYS)),
        }
    };
}

impl Table {
    /// Fills a table with these flags.
    pub fn new(flags: &CStr) -> Table {
        let mut table = Table(Interface::EMPTY);
        // SAFETY: a C string, and room for a table.
        unsafe { packetdrill_interface_init(flags.as_ptr(), &mut table.0) };
        table
    }

    /// The table itself.
    pub fn interface(&self) -> &Interface {
        &self.0
    }

    /// socket(2).
    pub fn socket(&self, domain: i32, kind: i32, protocol: i32) -> Result<i32> {
        checked(call!(self, socket, domain, kind, protocol))
    }

    /// bind(2).
    pub fn bind(&self, fd: i32, local: SocketAddr) -> Result<()> {
        let bytes = address::bytes(local);
        let pointer: *const sockaddr = bytes.as_ptr().cast();
        checked(call!(self, bind, fd, pointer, bytes.len() as socklen_t)).map(drop)
    }

    /// listen(2).
    pub fn listen(&self, fd: i32, backlog: i32) -> Result<()> {
        checked(call!(self, listen, fd, backlog)).map(drop)
    }

    /// accept(2).
    pub fn accept(&self, fd: i32) -> Result<(i32, SocketAddr)> {
        let mut bytes = [0u8; size_of::<libc::sockaddr_storage>()];
        let mut len = bytes.len() as socklen_t;
        let pointer: *mut sockaddr = bytes.as_mut_ptr().cast();
        let new = checked(call!(self, accept, fd, pointer, &mut len))?;
        let peer = bytes.get(..len as usize).ok_or(Errno(libc::EINVAL))?;
        Ok((new, address::parse(peer)?))
    }

    /// connect(2).
    pub fn connect(&self, fd: i32, peer: SocketAddr) -> Result<()> {
        let bytes = address::bytes(peer);
        let pointer: *const sockaddr = bytes.as_ptr().cast();
        checked(call!(self, connect, fd, pointer, bytes.len() as socklen_t)).map(drop)
    }

    /// recv(2).
    pub fn recv(&self, fd: i32, out: &mut [u8], flags: i32) -> Result<usize> {
        counted(call!(self, recv, fd, out.as_mut_ptr().cast(), out.len(), flags))
    }

    /// read(2).
    pub fn read(&self, fd: i32, out: &mut [u8]) -> Result<usize> {
        counted(call!(self, read, fd, out.as_mut_ptr().cast(), out.len()))
    }

    /// readv(2) into two parts.
    pub fn readv(&self, fd: i32, first: &mut [u8], second: &mut [u8]) -> Result<usize> {
        let parts = [first, second]
            .map(|part| libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() });
        counted(call!(self, readv, fd, parts.as_ptr(), parts.len() as c_int))
    }

    /// write(2).
    pub fn write(&self, fd: i32, bytes: &[u8]) -> Result<usize> {
        counted(call!(self, write, fd, bytes.as_ptr().cast(), bytes.len()))
    }

    /// send(2).
    pub fn send(&self, fd: i32, bytes: &[u8], flags: i32) -> Result<usize> {
        counted(call!(self, send, fd, bytes.as_ptr().cast(), bytes.len(), flags))
    }

    /// fcntl(2).
    pub fn fcntl(&self, fd: i32, command: i32, argument: i32) -> Result<i32> {
        checked(call!(self, fcntl, fd, command, argument.into()))
    }

    /// ioctl(2) with an `int`, which it returns.
    pub fn ioctl(&self, fd: i32, request: u64, mut argument: i32) -> Result<i32> {
        let pointer: *mut i32 = &mut argument;
        checked(call!(self, ioctl, fd, request, pointer.cast()))?;
        Ok(argument)
    }

    /// close(2).
    pub fn close(&self, fd: i32) -> Result<()> {
        checked(call!(self, close, fd)).map(drop)
    }

    /// shutdown(2).
    pub fn shutdown(&self, fd: i32, how: i32) -> Result<()> {
        checked(call!(self, shutdown, fd, how)).map(drop)
    }

    /// getsockopt(2): the value's length.
    pub fn getsockopt(&self, fd: i32, level: i32, name: i32, out: &mut [u8]) -> Result<usize> {
        let mut len = out.len() as socklen_t;
        let pointer: *mut c_void = out.as_mut_ptr().cast();
        checked(call!(self, getsockopt, fd, level, name, pointer, &mut len))?;
        Ok(len as usize)
    }

    /// setsockopt(2).
    pub fn setsockopt(&self, fd: i32, level: i32, name: i32, value: &[u8]) -> Result<()> {
        let (pointer, len) = (value.as_ptr().cast(), value.len() as socklen_t);
        checked(call!(self, setsockopt, fd, level, name, pointer, len)).map(drop)
    }

    /// poll(2).
    pub fn poll(&self, fds: &mut [libc::pollfd], timeout: i32) -> Result<i32> {
        checked(call!(self, poll, fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout))
    }

    /// epoll_create(2).
    pub fn epoll_create(&self) -> Result<i32> {
        checked(call!(self, epoll_create, 1))
    }

    /// epoll_ctl(2).
    pub fn epoll_ctl(&self, epfd: i32, operation: i32, fd: i32, events: u32) -> Result<()> {
        let mut event = libc::epoll_event { events, u64: fd as u64 };
        checked(call!(self, epoll_ctl, epfd, operation, fd, &mut event)).map(drop)
    }

    /// epoll_wait(2) for one event: what of it is ready, and its descriptor.
    pub fn epoll_wait(&self, epfd: i32, timeout: i32) -> Result<Option<(u32, i32)>> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        let count = checked(call!(self, epoll_wait, epfd, &mut event, 1, timeout))?;
        Ok((count > 0).then_some((event.events, event.u64 as i32)))
    }

    /// Gives the stack an IP packet.
    pub fn netdev_send(&self, packet: &[u8]) -> Result<()> {
        checked(call!(self, netdev_send, packet.as_ptr().cast(), packet.len())).map(drop)
    }

    /// The next IP packet from the stack, and when, in microseconds.
    pub fn netdev_receive(&self) -> Result<Option<(Vec<u8>, i64)>> {
        let mut bytes = vec![0u8; 1 << 16];
        let (mut len, mut time) = (bytes.len(), 0);
        let pointer: *mut c_void = bytes.as_mut_ptr().cast();
        checked(call!(self, netdev_receive, pointer, &mut len, &mut time))?;
        bytes.truncate(len);
        Ok((len > 0).then_some((bytes, time)))
    }

    /// usleep(3).
    pub fn usleep(&self, microseconds: u32) -> Result<()> {
        checked(call!(self, usleep, microseconds)).map(drop)
    }

    /// gettimeofday(2), in microseconds.
    pub fn now(&self) -> Result<i64> {
        let mut time = libc::timeval { tv_sec: 0, tv_usec: 0 };
        checked(call!(self, gettimeofday, &mut time, core::ptr::null_mut()))?;
        Ok(time.tv_sec * 1_000_000 + time.tv_usec)
    }

    /// Makes every call that takes a pointer with a null one, and those that take
    /// a length with one that is too large: the name and the `errno` of each,
    /// which is 0 for one that succeeded.
    pub fn null_pointer_calls(&self, listener: i32, fd: i32) -> Vec<(&'static str, c_int)> {
        use core::ptr::{null, null_mut};
        let t = &self.0;
        let u = t.userdata;
        let mut outcomes = Vec::new();
        macro_rules! try_call {
            ($name:ident $(, $arg:expr)*) => {
                if let Some(function) = t.$name {
                    // SAFETY: null pointers are what these functions answer with
                    // an error, before they look at anything behind them.
                    let result = unsafe { function(u, fd $(, $arg)*) };
                    let errno = if result < 0 { errno().0 } else { 0 };
                    outcomes.push((stringify!($name), errno));
                }
            };
        }
        try_call!(bind, null(), 16);
        try_call!(connect, null(), 16);
        try_call!(read, null_mut(), 1);
        try_call!(read, null_mut(), usize::MAX);
        try_call!(readv, null(), 1);
        try_call!(readv, null(), -1);
        try_call!(recv, null_mut(), 1, 0);
        try_call!(recvfrom, null_mut(), 1, 0, null_mut(), null_mut());
        try_call!(recvmsg, null_mut(), 0);
        try_call!(write, null(), 1);
        try_call!(write, null(), usize::MAX);
        try_call!(writev, null(), 1);
        try_call!(send, null(), 1, 0);
        try_call!(sendto, null(), 1, 0, null(), 0);
        try_call!(sendmsg, null(), 0);
        try_call!(ioctl, libc::FIONREAD, null_mut());
        try_call!(getsockopt, libc::SOL_SOCKET, libc::SO_ERROR, null_mut(), null_mut());
        try_call!(setsockopt, libc::SOL_SOCKET, libc::SO_KEEPALIVE, null(), 4);
        try_call!(epoll_ctl, libc::EPOLL_CTL_ADD, listener, null_mut());
        try_call!(epoll_wait, null_mut(), 1, 0);
        macro_rules! try_other {
            ($name:ident $(, $arg:expr)*) => {
                if let Some(function) = t.$name {
                    // SAFETY: as above.
                    let result = unsafe { function(u $(, $arg)*) };
                    let errno = if result < 0 { errno().0 } else { 0 };
                    outcomes.push((stringify!($name), errno));
                }
            };
        }
        try_other!(poll, null_mut(), 1, 0);
        try_other!(netdev_send, null(), 40);
        try_other!(netdev_receive, null_mut(), null_mut(), null_mut());
        try_other!(gettimeofday, null_mut(), null_mut());
        outcomes
    }
}
