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
    pub closed: u64,
    pub reset: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Small payload that was put behind other payload.
    pub bytes_copied: u64,
    /// Times that a flow stopped receiving because it had its share of the buffers.
    pub flow_share: u64,
    /// Times that a flow stopped receiving because no buffer was left.
    pub pool_empty: u64,
    pub sends: u64,
    /// Sends of several buffers.
    pub gathered: u64,
    pub zero_copy: u64,
    /// Sends without a copy that the kernel copied all the same.
    pub zero_copy_copied: u64,
    /// Frames of the guest's kernel: there is no NIC.
    pub plain_dropped: u64,
    /// Completions that make no sense.
    pub strange: u64,
}

impl Counters {
    /// Every counter with its name.
    pub(super) fn each(&self, mut visit: impl FnMut(&str, u64)) {
        for (name, value) in [
            ("stack.accepted", self.accepted),
            ("stack.connected", self.connected),
            ("stack.accept_no_flow", self.accept_no_flow),
            ("stack.accept_failed", self.accept_failed),
            ("stack.closed", self.closed),
            ("stack.reset", self.reset),
            ("stack.bytes_in", self.bytes_in),
            ("stack.bytes_out", self.bytes_out),
            ("stack.bytes_copied", self.bytes_copied),
            ("stack.flow_share", self.flow_share),
            ("stack.pool_empty", self.pool_empty),
            ("stack.sends", self.sends),
            ("stack.sends_gathered", self.gathered),
            ("stack.sends_zero_copy", self.zero_copy),
            ("stack.sends_zero_copy_copied", self.zero_copy_copied),
            ("port.plain_dropped", self.plain_dropped),
            ("port.strange_completions", self.strange),
        ] {
            visit(name, value);
        }
    }
}
