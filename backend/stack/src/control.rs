//! Frames that belong to no flow: ARP, NDP, ICMP, and segments to strangers. They
//! wait in a short queue; what does not fit is dropped, as the network would.

use core::net::{Ipv4Addr, Ipv6Addr};

use crate::checksum;
use crate::config::SEC;
use crate::flow::{Key, Local};
use crate::frame::{Origin, Payload, TxBatch};
use crate::memory::Memory;
use crate::stack::Stack;
use crate::wire::arp;
use crate::wire::ethernet::{self, Mac};
use crate::wire::ip::{Header, Octets, ecn};
use crate::wire::ndp::{self, Advertisement, Message};
use crate::wire::tcp;
use crate::wire::{icmp, icmpv6, ipv4, ipv6, mld};

/// Frames that may wait.
pub(crate) const CONTROL_MAX: usize = 256;
/// The hop limit of datagrams (RFC 1700: the default TTL is 64).
pub(crate) const HOP_LIMIT: u8 = 64;

/// A frame that belongs to no flow.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Control {
    ArpRequest {
        to: Mac,
        target: Ipv4Addr,
    },
    ArpReply {
        to: Mac,
        ip: Ipv4Addr,
    },
    /// Asks for a neighbour: all who may be it, or one that is known.
    Solicit {
        to: Option<Mac>,
        target: Ipv6Addr,
    },
    /// Asks whether another has our address.
    Probe {
        local: Local,
    },
    /// Says that we have our address, to one or to all nodes.
    Advertise {
        to: Mac,
        ip: Ipv6Addr,
        local: Local,
    },
    /// Asks for a router.
    SolicitRouter,
    /// Says which groups we listen to. `change` if we have just begun to.
    Listen {
        change: bool,
    },
    /// A segment without payload: a RST, or an answer that carries a cookie.
    Segment {
        to: Mac,
        key: Key,
        header: tcp::Header,
    },
    /// An ICMP message made of the buffer that it answers: only the headers are
    /// new.
    Icmp {
        to: Mac,
        local: Local,
        remote: Octets,
        header: [u8; icmp::LEN],
        data: Payload,
    },
}

/// A limit on how often something is done: so many a second, with a burst of
/// as much as a second's worth. (The generic cell rate algorithm.)
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    interval: u64,
    next: u64,
}

impl Limit {
    pub(crate) fn per_second(rate: u32) -> Limit {
        Limit { interval: SEC.checked_div(u64::from(rate)).unwrap_or(u64::MAX), next: 0 }
    }

    /// Whether it may be done now, and if so counts it.
    pub(crate) fn allows(&mut self, now: u64) -> bool {
        if self.interval == u64::MAX || self.next > now.saturating_add(SEC) {
            return false;
        }
        self.next = self.next.max(now).saturating_add(self.interval);
        true
    }
}

impl Stack {
    /// Queues a frame; returns whether there was room.
    pub(crate) fn queue_control(&mut self, control: Control) -> bool {
        if self.control.len() >= CONTROL_MAX {
            self.counters.drop_control_full += 1;
            return false;
        }
        self.control.push_back(control);
        true
    }

    /// Appends the frames that wait, as far as there is room.
    #[inline]
    pub(crate) fn transmit_control<M: Memory>(&mut self, mem: &mut M, now: u64, out: &mut TxBatch) {
        while out.room() > 0 {
            let Some(control) = self.control.pop_front() else {
                return;
            };
            match control {
                Control::ArpRequest { to, target } => {
                    self.send_arp(out, &to, arp::REQUEST, [0; 6], target);
                    self.counters.arp_requests_out += 1;
                }
                Control::ArpReply { to, ip } => {
                    self.send_arp(out, &to, arp::REPLY, to, ip);
                    self.counters.arp_replies_out += 1;
                }
                Control::Segment { to, key, header } => self.send_segment(out, &to, &key, &header),
                Control::Icmp { to, local, remote, header, data } => {
                    self.send_icmp(mem, out, &to, local, &remote, &header, data);
                }
                Control::Listen { change } => self.send_report(now, out, change),
                Control::Solicit { .. }
                | Control::Probe { .. }
                | Control::Advertise { .. }
                | Control::SolicitRouter => self.send_ndp(now, out, control),
            }
            self.counters.frames_out += 1;
        }
    }

