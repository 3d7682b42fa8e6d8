//! SYN cookies (RFC 4987 section 3.6): a SYN that there is no room for is
//! answered all the same, and nothing is kept. What a flow must know is in the
//! answer's numbers, which the peer's acknowledgement returns.
//!
//! ```text
//!   sequence number   | MSS, 3 bits | keyed hash, 29 bits                     |
//!   timestamp         | time, 26 bits                | ECN | SACK | scale, 4   |
//! ```
//!
//! The hash is of the connection's addresses and ports, the peer's initial
//! sequence number, the minute, and all that the cookie says, so that nobody
//! without the secret can make one or change it. It is good for this minute and
//! the next. Without timestamps there is no place for the peer's options but
//! MSS, so the answer does not offer them.

use crate::clock::Deadline;
use crate::config::SEC;
use crate::control::{CONTROL_MAX, Control};
use crate::flow::{Key, timestamp};
use crate::listen::Door;
use crate::memory::Memory;
use crate::stack::{Outcome, Secret, Stack};
use crate::tcp::input::Segment;
use crate::tcp::seq::Seq;
use crate::wire::ethernet;
use crate::wire::tcp::{Header, Options, Timestamps, flag};

/// What a peer's MSS is rounded down to: what any host takes, RFC 9293 section
/// 3.7.1's default, IPv6's least (RFC 8200 section 5), tunnels, PPPoE,
/// Ethernet, and its jumbo frames.
const MSS: [u16; 8] = [88, 536, 1220, 1300, 1400, 1440, 1460, 8940];
/// Bits of a sequence number below the MSS.
const HASH_BITS: u32 = 29;
/// How long cookies are made alike.
const EPOCH: u64 = 60 * SEC;
/// How long after the last of its cookies a listener may see one that is good.
pub(crate) const COOKIE_LIFE: u64 = 2 * EPOCH;

/// Bits of a timestamp that carry options.
const OPTION_BITS: u32 = 6;
const OPTION_MASK: u32 = (1 << OPTION_BITS) - 1;
const SCALE_MASK: u32 = 0x0f;
/// A shift that none has (RFC 7323 section 2.3): no window scale option.
const SCALE_NONE: u32 = 0x0f;
const SACK: u32 = 0x10;
const ECN: u32 = 0x20;
/// In place of option bits: the answer had no timestamps.
const PLAIN: u32 = 1 << OPTION_BITS;

/// Segments of the window that a cookie's answer has. It is the same for all,
/// because the flow must know what its peer was promised.
pub(crate) const WINDOW: u32 = 4;

/// Option bits of what we agree to of a peer's offer.
fn pack(stack: &Stack, header: &Header) -> u32 {
    let options = &header.options;
    if !stack.config.timestamps || options.timestamps.is_none() {
        return PLAIN;
    }
    let setup = flag::ECE | flag::CWR;
    let mut bits = options.scale.map_or(SCALE_NONE, u32::from);
    if stack.config.sack && options.sack_permitted {
        bits |= SACK;
    }
    if stack.config.ecn && header.flags & setup == setup {
        bits |= ECN;
    }
    bits
}

/// The peer's SYN, as far as a cookie remembers it.
fn unpack(segment: &Segment, mss: u16, bits: u32) -> Segment {
    let mut syn = *segment;
    syn.header.seq = Seq(segment.header.seq.0.wrapping_sub(1));
    syn.header.flags = flag::SYN;
    syn.header.options = Options { mss: Some(mss), ..Options::default() };
    if bits != PLAIN {
        let scale = bits & SCALE_MASK;
        syn.header.options.scale = (scale != SCALE_NONE).then_some(scale as u8);
        syn.header.options.sack_permitted = bits & SACK != 0;
        syn.header.options.timestamps = segment.header.options.timestamps;
        if bits & ECN != 0 {
            syn.header.flags |= flag::ECE | flag::CWR;
        }
    }
    syn
}

impl Stack {
    /// The cookie of a peer that began with `irs`.
    fn cookie(&self, key: &Key, irs: Seq, epoch: u64, mss: usize, bits: u32) -> Seq {
        let said = (u64::from(irs.0) << 32) | u64::from(bits << 3) | mss as u64;
        let hash = self.secret(Secret::Cookie, key, &[said, epoch]);
        Seq(((mss as u32) << HASH_BITS) | (hash & ((1 << HASH_BITS) - 1)))
    }

    /// The window of an answer with a cookie.
    fn cookie_window(&self, key: &Key) -> u32 {
        let window = WINDOW * u32::from(self.base_mss(key));
        window.min(self.config.recv_window_max).min(u32::from(u16::MAX))
    }

