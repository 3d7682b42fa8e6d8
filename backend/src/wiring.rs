//! Who is connected to whom: the one place that knows the configuration and
//! the parts.
//!
//! Everything is opened before anything is started; if one guest cannot be
//! served, none is, and nothing is left behind. Then the worker threads run, and
//! this thread waits for the signal to stop, and for VMMs that ask for guests.

mod demand;
mod shared;
mod threads;

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use paste_abi::control::FlushDomain;
use paste_pmem::{
    Backing, Domain, Geometry, GeometryError, HugePages, Identity, Opened, Origin, Provided,
    Region, RegionError, Segment, Spec, Uuid,
};
use paste_stack::Stack;
use paste_stack::config;

use crate::attachment::{Attachment, Common, OpenContext, OpenError};
use crate::channel::{Channels, Terms, address_octets};
use crate::config::{Config, Guest, Poll, RegionSpec, Socket, SocketMode};
use crate::durability::Durability;
use crate::engine::share::{Link, Share, ShareOptions};
use crate::engine::{RegionMemory, StackPort, UserEngine};
use crate::lanes::LaneEngine;
use crate::link::{self, ControlError, Post, RegionLink};
use crate::metrics::{GuestSnapshot, PortSnapshot, Snapshot};
use crate::port::{LimitedPort, Port, Station, Tokens};
use crate::switch::JoinError;
use crate::sys::clock::realtime_ns;
use crate::sys::{prefer_huge_pages, wake};
use crate::vhost::{Device, DeviceOptions, Endpoint, EndpointError, RegionFd};
use crate::worker::{
    Ended, GuestTask, Network, Others, Parts, PmemPort, RegionPort, Role, Sources, join,
};

use demand::{Demand, Served};
use shared::{Ends, Shared};
use threads::{Placed, Threads};

/// The smallest offset in a buffer that a guest may send from: room for the
/// longest header, so that it can be written in front of the payload.
const HEADROOM: u16 = paste_stack::frame::HEAD_MAX as u16;
/// Sends of stored buffers under way at once, at most; or as many as there are
/// buffers.
const SHARED_SENDS_MAX: u32 = 65_536;
/// Descriptors in a ring, at most.
const QUEUE_SIZE_MAX: u16 = 1024;
/// Time between attempts to reach a front end that listens.
const CONNECT_RETRY: Duration = Duration::from_secs(1);

