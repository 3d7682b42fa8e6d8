//! What happens in a run, all of it drawn from a seed: what the hosts are made
//! of, what their guests talk about, and what goes wrong.

use std::net::{Ipv4Addr, Ipv6Addr};

use paste_stack::config::{CongestionControl, MS, Network, SEC};
use paste_stack::{Config, Timers};
use pasted::port::RX_OFFSET;
use pasted::port::prng::Prng;

use super::host::Setup;
use super::link::{Faults, Loss};
use super::pattern::Stored;

/// Channels of each guest that are in use.
pub const CHANNELS: u16 = 2;
/// The port on which the guest of a channel listens: this and the channel.
pub const PORT: u16 = 80;
/// The port of the first active open; others follow.
pub const PORT_FIRST: u16 = 10_000;
/// When a run begins. Not zero, so that clocks can be set back.
pub const START: u64 = 1_000 * SEC;
/// Bytes of the largest datagram that a path may be limited to.
const MTU_MIN: u16 = 576;
/// RFC 8200 section 5: the same for IPv6.
const MTU_MIN_V6: u16 = 1280;
/// Places after the headroom where payload may begin.
pub const OFFSETS: usize = 64;
/// Pieces of what is stored in a conversation.
const PIECES: u64 = 200;
/// Ethernet's header, with a VLAN tag.
const LINK_HEADER: usize = 18;

/// Numbers drawn from a seed.
#[derive(Debug)]
pub struct Draw(Prng);

impl Draw {
    /// Draws that depend on `seed` alone.
    pub fn new(seed: u64) -> Draw {
        Draw(Prng::new(seed))
    }

    /// From `low` to `high`, both included.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.below(high - low + 1)
    }

    /// Between `low` and `high`, each order of magnitude as likely as another.
    pub fn spread(&mut self, low: u64, high: u64) -> u64 {
        let (low, high) = (low.max(1) as f64, high.max(1) as f64);
        let unit = self.0.below(1 << 32) as f64 / (1u64 << 32) as f64;
        (low * (high / low).powf(unit)) as u64
    }

    /// One of these.
    pub fn one<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.0.below(of.len() as u64) as usize]
    }

    /// With this chance.
    pub fn chance(&mut self, chance: f64) -> bool {
        self.0.chance(chance)
    }

    /// Any word.
    pub fn word(&mut self) -> u64 {
        self.0.next_u64()
    }
}

/// What one end of a conversation does, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sends so many bytes.
    Send(u64),
    /// Waits until it has received so many bytes in all.
    Expect(u64),
    /// Waits so long, ns.
    Wait(u64),
    /// Sends FIN.
    Close,
    /// Resets.
    Abort,
}

/// How the guest at one end behaves.
#[derive(Clone, Debug)]
pub struct Manner {
    /// What it does.
    pub script: Vec<Step>,
    /// Bytes that it sends in all.
    pub total: u64,
    /// The longest that it keeps a received buffer, ns.
    pub read_ns: u64,
    /// The most that it puts into one slot, bytes.
    pub slot_max: u64,
    /// Chances that a slot asks for ACKED, and for its buffer back.
    pub notify: f64,
    /// Chance that a slot keeps its buffer.
    pub keep: f64,
    /// Answers are written into the buffers of requests.
    pub reuse: bool,
    /// Seconds of silence after which keepalive begins, or zero.
    pub keepalive: u64,
    /// Payload is queued before the handshake is over.
    pub early: bool,
    /// It says pieces of what its guest has stored, and shares the buffer.
    pub shares: bool,
}

/// A flow and what is said on it.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// The host that opens it.
    pub opener: usize,
    /// Both open it at once.
    pub simultaneous: bool,
    /// By IPv6.
    pub ipv6: bool,
    /// When.
    pub at: u64,
    /// The channel at either host.
    pub channel: u16,
    /// The conversation whose port it uses again.
    pub port_of: Option<usize>,
    /// What the opener does, and what the other does.
    pub manners: [Manner; 2],
}

impl Conversation {
    /// Whether one of its ends is to reset it.
    pub fn aborts(&self) -> bool {
        self.manners.iter().any(|m| m.script.contains(&Step::Abort))
    }
}

