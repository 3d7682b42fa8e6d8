//! The configuration: a TOML file, judged once at the door into typed values.
//!
//! What comes out of here needs no further check: every value is within its
//! limit, and guests do not collide. What is wrong is reported with file, line
//! and column, all of it at once. Nothing here opens a device or a socket.
//!
//! - `read` walks the file and turns its values into those of this module,
//!   by way of `fields`, which knows what can be wrong with a key;
//! - `check` holds the rules between values and between guests;
//! - `error` says where and what.

mod check;
mod error;
mod fields;
mod read;
mod template;
mod value;

use std::io::Read;
use std::net::{IpAddr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use paste_pmem::BUFFER_SIZE_MIN;

use crate::attachment::Spec;
use crate::port::Limits;
use crate::worker::Network;

pub use error::{ConfigError, ConfigErrors};
pub(crate) use read::is_name as is_guest_name;
pub use template::{Template, TemplateError, Wanted};
pub use value::{Mac, MacError, Prefix, PrefixError};
pub(crate) use value::{show_size, size as parse_size};

/// Bytes of the longest configuration file.
pub const FILE_LEN_MAX: u64 = 1 << 20;
/// Guests that one process serves.
pub const GUESTS_MAX: usize = 64;
/// Workers of one process.
pub const WORKERS_MAX: usize = 64;
/// Bytes of the longest guest name: it has to fit the superblock.
pub const NAME_LEN_MAX: usize = 63;
/// Bytes of the longest socket path: `sun_path` of `sockaddr_un` less the
/// terminator, on the system that has the smallest (FreeBSD, 104).
pub const SOCKET_PATH_LEN_MAX: usize = 103;
/// The smallest MTU, in bytes: the least that a host must accept (RFC 1122
/// section 3.3.2).
pub const MTU_MIN: u16 = 576;
/// The largest MTU, in bytes: jumbo frames as NICs have them.
pub const MTU_MAX: u16 = 9000;
/// The usual MTU of Ethernet (RFC 894), in bytes.
pub const MTU_DEFAULT: u16 = 1500;
/// The region's size where none is given, in bytes.
pub const REGION_SIZE_DEFAULT: u64 = 64 << 20;
/// The least MTU of a guest with an IPv6 address, in bytes (RFC 8200 section 5).
pub const MTU_MIN_IPV6: u16 = 1280;
/// The highest VLAN identifier (IEEE 802.1Q table 9-2).
pub const VLAN_MAX: u16 = 4094;
/// Flows where no limit is given.
pub const FLOWS_DEFAULT: u32 = 16 * 1024;
/// The highest limit of flows.
pub const FLOWS_MAX: u32 = 1 << 20;
/// The highest limit of what a guest sends or receives, in bytes per second.
pub const RATE_MAX: u64 = 1 << 40;
/// The longest polling time that is not "always".
pub const POLL_MAX: Duration = Duration::from_secs(10);
/// The polling time where none is given.
pub const POLL_DEFAULT: Duration = Duration::from_micros(50);

/// What one process is to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What is logged, and how.
    pub log: Log,
    /// The file that the counters are written to when the process ends.
    pub stats: Option<PathBuf>,
    /// The threads that serve; without any, each guest and each shared port has one of
    /// its own.
    pub workers: Option<Workers>,
    /// The guests, in the order of the file. At least one, or a template.
    pub guests: Vec<Guest>,
    /// The socket on which VMMs ask for guests.
    pub control: Option<PathBuf>,
    /// Guests that are made when a VMM asks for them.
    pub templates: Vec<Template>,
    /// The file, for what is added to it.
    document: toml::Table,
}

/// The threads that serve all guests and shared ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workers {
    /// How many there are; at least one.
    pub count: usize,
    /// The CPU of each, or none, and the system decides.
    pub cpus: Vec<usize>,
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// The least severe that is logged.
    pub level: LogLevel,
    /// The form of a line.
    pub format: LogFormat,
}

/// How severe a line of the log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Something stopped working.
    Error,
    /// Something is not as it should be.
    Warn,
    /// Guests, channels and ports coming and going.
    #[default]
    Info,
    /// Every control message.
    Debug,
    /// Everything that is told.
    Trace,
}

/// The form of a line of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// One guest, and all that belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Guest {
    /// Its name, unique in the process.
    pub name: String,
    /// Where its VMM is met; one that asks on the control socket needs none.
    pub socket: Option<Socket>,
    /// Its Ethernet address, unique in the process.
    pub mac: Mac,
    /// The addresses of its stack port: one of each family at most, and one at
    /// least, unless they are its kernel's.
    pub addresses: Vec<Prefix>,
    /// The addresses of its stack port are those of its kernel, which shows them.
    pub shares_addresses: bool,
    /// The routers towards everything beyond its networks: one for each address
    /// at most.
    pub gateways: Vec<IpAddr>,
    /// Without an IPv6 gateway, the router that offers itself is taken.
    pub accept_ra: bool,
    /// The VLAN that its stack port is on.
    pub vlan: Option<u16>,
    /// The NIC.
    pub port: Spec,
    /// The memory that it shares with the host.
    pub region: RegionSpec,
    /// How long it is polled before it sleeps.
    pub poll: Poll,
    /// The workers that serve it, from 0: one, or a lane on each of several. Without any, it
    /// is the one with the fewest guests.
    pub workers: Vec<usize>,
    /// Headers are kept where the guest cannot rewrite them, and frames of its own
    /// kernel come from its own addresses.
    pub spoof_check: bool,
    /// The addresses that its kernel may have, beside those of its stack port and the
    /// link-local one of its `mac`. One that shares its addresses has a gateway in one of
    /// these networks, which is that of its link.
    pub sources: Vec<Network>,
    /// What it may send and receive per second.
    pub rate_limit: Limits,
    /// Flows at once.
    pub flows_max: u32,
    /// Bytes of the largest packet.
    pub mtu: u16,
}

