//! What a stack is told when it is made: addresses, limits and timers.
//!
//! Every limit and time has a default with its source; an operator changes
//! them through the backend's configuration, which this module knows nothing of.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Nanoseconds in a millisecond.
pub const MS: u64 = 1_000_000;
/// Nanoseconds in a second.
pub const SEC: u64 = 1_000 * MS;

/// How a flow finds out what the path carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CongestionControl {
    /// CUBIC (RFC 9438).
    #[default]
    Cubic,
    /// NewReno (RFC 5681 and RFC 6582).
    NewReno,
}

/// An address of ours, and the network that it is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network<A> {
    /// The address.
    pub address: A,
    /// Bits of the network's prefix; peers within it are on our link.
    pub prefix_len: u8,
    /// The router for peers that are not on our link.
    pub gateway: Option<A>,
}

/// The settings of one stack, fixed for its life. Times are in ns.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our Ethernet address.
    pub mac: [u8; 6],
    /// The VLAN that we are on, 1 to 4094: our frames carry its tag, and of
    /// others only those that carry it too are ours (IEEE 802.1Q). Without one,
    /// frames without a tag are, and those whose tag is a priority only.
    pub vlan: Option<u16>,
    /// Our IPv4 address.
    pub ipv4: Option<Network<Ipv4Addr>>,
    /// Our IPv6 address; a link-local one comes with it. Left out when the MTU
    /// is less than IPv6 needs (RFC 8200 section 5: 1280).
    pub ipv6: Option<Network<Ipv6Addr>>,
    /// Where IPv6 has no gateway, take the router that offers itself (RFC 4861
    /// section 6.3.4). Whoever is on the link can.
    pub accept_ra: bool,
    /// Probes for another host with our IPv6 addresses, one second each, before
    /// we ask in their name (RFC 4862 section 5.1: DupAddrDetectTransmits).
    /// What is asked of us is answered at once (RFC 4429).
    pub dad_probes: u8,
    /// Largest IP datagram that the link carries, bytes.
    pub mtu: u16,
    /// Flows at once, in every state including TIME-WAIT. Cut to
    /// [`paste_abi::Flow::INDEX_MAX`].
    pub flows_max: u32,
    /// Listeners at once, over all channels.
    pub listeners_max: u16,
    /// Neighbours remembered at once.
    pub neighbours_max: u16,
    /// Flows in TIME-WAIT at once; the oldest gives way to a newer one.
    pub time_wait_max: u32,
    /// Smallest slot offset that a guest may send from, bytes.
    pub headroom: u16,
    /// Largest receive window of a flow, bytes.
    pub recv_window_max: u32,
    /// Buffers that may wait in one flow's send queue.
    pub send_queue_max: u16,
    /// Sends of buffers that stay the guest's, under way at once.
    pub shared_sends_max: u32,
    /// Blocks of out-of-order payload held for one flow, each of any number of
    /// segments without a hole between them.
    pub held_blocks_max: u8,
    /// The port completes TCP checksums ([`crate::TxCsum`]).
    pub tx_csum_offload: bool,
    /// Headers may be written into a buffer's headroom. Off, they always lie in
    /// [`crate::TxFrame::head`], out of the guest's reach.
    pub header_in_buffer: bool,
    /// Offer and accept timestamps (RFC 7323 section 3).
    pub timestamps: bool,
    /// The congestion control of every flow.
    pub congestion: CongestionControl,
    /// Offer and accept SACK (RFC 2018).
    pub sack: bool,
    /// Offer and accept ECN (RFC 3168).
    pub ecn: bool,
    /// Times.
    pub timers: Timers,
    /// Answer SYNs with cookies where there is no room for flows (RFC 4987
    /// section 3.6).
    pub syn_cookies: bool,
    /// SYNs per second for which flows are made. Those beyond it are answered
    /// with cookies, or dropped.
    pub syn_per_second: u32,
    /// The same for each listener alone.
    pub listener_syn_per_second: u32,
    /// Cookies per second; SYNs beyond it are dropped.
    pub cookie_per_second: u32,
    /// RSTs per second to segments that belong to no flow; a reflector of
    /// spoofed traffic must not be a strong one.
    pub rst_per_second: u32,
    /// ICMP echo replies per second.
    pub echo_per_second: u32,
    /// ICMP errors per second (RFC 1812 section 4.3.2.8, RFC 4443 section 2.4
    /// (f)).
    pub icmp_errors_per_second: u32,
}

