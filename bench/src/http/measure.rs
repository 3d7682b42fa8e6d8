//! The order of measurements.
//!
//! For each way of waiting and each number of connections all servers are started anew and
//! connected to; then they are measured A/B/A/B, each held still while another is measured:
//! first in a closed loop, then at each rate of an open one. At last the backend is started
//! once more with clocks between its parts.
//!
//! The client is on the first core, the servers are on the second, guests with a core of
//! their own on the third; where the clients are in the backend, on the first.

use std::collections::HashMap;
use std::io;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pasted::demo::http::request;
use pasted::demo::sample::{Sample, median, per};
use pasted::demo::{Directory, SceneError};
use pasted::sys::linux::demo::{children, usage};

use super::bed::{Bed, PLACES_MAX};
use super::contender::{Contender, Kind, PortKind, Shape, Waiting};
use super::row::{Cell, Load, PERCENTILES, PartTime, Round, Row, Split};
use super::server::{Counted, Place, REQUEST_LEN, Server, Setting};
use super::wrk;
use crate::client::{Client, ClientError, Group, Pace, Script, Stretch};
use crate::network::NetworkError;
use crate::serve::Said;
use crate::sys::{self, CoreTime};

/// How long each server is driven before the first round, so that caches are
/// warm and windows open.
const WARM_UP: Duration = Duration::from_millis(300);
/// How long it is driven before each round, uncounted, after it was held still.
const AWAKENING: Duration = Duration::from_millis(100);
/// How long clients in the backend may take to connect, and how often is looked.
const CONNECT_TIME: Duration = Duration::from_secs(20);
const CONNECT_INTERVAL: Duration = Duration::from_millis(20);

/// What is measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The ports, one after the other.
    pub ports: Vec<PortKind>,
    /// The servers.
    pub kinds: Vec<Kind>,
    /// How the backend is set up; `None`: as it is usual on the port.
    pub shapes: Vec<Shape>,
    /// Where guests run; `None`: as it is usual on the port.
    pub own_core: Option<bool>,
    /// How servers and client wait.
    pub waiting: Vec<Waiting>,
    /// Numbers of connections.
    pub connections: Vec<usize>,
    /// The client is wrk.
    pub wrk: bool,
    /// Open loops, in percent of what the reference reaches in a closed one.
    pub loads: Vec<u32>,
    /// How long a round is.
    pub round: Duration,
    /// Rounds of each row.
    pub rounds: u32,
    /// Whether is measured where the time goes.
    pub split: bool,
}

/// Who runs where.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    /// The client.
    pub client: usize,
    /// The servers.
    pub server: usize,
    /// Guests with a core of their own, beside a client; `None`: there is none left.
    pub guest: Option<usize>,
    /// Cores that this process may use.
    pub count: usize,
}

