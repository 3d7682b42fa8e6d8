//! What the demo says at the end: a table for people, an object for programs,
//! and the limits of the comparison in words.

use std::fmt::Write;

use serde_json::{Value, json};

use super::measure::Figures;
use super::sample::{median, range};

/// Who copies payload on the way of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The kernel, between a TAP device and the process that has it open; whole
    /// frames, headers included.
    Port,
    /// The stack port.
    Stack,
    /// The vhost device, between ring and region.
    Ring,
    /// The guest driver and the application.
    Guest,
    /// The kernel, between a socket and the server.
    Socket,
}

impl Part {
    /// Its row in the table.
    fn label(self) -> &'static str {
        match self {
            Part::Port => "TAP devices (kernel), frames",
            Part::Stack => "stack",
            Part::Ring => "vhost ring",
            Part::Guest => "guest driver and application",
            Part::Socket => "server's sockets (kernel)",
        }
    }

    /// Its key in the object.
    fn key(self) -> &'static str {
        match self {
            Part::Port => "port",
            Part::Stack => "stack",
            Part::Ring => "vhost_ring",
            Part::Guest => "guest",
            Part::Socket => "socket",
        }
    }
}

/// One column of the table.
#[derive(Clone, Debug, Default)]
pub struct Column {
    /// Its heading.
    pub name: &'static str,
    /// The figures.
    pub figures: Figures,
    /// Names of the serving processes, as in [`Figures::server_us`].
    pub servers: Vec<&'static str>,
    /// Requests that one wait brought, on average.
    pub batch_mean: f64,
    /// Payload bytes that each part copied per request.
    pub copies: Vec<(Part, f64)>,
}

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// pasted, and then its peers: through TAP and relay, and through veth; or through the
    /// loopback device.
    pub columns: Vec<Column>,
    /// Times that the guest was killed, started again and served again.
    pub guest_restarts: u64,
    /// Connections that this broke.
    pub killed_connections: u64,
    /// From the kill until every connection was served again, in ms.
    pub recovery_ms: f64,
    /// The circumstances, by name.
    pub conditions: Vec<(&'static str, Value)>,
    /// What the reader must know beside the figures.
    pub notes: Vec<String>,
    /// What went wrong first, if anything did.
    pub first_fault: Option<String>,
}

/// Width of the table's first column, and of the others.
const LABEL_WIDTH: usize = 34;
const COLUMN_WIDTH: usize = 17;

impl Report {
    /// Whether every response was right and the guest came back.
    pub fn is_good(&self) -> bool {
        let right = |c: &Column| c.figures.errors == 0 && c.figures.requests > 0;
        !self.columns.is_empty() && self.columns.iter().all(right) && self.guest_restarts > 0
    }

    /// The table, with its notes.
    pub fn table(&self) -> String {
        let mut text = String::new();
        self.row(&mut text, "", |c| c.name.to_owned());
        self.row(&mut text, "requests", |c| c.figures.requests.to_string());
        self.row(&mut text, "errors", |c| c.figures.errors.to_string());
        self.row(&mut text, "requests/s, median of rounds", |c| {
            format!("{:.0}", median(&c.figures.rps))
        });
        self.row(&mut text, "  least to most", |c| {
            let (least, most) = range(&c.figures.rps);
            format!("{least:.0}-{most:.0}")
        });
        self.row(&mut text, "latency p50, us", |c| format!("{:.0}", c.figures.p50_us));
        self.row(&mut text, "latency p99, us", |c| format!("{:.0}", c.figures.p99_us));
        self.row(&mut text, "mean batch", |c| format!("{:.1}", c.batch_mean));
        self.row(&mut text, "CPU per request, all cores, us", |c| {
            format!("{:.2}", c.figures.cpu_us)
        });
        self.row(&mut text, "  of it, the client's process", |c| {
            format!("{:.2}", c.figures.client_us)
        });
        for (name, cells) in self
            .parts(|c| c.servers.iter().copied().zip(c.figures.server_us.iter().copied()).collect())
        {
            put_row(&mut text, &format!("  of it, {name}"), &cells, 2);
        }
        self.row(&mut text, "client's process busy, % of a core", |c| {
            format!("{:.0}", c.figures.client_busy_percent)
        });
        self.row(&mut text, "CPU of others, %, worst round", |c| {
            format!("{:.0}", c.figures.other_percent)
        });
        text.push_str("payload bytes copied per request\n");
        for (name, cells) in
            self.parts(|c| c.copies.iter().map(|(part, n)| (part.label(), *n)).collect())
        {
            put_row(&mut text, &format!("  {name}"), &cells, 0);
        }
        let _ = writeln!(
            text,
            "\nguest killed and started again: {} time(s); {} connections were reset by that and \
             came back, all served again after {:.0} ms; the backend went on",
            self.guest_restarts, self.killed_connections, self.recovery_ms
        );
        for note in &self.notes {
            let _ = writeln!(text, "note: {note}");
        }
        if let Some(fault) = &self.first_fault {
            let _ = writeln!(text, "first error: {fault}");
        }
        text
    }