/// The times of TCP, of neighbours and of fragments, in ns.
#[derive(Clone, Debug)]
pub struct Timers {
    /// Longest that an acknowledgement waits for a segment to ride on.
    /// RFC 1122 section 4.2.3.2 allows 500 ms; 40 ms is the usual practice.
    pub delayed_ack: u64,
    /// Retransmission timeout before the first measurement (RFC 6298 section 2.1).
    pub rto_initial: u64,
    /// Smallest retransmission timeout. RFC 6298 section 2.4 says one second,
    /// for coarse clocks; 200 ms is the usual practice with fine ones.
    pub rto_min: u64,
    /// Largest retransmission timeout (RFC 6298 section 2.5: at least 60 s).
    pub rto_max: u64,
    /// Twice the maximum segment lifetime, the length of TIME-WAIT. RFC 9293
    /// section 3.4.1 has 4 minutes; 60 s is the usual practice.
    pub time_wait: u64,
    /// Longest that an active open may take (RFC 9293 section 3.8.3: R2 for a
    /// SYN is at least 3 minutes).
    pub connect: u64,
    /// Longest that a passive open may stay half open.
    pub accept: u64,
    /// Times that the answer to a SYN is sent again. A peer that got none of
    /// them is most likely none.
    pub syn_ack_tries: u8,
    /// User timeout: longest that sent data may stay unacknowledged (RFC 9293
    /// section 3.8.3: R2 is at least 100 s).
    pub user_timeout: u64,
    /// Longest silence in FIN-WAIT-2 before the flow is forgotten.
    pub fin_wait_2: u64,
    /// Time between keepalive probes once they have begun.
    pub keepalive_interval: u64,
    /// Keepalive probes without an answer before the flow is reset.
    pub keepalive_probes: u8,
    /// Shortest time between challenge ACKs of one flow (RFC 5961 section 7).
    pub challenge_interval: u64,
    /// Age at which a neighbour is asked for again (RFC 1122 section 2.3.2.1).
    pub neighbour_age: u64,
    /// Time between requests for one neighbour (RFC 1122 section 2.3.2.1: at
    /// most one per second; RFC 4861 section 10: RETRANS_TIMER).
    pub neighbour_interval: u64,
    /// Requests without an answer before a neighbour is unreachable (RFC 4861
    /// section 10: MAX_MULTICAST_SOLICIT).
    pub neighbour_tries: u8,
    /// Longest that fragments wait for the rest of their datagram. RFC 1122
    /// section 3.3.2 and RFC 8200 section 4.5 have 60 s; fragments that arrive
    /// arrive together, and an identification that is used again sooner would
    /// join parts of two datagrams (RFC 4963).
    pub reassembly: u64,
}

impl Default for Timers {
    fn default() -> Timers {
        Timers {
            delayed_ack: 40 * MS,
            rto_initial: SEC,
            rto_min: 200 * MS,
            rto_max: 60 * SEC,
            time_wait: 60 * SEC,
            connect: 180 * SEC,
            accept: 60 * SEC,
            syn_ack_tries: 5,
            user_timeout: 120 * SEC,
            fin_wait_2: 60 * SEC,
            keepalive_interval: 75 * SEC,
            keepalive_probes: 9,
            challenge_interval: 500 * MS,
            neighbour_age: 300 * SEC,
            neighbour_interval: SEC,
            neighbour_tries: 3,
            reassembly: 2 * SEC,
        }
    }
}

impl Config {
    /// Our address: the IPv4 one, or else the configured IPv6 one.
    pub fn address(&self) -> IpAddr {
        let ipv6 = self.ipv6.map_or(Ipv6Addr::UNSPECIFIED, |network| network.address);
        self.ipv4.map_or(IpAddr::V6(ipv6), |network| IpAddr::V4(network.address))
    }

    /// The defaults, for this Ethernet address and this network of either
    /// family.
    pub fn new(mac: [u8; 6], address: impl Into<IpAddr>, prefix_len: u8) -> Config {
        let mut config = Config::unaddressed(mac);
        match address.into() {
            IpAddr::V4(address) => {
                config.ipv4 = Some(Network { address, prefix_len, gateway: None });
            }
            IpAddr::V6(address) => {
                config.ipv6 = Some(Network { address, prefix_len, gateway: None });
            }
        }
        config
    }

    /// The defaults, for this Ethernet address and no IP address yet.
    pub fn unaddressed(mac: [u8; 6]) -> Config {
        Config {
            mac,
            vlan: None,
            ipv4: None,
            ipv6: None,
            accept_ra: false,
            dad_probes: 1,
            mtu: 1500,
            flows_max: 16 * 1024,
            listeners_max: 256,
            neighbours_max: 256,
            time_wait_max: 8 * 1024,
            headroom: 128,
            recv_window_max: 1 << 20,
            send_queue_max: 1024,
            shared_sends_max: 1024,
            held_blocks_max: 64,
            tx_csum_offload: false,
            header_in_buffer: false,
            timestamps: true,
            congestion: CongestionControl::default(),
            sack: true,
            ecn: true,
            timers: Timers::default(),
            syn_cookies: true,
            syn_per_second: 100_000,
            listener_syn_per_second: 50_000,
            cookie_per_second: 100_000,
            rst_per_second: 1000,
            echo_per_second: 1000,
            icmp_errors_per_second: 100,
        }
    }
}
