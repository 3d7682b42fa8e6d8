//! The servers that are compared, from outside: started, held still while
//! another is measured, stopped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pasted::demo::{Directory, Process, SceneError};
use pasted::metrics::Snapshot;
use pasted::sys::demo::children::DeathSignal;
use rustix::process::{Pid, Signal, kill_process};

use super::bed::{self, Kind, PREFIX};
use super::load::{Client, LoadError};
use crate::network::NetworkError;
use crate::serve::READY;
use crate::sys;

/// How long a server may take until it serves: a new mirror is written in full.
const START_TIME: Duration = Duration::from_secs(60);
/// How often is looked whether it does.
const START_INTERVAL: Duration = Duration::from_millis(5);
/// How long our server polls before it sleeps; Redis cannot.
pub const POLL_US: u64 = 50;
/// Size of our regions.
pub const REGION_SIZE: &str = "256MiB";

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A process.
    #[error(transparent)]
    Scene(#[from] SceneError),
    /// Its device.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// It does not serve.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It does not promise what it is to promise.
    #[error("{0} does not sync as it was told")]
    Promise(&'static str),
}

/// How often our server's host made something durable, from start to end.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counted {
    /// Syncs of the mirror.
    pub commits: u64,
    /// Epochs that the guest sealed.
    pub epochs: u64,
}

/// A running server.
pub struct Server {
    /// Who it is.
    pub kind: Kind,
    /// Ended from the last to the first.
    processes: Vec<Process>,
    /// What it makes goes with it.
    files: Vec<PathBuf>,
    stats: PathBuf,
}

impl Server {
    /// Starts a server with nothing stored, and waits until it serves.
    pub fn start(kind: Kind, core: usize, directory: &Directory) -> Result<Server, ServerError> {
        let base = directory.path().join(kind.file());
        let stats = base.with_extension("json");
        let (processes, files) = match kind.appendfsync() {
            Some(appendfsync) => start_redis(kind, appendfsync, core, directory, &base)?,
            None => start_kv(kind, core, directory, &base)?,
        };
        let server = Server { kind, processes, files, stats };
        let mut client = match Client::connect(kind.address()) {
            Ok(client) => client,
            Err(error) => {
                let mut server = server;
                server.check()?;
                return Err(error.into());
            }
        };
        if let Some(wanted) = kind.appendfsync() {
            let is_so =
                client.setting("appendfsync")? == wanted && client.setting("appendonly")? == "yes";
            if !is_so {
                return Err(ServerError::Promise(kind.name()));
            }
        }
        Ok(server)
    }

    /// An error if one of its processes has ended.
    pub fn check(&mut self) -> Result<(), ServerError> {
        Ok(self.processes.iter_mut().try_for_each(Process::check)?)
    }

    /// Holds its processes still, or lets them go on.
    pub fn hold(&self, still: bool) -> io::Result<()> {
        let signal = if still { Signal::STOP } else { Signal::CONT };
        for process in &self.processes {
            let pid = Pid::from_raw(process.id() as i32).ok_or(io::ErrorKind::InvalidInput)?;
            kill_process(pid, signal)?;
        }
        Ok(())
    }

    /// Bytes that it has caused to be written to storage.
    pub fn written_bytes(&self) -> io::Result<u64> {
        self.processes.iter().map(|process| sys::written_bytes(process.id())).sum()
    }

    /// Ends it in good order, and returns what it counted.
    pub fn stop(mut self) -> Result<Counted, ServerError> {
        let _ = self.hold(false);
        while let Some(process) = self.processes.pop() {
            process.stop()?;
        }
        Ok(count(&fs::read(&self.stats).unwrap_or_default()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // A process that is held still does not hear that it is to end.
        let _ = self.hold(false);
        while let Some(process) = self.processes.pop() {
            drop(process);
        }
        for file in &self.files {
            let _ = fs::remove_dir_all(file).or_else(|_| fs::remove_file(file));
        }
    }
}

fn count(stats: &[u8]) -> Counted {
    let snapshot: Snapshot = serde_json::from_slice(stats).unwrap_or_default();
    snapshot.guests.first().map_or_else(Counted::default, |guest| Counted {
        commits: guest.get("flush.commits"),
        epochs: guest.get("flush.epochs"),
    })
}

fn no_directory(path: &Path) -> impl FnOnce(io::Error) -> SceneError {
    let path = path.to_owned();
    move |source| SceneError::Directory { path, source }
}

/// A path as an argument, or in a configuration.
fn text(path: &Path) -> Result<&str, SceneError> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidInput, "its name is not UTF-8");
    path.to_str().ok_or_else(|| no_directory(path)(invalid()))
}

