//! Neighbour discovery (RFC 4861): neighbours with IPv6 addresses, and what a
//! host does when it comes to a link: it says which groups it listens to, looks
//! for another host with its addresses (RFC 4862 section 5.4), and looks for a
//! router if it is told to.
//!
//! An address that turns out to be another's as well is counted and kept: the
//! operator gave it, and a server that fell silent because anybody on the link
//! claimed its address would be easy to silence.

use core::net::{IpAddr, Ipv6Addr};

use super::Heard;
use crate::config::{MS, SEC};
use crate::control::Control;
use crate::flow::Local;
use crate::input::Arrival;
use crate::stack::Stack;
use crate::wire::ethernet::{self, Mac};
use crate::wire::ipv6;
use crate::wire::mld::{self, Query};
use crate::wire::ndp::{self, Advertisement, Message};

/// Time between probes for another host with our address (RFC 4862 section 5.1:
/// RetransTimer), and between reports of the groups that we have joined (RFC
/// 3810 section 9.11: Unsolicited Report Interval).
const STEP: u64 = SEC;
/// Reports when a group is joined (RFC 3810 section 9.1: Robustness Variable).
/// The first has no source address yet; the last, which is sent when the
/// address is known to be ours, has (RFC 3590 section 4).
const REPORTS: u8 = 2;
/// Router solicitations, and the time between them (RFC 4861 section 10:
/// MAX_RTR_SOLICITATIONS and RTR_SOLICITATION_INTERVAL).
const ROUTER_SOLICITATIONS: u8 = 3;
const ROUTER_SOLICITATION_INTERVAL: u64 = 4 * SEC;

/// Where a host stands on its link.
#[derive(Debug, Default)]
pub(crate) struct Ndp {
    /// Until then our addresses may turn out to be another's.
    pub tentative_until: u64,
    probes: u8,
    reports: u8,
    /// When the next probe or report is due.
    step_at: u64,
    solicitations: u8,
    solicit_at: u64,
    /// When a query is to be answered, if one is.
    answer_at: Option<u64>,
}

impl Ndp {
    /// Whether our addresses may still turn out to be another's.
    pub(crate) fn is_tentative(&self, now: u64) -> bool {
        now < self.tentative_until
    }

    /// When something is due next.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let step = (self.probes > 0 || self.reports > 0).then_some(self.step_at);
        let solicit = (self.solicitations > 0).then_some(self.solicit_at);
        [step, solicit, self.answer_at].into_iter().flatten().min()
    }
}

impl Stack {
    /// The host comes to its link.
    pub(crate) fn join_link(&mut self, now: u64) {
        let probes = self.config.dad_probes;
        self.ndp = Ndp {
            tentative_until: now.saturating_add(u64::from(probes) * STEP),
            probes,
            reports: REPORTS,
            step_at: now,
            solicitations: if self.config.accept_ra { ROUTER_SOLICITATIONS } else { 0 },
            solicit_at: now,
            answer_at: None,
        };
    }

    /// Sends what is due to neighbours and routers.
    pub(crate) fn ndp_timer(&mut self, now: u64) {
        let tentative = self.ndp.is_tentative(now);
        if (self.ndp.probes > 0 || self.ndp.reports > 0) && self.ndp.step_at <= now {
            self.ndp.step_at = now.saturating_add(STEP);
            // A group is joined before it is used (RFC 4862 section 5.4.2); the
            // last report waits for its source address.
            if self.ndp.reports > 1 || (self.ndp.reports == 1 && !tentative) {
                self.ndp.reports -= 1;
                self.queue_control(Control::Listen { change: true });
            }
            if self.ndp.probes > 0 {
                self.ndp.probes -= 1;
                for local in [Local::V6, Local::V6Link] {
                    self.queue_control(Control::Probe { local });
                }
            }
        }
        if self.ndp.solicitations > 0 && self.ndp.solicit_at <= now {
            self.ndp.solicit_at = now.saturating_add(ROUTER_SOLICITATION_INTERVAL);
            self.ndp.solicitations -= 1;
            if self.addresses.has_router(now) {
                self.ndp.solicitations = 0;
            } else {
                self.queue_control(Control::SolicitRouter);
            }
        }
        if self.ndp.answer_at.is_some_and(|at| at <= now) {
            self.ndp.answer_at = None;
            self.queue_control(Control::Listen { change: false });
        }
    }

    /// Takes in a message of neighbour discovery with the right checksum;
    /// `bytes` is the start of its `len` bytes. Returns whether it was for us
    /// alone.
    pub(crate) fn ndp_input(
        &mut self,
        now: u64,
        arrival: &Arrival,
        bytes: &[u8],
        len: usize,
    ) -> bool {
        if arrival.hop_limit != ndp::HOP_LIMIT {
            self.counters.drop_ndp += 1;
            return false;
        }
        match ndp::parse(bytes, len) {
            Some(Message::Solicitation { target, mac }) => {
                self.solicited(now, arrival, target, mac)
            }
            Some(Message::Advertisement(advertisement)) => {
                self.advertised(now, arrival, &advertisement);
                false
            }
            Some(Message::RouterAdvertisement { lifetime, mac }) => {
                self.router_advertised(now, arrival, lifetime, mac);
                false
            }
            Some(Message::RouterSolicitation { .. }) | None => {
                self.counters.drop_ndp += 1;
                false
            }
        }
    }

