//! A stack at the addresses of the guest's own kernel: `addresses = "guest"`.
//!
//! Kernel and stack have one Ethernet address and the same IP addresses; who gets a frame
//! is decided before the stack sees it.
//!
//! | frame to the guest | goes to |
//! | --- | --- |
//! | TCP to a port on which an application listens | the stack |
//! | TCP of a flow that an application has, on whatever port | the stack |
//! | a further fragment of either, after the first one | the stack |
//! | an ICMP error about a segment of either | the stack |
//! | ARP replies and announcements, neighbour and router advertisements | both |
//! | everything else: ARP requests, echo, UDP, other TCP, link-local addresses | the kernel |
//!
//! So the kernel alone answers for the addresses, and says which they are; the stack sends
//! under them, asks for neighbours only where no segment has told it the way, and hears the
//! answers that the kernel hears. A flow that a peer has opened goes back the way that its
//! SYN came.
//!
//! # Ports that both want
//!
//! The application wins, from the moment that it listens: a server of the kernel's on the
//! same port gets nothing more, and its connections are reset when their peers next send.
//! When the application stops listening, new connections are the kernel's at once, and its
//! flows go on until they end, with the time that TIME-WAIT takes. An application's port has
//! to lie outside those that the kernel gives to its own connections (`net.ipv4.
//! ip_local_port_range`). Flows that applications open themselves have local ports from
//! [`PORT_FIRST`] on, which Linux does not give out unless it is told to.
//!
//! # Which addresses
//!
//! The first of each family that the kernel is seen to use, in ARP and in neighbour
//! discovery, which nobody on a link can do without. A stack has its addresses for life, so
//! it is made anew when they become known: with the listeners that there are, under their
//! names, and while it has no flow. So an application may listen before the kernel has an
//! address, and is reached from the kernel's first word on.
//!
//! Another address than the one that was seen first counts only while no application listens
//! or has flows: one that comes and goes is to end nobody's flows. Where a kernel has
//! several, or changes the one that it has, applications are found at the new one after
//! they have begun again. What was passed over is counted, and told once.
//!
//! # What this does not do
//!
//! Fragments that come before the first one of their datagram go to the kernel, and their
//! segment is sent again. The guest itself does not reach its applications at its own
//! address: that never leaves its kernel. Without a gateway nothing is known of the link, so
//! that applications accept flows and cannot open any.

mod flows;
mod sight;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};

use paste_abi::{CHANNELS_MAX, Event, Flow, Reason, Slot};
use paste_stack::{Config, Stack, config};

use flows::FlowTable;
use sight::{FragmentOf, Sight};

pub(super) use sight::LOOK_LEN;

/// The first local port that applications' own flows are opened from; the last is 65535.
pub const PORT_FIRST: u16 = 61_000;
/// Local ports that are tried for one flow.
const PORT_TRIES: u16 = 64;
/// Datagrams of the stack's whose fragments are known at once: as many as the stack puts
/// together.
const FRAGMENTED: usize = 16;
/// Ports that wait at once for the last of their flows to be told of.
const LEAVING_MAX: usize = 256;
/// An address takes another's place at most once in this time, ns.
const RENEW_INTERVAL: u64 = 1_000_000_000;

const _: () = assert!(CHANNELS_MAX <= u16::BITS as u16);

/// What the operator says of the guest's link, of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// The router.
    pub gateway: IpAddr,
    /// Bits of the prefix of its network, which is on the link.
    pub prefix_len: u8,
}

impl Link {
    /// Whether an address is on it.
    fn contains(&self, address: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
            IpAddr::V6(address) => address.to_bits(),
        };
        let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix_len)).unwrap_or(0);
        self.gateway.is_ipv4() == address.is_ipv4()
            && (bits(self.gateway) ^ bits(address)) & mask == 0
    }
}

/// Makes a stack.
pub type MakeStack = Box<dyn Fn(Config) -> Stack + Send>;

/// What a [`Share`] is made of.
pub struct ShareOptions {
    /// The stack's settings, without addresses.
    pub config: Config,
    /// What is known of the link: one of each family at most.
    pub links: Vec<Link>,
    /// Addresses that are known from the start: one of each family at most.
    pub addresses: Vec<IpAddr>,
    /// Makes the stack, each time that its addresses change.
    pub make: MakeStack,
}

/// Who gets a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    Stack,
    Kernel,
    Both,
}

/// A listener, as the stack has it.
#[derive(Clone, Copy, Debug)]
struct Listener {
    name: Flow,
    channel: u16,
    port: u16,
    backlog: u16,
}

