//! The process that the demo compares with: the epoll server in a network
//! namespace of its own, reached in two ways.
//!
//! ```text
//!   client's namespace            this process             server's namespace
//!   kernel TCP -- TAP ------------- relay ------------- TAP -- kernel TCP
//!   kernel TCP -- veth ------------------------------- veth -- kernel TCP
//! ```
//!
//! Where the demo has no network of its own, the server is on the loopback device.
//!
//! Relay and server share one thread and one epoll set: no process switch lies
//! between them, which favours this side.

use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddrV4, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::epoll_server::{EpollServer, Served};
use super::http::{BODY, response};
use super::relay::{Carried, Relay};
use super::scene::{CLIENT_TAP_MAC, Link, PREFIX, SERVER_PORT};
use crate::sys::linux::demo::{Network, Tap, children, netns};

/// What the process prints when its servers listen.
pub const READY: &str = "ready";
/// How often it looks whether it is to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(200);

/// How the process is started: hidden from the operator.
#[derive(Debug, clap::Args)]
pub struct PeerArgs {
    /// How long the server polls before it sleeps, in us
    #[arg(long)]
    pub poll_us: u64,
    /// The process that started this one
    #[arg(long)]
    pub parent: u32,
    /// The directory to be removed if that process dies without doing so
    #[arg(long)]
    pub directory: PathBuf,
    /// Serve on the loopback device, without a namespace
    #[arg(long)]
    pub loopback: bool,
}

/// What the process prints when it has stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Through the TAP devices.
    pub tap: Served,
    /// Through the veth pair.
    pub veth: Served,
    /// Through the loopback device.
    pub loopback: Served,
    /// By the relay.
    pub relay: Carried,
}

/// Serves until SIGTERM, or until the parent has died.
pub fn run(args: &PeerArgs) -> io::Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, stop.clone())?;
    let ready = &mut || say(READY);
    let served = match args.loopback {
        false => serve(args.poll_us, &stop, ready),
        true => serve_loopback(args.poll_us, &stop, ready),
    };
    let outcome = served.and_then(|report| say(&serde_json::to_string(&report)?));
    if children::orphaned(args.parent) {
        // Killed outright, the parent could not tidy up.
        let _ = fs::remove_dir_all(&args.directory);
    }
    outcome
}

/// Serves until `stop` is set. Moves the calling thread into a namespace of its
/// own; `ready` is called when the servers listen.
fn serve(
    poll_us: u64,
    stop: &AtomicBool,
    ready: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<PeerReport> {
    let (tap, veth) = (Link::EpollTap, Link::EpollVeth);
    let mut theirs = Network::open()?;
    let their_tap = Tap::open(tap.client_device())?;
    netns::enter().map_err(io::Error::other)?;
    let mut ours = Network::open()?;
    let our_tap = Tap::open(tap.server_device())?;
    theirs.add_pair(veth.client_device(), veth.server_device())?;

    theirs.set_up(tap.client_device(), Some(CLIENT_TAP_MAC), tap.client(), PREFIX)?;
    ours.set_up(tap.server_device(), None, tap.server(), PREFIX)?;
    theirs.set_up(veth.client_device(), None, veth.client(), PREFIX)?;
    ours.set_up(veth.server_device(), None, veth.server(), PREFIX)?;

    let mut server = EpollServer::new(response(BODY), Duration::from_micros(poll_us))?;
    for link in [tap, veth] {
        server.listen(TcpListener::bind(SocketAddrV4::new(link.server(), SERVER_PORT))?)?;
    }
    let mut relay = Relay::new([their_tap, our_tap]);
    for (number, end) in relay.ends().iter().enumerate() {
        server.watch(end, number as u32)?;
    }
    ready()?;
    while !stop.load(Ordering::Relaxed) {
        server.turn(STOP_INTERVAL, &mut |end| relay.carry(end as usize))?;
    }
    let mut served = server.served();
    let mut next = || served.next().unwrap_or_default();
    let relay = relay.carried();
    Ok(PeerReport { tap: next(), veth: next(), relay, ..PeerReport::default() })
}

/// Serves on the loopback device until `stop` is set.
fn serve_loopback(
    poll_us: u64,
    stop: &AtomicBool,
    ready: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<PeerReport> {
    let mut server = EpollServer::new(response(BODY), Duration::from_micros(poll_us))?;
    let address = SocketAddrV4::new(Link::EpollLoopback.server(), SERVER_PORT);
    server.listen(TcpListener::bind(address)?)?;
    ready()?;
    while !stop.load(Ordering::Relaxed) {
        server.turn(STOP_INTERVAL, &mut |_| Ok(()))?;
    }
    let loopback = server.served().next().unwrap_or_default();
    Ok(PeerReport { loopback, ..PeerReport::default() })
}

/// Prints a line to whoever started the process, who may have gone.
fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{line}").and_then(|()| out.flush()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::client::Client;
    use super::super::measure::Side;
    use super::super::sample::Sample;
    use super::super::scene;
    use super::*;

    /// A namespace is a thread's, so the test's network is that of two threads
    /// of its own. Without privilege it is refused to a process that has others.
    #[test]
    fn both_ways_to_the_server_work_in_a_network_of_their_own() {
        std::thread::spawn(in_a_network_of_its_own).join().unwrap();
    }

    fn in_a_network_of_its_own() {
        if let Err(refused) = scene::enter() {
            let required = std::env::var_os("PASTED_REQUIRE_ALL").is_some_and(|v| v == "1");
            assert!(!required, "{refused}");
            eprintln!("SKIPPED: {refused}");
            return;
        }
        let stop = AtomicBool::new(false);
        let (tell, told) = mpsc::channel();
        std::thread::scope(|scope| {
            let server =
                scope.spawn(|| serve(50, &stop, &mut || tell.send(()).map_err(io::Error::other)));
            told.recv().unwrap();
            let mut requests = Vec::new();
            for link in [Link::EpollTap, Link::EpollVeth] {
                let mut side = Side::new("x", link, 8, 1400).unwrap();
                let connected = side.client.connect(Duration::from_secs(10)).unwrap();
                assert!(connected, "{link:?}: {:?}", side.client.first_fault());
                let enough = &mut |_: &mut Client, s: &Sample| Ok(s.requests < 500);
                side.measure(Duration::from_secs(3600), &[std::process::id()], enough).unwrap();
                let figures = side.figures();
                assert_eq!(figures.errors, 0, "{:?}", side.client.first_fault());
                requests.push(figures.requests);
            }
            stop.store(true, Ordering::Relaxed);
            let report = server.join().unwrap().unwrap();
            assert_eq!([report.tap.requests, report.veth.requests], requests[..]);
            assert_eq!(report.tap.bytes_in, 1400 * report.tap.requests);
            // A request and its response are a frame each, at the least.
            assert!(report.relay.frames >= 2 * report.tap.requests);
            assert!(report.relay.bytes >= report.tap.bytes_in + report.tap.bytes_out);
        });
    }
}
