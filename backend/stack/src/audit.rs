//! An audit of the stack from inside, for tests and simulations: whether all
//! that its records say in two places agrees, and whether everything that waits
//! will be woken.
//!
//! The audit only reads, between two calls of the caller's. It is linear in the
//! whole stack and allocates, so nothing of it is compiled without the feature
//! `audit`. Edges between states are watched where they are taken, by
//! [`FlowState::enter`].

use paste_abi::Flow;
use thiserror::Error;

use crate::bufs::{NIL, Place, Queue};
use crate::flow::{FlowState, Links, List, NEVER, State, event};
use crate::stack::Stack;
use crate::tcp::cookie;
use crate::tcp::scoreboard;
use crate::tcp::seq::Seq;
use crate::tcp::window::SPACE_FLOOR;

/// Something that must hold in a [`Stack`] and does not.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Violation {
    /// A queue does not end with the buffer that it has as its last.
    #[error("flow {flow}: its {queue} queue has another tail")]
    Torn {
        /// Index of the flow.
        flow: u32,
        /// The queue.
        queue: &'static str,
    },
    /// A buffer is in a queue that its record does not say.
    #[error("flow {flow}: buffer {buf} in its {queue} queue is {place}, charged to {charged:#x}")]
    Misplaced {
        /// Index of the flow.
        flow: u32,
        /// The queue.
        queue: &'static str,
        /// The buffer.
        buf: u32,
        /// Where its record says it is.
        place: String,
        /// The name of the flow that its record has.
        charged: u32,
    },
    /// A buffer is in two queues, or in one that runs in a circle.
    #[error("buffer {buf} is met again in flow {flow}'s {queue} queue")]
    Twice {
        /// Index of the flow where it is met again.
        flow: u32,
        /// The queue.
        queue: &'static str,
        /// The buffer.
        buf: u32,
    },
    /// A buffer's record says that it is in a queue, and it is in none.
    #[error("buffer {buf} is {place} and in no queue, with {pins} pins")]
    Stray {
        /// The buffer.
        buf: u32,
        /// Where its record says it is.
        place: String,
        /// Frames that carry it.
        pins: u16,
    },
    /// The stack and the memory do not agree on a buffer's owner.
    #[error("buffer {buf} is {place}, which is not what the memory has")]
    Owner {
        /// The buffer.
        buf: u32,
        /// Where its record says it is.
        place: String,
    },
    /// A count is not the number of what it counts.
    #[error("{whose}: {what} is {counted}, and there are {found}")]
    Count {
        /// Whose count.
        whose: String,
        /// Which.
        what: &'static str,
        /// The count.
        counted: u64,
        /// What there is.
        found: u64,
    },
    /// Peers were promised more than there are buffers for.
    #[error("{promised} bytes are promised, and {most} is the most that may be")]
    Promise {
        /// Bytes promised, over all flows.
        promised: u64,
        /// The most that may be.
        most: u64,
    },
    /// Sequence numbers, or payload by them, out of order.
    #[error("flow {flow} in {state}: {what} does not hold: {left} and {right}")]
    Sequence {
        /// Index of the flow.
        flow: u32,
        /// Its state.
        state: String,
        /// The rule.
        what: &'static str,
        /// The rule's left side.
        left: u32,
        /// The rule's right side.
        right: u32,
    },
    /// A deadline that no timer of the wheel stands for.
    #[error("timer {timer}: due at {deadline}, rings at {rings:?}")]
    Timer {
        /// The timer: a flow's index, or behind those a neighbour's.
        timer: u32,
        /// What it must not ring later than, ns.
        deadline: u64,
        /// When it rings, ns.
        rings: Option<u64>,
    },
    /// A flow that waits for what nothing will bring about.
    #[error("flow {flow} in {state}: {what}, and nothing will wake it")]
    Asleep {
        /// Index of the flow.
        flow: u32,
        /// Its state.
        state: String,
        /// What it has to do.
        what: &'static str,
    },
    /// A flow is in a list where it does not belong, or is not where it does,
    /// or a list is torn.
    #[error("flow {flow} in {state}: {what}")]
    Listed {
        /// Index of the flow.
        flow: u32,
        /// Its state.
        state: String,
        /// What is wrong.
        what: &'static str,
    },
}

