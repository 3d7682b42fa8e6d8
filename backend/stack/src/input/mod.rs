//! Arrival: from an Ethernet frame to a TCP segment, an ICMP message or a
//! message of a neighbour, judged from one copy of the headers.

mod icmp;
mod warm;

use core::net::Ipv6Addr;

use crate::bufs::Place;
use crate::checksum;
use crate::flow::Local;
use crate::frame::RxFrame;
use crate::memory::Memory;
use crate::stack::{Outcome, Stack};
use crate::tcp::input::Place as SegmentPlace;
use crate::wire::ethernet::{self, Ethernet, Mac};
use crate::wire::ip::Octets;
use crate::wire::ipv6::{self, Ipv6, next};
use crate::wire::{HEADER_COPY, icmp as icmpv4, ipv4, mld, ndp};

/// A datagram for one of our addresses, as what lies above IP is told of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Datagram {
    /// The station that sent the frame.
    pub from: Mac,
    pub local: Local,
    pub remote: Octets,
    /// Sum of both addresses, for the pseudo-header.
    pub sum: u16,
    /// The ECN field (RFC 3168 section 5).
    pub ecn: u8,
    /// Where its IP header starts in the buffer.
    pub start: usize,
    /// Bytes, IP header included.
    pub len: usize,
}

/// How an ICMPv6 message arrived that only neighbours may send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    /// The station that sent the frame.
    pub from: Mac,
    pub src: Ipv6Addr,
    pub dst: Ipv6Addr,
    pub hop_limit: u8,
    pub router_alert: bool,
}

impl Arrival {
    fn new(from: Mac, ip: &Ipv6) -> Arrival {
        let Ipv6 { src, dst, hop_limit, upper, .. } = *ip;
        Arrival { from, src, dst, hop_limit, router_alert: upper.router_alert }
    }
}

impl Stack {
    /// Takes in a frame that arrived. Its buffer must not be the stack's or
    /// the pool's.
    pub fn input<M: Memory>(&mut self, mem: &mut M, now: u64, frame: &RxFrame) -> Outcome {
        let now = self.clock(now);
        self.pool_free = mem.free();
        self.counters.frames_in += 1;
        let end = usize::from(frame.offset) + usize::from(frame.len);
        if frame.buf >= self.bufs.count() || end > mem.buffer_size() {
            self.counters.drop_short += 1;
            return Outcome::Consumed;
        }
        // A buffer that comes with a frame is nobody's any more.
        if self.bufs.get(frame.buf).place == Place::Delivered {
            self.release(now, frame.buf);
        }
        let mut copy = [0; HEADER_COPY];
        let (at, len) = (usize::from(frame.offset), usize::from(frame.len));
        let bytes = if len >= HEADER_COPY {
            // Of a length that the compiler knows.
            mem.read(frame.buf, at, &mut copy);
            &copy[..]
        } else {
            mem.read(frame.buf, at, &mut copy[..len]);
            &copy[..len]
        };
        let Some(link) = ethernet::parse(bytes) else {
            self.counters.drop_short += 1;
            return Outcome::Consumed;
        };
        let outcome = if link.vlan == self.config.vlan {
            self.link_input(mem, now, frame, &link, &bytes[link.len..])
        } else {
            Outcome::Foreign
        };
        if outcome == Outcome::Foreign {
            self.counters.foreign += 1;
        }
        outcome
    }