impl Cores {
    /// Where a guest with a core of its own runs.
    fn of_guest(&self, port: PortKind) -> Option<usize> {
        if port == PortKind::Memory { Some(self.client) } else { self.guest }
    }
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// No server.
    #[error(transparent)]
    Server(#[from] SceneError),
    /// No load.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Client and server on one core would only measure how these share it.
    #[error("this process may use one core only: the comparison needs two")]
    OneCore,
    /// A program is not there.
    #[error("{program} is not installed: install {package}, or leave it out")]
    Missing {
        /// The program.
        program: &'static str,
        /// The package that has it.
        package: &'static str,
    },
    /// No core for a guest.
    #[error(
        "client and server take both cores that this process may use: a guest's own needs a \
         third one, or --port memory, where the clients are in the backend"
    )]
    NoGuestCore,
    /// More than one network has room for.
    #[error("more than {} servers at once: name fewer --servers, --guests or --batch", PLACES_MAX - 1)]
    Places,
    /// Nobody is left to be measured.
    #[error("none of the --servers can be measured on --port {0}")]
    Nobody(&'static str),
    /// The backend says something else.
    #[error("the backend said nothing that is understood: {0}")]
    Said(#[from] serde_json::Error),
    /// The clients in the backend do not get on.
    #[error("the guest took {connected} of {wanted} connections")]
    Connect {
        /// Connections that were made.
        connected: usize,
        /// Connections asked for.
        wanted: usize,
    },
    /// The system refused.
    #[error("{what}: {source}")]
    System {
        /// What was refused.
        what: &'static str,
        /// What it said.
        source: io::Error,
    },
}

fn refused(what: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::System { what, source }
}

/// The rows, and who ran where.
pub fn measure(plan: &Plan) -> Result<(Vec<Row>, Cores), Error> {
    check_programs(plan)?;
    let cores = children::cores().map_err(refused("the cores cannot be counted"))?;
    let [client, server, ..] = cores[..] else { return Err(Error::OneCore) };
    let cores = Cores { client, server, guest: cores.get(2).copied(), count: cores.len() };
    children::pin(client).map_err(refused("the client cannot be bound to a core"))?;
    let most = plan.connections.iter().copied().max().unwrap_or(0) as u64;
    sys::allow_descriptors(most + 1024);
    let mut rows = Vec::new();
    for &port in &plan.ports {
        let contenders = contenders(plan, port, &cores)?;
        rows.extend(on_port(plan, port, cores, &contenders)?);
    }
    Ok((rows, cores))
}

/// An error unless the programs of others that the plan needs are there.
fn check_programs(plan: &Plan) -> Result<(), Error> {
    let is_wanted =
        |kind: Kind| plan.kinds.contains(&kind) && plan.ports.iter().any(|&port| kind.fits(port));
    let nginx = is_wanted(Kind::Nginx).then_some(("nginx", "nginx-light"));
    let wrk = plan.wrk.then_some(("wrk", "wrk"));
    for (program, package) in [nginx, wrk].into_iter().flatten() {
        let mut command = Command::new(program);
        // Both say what they are, and end.
        command.arg("-v").stdout(Stdio::null()).stderr(Stdio::null());
        if command.status().is_err() {
            return Err(Error::Missing { program, package });
        }
    }
    Ok(())
}

/// Who is compared on a port, whatever the waiting.
fn contenders(plan: &Plan, port: PortKind, cores: &Cores) -> Result<Vec<Contender>, Error> {
    let own_core = plan.own_core.unwrap_or(port == PortKind::Memory);
    let mut found: Vec<Contender> = Vec::new();
    for &kind in plan.kinds.iter().filter(|kind| kind.fits(port)) {
        let usual = [Shape::default()];
        let shapes = if kind == Kind::Pasted { &plan.shapes[..] } else { &usual };
        for &shape in shapes {
            let own_core = own_core && kind == Kind::Pasted;
            let shape = Shape { own_core, ..shape };
            found.push(Contender { kind, port, shape, waiting: Waiting::Poll });
        }
    }
    if found.is_empty() {
        return Err(Error::Nobody(port.name()));
    }
    if own_core && cores.of_guest(port).is_none() {
        return Err(Error::NoGuestCore);
    }
    if found.len() >= PLACES_MAX {
        return Err(Error::Places);
    }
    Ok(found)
}

/// What a comparison on one port needs.
struct Scene<'a> {
    plan: &'a Plan,
    port: PortKind,
    cores: Cores,
    bed: Option<Bed>,
    directory: Directory,
    /// By the number of the client's device.
    clients: HashMap<usize, Client>,
    /// Where each contender is.
    places: Vec<Place>,
    /// The place's number on the bed, for the client.
    numbers: Vec<usize>,
}

fn on_port(
    plan: &Plan,
    port: PortKind,
    cores: Cores,
    contenders: &[Contender],
) -> Result<Vec<Row>, Error> {
    let bed = match port {
        PortKind::Memory => None,
        _ => Some(Bed::enter(port, 1 + contenders.len(), plan.wrk)?),
    };
    let (places, numbers) = place(contenders, bed.as_ref());
    let directory = Directory::new()?;
    let clients = HashMap::new();
    let mut scene = Scene { plan, port, cores, bed, directory, clients, places, numbers };
    let mut rows = Vec::new();
    for &waiting in &plan.waiting {
        for &connections in &plan.connections {
            let contenders: Vec<Contender> = contenders
                .iter()
                .map(|one| Contender {
                    waiting: if one.kind.can_poll() { waiting } else { Waiting::Block },
                    ..*one
                })
                .collect();
            rows.extend(scene.compare(&contenders, waiting, connections)?);
        }
    }
    Ok(rows)
}

/// Where each contender is, and the number of that place.
fn place(contenders: &[Contender], bed: Option<&Bed>) -> (Vec<Place>, Vec<usize>) {
    let Some(bed) = bed else {
        return contenders.iter().map(|_| (Place::Memory(0), 0)).unzip();
    };
    let mut kernels = 0;
    let with_number = |(at, one): (usize, &Contender)| {
        let guests = one.shape.guests;
        if one.kind.is_kernels(one.port) {
            let first = kernels;
            kernels += guests;
            let addresses = (first..kernels).map(|number| bed.kernel(number)).collect();
            return (Place::Kernel(addresses), 0);
        }
        let stations = (0..guests).map(|guest| bed.station(1 + at, guest)).collect();
        (Place::Stations(stations), 1 + at)
    };
    contenders.iter().enumerate().map(with_number).unzip()
}

