//! `paste-bench durable`: keys and values that are durable when they are
//! acknowledged, our `kv` beside Redis; and requests that are logged before they are
//! answered, our `http` beside an epoll server; in turns.
//!
//! For each size of value, number of connections and depth of pipeline all servers
//! are started anew and filled; then they are measured A/B/A/B, each held still
//! while another is measured. The client is on the first core, the servers are on
//! the second.
//!
//! | module | knows |
//! | --- | --- |
//! | `bed` | the network, and who is where |
//! | `server`, `serve` | the servers, from outside and from inside |
//! | `load` | redis-benchmark, and how values are judged |
//! | `row` | what rounds add up to |
//! | `http` | the same for logged requests |
//! | `report` | tables, Markdown and JSON |

mod bed;
pub mod http;
mod load;
mod report;
mod row;
pub mod serve;
mod server;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use pasted::demo::sample::per;
use pasted::demo::{Directory, SceneError};
use pasted::sys::linux::demo::children;

use self::bed::{Devices, Kind};
use self::load::{Cell, Client, Driver, Figures, LoadError, Op};
use self::report::{Conditions, Report};
use self::row::{Round, Row};
use self::server::{Server, ServerError};
use crate::client::{self, ClientError, Group, Script};
use crate::network::NetworkError;
use crate::sys::{self, CoreTime, Machine};

/// The numbers of connections of a whole and of a quick comparison.
const CONNECTIONS: [u32; 4] = [1, 16, 64, 256];
const CONNECTIONS_QUICK: [u32; 1] = [64];
/// Sizes of values.
const VALUE_BYTES: [u32; 3] = [64, 1024, 16 * 1024];
/// Depths of pipelines.
const PIPELINES: [u32; 2] = [1, 16];
/// Rounds of each server, and how long one is planned to be.
const ROUNDS: (u32, f64) = (5, 1.0);
const ROUNDS_QUICK: (u32, f64) = (3, 0.5);
/// How long our own client drives each server before the first round.
const WARM_UP: Duration = Duration::from_millis(100);
/// What it is called when the kernel does not tell the machine's times.
const UNREAD: &str = "what was used cannot be read";
/// Requests of each connection, in pieces of the pipeline, that tell how many a
/// round needs.
const TRIAL: u64 = 20;
const TRIAL_MIN: u64 = 200;
/// Bytes of values that one trial or one round moves at most: what Redis logs must
/// find room on the disk.
const TRIAL_BYTES_MAX: u64 = 32 << 20;
const ROUND_BYTES_MAX: u64 = 512 << 20;

/// A part of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Keys and values, beside Redis.
    Kv,
    /// Logged requests, beside an epoll server.
    Http,
}

