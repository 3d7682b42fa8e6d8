//! One client: what it has sent that is not used up, and what it is to be sent.
//!
//! Knows requests, answers and the store; sending is the server's matter. A
//! client can be taken up again at any point.

use paste_abi::Flow;

use super::chain::Chain;
use super::commands::{self, About, Arguments, Context, Failure, Scratch, Session};
use super::extent::{Bytes, Extent};
use super::region::Region;
use super::reply::{Next, Output};
use super::request::{Parser, Progress};
use super::store::Store;
use crate::buffer::Buffer;

/// Bytes and ranges of answers that wait: then no further request is done before
/// some have gone.
const WAITING_MAX: (usize, usize) = (64 * 1024, 256);

/// How far a client is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It may ask.
    Open,
    /// It said that it is done, or what it said is no request: closed after the
    /// last answer.
    Closing,
    /// To be reset.
    Aborting,
    /// Closed or reset: what arrives is not read.
    Done,
}

/// Why a client does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// All that it has asked is answered.
    Idle,
    /// No empty buffer is at hand.
    Starved,
    /// Too many answers wait, or enough was done for this turn.
    Busy,
}

/// A client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) flow: Flow,
    pub(super) session: Session,
    chain: Chain,
    parser: Parser,
    /// A request is found, and not done yet.
    found: bool,
    pub(super) output: Output,
    /// A buffer that is being filled with answers.
    pub(super) filling: Option<Buffer>,
    /// Slots that were sent and not acknowledged.
    pub(super) unacked: u16,
    /// Slots since one was sent that says when it is acknowledged.
    pub(super) since_ack: u16,
    pub(super) end: End,
    /// It sends no more: closed when all is answered.
    pub(super) fin: bool,
    /// Why it did not go on when it was run last.
    pub(super) pause: Pause,
    /// It waits in the server's list.
    pub(super) queued: bool,
}

/// What all clients use.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) about: About,
    pub(super) scratch: Scratch,
    pub(super) now_ms: u64,
    /// Bytes of one request with its arguments, all that a client may have sent of
    /// it before it is whole.
    pub(super) request_max: usize,
}

impl Client {
    pub(super) fn new(flow: Flow, id: u64) -> Client {
        Client {
            flow,
            session: Session { id, name: Vec::new() },
            chain: Chain::default(),
            parser: Parser::new(),
            found: false,
            output: Output::default(),
            filling: None,
            unacked: 0,
            since_ack: 0,
            end: End::Open,
            fin: false,
            pause: Pause::Idle,
            queued: false,
        }
    }

    /// Whether what it has sent ends in the middle of a request.
    fn is_mid_request(&self) -> bool {
        !self.parser.is_idle()
    }

    /// Whether answers wait to be sent to it.
    pub(super) fn is_owed(&self) -> bool {
        self.filling.is_some() || self.output.next().is_some()
    }

    /// Buffers that what it has sent lies in.
    pub(super) fn pieces(&self) -> usize {
        self.chain.pieces()
    }

    /// The last piece of a request that is not whole.
    pub(super) fn open_piece(&self) -> Option<Extent> {
        self.chain.last().filter(|_| self.is_mid_request())
    }

    /// Bytes were written behind the last piece, in its buffer.
    pub(super) fn grew(&mut self, count: u16) {
        self.chain.grow_last(count);
    }

    /// Bytes have arrived, in a buffer that the store counts a name of.
    pub(super) fn arrived(&mut self, extent: Extent) {
        self.chain.push(extent);
    }

    /// Does what was asked, as far as it can.
    pub(super) fn run<R: Region + Bytes>(
        &mut self,
        region: &mut R,
        store: &mut Store,
        shared: &mut Shared,
    ) {
        self.pause = self.go_on(region, store, shared);
        if self.end != End::Open {
            // Nothing is asked any more.
            while let Some(extent) = self.chain.pop() {
                store.unhold(region, extent.buffer);
            }
        }
    }

    fn go_on<R: Region + Bytes>(
        &mut self,
        region: &mut R,
        store: &mut Store,
        shared: &mut Shared,
    ) -> Pause {
        while self.end == End::Open {
            let (bytes, ranges) = self.output.waiting();
            if bytes > WAITING_MAX.0 || ranges > WAITING_MAX.1 {
                return Pause::Busy;
            }
            if !self.found {
                match self.parser.step(&self.chain, region) {
                    Ok(Progress::Request) => self.found = true,
                    Ok(Progress::More) if self.chain.len() > shared.request_max => {
                        self.output.error("ERR Protocol error: too big request");
                        self.end = End::Closing;
                        break;
                    }
                    Ok(Progress::More) => {
                        self.drop_used(region, store);
                        return Pause::Idle;
                    }
                    Err(error) => {
                        self.output.error(&format!("ERR {error}"));
                        self.end = End::Closing;
                        break;
                    }
                }
            }
            let arguments = Arguments { chain: &self.chain, parser: &self.parser };
            let done = commands::run(&mut Context {
                region,
                store,
                session: &mut self.session,
                about: &shared.about,
                out: &mut self.output,
                scratch: &mut shared.scratch,
                arguments,
                now_ms: shared.now_ms,
            });
            match done {
                Err(Failure::Starved) => return Pause::Starved,
                Err(Failure::Quit) => self.end = End::Closing,
                Ok(()) | Err(Failure::Error(_)) => {}
            }
            shared.about.requests += 1;
            self.found = false;
            self.parser.done();
            self.drop_used(region, store);
        }
        Pause::Idle
    }

    /// Too many buffers hold requests that are not whole.
    pub(super) fn overflow(&mut self) {
        self.output.error("OOM too many requests are under way: no room for this one");
        self.end = End::Closing;
    }

    /// Gives up what lies before the next request. What belongs to one that is not
    /// whole is kept.
    fn drop_used(&mut self, region: &mut impl Region, store: &mut Store) {
        if self.is_mid_request() {
            return;
        }
        while let Some(extent) = self.chain.drop_before(self.parser.place()) {
            store.unhold(region, extent.buffer);
        }
    }

    /// Gives up all that it names.
    pub(super) fn forget(&mut self, region: &mut impl Region, store: &mut Store) {
        while let Some(extent) = self.chain.pop() {
            store.unhold(region, extent.buffer);
        }
        while let Some(next) = self.output.next() {
            match next {
                Next::Bytes(bytes) => {
                    let len = bytes.len();
                    self.output.took_bytes(len);
                }
                Next::Range(extent) => {
                    self.output.took_range();
                    store.unhold(region, extent.buffer);
                }
            }
        }
        self.end = End::Done;
    }
}
