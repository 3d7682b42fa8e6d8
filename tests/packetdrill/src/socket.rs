//! Sockets: what the calls on them do, without waiting. A call that would wait
//! returns `None`, and is made again when something has happened.

use core::net::{Ipv4Addr, SocketAddr};
use std::collections::VecDeque;

use paste_abi::Flow;

use crate::conn::Conn;
use crate::errno::{Errno, Result};
use crate::options::Options;
use crate::world::{ConnId, File, World};

/// What a socket is good for.
#[derive(Debug)]
pub(crate) enum Role {
    /// Nothing yet, or nothing any more.
    Idle,
    Listening {
        listener: Flow,
        /// Established, and not accepted.
        queue: VecDeque<ConnId>,
    },
    Connection(ConnId),
}

/// A TCP socket.
#[derive(Debug)]
pub(crate) struct Socket {
    pub family: i32,
    pub nonblocking: bool,
    pub bound: Option<SocketAddr>,
    pub role: Role,
    pub options: Options,
    /// As [`Conn::activity`], for a listener.
    pub activity: u64,
    /// The outcome of a connect was reported.
    connect_told: bool,
}

/// What a call reports, or `None` when it must wait.
pub(crate) type Attempt<T> = Option<Result<T>>;

fn fail<T>(errno: i32) -> Attempt<T> {
    Some(Err(Errno(errno)))
}

impl Socket {
    fn new(family: i32, nonblocking: bool, options: Options) -> Socket {
        Socket {
            family,
            nonblocking,
            bound: None,
            role: Role::Idle,
            options,
            activity: 0,
            connect_told: false,
        }
    }

    pub(crate) fn listens_as(&self, name: Flow) -> bool {
        matches!(self.role, Role::Listening { listener, .. } if listener == name)
    }
}

