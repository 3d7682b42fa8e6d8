//! The walk over a file: tables and values become those of [`super`]. What
//! concerns one value is judged here; what concerns several is in `check`.

use std::net::IpAddr;
use std::ops::Range;
use std::path::PathBuf;

use paste_pmem::{BUFFER_SIZE_MAX, BUFFER_SIZE_MIN, SIZE_MAX, SIZE_MIN, SIZE_STEP};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::check;
use super::error::Findings;
use super::fields::{At, Fields};
use super::template::{self, Template};
use super::value;
use super::{
    Config, FLOWS_DEFAULT, FLOWS_MAX, GUESTS_MAX, Guest, Log, LogFormat, LogLevel, MTU_DEFAULT,
    MTU_MAX, MTU_MIN, Mac, NAME_LEN_MAX, POLL_DEFAULT, POLL_MAX, Poll, Prefix, RATE_MAX,
    RegionSpec, SOCKET_PATH_LEN_MAX, Socket, SocketMode, VLAN_MAX, WORKERS_MAX, Workers,
};
use crate::attachment::Spec;
use crate::lanes::LANES_MAX;
use crate::port::{Limits, Rate};
use crate::sys::CPUS_MAX;
use crate::worker::Network;

/// What stands for the control socket in messages.
const CONTROL_EXAMPLE: &str = "control = \"/run/pasted/control.sock\"";

/// What was understood of a guest. `None` where something is missing or wrong,
/// which has been reported.
#[derive(Debug)]
pub(super) struct Draft {
    /// How messages name the guest.
    pub(super) who: String,
    pub(super) name: Option<At<String>>,
    pub(super) socket: Option<Option<At<Socket>>>,
    pub(super) mac: Option<At<Mac>>,
    pub(super) addresses: Option<At<Vec<At<Prefix>>>>,
    /// They are its kernel's.
    pub(super) shares_addresses: bool,
    pub(super) gateways: Option<Vec<At<IpAddr>>>,
    pub(super) vlan: Option<Option<u16>>,
    pub(super) port: Option<At<Spec>>,
    pub(super) region: Option<At<RegionSpec>>,
    pub(super) poll: Option<Poll>,
    pub(super) workers: Option<At<Vec<usize>>>,
    pub(super) spoof_check: Option<bool>,
    pub(super) sources: Option<At<Vec<Network>>>,
    pub(super) rate_limit: Option<Limits>,
    pub(super) accept_ra: Option<At<bool>>,
    pub(super) flows_max: Option<u32>,
    pub(super) mtu: Option<At<u16>>,
}

/// Reads a whole file. `None`, or findings, if something is wrong with it.
pub(super) fn config(text: &str, findings: &mut Findings) -> Option<Config> {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        findings.add(error.span().unwrap_or(0..0), error.message().trim().replace('\n', ", "));
    }
    if !errors.is_empty() {
        return None;
    }
    let keys = ["log", "stats", "workers", "cpus", "control", "template", "guest"];
    let fields = Fields::new(document.get_ref(), 0..0, String::new(), &keys, findings);
    let log = read_log(&fields, findings);
    let stats = read_path(&fields, "stats", "stats = \"/run/pasted/stats.json\"", findings);
    let workers = read_workers(&fields, findings);
    // What makes this fail is found below as well, where it is in a place that counts.
    let (written, unreadable) = match toml::from_str::<toml::Table>(text) {
        Ok(written) => (written, None),
        Err(error) => (toml::Table::new(), Some(error)),
    };
    let control = read_path(&fields, "control", CONTROL_EXAMPLE, findings);
    let control = control.map(|path| judge_control(&fields, path, findings));
    let templates = read_templates(&fields, &written, findings);
    let drafts = read_guests(&fields, findings)?;
    for draft in &drafts {
        check::within(draft, findings);
    }
    check::between(&drafts, findings);
    if let Some(workers) = &workers {
        check::placed(&drafts, workers.as_ref(), findings);
    }
    if let Some(error) = unreadable.filter(|_| findings.is_empty()) {
        findings.add(error.span().unwrap_or(0..0), error.message().replace('\n', ", "));
    }
    let guests = drafts.into_iter().map(finish).collect::<Option<Vec<_>>>()?;
    Some(Config {
        log: log?,
        stats: stats?,
        workers: workers?,
        guests,
        control: control?,
        templates: templates?,
        document: written,
    })
}

