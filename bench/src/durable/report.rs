//! The result of `paste-bench durable`, for people and for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use super::bed::{Devices, Kind};
use super::http::report as http;
use super::load::{KEYS, Op};
use super::row::Row;
use super::server::{POLL_US, REGION_SIZE};
use crate::report::{padded, rounded, spread, wrapped};
use crate::sys::Machine;

/// The aim: SET on a mirror beside Redis that always syncs, at these connections.
const AIM: f64 = 3.0;
const AIM_CONNECTIONS: u32 = 64;
/// A client's core that is busier than this has next to nothing left.
const CLIENT_LIMIT_PERCENT: f64 = 90.0;
/// More than this was taken from the machine: the row is not to be trusted.
const STEAL_LIMIT_PERCENT: f64 = 1.0;

/// Under what conditions was measured.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// The machine.
    pub machine: Machine,
    /// What Redis calls itself.
    pub redis: String,
    /// The congestion control of the kernel's TCP.
    pub congestion_control: String,
    /// The client's core.
    pub client_core: usize,
    /// The servers' core.
    pub server_core: usize,
    /// Seconds that a round is planned for.
    pub seconds: f64,
    /// Rounds of each row.
    pub rounds: u32,
    /// What is between the bridge and what is ours.
    pub port: Devices,
    /// Processes that wanted a core before we began.
    pub load: f64,
    /// Idle cores do not sleep.
    pub awake: bool,
    /// The options, as they were given.
    pub arguments: String,
}

/// All rows, and their conditions.
#[derive(Clone, Debug)]
pub struct Report {
    /// The conditions.
    pub conditions: Conditions,
    /// The rows of keys and values, in the order of their measurement.
    pub rows: Vec<Row>,
    /// Those of logged requests.
    pub logged: http::Rows,
}

/// What the figures do not say by themselves, whatever the devices.
const NOTES: [&str; 4] = [
    "SET and GET: the client is redis-benchmark over the kernel's TCP, or our own over our stack, on a \
     core of its own, which is the limit where `client core` is near 100 %. All servers share the \
     other core with all their threads; the one that is not measured is held still. Our server \
     polls before it sleeps, Redis cannot.",
    "`kv:mirror` and `redis:always` answer a write when fdatasync has returned; `redis:everysec` \
     may lose a second, `redis:no` more, and `kv:memory` everything that the machine loses. Mirror \
     and logs are on one file system, which is synced between rounds, so that nobody pays for what \
     another has left: `redis:no` and `redis:everysec` do not pay for theirs in full either.",
    "`written` is what was written to the disk per byte of value, by the disk's own count, with the \
     file system's journal and all that was due at the end of a round; of other programs as well. \
     `SET/sync` is over the life of a server, filling included. Redis's log is not rewritten \
     during a measurement.",
    "redis-benchmark chooses keys at random of those that were stored before; each connection of \
     our own client asks for keys of its own again and again, and judges every answer. Every key's \
     value is judged byte by byte after the last round. Rows with LOST are slower than the Redis that promises as much.",
];

/// The way of keys and values.
fn way(devices: Devices) -> &'static str {
    match devices {
        Devices::Xdp => {
            "All are reached over one bridge, each behind a veth pair of it, and so is our own \
             client. Of a Redis the pair's other end is the kernel's TCP in a network of its own, \
             with segments of up to 64 KiB in one piece; our server and our client have theirs by \
             AF_XDP: frames of 1500 bytes, each copied by the kernel. What a server receives goes \
             through the bridge on the client's core. The kernel's TCP leaves checksums to the \
             devices; ours computes them."
        }
        Devices::Tap => {
            "All are reached over one bridge; our own client is behind a TAP device of it. A Redis \
             is behind it by a veth pair, whose other end is the kernel's TCP in a network of its \
             own: no system call per frame, segments of up to 64 KiB in one piece, and its receiving \
             is done on the client's core. Our server is behind a TAP device: a system call and a \
             copy for each frame of 1500 bytes, on the servers' core. Both leave checksums to the \
             devices."
        }
    }
}

impl Report {
    /// Whether every value was right.
    pub fn is_right(&self) -> bool {
        let is_right = |row: &Row| row.errors == 0 && row.rps.min > 0.0;
        self.rows.iter().all(is_right) && self.logged.is_right()
    }

    /// How many times the rate of the Redis that promises as much.
    fn ratio(&self, row: &Row) -> Option<(Kind, f64)> {
        let peer = row.kind.peer()?;
        let other = self.rows.iter().find(|other| other.kind == peer && row.is_beside(other))?;
        (other.rps.median > 0.0).then(|| (peer, row.rps.median / other.rps.median))
    }

    fn remarks(&self, row: &Row) -> Vec<String> {
        let mut remarks = Vec::new();
        if let Some((peer, ratio)) = self.ratio(row) {
            let has_aim = row.kind == Kind::KvMirror
                && row.op == Op::Set
                && row.cell.connections == AIM_CONNECTIONS;
            if ratio < 1.0 {
                remarks.push(format!("LOST: slower than {}", peer.name()));
            } else if has_aim && ratio < AIM {
                remarks.push(format!("below the aim of {AIM}x"));
            }
        }
        if row.errors > 0 {
            remarks.push(format!("{} WRONG VALUES", row.errors));
        }
        remarks.extend(shared_remarks(row.client_busy_percent, row.steal_percent));
        remarks
    }