/// An address with an IPv4-mapped IPv6 address as the IPv4 address that it is.
fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl World {
    pub(crate) fn socket_open(&mut self, family: i32, kind: i32, protocol: i32) -> Result<i32> {
        if !matches!(family, libc::AF_INET | libc::AF_INET6) {
            return Err(Errno(libc::EAFNOSUPPORT));
        }
        if kind & 0xf != libc::SOCK_STREAM || !matches!(protocol, 0 | libc::IPPROTO_TCP) {
            return Err(Errno(libc::EPROTONOSUPPORT));
        }
        let options = Options::new(&self.settings);
        let nonblocking = kind & libc::SOCK_NONBLOCK != 0;
        self.open(File::Socket(Socket::new(family, nonblocking, options)))
    }

    pub(crate) fn bind(&mut self, fd: i32, address: SocketAddr) -> Result<()> {
        let socket = self.socket(fd)?;
        if socket.bound.is_some() || !matches!(socket.role, Role::Idle) {
            return Err(Errno(libc::EINVAL));
        }
        socket.bound = Some(unmapped(address));
        Ok(())
    }

    pub(crate) fn listen(&mut self, fd: i32, backlog: i32) -> Result<()> {
        let socket = self.socket(fd)?;
        match socket.role {
            // A new backlog alone: the old one is as good.
            Role::Listening { .. } => return Ok(()),
            Role::Connection(_) => return Err(Errno(libc::EINVAL)),
            Role::Idle => {}
        }
        let (bound, family) = (socket.bound, socket.family);
        self.apply_options(fd)?;
        let net = self.net(bound.map(|a| a.ip()), family, false)?;
        let port = bound.map_or(0, |a| a.port());
        let backlog = backlog.clamp(1, i32::from(u16::MAX)) as u16;
        let listened = if port == 0 {
            // RFC 6335 section 6: any of the dynamic ports.
            (49152..=u16::MAX).find_map(|port| net.stack.listen(0, port, backlog).ok())
        } else {
            Some(net.stack.listen(0, port, backlog).map_err(Errno::of_refusal)?)
        };
        let listener = listened.ok_or(Errno(libc::EADDRINUSE))?;
        self.socket(fd)?.role = Role::Listening { listener, queue: VecDeque::new() };
        Ok(())
    }

    pub(crate) fn accept(&mut self, fd: i32) -> Attempt<(i32, SocketAddr)> {
        let socket = match self.socket(fd) {
            Ok(socket) => socket,
            Err(e) => return Some(Err(e)),
        };
        let (family, options) = (socket.family, socket.options.clone());
        let Role::Listening { queue, .. } = &mut socket.role else {
            return fail(libc::EINVAL);
        };
        let id = queue.pop_front()?;
        let peer = self.conns.get(&id).and_then(|conn| conn.peer);
        let mut socket = Socket::new(family, false, options);
        socket.role = Role::Connection(id);
        socket.connect_told = true;
        let opened = self.open(File::Socket(socket));
        let new = match opened {
            Ok(new) => new,
            Err(e) => return Some(Err(e)),
        };
        if let Err(e) = self.apply_options(new) {
            return Some(Err(e));
        }
        // A connection that is over has left no trace of its peer.
        let peer = peer.unwrap_or(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0));
        Some(Ok((new, World::shown(peer, family))))
    }

    /// Starts a connect: the SYN goes, and [`World::connected`] tells the rest.
    pub(crate) fn connect(&mut self, fd: i32, peer: SocketAddr) -> Result<()> {
        let socket = self.socket(fd)?;
        match socket.role {
            Role::Idle => {}
            Role::Listening { .. } => return Err(Errno(libc::EISCONN)),
            Role::Connection(id) => {
                let told = socket.connect_told;
                let conn = self.conns.get(&id);
                return match conn {
                    Some(conn) if conn.connected && told => Err(Errno(libc::EISCONN)),
                    Some(conn) if !conn.connected && !conn.is_over() => Err(Errno(libc::EALREADY)),
                    _ => Ok(()),
                };
            }
        }
        let bound = socket.bound;
        let options = socket.options.clone();
        self.apply_options(fd)?;
        let (now, cookie, peer) = (self.now, self.next_conn(), unmapped(peer));
        let family = if peer.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
        let net = self.net(bound.map(|a| a.ip()), family, true)?;
        let port = bound.map_or(0, |a| a.port());
        let opened = net.stack.connect(now, 0, peer, port, cookie);
        let flow = opened.map_err(Errno::of_refusal)?;
        let id = self.add_conn(flow, Conn::new(peer, false, &options));
        self.socket(fd)?.role = Role::Connection(id);
        self.apply_options(fd)
    }

    /// The outcome of a connect.
    pub(crate) fn connected(&mut self, fd: i32) -> Attempt<()> {
        let id = match self.conn_of(fd) {
            Ok(id) => id,
            Err(e) => return Some(Err(e)),
        };
        let conn = self.conns.get_mut(&id)?;
        let outcome = match conn.error.take() {
            Some(error) => Err(error),
            None if conn.connected => Ok(()),
            None if conn.is_over() => Err(Errno(libc::ECONNABORTED)),
            None => return None,
        };
        if let Ok(socket) = self.socket(fd) {
            socket.connect_told = true;
            if outcome.is_err() {
                socket.role = Role::Idle;
            }
        }
        Some(outcome)
    }

    /// The connection behind a descriptor.
    pub(crate) fn conn_of(&mut self, fd: i32) -> Result<ConnId> {
        match self.socket(fd)?.role {
            Role::Connection(id) => Ok(id),
            Role::Idle | Role::Listening { .. } => Err(Errno(libc::ENOTCONN)),
        }
    }

    /// Reads into `out`.
    pub(crate) fn recv(&mut self, fd: i32, out: &mut [&mut [u8]], flags: i32) -> Attempt<usize> {
        if flags & libc::MSG_ERRQUEUE != 0 {
            // Nothing is ever queued there.
            return Some(self.socket(fd).and(Err(Errno(libc::EAGAIN))));
        }
        let id = match self.conn_of(fd) {
            Ok(id) => id,
            Err(e) => return Some(Err(e)),
        };
        if flags & libc::MSG_OOB != 0 {
            return fail(libc::EINVAL);
        }
        let now = self.now;
        let (Some(net), Some(conn)) = (self.net.as_mut(), self.conns.get_mut(&id)) else {
            return fail(libc::ENOTCONN);
        };
        let room: usize = out.iter().map(|part| part.len()).sum();
        let ended = conn.read_ended() || conn.error.is_some();
        if flags & libc::MSG_WAITALL != 0 && conn.readable() < room && !ended {
            return None;
        }
        let (mut total, mut taken) = (0, 0);
        for chunk in &mut conn.rx {
            let len = (room - total).min(usize::from(chunk.len));
            if flags & libc::MSG_TRUNC == 0 {
                scatter(out, total, &net.payload(chunk.buf, chunk.offset, chunk.len)[..len]);
            }
            total += len;
            if flags & libc::MSG_PEEK == 0 {
                chunk.offset += len as u16;
                chunk.len -= len as u16;
                taken += usize::from(chunk.len == 0);
            }
            if total == room {
                break;
            }
        }
        for chunk in conn.rx.drain(..taken) {
            net.release(now, chunk.buf);
        }
        if total > 0 || room == 0 {
            return Some(Ok(total));
        }
        if let Some(error) = conn.error.take() {
            return Some(Err(error));
        }
        ended.then_some(Ok(0))
    }

    /// Writes what fits, from the `done` bytes that the call has written
    /// already; returns how many that makes. `None` when it is not all.
    pub(crate) fn send(
        &mut self,
        fd: i32,
        bytes: &[&[u8]],
        done: &mut usize,
        flags: i32,
    ) -> Attempt<usize> {
        let socket = match self.socket(fd) {
            Ok(socket) => socket,
            Err(e) => return Some(Err(e)),
        };
        let sndbuf = socket.options.sndbuf as usize;
        let lowat = socket.options.unsent_max();
        let Role::Connection(id) = socket.role else {
            return fail(libc::EPIPE);
        };
        if flags & libc::MSG_OOB != 0 {
            return fail(libc::EOPNOTSUPP);
        }
        let Some(conn) = self.conns.get_mut(&id) else {
            return fail(libc::EPIPE);
        };
        let (unsent, queued) = conn.queued(self.net.as_ref());
        let total: usize = bytes.iter().map(|part| part.len()).sum();
        if let Some(error) = conn.error.take() {
            return Some(if *done > 0 { Ok(*done) } else { Err(error) });
        }
        if conn.write_ended() {
            return if *done > 0 { Some(Ok(*done)) } else { fail(libc::EPIPE) };
        }
        if !conn.connected {
            return None;
        }
        let room = sndbuf.saturating_sub(queued).min(lowat.saturating_sub(unsent));
        let len = room.min(total - *done);
        conn.tx.extend(bytes.iter().copied().flatten().skip(*done).take(len));
        conn.more = flags & libc::MSG_MORE != 0;
        *done += len;
        if flags & libc::MSG_EOR != 0 && *done == total {
            conn.end_record();
        }
        (*done == total).then_some(Ok(total))
    }

    pub(crate) fn shutdown(&mut self, fd: i32, how: i32) -> Result<()> {
        if !matches!(how, libc::SHUT_RD | libc::SHUT_WR | libc::SHUT_RDWR) {
            return Err(Errno(libc::EINVAL));
        }
        let socket = self.socket(fd)?;
        if let Role::Listening { .. } = socket.role {
            if how != libc::SHUT_WR {
                self.stop_listening(fd)?;
            }
            return Ok(());
        }
        let id = self.conn_of(fd)?;
        let conn = self.conns.get_mut(&id).ok_or(Errno(libc::ENOTCONN))?;
        if conn.is_over() {
            return Err(Errno(libc::ENOTCONN));
        }
        conn.shut_read |= how != libc::SHUT_WR;
        conn.shut_write |= how != libc::SHUT_RD;
        conn.activity += 1;
        Ok(())
    }

    /// Listens no more; who was not accepted is reset.
    fn stop_listening(&mut self, fd: i32) -> Result<()> {
        let now = self.now;
        let role = core::mem::replace(&mut self.socket(fd)?.role, Role::Idle);
        if let (Role::Listening { listener, queue }, Some(net)) = (role, self.net.as_mut()) {
            let _ = net.stack.unlisten(0, listener);
            for id in queue {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.orphan = true;
                    conn.discard(net, now);
                    if let Some(flow) = conn.flow {
                        let _ = net.abort(now, flow);
                    }
                }
            }
        }
        Ok(())
    }

    pub(crate) fn close(&mut self, fd: i32) -> Result<()> {
        if let Some(File::Socket(socket)) = self.files.get(&fd).map(|d| &d.file) {
            let abortive = socket.options.linger == Some(0);
            match socket.role {
                Role::Listening { .. } => self.stop_listening(fd)?,
                Role::Connection(id) => self.orphan(id, abortive),
                Role::Idle => {}
            }
        }
        for descriptor in self.files.values_mut() {
            if let File::Epoll(epoll) = &mut descriptor.file {
                epoll.forget(fd);
            }
        }
        self.files.remove(&fd).map(drop).ok_or(Errno(libc::EBADF))
    }

    /// No descriptor refers to the connection any more: it ends in good order,
    /// or by a RST where bytes were not read (RFC 2525 section 2.17) or where
    /// the application asked for that.
    fn orphan(&mut self, id: ConnId, abortive: bool) {
        let now = self.now;
        let (Some(net), Some(conn)) = (self.net.as_mut(), self.conns.get_mut(&id)) else {
            return;
        };
        conn.orphan = true;
        conn.shut_write = true;
        let Some(flow) = conn.flow else {
            conn.discard(net, now);
            return;
        };
        if abortive || !conn.rx.is_empty() {
            conn.discard(net, now);
            let _ = net.abort(now, flow);
        } else if !conn.connected {
            let _ = net.close(now, flow);
        }
    }
}

/// Copies `bytes` into `out` as if its parts were one, at `at`.
fn scatter(out: &mut [&mut [u8]], mut at: usize, mut bytes: &[u8]) {
    for part in out {
        if at >= part.len() {
            at -= part.len();
            continue;
        }
        let len = bytes.len().min(part.len() - at);
        part[at..at + len].copy_from_slice(&bytes[..len]);
        bytes = &bytes[len..];
        at = 0;
        if bytes.is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scatters_over_parts() {
        let (mut a, mut b, mut c) = ([0; 2], [0; 0], [0; 3]);
        scatter(&mut [&mut a, &mut b, &mut c], 1, &[1, 2, 3]);
        assert_eq!((a, c), ([0, 1], [2, 3, 0]));
    }
}
