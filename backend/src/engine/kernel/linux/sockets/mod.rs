//! The sockets engine: TCP by the host's own kernel, through io_uring. It needs no
//! privilege and no NIC.
//!
//! The guest's addresses are the host's. What a flow receives the kernel copies into
//! buffers of the region, which it was given beforehand (a ring of provided buffers),
//! behind the headroom that a guest needs to send from the same buffer; what the guest
//! sends it takes from where it lies, several queued buffers of a flow at once. All
//! requests of a turn are one `io_uring_enter`, and a turn without any makes no system
//! call.
//!
//! What differs from the engine of our own TCP:
//!
//! - ACKED means that the kernel has taken the payload over: it is in a send buffer of
//!   the kernel's, and will be sent again as long as the connection lives. Of a send
//!   without a copy it means that the kernel has released the buffer, which is when the
//!   peer has acknowledged it. CLOSED means that both sides have closed and the kernel has
//!   everything; it sees to the rest.
//! - There is no checksum with received payload: the kernel does not give it away.
//! - RESET with TIMED_OUT comes when the kernel gives up, after minutes
//!   (`net.ipv4.tcp_retries2`), unless the guest sets USER_TIMEOUT.
//! - Frames of the guest's own kernel go nowhere, and none comes: there is no NIC. They
//!   are counted.
//!
//! **Receiving and the pool.** The kernel holds a bounded number of buffers to receive
//! into, and gets more only while the pool is above a reserve. A flow is charged for
//! every buffer that it holds or that its guest has not given up, and may have as many
//! as are left for all, and not more than a window's worth: beyond it, it stops receiving,
//! and the kernel closes the peer's window. Small payload is put behind other payload that
//! the guest was not told of yet. Who waits for buffers is served in turn.
//!
//! **Sending.** A flow has one send under way. From [`send::ZERO_COPY_MIN`] on it goes
//! without a copy, and its buffers are the kernel's until it says otherwise.
//!
//! **Trust.** A guest listens on the host's addresses, and connects to whatever this
//! process can connect to, the host's own services on loopback among them: it is for guests
//! that may. What it does to its flows it does to nobody else's.
//!
//! Everything is allocated when the engine is made. One file does what is `unsafe` about
//! requests (`ring`), another what is about the ring of provided buffers (`provided`);
//! they know nothing of flows. The benchmarks' io_uring server uses the ring as well.

mod counters;
mod flows;
mod life;
mod listen;
mod provided;
mod receive;
pub mod ring;
mod send;
mod slots;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use paste_abi::slot::Opt;
use paste_abi::{CHANNELS_MAX, Flow, Reason, Slot};
use paste_pmem::{Buffers, Mapping, Owner};
use paste_stack::{Tx, TxCsum};
use rustix::fs::MemfdFlags;

use super::{bufs, event, lists, socket};
use crate::engine::kernel::{SocketsError, SocketsOptions as Options};
use crate::engine::{Now, Packet, PlainSink, RegionMemory, StackPort};
use crate::port::{Caps, PortError};

use bufs::Bufs;
use counters::Counters;
use flows::{Busy, Flows, Links, State};
use listen::Listeners;
use lists::List;
use provided::Provided;
use ring::{Completion, Op, Ring, SetupError};
use send::Notices;

/// Completions taken in one turn.
const RX_BUDGET: usize = 1024;
/// Requests that one flow makes at once, at most.
const REQUESTS_PER_FLOW: usize = 4;
/// When the process ends: the longest wait for what the kernel still does, and its steps.
const DRAIN_STEPS: u32 = 200;
const DRAIN_STEP: Duration = Duration::from_millis(5);
/// How often flows that wait for buffers are looked at while nothing else happens, ns.
const ARM_INTERVAL: u64 = 10_000_000;
/// The longest silence of a peer after the guest has closed (FIN-WAIT-2), ns.
const SILENCE_MAX: u64 = 60_000_000_000;

/// Flows of one channel.
#[derive(Clone, Copy, Debug)]
struct Channel {
    all: List,
    /// Those that have something for the guest.
    ready: List,
}