impl Guest {
    /// Single addresses that its kernel may have, of each family the first: they need not be
    /// shown.
    pub fn single_sources(&self) -> impl Iterator<Item = IpAddr> {
        [true, false].into_iter().filter_map(|v4| {
            let mut singles = self.sources.iter().filter_map(Network::single);
            singles.find(|address| address.is_ipv4() == v4)
        })
    }

    /// The network of `sources` that a gateway is in, but for those of everything and of
    /// one address.
    pub fn link_of(&self, gateway: IpAddr) -> Option<Network> {
        link_of(&self.sources, gateway)
    }

    /// The address that the guest is told: the IPv4 one if there is one; `::` where its
    /// kernel is to show it.
    pub fn address(&self) -> IpAddr {
        let v4 = self.addresses.iter().find(|prefix| prefix.address().is_ipv4());
        let first = v4.or(self.addresses.first());
        first.map_or(Ipv6Addr::UNSPECIFIED.into(), |prefix| prefix.address())
    }
}

/// A vhost-user socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// Where it is.
    pub path: PathBuf,
    /// Who listens.
    pub mode: SocketMode,
}

/// Who listens on a vhost-user socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketMode {
    /// This process listens and the VMM connects.
    #[default]
    Server,
    /// The VMM listens and this process connects.
    Client,
}

/// A region, as it is to be made or opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionSpec {
    /// Bytes of the whole region, the host's head included.
    pub size: u64,
    /// The file that outlives the process; without one, the region goes with
    /// the process.
    pub path: Option<PathBuf>,
    /// It lies in memory that the VMM has and shows its guest; the guest is opened when the
    /// VMM comes.
    pub segment: bool,
    /// The file on a disk that keeps what is to outlive the machine.
    pub mirror: Option<PathBuf>,
    /// Bytes of one buffer, a power of two.
    pub buffer_size: u32,
    /// Where the VMM meets its virtio-pmem device, if there is one.
    pub pmem_socket: Option<Socket>,
}

/// The network that is a gateway's link.
fn link_of(sources: &[Network], gateway: IpAddr) -> Option<Network> {
    let is_link = |network: &&Network| {
        network.prefix_len() > 0 && network.single().is_none() && network.contains(gateway)
    };
    sources.iter().find(is_link).copied()
}

impl Default for RegionSpec {
    fn default() -> RegionSpec {
        RegionSpec {
            size: REGION_SIZE_DEFAULT,
            path: None,
            segment: false,
            mirror: None,
            buffer_size: BUFFER_SIZE_MIN,
            pmem_socket: None,
        }
    }
}

/// How long a guest is polled before it sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// It never sleeps.
    Always,
    /// It sleeps after this time without anything to do.
    For(Duration),
}

impl Config {
    /// Reads and judges a file.
    pub fn load(path: &Path) -> Result<Config, ConfigErrors> {
        let file = path.display().to_string();
        let unreadable = |source| ConfigErrors::new(&file, vec![ConfigError::unreadable(source)]);
        let mut bytes = Vec::new();
        std::fs::File::open(path)
            .and_then(|f| f.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes))
            .map_err(unreadable)?;
        if bytes.len() as u64 > FILE_LEN_MAX {
            return Err(ConfigErrors::new(&file, vec![ConfigError::too_long()]));
        }
        match String::from_utf8(bytes) {
            Ok(text) => Config::parse(&file, &text),
            Err(error) => {
                let valid = error.utf8_error().valid_up_to();
                let line = 1 + error.as_bytes()[..valid].iter().filter(|&&b| b == b'\n').count();
                Err(ConfigErrors::new(&file, vec![ConfigError::not_utf8(line)]))
            }
        }
    }

    /// Judges the text of a file; `file` is its name for messages.
    pub fn parse(file: &str, text: &str) -> Result<Config, ConfigErrors> {
        let config = Config::judge(file, text)?;
        let mut findings = error::Findings::default();
        for (at, error) in config.bad_templates() {
            findings.add(at, format!("template: {error}"));
        }
        if findings.is_empty() { Ok(config) } else { Err(findings.into_errors(file, text)) }
    }

    /// Judges everything but what comes of templates.
    fn judge(file: &str, text: &str) -> Result<Config, ConfigErrors> {
        let mut findings = error::Findings::default();
        let config = read::config(text, &mut findings);
        match config {
            Some(config) if findings.is_empty() => Ok(config),
            _ => Err(findings.into_errors(file, text)),
        }
    }
}

#[cfg(test)]
mod tests;
