//! Links: frames of a guest's plain NIC in batches over a Unix `SOCK_SEQPACKET` socket,
//! for VMMs that give no rings away.
//!
//! A link is the second way of getting at the same virtio-net device: where a vhost-user
//! front end shares the guest's memory, a VMM that emulates the device itself (bhyve)
//! hands over each frame with its virtio-net header, and many of them in one record. A
//! guest sees no difference but speed, and PASTE frames pass as any others; their payload
//! is inline, unless a second device of the VMM shows the guest its region.
//!
//! | room | what it does |
//! | --- | --- |
//! | `wire` | the records, byte for byte |
//! | `control` | the socket on which VMMs ask for guests, and their first record |
//! | `region` | devices that show a guest its region, and their requests to make it durable |
//! | here | the records of one link, once it is a guest's |
//!
//! The other side is not trusted: a record that is malformed, or out of turn, ends its
//! link. Nothing here knows what is in a frame, or who the guest is.

mod control;
mod offer;
mod region;
#[cfg(test)]
mod tests;
pub mod wire;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use paste_abi::net_hdr::{NET_HDR_LEN, NetHdr};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use zerocopy::IntoBytes;

pub use control::{Asked, Control, ControlError, RegionRequest, Request};
pub use offer::{Mailbox, Offer, Post, mailbox};
pub use region::{RegionLink, RegionOffer, SegmentTerms};
use wire::{ALIGN, FRAME_MAX, HEAD_LEN, Kind, RECORD_MAX, Walk, WireError};

/// Why a link has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The VMM has closed it, or is gone.
    #[error("the VMM has closed its link")]
    Closed,
    /// The VMM has said that a driver accepted what was never offered.
    #[error("the driver uses the features {0:#x}, which were not offered")]
    Features(u64),
    /// The VMM has sent what is no record.
    #[error("the VMM broke the link's protocol: {0}")]
    Wire(#[from] WireError),
    /// A system call failed.
    #[error("the socket failed: {0}")]
    System(Errno),
}

/// What a link has for its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Nothing now.
    Nothing,
    /// A frame of this length, header first, is in the caller's buffer.
    Frame(usize),
    /// A frame that does not fit into the caller's buffer was thrown away.
    Oversize,
    /// A driver begins, and has accepted these features.
    Features(u64),
}

/// One link, connected.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
    /// The record that frames are taken from.
    input: Box<[u8]>,
    input_len: usize,
    walk: Walk,
    /// The record that is being filled.
    output: Box<[u8]>,
    output_len: usize,
    output_count: u16,
    /// The driver that has begun is to be acknowledged before any frame goes.
    echo: Option<u64>,
    /// The socket had no room.
    blocked: bool,
    /// Why it has ended.
    error: Option<LinkError>,
}

impl Link {
    /// A link on a socket whose first record has been answered.
    pub fn new(socket: OwnedFd) -> Link {
        Link {
            socket,
            input: vec![0; RECORD_MAX].into(),
            input_len: 0,
            walk: Walk::default(),
            output: vec![0; RECORD_MAX].into(),
            output_len: HEAD_LEN,
            output_count: 0,
            echo: None,
            blocked: false,
            error: None,
        }
    }

    /// Why the link has ended, once it has.
    pub fn error(&self) -> Option<LinkError> {
        self.error
    }

    /// The descriptor to be watched, for becoming readable.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Ends it for a reason of the device's.
    pub fn fail(&mut self, error: LinkError) {
        self.end(error);
    }

    /// Whether a record that came has more frames.
    pub fn has_input(&self) -> bool {
        !self.walk.is_done()
    }

