//! The contract between persistent structures and what makes their bytes
//! durable. Claims, the log and the index store through [`Medium`] and nothing
//! else, so that they are the same on device DAX, behind a mirror file and under
//! a test that takes power away between any two stores.
//!
//! # What a structure may count on
//!
//! - A load shows the newest store.
//! - An aligned 8-byte word is stored whole. A longer store may be torn between
//!   words.
//! - Nothing stored becomes durable by an appointed time unless it is flushed,
//!   and anything stored may become durable at any time, flushed or not, in any
//!   order.
//! - [`Medium::seal`] ends an epoch. When [`Medium::reached`] says so of its
//!   ticket, everything that was flushed before it is durable. Epochs are
//!   reached in order; within one there is no order.
//! - After a restart, what is loaded may be newer than what is durable: it was
//!   stored, and its epoch never ended. Whoever trusts what it finds flushes it
//!   again before it builds on it.
//!
//! A structure that needs *this before that* therefore flushes this, seals, waits
//! for the ticket, and only then stores that. With CPU caches as the domain a
//! ticket is reached as soon as it is drawn; with a mirror file it takes a
//! message to the host and a sync of its file, so structures are written as
//! steps that can wait, and never wait themselves.

/// Names the end of an epoch. Later tickets are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ticket(pub u64);

/// Memory of a region, with the means to make it durable. Offsets are from the
/// start of the guest's mapping, in bytes; ranges beyond its end are a fault of the
/// caller's, answered by zeros or by nothing.
pub trait Medium {
    /// Bytes that can be addressed.
    fn len(&self) -> u64;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies bytes out.
    fn load(&self, at: u64, out: &mut [u8]);

    /// Copies bytes in; not durable yet.
    fn store(&mut self, at: u64, data: &[u8]);

    /// Marks a range as part of the present epoch.
    fn flush(&mut self, at: u64, len: u64);

    /// Ends the epoch.
    fn seal(&mut self) -> Ticket;

    /// Whether everything flushed before `ticket` is durable.
    fn reached(&self, ticket: Ticket) -> bool;
}
