//! The socket: messages, answers, and whatever else fits into it.

use std::fs::File;
use std::io::{self, ErrorKind, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use paste_abi::vhost_user::{
    F_PROTOCOL_FEATURES, FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, Header, protocol, request,
};
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Descriptors that one message of ours can carry: as many as the kernel takes.
const FDS_MAX: usize = 253;
/// VIRTIO_F_VERSION_1.
const F_VERSION_1: u64 = 1 << 32;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer of the back end's.
#[derive(Debug)]
pub struct Reply {
    /// Number of the request that it answers.
    pub request: u32,
    /// Flags.
    pub flags: u32,
    /// Payload.
    pub payload: Vec<u8>,
}

/// A connection to a back end's socket.
#[derive(Debug)]
pub struct Session {
    socket: UnixStream,
    /// Protocol features that were negotiated.
    pub protocol: u64,
}

impl Session {
    /// Connects, and says nothing.
    pub fn connect(path: &Path) -> io::Result<Session> {
        let socket = UnixStream::connect(path)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Session { socket, protocol: 0 })
    }

    /// Connects and agrees on features.
    pub fn negotiated(path: &Path) -> io::Result<Session> {
        let mut session = Session::connect(path)?;
        session.negotiate()?;
        Ok(session)
    }

    /// Agrees on features: VERSION_1 of the device, and of the protocol what
    /// needs no channel of the back end's.
    pub fn negotiate(&mut self) -> io::Result<()> {
        self.negotiate_with(0)
    }

    /// Likewise, with further features of the device if it has them.
    pub fn negotiate_with(&mut self, more: u64) -> io::Result<()> {
        self.send(request::SET_OWNER, 0, &[], &[])?;
        let offered = self.ask(request::GET_FEATURES)?;
        let features = offered & (F_VERSION_1 | F_PROTOCOL_FEATURES | more);
        let wanted = protocol::REPLY_ACK
            | protocol::CONFIG
            | protocol::RESET_DEVICE
            | protocol::CONFIGURE_MEM_SLOTS
            | protocol::STATUS;
        let protocol = self.ask(request::GET_PROTOCOL_FEATURES)? & wanted;
        self.send(request::SET_PROTOCOL_FEATURES, 0, &protocol.to_le_bytes(), &[])?;
        self.protocol = protocol;
        self.tell(request::SET_FEATURES, &U64::new(features), &[])
    }

    /// Sends bytes and descriptors as they are.
    pub fn send_raw(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::NOSIGNAL;
        let parts = [IoSlice::new(bytes)];
        let sent = rustix::net::sendmsg(&self.socket, &parts, &mut ancillary, flags)?;
        if sent == bytes.len() { Ok(()) } else { Err(ErrorKind::WriteZero.into()) }
    }

    /// Sends one message.
    pub fn send(
        &self,
        request: u32,
        flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.send_raw(&message(request, FLAG_VERSION | flags, payload), fds)
    }

    /// Waits for an answer.
    pub fn receive(&self) -> io::Result<Reply> {
        let mut header = [0; size_of::<Header>()];
        (&self.socket).read_exact(&mut header)?;
        let header = Header::read_from_bytes(&header).expect("as long as a header");
        let mut payload = vec![0; header.size.get() as usize];
        (&self.socket).read_exact(&mut payload)?;
        Ok(Reply { request: header.request.get(), flags: header.flags.get(), payload })
    }

    /// Asks for a number.
    pub fn ask(&self, request: u32) -> io::Result<u64> {
        self.send(request, 0, &[], &[])?;
        self.number(request)
    }

    /// Sends a message and waits until the back end has acted on it. An error
    /// if it refused.
    pub fn tell(
        &self,
        request: u32,
        payload: &(impl IntoBytes + Immutable),
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        self.send(request, FLAG_NEED_REPLY, payload.as_bytes(), fds)?;
        match self.number(request)? {
            0 => Ok(()),
            _ => Err(io::Error::new(ErrorKind::PermissionDenied, "the back end refused")),
        }
    }

    fn number(&self, request: u32) -> io::Result<u64> {
        let reply = self.receive()?;
        let number = U64::read_from_bytes(&reply.payload).ok();
        match number {
            Some(number) if reply.request == request && reply.flags & FLAG_REPLY != 0 => {
                Ok(number.get())
            }
            _ => Err(io::Error::new(ErrorKind::InvalidData, format!("{reply:?}"))),
        }
    }

    /// Waits until the back end closes the connection. False if it does not.
    pub fn is_closed(&self) -> bool {
        let mut rest = [0; 4096];
        loop {
            match (&self.socket).read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() == ErrorKind::ConnectionReset,
            }
        }
    }
}

/// A message's bytes, with flags as they are.
pub fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let size = payload.len() as u32;
    let header = Header { request: request.into(), flags: flags.into(), size: size.into() };
    [header.as_bytes(), payload].concat()
}

/// Memory that can be shared by its descriptor.
pub fn shared_memory(len: u64) -> File {
    let fd = rustix::fs::memfd_create("paste-tests", MemfdFlags::CLOEXEC);
    let file = File::from(fd.expect("memory can be had"));
    file.set_len(len).expect("memory can grow");
    file
}
