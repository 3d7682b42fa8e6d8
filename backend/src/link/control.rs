//! The socket on which VMMs ask for guests.
//!
//! Accepts connections, and waits a little for the first record of each without holding
//! anybody up. Who the guest is, and whether there is one, is decided by the wiring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recv, socket_with,
};
use zerocopy::{FromBytes, FromZeros};

use super::offer::Offer;
use super::size_buffers;
use super::wire::{self, HEAD_LEN, Hello, Kind, STATUS_REFUSED, WireError};

/// Permissions of the socket: owner and group may ask.
const SOCKET_MODE: u32 = 0o660;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;
/// Connections that have not said anything yet, at most.
const PENDING_MAX: usize = 16;
/// How long one may take to say something, ns.
const PATIENCE_NS: u64 = 5_000_000_000;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The path is too long.
    #[error("{path}: too long for the path of a socket")]
    PathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{path}: exists and is not a socket; remove it, or choose another path")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Another process serves it.
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
        /// What the system said.
        source: io::Error,
    },
}

/// What a VMM asks for: names that are fit for a log, and the rest of its first record.
#[derive(Debug)]
pub struct Request {
    /// The guest.
    pub name: String,
    /// The interface, if it names one.
    pub interface: Option<String>,
    /// The connection and what it said.
    pub offer: Offer,
}

/// The control socket.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
    path: PathBuf,
    identity: (u64, u64),
    pending: Vec<(OwnedFd, u64)>,
}

impl Drop for Control {
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

fn seqpacket() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

impl Control {
    /// Listens on a path. A socket that nobody listens on any more is replaced.
    pub fn bind(path: &Path) -> Result<Control, ControlError> {
        let system = |call| {
            move |errno: Errno| ControlError::System {
                path: path.to_owned(),
                call,
                source: errno.into(),
            }
        };
        let address = SocketAddrUnix::new(path)
            .map_err(|_| ControlError::PathTooLong { path: path.to_owned() })?;
        let socket = seqpacket().map_err(system("socket"))?;
        match bind(&socket, &address) {
            Err(Errno::ADDRINUSE) => {
                let stat = rustix::fs::lstat(path).map_err(system("stat"))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
                    return Err(ControlError::NotASocket { path: path.to_owned() });
                }
                let probe = seqpacket().map_err(system("socket"))?;
                match connect(&probe, &address) {
                    Err(Errno::CONNREFUSED) => {
                        rustix::fs::unlink(path).map_err(system("unlink"))?;
                    }
                    // A socket of another type answers as well: it is somebody's.
                    Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => {
                        return Err(ControlError::InUse { path: path.to_owned() });
                    }
                    Err(errno) => return Err(system("connect")(errno)),
                }
                bind(&socket, &address).map_err(system("bind"))?;
            }
            bound => bound.map_err(system("bind"))?,
        }
        let identity = identity(path).map_err(system("stat"))?;
        let control = Control { socket, path: path.to_owned(), identity, pending: Vec::new() };
        rustix::fs::chmod(path, Mode::from_raw_mode(SOCKET_MODE as _)).map_err(system("chmod"))?;
        listen(&control.socket, BACKLOG).map_err(system("listen"))?;
        Ok(control)
    }

    /// The descriptors to be watched, for becoming readable.
    pub fn watch(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let pending = self.pending.iter().map(|(socket, _)| socket.as_fd());
        pending.chain([self.socket.as_fd()])
    }

    /// When the first of those that say nothing has had its time, ns.
    pub fn deadline(&self) -> Option<u64> {
        self.pending.iter().map(|(_, until)| *until).min()
    }

    /// Everybody who has asked since the last time. Never waits.
    pub fn poll(&mut self, now_ns: u64) -> Vec<Request> {
        self.accept(now_ns);
        let mut requests = Vec::new();
        let mut waiting = Vec::new();
        for (socket, until) in self.pending.drain(..) {
            let mut record = [0; HEAD_LEN + size_of::<Hello>() + 1];
            let flags = RecvFlags::DONTWAIT;
            match recv(&socket, &mut record, flags) {
                Ok((_, 0)) => {}
                Ok((_, len)) => match judge(&record[..len]) {
                    Ok(hello) => requests.extend(request(socket, hello)),
                    Err(error) => {
                        tracing::warn!(%error, "a VMM asked in a way that is not understood");
                        let offer = Offer { socket, hello: Hello::new_zeroed() };
                        offer.refuse(STATUS_REFUSED, &error.to_string());
                    }
                },
                Err(Errno::AGAIN | Errno::INTR) if now_ns < until => {
                    waiting.push((socket, until));
                }
                Err(error) => tracing::debug!(%error, "a connection that said nothing is closed"),
            }
        }
        self.pending = waiting;
        requests
    }

    fn accept(&mut self, now_ns: u64) {
        for _ in 0..BACKLOG {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match accept_with(&self.socket, flags) {
                Ok(socket) => {
                    if let Err(error) = size_buffers(&socket) {
                        tracing::warn!(%error, "a link's buffers are small");
                    }
                    if self.pending.len() == PENDING_MAX {
                        self.pending.remove(0);
                    }
                    self.pending.push((socket, now_ns + PATIENCE_NS));
                }
                Err(Errno::CONNABORTED | Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => {
                    tracing::warn!(%error, "a VMM could not be accepted");
                    break;
                }
            }
        }
    }
}

fn judge(record: &[u8]) -> Result<Hello, WireError> {
    let (kind, _, body) = wire::head(record)?;
    if kind != Kind::Hello {
        return Err(WireError::Kind(kind as u8));
    }
    let hello =
        Hello::read_from_bytes(body).map_err(|_| WireError::Body(body.len(), Kind::Hello as u8))?;
    if hello.reserved != [0; 15] || hello.has_driver > 1 {
        Err(WireError::Reserved)
    } else {
        Ok(hello)
    }
}

fn request(socket: OwnedFd, hello: Hello) -> Option<Request> {
    let name = wire::text(&hello.name).map(str::to_owned);
    let interface = match hello.interface[0] {
        0 => Some(None),
        _ => wire::text(&hello.interface).map(|name| Some(name.to_owned())),
    };
    let offer = Offer { socket, hello };
    let (Some(name), Some(interface)) = (name, interface) else {
        offer.refuse(STATUS_REFUSED, "names of guests and interfaces are plain ASCII");
        return None;
    };
    Some(Request { name, interface, offer })
}
