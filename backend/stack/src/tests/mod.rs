//! Tests of the stack as a whole. The rules of single modules are tested
//! beside them.

mod audit;
mod bottleneck;
mod closing;
mod conformance;
mod cookies;
mod data;
mod ecn;
mod fragments;
mod harness;
mod hostile;
mod ipv6;
mod lossy;
mod neighbours;
mod opening;
mod path;
mod recovery;
mod sack;
mod shared;
mod small;
