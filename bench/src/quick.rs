//! `paste-bench quick`: requests/s and CPU time per request, pasted beside
//! epoll, in turns.
//!
//! For each number of connections both servers are started anew and connected
//! to; then they are measured A/B/A/B, each held still while the other is
//! measured. The client is on the first core, the servers are on the second.

use std::io;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use pasted::demo::http::request;
use pasted::demo::{Directory, SceneError};
use pasted::sys::demo::{children, usage};

use crate::client::{Client, ClientError, Group, Script};
use crate::network::{self, GUEST_DEVICE, NetworkError};
use crate::report::{Conditions, Report};
use crate::row::{Round, Row};
use crate::server::{Kind, REQUEST_LEN, Server, Setting};
use crate::sys::{self, Machine};

/// How long each server is driven before the first round, so that caches are
/// warm and windows open.
const WARM_UP: Duration = Duration::from_millis(300);
/// A range of fewer rounds says too little.
const ROUNDS_MIN: i64 = 5;
/// Connections that can be asked for.
const CONNECTIONS_MAX: usize = 4096;

/// The options of `paste-bench quick`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How long one round is, in seconds
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Rounds of each server, in turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(ROUNDS_MIN..=100))]
    rounds: u32,
    /// Numbers of connections to measure with
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1024", value_parser = connections)]
    connections: Vec<usize>,
    /// How long client and servers poll before they sleep, in us; or "always"
    #[arg(long, default_value = "50")]
    poll_us: Polling,
    /// Print the result as Markdown in place of the table
    #[arg(long)]
    markdown: bool,
    /// Print the result as a JSON object too, on the last line
    #[arg(long)]
    json: bool,
}

/// A polling time: microseconds, or `None` for always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Polling(Option<u64>);

impl FromStr for Polling {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Polling, &'static str> {
        if text == "always" {
            return Ok(Polling(None));
        }
        let us = text.parse().ok().filter(|&us| us <= 1_000_000);
        us.map(|us| Polling(Some(us))).ok_or("write a number up to 1000000, or always")
    }
}

fn connections(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| (1..=CONNECTIONS_MAX).contains(count))
        .ok_or_else(|| format!("write numbers from 1 to {CONNECTIONS_MAX}, with commas between"))
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// No network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// No server.
    #[error(transparent)]
    Server(#[from] SceneError),
    /// No load.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Client and server on one core would only measure how these share it.
    #[error("this process may use one core only: the comparison needs two")]
    OneCore,
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

/// Measures, and prints the result. The exit code is 0 only if every response
/// was right. Must be called before the process has a second thread.
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
            eprintln!("paste-bench quick: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure(args: &Args) -> Result<Report, Error> {
    network::enter(&[GUEST_DEVICE])?;
    let cores = children::cores().map_err(refused("the cores cannot be counted"))?;
    let [client_core, server_core, ..] = cores[..] else {
        return Err(Error::OneCore);
    };
    children::pin(client_core).map_err(refused("the client cannot be bound to a core"))?;
    let directory = Directory::new()?;
    let poll_us = args.poll_us.0;
    let setting = Setting { core: server_core, poll_us, directory: &directory };
    let mut client = Client::open(network::CLIENT, poll_us.map(Duration::from_micros))?;
    let mut rows = Vec::with_capacity(args.connections.len() * Kind::ALL.len());
    for &connections in &args.connections {
        rows.extend(compare(args, &mut client, setting, connections)?);
    }
    Ok(Report {
        conditions: Conditions {
            machine: Machine::this(),
            congestion_control: sys::congestion_control(),
            cores: cores.len(),
            client_core,
            server_core,
            poll_us,
            seconds: args.seconds,
            rounds: args.rounds,
        },
        rows,
    })
}

/// One of the compared: a server, the connections to it, and its rounds.
struct Side {
    server: Server,
    group: Group,
    rounds: Vec<Round>,
}

/// Both servers at one number of connections.
fn compare(
    args: &Args,
    client: &mut Client,
    setting: Setting<'_>,
    connections: usize,
) -> Result<Vec<Row>, Error> {
    let mut sides = Vec::with_capacity(Kind::ALL.len());
    for kind in Kind::ALL {
        let mut server = Server::start(kind, setting)?;
        let script = Script::http(request(REQUEST_LEN, kind.address()));
        let group = match client.connect(kind.address(), &vec![script; connections]) {
            Ok(group) => group,
            Err(error) => {
                server.check()?;
                return Err(error.into());
            }
        };
        let mut side = Side { server, group, rounds: Vec::with_capacity(args.rounds as usize) };
        side.round(client, WARM_UP)?;
        side.server.hold(true).map_err(refused("a server cannot be held still"))?;
        sides.push(side);
    }
    for number in 1..=args.rounds {
        for side in &mut sides {
            side.server.hold(false).map_err(refused("a server cannot be let go on"))?;
            let round = side.round(client, Duration::from_secs(args.seconds))?;
            side.server.hold(true).map_err(refused("a server cannot be held still"))?;
            eprintln!(
                "{connections} connections, round {number} of {}: {} {:.0} requests/s",
                args.rounds,
                side.server.kind.name(),
                round.stretch.sample.rps(),
            );
            side.rounds.push(round);
        }
    }
    let mut rows = Vec::with_capacity(sides.len());
    for Side { server, group, rounds } in sides {
        server.hold(false).map_err(refused("a server cannot be let go on"))?;
        client.disconnect(group)?;
        let kind = server.kind;
        let counted = server.stop()?;
        rows.push(Row::new(kind, connections, &rounds, &counted));
    }
    Ok(rows)
}

impl Side {
    /// Drives the server for `duration`, and waits for what is on its way then.
    fn round(&mut self, client: &mut Client, duration: Duration) -> Result<Round, Error> {
        let pids = self.server.pids();
        let spent = || -> io::Result<(u64, u64, Vec<u64>, sys::Stolen)> {
            let each = pids.iter().map(|&pid| usage::process_ns(pid)).collect::<Result<_, _>>()?;
            let own = usage::process_ns(std::process::id())?;
            Ok((usage::busy_ns()?, own, each, sys::stolen()?))
        };
        let unread = || refused("CPU times cannot be read");
        let before = spent().map_err(unread())?;
        let mut stretch = client.drive(&self.group, duration)?;
        let after = match spent() {
            Ok(after) => after,
            Err(error) => {
                self.server.check()?;
                return Err(unread()(error));
            }
        };
        client.drain(&self.group, &mut stretch)?;
        self.server.check()?;
        Ok(Round {
            stretch,
            busy_ns: after.0.saturating_sub(before.0),
            client_ns: after.1.saturating_sub(before.1),
            server_ns: after
                .2
                .iter()
                .zip(&before.2)
                .map(|(after, before)| after.saturating_sub(*before))
                .collect(),
            steal_percent: after.3.percent_since(before.3),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polling_times_and_connections_are_judged() {
        assert_eq!("always".parse(), Ok(Polling(None)));
        assert_eq!("50".parse(), Ok(Polling(Some(50))));
        assert!("-1".parse::<Polling>().is_err());
        assert!("1000001".parse::<Polling>().is_err());
        assert_eq!(connections("1024"), Ok(1024));
        for bad in ["0", "4097", "", "x"] {
            assert!(connections(bad).is_err(), "{bad:?}");
        }
    }
}
