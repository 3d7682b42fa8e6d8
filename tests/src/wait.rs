//! Waiting for what another process does, and taking turns with other tests.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take that should take milliseconds, on a machine that
/// does much else.
pub const LIMIT: Duration = Duration::from_secs(30);

/// Looks again and again until `found` is something.
///
/// # Panics
/// If that takes longer than [`LIMIT`]; the message says `what` did not happen.
pub fn until<T>(what: &str, found: impl FnMut() -> Option<T>) -> T {
    until_for(LIMIT, what, found)
}

/// As [`until`], with a limit of its own.
pub fn until_for<T>(limit: Duration, what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A turn at what loads the whole machine. Held by one test at a time, in
/// whatever process.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
}

/// Waits for the turn.
pub fn turn() -> Turn {
    let path = std::env::temp_dir().join("paste-tests.turn");
    let lock = File::create(&path).expect("a lock file can be made");
    lock.lock().expect("a lock can be had");
    Turn { _lock: lock }
}

/// Tells other threads to stop when it is dropped, even by a failure: a scope
/// waits for its threads, and they for this.
#[derive(Debug)]
pub struct Ending<'a>(pub &'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
