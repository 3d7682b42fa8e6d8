//! Guests that VMMs ask for on the control socket: those of the configuration, and those
//! that are made of a template the first time. Once made, a guest stays, with its
//! addresses, until the process ends. Where its template names a port that several can
//! share, it comes to those that are there.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use paste_pmem::Region;

use super::shared::{Door, Ends, Shared};
use super::threads::{Placed, Threads};
use super::{Error, Plain, Ready, lane_name, open, station};
use crate::attachment::{Attachment, Common};
use crate::config::{Config, Guest, Template, TemplateError, Wanted};
use crate::link::wire::STATUS_REFUSED;
use crate::link::{Control, Post, Request};
use crate::sys::clock::monotonic_ns;
use crate::sys::{EventLoop, Token, wake};

const TOKEN_SIGNAL: Token = 0;
const TOKEN_CONTROL: Token = 1;
/// When nothing can be watched, that is tried again after this long.
const RETRY: Duration = Duration::from_millis(100);

/// Why a VMM does not get its guest.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Template(#[from] TemplateError),
    #[error("{0}")]
    Open(#[from] Error),
    #[error(
        "the guest is on interface {0} already: give this device's guest a name of its own, by \
         guest=NAME"
    )]
    Interface(String),
}

/// A guest that can be asked for.
struct Known {
    post: Post,
    /// The interface that it was made for.
    interface: Option<String>,
}

/// A guest that was made.
struct Made {
    names: Vec<String>,
    region: Region,
    threads: Threads,
}

/// What came of demand, for its end.
pub(super) struct Served {
    /// The lanes and the region of each guest.
    pub(super) guests: Vec<(Vec<String>, Region)>,
    /// Those of ports before those of guests.
    pub(super) threads: Vec<Threads>,
    /// Where frames of ports lie: they have to outlive the threads.
    pub(super) regions: Vec<Region>,
}

/// Ports that guests may come to, and those of them that were made.
struct SharedPorts {
    doors: Vec<Door>,
    regions: Vec<Region>,
    threads: Vec<Threads>,
}

impl SharedPorts {
    /// The guest's end of the port that it shares; `None` if it has one of its own. The
    /// first one of a template that others may follow opens the port for all of them.
    fn come(
        &mut self,
        guest: &Guest,
        templates: &[Template],
        common: &mut Common,
    ) -> Result<Option<Ends>, Error> {
        if let Some(door) = self.doors.iter_mut().find(|door| door.is_of(guest)) {
            let system = |source| Error::System { what: "a pipe cannot be made", source };
            let pair = wake::pair().map_err(system)?;
            let joined = door.joiner.join(&guest.name, &station(guest), guest.mtu, pair);
            let port =
                joined.map_err(|source| Error::Join { guest: guest.name.clone(), source })?;
            let attachments = vec![Attachment::Port(Box::new(port))];
            return Ok(Some(Ends { attachments, ports: None }));
        }
        let mut shared = Shared::default();
        if !shared.open_first(guest, templates, common)? {
            return Ok(None);
        }
        let ends = shared.take(&guest.name);
        let (switches, regions, doors) = shared.into_parts();
        self.threads.push(Threads::start(switches, None)?);
        self.regions.extend(regions);
        self.doors.extend(doors);
        Ok(ends)
    }
}

/// The control socket and who is behind it.
pub(super) struct Demand {
    control: Option<Control>,
    /// With the guests that were made.
    config: Config,
    common: Common,
    known: HashMap<String, Known>,
    ports: SharedPorts,
    made: Vec<Made>,
}

impl Demand {
    /// Opens the control socket, if there is to be one.
    pub(super) fn open(config: &Config, common: Common, doors: Vec<Door>) -> Result<Demand, Error> {
        let control = config.control.as_deref().map(Control::bind).transpose()?;
        Ok(Demand {
            control,
            config: config.clone(),
            common,
            known: HashMap::new(),
            ports: SharedPorts { doors, regions: Vec::new(), threads: Vec::new() },
            made: Vec::new(),
        })
    }

    /// A guest of the configuration can be asked for.
    pub(super) fn knows(&mut self, name: &str, post: Post) {
        self.known.insert(name.to_owned(), Known { post, interface: None });
    }

