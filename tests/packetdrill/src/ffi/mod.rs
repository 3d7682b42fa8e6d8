//! Where C calls: the only room with `unsafe`.
//!
//! Each function of the table turns what C passed into slices, addresses and
//! numbers, calls the [`Harness`](crate::harness::Harness), and turns the outcome into a return value and
//! `errno`. Null pointers and wrong sizes are errors; a panic is `EIO`. That
//! pointers which are not null point to what the interface says is the caller's
//! word, and nothing can check it.

mod address;
pub mod caller;
#[cfg(feature = "preload")]
mod preload;
mod table;

pub use table::packetdrill_interface_init;
