//! What a port counts.

/// Frames that a port threw away, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// Received, longer than the MTU or the buffer allows.
    pub rx_oversize: u64,
    /// Received, shorter than an Ethernet header.
    pub rx_runt: u64,
    /// Received as something to be segmented, which was never offered.
    pub rx_segmented: u64,
    /// Received, beyond the guest's limit.
    pub rx_limited: u64,
    /// To be sent, shorter than an Ethernet header, longer than the MTU allows,
    /// with a checksum to complete outside the frame or a payload outside its
    /// buffer.
    pub tx_malformed: u64,
    /// To be sent while the device was down.
    pub tx_link_down: u64,
    /// To be sent, refused by the device.
    pub tx_refused: u64,
    /// For the host's own stack on the same NIC, which had no room.
    pub to_host_full: u64,
}

/// Counters of one port, written by its worker alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortCounters {
    /// Frames received.
    pub rx_frames: u64,
    /// Bytes of the frames received.
    pub rx_bytes: u64,
    /// Frames sent.
    pub tx_frames: u64,
    /// Bytes of the frames sent.
    pub tx_bytes: u64,
    /// Bytes copied on the way in, by the kernel or by the port.
    pub rx_bytes_copied: u64,
    /// Bytes copied on the way out, by the kernel or by the port.
    pub tx_bytes_copied: u64,
    /// System calls made.
    pub syscalls: u64,
    /// Times that frames may have waited and the pool had no buffer.
    pub rx_no_buffer: u64,
    /// Times that the device took no more frames for now.
    pub tx_full: u64,
    /// Frames passed on to the host's own stack on the same NIC.
    pub to_host_frames: u64,
    /// Frames of that stack passed on to the NIC.
    pub from_host_frames: u64,
    /// Times that frames had to wait for the guest's limit.
    pub tx_limited: u64,
    /// Frames thrown away.
    pub drops: Drops,
}

impl PortCounters {
    /// Every counter with its name.
    pub fn each(&self, mut visit: impl FnMut(&'static str, u64)) {
        // Taken apart by name, so that a new counter cannot be forgotten here.
        let PortCounters {
            rx_frames,
            rx_bytes,
            tx_frames,
            tx_bytes,
            rx_bytes_copied,
            tx_bytes_copied,
            syscalls,
            rx_no_buffer,
            tx_full,
            tx_limited,
            to_host_frames,
            from_host_frames,
            drops:
                Drops {
                    rx_oversize,
                    rx_runt,
                    rx_segmented,
                    rx_limited,
                    tx_malformed,
                    tx_link_down,
                    tx_refused,
                    to_host_full,
                },
        } = *self;
        for (name, value) in [
            ("rx_frames", rx_frames),
            ("rx_bytes", rx_bytes),
            ("tx_frames", tx_frames),
            ("tx_bytes", tx_bytes),
            ("rx_bytes_copied", rx_bytes_copied),
            ("tx_bytes_copied", tx_bytes_copied),
            ("syscalls", syscalls),
            ("rx_no_buffer", rx_no_buffer),
            ("tx_full", tx_full),
            ("tx_limited", tx_limited),
            ("to_host_frames", to_host_frames),
            ("from_host_frames", from_host_frames),
            ("drops.rx_oversize", rx_oversize),
            ("drops.rx_runt", rx_runt),
            ("drops.rx_segmented", rx_segmented),
            ("drops.rx_limited", rx_limited),
            ("drops.tx_malformed", tx_malformed),
            ("drops.tx_link_down", tx_link_down),
            ("drops.tx_refused", tx_refused),
            ("drops.to_host_full", to_host_full),
        ] {
            visit(name, value);
        }
    }
}
