//! What the processes are that the benchmark starts: this binary, told to be a
//! server. They end on SIGTERM, or with the benchmark.

use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddrV4, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use paste_guest::http::{Server, ServerOptions};
use paste_guest::{Channel, Endpoint, Options, Polling};
use pasted::config::{Config, Mac};
use pasted::demo::GuestArgs;
use pasted::demo::epoll_server::{EpollServer, Served};
use pasted::demo::http::{BODY, response};
use pasted::sys::linux::demo::children::orphaned;
use pasted::{logging, wiring};
use serde::{Deserialize, Serialize};

use crate::device::Device;
use crate::durable;
use crate::durable::http::log::RingLog;
use crate::durable::serve::{HttpArgs, RedisArgs};
use crate::http::wrk::{self, WrkArgs};
use crate::peers::frames::{Direction, Frames};
use crate::peers::memory::{self, Wires};
use crate::peers::nginx::{self, NginxArgs};
use crate::peers::null::Null;
use crate::peers::smol::SmolServer;
use crate::peers::stop_flag;
use crate::peers::timed::{Clocks, Spent};
use crate::peers::uring::UringServer;

/// What a server prints when it listens.
pub const READY: &str = "ready";
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;
/// Buffers that a guest has at hand for answers, and slots that can wait for the host: what
/// the example has.
const GUEST_RESERVE: u32 = 1024;
const GUEST_QUEUE: usize = 32 * 1024;
/// Bytes of a PASTE frame's head, and of a slot.
const FRAME_HEAD_LEN: u16 = 32;
/// How often the epoll server looks whether it is to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(200);

/// Who the process is.
#[derive(Debug, clap::Subcommand)]
pub enum Role {
    /// The epoll server
    #[command(hide = true, name = "serve-epoll")]
    Epoll(EpollArgs),
    /// The io_uring server
    #[command(hide = true, name = "serve-io-uring")]
    IoUring(PeerArgs),
    /// nginx
    #[command(hide = true, name = "serve-nginx")]
    Nginx(NginxArgs),
    /// The server on smoltcp
    #[command(hide = true, name = "serve-smoltcp")]
    Smoltcp(StationArgs),
    /// The server that remembers nothing
    #[command(hide = true, name = "serve-null")]
    Null(StationArgs),
    /// The backend
    #[command(hide = true, name = "serve-pasted")]
    Pasted(PastedArgs),
    /// The guest
    #[command(hide = true, name = "serve-guest")]
    Guest(WebArgs),
    /// wrk, in another network
    #[command(hide = true, name = "drive-wrk")]
    Wrk(WrkArgs),
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

/// What a server on the kernel's TCP is told.
#[derive(Debug, clap::Args)]
pub struct PeerArgs {
    /// Where it listens
    #[arg(long)]
    address: SocketAddrV4,
    /// How long it polls before it sleeps, in us
    #[arg(long)]
    poll_us: u64,
}

/// What a server on a device of its own is told.
#[derive(Debug, clap::Args)]
pub struct StationArgs {
    #[command(flatten)]
    peer: PeerArgs,
    /// Its Ethernet address
    #[arg(long)]
    mac: Mac,
    /// Its device
    #[arg(long, value_parser = Device::parse)]
    device: Device,
}

/// What the backend is told.
#[derive(Debug, clap::Args)]
pub struct PastedArgs {
    /// Its configuration
    #[arg(long)]
    config: PathBuf,
    /// Put so many clients at the other end of each guest's wire
    #[arg(long)]
    memory: Option<u32>,
    /// Measure how long its parts take
    #[arg(long)]
    split: bool,
    /// Put a port that is no limit into the place of each guest's, with frames this way
    #[arg(long, value_enum, requires = "frame_bytes")]
    frames: Option<Direction>,
    /// How long such a frame is
    #[arg(long)]
    frame_bytes: Option<usize>,
}

/// What the guest is told.
#[derive(Debug, clap::Args)]
pub struct WebArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// The TCP port to serve
    #[arg(long)]
    port: u16,
    /// Slots in a PASTE frame, at most
    #[arg(long)]
    batch: u16,
}

/// What the backend says when it is asked, on a line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// What its parts took, if that is measured.
    pub spent: Option<Spent>,
    /// What clients at the other end of its wire have seen.
    pub clients: Option<memory::Said>,
}

