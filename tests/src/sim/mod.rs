//! Two stacks under virtual time: a strict memory, and a host around a stack.
//!
//! One thread, one clock that only the test moves, every fault from a seed: a
//! run is a function of its seed.

mod host;
mod memory;

pub use host::{Host, Told};
pub use memory::{BUFFER_SIZE, Owner, StrictMemory};

/// Byte `at` of the stream with this key: what a sender sends and a receiver
/// expects, without either keeping it.
pub fn pattern(key: u64, at: u64) -> u8 {
    // SplitMix64's output function: every bit of key and place matters.
    let mut z = key ^ (at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)).to_le_bytes()[(at % 8) as usize]
}