/// TCP by the host's kernel, for one guest.
#[derive(Debug)]
pub struct SocketsEngine {
    // Dropped first: the kernel leaves what the others hold.
    ring: Ring,
    flows: Flows,
    bufs: Bufs,
    notices: Notices,
    listeners: Listeners,
    channels: [Channel; CHANNELS_MAX as usize],
    work: List,
    arm: List,
    closing: List,
    addresses: Vec<IpAddr>,
    mtu: u16,
    headroom: u16,
    /// Free buffers that are never received into.
    reserve: u32,
    /// Buffers that one flow may be charged for, whatever is free.
    share_max: u32,
    /// The engine is going away: nothing is begun any more.
    leaving: bool,
    now: Now,
    counters: Counters,
}

/// Whether this host can do it for this user; what was found, in a few words.
///
/// # Errors
/// [`SocketsError`] says why not, and what to do.
pub fn probe() -> Result<String, SocketsError> {
    let memory = rustix::fs::memfd_create("pasted-probe", MemfdFlags::CLOEXEC);
    let memory = memory.map_err(|errno| failed("memfd_create")(errno.into()))?;
    let size = paste_pmem::BUFFER_SIZE_MIN as usize;
    let sized = rustix::fs::ftruncate(&memory, size as u64);
    sized.map_err(|errno| failed("ftruncate")(errno.into()))?;
    let mapping = Mapping::from_fd(memory.as_fd(), 0, size, true);
    let mapping = mapping.map_err(|error| failed("mmap")(io::Error::other(error)))?;
    let Some(buffers) = Buffers::new(Arc::new(mapping), 0, size, 1) else {
        return Err(failed("mmap")(io::ErrorKind::InvalidInput.into()));
    };
    Ring::new(1, 1, buffers).map_err(judge)?;
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    Ok(format!("io_uring of Linux {release}"))
}

fn failed(call: &'static str) -> impl Fn(io::Error) -> SocketsError {
    move |source| SocketsError::Failed { call, source }
}

/// What it means that a ring could not be had.
fn judge(error: SetupError) -> SocketsError {
    let SetupError { call, source } = error;
    match source.raw_os_error() {
        Some(libc::ENOSYS) => SocketsError::Unsupported,
        Some(libc::EPERM | libc::EACCES) => {
            let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
            match setting.as_deref().map(str::trim) {
                Ok(value @ ("1" | "2")) => SocketsError::TurnedOff(value.to_owned()),
                _ => SocketsError::Filtered,
            }
        }
        Some(libc::EINVAL) | None => SocketsError::TooOld { call, source },
        Some(libc::ENOMEM) => SocketsError::Memory { call, source },
        Some(_) => SocketsError::Failed { call, source },
    }
}

impl SocketsEngine {
    /// An engine for one guest. Nothing is bound before the guest listens.
    ///
    /// # Errors
    /// [`SocketsError`].
    pub fn new(options: &Options<'_>) -> Result<SocketsEngine, SocketsError> {
        for &address in options.addresses {
            socket::try_address(address)
                .map_err(|source| SocketsError::Address { address, source })?;
        }
        socket::allow_descriptors(options.flows_max);
        let (count, size) = (options.buffers.count(), options.buffers.size());
        // An eighth of the buffers, as a power of two.
        let provided = (count / 8).clamp(1, Provided::ENTRIES_MAX.into()).ilog2();
        let ring = Ring::new(options.flows_max, 1 << provided, options.buffers.clone());
        let payload_max = (size - usize::from(options.headroom)) as u32;
        Ok(SocketsEngine {
            ring: ring.map_err(judge)?,
            flows: Flows::new(options.flows_max),
            bufs: Bufs::new(count, options.shared_sends_max),
            notices: Notices::new(),
            listeners: Listeners::new(),
            channels: [Channel { all: List::EMPTY, ready: List::EMPTY }; CHANNELS_MAX as usize],
            work: List::EMPTY,
            arm: List::EMPTY,
            closing: List::EMPTY,
            addresses: options.addresses.to_vec(),
            mtu: options.mtu,
            headroom: options.headroom,
            reserve: (count / 32).clamp(1, 256),
            share_max: receive::WINDOW_MAX / payload_max,
            leaving: false,
            now: Now::default(),
            counters: Counters::default(),
        })
    }

