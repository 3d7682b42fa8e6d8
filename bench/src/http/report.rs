//! The result of `paste-bench http`, for people and for programs.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::contender::{Kind, PortKind};
use super::measure::Cores;
use super::row::{Load, PERCENTILES, Row};
use super::server::REQUEST_LEN;
use crate::network::{MTU, QUEUE_LEN};
use crate::report::{padded, rounded, spread, wrapped};
use crate::sys::Machine;

/// From this many connections on, less CPU time per request is the aim.
const CPU_AIM_CONNECTIONS: usize = 64;
/// A client that is busier than this has next to nothing left.
const CLIENT_LIMIT_PERCENT: f64 = 90.0;
/// More than this was taken from the machine: the row is not to be trusted.
const STEAL_LIMIT_PERCENT: f64 = 1.0;
/// Neither client nor server used so much of the cores' busy time: other
/// programs ran, and the row is not to be trusted.
const OTHER_LIMIT_PERCENT: f64 = 5.0;

/// Under what conditions was measured.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// The machine.
    pub machine: Machine,
    /// The congestion control of the kernel's TCP.
    pub congestion_control: String,
    /// Who ran where.
    pub cores: Cores,
    /// Seconds of a round.
    pub seconds: f64,
    /// Rounds of each row.
    pub rounds: u32,
    /// Processes that wanted a core when it began.
    pub load: f64,
    /// The arguments.
    pub command: String,
}

/// All rows, and their conditions.
#[derive(Clone, Debug)]
pub struct Report {
    /// The conditions.
    pub conditions: Conditions,
    /// The rows.
    pub rows: Vec<Row>,
    /// Whether a backend is called by its port too.
    pub names_port: bool,
}

/// What the figures do not say by themselves.
pub const NOTES: [&str; 5] = [
    "`client own` is pasted's own stack, one thread on a core of its own, which judges every \
     byte. Where `client busy` is near 100 %, the client's core is the limit and not the server. \
     The kernel receives for a server on the client's core, within the client's system calls: \
     compare CPU time over both cores.",
    "CPU/request is the busy time of all cores by the kernel's accounting, other programs \
     included, divided by right responses. Polling counts as busy, so with few connections it is \
     mostly polling: it then follows requests/s. `per server core` is right responses per second \
     in which the server's cores were busy.",
    "Latency is from when a request was queued, or in an open loop was due, to having taken its \
     whole response from the device; the median of rounds. Servers that are not measured are held \
     still, and driven for 0.1 s, uncounted, when they go on.",
    "`null` answers every segment and remembers nothing: with the same client and device nobody \
     can be faster. nginx always blocks, as it has no way to poll, and its responses are longer \
     by 60 bytes or so. io_uring is a server with multishot accept and receive and provided \
     buffers, on the ring of our sockets engine.",
    "The split is of another round, with clocks around the backend's port and stack: `port` is the \
     device with its system calls and copies, `stack` our TCP, or for sockets io_uring and the \
     kernel's TCP; `ring` the rest of the backend, with the turn itself, what it polls in vain, and \
     the switch of a shared port; `application` the guests' processes. Calls for one buffer are \
     timed once in 16. `speed` is what the clocks leave of the rate.",
];

/// What is to be said of the device of a port.
pub fn about(port: PortKind) -> &'static str {
    match port {
        PortKind::Tap => {
            "One TAP device and one bridge, without packet filter and spanning tree, before all \
             servers. Behind the bridge is the kernel's TCP at once; every frame for or from a \
             server with a device of its own crosses one TAP device more, with a system call and a \
             copy each. Checksums are left to the devices, so nobody computes any."
        }
        PortKind::Xdp => {
            "A pair of veth devices for each server, all alike; the client by AF_XDP, copy mode, on \
             one end. On the other end is the kernel's TCP, or the server by AF_XDP, copy mode. The \
             client and the servers by AF_XDP compute checksums and verify them; the kernel verifies \
             what comes and leaves what it sends to the device, where the client takes it as it is."
        }
        PortKind::Sockets => {
            "One TAP device and one bridge before the kernel's TCP, which all servers are on."
        }
        PortKind::Memory => {
            "No device: the clients are in the backend, on its core, and write each request into \
             its buffer, as a NIC would. The guest is on the other core. Checksums are left to the \
             device."
        }
    }
}

