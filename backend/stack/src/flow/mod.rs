//! The state of flows.
//!
//! - [`FlowState`] is all that is known of one, in 384 bytes;
//! - [`key`] is what tells flows apart;
//! - [`slab`] holds them all, and the lists that run through them.

mod key;
mod slab;

use paste_abi::{Flow, Reason};

use crate::bufs::{NIL, Queue};
use crate::clock::{Deadline, Moment};
use crate::config::{Config, CongestionControl, MS};
use crate::tcp::congestion::Control;
use crate::tcp::held::RECENT;
use crate::tcp::pmtu::Path;
use crate::tcp::rack::Rack;
use crate::tcp::receive::QUICK_ACKS;
use crate::tcp::recovery::{Phase, Tail, Undo};
use crate::tcp::rtt::Rtt;
use crate::tcp::seq::Seq;
use crate::tcp::timers::Timer;
use crate::tcp::window::SPACE_FIRST;

pub(crate) use self::key::{Key, Local};
pub(crate) use self::slab::{Flows, Links, List};
use self::slab::{LINKS, Link};

/// A time that never comes.
pub(crate) const NEVER: u64 = u64::MAX;

/// States of RFC 9293 section 3.3.2. LISTEN is a listener's, not a flow's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Gone for the peer; what the guest is still to be told remains.
    Closed,
    SynSent,
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    TimeWait,
}

impl State {
    /// Whether the guest may still queue payload.
    #[inline]
    pub(crate) fn may_send(self) -> bool {
        matches!(self, State::SynSent | State::SynReceived | State::Established | State::CloseWait)
    }

    /// Whether payload may still arrive.
    #[inline]
    pub(crate) fn may_receive(self) -> bool {
        matches!(self, State::Established | State::FinWait1 | State::FinWait2)
    }

    /// Whether the handshake is complete.
    #[inline]
    pub(crate) fn is_synchronized(self) -> bool {
        !matches!(self, State::Closed | State::SynSent | State::SynReceived)
    }

    /// Whether RFC 9293 section 3.3.2, figure 5, has an edge to `next`. A
    /// listener's flow begins in CLOSED, which stands for LISTEN too; every
    /// state may be reset or time out (sections 3.10.5, 3.10.7.4 and 3.10.8).
    pub(crate) fn leads_to(self, next: State) -> bool {
        use State::*;
        match self {
            Closed => matches!(next, SynSent | SynReceived),
            SynSent => matches!(next, SynReceived | Established | Closed),
            SynReceived => matches!(next, Established | FinWait1 | Closed),
            Established => matches!(next, FinWait1 | CloseWait | Closed),
            FinWait1 => matches!(next, FinWait2 | Closing | Closed),
            FinWait2 | Closing => matches!(next, TimeWait | Closed),
            CloseWait => matches!(next, LastAck | Closed),
            LastAck | TimeWait => next == Closed,
        }
    }
}

/// Events that wait for the guest; payload and acknowledgements are queues.
pub(crate) mod event {
    pub(crate) const ACCEPTED: u8 = 1;
    pub(crate) const CONNECTED: u8 = 2;
    pub(crate) const FIN: u8 = 4;
    pub(crate) const WRITABLE: u8 = 8;
    pub(crate) const RESET: u8 = 16;
    pub(crate) const CLOSED: u8 = 32;
}

/// A timestamp: milliseconds, from an offset that does not tell how long this
/// host has been up (RFC 7323 section 5.4).
#[inline]
pub(crate) fn timestamp(now: u64, offset: u32) -> u32 {
    ((now / MS) as u32).wrapping_add(offset)
}

