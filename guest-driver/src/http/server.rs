//! All flows of a server, and the loop that serves them.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use paste_abi::{Flow, Reason};

use super::files::Root;
use super::flow::{Conn, Pause};
use super::log::{Found, Log, LogOptions};
use super::shared::Shared;
use crate::channel::Channel;
use crate::error::PollError;
use crate::event::Event;
use crate::log::LogError;
use crate::transport::Timeout;

/// How long [`Server::run`] sleeps at most before it looks at its stop flag: a
/// signal that sets the flag ends the sleep, unless it comes just before.
const STOP_INTERVAL: Duration = Duration::from_millis(500);

/// What is served, and within which limits.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// The TCP port to listen on.
    pub port: u16,
    /// Flows that may be on their way to being established.
    pub backlog: u16,
    /// The directory to serve; without one, a fixed body answers everything.
    pub root: Option<PathBuf>,
    /// The largest request body, in bytes; bodies are read and discarded.
    pub body_max: u64,
    /// Heads that may be incomplete at the same time, 8 KiB each.
    pub heads_max: u32,
    /// Log every POST, head and body, before it is answered. What is in the region's
    /// log already stays there, as long as there is room.
    pub log: Option<LogOptions>,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            port: 80,
            backlog: 1024,
            root: None,
            body_max: 1 << 20,
            heads_max: 1024,
            log: None,
        }
    }
}

/// Why a server stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The directory cannot be opened.
    #[error("cannot open {path}: {error}", path = path.display())]
    Root {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        #[source]
        error: std::io::Error,
    },
    /// The host does not let us listen.
    #[error("cannot listen on port {port}: {reason}")]
    Listen {
        /// The port.
        port: u16,
        /// Why.
        reason: Reason,
    },
    /// There is no log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The channel is gone for good.
    #[error(transparent)]
    Poll(#[from] PollError),
}

/// The server. It takes a channel's events and answers through the channel.
#[derive(Debug)]
pub struct Server {
    port: u16,
    backlog: u16,
    /// By the index of the flow; its generation is checked.
    conns: Box<[Option<Conn>]>,
    shared: Shared,
    /// Flows that wait for what all share, each at most once.
    starved: VecDeque<Flow>,
    /// Flows whose answers wait for the log's next commit, each at most once.
    uncommitted: Vec<Flow>,
    log: Option<LogOptions>,
    found: Option<Found>,
    /// Why the log could not be taken up again.
    failed: Option<LogError>,
    /// A listen request that is to be made, or that waits for its answer.
    listen_due: bool,
    listen_cookie: Option<u64>,
    refused: Option<Reason>,
}

impl Server {
    /// A server for a channel that is open; it listens with the first
    /// [`Server::turn`]. With a log, it waits for the host until that is taken up.
    pub fn new(channel: &mut Channel, options: &ServerOptions) -> Result<Server, ServeError> {
        let root = match &options.root {
            None => None,
            Some(path) => {
                let opened = Root::open(path);
                Some(opened.map_err(|error| ServeError::Root { path: path.clone(), error })?)
            }
        };
        let mut server = Server {
            port: options.port,
            backlog: options.backlog,
            conns: Box::default(),
            shared: Shared::new(root, options.body_max, options.heads_max),
            starved: VecDeque::new(),
            uncommitted: Vec::new(),
            log: options.log,
            found: None,
            failed: None,
            listen_due: false,
            listen_cookie: None,
            refused: None,
        };
        server.reset(channel)?;
        Ok(server)
    }

    /// What was found in the log when it was taken up last; once.
    pub fn take_found(&mut self) -> Option<Found> {
        self.found.take()
    }

    /// Begins anew with the geometry of an opening: the only place that
    /// allocates.
    fn reset(&mut self, channel: &mut Channel) -> Result<(), LogError> {
        if let Some(geometry) = channel.geometry() {
            // IP and TCP headers with timestamps (RFC 7323).
            let headers = if geometry.address.is_ipv4() { 52 } else { 72 };
            let segment = usize::from(geometry.mtu).saturating_sub(headers);
            self.shared.chunk = segment.max(512);
            self.shared.reset(geometry.buffer_count);
            self.conns = (0..geometry.flows_max).map(|_| None).collect();
            self.starved = VecDeque::with_capacity(self.conns.len());
            self.uncommitted = Vec::with_capacity(self.conns.len());
        }
        if let Some(options) = self.log {
            let (log, found) = match Log::open(channel, options) {
                // There will be another opening.
                Err(LogError::Lost) => return Ok(()),
                other => other?,
            };
            (self.shared.log, self.found) = (Some(log), Some(found));
        }
        self.listen_due = true;
        self.listen_cookie = None;
        Ok(())
    }

    /// Serves until `stop` is set or the channel is gone for good. A channel
    /// that is opened anew is listened on again.
    pub fn run(&mut self, channel: &mut Channel, stop: &AtomicBool) -> Result<(), ServeError> {
        while !stop.load(Ordering::Relaxed) {
            self.turn(channel, Timeout::After(STOP_INTERVAL))?;
        }
        Ok(())
    }

    /// Moves one batch and answers what is in it.
    pub fn turn(&mut self, channel: &mut Channel, timeout: Timeout) -> Result<(), ServeError> {
        if self.listen_due
            && channel.is_open()
            && let Ok(cookie) = channel.request_listen(self.port, self.backlog)
        {
            self.listen_due = false;
            self.listen_cookie = Some(cookie);
        }
        channel.poll(self.patience(channel, timeout))?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.shared.date.renew(now.as_secs());
        while let Some(event) = channel.next_event() {
            self.handle(channel, event);
        }
        self.resume(channel);
        self.commit(channel);
        if let Some(error) = self.failed.take() {
            return Err(error.into());
        }
        match self.refused.take() {
            Some(reason) => Err(ServeError::Listen { port: self.port, reason }),
            None => Ok(()),
        }
    }

