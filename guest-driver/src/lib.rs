//! What a guest application links to be served by `pasted`.
//!
//! An application does not read and write sockets. It opens a [`Channel`],
//! listens, and polls: one [`Channel::poll`] publishes everything that was
//! queued since the last one, signals the host at most once, and takes a batch
//! of what has arrived. Each [`Event::Data`] names a [`Buffer`] that already
//! holds the payload where the NIC put it; sending names a buffer as well.
//!
//! ```no_run
//! use paste_guest::{Channel, Endpoint, Event, Options, SendOptions, Timeout};
//!
//! let endpoint = Endpoint::vhost_user("/run/pasted/web1.sock");
//! let mut channel = Channel::open(&endpoint, Options::default())?;
//! channel.listen(7, 128)?;
//! loop {
//!     channel.poll(Timeout::Never)?;
//!     while let Some(event) = channel.next_event() {
//!         match event {
//!             // Send what was received, from where it was received.
//!             Event::Data { flow, data } => {
//!                 if let Err(refused) = channel.send(flow, data, SendOptions::default()) {
//!                     channel.give_back(refused.buffer);
//!                     let _ = channel.abort(flow);
//!                 }
//!             }
//!             Event::Fin { flow } => channel.close(flow)?,
//!             _ => {}
//!         }
//!     }
//! }
//! # #[allow(unreachable_code)]
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Ownership
//!
//! A buffer belongs to the pool, the port, the stack or the guest, and moves
//! between them with the slot that names it. The application holds a
//! [`Buffer`] exactly while it owns the buffer, which is why its bytes can be
//! lent as plain slices: the host does not write to a buffer that is the
//! guest's. The host is trusted to keep to that, as it is trusted to run the
//! guest at all; everything else that it says is checked.
//!
//! # Back-pressure
//!
//! Nothing here grows. When the host gives no credit, its queue of a flow is
//! full ([`Event::Refused`] with [`Reason::FlowFull`]), or the channel's own
//! queue is full ([`Busy`]), the application is told so, keeps the buffer,
//! and tries again after the next poll or [`Event::Writable`]. An application
//! that stops taking events stops the host in the same way.
//!
//! # Rooms
//!
//! | module | knows |
//! | --- | --- |
//! | `conversation` | the protocol; neither transport, memory nor time |
//! | `ledger` | which buffers are the application's |
//! | `medium` | the region as persistent structures store in it, and what of it waits to be durable |
//! | `memory` | the mapping of the region; the one place that lends its bytes |
//! | `transport` | how frames reach the host |
//! | `transport::machine` | what Linux alone has for an application in a virtual machine: the one place where systems differ |
//! | `sys` | the operating system |
//! | `channel` | all of the above, for the application |
//! | [`log`] | a write-ahead log on a channel, and the buffers that it names |
//! | [`http`] | HTTP/1.1 on a channel |
//! | [`kv`] | a durable key-value store, spoken to in RESP |

#![deny(unsafe_code)]

mod buffer;
mod channel;
mod conversation;
mod error;
mod event;
#[cfg(feature = "http")]
pub mod http;
#[cfg(feature = "kv")]
pub mod kv;
mod ledger;
pub mod log;
mod medium;
mod memory;
mod sys;
mod transport;

pub use buffer::Buffer;
pub use channel::{Batch, Channel, Endpoint, Options, SendOptions, Stats};
pub use conversation::Geometry;
pub use error::{
    Busy, ListenError, OpenError, PollError, ResumeError, SendCause, SendError, WaitError,
};
pub use event::{Event, LostCause};
pub use medium::RegionMedium;
pub use paste_abi::control::FlushDomain;
pub use paste_abi::slot::Opt;
pub use paste_abi::{Flow, Reason};
pub use transport::{PciError, Polling, Timeout, TransportError};