/// The threads that serve. `None` if they are wrong.
fn read_workers(fields: &Fields<'_, '_>, findings: &mut Findings) -> Option<Option<Workers>> {
    const EXAMPLE: &str = "cpus = [2, 3]";
    let count = match fields.get("workers") {
        None => None,
        Some(_) => {
            let count = fields.number("workers", (1, WORKERS_MAX as u32), 1, findings)?;
            Some(At { at: count.at, value: count.value as usize })
        }
    };
    let Some(value) = fields.get("cpus") else {
        return Some(count.map(|count| Workers { count: count.value, cpus: Vec::new() }));
    };
    let Some(array) = value.get_ref().as_array() else {
        fields.wrong_type("cpus", value, EXAMPLE, findings);
        return None;
    };
    let mut cpus = Vec::with_capacity(array.len());
    for value in array {
        let cpu = fields.whole("CPU", value, (0, CPUS_MAX as u32 - 1), EXAMPLE, findings)?;
        let cpu = cpu as usize;
        if cpus.contains(&cpu) {
            let message = format!(
                "CPU {cpu} is given twice: give every worker one of its own, or leave cpus out"
            );
            fields.wrong(&value.span(), message, findings);
            return None;
        }
        cpus.push(cpu);
    }
    let count = count.map_or(cpus.len(), |count| count.value);
    if !(1..=WORKERS_MAX).contains(&count) || cpus.len() != count {
        let message = format!(
            "cpus has {} CPUs for {count} workers: give one for each, for {WORKERS_MAX} at most",
            cpus.len()
        );
        fields.wrong(&value.span(), message, findings);
        return None;
    }
    Some(Some(Workers { count, cpus }))
}

fn read_log(fields: &Fields<'_, '_>, findings: &mut Findings) -> Option<Log> {
    let Some(value) = fields.get("log") else {
        return Some(Log::default());
    };
    let Some(table) = value.get_ref().as_table() else {
        fields.wrong_type("log", value, "[log]", findings);
        return None;
    };
    let log = Fields::new(table, value.span(), "log: ".to_owned(), &["level", "format"], findings);
    let level = log.word(
        "level",
        &[
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ],
        findings,
    );
    let format =
        log.word("format", &[("text", LogFormat::Text), ("json", LogFormat::Json)], findings);
    Some(Log { level: level?, format: format? })
}

fn judge_control(
    fields: &Fields<'_, '_>,
    path: Option<PathBuf>,
    findings: &mut Findings,
) -> Option<PathBuf> {
    let path = path?;
    let len = path.as_os_str().len();
    if len > SOCKET_PATH_LEN_MAX
        && let Some(value) = fields.get("control")
    {
        let message =
            format!("control path is {len} bytes long: use at most {SOCKET_PATH_LEN_MAX}");
        fields.wrong(&value.span(), message, findings);
    }
    Some(path)
}

/// What is a template's own is judged here; what is a guest's, when one comes of it.
fn read_templates(
    fields: &Fields<'_, '_>,
    document: &toml::Table,
    findings: &mut Findings,
) -> Option<Vec<Template>> {
    const EXAMPLE: &str = "a [[template]] table for each interface";
    const KEYS: [&str; 15] = [
        "interface",
        "guests_max",
        "addresses",
        "gateway",
        "accept_ra",
        "vlan",
        "port",
        "region",
        "poll",
        "worker",
        "spoof_check",
        "sources",
        "rate_limit",
        "flows_max",
        "mtu",
    ];
    let Some(value) = fields.get("template") else { return Some(Vec::new()) };
    if fields.get("control").is_none() {
        let message = format!("template is of no use without control: write {CONTROL_EXAMPLE}");
        fields.wrong(&value.span(), message, findings);
    }
    let Some(array) = value.get_ref().as_array() else {
        fields.wrong_type("template", value, EXAMPLE, findings);
        return None;
    };
    let mut templates: Vec<Template> = Vec::with_capacity(array.len());
    for (index, value) in array.iter().enumerate() {
        let Some(table) = value.get_ref().as_table() else {
            fields.wrong_type("template", value, EXAMPLE, findings);
            return None;
        };
        let own = Fields::new(table, value.span(), "template: ".to_owned(), &KEYS, findings);
        let bounds = (1, GUESTS_MAX as u32);
        let guests_max = own.number("guests_max", bounds, template::GUESTS_DEFAULT, findings)?;
        let interface = match own.get("interface") {
            None => None,
            Some(value) => Some(
                own.text("interface", value, "interface = \"ix0\"", findings)?.value.to_owned(),
            ),
        };
        if templates.iter().any(|earlier| earlier.interface == interface) {
            let message = "there is another template for this interface: leave one of them out";
            own.wrong(&value.span(), message.to_owned(), findings);
        }
        let written = document.get("template").and_then(|templates| templates.get(index));
        let mut table = written.and_then(toml::Value::as_table).cloned().unwrap_or_default();
        for key in ["interface", "guests_max"] {
            table.remove(key);
        }
        let guests_max = guests_max.value;
        templates.push(Template { interface, guests_max, made: 0, at: value.span(), table });
    }
    Some(templates)
}

