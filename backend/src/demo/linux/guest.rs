//! The guest application of the demo: the `http` server on a channel, as a
//! process of its own. The one place where this crate uses the guest driver.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use paste_guest::http::{ServeError, Server, ServerOptions};
use paste_guest::{Channel, Endpoint, OpenError, Options, Polling};
use serde::{Deserialize, Serialize};

use super::scene::SERVER_PORT;

/// How the process is started: hidden from the operator.
#[derive(Debug, clap::Args)]
pub struct GuestArgs {
    /// The vhost-user socket of the backend
    #[arg(long)]
    pub socket: PathBuf,
    /// How long to poll before sleeping, in us
    #[arg(long)]
    pub poll_us: u64,
}

/// What the process prints when it has stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestReport {
    /// Slots received per poll that found any.
    pub mean_batch: f64,
    /// Payload bytes that the guest driver and the application copied.
    pub bytes_copied: u64,
}

/// Why the guest ended.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// No channel.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No longer able to serve.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The system refused to watch for signals or to print.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Serves until SIGTERM.
pub fn run(args: &GuestArgs) -> Result<(), GuestError> {
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, stop.clone())?;
    let options = Options {
        name: "demo".to_owned(),
        polling: Polling {
            poll_time: Duration::from_micros(args.poll_us),
            // The backend may be on the same core.
            yield_now: true,
        },
        ..Options::default()
    };
    let mut channel = Channel::open(&Endpoint::vhost_user(&args.socket), options)?;
    let server = ServerOptions { port: SERVER_PORT, ..ServerOptions::default() };
    Server::new(&mut channel, &server)?.run(&mut channel, &stop)?;
    let stats = channel.stats();
    let report = GuestReport { mean_batch: stats.mean_batch(), bytes_copied: stats.bytes_copied };
    let line = serde_json::to_string(&report).map_err(io::Error::from)?;
    Ok(writeln!(io::stdout().lock(), "{line}")?)
}