/// Yes and no of a flow, a bit each.
macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident $set:ident,)*) => {
        #[derive(Clone, Copy)]
        #[expect(non_camel_case_types, reason = "named as what they stand for")]
        enum Flag {
            $($name,)*
        }

        impl FlowState {
            $(
                $(#[$doc])*
                #[inline]
                pub(crate) fn $name(&self) -> bool {
                    self.flags & (1 << Flag::$name as u32) != 0
                }

                $(#[$doc])*
                #[inline]
                pub(crate) fn $set(&mut self, on: bool) {
                    let bit = 1 << Flag::$name as u32;
                    self.flags = if on { self.flags | bit } else { self.flags & !bit };
                }
            )*
        }
    };
}

flags! {
    /// The guest's name for it is dead: it was told of the end.
    detached set_detached,
    /// The peer's SYN had the window scale option.
    peer_scales set_peer_scales,
    /// FIN goes after all that is queued.
    fin_queued set_fin_queued,
    /// The guest was refused, and is told when there is room.
    want_writable set_want_writable,
    /// SYN or SYN,ACK is due.
    syn_due set_syn_due,
    /// RST is due.
    rst_due set_rst_due,
    /// One segment is to be sent again, whatever the congestion window says.
    rexmit_due set_rexmit_due,
    /// A keepalive or zero-window probe is due.
    probe_due set_probe_due,
    /// A tail loss probe is due (RFC 8985 section 7.3).
    tail_due set_tail_due,
    /// The congestion window is what held the sender back last.
    window_full set_window_full,
    /// FIN, sent without payload, is to be sent again.
    fin_lost set_fin_lost,
    /// The next new segment says that the window was reduced.
    cwr_due set_cwr_due,
    /// Its window counts among the promised bytes; until the peer's FIN.
    promises set_promises,
    /// A router reported congestion, and the peer has not said that it reduced.
    ecn_echo set_ecn_echo,
    /// An acknowledgement is due.
    ack_due set_ack_due,
    /// What is not acknowledged yet came in more than one segment.
    several_due set_several_due,
    /// The peer's FIN was seen, though perhaps not in order.
    fin_known set_fin_known,
    /// It came by a listener and is in its backlog.
    in_backlog set_in_backlog,
    /// SACK was agreed on (RFC 2018 section 2).
    sack set_sack,
    /// Timestamps were agreed on (RFC 7323 section 3.2).
    timestamps set_timestamps,
    /// ECN was agreed on (RFC 3168 section 6.1.1).
    ecn set_ecn,
}

/// What a flow may cost, bytes: with a million of them it decides.
const FLOW_MAX: usize = 384;

const _: () = assert!(size_of::<FlowState>() <= FLOW_MAX);

// One field of each line of [`FlowState::touch`].
const _: () = {
    assert!(core::mem::offset_of!(FlowState, flags) / 64 == 0);
    assert!(core::mem::offset_of!(FlowState, snd_wnd) / 64 == 1);
    assert!(core::mem::offset_of!(FlowState, ts_offset) / 64 == 2);
    assert!(core::mem::offset_of!(FlowState, rack) / 64 == 3);
    assert!(core::mem::offset_of!(FlowState, recover) / 64 == 4);
    assert!(core::mem::offset_of!(FlowState, fin_number) / 64 == 5);
};

/// One flow. Names of variables are RFC 9293's (section 3.3.1) where it has one.
///
/// The fields are in the order of their use, by cache lines: with many flows each
/// line that is touched is a wait for the memory. A request and its response touch
/// the first five; loss, narrow paths, and beginnings and ends have the others.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct FlowState {
    // What a segment is judged by.
    pub key: Key,
    pub generation: u16,
    flags: u32,
    pub rcv_nxt: Seq,
    /// The right edge of the advertised window; never moves left.
    pub rcv_adv: Seq,
    pub ts_recent: u32,
    /// When `ts_recent` was set, units of 2^30 ns.
    pub ts_recent_at: u32,
    pub last_ack_sent: Seq,
    /// ISS while nothing was acknowledged.
    pub snd_una: Seq,
    /// What has never been sent.
    pub snd_nxt: Seq,
    pub state: State,
    pub channel: u8,
    pub events: u8,
    /// What `rexmit_at` is the time of.
    pub timer: Timer,

    // What it moves.
    /// After the last byte queued; FIN's own number once it is queued.
    pub snd_end: Seq,
    pub snd_wnd: u32,
    /// The largest window that the peer ever offered.
    pub snd_wnd_max: u32,
    pub snd_wl1: Seq,
    pub tx: Queue,
    /// The buffer that `snd_nxt` lies in, or [`NIL`].
    pub tx_cursor: u32,
    pub rx: Queue,
    /// Buffers charged: readable, held and delivered.
    pub rx_bufs: u32,
    pub tx_len: u16,
    /// Payload bytes that one segment carries, with no SACK option in it.
    pub mss: u16,
    /// Largest payload seen, an estimate of the peer's MSS.
    pub rcv_mss: u16,
    /// Segments that the window may reach to; grows with what arrives.
    pub rcv_space: u16,
    pub snd_scale: u8,
    pub rcv_scale: u8,
    pub dupacks: u8,
    /// Duplicate acknowledgements due besides the one that `ack_due` means.
    pub dup_acks: u8,
    pub held_blocks: u8,
    /// Full segments that are still to be acknowledged at once.
    pub quick_acks: u8,
    pub keepalive_sent: u8,
    pub phase: Phase,

    // Times, and what is on its way out.
    /// Retransmission or persist timer.
    pub rexmit_at: Deadline,
    pub delayed_ack_at: Deadline,
    /// TIME-WAIT, FIN-WAIT-2 or keepalive.
    pub idle_at: Deadline,
    /// When something was last heard.
    pub heard_at: Moment,
    /// Since when nothing of what is outstanding was acknowledged.
    pub progress_at: Moment,
    /// The neighbour that it waits for, or [`NIL`].
    pub neighbour: u32,
    pub ts_offset: u32,
    links: [Link; LINKS],
    /// Acknowledged or given up; ACKED waits.
    pub done: Queue,
    /// Where its frames go, once known.
    pub mac: Option<[u8; 6]>,
    pub tail: Tail,

    // Estimates.
    pub rtt: Rtt,
    pub rack: Rack,
    pub congestion: Control,
    /// The last reduction of the window, as long as it may prove a mistake; the
    /// proof often comes when nothing is in flight any more.
    pub undo: Undo,

    // Loss, and what else is seldom.
    /// SND.NXT when the phase began (RFC 6582, "recover"), or when the tail loss
    /// probe was sent that is out.
    pub recover: Seq,
    /// Bytes that the peer has out of order; without SACK, as far as duplicate
    /// acknowledgements tell.
    pub sacked_bytes: u32,
    /// Bytes that are lost and were not sent again yet.
    pub lost_bytes: u32,
    /// The record of a repair that is under way, or [`NIL`].
    pub repair: u32,
    /// The path MTU, as far as it is not what the two ends agreed on.
    pub path: Path,
    /// SND.NXT when the window was reduced for ECN (RFC 3168).
    pub ecn_recover: Seq,
    pub held: Queue,
    /// A number in each of the blocks that changed last, the latest first.
    pub held_recent: [Seq; RECENT],
    /// Bytes that came twice, to be told of; `dsack_len` is zero for none.
    pub dsack: Seq,
    /// FIN's number, once it is known.
    fin_number: Seq,
    /// No challenge ACK before this.
    pub challenge_at: Deadline,
    /// Milliseconds.
    pub user_timeout: u32,
    /// The listener that it came by, until the guest knows of it, or the
    /// application's word for the one that opened it.
    pub opener: u32,
    /// Seconds of silence before keepalive probes; zero for none.
    pub keepalive: u16,
    /// What the two ends agreed on; `mss` is less on a narrow path.
    pub mss_max: u16,
    pub reason: Reason,
    pub dsack_len: u16,
}

