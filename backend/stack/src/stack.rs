//! The stack's face.

use core::net::SocketAddr;

use paste_abi::slot::Opt;
use paste_abi::{Flow, Reason, Slot};

use crate::config::Config;
use crate::counters::Counters;
use crate::frame::{RxFrame, TxBatch};
use crate::memory::Memory;

/// What became of a frame that was given to [`Stack::input`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// In-order payload: the buffer is the stack's until
    /// [`Stack::poll_slots`] names it.
    Readable,
    /// Nothing of it is needed any more; the buffer is still the caller's.
    Consumed,
    /// The stack keeps the buffer: out-of-order payload, or a reply made of it.
    Held,
    /// Not for this stack's addresses. The buffer is still the caller's, who
    /// may bridge it to the guest's plain network path.
    Foreign,
}

/// Payload to send: a range of a buffer that the guest gives away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tx {
    /// The buffer.
    pub buf: u32,
    /// Where the payload starts in the buffer.
    pub offset: u16,
    /// Bytes, at least one.
    pub len: u16,
    /// The application's word, returned by ACKED.
    pub cookie: u64,
    /// Report ACKED when the peer has acknowledged it.
    pub notify: bool,
    /// Give the buffer back to the guest then (implies `notify`). The stack
    /// writes nothing into a kept buffer.
    pub keep: bool,
}

/// A TCP/IP endpoint with one address, and all its flows.
pub struct Stack {
    counters: Counters,
    flows: u32,
}

impl Stack {
    /// Makes a stack for a region of `buffer_count` buffers. `secret` keys the
    /// flow table and the initial sequence numbers; it must be unpredictable.
    pub fn new(_config: Config, _buffer_count: u32, _secret: [u8; 16]) -> Stack {
        Stack { counters: Counters::default(), flows: 0 }
    }

    /// Takes in a frame that arrived.
    pub fn input<M: Memory>(&mut self, _mem: &mut M, _now: u64, _frame: &RxFrame) -> Outcome {
        Outcome::Foreign
    }

    /// Accepts flows on `port` for `channel`, at most `backlog` of them not yet
    /// delivered to the guest.
    pub fn listen(&mut self, _channel: u16, _port: u16, _backlog: u16) -> Result<Flow, Reason> {
        Err(Reason::NoRoom)
    }

    /// Stops accepting. Flows already accepted live on.
    pub fn unlisten(&mut self, _channel: u16, _listener: Flow) -> Result<(), Reason> {
        Err(Reason::StaleFlow)
    }

    /// Opens a flow to `remote`; CONNECTED with `cookie`, or RESET, tells the
    /// outcome later. `local_port` 0 lets the stack choose.
    pub fn connect(
        &mut self,
        _now: u64,
        _channel: u16,
        _remote: SocketAddr,
        _local_port: u16,
        _cookie: u32,
    ) -> Result<Flow, Reason> {
        Err(Reason::NoRoom)
    }

    /// Queues payload. On `Ok` the buffer is the stack's.
    pub fn send<M: Memory>(
        &mut self,
        _mem: &mut M,
        _now: u64,
        _channel: u16,
        _flow: Flow,
        _tx: &Tx,
    ) -> Result<(), Reason> {
        Err(Reason::StaleFlow)
    }

    /// Sends FIN after everything queued.
    pub fn close<M: Memory>(
        &mut self,
        _mem: &mut M,
        _now: u64,
        _channel: u16,
        _flow: Flow,
    ) -> Result<(), Reason> {
        Err(Reason::StaleFlow)
    }

    /// Sends RST and forgets what was queued. RESET follows.
    pub fn abort<M: Memory>(
        &mut self,
        _mem: &mut M,
        _now: u64,
        _channel: u16,
        _flow: Flow,
    ) -> Result<(), Reason> {
        Err(Reason::StaleFlow)
    }

    /// Sets an option of a flow.
    pub fn set_option(
        &mut self,
        _now: u64,
        _channel: u16,
        _flow: Flow,
        _option: Opt,
        _value: u64,
    ) -> Result<(), Reason> {
        Err(Reason::StaleFlow)
    }

    /// The guest gave up a buffer that carried received payload: its flow's
    /// window opens again. Harmless for any other buffer.
    pub fn release(&mut self, _now: u64, _buf: u32) {}

    /// Moves what `channel` is to be told into `out`, in order for each flow,
    /// and returns how many slots. Buffers named by DATA, and by ACKED with
    /// KEEP, are the guest's from here on.
    pub fn poll_slots<M: Memory>(&mut self, _mem: &mut M, _channel: u16, _out: &mut [Slot]) -> usize {
        0
    }

    /// Whether [`Stack::poll_slots`] may have something for `channel`.
    pub fn has_slots(&self, _channel: u16) -> bool {
        false
    }

    /// Ends a channel: its listeners go, its flows are reset, its buffers that
    /// are the stack's return to the pool. Linear in that channel's flows.
    pub fn close_channel<M: Memory>(&mut self, _mem: &mut M, _now: u64, _channel: u16) {}

    /// Runs the timers that are due.
    pub fn advance<M: Memory>(&mut self, _mem: &mut M, _now: u64) {}

    /// When [`Stack::advance`] is next needed, if ever. May be early, is never late.
    pub fn next_deadline(&self) -> Option<u64> {
        None
    }

    /// Appends frames that are due to `out` until there are none or no room,
    /// and returns how many.
    pub fn transmit<M: Memory>(&mut self, _mem: &mut M, _now: u64, _out: &mut TxBatch) -> usize {
        0
    }

    /// The port has sent a frame of [`crate::Origin::Stack`] that carried this buffer.
    pub fn frame_sent<M: Memory>(&mut self, _mem: &mut M, _buf: u32) {}

    /// Totals.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Flows in use, in every state.
    pub fn flows(&self) -> u32 {
        self.flows
    }
}
