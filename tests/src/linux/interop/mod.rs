//! Interoperation with Linux's TCP over a wire that loses, delays and reorders.
//!
//! ```text
//!   namespace "near"                          namespace "far"
//!   curl, wrk, iperf3                         kernel's bridge br0
//!   kernel TCP ── near0 ══ lossy bridge ══ far0 ──┴── tap1 ── pasted ── guest
//!   10.9.0.1                                             10.9.0.2
//! ```
//!
//! The peer to compare with is Linux itself: then br0 has the far address and
//! the server is one of ours over kernel sockets, [`server`]. Everything else is
//! the same: wire, faults, seed, client. Faults strike in both directions.
//!
//! | module | knows |
//! | --- | --- |
//! | [`tap`] | a TAP device whose frames are whole and summed |
//! | [`bridge`] | the thread that carries frames from one TAP device to another |
//! | [`path`] | the two namespaces and their settings |
//! | [`peer`] | what serves at the far end |
//! | [`server`] | the HTTP server over kernel sockets |
//! | [`content`] | bytes that no two places of are alike |
//! | [`transfer`] | a transfer by curl, every byte judged |
//! | [`load`] | wrk and iperf3 |
//! | [`matrix`] | which combinations there are, and how one is run |
//! | [`program`] | arguments, and what is printed |

pub mod bridge;
pub mod content;
pub mod load;
pub mod matrix;
pub mod path;
pub mod peer;
pub mod program;
pub mod server;
pub mod tap;
pub mod transfer;