    /// Writes the Ethernet header of a frame of ours, and returns its length.
    #[inline]
    pub(crate) fn write_link(&self, head: &mut [u8], to: &Mac, v6: bool) -> usize {
        let ethertype = if v6 { ethernet::IPV6 } else { ethernet::IPV4 };
        ethernet::write(head, to, &self.config.mac, self.config.vlan, ethertype)
    }

    fn send_arp(&self, out: &mut TxBatch, to: &Mac, op: u16, target_mac: Mac, target: Ipv4Addr) {
        let Some(frame) = out.push(Origin::Stack) else {
            return;
        };
        let (mac, vlan) = (&self.config.mac, self.config.vlan);
        let head = frame.head_mut(ethernet::header_len(vlan) + arp::LEN);
        let at = ethernet::write(head, to, mac, vlan, ethernet::ARP);
        arp::write(&mut head[at..], &self.arp_message(op, target_mac, target));
    }

    fn send_segment(&mut self, out: &mut TxBatch, to: &Mac, key: &Key, header: &tcp::Header) {
        let Some(frame) = out.push(Origin::Stack) else {
            return;
        };
        let len = tcp::header_len(&header.options);
        let ip = self.segment_header(key, ecn::NOT_ECT);
        let link_len = ethernet::header_len(self.config.vlan);
        let head = frame.head_mut(link_len + ip.len() + len);
        self.write_link(head, to, ip.v6);
        ip.write(&mut head[link_len..], len);
        let segment = &mut head[link_len + ip.len()..];
        let header_sum = tcp::write(segment, header);
        let sum = checksum::add(checksum::pseudo(ip.sum, ipv4::TCP, len), header_sum);
        segment[tcp::CSUM_OFFSET..tcp::CSUM_OFFSET + 2].copy_from_slice(&(!sum).to_be_bytes());
        self.counters.segments_out += 1;
    }

    #[expect(clippy::too_many_arguments, reason = "a frame at its various layers")]
    fn send_icmp<M: Memory>(
        &mut self,
        mem: &mut M,
        out: &mut TxBatch,
        to: &Mac,
        local: Local,
        remote: &Octets,
        header: &[u8; icmp::LEN],
        data: Payload,
    ) {
        let Some(frame) = out.push(Origin::Stack) else {
            return;
        };
        let v6 = local.is_v6();
        let ip = Header {
            src: self.addresses.octets(local),
            dst: remote,
            sum: checksum::add(self.addresses.sum(local), checksum::address(remote)),
            v6,
            protocol: if v6 { ipv6::next::ICMPV6 } else { ipv4::ICMP },
            ecn: ecn::NOT_ECT,
            hop_limit: HOP_LIMIT,
            label: 0,
        };
        let link_len = ethernet::header_len(self.config.vlan);
        let head = frame.head_mut(link_len + ip.len() + icmp::LEN);
        self.write_link(head, to, v6);
        ip.write(&mut head[link_len..], icmp::LEN + usize::from(data.len));
        head[link_len + ip.len()..].copy_from_slice(header);
        if header[0] == if v6 { icmpv6::ECHO_REPLY } else { icmp::ECHO_REPLY } {
            self.counters.echo_replies_out += 1;
        } else {
            self.counters.icmp_errors_out += 1;
        }
        if data.len == 0 {
            self.unpin(mem, data.buf);
        } else {
            frame.payload = Some(data);
        }
    }

