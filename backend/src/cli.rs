//! The command line: what the operator asks for, and how it ends.
//!
//! | exit code | meaning |
//! | --- | --- |
//! | 0 | done, or stopped in good order |
//! | 1 | something failed while running |
//! | 2 | the configuration or the command line is wrong; nothing was started |

use std::fmt;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand};

use crate::args_cli;
use crate::config::{Config, ConfigErrors, FLOWS_MAX, Poll};
#[cfg(feature = "demo")]
use crate::demo;
use crate::logging::{self, LoggingError};
use crate::ports_cli;
use crate::region_cli::{self, RegionFailure};
use crate::sys::fds;
use crate::wiring;

/// The exit code for a failure while running.
const EXIT_FAILED: u8 = 1;
/// The exit code for a wrong configuration or command line; clap's own.
const EXIT_USAGE: u8 = 2;

const EXAMPLES: &str = "\
Examples:
  pasted check --config web.toml             say whether the configuration is right
  pasted run --config web.toml               serve its guests until SIGTERM or SIGINT
  pasted run --config web.toml --fd 3        serve its one guest on an inherited socket
  pasted run --config web.toml --fd web1=3 --fd web2=4 --log debug
  pasted args qemu web1 --config web.toml    print what attaches a VMM to a guest
  pasted ports                               say which kinds of port this host can do
  pasted region check /dev/shm/web1.region   say whether a region is sound

Exit codes: 0 done; 1 something failed while running; 2 the configuration or
the command line is wrong, and nothing was started.";

/// Connects virtual machines' virtio rings to TCP stack ports on a NIC.
#[derive(Debug, Parser)]
#[command(name = "pasted", version, after_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the guests of a configuration until SIGTERM or SIGINT
    Run(RunArgs),
    /// Judge a configuration without opening anything
    Check(CheckArgs),
    /// Print what attaches a VMM to a guest of a configuration
    Args(args_cli::ArgsArgs),
    /// Say which kinds of port this host can do, and what to do about the others
    Ports(ports_cli::PortsArgs),
    /// Make, show, verify and repair the files of regions
    Region(region_cli::RegionArgs),
    #[cfg(feature = "demo")]
    #[command(flatten)]
    Demo(demo::Command),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// The configuration, a TOML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Serve a guest on an inherited vhost-user socket, in place of its
    /// `socket`; NAME may be left out if there is one guest only
    #[arg(long, value_name = "[NAME=]N")]
    fd: Vec<FdArg>,
    /// Flows at once, of every guest, in place of its `flows_max`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(FLOWS_MAX)))]
    flows_max: Option<u32>,
    /// What to log: a level, or a filter as in pasted=debug,info; goes before
    /// PASTED_LOG and the configuration
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
}

#[derive(Debug, Args)]
struct CheckArgs {
    /// The configuration, a TOML file
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// The value of `--fd`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct FdArg {
    guest: Option<String>,
    number: RawFd,
}

impl FromStr for FdArg {
    type Err = String;

    fn from_str(text: &str) -> Result<FdArg, String> {
        let (guest, number) = match text.split_once('=') {
            Some((guest, number)) => (Some(guest.to_owned()), number),
            None => (None, text),
        };
        let number = number
            .parse()
            .ok()
            .filter(|&number| number >= 0)
            .ok_or("write the number of an open descriptor, as in 3 or web1=3")?;
        Ok(FdArg { guest, number })
    }
}

/// Why a command ended without success.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
    /// The log cannot be started.
    #[error("pasted: {0}")]
    Logging(#[from] LoggingError),
    /// `--fd` does not fit the configuration or the process.
    #[error("pasted: --fd {0}")]
    Fd(#[from] FdError),
    /// What was found could not be printed.
    #[error("pasted: the result cannot be written: {0}")]
    Output(#[from] std::io::Error),
    /// Arguments for a VMM.
    #[error(transparent)]
    Args(#[from] args_cli::ArgsFailure),
    /// A region's file.
    #[error(transparent)]
    Region(#[from] RegionFailure),
    /// Serving failed.
    #[error("pasted: {0}")]
    Run(#[from] wiring::Error),
}

/// Why `--fd` does not fit.
#[derive(Debug, thiserror::Error)]
enum FdError {
    #[error("{number}: name the guest, as in {example}={number}: there are {guests}")]
    NoName { number: RawFd, guests: usize, example: String },
    #[error("{name}={number}: the configuration has no guest {name:?}: its guests are {known}")]
    NoSuchGuest { name: String, number: RawFd, known: String },
    #[error("{0}: it is given twice: give every guest a descriptor of its own")]
    Twice(FdArg),
    #[error("{arg}: {source}: pass the number of an open vhost-user socket")]
    NotOpen { arg: FdArg, source: std::io::Error },
}

impl fmt::Display for FdArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(guest) = &self.guest {
            write!(f, "{guest}=")?;
        }
        write!(f, "{}", self.number)
    }
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Failure::Config(_) | Failure::Logging(_) | Failure::Fd(_) => EXIT_USAGE,
            Failure::Region(failure) if failure.is_usage() => EXIT_USAGE,
            Failure::Args(args_cli::ArgsFailure::Output(_)) => EXIT_FAILED,
            Failure::Args(_) => EXIT_USAGE,
            Failure::Output(_) | Failure::Region(_) | Failure::Run(_) => EXIT_FAILED,
        }
    }
}

/// Does what the command line asks for, and says on stderr what failed.
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run(args),
        Command::Check(args) => check(&args.config),
        Command::Args(args) => args_cli::run(&args).map_err(Failure::from),
        Command::Ports(args) => ports_cli::run(args).map_err(Failure::from),
        Command::Region(args) => region_cli::run(args).map_err(Failure::from),
        #[cfg(feature = "demo")]
        Command::Demo(command) => return demo::run(command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.exit_code())
        }
    }
}

