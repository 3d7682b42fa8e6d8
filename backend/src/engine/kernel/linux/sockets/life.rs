//! How flows begin and end: what the guest asks for, and what the kernel says of it.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use paste_abi::{CHANNELS_MAX, Flow, Reason};

use super::flows::{Busy, Links, State};
use super::lists::NIL;
use super::ring::Op;
use super::{RegionMemory, SocketsEngine, event, socket};

impl SocketsEngine {
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
        let near = self.addresses.iter().find(|near| near.is_ipv4() == remote.is_ipv4());
        let near = *near.filter(|_| remote.port() != 0).ok_or(Reason::BadAddress)?;
        if !self.flows.has_free() {
            return Err(Reason::NoRoom);
        }
        let socket = socket::connector(near, local_port)
            .map_err(|error| socket::bind_reason(error.raw_os_error().unwrap_or_default()))?;
        let index = self.flows.alloc().ok_or(Reason::NoRoom)?;
        let flow = &mut self.flows[index];
        flow.socket = Some(socket);
        flow.state = State::Connecting;
        flow.channel = channel as u8;
        flow.peer = remote;
        flow.local_port = local_port;
        flow.opener = cookie;
        let all = &mut self.channels[usize::from(channel)].all;
        self.flows.lists.push_back(all, Links::Channel, index);
        self.kick(index);
        Ok(self.flows.name(index))
    }

    /// The kernel has shaken hands, or not.
    pub(super) fn on_connect(&mut self, mem: &mut RegionMemory, index: u32, result: i32) {
        let flow = &mut self.flows[index];
        if flow.state != State::Connecting {
            return self.kick(index);
        }
        if result < 0 {
            return self.terminate(mem, index, socket::reason(-result));
        }
        flow.state = State::Open;
        flow.events |= event::CONNECTED;
        self.counters.connected += 1;
        self.mark_ready(index);
        self.want_payload(index);
        self.kick(index);
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

    /// Everything was sent, and the guest has closed.
    fn end_sending(&mut self, mem: &mut RegionMemory, index: u32) {
        let flow = &mut self.flows[index];
        if flow.fin_in {
            // Closing the socket sends FIN too.
            return self.terminate(mem, index, Reason::Ok);
        }
        let Some(socket) = &flow.socket else { return };
        if socket::end_sending(socket.as_fd()).is_err() {
            // ENOTCONN: the peer has reset it.
            return self.terminate(mem, index, Reason::PeerReset);
        }
        flow.fin_out = true;
        flow.silent_since = self.now.monotonic_ns;
        self.flows.lists.push_back(&mut self.closing, Links::Closing, index);
    }

    /// The peer sends no more.
    pub(super) fn on_fin(&mut self, mem: &mut RegionMemory, index: u32) {
        let flow = &mut self.flows[index];
        if flow.state != State::Open || flow.fin_in {
            return self.kick(index);
        }
        flow.fin_in = true;
        flow.events |= event::FIN;
        let over = flow.fin_out;
        self.mark_ready(index);
        if over {
            self.terminate(mem, index, Reason::Ok);
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
        if let Some(socket) = &flow.socket {
            socket::reset_on_close(socket);
        }
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

    /// Ends a flow: with [`Reason::Ok`] in good order, else by a RESET that says why. The
    /// guest is told when the kernel has left its buffers.
    pub(super) fn terminate(&mut self, mem: &mut RegionMemory, index: u32, reason: Reason) {
        let flow = &mut self.flows[index];
        if !matches!(flow.state, State::Open | State::Connecting) {
            return;
        }
        flow.state = State::Ending;
        flow.reason = reason;
        let (unheard, sending) = (flow.listener != NIL, flow.sending != Busy::No);
        match reason {
            Reason::Ok => self.counters.closed += 1,
            _ => self.counters.reset += 1,
        }
        self.flows.lists.remove(&mut self.arm, Links::Arm, index);
        self.flows.lists.remove(&mut self.closing, Links::Closing, index);
        if !sending {
            self.drop_sending(mem, index);
        }
        self.kick(index);
        if unheard && reason != Reason::Ok {
            self.forget(mem, index);
        }
    }

    /// Makes the requests of a flow that are due. There is room for them.
    pub(super) fn serve(&mut self, mem: &mut RegionMemory, index: u32) {
        let over_share = self.is_over_share(mem, index);
        let flow = &mut self.flows[index];
        let Some(socket) = &flow.socket else { return };
        match flow.state {
            State::Free | State::Closed => {}
            State::Connecting => {
                if flow.connecting == Busy::No {
                    flow.connecting = Busy::Yes;
                    self.ring.connect(socket.as_fd(), flow.peer.into(), index);
                }
            }
            State::Open => {
                if flow.receiving == Busy::Yes && over_share {
                    flow.receiving = Busy::Stopping;
                    self.counters.flow_share += 1;
                    self.ring.cancel(Op::Receive, index);
                }
                if flow.sending != Busy::No || flow.fin_out {
                    return;
                }
                if !flow.tx.is_empty() {
                    self.send_queued(index);
                } else if flow.fin_queued {
                    self.end_sending(mem, index);
                }
            }
            State::Ending => {
                if flow.receiving == Busy::Yes {
                    flow.receiving = Busy::Stopping;
                    self.ring.cancel(Op::Receive, index);
                }
                if flow.connecting == Busy::Yes {
                    flow.connecting = Busy::Stopping;
                    self.ring.cancel(Op::Connect, index);
                }
                if flow.sending == Busy::Yes {
                    flow.sending = Busy::Stopping;
                    match flow.notice {
                        NIL => self.ring.cancel(Op::Send, index),
                        notice => self.ring.cancel(Op::SendZc, notice),
                    }
                }
                // Requests keep a socket open beyond its descriptor.
                if flow.is_idle()
                    && let Some(socket) = flow.socket.take()
                {
                    flow.closing = Busy::Yes;
                    self.ring.close(socket, index);
                }
            }
        }
    }

    /// A flow whose socket is closed: tells the guest once the kernel has left its
    /// buffers, and frees it once the guest was told.
    pub(super) fn end(&mut self, mem: &mut RegionMemory, index: u32) {
        let flow = &mut self.flows[index];
        if flow.state != State::Closed || flow.notices > 0 {
            return;
        }
        if !flow.detached {
            let last = if flow.reason == Reason::Ok { event::CLOSED } else { event::RESET };
            flow.events |= last;
            return self.mark_ready(index);
        }
        self.drop_sending(mem, index);
        self.drop_done(mem, index);
        self.flows.lists.remove(&mut self.work, Links::Work, index);
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
