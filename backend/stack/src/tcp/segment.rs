//! The frame of a planned segment: Ethernet, IP and TCP headers in front of a
//! payload that lies in its buffer. Knows how a segment is written; what is
//! sent, and when, is decided in [`crate::tcp::output`].

use crate::bufs::Told;
use crate::checksum;
use crate::control::HOP_LIMIT;
use crate::flow::Key;
use crate::frame::{HEAD_MAX, Origin, Payload, TxBatch, TxCsum};
use crate::memory::Memory;
use crate::stack::{Secret, Stack};
use crate::tcp::output::{Plan, Why};
use crate::tcp::seq::Seq;
use crate::wire::tcp::{self, Header, Options, Timestamps, flag};
use crate::wire::{ethernet, ip, ipv4};

/// Segments of a congestion window from which on they may go as one packet: the
/// initial window (RFC 6928 section 2).
const JOINED_WINDOW: u32 = 10;

impl Stack {
    /// The IP header of a flow's segments. The label of an IPv6 flow is the
    /// same for all of them, and says nothing else (RFC 6437 section 3).
    #[inline]
    pub(crate) fn segment_header<'a>(&'a self, key: &'a Key, ecn: u8) -> ip::Header<'a> {
        let v6 = key.local.is_v6();
        ip::Header {
            src: self.addresses.octets(key.local),
            dst: key.remote_octets(),
            sum: checksum::add(
                self.addresses.sum(key.local),
                checksum::address(key.remote_octets()),
            ),
            v6,
            protocol: ipv4::TCP,
            ecn,
            hop_limit: HOP_LIMIT,
            label: if v6 { self.secret(Secret::FlowLabel, key, &[]) } else { 0 },
        }
    }

    /// Writes the frame of a planned segment.
    pub(crate) fn write_segment<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        index: u32,
        mac: &ethernet::Mac,
        plan: &Plan,
        out: &mut TxBatch,
    ) {
        let syn = plan.flags & flag::SYN != 0;
        let ack = match plan.why {
            Why::Ack => self.ack_number(index),
            _ => self.flows[index].rcv_nxt,
        };
        let window = if plan.why == Why::Reset { 0 } else { self.advertise(index, ack, !syn) };
        let flow = &self.flows[index];
        let acks = plan.flags & flag::ACK != 0;
        let mut header = Header {
            src_port: flow.key.local_port,
            dst_port: flow.key.remote_port,
            seq: plan.seq,
            ack: if acks { ack } else { Seq(0) },
            flags: plan.flags | self.ecn_flags(flow, plan.flags),
            window,
            options: Options::default(),
        };
        let options = &mut header.options;
        if flow.timestamps() {
            let echo = if acks { flow.ts_recent } else { 0 };
            options.timestamps = Some(Timestamps { value: flow.timestamp(now), echo });
        }
        if syn {
            options.mss = Some(self.base_mss(&flow.key));
            // An answer offers a scale only if the SYN did (RFC 7323 section
            // 2.2); without one `rcv_scale` is zero, as is a scale of nothing.
            options.scale = (!acks || flow.peer_scales()).then_some(flow.rcv_scale);
            options.sack_permitted = flow.sack();
        }
        let payload_len = plan.payload.map_or(0, |p| usize::from(p.len));
        if flow.tells_blocks() && acks && !syn && plan.why != Why::Reset {
            options.sack = self.sack_blocks(index);
            if payload_len > 0 {
                // What is sent again was cut when there was perhaps less to tell.
                let room = usize::from(flow.mss).saturating_sub(payload_len);
                options.sack.truncate(tcp::sack_blocks_within(room));
            }
        }
        // With a small window every acknowledgement counts, and a receiver gives more of
        // them for segments that are pushed one by one.
        let wide = flow.congestion.window() >= JOINED_WINDOW * u32::from(flow.mss);
        let mss = if wide && flow.is_calm() { self.segment_room(flow) } else { 0 };
        let key = &flow.key;
        let ip = self.segment_header(key, plan.ecn);
        let link_len = ethernet::header_len(self.config.vlan);
        let segment_at = link_len + ip.len();
        let header_len = segment_at + tcp::header_len(&header.options);

        let Some(frame) = out.push(Origin::Stack) else {
            return;
        };
        // An alias is the stack's own affair.
        let lying = plan.payload.map(|p| Payload { buf: self.bufs.real(p.buf), ..p });
        // The header may lie in front of the payload if that is headroom and
        // not payload of an earlier segment, nobody else may read the buffer,
        // and the port is not just reading it.
        let in_buffer = self.config.header_in_buffer
            && plan.payload.is_some_and(|p| {
                let meta = self.bufs.get(p.buf);
                p.offset == meta.offset
                    && usize::from(p.offset) >= header_len
                    && !matches!(meta.told, Told::Kept | Told::Shared)
                    && meta.pins == 0
            });
        frame.mss = mss;
        frame.csum = self
            .config
            .tx_csum_offload
            .then_some(TxCsum { start: segment_at as u16, offset: tcp::CSUM_OFFSET as u16 });
        let mut local = [0; HEAD_MAX];
        let head = if in_buffer { &mut local[..header_len] } else { frame.head_mut(header_len) };

        let segment_len = header_len - segment_at + payload_len;
        self.write_link(head, mac, ip.v6);
        ip.write(&mut head[link_len..], segment_len);
        let segment = &mut head[segment_at..];
        let header_sum = tcp::write(segment, &header);
        let pseudo = checksum::pseudo(ip.sum, ipv4::TCP, segment_len);
        let field = if self.config.tx_csum_offload {
            pseudo
        } else {
            let payload = lying.map_or(0, |p| mem.sum(p.buf, usize::from(p.offset), payload_len));
            !checksum::add(checksum::add(pseudo, header_sum), payload)
        };
        segment[tcp::CSUM_OFFSET..tcp::CSUM_OFFSET + 2].copy_from_slice(&field.to_be_bytes());

        frame.payload = lying;
        if let Some(payload) = lying {
            self.bufs.get_mut(payload.buf).pins += 1;
            if in_buffer {
                let offset = payload.offset - header_len as u16;
                mem.write(payload.buf, usize::from(offset), &local[..header_len]);
                frame.payload = Some(Payload {
                    buf: payload.buf,
                    offset,
                    len: payload.len + header_len as u16,
                });
            }
        }
        if acks {
            self.acknowledged(index, ack, payload_len == 0);
        }
    }
}
