//! Descriptors that carry no data, only the news that there is some: eventfds,
//! or pipes and sockets where a system has no eventfd.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;

use super::control::Refusal;

/// Bytes of one signal, as an eventfd counts.
const SIGNAL: [u8; 8] = 1u64.to_ne_bytes();

/// Checks that a descriptor from the front end can be used to signal, and makes
/// it non-blocking: a worker never waits for a peer. The peer's own descriptor
/// of the same eventfd becomes non-blocking with it, so that whoever reads it
/// polls first, as VMMs do. What is left out are files whose reading can block
/// all the same, and files with contents to lose.
pub fn check(fd: OwnedFd) -> Result<OwnedFd, Refusal> {
    let io = |errno: Errno| Refusal::Descriptor(errno.into());
    let mode = fstat(&fd).map_err(io)?.st_mode;
    match FileType::from_raw_mode(mode) {
        FileType::Fifo | FileType::Socket => {}
        // Linux: an anonymous inode has no type. An eventfd is one.
        FileType::Unknown => {}
        _ => return Err(Refusal::NotSignal),
    }
    let flags = fcntl_getfl(&fd).map_err(io)?;
    fcntl_setfl(&fd, flags | OFlags::NONBLOCK).map_err(io)?;
    Ok(fd)
}

/// Signals. A descriptor that is full says the same already.
pub fn raise(fd: &OwnedFd) -> io::Result<()> {
    match rustix::io::write(fd, &SIGNAL) {
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Takes signals that have come; an error when the other end is gone, and no
/// more will come.
pub fn clear(fd: &OwnedFd) -> io::Result<()> {
    // An eventfd gives its count at once, a pipe at most this much: the rest is
    // still readable and is taken the next time.
    let mut bytes = [0; 512];
    match rustix::io::read(fd, &mut bytes) {
        Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use rustix::event::{EventfdFlags, eventfd};
    use rustix::pipe::pipe;

    use super::*;

    #[test]
    fn eventfds_pipes_and_sockets_signal() {
        let event = check(eventfd(0, EventfdFlags::empty()).unwrap()).unwrap();
        raise(&event).unwrap();
        raise(&event).unwrap();
        clear(&event).unwrap();
        // Empty: it does not wait, although it was made to.
        clear(&event).unwrap();
        let (read, write) = pipe().unwrap();
        let (read, write) = (check(read).unwrap(), check(write).unwrap());
        raise(&write).unwrap();
        clear(&read).unwrap();
        clear(&read).unwrap();
        drop(write);
        assert!(clear(&read).is_err());
        let (a, b) = UnixStream::pair().unwrap();
        let (a, b) = (check(a.into()).unwrap(), check(b.into()).unwrap());
        raise(&a).unwrap();
        drop(b);
        assert!(raise(&a).is_err());
    }

    #[test]
    fn a_full_descriptor_is_not_waited_for() {
        let (_read, write) = pipe().unwrap();
        let write = check(write).unwrap();
        while rustix::io::write(&write, &[0; 4096]).is_ok() {}
        raise(&write).unwrap();
    }

    #[test]
    fn files_are_refused() {
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        assert!(matches!(check(file), Err(Refusal::NotSignal)));
        let null: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        assert!(matches!(check(null), Err(Refusal::NotSignal)));
    }
}