    /// Answers a SYN with a cookie, if that is allowed; otherwise the peer must
    /// try again.
    pub(crate) fn answer_with_cookie(&mut self, now: u64, key: &Key, door: &Door, syn: &Segment) {
        let header = &syn.header;
        let asked = header.options.mss.unwrap_or(super::open::MSS_DEFAULT);
        let mss = MSS.iter().rposition(|&mss| mss <= asked);
        let (Some(mss), true) = (mss, self.config.syn_cookies && door.accepts) else {
            self.counters.drop_backlog += 1;
            return;
        };
        if !ethernet::is_station(&syn.from) || !self.cookie_limit.allows(now) {
            self.counters.rate_limited += 1;
            return;
        }
        // Others must find a place among the frames that wait.
        if self.control.len() >= CONTROL_MAX / 2 {
            self.counters.drop_control_full += 1;
            return;
        }
        let bits = pack(self, header);
        let seq = self.cookie(key, header.seq, now / EPOCH, mss, bits);
        let mut options = Options { mss: Some(self.base_mss(key)), ..Options::default() };
        let mut flags = flag::SYN | flag::ACK;
        if bits != PLAIN {
            let time = timestamp(now, self.secret(Secret::Timestamp, key, &[]));
            // The latest that has these bits and is not in the future.
            let mut value = (time & !OPTION_MASK) | bits;
            if Seq(value).after(Seq(time)) {
                value = value.wrapping_sub(1 << OPTION_BITS);
            }
            let echo = header.options.timestamps.map_or(0, |ts| ts.value);
            options.timestamps = Some(Timestamps { value, echo });
            options.scale = (bits & SCALE_MASK != SCALE_NONE).then_some(self.rcv_scale);
            options.sack_permitted = bits & SACK != 0;
            if bits & ECN != 0 {
                flags |= flag::ECE;
            }
        }
        let header = Header {
            src_port: key.local_port,
            dst_port: key.remote_port,
            seq,
            ack: header.seq + 1,
            flags,
            window: self.cookie_window(key) as u16,
            options,
        };
        self.listeners.cookie_sent(door.name, now.saturating_add(COOKIE_LIFE));
        self.counters.cookies_out += 1;
        self.queue_control(Control::Segment { to: syn.from, key: *key, header });
    }

    /// The peer's SYN, if a segment returns a cookie that is good.
    fn returned_syn(&self, now: u64, key: &Key, segment: &Segment) -> Option<Segment> {
        let header = &segment.header;
        let bits = match header.options.timestamps {
            Some(ts) if self.config.timestamps => ts.echo & OPTION_MASK,
            _ => PLAIN,
        };
        let (irs, seq) = (Seq(header.seq.0.wrapping_sub(1)), Seq(header.ack.0.wrapping_sub(1)));
        let mss = (seq.0 >> HASH_BITS) as usize;
        let epoch = now / EPOCH;
        let good = [epoch, epoch.wrapping_sub(1)]
            .iter()
            .any(|&epoch| self.cookie(key, irs, epoch, mss, bits) == seq);
        good.then(|| unpack(segment, MSS[mss], bits))
    }

    /// Opens a flow for an acknowledgement that returns a cookie; `None` if it
    /// does not. Without room for the flow the peer is not answered, so that it
    /// tries again.
    pub(crate) fn open_by_cookie<M: Memory>(
        &mut self,
        mem: &mut M,
        now: u64,
        key: Key,
        hash: u32,
        door: &Door,
        segment: &Segment,
    ) -> Option<Outcome> {
        if now > door.cookies_until {
            return None;
        }
        let Some(syn) = self.returned_syn(now, &key, segment) else {
            self.counters.cookies_bad += 1;
            return None;
        };
        if !door.accepts {
            self.counters.drop_backlog += 1;
            return Some(Outcome::Consumed);
        }
        let Some(index) = self.open_passive(now, key, hash, door, &syn) else {
            self.counters.drop_no_room += 1;
            return Some(Outcome::Consumed);
        };
        self.counters.cookies_in += 1;
        let window = self.cookie_window(&key);
        self.promised += u64::from(window);
        let flow = &mut self.flows[index];
        flow.begin(Seq(segment.header.ack.0.wrapping_sub(1)), now);
        flow.snd_nxt = segment.header.ack;
        flow.rcv_adv = flow.rcv_nxt + window;
        // What comes next makes it established; the answer was sent long ago.
        flow.set_syn_due(false);
        flow.rexmit_at = Deadline::after(now, self.config.timers.rto_initial);
        let mut segment = *segment;
        Some(self.flow_input(mem, now, index, &mut segment))
    }
}
