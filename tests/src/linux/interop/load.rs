//! iperf3 and wrk, and what they say.

use std::process::Command;

use serde_json::Value;

use super::matrix::{Row, run};
use super::path::{Path, Settings};
use super::peer::{PeerKind, Service};
use super::transfer::Direction;

/// Connections of wrk.
const WRK_CONNECTIONS: u32 = 64;
/// Seconds after which wrk counts a request as timed out: longer than any row of
/// retransmissions on a wire that loses one frame in ten.
const WRK_PATIENCE_S: u32 = 30;

/// Seconds that a program may take beyond those it was told to run for.
const PATIENCE_S: u32 = 120;

/// iperf3 for so many seconds, with so many streams at once. `post` is its
/// normal direction, `get` its `--reverse`.
pub fn run_iperf3(
    kind: PeerKind,
    direction: Direction,
    settings: &Settings,
    seconds: u32,
    streams: u32,
) -> Row {
    run("iperf3", kind, direction, settings, Service::Iperf3, |path, row| {
        let mut command = limited(path, "iperf3", seconds);
        command.args(["--json", "--client", settings.family.far_ip()]);
        command.args(["--time", &seconds.to_string(), "--parallel", &streams.to_string()]);
        if direction == Direction::Get {
            command.arg("--reverse");
        }
        let said: Value = serde_json::from_slice(&output(&mut command)?)
            .map_err(|error| format!("iperf3's output: {error}"))?;
        if let Some(error) = said["error"].as_str() {
            return Err(error.to_owned());
        }
        // What has arrived, whichever side is the receiver.
        let received = &said["end"]["sum_received"];
        row.bytes = received["bytes"].as_u64().unwrap_or(0);
        row.seconds = received["seconds"].as_f64().unwrap_or(0.0);
        row.mbps = received["bits_per_second"].as_f64().unwrap_or(0.0) / 1e6;
        if row.bytes == 0 { Err("nothing arrived".to_owned()) } else { Ok(()) }
    })
}

/// wrk for so many seconds: small requests and responses on many connections.
pub fn run_wrk(kind: PeerKind, settings: &Settings, seconds: u32) -> Row {
    run("wrk", kind, Direction::Get, settings, Service::Fixed(0), |path, row| {
        let mut command = limited(path, "wrk", seconds);
        command.args(["-t2", &format!("-c{WRK_CONNECTIONS}"), &format!("-d{seconds}s")]);
        command.args(["--timeout", &format!("{WRK_PATIENCE_S}s")]);
        let said = output(command.arg(settings.family.far_url("/")))?;
        let said = String::from_utf8_lossy(&said);
        let value = |name: &str| {
            let found = said.lines().find_map(|line| line.trim().strip_prefix(name));
            found.and_then(|value| value.trim().parse::<f64>().ok())
        };
        // "  Socket errors: connect 0, read 1, write 0, timeout 0", if any.
        if let Some(line) = said.lines().find(|line| line.contains("errors:")) {
            return Err(line.trim().to_owned());
        }
        if let Some(line) = said.lines().find(|line| line.contains("Non-2xx")) {
            return Err(line.trim().to_owned());
        }
        row.seconds = f64::from(seconds);
        row.requests_per_s = value("Requests/sec:").ok_or_else(|| said.clone().into_owned())?;
        Ok(())
    })
}

/// A program at the near end that runs for so many seconds, or not much longer.
fn limited(path: &Path, program: &str, seconds: u32) -> Command {
    let mut command = path.near.command("timeout");
    command.args([&(seconds + PATIENCE_S).to_string(), program]);
    command
}

/// What `timeout` ends with when it had to end the program.
const TIMED_OUT: i32 = 124;

/// Runs a program to its end.
fn output(command: &mut Command) -> Result<Vec<u8>, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.code() == Some(TIMED_OUT) {
        return Err(format!("{command:?}: it did not end"));
    }
    if !output.status.success() && output.stdout.is_empty() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    Ok(output.stdout)
}
