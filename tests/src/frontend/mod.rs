//! A vhost-user front end that says anything: whole messages, halves of them,
//! descriptors by the dozen, rings with anything in them, and any PASTE frame.
//!
//! [`Session`] is the socket, [`Ring`] a ring in memory that is read and written
//! as a file, so that nothing here maps anything, [`RawGuest`] a guest that
//! attached properly and may now misbehave, and [`PmemGuest`] the driver of its
//! virtio-pmem device.

mod guest;
mod pmem;
mod ring;
mod session;

pub use guest::{RawGuest, StartOptions, paste_frame};
pub use pmem::PmemGuest;
pub use ring::{Descriptor, Memory, Ring, flag};
pub use session::{Reply, Session, message, shared_memory};