/// Something that happens at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Happening {
    /// The path carries datagrams of at most so many bytes.
    Mtu(u16),
    /// The link goes down (`true`) or comes back.
    Down(bool),
    /// A host's clock jumps.
    Clock(usize, i64),
    /// A host's pool hands out nothing, or again.
    Starved(usize, bool),
    /// A host's guests do nothing for so long.
    Stall(usize, u64),
    /// The guest of a channel dies and is away for so long.
    Death(usize, u16, u64),
}

/// Everything that is drawn from a seed.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The seed.
    pub seed: u64,
    /// The hosts.
    pub setups: [Setup; 2],
    /// Backlog of the listeners.
    pub backlog: u16,
    /// The link's faults.
    pub faults: Faults,
    /// Its MTU at the beginning.
    pub mtu: u16,
    /// A router answers frames that are too large.
    pub answers: bool,
    /// What is said.
    pub conversations: Vec<Conversation>,
    /// What guests store and send from one buffer on many flows, if they do.
    pub stored: Option<Stored>,
    /// What happens, in order.
    pub happenings: Vec<(u64, Happening)>,
    /// Time that passes between two turns of a host at least, ns.
    pub turn_ns: u64,
    /// A third station does its worst.
    pub adversary: bool,
}

impl Scenario {
    /// What the seed holds. With `adversary` there is one in any case.
    pub fn draw(seed: u64, adversary: bool) -> Scenario {
        let draw = &mut Draw::new(seed ^ 0x7363_656e_6172_696f);
        let calm = draw.chance(0.15);
        let vlan = draw.chance(0.1).then_some(5);
        let mut setups = [Scenario::setup(draw, 0), Scenario::setup(draw, 1)];
        for setup in &mut setups {
            setup.config.vlan = vlan;
        }
        let faults = if calm { Faults::none(draw.spread(1_000, 20 * MS)) } else { faults(draw) };
        let mtu = setups[0].config.mtu.max(setups[1].config.mtu);
        let mut scenario = Scenario {
            seed,
            setups,
            backlog: draw.one(&[1, 4, 128]),
            faults,
            mtu,
            answers: draw.chance(0.5),
            conversations: Vec::new(),
            stored: None,
            happenings: Vec::new(),
            turn_ns: draw.spread(100, 200_000),
            adversary: adversary || (!calm && draw.chance(0.1)),
        };
        scenario.converse(draw, calm);
        if !calm {
            scenario.happen(draw);
        }
        scenario.share(calm);
        scenario
    }

