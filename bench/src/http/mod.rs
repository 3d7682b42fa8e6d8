//! `paste-bench http`: requests per second, CPU time per request and latency of HTTP
//! requests, the backend beside the servers that users have today; and `paste-bench quick`,
//! which is the shortest comparison of that kind.
//!
//! | module | knows |
//! | --- | --- |
//! | `contender` | who is compared, and how it is set up |
//! | `bed` | the network: devices and addresses |
//! | `server` | the servers, from outside |
//! | `wrk` | the second client |
//! | `measure` | the order of measurements |
//! | `row` | what rounds add up to |
//! | `report` | table, Markdown and JSON |
//! | `html` | the report with plots |

pub mod bed;
pub mod contender;
mod html;
mod measure;
mod report;
mod row;
mod server;
pub mod wrk;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use self::bed::GUESTS_MAX;
use self::contender::{BATCH_DEFAULT, Kind, PortKind, Shape, Waiting};
use self::measure::Plan;
use self::report::{Conditions, Report};
use crate::sys::{self, Machine};

/// A range of fewer rounds says too little; a trial may have fewer.
const ROUNDS_DEFAULT: u32 = 5;
/// Connections that can be asked for.
const CONNECTIONS_MAX: usize = 10_000;
/// Percent of the reference's rate at most: beyond it, requests only pile up.
const LOAD_MAX: i64 = 200;

/// The client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ClientKind {
    /// Our own stack on the device: one thread that judges every byte.
    Own,
    /// wrk, on the kernel's TCP.
    Wrk,
}

/// Where guests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum GuestCore {
    /// On the backend's core.
    Shared,
    /// On a core of their own.
    Own,
}

/// Whether headers are kept from the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Switch {
    /// They are.
    On,
    /// They are not.
    Off,
}

/// How a result is printed.
#[derive(Clone, Debug, clap::Args)]
struct Output {
    /// Print the result as Markdown in place of the table
    #[arg(long)]
    markdown: bool,
    /// Print the result as a JSON object too, on the last line
    #[arg(long)]
    json: bool,
    /// Write the result with plots to this file too
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// The options of `paste-bench http`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What the backend is attached to: one comparison for each
    #[arg(long, value_enum, value_delimiter = ',', default_value = "tap")]
    port: Vec<PortKind>,
    /// Who is compared; left out, all that fit the port
    #[arg(long, value_enum, value_delimiter = ',')]
    servers: Vec<Kind>,
    /// Numbers of connections to measure with
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1024,10000", value_parser = connections)]
    connections: Vec<usize>,
    /// What servers and client do when there is nothing to do: poll, block, or poll for a
    /// time such as 50us and then sleep. nginx always blocks
    #[arg(long, value_delimiter = ',', default_value = "poll")]
    waiting: Vec<Waiting>,
    /// The client
    #[arg(long, value_enum, default_value = "own")]
    client: ClientKind,
    /// Open loops after the closed one, in percent of the rate that the epoll server (or the
    /// first one) has reached there
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=LOAD_MAX))]
    loads: Vec<u32>,
    /// Numbers of guests on the port
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u16).range(1..=GUESTS_MAX as i64))]
    guests: Vec<u16>,
    /// Where guests run; left out, on the backend's core, and with --port memory on their own
    #[arg(long, value_enum)]
    guest_core: Option<GuestCore>,
    /// Slots in a PASTE frame at most, as guests ask for it
    #[arg(long, value_delimiter = ',', default_values_t = [BATCH_DEFAULT], value_parser = clap::value_parser!(u16).range(1..=i64::from(BATCH_DEFAULT)))]
    batch: Vec<u16>,
    /// Whether headers are kept from the guest
    #[arg(long, value_enum, value_delimiter = ',', default_value = "on")]
    spoof_check: Vec<Switch>,
    /// How long one round is, in seconds; with wrk, at least one
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Rounds of each server, in turns
    #[arg(long, default_value_t = ROUNDS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    #[command(flatten)]
    output: Output,
}

/// The options of `paste-bench quick`.
#[derive(Clone, Debug, clap::Args)]
pub struct QuickArgs {
    /// How long one round is, in seconds
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    seconds: f64,
    /// Rounds of each server, in turns
    #[arg(long, default_value_t = ROUNDS_DEFAULT, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Numbers of connections to measure with
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1024", value_parser = connections)]
    connections: Vec<usize>,
    /// How long client and servers poll before they sleep, in us; or "always"
    #[arg(long, default_value = "50", value_parser = polling)]
    poll_us: Waiting,
    #[command(flatten)]
    output: Output,
}

