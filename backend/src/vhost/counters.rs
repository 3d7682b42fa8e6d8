//! What a device counts. Kept when a front end detaches.

use super::queue::Fault;

/// Totals since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceCounters {
    /// Front ends attached.
    pub sessions: u64,
    /// Messages handled.
    pub messages: u64,
    /// Messages that this back end does not know.
    pub messages_unknown: u64,
    /// Messages refused: a value that cannot be, or out of turn.
    pub messages_refused: u64,
    /// Frames taken from the guest.
    pub tx_frames: u64,
    /// Bytes of these frames, without the virtio-net header.
    pub tx_bytes: u64,
    /// Chains longer than the largest frame, thrown away.
    pub tx_oversize: u64,
    /// Chains shorter than the headers of a frame, thrown away.
    pub tx_runt: u64,
    /// Chains thrown away because the ring is disabled.
    pub tx_disabled: u64,
    /// Frames put into the guest's buffers.
    pub rx_frames: u64,
    /// Bytes of these frames, without the virtio-net header.
    pub rx_bytes: u64,
    /// Buffers that they took; more than frames where frames were spread.
    pub rx_chains: u64,
    /// Times that the guest had no room for a frame.
    pub rx_no_room: u64,
    /// Frames that the guest can never have room for, thrown away.
    pub rx_unfit: u64,
    /// Kicks from the guest.
    pub kicks: u64,
    /// Those of rings into which nothing was ever put, but for the kick that starts one.
    pub kicks_in_vain: u64,
    /// Kick descriptors given up because their other end closed or failed.
    pub kicks_lost: u64,
    /// Signals to the guest.
    pub signals: u64,
    /// Signals that could not be sent.
    pub signals_lost: u64,
    /// Times that entries were shown to a guest that did not want a signal.
    pub signals_spared: u64,
    /// Times that the driver was reset, or began anew.
    pub resets: u64,
    /// Times that the device stopped because a ring was broken, by kind, as
    /// named in [`Fault::KINDS`].
    pub faults: [u64; Fault::KINDS.len()],
}

impl DeviceCounters {
    /// Chains that were thrown away.
    pub fn tx_thrown_away(&self) -> u64 {
        self.tx_oversize + self.tx_runt + self.tx_disabled
    }

    /// Every counter with its name.
    pub fn each(&self, mut visit: impl FnMut(&'static str, u64)) {
        // Taken apart by name, so that a new counter cannot be forgotten here.
        let DeviceCounters {
            sessions,
            messages,
            messages_unknown,
            messages_refused,
            tx_frames,
            tx_bytes,
            tx_oversize,
            tx_runt,
            tx_disabled,
            rx_frames,
            rx_bytes,
            rx_chains,
            rx_no_room,
            rx_unfit,
            kicks,
            kicks_in_vain,
            kicks_lost,
            signals,
            signals_lost,
            signals_spared,
            resets,
            faults,
        } = *self;
        for (name, value) in [
            ("sessions", sessions),
            ("messages", messages),
            ("messages_unknown", messages_unknown),
            ("messages_refused", messages_refused),
            ("tx_frames", tx_frames),
            ("tx_bytes", tx_bytes),
            ("tx_oversize", tx_oversize),
            ("tx_runt", tx_runt),
            ("tx_disabled", tx_disabled),
            ("rx_frames", rx_frames),
            ("rx_bytes", rx_bytes),
            ("rx_chains", rx_chains),
            ("rx_no_room", rx_no_room),
            ("rx_unfit", rx_unfit),
            ("kicks", kicks),
            ("kicks_in_vain", kicks_in_vain),
            ("kicks_lost", kicks_lost),
            ("signals", signals),
            ("signals_lost", signals_lost),
            ("signals_spared", signals_spared),
            ("resets", resets),
        ] {
            visit(name, value);
        }
        for (name, value) in Fault::KINDS.into_iter().zip(faults) {
            visit(name, value);
        }
    }
}
