//! An HTTP server on a `pasted` device.
//!
//! ```text
//! http (--socket PATH | --interface NAME | --device ADDRESS) [--region DEVICE | --inline]
//!      [--port 80] [--root DIR] [--body-max BYTES] [--channel N]
//!      [--poll-us N] [--yield] [--log keep|copy] [--pairs N]
//! ```
//!
//! Answers with a fixed body of 64 bytes, or with the files of a directory.
//! Takes request bodies of up to 1 MiB, or what `--body-max` says, and compares
//! each with its `Content-Digest`, if that has a CRC32C.
//! With `--log`, every POST is durable in the region before it is answered, as far as
//! the region can make it so: `keep` leaves it in the buffers that it arrived in,
//! `copy` puts it into others. The newest are kept, over any crash; what was found is
//! said at the start.
//! With `--pairs`, a thread serves each of so many queue pairs of the device, which the host
//! serves by as many workers.
//! Ends in good order on SIGTERM; waits for a backend that restarts.

mod common;

use std::error::Error;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use paste_guest::http::{Found, LogOptions, ServeError, Server, ServerOptions};
use paste_guest::{Channel, Options};

/// With a log, answers go in buffers of their own: these are at hand for them, and
/// so many slots can wait for the host.
const LOG_RESERVE: u32 = 1024;
const LOG_QUEUE: usize = 32 * 1024;

fn main() -> ExitCode {
    common::report(run())
}

fn run() -> Result<(), Box<dyn Error>> {
    let arguments = common::Arguments::parse(&["port", "root", "body-max", "log", "pairs"])?;
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
    let pairs = arguments.get("pairs")?.unwrap_or(1);
    if options.log.is_some() {
        (more.reserve, more.queue) = (LOG_RESERVE, LOG_QUEUE);
        if pairs > 1 {
            return Err(
                "--log and --pairs: the region's log is one channel's: leave one out".into()
            );
        }
    }
    let mut channels = arguments.open_pairs("http", more, pairs)?.into_iter();
    let Some(first) = channels.next() else { unreachable!("pairs were asked for") };
    let (options, stop) = (&options, &*stop);
    std::thread::scope(|scope| {
        // Signals end a wait of this thread; the others look at the flag now and then.
        let others: Vec<_> =
            channels.map(|channel| scope.spawn(move || serve(channel, options, stop))).collect();
        let first = serve(first, options, stop);
        others.into_iter().fold(first, |outcome, thread| {
            let other = thread.join();
            outcome.and(other.unwrap_or_else(|_| Err("a thread has panicked".to_owned())))
        })
    })?;
    Ok(())
}

/// Whoever cannot go on takes the others with it.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Serves one channel until it is time to stop.
fn serve(mut channel: Channel, options: &ServerOptions, stop: &AtomicBool) -> Result<(), String> {
    let _ending = Ending(stop);
    serve_until(&mut channel, options, stop).map_err(|error| error.to_string())?;
    let stats = channel.stats();
    channel.shutdown().map_err(|error| error.to_string())?;
    eprintln!("{:.1} slots per batch; {stats:?}", stats.mean_batch());
    Ok(())
}

fn serve_until(
    channel: &mut Channel,
    options: &ServerOptions,
    stop: &AtomicBool,
) -> Result<(), ServeError> {
    let mut server = Server::new(channel, options)?;
    if let Some(found) = server.take_found() {
        let Found { requests, bytes, damages } = found;
        eprintln!("found {requests} requests of {bytes} bytes in the log, and {damages} damages");
    }
    server.run(channel, stop)
}
