//! A client over kernel sockets: one thread, many connections, each with one
//! request under way (closed loop), every byte of every response judged.
//!
//! It knows an address and what to expect from it; not what serves there. It
//! is the same for every server that it is pointed at, which is what makes the
//! figures comparable.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, ipproto, socket_with, sockopt};

use super::http::{Judgement, judge};
use super::sample::Sample;
use crate::sys::clock;
use crate::sys::linux::demo::{Poller, Ready};

/// A response that takes longer counts as missing.
const RESPONSE_NS_MAX: u64 = 5_000_000_000;
/// After this time a connection that was refused or lost is tried again.
const RETRY_NS: u64 = 10_000_000;
/// How often overdue responses and retries are looked for, and the caller asked
/// whether to go on.
const TICK_NS: u64 = 20_000_000;
/// How long a stretch waits for the last responses after it has stopped asking.
const DRAIN_NS: u64 = 2 * RESPONSE_NS_MAX;
/// Bytes that one read takes at most.
const READ_LEN: usize = 16 * 1024;

/// What the client does.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Whom it asks.
    pub server: SocketAddrV4,
    /// How many connections it keeps.
    pub connections: usize,
    /// What it sends, whole: see [`super::http::request`].
    pub request: Vec<u8>,
    /// The body that every response must have.
    pub body: Vec<u8>,
}

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be made at this time.
    Closed { retry_at: u64 },
    /// Being made since then.
    Connecting { since: u64 },
    /// Nothing under way.
    Idle,
    /// A request under way since then.
    Asked { since: u64 },
}

/// What has become of a connection since [`Client::expect_loss`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    /// Not expected.
    No,
    /// Has not happened yet.
    Due,
    /// Lost, and not yet served again.
    Suffered,
    /// Lost, connected again and served.
    Healed,
}

struct Connection {
    socket: Option<OwnedFd>,
    state: State,
    /// Bytes of the request that the kernel has taken.
    sent: usize,
    /// The beginning of a response.
    partial: Vec<u8>,
    loss: Loss,
}

/// The client. Its connections stay open between stretches.
pub struct Client {
    config: ClientConfig,
    poller: Poller,
    connections: Vec<Connection>,
    sample: Sample,
    /// Whether an answered connection asks again.
    asking: bool,
    buffer: Box<[u8]>,
    events: Vec<Ready>,
    first_fault: Option<String>,
}

impl Client {
    /// A client that has not connected yet.
    pub fn new(config: ClientConfig) -> io::Result<Client> {
        let connections = (0..config.connections)
            .map(|_| Connection {
                socket: None,
                state: State::Closed { retry_at: 0 },
                sent: 0,
                partial: Vec::with_capacity(READ_LEN),
                loss: Loss::No,
            })
            .collect();
        Ok(Client {
            poller: Poller::new(config.connections)?,
            connections,
            sample: Sample::default(),
            asking: false,
            buffer: vec![0; READ_LEN].into(),
            events: Vec::with_capacity(config.connections),
            first_fault: None,
            config,
        })
    }

    /// Makes all connections, trying again while the server is not there yet.
    /// False if `timeout` passes first.
    pub fn connect(&mut self, timeout: Duration) -> io::Result<bool> {
        self.asking = false;
        let fault_before = self.first_fault.clone();
        let end = clock::monotonic_ns() + timeout.as_nanos() as u64;
        loop {
            let now = clock::monotonic_ns();
            self.tick(now)?;
            if self.connections.iter().all(|c| c.state == State::Idle) {
                // Attempts before the server was there are nobody's error.
                self.sample = Sample::default();
                self.first_fault = fault_before;
                return Ok(true);
            }
            if now >= end {
                return Ok(false);
            }
            self.turn(Duration::from_nanos(RETRY_NS))?;
        }
    }

