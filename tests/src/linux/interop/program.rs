//! What `--bin interop` does: arguments, and rows as they are found.

use std::num::NonZeroU64;
use std::process::ExitCode;
use std::time::Duration;

use crate::interop::content::Content;
use crate::interop::load;
use crate::interop::matrix::{self, Axes, Row};
use crate::interop::path::{Family, Settings};
use crate::interop::peer::PeerKind;
use crate::interop::transfer::Direction;
use crate::require::{self, Need};
use clap::{Parser, ValueEnum};
use pasted::port::wire::Faults;

/// Bytes of each transfer, of the slice and of the full matrix.
const BYTES_SLICE: u64 = 16 << 20;
const BYTES_FULL: u64 = 1 << 30;

/// Transfers over a lossy wire, and how fast they were.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Every combination of every axis; without it, one axis at a time.
    #[arg(long)]
    full: bool,
    /// Bytes of each transfer: 16 MiB, or 1 GiB with --full.
    #[arg(long)]
    bytes: Option<u64>,
    /// What makes the traffic.
    #[arg(long, value_delimiter = ',', default_values_t = [Tool::Curl])]
    tool: Vec<Tool>,
    /// Who serves.
    #[arg(long, value_delimiter = ',', default_values_t = [PeerName::Pasted, PeerName::Linux])]
    peer: Vec<PeerName>,
    /// Which way the bytes go.
    #[arg(long, value_delimiter = ',', default_values_t = [Way::Get, Way::Post])]
    direction: Vec<Way>,
    /// Chances that a frame is lost, in each direction.
    #[arg(long, value_delimiter = ',')]
    loss: Vec<f64>,
    /// Selective acknowledgements.
    #[arg(long, value_delimiter = ',')]
    sack: Vec<Switch>,
    /// Timestamps.
    #[arg(long, value_delimiter = ',')]
    timestamps: Vec<Switch>,
    /// Versions of IP: 4, 6.
    #[arg(long, value_delimiter = ',', value_parser = family)]
    family: Vec<Family>,
    /// Bytes of the largest packet.
    #[arg(long, value_delimiter = ',')]
    mtu: Vec<u16>,
    /// Explicit congestion notification.
    #[arg(long, value_delimiter = ',')]
    ecn: Vec<Switch>,
    /// Seconds that wrk and iperf3 take.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Streams of iperf3 at once.
    #[arg(long, default_value_t = 1)]
    streams: u32,
    /// Delay of each direction, in us.
    #[arg(long, default_value_t = 100)]
    delay_us: u64,
    /// Delay beyond that, at most, in us.
    #[arg(long, default_value_t = 0)]
    jitter_us: u64,
    /// The wire's rate, in Mbit/s.
    #[arg(long)]
    rate_mbps: Option<NonZeroU64>,
    /// Chance that a frame which may be marked "congestion experienced" is.
    #[arg(long, default_value_t = 0.0)]
    mark: f64,
    /// Chance that a frame arrives twice.
    #[arg(long, default_value_t = 0.0)]
    duplicate: f64,
    /// Chance that a frame is held back by up to 1 ms.
    #[arg(long, default_value_t = 0.0)]
    reorder: f64,
    /// Chance that one bit of a frame is flipped.
    #[arg(long, default_value_t = 0.0)]
    corrupt: f64,
    /// The seed of all faults.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The shortest retransmission timeout of Linux's TCP, in ms; what it has, without.
    /// Without SACK a wire that loses much is a matter of timeouts.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    linux_rto_min_ms: Option<u16>,
    /// Seconds after which a transfer is given up.
    #[arg(long, default_value_t = 1800)]
    limit_s: u64,
    /// One JSON object per row instead of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Tool {
    Curl,
    Iperf3,
    Wrk,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum PeerName {
    Pasted,
    Linux,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Way {
    Get,
    Post,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Switch {
    On,
    Off,
}

macro_rules! display_as_value {
    ($($name:ty),+) => {
        $(impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                let value = self.to_possible_value().expect("no value is skipped");
                f.write_str(value.get_name())
            }
        })+
    };
}
display_as_value!(Tool, PeerName, Way);

fn family(text: &str) -> Result<Family, String> {
    match text {
        "4" => Ok(Family::V4),
        "6" => Ok(Family::V6),
        _ => Err("4 or 6".to_owned()),
    }
}

impl Arguments {
    fn axes(&self) -> Axes {
        let mut axes = Axes::full();
        let on = |switches: &[Switch]| switches.iter().map(|&s| s == Switch::On).collect();
        replace(&mut axes.loss, self.loss.clone());
        replace(&mut axes.sack, on(&self.sack));
        replace(&mut axes.timestamps, on(&self.timestamps));
        replace(&mut axes.family, self.family.clone());
        replace(&mut axes.mtu, self.mtu.clone());
        replace(&mut axes.ecn, on(&self.ecn));
        axes
    }

