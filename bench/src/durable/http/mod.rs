//! The case of the PASTE papers: HTTP requests of 1 KiB that are logged before they
//! are answered with 64 bytes; kept where they arrived, copied within the region, or
//! copied by an epoll server.
//!
//! The network is that of `paste-bench http`: a client on our own stack, and all servers
//! on veth, or behind one bridge of TAP devices.
//!
//! | module | knows |
//! | --- | --- |
//! | `server` | the servers, from outside |
//! | `log` | the epoll server's log |
//! | `row` | what rounds add up to |
//! | `report` | tables and JSON |

pub mod log;
pub mod report;
mod row;
mod server;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::time::Duration;

use pasted::demo::http::request;
use pasted::sys::linux::demo::usage;

use self::row::{Round, Row};
use self::server::{Backing, Kind, Server};
use super::server::POLL_US;
use super::{Error, Setting, refused, written_since};
use crate::client::{Client, Group, Script};
use crate::http::bed::Bed;
use crate::sys;

/// Bytes of a request, head and body, all of which is logged.
const REQUEST_LEN: usize = 1024;
/// How long each server is driven before the first round, so that caches are warm
/// and windows open.
const WARM_UP: Duration = Duration::from_millis(300);

/// Measures all servers, for each number of connections on each kind of memory.
/// Moves the process into another network: must be called before it has a second
/// thread.
pub(super) fn measure(setting: &Setting, counts: &[u32]) -> Result<Vec<Row>, Error> {
    let bed = Bed::enter(setting.port.kind(), Kind::ALL.len(), false)?;
    let most = counts.iter().copied().max().unwrap_or(0);
    let mut clients = HashMap::new();
    for kind in Kind::ALL {
        let (number, device, address) = bed.client_of(kind.place());
        if let Entry::Vacant(entry) = clients.entry(number) {
            let connections = most * Kind::ALL.len() as u32;
            let poll = Some(Duration::from_micros(POLL_US));
            entry.insert(Client::on(&device, address, connections, poll)?);
        }
    }
    let mut rows = Vec::new();
    for backing in Backing::ALL {
        for &connections in counts {
            rows.extend(compare(setting, &bed, &mut clients, backing, connections as usize)?);
        }
    }
    Ok(rows)
}

/// The clients, by the numbers that the network gives them.
type Clients = HashMap<usize, Client>;

/// One of the compared: a server, the client and its connections to it, and its rounds.
struct Side {
    client: usize,
    server: Server,
    group: Group,
    rounds: Vec<Round>,
    /// Requests that it was asked for in all.
    requests: u64,
}

fn compare(
    setting: &Setting,
    bed: &Bed,
    clients: &mut Clients,
    backing: Backing,
    connections: usize,
) -> Result<Vec<Row>, Error> {
    let mut sides = Vec::with_capacity(Kind::ALL.len());
    for kind in Kind::ALL {
        let core = setting.server_core;
        let mut server = Server::start(kind, backing, bed, core, &setting.directory)?;
        let address = kind.address(bed);
        let script = Script::http(request(REQUEST_LEN, address));
        let (number, ..) = bed.client_of(kind.place());
        let client = clients.get_mut(&number).expect("every place has one");
        let group = match client.connect(address, &vec![script; connections]) {
            Ok(group) => group,
            Err(error) => {
                server.processes.check()?;
                return Err(error.into());
            }
        };
        let mut side = Side { client: number, server, group, rounds: Vec::new(), requests: 0 };
        side.round(setting, client, WARM_UP)?;
        side.rounds.clear();
        sides.push(side);
    }
    for number in 1..=setting.rounds {
        for side in &mut sides {
            let client = clients.get_mut(&side.client).expect("it has connections");
            side.round(setting, client, Duration::from_secs_f64(setting.seconds))?;
            eprintln!(
                "POST of {REQUEST_LEN} bytes, {}, {connections} connections, round {number} of {}: \
                 {} {:.0} requests/s",
                backing.name(),
                setting.rounds,
                side.server.kind.name(),
                side.rounds.last().map_or(0.0, |round| round.stretch.sample.rps()),
            );
        }
    }
    let mut rows = Vec::with_capacity(sides.len());
    for Side { client, server, group, rounds, requests } in sides {
        let kind = server.kind;
        server.processes.hold(false).map_err(refused("a server cannot be let go on"))?;
        clients.get_mut(&client).expect("it has connections").disconnect(group)?;
        let counted = server.stop()?;
        rows.push(Row::new(kind, backing, connections, &rounds, requests, &counted));
    }
    Ok(rows)
}

impl Side {
    /// Lets the server go on for `duration`, and until all is answered.
    fn round(
        &mut self,
        setting: &Setting,
        client: &mut Client,
        duration: Duration,
    ) -> Result<(), Error> {
        let unread = || refused("what was used cannot be read");
        let held = || refused("a server cannot be held still, or let go on");
        let written_before = setting.written_bytes()?;
        self.server.processes.hold(false).map_err(held())?;
        let spent = || -> io::Result<(u64, u64, sys::Stolen)> {
            Ok((usage::busy_ns()?, usage::process_ns(std::process::id())?, sys::stolen()?))
        };
        let before = spent().map_err(unread())?;
        let mut stretch = client.drive(&self.group, duration)?;
        let after = spent().map_err(unread())?;
        client.drain(&self.group, &mut stretch)?;
        self.server.processes.check()?;
        self.server.processes.hold(true).map_err(held())?;
        self.requests += stretch.sample.requests;
        self.rounds.push(Round {
            stretch,
            busy_ns: after.0.saturating_sub(before.0),
            client_ns: after.1.saturating_sub(before.1),
            written_bytes: written_since(written_before, setting.written_bytes()?),
            steal_percent: after.2.percent_since(before.2),
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::SEGMENT_LEN;

    #[test]
    fn a_request_is_one_segment_of_exactly_1_kib() {
        let address = std::net::SocketAddrV4::new(std::net::Ipv4Addr::new(10, 71, 0, 26), 80);
        assert_eq!(request(REQUEST_LEN, address).len(), 1024);
        const { assert!(REQUEST_LEN <= SEGMENT_LEN) };
    }
}
