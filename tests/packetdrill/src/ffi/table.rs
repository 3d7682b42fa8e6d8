//! The functions of the table, in its order.

use core::ffi::{CStr, c_char, c_int, c_long, c_longlong, c_uint, c_ulong, c_void};
use core::slice;
use std::panic::{AssertUnwindSafe, catch_unwind};

use libc::{
    epoll_event, iovec, loff_t, msghdr, nfds_t, pollfd, size_t, sockaddr, socklen_t, ssize_t,
    timeval, useconds_t,
};

use crate::abi::Interface;
use crate::errno::{Errno, Result};
use crate::ffi::address;
use crate::harness::Harness;
use crate::options::TCP_INQ;

/// Most bytes of one call, as in Linux, and most parts of one (UIO_MAXIOV).
const BYTES_MAX: usize = 0x7fff_f000;
const PARTS_MAX: usize = 1024;
/// Most descriptors of one poll.
const FDS_MAX: usize = 1024;

/// Fills packetdrill's table. `flags` is what `--so_flags` said, or null; see
/// [the crate's documentation](crate). If they are wrong, standard error says
/// why and every socket call fails.
///
/// # Safety
/// `flags` is null or a C string; `table` is null or points to room for the
/// table, which is used until its `free` is called, and then no more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn packetdrill_interface_init(flags: *const c_char, table: *mut Interface) {
    if table.is_null() {
        return;
    }
    let flags = if flags.is_null() {
        String::new()
    } else {
        // SAFETY: not null, and the caller vouches for the string.
        unsafe { CStr::from_ptr(flags) }.to_string_lossy().into_owned()
    };
    let userdata = match Harness::new(&flags) {
        Ok(harness) => Box::into_raw(Box::new(harness)).cast(),
        Err(error) => {
            eprintln!("libpaste_packetdrill: {error}");
            core::ptr::null_mut()
        }
    };
    #[cfg(feature = "preload")]
    crate::ffi::preload::set(userdata);
    let filled = Interface {
        userdata,
        free: Some(free),
        socket: Some(socket),
        bind: Some(bind),
        listen: Some(listen),
        accept: Some(accept),
        connect: Some(connect),
        read: Some(read),
        readv: Some(readv),
        recv: Some(recv),
        recvfrom: Some(recvfrom),
        recvmsg: Some(recvmsg),
        write: Some(write),
        writev: Some(writev),
        send: Some(send),
        sendto: Some(sendto),
        sendmsg: Some(sendmsg),
        fcntl: Some(fcntl),
        ioctl: Some(ioctl),
        close: Some(close),
        shutdown: Some(shutdown),
        getsockopt: Some(getsockopt),
        setsockopt: Some(setsockopt),
        poll: Some(poll),
        netdev_send: Some(netdev_send),
        netdev_receive: Some(netdev_receive),
        usleep: Some(usleep),
        gettimeofday: Some(gettimeofday),
        epoll_create: Some(epoll_create),
        epoll_ctl: Some(epoll_ctl),
        epoll_wait: Some(epoll_wait),
        pipe: Some(pipe),
        splice: Some(splice),
    };
    // SAFETY: not null, and the caller vouches for the room.
    unsafe { table.write(filled) };
}

/// A number that C reads as a return value.
trait Returned: Copy {
    const FAILED: Self;
}

impl Returned for c_int {
    const FAILED: c_int = -1;
}

impl Returned for ssize_t {
    const FAILED: ssize_t = -1;
}

fn set_errno(value: c_int) {
    // SAFETY: the C library's own pointer to this thread's errno.
    unsafe { *libc::__errno_location() = value };
}

/// Runs a call for C: no panic passes, and errors become -1 and `errno`.
fn answer<R: Returned>(userdata: *mut c_void, call: impl FnOnce(&Harness) -> Result<R>) -> R {
    let run = AssertUnwindSafe(|| {
        // SAFETY: `userdata` is null or what `packetdrill_interface_init` made,
        // and the caller passes it until `free` only.
        let harness = unsafe { userdata.cast::<Harness>().as_ref() };
        call(harness.ok_or(Errno(libc::EINVAL))?)
    });
    match catch_unwind(run) {
        Ok(Ok(value)) => value,
        Ok(Err(Errno(errno))) => {
            set_errno(errno);
            R::FAILED
        }
        Err(_) => {
            set_errno(libc::EIO);
            R::FAILED
        }
    }
}

fn length(count: size_t) -> Result<usize> {
    if count > isize::MAX as usize { Err(Errno(libc::EINVAL)) } else { Ok(count.min(BYTES_MAX)) }
}

