//! Opening a connection: a SYN for a listener, and the answer to our own SYN.

use paste_abi::Reason;

use crate::clock::{Deadline, Moment, age};
use crate::flow::{Key, State};
use crate::listen::Door;
use crate::memory::Memory;
use crate::stack::{Outcome, Stack};
use crate::tcp::congestion::Control;
use crate::tcp::held::RECENT;
use crate::tcp::input::Segment;
use crate::wire::ethernet;
use crate::wire::tcp::{self, Options, flag};

/// RFC 9293 section 3.7.1: the peer's MSS when it does not say.
pub(crate) const MSS_DEFAULT: u16 = 536;
/// No peer needs less, and a smaller one would only multiply segments.
const MSS_MIN: u16 = 88;

impl Stack {
    /// A segment that belongs to no flow (RFC 9293 sections 3.10.7.1 and
    /// 3.10.7.2).
    pub(crate) fn stranger_input<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        key: Key,
        hash: u32,
        segment: &Segment,
    ) -> Outcome {
        let header = &segment.header;
        let door = self.listeners.of_port(key.local_port);
        if let Some(door) = &door
            && header.flags & (flag::ACK | flag::RST | flag::SYN) == flag::ACK
            && let Some(outcome) = self.open_by_cookie(mem, now, key, hash, door, segment)
        {
            return outcome;
        }
        match door {
            Some(door) if header.flags & (flag::ACK | flag::RST) == 0 => {
                if header.has(flag::SYN) && key.remote_port != 0 {
                    self.listen_input(now, key, hash, &door, segment);
                } else {
                    self.counters.drop_no_flow += 1;
                }
            }
            _ => {
                self.counters.drop_no_flow += 1;
                self.reset_stranger(now, key, segment);
            }
        }
        Outcome::Consumed
    }

    /// A SYN for a listener. Where there is no room for a flow, or SYNs come
    /// faster than flows are to be made, a cookie must do.
    fn listen_input(&mut self, now: u64, key: Key, hash: u32, door: &Door, syn: &Segment) {
        let full = self.flows.used() == self.config.flows_max && self.time_wait.is_empty();
        let pressed = full && self.config.syn_cookies;
        if pressed || !door.has_room || !self.allows_syn(now, door.name) {
            self.answer_with_cookie(now, &key, door, syn);
            return;
        }
        let Some(index) = self.open_passive(now, key, hash, door, syn) else {
            self.counters.drop_no_room += 1;
            return;
        };
        self.kick(index);
    }

    /// A half-open flow for a SYN that a listener got.
    pub(crate) fn open_passive(
        &mut self,
        now: u64,
        key: Key,
        hash: u32,
        door: &Door,
        syn: &Segment,
    ) -> Option<u32> {
        let index = self.open_flow(now, key, hash, door.channel as u8)?;
        self.begin_half_open(index, door.name);
        let flow = &mut self.flows[index];
        flow.enter(State::SynReceived);
        // See the module `neighbour` for why the SYN's sender is believed.
        flow.mac = ethernet::is_station(&syn.from).then_some(syn.from);
        flow.set_syn_due(true);
        self.take_syn(now, index, syn);
        Some(index)
    }

    /// A segment in SYN-SENT (RFC 9293 section 3.10.7.3).
    pub(crate) fn syn_sent_input<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        index: u32,
        segment: &Segment,
    ) {
        let header = &segment.header;
        let flow = &mut self.flows[index];
        let acks = header.has(flag::ACK);
        if acks && (!header.ack.after(flow.snd_una) || header.ack.after(flow.snd_nxt)) {
            self.counters.drop_bad_ack += 1;
            let key = flow.key;
            self.reset_stranger(now, key, segment);
            return;
        }
        if header.has(flag::RST) {
            if acks {
                self.terminate(mem, index, Some(Reason::Refused));
            } else {
                self.counters.drop_blind += 1;
            }
            return;
        }
        if !header.has(flag::SYN) {
            self.counters.drop_bad_ack += 1;
            return;
        }
        self.take_syn(now, index, segment);
        if acks {
            self.established(mem, now, index, segment);
            let flow = &mut self.flows[index];
            flow.snd_una = header.ack;
            self.ack_now(index);
        } else {
            // Both sides opened at once (section 3.5, figure 8).
            let flow = &mut self.flows[index];
            flow.enter(State::SynReceived);
            flow.set_syn_due(true);
            self.kick(index);
        }
    }

    /// Notes what the peer's SYN says.
    fn take_syn(&mut self, now: u64, index: u32, segment: &Segment) {
        let Options { mss, scale, timestamps, sack_permitted, .. } = segment.header.options;
        let base = self.base_mss(&self.flows[index].key);
        let flow = &mut self.flows[index];
        // What our own SYN promised, if there was one, now has a place.
        let promised = flow.rcv_wnd();
        flow.rcv_nxt = segment.header.seq + 1;
        flow.rcv_adv = flow.rcv_nxt + promised;
        flow.last_ack_sent = flow.rcv_nxt;
        flow.held_recent = [segment.header.seq; RECENT];
        flow.heard_at = Moment::at(now);
        flow.set_sack(self.config.sack && sack_permitted);
        flow.set_ecn(self.config.ecn && flow.agrees_to_ecn(&segment.header));
        flow.set_timestamps(self.config.timestamps && timestamps.is_some());
        if let Some(ts) = timestamps {
            flow.ts_recent = ts.value;
            flow.ts_recent_at = age(now);
        }
        // RFC 7323 section 2.2: scaling happens only if both sides offer it.
        // The window of a SYN is never scaled.
        flow.set_peer_scales(scale.is_some());
        flow.snd_scale = scale.unwrap_or(0);
        flow.rcv_scale = if scale.is_some() { self.rcv_scale } else { 0 };
        flow.snd_wnd = u32::from(segment.header.window);
        flow.snd_wnd_max = flow.snd_wnd;
        flow.snd_wl1 = segment.header.seq;
        // RFC 6691 section 2: options come off the MSS.
        let options = if flow.timestamps() { tcp::TIMESTAMPS_LEN as u16 } else { 0 };
        let mss = mss.unwrap_or(MSS_DEFAULT).max(MSS_MIN).min(base);
        flow.mss = mss - options;
        flow.mss_max = flow.mss;
        flow.congestion = Control::new(self.config.congestion, u32::from(flow.mss));
        flow.rexmit_at = Deadline::NEVER;
    }
}
