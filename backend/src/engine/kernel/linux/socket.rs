//! Sockets of the host's, as engines want them that leave TCP to its kernel: a few calls
//! in the life of a listener or a flow, and none for a request. And what the kernel's
//! errors mean for a guest.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use paste_abi::Reason;
use paste_abi::slot::Opt;
use rustix::net::sockopt::{
    set_ipv6_v6only, set_socket_keepalive, set_socket_linger, set_socket_reuseaddr,
    set_tcp_keepidle, set_tcp_nodelay, set_tcp_user_timeout,
};
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, bind, ipproto, listen, shutdown, socket_with,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that the process needs beside those of flows.
const DESCRIPTORS_MORE: u64 = 256;
/// Descriptors that are asked for where there is no limit (`fs.nr_open` as it comes).
const DESCRIPTORS_MAX: u32 = 1 << 20;
/// The longest time before keepalive probes, s (`MAX_TCP_KEEPIDLE` of `net/tcp.h`).
const KEEPALIVE_MAX_S: u64 = 32_767;

/// A socket of the address's family. It is not in non-blocking mode: the ring never waits
/// in a call, and would return instead of waiting by itself.
fn tcp(address: IpAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
    if address.is_ipv6() {
        set_ipv6_v6only(&socket, true)?;
    }
    // Batches are the guest's to make.
    set_tcp_nodelay(&socket, true)?;
    Ok(socket)
}

/// Whether the address is one of the host's.
pub(super) fn try_address(address: IpAddr) -> io::Result<()> {
    Ok(bind(&tcp(address)?, &SocketAddr::new(address, 0))?)
}

/// A socket that listens. What is set here, what it accepts inherits.
pub(super) fn listener(address: IpAddr, port: u16, backlog: u16) -> io::Result<OwnedFd> {
    let socket = tcp(address)?;
    // Flows of an earlier process may be in TIME-WAIT.
    set_socket_reuseaddr(&socket, true)?;
    bind(&socket, &SocketAddr::new(address, port))?;
    listen(&socket, backlog.max(1).into())?;
    Ok(socket)
}

/// A socket that is to connect from `address`, and from `port` unless it is 0.
pub(super) fn connector(address: IpAddr, port: u16) -> io::Result<OwnedFd> {
    let socket = tcp(address)?;
    if port != 0 {
        set_socket_reuseaddr(&socket, true)?;
    }
    if port != 0 || !address.is_unspecified() {
        bind(&socket, &SocketAddr::new(address, port))?;
    }
    Ok(socket)
}

/// Sends FIN after everything that was sent. The ring would have a thread do it.
pub(super) fn end_sending(socket: BorrowedFd<'_>) -> io::Result<()> {
    Ok(shutdown(socket, Shutdown::Write)?)
}

/// Has the socket's end be a RST.
pub(super) fn reset_on_close(socket: impl AsFd) {
    // Where it fails, its end is a FIN.
    let _ = set_socket_linger(socket, Some(Duration::ZERO));
}

/// Sets an option of a flow; 0 is the system's default.
pub(super) fn set_option(socket: BorrowedFd<'_>, option: Opt, value: u64) -> io::Result<()> {
    match option {
        Opt::UserTimeout => set_tcp_user_timeout(socket, value.try_into().unwrap_or(u32::MAX))?,
        Opt::KeepAlive if value == 0 => set_socket_keepalive(socket, false)?,
        Opt::KeepAlive => {
            set_tcp_keepidle(socket, Duration::from_secs(value.min(KEEPALIVE_MAX_S)))?;
            set_socket_keepalive(socket, true)?;
        }
    }
    Ok(())
}

/// What the guest is told of a flow that an error of the system's ended.
pub(super) fn reason(errno: i32) -> Reason {
    match errno {
        libc::ETIMEDOUT => Reason::TimedOut,
        libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN | libc::EHOSTDOWN => {
            Reason::Unreachable
        }
        libc::ECONNREFUSED => Reason::Refused,
        libc::EADDRNOTAVAIL => Reason::NoRoom,
        libc::EACCES | libc::EPERM | libc::EINVAL => Reason::BadAddress,
        libc::ECANCELED | libc::ECONNABORTED => Reason::Aborted,
        _ => Reason::PeerReset,
    }
}

/// What the guest is told of a port that could not be bound or listened on.
pub(super) fn bind_reason(errno: i32) -> Reason {
    match errno {
        libc::EADDRINUSE => Reason::PortInUse,
        libc::EACCES | libc::EPERM | libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT => Reason::BadAddress,
        _ => Reason::NoRoom,
    }
}

/// Every flow is a descriptor: asks for as many as there may be, as other guests of the
/// process need theirs, and says if that is less than this one may need.
pub(super) fn allow_descriptors(flows_max: u32) {
    let wanted = u64::from(flows_max) + DESCRIPTORS_MORE;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let most = maximum.unwrap_or(u64::from(DESCRIPTORS_MAX));
    let enough = current.is_none_or(|current| current >= most);
    let raised =
        enough || setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum }).is_ok();
    let limit = if raised { most } else { current.unwrap_or(most) };
    if limit < wanted {
        tracing::warn!(
            limit,
            flows_max,
            "the limit of open descriptors allows fewer flows than flows_max: raise it (`ulimit -n`)"
        );
    }
}