/// A title, heads, and rows of as many cells.
pub type Table = (&'static str, Vec<&'static str>, Vec<Vec<String>>);

impl Report {
    /// Whether every response was right.
    pub fn is_right(&self) -> bool {
        self.rows.iter().all(|row| row.errors == 0 && row.rps.min > 0.0)
    }

    /// As the server of a row is called in it.
    fn name(&self, row: &Row) -> String {
        let contender = row.cell.contender;
        if self.names_port { contender.name() } else { contender.kind.name().to_owned() }
    }

    /// The row of another server that was measured in turns with this one.
    fn beside(&self, row: &Row, kind: Kind) -> Option<&Row> {
        let is_it = |other: &&Row| {
            let blocks = other.cell.contender.waiting == row.cell.contender.waiting
                || !row.cell.contender.kind.can_poll();
            other.cell.contender.kind == kind && blocks && other.cell.is_beside(&row.cell)
        };
        self.rows.iter().find(is_it)
    }

    /// How often as many requests as epoll's.
    fn vs_epoll(&self, row: &Row) -> Option<f64> {
        let peer = self.beside(row, Kind::Epoll).filter(|_| !row.is_epoll())?;
        (peer.rps.median > 0.0).then(|| row.rps.median / peer.rps.median)
    }

    /// What is to be said of one row: what limits it, and where we lose.
    fn remarks(&self, row: &Row) -> Vec<String> {
        let mut remarks = Vec::new();
        let is_ours = row.cell.contender.kind == Kind::Pasted;
        for kind in [Kind::Epoll, Kind::IoUring].into_iter().filter(|_| is_ours) {
            let Some(peer) = self.beside(row, kind) else { continue };
            let name = kind.name();
            if row.cell.load != Load::Closed {
                if row.latency_us[2].median > peer.latency_us[2].median {
                    remarks.push(format!("LOST: p99 above that of {name}"));
                }
                continue;
            }
            if row.rps.median < peer.rps.median {
                remarks.push(format!("LOST: fewer requests/s than {name}"));
            }
            if row.cpu_us.median > peer.cpu_us.median {
                let many = row.cell.connections >= CPU_AIM_CONNECTIONS;
                let aim = if many { "LOST" } else { "worse" };
                remarks.push(format!("{aim}: more CPU/request than {name}"));
            }
        }
        if row.errors > 0 {
            remarks.push(format!("{} ERRORS", row.errors));
        }
        if row.unsent > 0 {
            remarks.push(format!("{} requests due and not sent", row.unsent));
        }
        if row.client_busy_percent.is_some_and(|busy| busy > CLIENT_LIMIT_PERCENT) {
            remarks.push("limited by the client's core".to_owned());
        }
        if row.retransmits > 0 {
            remarks.push(format!("{} segments sent again", row.retransmits));
        }
        let whole = row.cpu_us.median.max(f64::MIN_POSITIVE);
        let other_percent = row.other_us().map_or(0.0, |other| 100.0 * other / whole);
        if other_percent > OTHER_LIMIT_PERCENT {
            remarks.push(format!("disturbed: {other_percent:.0} % of CPU time by others"));
        }
        if row.steal_percent > STEAL_LIMIT_PERCENT {
            remarks.push(format!("{:.1} % stolen", row.steal_percent));
        }
        remarks
    }

    fn steal_percent(&self) -> f64 {
        self.rows.iter().map(|row| row.steal_percent).fold(0.0, f64::max)
    }

    /// The ports that were measured, in order.
    pub fn ports(&self) -> Vec<PortKind> {
        let mut ports = Vec::new();
        for row in &self.rows {
            if !ports.contains(&row.cell.contender.port) {
                ports.push(row.cell.contender.port);
            }
        }
        ports
    }

