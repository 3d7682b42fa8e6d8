//! DPDK's testpmd as a process: the guest, on its virtio driver in user space, and the other
//! backend, on its vhost driver. It is told what to do on its standard input.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use pasted::sys::linux::demo::children::{self, DeathSignal};
use rustix::process::{Pid, Signal, kill_process};

use crate::peers::frames::GUEST_MAC;

/// The program.
const PROGRAM: &str = "dpdk-testpmd";
/// How long it may take to end.
const END_TIME: Duration = Duration::from_secs(5);
const END_INTERVAL: Duration = Duration::from_millis(10);
/// What it prints when it waits for a command.
const PROMPT: &str = "testpmd> ";
/// Lines of its log that are shown when it failed.
const LOG_LINES: usize = 4;

/// Why it does not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum TestpmdError {
    /// It cannot be started.
    #[error("stdbuf cannot be started ({0}): install coreutils")]
    Start(io::Error),
    /// It ended, or says something else.
    #[error("{PROGRAM}, which dpdk-dev installs, {what}{log}")]
    Failed {
        /// What happened.
        what: String,
        /// The last lines of its log.
        log: String,
    },
}

/// What it does with frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// Takes them.
    RxOnly,
    /// Makes and sends them.
    TxOnly,
    /// Sends them back as they are.
    Io,
    /// Sends them back with its own Ethernet address.
    Mac,
}

impl Forward {
    fn name(self) -> &'static str {
        match self {
            Forward::RxOnly => "rxonly",
            Forward::TxOnly => "txonly",
            Forward::Io => "io",
            Forward::Mac => "mac",
        }
    }
}

/// Frames per second since it was asked before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Received.
    pub rx_pps: u64,
    /// Sent.
    pub tx_pps: u64,
}

/// The process.
#[derive(Debug)]
pub struct Testpmd {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    log: PathBuf,
}

/// The guest's device on the socket of a backend.
pub fn guest_device(socket: &Path) -> String {
    let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    format!("net_virtio_user0,path={},mac={mac},queues=1", socket.display())
}

/// DPDK's backend on a socket that it makes.
pub fn backend_device(socket: &Path) -> String {
    format!("net_vhost0,iface={},queues=1", socket.display())
}

impl Testpmd {
    /// Starts it on a core with one device, its files in `directory`, called `name`, and
    /// waits until it takes commands.
    pub fn start(
        name: &str,
        device: &str,
        forward: Forward,
        frame_bytes: usize,
        core: usize,
        directory: &Path,
    ) -> Result<Testpmd, TestpmdError> {
        let runtime = directory.join(name);
        let log = directory.join(format!("{name}.log"));
        std::fs::create_dir_all(&runtime).map_err(TestpmdError::Start)?;
        let errors = File::create(&log).map_err(TestpmdError::Start)?;
        // Its answers are to come when they are given, and not when a buffer is full.
        let mut command = Command::new("stdbuf");
        command
            .args(["-oL", PROGRAM])
            .env("RUNTIME_DIRECTORY", &runtime)
            // The first thread waits for commands, the second one moves frames.
            .arg(format!("--lcores=0@{core},1@{core}"))
            .args(["--no-huge", "--no-pci", "-m", "256", "--no-telemetry"])
            .arg(format!("--vdev={device}"))
            .args(["--", "-i", "--no-mlockall", "--total-num-mbufs=16384", "--nb-cores=1"])
            .arg(format!("--forward-mode={}", forward.name()))
            .arg(format!("--txpkts={frame_bytes}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors);
        let mut child = children::spawn(&mut command, Some(core), DeathSignal::Kill)
            .map_err(TestpmdError::Start)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(TestpmdError::Start(io::ErrorKind::BrokenPipe.into()));
        };
        let mut testpmd = Testpmd { child, input, output: BufReader::new(output), log };
        testpmd.answer()?;
        Ok(testpmd)
    }

    /// Begins to move frames; with `first`, sends some of its own before.
    pub fn go(&mut self, first: bool) -> Result<(), TestpmdError> {
        // As many bursts of 32 as fit a ring of 256.
        self.tell(if first { "start tx_first 7" } else { "start" }).map(drop)
    }

    /// Frames per second since it was asked before.
    pub fn rates(&mut self) -> Result<Rates, TestpmdError> {
        let said = self.tell("show port stats 0")?;
        parse(&said).ok_or_else(|| self.failed("says nothing of its rates"))
    }

    /// Holds it still, or lets it go on.
    pub fn hold(&self, still: bool) -> io::Result<()> {
        let signal = if still { Signal::STOP } else { Signal::CONT };
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    fn tell(&mut self, command: &str) -> Result<String, TestpmdError> {
        let told = writeln!(self.input, "{command}").and_then(|()| self.input.flush());
        match told {
            Ok(()) => self.answer(),
            Err(_) => Err(self.failed("ended")),
        }
    }

    /// What it prints until it waits for a command.
    fn answer(&mut self) -> Result<String, TestpmdError> {
        let mut said = Vec::new();
        loop {
            match self.output.read_until(b' ', &mut said) {
                Ok(count) if count > 0 => {}
                _ => return Err(self.failed("ended")),
            }
            if said.ends_with(PROMPT.as_bytes()) {
                return Ok(String::from_utf8_lossy(&said).into_owned());
            }
        }
    }

    fn failed(&self, what: &str) -> TestpmdError {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(LOG_LINES)..];
        let log = last.iter().map(|line| format!("\n  {PROGRAM}: {line}")).collect();
        TestpmdError::Failed { what: what.to_owned(), log }
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        let _ = self.hold(false);
        let _ = writeln!(self.input, "quit").and_then(|()| self.input.flush());
        let end = Instant::now() + END_TIME;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(END_INTERVAL);
        }
    }
}

/// The rates in what it prints of a port.
fn parse(said: &str) -> Option<Rates> {
    let value = |name: &str| {
        let (_, behind) = said.split_once(name)?;
        behind.split_ascii_whitespace().next()?.parse().ok()
    };
    Some(Rates { rx_pps: value("Rx-pps:")?, tx_pps: value("Tx-pps:")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_found() {
        let said = "  RX-packets: 1000       RX-missed: 0          RX-bytes:  64000\n\n\
            \x20 Throughput (since last show)\n  Rx-pps:     16500000          Rx-bps: 1\n\
            \x20 Tx-pps:            7          Tx-bps: 2\n  ####\ntestpmd> ";
        assert_eq!(parse(said), Some(Rates { rx_pps: 16_500_000, tx_pps: 7 }));
        assert_eq!(parse("nothing"), None);
    }
}
