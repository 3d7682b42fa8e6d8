//! The second client: wrk, on the kernel's TCP, in a network of its own. It knows nothing
//! of this project, sends the same requests in a closed loop, and looks at the responses'
//! status alone.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pasted::demo::http::request;
use pasted::demo::{Directory, Process, SceneError};
use pasted::sys::linux::demo::children::DeathSignal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::server::REQUEST_LEN;
use crate::processes::{no_directory, text};

/// What the process is told.
#[derive(Debug, clap::Args)]
pub struct WrkArgs {
    /// The network to move into
    #[arg(long)]
    network: PathBuf,
    /// Connections at once
    #[arg(long)]
    connections: usize,
    /// How long, in whole seconds
    #[arg(long)]
    seconds: u64,
    /// The script with the request
    #[arg(long)]
    script: PathBuf,
    /// The server
    #[arg(long)]
    address: SocketAddrV4,
}

/// Becomes wrk. Returns only why it did not.
pub fn become_wrk(args: &WrkArgs) -> io::Error {
    let kind = Some(LinkNameSpaceType::Network);
    let moved = File::open(&args.network)
        .and_then(|network| Ok(move_into_link_name_space(network.as_fd(), kind)?));
    if let Err(error) = moved {
        return error;
    }
    let url = format!("http://{}/demo", args.address);
    let mut command = Command::new("wrk");
    command.args(["-t1", "--latency", "--timeout", "10s"]);
    command.arg(format!("-c{}", args.connections)).arg(format!("-d{}s", args.seconds));
    let error = command.arg("-s").arg(&args.script).arg(url).exec();
    match error.kind() {
        ErrorKind::NotFound => {
            io::Error::new(ErrorKind::NotFound, "wrk is not installed: install it")
        }
        _ => error,
    }
}

/// What wrk says of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Responses.
    pub requests: u64,
    /// How long it took.
    pub elapsed_ns: u64,
    /// Percentiles of the latency, in us: 50, 90, 99. wrk tells no other; its 75 is left
    /// out.
    pub latency_us: [f64; 3],
    /// Responses of another status, and errors of sockets.
    pub errors: u64,
}

/// One run of wrk.
pub fn run(
    network: &str,
    address: SocketAddrV4,
    connections: usize,
    duration: Duration,
    core: usize,
    directory: &Directory,
) -> Result<Figures, SceneError> {
    let script = directory.path().join("request.lua");
    std::fs::write(&script, lua(address)).map_err(no_directory(&script))?;
    let script: &Path = &script;
    let (connections, seconds) = (connections.to_string(), duration.as_secs().max(1).to_string());
    let address = address.to_string();
    let args = [
        "drive-wrk",
        "--network",
        network,
        "--connections",
        &connections,
        "--seconds",
        &seconds,
        "--script",
        text(script)?,
        "--address",
        &address,
    ];
    let process = Process::start("wrk", &args, Some(core), DeathSignal::Kill, directory)?;
    process.output_to_end().and_then(|(said, process)| {
        parse(&said).ok_or_else(|| process.failed("said nothing that is understood"))
    })
}

/// The request of the other clients, byte for byte.
fn lua(address: SocketAddrV4) -> String {
    let request = request(REQUEST_LEN, address);
    let head = request.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(0, |at| at + 4);
    // Long brackets take everything as it is.
    let body = String::from_utf8_lossy(&request[head..]);
    format!("wrk.method = \"POST\"\nwrk.body = [==[{body}]==]\n")
}

/// Reads what wrk prints at its end.
fn parse(said: &str) -> Option<Figures> {
    let mut figures = Figures::default();
    for line in said.lines().map(str::trim) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            ["50%", time] => figures.latency_us[0] = time_us(time)?,
            ["90%", time] => figures.latency_us[1] = time_us(time)?,
            ["99%", time] => figures.latency_us[2] = time_us(time)?,
            [count, "requests", "in", time, ..] => {
                figures.requests = count.parse().ok()?;
                figures.elapsed_ns = (time_us(time.trim_end_matches(','))? * 1e3) as u64;
            }
            ["Socket", "errors:", ..] | ["Non-2xx", ..] => {
                let count = |word: &&str| word.trim_end_matches(',').parse::<u64>().ok();
                figures.errors += words.iter().filter_map(count).sum::<u64>();
            }
            _ => {}
        }
    }
    (figures.elapsed_ns > 0).then_some(figures)
}

/// A time as wrk has it: `1.23ms`.
fn time_us(text: &str) -> Option<f64> {
    let unit = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number: f64 = text[..unit].parse().ok()?;
    let us = match &text[unit..] {
        "us" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        "m" => 60e6,
        _ => return None,
    };
    Some(number * us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_prints_is_understood() {
        let said = "Running 2s test @ http://10.71.0.2:80/demo\n  1 threads and 64 connections\n\
            \x20 Thread Stats   Avg      Stdev     Max   +/- Stdev\n\
            \x20   Latency   612.34us  100.00us   5.00ms   90.00%\n\
            \x20 Latency Distribution\n     50%  600.00us\n     75%  650.00us\n     90%    0.70ms\n\
            \x20    99%    1.20ms\n  208000 requests in 2.10s, 35.50MB read\n\
            \x20 Socket errors: connect 0, read 1, write 0, timeout 2\n\
            \x20 Non-2xx or 3xx responses: 4\nRequests/sec:  99000.00\n";
        let figures = parse(said).unwrap();
        assert_eq!((figures.requests, figures.elapsed_ns), (208_000, 2_100_000_000));
        assert_eq!(figures.latency_us, [600.0, 700.0, 1200.0]);
        assert_eq!(figures.errors, 7);
        assert_eq!(parse("wrk: nothing"), None);
        assert_eq!(time_us("1.5s"), Some(1_500_000.0));
    }

    #[test]
    fn the_request_is_that_of_the_other_clients() {
        let address = "10.71.0.2:80".parse().unwrap();
        let script = lua(address);
        let body = script.split("[==[").nth(1).unwrap().split("]==]").next().unwrap();
        let whole = request(REQUEST_LEN, address);
        assert!(whole.ends_with(body.as_bytes()));
        assert!(!body.starts_with('\n'), "Lua would leave it out");
        assert!(String::from_utf8_lossy(&whole).contains(&format!("Length: {}\r", body.len())));
    }
}
