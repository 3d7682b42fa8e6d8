//! The servers that are compared, each a process or two of this binary on the
//! servers' core. Only the one that is measured runs: the other is stopped, so
//! that its polling takes nothing from the core that they share.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use pasted::demo::epoll_server::Served;
use pasted::demo::{Directory, Process, SceneError};
use pasted::metrics::Snapshot;
use pasted::sys::demo::children::DeathSignal;
use serde::Deserialize;

use crate::network::{EPOLL, GUEST, GUEST_DEVICE, GUEST_MAC, PREFIX};
use crate::processes::{Processes, start_backend, text};
use crate::serve::READY;

/// Bytes of a request, head and body together.
pub const REQUEST_LEN: usize = 1400;
/// Stands for "always" where a number of microseconds is wanted: an hour.
const ALWAYS_US: u64 = 3_600_000_000;

/// Whether one of the backend's figures says how often something happened, and
/// not how much of it there is.
fn is_count(name: &str) -> bool {
    name != "stack.flows" && !name.starts_with("pool.")
}

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The backend and a guest.
    Pasted,
    /// The epoll server on the kernel's TCP.
    Epoll,
}

impl Kind {
    /// In the order of their turns.
    pub const ALL: [Kind; 2] = [Kind::Pasted, Kind::Epoll];

    /// As it is called in tables and rows.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Pasted => "pasted",
            Kind::Epoll => "epoll",
        }
    }

    /// Where it serves.
    pub fn address(self) -> SocketAddrV4 {
        match self {
            Kind::Pasted => GUEST,
            Kind::Epoll => EPOLL,
        }
    }

    /// Its processes, in the order of [`Server::pids`].
    pub fn parts(self) -> &'static [&'static str] {
        match self {
            Kind::Pasted => &["backend", "guest"],
            Kind::Epoll => &["epoll"],
        }
    }
}

/// Where and how servers run.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The core.
    pub core: usize,
    /// The polling time in us; `None`: always.
    pub poll_us: Option<u64>,
    /// Where files and logs go.
    pub directory: &'a Directory,
}

/// What a server counted from its start to its end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counted {
    /// Requests that it answered.
    pub requests: u64,
    /// Requests, or slots with payload, per wake-up that brought any.
    pub batch_mean: f64,
    /// The backend's counters that count events, of those that are not zero.
    pub counters: BTreeMap<String, u64>,
}

/// A running server.
pub struct Server {
    /// Who it is.
    pub kind: Kind,
    /// In the order of [`Kind::parts`].
    processes: Processes,
    stats: PathBuf,
}

/// What a guest prints when it has stopped, of which this is wanted.
#[derive(Deserialize)]
struct GuestReport {
    mean_batch: f64,
}

impl Server {
    /// Starts a server and waits until it can be connected to, or nearly: a
    /// guest may still be asking for its listener.
    pub fn start(kind: Kind, setting: Setting<'_>) -> Result<Server, SceneError> {
        let stats = setting.directory.path().join("stats.json");
        let processes = match kind {
            Kind::Pasted => start_pasted(setting, &stats)?,
            Kind::Epoll => start_epoll(setting)?,
        };
        Ok(Server { kind, processes: Processes::new(processes), stats })
    }

    /// The numbers of its processes.
    pub fn pids(&self) -> Vec<u32> {
        self.processes.ids()
    }

    /// An error if one of its processes has ended.
    pub fn check(&mut self) -> Result<(), SceneError> {
        self.processes.check()
    }

    /// Holds its processes still, or lets them go on.
    pub fn hold(&self, still: bool) -> io::Result<()> {
        self.processes.hold(still)
    }

    /// Ends it in good order, and returns what it counted.
    pub fn stop(self) -> Result<Counted, SceneError> {
        let said = self.processes.stop()?;
        Ok(match self.kind {
            Kind::Pasted => count_pasted(&said, &fs::read(&self.stats).unwrap_or_default()),
            Kind::Epoll => count_epoll(&said),
        })
    }
}

fn count_epoll(said: &str) -> Counted {
    let served: Served = serde_json::from_str(said).unwrap_or_default();
    Counted {
        requests: served.requests,
        batch_mean: served.requests as f64 / served.batches.max(1) as f64,
        counters: BTreeMap::new(),
    }
}