    /// Whether a record found no room: [`Link::flush`] is to be called again soon, as the
    /// socket does not say when there is some.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    fn end(&mut self, error: LinkError) -> Taken {
        self.blocked = false;
        self.error.get_or_insert(error);
        self.walk = Walk::default();
        Taken::Nothing
    }

    /// Takes the next frame or word of the VMM. One system call for each record.
    pub fn take(&mut self, out: &mut [u8]) -> Taken {
        if self.error.is_some() {
            return Taken::Nothing;
        }
        if self.walk.is_done() {
            match self.receive() {
                Ok(None) => {}
                Ok(Some(taken)) => return taken,
                Err(error) => return self.end(error),
            }
        }
        match self.walk.next(&self.input[..self.input_len]) {
            None => Taken::Nothing,
            Some(Err(error)) => self.end(error.into()),
            Some(Ok(frame)) => match out.get_mut(..frame.len()) {
                Some(out) => {
                    out.copy_from_slice(frame);
                    Taken::Frame(frame.len())
                }
                None => Taken::Oversize,
            },
        }
    }

    /// Receives a record. What it is, unless it is frames.
    fn receive(&mut self) -> Result<Option<Taken>, LinkError> {
        let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
        let len = loop {
            match recv(&self.socket, &mut *self.input, flags) {
                Ok((_, 0)) => return Err(LinkError::Closed),
                Ok((_, len)) if len > RECORD_MAX => return Err(WireError::Length(len).into()),
                Ok((_, len)) => break len,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Some(Taken::Nothing)),
                Err(Errno::CONNRESET | Errno::PIPE) => return Err(LinkError::Closed),
                Err(errno) => return Err(LinkError::System(errno)),
            }
        };
        let (kind, count, body) = wire::head(&self.input[..len])?;
        match kind {
            Kind::Frames => {
                (self.walk, self.input_len) = (Walk::new(count), len);
                Ok(None)
            }
            Kind::Features => match body.try_into() {
                Ok(features) => {
                    let features = u64::from_le_bytes(features);
                    // What waits to be sent is for the driver before.
                    (self.output_len, self.output_count) = (HEAD_LEN, 0);
                    self.echo = Some(features);
                    Ok(Some(Taken::Features(features)))
                }
                Err(_) => Err(WireError::Body(body.len(), kind as u8).into()),
            },
            _ => Err(WireError::Kind(kind as u8).into()),
        }
    }

    /// Whether a frame may be put.
    pub fn can_put(&self) -> bool {
        self.error.is_none() && !self.blocked
    }

    /// Puts a frame, given in parts, into the record that the next [`Link::flush`] sends;
    /// a record that is full goes at once. False if there is no room; a frame that is too
    /// long for any record has none.
    pub fn put(&mut self, header: &NetHdr, parts: &[&[u8]]) -> bool {
        let len = NET_HDR_LEN + parts.iter().map(|part| part.len()).sum::<usize>();
        let needed = 4 + len.next_multiple_of(ALIGN);
        if !self.can_put() || len > FRAME_MAX {
            return false;
        }
        if RECORD_MAX - self.output_len < needed || self.output_count == u16::MAX {
            self.flush();
            if self.output_count > 0 {
                return false;
            }
        }
        let mut rest = &mut self.output[self.output_len..][..needed];
        let mut append = |bytes: &[u8]| {
            if let Some(room) = rest.split_off_mut(..bytes.len()) {
                room.copy_from_slice(bytes);
            }
        };
        append(&(len as u32).to_le_bytes());
        append(header.as_bytes());
        parts.iter().for_each(|part| append(part));
        rest.fill(0);
        self.output_len += needed;
        self.output_count += 1;
        true
    }

    /// Sends what was put, in one system call, as far as the socket has room.
    pub fn flush(&mut self) {
        if self.error.is_some() {
            return;
        }
        if let Some(features) = self.echo {
            let mut record = [0; HEAD_LEN + 8];
            if let Some((head, body)) = record.split_first_chunk_mut::<HEAD_LEN>() {
                wire::write_head(Kind::Features, 0, head);
                body.copy_from_slice(&features.to_le_bytes());
            }
            if !self.send(&record) {
                return;
            }
            self.echo = None;
        }
        if self.output_count == 0 {
            return;
        }
        if let Some(head) = self.output.first_chunk_mut::<HEAD_LEN>() {
            wire::write_head(Kind::Frames, self.output_count, head);
        }
        let output = std::mem::take(&mut self.output);
        let sent = self.send(&output[..self.output_len]);
        self.output = output;
        if sent {
            (self.output_len, self.output_count) = (HEAD_LEN, 0);
        }
    }

    /// Sends a record. False if the socket has no room; a link that has ended takes all.
    fn send(&mut self, record: &[u8]) -> bool {
        let sent = loop {
            match send(&self.socket, record, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                sent => break sent,
            }
        };
        self.blocked = matches!(sent, Err(Errno::AGAIN | Errno::NOBUFS));
        match sent {
            Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => {
                self.end(LinkError::Closed);
            }
            Err(errno) => {
                self.end(LinkError::System(errno));
            }
        }
        !self.blocked
    }
}

/// Sets a socket up to hold several records in each direction, as far as the system lets
/// it.
pub(crate) fn size_buffers(socket: impl AsFd) -> io::Result<()> {
    const SIZE: usize = 16 * RECORD_MAX;
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, SIZE)?;
    rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SIZE)?;
    Ok(())
}
