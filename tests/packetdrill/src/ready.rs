//! poll and epoll: what a socket is ready for.

use std::collections::BTreeMap;

use crate::errno::{Errno, Result};
use crate::socket::{Attempt, Role};
use crate::world::{Descriptor, File, World};

/// Bits that poll and epoll have in common, by epoll's names.
const IN: u32 = libc::EPOLLIN as u32 | libc::EPOLLRDNORM as u32;
const OUT: u32 = libc::EPOLLOUT as u32 | libc::EPOLLWRNORM as u32;
const ERR: u32 = libc::EPOLLERR as u32;
const HUP: u32 = libc::EPOLLHUP as u32;
const RDHUP: u32 = libc::EPOLLRDHUP as u32;
const EDGE: u32 = libc::EPOLLET as u32;
const ONCE: u32 = libc::EPOLLONESHOT as u32;

/// What an epoll instance wants to know of a socket.
#[derive(Clone, Copy, Debug)]
struct Interest {
    events: u32,
    data: u64,
    /// The socket's activity when it was last reported, for edges.
    reported: Option<u64>,
    /// Switched off by EPOLLONESHOT.
    off: bool,
}

/// An epoll instance.
#[derive(Debug, Default)]
pub(crate) struct Epoll {
    interests: BTreeMap<i32, Interest>,
    /// Where the next wait starts to look, so that every socket has its turn.
    turn: i32,
}

impl Epoll {
    /// The descriptor is closed.
    pub(crate) fn forget(&mut self, fd: i32) {
        self.interests.remove(&fd);
    }
}

impl World {
    /// What a socket is ready for, and its activity count.
    fn readiness(&mut self, fd: i32) -> Result<(u32, u64)> {
        let socket = self.socket(fd)?;
        let sndbuf = socket.options.sndbuf as usize;
        let lowat = socket.options.unsent_max();
        let id = match &socket.role {
            Role::Idle => return Ok((OUT | HUP, socket.activity)),
            Role::Listening { queue, .. } => {
                let ready = if queue.is_empty() { 0 } else { IN };
                return Ok((ready, socket.activity));
            }
            Role::Connection(id) => *id,
        };
        let Some(conn) = self.conns.get(&id) else {
            return Ok((IN | OUT | HUP, 0));
        };
        let (unsent, queued) = conn.queued(self.net.as_ref());
        let mut ready = 0;
        if conn.read_ended() {
            ready |= IN | RDHUP;
        }
        if !conn.rx.is_empty() {
            ready |= IN;
        }
        if conn.is_over() || (conn.write_ended() && conn.read_ended()) {
            ready |= HUP;
        }
        // As Linux has it: room for half as much again as is queued.
        let room = sndbuf.saturating_sub(queued);
        let writable = conn.connected && room >= queued / 2 && unsent < lowat;
        if conn.write_ended() || writable {
            ready |= OUT;
        }
        if conn.error.is_some() {
            ready |= ERR;
        }
        Ok((ready, conn.activity))
    }

    /// Fills in what is ready and counts it; `None` when nothing is.
    pub(crate) fn poll(&mut self, fds: &mut [libc::pollfd]) -> Attempt<i32> {
        let mut count = 0;
        for entry in fds {
            entry.revents = 0;
            if entry.fd < 0 {
                continue;
            }
            entry.revents = match self.readiness(entry.fd) {
                Ok((ready, _)) => (ready & (entry.events as u16 as u32 | ERR | HUP)) as i16,
                Err(_) => libc::POLLNVAL,
            };
            count += i32::from(entry.revents != 0);
        }
        (count > 0).then_some(Ok(count))
    }

    pub(crate) fn epoll_create(&mut self) -> Result<i32> {
        self.open(File::Epoll(Epoll::default()))
    }

    fn epoll(&mut self, epfd: i32) -> Result<&mut Epoll> {
        match self.files.get_mut(&epfd) {
            Some(Descriptor { file: File::Epoll(epoll), .. }) => Ok(epoll),
            Some(_) => Err(Errno(libc::EINVAL)),
            None => Err(Errno(libc::EBADF)),
        }
    }

    pub(crate) fn epoll_ctl(
        &mut self,
        epfd: i32,
        operation: i32,
        fd: i32,
        event: Option<(u32, u64)>,
    ) -> Result<()> {
        if !self.files.contains_key(&fd) {
            return Err(Errno(libc::EBADF));
        }
        let epoll = self.epoll(epfd)?;
        if epfd == fd {
            return Err(Errno(libc::EINVAL));
        }
        let known = epoll.interests.contains_key(&fd);
        match operation {
            libc::EPOLL_CTL_ADD if known => return Err(Errno(libc::EEXIST)),
            libc::EPOLL_CTL_MOD | libc::EPOLL_CTL_DEL if !known => {
                return Err(Errno(libc::ENOENT));
            }
            libc::EPOLL_CTL_DEL => epoll.forget(fd),
            libc::EPOLL_CTL_ADD | libc::EPOLL_CTL_MOD => {
                let (events, data) = event.ok_or(Errno(libc::EFAULT))?;
                let interest = Interest { events, data, reported: None, off: false };
                epoll.interests.insert(fd, interest);
            }
            _ => return Err(Errno(libc::EINVAL)),
        }
        Ok(())
    }

    /// Ready descriptors, as events and data; `None` when there are none.
    pub(crate) fn epoll_wait(&mut self, epfd: i32, most: usize) -> Attempt<Vec<(u32, u64)>> {
        let interests = match self.epoll(epfd) {
            Ok(epoll) if most > 0 => {
                let later = epoll.interests.range(..epoll.turn);
                epoll.interests.range(epoll.turn..).chain(later).map(|(f, i)| (*f, *i)).collect()
            }
            Ok(_) => return Some(Err(Errno(libc::EINVAL))),
            Err(e) => return Some(Err(e)),
        };
        let interests: Vec<(i32, Interest)> = interests;
        let mut found = Vec::new();
        for (fd, mut interest) in interests {
            let Ok((ready, activity)) = self.readiness(fd) else { continue };
            let ready = ready & (interest.events | ERR | HUP);
            let edge = interest.events & EDGE == 0 || interest.reported != Some(activity);
            if ready == 0 || !edge || interest.off {
                continue;
            }
            interest.reported = Some(activity);
            interest.off = interest.events & ONCE != 0;
            found.push((ready, interest.data));
            let epoll = match self.epoll(epfd) {
                Ok(epoll) => epoll,
                Err(e) => return Some(Err(e)),
            };
            epoll.interests.insert(fd, interest);
            epoll.turn = fd + 1;
            if found.len() == most {
                break;
            }
        }
        (!found.is_empty()).then_some(Ok(found))
    }
}
