//! vhost-user messages on a socket: headers, payloads and descriptors.

use std::io::{IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use paste_abi::vhost_user::{FDS_MAX, FLAG_VERSION, FLAG_VERSION_MASK, Header};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::transport::TransportError;

const HEADER_LEN: usize = size_of::<Header>();
/// The largest payload that either side sends, in bytes: GET_SHMEM_CONFIG's.
pub(super) const PAYLOAD_MAX: usize = 2056;

/// A received message.
pub(super) struct Message {
    pub(super) request: u32,
    pub(super) flags: u32,
    /// The first descriptor, if any came; others are closed.
    pub(super) fd: Option<OwnedFd>,
    len: usize,
    payload: [u8; PAYLOAD_MAX],
}

impl Message {
    pub(super) fn payload(&self) -> &[u8] {
        &self.payload[..self.len]
    }

    /// The payload as a value, if it has exactly its size.
    pub(super) fn read<T: FromBytes>(&self) -> Result<T, TransportError> {
        T::read_from_bytes(self.payload())
            .map_err(|_| TransportError::Protocol("a message's payload has the wrong size"))
    }
}

/// Sends one message. It is small enough to go out whole or not at all.
pub(super) fn send(
    socket: &UnixStream,
    request: u32,
    flags: u32,
    payload: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<(), TransportError> {
    let header = Header {
        request: request.into(),
        flags: (FLAG_VERSION | flags).into(),
        size: (payload.len() as u32).into(),
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(TransportError::Protocol("too many descriptors in a message"));
    }
    let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(payload)];
    let sent = loop {
        match rustix::net::sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other.map_err(std::io::Error::from).map_err(failed)?,
        }
    };
    if sent != HEADER_LEN + payload.len() {
        return Err(TransportError::Protocol("a message was cut short"));
    }
    Ok(())
}

/// Receives one message; waits for it as long as the socket's timeout says.
pub(super) fn receive(socket: &UnixStream) -> Result<Message, TransportError> {
    let mut head = [0u8; HEADER_LEN];
    let (mut filled, mut fd) = (0, None);
    while filled < HEADER_LEN {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut part = [IoSliceMut::new(&mut head[filled..])];
        let flags = RecvFlags::CMSG_CLOEXEC;
        let got = match rustix::net::recvmsg(socket, &mut part, &mut ancillary, flags) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.map_err(std::io::Error::from).map_err(failed)?,
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                for received in fds {
                    fd.get_or_insert(received);
                }
            }
        }
        if got.bytes == 0 {
            return Err(TransportError::Disconnected);
        }
        filled += got.bytes;
    }
    let header = Header::read_from_bytes(&head)
        .map_err(|_| TransportError::Protocol("a message without a header"))?;
    let (flags, len) = (header.flags.get(), header.size.get() as usize);
    if flags & FLAG_VERSION_MASK != FLAG_VERSION {
        return Err(TransportError::Protocol("a message of another version"));
    }
    if len > PAYLOAD_MAX {
        return Err(TransportError::Protocol("a message that is too long"));
    }
    let request = header.request.get();
    let mut message = Message { request, flags, fd, len, payload: [0; PAYLOAD_MAX] };
    (&*socket).read_exact(&mut message.payload[..len]).map_err(failed)?;
    Ok(message)
}

fn failed(error: std::io::Error) -> TransportError {
    use std::io::ErrorKind::{
        BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof, WouldBlock,
    };
    match error.kind() {
        BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof => TransportError::Disconnected,
        WouldBlock => TransportError::Protocol("no answer to a message"),
        _ => TransportError::System { what: "exchanging a vhost-user message", error },
    }
}
