//! What has happened so far.

/// Totals of one engine.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::engine) struct Counters {
    pub accepted: u64,
    pub connected: u64,
    /// Connections that were reset because all flows were in use.
    pub accept_no_flow: u64,
    /// Times that accepting stopped for want of descriptors or memory.
    pub accept_failed: u64,
    /// Sockets that PASTE did not take.
    pub unregistered: u64,
    pub closed: u64,
    pub reset: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Payload copied into the region, and out of it.
    pub bytes_copied: u64,
    /// Slots that a batch of payload was put into, to be sent.
    pub slots_out: u64,
    /// Slots that name no flow: its socket was closed meanwhile.
    pub slots_stale: u64,
    /// Slots of the kernel's that cannot be.
    pub slots_bad: u64,
    /// Times that a flow was slowed down because it had its share of the buffers.
    pub flow_share: u64,
    /// Flows that were reset because they had far more than that, and no buffer was left.
    pub flow_hog: u64,
    /// Times that the ring was left as it was because no buffer was left.
    pub pool_empty: u64,
    /// Times that a flow waited for room in its send buffer.
    pub credit_out: u64,
    /// Times that the kernel stopped at a flow's slot, which was taken back.
    pub stuck: u64,
    /// Times that the kernel had taken what is in the ring, and the NIC's ring was full.
    pub nic_full: u64,
    /// Flows that were reset because the kernel had lost some of what they sent.
    pub lost: u64,
    /// Frames of the guest's kernel: the NIC is the host's.
    pub plain_dropped: u64,
    pub syncs: u64,
}

impl Counters {
    /// Every counter with its name.
    pub(super) fn each(&self, mut visit: impl FnMut(&str, u64)) {
        for (name, value) in [
            ("stack.accepted", self.accepted),
            ("stack.connected", self.connected),
            ("stack.accept_no_flow", self.accept_no_flow),
            ("stack.accept_failed", self.accept_failed),
            ("stack.unregistered", self.unregistered),
            ("stack.closed", self.closed),
            ("stack.reset", self.reset),
            ("stack.bytes_in", self.bytes_in),
            ("stack.bytes_out", self.bytes_out),
            ("stack.bytes_copied", self.bytes_copied),
            ("stack.flow_share", self.flow_share),
            ("stack.flow_hog", self.flow_hog),
            ("stack.pool_empty", self.pool_empty),
            ("stack.credit_out", self.credit_out),
            ("stack.stuck", self.stuck),
            ("stack.lost", self.lost),
            ("port.nic_full", self.nic_full),
            ("port.slots_out", self.slots_out),
            ("port.slots_stale", self.slots_stale),
            ("port.slots_bad", self.slots_bad),
            ("port.plain_dropped", self.plain_dropped),
            ("port.syncs", self.syncs),
        ] {
            visit(name, value);
        }
    }
}
