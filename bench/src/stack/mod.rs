//! `paste-bench stack`: what one request and its response cost in the stack
//! alone, beside smoltcp, on a wire that is memory.
//!
//! | module | knows |
//! | --- | --- |
//! | `peer` | the far ends: frames made and judged, the same for both stacks |
//! | `region` | the buffers that frames lie in |
//! | `server` | what the measurements know of a stack |
//! | `paste`, `smol` | the two stacks, each with its guest or application |
//! | `measure` | the order of measurements |
//! | `report` | tables, Markdown and JSON |

mod measure;
mod paste;
pub mod peer;
mod region;
mod report;
mod server;
mod smol;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

/// The largest `flows_max` of a stack: what the guest's names of flows can tell.
const FLOWS_MAX: u32 = paste_abi::Flow::INDEX_MAX;

/// The options of `paste-bench stack`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Numbers of flows to measure with
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1_000, 10_000, 100_000, 1_000_000], value_parser = clap::value_parser!(u32).range(1..=i64::from(FLOWS_MAX)))]
    flows: Vec<u32>,
    /// Requests in this order only: for a profiler, with one number of flows
    #[arg(long, value_parser = order)]
    order: Option<peer::Order>,
    /// Our stack only, and checksums by software
    #[arg(long)]
    alone: bool,
    /// Rounds of each row, in turns
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Fewer and shorter rounds: the figures are rough
    #[arg(long)]
    quick: bool,
    /// Print the result as Markdown in place of the table
    #[arg(long)]
    markdown: bool,
    /// Print the rows as a JSON object too, on the last line
    #[arg(long)]
    json: bool,
}

fn order(name: &str) -> Result<peer::Order, &'static str> {
    let known = [peer::Order::Sequential, peer::Order::Random];
    known.into_iter().find(|order| order.name() == name).ok_or("sequential or random")
}

/// Measures, and prints the result.
pub fn run(args: &Args) -> ExitCode {
    let report = measure::measure(args);
    print!("{}", if args.markdown { report.markdown() } else { report.table() });
    if args.json {
        println!("{}", report.json());
    }
    ExitCode::SUCCESS
}
