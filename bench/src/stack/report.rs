//! The result of `paste-bench stack`, for people and for programs.

use std::fmt::Write;

use serde_json::{Value, json};

use super::measure::{Row, Timers};
use super::peer::{REQUEST_LEN, RESPONSE_LEN};
use super::server::BATCH;
use crate::report::{padded, rounded, spread, wrapped};
use crate::row::Spread;
use crate::sys::Machine;

/// All rows, and their conditions.
#[derive(Clone, Debug)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// Rounds of each row.
    pub rounds: u32,
    /// The least that a round lasts.
    pub round_ms: u128,
    /// The rows.
    pub rows: Vec<Row>,
    /// Connections per second: ours, and smoltcp's.
    pub connections_per_second: Option<[Spread; 2]>,
    /// What our timers cost.
    pub timers: Option<Timers>,
    /// Memory of a stack with one flow.
    pub stack_bytes: usize,
}

/// What the figures do not say by themselves.
const NOTES: &[&str] = &[
    "A request is one frame in, with the acknowledgement of the last response, and a response one \
     frame out, with the acknowledgement of the request; both carry timestamps. With software \
     checksums the stacks verify what comes and compute what goes, otherwise neither does.",
    "The peers are the same code for both stacks; they judge every response. They work for a \
     batch at a time, and what that took is measured in its place and taken off; what stands for \
     port and guest or application is in.",
    "smoltcp has one socket for each flow with room for one request and one response, and looks \
     for a segment's socket in all of them. Its application asks only the sockets that have a \
     request.",
    "Our stack's tables and the buffers are on huge pages where the kernel gives them. The stack's \
     bytes per flow are its records alone: payload lies in the region's buffers. One waits for \
     each flow's response to be acknowledged.",
];

impl Report {
    fn described(&self) -> Vec<String> {
        let kind = if self.machine.is_virtual { ", virtual" } else { "" };
        let mut lines = vec![
            format!("{}; {}{kind}; one thread", self.machine.kernel, self.machine.cpu),
            format!(
                "{} rounds of at least {} ms of each row, ours and smoltcp's in turns: median \
                 (least..greatest) of the thread's CPU time",
                self.rounds, self.round_ms
            ),
            format!(
                "requests of {REQUEST_LEN} bytes, responses of {RESPONSE_LEN}, {BATCH} in a batch"
            ),
            format!("a stack with one flow takes {} KiB", self.stack_bytes / 1024),
        ];
        if let Some([ours, smoltcp]) = &self.connections_per_second {
            lines.push(format!(
                "connections per second (accept, one request, close), {BATCH} at once: paste {}, \
                 smoltcp {}",
                spread(ours, 0),
                spread(smoltcp, 0)
            ));
        }
        if let Some(timers) = &self.timers {
            lines.push(format!(
                "{} armed timers: a turn in which none is due takes {:.0} ns; when all ring at once, \
                 {:.0} ns each",
                timers.armed, timers.idle_ns, timers.ring_ns
            ));
        }
        lines
    }

    /// Heads and cells of the table.
    fn cells(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let heads = vec![
            "checksums",
            "flows",
            "order",
            "stack",
            "ns/request",
            "vs smoltcp",
            "peers ns",
            "bytes/flow",
        ];
        let cells = |row: &Row| {
            let peer = self.rows.iter().find(|other| {
                other.stack != row.stack
                    && (other.flows, other.order, other.offload)
                        == (row.flows, row.order, row.offload)
            });
            let ratio = peer.filter(|_| row.stack == "paste").map_or_else(String::new, |peer| {
                let ratio = peer.ns.median / row.ns.median;
                let lost = if ratio < 1.0 { " LOST" } else { "" };
                format!("{ratio:.1}x{lost}")
            });
            vec![
                if row.offload { "device" } else { "stack" }.to_owned(),
                row.flows.to_string(),
                row.order.name().to_owned(),
                row.stack.to_owned(),
                spread(&row.ns, 0),
                ratio,
                format!("{:.0}", row.peer_ns.median),
                format!("{:.0}", row.bytes_per_flow),
            ]
        };
        (heads, self.rows.iter().map(cells).collect())
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

    /// The result as a section of a document.
    pub fn markdown(&self) -> String {
        let (heads, rows) = self.cells();
        let mut out = String::new();
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

    /// The rows for programs: those with software checksums, and apart from them
    /// those without.
    pub fn json(&self) -> Value {
        let rows = |offload: bool| {
            let rows = self.rows.iter().filter(|row| row.offload == offload);
            rows.map(row_json).collect::<Vec<_>>()
        };
        let connections = self.connections_per_second.as_ref().map(|[ours, smoltcp]| {
            json!({ "paste": rounded(ours.median), "smoltcp": rounded(smoltcp.median) })
        });
        let timers = self.timers.map(|timers| {
            json!({
                "armed": timers.armed,
                "ns_per_idle_turn": rounded(timers.idle_ns),
                "ns_per_ring": rounded(timers.ring_ns),
            })
        });
        json!({
            "conditions": {
                "kernel": self.machine.kernel,
                "cpu": self.machine.cpu,
                "virtual": self.machine.is_virtual,
                "rounds": self.rounds,
                "batch": BATCH,
                "request_bytes": REQUEST_LEN,
                "response_bytes": RESPONSE_LEN,
            },
            "rows": rows(false),
            "rows_with_offload": rows(true),
            "connections_per_second": connections,
            "timers": timers,
        })
    }
}

fn row_json(row: &Row) -> Value {
    json!({
        "stack": row.stack,
        "flows": row.flows,
        "order": row.order.name(),
        "ns_per_request": rounded(row.ns.median),
        "peer_ns": rounded(row.peer_ns.median),
        "bytes_per_flow": rounded(row.bytes_per_flow),
    })
}
