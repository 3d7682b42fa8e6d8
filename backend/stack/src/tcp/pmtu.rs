//! The path's MTU: less than the link's when a router says so (RFC 1191,
//! RFC 8201), or when it seems that no router dares to (RFC 4821, RFC 8899),
//! and found to be more again by trying.

use crate::bufs::NIL;
use crate::flow::FlowState;
use crate::stack::Stack;
use crate::tcp::recovery::Phase;
use crate::tcp::scoreboard;
use crate::tcp::seq::Seq;
use crate::wire::{ipv6, tcp};

/// RFC 8899 section 5.1.2, BASE_PLPMTU: nearly every path carries this, bytes.
const BASE: u16 = 1200;
/// Every path carries datagrams of this size, bytes: of IPv4 (RFC 9293 section
/// 3.7.1), and of IPv6 (RFC 8200 section 5).
const LEAST: [u16; 2] = [576, ipv6::MTU_MIN];
/// Timeouts in a row after which segments are thought to be too large.
const SUSPICIOUS_TIMEOUTS: u8 = 3;
/// RFC 8899 section 5.1.1, PMTU_RAISE_TIMER: 600 s, in units of 2^36 ns.
const RAISE_AGE: u16 = 9;
/// RFC 8899 section 5.1.2, MAX_PROBES.
const PROBES_MAX: u8 = 3;
/// Steps of the search that are not worth a probe, bytes.
const STEP_MIN: u16 = 32;

/// What a flow knows of its path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    /// When `mss` was found or last tried to raise, units of 2^36 ns.
    tried_at: u16,
    /// Payload of the segment that is being tried, or zero.
    probe: u16,
    /// After the last byte of that segment.
    probe_end: Seq,
    /// What was found to be too large, or zero.
    ceiling: u16,
    /// Probes lost at this size.
    lost: u8,
    /// Timeouts in a row with large segments.
    timeouts: u8,
}

/// A time in the units of [`Path`].
const fn age(now: u64) -> u16 {
    (now >> 36) as u16
}

impl Path {
    pub(crate) const fn new(now: u64) -> Path {
        let tried_at = age(now);
        Path { tried_at, probe: 0, probe_end: Seq(0), ceiling: 0, lost: 0, timeouts: 0 }
    }

    /// Whether a larger segment is being tried.
    #[inline]
    pub(crate) const fn is_probing(&self) -> bool {
        self.probe != 0
    }

    /// Something new was acknowledged.
    #[inline]
    pub(crate) fn on_progress(&mut self) {
        self.timeouts = 0;
    }
}

impl FlowState {
    /// The payload of a segment that is worth trying at the start of a buffer
    /// with `len` bytes, if it is larger than usual.
    pub(crate) fn path_probe(&self, now: u64, len: u16) -> Option<u16> {
        let path = &self.path;
        if self.mss >= self.mss_max || self.phase != Phase::Open || path.probe != 0 {
            return None;
        }
        if age(now).wrapping_sub(path.tried_at) < RAISE_AGE {
            return None;
        }
        self.next_size().filter(|&size| len >= size)
    }

    /// The next payload of the search: the whole first, then the middle of what
    /// is left (RFC 8899 section 5.3.2).
    fn next_size(&self) -> Option<u16> {
        let ceiling = self.path.ceiling;
        let size = if ceiling == 0 { self.mss_max } else { self.mss.midpoint(ceiling) };
        let step = size.saturating_sub(self.mss);
        (step > 0 && step >= STEP_MIN.min(self.mss_max - self.mss)).then_some(size)
    }

    /// Has the search go on with the next full segment; until the next raise
    /// if there is nothing left to find.
    fn search_on(&mut self, now: u64) {
        if self.next_size().is_some() {
            self.path.tried_at = age(now).wrapping_sub(RAISE_AGE);
        } else {
            self.path = Path::new(now);
        }
    }

    /// A probe was sent that ends at `end`.
    pub(crate) fn path_probe_sent(&mut self, size: u16, end: Seq) {
        self.path.probe = size;
        self.path.probe_end = end;
    }
}

impl Stack {
    /// Bytes of IP and TCP headers without options.
    fn header_bytes(&self, index: u32) -> u16 {
        self.config.mtu - self.base_mss(&self.flows[index].key)
    }

