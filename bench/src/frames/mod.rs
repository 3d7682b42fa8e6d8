//! `paste-bench frames`: frames of an ordinary virtio driver, through our device and through
//! DPDK's own vhost backend, in turns.
//!
//! The guest is DPDK's testpmd on its virtio driver in user space; it counts for both.
//! Behind our device is a port that is no limit; behind DPDK's, testpmd makes, takes or
//! sends back frames. The guest is on the first core, the backend on the second.

mod report;
mod testpmd;

use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use pasted::demo::{Directory, SceneError};
use pasted::sys::linux::demo::children;

use self::report::{Conditions, Report, Row};
use self::testpmd::{Forward, Testpmd, TestpmdError, backend_device, guest_device};
use crate::peers::frames::{Direction, GUEST_MAC, NETWORK};
use crate::processes::{Processes, start_backend, text};
use crate::row::Spread;
use crate::sys::{self, Machine};

/// How long frames go before they are counted.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long the first frame may take, and how often is looked.
const START_TIME: Duration = Duration::from_secs(10);
const START_INTERVAL: Duration = Duration::from_millis(100);
/// Bytes of frames that can be asked for.
const FRAME_BYTES_MIN: i64 = 64;
const FRAME_BYTES_MAX: i64 = 1514;

/// The options of `paste-bench frames`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which way frames go, as the guest sees it
    #[arg(long, value_enum, value_delimiter = ',', default_value = "rx,tx,loop")]
    direction: Vec<Direction>,
    /// Bytes of a frame, without the frame check sequence
    #[arg(long, value_delimiter = ',', default_value = "64,1514", value_parser = clap::value_parser!(u16).range(FRAME_BYTES_MIN..=FRAME_BYTES_MAX))]
    frame_bytes: Vec<u16>,
    /// How long one round is, in seconds
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Rounds of each backend, in turns
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Print the result as Markdown in place of the table
    #[arg(long)]
    markdown: bool,
    /// Print the result as a JSON object too, on the last line
    #[arg(long)]
    json: bool,
}

/// Whose device it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Ours.
    Pasted,
    /// DPDK's own, `net_vhost`.
    Dpdk,
}

impl Backend {
    const ALL: [Backend; 2] = [Backend::Pasted, Backend::Dpdk];

