//! Runs scripts without packetdrill: the part of its language that our own
//! scripts use, against the same table of functions.
//!
//! What is checked is what packetdrill checks (headers, options, payload, times,
//! results and errors of calls), one segment for each packet of the script; and
//! the echo of timestamps, which it does not.

mod packet;
mod parse;
mod run;
mod script;

pub use run::{RunError, run};
