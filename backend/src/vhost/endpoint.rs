//! Where front ends attach: a socket that we listen on, one that we connect to
//! again and again, or one that we inherited.
//!
//! Knows nothing of the protocol, nor of who is attached; it is asked for the
//! next front end and told whether there is room for one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, getpeername,
    getsockname, listen, socket_with, sockopt,
};

/// Permissions of a socket that we make: owner and group may attach.
const SOCKET_MODE: u32 = 0o660;

/// Front ends that may wait to be accepted (and refused).
const BACKLOG: i32 = 8;

/// How long accepting rests after it failed, ns: a process without descriptors
/// left would spin otherwise.
const REST_NS: u64 = 1_000_000_000;

/// Why an endpoint cannot be, or did not give a front end.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The path does not fit into a socket address.
    #[error("{path}: too long for the path of a socket")]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Something that is not a socket is there.
    #[error("{path}: exists and is not a socket; remove it, or choose another path")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Another process listens there.
    #[error("{path}: another process listens there; stop it, or choose another path")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{path}: {call}: {source}")]
    System {
        /// The path.
        path: PathBuf,
        /// The call.
        call: &'static str,
        /// Its error.
        source: io::Error,
    },
    /// The inherited descriptor is not a Unix stream socket.
    #[error("the inherited descriptor is not a Unix stream socket: {0}")]
    NotUnixStream(&'static str),
    /// The inherited socket neither listens nor is connected.
    #[error("the inherited socket neither listens nor is connected")]
    NotConnected,
    /// A front end could not be accepted.
    #[error("accept: {0}")]
    Accept(io::Error),
}

#[derive(Debug)]
enum Kind {
    Listen {
        listener: UnixListener,
        /// Accepting rests until then, after an error.
        rest_until: Option<u64>,
        /// Removes the socket file with the endpoint.
        _bound: Option<Bound>,
    },
    Connect {
        path: PathBuf,
        retry_ns: u64,
        next_ns: u64,
    },
    /// One connection, inherited, until it is handed out.
    Once(Option<UnixStream>),
}

/// A place where front ends attach.
#[derive(Debug)]
pub struct Endpoint {
    kind: Kind,
    generation: u64,
}

