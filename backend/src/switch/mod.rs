//! A NIC that several guests share: one port, demultiplexed by destination.
//!
//! One guest must never see another's buffers, so the NIC's frames lie in a region of
//! the host's own, and cross into the guest's, or out of it, by one copy. That copy is
//! made by the guest's worker; the [`Switch`] moves names of buffers only, as a task of its
//! own on whichever worker, and what passes between the two are rings of one producer and one
//! consumer: there is nothing to lock.
//!
//! ```text
//!               port            Switch                     SwitchPort      worker
//!   NIC --------------> buffer --------> to the guest  ---------> copy ---> stack
//!   NIC <-------------- buffer <-------- from the guest <-------- copy <--- stack
//!                                 \----> to another guest
//! ```
//!
//! | module | knows |
//! | --- | --- |
//! | `table` | whose a frame is |
//! | `member` | the switch's end of a guest's rings |
//! | `port` | the guest's end, which is a port as any other |
//! | `joiner` | how a guest comes while the others are served |
//! | `bell` | how one side wakes the other when it sleeps, and only then |
//!
//! That region is the port's own memory where the port can have it so: registered with
//! the NIC by AF_XDP or netmap, its buffers are filled and sent in place, and the copy to
//! the guest is the only one. A frame stays in one piece for a port that does not gather.
//!
//! A guest that several workers serve has an end for each, and whose of them a frame is
//! [`Choice`] says.
//!
//! # Who can hurt whom
//!
//! A guest that reads nothing holds as many of the NIC's buffers as its ring to it
//! has places, and loses what comes beyond; one that sends without end is served no
//! more often than the others. The region has room for all of that at once. What a
//! guest's frames say of their sender is judged before they come here.

mod bell;
mod joiner;
mod member;
mod port;
mod table;

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

use paste_pmem::{Buffers, Owner, Pool};
use paste_stack::frame::HEAD_MAX;
use paste_stack::{Origin, Payload, RxCsum, TxBatch, TxCsum};

use crate::lanes::{Choice, Lanes};
use crate::port::{Caps, Now, Port, PortError, RxBatch, Station};
use crate::sys::Token;
use crate::sys::wake::{Waker, Wakeups};
use crate::worker::{Rest, Task};
use bell::Bell;
use joiner::Newcomer;
use member::Member;
use table::{HEADER_LEN, Route, Table};

pub use joiner::{JoinError, Joiner};
pub use port::SwitchPort;

/// Frames taken from the port in one turn.
const RX_BUDGET: usize = 256;
/// Frames that wait for the port at once.
const TX_BUDGET: usize = 512;
/// Buffers that the port may be done with at once without more memory for their names.
const DONE_ROOM: usize = 4096;
/// Frames taken from one guest before it is the next one's turn.
const QUANTUM: usize = 32;
/// Frames on their way to one guest, and as many on their way from it.
const RING: usize = 256;
/// A port that failed is tried again after this long, ns.
const PORT_RETRY: u64 = 1_000_000_000;

const TOKEN_WAKE: Token = 0;
const TOKEN_PORT: Token = 1;

/// Buffers that a switch needs with so many guests, or lanes of guests.
pub const fn buffers_needed(members: usize) -> usize {
    2 * RX_BUDGET + TX_BUDGET + members * 2 * RING
}

/// A frame in a buffer of the NIC's region, on its way between switch and guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Passing {
    buf: u32,
    offset: u16,
    len: u16,
    csum: RxCsum,
    /// A checksum that is to be completed, or would have to be.
    partial: Option<TxCsum>,
    /// As [`paste_stack::TxFrame::mss`].
    mss: u16,
    /// Arrival, ns since the Unix epoch.
    time: u64,
}

/// The start of a frame, as much as is looked at.
struct Start {
    bytes: [u8; HEADER_LEN],
    len: usize,
}