    /// Acts on what the kernel has done.
    fn complete(&mut self, mem: &mut RegionMemory, completion: Completion) {
        let Completion { op, index, result, .. } = completion;
        match op {
            Op::Accept => return self.on_accept(completion),
            Op::Receive => return self.on_receive(mem, &completion),
            Op::SendZc => return self.on_send_zc(mem, &completion),
            Op::Cancel => return,
            Op::Send | Op::Connect | Op::Close => {}
        }
        let Some(flow) = self.flows.get_mut(index) else {
            self.counters.strange += 1;
            return;
        };
        match op {
            Op::Connect => {
                flow.connecting = Busy::No;
                self.on_connect(mem, index, result);
            }
            Op::Close => {
                flow.closing = Busy::No;
                flow.state = State::Closed;
                self.end(mem, index);
            }
            _ => {
                flow.sending = Busy::No;
                self.on_send(mem, index, result);
            }
        }
    }

    /// Has the ring do what a flow has for it: see [`SocketsEngine::serve`].
    fn kick(&mut self, index: u32) {
        self.flows.lists.push_back(&mut self.work, Links::Work, index);
    }

    /// Has the flow looked at by the next [`StackPort::poll_slots`].
    fn mark_ready(&mut self, index: u32) {
        let flow = &self.flows[index];
        if !flow.detached {
            let channel = &mut self.channels[usize::from(flow.channel)];
            self.flows.lists.push_back(&mut channel.ready, Links::Ready, index);
        }
    }

    /// The flow in use with this name on `channel`, of which the guest was told.
    fn owned(&self, channel: u16, name: Flow) -> Result<u32, Reason> {
        let index = self.flows.find(name).ok_or(Reason::StaleFlow)?;
        let flow = &self.flows[index];
        let owned = flow.is_known() && u16::from(flow.channel) == channel;
        owned.then_some(index).ok_or(Reason::StaleFlow)
    }

    /// Makes the requests that flows have for the ring, in turn.
    fn request(&mut self, mem: &mut RegionMemory) -> io::Result<()> {
        self.serve_doors()?;
        // Each once: what cannot go on now is kicked when it can.
        while let Some(index) = self.flows.lists.pop_front(&mut self.work, Links::Work) {
            if !self.make_room()? {
                self.kick(index);
                return Ok(());
            }
            self.serve(mem, index);
        }
        self.arm_flows(mem)
    }

    /// Whether one flow can make its requests; submits what waits, if that is needed.
    fn make_room(&mut self) -> io::Result<bool> {
        if !self.ring.has_room(REQUESTS_PER_FLOW) {
            self.ring.enter()?;
        }
        Ok(self.ring.has_room(REQUESTS_PER_FLOW))
    }

    fn turn(&mut self, mem: &mut RegionMemory) -> io::Result<usize> {
        self.refill(mem);
        self.request(mem)?;
        let mut moved = 0;
        if self.ring.has_work() {
            let before = self.ring.requests;
            self.ring.enter()?;
            moved = (self.ring.requests - before) as usize;
        }
        Ok(moved + usize::from(self.ring.has_completions()))
    }

    fn take_completions(&mut self, mem: &mut RegionMemory) -> usize {
        let mut taken = 0;
        while taken < RX_BUDGET
            && let Some(completion) = self.ring.take_completion()
        {
            self.complete(mem, completion);
            taken += 1;
        }
        taken
    }
}

fn port_error(call: &'static str) -> impl Fn(io::Error) -> PortError {
    move |source| PortError::Failed { port: "sockets:".to_owned(), call, source }
}

impl StackPort for SocketsEngine {
    fn receive(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        _plain: &mut dyn PlainSink,
    ) -> Result<usize, PortError> {
        self.now = now;
        self.ring.enable().map_err(port_error("io_uring_register"))?;
        Ok(self.take_completions(mem))
    }

    fn send_plain(&mut self, _: &mut RegionMemory, _: &[u8], _: Option<TxCsum>) -> bool {
        self.counters.plain_dropped += 1;
        false
    }

    fn send_segments(&mut self, _: &mut RegionMemory, _: &mut Packet, _: &[u8]) -> usize {
        0
    }

    fn listen(&mut self, channel: u16, port: u16, backlog: u16) -> Result<Flow, Reason> {
        self.open_listener(channel, port, backlog)
    }

    fn unlisten(&mut self, channel: u16, listener: Flow) -> Result<(), Reason> {
        self.listeners.close(channel, listener)
    }

    fn connect(
        &mut self,
        now: Now,
        channel: u16,
        remote: SocketAddr,
        local_port: u16,
        cookie: u32,
    ) -> Result<Flow, Reason> {
        self.now = now;
        self.open_flow(channel, remote, local_port, cookie)
    }

