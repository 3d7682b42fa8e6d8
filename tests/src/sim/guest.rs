//! The guests of one host: applications that follow their scripts, and judge
//! everything that they are told.
//!
//! Whatever must not happen panics; the run catches it, and its message is the
//! finding.

mod sending;
mod stores;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};

use paste_abi::slot::{CSUM_VALID, Opt};
use paste_abi::{Event, Flow, Reason, Slot};
use paste_stack::config::{MS, SEC};

use super::headers;
use super::host::Host;
use super::memory::Owner;
use super::pattern::{Stored, Stream};
use super::run::Hooks;
use super::scenario::{CHANNELS, Conversation, Draw, Manner, PORT, PORT_FIRST, Scenario, Step};
use sending::Owed;
use stores::Stores;

/// Silence after which a guest gives a flow up: longer than any timer of the
/// stack's needs.
const PATIENCE: u64 = 400 * SEC;
/// Attempts to open before a conversation is given up.
const ATTEMPTS_MAX: u32 = 5;
/// What lies before the payload of a kept buffer, and around what is stored.
const MARK: u8 = 0xa5;
/// How long a guest talks to a peer that it does not know.
const STRANGER_NS: u64 = 5 * SEC;

/// How a flow ended at one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// In good order.
    Closed,
    /// By RESET with this reason.
    Reset(Reason),
    /// The script reset it.
    Aborted,
    /// Its guest died.
    Died,
    /// It was silent for too long.
    GaveUp,
    /// It was never opened.
    Unopened,
}

/// One attempt at a conversation: a flow, as both ends see it.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// Which conversation.
    pub conversation: usize,
    /// Whether the handshake was complete, for the opener and the other.
    pub opened: [bool; 2],
    /// How and when it ended for them.
    pub ends: [Option<(u64, End)>; 2],
    /// Ports of the opener and, opened by both at once, of the other.
    ports: [u16; 2],
}

/// What all guests of a run know.
#[derive(Debug)]
pub struct World {
    seed: u64,
    /// What is to be said.
    pub conversations: Vec<Conversation>,
    stored: Option<Stored>,
    /// All attempts at it.
    pub attempts: Vec<Attempt>,
    /// The latest attempt from each host's port.
    by_port: HashMap<(usize, u16), usize>,
    /// Of each host, by IPv4 and IPv6.
    addresses: [[IpAddr; 2]; 2],
    port_next: u16,
}

impl World {
    /// A world in which nothing was said yet.
    pub fn new(scenario: &Scenario) -> World {
        World {
            seed: scenario.seed,
            conversations: scenario.conversations.clone(),
            stored: scenario.stored,
            attempts: Vec::new(),
            by_port: HashMap::new(),
            addresses: scenario.setups.each_ref().map(|s| s.addresses()),
            port_next: PORT_FIRST,
        }
    }

    fn new_port(&mut self) -> u16 {
        self.port_next += 1;
        self.port_next
    }

    /// Begins an attempt of the opener's; returns its number.
    fn begin(&mut self, number: usize) -> usize {
        let conversation = &self.conversations[number];
        let opener = conversation.opener;
        // A port is used again when nobody uses it any more, or only TIME-WAIT.
        let old = conversation.port_of.and_then(|of| {
            let last = self.attempts.iter().rfind(|a| a.conversation == of)?;
            last.ends.iter().all(Option::is_some).then_some(last.ports[0])
        });
        let first = !self.attempts.iter().any(|a| a.conversation == number);
        let port = old.filter(|_| first).unwrap_or_else(|| self.new_port());
        let attempt = Attempt {
            conversation: number,
            opened: [false; 2],
            ends: [None; 2],
            ports: [port, self.new_port()],
        };
        self.attempts.push(attempt);
        self.by_port.insert((opener, port), self.attempts.len() - 1);
        self.attempts.len() - 1
    }

