//! ARP (RFC 826): neighbours with IPv4 addresses.

use core::net::{IpAddr, Ipv4Addr};

use super::Heard;
use crate::control::Control;
use crate::stack::Stack;
use crate::wire::arp::{self, Arp};
use crate::wire::ethernet::{self, Mac};
use crate::wire::ipv4;

impl Stack {
    /// Takes in an ARP message that concerns us or may do so; returns whether
    /// it was for us.
    pub(crate) fn arp_input(&mut self, now: u64, bytes: &[u8]) -> bool {
        let Some(message) = arp::parse(bytes) else {
            return false;
        };
        let Some(own) = self.addresses.v4() else {
            return false;
        };
        let ours = message.target == own;
        if message.sender == own && message.sender_mac != self.config.mac {
            // RFC 5227 section 2.4.
            self.counters.address_conflicts += 1;
        }
        let credible = ethernet::is_station(&message.sender_mac)
            && ipv4::is_host(message.sender)
            && message.sender != own
            && self.addresses.on_link(IpAddr::V4(message.sender));
        if !credible {
            if ours {
                self.counters.drop_arp += 1;
            }
            return ours;
        }
        let learned =
            self.learn(now, IpAddr::V4(message.sender), message.sender_mac, Heard::Answer);
        if ours && message.op == arp::REQUEST {
            self.queue_control(Control::ArpReply { to: message.sender_mac, ip: message.sender });
        } else if ours && !learned {
            self.counters.drop_arp += 1;
        }
        ours
    }

    /// A message of ours to `target`.
    pub(crate) fn arp_message(&self, op: u16, target_mac: Mac, target: Ipv4Addr) -> Arp {
        let sender = self.addresses.v4().unwrap_or(Ipv4Addr::UNSPECIFIED);
        Arp { op, sender_mac: self.config.mac, sender, target_mac, target }
    }
}
