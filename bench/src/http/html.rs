//! The result as one file that needs nothing else: plots, tables and conditions.

use std::fmt::Write;

use super::contender::{Contender, Kind, PortKind};
use super::report::{NOTES, Report, about};
use super::row::{Load, Row};
use crate::plot::{Axis, Bar, Part, Point, Scale, Series, bars, escaped, lines};
use crate::row::Spread;

const STYLE: &str = "\
body{font:15px/1.5 system-ui,sans-serif;color:#1b1f24;background:#fff;max-width:1080px;\
margin:2rem auto;padding:0 1.2rem}
h1{font-size:1.7rem;margin-bottom:.2rem}
h2{margin-top:2.6rem;border-bottom:2px solid #1b1f24;padding-bottom:.2rem}
h3{margin:1.8rem 0 .3rem;font-size:1.05rem}
p,ul{max-width:80ch}
figure{margin:.6rem 0 1.2rem}
figcaption{color:#57606a;font-size:.9rem;max-width:80ch}
svg{width:100%;max-width:980px;height:auto;font:12px system-ui,sans-serif}
svg text{fill:#424a53}
svg .axis{fill:#1b1f24}
svg .name,svg .group,svg .sum{font-weight:600}
svg .group{fill:#1b1f24}
svg .figure{font-size:11px}
svg .grid{stroke:#dfe3e8;stroke-width:1}
svg .lead{stroke:#afb8c1;stroke-width:1;fill:none}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.82rem;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .55rem;text-align:right;border-bottom:1px solid #dfe3e8;white-space:nowrap}
th{background:#f6f8fa;text-align:right;vertical-align:bottom}
td:nth-child(2),th:nth-child(2),td:last-child,th:last-child{text-align:left}
td:last-child{white-space:normal;min-width:18rem}
.lost{color:#b3261e;font-weight:600}
code{background:#f6f8fa;padding:.1rem .3rem}
";

/// What bars are made of.
const PARTS: [Part; 7] = [
    Part { name: "client", color: "#c9d1d9", ink: "#1b1f24" },
    Part { name: "port", color: "#56b4e9", ink: "#1b1f24" },
    Part { name: "stack", color: "#0072b2", ink: "#fff" },
    Part { name: "ring", color: "#cc79a7", ink: "#1b1f24" },
    Part { name: "kernel", color: "#e69f00", ink: "#1b1f24" },
    Part { name: "application", color: "#009e73", ink: "#fff" },
    Part { name: "rest", color: "#eceff2", ink: "#1b1f24" },
];
const CLIENT: usize = 0;
const PORT: usize = 1;
const STACK: usize = 2;
const RING: usize = 3;
const KERNEL: usize = 4;
const APPLICATION: usize = 5;
const REST: usize = 6;

/// Colours of backends, for as many shapes as are told apart.
const OURS: [&str; 4] = ["#0072b2", "#56b4e9", "#003f63", "#8c6bb1"];

/// The colour of a line, and whether it is broken.
fn look(contender: &Contender, ours_before: usize) -> (&'static str, bool) {
    match contender.kind {
        Kind::Pasted => (OURS[ours_before % OURS.len()], ours_before >= OURS.len()),
        Kind::Epoll => ("#d55e00", false),
        Kind::IoUring => ("#b8860b", false),
        Kind::Nginx => ("#009e73", false),
        Kind::Smoltcp => ("#cc79a7", false),
        Kind::Null => ("#6e7781", true),
    }
}

/// The contenders of some rows, in their order, each with a look of its own.
fn contenders<'a>(rows: &[&'a Row]) -> Vec<(&'a Contender, &'static str, bool)> {
    let mut found: Vec<(&Contender, &str, bool)> = Vec::new();
    for row in rows {
        let contender = &row.cell.contender;
        if !found.iter().any(|(other, ..)| *other == contender) {
            let ours = found.iter().filter(|(other, ..)| other.kind == Kind::Pasted).count();
            let (color, dashed) = look(contender, ours);
            found.push((contender, color, dashed));
        }
    }
    found
}

/// A line for each contender, with a point for each of its rows.
fn series(rows: &[&Row], x: impl Fn(&Row) -> f64, y: impl Fn(&Row) -> Spread) -> Vec<Series> {
    let of = |(contender, color, dashed): (&Contender, &'static str, bool)| {
        let mut points: Vec<Point> = rows
            .iter()
            .filter(|row| row.cell.contender == *contender)
            .map(|row| {
                let Spread { median, min, max } = y(row);
                Point { x: x(row), y: median, range: (min, max) }
            })
            .filter(|point| point.y.is_finite())
            .collect();
        points.sort_by(|a, b| a.x.total_cmp(&b.x));
        Series { name: contender.label(), color, dashed, points }
    };
    contenders(rows).into_iter().map(of).filter(|series| !series.points.is_empty()).collect()
}

/// Where a row's CPU time goes, as parts of a bar.
fn parts(row: &Row) -> Vec<(usize, f64)> {
    let client = if row.client_us > 0.0 { row.client_us } else { row.client_core_us };
    let server: f64 = row.server_us.iter().sum();
    let mut parts = Vec::new();
    if row.cell.client != "backend" {
        parts.push((CLIENT, client));
    }
    match row.split {
        Some(split) => {
            let sum = split.port + split.stack + split.ring + split.application;
            // What the clocks cost is not in the row.
            let scale = server / sum.max(f64::MIN_POSITIVE);
            parts.extend([
                (PORT, split.port * scale),
                (STACK, split.stack * scale),
                (RING, split.ring * scale),
                (APPLICATION, split.application * scale),
            ]);
        }
        None => {
            let ticks = row.system_us + row.user_us;
            let kernel = if ticks > 0.0 { server * row.system_us / ticks } else { 0.0 };
            parts.extend([(KERNEL, kernel), (APPLICATION, server - kernel)]);
        }
    }
    let known: f64 = parts.iter().map(|(_, us)| us).sum();
    parts.push((REST, (row.cpu_us.median - known).max(0.0)));
    parts
}

impl Report {
    /// The result as a document.
    pub fn html(&self) -> String {
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width\">\
             <title>pasted: HTTP benchmark</title>\n<style>\n{STYLE}</style></head><body>\n\
             <h1>pasted: HTTP benchmark</h1>\n<p>Written by <code>paste-bench {}</code></p>\n<ul>\n",
            escaped(&self.conditions.command)
        );
        for text in self.described() {
            let _ = writeln!(out, "<li>{}</li>", escaped(&text));
        }
        out.push_str("</ul>\n");
        for port in self.ports() {
            self.section(&mut out, port);
        }
        out.push_str("<h2>How to read it</h2>\n");
        for note in NOTES {
            let _ = writeln!(out, "<p>{}</p>", code(&escaped(note)));
        }
        out.push_str("</body></html>\n");
        out
    }

    fn section(&self, out: &mut String, port: PortKind) {
        let _ =
            writeln!(out, "<h2>Port {}</h2>\n<p>{}</p>", port.name(), code(&escaped(about(port))));
        let rows: Vec<&Row> =
            self.rows.iter().filter(|row| row.cell.contender.port == port).collect();
        let mut waitings: Vec<String> = Vec::new();
        for row in &rows {
            let waiting = row.cell.contender.waiting.name();
            if row.cell.contender.kind.can_poll() && !waitings.contains(&waiting) {
                waitings.push(waiting);
            }
        }
        for waiting in &waitings {
            let is_it = |row: &&&Row| {
                let contender = &row.cell.contender;
                contender.waiting.name() == *waiting
                    || (!contender.kind.can_poll() && waiting == &waitings[0])
            };
            let rows: Vec<&Row> = rows.iter().filter(is_it).copied().collect();
            plots(out, waiting, &rows);
        }
        for (title, heads, cells) in self.tables(port) {
            let _ = writeln!(out, "<h3>{title}</h3>\n{}", table(&heads, &cells));
        }
    }
}

/// The plots of rows that wait in one way.
fn plots(out: &mut String, waiting: &str, rows: &[&Row]) {
    let (closed, open): (Vec<&Row>, Vec<&Row>) =
        rows.iter().partition(|row| row.cell.load == Load::Closed);
    let connections = |row: &Row| row.cell.connections as f64;
    let axis = |name, scale| Axis { name, scale };
    let mut counts: Vec<usize> = closed.iter().map(|row| row.cell.connections).collect();
    counts.sort_unstable();
    counts.dedup();
    if counts.len() > 1 {
        figure(
            out,
            &format!("Throughput, waiting: {waiting}"),
            &lines(
                axis("connections", Scale::Log),
                axis("requests/s", Scale::Linear),
                &series(&closed, connections, |row| row.rps),
            ),
            "Right responses per second in a closed loop. Lines through the points are the range \
             of the rounds.",
        );
    }
    let groups: Vec<(String, Vec<Bar>)> = counts
        .iter()
        .map(|&count| {
            let of = |row: &&&Row| row.cell.connections == count;
            let bar = |row: &&Row| Bar { name: row.cell.contender.label(), parts: parts(row) };
            (connected(count), closed.iter().filter(of).map(bar).collect())
        })
        .collect();
    figure(
        out,
        &format!("CPU time per request on all cores, waiting: {waiting}"),
        &bars("us", &PARTS, &groups),
        "In a closed loop, in us; each number of connections has a scale of its own. client: the client's process, with what the kernel receives for \
         a server within its calls. Of ours, the server's time is divided as clocks in another \
         round have it; of others, into kernel and what is outside of it. rest: the kernel's own \
         threads and other programs.",
    );
    for (at, percentile) in [(0, "50th"), (2, "99th")] {
        if counts.len() > 1 {
            figure(
                out,
                &format!("Latency, {percentile} percentile, closed loop, waiting: {waiting}"),
                &lines(
                    axis("connections", Scale::Log),
                    axis("us", Scale::Log),
                    &series(&closed, connections, |row| row.latency_us[at]),
                ),
                "",
            );
        }
    }
    let percent = |row: &Row| match row.cell.load {
        Load::Open { percent, .. } => f64::from(percent),
        Load::Closed => 0.0,
    };
    for &count in &counts {
        let open: Vec<&Row> =
            open.iter().filter(|row| row.cell.connections == count).copied().collect();
        for (at, percentile) in [(0, "50th"), (2, "99th"), (3, "99.9th")] {
            if open.is_empty() {
                continue;
            }
            figure(
                out,
                &format!(
                    "Latency against load, {percentile} percentile, {}, waiting: {waiting}",
                    connected(count)
                ),
                &lines(
                    axis("load, % of the epoll server's rate in a closed loop", Scale::Linear),
                    axis("us", Scale::Log),
                    &series(&open, percent, |row| row.latency_us[at]),
                ),
                "Open loop: requests are due at a constant rate, and their latency counts from \
                 then.",
            );
        }
    }
}

fn connected(count: usize) -> String {
    format!("{count} connection{}", if count == 1 { "" } else { "s" })
}

fn figure(out: &mut String, title: &str, svg: &str, caption: &str) {
    if svg.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "<h3>{}</h3>\n<figure>{svg}<figcaption>{}</figcaption></figure>",
        escaped(title),
        escaped(caption)
    );
}

/// What stands between backticks is code.
fn code(text: &str) -> String {
    let parts = text.split('`').enumerate();
    parts
        .map(
            |(at, part)| if at % 2 == 1 { format!("<code>{part}</code>") } else { part.to_owned() },
        )
        .collect()
}

fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let mut out = String::from("<div class=\"scroll\"><table><tr>");
    for head in heads {
        let _ = write!(out, "<th>{}</th>", escaped(head));
    }
    out.push_str("</tr>\n");
    for row in rows {
        out.push_str("<tr>");
        for cell in row {
            let bad = cell.contains("LOST") || cell.contains("ERRORS");
            let class = if bad { " class=\"lost\"" } else { "" };
            let _ = write!(out, "<td{class}>{}</td>", escaped(cell));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table></div>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn the_document_is_whole_and_needs_nothing_else() {
        let html = report().html();
        assert!(html.starts_with("<!DOCTYPE html>") && html.trim_end().ends_with("</html>"));
        assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
        // Throughput, CPU time, two of a closed loop and three of an open one.
        assert_eq!(html.matches("<figure>").count(), 7);
        assert_eq!(html.matches("<table>").count(), 4);
        for (open, close) in [("<tr>", "</tr>"), ("<td", "</td>"), ("<p>", "</p>")] {
            assert_eq!(html.matches(open).count(), html.matches(close).count(), "{open}");
        }
        assert!(html.contains("&lt;CPU&gt; &amp; co"), "text is no markup");
        assert!(!html.contains("NaN"));
        for outside in ["src=", "href=", "<script", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }

    #[test]
    fn bars_are_the_whole_cpu_time() {
        for row in &report().rows {
            let sum: f64 = parts(row).iter().map(|(_, us)| us).sum();
            assert!((sum - row.cpu_us.median).abs() < 1e-9, "{sum} of {}", row.cpu_us.median);
        }
        let split = parts(&report().rows[0]);
        assert!((split[1].1 / split[2].1 - 2.0).abs() < 1e-9, "port to stack as measured");
    }

    #[test]
    fn every_line_has_a_look_of_its_own() {
        let report = report();
        let rows: Vec<&Row> = report.rows.iter().collect();
        let looks = contenders(&rows);
        for (at, (_, color, dashed)) in looks.iter().enumerate() {
            assert!(looks[..at].iter().all(|(_, c, d)| (c, d) != (color, dashed)));
        }
    }
}
