//! The stack port of one lane: a stack port as any other, that tells the switch which
//! flows are its own.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use paste_abi::net_hdr::NetHdr;
use paste_abi::slot::Opt;
use paste_abi::{CHANNELS_MAX, Flow, Reason, Slot};
use paste_stack::{Tx, TxCsum};

use super::Ports;
use crate::engine::{Now, Packet, PlainSink, RegionMemory, StackPort};
use crate::port::{Caps, PortError};

/// The first local port that flows are opened from, as the stack has it (RFC 6335 section
/// 6: dynamic ports).
const PORT_FIRST: u16 = 49_152;
/// Local ports that are tried for one flow.
const PORT_TRIES: u32 = 64;

const _: () = assert!(CHANNELS_MAX <= u16::BITS as u16);

/// A stack port that is one of several of its guest.
pub struct LaneEngine {
    inner: Box<dyn StackPort>,
    ports: Arc<Ports>,
    lane: u8,
    /// By local port: a bit for each channel that has listened on it.
    channels: Box<[u16]>,
    /// A bit for each channel that has listened at all.
    listened: u16,
    /// Where the next search for a local port begins.
    next_port: u32,
}

/// Takes frames that the first lane has as well.
struct Nobody;

impl PlainSink for Nobody {
    fn takes_segments(&self, _: bool) -> bool {
        false
    }

    fn frame(&mut self, _: NetHdr, _: &mut [u8]) {}
}

impl LaneEngine {
    /// The stack port of lane `lane`. Searches for local ports begin at a random place.
    pub fn new(inner: Box<dyn StackPort>, ports: Arc<Ports>, lane: u8, random: u32) -> LaneEngine {
        let channels = vec![0; 1 << 16].into_boxed_slice();
        LaneEngine { inner, ports, lane, channels, listened: 0, next_port: random }
    }

    /// A local port for a flow of this lane that nobody listens on.
    fn choose_port(&mut self) -> u16 {
        let lanes = u32::from(self.ports.lanes());
        // Only whole rows of lanes.
        let rows = (u32::from(u16::MAX) + 1 - u32::from(PORT_FIRST)) / lanes - 1;
        self.next_port = self.next_port.wrapping_add(1);
        let first = u32::from(PORT_FIRST).next_multiple_of(lanes);
        (first + self.next_port % rows * lanes + u32::from(self.lane)) as u16
    }
}

impl StackPort for LaneEngine {
    fn receive(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        plain: &mut dyn PlainSink,
    ) -> Result<usize, PortError> {
        if self.lane == 0 {
            return self.inner.receive(now, mem, plain);
        }
        self.inner.receive(now, mem, &mut Nobody)
    }

    fn send_plain(&mut self, mem: &mut RegionMemory, frame: &[u8], csum: Option<TxCsum>) -> bool {
        self.inner.send_plain(mem, frame, csum)
    }

    fn send_segments(
        &mut self,
        mem: &mut RegionMemory,
        packet: &mut Packet,
        bytes: &[u8],
    ) -> usize {
        self.inner.send_segments(mem, packet, bytes)
    }

    fn listen(&mut self, channel: u16, port: u16, backlog: u16) -> Result<Flow, Reason> {
        let listener = self.inner.listen(channel, port, backlog)?;
        self.channels[usize::from(port)] |= 1 << channel;
        self.listened |= 1 << channel;
        self.ports.listen(self.lane, port);
        Ok(listener)
    }

    /// Flows that were accepted may go on: the port stays the lane's until the channel ends.
    fn unlisten(&mut self, channel: u16, listener: Flow) -> Result<(), Reason> {
        self.inner.unlisten(channel, listener)
    }

    /// # Errors
    /// Beside those of every stack port, [`Reason::PortInUse`] for a local port whose
    /// segments would go to another lane.
    fn connect(
        &mut self,
        now: Now,
        channel: u16,
        remote: SocketAddr,
        local_port: u16,
        cookie: u32,
    ) -> Result<Flow, Reason> {
        let is_own = |ports: &Ports, port| {
            ports.of_flows_from(port) == self.lane && !ports.is_listened_on(port)
        };
        if local_port != 0 {
            if !is_own(&self.ports, local_port) {
                return Err(Reason::PortInUse);
            }
            return self.inner.connect(now, channel, remote, local_port, cookie);
        }
        for _ in 0..PORT_TRIES {
            let port = self.choose_port();
            if self.ports.is_listened_on(port) {
                continue;
            }
            match self.inner.connect(now, channel, remote, port, cookie) {
                Err(Reason::PortInUse) => {}
                done => return done,
            }
        }
        Err(Reason::NoRoom)
    }

    fn send(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
        tx: &Tx,
    ) -> Result<(), Reason> {
        self.inner.send(now, mem, channel, flow, tx)
    }

    fn close(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
    ) -> Result<(), Reason> {
        self.inner.close(now, mem, channel, flow)
    }

    fn abort(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
    ) -> Result<(), Reason> {
        self.inner.abort(now, mem, channel, flow)
    }

    fn set_option(
        &mut self,
        now: Now,
        channel: u16,
        flow: Flow,
        option: Opt,
        value: u64,
    ) -> Result<(), Reason> {
        self.inner.set_option(now, channel, flow, option, value)
    }

    fn release(&mut self, now: Now, buf: u32) -> bool {
        self.inner.release(now, buf)
    }

    fn retire(&mut self, buf: u32) {
        self.inner.retire(buf);
    }

    fn close_channel(&mut self, now: Now, mem: &mut RegionMemory, channel: u16) {
        self.inner.close_channel(now, mem, channel);
        let bit = 1 << channel;
        if self.listened & bit == 0 {
            return;
        }
        self.listened &= !bit;
        for (port, channels) in (0..=u16::MAX).zip(&mut self.channels) {
            if *channels & bit != 0 {
                *channels &= !bit;
                if *channels == 0 {
                    self.ports.leave(self.lane, port);
                }
            }
        }
    }

    fn has_slots(&self, channel: u16) -> bool {
        self.inner.has_slots(channel)
    }

    fn poll_slots(&mut self, mem: &mut RegionMemory, channel: u16, out: &mut [Slot]) -> usize {
        self.inner.poll_slots(mem, channel, out)
    }

    fn advance(&mut self, now: Now, mem: &mut RegionMemory) {
        self.inner.advance(now, mem);
    }

    fn transmit(&mut self, now: Now, mem: &mut RegionMemory) -> Result<usize, PortError> {
        self.inner.transmit(now, mem)
    }

    fn next_deadline(&self) -> Option<u64> {
        self.inner.next_deadline()
    }

    fn is_backlogged(&self) -> bool {
        self.inner.is_backlogged()
    }

    fn arm(&mut self) -> bool {
        self.inner.arm()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.fd()
    }

    fn caps(&self) -> Caps {
        self.inner.caps()
    }

    fn release_reserve(&mut self, mem: &mut RegionMemory) {
        self.inner.release_reserve(mem);
    }

    fn each_counter(&self, visit: &mut dyn FnMut(&str, u64)) {
        self.inner.each_counter(visit);
    }
}
