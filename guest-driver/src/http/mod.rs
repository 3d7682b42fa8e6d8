//! A small HTTP/1.1 server on a channel.
//!
//! It answers every request with a fixed body of 64 bytes, or with files from
//! a directory. It exists to show how an application uses a [`Channel`], to
//! demonstrate and to measure; it is also careful enough to face the open
//! internet: requests are parsed to RFC 9110 and RFC 9112 with limits on
//! everything, and no work is linear in the number of flows. Bodies of requests
//! are read and discarded; one that comes with its CRC32C (`Content-Digest`, RFC
//! 9530) is compared with it, and refused with 400 if it is another.
//!
//! Requests are parsed where they lie. Only when a head spans slots are its
//! pieces copied together ([`crate::Stats::bytes_copied`]). The response is
//! written into the request's own buffer when the request is the last thing
//! in it, else into a granted one; the responses to requests that arrived in
//! one slot leave in one slot.
//!
//! With [`ServerOptions::log`], a POST is answered when it is durable as a record of
//! the region's log, which keeps it where it arrived.
//!
//! | module | knows |
//! | --- | --- |
//! | `parse` | heads and chunked bodies, as bytes |
//! | `respond` | responses, as bytes |
//! | `files` | the directory |
//! | `flow` | what one flow is in the middle of, and how it goes on |
//! | `shared` | what all flows use |
//! | `log` | requests that are durable before they are answered |
//! | `server` | all flows, and the channel |

mod files;
mod flow;
mod log;
mod parse;
mod respond;
mod server;
mod shared;

pub use crate::log::LogError;
pub use log::{Found, LogOptions};
pub use server::{ServeError, Server, ServerOptions};

#[cfg(doc)]
use crate::Channel;
