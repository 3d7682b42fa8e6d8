//! `pasted demo`: the main job, end to end, on a machine that has nothing but
//! the Rust toolchain. On Linux alone, whose namespaces and event loops it uses.
//!
//! In a network of its own it starts the backend and the `http` guest, drives
//! requests through them over real TCP, judges every byte of the responses,
//! kills the guest in the middle and starts it again; and beside that it gives
//! the same load to an epoll server. Everything is this one binary. Where it is given no
//! network of its own, all of it takes place on the loopback device, with the guest on the
//! host's own TCP.
//!
//! | module | knows |
//! | --- | --- |
//! | [`http`] | requests and responses, as bytes |
//! | [`client`] | a server's address and what to expect of it |
//! | [`sample`] | counts and latencies |
//! | [`epoll_server`] | kernel sockets |
//! | [`relay`] | two TAP devices |
//! | `peer`, `guest` | what the started processes are |
//! | `scene` | namespace, directory, addresses, processes |
//! | `measure` | one side of the comparison |
//! | `report` | table and JSON |
//! | `play` | the order of events |
//!
//! The benchmarks use [`client`], [`epoll_server`] and what they need.

pub mod client;
pub mod epoll_server;
mod guest;
pub mod http;
mod measure;
mod peer;
mod play;
pub mod relay;
mod report;
pub mod requests;
pub mod sample;
mod scene;

use std::fmt::Display;
use std::process::ExitCode;

pub use guest::GuestArgs;
pub use peer::PeerArgs;
pub use scene::{Directory, Process, SceneError};

/// Connections that the demo can be asked for.
const CONNECTIONS_MAX: i64 = 4096;
/// Seconds per side that it can be asked for.
const SECONDS_MAX: i64 = 3600;

/// The options of `pasted demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How long to measure each side, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX as u64))]
    pub seconds: u64,
    /// TCP connections at once
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=CONNECTIONS_MAX))]
    pub connections: u32,
    /// Print the result as a JSON object too, on the last line
    #[arg(long)]
    pub json: bool,
}

/// What the command line can ask for.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Serve requests end to end, with a guest and a client from this binary
    Demo(Args),
    /// What `demo` starts to find out where it can take place
    #[command(hide = true)]
    DemoTry,
    /// What `demo` starts as its guest
    #[command(hide = true)]
    DemoGuest(GuestArgs),
    /// What `demo` starts as its peer
    #[command(hide = true)]
    DemoPeer(PeerArgs),
}

/// Does what was asked for. Must be called before the process has a second thread.
pub fn run(command: Command) -> ExitCode {
    match command {
        Command::Demo(args) => run_demo(&args),
        Command::DemoTry => try_ground(),
        Command::DemoGuest(args) => run_guest(&args),
        Command::DemoPeer(args) => run_peer(&args),
    }
}

/// Runs the demo. Must be called before the process has a second thread. The
/// exit code is 0 only if every response was right and the guest came back.
fn run_demo(args: &Args) -> ExitCode {
    match play::play(args) {
        Ok(report) => {
            print!("{}", report.table());
            if args.json {
                println!("{}", report.json());
            }
            if report.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => failed("demo", &error),
    }
}

/// Tries whether the demo can have a network of its own; what is in the way goes to
/// stderr.
fn try_ground() -> ExitCode {
    match scene::enter() {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Is the guest of the demo, in a process that the demo started.
pub fn run_guest(args: &GuestArgs) -> ExitCode {
    guest::run(args).map_or_else(|e| failed("demo guest", &e), |()| ExitCode::SUCCESS)
}

/// Is the peer of the demo, in a process that the demo started.
fn run_peer(args: &PeerArgs) -> ExitCode {
    peer::run(args).map_or_else(|e| failed("demo peer", &e), |()| ExitCode::SUCCESS)
}

fn failed(who: &str, error: &dyn Display) -> ExitCode {
    eprintln!("pasted {who}: {error}");
    ExitCode::FAILURE
}