fn read_guests(fields: &Fields<'_, '_>, findings: &mut Findings) -> Option<Vec<Draft>> {
    const EXAMPLE: &str = "a [[guest]] table for each guest";
    if fields.get("guest").is_none() && fields.get("template").is_some() {
        return Some(Vec::new());
    }
    let value = fields.require("guest", EXAMPLE, findings)?;
    let Some(array) = value.get_ref().as_array() else {
        fields.wrong_type("guest", value, EXAMPLE, findings);
        return None;
    };
    if array.is_empty() {
        fields.wrong(&value.span(), format!("there is no guest: write {EXAMPLE}"), findings);
    }
    if array.len() > GUESTS_MAX {
        let message = format!(
            "there are {} guests: split them over several processes of at most {GUESTS_MAX}",
            array.len()
        );
        fields.wrong(&array[GUESTS_MAX].span(), message, findings);
        return None;
    }
    let mut drafts = Vec::with_capacity(array.len());
    for (index, value) in array.iter().enumerate() {
        match value.get_ref().as_table() {
            Some(table) => {
                let control = fields.get("control").is_some();
                drafts.push(read_guest(table, value.span(), index, control, findings));
            }
            None => fields.wrong_type("guest", value, EXAMPLE, findings),
        }
    }
    Some(drafts)
}

fn read_guest(
    table: &DeTable<'_>,
    at: Range<usize>,
    index: usize,
    control: bool,
    findings: &mut Findings,
) -> Draft {
    const KEYS: [&str; 16] = [
        "name",
        "socket",
        "mac",
        "addresses",
        "gateway",
        "accept_ra",
        "vlan",
        "port",
        "region",
        "poll",
        "worker",
        "spoof_check",
        "sources",
        "rate_limit",
        "flows_max",
        "mtu",
    ];
    let name = table.get("name").and_then(|name| name.get_ref().as_str());
    let who = match name.filter(|name| is_name(name)) {
        Some(name) => format!("guest \"{name}\""),
        None => format!("guest {}", index + 1),
    };
    let fields = Fields::new(table, at, format!("{who}: "), &KEYS, findings);
    let name = read_name(&fields, findings);
    let socket = match fields.get("socket") {
        None if control => Some(None),
        _ => fields
            .require("socket", "socket = \"/run/pasted/web1.sock\"", findings)
            .and_then(|value| read_socket(&fields, "socket", value, findings))
            .map(Some),
    };
    let mac = read_mac(&fields, findings);
    let shares_addresses = fields.get("addresses").is_some_and(is_guest);
    let addresses = read_addresses(&fields, findings);
    let gateways = read_gateways(&fields, findings);
    let vlan = read_vlan(&fields, findings);
    let port = read_port(&fields, findings);
    let region = read_region(&fields, findings);
    let poll = read_poll(&fields, findings);
    let workers = read_guest_workers(&fields, findings);
    let spoof_check = read_bool(&fields, "spoof_check", true, findings);
    let sources = read_sources(&fields, findings);
    let rate_limit = read_rate_limit(&fields, findings);
    let accept_ra = read_bool(&fields, "accept_ra", false, findings);
    let flows_max = fields.number("flows_max", (1, FLOWS_MAX), FLOWS_DEFAULT, findings);
    let mtu_bounds = (u32::from(MTU_MIN), u32::from(MTU_MAX));
    let mtu = fields.number("mtu", mtu_bounds, u32::from(MTU_DEFAULT), findings);
    Draft {
        who,
        name,
        socket,
        mac,
        addresses,
        shares_addresses,
        gateways,
        vlan,
        port,
        region,
        poll,
        workers,
        spoof_check: spoof_check.map(|check| check.value),
        sources,
        rate_limit,
        accept_ra,
        flows_max: flows_max.map(|n| n.value),
        // Within its bounds, it fits.
        mtu: mtu.and_then(|n| Some(At { at: n.at, value: u16::try_from(n.value).ok()? })),
    }
}

