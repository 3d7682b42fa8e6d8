//! The C interface of `paste-guest`, declared in `guest-driver/include/paste_guest.h`.
//!
//! A C program opens a stack port, polls it, and walks a ring of slots, as a netmap
//! program walks the ring of a NIC: each slot says what happened and, with payload, names
//! a buffer that holds it where the NIC put it, at `p + off`. What lies behind `head` when
//! the port is polled again is given back; a buffer that was sent is the host's.
//!
//! | module | knows |
//! | --- | --- |
//! | `types` | the structures and numbers of the header |
//! | `ring` | the slots, and whose they are |
//! | `port` | a channel behind a ring, its stored buffers and its log |
//! | `error` | codes, messages, and that no panic gets out |
//! | `ffi` | the functions of the header, and pointers from C |
//! | `ffi_durable` | likewise, of those for durable data |
//!
//! The header is generated: the test `header` says how.

#![deny(unsafe_code)]

mod error;
mod ffi;
mod ffi_durable;
mod port;
mod ring;
mod types;

pub use error::*;
pub use ffi::*;
pub use ffi_durable::*;
pub use types::*;
