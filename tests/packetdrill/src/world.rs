//! Everything behind the table of functions: descriptors, connections, the
//! stack and the virtual clock. One thread at a time works on it.

use core::net::{IpAddr, SocketAddr};
use std::collections::{BTreeMap, HashMap};

use paste_abi::{Event, Flow, Reason, Slot};

use crate::conn::{Chunk, Conn};
use crate::errno::{Errno, Result};
use crate::flags::Settings;
use crate::net::Net;
use crate::ready::Epoll;
use crate::socket::{Role, Socket};

/// Connections are named apart from flows, whose names the stack uses again.
pub(crate) type ConnId = u32;

/// Where virtual time starts, ns: after any timer's start, and on no edge.
const START: u64 = 1_000_000_000;

/// What a descriptor refers to.
#[derive(Debug)]
pub(crate) enum File {
    Socket(Socket),
    Epoll(Epoll),
}

/// The state.
#[derive(Debug)]
pub(crate) struct World {
    pub settings: Settings,
    /// Virtual time, ns.
    pub now: u64,
    pub net: Option<Net>,
    pub conns: BTreeMap<ConnId, Conn>,
    by_flow: HashMap<Flow, ConnId>,
    conn_next: ConnId,
    pub files: BTreeMap<i32, Descriptor>,
}

/// A descriptor. Its number is that of a real one, so that no other descriptor
/// of the process has it, and so that packetdrill, which closes at its end what
/// the script did not, has something to close.
#[derive(Debug)]
pub(crate) struct Descriptor {
    pub file: File,
    pub number: std::fs::File,
}

impl World {
    pub(crate) fn new(settings: Settings) -> World {
        World {
            settings,
            now: START,
            net: None,
            conns: BTreeMap::new(),
            by_flow: HashMap::new(),
            conn_next: 0,
            files: BTreeMap::new(),
        }
    }

    /// The network, made when it is first needed: by then a script has set its
    /// sysctls, and said which address is ours. `family` is that of the socket
    /// that needs it, where `local` does not say.
    pub(crate) fn net(
        &mut self,
        local: Option<IpAddr>,
        family: i32,
        connects: bool,
    ) -> Result<&mut Net> {
        if self.net.is_none() {
            self.settings.follow_sysctls();
            let address = match local {
                Some(address) if !address.is_unspecified() => address,
                _ if family == libc::AF_INET6 => self.settings.local6.into(),
                _ => self.settings.local.into(),
            };
            self.net = Some(Net::new(&self.settings, address, connects));
        }
        self.net.as_mut().ok_or(Errno(libc::ENETDOWN))
    }

    /// Adds a connection; `flow` is known to the stack.
    pub(crate) fn add_conn(&mut self, flow: Flow, mut conn: Conn) -> ConnId {
        let id = self.conn_next;
        self.conn_next += 1;
        self.by_flow.insert(flow, id);
        conn.flow = Some(flow);
        self.conns.insert(id, conn);
        id
    }

    /// The id that [`World::add_conn`] gives next.
    pub(crate) fn next_conn(&self) -> ConnId {
        self.conn_next
    }

    /// Does all that can be done without time passing.
    pub(crate) fn settle(&mut self) {
        let Some(mut net) = self.net.take() else { return };
        net.advance(self.now);
        loop {
            let slots = net.poll();
            let mut any = !slots.is_empty();
            for slot in &slots {
                self.told(&mut net, slot);
            }
            for conn in self.conns.values_mut() {
                any |= conn.pump(&mut net, self.now);
            }
            any |= net.transmit(self.now);
            if !any {
                break;
            }
        }
        self.conns.retain(|_, conn| !conn.is_done());
        self.net = Some(net);
    }

    /// When something happens next without anybody's doing.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let stack = self.net.as_ref().and_then(|net| net.stack.next_deadline());
        let conns = self.conns.values().filter_map(Conn::deadline).min();
        stack.into_iter().chain(conns).min()
    }

    /// The stack says something about a flow.
    fn told(&mut self, net: &mut Net, slot: &Slot) {
        if slot.as_event() == Some(Event::Accepted) {
            self.accepted(net, slot);
            return;
        }
        let Some(id) = self.by_flow.get(&slot.flow).copied() else {
            return;
        };
        let now = self.now;
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        match slot.as_event() {
            Some(Event::Data) => {
                let chunk = Chunk { buf: slot.buf_idx, offset: slot.offset, len: slot.len };
                if conn.orphan {
                    // RFC 2525 section 2.17: nobody will read it, and the peer
                    // is to know.
                    net.release(now, chunk.buf);
                    let _ = net.abort(now, slot.flow);
                } else {
                    conn.rx.push_back(chunk);
                    conn.received_at = now;
                    conn.activity += 1;
                }
            }
            Some(Event::Connected) => {
                conn.connected = true;
                conn.received_at = now;
                conn.activity += 1;
            }
            Some(Event::Fin) => {
                conn.peer_closed = true;
                conn.activity += 1;
            }
            Some(Event::Acked) => conn.acknowledged(slot.cookie),
            Some(Event::Reset) => {
                let reason = Reason::from_u16(slot.len).unwrap_or(Reason::Aborted);
                conn.end(reason);
                self.by_flow.remove(&slot.flow);
            }
            Some(Event::Closed) => {
                conn.end(Reason::Aborted);
                self.by_flow.remove(&slot.flow);
            }
            // The next pump tries again; the others answer requests in frames.
            Some(
                Event::Writable
                | Event::Accepted
                | Event::Reply
                | Event::Refused
                | Event::Flushed
                | Event::Piece,
            )
            | None => {}
        }
    }

    /// A listener has a new flow.
    fn accepted(&mut self, net: &mut Net, slot: &Slot) {
        let id = self.conn_next;
        let listening = self.files.values_mut().find_map(|d| match &mut d.file {
            File::Socket(s) if s.listens_as(slot.listener()) => Some(s),
            _ => None,
        });
        let Some(socket) = listening else {
            let _ = net.abort(self.now, slot.flow);
            return;
        };
        if let Role::Listening { queue, .. } = &mut socket.role {
            queue.push_back(id);
        }
        socket.activity += 1;
        let mut conn = Conn::new(slot.peer(), true, &socket.options);
        conn.received_at = self.now;
        self.add_conn(slot.flow, conn);
    }

    /// The socket behind a descriptor.
    pub(crate) fn socket(&mut self, fd: i32) -> Result<&mut Socket> {
        match self.files.get_mut(&fd) {
            Some(Descriptor { file: File::Socket(socket), .. }) => Ok(socket),
            Some(_) => Err(Errno(libc::ENOTSOCK)),
            None => Err(Errno(libc::EBADF)),
        }
    }

    /// Gives `file` a number.
    pub(crate) fn open(&mut self, file: File) -> Result<i32> {
        use std::os::fd::AsRawFd;
        let opened = std::fs::File::open("/dev/null");
        let number = opened.map_err(|e| Errno(e.raw_os_error().unwrap_or(libc::EMFILE)))?;
        let fd = number.as_raw_fd();
        self.files.insert(fd, Descriptor { file, number });
        Ok(fd)
    }

    /// The peer as the application is told: IPv4 in the form of its family.
    pub(crate) fn shown(peer: SocketAddr, family: i32) -> SocketAddr {
        match peer.ip() {
            IpAddr::V4(v4) if family == libc::AF_INET6 => {
                SocketAddr::new(v4.to_ipv6_mapped().into(), peer.port())
            }
            _ => peer,
        }
    }
}