    fn setup(draw: &mut Draw, number: u8) -> Setup {
        let mtu = match draw.range(0, 5) {
            0 => MTU_MIN,
            1 => 1280,
            2 | 3 => 1500,
            4 => 9000,
            _ => draw.range(MTU_MIN.into(), 9000) as u16,
        };
        let least = usize::from(RX_OFFSET) + LINK_HEADER + usize::from(mtu) + 1;
        let buffer_size = draw.one(&[least, least.next_multiple_of(256), least.max(2048)]);
        let buffers = match draw.range(0, 3) {
            0 => draw.spread(12, 40),
            1 => draw.spread(40, 200),
            _ => draw.spread(200, 600),
        } as u32;
        let address = Ipv4Addr::new(10, 0, 0, 1 + number);
        let address_v6 = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1 + u16::from(number));
        let timers = Timers {
            delayed_ack: draw.one(&[5 * MS, 40 * MS, 100 * MS]),
            rto_initial: draw.one(&[SEC, 3 * SEC]),
            rto_min: draw.one(&[200 * MS, SEC]),
            time_wait: draw.one(&[SEC, 10 * SEC, 60 * SEC]),
            keepalive_interval: 5 * SEC,
            keepalive_probes: 5,
            ..Timers::default()
        };
        let config = Config {
            ipv6: Some(Network { address: address_v6, prefix_len: 64, gateway: None }),
            dad_probes: draw.one(&[0, 1]),
            syn_cookies: draw.chance(0.7),
            syn_per_second: draw.one(&[2, 100_000]),
            listener_syn_per_second: draw.one(&[1, 100_000]),
            cookie_per_second: draw.one(&[10, 100_000]),
            mtu,
            flows_max: draw.one(&[24, 64, 200]),
            listeners_max: 4,
            neighbours_max: draw.one(&[1, 4, 16]),
            time_wait_max: draw.one(&[1, 8, 64]),
            headroom: draw.one(&[0, 64, 128]),
            recv_window_max: draw.spread(4_096, 1 << 20) as u32,
            send_queue_max: draw.one(&[1, 2, 8, 64, 1024]),
            held_blocks_max: draw.one(&[1, 2, 8, 32]),
            tx_csum_offload: draw.chance(0.3),
            header_in_buffer: draw.chance(0.5),
            timestamps: draw.chance(0.7),
            sack: draw.chance(0.8),
            ecn: draw.chance(0.5),
            congestion: draw.one(&[CongestionControl::Cubic, CongestionControl::NewReno]),
            timers,
            ..Config::new([2, 0, 0, 0, 0, 1 + number], address, 24)
        };
        Setup {
            config,
            buffers,
            buffer_size,
            rx_csum_offload: draw.chance(0.3),
            port_delay_ns: if draw.chance(0.7) { 0 } else { draw.spread(1_000, 3 * MS) },
            port_len: draw.one(&[1, 8, 64, 256]),
            secret: draw.word(),
        }
    }

    /// Draws what is said.
    fn converse(&mut self, draw: &mut Draw, calm: bool) {
        let count = draw.spread(1, 9) as usize;
        let within = draw.spread(10 * MS, 20 * SEC);
        // A run is to be over soon: few bytes where few buffers carry them.
        let buffers = self.setups.iter().map(|s| s.buffers).min().unwrap_or(0);
        let budget = u64::from(buffers) * 4_000 / count as u64;
        self.converse_of(draw, calm, count, within, budget);
    }

    /// Draws what is said besides by guests that share their buffers. These draws
    /// are apart from all others, which are what they are without them.
    fn share(&mut self, calm: bool) {
        let draw = &mut Draw::new(self.seed ^ 0x0073_6861_7265_6421);
        if !draw.chance(0.25) {
            return;
        }
        for setup in &mut self.setups {
            setup.config.shared_sends_max = draw.one(&[8, 64, 1024]);
        }
        let room = |s: &Setup| s.buffer_size - usize::from(s.config.headroom) - OFFSETS;
        let room = self.setups.iter().map(room).min().unwrap_or(1) as u64;
        let len = draw.range(room / 2, room);
        let piece = draw.range(len / 8, len);
        self.stored = Some(Stored { key: draw.word(), len, piece });
        let count = draw.range(1, 5) as usize;
        let within = draw.spread(10 * MS, 5 * SEC);
        self.converse_of(draw, calm, count, within, PIECES * piece);
    }

    /// Draws `count` conversations of about `budget` bytes each, opened in the
    /// time `within`. Once something is stored, it is what most of them are of.
    fn converse_of(&mut self, draw: &mut Draw, calm: bool, count: usize, within: u64, budget: u64) {
        let rough = !calm;
        let ipv6 = self.takes_ipv6();
        let stored = self.stored.is_some();
        for number in self.conversations.len()..self.conversations.len() + count {
            let opener = draw.range(0, 1) as usize;
            let port_of = (number > 0 && draw.chance(0.2))
                .then(|| number - 1)
                .filter(|&n| self.conversations[n].opener == opener);
            let scripts = draw_scripts(draw, rough, budget.max(2_000));
            let simultaneous = port_of.is_none() && draw.chance(0.05);
            let mut manner = |script: Vec<Step>| {
                let sent = |step: &Step| if let Step::Send(n) = step { *n } else { 0 };
                Manner {
                    total: script.iter().map(sent).sum(),
                    script,
                    read_ns: if draw.chance(0.6) { 0 } else { draw.spread(10_000, 300 * MS) },
                    slot_max: draw.spread(1, 10_000).max(budget / 400),
                    notify: draw.one(&[0.0, 0.1, 1.0]),
                    keep: draw.one(&[0.0, 0.1, 1.0]),
                    reuse: draw.chance(0.3),
                    keepalive: if draw.chance(0.5) { draw.range(1, 20) } else { 0 },
                    early: draw.chance(0.2),
                    shares: stored && draw.chance(0.8),
                }
            };
            let manners = scripts.map(&mut manner);
            self.conversations.push(Conversation {
                opener,
                simultaneous,
                ipv6: ipv6 && draw.chance(0.5),
                at: START + draw.range(0, within),
                channel: draw.range(0, u64::from(CHANNELS) - 1) as u16,
                port_of,
                manners,
            });
        }
    }

    /// Draws what happens.
    fn happen(&mut self, draw: &mut Draw) {
        let mut happenings = Vec::new();
        let time = |draw: &mut Draw| START + draw.spread(MS, 20 * SEC);
        if draw.chance(0.25) {
            let at = time(draw);
            let least = if self.takes_ipv6() { MTU_MIN_V6 } else { MTU_MIN };
            let mtu = draw.range(least.into(), self.mtu.into()) as u16;
            happenings.push((at, Happening::Mtu(mtu)));
            if draw.chance(0.3) {
                happenings.push((at + draw.spread(10 * MS, 10 * SEC), Happening::Mtu(self.mtu)));
            }
        }
        if draw.chance(0.15) {
            let at = time(draw);
            happenings.push((at, Happening::Down(true)));
            happenings.push((at + draw.spread(MS, 30 * SEC), Happening::Down(false)));
        }
        if draw.chance(0.15) {
            let jump = draw.spread(MS, 20 * SEC) as i64;
            let jump = if draw.chance(0.5) { jump } else { -jump };
            let host = draw.range(0, 1) as usize;
            happenings.push((time(draw), Happening::Clock(host, jump)));
        }
        if draw.chance(0.15) {
            let (at, host) = (time(draw), draw.range(0, 1) as usize);
            happenings.push((at, Happening::Starved(host, true)));
            happenings.push((at + draw.spread(MS, 5 * SEC), Happening::Starved(host, false)));
        }
        if draw.chance(0.15) {
            let host = draw.range(0, 1) as usize;
            happenings.push((time(draw), Happening::Stall(host, draw.spread(MS, 10 * SEC))));
        }
        if draw.chance(0.15) {
            let (host, channel) = (draw.range(0, 1) as usize, draw.range(0, 1) as u16);
            let away = draw.spread(MS, 10 * SEC);
            happenings.push((time(draw), Happening::Death(host, channel, away)));
        }
        happenings.sort_by_key(|&(at, _)| at);
        self.happenings = happenings;
    }

    /// Whether both hosts can speak IPv6.
    fn takes_ipv6(&self) -> bool {
        self.setups.iter().all(|setup| setup.config.mtu >= MTU_MIN_V6)
    }

    /// Whether nothing goes wrong, so that nothing may be repaired.
    pub fn is_calm(&self) -> bool {
        self.happenings.is_empty()
            && !self.adversary
            && self.faults == Faults::none(self.faults.delay_ns)
    }

    /// Whether flows may time out: their segments, or what they need, stay away
    /// for long.
    pub fn is_harsh(&self) -> bool {
        let lossy = match self.faults.loss {
            Loss::Random(chance) => chance + self.faults.corrupt > 0.05,
            Loss::Burst { .. } => true,
        };
        lossy
            || self.adversary
            || self.faults.queue_ns < SEC
            || self.happenings.iter().any(|(_, what)| match what {
                Happening::Mtu(_) | Happening::Stall(..) | Happening::Death(..) => false,
                Happening::Down(_) | Happening::Clock(..) | Happening::Starved(..) => true,
            })
    }

    /// Whether frames get lost at all.
    pub fn is_lossy(&self) -> bool {
        self.is_harsh() || self.faults.loss != Loss::Random(0.0) || self.faults.corrupt > 0.0
    }

    /// Whether a guest of this host dies.
    pub fn dies(&self, host: usize) -> bool {
        self.happenings
            .iter()
            .any(|(_, what)| matches!(what, Happening::Death(h, ..) if *h == host))
    }
}