    /// What is sent on an attempt by the opener (0) or the other.
    fn stream(&self, attempt: usize, side: usize) -> Stream {
        let conversation = &self.conversations[self.attempts[attempt].conversation];
        Stream {
            key: self.seed ^ (attempt as u64) << 33 ^ (side as u64) << 32,
            stored: self.stored.filter(|_| conversation.manners[side].shares),
        }
    }
}

/// A flow, as its guest knows it.
#[derive(Debug)]
struct Endpoint {
    flow: Flow,
    channel: u16,
    /// The attempt, and whether this is the opener's end (0) or the other (1).
    /// A stranger's flow has none.
    role: Option<(usize, usize)>,
    manner: Manner,
    step: usize,
    sent_in_step: u64,
    wait_until: Option<u64>,
    opened: bool,
    sent: u64,
    received: u64,
    /// Bytes that the peer sends in all.
    expected: u64,
    fin: bool,
    closing: bool,
    /// The script is over before its end: the flow is.
    broken: bool,
    /// No slots for now.
    blocked: bool,
    heard_at: u64,
    /// Slots that ACKED is to come for: cookie, and what comes back with it.
    awaited: VecDeque<(u64, Owed)>,
}

/// The guests of one host, one for each channel.
#[derive(Debug)]
pub struct Guests {
    me: usize,
    backlog: u16,
    headroom: u16,
    /// The stack answers with cookies where it must.
    cookies: bool,
    /// An adversary opens flows in anybody's name.
    deceived: bool,
    draw: Draw,
    slots: Vec<Slot>,
    endpoints: Vec<Endpoint>,
    /// Buffers that are being read: until when, by the guest of which channel.
    reading: BinaryHeap<Reverse<(u64, u32, u16)>>,
    /// Buffers that are kept and sent from.
    stores: Stores,
    /// What is still to be opened, and when.
    plans: Vec<(u64, usize)>,
    stalled_until: u64,
    /// Until when the guest of a channel is away.
    away_until: [u64; CHANNELS as usize],
    listening: [bool; CHANNELS as usize],
    cookie: u64,
    /// Payload bytes that arrived.
    pub bytes: u64,
}

impl Guests {
    /// The guests of host `me`.
    pub fn new(scenario: &Scenario, me: usize) -> Guests {
        let mut draw = Draw::new(scenario.seed ^ 0x67_7565_7374 ^ me as u64);
        let plans = scenario.conversations.iter().enumerate();
        let mine = plans.filter(|(_, c)| c.opener == me || c.simultaneous);
        Guests {
            me,
            backlog: scenario.backlog,
            headroom: scenario.setups[me].config.headroom,
            cookies: scenario.setups[me].config.syn_cookies,
            deceived: scenario.adversary,
            slots: vec![Slot::default(); draw.one(&[1, 3, 46])],
            draw,
            endpoints: Vec::new(),
            reading: BinaryHeap::new(),
            stores: Stores::new(scenario.setups[me].config.shared_sends_max),
            plans: mine.map(|(number, c)| (c.at, number)).collect(),
            stalled_until: 0,
            away_until: [0; CHANNELS as usize],
            listening: [false; CHANNELS as usize],
            cookie: 0,
            bytes: 0,
        }
    }

    /// Does nothing for a while.
    pub fn stall(&mut self, until: u64) {
        self.stalled_until = until;
    }

    /// The guest of a channel dies, with all that it has.
    pub fn die(&mut self, now: u64, channel: u16, until: u64, host: &mut Host, world: &mut World) {
        let clock = host.clock(now);
        host.stack.close_channel(&mut host.memory, clock, channel);
        self.away_until[usize::from(channel)] = until;
        self.listening[usize::from(channel)] = false;
        let (dead, alive) =
            std::mem::take(&mut self.endpoints).into_iter().partition(|e| e.channel == channel);
        self.endpoints = alive;
        for endpoint in dead {
            end(world, &endpoint, now, End::Died);
        }
        self.stores.die(now, channel, host);
        let (dead, alive) = std::mem::take(&mut self.reading)
            .into_iter()
            .partition(|Reverse((_, _, owner))| *owner == channel);
        self.reading = alive;
        let dead: BinaryHeap<_> = dead;
        for Reverse((_, buf, _)) in dead {
            host.release(now, buf);
        }
    }