/// A socket file that we made. Dropping removes it, unless somebody else has
/// put another one in its place.
#[derive(Debug)]
struct Bound {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for Bound {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|identity| identity == self.identity) {
            // At the end of a process there is nobody to tell.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Result<(u64, u64), Errno> {
    let stat = rustix::fs::lstat(path)?;
    #[allow(clippy::unnecessary_cast, reason = "these types differ between systems")]
    Ok((stat.st_dev as u64, stat.st_ino as u64))
}

fn unix_socket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn address(path: &Path) -> Result<SocketAddrUnix, EndpointError> {
    SocketAddrUnix::new(path).map_err(|_| EndpointError::PathTooLong { path: path.to_owned() })
}

fn system<'a>(path: &'a Path, call: &'static str) -> impl Fn(Errno) -> EndpointError + 'a {
    move |errno| EndpointError::System { path: path.to_owned(), call, source: errno.into() }
}

impl Endpoint {
    /// Listens on a path. A socket that nobody listens on any more is replaced;
    /// anything else that is there is left alone, and an error.
    pub fn bind(path: &Path) -> Result<Endpoint, EndpointError> {
        let addr = address(path)?;
        let socket = unix_socket().map_err(system(path, "socket"))?;
        match bind(&socket, &addr) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path, &addr)?;
                bind(&socket, &addr).map_err(system(path, "bind"))?;
            }
            bound => bound.map_err(system(path, "bind"))?,
        }
        let identity = identity(path).map_err(system(path, "stat"))?;
        let bound = Some(Bound { path: path.to_owned(), identity });
        // Nobody can connect before `listen`, so the permissions hold from the start.
        rustix::fs::chmod(path, Mode::from_raw_mode(SOCKET_MODE as _))
            .map_err(system(path, "chmod"))?;
        listen(&socket, BACKLOG).map_err(system(path, "listen"))?;
        let listener = UnixListener::from(socket);
        Ok(Endpoint::of(Kind::Listen { listener, rest_until: None, _bound: bound }))
    }

    /// Connects to a path, and again after a front end has gone, at most once
    /// in `retry`.
    pub fn connect(path: &Path, retry: Duration) -> Result<Endpoint, EndpointError> {
        address(path)?;
        let retry_ns = u64::try_from(retry.as_nanos()).unwrap_or(u64::MAX);
        Ok(Endpoint::of(Kind::Connect { path: path.to_owned(), retry_ns, next_ns: 0 }))
    }

    /// Takes a socket from our parent: one that listens, or one that is
    /// connected and serves for one session.
    pub fn adopt(socket: OwnedFd) -> Result<Endpoint, EndpointError> {
        use EndpointError::NotUnixStream;
        let socket_type =
            sockopt::socket_type(&socket).map_err(|_| NotUnixStream("it is no socket"))?;
        if socket_type != SocketType::STREAM {
            return Err(NotUnixStream("it is not of type SOCK_STREAM"));
        }
        let family =
            getsockname(&socket).map_err(|_| NotUnixStream("it has no address"))?.address_family();
        if family != AddressFamily::UNIX {
            return Err(NotUnixStream("it is not of family AF_UNIX"));
        }
        if sockopt::socket_acceptconn(&socket).unwrap_or(false) {
            let listener = UnixListener::from(socket);
            listener.set_nonblocking(true).map_err(EndpointError::Accept)?;
            return Ok(Endpoint::of(Kind::Listen { listener, rest_until: None, _bound: None }));
        }
        getpeername(&socket).map_err(|_| EndpointError::NotConnected)?;
        Ok(Endpoint::of(Kind::Once(Some(UnixStream::from(socket)))))
    }

    /// A place where nobody attaches.
    pub fn nowhere() -> Endpoint {
        Endpoint::of(Kind::Once(None))
    }

    fn of(kind: Kind) -> Endpoint {
        Endpoint { kind, generation: 0 }
    }

    /// The next front end, if one is there. Never waits. While one is
    /// `attached`, others are accepted and closed: they learn at once that they
    /// are not served.
    pub fn poll(
        &mut self,
        now_ns: u64,
        attached: bool,
    ) -> Result<Option<UnixStream>, EndpointError> {
        match &mut self.kind {
            Kind::Listen { listener, rest_until, .. } => {
                if rest_until.is_some_and(|until| now_ns < until) {
                    return Ok(None);
                }
                if rest_until.take().is_some() {
                    self.generation += 1;
                }
                match accept(listener, attached) {
                    Ok(stream) => Ok(stream),
                    Err(error) => {
                        *rest_until = Some(now_ns.saturating_add(REST_NS));
                        self.generation += 1;
                        Err(EndpointError::Accept(error))
                    }
                }
            }
            Kind::Connect { path, retry_ns, next_ns } => {
                if now_ns < *next_ns {
                    return Ok(None);
                }
                *next_ns = now_ns.saturating_add(*retry_ns);
                if attached { Ok(None) } else { try_connect(path) }
            }
            Kind::Once(stream) => Ok(if attached { None } else { stream.take() }),
        }
    }

    /// The descriptor to be watched, for becoming readable.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Listen { listener, rest_until: None, .. } => Some(listener.as_fd()),
            Kind::Listen { .. } | Kind::Connect { .. } | Kind::Once(_) => None,
        }
    }

    /// When [`Endpoint::poll`] is to be called without a descriptor being
    /// readable.
    pub fn next_attempt_ns(&self) -> Option<u64> {
        match &self.kind {
            Kind::Listen { rest_until, .. } => *rest_until,
            Kind::Connect { next_ns, .. } => Some(*next_ns),
            Kind::Once(stream) => stream.as_ref().map(|_| 0),
        }
    }

    /// Changes whenever [`Endpoint::fd`] gives another answer.
    pub fn watch_generation(&self) -> u64 {
        self.generation
    }
}

fn accept(listener: &UnixListener, mut attached: bool) -> io::Result<Option<UnixStream>> {
    let mut accepted = None;
    for _ in 0..BACKLOG {
        match listener.accept() {
            Ok(_) if attached => {
                tracing::warn!("a second front end was turned away: one is attached");
            }
            Ok((stream, _)) => {
                accepted = Some(stream);
                attached = true;
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => break,
                // It went before we looked.
                io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {}
                _ if accepted.is_some() => break,
                _ => return Err(error),
            },
        }
    }
    Ok(accepted)
}

