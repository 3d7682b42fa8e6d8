//! Benchmarks of `pasted` against the peers that users have today.
//!
//! | module | knows |
//! | --- | --- |
//! | `client` | the load: our own stack on a TAP device |
//! | `network` | the devices and addresses of a comparison |
//! | `processes` | the processes of a server |
//! | `server`, `serve` | the servers, from outside and from inside |
//! | `quick` | the order of measurements of `paste-bench quick` |
//! | `row` | what rounds add up to |
//! | `report` | tables, Markdown and JSON |
//! | `durable` | durable writes, beside Redis |
//! | `stack` | the stack alone, beside smoltcp |
//! | `sys` | the operating system |

mod client;
mod durable;
mod network;
mod processes;
mod quick;
mod report;
mod row;
mod serve;
mod server;
mod stack;
mod sys;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Benchmarks of `pasted` against the peers that users have today.
#[derive(Debug, Parser)]
#[command(name = "paste-bench", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Requests/s and CPU per request beside an epoll server, on the same TAP
    Quick(quick::Args),
    /// CPU time and memory of the stack alone, beside smoltcp
    Stack(stack::Args),
    /// Durable writes of the key-value server, beside Redis
    Durable(durable::Args),
    #[command(flatten)]
    Serve(serve::Role),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Quick(args) => quick::run(&args),
        Command::Stack(args) => stack::run(&args),
        Command::Durable(args) => durable::run(&args),
        Command::Serve(role) => serve::run(&role),
    }
}