fn run(args: RunArgs) -> Result<(), Failure> {
    // Before anything is opened, while the numbers are still the parent's.
    let inherited = inherit(args.fd)?;
    let mut config = Config::load(&args.config)?;
    if let Some(flows_max) = args.flows_max {
        config.set_flows_max(flows_max);
    }
    let inherited = assign(inherited, &config)?;
    logging::init(config.log, args.log.as_deref())?;
    Ok(wiring::run(&config, inherited)?)
}

fn check(path: &Path) -> Result<(), Failure> {
    let config = Config::load(path)?;
    print!("{}", summary(path, &config));
    Ok(())
}

/// Takes the descriptors over.
fn inherit(args: Vec<FdArg>) -> Result<Vec<(FdArg, OwnedFd)>, FdError> {
    for (index, arg) in args.iter().enumerate() {
        let earlier = &args[..index];
        if earlier.iter().any(|other| other.number == arg.number || other.guest == arg.guest) {
            return Err(FdError::Twice(arg.clone()));
        }
    }
    args.into_iter()
        .map(|arg| match fds::inherit(arg.number) {
            Ok(fd) => Ok((arg, fd)),
            Err(source) => Err(FdError::NotOpen { arg, source }),
        })
        .collect()
}

/// Says which guest each descriptor is for.
fn assign(inherited: Vec<(FdArg, OwnedFd)>, config: &Config) -> Result<wiring::Inherited, FdError> {
    let guests = &config.guests;
    inherited
        .into_iter()
        .map(|(FdArg { guest, number }, fd)| match (guest, guests.as_slice()) {
            (None, [only]) => Ok((only.name.clone(), fd)),
            (None, _) => Err(FdError::NoName {
                number,
                guests: guests.len(),
                example: guests.first().map_or_else(String::new, |guest| guest.name.clone()),
            }),
            (Some(name), _) if guests.iter().any(|guest| guest.name == name) => Ok((name, fd)),
            (Some(name), _) => {
                let known: Vec<_> = guests.iter().map(|guest| guest.name.as_str()).collect();
                Err(FdError::NoSuchGuest { name, number, known: known.join(", ") })
            }
        })
        .collect()
}