fn faults(draw: &mut Draw) -> Faults {
    let loss = match draw.range(0, 3) {
        0 => Loss::Random(0.0),
        1 => Loss::Random(draw.spread(1, 50) as f64 / 1_000.0),
        2 => Loss::Random(draw.spread(50, 150) as f64 / 1_000.0),
        _ => Loss::Burst {
            enter: draw.spread(1, 50) as f64 / 1_000.0,
            leave: draw.spread(50, 500) as f64 / 1_000.0,
            loss: draw.range(30, 100) as f64 / 100.0,
        },
    };
    let mut chance = |of: f64, most: u64| {
        if draw.chance(of) { draw.spread(1, most) as f64 / 1_000.0 } else { 0.0 }
    };
    let (duplicate, reorder, corrupt) = (chance(0.3, 200), chance(0.4, 300), chance(0.2, 20));
    let delay_ns = draw.spread(1_000, 100 * MS);
    Faults {
        loss,
        duplicate,
        reorder,
        reorder_ns: draw.spread(10_000, 20 * MS),
        corrupt,
        delay_ns,
        jitter_ns: if draw.chance(0.3) { draw.spread(1_000, delay_ns) } else { 0 },
        rate: if draw.chance(0.3) { draw.spread(100_000, 100_000_000) } else { 0 },
        queue_ns: draw.spread(20 * MS, 2 * SEC),
    }
}

