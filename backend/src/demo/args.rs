//! What the demo can be asked for.

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
