//! Benchmarks of `pasted` against the peers that users have today.
//!
//! | module | knows |
//! | --- | --- |
//! | `http` | requests beside the servers that users have today, over every port |
//! | `frames` | frames of a guest's own driver, beside DPDK's vhost |
//! | `durable` | durable writes, beside Redis |
//! | `stack` | the stack alone, beside smoltcp |
//! | `client` | the load: our own stack on a device |
//! | `device`, `network` | devices, and the network of a comparison |
//! | `peers` | what is compared with |
//! | `processes`, `serve` | the processes of a server, from outside and from inside |
//! | `row`, `report`, `plot` | figures, text and plots as all reports have them |
//! | `sys` | the operating system |
//!
//! A library, so that where there is no Linux there is an empty one: servers and clients
//! are in its namespaces, and are measured by what its kernel tells.

#![cfg(target_os = "linux")]

mod client;
mod device;
mod durable;
mod frames;
mod http;
mod network;
mod peers;
mod plot;
mod processes;
mod report;
mod row;
mod serve;
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
    Quick(http::QuickArgs),
    /// Requests/s, CPU per request and latency over every port, beside epoll, io_uring, nginx
    /// and smoltcp
    Http(http::Args),
    /// Frames of an ordinary virtio driver, beside DPDK's vhost backend
    Frames(frames::Args),
    /// CPU time and memory of the stack alone, beside smoltcp
    Stack(stack::Args),
    /// Durable writes of the key-value server, beside Redis
    Durable(durable::Args),
    #[command(flatten)]
    Serve(serve::Role),
}

/// Runs the program.
pub fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Quick(args) => http::run_quick(&args),
        Command::Http(args) => http::run(&args),
        Command::Frames(args) => frames::run(&args),
        Command::Stack(args) => stack::run(&args),
        Command::Durable(args) => durable::run(&args),
        Command::Serve(role) => serve::run(&role),
    }
}
