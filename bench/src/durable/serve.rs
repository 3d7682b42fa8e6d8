//! What the started processes are: the guests of the `kv` and `http` examples, and
//! Redis in a network of its own.

use std::error::Error;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use paste_guest::http::LogOptions;
use paste_guest::{Channel, Endpoint, Options, Polling, http, kv};
use pasted::demo::GuestArgs;
use pasted::sys::linux::demo::{Network, netns};
use serde::{Deserialize, Serialize};

use super::bed::PREFIX;
use crate::serve::{READY, say};

/// Buffers at hand for answers, and slots that can wait for the host: what the
/// example has.
const RESERVE: u32 = 1024;
const QUEUE: usize = 32 * 1024;
/// Redis's device in its own network.
const DEVICE: &str = "eth0";

/// How long an earlier device of the name may be there, and how often is tried.
const DEVICE_TIME: Duration = Duration::from_secs(10);
const DEVICE_INTERVAL: Duration = Duration::from_millis(10);
/// What its Ethernet address begins with; its IP address follows.
const MAC_PREFIX: [u8; 2] = [0x02, 0x72];

/// What Redis is told.
#[derive(Debug, clap::Args)]
pub struct RedisArgs {
    /// The other end of its device
    #[arg(long)]
    device: String,
    /// Its address
    #[arg(long)]
    address: Ipv4Addr,
    /// When it syncs its log
    #[arg(long)]
    appendfsync: String,
    /// Where its files go
    #[arg(long)]
    directory: PathBuf,
}

/// What the guest that logs requests is told.
#[derive(Debug, clap::Args)]
pub struct HttpArgs {
    #[command(flatten)]
    guest: GuestArgs,
    /// Copy requests into other buffers
    #[arg(long)]
    copy: bool,
}

/// What a guest prints when it has stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestSaid {
    /// Payload bytes that it has copied.
    pub bytes_copied: u64,
}

/// Serves keys and values until SIGTERM.
pub fn key_values(args: &GuestArgs) -> Result<(), Box<dyn Error>> {
    let (stop, mut channel) = open("kv", args)?;
    let mut server = kv::Server::new(&mut channel, &kv::ServerOptions::default())?;
    server.run(&mut channel, &stop)?;
    channel.shutdown()?;
    Ok(())
}

/// Logs requests and answers them until SIGTERM.
pub fn logged_http(args: &HttpArgs) -> Result<(), Box<dyn Error>> {
    let (stop, mut channel) = open("http", &args.guest)?;
    let log = Some(LogOptions { copy: args.copy });
    let options = http::ServerOptions { log, ..http::ServerOptions::default() };
    http::Server::new(&mut channel, &options)?.run(&mut channel, &stop)?;
    let said = GuestSaid { bytes_copied: channel.stats().bytes_copied };
    channel.shutdown()?;
    say(&serde_json::to_string(&said)?)?;
    Ok(())
}

/// A flag that SIGTERM sets, and a channel.
fn open(name: &str, args: &GuestArgs) -> Result<(Arc<AtomicBool>, Channel), Box<dyn Error>> {
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, stop.clone())?;
    let options = Options {
        name: name.to_owned(),
        reserve: RESERVE,
        queue: QUEUE,
        // The backend is on the same core.
        polling: Polling { poll_time: Duration::from_micros(args.poll_us), yield_now: true },
        ..Options::default()
    };
    Ok((stop, Channel::open(&Endpoint::vhost_user(&args.socket), options)?))
}

/// Becomes Redis. Returns only why it did not.
pub fn redis(args: &RedisArgs) -> Box<dyn Error> {
    match prepare(args) {
        Ok(mut command) => command.exec().into(),
        Err(error) => error,
    }
}

/// Moves into a network of its own, with a device whose other end stays behind.
fn prepare(args: &RedisArgs) -> Result<Command, Box<dyn Error>> {
    let mut outside = Network::open()?;
    netns::enter()?;
    // The kernel takes its time to remove the device of a process that was before.
    let end = Instant::now() + DEVICE_TIME;
    while let Err(error) = outside.add_pair(&args.device, DEVICE) {
        if error.kind() != io::ErrorKind::AlreadyExists || Instant::now() >= end {
            return Err(error.into());
        }
        std::thread::sleep(DEVICE_INTERVAL);
    }
    // Always the same, so that the client need not learn another.
    let mac = MAC_PREFIX.into_iter().chain(args.address.octets());
    let mac: Vec<u8> = mac.collect();
    Network::open()?.set_up(DEVICE, mac.try_into().ok(), args.address, PREFIX)?;
    let mut command = Command::new("redis-server");
    command.args(settings(&args.appendfsync)).arg("--bind").arg(args.address.to_string());
    command.arg("--dir").arg(&args.directory);
    say(READY)?;
    Ok(command)
}

/// Redis as Debian has it, with a log that is synced when `appendfsync` says, is
/// not rewritten during a measurement, and is all that it writes.
fn settings(appendfsync: &str) -> Vec<&str> {
    let common = "--protected-mode no --appendonly yes --auto-aof-rewrite-percentage 0 \
                  --logfile redis.log --appendfsync";
    let mut words: Vec<&str> = common.split_ascii_whitespace().collect();
    words.extend([appendfsync, "--save", ""]);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_is_told_when_to_sync() {
        let words = settings("always");
        assert!(words.windows(2).any(|pair| pair == ["--appendfsync", "always"]));
        assert!(words.windows(2).any(|pair| pair == ["--save", ""]));
        assert!(words.windows(2).any(|pair| pair == ["--appendonly", "yes"]));
    }
}
