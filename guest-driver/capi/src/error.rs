//! Codes, the message of the last failure, and that no panic gets out.

use std::cell::RefCell;
use std::ffi::{CStr, CString};
use std::panic::{AssertUnwindSafe, catch_unwind};

use paste_guest::log::{LogError, Lost, RecordError};
use paste_guest::{Busy, ListenError, OpenError, PciError, PollError, SendCause, TransportError};
use paste_pmem::wal::{AppendError, WalError};

/// Done.
pub const PASTE_OK: i32 = 0;
/// An argument is wrong.
pub const PASTE_EINVAL: i32 = -1;
/// Not now: poll, and try again.
pub const PASTE_EBUSY: i32 = -2;
/// The buffer is not, or no longer, the application's.
pub const PASTE_ESTALE: i32 = -3;
/// The host refused.
pub const PASTE_EREFUSED: i32 = -4;
/// The host cannot be reached, or the channel was lost.
pub const PASTE_ELOST: i32 = -5;
/// The host did not answer in time.
pub const PASTE_ETIMEDOUT: i32 = -6;
/// This system cannot do it.
pub const PASTE_ENOTSUP: i32 = -7;
/// A fault of the library's own. The port can only be closed.
pub const PASTE_EFAULT: i32 = -8;

/// The buffer is not stored.
pub const PASTE_ENOTSTORED: i32 = -9;
/// The log is full: give up records, and poll.
pub const PASTE_EFULL: i32 = -10;
/// There is a log in the region, and it cannot be read.
pub const PASTE_EDAMAGED: i32 = -11;

/// A failure: its code and what is said of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) code: i32,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(code: i32, message: impl Into<String>) -> Failure {
        Failure { code, message: message.into() }
    }
}

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Failure {
        let code = match &error {
            OpenError::Transport(error) if is_misnamed(error) => PASTE_EINVAL,
            OpenError::Transport(TransportError::LinuxAlone(_)) => PASTE_ENOTSUP,
            OpenError::Transport(_) | OpenError::Lost(_) => PASTE_ELOST,
            OpenError::Channel(_)
            | OpenError::FrameSize(_)
            | OpenError::NoPairs
            | OpenError::OnePair(_) => PASTE_EINVAL,
            OpenError::Refused(_) => PASTE_EREFUSED,
            OpenError::TimedOut => PASTE_ETIMEDOUT,
        };
        Failure::new(code, error.to_string())
    }
}

/// Whether what was named is no device that an application could drive, whatever the host
/// does.
fn is_misnamed(error: &TransportError) -> bool {
    use PciError::{Absent, Driver, NotNet};
    match error {
        TransportError::PciAddress(_) => true,
        TransportError::Pci { error, .. } => {
            matches!(error, Absent | NotNet { .. } | Driver { .. })
        }
        _ => false,
    }
}

impl From<PollError> for Failure {
    fn from(error: PollError) -> Failure {
        Failure::new(PASTE_ELOST, error.to_string())
    }
}

impl From<Busy> for Failure {
    fn from(error: Busy) -> Failure {
        Failure::new(PASTE_EBUSY, error.to_string())
    }
}

impl From<ListenError> for Failure {
    fn from(error: ListenError) -> Failure {
        let code = match error {
            ListenError::Refused(_) => PASTE_EREFUSED,
            ListenError::Lost(_) => PASTE_ELOST,
            ListenError::TimedOut => PASTE_ETIMEDOUT,
            ListenError::Busy(_) => PASTE_EBUSY,
        };
        Failure::new(code, error.to_string())
    }
}

impl From<SendCause> for Failure {
    fn from(cause: SendCause) -> Failure {
        let code = match cause {
            SendCause::Busy(_) => PASTE_EBUSY,
            SendCause::Range => PASTE_EINVAL,
            SendCause::Stale => PASTE_ESTALE,
            SendCause::NotStored => PASTE_ENOTSTORED,
            SendCause::Unsupported => PASTE_ENOTSUP,
        };
        Failure::new(code, cause.to_string())
    }
}

impl From<Lost> for Failure {
    fn from(lost: Lost) -> Failure {
        Failure::new(PASTE_ELOST, lost.to_string())
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Failure {
        let code = match error {
            LogError::Unsupported
            | LogError::FurtherPair(_)
            | LogError::Log(WalError::Small { .. }) => PASTE_ENOTSUP,
            LogError::Lost => PASTE_ELOST,
            LogError::Log(_) => PASTE_EDAMAGED,
            LogError::KeptBack(_) => PASTE_EREFUSED,
            LogError::Resume(_) | LogError::NotDurable => PASTE_ETIMEDOUT,
        };
        Failure::new(code, error.to_string())
    }
}

impl From<RecordError> for Failure {
    fn from(error: RecordError) -> Failure {
        let code = match error {
            RecordError::Append(AppendError::Full { .. }) => PASTE_EFULL,
            RecordError::Append(AppendError::NotReady) => PASTE_EBUSY,
            RecordError::Append(_) => PASTE_EINVAL,
            RecordError::Lost => PASTE_ELOST,
            RecordError::Foreign(_) => PASTE_ESTALE,
        };
        Failure::new(code, error.to_string())
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// What was said of the calling thread's last failure. Good until its next one.
pub(crate) fn last() -> *const std::ffi::c_char {
    LAST.with_borrow(|message| message.as_ptr())
}

fn remember(message: String) {
    // A message has no zeros; if it had, what stands before one would do.
    let mut bytes = message.into_bytes();
    bytes.push(0);
    let message = CStr::from_bytes_until_nul(&bytes).map(CStr::to_owned).unwrap_or_default();
    LAST.set(message);
}

/// Does the work of a function of the header: its value, or the code of its failure,
/// whose message is remembered. A panic is a failure and ends here.
pub(crate) fn guard(work: impl FnOnce() -> Result<i32, Failure>) -> i32 {
    // What a panic leaves half done is a port, which its flag then closes to use.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => value,
        Ok(Err(Failure { code, message })) => {
            remember(message);
            code
        }
        Err(_) => {
            remember("a fault of the library's own: close the port".to_owned());
            PASTE_EFAULT
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(unsafe_code, reason = "as C reads it")]
    fn said() -> String {
        // SAFETY: ends with a zero, and no other failure of this thread comes between.
        unsafe { CStr::from_ptr(last()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_failure_is_a_code_and_a_message_of_its_thread() {
        assert_eq!(guard(|| Ok(7)), 7);
        assert_eq!(guard(|| Err(Failure::new(PASTE_EBUSY, "not now"))), PASTE_EBUSY);
        assert_eq!(said(), "not now");
        assert_eq!(guard(|| Ok(7)), 7);
        assert_eq!(said(), "not now");
        assert_eq!(guard(|| Err(Failure::new(PASTE_EINVAL, "cut\0off"))), PASTE_EINVAL);
        assert_eq!(said(), "cut");
        std::thread::spawn(|| assert_eq!(said(), "")).join().unwrap();
    }

    #[test]
    fn what_this_system_has_not_is_no_loss() {
        let error = OpenError::from(TransportError::LinuxAlone("vtnet0".to_owned()));
        let Failure { code, message } = error.into();
        assert_eq!(code, PASTE_ENOTSUP);
        assert!(message.contains("vtnet0: a network device serves applications on Linux alone"));
    }

    #[test]
    fn a_panic_ends_at_the_boundary() {
        assert_eq!(guard(|| panic!("at random")), PASTE_EFAULT);
        assert!(said().contains("close the port"));
    }
}
