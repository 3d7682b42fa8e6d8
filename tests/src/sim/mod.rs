//! Whole hosts under virtual time: stacks with their memories and guests, the
//! link between them, and an adversary.
//!
//! One thread, one clock that only the run moves, everything that happens from
//! one seed: a run is a function of its seed.
//!
//! | module | what it is |
//! | --- | --- |
//! | `scenario` | what is drawn from a seed: settings, conversations, faults |
//! | `run` | the loop, what must hold at each turn, and the judgement at the end |
//! | `guest` | applications that follow scripts and judge what they are told; what they keep and share |
//! | `host`, `memory` | a stack, its port, and buffers of which each has one owner |
//! | `link` | the wire, and what goes wrong on it |
//! | `observer`, `headers` | what can be said of a stack by its segments alone |
//! | `adversary` | a third station |
//! | `pattern` | streams of bytes that nobody keeps |

pub mod adversary;
pub mod guest;
pub mod headers;
mod host;
pub mod link;
mod memory;
pub mod observer;
mod pattern;
mod run;
pub mod scenario;

pub use host::{Host, Setup};
pub use memory::{Owner, StrictMemory};
pub use pattern::{fill, pattern};
pub use run::{Hooks, Nobody, STATIONS, Summary, Tap, run};
pub use scenario::Scenario;
