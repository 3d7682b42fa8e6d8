//! Linux. What each room knows is said in [`super`].

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

use super::Args;

pub use guest::GuestArgs;
pub use peer::PeerArgs;
pub use scene::{Directory, Process, SceneError};

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
