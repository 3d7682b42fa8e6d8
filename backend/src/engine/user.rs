//! The user engine: our own TCP/IP stack over a port, in place in the region's
//! buffers; with addresses of its own, or with those of the guest's kernel ([`Share`]).

use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use paste_abi::slot::Opt;
use paste_abi::{CHANNELS_MAX, Flow, Reason, Slot};
use paste_pmem::Owner;
use paste_stack::{Memory, Origin, Outcome, RxFrame, Stack, Tx, TxBatch, TxCsum};

use super::bridge::{self, Bridge};
use super::share::{LOOK_LEN, Share, Whose};
use super::{Now, PlainSink, RegionMemory, StackPort};
use crate::port::segments::Packet;
use crate::port::{Caps, Port, PortError, RxBatch};

/// Frames taken from the port in one turn.
const RX_BUDGET: usize = 256;
/// Frames that wait for the port at once.
const TX_BUDGET: usize = 512;
/// Frames sent in one turn; what is over may be one more batch of the stack's.
const TX_TURN_MAX: usize = 4 * TX_BUDGET;
/// Buffers that the port may be done with at once without more memory for their names.
const DONE_ROOM: usize = 4096;

/// A [`Stack`] and the [`Port`] that it sends and receives by.
pub struct UserEngine {
    stack: Stack,
    port: Box<dyn Port>,
    rx: RxBatch,
    tx: TxBatch,
    /// Buffers that the port is done with.
    done: Vec<(Origin, u32)>,
    bridge: Bridge,
    /// Of addresses that are the kernel's too.
    share: Option<Box<Share>>,
}

impl UserEngine {
    /// An engine for the guest with this Ethernet address.
    pub fn new(stack: Stack, port: Box<dyn Port>, mac: [u8; 6], buffer_size: usize) -> UserEngine {
        UserEngine {
            stack,
            share: None,
            port,
            rx: RxBatch::new(RX_BUDGET),
            tx: TxBatch::new(TX_BUDGET),
            done: Vec::with_capacity(DONE_ROOM),
            bridge: Bridge::new(mac, buffer_size),
        }
    }

    /// An engine at the addresses of the guest's kernel.
    pub fn shared(
        (share, stack): (Share, Stack),
        port: Box<dyn Port>,
        mac: [u8; 6],
        buffer_size: usize,
    ) -> UserEngine {
        let engine = UserEngine::new(stack, port, mac, buffer_size);
        UserEngine { share: Some(Box::new(share)), ..engine }
    }

    /// Gives the stack the addresses that have become known, if it has nothing under way:
    /// no flow, no buffer, nothing to tell, and no frame that the port still reads.
    fn renew(&mut self, now: Now, mem: &RegionMemory) {
        let Self { stack, port, tx, share: Some(share), .. } = self else { return };
        if share.is_stale(now.monotonic_ns)
            && stack.flows() == stack.time_waits()
            && (0..CHANNELS_MAX).all(|channel| !stack.has_slots(channel))
            && mem.pool().count_of(Owner::Stack) == 0
            && tx.is_empty()
            && !port.is_sending()
        {
            share.renew(now.monotonic_ns, stack);
        }
    }

    /// Who gets a frame, of those that share an address.
    fn sort(&mut self, now: Now, mem: &RegionMemory, frame: &RxFrame) -> Whose {
        let Some(share) = &mut self.share else { return Whose::Stack };
        let mut head = [0; LOOK_LEN];
        let head = &mut head[..usize::from(frame.len).min(LOOK_LEN)];
        mem.read(frame.buf, usize::from(frame.offset), head);
        share.sort(&self.stack, now.monotonic_ns, head)
    }

    /// Tells the owners of the buffers that the port is done with.
    fn settle(&mut self, mem: &mut RegionMemory) {
        for (origin, buf) in self.done.drain(..) {
            match origin {
                Origin::Stack => self.stack.frame_sent(mem, buf),
                Origin::Bridge => mem.give(buf),
            }
        }
    }
}

impl StackPort for UserEngine {
    fn receive(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        plain: &mut dyn PlainSink,
    ) -> Result<usize, PortError> {
        self.renew(now, mem);
        let received = self.port.receive(now, mem.pool_mut(), &mut self.rx);
        self.stack.warm(mem, self.rx.frames().iter().map(|received| &received.frame));
        for index in 0..self.rx.frames().len() {
            let received = self.rx.frames()[index];
            let buf = received.frame.buf;
            let moved = mem.pool_mut().transfer(buf, Owner::Port, Owner::Stack);
            debug_assert!(moved.is_ok(), "the port named buffer {buf}, which is not its own");
            let whose = self.sort(now, mem, &received.frame);
            if whose != Whose::Stack {
                self.bridge.take(&received, mem, plain);
            }
            if whose == Whose::Kernel {
                mem.give(buf);
                continue;
            }
            match self.stack.input(mem, now.monotonic_ns, &received.frame) {
                Outcome::Readable | Outcome::Held => {}
                Outcome::Consumed => mem.give(buf),
                Outcome::Foreign => {
                    if whose == Whose::Stack {
                        self.bridge.take(&received, mem, plain);
                    }
                    mem.give(buf);
                }
            }
        }
        self.bridge.flush(plain);
        self.rx.clear();
        received
    }

    fn send_plain(&mut self, mem: &mut RegionMemory, frame: &[u8], csum: Option<TxCsum>) -> bool {
        if let Some(share) = &mut self.share {
            share.sent(frame);
        }
        bridge::queue(&mut self.tx, mem, frame, csum)
    }

