//! Stack ports: what turns frames of a NIC into slots, and slots into frames.
//!
//! A worker is built around one [`StackPort`] and knows nothing of how it does
//! its work; the channels judge what a guest asks for before it comes here, so
//! an engine sees only buffers that are the stack's and ranges that lie in them.
//! Engines know nothing of rings, channels' frames or configuration.

mod bridge;
pub mod kernel;
mod memory;
pub mod share;
mod user;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use paste_abi::net_hdr::NetHdr;
use paste_abi::slot::Opt;
use paste_abi::{Flow, Reason, Slot};
use paste_stack::{Tx, TxCsum};

pub use crate::port::Now;
pub use crate::port::segments::Packet;
use crate::port::{Caps, PortError};

pub use memory::RegionMemory;
pub use user::UserEngine;

/// Takes frames that are the guest kernel's and not the stack's.
pub trait PlainSink {
    /// Whether the guest takes several segments of TCP, over IPv6 or else over IPv4, as
    /// one packet.
    fn takes_segments(&self, v6: bool) -> bool;

    /// A whole Ethernet frame, in memory that is the sink's to change, and the
    /// header that goes before it on a virtio-net device (`num_buffers` is not
    /// filled in).
    fn frame(&mut self, header: NetHdr, bytes: &mut [u8]);
}

/// A TCP/IP endpoint on a NIC, driven by one worker.
///
/// The calls mirror the turn of the worker: receive, requests, timers, slots,
/// transmit. All of them work in batches and none blocks.
pub trait StackPort: Send {
    /// Takes frames from the NIC, up to a budget, and sorts them: payload waits
    /// for [`StackPort::poll_slots`], frames for the guest's own kernel go to
    /// `plain`. Returns how many frames there were.
    fn receive(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        plain: &mut dyn PlainSink,
    ) -> Result<usize, PortError>;

    /// Queues a frame of the guest's own kernel for the NIC. False: there is no
    /// room, and the frame was not taken.
    fn send_plain(&mut self, mem: &mut RegionMemory, frame: &[u8], csum: Option<TxCsum>) -> bool;

    /// Queues segments of a packet of the guest's own kernel, whose payload is the end
    /// of `bytes`: as many as there is room for. Returns how many.
    fn send_segments(&mut self, mem: &mut RegionMemory, packet: &mut Packet, bytes: &[u8])
    -> usize;

    /// Accepts flows on a local port.
    fn listen(&mut self, channel: u16, port: u16, backlog: u16) -> Result<Flow, Reason>;

    /// Stops accepting on a listener.
    fn unlisten(&mut self, channel: u16, listener: Flow) -> Result<(), Reason>;

    /// Opens a flow; CONNECTED with `cookie`, or RESET, follows.
    fn connect(
        &mut self,
        now: Now,
        channel: u16,
        remote: SocketAddr,
        local_port: u16,
        cookie: u32,
    ) -> Result<Flow, Reason>;

    /// Queues payload. The buffer is the stack's already, and on an error it
    /// still is, unless it is shared: then it is the guest's all the time.
    fn send(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
        tx: &Tx,
    ) -> Result<(), Reason>;

    /// Sends FIN after everything queued.
    fn close(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
    ) -> Result<(), Reason>;

    /// Sends RST and forgets the flow.
    fn abort(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
    ) -> Result<(), Reason>;

    /// Sets an option of a flow.
    fn set_option(
        &mut self,
        now: Now,
        channel: u16,
        flow: Flow,
        option: Opt,
        value: u64,
    ) -> Result<(), Reason>;

    /// The guest gave up a buffer, or keeps it for good: if it carried received
    /// payload, its flow's window opens again. True if sends of it are under way:
    /// given up, it becomes the stack's, by [`StackPort::retire`], and not the
    /// pool's.
    fn release(&mut self, now: Now, buf: u32) -> bool;

    /// The stack has become the owner of a buffer that [`StackPort::release`]
    /// said so of. It gives it to the pool when the sends have ended.
    fn retire(&mut self, buf: u32);

    /// Ends a channel: its listeners go and its flows are reset.
    fn close_channel(&mut self, now: Now, mem: &mut RegionMemory, channel: u16);

    /// The address that applications are reached at, where that is not configured and
    /// already known; IPv4 first.
    fn address(&self) -> Option<IpAddr> {
        None
    }

    /// Whether [`StackPort::poll_slots`] may have something for `channel`.
    fn has_slots(&self, channel: u16) -> bool;

    /// Moves what `channel` is to be told into `out`; the buffers named there
    /// are still the stack's in the pool's books. Returns how many slots.
    fn poll_slots(&mut self, mem: &mut RegionMemory, channel: u16, out: &mut [Slot]) -> usize;

    /// Runs the timers that are due.
    fn advance(&mut self, now: Now, mem: &mut RegionMemory);

    /// Sends what is due, as far as the NIC takes it. Returns how many frames.
    fn transmit(&mut self, now: Now, mem: &mut RegionMemory) -> Result<usize, PortError>;

    /// When something is due without the descriptor saying so, on the
    /// monotonic clock, ns.
    fn next_deadline(&self) -> Option<u64>;

    /// Frames wait for a NIC that was full.
    fn is_backlogged(&self) -> bool;

    /// Has the descriptor say what comes from now on, for a worker that is about to
    /// sleep. True if something is there already.
    fn arm(&mut self) -> bool {
        false
    }

    /// Readable when frames wait.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// What the NIC can do.
    fn caps(&self) -> Caps;

    /// Gives back the buffers that are kept in reserve for the NIC. Called
    /// before the pool goes away.
    fn release_reserve(&mut self, mem: &mut RegionMemory);

    /// Every counter with its name, `stack.` or `port.` before it.
    fn each_counter(&self, visit: &mut dyn FnMut(&str, u64));
}
