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
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen,
    socket_with,
};
use zerocopy::{FromBytes, FromZeros};

use super::offer::Offer;
use super::region::RegionOffer;
use super::size_buffers;
use super::wire::{self, HEAD_LEN, Hello, Kind, Region, STATUS_REFUSED, WireError};
use crate::sys::fds;

/// Permissions of the socket: owner and group may ask.
const SOCKET_MODE: u32 = 0o660;
/// Room for the longest first record, and for one byte more, which shows a longer one.
const RECORD_LEN: usize = HEAD_LEN + size_of::<Hello>() + 1;
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

/// What a device that shows a guest its region asks for.
#[derive(Debug)]
pub struct RegionRequest {
    /// The guest.
    pub name: String,
    /// The memory that it has, and bytes of that; without, it asks how much it has to be.
    pub segment: Option<(OwnedFd, u64)>,
    /// The connection.
    pub offer: RegionOffer,
}

/// Who asks on the control socket.
#[derive(Debug)]
pub enum Asked {
    /// A network device, for its guest.
    Guest(Request),
    /// A device that shows a guest its region.
    Region(RegionRequest),
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
    pub fn poll(&mut self, now_ns: u64) -> Vec<Asked> {
        self.accept(now_ns);
        let mut requests = Vec::new();
        let mut waiting = Vec::new();
        for (socket, until) in self.pending.drain(..) {
            let mut record = [0; RECORD_LEN];
            let mut descriptors = Vec::new();
            match fds::receive(&socket, &mut record, &mut descriptors) {
                Ok(received) if received.bytes == 0 => {}
                Ok(received) => {
                    requests.extend(request(socket, &record[..received.bytes], descriptors));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && now_ns < until => {
                    waiting.push((socket, until));
                }
                Err(error) => tracing::debug!(%error, "a connection that said nothing is closed"),
            }
        }
        self.pending = waiting;
        requests
    }

    /// A device that was told how much memory its guest's region has to have will say more.
    pub fn keep(&mut self, offer: RegionOffer, now_ns: u64) {
        self.add(offer.socket, now_ns);
    }

    fn add(&mut self, socket: OwnedFd, now_ns: u64) {
        if self.pending.len() == PENDING_MAX {
            self.pending.remove(0);
        }
        self.pending.push((socket, now_ns + PATIENCE_NS));
    }

    fn accept(&mut self, now_ns: u64) {
        for _ in 0..BACKLOG {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match accept_with(&self.socket, flags) {
                Ok(socket) => {
                    if let Err(error) = size_buffers(&socket) {
                        tracing::warn!(%error, "a link's buffers are small");
                    }
                    self.add(socket, now_ns);
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

/// A first record, judged.
enum First {
    Hello(Hello),
    Region(Region, Option<OwnedFd>),
}

fn judge(record: &[u8], mut descriptors: Vec<OwnedFd>) -> Result<First, WireError> {
    let (kind, _, body) = wire::head(record)?;
    let wrong_body = || WireError::Body(body.len(), kind as u8);
    let (first, expected, is_clean) = match kind {
        Kind::Hello => {
            let hello = Hello::read_from_bytes(body).map_err(|_| wrong_body())?;
            (First::Hello(hello), 0, hello.reserved == [0; 15] && hello.has_driver <= 1)
        }
        Kind::Region => {
            let region = Region::read_from_bytes(body).map_err(|_| wrong_body())?;
            let expected = usize::from(region.len.get() != 0);
            (First::Region(region, None), expected, region.reserved == [0; 24])
        }
        other => return Err(WireError::Kind(other as u8)),
    };
    if !is_clean {
        return Err(WireError::Reserved);
    }
    if descriptors.len() != expected {
        return Err(WireError::Descriptors(descriptors.len(), kind as u8));
    }
    Ok(match first {
        First::Region(region, _) => First::Region(region, descriptors.pop()),
        hello => hello,
    })
}

fn request(socket: OwnedFd, record: &[u8], descriptors: Vec<OwnedFd>) -> Option<Asked> {
    // Whoever begins like a device with a region is answered like one.
    let is_region = matches!(wire::head(record), Ok((Kind::Region, ..)));
    let refuse = |socket, why: &str| match is_region {
        true => RegionOffer { socket }.refuse(STATUS_REFUSED, why),
        false => Offer { socket, hello: Hello::new_zeroed() }.refuse(STATUS_REFUSED, why),
    };
    let first = match judge(record, descriptors) {
        Ok(first) => first,
        Err(error) => {
            tracing::warn!(%error, "a VMM asked in a way that is not understood");
            refuse(socket, &error.to_string());
            return None;
        }
    };
    let (name, interface) = match &first {
        First::Region(region, _) => (region.name, [0; 32]),
        First::Hello(hello) => (hello.name, hello.interface),
    };
    let name = wire::text(&name).map(str::to_owned);
    let interface = match interface[0] {
        0 => Some(None),
        _ => wire::text(&interface).map(|name| Some(name.to_owned())),
    };
    let (Some(name), Some(interface)) = (name, interface) else {
        refuse(socket, "names of guests and interfaces are plain ASCII");
        return None;
    };
    Some(match first {
        First::Hello(hello) => {
            Asked::Guest(Request { name, interface, offer: Offer { socket, hello } })
        }
        First::Region(region, fd) => Asked::Region(RegionRequest {
            name,
            segment: fd.map(|fd| (fd, region.len.get())),
            offer: RegionOffer { socket },
        }),
    })
}
