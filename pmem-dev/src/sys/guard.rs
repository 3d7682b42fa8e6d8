//! The guard against files that shrink: a load beyond the end of a mapped file
//! raises SIGBUS, which kills a process unless it is handled. Memory of a guest
//! comes as a descriptor from a peer that may cut the file whenever it likes,
//! and only that guest may suffer.
//!
//! A process-wide handler knows the guarded mappings. On a fault in one of them
//! it maps zero pages over the faulted page, marks the mapping poisoned, and
//! lets the access go on: what it reads is zeros, which is judged like
//! everything else a guest writes, and the owner of the mapping sees the mark
//! and ends the guest. Every other SIGBUS goes on to the action that was
//! there before.
//!
//! A signal handler may neither lock nor allocate, so the table is a fixed
//! array of atomics. A writer makes `version` odd while it changes an entry;
//! the handler skips an entry whose version is odd or changed while it read.
//! It cannot miss the entry that it looks for: the faulting access borrows its
//! mapping, so that entry is not being changed.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering, fence};

use super::os;

/// Mappings that one process guards at once.
pub const MAPPINGS_MAX: usize = 4096;

struct Entry {
    /// Odd while the entry is free or being changed.
    version: AtomicU32,
    /// Whether somebody has the entry.
    taken: AtomicBool,
    start: AtomicUsize,
    len: AtomicUsize,
    page: AtomicUsize,
    poisoned: AtomicBool,
}

impl Entry {
    const fn new() -> Entry {
        Entry {
            version: AtomicU32::new(1),
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            poisoned: AtomicBool::new(false),
        }
    }

    /// The range and page size, if `addr` lies in this entry's mapping.
    fn find(&self, addr: usize) -> Option<(usize, usize, usize)> {
        let version = self.version.load(Ordering::Acquire);
        if version % 2 == 1 {
            return None;
        }
        let start = self.start.load(Ordering::Relaxed);
        let len = self.len.load(Ordering::Relaxed);
        let page = self.page.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        if self.version.load(Ordering::Relaxed) != version {
            return None;
        }
        (addr.wrapping_sub(start) < len).then_some((start, len, page))
    }
}

static TABLE: [Entry; MAPPINGS_MAX] = [const { Entry::new() }; MAPPINGS_MAX];
/// Entries from here on were never used: bounds the handler's search.
static USED: AtomicUsize = AtomicUsize::new(0);
static PREVIOUS: OnceLock<Previous> = OnceLock::new();

struct Previous(libc::sigaction);

// SAFETY: `sigaction` is plain data (an address, flags and a mask of signals)
// that is written once, before the handler that reads it can run.
unsafe impl Send for Previous {}
// SAFETY: as above; it is never written again.
unsafe impl Sync for Previous {}

/// A guarded range. Dropping it ends the guard.
#[derive(Debug)]
pub(super) struct Guard {
    index: usize,
}

/// Why a range could not be guarded.
#[derive(Debug)]
pub(super) enum GuardError {
    /// [`MAPPINGS_MAX`] ranges are guarded already.
    Full,
    /// The signal's action could not be set.
    Signal(std::io::Error),
}

impl Guard {
    /// Guards `len` bytes at `start`, mapped in pages of `page` bytes; both
    /// are multiples of it.
    pub(super) fn new(start: usize, len: usize, page: usize) -> Result<Guard, GuardError> {
        install().map_err(GuardError::Signal)?;
        let index = TABLE
            .iter()
            .position(|entry| {
                entry
                    .taken
                    .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
                    .is_ok()
            })
            .ok_or(GuardError::Full)?;
        let entry = &TABLE[index];
        // Orders the odd version before what follows, for a handler that reads
        // this entry now (Boehm, "Can seqlocks get along with programming
        // language memory models?", 2012).
        fence(Ordering::Release);
        entry.start.store(start, Ordering::Relaxed);
        entry.len.store(len, Ordering::Relaxed);
        entry.page.store(page, Ordering::Relaxed);
        entry.poisoned.store(false, Ordering::Relaxed);
        entry.version.fetch_add(1, Ordering::Release);
        USED.fetch_max(index + 1, Ordering::Release);
        Ok(Guard { index })
    }

