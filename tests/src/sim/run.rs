//! One run: two hosts, the link between them, perhaps an adversary, and the
//! judgement of what came of it.

use std::cell::RefCell;
use std::fmt::Arguments;
use std::panic::{self, AssertUnwindSafe};

use paste_abi::Reason;
use paste_stack::Outcome;
use paste_stack::config::SEC;

use super::adversary::{self, Adversary};
use super::guest::{Attempt, End, Guests, World};
use super::headers;
use super::host::Host;
use super::link::Link;
use super::memory::Owner;
use super::observer::Observer;
use super::scenario::{Conversation, Happening, START, Scenario};

/// Virtual time after which a run must be over, whatever went wrong in it: far
/// more than all timers of a flow's life together.
const END: u64 = START + 3_600 * SEC;
/// The same where nothing went wrong.
const END_CALM: u64 = START + 1_000 * SEC;
/// Turns at one point in time before a run counts as turning in a circle.
const TURNS_MAX: u32 = 10_000;
/// Turns between audits, but for the first ones of a run.
const AUDIT_EVERY: u64 = 8;

/// A station, for captures: a host, the router's answers, the adversary.
pub const STATIONS: [&str; 4] = ["host 0", "host 1", "router", "adversary"];

/// Who looks on, and who interferes. All does nothing by default.
pub trait Tap {
    /// A frame leaves a station.
    fn frame(&mut self, _now: u64, _station: usize, _bytes: &[u8], _comment: &str) {}
    /// Something happens.
    fn note(&mut self, _now: u64, _what: Arguments<'_>) {}
    /// Changes a frame before it is looked at and leaves its host.
    fn change(&mut self, _host: usize, _frame: &mut Vec<u8>) {}
    /// Whether a port reports a frame as sent.
    fn reports(&mut self, _host: usize) -> bool {
        true
    }
    /// Changes when a host says that it is to be looked at next.
    fn deadline(&mut self, _host: usize, at: Option<u64>) -> Option<u64> {
        at
    }
}

/// Nobody looks on.
#[derive(Debug)]
pub struct Nobody;

impl Tap for Nobody {}

/// What everything in a run may call.
pub struct Hooks<'a>(pub &'a mut dyn Tap);

impl Hooks<'_> {
    /// Notes what happens.
    pub fn note(&mut self, now: u64, what: Arguments<'_>) {
        self.0.note(now, what);
    }
}

/// What a run was like; equal for equal seeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Frames that the hosts sent.
    pub frames: u64,
    /// Payload bytes that guests received.
    pub bytes: u64,
    /// Slots that guests sent out of buffers that stayed their own.
    pub shared: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// Flows that ended in good order at both ends.
    pub closed: u64,
    /// Flows that ended otherwise, and why is known.
    pub broken: u64,
    /// Virtual time, ns.
    pub time: u64,
}

/// Runs a scenario; the error is what was found.
pub fn run(scenario: &Scenario, tap: &mut dyn Tap) -> Result<Summary, String> {
    thread_local! {
        static MESSAGE: RefCell<String> = const { RefCell::new(String::new()) };
    }
    static QUIET: std::sync::Once = std::sync::Once::new();
    QUIET.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !RUNNING.get() {
                loud(info);
                return;
            }
            let what = info.payload_as_str().unwrap_or("a panic without words");
            let at = info.location().map(|at| format!(" ({}:{})", at.file(), at.line()));
            MESSAGE.set(format!("{what}{}", at.unwrap_or_default()));
        }));
    });
    RUNNING.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(|| {
        let mut run = Run::new(scenario, tap);
        run.go().map_err(|what| format!("{what}, after {} ns", run.now - START))
    }));
    RUNNING.set(false);
    result.unwrap_or_else(|_| Err(MESSAGE.take()))
}

thread_local! {
    /// A run is under way on this thread, whose panics are findings.
    static RUNNING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

struct Run<'a> {
    scenario: &'a Scenario,
    tap: &'a mut dyn Tap,
    now: u64,
    turns: u64,
    hosts: [Host; 2],
    guests: [Guests; 2],
    world: World,
    link: Link,
    observer: Observer,
    adversary: Option<Adversary>,
    happened: usize,
    /// Frames for which a port had no buffer.
    full: u64,
    summary: Summary,
}

