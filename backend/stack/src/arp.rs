//! Neighbours: where frames for an address on our link go.
//!
//! The cache holds only neighbours that a flow has needed, so traffic that
//! nobody asked for cannot fill it; an entry that nobody waits for gives way to
//! a new one. Flows that need an address wait in a list of its entry. An old
//! entry is used on while it is asked for again, and forgotten only without an
//! answer.
//!
//! A flow remembers its neighbour's Ethernet address, and a passive flow takes
//! it from the SYN: the answer goes back the way that the SYN came, with no ARP
//! exchange before the first response. Whoever could forge that address could
//! forge ARP as well. When a retransmission goes unanswered twice, the flow
//! asks this cache again, so a neighbour that moved is found.

use core::net::Ipv4Addr;

use crate::bufs::NIL;
use crate::control::Control;
use crate::flow::{Key, Links, List, State};
use crate::memory::Memory;
use crate::stack::Stack;
use crate::table::Table;
use crate::wire::arp::{self, Arp};
use crate::wire::ethernet::{self, Mac};
use crate::wire::ipv4;
use paste_abi::Reason;

/// Entries looked at for one to give way.
const EVICT_TRIES: usize = 8;

/// One neighbour.
#[derive(Clone, Debug)]
struct Neighbour {
    address: Ipv4Addr,
    used: bool,
    mac: Option<Mac>,
    heard_at: u64,
    /// A request is out, and the timer runs.
    asking: bool,
    tries: u8,
    ask_at: u64,
    waiting: List,
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Neighbours {
    entries: Box<[Neighbour]>,
    table: Table,
    /// Where the search for an entry that may give way goes on.
    hand: usize,
}

impl Neighbours {
    pub(crate) fn new(count: u16) -> Neighbours {
        let entry = Neighbour {
            address: Ipv4Addr::UNSPECIFIED,
            used: false,
            mac: None,
            heard_at: 0,
            asking: false,
            tries: 0,
            ask_at: 0,
            waiting: List::EMPTY,
        };
        let count = count.max(1);
        Neighbours {
            entries: vec![entry; usize::from(count)].into_boxed_slice(),
            table: Table::new(u32::from(count)),
            hand: 0,
        }
    }

    /// How many entries there are, which is how many timers they need.
    pub(crate) fn count(&self) -> u32 {
        self.entries.len() as u32
    }

    /// The list of flows that wait for this neighbour.
    pub(crate) fn waiting(&mut self, index: u32) -> &mut List {
        &mut self.entries[index as usize].waiting
    }
}

#[cfg(any(test, feature = "audit"))]
impl Neighbours {
    /// Of each entry the flows that wait for it, and when it is asked for again
    /// if it is being asked for.
    pub(crate) fn waits(&self) -> impl Iterator<Item = (List, Option<u64>)> {
        self.entries.iter().map(|entry| (entry.waiting, entry.asking.then_some(entry.ask_at)))
    }
}

/// What is known of the way to an address.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Route {
    /// Frames go here.
    Known(Mac),
    /// This neighbour is being asked for.
    Asking(u32),
    /// No router for it, or no room to ask.
    None,
}

impl Stack {
    /// The address on our link through which `remote` is reached.
    fn next_hop(&self, remote: Ipv4Addr) -> Option<Ipv4Addr> {
        if self.on_link(remote) { Some(remote) } else { self.config.gateway }
    }

    pub(crate) fn on_link(&self, address: Ipv4Addr) -> bool {
        (address.to_bits() ^ self.config.address.to_bits()) & self.netmask == 0
    }

    /// Whether there may be a way to a flow's peer.
    pub(crate) fn routable(&self, key: &Key) -> bool {
        self.next_hop(key.remote_v4()).is_some()
    }

    /// Finds the way to a flow's peer, asking for its neighbour if need be.
    pub(crate) fn route(&mut self, now: u64, key: Key) -> Route {
        let Some(hop) = self.next_hop(key.remote_v4()) else {
            return Route::None;
        };
        let hash = self.hash(&hop.octets());
        let Neighbours { entries, table, .. } = &self.neighbours;
        let index = match table.find(hash, |i| entries[i as usize].address == hop) {
            Some(index) => index,
            None => match self.new_neighbour(hop, hash) {
                Some(index) => index,
                None => return Route::None,
            },
        };
        let entry = &self.neighbours.entries[index as usize];
        let old = now.saturating_sub(entry.heard_at) > self.config.timers.neighbour_age;
        let mac = entry.mac;
        if !entry.asking && (mac.is_none() || old) {
            self.ask(now, index);
        }
        mac.map_or(Route::Asking(index), Route::Known)
    }