    /// Whether there is nothing left to do.
    pub fn are_done(&self) -> bool {
        self.endpoints.is_empty()
            && self.plans.is_empty()
            && self.reading.is_empty()
            && self.stores.is_empty()
    }

    /// Shared sends that there were.
    pub fn shared(&self) -> u64 {
        self.stores.sent
    }

    /// When a guest has something to do next that nobody tells it of.
    pub fn next_deadline(&self, now: u64, host: &Host) -> Option<u64> {
        let reading = self.reading.peek().map(|Reverse((at, ..))| *at);
        let waits = self.endpoints.iter().flat_map(|e| [e.wait_until, Some(e.heard_at + PATIENCE)]);
        let plans = self.plans.iter().map(|&(at, number)| (at, number).0);
        let told = (0..CHANNELS).any(|channel| host.stack.has_slots(channel)).then_some(now);
        let back =
            self.away_until.iter().zip(self.listening).filter(|(_, l)| !l).map(|(&at, _)| at);
        let next = waits.flatten().chain(plans).chain(reading).chain(told).chain(back).min()?;
        Some(next.max(self.stalled_until))
    }

    /// What the guests do in one turn.
    pub fn step(&mut self, now: u64, host: &mut Host, world: &mut World, hooks: &mut Hooks<'_>) {
        if now < self.stalled_until {
            return;
        }
        while let Some(&Reverse((at, buf, _))) = self.reading.peek()
            && at <= now
        {
            self.reading.pop();
            host.release(now, buf);
        }
        for channel in 0..CHANNELS {
            let index = usize::from(channel);
            if self.away_until[index] > now {
                continue;
            }
            if !self.listening[index] {
                self.listening[index] = true;
                let port = PORT + channel;
                host.stack.listen(channel, port, self.backlog).expect("a free port");
            }
            self.poll(now, channel, host, world, hooks);
        }
        self.open_planned(now, host, world, hooks);
        for index in (0..self.endpoints.len()).rev() {
            self.follow_script(now, index, host, world, hooks);
        }
        for channel in 0..CHANNELS {
            if !self.endpoints.iter().any(|e| e.channel == channel) {
                self.stores.give_up(now, channel, false, host);
            }
        }
        self.stores.check(host);
    }

    fn poll(
        &mut self,
        now: u64,
        channel: u16,
        host: &mut Host,
        world: &mut World,
        hooks: &mut Hooks<'_>,
    ) {
        loop {
            let mut slots = std::mem::take(&mut self.slots);
            let count = host.poll(channel, &mut slots);
            for slot in &slots[..count] {
                self.told(now, channel, slot, host, world, hooks);
            }
            let full = count == slots.len();
            self.slots = slots;
            if !full {
                return;
            }
        }
    }