fn size(len: usize) -> Result<ssize_t> {
    ssize_t::try_from(len).map_err(|_| Errno(libc::EINVAL))
}

/// Bytes to read, of a caller that vouches for them.
///
/// # Safety
/// `buf` is null or points to `count` readable bytes.
unsafe fn input<'a>(buf: *const c_void, count: size_t) -> Result<&'a [u8]> {
    let count = length(count)?;
    match (buf.is_null(), count) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Errno(libc::EFAULT)),
        // SAFETY: not null, and the caller vouches for the length.
        (false, _) => Ok(unsafe { slice::from_raw_parts(buf.cast(), count) }),
    }
}

/// Bytes to write, of a caller that vouches for them.
///
/// # Safety
/// `buf` is null or points to `count` bytes that are nobody else's.
unsafe fn output<'a>(buf: *mut c_void, count: size_t) -> Result<&'a mut [u8]> {
    let count = length(count)?;
    match (buf.is_null(), count) {
        (_, 0) => Ok(&mut []),
        (true, _) => Err(Errno(libc::EFAULT)),
        // SAFETY: not null, and the caller vouches for the length.
        (false, _) => Ok(unsafe { slice::from_raw_parts_mut(buf.cast(), count) }),
    }
}

/// The parts that an `iovec` array names.
///
/// # Safety
/// `iov` is null or points to `count` entries.
unsafe fn parts<'a>(iov: *const iovec, count: usize) -> Result<&'a [iovec]> {
    match (iov.is_null(), count) {
        (_, 0) => Ok(&[]),
        (_, count) if count > PARTS_MAX => Err(Errno(libc::EINVAL)),
        (true, _) => Err(Errno(libc::EFAULT)),
        // SAFETY: not null, and the caller vouches for the length.
        (false, _) => Ok(unsafe { slice::from_raw_parts(iov, count) }),
    }
}

/// # Safety
/// As [`parts`], and every entry as for [`input`].
unsafe fn gather<'a>(iov: *const iovec, count: usize) -> Result<Vec<&'a [u8]>> {
    // SAFETY: the caller vouches for the array.
    let parts = unsafe { parts(iov, count) }?;
    // SAFETY: the caller vouches for each entry.
    parts.iter().map(|part| unsafe { input(part.iov_base, part.iov_len) }).collect()
}

/// # Safety
/// As [`parts`], and every entry as for [`output`].
unsafe fn scatter<'a>(iov: *const iovec, count: usize) -> Result<Vec<&'a mut [u8]>> {
    // SAFETY: the caller vouches for the array.
    let parts = unsafe { parts(iov, count) }?;
    // SAFETY: the caller vouches for each entry.
    parts.iter().map(|part| unsafe { output(part.iov_base, part.iov_len) }).collect()
}

fn count(parts: c_int) -> Result<usize> {
    usize::try_from(parts).map_err(|_| Errno(libc::EINVAL))
}

unsafe extern "C" fn free(userdata: *mut c_void) {
    if userdata.is_null() {
        return;
    }
    #[cfg(feature = "preload")]
    crate::ffi::preload::set(core::ptr::null_mut());
    // SAFETY: what `packetdrill_interface_init` made, and nobody uses it after.
    let harness = unsafe { Box::from_raw(userdata.cast::<Harness>()) };
    harness.forget_numbers();
}

unsafe extern "C" fn socket(u: *mut c_void, domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    answer(u, |h| h.call(|world| world.socket_open(domain, kind, protocol)))
}

unsafe extern "C" fn bind(
    u: *mut c_void,
    fd: c_int,
    addr: *const sockaddr,
    len: socklen_t,
) -> c_int {
    answer(u, |h| {
        // SAFETY: bind(2)'s arguments.
        let local = address::parse(unsafe { address::read(addr, len) }?)?;
        h.call(|world| world.bind(fd, local)).map(|()| 0)
    })
}

unsafe extern "C" fn listen(u: *mut c_void, fd: c_int, backlog: c_int) -> c_int {
    answer(u, |h| h.call(|world| world.listen(fd, backlog)).map(|()| 0))
}

unsafe extern "C" fn accept(
    u: *mut c_void,
    fd: c_int,
    addr: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    answer(u, |h| {
        let (new, peer) = h.accept(fd)?;
        // SAFETY: accept(2)'s arguments.
        unsafe { address::write(peer, addr, len) }?;
        Ok(new)
    })
}

