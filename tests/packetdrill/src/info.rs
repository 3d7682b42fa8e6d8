//! TCP_INFO: `struct tcp_info` of Linux's `linux/tcp.h`, as far as the stack
//! tells what is in it. What it does not tell is zero.

use paste_stack::FlowInfo;

use crate::conn::Conn;

/// States of `net/tcp_states.h`.
pub(crate) const ESTABLISHED: u8 = 1;
pub(crate) const SYN_SENT: u8 = 2;
pub(crate) const CLOSE: u8 = 7;
pub(crate) const CLOSE_WAIT: u8 = 8;
pub(crate) const LISTEN: u8 = 10;

/// Bytes of the structure, in its version of Linux 6.2.
const LEN: usize = 240;

// Where fields are.
const STATE: usize = 0;
const SND_MSS: usize = 16;
const UNACKED: usize = 24;
const SND_CWND: usize = 80;
const NOTSENT_BYTES: usize = 144;
const SND_WND: usize = 228;

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
    pub(crate) fn of(conn: &Conn, flow: Option<FlowInfo>) -> TcpInfo {
        let state = match conn {
            Conn { connected: false, .. } => SYN_SENT,
            Conn { peer_closed: true, .. } => CLOSE_WAIT,
            _ => ESTABLISHED,
        };
        let mut info = TcpInfo::in_state(state);
        if let Some(flow) = flow {
            // Linux counts in segments.
            let mss = u32::from(flow.mss.max(1));
            info.put(SND_MSS, u32::from(flow.mss));
            info.put(UNACKED, flow.unacknowledged.div_ceil(mss));
            info.put(SND_CWND, flow.congestion_window / mss);
            info.put(NOTSENT_BYTES, flow.unsent + conn.tx.len() as u32);
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