fn try_connect(path: &Path) -> Result<Option<UnixStream>, EndpointError> {
    let socket = unix_socket().map_err(system(path, "socket"))?;
    match connect(&socket, &address(path)?) {
        Ok(()) => Ok(Some(UnixStream::from(socket))),
        // Not there yet, or busy: the next attempt will show.
        Err(Errno::NOENT | Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(system(path, "connect")(errno)),
    }
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path, addr: &SocketAddrUnix) -> Result<(), EndpointError> {
    let stat = rustix::fs::lstat(path).map_err(system(path, "stat"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return Err(EndpointError::NotASocket { path: path.to_owned() });
    }
    let probe = unix_socket().map_err(system(path, "socket"))?;
    match connect(&probe, addr) {
        Err(Errno::CONNREFUSED) => {
            tracing::info!(path = %path.display(), "replacing a socket that nobody listens on");
            rustix::fs::unlink(path).map_err(system(path, "unlink"))
        }
        Ok(()) | Err(Errno::AGAIN) => Err(EndpointError::InUse { path: path.to_owned() }),
        Err(errno) => Err(system(path, "connect")(errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    fn is_closed(stream: &mut UnixStream) -> bool {
        stream.set_nonblocking(true).unwrap();
        matches!(stream.read(&mut [0]), Ok(0))
    }

    #[test]
    fn serves_one_front_end_at_a_time() {
        let dir = dir();
        let path = dir.path().join("s");
        let mut endpoint = Endpoint::bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, SOCKET_MODE);
        assert!(endpoint.fd().is_some());
        assert!(endpoint.poll(0, false).unwrap().is_none());
        let mut first = UnixStream::connect(&path).unwrap();
        let mut second = UnixStream::connect(&path).unwrap();
        let served = endpoint.poll(0, false).unwrap().unwrap();
        assert!(!is_closed(&mut first));
        assert!(is_closed(&mut second));
        let mut third = UnixStream::connect(&path).unwrap();
        assert!(endpoint.poll(0, true).unwrap().is_none());
        assert!(is_closed(&mut third));
        drop(served);
        let mut fourth = UnixStream::connect(&path).unwrap();
        let _served = endpoint.poll(0, false).unwrap().unwrap();
        assert!(!is_closed(&mut fourth));
        drop(endpoint);
        assert!(!path.exists());
    }

    #[test]
    fn replaces_a_stale_socket_and_nothing_else() {
        let dir = dir();
        let path = dir.path().join("s");
        // Bound and dropped by somebody who did not clean up.
        drop(UnixListener::bind(&path).unwrap());
        let endpoint = Endpoint::bind(&path).unwrap();
        let error = Endpoint::bind(&path).unwrap_err();
        assert!(matches!(error, EndpointError::InUse { .. }), "{error}");
        // Refusing must not have harmed the one that is there.
        assert!(path.exists());
        drop(endpoint);
        std::fs::write(&path, b"precious").unwrap();
        let error = Endpoint::bind(&path).unwrap_err();
        assert!(matches!(error, EndpointError::NotASocket { .. }), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        let long = dir.path().join("x".repeat(200));
        assert!(matches!(Endpoint::bind(&long), Err(EndpointError::PathTooLong { .. })));
    }

    #[test]
    fn leaves_a_socket_that_took_its_place() {
        let dir = dir();
        let path = dir.path().join("s");
        let endpoint = Endpoint::bind(&path).unwrap();
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(endpoint);
        assert!(path.exists());
    }

    #[test]
    fn connects_again_and_again() {
        let dir = dir();
        let path = dir.path().join("s");
        let mut endpoint = Endpoint::connect(&path, Duration::from_nanos(100)).unwrap();
        assert_eq!(endpoint.next_attempt_ns(), Some(0));
        assert!(endpoint.poll(5, false).unwrap().is_none());
        assert_eq!(endpoint.next_attempt_ns(), Some(105));
        let listener = UnixListener::bind(&path).unwrap();
        // Not before its time, nor while there is a front end.
        assert!(endpoint.poll(104, false).unwrap().is_none());
        assert!(endpoint.poll(105, true).unwrap().is_none());
        assert!(endpoint.poll(205, false).unwrap().is_some());
        listener.accept().unwrap();
        assert!(endpoint.poll(305, false).unwrap().is_some());
    }

    #[test]
    fn adopts_sockets_that_fit() {
        let (a, _b) = UnixStream::pair().unwrap();
        let mut endpoint = Endpoint::adopt(a.into()).unwrap();
        assert_eq!(endpoint.next_attempt_ns(), Some(0));
        assert!(endpoint.poll(0, false).unwrap().is_some());
        assert!(endpoint.poll(0, false).unwrap().is_none());
        assert_eq!(endpoint.next_attempt_ns(), None);

        let dir = dir();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let mut endpoint = Endpoint::adopt(listener.into()).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        assert!(endpoint.poll(0, false).unwrap().is_some());
        drop(endpoint);
        // Not ours to remove.
        assert!(path.exists());

        let adopt = |fd: OwnedFd| Endpoint::adopt(fd).unwrap_err();
        let (pipe, _write) = rustix::pipe::pipe().unwrap();
        assert!(matches!(adopt(pipe), EndpointError::NotUnixStream(_)));
        let (datagram, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        assert!(matches!(adopt(datagram.into()), EndpointError::NotUnixStream(_)));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(matches!(adopt(tcp.into()), EndpointError::NotUnixStream(_)));
        assert!(matches!(adopt(unix_socket().unwrap()), EndpointError::NotConnected));
    }
}