impl FlowState {
    /// Reads from the lines that a request touches, so that they are in the cache
    /// when it does. What is read says nothing.
    #[inline]
    pub(crate) fn touch(&self) -> u32 {
        self.flags
            ^ self.snd_wnd
            ^ self.ts_offset
            ^ self.rack.fack.0
            ^ self.recover.0
            ^ self.fin_number.0
    }

    fn new() -> FlowState {
        FlowState {
            flags: 1 << Flag::detached as u32,
            key: Key::NONE,
            generation: 0,
            state: State::Closed,
            channel: 0,
            mac: None,
            neighbour: NIL,
            snd_una: Seq(0),
            snd_nxt: Seq(0),
            snd_end: Seq(0),
            snd_wnd: 0,
            snd_wnd_max: 0,
            snd_wl1: Seq(0),
            snd_scale: 0,
            mss: 0,
            mss_max: 0,
            tx: Queue::EMPTY,
            tx_cursor: NIL,
            tx_len: 0,
            done: Queue::EMPTY,
            timer: Timer::Retransmit,
            congestion: Control::new(CongestionControl::default(), 0),
            rtt: Rtt::new(0),
            phase: Phase::Open,
            recover: Seq(0),
            dupacks: 0,
            sacked_bytes: 0,
            lost_bytes: 0,
            repair: NIL,
            rack: Rack::new(0, Seq(0)),
            undo: Undo::NONE,
            tail: Tail::None,
            path: Path::new(0),
            ecn_recover: Seq(0),
            rcv_nxt: Seq(0),
            rcv_adv: Seq(0),
            rcv_scale: 0,
            rcv_mss: 0,
            rx: Queue::EMPTY,
            held: Queue::EMPTY,
            held_blocks: 0,
            held_recent: [Seq(0); RECENT],
            dsack: Seq(0),
            dsack_len: 0,
            dup_acks: 0,
            rx_bufs: 0,
            rcv_space: SPACE_FIRST,
            quick_acks: QUICK_ACKS,
            fin_number: Seq(0),
            ts_recent: 0,
            ts_recent_at: 0,
            ts_offset: 0,
            last_ack_sent: Seq(0),
            rexmit_at: Deadline::NEVER,
            delayed_ack_at: Deadline::NEVER,
            idle_at: Deadline::NEVER,
            heard_at: Moment::at(0),
            progress_at: Moment::at(0),
            challenge_at: Deadline::NEVER,
            user_timeout: 0,
            keepalive: 0,
            keepalive_sent: 0,
            events: 0,
            reason: Reason::Ok,
            opener: 0,
            links: [Link::NONE; LINKS],
        }
    }

