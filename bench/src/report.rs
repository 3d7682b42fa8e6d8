//! The result of `paste-bench quick`, for people and for programs.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::network::{MTU, QUEUE_LEN};
use crate::row::{Row, Spread};
use crate::server::{Kind, REQUEST_LEN};
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
    /// Cores that this process may use.
    pub cores: usize,
    /// The client's core.
    pub client_core: usize,
    /// The servers' core.
    pub server_core: usize,
    /// The polling time in us; `None`: always.
    pub poll_us: Option<u64>,
    /// Seconds of a round.
    pub seconds: u64,
    /// Rounds of each row.
    pub rounds: u32,
}

/// All rows, and their conditions.
#[derive(Clone, Debug)]
pub struct Report {
    /// The conditions.
    pub conditions: Conditions,
    /// The rows: for each number of connections one of each server.
    pub rows: Vec<Row>,
}

/// What the figures do not say by themselves.
const NOTES: &[&str] = &[
    "Both servers are reached from one client by one TAP device and one bridge (without packet \
     filter and spanning tree). Behind the bridge \
     the epoll server has its kernel's TCP at once; every frame for or from pasted crosses one TAP \
     device more, with a system call and a copy each, which epoll does not pay.",
    "The client is pasted's own stack, one thread on a core of its own, one system call per frame. \
     Where `client busy` is near 100 %, the client's core is the limit and not the server. For \
     epoll, the server's kernel does its receiving on the client's core, within the client's \
     system calls: compare CPU time over both cores.",
    "CPU/request is the busy time of all cores by the kernel's accounting, other programs \
     included, divided by right responses. Polling counts as busy, so with few connections it is \
     mostly polling: it then follows requests/s.",
    "Checksums are left to the devices on both ways, so nobody computes any; segments are one \
     frame each. Latency is from queueing a request to having taken its whole response from the \
     device. The server that is not measured is held still.",
];

impl Report {
    /// Whether every response was right.
    pub fn is_right(&self) -> bool {
        self.rows.iter().all(|row| row.errors == 0 && row.rps.min > 0.0)
    }

    /// What is to be said of one row: what limits it, and where we lose.
    fn remarks(&self, row: &Row) -> Vec<String> {
        let mut remarks = Vec::new();
        let peer = self
            .rows
            .iter()
            .find(|other| other.kind == Kind::Epoll && other.connections == row.connections);
        if let (Kind::Pasted, Some(peer)) = (row.kind, peer) {
            if row.rps.median < peer.rps.median {
                remarks.push("LOST: fewer requests/s than epoll".to_owned());
            }
            if row.cpu_us.median > peer.cpu_us.median {
                let aim = if row.connections >= CPU_AIM_CONNECTIONS { "LOST" } else { "worse" };
                remarks.push(format!("{aim}: more CPU/request than epoll"));
            }
        }
        if row.errors > 0 {
            remarks.push(format!("{} ERRORS", row.errors));
        }
        if row.client_busy_percent > CLIENT_LIMIT_PERCENT {
            remarks.push("limited by the client's core".to_owned());
        }
        if row.retransmits > 0 {
            remarks.push(format!("{} segments sent again", row.retransmits));
        }
        let other_percent = 100.0 * row.other_us() / row.cpu_us.median.max(f64::MIN_POSITIVE);
        if other_percent > OTHER_LIMIT_PERCENT {
            remarks.push(format!("disturbed: {other_percent:.0} % of CPU time by others"));
        }
        if row.steal_percent > STEAL_LIMIT_PERCENT {
            remarks.push(format!("{:.1} % stolen", row.steal_percent));
        }
        remarks
    }

    /// The conditions, a line each.
    fn described(&self) -> Vec<String> {
        let Conditions {
            machine, cores, client_core, server_core, poll_us, seconds, rounds, ..
        } = &self.conditions;
        let poll = match poll_us {
            None => "all poll always".to_owned(),
            Some(us) => format!("all poll for {us} us, then sleep"),
        };
        let kind = if machine.is_virtual { ", virtual" } else { "" };
        let steal = self.rows.iter().map(|row| row.steal_percent).fold(0.0, f64::max);
        vec![
            format!("{}; {}; {cores} cores{kind}", machine.kernel, machine.cpu),
            format!(
                "client on core {client_core}, servers on core {server_core}; {poll}; at most \
                 {steal:.1} % of a round stolen"
            ),
            format!(
                "{rounds} rounds of {seconds} s of each server, in turns: median (least..greatest); \
                 latency over all rounds"
            ),
            format!(
                "requests of {REQUEST_LEN} bytes, bodies of 64 bytes, every byte judged; TAP with \
                 checksum offload, MTU {MTU}, queues of {QUEUE_LEN} frames; the kernel's TCP with {}",
                self.conditions.congestion_control
            ),
        ]
    }