/// What `check` prints of a configuration that is right.
fn summary(path: &Path, config: &Config) -> String {
    use fmt::Write;

    let (count, s) = (config.guests.len(), if config.guests.len() == 1 { "" } else { "s" });
    let mut text = format!("{}: ok, {count} guest{s}\n", path.display());
    // Writing to a string cannot fail.
    for guest in &config.guests {
        let mut network = String::new();
        for prefix in &guest.addresses {
            let _ = write!(network, " {prefix}");
        }
        for gateway in &guest.gateways {
            let _ = write!(network, " via {gateway}");
        }
        if let Some(vlan) = guest.vlan {
            let _ = write!(network, " vlan {vlan}");
        }
        let poll = match guest.poll {
            Poll::Always => "always".to_owned(),
            Poll::For(duration) => format!("{duration:?}"),
        };
        let mut region = match &guest.region.path {
            Some(path) => path.display().to_string(),
            None => "memory".to_owned(),
        };
        if let Some(mirror) = &guest.region.mirror {
            let _ = write!(region, " mirrored in {}", mirror.display());
        }
        if let Some(socket) = &guest.region.pmem_socket {
            let _ = write!(region, " behind virtio-pmem at {}", socket.path.display());
        }
        let _ = writeln!(
            text,
            "  {}: {}{network} mtu {} on {}, socket {}, region {region} of {} bytes, polls {poll}",
            guest.name,
            guest.mac,
            guest.mtu,
            guest.port,
            guest.socket.as_ref().map_or(Path::new("none"), |socket| &socket.path).display(),
            guest.region.size,
        );
    }
    if let Some(control) = &config.control {
        let _ = writeln!(
            text,
            "  VMMs ask at {}, {} templates",
            control.display(),
            config.templates.len()
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    const TWO_GUESTS: &str = r#"
        [[guest]]
        name = "web1"
        socket = "/run/web1.sock"
        mac = "52:54:00:00:00:01"
        addresses = ["10.7.0.2/24"]
        port = "tap:tap0"
        [[guest]]
        name = "web2"
        socket = "/run/web2.sock"
        mac = "52:54:00:00:00:02"
        addresses = ["10.7.0.3/24"]
        port = "tap:tap1"
    "#;

    fn config(guests: usize) -> Config {
        let mut config = Config::parse("two.toml", TWO_GUESTS).unwrap();
        config.guests.truncate(guests);
        config
    }

    /// An argument with a descriptor of its own behind it.
    fn inherited(arg: &str) -> Vec<(FdArg, OwnedFd)> {
        let (fd, _) = rustix::pipe::pipe().unwrap();
        vec![(arg.parse().unwrap(), fd)]
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_command_lines_are_refused() {
        for (line, kind) in [
            (vec!["pasted"], ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand),
            (vec!["pasted", "run"], ErrorKind::MissingRequiredArgument),
            (vec!["pasted", "check"], ErrorKind::MissingRequiredArgument),
            (vec!["pasted", "serve"], ErrorKind::InvalidSubcommand),
            (vec!["pasted", "run", "--config", "a", "--fd", "x"], ErrorKind::ValueValidation),
            (vec!["pasted", "run", "--config", "a", "--fd", "w=-1"], ErrorKind::ValueValidation),
            (
                vec!["pasted", "run", "--config", "a", "--flows-max", "0"],
                ErrorKind::ValueValidation,
            ),
            (
                vec!["pasted", "run", "--config", "a", "--flows-max", "1048577"],
                ErrorKind::ValueValidation,
            ),
        ] {
            let error = Cli::try_parse_from(&line).unwrap_err();
            assert_eq!(error.kind(), kind, "{line:?}");
            assert_eq!(error.exit_code(), i32::from(EXIT_USAGE), "{line:?}");
        }
    }

    #[test]
    fn help_has_examples_and_exit_codes() {
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("pasted check --config web.toml"), "{help}");
        assert!(help.contains("Exit codes: 0 done"), "{help}");
    }

    #[test]
    fn descriptors_find_their_guests() {
        let name = |arg, guests| assign(inherited(arg), &config(guests)).map(|v| v[0].0.clone());
        assert_eq!(name("3", 1).unwrap(), "web1");
        assert_eq!(name("web2=3", 2).unwrap(), "web2");
        assert_eq!(
            name("3", 2).unwrap_err().to_string(),
            "3: name the guest, as in web1=3: there are 2"
        );
        assert_eq!(
            name("db=3", 2).unwrap_err().to_string(),
            "db=3: the configuration has no guest \"db\": its guests are web1, web2"
        );
    }

    #[test]
    fn descriptors_are_judged_before_they_are_taken() {
        let args = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        for (texts, message) in [
            (
                vec!["a=9000", "b=9000"],
                "b=9000: it is given twice: give every guest a descriptor of its own",
            ),
            (
                vec!["a=9000", "a=9001"],
                "a=9001: it is given twice: give every guest a descriptor of its own",
            ),
            (
                vec!["9000"],
                "9000: Bad file descriptor (os error 9): pass the number of an open vhost-user \
                 socket",
            ),
        ] {
            assert_eq!(inherit(args(&texts)).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn the_summary_names_what_matters() {
        assert_eq!(
            summary(Path::new("two.toml"), &config(1)),
            "two.toml: ok, 1 guest\n  web1: 52:54:00:00:00:01 10.7.0.2/24 mtu 1500 on tap:tap0, \
             socket /run/web1.sock, region memory of 67108864 bytes, polls 50µs\n"
        );
        let text = TWO_GUESTS.replace(
            "addresses = [\"10.7.0.2/24\"]",
            "addresses = [\"10.7.0.2/24\", \"fd00:7::2/64\"]\ngateway = [\"fe80::1\"]\nvlan = 7",
        );
        let two = summary(Path::new("two.toml"), &Config::parse("two.toml", &text).unwrap());
        let expected = " 10.7.0.2/24 fd00:7::2/64 via fe80::1 vlan 7 mtu 1500 on tap:tap0";
        assert!(two.contains(expected), "{two}");
    }
}
