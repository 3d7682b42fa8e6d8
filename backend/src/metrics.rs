//! What the process counted, in a form to be written down and read back.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The counters of all guests, of the ports that several of them share, and of the
/// workers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// One entry for each guest, in the order of the configuration.
    pub guests: Vec<GuestSnapshot>,
    /// One entry for each shared port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_ports: Vec<PortSnapshot>,
    /// One entry for each worker.
    #[serde(default)]
    pub workers: Vec<WorkerSnapshot>,
}

/// The counters of one worker, by name: `rounds`, `sleeps` and so on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerSnapshot {
    /// The thread's name.
    pub worker: String,
    /// The CPU that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<usize>,
    /// The guests and shared ports that it serves.
    pub serves: Vec<String>,
    /// Totals since it began.
    pub counters: BTreeMap<String, u64>,
}

/// The counters of a port that several guests share, by name: `port.rx_frames`,
/// `switch.switched` and so on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortSnapshot {
    /// The port, as configured.
    pub port: String,
    /// Totals since it was opened.
    pub counters: BTreeMap<String, u64>,
}

/// The counters of one guest, by name: `port.rx_frames`, `stack.retransmits`,
/// `channel.slots_out`, `device.signals`, `worker.turns` and so on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSnapshot {
    /// The guest's name.
    pub name: String,
    /// Totals since its worker began.
    pub counters: BTreeMap<String, u64>,
}

impl Snapshot {
    /// Writes the snapshot to a file as JSON: whole, or not at all.
    pub fn write_to(&self, path: &Path) -> io::Result<()> {
        let partial = path.with_extension("partial");
        std::fs::write(&partial, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&partial, path)
    }
}

impl GuestSnapshot {
    /// A snapshot with nothing in it.
    pub fn new(name: &str) -> GuestSnapshot {
        GuestSnapshot { name: name.to_owned(), counters: BTreeMap::new() }
    }

    /// A snapshot of what was counted.
    pub fn of(name: &str, counted: Vec<(String, u64)>) -> GuestSnapshot {
        GuestSnapshot { name: name.to_owned(), counters: counted.into_iter().collect() }
    }

    /// Adds a counter.
    pub fn put(&mut self, name: &str, value: u64) {
        self.counters.insert(name.to_owned(), value);
    }

    /// A counter; 0 if it was never added.
    pub fn get(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }

    /// Slots for each frame that carried slots to the guest: what batching
    /// achieved. 0 when there were none.
    pub fn mean_batch(&self) -> f64 {
        match self.get("channel.batches_out") {
            0 => 0.0,
            batches => self.get("channel.slots_out") as f64 / batches as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats.json");
        let mut guest = GuestSnapshot::new("web1");
        guest.put("channel.slots_out", 12);
        guest.put("channel.batches_out", 4);
        let snapshot = Snapshot { guests: vec![guest], ..Snapshot::default() };
        snapshot.write_to(&path).unwrap();
        let read: Snapshot = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, snapshot);
        assert_eq!(read.guests[0].mean_batch(), 3.0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing left behind");
    }
}
