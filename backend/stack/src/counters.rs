//! What a stack has seen and done. Plain numbers that only grow; the backend
//! reads them and makes metrics of them.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Totals since the stack was made.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Every counter with its name, in the order of the fields.
            pub fn each(&self, mut visit: impl FnMut(&'static str, u64)) {
                $(visit(stringify!($name), self.$name);)*
            }
        }
    };
}

counters! {
    /// Frames given to the stack.
    frames_in,
    /// Frames that were not for this stack's addresses.
    foreign,
    /// Frames that the stack put into a batch.
    frames_out,
    /// TCP segments for us with a good header and checksum.
    segments_in,
    /// TCP segments sent, retransmissions included.
    segments_out,
    /// Payload bytes that reached a flow in order.
    bytes_in,
    /// Payload bytes sent for the first time.
    bytes_out,
    /// Payload bytes that the stack copied, to gather small payload.
    bytes_copied,
    /// Out-of-order segments held.
    held,
    /// Times that a flow's held segments were thrown away to make room.
    held_dropped,
    /// Segments sent again.
    retransmits,
    /// Retransmission timeouts.
    timeouts,
    /// Fast retransmits begun (RFC 5681 section 3.2).
    fast_retransmits,
    /// Tail loss probes sent (RFC 8985 section 7).
    tail_probes_out,
    /// Reductions of the window that were undone: nothing had been lost.
    undone,
    /// Reductions of the window because the peer echoed a mark (RFC 3168).
    ecn_reductions,
    /// Paths on which full segments seem to vanish (RFC 4821 section 7.7).
    black_holes,
    /// Zero-window and keepalive probes sent.
    probes_out,
    /// Duplicate acknowledgements received.
    duplicate_acks_in,
    /// D-SACKs received (RFC 2883).
    dsacks_in,
    /// Flows accepted into ESTABLISHED.
    accepted,
    /// SYNs answered with a cookie (RFC 4987 section 3.6).
    cookies_out,
    /// Cookies that came back and became flows.
    cookies_in,
    /// Half-open flows ended early to make room.
    half_open_dropped,
    /// Active opens that succeeded.
    connected,
    /// Flows that ended with both sides closed.
    closed,
    /// Flows that ended by RST or timeout.
    reset,
    /// RSTs sent.
    resets_out,
    /// Challenge ACKs sent (RFC 5961).
    challenge_acks_out,
    /// ARP requests sent.
    arp_requests_out,
    /// ARP replies sent.
    arp_replies_out,
    /// Neighbour solicitations sent (RFC 4861), probes for another host with our
    /// address among them.
    ndp_solicitations_out,
    /// Neighbour advertisements sent.
    ndp_advertisements_out,
    /// Reports of multicast groups sent (RFC 3810).
    mld_reports_out,
    /// Messages of another host that has our address, or wants it.
    address_conflicts,
    /// ICMP echo replies sent.
    echo_replies_out,
    /// ICMP errors sent.
    icmp_errors_out,
    /// ICMP errors that changed a flow.
    icmp_errors_in,
    /// ICMP errors about a flow that may pass, and changed nothing.
    icmp_soft_errors_in,
    /// IP fragments received.
    fragments_in,
    /// Datagrams put together of fragments.
    reassembled,
    /// TIME-WAIT ended early to make room.
    time_wait_recycled,

    /// Dropped: the frame does not lie in its buffer, or is cut short.
    drop_short,
    /// Dropped: IP version, header length or total length is wrong.
    drop_bad_ip,
    /// Dropped: the IP header's checksum is wrong.
    drop_bad_ip_csum,
    /// Dropped: a fragment that does not fit the others of its datagram or a
    /// buffer, or a datagram whose fragments did not come in time or had no room.
    drop_fragment,
    /// Dropped: IPv6 extension headers that are malformed, too long, or not
    /// understood (RFC 8200 section 4).
    drop_extensions,
    /// Dropped: an IP protocol that is neither TCP nor ICMP.
    drop_protocol,
    /// Dropped: a source address that nobody can have.
    drop_bad_source,
    /// Dropped: the TCP header is malformed.
    drop_bad_tcp,
    /// Dropped: the TCP checksum is wrong.
    drop_bad_tcp_csum,
    /// Dropped: a malformed ICMP message, or one that concerns nobody.
    drop_icmp,
    /// Dropped: an ARP message that is malformed or was not asked for.
    drop_arp,
    /// Dropped: a message of NDP or MLD that is malformed or was not asked for.
    drop_ndp,
    /// Dropped: a segment for a port without listener or flow.
    drop_no_flow,
    /// Acknowledgements for a listener that might have returned a cookie, and
    /// did not.
    cookies_bad,
    /// Dropped: a SYN, or a cookie, beyond its listener's backlog.
    drop_backlog,
    /// Dropped: a SYN, and no flow is free.
    drop_no_room,
    /// Dropped: sequence number outside the window.
    drop_out_of_window,
    /// Dropped: an old timestamp (RFC 7323 section 5).
    drop_paws,
    /// Dropped: an acknowledgement of what was never sent, or is long past.
    drop_bad_ack,
    /// Left out: a SACK block of what is not in flight.
    drop_bad_sack,
    /// Ignored: a FIN before payload that the peer had sent already.
    drop_bad_fin,
    /// Dropped: a RST or SYN that does not match exactly (RFC 5961).
    drop_blind,
    /// Dropped: payload seen before.
    drop_duplicate,
    /// Dropped: payload while the pool is empty.
    drop_pool_empty,
    /// Dropped: payload beyond the flow's share of buffers.
    drop_flow_share,
    /// Dropped: out of order, and too much is held already.
    drop_held_full,
    /// Dropped: payload after the guest closed or the flow ended.
    drop_after_close,
    /// Not sent: a limit on RSTs, echo replies or ICMP errors was reached.
    rate_limited,
    /// Not sent: too many frames without a flow were waiting.
    drop_control_full,
}
