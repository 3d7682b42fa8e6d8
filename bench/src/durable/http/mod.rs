//! The case of the PASTE papers: HTTP requests of 1 KiB that are logged before they
//! are answered with 64 bytes; kept where they arrived, copied within the region, or
//! copied by an epoll server.
//!
//! The network is that of `paste-bench quick`: one client on our own stack, one TAP
//! device and one bridge before all servers.
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

use std::io;
use std::time::Duration;

use pasted::demo::http::request;
use pasted::sys::demo::usage;

use self::row::{Round, Row};
use self::server::{Backing, GUEST_DEVICES, Kind, Server};
use super::server::POLL_US;
use super::{Error, Setting, refused, written_since};
use crate::client::{Client, Group, Script};
use crate::{network, sys};

/// Bytes of a request, head and body, all of which is logged.
const REQUEST_LEN: usize = 1024;
/// How long each server is driven before the first round, so that caches are warm
/// and windows open.
const WARM_UP: Duration = Duration::from_millis(300);

/// Measures all servers, for each number of connections on each kind of memory.
/// Moves the process into another network: must be called before it has a second
/// thread.
pub(super) fn measure(setting: &Setting, counts: &[u32]) -> Result<Vec<Row>, Error> {
    network::enter(&GUEST_DEVICES)?;
    let mut client = Client::open(network::CLIENT, Some(Duration::from_micros(POLL_US)))?;
    let mut rows = Vec::new();
    for backing in Backing::ALL {
        for &connections in counts {
            rows.extend(compare(setting, &mut client, backing, connections as usize)?);
        }
    }
    Ok(rows)
}

/// One of the compared: a server, the connections to it, and its rounds.
struct Side {
    server: Server,
    group: Group,
    rounds: Vec<Round>,
    /// Requests that it was asked for in all.
    requests: u64,
}

fn compare(
    setting: &Setting,
    client: &mut Client,
    backing: Backing,
    connections: usize,
) -> Result<Vec<Row>, Error> {
    let mut sides = Vec::with_capacity(Kind::ALL.len());
    for kind in Kind::ALL {
        let mut server = Server::start(kind, backing, setting.server_core, &setting.directory)?;
        let script = Script::http(request(REQUEST_LEN, kind.address()));
        let group = match client.connect(kind.address(), &vec![script; connections]) {
            Ok(group) => group,
            Err(error) => {
                server.processes.check()?;
                return Err(error.into());
            }
        };
        let mut side = Side { server, group, rounds: Vec::new(), requests: 0 };
        side.round(setting, client, WARM_UP)?;
        side.rounds.clear();
        sides.push(side);
    }
    for number in 1..=setting.rounds {
        for side in &mut sides {
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
    for Side { server, group, rounds, requests } in sides {
        let kind = server.kind;
        server.processes.hold(false).map_err(refused("a server cannot be let go on"))?;
        client.disconnect(group)?;
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
        for kind in Kind::ALL {
            assert_eq!(request(REQUEST_LEN, kind.address()).len(), 1024);
        }
        const { assert!(REQUEST_LEN <= SEGMENT_LEN) };
    }
}
