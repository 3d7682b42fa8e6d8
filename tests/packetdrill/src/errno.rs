//! Errors as the system calls of Linux have them.

use core::ffi::c_int;

use paste_abi::Reason;

/// An `errno`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("errno {0}")]
pub struct Errno(pub c_int);

/// The outcome of a call.
pub type Result<T> = core::result::Result<T, Errno>;

impl Errno {
    /// What a socket reports when the stack ended its flow for `reason`, if it
    /// is an error at all. `half_closed`: the peer had sent FIN before.
    pub(crate) fn of_end(reason: Reason, half_closed: bool) -> Option<Errno> {
        Some(Errno(match reason {
            Reason::PeerReset if half_closed => libc::EPIPE,
            Reason::PeerReset => libc::ECONNRESET,
            Reason::TimedOut => libc::ETIMEDOUT,
            Reason::Refused => libc::ECONNREFUSED,
            Reason::Unreachable => libc::EHOSTUNREACH,
            Reason::Aborted => return None,
            _ => libc::EIO,
        }))
    }

    /// What a call reports when the stack refused its request.
    pub(crate) fn of_refusal(reason: Reason) -> Errno {
        Errno(match reason {
            Reason::PortInUse => libc::EADDRINUSE,
            Reason::BadAddress => libc::EINVAL,
            Reason::Unreachable => libc::ENETUNREACH,
            Reason::NoRoom => libc::ENOBUFS,
            Reason::StaleFlow | Reason::Closed => libc::EPIPE,
            _ => libc::EIO,
        })
    }
}