    fn told(
        &mut self,
        now: u64,
        channel: u16,
        slot: &Slot,
        host: &mut Host,
        world: &mut World,
        hooks: &mut Hooks<'_>,
    ) {
        let event = slot.as_event().expect("an event of the protocol");
        if event != Event::Data {
            hooks.note(now, format_args!("host {}: {event:?} of {:#x}", self.me, slot.flow.0));
        }
        if event == Event::Accepted {
            self.accepted(now, channel, slot, world);
            self.set_options(now, self.endpoints.len() - 1, host);
            return;
        }
        let found = self.endpoints.iter().position(|e| e.flow == slot.flow);
        let index = found.unwrap_or_else(|| panic!("{event:?} of a flow that nobody knows"));
        let endpoint = &mut self.endpoints[index];
        assert_eq!(endpoint.channel, channel, "{event:?} on the wrong channel");
        endpoint.heard_at = now;
        match event {
            Event::Connected => {
                assert!(!endpoint.opened, "CONNECTED twice");
                endpoint.opened = true;
                let (attempt, side) = endpoint.role.expect("an active open");
                assert_eq!(slot.cookie, attempt as u64, "another flow's CONNECTED");
                world.attempts[attempt].opened[side] = true;
                self.set_options(now, index, host);
            }
            Event::Data => self.data(now, index, slot, host, world),
            Event::Fin => {
                assert!(endpoint.opened && !endpoint.fin, "FIN out of turn");
                endpoint.fin = true;
                if endpoint.role.is_some() {
                    assert_eq!(endpoint.received, endpoint.expected, "bytes before FIN");
                }
            }
            Event::Acked => self.acked(now, index, slot, host, world),
            Event::Writable => {
                assert!(endpoint.blocked, "WRITABLE without a refusal");
                endpoint.blocked = false;
            }
            Event::Reset => {
                let reason = Reason::from_u16(slot.len).expect("a reason");
                self.ended(now, index, End::Reset(reason), world, hooks);
            }
            Event::Closed => {
                assert!(endpoint.fin && endpoint.closing, "CLOSED before both sides had closed");
                assert!(endpoint.awaited.is_empty(), "CLOSED before everything was acknowledged");
                self.ended(now, index, End::Closed, world, hooks);
            }
            Event::Accepted | Event::Reply | Event::Refused | Event::Flushed | Event::Piece => {
                panic!("{event:?} of the stack's")
            }
        }
    }

    fn accepted(&mut self, now: u64, channel: u16, slot: &Slot, world: &mut World) {
        let peer = slot.peer();
        let known = world.addresses[1 - self.me].contains(&peer.ip());
        assert!(known || self.deceived, "ACCEPTED from {peer}, which nobody has");
        let attempt = world.by_port.get(&(1 - self.me, peer.port())).copied().filter(|_| known);
        assert!(attempt.is_some() || !known, "ACCEPTED from {peer}, which nobody used");
        // A cookie is good for a while: what comes late of a flow that is over
        // opens it once more, for its peer to reset.
        let late = |attempt: &usize| {
            let again = world.attempts[*attempt].opened[1];
            assert!(!again || self.cookies, "attempt {attempt} was accepted twice");
            again
        };
        let attempt = attempt.filter(|attempt| !late(attempt));
        let (manner, expected) = match attempt {
            Some(attempt) => {
                let record = &mut world.attempts[attempt];
                record.opened[1] = true;
                let manners = &world.conversations[record.conversation].manners;
                (manners[1].clone(), manners[0].total)
            }
            None => (stranger(), 0),
        };
        self.endpoints.push(Endpoint {
            flow: slot.flow,
            channel,
            role: attempt.map(|attempt| (attempt, 1)),
            manner,
            step: 0,
            sent_in_step: 0,
            wait_until: None,
            opened: true,
            sent: 0,
            received: 0,
            expected,
            fin: false,
            closing: false,
            broken: false,
            blocked: false,
            heard_at: now,
            awaited: VecDeque::new(),
        });
    }

    fn set_options(&mut self, now: u64, index: usize, host: &mut Host) {
        let endpoint = &self.endpoints[index];
        let seconds = endpoint.manner.keepalive;
        if seconds > 0 {
            let (clock, flow) = (host.clock(now), endpoint.flow);
            let channel = endpoint.channel;
            match host.stack.set_option(clock, channel, flow, Opt::KeepAlive, seconds) {
                // Its end may be behind this event in what was polled.
                Ok(()) | Err(Reason::StaleFlow) => {}
                Err(reason) => panic!("set_option: {reason}"),
            }
        }
    }

