//! The rows of logged requests, for people and for programs.

use serde_json::{Value, json};

use super::REQUEST_LEN;
use super::row::Row;
use super::server::Kind;
use crate::durable::bed::Devices;
use crate::durable::report::{optional, shared_remarks};
use crate::report::{rounded, spread};

/// The aim beside the epoll server: the papers' ratio, at these connections and more.
const AIM: f64 = 1.86;
const AIM_CONNECTIONS: usize = 64;

/// What the figures do not say by themselves, whatever the devices.
const NOTES: [&str; 4] = [
    "`http:zero-copy` keeps a request in the buffer that it arrived in; `http:copy` is the same \
     server, which copies requests into other buffers, two in each; `http:epoll` copies them from \
     where the kernel has copied them into a ring in memory. An answer goes when its batch is \
     durable: with `mirror`, when what the batch has changed is written to a file on a disk and \
     synced, once per batch, the epoll server's in one piece; with `memory`, nothing is to be done.",
    "`written` is what was written to the disk per byte of a request, by the disk's own count, with \
     the file system's journal; of other programs as well.",
    "`sync/batch` is below 1 where one sync has made several batches durable. `copied` is what \
     the server itself has copied per byte of a request: beside that, the device is read with a \
     copy, and of `http:epoll` it is the kernel's copy to the server as well as its own.",
    "Logs are rings: requests beyond what they hold take the place of the oldest, which a guest \
     gives up with a record in its log, and the epoll server without.",
];

/// The way of a request, and what is said of every figure.
pub fn notes(devices: Devices) -> impl Iterator<Item = &'static str> {
    let way = match devices {
        Devices::Xdp => {
            "POST: the client is our own stack on veth by AF_XDP, with a pair for each server: of \
             the epoll server the other end is its kernel's TCP, of a guest AF_XDP. The client \
             computes checksums; our guests log the one that came with TCP, and the epoll server \
             computes one of its own. All poll as long before they sleep. Requests are one segment \
             of 1024 bytes, head and body, all of it logged; responses have a body of 64 bytes, and \
             every byte is judged."
        }
        Devices::Tap => {
            "POST: the client is our own stack on a TAP device of a bridge, which all servers are \
             behind. The epoll server has its kernel's TCP there at once; every frame for or from a \
             guest crosses one TAP device more, with a system call and a copy each, which epoll does \
             not pay. All servers compute a checksum of each request, as TAP devices leave TCP's to \
             nobody. All poll as long before they sleep. Requests are one segment of 1024 bytes, head \
             and body, all of it logged; responses have a body of 64 bytes, and every byte is judged."
        }
    };
    std::iter::once(way).chain(NOTES)
}

/// The rows of a comparison.
#[derive(Clone, Debug, Default)]
pub struct Rows(pub Vec<Row>);

impl Rows {
    /// Whether every response was right.
    pub fn is_right(&self) -> bool {
        self.0.iter().all(|row| row.errors == 0 && row.rps.min > 0.0)
    }

    /// How many times the rate of `kind` this is.
    fn ratio(&self, row: &Row, kind: Kind) -> Option<f64> {
        let other = self.0.iter().find(|other| other.kind == kind && row.is_beside(other))?;
        let differs = row.kind != kind && other.rps.median > 0.0;
        differs.then(|| row.rps.median / other.rps.median)
    }

    fn remarks(&self, row: &Row) -> Vec<String> {
        let mut remarks = Vec::new();
        if let Some(ratio) = self.ratio(row, Kind::Epoll) {
            let has_aim = row.kind == Kind::ZeroCopy && row.connections >= AIM_CONNECTIONS;
            if ratio < 1.0 {
                remarks.push(format!("LOST: slower than {}", Kind::Epoll.name()));
            } else if has_aim && ratio < AIM {
                remarks.push(format!("below the aim of {AIM}x"));
            }
        }
        if row.kind == Kind::ZeroCopy && self.ratio(row, Kind::Copy).is_some_and(|r| r < 1.0) {
            remarks.push(format!("LOST: slower than {}", Kind::Copy.name()));
        }
        if row.errors > 0 {
            remarks.push(format!("{} ERRORS", row.errors));
        }
        remarks.extend(shared_remarks(row.client_busy_percent, row.steal_percent));
        remarks
    }

