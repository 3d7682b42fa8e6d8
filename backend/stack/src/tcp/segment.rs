//! The frame of a planned segment: Ethernet, IP and TCP headers in front of a
//! payload that lies in its buffer. Knows how a segment is written; what is
//! sent, and when, is decided in [`crate::tcp::output`].

use crate::checksum;
use crate::frame::{HEAD_MAX, Origin, Payload, TxBatch, TxCsum};
use crate::memory::Memory;
use crate::stack::Stack;
use crate::tcp::output::{Plan, Why};
use crate::tcp::seq::Seq;
use crate::wire::tcp::{self, Header, Options, Timestamps, flag};
use crate::wire::{ethernet, ipv4};

impl Stack {
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
        let window = if plan.why == Why::Reset { 0 } else { self.advertise(index, !syn) };
        let flow = &self.flows[index];
        let acks = plan.flags & flag::ACK != 0;
        let mut options = Options::default();
        if flow.timestamps {
            let echo = if acks { flow.ts_recent } else { 0 };
            options.timestamps = Some(Timestamps { value: flow.timestamp(now), echo });
        }
        if syn {
            options.mss = Some(self.base_mss(&flow.key));
            // An answer offers a scale only if the SYN did (RFC 7323 section
            // 2.2); without one `rcv_scale` is zero, as is a scale of nothing.
            options.scale = (!acks || flow.peer_scales).then_some(flow.rcv_scale);
            options.sack_permitted = flow.sack;
        }
        if acks && !syn && plan.why != Why::Reset {
            options.sack = self.sack_blocks(index);
        }
        let header = Header {
            src_port: flow.key.local_port,
            dst_port: flow.key.remote_port,
            seq: plan.seq,
            ack: if acks { flow.rcv_nxt } else { Seq(0) },
            flags: plan.flags | self.ecn_flags(flow, plan.flags),
            window,
            options,
        };
        let remote = flow.key.remote_v4();
        let header_len = ethernet::LEN + ipv4::LEN + tcp::header_len(&options);
        let payload_len = plan.payload.map_or(0, |p| usize::from(p.len));

        let Some(frame) = out.push(Origin::Stack) else {
            return;
        };
        // The header may lie in front of the payload if that is headroom and
        // not payload of an earlier segment, nobody else may read the buffer,
        // and the port is not just reading it.
        let in_buffer = self.config.header_in_buffer
            && plan.payload.is_some_and(|p| {
                let meta = self.bufs.get(p.buf);
                p.offset == meta.offset
                    && usize::from(p.offset) >= header_len
                    && !meta.keep
                    && meta.pins == 0
            });
        frame.csum = self.config.tx_csum_offload.then_some(TxCsum {
            start: (ethernet::LEN + ipv4::LEN) as u16,
            offset: tcp::CSUM_OFFSET as u16,
        });
        let mut local = [0; HEAD_MAX];
        let head = if in_buffer { &mut local[..header_len] } else { frame.head_mut(header_len) };

        ethernet::write(head, mac, &self.config.mac, ethernet::IPV4);
        let (ours, ip) = (self.config.address, &mut head[ethernet::LEN..]);
        let segment_len = header_len - ethernet::LEN - ipv4::LEN + payload_len;
        ipv4::write(ip, ours, remote, ipv4::TCP, plan.ecn, segment_len);
        let segment = &mut ip[ipv4::LEN..];
        tcp::write(segment, &header);
        let pseudo = checksum::pseudo(ours, remote, ipv4::TCP, segment_len as u16);
        let field = if self.config.tx_csum_offload {
            pseudo
        } else {
            let payload =
                plan.payload.map_or(0, |p| mem.sum(p.buf, usize::from(p.offset), payload_len));
            !checksum::add(checksum::add(pseudo, checksum::sum(segment)), payload)
        };
        segment[tcp::CSUM_OFFSET..tcp::CSUM_OFFSET + 2].copy_from_slice(&field.to_be_bytes());

        frame.payload = plan.payload;
        if let Some(payload) = plan.payload {
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
            self.acknowledged(index, payload_len == 0);
        }
    }
}
