//! How flows begin and end: what the guest asks for, and what the kernel says of it.

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};

use paste_abi::{CHANNELS_MAX, Flow, Reason};
use rustix::event::epoll::{self, EventFlags};
use rustix::io::{DupFlags, Errno, dup3};
use rustix::net::connect;
use rustix::net::sockopt::socket_error;

use super::flows::{Links, State};
use super::lists::{List, NIL};
use super::{PasteEngine, RegionMemory, Token, event, kernel, listen, socket};
use crate::port::netmap::pst::FD_MAX;

/// Bytes of Ethernet, IPv4 and TCP headers, and of a timestamp.
const HEADERS: u16 = 14 + 20 + 20;
const TIMESTAMP: u16 = 12;

impl PasteEngine {
    /// Opens a flow. What is sent before the handshake is done waits for it.
    pub(super) fn open_flow(
        &mut self,
        channel: u16,
        remote: SocketAddr,
        local_port: u16,
        cookie: u32,
    ) -> Result<Flow, Reason> {
        if channel >= CHANNELS_MAX {
            return Err(Reason::BadRequest);
        }
        if !remote.is_ipv4() || remote.port() == 0 {
            return Err(Reason::BadAddress);
        }
        if !self.flows.has_free() {
            return Err(Reason::NoRoom);
        }
        let errno = |error: std::io::Error| error.raw_os_error().unwrap_or_default();
        let socket = listen::open(&self.nic, SocketAddr::new(self.address, local_port))
            .map_err(|error| socket::bind_reason(errno(error)))?;
        match connect(&socket, &remote) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(socket::reason(errno.raw_os_error())),
        }
        let index = self.flows.alloc().ok_or(Reason::NoRoom)?;
        let name = self.flows.name(index);
        let token = Token::Flow(name).pack();
        if epoll::add(&self.events, &socket, token, EventFlags::OUT | EventFlags::ET).is_err() {
            self.flows.free(index);
            return Err(Reason::NoRoom);
        }
        let flow = &mut self.flows[index];
        flow.socket = Some(socket);
        flow.channel = channel as u8;
        flow.peer = remote;
        flow.local_port = local_port;
        flow.opener = cookie;
        let all = &mut self.channels[usize::from(channel)].all;
        self.flows.lists.push_back(all, Links::Channel, index);
        Ok(name)
    }

    /// Has PASTE take over a socket that is connected. On an error the flow is as it was.
    pub(super) fn register(&mut self, index: u32) -> Result<(), Reason> {
        let connecting = self.flows[index].state == State::Connecting;
        debug_assert!(connecting, "a flow is registered once");
        let Some(socket) = &self.flows[index].socket else { return Err(Reason::Closed) };
        let fd = socket.as_raw_fd();
        let name = self.flows.name(index);
        let mut begin = || -> Result<(kernel::Standing, kernel::Room), Reason> {
            if fd > FD_MAX {
                return Err(Reason::NoRoom);
            }
            let gone = |_: std::io::Error| Reason::PeerReset;
            let standing = kernel::standing(socket.as_fd()).map_err(gone)?;
            let room = kernel::room(socket.as_fd()).map_err(gone)?;
            // An opened flow is watched already. Errors are always said.
            let token = Token::Flow(name).pack();
            match epoll::add(&self.events, socket, token, EventFlags::ET) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(_) => return Err(Reason::NoRoom),
            }
            // Last, as there is no way back from it but to close the socket.
            self.port.register(socket.as_fd()).map_err(|errno| match errno {
                Errno::INVAL => Reason::PeerReset,
                _ => {
                    self.counters.unregistered += 1;
                    Reason::NoRoom
                }
            })?;
            Ok((standing, room))
        };
        let (standing, room) = begin()?;
        let flow = &mut self.flows[index];
        flow.state = State::Open;
        flow.fd = fd;
        flow.headers = HEADERS + if standing.timestamps { TIMESTAMP } else { 0 };
        let longest = self.port.payload_max(flow.headers).min(usize::from(u16::MAX));
        flow.segment = standing.segment.clamp(1, longest as u32) as u16;
        flow.base = standing.given;
        flow.credit = super::send::first_credit(room, flow.segment);
        self.flows.set_fd(fd, index);
        Ok(())
    }

    /// What epoll says of a flow.
    pub(super) fn on_event(&mut self, mem: &mut RegionMemory, index: u32, flags: EventFlags) {
        let flow = &mut self.flows[index];
        let Some(socket) = &flow.socket else { return };
        let error = match flow.state {
            State::Free | State::Ended => return,
            State::Connecting | State::Open => socket_error(socket),
        };
        if let Ok(Err(errno)) | Err(errno) = error {
            let reason = socket::reason(errno.raw_os_error());
            if flow.state == State::Connecting {
                return self.terminate(mem, index, reason);
            }
            flow.failed = reason;
            return self.flows.lists.push_back(&mut self.hung, Links::Hung, index);
        }
        if flow.state == State::Connecting && flags.contains(EventFlags::OUT) {
            match self.register(index) {
                Ok(()) => {
                    let flow = &mut self.flows[index];
                    flow.events |= event::CONNECTED;
                    self.counters.connected += 1;
                    self.mark_ready(index);
                    self.kick(index);
                }
                Err(reason) => return self.terminate(mem, index, reason),
            }
        }
        // It is also said when both sides have closed and not everything is acknowledged:
        // then once more when it is.
        let socket = self.flows[index].socket.as_ref();
        if flags.contains(EventFlags::HUP)
            && let Some(socket) = socket
            && kernel::standing(socket.as_fd()).is_ok_and(|standing| standing.closed)
        {
            self.flows.lists.push_back(&mut self.hung, Links::Hung, index);
        }
    }

    /// Ends flows that the kernel had ended before its last sync for receiving, after
    /// which everything is known that came for them, if the ring was `drained`.
    pub(super) fn end_hung(&mut self, mem: &mut RegionMemory, drained: bool) {
        let mut hung = std::mem::replace(&mut self.hung, List::EMPTY);
        while let Some(index) = self.flows.lists.pop_front(&mut hung, Links::Hung) {
            let flow = &self.flows[index];
            let reason = match (flow.failed, flow.fin_in && flow.fin_out) {
                (Reason::Ok, true) => Reason::Ok,
                // The kernel says no error twice, and it was said when a slot was sent.
                (Reason::Ok, false) => Reason::PeerReset,
                (reason, _) => reason,
            };
            if drained || reason == Reason::Ok {
                self.terminate(mem, index, reason);
            } else {
                self.flows.lists.push_back(&mut self.hung, Links::Hung, index);
            }
        }
    }

    /// Sends FIN after everything queued.
    pub(super) fn close_flow(&mut self, mem: &mut RegionMemory, index: u32) -> Result<(), Reason> {
        let flow = &mut self.flows[index];
        match flow.state {
            // RFC 9293 section 3.10.4: nothing was opened yet.
            State::Connecting => self.terminate(mem, index, Reason::Ok),
            State::Open if !flow.fin_queued => {
                flow.fin_queued = true;
                self.kick(index);
            }
            _ => return Err(Reason::Closed),
        }
        Ok(())
    }

    /// The kernel has everything, and the guest has closed.
    pub(super) fn end_sending(&mut self, mem: &mut RegionMemory, index: u32) {
        if !self.has_all(mem, index) {
            return;
        }
        let flow = &mut self.flows[index];
        let Some(socket) = &flow.socket else { return };
        if socket::end_sending(socket.as_fd()).is_err() {
            // ENOTCONN: the peer has reset it.
            return self.terminate(mem, index, Reason::PeerReset);
        }
        flow.fin_out = true;
        flow.silent_since = self.now.monotonic_ns;
        self.flows.lists.push_back(&mut self.closing, Links::Closing, index);
    }

    /// Ends a flow whose guest has closed and whose peer has been silent for long, unless
    /// the kernel still sends to it, and gives up by itself.
    pub(super) fn end_silent(&mut self, mem: &mut RegionMemory, index: u32) {
        let flow = &mut self.flows[index];
        let standing = flow.socket.as_ref().and_then(|s| kernel::standing(s.as_fd()).ok());
        if standing.is_none_or(|standing| standing.queued == 0) {
            return self.terminate(mem, index, Reason::Ok);
        }
        flow.silent_since = self.now.monotonic_ns;
        self.flows.lists.remove(&mut self.closing, Links::Closing, index);
        self.flows.lists.push_back(&mut self.closing, Links::Closing, index);
    }

    /// The peer sends no more.
    pub(super) fn on_fin(&mut self, index: u32) {
        let flow = &mut self.flows[index];
        if !flow.fin_in {
            flow.fin_in = true;
            flow.events |= event::FIN;
            self.mark_ready(index);
        }
    }

    /// Sends RST, and drops what was received and not told of.
    pub(super) fn abort_flow(&mut self, mem: &mut RegionMemory, index: u32) {
        self.drop_readable(mem, index);
        let flow = &mut self.flows[index];
        if !matches!(flow.state, State::Open | State::Connecting) {
            return;
        }
        flow.events = 0;
        self.terminate(mem, index, Reason::Aborted);
    }

    /// Ends a flow whose channel has ended, or that its guest never heard of: nothing
    /// more is told of it.
    pub(super) fn forget(&mut self, mem: &mut RegionMemory, index: u32) {
        self.leave_backlog(index);
        self.detach(mem, index);
        if matches!(self.flows[index].state, State::Open | State::Connecting) {
            self.abort_flow(mem, index);
        }
        self.end(mem, index);
    }

    /// Ends a flow: with [`Reason::Ok`] in good order, else by a RESET that says why.
    pub(super) fn terminate(&mut self, mem: &mut RegionMemory, index: u32, reason: Reason) {
        let flow = &mut self.flows[index];
        if !matches!(flow.state, State::Open | State::Connecting) {
            return;
        }
        let registered = flow.state == State::Open;
        flow.state = State::Ended;
        flow.reason = reason;
        let unheard = flow.listener != NIL;
        match reason {
            Reason::Ok => self.counters.closed += 1,
            _ => self.counters.reset += 1,
        }
        for (list, kind) in [
            (&mut self.work, Links::Work),
            (&mut self.wait, Links::Wait),
            (&mut self.closing, Links::Closing),
            (&mut self.hung, Links::Hung),
        ] {
            self.flows.lists.remove(list, kind, index);
        }
        self.withdraw(index);
        self.set_kept(index, 0);
        self.drop_sending(mem, index);
        self.close_socket(index, registered);
        if unheard && reason != Reason::Ok {
            return self.forget(mem, index);
        }
        self.end(mem, index);
    }

    /// Closes the socket of a flow that has ended. The number of a descriptor that was
    /// registered stays taken: the kernel knows sockets by it, and may still show payload
    /// of this one, or clear its entry, which would be another's by then.
    fn close_socket(&mut self, index: u32, registered: bool) {
        let flow = &mut self.flows[index];
        if !registered {
            flow.socket = None;
            return;
        }
        let fd = std::mem::replace(&mut flow.fd, -1);
        let Some(mut socket) = flow.socket.take() else { return };
        if dup3(&self.nobody, &mut socket, DupFlags::CLOEXEC).is_ok() {
            flow.socket = Some(socket);
            self.flows.lists.push_back(&mut self.numbers.fresh, Links::Number, index);
        }
        self.flows.set_fd(fd, NIL);
    }

    /// The kernel has shown everything that it had: the numbers of descriptors that were
    /// closed a look before this one are free.
    pub(super) fn free_numbers(&mut self, mem: &mut RegionMemory) {
        while let Some(index) = self.flows.lists.pop_front(&mut self.numbers.waited, Links::Number)
        {
            self.flows[index].socket = None;
            self.end(mem, index);
        }
        std::mem::swap(&mut self.numbers.waited, &mut self.numbers.fresh);
    }

    /// A flow that has ended: tells the guest, and frees it once the guest was told and
    /// its number is free.
    pub(super) fn end(&mut self, mem: &mut RegionMemory, index: u32) {
        let flow = &mut self.flows[index];
        if flow.state != State::Ended {
            return;
        }
        if !flow.detached {
            let last = if flow.reason == Reason::Ok { event::CLOSED } else { event::RESET };
            flow.events |= last;
            return self.mark_ready(index);
        }
        if flow.socket.is_some() {
            return;
        }
        self.drop_done(mem, index);
        self.flows.free(index);
        self.listeners.flow_freed();
    }

    /// The guest's name for the flow dies.
    pub(super) fn detach(&mut self, mem: &mut RegionMemory, index: u32) {
        let channel = &mut self.channels[usize::from(self.flows[index].channel)];
        self.flows.lists.remove(&mut channel.ready, Links::Ready, index);
        self.flows.lists.remove(&mut channel.all, Links::Channel, index);
        self.flows[index].detached = true;
        self.flows[index].events = 0;
        self.drop_readable(mem, index);
        self.drop_done(mem, index);
    }
}
