//! Guests that VMMs ask for on the control socket: those of the configuration, and those
//! that are made of a template the first time. Once made, a guest stays, with its
//! addresses, until the process ends. Where its template names a port that several can
//! share, it comes to those that are there.
//!
//! A guest whose region is to lie in a VMM's segment is made when its VMM comes, by either
//! of its devices. Until the one that shows the region has brought the segment, the region
//! is memory that the guest cannot see; then the guest is closed and opened once more, in the
//! segment. Its network device notices a backend that was restarted. The same happens when
//! another VMM comes with another segment.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::time::Duration;

use paste_abi::superblock::HOST_HEAD_LEN;
use paste_pmem::{Region, RegionError, Segment, SegmentError};

use super::shared::{Door, Ends, Shared};
use super::threads::{Placed, Threads};
use super::{Error, Given, Plain, Ready, lane_name, open, station};
use crate::attachment::{Attachment, Common};
use crate::config::{Config, Guest, Template, TemplateError, Wanted};
use crate::link::wire::{STATUS_BUSY, STATUS_REFUSED};
use crate::link::{Asked, Control, Post, RegionOffer, RegionRequest, Request, SegmentTerms};
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
    #[error(
        "there is no guest \"{0}\" yet: it is made when its network device asks, so give that one \
         the lower slot; or add a [[guest]] to the configuration"
    )]
    NotYet(String),
    #[error(
        "the guest's region lies elsewhere, where this VMM cannot show it: write segment = true in \
         its region"
    )]
    NoSegment,
    #[error("the guest is in use: another VMM shows it its region")]
    Shown,
    #[error("{0}")]
    Segment(#[from] SegmentError),
    #[error("{0}")]
    Region(#[from] RegionError),
    #[error("a descriptor cannot be duplicated: {0}")]
    Descriptor(io::Error),
}

impl Refusal {
    /// Whether it may be otherwise a little later.
    fn status(&self) -> u16 {
        match self {
            Refusal::NotYet(_) | Refusal::Shown => STATUS_BUSY,
            _ => STATUS_REFUSED,
        }
    }
}

/// A guest that can be asked for.
struct Known {
    post: Post,
    /// The interface that it was made for.
    interface: Option<String>,
}

/// A guest that was made.
struct Made {
    /// Its own name, and those of its further lanes.
    names: Vec<String>,
    region: Region,
    threads: Threads,
    /// The link of the device that shows its region, as long as that is there.
    shown: Weak<()>,
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
            for asked in requests.into_iter().flatten() {
                match asked {
                    Asked::Guest(request) => self.answer(request),
                    Asked::Region(request) => self.answer_region(request),
                }
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
        if let Some(guest) = self.config.guests.iter().find(|guest| guest.name == name) {
            return self.make(&guest.clone(), interface, None);
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
        let post = self.make(guest, interface, None)?;
        tracing::info!(guest = %name, "guest made of its template");
        self.config = config;
        Ok(post)
    }

    /// Opens a guest, in a segment or without, and begins to serve it.
    fn make(
        &mut self,
        guest: &Guest,
        interface: Option<String>,
        given: Option<(Segment, &RegionOffer)>,
    ) -> Result<Post, Refusal> {
        let name = &guest.name;
        let presence = Arc::new(());
        // Without a link nobody has it but this function.
        let shown = Arc::downgrade(&presence);
        let given = match given {
            Some((segment, offer)) => {
                let link = offer.link(presence).map_err(Refusal::Descriptor)?;
                Some(Given { segment, link })
            }
            None => None,
        };
        let Self { config, common, ports, .. } = self;
        let ends = |common: &mut Common| match guest.region.segment {
            // Opened once more with its segment, it has a port of its own.
            true => Ok(None),
            false => ports.come(guest, &config.templates, common),
        };
        let Ready { lanes, region, made, post } = open(guest, ends, common, None, given, &Plain)?;
        let placed = |(index, lane): (usize, _)| Placed {
            name: lane_name(name, index),
            task: Box::new(lane),
            worker: None,
        };
        let placed: Vec<_> = lanes.into_iter().enumerate().map(placed).collect();
        let names = placed.iter().map(|placed| placed.name.clone()).collect();
        let threads = Threads::start(placed, None)?;
        made.keep();
        self.known.insert(name.clone(), Known { post: post.clone(), interface });
        self.made.push(Made { names, region, threads, shown });
        Ok(post)
    }

    /// Answers the device that shows a guest its region.
    fn answer_region(&mut self, request: RegionRequest) {
        let RegionRequest { name, segment, offer } = request;
        let outcome = match segment {
            None => self.segment_guest(&name).map(|guest| {
                let terms = terms(guest);
                offer.accept(terms);
                false
            }),
            Some((fd, len)) => Segment::new(fd, len)
                .map_err(Refusal::from)
                .and_then(|segment| self.put_into(&name, segment, &offer))
                .map(|()| true),
        };
        match outcome {
            Ok(true) => tracing::info!(guest = %name, "region shown by its VMM"),
            Ok(false) => {
                if let Some(control) = &mut self.control {
                    control.keep(offer, monotonic_ns());
                }
            }
            Err(refusal) => {
                tracing::warn!(guest = %name, %refusal, "a VMM that shows a region was turned away");
                offer.refuse(refusal.status(), &refusal.to_string());
            }
        }
    }

    /// The guest of this name, whose region a VMM may have that nobody else shows.
    fn segment_guest(&self, name: &str) -> Result<&Guest, Refusal> {
        let guest = self.config.guests.iter().find(|guest| guest.name == name);
        let guest = guest.ok_or_else(|| Refusal::NotYet(name.to_owned()))?;
        if !guest.region.segment {
            return Err(Refusal::NoSegment);
        }
        match self.made.iter().find(|made| made.names[0] == name) {
            Some(made) if made.shown.strong_count() > 0 => Err(Refusal::Shown),
            _ => Ok(guest),
        }
    }

    /// Has a guest's region lie in this segment. A segment that cannot be had leaves the
    /// guest as it is.
    fn put_into(
        &mut self,
        name: &str,
        segment: Segment,
        offer: &RegionOffer,
    ) -> Result<(), Refusal> {
        let guest = self.segment_guest(name)?.clone();
        segment.judge(&guest.name, guest.region.size, guest.region.buffer_size)?;
        let interface = self.known.get(name).and_then(|known| known.interface.clone());
        if let Some(at) = self.made.iter().position(|made| made.names[0] == name) {
            let Made { region, threads, .. } = self.made.remove(at);
            // What it has counted is not told: it goes on as another one.
            drop(threads.stop());
            if let Err(error) = region.close() {
                tracing::error!(guest = %name, %error, "the region was not closed in good order");
            }
            self.known.remove(name);
        }
        match self.make(&guest, interface.clone(), Some((segment, offer))) {
            Ok(_) => {
                offer.accept(terms(&guest));
                Ok(())
            }
            Err(refusal) => {
                // Its network has to go on.
                if let Err(error) = self.make(&guest, interface, None) {
                    tracing::error!(guest = %name, %error, "the guest is no longer served");
                }
                Err(refusal)
            }
        }
    }
}

/// What the segment of a guest has to be.
fn terms(guest: &Guest) -> SegmentTerms {
    SegmentTerms {
        len: guest.region.size,
        guest_offset: HOST_HEAD_LEN,
        guest_len: guest.region.size - HOST_HEAD_LEN,
        durable: guest.region.mirror.is_some(),
    }
}

/// Whether a socket can be read within a time, without a descriptor to wait by.
fn is_readable(socket: &UnixStream, limit: Duration) -> bool {
    // A timeout that is refused is no error of the socket's: the next attempt will show.
    let _ = socket.set_read_timeout(Some(limit));
    matches!((&*socket).read(&mut [0]), Ok(n) if n > 0)
}
