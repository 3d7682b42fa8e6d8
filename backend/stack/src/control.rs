//! Frames that belong to no flow: ARP, ICMP, and segments to strangers. They wait
//! in a short queue; what does not fit is dropped, as the network would.

use core::net::Ipv4Addr;

use crate::checksum;
use crate::config::SEC;
use crate::flow::Key;
use crate::frame::{Origin, Payload, TxBatch};
use crate::memory::Memory;
use crate::stack::Stack;
use crate::wire::arp::{self, Arp};
use crate::wire::ethernet::{self, Mac};
use crate::wire::ip::ecn;
use crate::wire::tcp;
use crate::wire::{icmp, ipv4};

/// Frames that may wait.
pub(crate) const CONTROL_MAX: usize = 256;

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
    /// A segment without payload: a RST, or an answer that carries a cookie.
    Segment {
        to: Mac,
        key: Key,
        header: tcp::Header,
    },
    /// A reply made of the request's own buffer: only the headers are new.
    EchoReply {
        to: Mac,
        ip: Ipv4Addr,
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
    pub(crate) fn transmit_control<M: Memory>(&mut self, mem: &mut M, out: &mut TxBatch) {
        while out.room() > 0 {
            let Some(control) = self.control.pop_front() else {
                return;
            };
            match control {
                Control::ArpRequest { to, target } => {
                    let message = self.arp_request(target);
                    self.send_arp(out, &to, &message);
                    self.counters.arp_requests_out += 1;
                }
                Control::ArpReply { to, ip } => {
                    let message = Arp {
                        op: arp::REPLY,
                        sender_mac: self.config.mac,
                        sender: self.config.address,
                        target_mac: to,
                        target: ip,
                    };
                    self.send_arp(out, &to, &message);
                    self.counters.arp_replies_out += 1;
                }
                Control::Segment { to, key, header } => self.send_segment(out, &to, &key, &header),
                Control::EchoReply { to, ip, header, data } => {
                    self.send_echo(mem, out, &to, ip, &header, data);
                }
            }
            self.counters.frames_out += 1;
        }
    }

    fn send_arp(&self, out: &mut TxBatch, to: &Mac, message: &Arp) {
        let Some(frame) = out.push(Origin::Stack) else {
            return;
        };
        let head = frame.head_mut(ethernet::LEN + arp::LEN);
        ethernet::write(head, to, &self.config.mac, ethernet::ARP);
        arp::write(&mut head[ethernet::LEN..], message);
    }

    fn send_segment(&mut self, out: &mut TxBatch, to: &Mac, key: &Key, header: &tcp::Header) {
        let Some(frame) = out.push(Origin::Stack) else {
            return;
        };
        let len = tcp::header_len(&header.options);
        let head = frame.head_mut(ethernet::LEN + ipv4::LEN + len);
        ethernet::write(head, to, &self.config.mac, ethernet::IPV4);
        let (ours, remote) = (self.config.address, key.remote_v4());
        ipv4::write(&mut head[ethernet::LEN..], ours, remote, ipv4::TCP, ecn::NOT_ECT, len);
        let segment = &mut head[ethernet::LEN + ipv4::LEN..];
        tcp::write(segment, header);
        let pseudo = checksum::pseudo(ours, remote, ipv4::TCP, len as u16);
        let sum = checksum::add(pseudo, checksum::sum(segment));
        segment[tcp::CSUM_OFFSET..tcp::CSUM_OFFSET + 2].copy_from_slice(&(!sum).to_be_bytes());
        self.counters.segments_out += 1;
    }

    fn send_echo<M: Memory>(
        &mut self,
        mem: &mut M,
        out: &mut TxBatch,
        to: &Mac,
        ip: Ipv4Addr,
        header: &[u8; icmp::LEN],
        data: Payload,
    ) {
        let Some(frame) = out.push(Origin::Stack) else {
            return;
        };
        let head = frame.head_mut(ethernet::LEN + ipv4::LEN + icmp::LEN);
        ethernet::write(head, to, &self.config.mac, ethernet::IPV4);
        let len = icmp::LEN + usize::from(data.len);
        let ours = self.config.address;
        ipv4::write(&mut head[ethernet::LEN..], ours, ip, ipv4::ICMP, ecn::NOT_ECT, len);
        head[ethernet::LEN + ipv4::LEN..].copy_from_slice(header);
        self.counters.echo_replies_out += 1;
        if data.len == 0 {
            self.unpin(mem, data.buf);
        } else {
            frame.payload = Some(data);
        }
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
