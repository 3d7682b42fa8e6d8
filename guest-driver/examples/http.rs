//! An HTTP server on a `pasted` device.
//!
//! ```text
//! http (--socket PATH | --interface NAME | --device ADDRESS) [--region DEVICE | --inline]
//!      [--port 80] [--root DIR] [--body-max BYTES] [--channel N]
//!      [--poll-us N] [--yield] [--log keep|copy]
//! ```
//!
//! Answers with a fixed body of 64 bytes, or with the files of a directory.
//! Takes request bodies of up to 1 MiB, or what `--body-max` says, and compares
//! each with its `Content-Digest`, if that has a CRC32C.
//! With `--log`, every POST is durable in the region before it is answered, as far as
//! the region can make it so: `keep` leaves it in the buffers that it arrived in,
//! `copy` puts it into others. The newest are kept, over any crash; what was found is
//! said at the start.
//! Ends in good order on SIGTERM; waits for a backend that restarts.

mod common;

use std::error::Error;
use std::process::ExitCode;

use paste_guest::Options;
use paste_guest::http::{Found, LogOptions, Server, ServerOptions};

/// With a log, answers go in buffers of their own: these are at hand for them, and
/// so many slots can wait for the host.
const LOG_RESERVE: u32 = 1024;
const LOG_QUEUE: usize = 32 * 1024;

fn main() -> ExitCode {
    common::report(run())
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments = common::Arguments::parse(&["port", "root", "body-max", "log"])?;
    let mut options = ServerOptions { root: arguments.get("root")?, ..ServerOptions::default() };
    options.port = arguments.get("port")?.unwrap_or(options.port);
    options.body_max = arguments.get("body-max")?.unwrap_or(options.body_max);
    let stop = common::stop_flag()?;
    let mut more = Options::default();
    options.log = match arguments.get::<String>("log")?.as_deref() {
        None => None,
        Some(how @ ("keep" | "copy")) => Some(LogOptions { copy: how == "copy" }),
        Some(other) => return Err(format!("--log {other}: neither keep nor copy").into()),
    };
    if options.log.is_some() {
        (more.reserve, more.queue) = (LOG_RESERVE, LOG_QUEUE);
    }
    let mut channel = arguments.open_with("http", more)?;
    let mut server = Server::new(&mut channel, &options)?;
    if let Some(found) = server.take_found() {
        let Found { requests, bytes, damages } = found;
        eprintln!("found {requests} requests of {bytes} bytes in the log, and {damages} damages");
    }
    server.run(&mut channel, &stop)?;
    let stats = channel.stats();
    channel.shutdown()?;
    eprintln!("{:.1} slots per batch; {stats:?}", stats.mean_batch());
    Ok(())
}
