//! The servers that are compared, each a process or several on the servers' core. Only the
//! one that is measured runs: the others are held still, so that their polling takes
//! nothing from the core that they share.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use pasted::demo::epoll_server::Served;
use pasted::demo::{Directory, Process, SceneError};
use pasted::metrics::Snapshot;
use pasted::sys::linux::demo::children::DeathSignal;
use serde::Deserialize;

use super::bed::Station;
use super::contender::{Contender, Kind, Shape, Waiting};
use crate::network::PREFIX;
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

/// Where a server is.
#[derive(Clone, Debug)]
pub enum Place {
    /// On the kernel's TCP, at these addresses: one, or one of each guest.
    Kernel(Vec<SocketAddrV4>),
    /// On devices of its own: one, or one of each guest.
    Stations(Vec<Station>),
    /// At the end of a wire in memory, with so many connections to it.
    Memory(usize),
}

impl Place {
    /// The addresses that are connected to.
    pub fn addresses(&self) -> Vec<SocketAddrV4> {
        match self {
            Place::Kernel(addresses) => addresses.clone(),
            Place::Stations(stations) => stations.iter().map(|s| s.address).collect(),
            Place::Memory(_) => Vec::new(),
        }
    }
}

/// Where and how servers run.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// The core.
    pub core: usize,
    /// The guests' core, where it is another one.
    pub guest_core: usize,
    /// Where files and logs go.
    pub directory: &'a Directory,
    /// The backend measures how long its parts take.
    pub split: bool,
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
    pub contender: Contender,
    /// Where it is.
    pub place: Place,
    /// In the order of [`Contender::parts`].
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
    /// guest may still be asking for its listener. `name` is for its files.
    pub fn start(
        contender: Contender,
        place: Place,
        name: &str,
        setting: Setting<'_>,
    ) -> Result<Server, SceneError> {
        let base = setting.directory.path().join(name);
        let stats = base.with_extension("json");
        let processes = match contender.kind {
            Kind::Pasted => start_pasted(contender, &place, &base, setting)?,
            kind => vec![start_peer(kind, contender.waiting, &place, setting)?],
        };
        Ok(Server { contender, place, processes: Processes::new(processes), stats })
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

    /// What the backend says when it is asked: a line of JSON.
    pub fn ask(&mut self) -> Result<String, SceneError> {
        self.processes.ask_first()
    }

    /// Ends it in good order, and returns what it counted.
    pub fn stop(self) -> Result<Counted, SceneError> {
        let said = self.processes.stop()?;
        Ok(match self.contender.kind {
            Kind::Pasted => count_pasted(&said, &fs::read(&self.stats).unwrap_or_default()),
            _ => count_peer(&said),
        })
    }
}

fn count_peer(said: &str) -> Counted {
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
    let mut counters = BTreeMap::new();
    for (name, value) in snapshot.guests.into_iter().flat_map(|guest| guest.counters) {
        if value > 0 && is_count(&name) {
            *counters.entry(name).or_insert(0) += value;
        }
    }
    Counted {
        requests: counters.get("stack.bytes_in").copied().unwrap_or(0) / REQUEST_LEN as u64,
        batch_mean: report.mean_batch,
        counters,
    }
}

/// How long to poll, as an argument.
fn poll_text(waiting: Waiting) -> String {
    waiting.poll_us().unwrap_or(ALWAYS_US).to_string()
}