pub(crate) fn is_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(allowed)
}

fn read_name(fields: &Fields<'_, '_>, findings: &mut Findings) -> Option<At<String>> {
    let name = fields.required_text("name", "name = \"web1\"", findings)?;
    if !is_name(name.value) {
        let message = format!(
            "name {:?} is not possible: use 1 to {NAME_LEN_MAX} of a-z, 0-9 and -",
            name.value
        );
        fields.wrong(&name.at, message, findings);
        return None;
    }
    Some(At { at: name.at, value: name.value.to_owned() })
}

/// A vhost-user socket, by its path or by path and mode.
fn read_socket(
    fields: &Fields<'_, '_>,
    key: &str,
    value: &Spanned<DeValue<'_>>,
    findings: &mut Findings,
) -> Option<At<Socket>> {
    let name = if key == "socket" { "web1" } else { "web1-pmem" };
    let example = format!("{key} = \"/run/pasted/{name}.sock\"");
    let (path, mode) = match value.get_ref().as_table() {
        Some(table) => {
            let who = format!("{}{key}: ", fields.who);
            let inner = Fields::new(table, value.span(), who, &["path", "mode"], findings);
            let path = inner.required_text("path", "path = \"/run/pasted/web1.sock\"", findings);
            let modes = [("server", SocketMode::Server), ("client", SocketMode::Client)];
            (path, inner.word("mode", &modes, findings))
        }
        None => (fields.text(key, value, &example, findings), Some(SocketMode::Server)),
    };
    let (path, mode) = (path?, mode?);
    if path.value.is_empty() || path.value.contains('\0') {
        fields.wrong(&path.at, format!("{key} has no path: write {example}"), findings);
        return None;
    }
    if path.value.len() > SOCKET_PATH_LEN_MAX {
        let message = format!(
            "{key} path is {} bytes long: use at most {SOCKET_PATH_LEN_MAX}",
            path.value.len()
        );
        fields.wrong(&path.at, message, findings);
        return None;
    }
    let socket = Socket { path: PathBuf::from(path.value), mode };
    Some(At { at: path.at, value: socket })
}

fn read_mac(fields: &Fields<'_, '_>, findings: &mut Findings) -> Option<At<Mac>> {
    let text = fields.required_text("mac", "mac = \"52:54:00:00:00:01\"", findings)?;
    match text.value.parse() {
        Ok(mac) => Some(At { at: text.at, value: mac }),
        Err(error) => {
            fields.wrong(&text.at, format!("mac {error}"), findings);
            None
        }
    }
}

/// Whether addresses are those of the guest's kernel.
fn is_guest(value: &Spanned<DeValue<'_>>) -> bool {
    value.get_ref().as_str() == Some("guest")
}

/// None, where they are those of the guest's kernel.
fn read_addresses(fields: &Fields<'_, '_>, findings: &mut Findings) -> Option<At<Vec<At<Prefix>>>> {
    const EXAMPLE: &str = "addresses = [\"10.7.0.2/24\"]";
    const EITHER: &str = "addresses = [\"10.7.0.2/24\"], or \"guest\"";
    let value = fields.require("addresses", EITHER, findings)?;
    if is_guest(value) {
        return Some(At { at: value.span(), value: Vec::new() });
    }
    let Some(array) = value.get_ref().as_array() else {
        fields.wrong_type("addresses", value, EITHER, findings);
        return None;
    };
    if array.is_empty() {
        let message = "addresses is empty: give an IPv4 address, an IPv6 address, or one of each";
        fields.wrong(&value.span(), message, findings);
        return None;
    }
    // Every one is judged, so that a wrong one is not hidden by another.
    let mut addresses = Vec::new();
    for value in array {
        let Some(text) = fields.text("an address", value, EXAMPLE, findings) else {
            continue;
        };
        match text.value.parse::<Prefix>() {
            Ok(prefix) => addresses.push(At { at: text.at, value: prefix }),
            Err(error) => fields.wrong(&text.at, format!("address {error}"), findings),
        }
    }
    (addresses.len() == array.len()).then(|| At { at: value.span(), value: addresses })
}

