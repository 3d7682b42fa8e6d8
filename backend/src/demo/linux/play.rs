//! The order of events: set the stage, measure the sides in turns, kill the
//! guest in the middle, and gather what everybody counted.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use super::Args;
use super::client::Client;
use super::guest::GuestReport;
use super::measure::Side;
use super::peer::{PeerReport, READY};
use super::report::{Column, Part, Report};
use super::sample::{Sample, per};
use super::scene::{self, Directory, GUEST_MAC, Ground, Link, PREFIX, Process, SceneError};
use crate::metrics::{GuestSnapshot, Snapshot};
use crate::sys::linux::demo::children::{self, DeathSignal};
use crate::sys::linux::demo::{Isolation, pin};

/// Bytes of a request, head and body together.
const REQUEST_LEN: usize = 1400;
/// Rounds of each side, in turns.
const ROUNDS: u32 = 3;
/// The round after which the guest is killed.
const KILL_ROUND: u32 = 1;
/// How long a server may take until it serves.
const START_TIME: Duration = Duration::from_secs(10);
/// Load before the guest is killed, and after all its connections came back.
const KILL_MARGIN: Duration = Duration::from_millis(500);
/// How long the guest may take to serve everybody again.
const HEAL_TIME: Duration = Duration::from_secs(20);
/// How long each side is driven before the first round, so that caches are warm
/// and windows open.
const WARM_UP: Duration = Duration::from_millis(300);
/// How often the demo says where it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// How long backend, guest and epoll server poll before they sleep, in us.
const POLL_US: u64 = 50;

/// Who runs where.
#[derive(Clone, Copy, Debug)]
struct Cores {
    count: usize,
    client: Option<usize>,
    server: Option<usize>,
}

impl Cores {
    /// The client on the first core that there is, whoever serves on the
    /// second; nobody is bound if there is only one.
    fn choose() -> io::Result<Cores> {
        let cores = children::cores()?;
        Ok(match cores[..] {
            [client, server, ..] => {
                Cores { count: cores.len(), client: Some(client), server: Some(server) }
            }
            _ => Cores { count: cores.len(), client: None, server: None },
        })
    }
}

/// Everybody on the stage. Fields are dropped in this order.
struct Cast {
    guest: Process,
    peer: Process,
    backend: Process,
    cores: Cores,
    directory: Directory,
}

/// Plays it all.
pub fn play(args: &Args) -> Result<Report, SceneError> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in
        [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP]
    {
        signal_hook::flag::register(signal, stop.clone()).map_err(SceneError::Client)?;
    }
    let mut stage = Stage { start: Instant::now(), stop, told: Instant::now() };
    let (ground, refused) = scene::find_ground()?;
    if let Some(why) = &refused {
        stage.say(&format!("no network of its own: {why}"));
        stage.say("so all of it is on the loopback device, and the guest on the host's own TCP");
    }
    let cores = Cores::choose().map_err(SceneError::Client)?;
    if let Some(core) = cores.client {
        pin(core).map_err(SceneError::Client)?;
    }
    let mut cast = Cast::assemble(ground, cores)?;
    stage.say(&match (cores.client, cores.server) {
        (Some(client), Some(server)) => format!(
            "{} cores: the client is bound to core {client}, whoever serves it to core {server}",
            cores.count
        ),
        _ => "one core: client and servers share it".to_owned(),
    });

    let mut sides = Vec::new();
    for (index, &(name, link)) in ground.sides().iter().enumerate() {
        let connections = args.connections as usize;
        let mut side =
            Side::new(name, link, connections, REQUEST_LEN).map_err(SceneError::Client)?;
        if !side.client.connect(START_TIME).map_err(SceneError::Client)? {
            cast.check()?;
            let server = if index == 0 { &cast.guest } else { &cast.peer };
            let why = side.client.first_fault().unwrap_or_default();
            return Err(server.failed(&format!("does not serve all connections ({why})")));
        }
        stage.say(&format!("{name}: {connections} connections to {}", link.server()));
        sides.push(side);
    }

    let kill = perform(args, &mut stage, &mut cast, &mut sides)?;
    let counted = cast.dismiss()?;
    let mut report = report(args, ground, cores, &sides, &kill, &counted);
    if stage.stopped() {
        report.notes.insert(0, "stopped early by a signal: not everything was measured".to_owned());
    }
    Ok(report)
}