impl Start {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What a switch has done with frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counters {
    turns: u64,
    sleeps: u64,
    /// From the NIC, for nobody here.
    unknown: u64,
    /// From one guest to others, without the NIC.
    switched: u64,
    port_errors: u64,
}

/// A guest, whose frames are one member's, or are divided among lanes.
#[derive(Debug)]
struct Guest {
    /// Its members.
    members: Range<usize>,
    /// Which of them gets a frame, if there are several.
    choice: Option<Choice>,
}

/// One NIC, and the guests that share it: a task of some worker.
pub struct Switch {
    name: String,
    span: tracing::Span,
    port: Box<dyn Port>,
    pool: Pool,
    /// Where frames go to and come from: a guest's, or one of its lanes'.
    members: Vec<Member>,
    table: Table,
    /// In the order of the table.
    guests: Vec<Guest>,
    /// Who still has a buffer: the port, and guests.
    holders: Box<[u16]>,
    rx: RxBatch,
    tx: TxBatch,
    /// Buffers that the port is done with.
    done: Vec<u32>,
    /// Whose turn it is first.
    first: usize,
    bell: Arc<Bell>,
    /// What wakes it.
    waker: Waker,
    wakeups: Wakeups,
    /// Guests that come while it is served.
    newcomers: Option<Receiver<Newcomer>>,
    poll_ns: u64,
    port_retry_at: Option<u64>,
    /// How often the port went out of service or came back.
    port_changes: u64,
    counters: Counters,
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Switch").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Switch {
    /// A switch for the port of this name, whose frames lie in `pool`. It is polled for
    /// `poll_ns` before it sleeps, and is told by `waker`, the other end of `wakeups`.
    pub fn new(
        name: String,
        port: Box<dyn Port>,
        pool: Pool,
        poll_ns: u64,
        (waker, wakeups): (Waker, Wakeups),
    ) -> Switch {
        let count = pool.buffers().count() as usize;
        Switch {
            span: tracing::info_span!("switch", port = name),
            name,
            port,
            pool,
            members: Vec::new(),
            table: Table::default(),
            guests: Vec::new(),
            holders: vec![0; count].into_boxed_slice(),
            rx: RxBatch::new(RX_BUDGET),
            tx: TxBatch::new(TX_BUDGET),
            done: Vec::with_capacity(DONE_ROOM),
            first: 0,
            bell: Arc::new(Bell::new(waker.clone())),
            waker,
            wakeups,
            newcomers: None,
            poll_ns,
            port_retry_at: None,
            port_changes: 0,
            counters: Counters::default(),
        }
    }

    /// Adds the guest of this name, whose packets have at most `mtu` bytes. Its worker gets
    /// what is returned; `waker` is the other end of `wakeups`.
    pub fn join(
        &mut self,
        name: &str,
        station: &Station,
        mtu: u16,
        pair: (Waker, Wakeups),
    ) -> SwitchPort {
        let members = self.members.len()..self.members.len() + 1;
        self.table.add(station);
        self.guests.push(Guest { members, choice: None });
        self.member(name, mtu, pair)
    }

    /// Likewise, a guest that is divided by this choice, with a name and a pair for each of
    /// its lanes.
    pub fn join_lanes(
        &mut self,
        lanes: Vec<(String, (Waker, Wakeups))>,
        station: &Station,
        mtu: u16,
        choice: Choice,
    ) -> Vec<SwitchPort> {
        debug_assert_eq!(lanes.len(), usize::from(choice.lanes()));
        let members = self.members.len()..self.members.len() + lanes.len();
        self.table.add(station);
        self.guests.push(Guest { members, choice: Some(choice) });
        lanes.into_iter().map(|(name, pair)| self.member(&name, mtu, pair)).collect()
    }

    fn member(&mut self, name: &str, mtu: u16, (waker, wakeups): (Waker, Wakeups)) -> SwitchPort {
        let caps = self.port.caps();
        let caps = Caps { mtu: mtu.min(caps.mtu), gather: true, ..caps };
        let buffers: Buffers = self.pool.buffers().clone();
        let guest = self.guests.len() - 1;
        let pair = (waker, wakeups);
        let (member, port) = member::pair(name, guest, caps, buffers, Arc::clone(&self.bell), pair);
        self.members.push(member);
        port
    }

    /// Lets guests come while others are served: at most `room` more.
    pub fn joiner(&mut self, room: usize) -> Joiner {
        let (sender, newcomers) = joiner::channel();
        self.newcomers = Some(newcomers);
        Joiner {
            sender,
            waker: self.waker.clone(),
            caps: self.port.caps(),
            rx_mtu: self.port.rx_mtu(),
            buffers: self.pool.buffers().clone(),
            bell: Arc::clone(&self.bell),
            room,
        }
    }

    /// Takes in who has come.
    fn admit(&mut self) {
        while let Some(newcomer) = self.newcomers.as_ref().and_then(|all| all.try_recv().ok()) {
            let Newcomer { station, mut member } = newcomer;
            if let Err(error) = self.port.admit(&station) {
                // It has its end, and others reach it; the NIC's frames do not.
                tracing::error!(guest = member.name(), %error, "the port cannot take in a guest");
            }
            member.set_guest(self.guests.len());
            tracing::info!(guest = member.name(), "a guest has come to the shared port");
            let members = self.members.len()..self.members.len() + 1;
            self.table.add(&station);
            self.guests.push(Guest { members, choice: None });
            self.members.push(member);
        }
    }