/// Why nothing was started, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A region.
    #[error("guest {guest}: {source}")]
    Region {
        /// The guest's name.
        guest: String,
        /// What is wrong.
        source: OpenRegionError,
    },
    /// A port.
    #[error("guest {guest}: {source}")]
    Port {
        /// The guest's name.
        guest: String,
        /// What is wrong.
        source: OpenError,
    },
    /// A socket.
    #[error("guest {guest}: {source}")]
    Endpoint {
        /// The guest's name.
        guest: String,
        /// What is wrong.
        source: EndpointError,
    },
    /// A virtio-pmem device for a region that nothing makes durable, or the guest's
    /// CPU.
    #[error(
        "guest {guest}: region: pmem_socket is of no use, because it is not the host that \
         makes this region durable: give it a mirror, or leave pmem_socket out"
    )]
    NothingToFlush {
        /// The guest's name.
        guest: String,
    },
    /// Limits of frames, where there are none.
    #[error(
        "guest {guest}: rate_limit counts frames, and its port has none, because TCP is the \
         host's own: limit it there, or leave rate_limit out"
    )]
    NothingToLimit {
        /// The guest's name.
        guest: String,
    },
    /// A port that other guests have.
    #[error("guest {guest}: {source}")]
    Join {
        /// The guest's name.
        guest: String,
        /// Why it cannot come to them.
        source: JoinError,
    },
    /// The control socket.
    #[error("control: {0}")]
    Control(#[from] ControlError),
    /// The operating system refused something that every guest needs.
    #[error("{what}: {source}")]
    System {
        /// What was refused.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// `--fd` names a guest that the configuration does not have, or one that waits for its
    /// VMM's memory.
    #[error("--fd: there is no guest {0} in the configuration that a VMM attaches to by a socket")]
    NoSuchGuest(String),
    /// The CPU of a worker is not to be had.
    #[error(
        "worker {worker}: CPU {cpu} is not to be had ({source}): use those that `taskset -cp $$` \
         shows"
    )]
    Cpu {
        /// The worker.
        worker: usize,
        /// The CPU, as configured.
        cpu: usize,
        /// What the system said.
        source: io::Error,
    },
    /// A guest was lost, or a port that several guests share.
    #[error("{0} was no longer served; the log says why")]
    Lost(String),
    /// The counters could not be written.
    #[error("{}: the counters cannot be written: {source}", path.display())]
    Stats {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Descriptors that were inherited for guests, in place of their sockets.
pub type Inherited = Vec<(String, OwnedFd)>;

/// What stands between the parts of a guest, for whoever measures them or puts others in
/// their place.
pub trait Fittings {
    /// The port that is used in place of this one, which was opened.
    fn port(&self, port: Box<dyn Port>) -> Box<dyn Port> {
        port
    }

    /// The engine that is used in place of this one.
    fn engine(&self, engine: Box<dyn StackPort>) -> Box<dyn StackPort> {
        engine
    }
}

/// Nothing stands between them.
struct Plain;

impl Fittings for Plain {}

/// Serves all guests until SIGTERM or SIGINT, then stops in good order.
pub fn run(config: &Config, inherited: Inherited) -> Result<(), Error> {
    run_fitted(config, inherited, &Plain)
}

/// As [`run`], with something between the parts of each guest that is in the configuration.
pub fn run_fitted(
    config: &Config,
    inherited: Inherited,
    fittings: &dyn Fittings,
) -> Result<(), Error> {
    let system = |what| move |source| Error::System { what, source };
    // Registered before anything is opened, so that no signal is missed.
    let (signals, told) = UnixStream::pair().map_err(system("a socket pair cannot be made"))?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        told.try_clone()
            .and_then(|told| signal_hook::low_level::pipe::register(signal, told))
            .map_err(system("signals cannot be watched"))?;
    }

    let (opened, shared, common) = open_all(config, inherited, fittings)?;
    let (switches, _nics, doors) = shared.into_parts();
    let mut demand = Demand::open(config, common, doors)?;
    let mut placed = Vec::new();
    let mut regions = Vec::with_capacity(opened.len());
    for (ready, guest) in opened.into_iter().zip(open_at_start(config)) {
        let Ready { lanes, region, made, post } = ready;
        demand.knows(&guest.name, post);
        let mut names = Vec::with_capacity(lanes.len());
        for (index, lane) in lanes.into_iter().enumerate() {
            let name = lane_name(&guest.name, index);
            names.push(name.clone());
            let worker = guest.workers.get(index).copied();
            placed.push(Placed { name, task: Box::new(lane), worker });
        }
        regions.push((names, region, made));
    }
    placed.extend(switches);
    let threads = Threads::start(placed, config.workers.as_ref())?;
    let keep = |(names, region, made): (Vec<String>, Region, Made)| {
        made.keep();
        (names, region)
    };
    let mut regions: Vec<_> = regions.into_iter().map(keep).collect();
    tracing::info!(guests = regions.len(), workers = threads.count(), "serving");

    demand.serve(&signals);
    tracing::info!("stopping");
    let mut all = vec![threads];
    let Served { guests, threads, regions: _more_nics } = demand.into_served();
    regions.extend(guests);
    all.extend(threads);
    stop_all(config, regions, all)
}

fn stop_all(
    config: &Config,
    regions: Vec<(Vec<String>, Region)>,
    threads: Vec<Threads>,
) -> Result<(), Error> {
    let (mut ended, mut workers) = (Vec::new(), Vec::new());
    // Who came last ends first: what he sends last goes by a port that was there before.
    for threads in threads.into_iter().rev() {
        let (tasks, counted) = threads.stop();
        ended.extend(tasks);
        workers.push(counted);
    }
    let workers = workers.into_iter().rev().flatten().collect();
    let mut snapshot = Snapshot { workers, ..Snapshot::default() };
    let mut outcome = Ok(());
    // In the order of the configuration, and then in that of asking.
    for (names, region) in regions {
        for name in &names {
            let found = ended.iter().position(|ended| !ended.last && ended.name == *name);
            match found.map(|index| ended.swap_remove(index)) {
                Some(Ended { counted: Some(counted), .. }) => {
                    snapshot.guests.push(GuestSnapshot::of(name, counted));
                }
                _ => outcome = Err(Error::Lost(format!("guest {name}"))),
            }
        }
        if let Err(source) = region.close() {
            let guest = names.into_iter().next().unwrap_or_default();
            outcome = Err(Error::Region { guest, source: source.into() });
        }
    }
    for Ended { name, counted, .. } in ended {
        match counted {
            Some(counted) => snapshot
                .shared_ports
                .push(PortSnapshot { port: name, counters: counted.into_iter().collect() }),
            None => outcome = Err(Error::Lost(format!("port {name}"))),
        }
    }
    if let Some(path) = &config.stats {
        snapshot.write_to(path).map_err(|source| Error::Stats { path: path.clone(), source })?;
    }
    outcome
}

