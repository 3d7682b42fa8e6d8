//! What a guest is still to be told of a flow, beside its buffers: bits of one byte.

/// It was accepted.
pub(super) const ACCEPTED: u8 = 1;
/// It is open, as was asked for.
pub(super) const CONNECTED: u8 = 2;
/// The peer sends no more.
pub(super) const FIN: u8 = 4;
/// It takes payload again.
pub(super) const WRITABLE: u8 = 8;
/// It ended in good order.
pub(super) const CLOSED: u8 = 16;
/// It ended otherwise.
pub(super) const RESET: u8 = 32;