    /// Heads and cells of the table.
    pub fn cells(&self) -> (Vec<&'static str>, Vec<Vec<String>>) {
        let heads = vec![
            "op",
            "bytes",
            "memory",
            "connections",
            "server",
            "requests/s",
            "vs epoll",
            "vs copy",
            "CPU/request us",
            "p50 us",
            "p99 us",
            "written",
            "copied",
            "request/sync",
            "sync/batch",
            "client busy",
            "remarks",
        ];
        let times = |ratio: Option<f64>| ratio.map_or_else(String::new, |r| format!("{r:.2}x"));
        let cells = |row: &Row| {
            let beside_copy = (row.kind == Kind::ZeroCopy).then(|| self.ratio(row, Kind::Copy));
            vec![
                "POST".to_owned(),
                REQUEST_LEN.to_string(),
                row.backing.name().to_owned(),
                row.connections.to_string(),
                row.kind.name().to_owned(),
                spread(&row.rps, 0),
                times(self.ratio(row, Kind::Epoll)),
                times(beside_copy.flatten()),
                spread(&row.cpu_us, 2),
                format!("{:.0}", row.p50_us),
                format!("{:.0}", row.p99_us),
                optional(row.amplification),
                format!("{:.1}", row.copied),
                optional(row.requests_per_sync),
                row.syncs_per_batch.map_or_else(String::new, |value| format!("{value:.2}")),
                format!("{:.0} %", row.client_busy_percent),
                self.remarks(row).join("; "),
            ]
        };
        (heads, self.0.iter().map(cells).collect())
    }

    /// The rows for programs.
    pub fn json(&self) -> impl Iterator<Item = Value> {
        self.0.iter().map(|row| {
            json!({
                "server": row.kind.name(),
                "op": "POST",
                "value_bytes": REQUEST_LEN,
                "memory": row.backing.name(),
                "connections": row.connections,
                "pipeline": 1,
                "client": "paste",
                "rps": rounded(row.rps.median),
                "rps_min": rounded(row.rps.min),
                "rps_max": rounded(row.rps.max),
                "p50_us": rounded(row.p50_us),
                "p99_us": rounded(row.p99_us),
                "cpu_us": rounded(row.cpu_us.median),
                "client_cpu_us": rounded(row.client_us),
                "written_per_value_byte": row.amplification.map(rounded),
                "copied_per_value_byte": rounded(row.copied),
                "writes_per_sync": row.requests_per_sync.map(rounded),
                "syncs_per_batch": row.syncs_per_batch.map(rounded),
                "vs_epoll": self.ratio(row, Kind::Epoll).map(rounded),
                "vs_copy": self.ratio(row, Kind::Copy).map(rounded),
                "errors": row.errors,
                "client_busy_percent": rounded(row.client_busy_percent),
                "steal_percent": rounded(row.steal_percent),
                "remarks": self.remarks(row),
            })
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::super::row::tests::row;
    use super::super::server::Backing;
    use super::*;

    pub fn rows() -> Rows {
        let of = |backing, counts: [u64; 3]| {
            Kind::ALL.into_iter().zip(counts).map(move |(kind, count)| row(kind, backing, count))
        };
        let mirror = of(Backing::Mirror, [200, 150, 100]);
        Rows(mirror.chain(of(Backing::Memory, [90, 110, 100])).collect())
    }

    #[test]
    fn rows_that_we_lose_or_that_miss_the_aim_are_marked() {
        let mut rows = rows();
        assert!(rows.remarks(&rows.0[0]).is_empty() && rows.remarks(&rows.0[1]).is_empty());
        assert_eq!(
            rows.remarks(&rows.0[3]),
            ["LOST: slower than http:epoll", "LOST: slower than http:copy"]
        );
        assert!(rows.remarks(&rows.0[5]).is_empty());
        rows.0[0].rps.median = 185.0;
        assert_eq!(rows.remarks(&rows.0[0]), ["below the aim of 1.86x"]);
        assert!(rows.is_right());
        rows.0[0].errors = 1;
        assert!(!rows.is_right());
    }

    #[test]
    fn the_objects_have_what_readers_look_for() {
        let rows: Vec<Value> = rows().json().collect();
        assert_eq!(rows[0]["server"].as_str(), Some("http:zero-copy"));
        for key in ["value_bytes", "connections", "pipeline", "rps", "p99_us"] {
            assert!(rows[0][key].is_number(), "{key}");
        }
        assert_eq!((rows[0]["vs_epoll"].as_f64(), rows[2]["vs_epoll"].as_f64()), (Some(2.0), None));
    }
}