unsafe extern "C" fn connect(
    u: *mut c_void,
    fd: c_int,
    addr: *const sockaddr,
    len: socklen_t,
) -> c_int {
    answer(u, |h| {
        // SAFETY: connect(2)'s arguments.
        let peer = address::parse(unsafe { address::read(addr, len) }?)?;
        h.connect(fd, peer).map(|()| 0)
    })
}

unsafe extern "C" fn read(u: *mut c_void, fd: c_int, buf: *mut c_void, len: size_t) -> ssize_t {
    answer(u, |h| {
        // SAFETY: read(2)'s arguments.
        let out = unsafe { output(buf, len) }?;
        h.recv(fd, &mut [out], 0).and_then(size)
    })
}

unsafe extern "C" fn readv(u: *mut c_void, fd: c_int, iov: *const iovec, parts: c_int) -> ssize_t {
    answer(u, |h| {
        // SAFETY: readv(2)'s arguments.
        let mut out = unsafe { scatter(iov, count(parts)?) }?;
        h.recv(fd, &mut out, 0).and_then(size)
    })
}

unsafe extern "C" fn recv(
    u: *mut c_void,
    fd: c_int,
    buf: *mut c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    answer(u, |h| {
        // SAFETY: recv(2)'s arguments.
        let out = unsafe { output(buf, len) }?;
        h.recv(fd, &mut [out], flags).and_then(size)
    })
}

unsafe extern "C" fn recvfrom(
    u: *mut c_void,
    fd: c_int,
    buf: *mut c_void,
    len: size_t,
    flags: c_int,
    _addr: *mut sockaddr,
    addr_len: *mut socklen_t,
) -> ssize_t {
    answer(u, |h| {
        // SAFETY: recvfrom(2)'s arguments.
        let out = unsafe { output(buf, len) }?;
        let received = h.recv(fd, &mut [out], flags).and_then(size)?;
        if !addr_len.is_null() {
            // A connection has one peer, and Linux tells of none.
            // SAFETY: not null, and recvfrom(2)'s argument.
            unsafe { *addr_len = 0 };
        }
        Ok(received)
    })
}

/// A control message of TCP that carries one number, and the padding after it:
/// `struct cmsghdr` is its length, level and type.
fn control_message(number: c_int) -> Vec<u8> {
    let header = size_of::<size_t>() + 2 * size_of::<c_int>();
    let mut bytes = (header + size_of::<c_int>()).to_ne_bytes().to_vec();
    for value in [libc::IPPROTO_TCP, TCP_INQ, number, 0] {
        bytes.extend(value.to_ne_bytes());
    }
    bytes
}