    /// The conditions, a line each.
    pub fn described(&self) -> Vec<String> {
        let Conditions { machine, cores, seconds, rounds, load, congestion_control, .. } =
            &self.conditions;
        let kind = if machine.is_virtual { ", virtual" } else { "" };
        vec![
            format!("{}; {}; {} cores{kind}", machine.kernel, machine.cpu, cores.count),
            format!(
                "client on core {}, servers on core {}; at most {:.1} % of a round stolen; load \
                 {load:.1} at the beginning",
                cores.client,
                cores.server,
                self.steal_percent(),
            ),
            format!(
                "{rounds} rounds of {seconds} s of each server, in turns: median (least..greatest)"
            ),
            format!(
                "requests of {REQUEST_LEN} bytes, bodies of {} bytes; MTU {MTU}; the kernel's TCP \
                 with {congestion_control}; TAP queues of {QUEUE_LEN} frames",
                pasted::demo::http::BODY.len(),
            ),
        ]
    }

    /// Heads and cells of the closed loops on a port.
    fn closed(&self, port: PortKind) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let heads = vec![
            "connections",
            "server",
            "waiting",
            "requests/s",
            "vs epoll",
            "per server core",
            "CPU/request us",
            "client core us",
            "server us",
            "p50 us",
            "p99 us",
            "client busy",
            "batch",
            "remarks",
        ];
        let cells = |row: &Row| {
            let contender = &row.cell.contender;
            let parts: Vec<String> = contender
                .parts()
                .iter()
                .zip(&row.server_us)
                .take(2)
                .map(|(part, us)| format!("{us:.2} {part}"))
                .collect();
            vec![
                row.cell.connections.to_string(),
                if self.names_port { contender.label() } else { self.name(row) },
                contender.waiting.name(),
                spread(&row.rps, 0),
                self.vs_epoll(row).map_or_else(String::new, |ratio| format!("{ratio:.2}x")),
                format!("{:.0}", row.rps_per_core.median),
                spread(&row.cpu_us, 2),
                format!("{:.2}", row.client_core_us),
                parts.join(" + "),
                format!("{:.0}", row.latency_us[0].median),
                format!("{:.0}", row.latency_us[2].median),
                row.client_busy_percent.map_or_else(String::new, |busy| format!("{busy:.0} %")),
                format!("{:.1}", row.batch_mean),
                self.remarks(row).join("; "),
            ]
        };
        let is_it = |row: &&Row| row.cell.contender.port == port && row.cell.load == Load::Closed;
        (heads, self.rows.iter().filter(is_it).map(cells).collect())
    }

    /// Heads and cells of the open loops on a port.
    fn open(&self, port: PortKind) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let heads = vec![
            "connections",
            "load",
            "server",
            "waiting",
            "due/s",
            "requests/s",
            "p50 us",
            "p90 us",
            "p99 us",
            "p99.9 us",
            "CPU/request us",
            "remarks",
        ];
        let cells = |row: &Row| {
            let Load::Open { rps, percent } = row.cell.load else { return Vec::new() };
            let contender = &row.cell.contender;
            let mut cells = vec![
                row.cell.connections.to_string(),
                format!("{percent} %"),
                contender.label(),
                contender.waiting.name(),
                format!("{rps:.0}"),
                format!("{:.0}", row.rps.median),
            ];
            cells.extend(row.latency_us.iter().map(|latency| spread(latency, 0)));
            cells.push(format!("{:.2}", row.cpu_us.median));
            cells.push(self.remarks(row).join("; "));
            cells
        };
        let is_it = |row: &&Row| row.cell.contender.port == port && row.cell.load != Load::Closed;
        (heads, self.rows.iter().filter(is_it).map(cells).collect())
    }

    /// Heads and cells of where the time goes on a port.
    fn splits(&self, port: PortKind) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let heads = vec![
            "connections",
            "server",
            "waiting",
            "port us",
            "stack us",
            "ring us",
            "application us",
            "speed",
        ];
        let cells = |row: &Row| {
            let split = row.split?;
            let contender = &row.cell.contender;
            let mut cells =
                vec![row.cell.connections.to_string(), contender.label(), contender.waiting.name()];
            let parts = [split.port, split.stack, split.ring, split.application];
            cells.extend(parts.map(|us| format!("{us:.2}")));
            cells.push(format!("{:.0} %", 100.0 * split.speed));
            Some(cells)
        };
        let rows = self.rows.iter().filter(|row| row.cell.contender.port == port);
        (heads, rows.filter_map(cells).collect())
    }

    /// The backend's counters that tell where its time goes.
    fn per_request(&self, port: PortKind) -> (Vec<&'static str>, Vec<Vec<String>>) {
        const SHOWN: [&str; 8] = [
            "port.syscalls",
            "worker.turns",
            "worker.busy_turns",
            "worker.sleeps",
            "worker.kicks",
            "device.signals",
            "channel.batches_out",
            "stack.segments_out",
        ];
        let is_it = |row: &&Row| {
            row.cell.contender.port == port
                && row.cell.contender.kind == Kind::Pasted
                && row.cell.load == Load::Closed
        };
        let heads = ["connections", "server", "waiting"].into_iter().chain(SHOWN).collect();
        let cells = |row: &Row| {
            let value =
                |name: &&str| format!("{:.3}", row.counters.get(*name).copied().unwrap_or(0.0));
            let contender = &row.cell.contender;
            [row.cell.connections.to_string(), contender.label(), contender.waiting.name()]
                .into_iter()
                .chain(SHOWN.iter().map(value))
                .collect()
        };
        (heads, self.rows.iter().filter(is_it).map(cells).collect())
    }

    /// The tables of a port that have rows, with their titles.
    pub fn tables(&self, port: PortKind) -> Vec<Table> {
        [
            ("Closed loop", self.closed(port)),
            ("Open loop", self.open(port)),
            ("Where the server's time goes", self.splits(port)),
            ("What the backend did per request", self.per_request(port)),
        ]
        .into_iter()
        .filter(|(_, (_, rows))| !rows.is_empty())
        .map(|(title, (heads, rows))| (title, heads, rows))
        .collect()
    }

    /// The result for a terminal.
    pub fn table(&self) -> String {
        let mut out = String::new();
        for port in self.ports() {
            let _ = writeln!(out, "=== port {}\n", port.name());
            for (title, heads, rows) in self.tables(port) {
                let _ = writeln!(out, "{title}\n\n{}", padded(&heads, &rows));
            }
            let _ = writeln!(out, "{}\n", wrapped(about(port), 100));
        }
        for text in self.described() {
            let _ = writeln!(out, "{text}");
        }
        for note in NOTES {
            let _ = writeln!(out, "\n{}", wrapped(note, 100));
        }
        out
    }

    /// The result as a section of `bench/RESULTS.md`.
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "Written by\n\n```sh\ncargo run --release -p paste-bench -- {}\n```\n\n",
            self.conditions.command
        );
        for text in self.described() {
            let _ = writeln!(out, "- {text}");
        }
        for port in self.ports() {
            let _ = writeln!(out, "\n### Port {}\n\n{}", port.name(), wrapped(about(port), 80));
            for (title, heads, rows) in self.tables(port) {
                let _ = writeln!(out, "\n{title}:\n\n| {} |", heads.join(" | "));
                let _ = writeln!(out, "|{}", " --- |".repeat(heads.len()));
                for row in &rows {
                    let _ = writeln!(out, "| {} |", row.join(" | "));
                }
            }
        }
        for note in NOTES {
            let _ = writeln!(out, "\n{}", wrapped(note, 80));
        }
        out
    }

    /// The result for programs: one object, on one line.
    pub fn json(&self) -> Value {
        let Conditions { machine, cores, .. } = &self.conditions;
        let ports: Map<String, Value> = self
            .ports()
            .into_iter()
            .map(|port| (port.name().to_owned(), json!(wrapped(about(port), usize::MAX))))
            .collect();
        json!({
            "conditions": {
                "kernel": machine.kernel,
                "cpu": machine.cpu,
                "virtual": machine.is_virtual,
                "cores": cores.count,
                "client_core": cores.client,
                "server_core": cores.server,
                "seconds": self.conditions.seconds,
                "rounds": self.conditions.rounds,
                "load_before": rounded(self.conditions.load),
                "ports": ports,
                "mtu": MTU,
                "kernel_congestion_control": self.conditions.congestion_control,
                "queue_frames": QUEUE_LEN,
                "request_bytes": REQUEST_LEN,
                "body_bytes": pasted::demo::http::BODY.len(),
                "steal_percent_max": rounded(self.steal_percent()),
                "command": self.conditions.command,
            },
            "rows": self.rows.iter().map(|row| self.row_json(row)).collect::<Vec<_>>(),
        })
    }

    fn row_json(&self, row: &Row) -> Value {
        let contender = &row.cell.contender;
        let mut parts: Map<String, Value> = Map::new();
        for (part, us) in contender.parts().iter().zip(&row.server_us) {
            // Guests together.
            let before = parts.get(*part).and_then(Value::as_f64).unwrap_or(0.0);
            parts.insert((*part).to_owned(), json!(rounded(before + us)));
        }
        let counters: Map<String, Value> =
            row.counters.iter().map(|(name, &v)| (name.clone(), json!(rounded(v)))).collect();
        let (offered, load_percent) = match row.cell.load {
            Load::Closed => (None, None),
            Load::Open { rps, percent } => (Some(rounded(rps)), Some(percent)),
        };
        let split = row.split.map(|split| {
            json!({
                "port_us": rounded(split.port),
                "stack_us": rounded(split.stack),
                "ring_us": rounded(split.ring),
                "application_us": rounded(split.application),
                "speed": rounded(split.speed),
            })
        });
        let mut value = json!({
            "server": self.name(row),
            "port": contender.port.name(),
            "device": row.cell.device,
            "client": row.cell.client,
            "waiting": contender.waiting.name(),
            "connections": row.cell.connections,
            "loop": if offered.is_none() { "closed" } else { "open" },
            "offered_rps": offered,
            "load_percent": load_percent,
            "guests": contender.shape.guests,
            "batch": contender.shape.batch,
            "spoof_check": contender.shape.spoof_check,
            "guest_core": if contender.shape.own_core { "own" } else { "shared" },
            "rps": rounded(row.rps.median),
            "rps_min": rounded(row.rps.min),
            "rps_max": rounded(row.rps.max),
            "rps_per_server_core": rounded(row.rps_per_core.median),
            "cpu_us_per_request": rounded(row.cpu_us.median),
            "cpu_us_per_request_min": rounded(row.cpu_us.min),
            "cpu_us_per_request_max": rounded(row.cpu_us.max),
            "client_core_us_per_request": rounded(row.client_core_us),
            "server_core_us_per_request": rounded(row.server_core_us),
            "server_us_per_request": parts,
            "server_kernel_us_per_request": rounded(row.system_us),
            "server_user_us_per_request": rounded(row.user_us),
            "other_us_per_request": row.other_us().map(rounded),
            "vs_epoll": self.vs_epoll(row).map(rounded),
            "client_busy_percent": row.client_busy_percent.map(rounded),
            "errors": row.errors,
            "unsent": row.unsent,
            "retransmits": row.retransmits,
            "steal_percent": rounded(row.steal_percent),
            "batch_mean": rounded(row.batch_mean),
            "split": split,
            "counters_per_request": counters,
            "remarks": self.remarks(row),
        });
        let known = row.latency_us.iter().zip(PERCENTILES).filter(|(us, _)| us.median.is_finite());
        for (latency, percentile) in known {
            let name = format!("p{}_us", percentile.to_string().replace('.', "_"));
            value[format!("{name}_min")] = json!(rounded(latency.min));
            value[format!("{name}_max")] = json!(rounded(latency.max));
            value[name] = json!(rounded(latency.median));
        }
        value
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::row::tests::{cell, round};
    use super::super::row::{Round, Split};
    use super::super::server::Counted;
    use super::*;

    fn row(kind: Kind, connections: usize, load: Load, requests: u64) -> Row {
        // Nobody but client and server on the cores, and nothing lost.
        let mut round = Round { retransmits: 0, client_ns: 600_000, ..round(requests, 100, 1000) };
        round.server[0].total_ns = if kind == Kind::Pasted { 300_000 } else { 400_000 };
        let rounds = [round];
        Row::new(cell(kind, connections, load), &rounds, &Counted::default())
    }

    /// A report with a row of each kind.
    pub fn report() -> Report {
        let open = Load::Open { rps: 700.0, percent: 70 };
        let mut rows = vec![
            row(Kind::Pasted, 64, Load::Closed, 200),
            row(Kind::Epoll, 64, Load::Closed, 100),
            row(Kind::Nginx, 64, Load::Closed, 50),
            row(Kind::Pasted, 64, open, 70),
            row(Kind::Epoll, 64, open, 70),
            row(Kind::Pasted, 256, Load::Closed, 100),
            row(Kind::Epoll, 256, Load::Closed, 200),
        ];
        rows[0].split =
            Some(Split { port: 2.0, stack: 1.0, ring: 0.5, application: 0.25, speed: 0.9 });
        Report {
            conditions: Conditions {
                machine: Machine {
                    kernel: "Linux 6".to_owned(),
                    cpu: "<CPU> & co".to_owned(),
                    is_virtual: true,
                },
                congestion_control: "cubic".to_owned(),
                cores: Cores { client: 0, server: 1, guest: None, count: 2 },
                seconds: 2.0,
                rounds: 5,
                load: 0.5,
                command: "http --port tap".to_owned(),
            },
            rows,
            names_port: true,
        }
    }

    #[test]
    fn rows_for_programs_have_what_they_look_for() {
        let report = report();
        let value = report.json();
        let rows = value["rows"].as_array().unwrap();
        assert_eq!(rows[0]["server"], "pasted:tap");
        assert_eq!(rows[1]["server"], "epoll");
        for row in rows {
            assert!(row["waiting"] == "poll" || row["server"] == "nginx");
            for key in [
                "connections",
                "rps",
                "rps_per_server_core",
                "cpu_us_per_request",
                "p50_us",
                "p99_us",
                "p99_9_us",
            ] {
                assert!(row[key].is_number(), "{key} in {row}");
            }
        }
        assert_eq!((rows[0]["vs_epoll"].as_f64(), rows[1]["vs_epoll"].as_f64()), (Some(2.0), None));
        assert_eq!(
            (&rows[3]["loop"], rows[3]["load_percent"].as_u64()),
            (&json!("open"), Some(70))
        );
        assert_eq!(rows[0]["split"]["port_us"], 2.0);
        assert_eq!(value["conditions"]["command"], "http --port tap");
        let quick = Report { names_port: false, ..report };
        assert_eq!(quick.json()["rows"][0]["server"], "pasted");
    }

    #[test]
    fn what_is_lost_is_said() {
        let report = report();
        assert!(
            report.remarks(&report.rows[0]).is_empty(),
            "{:?}",
            report.remarks(&report.rows[0])
        );
        let lost = report.remarks(&report.rows[5]).join("; ");
        assert!(lost.contains("LOST: fewer requests/s than epoll"), "{lost}");
        assert!(lost.contains("LOST: more CPU/request than epoll"), "{lost}");
        let markdown = report.markdown();
        assert!(
            markdown.contains("| pasted:tap | poll | 2000 (2000..2000) | 2.00x |"),
            "{markdown}"
        );
        assert!(markdown.contains("Open loop") && markdown.contains("port us"));
        assert!(report.table().contains("=== port tap"));
    }

    #[test]
    fn rows_that_others_disturbed_are_marked() {
        let mut report = report();
        let is_marked = |report: &Report| {
            report.remarks(&report.rows[0]).iter().any(|remark| remark.starts_with("disturbed"))
        };
        assert!(!is_marked(&report));
        report.rows[0].client_us *= 0.5;
        assert!(is_marked(&report));
    }

    #[test]
    fn every_line_of_the_document_s_tables_has_as_many_cells() {
        let text = report().markdown();
        let mut lines = text.lines().peekable();
        let mut tables = 0;
        while let Some(line) = lines.next() {
            if !line.starts_with('|') {
                continue;
            }
            tables += 1;
            let count = line.matches('|').count();
            while let Some(next) = lines.next_if(|next| next.starts_with('|')) {
                assert_eq!(next.matches('|').count(), count, "{next}");
            }
        }
        assert_eq!(tables, 4);
    }

    #[test]
    fn a_wrong_response_is_a_failure() {
        let mut report = report();
        assert!(report.is_right());
        report.rows[0].errors = 1;
        assert!(!report.is_right());
        report.rows[0] = Row::new(
            report.rows[0].cell.clone(),
            &[Round { elapsed_ns: 1, ..Round::default() }],
            &Counted::default(),
        );
        assert!(!report.is_right(), "no response at all");
    }

    #[test]
    fn what_a_client_does_not_tell_is_left_out() {
        let mut report = report();
        report.rows[0].latency_us[3].median = f64::NAN;
        let json = report.json();
        assert!(json["rows"][0]["p99_9_us"].is_null());
        assert!(json["rows"][0]["p99_us"].is_number());
    }
}