    fn port_failed(&mut self, now: Now, error: &PortError) {
        if self.counters.port_errors == 0 {
            tracing::error!(%error, "a shared port failed; it is tried again every second");
        }
        self.counters.port_errors += 1;
        self.set_port_retry(Some(now.monotonic_ns + PORT_RETRY));
    }

    fn set_port_retry(&mut self, at: Option<u64>) {
        self.port_changes += 1;
        self.port_retry_at = at;
    }

    fn receive(&mut self, now: Now) -> Result<usize, PortError> {
        if let Some(at) = self.port_retry_at {
            if now.monotonic_ns < at {
                return Ok(0);
            }
            self.set_port_retry(None);
        }
        let received = self.port.receive(now, &mut self.pool, &mut self.rx);
        for index in 0..self.rx.frames().len() {
            let received = self.rx.frames()[index];
            let frame = received.frame;
            let passing = Passing {
                buf: frame.buf,
                offset: frame.offset,
                len: frame.len,
                csum: frame.csum,
                partial: received.partial,
                mss: 0,
                time: frame.time,
            };
            self.holders[frame.buf as usize] = 1;
            let header = self.header(&passing);
            match self.table.route(header.bytes()) {
                Route::Guest(guest) => self.give(guest, &header, &passing),
                Route::Group(vlan) => self.flood(None, vlan, &header, &passing),
                Route::Elsewhere => self.counters.unknown += 1,
            }
            self.let_go(frame.buf);
        }
        self.rx.clear();
        received
    }

    /// Takes what guests send, a few frames of each in turns, as long as there is room
    /// on the way to the NIC.
    fn take_from_guests(&mut self, now: Now) -> usize {
        let count = self.members.len();
        let mut moved = 0;
        for turn in 0..count {
            let index = (self.first + turn) % count;
            for _ in 0..QUANTUM {
                if self.tx.room() == 0 {
                    self.first = index;
                    return moved;
                }
                let Some(mut passing) = self.members[index].take() else { break };
                moved += 1;
                passing.time = now.real_ns;
                self.holders[passing.buf as usize] = 1;
                let header = self.header(&passing);
                let from = self.members[index].guest();
                match self.table.route(header.bytes()) {
                    Route::Guest(guest) if guest == from => {}
                    Route::Guest(guest) => {
                        self.counters.switched += 1;
                        self.give(guest, &header, &passing);
                    }
                    Route::Group(vlan) => {
                        self.flood(Some(from), vlan, &header, &passing);
                        self.queue(&passing);
                    }
                    Route::Elsewhere => self.queue(&passing),
                }
                self.let_go(passing.buf);
            }
        }
        self.first = (self.first + 1) % count.max(1);
        moved
    }

    fn transmit(&mut self, now: Now) -> Result<usize, PortError> {
        // A port that still reads buffers says only when it is asked that it no longer does.
        if self.tx.is_empty() && !self.port.is_sending() {
            return Ok(0);
        }
        let Self { port, pool, tx, done, .. } = self;
        let sent = port.send(now, pool, tx, &mut |_, buf| done.push(buf));
        while let Some(buf) = self.done.pop() {
            self.let_go(buf);
        }
        sent
    }

    /// The start of a frame, in memory of ours.
    fn header(&self, passing: &Passing) -> Start {
        let mut start = Start { bytes: [0; HEADER_LEN], len: 0 };
        let len = HEADER_LEN.min(usize::from(passing.len));
        let offset = usize::from(passing.offset);
        if self.pool.buffers().read(passing.buf, offset, &mut start.bytes[..len]).is_ok() {
            start.len = len;
        }
        start
    }

    /// Passes a frame on to everybody on its VLAN but the guest that it came from.
    fn flood(&mut self, from: Option<usize>, vlan: Option<u16>, header: &Start, passing: &Passing) {
        for guest in 0..self.guests.len() {
            if Some(guest) != from && self.table.is_on(guest, vlan) {
                self.give(guest, header, passing);
            }
        }
    }

    /// Passes a frame on to a guest, or to those of its lanes that it is for.
    fn give(&mut self, guest: usize, header: &Start, passing: &Passing) {
        let Guest { members, choice } = &self.guests[guest];
        let (first, all) = (members.start, members.clone());
        match choice.as_ref().map_or(Lanes::One(0), |choice| choice.of(header.bytes())) {
            Lanes::One(lane) => self.deliver(first + usize::from(lane), passing),
            Lanes::All => all.for_each(|member| self.deliver(member, passing)),
        }
    }

    fn deliver(&mut self, member: usize, passing: &Passing) {
        if self.members[member].give(*passing) {
            self.holders[passing.buf as usize] += 1;
        }
    }

