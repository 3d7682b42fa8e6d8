//! What the harness is told when it is made (packetdrill's `--so_flags`), and
//! what it reads from sysctls.
//!
//! The public suites assume Linux's defaults, and set what differs through
//! sysctl in shell commands of their own. So the defaults here are Linux's, and
//! with `sysctls=/proc/sys/net/ipv4` the harness takes over what a script has
//! set, when it makes the stack: at the first `bind` or `connect`.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;
use std::fs;
use std::path::PathBuf;

use paste_stack::Config;
use paste_stack::config::{CongestionControl, MS, SEC};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A flag that is not understood.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// Flags are `name=value`, separated by commas.
    #[error("{0:?} is not name=value")]
    Form(String),
    /// There is no flag of this name.
    #[error("no flag is named {0:?}")]
    Name(String),
    /// The value cannot be read, or is out of range.
    #[error("{0:?} is no value for {1}")]
    Value(String, String),
}

/// When ECN (RFC 3168) is agreed on, as Linux's `tcp_ecn` numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ecn {
    Never,
    /// Asked for, and accepted.
    Ask,
    /// Accepted from peers that ask.
    Accept,
}

impl Ecn {
    fn from_sysctl(mode: u64) -> Option<Ecn> {
        match mode {
            0 => Some(Ecn::Never),
            1 => Some(Ecn::Ask),
            2 => Some(Ecn::Accept),
            _ => None,
        }
    }
}

/// The settings of one harness.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The stack's addresses where the script's sockets do not say.
    pub local: Ipv4Addr,
    pub local6: Ipv6Addr,
    pub mtu: u16,
    /// Directory of sysctls to follow.
    pub sysctls: Option<PathBuf>,
    /// Keys the stack's hash and its initial sequence numbers.
    pub seed: u64,
    pub delayed_ack: u64,
    pub rto_initial: u64,
    pub rto_min: u64,
    pub timestamps: bool,
    pub sack: bool,
    pub ecn: Ecn,
    pub congestion: CongestionControl,
    /// Receive buffer of a socket, bytes: what it starts with, and its most.
    pub rcvbuf: u32,
    pub rcvbuf_max: u32,
    pub sndbuf: u32,
    pub keepalive_idle: u64,
    pub keepalive_interval: u64,
    pub keepalive_probes: u8,
    pub fin_timeout: u64,
    pub notsent_lowat: u32,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            local: Ipv4Addr::new(192, 168, 0, 1),
            local6: Ipv6Addr::new(0xfd3d, 0xa0b, 0x17d6, 0, 0, 0, 0, 1),
            mtu: 1500,
            sysctls: None,
            seed: 1,
            delayed_ack: 40 * MS,
            rto_initial: SEC,
            rto_min: 200 * MS,
            timestamps: true,
            sack: true,
            ecn: Ecn::Accept,
            congestion: CongestionControl::Cubic,
            rcvbuf: 131_072,
            rcvbuf_max: 6 << 20,
            sndbuf: 256 << 10,
            keepalive_idle: 7200 * SEC,
            keepalive_interval: 75 * SEC,
            keepalive_probes: 9,
            fin_timeout: 60 * SEC,
            notsent_lowat: u32::MAX,
        }
    }
}

fn wrong(name: &str, text: &str) -> FlagError {
    FlagError::Value(text.to_owned(), name.to_owned())
}

fn value<T: FromStr>(name: &str, text: &str) -> Result<T, FlagError> {
    text.parse().map_err(|_| wrong(name, text))
}

/// The congestion control that Linux calls so; it calls NewReno `reno`.
fn control(name: &str) -> Option<CongestionControl> {
    match name {
        "cubic" => Some(CongestionControl::Cubic),
        "reno" => Some(CongestionControl::NewReno),
        _ => None,
    }
}

impl Settings {
    /// Reads flags as `name=value,name=value`.
    pub(crate) fn parse(flags: &str) -> Result<Settings, FlagError> {
        let mut settings = Settings::default();
        for flag in flags.split(',').map(str::trim).filter(|f| !f.is_empty()) {
            let (name, text) =
                flag.split_once('=').ok_or_else(|| FlagError::Form(flag.to_owned()))?;
            match name {
                "local" => match value(name, text)? {
                    IpAddr::V4(address) => settings.local = address,
                    IpAddr::V6(address) => settings.local6 = address,
                },
                "mtu" => settings.mtu = value(name, text)?,
                "sysctls" => settings.sysctls = Some(PathBuf::from(text)),
                "seed" => settings.seed = value(name, text)?,
                "delayed_ack_ms" => settings.delayed_ack = value::<u32>(name, text)? as u64 * MS,
                "rto_initial_ms" => settings.rto_initial = value::<u32>(name, text)? as u64 * MS,
                "rto_min_ms" => settings.rto_min = value::<u32>(name, text)? as u64 * MS,
                "timestamps" => settings.timestamps = value::<u8>(name, text)? != 0,
                "sack" => settings.sack = value::<u8>(name, text)? != 0,
                "ecn" => {
                    let number = value(name, text)?;
                    settings.ecn = Ecn::from_sysctl(number).ok_or_else(|| wrong(name, text))?;
                }
                "congestion" => {
                    settings.congestion = control(text).ok_or_else(|| wrong(name, text))?;
                }
                "rcvbuf" => settings.rcvbuf_max = value(name, text)?,
                "sndbuf" => settings.sndbuf = value(name, text)?,
                _ => return Err(FlagError::Name(name.to_owned())),
            }
        }
        Ok(settings)
    }