/// One of the compared: a server, the connections to it, and its rounds.
struct Side {
    server: Server,
    drive: Drive,
    closed: Vec<Round>,
    open: Vec<(Load, Vec<Round>)>,
}

/// Who drives it.
enum Drive {
    /// Our client with this number.
    Own { client: usize, group: Group },
    /// wrk.
    Wrk,
    /// Clients in the backend.
    Memory,
}

impl Scene<'_> {
    fn setting(&self, split: bool) -> Setting<'_> {
        let guest_core = self.cores.of_guest(self.port).unwrap_or(self.cores.server);
        Setting { core: self.cores.server, guest_core, directory: &self.directory, split }
    }

    /// All servers at one number of connections.
    fn compare(
        &mut self,
        contenders: &[Contender],
        waiting: Waiting,
        connections: usize,
    ) -> Result<Vec<Row>, Error> {
        let plan = self.plan;
        let mut sides = Vec::with_capacity(contenders.len());
        for (at, &contender) in contenders.iter().enumerate() {
            if connections > contender.kind.connections_max() {
                let most = contender.kind.connections_max();
                eprintln!("{} is left out beyond {most} connections", contender.name());
                continue;
            }
            sides.push(self.start(at, contender, waiting, connections, false)?);
        }
        for number in 1..=plan.rounds {
            for side in &mut sides {
                let round = self.let_run(side, Load::Closed, connections)?;
                self.tell(&side.server, waiting, connections, Load::Closed, number, &round);
                side.closed.push(round);
            }
        }
        for load in self.loads(&sides) {
            for side in &mut sides {
                side.open.push((load, Vec::new()));
            }
            for number in 1..=plan.rounds {
                for side in &mut sides {
                    let round = self.let_run(side, load, connections)?;
                    self.tell(&side.server, waiting, connections, load, number, &round);
                    if let Some((_, rounds)) = side.open.last_mut() {
                        rounds.push(round);
                    }
                }
            }
        }
        let mut rows = Vec::new();
        for side in sides {
            rows.extend(self.end(side, connections)?);
        }
        if plan.split {
            for (at, &contender) in contenders.iter().enumerate() {
                if contender.kind == Kind::Pasted {
                    self.split(at, contender, waiting, connections, &mut rows)?;
                }
            }
        }
        Ok(rows)
    }

    /// The open loops, by what the reference reached: the epoll server, or the first.
    fn loads(&self, sides: &[Side]) -> Vec<Load> {
        let reference = sides.iter().find(|side| side.server.contender.kind == Kind::Epoll);
        let Some(side) = reference.or(sides.first()) else { return Vec::new() };
        if matches!(side.drive, Drive::Memory | Drive::Wrk) {
            return Vec::new();
        }
        let saturation = median(&side.closed.iter().map(Round::rps).collect::<Vec<_>>());
        let load = |&percent: &u32| {
            let rps = saturation * f64::from(percent) / 100.0;
            Load::Open { rps, percent }
        };
        self.plan.loads.iter().map(load).collect()
    }

    /// Starts a server, connects to it, warms it up, and holds it still.
    fn start(
        &mut self,
        at: usize,
        contender: Contender,
        waiting: Waiting,
        connections: usize,
        split: bool,
    ) -> Result<Side, Error> {
        let place = match &self.places[at] {
            Place::Memory(_) => Place::Memory(connections.div_ceil(contender.shape.guests)),
            place => place.clone(),
        };
        let name = format!("server{at}");
        let server = Server::start(contender, place, &name, self.setting(split))?;
        let mut side = Side { server, drive: Drive::Wrk, closed: Vec::new(), open: Vec::new() };
        side.drive = match (&side.server.place, self.plan.wrk) {
            (Place::Memory(_), _) => {
                wait_connected(&mut side.server, connections)?;
                Drive::Memory
            }
            (_, true) => Drive::Wrk,
            (_, false) => self.connect(at, &mut side.server, waiting, connections)?,
        };
        // wrk gives up at once when it is refused, because the guest does not listen yet.
        let end = Instant::now() + CONNECT_TIME;
        while let Err(error) = self.round(&mut side, Load::Closed, connections, WARM_UP) {
            side.server.check()?;
            if !matches!(side.drive, Drive::Wrk) || Instant::now() > end {
                return Err(error);
            }
            std::thread::sleep(CONNECT_INTERVAL);
        }
        side.server.hold(true).map_err(refused("a server cannot be held still"))?;
        Ok(side)
    }

    /// Our client's connections to a server, spread over its addresses.
    fn connect(
        &mut self,
        at: usize,
        server: &mut Server,
        waiting: Waiting,
        connections: usize,
    ) -> Result<Drive, Error> {
        let Some(bed) = &self.bed else { return Ok(Drive::Memory) };
        let (number, device, address) = bed.client_of(self.numbers[at]);
        let poll = waiting.poll_us().map(Duration::from_micros);
        if !self.clients.contains_key(&number) {
            let most = self.plan.connections.iter().copied().max().unwrap_or(0);
            // Those that lead to places of the same device share a client.
            let sharing = self.numbers.iter().filter(|&&n| bed.client_of(n).0 == number).count();
            let client = Client::on(&device, address, (most * sharing) as u32, poll)?;
            self.clients.insert(number, client);
        }
        let client = self.clients.get_mut(&number).expect("it was put there");
        client.poll_for(poll);
        let addresses = server.place.addresses();
        let mut group = Group::default();
        for (part, &address) in addresses.iter().enumerate() {
            let count = (connections + part) / addresses.len();
            let script = Script::http(request(REQUEST_LEN, address));
            match client.connect(address, &vec![script; count]) {
                Ok(more) => group.merge(more),
                Err(error) => {
                    server.check()?;
                    return Err(error.into());
                }
            }
        }
        Ok(Drive::Own { client: number, group })
    }

    /// One round of a server that is held still otherwise.
    fn let_run(&mut self, side: &mut Side, load: Load, connections: usize) -> Result<Round, Error> {
        side.server.hold(false).map_err(refused("a server cannot be let go on"))?;
        // Its caches are another's by now: in an open loop, what it is slower by at first
        // would be a queue that is the whole round's p99.
        if !matches!(side.drive, Drive::Wrk) {
            self.round(side, load, connections, AWAKENING)?;
        }
        let round = self.round(side, load, connections, self.plan.round)?;
        side.server.hold(true).map_err(refused("a server cannot be held still"))?;
        Ok(round)
    }

    /// Drives a server for `duration`, and waits for what is on its way then.
    fn round(
        &mut self,
        side: &mut Side,
        load: Load,
        connections: usize,
        duration: Duration,
    ) -> Result<Round, Error> {
        let unread = || refused("CPU times cannot be read");
        let Side { server, drive, .. } = side;
        let server_cores = self.server_cores(server.contender);
        let pids = server.pids();
        let used = |cores: Cores| Used::now(cores, &server_cores, &pids);
        let cores = self.cores;
        let before = used(cores).map_err(unread())?;
        let mut round = match drive {
            Drive::Own { client, group } => {
                let client = self.clients.get_mut(client).expect("it has connections");
                let pace = match load {
                    Load::Closed => Pace::Closed,
                    Load::Open { rps, .. } => Pace::Open(rps),
                };
                let mut stretch = client.drive_at(group, pace, duration)?;
                let after = match used(cores) {
                    Ok(after) => after,
                    Err(error) => {
                        server.check()?;
                        return Err(unread()(error));
                    }
                };
                client.drain(group, &mut stretch)?;
                let mut round = of_stretch(&stretch);
                after.since(&before, &mut round);
                server.check()?;
                return Ok(round);
            }
            Drive::Wrk => {
                let network = self.bed.as_ref().and_then(Bed::far).unwrap_or_default();
                let address = server.place.addresses()[0];
                let (core, directory) = (cores.client, &self.directory);
                let said = wrk::run(&network, address, connections, duration, core, directory)?;
                let [p50, p90, p99] = said.latency_us;
                Round {
                    requests: said.requests,
                    elapsed_ns: said.elapsed_ns,
                    latency_us: [p50, p90, p99, f64::NAN],
                    errors: said.errors,
                    ..Round::default()
                }
            }
            Drive::Memory => {
                // What was before is told, and forgotten.
                server.ask()?;
                std::thread::sleep(duration);
                let said: Said = serde_json::from_str(&server.ask()?)?;
                let clients = said.clients.unwrap_or_default();
                Round {
                    requests: clients.requests,
                    elapsed_ns: clients.elapsed_ns,
                    latency_us: clients.latency_us,
                    errors: clients.errors,
                    retransmits: clients.repeated,
                    ..Round::default()
                }
            }
        };
        let after = used(cores);
        server.check()?;
        let after = after.map_err(unread())?;
        after.since(&before, &mut round);
        if matches!(drive, Drive::Wrk | Drive::Memory) {
            round.client_ns = 0;
        }
        Ok(round)
    }

    /// The cores that a server has.
    fn server_cores(&self, contender: Contender) -> Vec<usize> {
        let own = contender.shape.own_core.then(|| self.cores.of_guest(self.port)).flatten();
        std::iter::once(self.cores.server).chain(own).collect()
    }

    fn tell(
        &self,
        server: &Server,
        waiting: Waiting,
        connections: usize,
        load: Load,
        number: u32,
        round: &Round,
    ) {
        let load = match load {
            Load::Closed => String::new(),
            Load::Open { percent, .. } => format!(", {percent} % load"),
        };
        eprintln!(
            "{}, {}, {connections} connections{load}, round {number} of {}: {} {:.0} requests/s",
            self.port.name(),
            waiting.name(),
            self.plan.rounds,
            server.contender.label(),
            round.rps(),
        );
    }

    /// Ends a server, and adds up its rounds.
    fn end(&mut self, side: Side, connections: usize) -> Result<Vec<Row>, Error> {
        let Side { server, drive, closed, open } = side;
        server.hold(false).map_err(refused("a server cannot be let go on"))?;
        let client = match drive {
            Drive::Own { client, group } => {
                let client = self.clients.get_mut(&client).expect("it has connections");
                client.disconnect(group)?;
                "own"
            }
            Drive::Wrk => "wrk",
            Drive::Memory => "backend",
        };
        let contender = server.contender;
        let counted = server.stop()?;
        let device = self.bed.as_ref().map_or("memory", Bed::device);
        let row = |load: Load, rounds: &[Round], counted: &Counted| {
            let cell = Cell { contender, device, client, connections, load };
            Row::new(cell, rounds, counted)
        };
        let mut rows = vec![row(Load::Closed, &closed, &counted)];
        rows.extend(open.iter().map(|(load, rounds)| row(*load, rounds, &counted)));
        Ok(rows)
    }

    /// Measures where the backend's time goes, and notes it in its row.
    fn split(
        &mut self,
        at: usize,
        contender: Contender,
        waiting: Waiting,
        connections: usize,
        rows: &mut [Row],
    ) -> Result<(), Error> {
        let mut side = self.start(at, contender, waiting, connections, true)?;
        side.server.hold(false).map_err(refused("a server cannot be let go on"))?;
        let before: Said = serde_json::from_str(&side.server.ask()?)?;
        let duration = self.plan.round;
        let round = self.round(&mut side, Load::Closed, connections, duration)?;
        let after: Said = serde_json::from_str(&side.server.ask()?)?;
        self.end(side, connections)?;
        let row = rows
            .iter_mut()
            .find(|row| row.cell.contender == contender && row.cell.load == Load::Closed);
        if let (Some(row), Some(before), Some(after)) = (row, before.spent, after.spent) {
            let us = |ns: u64| per(ns as f64 / 1e3, round.requests);
            let port = after.port_ns.saturating_sub(before.port_ns);
            let engine = after.engine_ns.saturating_sub(before.engine_ns);
            let part = |at: usize| round.server.get(at).map_or(0, |part| part.total_ns);
            let guests: u64 = (1..round.server.len()).map(part).sum();
            row.split = Some(Split {
                port: us(port),
                stack: us(engine.saturating_sub(port)),
                ring: us(part(0).saturating_sub(engine)),
                application: us(guests),
                speed: round.rps() / row.rps.median.max(f64::MIN_POSITIVE),
            });
        }
        Ok(())
    }
}

