//! What can be wrong with sockets, for the operator.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::IpAddr;

/// Why the host's TCP cannot be had.
#[derive(Debug)]
pub enum SocketsError {
    /// There is no io_uring.
    Unsupported,
    /// The administrator has turned it off: what `kernel.io_uring_disabled` says.
    TurnedOff(String),
    /// A system-call filter refuses it.
    Filtered,
    /// The kernel does not know something that is needed.
    TooOld {
        /// What it refused.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Memory may not be locked.
    Memory {
        /// What failed.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Another failure.
    Failed {
        /// The system call.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The address is not the host's.
    Address {
        /// The guest's address.
        address: IpAddr,
        /// What the system said.
        source: io::Error,
    },
    /// A VLAN is the business of the host's network.
    Vlan {
        /// The VLAN that was asked for.
        vlan: u16,
    },
}

impl SocketsError {
    /// What is wrong.
    pub fn why(&self) -> String {
        match self {
            SocketsError::Unsupported => "there is no io_uring on this system".to_owned(),
            SocketsError::TurnedOff(setting) => {
                format!("io_uring is turned off (kernel.io_uring_disabled is {setting})")
            }
            SocketsError::Filtered => "a system-call filter forbids io_uring_setup".to_owned(),
            SocketsError::TooOld { call, source } => {
                format!("this kernel's io_uring cannot do what is needed ({call}: {source})")
            }
            SocketsError::Memory { call, source } => format!("{call} has no memory ({source})"),
            SocketsError::Failed { call, source } => format!("{call} failed ({source})"),
            SocketsError::Address { address, source } => {
                format!("{address} cannot be bound ({source})")
            }
            SocketsError::Vlan { .. } => "VLANs are the host's".to_owned(),
        }
    }

    /// What to do.
    pub fn help(&self) -> Cow<'static, str> {
        match self {
            SocketsError::Unsupported => "use another kind of port".into(),
            SocketsError::TurnedOff(_) => {
                "allow it with `sysctl kernel.io_uring_disabled=0`, or use another kind of port"
                    .into()
            }
            SocketsError::Filtered => {
                "in a container, use a profile that allows io_uring_setup, io_uring_enter and \
                 io_uring_register (--security-opt seccomp=FILE, or unconfined), or use another \
                 kind of port"
                    .into()
            }
            SocketsError::TooOld { .. } => "use Linux 6.1 or later, or another kind of port".into(),
            SocketsError::Memory { .. } => {
                "raise the limit of locked memory (`ulimit -l`), or lower the guest's flows_max"
                    .into()
            }
            SocketsError::Failed { .. } => {
                "see whether the system's limits forbid it, or use another kind of port".into()
            }
            SocketsError::Address { .. } => {
                "give the guest an address that this host has, as in addresses = \
                 [\"127.0.0.1/8\"], or all of them with [\"0.0.0.0/32\"]"
                    .into()
            }
            SocketsError::Vlan { vlan } => format!(
                "remove `vlan`, and give the guest the address of the host's interface on VLAN \
                 {vlan}"
            )
            .into(),
        }
    }
}

impl fmt::Display for SocketsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port sockets: {}: {}", self.why(), self.help())
    }
}

impl std::error::Error for SocketsError {}