/// A guest whose parts are all open.
struct Ready {
    /// One for each of its workers.
    lanes: Vec<GuestTask>,
    region: Region,
    made: Made,
    post: Post,
}

/// The files of a region that this process has made. Dropping it removes them:
/// until every guest could be opened, they were made for nothing.
struct Made(Vec<PathBuf>);

impl Made {
    /// The region is in use from here on.
    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(file = %path.display(), %error, "an unused region stays");
            }
        }
    }
}

/// Opens everything of every guest. What was opened is closed again if any of
/// it fails.
fn open_all(
    config: &Config,
    mut inherited: Inherited,
    fittings: &dyn Fittings,
) -> Result<(Vec<Ready>, Shared, Common), Error> {
    if let Some((name, _)) =
        inherited.iter().find(|(name, _)| open_at_start(config).all(|g| g.name != *name))
    {
        return Err(Error::NoSuchGuest(name.clone()));
    }
    let mut common = Common::default();
    let mut shared = Shared::open(&config.guests, &config.templates, &mut common)?;
    let ready: Result<Vec<_>, _> = open_at_start(config)
        .map(|guest| {
            let fd = inherited
                .iter()
                .position(|(name, _)| *name == guest.name)
                .map(|index| inherited.swap_remove(index).1);
            let ends = |_: &mut Common| Ok(shared.take(&guest.name));
            open(guest, ends, &mut common, fd, None, fittings)
        })
        .collect();
    Ok((ready?, shared, common))
}

/// The guests that need no memory of a VMM's to be there.
fn open_at_start(config: &Config) -> impl Iterator<Item = &Guest> {
    config.guests.iter().filter(|guest| !guest.region.segment)
}

/// Memory of a VMM's for a guest's region, and the link of the device that shows it.
struct Given {
    segment: Segment,
    link: RegionLink,
}

/// What a lane of a guest is called: the first one as the guest, others with a number.
fn lane_name(guest: &str, index: usize) -> String {
    if index == 0 { guest.to_owned() } else { format!("{guest}/{index}") }
}