/// Is the server that it is told to be, until it is stopped.
pub fn run(role: &Role) -> ExitCode {
    let result = match role {
        Role::Guest(args) => guest(args).map_err(|e| e.to_string()),
        Role::Epoll(args) => epoll(args).map_err(|e| e.to_string()),
        Role::IoUring(args) => io_uring(args).map_err(|e| e.to_string()),
        Role::Nginx(args) => Err(nginx::become_nginx(args).to_string()),
        Role::Smoltcp(args) => smoltcp(args).map_err(|e| e.to_string()),
        Role::Null(args) => null(args).map_err(|e| e.to_string()),
        Role::Pasted(args) => pasted(args).map_err(|e| e.to_string()),
        Role::Wrk(args) => Err(wrk::become_wrk(args).to_string()),
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

fn pasted(args: &PastedArgs) -> Result<(), Box<dyn Error>> {
    let config = Config::load(&args.config)?;
    logging::init(config.log, None)?;
    if let (Some(direction), Some(len)) = (args.frames, args.frame_bytes) {
        return Ok(wiring::run_fitted(&config, Vec::new(), &Frames { direction, len })?);
    }
    let clocks = args.split.then(Clocks::default);
    let times = clocks.as_ref().map(|clocks| clocks.0.clone());
    let spent = move || times.as_ref().map(|times| times.spent());
    match (args.memory, clocks) {
        (Some(connections), clocks) => {
            let wires = Wires::new(connections, clocks);
            let clients = wires.teller();
            answer(move || Said { spent: spent(), clients: Some(clients()) })?;
            wiring::run_fitted(&config, Vec::new(), &wires)?;
        }
        (None, Some(clocks)) => {
            answer(move || Said { spent: spent(), clients: None })?;
            wiring::run_fitted(&config, Vec::new(), &clocks)?;
        }
        (None, None) => wiring::run(&config, Vec::new())?,
    }
    Ok(())
}

/// Says what there is to say, whenever SIGUSR1 comes.
fn answer(said: impl Fn() -> Said + Send + 'static) -> io::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGUSR1])?;
    let tell = move || -> io::Result<()> {
        for _ in signals.forever() {
            say(&serde_json::to_string(&said())?)?;
        }
        Ok(())
    };
    std::thread::Builder::new().name("teller".to_owned()).spawn(tell)?;
    Ok(())
}

fn guest(args: &WebArgs) -> Result<(), Box<dyn Error>> {
    let stop = stop_flag()?;
    let options = Options {
        name: "web".to_owned(),
        reserve: GUEST_RESERVE,
        queue: GUEST_QUEUE,
        frame_size: FRAME_HEAD_LEN * (1 + args.batch),
        // The backend may be on the same core.
        polling: Polling { poll_time: Duration::from_micros(args.guest.poll_us), yield_now: true },
        ..Options::default()
    };
    let mut channel = Channel::open(&Endpoint::vhost_user(&args.guest.socket), options)?;
    let server = ServerOptions { port: args.port, ..ServerOptions::default() };
    Server::new(&mut channel, &server)?.run(&mut channel, &stop)?;
    let mean_batch = channel.stats().mean_batch();
    say(&serde_json::json!({ "mean_batch": mean_batch }).to_string())?;
    Ok(())
}

fn io_uring(args: &PeerArgs) -> Result<(), Box<dyn Error>> {
    let stop = stop_flag()?;
    let server = UringServer::new(listen(args.address)?, &response(BODY))?;
    say(READY)?;
    report(&server.run(Duration::from_micros(args.poll_us), &stop)?)
}

fn smoltcp(args: &StationArgs) -> Result<(), Box<dyn Error>> {
    let Device::Tap(device) = &args.device else {
        return Err("smoltcp has no device but TAP".into());
    };
    let stop = stop_flag()?;
    let StationArgs { peer: PeerArgs { address, poll_us }, mac, .. } = args;
    let server = SmolServer::open(device, mac.octets(), *address, response(BODY))?;
    say(READY)?;
    report(&server.run(Duration::from_micros(*poll_us), &stop)?)
}

fn null(args: &StationArgs) -> Result<(), Box<dyn Error>> {
    let stop = stop_flag()?;
    let StationArgs { peer: PeerArgs { address, poll_us }, mac, device } = args;
    let server = Null::open(device, mac.octets(), *address, &response(BODY))?;
    say(READY)?;
    report(&server.run(Duration::from_micros(*poll_us), &stop)?)
}

fn report(served: &Served) -> Result<(), Box<dyn Error>> {
    Ok(say(&serde_json::to_string(served)?)?)
}

/// A listener for many connections at once.
fn listen(address: SocketAddrV4) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    // The library's backlog is 128: too little for clients that all come at once.
    rustix::net::listen(&listener, BACKLOG)?;
    Ok(listener)
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
    server.listen(listen(args.address)?)?;
    say(READY)?;
    while !stop.load(Ordering::Relaxed) {
        server.turn(STOP_INTERVAL, &mut |_| Ok(()))?;
    }
    if orphaned(args.parent) {
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