    /// Sorts out what is ours by its addresses, before anything else is judged:
    /// another host's datagram is bridged however odd it is.
    fn link_input<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        frame: &RxFrame,
        link: &Ethernet,
        bytes: &[u8],
    ) -> Outcome {
        let ours = link.dst == self.config.mac;
        match link.ethertype {
            ethernet::IPV4 if ours => match (ipv4::destination(bytes), self.addresses.v4()) {
                (Some(dst), Some(own)) if dst == own => {
                    self.ipv4_input(mem, now, frame, link, bytes)
                }
                _ => Outcome::Foreign,
            },
            ethernet::ARP if self.arp_input(now, bytes) => Outcome::Consumed,
            ethernet::IPV6 => {
                let Some(dst) = ipv6::destination(bytes) else {
                    return Outcome::Foreign;
                };
                if !dst.is_multicast() {
                    return match self.addresses.local_v6(dst).filter(|_| ours) {
                        Some(local) => self.ipv6_input(mem, now, frame, link, local, bytes),
                        None => Outcome::Foreign,
                    };
                }
                let concerns_us = self.config.ipv6.is_some()
                    && ethernet::is_group(&link.dst)
                    && (dst == ipv6::ALL_NODES || self.addresses.is_solicited(dst));
                // The guest's own kernel belongs to the same groups.
                if concerns_us && self.group_input(mem, now, frame, link, bytes) {
                    Outcome::Consumed
                } else {
                    Outcome::Foreign
                }
            }
            _ => Outcome::Foreign,
        }
    }

    fn ipv4_input<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        frame: &RxFrame,
        link: &Ethernet,
        bytes: &[u8],
    ) -> Outcome {
        let ip = match ipv4::parse(bytes, usize::from(frame.len) - link.len) {
            Ok(ip) => ip,
            Err(ipv4::Bad::Header) => {
                self.counters.drop_bad_ip += 1;
                return Outcome::Consumed;
            }
            Err(ipv4::Bad::Checksum) => {
                self.counters.drop_bad_ip_csum += 1;
                return Outcome::Consumed;
            }
        };
        // RFC 1122 section 3.2.1.3.
        if !ipv4::is_host(ip.src)
            || self.addresses.v4() == Some(ip.src)
            || self.addresses.is_broadcast(ip.src)
        {
            self.counters.drop_bad_source += 1;
            return Outcome::Consumed;
        }
        let remote = ip.src.to_ipv6_mapped().octets();
        let datagram = Datagram {
            from: link.src,
            local: Local::V4,
            remote,
            sum: checksum::add(checksum::address(&remote), self.addresses.sum(Local::V4)),
            ecn: ip.ecn,
            start: usize::from(frame.offset) + link.len,
            len: ip.total_len,
        };
        if let Some(fragment) = ip.fragment {
            let header = &bytes[..ip.header_len];
            return self.reassemble(mem, now, frame, &datagram, header, ip.protocol, fragment);
        }
        // The copy may reach into link padding or end before the datagram.
        let end = ip.total_len.min(bytes.len());
        let inner = &bytes[ip.header_len..end];
        self.datagram_input(mem, now, frame, &datagram, ip.protocol, ip.header_len, inner)
    }

    fn ipv6_input<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        frame: &RxFrame,
        link: &Ethernet,
        local: Local,
        bytes: &[u8],
    ) -> Outcome {
        let len = usize::from(frame.len) - link.len;
        let parsed = ipv6::parse(bytes, len);
        // What is told to the sender goes to an address that can be one.
        let src = ipv6::source(bytes).unwrap_or(Ipv6Addr::UNSPECIFIED);
        let solicits = matches!(&parsed, Ok(ip) if ip.upper.protocol == next::ICMPV6);
        let sane = ipv6::is_host(src) || (src.is_unspecified() && solicits);
        if !sane || self.addresses.local_v6(src).is_some() {
            self.counters.drop_bad_source += 1;
            return Outcome::Consumed;
        }
        let remote = src.octets();
        let mut datagram = Datagram {
            from: link.src,
            local,
            remote,
            sum: checksum::add(checksum::address(&remote), self.addresses.sum(local)),
            ecn: 0,
            start: usize::from(frame.offset) + link.len,
            len,
        };
        let ip = match parsed {
            Ok(ip) => ip,
            Err(ipv6::Bad::Header) => {
                self.counters.drop_bad_ip += 1;
                return Outcome::Consumed;
            }
            Err(ipv6::Bad::Extensions) => {
                self.counters.drop_extensions += 1;
                return Outcome::Consumed;
            }
            Err(ipv6::Bad::Problem { code, pointer }) => {
                self.counters.drop_extensions += 1;
                datagram.len = ipv6::total_len(bytes);
                return self
                    .parameter_problem(mem, now, frame.buf, &datagram, bytes, code, pointer);
            }
        };
        datagram.ecn = ip.ecn;
        datagram.len = ip.total_len;
        let end = ip.total_len.min(bytes.len());
        let ipv6::Upper { protocol, offset, fragment, next_at, .. } = ip.upper;
        if let Some(fragment) = fragment {
            let header = &bytes[..offset];
            return self.reassemble(mem, now, frame, &datagram, header, protocol, fragment);
        }
        let inner = &bytes[offset..end];
        match protocol {
            next::ICMPV6 => {
                let place =
                    SegmentPlace { offset: datagram.start + offset, len: ip.total_len - offset };
                if !self.icmpv6_checks(mem, frame.buf, datagram.sum, inner, place) {
                    self.counters.drop_icmp += 1;
                    return Outcome::Consumed;
                }
                let arrival = Arrival::new(link.src, &ip);
                if self.neighbour_input(now, &arrival, inner, place.len).is_some() {
                    return Outcome::Consumed;
                }
                if src.is_unspecified() {
                    self.counters.drop_bad_source += 1;
                    return Outcome::Consumed;
                }
                self.icmpv6_input(mem, now, frame, &datagram, inner, place)
            }
            next::TCP => self.datagram_input(mem, now, frame, &datagram, protocol, offset, inner),
            next::NONE => {
                self.counters.drop_protocol += 1;
                Outcome::Consumed
            }
            _ => {
                self.counters.drop_protocol += 1;
                let (code, pointer) = (ipv6::problem::NEXT_HEADER, next_at as u32);
                self.parameter_problem(mem, now, frame.buf, &datagram, bytes, code, pointer)
            }
        }
    }

    /// What was sent to a group that we belong to: only neighbours and routers
    /// are listened to there. Returns whether it was for us alone.
    fn group_input<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        frame: &RxFrame,
        link: &Ethernet,
        bytes: &[u8],
    ) -> bool {
        let Ok(ip) = ipv6::parse(bytes, usize::from(frame.len) - link.len) else {
            return false;
        };
        // RFC 6980 section 5: never in fragments.
        let ipv6::Upper { protocol: next::ICMPV6, offset, fragment: None, .. } = ip.upper else {
            return false;
        };
        let inner = &bytes[offset..ip.total_len.min(bytes.len())];
        let place = SegmentPlace {
            offset: usize::from(frame.offset) + link.len + offset,
            len: ip.total_len - offset,
        };
        let sum =
            checksum::add(checksum::address(&ip.src.octets()), checksum::address(&ip.dst.octets()));
        let arrival = Arrival::new(link.src, &ip);
        self.icmpv6_checks(mem, frame.buf, sum, inner, place)
            && self.neighbour_input(now, &arrival, inner, place.len) == Some(true)
    }

    /// Whether the checksum of an ICMPv6 message is right.
    fn icmpv6_checks<M: Memory>(
        &self,
        mem: &M,
        buf: u32,
        addresses: u16,
        bytes: &[u8],
        place: SegmentPlace,
    ) -> bool {
        let pseudo = checksum::pseudo(addresses, next::ICMPV6, place.len);
        let sum = mem.sum(buf, place.offset, place.len);
        bytes.len() >= icmpv4::LEN && checksum::add(pseudo, sum) == 0xffff
    }

    /// Takes in a message of a neighbour or router on the link, with the right
    /// checksum; `None` when it is none, and otherwise whether it was for us
    /// alone.
    fn neighbour_input(
        &mut self,
        now: u64,
        arrival: &Arrival,
        bytes: &[u8],
        len: usize,
    ) -> Option<bool> {
        match bytes[0] {
            ndp::ROUTER_SOLICITATION..=ndp::REDIRECT => {
                Some(self.ndp_input(now, arrival, bytes, len))
            }
            mld::QUERY => {
                self.mld_input(now, arrival, bytes);
                Some(false)
            }
            _ => None,
        }
    }

    /// A whole datagram of a protocol that both families have, or IPv4's own.
    /// `inner` is the start of what lies behind `header_len` bytes of it.
    #[expect(clippy::too_many_arguments, reason = "a frame at its various layers")]
    pub(crate) fn datagram_input<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        frame: &RxFrame,
        datagram: &Datagram,
        protocol: u8,
        header_len: usize,
        inner: &[u8],
    ) -> Outcome {
        let place =
            SegmentPlace { offset: datagram.start + header_len, len: datagram.len - header_len };
        match protocol {
            ipv4::TCP => self.tcp_input(mem, now, frame, datagram, inner, place),
            ipv4::ICMP if !datagram.local.is_v6() => {
                self.icmp_input(mem, now, frame, datagram, inner, place)
            }
            next::ICMPV6 if datagram.local.is_v6() => {
                let fits = self.icmpv6_checks(mem, frame.buf, datagram.sum, inner, place);
                if !fits {
                    self.counters.drop_icmp += 1;
                    return Outcome::Consumed;
                }
                self.icmpv6_input(mem, now, frame, datagram, inner, place)
            }
            _ => {
                self.counters.drop_protocol += 1;
                if datagram.local.is_v6() {
                    return Outcome::Consumed;
                }
                let (kind, code) = (icmpv4::UNREACHABLE, icmpv4::PROTOCOL_UNREACHABLE);
                self.refuse(mem, now, frame.buf, datagram, [kind, code], 0)
            }
        }
    }
}