    /// The conditions, a line each.
    fn described(&self) -> Vec<String> {
        let Conditions { machine, redis, congestion_control, .. } = &self.conditions;
        let Conditions { client_core, server_core, seconds, rounds, load, awake, .. } =
            &self.conditions;
        let idle = if *awake { "are kept awake" } else { "may sleep, and be slow to wake" };
        let kind = if machine.is_virtual { ", virtual" } else { "" };
        vec![
            format!("{}; {}{kind}; {redis}", machine.kernel, machine.cpu),
            format!(
                "client on core {client_core}, servers on core {server_core}; idle cores {idle}; \
                 {load:.1} other processes wanted a core before"
            ),
            format!(
                "{rounds} rounds of about {seconds} s of each server, in turns: median \
                 (least..greatest); latencies are medians of the rounds' percentiles"
            ),
            format!(
                "{KEYS} keys; regions of {REGION_SIZE}; our server polls for {POLL_US} us, then \
                 sleeps; the kernel's TCP with {congestion_control}"
            ),
        ]
    }

    /// Heads and cells of the table.
    fn cells(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let heads = vec![
            "client",
            "op",
            "bytes",
            "connections",
            "pipeline",
            "server",
            "requests/s",
            "vs Redis",
            "p50 us",
            "p99 us",
            "written",
            "SET/sync",
            "client core",
            "remarks",
        ];
        let cells = |row: &Row| {
            let ratio = self.ratio(row);
            vec![
                row.driver.name().to_owned(),
                row.op.name().to_owned(),
                row.cell.value_bytes.to_string(),
                row.cell.connections.to_string(),
                row.cell.pipeline.to_string(),
                row.kind.name().to_owned(),
                spread(&row.rps, 0),
                ratio.map_or_else(String::new, |(_, ratio)| format!("{ratio:.2}x")),
                format!("{:.0}", row.p50_us),
                format!("{:.0}", row.p99_us),
                optional(row.amplification),
                optional(row.writes_per_sync),
                format!("{:.0} %", row.client_busy_percent),
                self.remarks(row).join("; "),
            ]
        };
        (heads, self.rows.iter().map(cells).collect())
    }

    /// The tables that have rows.
    fn tables(&self) -> impl Iterator<Item = (Vec<&'static str>, Vec<Vec<String>>)> {
        [self.cells(), self.logged.cells()].into_iter().filter(|(_, rows)| !rows.is_empty())
    }

    /// What is to be said of these tables.
    fn notes(&self) -> Vec<&'static str> {
        let mut notes = Vec::new();
        if !self.rows.is_empty() {
            notes.push(way(self.conditions.port));
            notes.extend(NOTES);
        }
        if !self.logged.0.is_empty() {
            notes.extend(http::notes(self.conditions.port));
        }
        notes
    }

    /// The result for a terminal.
    pub fn table(&self) -> String {
        let mut out = String::new();
        for (heads, rows) in self.tables() {
            let _ = writeln!(out, "{}", padded(&heads, &rows));
        }
        for text in self.described() {
            let _ = writeln!(out, "{text}");
        }
        for note in self.notes() {
            let _ = writeln!(out, "\n{}", wrapped(note, 100));
        }
        out
    }

    /// The result as a section of `bench/RESULTS.md`.
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "## Durable writes\n\nWritten by\n\n```sh\ncargo run --release -p paste-bench -- \
             durable {} --markdown\n```\n\n",
            self.conditions.arguments
        );
        for text in self.described() {
            let _ = writeln!(out, "- {text}");
        }
        for (heads, rows) in self.tables() {
            let _ = writeln!(out, "\n| {} |\n|{}", heads.join(" | "), " --- |".repeat(heads.len()));
            for row in &rows {
                let _ = writeln!(out, "| {} |", row.join(" | "));
            }
        }
        for note in self.notes() {
            let _ = writeln!(out, "\n{}", wrapped(note, 80));
        }
        out
    }

    /// The result for programs: one object, on one line.
    pub fn json(&self) -> Value {
        let Conditions { machine, .. } = &self.conditions;
        json!({
            "conditions": {
                "kernel": machine.kernel,
                "cpu": machine.cpu,
                "virtual": machine.is_virtual,
                "redis": self.conditions.redis,
                "client_core": self.conditions.client_core,
                "server_core": self.conditions.server_core,
                "seconds": self.conditions.seconds,
                "rounds": self.conditions.rounds,
                "idle_cores_awake": self.conditions.awake,
                "load_before": self.conditions.load,
                "keys": KEYS,
                "region": REGION_SIZE,
                "poll_us": POLL_US,
                "port": self.conditions.port.kind().name(),
                "kernel_congestion_control": self.conditions.congestion_control,
            },
            "rows": self
                .rows
                .iter()
                .map(|row| self.row_json(row))
                .chain(self.logged.json())
                .collect::<Vec<_>>(),
        })
    }

    fn row_json(&self, row: &Row) -> Value {
        json!({
            "server": row.kind.name(),
            "op": row.op.name(),
            "value_bytes": row.cell.value_bytes,
            "connections": row.cell.connections,
            "pipeline": row.cell.pipeline,
            "client": row.driver.name(),
            "rps": rounded(row.rps.median),
            "rps_min": rounded(row.rps.min),
            "rps_max": rounded(row.rps.max),
            "p50_us": rounded(row.p50_us),
            "p99_us": rounded(row.p99_us),
            "written_per_value_byte": row.amplification.map(rounded),
            "writes_per_sync": row.writes_per_sync.map(rounded),
            "vs_redis": self.ratio(row).map(|(_, ratio)| rounded(ratio)),
            "errors": row.errors,
            "client_core_busy_percent": rounded(row.client_busy_percent),
            "steal_percent": rounded(row.steal_percent),
            "remarks": self.remarks(row),
        })
    }
}