    /// A fresh flow in this one's place: the generation stays.
    pub(crate) fn reset(&mut self, key: Key, config: &Config, now: u64) {
        debug_assert!(!self.links.iter().any(|link| link.is_linked()));
        *self = FlowState {
            key,
            generation: self.generation,
            rtt: Rtt::new(config.timers.rto_initial),
            rcv_mss: 536,
            user_timeout: (config.timers.user_timeout / MS).try_into().unwrap_or(u32::MAX),
            heard_at: Moment::at(now),
            progress_at: Moment::at(now),
            ..FlowState::new()
        };
        self.set_detached(false);
        self.set_promises(true);
    }

    /// Moves to another state.
    #[inline]
    pub(crate) fn enter(&mut self, next: State) {
        if cfg!(any(test, debug_assertions, feature = "audit")) {
            assert!(self.state.leads_to(next), "from {:?} to {next:?}", self.state);
        }
        self.state = next;
    }

    /// Bytes sent and not acknowledged, SYN and FIN included (RFC 5681
    /// section 2, FlightSize).
    #[inline]
    pub(crate) fn flight(&self) -> u32 {
        self.snd_nxt.since(self.snd_una)
    }

    /// Whether anything sent is not acknowledged, SYN and FIN included.
    #[inline]
    pub(crate) fn outstanding(&self) -> bool {
        self.snd_nxt != self.snd_una
    }

    /// The number of the peer's FIN, if one was seen.
    #[inline]
    pub(crate) fn fin_at(&self) -> Option<Seq> {
        self.fin_known().then_some(self.fin_number)
    }

    /// The peer's FIN has this number.
    pub(crate) fn set_fin_at(&mut self, seq: Seq) {
        self.fin_number = seq;
        self.set_fin_known(true);
    }

    /// The listener in whose backlog it is.
    #[inline]
    pub(crate) fn listener(&self) -> Option<Flow> {
        self.in_backlog().then_some(Flow(self.opener))
    }

    /// It came by this listener.
    pub(crate) fn set_listener(&mut self, listener: Flow) {
        self.opener = listener.0;
        self.set_in_backlog(true);
    }

    /// Takes it out of its listener's backlog.
    pub(crate) fn take_listener(&mut self) -> Option<Flow> {
        let listener = self.listener();
        self.set_in_backlog(false);
        listener
    }

    /// Whether FIN is what is to be sent next.
    #[inline]
    pub(crate) fn fin_due(&self) -> bool {
        self.fin_queued() && self.snd_nxt == self.snd_end && self.state.is_synchronized()
    }

    /// The window that the peer may still fill, as advertised.
    #[inline]
    pub(crate) fn rcv_wnd(&self) -> u32 {
        self.rcv_adv.since(self.rcv_nxt)
    }

    /// The earliest of its timers, ns, or [`NEVER`].
    #[inline]
    pub(crate) fn deadline(&self, now: u64) -> u64 {
        self.rexmit_at.ns(now).min(self.delayed_ack_at.ns(now)).min(self.idle_at.ns(now))
    }

    /// Our timestamp now.
    pub(crate) fn timestamp(&self, now: u64) -> u32 {
        timestamp(now, self.ts_offset)
    }

    /// Sets out from an initial sequence number: nothing is sent.
    pub(crate) fn begin(&mut self, iss: Seq, now: u64) {
        self.snd_una = iss;
        self.snd_nxt = iss;
        self.snd_end = iss + 1;
        self.recover = iss;
        self.ecn_recover = iss;
        self.rack = Rack::new(now, iss);
    }
}