/// What the lists hold, flow by flow.
struct Lists {
    /// A bit for each kind of list that was seen to hold the flow.
    seen: Vec<u8>,
}

impl Stack {
    /// Looks for a contradiction in all that the stack knows. `owned` says
    /// whether the memory has a buffer as the stack's.
    pub fn audit(&self, owned: impl Fn(u32) -> bool) -> Result<(), Violation> {
        let lists = self.audit_lists()?;
        let mut queued = vec![false; self.bufs.total() as usize];
        let delivered = self.count_delivered();
        let mut totals = Totals::default();
        for index in 0..self.config.flows_max {
            if self.is_free(index) {
                continue;
            }
            self.audit_membership(index, &lists)?;
            self.audit_queues(index, delivered[index as usize], &mut queued)?;
            self.audit_sequence(index)?;
            self.audit_scoreboard(index)?;
            // The next transmission sets the timers of the flows that it looks at.
            let flow = &self.flows[index];
            let looked_at = flow.neighbour == NIL && self.flows.linked(Links::Sending, index);
            let deadline = if looked_at { NEVER } else { flow.deadline(self.now) };
            self.audit_timer(index, deadline)?;
            self.audit_wakers(index)?;
            totals.add(&self.flows[index]);
        }
        self.audit_buffers(&queued, owned)?;
        self.audit_aliases(&queued)?;
        self.audit_totals(&totals)?;
        self.audit_neighbours()
    }

    /// Whether the flow is in the free list.
    fn is_free(&self, index: u32) -> bool {
        let flow = &self.flows[index];
        flow.state == State::Closed && flow.detached() && !flow.rst_due()
    }

    /// Buffers of each flow that its guest has.
    fn count_delivered(&self) -> Vec<u64> {
        let mut delivered = vec![0; self.config.flows_max as usize];
        for buf in 0..self.bufs.count() {
            let meta = self.bufs.get(buf);
            if meta.place == Place::Delivered
                && let Some(index) = self.flows.find(Flow(meta.flow))
            {
                delivered[index as usize] += 1;
            }
        }
        delivered
    }

    fn audit_lists(&self) -> Result<Lists, Violation> {
        let mut lists = Lists { seen: vec![0; self.config.flows_max as usize] };
        let mut count = |kind, list| self.audit_list(kind, list, &mut lists);
        for channel in &self.channels {
            count(Links::Channel, channel.flows)?;
            count(Links::Ready, channel.ready)?;
        }
        count(Links::Sending, self.sending)?;
        for (list, _) in self.neighbours.waits() {
            count(Links::Sending, list)?;
        }
        let waiting = count(Links::Age, self.time_wait)?;
        count(Links::Age, self.holders)?;
        count(Links::Age, self.half_open)?;
        equal("stack", "time_wait_len", self.time_wait_len.into(), waiting)?;
        let free = count(Links::Channel, self.flows.free_list())?;
        let used = u64::from(self.config.flows_max) - free;
        equal("stack", "used", self.flows.used().into(), used)?;
        Ok(lists)
    }

    /// Walks a list of flows, and returns how many there are.
    fn audit_list(&self, kind: Links, list: List, lists: &mut Lists) -> Result<u64, Violation> {
        let (mut at, mut previous, mut count) = (list.head(), None, 0);
        while let Some(index) = at {
            let bit = 1 << kind as u8;
            if lists.seen[index as usize] & bit != 0 {
                return Err(self.listed(index, "is in two lists of a kind, or in a circle"));
            }
            lists.seen[index as usize] |= bit;
            let (before, after) = self.flows.around(kind, index);
            if before != previous || !self.flows.linked(kind, index) {
                return Err(self.listed(index, "is not linked to the one before it"));
            }
            (previous, at) = (at, after);
            count += 1;
        }
        if list.tail() != previous {
            return Err(self.listed(previous.unwrap_or(NIL), "is not the tail that its list has"));
        }
        Ok(count)
    }

