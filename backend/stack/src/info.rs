//! What can be seen of one flow from outside, for an operator or a test.

use paste_abi::{Flow, Reason};

use crate::stack::Stack;
use crate::tcp::recovery::Phase;

/// How a flow stands with loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repairing {
    /// Nothing is lost.
    Nothing,
    /// By acknowledgements (RFC 6675, RFC 8985).
    Recovery,
    /// After a retransmission timeout (RFC 6298).
    Timeout,
}

/// A flow as it is now. Lengths are bytes, times are ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    /// Payload that one segment carries.
    pub mss: u16,
    /// The congestion window (RFC 5681 section 2).
    pub congestion_window: u32,
    /// Where slow start ends; a very large number before the first congestion.
    pub slow_start_threshold: u32,
    /// The window that the peer offers (SND.WND).
    pub send_window: u32,
    /// Sent and not acknowledged.
    pub unacknowledged: u32,
    /// Of that, what the peer has out of order.
    pub sacked: u32,
    /// Of that, what is lost and was not sent again yet.
    pub lost: u32,
    /// Queued and not sent yet.
    pub unsent: u32,
    /// What is being done about loss.
    pub repairing: Repairing,
    /// The smoothed round-trip time; zero before it was measured.
    pub round_trip: u64,
    /// The smallest round-trip time of late; zero before it was measured.
    pub round_trip_min: u64,
    /// The retransmission timeout.
    pub timeout: u64,
    /// How often the timeout was doubled.
    pub backoff: u8,
}

impl Stack {
    /// What a flow of `channel` is doing.
    pub fn flow_info(&self, channel: u16, flow: Flow) -> Result<FlowInfo, Reason> {
        let flow = &self.flows[self.owned(channel, flow)?];
        Ok(FlowInfo {
            mss: flow.mss,
            congestion_window: flow.congestion.window(),
            slow_start_threshold: flow.congestion.threshold(),
            send_window: flow.snd_wnd,
            unacknowledged: flow.snd_nxt.since(flow.snd_una),
            sacked: flow.sacked_bytes,
            lost: flow.lost_bytes,
            unsent: flow.snd_end.since(flow.snd_nxt),
            repairing: match flow.phase {
                Phase::Open => Repairing::Nothing,
                Phase::Recovery => Repairing::Recovery,
                Phase::Loss => Repairing::Timeout,
            },
            round_trip: if flow.rtt.is_measured() { flow.rtt.smoothed() } else { 0 },
            round_trip_min: if flow.rtt.is_measured() { flow.rtt.smallest() } else { 0 },
            timeout: self.rto(flow),
            backoff: flow.rtt.backoff(),
        })
    }
}