    fn new_neighbour(&mut self, address: Ipv4Addr, hash: u32) -> Option<u32> {
        let count = self.neighbours.entries.len();
        for _ in 0..EVICT_TRIES.min(count) {
            let index = self.neighbours.hand;
            self.neighbours.hand = (index + 1) % count;
            if self.neighbours.entries[index].waiting.is_empty() {
                self.forget_neighbour(index as u32);
                let entry = &mut self.neighbours.entries[index];
                entry.address = address;
                entry.used = true;
                self.neighbours.table.insert(hash, index as u32);
                return Some(index as u32);
            }
        }
        None
    }

    /// Frees an entry for which nobody waits.
    fn forget_neighbour(&mut self, index: u32) {
        let entry = &mut self.neighbours.entries[index as usize];
        if !entry.used {
            return;
        }
        entry.used = false;
        entry.mac = None;
        entry.asking = false;
        let address = entry.address;
        let hash = self.hash(&address.octets());
        self.neighbours.table.remove(hash, index);
        self.wheel.cancel(self.config.flows_max + index);
    }

    fn ask(&mut self, now: u64, index: u32) {
        let entry = &mut self.neighbours.entries[index as usize];
        if !entry.asking {
            entry.asking = true;
            entry.tries = 0;
        }
        entry.tries += 1;
        entry.ask_at = now.saturating_add(self.config.timers.arp_interval);
        self.wheel.set_earlier(self.config.flows_max + index, entry.ask_at);
        // A known address is asked again directly (RFC 1122 section 2.3.2.1).
        let to = entry.mac.unwrap_or(ethernet::BROADCAST);
        let target = entry.address;
        self.queue_control(Control::ArpRequest { to, target });
    }

    /// The timer of a neighbour rang.
    pub(crate) fn neighbour_timer<M: Memory>(&mut self, mem: &mut M, now: u64, index: u32) {
        let entry = &self.neighbours.entries[index as usize];
        if !entry.asking {
            return;
        }
        if entry.ask_at > now {
            self.wheel.set_earlier(self.config.flows_max + index, entry.ask_at);
            return;
        }
        if entry.tries < self.config.timers.arp_tries {
            self.ask(now, index);
            return;
        }
        // Nobody there. An opening flow fails; others may yet hear from their
        // peer, and try again later.
        while let Some(flow) = {
            let list = &mut self.neighbours.entries[index as usize].waiting;
            self.flows.pop_front(list, Links::Sending)
        } {
            self.flows[flow].neighbour = NIL;
            match self.flows[flow].state {
                State::SynSent | State::SynReceived => {
                    self.terminate(mem, flow, Some(Reason::Unreachable));
                }
                _ => self.cannot_route(now, flow),
            }
        }
        self.forget_neighbour(index);
    }

    /// Takes in an ARP message that concerns us or may do so; returns whether
    /// it was for us.
    pub(crate) fn arp_input(&mut self, now: u64, bytes: &[u8]) -> bool {
        let Some(message) = arp::parse(bytes) else {
            return false;
        };
        let ours = message.target == self.config.address;
        let credible = ethernet::is_station(&message.sender_mac)
            && ipv4::is_host(message.sender)
            && message.sender != self.config.address
            && self.on_link(message.sender);
        if !credible {
            if ours {
                self.counters.drop_arp += 1;
            }
            return ours;
        }
        let learned = self.learn(now, message.sender, message.sender_mac);
        if ours && message.op == arp::REQUEST {
            self.queue_control(Control::ArpReply { to: message.sender_mac, ip: message.sender });
        } else if ours && !learned {
            self.counters.drop_arp += 1;
        }
        ours
    }

    /// Notes a neighbour's address if it is one that was asked for.
    fn learn(&mut self, now: u64, address: Ipv4Addr, mac: Mac) -> bool {
        let hash = self.hash(&address.octets());
        let Neighbours { entries, table, .. } = &self.neighbours;
        let Some(index) = table.find(hash, |i| entries[i as usize].address == address) else {
            return false;
        };
        let entry = &mut self.neighbours.entries[index as usize];
        entry.mac = Some(mac);
        entry.heard_at = now;
        entry.asking = false;
        self.wheel.cancel(self.config.flows_max + index);
        // Linear only in the flows that have waited for just this.
        while let Some(flow) = {
            let list = &mut self.neighbours.entries[index as usize].waiting;
            self.flows.pop_front(list, Links::Sending)
        } {
            self.flows[flow].neighbour = NIL;
            self.kick(flow);
        }
        true
    }

    /// The message that asks for `target`.
    pub(crate) fn arp_request(&self, target: Ipv4Addr) -> Arp {
        Arp {
            op: arp::REQUEST,
            sender_mac: self.config.mac,
            sender: self.config.address,
            target_mac: [0; 6],
            target,
        }
    }
}
