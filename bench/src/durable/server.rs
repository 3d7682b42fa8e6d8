//! The servers that are compared, from outside: started, held still while
//! another is measured, stopped.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use pasted::demo::{Directory, Process, SceneError};
use pasted::metrics::Snapshot;
use pasted::sys::linux::demo::children::DeathSignal;

use super::bed::{self, Devices, Kind, PREFIX};
use super::load::{Client, LoadError};
use crate::network::NetworkError;
use crate::processes::{Files, Processes, no_directory, start_backend, text};
use crate::serve::READY;

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
    processes: Processes,
    /// What it makes goes with it.
    _files: Files,
    stats: PathBuf,
}

impl Server {
    /// Starts a server with nothing stored, and waits until it serves.
    pub fn start(
        kind: Kind,
        devices: Devices,
        core: usize,
        directory: &Directory,
    ) -> Result<Server, ServerError> {
        let base = directory.path().join(kind.file());
        let stats = base.with_extension("json");
        let (processes, files) = match kind.appendfsync() {
            Some(appendfsync) => start_redis(kind, appendfsync, core, directory, &base)?,
            None => start_kv(kind, devices, core, directory, &base)?,
        };
        let processes = Processes::new(processes);
        let mut server = Server { kind, processes, _files: Files(files), stats };
        let mut client = match Client::connect(kind.address()) {
            Ok(client) => client,
            Err(error) => {
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
        Ok(self.processes.check()?)
    }

    /// Holds its processes still, or lets them go on.
    pub fn hold(&self, still: bool) -> io::Result<()> {
        self.processes.hold(still)
    }

    /// Ends it in good order, and returns what it counted.
    pub fn stop(self) -> Result<Counted, ServerError> {
        self.processes.stop()?;
        Ok(count(&fs::read(&self.stats).unwrap_or_default()))
    }
}

/// What a backend counted of its flushes, of its figures at its end.
pub fn count(stats: &[u8]) -> Counted {
    let snapshot: Snapshot = serde_json::from_slice(stats).unwrap_or_default();
    snapshot.guests.first().map_or_else(Counted::default, |guest| Counted {
        commits: guest.get("flush.commits"),
        epochs: guest.get("flush.epochs"),
    })
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
    devices: Devices,
    core: usize,
    directory: &Directory,
    base: &Path,
) -> Result<Started, ServerError> {
    let (socket, stats) = (base.with_extension("sock"), base.with_extension("json"));
    let mirror = base.with_extension("mirror");
    let _ = fs::remove_file(&stats);
    let mirror = (kind == Kind::KvMirror).then_some(mirror.as_path());
    let port = devices.device(kind.device()).spec();
    let place = Place { mac: kind.mac(), address: *kind.address().ip(), port };
    let settings =
        configuration(&place, text(&socket)?, text(&stats)?, mirror.map(text).transpose()?);
    let backend = start_backend(base, &settings, &[], core, directory)?;
    let poll = POLL_US.to_string();
    let args = ["serve-kv", "--socket", text(&socket)?, "--poll-us", &poll];
    let guest = Process::start("kv", &args, Some(core), DeathSignal::Kill, directory)?;
    Ok((vec![backend, guest], mirror.map(Path::to_owned).into_iter().collect()))
}

/// Where a guest is.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its Ethernet address.
    pub mac: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its port, as a configuration has it.
    pub port: String,
}

/// The configuration of a backend whose guest has a region, with a mirror or in
/// memory alone.
pub fn configuration(place: &Place, socket: &str, stats: &str, mirror: Option<&str>) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let mirror = mirror.map_or_else(String::new, |file| format!(", mirror = {}", quoted(file)));
    let Place { mac, address, port } = place;
    format!(
        "stats = {}\n\n[[guest]]\nname = \"durable\"\nsocket = {}\nmac = \"{mac}\"\n\
         addresses = [\"{address}/{PREFIX}\"]\nport = \"{port}\"\npoll = \"{POLL_US}us\"\n\
         region = {{ size = \"{REGION_SIZE}\"{mirror} }}\n",
        quoted(stats),
        quoted(socket),
    )
}

#[cfg(test)]
mod tests {
    use pasted::config::Config;

    use super::*;

    #[test]
    fn the_backend_takes_its_configuration() {
        let address = Ipv4Addr::new(10, 72, 0, 9);
        let place = Place { mac: Kind::KvMirror.mac(), address, port: "tap:tapm".to_owned() };
        for mirror in [Some("/srv/\"m\""), None] {
            let text = configuration(&place, "/run/a.sock", "/run/s.json", mirror);
            let config = Config::parse("kv.toml", &text).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(config.guests[0].region.mirror.as_deref(), mirror.map(Path::new));
            assert_eq!(config.guests[0].region.size, 256 << 20);
            assert_eq!(config.guests[0].address(), address);
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