/// The options of `paste-bench durable`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Only 64 connections, and fewer and shorter rounds: less than five minutes
    #[arg(long)]
    quick: bool,
    /// Numbers of connections to measure with: 1, 16, 64 and 256, or 64 with --quick
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1024))]
    connections: Vec<u32>,
    /// Sizes of values, in bytes
    #[arg(long, value_delimiter = ',', default_values_t = VALUE_BYTES, value_parser = clap::value_parser!(u32).range(1..=65536))]
    value_bytes: Vec<u32>,
    /// What is between the bridge and what is ours: veth by AF_XDP, as Redis and epoll have
    /// veth, or TAP devices
    #[arg(long, default_value = "xdp")]
    port: Devices,
    /// Only keys and values, or only logged requests
    #[arg(long)]
    only: Option<Part>,
    /// Print the result as Markdown in place of the table
    #[arg(long)]
    markdown: bool,
    /// Print the result as a JSON object too, on the last line
    #[arg(long)]
    json: bool,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// No network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// No directory.
    #[error(transparent)]
    Scene(#[from] SceneError),
    /// No server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// No load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// No load of requests.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Client and server on one core would only measure how these share it.
    #[error("this process may use one core only: the comparison needs two")]
    OneCore,
    /// Nothing is durable there.
    #[error("{} is in memory: set TMPDIR to a directory on a disk", .0.display())]
    InMemory(PathBuf),
    /// The system refused.
    #[error("{what}: {source}")]
    System {
        /// What was refused.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

fn refused(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// Measures, and prints the result. The exit code is 0 only if every value was
/// right. Must be called before the process has a second thread.
pub fn run(args: &Args) -> ExitCode {
    match measure(args) {
        Ok(report) => {
            let text = if args.markdown { report.markdown() } else { report.table() };
            print!("{text}");
            if args.json {
                println!("{}", report.json());
            }
            if report.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("paste-bench durable: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Where and how is measured.
struct Setting {
    port: Devices,
    directory: Directory,
    /// The same, to be synced.
    disk: File,
    client_core: usize,
    server_core: usize,
    seconds: f64,
    rounds: u32,
}

impl Setting {
    /// Bytes that were written to the disk once all that is due has been.
    fn written_bytes(&self) -> Result<Option<u64>, Error> {
        sys::sync(&self.disk).map_err(refused("the disk cannot be synced"))?;
        sys::written_bytes(&self.disk).map_err(refused("what was written cannot be read"))
    }
}

/// What was written meanwhile.
fn written_since(before: Option<u64>, after: Option<u64>) -> Option<u64> {
    Some(after?.saturating_sub(before?))
}

fn measure(args: &Args) -> Result<Report, Error> {
    let has = |part| args.only.is_none_or(|only| only == part);
    if has(Part::Kv) {
        load::check_programs()?;
    }
    let load = sys::load();
    let cores = children::cores().map_err(refused("the cores cannot be counted"))?;
    let [client_core, server_core, ..] = cores[..] else {
        return Err(Error::OneCore);
    };
    children::pin(client_core).map_err(refused("the client cannot be bound to a core"))?;
    let directory = Directory::new()?;
    let disk = File::open(directory.path()).map_err(refused("the directory cannot be opened"))?;
    if sys::is_in_memory(&disk).map_err(refused("the file system cannot be told"))? {
        return Err(Error::InMemory(directory.path().to_owned()));
    }
    let awake = sys::keep_awake();
    let (rounds, seconds) = if args.quick { ROUNDS_QUICK } else { ROUNDS };
    let port = args.port;
    let setting = Setting { port, directory, disk, client_core, server_core, seconds, rounds };
    let counts = match &args.connections[..] {
        [] if args.quick => &CONNECTIONS_QUICK[..],
        [] => &CONNECTIONS[..],
        counts => counts,
    };
    let mut rows = Vec::new();
    if has(Part::Kv) {
        bed::enter(port)?;
        let poll = Duration::from_micros(server::POLL_US);
        let most = counts.iter().copied().max().unwrap_or(0) * Kind::ALL.len() as u32;
        let mut own = client::Client::on(&port.client(), bed::OWN_CLIENT, most, Some(poll))?;
        for value_bytes in args.value_bytes.iter().map(|&bytes| bytes as usize) {
            for &connections in counts {
                for pipeline in PIPELINES {
                    let cell = Cell { value_bytes, connections, pipeline };
                    rows.extend(compare(&setting, &mut own, cell)?);
                }
            }
        }
    }
    let mut logged = http::report::Rows::default();
    if has(Part::Http) {
        logged.0 = http::measure(&setting, counts)?;
    }
    Ok(Report {
        conditions: Conditions {
            machine: Machine::this(),
            redis: redis_version(),
            congestion_control: sys::congestion_control(),
            client_core,
            server_core,
            seconds,
            rounds,
            port,
            load,
            awake: awake.is_ok(),
            arguments: if args.quick { "--quick".to_owned() } else { String::new() },
        },
        rows,
        logged,
    })
}

/// What Redis calls itself, without its build.
fn redis_version() -> String {
    let output = Command::new("redis-server").arg("--version").output();
    let said = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let words = said.unwrap_or_default();
    let words: Vec<&str> = words.split_ascii_whitespace().take(3).collect();
    words.join(" ")
}

/// One of the compared: a server, how many requests a round of redis-benchmark has,
/// the connections of our own client, its rounds, and the writes that it was asked
/// for in all.
struct Side {
    server: Server,
    requests: u64,
    group: Option<Group>,
    rounds: Vec<Round>,
    writes: u64,
    /// Answers that were wrong, or did not come.
    wrong: u64,
}

/// All servers in one cell.
fn compare(setting: &Setting, own: &mut client::Client, cell: Cell) -> Result<Vec<Row>, Error> {
    let value = load::value(cell.value_bytes);
    let mut sides = Vec::with_capacity(Kind::ALL.len());
    for kind in Kind::ALL {
        let Setting { port, server_core, directory, .. } = setting;
        let server = Server::start(kind, *port, *server_core, directory)?;
        Client::connect(kind.address())?.fill(&value)?;
        server.hold(true).map_err(refused("a server cannot be held still"))?;
        let writes = u64::from(load::KEYS);
        let (requests, wrong) = (0, 0);
        sides.push(Side { server, requests, group: None, rounds: Vec::new(), writes, wrong });
    }
    let mut rows = Vec::with_capacity(4 * sides.len());
    for op in Op::ALL {
        for driver in [Driver::RedisBenchmark, Driver::Own] {
            let scripts = load::scripts(cell, op, &value);
            if driver == Driver::Own && scripts.is_none() {
                continue;
            }
            for side in &mut sides {
                match (driver, &scripts) {
                    (Driver::Own, Some(scripts)) => side.warm_up(setting, own, op, scripts)?,
                    _ => side.plan(setting, cell, op)?,
                }
            }
            for number in 1..=setting.rounds {
                for side in &mut sides {
                    let round = match driver {
                        Driver::RedisBenchmark => side.run(setting, cell, op, side.requests)?,
                        Driver::Own => {
                            let duration = Duration::from_secs_f64(setting.seconds);
                            side.drive(setting, own, op, duration)?
                        }
                    };
                    eprintln!(
                        "{}: {} of {} bytes, {} connections, pipeline {}, round {number} of {}: \
                         {} {:.0} requests/s",
                        driver.name(),
                        op.name(),
                        cell.value_bytes,
                        cell.connections,
                        cell.pipeline,
                        setting.rounds,
                        side.server.kind.name(),
                        round.figures.rps,
                    );
                    side.rounds.push(round);
                }
            }
            for side in &mut sides {
                rows.push(Row::new(side.server.kind, driver, op, cell, &side.rounds));
                side.end(own)?;
            }
        }
    }
    for side in sides {
        let Side { server, writes, wrong: answers, .. } = side;
        let kind = server.kind;
        server.hold(false).map_err(refused("a server cannot be let go on"))?;
        let wrong = Client::connect(kind.address())?.wrong(&value)?;
        let counted = server.stop()?;
        for row in rows.iter_mut().filter(|row| row.kind == kind) {
            row.errors = wrong + answers;
            if row.op == Op::Set && kind == Kind::KvMirror && counted.commits > 0 {
                row.writes_per_sync = Some(writes as f64 / counted.commits as f64);
            }
        }
    }
    Ok(rows)
}

impl Side {
    /// How many requests a round of redis-benchmark is to have.
    fn plan(&mut self, setting: &Setting, cell: Cell, op: Op) -> Result<(), Error> {
        let trial = self.run(setting, cell, op, trial_requests(cell))?;
        self.requests = round_requests(cell, trial.figures.rps * setting.seconds);
        Ok(())
    }

    /// Connects our own client, until caches are warm and windows open.
    fn warm_up(
        &mut self,
        setting: &Setting,
        own: &mut client::Client,
        op: Op,
        scripts: &[Script],
    ) -> Result<(), Error> {
        self.hold(false)?;
        match own.connect(self.server.kind.address(), scripts) {
            Ok(group) => self.group = Some(group),
            Err(error) => {
                self.server.check()?;
                return Err(error.into());
            }
        }
        self.drive(setting, own, op, WARM_UP).map(drop)
    }

    /// Takes back what the measurement of one row has left.
    fn end(&mut self, own: &mut client::Client) -> Result<(), Error> {
        self.rounds.clear();
        if let Some(group) = self.group.take() {
            self.hold(false)?;
            own.disconnect(group)?;
            self.hold(true)?;
        }
        Ok(())
    }

    fn hold(&self, still: bool) -> Result<(), Error> {
        self.server.hold(still).map_err(refused("a server cannot be held still, or let go on"))
    }

    /// Lets the server go on for one run of redis-benchmark.
    fn run(
        &mut self,
        setting: &Setting,
        cell: Cell,
        op: Op,
        requests: u64,
    ) -> Result<Round, Error> {
        self.round(setting, op, |side| {
            let busy = || CoreTime::of(setting.client_core).map_err(refused(UNREAD));
            let before = busy()?;
            let figures = load::run(side.server.kind.address(), cell, op, requests)?;
            Ok((figures, requests, busy()?.busy_percent_since(before)))
        })
    }

    /// Lets the server go on while our own client asks for `duration`.
    fn drive(
        &mut self,
        setting: &Setting,
        own: &mut client::Client,
        op: Op,
        duration: Duration,
    ) -> Result<Round, Error> {
        self.round(setting, op, |side| {
            let Some(group) = &side.group else {
                return Ok(Default::default());
            };
            let mut stretch = own.drive(group, duration)?;
            own.drain(group, &mut stretch)?;
            let sample = &stretch.sample;
            side.wrong += sample.errors.total();
            let figures = Figures {
                rps: sample.rps(),
                p50_us: sample.latency_us(50.0),
                p99_us: sample.latency_us(99.0),
            };
            let idle = per(100.0 * stretch.idle_ns as f64, sample.elapsed_ns);
            Ok((figures, sample.requests, 100.0 - idle))
        })
    }

    /// One round: `work` gives what the client saw, how many requests it had, and how
    /// busy it was, in percent.
    fn round(
        &mut self,
        setting: &Setting,
        op: Op,
        work: impl FnOnce(&mut Side) -> Result<(Figures, u64, f64), Error>,
    ) -> Result<Round, Error> {
        let written_before = setting.written_bytes()?;
        self.hold(false)?;
        let before = sys::stolen().map_err(refused(UNREAD))?;
        let (figures, requests, client_busy_percent) = match work(self) {
            Ok(seen) => seen,
            Err(error) => {
                self.server.check()?;
                return Err(error);
            }
        };
        let after = sys::stolen().map_err(refused(UNREAD))?;
        self.hold(true)?;
        if op == Op::Set {
            self.writes += requests;
        }
        Ok(Round {
            figures,
            requests,
            written_bytes: written_since(written_before, setting.written_bytes()?),
            client_busy_percent,
            steal_percent: after.percent_since(before),
        })
    }
}

/// The least number of requests that keeps all connections busy, twice.
fn requests_min(cell: Cell) -> u64 {
    2 * u64::from(cell.connections) * u64::from(cell.pipeline)
}

/// Requests that tell how many a round needs.
fn trial_requests(cell: Cell) -> u64 {
    let wanted = TRIAL * u64::from(cell.connections) * u64::from(cell.pipeline);
    let most = TRIAL_BYTES_MAX / cell.value_bytes as u64;
    // redis-benchmark counts in ms: what takes none has no rate.
    let least = TRIAL_MIN * u64::from(cell.pipeline);
    wanted.max(least).min(most).max(requests_min(cell))
}

/// Requests of a round that is to have `wanted`.
fn round_requests(cell: Cell, wanted: f64) -> u64 {
    let most = ROUND_BYTES_MAX / cell.value_bytes as u64;
    (wanted as u64).min(most).max(requests_min(cell))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_neither_too_short_nor_too_large() {
        let cell = |value_bytes, connections, pipeline| Cell { value_bytes, connections, pipeline };
        assert_eq!(trial_requests(cell(64, 1, 1)), TRIAL_MIN);
        assert_eq!(trial_requests(cell(64, 1, 16)), 16 * TRIAL_MIN);
        assert_eq!(trial_requests(cell(64, 64, 16)), 20 * 1024);
        assert_eq!(trial_requests(cell(16384, 64, 16)), 2048);
        assert_eq!(trial_requests(cell(16384, 256, 16)), 8192);
        assert_eq!(round_requests(cell(64, 64, 1), 50_000.7), 50_000);
        assert_eq!(round_requests(cell(64, 64, 1), 1.0), 128);
        assert_eq!(round_requests(cell(16384, 64, 1), 1e9), 32768);
    }

    #[test]
    fn a_quick_comparison_is_part_of_the_whole() {
        assert!(CONNECTIONS_QUICK.iter().all(|count| CONNECTIONS.contains(count)));
        assert!(redis_version().is_empty() || redis_version().starts_with("Redis server v="));
    }
}