/// One gateway, or several in an array.
fn read_gateways(fields: &Fields<'_, '_>, findings: &mut Findings) -> Option<Vec<At<IpAddr>>> {
    const EXAMPLE: &str = "gateway = \"10.7.0.1\" or [\"10.7.0.1\", \"fd00:7::1\"]";
    let Some(value) = fields.get("gateway") else {
        return Some(Vec::new());
    };
    let values = match value.get_ref().as_array() {
        Some(array) => array.iter().collect(),
        None => vec![value],
    };
    let mut gateways = Vec::new();
    for value in &values {
        let Some(text) = fields.text("gateway", value, EXAMPLE, findings) else {
            continue;
        };
        match text.value.parse() {
            Ok(gateway) => gateways.push(At { at: text.at, value: gateway }),
            Err(_) => {
                let message = format!("gateway \"{}\" is no address: write {EXAMPLE}", text.value);
                fields.wrong(&text.at, message, findings);
            }
        }
    }
    (gateways.len() == values.len()).then_some(gateways)
}

/// What the guest's kernel may send from: addresses and networks, or "any".
fn read_sources(fields: &Fields<'_, '_>, findings: &mut Findings) -> Option<At<Vec<Network>>> {
    const EXAMPLE: &str = "sources = [\"10.7.0.9\", \"fd00:7::/64\"] or \"any\"";
    let Some(value) = fields.get("sources") else {
        return Some(At { at: fields.at.clone(), value: Vec::new() });
    };
    if value.get_ref().as_str() == Some("any") {
        return Some(At { at: value.span(), value: Network::ANY.to_vec() });
    }
    let Some(array) = value.get_ref().as_array() else {
        fields.wrong_type("sources", value, EXAMPLE, findings);
        return None;
    };
    let mut sources = Vec::new();
    for value in array {
        let Some(text) = fields.text("a source", value, EXAMPLE, findings) else {
            continue;
        };
        match value::network(text.value) {
            Some(network) => sources.push(network),
            None => {
                let message = format!(
                    "source \"{}\" is neither an address nor a network with no bit set behind \
                     its prefix: write {EXAMPLE}",
                    text.value
                );
                fields.wrong(&text.at, message, findings);
            }
        }
    }
    (sources.len() == array.len()).then(|| At { at: value.span(), value: sources })
}

/// Limits of a guest, per second: each that is left out is none.
fn read_rate_limit(fields: &Fields<'_, '_>, findings: &mut Findings) -> Option<Limits> {
    const EXAMPLE: &str = "rate_limit = { tx_packets = 100000, tx_bytes = \"100MiB\" }";
    const KEYS: [&str; 4] = ["tx_packets", "tx_bytes", "rx_packets", "rx_bytes"];
    let Some(value) = fields.get("rate_limit") else {
        return Some(Limits::default());
    };
    let Some(table) = value.get_ref().as_table() else {
        fields.wrong_type("rate_limit", value, EXAMPLE, findings);
        return None;
    };
    let who = format!("{}rate_limit: ", fields.who);
    let inner = Fields::new(table, value.span(), who, &KEYS, findings);
    let mut packets = |key| match inner.get(key) {
        None => Some(None),
        Some(_) => Some(Some(u64::from(inner.number(key, (1, u32::MAX), 1, findings)?.value))),
    };
    let (tx_packets, rx_packets) = (packets("tx_packets"), packets("rx_packets"));
    let mut bytes = |key: &str| {
        let Some(value) = inner.get(key) else {
            return Some(None);
        };
        let example = format!("{key} = \"100MiB\"");
        let text = inner.text(key, value, &example, findings)?;
        let size = value::size(text.value).filter(|size| (1..=RATE_MAX).contains(size));
        if size.is_none() {
            let message = format!(
                "{key} \"{}\" is not possible: write a size of 1 byte to {}, as in {example}",
                text.value,
                value::show_size(RATE_MAX)
            );
            inner.wrong(&text.at, message, findings);
        }
        size.map(Some)
    };
    let (tx_bytes, rx_bytes) = (bytes("tx_bytes"), bytes("rx_bytes"));
    Some(Limits {
        tx: Rate { packets: tx_packets?, bytes: tx_bytes? },
        rx: Rate { packets: rx_packets?, bytes: rx_bytes? },
    })
}