impl<'a> Run<'a> {
    fn new(scenario: &'a Scenario, tap: &'a mut dyn Tap) -> Run<'a> {
        let mut link = Link::new(scenario.faults, scenario.mtu, scenario.seed);
        link.answers = scenario.answers;
        let adversary = Adversary::of(scenario);
        Run {
            scenario,
            tap,
            now: START,
            turns: 0,
            hosts: scenario.setups.clone().map(Host::new),
            guests: [0, 1].map(|me| Guests::new(scenario, me)),
            world: World::new(scenario),
            link,
            observer: Observer::new(adversary.as_ref().is_some_and(Adversary::impersonates)),
            adversary,
            happened: 0,
            full: 0,
            summary: Summary::default(),
        }
    }

    fn go(&mut self) -> Result<Summary, String> {
        let end = if self.scenario.is_calm() { END_CALM } else { END };
        let mut turns_now = 0;
        loop {
            self.turn()?;
            if self.is_over() {
                return self.judge();
            }
            let next =
                self.next_deadline().ok_or_else(|| self.stalled("nothing moves any more"))?;
            turns_now = if next > self.now { 0 } else { turns_now + 1 };
            if turns_now > TURNS_MAX {
                return Err(self.stalled("it turns in a circle"));
            }
            // Some time passes even if something is due at once: batches form.
            self.now = next.max(self.now + self.scenario.turn_ns);
            if self.now > end {
                return Err(self.stalled("not over in time"));
            }
        }
    }

    fn stalled(&self, what: &str) -> String {
        let flows = [self.hosts[0].stack.flows(), self.hosts[1].stack.flows()];
        let open = |attempt: &&Attempt| attempt.ends.contains(&None);
        let open: Vec<_> = self.world.attempts.iter().filter(open).collect();
        let hosts = self.hosts.each_ref().map(Host::describe);
        format!("{what}: {flows:?} flows, {open:?}, {hosts:?}")
    }

    /// Nothing is said any more and nothing is on its way.
    fn is_over(&self) -> bool {
        self.guests.iter().all(Guests::are_done)
            && self.happened == self.scenario.happenings.len()
            && self.link.next_deadline().is_none()
            && self.hosts.iter().all(|h| h.port_is_empty() && h.stack.flows() == 0)
            && self.adversary.as_ref().is_none_or(|a| a.next_deadline().is_none())
    }

    fn next_deadline(&mut self) -> Option<u64> {
        let mut next = self.link.next_deadline();
        let mut add = |at: Option<u64>| next = [next, at].into_iter().flatten().min();
        for (number, host) in self.hosts.iter().enumerate() {
            add(self.tap.deadline(number, host.next_deadline(self.now)));
            add(self.guests[number].next_deadline(self.now, host));
        }
        add(self.scenario.happenings.get(self.happened).map(|&(at, _)| at));
        add(self.adversary.as_ref().and_then(Adversary::next_deadline));
        next
    }

    fn turn(&mut self) -> Result<(), String> {
        self.turns += 1;
        self.let_happen();
        self.harm();
        for number in 0..2 {
            self.receive(number);
            let (host, guests) = (&mut self.hosts[number], &mut self.guests[number]);
            guests.step(self.now, host, &mut self.world, &mut Hooks(self.tap));
            host.advance(self.now);
            self.transmit(number)?;
            if self.turns < AUDIT_EVERY || self.turns.is_multiple_of(AUDIT_EVERY) {
                self.audit(number)?;
            }
        }
        Ok(())
    }

    fn audit(&self, number: usize) -> Result<(), String> {
        let host = &self.hosts[number];
        let owned = |buf| host.memory.owner(buf) == Owner::Stack;
        host.stack.audit(owned).map_err(|violation| format!("host {number}: {violation}"))
    }

    fn let_happen(&mut self) {
        while let Some(&(at, what)) = self.scenario.happenings.get(self.happened)
            && at <= self.now
        {
            self.happened += 1;
            self.tap.note(self.now, format_args!("{what:?}"));
            match what {
                Happening::Mtu(mtu) => self.link.mtu = mtu,
                Happening::Down(down) => self.link.down = down,
                Happening::Clock(host, jump) => self.hosts[host].skew_ns += jump,
                Happening::Starved(host, starved) => self.hosts[host].memory.starved = starved,
                Happening::Stall(host, time) => self.guests[host].stall(self.now + time),
                Happening::Death(host, channel, away) => {
                    let until = self.now + away;
                    let (guests, host) = (&mut self.guests[host], &mut self.hosts[host]);
                    guests.die(self.now, channel, until, host, &mut self.world);
                }
            }
        }
    }

    fn harm(&mut self) {
        let Some(adversary) = &mut self.adversary else { return };
        for (to, frame) in adversary.step(self.now) {
            self.tap.frame(self.now, 3, &frame, "");
            self.link.inject(self.now, to, &frame);
        }
    }

    fn receive(&mut self, number: usize) {
        while let Some((bytes, damaged)) = self.link.pop(self.now, number) {
            let outcome = self.hosts[number].input(self.now, &bytes, damaged);
            self.full += u64::from(outcome.is_none());
            if outcome.is_none_or(|outcome| outcome == Outcome::Foreign) {
                self.tap.note(self.now, format_args!("host {number}: a frame is {outcome:?}"));
            }
            self.link.recycle(bytes);
        }
    }

    fn transmit(&mut self, number: usize) -> Result<(), String> {
        let Run { hosts, tap, link, observer, adversary, summary, now, .. } = self;
        let host = &mut hosts[number];
        let (mtu, now) = (host.mtu, *now);
        let mut fault = None;
        host.transmit(now, |frame| {
            tap.change(number, frame);
            summary.frames += 1;
            if let Some(segment) = headers::parse(frame) {
                let datagram = headers::datagram_len(frame).unwrap_or(0);
                if let Err(what) = observer.sees(&segment, mtu, datagram) {
                    fault.get_or_insert(format!("host {number} sends {what}: {segment:?}"));
                }
            }
            let to: headers::Mac = frame[..6].try_into().expect("an Ethernet header");
            if let Some(adversary) = adversary
                && (to == adversary::MAC || to[0] & 1 == 1)
            {
                adversary.input(number, frame);
            }
            if to == adversary::MAC {
                tap.frame(now, number, frame, "");
            } else {
                let fate = link.push(now, number, frame);
                tap.frame(now, number, frame, fate.comment());
            }
            tap.reports(number)
        });
        fault.map_or(Ok(()), Err)
    }

    /// All is over: what is left, and how it ended.
    fn judge(&mut self) -> Result<Summary, String> {
        for (number, host) in self.hosts.iter().enumerate() {
            self.audit(number)?;
            if let Some(left) = host.leftovers() {
                return Err(format!("host {number} is left with {left}"));
            }
        }
        let counters = self.hosts.each_ref().map(|host| *host.stack.counters());
        self.summary.bytes = self.guests.iter().map(|g| g.bytes).sum();
        self.summary.shared = self.guests.iter().map(Guests::shared).sum();
        self.summary.retransmits = counters.iter().map(|c| c.retransmits).sum();
        self.summary.timeouts = counters.iter().map(|c| c.timeouts).sum();
        self.summary.time = self.now - START;
        for (number, attempt) in self.world.attempts.iter().enumerate() {
            let closed = [Some(End::Closed); 2];
            if attempt.ends.map(|end| end.map(|(_, end)| end)) == closed {
                self.summary.closed += 1;
                continue;
            }
            self.summary.broken += 1;
            for side in [0, 1] {
                if !self.is_explained(attempt, side) {
                    return Err(format!(
                        "attempt {number}: no reason for side {side}: {attempt:?}"
                    ));
                }
            }
        }
        let dropped: u64 = counters
            .iter()
            .map(|c| c.drop_pool_empty + c.drop_flow_share + c.drop_backlog + c.time_wait_recycled)
            .chain([self.full])
            .sum();
        // A probe for the tail's loss comes before an acknowledgement that waits.
        let probes: u64 = counters.iter().map(|c| c.tail_probes_out).sum();
        let sent_again = self.summary.retransmits.saturating_sub(probes);
        let repaired = sent_again + self.summary.timeouts;
        // Opened by both, a flow answers with its SYN again; and a port that is
        // used again may have to wait for TIME-WAIT to end.
        let again = |c: &Conversation| c.simultaneous || c.port_of.is_some();
        let twice = self.world.conversations.iter().any(again);
        if self.scenario.is_calm() && !twice && dropped == 0 && repaired > 0 {
            return Err(format!("{repaired} repairs, and nothing was wrong: {counters:?}"));
        }
        Ok(self.summary)
    }

    /// Whether something that went wrong explains how one end of a flow ended.
    fn is_explained(&self, attempt: &Attempt, side: usize) -> bool {
        let scenario = self.scenario;
        let conversation = &self.world.conversations[attempt.conversation];
        let hosts = [conversation.opener, 1 - conversation.opener];
        let (mine, its) = (attempt.ends[side], attempt.ends[1 - side]);
        let Some((ended_at, end)) = mine else {
            // Never opened from here: a passive end that was not accepted.
            return side == 1 && !attempt.opened[1];
        };
        // The other end is gone for the stack before it is for its guest.
        let left = match its {
            None => true,
            Some((at, End::GaveUp)) => at <= ended_at,
            Some((_, end)) => end != End::Closed,
        };
        match end {
            End::Closed | End::Died | End::Aborted | End::Unopened => true,
            End::GaveUp | End::Reset(Reason::TimedOut) => left || scenario.is_harsh(),
            End::Reset(Reason::PeerReset) => {
                let caused = match its {
                    // Its TIME-WAIT was over when our FIN came again.
                    Some((at, End::Closed)) => {
                        let counters = self.hosts[hosts[1 - side]].stack.counters();
                        let over = scenario.is_lossy() || counters.time_wait_recycled > 0;
                        at < ended_at && over
                    }
                    Some((_, End::Reset(Reason::PeerReset))) => false,
                    _ => true,
                };
                // Payload overtook the answer to a cookie, so nobody knew the flow.
                let overtook = self.hosts[hosts[1]].stack.counters().cookies_bad > 0;
                caused || overtook || scenario.is_harsh() || scenario.dies(hosts[1 - side])
            }
            End::Reset(Reason::Refused) => {
                scenario.dies(hosts[1 - side])
                    || conversation.simultaneous
                    || scenario.is_harsh()
                    || conversation.port_of.is_some()
            }
            End::Reset(Reason::Unreachable) => scenario.is_lossy(),
            End::Reset(_) => false,
        }
    }
}
