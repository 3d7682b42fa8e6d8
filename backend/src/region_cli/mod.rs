//! `pasted region`: what an operator does with a region while nobody serves it.
//!
//! | command | writes | exit code 1 |
//! | --- | --- | --- |
//! | `create` | a new region, and its mirror | it could not be made |
//! | `info` | nothing | it cannot be read |
//! | `check` | nothing | something is wrong with it |
//! | `recover` | repairs what a crash or a damage left | something is lost |
//! | `export` | the records, to another file | something is lost |
//!
//! Results go to stdout, as text or as one JSON object, progress and errors to
//! stderr.

mod check;
mod create;
mod export;
mod info;
mod log;
mod recover;
mod show;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use paste_pmem::{
    BUFFER_SIZE_MAX, BUFFER_SIZE_MIN, Geometry, GeometryError, RegionError, SIZE_MAX, SIZE_MIN,
    SIZE_STEP,
};
use serde::Serialize;

use crate::config::{parse_size, show_size};

const EXAMPLES: &str = "\
Examples:
  pasted region create /dev/shm/web1.region --size 256MiB
  pasted region create /dev/shm/web1.region --size 1GiB --mirror /var/lib/pasted/web1.mirror
  pasted region create /dev/dax0.0 --size 64GiB --guest web1
  pasted region info /dev/shm/web1.region --json
  pasted region check /var/lib/pasted/web1.mirror
  pasted region recover /dev/shm/web1.region --mirror /var/lib/pasted/web1.mirror
  pasted region export /var/lib/pasted/web1.mirror --output web1.jsonl";

/// Arguments of `pasted region`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct RegionArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new region, and its mirror
    Create(CreateArgs),
    /// Tell what a region or a mirror is and how it was left
    Info(PathArgs),
    /// Verify everything in a region or a mirror, without writing to it
    Check(PathArgs),
    /// Repair a region: from its mirror where that is newer, and in itself
    Recover(RecoverArgs),
    /// Write out what the log of a region or a mirror holds, one JSON object per
    /// record
    Export(ExportArgs),
}

#[derive(Debug, Args)]
struct CreateArgs {
    /// The region's file, which must not exist; or a device DAX that holds zeros
    path: PathBuf,
    /// Its size, the host's 2MiB included: a multiple of 2MiB
    #[arg(long, value_parser = region_size)]
    size: u64,
    /// The guest that it belongs to; without it, the file's name up to the dot
    #[arg(long, value_name = "NAME")]
    guest: Option<String>,
    /// Bytes of one buffer, a power of two
    #[arg(long, value_name = "N", default_value_t = BUFFER_SIZE_MIN, value_parser = buffer_size)]
    buffer_size: u32,
    /// A file on a disk that is to be its mirror; must not exist
    #[arg(long, value_name = "FILE")]
    mirror: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct PathArgs {
    /// The file of the region or of the mirror, or the region's device
    path: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct RecoverArgs {
    /// The region's file; with a mirror, it may be gone
    path: PathBuf,
    /// Its mirror
    #[arg(long, value_name = "FILE")]
    mirror: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// The file of the region or of the mirror, or the region's device
    path: PathBuf,
    /// The file to write, which must not exist; without it, stdout
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print one JSON object that says what was written
    #[arg(long, requires = "output")]
    json: bool,
}

/// Why a command ended without success.
#[derive(Debug, thiserror::Error)]
pub enum RegionFailure {
    /// The region.
    #[error("pasted: {0}")]
    Region(#[from] RegionError),
    /// The layout asked for.
    #[error("pasted: {0}")]
    Geometry(#[from] GeometryError),
    /// The guest's name is missing or no name.
    #[error("pasted: \"{0}\" is no guest's name: give --guest with 1 to 63 of a-z, 0-9 and -")]
    Name(String),
    /// The mirror is to be the region itself.
    #[error("pasted: --mirror is the region's own file: name another, on a disk")]
    OwnMirror,
    /// The system has no random numbers.
    #[error("pasted: no random numbers are to be had: {0}")]
    Random(std::io::Error),
    /// Findings, which have been printed.
    #[error("pasted: {path}: {count} {what} found", what = if *.count == 1 { "fault" } else { "faults" })]
    Faults {
        /// The file.
        path: String,
        /// How many.
        count: usize,
    },
    /// A file to write to.
    #[error("pasted: {path}: cannot be created: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The result could not be printed.
    #[error("pasted: the result cannot be written: {0}")]
    Output(std::io::Error),
}

impl RegionFailure {
    /// Whether the command line was wrong, rather than the region.
    pub fn is_usage(&self) -> bool {
        use RegionFailure::{Geometry, Name, OwnMirror};
        matches!(self, Name(_) | Geometry(_) | OwnMirror)
    }
}

/// Does what the command line asks for.
///
/// # Errors
/// [`RegionFailure`], which says all that there is to say.
pub fn run(args: RegionArgs) -> Result<(), RegionFailure> {
    match args.command {
        Command::Create(args) => create::run(args),
        Command::Info(args) => info::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Recover(args) => recover::run(args),
        Command::Export(args) => export::run(&args),
    }
}

/// A mirror keeps nothing if it is the region.
fn not_own_mirror(path: &Path, mirror: Option<&Path>) -> Result<(), RegionFailure> {
    if mirror == Some(path) { Err(RegionFailure::OwnMirror) } else { Ok(()) }
}

/// Prints a result to stdout: as JSON, or as its text.
fn print(json: bool, result: &impl Serialize, text: &str) -> Result<(), RegionFailure> {
    let mut out = match json {
        true => serde_json::to_string_pretty(result)
            .map_err(|error| RegionFailure::Output(error.into()))?,
        false => text.to_owned(),
    };
    if !out.ends_with('\n') {
        out.push('\n');
    }
    std::io::stdout().write_all(out.as_bytes()).map_err(RegionFailure::Output)
}

fn region_size(text: &str) -> Result<u64, String> {
    let size = parse_size(text).ok_or("write a size such as 256MiB or 1GiB")?;
    Geometry::new(size, BUFFER_SIZE_MIN).map(|_| size).map_err(|_| {
        format!(
            "use a multiple of {} from {} to {}",
            show_size(SIZE_STEP),
            show_size(SIZE_MIN),
            show_size(SIZE_MAX)
        )
    })
}

fn buffer_size(text: &str) -> Result<u32, String> {
    let size = text.parse().ok().filter(|size: &u32| {
        size.is_power_of_two() && (BUFFER_SIZE_MIN..=BUFFER_SIZE_MAX).contains(size)
    });
    size.ok_or(format!("use a power of two from {BUFFER_SIZE_MIN} to {BUFFER_SIZE_MAX}"))
}
