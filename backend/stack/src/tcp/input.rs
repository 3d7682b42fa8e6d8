//! SEGMENT ARRIVES (RFC 9293 section 3.10.7): checks in the RFC's order, with
//! the stricter ones of RFC 5961 and RFC 7323.

use paste_abi::Reason;

use crate::bufs::NIL;
use crate::checksum;
use crate::clock::{Deadline, Moment, age};
use crate::config::SEC;
use crate::control::Control;
use crate::flow::{FlowState, Key, Links, State, event};
use crate::frame::{RxCsum, RxFrame};
use crate::input::Datagram;
use crate::memory::Memory;
use crate::stack::{Outcome, Stack};
use crate::tcp::rtt::Stamp;
use crate::tcp::seq::Seq;
use crate::wire::ethernet::{self, Mac};
use crate::wire::ipv4;
use crate::wire::tcp::{self, Header, flag};

/// Where an IP payload lies in its buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub offset: usize,
    pub len: usize,
}

/// A segment that arrived, its payload still in the buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub header: Header,
    pub buf: u32,
    /// Where the payload starts in the buffer.
    pub offset: u16,
    pub len: u16,
    /// Checksum of the payload, where it is known.
    pub csum: Option<u16>,
    /// Arrival, ns since the Unix epoch.
    pub time: u64,
    /// The ECN field of the IP header (RFC 3168 section 5).
    pub ecn: u8,
    /// The station that sent the frame.
    pub from: Mac,
}

impl Segment {
    /// SEG.LEN: sequence numbers that the segment occupies.
    pub(crate) fn seq_len(&self) -> u32 {
        u32::from(self.len)
            + u32::from(self.header.has(flag::SYN))
            + u32::from(self.header.has(flag::FIN))
    }
}

/// 24 days, after which a stored timestamp says nothing (RFC 7323 section 5.5),
/// in units of 2^30 ns.
const TS_RECENT_AGE: u32 = ((24 * 24 * 3600 * SEC) >> 30) as u32;

/// Numbers behind RCV.NXT that a repeated segment begins in, at most: a window without
/// scale, or the one that is open.
const WINDOW_UNSCALED: u32 = 1 << 16;

/// How far a new incarnation's numbers are beyond the old one's: more than an
/// old window without scale.
const NUMBERS_APART: u32 = 1 << 16;

impl FlowState {
    /// Whether a segment with this acknowledgement may come from who sees our segments
    /// (RFC 5961 section 5.2).
    #[inline]
    fn is_plausible(&self, ack: Seq) -> bool {
        let oldest = Seq(self.snd_una.0.wrapping_sub(self.snd_wnd_max));
        !ack.after(self.snd_nxt) && !ack.before(oldest)
    }

    /// Notes the timestamp that is to be echoed (RFC 7323 section 4.3).
    #[inline]
    fn note_time(&mut self, now: u64, header: &Header) {
        if let Some(ts) = header.options.timestamps
            && self.timestamps()
            && !header.seq.after(self.last_ack_sent)
        {
            self.ts_recent = ts.value;
            self.ts_recent_at = age(now);
        }
    }
}