/// Opens everything of one guest, but for the ends of a switch, which it is given when it
/// has a region.
fn open(
    guest: &Guest,
    ends: impl FnOnce(&mut Common) -> Result<Option<Ends>, Error>,
    common: &mut Common,
    fd: Option<OwnedFd>,
    given: Option<Given>,
    fittings: &dyn Fittings,
) -> Result<Ready, Error> {
    let name = || guest.name.clone();
    let mac = guest.mac.octets();
    let system = |what| move |source| Error::System { what, source };

    let (segment, shown) = given.map(|given| (given.segment, given.link)).unzip();
    let (region, made) =
        open_region(guest, segment).map_err(|source| Error::Region { guest: name(), source })?;
    let (attachments, ports) = match ends(common)? {
        Some(Ends { attachments, ports }) => (attachments, ports),
        None => (vec![attach(guest, guest.mtu, &region, common)?], None),
    };
    let lanes = attachments.len();
    // All of them together have as many as the guest may have.
    let flows_max = guest.flows_max.div_ceil(lanes as u32);
    // The limit is the guest's, and all of them take from it.
    let tokens = Arc::new(Tokens::new(guest.rate_limit));
    let mut engines = Vec::with_capacity(lanes);
    for (opened, lane) in attachments.into_iter().zip(0..) {
        let engine = match opened {
            Attachment::StackPort(_) if !guest.rate_limit.is_none() => {
                return Err(Error::NothingToLimit { guest: name() });
            }
            Attachment::StackPort(engine) => engine,
            Attachment::Port(port) if guest.rate_limit.is_none() => {
                user_engine(guest, flows_max, &region, fittings.port(port))?
            }
            Attachment::Port(port) => {
                let port = LimitedPort::new(fittings.port(port), Arc::clone(&tokens));
                let port = Box::new(port);
                user_engine(guest, flows_max, &region, port)?
            }
        };
        let engine = fittings.engine(engine);
        engines.push(match &ports {
            None => engine,
            Some(ports) => {
                let mut random = [0; 4];
                fill_random(&mut random).map_err(no_random)?;
                let random = u32::from_ne_bytes(random);
                Box::new(LaneEngine::new(engine, Arc::clone(ports), lane, random))
            }
        });
    }
    let region_error = |source: RegionError| Error::Region { guest: name(), source: source.into() };
    let endpoint_error = |source| Error::Endpoint { guest: name(), source };
    let endpoint = match (fd, &guest.socket) {
        (Some(fd), _) => Endpoint::adopt(fd),
        (None, Some(socket)) => meet(socket),
        (None, None) => Ok(Endpoint::nowhere()),
    }
    .map_err(endpoint_error)?;
    let shared = || {
        let fd = region.fd().try_clone_to_owned();
        let fd = fd.map_err(system("the region's descriptor cannot be duplicated"))?;
        Ok::<_, Error>(RegionFd { fd, offset: region.guest_offset(), len: region.guest_len() })
    };
    let terms = Terms {
        region_uuid: region.uuid().0,
        region_len: region.guest_len(),
        buffers_offset: region.geometry().buffers().offset,
        headroom: HEADROOM,
        flows_max,
        address: address_octets(guest.address()),
        mtu: engines[0].caps().mtu,
        mac,
    };
    let (waker, wakeups) = wake::pair().map_err(system("a pipe cannot be made"))?;
    let without_host = || {
        Durability::without_host(match region.domain() {
            Domain::CpuCache(_) => FlushDomain::CpuCache,
            Domain::None | Domain::Mirror => FlushDomain::None,
        })
    };
    // Of the first lane, and of the others in their order.
    let pipes = (1..lanes).map(|_| wake::pair()).collect::<io::Result<Vec<_>>>();
    let pipes = pipes.map_err(system("a pipe cannot be made"))?;
    let mut durability = match region.flusher().map_err(region_error)? {
        Some(flusher) => {
            let others = pipes.iter().map(|(waker, _)| waker.clone());
            let wakers = std::iter::once(waker.clone()).chain(others).collect();
            Durability::by_host(&guest.name, Box::new(flusher), wakers)
                .map_err(system("a thread cannot be started"))?
        }
        None => (0..lanes).map(|_| without_host()).collect(),
    }
    .into_iter();
    let Some(first_durability) = durability.next() else {
        unreachable!("a guest has a lane");
    };
    let mut pmem = match &guest.region.pmem_socket {
        Some(_) if first_durability.domain() != FlushDomain::Host => {
            return Err(Error::NothingToFlush { guest: name() });
        }
        Some(socket) => {
            let endpoint = meet(socket).map_err(endpoint_error)?;
            Some(PmemPort::new(endpoint, Device::pmem(name(), shared()?)))
        }
        None => None,
    };

    // The first lane last, which is told of the others.
    let mut pools = region.pool().split(lanes as u32);
    let mut others = Others::default();
    let mut further = Vec::with_capacity(lanes);
    let parts = |index: usize, role, device, engine, pool, durability| Parts {
        name: lane_name(&guest.name, index),
        role,
        offers: None,
        device,
        engine,
        memory: RegionMemory::new(pool),
        channels: Channels::new(terms, durability),
        pmem: None,
        region: None,
        sources: guest.spoof_check.then(|| sources(guest)),
        poll_ns: poll_ns(guest),
    };
    let device = |name, engine: &dyn StackPort, region, pairs| {
        let caps = engine.caps();
        Device::new(DeviceOptions {
            name,
            mac,
            mtu: caps.mtu,
            csum: caps.tx_csum && caps.rx_partial,
            segments: caps.tx_csum && caps.rx_partial,
            region,
            queue_size_max: QUEUE_SIZE_MAX,
            pairs,
        })
    };
    let mut rest = engines.into_iter().zip(pools.drain(..));
    let Some((engine, pool)) = rest.next() else {
        unreachable!("a guest has a lane");
    };
    for (index, (((engine, pool), durability), (lane, woken))) in
        (1..).zip(rest.zip(durability).zip(pipes))
    {
        let role = Role::Further(join(&mut others, waker.clone(), lane));
        let device = device(lane_name(&guest.name, index), &*engine, None, 1);
        let parts = parts(index, role, device, engine, pool, durability);
        further.push(GuestTask::new(parts, woken));
    }
    let device = device(name(), &*engine, Some(shared()?), lanes);
    let role = Role::First(endpoint, others);
    let mut parts = parts(0, role, device, engine, pool, first_durability);
    let (post, offers) = link::mailbox(waker);
    (parts.pmem, parts.offers) = (pmem.take(), Some(offers));
    parts.region = shown.map(RegionPort::new);
    let mut lanes = vec![GuestTask::new(parts, wakeups)];
    lanes.append(&mut further);
    tracing::info!(guest = %guest.name, socket = ?guest.socket.as_ref().map(|socket| &socket.path),
        address = %guest.address(), port = %guest.port, domain = ?region.domain(),
        lanes = lanes.len(), "guest opened");
    Ok(Ready { lanes, region, made, post })
}

