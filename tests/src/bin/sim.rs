//! Runs the simulator over many seeds, and says how to see again what failed.

use std::fmt::Arguments;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Parser;
use paste_tests::pcapng::Capture;
use paste_tests::sim::scenario::START;
use paste_tests::sim::{Nobody, STATIONS, Scenario, Summary, Tap, run};

/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);

/// Whole hosts in one thread under virtual time: explores what seeds hold.
#[derive(Debug, Parser)]
struct Args {
    /// Seeds to run, from the first up to but without the second.
    #[arg(long, value_name = "A..B", value_parser = seeds, default_value = "0..1000")]
    seeds: Range<u64>,
    /// The only seed to run.
    #[arg(long, value_name = "N", conflicts_with = "seeds")]
    seed: Option<u64>,
    /// An adversary takes part in every run.
    #[arg(long)]
    adversary: bool,
    /// Print what happens and every frame. Of one seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Write all frames of one seed, or of the first that fails, to this file.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Failures to print; more say little more.
    #[arg(long, value_name = "N", default_value_t = 20)]
    show: usize,
    /// Threads.
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
}

fn seeds(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("expected A..B")?;
    let number = |text: &str| text.parse().map_err(|_| format!("{text:?} is no seed"));
    Ok(number(from)?..number(to)?)
}

/// Prints and captures.
struct Recorder {
    trace: bool,
    capture: Option<Capture<BufWriter<File>>>,
    error: Option<io::Error>,
}

impl Tap for Recorder {
    fn frame(&mut self, now: u64, station: usize, bytes: &[u8], comment: &str) {
        if self.trace {
            println!("{}", line(now, station, bytes, comment));
        }
        if let Some(capture) = &mut self.capture
            && let Err(error) = capture.frame(station as u32, now, bytes, comment)
        {
            self.error.get_or_insert(error);
        }
    }

    fn note(&mut self, now: u64, what: Arguments<'_>) {
        if self.trace {
            println!("{:>14} {what}", now - START);
        }
    }
}

/// A frame on one line.
fn line(now: u64, station: usize, bytes: &[u8], comment: &str) -> String {
    let station = STATIONS[station];
    let what = match paste_tests::sim::headers::parse(bytes) {
        None => format!("{} bytes, no TCP", bytes.len()),
        Some(s) => {
            let flags: String = "FSRPAUEW"
                .chars()
                .enumerate()
                .filter(|(bit, _)| s.flags & 1 << bit != 0)
                .map(|(_, letter)| letter)
                .collect();
            let (from, to) = (s.src_port, s.dst_port);
            let (seq, len, ack, window) = (s.seq, s.payload_len, s.ack, s.window);
            format!("{from} > {to} {flags} seq {seq}+{len} ack {ack} win {window}")
        }
    };
    format!("{:>14} {station}: {what} {comment}", now - START)
}

/// Runs one seed again, with everybody looking on.
fn record(scenario: &Scenario, trace: bool, pcap: Option<&Path>) -> io::Result<()> {
    let capture = match pcap {
        Some(path) => Some(Capture::new(BufWriter::new(File::create(path)?), &STATIONS)?),
        None => None,
    };
    let mut recorder = Recorder { trace, capture, error: None };
    // What it finds is known, or is printed by the caller.
    let _ = run(scenario, &mut recorder);
    if let Some(capture) = recorder.capture {
        capture.finish()?;
    }
    recorder.error.map_or(Ok(()), Err)
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seeds = args.seed.map_or(args.seeds.clone(), |seed| seed..seed + 1);
    if args.seed.is_some() && (args.trace || args.pcap.is_some()) {
        let scenario = Scenario::draw(seeds.start, args.adversary);
        if args.trace {
            println!("{scenario:#?}");
        }
        if let Err(error) = record(&scenario, args.trace, args.pcap.as_deref()) {
            eprintln!("the capture failed: {error}");
        }
    }
    match explore(&args, &seeds) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs all seeds; returns whether none failed.
fn explore(args: &Args, seeds: &Range<u64>) -> io::Result<bool> {
    let began = Instant::now();
    let next = AtomicU64::new(seeds.start);
    let (results, collected) = mpsc::channel();
    let mut total = Summary::default();
    let mut failed: Vec<(u64, String)> = Vec::new();
    let count = seeds.end.saturating_sub(seeds.start);
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            let (results, next) = (results.clone(), &next);
            scope.spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let scenario = Scenario::draw(seed, args.adversary);
                    if results.send((seed, run(&scenario, &mut Nobody))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(results);
        let mut printed = began;
        for (done, (seed, result)) in (1..).zip(collected) {
            match result {
                Ok(summary) => add(&mut total, &summary),
                Err(what) => failed.push((seed, what)),
            }
            if printed.elapsed() > PROGRESS {
                printed = Instant::now();
                println!("{done} of {count} seeds, {} failed", failed.len());
            }
        }
    });
    failed.sort();
    let adversary = if args.adversary { " --adversary" } else { "" };
    let mut out = io::stdout().lock();
    for (seed, what) in failed.iter().take(args.show) {
        writeln!(out, "seed {seed} failed: {what}")?;
        let command = "cargo run --release -p paste-tests --bin sim --";
        writeln!(out, "    {command} --seed {seed}{adversary} --trace")?;
    }
    if let Some((seed, _)) = failed.first()
        && args.seed.is_none()
    {
        let default = std::env::temp_dir().join(format!("sim-{seed}.pcapng"));
        let path = args.pcap.as_deref().unwrap_or(&default);
        record(&Scenario::draw(*seed, args.adversary), false, Some(path))?;
        writeln!(out, "all frames of seed {seed}: {}", path.display())?;
    }
    let per_minute = count as f64 * 60.0 / began.elapsed().as_secs_f64();
    let Summary { frames, bytes, shared, retransmits, timeouts, closed, broken, time } = total;
    writeln!(
        out,
        "{count} seeds, {} failed, {frames} frames, {bytes} bytes, {shared} shared sends, \
         {retransmits} retransmits, {timeouts} timeouts, {closed} flows closed, {broken} broken, {} s of virtual time, \
         {per_minute:.0} seeds/min",
        failed.len(),
        time / 1_000_000_000,
    )?;
    Ok(failed.is_empty())
}

fn add(total: &mut Summary, one: &Summary) {
    total.frames += one.frames;
    total.bytes += one.bytes;
    total.shared += one.shared;
    total.retransmits += one.retransmits;
    total.timeouts += one.timeouts;
    total.closed += one.closed;
    total.broken += one.broken;
    total.time += one.time;
}
