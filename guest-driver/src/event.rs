//! What a channel tells the application.

use std::net::SocketAddr;

use paste_abi::{Flow, Reason};
use paste_pmem::Ticket;

use crate::buffer::Buffer;

/// One thing that happened. Events of a flow come in order.
///
/// A flow's name is dead after [`Event::Reset`] or [`Event::Closed`], and all
/// names and buffers are dead after [`Event::Lost`]: of stored buffers, the host
/// gives those back that are named with [`crate::Channel::resume`].
#[derive(Debug)]
#[must_use = "an event may carry a buffer, which must be sent or given back"]
pub enum Event {
    /// The channel was opened anew after [`Event::Lost`]: listeners must be
    /// asked for again. Not sent for the opening that [`crate::Channel::open`]
    /// waits for.
    Opened,
    /// The channel is gone, and with it every flow, listener and buffer. Unless
    /// told otherwise, the channel is opened anew by the following polls.
    Lost {
        /// Why.
        cause: LostCause,
    },
    /// A listener has a new flow.
    Accepted {
        /// The flow.
        flow: Flow,
        /// The listener that took it.
        listener: Flow,
        /// The peer's address.
        peer: SocketAddr,
        /// The local port.
        local_port: u16,
    },
    /// An active open succeeded.
    Connected {
        /// The flow.
        flow: Flow,
        /// The word that [`crate::Channel::connect`] was given.
        cookie: u64,
    },
    /// In-order payload.
    Data {
        /// The flow that it came on.
        flow: Flow,
        /// The payload, where the NIC put it.
        data: Buffer,
    },
    /// The peer sends no more. The flow can still be sent on.
    Fin {
        /// The flow.
        flow: Flow,
    },
    /// The flow is gone.
    Reset {
        /// The flow.
        flow: Flow,
        /// Why.
        reason: Reason,
    },
    /// Both sides have closed and everything is acknowledged.
    Closed {
        /// The flow.
        flow: Flow,
    },
    /// The peer has acknowledged what was sent with this cookie. Sends of stored
    /// buffers are always told of, also when their flow ends.
    Acked {
        /// The flow.
        flow: Flow,
        /// The word given to [`crate::Channel::send`].
        cookie: u64,
        /// The buffer, if it was sent to be kept.
        buffer: Option<Buffer>,
    },
    /// The host has answered an epoch of [`crate::RegionMedium`], or of
    /// [`crate::Channel::flush`]: everything that was flushed before the ticket
    /// is durable, or why not. What failed is said again with the next epoch.
    Flushed {
        /// The end of the epoch.
        ticket: Ticket,
        /// Why it failed.
        result: Result<(), Reason>,
    },
    /// The host has answered all of what [`crate::Channel::request_resume`]
    /// named: all buffers but these are stored.
    Resumed {
        /// Those that are not the application's.
        refused: Vec<u32>,
    },
    /// The flow takes data again after a refusal with [`Reason::FlowFull`].
    Writable {
        /// The flow.
        flow: Flow,
    },
    /// The outcome of a listen, unlisten or connect.
    Reply {
        /// The word given with the request.
        cookie: u64,
        /// The name of the listener or flow, or why there is none. A connect is
        /// complete only with [`Event::Connected`].
        result: Result<Flow, Reason>,
    },
    /// The host refused a request.
    Refused {
        /// The flow that it was about.
        flow: Flow,
        /// Why. After [`Reason::FlowFull`], [`Event::Writable`] tells when to
        /// send again.
        reason: Reason,
        /// The word given with the request.
        cookie: u64,
        /// The buffer, with the range that was to be sent, if it is the
        /// application's again.
        buffer: Option<Buffer>,
    },
}

/// Why a channel was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LostCause {
    /// The host closed it and said why.
    Host(Reason),
    /// The host broke the protocol, and was told so with this reason.
    Protocol(Reason),
    /// The transport failed: the backend is gone, or its device stopped.
    Transport,
}

impl std::fmt::Display for LostCause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LostCause::Host(reason) => write!(f, "the host closed the channel: {reason}"),
            LostCause::Protocol(reason) => write!(f, "the host broke the protocol: {reason}"),
            LostCause::Transport => f.write_str("the backend is gone"),
        }
    }
}