unsafe extern "C" fn recvmsg(u: *mut c_void, fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t {
    answer(u, |h| {
        // SAFETY: recvmsg(2)'s argument, or null.
        let msg = unsafe { msg.as_mut() }.ok_or(Errno(libc::EFAULT))?;
        // SAFETY: recvmsg(2)'s argument.
        let mut out = unsafe { scatter(msg.msg_iov, msg.msg_iovlen) }?;
        let received = h.recv(fd, &mut out, flags).and_then(size)?;
        let control = h.call(|world| world.inq(fd))?.map(control_message).unwrap_or_default();
        // SAFETY: recvmsg(2)'s argument.
        let room = unsafe { output(msg.msg_control, msg.msg_controllen) }?;
        msg.msg_flags = if control.len() > room.len() { libc::MSG_CTRUNC } else { 0 };
        msg.msg_controllen = 0;
        if let Some(room) = room.get_mut(..control.len()) {
            room.copy_from_slice(&control);
            msg.msg_controllen = control.len();
        }
        msg.msg_namelen = 0;
        Ok(received)
    })
}

unsafe extern "C" fn write(u: *mut c_void, fd: c_int, buf: *const c_void, len: size_t) -> ssize_t {
    answer(u, |h| {
        // SAFETY: write(2)'s arguments.
        let bytes = unsafe { input(buf, len) }?;
        h.send(fd, &[bytes], 0).and_then(size)
    })
}

unsafe extern "C" fn writev(u: *mut c_void, fd: c_int, iov: *const iovec, parts: c_int) -> ssize_t {
    answer(u, |h| {
        // SAFETY: writev(2)'s arguments.
        let bytes = unsafe { gather(iov, count(parts)?) }?;
        h.send(fd, &bytes, 0).and_then(size)
    })
}

unsafe extern "C" fn send(
    u: *mut c_void,
    fd: c_int,
    buf: *const c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    answer(u, |h| {
        // SAFETY: send(2)'s arguments.
        let bytes = unsafe { input(buf, len) }?;
        h.send(fd, &[bytes], flags).and_then(size)
    })
}

unsafe extern "C" fn sendto(
    u: *mut c_void,
    fd: c_int,
    buf: *const c_void,
    len: size_t,
    flags: c_int,
    addr: *const sockaddr,
    addr_len: socklen_t,
) -> ssize_t {
    answer(u, |h| {
        // SAFETY: sendto(2)'s arguments.
        let bytes = unsafe { input(buf, len) }?;
        if flags & libc::MSG_FASTOPEN != 0 {
            // As Linux where fast open is off for clients.
            return Err(Errno(libc::EOPNOTSUPP));
        }
        // A connection has one peer; Linux ignores the address here.
        let _ = (addr, addr_len);
        h.send(fd, &[bytes], flags).and_then(size)
    })
}

unsafe extern "C" fn sendmsg(
    u: *mut c_void,
    fd: c_int,
    msg: *const msghdr,
    flags: c_int,
) -> ssize_t {
    answer(u, |h| {
        // SAFETY: sendmsg(2)'s argument, or null.
        let msg = unsafe { msg.as_ref() }.ok_or(Errno(libc::EFAULT))?;
        // SAFETY: sendmsg(2)'s argument.
        let bytes = unsafe { gather(msg.msg_iov, msg.msg_iovlen) }?;
        h.send(fd, &bytes, flags).and_then(size)
    })
}

unsafe extern "C" fn fcntl(u: *mut c_void, fd: c_int, command: c_int, argument: c_long) -> c_int {
    // Commands without an argument do not look at it; those with one have an int.
    answer(u, |h| h.call(|world| world.fcntl(fd, command, argument as c_int)))
}

unsafe extern "C" fn ioctl(
    u: *mut c_void,
    fd: c_int,
    request: c_ulong,
    argument: *mut c_void,
) -> c_int {
    answer(u, |h| {
        let number = argument.cast::<c_int>();
        let wants = matches!(request, libc::FIONBIO);
        if number.is_null() {
            return Err(Errno(libc::EFAULT));
        }
        // SAFETY: not null, and a request that reads has an int there.
        let given = if wants { unsafe { number.read_unaligned() } } else { 0 };
        if let Some(value) = h.call(|world| world.ioctl(fd, request, given))? {
            // SAFETY: not null, and a request that answers has an int there.
            unsafe { number.write_unaligned(value) };
        }
        Ok(0)
    })
}

unsafe extern "C" fn close(u: *mut c_void, fd: c_int) -> c_int {
    answer(u, |h| h.call(|world| world.close(fd)).map(|()| 0))
}

unsafe extern "C" fn shutdown(u: *mut c_void, fd: c_int, how: c_int) -> c_int {
    answer(u, |h| h.call(|world| world.shutdown(fd, how)).map(|()| 0))
}

/// Whether a descriptor is one of the table's.
#[cfg(feature = "preload")]
pub(super) fn owns(userdata: *mut c_void, fd: c_int) -> bool {
    answer(userdata, |h| h.call(|world| Ok(c_int::from(world.socket(fd).is_ok())))) == 1
}

pub(super) unsafe extern "C" fn getsockopt(
    u: *mut c_void,
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    answer(u, |h| {
        // SAFETY: getsockopt(2)'s argument, or null.
        let len = unsafe { len.as_mut() }.ok_or(Errno(libc::EFAULT))?;
        if *len > i32::MAX as socklen_t {
            return Err(Errno(libc::EINVAL));
        }
        // SAFETY: getsockopt(2)'s arguments.
        let out = unsafe { output(value, *len as usize) }?;
        *len = h.call(|world| world.get_option(fd, level, name, out))? as socklen_t;
        Ok(0)
    })
}

unsafe extern "C" fn setsockopt(
    u: *mut c_void,
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    len: socklen_t,
) -> c_int {
    answer(u, |h| {
        if len > i32::MAX as socklen_t {
            return Err(Errno(libc::EINVAL));
        }
        // SAFETY: setsockopt(2)'s arguments.
        let value = unsafe { input(value, len as usize) }?;
        h.call(|world| world.set_option(fd, level, name, value)).map(|()| 0)
    })
}

unsafe extern "C" fn poll(
    u: *mut c_void,
    fds: *mut pollfd,
    count: nfds_t,
    timeout: c_int,
) -> c_int {
    answer(u, |h| {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > FDS_MAX {
            return Err(Errno(libc::EINVAL));
        }
        if count == 0 {
            return h.poll(&mut [], timeout);
        }
        if fds.is_null() {
            return Err(Errno(libc::EFAULT));
        }
        // SAFETY: not null, and poll(2)'s arguments.
        let fds = unsafe { slice::from_raw_parts_mut(fds, count) };
        h.poll(fds, timeout)
    })
}

unsafe extern "C" fn netdev_send(u: *mut c_void, buf: *const c_void, len: size_t) -> c_int {
    answer(u, |h| {
        // SAFETY: the interface's arguments.
        let packet = unsafe { input(buf, len) }?;
        h.receive(packet).map(|()| 0)
    })
}

unsafe extern "C" fn netdev_receive(
    u: *mut c_void,
    buf: *mut c_void,
    len: *mut size_t,
    time: *mut c_longlong,
) -> c_int {
    answer(u, |h| {
        // SAFETY: the interface's argument, or null.
        let len = unsafe { len.as_mut() }.ok_or(Errno(libc::EFAULT))?;
        // SAFETY: the interface's argument, or null.
        let time = unsafe { time.as_mut() }.ok_or(Errno(libc::EFAULT))?;
        // SAFETY: the interface's arguments.
        let out = unsafe { output(buf, *len) }?;
        *len = 0;
        if let Some((packet, at)) = h.sniff() {
            let room = out.get_mut(..packet.len()).ok_or(Errno(libc::EMSGSIZE))?;
            room.copy_from_slice(&packet);
            *len = packet.len();
            *time = at;
        }
        Ok(0)
    })
}

unsafe extern "C" fn usleep(u: *mut c_void, microseconds: useconds_t) -> c_int {
    answer(u, |h| {
        h.usleep(u64::from(microseconds));
        Ok(0)
    })
}

unsafe extern "C" fn gettimeofday(u: *mut c_void, time: *mut timeval, _zone: *mut c_void) -> c_int {
    answer(u, |h| {
        // SAFETY: gettimeofday(2)'s argument, or null.
        let time = unsafe { time.as_mut() }.ok_or(Errno(libc::EFAULT))?;
        let (tv_sec, tv_usec) = h.time();
        *time = timeval { tv_sec, tv_usec };
        Ok(0)
    })
}

unsafe extern "C" fn epoll_create(u: *mut c_void, size: c_int) -> c_int {
    answer(u, |h| {
        // epoll_create(2): the size says nothing, and is not zero.
        if size <= 0 {
            return Err(Errno(libc::EINVAL));
        }
        h.call(|world| world.epoll_create())
    })
}

unsafe extern "C" fn epoll_ctl(
    u: *mut c_void,
    epfd: c_int,
    operation: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> c_int {
    answer(u, |h| {
        let event = (!event.is_null()).then(|| {
            // SAFETY: not null, and epoll_ctl(2)'s argument.
            let event = unsafe { event.read_unaligned() };
            (event.events, event.u64)
        });
        h.call(|world| world.epoll_ctl(epfd, operation, fd, event)).map(|()| 0)
    })
}

unsafe extern "C" fn epoll_wait(
    u: *mut c_void,
    epfd: c_int,
    events: *mut epoll_event,
    most: c_int,
    timeout: c_int,
) -> c_int {
    answer(u, |h| {
        let most = usize::try_from(most).unwrap_or(0).min(FDS_MAX);
        if events.is_null() && most > 0 {
            return Err(Errno(libc::EFAULT));
        }
        let found = h.epoll_wait(epfd, most, timeout)?;
        for (i, (ready, data)) in found.iter().enumerate() {
            let event = epoll_event { events: *ready, u64: *data };
            // SAFETY: not null, and at most `most` entries of epoll_wait(2)'s room.
            unsafe { events.add(i).write_unaligned(event) };
        }
        Ok(found.len() as c_int)
    })
}

/// There are no pipes here: what splice(2) saves is a copy that the stack never
/// makes.
unsafe extern "C" fn pipe(u: *mut c_void, _fds: *mut c_int) -> c_int {
    answer(u, |_| Err(Errno(libc::ENOSYS)))
}

unsafe extern "C" fn splice(
    u: *mut c_void,
    _from: c_int,
    _from_at: *mut loff_t,
    _to: c_int,
    _to_at: *mut loff_t,
    _len: size_t,
    _flags: c_uint,
) -> c_int {
    answer(u, |_| Err(Errno(libc::ENOSYS)))
}
