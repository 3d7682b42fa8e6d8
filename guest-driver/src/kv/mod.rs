//! A durable key-value server on a channel, which speaks RESP2 and RESP3: what
//! redis-cli and redis-benchmark need, and the strings of Redis.
//!
//! A value stays in the packet buffers that it arrived in, and is sent from them,
//! to any number of clients at once; small ones are packed together. A write is
//! answered when it is durable, and everything that was answered is there again
//! after any crash: of the server, of the backend, of both, and, where the region
//! has a mirror or lies in persistent memory, of the machine.
//!
//! One turn takes a batch of requests, does all of them, and ends in one epoch:
//! payload, entries, claims and the records of the log are made durable together,
//! and the host sends no answer of the batch before ([`Server::turn`]).
//!
//! Everything has a limit: a value 512 KiB, a key 900 bytes, a request what a
//! share of the region holds, an answer what waits to be sent. A full region
//! refuses writes with `-OOM` and goes on reading and deleting; a region that
//! cannot be made durable refuses them with `-MISCONF`. What such a write has stored
//! is read by clients from then on, and becomes durable with the next write that does:
//! a refusal says that it is not durable, and not that it was not done.
//!
//! | module | knows |
//! | --- | --- |
//! | `extent`, `chain` | bytes in buffers, one after the other |
//! | `request`, `reply` | RESP, as bytes |
//! | `index` | where the entry of each key lies |
//! | `entry` | what a page holds, byte for byte |
//! | `region` | what the store asks of its region |
//! | `store` | keys and values, what is durable when, cleaning and recovery |
//! | `commands` | what a client can ask |
//! | `client` | what one client is in the middle of |
//! | `journal` | claims and the log, over any medium |
//! | `live` | the region of a channel |
//! | `offline` | a region's file that nobody serves |
//! | `sender` | answers on their way |
//! | `server` | all clients, and the channel |

mod chain;
mod client;
mod commands;
mod entry;
mod extent;
#[cfg(test)]
mod fake;
mod index;
mod journal;
mod live;
mod offline;
mod region;
mod reply;
mod request;
mod sender;
mod server;
mod store;

pub use live::AttachError;
pub use offline::{CheckError, check};
pub use server::{ServeError, Server, ServerOptions};
pub use store::{RecoverError, Recovered};
