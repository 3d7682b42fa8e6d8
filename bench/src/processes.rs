//! The processes of a server: started, held still while another server is
//! measured, stopped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pasted::demo::{Directory, Process, SceneError};
use pasted::sys::linux::demo::children::DeathSignal;
use rustix::process::{Pid, Signal, kill_process};

/// How long a backend may take until it serves: a new mirror is written in full.
const START_TIME: Duration = Duration::from_secs(60);
/// How often is looked whether it does.
const START_INTERVAL: Duration = Duration::from_millis(5);

/// Processes that are ended from the last to the first.
#[derive(Debug)]
pub struct Processes(Vec<Process>);

impl Processes {
    /// In the order of their start.
    pub fn new(processes: Vec<Process>) -> Processes {
        Processes(processes)
    }

    /// Their numbers.
    pub fn ids(&self) -> Vec<u32> {
        self.0.iter().map(Process::id).collect()
    }

    /// An error if one of them has ended.
    pub fn check(&mut self) -> Result<(), SceneError> {
        self.0.iter_mut().try_for_each(Process::check)
    }

    /// Holds them still, or lets them go on.
    pub fn hold(&self, still: bool) -> io::Result<()> {
        let signal = if still { Signal::STOP } else { Signal::CONT };
        for pid in self.ids() {
            let pid = Pid::from_raw(pid as i32).ok_or(io::ErrorKind::InvalidInput)?;
            kill_process(pid, signal)?;
        }
        Ok(())
    }

    /// Asks the first one, by SIGUSR1, what it has to say: a line.
    pub fn ask_first(&mut self) -> Result<String, SceneError> {
        let Some(first) = self.0.first_mut() else { return Ok(String::new()) };
        let asked = Pid::from_raw(first.id() as i32).map(|pid| kill_process(pid, Signal::USR1));
        match asked {
            Some(Ok(())) => first.line(),
            _ => Err(first.failed("cannot be asked")),
        }
    }

    /// Ends them in good order, and returns what the last one of them said last.
    pub fn stop(mut self) -> Result<String, SceneError> {
        let _ = self.hold(false);
        let mut said = Vec::new();
        while let Some(process) = self.0.pop() {
            said.push(process.stop()?);
        }
        Ok(said.into_iter().next().unwrap_or_default())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // A process that is held still does not hear that it is to end.
        let _ = self.hold(false);
        while let Some(process) = self.0.pop() {
            drop(process);
        }
    }
}

/// Files and directories that go with this value.
#[derive(Debug, Default)]
pub struct Files(pub Vec<PathBuf>);

impl Drop for Files {
    fn drop(&mut self) {
        for file in &self.0 {
            let _ = fs::remove_dir_all(file).or_else(|_| fs::remove_file(file));
        }
    }
}

/// Starts a backend with these settings and arguments, and waits for its socket. Its files
/// are called as `base` is.
pub fn start_backend(
    base: &Path,
    settings: &str,
    more: &[&str],
    core: usize,
    directory: &Directory,
) -> Result<Process, SceneError> {
    let (file, socket) = (base.with_extension("toml"), base.with_extension("sock"));
    fs::write(&file, settings).map_err(no_directory(&file))?;
    let args = [&["serve-pasted", "--config", text(&file)?], more].concat();
    let mut backend = Process::start("backend", &args, Some(core), DeathSignal::Kill, directory)?;
    let end = Instant::now() + START_TIME;
    while !socket.exists() {
        backend.check()?;
        if Instant::now() >= end {
            return Err(backend.failed("opens no socket"));
        }
        std::thread::sleep(START_INTERVAL);
    }
    Ok(backend)
}

/// That something cannot be done with this path.
pub fn no_directory(path: &Path) -> impl FnOnce(io::Error) -> SceneError {
    let path = path.to_owned();
    move |source| SceneError::Directory { path, source }
}

/// A path as an argument, or in a configuration.
pub fn text(path: &Path) -> Result<&str, SceneError> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "its name is not UTF-8");
    path.to_str().ok_or_else(|| no_directory(path)(invalid()))
}
