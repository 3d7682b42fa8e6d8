//! What can be seen of one flow from outside, for an operator or a test.

use paste_abi::{Flow, Reason};

use crate::stack::Stack;

/// A flow as it is now. Lengths are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    /// Payload that one segment carries.
    pub mss: u16,
    /// The congestion window (RFC 5681 section 2).
    pub congestion_window: u32,
    /// The window that the peer offers (SND.WND).
    pub send_window: u32,
    /// Sent and not acknowledged.
    pub unacknowledged: u32,
    /// Queued and not sent yet.
    pub unsent: u32,
}

impl Stack {
    /// What a flow of `channel` is doing.
    pub fn flow_info(&self, channel: u16, flow: Flow) -> Result<FlowInfo, Reason> {
        let flow = &self.flows[self.owned(channel, flow)?];
        Ok(FlowInfo {
            mss: flow.mss,
            congestion_window: flow.congestion.window(),
            send_window: flow.snd_wnd,
            unacknowledged: flow.snd_nxt.since(flow.snd_una),
            unsent: flow.snd_end.since(flow.snd_nxt),
        })
    }
}