    /// Queues a frame for the NIC; there is room for it.
    fn queue(&mut self, passing: &Passing) {
        let gathers = self.port.caps().gather;
        let Some(frame) = self.tx.push(Origin::Bridge) else { return };
        // Nobody but us reaches the buffer: the head may as well stay in it, where the
        // port would have to put the two together again.
        let head = if gathers { HEAD_MAX.min(usize::from(passing.len)) } else { 0 };
        let offset = usize::from(passing.offset);
        let read = self.pool.buffers().read(passing.buf, offset, frame.head_mut(head));
        debug_assert!(read.is_ok(), "the guest's end wrote it there");
        (frame.csum, frame.mss) = (passing.partial, passing.mss);
        let rest = passing.len - head as u16;
        if rest > 0 {
            frame.payload =
                Some(Payload { buf: passing.buf, offset: passing.offset + head as u16, len: rest });
            self.holders[passing.buf as usize] += 1;
        }
    }

    /// One less has the buffer; the last one frees it.
    fn let_go(&mut self, buf: u32) {
        let holders = &mut self.holders[buf as usize];
        *holders -= 1;
        if *holders == 0 {
            let given = self.pool.give(buf, Owner::Port);
            debug_assert!(given.is_ok(), "buffer {buf} was let go of twice");
        }
    }
}

impl Task for Switch {
    fn name(&self) -> &str {
        &self.name
    }

    fn span(&self) -> &tracing::Span {
        &self.span
    }

    fn poll_ns(&self) -> u64 {
        self.poll_ns
    }

    fn turn(&mut self, now: Now) -> bool {
        self.counters.turns += 1;
        let mut moved = 0;
        for index in 0..self.members.len() {
            while let Some(buf) = self.members[index].taken_back() {
                self.let_go(buf);
            }
        }
        match self.receive(now) {
            Ok(frames) => moved += frames,
            Err(error) => self.port_failed(now, &error),
        }
        moved += self.take_from_guests(now);
        match self.transmit(now) {
            Ok(frames) => moved += frames,
            Err(error) => self.port_failed(now, &error),
        }
        for member in &mut self.members {
            member.settle(&mut self.pool);
        }
        moved > 0
    }

    fn arm(&mut self, now: Now) -> Rest {
        self.bell.arm();
        if self.members.iter().any(Member::has_frames) || self.port.arm() {
            return Rest::Not;
        }
        self.counters.sleeps += 1;
        let deadlines = [
            self.port.next_deadline(),
            self.port_retry_at,
            // A full NIC says nothing when it has room again.
            (!self.tx.is_empty()).then_some(now.monotonic_ns + 1_000_000),
        ];
        deadlines.into_iter().flatten().min().map_or(Rest::Silent, Rest::Until)
    }

    fn disarm(&mut self) {
        self.bell.disarm();
    }

    fn watch<'a>(&'a self, show: &mut dyn FnMut(BorrowedFd<'a>, Token)) {
        show(self.wakeups.as_fd(), TOKEN_WAKE);
        if let Some(fd) = self.port.fd().filter(|_| self.port_retry_at.is_none()) {
            show(fd, TOKEN_PORT);
        }
    }

    fn generation(&self) -> u64 {
        self.port_changes
    }

    fn ready(&mut self, token: Token) -> bool {
        if token == TOKEN_WAKE {
            self.wakeups.drain();
        }
        token == TOKEN_WAKE && self.newcomers.is_some()
    }

    fn control(&mut self, _now: Now) {
        self.admit();
    }

    fn ends_last(&self) -> bool {
        true
    }

    fn finish(&mut self, now: Now) {
        // What the guests sent last.
        self.turn(now);
        self.port.release(&mut self.pool);
        // What was under way has ended with that.
        if let Err(error) = self.transmit(now) {
            tracing::debug!(%error, "the last frames could not be sent");
        }
    }

    fn each_counter(&self, visit: &mut dyn FnMut(&str, u64)) {
        let Counters { turns, sleeps, unknown, switched, port_errors } = self.counters;
        visit("switch.turns", turns);
        visit("switch.sleeps", sleeps);
        visit("switch.unknown", unknown);
        visit("switch.switched", switched);
        visit("switch.port_errors", port_errors);
        visit("pool.buffers", u64::from(self.pool.buffers().count()));
        visit("pool.free", u64::from(self.pool.free()));
        self.port.each_counter(&mut |name, value| visit(&format!("port.{name}"), value));
        for member in &self.members {
            visit(&format!("dropped.{}", member.name()), member.dropped());
        }
    }
}

#[cfg(test)]
mod tests;
