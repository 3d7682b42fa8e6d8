//! A front end's session: messages read from its socket, checked against the
//! table, handled, and answered. Never waits.
//!
//! A message may come in any number of pieces, its descriptors with any of
//! them. Reading stops at the message's end, so that no descriptor of the next
//! one is taken with it. Every descriptor is owned from the moment it arrives,
//! and is closed wherever the message goes no further.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use paste_abi::vhost_user::{
    FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, FLAG_VERSION_MASK, Header, protocol,
};
use zerocopy::{FromBytes, IntoBytes};

use super::control::{Control, Refusal};
use super::message::{Answer, PAYLOAD_MAX, Reply, Request, Rings, Row, row_of};
use crate::sys::fds;

const HEADER_LEN: usize = size_of::<Header>();

/// Messages handled before the data path gets its turn again.
const MESSAGES_MAX: usize = 64;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The front end closed its end between two messages.
    #[error("the front end closed the connection")]
    Closed,
    /// The front end closed its end within a message.
    #[error("the front end closed the connection after {0} bytes of a message")]
    Truncated(usize),
    /// A system call failed.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
    /// Another version of the protocol, or a reply where a request belongs.
    #[error("{name}: flags {flags:#x} are not those of a version {FLAG_VERSION} request")]
    Flags {
        /// The message.
        name: Name,
        /// Its flags.
        flags: u32,
    },
    /// More payload than any message may have.
    #[error("{name}: {size} bytes of payload; at most {PAYLOAD_MAX}")]
    TooLarge {
        /// The message.
        name: Name,
        /// Bytes announced.
        size: u32,
    },
    /// Not the payload that this message has.
    #[error("{name}: {have} bytes of payload instead of {want}")]
    PayloadSize {
        /// The message.
        name: Name,
        /// Bytes that came.
        have: usize,
        /// Bytes that belong to it.
        want: usize,
    },
    /// Not the number of descriptors that this message carries.
    #[error("{name}: {have} descriptors instead of {want}")]
    DescriptorCount {
        /// The message.
        name: Name,
        /// Descriptors that came.
        have: usize,
        /// Descriptors that belong to it.
        want: usize,
    },
    /// More descriptors than any message may carry.
    #[error("{name}: more than {max} descriptors", max = fds::DESCRIPTORS_MAX)]
    TooManyDescriptors {
        /// The message.
        name: Name,
    },
    /// A refusal that the front end cannot be told.
    #[error("{name}: {refusal}")]
    Refused {
        /// The message.
        name: Name,
        /// Why.
        refusal: Refusal,
    },
    /// The front end does not read its replies.
    #[error("{name}: the reply finds no room, the front end does not read")]
    ReplyBlocked {
        /// The message.
        name: Name,
    },
}

/// A message in an error: its name if it has one, or its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name(pub u32);

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match row_of(self.0) {
            Some(row) => f.write_str(row.name),
            None => write!(f, "request {}", self.0),
        }
    }
}

/// The front end's end of a conversation.
#[derive(Debug)]
pub struct Session {
    stream: UnixStream,
    /// Header and payload of the message that is being read.
    message: Box<[u8; HEADER_LEN + PAYLOAD_MAX]>,
    got: usize,
    descriptors: Vec<OwnedFd>,
}

impl Session {
    /// A session that has just begun.
    pub fn new(stream: UnixStream) -> Session {
        Session {
            stream,
            message: Box::new([0; HEADER_LEN + PAYLOAD_MAX]),
            got: 0,
            descriptors: Vec::with_capacity(fds::DESCRIPTORS_MAX),
        }
    }

    /// Handles the messages that have come, at most [`MESSAGES_MAX`].
    pub fn serve(&mut self, control: &mut Control) -> Result<(), SessionError> {
        for _ in 0..MESSAGES_MAX {
            let Some(header) = self.receive()? else { break };
            self.dispatch(&header, control)?;
        }
        Ok(())
    }

    /// Reads on until a message is whole; `None` while it is not.
    fn receive(&mut self) -> Result<Option<Header>, SessionError> {
        if !self.fill(HEADER_LEN)? {
            return Ok(None);
        }
        let header =
            Header::read_from_bytes(&self.message[..HEADER_LEN]).expect("as long as a header");
        let (name, flags) = (Name(header.request.get()), header.flags.get());
        if flags & FLAG_VERSION_MASK != FLAG_VERSION || flags & FLAG_REPLY != 0 {
            return Err(SessionError::Flags { name, flags });
        }
        let size = header.size.get();
        if size as usize > PAYLOAD_MAX {
            return Err(SessionError::TooLarge { name, size });
        }
        Ok(self.fill(HEADER_LEN + size as usize)?.then_some(header))
    }

