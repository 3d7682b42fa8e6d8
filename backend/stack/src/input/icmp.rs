//! ICMP and ICMPv6: echo, errors about our flows, and errors about what others
//! sent us.

use paste_abi::Reason;

use super::Datagram;
use crate::bufs::Place;
use crate::checksum;
use crate::control::Control;
use crate::flow::{Key, Local, State};
use crate::frame::{Payload, RxFrame};
use crate::memory::Memory;
use crate::stack::{Outcome, Stack};
use crate::tcp::input::Place as SegmentPlace;
use crate::tcp::seq::Seq;
use crate::wire::ip::{Meaning, Octets, Report};
use crate::wire::{ethernet, icmp, icmpv6, ipv6};

/// The smallest path MTU that is believed of IPv4. RFC 1191 section 3 allows
/// 68, which would let a forged message make segments absurdly small.
const PATH_MTU_MIN: u16 = 552;

impl Stack {
    pub(super) fn icmp_input<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        frame: &RxFrame,
        datagram: &Datagram,
        bytes: &[u8],
        place: SegmentPlace,
    ) -> Outcome {
        let sum = mem.sum(frame.buf, place.offset, place.len);
        let Some(header) = bytes.first_chunk().filter(|_| sum == 0xffff) else {
            self.counters.drop_icmp += 1;
            return Outcome::Consumed;
        };
        match icmp::parse_error(bytes) {
            _ if header[..2] == [icmp::ECHO, 0] => {
                self.echo(now, frame.buf, datagram, *header, icmp::ECHO_REPLY, place)
            }
            Some(report) => {
                self.reported(mem, now, &report);
                Outcome::Consumed
            }
            None => {
                self.counters.drop_icmp += 1;
                Outcome::Consumed
            }
        }
    }

    /// Takes in a message with the right checksum that is not of neighbours.
    pub(super) fn icmpv6_input<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        frame: &RxFrame,
        datagram: &Datagram,
        bytes: &[u8],
        place: SegmentPlace,
    ) -> Outcome {
        match (bytes.first_chunk(), icmpv6::parse_error(bytes)) {
            (Some(header), _) if header[..2] == [icmpv6::ECHO, 0] => {
                self.echo(now, frame.buf, datagram, *header, icmpv6::ECHO_REPLY, place)
            }
            (_, Some(report)) => {
                self.reported(mem, now, &report);
                Outcome::Consumed
            }
            _ => {
                self.counters.drop_icmp += 1;
                Outcome::Consumed
            }
        }
    }

    /// Answers an echo request (RFC 1122 section 3.2.2.6, RFC 4443 section 4.2)
    /// out of its own buffer.
    fn echo(
        &mut self,
        now: u64,
        buf: u32,
        datagram: &Datagram,
        mut header: [u8; icmp::LEN],
        reply: u8,
        place: SegmentPlace,
    ) -> Outcome {
        // One that came in fragments may be too long to go back in one.
        let fits = self.ip_len(datagram.local) + place.len <= usize::from(self.config.mtu);
        if !fits {
            self.counters.drop_icmp += 1;
            return Outcome::Consumed;
        }
        if !self.echo_limit.allows(now) {
            self.counters.rate_limited += 1;
            return Outcome::Consumed;
        }
        // The type changes, and the checksum follows (RFC 1624). A pseudo-header
        // has the same sum both ways.
        let old = !u16::from_be_bytes([header[2], header[3]]);
        let without = checksum::sub(old, u16::from(header[0]) << 8);
        let new = !checksum::add(without, u16::from(reply) << 8);
        header[0] = reply;
        header[2..4].copy_from_slice(&new.to_be_bytes());
        let (offset, len) = (place.offset + icmp::LEN, place.len - icmp::LEN);
        let data = Payload { buf, offset: offset as u16, len: len as u16 };
        self.answer(datagram, header, data)
    }

    /// Tells the sender of a datagram that it cannot be taken in, and quotes as
    /// much of it as is allowed, out of its own buffer. The caller has seen to
    /// it that it is no error itself, nor sent to a group (RFC 1122 section
    /// 3.2.2, RFC 4443 section 2.4 (e)).
    pub(crate) fn refuse<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        buf: u32,
        datagram: &Datagram,
        [kind, code]: [u8; 2],
        word: u32,
    ) -> Outcome {
        if !self.error_limit.allows(now) {
            self.counters.rate_limited += 1;
            return Outcome::Consumed;
        }
        let v6 = datagram.local.is_v6();
        let quote_max = if v6 { icmpv6::QUOTE_MAX } else { icmp::QUOTE_MAX };
        let len = datagram.len.min(quote_max);
        let mut header = [kind, code, 0, 0, 0, 0, 0, 0];
        header[4..8].copy_from_slice(&word.to_be_bytes());
        let quote = mem.sum(buf, datagram.start, len);
        let mut sum = checksum::add(checksum::sum(&header), quote);
        if v6 {
            let pseudo = checksum::pseudo(datagram.sum, ipv6::next::ICMPV6, icmp::LEN + len);
            sum = checksum::add(sum, pseudo);
        }
        header[2..4].copy_from_slice(&(!sum).to_be_bytes());
        let quote = Payload { buf, offset: datagram.start as u16, len: len as u16 };
        self.answer(datagram, header, quote)
    }

    /// Tells the sender of an IPv6 datagram what is wrong with its headers,
    /// which start in `bytes`, unless it carries an error.
    #[expect(clippy::too_many_arguments, reason = "a frame at its various layers")]
    pub(super) fn parameter_problem<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        buf: u32,
        datagram: &Datagram,
        bytes: &[u8],
        code: u8,
        pointer: u32,
    ) -> Outcome {
        let carries_error = match ipv6::find_upper(bytes) {
            Some((ipv6::next::ICMPV6, at)) => {
                bytes.get(at).is_none_or(|&kind| kind < icmpv6::INFORMATION)
            }
            Some(_) => false,
            // It may.
            None => true,
        };
        if carries_error {
            return Outcome::Consumed;
        }
        self.refuse(mem, now, buf, datagram, [icmpv6::PARAMETER_PROBLEM, code], pointer)
    }

    /// Sends a message back to where a datagram came from, with data that is
    /// part of its buffer.
    fn answer(&mut self, to: &Datagram, header: [u8; icmp::LEN], data: Payload) -> Outcome {
        let Datagram { from, local, remote, .. } = *to;
        if !ethernet::is_station(&from)
            || !self.queue_control(Control::Icmp { to: from, local, remote, header, data })
        {
            return Outcome::Consumed;
        }
        let meta = self.bufs.get_mut(data.buf);
        meta.place = Place::Pinned;
        meta.pins = 1;
        Outcome::Held
    }

    /// Which of our addresses this is.
    fn local(&self, address: &Octets) -> Option<Local> {
        [Local::V4, Local::V6, Local::V6Link]
            .into_iter()
            .find(|&local| self.addresses.octets(local) == address)
    }

    /// A router or the peer's host could not deliver a segment. Believed only
    /// when it quotes a sequence number that is in flight (RFC 5927 section 4.1).
    fn reported<M: Memory>(&mut self, mem: &mut M, now: u64, report: &Report) {
        let found = self.local(&report.src).and_then(|local| {
            let key = Key::new(local, report.dst, report.dst_port, report.src_port);
            self.find_flow(&key, self.key_hash(&key))
        });
        let seq = Seq(report.seq);
        let Some(index) = found.filter(|&index| {
            let flow = &self.flows[index];
            !seq.before(flow.snd_una) && seq.before(flow.snd_nxt)
        }) else {
            self.counters.drop_icmp += 1;
            return;
        };
        match report.meaning {
            Meaning::TooBig(mtu) => {
                let mtu = u16::try_from(mtu).unwrap_or(u16::MAX);
                if !self.flows[index].key.local.is_v6() {
                    self.path_mtu(now, index, mtu.max(PATH_MTU_MIN));
                } else if mtu >= ipv6::MTU_MIN {
                    self.path_mtu(now, index, mtu);
                } else {
                    // RFC 8201 section 4.
                    self.counters.drop_icmp += 1;
                }
            }
            // RFC 5461 section 4.1: what RFC 1122 section 4.2.3.9 has as hard
            // errors ends only connections that are being opened.
            Meaning::Hard if self.flows[index].state == State::SynSent => {
                self.counters.icmp_errors_in += 1;
                self.terminate(mem, index, Some(Reason::Unreachable));
            }
            Meaning::Hard | Meaning::Soft => self.counters.icmp_soft_errors_in += 1,
        }
    }
}