fn connections(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|count| (1..=CONNECTIONS_MAX).contains(count))
        .ok_or_else(|| format!("write numbers from 1 to {CONNECTIONS_MAX}, with commas between"))
}

fn seconds(text: &str) -> Result<f64, &'static str> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=600.0).contains(seconds));
    seconds.ok_or("write a number from 0.1 to 600")
}

fn polling(text: &str) -> Result<Waiting, &'static str> {
    if text == "always" {
        return Ok(Waiting::Poll);
    }
    match text.parse() {
        Ok(0) => Ok(Waiting::Block),
        Ok(us @ 1..=1_000_000) => Ok(Waiting::For(us)),
        _ => Err("write a number up to 1000000, or always"),
    }
}

impl Args {
    fn plan(&self) -> Plan {
        let kinds = if self.servers.is_empty() { Kind::ALL.to_vec() } else { self.servers.clone() };
        let mut shapes = Vec::new();
        for &guests in &self.guests {
            for &batch in &self.batch {
                for &switch in &self.spoof_check {
                    let spoof_check = switch == Switch::On;
                    let guests = usize::from(guests);
                    shapes.push(Shape { guests, batch, spoof_check, own_core: false });
                }
            }
        }
        Plan {
            ports: self.port.clone(),
            kinds,
            shapes,
            own_core: self.guest_core.map(|core| core == GuestCore::Own),
            waiting: self.waiting.clone(),
            connections: self.connections.clone(),
            wrk: self.client == ClientKind::Wrk,
            loads: self.loads.clone(),
            round: Duration::from_secs_f64(self.seconds),
            rounds: self.rounds,
            split: self.client == ClientKind::Own,
        }
    }
}

impl QuickArgs {
    fn plan(&self) -> Plan {
        Plan {
            ports: vec![PortKind::Tap],
            kinds: vec![Kind::Pasted, Kind::Epoll],
            shapes: vec![Shape::default()],
            own_core: None,
            waiting: vec![self.poll_us],
            connections: self.connections.clone(),
            wrk: false,
            loads: Vec::new(),
            round: Duration::from_secs_f64(self.seconds),
            rounds: self.rounds,
            split: false,
        }
    }
}

/// Measures, and prints the result. The exit code is 0 only if every response
/// was right. Must be called before the process has a second thread.
pub fn run(args: &Args) -> ExitCode {
    measured("http", &args.plan(), &args.output)
}

/// As [`run`], for the shortest comparison.
pub fn run_quick(args: &QuickArgs) -> ExitCode {
    measured("quick", &args.plan(), &args.output)
}

fn measured(name: &str, plan: &Plan, output: &Output) -> ExitCode {
    let load = sys::load();
    let (rows, cores) = match measure::measure(plan) {
        Ok(measured) => measured,
        Err(error) => {
            eprintln!("paste-bench {name}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let report = Report {
        conditions: Conditions {
            machine: Machine::this(),
            congestion_control: sys::congestion_control(),
            cores,
            seconds: plan.round.as_secs_f64(),
            rounds: plan.rounds,
            load,
            command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        },
        rows,
        names_port: name != "quick",
    };
    print!("{}", if output.markdown { report.markdown() } else { report.table() });
    if output.json {
        println!("{}", report.json());
    }
    if let Some(file) = &output.html
        && let Err(error) = std::fs::write(file, report.html())
    {
        eprintln!("paste-bench {name}: {}: {error}", file.display());
        return ExitCode::FAILURE;
    }
    if report.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(text: &str) -> Result<Plan, clap::Error> {
        let words = std::iter::once("http").chain(text.split_ascii_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.args.plan())
    }

    #[test]
    fn every_combination_of_shapes_is_measured() {
        let plan = parse("--port tap,memory --guests 1,4 --batch 8,127 --spoof-check on,off");
        let plan = plan.unwrap();
        assert_eq!((plan.ports.len(), plan.shapes.len()), (2, 8));
        assert_eq!((plan.kinds.len(), plan.own_core), (6, None));
    }

    #[test]
    fn what_is_asked_for_is_judged() {
        for bad in [
            "--connections 0",
            "--connections 10001",
            "--connections x",
            "--guests 17",
            "--batch 128",
            "--waiting 50",
            "--loads 201",
            "--port ix0",
            "--rounds 0",
            "--seconds 0.01",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse("--connections 1024,10000").unwrap().connections, [1024, 10_000]);
        assert_eq!(parse("--servers io_uring").unwrap().kinds, [Kind::IoUring]);
        assert_eq!(polling("always"), Ok(Waiting::Poll));
        assert_eq!((polling("0"), polling("50")), (Ok(Waiting::Block), Ok(Waiting::For(50))));
        assert!(polling("-1").is_err() && polling("1000001").is_err());
    }
}