    /// Whether a fault was caught in the range.
    pub(super) fn is_poisoned(&self) -> bool {
        TABLE[self.index].poisoned.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let entry = &TABLE[self.index];
        entry.version.fetch_add(1, Ordering::AcqRel);
        entry.taken.store(false, Ordering::Release);
    }
}

fn install() -> Result<(), std::io::Error> {
    // The first caller installs; a second one waits until the handler is there.
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    INSTALLED
        .get_or_init(|| {
            let last_errno = || std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
            let mut old = MaybeUninit::<libc::sigaction>::uninit();
            // SAFETY: no new action is given, and `old` is large enough for the
            // present one.
            if unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), old.as_mut_ptr()) } != 0 {
                return Err(last_errno());
            }
            // SAFETY: the call above succeeded and so filled it in.
            let _ = PREVIOUS.set(Previous(unsafe { old.assume_init() }));
            // SAFETY: all-zero bytes are a valid `sigaction`.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = on_sigbus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // SAFETY: the handler has the signature that SA_SIGINFO asks for and
            // makes only async-signal-safe calls; `action` outlives the call.
            if unsafe { libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) } != 0 {
                return Err(last_errno());
            }
            Ok(())
        })
        .map_err(std::io::Error::from_raw_os_error)
}

extern "C" fn on_sigbus(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler.
    let (code, addr) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Only a fault has an address; a signal that was sent has none.
    if os::is_fault(code) && patch(addr) {
        return;
    }
    chain(signal, code, info, context);
}

/// Puts zero pages where `addr` is, if it lies in a guarded mapping.
fn patch(addr: usize) -> bool {
    let used = USED.load(Ordering::Acquire);
    for entry in &TABLE[..used.min(MAPPINGS_MAX)] {
        let Some((start, len, page)) = entry.find(addr) else {
            continue;
        };
        let page_start = start + (addr - start) / page * page;
        // Where the page alone cannot be replaced (a device may map in larger
        // units than its file says), the whole mapping is.
        if !zero_pages(page_start, page) && !zero_pages(start, len) {
            return false;
        }
        entry.poisoned.store(true, Ordering::Release);
        return true;
    }
    false
}

fn zero_pages(start: usize, len: usize) -> bool {
    // SAFETY: the range lies in a live mapping made by `Mapping`, whose memory
    // no reference points into and whose contents are anybody's to change, so
    // replacing its pages breaks nothing. `errno` is put back because the code
    // that was interrupted may be about to read it; mmap is a bare system call.
    unsafe {
        let errno = os::errno();
        let saved = *errno;
        let at = libc::mmap(
            start as *mut libc::c_void,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        );
        *errno = saved;
        at != libc::MAP_FAILED
    }
}

/// Does what was done about SIGBUS before the guard.
fn chain(
    signal: libc::c_int,
    code: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    let Some(Previous(previous)) = PREVIOUS.get() else {
        return;
    };
    match previous.sa_sigaction {
        libc::SIG_IGN if !os::is_fault(code) => {}
        // An ignored fault is fatal all the same (POSIX sigaction): the default
        // action ends the process when the access is tried again, or when the
        // signal that was sent comes back.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: all-zero bytes are a valid `sigaction`, namely SIG_DFL;
            // sigaction and raise are async-signal-safe.
            unsafe {
                let default: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &default, ptr::null_mut());
                if !os::is_fault(code) {
                    libc::raise(signal);
                }
            }
        }
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: an action with SA_SIGINFO holds a function of this type.
            unsafe {
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(handler);
                handler(signal, info, context);
            }
        }
        handler => {
            // SAFETY: an action without SA_SIGINFO holds a function of this type.
            unsafe {
                let handler: extern "C" fn(libc::c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        }
    }
}