    fn send_ndp(&mut self, now: u64, out: &mut TxBatch, control: Control) {
        let mac = Some(self.config.mac);
        let tentative = self.ndp.is_tentative(now);
        let group = |ip: Ipv6Addr| ipv6::group_mac(&ip.octets());
        let unspecified = [0; 16];
        let (to, src, dst, message) = match control {
            Control::Solicit { to, target } => {
                let local = if target.is_unicast_link_local() { Local::V6Link } else { Local::V6 };
                // One that is known is asked directly (RFC 4861 section 7.3.3).
                let dst = if to.is_some() { target } else { ipv6::solicited_node(target) };
                let message = Message::Solicitation { target, mac };
                self.counters.ndp_solicitations_out += 1;
                (to.unwrap_or(group(dst)), *self.addresses.octets(local), dst, message)
            }
            Control::Probe { local } => {
                let target = Ipv6Addr::from_octets(*self.addresses.octets(local));
                let dst = ipv6::solicited_node(target);
                self.counters.ndp_solicitations_out += 1;
                (group(dst), unspecified, dst, Message::Solicitation { target, mac: None })
            }
            Control::Advertise { to, ip, local } => {
                let src = *self.addresses.octets(local);
                let message = Message::Advertisement(Advertisement {
                    target: Ipv6Addr::from_octets(src),
                    mac,
                    router: false,
                    // To all nodes, it answers one that has no address yet
                    // (RFC 4861 section 7.2.4).
                    solicited: ip != ipv6::ALL_NODES,
                    // RFC 4429 section 3.3.
                    overrides: !tentative,
                });
                self.counters.ndp_advertisements_out += 1;
                (to, src, ip, message)
            }
            _ => {
                let (src, mac) = if tentative {
                    (unspecified, None)
                } else {
                    (*self.addresses.octets(Local::V6Link), mac)
                };
                let dst = ipv6::ALL_ROUTERS;
                (group(dst), src, dst, Message::RouterSolicitation { mac })
            }
        };
        let mut bytes = [0; ndp::LEN_MAX];
        let len = ndp::write(&mut bytes, &message);
        self.send_icmpv6(out, &to, &src, &dst.octets(), ndp::HOP_LIMIT, &[], &mut bytes[..len]);
    }

    fn send_report(&mut self, now: u64, out: &mut TxBatch, change: bool) {
        let Some(own) = self.addresses.v6() else {
            return;
        };
        let mut bytes = [0; mld::REPORT_LEN];
        mld::write_report(&mut bytes, &own.map(ipv6::solicited_node), change);
        let tentative = self.ndp.is_tentative(now);
        // RFC 3590 section 4.
        let src = if tentative { [0; 16] } else { *self.addresses.octets(Local::V6Link) };
        let dst = ipv6::ALL_MLD_ROUTERS.octets();
        let to = ipv6::group_mac(&dst);
        self.send_icmpv6(out, &to, &src, &dst, mld::HOP_LIMIT, &mld::HOP_BY_HOP, &mut bytes);
        self.counters.mld_reports_out += 1;
    }

    /// Sends a message whose checksum is still missing, behind an extension
    /// header if there is one.
    #[expect(clippy::too_many_arguments, reason = "a frame at its various layers")]
    fn send_icmpv6(
        &self,
        out: &mut TxBatch,
        to: &Mac,
        src: &Octets,
        dst: &Octets,
        hop_limit: u8,
        extension: &[u8],
        message: &mut [u8],
    ) {
        let Some(frame) = out.push(Origin::Stack) else {
            return;
        };
        let sum = checksum::add(checksum::address(src), checksum::address(dst));
        let pseudo = checksum::pseudo(sum, ipv6::next::ICMPV6, message.len());
        let field = !checksum::add(pseudo, checksum::sum(message));
        message[icmpv6::CSUM_OFFSET..icmpv6::CSUM_OFFSET + 2].copy_from_slice(&field.to_be_bytes());
        let protocol =
            if extension.is_empty() { ipv6::next::ICMPV6 } else { ipv6::next::HOP_BY_HOP };
        let ecn = ecn::NOT_ECT;
        let ip = Header { src, dst, sum, v6: true, protocol, ecn, hop_limit, label: 0 };
        let link_len = ethernet::header_len(self.config.vlan);
        let payload_len = extension.len() + message.len();
        let head = frame.head_mut(link_len + ip.len() + payload_len);
        self.write_link(head, to, true);
        ip.write(&mut head[link_len..], payload_len);
        let (first, second) = head[link_len + ip.len()..].split_at_mut(extension.len());
        first.copy_from_slice(extension);
        second.copy_from_slice(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_lets_a_burst_through_and_then_its_rate() {
        let mut limit = Limit::per_second(10);
        let burst = (0..100).filter(|_| limit.allows(5 * SEC)).count();
        assert_eq!(burst, 11);
        assert!(!limit.allows(5 * SEC));
        assert!(limit.allows(5 * SEC + SEC / 10 + 1));
        assert!(!Limit::per_second(0).allows(SEC));
    }
}
