//! What a guest and its host agree on, byte for byte.
//!
//! Everything here is a layout and its checked parsing: the PASTE frame that
//! carries slots through an ordinary virtio-net device ([`frame`]), the slot
//! itself ([`slot`]), payload that travels with slots ([`inline`]), the opening of a conversation ([`control`]), the
//! superblock of a region ([`superblock`]), and the two foreign layouts that
//! both sides of our own process guests speak: vhost-user messages
//! ([`vhost_user`]) and the virtio-net header ([`net_hdr`]).
//!
//! The crate knows nothing of memory, sockets, rings or TCP. All integers are
//! little endian unless a field says otherwise; every parser takes bytes that
//! an adversary may have written and answers with a value or a small error,
//! never with a panic. `PROTOCOL.md` beside this crate is the prose
//! specification, for whoever writes another guest driver.

#![no_std]
#![forbid(unsafe_code)]

pub mod control;
pub mod frame;
pub mod inline;
pub mod net_hdr;
pub mod slot;
pub mod superblock;
pub mod vhost_user;

pub use frame::{Frame, FrameError, Header, Kind};
pub use slot::{Event, Flow, Reason, Request, Slot};

/// The ethertype of PASTE frames: IEEE 802 local experimental ethertype 1
/// (IEEE Std 802, RFC 9542 section 3). Such a frame never reaches the wire.
pub const ETHERTYPE: u16 = 0x88B5;

/// The protocol version that this crate describes.
pub const VERSION: u8 = 1;

/// Channels that one device carries at once; channel numbers are below this.
pub const CHANNELS_MAX: u16 = 16;

/// A buffer index that names no buffer.
pub const NO_BUFFER: u32 = u32::MAX;