/// A port that is not listened on any more, of which the channel has not been told
/// everything.
#[derive(Clone, Copy, Debug)]
struct Leaving {
    port: u16,
    channel: u16,
}

/// A bit for each port.
#[derive(Debug)]
struct Ports(Box<[u64; 1024]>);

impl Ports {
    fn new() -> Ports {
        Ports(Box::new([0; 1024]))
    }

    #[inline]
    fn contains(&self, port: u16) -> bool {
        self.0[usize::from(port >> 6)] & (1 << (port & 63)) != 0
    }

    fn set(&mut self, port: u16, value: bool) {
        let bit = 1 << (port & 63);
        let word = &mut self.0[usize::from(port >> 6)];
        *word = if value { *word | bit } else { *word & !bit };
    }
}

/// One address of each family.
type Addresses = [Option<IpAddr>; 2];

fn family(address: IpAddr) -> usize {
    usize::from(address.is_ipv6())
}

/// What is counted here.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    to_stack: u64,
    to_kernel: u64,
    to_both: u64,
    /// Stacks that were made because addresses became known.
    renewed: u64,
    /// Frames that showed another address than the stack's while it was in use.
    passed_over: u64,
}

/// Who is who at addresses that a guest's kernel and its applications share.
pub struct Share {
    options: ShareOptions,
    /// The addresses that the stack has, and those that it is to have.
    current: Addresses,
    wanted: Addresses,
    listeners: Vec<Listener>,
    /// Ports that are listened on.
    listening: Ports,
    /// Those and the ones that still are the stack's.
    ports: Ports,
    leaving: Vec<Leaving>,
    flows: FlowTable,
    fragmented: [Option<(FragmentOf, u64)>; FRAGMENTED],
    next_fragmented: usize,
    /// When one address may take another's place again, ns.
    renew_at: u64,
    /// A bit for each channel that has listened or opened a flow, and not ended.
    busy: u16,
    next_port: u16,
    now: u64,
    counters: Counters,
    /// Of stacks that were before this one, in the order in which a stack tells them.
    before: Vec<u64>,
}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Share").field("addresses", &self.current).finish_non_exhaustive()
    }
}

impl Share {
    /// With the first stack.
    pub fn new(options: ShareOptions) -> (Share, Stack) {
        let mut wanted = [None; 2];
        for &address in &options.addresses {
            wanted[family(address)] = Some(address);
        }
        let mut share = Share {
            flows: FlowTable::new(options.config.flows_max),
            options,
            current: [None; 2],
            wanted,
            listeners: Vec::new(),
            listening: Ports::new(),
            ports: Ports::new(),
            leaving: Vec::with_capacity(LEAVING_MAX),
            fragmented: [None; FRAGMENTED],
            next_fragmented: 0,
            renew_at: 0,
            busy: 0,
            next_port: 0,
            now: 0,
            counters: Counters::default(),
            before: Vec::new(),
        };
        let stack = share.make();
        (share, stack)
    }

    fn make(&mut self) -> Stack {
        self.current = self.wanted;
        let Share { options, current, .. } = self;
        let mut config = options.config.clone();
        // The kernel has seen to it that its addresses are nobody else's.
        config.dad_probes = 0;
        let link = |address| options.links.iter().find(|link| link.contains(address));
        for address in current.iter().copied().flatten() {
            let prefix_len = link(address).map(|link| link.prefix_len);
            let gateway = link(address).map(|link| link.gateway);
            match address {
                IpAddr::V4(address) => {
                    let gateway = gateway.and_then(|gateway| match gateway {
                        IpAddr::V4(gateway) => Some(gateway),
                        IpAddr::V6(_) => None,
                    });
                    let prefix_len = prefix_len.unwrap_or(32);
                    config.ipv4 = Some(config::Network { address, prefix_len, gateway });
                }
                IpAddr::V6(address) => {
                    let gateway = gateway.and_then(|gateway| match gateway {
                        IpAddr::V4(_) => None,
                        IpAddr::V6(gateway) => Some(gateway),
                    });
                    let prefix_len = prefix_len.unwrap_or(128);
                    config.ipv6 = Some(config::Network { address, prefix_len, gateway });
                }
            }
        }
        (options.make)(config)
    }