    fn row(&self, text: &mut String, label: &str, cell: impl Fn(&Column) -> String) {
        put_cells(text, label, self.columns.iter().map(cell));
    }

    /// Named parts of all columns: each name once, in order of appearance, with
    /// the value of each column that has it.
    fn parts(
        &self,
        of: impl Fn(&Column) -> Vec<(&'static str, f64)>,
    ) -> Vec<(&'static str, Vec<Option<f64>>)> {
        let mut rows: Vec<(&'static str, Vec<Option<f64>>)> = Vec::new();
        for (index, column) in self.columns.iter().enumerate() {
            for (name, value) in of(column) {
                let at = rows.iter().position(|(n, _)| *n == name).unwrap_or_else(|| {
                    rows.push((name, vec![None; self.columns.len()]));
                    rows.len() - 1
                });
                rows[at].1[index] = Some(value);
            }
        }
        rows
    }

    /// The same as one object. What is of a peer has `epoll_` before it, or `epoll_veth_`
    /// if it is the second.
    pub fn json(&self) -> Value {
        const KEYS: [&str; 3] = ["pasted", "epoll", "epoll_veth"];
        let named = |parts: &[(&'static str, f64)]| -> Value {
            parts.iter().map(|(name, value)| ((*name).to_owned(), round(*value))).collect()
        };
        let processes = |c: &Column| {
            let mut parts = vec![("client", c.figures.client_us)];
            parts.extend(c.servers.iter().copied().zip(c.figures.server_us.iter().copied()));
            named(&parts)
        };
        let copies = |c: &Column| {
            named(&c.copies.iter().map(|(part, n)| (part.key(), *n)).collect::<Vec<_>>())
        };
        let each = |of: &dyn Fn(&Column) -> Value| -> Value {
            KEYS.iter().zip(&self.columns).map(|(key, c)| ((*key).to_owned(), of(c))).collect()
        };
        let conditions: serde_json::Map<String, Value> =
            self.conditions.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
        let mut object = serde_json::Map::new();
        for (key, column) in KEYS.iter().zip(&self.columns) {
            let figures = &column.figures;
            let prefix = if *key == "pasted" { String::new() } else { format!("{key}_") };
            for (name, value) in [
                ("requests", json!(figures.requests)),
                ("rps", round(median(&figures.rps))),
                ("p50_us", round(figures.p50_us)),
                ("p99_us", round(figures.p99_us)),
                ("batch_mean", round(column.batch_mean)),
                ("cpu_us_per_request", round(figures.cpu_us)),
            ] {
                object.insert(format!("{prefix}{name}"), value);
            }
        }
        let rounds = self.columns.first().map(|c| c.figures.rps.as_slice()).unwrap_or_default();
        for (name, value) in [
            ("errors", json!(self.columns.iter().map(|c| c.figures.errors).sum::<u64>())),
            ("rps_rounds", rounds.iter().map(|&v| round(v)).collect()),
            ("cpu_us_per_request_by_process", each(&processes)),
            ("bytes_copied", each(&copies)),
            ("other_cpu_percent", each(&|c| round(c.figures.other_percent))),
            ("guest_restarts", json!(self.guest_restarts)),
            ("killed_connections", json!(self.killed_connections)),
            ("recovery_ms", round(self.recovery_ms)),
            ("conditions", conditions.into()),
            ("notes", json!(self.notes)),
            ("first_error", json!(self.first_fault)),
        ] {
            object.insert(name.to_owned(), value);
        }
        object.into()
    }
}

/// To a hundredth: what is behind it was never measured.
fn round(value: f64) -> Value {
    json!((value * 100.0).round() / 100.0)
}

fn put_row(text: &mut String, label: &str, cells: &[Option<f64>], digits: usize) {
    let cells = cells.iter().map(|cell| match cell {
        Some(value) => format!("{value:.digits$}"),
        None => "-".to_owned(),
    });
    put_cells(text, label, cells);
}

fn put_cells(text: &mut String, label: &str, cells: impl Iterator<Item = String>) {
    let _ = write!(text, "{label:LABEL_WIDTH$}");
    for cell in cells {
        let _ = write!(text, "{cell:>COLUMN_WIDTH$}");
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let column = |name, rps: f64, servers: Vec<&'static str>| Column {
            name,
            figures: Figures {
                requests: 100,
                rps: vec![rps, rps * 3.0, rps * 2.0],
                p99_us: 321.456,
                server_us: vec![1.5; servers.len()],
                ..Figures::default()
            },
            servers,
            batch_mean: 4.0,
            copies: vec![(Part::Port, 1614.0), (Part::Guest, 0.0)],
        };
        Report {
            columns: vec![
                column("pasted", 1_000.0, vec!["backend", "guest"]),
                column("epoll, TAP", 500.0, vec!["relay and server"]),
                column("epoll, veth", 700.0, vec!["relay and server"]),
            ],
            guest_restarts: 1,
            killed_connections: 64,
            conditions: vec![("cores", json!(2))],
            notes: vec!["mind the gap".to_owned()],
            ..Report::default()
        }
    }

    #[test]
    fn the_object_has_the_promised_keys() {
        let json = report().json();
        for (key, value) in [
            ("requests", json!(100)),
            ("errors", json!(0)),
            ("rps", json!(2000.0)),
            ("p50_us", json!(0.0)),
            ("p99_us", json!(321.46)),
            ("batch_mean", json!(4.0)),
            ("epoll_rps", json!(1000.0)),
            ("epoll_p99_us", json!(321.46)),
            ("epoll_veth_rps", json!(1400.0)),
            ("guest_restarts", json!(1)),
            ("killed_connections", json!(64)),
            ("cpu_us_per_request", json!(0.0)),
            ("epoll_cpu_us_per_request", json!(0.0)),
        ] {
            assert_eq!(json[key], value, "{key}");
        }
        assert_eq!(json["bytes_copied"]["pasted"]["port"], json!(1614.0));
        assert_eq!(json["conditions"]["cores"], json!(2));
        assert!(!json.to_string().contains('\n'));
    }

    #[test]
    fn only_right_responses_and_a_guest_that_came_back_are_good() {
        assert!(report().is_good());
        for spoil in [
            (|r: &mut Report| r.columns[0].figures.errors = 1) as fn(&mut Report),
            |r| r.columns[2].figures.errors = 1,
            |r| r.columns[1].figures.requests = 0,
            |r| r.guest_restarts = 0,
        ] {
            let mut report = report();
            spoil(&mut report);
            assert!(!report.is_good());
        }
    }

    #[test]
    fn the_table_lines_up_and_parts_that_one_side_lacks_are_dashes() {
        let table = report().table();
        let line = |label: &str| table.lines().find(|l| l.starts_with(label)).unwrap();
        let width = LABEL_WIDTH + 3 * COLUMN_WIDTH;
        for label in ["requests ", "errors", "  least to most", "  of it, backend", "  TAP devices"]
        {
            assert_eq!(line(label).len(), width, "{label}");
        }
        let words: Vec<&str> = line("  of it, guest").split_ascii_whitespace().collect();
        assert_eq!(words[3..], ["1.50", "-", "-"]);
        let words: Vec<&str> = line("  of it, relay").split_ascii_whitespace().collect();
        assert_eq!(words[5..], ["-", "1.50", "1.50"]);
        assert!(line("requests/s").contains("2000") && line("note:").contains("gap"));
    }
}