    fn data(&mut self, now: u64, index: usize, slot: &Slot, host: &mut Host, world: &World) {
        let endpoint = &mut self.endpoints[index];
        host.memory.pass(Owner::Stack, Owner::Guest, slot.buf_idx);
        assert!(endpoint.opened && !endpoint.fin, "DATA out of turn");
        let (offset, len) = (usize::from(slot.offset), usize::from(slot.len));
        let bytes = host.memory.bytes(slot.buf_idx, offset, len);
        if slot.modifiers & CSUM_VALID != 0 {
            assert_eq!(slot.csum, !headers::sum(bytes), "the payload's checksum");
        }
        if let Some((attempt, side)) = endpoint.role {
            let wrong = world.stream(attempt, 1 - side).difference(endpoint.received, bytes);
            assert_eq!(wrong, None, "attempt {attempt}, side {side}: the first wrong byte");
        }
        endpoint.received += len as u64;
        self.bytes += len as u64;
        if endpoint.role.is_some() {
            assert!(endpoint.received <= endpoint.expected, "more bytes than were sent");
        }
        let pause = match endpoint.manner.read_ns {
            0 => 0,
            most => self.draw.range(0, most),
        };
        self.reading.push(Reverse((now + pause, slot.buf_idx, endpoint.channel)));
    }

    fn ended(
        &mut self,
        now: u64,
        index: usize,
        how: End,
        world: &mut World,
        hooks: &mut Hooks<'_>,
    ) {
        let endpoint = self.endpoints.swap_remove(index);
        let owed = endpoint.awaited.iter().any(|(_, owed)| !matches!(owed, Owed::Nothing));
        assert!(!owed, "a kept or shared buffer did not come back before the end");
        let step = endpoint.manner.script.get(endpoint.step);
        hooks.note(
            now,
            format_args!("host {}: {:?} ended: {how:?} at {step:?}", self.me, endpoint.role),
        );
        let how = match (how, step) {
            (End::Reset(Reason::Aborted), _) if endpoint.broken => End::GaveUp,
            (End::Reset(Reason::Aborted), Some(Step::Abort)) => End::Aborted,
            _ => how,
        };
        end(world, &endpoint, now, how);
        self.plan_again(now, &endpoint, world);
    }

    /// What could not be opened is tried again.
    fn plan_again(&mut self, now: u64, endpoint: &Endpoint, world: &World) {
        let Some((attempt, 0)) = endpoint.role else { return };
        let attempt = &world.attempts[attempt];
        let conversation = &world.conversations[attempt.conversation];
        let tried = world.attempts.iter().filter(|a| a.conversation == attempt.conversation);
        if !attempt.opened[0] && !conversation.simultaneous && tried.count() < ATTEMPTS_MAX as usize
        {
            self.plans.push((now + self.draw.range(SEC, 5 * SEC), attempt.conversation));
        }
    }

    fn open_planned(
        &mut self,
        now: u64,
        host: &mut Host,
        world: &mut World,
        hooks: &mut Hooks<'_>,
    ) {
        for index in (0..self.plans.len()).rev() {
            let (at, number) = self.plans[index];
            let channel = world.conversations[number].channel;
            if at > now || self.away_until[usize::from(channel)] > now {
                self.plans[index].0 = at.max(self.away_until[usize::from(channel)]);
                continue;
            }
            self.plans.swap_remove(index);
            self.open(now, number, host, world, hooks);
        }
    }

