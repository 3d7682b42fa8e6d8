//! What the processes are that the benchmark starts: this binary, told to be a
//! server. They end on SIGTERM, or with the benchmark.

use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddrV4, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pasted::config::Config;
use pasted::demo::epoll_server::EpollServer;
use pasted::demo::http::{BODY, response};
use pasted::demo::{self, GuestArgs};
use pasted::{logging, wiring};

use crate::durable;
use crate::durable::http::log::RingLog;
use crate::durable::serve::{HttpArgs, RedisArgs};

/// What a server prints when it listens.
pub const READY: &str = "ready";
/// How often the epoll server looks whether it is to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(200);

/// Who the process is.
#[derive(Debug, clap::Subcommand)]
pub enum Role {
    /// The epoll server
    #[command(hide = true, name = "serve-epoll")]
    Epoll(EpollArgs),
    /// The backend
    #[command(hide = true, name = "serve-pasted")]
    Pasted {
        /// Its configuration
        #[arg(long)]
        config: PathBuf,
    },
    /// The guest
    #[command(hide = true, name = "serve-guest")]
    Guest(GuestArgs),
    /// The guest that stores keys and values
    #[command(hide = true, name = "serve-kv")]
    KeyValues(GuestArgs),
    /// The guest that logs requests
    #[command(hide = true, name = "serve-http")]
    Http(HttpArgs),
    /// Redis, in a network of its own
    #[command(hide = true, name = "serve-redis")]
    Redis(RedisArgs),
}

/// What the epoll server is told.
#[derive(Debug, clap::Args)]
pub struct EpollArgs {
    /// Where it listens
    #[arg(long)]
    address: SocketAddrV4,
    /// How long it polls before it sleeps, in us
    #[arg(long)]
    poll_us: u64,
    /// The process that started this one
    #[arg(long)]
    parent: u32,
    /// The directory to be removed if that process dies without doing so
    #[arg(long)]
    directory: PathBuf,
    /// Bytes of the log that requests are copied into, if they are
    #[arg(long)]
    log_len: Option<usize>,
    /// The log's file on a disk, if it has one
    #[arg(long)]
    log_file: Option<PathBuf>,
}

/// Is the server that it is told to be, until it is stopped.
pub fn run(role: &Role) -> ExitCode {
    let result = match role {
        Role::Guest(args) => return demo::run_guest(args),
        Role::Epoll(args) => epoll(args).map_err(|e| e.to_string()),
        Role::Pasted { config } => pasted(config),
        Role::KeyValues(args) => durable::serve::key_values(args).map_err(|e| e.to_string()),
        Role::Http(args) => durable::serve::logged_http(args).map_err(|e| e.to_string()),
        Role::Redis(args) => Err(durable::serve::redis(args).to_string()),
    };
    result.map_or_else(
        |message| {
            eprintln!("{message}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}

fn pasted(file: &Path) -> Result<(), String> {
    let config = Config::load(file).map_err(|e| e.to_string())?;
    logging::init(config.log, None).map_err(|e| e.to_string())?;
    wiring::run(&config, Vec::new()).map_err(|e| e.to_string())
}

fn epoll(args: &EpollArgs) -> io::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    // A process that is held still when its parent dies hears SIGHUP as well.
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, stop.clone())?;
    }
    let mut server = EpollServer::new(response(BODY), Duration::from_micros(args.poll_us))?;
    if let Some(len) = args.log_len {
        server.log(Box::new(RingLog::new(len, args.log_file.as_deref())?));
    }
    server.listen(TcpListener::bind(args.address)?)?;
    say(READY)?;
    while !stop.load(Ordering::Relaxed) {
        server.turn(STOP_INTERVAL, &mut |_| Ok(()))?;
    }
    if pasted::sys::demo::children::orphaned(args.parent) {
        // Killed outright, the parent could not tidy up.
        let _ = fs::remove_dir_all(&args.directory);
        return Ok(());
    }
    let served = server.served().next().unwrap_or_default();
    say(&serde_json::to_string(&served)?)
}

/// Prints a line to who started the process.
pub fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