    /// Heads and cells of the table.
    fn cells(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let heads = vec![
            "connections",
            "server",
            "requests/s",
            "vs epoll",
            "CPU/request us",
            "client us",
            "server us",
            "other us",
            "client busy",
            "p50 us",
            "p99 us",
            "batch",
            "remarks",
        ];
        let rows = self.rows.iter().map(|row| {
            let parts: Vec<String> = row
                .kind
                .parts()
                .iter()
                .zip(&row.server_us)
                .map(|(part, us)| format!("{us:.2} {part}"))
                .collect();
            let ratio = self
                .rows
                .iter()
                .find(|other| other.kind == Kind::Epoll && other.connections == row.connections)
                .filter(|peer| row.kind != Kind::Epoll && peer.rps.median > 0.0)
                .map_or_else(String::new, |peer| {
                    format!("{:.2}x", row.rps.median / peer.rps.median)
                });
            vec![
                row.connections.to_string(),
                row.kind.name().to_owned(),
                spread(&row.rps, 0),
                ratio,
                spread(&row.cpu_us, 2),
                format!("{:.2}", row.client_us),
                parts.join(" + "),
                format!("{:.2}", row.other_us()),
                format!("{:.0} %", row.client_busy_percent),
                format!("{:.0}", row.p50_us),
                format!("{:.0}", row.p99_us),
                format!("{:.1}", row.batch_mean),
                self.remarks(row).join("; "),
            ]
        });
        (heads, rows.collect())
    }

    /// The result for a terminal.
    pub fn table(&self) -> String {
        let (heads, rows) = self.cells();
        let mut out = padded(&heads, &rows);
        let _ = writeln!(out);
        for text in self.described() {
            let _ = writeln!(out, "{text}");
        }
        for note in NOTES {
            let _ = writeln!(out, "\n{}", wrapped(note, 100));
        }
        out
    }

    /// The result as a document: what `bench/RESULTS.md` is.
    pub fn markdown(&self) -> String {
        let (heads, rows) = self.cells();
        let Conditions { poll_us, seconds, rounds, .. } = &self.conditions;
        let poll = poll_us.map_or_else(|| "always".to_owned(), |us| us.to_string());
        let mut counts: Vec<String> = Vec::new();
        for row in &self.rows {
            let count = row.connections.to_string();
            if !counts.contains(&count) {
                counts.push(count);
            }
        }
        let mut out = String::from("# Results\n\n## pasted and epoll on a TAP device\n\n");
        let _ = writeln!(
            out,
            "Written by\n\n```sh\ncargo run --release -p paste-bench -- quick --seconds {seconds} \
             --rounds {rounds} \\\n    --connections {} --poll-us {poll} --markdown\n```\n",
            counts.join(",")
        );
        for text in self.described() {
            let _ = writeln!(out, "- {text}");
        }
        let _ = writeln!(out, "\n| {} |\n|{}", heads.join(" | "), " --- |".repeat(heads.len()));
        for row in &rows {
            let _ = writeln!(out, "| {} |", row.join(" | "));
        }
        for note in NOTES {
            let _ = writeln!(out, "\n{}", wrapped(note, 80));
        }
        let _ = writeln!(out, "\n### What the backend did per request\n");
        let (heads, rows) = self.per_request();
        let _ = writeln!(out, "| {} |\n|{}", heads.join(" | "), " --- |".repeat(heads.len()));
        for row in rows {
            let _ = writeln!(out, "| {} |", row.join(" | "));
        }
        out
    }