/// The VLAN, if there is one. `None` if it is wrong.
fn read_vlan(fields: &Fields<'_, '_>, findings: &mut Findings) -> Option<Option<u16>> {
    if fields.get("vlan").is_none() {
        return Some(None);
    }
    let vlan = fields.number("vlan", (1, u32::from(VLAN_MAX)), 1, findings)?;
    // Within its bounds, it fits.
    Some(u16::try_from(vlan.value).ok())
}

fn read_port(fields: &Fields<'_, '_>, findings: &mut Findings) -> Option<At<Spec>> {
    let text = fields.required_text("port", "port = \"tap:tap0\"", findings)?;
    match Spec::parse(text.value) {
        Ok(port) => Some(At { at: text.at, value: port }),
        Err(error) => {
            fields.wrong(&text.at, format!("port: {error}"), findings);
            None
        }
    }
}

fn read_region(fields: &Fields<'_, '_>, findings: &mut Findings) -> Option<At<RegionSpec>> {
    const EXAMPLE: &str = "region = { size = \"64MiB\" } or region = \"memory\"";
    let Some(value) = fields.get("region") else {
        return Some(At { at: fields.at.clone(), value: RegionSpec::default() });
    };
    let Some(table) = value.get_ref().as_table() else {
        let text = fields.text("region", value, EXAMPLE, findings)?;
        if text.value != "memory" {
            let message = format!("region \"{}\" is unknown: write {EXAMPLE}", text.value);
            fields.wrong(&text.at, message, findings);
            return None;
        }
        return Some(At { at: text.at, value: RegionSpec::default() });
    };
    let who = format!("{}region: ", fields.who);
    let keys = ["size", "path", "segment", "mirror", "buffer_size", "pmem_socket"];
    let inner = Fields::new(table, value.span(), who, &keys, findings);
    let size = read_region_size(&inner, findings);
    let path = read_path(&inner, "path", "path = \"/dev/shm/web1.region\"", findings);
    let mirror = read_path(&inner, "mirror", "mirror = \"/var/lib/pasted/web1.mirror\"", findings);
    let segment = read_bool(&inner, "segment", false, findings);
    let pmem_socket = match inner.get("pmem_socket") {
        Some(value) => Some(read_socket(&inner, "pmem_socket", value, findings)?.value),
        None => None,
    };
    let bounds = (BUFFER_SIZE_MIN, BUFFER_SIZE_MAX);
    let buffer_size = inner.number("buffer_size", bounds, BUFFER_SIZE_MIN, findings)?;
    if !buffer_size.value.is_power_of_two() {
        let message = format!(
            "buffer_size {} is not possible: use a power of two from {BUFFER_SIZE_MIN} to \
             {BUFFER_SIZE_MAX}",
            buffer_size.value
        );
        inner.wrong(&buffer_size.at, message, findings);
        return None;
    }
    let (path, mirror, segment) = (path?, mirror?, segment?.value);
    let other = [("path", path.is_some()), ("pmem_socket", pmem_socket.is_some())];
    if let Some((key, _)) = other.iter().find(|(_, given)| segment && *given) {
        let message = format!(
            "{key} is not possible with segment = true, which is memory of the VMM's: leave one \
             of them out"
        );
        inner.wrong(&value.span(), message, findings);
        return None;
    }
    if mirror.is_some() && mirror == path {
        let message = "mirror is the region's own path: name another file, or leave it out";
        inner.wrong(&value.span(), message, findings);
        return None;
    }
    let buffer_size = buffer_size.value;
    let region = RegionSpec { size: size?, path, segment, mirror, buffer_size, pmem_socket };
    Some(At { at: value.span(), value: region })
}

/// A file's path that need not be there. `None` if it is wrong.
fn read_path(
    fields: &Fields<'_, '_>,
    key: &str,
    example: &str,
    findings: &mut Findings,
) -> Option<Option<PathBuf>> {
    let Some(value) = fields.get(key) else {
        return Some(None);
    };
    let text = fields.text(key, value, example, findings)?;
    if text.value.is_empty() || text.value.contains('\0') {
        fields.wrong(&text.at, format!("{key} names no file: write {example}"), findings);
        return None;
    }
    Some(Some(PathBuf::from(text.value)))
}