    /// The flow is in the lists that its state asks for, and no others.
    fn audit_membership(&self, index: u32, lists: &Lists) -> Result<(), Violation> {
        let flow = &self.flows[index];
        let seen = |kind: Links| lists.seen[index as usize] & (1 << kind as u8) != 0;
        for kind in [Links::Sending, Links::Ready, Links::Channel, Links::Age] {
            if seen(kind) != self.flows.linked(kind, index) {
                return Err(self.listed(index, "is linked and in no list"));
            }
        }
        if seen(Links::Channel) == flow.detached() {
            return Err(self.listed(index, "is in its channel's list if and only if detached"));
        }
        if seen(Links::Ready) && flow.detached() {
            return Err(self.listed(index, "is detached and has something for its guest"));
        }
        let half_open = flow.state == State::SynReceived && flow.listener().is_some();
        let kinds = [half_open, !flow.held.is_empty(), flow.state == State::TimeWait];
        if kinds.map(u8::from).iter().sum::<u8>() != u8::from(seen(Links::Age)) {
            return Err(self.listed(index, "is not in the one list by age of its kind"));
        }
        let found = self.find_flow(&flow.key, self.key_hash(&flow.key));
        if flow.state != State::Closed && found != Some(index) {
            return Err(self.listed(index, "is not found by its key"));
        }
        if flow.state == State::Closed && found == Some(index) {
            return Err(self.listed(index, "is dead and found by its key"));
        }
        Ok(())
    }

    /// Buffers in the flow's queues are there once, in order, and counted.
    fn audit_queues(
        &self,
        index: u32,
        delivered: u64,
        queued: &mut [bool],
    ) -> Result<(), Violation> {
        let flow = &self.flows[index];
        let rx = self.audit_queue(index, "readable", flow.rx, Place::Readable, queued)?;
        let held = self.audit_queue(index, "held", flow.held, Place::Held, queued)?;
        let tx = self.audit_queue(index, "send", flow.tx, Place::Sending, queued)?;
        self.audit_queue(index, "done", flow.done, Place::Done, queued)?;
        let whose = || format!("flow {index} in {:?}", flow.state);
        equal(whose(), "held_blocks", flow.held_blocks.into(), self.audit_blocks(index)?)?;
        equal(whose(), "tx_len", flow.tx_len.into(), tx)?;
        equal(whose(), "rx_bufs", flow.rx_bufs.into(), rx + held + delivered)
    }

    fn audit_queue(
        &self,
        index: u32,
        name: &'static str,
        queue: Queue,
        place: Place,
        queued: &mut [bool],
    ) -> Result<u64, Violation> {
        let (mut at, mut last, mut count) = (queue.head, NIL, 0);
        while at != NIL {
            let meta = self.bufs.get(at);
            if meta.place != place || meta.flow != self.flows.name(index).0 {
                return Err(Violation::Misplaced {
                    flow: index,
                    queue: name,
                    buf: at,
                    place: format!("{:?}", meta.place),
                    charged: meta.flow,
                });
            }
            if core::mem::replace(&mut queued[at as usize], true) {
                return Err(Violation::Twice { flow: index, queue: name, buf: at });
            }
            count += 1;
            (last, at) = (at, meta.next);
        }
        let tail = if count == 0 { NIL } else { queue.tail };
        if tail != last {
            return Err(Violation::Torn { flow: index, queue: name });
        }
        Ok(count)
    }

    /// The ends of every held block know each other. Returns how many there are.
    fn audit_blocks(&self, index: u32) -> Result<u64, Violation> {
        let (mut count, mut first) = (0, NIL);
        for buf in self.bufs.walk(self.flows[index].held) {
            if first == NIL {
                (first, count) = (buf, count + 1);
            }
            let next = self.bufs.get(buf).next;
            if next != NIL && self.bufs.end(buf) == Seq(self.bufs.get(next).seq) {
                continue;
            }
            if self.bufs.get(first).back != buf || self.bufs.get(buf).back != first {
                return Err(Violation::Torn { flow: index, queue: "held" });
            }
            first = NIL;
        }
        Ok(count)
    }