/// How long the guest is polled before it sleeps, ns.
fn poll_ns(guest: &Guest) -> u64 {
    match guest.poll {
        Poll::Always => u64::MAX,
        Poll::For(time) => time.as_nanos() as u64,
    }
}

/// Opens the device that a guest names, with frames in this region.
fn attach(
    guest: &Guest,
    mtu: u16,
    region: &Region,
    common: &mut Common,
) -> Result<Attachment, Error> {
    let mut context = OpenContext {
        mtu,
        stations: &[station(guest)],
        flows_max: guest.flows_max,
        spoof_check: guest.spoof_check,
        headroom: HEADROOM,
        shared_sends_max: region.geometry().buffer_count().min(SHARED_SENDS_MAX),
        region,
        common,
    };
    let opened = guest.port.open(&mut context);
    opened.map_err(|source| Error::Port { guest: guest.name.clone(), source })
}

/// The guest as its neighbours know it.
fn station(guest: &Guest) -> Station {
    let addresses = match guest.shares_addresses {
        true => guest.single_sources().collect(),
        false => guest.addresses.iter().map(|prefix| prefix.address()).collect(),
    };
    Station { mac: guest.mac.octets(), vlan: guest.vlan, addresses }
}

/// Who the guest's kernel may say that it is.
fn sources(guest: &Guest) -> Sources {
    let own = guest.addresses.iter().map(|prefix| Network::one(prefix.address()));
    let mac = guest.mac.octets();
    let networks = own.chain([Network::link_local(mac)]).chain(guest.sources.iter().copied());
    Sources::new(mac, guest.vlan, networks.collect())
}

/// Where front ends attach, as the configuration says.
fn meet(socket: &Socket) -> Result<Endpoint, EndpointError> {
    match socket.mode {
        SocketMode::Server => Endpoint::bind(&socket.path),
        SocketMode::Client => Endpoint::connect(&socket.path, CONNECT_RETRY),
    }
}

/// Our own stack over a port, for one guest.
fn user_engine(
    guest: &Guest,
    flows_max: u32,
    region: &Region,
    port: Box<dyn Port>,
) -> Result<Box<dyn StackPort>, Error> {
    let (caps, geometry) = (port.caps(), region.geometry());
    let mut stack = stack_config(guest);
    // Not the guest's: of longer packets that arrive, the port makes several.
    stack.mtu = caps.mtu;
    stack.headroom = HEADROOM;
    stack.flows_max = flows_max;
    stack.shared_sends_max = geometry.buffer_count().min(SHARED_SENDS_MAX);
    stack.tx_csum_offload = caps.tx_csum;
    stack.header_in_buffer = !guest.spoof_check || !caps.gather;
    let mut secret = [0; 16];
    fill_random(&mut secret).map_err(no_random)?;
    let buffer_count = geometry.buffer_count();
    let make = move |config| {
        let stack = Stack::new(config, buffer_count, secret);
        stack.tables().into_iter().for_each(prefer_huge_pages);
        stack
    };
    let (mac, buffer_size) = (guest.mac.octets(), geometry.buffer_size() as usize);
    if !guest.shares_addresses {
        return Ok(Box::new(UserEngine::new(make(stack), port, mac, buffer_size)));
    }
    let link = |&gateway| {
        let prefix_len = guest.link_of(gateway)?.prefix_len();
        Some(Link { gateway, prefix_len })
    };
    let share = Share::new(ShareOptions {
        config: stack,
        links: guest.gateways.iter().filter_map(link).collect(),
        addresses: guest.single_sources().collect(),
        make: Box::new(make),
    });
    Ok(Box::new(UserEngine::shared(share, port, mac, buffer_size)))
}