    fn kinds(&self) -> impl Iterator<Item = PeerKind> {
        self.peer.iter().map(|peer| match peer {
            PeerName::Pasted => PeerKind::Pasted,
            PeerName::Linux => PeerKind::Linux,
        })
    }

    fn directions(&self) -> impl Iterator<Item = Direction> {
        self.direction.iter().map(|way| match way {
            Way::Get => Direction::Get,
            Way::Post => Direction::Post,
        })
    }

    fn combinations(&self) -> Vec<Settings> {
        let rate_bps =
            self.rate_mbps.and_then(|rate| rate.checked_mul(NonZeroU64::new(1_000_000)?));
        let common = Settings {
            family: Family::V4,
            mtu: 1500,
            sack: true,
            timestamps: true,
            ecn: false,
            faults: Faults {
                loss: 0.0,
                duplicate: self.duplicate,
                reorder: self.reorder,
                corrupt: self.corrupt,
                delay_ns: self.delay_us * 1_000,
                jitter_ns: self.jitter_us * 1_000,
                rate_bps,
            },
            mark: self.mark,
            seed: self.seed,
            rto_min_us: self.linux_rto_min_ms.map(|ms| u32::from(ms) * 1_000),
        };
        if self.full { self.axes().all(common) } else { self.axes().star(common) }
    }
}

/// What was asked for instead of all values, if anything was.
fn replace<T>(values: &mut Vec<T>, asked: Vec<T>) {
    if !asked.is_empty() {
        *values = asked;
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(wrong) => {
            eprintln!("interop: {wrong} rows are wrong");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("interop: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs what was asked for; returns how many rows are wrong.
fn run(arguments: &Arguments) -> Result<usize, String> {
    let mut needs = vec![Need::Namespaces, Need::Built("pasted")];
    for tool in &arguments.tool {
        needs.extend(match tool {
            Tool::Curl => [Need::Program("curl"), Need::Built("examples/http")],
            Tool::Iperf3 => [Need::Program("iperf3"), Need::Built("examples/iperf3")],
            Tool::Wrk => [Need::Program("wrk"), Need::Built("examples/http")],
        });
    }
    if let Some(reason) = needs.into_iter().find_map(require::missing) {
        return Err(reason);
    }
    let bytes = arguments.bytes.unwrap_or(if arguments.full { BYTES_FULL } else { BYTES_SLICE });
    let content = Content::write(bytes).map_err(|error| format!("the content: {error}"))?;
    if !arguments.json {
        println!("{}", HEADER.join("\n"));
    }
    let mut wrong = 0;
    let mut show = |row: Row| {
        wrong += usize::from(!row.ok);
        if arguments.json {
            println!("{}", serde_json::to_string(&row).expect("plain values"));
        } else {
            println!("{}", line(&row));
        }
    };
    let limit = Duration::from_secs(arguments.limit_s);
    for settings in &arguments.combinations() {
        for tool in &arguments.tool {
            if *tool == Tool::Wrk {
                for kind in arguments.kinds() {
                    show(load::run_wrk(kind, settings, arguments.seconds));
                }
                continue;
            }
            for direction in arguments.directions() {
                for kind in arguments.kinds() {
                    show(if *tool == Tool::Curl {
                        matrix::run_curl(kind, direction, settings, &content, limit)
                    } else {
                        let Arguments { seconds, streams, .. } = *arguments;
                        load::run_iperf3(kind, direction, settings, seconds, streams)
                    });
                }
            }
        }
    }
    Ok(wrong)
}

const HEADER: [&str; 2] = [
    "| tool | direction | peer | IP | MTU | loss | SACK | TS | ECN | MB | seconds | speed | \
     retransmits | lost | result |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
];

fn line(row: &Row) -> String {
    let switch = |on| if on { "on" } else { "off" };
    let speed = match row.requests_per_s {
        0.0 => format!("{:.1} Mbit/s", row.mbps),
        requests_per_s => format!("{requests_per_s:.0} requests/s"),
    };
    let result = match &row.error {
        None if row.marked > 0 => format!("right; {} frames marked", row.marked),
        None if row.overflowed > 0 => format!("right; {} frames overflowed", row.overflowed),
        None => "right".to_owned(),
        Some(error) => format!("WRONG: {error}"),
    };
    format!(
        "| {} | {} | {} | {} | {} | {} % | {} | {} | {} | {:.0} | {:.2} | {} | {} | {} | {} |",
        row.tool,
        row.direction,
        row.peer,
        row.family,
        row.mtu,
        row.loss * 100.0,
        switch(row.sack),
        switch(row.timestamps),
        switch(row.ecn),
        row.bytes as f64 / 1e6,
        row.seconds,
        speed,
        row.retransmits,
        row.lost,
        result,
    )
}