    /// Reads until `want` bytes of the message are there; false if they are not.
    fn fill(&mut self, want: usize) -> Result<bool, SessionError> {
        while self.got < want {
            let rest = &mut self.message[self.got..want];
            let received = match fds::receive(&self.stream, rest, &mut self.descriptors) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.into()),
            };
            match (received.bytes, self.got) {
                (0, 0) => return Err(SessionError::Closed),
                (0, got) => return Err(SessionError::Truncated(got)),
                (bytes, _) => self.got += bytes,
            }
            if received.truncated || self.descriptors.len() > fds::DESCRIPTORS_MAX {
                let name = Name(self.request_so_far());
                return Err(SessionError::TooManyDescriptors { name });
            }
        }
        Ok(true)
    }

    /// The request's number, as far as it was read.
    fn request_so_far(&self) -> u32 {
        let mut number = [0; 4];
        let got = self.got.min(4);
        number[..got].copy_from_slice(&self.message[..got]);
        u32::from_le_bytes(number)
    }

    fn dispatch(&mut self, header: &Header, control: &mut Control) -> Result<(), SessionError> {
        let payload = &self.message[HEADER_LEN..self.got];
        let descriptors = std::mem::take(&mut self.descriptors);
        self.got = 0;
        control.counters.messages += 1;
        let id = header.request.get();
        let ack_asked = header.flags.get() & FLAG_NEED_REPLY != 0;
        let Some(row) = row_of(id) else {
            control.counters.messages_unknown += 1;
            tracing::debug!(id, "a message that this back end does not know");
            drop(descriptors);
            return if ack_asked && control.protocol & protocol::REPLY_ACK != 0 {
                self.reply(id, &1u64.to_le_bytes())
            } else {
                Ok(())
            };
        };
        let name = Name(id);
        if let Some(want) = row.payload.expected_instead(payload) {
            return Err(SessionError::PayloadSize { name, have: payload.len(), want });
        }
        let have = descriptors.len();
        if let Some(want) = row.descriptors.expected_instead(payload, have) {
            return Err(SessionError::DescriptorCount { name, have, want });
        }
        let answer = handle(row, Request { payload, descriptors }, control);
        // Asked after the handler: the ack of REPLY_ACK itself counts.
        let ack = ack_asked && control.protocol & protocol::REPLY_ACK != 0;
        match answer {
            Ok(Answer::Data(data)) => self.reply(id, &data),
            Ok(Answer::Done) if ack => self.reply(id, &0u64.to_le_bytes()),
            Ok(Answer::Done) => Ok(()),
            Err(refusal) => {
                control.counters.messages_refused += 1;
                let told = match row.reply {
                    Reply::Ack if ack => Some(&1u64.to_le_bytes()[..]),
                    Reply::DataOrNothing => Some(&[][..]),
                    Reply::Ack | Reply::Data => None,
                };
                let Some(payload) = told else {
                    return Err(SessionError::Refused { name, refusal });
                };
                let guest = &control.model.name;
                tracing::debug!(guest, message = %name, %refusal, "message refused");
                self.reply(id, payload)
            }
        }
    }

    fn reply(&mut self, id: u32, payload: &[u8]) -> Result<(), SessionError> {
        let header = Header {
            request: id.into(),
            flags: (FLAG_VERSION | FLAG_REPLY).into(),
            size: (payload.len() as u32).into(),
        };
        let mut message = Vec::with_capacity(HEADER_LEN + payload.len());
        message.extend_from_slice(header.as_bytes());
        message.extend_from_slice(payload);
        match fds::send(&self.stream, &message, &[]) {
            Ok(sent) if sent == message.len() => Ok(()),
            Ok(_) => Err(SessionError::ReplyBlocked { name: Name(id) }),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(SessionError::ReplyBlocked { name: Name(id) })
            }
            // It has gone; what it had sent before is not worth handling.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(SessionError::Closed),
            Err(error) => Err(error.into()),
        }
    }
}

/// Does what the row says before the handler, and runs it.
fn handle(row: &Row, request: Request<'_>, control: &mut Control) -> Result<Answer, Refusal> {
    let missing = row.needs & !control.protocol;
    if missing != 0 {
        return Err(Refusal::NotNegotiated(missing));
    }
    match row.rings {
        Rings::Run => {}
        Rings::Settle => control.settle(),
        Rings::Stop => {
            control.settle();
            control.stop_all();
        }
    }
    (row.handler)(control, request)
}

impl AsFd for Session {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
