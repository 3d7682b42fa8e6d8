//! Neighbours: where frames for an address on our link go.
//!
//! The cache holds only neighbours that a flow has needed, so traffic that
//! nobody asked for cannot fill it; an entry that nobody waits for gives way to
//! a new one. Flows that need an address wait in a list of its entry. An old
//! entry is used on while it is asked for again, and forgotten only without an
//! answer.
//!
//! A flow remembers its neighbour's Ethernet address, and a passive flow takes
//! it from the SYN: the answer goes back the way that the SYN came, with no
//! exchange before the first response. Whoever could forge that address could
//! forge ARP or NDP as well. When a retransmission goes unanswered twice, the flow
//! asks this cache again, so a neighbour that moved is found.

//!
//! [`arp`] finds IPv4 neighbours and [`ndp`] those of IPv6; they share the room.

mod arp;
pub(crate) mod ndp;

use core::net::{IpAddr, Ipv4Addr};

use crate::bufs::NIL;
use crate::control::Control;
use crate::flow::{Key, Links, List, State};
use crate::memory::Memory;
use crate::stack::Stack;
use crate::table::Table;
use crate::wire::ethernet::{self, Mac};
use paste_abi::Reason;

/// Entries looked at for one to give way.
const EVICT_TRIES: usize = 8;

/// One neighbour.
#[derive(Clone, Debug)]
struct Neighbour {
    address: IpAddr,
    used: bool,
    mac: Option<Mac>,
    heard_at: u64,
    /// The address was heard in answer to a request; otherwise it is used, and
    /// asked for at once.
    confirmed: bool,
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
            address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            used: false,
            mac: None,
            heard_at: 0,
            confirmed: false,
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

/// How a neighbour's Ethernet address came to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// In answer to us.
    Answer,
    /// Otherwise: it is used, but asked for as well (RFC 4861 section 7.3.2:
    /// STALE).
    Unasked,
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
    /// Whether there may be a way to a flow's peer.
    pub(crate) fn routable(&self, now: u64, key: &Key) -> bool {
        self.addresses.next_hop(now, key.remote()).is_some()
    }

    fn neighbour_hash(&self, address: IpAddr) -> u32 {
        match address {
            IpAddr::V4(address) => self.hash(&address.octets()),
            IpAddr::V6(address) => self.hash(&address.octets()),
        }
    }

    /// The entry of this neighbour, if it has one.
    fn find_neighbour(&self, address: IpAddr) -> Option<u32> {
        let Neighbours { entries, table, .. } = &self.neighbours;
        let hash = self.neighbour_hash(address);
        table.find(hash, |i| entries[i as usize].address == address)
    }

    /// Finds the way to a flow's peer, asking for its neighbour if need be.
    pub(crate) fn route(&mut self, now: u64, key: Key) -> Route {
        let Some(hop) = self.addresses.next_hop(now, key.remote()) else {
            return Route::None;
        };
        let found = self.find_neighbour(hop);
        let Some(index) = found.or_else(|| self.new_neighbour(hop)) else {
            return Route::None;
        };
        let entry = &self.neighbours.entries[index as usize];
        let age = now.saturating_sub(entry.heard_at);
        let old = !entry.confirmed || age > self.config.timers.neighbour_age;
        let mac = entry.mac;
        if !entry.asking && (mac.is_none() || old) {
            self.ask(now, index);
        }
        mac.map_or(Route::Asking(index), Route::Known)
    }

    fn new_neighbour(&mut self, address: IpAddr) -> Option<u32> {
        let count = self.neighbours.entries.len();
        for _ in 0..EVICT_TRIES.min(count) {
            let index = self.neighbours.hand;
            self.neighbours.hand = (index + 1) % count;
            if self.neighbours.entries[index].waiting.is_empty() {
                self.forget_neighbour(index as u32);
                let entry = &mut self.neighbours.entries[index];
                entry.address = address;
                entry.used = true;
                let hash = self.neighbour_hash(address);
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
        entry.confirmed = false;
        entry.asking = false;
        let address = entry.address;
        let hash = self.neighbour_hash(address);
        self.neighbours.table.remove(hash, index);
        self.wheel.cancel(self.config.flows_max + index);
    }

    fn ask(&mut self, now: u64, index: u32) {
        let entry = &mut self.neighbours.entries[index as usize];
        if !entry.asking {
            entry.asking = true;
            entry.tries = 0;
        }
        // An IPv6 address that may be another's does not ask yet (RFC 4429
        // section 3.2).
        let tentative = entry.address.is_ipv6() && self.ndp.is_tentative(now);
        let wait = if tentative {
            self.ndp.tentative_until
        } else {
            entry.tries += 1;
            now.saturating_add(self.config.timers.neighbour_interval)
        };
        entry.ask_at = wait;
        self.wheel.set_earlier(self.config.flows_max + index, wait);
        if tentative {
            return;
        }
        // A known address is asked again directly (RFC 1122 section 2.3.2.1,
        // RFC 4861 section 7.3.3).
        let (target, mac) = (entry.address, entry.mac);
        self.queue_control(match target {
            IpAddr::V4(target) => {
                Control::ArpRequest { to: mac.unwrap_or(ethernet::BROADCAST), target }
            }
            IpAddr::V6(target) => Control::Solicit { to: mac, target },
        });
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
        if entry.tries < self.config.timers.neighbour_tries {
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

    /// Notes a neighbour's Ethernet address if somebody needs it.
    fn learn(&mut self, now: u64, address: IpAddr, mac: Mac, heard: Heard) -> bool {
        let Some(index) = self.find_neighbour(address) else {
            return false;
        };
        let entry = &mut self.neighbours.entries[index as usize];
        if heard == Heard::Answer {
            entry.heard_at = now;
            entry.asking = false;
            self.wheel.cancel(self.config.flows_max + index);
        } else if entry.mac == Some(mac) {
            return true;
        }
        entry.mac = Some(mac);
        entry.confirmed = heard == Heard::Answer;
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
}
