//! The back end's own channel: here the back end asks and the front end answers.
//!
//! It is used for one question: to map the region into the device's
//! shared-memory window (SHMEM_MAP). The answer is awaited without waiting.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use paste_abi::vhost_user::{
    FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, Header, SHMEM_WRITABLE, ShMemMap, backend_request,
};
use zerocopy::{FromBytes, IntoBytes};

use super::control::RegionFd;
use crate::sys::fds;

/// Bytes of an answer: a header and a number.
const ANSWER_LEN: usize = size_of::<Header>() + 8;

/// Why the channel was given up. The session goes on without it.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The front end closed it.
    #[error("the front end closed it")]
    Closed,
    /// A system call failed, or the descriptor is no socket.
    #[error("SHMEM_MAP: {0}")]
    Io(#[from] io::Error),
    /// The question did not fit into the socket at once.
    #[error("SHMEM_MAP was cut off after {0} bytes")]
    Cut(usize),
    /// The front end answered with an error.
    #[error("SHMEM_MAP was refused with {0}")]
    Refused(u64),
    /// Something else than the answer came.
    #[error("request {request} with flags {flags:#x} and {size} bytes came instead of an answer")]
    Unexpected {
        /// Number of the request.
        request: u32,
        /// Flags.
        flags: u32,
        /// Bytes of payload.
        size: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mapping {
    Unasked,
    Asked,
    Done,
}

/// The channel.
#[derive(Debug)]
pub struct BackendChannel {
    socket: OwnedFd,
    mapping: Mapping,
    answer: [u8; ANSWER_LEN],
    got: usize,
}

impl BackendChannel {
    /// The channel on this socket.
    pub fn new(socket: OwnedFd) -> BackendChannel {
        BackendChannel { socket, mapping: Mapping::Unasked, answer: [0; ANSWER_LEN], got: 0 }
    }

    /// Asks to map the region, unless that was done. With `acked` an answer
    /// will come.
    pub fn offer(&mut self, region: &RegionFd, acked: bool) -> Result<(), BackendError> {
        if self.mapping != Mapping::Unasked {
            return Ok(());
        }
        let body = ShMemMap {
            shmid: 0,
            padding: [0; 7],
            fd_offset: region.offset.into(),
            shm_offset: 0.into(),
            len: region.len.into(),
            flags: SHMEM_WRITABLE.into(),
        };
        let need_reply = if acked { FLAG_NEED_REPLY } else { 0 };
        let header = Header {
            request: backend_request::SHMEM_MAP.into(),
            flags: (FLAG_VERSION | need_reply).into(),
            size: (size_of::<ShMemMap>() as u32).into(),
        };
        let mut message = [0; size_of::<Header>() + size_of::<ShMemMap>()];
        message[..size_of::<Header>()].copy_from_slice(header.as_bytes());
        message[size_of::<Header>()..].copy_from_slice(body.as_bytes());
        let sent = fds::send(&self.socket, &message, &[region.fd.as_fd()])?;
        if sent != message.len() {
            return Err(BackendError::Cut(sent));
        }
        self.mapping = if acked { Mapping::Asked } else { Mapping::Done };
        Ok(())
    }

    /// A reset unmapped the region: it is to be offered again.
    pub fn forget(&mut self) {
        if self.mapping == Mapping::Done {
            self.mapping = Mapping::Unasked;
        }
    }

    /// Whether the front end has mapped the region.
    pub fn is_mapped(&self) -> bool {
        self.mapping == Mapping::Done
    }

    /// Reads what is there; true when the region has become mapped.
    pub fn poll(&mut self) -> Result<bool, BackendError> {
        let mut closed_here = Vec::new();
        while self.got < ANSWER_LEN {
            let rest = &mut self.answer[self.got..];
            match fds::receive(&self.socket, rest, &mut closed_here) {
                Ok(received) if received.bytes == 0 => return Err(BackendError::Closed),
                Ok(received) => self.got += received.bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            }
            closed_here.clear();
        }
        self.got = 0;
        let (header, value) = self.answer.split_at(size_of::<Header>());
        let header = Header::read_from_bytes(header).expect("as long as a header");
        let (request, flags) = (header.request.get(), header.flags.get());
        let size = header.size.get();
        let expected = request == backend_request::SHMEM_MAP
            && flags & FLAG_REPLY != 0
            && size as usize == ANSWER_LEN - size_of::<Header>()
            && self.mapping == Mapping::Asked;
        if !expected {
            return Err(BackendError::Unexpected { request, flags, size });
        }
        match u64::from_le_bytes(value.try_into().expect("eight bytes")) {
            0 => {
                self.mapping = Mapping::Done;
                Ok(true)
            }
            error => Err(BackendError::Refused(error)),
        }
    }
}

impl AsFd for BackendChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
