//! A durable key-value server on a `pasted` device, which speaks what redis-cli
//! and redis-benchmark speak.
//!
//! ```text
//! kv (--socket PATH | (--interface NAME | --device ADDRESS) --region DEVICE)
//!      [--port 6379] [--channel N] [--poll-us N] [--yield]
//! kv --check FILE
//! ```
//!
//! Values lie in the packet buffers that they arrived in, in the guest's region,
//! and are sent from there. A write is answered when it is durable, as far as the
//! region can make it so: INFO tells `flush_domain`. What is stored is there again
//! after any crash; what was found is said at the start. Ends in good order on
//! SIGTERM; waits for a backend that restarts.
//!
//! `--check` verifies every key and value in a region's file, or in its mirror, while
//! nobody serves it, and changes nothing. It ends with 1 if something that was
//! acknowledged is damaged.

#[path = "../common/mod.rs"]
mod common;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use paste_guest::kv::{self, Recovered, Server, ServerOptions};
use paste_guest::{Options, Timeout};

/// Buffers at hand for answers, pages and scraps.
const RESERVE: u32 = 512;
/// Slots that can wait for the host.
const QUEUE: usize = 32 * 1024;
const TURN: Timeout = Timeout::After(Duration::from_millis(500));

fn main() -> ExitCode {
    common::report(run())
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments = common::Arguments::parse(&["port", "check"])?;
    if let Some(path) = arguments.get::<PathBuf>("check")? {
        let found = kv::check(&path)?;
        tell(&found);
        if !found.is_sound() {
            return Err(format!("{}: what was acknowledged is damaged", path.display()).into());
        }
        return Ok(());
    }
    let mut options = ServerOptions::default();
    options.port = arguments.get("port")?.unwrap_or(options.port);
    let stop = common::stop_flag()?;
    let more = Options { reserve: RESERVE, queue: QUEUE, ..Options::default() };
    let mut channel = arguments.open_with("kv", more)?;
    let mut server = Server::new(&mut channel, &options)?;
    while !stop.load(Ordering::Relaxed) {
        if let Some(found) = server.take_recovered() {
            tell(&found);
        }
        server.turn(&mut channel, TURN)?;
    }
    let stats = channel.stats();
    channel.shutdown()?;
    eprintln!("{:.1} slots per batch; {stats:?}", stats.mean_batch());
    Ok(())
}

/// Says what was found in the region.
fn tell(found: &Recovered) {
    let Recovered { keys, records, torn, damaged_records, damaged_keys, leaked, log_damages } =
        found;
    eprintln!(
        "recovered {keys} keys from {records} records; {torn} records were torn by the crash and \
         never acknowledged; {leaked} claims were leaked"
    );
    if !found.is_sound() {
        eprintln!(
            "DAMAGED: {log_damages} places of the log, {damaged_records} records, {} values; keys \
             may be missing or be as they were before",
            damaged_keys.len()
        );
        for key in damaged_keys {
            eprintln!("DAMAGED: {}", key.escape_ascii());
        }
    }
}