/// What became of the guest that was killed.
#[derive(Clone, Copy, Debug, Default)]
struct Kill {
    restarts: u64,
    recovery_ms: f64,
    /// Right responses of the side until the kill.
    requests_before: u64,
}

/// All rounds of all sides.
fn perform(
    args: &Args,
    stage: &mut Stage,
    cast: &mut Cast,
    sides: &mut [Side],
) -> Result<Kill, SceneError> {
    let mut kill = Kill::default();
    for side in sides.iter_mut() {
        drive(stage, cast, |watch| side.exercise(WARM_UP, watch), "warm-up")?;
    }
    let duration = Duration::from_secs(args.seconds) / ROUNDS;
    for round in 0..ROUNDS {
        for (index, side) in sides.iter_mut().enumerate() {
            if stage.stopped() {
                return Ok(kill);
            }
            let pids = cast.servers(index == 0);
            let what = format!("{}, round {} of {ROUNDS}", side.name, round + 1);
            drive(stage, cast, |watch| side.measure(duration, &pids, watch), &what)?;
            if index == 0 && round == KILL_ROUND && !stage.stopped() {
                kill = kill_guest(stage, cast, side)?;
            }
        }
    }
    Ok(kill)
}

/// Asked by a client now and then: whether to go on.
type Watch<'a> = &'a mut dyn FnMut(&mut Client, &Sample) -> io::Result<bool>;

/// Runs one stretch of load, says how it goes, and ends it when a process has
/// ended or the demo is to stop.
fn drive(
    stage: &mut Stage,
    cast: &mut Cast,
    stretch: impl FnOnce(Watch<'_>) -> io::Result<()>,
    what: &str,
) -> Result<(), SceneError> {
    let mut fault = None;
    let mut last = (0, 0);
    stretch(&mut |_, sample| {
        stage.progress(what, sample, &mut last);
        fault = cast.check().err();
        Ok(fault.is_none() && !stage.stopped())
    })
    .map_err(SceneError::Client)?;
    fault.map_or(Ok(()), Err)
}

/// Kills the guest under load, starts it again, and waits until every
/// connection that this broke has been made anew and served.
fn kill_guest(stage: &mut Stage, cast: &mut Cast, side: &mut Side) -> Result<Kill, SceneError> {
    let mut kill = Kill::default();
    let mut killed_at = None;
    let mut healed_at = None;
    let mut fault = None;
    let mut last = (0, 0);
    let requests_before = side.total.requests;
    let outcome = side.exercise(2 * KILL_MARGIN + HEAL_TIME, &mut |client, sample| {
        stage.progress("pasted, guest killed and started again", sample, &mut last);
        let since = |at: Option<Instant>| at.map_or(Duration::ZERO, |at: Instant| at.elapsed());
        match (killed_at, healed_at) {
            (None, _) if sample.elapsed_ns >= KILL_MARGIN.as_nanos() as u64 => {
                kill.requests_before = requests_before + sample.requests;
                client.expect_loss();
                cast.guest.kill()?;
                killed_at = Some(Instant::now());
                stage.say("guest killed (SIGKILL), starting it again");
                match start_guest(&cast.directory, cast.cores) {
                    Ok(guest) => cast.guest = guest,
                    Err(error) => fault = Some(error),
                }
            }
            (Some(_), None) if client.has_healed() => {
                healed_at = Some(Instant::now());
                kill.restarts = 1;
                kill.recovery_ms = since(killed_at).as_secs_f64() * 1e3;
                client.expect_no_loss();
                stage.say(&format!(
                    "every connection is served again after {:.0} ms; the backend went on",
                    kill.recovery_ms
                ));
            }
            _ => {}
        }
        fault = fault.take().or_else(|| cast.check().err());
        let over = healed_at.is_some() && since(healed_at) >= KILL_MARGIN
            || healed_at.is_none() && since(killed_at) >= HEAL_TIME;
        Ok(fault.is_none() && !over && !stage.stopped())
    });
    outcome.map_err(SceneError::Client)?;
    if kill.restarts == 0 && !stage.stopped() {
        stage.say(&format!("only {} connections were served again in time", side.client.healed()));
    }
    side.client.expect_no_loss();
    fault.map_or(Ok(kill), Err)
}

/// What the demo says while it runs, and whether it is to stop.
struct Stage {
    start: Instant,
    stop: Arc<AtomicBool>,
    told: Instant,
}

impl Stage {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn say(&self, what: &str) {
        eprintln!("[{:6.1} s] {what}", self.start.elapsed().as_secs_f64());
    }

    /// Says how a stretch goes, once in a while; `last` is what its sample was
    /// then: requests, and ns.
    fn progress(&mut self, what: &str, sample: &Sample, last: &mut (u64, u64)) {
        if self.told.elapsed() < PROGRESS_INTERVAL {
            return;
        }
        self.told = Instant::now();
        let (requests, elapsed_ns) = (sample.requests - last.0, sample.elapsed_ns - last.1);
        *last = (sample.requests, sample.elapsed_ns);
        let rps = per(requests as f64 * 1e9, elapsed_ns);
        self.say(&format!("{what}: {rps:.0} requests/s, {} errors", sample.errors.total()));
    }
}

/// What the processes counted.
struct Counted {
    backend: GuestSnapshot,
    guest: GuestReport,
    peer: PeerReport,
}

fn socket_path(directory: &Directory) -> PathBuf {
    directory.path().join("demo.sock")
}

fn stats_path(directory: &Directory) -> PathBuf {
    directory.path().join("stats.json")
}

/// A path as an argument or in a configuration: temporary directories are
/// named in UTF-8, or the demo cannot use them.
fn text(path: &Path) -> Result<&str, SceneError> {
    path.to_str().ok_or_else(|| SceneError::Directory {
        path: path.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidInput, "its name is not UTF-8"),
    })
}