type Started = (Vec<Process>, Vec<PathBuf>);

fn start_redis(
    kind: Kind,
    appendfsync: &str,
    core: usize,
    directory: &Directory,
    base: &Path,
) -> Result<Started, ServerError> {
    fs::create_dir(base).map_err(no_directory(base))?;
    let address = kind.address().ip().to_string();
    let args = [
        "serve-redis",
        "--device",
        kind.device(),
        "--address",
        &address,
        "--appendfsync",
        appendfsync,
        "--directory",
        text(base)?,
    ];
    let mut process = Process::start("redis", &args, Some(core), DeathSignal::Kill, directory)?;
    if process.line()? != READY {
        return Err(process.failed("is not ready").into());
    }
    bed::join(kind)?;
    Ok((vec![process], vec![base.to_owned()]))
}

fn start_kv(
    kind: Kind,
    core: usize,
    directory: &Directory,
    base: &Path,
) -> Result<Started, ServerError> {
    let (socket, file) = (base.with_extension("sock"), base.with_extension("toml"));
    let (stats, mirror) = (base.with_extension("json"), base.with_extension("mirror"));
    let _ = fs::remove_file(&stats);
    let mirror = (kind == Kind::KvMirror).then_some(mirror.as_path());
    let settings =
        configuration(kind, text(&socket)?, text(&stats)?, mirror.map(text).transpose()?);
    fs::write(&file, settings).map_err(no_directory(&file))?;
    let start =
        |name, args: &[&str]| Process::start(name, args, Some(core), DeathSignal::Kill, directory);
    let mut backend = start("backend", &["serve-pasted", "--config", text(&file)?])?;
    let end = Instant::now() + START_TIME;
    while !socket.exists() {
        backend.check()?;
        if Instant::now() >= end {
            return Err(backend.failed("opens no socket").into());
        }
        std::thread::sleep(START_INTERVAL);
    }
    let poll = POLL_US.to_string();
    let guest = start("kv", &["serve-kv", "--socket", text(&socket)?, "--poll-us", &poll])?;
    Ok((vec![backend, guest], mirror.map(Path::to_owned).into_iter().collect()))
}

/// The backend's configuration.
fn configuration(kind: Kind, socket: &str, stats: &str, mirror: Option<&str>) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let mirror = mirror.map_or_else(String::new, |file| format!(", mirror = {}", quoted(file)));
    format!(
        "stats = {}\n\n[[guest]]\nname = \"kv\"\nsocket = {}\nmac = \"{}\"\n\
         addresses = [\"{}/{PREFIX}\"]\nport = \"tap:{}\"\npoll = \"{POLL_US}us\"\n\
         region = {{ size = \"{REGION_SIZE}\"{mirror} }}\n",
        quoted(stats),
        quoted(socket),
        kind.mac(),
        kind.address().ip(),
        kind.device(),
    )
}

#[cfg(test)]
mod tests {
    use pasted::config::Config;

    use super::*;

    #[test]
    fn the_backend_takes_its_configuration() {
        for mirror in [Some("/srv/\"m\""), None] {
            let text = configuration(Kind::KvMirror, "/run/a.sock", "/run/s.json", mirror);
            let config = Config::parse("kv.toml", &text).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(config.guests[0].region.mirror.as_deref(), mirror.map(Path::new));
            assert_eq!(config.guests[0].region.size, 256 << 20);
            assert_eq!(config.guests[0].address(), *Kind::KvMirror.address().ip());
        }
    }

    #[test]
    fn syncs_are_counted() {
        let stats =
            br#"{"guests":[{"name":"kv","counters":{"flush.commits":7,"flush.epochs":9}}]}"#;
        assert_eq!(count(stats), Counted { commits: 7, epochs: 9 });
        assert_eq!(count(b"garbage"), Counted::default());
    }
}
