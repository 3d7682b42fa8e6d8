//! What a worker gives turns to, and no more than it has to know of it.

use std::os::fd::BorrowedFd;

use crate::port::Now;
use crate::sys::Token;

/// Tokens of one task are below this.
pub const TASK_TOKENS: Token = 1 << 16;

/// Whether a task may be left alone, having asked to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// There is something to do.
    Not,
    /// Until one of its descriptors says something, or this time on the monotonic
    /// clock has come, in ns.
    Until(u64),
    /// Until one of its descriptors says something.
    Silent,
}

/// A guest, or the switch of a shared NIC: whatever takes turns on a worker.
///
/// No call blocks, and a turn has a bound that does not depend on what a guest or the
/// network does: what is left is for the next one.
pub trait Task: Send {
    /// Its name, for messages.
    fn name(&self) -> &str;

    /// What its messages are logged in.
    fn span(&self) -> &tracing::Span;

    /// How long it is to be polled after something moved, ns.
    fn poll_ns(&self) -> u64;

    /// One turn. Returns whether anything moved.
    fn turn(&mut self, now: Now) -> bool;

    /// Asks to be woken, and looks once more whether there is anything to do.
    fn arm(&mut self, now: Now) -> Rest;

    /// It is given turns from now on and need not be woken.
    fn disarm(&mut self);

    /// Shows every descriptor that may say something, with a token of its own, below
    /// [`TASK_TOKENS`].
    fn watch<'a>(&'a self, show: &mut dyn FnMut(BorrowedFd<'a>, Token));

    /// Changes whenever [`Task::watch`] would show others.
    fn generation(&self) -> u64;

    /// Clears what a readable descriptor says. True if it wants [`Task::control`]; what
    /// else there is, the next turn finds.
    fn ready(&mut self, token: Token) -> bool;

    /// Control messages.
    fn control(&mut self, now: Now);

    /// Whether it carries what others send last, and has to end after them.
    fn ends_last(&self) -> bool {
        false
    }

    /// Ends in good order.
    fn finish(&mut self, now: Now);

    /// Every counter with its name.
    fn each_counter(&self, visit: &mut dyn FnMut(&str, u64));
}
