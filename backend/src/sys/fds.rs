//! Descriptors that come from elsewhere: over a Unix socket, or inherited.
//!
//! Knows nothing of what a descriptor is for.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Descriptors that one [`send`] or [`receive`] carries at most.
pub const DESCRIPTORS_MAX: usize = 8;

/// What one [`receive`] brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes written to the buffer; 0: the peer has closed.
    pub bytes: usize,
    /// More than [`DESCRIPTORS_MAX`] descriptors came; the rest is closed.
    pub truncated: bool,
}

/// Receives what is there now, and appends the descriptors that came with it to
/// `descriptors`. They are closed on exec. Never waits: with nothing there the
/// error is [`io::ErrorKind::WouldBlock`].
pub fn receive(
    socket: impl AsFd,
    bytes: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(bytes)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    // The space is rounded up, so that one more than the limit may have fitted.
    let mut truncated = received.flags.contains(ReturnFlags::CTRUNC);
    let mut room = DESCRIPTORS_MAX;
    for message in control.drain() {
        let RecvAncillaryMessage::ScmRights(received) = message else {
            continue;
        };
        let taken = received.len().min(room);
        truncated |= received.len() > taken;
        room -= taken;
        descriptors.extend(received.take(taken));
    }
    Ok(Received { bytes: received.bytes, truncated })
}

/// Sends bytes and descriptors as far as there is room, and returns how many
/// bytes went; the descriptors go with the first byte. Never waits: without
/// room the error is [`io::ErrorKind::WouldBlock`]. More than
/// [`DESCRIPTORS_MAX`] descriptors are refused as invalid input.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = descriptors.len() <= DESCRIPTORS_MAX
        && (descriptors.is_empty() || control.push(SendAncillaryMessage::ScmRights(descriptors)));
    if !fits {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} descriptors at once; at most {DESCRIPTORS_MAX}", descriptors.len()),
        ));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        match sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            sent => return Ok(sent?),
        }
    }
}

/// Takes ownership of a descriptor that this process inherited by number. An
/// error if no such descriptor is open, or if it is standard input, output or
/// error.
///
/// To be called once for a number, at start-up, before anything else is opened:
/// the number must be the one that the parent process meant.
pub fn inherit(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {number} is a standard stream, or none"),
        ));
    }
    // SAFETY: the number is not -1. If nothing is open under it, `fcntl` says so
    // and nothing has happened.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and nobody else in this process owns it, because the
    // parent opened it and the caller asks once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_travel_with_bytes() {
        let (a, b) = UnixStream::pair().unwrap();
        let (read, write) = rustix::pipe::pipe().unwrap();
        assert_eq!(send(&a, b"hello", &[write.as_fd()]).unwrap(), 5);
        drop(write);
        let mut buf = [0; 16];
        let mut fds = Vec::new();
        let received = receive(&b, &mut buf, &mut fds).unwrap();
        assert_eq!(received, Received { bytes: 5, truncated: false });
        assert_eq!(fds.len(), 1);
        rustix::io::write(&fds[0], b"x").unwrap();
        let mut byte = [0; 2];
        assert_eq!(rustix::io::read(&read, &mut byte).unwrap(), 1);
        // The received descriptor was the last writer: dropping it is seen.
        drop(fds);
        assert_eq!(rustix::io::read(&read, &mut byte).unwrap(), 0);
    }

    #[test]
    fn nothing_there_does_not_wait_and_a_closed_peer_is_zero() {
        let (a, b) = UnixStream::pair().unwrap();
        let mut fds = Vec::new();
        let error = receive(&b, &mut [0; 4], &mut fds).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(receive(&b, &mut [0; 4], &mut fds).unwrap().bytes, 0);
    }

    #[test]
    fn too_many_descriptors_are_refused_and_noticed() {
        let (a, b) = UnixStream::pair().unwrap();
        let many = vec![a.as_fd(); DESCRIPTORS_MAX + 1];
        assert_eq!(send(&a, b"x", &many).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        // A peer with a larger buffer can send more all the same. Whatever is
        // not taken is closed.
        let (read, write) = rustix::pipe::pipe().unwrap();
        for count in [DESCRIPTORS_MAX + 1, DESCRIPTORS_MAX * 2] {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX * 2))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let many = vec![write.as_fd(); count];
            assert!(control.push(SendAncillaryMessage::ScmRights(&many)));
            sendmsg(&a, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
            let mut fds = Vec::new();
            assert!(receive(&b, &mut [0; 4], &mut fds).unwrap().truncated);
            assert_eq!(fds.len(), DESCRIPTORS_MAX);
        }
        drop(write);
        assert_eq!(rustix::io::read(&read, &mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn inherits_what_is_open_only() {
        assert!(inherit(-1).is_err());
        assert!(inherit(1).is_err());
        let (a, b) = UnixStream::pair().unwrap();
        let raw = a.into_raw_fd();
        let a = inherit(raw).unwrap();
        send(&a, b"x", &[]).unwrap();
        drop(a);
        let mut fds = Vec::new();
        assert_eq!(receive(&b, &mut [0; 4], &mut fds).unwrap().bytes, 1);
        assert_eq!(receive(&b, &mut [0; 4], &mut fds).unwrap().bytes, 0);
    }
}