    /// Every buffer is in a queue exactly if its record says so, and the
    /// memory's owner of it is the same.
    fn audit_buffers(&self, queued: &[bool], owned: impl Fn(u32) -> bool) -> Result<(), Violation> {
        for buf in 0..self.bufs.count() {
            let meta = self.bufs.get(buf);
            let in_queue = match meta.place {
                Place::Elsewhere | Place::Delivered | Place::Pinned => false,
                Place::Reassembling => {
                    if !self.reassembly.has(buf) {
                        let place = format!("{:?}", meta.place);
                        return Err(Violation::Stray { buf, place, pins: meta.pins });
                    }
                    false
                }
                Place::Readable | Place::Held | Place::Sending | Place::Done => true,
            };
            let idle = meta.place == Place::Pinned && meta.pins == 0;
            if in_queue != queued[buf as usize] || idle {
                let place = format!("{:?}", meta.place);
                return Err(Violation::Stray { buf, place, pins: meta.pins });
            }
            if owned(buf) == matches!(meta.place, Place::Elsewhere | Place::Delivered) {
                return Err(Violation::Owner { buf, place: format!("{:?}", meta.place) });
            }
        }
        Ok(())
    }

    /// Every alias in use is in a queue and pins its buffer; the others are free.
    fn audit_aliases(&self, queued: &[bool]) -> Result<(), Violation> {
        let mut pins = vec![0; self.bufs.count() as usize];
        for alias in self.bufs.count()..self.bufs.total() {
            let meta = self.bufs.get(alias);
            let used = matches!(meta.place, Place::Sending | Place::Done);
            if used != queued[alias as usize] || meta.pins != 0 {
                let place = format!("{:?}", meta.place);
                return Err(Violation::Stray { buf: alias, place, pins: meta.pins });
            }
            if used {
                pins[self.bufs.real(alias) as usize] += 1;
            }
        }
        let used: u32 = pins.iter().map(|&count| u32::from(count)).sum();
        let free = self.bufs.total() - self.bufs.count() - used;
        equal("stack", "free aliases", self.bufs.free_aliases(), free.into())?;
        for (buf, &least) in pins.iter().enumerate() {
            let meta = self.bufs.get(buf as u32);
            if meta.pins < least {
                let place = format!("{:?}", meta.place);
                return Err(Violation::Stray { buf: buf as u32, place, pins: meta.pins });
            }
        }
        Ok(())
    }

    /// RFC 9293 section 3.3.1: the variables of both sequence spaces are in
    /// order, and payload lies where they say.
    fn audit_sequence(&self, index: u32) -> Result<(), Violation> {
        let flow = &self.flows[index];
        if flow.state == State::Closed {
            return Ok(());
        }
        let ordered = |what, left: Seq, right: Seq| {
            if left.after(right) { Err(self.sequence(index, what, left, right)) } else { Ok(()) }
        };
        let same = |what, left: Seq, right: Seq| {
            if left != right { Err(self.sequence(index, what, left, right)) } else { Ok(()) }
        };
        ordered("SND.UNA <= SND.NXT", flow.snd_una, flow.snd_nxt)?;
        let end = flow.snd_end + u32::from(flow.fin_queued());
        ordered("SND.NXT <= what was queued", flow.snd_nxt, end)?;

        // The send queue is one run of payload that ends with what was queued.
        let unopened = !flow.state.is_synchronized();
        let first = flow.snd_una + u32::from(unopened);
        let mut expected = None;
        for buf in self.bufs.walk(flow.tx) {
            let meta = self.bufs.get(buf);
            match expected {
                None => ordered("the send queue begins at SND.UNA", Seq(meta.seq), first)?,
                Some(seq) => same("the send queue has no gap", seq, Seq(meta.seq))?,
            }
            let after = Seq(meta.seq) + u32::from(meta.len);
            ordered("what is acknowledged has left", first + 1, after)?;
            expected = Some(after);
        }
        if let Some(after) = expected {
            same("the send queue ends with what was queued", after, flow.snd_end)?;
        }

        if flow.state == State::SynSent {
            return Ok(());
        }
        ordered("RCV.NXT <= the window's edge", flow.rcv_nxt, flow.rcv_adv)?;
        ordered("what was acknowledged <= RCV.NXT", flow.last_ack_sent, flow.rcv_nxt)?;
        let mut expected = None;
        for buf in self.bufs.walk(flow.rx) {
            let meta = self.bufs.get(buf);
            if let Some(seq) = expected {
                same("readable payload has no gap", seq, Seq(meta.seq))?;
            }
            expected = Some(Seq(meta.seq) + u32::from(meta.len));
        }
        if let Some(after) = expected {
            let fin = u32::from(flow.fin_at().is_some_and(|fin| flow.rcv_nxt.after(fin)));
            same("readable payload ends at RCV.NXT", after + fin, flow.rcv_nxt)?;
        }
        let mut least = flow.rcv_nxt + 1;
        for buf in self.bufs.walk(flow.held) {
            let meta = self.bufs.get(buf);
            ordered("held payload is early and does not overlap", least, Seq(meta.seq))?;
            least = Seq(meta.seq) + u32::from(meta.len);
            ordered("held payload lies in the window", least, flow.rcv_adv)?;
        }
        Ok(())
    }