    /// Serves the control socket until `signals` can be read. When descriptors cannot be
    /// watched, because the process has no more of them, it is tried again a little later.
    pub(super) fn serve(&mut self, signals: &UnixStream) {
        loop {
            match self.wait(signals) {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(%error, "the control socket cannot be watched");
                    if is_readable(signals, RETRY) {
                        return;
                    }
                }
            }
            let requests = self.control.as_mut().map(|control| control.poll(monotonic_ns()));
            for request in requests.into_iter().flatten() {
                self.answer(request);
            }
        }
    }

    /// Waits for somebody who asks; true if `signals` can be read.
    fn wait(&self, signals: &UnixStream) -> io::Result<bool> {
        let control = self.control.iter().flat_map(Control::watch);
        let watched = control.map(|fd| (fd, TOKEN_CONTROL));
        let mut events = EventLoop::new(watched.chain([(signals.as_fd(), TOKEN_SIGNAL)]))?;
        let deadline = self.control.as_ref().and_then(Control::deadline);
        let timeout = deadline.map(|at| Duration::from_nanos(at.saturating_sub(monotonic_ns())));
        Ok(events.wait(timeout)?.contains(&TOKEN_SIGNAL))
    }

    /// What was made.
    pub(super) fn into_served(self) -> Served {
        let SharedPorts { regions, mut threads, .. } = self.ports;
        let mut guests = Vec::with_capacity(self.made.len());
        for made in self.made {
            guests.push((made.names, made.region));
            threads.push(made.threads);
        }
        Served { guests, threads, regions }
    }

    fn answer(&mut self, request: Request) {
        let Request { name, interface, offer } = request;
        match self.find(&name, interface, &offer.hello) {
            Ok(post) => {
                if let Err(offer) = post.send(offer) {
                    offer.refuse(STATUS_REFUSED, "the guest was lost; pasted's log says why");
                }
            }
            Err(refusal) => {
                tracing::warn!(guest = %name, %refusal, "a VMM was turned away");
                offer.refuse(STATUS_REFUSED, &refusal.to_string());
            }
        }
    }

    fn find(
        &mut self,
        name: &str,
        interface: Option<String>,
        hello: &crate::link::wire::Hello,
    ) -> Result<Post, Refusal> {
        if let Some(known) = self.known.get(name) {
            return match &known.interface {
                Some(made_for) if interface.as_ref().is_some_and(|asked| asked != made_for) => {
                    Err(Refusal::Interface(made_for.clone()))
                }
                _ => Ok(known.post.clone()),
            };
        }
        let config = self.config.with_guest(&Wanted {
            name,
            interface: interface.as_deref(),
            mac: Some(hello.mac).filter(|mac| *mac != [0; 6]),
            mtu: Some(hello.mtu.get()).filter(|mtu| *mtu != 0),
        })?;
        // The last one is the new one, and it is there.
        let Some(guest) = config.guests.last() else {
            return Err(Refusal::Interface(String::new()));
        };
        let Self { config: before, common, ports, .. } = self;
        let ends = |common: &mut Common| ports.come(guest, &before.templates, common);
        let Ready { lanes, region, made, post } = open(guest, ends, common, None, &Plain)?;
        let placed = |(index, lane): (usize, _)| Placed {
            name: lane_name(name, index),
            task: Box::new(lane),
            worker: None,
        };
        let placed: Vec<_> = lanes.into_iter().enumerate().map(placed).collect();
        let names = placed.iter().map(|placed| placed.name.clone()).collect();
        let threads = Threads::start(placed, None)?;
        made.keep();
        tracing::info!(guest = %name, interface, "guest made of its template");
        self.known.insert(name.to_owned(), Known { post: post.clone(), interface });
        self.made.push(Made { names, region, threads });
        self.config = config;
        Ok(post)
    }
}

/// Whether a socket can be read within a time, without a descriptor to wait by.
fn is_readable(socket: &UnixStream, limit: Duration) -> bool {
    // A timeout that is refused is no error of the socket's: the next attempt will show.
    let _ = socket.set_read_timeout(Some(limit));
    matches!((&*socket).read(&mut [0]), Ok(n) if n > 0)
}