    fn send(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
        tx: &Tx,
    ) -> Result<(), Reason> {
        self.now = now;
        let index = self.owned(channel, flow)?;
        self.queue(mem, index, tx)
    }

    fn close(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
    ) -> Result<(), Reason> {
        self.now = now;
        let index = self.owned(channel, flow)?;
        self.close_flow(mem, index)
    }

    fn abort(
        &mut self,
        now: Now,
        mem: &mut RegionMemory,
        channel: u16,
        flow: Flow,
    ) -> Result<(), Reason> {
        self.now = now;
        let index = self.owned(channel, flow)?;
        self.abort_flow(mem, index);
        Ok(())
    }

    fn set_option(
        &mut self,
        _now: Now,
        channel: u16,
        flow: Flow,
        option: Opt,
        value: u64,
    ) -> Result<(), Reason> {
        let index = self.owned(channel, flow)?;
        let Some(socket) = &self.flows[index].socket else { return Ok(()) };
        socket::set_option(socket.as_fd(), option, value).map_err(|_| Reason::BadRequest)
    }

    fn release(&mut self, _now: Now, buf: u32) -> bool {
        let charged = self.bufs.uncharge(buf);
        self.discharge(charged);
        self.bufs.get(buf).pins > 0
    }

    fn retire(&mut self, buf: u32) {
        self.bufs.get_mut(buf).place = bufs::Place::Retired;
    }

    fn close_channel(&mut self, now: Now, mem: &mut RegionMemory, channel: u16) {
        self.now = now;
        self.listeners.close_channel(channel);
        while let Some(index) = self.channels[usize::from(channel)].all.head() {
            self.forget(mem, index);
        }
    }

    fn has_slots(&self, channel: u16) -> bool {
        self.channels.get(usize::from(channel)).is_some_and(|c| !c.ready.is_empty())
    }

    fn poll_slots(&mut self, mem: &mut RegionMemory, channel: u16, out: &mut [Slot]) -> usize {
        self.tell(mem, channel, out)
    }

    fn advance(&mut self, now: Now, mem: &mut RegionMemory) {
        self.now = now;
        while let Some(index) = self.closing.head() {
            let silent_ns = now.monotonic_ns.saturating_sub(self.flows[index].silent_since);
            if silent_ns < SILENCE_MAX {
                break;
            }
            self.terminate(mem, index, Reason::Ok);
        }
        self.listeners.retry(now.monotonic_ns);
    }

    fn transmit(&mut self, now: Now, mem: &mut RegionMemory) -> Result<usize, PortError> {
        self.now = now;
        self.turn(mem).map_err(port_error("io_uring_enter"))
    }

    fn next_deadline(&self) -> Option<u64> {
        let silence = self.closing.head().map(|i| self.flows[i].silent_since + SILENCE_MAX);
        let arm = (!self.arm.is_empty()).then(|| self.now.monotonic_ns + ARM_INTERVAL);
        [silence, arm, self.listeners.retry_at()].into_iter().flatten().min()
    }

    fn is_backlogged(&self) -> bool {
        // The ring's descriptor says when what was full has room.
        false
    }

    fn arm(&mut self) -> bool {
        self.ring.arm()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.as_fd())
    }

    fn caps(&self) -> Caps {
        Caps { mtu: self.mtu, tx_csum: false, rx_partial: false, gather: true }
    }

    fn release_reserve(&mut self, mem: &mut RegionMemory) {
        self.leaving = true;
        for _ in 0..DRAIN_STEPS {
            self.take_completions(mem);
            if self.turn(mem).is_err() || self.flows.used() == 0 {
                break;
            }
            if self.ring.enter_and_wait(DRAIN_STEP).is_err() {
                break;
            }
        }
        for buf in self.ring.withdraw_provided() {
            let given = mem.pool_mut().give(buf, Owner::Port);
            debug_assert!(given.is_ok(), "buffer {buf} was the kernel's");
        }
    }

    fn each_counter(&self, visit: &mut dyn FnMut(&str, u64)) {
        self.counters.each(&mut *visit);
        visit("stack.flows", u64::from(self.flows.used()));
        visit("port.syscalls", self.ring.enters);
        visit("port.requests", self.ring.requests);
        visit("port.completions", self.ring.completions);
    }
}
