//! Processes that do not outlive the one that started them, and their cores.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores on which this process may run, in order.
pub fn cores() -> io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect())
}

/// Binds the calling thread, and the threads and processes that it starts, to
/// one core.
pub fn pin(core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(sched_setaffinity(None, &set)?)
}

/// Starts a process on `core` (any, if `None`) that is sent `at_our_death` when
/// the calling *thread* ends, even by SIGKILL. It is in a process group of its
/// own, so that a terminal's Ctrl-C reaches the caller alone, which then stops
/// it in good order.
pub fn spawn(
    command: &mut Command,
    core: Option<usize>,
    at_our_death: DeathSignal,
) -> io::Result<Child> {
    let parent = getpid();
    let signal = match at_our_death {
        DeathSignal::Kill => Signal::KILL,
        DeathSignal::Terminate => Signal::TERM,
    };
    let prepare = move || {
        set_parent_process_death_signal(Some(signal))?;
        // The parent may have died before the request was made.
        if getppid() != Some(parent) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        core.map_or(Ok(()), pin)
    };
    command.process_group(0);
    // SAFETY: between fork and exec `prepare` makes system calls only: it
    // neither allocates nor takes a lock.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}

/// What a child is sent when its parent dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeathSignal {
    /// The end, at once.
    Kill,
    /// A request to stop in good order.
    Terminate,
}

/// Asks a child to stop in good order.
pub fn terminate(child: &Child) -> io::Result<()> {
    let pid = Pid::from_child(child);
    Ok(rustix::process::kill_process(pid, Signal::TERM)?)
}

/// Whether the process that started this one has ended.
pub fn orphaned(parent: u32) -> bool {
    getppid().is_none_or(|pid| pid.as_raw_nonzero().get() as u32 != parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_runs_on_its_core_and_stops_when_asked() {
        let core = *cores().unwrap().last().unwrap();
        let mut sleeper = Command::new("sleep");
        let mut child = spawn(sleeper.arg("100"), Some(core), DeathSignal::Kill).unwrap();
        let set = sched_getaffinity(Some(Pid::from_child(&child))).unwrap();
        assert!(set.is_set(core) && set.count() == 1);
        terminate(&child).unwrap();
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn a_child_dies_with_the_thread_that_started_it() {
        let mut child = std::thread::spawn(|| {
            spawn(Command::new("sleep").arg("100"), None, DeathSignal::Kill).unwrap()
        })
        .join()
        .unwrap();
        assert!(!child.wait().unwrap().success());
    }
}