    /// The address that applications are reached at, or will be; IPv4 first.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.wanted.iter().copied().flatten().next()
    }

    /// Whether the stack is to be made anew as soon as it has nothing under way. A kernel
    /// that has two addresses by turns does not cause it more often than is bearable.
    #[inline]
    pub(super) fn is_stale(&self, now: u64) -> bool {
        let changes = |(old, new): (&Option<IpAddr>, &Option<IpAddr>)| old.is_some() && old != new;
        self.current != self.wanted
            && (now >= self.renew_at || !self.current.iter().zip(&self.wanted).any(changes))
    }

    /// Makes a stack with the addresses that have become known in place of one that has
    /// nothing under way. It has the same listeners, by the same names.
    pub(super) fn renew(&mut self, now: u64, stack: &mut Stack) {
        self.renew_at = now.saturating_add(RENEW_INTERVAL);
        let old = self.current;
        let mut new = self.make();
        if let Err(reason) = replay(&mut new, &self.listeners) {
            // Without them nobody would be served: better at the old addresses.
            tracing::error!(%reason, "listeners could not be moved to a new address");
            (self.current, self.wanted) = (old, old);
            return;
        }
        let mut at = 0;
        stack.counters().each(|_, value| {
            match self.before.get_mut(at) {
                Some(before) => *before += value,
                None => self.before.push(value),
            }
            at += 1;
        });
        self.flows.clear();
        self.fragmented = [None; FRAGMENTED];
        self.counters.renewed += 1;
        tracing::info!(addresses = ?self.current.iter().flatten().collect::<Vec<_>>(),
            "applications are reached at the addresses of the guest's kernel");
        *stack = new;
    }

    /// Looks at a frame that the guest's kernel sends.
    #[inline]
    pub(super) fn sent(&mut self, frame: &[u8]) {
        let Some(address) = sight::shown(frame, self.options.config.vlan) else { return };
        let wanted = &mut self.wanted[family(address)];
        if *wanted == Some(address) {
            return;
        }
        if wanted.is_none() || self.busy == 0 {
            *wanted = Some(address);
            return;
        }
        if self.counters.passed_over == 0 {
            tracing::warn!(%address, "the guest's kernel uses another address now; its \
                applications are reached there after they have begun again");
        }
        self.counters.passed_over += 1;
    }

    /// Who gets a frame that begins like this.
    #[inline]
    pub(super) fn sort(&mut self, stack: &Stack, now: u64, head: &[u8]) -> Whose {
        self.now = now;
        let whose = match sight::look(head, self.options.config.vlan) {
            Sight::Segment { to, to_port, from, opens, fragment } => {
                let ours = self.is_own(to)
                    && (self.ports.contains(to_port)
                        || self.has_flow(stack, &from, to_port, opens));
                if let Some(of) = fragment.filter(|_| ours) {
                    let until = now.saturating_add(self.options.config.timers.reassembly);
                    self.fragmented[self.next_fragmented] = Some((of, until));
                    self.next_fragmented = (self.next_fragmented + 1) % FRAGMENTED;
                }
                if ours { Whose::Stack } else { Whose::Kernel }
            }
            Sight::Fragment { to, of } => {
                let known = |&(known, until): &_| known == of && now < until;
                let ours = self.is_own(to) && self.fragmented.iter().flatten().any(known);
                if ours { Whose::Stack } else { Whose::Kernel }
            }
            Sight::Report { from, from_port, to } => {
                let ours = self.is_own(from)
                    && (self.ports.contains(from_port)
                        || self.has_flow(stack, &to, from_port, false));
                if ours { Whose::Stack } else { Whose::Kernel }
            }
            Sight::Neighbour => Whose::Both,
            Sight::Other => Whose::Kernel,
        };
        match whose {
            Whose::Stack => self.counters.to_stack += 1,
            Whose::Kernel => self.counters.to_kernel += 1,
            Whose::Both => self.counters.to_both += 1,
        }
        whose
    }

    fn is_own(&self, address: IpAddr) -> bool {
        self.current[family(address)] == Some(address)
    }

    /// Whether the stack has this flow, or had it until TIME-WAIT. A SYN there asks for a
    /// new one, which is nobody's yet.
    fn has_flow(&self, stack: &Stack, remote: &SocketAddr, local_port: u16, opens: bool) -> bool {
        self.flows.find(remote, local_port).is_some_and(|noted| {
            let lives = stack.flow_info(noted.channel, noted.flow).is_ok();
            let waits = noted.closed_at.is_some_and(|at| {
                self.now.saturating_sub(at) < self.options.config.timers.time_wait
            });
            lives || (waits && !opens)
        })
    }

    /// A channel listens.
    pub(super) fn listens(&mut self, channel: u16, port: u16, backlog: u16, name: Flow) {
        self.busy |= 1 << channel;
        self.listeners.push(Listener { name, channel, port, backlog });
        self.listening.set(port, true);
        self.ports.set(port, true);
    }

    /// A channel uses the stack.
    pub(super) fn uses(&mut self, channel: u16) {
        self.busy |= 1 << channel;
    }

    /// A channel has stopped listening. The port stays the stack's until the channel was
    /// told of every flow that was accepted there.
    pub(super) fn unlistened(&mut self, stack: &Stack, channel: u16, name: Flow) {
        let Some(at) = self.listeners.iter().position(|listener| listener.name == name) else {
            return;
        };
        let Listener { port, .. } = self.listeners.swap_remove(at);
        self.listening.set(port, false);
        if self.leaving.len() < LEAVING_MAX && stack.has_slots(channel) {
            self.leaving.push(Leaving { port, channel });
        } else {
            self.ports.set(port, false);
        }
    }

    /// A flow was opened.
    pub(super) fn connected(&mut self, flow: Flow, channel: u16, to: SocketAddr, port: u16) {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        self.flows.note(flow, channel, to, port);
    }

    /// A local port for a flow to open, that no application listens on: one after the other.
    pub(super) fn ports_to_try(&mut self) -> impl Iterator<Item = u16> + use<> {
        let count = u16::MAX - PORT_FIRST + 1;
        let first = self.next_port;
        self.next_port = (self.next_port + 1) % count;
        (0..PORT_TRIES).map(move |n| PORT_FIRST + (first + n) % count)
    }

    /// Whether an application listens on a port.
    pub(super) fn is_listening(&self, port: u16) -> bool {
        self.listening.contains(port)
    }

    /// A channel is told this.
    pub(super) fn told(&mut self, stack: &Stack, channel: u16, slots: &[Slot]) {
        for slot in slots {
            match slot.as_event() {
                Some(Event::Accepted) => {
                    self.flows.note(slot.flow, channel, slot.peer(), slot.offset);
                }
                Some(Event::Closed) => self.flows.close(slot.flow, self.now),
                _ => {}
            }
        }
        if !self.leaving.is_empty() && !stack.has_slots(channel) {
            self.leave(channel);
        }
    }

    /// Ports of a channel that has been told everything.
    fn leave(&mut self, channel: u16) {
        let Share { leaving, ports, listening, .. } = self;
        leaving.retain(|&Leaving { port, channel: of }| {
            if of == channel {
                ports.set(port, listening.contains(port));
            }
            of != channel
        });
    }

    /// A channel has ended.
    pub(super) fn ended(&mut self, channel: u16) {
        self.busy &= !(1 << channel);
        let Share { listeners, ports, listening, .. } = self;
        listeners.retain(|listener| {
            if listener.channel == channel {
                listening.set(listener.port, false);
                ports.set(listener.port, false);
            }
            listener.channel != channel
        });
        self.leave(channel);
        // What another channel is still to be told of there.
        for &Leaving { port, .. } in &self.leaving {
            self.ports.set(port, true);
        }
    }

    /// What was counted here.
    pub(super) fn each_counter(&self, visit: &mut dyn FnMut(&str, u64)) {
        let Counters { to_stack, to_kernel, to_both, renewed, passed_over } = self.counters;
        visit("share.to_stack", to_stack);
        visit("share.to_kernel", to_kernel);
        visit("share.to_both", to_both);
        visit("share.renewed", renewed);
        visit("share.passed_over", passed_over);
    }

    /// What stacks before this one have counted, in the order of a stack's counters.
    pub(super) fn before(&self) -> impl Iterator<Item = u64> {
        self.before.iter().copied().chain(std::iter::repeat(0))
    }
}