    fn send_segments(
        &mut self,
        mem: &mut RegionMemory,
        packet: &mut Packet,
        bytes: &[u8],
    ) -> usize {
        bridge::queue_segments(&mut self.tx, mem, packet, bytes)
    }

    fn listen(&mut self, channel: u16, port: u16, backlog: u16) -> Result<Flow, Reason> {
        let name = self.stack.listen(channel, port, backlog)?;
        if let Some(share) = &mut self.share {
            share.listens(channel, port, backlog, name);
        }
        Ok(name)
    }

    fn unlisten(&mut self, channel: u16, listener: Flow) -> Result<(), Reason> {
        self.stack.unlisten(channel, listener)?;
        if let Some(share) = &mut self.share {
            share.unlistened(&self.stack, channel, listener);
        }
        Ok(())
    }

    fn connect(
        &mut self,
        now: Now,
        channel: u16,
        remote: SocketAddr,
        local_port: u16,
        cookie: u32,
    ) -> Result<Flow, Reason> {
        let Self { stack, share: Some(share), .. } = self else {
            return self.stack.connect(now.monotonic_ns, channel, remote, local_port, cookie);
        };
        share.uses(channel);
        let mut open = |port| {
            let flow = stack.connect(now.monotonic_ns, channel, remote, port, cookie)?;
            Ok((flow, port))
        };
        let opened = if local_port == 0 {
            // One that the kernel does not give out.
            let ports = share.ports_to_try().filter(|&port| !share.is_listening(port));
            let tried = ports.map(open).find(|opened| *opened != Err(Reason::PortInUse));
            tried.unwrap_or(Err(Reason::NoRoom))
        } else {
            open(local_port)
        };
        let (flow, port) = opened?;
        share.connected(flow, channel, remote, port);
        Ok(flow)
    }

    fn send(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
        tx: &Tx,
    ) -> Result<(), Reason> {
        self.stack.send(mem, now.monotonic_ns, channel, flow, tx)
    }

    fn close(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
    ) -> Result<(), Reason> {
        self.stack.close(mem, now.monotonic_ns, channel, flow)
    }

    fn abort(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
    ) -> Result<(), Reason> {
        self.stack.abort(mem, now.monotonic_ns, channel, flow)
    }

    fn set_option(
        &mut self,
        now: Now,
        channel: u16,
        flow: Flow,
        option: Opt,
        value: u64,
    ) -> Result<(), Reason> {
        self.stack.set_option(now.monotonic_ns, channel, flow, option, value)
    }

    fn release(&mut self, now: Now, buf: u32) -> bool {
        self.stack.release(now.monotonic_ns, buf)
    }

    fn retire(&mut self, buf: u32) {
        self.stack.retire(buf);
    }

    fn close_channel(&mut self, now: Now, mem: &mut RegionMemory, channel: u16) {
        self.stack.close_channel(mem, now.monotonic_ns, channel);
        if let Some(share) = &mut self.share {
            share.ended(channel);
        }
    }

    fn address(&self) -> Option<IpAddr> {
        self.share.as_ref().and_then(|share| share.address())
    }

    fn has_slots(&self, channel: u16) -> bool {
        self.stack.has_slots(channel)
    }

    fn poll_slots(&mut self, mem: &mut RegionMemory, channel: u16, out: &mut [Slot]) -> usize {
        let count = self.stack.poll_slots(mem, channel, out);
        if let Some(share) = &mut self.share {
            share.told(&self.stack, channel, &out[..count]);
        }
        count
    }

    fn advance(&mut self, now: Now, mem: &mut RegionMemory) {
        self.stack.advance(mem, now.monotonic_ns);
    }

    fn transmit(&mut self, now: Now, mem: &mut RegionMemory) -> Result<usize, PortError> {
        let (mut total, mut asked) = (0, false);
        loop {
            self.stack.transmit(mem, now.monotonic_ns, &mut self.tx);
            // A port that still reads buffers says only when it is asked that it no
            // longer does.
            if self.tx.is_empty() && (asked || !self.port.is_sending()) {
                return Ok(total);
            }
            asked = true;
            let Self { port, tx, done, .. } = self;
            // The port is shown the pool while it reports buffers that it is
            // done with, so these are settled after it returns.
            let sent = port.send(now, mem.pool(), tx, &mut |origin, buf| done.push((origin, buf)));
            self.settle(mem);
            let sent = sent?;
            total += sent;
            if sent == 0 || self.is_backlogged() || total >= TX_TURN_MAX {
                return Ok(total);
            }
        }
    }

    fn next_deadline(&self) -> Option<u64> {
        [self.stack.next_deadline(), self.port.next_deadline()].into_iter().flatten().min()
    }

    fn is_backlogged(&self) -> bool {
        !self.tx.is_empty()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.port.fd()
    }

    fn arm(&mut self) -> bool {
        self.port.arm()
    }

    fn caps(&self) -> Caps {
        self.port.caps()
    }

    fn release_reserve(&mut self, mem: &mut RegionMemory) {
        self.port.release(mem.pool_mut());
    }

    fn each_counter(&self, visit: &mut dyn FnMut(&str, u64)) {
        let share = self.share.as_deref();
        let mut before = share.into_iter().flat_map(Share::before);
        self.stack.counters().each(|name, value| {
            let before = before.next().unwrap_or(0);
            visit(&format!("stack.{name}"), before + value);
        });
        if let Some(share) = share {
            share.each_counter(visit);
        }
        visit("stack.flows", u64::from(self.stack.flows()));
        self.port.each_counter(&mut |name, value| visit(&format!("port.{name}"), value));
    }
}