    /// The backend's counters that tell where its time goes.
    fn per_request(&self) -> (Vec<String>, Vec<Vec<String>>) {
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
        let pasted = self.rows.iter().filter(|row| row.kind == Kind::Pasted);
        let heads = ["connections"].into_iter().chain(SHOWN).map(str::to_owned).collect();
        let cells = |row: &Row| {
            let value =
                |name: &&str| format!("{:.3}", row.counters.get(*name).copied().unwrap_or(0.0));
            [row.connections.to_string()].into_iter().chain(SHOWN.iter().map(value)).collect()
        };
        (heads, pasted.map(cells).collect())
    }

    /// The result for programs: one object, on one line.
    pub fn json(&self) -> Value {
        let Conditions { machine, poll_us, .. } = &self.conditions;
        let steal = self.rows.iter().map(|row| row.steal_percent).fold(0.0, f64::max);
        json!({
            "conditions": {
                "kernel": machine.kernel,
                "cpu": machine.cpu,
                "virtual": machine.is_virtual,
                "cores": self.conditions.cores,
                "client_core": self.conditions.client_core,
                "server_core": self.conditions.server_core,
                "poll_us": poll_us.map_or_else(|| json!("always"), |us| json!(us)),
                "seconds": self.conditions.seconds,
                "rounds": self.conditions.rounds,
                "device": "tap",
                "way": { "pasted": "tap, bridge, tap", "epoll": "tap, bridge, kernel" },
                "mtu": MTU,
                "offloads": ["checksum"],
                "kernel_congestion_control": self.conditions.congestion_control,
                "queue_frames": QUEUE_LEN,
                "request_bytes": REQUEST_LEN,
                "body_bytes": pasted::demo::http::BODY.len(),
                "client": "own stack on a TAP device",
                "steal_percent_max": rounded(steal),
            },
            "rows": self.rows.iter().map(|row| self.row_json(row)).collect::<Vec<_>>(),
        })
    }

    fn row_json(&self, row: &Row) -> Value {
        let parts: Map<String, Value> = row
            .kind
            .parts()
            .iter()
            .zip(&row.server_us)
            .map(|(&part, &us)| (part.to_owned(), json!(rounded(us))))
            .collect();
        let counters: Map<String, Value> =
            row.counters.iter().map(|(name, &v)| (name.clone(), json!(rounded(v)))).collect();
        json!({
            "server": row.kind.name(),
            "connections": row.connections,
            "rps": rounded(row.rps.median),
            "rps_min": rounded(row.rps.min),
            "rps_max": rounded(row.rps.max),
            "cpu_us_per_request": rounded(row.cpu_us.median),
            "cpu_us_per_request_min": rounded(row.cpu_us.min),
            "cpu_us_per_request_max": rounded(row.cpu_us.max),
            "client_us_per_request": rounded(row.client_us),
            "server_us_per_request": parts,
            "other_us_per_request": rounded(row.other_us()),
            "client_busy_percent": rounded(row.client_busy_percent),
            "p50_us": rounded(row.p50_us),
            "p99_us": rounded(row.p99_us),
            "errors": row.errors,
            "retransmits": row.retransmits,
            "steal_percent": rounded(row.steal_percent),
            "batch_mean": rounded(row.batch_mean),
            "counters_per_request": counters,
            "remarks": self.remarks(row),
        })
    }
}

/// A table for a terminal, its columns aligned.
pub(crate) fn padded(heads: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0).max(heads[column].len())
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let mut out = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        let _ = writeln!(out, "{}", padded.join("  ").trim_end());
    };
    line(&mut heads.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    out
}

pub(crate) fn spread(s: &Spread, digits: usize) -> String {
    format!("{:.digits$} ({:.digits$}..{:.digits$})", s.median, s.min, s.max)
}

/// To five digits behind the point: more are noise.
pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1e5).round() / 1e5
}

