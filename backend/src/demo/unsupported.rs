//! A system without network namespaces: there is no demo.

use std::process::ExitCode;

use super::Args;

/// What the command line can ask for.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Serve requests end to end, with a guest and a client from this binary
    Demo(Args),
}

/// Says that it cannot be done.
pub fn run(command: Command) -> ExitCode {
    let Command::Demo(_) = command;
    eprintln!("pasted demo: takes place on Linux alone, in network namespaces");
    ExitCode::FAILURE
}
