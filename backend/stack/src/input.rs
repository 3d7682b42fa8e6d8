//! Arrival: from an Ethernet frame to a TCP segment, an ICMP message or an ARP
//! message, judged from one copy of the headers.

use crate::bufs::Place;
use crate::checksum;
use crate::control::Control;
use crate::flow::{Key, State};
use crate::frame::{Payload, RxFrame};
use crate::memory::Memory;
use crate::stack::{Outcome, Stack};
use crate::tcp::input::Place as SegmentPlace;
use crate::tcp::seq::Seq;
use crate::wire::HEADER_COPY;
use crate::wire::ethernet::{self, Mac};
use crate::wire::icmp::{self, Unreachable};
use crate::wire::ipv4::{self, Ipv4};
use paste_abi::Reason;

/// The smallest path MTU that is believed. RFC 1191 section 3 allows 68, which
/// would let a forged message make segments absurdly small.
const PATH_MTU_MIN: u16 = 552;

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
        self.release(now, frame.buf);
        let mut copy = [0; HEADER_COPY];
        let bytes = &mut copy[..usize::from(frame.len).min(HEADER_COPY)];
        mem.read(frame.buf, usize::from(frame.offset), bytes);
        let bytes = &*bytes;
        let Some(link) = ethernet::parse(bytes) else {
            self.counters.drop_short += 1;
            return Outcome::Consumed;
        };
        let rest = &bytes[ethernet::LEN..];
        match link.ethertype {
            ethernet::ARP if self.arp_input(now, rest) => Outcome::Consumed,
            ethernet::IPV4
                if link.dst == self.config.mac
                    && ipv4::destination(rest) == Some(self.config.address) =>
            {
                self.ip_input(mem, now, frame, &link.src, rest)
            }
            _ => {
                self.counters.foreign += 1;
                Outcome::Foreign
            }
        }
    }

    fn ip_input<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        frame: &RxFrame,
        from: &Mac,
        bytes: &[u8],
    ) -> Outcome {
        let ip = match ipv4::parse(bytes, usize::from(frame.len) - ethernet::LEN) {
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
        // Nobody sends fragments to a host that sets don't-fragment and offers
        // an MSS; reassembly would be a door for little use.
        if ip.fragment {
            self.counters.drop_fragment += 1;
            return Outcome::Consumed;
        }
        // RFC 1122 section 3.2.1.3.
        let broadcast = self.config.prefix_len < 31
            && self.on_link(ip.src)
            && ip.src.to_bits() | self.netmask == u32::MAX;
        if !ipv4::is_host(ip.src) || ip.src == self.config.address || broadcast {
            self.counters.drop_bad_source += 1;
            return Outcome::Consumed;
        }
        let place = SegmentPlace {
            offset: usize::from(frame.offset) + ethernet::LEN + ip.header_len,
            len: ip.total_len - ip.header_len,
        };
        // The copy may reach into link padding or end before the datagram.
        let end = ip.total_len.min(bytes.len());
        let inner = &bytes[ip.header_len..end];
        match ip.protocol {
            ipv4::TCP => self.tcp_input(mem, now, frame, from, &ip, inner, place),
            ipv4::ICMP => self.icmp_input(mem, now, frame, from, &ip, inner, place),
            _ => {
                self.counters.drop_protocol += 1;
                Outcome::Consumed
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a frame at its various layers")]
    fn icmp_input<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        frame: &RxFrame,
        from: &Mac,
        ip: &Ipv4,
        bytes: &[u8],
        place: SegmentPlace,
    ) -> Outcome {
        let Some(&header) = bytes.first_chunk::<{ icmp::LEN }>() else {
            self.counters.drop_icmp += 1;
            return Outcome::Consumed;
        };
        let (data_offset, data_len) = (place.offset + icmp::LEN, place.len - icmp::LEN);
        let data = mem.sum(frame.buf, data_offset, data_len);
        if checksum::add(checksum::sum(&header), data) != 0xffff {
            self.counters.drop_icmp += 1;
            return Outcome::Consumed;
        }
        if header[0] == icmp::ECHO && header[1] == 0 {
            return self.echo(now, frame, from, ip, header, data_offset, data_len);
        }
        match icmp::parse_unreachable(bytes) {
            Some(message) => self.unreachable(mem, now, &message),
            None => self.counters.drop_icmp += 1,
        }
        Outcome::Consumed
    }

    /// Answers an echo request (RFC 1122 section 3.2.2.6) out of its own buffer.
    #[expect(clippy::too_many_arguments, reason = "a frame at its various layers")]
    fn echo(
        &mut self,
        now: u64,
        frame: &RxFrame,
        from: &Mac,
        ip: &Ipv4,
        mut header: [u8; icmp::LEN],
        offset: usize,
        len: usize,
    ) -> Outcome {
        if !self.echo_limit.allows(now) || !ethernet::is_station(from) {
            self.counters.rate_limited += 1;
            return Outcome::Consumed;
        }
        // The type goes from 8 to 0, and the checksum follows (RFC 1624).
        header[0] = icmp::ECHO_REPLY;
        let old = u16::from_be_bytes([header[2], header[3]]);
        let new = !checksum::sub(!old, u16::from(icmp::ECHO) << 8);
        header[2..4].copy_from_slice(&new.to_be_bytes());
        let data = Payload { buf: frame.buf, offset: offset as u16, len: len as u16 };
        if !self.queue_control(Control::EchoReply { to: *from, ip: ip.src, header, data }) {
            return Outcome::Consumed;
        }
        let meta = self.bufs.get_mut(frame.buf);
        meta.place = Place::Pinned;
        meta.pins = 1;
        Outcome::Held
    }

    /// A router or the peer's host could not deliver a segment. Believed only
    /// when it quotes a sequence number that is in flight (RFC 5927 section 4.1).
    fn unreachable<M: Memory>(&mut self, mem: &mut M, now: u64, message: &Unreachable) {
        let key = Key::v4(message.dst, message.dst_port, message.src_port);
        let found = if message.src == self.config.address {
            self.find_flow(&key, self.hash(&key.bytes()))
        } else {
            None
        };
        let seq = Seq(message.seq);
        let Some(index) = found.filter(|&i| {
            let flow = &self.flows[i];
            !seq.before(flow.snd_una) && seq.before(flow.snd_nxt)
        }) else {
            self.counters.drop_icmp += 1;
            return;
        };
        if message.code == icmp::FRAGMENTATION_NEEDED {
            self.path_mtu(now, index, message.mtu.max(PATH_MTU_MIN));
        } else if self.flows[index].state == State::SynSent && matches!(message.code, 2 | 3) {
            // RFC 1122 section 4.2.3.9 has these as hard errors; RFC 5461
            // section 4.1 limits that to connections that are being opened.
            self.counters.icmp_errors_in += 1;
            self.terminate(mem, index, Some(Reason::Unreachable));
        }
    }
}
