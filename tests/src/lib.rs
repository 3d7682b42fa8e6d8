//! What the tests that cross crates share.

#![deny(unsafe_code)]

pub mod sim;