/// Waits until the clients in the backend are all connected.
fn wait_connected(server: &mut Server, wanted: usize) -> Result<(), Error> {
    let end = Instant::now() + CONNECT_TIME;
    loop {
        server.check()?;
        let said: Said = serde_json::from_str(&server.ask()?)?;
        let connected = said.clients.map_or(0, |clients| clients.connected);
        if connected >= wanted {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(Error::Connect { connected, wanted });
        }
        std::thread::sleep(CONNECT_INTERVAL);
    }
}

fn of_stretch(stretch: &Stretch) -> Round {
    let sample: &Sample = &stretch.sample;
    Round {
        requests: sample.requests,
        elapsed_ns: sample.elapsed_ns,
        latency_us: PERCENTILES.map(|percent| sample.latency_us(percent)),
        errors: sample.errors.total(),
        retransmits: stretch.retransmits,
        unsent: stretch.unsent,
        idle_ns: Some(stretch.idle_ns),
        ..Round::default()
    }
}

/// CPU time that was used so far.
struct Used {
    busy_ns: u64,
    own_ns: u64,
    client_core: CoreTime,
    server_cores: Vec<CoreTime>,
    parts: Vec<PartTime>,
    stolen: sys::Stolen,
}

impl Used {
    fn now(cores: Cores, server_cores: &[usize], pids: &[u32]) -> io::Result<Used> {
        let part = |&pid: &u32| -> io::Result<PartTime> {
            let total_ns = usage::process_ns(pid)?;
            let (user_ns, system_ns) = sys::user_and_system_ns(pid)?;
            Ok(PartTime { total_ns, user_ns, system_ns })
        };
        Ok(Used {
            busy_ns: usage::busy_ns()?,
            own_ns: usage::process_ns(std::process::id())?,
            client_core: CoreTime::of(cores.client)?,
            server_cores: server_cores
                .iter()
                .map(|&core| CoreTime::of(core))
                .collect::<Result<_, _>>()?,
            parts: pids.iter().map(part).collect::<Result<_, _>>()?,
            stolen: sys::stolen()?,
        })
    }