    /// Asks on all connections for `duration`, or until `go_on` (called every
    /// 20 ms with what there is so far) says no; then takes the responses
    /// still under way. Returns what this stretch gave.
    pub fn run(
        &mut self,
        duration: Duration,
        go_on: &mut dyn FnMut(&mut Client, &Sample) -> io::Result<bool>,
    ) -> io::Result<Sample> {
        let start = clock::monotonic_ns();
        let end = start.saturating_add(duration.as_nanos() as u64);
        self.sample = Sample::default();
        self.asking = true;
        for index in 0..self.connections.len() {
            if self.connections[index].state == State::Idle {
                self.ask(index);
            }
        }
        let mut tick_at = start + TICK_NS;
        loop {
            let now = clock::monotonic_ns();
            if now >= end {
                break;
            }
            if now >= tick_at {
                tick_at = now + TICK_NS;
                self.tick(now)?;
                // Lent out, so that the caller may look at it and at the client.
                let mut sample = std::mem::take(&mut self.sample);
                sample.elapsed_ns = now - start;
                let going = go_on(self, &sample);
                self.sample = sample;
                if !going? {
                    break;
                }
            }
            self.turn(Duration::from_nanos(tick_at.min(end).saturating_sub(now)))?;
        }
        self.drain()?;
        let mut sample = std::mem::take(&mut self.sample);
        sample.elapsed_ns = clock::monotonic_ns() - start;
        Ok(sample)
    }

    /// From now on each connection is expected to be lost once: that is counted
    /// as `killed` and not as an error, and so are attempts to connect again
    /// that are refused.
    pub fn expect_loss(&mut self) {
        for connection in &mut self.connections {
            connection.loss = Loss::Due;
        }
    }

    /// Whether each connection has been lost, made again and served since
    /// [`Client::expect_loss`].
    pub fn has_healed(&self) -> bool {
        self.connections.iter().all(|c| c.loss == Loss::Healed)
    }

    /// Connections that have been lost and served again since
    /// [`Client::expect_loss`].
    pub fn healed(&self) -> usize {
        self.connections.iter().filter(|c| c.loss == Loss::Healed).count()
    }

    /// From now on every loss is an error again.
    pub fn expect_no_loss(&mut self) {
        for connection in &mut self.connections {
            connection.loss = Loss::No;
        }
    }

    /// What the first error ever was, in words.
    pub fn first_fault(&self) -> Option<&str> {
        self.first_fault.as_deref()
    }

    /// Stops asking and takes the responses that are under way.
    fn drain(&mut self) -> io::Result<()> {
        self.asking = false;
        let end = clock::monotonic_ns() + DRAIN_NS;
        loop {
            let now = clock::monotonic_ns();
            self.tick(now)?;
            let busy = self.connections.iter().any(|c| matches!(c.state, State::Asked { .. }));
            if !busy || now >= end {
                return Ok(());
            }
            self.turn(Duration::from_nanos(TICK_NS))?;
        }
    }

    /// Overdue responses and due retries. Linear in the connections, and so
    /// done at intervals.
    fn tick(&mut self, now: u64) -> io::Result<()> {
        for index in 0..self.connections.len() {
            match self.connections[index].state {
                State::Asked { since } if now.saturating_sub(since) > RESPONSE_NS_MAX => {
                    self.sample.errors.missing += 1;
                    self.note(index, "no response within 5 s");
                    self.close(index, now);
                }
                State::Connecting { since } if now.saturating_sub(since) > RESPONSE_NS_MAX => {
                    self.lose(index, "no answer to a connection within 5 s", now);
                }
                State::Closed { retry_at } if now >= retry_at => self.open(index, now)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits for at most `timeout`, and deals with what is ready.
    fn turn(&mut self, timeout: Duration) -> io::Result<()> {
        let ready = self.poller.wait(Duration::ZERO, timeout)?;
        self.events.clear();
        self.events.extend_from_slice(ready);
        for at in 0..self.events.len() {
            let Ready { token, readable, writable } = self.events[at];
            let index = token as usize;
            match self.connections[index].state {
                State::Connecting { .. } if writable => self.connected(index),
                State::Asked { .. } => {
                    if readable {
                        self.read(index);
                    }
                    if writable {
                        self.write(index);
                    }
                }
                State::Idle if readable => self.read(index),
                _ => {}
            }
        }
        Ok(())
    }

    fn open(&mut self, index: usize, now: u64) -> io::Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let tcp = Some(ipproto::TCP);
        let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, tcp)?;
        sockopt::set_tcp_nodelay(&socket, true)?;
        match connect(&socket, &self.config.server) {
            Ok(()) | Err(Errno::INPROGRESS) => {
                self.poller.add_socket(&socket, index as u64)?;
                let connection = &mut self.connections[index];
                connection.socket = Some(socket);
                connection.state = State::Connecting { since: now };
                connection.partial.clear();
                connection.sent = 0;
            }
            Err(errno) => self.lose(index, &format!("cannot connect: {errno}"), now),
        }
        Ok(())
    }

    fn connected(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let Some(socket) = &connection.socket else {
            return;
        };
        match sockopt::socket_error(socket) {
            Ok(Ok(())) => {
                connection.state = State::Idle;
                if self.asking {
                    self.ask(index);
                }
            }
            Ok(Err(errno)) | Err(errno) => {
                self.lose(index, &format!("cannot connect: {errno}"), clock::monotonic_ns());
            }
        }
    }

    fn ask(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        connection.sent = 0;
        connection.state = State::Asked { since: clock::monotonic_ns() };
        self.write(index);
    }

    fn write(&mut self, index: usize) {
        let connection = &mut self.connections[index];
        let Some(socket) = &connection.socket else {
            return;
        };
        while connection.sent < self.config.request.len() {
            match rustix::net::send(
                socket,
                &self.config.request[connection.sent..],
                rustix::net::SendFlags::NOSIGNAL,
            ) {
                Ok(n) => connection.sent += n,
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    let what = format!("sending failed: {errno}");
                    return self.lose(index, &what, clock::monotonic_ns());
                }
            }
        }
    }