    /// A router says what its link carries, bytes of IP.
    pub(crate) fn path_mtu(&mut self, now: u64, index: u32, mtu: u16) {
        let headers = self.header_bytes(index);
        let flow = &self.flows[index];
        let options = if flow.timestamps() { tcp::TIMESTAMPS_LEN as u16 } else { 0 };
        let mss = mtu.saturating_sub(headers + options);
        if mss >= flow.mss || mss == 0 {
            return;
        }
        self.counters.icmp_errors_in += 1;
        self.narrow(now, index, mss);
    }

    /// From now on segments of this flow carry at most `mss` bytes.
    fn narrow(&mut self, now: u64, index: u32, mss: u16) {
        if let Some((bufs, flow, repair)) = self.repairing(index) {
            scoreboard::cut_again(bufs, flow, repair, mss);
        }
        let flow = &mut self.flows[index];
        flow.mss = mss;
        flow.path = Path::new(now);
        flow.congestion.on_mss(u32::from(mss));
        if flow.lost_bytes > 0 {
            // RFC 1191 section 6.5: sent again at once, and not because of
            // congestion. What is in flight then may not fit the window.
            if flow.phase == Phase::Open {
                flow.phase = Phase::Loss;
                flow.recover = flow.snd_nxt;
            }
            flow.set_rexmit_due(true);
        }
        self.kick(index);
    }

    /// The retransmission timer rang. Timeouts in a row of large segments may
    /// mean a path that drops them and says nothing (RFC 4821 section 7.7).
    pub(crate) fn suspect_path(&mut self, now: u64, index: u32) {
        let headers = self.header_bytes(index);
        let flow = &mut self.flows[index];
        flow.path.probe = 0;
        let head = flow.tx.head;
        let options = if flow.timestamps() { tcp::TIMESTAMPS_LEN as u16 } else { 0 };
        let least = LEAST[usize::from(flow.key.local.is_v6())];
        let floor = least - headers - options;
        if head == NIL {
            return;
        }
        let meta = self.bufs.get(head);
        let left = meta.end().since(flow.snd_una.max(Seq(meta.seq)));
        // The segment that is at stake, full or not.
        let size = left.min(u32::from(flow.mss)) as u16;
        if size <= floor {
            return;
        }
        flow.path.timeouts = flow.path.timeouts.saturating_add(1);
        if flow.path.timeouts < SUSPICIOUS_TIMEOUTS {
            return;
        }
        let base = BASE.max(least) - headers - options;
        let mss = if size > base { base } else { floor };
        self.counters.black_holes += 1;
        self.narrow(now, index, mss);
        // It was no more than a suspicion: a path that loses much of everything
        // looks the same. The first full segment that may be lost alone tells.
        self.flows[index].search_on(now);
    }

    /// Whether the probe has arrived; then the path carries as much.
    pub(crate) fn path_probe_input(&mut self, now: u64, index: u32) {
        let flow = &mut self.flows[index];
        if flow.path.probe == 0 || flow.snd_una.before(flow.path.probe_end) {
            return;
        }
        flow.mss = flow.path.probe;
        flow.congestion.on_mss(u32::from(flow.mss));
        flow.path = Path { ceiling: flow.path.ceiling, ..Path::new(now) };
        flow.search_on(now);
    }

    /// Whether what was lost is a probe and nothing else: then the window stays
    /// (RFC 4821 section 7.5), and its payload goes in smaller pieces.
    pub(crate) fn path_probe_lost(&mut self, now: u64, index: u32) -> bool {
        let Some((bufs, flow, repair)) = self.repairing(index) else {
            return false;
        };
        let path = &mut flow.path;
        if path.probe == 0 || flow.lost_bytes != u32::from(path.probe) {
            return false;
        }
        path.lost += 1;
        if path.lost >= PROBES_MAX {
            path.ceiling = path.probe;
            path.lost = 0;
        }
        path.probe = 0;
        flow.search_on(now);
        let mss = flow.mss;
        scoreboard::cut_again(bufs, flow, repair, mss);
        flow.phase = Phase::Loss;
        flow.recover = flow.snd_nxt;
        flow.set_rexmit_due(true);
        true
    }
}
