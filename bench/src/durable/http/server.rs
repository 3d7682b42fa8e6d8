//! The servers that log requests, from outside.

use std::fs;
use std::net::SocketAddrV4;
use std::path::PathBuf;

use pasted::demo::epoll_server::Served;
use pasted::demo::{Directory, Process, SceneError};
use pasted::sys::linux::demo::children::DeathSignal;

use super::super::serve::GuestSaid;
use super::super::server::{POLL_US, Place, configuration, count};
use crate::http::bed::{Bed, Station};
use crate::processes::{Files, Processes, start_backend, text};
use crate::serve::READY;

/// Bytes of the epoll server's log: half of what our guest has.
const EPOLL_LOG_LEN: u64 = 128 << 20;

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A guest that keeps requests where they arrived.
    ZeroCopy,
    /// The same guest, which copies them within its region.
    Copy,
    /// The epoll server, which copies them from where the kernel has copied them.
    Epoll,
}

impl Kind {
    /// In the order of their turns.
    pub const ALL: [Kind; 3] = [Kind::ZeroCopy, Kind::Copy, Kind::Epoll];

    /// As it is called in tables and rows.
    pub fn name(self) -> &'static str {
        match self {
            Kind::ZeroCopy => "http:zero-copy",
            Kind::Copy => "http:copy",
            Kind::Epoll => "http:epoll",
        }
    }

    /// Its place in the network.
    pub fn place(self) -> usize {
        match self {
            Kind::Epoll => 0,
            Kind::ZeroCopy => 1,
            Kind::Copy => 2,
        }
    }

    /// Its station, if its TCP is not the kernel's.
    fn station(self, bed: &Bed) -> Option<Station> {
        (self != Kind::Epoll).then(|| bed.station(self.place(), 0))
    }

    /// Where it serves.
    pub fn address(self, bed: &Bed) -> SocketAddrV4 {
        self.station(bed).map_or_else(|| bed.kernel(0), |station| station.address)
    }
}

/// What the log lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Memory with a file on a disk, which is synced before an answer goes.
    Mirror,
    /// Memory alone, for which nothing needs to be done.
    Memory,
}

impl Backing {
    /// In their order.
    pub const ALL: [Backing; 2] = [Backing::Mirror, Backing::Memory];

    /// As it is called in tables and rows.
    pub fn name(self) -> &'static str {
        match self {
            Backing::Mirror => "mirror",
            Backing::Memory => "memory",
        }
    }
}

/// What a server counted from its start to its end.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counted {
    /// Syncs of the log's file.
    pub syncs: u64,
    /// Batches of requests that had to wait for one.
    pub batches: u64,
    /// Bytes that the server has copied within its own memory.
    pub bytes_copied: u64,
}

/// A running server.
pub struct Server {
    /// Who it is.
    pub kind: Kind,
    /// Its processes.
    pub processes: Processes,
    backing: Backing,
    /// What it makes goes with it.
    _files: Files,
    stats: PathBuf,
}

impl Server {
    /// Starts a server with an empty log, and waits until it can be connected to, or
    /// nearly.
    pub fn start(
        kind: Kind,
        backing: Backing,
        bed: &Bed,
        core: usize,
        directory: &Directory,
    ) -> Result<Server, SceneError> {
        let base = directory.path().join(kind.name().replace(':', "-"));
        let stats = base.with_extension("json");
        let file = (backing == Backing::Mirror).then(|| base.with_extension("mirror"));
        let file_text = file.as_deref().map(text).transpose()?;
        let processes = match kind.station(bed) {
            Some(station) => {
                let place = Place {
                    mac: station.mac_text(),
                    address: *station.address.ip(),
                    port: station.device.spec(),
                };
                let socket = base.with_extension("sock");
                let socket = text(&socket)?;
                let _ = fs::remove_file(&stats);
                let settings = configuration(&place, socket, text(&stats)?, file_text);
                let backend = start_backend(&base, &settings, &[], core, directory)?;
                let poll = POLL_US.to_string();
                let mut args = vec!["serve-http", "--socket", socket, "--poll-us", &poll];
                args.extend((kind == Kind::Copy).then_some("--copy"));
                let guest =
                    Process::start("http", &args, Some(core), DeathSignal::Kill, directory)?;
                vec![backend, guest]
            }
            None => vec![start_epoll(bed.kernel(0), file_text, core, directory)?],
        };
        let processes = Processes::new(processes);
        Ok(Server { kind, processes, backing, _files: Files(file.into_iter().collect()), stats })
    }

    /// Ends it in good order, and returns what it counted.
    pub fn stop(self) -> Result<Counted, SceneError> {
        let said = self.processes.stop()?;
        if self.kind != Kind::Epoll {
            let flushes = count(&fs::read(&self.stats).unwrap_or_default());
            let said: GuestSaid = serde_json::from_str(&said).unwrap_or_default();
            return Ok(Counted {
                syncs: flushes.commits,
                batches: flushes.epochs,
                bytes_copied: said.bytes_copied,
            });
        }
        let served: Served = serde_json::from_str(&said).unwrap_or_default();
        let batches = if self.backing == Backing::Mirror { served.batches } else { 0 };
        // Once by the kernel, once into the log.
        Ok(Counted { syncs: batches, batches, bytes_copied: 2 * served.bytes_in })
    }
}

fn start_epoll(
    address: SocketAddrV4,
    file: Option<&str>,
    core: usize,
    directory: &Directory,
) -> Result<Process, SceneError> {
    let (address, parent) = (address.to_string(), std::process::id().to_string());
    let (poll, len) = (POLL_US.to_string(), EPOLL_LOG_LEN.to_string());
    let mut args = vec!["serve-epoll", "--address", &address, "--poll-us", &poll];
    args.extend(["--parent", &parent, "--directory", text(directory.path())?]);
    args.extend(["--log-len", &len]);
    if let Some(file) = file {
        args.extend(["--log-file", file]);
    }
    let mut process =
        Process::start("epoll", &args, Some(core), DeathSignal::Terminate, directory)?;
    if process.line()? != READY {
        return Err(process.failed("is not ready"));
    }
    Ok(process)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_place_of_his_own_and_the_kernel_has_the_first() {
        let mut places = Kind::ALL.map(Kind::place);
        places.sort_unstable();
        assert_eq!(places, [0, 1, 2]);
        assert_eq!(Kind::Epoll.place(), 0);
        for (i, a) in Kind::ALL.iter().enumerate() {
            assert!(Kind::ALL[..i].iter().all(|b| a.name() != b.name()));
        }
    }
}
