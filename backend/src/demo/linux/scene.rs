//! The stage of the demo: a network of its own, a directory of its own, and
//! the processes on it. Everything here disappears when it is dropped; and if
//! the process is killed outright, the children's death signals see to it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufRead, BufReader, Read};
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::engine::kernel;
use crate::sys::linux::demo::children::{self, DeathSignal};
use crate::sys::linux::demo::{Isolation, NamespaceError, Network, Tap, netns};

/// Bits of the network part of every address here.
pub const PREFIX: u8 = 24;
/// Where every server listens: a port that needs no privilege.
pub const SERVER_PORT: u16 = 8080;
/// The guest's MAC address, locally administered.
pub const GUEST_MAC: &str = "02:70:61:73:74:02";
/// The MAC address of the client's end of a TAP device.
pub const CLIENT_TAP_MAC: [u8; 6] = [0x02, 0x70, 0x61, 0x73, 0x74, 0x01];
/// How long a process may take to stop when asked.
const STOP_TIME: Duration = Duration::from_secs(5);
/// How often a process that has been asked is looked at.
const STOP_INTERVAL: Duration = Duration::from_millis(5);
/// Lines of a process's log that are shown when it failed.
const LOG_LINES: usize = 8;

/// Where the demo takes place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// In a network of its own, on TAP devices.
    Own(Isolation),
    /// On the machine's loopback device, and on the kernel's own TCP.
    Loopback,
}

impl Ground {
    /// The sides by name, the guest's first.
    pub fn sides(self) -> &'static [(&'static str, Link)] {
        match self {
            Ground::Own(_) => &[
                ("pasted", Link::Pasted),
                ("epoll, TAP", Link::EpollTap),
                ("epoll, veth", Link::EpollVeth),
            ],
            Ground::Loopback => {
                &[("pasted, sockets", Link::Sockets), ("epoll, loopback", Link::EpollLoopback)]
            }
        }
    }
}

/// A way from the client to a server. On devices it is a network of its own, from the
/// addresses set aside for benchmarks (RFC 2544 appendix C); else an address of the
/// loopback device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// To the guest, through a TAP device.
    Pasted,
    /// To the epoll server, through TAP devices and a relay.
    EpollTap,
    /// To the epoll server, through a veth pair.
    EpollVeth,
    /// To the guest on the host's TCP.
    Sockets,
    /// To the epoll server, through the loopback device.
    EpollLoopback,
}

impl Link {
    /// The client's address, where it has one of its own.
    pub fn client(self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self as u8 + 1, 1)
    }

    /// The server's address.
    pub fn server(self) -> Ipv4Addr {
        let first = match self {
            Link::Pasted | Link::EpollTap | Link::EpollVeth => 198,
            Link::Sockets | Link::EpollLoopback => 127,
        };
        Ipv4Addr::new(first, 18, self as u8 + 1, 2)
    }

    /// The device in the client's namespace.
    pub fn client_device(self) -> &'static str {
        ["tap-pasted", "tap-client", "veth-client", "lo", "lo"][self as usize]
    }

    /// The device in the server's namespace; the guest has none.
    pub fn server_device(self) -> &'static str {
        ["", "tap-server", "veth-server", "", "lo"][self as usize]
    }
}

/// Why the demo cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SceneError {
    /// No namespace.
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    /// No TAP device.
    #[error(
        "a TAP device cannot be made ({0}): the kernel's tun module must be loaded and \
         /dev/net/tun be there and writable (in a container: --device /dev/net/tun)"
    )]
    Tap(io::Error),
    /// A device without an address.
    #[error("the demo's network cannot be set up: {0}")]
    Network(io::Error),
    /// No directory.
    #[error("{}: no directory for the demo's files: {source}", path.display())]
    Directory {
        /// Where it was to be.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A process that could not be started.
    #[error("the {name} cannot be started: {source}")]
    Start {
        /// What it is.
        name: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A process that ended or does not do what it should.
    #[error("the {name} {what}{log}")]
    Failed {
        /// What it is.
        name: &'static str,
        /// What happened.
        what: String,
        /// The last lines of what it said, each on a line of its own.
        log: String,
    },
    /// The client.
    #[error("the client failed: {0}")]
    Client(io::Error),
}

/// Finds out where the demo can take place, and goes there: into a network of its own,
/// where that is allowed, or else onto the loopback device; then it says why. Must be
/// called before the process has a second thread.
///
/// # Errors
/// [`SceneError`], where the host's TCP cannot be had either.
pub fn find_ground() -> Result<(Ground, Option<String>), SceneError> {
    // What is refused half-way cannot be taken back, so another process tries first.
    let tried = std::env::current_exe()
        .and_then(|program| Command::new(program).arg("demo-try").stdin(Stdio::null()).output());
    match tried {
        Ok(output) if !output.status.success() && kernel::probe_sockets().is_ok() => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Ok((Ground::Loopback, Some(said)))
        }
        _ => Ok((Ground::Own(enter()?), None)),
    }
}

/// Enters a network of one's own and makes the TAP device of the guest's port
/// in it. Must be called before the process has a second thread.
pub fn enter() -> Result<Isolation, SceneError> {
    let isolation = netns::enter()?;
    let link = Link::Pasted;
    Tap::open(link.client_device()).and_then(Tap::keep).map_err(SceneError::Tap)?;
    Network::open()
        .and_then(|mut network| {
            network.set_up(link.client_device(), Some(CLIENT_TAP_MAC), link.client(), PREFIX)
        })
        .map_err(SceneError::Network)?;
    Ok(isolation)
}