/// What the two ends of a conversation do.
fn draw_scripts(draw: &mut Draw, rough: bool, budget: u64) -> [Vec<Step>; 2] {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let (mut sent, mut answered) = (0, 0);
    let size =
        |draw: &mut Draw, small: bool| draw.spread(1, if small { 300.min(budget) } else { budget });
    match draw.range(0, 5) {
        // Requests and responses, some requests ahead of the responses.
        0..=2 => {
            let (count, ahead) = (draw.spread(1, 20), draw.one(&[1, 1, 4, 20]));
            let (small, large) = (draw.chance(0.7), draw.chance(0.4));
            let mut expected = std::collections::VecDeque::new();
            for _ in 0..count {
                let (request, response) = (size(draw, small), size(draw, !large) / 2 + 1);
                a.push(Step::Send(request));
                sent += request;
                b.push(Step::Expect(sent));
                b.push(Step::Send(response));
                answered += response;
                expected.push_back(answered);
                if expected.len() as u64 >= ahead {
                    a.extend(expected.pop_front().map(Step::Expect));
                }
                if draw.chance(0.1) {
                    a.push(Step::Wait(draw.spread(MS, 3 * SEC)));
                }
                if sent + answered > budget {
                    break;
                }
            }
        }
        // Both send at once, or only one.
        3 => {
            sent = size(draw, false);
            answered = if draw.chance(0.5) { size(draw, false) } else { 0 };
            a.push(Step::Send(sent));
            b.extend((answered > 0).then_some(Step::Send(answered)));
        }
        // The other end speaks first.
        4 => {
            answered = size(draw, false);
            b.push(Step::Send(answered));
            a.push(Step::Expect(answered));
            if draw.chance(0.5) {
                sent = size(draw, true);
                a.push(Step::Send(sent));
            }
        }
        // Nothing is said.
        _ => a.push(Step::Wait(draw.spread(MS, 5 * SEC))),
    }
    // Who closes first, and whether it waits for all that the other sends.
    match draw.range(0, 3) {
        0 => a.push(Step::Expect(answered)),
        1 => b.push(Step::Expect(sent)),
        2 => {
            a.push(Step::Expect(answered));
            b.push(Step::Expect(sent));
        }
        _ => {}
    }
    let mut end = |steps: &mut Vec<Step>| {
        if draw.chance(0.1) {
            steps.push(Step::Wait(draw.spread(MS, 5 * SEC)));
        }
        let aborts = rough && draw.chance(0.05);
        if aborts {
            let at = draw.range(0, steps.len() as u64) as usize;
            steps.truncate(at);
        }
        steps.push(if aborts { Step::Abort } else { Step::Close });
    };
    end(&mut a);
    end(&mut b);
    [a, b]
}
