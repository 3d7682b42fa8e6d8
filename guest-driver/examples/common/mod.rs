//! What the examples share: their arguments, and an orderly end.

use std::collections::HashMap;
use std::error::Error;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use paste_guest::{Channel, Endpoint, Options, Polling};
use signal_hook::consts::{SIGINT, SIGTERM};

/// `--name value` pairs; `--yield` and `--inline` are switches.
pub struct Arguments(HashMap<String, String>);

impl Arguments {
    /// Reads the command line; `known` are the names besides those that every
    /// example takes: socket, or interface or device, and region; channel, poll-us, yield,
    /// inline.
    pub fn parse(known: &[&str]) -> Result<Arguments, Box<dyn Error>> {
        let mut found = HashMap::new();
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or(format!("{word}: not an option"))?;
            let common = [
                "socket",
                "interface",
                "device",
                "region",
                "channel",
                "poll-us",
                "yield",
                "inline",
            ];
            if !common.contains(&name) && !known.contains(&name) {
                return Err(format!("{word}: unknown; known are {common:?} and {known:?}").into());
            }
            let value = match name {
                "yield" | "inline" => String::new(),
                _ => words.next().ok_or(format!("{word}: a value is missing"))?,
            };
            found.insert(name.to_owned(), value);
        }
        Ok(Arguments(found))
    }

    /// The value of an option, if it was given.
    pub fn get<T: FromStr>(&self, name: &str) -> Result<Option<T>, Box<dyn Error>> {
        match self.0.get(name) {
            None => Ok(None),
            Some(value) => match value.parse() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(format!("--{name} {value}: not a valid value").into()),
            },
        }
    }

    /// Where the host is: a socket of its, or, in a virtual machine, a network device or
    /// the PCI device under it, and the region's device.
    fn endpoint(&self) -> Result<Endpoint, Box<dyn Error>> {
        let [socket, interface, device, region] =
            ["socket", "interface", "device", "region"].map(|name| self.0.get(name));
        let inline = self.0.contains_key("inline");
        match (socket, interface, device, region) {
            (Some(socket), None, None, None) => Ok(Endpoint::vhost_user(socket)),
            (None, Some(name), None, Some(region)) => Ok(Endpoint::packet(name, region)),
            (None, Some(name), None, None) if inline => Ok(Endpoint::packet_inline(name)),
            (None, None, Some(at), Some(region)) => Ok(Endpoint::virtio_pci(at, region)),
            (None, None, Some(at), None) if inline => Ok(Endpoint::virtio_pci_inline(at)),
            _ => Err("give --socket PATH, or --interface NAME or --device ADDRESS, and with \
                      those --region DEVICE or --inline"
                .into()),
        }
    }

    /// Opens the channel that the arguments ask for.
    #[allow(dead_code, reason = "each example takes one of the three")]
    pub fn open(&self, name: &str) -> Result<Channel, Box<dyn Error>> {
        self.open_with(name, Options::default())
    }

    /// Likewise, with these options where the arguments say nothing.
    #[allow(dead_code, reason = "each example takes one of the three")]
    pub fn open_with(&self, name: &str, options: Options) -> Result<Channel, Box<dyn Error>> {
        Ok(Channel::open(&self.endpoint()?, self.options(name, options)?)?)
    }

    /// Likewise, on so many queue pairs.
    #[allow(dead_code, reason = "each example takes one of the three")]
    pub fn open_pairs(
        &self,
        name: &str,
        options: Options,
        pairs: u16,
    ) -> Result<Vec<Channel>, Box<dyn Error>> {
        Ok(Channel::open_pairs(&self.endpoint()?, self.options(name, options)?, pairs)?)
    }

    fn options(&self, name: &str, options: Options) -> Result<Options, Box<dyn Error>> {
        Ok(Options {
            name: name.to_owned(),
            channel: self.get("channel")?.unwrap_or(0),
            polling: Polling {
                poll_time: Duration::from_micros(self.get("poll-us")?.unwrap_or(0)),
                yield_now: self.0.contains_key("yield"),
            },
            inline: self.0.contains_key("inline"),
            ..options
        })
    }
}

/// How the program ends, having said what went wrong.
pub fn report(outcome: Result<(), Box<dyn Error>>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A flag that SIGTERM and SIGINT set.
pub fn stop_flag() -> Result<Arc<AtomicBool>, Box<dyn Error>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(stop)
}
