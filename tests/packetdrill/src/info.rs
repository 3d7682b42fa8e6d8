//! TCP_INFO: `struct tcp_info` of Linux's `linux/tcp.h`, as far as the stack
//! tells what is in it. What it does not tell is zero.

use paste_stack::{FlowInfo, Repairing};

use crate::conn::Conn;

/// States of `net/tcp_states.h`.
pub(crate) const ESTABLISHED: u8 = 1;
pub(crate) const SYN_SENT: u8 = 2;
pub(crate) const CLOSE: u8 = 7;
pub(crate) const CLOSE_WAIT: u8 = 8;
pub(crate) const LISTEN: u8 = 10;

/// Bytes of the structure, with room for what later versions of Linux append.
const LEN: usize = 384;

// Where fields are. Times are microseconds.
const STATE: usize = 0;
const CA_STATE: usize = 1;
const BACKOFF: usize = 4;
const RTO: usize = 8;
const SND_MSS: usize = 16;
const UNACKED: usize = 24;
const SACKED: usize = 28;
const LOST: usize = 32;
const LAST_DATA_RECV: usize = 52;
const RTT: usize = 68;
const SND_SSTHRESH: usize = 76;
const SND_CWND: usize = 80;
const NOTSENT_BYTES: usize = 144;
const MIN_RTT: usize = 148;
const SND_WND: usize = 228;

/// States of `tcpi_ca_state`, `enum tcp_ca_state` of `linux/tcp.h`.
const CA_OPEN: u8 = 0;
const CA_DISORDER: u8 = 1;
const CA_RECOVERY: u8 = 3;
const CA_LOSS: u8 = 4;
/// What Linux says of a threshold that there is not.
const NO_SSTHRESH: u32 = 0x7fff_ffff;
/// A threshold beyond any window that RFC 7323 can express.
const THRESHOLD_MAX: u32 = 1 << 30;

/// The structure.
#[derive(Clone, Debug)]
pub(crate) struct TcpInfo([u8; LEN]);

impl TcpInfo {
    /// Of a socket that has no connection.
    pub(crate) fn in_state(state: u8) -> TcpInfo {
        let mut info = TcpInfo([0; LEN]);
        info.0[STATE] = state;
        info
    }

    /// Of a connection.
    pub(crate) fn of(conn: &Conn, flow: Option<FlowInfo>, now: u64) -> TcpInfo {
        let state = match conn {
            Conn { connected: false, .. } => SYN_SENT,
            Conn { peer_closed: true, .. } => CLOSE_WAIT,
            _ => ESTABLISHED,
        };
        let mut info = TcpInfo::in_state(state);
        let milliseconds = (now - conn.received_at.min(now)) / 1_000_000;
        info.put(LAST_DATA_RECV, milliseconds.min(u64::from(u32::MAX)) as u32);
        if let Some(flow) = flow {
            // Linux counts in segments.
            let mss = u32::from(flow.mss.max(1));
            let microseconds = |ns: u64| (ns / 1000).min(u64::from(u32::MAX)) as u32;
            info.0[CA_STATE] = match flow.repairing {
                Repairing::Nothing if flow.sacked > 0 => CA_DISORDER,
                Repairing::Nothing => CA_OPEN,
                Repairing::Recovery => CA_RECOVERY,
                Repairing::Timeout => CA_LOSS,
            };
            info.0[BACKOFF] = flow.backoff;
            info.put(RTO, microseconds(flow.timeout));
            info.put(SND_MSS, mss);
            info.put(UNACKED, flow.unacknowledged.div_ceil(mss));
            info.put(SACKED, flow.sacked.div_ceil(mss));
            info.put(LOST, flow.lost.div_ceil(mss));
            info.put(RTT, microseconds(flow.round_trip));
            let threshold = flow.slow_start_threshold;
            let none = threshold >= THRESHOLD_MAX;
            info.put(SND_SSTHRESH, if none { NO_SSTHRESH } else { threshold / mss });
            info.put(SND_CWND, flow.congestion_window / mss);
            info.put(NOTSENT_BYTES, flow.unsent + conn.tx.len() as u32);
            info.put(MIN_RTT, microseconds(flow.round_trip_min));
            info.put(SND_WND, flow.send_window);
        }
        info
    }

    fn put(&mut self, at: usize, value: u32) {
        self.0[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }

    /// The structure's bytes.
    pub(crate) fn bytes(&self) -> [u8; LEN] {
        self.0
    }
}