    /// Takes over what the sysctls say now. What is missing there stays.
    pub(crate) fn follow_sysctls(&mut self) {
        let Some(dir) = self.sysctls.clone() else { return };
        let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
        let numbers = |name: &str| -> Vec<u64> {
            text(name).split_whitespace().map_while(|word| word.parse().ok()).collect()
        };
        self.congestion = control(text("tcp_congestion_control").trim()).unwrap_or(self.congestion);
        if let [on, ..] = numbers("tcp_timestamps")[..] {
            self.timestamps = on != 0;
        }
        if let [on, ..] = numbers("tcp_sack")[..] {
            self.sack = on != 0;
        }
        if let [mode] = numbers("tcp_ecn")[..] {
            self.ecn = Ecn::from_sysctl(mode).unwrap_or(self.ecn);
        }
        if let [_, start, most] = numbers("tcp_rmem")[..] {
            self.rcvbuf = start.min(u64::from(u32::MAX)) as u32;
            self.rcvbuf_max = most.min(u64::from(u32::MAX)) as u32;
        }
        if let [_, start, _] = numbers("tcp_wmem")[..] {
            self.sndbuf = start.min(u64::from(u32::MAX)) as u32;
        }
        if let [seconds] = numbers("tcp_keepalive_time")[..] {
            self.keepalive_idle = seconds.saturating_mul(SEC);
        }
        if let [seconds] = numbers("tcp_keepalive_intvl")[..] {
            self.keepalive_interval = seconds.saturating_mul(SEC);
        }
        if let [count] = numbers("tcp_keepalive_probes")[..] {
            self.keepalive_probes = count.min(u64::from(u8::MAX)) as u8;
        }
        if let [seconds] = numbers("tcp_fin_timeout")[..] {
            self.fin_timeout = seconds.saturating_mul(SEC);
        }
        if let [bytes] = numbers("tcp_notsent_lowat")[..] {
            self.notsent_lowat = bytes.min(u64::from(u32::MAX)) as u32;
        }
    }

    /// The configuration of a stack at `address`, which is made for a connect or
    /// for a listen.
    pub(crate) fn config(&self, address: IpAddr, connects: bool) -> Config {
        // Everybody is a neighbour: the harness answers for all of them.
        let mut config = Config::new(MAC, address, 0);
        config.dad_probes = 0;
        config.mtu = self.mtu;
        config.flows_max = 64;
        config.listeners_max = 16;
        config.time_wait_max = 32;
        config.timestamps = self.timestamps;
        config.sack = self.sack;
        config.ecn = self.ecn == Ecn::Ask || (self.ecn == Ecn::Accept && !connects);
        config.congestion = self.congestion;
        config.recv_window_max = self.rcvbuf_max;
        config.timers.delayed_ack = self.delayed_ack;
        config.timers.rto_initial = self.rto_initial;
        config.timers.rto_min = self.rto_min;
        // Linux gives up by the number of retransmissions; by its arithmetic
        // (tcp_retries2 = 15) after about 15 minutes.
        config.timers.user_timeout = 924 * SEC;
        config.timers.rto_max = 120 * SEC;
        config.timers.keepalive_interval = self.keepalive_interval;
        config.timers.keepalive_probes = self.keepalive_probes;
        config.timers.fin_wait_2 = self.fin_timeout;
        config
    }

    /// The stack's secret: the seed, spread over it.
    pub(crate) fn secret(&self) -> [u8; 16] {
        let mut secret = [0; 16];
        secret[..8].copy_from_slice(&self.seed.to_le_bytes());
        secret
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_flags() {
        let settings = Settings::parse("local=10.0.0.1, mtu=9000,delayed_ack_ms=5").unwrap();
        assert_eq!(settings.local, Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(settings.mtu, 9000);
        assert_eq!(settings.delayed_ack, 5 * MS);
        assert_eq!(settings.rto_min, Settings::default().rto_min);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        let refusal = |flags| Settings::parse(flags).unwrap_err();
        assert_eq!(refusal("mtu"), FlagError::Form("mtu".to_owned()));
        assert_eq!(refusal("mut=1"), FlagError::Name("mut".to_owned()));
        assert_eq!(refusal("mtu=x"), FlagError::Value("x".to_owned(), "mtu".to_owned()));
    }

    #[test]
    fn follows_the_sysctls_that_are_there() {
        let dir = std::env::temp_dir().join(format!("paste-packetdrill-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("tcp_timestamps"), "0\n").unwrap();
        fs::write(dir.join("tcp_rmem"), "4096\t540000\t15728640\n").unwrap();
        fs::write(dir.join("tcp_fin_timeout"), "nonsense").unwrap();
        let mut settings = Settings { sysctls: Some(dir.clone()), ..Settings::default() };
        settings.follow_sysctls();
        fs::remove_dir_all(&dir).unwrap();
        assert!(!settings.timestamps);
        assert_eq!((settings.rcvbuf, settings.rcvbuf_max), (540_000, 15 << 20));
        assert_eq!(settings.fin_timeout, Settings::default().fin_timeout);
    }
}
