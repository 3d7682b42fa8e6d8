//! Why a port of PASTE's could not be opened: what, why, and what to do, in one line each.

use std::io;

use super::super::NetmapError;

/// Why a port of PASTE's could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum PstError {
    /// What is wrong with netmap itself.
    #[error(transparent)]
    Netmap(#[from] NetmapError),
    /// Netmap was built without PASTE.
    #[error(
        "port {port}: the netmap module of this host was built without PASTE: build the one of \
         PASTE's branch (--enable-paste) for a kernel before Linux 6.5"
    )]
    NoPaste {
        /// The port, as configured.
        port: String,
    },
    /// There is no such interface.
    #[error("port {port}: there is no interface {nic}: `ip link` lists them")]
    NotFound {
        /// The port, as configured.
        port: String,
        /// The interface.
        nic: String,
    },
    /// Somebody has the NIC, or its path.
    #[error(
        "port {port}: {nic} is in use with netmap by another process, or a process that was \
         killed has left connections on it, which go within a minute: end that process, or wait"
    )]
    Busy {
        /// The port, as configured.
        port: String,
        /// The interface.
        nic: String,
    },
    /// Netmap has no memory for it.
    #[error(
        "port {port}: netmap has not enough rings or buffers for PASTE: load it with \
         priv_if_num=16 priv_ring_num=160 priv_ring_size=33024 priv_buf_num=65536, or more"
    )]
    NoMemory {
        /// The port, as configured.
        port: String,
    },
    /// The NIC's offloads are not as PASTE wants them.
    #[error(
        "port {port}: PASTE refuses {nic} as it is set up: `ethtool -K {nic} tx on tso off gso off \
         gro off lro off`"
    )]
    Offloads {
        /// The port, as configured.
        port: String,
        /// The interface.
        nic: String,
    },
    /// The memory is not laid out as the kernel says it is.
    #[error(
        "port {port}: {what} in PASTE's memory cannot be: it is of another version than the one \
         of 2021, whose ports are called pst"
    )]
    Layout {
        /// The port, as configured.
        port: String,
        /// What was looked at.
        what: &'static str,
    },
    /// A request was refused.
    #[error("port {port}: {call} failed: {source}")]
    Failed {
        /// The port, as configured.
        port: String,
        /// What was asked for.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
}