    fn read(&mut self, index: usize) {
        loop {
            let Some(socket) = &self.connections[index].socket else {
                return;
            };
            match rustix::io::read(socket, &mut self.buffer[..]) {
                Ok(0) => {
                    return self.lose(index, "the server ended it", clock::monotonic_ns());
                }
                Ok(n) => {
                    let now = clock::monotonic_ns();
                    self.take(index, n, now);
                    if n < self.buffer.len() {
                        return;
                    }
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Err(errno) => {
                    let what = format!("receiving failed: {errno}");
                    return self.lose(index, &what, clock::monotonic_ns());
                }
            }
        }
    }

    /// Judges `n` bytes in the buffer, together with what came before them.
    fn take(&mut self, index: usize, n: usize, now: u64) {
        let connection = &mut self.connections[index];
        let State::Asked { since } = connection.state else {
            return self.wrong(index, "bytes came that nobody asked for", now);
        };
        let bytes = if connection.partial.is_empty() {
            &self.buffer[..n]
        } else {
            connection.partial.extend_from_slice(&self.buffer[..n]);
            &connection.partial[..]
        };
        match judge(bytes, &self.config.body) {
            // One request is under way, so a second response is a wrong one;
            // so is one that came before the request was sent.
            Judgement::Right(len)
                if len == bytes.len() && connection.sent == self.config.request.len() =>
            {
                connection.partial.clear();
                connection.state = State::Idle;
                if connection.loss == Loss::Suffered {
                    connection.loss = Loss::Healed;
                }
                self.sample.record(now.saturating_sub(since));
                if self.asking {
                    self.ask(index);
                }
            }
            Judgement::Right(_) => self.wrong(index, "more bytes than one response", now),
            Judgement::Unfinished => {
                if connection.partial.is_empty() {
                    connection.partial.extend_from_slice(&self.buffer[..n]);
                }
            }
            Judgement::Wrong(fault) => {
                self.wrong(index, &format!("a wrong response: {fault:?}"), now);
            }
        }
    }

    fn wrong(&mut self, index: usize, what: &str, now: u64) {
        self.sample.errors.wrong += 1;
        self.note(index, what);
        self.close(index, now);
    }

    /// A connection has ended without a response having been wrong.
    fn lose(&mut self, index: usize, what: &str, now: u64) {
        let connection = &mut self.connections[index];
        let connecting =
            matches!(connection.state, State::Connecting { .. } | State::Closed { .. });
        match (connection.loss, connecting) {
            (Loss::Due, false) => {
                connection.loss = Loss::Suffered;
                self.sample.killed += 1;
            }
            (Loss::Due | Loss::Suffered, true) => connection.loss = Loss::Suffered,
            (_, true) => {
                self.sample.errors.refused += 1;
                self.note(index, what);
            }
            (_, false) => {
                self.sample.errors.broken += 1;
                self.note(index, what);
            }
        }
        self.close(index, now);
    }

    fn close(&mut self, index: usize, now: u64) {
        let connection = &mut self.connections[index];
        connection.socket = None;
        connection.partial.clear();
        connection.state = State::Closed { retry_at: now + RETRY_NS };
    }

    fn note(&mut self, index: usize, what: &str) {
        if self.first_fault.is_none() {
            let server = self.config.server;
            self.first_fault = Some(format!("connection {index} to {server}: {what}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread::JoinHandle;

    use super::super::epoll_server::{EpollServer, Served};
    use super::super::http::{BODY, request, response};
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    struct Server {
        address: SocketAddrV4,
        stop: Arc<AtomicBool>,
        thread: JoinHandle<Served>,
    }

    /// A server in a thread, which answers with `body`.
    fn start(listener: TcpListener, body: &[u8]) -> Server {
        let SocketAddr::V4(address) = listener.local_addr().unwrap() else { panic!("IPv4") };
        let stop = Arc::new(AtomicBool::new(false));
        let response = response(body);
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let mut server = EpollServer::new(response, Duration::from_micros(50)).unwrap();
                server.listen(listener).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    server.turn(Duration::from_millis(10), &mut |_| Ok(())).unwrap();
                }
                server.served().next().unwrap()
            }
        });
        Server { address, stop, thread }
    }

    impl Server {
        fn stop(self) -> Served {
            self.stop.store(true, Ordering::Relaxed);
            self.thread.join().unwrap()
        }
    }

    fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").unwrap()
    }