    /// Somebody asks for `target` (RFC 4861 section 7.2.3). Returns whether that
    /// is us.
    fn solicited(
        &mut self,
        now: u64,
        arrival: &Arrival,
        target: Ipv6Addr,
        mac: Option<Mac>,
    ) -> bool {
        let Some(local) = self.addresses.local_v6(target) else {
            return false;
        };
        // Our own, back from a switch.
        if arrival.from == self.config.mac {
            return true;
        }
        if arrival.src.is_unspecified() {
            // Section 7.1.1.
            if !arrival.dst.is_multicast() || mac.is_some() {
                self.counters.drop_ndp += 1;
                return true;
            }
            if self.ndp.is_tentative(now) {
                self.counters.address_conflicts += 1;
            }
            let to = ipv6::group_mac(&ipv6::ALL_NODES.octets());
            self.queue_control(Control::Advertise { to, ip: ipv6::ALL_NODES, local });
            return true;
        }
        let to = mac.unwrap_or(arrival.from);
        if !ethernet::is_station(&to)
            || !ipv6::is_host(arrival.src)
            || self.addresses.local_v6(arrival.src).is_some()
        {
            self.counters.drop_ndp += 1;
            return true;
        }
        if let Some(mac) = mac {
            self.hint(now, arrival.src, mac);
        }
        self.queue_control(Control::Advertise { to, ip: arrival.src, local });
        true
    }

    /// Notes what a neighbour said of itself without being asked.
    fn hint(&mut self, now: u64, address: Ipv6Addr, mac: Mac) {
        let address = IpAddr::V6(address);
        if self.addresses.on_link(address) {
            self.learn(now, address, mac, Heard::Unasked);
        }
    }

    /// Somebody says that he has an address (RFC 4861 section 7.2.5).
    fn advertised(&mut self, now: u64, arrival: &Arrival, advertisement: &Advertisement) {
        let Advertisement { target, mac, router, solicited, overrides } = *advertisement;
        if arrival.from == self.config.mac {
            return;
        }
        if self.addresses.local_v6(target).is_some() {
            self.counters.address_conflicts += 1;
            return;
        }
        let valid = ipv6::is_host(arrival.src)
            && !(solicited && arrival.dst.is_multicast())
            && mac.is_none_or(|mac| ethernet::is_station(&mac));
        let Some(index) = self.find_neighbour(IpAddr::V6(target)).filter(|_| valid) else {
            self.counters.drop_ndp += 1;
            return;
        };
        if !router {
            self.addresses.offer(now, target, 0);
        }
        let entry = &mut self.neighbours.entries[index as usize];
        let Some(mac) = mac.or(entry.mac) else {
            self.counters.drop_ndp += 1;
            return;
        };
        if entry.mac.is_some_and(|known| known != mac) && !overrides {
            entry.confirmed = false;
            return;
        }
        let heard = if solicited { Heard::Answer } else { Heard::Unasked };
        self.learn(now, IpAddr::V6(target), mac, heard);
    }

    /// A router offers itself (RFC 4861 section 6.1.2 and 6.3.4). Prefixes and
    /// other parameters that it offers are not taken.
    fn router_advertised(&mut self, now: u64, arrival: &Arrival, lifetime: u16, mac: Option<Mac>) {
        if !self.config.accept_ra || !arrival.src.is_unicast_link_local() {
            self.counters.drop_ndp += 1;
            return;
        }
        self.addresses.offer(now, arrival.src, u64::from(lifetime) * SEC);
        if let Some(mac) = mac.filter(ethernet::is_station) {
            self.hint(now, arrival.src, mac);
        }
    }

    /// A router asks which groups we listen to (RFC 3810 section 6.2): answered
    /// within the time that it gives.
    pub(crate) fn mld_input(&mut self, now: u64, arrival: &Arrival, bytes: &[u8]) {
        let query = mld::parse_query(bytes).filter(|_| {
            arrival.hop_limit == mld::HOP_LIMIT
                && arrival.router_alert
                && arrival.src.is_unicast_link_local()
        });
        let Some(Query { delay_max, group }) = query else {
            self.counters.drop_ndp += 1;
            return;
        };
        if !group.is_unspecified() && !self.addresses.is_solicited(group) {
            return;
        }
        let spread = self.hash(&now.to_ne_bytes());
        let delay = ((u64::from(delay_max) * u64::from(spread)) >> u32::BITS) * MS;
        let at = now.saturating_add(delay);
        self.ndp.answer_at = Some(self.ndp.answer_at.map_or(at, |pending| pending.min(at)));
        self.arm_host_timer();
    }
}
