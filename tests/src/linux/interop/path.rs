//! The two namespaces, the wire between them, and what Linux's TCP may do there.

use std::fmt;
use std::path::PathBuf;

use pasted::port::wire::Faults;

use super::bridge::{BridgeCounters, LossyBridge};
use super::tap::Tap;
use crate::netns::Namespace;

/// The device at the near end.
pub const NEAR_DEVICE: &str = "near0";
/// The bridge at the far end.
pub const FAR_BRIDGE: &str = "br0";
/// The device at the far end.
const FAR_DEVICE: &str = "far0";
/// Frames that may wait in a device, as in the benchmarks.
const QUEUE_LEN: u32 = 4096;

/// Names the congestion control of new connections.
const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
/// Names those that namespaces may choose.
const ALLOWED_CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

/// The version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The number of the version.
    pub fn number(self) -> u8 {
        match self {
            Family::V4 => 4,
            Family::V6 => 6,
        }
    }

    /// The address of the near end with its prefix.
    fn near(self) -> &'static str {
        match self {
            Family::V4 => "10.9.0.1/24",
            Family::V6 => "fd09::1/64",
        }
    }

    /// The address of the far end with its prefix.
    pub fn far(self) -> &'static str {
        match self {
            Family::V4 => "10.9.0.2/24",
            Family::V6 => "fd09::2/64",
        }
    }

    /// The address of the far end.
    pub fn far_ip(self) -> &'static str {
        match self {
            Family::V4 => "10.9.0.2",
            Family::V6 => "fd09::2",
        }
    }

    /// The far end in an URL.
    pub fn far_url(self, path: &str) -> String {
        match self {
            Family::V4 => format!("http://10.9.0.2{path}"),
            Family::V6 => format!("http://[fd09::2]{path}"),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number().fmt(f)
    }
}

/// What the wire does, and what TCP may do at both ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The version of IP.
    pub family: Family,
    /// Bytes of the largest packet.
    pub mtu: u16,
    /// Selective acknowledgements (RFC 2018).
    pub sack: bool,
    /// Timestamps (RFC 7323).
    pub timestamps: bool,
    /// Explicit congestion notification is asked for and accepted (RFC 3168).
    pub ecn: bool,
    /// What goes wrong, in each direction.
    pub faults: Faults,
    /// Chance that an ECN-capable packet is marked, in each direction.
    pub mark: f64,
    /// Where and when it does.
    pub seed: u64,
    /// The shortest retransmission timeout of Linux's TCP, us; what the kernel has,
    /// without.
    pub rto_min_us: Option<u32>,
}

/// The path. Dropping it takes it down.
#[derive(Debug)]
pub struct Path {
    // The order of the fields is that of taking down.
    bridge: LossyBridge,
    /// The end of the clients.
    pub near: Namespace,
    /// The end of the servers.
    pub far: Namespace,
}

impl Path {
    /// Lays it. The far end has a kernel's bridge without an address.
    pub fn lay(settings: &Settings) -> Path {
        let Settings { family, mtu, faults, mark, seed, .. } = *settings;
        allow_cubic();
        let (near, far) = (Namespace::new(), Namespace::new());
        let taps = [(&near, NEAR_DEVICE), (&far, FAR_DEVICE)].map(|(net, device)| {
            net.run(|| {
                sysctls(settings);
                Tap::open(device).expect("a TAP device can be made")
            })
        });
        far.bridge(FAR_BRIDGE);
        far.join(FAR_BRIDGE, FAR_DEVICE);
        for (net, device) in [(&near, NEAR_DEVICE), (&far, FAR_DEVICE), (&far, FAR_BRIDGE)] {
            net.ip(&format!("link set dev {device} mtu {mtu} txqueuelen {QUEUE_LEN} up"));
        }
        add_address(&near, NEAR_DEVICE, family, family.near());
        let bridge =
            LossyBridge::start(taps, mtu, faults, mark, seed).expect("a thread can be started");
        Path { bridge, near, far }
    }