    /// What is lost and what is delivered out of order is what the units say.
    fn audit_scoreboard(&self, index: u32) -> Result<(), Violation> {
        let flow = &self.flows[index];
        let tally = scoreboard::tally(&self.bufs, flow);
        let whose = || format!("flow {index} in {:?}", flow.state);
        equal(whose(), "lost_bytes", flow.lost_bytes.into(), tally.lost)?;
        if flow.sack() {
            equal(whose(), "sacked_bytes", flow.sacked_bytes.into(), tally.sacked)?;
        }
        let found = flow.repair != NIL
            && scoreboard::next_lost(&self.bufs, flow, &self.repairs[flow.repair]).is_some();
        if tally.lost > 0 && !found {
            let what = "what is lost is found";
            return Err(self.sequence(index, what, flow.snd_una, flow.snd_nxt));
        }
        if flow.repair != NIL && flow.tx.is_empty() {
            return Err(self.sequence(index, "a repair ends", flow.snd_una, flow.snd_nxt));
        }
        Ok(())
    }

    /// A deadline has a timer that rings not later than a tick after it.
    fn audit_timer(&self, timer: u32, deadline: u64) -> Result<(), Violation> {
        let rings = self.wheel.rings_at(timer);
        if deadline != NEVER && rings.is_none_or(|at| at > self.wheel.latest(deadline)) {
            return Err(Violation::Timer { timer, deadline, rings });
        }
        if let Some(at) = rings
            && self.wheel.next().is_none_or(|next| next > at)
        {
            return Err(Violation::Timer { timer, deadline: at, rings: self.wheel.next() });
        }
        Ok(())
    }

    /// Whatever the flow has to do, something will make it do it.
    fn audit_wakers(&self, index: u32) -> Result<(), Violation> {
        let flow = &self.flows[index];
        let asleep =
            |what| Violation::Asleep { flow: index, state: format!("{:?}", flow.state), what };
        let sending = self.flows.linked(Links::Sending, index);
        if flow.rst_due() && !sending {
            return Err(asleep("a RST is due"));
        }
        if !flow.detached() && !self.flows.linked(Links::Ready, index) {
            // The guest is told of payload before it is told of acknowledged
            // buffers, and of those before the end; a buffer that the port
            // still sends holds up what comes after it.
            let pinned =
                self.bufs.walk(flow.done).next().is_some_and(|b| self.bufs.get(b).pins > 0);
            let first = event::ACCEPTED | event::CONNECTED | event::FIN;
            if flow.events & first != 0 || !flow.rx.is_empty() {
                return Err(asleep("the guest is to be told"));
            }
            if !pinned && (flow.events != 0 || !flow.done.is_empty()) {
                return Err(asleep("the guest is to be told of acknowledged buffers or the end"));
            }
        }
        let may_wait = sending || flow.rexmit_at.is_set();
        match flow.state {
            State::Closed => {}
            State::TimeWait if !flow.idle_at.is_set() => {
                return Err(asleep("TIME-WAIT has no end"));
            }
            State::TimeWait => {}
            State::FinWait2 if !flow.idle_at.is_set() => {
                return Err(asleep("FIN-WAIT-2 has no end"));
            }
            _ if may_wait => {}
            State::SynSent | State::SynReceived => return Err(asleep("the handshake is to go on")),
            _ if flow.outstanding() => return Err(asleep("not all is acknowledged")),
            _ if flow.snd_nxt != flow.snd_end + u32::from(flow.fin_queued()) => {
                return Err(asleep("not all is sent"));
            }
            _ => {}
        }
        Ok(())
    }