fn read_region_size(fields: &Fields<'_, '_>, findings: &mut Findings) -> Option<u64> {
    const EXAMPLE: &str = "size = \"64MiB\"";
    let text = fields.required_text("size", EXAMPLE, findings)?;
    let Some(size) = value::size(text.value) else {
        let message = format!("size \"{}\" is no size: write {EXAMPLE}", text.value);
        fields.wrong(&text.at, message, findings);
        return None;
    };
    let bounded = (SIZE_MIN..=SIZE_MAX).contains(&size);
    if !bounded || !size.is_multiple_of(SIZE_STEP) {
        let message = format!(
            "size {} is not possible: use a multiple of {} from {} to {}",
            value::show_size(size),
            value::show_size(SIZE_STEP),
            value::show_size(SIZE_MIN),
            value::show_size(SIZE_MAX),
        );
        fields.wrong(&text.at, message, findings);
        return None;
    }
    Some(size)
}

fn read_poll(fields: &Fields<'_, '_>, findings: &mut Findings) -> Option<Poll> {
    let Some(value) = fields.get("poll") else {
        return Some(Poll::For(POLL_DEFAULT));
    };
    let text = fields.text("poll", value, "poll = \"50us\"", findings)?;
    let poll = value::poll(text.value);
    if poll.is_none() {
        let message = format!(
            "poll \"{}\" is not possible: write \"50us\", \"1ms\", \"0\" (at most {}s) or \"always\"",
            text.value,
            POLL_MAX.as_secs()
        );
        fields.wrong(&text.at, message, findings);
    }
    poll
}

/// The worker that a guest is to be served by, or several of them.
fn read_guest_workers(fields: &Fields<'_, '_>, findings: &mut Findings) -> Option<At<Vec<usize>>> {
    const EXAMPLE: &str = "worker = 0 or worker = [0, 1]";
    let Some(value) = fields.get("worker") else {
        return Some(At { at: fields.at.clone(), value: Vec::new() });
    };
    let values = match value.get_ref().as_array() {
        Some(array) => array.iter().collect(),
        None => vec![value],
    };
    let mut workers = Vec::with_capacity(values.len());
    for value in &values {
        let bounds = (0, WORKERS_MAX as u32 - 1);
        let worker = fields.whole("worker", value, bounds, EXAMPLE, findings)? as usize;
        if workers.contains(&worker) {
            let message = format!("worker {worker} is given twice: one serves it no faster");
            fields.wrong(&value.span(), message, findings);
            return None;
        }
        workers.push(worker);
    }
    if !(1..=LANES_MAX).contains(&workers.len()) {
        let count = workers.len();
        let message = format!("worker has {count} workers: give 1 to {LANES_MAX}, or leave it out");
        fields.wrong(&value.span(), message, findings);
        return None;
    }
    Some(At { at: value.span(), value: workers })
}

/// Yes or no, or the default.
fn read_bool(
    fields: &Fields<'_, '_>,
    key: &str,
    default: bool,
    findings: &mut Findings,
) -> Option<At<bool>> {
    let Some(value) = fields.get(key) else {
        return Some(At { at: fields.at.clone(), value: default });
    };
    let Some(yes) = value.get_ref().as_bool() else {
        fields.wrong_type(key, value, &format!("{key} = true or false"), findings);
        return None;
    };
    Some(At { at: value.span(), value: yes })
}

/// The guest, if nothing is missing.
fn finish(draft: Draft) -> Option<Guest> {
    Some(Guest {
        name: draft.name?.value,
        socket: draft.socket?.map(|socket| socket.value),
        mac: draft.mac?.value,
        addresses: draft.addresses?.value.into_iter().map(|prefix| prefix.value).collect(),
        shares_addresses: draft.shares_addresses,
        gateways: draft.gateways?.into_iter().map(|gateway| gateway.value).collect(),
        vlan: draft.vlan?,
        port: draft.port?.value,
        region: draft.region?.value,
        poll: draft.poll?,
        workers: draft.workers?.value,
        spoof_check: draft.spoof_check?,
        sources: draft.sources?.value,
        rate_limit: draft.rate_limit?,
        accept_ra: draft.accept_ra?.value,
        flows_max: draft.flows_max?,
        mtu: draft.mtu?.value,
    })
}