/// The backend's configuration.
fn configuration(ground: Ground, directory: &Directory) -> Result<String, SceneError> {
    let quoted = |path: &Path| text(path).map(|t| toml::Value::from(t).to_string());
    let socket = quoted(&socket_path(directory))?;
    let stats = quoted(&stats_path(directory))?;
    let (server, port) = match ground {
        Ground::Own(_) => (Link::Pasted.server(), format!("tap:{}", Link::Pasted.client_device())),
        Ground::Loopback => (Link::Sockets.server(), "sockets:".to_owned()),
    };
    Ok(format!(
        "stats = {stats}\n\n[[guest]]\nname = \"demo\"\nsocket = {socket}\n\
         mac = \"{GUEST_MAC}\"\naddresses = [\"{server}/{PREFIX}\"]\n\
         port = \"{port}\"\npoll = \"{POLL_US}us\"\n"
    ))
}

fn start_guest(directory: &Directory, cores: Cores) -> Result<Process, SceneError> {
    let (socket, poll) = (socket_path(directory), POLL_US.to_string());
    let args = ["demo-guest", "--socket", text(&socket)?, "--poll-us", &poll];
    Process::start("guest", &args, cores.server, DeathSignal::Kill, directory)
}

impl Cast {
    /// Starts everybody, each when those that it needs are there.
    fn assemble(ground: Ground, cores: Cores) -> Result<Cast, SceneError> {
        let directory = Directory::new()?;
        let file = directory.path().join("demo.toml");
        fs::write(&file, configuration(ground, &directory)?)
            .map_err(|source| SceneError::Directory { path: file.clone(), source })?;
        let (poll, parent) = (POLL_US.to_string(), std::process::id().to_string());
        let mut args = vec![
            "demo-peer",
            "--poll-us",
            &poll,
            "--parent",
            &parent,
            "--directory",
            text(directory.path())?,
        ];
        if ground == Ground::Loopback {
            args.push("--loopback");
        }
        // Asked to stop, and not killed, should we die: it then tidies up. So it
        // is the first.
        let mut peer =
            Process::start("peer", &args, cores.server, DeathSignal::Terminate, &directory)?;
        if peer.line()? != READY {
            return Err(peer.failed("is not ready"));
        }
        let args = ["run", "--config", text(&file)?];
        let mut backend =
            Process::start("backend", &args, cores.server, DeathSignal::Kill, &directory)?;
        let (socket, end) = (socket_path(&directory), Instant::now() + START_TIME);
        while !socket.exists() {
            backend.check()?;
            if Instant::now() >= end {
                return Err(backend.failed("opens no socket"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let guest = start_guest(&directory, cores)?;
        Ok(Cast { guest, peer, backend, cores, directory })
    }

    /// An error if anybody has ended.
    fn check(&mut self) -> Result<(), SceneError> {
        self.backend.check()?;
        self.guest.check()?;
        self.peer.check()
    }

    /// Who serves.
    fn servers(&self, pasted: bool) -> Vec<u32> {
        if pasted { vec![self.backend.id(), self.guest.id()] } else { vec![self.peer.id()] }
    }

    /// Stops everybody in good order, and reads what they counted.
    fn dismiss(self) -> Result<Counted, SceneError> {
        let Cast { guest, peer, backend, directory, .. } = self;
        let guest = read(&guest.stop()?, "guest")?;
        let peer = read(&peer.stop()?, "peer")?;
        backend.stop()?;
        let stats = fs::read_to_string(stats_path(&directory)).unwrap_or_default();
        let snapshot: Snapshot = read(&stats, "backend")?;
        let backend = snapshot.guests.into_iter().next().unwrap_or_default();
        Ok(Counted { backend, guest, peer })
    }
}

fn read<T: serde::de::DeserializeOwned>(text: &str, name: &'static str) -> Result<T, SceneError> {
    serde_json::from_str(text).map_err(|e| SceneError::Failed {
        name,
        what: format!("did not say what it counted ({e})"),
        log: String::new(),
    })
}

fn report(
    args: &Args,
    ground: Ground,
    cores: Cores,
    sides: &[Side],
    kill: &Kill,
    counted: &Counted,
) -> Report {
    let mut report = Report {
        guest_restarts: kill.restarts,
        recovery_ms: kill.recovery_ms,
        killed_connections: sides.iter().map(|s| s.total.killed).sum(),
        first_fault: sides.iter().find_map(|s| s.client.first_fault()).map(str::to_owned),
        ..Report::default()
    };
    let column =
        |side: &Side| Column { name: side.name, figures: side.figures(), ..Column::default() };
    report.columns = sides.iter().map(column).collect();
    let Counted { backend, guest, peer } = counted;
    let [pasted, peers @ ..] = &mut report.columns[..] else { return report };
    let requests = pasted.figures.requests;
    let since_kill = requests - kill.requests_before;
    let sum = |names: [&str; 2]| names.map(|name| backend.get(name)).iter().sum::<u64>() as f64;
    pasted.servers = vec!["backend", "guest"];
    pasted.batch_mean = guest.mean_batch;
    let port = match ground {
        Ground::Own(_) => (Part::Port, ["port.rx_bytes_copied", "port.tx_bytes_copied"]),
        Ground::Loopback => (Part::Socket, ["stack.bytes_in", "stack.bytes_out"]),
    };
    pasted.copies = vec![
        (port.0, per(sum(port.1), requests)),
        (Part::Stack, per(backend.get("stack.bytes_copied") as f64, requests)),
        (Part::Ring, per(backend.get("worker.bytes_copied") as f64, requests)),
        (Part::Guest, per(guest.bytes_copied as f64, since_kill)),
    ];
    let served: &[_] = match ground {
        Ground::Own(_) => &[peer.tap, peer.veth],
        Ground::Loopback => &[peer.loopback],
    };
    for (column, served) in peers.iter_mut().zip(served) {
        column.servers = vec![match ground {
            Ground::Own(_) => "relay and server",
            Ground::Loopback => "server",
        }];
        column.batch_mean = per(served.requests as f64, served.batches);
        let copied = (served.bytes_in + served.bytes_out) as f64;
        column.copies = vec![(Part::Socket, per(copied, served.requests))];
    }
    if let (Ground::Own(_), Some(tap)) = (ground, peers.first_mut()) {
        // Each frame is copied out of one device and into the other.
        let relayed = per(2.0 * peer.relay.bytes as f64, peer.tap.requests);
        tap.copies.insert(0, (Part::Port, relayed));
    }

    report.conditions = vec![
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("cores", json!(cores.count)),
        ("client_core", json!(cores.client)),
        ("server_core", json!(cores.server)),
        ("user_namespace", json!(ground == Ground::Own(Isolation::UserNamespace))),
        ("loopback", json!(ground == Ground::Loopback)),
        ("connections", json!(args.connections)),
        ("request_bytes", json!(REQUEST_LEN)),
        ("response_body_bytes", json!(super::http::BODY.len())),
        ("seconds_per_side", json!(args.seconds)),
        ("rounds", json!(ROUNDS)),
        ("poll_us", json!(POLL_US)),
        ("optimised", json!(!cfg!(debug_assertions))),
    ];
    report.notes = notes(ground, cores);
    if report.columns.iter().any(|c| c.figures.other_percent > OTHER_PERCENT_MAX) {
        report.notes.insert(0, DISTURBED.to_owned());
    }
    report
}

/// The share of the CPU that others may have used before the reader is warned.
const OTHER_PERCENT_MAX: f64 = 10.0;
const DISTURBED: &str = "DISTURBED: other programs used the machine during a round, so that the \
                         sides were not measured alike; do not compare these figures, repeat the \
                         demo on a quiet machine";

/// What the reader must know beside the figures, so that none flatters.
fn notes(ground: Ground, cores: Cores) -> Vec<String> {
    let mut notes = vec![
        format!(
            "requests are POSTs of exactly {REQUEST_LEN} bytes, head and body together, one under \
             way on each connection; every byte of each response's body is compared"
        ),
        format!(
            "backend, guest and epoll server poll for {POLL_US} us before they sleep; the client \
             sleeps at once; its own work and its kernel's are part of every figure"
        ),
        "CPU of all cores is the kernel's busy time, in steps of 10 ms, of everything that ran \
         on this machine; of a process, what was charged to it: on TAP and veth the receiver's \
         share of the network's work is charged to the sender"
            .to_owned(),
        "rounds of the sides alternate; the stretch in which the guest is killed counts for \
         requests and errors, not for rates, latencies and CPU; the guest's mean batch and \
         copies are counted since it was started again"
            .to_owned(),
        "a mean batch is slots per poll of the guest that found any, and requests per wait of \
         the epoll server that found any"
            .to_owned(),
    ];
    let ways: &[&str] = match ground {
        Ground::Own(_) => &[
            "epoll, TAP: kernel TCP needs a TAP device on each side and a relay between them, in \
             the server's own thread; it pays for two more system calls per frame, which pasted \
             does not",
            "epoll, veth: no relay and no TAP; the kernel hands packets on without a copy, which \
             is the best case for it and a shorter way than pasted's",
        ],
        Ground::Loopback => &[
            "both sides are the kernel's TCP on the loopback device, so that what differs is how \
             it is asked: by io_uring and a ring between backend and guest, or by epoll in one \
             process",
        ],
    };
    notes.splice(1..1, ways.iter().map(ToString::to_string));
    if cores.client.is_none() {
        notes.push("client and servers share one core: rates say little here".to_owned());
    }
    if cfg!(debug_assertions) {
        notes.push("built without optimisation: use cargo run --release".to_owned());
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn the_configuration_is_one() {
        let directory = Directory::new().unwrap();
        for ground in [Ground::Own(Isolation::Privileged), Ground::Loopback] {
            let text = configuration(ground, &directory).unwrap();
            let config = Config::parse("demo.toml", &text).unwrap();
            assert_eq!(config.guests.len(), 1);
            assert_eq!(config.guests[0].socket.as_ref().unwrap().path, socket_path(&directory));
            assert_eq!(config.guests[0].address(), ground.sides()[0].1.server());
            assert_eq!(config.stats, Some(stats_path(&directory)));
        }
    }
}