impl Stack {
    pub(crate) fn tcp_input<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        frame: &RxFrame,
        datagram: &Datagram,
        bytes: &[u8],
        place: Place,
    ) -> Outcome {
        let mut segment = Segment {
            header: Header::EMPTY,
            buf: frame.buf,
            offset: 0,
            len: 0,
            csum: None,
            time: frame.time,
            ecn: datagram.ecn,
            from: datagram.from,
        };
        let Some(header_len) = tcp::parse(bytes, &mut segment.header) else {
            self.counters.drop_bad_tcp += 1;
            return Outcome::Consumed;
        };
        let (offset, len) = (place.offset + header_len, place.len - header_len);
        let head = checksum::add(
            checksum::pseudo(datagram.sum, ipv4::TCP, place.len),
            checksum::sum(&bytes[..header_len]),
        );
        segment.csum = match frame.csum {
            RxCsum::Unknown => {
                let payload = mem.sum(frame.buf, offset, len);
                if checksum::add(head, payload) != 0xffff {
                    self.counters.drop_bad_tcp_csum += 1;
                    return Outcome::Consumed;
                }
                Some(!payload)
            }
            // Head and payload sum to all ones, so the payload's checksum is
            // the head's sum: no pass over the payload. The arithmetic does not
            // tell its two zeros apart; one in 65,535 is summed to know.
            RxCsum::Valid if len == 0 => None,
            RxCsum::Valid if head == 0 || head == 0xffff => Some(!mem.sum(frame.buf, offset, len)),
            RxCsum::Valid => Some(head),
            RxCsum::Partial => None,
        };
        self.counters.segments_in += 1;
        (segment.offset, segment.len) = (offset as u16, len as u16);
        let header = &segment.header;
        let key = Key::new(datagram.local, datagram.remote, header.src_port, header.dst_port);
        let hash = self.key_hash(&key);
        match self.find_flow(&key, hash) {
            Some(index) => self.flow_input(mem, now, index, &mut segment),
            None => self.stranger_input(mem, now, key, hash, &segment),
        }
    }

    pub(crate) fn flow_input<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        index: u32,
        segment: &mut Segment,
    ) -> Outcome {
        let state = self.flows[index].state;
        let outcome = match state {
            State::SynSent => {
                self.syn_sent_input(mem, now, index, segment);
                Outcome::Consumed
            }
            State::TimeWait if self.reopens(index, segment) => {
                // RFC 6191 section 2: a new incarnation of the connection.
                let (key, end) = (self.flows[index].key, self.flows[index].snd_nxt);
                let hash = self.key_hash(&key);
                self.end_time_wait(index);
                let outcome = self.stranger_input(mem, now, key, hash, segment);
                // RFC 9293 section 3.6.1: its numbers are beyond the old one's,
                // which may have been faster than the clock of new ones.
                if let Some(index) = self.find_flow(&key, hash)
                    && !self.flows[index].snd_una.after(end)
                {
                    self.flows[index].begin(end + NUMBERS_APART, now);
                }
                return outcome;
            }
            _ => self.synchronized_input(mem, now, index, segment),
        };
        self.arm_after_input(index);
        outcome
    }

    /// Makes sure that the flow's timers ring, those that input has set included.
    /// Most delayed acknowledgements ride on a response of the same turn: to set a
    /// timer for each would be to have it ring for nothing. So the flow is looked
    /// at once more by [`Stack::transmit`], which sets the timers that are left.
    #[inline]
    fn arm_after_input(&mut self, index: u32) {
        let flow = &self.flows[index];
        if flow.neighbour != NIL {
            // It is not in the list that is looked at.
            self.arm(index);
        } else if flow.delayed_ack_at.is_set() {
            self.kick(index);
        } else if !self.flows.linked(Links::Sending, index) {
            self.arm(index);
        }
    }

    /// A segment for a flow that has seen a SYN.
    fn synchronized_input<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        index: u32,
        segment: &mut Segment,
    ) -> Outcome {
        let header = &mut segment.header;
        let flow = &mut self.flows[index];
        // A simultaneous open: the peer's SYN,ACK repeats the SYN that we know.
        if flow.state == State::SynReceived
            && header.has(flag::SYN)
            && header.has(flag::ACK)
            && header.seq + 1 == flow.rcv_nxt
        {
            header.flags &= !flag::SYN;
            header.seq += 1;
            // RFC 7323 section 2.2: with a SYN the window is not scaled.
            header.window >>= flow.snd_scale;
        }
        let rst = header.has(flag::RST);

        // RFC 7323 section 5.3, R1, before the sequence number is looked at.
        if flow.timestamps() && !rst {
            let Some(ts) = header.options.timestamps else {
                // Section 3.2: once agreed, every segment carries them.
                self.counters.drop_paws += 1;
                return Outcome::Consumed;
            };
            if Seq(ts.value).before(Seq(flow.ts_recent))
                && age(now).wrapping_sub(flow.ts_recent_at) < TS_RECENT_AGE
            {
                self.counters.drop_paws += 1;
                self.ack_now(index);
                return Outcome::Consumed;
            }
        }

        // First, check the sequence number.
        let (wnd, seq) = (flow.rcv_wnd(), header.seq);
        let seq_len = segment.seq_len();
        let starts_in = seq.since(flow.rcv_nxt) < wnd;
        let acceptable = match (seq_len, wnd) {
            (0, _) => starts_in || seq == flow.rcv_nxt,
            // A zero window still takes acknowledgements and RSTs; the payload
            // is left out below.
            (_, 0) => seq == flow.rcv_nxt,
            // It starts in the window, or ends in it.
            _ => starts_in || (seq + (seq_len - 1)).since(flow.rcv_nxt) < wnd,
        };
        if !acceptable {
            return self.unacceptable(now, index, segment);
        }

        // Second, check the RST bit (RFC 5961 section 3.2).
        if rst {
            if seq == flow.rcv_nxt {
                self.reset_by_peer(mem, index);
            } else {
                self.counters.drop_blind += 1;
                self.challenge(now, index);
            }
            return Outcome::Consumed;
        }

        // Fourth, check the SYN bit (RFC 5961 section 4.2).
        if segment.header.has(flag::SYN) {
            self.counters.drop_blind += 1;
            self.challenge(now, index);
            return Outcome::Consumed;
        }

        // Fifth, check the ACK field.
        if !segment.header.has(flag::ACK) {
            self.counters.drop_bad_ack += 1;
            return Outcome::Consumed;
        }
        let ack = segment.header.ack;
        if flow.state == State::SynReceived {
            if !ack.after(flow.snd_una) || ack.after(flow.snd_nxt) {
                self.counters.drop_bad_ack += 1;
                let key = flow.key;
                self.reset_stranger(now, key, segment);
                return Outcome::Consumed;
            }
            if !self.established(mem, now, index, segment) {
                return Outcome::Consumed;
            }
        }
        let flow = &mut self.flows[index];
        if !flow.is_plausible(ack) {
            self.counters.drop_bad_ack += 1;
            self.challenge(now, index);
            return Outcome::Consumed;
        }
        flow.note_time(now, &segment.header);
        flow.heard_at = Moment::at(now);
        if flow.keepalive_sent > 0 {
            // It lives, and is given its time anew.
            flow.keepalive_sent = 0;
            flow.idle_at = Deadline::after(now, u64::from(flow.keepalive) * SEC);
        }
        if !self.ack_input(mem, now, index, segment) {
            return Outcome::Consumed;
        }

        // Seventh, process the segment text; eighth, check the FIN bit.
        if segment.len > 0 || segment.header.has(flag::FIN) {
            return self.receive(mem, now, index, segment);
        }
        Outcome::Consumed
    }

    /// RFC 9293 section 3.10.7.4, step 1: a segment outside the window is
    /// answered with an acknowledgement, unless it is a RST.
    fn unacceptable(&mut self, now: u64, index: u32, segment: &Segment) -> Outcome {
        let flow = &mut self.flows[index];
        let wnd = flow.rcv_wnd();
        let header = &segment.header;
        if header.has(flag::RST) {
            self.counters.drop_blind += 1;
        } else if flow.state == State::SynReceived
            && header.has(flag::SYN)
            && header.seq + 1 == flow.rcv_nxt
        {
            // The peer did not get our SYN,ACK.
            flow.syn_repeated(header);
            // Nor perhaps will it where the first SYN seemed to come from.
            if ethernet::is_station(&segment.from) {
                flow.mac = Some(segment.from);
            }
            flow.set_syn_due(true);
            self.kick(index);
        } else if header.has(flag::FIN) && !header.seq.after(flow.rcv_nxt) {
            // The peer did not get the acknowledgement of its FIN.
            let time_wait = flow.state == State::TimeWait;
            self.ack_now(index);
            if time_wait {
                self.restart_time_wait(now, index);
            }
        } else if segment.len > 0 && !header.seq.after(flow.rcv_nxt) {
            // Payload again: our acknowledgement was lost.
            let end = header.seq + u32::from(segment.len);
            // The peer is to measure from this one, or it takes its timeout for a
            // round-trip time. RFC 7323 section 5.3, R2, leaves it out; no further back
            // than a window is as hard to guess as what R3 takes.
            let near = flow.rcv_nxt.since(header.seq) <= wnd.max(WINDOW_UNSCALED);
            if near && header.has(flag::ACK) && flow.is_plausible(header.ack) {
                flow.note_time(now, header);
            }
            flow.note_duplicate(header.seq, end.min(flow.rcv_nxt));
            self.counters.drop_duplicate += 1;
            self.ack_now(index);
        } else {
            self.counters.drop_out_of_window += 1;
            // Not answered without limit: two stacks that disagree on where
            // they are would keep each other busy (RFC 5961 section 7).
            self.challenge(now, index);
        }
        Outcome::Consumed
    }

    fn reset_by_peer<M: Memory>(&mut self, mem: &mut M, index: u32) {
        let flow = &self.flows[index];
        match flow.state {
            // RFC 1337 section 3: a RST does not shorten TIME-WAIT.
            State::TimeWait => self.counters.drop_blind += 1,
            State::SynReceived => self.terminate(mem, index, Some(Reason::Refused)),
            _ => self.terminate(mem, index, Some(Reason::PeerReset)),
        }
    }

    /// The handshake is complete. `false` when nobody wants the flow any more.
    pub(crate) fn established<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        index: u32,
        segment: &Segment,
    ) -> bool {
        let flow = &mut self.flows[index];
        if let Some(listener) = flow.listener()
            && !self.listeners.lives(listener)
        {
            let key = flow.key;
            self.reset_stranger(now, key, segment);
            self.terminate(mem, index, Some(Reason::Aborted));
            return false;
        }
        // RFC 5681 section 3.1, which RFC 6928 section 2 relaxes for a SYN that
        // was lost once.
        if flow.rtt.backoff() > 1 {
            flow.congestion.on_lossy_handshake(u32::from(flow.mss));
        }
        // RFC 6298 section 5.7: the handshake was lossy.
        if flow.rtt.backoff() > 0 {
            flow.rtt = super::rtt::Rtt::new(3 * SEC);
        } else if let Some(rtt) = flow.rack.age(Stamp::at(now)) {
            // A flow by cookie was sent no SYN,ACK that it remembers.
            flow.rtt.sample(now, rtt);
        }
        self.end_half_open(index);
        let flow = &mut self.flows[index];
        flow.enter(if flow.fin_queued() { State::FinWait1 } else { State::Established });
        flow.set_syn_due(false);
        // SYN is acknowledged by this very segment.
        flow.snd_wl1 = segment.header.seq;
        flow.rexmit_at = Deadline::NEVER;
        flow.progress_at = Moment::at(now);
        if flow.listener().is_some() {
            flow.events |= event::ACCEPTED;
            self.counters.accepted += 1;
        } else {
            flow.events |= event::CONNECTED;
            self.counters.connected += 1;
        }
        self.mark_ready(index);
        true
    }

    /// Whether a SYN may open a new connection over one in TIME-WAIT (RFC 6191
    /// section 2, RFC 9293 section 3.6.1).
    fn reopens(&self, index: u32, segment: &Segment) -> bool {
        let (flow, header) = (&self.flows[index], &segment.header);
        if !header.has(flag::SYN) || header.flags & (flag::ACK | flag::RST) != 0 {
            return false;
        }
        match header.options.timestamps {
            Some(ts) if flow.timestamps() && ts.value != flow.ts_recent => {
                Seq(ts.value).after(Seq(flow.ts_recent))
            }
            _ => header.seq.after(flow.rcv_nxt),
        }
    }

    /// Has an acknowledgement sent with the next [`Stack::transmit`].
    pub(crate) fn ack_now(&mut self, index: u32) {
        self.flows[index].set_ack_due(true);
        self.kick(index);
    }

    /// Sends a challenge ACK (RFC 5961), at most so often. The limit is each
    /// flow's own: one for all flows would tell a blind attacker about others.
    pub(crate) fn challenge(&mut self, now: u64, index: u32) {
        let flow = &mut self.flows[index];
        if flow.challenge_at.is_set() && !flow.challenge_at.is_due(now) {
            self.counters.rate_limited += 1;
            return;
        }
        flow.challenge_at = Deadline::after(now, self.config.timers.challenge_interval);
        self.counters.challenge_acks_out += 1;
        self.ack_now(index);
    }

    /// Answers a segment that belongs to no flow with a RST (RFC 9293 section
    /// 3.10.7.1), unless it is one.
    pub(crate) fn reset_stranger(&mut self, now: u64, key: Key, segment: &Segment) {
        let header = &segment.header;
        if header.has(flag::RST) || !ethernet::is_station(&segment.from) {
            return;
        }
        if !self.rst_limit.allows(now) {
            self.counters.rate_limited += 1;
            return;
        }
        // Section 3.5.2, groups 1 and 2.
        let (seq, ack, flags) = if header.has(flag::ACK) {
            (header.ack, Seq(0), flag::RST)
        } else {
            (Seq(0), header.seq + segment.seq_len(), flag::RST | flag::ACK)
        };
        let header = Header {
            src_port: key.local_port,
            dst_port: key.remote_port,
            seq,
            ack,
            flags,
            window: 0,
            options: tcp::Options::default(),
        };
        if self.queue_control(Control::Segment { to: segment.from, key, header }) {
            self.counters.resets_out += 1;
        }
    }
}
