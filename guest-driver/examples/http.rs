//! An HTTP server on a `pasted` device.
//!
//! ```text
//! http --socket PATH [--port 80] [--root DIR] [--body-max BYTES] [--channel N]
//!      [--poll-us N] [--yield]
//! ```
//!
//! Answers with a fixed body of 64 bytes, or with the files of a directory.
//! Takes request bodies of up to 1 MiB, or what `--body-max` says, and compares
//! each with its `Content-Digest`, if that has a CRC32C.
//! Ends in good order on SIGTERM; waits for a backend that restarts.

mod common;

use std::error::Error;

use paste_guest::http::{Server, ServerOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = common::Arguments::parse(&["port", "root", "body-max"])?;
    let mut options = ServerOptions { root: arguments.get("root")?, ..ServerOptions::default() };
    options.port = arguments.get("port")?.unwrap_or(options.port);
    options.body_max = arguments.get("body-max")?.unwrap_or(options.body_max);
    let stop = common::stop_flag()?;
    let mut channel = arguments.open("http")?;
    let mut server = Server::new(&channel, &options)?;
    server.run(&mut channel, &stop)?;
    let stats = channel.stats();
    channel.shutdown()?;
    eprintln!("{:.1} slots per batch; {stats:?}", stats.mean_batch());
    Ok(())
}