    /// Notes in a round what was used since `before`.
    fn since(&self, before: &Used, round: &mut Round) {
        let cores = self.server_cores.iter().zip(&before.server_cores);
        round.busy_ns = self.busy_ns.saturating_sub(before.busy_ns);
        round.client_ns = self.own_ns.saturating_sub(before.own_ns);
        round.client_core_ns = self.client_core.busy_ns_since(before.client_core);
        round.server_core_ns = cores.map(|(now, before)| now.busy_ns_since(*before)).sum();
        let parts = self.parts.iter().zip(&before.parts);
        let minus = |(now, before): (&PartTime, &PartTime)| PartTime {
            total_ns: now.total_ns.saturating_sub(before.total_ns),
            user_ns: now.user_ns.saturating_sub(before.user_ns),
            system_ns: now.system_ns.saturating_sub(before.system_ns),
        };
        round.server = parts.map(minus).collect();
        round.steal_percent = self.stolen.percent_since(before.stolen);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(ports: &[PortKind]) -> Plan {
        Plan {
            ports: ports.to_vec(),
            kinds: Kind::ALL.to_vec(),
            shapes: vec![Shape::default()],
            own_core: None,
            waiting: vec![Waiting::Poll],
            connections: vec![1],
            wrk: false,
            loads: Vec::new(),
            round: Duration::from_secs(1),
            rounds: 1,
            split: false,
        }
    }

    const TWO: Cores = Cores { client: 0, server: 1, guest: None, count: 2 };

    #[test]
    fn who_cannot_be_measured_is_told() {
        let mut plan = plan(&[PortKind::Tap]);
        assert_eq!(contenders(&plan, PortKind::Tap, &TWO).unwrap().len(), 6);
        plan.own_core = Some(true);
        assert!(matches!(contenders(&plan, PortKind::Tap, &TWO), Err(Error::NoGuestCore)));
        let three = Cores { guest: Some(2), ..TWO };
        let found = contenders(&plan, PortKind::Tap, &three).unwrap();
        assert!(found.iter().all(|one| one.shape.own_core == (one.kind == Kind::Pasted)));
        plan.own_core = None;
        plan.kinds = vec![Kind::Epoll];
        assert!(matches!(contenders(&plan, PortKind::Memory, &TWO), Err(Error::Nobody(_))));
        plan.kinds = vec![Kind::Pasted];
        plan.shapes = vec![Shape::default(); PLACES_MAX];
        assert!(matches!(contenders(&plan, PortKind::Tap, &TWO), Err(Error::Places)));
    }

    #[test]
    fn clients_in_the_backend_leave_a_core_to_the_guest() {
        let found = contenders(&plan(&[PortKind::Memory]), PortKind::Memory, &TWO).unwrap();
        assert!(found.len() == 1 && found[0].shape.own_core);
        assert_eq!(TWO.of_guest(PortKind::Memory), Some(0));
    }
}