    fn client(server: SocketAddrV4, connections: usize) -> Client {
        Client::new(ClientConfig {
            server,
            connections,
            request: request(1400, server),
            body: BODY.to_vec(),
        })
        .unwrap()
    }

    #[test]
    fn client_and_server_count_the_same() {
        let server = start(listener(), BODY);
        let mut client = client(server.address, 16);
        assert!(client.connect(Duration::from_secs(10)).unwrap());
        let enough = &mut |_: &mut Client, s: &Sample| Ok(s.requests < 1000);
        let mut total = client.run(LONG, enough).unwrap();
        // A second stretch goes on over the same connections.
        total.merge(&client.run(LONG, enough).unwrap());
        assert_eq!(total.errors, Default::default());
        assert_eq!(client.first_fault(), None);
        assert!(total.requests >= 2000 && total.rps() > 0.0);
        let served = server.stop();
        assert_eq!(served.requests, total.requests);
        assert_eq!(served.bytes_in, total.requests * 1400);
    }

    #[test]
    fn a_wrong_byte_is_an_error() {
        let mut body = *BODY;
        body[63] ^= 1;
        let server = start(listener(), &body);
        let mut client = client(server.address, 2);
        assert!(client.connect(Duration::from_secs(10)).unwrap());
        let sample = client.run(LONG, &mut |_, s| Ok(s.errors.wrong < 4)).unwrap();
        assert_eq!(sample.requests, 0);
        assert!(sample.errors.wrong >= 4);
        assert!(client.first_fault().unwrap().contains("Body"));
        server.stop();
    }

    #[test]
    fn a_loss_is_an_error_unless_it_was_expected() {
        for expected in [true, false] {
            let listener = listener();
            let mut server = Some(start(listener.try_clone().unwrap(), BODY));
            let mut client = client(server.as_ref().unwrap().address, 8);
            assert!(client.connect(Duration::from_secs(10)).unwrap());
            let mut losses_seen = false;
            let sample = client
                .run(LONG, &mut |client, sample| {
                    if sample.requests > 100 && !losses_seen {
                        losses_seen = true;
                        if expected {
                            client.expect_loss();
                        }
                        // Its connections end with it; its successor takes over
                        // the same listener.
                        server.take().unwrap().stop();
                        server = Some(start(listener.try_clone().unwrap(), BODY));
                        return Ok(true);
                    }
                    Ok(if expected { !client.has_healed() } else { sample.errors.broken < 8 })
                })
                .unwrap();
            if expected {
                assert_eq!((sample.killed, sample.errors.total()), (8, 0), "{sample:?}");
                assert_eq!(client.healed(), 8);
                assert_eq!(client.first_fault(), None);
            } else {
                assert_eq!((sample.killed, sample.errors.broken), (0, 8));
            }
            server.unwrap().stop();
        }
    }

    #[test]
    fn nobody_there_is_no_connection() {
        let address = start(listener(), BODY);
        let gone = address.address;
        address.stop();
        let mut client = client(gone, 2);
        assert!(!client.connect(Duration::from_millis(50)).unwrap());
        assert!(client.first_fault().unwrap().contains("cannot connect"));
    }
}
