//! The result of `paste-bench frames`, for people and for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use super::Backend;
use crate::peers::frames::Direction;
use crate::report::{padded, rounded, spread, wrapped};
use crate::row::Spread;
use crate::sys::Machine;

/// Within this of DPDK's own is the aim.
const AIM: f64 = 0.8;

/// Under what conditions was measured.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// The machine.
    pub machine: Machine,
    /// The guest's core.
    pub guest_core: usize,
    /// The backend's.
    pub backend_core: usize,
    /// Seconds of a round.
    pub seconds: u64,
    /// Rounds of each row.
    pub rounds: u32,
    /// Processes that wanted a core when it began.
    pub load: f64,
    /// CPU time that the machine was not given meanwhile, in percent.
    pub steal_percent: f64,
    /// The arguments.
    pub command: String,
}

/// One row of the result.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Whose device.
    pub backend: Backend,
    /// Which way.
    pub direction: Direction,
    /// Bytes of a frame.
    pub frame_bytes: usize,
    /// Millions of frames per second.
    pub mpps: Spread,
}

/// All rows, and their conditions.
#[derive(Clone, Debug)]
pub struct Report {
    /// The conditions.
    pub conditions: Conditions,
    /// The rows.
    pub rows: Vec<Row>,
}

/// What the figures do not say by themselves.
const NOTES: [&str; 2] = [
    "The guest is DPDK's testpmd on net_virtio_user, one queue pair, rings of 256, which counts \
     frames for both backends. `dpdk` is testpmd on net_vhost: it makes frames (rx), takes them \
     (tx), or sends them back (loop). `pasted` is our device as it ships, with spoof_check, and \
     behind it a port in memory that has as many frames as are taken, takes all, or sends back as \
     many as came.",
    "In a loop, 224 frames are under way, and a frame counts once for its way there and back. Both \
     backends and the guest poll always; who is not measured is held still.",
];

impl Report {
    fn vs_dpdk(&self, row: &Row) -> Option<f64> {
        let is_it = |other: &&Row| {
            (other.backend, other.direction, other.frame_bytes)
                == (Backend::Dpdk, row.direction, row.frame_bytes)
        };
        let peer = self.rows.iter().find(is_it).filter(|_| row.backend == Backend::Pasted)?;
        (peer.mpps.median > 0.0).then(|| row.mpps.median / peer.mpps.median)
    }

    fn cells(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let heads = vec!["direction", "bytes", "backend", "Mpps", "vs dpdk", "remarks"];
        let cells = |row: &Row| {
            let ratio = self.vs_dpdk(row);
            let remark = match ratio {
                Some(ratio) if ratio < AIM => "LOST: below 80 % of DPDK",
                Some(ratio) if ratio < 1.0 => "slower",
                _ => "",
            };
            vec![
                row.direction.name().to_owned(),
                row.frame_bytes.to_string(),
                row.backend.name().to_owned(),
                spread(&row.mpps, 2),
                ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}x")),
                remark.to_owned(),
            ]
        };
        (heads, self.rows.iter().map(cells).collect())
    }

    fn described(&self) -> Vec<String> {
        let Conditions {
            machine,
            guest_core,
            backend_core,
            seconds,
            rounds,
            load,
            steal_percent,
            ..
        } = &self.conditions;
        let kind = if machine.is_virtual { ", virtual" } else { "" };
        vec![
            format!("{}; {}{kind}", machine.kernel, machine.cpu),
            format!(
                "guest on core {guest_core}, backend on core {backend_core}; {steal_percent:.1} % \
                 stolen; load {load:.1} at the beginning"
            ),
            format!(
                "{rounds} rounds of {seconds} s of each backend, in turns: median \
                 (least..greatest)"
            ),
        ]
    }

    /// The result for a terminal.
    pub fn table(&self) -> String {
        let (heads, rows) = self.cells();
        let mut out = padded(&heads, &rows);
        out.push('\n');
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
        let (heads, rows) = self.cells();
        let mut out = format!(
            "Written by\n\n```sh\ncargo run --release -p paste-bench -- {}\n```\n\n",
            self.conditions.command
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
        out
    }

    /// The result for programs: one object, on one line.
    pub fn json(&self) -> Value {
        let Conditions { machine, .. } = &self.conditions;
        let row = |row: &Row| {
            json!({
                "backend": row.backend.name(),
                "direction": row.direction.name(),
                "frame_bytes": row.frame_bytes,
                "mpps": rounded(row.mpps.median),
                "mpps_min": rounded(row.mpps.min),
                "mpps_max": rounded(row.mpps.max),
                "vs_dpdk": self.vs_dpdk(row).map(rounded),
            })
        };
        json!({
            "conditions": {
                "kernel": machine.kernel,
                "cpu": machine.cpu,
                "virtual": machine.is_virtual,
                "guest_core": self.conditions.guest_core,
                "backend_core": self.conditions.backend_core,
                "seconds": self.conditions.seconds,
                "rounds": self.conditions.rounds,
                "load_before": rounded(self.conditions.load),
                "steal_percent": rounded(self.conditions.steal_percent),
                "command": self.conditions.command,
            },
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_compared_with_dpdks() {
        let row = |backend, frame_bytes, mpps| Row {
            backend,
            direction: Direction::Rx,
            frame_bytes,
            mpps: Spread::of(&[mpps]),
        };
        let report = Report {
            conditions: Conditions {
                machine: Machine { kernel: "K".into(), cpu: "C".into(), is_virtual: true },
                guest_core: 0,
                backend_core: 1,
                seconds: 1,
                rounds: 5,
                load: 0.0,
                steal_percent: 0.0,
                command: "frames".into(),
            },
            rows: vec![
                row(Backend::Pasted, 64, 5.0),
                row(Backend::Dpdk, 64, 10.0),
                row(Backend::Pasted, 1514, 9.0),
                row(Backend::Dpdk, 1514, 10.0),
            ],
        };
        let json = report.json();
        assert_eq!(json["rows"][0]["vs_dpdk"], 0.5);
        assert_eq!(json["rows"][1]["backend"], "dpdk");
        for key in ["mpps", "frame_bytes"] {
            assert!(json["rows"][3][key].is_number(), "{key}");
        }
        for text in [report.table(), report.markdown()] {
            assert!(text.contains("LOST: below 80 % of DPDK") && text.contains("slower"), "{text}");
        }
    }
}