/// Has a new stack listen as another one did, by the same names. A stack gives names in
/// order, and one that was given back again first, in its next generation.
///
/// # Errors
/// Why it does not.
fn replay(stack: &mut Stack, listeners: &[Listener]) -> Result<(), Reason> {
    let Some(last) = listeners.iter().map(|listener| listener.name.index()).max() else {
        return Ok(());
    };
    let mut sorted: Vec<Option<&Listener>> = vec![None; last as usize + 1];
    for listener in listeners {
        sorted[listener.name.index() as usize] = Some(listener);
    }
    let mut unused = (1..=u16::MAX).filter(|&port| listeners.iter().all(|l| l.port != port));
    let mut spare = Vec::new();
    for listener in sorted {
        let Some(&Listener { name, channel, port, backlog }) = listener else {
            let port = unused.next().ok_or(Reason::NoRoom)?;
            spare.push(stack.listen(0, port, 1)?);
            continue;
        };
        let mut found = stack.listen(channel, port, backlog)?;
        for _ in 0..name.generation() {
            stack.unlisten(channel, found)?;
            found = stack.listen(channel, port, backlog)?;
        }
        if found != name {
            return Err(Reason::StaleFlow);
        }
    }
    // Last taken, first given back: the next one is that of the lowest index.
    spare.into_iter().rev().try_for_each(|name| stack.unlisten(0, name))
}