    /// Gives the kernel at the far end its address.
    pub fn give_far_address(&self, family: Family) {
        add_address(&self.far, FAR_BRIDGE, family, family.far());
    }

    /// Puts a new TAP device into the bridge at the far end.
    pub fn add_far_tap(&self, name: &str, mtu: u16) {
        self.far.tap(name);
        self.far.join(FAR_BRIDGE, name);
        self.far.ip(&format!("link set dev {name} mtu {mtu} txqueuelen {QUEUE_LEN}"));
    }

    /// Takes it down and returns what the bridge did: `lanes[0]` is the way from
    /// the near end to the far one.
    pub fn take_down(self) -> BridgeCounters {
        self.bridge.stop()
    }
}

/// Without duplicate address detection, which a lost frame cannot disturb and
/// which would take a second.
fn add_address(net: &Namespace, device: &str, family: Family, address: &str) {
    let nodad = if family == Family::V6 { " nodad" } else { "" };
    net.ip(&format!("address add {address} dev {device}{nodad}"));
}

/// Settings of the calling thread's network, before it has a device.
fn sysctls(settings: &Settings) {
    let Settings { family, sack, timestamps, ecn, rto_min_us, .. } = *settings;
    let switch = |on: bool| if on { "1" } else { "0" };
    for (name, value) in [
        ("ipv4/tcp_sack", switch(sack)),
        ("ipv4/tcp_timestamps", switch(timestamps)),
        ("ipv4/tcp_ecn", switch(ecn)),
        // What a connection learned is not for the next one.
        ("ipv4/tcp_no_metrics_save", "1"),
    ] {
        let file = PathBuf::from("/proc/sys/net").join(name);
        std::fs::write(&file, value).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    }
    if let Some(us) = rto_min_us {
        std::fs::write(RTO_MIN, us.to_string()).unwrap_or_else(|e| panic!("{RTO_MIN}: {e}"));
    }
    // Where the kernel does not let us, the rows say what it has instead.
    let _ = std::fs::write(CONGESTION_CONTROL, "cubic");
    // Where there is no IPv6, there is nothing to turn off.
    let _ = std::fs::write(
        "/proc/sys/net/ipv6/conf/default/disable_ipv6",
        switch(family == Family::V4),
    );
}

/// Lets namespaces choose CUBIC, which ours has too and which Linux has where
/// nobody chose otherwise. It is a setting of the whole machine: a list of what
/// a socket may ask for without privileges.
fn allow_cubic() {
    let Ok(allowed) = std::fs::read_to_string(ALLOWED_CONGESTION_CONTROL) else {
        // This process is in a namespace that is not the machine's first.
        return;
    };
    if !allowed.split_whitespace().any(|name| name == "cubic") {
        let _ = std::fs::write(ALLOWED_CONGESTION_CONTROL, format!("{} cubic", allowed.trim()));
    }
}

/// The shortest retransmission timeout of new connections of a namespace's kernel, us
/// (Linux 6.11 or later).
const RTO_MIN: &str = "/proc/sys/net/ipv4/tcp_rto_min_us";

/// The congestion control of new connections of a namespace's kernel.
pub fn congestion_control(net: &Namespace) -> String {
    let name = net.run(|| std::fs::read_to_string(CONGESTION_CONTROL));
    name.expect("the kernel tells").trim().to_owned()
}

/// A counter of the kernel's TCP in a namespace, such as `RetransSegs`.
///
/// # Panics
/// If the kernel has none of that name.
pub fn tcp_counter(net: &Namespace, name: &str) -> u64 {
    let text = net.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"));
    let text = text.expect("the kernel counts");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut pairs = names.split(' ').zip(values.split(' '));
    let value = pairs.find_map(|(found, value)| (found == name).then(|| value.parse().ok())?);
    value.unwrap_or_else(|| panic!("no counter {name} in {names}"))
}