/// What the configuration says of the guest's stack.
fn stack_config(guest: &Guest) -> paste_stack::Config {
    let mut stack = paste_stack::Config::unaddressed(guest.mac.octets());
    for prefix in &guest.addresses {
        let prefix_len = prefix.prefix_len();
        match prefix.address() {
            IpAddr::V4(address) => {
                let gateway = guest.gateways.iter().find_map(|gateway| match gateway {
                    IpAddr::V4(gateway) => Some(*gateway),
                    IpAddr::V6(_) => None,
                });
                stack.ipv4 = Some(config::Network { address, prefix_len, gateway });
            }
            IpAddr::V6(address) => {
                let gateway = guest.gateways.iter().find_map(|gateway| match gateway {
                    IpAddr::V4(_) => None,
                    IpAddr::V6(gateway) => Some(*gateway),
                });
                stack.ipv6 = Some(config::Network { address, prefix_len, gateway });
            }
        }
    }
    stack.accept_ra = guest.accept_ra;
    stack.vlan = guest.vlan;
    stack
}

/// Opens the guest's region, restores it from its mirror, or makes it where there
/// is none yet. It lies in the segment, if there is one; without, one that is to lie in
/// such waits in memory that no guest sees.
fn open_region(guest: &Guest, segment: Option<Segment>) -> Result<(Region, Made), OpenRegionError> {
    let RegionSpec { size, path, mirror, buffer_size, segment: in_segment, .. } = &guest.region;
    // What waits for a segment is another region, which no application takes for its own:
    // it has nothing of the mirror's.
    let mirror = mirror.clone().filter(|_| segment.is_some() || !in_segment);
    let spec = Spec {
        backing: match (segment, path) {
            (Some(segment), _) => Backing::Segment(segment),
            (None, None) => Backing::Memory(HugePages::No),
            (None, Some(path)) => Backing::File(path.clone()),
        },
        mirror,
        geometry: Geometry::new(*size, *buffer_size)?,
        identity: Identity {
            guest: &guest.name,
            uuid: Uuid::random().map_err(OpenRegionError::Random)?,
            created_ns: realtime_ns(),
        },
    };
    let mut copying = false;
    let Provided { region, origin, made } = paste_pmem::provide(&spec, &mut |_, bytes| {
        if !copying {
            tracing::info!(guest = %guest.name, bytes, "copying between region and mirror");
            copying = true;
        }
    })?;
    let made = Made(made);
    let opened = match origin {
        Origin::New => None,
        Origin::File(opened) => Some(opened),
        Origin::Mirror(opened) => {
            tracing::warn!(region = region.name(), "region restored from its mirror");
            Some(opened)
        }
    };
    if let Some(Opened { clean, repaired }) = opened {
        if let Some(copy) = repaired {
            tracing::warn!(region = region.name(), copy, "damaged superblock repaired");
        }
        if !clean {
            tracing::warn!(region = region.name(), "region was not closed in good order");
        }
    }
    Ok((region, made))
}

/// Why a guest has no region.
#[derive(Debug, thiserror::Error)]
pub enum OpenRegionError {
    /// It could not be created or opened.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// Its parts do not fit together.
    #[error("region: {0}")]
    Geometry(#[from] GeometryError),
    /// It could not be given an identity.
    #[error("region: no random numbers are to be had: {0}")]
    Random(io::Error),
}

fn no_random(source: io::Error) -> Error {
    Error::System { what: "no random numbers are to be had", source }
}

fn fill_random(out: &mut [u8]) -> io::Result<()> {
    Ok(getrandom::fill(out)?)
}