/// What is to be said of a row of either kind.
pub fn shared_remarks(client_busy_percent: f64, steal_percent: f64) -> Vec<String> {
    let mut remarks = Vec::new();
    if client_busy_percent > CLIENT_LIMIT_PERCENT {
        remarks.push("client's core full".to_owned());
    }
    if steal_percent > STEAL_LIMIT_PERCENT {
        remarks.push(format!("{steal_percent:.1} % stolen"));
    }
    remarks
}

/// A cell of what not every row has.
pub fn optional(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| format!("{value:.1}"))
}

#[cfg(test)]
mod tests {
    use super::super::http::report::tests::rows;
    use super::super::row::tests::row;
    use super::*;

    fn report() -> Report {
        let machine = Machine { kernel: "K 1".into(), cpu: "C".into(), is_virtual: true };
        Report {
            conditions: Conditions {
                machine,
                redis: "Redis 7".into(),
                congestion_control: "cubic".into(),
                client_core: 0,
                server_core: 1,
                seconds: 0.5,
                rounds: 3,
                port: Devices::Xdp,
                load: 2.5,
                awake: true,
                arguments: "--quick".into(),
            },
            rows: vec![
                row(Kind::KvMirror, Op::Set, 400.0),
                row(Kind::RedisAlways, Op::Set, 100.0),
                row(Kind::KvMemory, Op::Set, 90.0),
                row(Kind::RedisNo, Op::Set, 100.0),
                row(Kind::KvMirror, Op::Get, 200.0),
                row(Kind::RedisAlways, Op::Get, 100.0),
            ],
            logged: rows(),
        }
    }

    #[test]
    fn the_object_has_what_readers_look_for() {
        let object = report().json();
        let row = &object["rows"][0];
        assert_eq!((row["server"].as_str(), row["op"].as_str()), (Some("kv:mirror"), Some("SET")));
        for key in ["value_bytes", "connections", "pipeline", "rps", "p99_us"] {
            assert!(row[key].is_number(), "{key}");
        }
        assert_eq!((row["rps"].as_f64(), row["vs_redis"].as_f64()), (Some(400.0), Some(4.0)));
        assert_eq!(row["written_per_value_byte"].as_f64(), Some(2.0));
        assert!(object["rows"][1]["vs_redis"].is_null());
    }

    #[test]
    fn rows_that_we_lose_or_that_miss_the_aim_are_marked() {
        let mut report = report();
        assert!(report.remarks(&report.rows[0]).is_empty());
        assert_eq!(report.remarks(&report.rows[2]), ["LOST: slower than redis:no"]);
        assert!(report.remarks(&report.rows[3]).is_empty());
        assert!(report.remarks(&report.rows[4]).is_empty());
        report.rows[0].rps.median = 299.0;
        assert_eq!(report.remarks(&report.rows[0]), ["below the aim of 3x"]);
        for text in [report.table(), report.markdown()] {
            assert!(text.contains("LOST: slower than redis:no") && text.contains("0.90x"));
        }
    }

    #[test]
    fn a_wrong_value_is_no_result() {
        let mut report = report();
        assert!(report.is_right());
        report.rows[1].errors = 2;
        assert!(!report.is_right());
        assert!(report.table().contains("2 WRONG VALUES"));
    }

    #[test]
    fn every_line_of_the_document_s_table_has_as_many_cells() {
        let mut report = report();
        let whole = report.markdown();
        assert!(whole.contains("| SET | 64 |") && whole.contains("| POST | 1024 | mirror |"));
        let counts = |text: &str| -> Vec<usize> {
            let lines = text.lines().filter(|line| line.starts_with('|'));
            lines.map(|line| line.matches('|').count()).collect()
        };
        report.rows.clear();
        let logged = counts(&report.markdown());
        assert_eq!((logged.len(), counts(&whole).len()), (8, 16));
        assert!(logged.iter().all(|&count| count == logged[0]), "{logged:?}");
        let kept = &counts(&whole)[..8];
        assert!(kept.iter().all(|&count| count == kept[0]), "{kept:?}");
    }
}
