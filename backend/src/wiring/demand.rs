//! Guests that VMMs ask for on the control socket: those of the configuration, and those
//! that are made of a template the first time. Once made, a guest stays, with its
//! addresses, until the process ends.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use paste_pmem::Region;

use super::threads::{Placed, Threads};
use super::{Error, Plain, Ready, lane_name, open};
use crate::attachment::Common;
use crate::config::{Config, TemplateError, Wanted};
use crate::link::wire::STATUS_REFUSED;
use crate::link::{Control, Post, Request};
use crate::sys::clock::monotonic_ns;
use crate::sys::{EventLoop, Token};

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

/// The control socket and who is behind it.
pub(super) struct Demand {
    control: Option<Control>,
    /// With the guests that were made.
    config: Config,
    common: Common,
    known: HashMap<String, Known>,
    made: Vec<Made>,
}

impl Demand {
    /// Opens the control socket, if there is to be one.
    pub(super) fn open(config: &Config, common: Common) -> Result<Demand, Error> {
        let control = config.control.as_deref().map(Control::bind).transpose()?;
        let config = config.clone();
        Ok(Demand { control, config, common, known: HashMap::new(), made: Vec::new() })
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

    /// The guests that were made, with their threads.
    pub(super) fn into_guests(self) -> impl Iterator<Item = (Vec<String>, Region, Threads)> {
        self.made.into_iter().map(|made| (made.names, made.region, made.threads))
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
        let Ready { lanes, region, made, post } =
            open(guest, None, &mut self.common, None, &Plain)?;
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