    fn open(
        &mut self,
        now: u64,
        number: usize,
        host: &mut Host,
        world: &mut World,
        hooks: &mut Hooks<'_>,
    ) {
        let conversation = world.conversations[number].clone();
        let side = usize::from(conversation.opener != self.me);
        // Opened by both, it is one attempt for both.
        let begun = world.attempts.iter().position(|a| a.conversation == number);
        let attempt = match begun {
            Some(attempt) if conversation.simultaneous => attempt,
            _ => world.begin(number),
        };
        let ports = world.attempts[attempt].ports;
        let remote =
            if conversation.simultaneous { ports[1 - side] } else { PORT + conversation.channel };
        let address = world.addresses[1 - self.me][usize::from(conversation.ipv6)];
        let remote = SocketAddr::new(address, remote);
        let clock = host.clock(now);
        let (channel, cookie) = (conversation.channel, attempt as u32);
        let opened = host.stack.connect(clock, channel, remote, ports[side], cookie);
        hooks.note(
            now,
            format_args!("host {}: connect {ports:?} for {number}: {opened:?}", self.me),
        );
        let flow = match opened {
            Ok(flow) => flow,
            // The port is in TIME-WAIT, or all flows are in use: later, from
            // another port.
            Err(Reason::PortInUse | Reason::NoRoom) => {
                world.attempts[attempt].ends[side] = Some((now, End::Unopened));
                if conversation.simultaneous {
                    return;
                }
                world.attempts[attempt].ends[1] = Some((now, End::Unopened));
                self.plans.push((now + self.draw.range(100 * MS, 5 * SEC), number));
                return;
            }
            Err(reason) => panic!("connect: {reason}"),
        };
        self.endpoints.push(Endpoint {
            flow,
            channel,
            role: Some((attempt, side)),
            expected: conversation.manners[1 - side].total,
            manner: conversation.manners[side].clone(),
            step: 0,
            sent_in_step: 0,
            wait_until: None,
            opened: false,
            sent: 0,
            received: 0,
            fin: false,
            closing: false,
            broken: false,
            blocked: false,
            heard_at: now,
            awaited: VecDeque::new(),
        });
    }

    /// Goes on with a script as far as it goes.
    fn follow_script(
        &mut self,
        now: u64,
        index: usize,
        host: &mut Host,
        world: &mut World,
        hooks: &mut Hooks<'_>,
    ) {
        let clock = host.clock(now);
        loop {
            let endpoint = &mut self.endpoints[index];
            let (channel, flow) = (endpoint.channel, endpoint.flow);
            if endpoint.broken {
                return;
            }
            if now >= endpoint.heard_at + PATIENCE {
                hooks.note(now, format_args!("host {}: gives {:#x} up", self.me, flow.0));
                endpoint.broken = true;
                host.stack.abort(&mut host.memory, clock, channel, flow).expect("a living flow");
                return;
            }
            let Some(&step) = endpoint.manner.script.get(endpoint.step) else { return };
            let early = endpoint.manner.early && matches!(step, Step::Send(_));
            if !endpoint.opened && !early {
                return;
            }
            match step {
                Step::Send(total) => {
                    if !self.send(now, index, total, host, world) {
                        return;
                    }
                    self.endpoints[index].sent_in_step = 0;
                }
                Step::Expect(total) if endpoint.received < total => return,
                Step::Expect(_) => {}
                Step::Wait(time) => {
                    let until = *endpoint.wait_until.get_or_insert(now + time);
                    if now < until {
                        return;
                    }
                    endpoint.wait_until = None;
                    // Waiting is not silence.
                    endpoint.heard_at = now;
                }
                Step::Close => {
                    match host.stack.close(&mut host.memory, clock, channel, flow) {
                        Ok(()) => endpoint.closing = true,
                        // The flow's end is known to the stack already.
                        Err(Reason::Closed) => {}
                        Err(reason) => panic!("close: {reason}"),
                    }
                }
                Step::Abort => {
                    host.stack
                        .abort(&mut host.memory, clock, channel, flow)
                        .expect("a living flow");
                    // RESET will find the script here.
                    return;
                }
            }
            self.endpoints[index].step += 1;
        }
    }
}

/// A flow ended at this end.
fn end(world: &mut World, endpoint: &Endpoint, now: u64, how: End) {
    if let Some((attempt, side)) = endpoint.role {
        world.attempts[attempt].ends[side] = Some((now, how));
    }
}

/// The manner towards a peer that nobody knows: it is heard and then reset.
fn stranger() -> Manner {
    Manner {
        script: vec![Step::Wait(STRANGER_NS), Step::Abort],
        total: 0,
        read_ns: 0,
        slot_max: 1,
        notify: 0.0,
        keep: 0.0,
        reuse: false,
        keepalive: 0,
        early: false,
        shares: false,
    }
}