fn count_pasted(said: &str, stats: &[u8]) -> Counted {
    let report = serde_json::from_str(said).unwrap_or(GuestReport { mean_batch: 0.0 });
    let snapshot: Snapshot = serde_json::from_slice(stats).unwrap_or_default();
    let counters: BTreeMap<_, _> = snapshot
        .guests
        .into_iter()
        .flat_map(|guest| guest.counters)
        .filter(|(name, value)| *value > 0 && is_count(name))
        .collect();
    Counted {
        requests: counters.get("stack.bytes_in").copied().unwrap_or(0) / REQUEST_LEN as u64,
        batch_mean: report.mean_batch,
        counters,
    }
}

fn start_epoll(setting: Setting<'_>) -> Result<Vec<Process>, SceneError> {
    let poll = setting.poll_us.unwrap_or(ALWAYS_US).to_string();
    let (address, parent) = (EPOLL.to_string(), std::process::id().to_string());
    let args = [
        "serve-epoll",
        "--address",
        &address,
        "--poll-us",
        &poll,
        "--parent",
        &parent,
        "--directory",
        text(setting.directory.path())?,
    ];
    let core = Some(setting.core);
    // Asked to stop should we die, not killed: it then tidies up.
    let death = DeathSignal::Terminate;
    let mut process = Process::start("epoll", &args, core, death, setting.directory)?;
    if process.line()? != READY {
        return Err(process.failed("is not ready"));
    }
    Ok(vec![process])
}

fn start_pasted(setting: Setting<'_>, stats: &Path) -> Result<Vec<Process>, SceneError> {
    let base = setting.directory.path().join("guest");
    let socket = base.with_extension("sock");
    let settings = configuration(text(&socket)?, text(stats)?, setting.poll_us);
    let backend = start_backend(&base, &settings, setting.core, setting.directory)?;
    let poll = setting.poll_us.unwrap_or(ALWAYS_US).to_string();
    let args = ["serve-guest", "--socket", text(&socket)?, "--poll-us", &poll];
    let core = Some(setting.core);
    let guest = Process::start("guest", &args, core, DeathSignal::Kill, setting.directory)?;
    Ok(vec![backend, guest])
}

/// The backend's configuration: what README's quick start has, but for names.
fn configuration(socket: &str, stats: &str, poll_us: Option<u64>) -> String {
    let quoted = |text: &str| toml::Value::from(text).to_string();
    let poll = poll_us.map_or_else(|| "always".to_owned(), |us| format!("{us}us"));
    format!(
        "stats = {}\n\n[[guest]]\nname = \"bench\"\nsocket = {}\nmac = \"{GUEST_MAC}\"\n\
         addresses = [\"{}/{PREFIX}\"]\nport = \"tap:{GUEST_DEVICE}\"\npoll = \"{poll}\"\n",
        quoted(stats),
        quoted(socket),
        GUEST.ip(),
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use pasted::config::{Config, Poll};
    use pasted::demo::http::request;

    use super::*;

    #[test]
    fn the_backend_takes_its_configuration() {
        for (poll_us, poll) in [
            (Some(50), Poll::For(Duration::from_micros(50))),
            (Some(0), Poll::For(Duration::ZERO)),
            (None, Poll::Always),
        ] {
            let text = configuration("/run/a \"b\".sock", "/run/stats.json", poll_us);
            let config = Config::parse("bench.toml", &text).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(config.guests[0].poll, poll);
            assert_eq!(config.guests[0].address(), *GUEST.ip());
            assert_eq!(
                config.guests[0].socket.as_ref().unwrap().path,
                Path::new("/run/a \"b\".sock")
            );
        }
    }

    #[test]
    fn a_request_is_one_segment_of_exactly_1400_bytes() {
        for server in [EPOLL, GUEST] {
            assert_eq!(request(REQUEST_LEN, server).len(), 1400);
        }
        const { assert!(REQUEST_LEN <= crate::client::SEGMENT_LEN) };
    }

    #[test]
    fn what_servers_say_is_understood() {
        let mut served = Served::default();
        (served.requests, served.batches) = (90, 30);
        let said = serde_json::to_string(&served).unwrap();
        assert_eq!(count_epoll(&said).batch_mean, 3.0);
        assert_eq!(count_epoll("garbage"), Counted::default());
        let stats =
            br#"{"guests":[{"name":"x","counters":{"stack.bytes_in":14000,"a":0,"pool.free":9}}]}"#;
        let counted = count_pasted(r#"{"mean_batch":2.5,"bytes_copied":0}"#, stats);
        assert_eq!((counted.requests, counted.batch_mean), (10, 2.5));
        assert_eq!(counted.counters.len(), 1);
    }
}