    fn audit_totals(&self, totals: &Totals) -> Result<(), Violation> {
        equal("stack", "open", self.open.into(), totals.open)?;
        equal("stack", "promised", self.promised, totals.promised)?;
        // Half the region, and what each flow may have whatever others have: a
        // cookie's answer promised before there was a flow to count.
        let floor = if self.config.syn_cookies { cookie::WINDOW } else { SPACE_FLOOR };
        let floors = totals.open * u64::from(floor.max(SPACE_FLOOR));
        let most = (u64::from(self.bufs.count() / 2) + floors) * u64::from(self.mss);
        if self.promised > most {
            return Err(Violation::Promise { promised: self.promised, most });
        }
        equal("stack", "repairs lent", self.repairs.lent(), totals.repairs)?;
        let is_charged = |&buf: &u32| {
            matches!(self.bufs.get(buf).place, Place::Readable | Place::Held | Place::Delivered)
        };
        let charged = (0..self.bufs.count()).filter(is_charged).count();
        equal("stack", "charged", self.charged.into(), charged as u64)?;
        equal("stack", "entries of the table", self.table.len(), totals.known)?;
        for (name, half_open, waiting) in self.listeners.pending() {
            for (what, counted, kind) in
                [("half_open", half_open, true), ("waiting", waiting, false)]
            {
                let found = totals.pending.iter().filter(|&&pair| pair == (name, kind)).count();
                equal("a listener", what, counted.into(), found as u64)?;
            }
        }
        Ok(())
    }

    /// A neighbour for which flows wait is being asked for.
    fn audit_neighbours(&self) -> Result<(), Violation> {
        for (number, (list, ask_at)) in (0..).zip(self.neighbours.waits()) {
            if let (Some(flow), None) = (list.head(), ask_at) {
                let what = "waits for a neighbour that nobody asks for";
                return Err(self.listed(flow, what));
            }
            self.audit_timer(self.config.flows_max + number, ask_at.unwrap_or(NEVER))?;
        }
        Ok(())
    }

    fn listed(&self, flow: u32, what: &'static str) -> Violation {
        let state = match flow {
            NIL => "no state".to_string(),
            _ => format!("{:?}", self.flows[flow].state),
        };
        Violation::Listed { flow, state, what }
    }

    fn sequence(&self, flow: u32, what: &'static str, left: Seq, right: Seq) -> Violation {
        let state = format!("{:?}", self.flows[flow].state);
        Violation::Sequence { flow, state, what, left: left.0, right: right.0 }
    }
}

/// Sums over all flows, to be compared with the stack's.
#[derive(Default)]
struct Totals {
    open: u64,
    promised: u64,
    repairs: u64,
    /// Flows that the table must know.
    known: u64,
    /// The listener of each flow that has one, and whether it is half open.
    pending: Vec<(Flow, bool)>,
}

impl Totals {
    fn add(&mut self, flow: &FlowState) {
        self.open += u64::from(!matches!(flow.state, State::Closed | State::TimeWait));
        self.known += u64::from(flow.state != State::Closed);
        self.repairs += u64::from(flow.repair != NIL);
        if flow.promises() {
            self.promised += u64::from(flow.rcv_wnd());
        }
        let half_open = flow.state == State::SynReceived;
        self.pending.extend(flow.listener().map(|listener| (listener, half_open)));
    }
}

fn equal(
    whose: impl Into<String>,
    what: &'static str,
    counted: u64,
    found: u64,
) -> Result<(), Violation> {
    if counted == found {
        return Ok(());
    }
    Err(Violation::Count { whose: whose.into(), what, counted, found })
}