/// A directory that nobody else may enter, and that goes with this value.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// Makes one where temporary files go.
    pub fn new() -> Result<Directory, SceneError> {
        let parent = std::env::temp_dir();
        let mut attempt = 0;
        loop {
            let path = parent.join(format!("pasted-demo-{}-{attempt}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Directory(path)),
                // Left by a process that had our number before.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && attempt < 100 => attempt += 1,
                Err(source) => return Err(SceneError::Directory { path, source }),
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process of the demo: this binary, told to be something else. Its log is a
/// file in the demo's directory. It is stopped when this value goes.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    output: BufReader<ChildStdout>,
    log: PathBuf,
}

impl Process {
    /// Starts `pasted ARGS` on `core`.
    pub fn start(
        name: &'static str,
        args: &[&str],
        core: Option<usize>,
        at_our_death: DeathSignal,
        directory: &Directory,
    ) -> Result<Process, SceneError> {
        let error = |source| SceneError::Start { name, source };
        let log = directory.path().join(format!("{name}.log"));
        // Appended to, so that a second one does not hide why the first ended.
        let file = File::options().create(true).append(true).open(&log).map_err(error)?;
        let mut command = Command::new(std::env::current_exe().map_err(error)?);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
        let mut child = children::spawn(&mut command, core, at_our_death).map_err(error)?;
        let Some(output) = child.stdout.take() else {
            return Err(error(io::ErrorKind::BrokenPipe.into()));
        };
        Ok(Process { name, child, output: BufReader::new(output), log })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it prints; waits for it. An error if it ends instead.
    pub fn line(&mut self) -> Result<String, SceneError> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(n) if n > 0 => Ok(line.trim_end().to_owned()),
            _ => Err(self.failed("ended")),
        }
    }

    /// Everything that it prints from now on; waits for its end, which must be a success.
    /// The process is given back for its log.
    pub fn output_to_end(mut self) -> Result<(String, Process), SceneError> {
        let mut output = String::new();
        let read = self.output.read_to_string(&mut output);
        match read.and_then(|_| self.child.wait()) {
            Ok(status) if status.success() => Ok((output, self)),
            Ok(status) => Err(self.failed(&format!("ended ({status})"))),
            Err(e) => Err(self.failed(&format!("cannot be heard ({e})"))),
        }
    }

    /// An error if it has ended.
    pub fn check(&mut self) -> Result<(), SceneError> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.failed(&format!("ended ({status})"))),
            Err(e) => Err(self.failed(&format!("cannot be watched ({e})"))),
        }
    }

    /// An error about this process, with the end of its log.
    pub fn failed(&self, what: &str) -> SceneError {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let log = lines[lines.len().saturating_sub(LOG_LINES)..]
            .iter()
            .map(|line| format!("\n  {}: {line}", self.name))
            .collect();
        SceneError::Failed { name: self.name, what: what.to_owned(), log }
    }

    /// Ends it as a crash would: SIGKILL. Waits until it is gone.
    pub fn kill(&mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Asks it to stop, and returns the last line that it printed before it
    /// did. It must end by itself, with success.
    pub fn stop(mut self) -> Result<String, SceneError> {
        let _ = children::terminate(&self.child);
        match self.wait(STOP_TIME) {
            Some(true) => {}
            Some(false) => return Err(self.failed("failed when it was stopped")),
            None => return Err(self.failed("did not stop when asked")),
        }
        let mut output = String::new();
        match self.output.read_to_string(&mut output) {
            Ok(_) => Ok(output.lines().last().unwrap_or_default().to_owned()),
            Err(e) => Err(self.failed(&format!("cannot be heard ({e})"))),
        }
    }

    /// Waits for its end; whether it was a success, or `None` if it goes on.
    fn wait(&mut self, limit: Duration) -> Option<bool> {
        let end = Instant::now() + limit;
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status.success());
            }
            if Instant::now() >= end {
                return None;
            }
            std::thread::sleep(STOP_INTERVAL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = children::terminate(&self.child);
            if self.wait(STOP_TIME).is_none() {
                let _ = self.kill();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_has_a_network_of_its_own() {
        let grounds = [Ground::Own(Isolation::Privileged), Ground::Loopback];
        let links: Vec<_> = grounds.iter().flat_map(|g| g.sides()).map(|side| side.1).collect();
        for (i, a) in links.iter().enumerate() {
            assert_ne!(a.client(), a.server());
            let on_loopback = a.server().is_loopback();
            assert_eq!(on_loopback, a.client_device() == "lo");
            assert!(on_loopback || a.client().octets()[..3] == a.server().octets()[..3]);
            for b in &links[..i] {
                assert_ne!(a.server().octets()[..3], b.server().octets()[..3]);
                assert!(on_loopback || a.client_device() != b.client_device());
            }
        }
    }

    #[test]
    fn a_directory_is_private_and_goes_with_everything_in_it() {
        use std::os::unix::fs::PermissionsExt;

        let directory = Directory::new().unwrap();
        let path = directory.path().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(path.join("x"), "y").unwrap();
        assert_ne!(Directory::new().unwrap().path(), path);
        drop(directory);
        assert!(!path.exists());
    }
}
