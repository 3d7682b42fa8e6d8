//! What the guard against cut files must not change: a SIGBUS that has nothing
//! to do with a mapping of ours still ends the process. It takes a process of
//! its own to see that: this test starts itself again.

#![allow(unsafe_code)]

use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use paste_pmem::Mapping;

const CHILD: &str = "PASTE_PMEM_SIGBUS_CHILD";

/// Runs `child` in a process of its own, and says which signal ended it.
fn ended_by(test: &str, child: impl FnOnce()) -> Option<i32> {
    if std::env::var_os(CHILD).is_some() {
        child();
        std::process::exit(0);
    }
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap()
        .status;
    status.signal()
}

fn guarded() -> Mapping {
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    Mapping::from_fd(file.as_fd(), 0, 4096, true).unwrap()
}

#[test]
fn a_signal_that_was_sent_still_kills() {
    let signal = ended_by("a_signal_that_was_sent_still_kills", || {
        // Rust's own handler for stack overflows swallows a signal that was
        // sent; this is about the default action.
        // SAFETY: SIG_DFL is an action that every signal has.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        let _mapping = guarded();
        // SAFETY: raise has no preconditions.
        unsafe { libc::raise(libc::SIGBUS) };
    });
    assert_eq!(signal, Some(libc::SIGBUS));
}

#[test]
fn a_fault_in_a_mapping_of_others_still_kills() {
    let signal = ended_by("a_fault_in_a_mapping_of_others_still_kills", || {
        let _mapping = guarded();
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        // SAFETY: a fresh mapping, read within its length; that the file has
        // ended by then is what the test is about.
        unsafe {
            let at = rustix::mm::mmap(
                std::ptr::null_mut(),
                4096,
                rustix::mm::ProtFlags::READ,
                rustix::mm::MapFlags::SHARED,
                &file,
                0,
            )
            .unwrap();
            file.set_len(0).unwrap();
            at.cast::<u8>().read_volatile();
        }
    });
    assert_eq!(signal, Some(libc::SIGBUS));
}

#[test]
fn a_fault_in_a_mapping_of_ours_does_not() {
    let signal = ended_by("a_fault_in_a_mapping_of_ours_does_not", || {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let mapping = Mapping::from_fd(file.as_fd(), 0, 4096, true).unwrap();
        file.set_len(0).unwrap();
        assert!(mapping.read_at(0, &mut [0]));
        assert!(mapping.is_poisoned());
    });
    assert_eq!(signal, None);
}

#[test]
fn a_handler_that_was_there_before_is_called() {
    use std::sync::atomic::{AtomicBool, Ordering};
    static CALLED: AtomicBool = AtomicBool::new(false);
    extern "C" fn note(_: libc::c_int) {
        CALLED.store(true, Ordering::Relaxed);
    }
    let signal = ended_by("a_handler_that_was_there_before_is_called", || {
        // SAFETY: the handler has the type for an action without SA_SIGINFO,
        // and only stores to an atomic.
        unsafe { libc::signal(libc::SIGBUS, note as *const () as usize) };
        let _mapping = guarded();
        // SAFETY: raise has no preconditions.
        unsafe { libc::raise(libc::SIGBUS) };
        assert!(CALLED.load(Ordering::Relaxed));
    });
    assert_eq!(signal, None);
}
