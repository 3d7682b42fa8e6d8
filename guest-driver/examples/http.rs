//! An HTTP server on a `pasted` device.
//!
//! ```text
//! http --socket PATH [--port 80] [--root DIR] [--channel N] [--poll-us N] [--yield]
//! ```
//!
//! Answers with a fixed body of 64 bytes, or with the files of a directory.
//! Ends in good order on SIGTERM; waits for a backend that restarts.

mod common;

use std::error::Error;

use paste_guest::http::{Server, ServerOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = common::Arguments::parse(&["port", "root"])?;
    let mut options = ServerOptions { root: arguments.get("root")?, ..ServerOptions::default() };
    options.port = arguments.get("port")?.unwrap_or(options.port);
    let stop = common::stop_flag()?;
    let mut channel = arguments.open("http")?;
    let mut server = Server::new(&channel, &options)?;
    server.run(&mut channel, &stop)?;
    let stats = channel.stats();
    channel.shutdown()?;
    eprintln!("{:.1} slots per batch; {stats:?}", stats.mean_batch());
    Ok(())
}