    /// As it is called in rows.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Pasted => "pasted",
            Backend::Dpdk => "dpdk",
        }
    }
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// No directory, or no backend.
    #[error(transparent)]
    Scene(#[from] SceneError),
    /// No guest, or no backend of DPDK's.
    #[error(transparent)]
    Testpmd(#[from] TestpmdError),
    /// Nothing moves.
    #[error("no frame went through {backend}'s device, direction {direction}")]
    Still {
        /// Whose device.
        backend: &'static str,
        /// Which way.
        direction: &'static str,
    },
    /// Backend and guest on one core would only measure how these share it.
    #[error("this process may use one core only: the comparison needs two")]
    OneCore,
    /// The system refused.
    #[error("{what}: {source}")]
    System {
        /// What was refused.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

fn refused(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// Measures, and prints the result.
pub fn run(args: &Args) -> ExitCode {
    match measure(args) {
        Ok(report) => {
            print!("{}", if args.markdown { report.markdown() } else { report.table() });
            if args.json {
                println!("{}", report.json());
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("paste-bench frames: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Who runs where.
#[derive(Clone, Copy, Debug)]
struct Cores {
    guest: usize,
    backend: usize,
}

fn measure(args: &Args) -> Result<Report, Error> {
    let load = sys::load();
    let cores = children::cores().map_err(refused("the cores cannot be counted"))?;
    let [guest, backend, ..] = cores[..] else { return Err(Error::OneCore) };
    let cores = Cores { guest, backend };
    let stolen = || sys::stolen().map_err(refused("CPU times cannot be read"));
    let before = stolen()?;
    let mut rows = Vec::new();
    for &direction in &args.direction {
        for &frame_bytes in &args.frame_bytes {
            rows.extend(compare(args, cores, direction, frame_bytes.into())?);
        }
    }
    Ok(Report {
        conditions: Conditions {
            machine: Machine::this(),
            guest_core: cores.guest,
            backend_core: cores.backend,
            seconds: args.seconds,
            rounds: args.rounds,
            load,
            steal_percent: stolen()?.percent_since(before),
            command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
        },
        rows,
    })
}

/// Both backends at one direction and length.
fn compare(
    args: &Args,
    cores: Cores,
    direction: Direction,
    frame_bytes: usize,
) -> Result<Vec<Row>, Error> {
    let directory = Directory::new()?;
    let mut sides = Vec::new();
    for backend in Backend::ALL {
        let side = Side::start(backend, direction, frame_bytes, cores, &directory)?;
        side.hold(true)?;
        sides.push((side, Vec::new()));
    }
    for number in 1..=args.rounds {
        for (side, rates) in &mut sides {
            side.hold(false)?;
            let mpps = side.round(Duration::from_secs(args.seconds))?;
            side.hold(true)?;
            eprintln!(
                "{} of {frame_bytes} bytes, round {number} of {}: {} {mpps:.2} Mpps",
                direction.name(),
                args.rounds,
                side.backend.name(),
            );
            rates.push(mpps);
        }
    }
    let row = |(side, rates): &(Side, Vec<f64>)| Row {
        backend: side.backend,
        direction,
        frame_bytes,
        mpps: Spread::of(rates),
    };
    Ok(sides.iter().map(row).collect())
}

/// A guest and its backend.
struct Side {
    backend: Backend,
    direction: Direction,
    // The guest goes first, as it would wait for a backend that is gone.
    guest: Testpmd,
    ours: Option<Processes>,
    dpdk: Option<Testpmd>,
}

impl Side {
    /// Starts both, and lets frames go.
    fn start(
        backend: Backend,
        direction: Direction,
        frame_bytes: usize,
        cores: Cores,
        directory: &Directory,
    ) -> Result<Side, Error> {
        let base = directory.path().join(backend.name());
        let socket = base.with_extension("sock");
        let (mut ours, mut dpdk) = (None, None);
        match backend {
            Backend::Pasted => {
                let settings = configuration(text(&socket)?);
                let bytes = frame_bytes.to_string();
                let more = ["--frames", direction.name(), "--frame-bytes", &bytes];
                let process = start_backend(&base, &settings, &more, cores.backend, directory)?;
                ours = Some(Processes::new(vec![process]));
            }
            Backend::Dpdk => {
                let forward = match direction {
                    Direction::Rx => Forward::TxOnly,
                    Direction::Tx => Forward::RxOnly,
                    Direction::Loop => Forward::Io,
                };
                let device = backend_device(&socket);
                let core = cores.backend;
                let path = directory.path();
                let mut process =
                    Testpmd::start("vhost", &device, forward, frame_bytes, core, path)?;
                process.go(false)?;
                dpdk = Some(process);
            }
        }
        let forward = match direction {
            Direction::Rx => Forward::RxOnly,
            Direction::Tx => Forward::TxOnly,
            // Our device lets nobody send by another's address.
            Direction::Loop => Forward::Mac,
        };
        let (device, name) = (guest_device(&socket), format!("{}-guest", backend.name()));
        let (core, path) = (cores.guest, directory.path());
        let guest = Testpmd::start(&name, &device, forward, frame_bytes, core, path)?;
        let mut side = Side { backend, direction, guest, ours, dpdk };
        side.guest.go(direction == Direction::Loop)?;
        side.wait_moving()?;
        Ok(side)
    }

    /// Waits until frames go through.
    fn wait_moving(&mut self) -> Result<(), Error> {
        let end = Instant::now() + START_TIME;
        while self.mpps()? == 0.0 {
            if Instant::now() > end {
                let (backend, direction) = (self.backend.name(), self.direction.name());
                return Err(Error::Still { backend, direction });
            }
            std::thread::sleep(START_INTERVAL);
        }
        Ok(())
    }

    /// Millions of frames per second since this was asked before.
    fn mpps(&mut self) -> Result<f64, Error> {
        let rates = self.guest.rates()?;
        let pps = match self.direction {
            Direction::Rx | Direction::Loop => rates.rx_pps,
            Direction::Tx => rates.tx_pps,
        };
        Ok(pps as f64 / 1e6)
    }

    fn round(&mut self, duration: Duration) -> Result<f64, Error> {
        std::thread::sleep(WARM_UP);
        self.mpps()?;
        std::thread::sleep(duration);
        if let Some(ours) = &mut self.ours {
            ours.check()?;
        }
        self.mpps()
    }

    fn hold(&self, still: bool) -> Result<(), Error> {
        let what = "a process cannot be held still, or let go on";
        let backend = || match (&self.ours, &self.dpdk) {
            (Some(ours), _) => ours.hold(still),
            (_, Some(dpdk)) => dpdk.hold(still),
            _ => Ok(()),
        };
        backend().and_then(|()| self.guest.hold(still)).map_err(refused(what))
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // A guest that ends says so to its backend, and waits for the answer.
        let _ = self.hold(false);
    }
}

/// A guest in the backend's configuration, whose driver may say that it is testpmd.
fn configuration(socket: &str) -> String {
    let socket = toml::Value::from(socket).to_string();
    let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    format!(
        "[[guest]]\nname = \"frames\"\nsocket = {socket}\nmac = \"{mac}\"\n\
         addresses = [\"10.71.0.3/24\"]\nsources = [\"{NETWORK}\"]\nport = \"pipe:frames\"\n\
         poll = \"always\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backend_takes_its_configuration() {
        let config = pasted::config::Config::parse("f.toml", &configuration("/run/f.sock"));
        let config = config.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(config.guests[0].mac.octets(), GUEST_MAC);
    }
}