fn start_peer(
    kind: Kind,
    waiting: Waiting,
    place: &Place,
    setting: Setting<'_>,
) -> Result<Process, SceneError> {
    let address = place.addresses().first().map(ToString::to_string).unwrap_or_default();
    let (poll, parent) = (poll_text(waiting), std::process::id().to_string());
    let directory = text(setting.directory.path())?;
    let kernel = ["--address", &address, "--poll-us", &poll];
    let life = ["--parent", &parent, "--directory", directory];
    let (mac, device) = match place {
        Place::Stations(stations) => stations.first(),
        _ => None,
    }
    .map_or_else(Default::default, |station| (station.mac_text(), station.device.spec()));
    let station = ["--mac", &mac, "--device", &device];
    let args: Vec<&str> = match kind {
        Kind::Epoll => [&["serve-epoll"], &kernel[..], &life].concat(),
        Kind::IoUring => [&["serve-io-uring"], &kernel[..]].concat(),
        Kind::Nginx => vec!["serve-nginx", "--address", &address, "--directory", directory],
        Kind::Smoltcp => [&["serve-smoltcp"], &kernel[..], &station].concat(),
        Kind::Null => [&["serve-null"], &kernel[..], &station].concat(),
        Kind::Pasted => unreachable!("started by start_pasted"),
    };
    // Asked to stop should we die, not killed: the epoll server then tidies up.
    let death = if kind == Kind::Epoll { DeathSignal::Terminate } else { DeathSignal::Kill };
    let mut process =
        Process::start(kind.name(), &args, Some(setting.core), death, setting.directory)?;
    match process.line()?.as_str() {
        READY => Ok(process),
        _ => Err(process.failed("is not ready")),
    }
}

fn start_pasted(
    contender: Contender,
    place: &Place,
    base: &Path,
    setting: Setting<'_>,
) -> Result<Vec<Process>, SceneError> {
    let shape = contender.shape;
    // The first guest's socket is called as the rest is. It is the last one to be made,
    // so when it is there, all are.
    let sockets: Vec<PathBuf> = (0..shape.guests)
        .map(|guest| match guest {
            0 => base.with_extension("sock"),
            _ => base.with_extension(format!("{guest}.sock")),
        })
        .collect();
    let ends = Ends::of(place, shape.guests);
    let stats = quoted(text(&base.with_extension("json"))?);
    // The backend has one core, whoever its guests are.
    let mut settings = format!("stats = {stats}\nworkers = 1\n");
    for (number, (socket, end)) in sockets.iter().zip(&ends.0).enumerate().rev() {
        settings += &configuration(number, text(socket)?, end, contender.waiting, shape);
    }
    let mut more = vec![];
    let connections = match place {
        Place::Memory(connections) => connections.to_string(),
        _ => String::new(),
    };
    if !connections.is_empty() {
        more.extend(["--memory", &connections]);
    }
    if setting.split {
        more.push("--split");
    }
    let mut processes =
        vec![start_backend(base, &settings, &more, setting.core, setting.directory)?];
    let poll = poll_text(contender.waiting);
    let batch = shape.batch.to_string();
    let core = if shape.own_core { setting.guest_core } else { setting.core };
    for (socket, end) in sockets.iter().zip(&ends.0) {
        let port = end.port.to_string();
        let args = ["serve-guest", "--socket", text(socket)?, "--poll-us", &poll, "--port", &port];
        let args = [&args[..], &["--batch", &batch]].concat();
        let death = DeathSignal::Kill;
        processes.push(Process::start("guest", &args, Some(core), death, setting.directory)?);
    }
    Ok(processes)
}

/// Where one guest is, as its configuration has it.
struct End {
    spec: String,
    mac: String,
    network: String,
    port: u16,
}

struct Ends(Vec<End>);

impl Ends {
    fn of(place: &Place, guests: usize) -> Ends {
        let mac = |number: usize| format!("02:70:62:03:00:{number:02x}");
        Ends(match place {
            Place::Kernel(addresses) => addresses
                .iter()
                .enumerate()
                .map(|(number, address)| End {
                    spec: "sockets:".to_owned(),
                    mac: mac(number),
                    network: format!("{}/{PREFIX}", address.ip()),
                    port: address.port(),
                })
                .collect(),
            Place::Stations(stations) => stations
                .iter()
                .map(|station| End {
                    spec: station.device.spec(),
                    mac: station.mac_text(),
                    network: format!("{}/{PREFIX}", station.address.ip()),
                    port: station.address.port(),
                })
                .collect(),
            Place::Memory(_) => (0..guests)
                .map(|number| End {
                    spec: format!("pipe:memory{number}"),
                    mac: crate::peers::memory::SERVER_MAC_TEXT.to_owned(),
                    network: crate::peers::memory::NETWORK.to_owned(),
                    port: crate::peers::memory::PORT,
                })
                .collect(),
        })
    }
}

fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// A guest in the backend's configuration: what README's quick start has, but for names.
fn configuration(number: usize, socket: &str, end: &End, waiting: Waiting, shape: Shape) -> String {
    let poll = waiting.poll_us().map_or_else(|| "always".to_owned(), |us| format!("{us}us"));
    let End { spec, mac, network, port: _ } = end;
    format!(
        "\n[[guest]]\nname = \"bench{number}\"\nsocket = {}\nmac = \"{mac}\"\n\
         addresses = [\"{network}\"]\nport = \"{spec}\"\npoll = \"{poll}\"\n\
         spoof_check = {}\n",
        quoted(socket),
        shape.spoof_check,
    )
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use pasted::config::{Config, Poll};
    use pasted::demo::http::request;

    use super::super::contender::PortKind;
    use super::*;
    use crate::device::Device;

    fn station() -> Station {
        Station {
            device: Device::Xdp("vs1".to_owned()),
            mac: [2, 0, 0, 0, 0, 9],
            address: SocketAddrV4::new(Ipv4Addr::new(10, 71, 1, 10), 80),
        }
    }

    #[test]
    fn the_backend_takes_its_configuration() {
        let stations = Place::Stations(vec![station()]);
        let kernel = Place::Kernel(vec![SocketAddrV4::new(Ipv4Addr::LOCALHOST, 81)]);
        for place in [stations, kernel, Place::Memory(9)] {
            let ends = Ends::of(&place, 1);
            for (waiting, poll) in [
                (Waiting::For(50), Poll::For(Duration::from_micros(50))),
                (Waiting::Block, Poll::For(Duration::ZERO)),
                (Waiting::Poll, Poll::Always),
            ] {
                let shape = Shape { spoof_check: false, ..Shape::default() };
                let text = configuration(0, "/run/a \"b\".sock", &ends.0[0], waiting, shape);
                let config = Config::parse("bench.toml", &text).unwrap_or_else(|e| panic!("{e}"));
                let guest = &config.guests[0];
                assert_eq!((guest.poll, guest.spoof_check), (poll, false));
                let socket = guest.socket.as_ref().map(|socket| socket.path.as_path());
                assert_eq!(socket, Some(Path::new("/run/a \"b\".sock")));
            }
        }
    }

    #[test]
    fn a_request_is_one_segment_of_exactly_1400_bytes() {
        assert_eq!(request(REQUEST_LEN, station().address).len(), 1400);
        const { assert!(REQUEST_LEN <= crate::client::SEGMENT_LEN) };
    }

    #[test]
    fn what_servers_say_is_understood() {
        let mut served = Served::default();
        (served.requests, served.batches) = (90, 30);
        let said = serde_json::to_string(&served).unwrap();
        assert_eq!(count_peer(&said).batch_mean, 3.0);
        assert_eq!(count_peer("garbage"), Counted::default());
        let stats = br#"{"guests":[
            {"name":"x","counters":{"stack.bytes_in":14000,"a":0,"pool.free":9}},
            {"name":"y","counters":{"stack.bytes_in":1400}}]}"#;
        let counted = count_pasted(r#"{"mean_batch":2.5,"bytes_copied":0}"#, stats);
        assert_eq!((counted.requests, counted.batch_mean), (11, 2.5));
        assert_eq!(counted.counters.len(), 1);
    }

    #[test]
    fn parts_are_those_that_are_started() {
        let contender = Contender {
            kind: Kind::Pasted,
            port: PortKind::Tap,
            shape: Shape { guests: 3, ..Shape::default() },
            waiting: Waiting::Poll,
        };
        assert_eq!(contender.parts().len(), 4);
    }
}