/// Breaks a text into lines of at most `width` characters.
pub(crate) fn wrapped(text: &str, width: usize) -> String {
    let mut out = String::new();
    let mut column = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        if column > 0 && column + 1 + word.len() > width {
            out.push('\n');
            column = 0;
        } else if column > 0 {
            out.push(' ');
            column += 1;
        }
        out.push_str(word);
        column += word.len();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Round;
    use crate::server::Counted;

    fn report() -> Report {
        let round = |requests: u64, busy_us: u64| {
            let mut round = Round { busy_ns: busy_us * 1000, ..Round::default() };
            for _ in 0..requests {
                round.stretch.sample.record(20_000);
            }
            round.stretch.sample.elapsed_ns = 1_000_000_000;
            round.server_ns = vec![1000, 2000];
            round
        };
        let row = |kind, connections, requests, busy_us| {
            Row::new(kind, connections, &[round(requests, busy_us)], &Counted::default())
        };
        Report {
            conditions: Conditions {
                machine: Machine { kernel: "K 1".into(), cpu: "C".into(), is_virtual: true },
                congestion_control: "cubic".into(),
                cores: 2,
                client_core: 0,
                server_core: 1,
                poll_us: Some(50),
                seconds: 1,
                rounds: 5,
            },
            rows: vec![
                row(Kind::Pasted, 1, 100, 100),
                row(Kind::Epoll, 1, 50, 200),
                row(Kind::Pasted, 64, 100, 900),
                row(Kind::Epoll, 64, 200, 200),
            ],
        }
    }

    #[test]
    fn the_object_has_what_readers_look_for() {
        let object = report().json();
        assert!(!object.to_string().contains('\n'));
        for key in ["kernel", "cpu", "cores", "poll_us", "seconds", "rounds", "device", "mtu"] {
            assert!(object["conditions"].get(key).is_some(), "{key}");
        }
        let rows = object["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 4);
        for row in rows {
            for key in [
                "connections",
                "rps",
                "rps_min",
                "rps_max",
                "cpu_us_per_request",
                "p50_us",
                "p99_us",
                "errors",
            ] {
                assert!(row[key].is_number(), "{key}");
            }
        }
        assert_eq!(
            (rows[0]["server"].as_str(), rows[1]["server"].as_str()),
            (Some("pasted"), Some("epoll"))
        );
        assert_eq!(
            (rows[0]["rps"].as_f64(), rows[3]["cpu_us_per_request"].as_f64()),
            (Some(100.0), Some(1.0))
        );
        let always =
            Report { conditions: Conditions { poll_us: None, ..report().conditions }, ..report() };
        assert_eq!(always.json()["conditions"]["poll_us"], "always");
    }

    #[test]
    fn rows_that_we_lose_are_marked() {
        let report = report();
        assert!(report.remarks(&report.rows[0]).iter().all(|remark| !remark.starts_with("LOST")));
        let lost = report.remarks(&report.rows[2]);
        assert_eq!(lost.iter().filter(|remark| remark.starts_with("LOST")).count(), 2, "{lost:?}");
        for text in [report.table(), report.markdown()] {
            assert!(text.contains("LOST: fewer requests/s than epoll"));
            assert!(text.contains("0.50x"));
        }
        assert!(report.remarks(&report.rows[3]).iter().all(|remark| !remark.starts_with("LOST")));
    }

    #[test]
    fn rows_that_others_disturbed_are_marked() {
        let mut report = report();
        let is_marked = |report: &Report| {
            report.remarks(&report.rows[0]).iter().any(|remark| remark.starts_with("disturbed"))
        };
        report.rows[0].client_us = 0.97;
        report.rows[0].server_us = vec![0.0, 0.0];
        assert!(!is_marked(&report));
        report.rows[0].client_us = 0.9;
        assert!(is_marked(&report));
    }

    #[test]
    fn an_error_is_no_result() {
        let mut report = report();
        assert!(report.is_right());
        report.rows[1].errors = 3;
        assert!(!report.is_right());
        assert!(report.table().contains("3 ERRORS"));
    }

    #[test]
    fn every_line_of_the_document_s_tables_has_as_many_cells() {
        let text = report().markdown();
        let counts = |lines: Vec<&str>| -> Vec<usize> {
            lines.iter().map(|line| line.matches('|').count()).collect()
        };
        let tables: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        let (first, second) = tables.split_at(6);
        for table in [first, second] {
            let counts = counts(table.to_vec());
            assert!(counts.iter().all(|&count| count == counts[0]), "{counts:?}");
        }
        assert!(text.contains("--seconds 1 --rounds 5"));
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrapped("aa bb cc", 5), "aa bb\ncc");
        assert_eq!(wrapped("longer than", 3), "longer\nthan");
        assert_eq!(wrapped("", 3), "");
    }
}