    /// How long a turn may wait for events: not at all if flows wait for room that
    /// the log makes with its next commit.
    fn patience(&self, channel: &Channel, timeout: Timeout) -> Timeout {
        match &self.shared.log {
            Some(log) if !self.starved.is_empty() && log.is_unfinished(channel) => Timeout::Now,
            _ => timeout,
        }
    }

    /// Ends the log's epoch, and sends the answers that waited for it.
    fn commit(&mut self, channel: &mut Channel) {
        while let Some(log) = &mut self.shared.log
            && (log.is_fresh() || log.is_unfinished(channel))
        {
            log.commit(channel);
            // Those that go on and wait again are for the next round.
            let waiting = std::mem::take(&mut self.uncommitted);
            if waiting.is_empty() {
                return;
            }
            for &flow in &waiting {
                if let Some(conn) = find(&mut self.conns, flow) {
                    conn.uncommitted = false;
                    self.go_on(channel, flow);
                }
            }
            if self.uncommitted.is_empty() {
                self.uncommitted = waiting;
                self.uncommitted.clear();
                return;
            }
        }
    }

    /// Takes one event.
    pub fn handle(&mut self, channel: &mut Channel, event: Event) {
        match event {
            Event::Data { flow, data } => match find(&mut self.conns, flow) {
                Some(conn) => {
                    conn.push(&mut self.shared, data);
                    self.go_on(channel, flow);
                }
                None => channel.give_back(data),
            },
            Event::Accepted { flow, .. } => match self.conns.get_mut(flow.index() as usize) {
                Some(conn) => {
                    if let Some(mut old) = conn.replace(Conn::new(flow)) {
                        old.end(&mut self.shared, channel);
                    }
                }
                // More flows than the host said it has. Refusing is all there
                // is to do, and not being able to is the host's loss.
                None => drop(channel.abort(flow)),
            },
            Event::Acked { flow, cookie, buffer } => {
                if let Some(buffer) = buffer {
                    self.shared.take_back(channel, buffer);
                }
                if let Some(conn) = find(&mut self.conns, flow) {
                    conn.acked(cookie);
                    self.go_on(channel, flow);
                }
            }
            Event::Fin { flow } => {
                if let Some(conn) = find(&mut self.conns, flow) {
                    conn.fin();
                    self.go_on(channel, flow);
                }
            }
            Event::Reset { flow, .. } | Event::Closed { flow } => {
                if let Some(conn) = find(&mut self.conns, flow) {
                    conn.end(&mut self.shared, channel);
                    self.conns[flow.index() as usize] = None;
                }
            }
            Event::Refused { flow, buffer, .. } => {
                // Data is missing from the flow now, and later slots may have
                // been taken: only a reset is honest.
                if let Some(buffer) = buffer {
                    channel.give_back(buffer);
                    if let Some(conn) = find(&mut self.conns, flow) {
                        conn.abort();
                        self.go_on(channel, flow);
                    }
                }
            }
            Event::Reply { cookie, result } if self.listen_cookie == Some(cookie) => {
                self.listen_cookie = None;
                self.refused = result.err();
            }
            Event::Opened => self.failed = self.reset(channel).err(),
            Event::Lost { .. } => {
                self.conns.fill_with(|| None);
                self.starved.clear();
                self.uncommitted.clear();
                self.shared.log = None;
                self.shared.reset(0);
            }
            Event::Connected { .. }
            | Event::Writable { .. }
            | Event::Reply { .. }
            | Event::Flushed { .. }
            | Event::Resumed { .. } => {}
        }
    }

    /// Lets a flow go on, and remembers it if it lacks something.
    fn go_on(&mut self, channel: &mut Channel, flow: Flow) {
        if find(&mut self.conns, flow).is_some_and(|conn| !conn.waiting)
            && self.step(channel, flow) == Pause::Starved
            && let Some(conn) = find(&mut self.conns, flow)
        {
            conn.waiting = true;
            if self.starved.len() == self.starved.capacity() {
                // Flows that ended while they waited; each left one entry.
                self.starved.retain(|&flow| find(&mut self.conns, flow).is_some());
            }
            self.starved.push_back(flow);
        }
    }

    /// Runs a flow, and remembers it if its answers wait for a commit.
    fn step(&mut self, channel: &mut Channel, flow: Flow) -> Pause {
        let Some(conn) = find(&mut self.conns, flow) else {
            return Pause::Idle;
        };
        let pause = conn.run(&mut self.shared, channel);
        if pause == Pause::Uncommitted && !conn.uncommitted {
            conn.uncommitted = true;
            self.uncommitted.push(flow);
        }
        pause
    }

    /// Lets flows that lacked something go on, in their order, until one lacks
    /// it again.
    fn resume(&mut self, channel: &mut Channel) {
        while let Some(&flow) = self.starved.front() {
            if self.step(channel, flow) == Pause::Starved {
                return;
            }
            if let Some(conn) = find(&mut self.conns, flow) {
                conn.waiting = false;
            }
            self.starved.pop_front();
        }
    }
}

/// The flow's state, if the name is not stale.
fn find(conns: &mut [Option<Conn>], flow: Flow) -> Option<&mut Conn> {
    conns.get_mut(flow.index() as usize)?.as_mut().filter(|conn| conn.flow == flow)
}

#[cfg(test)]
mod tests;
